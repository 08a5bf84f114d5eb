"""Losses of logits in memory with one label per row; one value per row, in float32 or wider."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsoftmax import objectives
from jaxsoftmax._core import arrays, calls, checks, meshes, rules, scalars
from jaxsoftmax._core.meshes import Axes, AxisName
from jaxsoftmax.statistics import Head, checked_head, dense

__all__ = ["cross_entropy", "focal_loss", "poly_loss", "smooth_labels", "weighted_mean"]


def cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    smoothing: str = "uniform",
    z_loss: ArrayLike = 0.0,
    temperature: ArrayLike | None = None,
    logit_cap: float | None = None,
    ignore_label: int | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Softmax cross entropy with integer labels.

    w[y] ((1 - ε) · -log p[y] + ε · mean over present classes of -log pⱼ) + z_loss · (log Σ exp zⱼ)²

    Args:
        logits: [..., V], floating.
        labels: [...], integers in [0, V).
        axis: The class axis.
        where: Which classes are present: boolean, of the shape of the logits or [V].
        class_weights: w, [V]; multiplies each row's cross entropy, smoothing included, by the weight of its label, and
            never the z-loss. A mean as in torch divides by the sum of the labels' weights: see `weighted_mean`.
        label_smoothing: ε in [0, 1].
        smoothing: "uniform" for ε/K on each of the K present classes, "others" for ε/(K-1) on all but the label.
        z_loss: Coefficient ≥ 0 of the squared log normalizer.
        temperature: T ≥ 0 divides the logits; a scalar or one number per row.
        logit_cap: Logits become cap · tanh(z / cap), before the temperature.
        ignore_label: The one label whose rows have loss 0 and gradient 0, exactly.
        axis_name: The mesh axis, or axes, over which the classes are split, inside of `jax.shard_map`; labels count
            through all devices.

    Returns:
        [...] in nats, float32 or wider.

    Raises:
        TypeError: The logits are not floating, the labels not integers, or the mask not boolean.
        ValueError: The axis is out of range, the class axis is empty, a shape does not fit or an option is out of
            range.

    Numerics:
        log Σ_{j≠y} exp(zⱼ - z_y) is summed by itself, so that the loss of a certain label is 4.1e-08 for logits [17, 0]
        and not 0. An absent label costs +inf with gradient 0 on that class; a label outside of [0, V) makes its row
        NaN.

    Gradient:
        dzⱼ = pⱼ - 1[j = y] without options, each component to the last digit. Kept: the arguments and a few numbers per
        row. Differentiable in logits, temperature, class_weights, label_smoothing and z_loss. Reverse mode of any
        order, forward over reverse; forward mode inside of `jaxsoftmax.forward_mode()`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> certain, open_ = jaxsoftmax.cross_entropy(jnp.array([[17.0, 0.0], [0.0, 0.0]]), jnp.array([0, 1]))
        >>> print(f"{certain:.4e} {open_:.4f}")
        4.1399e-08 0.6931

    References:
        C. Szegedy et al., Rethinking the Inception Architecture, 2016; A. Chowdhery et al., PaLM, 2022 (z-loss).
    """
    name = "cross_entropy"
    head = checked_head(name, temperature, axis, logit_cap, ignore_label, axis_name)
    checks.numbers_in(name, 0, 1, label_smoothing=label_smoothing)
    checks.numbers_in(name, 0, math.inf, z_loss=z_loss)
    checks.choice(name, ("uniform", "others"), smoothing=smoothing)
    arguments = (logits, labels, where, temperature, class_weights, _used(label_smoothing), _used(z_loss))
    return _cross_entropy_call(*arguments, head=head, smoothing=smoothing)


def focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    gamma: ArrayLike = 2.0,
    alpha: ArrayLike | None = None,
    axis: int = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    logit_cap: float | None = None,
    ignore_label: int | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """The focal loss over softmax probabilities, with integer labels.

    α[y] (1 - p[y])^γ · -log p[y]

    Args:
        logits: [..., V], floating.
        labels: [...], integers in [0, V).
        gamma: γ ≥ 0, a scalar; 0 gives the cross entropy.
        alpha: α, a scalar or one weight per class, [V]; 1 by default.
        axis: The class axis.
        where: Which classes are present: boolean, of the shape of the logits or [V].
        temperature: T ≥ 0 divides the logits; a scalar or one number per row.
        logit_cap: Logits become cap · tanh(z / cap), before the temperature.
        ignore_label: The one label whose rows have loss 0 and gradient 0, exactly.
        axis_name: The mesh axis, or axes, over which the classes are split, inside of `jax.shard_map`; labels count
            through all devices.

    Returns:
        [...] in nats, float32 or wider.

    Raises:
        TypeError: The logits are not floating, the labels not integers, or the mask not boolean.
        ValueError: The axis is out of range, the class axis is empty, a shape does not fit or an option is out of
            range.

    Numerics:
        1 - p[y] is computed as itself, never as a difference; finite for every γ, value and gradient, at p → 0 and p →
        1.

    Gradient:
        See `objectives.focal`. Kept: the arguments and a few numbers per row. All modes, as for `cross_entropy`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> logits = jnp.array([[2.0, 0.0], [90.0, 0.0]])
        >>> likely, certain = jaxsoftmax.focal_loss(logits, jnp.array([0, 0]), gamma=0.5)
        >>> print(f"{likely:.4f} {certain:.1f}")
        0.0438 0.0

    References:
        T.-Y. Lin et al., Focal Loss for Dense Object Detection, 2017.
    """
    head = checked_head("focal_loss", temperature, axis, logit_cap, ignore_label, axis_name)
    checks.numbers_in("focal_loss", 0, math.inf, gamma=gamma, alpha=alpha)
    return _focal_loss_call(logits, labels, where, temperature, gamma, alpha, head=head)


def poly_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    epsilon: ArrayLike = 1.0,
    axis: int = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    logit_cap: float | None = None,
    ignore_label: int | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """The Poly-1 loss, with integer labels.

    -log p[y] + ε (1 - p[y])

    Args:
        logits: [..., V], floating.
        labels: [...], integers in [0, V).
        epsilon: ε ≥ -1, a scalar.
        axis: The class axis.
        where: Which classes are present: boolean, of the shape of the logits or [V].
        temperature: T ≥ 0 divides the logits; a scalar or one number per row.
        logit_cap: Logits become cap · tanh(z / cap), before the temperature.
        ignore_label: The one label whose rows have loss 0 and gradient 0, exactly.
        axis_name: The mesh axis, or axes, over which the classes are split, inside of `jax.shard_map`; labels count
            through all devices.

    Returns:
        [...] in nats, float32 or wider.

    Raises:
        TypeError: The logits are not floating, the labels not integers, or the mask not boolean.
        ValueError: The axis is out of range, the class axis is empty, a shape does not fit or an option is out of
            range.

    Numerics:
        Both terms to the last digit, however certain the label.

    Gradient:
        By the log-odds, -(1 - p[y]) (1 + ε p[y]). All modes, as for `cross_entropy`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> [loss] = jaxsoftmax.poly_loss(jnp.array([[2.0, 0.0]]), jnp.array([0]))
        >>> print(f"{loss:.4f}")
        0.2461

    References:
        Z. Leng et al., PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions, 2022.
    """
    head = checked_head("poly_loss", temperature, axis, logit_cap, ignore_label, axis_name)
    checks.numbers_in("poly_loss", -1, math.inf, epsilon=epsilon)
    return _poly_loss_call(logits, labels, where, temperature, epsilon, head=head)


def smooth_labels(
    targets: ArrayLike,
    label_smoothing: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    smoothing: str = "uniform",
) -> jax.Array:
    """Distributions mixed with the uniform one; for integer labels, `cross_entropy` smooths without building them.

    "uniform": (1 - ε) q + ε / K.  "others": (1 - ε) q + ε (1 - q) / (K - 1).

    Args:
        targets: q, [..., V], floating: a distribution per row, such as one-hot labels.
        label_smoothing: ε in [0, 1], a scalar.
        axis: The class axis.
        where: Which classes are present, boolean, of the shape of the targets or [V]; K counts them, and the others get
            0.
        smoothing: "uniform" or "others".

    Returns:
        [..., V], of the dtype of the targets.

    Raises:
        TypeError: The targets are not floating, or the mask is not boolean.
        ValueError: The axis is out of range, the class axis is empty, a shape does not fit or an option is out of
            range.

    Gradient:
        Linear in the targets: 1 - ε, and 1 - ε K / (K - 1) for "others". All modes.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> where = jnp.array([True, True, False, False])
        >>> print(jaxsoftmax.smooth_labels(jnp.array([1.0, 0.0, 0.0, 0.0]), 0.5, where=where))
        [0.75 0.25 0.   0.  ]

    References:
        C. Szegedy et al., Rethinking the Inception Architecture, 2016.
    """
    axis = checks.static_axis("smooth_labels", axis)
    checks.numbers_in("smooth_labels", 0, 1, label_smoothing=label_smoothing)
    checks.choice("smooth_labels", ("uniform", "others"), smoothing=smoothing)
    return _smooth_labels_call(targets, label_smoothing, where, axis=axis, smoothing=smoothing)


