"""Platt's line: the minimum that scipy finds, at any scale of the scores, and at the edges."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.calibration import _sigmoid_calibration

from jaxsoftmax import calibration
from jaxsoftmax.calibration import apply_platt, fit_platt
from tests.helpers import assert_refused
from tests.oracles import calibrators as oracle

FIT = jax.jit(fit_platt)


def scored(rows, seed=0, noise=1.0):
    """Scores, and labels that follow them through logistic noise."""
    rng = np.random.default_rng([seed, rows])
    scores = 2.0 * rng.standard_normal(rows)
    return scores.astype(np.float32), (scores + noise * rng.logistic(size=rows) > 0.5).astype(np.int32)


def logistic_loss(log_odds, labels):
    """The mean, in float64."""
    u = np.asarray(log_odds, np.float64)
    return float(np.mean(np.logaddexp(0.0, u) - labels * u))


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.01, 1.0), (1000.0, -300.0), (1e-20, 0.0), (1e20, 0.0)])
@pytest.mark.parametrize("noise", [0.0, 1.0, 30.0])
def test_the_minimum(noise, scale, shift):
    """Of separable, noisy and random labels; compared as log-odds of the scores."""
    scores, labels = scored(200, noise=noise)
    scores = np.float32(scale) * scores + np.float32(shift)
    fit = FIT(scores, labels)
    slope, intercept = oracle.platt(scores, labels)
    expected = slope * scores.astype(np.float64) + intercept
    np.testing.assert_allclose(apply_platt(scores, fit), expected, rtol=1e-4, atol=1e-3)
    assert fit.converged and fit.iterations <= 15
    np.testing.assert_allclose(fit.nll_after, logistic_loss(expected, labels), rtol=1e-4)
    np.testing.assert_allclose(fit.nll_before, logistic_loss(scores, labels), rtol=1e-5)


def test_outliers():
    """Few labels of one kind and scores with heavy tails, where a whole Newton step goes too far."""
    worse = 0
    for seed in range(12):
        rng = np.random.default_rng([seed, 1])
        scores = rng.standard_t(0.6, size=200).astype(np.float32)
        labels = (scores > np.quantile(scores, 0.98)) ^ (rng.uniform(size=200) < 0.005)
        fit = FIT(scores, labels.astype(np.int32))
        slope, intercept = oracle.platt(scores, labels.astype(np.int32))
        unit = np.std(scores.astype(np.float64))
        np.testing.assert_allclose(fit.slope * unit, slope * unit, rtol=1e-3)
        np.testing.assert_allclose(fit.intercept, intercept, rtol=1e-3)
        assert fit.converged
        worse += int(overshoots(scores, labels))
    assert worse >= 3


def overshoots(scores, labels):
    """Whether Newton's method with whole steps raises the loss at some step, in float64."""
    x = (scores - scores.mean(dtype=np.float64)) / scores.std(dtype=np.float64)
    ones, zeros = labels.sum(), (~labels).sum()
    targets = np.where(labels, (ones + 1) / (ones + 2), 1 / (zeros + 2))
    line, last = np.array([0.0, np.log((ones + 1) / (zeros + 1))]), np.inf
    for _ in range(20):
        u = line[0] * x + line[1]
        loss = np.mean(np.logaddexp(0, u) - targets * u)
        if loss > last + 1e-6:
            return True
        error, curvature = 1 / (1 + np.exp(-u)) - targets, np.exp(-np.abs(u)) / (1 + np.exp(-np.abs(u))) ** 2
        columns = np.stack([x, np.ones_like(x)])
        line, last = line - np.linalg.solve((columns * curvature) @ columns.T, columns @ error), loss
    return False


def test_scikit_learn():
    """The same line, with the other sign."""
    scores, labels = scored(200)
    slope, intercept = _sigmoid_calibration(scores.astype(np.float64), labels)
    fit = FIT(scores, labels)
    np.testing.assert_allclose([fit.slope, fit.intercept], [-slope, -intercept], rtol=1e-4)


def test_many_at_once():
    cases = [scored(200, seed) for seed in range(8)]
    fits = jax.jit(jax.vmap(fit_platt))(np.stack([s for s, _ in cases]), np.stack([y for _, y in cases]))
    for n, case in enumerate(cases):
        np.testing.assert_allclose([fits.slope[n], fits.intercept[n]], oracle.platt(*case), rtol=1e-4)
    assert np.all(fits.converged)


def test_weights_and_rows_that_do_not_count():
    """Whole weights are copies, in Platt's targets too; a row of weight 0 may hold anything."""
    scores, labels = scored(60)
    weights = np.random.default_rng(1).integers(0, 3, 60).astype(np.float32)
    copies = np.repeat(np.arange(60), weights.astype(int))
    plain = fit_platt(scores[copies], labels[copies])
    spoiled, strange = scores.copy(), labels.copy()
    empty = np.flatnonzero(weights == 0)
    spoiled[empty[:3]], strange[empty] = [np.nan, np.inf, -np.inf], 7
    for fit in (fit_platt(scores, labels, weights=weights), fit_platt(spoiled, strange, weights=weights)):
        np.testing.assert_allclose(fit[:4], plain[:4], rtol=1e-5)


