"""From probabilities to acts: what costs least, when to leave it to somebody else, and what it came to.

Costs are one matrix everywhere, `costs[act, class]`: what it costs to do this where that is true. For fraud, with the
acts "pass" and "flag" and the classes "honest" and "fraud":

    costs = jnp.array([[0.0, 500.0],    # pass: nothing, or the loss
                       [5.0,   5.0]])   # flag: somebody looks at it
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxsoftmax._core import arrays, calls, checks, scalars
from jaxsoftmax._core.meshes import Axes
from jaxsoftmax.calibration.inputs import check_labels, poisoned, visible
from jaxsoftmax.calibration.rows import distributions

__all__ = [
    "Decision",
    "PolicyCosts",
    "decision_threshold",
    "least_cost_decision",
    "policy_cost_curve",
    "realized_cost",
]


class Decision(NamedTuple):
    """The act with the least expected cost.

    Attributes:
        act: [...], int32: the row of the cost matrix, A where rejecting costs less than all of them, and -1 where the
            costs are NaN.
        cost: [...], the expected cost of it.
        costs: [..., A], the expected cost of each act; with a reject option [..., A + 1].
    """

    act: jax.Array
    cost: jax.Array
    costs: jax.Array


class PolicyCosts(NamedTuple):
    """What the policies "flag where p > threshold" cost, one for each threshold.

    Attributes:
        threshold: [K], as given.
        cost: [K], the mean cost of a row.
        flagged: [K], the share of the rows that are flagged.
        recall: [K], the share of the rows of class 1 that are flagged; 0 where there are none.
        precision: [K], the share of the flagged rows that are of class 1; 0 where none is flagged.
    """

    threshold: jax.Array
    cost: jax.Array
    flagged: jax.Array
    recall: jax.Array
    precision: jax.Array


def least_cost_decision(
    costs: ArrayLike,
    *,
    logits: ArrayLike | None = None,
    probs: ArrayLike | None = None,
    reject_cost: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> Decision:
    """The act with the least expected cost: the Bayes decision, for probabilities that are right.

    argminₐ Σⱼ pⱼ costs[a, j]

    Args:
        costs: [A, V], numbers: costs[a, j] for act a where class j is true. Or [..., A, V], of each row by itself, such
            as the amount of a payment. Negative ones are gains.
        logits: [..., V], floating; either these or the probabilities.
        probs: [..., V], floating: a distribution per row.
        reject_cost: What it costs to decide nothing (to ask a doctor): a scalar, or [...], one per row. Without it
            there is no such act.
        where: Which classes are present: boolean, of the shape of the logits or [V].

    Returns:
        Decision with fields [...] and [..., A], float32 or wider.

    Raises:
        TypeError: Neither or both of logits and probs are given, or a dtype is wrong.
        ValueError: A shape does not fit, a cost that can be seen is not finite, or probabilities that can be seen are
            no distributions; where they are traced, the costs of the row are NaN and the act is -1.

    Numerics:
        Products are summed in float32 or wider at full precision. Of equal costs the lower act is taken, and the reject
        option only where it costs less than every act. In a row without any class all expected costs are 0.

    Gradient:
        The costs are differentiable in the probabilities and in the matrix, with the act a constant. All modes.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> costs = jnp.array([[0.0, 500.0], [5.0, 5.0]])
        >>> probs = jnp.array([[0.995, 0.005], [0.98, 0.02]])
        >>> decision = jaxsoftmax.calibration.least_cost_decision(costs, probs=probs)
        >>> print(decision.act, decision.cost)
        [0 1] [2.5 5. ]

    References:
        C. K. Chow, On Optimum Recognition Error and Reject Tradeoff, 1970.
        C. Elkan, The Foundations of Cost-Sensitive Learning, 2001.
    """
    name = "calibration.least_cost_decision"
    rows = distributions(name, logits, probs, where)
    owner = "logits" if probs is None else "probs"
    dtype, batch = rows.probs.dtype, rows.probs.shape[:-1]
    matrix = _matrix(name, costs, dtype)
    if matrix.shape[-1] != rows.probs.shape[-1] or (matrix.ndim > 2 and matrix.shape[:-2] != batch):
        rule = f"costs must have shape [A, V], or [..., A, V] where {owner} has [..., V]"
        checks.fail(ValueError, name, rule, costs=matrix, **{owner: rows.probs})
    reject = None
    if reject_cost is not None:
        reject = checks.numeric(name, reject_cost=reject_cost)
        if reject.shape not in ((), batch):
            rule = "reject_cost must be a scalar or have one number per row"
            checks.fail(ValueError, name, rule, reject_cost=reject, **{owner: rows.probs})
        _check_finite(name, reject_cost=reject)
        reject = jnp.broadcast_to(reject.astype(dtype), batch)
    return _decision(rows.probs, matrix, reject, rows.broken)


def realized_cost(
    costs: ArrayLike, acts: ArrayLike, labels: ArrayLike, *, reject_cost: ArrayLike | None = None
) -> jax.Array:
    """What acts cost where the labels are true.

    costs[act, label]

    Args:
        costs: [A, V], numbers, or [..., A, V], of each row by itself.
        acts: [...], integers in [0, A), and A for a rejected row, as in `Decision.act`.
        labels: [...], integers in [0, V).
        reject_cost: What a rejected row costs: a scalar, or [...]. Without it, A is no act.

    Returns:
        [...], float32 or wider, one cost per row; `weighted_mean` takes their mean.

    Raises:
        TypeError: The acts or labels are not integers, or the costs not numbers.
        ValueError: A shape does not fit, a cost that can be seen is not finite, or acts or labels that can be seen are
            out of range; where they are traced, the cost of the row is NaN.

    Gradient:
        Linear in the costs. All modes.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> costs = jnp.array([[0.0, 500.0], [5.0, 5.0]])
        >>> acts, labels = jnp.array([0, 0, 1, 2]), jnp.array([0, 1, 0, 1])
        >>> print(jaxsoftmax.calibration.realized_cost(costs, acts, labels, reject_cost=1.0))
        [  0. 500.   5.   1.]
    """
    name = "calibration.realized_cost"
    matrix = _matrix(name, costs, None)
    acts, labels = checks.integers(name, acts=acts), checks.integers(name, labels=labels)
    checks.same_shape(name, acts=acts, labels=labels)
    batch = acts.shape
    if matrix.ndim > 2 and matrix.shape[:-2] != batch:
        checks.fail(ValueError, name, "costs must have shape [A, V], or [..., A, V]", costs=matrix, acts=acts)
    number, classes = matrix.shape[-2:]
    reject = jnp.zeros((), matrix.dtype)
    if reject_cost is not None:
        reject = checks.numeric(name, reject_cost=reject_cost).astype(matrix.dtype)
        if reject.shape not in ((), batch):
            rule = "reject_cost must be a scalar or have one number per row"
            checks.fail(ValueError, name, rule, reject_cost=reject, acts=acts)
        _check_finite(name, reject_cost=reject)
        number += 1
    if visible(acts):
        seen = np.asarray(acts)
        outside = seen[(seen < 0) | (seen >= number)]
        if outside.size:
            checks.fail(ValueError, name, f"acts must lie in [0, {number})", acts=int(outside.flat[0]))
    broken = (acts < 0) | (acts >= number) | check_labels(name, labels, classes)
    return _realized(matrix, acts, labels, jnp.broadcast_to(reject, batch), broken)


def decision_threshold(costs: ArrayLike) -> jax.Array:
    """The probability of class 1 above which act 1 costs less than act 0.

    (c₁₀ - c₀₀) / ((c₁₀ - c₀₀) + (c₀₁ - c₁₁)),  with cₐⱼ = costs[a, j]

    Args:
        costs: [2, 2], numbers, or [..., 2, 2]: costs[a, j] for act a where class j is true. Act 1 must not be cheaper
            on class 0 nor dearer on class 1: it is the act for class 1.

    Returns:
        [...], float32 or wider, in [0, 1]. "Act 1 where p > threshold" is what `least_cost_decision` does, except for
        rounding in rows that are at the threshold.

    Raises:
        TypeError: The costs are not numbers.
        ValueError: The shape is another, or costs that can be seen are not finite or in the wrong order, so that the
            threshold would be one below which act 1 pays, or there would be none; where they are traced, it is NaN.

    Numerics:
        Where act 1 costs nothing more on class 0 the threshold is 0; where it gains nothing on class 1 it is 1, and no
        probability is above it. If the acts cost the same everywhere it is 1: act 0, as among all equal costs.

    Gradient:
        By the quotient rule, in all modes.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> print(jaxsoftmax.calibration.decision_threshold(jnp.array([[0.0, 500.0], [5.0, 5.0]])))
        0.01

    References:
        C. Elkan, The Foundations of Cost-Sensitive Learning, 2001.
    """
    name = "calibration.decision_threshold"
    matrix = _matrix(name, costs, None)
    if matrix.shape[-2:] != (2, 2):
        checks.fail(ValueError, name, "costs must have shape [2, 2] or [..., 2, 2]", costs=matrix)
    if visible(matrix):
        seen = np.asarray(matrix)
        outside = seen[(seen[..., 1, 0] < seen[..., 0, 0]) | (seen[..., 0, 1] < seen[..., 1, 1])]
        if outside.size:
            rule = "costs must have act 1 no cheaper than act 0 on class 0, and no dearer on class 1"
            checks.fail(ValueError, name, rule, costs=outside.reshape(-1, 2, 2)[0].tolist())
    return _threshold(matrix)


def policy_cost_curve(
    costs: ArrayLike,
    labels: ArrayLike,
    *,
    logits: ArrayLike | None = None,
    probs: ArrayLike | None = None,
    thresholds: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> PolicyCosts:
    """The mean cost of "act 1 where the probability of class 1 is above a threshold", for many thresholds.

    Args:
        costs: [2, 2], numbers: costs[a, j] for act a where class j is true; or [..., 2, 2], of each row by itself.
        labels: [...], 0 or 1.
        logits: [..., 2], floating; either these or the probabilities.
        probs: [..., 2], floating: a distribution per row.
        thresholds: [K], floating; 0, 0.01, ..., 1 by default. At 1 no row is flagged; below 0, every row.
        weights: [...], how much each row counts, ≥ 0; 1 by default.

    Returns:
        PolicyCosts with fields [K], float32 or wider; 0 where the weights sum to 0.

    Raises:
        TypeError: Neither or both of logits and probs are given, or a dtype is wrong.
        ValueError: A shape does not fit, a cost that can be seen is not finite, or labels, weights or probabilities
            that can be seen are out of range; where they are traced, the result is NaN.

    Numerics:
        Every threshold sums over the rows by itself: time grows as N K, and memory does not. With calibrated
        probabilities the least cost is near `decision_threshold`.

    Gradient:
        Linear in the costs, 0 by logits and probabilities. All modes.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> costs, labels = jnp.array([[0.0, 500.0], [5.0, 5.0]]), jnp.array([0, 0, 1, 0])
        >>> fraud, thresholds = jnp.array([0.1, 0.6, 0.8, 0.3]), jnp.array([0.0, 0.5, 0.9])
        >>> probs = jnp.stack([1.0 - fraud, fraud], axis=1)
        >>> print(jaxsoftmax.calibration.policy_cost_curve(costs, labels, probs=probs, thresholds=thresholds).cost)
        [  5.    2.5 125. ]
    """
    name = "calibration.policy_cost_curve"
    rows = distributions(name, logits, probs, weights=weights)
    owner = "logits" if probs is None else "probs"
    if rows.probs.shape[-1] != 2:
        checks.fail(ValueError, name, f"{owner} must have two classes", **{owner: rows.probs})
    dtype, batch = rows.probs.dtype, rows.probs.shape[:-1]
    matrix = _matrix(name, costs, dtype)
    if matrix.shape not in ((2, 2), (*batch, 2, 2)):
        checks.fail(ValueError, name, "costs must have shape [2, 2] or [..., 2, 2]", costs=matrix)
    column = checks.labels(name, labels, rows.probs, Axes((rows.probs.ndim - 1,)), owner)[..., 0]
    broken = rows.broken | check_labels(name, column, 2, rows.weights)
    # Quotients rounded once, by numpy: the compiler would multiply by 0.01.
    grid = np.asarray(np.arange(101) / 100, dtype) if thresholds is None else thresholds
    grid = checks.floating(name, thresholds=grid).astype(dtype)
    if grid.ndim != 1:
        checks.fail(ValueError, name, "thresholds must have shape [K]", thresholds=grid)
    counts = jnp.ones(batch, dtype) if rows.weights is None else rows.weights
    return _policy_costs(matrix, column, rows.probs[..., 1], grid, counts, broken)


def _matrix(name: str, costs: ArrayLike, dtype: Any) -> jax.Array:
    """Costs [..., A, V] in the compute dtype, or the wider of this one and theirs; finite, where they can be seen."""
    matrix = checks.numeric(name, costs=costs)
    if matrix.ndim < 2 or 0 in matrix.shape[-2:]:
        checks.fail(ValueError, name, "costs must have shape [A, V], or [..., A, V]", costs=matrix)
    _check_finite(name, costs=matrix)
    return matrix.astype(arrays.common_dtype(dtype or jnp.dtype(jnp.float32), matrix.dtype))


def _check_finite(name: str, **array: jax.Array) -> None:
    ((argument, value),) = array.items()
    if visible(value):
        wide = np.asarray(value).astype(np.float64)
        if not np.all(np.isfinite(wide)):
            first = float(wide[~np.isfinite(wide)].flat[0])
            checks.fail(ValueError, name, f"{argument} must be finite", **{argument: first})


@calls.compiled()
def _threshold(matrix: jax.Array) -> jax.Array:
    dearer = matrix[..., 1, 0] - matrix[..., 0, 0]
    gain = matrix[..., 0, 1] - matrix[..., 1, 1]
    nothing = gain == 0
    threshold = jnp.where(nothing, 1.0, dearer / jnp.where(nothing, 1.0, dearer + gain))
    return jnp.where((dearer >= 0) & (gain >= 0), threshold, jnp.nan)


@calls.compiled()
def _decision(probs: jax.Array, matrix: jax.Array, reject: Any, broken: jax.Array) -> Decision:
    dtype = matrix.dtype
    sums = "...j,aj->...a" if matrix.ndim == 2 else "...j,...aj->...a"
    costs = jnp.einsum(sums, probs.astype(dtype), matrix, precision=lax.Precision.HIGHEST)
    if reject is not None:
        costs = jnp.concatenate([costs, reject.astype(dtype)[..., None]], axis=-1)
    costs = jnp.where(broken[..., None], jnp.nan, costs)
    act = jnp.argmin(lax.stop_gradient(costs), axis=-1)[..., None]
    unknown = jnp.any(jnp.isnan(costs), axis=-1)
    cost = jnp.take_along_axis(costs, act, axis=-1)[..., 0]
    return Decision(jnp.where(unknown, -1, act[..., 0]).astype(jnp.int32), jnp.where(unknown, jnp.nan, cost), costs)


@calls.compiled()
def _realized(matrix: jax.Array, acts: jax.Array, labels: jax.Array, reject: jax.Array, broken: jax.Array) -> jax.Array:
    number, classes = matrix.shape[-2:]
    row, column = jnp.clip(acts, 0, number - 1), jnp.clip(labels, 0, classes - 1)
    if matrix.ndim == 2:
        cost = matrix[row, column]
    else:
        chosen = jnp.take_along_axis(matrix, row[..., None, None], axis=-2)[..., 0, :]
        cost = jnp.take_along_axis(chosen, column[..., None], axis=-1)[..., 0]
    return jnp.where(broken, jnp.nan, jnp.where(acts == number, reject, cost))


@calls.compiled()
def _policy_costs(
    matrix: jax.Array, labels: jax.Array, prob: jax.Array, thresholds: jax.Array, weights: jax.Array, broken: jax.Array
) -> PolicyCosts:
    positive = labels == 1
    passed, flagged = (jnp.where(positive, matrix[..., act, 1], matrix[..., act, 0]) for act in (0, 1))
    of_class_1 = jnp.where(positive, weights, 0.0)

    def at(threshold: jax.Array) -> Any:
        flag = prob > threshold
        spent = jnp.sum(weights.astype(matrix.dtype) * jnp.where(flag, flagged, passed))
        return spent, jnp.sum(jnp.where(flag, weights, 0.0)), jnp.sum(jnp.where(flag, of_class_1, 0.0))

    spent, taken, hits = jax.vmap(at)(thresholds)
    every, events = jnp.sum(weights), jnp.sum(of_class_1)
    shares = scalars.share(taken, every), scalars.share(hits, events), scalars.share(hits, taken)
    return poisoned(PolicyCosts(thresholds, scalars.share(spent, every.astype(matrix.dtype)), *shares), broken)
