"""Soft cross entropy, KL divergence and entropy: values, and gradients by both arguments and by the temperature."""

import re

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest
import scipy.special

import jaxsoftmax
from jaxsoftmax import divergences
from jaxsoftmax._core import folds
from tests import oracles
from tests.helpers import (
    assert_contract,
    compiled,
    constants,
    cotangents,
    hessian_products,
    masks,
    planted,
    value_and_gradients,
)


def targets_for(logits, labels, dtype=np.float32):
    """Distributions with zeros, one-hot rows, rows that do not sum to 1, rows of zeros; no mass on absent classes."""
    rng = np.random.default_rng(40)
    targets = rng.dirichlet(np.full(logits.shape[1], 0.5), len(logits))
    targets[::4] = np.eye(logits.shape[1])[labels[::4]]
    targets[1::5] *= 2.5
    targets[3::7] = 0.0
    targets[2::6, 0] = 0.0
    return np.where(np.isneginf(logits), 0, targets).astype(dtype)


def check(name, logits, other, *, where=None, temperature=None, **options):
    """name is that of a function of two distributions; the losses are in float32 or wider."""
    dtype = np.float64 if logits.dtype == np.float64 else np.float32
    cotangent = cotangents(len(logits), dtype=dtype)
    function = getattr(jaxsoftmax, name)

    def with_temperature(logits, other, temperature, where):
        return function(logits, other, where=where, temperature=temperature, **options)

    def without(logits, other, where):
        return function(logits, other, where=where, **options)

    if temperature is None:
        results = value_and_gradients(without, cotangent, [logits, other], [where])
    else:
        results = value_and_gradients(with_temperature, cotangent, [logits, other, temperature], [where])
    exact = getattr(oracles, name)(logits, other, cotangent, where=where, temperature=temperature, **options)
    gain = 25.0 if name == "kl_divergence" else 4.0  # a subnormal probability times a difference of logarithms
    gain /= 1.0 if temperature is None else min(1.0, temperature.min()) ** 2
    assert_contract(results[0], exact.value.value, dtype, exact.value.magnitude, gain=gain, name="value")
    assert_contract(results[1], exact.logits.value, logits.dtype, exact.logits.magnitude, gain=gain, name="by logits")
    assert_contract(results[2], exact.other.value, other.dtype, exact.other.magnitude, gain=gain, name="by the other")
    if temperature is not None:
        by_temperature = exact.temperature if temperature.ndim else exact.temperature.map(np.sum)
        assert_contract(
            results[3], by_temperature.value, dtype, by_temperature.magnitude, gain=gain, name="by temperature"
        )


@pytest.mark.parametrize("classes", [1, 2, 7, 1000])
def test_soft_cross_entropy(classes):
    logits, labels = planted(classes)
    rows = slice(None, None, 4 if classes == 1000 else 1)
    check("soft_cross_entropy", logits[rows], targets_for(logits, labels)[rows])


@pytest.mark.parametrize("classes", [1, 2, 7, 1000])
def test_kl_divergence(classes):
    """Against targets at all scales, equal and nearly equal ones among them."""
    logits, _ = planted(classes, absent=False)
    target_logits = np.roll(logits, 5, axis=0)
    target_logits[::5] = logits[::5]
    target_logits[1::5] = logits[1::5] * np.float32(1 + 2**-12)
    rows = slice(None, None, 4 if classes == 1000 else 1)
    check("kl_divergence", logits[rows], target_logits[rows])


@pytest.mark.parametrize("classes", [1, 2, 7, 1000])
def test_entropy(classes):
    logits = planted(classes).logits[:: 4 if classes == 1000 else 1]
    check_entropy(logits)


@pytest.mark.parametrize("classes", [17, 100])
def test_entropy_of_many_rows(classes):
    """Any number of rows is many: on a CPU what is done with them is one kernel."""
    logits = planted(classes).logits[::2]
    temperature = np.linspace(0.25, 4.0, len(logits)).astype(np.float32)
    with constants(folds, MANY_ROWS=1):
        check_entropy(logits)
        check_entropy(logits, where=masks(*logits.shape), temperature=temperature, base=2)


def test_entropy_of_as_many_rows_as_there_have_to_be():
    logits = np.random.default_rng(3).normal(size=(folds.MANY_ROWS, 17)).astype(np.float32)
    logits[0] = -np.inf
    logits[1] = [60.0, *np.zeros(16)]
    values = jaxsoftmax.entropy(logits)
    with constants(folds, MANY_ROWS=folds.MANY_ROWS + 1):
        np.testing.assert_allclose(values, jaxsoftmax.entropy(logits), rtol=2e-6)
    np.testing.assert_allclose(values[:2], [0.0, 16 * 61 * np.exp(-60.0)], rtol=1e-6)


