"""Softmax, log_softmax, logsumexp and smooth_max: values and every component of their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoftmax
from jaxsoftmax._core.meshes import Axes
from jaxsoftmax.normalizers import centre_of, softmax_jacobian
from tests import oracles
from tests.helpers import assert_contract, compiled, cotangents, masks, planted, value_and_gradients

NAMES = ("softmax", "log_softmax", "logsumexp", "smooth_max")
PER_CLASS = ("softmax", "log_softmax")


def ours(name, axis=-1):
    """f(logits, temperature, where); temperature and where may be None."""
    function = getattr(jaxsoftmax, name)

    def call(logits, temperature=None, where=None):
        options = {} if temperature is None else {"temperature": temperature}
        return function(logits, axis=axis, where=where, **options)

    return call


def truth(name, logits, cotangent, temperature=None, where=None):
    options = {} if temperature is None else {"temperature": temperature}
    return getattr(oracles, name)(logits, cotangent, where=where, **options)


def upstream(name, logits, dtype=None):
    shape = logits.shape if name in PER_CLASS else logits.shape[:-1]
    return cotangents(*shape, dtype=dtype or logits.dtype)


def check(name, logits, dtype, temperature=None, where=None):
    """Value and gradients of a batch of rows, the class axis last; the gradient by a scalar T adds up the rows."""
    cotangent = upstream(name, logits)
    arguments = [logits] if temperature is None else [logits, temperature]
    constants = [] if where is None else [where]

    def function(logits, *rest):
        return ours(name)(logits, *rest) if temperature is not None else ours(name)(logits, None, *rest)

    value, *gradients = value_and_gradients(function, cotangent, arguments, constants)
    exact = truth(name, logits, cotangent, temperature, where)
    gain = np.abs(cotangent).sum() / min(1.0, 1.0 if temperature is None else temperature.min())
    assert_contract(value, exact.value.value, dtype, exact.value.magnitude)
    assert_contract(gradients[0], exact.logits.value, dtype, exact.logits.magnitude, gain=gain)
    if temperature is not None:
        by_temperature = exact.temperature if temperature.ndim else exact.temperature.map(np.sum)
        assert_slope_by_temperature(gradients[1], by_temperature, temperature.dtype, gain)


def assert_slope_by_temperature(actual, exact, dtype, gain):
    """It grows as 1 / T^2; beyond 1e31 it need only be as large, of the right sign, and finite to be added up."""
    beyond = np.abs(exact.value) > 1e31
    assert np.all(np.isfinite(actual))
    assert np.all(np.where(beyond, actual * np.sign(exact.value), 1e31) >= 0.999e31)
    assert_contract(
        np.where(beyond, 0, actual),
        np.where(beyond, 0, exact.value),
        dtype,
        np.where(beyond, 0, exact.magnitude),
        gain=gain,
    )


@pytest.mark.parametrize("classes", [1, 2, 7, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_contract(name, classes):
    check(name, planted(classes).logits[:: 4 if classes == 1000 else 1], np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_gaps_between_the_largest_and_the_next(name):
    """Ties, gaps around the 1/8 at which a class stops to count as near, and gaps at which the rest is a mere tail."""
    gaps = np.float32([0.0, 1e-7, 1e-3, 0.05, 0.1, 0.124, 0.125, 0.126, 0.2, 0.7, 1.0, 5.0, 20.0, 60.0])
    # logsumexp is the largest logit and a logarithm: beside a largest logit of 0 that would have to be log1p.
    tops = (1.0, 300.0) if name == "logsumexp" else (0.0, 1.0, 300.0)
    rows = [[top, top - gap, top - 1.5 * gap, top - 50.0] for gap in gaps for top in tops]
    check(name, np.float32(rows), np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_logits_that_the_compiler_may_compute_anew(name):
    """Logits from a layer norm in the same program: exact but for the tail that rounding the logits anew can move."""
    x = np.random.default_rng(5).standard_normal((64, 40)).astype(np.float32)
    scale = np.linspace(1.0, 30.0, 40, dtype=np.float32)

    def norm(x):
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6) * scale[None]

    logits = jax.jit(norm)(x)
    value = jax.jit(lambda x: ours(name)(norm(x)))(x)
    np.testing.assert_allclose(value, ours(name)(logits), rtol=2e-5, atol=1e-5)
    slope = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(ours(name)(norm(x))))))(x)
    plain = jax.grad(lambda x: jnp.sum(jnp.sin(oracle_of(name)(norm(x)))))(x)
    np.testing.assert_allclose(slope, plain, rtol=1e-3, atol=2e-4)


def test_the_gradient_of_softmax_of_two_classes():
    """p (1 - p) (g_1 - g_0) to the last digit, for near logits and near cotangents."""
    rng = np.random.default_rng(8)
    gaps = np.float32(np.concatenate([rng.uniform(0, 0.3, 400), 2.0 ** -rng.uniform(2, 18, 100)]))
    logits = np.stack([np.full_like(gaps, 0.25), 0.25 + gaps], -1)
    near = rng.standard_normal(500).astype(np.float32)
    cotangent = np.stack([near, near * (1 + 2.0 ** -rng.integers(2, 20, 500).astype(np.float32))], -1)
    (slopes,) = jax.jit(lambda z, g: jax.vjp(jaxsoftmax.softmax, z)[1](g))(logits, cotangent)
    z, g = np.float64(logits), np.float64(cotangent)
    p = 1 / (1 + np.exp(z[:, 0] - z[:, 1]))
    exact = p * (1 - p) * (g[:, 1] - g[:, 0])
    error = np.abs(np.float64(slopes) - np.stack([-exact, exact], -1)) / np.abs(exact)[:, None]
    assert np.all(error <= 4 * np.finfo(np.float32).eps * (1 + np.abs(np.log(np.abs(exact))))[:, None])


@pytest.mark.parametrize("gap", [0.0, 0.05, 0.25, 0.5, 2.0, 30.0])
def test_the_gradient_of_softmax_from_logits_rounded_differently_in_each_use(gap):
    """A GPU computes a layer norm anew for each kernel: what is subtracted in one and added in another must agree."""
    row = np.float32([100.0, 100.0 - gap, 70.0, 40.0])
    vector = np.float32([[3.0, -2.0, 1.0, 5.0]])
    roundings = iter(np.float32([1.0, -1.0, 0.0, 1.0, -1.0]))

    def scaled_by(shift):
        return jnp.asarray(row)[None] + next(roundings) * np.spacing(row)[None] - shift

    wide = np.exp(np.float64(row) - 100.0)
    p = wide / wide.sum()
    exact = p * (vector[0] - (p * vector[0]).sum())
    shift, total = jnp.full((1, 1), row[0]), jnp.full((1, 1), np.float32(wide.sum()))
    slopes = softmax_jacobian(scaled_by, shift, total, jnp.asarray(vector), Axes((1,), ()))
    moved = 8 * np.spacing(row[0]) * (np.abs(exact) + p * p.dot(np.abs(vector[0])))
    assert np.all(np.abs(slopes[0] - exact) <= moved + 1e-30)


@pytest.mark.parametrize("above", [0.0, 1e-6, 0.3, 5.0])
def test_a_largest_logit_computed_anew_counts_once(above):
    """Less rounded than for the maximum, it stands above that; what is taken off the cotangents is its own, no more."""
    scaled, vector = jnp.array([[-3.0, above, -5.0]]), jnp.array([[7.0, 3.0, -2.0]])
    np.testing.assert_array_equal(centre_of(scaled, jnp.array([[1.1]]), vector, Axes((1,), ())), [[3.0]])


def oracle_of(name):
    """The plain expression of jax.nn."""
    if name in PER_CLASS:
        return getattr(jax.nn, name)
    return lambda z: jax.nn.logsumexp(z, axis=-1)


@pytest.mark.parametrize("name", NAMES)
def test_contract_in_float64(name):
    with jax.enable_x64(True):
        logits = np.concatenate([planted(7, np.float64).logits, [[700.0, 0.0, 1.0, 2.0, -3.0, 0.5, 0.0]]])
        check(name, logits, np.float64, temperature=np.linspace(0.3, 3.0, len(logits)))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_float32_rounded_once(name, dtype):
    check(name, planted(7, dtype, offsets=(1e4,)).logits, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_temperature_per_row_and_where(name):
    logits, labels = planted(7)
    where = masks(*logits.shape, labels)
    temperature = np.resize(np.float32([1.0, 0.07, 0.5, 3.0, 20.0]), len(logits))
    logits = np.where(where, logits, np.resize(np.float32([np.nan, np.inf, 1e30]), logits.shape))
    check(name, logits, np.float32, temperature, where)


@pytest.mark.parametrize("name", NAMES)
def test_temperature_as_a_scalar(name):
    check(name, planted(7, offsets=()).logits, np.float32, np.float32(0.7))


@pytest.mark.parametrize("name", NAMES)
def test_temperature_in_every_form(name):
    """A Python number, an array, one number per row, with and without the class axis, traced or not."""
    logits = planted(7).logits
    value = jax.jit(ours(name))(logits, np.full(len(logits), 0.5, np.float32))
    for temperature in (0.5, np.float32(0.5), np.full((len(logits), 1), 0.5, np.float32)):
        np.testing.assert_array_equal(jax.jit(ours(name))(logits, temperature), value)
        np.testing.assert_array_equal(ours(name)(logits, temperature), value)


@pytest.mark.parametrize("name", NAMES)
def test_extreme_temperatures(name):
    """Where x / T is far beyond what a compiler can fuse, or overflows."""
    logits = np.concatenate([planted(7).logits, np.full((1, 7), 3e9, np.float32), planted(7, offsets=(3e9,)).logits])
    temperature = np.resize(np.float32([0.3, 1e-30, 1e-5, 1e30]), len(logits))
    check(name, logits, np.float32, temperature)
    check(name, logits, np.float32, np.full_like(temperature, 0.3))


@pytest.mark.parametrize("name", NAMES)
def test_infinite_temperature(name):
    """Every class is as likely; the smooth maximum is infinite."""
    logits = np.float32([[1.0, 1.0, 0.0, -np.inf], [3.0, -1e30, 1e30, 0.0]])
    cotangent = np.ones_like(logits if name in PER_CLASS else logits[:, 0])
    results = value_and_gradients(ours(name), cotangent, [logits, np.float32([np.inf, np.inf])])
    share = np.float32([[1 / 3] * 3 + [0], [1 / 4] * 4])
    with np.errstate(divide="ignore"):
        limit = {
            "softmax": share,
            "log_softmax": np.log(share),
            "logsumexp": np.log([3, 4]),
            "smooth_max": np.float32([np.inf, np.inf]),
        }[name]
    np.testing.assert_allclose(results[0], limit, rtol=1e-6)
    assert np.all(np.isfinite(results[1])) and np.all(np.isfinite(results[2]))


@pytest.mark.parametrize("name", NAMES)
def test_no_temperature_makes_a_nan_in_forward_mode(name):
    logits = np.float32([[1.0, 1.0, 0.0, -np.inf], [3.0, -1e38, 1e38, 0.0]])

    @jax.jit
    @jaxsoftmax.forward_mode()
    def push(z, t):
        return jax.jvp(ours(name), (z, t), (jnp.ones_like(z), jnp.ones_like(t)))[1]

    for temperature in (0.0, 1e-38, 1e-37, 1e-20, 1.0, 1e38, np.inf):
        assert not np.any(np.isnan(push(logits, np.full(2, temperature, np.float32)))), temperature


def test_slopes_by_temperature_that_overflow_are_no_nan():
    logits, cotangent = np.float32([[0, -3e38, -3e38]]), np.float32([[0, 2, -2]])
    results = value_and_gradients(ours("log_softmax"), cotangent, [logits, np.float32([1.0])])
    assert np.isfinite(results[2])


def test_temperature_zero_is_the_limit():
    logits = np.float32([[1, 3, 2, 3], [5, 1, 1, 1], [0, 0, 0, 0], [-1, -np.inf, -4, -2], [-np.inf] * 4])
    temperature = np.zeros(5, np.float32)
    shares = np.float32([[0, 0.5, 0, 0.5], [1, 0, 0, 0], [0.25] * 4, [1, 0, 0, 0], [0] * 4])
    with np.errstate(divide="ignore"):
        logarithms = np.log(shares)
    limits = {
        "softmax": (shares, 0 * shares),
        "log_softmax": (logarithms, 0 * shares),
        "logsumexp": (np.float32([np.inf, np.inf, np.nan, -np.inf, -np.inf]), 0 * shares),
        "smooth_max": (np.float32([3, 5, 0, -1, -np.inf]), shares),
    }
    for name, (limit, slopes) in limits.items():
        ones = np.ones_like(logits if name in PER_CLASS else temperature)
        value, by_logits, by_temperature = value_and_gradients(ours(name), ones, [logits, temperature])
        known = ~np.isnan(limit)
        np.testing.assert_allclose(value[known], limit[known], rtol=1e-6)
        np.testing.assert_array_equal(by_logits, slopes)
        if name == "smooth_max":
            np.testing.assert_allclose(by_temperature, np.log([2, 1, 4, 1, 1]), rtol=1e-6)
        else:
            np.testing.assert_array_equal(by_temperature, np.zeros(5))
        assert not np.any(np.isnan(value))


@pytest.mark.parametrize("shape", [(22, 7), (7,)])
def test_logsumexp_weights(shape):
    logits = planted(7).logits
    logits = np.concatenate([logits, np.float32([[1e30, 0, 0, 0, 0, 0, 0]])])
    weights = np.random.default_rng(5).uniform(0.1, 3.0, shape).astype(np.float32)
    weights[..., 2] = 0.0
    if shape[0] == 22:
        weights[4] = [0.5, 0, 0, 2.0, 0, 0, 0]
        weights[5] = [0.5, -0.25, 3, 2, 1, 1, 1]
        weights[21, 0] = 0.0
    temperature = np.resize(np.float32([1.0, 0.5, 3.0]), len(logits))
    cotangent = upstream("logsumexp", logits)
    cotangent[21] = 0.0

    def function(logits, weights, temperature):
        return jaxsoftmax.logsumexp(logits, weights=weights, temperature=temperature)

    value, *gradients = value_and_gradients(function, cotangent, [logits, weights, temperature])
    exact = oracles.logsumexp(logits, cotangent, weights=weights, temperature=temperature)
    assert_contract(value, exact.value.value, np.float32, exact.value.magnitude)
    assert_contract(gradients[0], exact.logits.value, np.float32, exact.logits.magnitude, gain=4.0)
    by_weights = exact.weights if len(shape) == 2 else exact.weights.map(lambda x: x.sum(0))
    assert_contract(gradients[1], by_weights.value, np.float32, by_weights.magnitude, gain=1e3)
    assert_contract(gradients[2], exact.temperature.value, np.float32, exact.temperature.magnitude, gain=4.0)


def test_logsumexp_of_weights_that_leave_nothing():
    logits = np.float32([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    weights = np.float32([[0.0, 0.0, 0.0], [1.0, -3.0, 0.0]])
    value, by_logits, by_weights = value_and_gradients(
        lambda x, w: jaxsoftmax.logsumexp(x, weights=w), np.ones(2, np.float32), [logits, weights]
    )
    assert value[0] == -np.inf
    assert np.isnan(value[1])
    np.testing.assert_array_equal(by_logits[0], np.zeros(3))
    np.testing.assert_array_equal(by_weights[0], np.zeros(3))


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), (-1, 1), None])
@pytest.mark.parametrize("name", NAMES)
def test_axis(name, axis):
    logits = np.random.default_rng(6).normal(size=(4, 3, 5)).astype(np.float32)
    logits[1, 2, 3] = -np.inf
    axes = tuple(range(3)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(sorted(a % 3 for a in axes))
    batch = tuple(a for a in range(3) if a not in axes)

    def rows(x):
        """[rows, classes], the class axes last."""
        return np.transpose(x, (*batch, *axes)).reshape(-1, np.prod([logits.shape[a] for a in axes]))

    kept = tuple(1 if a in axes else logits.shape[a] for a in range(3))
    cotangent = cotangents(*(logits.shape if name in PER_CLASS else [logits.shape[a] for a in batch]))
    function = ours(name, axis)
    value, by_logits = value_and_gradients(function, cotangent, [logits])
    upstream = rows(cotangent) if name in PER_CLASS else cotangent.ravel()
    exact = truth(name, rows(logits), upstream)
    if name in PER_CLASS:
        assert value.shape == logits.shape
        assert_contract(rows(value), exact.value.value, np.float32, exact.value.magnitude)
    else:
        assert value.shape == tuple(logits.shape[a] for a in batch)
        assert_contract(value.ravel(), exact.value.value, np.float32, exact.value.magnitude)
        long = getattr(jaxsoftmax, name)(logits, axis=axis, keepdims=True)
        np.testing.assert_allclose(long, value.reshape(kept), rtol=1e-6)
        assert long.shape == kept
    assert by_logits.shape == logits.shape
    assert_contract(rows(by_logits), exact.logits.value, np.float32, exact.logits.magnitude)


@pytest.mark.parametrize("name", NAMES)
def test_where_of_one_mask_for_every_row_on_another_axis(name):
    logits = np.random.default_rng(7).normal(size=(3, 4)).astype(np.float32)
    where = np.array([True, False, True])
    short = ours(name, 0)(logits, None, where)
    long = ours(name, 0)(logits, None, np.broadcast_to(where[:, None], logits.shape))
    np.testing.assert_array_equal(short, long)
    exact = truth(name, logits.T, None, None, where)
    assert_contract(np.asarray(short).T, exact.value.value, np.float32, exact.value.magnitude)


@pytest.mark.parametrize("name", NAMES)
def test_absent_classes_take_no_part(name):
    """Rows without any class, by -inf and by mask; garbage under the mask; cotangents on absent classes."""
    logits = np.float32([[-np.inf] * 3, [1, 2, 3], [np.nan, 2, np.inf], [np.nan, np.nan, np.nan], [1, -np.inf, 2]])
    where = np.array([[True] * 3, [False] * 3, [False, True, False], [False] * 3, [True] * 3])
    cotangent = np.full(logits.shape if name in PER_CLASS else logits.shape[:1], 3.0, np.float32)
    temperature = np.full(5, 2.0, np.float32)
    value, by_logits, by_temperature = value_and_gradients(ours(name), cotangent, [logits, temperature], [where])
    exact = truth(name, logits, cotangent, temperature, where)
    assert_contract(value, exact.value.value, np.float32, exact.value.magnitude)
    assert_contract(by_logits, exact.logits.value, np.float32, exact.logits.magnitude)
    assert_contract(by_temperature, exact.temperature.value, np.float32, exact.temperature.magnitude)
    absent = ~where | np.isneginf(logits)
    assert np.all(by_logits[absent] == 0)
    assert np.all(value[[0, 1, 3]] == (0 if name == "softmax" else -np.inf))


@pytest.mark.parametrize("shape", [(6, 7), (64, 1000)])
@pytest.mark.parametrize("name", NAMES)
def test_nan_and_infinity_stay_in_their_row(name, shape):
    """The reductions of XLA:CPU have been seen to lose a NaN in large arrays."""
    clean = np.random.default_rng(8).normal(size=shape).astype(np.float32)
    logits = clean.copy()
    logits[1, 3] = np.nan
    logits[2, -1] = np.inf
    logits[4, 0], logits[4, 5] = np.inf, np.nan
    logits[5, :2] = np.inf
    bad = np.isin(np.arange(shape[0]), (1, 2, 4, 5))
    cotangent = upstream(name, clean)
    function = compiled(ours(name))
    value, gradient = function(cotangent, [logits])
    assert np.all(np.isnan(value[bad]))
    assert np.all(np.isnan(gradient[bad]))
    exact, exact_gradient = function(cotangent, [clean])
    np.testing.assert_array_equal(value[~bad], exact[~bad])
    np.testing.assert_array_equal(gradient[~bad], exact_gradient[~bad])


@pytest.mark.parametrize("name", NAMES)
def test_no_finite_input_makes_a_nan(name):
    huge, tiny = np.finfo(np.float32).max, np.finfo(np.float32).tiny
    logits = np.float32(
        [
            [huge, -huge, 0],
            [huge, huge, -huge],
            [-huge] * 3,
            [tiny, -tiny, 0],
            [1e38, -np.inf, -1e38],
            [0, 1e-45, 1e-38],
        ]
    )
    cotangent = np.ones(logits.shape if name in PER_CLASS else logits.shape[:1], np.float32)
    function = compiled(ours(name))
    for temperature in (1.0, 1e-3, 1e-38, 1e38, 0.0):
        results = function(cotangent, [logits, np.full(6, temperature, np.float32)])
        assert not any(np.any(np.isnan(x)) for x in results), temperature


@pytest.mark.parametrize("name", NAMES)
def test_empty_batch(name):
    logits = np.zeros((0, 5), np.float32)
    value, gradient = value_and_gradients(ours(name), upstream(name, logits), [logits])
    assert value.shape == ((0, 5) if name in PER_CLASS else (0,))
    assert gradient.shape == (0, 5)
    for temperature in (2.0, np.ones(0, np.float32), np.ones((0, 1), np.float32)):
        assert getattr(jaxsoftmax, name)(logits, temperature=temperature).shape == value.shape


def test_eight_bits_without_an_infinity():
    """An absent class needs none of the logits' dtype."""
    where = np.array([True, False, True])
    for dtype in (jnp.float8_e4m3fn, jnp.float8_e5m2):
        logits = jnp.array([[1.0, 8.0, 2.0]], dtype)
        expected = jaxsoftmax.softmax(logits.astype(jnp.float32), where=where)
        np.testing.assert_array_equal(jaxsoftmax.softmax(logits, where=where), expected.astype(dtype))


