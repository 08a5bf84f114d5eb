"""The entropy of a distribution per row; one value per row, in float32 or wider."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsoftmax._core import arrays, calls, checks, folds, passes, rules
from jaxsoftmax._core.meshes import Axes, AxisName

__all__ = ["entropy"]


def entropy(
    logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    base: float | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """The entropy of the softmax distribution.

    H(p) = -Σⱼ pⱼ log pⱼ

    Args:
        logits: [..., V], floating.
        axis: The class axis.
        where: Which classes are present: boolean, of the shape of the logits or [V].
        temperature: T ≥ 0 divides the logits; a scalar or one number per row.
        base: Of the logarithm: None for nats, 2 for bits.
        axis_name: The mesh axis, or axes, over which the classes are split, inside of `jax.shard_map`.

    Returns:
        [...] in nats, or in units of the base, float32 or wider; between 0 and log V.

    Raises:
        TypeError: The logits are not floating, or the mask is not boolean.
        ValueError: The axis is out of range, the class axis is empty, a shape does not fit or an option is out of
            range.

    Numerics:
        log1p(Σ of the other exponentials) + Σⱼ pⱼ (max z - zⱼ) / T, all terms ≥ 0: exact also where one class has
        nearly all of the mass. 0 in a row without any class.

    Gradient:
        dzⱼ = -pⱼ (dⱼ - Σₖ pₖ dₖ) / T with d = (z - max z) / T. Kept: the arguments and two numbers per row. All modes,
        as for `soft_cross_entropy`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> print(jaxsoftmax.entropy(jnp.zeros((1, 8)), base=2))
        [3.]

    References:
        C. E. Shannon, A Mathematical Theory of Communication, 1948.
    """
    axis = checks.static_axis("entropy", axis, axis_name)
    checks.numbers_in("entropy", 0, math.inf, temperature=temperature)
    checks.positive("entropy", base=base)
    if base == 1:
        checks.fail(ValueError, "entropy", "base must not be 1", base=base)
    return _entropy_call(logits, where, temperature, axis=axis, axis_name=axis_name, base=base)


# Derivation. With d = (z - m) / T, e = exp(d), S = sum e, others = S - 1 (arrays.excess) and L = log S = log1p(others):
# f = L - sum_j p_j d_j, or sum_j p_j (L - d_j), where all terms are >= 0.  dp_j = p_j (dd_j - sum p dd), dL = sum p dd,
# hence  df = -sum_j p_j (d_j - mu) dd_j  with mu = sum p d: centred at the largest class, where d = 0.


class EntropyResiduals(NamedTuple):
    """The arguments, and per row: m and S - 1."""

    logits: jax.Array
    where: jax.Array | None
    temperature: jax.Array | None
    shift: jax.Array
    others: jax.Array


def _entropy_scaled(residuals: EntropyResiduals) -> jax.Array:
    return arrays.centred(arrays.present(residuals.logits, residuals.where), residuals.shift, residuals.temperature)


def entropy_forward(axes: Axes, logits: Any, where: Any, temperature: Any) -> Any:
    residuals = EntropyResiduals(
        logits, where, temperature, *arrays.excess(arrays.present(logits, where), axes, temperature)
    )
    scaled = _entropy_scaled(residuals._replace(shift=passes.opaque_off_cpu(residuals.shift)))
    log_total = jnp.log1p(residuals.others)
    if folds.are_many(scaled, axes) and not arrays.sums_at_once(scaled, axes) and len(axes.dims) == 1:
        # In one kernel, which three sums side by side would break.
        probabilities = jnp.exp(scaled) * (1.0 / (1.0 + residuals.others))
        return arrays.row_sum(probabilities * (log_total - arrays.held(scaled)), axes), residuals
    return log_total - _mean_logit(scaled, residuals.others, axes), residuals


def _mean_logit(scaled: jax.Array, others: jax.Array, axes: Axes) -> jax.Array:
    """mu = sum p d, where absent classes have p = 0."""
    return arrays.mean_under(jnp.exp(scaled), arrays.held(scaled), 1.0 + others, axes)


def _entropy_slopes(axes: Axes, scaled: jax.Array, others: jax.Array) -> jax.Array:
    """-p (d - mu)."""
    centre = _mean_logit(scaled, others, axes)
    return jnp.exp(scaled) * (centre - arrays.held(scaled)) * (1.0 / (1.0 + others))


def entropy_backward(axes: Axes, residuals: EntropyResiduals, cotangent: jax.Array) -> Any:
    scaled = _entropy_scaled(residuals)
    gradient = cotangent * _entropy_slopes(axes, scaled, residuals.others)
    dlogits, dtemperature = arrays.to_inputs(gradient, scaled, residuals.temperature, axes)
    return dlogits.astype(residuals.logits.dtype), None, dtemperature


def entropy_tangent(axes: Axes, residuals: EntropyResiduals, tangents: Any) -> jax.Array:
    scaled = _entropy_scaled(residuals)
    vector = arrays.from_inputs(tangents[0], tangents[2], scaled, residuals.temperature)
    return arrays.row_sum(_entropy_slopes(axes, scaled, residuals.others) * vector, axes)


_entropy = rules.on_rows(
    entropy_forward,
    entropy_backward,
    entropy_tangent,
    long_from=folds.LONG_WITHOUT_ONE,
    value_long_from=folds.LONG_SUMMED_TWICE,
)


@calls.compiled("axis", "base", "axis_name")
def _entropy_call(
    logits: Any, where: Any, temperature: Any, *, axis: int, base: float | None, axis_name: AxisName
) -> jax.Array:
    logits = checks.floating("entropy", logits=logits)
    axes, where, temperature = checks.rows("entropy", logits, where, temperature, axis, axis_name)
    nats = jnp.squeeze(_entropy(axes, logits, where, temperature), axes.one)
    return nats if base is None else nats / math.log(base)