def made_by_a_program(function, dtype):
    """What it gives of products, for many rows, and of the products as numbers of float64, rounded and unrounded."""
    rng = np.random.default_rng(1)
    shape = folds.MANY_ROWS, 64
    given = [jnp.asarray(rng.normal(size=shape) * 8, dtype), jnp.asarray(rng.uniform(0.5, 1.5, shape), dtype)]
    result = jax.jit(lambda z, a: function(z * a))(*given)
    rounded = np.asarray(given[0] * given[1], np.float64)
    unrounded = np.asarray(given[0], np.float32) * np.asarray(given[1], np.float32)
    with jax.enable_x64(True):
        return np.asarray(result, np.float64), [np.asarray(function(np.float64(z))) for z in (rounded, unrounded)]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
@pytest.mark.parametrize("name", ["entropy", "soft_cross_entropy"])
def test_many_rows_of_half_precision_made_by_a_program(name, dtype):
    """The compiler may leave out the rounding of the logits, but everywhere or nowhere."""
    others = [np.full((folds.MANY_ROWS, 64), 1 / 64, np.float32)] if name == "soft_cross_entropy" else []
    result, exact = made_by_a_program(lambda z: getattr(jaxsoftmax, name)(z, *others), dtype)
    assert min(np.abs(result / e - 1).max() for e in exact) < 2e-6


def test_softmax_gradient_of_many_rows_of_half_precision_made_by_a_program():
    """Relative to the largest of its row."""
    cotangent = np.eye(64, dtype=np.float32)[np.arange(folds.MANY_ROWS) % 64]
    result, exact = made_by_a_program(
        lambda z: jax.vjp(jaxsoftmax.softmax, z)[1](cotangent.astype(z.dtype))[0], jnp.bfloat16
    )
    assert min((np.abs(result - e) / np.abs(e).max(axis=1, keepdims=True)).max() for e in exact) < 0.01


def check_entropy(logits, *, where=None, temperature=None, base=None):
    dtype = np.float64 if logits.dtype == np.float64 else np.float32
    cotangent = cotangents(len(logits), dtype=dtype)

    def function(logits, temperature, where):
        return jaxsoftmax.entropy(logits, where=where, temperature=temperature, base=base)

    temperature = np.ones(len(logits), dtype) if temperature is None else temperature
    results = value_and_gradients(function, cotangent, [logits, temperature], [where])
    exact = oracles.entropy(logits, cotangent, where=where, temperature=temperature, base=base)
    gain = 4.0 / min(1.0, temperature.min()) ** 2
    assert_contract(results[0], exact.value.value, dtype, exact.value.magnitude, gain=90.0, name="value")
    assert_contract(
        results[1], exact.logits.value, logits.dtype, exact.logits.magnitude, gain=90 * gain, name="by logits"
    )
    size = exact.temperature.magnitude
    assert_contract(results[2], exact.temperature.value, dtype, size, gain=90 * gain, name="by temperature")


def test_where_and_temperature_per_row():
    logits, labels = planted(7, seed=5)
    where = masks(*logits.shape, labels)
    where[-1] = False
    garbage = np.resize(np.float32([np.nan, np.inf, 1e30]), logits.shape)
    temperature = np.resize(np.float32([1.0, 0.3, 3.0, 20.0]), len(logits))
    targets = np.where(where, targets_for(logits, labels), 0)
    shown = np.where(where, logits, garbage)
    check("soft_cross_entropy", shown, targets, where=where, temperature=temperature)
    check_entropy(shown, where=where, temperature=temperature, base=2)
    other = np.where(np.isneginf(logits), -np.inf, np.roll(logits, 3, axis=0))
    other = np.where(np.isneginf(other), logits, other)
    check("kl_divergence", shown, np.where(where, other, garbage), where=where, temperature=temperature)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, np.float64])
def test_other_precisions(dtype):
    """Half precision gives float32 losses, and gradients of float32 rounded once."""
    with jax.enable_x64(dtype == np.float64):
        logits, labels = planted(7, dtype, offsets=(1e4,))
        check("soft_cross_entropy", logits, targets_for(logits, labels, dtype))
        check_entropy(logits)
        logits, _ = planted(7, dtype, absent=False, offsets=(1e4,))
        check("kl_divergence", logits, np.roll(logits, 5, axis=0))


