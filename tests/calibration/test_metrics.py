"""Proper scores, binned errors and summaries: by hand at every edge, and against the definitions."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsoftmax import calibration
from jaxsoftmax.calibration import (
    brier_score,
    calibration_summary,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_curve,
)
from tests.helpers import planted
from tests.oracles import calibration as oracle

SCORES = (brier_score, negative_log_likelihood)
SCALARS = (*SCORES, expected_calibration_error, calibration.smooth_calibration_error)


def random_case(rows, classes, seed=0, scale=2.0, dtype=np.float32):
    """Logits, probabilities in the dtype that sum to 1 up to rounding, labels drawn from flatter ones, weights."""
    rng = np.random.default_rng([seed, rows, classes])
    logits = (scale * rng.standard_normal((rows, classes))).astype(dtype)
    probs = oracle.softmax_rows(logits)
    labels = np.array([rng.choice(classes, p=p) for p in oracle.softmax_rows(0.6 * logits)], np.int32)
    return logits, probs.astype(dtype), labels, rng.integers(0, 4, rows).astype(dtype)


def binary(confidences, right, dtype=np.float32):
    """Probabilities of two classes whose top one has these confidences, and labels that make it right or wrong."""
    c = np.asarray(confidences, dtype)
    return np.stack([c, (1 - c).astype(dtype)], 1), np.where(np.asarray(right, bool), 0, 1).astype(np.int32)


# The binned error, by hand. Confidences of two classes are at least 1/2, so classwise=True sees the rest of [0, 1].


@pytest.mark.parametrize(
    ("confidence", "bins", "index"),
    [
        (0.0, 10, 0),
        (1e-8, 10, 0),
        (0.1, 10, 0),
        (np.nextafter(np.float32(0.1), np.float32(1)), 10, 1),
        (0.3, 10, 2),
        (np.nextafter(np.float32(0.3), np.float32(1)), 10, 3),
        (0.6, 10, 5),
        (0.7, 10, 6),
        (1.0, 10, 9),
        (1.0000002, 10, 9),
        (-1e-8, 10, 0),
        (1 / 3, 3, 0),
        (2 / 3, 3, 1),
        (0.5, 1, 0),
        (1.0, 1, 0),
        (0.0, 1, 0),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bin_of_a_confidence(confidence, bins, index, dtype):
    """(k/K, (k+1)/K], 0 in the first bin, 1 and what rounding makes of it in the last."""
    if dtype == np.float64 and isinstance(confidence, np.float32):
        confidence = np.nextafter(np.float64(np.round(confidence, 1)), 1)
    with jax.enable_x64(dtype == np.float64):
        probs = np.array([[confidence, 1 - confidence]], dtype)
        curve = reliability_curve(np.int32([0]), probs=probs, bins=bins, classwise=True)
        assert curve.weight.dtype == dtype
        np.testing.assert_array_equal(curve.weight[0], np.eye(bins)[index])
        np.testing.assert_array_equal(curve.confidence[0, index], probs[0, 0])
        np.testing.assert_array_equal(curve.edges[0], (np.arange(bins + 1) / bins).astype(dtype))


@pytest.mark.parametrize("bins", [1, 2, 3, 7, 10, 15, 49, 100, 1000])
def test_every_edge_is_in_the_bin_below(bins):
    """The confidence k / K, rounded, for every k; next to it above, the bin above."""
    edges = (np.arange(1, bins) / bins).astype(np.float32)
    for confidences, first in ((edges, 0), (np.nextafter(edges, np.float32(1)), 1)):
        p = np.stack([confidences, np.float32(1) - confidences], 1)
        curve = reliability_curve(np.zeros(len(p), np.int32), probs=p, bins=bins, classwise=True)
        np.testing.assert_array_equal(curve.weight[0], [1 if first <= k < bins - 1 + first else 0 for k in range(bins)])


@pytest.mark.parametrize(
    ("confidences", "right", "bins", "expected"),
    [
        ([1.0], [1], 15, 0.0),  # one sample, certain and right
        ([1.0], [0], 15, 1.0),  # certain and wrong
        ([0.75], [1], 15, 0.25),  # one sample
        ([0.75, 0.75], [1, 0], 15, 0.25),  # tied
        ([0.5, 1.0], [1, 1], 2, 0.25),  # 0.5 is on the edge and below: two bins, 1/2 * 0.5 + 0
        ([0.6, 1.0], [0, 1], 2, 0.3),  # one bin: mean confidence 0.8, accuracy 0.5
        ([0.625, 0.875], [1, 0], 4, 0.625),  # N < bins: 1/2 (0.375 + 0.875)
        ([0.625, 0.875, 0.875, 0.875], [1, 1, 1, 0], 4, 0.25 * 0.375 + 0.75 * (0.875 - 2 / 3)),
    ],
)
def test_errors_by_hand(confidences, right, bins, expected):
    probs, labels = binary(confidences, right)
    np.testing.assert_allclose(expected_calibration_error(labels, probs=probs, bins=bins), expected, atol=1e-7)


def test_norms_by_hand():
    """Gaps of 0.375, 0.125 and 0 in bins of 1, 2 and 1 rows."""
    probs, labels = binary([0.625, 0.875, 0.875, 1.0], [1, 1, 1, 1])
    error = functools.partial(expected_calibration_error, labels, probs=probs, bins=8)
    curve = reliability_curve(labels, probs=probs, bins=8)
    np.testing.assert_array_equal(curve.weight, [0, 0, 0, 0, 1, 0, 2, 1])
    np.testing.assert_array_equal(curve.gap, [0, 0, 0, 0, 0.375, 0, 0.125, 0])
    np.testing.assert_allclose(error(), (0.375 + 2 * 0.125) / 4, rtol=1e-6)
    np.testing.assert_allclose(error(norm=2), np.sqrt((0.375**2 + 2 * 0.125**2) / 4), rtol=1e-6)
    np.testing.assert_allclose(error(norm="max"), 0.375, rtol=1e-6)


def test_classwise_by_hand():
    """Class 0 and 1 are off by 0.1 each, class 2 never occurs and is never expected: the mean is a third of the sum."""
    probs = np.float32([[0.6, 0.4, 0.0], [0.6, 0.4, 0.0]])
    labels = np.int32([0, 1])
    error = functools.partial(expected_calibration_error, labels, probs=probs, classwise=True)
    np.testing.assert_allclose(error(), 0.2 / 3, rtol=1e-6)
    np.testing.assert_allclose(error(norm=2), np.sqrt(0.02 / 3), rtol=1e-6)
    np.testing.assert_allclose(error(norm="max"), 0.1, rtol=1e-6)


def test_debias_by_hand():
    """Squared: gap² less a (1 - a) / (n - 1); a bin of one row as it is; below 0 it is 0."""
    probs, labels = binary([0.75, 0.75, 0.75, 0.75, 1.0], [1, 0, 0, 0, 0])
    error = functools.partial(expected_calibration_error, labels, probs=probs, bins=4)
    np.testing.assert_allclose(error(norm=2, bins=5), np.sqrt((4 * 0.25 + 1) / 5), rtol=1e-6)
    np.testing.assert_allclose(error(norm=2, debias=True, bins=5), np.sqrt((4 * (0.25 - 0.0625) + 1) / 5), rtol=1e-6)
    fair, labels = binary([0.5] * 4, [1, 1, 0, 0])
    assert expected_calibration_error(labels, probs=fair, norm=2, debias=True) == 0
    assert expected_calibration_error(labels, probs=fair, norm=1, debias=True) == 0


@pytest.mark.parametrize("norm", [1, 2])
def test_debias_removes_most_of_the_bias(norm):
    """Calibrated data, 40 rows a bin: the plain error is noise alone, the debiased one much nearer to 0, the truth."""
    rng = np.random.default_rng(3)
    plain, debiased = [], []
    for _ in range(40):
        confidence = rng.uniform(0.5, 1.0, 200)
        probs, labels = binary(confidence, rng.uniform(size=200) < confidence)
        error = functools.partial(expected_calibration_error, labels, probs=probs, bins=10, norm=norm)
        plain.append(float(error()))
        debiased.append(float(error(debias=True)))
    assert np.mean(debiased) < 0.6 * np.mean(plain)


def test_bins_of_equal_mass_by_hand():
    """Six rows in three bins: two each, whatever the spacing; edges are the largest confidences below."""
    probs, labels = binary([0.51, 0.52, 0.53, 0.54, 0.99, 1.0], [1, 1, 0, 1, 0, 1])
    curve = reliability_curve(labels, probs=probs, bins=3, binning="mass")
    np.testing.assert_array_equal(curve.weight, [2, 2, 2])
    np.testing.assert_allclose(curve.confidence, [0.515, 0.535, 0.995], rtol=1e-6)
    np.testing.assert_allclose(curve.accuracy, [1, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_array_equal(curve.edges, np.float32([0, 0.52, 0.54, 1]))


@pytest.mark.parametrize("seed", range(3))
def test_ties_stay_together_in_bins_of_equal_mass(seed):
    """Equal confidences share a bin, whatever the order of the rows: the error does not depend on the order."""
    confidences = np.array([0.5] * 2 + [0.7] * 7 + [0.9] * 3)
    right = np.array([1, 0, 1, 1, 1, 1, 0, 0, 0, 1, 1, 0])
    order = np.random.default_rng(seed).permutation(len(right))
    probs, labels = binary(confidences[order], right[order])
    curve = reliability_curve(labels, probs=probs, bins=4, binning="mass")
    # cumulative weight 2, 9, 12 of 12: the middles 1, 5.5, 10.5 lie in the quarters 0, 1, 3
    np.testing.assert_array_equal(curve.weight, [2, 7, 0, 3])
    np.testing.assert_allclose(curve.accuracy, [0.5, 4 / 7, 0, 2 / 3], rtol=1e-6)


def test_all_tied_in_bins_of_equal_mass():
    probs, labels = binary([0.8] * 5, [1, 1, 1, 1, 0])
    curve = reliability_curve(labels, probs=probs, bins=4, binning="mass")
    np.testing.assert_array_equal(curve.weight, [0, 0, 5, 0])
    np.testing.assert_allclose(expected_calibration_error(labels, probs=probs, bins=4, binning="mass"), 0, atol=1e-6)


# Against the definitions.


NORMS = ((1, False), (2, False), ("max", False), (1, True), (2, True))  # and whether debiased


@pytest.mark.parametrize("classwise", [False, True])
@pytest.mark.parametrize("binning", ["width", "mass"])
@pytest.mark.parametrize(
    ("rows", "classes", "bins", "weighted"),
    [(1, 3, 15, False), (7, 2, 10, True), (60, 3, 5, False), (150, 5, 15, True)],
)
def test_errors_against_the_definition(rows, classes, bins, binning, classwise, weighted):
    """Every norm, debiased or not; probabilities rounded to a grid, so that some are tied and some on edges."""
    _, probs, labels, weights = random_case(rows, classes)
    probs = np.round(probs * 40) / np.float32(40)
    probs[:, 0] = np.maximum(0, 1 - probs[:, 1:].sum(1))
    probs = (probs / probs.sum(1, keepdims=True)).astype(np.float32)
    weights = np.maximum(weights, np.eye(1, rows, dtype=np.float32)[0]) if weighted else None
    options = {"bins": bins, "binning": binning, "classwise": classwise}

    @jax.jit
    def errors(probs, labels, weights):
        error = functools.partial(expected_calibration_error, labels, probs=probs, weights=weights, **options)
        return [error(norm=norm, debias=debias) for norm, debias in NORMS]

    for (norm, debias), got in zip(NORMS, errors(probs, labels, weights), strict=True):
        exact = oracle.expected_calibration_error(probs, labels, weights=weights, norm=norm, debias=debias, **options)
        # the root of a difference that is nearly 0 has no more than half of the digits
        np.testing.assert_allclose(got, exact, rtol=2e-5, atol=5e-4 if norm == 2 and debias else 2e-6)


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_curve_against_the_definition(binning):
    _, probs, labels, weights = random_case(80, 4)
    curve = reliability_curve(labels, probs=probs, weights=weights, bins=6, binning=binning)
    ((confidence, outcome),) = oracle.pairs(probs, labels, False)
    exact = oracle.binned(confidence, outcome, weights.tolist(), 6, binning, np.float32)
    np.testing.assert_allclose(curve.weight, exact.weight)
    np.testing.assert_allclose(curve.confidence, exact.confidence, rtol=1e-6)
    np.testing.assert_allclose(curve.accuracy, exact.accuracy, rtol=1e-6)
    np.testing.assert_allclose(curve.gap, np.subtract(exact.accuracy, exact.confidence), atol=1e-6)
    if binning == "mass":
        inner = np.maximum.accumulate(np.maximum(exact.largest, 0))[:-1]
        np.testing.assert_allclose(curve.edges, [0, *inner, 1], rtol=1e-6)


def test_a_million_rows():
    """Sums over many rows of one bin keep their digits: one by one in float32, a million times 0.9 is 0.892 million."""
    probs = np.tile(np.float32([[0.9, 0.1]]), (1_000_000, 1))
    summary = calibration_summary(np.ones(1_000_000, np.int32), probs=probs, weights=probs[:, 0])
    errors = (summary.expected_calibration_error, summary.classwise_calibration_error, summary.smooth_calibration_error)
    np.testing.assert_allclose(errors, 0.9, rtol=1e-5)
    np.testing.assert_allclose((summary.support[1], summary.predicted[0]), 0.9e6, rtol=1e-5)


@pytest.mark.parametrize("function", SCALARS, ids=lambda f: f.__name__)
def test_integer_weights_are_repetitions(function):
    _, probs, labels, weights = random_case(50, 3)
    repeats = weights.astype(int)
    options = [{}]
    if function is expected_calibration_error:
        options = [{}, {"norm": 2, "debias": True}, {"binning": "mass", "debias": True}]
    for option in options:
        one = function(labels, probs=probs, weights=weights, **option)
        many = function(np.repeat(labels, repeats), probs=np.repeat(probs, repeats, 0), **option)
        np.testing.assert_allclose(one, many, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [1, 2, 7])
def test_scores_against_the_definition(classes, weighted):
    logits, probs, labels, weights = random_case(40, classes)
    weights = weights if weighted else None
    exact = oracle.softmax_rows(logits)
    likelihood = np.average(-np.log(exact[np.arange(40), labels]), weights=weights)
    np.testing.assert_allclose(
        brier_score(labels, probs=probs, weights=weights),
        oracle.brier_score(probs, labels, weights),
        rtol=1e-6,
        atol=1e-12,
    )
    np.testing.assert_allclose(
        brier_score(labels, logits=logits, weights=weights),
        oracle.brier_score(exact, labels, weights),
        rtol=2e-6,
        atol=1e-12,
    )
    for given in ({"logits": logits}, {"probs": probs}):
        np.testing.assert_allclose(
            negative_log_likelihood(labels, **given, weights=weights), likelihood, rtol=2e-6, atol=1e-7
        )


def test_scores_by_hand():
    """Certain and right, certain and wrong, a half; the likelihood of what was called impossible is 0."""
    probs, labels = np.float32([[1, 0], [0, 1], [0.5, 0.5]]), np.int32([0, 1, 1])
    np.testing.assert_allclose(brier_score(labels, probs=probs), 0.5 / 3, rtol=1e-6)
    np.testing.assert_allclose(negative_log_likelihood(labels, probs=probs), np.log(2) / 3, rtol=1e-6)
    np.testing.assert_allclose(brier_score(np.int32([1, 1, 1]), probs=probs), 2.5 / 3, rtol=1e-6)
    assert negative_log_likelihood(np.int32([1, 1, 1]), probs=probs) == np.inf


def test_scores_are_exact_in_the_tails():
    """1 - p = exp(-17) in float32, where p is 1 - 4e-8, and exp(-60), where it is 1."""
    for gap in (17.0, 30.0):
        logits, labels = np.float32([[gap, 0.0]]), np.int32([0])
        wrong = 1 / (1 + np.exp(gap))
        np.testing.assert_allclose(brier_score(labels, logits=logits), 2 * wrong**2, rtol=1e-5)
        np.testing.assert_allclose(negative_log_likelihood(labels, logits=logits), np.log1p(np.exp(-gap)), rtol=1e-5)


# Gradients.


@pytest.mark.parametrize("function", SCALARS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("owner", ["logits", "probs"])
def test_gradients_are_finite_at_certainty(function, owner):
    """Probabilities 0 and 1, right and wrong; absent classes; logits a thousand apart."""
    logits = np.float32([[1e3, 0, -1e3], [0, 1e3, -np.inf], [-1e3, 0, 0], [0, 0, 0], [200, 0, 0], [1, 0, 2]])
    labels = np.int32([0, 0, 1, 2, 0, 1])
    scores = logits if owner == "logits" else oracle.softmax_rows(logits).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda s: function(labels, **{owner: s})))(scores)
    assert np.all(np.isfinite(gradient))
    assert np.any(gradient != 0)


@pytest.mark.parametrize("classes", [2, 5])
def test_gradients_of_the_scores(classes):
    """p - 1[y] over N, and 2 (p - 1[y]) through softmax, to rounding; also where labels are certain."""
    logits, labels = planted(classes, absent=False)
    p, hot = oracle.softmax_rows(logits), np.eye(classes)[labels]
    n = len(labels)
    by_likelihood = jax.jit(jax.grad(lambda z: negative_log_likelihood(labels, logits=z)))(logits)
    np.testing.assert_allclose(by_likelihood, (p - hot) / n, rtol=1e-4, atol=1e-8)
    slope = 2 * (p - hot)
    exact = p * (slope - np.sum(p * slope, 1, keepdims=True)) / n
    by_logits = jax.jit(jax.grad(lambda z: brier_score(labels, logits=z)))(logits)
    np.testing.assert_allclose(by_logits, exact, rtol=1e-4, atol=1e-8)
    by_probs = jax.jit(jax.grad(lambda q: brier_score(labels, probs=q)))(p.astype(np.float32))
    np.testing.assert_allclose(by_probs, slope / n, rtol=1e-5, atol=1e-7)


def test_gradient_of_the_likelihood_of_probabilities():
    """-1 / (N p[y]), and 0 where the label has probability 0."""
    probs = np.float32([[0.8, 0.2], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    gradient = jax.grad(lambda q: negative_log_likelihood(np.int32([1, 0, 0, 1]), probs=q))(probs)
    np.testing.assert_allclose(gradient, [[0, -1.25], [-0.25, 0], [0, 0], [0, -0.5]], rtol=1e-6)


@pytest.mark.parametrize("binning", ["width", "mass"])
@pytest.mark.parametrize("classwise", [False, True])
def test_gradient_of_the_binned_error(binning, classwise):
    """Of every norm, against finite differences in float64 that leave every confidence in its bin."""
    _, _, labels, weights = random_case(30, 3)
    weights[:5] = 1
    with jax.enable_x64(True):
        probs = random_case(30, 3, dtype=np.float64)[1]
        direction = np.random.default_rng(1).standard_normal(probs.shape) * 1e-6
        options = {"bins": 4, "binning": binning, "classwise": classwise, "weights": weights.astype(np.float64)}

        @jax.jit
        def errors(p):
            error = functools.partial(expected_calibration_error, labels, probs=p, **options)
            return jnp.stack([error(norm=norm, debias=debias) for norm, debias in NORMS])

        assert np.all(errors(probs) > 0)
        gradients = jax.jit(jax.jacrev(errors))(probs)
        differences = (errors(probs + direction) - errors(probs - direction)) / 2
        np.testing.assert_allclose(np.sum(gradients * direction[None], (1, 2)), differences, rtol=1e-4)
        assert np.all(np.any(gradients != 0, (1, 2)))


# Every way of calling.


@pytest.mark.parametrize("function", [*SCALARS, reliability_curve, calibration_summary], ids=lambda f: f.__name__)
def test_jit_and_vmap(function):
    """The same numbers under jit, and for each of several models under vmap, as one by one."""
    cases = [random_case(40, 4, seed) for seed in range(3)]
    logits, labels, weights = (np.stack([case[i] for case in cases]) for i in (0, 2, 3))

    def one(z, y, w):
        return function(y, logits=z, weights=w)

    singly = [one(*arguments) for arguments in zip(logits, labels, weights, strict=True)]
    batch = jax.jit(jax.vmap(one))(logits, labels, weights)
    for i, single in enumerate(singly):
        for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(single), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", [*SCALARS, calibration_summary], ids=lambda f: f.__name__)
def test_dtypes(function):
    """Half-precision logits are those numbers, in float32; float64 stays."""
    logits, _, labels, _ = random_case(40, 4)
    for half in (jnp.bfloat16, jnp.float16):
        z = logits.astype(half)
        got, expected = function(labels, logits=z), function(labels, logits=z.astype(np.float32))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert a.dtype == np.float32
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    with jax.enable_x64(True):
        wide = function(labels.astype(np.int64), logits=logits.astype(np.float64))
        assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(wide))
        for a, b in zip(jax.tree.leaves(wide), jax.tree.leaves(function(labels, logits=logits)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("function", [*SCALARS, reliability_curve, calibration_summary], ids=lambda f: f.__name__)
def test_nothing_that_counts(function):
    """No rows, and weights that sum to 0: 0 with gradient 0."""
    empty = function(np.zeros(0, np.int32), logits=np.zeros((0, 3), np.float32))
    unweighted = function(np.int32([0, 1]), logits=np.float32([[1, 2, 3], [4, 5, 7]]), weights=np.zeros(2, np.float32))
    for result in (empty, unweighted):
        edges = result.edges if hasattr(result, "edges") else None
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(result) if leaf is not edges)

    def total(z):
        result = function(np.int32([0, 1]), logits=z, weights=np.zeros(2, np.float32))
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(result))

    np.testing.assert_array_equal(jax.grad(total)(np.float32([[1, 2, 3], [4, 5, 7]])), np.zeros((2, 3)))


@pytest.mark.parametrize("function", SCALARS, ids=lambda f: f.__name__)
def test_one_class(function):
    """V = 1: certain and right, error 0."""
    labels = np.zeros(3, np.int32)
    assert function(labels, logits=np.float32([[1], [2], [-3]])) == 0
    assert function(labels, probs=np.ones((3, 1), np.float32)) == 0


def test_the_top_label_is_that_of_the_logits():
    """Logits that differ where their probabilities round to the same number still have a largest one."""
    logits = np.float32([[0.0, 1e-9]])
    assert calibration_summary(np.int32([1]), logits=logits).accuracy == 1
    assert reliability_curve(np.int32([0]), logits=logits, bins=1).accuracy[0] == 0


def test_summary():
    """Each number is that of the metric by itself; precision and recall by hand, with classes that never occur."""
    probs = np.float32([[0.7, 0.2, 0.1, 0], [0.6, 0.4, 0, 0], [0.2, 0.8, 0, 0], [0, 0.1, 0.9, 0]])
    labels = np.int32([0, 1, 1, 1])
    weights = np.float32([1, 2, 1, 3])
    summary = calibration_summary(labels, probs=probs, weights=weights, bins=5)
    given = {"probs": probs, "weights": weights}
    assert summary.accuracy == np.float32(2 / 7)
    np.testing.assert_allclose(summary.confidence, (0.7 + 1.2 + 0.8 + 2.7) / 7, rtol=1e-6)
    assert summary.brier_score == brier_score(labels, **given)
    assert summary.negative_log_likelihood == negative_log_likelihood(labels, **given)
    np.testing.assert_allclose(
        [summary.expected_calibration_error, summary.classwise_calibration_error, summary.smooth_calibration_error],
        [
            expected_calibration_error(labels, **given, bins=5),
            expected_calibration_error(labels, **given, bins=5, classwise=True),
            calibration.smooth_calibration_error(labels, **given),
        ],
        rtol=1e-6,
    )
    np.testing.assert_array_equal(summary.support, [1, 6, 0, 0])
    np.testing.assert_array_equal(summary.predicted, [3, 1, 3, 0])
    np.testing.assert_allclose(summary.precision, [1 / 3, 1, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(summary.recall, [1, 1 / 6, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(summary.f1, [0.5, 2 / 7, 0, 0], rtol=1e-6)


def test_temperature_leaves_accuracy_alone():
    logits, _, labels, _ = random_case(500, 10)
    before, after = (calibration_summary(labels, logits=logits / np.float32(t)).accuracy for t in (1.0, 3.7))
    assert before == after
    np.testing.assert_allclose(before, np.mean(np.argmax(logits, 1) == labels), rtol=1e-6)


P, Y = np.float32([[0.5, 0.5]]), np.int32([0])
BAD_OPTIONS = [
    (expected_calibration_error, {"bins": 0}, ValueError, "bins must be 1 or more"),
    (expected_calibration_error, {"bins": 1.5}, TypeError, "bins must be an integer"),
    (expected_calibration_error, {"bins": True}, TypeError, "bins must be an integer"),
    (expected_calibration_error, {"binning": "height"}, ValueError, "binning must be one of 'width', 'mass'"),
    (expected_calibration_error, {"norm": 3}, ValueError, "norm must be one of 1, 2, 'max'"),
    (expected_calibration_error, {"norm": "l1"}, ValueError, "norm must be one of 1, 2, 'max'"),
    (expected_calibration_error, {"norm": True}, ValueError, "norm must be one of 1, 2, 'max'"),
    (expected_calibration_error, {"classwise": 1}, TypeError, "classwise must be True or False"),
    (expected_calibration_error, {"debias": "yes"}, TypeError, "debias must be True or False"),
    (expected_calibration_error, {"debias": True, "norm": "max"}, ValueError, "debias must be False for norm 'max'"),
    (reliability_curve, {"bins": -1}, ValueError, "bins must be 1 or more"),
    (reliability_curve, {"binning": None}, ValueError, "binning must be one of"),
    (reliability_curve, {"classwise": None}, TypeError, "classwise must be True or False"),
    (calibration_summary, {"bins": 0}, ValueError, "bins must be 1 or more"),
    (calibration_summary, {"bins": "15"}, TypeError, "bins must be an integer"),
]


@pytest.mark.parametrize(("function", "options", "kind", "rule"), BAD_OPTIONS, ids=lambda v: str(v)[:30])
def test_options(function, options, kind, rule):
    """The same error eagerly and under jit."""
    with pytest.raises(kind) as eager:
        function(Y, probs=P, **options)
    name, value = next(iter(options.items()))
    pattern = (
        rf"jaxsoftmax\.calibration\.{function.__name__}: {re.escape(rule)}.*; got .*{name}={re.escape(repr(value))}"
    )
    assert re.match(pattern, str(eager.value)), str(eager.value)
    with pytest.raises(kind) as traced:
        jax.jit(lambda p: function(Y, probs=p, **options))(P)
    assert str(traced.value) == str(eager.value)
