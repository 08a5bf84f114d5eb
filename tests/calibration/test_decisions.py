"""Decisions: least expected cost by brute force, thresholds, realized costs and the cost curve of a policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoftmax
from jaxsoftmax import calibration
from tests.helpers import assert_refused, call, masks

RNG = np.random.default_rng(0)
FRAUD = np.float32([[0.0, 500.0], [5.0, 5.0]])
COSTS = RNG.normal(size=(3, 5)).astype(np.float32) * 10
LOGITS = (2.0 * RNG.standard_normal((40, 5))).astype(np.float32)


def softmax(logits):
    p = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def population(size=400):
    """A population whose probabilities are right: at each of them, its share of class 1. Probs, labels and weights."""
    p = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    probs = np.stack([1 - p, p], -1)
    return np.concatenate([probs, probs]), np.repeat(np.int32([0, 1]), size), np.concatenate([1 - p, p])


@pytest.mark.parametrize("reject", [None, -5.0, "per row"])
@pytest.mark.parametrize("per_row", [False, True])
def test_least_cost(per_row, reject):
    """Against float64 sums, act by act; from logits and from their probabilities."""
    rng = np.random.default_rng(1)
    costs = rng.normal(size=(40, 3, 5)).astype(np.float32) * 10 if per_row else COSTS
    reject = rng.normal(-5.0, 5.0, 40).astype(np.float32) if reject == "per row" else reject
    p = softmax(LOGITS)
    expected = np.array([[(p[n] * (costs[n] if per_row else costs)[a]).sum() for a in range(3)] for n in range(40)])
    if reject is not None:
        expected = np.concatenate([expected, np.broadcast_to(reject, 40)[:, None]], axis=1)
    for given in ({"logits": LOGITS}, {"probs": p.astype(np.float32)}):
        decision = calibration.least_cost_decision(costs, **given, reject_cost=reject)
        np.testing.assert_allclose(decision.costs, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(decision.act, expected.argmin(-1))
        np.testing.assert_array_equal(decision.cost, np.asarray(decision.costs).min(-1))
        assert decision.act.dtype == np.int32
    if reject is not None:
        assert np.any(decision.act == 3) and np.any(decision.act < 3)


def test_a_rare_class_counts_at_its_cost():
    """From logits, a probability of 1e-11 times a cost of 1e12 is 10, and not lost."""
    logits = np.float32([[25.0, 0.0]])
    costs = np.float32([[0.0, 1e12], [5.0, 5.0]])
    decision = calibration.least_cost_decision(costs, logits=logits)
    np.testing.assert_allclose(decision.costs, [[1e12 * np.exp(-25.0), 5.0]], rtol=1e-5)
    assert decision.act[0] == 1


def test_ties():
    """The lower act; and the reject option only where it costs less."""
    probs = np.float32([[0.5, 0.5], [0.75, 0.25]])
    errors = np.float32([[0.0, 1.0], [1.0, 0.0]])
    np.testing.assert_array_equal(calibration.least_cost_decision(errors, probs=probs).act, [0, 0])
    at = calibration.least_cost_decision(errors, probs=probs, reject_cost=0.5)
    np.testing.assert_array_equal(at.act, [0, 0])
    below = calibration.least_cost_decision(errors, probs=probs, reject_cost=0.375)
    np.testing.assert_array_equal(below.act, [2, 0])
    np.testing.assert_array_equal(below.cost, [0.375, 0.25])


def test_with_unit_costs_it_is_the_most_probable_class():
    errors = 1.0 - np.eye(5, dtype=np.float32)
    decision = calibration.least_cost_decision(errors, logits=LOGITS)
    np.testing.assert_array_equal(decision.act, LOGITS.argmax(-1))
    np.testing.assert_allclose(decision.cost, calibration.max_probability_score(LOGITS), rtol=1e-5)


def test_absent_classes_and_broken_rows():
    where = masks(40, 5, LOGITS.argmax(-1))
    logits = np.where(where, LOGITS, np.float32(np.nan))
    hole = np.where(where, LOGITS, -np.inf).astype(np.float32)
    decision = calibration.least_cost_decision(COSTS, logits=logits, where=where)
    np.testing.assert_allclose(decision.costs, softmax(hole) @ COSTS.T.astype(np.float64), rtol=1e-4, atol=1e-4)
    broken = calibration.least_cost_decision(COSTS, logits=np.where(np.arange(40)[:, None] == 7, np.nan, LOGITS))
    np.testing.assert_array_equal(broken.act == -1, np.arange(40) == 7)
    np.testing.assert_array_equal(np.isnan(broken.cost), np.arange(40) == 7)
    empty = calibration.least_cost_decision(COSTS, logits=np.full(5, -np.inf, np.float32))
    assert (empty.act, empty.cost) == (0, 0)
    nothing = calibration.least_cost_decision(COSTS, logits=LOGITS[:0])
    assert nothing.act.shape == (0,) and nothing.costs.shape == (0, 3)


def test_jit_vmap_and_gradient():
    expected = calibration.least_cost_decision(COSTS, logits=LOGITS, reject_cost=1.0)
    jitted = jax.jit(lambda c, z: calibration.least_cost_decision(c, logits=z, reject_cost=1.0))(COSTS, LOGITS)
    mapped = jax.vmap(lambda z: calibration.least_cost_decision(COSTS, logits=z, reject_cost=1.0))(LOGITS)
    for other in (jitted, mapped):
        np.testing.assert_array_equal(other.act, expected.act)
        np.testing.assert_allclose(other.costs, expected.costs, rtol=1e-5, atol=1e-5)

    decision = calibration.least_cost_decision(COSTS, logits=LOGITS)
    by_costs, by_logits = jax.grad(
        lambda c, z: jnp.sum(calibration.least_cost_decision(c, logits=z).cost), argnums=(0, 1)
    )(COSTS, LOGITS)
    p, chosen = softmax(LOGITS), np.asarray(decision.act)
    np.testing.assert_allclose(by_costs, [p[chosen == a].sum(0) for a in range(3)], rtol=1e-5, atol=1e-6)
    row = COSTS[chosen].astype(np.float64)
    np.testing.assert_allclose(by_logits, p * (row - (p * row).sum(-1, keepdims=True)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_half_precision(dtype):
    """The costs of the rounded logits, in float32."""
    decision = calibration.least_cost_decision(COSTS, logits=LOGITS.astype(dtype))
    wide = calibration.least_cost_decision(COSTS, logits=LOGITS.astype(dtype).astype(np.float32))
    assert decision.costs.dtype == np.float32
    np.testing.assert_array_equal(decision.costs, wide.costs)


def test_float64():
    with jax.enable_x64(True):
        decision = calibration.least_cost_decision(COSTS.astype(np.float64), logits=LOGITS.astype(np.float64))
        np.testing.assert_allclose(decision.costs, softmax(LOGITS) @ COSTS.T.astype(np.float64), rtol=1e-12)


def test_threshold_by_hand():
    np.testing.assert_allclose(calibration.decision_threshold(FRAUD), 0.01, rtol=1e-6)
    assert calibration.decision_threshold(np.float32([[0, 1], [1, 0]])) == 0.5
    assert calibration.decision_threshold(np.array([[0, 3], [1, 0]])) == 0.25
    assert calibration.decision_threshold(np.float32([[0, 1], [0, 0]])) == 0  # an alarm costs nothing
    assert calibration.decision_threshold(np.float32([[0, 1], [1, 1]])) == 1  # and gains nothing
    assert calibration.decision_threshold(np.float32([[2, 3], [2, 3]])) == 1  # the acts are the same


def test_threshold_is_where_the_decision_turns():
    """For any costs in the right order, above the threshold and below it."""
    rng = np.random.default_rng(2)
    costs = rng.normal(size=(200, 2, 2)).astype(np.float32)
    costs[:, :, 0].sort(axis=1)
    costs[:, :, 1] = -np.sort(-costs[:, :, 1], axis=1)
    threshold = np.asarray(calibration.decision_threshold(costs))
    assert threshold.shape == (200,)
    for step, act in ((1e-4, 1), (-1e-4, 0)):
        p = threshold + np.float32(step)
        inside = (p > 0) & (p < 1)
        decision = calibration.least_cost_decision(costs[inside], probs=np.stack([1 - p, p], -1)[inside])
        np.testing.assert_array_equal(decision.act, act)
        assert inside.sum() > 190
    mapped = jax.jit(jax.vmap(calibration.decision_threshold))(costs)
    np.testing.assert_allclose(mapped, threshold, rtol=1e-6)
    slope = jax.grad(lambda c: calibration.decision_threshold(c))(FRAUD)
    np.testing.assert_allclose(slope, [[-495 / 500**2, -5 / 500**2], [495 / 500**2, 5 / 500**2]], rtol=1e-5)


def test_realized_cost():
    rng = np.random.default_rng(3)
    acts, labels = rng.integers(0, 4, 30), rng.integers(0, 5, 30)
    expected = [9.0 if a == 3 else COSTS[a, y] for a, y in zip(acts, labels, strict=True)]
    np.testing.assert_array_equal(calibration.realized_cost(COSTS, acts, labels, reject_cost=9.0), np.float32(expected))
    own = rng.normal(size=(30, 3, 5)).astype(np.float32)
    reject = rng.normal(size=30).astype(np.float32)
    cost = jax.jit(lambda c, a, y, r: calibration.realized_cost(c, a, y, reject_cost=r))(own, acts, labels, reject)
    expected = [reject[n] if a == 3 else own[n, a, labels[n]] for n, a in enumerate(acts)]
    np.testing.assert_array_equal(cost, expected)
    mapped = jax.vmap(lambda c, a, y, r: calibration.realized_cost(c, a, y, reject_cost=r))(own, acts, labels, reject)
    np.testing.assert_array_equal(mapped, expected)
    assert calibration.realized_cost(COSTS, np.array(1), np.array(2)) == COSTS[1, 2]


def test_realized_cost_out_of_range_under_jit():
    acts, labels = np.array([0, -1, 3, 2, 0]), np.array([0, 0, 0, 5, -1])
    cost = jax.jit(calibration.realized_cost)(COSTS, acts, labels)
    np.testing.assert_array_equal(np.isnan(cost), [False, True, True, True, True])


def test_expected_costs_come_true():
    """Where the probabilities are right, decisions cost on average what they expect, and no threshold costs less."""
    probs, labels, weights = population()
    decision = calibration.least_cost_decision(FRAUD, probs=probs, reject_cost=4.0)
    cost = calibration.realized_cost(FRAUD, decision.act, labels, reject_cost=4.0)
    realized, expected = (jaxsoftmax.weighted_mean(x, weights) for x in (cost, decision.cost))
    np.testing.assert_allclose(realized, expected, rtol=1e-5)

    asymmetric = np.float32([[0.0, 7.0], [3.0, 0.0]])
    curve = calibration.policy_cost_curve(asymmetric, labels, probs=probs, weights=weights)
    best = float(curve.threshold[np.argmin(curve.cost)])
    np.testing.assert_allclose(best, calibration.decision_threshold(asymmetric), atol=0.0051)
    free = calibration.least_cost_decision(asymmetric, probs=probs)
    realized = calibration.realized_cost(asymmetric, free.act, labels)
    np.testing.assert_allclose(jaxsoftmax.weighted_mean(realized, weights), curve.cost.min(), rtol=1e-4)


@pytest.mark.parametrize("per_row", [False, True])
def test_policy_cost_curve(per_row):
    """Against numpy, threshold by threshold, with probabilities that are thresholds."""
    rng = np.random.default_rng(4)
    size = 60
    p = (rng.integers(0, 11, size) / 10).astype(np.float32)
    labels, weights = rng.integers(0, 2, size), rng.integers(0, 3, size)
    costs = rng.normal(size=(size, 2, 2)).astype(np.float32) if per_row else FRAUD
    thresholds = np.float32([-0.1, 0.0, 0.3, 0.5, 0.95, 1.0])
    curve = calibration.policy_cost_curve(
        costs, labels, probs=np.stack([1 - p, p], -1), thresholds=thresholds, weights=weights
    )
    for k, threshold in enumerate(thresholds):
        flag = p > threshold
        own = np.array([(costs[n] if per_row else costs)[int(flag[n]), labels[n]] for n in range(size)], np.float64)
        np.testing.assert_allclose(curve.cost[k], (weights * own).sum() / weights.sum(), rtol=1e-5)
        np.testing.assert_allclose(curve.flagged[k], weights[flag].sum() / weights.sum(), rtol=1e-6)
        hits = weights[flag & (labels == 1)].sum()
        np.testing.assert_allclose(curve.recall[k], hits / weights[labels == 1].sum(), rtol=1e-6)
        np.testing.assert_allclose(curve.precision[k], hits / max(weights[flag].sum(), 1), rtol=1e-6)
    assert curve.flagged[0] == 1 and curve.flagged[-1] == 0
    np.testing.assert_array_equal(curve.threshold, thresholds)


def test_policy_cost_curve_defaults_and_transformations():
    rng = np.random.default_rng(5)
    logits = LOGITS[:, :2]
    labels = rng.integers(0, 2, 40)
    curve = calibration.policy_cost_curve(FRAUD, labels, logits=logits)
    np.testing.assert_array_equal(curve.threshold, np.float32(np.arange(101) / 100))
    p = softmax(logits)[:, 1]
    flagged = [(p > t).mean() for t in np.arange(101) / 100]
    np.testing.assert_allclose(curve.flagged, flagged, atol=1e-6)
    jitted = jax.jit(lambda c, y, z: calibration.policy_cost_curve(c, y, logits=z))(FRAUD, labels, logits)
    stacked = np.stack([logits, -logits])
    mapped = jax.vmap(lambda z: calibration.policy_cost_curve(FRAUD, labels, logits=z))(stacked)
    for ours, once, twice in zip(curve, jitted, mapped, strict=True):
        np.testing.assert_allclose(once, ours, rtol=1e-6)
        np.testing.assert_allclose(twice[0], ours, rtol=1e-6)
    by_costs = jax.grad(lambda c: calibration.policy_cost_curve(c, labels, logits=logits).cost[50])(FRAUD)
    flag = p > 0.5
    shares = [[np.mean((flag == act) & (labels == label)) for label in (0, 1)] for act in (0, 1)]
    np.testing.assert_allclose(by_costs, shares, rtol=1e-5)


def test_policy_cost_curve_without_rows_and_with_padding():
    none = calibration.policy_cost_curve(FRAUD, np.zeros(0, int), probs=np.zeros((0, 2), np.float32))
    assert np.all(np.asarray(none.cost) == 0) and none.cost.shape == (101,)
    probs, labels = np.float32([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1])
    plain = calibration.policy_cost_curve(FRAUD, labels, probs=probs)
    padded = calibration.policy_cost_curve(
        FRAUD,
        np.append(labels, -100),
        probs=np.concatenate([probs, np.float32([[np.nan, 7.0]])]),
        weights=np.array([True, True, False]),
    )
    for ours, theirs in zip(padded, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


# Bad input.

Y = np.array([0, 1, 1])
P = np.float32([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]])
FUNCTIONS = {
    "least_cost_decision": (calibration.least_cost_decision, {"costs": FRAUD}),
    "policy_cost_curve": (calibration.policy_cost_curve, {"costs": FRAUD, "labels": Y}),
    "realized_cost": (calibration.realized_cost, {"costs": FRAUD, "acts": Y, "labels": Y}),
    "decision_threshold": (calibration.decision_threshold, {"costs": FRAUD}),
}
DECISION, CURVE = ("least_cost_decision",), ("policy_cost_curve",)
REALIZED, THRESHOLD = ("realized_cost",), ("decision_threshold",)
BOTH = DECISION + CURVE
BAD = [
    (BOTH, {}, TypeError, "exactly one of logits and probs must be given"),
    (BOTH, {"logits": P, "probs": P}, TypeError, "exactly one of logits and probs must be given"),
    (BOTH, {"logits": Y}, TypeError, "logits must have a floating dtype"),
    (BOTH, {"probs": P, "costs": FRAUD[0]}, ValueError, "costs must have shape [A, V], or [..., A, V]"),
    (BOTH, {"probs": P, "costs": [[0.0, 1.0]]}, TypeError, "costs must be an array"),
    (
        DECISION,
        {"probs": P, "costs": COSTS},
        ValueError,
        "costs must have shape [A, V], or [..., A, V] where probs has",
    ),
    (DECISION, {"logits": P, "costs": np.stack([FRAUD] * 2)}, ValueError, "or [..., A, V] where logits has [..., V]"),
    (DECISION, {"logits": P, "reject_cost": np.ones(2)}, ValueError, "reject_cost must be a scalar or have one number"),
    (DECISION, {"logits": P, "reject_cost": [1.0]}, TypeError, "reject_cost must be an array"),
    (DECISION, {"logits": P, "where": np.ones(3, bool)}, ValueError, "where must have the shape of logits, or [V]"),
    (CURVE, {"logits": LOGITS[:3]}, ValueError, "logits must have two classes"),
    (CURVE, {"probs": P, "costs": COSTS[:, :2]}, ValueError, "costs must have shape [2, 2] or [..., 2, 2]"),
    (CURVE, {"probs": P, "labels": Y[:2]}, ValueError, "labels must have the shape of probs without the class axis"),
    (CURVE, {"probs": P, "labels": Y > 0}, TypeError, "labels must be integers"),
    (CURVE, {"probs": P, "weights": np.ones(2)}, ValueError, "weights must have one number per row"),
    (CURVE, {"probs": P, "thresholds": np.float32(0.5)}, ValueError, "thresholds must have shape [K]"),
    (CURVE, {"probs": P, "thresholds": Y}, TypeError, "thresholds must have a floating dtype"),
    (REALIZED, {"acts": Y.astype(np.float32)}, TypeError, "acts must be integers"),
    (REALIZED, {"labels": Y.astype(np.float32)}, TypeError, "labels must be integers"),
    (REALIZED, {"labels": Y[:2]}, ValueError, "acts and labels must have the same shape"),
    (REALIZED, {"costs": np.stack([FRAUD] * 2)}, ValueError, "costs must have shape [A, V], or [..., A, V]"),
    (REALIZED, {"reject_cost": np.ones(2)}, ValueError, "reject_cost must be a scalar or have one number per row"),
    (THRESHOLD, {"costs": COSTS}, ValueError, "costs must have shape [2, 2] or [..., 2, 2]"),
]
INFINITE = np.float32([[0.0, np.inf], [5.0, 5.0]])
SEEN = [
    (BOTH, {"probs": P, "costs": INFINITE}, "costs must be finite; got costs=inf"),
    (REALIZED, {"costs": INFINITE, "acts": np.zeros(3, int)}, "costs must be finite; got costs=inf"),
    (DECISION, {"logits": P, "reject_cost": np.float32(np.nan)}, "reject_cost must be finite; got reject_cost=nan"),
    (BOTH, {"probs": 2 * P - 1}, "probs must lie in [0, 1]; for unnormalized scores pass logits="),
    (BOTH, {"probs": P / 2}, "probs must sum to 1 along the last axis"),
    (CURVE, {"probs": P, "labels": np.array([0, 2, 1])}, "labels must lie in [0, 2); got labels=2, row=1"),
    (CURVE, {"probs": P, "weights": -np.ones(3, np.float32)}, "weights must be finite and 0 or more"),
    (REALIZED, {"acts": np.array([0, 1, 2])}, "acts must lie in [0, 2); got acts=2"),
    (REALIZED, {"labels": np.array([0, 1, 2])}, "labels must lie in [0, 2); got labels=2, row=2"),
    (THRESHOLD, {"costs": FRAUD[::-1]}, "costs must have act 1 no cheaper than act 0 on class 0"),
    (THRESHOLD, {"costs": np.float32([[0, 1], [1, 2]])}, "costs must have act 1 no cheaper than act 0 on class 0"),
]


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "rule"),
    [pytest.param(n, *bad, id=f"{n}-{i}") for i, (names, *bad) in enumerate(BAD) for n in names],
)
def test_bad_input(name, arguments, kind, rule):
    function, good = FUNCTIONS[name]
    assert_refused(function, f"calibration.{name}", good | arguments, kind, rule)


@pytest.mark.parametrize(
    ("name", "arguments", "rule"),
    [pytest.param(n, *bad, id=f"{n}-{i}") for i, (names, *bad) in enumerate(SEEN) for n in names],
)
def test_bad_values(name, arguments, rule):
    """An error where they can be seen; where they cannot, no finite number pretends to be the result."""
    function, good = FUNCTIONS[name]
    options = good | arguments
    with pytest.raises(ValueError) as eager:
        call(function, options, jit=False)
    assert str(eager.value).startswith(f"jaxsoftmax.calibration.{name}: {rule}")
    leaves = jax.tree.leaves(call(function, options, jit=True))
    assert not all(np.all(np.isfinite(leaf)) for leaf in leaves)