def weighted_mean(values: ArrayLike, weights: ArrayLike | None = None, *, axis_name: AxisName = None) -> jax.Array:
    """The mean of the values that count.

    Σ wᵢ vᵢ / Σ wᵢ

    Args:
        values: [...], floating, integer or boolean.
        weights: [...], of the shape of the values; floating, integer or boolean; 1 by default.
        axis_name: The mesh axis, or axes, over which the values are split, inside of `jax.shard_map`.

    Returns:
        A scalar, float32 or wider; 0 where the weights sum to 0.

    Raises:
        TypeError: The values or weights are not numbers.
        ValueError: The shapes differ.

    Numerics:
        A value of weight 0 takes no part, even if it is inf or NaN.

    Gradient:
        dvᵢ = g wᵢ / Σ w,  dwᵢ = g (vᵢ - mean) / Σ w;  0 where the weights sum to 0. All modes.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> print(jaxsoftmax.weighted_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1, 1, 0])))
        2.0
    """
    checks.static_axis("weighted_mean", None, axis_name)
    return _weighted_mean_call(values, weights, axis_name=axis_name)


def _used(option: Any) -> Any:
    """None for an option that is switched off by the Python number 0, so that it is not computed at all."""
    return None if isinstance(option, int | float) and option == 0 else option


@calls.compiled("head", "smoothing")
def _cross_entropy_call(
    logits: Any,
    labels: Any,
    where: Any,
    temperature: Any,
    class_weights: Any,
    label_smoothing: Any,
    z_loss: Any,
    *,
    head: Head,
    smoothing: str,
) -> jax.Array:
    name = "cross_entropy"
    statistics = dense(name, logits, labels, where, temperature, head, mean=label_smoothing is not None)
    dtype = statistics.target.dtype
    share = 0.0 if label_smoothing is None else checks.scalar(name, dtype, label_smoothing=label_smoothing)
    coefficient = 0.0 if z_loss is None else checks.scalar(name, dtype, z_loss=z_loss)
    loss = objectives.smoothed(statistics, share, smoothing)
    loss = _times_weight(name, "class_weights", loss, class_weights, logits, labels, head)
    return objectives.penalized(loss, statistics, coefficient)


@calls.compiled("head")
def _focal_loss_call(
    logits: Any, labels: Any, where: Any, temperature: Any, gamma: Any, alpha: Any, *, head: Head
) -> jax.Array:
    statistics = dense("focal_loss", logits, labels, where, temperature, head, mean=False)
    loss = objectives.focal(statistics, gamma=checks.scalar("focal_loss", _loss_dtype(statistics), gamma=gamma))
    return _times_weight("focal_loss", "alpha", loss, alpha, logits, labels, head)


@calls.compiled("head")
def _poly_loss_call(logits: Any, labels: Any, where: Any, temperature: Any, epsilon: Any, *, head: Head) -> jax.Array:
    statistics = dense("poly_loss", logits, labels, where, temperature, head, mean=False)
    return objectives.poly(statistics, epsilon=checks.scalar("poly_loss", _loss_dtype(statistics), epsilon=epsilon))


def _loss_dtype(statistics: Any) -> Any:
    """The dtype of the losses."""
    return statistics.target.dtype


def _times_weight(
    function: str, name: str, loss: jax.Array, weights: Any, logits: Any, labels: Any, head: Head
) -> jax.Array:
    """The loss times a scalar, or times its label's weight of [V]; weight 0 makes 0 of an infinite loss."""
    if weights is None:
        return loss
    logits = checks.floating(function, logits=logits)
    axes = checks.class_axis(function, head.axis, head.axis_name, logits=logits)
    if name == "alpha" and jnp.shape(weights) == ():
        weight = checks.scalar(function, loss.dtype, **{name: weights})
    else:
        logits, labels = meshes.split_alike(logits, checks.labels(function, labels, logits, axes))
        weights = checks.class_vector(function, name, weights, logits, axes)
        picked = arrays.own_pick(weights, labels, axes)
        weight = jnp.squeeze(meshes.total_of(picked, axes), axes.one)
    return scalars.times(weight, loss)


# Label smoothing of distributions: out = a q + b on the present classes, linear in q, with
#     uniform: a = 1 - e, b = e / K          others: a = 1 - e K / (K - 1), b = e / (K - 1), and a = 1, b = 0 for K = 1.


