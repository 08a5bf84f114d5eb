"""The temperature: the optimum of a float64 search at any scale, bounds, rows that do not count, derivatives."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.calibration import _TemperatureScaling

from jaxsoftmax import calibration, cross_entropy, forward_mode
from jaxsoftmax.calibration import apply_temperature, fit_temperature
from tests.helpers import assert_refused
from tests.oracles import calibrators as oracle

SCALES = (0.05, 1.0, 5.0, 100.0)
FIT = jax.jit(fit_temperature)
FITS = jax.jit(jax.vmap(fit_temperature))


def overconfident(rows, classes, factor=2.5, seed=0):
    """Logits that are too large by the factor."""
    rng = np.random.default_rng([seed, rows, classes])
    logits = 2.0 * rng.standard_normal((rows, classes))
    labels = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    return (factor * logits).astype(np.float32), labels.astype(np.int32)


def certain(rows, classes, seed=1):
    """Nearly all labels far ahead, a few wrong."""
    rng = np.random.default_rng([seed, rows, classes])
    logits, labels = rng.standard_normal((rows, classes)), rng.integers(0, classes, rows)
    right = np.arange(rows) >= max(1, rows // 50)
    logits[np.arange(rows), labels] += 15.0 * right
    return logits.astype(np.float32), labels.astype(np.int32)


def random_labels(rows, classes, seed=2):
    """Labels that have nothing to do with the logits."""
    rng = np.random.default_rng([seed, rows, classes])
    labels = rng.integers(0, classes, rows).astype(np.int32)
    return 3.0 * rng.standard_normal((rows, classes)).astype(np.float32), labels


def masked_by_a_number(rows, classes, seed=3):
    """Half of the classes at -1e9, as masks are often written, instead of -inf."""
    logits, labels = overconfident(rows, classes, seed=seed)
    logits[:, classes // 2 :] = -1e9
    return logits, labels % (classes // 2)


def one_close_call(rows, classes, seed=4):
    """Every label the largest logit of its row but one, which misses it narrowly: T is far below 1."""
    logits = 3.0 * np.random.default_rng([seed, rows, classes]).standard_normal((rows, classes)).astype(np.float32)
    labels = np.argmax(logits, axis=1).astype(np.int32)
    second = np.argsort(logits, axis=1)[:, -2]
    row = np.argmin(np.sort(logits, axis=1)[:, -1] - logits[np.arange(rows), second])
    labels[row] = second[row]
    return logits, labels


KINDS = (overconfident, certain, masked_by_a_number, one_close_call)


@pytest.mark.parametrize(("rows", "classes"), [(5, 4), (300, 10)])
def test_the_optimum_at_every_scale(rows, classes):
    """That of a bracketed search in float64, to 1e-4; and there the mean NLL is the mean entropy."""
    cases = [(kind.__name__, scale, *kind(rows, classes)) for kind in KINDS for scale in (*SCALES, 1e-25, 1e25)]
    logits = np.stack([np.float32(scale) * z for _, scale, z, _ in cases])
    labels = np.stack([y for *_, y in cases])
    fits = FITS(logits, labels)
    for n, (name, scale, *_) in enumerate(cases):
        truth = oracle.temperature(logits[n], labels[n])
        assert truth.bound is None, name
        fit = jax.tree.map(lambda x, n=n: x[n], fits)
        assert abs(fit.temperature / truth.value - 1) <= 1e-5, (name, scale)
        assert fit.converged and not fit.at_bound, (name, scale)
        cooled = logits[n].astype(np.float64) / float(fit.temperature)
        assert abs(oracle.mean_nll(cooled, labels[n]) - oracle.mean_entropy(cooled)) <= 1e-4, (name, scale)
        np.testing.assert_allclose(fit.nll_after, oracle.mean_nll(cooled, labels[n]), rtol=1e-5)
        np.testing.assert_allclose(fit.nll_before, oracle.mean_nll(logits[n], labels[n]), rtol=1e-5)


def test_random_labels():
    """A bound or a very large T, as the float64 search says; a fifth of the fits, at least, are of either kind."""
    cases = [random_labels(300, 10, seed) for seed in range(40)]
    fits = FITS(np.stack([z for z, _ in cases]), np.stack([y for _, y in cases]))
    truths = [oracle.temperature(*case) for case in cases]
    at_bound = [truth.bound == "hot" for truth in truths]
    assert 8 <= sum(at_bound) <= 32
    np.testing.assert_array_equal(fits.at_bound, at_bound)
    assert np.all(fits.converged)
    for n, truth in enumerate(truths):
        if truth.bound is None:
            assert abs(fits.temperature[n] / truth.value - 1) <= 1e-4
        else:
            spread = np.sqrt(np.mean(np.var(cases[n][0], axis=1)))
            assert abs(fits.temperature[n] / (1e4 * spread) - 1) <= 1e-5


@pytest.mark.parametrize("scale", [*SCALES, 1e-25, 1e25])
def test_separable_labels_end_at_the_lower_bound(scale):
    """1/100 of the smallest gap, at any scale; ties for the largest logit are no errors, nor are they gaps.

    What is left of the loss there is that of the ties.
    """
    logits = np.random.default_rng(5).standard_normal((300, 10)).astype(np.float32)
    labels = np.argmax(logits, axis=1).astype(np.int32)
    two = np.sort(logits, axis=1)[:, -2:]
    gaps = two[:, 1] - two[:, 0]
    logits[0] = 2.5
    fit = FIT(np.float32(scale) * logits, labels)
    assert fit.at_bound and fit.converged
    np.testing.assert_allclose(fit.temperature, 0.01 * scale * gaps[1:].min(), rtol=1e-3)
    np.testing.assert_allclose(fit.nll_after, np.log(10) / 300, rtol=1e-6)


def test_the_bounds_are_those_of_the_rows_that_count():
    """A row of weight 0 with a closer call, and wider logits, moves neither."""
    logits = np.float32([[2, 0], [0, 3], [1, 0.99], [-500, 500]])
    weights = np.float32([1, 1, 0, 0])
    np.testing.assert_allclose(fit_temperature(logits, np.int32([0, 1, 0, 1]), weights=weights).temperature, 0.02)
    hot = fit_temperature(logits, np.int32([1, 0, 0, 0]), weights=weights)
    np.testing.assert_allclose(hot.temperature, 1e4 * np.sqrt((1.0 + 1.5**2) / 2), rtol=1e-6)


@pytest.mark.parametrize("scale", [*SCALES, 1e-25, 1e25])
def test_contrary_labels_end_at_the_upper_bound(scale):
    """10000 spreads, at any scale: the probabilities are all but uniform."""
    logits = np.random.default_rng(6).standard_normal((300, 10)).astype(np.float32)
    labels = np.argmin(logits, axis=1).astype(np.int32)
    fit = FIT(np.float32(scale) * logits, labels)
    assert fit.at_bound and fit.converged
    np.testing.assert_allclose(fit.temperature, 1e4 * scale * np.sqrt(np.mean(np.var(logits, axis=1))), rtol=1e-5)
    np.testing.assert_allclose(fit.nll_after, np.log(10), atol=1e-3)


def test_a_temperature_beyond_the_bound_is_at_the_bound():
    """Labels whose logits are larger by a hair: the optimum is at 2e5 spreads."""
    logits = np.tile(np.float32([[1.0, 0.0], [0.0, 1.0]]), (50, 1))
    labels = np.zeros(100, np.int32)
    weights = np.where(np.arange(100) % 2 == 0, 1.0, 1.0 - 1e-5).astype(np.float32)
    truth = oracle.temperature(logits, labels, weights)
    assert truth.value > 5e4
    fit = fit_temperature(logits, labels, weights=weights)
    assert fit.at_bound and fit.converged
    np.testing.assert_allclose(fit.temperature, 5000.0, rtol=1e-5)


def test_nothing_to_find():
    """Equal logits, one class, no row that counts: T is 1, and that is right."""
    equal = fit_temperature(np.full((4, 3), 7.0, np.float32), np.int32([0, 1, 2, 0]))
    one_class = fit_temperature(np.float32([[5.0], [-3.0]]), np.int32([0, 0]))
    none = fit_temperature(np.float32([[1, 2], [3, 1]]), np.int32([0, 0]), weights=np.zeros(2, np.float32))
    one_present = fit_temperature(np.float32([[1, -np.inf], [-np.inf, 2]]), np.int32([0, 1]))
    for fit, nll in ((equal, np.log(3)), (one_class, 0.0), (none, 0.0), (one_present, 0.0)):
        assert fit.temperature == 1 and fit.converged and not fit.at_bound
        np.testing.assert_allclose([fit.nll_before, fit.nll_after], nll, rtol=1e-6)


def test_weights_and_rows_that_do_not_count():
    """Whole weights are copies, and a row of weight 0 may hold anything."""
    logits, labels = overconfident(60, 5)
    weights = np.random.default_rng(7).integers(0, 3, 60).astype(np.float32)
    copies = np.repeat(np.arange(60), weights.astype(int))
    plain = fit_temperature(logits[copies], labels[copies])
    spoiled, strange = logits.copy(), labels.copy()
    empty = np.flatnonzero(weights == 0)
    spoiled[empty[:3]] = np.float32([[np.nan], [np.inf], [-np.inf]])
    strange[empty] = -100
    for fit in (fit_temperature(logits, labels, weights=weights), fit_temperature(spoiled, strange, weights=weights)):
        for field, other in zip(fit, plain, strict=True):
            np.testing.assert_allclose(field, other, rtol=2e-6)
    truth = oracle.temperature(logits, labels, weights)
    assert abs(plain.temperature / truth.value - 1) <= 1e-6


def test_absent_classes():
    """By -inf and by where alike, NaN under the mask included; a row whose label is absent costs infinity alone."""
    logits, labels = overconfident(80, 6)
    where = np.random.default_rng(8).uniform(size=logits.shape) < 0.7
    where[np.arange(80), labels] = True
    absent = np.where(where, logits, -np.inf).astype(np.float32)
    truth = oracle.temperature(absent, labels)
    by_value = fit_temperature(absent, labels)
    by_mask = fit_temperature(np.where(where, logits, np.nan).astype(np.float32), labels, where=where)
    assert abs(by_value.temperature / truth.value - 1) <= 1e-6
    for field, other in zip(by_mask, by_value, strict=True):
        np.testing.assert_array_equal(field, other)

    some = np.array([True, True, True, True, False, True])
    kept = labels != 4
    by_class = fit_temperature(logits, labels, where=some)
    rest = oracle.temperature(np.where(some, logits, -np.inf)[kept], labels[kept])
    assert abs(by_class.temperature / rest.value - 1) <= 1e-6
    assert np.isposinf(by_class.nll_after) and np.isposinf(by_class.nll_before)
    assert by_class.converged and not by_class.at_bound


@pytest.mark.parametrize("number", [-1e9, -1e30, -1e37, np.finfo(np.float32).min])
def test_masks_by_large_numbers(number):
    """The lowest finite number too, which is how many frameworks mask, acts as -inf does."""
    logits, labels = overconfident(300, 10)
    labels %= 5
    absent = np.where(np.arange(10) < 5, logits, -np.inf).astype(np.float32)
    fit = FIT(np.where(np.isneginf(absent), np.float32(number), absent), labels)
    assert abs(fit.temperature / oracle.temperature(absent, labels).value - 1) <= 1e-5
    assert fit.converged and not fit.at_bound
    np.testing.assert_allclose(fit.nll_after, FIT(absent, labels).nll_after, rtol=1e-5)


@pytest.mark.parametrize("offset", [1e4, -1e6])
def test_offsets(offset):
    """Numbers added to whole rows do not matter, as long as the logits are exact."""
    logits, labels = overconfident(300, 10)
    logits = np.round(logits * 8) / 8
    shifted = logits + np.float32(offset) * (np.arange(300) % 2 == 0).astype(np.float32)[:, None]
    np.testing.assert_allclose(FIT(shifted, labels).temperature, FIT(logits, labels).temperature, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_half_precision(dtype):
    """The result is float32, of the rounded logits."""
    logits, labels = overconfident(50, 5)
    logits = np.asarray(logits, dtype)
    fit = fit_temperature(jnp.asarray(logits), labels)
    assert fit.temperature.dtype == np.float32 and fit.nll_after.dtype == np.float32
    assert abs(fit.temperature / oracle.temperature(logits.astype(np.float64), labels).value - 1) <= 1e-6
    assert apply_temperature(jnp.asarray(logits), fit).dtype == np.float32


def test_float64():
    with jax.enable_x64(True):
        logits, labels = overconfident(200, 5)
        fit = fit_temperature(logits.astype(np.float64), labels)
        assert fit.temperature.dtype == np.float64
        assert abs(fit.temperature / oracle.temperature(logits, labels).value - 1) <= 1e-12


def test_a_hundred_thousand_rows():
    """float32 sums over many rows keep their digits."""
    logits, labels = overconfident(100_000, 5)
    assert abs(FIT(logits, labels).temperature / oracle.temperature(logits, labels).value - 1) <= 1e-5


def test_batch_axes():
    """All axes but the last are rows."""
    logits, labels = overconfident(60, 5)
    nested = fit_temperature(logits.reshape(3, 20, 5), labels.reshape(3, 20))
    np.testing.assert_allclose(nested.temperature, fit_temperature(logits, labels).temperature, rtol=1e-6)


def test_scikit_learn():
    """The same optimum, where theirs is inside of its fixed bounds, exp(-10) to exp(10)."""
    for kind in (overconfident, certain):
        logits, labels = kind(300, 10)
        theirs = _TemperatureScaling().fit(logits.astype(np.float64), labels)
        np.testing.assert_allclose(FIT(logits, labels).temperature, 1 / theirs.beta_, rtol=1e-5)
    # beyond them it stops at its bound, without a word
    small = np.float32(1e-8) * overconfident(300, 10)[0]
    theirs = _TemperatureScaling().fit(small.astype(np.float64), labels)
    assert abs(theirs.beta_ / np.exp(10) - 1) < 1e-3


def test_accuracy_does_not_change():
    logits, labels = overconfident(300, 10)
    calibrated = apply_temperature(logits, FIT(logits, labels))
    np.testing.assert_array_equal(np.argmax(calibrated, axis=1), np.argmax(logits, axis=1))


def test_apply():
    """Division; -inf stays, with derivative 0."""
    fit = calibration.TemperatureScaling(*jnp.float32([4.0, 0.0, 0.0]), jnp.bool_(True), jnp.bool_(False))
    logits = jnp.float32([[8.0, -2.0, -jnp.inf]])
    np.testing.assert_array_equal(apply_temperature(logits, fit), [[2.0, -0.5, -np.inf]])

    def total(logits, temperature):
        return jnp.sum(apply_temperature(logits, fit._replace(temperature=temperature))[:, :2])

    by_logits, by_temperature = jax.grad(total, (0, 1))(logits, fit.temperature)
    np.testing.assert_allclose(by_logits, [[0.25, 0.25, 0.0]])
    np.testing.assert_allclose(by_temperature, -(8.0 - 2.0) / 16)


# Derivatives, in float64, against central differences of whole fits.


@functools.cache
def problem():
    logits, labels = overconfident(7, 4)
    logits = logits.astype(np.float64)
    logits[1, 2] = -np.inf if labels[1] != 2 else logits[1, 2]
    logits[2, 0] = -np.inf if labels[2] != 0 else logits[2, 0]
    return logits, labels, np.array([1.0, 2.0, 0.5, 0.0, 1.0, 3.0, 1.0])


@pytest.mark.parametrize("field", ["temperature", "nll_before", "nll_after"])
def test_gradients(field):
    """By the logits and by the weights; 0 for absent classes and rows that do not count."""
    with jax.enable_x64(True):
        logits, labels, weights = problem()
        function = jax.jit(lambda z, w: getattr(fit_temperature(z, labels, weights=w), field))
        by_logits, by_weights = jax.jit(jax.grad(function, (0, 1)))(logits, weights)
        assert np.max(np.abs(by_logits)) > 1e-2 and np.max(np.abs(by_weights)) > 1e-2
        np.testing.assert_array_equal(np.asarray(by_logits)[np.isneginf(logits) | (weights == 0)[:, None]], 0.0)
        h = 1e-5
        for n in np.ndindex(*logits.shape):
            if np.isneginf(logits[n]):
                continue
            up, down = logits.copy(), logits.copy()
            up[n], down[n] = logits[n] + h, logits[n] - h
            np.testing.assert_allclose(
                by_logits[n], (function(up, weights) - function(down, weights)) / (2 * h), atol=1e-8
            )
        for n in np.flatnonzero(weights):
            up, down = weights.copy(), weights.copy()
            up[n], down[n] = weights[n] + h, weights[n] - h
            np.testing.assert_allclose(
                by_weights[n], (function(logits, up) - function(logits, down)) / (2 * h), atol=1e-8
            )


def test_forward_mode_and_second_derivatives():
    """Of the temperature, in all four orders, against differences of the gradient."""
    with jax.enable_x64(True):
        logits, labels, weights = problem()

        def function(z):
            return fit_temperature(z, labels, weights=weights).temperature

        vector = np.random.default_rng(9).standard_normal(logits.shape)
        gradient = jax.jit(jax.grad(function))
        with forward_mode():
            _, forward = jax.jit(lambda z, v: jax.jvp(function, (z,), (v,)))(logits, vector)
        np.testing.assert_allclose(forward, np.sum(vector * gradient(logits)), rtol=1e-10)
        h = 1e-5
        step = np.where(np.isneginf(logits), 0.0, h * vector)
        expected = (gradient(logits + step) - gradient(logits - step)) / (2 * h)
        _, over_reverse = jax.jit(lambda z, v: jax.jvp(gradient, (z,), (v,)))(logits, vector)
        reverse_twice = jax.jit(jax.grad(lambda z: jnp.sum(vector * gradient(z))))(logits)
        for product in (over_reverse, reverse_twice):
            np.testing.assert_allclose(product, expected, atol=1e-7)


def test_gradients_at_a_bound_are_zero():
    logits = np.random.default_rng(10).standard_normal((6, 3)).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda z, y: fit_temperature(z, y).temperature))
    assert np.any(gradient(logits, np.roll(np.argmax(logits, axis=1), 1)) != 0)
    for labels in (np.argmax(logits, axis=1), np.argmin(logits, axis=1)):
        np.testing.assert_array_equal(gradient(logits, labels), np.zeros((6, 3)))
    np.testing.assert_array_equal(gradient(np.ones((6, 3), np.float32), labels), np.zeros((6, 3)))


def test_training_through_the_fit():
    """The loss after calibration has the gradient of the loss at a fixed temperature."""
    logits, labels = overconfident(60, 5)
    gradient = jax.jit(jax.grad(lambda z: fit_temperature(z, labels).nll_after))(logits)
    fixed = FIT(logits, labels).temperature
    expected = jax.jit(jax.grad(lambda z, t: jnp.mean(cross_entropy(z, labels, temperature=t))))(logits, fixed)
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


# Input that is wrong.

Z, Y = np.float32([[1, 2, 0], [3, 1, 0]]), np.int32([0, 2])
BAD = [
    ({"logits": np.int32([[1, 2, 0], [3, 1, 0]])}, TypeError, "logits must have a floating dtype"),
    ({"logits": [[1.0, 2.0, 3.0]]}, TypeError, "logits must be an array"),
    ({"labels": np.float32([0, 1])}, TypeError, "labels must be integers"),
    ({"labels": np.int32([0, 1, 2])}, ValueError, "labels must have the shape of logits without the class axis"),
    ({"logits": np.ones((2, 0), np.float32)}, ValueError, "the class axis must not be empty"),
    ({"logits": np.ones((0, 3), np.float32), "labels": Y[:0]}, ValueError, "there must be at least one row"),
    ({"where": np.ones(3)}, TypeError, "where must be boolean"),
    ({"where": np.ones(2, bool)}, ValueError, "where must have the shape of logits"),
    ({"weights": np.ones(3, np.float32)}, ValueError, "weights must have one number per row"),
]
UNSEEN = [
    ({"labels": np.int32([0, 3])}, "labels must lie in [0, 3)"),
    ({"labels": np.int32([-1, 2])}, "labels must lie in [0, 3)"),
    ({"weights": np.float32([1, -1])}, "weights must be finite and 0 or more"),
]


@pytest.mark.parametrize(("arguments", "kind", "rule"), BAD)
def test_static_errors(arguments, kind, rule):
    assert_refused(fit_temperature, "calibration.fit_temperature", {"logits": Z, "labels": Y} | arguments, kind, rule)


@pytest.mark.parametrize(("arguments", "rule"), UNSEEN)
def test_values_out_of_range(arguments, rule):
    """An error where they can be seen, NaN where they are traced."""
    given = {"logits": Z, "labels": Y, "weights": np.ones(2, np.float32)} | arguments
    with pytest.raises(ValueError, match=rf"jaxsoftmax\.calibration\.fit_temperature: {re.escape(rule)}; got "):
        fit_temperature(**given)
    fit = FIT(**given)
    assert np.all(np.isnan([fit.temperature, fit.nll_before, fit.nll_after]))
    assert not fit.converged


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity(value):
    logits = Z.copy()
    logits[0, 1] = value
    fit = fit_temperature(logits, Y)
    assert np.isnan(fit.temperature) and np.isnan(fit.nll_after)
    assert not fit.converged


def test_another_calibrator():
    with pytest.raises(TypeError, match=r"calibrator must be what fit_temperature returns; got calibrator=2\.0"):
        apply_temperature(Z, 2.0)
