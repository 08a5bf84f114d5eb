"""The streamed head: losses from features and a classifier's kernel, without ever holding the logits."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsoftmax import objectives
from jaxsoftmax._core import arrays, calls, checks, closures, meshes
from jaxsoftmax._core.meshes import AxisName
from jaxsoftmax.linear_rows import Statics, check_statics, labelled, reduced, statistics_of_rows, without_mean
from jaxsoftmax.statistics import RowStatistics

__all__ = ["linear_cross_entropy", "linear_loss", "linear_statistics"]


def linear_statistics(
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
    axis_name: AxisName = None,
) -> RowStatistics:
    """The statistics of every row of features · kernel + bias, a block of rows at a time.

    target = z[y] - m,  rest = log Σ_{j≠y} exp(zⱼ - m),  mean = Σⱼ (zⱼ - m) / K,  shift = m = max z,  z = h W + b

    Args:
        features: h, [..., D], floating.
        kernel: W, [D, V], floating, as the Dense layers of Flax and Haiku have it; a tied embedding is passed
            transposed.
        labels: [...], integers in [0, V).
        bias: b, [V].
        where: Which classes are present: boolean, [V].
        temperature: T ≥ 0 divides the logits; a scalar or one number per row.
        logit_cap: Logits become cap · tanh(z / cap), before the temperature.
        ignore_label: The one label whose rows do not count: they look like a certain label, target 0 and rest -inf, so
            that every objective gives 0, and their gradient is 0, whatever their features hold.
        num_classes: How many of the columns are classes; those that follow pad the kernel, and are absent.
        block_size: Rows in a block. By default cut evenly, at most so many: on a CPU what 40 MiB of float32 logits
            hold, from 88 to 1 024, or 512 (256 for D up to 64) where only so few stay in 30 MiB with the kernel's
            gradient; elsewhere 2 048 or what 256 MiB hold, but no more than D or what 512 MiB hold. Of a symbolic
            number of rows, in `jax.export`, every block has the most.
        precision: Of the matrix products, as `jax.lax.dot_general` takes it.
        axis_name: The mesh axis, or axes, over which the classes are split, inside of `jax.shard_map`: kernel, bias and
            where are each device's own columns, and labels count through all devices.

    Returns:
        RowStatistics with fields [...], float32 or wider.

    Raises:
        TypeError: Features or kernel are not floating, the labels not integers, or the mask not boolean.
        ValueError: The kernel is not [D, V], a shape does not fit or an option is out of range.

    Numerics:
        Products take the dtype of the features and accumulate in float32 or wider; the statistics are those of
        `row_statistics` on such logits. A label outside of [0, V) makes its row NaN.

    Gradient:
        dz as in `row_statistics`; dh = dz Wᵀ, dW = hᵀ dz and db = Σ dz, where dz takes the dtype of the features and
        sums accumulate in float32 or wider. Kept: the arguments and three numbers per row; the backward pass computes
        each block again, four products in all. Reverse mode of any order, forward over reverse; forward mode inside of
        `jaxsoftmax.forward_mode()`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> features, kernel = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0, 3.0], [8.0, 0.0, -1.0]])
        >>> [odds] = jaxsoftmax.linear_statistics(features, kernel, jnp.array([0])).log_odds
        >>> print(f"{odds:.4f}")
        15.6867
    """
    name = "linear_statistics"
    statics = Statics(logit_cap, ignore_label, num_classes, block_size, precision, axis_name)
    check_statics(name, temperature, statics)
    return _statistics_call(features, kernel, labels, bias, where, temperature, statics=statics)


def linear_loss(
    objective: Callable[[RowStatistics], jax.Array],
    features: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    reduction: str = "mean",
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    logit_cap: float | None = None,
    ignore_label: int | None = None,
    num_classes: int | None = None,
    block_size: int | None = None,
    precision: Any = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Any objective of the row statistics, from features and kernel, a block of rows at a time.

    "mean": Σᵢ wᵢ f(sᵢ) / Σᵢ wᵢ.  "sum": Σᵢ wᵢ f(sᵢ).  "none": wᵢ f(sᵢ).

    Args:
        objective: f, from `RowStatistics` with fields [B], of a block of rows, to losses [B], each a function of its
            own row alone. One of `jaxsoftmax.objectives`, or yours; what it closes over is differentiated too. A number
            for each row, as an advantage, goes into `weights`, or on the losses of reduction "none".
        features: h, [..., D], floating.
        kernel: W, [D, V], floating; a tied embedding is passed transposed.
        labels: [...], integers in [0, V).
        weights: w, [...], how much each row counts; 1 by default.
        reduction: "mean" or "sum" of the rows that count, or "none".
        bias: b, [V].
        where: Which classes are present: boolean, [V].
        temperature: T ≥ 0 divides the logits; a scalar or one number per row.
        logit_cap: Logits become cap · tanh(z / cap), before the temperature.
        ignore_label: The one label whose rows have weight 0.
        num_classes: How many of the columns are classes; those that follow pad the kernel, and are absent.
        block_size: Rows in a block. By default cut evenly, at most so many: on a CPU what 40 MiB of float32 logits
            hold, from 88 to 1 024, or 512 (256 for D up to 64) where only so few stay in 30 MiB with the kernel's
            gradient; elsewhere 2 048 or what 256 MiB hold, but no more than D or what 512 MiB hold.
        precision: Of the matrix products, as `jax.lax.dot_general` takes it.
        axis_name: The mesh axis, or axes, over which the classes are split, inside of `jax.shard_map`: kernel, bias and
            where are each device's own columns, and labels count through all devices.

    Returns:
        A scalar, or [...] for "none", in float32 or wider. The mean is 0 where the weights sum to 0; inside of
        `jax.shard_map` it is that of the device's own rows.

    Raises:
        TypeError: Features or kernel are not floating, the labels not integers, or the mask not boolean.
        ValueError: The kernel is not [D, V], a shape does not fit, the objective does not give one loss per row, or an
            option is out of range or unknown.

    Numerics:
        See `linear_statistics`. A row of weight 0 takes no part, whatever its features hold, and a block of such rows
        costs nothing (where `axis_name` splits the classes it is computed: devices that wait for each other do not
        branch).

    Gradient:
        By features, kernel, bias, temperature, weights and what the objective closes over. "mean" and "sum" compute it
        while a block's logits are at hand, three products in all, and keep it, in float32, for the backward pass;
        forward alone is one product. "none" computes the blocks again. All modes, as for `linear_statistics`. A row of
        weight 0 is not computed: the gradient by its weight is that of a loss of 0. Weights that are learned and may be
        0 belong outside, on the losses of reduction "none". An objective that closes over what is differentiated or
        traced inside of `jax.shard_map`, or over anything on an explicit mesh, has its blocks computed again, too.

        Outside of jit keep the objective: one that is made anew for every call is compiled for every call, and so is
        one that reads more from the globals of its module than numbers, strings and functions.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> def objective(statistics):
        ...     return -statistics.log_prob + 0.1 * statistics.error_prob
        >>> features, kernel = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0, 3.0], [1.0, 0.0, -1.0]])
        >>> print(f"{jaxsoftmax.linear_loss(objective, features, kernel, jnp.array([0])):.4f}")
        0.1855

    References:
        E. Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, 2025.
    """
    name = "linear_loss"
    statics = Statics(logit_cap, ignore_label, num_classes, block_size, precision, axis_name)
    check_statics(name, temperature, statics)
    checks.choice(name, ("mean", "sum", "none"), reduction=reduction)
    if not callable(objective):
        checks.fail(TypeError, name, "objective must be a function of RowStatistics", objective=objective)
    arrays_ = (features, kernel, labels, weights, bias, where, temperature, ())
    options: Any = {"name": name, "reduction": reduction, "statics": statics}
    constants = closures.constants_of(objective)
    if constants is None:
        # A function from here on, which can be hashed, whatever it was.
        arrays_ = meshes.with_the_first(arrays_)
        return _loss_call(*arrays_, objective=lambda statistics: objective(statistics), plain=False, **options)
    return _loss_jit(*arrays_, objective=objective, constants=constants, **options)


