"""What `benchmarks.linear` and `benchmarks.gpu` time: the head of a language model, and its exact gradients.

A head is features [N, D] times a kernel [D, V]; the loss is its cross entropy against labels [N]. One step is the loss
and its gradients with respect to features and kernel: three products of 2 N D V operations each and little else, so the
three products alone say how fast a step can be.
"""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsoftmax
from benchmarks import harness

__all__ = [
    "BASES",
    "DENSE",
    "MEAN",
    "PER_ROW",
    "PRODUCTS",
    "ROUNDED",
    "TOKAMAX",
    "TORCH",
    "TORCH_CHUNKED",
    "TORCH_TUNED",
    "Head",
    "Truth",
    "compiled_step",
    "has_tokamax",
    "make_head",
    "row_weights",
    "torch_steps",
]

MEAN = "jaxsoftmax, mean"
PER_ROW = "jaxsoftmax, none"
DENSE = "optax"
ROUNDED = "optax, rounded logits"
TOKAMAX = "tokamax"
PRODUCTS = "bare products"
WRITTEN = "products, written"
TORCH = "torch"
TORCH_CHUNKED = "torch chunked"
TORCH_TUNED = "torch, chunks of 256"

# The standard deviation of a logit, the distance between two rows that are sure of their label, and how far above the
# others its logit is put there.
SPREAD = 3.0
SURE_EVERY = 8
SURE_BY = 30.0
# How many rows of the features and how many columns of the kernel have an exact gradient.
JUDGED = 64
# The entries of a block of logits in float64: 64 MB.
BLOCK = 8_000_000

product = partial(jnp.matmul, preferred_element_type=jnp.float32)


@dataclasses.dataclass(frozen=True)
class Head:
    """The arguments of a step; `cotangent` weights the losses of the rows where they are not averaged."""

    features: jax.Array
    kernel: jax.Array
    labels: jax.Array
    cotangent: jax.Array

    @property
    def arguments(self) -> tuple[jax.Array, ...]:
        return self.features, self.kernel, self.labels, self.cotangent


def make_head(shape: tuple[int, int, int], dtype: str) -> Head:
    """Draws a head of shape (N, D, V).

    The numbers come from numpy, so that no random bits are in the peak memory of a device.
    """
    rows, width, classes = shape
    rng = np.random.default_rng(shape)
    features = rng.standard_normal((rows, width), np.float32)
    kernel = rng.standard_normal((width, classes), np.float32)
    kernel *= SPREAD / width**0.5
    labels = rng.integers(0, classes, rows, np.int32)
    # The square of a column's length is about SPREAD squared, and that is what its own direction adds to its logit.
    features[::SURE_EVERY] += SURE_BY / SPREAD**2 * kernel[:, labels[::SURE_EVERY]].T
    cotangent = rng.uniform(0.5, 1.5, rows).astype(np.float32) / rows
    dtype = jnp.dtype(dtype)
    return Head(*map(jnp.asarray, (features.astype(dtype), kernel.astype(dtype), labels, cotangent)))


def mean_loss(features: jax.Array, kernel: jax.Array, labels: jax.Array, cotangent: jax.Array) -> jax.Array:
    return jaxsoftmax.linear_cross_entropy(features, kernel, labels, reduction="mean")


def per_row_loss(features: jax.Array, kernel: jax.Array, labels: jax.Array, cotangent: jax.Array) -> jax.Array:
    return jnp.sum(cotangent * jaxsoftmax.linear_cross_entropy(features, kernel, labels, reduction="none"))