@pytest.mark.parametrize("cap", [5.0, 30.0])
def test_logit_cap(cap):
    logits, labels = planted(7)
    check("soft_cross_entropy", logits, targets_for(logits, labels), logit_cap=cap)


def test_one_hot_targets_are_labels():
    """Value and gradient, to the last digit of the tails."""
    logits, labels = planted(7)
    cotangent = cotangents(len(logits))
    targets = np.eye(7, dtype=np.float32)[labels]
    loss, gradient = value_and_gradients(jaxsoftmax.soft_cross_entropy, cotangent, [logits], [targets])
    exact = oracles.cross_entropy(logits, labels, cotangent)
    assert_contract(loss, exact.loss.value, np.float32)
    assert_contract(gradient, exact.logits.value, np.float32)


@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="one kernel of both sums is as fast before jax 0.12")
def test_a_weighted_sum_over_rows_is_a_kernel_of_its_own():
    """Of both sums jax would make one kernel of a CPU that takes ten times as long."""
    logits, targets, weights = (
        np.ones((4096, 64), np.float32),
        np.ones((4096, 64), np.float32),
        np.ones(4096, np.float32),
    )
    total = jax.jit(lambda z, q, w: jnp.sum(w * jaxsoftmax.soft_cross_entropy(z, q)))
    entry = total.lower(logits, targets, weights).compile().as_text().split("ENTRY ")[1]
    [last] = [line for line in entry.splitlines() if "ROOT" in line]
    operands = re.findall(r"%[\w.-]+", last.split("=", 1)[1].split("calls=")[0])
    shapes = {name: re.search(rf"{re.escape(name)} = (\w+\[[\d,]*\])", entry)[1] for name in operands}
    assert "f32[4096]" in shapes.values() and "f32[4096,64]" not in shapes.values()


def test_mass_on_absent_classes():
    """0 times -inf is 0; mass on an absent class costs infinity and makes no NaN."""
    logits = np.float32([[0, 0, -np.inf], [0, 0, -np.inf], [-np.inf] * 3, [-np.inf] * 3, [0, 1, 2], [0, 1, 2]])
    targets = np.float32([[0.5, 0.5, 0], [0.5, 0.25, 0.25], [0, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5]])
    where = np.array([[True] * 3] * 4 + [[True, True, False]] * 2)
    loss, *gradients = value_and_gradients(
        lambda x, t, w: jaxsoftmax.soft_cross_entropy(x, t, where=w), np.ones(6, np.float32), [logits, targets], [where]
    )
    np.testing.assert_array_equal(np.isposinf(loss), [False, True, False, True, False, True])
    np.testing.assert_allclose(loss[[0, 2]], [np.log(2), 0], rtol=1e-6)
    absent = ~where | np.isneginf(logits)
    for gradient in gradients:
        assert np.all(np.isfinite(gradient))
        np.testing.assert_array_equal(gradient[absent], np.zeros(absent.sum()))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_however_little_mass_on_an_absent_class(dtype):
    """It costs infinity; a logit that is merely very low costs what it costs, and nothing without mass."""
    info = np.finfo(dtype)
    with jax.enable_x64(dtype == np.float64):
        for mass in (info.tiny, 1e-30, 0.5, 1.0, 3.0):
            targets = np.array([[1.0, mass], [1.0, mass], [1.0, 0.0], [1.0, 0.0]], dtype)
            logits = np.array([[0, -np.inf], [0, info.min / 8], [0, -np.inf], [0, info.min]], dtype)
            loss = jaxsoftmax.soft_cross_entropy(logits, targets)
            np.testing.assert_allclose(loss, np.array([np.inf, -mass * logits[1, 1], 0, 0], dtype), rtol=1e-6)


