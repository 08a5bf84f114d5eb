"""Batches of rows laid along one axis, cut in blocks and joined again, on one device and over a mesh."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxsoftmax._core import meshes

__all__ = ["Batch", "Cut", "batch_of", "cut", "cut_of", "join", "most_rows"]

# The bytes of a block of logits on a CPU, which wants it near its caches, and the fewest and most rows of one. Each
# block adds to the sum of the kernel's gradient, and in 64 rows and fewer a product with the transposed kernel takes
# XLA up to twice the time per row (of 193 rows and more, blocks that are cut evenly have more); beyond the most nothing
# is gained.
CPU_BYTES = 5 * 2**23
CPU_ROWS = 88, 1024
# For more than 32 MiB the C library asks the system anew in every call, which clears page after page: of few features
# that takes as long as half of the products. Where a block of the most rows and the sum come to more, and one of fewer
# rows to less, that is taken: of so many, and of narrow features of half as many.
CPU_KEPT_BYTES = 30 * 2**20
CPU_FEWER_ROWS, CPU_NARROW = 512, 64
# On an accelerator each block reads the kernel twice and adds to a sum of its size, which takes as long as the products
# of some 300 to 600 rows: with so many rows it is a small part. Fewer are taken where a block would pass the second
# number of bytes and also the sum, [D, V] in float32, that is there anyway; more where it stays below the first.
ACCELERATOR_ROWS = 2048
ACCELERATOR_BYTES = 2**28, 2**29


class Batch(NamedTuple):
    """The shape of a batch of rows, and how it is laid along one axis.

    On an explicit mesh the axes that are split come first, so that each device keeps the rows that it has.

    Attributes:
        shape: [...], of the rows.
        order: Of the axes, along the one.
        split: The mesh axes that split each of them, in the shape's order.
        mesh: The explicit mesh, or None.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    split: tuple[tuple[str, ...], ...]
    mesh: Any

    @property
    def total(self) -> int:
        return math.prod(self.shape)

    def rows(self, x: Any) -> Any:
        """[..., K] as [N, K], [...] as [N]; None stays."""
        if x is None:
            return None
        last = range(len(self.shape), x.ndim)
        return x.transpose(*self.order, *last).reshape(self.total, *x.shape[len(self.shape) :])

    def back(self, x: jax.Array) -> jax.Array:
        """[N, ...] as [..., ...]."""
        size, ndim = [*x.shape[1:]], len(self.shape)
        sharding = None
        if any(self.split):
            spec = PartitionSpec(*(self.split[a] or None for a in self.order), *[None] * len(size))
            sharding = NamedSharding(self.mesh, spec)
        x = jnp.reshape(x, [*(self.shape[a] for a in self.order), *size], out_sharding=sharding)
        return x.transpose(*(self.order.index(a) for a in range(ndim)), *range(ndim, x.ndim))


def batch_of(features: jax.Array) -> Batch:
    """The rows of features [..., D]."""
    shape, split = features.shape[:-1], meshes.split_names(features)[:-1]
    sharding = meshes.explicit_sharding(features)
    order = sorted(range(len(shape)), key=lambda a: not split[a])
    return Batch(shape, tuple(order), split, sharding and sharding.mesh)


class Cut(NamedTuple):
    """So many groups of neighbouring rows, and so many rows of each group in a block."""

    groups: int
    rows: int

    @property
    def block(self) -> int:
        """Rows in a block."""
        return self.groups * self.rows


def most_rows(platform: str, width: int, classes: int) -> int:
    """The rows of a block of float32 logits, [D] times [D, V], that suit a device."""
    if platform == "cpu":
        fewest, most_of_all = CPU_ROWS
        fewer = CPU_FEWER_ROWS if width > CPU_NARROW else CPU_FEWER_ROWS // 2
        if fewer <= CPU_KEPT_BYTES // (4 * classes) - width < most_of_all:
            return fewer
        return max(fewest, min(most_of_all, CPU_BYTES // (4 * classes)))
    least, most = (size // (4 * classes) for size in ACCELERATOR_BYTES)
    return max(1, min(max(ACCELERATOR_ROWS, least), max(most, width)))


def cut_of(rows: int, width: int, classes: int, devices: int, block_size: int | None) -> Cut:
    """Blocks of the rows asked for, or of as many as suit the device, evenly cut.

    Where JAX divides the work over the devices of a mesh, a block of neighbouring rows would lie on one of them, and
    all would compute it. There each device gives an equal share of every block, one row at least.
    """
    if not isinstance(rows, int):  # symbolic, for `jax.export`
        return Cut(1, block_size or most_rows(jax.default_backend(), width, classes))
    if block_size is None:
        blocks = math.ceil(rows / (devices * most_rows(jax.default_backend(), width, classes)))
        block_size = math.ceil(rows / max(blocks, 1))
    block = max(1, min(block_size, rows))
    groups = max(math.gcd(rows, devices), 1)
    return Cut(groups, max(block // groups, 1))


def cut(x: jax.Array, by: Cut, zeros: bool = False) -> jax.Array:
    """[N, ...] as [blocks, B, ...], each group filled up with copies of its last row, or with zeros."""
    groups, rows = by
    x = x.reshape(groups, x.shape[0] // groups, *x.shape[1:])
    blocks = -(-x.shape[1] // rows)
    missing = blocks * rows - x.shape[1]
    if not isinstance(missing, int) or missing:
        last = jnp.zeros_like(x[:, -1:]) if zeros else x[:, -1:]
        x = jnp.concatenate([x, jnp.broadcast_to(last, (groups, missing, *x.shape[2:]))], axis=1)
    x = jnp.swapaxes(x.reshape(groups, blocks, rows, *x.shape[2:]), 0, 1)
    return x.reshape(blocks, groups * rows, *x.shape[3:])


def join(x: jax.Array, by: Cut, count: int) -> jax.Array:
    """[blocks, B, ...] as [N, ...]."""
    groups, rows = by
    x = jnp.swapaxes(x.reshape(x.shape[0], groups, rows, *x.shape[2:]), 0, 1)
    x = x.reshape(groups, x.shape[1] * rows, *x.shape[3:])[:, : count // groups]
    return x.reshape(count, *x.shape[2:])
