"""The class axes of a row, on one device or split over the axes of a mesh, and what its devices exchange.

Inside of `jax.shard_map` each device has its own classes of a row, and only numbers per row cross the network: one
maximum, and sums that are packed into one. Rules say where, for JAX does not differentiate a maximum over devices.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

__all__ = [
    "Axes",
    "Axis",
    "AxisName",
    "alone",
    "devices_beside",
    "explicit_sharding",
    "for_product",
    "largest_of",
    "names_of",
    "ones_like",
    "packed_sum",
    "split_alike",
    "split_like",
    "split_names",
    "sum_like",
    "together",
    "total_of",
    "vary",
    "varying",
    "whole",
    "whole_along",
    "with_the_first",
    "zeros",
]

Axis = int | tuple[int, ...] | None
AxisName = str | tuple[str, ...] | None


class Axes(NamedTuple):
    """The class axes of an array, counted from 0, and the mesh axes that split the classes further; static.

    Attributes:
        dims: One axis or more of the array.
        mesh: The mesh axes, major first; none on one device.
    """

    dims: tuple[int, ...]
    mesh: tuple[str, ...] = ()

    @property
    def one(self) -> int:
        """The class axis where there is just one."""
        return self.dims[0]

    @property
    def folded(self) -> "tuple[Axes, Axes]":
        """Of a folded row, the axis along its parts and the axis inside of one."""
        outer, inner = self.dims
        return Axes((outer,)), Axes((inner,))

    def size(self, x: Any) -> int:
        """The classes of an array, on each device."""
        return math.prod(x.shape[a] for a in self.dims)

    def classes(self, size: int) -> int:
        """The classes on all devices, with so many on each."""
        return size * math.prod(lax.axis_size(name) for name in self.mesh)

    def local(self, labels: jax.Array, size: int) -> jax.Array:
        """Labels counted from the first class of this device, which has so many."""
        return labels - lax.axis_index(self.mesh).astype(labels.dtype) * size if self.mesh else labels


def names_of(axis_name: AxisName) -> tuple[str, ...]:
    """The mesh axes that an option names."""
    return () if axis_name is None else axis_name if isinstance(axis_name, tuple) else (axis_name,)


def largest_of(x: jax.Array, axes: Axes) -> jax.Array:
    """The maximum over the devices that share a row, of a constant to differentiation: JAX has no derivative of it."""
    return lax.pmax(x, axes.mesh) if axes.mesh else x


def total_of(x: jax.Array, axes: Axes) -> jax.Array:
    """The sum over the devices that share a row."""
    return lax.psum(vary(x, frozenset(axes.mesh)), axes.mesh) if axes.mesh else x


def packed_sum(axes: Axes, *parts: jax.Array | None) -> tuple[Any, ...]:
    """Each of the parts, numbers per row of one shape and dtype or None, summed over the devices in one message."""
    given = [part for part in parts if part is not None]
    if not axes.mesh or not given:
        return parts
    sums = iter(total_of(jnp.stack(jnp.broadcast_arrays(*given)), axes))
    return tuple(part if part is None else next(sums) for part in parts)


def varying(x: Any) -> frozenset[str]:
    """The mesh axes over which x varies inside of `shard_map`; the attribute was renamed in jax 0.12."""
    kind = jax.typeof(x)
    manual = getattr(kind, "mat", None)
    return frozenset(kind.vma if manual is None else manual.varying)


def vary(x: jax.Array, axes: frozenset[str]) -> jax.Array:
    """The same numbers, varying over these mesh axes too."""
    missing = tuple(sorted(axes - varying(x)))
    return lax.pcast(x, missing, to="varying") if missing else x


def sum_like(cotangent: jax.Array, primal: jax.Array) -> jax.Array:
    """The cotangent of an argument, varying as that does: of one that devices share, the sum of their parts."""
    over = tuple(sorted(varying(cotangent) - varying(primal)))
    return vary(lax.psum(cotangent, over) if over else cotangent, varying(primal))


def devices_beside(*xs: Any) -> int:
    """Over how many devices the arrays may be split where it is JAX that divides the work; 1 inside of `shard_map`.

    An explicit axis of a mesh counts where an array is split over it; of an automatic one nobody knows.
    """
    shardings = [jax.typeof(x).sharding for x in xs if x is not None]
    named = {name for sharding in shardings for name in _names_in(sharding.spec)}

    def devices(mesh: Any) -> int:
        axes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
        return math.prod(
            size for name, size, kind in axes if kind == AxisType.Auto or (kind == AxisType.Explicit and name in named)
        )

    return max(devices(sharding.mesh) for sharding in shardings)


def alone() -> bool:
    """Whether there is one device, among which nobody divides anything."""
    return jax.device_count() == 1


def explicit_sharding(x: Any) -> Any:
    """How an array, or its shape, is split over a mesh on which JAX keeps account of that; None elsewhere."""
    sharding = x.sharding if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x).sharding
    explicit = sharding is not None and AxisType.Explicit in sharding.mesh.axis_types
    return sharding if explicit else None


def zeros(like: Any, axes: frozenset[str], dtype: Any = None) -> jax.Array:
    """Zeros of the shape of an array, split as it is, that vary over these mesh axes."""
    dtype = like.dtype if dtype is None else dtype
    return vary(jnp.zeros(like.shape, dtype, device=explicit_sharding(like)), axes)


def ones_like(x: jax.Array) -> jax.Array:
    """Ones, split as x is; outside of `jax.set_mesh` jax 0.12 would split new ones over no mesh."""
    return jnp.ones_like(x) if explicit_sharding(x) is None else ((x == x) | True).astype(x.dtype)


def split_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """x, which broadcasts to another array of its rank, split as that is on an explicit mesh.

    Selects and hand-written rules need it; elsewhere JAX broadcasts what is not split. The gradient comes back as x
    itself was split.
    """
    sharding = explicit_sharding(like)
    if sharding is None:
        return x
    if explicit_sharding(x) is None:
        pairs = enumerate(zip(x.shape, like.shape, strict=True))
        return _placed(x, like, tuple(a for a, (own, size) in pairs if own == 1 != size))
    sizes = zip(sharding.spec, x.shape, like.shape, strict=True)
    return _split(x, sharding.mesh, [entry if own == size else None for entry, own, size in sizes])


def split_alike(x: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two arrays of one rank on an explicit mesh, split alike along the axes that they share.

    Where one of them is whole it is cut, which costs nothing; where they differ, the other is brought to the first.
    """
    first, second = explicit_sharding(x), explicit_sharding(other)
    if first is None or second is None:
        return x, split_like(other, x)
    spec, used = list(first.spec), set(_names_in(first.spec))
    for axis, entry in enumerate(second.spec):
        if spec[axis] is None and x.shape[axis] == other.shape[axis] and not used & set(_names_in([entry])):
            spec[axis] = entry
            used |= set(_names_in([entry]))
    x = _split(x, first.mesh, spec)
    return x, split_like(other, x)


