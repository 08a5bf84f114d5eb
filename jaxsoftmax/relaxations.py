"""Differentiable stand-ins for a discrete choice."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftmax._core import arrays, calls, checks, folds, meshes, rules
from jaxsoftmax._core.meshes import Axes
from jaxsoftmax.normalizers import softmax_jacobian, softmax_probabilities, softmax_push

__all__ = ["gumbel_softmax", "straight_through"]


def gumbel_softmax(
    key: jax.Array,
    logits: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    hard: bool = False,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """A sample from the Gumbel-softmax (concrete) distribution.

    yⱼ = exp((zⱼ + gⱼ) / T) / Σₖ exp((zₖ + gₖ) / T),  gⱼ = -log(-log uⱼ),  uⱼ uniform in (0, 1)

    Args:
        key: A key of jax.random.
        logits: [..., V], floating.
        temperature: T ≥ 0, a scalar or one number per row; 0 gives the hard sample, with gradient 0.
        hard: Return the one-hot vector of the largest yⱼ, with the gradient of the soft sample (straight-through).
        axis: The class axis.
        where: Which classes are present: boolean, of the shape of the logits or [V].

    Returns:
        [..., V], of the dtype of the logits. With `hard`, exactly 0 and 1, bit for bit.

    Raises:
        TypeError: The key is none, the logits are not floating, or the mask is not boolean.
        ValueError: The axis is out of range, the class axis is empty, a shape does not fit or a Python number T < 0.

    Numerics:
        The noise is drawn and added in float32 whatever the dtype of the logits (in bfloat16 it has a hundred values
        and prefers the first classes), and is never inf or NaN: uⱼ = 1 - (bⱼ + 1/2) / 2³², where b is
        `jax.random.bits(key, logits.shape)`, or 64 bits for float64. So g reaches 22.9, where 23 bits, which
        `jax.random.gumbel` draws by default, end at 15.9. The largest class is a sample from softmax(z). Absent classes
        get 0, and so does every class of a row without any.

    Gradient:
        That of softmax((z + g) / T), by z and T, at the noise of this key. Kept: the arguments, the key among them, and
        two numbers per row: the noise is drawn again, not stored. Reverse mode of any order, forward over reverse;
        forward mode inside of `jaxsoftmax.forward_mode()`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsoftmax
        >>> print(jaxsoftmax.gumbel_softmax(jax.random.key(0), jnp.array([0.0, 9.0, 0.0]), hard=True))
        [0. 1. 0.]

    References:
        E. Jang, S. Gu and B. Poole, Categorical Reparameterization with Gumbel-Softmax, 2017.
        C. J. Maddison, A. Mnih and Y. W. Teh, The Concrete Distribution, 2017.
    """
    checks.random_key("gumbel_softmax", key)
    axis = checks.static_axis("gumbel_softmax", axis)
    checks.numbers_in("gumbel_softmax", 0, math.inf, temperature=temperature)
    checks.flag("gumbel_softmax", hard=hard)
    return _gumbel_call(key, logits, where, temperature, axis=axis, hard=bool(hard))


def straight_through(hard: ArrayLike, soft: ArrayLike) -> jax.Array:
    """The value of one array with the gradient of another.

    Args:
        hard: [...]: the value, such as a one-hot or rounded `soft`.
        soft: [...], floating: where the gradient goes.

    Returns:
        [...], of the dtype of `soft`, equal to `hard` bit for bit; `hard + soft - stop_gradient(soft)` is not, in
        bfloat16.

    Raises:
        TypeError: `soft` is not floating.
        ValueError: The shapes differ.

    Gradient:
        dsoft = g, dhard = 0. All modes, as for `gumbel_softmax`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsoftmax
        >>> value, grad = jax.value_and_grad(lambda x: jaxsoftmax.straight_through(jnp.round(x), x))(0.7)
        >>> print(value, grad)
        1.0 1.0

    References:
        Y. Bengio, N. Léonard and A. Courville, Estimating or Propagating Gradients Through Stochastic Neurons, 2013.
    """
    return _straight_through_call(hard, soft)


# Derivation. With the noise g fixed by the key, u = z + g has du = dz, and the sample is softmax(u / T): forward,
# backward and tangent are those of the softmax (normalizers.py), evaluated at u. The hard sample replaces the value
# alone.


class _Options(NamedTuple):
    axes: Axes
    hard: bool


class _Residuals(NamedTuple):
    """The arguments, and per row: max u, and S."""

    key: jax.Array
    logits: jax.Array
    where: jax.Array | None
    temperature: jax.Array
    shift: jax.Array
    total: jax.Array

    def scaled(self, shift: jax.Array) -> jax.Array:
        """d = (u - max u) / T."""
        return arrays.centred(_perturbed(self.key, self.logits, self.where), shift, self.temperature)


def _perturbed(key: jax.Array, logits: jax.Array, where: jax.Array | None) -> jax.Array:
    """z + g in float32 or wider, -inf for absent classes."""
    dtype = arrays.compute_dtype(logits.dtype)
    return arrays.present(logits.astype(dtype) + _noise(key, logits.shape, dtype), where)


def _noise(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """g = -log(-log(1 - v)) for v = (b + 1/2) / 2^n and n random bits b.

    Large g come of small v, where a floating number is finer than the bits are: a draw of 32 bits has the tail that two
    draws of 23 would have in mode="high" of `jax.random.gumbel`, but for numbers that one draw in 10^10 reaches, and
    costs half. v rounds to 1 once in 2^25 draws; the number below gives the smallest g, -2.8 (-3.6 in float64).
    """
    info = jnp.finfo(dtype)
    bits = jax.random.bits(key, shape, f"uint{info.bits}").astype(dtype)
    v = jnp.minimum((bits + 0.5) * 2.0**-info.bits, 1.0 - float(info.epsneg))
    return -jnp.log(-jnp.log1p(-v))


def _gumbel_forward(options: _Options, key: Any, logits: Any, where: Any, temperature: Any) -> Any:
    axes = options.axes
    perturbed = _perturbed(key, logits, where)
    shift = arrays.row_max(perturbed, axes)
    total = arrays.row_sum(jnp.exp(arrays.centred(perturbed, shift, temperature)), axes)
    residuals = _Residuals(key, logits, where, temperature, shift, total)
    if options.hard:
        # A row without any class has total 0, a broken one NaN; neither has a largest class.
        first = jnp.argmax(folds.in_one_row(perturbed, axes), axis=axes.one, keepdims=True)
        chosen = arrays.is_label(first.reshape(total.shape), logits, axes).astype(total.dtype)
        hard = jnp.where(jnp.isnan(total), jnp.nan, jnp.where(total == 0, 0.0, chosen))
        sample = _with_slope_of(softmax_probabilities(residuals.scaled(residuals.shift), total), hard)
    else:
        sample = softmax_probabilities(residuals.scaled(residuals.shift), total)
    return sample.astype(logits.dtype), residuals


def _with_slope_of(soft: jax.Array, hard: jax.Array) -> jax.Array:
    """The value of hard, exactly, with the derivatives of soft: in this order the difference of equals is 0."""
    return hard - (lax.stop_gradient(soft) - soft)


def _gumbel_backward(options: _Options, residuals: _Residuals, cotangent: jax.Array) -> Any:
    scaled = residuals.scaled(residuals.shift)
    wide = cotangent.astype(scaled.dtype)
    gradient = softmax_jacobian(residuals.scaled, residuals.shift, residuals.total, wide, options.axes)
    dlogits, dtemperature = arrays.to_inputs(gradient, scaled, residuals.temperature, options.axes)
    return None, dlogits.astype(residuals.logits.dtype), None, dtemperature


def _gumbel_tangent(options: _Options, residuals: _Residuals, tangents: Any) -> jax.Array:
    scaled = residuals.scaled(residuals.shift)
    vector = arrays.from_inputs(tangents[1], tangents[3], scaled, residuals.temperature)
    return softmax_push(scaled, residuals.total, vector, options.axes).astype(residuals.logits.dtype)


_gumbel = rules.on_rows(_gumbel_forward, _gumbel_backward, _gumbel_tangent)


@calls.compiled("axis", "hard")
def _gumbel_call(key: Any, logits: Any, where: Any, temperature: Any, *, axis: int, hard: bool) -> jax.Array:
    name = "gumbel_softmax"
    logits = checks.floating(name, logits=logits)
    axes = checks.class_axis(name, axis, logits=logits)
    where = checks.mask(name, where, logits, axes)
    temperature = checks.per_row(name, "temperature", temperature, logits, axes)
    return _gumbel(_Options(axes, hard), key, logits, where, temperature)


def _straight_forward(_: None, hard: jax.Array, soft: jax.Array) -> Any:
    return _with_slope_of(soft, hard.astype(soft.dtype)), None


def _straight_backward(_: None, residuals: None, cotangent: jax.Array) -> Any:
    return None, cotangent


def _straight_tangent(_: None, residuals: None, tangents: Any) -> jax.Array:
    return tangents[1]


_straight_through = rules.operation(_straight_forward, _straight_backward, _straight_tangent)


@calls.compiled()
def _straight_through_call(hard: Any, soft: Any) -> jax.Array:
    hard = checks.numeric("straight_through", hard=hard)
    soft = checks.floating("straight_through", soft=soft)
    checks.same_shape("straight_through", hard=hard, soft=soft)
    soft, hard = meshes.split_alike(soft, lax.stop_gradient(hard))
    return _straight_through(None, hard, soft)
