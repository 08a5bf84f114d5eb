"""The streamed head on arrays that are split over a mesh: `jax.shard_map` and the reductions, in one function."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from jaxsoftmax._core import checks, meshes
from jaxsoftmax._core.meshes import AxisName
from jaxsoftmax.linear import linear_loss, linear_statistics
from jaxsoftmax.linear_rows import Statics, check_statics
from jaxsoftmax.statistics import RowStatistics

__all__ = ["sharded_linear_loss", "sharded_linear_statistics"]


def sharded_linear_loss(
    objective: Callable[[RowStatistics], jax.Array], mesh: Mesh, *, rows: AxisName = "data", classes: AxisName = "model"
) -> Callable[..., jax.Array]:
    """The mean of an objective over all rows, where rows and classes are split over a mesh.

    Σᵢ wᵢ f(sᵢ) / Σᵢ wᵢ over the rows of all devices

    The result is a function  loss(features [N, ..., D], kernel [D, V], labels [N, ...], *, weights, bias, where,
    temperature, logit_cap, ignore_label, num_classes, block_size, precision)  with the options of `linear_loss`. It
    takes global arrays and gives the global mean. Call it under `jax.jit`: outside, every call compiles.

    Args:
        objective: f, as in `linear_loss`.
        mesh: The mesh, of Auto or Explicit axes.
        rows: The mesh axis, or axes, that split the first axis of features, labels and weights; None for none.
        classes: The mesh axis, or axes, that split the columns of the kernel, bias and where; None for none.

    Returns:
        A function whose result is a scalar, float32 or wider; 0 where the weights sum to 0.

    Raises:
        TypeError: An axis is no string; from the function, as in `linear_loss`.
        ValueError: The mesh has no such axis. From the function: rows or classes do not divide evenly over the devices
            (rows of weight 0, or columns beyond `num_classes`, fill them up), the features are split along D, and as in
            `linear_loss`.

    Numerics:
        As in `linear_loss`; the devices' sums are added in float32 or wider.

    Gradient:
        As in `linear_loss`. Over the network go two messages of numbers per row forward, and backward the sum of the
        features' gradient over the devices of a row, and of the kernel's over those of its columns.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsoftmax
        >>> mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
        >>> loss = jaxsoftmax.sharded_linear_loss(jaxsoftmax.objectives.cross_entropy, mesh)
        >>> print(f"{jax.jit(loss)(jnp.zeros((2, 3)), jnp.zeros((3, 4)), jnp.array([0, 1])):.4f}")
        1.3863

    References:
        M. Shoeybi et al., Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism, 2019.
    """
    name = "sharded_linear_loss"
    if not callable(objective):
        checks.fail(TypeError, name, "objective must be a function of RowStatistics", objective=objective)
    splits = _checked_axes(name, mesh, rows, classes)

    def loss(
        features: ArrayLike,
        kernel: ArrayLike,
        labels: ArrayLike,
        *,
        weights: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        where: ArrayLike | None = None,
        temperature: ArrayLike | None = None,
        logit_cap: float | None = None,
        ignore_label: int | None = None,
        num_classes: int | None = None,
        block_size: int | None = None,
        precision: Any = None,
    ) -> jax.Array:
        """The mean loss, a scalar that all devices have; the options are those of `jaxsoftmax.linear_loss`."""
        statics = Statics(logit_cap, ignore_label, num_classes, block_size, precision, splits[1] or None)
        check_statics(name, temperature, statics)

        def own(features: Any, kernel: Any, labels: Any, weights: Any, bias: Any, where: Any, temperature: Any) -> Any:
            given = {"weights": weights, "bias": bias, "where": where, "temperature": temperature}
            summed = linear_loss(objective, features, kernel, labels, **given, reduction="sum", **statics._asdict())
            counted = jnp.ones(labels.shape, summed.dtype) if weights is None else weights.astype(summed.dtype)
            counted = counted if ignore_label is None else jnp.where(labels == ignore_label, 0.0, counted)
            total, divisor = meshes.packed_sum(meshes.Axes((), splits[0]), summed, jnp.sum(counted))
            return jnp.where(divisor == 0, 0.0, total / jnp.where(divisor == 0, 1.0, divisor))

        if AxisType.Explicit in mesh.axis_types:
            _check_closure(name, objective)
        arguments = (features, kernel, labels, weights, bias, where, temperature)
        return _on_devices(name, own, mesh, splits, arguments, PartitionSpec())

    return loss


def sharded_linear_statistics(
    mesh: Mesh, *, rows: AxisName = "data", classes: AxisName = "model"
) -> Callable[..., RowStatistics]:
    """The statistics of every row, where rows and classes are split over a mesh.

    The result is a function  statistics(features [N, ..., D], kernel [D, V], labels [N, ...], *, bias, where,
    temperature, logit_cap, ignore_label, num_classes, block_size, precision)  with the options of `linear_statistics`.

    Args:
        mesh: The mesh, of Auto or Explicit axes.
        rows: The mesh axis, or axes, that split the first axis of features and labels; None for none.
        classes: The mesh axis, or axes, that split the columns of the kernel, bias and where; None for none.

    Returns:
        A function whose result is RowStatistics with fields [N, ...], split as the rows are.

    Raises:
        TypeError: An axis is no string; from the function, as in `linear_statistics`.
        ValueError: The mesh has no such axis; from the function, as in `sharded_linear_loss`.

    Numerics:
        As in `linear_statistics`.

    Gradient:
        As in `linear_statistics`; what the devices exchange is as in `sharded_linear_loss`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsoftmax
        >>> mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
        >>> statistics = jaxsoftmax.sharded_linear_statistics(mesh)
        >>> print(jax.jit(statistics)(jnp.zeros((2, 3)), jnp.zeros((3, 4)), jnp.array([0, 1])).classes)
        [4. 4.]
    """
    name = "sharded_linear_statistics"
    splits = _checked_axes(name, mesh, rows, classes)

    def statistics(
        features: ArrayLike,
        kernel: ArrayLike,
        labels: ArrayLike,
        *,
        bias: ArrayLike | None = None,
        where: ArrayLike | None = None,
        temperature: ArrayLike | None = None,
        logit_cap: float | None = None,
        ignore_label: int | None = None,
        num_classes: int | None = None,
        block_size: int | None = None,
        precision: Any = None,
    ) -> RowStatistics:
        """The statistics of every row; the options are those of `jaxsoftmax.linear_statistics`."""
        statics = Statics(logit_cap, ignore_label, num_classes, block_size, precision, splits[1] or None)
        check_statics(name, temperature, statics)

        def own(features: Any, kernel: Any, labels: Any, _: None, bias: Any, where: Any, temperature: Any) -> Any:
            given = {"bias": bias, "where": where, "temperature": temperature}
            return linear_statistics(features, kernel, labels, **given, **statics._asdict())

        arguments = (features, kernel, labels, None, bias, where, temperature)
        return _on_devices(name, own, mesh, splits, arguments, _spec(splits[0]))

    return statistics


Splits = tuple[tuple[str, ...], tuple[str, ...]]


def _checked_axes(function: str, mesh: Mesh, rows: AxisName, classes: AxisName) -> Splits:
    """The mesh axes that split the rows, and those that split the classes."""
    if not isinstance(mesh, Mesh | AbstractMesh):
        checks.fail(TypeError, function, "mesh must be a jax.sharding.Mesh", mesh=mesh)
    for option, names in (("rows", rows), ("classes", classes)):
        checks.static_axis(function, None, names)
        missing = [name for name in meshes.names_of(names) if name not in mesh.shape]
        if missing:
            rule = f"{option} must name axes of the mesh, which has {', '.join(map(str, mesh.axis_names))}"
            checks.fail(ValueError, function, rule, **{option: names})
    splits = meshes.names_of(rows), meshes.names_of(classes)
    if set(splits[0]) & set(splits[1]):
        checks.fail(ValueError, function, "rows and classes must be different axes", rows=rows, classes=classes)
    return splits


def _spec(*entries: tuple[str, ...] | None) -> PartitionSpec:
    return PartitionSpec(*(entry or None for entry in entries))


def _on_devices(
    function: str, own: Callable[..., Any], mesh: Mesh, splits: Splits, arguments: tuple[Any, ...], out: PartitionSpec
) -> Any:
    """own(...) on each device's part of (features, kernel, labels, weights, bias, where, temperature)."""
    _check_shapes(function, mesh, splits, arguments)
    given = [None if x is None else jnp.asarray(x) for x in arguments]
    by_row, by_class = _spec(splits[0]), _spec(splits[1])
    of_temperature = by_row if jnp.ndim(0.0 if arguments[-1] is None else arguments[-1]) else PartitionSpec()
    specs = [by_row, _spec(None, splits[1]), by_row, by_row, by_class, by_class, of_temperature]
    if AxisType.Explicit in mesh.axis_types:
        given = [
            x if x is None else jax.sharding.reshard(x, NamedSharding(mesh, spec))
            for x, spec in zip(given, specs, strict=True)
        ]
    in_specs = tuple(None if x is None else spec for x, spec in zip(given, specs, strict=True))
    return jax.shard_map(own, mesh=mesh, in_specs=in_specs, out_specs=out)(*given)


