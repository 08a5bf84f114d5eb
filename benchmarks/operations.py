"""What `benchmarks.speed` times: each operation of the library beside the function that users call instead.

One row of `OPERATIONS` is one operation. The first of its peers is the baseline: the function of the same name in
jax.nn or optax where there is one, and otherwise the expression that users write, called "expression".
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxsoftmax

__all__ = ["OPERATIONS", "Operation"]

FEATURES = 64
GAMMA = 2.0
TEMPERATURE = 0.5
SMOOTHING = 0.1
POLY_EPSILON = 1.0


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation and its peers, all of the same arguments.

    Attributes:
        name: how the tables call it.
        inputs: makes the arguments from a key, a shape [..., V] and a dtype.
        ours: the function of this library.
        peers: others by name, the baseline first.
        torch: the same in torch, with the module as its first argument, or None.
        differentiate: the positions of the arguments to differentiate with respect to.
        is_loss: whether the gradient is that of the mean of the result, or is pulled back from a given cotangent.
    """

    name: str
    inputs: Callable[[jax.Array, tuple[int, ...], Any], tuple]
    ours: Callable
    peers: Mapping[str, Callable]
    torch: Callable | None = None
    differentiate: tuple[int, ...] = (0,)
    is_loss: bool = True


def normal(key: jax.Array, shape: tuple[int, ...], dtype: Any, scale: float = 3.0) -> jax.Array:
    return (scale * jax.random.normal(key, shape)).astype(dtype)


def logits_alone(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> tuple:
    return (normal(key, shape, dtype),)


def two_logits(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> tuple:
    first, second = jax.random.split(key)
    return normal(first, shape, dtype), normal(second, shape, dtype)


def logits_and_labels(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> tuple:
    first, second = jax.random.split(key)
    return normal(first, shape, dtype), jax.random.randint(second, shape[:-1], 0, shape[-1])


def logits_and_distributions(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> tuple:
    logits, others = two_logits(key, shape, jnp.float32)
    return logits.astype(dtype), jax.nn.softmax(others).astype(dtype)


def logits_and_bits(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> tuple:
    first, second = jax.random.split(key)
    return normal(first, shape, dtype), jax.random.bernoulli(second, 0.5, shape).astype(dtype)


def key_and_logits(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> tuple:
    return key, normal(key, shape, dtype)


def features_kernel_and_labels(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> tuple:
    first, second, third = jax.random.split(key, 3)
    features = normal(first, (*shape[:-1], FEATURES), dtype, scale=1.0)
    kernel = normal(second, (FEATURES, shape[-1]), dtype, scale=3.0 / FEATURES**0.5)
    return features, kernel, jax.random.randint(third, shape[:-1], 0, shape[-1])


def in_product(loss: Callable) -> Callable:
    """The loss on logits that the same program computes, as the last layer of a network does."""
    return lambda features, kernel, labels: loss(features @ kernel, labels)


def in_torch_product(loss: Callable) -> Callable:
    return lambda torch, features, kernel, labels: loss(torch, features @ kernel, labels)


def smoothed_expression(logits: jax.Array, labels: jax.Array) -> jax.Array:
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, SMOOTHING))


def focal_expression(logits: jax.Array, labels: jax.Array) -> jax.Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return (1 - jnp.exp(-losses)) ** GAMMA * losses


def poly_expression(logits: jax.Array, labels: jax.Array) -> jax.Array:
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.losses.poly_loss_cross_entropy(logits, targets, epsilon=POLY_EPSILON)


def entropy_expression(logits: jax.Array) -> jax.Array:
    return -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), axis=-1)


def kl_expression(logits: jax.Array, target_logits: jax.Array) -> jax.Array:
    return optax.kl_divergence(jax.nn.log_softmax(logits), jax.nn.softmax(target_logits))


def gumbel_expression(key: jax.Array, logits: jax.Array) -> jax.Array:
    return jax.nn.softmax((logits + jax.random.gumbel(key, logits.shape, logits.dtype)) / TEMPERATURE)


def torch_cross_entropy(torch: Any, logits: Any, labels: Any, label_smoothing: float = 0.0) -> Any:
    # torch has the classes on axis 1, so rows are brought to [N, V].
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), reduction="none", label_smoothing=label_smoothing
    )


def torch_focal(torch: Any, logits: Any, labels: Any) -> Any:
    losses = torch_cross_entropy(torch, logits, labels)
    return (1 - torch.exp(-losses)) ** GAMMA * losses


def torch_soft_cross_entropy(torch: Any, logits: Any, targets: Any) -> Any:
    classes = logits.shape[-1]
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, classes), targets.reshape(-1, classes), reduction="none"
    )


