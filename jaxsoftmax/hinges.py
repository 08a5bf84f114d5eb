"""Multiclass hinge losses: the support vector machines that softmax classifiers are compared with."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftmax._core import arrays, calls, checks, folds, meshes, rules
from jaxsoftmax._core.meshes import Axes, AxisName

__all__ = ["hinge_loss"]


def hinge_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 1.0,
    variant: str = "crammer_singer",
    axis: int = -1,
    where: ArrayLike | None = None,
    ignore_label: int | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """The multiclass hinge loss of support vector machines, with integer labels.

    Crammer-Singer: max(0, m + max_{j≠y} zⱼ - z_y).  Weston-Watkins: Σ_{j≠y} max(0, m + zⱼ - z_y).

    Args:
        logits: [..., V], floating: scores, of any unit.
        labels: [...], integers in [0, V).
        margin: m, a scalar.
        variant: "crammer_singer" or "weston_watkins".
        axis: The class axis.
        where: Which classes are present: boolean, of the shape of the logits or [V].
        ignore_label: The one label whose rows have loss 0 and gradient 0, exactly.
        axis_name: The mesh axis, or axes, over which the classes are split, inside of `jax.shard_map`; labels count
            through all devices.

    Returns:
        [...] in the unit of the scores, float32 or wider.

    Raises:
        TypeError: The logits are not floating, the labels not integers, or the mask not boolean.
        ValueError: The axis is out of range, the class axis is empty, a shape does not fit or the variant is unknown.

    Numerics:
        From differences of scores, so that a common offset costs no digit. An absent label costs +inf; without any
        other class the loss is 0.

    Gradient:
        A subgradient: 1 on each class that violates the margin (Crammer-Singer: on the best of the others, shared by
        ties), minus their sum on the label; 0 at the kink. Kept: the arguments and two numbers per row. All modes.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> print(jaxsoftmax.hinge_loss(jnp.array([[2.0, 1.5, 1.5]]), jnp.array([0])))
        [0.5]

    References:
        K. Crammer and Y. Singer, On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines, 2001.
        J. Weston and C. Watkins, Support Vector Machines for Multi-Class Pattern Recognition, 1999.
    """
    axis = checks.static_axis("hinge_loss", axis, axis_name)
    checks.ignored("hinge_loss", ignore_label)
    checks.choice("hinge_loss", ("crammer_singer", "weston_watkins"), variant=variant)
    return _hinge_call(
        logits, labels, where, margin, axis=axis, variant=variant, ignore_label=ignore_label, axis_name=axis_name
    )


# Derivation of the hinge losses. With the margins  a_j = m + z_j - z_y  of the other classes, Crammer-Singer is
# max(0, max_j a_j) and Weston-Watkins sum_j max(0, a_j). The slope of max(0, a) is 1 where a > 0; that of the maximum
# is shared by the n classes that attain it. With u_j these slopes:  dz_j = g u_j,  dz_y = -g sum u,  dm = g sum u.


class _HingeOptions(NamedTuple):
    axes: Axes
    variant: str
    ignore_label: int | None

    @property
    def mesh(self) -> tuple[str, ...]:
        return self.axes.mesh


class _HingeResiduals(NamedTuple):
    logits: jax.Array
    labels: jax.Array
    where: jax.Array | None
    margin: jax.Array


class _Gaps(NamedTuple):
    """Per class: the logit less the label's, and 1 for the others, 0 for the label. Per row: the label's logit."""

    gap: jax.Array
    other: jax.Array
    target: jax.Array


def _gaps(options: _HingeOptions, residuals: _HingeResiduals) -> _Gaps:
    logits, labels, where, margin = residuals
    values = arrays.present(logits, where).astype(margin.dtype)
    target = meshes.total_of(arrays.own_pick(values, labels, options.axes), options.axes)
    reference = jnp.where(jnp.isneginf(target), 0.0, target)
    gap = jnp.minimum(arrays.finite(values) - reference, float(jnp.finfo(margin.dtype).max))
    return _Gaps(gap, arrays.not_label(labels, logits, options.axes, margin.dtype), target)


def _candidates(gaps: _Gaps) -> jax.Array:
    """z_j - z_y of the others, and the lowest number for the label."""
    return gaps.gap * gaps.other + (1.0 - gaps.other) * float(jnp.finfo(gaps.gap.dtype).min)


def _hinge_slopes(options: _HingeOptions, gaps: _Gaps, margin: jax.Array) -> tuple[jax.Array, jax.Array]:
    """u_j, and their sum.

    Shares sum to 1. A CPU adds them up all the same: that sum is what keeps it from writing them out.
    """
    if options.variant == "crammer_singer":
        candidates = lax.stop_gradient(_candidates(gaps))
        largest = meshes.largest_of(folds.max_along(candidates, options.axes), options.axes)
        best = 1.0 - arrays.positive(largest - candidates)
        violated = margin + largest > 0
        slopes = best * jnp.where(violated, 1.0 / arrays.row_sum(best, options.axes), 0.0)
        if jax.default_backend() != "cpu":
            return slopes, violated.astype(slopes.dtype)
    else:
        slopes = arrays.positive(margin + gaps.gap) * gaps.other
    return slopes, arrays.row_sum(slopes, options.axes)


def _hinge_forward(options: _HingeOptions, *args: Any) -> Any:
    residuals = _HingeResiduals(*args)
    axes, margin = options.axes, residuals.margin
    gaps = _gaps(options, residuals)
    if options.variant == "weston_watkins":
        loss = arrays.row_sum(jnp.maximum(margin + gaps.gap, 0.0) * gaps.other, axes)
    elif axes.mesh:
        # A maximum over devices has no derivative; the mean of those that attain it has.
        slopes, _ = _hinge_slopes(options, gaps, margin)
        loss = arrays.row_sum(slopes * jnp.maximum(margin + gaps.gap, 0.0), axes)
    else:
        loss = jnp.maximum(margin + folds.max_along(_candidates(gaps), axes), 0.0)
    # Maxima may pass over a NaN. This is 0, or NaN where the row holds NaN or inf: exp is at most exp(4), and 0 for
    # an absent class. It shares nothing with the gaps, for what two kernels share is written out.
    values = arrays.present(residuals.logits, residuals.where).astype(loss.dtype)
    loss = loss + 0.0 * arrays.row_sum(jnp.exp(values * float(jnp.finfo(loss.dtype).tiny)), axes)
    loss = jnp.where(jnp.isneginf(gaps.target), jnp.inf, loss)
    valid = arrays.is_class(residuals.labels, axes.size(residuals.logits), axes)
    loss = jnp.where(valid, loss, jnp.nan)
    if options.ignore_label is not None:
        loss = jnp.where(residuals.labels == options.ignore_label, 0.0, loss)
    return loss, residuals


def _hinge_jacobian(options: _HingeOptions, residuals: _HingeResiduals) -> tuple[jax.Array, jax.Array]:
    """dloss/dz, and dloss/dm."""
    loss, _ = _hinge_forward(options, *residuals)
    gaps = _gaps(options, residuals)
    slopes, total = _hinge_slopes(options, gaps, residuals.margin)
    by_logits = slopes - (1.0 - gaps.other) * jnp.where(jnp.isneginf(gaps.target), 0.0, total)
    broken = jnp.where(jnp.isnan(loss), jnp.nan, 0.0)
    if options.ignore_label is not None:
        counted = residuals.labels != options.ignore_label
        by_logits, total = jnp.where(counted, by_logits, 0.0), jnp.where(counted, total, 0.0)
    return by_logits + broken, total + broken


def _hinge_backward(options: _HingeOptions, residuals: _HingeResiduals, cotangent: jax.Array) -> Any:
    by_logits, by_margin = _hinge_jacobian(options, residuals)
    dlogits = (cotangent * by_logits).astype(residuals.logits.dtype)
    return dlogits, None, None, arrays.sum_to(cotangent * by_margin, residuals.margin.shape)


def _hinge_tangent(options: _HingeOptions, residuals: _HingeResiduals, tangents: Any) -> jax.Array:
    by_logits, by_margin = _hinge_jacobian(options, residuals)
    along = arrays.row_sum(by_logits * tangents[0].astype(by_logits.dtype), options.axes)
    return along + by_margin * tangents[3]


_hinge = rules.on_rows(_hinge_forward, _hinge_backward, _hinge_tangent)


@calls.compiled("axis", "variant", "ignore_label", "axis_name")
def _hinge_call(
    logits: Any,
    labels: Any,
    where: Any,
    margin: Any,
    *,
    axis: int,
    variant: str,
    ignore_label: int | None,
    axis_name: AxisName,
) -> jax.Array:
    logits = checks.floating("hinge_loss", logits=logits)
    axes = checks.class_axis("hinge_loss", axis, axis_name, logits=logits)
    logits, labels = meshes.split_alike(logits, checks.labels("hinge_loss", labels, logits, axes))
    where = checks.mask("hinge_loss", where, logits, axes)
    margin = checks.scalar("hinge_loss", arrays.compute_dtype(logits.dtype), margin=margin)
    checks.same_on_devices("hinge_loss", axes.mesh, margin=margin)
    margin = margin.reshape((1,) * logits.ndim)
    options = _HingeOptions(axes, variant, ignore_label)
    return jnp.squeeze(_hinge(options, logits, labels, where, margin), axes.one)
