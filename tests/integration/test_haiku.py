"""Inside of a transformed Haiku function."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoftmax

hk = pytest.importorskip("haiku", reason="dm-haiku is not installed", exc_type=ImportError)


def test_loss_in_a_transformed_function() -> None:
    """A jitted gradient step on a transformed loss that also draws a relaxed choice; the loss falls."""

    @hk.transform
    def loss(features: jax.Array, labels: jax.Array) -> jax.Array:
        chosen = jaxsoftmax.gumbel_softmax(hk.next_rng_key(), hk.Linear(8)(features), temperature=0.7)
        logits = hk.Linear(3)(chosen)
        return jaxsoftmax.weighted_mean(jaxsoftmax.cross_entropy(logits, labels, ignore_label=-1))

    features = jnp.asarray(np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32))
    labels = jnp.array([0, 1, 2, 0, 1, -1])
    key = jax.random.key(0)

    @jax.jit
    def step(parameters: Any) -> Any:
        value, gradient = jax.value_and_grad(loss.apply)(parameters, key, features, labels)
        return value, jax.tree.map(lambda p, g: p - 0.5 * g, parameters, gradient)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as Haiku needs them
        parameters = loss.init(key, features, labels)
        losses = []
        for _ in range(8):
            value, parameters = step(parameters)
            losses.append(float(value))
    assert np.all(np.isfinite(losses))
    assert losses[-1] < losses[0]
