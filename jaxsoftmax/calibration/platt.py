"""Platt scaling: calibration of binary scores by a line."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftmax._core import arrays, calls, checks, scalars
from jaxsoftmax.binary_losses import binary_cross_entropy
from jaxsoftmax.calibration import inputs
from jaxsoftmax.losses import weighted_mean

__all__ = ["PlattScaling", "apply_platt", "fit_platt"]


class PlattScaling(NamedTuple):
    """A line from scores to log-odds, and how it was found.

    Attributes:
        slope: A scalar, float32 or wider.
        intercept: A scalar, in nats.
        nll_before: The mean negative log-likelihood of the labels with the scores themselves as log-odds, in nats.
        nll_after: The same with slope · score + intercept.
        converged: Whether the gradient vanished to rounding.
        iterations: Newton's steps, int32.
    """

    slope: jax.Array
    intercept: jax.Array
    nll_before: jax.Array
    nll_after: jax.Array
    converged: jax.Array
    iterations: jax.Array


def fit_platt(scores: ArrayLike, labels: ArrayLike, *, weights: ArrayLike | None = None) -> PlattScaling:
    """Platt scaling of binary scores: the line from scores to log-odds, with Platt's smoothed targets.

    argmin over a, b of  Σᵢ wᵢ (softplus(uᵢ) - tᵢ uᵢ),  u = a s + b,  t = (n₊ + 1)/(n₊ + 2) or 1/(n₋ + 2)

    Args:
        scores: s, [...], floating and finite: a margin, a log-odds or any number that grows with the class 1.
        labels: [...], integers, 0 or 1.
        weights: w, [...], ≥ 0, how much each row counts; 1 by default. n₊ and n₋ are sums of weights.

    Returns:
        PlattScaling with scalar fields; `jax.vmap` over scores and labels fits many at once.

    Raises:
        TypeError: The scores are not floating or the labels not integers.
        ValueError: There are no rows, a shape does not fit, or a label or weight that can be seen is out of range;
            under jit, such a label or weight makes the result NaN.

    Numerics:
        The targets lie inside of (0, 1), so that there is a minimum for separable scores too. Newton's method on
        standardized scores, with halved steps while the loss does not fall; it has converged when a step promises less
        than the rounding of the loss. Where all scores are equal the slope is 0. Platt and scikit-learn write
        1 / (1 + exp(A s + B)): A = -a, B = -b.

    Gradient:
        None: the result is a constant to differentiation.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> scores, labels = jnp.array([-2.0, -1.0, 0.0, 1.0, 2.0]), jnp.array([0, 0, 1, 0, 1])
        >>> fit = jaxsoftmax.calibration.fit_platt(scores, labels)
        >>> print(f"{fit.slope:.4f} {fit.intercept:.4f}")
        0.4809 -0.3592

    References:
        J. Platt, Probabilistic Outputs for Support Vector Machines, 1999.
        H.-T. Lin, C.-J. Lin, R. Weng, A Note on Platt's Probabilistic Outputs for Support Vector Machines, 2007.
    """
    name = "calibration.fit_platt"
    converted = checks.floating(name, scores=scores)
    rows = checks.numeric(name, labels=labels)
    if not jnp.issubdtype(rows.dtype, jnp.integer):
        checks.fail(TypeError, name, "labels must be integers", labels=rows)
    checks.same_shape(name, labels=rows, scores=converted)
    if rows.size == 0:
        checks.fail(ValueError, name, "there must be at least one row", scores=converted)
    dtype = arrays.compute_dtype(converted.dtype)
    counts = inputs.row_weights(name, weights, rows, dtype)
    broken = jnp.any(inputs.check_labels(name, labels, 2, weights))
    return _fit_platt(converted.astype(dtype).reshape(-1), rows.reshape(-1), counts.reshape(-1), broken)


def apply_platt(scores: ArrayLike, calibrator: PlattScaling) -> jax.Array:
    """The calibrated log-odds of binary scores; their logistic function is the probability of the class 1.

    a s + b

    Args:
        scores: s, [...], floating.
        calibrator: From `fit_platt`.

    Returns:
        [...] in nats, float32 or wider.

    Raises:
        TypeError: The scores are not floating, or the calibrator is another.

    Gradient:
        a by the scores, s and 1 by the slope and the intercept. All modes.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsoftmax
        >>> scores, labels = jnp.array([-2.0, -1.0, 0.0, 1.0, 2.0]), jnp.array([0, 0, 1, 0, 1])
        >>> fit = jaxsoftmax.calibration.fit_platt(scores, labels)
        >>> print(jnp.round(jax.nn.sigmoid(jaxsoftmax.calibration.apply_platt(jnp.array([-2.0, 2.0]), fit)), 2))
        [0.21 0.65]

    References:
        J. Platt, Probabilistic Outputs for Support Vector Machines, 1999.
    """
    name = "calibration.apply_platt"
    scores = checks.floating(name, scores=scores)
    if not isinstance(calibrator, PlattScaling):
        checks.fail(TypeError, name, "calibrator must be what fit_platt returns", calibrator=calibrator)
    dtype = arrays.common_dtype(arrays.compute_dtype(scores.dtype), calibrator.slope.dtype)
    return calibrator.slope.astype(dtype) * scores.astype(dtype) + calibrator.intercept.astype(dtype)


# Platt's line.
#
# On standardized scores x the loss  l(a, b) = mean of (softplus(u) - t u),  u = a x + b,  has the gradient
# g = mean of (sigmoid(u) - t) (x, 1)  and the Hessian  H = mean of sigmoid(u) sigmoid(-u) (x, 1)(x, 1)'.  A Newton step
# s = -H^-1 g  promises a fall of  -g's / 2,  which is what is compared with the rounding of the loss, and is taken as
# far as it keeps a small part of that promise.

_NEWTON_STEPS = 100
_HALVINGS = 20
_LEAST_FALL = 1e-4


@calls.compiled()
def _fit_platt(scores: jax.Array, labels: jax.Array, weights: jax.Array, broken: jax.Array) -> PlattScaling:
    scores, weights = lax.stop_gradient(scores), lax.stop_gradient(weights)
    scores = jnp.where(weights == 0, 0.0, scores)
    dtype, positive = scores.dtype, labels == 1
    center = weighted_mean(scores, weights)
    widest = jnp.max(jnp.where(weights == 0, 0.0, jnp.abs(scores - center)))
    unit = jnp.where(widest == 0, 1.0, widest)
    unit = unit * jnp.sqrt(jnp.where(widest == 0, 1.0, weighted_mean(jnp.square((scores - center) / unit), weights)))
    x = jnp.where(weights == 0, 0.0, (scores - center) / unit)

    ones, zeros = jnp.sum(jnp.where(positive, weights, 0.0)), jnp.sum(jnp.where(positive, 0.0, weights))
    targets = jnp.where(positive, (ones + 1.0) / (ones + 2.0), 1.0 / (zeros + 2.0))
    start = jnp.stack([jnp.zeros((), dtype), jnp.log((ones + 1.0) / (zeros + 1.0))])
    (slope, intercept), promised, steps = _newton(x, targets, weights, start)

    line = jnp.stack([slope / unit, intercept - slope * (center / unit)])
    truth = positive.astype(dtype)
    before = weighted_mean(binary_cross_entropy(scores, truth), weights)
    after = weighted_mean(binary_cross_entropy(slope * x + intercept, truth), weights)
    line, before, after = inputs.poisoned((line, before, after), broken)
    converged = (promised <= float(jnp.finfo(dtype).eps)) & jnp.all(jnp.isfinite(line))
    return PlattScaling(line[0], line[1], before, after, converged, steps)


def _newton(x: jax.Array, targets: jax.Array, weights: jax.Array, start: jax.Array) -> Any:
    """(a, b), the fall that the last step promised, and the number of steps."""

    def loss(line: jax.Array) -> jax.Array:
        return weighted_mean(binary_cross_entropy(line[0] * x + line[1], targets), weights)

    def direction(line: jax.Array) -> tuple[jax.Array, jax.Array]:
        u = line[0] * x + line[1]
        error, curvature = scalars.sigmoid(u) - targets, scalars.sigmoid(u) * scalars.sigmoid(-u)
        by_slope, by_intercept = weighted_mean(error * x, weights), weighted_mean(error, weights)
        mixed, last = weighted_mean(curvature * x, weights), weighted_mean(curvature, weights)
        last = jnp.where(last == 0, 1.0, last)
        # by elimination of the intercept; the curvature along the slope is a variance, and 0 where all scores are equal
        spread = weighted_mean(curvature * jnp.square(x - mixed / last), weights)
        along = by_slope - mixed / last * by_intercept
        step = -jnp.where(spread == 0, 0.0, along / jnp.where(spread == 0, 1.0, spread))
        step = jnp.stack([step, -(by_intercept + mixed * step) / last])
        return step, -(by_slope * step[0] + by_intercept * step[1])

    def unfinished(state: Any) -> jax.Array:
        _, promised, steps = state
        return (promised > float(jnp.finfo(start.dtype).eps)) & (steps < _NEWTON_STEPS)

    def improve(state: Any) -> Any:
        line, _, steps = state
        step, promised = direction(line)
        value = loss(line)

        def refused(trial: Any) -> jax.Array:
            share, halvings = trial
            fell = loss(line + share * step) <= value - _LEAST_FALL * share * promised + _rounding(value)
            return ~fell & (halvings < _HALVINGS)

        share, _ = lax.while_loop(refused, lambda t: (t[0] * 0.5, t[1] + 1), (jnp.ones((), start.dtype), 0))
        return line + share * step, promised, steps + 1

    return lax.while_loop(unfinished, improve, (start, jnp.full((), jnp.inf, start.dtype), jnp.int32(0)))


def _rounding(loss: jax.Array) -> jax.Array:
    return 4.0 * float(jnp.finfo(loss.dtype).eps) * loss