@pytest.mark.parametrize("name", NAMES)
def test_a_hundred_thousand_classes(name):
    logits = np.random.default_rng(9).normal(size=(3, 100_000)).astype(np.float32)
    logits[1] += 1e4
    logits[2, 77] += 40.0
    cotangent = upstream(name, logits)
    value, gradient = value_and_gradients(ours(name), cotangent, [logits])
    for n in range(3):
        exact, slopes = oracles.wide.normalizer(name, logits[n], cotangent[n])
        assert_contract(value[n], exact.value, np.float32, exact.magnitude, name="value")
        assert_contract(gradient[n], slopes.value, np.float32, slopes.magnitude, gain=1e5, name="gradient")


def test_softmax_sums_to_one_where_half_precision_overflows():
    """float16 counts to 65 504 and its smallest normal number is 6e-5; bfloat16 has three digits."""
    zeros = jnp.zeros((2, 70_000), jnp.float16)
    value, gradient = value_and_gradients(jaxsoftmax.softmax, np.ones(zeros.shape, np.float16), [zeros])
    np.testing.assert_array_equal(value, np.full(zeros.shape, 1 / 70_000, np.float16))
    np.testing.assert_array_equal(gradient, np.zeros(zeros.shape))
    value, gradient = value_and_gradients(jaxsoftmax.log_softmax, np.ones(zeros.shape, np.float16), [zeros])
    np.testing.assert_array_equal(value, np.full(zeros.shape, -np.log(70_000), np.float16))
    assert np.all(np.abs(gradient) <= 1e-3)
    value, gradient = value_and_gradients(jaxsoftmax.logsumexp, np.ones(2, np.float16), [zeros])
    np.testing.assert_array_equal(value, np.full(2, np.log(70_000), np.float16))
    np.testing.assert_array_equal(gradient, np.full(zeros.shape, 1 / 70_000, np.float16))