def linear_cross_entropy(
    features: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    label_smoothing: ArrayLike = 0.0,
    smoothing: str = "uniform",
    z_loss: ArrayLike = 0.0,
    weights: ArrayLike | None = None,
    reduction: str = "mean",
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    logit_cap: float | None = None,
    ignore_label: int | None = None,
    num_classes: int | None = None,
    block_size: int | None = None,
    precision: Any = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Softmax cross entropy from features and kernel, without ever holding the logits.

    (1 - ε) · -log p[y] + ε · mean over present classes of -log pⱼ + z_loss · (log Σ exp zⱼ)²,  z = h W + b

    Args:
        features: h, [..., D], floating.
        kernel: W, [D, V], floating; a tied embedding is passed transposed.
        labels: [...], integers in [0, V).
        label_smoothing: ε in [0, 1].
        smoothing: "uniform" for ε/K on each of the K present classes, "others" for ε/(K-1) on all but the label.
        z_loss: Coefficient ≥ 0 of the squared log normalizer.
        weights: [...], how much each row counts; 1 by default.
        reduction: "mean" over the weights of the rows that count, "sum", or "none".
        bias: b, [V].
        where: Which classes are present: boolean, [V].
        temperature: T ≥ 0 divides the logits; a scalar or one number per row.
        logit_cap: Logits become cap · tanh(z / cap), before the temperature.
        ignore_label: The one label whose rows have weight 0.
        num_classes: How many of the columns are classes; those that follow pad the kernel, and are absent.
        block_size: Rows in a block. By default cut evenly, at most so many: on a CPU what 40 MiB of float32 logits
            hold, from 88 to 1 024, or 512 (256 for D up to 64) where only so few stay in 30 MiB with the kernel's
            gradient; elsewhere 2 048 or what 256 MiB hold, but no more than D or what 512 MiB hold.
        precision: Of the matrix products, as `jax.lax.dot_general` takes it.
        axis_name: The mesh axis, or axes, over which the classes are split, inside of `jax.shard_map`: kernel, bias and
            where are each device's own columns, and labels count through all devices.

    Returns:
        A scalar, or [...] for "none", in nats, float32 or wider. The mean is 0 where the weights sum to 0.

    Raises:
        TypeError: Features or kernel are not floating, the labels not integers, or the mask not boolean.
        ValueError: The kernel is not [D, V], a shape does not fit or an option is out of range or unknown.

    Numerics:
        `cross_entropy` on logits that accumulate in float32 or wider; see `linear_statistics`.

    Gradient:
        See `linear_loss`; also by label_smoothing and z_loss.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> features, kernel = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0, 3.0], [1.0, 0.0, -1.0]])
        >>> print(f"{jaxsoftmax.linear_cross_entropy(features, kernel, jnp.array([0])):.4f}")
        0.1698

    References:
        E. Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, 2025.
    """
    name = "linear_cross_entropy"
    statics = Statics(logit_cap, ignore_label, num_classes, block_size, precision, axis_name)
    check_statics(name, temperature, statics)
    checks.choice(name, ("mean", "sum", "none"), reduction=reduction)
    checks.numbers_in(name, 0, 1, label_smoothing=label_smoothing)
    checks.numbers_in(name, 0, math.inf, z_loss=z_loss)
    checks.choice(name, ("uniform", "others"), smoothing=smoothing)
    used = tuple(not (isinstance(option, int | float) and option == 0) for option in (label_smoothing, z_loss))
    options = tuple(option for option, on in zip((label_smoothing, z_loss), used, strict=True) if on)
    arrays_ = (features, kernel, labels, weights, bias, where, temperature, options)
    objective = _CrossEntropy(smoothing, *used)
    return _loss_jit(*arrays_, name=name, objective=objective, reduction=reduction, statics=statics, constants=())


@calls.compiled("statics")
def _statistics_call(
    features: Any, kernel: Any, labels: Any, bias: Any, where: Any, temperature: Any, *, statics: Statics
) -> RowStatistics:
    name = "linear_statistics"
    statistics, batch = statistics_of_rows(name, features, kernel, labels, bias, where, temperature, statics, mean=True)
    return jax.tree.map(batch.back, statistics)


@dataclasses.dataclass(frozen=True)
class _CrossEntropy:
    """The objective of `linear_cross_entropy`; its options come as arrays, after the statistics."""

    smoothing: str
    smoothed: bool
    penalized: bool

    def __call__(self, statistics: RowStatistics, *options: Any) -> jax.Array:
        name, dtype, left = "linear_cross_entropy", statistics.target.dtype, list(options)
        share = checks.scalar(name, dtype, label_smoothing=left.pop(0)) if self.smoothed else 0.0
        coefficient = checks.scalar(name, dtype, z_loss=left.pop(0)) if self.penalized else 0.0
        return objectives.penalized(objectives.smoothed(statistics, share, self.smoothing), statistics, coefficient)


@dataclasses.dataclass(frozen=True)
class _OnRows:
    """The objective as a function of the outputs of the operation on rows, and of what it closes over."""

    objective: Callable[..., jax.Array]

    def __call__(self, statistics: RowStatistics, consts: tuple[Any, ...]) -> jax.Array:
        return self.objective(_filled(statistics), *consts).astype(statistics.target.dtype)


def _filled(statistics: RowStatistics) -> RowStatistics:
    """Something for the fields that were found to be of no use."""
    if statistics.mean is not None:
        return statistics
    nothing = jnp.zeros_like(statistics.target)
    return statistics._replace(mean=nothing, classes=nothing)


def _converted(
    objective: Callable[..., jax.Array], example: RowStatistics
) -> tuple[Callable[..., jax.Array], tuple[jax.Array, ...]]:
    """The objective as a function of all arrays that it closes over, too, and these.

    `jax.closure_convert` takes out floating ones alone, and others that are traced would be out of place in a rule.
    """
    program = jax.make_jaxpr(objective)(example)

    def converted(statistics: RowStatistics, *consts: jax.Array) -> jax.Array:
        return jax.core.eval_jaxpr(program.jaxpr, consts, *statistics)[0]

    return converted, tuple(map(jnp.asarray, program.consts))


def _example(rows: int, dtype: Any) -> RowStatistics:
    """Statistics of so many rows, without numbers."""
    return RowStatistics._make([jax.ShapeDtypeStruct((rows,), dtype)] * len(RowStatistics._fields))


def _uses_mean(objective: Callable[..., Any], example: RowStatistics, options: Any) -> bool:
    """Whether the objective looks at the mean or the number of classes; read off its program."""
    program = jax.make_jaxpr(objective)(example, *options).jaxpr
    used = {id(x) for equation in program.eqns for x in equation.invars} | {id(x) for x in program.outvars}
    places = [i for i, field in enumerate(RowStatistics._fields) if field in ("mean", "classes")]
    return any(id(program.invars[i]) in used for i in places)


def _loss_call(
    features: Any,
    kernel: Any,
    labels: Any,
    weights: Any,
    bias: Any,
    where: Any,
    temperature: Any,
    options: tuple[Any, ...],
    *,
    name: str,
    objective: Callable[..., jax.Array],
    reduction: str,
    statics: Statics,
    plain: bool,
) -> jax.Array:
    features, labels = checks.row_labels(name, labels, features)
    plan, inputs, batch = labelled(name, features, kernel, labels, bias, where, temperature, statics)
    given = batch.rows(checks.row_numbers(name, "weights", weights, features, scalar=False))
    checks.same_on_devices(name, plan.mesh, weights=given)

    dtype = arrays.compute_dtype(inputs.sides[0].features.dtype)
    options = tuple(jnp.asarray(option).astype(dtype) for option in options)
    example = _example(plan.cut.block, dtype)
    try:
        shape = jax.eval_shape(objective, example, *options)
    except (TypeError, ValueError) as error:
        error.add_note(
            f"jaxsoftmax.{name}: the objective sees a block of {plan.cut.block} rows at a time. Numbers of all rows, "
            'if it takes some, belong in weights, or on the losses of reduction="none".'
        )
        raise
    if getattr(shape, "shape", None) != (plan.cut.block,):
        checks.fail(ValueError, name, "objective must return one loss per row", objective=objective, losses=shape)
    if not _uses_mean(objective, example, options):
        inputs = without_mean(inputs)
    # On an explicit mesh, too, the converted program of a closure would fit only the sharding that it was traced with.
    apart = reduction == "none" or (not plain and meshes.explicit_sharding(inputs.sides[0].features) is not None)
    if not apart and not plain:
        # Traced on numbers that vary over a mesh as those of the rows do.
        union = frozenset[str]().union(*map(meshes.varying, jax.tree.leaves((inputs, given)))) - {*plan.mesh}
        zeros = jax.tree.map(lambda x: meshes.vary(jnp.zeros(x.shape, x.dtype), union), example)
        converted, consts = _converted(objective, zeros)
        # What is closed over inside of shard_map would have to vary there, where the converted program says it does
        # not: then the objective is left to JAX, outside of the blocks.
        apart = bool(consts) and bool(union)
        if not apart:
            objective, options = converted, consts
    return reduced(plan, inputs, given, _OnRows(objective), options, reduction, batch, apart=apart)


@calls.compiled("name", "objective", "reduction", "statics", "constants")
def _loss_jit(*arrays_: Any, constants: tuple[Any, ...], **options: Any) -> jax.Array:
    """Compiled once for the objective and what it reads from globals."""
    del constants
    return _loss_call(*arrays_, plain=True, **options)
