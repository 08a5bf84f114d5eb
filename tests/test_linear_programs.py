"""The streamed head compiled as users compile it: its programs, its memory, its last digits in half precision."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsoftmax
from jaxsoftmax import objectives
from tests.linear_cases import N, V, arguments, compiled, dense


def test_tails():
    """Certain rows have losses down to 1e-37, as in the dense path."""
    features = np.diag(np.float32([17.0, 60.0, 84.0]))
    labels = np.arange(3, dtype=np.int32)
    losses = jaxsoftmax.linear_cross_entropy(features, np.eye(3, 4, dtype=np.float32), labels, reduction="none")
    np.testing.assert_allclose(losses, 3 * np.exp(-np.float64([17.0, 60.0, 84.0])), rtol=3e-5)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_no_worse_than_the_dense_expression(dtype, reduction):
    """|ours - exact| <= |dense with float32 logits - exact| + 1e-3, on the same rounded inputs; dtypes are kept."""
    floats = [jnp.asarray(x, dtype) for x in arguments(5.0)[:2]]
    labels = np.abs(arguments(5.0)[-1]) % V
    ones = np.ones(N, np.float32)

    def ours(features, kernel, labels):
        return jaxsoftmax.linear_cross_entropy(features, kernel, labels, reduction=reduction, block_size=4)

    def plain(features, kernel, labels):
        return dense(objectives.cross_entropy, reduction, features, kernel, None, None, ones, labels)

    value, slopes = compiled(ours)(floats, labels)
    other, other_slopes = compiled(plain)(floats, labels)
    with jax.enable_x64(True):
        wide = [np.asarray(x, np.float64) for x in floats]
        exact, exact_slopes = jax.tree.map(np.asarray, compiled(ours)(wide, labels))
    assert value.dtype == jnp.float32
    assert [s.dtype for s in slopes] == [dtype, dtype]
    for a, o, e in zip((value, *slopes), (other, *other_slopes), (exact, *exact_slopes), strict=True):
        size = np.max(np.abs(e))
        error, allowed = (np.max(np.abs(np.asarray(x, np.float64) - e)) / size for x in (a, o))
        assert error <= allowed + 1e-3


def test_mixed_dtypes():
    """A float32 kernel takes part in products of the features' dtype, and its gradient is float32, unrounded."""
    features, kernel, _, _, _, labels = arguments(1.0)
    labels = np.abs(labels) % V
    narrow = jnp.asarray(features, jnp.bfloat16)
    loss = functools.partial(jaxsoftmax.linear_cross_entropy, labels=labels)
    by_kernel = jax.grad(loss, 1)(narrow, jnp.asarray(kernel))
    rounded = jax.grad(loss, 1)(narrow, jnp.asarray(kernel, jnp.bfloat16))
    assert by_kernel.dtype == jnp.float32
    np.testing.assert_array_equal(by_kernel.astype(jnp.bfloat16), rounded)


def test_the_sum_over_blocks_accumulates_in_float32():
    """A bfloat16 accumulator would be off by the number of blocks."""
    rng = np.random.default_rng(4)
    features = jnp.asarray(rng.standard_normal((512, 4)), jnp.bfloat16)
    kernel, labels = jnp.zeros((4, 8), jnp.bfloat16), rng.integers(0, 8, 512)
    loss = functools.partial(jaxsoftmax.linear_cross_entropy, labels=labels, reduction="sum")
    one, many = (jax.grad(lambda k, b=b: loss(features, k, block_size=b))(kernel) for b in (512, 1))
    np.testing.assert_allclose(many.astype(np.float32), one.astype(np.float32), rtol=2**-7)


def products(function, *args):
    """Floating-point operations of the compiled program, in units of one product of a block."""
    compiled = jax.jit(function).lower(*args).compile()
    return compiled.cost_analysis()["flops"] / (2 * 64 * 128 * 1024)


def test_only_what_is_asked_for_is_computed():
    """One product forward, two with one side frozen, three in all; four at most under `jax.checkpoint`.

    One block, so that the compiler counts all.
    """
    features, kernel, labels = jnp.ones((64, 128)), jnp.ones((128, 1024)), jnp.zeros(64, int)

    def mean(h, w):
        return jaxsoftmax.linear_cross_entropy(h, w, labels)

    def count(function, argnums):
        return products(jax.value_and_grad(function, argnums), features, kernel)

    assert products(mean, features, kernel) < 1.3
    assert count(mean, 0) < 2.3
    assert count(mean, 1) < 2.3
    assert 2.9 < count(mean, (0, 1)) < 3.3
    remat = jax.checkpoint(lambda h, w: jnp.sin(mean(h, w)))
    assert count(remat, (0, 1)) < 4.3