@pytest.mark.parametrize("labels", [[1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 1]])
def test_equal_scores_have_slope_zero(labels):
    """The intercept is the log-odds of the mean target: (3 · 4/5 + 1/3) / 4 for three labels of 1 and one of 0."""
    labels = np.int32(labels)
    fit = fit_platt(np.full(4, 3.0, np.float32), labels)
    ones = labels.sum()
    mean = (ones * (ones + 1) / (ones + 2) + (4 - ones) / (6 - ones)) / 4
    assert fit.slope == 0 and fit.converged
    np.testing.assert_allclose(fit.intercept, np.log(mean / (1 - mean)), rtol=1e-5)


def test_one_class_of_labels():
    """All labels 1: the slope is 0, and the probability Platt's target."""
    fit = fit_platt(np.float32([-1, 0, 2, 5]), np.ones(4, np.int32))
    np.testing.assert_allclose([fit.slope, fit.intercept], [0.0, np.log(5.0)], atol=1e-6)
    assert fit.converged


def test_no_row_counts():
    fit = fit_platt(np.float32([-1, 0, 2]), np.int32([0, 1, 1]), weights=np.zeros(3, np.float32))
    assert fit[:4] == (0, 0, 0, 0) and fit.converged


def test_dtypes():
    scores, labels = scored(60)
    half = fit_platt(jnp.asarray(scores, jnp.bfloat16), labels)
    assert half.slope.dtype == np.float32
    rounded = fit_platt(np.asarray(jnp.asarray(scores, jnp.bfloat16), np.float32), labels)
    np.testing.assert_allclose(half[:4], rounded[:4], rtol=1e-6)
    with jax.enable_x64(True):
        wide = fit_platt(scores.astype(np.float64), labels)
        assert wide.slope.dtype == np.float64 and wide.converged
        np.testing.assert_allclose(wide[:2], oracle.platt(scores, labels), rtol=1e-7)


def test_a_constant_to_differentiation():
    scores, labels = scored(60)
    gradient = jax.jit(jax.grad(lambda s: fit_platt(s, labels).slope))(scores)
    np.testing.assert_array_equal(gradient, np.zeros(60))


def test_apply():
    fit = calibration.PlattScaling(*jnp.float32([2.0, -1.0, 0.0, 0.0]), jnp.bool_(True), jnp.int32(1))
    np.testing.assert_array_equal(apply_platt(np.float32([[0.0, 3.0]]), fit), [[-1.0, 5.0]])
    by_score = jax.grad(lambda s: apply_platt(s, fit))(jnp.float32(3.0))
    by_fit = jax.grad(lambda s, f: apply_platt(s, f), 1, allow_int=True)(jnp.float32(3.0), fit)
    assert by_score == 2 and by_fit.slope == 3 and by_fit.intercept == 1


# Input that is wrong.

S, Y = np.float32([1.0, -1.0, 0.5]), np.int32([1, 0, 1])
BAD = [
    ({"scores": np.int32([1, 2, 3])}, TypeError, "scores must have a floating dtype"),
    ({"scores": [1.0, 2.0, 3.0]}, TypeError, "scores must be an array"),
    ({"labels": np.float32([1, 0, 1])}, TypeError, "labels must be integers"),
    ({"labels": np.array([True, False, True])}, TypeError, "labels must be integers"),
    ({"labels": np.int32([1, 0])}, ValueError, "labels and scores must have the same shape"),
    ({"scores": S[:0], "labels": Y[:0]}, ValueError, "there must be at least one row"),
    ({"weights": np.ones(2, np.float32)}, ValueError, "weights must have one number per row"),
]
UNSEEN = [
    ({"labels": np.int32([1, 2, 0])}, "labels must lie in [0, 2)"),
    ({"labels": np.int32([1, -1, 0])}, "labels must lie in [0, 2)"),
    ({"weights": np.float32([1, -1, 1])}, "weights must be finite and 0 or more"),
]


@pytest.mark.parametrize(("arguments", "kind", "rule"), BAD)
def test_static_errors(arguments, kind, rule):
    assert_refused(fit_platt, "calibration.fit_platt", {"scores": S, "labels": Y} | arguments, kind, rule)


@pytest.mark.parametrize(("arguments", "rule"), UNSEEN)
def test_values_out_of_range(arguments, rule):
    """An error where they can be seen, NaN where they are traced."""
    given = {"scores": S, "labels": Y, "weights": np.ones(3, np.float32)} | arguments
    with pytest.raises(ValueError, match=rf"jaxsoftmax\.calibration\.fit_platt: {re.escape(rule)}; got "):
        fit_platt(**given)
    fit = FIT(**given)
    assert np.all(np.isnan(fit[:4])) and not fit.converged


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity(value):
    scores = S.copy()
    scores[1] = value
    fit = fit_platt(scores, Y)
    assert np.isnan(fit.slope) and np.isnan(fit.intercept) and not fit.converged


def test_another_calibrator():
    with pytest.raises(TypeError, match=r"jaxsoftmax\.calibration\.apply_platt: calibrator must be what fit_platt"):
        apply_platt(S, (1.0, 0.0))