def test_bfloat16_with_a_vocabulary():
    logits = np.random.default_rng(10).normal(size=(4, 32_000)).astype(jnp.bfloat16)
    wide = logits.astype(np.float64)
    exact = np.log(np.exp(wide).sum(-1))
    assert_contract(jaxsoftmax.logsumexp(logits), exact, jnp.bfloat16)
    assert_contract(jaxsoftmax.softmax(logits), np.exp(wide - exact[:, None]), jnp.bfloat16)
    assert_contract(jaxsoftmax.log_softmax(logits), wide - exact[:, None], jnp.bfloat16)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives(name):
    """At ties and where one class has nearly all of the mass, against differences of exact gradients."""
    logits = np.float64([[2.5, 2.5, 2.5], [2.5, 2.5, 0.0], [1.0, -np.inf, 3.0], [9.0, 0.0, 1.0], [0.0, 0.0, -np.inf]])
    temperature = np.float64([1.0, 0.7, 2.0, 1.0, 1.0])
    cotangent = upstream(name, logits)
    step = 1e-4

    def exact(k):
        moved = [
            truth(name, logits + s * step * np.eye(3)[k], cotangent, temperature).logits.value for s in (-2, -1, 1, 2)
        ]
        return (moved[0] - 8 * moved[1] + 8 * moved[2] - moved[3]) / (12 * step)

    with jax.enable_x64(True):
        hessian = jax.jit(jax.vmap(jax.hessian(lambda x, t, g: jnp.sum(g * _finite(ours(name)(x, t))))))(
            logits, temperature, cotangent
        )
    np.testing.assert_allclose(hessian, np.stack([exact(k) for k in range(3)], 1), rtol=1e-7, atol=1e-9)


