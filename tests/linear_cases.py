"""Features, kernels and labels at every scale, and the streamed head beside the dense path on them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

import jaxsoftmax
from jaxsoftmax import objectives
from tests.helpers import cotangents
from tests.stepwise import stepwise

N, D, V = 23, 6, 41
IGNORED = -100
BLOCKS = (None, 1, 7, N - 1, N, N + 3)


def arguments(scale, seed=0, dtype=np.float32):
    """Features, kernel, bias, labels, temperature and weights: confident rows, ignored ones and some of weight 0."""
    rng = np.random.default_rng([seed, 7])
    features = rng.standard_normal((N, D))
    kernel = scale * rng.standard_normal((D, V)) / math.sqrt(D)
    bias = 0.5 * scale * rng.standard_normal(V)
    labels = rng.integers(0, V, N)
    labels[:3] = np.argmax(features[:3] @ kernel + bias, -1)
    features[:2] *= 6.0  # right and certain
    labels[3] = np.argmin(features[3] @ kernel + bias)
    labels[[5, 6, N - 1]] = IGNORED
    temperature = rng.uniform(0.5, 2.0, N)
    weights = rng.uniform(0.5, 2.0, N)
    weights[8:12] = 0.0
    floats = [x.astype(dtype) for x in (features, kernel, bias, temperature, weights)]
    return (*floats, labels.astype(np.int32))


OBJECTIVES = {
    "cross_entropy": objectives.cross_entropy,
    "smoothed": functools.partial(objectives.cross_entropy, label_smoothing=0.1),
    "smoothed others": functools.partial(objectives.cross_entropy, label_smoothing=0.1, smoothing="others"),
    "z_loss": functools.partial(objectives.cross_entropy, z_loss=1e-2),
    "focal": functools.partial(objectives.focal, gamma=0.5),
    "poly": objectives.poly,
    "additive margin": functools.partial(objectives.additive_margin, scale=2.0),
    "angular margin": functools.partial(objectives.angular_margin, scale=64.0),
    "users": lambda s: -s.log_prob + 0.1 * s.error_prob + 0.01 * (s.mean + s.shift),
}


def reduce(losses, weights, reduction):
    losses = jnp.where(weights == 0, 0.0, weights * losses)
    if reduction == "none":
        return losses
    total = jnp.sum(losses)
    return total if reduction == "sum" else total / jnp.where(jnp.sum(weights) == 0, 1.0, jnp.sum(weights))


def dense(objective, reduction, features, kernel, bias, temperature, weights, labels, **options):
    """The same from logits in memory."""
    logits = jnp.matmul(features, kernel, preferred_element_type=jnp.float32).astype(jnp.float32)
    logits = logits if bias is None else logits + bias.astype(jnp.float32)[None]
    counted = labels != IGNORED
    statistics = jaxsoftmax.row_statistics(logits, jnp.where(counted, labels, 0), temperature=temperature, **options)
    return reduce(objective(statistics), jnp.where(counted, weights, 0.0), reduction)


def streamed(objective, reduction, block, features, kernel, bias, temperature, weights, labels, **options):
    return jaxsoftmax.linear_loss(
        objective,
        features,
        kernel,
        labels,
        bias=bias,
        temperature=temperature,
        weights=weights,
        reduction=reduction,
        ignore_label=IGNORED,
        block_size=block,
        **options,
    )


def value_and_slopes(function):
    """f(floats, labels): value and gradients of a weighted sum of the results, with uneven cotangents."""

    def total(floats, labels):
        out = function(*floats, labels)
        return jnp.sum(out * cotangents(*out.shape, seed=3).astype(out.dtype)), out

    def both(floats, labels):
        (_, value), slopes = jax.value_and_grad(total, has_aux=True)(tuple(floats), labels)
        return value, slopes

    return both


def compiled(function):
    """The same, compiled once for all calls."""
    return jax.jit(value_and_slopes(function))


def gradients(function, floats, labels):
    """The same for a single call, step by step."""
    return stepwise(value_and_slopes(function))(floats, labels)


def assert_close(actual, expected, tolerance=3e-6):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        size = np.max(np.abs(e), initial=1e-3)
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(e, np.float64), atol=tolerance * size, rtol=0)


def without_weight_gradients(slopes, labels, weights):
    """A row that is not computed has no loss, and so the gradient by its weight is another: see linear_loss."""
    *rest, by_weights = slopes
    return *rest, np.where((labels == IGNORED) | (weights == 0), 0.0, by_weights)
