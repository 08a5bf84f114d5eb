"""Softmax, its logarithm, log-sum-exp and the smooth maximum."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftmax._core import arrays, calls, checks, folds, meshes, passes, rules, scalars
from jaxsoftmax._core.meshes import Axes, Axis, AxisName

__all__ = ["log_softmax", "logsumexp", "smooth_max", "softmax"]

Scaled = Callable[[jax.Array], jax.Array]


def softmax(
    logits: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Probabilities from logits.

    pⱼ = exp(zⱼ / T) / Σₖ exp(zₖ / T)

    Args:
        logits: [..., V], floating.
        axis: The class axis; a tuple, or None for all axes, normalizes over several at once.
        where: Which classes are present: boolean, of the shape of the logits or [V].
        temperature: T ≥ 0, a scalar or one number per row. 0 is the limit: all the mass on the largest logits, shared
            by ties.
        axis_name: The mesh axis, or axes, over which the classes are split, inside of `jax.shard_map`.

    Returns:
        [..., V], of the dtype of the logits.

    Raises:
        TypeError: The logits are not floating, or the mask is not boolean.
        ValueError: An axis is out of range, the class axis is empty, a shape does not fit or a Python number T < 0.

    Numerics:
        Computed in float32 or wider and rounded once. Absent classes (a logit of -inf or where=False) get 0; a row
        without any class is 0 everywhere. +inf or NaN makes its own row NaN.

    Gradient:
        dzⱼ = pⱼ ((gⱼ - c) - Σₖ pₖ (gₖ - c)) / T,  with c the cotangent of the largest class where that class has more
        than half of the mass, so that no digit of the tail is lost, and 0 elsewhere. dT = -Σⱼ dzⱼ (zⱼ - max z) / T.
        Kept: the arguments and two numbers per row. Reverse mode of any order, forward over reverse; forward mode
        inside of `jaxsoftmax.forward_mode()`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> print(jaxsoftmax.softmax(jnp.array([1.0, 1.0, -jnp.inf])))
        [0.5 0.5 0. ]

    References:
        J. S. Bridle, Probabilistic interpretation of feedforward classification network outputs, 1990.
    """
    axis = checks.static_axis("softmax", axis, axis_name)
    checks.numbers_in("softmax", 0, math.inf, temperature=temperature)
    return _softmax_call(logits, where, temperature, axis=axis, axis_name=axis_name)


@calls.compiled("axis", "axis_name")
def _softmax_call(logits: Any, where: Any, temperature: Any, *, axis: Axis, axis_name: AxisName) -> jax.Array:
    return _softmax(*_canonical("softmax", logits, where, temperature, axis, axis_name))