def _finite(x):
    return jnp.where(jnp.isfinite(x), x, 0)


def test_the_gradient_of_softmax_keeps_its_tail():
    """At z = (37.43, 0) the gradient is p (1 - p) = 5.55e-17, and antisymmetric to the last digit."""
    with jax.enable_x64(True):
        logits, cotangent = np.float64([[37.43, 0.0]]), np.float64([[1.0, 0.0]])
        _, gradient = value_and_gradients(jaxsoftmax.softmax, cotangent, [logits])
        exact = oracles.softmax(logits, cotangent).logits
        np.testing.assert_allclose(gradient, exact.value, rtol=1e-14)
        assert abs(gradient[0, 0]) > 5e-17
        np.testing.assert_allclose(gradient[0, 0], -gradient[0, 1], rtol=1e-15)


def test_forward_mode_keeps_the_tail_both_ways():
    """At a certain row, pushed forward and, inside of forward_mode, pulled back."""
    logits, vector = np.float32([40.0, 0.0, -5.0]), np.float32([1.0, 0.3, -2.0])
    exact = oracles.softmax(logits[None], vector[None]).logits.value[0]
    with jaxsoftmax.forward_mode():
        _, pushed = jax.jvp(jaxsoftmax.softmax, (logits,), (vector,))
        _, pulled = value_and_gradients(jaxsoftmax.softmax, vector, [logits])
    np.testing.assert_allclose(pushed, exact, rtol=2e-6)
    np.testing.assert_allclose(pulled, exact, rtol=2e-6)


