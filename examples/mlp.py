"""A multilayer perceptron as two pure functions, for the examples that need no framework."""

import jax
import jax.numpy as jnp

Layers = list[tuple[jax.Array, jax.Array]]


def init_mlp(key: jax.Array, sizes: tuple[int, ...]) -> Layers:
    """Kernels [D_in, D_out] with variance 2 / D_in (He et al., 2015), and zero biases."""
    keys = jax.random.split(key, len(sizes) - 1)
    shapes = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [
        (jax.random.normal(k, (rows, columns)) * (2 / rows) ** 0.5, jnp.zeros(columns)) for k, rows, columns in shapes
    ]


def mlp(layers: Layers, inputs: jax.Array) -> jax.Array:
    """Affine layers with ReLU between them: [N, D] -> [N, V]."""
    *hidden, (kernel, bias) = layers
    for hidden_kernel, hidden_bias in hidden:
        inputs = jax.nn.relu(inputs @ hidden_kernel + hidden_bias)
    return inputs @ kernel + bias