def log_softmax(
    logits: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Log-probabilities from logits, in nats.

    log pⱼ = zⱼ / T - log Σₖ exp(zₖ / T)

    Args:
        logits: [..., V], floating.
        axis: The class axis; a tuple, or None for all axes, normalizes over several at once.
        where: Which classes are present: boolean, of the shape of the logits or [V].
        temperature: T ≥ 0, a scalar or one number per row. 0 is the limit, with gradient 0.
        axis_name: The mesh axis, or axes, over which the classes are split, inside of `jax.shard_map`.

    Returns:
        [..., V] in nats, of the dtype of the logits.

    Raises:
        TypeError: The logits are not floating, or the mask is not boolean.
        ValueError: An axis is out of range, the class axis is empty, a shape does not fit or a Python number T < 0.

    Numerics:
        The largest class gets -log1p(Σ of the other exponentials), so that log p is right to the last digit when p is
        1 - 1e-30 just as when it is 0.3. Absent classes get -inf, and so does every class of a row without any.

    Gradient:
        dzⱼ = (gⱼ (1 - pⱼ) - pⱼ Σ_{k≠j} gₖ) / T, with 1 - p and the sum of the others each as itself, no difference.
        Kept: the arguments and two numbers per row. All modes, as for `softmax`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> certain, rest = jaxsoftmax.log_softmax(jnp.array([40.0, 0.0]))
        >>> print(f"{certain:.4e} {rest:.4f}")
        -4.2484e-18 -40.0000
    """
    axis = checks.static_axis("log_softmax", axis, axis_name)
    checks.numbers_in("log_softmax", 0, math.inf, temperature=temperature)
    return _log_softmax_call(logits, where, temperature, axis=axis, axis_name=axis_name)


@calls.compiled("axis", "axis_name")
def _log_softmax_call(logits: Any, where: Any, temperature: Any, *, axis: Axis, axis_name: AxisName) -> jax.Array:
    return _log_softmax(*_canonical("log_softmax", logits, where, temperature, axis, axis_name))


def logsumexp(
    logits: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: AxisName = None,
    keepdims: bool = False,
) -> jax.Array:
    """The logarithm of a sum of exponentials, in nats.

    log Σⱼ wⱼ exp(zⱼ / T)

    Args:
        logits: [..., V], floating.
        axis: The class axis, a tuple of axes, or None for all.
        where: Which classes are present: boolean, of the shape of the logits or [V].
        weights: w (SciPy's b), of the shape of the logits or [V]; 1 by default. A class of weight 0 is absent. Weights
            may be negative; a negative sum has no logarithm and gives NaN.
        temperature: T ≥ 0, a scalar or one number per row.
        axis_name: The mesh axis, or axes, over which the classes are split, inside of `jax.shard_map`.
        keepdims: Keep the reduced axes with size 1.

    Returns:
        [...] in nats, of the dtype of the logits.

    Raises:
        TypeError: The logits or weights are not floating, or the mask is not boolean.
        ValueError: An axis is out of range, the class axis is empty, a shape does not fit or a Python number T < 0.

    Numerics:
        max z / T + log Σⱼ wⱼ exp((zⱼ - max z) / T), in float32 or wider. A row without any class gives -inf with
        gradient 0.

    Gradient:
        dzⱼ = g pⱼ / T,  dwⱼ = g exp(zⱼ / T - out),  dT = -g Σⱼ pⱼ zⱼ / T², where pⱼ are the weighted probabilities.
        Kept: the arguments and two numbers per row. All modes, as for `softmax`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> print(f"{jaxsoftmax.logsumexp(jnp.array([1000.0, 1000.0])):.3f}")
        1000.693
    """
    axis = checks.static_axis("logsumexp", axis, axis_name)
    checks.numbers_in("logsumexp", 0, math.inf, temperature=temperature)
    return _logsumexp_call(logits, where, weights, temperature, axis=axis, axis_name=axis_name, keepdims=keepdims)


@calls.compiled("axis", "axis_name", "keepdims")
def _logsumexp_call(
    logits: Any, where: Any, weights: Any, temperature: Any, *, axis: Axis, axis_name: AxisName, keepdims: bool
) -> jax.Array:
    axes, logits, where, temperature = _canonical("logsumexp", logits, where, temperature, axis, axis_name)
    if weights is not None:
        weights = checks.class_weights("logsumexp", "weights", weights, logits, axes)
    out = _logsumexp(axes, logits, where, weights, temperature)
    return out if keepdims else jnp.squeeze(out, axes.dims)


def smooth_max(
    logits: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    keepdims: bool = False,
) -> jax.Array:
    """The smooth maximum: the largest value as T goes to 0, in the unit of the values.

    T log Σⱼ exp(zⱼ / T)

    Args:
        logits: [..., V], floating.
        temperature: T ≥ 0, a scalar or one number per row; 0 gives the maximum itself.
        axis: The class axis, a tuple of axes, or None for all.
        where: Which classes are present: boolean, of the shape of the logits or [V].
        axis_name: The mesh axis, or axes, over which the classes are split, inside of `jax.shard_map`.
        keepdims: Keep the reduced axes with size 1.

    Returns:
        [...], of the dtype of the logits; between max z and max z + T log V.

    Raises:
        TypeError: The logits are not floating, or the mask is not boolean.
        ValueError: An axis is out of range, the class axis is empty, a shape does not fit or a Python number T < 0.

    Numerics:
        max z + T log Σⱼ exp((zⱼ - max z) / T). A row without any class gives -inf with gradient 0.

    Gradient:
        dzⱼ = g pⱼ (at T = 0 the largest share it) and dT = g H(p), the entropy of p in nats. Kept: the arguments and
        two numbers per row. All modes, as for `softmax`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> print(f"{jaxsoftmax.smooth_max(jnp.array([1.0, 2.0]), temperature=0.5):.4f}")
        2.0635
    """
    axis = checks.static_axis("smooth_max", axis, axis_name)
    checks.numbers_in("smooth_max", 0, math.inf, temperature=temperature)
    return _smooth_max_call(logits, where, temperature, axis=axis, axis_name=axis_name, keepdims=keepdims)


@calls.compiled("axis", "axis_name", "keepdims")
def _smooth_max_call(
    logits: Any, where: Any, temperature: Any, *, axis: Axis, axis_name: AxisName, keepdims: bool
) -> jax.Array:
    axes, *arguments = _canonical("smooth_max", logits, where, temperature, axis, axis_name)
    out = _smooth_max(axes, *arguments)
    return out if keepdims else jnp.squeeze(out, axes.dims)


def _canonical(
    function: str, logits: Any, where: Any, temperature: Any, axis: Axis, axis_name: AxisName
) -> tuple[Any, ...]:
    """Checked: (class axes, logits, mask of their rank or None, temperature per row or None)."""
    logits = checks.floating(function, logits=logits)
    axes = checks.class_axes(function, axis, axis_name, logits=logits)
    where = checks.mask(function, where, logits, axes)
    return axes, logits, where, checks.per_row(function, "temperature", temperature, logits, axes)


# Derivation.
#
# Let m = max z, d = (z - m) / T, e = exp(d), S = sum e >= 1, p = e / S. Adding a constant to z changes neither p nor
# log p, and moves the log-sum-exp by the same constant; so m counts as a constant, and with  dd  the gradient by d:
#     dz_j = dd_j / T        dT = -(1 / T) sum_j dd_j d_j        (arrays.to_inputs; its transpose is from_inputs)
#
#   softmax            dp_j/dd_k = p_j (delta_jk - p_k), symmetric, so backward and tangent are the one function
#                      J v = p (v - sum p v) = p ((v - c) - sum p (v - c)) for every c.
#                      At a class j with p_j near 1, v_j - sum p v cancels; c = v_j makes the first term 0 and leaves
#                      the sum over the others. With p_j <= 1/2 everywhere nothing cancels, and c must be 0, for the v
#                      of a rare class may be large beside all that counts. S < 2 tells the two apart. Then the
#                      largest class is unique, and v_j is summed with weights that vanish below it.
#   log softmax        out_j = d_j - log S, log S = log1p(S - 1) from the excess.
#                      dd_j = g_j - p_j G, G = sum g over the present classes. With A = sum g u, B = sum (g - g u) and u
#                      as in arrays.near_top,  S dd_j = (g_j - exp(d_j) A) + (g_j (S - 1) - exp(d_j) B):  at a largest
#                      class alone at the top A is g_j, the first term is exactly 0, and B is the sum of the others.
#                      Tangent: v_j - sum p v, centred by c as above.
#   log-sum-exp        out = m / T + log S, and d out/dd_j = p_j; the m / T adds -m / T^2 to d out/dT.
#   smooth maximum     out = m + T log S, d out/dz_j = p_j, d out/dT = log S - sum p d = H(p).


class _Residuals(NamedTuple):
    """The arguments, and per row: m, and S (for log softmax and the smooth maximum S - 1)."""

    logits: jax.Array
    where: jax.Array | None
    temperature: jax.Array | None
    shift: jax.Array
    total: jax.Array

    def scaled(self, shift: jax.Array) -> jax.Array:
        """d = (z - m) / T; m is given so that two sums can each have one of their own."""
        return arrays.centred(arrays.present(self.logits, self.where), shift, self.temperature)


def softmax_probabilities(scaled: jax.Array, total: jax.Array) -> jax.Array:
    """p = exp(d) / S, and 0 in a row without any class."""
    return jnp.exp(scaled) * arrays.reciprocal(total)


def softmax_jacobian(scaled_by: Scaled, shift: jax.Array, total: jax.Array, vector: jax.Array, axes: Axes) -> jax.Array:
    """J v = p ((v - c) - sum p (v - c))."""
    centre = centre_of(scaled_by(passes.opaque_off_cpu(shift)), total, vector, axes)
    mean = arrays.mean_under(jnp.exp(scaled_by(shift)), vector - centre, total, axes)
    vector = vector - passes.for_last_pass(centre, mean, vector, axes)
    return softmax_probabilities(scaled_by(passes.opaque_off_cpu(shift)), total) * (vector - mean)


def centre_of(scaled: jax.Array, total: jax.Array, vector: jax.Array, axes: Axes) -> jax.Array:
    """c = sum v w: the vector at the largest class where that class has more than half of the mass, else 0.

    w is 1 for the largest class and falls to 0 within a millionth, so that only a class as near as that blurs c. That
    is no more than logits differ that the compiler computes anew, so it must not do so with c: what one sum takes off
    and another puts back has to be the same number.
    """
    return passes.opaque_off_cpu(arrays.row_sum(vector * _largest(scaled), axes) * arrays.positive(2.0 - total))


def _largest(scaled: jax.Array) -> jax.Array:
    # By exp(d), which the other passes need: what is only on the way to it, as d is, is not written out. Above 1 it is
    # where a logit has been computed anew.
    terms = jnp.minimum(lax.stop_gradient(jnp.exp(scaled)), 1.0)
    return jnp.maximum(2.0**20 * terms - (2.0**20 - 1.0), 0.0)


def softmax_push(scaled: jax.Array, total: jax.Array, vector: jax.Array, axes: Axes) -> jax.Array:
    """J v as (I - w 1') J (v - c 1): the sum that it subtracts is 0, but transposed it centres the cotangent."""
    centred = vector - centre_of(scaled, total, vector, axes)
    probabilities = softmax_probabilities(scaled, total)
    tangent = probabilities * (centred - arrays.row_sum(probabilities * centred, axes))
    return tangent - _largest(scaled) * (arrays.positive(2.0 - total) * arrays.row_sum(tangent, axes))


def _softmax_forward(axes: Axes, logits: Any, where: Any, temperature: Any) -> Any:
    values = arrays.present(logits, where)
    shift = arrays.row_max(values, axes, in_one_kernel=True)
    total = arrays.row_sum(jnp.exp(arrays.centred(values, shift, temperature)), axes)
    residuals = _Residuals(logits, where, temperature, shift, total)
    scaled = residuals.scaled(passes.anew(shift, logits, axes))
    return softmax_probabilities(scaled, total).astype(logits.dtype), residuals


def _softmax_backward(axes: Axes, residuals: _Residuals, cotangent: jax.Array) -> Any:
    shift, scaled = residuals.shift, residuals.scaled(residuals.shift)
    gradient = softmax_jacobian(residuals.scaled, shift, residuals.total, cotangent.astype(shift.dtype), axes)
    dlogits, dtemperature = arrays.to_inputs(gradient, scaled, residuals.temperature, axes)
    return dlogits.astype(residuals.logits.dtype), None, dtemperature


def _softmax_tangent(axes: Axes, residuals: _Residuals, tangents: Any) -> jax.Array:
    scaled = residuals.scaled(residuals.shift)
    vector = arrays.from_inputs(tangents[0], tangents[2], scaled, residuals.temperature)
    return softmax_push(scaled, residuals.total, vector, axes).astype(residuals.logits.dtype)


_softmax = rules.on_rows(_softmax_forward, _softmax_backward, _softmax_tangent)


def _log_softmax_forward(axes: Axes, logits: Any, where: Any, temperature: Any) -> Any:
    values = arrays.present(logits, where)
    shift, others = arrays.excess(values, axes, temperature)
    out = arrays.centred(values, shift, temperature) - jnp.log1p(others)
    return out.astype(logits.dtype), _Residuals(logits, where, temperature, shift, others)


def log_softmax_pull(scaled: jax.Array, others: jax.Array, cotangent: jax.Array, axes: Axes) -> jax.Array:
    """The gradient by d of sum_j g_j log p_j, with `others` the excess S - 1."""
    terms, cotangent = jnp.exp(scaled), cotangent * arrays.above_bottom(scaled)
    top = cotangent * arrays.near_top(scaled)
    below, above = arrays.row_sums(cotangent - top, top, axes)
    gradient = (cotangent - terms * above) + (cotangent * others - terms * below)
    return gradient * (1.0 / (1.0 + others))


def log_softmax_push(scaled: jax.Array, others: jax.Array, vector: jax.Array, axes: Axes) -> jax.Array:
    """The tangent of log p along the tangent v of d, centred as in `softmax_jacobian`."""
    total = 1.0 + others
    vector = vector - centre_of(scaled, total, vector, axes)
    tangent = vector - arrays.row_sum(softmax_probabilities(scaled, total) * vector, axes)
    return jnp.where(jnp.isneginf(scaled), 0.0 * total, tangent)


def _log_softmax_backward(axes: Axes, residuals: _Residuals, cotangent: jax.Array) -> Any:
    shift, scaled = residuals.shift, residuals.scaled(residuals.shift)
    gradient = log_softmax_pull(scaled, residuals.total, cotangent.astype(shift.dtype), axes)
    dlogits, dtemperature = arrays.to_inputs(gradient, scaled, residuals.temperature, axes)
    return dlogits.astype(residuals.logits.dtype), None, dtemperature


def _log_softmax_tangent(axes: Axes, residuals: _Residuals, tangents: Any) -> jax.Array:
    scaled = residuals.scaled(residuals.shift)
    vector = arrays.from_inputs(tangents[0], tangents[2], scaled, residuals.temperature)
    return log_softmax_push(scaled, residuals.total, vector, axes).astype(residuals.logits.dtype)


_log_softmax = rules.on_rows(
    _log_softmax_forward, _log_softmax_backward, _log_softmax_tangent, long_from=folds.LONG_WITHOUT_ONE
)


class _SumResiduals(NamedTuple):
    """The arguments, and per row: m and S."""

    logits: jax.Array
    where: jax.Array | None
    weights: jax.Array | None
    temperature: jax.Array | None
    shift: jax.Array
    total: jax.Array

    def scaled(self, shift: jax.Array) -> jax.Array:
        """d = (z - m) / T."""
        return arrays.centred(_weighted(self.logits, self.where, self.weights), shift, self.temperature)

    def probabilities(self, scaled: jax.Array) -> jax.Array:
        """w exp(d) / S."""
        if self.weights is None:
            return softmax_probabilities(scaled, self.total)
        return self.weights * jnp.exp(scaled) * scalars.inverse(self.total)  # S can be as small as the weights


def _weighted(logits: jax.Array, where: jax.Array | None, weights: jax.Array | None) -> jax.Array:
    """The logits with absent classes at -inf, those of weight 0 among them."""
    values = arrays.present(logits, where)
    return values if weights is None else arrays.present(values, weights != 0)


def _weighted_sums(logits: Any, where: Any, weights: Any, temperature: Any, axes: Axes) -> _SumResiduals:
    values = _weighted(logits, where, weights)
    shift = arrays.row_max(values, axes)
    terms = jnp.exp(arrays.centred(values, shift, temperature))
    total = arrays.row_sum(terms if weights is None else weights * terms, axes)
    return _SumResiduals(logits, where, weights, temperature, shift, total)


def _logsumexp_forward(axes: Axes, logits: Any, where: Any, weights: Any, temperature: Any) -> Any:
    residuals = _weighted_sums(logits, where, weights, temperature, axes)
    out = arrays.quotient(residuals.shift, temperature) + scalars.safe_log(residuals.total)
    return out.astype(logits.dtype), residuals


def _offers(residuals: _SumResiduals) -> jax.Array:
    """exp(d) / S of every present class, also of weight 0; 0 in a row that sums to 0."""
    values = arrays.present(residuals.logits, residuals.where)
    empty = residuals.total == 0
    scaled = arrays.centred(values, jnp.where(empty, 0.0, residuals.shift), residuals.temperature)
    return jnp.exp(jnp.where(empty, -jnp.inf, scaled)) * scalars.inverse(residuals.total)


def _logsumexp_backward(axes: Axes, residuals: _SumResiduals, cotangent: jax.Array) -> Any:
    scaled, temperature = residuals.scaled(residuals.shift), residuals.temperature
    cotangent = jnp.where(residuals.total == 0, 0.0, cotangent.astype(scaled.dtype))
    gradient = cotangent * residuals.probabilities(scaled)
    dlogits, dtemperature = arrays.to_inputs(gradient, scaled, temperature, axes)
    if temperature is not None and dtemperature is not None:
        slope = arrays.quotient_slope(residuals.shift, temperature)
        dtemperature = dtemperature - jnp.where(residuals.total == 0, 0.0, cotangent * slope)
    dweights = None
    if residuals.weights is not None:
        dweights = arrays.sum_to(scalars.times(cotangent, _offers(residuals)), residuals.weights.shape)
        dweights = meshes.sum_like(dweights, residuals.weights)
    return dlogits.astype(residuals.logits.dtype), None, dweights, dtemperature


def _logsumexp_tangent(axes: Axes, residuals: _SumResiduals, tangents: Any) -> jax.Array:
    scaled, temperature = residuals.scaled(residuals.shift), residuals.temperature
    vector = arrays.from_inputs(tangents[0], tangents[3], scaled, temperature)
    tangent = arrays.row_sum(residuals.probabilities(scaled) * vector, axes)
    if temperature is not None:
        tangent = tangent - arrays.quotient_slope(residuals.shift, temperature) * tangents[3]
    if residuals.weights is not None:
        tangent = tangent + arrays.row_sum(_offers(residuals) * tangents[2], axes)
    return jnp.where(residuals.total == 0, 0.0, tangent).astype(residuals.logits.dtype)


_logsumexp = rules.on_rows(_logsumexp_forward, _logsumexp_backward, _logsumexp_tangent, whole_backward=True)


def _smooth_max_forward(axes: Axes, logits: Any, where: Any, temperature: Any) -> Any:
    values = arrays.present(logits, where)
    shift, others = arrays.excess(values, axes, temperature)
    bottom = meshes.largest_of(jnp.max(lax.stop_gradient(values), axis=axes.dims, keepdims=True), axes)
    out = jnp.where(jnp.isneginf(bottom), -jnp.inf, shift + temperature * jnp.log1p(others))
    return out.astype(logits.dtype), _Residuals(logits, where, temperature, shift, others)


def _smooth_max_slopes(axes: Axes, residuals: _Residuals) -> tuple[jax.Array, jax.Array]:
    """p, and H(p) = log1p(S - 1) - sum p d, in nats; 0 in a row without any class."""
    others, scaled = residuals.total, residuals.scaled(residuals.shift)
    probabilities = jnp.exp(scaled) / (1.0 + others)
    return probabilities, jnp.log1p(others) - arrays.row_sum(probabilities * arrays.held(scaled), axes)


def _smooth_max_backward(axes: Axes, residuals: _Residuals, cotangent: jax.Array) -> Any:
    by_logits, by_temperature = _smooth_max_slopes(axes, residuals)
    cotangent = cotangent.astype(by_logits.dtype)
    return (cotangent * by_logits).astype(residuals.logits.dtype), None, cotangent * by_temperature


def _smooth_max_tangent(axes: Axes, residuals: _Residuals, tangents: Any) -> jax.Array:
    by_logits, by_temperature = _smooth_max_slopes(axes, residuals)
    tangent = arrays.row_sum(by_logits * tangents[0].astype(by_logits.dtype), axes)
    return (tangent + by_temperature * tangents[2]).astype(residuals.logits.dtype)


_smooth_max = rules.on_rows(
    _smooth_max_forward, _smooth_max_backward, _smooth_max_tangent, long_from=folds.LONG_WITHOUT_ONE
)
