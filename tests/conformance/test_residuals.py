"""What reverse mode keeps, and the dtypes that it gives back."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoftmax
from tests.conformance.operations import LABELS, OPERATIONS
from tests.stepwise import stepwise

# Logits in bfloat16, as in a model: whatever is kept in float32 of their size is a second array.
WIDE = (64, 48)

KEPT = {
    "softmax": (jaxsoftmax.softmax, 1),
    "log_softmax": (jaxsoftmax.log_softmax, 1),
    "logsumexp": (jaxsoftmax.logsumexp, 1),
    "smooth_max": (jaxsoftmax.smooth_max, 1),
    "cross_entropy": (lambda z: jaxsoftmax.cross_entropy(z, jnp.zeros(64, int), label_smoothing=0.1, z_loss=0.1), 1),
    "masked": (lambda z: jaxsoftmax.cross_entropy(z, jnp.zeros(64, int), where=jnp.ones(WIDE, bool), logit_cap=9.0), 2),
    "focal_loss": (lambda z: jaxsoftmax.focal_loss(z, jnp.zeros(64, int), temperature=2.0), 1),
    "soft_cross_entropy": (lambda z: jaxsoftmax.soft_cross_entropy(z, jnp.ones(WIDE, jnp.bfloat16)), 2),
    "kl_divergence": (lambda z: jaxsoftmax.kl_divergence(z, jnp.ones(WIDE, jnp.bfloat16)), 2),
    "entropy": (jaxsoftmax.entropy, 1),
    "hinge_loss": (lambda z: jaxsoftmax.hinge_loss(z, jnp.zeros(64, int)), 1),
    "binary_cross_entropy": (lambda z: jaxsoftmax.binary_cross_entropy(z, jnp.ones(WIDE, bool)), 2),
    "sigmoid_focal_loss": (lambda z: jaxsoftmax.sigmoid_focal_loss(z, jnp.ones(WIDE, bool)), 2),
    "weighted_mean": (lambda z: jaxsoftmax.weighted_mean(z, jnp.ones(WIDE, bool)), 2),
    "gumbel_softmax": (lambda z: jaxsoftmax.gumbel_softmax(jax.random.key(0), z), 1),
}


@pytest.mark.parametrize("name", KEPT)
def test_reverse_mode_keeps_the_arguments_and_numbers_per_row(name: str) -> None:
    """No array of the size of the logits but the arguments of that size, and those in their own dtype."""
    function, arguments = KEPT[name]
    logits = jnp.ones(WIDE, jnp.bfloat16)
    _, pull = jax.vjp(jax.jit(function), logits)
    large = [leaf for leaf in jax.tree.leaves(pull) if leaf.size >= math.prod(WIDE)]
    if name == "weighted_mean":  # its weights are floating inside
        large = [leaf for leaf in large if leaf.dtype != jnp.float32]
        arguments = 1
    assert len(large) <= arguments
    assert all(leaf.dtype in (jnp.bfloat16, jnp.bool_) for leaf in large)


@pytest.mark.parametrize("name", OPERATIONS)
def test_dtypes(name: str) -> None:
    """A gradient has the dtype of its argument, for half precision arguments too; float64 stays float64."""
    operation = OPERATIONS[name]

    def gradients_of(*args: jax.Array) -> tuple[jax.Array, ...]:
        out, pull = jax.vjp(operation.function, *args)
        return pull(jnp.ones_like(out))

    with jax.enable_x64(True):
        for dtype in (jnp.bfloat16, jnp.float16, jnp.float64):
            args = tuple(jnp.asarray(a, dtype) for a in operation.args)
            gradients = stepwise(gradients_of)(*args)
            assert [g.dtype for g in gradients] == [a.dtype for a in args]
            assert all(np.all(np.isfinite(np.asarray(g, np.float64))) for g in gradients)


def test_labels_of_every_integer_dtype() -> None:
    """The label's dtype changes nothing."""
    logits = OPERATIONS["softmax"].args[0]
    expected = jaxsoftmax.cross_entropy(logits, LABELS)
    for dtype in (np.int8, np.uint8, np.int16, np.uint32):
        actual = jaxsoftmax.cross_entropy(logits, LABELS.astype(dtype), ignore_label=-100)
        np.testing.assert_array_equal(actual, expected)