def _mixture(targets: jax.Array, share: jax.Array, classes: jax.Array) -> jax.Array:
    return (1.0 - share) * targets + share / jnp.maximum(classes, 1.0)


def _mixture_slopes(targets: jax.Array, share: jax.Array, classes: jax.Array) -> tuple[jax.Array, ...]:
    classes = jnp.maximum(classes, 1.0)
    return 1.0 - share, 1.0 / classes - targets, -share / jnp.square(classes)


_smooth = rules.elementwise(_mixture, _mixture_slopes)


@calls.compiled("axis", "smoothing")
def _smooth_labels_call(targets: Any, share: Any, where: Any, *, axis: int, smoothing: str) -> jax.Array:
    name = "smooth_labels"
    targets = checks.floating(name, targets=targets)
    axes = checks.class_axis(name, axis, targets=targets)
    where = checks.mask(name, where, targets, axes, "targets")
    dtype = arrays.compute_dtype(targets.dtype)
    share = checks.scalar(name, dtype, label_smoothing=share).reshape((1,) * targets.ndim)
    if where is None:
        classes = jnp.full((1,) * targets.ndim, targets.shape[axes.one], dtype)
    else:
        targets = jnp.where(where, targets, jnp.zeros((), targets.dtype))
        classes = arrays.row_sum(jnp.broadcast_to(where, targets.shape).astype(dtype), axes)
        classes = meshes.split_like(classes, targets)
    if smoothing == "others":
        share = jnp.where(classes > 1, share * classes / jnp.maximum(classes - 1.0, 1.0), 0.0)
    out = _smooth(targets, share, classes).astype(targets.dtype)
    return out if where is None else jnp.where(where, out, jnp.zeros((), out.dtype))


# The weighted mean  M = sum w v / W,  W = sum w:  dM/dv = w / W,  dM/dw = (v - M) / W.


def _mean_values(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The values, 0 for one of weight 0 that is inf or NaN, and whether it takes part."""
    taking_part = (weights != 0) | jnp.isfinite(values)
    return jnp.where(taking_part, values, jnp.zeros((), values.dtype)).astype(weights.dtype), taking_part


def _mean_forward(axes: Axes, values: jax.Array, weights: jax.Array) -> Any:
    parts = jnp.sum(weights), jnp.sum(weights * _mean_values(values, weights)[0])
    total, weighted = meshes.packed_sum(axes, *parts)
    mean = jnp.where(total == 0, 0.0, weighted / jnp.where(total == 0, 1.0, total))
    return mean, (values, weights, total, mean)


def _mean_slopes(residuals: Any) -> tuple[jax.Array, jax.Array]:
    values, weights, total, mean = residuals
    share = scalars.inverse(total)
    wide, taking_part = _mean_values(values, weights)
    return weights * share, jnp.where(taking_part, wide - mean, 0.0) * share


def _mean_backward(_: Axes, residuals: Any, cotangent: jax.Array) -> Any:
    by_values, by_weights = (cotangent * slope for slope in _mean_slopes(residuals))
    values, weights, *_ = residuals
    floating = jnp.issubdtype(values.dtype, jnp.floating)
    dvalues = meshes.sum_like(by_values, values).astype(values.dtype) if floating else None
    return dvalues, meshes.sum_like(by_weights, weights)


def _mean_tangent(axes: Axes, residuals: Any, tangents: Any) -> jax.Array:
    pairs = [(s, t) for s, t in zip(_mean_slopes(residuals), tangents, strict=True) if t is not None]
    along = [jnp.sum(slope * t.astype(slope.dtype)) for slope, t in pairs]
    return meshes.total_of(functools.reduce(jnp.add, along), axes)


_weighted_mean = rules.operation(_mean_forward, _mean_backward, _mean_tangent)


@calls.compiled("axis_name")
def _weighted_mean_call(values: Any, weights: Any, *, axis_name: AxisName) -> jax.Array:
    values = checks.numeric("weighted_mean", values=values)
    dtype = arrays.compute_dtype(values.dtype)
    weights = jnp.ones(values.shape, dtype) if weights is None else checks.numeric("weighted_mean", weights=weights)
    checks.same_shape("weighted_mean", values=values, weights=weights)
    axes = Axes((), checks.mesh_axes("weighted_mean", axis_name, values=values))
    values, weights = meshes.split_alike(values, weights)
    return _weighted_mean(axes, values, weights.astype(arrays.common_dtype(dtype, weights.dtype)))
