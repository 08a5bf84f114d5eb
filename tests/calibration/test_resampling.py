"""Bootstrap intervals: the same as NumPy's for the same draws, and right as often as they say."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoftmax
from jaxsoftmax import calibration
from jaxsoftmax.calibration import bootstrap
from jaxsoftmax.calibration.resampling import draws

KEY = jax.random.key(0)
VALUES = np.random.default_rng(0).standard_normal(40).astype(np.float32)


def mean(values, *, weights):
    return jaxsoftmax.weighted_mean(values, weights)


def error(logits, labels, *, weights):
    return calibration.expected_calibration_error(labels, logits=logits, weights=weights, bins=5)


def indices(key, rows, resamples):
    """What the bootstrap draws from this key for rows that all count."""
    keys = jax.random.split(key, resamples)
    return np.stack([np.asarray(jax.random.randint(k, (rows,), 0, rows)) for k in keys])


def test_equal_to_numpy_for_the_same_draws():
    interval = bootstrap(KEY, mean, (VALUES,), resamples=50, level=0.8)
    samples = VALUES.astype(np.float64)[indices(KEY, 40, 50)].mean(1)
    np.testing.assert_allclose(interval.samples, samples, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(interval.estimate, VALUES.mean(), rtol=1e-5)
    np.testing.assert_allclose([interval.lower, interval.upper], np.quantile(samples, [0.1, 0.9]), rtol=1e-4)


def test_a_metric_of_drawn_rows():
    """Weights stand for rows drawn again: the metric of the rows themselves is the same."""
    rng = np.random.default_rng(1)
    logits, labels = rng.standard_normal((30, 3)).astype(np.float32), rng.integers(0, 3, 30).astype(np.int32)
    interval = bootstrap(KEY, error, (logits, labels), resamples=8)
    singly = [error(logits[i], labels[i], weights=np.ones(30, np.float32)) for i in indices(KEY, 30, 8)]
    np.testing.assert_allclose(interval.samples, singly, rtol=1e-5, atol=1e-7)
    assert interval.estimate == error(logits, labels, weights=np.ones(30, np.float32))


def test_batch_size_changes_nothing():
    one = bootstrap(KEY, mean, (VALUES,), resamples=23, batch_size=1)
    for batch_size in (5, 23, 100, None):
        other = bootstrap(KEY, mean, (VALUES,), resamples=23, batch_size=batch_size)
        np.testing.assert_allclose(other.samples, one.samples, rtol=1e-6, atol=1e-7)


def test_memory_is_bounded_by_the_batch():
    """Weights of a thousand resamples of 20 000 rows are 80 MB; in batches of ten, under 10."""
    values = np.ones(20_000, np.float32)
    run = jax.jit(lambda v: bootstrap(KEY, mean, (v,), batch_size=10).lower)
    assert run.lower(values).compile().memory_analysis().temp_size_in_bytes < 10e6


def test_coverage_of_a_known_mean():
    """400 data sets of 50 normal numbers: the 90 % interval covers 0 in 90 %, to three standard errors and 1.5 %.

    Percentile intervals of a mean are narrow by sqrt(49 / 50) and have normal instead of t quantiles: 88.4 % here.
    """
    values = jax.random.normal(jax.random.key(2), (400, 50))
    keys = jax.random.split(jax.random.key(3), 400)
    intervals = jax.jit(jax.vmap(lambda k, v: bootstrap(k, mean, (v,), resamples=200, level=0.9)))(keys, values)
    covered = np.mean((intervals.lower <= 0) & (intervals.upper >= 0))
    assert abs(covered - 0.884) < 3 * np.sqrt(0.884 * 0.116 / 400)


def test_draws_are_uniform():
    """Every row as often as every other, N in all; the variance of a count is 1 - 1/N."""
    counts = np.asarray(jax.vmap(lambda k: draws(k, jnp.ones(20)))(jax.random.split(KEY, 4000)))
    assert np.all(counts.sum(1) == 20)
    np.testing.assert_allclose(counts.mean(0), 1.0, atol=4 * np.sqrt(0.95 / 4000))
    np.testing.assert_allclose(counts.var(0), 0.95, atol=0.12)


def test_rows_of_weight_0_are_never_drawn():
    """M rows with a weight are drawn M times in all, each with its weight; NaN elsewhere never shows."""
    weights = np.float32([0, 2, 0, 1, 3, 0])
    counts = np.asarray(jax.vmap(lambda k: draws(k, weights))(jax.random.split(KEY, 500)))
    assert np.all(counts[:, weights == 0] == 0)
    assert np.all(counts.sum(1) == 3)
    assert np.all(counts[:, weights > 0].mean(0) > 0.85)
    values = np.float32([np.nan, 1, np.inf, 2, 4, 0])
    interval = bootstrap(KEY, mean, (values,), weights=weights, resamples=200)
    np.testing.assert_allclose(interval.estimate, (2 + 2 + 12) / 6, rtol=1e-6)
    exact = np.sum(counts[:, [1, 3, 4]] * weights[[1, 3, 4]] * values[[1, 3, 4]], 1) / np.sum(counts * weights, 1)
    assert set(np.round(np.asarray(interval.samples), 4)) <= set(np.round(exact, 4).astype(np.float32))
    assert bootstrap(KEY, mean, (values,), weights=np.zeros(6), resamples=3).upper == 0


def test_a_summary_has_an_interval_in_every_field():
    rng = np.random.default_rng(4)
    logits, labels = rng.standard_normal((60, 3)).astype(np.float32), rng.integers(0, 3, 60).astype(np.int32)

    def summary(logits, labels, *, weights):
        return calibration.calibration_summary(labels, logits=logits, weights=weights)

    interval = bootstrap(KEY, summary, (logits, labels), resamples=200)
    assert type(interval.lower) is type(interval.estimate) is calibration.CalibrationSummary
    assert interval.samples.recall.shape == (200, 3)
    for low, value, high in zip(interval.lower, interval.estimate, interval.upper, strict=True):
        assert np.all(low <= high)
        assert low.shape == value.shape == high.shape
    assert interval.lower.accuracy < interval.estimate.accuracy < interval.upper.accuracy
    np.testing.assert_allclose(np.sum(interval.samples.support, 1), 60)


def test_jit_and_vmap():
    """Under jit the same numbers; with vmap over keys, other draws of the same data."""
    eager = bootstrap(KEY, mean, (VALUES,), resamples=20)
    jitted = jax.jit(lambda k, v: bootstrap(k, mean, (v,), resamples=20))(KEY, VALUES)
    np.testing.assert_allclose(jitted.samples, eager.samples, rtol=1e-6, atol=1e-7)
    several = jax.vmap(lambda k: bootstrap(k, mean, (VALUES,), resamples=20))(jax.random.split(KEY, 3))
    assert several.samples.shape == (3, 20)
    assert len(np.unique(np.round(several.lower, 6))) > 1


def test_the_statistic_is_compiled_once():
    traced = []

    def counted(values, *, weights):
        traced.append(1)
        return mean(values, weights=weights)

    for seed in range(3):
        bootstrap(jax.random.key(seed), counted, (VALUES,), resamples=5)
    before = len(traced)
    bootstrap(KEY, counted, (VALUES,), resamples=5)
    assert len(traced) == before + 1  # for the estimate, which is computed of the arrays as they are


def test_gradient():
    """Of the estimate and of each sample, with the draws as they are."""
    gradient = jax.grad(lambda v: jnp.sum(bootstrap(KEY, mean, (v,), resamples=10).samples))(VALUES)
    counts = np.stack([np.bincount(i, minlength=40) for i in indices(KEY, 40, 10)])
    np.testing.assert_allclose(gradient, counts.sum(0) / 40, rtol=1e-5)


def test_bad_values_are_seen():
    """The estimate is computed from the arrays as given: what a metric refuses, its bootstrap does."""
    with pytest.raises(ValueError, match="labels must lie in"):
        bootstrap(KEY, error, (np.zeros((3, 2), np.float32), np.int32([0, 1, 2])))


BAD = [
    ({"key": 7}, TypeError, "key must be a key of jax.random"),
    ({"statistic": 1.0}, TypeError, "statistic must be a function"),
    ({"arrays": [VALUES]}, TypeError, "arrays must be a tuple of one array or more"),
    ({"arrays": VALUES}, TypeError, "arrays must be a tuple of one array or more"),
    ({"arrays": ()}, TypeError, "arrays must be a tuple of one array or more"),
    ({"arrays": (np.float32(1.0),)}, ValueError, "arrays must have one row or more"),
    ({"arrays": (VALUES[:0],)}, ValueError, "arrays must have one row or more"),
    ({"weights": np.ones(3)}, ValueError, "weights must have one number per row"),
    ({"weights": -np.ones(40)}, ValueError, "weights must be finite and 0 or more"),
    ({"resamples": 0}, ValueError, "resamples must be 1 or more"),
    ({"resamples": 10.0}, TypeError, "resamples must be an integer"),
    ({"batch_size": 0}, ValueError, "batch_size must be 1 or more"),
    ({"level": 95}, ValueError, "level must be between 0 and 1"),
    ({"level": "95 %"}, ValueError, "level must be between 0 and 1"),
    ({"level": 0.0}, ValueError, "level must be between 0 and 1"),
]


@pytest.mark.parametrize(("bad", "kind", "rule"), BAD, ids=lambda v: str(v)[:30])
def test_message(bad, kind, rule):
    """What is static is the same under jit."""
    arguments = {"key": KEY, "statistic": mean, "arrays": (VALUES,)} | bad
    with pytest.raises(kind) as eager:
        bootstrap(**arguments)
    pattern = rf"jaxsoftmax\.calibration\.bootstrap: {re.escape(rule)}.*; got {next(iter(bad))}="
    assert re.match(pattern, str(eager.value)), str(eager.value)
    with pytest.raises(kind) as traced:
        jax.jit(lambda: bootstrap(**arguments))()
    assert str(traced.value) == str(eager.value)