def test_divergence_from_absent_classes():
    """A class absent in the target costs nothing; one absent only in the model costs infinity, with gradient 0."""
    inf = np.inf
    logits = np.float32([[0, 1, 2], [0, -inf, 2], [0, -inf, 2], [-inf] * 3, [-inf] * 3, [1, 2, 3]])
    other = np.float32([[0, -inf, 1], [0, -inf, 1], [0, 1, 1], [0, 1, 1], [-inf] * 3, [-inf] * 3])
    exact = oracles.kl_divergence(logits, other)
    loss, by_logits, by_other = value_and_gradients(jaxsoftmax.kl_divergence, np.ones(6, np.float32), [logits, other])
    np.testing.assert_array_equal(np.isposinf(loss), [False, False, True, True, False, False])
    assert_contract(loss[:5], exact.value.value[:5], np.float32, exact.value.magnitude[:5])
    assert_contract(by_logits[:3], exact.logits.value[:3], np.float32, exact.logits.magnitude[:3])
    assert_contract(by_other[:2], exact.other.value[:2], np.float32, exact.other.magnitude[:2])
    for gradient in (by_logits, by_other):
        assert not np.any(np.isnan(gradient))
        np.testing.assert_array_equal(gradient[3:5], np.zeros((2, 3)))
    np.testing.assert_array_equal(by_logits[np.isneginf(logits)], np.zeros(np.isneginf(logits).sum()))


def test_divergence_of_equal_and_nearly_equal_distributions():
    logits = planted(7, absent=False).logits[:14]
    np.testing.assert_array_equal(jaxsoftmax.kl_divergence(logits, logits), np.zeros(14))
    base = np.random.default_rng(41).normal(size=(6, 7)).astype(np.float32)
    near = base + np.float32([1e-3, 1e-4, 1e-5, 1e-2, 1e-1, 0.3])[:, None] * np.random.default_rng(42).normal(
        size=(6, 7)
    ).astype(np.float32)
    loss = np.asarray(jaxsoftmax.kl_divergence(near, base))
    exact = oracles.kl_divergence(near, base).value.value
    np.testing.assert_allclose(loss, exact, rtol=1e-4)
    assert np.all(loss >= 0)


@pytest.mark.parametrize("offset", [0.5, 2.0, 100.0])
@pytest.mark.parametrize("step", [1e-2, 1e-4, 1e-6])
def test_divergence_of_close_distributions_with_an_offset(offset, step):
    """The logits of a teacher and a student are rarely of one height, nor their largest class the same."""
    rng = np.random.default_rng(44)
    target_logits = (3.0 * rng.normal(size=(8, 10))).astype(np.float32)
    logits = (target_logits + step * rng.normal(size=(8, 10)) + offset).astype(np.float32)
    check("kl_divergence", logits, target_logits)


def test_the_slope_of_a_certain_class_beside_ratios_that_a_temperature_rounds():
    """Divided by T both exponents are rounded; the sum of small differences must not have both roundings."""
    rng, temperature = np.random.default_rng(45), np.float32(3.3)
    target_logits = np.zeros((400, 3), np.float32)
    target_logits[:, 1:] = -temperature * (15.0 + rng.random((400, 2)))
    logits = target_logits.copy()
    logits[:, 1:] += temperature * rng.choice(np.float32([-0.55, 0.55]), (400, 2))
    slopes = jax.grad(lambda z: jnp.sum(jaxsoftmax.kl_divergence(z, target_logits, temperature=temperature)))(logits)
    target, gap = np.float64(target_logits) / temperature, (np.float64(logits) - target_logits) / temperature
    q = np.exp(target) / np.sum(np.exp(target), 1, keepdims=True)
    exact = q * np.expm1(gap - np.log1p(np.sum(q * np.expm1(gap), 1, keepdims=True))) / temperature
    error = np.abs(slopes - exact)[:, 0] / np.sum(np.abs(exact), 1)
    assert np.max(error) <= 6 * np.finfo(np.float32).eps


def test_the_divergence_of_rare_classes_shows_the_rounding_of_one_exponent():
    """The largest class adds next to nothing, and p - q - q delta would show what both exponents lost."""
    rng = np.random.default_rng(46)
    target_logits = rng.normal(size=(400, 4)).astype(np.float32)
    target_logits[:, 0] += 20.0
    logits = target_logits.copy()
    logits[:, 1:] += rng.uniform(0.5, 2.0, (400, 3)).astype(np.float32) * rng.choice(np.float32([-1, 1]), (400, 3))
    loss = np.asarray(jaxsoftmax.kl_divergence(logits, target_logits), np.float64)
    exact = oracles.kl_divergence(logits, target_logits).value.value
    assert np.max(np.abs(loss - exact) / exact) <= 24 * np.finfo(np.float32).eps


def test_a_class_that_only_the_model_has_leaves_the_others_exact():
    """Masked in the teacher by a large negative number, it has the ratio exp(1e9)."""
    target_logits = np.float32([[0.0, 0.1, -1e9, -0.5]] * 2)
    logits = np.float32([[0.0, 0.1 + 1e-5, -40.0, -0.5], [0.0, 0.1 + 1e-5, 2.0, -0.5]])
    check("kl_divergence", logits, target_logits)


