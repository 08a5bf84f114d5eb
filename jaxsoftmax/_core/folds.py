"""Long rows seen as several shorter ones, [..., V] as [..., G, K] with V = G K, where that is faster.

XLA:CPU makes one kernel of a sum and of all that leads to it. Along an axis of more than 2**15 numbers that kernel
takes two to seven times as long per number (seen at widths from 32 896 to 256 000). Two sums, along K and then along G,
do not, where the compiler is kept from making one of them again.

And in a row of parts the largest class has to be left out of the sum of one part alone (`arrays.excess`).
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftmax._core import meshes
from jaxsoftmax._core.meshes import Axes

__all__ = ["Fold", "axes_of", "fold_of", "in_one_row", "is_folded", "sum_along", "with_axes"]

# Rows of more classes are long. So are, where the largest class is left out, those of as many as the second number and
# more; but of 2**12 rows and more XLA:CPU makes one kernel, from the maximum to what is written, and takes less time.
LONG = 2**15
LONG_FOR_EXCESS, MANY_ROWS = 2**13, 2**12
# The longest parts and the shortest. Where no size in between divides the width, rows stay whole.
LONGEST = 2**11
SHORTEST = 2**6


class Fold(NamedTuple):
    """How arrays whose last axis has the classes are seen with two class axes.

    Attributes:
        axes: The class axes of a folded array.
        groups: G, the size of the first of them.
    """

    axes: Axes
    groups: int

    def into(self, x: Any) -> Any:
        """[..., V] as [..., G, K], a number per row, [..., 1], as [..., 1, 1]; what has another rank stays."""
        first, _ = self.axes.dims
        if x is None or x.ndim != first + 1:
            return x
        groups = self.groups if x.shape[-1] > 1 else 1
        return x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)

    def back(self, x: jax.Array) -> jax.Array:
        """The inverse."""
        return in_one_row(x, self.axes) if x.ndim == self.axes.dims[0] + 2 else x


def axes_of(options: Any) -> Axes:
    """The class axes among the options of an operation on rows, which may be nothing else."""
    return options if isinstance(options, Axes) else options.axes


def with_axes(options: Any, axes: Axes) -> Any:
    """The same options with other class axes."""
    return axes if isinstance(options, Axes) else options._replace(axes=axes)


def fold_of(axes: Axes, logits: jax.Array, *, excess: bool = False) -> Fold | None:
    """How rows of logits are folded, for `arrays.excess` too or not; None for those that are not long.

    Where JAX divides the work over a mesh a fold might run across a cut, and everything would be exchanged.
    """
    last = logits.ndim - 1
    if axes.dims != (last,) or not _are_long(logits, axes, excess) or meshes.devices_beside(logits) > 1:
        return None
    groups = _groups(logits.shape[last], LONGEST, SHORTEST)
    return None if groups == 1 else Fold(axes._replace(dims=(last, last + 1)), groups)


def _are_long(logits: jax.Array, axes: Axes, excess: bool) -> bool:
    """Whether these are long rows, on a CPU."""
    classes = axes.size(logits)
    few = excess and classes >= LONG_FOR_EXCESS and logits.size < MANY_ROWS * classes
    return jax.default_backend() == "cpu" and (few or classes > LONG)


@functools.cache
def _groups(classes: int, longest: int, shortest: int) -> int:
    """The fewest parts of one size that are neither too long nor too short; 1 where there are none."""
    least, most = math.ceil(classes / longest), classes // shortest
    return next((groups for groups in range(least, most + 1) if classes % groups == 0), 1)


def in_one_row(x: jax.Array, axes: Axes) -> jax.Array:
    """[..., G, K] as [..., V]; with one class axis x itself."""
    return x if len(axes.dims) == 1 else x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def is_folded(x: jax.Array, axes: Axes, *, excess: bool = False) -> bool:
    """Whether rows are long and have several class axes, be it that the user gave them so."""
    *outer, inner = axes.dims
    by_last = bool(outer) and inner == x.ndim - 1 and x.shape[inner] >= SHORTEST
    return by_last and _are_long(x, axes, excess)


def sum_along(x: jax.Array, axes: Axes) -> jax.Array:
    """Sum over the class axes, kept with size 1; of a folded row along the last one first."""
    if not is_folded(x, axes):
        return jnp.sum(x, axis=axes.dims, keepdims=True)
    *outer, inner = axes.dims
    parts = lax.optimization_barrier(jnp.sum(x, axis=inner, keepdims=True))
    return jnp.sum(parts, axis=tuple(outer), keepdims=True)
