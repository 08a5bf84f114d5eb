"""Risk-coverage curves: ties, weights, and the area against the mean over all orders."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsoftmax import calibration

RNG = np.random.default_rng(0)
SCORES = np.float32([0.3, 0.1, 0.3, 0.9, 0.1, 0.3])
LOSSES = np.float32([1.0, 0.0, 0.5, 2.0, 4.0, 0.0])


def curve_in_order(losses, weights):
    """Coverage, risk and area of rows that are accepted one by one."""
    accepted, lost = np.cumsum(weights), np.cumsum(weights * losses)
    return accepted / accepted[-1], lost / accepted, np.sum(weights * lost / accepted) / accepted[-1]


def mean_over_orders(scores, losses):
    """The mean curve and area over all orders that the scores allow, every one as likely."""
    curves = [
        curve_in_order(losses[list(order)], np.ones(len(losses)))
        for order in itertools.permutations(range(len(scores)))
        if np.all(np.diff(scores[list(order)]) >= 0)
    ]
    return [np.mean([np.asarray(curve[i]) for curve in curves], axis=0) for i in range(3)]


def test_by_hand():
    curve = calibration.selective_risk(np.float32([0.2, 0.1, 0.4]), np.array([1, 0, 1]))
    np.testing.assert_allclose(curve.coverage, [1 / 3, 2 / 3, 1], rtol=1e-6)
    np.testing.assert_allclose(curve.risk, [0, 1 / 2, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(curve.area, (0 + 1 / 2 + 2 / 3) / 3, rtol=1e-6)
    np.testing.assert_allclose(curve.excess, 0, atol=1e-7)


@pytest.mark.parametrize("scores", [SCORES, np.zeros(6, np.float32), np.float32([1, 2, 2, 3, 4, 4])])
def test_ties_are_the_mean_over_their_orders(scores):
    coverage, risk, area = mean_over_orders(scores, LOSSES.astype(np.float64))
    curve = calibration.selective_risk(scores, LOSSES)
    np.testing.assert_allclose(curve.coverage, coverage, rtol=1e-6)
    np.testing.assert_allclose(curve.risk, risk, rtol=1e-6)
    np.testing.assert_allclose(curve.area, area, rtol=1e-6)
    best = curve_in_order(np.sort(LOSSES).astype(np.float64), np.ones(6))[2]
    np.testing.assert_allclose(curve.excess, area - best, rtol=1e-5)


def test_a_score_that_says_nothing_has_the_mean_loss():
    curve = calibration.selective_risk(np.full(6, np.inf, np.float32), LOSSES)
    np.testing.assert_allclose(curve.risk, np.full(6, LOSSES.mean()), rtol=1e-6)
    np.testing.assert_allclose(curve.area, LOSSES.mean(), rtol=1e-6)


def test_excess_is_between_that_of_the_best_and_of_the_worst_score():
    rng = np.random.default_rng(1)
    losses = rng.exponential(size=200).astype(np.float32)
    best, worst = (calibration.selective_risk(sign * losses, losses).excess for sign in (1, -1))
    np.testing.assert_allclose(best, 0, atol=1e-6)
    for _ in range(5):
        scores = np.round(rng.normal(size=200) + losses, 1).astype(np.float32)
        assert 0.05 < calibration.selective_risk(scores, losses).excess < worst


def test_coverage_rises_over_a_million_weights():
    """Parallel sums of positive numbers may fall by a rounding."""
    scores, weights = np.random.default_rng(0).uniform(size=(2, 1_000_000)).astype(np.float32)
    coverage = calibration.selective_risk(scores, np.zeros(1_000_000, np.float32), weights=weights).coverage
    assert np.all(np.diff(coverage) >= 0) and coverage[-1] == 1


def test_weights():
    """Against the plain cumulative sums, and independent of the order of the rows, ties included."""
    rng = np.random.default_rng(2)
    weights = np.float32([1.0, 0.5, 2.0, 0.25, 3.0, 1.5])
    distinct = np.float32([3, 1, 5, 2, 6, 4])
    order = np.argsort(distinct)
    curve = calibration.selective_risk(distinct, LOSSES, weights=weights)
    exact = curve_in_order(LOSSES[order].astype(np.float64), weights[order].astype(np.float64))
    for ours, theirs in zip(curve[:3], exact, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    tied = calibration.selective_risk(SCORES, LOSSES, weights=weights)
    for _ in range(5):
        shuffled = rng.permutation(6)
        again = calibration.selective_risk(SCORES[shuffled], LOSSES[shuffled], weights=weights[shuffled])
        for ours, theirs in zip(again, tied, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rows", [3, 47, 49, 98, 103, 1000])
def test_coverage_ends_at_1(rows):
    """Exactly, also where a product with a rounded reciprocal would not."""
    rng = np.random.default_rng(rows)
    for weights in (None, rng.uniform(size=rows).astype(np.float32)):
        curve = calibration.selective_risk(rng.normal(size=rows).astype(np.float32), np.ones(rows), weights=weights)
        assert curve.coverage[-1] == 1 and np.all(np.diff(curve.coverage) > 0)


def test_rows_of_weight_0_change_nothing():
    """Whatever stands in them, also beside a row that counts and is infinitely uncertain."""
    scores = np.append(SCORES, np.float32(np.inf))
    losses = np.append(LOSSES, np.float32(3.0))
    plain = calibration.selective_risk(scores, losses)
    padded = calibration.selective_risk(
        np.concatenate([np.float32([np.nan, -1.0]), scores, np.float32([np.inf])]),
        np.concatenate([np.float32([1.0, np.nan]), losses, np.float32([np.inf])]),
        weights=np.array([0, 0, *[1] * 7, 0]),
    )
    np.testing.assert_allclose(padded.risk[:7], plain.risk, rtol=1e-6)
    np.testing.assert_allclose(padded.risk[7:], np.full(3, plain.risk[-1]), rtol=1e-6)
    np.testing.assert_array_equal(padded.coverage[7:], 1.0)
    np.testing.assert_allclose(padded.area, plain.area, rtol=1e-6)
    np.testing.assert_allclose(padded.excess, plain.excess, rtol=1e-6)


def test_no_rows_one_row_and_broken_rows():
    empty = np.zeros(0, np.float32)
    none = calibration.selective_risk(empty, empty)
    assert none.risk.shape == none.coverage.shape == (0,)
    assert none.area == none.excess == 0
    weightless = calibration.selective_risk(SCORES, LOSSES, weights=np.zeros(6))
    assert all(np.all(np.asarray(field) == 0) for field in weightless)
    one = calibration.selective_risk(np.float32([7.0]), np.array([True]))
    assert (one.coverage[0], one.risk[0], one.area, one.excess) == (1, 1, 1, 0)
    for scores, losses in ((SCORES * np.float32(np.nan), LOSSES), (SCORES, LOSSES * np.float32(np.nan))):
        assert all(np.all(np.isnan(field)) for field in calibration.selective_risk(scores, losses))
    negative = jax.jit(calibration.selective_risk)(SCORES, LOSSES, weights=-np.ones(6, np.float32))
    assert np.isnan(negative.area)


def test_jit_vmap_and_gradient():
    rng = np.random.default_rng(3)
    scores, losses = (rng.normal(size=(4, 9)).astype(np.float32) for _ in range(2))
    expected = [calibration.selective_risk(s, x) for s, x in zip(scores, losses, strict=True)]
    mapped = jax.jit(jax.vmap(calibration.selective_risk))(scores, losses)
    for row in range(4):
        for ours, theirs in zip(jax.tree.map(lambda x, r=row: x[r], mapped), expected[row], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)

    by_scores, by_losses = jax.grad(lambda s, x: calibration.selective_risk(s, x).area, argnums=(0, 1))(SCORES, LOSSES)
    np.testing.assert_array_equal(by_scores, 0)
    # linear in the losses, so that unit losses give the gradient
    unit = [mean_over_orders(SCORES, np.eye(6)[i])[2] for i in range(6)]
    np.testing.assert_allclose(by_losses, unit, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_half_precision(dtype):
    """Scores of few digits tie; sums are those of float32."""
    rng = np.random.default_rng(4)
    scores = rng.normal(size=300).astype(dtype)
    losses = rng.uniform(size=300).astype(dtype)
    curve = calibration.selective_risk(scores, losses)
    wide = calibration.selective_risk(scores.astype(np.float32), losses.astype(np.float32))
    for ours, theirs in zip(curve, wide, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs)


def test_float64():
    rng = np.random.default_rng(5)
    with jax.enable_x64(True):
        losses = rng.uniform(size=50)
        curve = calibration.selective_risk(np.arange(50.0), losses)
        assert curve.area.dtype == np.float64
        np.testing.assert_allclose(curve.area, curve_in_order(losses, np.ones(50))[2], rtol=1e-14)


BAD = [
    ({"uncertainty": np.ones(6, np.int32)}, TypeError, "uncertainty must have a floating dtype"),
    ({"uncertainty": [0.1] * 6}, TypeError, "uncertainty must be an array"),
    ({"uncertainty": np.ones((6, 1), np.float32)}, ValueError, "uncertainty must have shape [N]"),
    ({"losses": np.ones(6, np.complex64)}, TypeError, "losses must be numbers"),
    ({"losses": np.ones(5, np.float32)}, ValueError, "uncertainty and losses must have the same shape"),
    ({"weights": np.ones(5, np.float32)}, ValueError, "uncertainty and weights must have the same shape"),
    ({"weights": np.float32([1, 1, -1, 1, 1, 1])}, ValueError, "weights must be finite and 0 or more"),
]


@pytest.mark.parametrize(("arguments", "kind", "rule"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input(arguments, kind, rule):
    options = {"uncertainty": SCORES, "losses": LOSSES} | arguments
    with pytest.raises(kind) as eager:
        calibration.selective_risk(**options)
    assert str(eager.value).startswith("jaxsoftmax.calibration.selective_risk: ")
    assert rule in str(eager.value)
    if "finite" not in rule and all(isinstance(value, np.ndarray) for value in options.values()):
        with pytest.raises(kind) as under_jit:
            jax.jit(lambda some: calibration.selective_risk(**some))(options)
        assert str(under_jit.value) == str(eager.value)