@pytest.mark.parametrize("gap", [2.0, 10.0, 18.0, 30.0, 60.0, 80.0])
@pytest.mark.parametrize("name", ["soft_cross_entropy", "log_softmax"])
def test_second_derivatives_of_certain_rows(name, gap):
    """p (v - sum p v), every way: the others to the last digit, the largest class to the rounding of their targets."""
    logits, direction = np.float32([0.0, -gap, -gap - 1.0]), np.float32([1.0, -1.0, 0.5])
    targets = np.float32([0.2, 0.5, 0.3])
    p = scipy.special.softmax(np.float64(logits))
    exact = p * (direction - p @ np.float64(direction)) * targets.sum(dtype=np.float64)

    def loss(z):
        if name == "log_softmax":
            return -jnp.vdot(jaxsoftmax.log_softmax(z), targets)
        return jaxsoftmax.soft_cross_entropy(z, targets)

    for product in hessian_products(loss, logits, direction):
        np.testing.assert_allclose(product[1:], exact[1:], rtol=1e-5)
        np.testing.assert_allclose(product[0], exact[0], atol=2e-7)


def test_the_slope_by_a_certain_target_keeps_its_tail():
    logits, target_logits = np.float32([[0, 0], [1, 0]]), np.float32([[40, 0], [17, 0]])
    check("kl_divergence", logits, target_logits)
    _, _, slope = value_and_gradients(jaxsoftmax.kl_divergence, np.ones(2, np.float32), [logits, target_logits])
    np.testing.assert_allclose(slope[:, 0], -slope[:, 1], rtol=1e-5)


FUNCTIONS = {
    "soft_cross_entropy": lambda x, **o: jaxsoftmax.soft_cross_entropy(x, jnp.full(x.shape, 0.25, x.dtype), **o),
    "kl_divergence": lambda x, **o: jaxsoftmax.kl_divergence(x, jnp.zeros(x.shape, x.dtype), **o),
    "kl_divergence by target": lambda x, **o: jaxsoftmax.kl_divergence(jnp.zeros(x.shape, x.dtype), x, **o),
    "entropy": jaxsoftmax.entropy,
}


