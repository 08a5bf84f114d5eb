"""Inside of a Flax module."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoftmax

nnx = pytest.importorskip("flax.nnx", reason="flax is not installed", exc_type=ImportError)


def test_loss_in_a_module() -> None:
    """A jitted gradient step on a module whose call computes the loss, with an absent class; the loss falls."""

    class Classifier(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.dense = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, features: jax.Array, labels: jax.Array) -> jax.Array:
            where = jnp.array([True, True, False])
            return jaxsoftmax.weighted_mean(jaxsoftmax.cross_entropy(self.dense(features), labels, where=where))

    features = jnp.asarray(np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32))
    labels = jnp.array([0, 1, 0, 1, 0, 1])

    @jax.jit
    def step(state: nnx.State) -> tuple[jax.Array, nnx.State]:
        loss, gradient = jax.value_and_grad(lambda s: nnx.merge(graph, s)(features, labels))(state)
        return loss, gradient

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as Flax needs them
        graph, state = nnx.split(Classifier(nnx.Rngs(0)), nnx.Param)
        losses = []
        for _ in range(5):
            loss, gradient = step(state)
            losses.append(float(loss))
            absent = [leaf[..., 2] for leaf in jax.tree.leaves(gradient)]
            assert all(np.all(np.asarray(slope) == 0) for slope in absent)
            state = jax.tree.map(lambda p, g: p - 0.5 * g, state, gradient)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


def test_modules_and_forward_mode() -> None:
    """A Gauss-Newton product through nnx.jit: forward mode over a module with a softmax in the middle."""

    class Attend(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.dense = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, features: jax.Array) -> jax.Array:
            return jaxsoftmax.softmax(self.dense(features), temperature=0.5)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        module = Attend(nnx.Rngs(0))
        x = jnp.ones((2, 4))
        with jaxsoftmax.forward_mode():
            value, slope = nnx.jit(lambda m, v: jax.jvp(m, (v,), (v,)))(module, x)
    np.testing.assert_allclose(value.sum(-1), np.ones(2), rtol=1e-6)
    np.testing.assert_allclose(slope.sum(-1), np.zeros(2), atol=1e-6)


def test_parameters_stand_for_their_arrays() -> None:
    """Parameters of a module, given as they are, in every place that takes an array."""
    x, labels = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([0])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        module = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        plain = jaxsoftmax.linear_cross_entropy(x, module.kernel[...], labels, bias=module.bias[...])

        @nnx.jit
        def loss_and_gradient(module: nnx.Module) -> tuple[jax.Array, nnx.State]:
            def loss(m: nnx.Module) -> jax.Array:
                return jaxsoftmax.linear_cross_entropy(x, m.kernel, labels, bias=m.bias)

            return nnx.value_and_grad(loss)(module)

        value, gradient = loss_and_gradient(module)
        one, half, logits = nnx.Param(jnp.ones(3)), nnx.Param(jnp.array(0.5)), nnx.Param(x)
        pairs = [
            (value, plain),
            (jaxsoftmax.softmax(logits, temperature=half), jaxsoftmax.softmax(x, temperature=0.5)),
            (jaxsoftmax.cross_entropy(logits, labels, class_weights=one), jaxsoftmax.cross_entropy(x, labels)),
            (jaxsoftmax.focal_loss(logits, labels, alpha=half), 0.5 * jaxsoftmax.focal_loss(x, labels)),
            (jaxsoftmax.weighted_mean(logits), jnp.mean(x)),
        ]
    for actual, expected in pairs:
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient.bias[...], gradient.kernel[...][0], rtol=1e-6)
