"""The class axes of a row, on one device or split over the axes of a mesh, and what its devices exchange.

Inside of `jax.shard_map` each device has its own classes of a row, and only numbers per row cross the network: one
maximum, and sums that are packed into one. Rules say where, for JAX does not differentiate a maximum over devices.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

__all__ = [
    "Axes",
    "AxisName",
    "devices_beside",
    "explicit_sharding",
    "largest_of",
    "names_of",
    "packed_sum",
    "split_like",
    "sum_like",
    "total_of",
    "vary",
    "varying",
    "whole_rows",
    "zeros",
]

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
    """Over how many devices the arrays may be split where it is JAX that divides the work; 1 inside of `shard_map`."""
    kinds = (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit)
    meshes = [jax.typeof(x).sharding.mesh for x in xs if x is not None]
    return max(
        math.prod(size for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True) if kind in kinds)
        for mesh in meshes
    )


def explicit_sharding(x: Any) -> Any:
    """How an array, or its shape, is split over a mesh on which JAX keeps account of that; None elsewhere."""
    sharding = x.sharding if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x).sharding
    explicit = sharding is not None and jax.sharding.AxisType.Explicit in sharding.mesh.axis_types
    return sharding if explicit else None


def zeros(like: Any, axes: frozenset[str], dtype: Any = None) -> jax.Array:
    """Zeros of the shape of an array, split as it is, that vary over these mesh axes."""
    dtype = like.dtype if dtype is None else dtype
    return vary(jnp.zeros(like.shape, dtype, device=explicit_sharding(like)), axes)


def split_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """x, which broadcasts to another array of its rank, split as that is on an explicit mesh.

    A product with ones does that in both directions: the gradient comes back as x itself was split. Selects and
    hand-written rules need it; elsewhere JAX broadcasts what is not split.
    """
    if explicit_sharding(like) is None:
        return x
    over = tuple(a for a, (own, size) in enumerate(zip(x.shape, like.shape, strict=True)) if own == 1 and size != 1)
    return x * jnp.ones_like(jnp.any(like == like, axis=over, keepdims=True)).astype(x.dtype)


def whole_rows(x: jax.Array) -> jax.Array:
    """[N, K] with the numbers of a row on one device, on an explicit mesh; elsewhere JAX sees to that by itself."""
    sharding = explicit_sharding(x)
    if sharding is None:
        return x
    return jax.sharding.reshard(x, jax.sharding.NamedSharding(sharding.mesh, jax.P(sharding.spec[0], None)))
