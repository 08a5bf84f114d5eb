"""What is risked by acting on the rows that a score calls certain, and leaving the others."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftmax._core import arrays, calls, checks, meshes, scalars
from jaxsoftmax.calibration.inputs import poisoned, row_weights

__all__ = ["SelectiveRisk", "selective_risk"]


class SelectiveRisk(NamedTuple):
    """A risk-coverage curve, from the least uncertain row alone to all rows, and what it comes to.

    Attributes:
        coverage: [N], the share of the rows that are accepted; rising to 1.
        risk: [N], the mean loss of the accepted rows.
        area: A scalar, the mean of the risk over the rows (AURC).
        excess: A scalar, the area less that of the best possible score, which is the loss itself (E-AURC).
    """

    coverage: jax.Array
    risk: jax.Array
    area: jax.Array
    excess: jax.Array


def selective_risk(uncertainty: ArrayLike, losses: ArrayLike, *, weights: ArrayLike | None = None) -> SelectiveRisk:
    """The risk-coverage curve: the mean loss of the least uncertain rows, for every number of rows.

    riskₖ = Σ_{i ≤ k} wᵢ lossᵢ / Σ_{i ≤ k} wᵢ, in order of uncertainty,  area = Σₖ wₖ riskₖ / Σ w

    Args:
        uncertainty: [N], floating: larger for rows that are accepted later, such as `max_probability_score`.
        losses: [N], numbers: 1 for a mistake and 0 else, or any finite cost.
        weights: [N], how much each row counts, ≥ 0; 1 by default. Rows of weight 0 stand last and change nothing.

    Returns:
        SelectiveRisk with fields [N] and scalars, float32 or wider; 0 where the weights sum to 0.

    Raises:
        TypeError: The uncertainty is not floating, or losses or weights are not numbers.
        ValueError: The shapes are not [N], or a weight that can be seen is negative, infinite or NaN.

    Numerics:
        Rows of equal uncertainty are accepted in random order, and the risk is the expected one: it does not depend on
        the order in which rows are given, a score that says nothing has the mean loss for its area, and between rows of
        equal weight the excess is never below 0, but for rounding. A NaN among the uncertainties, losses or weights
        that count, or a traced weight below 0, makes the result NaN.

    Gradient:
        Linear in the losses; the uncertainty decides the order alone and has gradient 0. All modes.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> curve = jaxsoftmax.calibration.selective_risk(jnp.array([0.1, 0.3, 0.2, 0.9]), jnp.array([0, 1, 0, 1]))
        >>> print(curve.risk, f"{curve.area:.4f} {curve.excess:.4f}")
        [0.         0.         0.33333334 0.5       ] 0.2083 0.0000

    References:
        R. El-Yaniv and Y. Wiener, On the Foundations of Noise-free Selective Classification, 2010.
        Y. Geifman, G. Uziel and R. El-Yaniv, Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers, 2019.
    """
    name = "calibration.selective_risk"
    uncertainty = checks.floating(name, uncertainty=uncertainty)
    losses = checks.numeric(name, losses=losses)
    if uncertainty.ndim != 1:
        checks.fail(ValueError, name, "uncertainty must have shape [N]", uncertainty=uncertainty)
    checks.same_shape(name, uncertainty=uncertainty, losses=losses)
    dtype = arrays.common_dtype(arrays.compute_dtype(uncertainty.dtype), losses.dtype)
    if weights is not None:
        weights = checks.numeric(name, weights=weights)
        checks.same_shape(name, uncertainty=uncertainty, weights=weights)
    rows = row_weights(name, weights, uncertainty, dtype)
    return _selective_risk_call(uncertainty.astype(dtype), losses.astype(dtype), rows)


# Ties. In random order within a group of equal scores that starts after the weight A and the loss L and ends at the
# weight B and the loss M, the loss that is expected at the weight c is L + (M - L) (c - A) / (B - A). With one row in
# each group that is the plain cumulative sum. The best score is the loss itself, whose ties are equal losses and need
# no care; as a mean over orders, the area of any score is at least as large.


@calls.compiled()
def _selective_risk_call(uncertainty: jax.Array, losses: jax.Array, weights: jax.Array) -> SelectiveRisk:
    uncertainty, losses, weights = meshes.whole((uncertainty, losses, weights))
    counted = weights != 0
    uncertainty = lax.stop_gradient(uncertainty)
    broken = counted & (jnp.isnan(uncertainty) | jnp.isnan(losses))
    losses = jnp.where(counted, losses, 0.0)
    coverage, risk, area = _curve(jnp.where(counted, uncertainty, jnp.inf), losses, weights)
    best = _curve(jnp.where(counted, lax.stop_gradient(losses), jnp.inf), losses, weights)[2]
    return poisoned(SelectiveRisk(coverage, risk, area, area - best), broken)


def _curve(scores: jax.Array, losses: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Coverage [N], risk [N] and area; rows of weight 0 come last, at full coverage."""
    size = scores.shape[0]
    # By weight within a tie, so that not even the points of the curve depend on the order of the rows.
    order = jnp.lexsort((lax.stop_gradient(weights), scores, weights == 0))
    scores, losses, weights = scores[order], losses[order], weights[order]
    accepted, lost = jnp.cumsum(weights), jnp.cumsum(weights * losses)
    accepted += lax.stop_gradient(lax.cummax(accepted) - accepted)  # summed in parallel, it may fall by a rounding
    place = jnp.arange(size, dtype=jnp.int32)
    before, lost_before = (jnp.where(place == 0, 0.0, jnp.roll(total, 1)) for total in (accepted, lost))

    new = (place == 0) | (scores != jnp.roll(scores, 1))
    last = jnp.roll(new, -1) | (place == size - 1)
    start = lax.cummax(jnp.where(new, place, 0))
    end = lax.cummin(jnp.where(last, place, size - 1), reverse=True)
    width = accepted[end] - before[start]
    passed = (accepted - before[start]) / jnp.where(width > 0, width, 1.0)
    expected = lost_before[start] + (lost[end] - lost_before[start]) * passed

    total = jnp.max(accepted, initial=0.0)
    risk = expected / jnp.where(accepted == 0, 1.0, accepted)
    return scalars.share(accepted, total), risk, scalars.share(jnp.sum(weights * risk), total)
