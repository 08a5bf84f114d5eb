"""With optax: training steps, and the same numbers as its losses on mild inputs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsoftmax

RNG = np.random.default_rng(0)
Z = RNG.standard_normal((6, 5)).astype(np.float32)
W = RNG.standard_normal((6, 5)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 4, 0], np.int32)
BITS = (W > 0).astype(np.float32)
Q = np.eye(5, dtype=np.float32)[LABELS]

LOSSES: dict[str, Callable[[Any], jax.Array]] = {
    "cross_entropy": lambda z: jaxsoftmax.cross_entropy(z, LABELS, label_smoothing=0.1, z_loss=1e-3),
    "focal_loss": lambda z: jaxsoftmax.focal_loss(z, LABELS, gamma=0.5),
    "poly_loss": lambda z: jaxsoftmax.poly_loss(z, LABELS),
    "hinge_loss": lambda z: jaxsoftmax.hinge_loss(z, LABELS),
    "soft_cross_entropy": lambda z: jaxsoftmax.soft_cross_entropy(z, Q),
    "kl_divergence": lambda z: jaxsoftmax.kl_divergence(z, W, temperature=2.0),
    "binary_cross_entropy": lambda z: jaxsoftmax.binary_cross_entropy(z, BITS),
    "sigmoid_focal_loss": lambda z: jaxsoftmax.sigmoid_focal_loss(z, BITS),
}


@pytest.mark.parametrize("name", LOSSES)
def test_training_reduces_the_loss(name: str) -> None:
    """Ten steps of gradient descent with momentum on a linear classifier."""
    features = np.random.default_rng(1).standard_normal((6, 8)).astype(np.float32)
    optimizer = optax.sgd(0.1, momentum=0.9)

    def mean_loss(kernel: jax.Array) -> jax.Array:
        return jaxsoftmax.weighted_mean(LOSSES[name](features @ kernel))

    @jax.jit
    def train(kernel: jax.Array) -> jax.Array:
        def step(carry: Any, _: None) -> Any:
            kernel, state = carry
            loss, gradient = jax.value_and_grad(mean_loss)(kernel)
            updates, state = optimizer.update(gradient, state, kernel)
            return (optax.apply_updates(kernel, updates), state), loss

        return jax.lax.scan(step, (kernel, optimizer.init(kernel)), None, length=10)[1]

    losses = np.asarray(train(jnp.zeros((8, 5))))
    assert np.all(np.isfinite(losses))
    assert losses[-1] < 0.9 * losses[0]


PAIRS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "cross_entropy": (
        lambda z: jaxsoftmax.cross_entropy(z, LABELS),
        lambda z: optax.softmax_cross_entropy_with_integer_labels(z, LABELS),
    ),
    "cross_entropy_where": (
        lambda z: jaxsoftmax.cross_entropy(z, LABELS, where=(BITS + Q) > 0),
        lambda z: optax.softmax_cross_entropy_with_integer_labels(z, LABELS, where=(BITS + Q) > 0),
    ),
    "cross_entropy_smoothed": (
        lambda z: jaxsoftmax.cross_entropy(z, LABELS, label_smoothing=0.2),
        lambda z: optax.softmax_cross_entropy(z, optax.smooth_labels(Q, 0.2)),
    ),
    "soft_cross_entropy": (
        lambda z: jaxsoftmax.soft_cross_entropy(z, jax.nn.softmax(W)),
        lambda z: optax.softmax_cross_entropy(z, jax.nn.softmax(W)),
    ),
    "poly_loss": (
        lambda z: jaxsoftmax.poly_loss(z, LABELS, epsilon=2.0),
        lambda z: optax.losses.poly_loss_cross_entropy(z, Q, epsilon=2.0),
    ),
    "binary_cross_entropy": (
        lambda z: jaxsoftmax.binary_cross_entropy(z, BITS),
        lambda z: optax.sigmoid_binary_cross_entropy(z, BITS),
    ),
    "sigmoid_focal_loss": (
        lambda z: jaxsoftmax.sigmoid_focal_loss(z, BITS, gamma=2.0, alpha=0.25),
        lambda z: optax.sigmoid_focal_loss(z, BITS, alpha=0.25, gamma=2.0),
    ),
    "smooth_labels": (
        lambda q: jaxsoftmax.smooth_labels(q, 0.2),
        lambda q: optax.smooth_labels(q, 0.2),
    ),
    "kl_divergence": (
        lambda z: jaxsoftmax.kl_divergence(z, W),
        lambda z: optax.losses.kl_divergence(jax.nn.log_softmax(z), jax.nn.softmax(W)),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_same_as_optax(name: str) -> None:
    """Value and gradient."""

    def both(function: Callable[[Any], Any]) -> Any:
        value, pullback = jax.vjp(function, jnp.asarray(Z))
        return value, pullback(jnp.cos(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape))

    ours, theirs = jax.jit(lambda: tuple(both(function) for function in PAIRS[name]))()
    for actual, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)