def arrays_of(text, size):
    """The shapes in a compiled text that have so many elements."""
    shapes = {m for m in re.findall(r"\b(?:f32|bf16|pred|s32)\[([\d,]+)\]", text)}
    return {s for s in shapes if math.prod(map(int, s.split(","))) >= size}


def test_no_array_of_the_size_of_the_logits():
    """In value, gradient, jvp and Hessian-vector products of both kinds, at N = 4096 and V = 50304, compiled only."""
    rows, depth, classes = 4096, 16, 50304
    features = jax.ShapeDtypeStruct((rows, depth), jnp.float32)
    kernel = jax.ShapeDtypeStruct((depth, classes), jnp.float32)
    labels = jax.ShapeDtypeStruct((rows,), jnp.int32)

    def programs(reduction):
        def loss(h, w, y):
            return jnp.sum(jaxsoftmax.linear_cross_entropy(h, w, y, reduction=reduction, block_size=128))

        gradient = jax.grad(loss, (0, 1))

        def forward_over_reverse(h, w, y):
            return jax.jvp(lambda h, w: gradient(h, w, y), (h, w), (h, w))[1]

        def reverse_over_reverse(h, w, y):
            return jax.grad(lambda h, w: sum(jnp.sum(g * g) for g in gradient(h, w, y)), (0, 1))(h, w)

        def pushed(h, w, y):
            with jaxsoftmax.forward_mode():
                return jax.jvp(lambda h, w: loss(h, w, y), (h, w), (h, w))

        return loss, gradient, forward_over_reverse, reverse_over_reverse, pushed

    for reduction in ("mean", "none"):
        for program in programs(reduction):
            compiled = (
                jax.jit(program)
                .lower(features, kernel, labels)
                .compile(compiler_options={"xla_backend_optimization_level": 0})
            )
            assert not arrays_of(compiled.as_text(), rows * classes), (reduction, program.__name__)
            assert compiled.memory_analysis().temp_size_in_bytes < rows * classes


@pytest.mark.parametrize(("shape", "share"), [((2048, 512, 32768), 1 / 8), ((1024, 256, 131072), 1 / 16)])
def test_temporary_memory(shape, share):
    """Beyond one float32 copy of the kernel's gradient, a small share of what optax takes on the whole logits."""
    rows, depth, classes = shape
    features = jax.ShapeDtypeStruct((rows, depth), jnp.float32)
    kernel = jax.ShapeDtypeStruct((depth, classes), jnp.float32)
    labels = jax.ShapeDtypeStruct((rows,), jnp.int32)

    def temporary(loss):
        program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(features, kernel, labels).compile()
        return program.memory_analysis().temp_size_in_bytes

    streamed_bytes = temporary(lambda h, w, y: jaxsoftmax.linear_cross_entropy(h, w, y))
    whole = temporary(lambda h, w, y: jnp.mean(optax.softmax_cross_entropy_with_integer_labels(h @ w, y)))
    assert whole >= 4 * rows * classes
    assert streamed_bytes - 4 * depth * classes <= share * whole


def test_float16_gradients_of_a_mean_over_many_rows():
    """The mean divides after the products: gradients of logits divided by N before would vanish in float16."""
    rng = np.random.default_rng(6)
    features = jnp.asarray(rng.standard_normal((16384, 3)), jnp.float16)
    kernel, labels = jnp.asarray(0.1 * rng.standard_normal((3, 300)), jnp.float16), rng.integers(0, 300, 16384)
    slope = jax.grad(jaxsoftmax.linear_cross_entropy, 1)(features, kernel.astype(jnp.float32), labels)
    exact = jax.grad(jaxsoftmax.linear_cross_entropy, 1)(
        features.astype(jnp.float32), kernel.astype(jnp.float32), labels
    )
    np.testing.assert_allclose(slope, exact, atol=2e-3 * np.max(np.abs(exact)))
