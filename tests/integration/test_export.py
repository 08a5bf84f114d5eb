"""Programs that are exported once, for any number of rows and classes: the numbers of the program for just these."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax import export

import jaxsoftmax
from tests.helpers import assert_same, with_gradients

DENSE: dict[str, Callable[[Any, Any], jax.Array]] = {
    "softmax": lambda z, y: jaxsoftmax.softmax(z, temperature=0.5),
    "logsumexp": lambda z, y: jaxsoftmax.logsumexp(z, axis=(0, 1)),
    "cross_entropy": lambda z, y: jaxsoftmax.cross_entropy(z, y, label_smoothing=0.1, z_loss=0.01, ignore_label=2),
    "focal_loss": lambda z, y: jaxsoftmax.focal_loss(z, y, where=z < 1.5),
    "hinge_loss": lambda z, y: jaxsoftmax.hinge_loss(z, y),
    "kl_divergence": lambda z, y: jaxsoftmax.kl_divergence(z, 2.0 * z),
    "gumbel_softmax": lambda z, y: jaxsoftmax.gumbel_softmax(jax.random.key(3), z),
    "weighted_mean": lambda z, y: jaxsoftmax.weighted_mean(z, z > 0.0),
}


def check(function: Callable[..., Any], symbols: str, arguments: Callable[..., Any], *sizes: tuple[int, ...]) -> None:
    """Exported with symbols for the sizes, the function has at each of these the numbers that it has by itself."""
    symbolic = arguments(*export.symbolic_shape(symbols))
    exported = export.export(jax.jit(function))(*symbolic)
    for size in sizes:
        rng = np.random.default_rng(7)
        numbers = [_numbers(rng, x) for x in arguments(*size)]
        assert_same(jax.jit(exported.call)(*numbers), jax.jit(function)(*numbers))


def _numbers(rng: np.random.Generator, x: jax.ShapeDtypeStruct) -> np.ndarray:
    if x.dtype == np.int32:
        return rng.integers(0, 5, x.shape).astype(x.dtype)
    return rng.uniform(-1.0, 1.0, x.shape).astype(x.dtype)


def _of(*shape: Any, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("name", DENSE)
def test_rows_and_classes(name: str) -> None:
    """Of dense functions, with their gradients."""
    function = with_gradients(DENSE[name])
    check(function, "n, v", lambda n, v: (_of(n, v), _of(n, dtype=np.int32)), (6, 7))


HEADS: dict[str, Callable[..., Any]] = {
    "linear_cross_entropy": with_gradients(
        lambda h, w, y, r: jaxsoftmax.linear_cross_entropy(
            h, w, y, weights=r, reduction="sum", ignore_label=2, block_size=16
        )
    ),
    "linear_log_probs": with_gradients(lambda h, w, y, r: jaxsoftmax.linear_log_probs(h, w, y, temperature=2.0 + r)),
    "linear_kl_divergence": with_gradients(
        lambda h, w, y, r: jaxsoftmax.linear_kl_divergence(h, w, -h, w, reduction="none", block_size=16)
    ),
    "linear_top_k": lambda h, w, y, r: jaxsoftmax.linear_top_k(h, w, 3, block_size=16),
    "linear_accuracy": lambda h, w, y, r: jaxsoftmax.linear_accuracy(h, w, y, k=3),
}


@pytest.mark.parametrize("name", HEADS)
def test_rows_of_a_streamed_head(name: str) -> None:
    """In blocks of one size: a part of one, and several with a part."""
    arguments = lambda n: (_of(n, 4), _of(4, 9), _of(n, dtype=np.int32), _of(n))  # noqa: E731
    check(HEADS[name], "n", arguments, (1,), (37,))
