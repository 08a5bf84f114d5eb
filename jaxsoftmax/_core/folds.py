"""Long rows seen as several shorter ones, [..., V] as [..., G, K] with V = G K, where that is faster.

XLA:CPU makes one kernel of a sum and of all that leads to it. Along an axis of more than 2**15 numbers that kernel
takes two to seven times as long per number (seen at widths from 32 896 to 256 000). Two sums, along K and then along G,
do not, where the compiler is kept from making one of them again.

And where one class is left out of the sum, the largest or the label, it has to be left out of one part alone.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftmax._core import meshes
from jaxsoftmax._core.meshes import Axes

__all__ = [
    "Fold",
    "are_many",
    "axes_of",
    "fold_of",
    "in_one_row",
    "is_folded",
    "max_along",
    "sum_along",
    "with_axes",
]

# Rows of more classes are long. So are, where one class is left out of a sum, those of as many as the second number and
# more, and of the third, where another sum follows from that one. But of 2**12 rows and more XLA:CPU makes one kernel,
# from the maximum to what is written, which takes less time than the sums of parts.
LONG = 2**15
LONG_WITHOUT_ONE, LONG_SUMMED_TWICE, MANY_ROWS = 2**13, 2**11, 2**12
# The longest parts and the shortest. Where no size in between divides the width, rows stay whole.
LONGEST = 2**11
SHORTEST = 2**6


class Fold(NamedTuple):
    """How arrays whose last axis has the classes are seen with two class axes.

    Attributes:
        axes: The class axes of a folded array.
        sizes: G and K.
    """

    axes: Axes
    sizes: tuple[int, int]

    def into(self, x: Any) -> Any:
        """[..., V] as [..., G, K], a number per row, [..., 1], as [..., 1, 1]; what is neither (a key) stays."""
        sizes = {1: (1, 1), math.prod(self.sizes): self.sizes}
        if x is None or x.ndim != self.axes.dims[1] or x.shape[-1] not in sizes:
            return x
        return x.reshape(*x.shape[:-1], *sizes[x.shape[-1]])

    def back(self, x: jax.Array) -> jax.Array:
        """The inverse."""
        return in_one_row(x, self.axes) if x.ndim > self.axes.dims[1] else x


def axes_of(options: Any) -> Axes:
    """The class axes among the options of an operation on rows, which may be nothing else."""
    return options if isinstance(options, Axes) else options.axes


def with_axes(options: Any, axes: Axes) -> Any:
    """The same options with other class axes."""
    return axes if isinstance(options, Axes) else options._replace(axes=axes)


def fold_of(axes: Axes, logits: jax.Array, *, long_from: int = LONG + 1) -> Fold | None:
    """How rows of logits are folded; None for those that are not long. See `_are_long`."""
    last = logits.ndim - 1
    if axes.dims != (last,) or not _are_long(logits, axes, long_from):
        return None
    classes = logits.shape[last]
    groups = _groups(classes, LONGEST, SHORTEST)
    return None if groups == 1 else Fold(axes._replace(dims=(last, last + 1)), (groups, classes // groups))


def _are_long(logits: jax.Array, axes: Axes, long_from: int) -> bool:
    """Whether these are long rows, of a known number of classes, on a CPU: of more than LONG, or few of `long_from`.

    Not where JAX divides the work over a mesh: a fold might run across a cut, and everything would be exchanged.
    """
    classes = axes.size(logits)
    if jax.default_backend() != "cpu" or not isinstance(classes, int):
        return False
    few = isinstance(logits.size, int) and not axes.mesh and not are_many(logits, axes)
    long = classes > LONG or (few and classes >= long_from)
    return long and meshes.devices_beside(logits) == 1


def are_many(logits: jax.Array, axes: Axes) -> bool:
    """Whether there are so many rows that XLA:CPU makes one kernel of all that is done with them."""
    classes, size = axes.size(logits), logits.size
    known = isinstance(classes, int) and isinstance(size, int)
    return jax.default_backend() == "cpu" and known and size >= MANY_ROWS * classes


@functools.cache
def _groups(classes: int, longest: int, shortest: int) -> int:
    """The fewest parts of one size that are neither too long nor too short; 1 where there are none."""
    least, most = math.ceil(classes / longest), classes // shortest
    return next((groups for groups in range(least, most + 1) if classes % groups == 0), 1)


def in_one_row(x: jax.Array, axes: Axes) -> jax.Array:
    """[..., G, K] as [..., V]; with one class axis x itself."""
    return x if len(axes.dims) == 1 else x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def is_folded(x: jax.Array, axes: Axes, *, long_from: int = LONG + 1) -> bool:
    """Whether rows are long and have several class axes, those of a fold or the user's."""
    *outer, inner = axes.dims
    return bool(outer) and inner == x.ndim - 1 and _are_long(x, axes, long_from) and x.shape[inner] >= SHORTEST


def sum_along(x: jax.Array, axes: Axes) -> jax.Array:
    """Sum over the class axes, kept with size 1; of a long row with several along the last one first."""
    return _reduced(jnp.sum, x, axes)


def max_along(x: jax.Array, axes: Axes) -> jax.Array:
    """The maximum, in the same way. Not needed where there is nothing to compute on the way to it."""
    return _reduced(jnp.max, x, axes)


def _reduced(reduce: Callable[..., jax.Array], x: jax.Array, axes: Axes) -> jax.Array:
    if not is_folded(x, axes):
        return reduce(x, axis=axes.dims, keepdims=True)
    *outer, inner = axes.dims
    parts = lax.optimization_barrier(reduce(x, axis=inner, keepdims=True))
    return reduce(parts, axis=tuple(outer), keepdims=True)