@pytest.mark.parametrize("name", PER_CLASS)
def test_half_precision_gradients_take_their_own_dtype(name):
    logits = jnp.zeros((2, 3), jnp.bfloat16)
    temperature = jnp.ones(2, jnp.float32)
    value, by_logits, by_temperature = value_and_gradients(
        ours(name), np.ones((2, 3), jnp.bfloat16), [logits, temperature]
    )
    assert (value.dtype, by_logits.dtype, by_temperature.dtype) == (jnp.bfloat16, jnp.bfloat16, np.float32)


def test_agreement_with_jax():
    """On logits where jax.nn is right, compiled as one program."""
    logits = np.random.default_rng(11).normal(size=(8, 9)).astype(np.float32)
    where = np.random.default_rng(12).uniform(size=logits.shape) < 0.8
    where[:, 0] = True

    @jax.jit
    def run(logits, where):
        pairs = {}
        for name in ("softmax", "log_softmax", "logsumexp"):
            ours_, theirs = getattr(jaxsoftmax, name), getattr(jax.nn, name)
            pairs[name] = ours_(logits, axis=0), theirs(logits, axis=0)
            pairs[name + " where"] = ours_(logits, where=where), theirs(logits, axis=-1, where=where)
        return pairs

    for name, (a, b) in run(logits, where).items():
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6, err_msg=name)


