"""A decoder-only transformer as pure functions: parameters in a dict, the layers stacked along their first axis.

Pre-normalization by root mean square, rotary positions, causal attention, and no biases. The embedding is tied: its
transpose is the kernel of the logits, which only the loss and the sampler apply, so that the model ends in features.
"""

from typing import Any

import jax
import jax.numpy as jnp

Params = dict[str, Any]


def init_transformer(key: jax.Array, *, vocabulary: int, width: int, layers: int, heads: int) -> Params:
    """Kernels of variance 1 / D_in; less where a layer adds to the residual stream, so that its variance stays put."""
    embedding_key, *keys = jax.random.split(key, 5)
    head_width = width // heads
    shapes = {
        "query_key_value": (width, 3, heads, head_width),
        "attention_output": (width, width),
        "mlp_input": (width, 4 * width),
        "mlp_output": (4 * width, width),
    }
    kernels = {
        name: jax.random.normal(kernel_key, (layers, *shape)) * shape[0] ** -0.5
        for kernel_key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    for name in ("attention_output", "mlp_output"):
        kernels[name] *= (2 * layers) ** -0.5
    scales = {name: jnp.ones((layers, width)) for name in ("attention_scale", "mlp_scale")}
    return {
        "embedding": 0.02 * jax.random.normal(embedding_key, (vocabulary, width)),
        "layers": kernels | scales,
        "final_scale": jnp.ones(width),
    }


def transformer(params: Params, tokens: jax.Array) -> jax.Array:
    """Features [B, T, D] of tokens [B, T]; those at a position depend on the tokens up to it."""

    def layer(stream: jax.Array, params: Params) -> tuple[jax.Array, None]:
        inputs = rms_norm(stream, params["attention_scale"])
        query, key, value = jnp.einsum("btd,dchk->cbthk", inputs, params["query_key_value"])
        attended = jax.nn.dot_product_attention(rotate(query), rotate(key), value, is_causal=True)
        stream = stream + attended.reshape(stream.shape) @ params["attention_output"]
        hidden = jax.nn.gelu(rms_norm(stream, params["mlp_scale"]) @ params["mlp_input"])
        return stream + hidden @ params["mlp_output"], None

    stream, _ = jax.lax.scan(layer, params["embedding"][tokens], params["layers"])
    return rms_norm(stream, params["final_scale"])


def rms_norm(vectors: jax.Array, scale: jax.Array) -> jax.Array:
    """Vectors [..., D] at a root mean square of 1, times a scale [D]."""
    return vectors * jax.lax.rsqrt(jnp.square(vectors).mean(-1, keepdims=True) + 1e-6) * scale


def rotate(vectors: jax.Array) -> jax.Array:
    """Turn pairs of components of [B, T, H, K] by angles that grow with the position (Su et al., 2021)."""
    _, length, _, size = vectors.shape
    frequencies = 10_000.0 ** -(jnp.arange(size // 2) / (size // 2))
    angles = (jnp.arange(length)[:, None] * frequencies)[:, None]
    first, second = jnp.split(vectors, 2, axis=-1)
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cosine - second * sine, first * sine + second * cosine], axis=-1)


@jax.jit
def continuation(params: Params, key: jax.Array, tokens: jax.Array, given: int, temperature: float) -> jax.Array:
    """Keep the given first tokens of [T] and draw those after them one by one."""

    def draw(position: jax.Array, tokens: jax.Array) -> jax.Array:
        # The positions after this one hold no tokens yet, and causal attention does not look at them.
        features = transformer(params, tokens[None])[0, position - 1]
        logits = (params["embedding"] @ features).astype(jnp.float32)
        drawn = jax.random.categorical(jax.random.fold_in(key, position), logits / temperature)
        return tokens.at[position].set(drawn.astype(tokens.dtype))

    return jax.lax.fori_loop(given, len(tokens), draw, tokens)
