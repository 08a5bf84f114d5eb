"""What keeps the passes over an array, and the products that follow, apart in the compiled program."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftmax._core import folds, meshes
from jaxsoftmax._core.meshes import Axes

__all__ = [
    "after",
    "anew",
    "for_last_pass",
    "once",
    "one_by_one",
    "opaque",
    "opaque_off_cpu",
    "opaque_on_cpu",
]


def opaque(x: jax.Array) -> jax.Array:
    """The same numbers as a new value, of which the compiler knows nothing.

    A second reduction from opaque numbers per row shares nothing with the first. What two kernels share is written out,
    and for the exponentials of a row that takes longer than to compute them.
    """
    return lax.optimization_barrier(x)


def opaque_off_cpu(x: jax.Array) -> jax.Array:
    """`opaque` on an accelerator, which must not compute a sum twice; a CPU never does.

    And it gains from what an earlier pass has written.
    """
    return x if jax.default_backend() == "cpu" else opaque(x)


def opaque_on_cpu(x: jax.Array) -> jax.Array:
    """`opaque` on a CPU, for a result that is a sum.

    Of a sum over classes, its product with weights of the rows and the sum of these jax 0.12 makes one kernel, which
    takes ten times as long as two.
    """
    return opaque(x) if jax.default_backend() == "cpu" else x


def after(x: jax.Array, number: jax.Array) -> jax.Array:
    """x as a value that waits for another, finite number of its row: of no pass before it will anything be kept.

    What `opaque` asks for the compiler may forget before it decides which kernels share what; this it cannot.
    """
    return x + 0.0 * lax.stop_gradient(number)


def for_last_pass(x: jax.Array, number: jax.Array, logits: jax.Array, axes: Axes) -> jax.Array:
    """A number per row for the pass over such logits that follows from another number of the row.

    On a CPU it is not to share with the passes before what they would have to write out; of many rows, where all of
    them are one kernel, it may.
    """
    if jax.default_backend() != "cpu":
        return opaque(x)
    return x if folds.are_many(logits, axes) else after(x, number)


def anew(shift: jax.Array, logits: jax.Array, axes: Axes) -> jax.Array:
    """The row maximum, `opaque` after a sum of a folded row: the exponentials would be written out for what follows."""
    return opaque(shift) if folds.is_folded(logits, axes) else shift


def once(gradient: jax.Array, number: jax.Array) -> jax.Array:
    """The gradient by logits of sequences, [..., T, V], so that a CPU computes it once.

    In a layer's backward pass it is multiplied as it is and transposed, and XLA:CPU transposes while it computes all of
    it a second time, unless the last step is a quotient, which it does not repeat: here by 1, in a form that it cannot
    know, with a number of the row. The gradient of rows [N, V] is not transposed.
    """
    if jax.default_backend() != "cpu" or gradient.ndim <= 2 or meshes.explicit_sharding(gradient) is not None:
        return gradient
    places = lax.broadcasted_iota(gradient.dtype, gradient.shape, gradient.ndim - 1)
    never = places < 0.0 * lax.stop_gradient(number)
    return gradient / jnp.where(never, 2.0, 1.0).astype(gradient.dtype)


def one_by_one(gradient: jax.Array, labels: jax.Array) -> jax.Array:
    """The gradient by the logits [N, V], so that a CPU runs the products that follow from it one after the other.

    A layer's backward pass has two of them, for its input and for its kernel, and XLA:CPU starts both at once; each
    uses all cores, and in turns they take 1.1 to 1.3 times as long (seen up to 256 classes; wider ones do not suffer,
    and would be copied). After an update of a single number in place, here by 0, it does not. Where there are several
    devices the update might ask for a message, and is left out.

    Args:
        gradient: [N, V].
        labels: [N, 1], by which the number is chosen: a program knows them before the gradient.
    """
    alone = jax.default_backend() == "cpu" and meshes.alone() and meshes.explicit_sharding(gradient) is None
    if not (alone and isinstance(gradient.size, int) and gradient.size):
        return gradient
    return gradient.at[0, labels[0, 0]].add(0.0)