def test_temperature_is_a_gradient_of_the_same_function():
    """softmax(x, temperature=T) is softmax(x / T), its derivative by T that of the quotient."""
    logits = np.random.default_rng(13).normal(size=(5, 6)).astype(np.float32)
    cotangent = cotangents(5, 6)
    ours_ = value_and_gradients(ours("softmax"), cotangent, [logits, np.float32(0.7)])
    theirs = value_and_gradients(lambda x, t: jax.nn.softmax(x / t), cotangent, [logits, np.float32(0.7)])
    for a, b in zip(ours_, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_temperature_zero_as_a_constant_of_the_program(name):
    """The compiler knows it, and must not fold it into a NaN; a Python integer is a temperature too."""
    logits = np.float32([[1.0, 2.0, 3.0], [3.0, 3.0, 0.0]])
    eager = ours(name)(logits, 0.0)
    np.testing.assert_array_equal(jax.jit(lambda z: ours(name)(z, 0.0))(logits), eager)
    np.testing.assert_array_equal(jax.jit(lambda z: ours(name)(z, jnp.float32(1e-39)))(logits), eager)
    np.testing.assert_array_equal(ours(name)(logits, 2), ours(name)(logits, 2.0))


@pytest.mark.parametrize("name", PER_CLASS)
def test_half_precision_logits_that_the_same_program_computes(name):
    """The compiler may leave out their rounding; whatever it does, certain classes stay certain."""
    rng = np.random.default_rng(8)
    x, w = (jnp.asarray(1.5 * rng.standard_normal(shape), jnp.bfloat16) for shape in ((256, 64), (64, 1000)))
    value = np.asarray(jax.jit(lambda x, w: ours(name)(x @ w))(x, w), np.float64)
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    exact = exact - exact.max(-1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(-1, keepdims=True))
    certain = exact > -1e-3
    assert np.sum(certain) > 10
    np.testing.assert_allclose(value[certain], (np.exp(exact) if name == "softmax" else exact)[certain], atol=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_large_half_precision_logits_that_the_same_program_computes(name):
    """Between 2**15 and 2**17 they are rounded by hundreds, whether the compiler rounds all of them or none."""
    rng = np.random.default_rng(9)
    x, w = (jnp.asarray(s * rng.standard_normal(shape), jnp.bfloat16) for s, shape in ((1, (8, 4)), (5e4, (4, 1000))))

    @jax.jit
    def run(x, w):
        value, pullback = jax.vjp(lambda x: ours(name)(x @ w), x)
        return value, *pullback(jnp.ones_like(value))

    assert all(np.all(np.isfinite(np.asarray(a, np.float32))) for a in run(x, w))
    if name == "softmax":
        np.testing.assert_allclose(np.asarray(run(x, w)[0], np.float32).sum(1), 1.0, atol=0.01)
