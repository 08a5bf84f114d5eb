"""Losses of independent yes-or-no decisions (multi-label classification), element by element and in log space."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsoftmax._core import arrays, calls, checks, meshes, rules, scalars
from jaxsoftmax._core.meshes import Axes
from jaxsoftmax.objectives import Focal, within_reach

__all__ = ["binary_cross_entropy", "sigmoid_focal_loss"]


def binary_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    positive_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Binary cross entropy of each logit by itself.

    w y · -log σ(z)  +  (1 - y) · -log(1 - σ(z))

    Args:
        logits: [..., V], floating.
        labels: y, [..., V], in [0, 1]: floating, integer or boolean.
        positive_weight: w, a scalar or [V]; 1 by default.
        where: Which elements count: boolean, of the shape of the logits or [V]; the others give 0.

    Returns:
        [..., V] in nats, float32 or wider.

    Raises:
        TypeError: The logits are not floating, the labels not numbers, or the mask not boolean.
        ValueError: A shape does not fit or a Python number w < 0.

    Numerics:
        softplus(∓z), exact at both ends: 4.1e-08 for z = 17 and y = 1. 0 · inf = 0.

    Gradient:
        dz = (1 - y) σ(z) - w y σ(-z),  dy = w softplus(-z) - softplus(z),  dw = y softplus(-z). Kept: the arguments.
        Reverse mode of any order, forward over reverse; forward mode inside of `jaxsoftmax.forward_mode()`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> certain, open_ = jaxsoftmax.binary_cross_entropy(jnp.array([17.0, 0.0]), jnp.array([1, 0]))
        >>> print(f"{certain:.4e} {open_:.4f}")
        4.1399e-08 0.6931
    """
    checks.numbers_in("binary_cross_entropy", 0, math.inf, positive_weight=positive_weight)
    return _binary_call(logits, labels, positive_weight, where)


def sigmoid_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    gamma: ArrayLike = 2.0,
    alpha: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """The focal loss of each logit by itself.

    α y (1 - σ(z))^γ · -log σ(z)  +  (1 - α) (1 - y) σ(z)^γ · -log(1 - σ(z))

    Args:
        logits: [..., V], floating.
        labels: y, [..., V], in [0, 1]: floating, integer or boolean.
        gamma: γ ≥ 0, a scalar; 0 gives the binary cross entropy.
        alpha: α in [0, 1], a scalar: the weight of the positives, 1 - α that of the negatives; both 1 by default.
        where: Which elements count: boolean, of the shape of the logits or [V]; the others give 0.

    Returns:
        [..., V] in nats, float32 or wider.

    Raises:
        TypeError: The logits are not floating, the labels not numbers, or the mask not boolean.
        ValueError: A shape does not fit or a Python number is out of range.

    Numerics:
        Finite for every γ, value and gradient, at σ → 0 and σ → 1. For labels between 0 and 1 the two terms are mixed,
        as the formula says.

    Gradient:
        That of `objectives.focal`, for x = -z and x = z. Kept: the arguments. All modes, as for `binary_cross_entropy`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> certain, open_ = jaxsoftmax.sigmoid_focal_loss(jnp.array([90.0, 0.0]), jnp.array([1, 1]), gamma=0.5)
        >>> print(f"{certain:.1f} {open_:.4f}")
        0.0 0.4901

    References:
        T.-Y. Lin et al., Focal Loss for Dense Object Detection, 2017.
    """
    checks.numbers_in("sigmoid_focal_loss", 0, math.inf, gamma=gamma)
    checks.numbers_in("sigmoid_focal_loss", 0, 1, alpha=alpha)
    return _sigmoid_focal_call(logits, labels, gamma, alpha, where)


# Derivation. softplus(z) = -log(1 - sigmoid(z)), its slope sigmoid(z). Both losses are sums of a term of the positives,
# a function of x = -z, and one of the negatives, of x = z; see objectives.py for the focal function and its slopes. A
# label of exactly 0 or 1 switches the other term off, even if it is infinite.
#
# softplus(-z) and softplus(z) are log(1 + exp(-|z|)), one of them with |z| added: the binary cross entropy is
#     (w y + 1 - y) log(1 + exp(-|z|)) + c |z|,    c = 1 - y for z > 0 and w y elsewhere.


def _settled(missed: jax.Array, found: jax.Array, logits: jax.Array) -> jax.Array:
    """z, held at a finite number where the term of its sign has the weight 0, for which an infinity is no NaN."""
    weight = jnp.where(logits > 0, found, missed)
    return jnp.where(weight == 0, within_reach(logits), logits)