def torch_kl(torch: Any, logits: Any, target_logits: Any) -> Any:
    log_target = torch.log_softmax(target_logits, -1)
    losses = torch.nn.functional.kl_div(torch.log_softmax(logits, -1), log_target, reduction="none", log_target=True)
    return losses.sum(-1)


def torch_binary_cross_entropy(torch: Any, logits: Any, labels: Any) -> Any:
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")


OPERATIONS = (
    Operation(
        "softmax",
        logits_alone,
        jaxsoftmax.softmax,
        {"jax.nn": jax.nn.softmax},
        lambda torch, logits: torch.softmax(logits, -1),
        is_loss=False,
    ),
    Operation(
        "log_softmax",
        logits_alone,
        jaxsoftmax.log_softmax,
        {"jax.nn": jax.nn.log_softmax},
        lambda torch, logits: torch.log_softmax(logits, -1),
        is_loss=False,
    ),
    Operation(
        "logsumexp",
        logits_alone,
        jaxsoftmax.logsumexp,
        {"jax.nn": lambda logits: jax.nn.logsumexp(logits, axis=-1)},
        lambda torch, logits: torch.logsumexp(logits, -1),
        is_loss=False,
    ),
    Operation(
        "cross_entropy",
        logits_and_labels,
        jaxsoftmax.cross_entropy,
        {"optax": optax.softmax_cross_entropy_with_integer_labels},
        torch_cross_entropy,
    ),
    Operation(
        "cross_entropy in product",
        features_kernel_and_labels,
        in_product(jaxsoftmax.cross_entropy),
        {"optax": in_product(optax.softmax_cross_entropy_with_integer_labels)},
        in_torch_product(torch_cross_entropy),
        differentiate=(0, 1),
    ),
    Operation(
        "cross_entropy smoothed",
        logits_and_labels,
        lambda logits, labels: jaxsoftmax.cross_entropy(logits, labels, label_smoothing=SMOOTHING),
        {"optax": smoothed_expression},
        lambda torch, logits, labels: torch_cross_entropy(torch, logits, labels, SMOOTHING),
    ),
    Operation(
        "soft_cross_entropy",
        logits_and_distributions,
        jaxsoftmax.soft_cross_entropy,
        {"optax": optax.softmax_cross_entropy},
        torch_soft_cross_entropy,
    ),
    Operation(
        "focal_loss",
        logits_and_labels,
        lambda logits, labels: jaxsoftmax.focal_loss(logits, labels, gamma=GAMMA),
        {"expression": focal_expression},
        torch_focal,
    ),
    # The question here is what focal costs over plain cross entropy, hence the baseline.
    Operation(
        "focal_loss in product",
        features_kernel_and_labels,
        in_product(lambda logits, labels: jaxsoftmax.focal_loss(logits, labels, gamma=GAMMA)),
        {"our cross_entropy": in_product(jaxsoftmax.cross_entropy), "expression": in_product(focal_expression)},
        in_torch_product(torch_focal),
        differentiate=(0, 1),
    ),
    Operation(
        "poly_loss",
        logits_and_labels,
        lambda logits, labels: jaxsoftmax.poly_loss(logits, labels, epsilon=POLY_EPSILON),
        {"optax": poly_expression},
    ),
    Operation(
        "hinge_loss",
        logits_and_labels,
        jaxsoftmax.hinge_loss,
        {"optax": optax.losses.multiclass_hinge_loss},
    ),
    Operation(
        "entropy",
        logits_alone,
        jaxsoftmax.entropy,
        {"expression": entropy_expression},
        lambda torch, logits: torch.distributions.Categorical(logits=logits, validate_args=False).entropy(),
    ),
    Operation(
        "kl_divergence",
        two_logits,
        jaxsoftmax.kl_divergence,
        {"optax": kl_expression},
        torch_kl,
    ),
    Operation(
        "binary_cross_entropy",
        logits_and_bits,
        jaxsoftmax.binary_cross_entropy,
        {"optax": optax.sigmoid_binary_cross_entropy},
        torch_binary_cross_entropy,
    ),
    Operation(
        "sigmoid_focal_loss",
        logits_and_bits,
        lambda logits, labels: jaxsoftmax.sigmoid_focal_loss(logits, labels, gamma=GAMMA),
        {"optax": lambda logits, labels: optax.sigmoid_focal_loss(logits, labels, gamma=GAMMA)},
    ),
    Operation(
        "gumbel_softmax",
        key_and_logits,
        lambda key, logits: jaxsoftmax.gumbel_softmax(key, logits, temperature=TEMPERATURE),
        {"expression": gumbel_expression},
        lambda torch, key, logits: torch.nn.functional.gumbel_softmax(logits, tau=TEMPERATURE, dim=-1),
        differentiate=(1,),
        is_loss=False,
    ),
)