@pytest.mark.parametrize("shape", [(6, 7), (64, 1000)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_and_infinity_stay_in_their_row(name, shape):
    clean = np.random.default_rng(43).normal(size=shape).astype(np.float32)
    logits = clean.copy()
    logits[1, 3] = np.nan
    logits[2, -1] = np.inf
    logits[4, 0], logits[4, 5] = np.inf, np.nan
    bad = np.isin(np.arange(shape[0]), (1, 2, 4))
    cotangent = cotangents(shape[0], seed=8) + 3
    function = compiled(FUNCTIONS[name])
    loss, gradient = function(cotangent, [logits])
    np.testing.assert_array_equal(np.isnan(loss), bad)
    assert np.all(np.isnan(gradient[bad]))
    right = function(cotangent, [clean])
    np.testing.assert_array_equal(loss[~bad], right[0][~bad])
    np.testing.assert_array_equal(gradient[~bad], right[1][~bad])


def test_logits_as_far_apart_as_there_are_numbers():
    """The target's largest class has the ratio exp(-3e38), the model's exp(3e38), and their difference is inf."""
    huge = np.float32(3e38)
    logits, targets = np.float32([[huge, 0, 0], [huge, 0, -huge]]), np.float32([[0, huge, 0], [0, huge, 0]])
    gradients = jax.grad(lambda *a: jnp.sum(jaxsoftmax.kl_divergence(*a)), (0, 1))(logits, targets)
    np.testing.assert_array_equal(gradients[0], np.float32([[1, -1, 0]] * 2))
    np.testing.assert_array_equal(gradients[1], np.zeros((2, 3), np.float32))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_finite_input_makes_a_nan(name):
    huge, tiny = np.finfo(np.float32).max, np.finfo(np.float32).tiny
    logits = np.float32(
        [[huge, -huge, 0], [huge, huge, -huge], [-huge] * 3, [tiny, -tiny, 0], [1e38, -np.inf, -1e38], [1e-45, 0, 0]]
    )
    function = compiled(lambda x, t: FUNCTIONS[name](x, temperature=t))
    for temperature in (1.0, 1e-3, 0.0):
        results = function(np.ones(6, np.float32), [logits, np.full(6, temperature, np.float32)])
        assert not any(np.any(np.isnan(x)) for x in results), temperature


@pytest.mark.parametrize("name", FUNCTIONS)
def test_axis_and_batch_dimensions(name):
    logits = np.random.default_rng(44).normal(size=(2, 3, 4)).astype(np.float32)
    moved = np.moveaxis(logits, 1, -1)
    cotangent = cotangents(2, 4, seed=9)
    loss, gradient = value_and_gradients(lambda x: FUNCTIONS[name](x, axis=1), cotangent, [logits])
    flat = value_and_gradients(FUNCTIONS[name], cotangent.ravel(), [moved.reshape(8, 3)])
    np.testing.assert_allclose(loss, flat[0].reshape(2, 4), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.moveaxis(gradient, 1, -1), flat[1].reshape(2, 4, 3), rtol=1e-5, atol=1e-6)
    assert FUNCTIONS[name](logits[0, 0]).shape == ()
    assert FUNCTIONS[name](np.zeros((0, 4), np.float32)).shape == (0,)


def test_temperature_zero_is_the_limit():
    logits = np.float32([[1, 3, 2, 3], [5, 1, 1, 1], [0, 0, 0, 0]])
    entropy, by_logits, by_temperature = value_and_gradients(
        lambda x, t: jaxsoftmax.entropy(x, temperature=t), np.ones(3, np.float32), [logits, np.zeros(3, np.float32)]
    )
    np.testing.assert_allclose(entropy, np.log([2, 1, 4]), rtol=1e-6)
    np.testing.assert_array_equal(by_logits, np.zeros((3, 4)))
    np.testing.assert_array_equal(by_temperature, np.zeros(3))
    targets = np.float32([[0, 0.5, 0, 0.5], [1, 0, 0, 0], [0, 1, 0, 0]])
    loss = jaxsoftmax.soft_cross_entropy(logits, targets, temperature=0.0)
    np.testing.assert_allclose(loss, np.log([2, 1, 4]), rtol=1e-6)


def test_half_precision_of_many_classes():
    logits = np.zeros((2, 70_000), np.float16)
    assert_contract(jaxsoftmax.entropy(logits), np.log([70_000.0] * 2), np.float32)
    assert_contract(jaxsoftmax.soft_cross_entropy(logits, np.ones_like(logits)), [7e4 * np.log(7e4)] * 2, np.float32)
    logits = np.random.default_rng(45).normal(size=(3, 32_000)).astype(jnp.bfloat16)
    exact = scipy.special.entr(scipy.special.softmax(logits.astype(np.float64), -1)).sum(-1)
    assert_contract(jaxsoftmax.entropy(logits), exact, np.float32)


def test_agreement_with_optax_and_scipy():
    rng = np.random.default_rng(46)
    logits, other = rng.normal(size=(2, 5, 6)).astype(np.float32)
    targets = rng.dirichlet(np.ones(6), 5).astype(np.float32)
    p, q = scipy.special.softmax(logits, -1), scipy.special.softmax(other, -1)
    np.testing.assert_allclose(
        jaxsoftmax.soft_cross_entropy(logits, targets), optax.softmax_cross_entropy(logits, targets), rtol=1e-5
    )
    np.testing.assert_allclose(
        jaxsoftmax.kl_divergence(logits, other), optax.losses.kl_divergence(jax.nn.log_softmax(logits), q), rtol=1e-5
    )
    np.testing.assert_allclose(jaxsoftmax.kl_divergence(logits, other), scipy.special.rel_entr(q, p).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(jaxsoftmax.entropy(logits, base=2), scipy.special.entr(p).sum(-1) / np.log(2), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_series_and_its_derivatives(dtype):
    """exp(t) - 1 - t, exp(t) - 1, and exp(t) three times, up to where the series ends."""
    with jax.enable_x64(dtype == np.float64):
        t = np.array([-0.5, -0.45, -0.2, 1e-3, 0.3, 0.49, 0.5], dtype)
        small = mpmath.mp.clone()
        small.dps = 40
        wide = [small.mpf(float(x)) for x in t]
        exact = [
            [small.expm1(x) - x for x in wide],
            [small.expm1(x) for x in wide],
            *[[small.exp(x) for x in wide]] * 3,
        ]
        derivative = divergences._beyond_linear
        for values in exact:
            got = jax.vmap(derivative)(t)
            error = [abs(small.mpf(float(g)) - e) / abs(e) for g, e in zip(got, values, strict=True)]
            assert max(error) <= 4 * np.finfo(dtype).eps
            derivative = jax.grad(derivative)