def _binary_value(logits: jax.Array, labels: jax.Array, weight: jax.Array) -> jax.Array:
    missed, found = labels * weight, 1.0 - labels
    logits = _settled(missed, found, logits)
    positive, decay = scalars.folded(logits)
    near = (missed + found) * jnp.log1p(decay)
    # The choice comes last: what ends in one is a single loop with the sum over it, and without intermediate arrays.
    return jnp.where(positive, near + found * logits, near - missed * logits)


def _binary_slopes(logits: jax.Array, labels: jax.Array, weight: jax.Array) -> tuple[jax.Array, ...]:
    positive, negative = scalars.both_softplus(logits)
    missed, found = scalars.both_sigmoid(logits)
    by_logits = (1.0 - labels) * found - weight * labels * missed
    return by_logits, scalars.times(weight, positive) - negative, scalars.times(labels, positive)


_binary = rules.elementwise(_binary_value, _binary_slopes)


def _sigmoid_focal_value(
    logits: jax.Array, labels: jax.Array, gamma: jax.Array, positive: jax.Array, negative: jax.Array
) -> jax.Array:
    missed, found = positive * labels, negative * (1.0 - labels)
    logits = _settled(missed, found, logits)
    focal = Focal.of(logits)
    other = focal.mirrored()
    loss = missed * other.near(gamma) + found * focal.near(gamma)
    return jnp.where(logits > 0, loss + found * focal.beyond, loss + missed * other.beyond)


def _sigmoid_focal_slopes(
    logits: jax.Array, labels: jax.Array, gamma: jax.Array, positive: jax.Array, negative: jax.Array
) -> tuple[jax.Array, ...]:
    whole = Focal.of(logits)
    missed, found = whole.mirrored().value(gamma), whole.value(gamma)
    focal = Focal.of(_settled(positive * labels, negative * (1.0 - labels), logits))  # as the value has it: shared
    missed_by_x, missed_by_gamma = focal.mirrored().slopes(gamma)
    found_by_x, found_by_gamma = focal.slopes(gamma)
    by_logits = negative * (1.0 - labels) * found_by_x - positive * labels * missed_by_x
    by_gamma = positive * labels * missed_by_gamma + negative * (1.0 - labels) * found_by_gamma
    by_labels = scalars.times(positive, missed) - scalars.times(negative, found)
    return by_logits, by_labels, by_gamma, scalars.times(labels, missed), scalars.times(1.0 - labels, found)


_sigmoid_focal = rules.elementwise(_sigmoid_focal_value, _sigmoid_focal_slopes)


def _canonical(function: str, logits: Any, labels: Any, where: Any) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Checked; elements that do not count have the logit 0, whatever they held."""
    logits = checks.floating(function, logits=logits)
    labels = checks.numeric(function, labels=labels)
    checks.same_shape(function, logits=logits, labels=labels)
    logits, labels = meshes.split_alike(logits, labels)
    where = checks.mask(function, where, logits, Axes(tuple(range(logits.ndim))[-1:]))
    if where is not None:
        logits = jnp.where(where, logits, jnp.zeros((), logits.dtype))
    return logits, labels, where


def _masked(loss: jax.Array, where: jax.Array | None) -> jax.Array:
    return loss if where is None else jnp.where(where, loss, 0.0)


@calls.compiled()
def _binary_call(logits: Any, labels: Any, weight: Any, where: Any) -> jax.Array:
    name = "binary_cross_entropy"
    logits, labels, where = _canonical(name, logits, labels, where)
    dtype = arrays.compute_dtype(logits.dtype)
    if weight is None or jnp.ndim(weight) == 0:
        weight = checks.scalar(name, dtype, positive_weight=1.0 if weight is None else weight)
        weight = weight.reshape((1,) * logits.ndim)
    else:
        weight = checks.class_vector(name, "positive_weight", weight, logits, Axes((logits.ndim - 1,)))
    return _masked(_binary(logits, labels, weight), where)


@calls.compiled()
def _sigmoid_focal_call(logits: Any, labels: Any, gamma: Any, alpha: Any, where: Any) -> jax.Array:
    name = "sigmoid_focal_loss"
    logits, labels, where = _canonical(name, logits, labels, where)
    dtype = arrays.compute_dtype(logits.dtype)
    one = (1,) * logits.ndim
    gamma = checks.scalar(name, dtype, gamma=gamma).reshape(one)
    positive = negative = jnp.ones(one, dtype)
    if alpha is not None:
        positive = checks.scalar(name, dtype, alpha=alpha).reshape(one)
        negative = 1.0 - positive
    return _masked(_sigmoid_focal(logits, labels, gamma, positive, negative), where)