def whole_along(x: jax.Array, *axes: int) -> jax.Array:
    """x, not split along these of its axes over an explicit mesh; elsewhere JAX sees to that by itself."""
    sharding = explicit_sharding(x)
    if sharding is None:
        return x
    spec = list(sharding.spec)
    for axis in axes:
        spec[axis] = None
    return _split(x, sharding.mesh, spec)


def whole(arrays: Any) -> Any:
    """Arrays, none of which is split over an explicit mesh any more: for what asks for all rows, as ranks do."""
    return jax.tree.map(lambda x: whole_along(x, *range(x.ndim)), arrays)


def for_product(
    features: jax.Array, kernel: jax.Array, bias: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Features [..., D], kernel [D, V] and bias [V], split on an explicit mesh so that each device multiplies its own.

    Sums over D stay on a device, and a mesh axis that splits the rows cannot split the classes.
    """
    features, kernel = together((features, kernel))
    features, kernel = whole_along(features, -1), whole_along(kernel, 0)
    of_rows = {name for names in split_names(features) for name in names}
    kernel = whole_along(kernel, 1) if of_rows & {*split_names(kernel)[1]} else kernel
    return features, kernel, None if bias is None else split_like(bias[None], kernel)[0]


def together(arguments: Any) -> Any:
    """Arguments, of which the arrays that are on no mesh come to the explicit one of the first that is, whole.

    Their gradients come back to where they were. Scalars, which go with every array, stay.
    """
    leaves, structure = jax.tree.flatten(arguments)
    placed = [isinstance(x, jax.Array) and explicit_sharding(x) is not None for x in leaves]
    if not any(placed):
        return arguments
    first = leaves[placed.index(True)]
    moved = [x if there or not _is_numbers(x) else _placed(x, first) for x, there in zip(leaves, placed, strict=True)]
    return jax.tree.unflatten(structure, moved)


def with_the_first(arguments: Any) -> Any:
    """`together` where the first array is on no mesh; to one that is, others are brought as it is split, later."""
    first = next((x for x in jax.tree.leaves(arguments) if _is_numbers(x)), None)
    return arguments if first is None or explicit_sharding(first) is not None else together(arguments)


def _is_numbers(x: Any) -> bool:
    """Whether an argument is an array, of more than one number; keys of random numbers are none."""
    numbers = isinstance(x, jax.Array | np.ndarray) and not jnp.issubdtype(x.dtype, jax.dtypes.extended)
    return numbers and x.ndim > 0


def _placed(x: Any, like: jax.Array, over: tuple[int, ...] | None = None) -> jax.Array:
    """x, which is on no mesh, on that of another array: whole, or split as that is but along the axes given.

    By a product with ones, so that its gradient is on none. They come of the other array, for outside of `jax.set_mesh`
    jax 0.12 puts new ones on no mesh; but of one that varies inside of `shard_map` they would vary, too.
    """
    x, place = jnp.asarray(x), jnp.any(like == like, axis=over, keepdims=over is not None)
    ones = jnp.ones(place.shape, bool, device=jax.typeof(place).sharding) if varying(like) else ones_like(place)
    return x & ones if x.dtype == jnp.bool_ else x * ones.astype(x.dtype)


def split_names(x: jax.Array) -> tuple[tuple[str, ...], ...]:
    """The axes of an explicit mesh over which each axis of x is split."""
    sharding = explicit_sharding(x)
    return ((),) * x.ndim if sharding is None else tuple(tuple(_names_in([entry])) for entry in sharding.spec)


def _names_in(spec: Iterable[Any]) -> list[str]:
    """The mesh axes that a partition names, in order."""
    entries = (entry if isinstance(entry, tuple) else (entry,) for entry in spec if entry is not None)
    return [name for entry in entries for name in entry]


def _split(x: jax.Array, mesh: Any, spec: Sequence[Any]) -> jax.Array:
    if tuple(spec) == tuple(jax.typeof(x).sharding.spec):
        return x
    return jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(*spec)))
