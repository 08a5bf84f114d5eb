"""The table of operations: one row each, with a plain expression of jax.numpy that has the same derivatives.

Logits are mild here, so that the plain expressions are right; exactness is judged against the oracles elsewhere. A new
operation is one new row, and every law in this folder applies to it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxsoftmax
from jaxsoftmax import objectives

ROWS, CLASSES = 3, 4

_rng = np.random.default_rng(7)
LOGITS = (2.0 * _rng.standard_normal((ROWS, CLASSES))).astype(np.float32)
OTHER = _rng.standard_normal((ROWS, CLASSES)).astype(np.float32)
DISTRIBUTION = (np.exp(OTHER) / 3.0).astype(np.float32)
TEMPERATURE = np.array([0.6, 1.0, 2.5], np.float32)
LABELS = np.array([0, 3, 1], np.int32)
ONE_HOT = np.eye(CLASSES, dtype=np.float32)[LABELS]
BITS = (OTHER > 0).astype(np.float32)
FEATURES, KERNEL = (_rng.standard_normal(shape).astype(np.float32) for shape in ((ROWS, 3), (3, CLASSES)))
TEACHER_FEATURES, TEACHER_KERNEL = (
    _rng.standard_normal(shape).astype(np.float32) for shape in ((ROWS, 2), (2, CLASSES))
)
BIAS = _rng.standard_normal(CLASSES).astype(np.float32)


class Operation(NamedTuple):
    """A function of float arrays, all differentiable; the plain form; and the arguments."""

    function: Callable[..., jax.Array]
    plain: Callable[..., jax.Array]
    args: tuple[np.ndarray, ...]

    def batch(self, size: int) -> tuple[np.ndarray, ...]:
        """The arguments, each with a leading axis of slightly different copies."""
        return tuple(np.stack([a * np.float32(1.0 - 0.05 * i) for i in range(size)]) for a in self.args)

    def cotangent(self) -> np.ndarray:
        """Not uniform."""
        shape = jax.eval_shape(self.function, *self.args).shape
        return np.cos(np.arange(np.prod(shape, dtype=int), dtype=np.float32)).reshape(shape) + np.float32(0.25)

    def tangents(self) -> tuple[np.ndarray, ...]:
        """Not uniform either."""
        return tuple(np.sin(1.0 + np.arange(a.size, dtype=np.float32)).reshape(a.shape) for a in self.args)


def _rows(x: Any) -> jax.Array:
    return jnp.expand_dims(x, -1)


def _log_p(z: Any, temperature: Any = None) -> jax.Array:
    return jax.nn.log_softmax(z if temperature is None else z / _rows(temperature))


def _picked(x: Any) -> jax.Array:
    return jnp.sum(x * ONE_HOT, -1)


def _plain_focal(z: Any, temperature: Any) -> jax.Array:
    log_p = _picked(_log_p(z, temperature))
    return -((1.0 - jnp.exp(log_p)) ** 1.7) * log_p


def _plain_kl(z: Any, w: Any, temperature: Any) -> jax.Array:
    log_p, log_q = _log_p(z, temperature), _log_p(w, temperature)
    return jnp.sum(jnp.exp(log_q) * (log_q - log_p), -1)


def _plain_hinge(z: Any) -> jax.Array:
    others = jnp.max(jnp.where(ONE_HOT == 1, -jnp.inf, z), -1)
    return jnp.maximum(1.0 + others - _picked(z), 0.0)


def _plain_weston_watkins(z: Any) -> jax.Array:
    return jnp.sum(jnp.maximum(1.0 + z - _rows(_picked(z)), 0.0) * (1.0 - ONE_HOT), -1)


def _plain_arcface(z: Any) -> jax.Array:
    cosine = jnp.tanh(z / 8.0)
    moved = jnp.cos(jnp.arccos(cosine) + 0.5)
    return -_picked(_log_p(8.0 * jnp.where(ONE_HOT == 1, moved, cosine)))


def _plain_smoothed(z: Any, temperature: Any, weights: Any, share: Any) -> jax.Array:
    scaled = z / _rows(temperature)
    q = ONE_HOT * (1.0 - share) + share / z.shape[-1]
    loss = -jnp.sum(q * _log_p(scaled), -1) * jnp.sum(jnp.expand_dims(weights, 0) * ONE_HOT, -1)
    return loss + 0.1 * jax.nn.logsumexp(scaled, axis=-1) ** 2


def _capped(z: Any) -> jax.Array:
    return 3.0 * jnp.tanh(z / 3.0)


# The generator `rbg`, because the default one takes seconds to compile where it is drawn several times in a program.
_KEY = jax.random.key(3, impl="rbg")


def _noise(z: Any) -> jax.Array:
    return -jnp.log(-jnp.log1p(-(jax.random.bits(_KEY, z.shape).astype(jnp.float32) + 0.5) / 2.0**32))


def _sigmoid_focal(z: Any, gamma: Any) -> jax.Array:
    p, bits = jax.nn.sigmoid(z), BITS
    positive = 0.3 * bits * (1.0 - p) ** gamma * jax.nn.softplus(-z)
    return positive + 0.7 * (1.0 - bits) * p**gamma * jax.nn.softplus(z)


_Z, _T = LOGITS, TEMPERATURE

OPERATIONS: dict[str, Operation] = {
    "softmax": Operation(
        lambda z, t: jaxsoftmax.softmax(z, temperature=t), lambda z, t: jnp.exp(_log_p(z, t)), (_Z, _T)
    ),
    "log_softmax": Operation(lambda z, t: jaxsoftmax.log_softmax(z, temperature=t), _log_p, (_Z, _T)),
    "logsumexp": Operation(
        lambda z, w, t: jaxsoftmax.logsumexp(z, weights=w, temperature=t),
        lambda z, w, t: jax.nn.logsumexp(z / _rows(t), axis=-1, b=w),
        (_Z, DISTRIBUTION, _T),
    ),
    "smooth_max": Operation(
        lambda z, t: jaxsoftmax.smooth_max(z, temperature=t),
        lambda z, t: t * jax.nn.logsumexp(z / _rows(t), axis=-1),
        (_Z, _T),
    ),
    "row_statistics": Operation(
        lambda z: jnp.stack(jaxsoftmax.row_statistics(z, LABELS)[:4], -1),
        lambda z: jnp.stack(_plain_statistics(z), -1),
        (_Z,),
    ),
    "cross_entropy": Operation(
        lambda z, t, w, e: jaxsoftmax.cross_entropy(
            z, LABELS, temperature=t, class_weights=w, label_smoothing=e, z_loss=0.1
        ),
        _plain_smoothed,
        (_Z, _T, np.array([1.0, 0.5, 2.0, 1.5], np.float32), np.array(0.1, np.float32)),
    ),
    "cross_entropy_capped": Operation(
        lambda z: jaxsoftmax.cross_entropy(z, LABELS, logit_cap=3.0),
        lambda z: -_picked(_log_p(_capped(z))),
        (_Z,),
    ),
    "focal_loss": Operation(
        lambda z, t: jaxsoftmax.focal_loss(z, LABELS, gamma=1.7, temperature=t), _plain_focal, (_Z, _T)
    ),
    "poly_loss": Operation(
        lambda z: jaxsoftmax.poly_loss(z, LABELS, epsilon=2.0),
        lambda z: -_picked(_log_p(z)) + 2.0 * (1.0 - jnp.exp(_picked(_log_p(z)))),
        (_Z,),
    ),
    "additive_margin": Operation(
        lambda z: objectives.additive_margin(jaxsoftmax.row_statistics(z, LABELS), margin=0.35, scale=4.0),
        lambda z: -_picked(_log_p(z - 1.4 * ONE_HOT)),
        (_Z,),
    ),
    "angular_margin": Operation(
        lambda z: objectives.angular_margin(
            jaxsoftmax.row_statistics(8.0 * jnp.tanh(z / 8.0), LABELS), margin=0.5, scale=8.0
        ),
        _plain_arcface,
        (_Z,),
    ),
    "soft_cross_entropy": Operation(
        lambda z, q, t: jaxsoftmax.soft_cross_entropy(z, q, temperature=t, logit_cap=3.0),
        lambda z, q, t: -jnp.sum(q * _log_p(_capped(z), t), -1),
        (_Z, DISTRIBUTION, _T),
    ),
    "kl_divergence": Operation(
        lambda z, w, t: jaxsoftmax.kl_divergence(z, w, temperature=t), _plain_kl, (_Z, OTHER, _T)
    ),
    "entropy": Operation(
        lambda z, t: jaxsoftmax.entropy(z, temperature=t),
        lambda z, t: -jnp.sum(jnp.exp(_log_p(z, t)) * _log_p(z, t), -1),
        (_Z, _T),
    ),
    "hinge_loss": Operation(lambda z: jaxsoftmax.hinge_loss(z, LABELS), _plain_hinge, (_Z,)),
    "weston_watkins": Operation(
        lambda z: jaxsoftmax.hinge_loss(z, LABELS, variant="weston_watkins"), _plain_weston_watkins, (_Z,)
    ),
    "binary_cross_entropy": Operation(
        lambda z, y: jaxsoftmax.binary_cross_entropy(z, y, positive_weight=2.0),
        lambda z, y: 2.0 * y * jax.nn.softplus(-z) + (1.0 - y) * jax.nn.softplus(z),
        (_Z, BITS),
    ),
    "sigmoid_focal_loss": Operation(
        lambda z, g: jaxsoftmax.sigmoid_focal_loss(z, BITS, gamma=g, alpha=0.3),
        _sigmoid_focal,
        (_Z, np.array(1.5, np.float32)),
    ),
    "smooth_labels": Operation(
        lambda q, e: jaxsoftmax.smooth_labels(q, e, smoothing="others"),
        lambda q, e: (1.0 - e) * q + e * (1.0 - q) / (CLASSES - 1),
        (DISTRIBUTION, np.array(0.2, np.float32)),
    ),
    "weighted_mean": Operation(
        jaxsoftmax.weighted_mean,
        lambda v, w: jnp.sum(v * w) / jnp.sum(w),
        (_Z, DISTRIBUTION),
    ),
    "gumbel_softmax": Operation(
        lambda z, t: jaxsoftmax.gumbel_softmax(_KEY, z, temperature=t),
        lambda z, t: jnp.exp(_log_p(z + _noise(z), t)),
        (_Z, _T),
    ),
    "gumbel_softmax_hard": Operation(
        lambda z, t: jaxsoftmax.gumbel_softmax(_KEY, z, temperature=t, hard=True),
        lambda z, t: _plain_hard(jnp.exp(_log_p(z + _noise(z), t))),
        (_Z, _T),
    ),
    "linear_statistics": Operation(
        lambda h, w, b, t: jnp.stack(
            jaxsoftmax.linear_statistics(h, w, LABELS, bias=b, temperature=t, logit_cap=3.0, block_size=2)[:4], -1
        ),
        lambda h, w, b, t: jnp.stack(_plain_statistics(_capped(h @ w + b[None]) / _rows(t), t), -1),
        (FEATURES, KERNEL, BIAS, _T),
    ),
    "linear_cross_entropy": Operation(
        lambda h, w, t, e: jaxsoftmax.linear_cross_entropy(
            h, w, LABELS, temperature=t, label_smoothing=e, z_loss=0.1, block_size=2
        ),
        lambda h, w, t, e: jnp.mean(_plain_smoothed(h @ w, t, jnp.ones(CLASSES), e)),
        (FEATURES, KERNEL, _T, np.array(0.1, np.float32)),
    ),
    "linear_entropy": Operation(
        lambda h, w, t: jaxsoftmax.linear_entropy(h, w, temperature=t, block_size=2),
        lambda h, w, t: -jnp.sum(jnp.exp(_log_p(h @ w, t)) * _log_p(h @ w, t), -1),
        (FEATURES, KERNEL, _T),
    ),
    "linear_kl_divergence": Operation(
        lambda h, w, g: jaxsoftmax.linear_kl_divergence(h, w, g, TEACHER_KERNEL, weights=TEMPERATURE, block_size=2),
        lambda h, w, g: jnp.average(_plain_kl(h @ w, g @ TEACHER_KERNEL, jnp.ones(ROWS)), weights=TEMPERATURE),
        (FEATURES, KERNEL, TEACHER_FEATURES),
    ),
    "straight_through": Operation(
        lambda z: jaxsoftmax.straight_through(jnp.round(z), z),
        lambda z: z + jax.lax.stop_gradient(jnp.round(z) - z),
        (_Z,),
    ),
}


def _plain_statistics(z: jax.Array, temperature: Any = None) -> tuple[jax.Array, ...]:
    """Of z, which is divided by T already; the largest logit is a constant, the shift is that over T."""
    shift = jax.lax.stop_gradient(jnp.max(z, -1))
    if temperature is not None:
        shift = jax.lax.stop_gradient(shift * temperature) / temperature
    others = jnp.where(ONE_HOT == 1, -jnp.inf, z)
    return _picked(z) - shift, jax.nn.logsumexp(others, axis=-1) - shift, jnp.mean(z, -1) - shift, shift


def _plain_hard(soft: jax.Array) -> jax.Array:
    hard = jax.nn.one_hot(jnp.argmax(soft, -1), soft.shape[-1])
    return soft + jax.lax.stop_gradient(hard - soft)