def dense_loss(features: jax.Array, kernel: jax.Array, labels: jax.Array, cotangent: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(product(features, kernel), labels).mean()


def rounded_loss(features: jax.Array, kernel: jax.Array, labels: jax.Array, cotangent: jax.Array) -> jax.Array:
    logits = (features @ kernel).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def tokamax_loss(features: jax.Array, kernel: jax.Array, labels: jax.Array, cotangent: jax.Array) -> jax.Array:
    import tokamax
    from absl import flags

    # tokamax reads the command line of whatever program calls it and fails at flags that are not its own.
    flags.FLAGS.mark_as_parsed()
    return tokamax.linear_softmax_cross_entropy_loss(features, labels, kernel, reduction="mean")


LOSSES: Mapping[str, Callable] = {
    MEAN: mean_loss,
    PER_ROW: per_row_loss,
    DENSE: dense_loss,
    ROUNDED: rounded_loss,
    TOKAMAX: tokamax_loss,
}


def has_tokamax() -> bool:
    return importlib.util.find_spec("tokamax") is not None


def bare_products(features: jax.Array, kernel: jax.Array, slopes: jax.Array) -> tuple:
    """The products of a step, with the gradient of the logits given.

    The largest logit stands for all of them: it needs every one, and XLA on a CPU takes it while it has them, where
    writing [N, V] numbers, as `written_products` does, takes up to half as much again where features are few. In
    bfloat16 these are the products that XLA makes of bfloat16 numbers; on a CPU and with few features a step that
    converts them to float32 first can be faster.
    """
    logits, gradients = written_products(features, kernel, slopes)
    return jnp.max(logits), gradients


def written_products(features: jax.Array, kernel: jax.Array, slopes: jax.Array) -> tuple:
    """The same three products with all that they give."""
    gradients = product(slopes, kernel.T), product(features.T, slopes)
    return product(features, kernel), [g.astype(features.dtype) for g in gradients]


BASES: Mapping[str, Callable] = {PRODUCTS: bare_products, WRITTEN: written_products}


def logit_slopes(head: Head) -> jax.Array:
    """Numbers [N, V] in place of the gradient of the logits; a few repeated ones do and are drawn at once.

    XLA on a CPU converts such an array to float32 before it multiplies, so there the products are fastest with float32.
    """
    dtype = jnp.float32 if jax.default_backend() == "cpu" else head.features.dtype
    drawn = np.random.default_rng(0).standard_normal(1_000_003, np.float32)
    shape = len(head.labels), head.kernel.shape[1]
    return jnp.asarray(np.resize(drawn.astype(dtype), shape))


def compiled_step(name: str, head: Head) -> harness.Candidate:
    """A step in jax: its result is the loss and the gradients with respect to features and kernel."""
    if name in BASES:
        return harness.compiled(BASES[name], head.features, head.kernel, logit_slopes(head))
    return harness.compiled(jax.value_and_grad(LOSSES[name], argnums=(0, 1)), *head.arguments)


def torch_steps(head: Head) -> dict[str, harness.Candidate]:
    """The steps of torch; none where it is missing or would use another device."""
    torch = harness.torch_module()
    if torch is None:
        return {}
    functional, options = torch.nn.functional, torch.nn.LinearCrossEntropyOptions
    # torch keeps the kernel of a linear layer as [V, D].
    args = [harness.to_torch(torch, array) for array in (head.features, head.kernel.T, head.labels)]

    def dense(features: Any, weight: Any, labels: Any) -> Any:
        return functional.cross_entropy(functional.linear(features, weight), labels)

    def chunked(features: Any, weight: Any, labels: Any, **how: Any) -> Any:
        return functional.linear_cross_entropy(features, weight, labels, options=options(**how))

    functions = {TORCH: dense, TORCH_CHUNKED: chunked, TORCH_TUNED: partial(chunked, batch_chunk_size=256)}
    return {name: harness.torch_candidate(f, args, differentiate=(0, 1)) for name, f in functions.items()}


def row_weights(name: str, head: Head) -> np.ndarray:
    """What the loss of each row counts in the step of that name."""
    rows = len(head.labels)
    return np.asarray(head.cotangent, np.float64) if name == PER_ROW else np.full(rows, 1 / rows)


class Truth:
    """The gradients of a head in float64, with its numbers taken as exact, at some rows and at some columns.

    A column of the kernel's gradient needs the probabilities of all rows there, and so their log-normalizers; these are
    computed in blocks, and nothing else of the size of the logits.
    """

    def __init__(self, head: Head):
        self.features, self.kernel = (np.asarray(array, np.float64) for array in (head.features, head.kernel))
        labels = np.asarray(head.labels)
        rows, classes = len(labels), self.kernel.shape[1]
        rng = np.random.default_rng(0)
        self.rows = rng.choice(rows, min(rows, JUDGED), replace=False)
        # Half of the columns have a label.
        some = labels[self.rows[: JUDGED // 2]]
        self.columns = np.unique([*some, *rng.choice(classes, JUDGED - len(some))])

        block = max(1, BLOCK // classes)
        starts = range(0, rows, block)
        normalizers = np.concatenate([self.log_normalizers(slice(start, start + block)) for start in starts])[:, None]
        by_row = np.exp(self.features[self.rows] @ self.kernel - normalizers[self.rows])
        by_column = np.exp(self.features @ self.kernel[:, self.columns] - normalizers)
        self.by_row = by_row - (labels[self.rows, None] == np.arange(classes))
        self.by_column = by_column - (labels[:, None] == self.columns)

    def log_normalizers(self, rows: slice) -> np.ndarray:
        logits = self.features[rows] @ self.kernel
        largest = logits.max(-1)
        logits -= largest[:, None]
        return largest + np.log(np.exp(logits, out=logits).sum(-1))

    def errors(self, gradients: tuple[Any, Any], weights: np.ndarray) -> dict[str, dict[str, float]]:
        """Of both gradients, [N, D] and [D, V], the largest error and the root of the mean square, each relative.

        Args:
            gradients: with respect to features and kernel; tensors have the kernel as [V, D].
            weights: [N], what the loss of each row counts.
        """
        of_features, of_kernel = gradients
        judged_kernel = of_kernel[:, self.columns] if isinstance(of_kernel, jax.Array) else of_kernel[self.columns].T
        pairs = {
            "features": (of_features[self.rows], weights[self.rows, None] * self.by_row @ self.kernel.T),
            "kernel": (judged_kernel, self.features.T @ (weights[:, None] * self.by_column)),
        }
        results = {}
        for name, (got, exact) in pairs.items():
            error = harness.to_float64(got) - exact
            results[name] = {
                "max": float(np.abs(error).max() / np.abs(exact).max()),
                "rms": float(np.sqrt(np.square(error).mean() / np.square(exact).mean())),
            }
        return results