def _check_closure(function: str, objective: Callable[[RowStatistics], jax.Array]) -> None:
    """What the objective closes over can enter `shard_map`."""
    row = jax.ShapeDtypeStruct((1,), jnp.float32)
    consts = jax.make_jaxpr(objective)(RowStatistics._make([row] * len(RowStatistics._fields))).consts
    for const in consts:
        if meshes.explicit_sharding(const) is not None:
            rule = (
                "objective must not close over arrays on an explicit mesh; linear_loss takes them, and automatic meshes"
            )
            checks.fail(ValueError, function, rule, objective=objective, array=const)


def _check_shapes(function: str, mesh: Mesh, splits: Splits, arguments: tuple[Any, ...]) -> None:
    """As on one device; rows and classes divide evenly; and the features are whole along D, as far as that is known."""
    features, kernel, labels, weights, bias, where, temperature = arguments
    features, kernel = checks.floating(function, features=features), checks.floating(function, kernel=kernel)
    if features.ndim < 2 or kernel.ndim != 2:
        rule = "features must have shape [N, ..., D] and kernel [D, V]"
        checks.fail(ValueError, function, rule, features=features, kernel=kernel)
    sharding = jax.typeof(features).sharding if isinstance(features, jax.core.Tracer) else features.sharding
    spec = tuple(getattr(sharding, "spec", ()))
    if len(spec) == features.ndim and spec[-1] is not None:
        rule = (
            "features must be whole along D; gather them first, by jax.lax.with_sharding_constraint or, on an explicit "
            "mesh, jax.sharding.reshard"
        )
        checks.fail(ValueError, function, rule, features=features, sharding=sharding)
    checks.head(function, ("features", "kernel", "bias"), features, kernel, bias)
    checks.row_labels(function, labels, features)
    checks.row_numbers(function, "weights", weights, features, scalar=False)
    checks.row_numbers(function, "temperature", temperature, features, scalar=True)
    checks.classes_present(function, where, kernel, meshes.Axes((1,)), None)
    by_row, by_class = (math.prod(mesh.shape[name] for name in names) for names in splits)
    if features.shape[0] % by_row:
        rule = f"the first axis of features must be a multiple of {by_row}, the devices of rows; add rows of weight 0"
        checks.fail(ValueError, function, rule, features=features)
    if kernel.shape[1] % by_class:
        rule = (
            f"the columns of kernel must be a multiple of {by_class}, the devices of classes; fill them up and pass "
            "num_classes"
        )
        checks.fail(ValueError, function, rule, kernel=kernel)
