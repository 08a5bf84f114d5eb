"""What the functions of the streamed head share: checked inputs, the statistics of a block, weights and reductions."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftmax._core import arrays, blocks, checks, meshes, row_rules, streams
from jaxsoftmax._core.meshes import Axes, AxisName
from jaxsoftmax.statistics import (
    DenseOptions,
    DenseResiduals,
    RowStatistics,
    dense_backward,
    dense_forward,
    dense_tangent,
)

__all__: list[str] = []


# The statistics as an operation on rows: the dense one, on the logits of a block.


class Statics(NamedTuple):
    """The options that are fixed when a program is traced."""

    logit_cap: float | None
    ignore_label: int | None
    num_classes: int | None
    block_size: int | None
    precision: Any
    axis_name: AxisName

    @property
    def axes(self) -> Axes:
        """The class axis of a block of logits."""
        return Axes((1,), meshes.names_of(self.axis_name))


class _Numbers(NamedTuple):
    """What the backward pass needs of a row."""

    largest: jax.Array
    target: jax.Array
    others: jax.Array
    classes: jax.Array | None


def _residuals(logits: Any, rows: Any, numbers: _Numbers) -> DenseResiduals:
    (values,), (labels, temperature, _), (largest, target, others, classes) = logits, rows, numbers
    return DenseResiduals(values, labels, None, classes, temperature, largest, target, others)


def _rows_forward(options: DenseOptions, logits: Any, rows: Any) -> Any:
    (values,), (labels, temperature, classes) = logits, rows
    outs, kept = dense_forward(options, values, labels, None, classes, temperature)
    return RowStatistics._make(outs), _Numbers(kept.largest, kept.target, kept.others, kept.classes)


def _rows_backward(options: DenseOptions, logits: Any, rows: Any, numbers: _Numbers, cotangents: Any) -> Any:
    dlogits, _, _, _, dtemperature = dense_backward(options, _residuals(logits, rows, numbers), cotangents)
    return (dlogits,), (None, dtemperature, None)


def _rows_tangent(options: DenseOptions, logits: Any, rows: Any, numbers: _Numbers, along: Any, trows: Any) -> Any:
    tangents = (along[0], None, None, None, trows[1])
    return RowStatistics._make(dense_tangent(options, _residuals(logits, rows, numbers), tangents))


def _in_one_pass(options: DenseOptions) -> DenseOptions:
    return options._replace(one_pass=True)


def _shown(statistics: RowStatistics, which: jax.Array) -> RowStatistics:
    """Zeros, but the number of classes, which every row has: an objective may divide by it."""
    return row_rules.zeros_where(which, statistics)._replace(classes=statistics.classes)


_ROWS = row_rules.by_columns(
    _rows_forward,
    _rows_backward,
    _rows_tangent,
    whole_forward=lambda options: options.one_pass,
    whole_backward=True,
    in_one_pass=_in_one_pass,
    shown=_shown,
)


def check_statics(function: str, temperature: Any, statics: Statics) -> None:
    """The options that are Python values, before anything is traced."""
    checks.numbers_in(function, 0, math.inf, temperature=temperature)
    checks.static_axis(function, None, statics.axis_name)
    checks.positive(function, logit_cap=statics.logit_cap)
    sizes = {"num_classes": statics.num_classes, "block_size": statics.block_size}
    checks.ignored(function, statics.ignore_label)
    checks.whole(function, **sizes)
    checks.numbers_in(function, 1, math.inf, **sizes)


def labelled(
    function: str, features: Any, kernel: Any, labels: Any, bias: Any, where: Any, temperature: Any, statics: Statics
) -> tuple[streams.Plan, streams.Inputs, blocks.Batch]:
    """The rest checked, with all rows along one axis; and the batch. Features and labels are `checks.row_labels`'."""
    inputs, batch = inputs_of(function, features, kernel, bias, where, temperature, statics)
    (side,), (temperature,), labels = inputs.sides, inputs.rows, batch.rows(labels)
    classes = side.kernel.shape[1]
    checks.same_on_devices(function, statics.axes.mesh, labels=labels)
    counted = None
    if statics.ignore_label is not None:
        counted = labels != statics.ignore_label
        labels = jnp.where(counted, labels, 0)
    if statics.num_classes is not None:
        labels = jnp.where(labels < statics.num_classes, labels, -1)  # padding is no class
    present = jnp.ones(classes, bool) if inputs.where is None else inputs.where
    present = present if side.bias is None else present & ~jnp.isneginf(side.bias)
    number = ones_of(side.features) * jnp.sum(present.astype(arrays.compute_dtype(side.features.dtype)))
    inputs = inputs._replace(rows=(labels, temperature, number), counted=counted)
    return plan_of(_ROWS, DenseOptions(statics.axes, cap_of(statics), None), inputs, statics), inputs, batch


def _streamed(plan: streams.Plan, inputs: streams.Inputs) -> Any:
    """The operation on all rows; of statistics the number of classes in blocks that are passed over, too."""
    outs = streams.streamed(plan, inputs)
    known = isinstance(outs, RowStatistics) and not plan.mesh
    return outs._replace(classes=inputs.rows[2]) if known else outs


def without_absent(kernel: jax.Array, where: jax.Array) -> jax.Array:
    """The kernel with 0 for absent classes, whose columns take part in the products that give dh."""
    return jnp.where(meshes.split_like(where[None], kernel), kernel, jnp.zeros((), kernel.dtype))


def without_mean(inputs: streams.Inputs) -> streams.Inputs:
    """The mean is not computed where the number of classes is not given."""
    return inputs._replace(rows=(*inputs.rows[:2], None))


def _certain(statistics: RowStatistics, counted: jax.Array | None) -> RowStatistics:
    """Rows that do not count look like a certain label; the number of classes stays."""
    if counted is None:
        return statistics
    certain = (0.0, -jnp.inf, 0.0, 0.0)
    outs: Any = [x if x is None else jnp.where(counted, x, c) for x, c in zip(statistics[:4], certain, strict=True)]
    return RowStatistics._make((*outs, statistics.classes))


def statistics_of_rows(
    function: str,
    features: Any,
    kernel: Any,
    labels: Any,
    bias: Any,
    where: Any,
    temperature: Any,
    statics: Statics,
    *,
    mean: bool,
) -> tuple[RowStatistics, blocks.Batch]:
    """Checked in the name of the function and computed, with fields [N]; and the batch."""
    features, labels = checks.row_labels(function, labels, features)
    plan, inputs, batch = labelled(function, features, kernel, labels, bias, where, temperature, statics)
    inputs = inputs if mean else without_mean(inputs)
    statistics = _streamed(plan, inputs)
    return _certain(statistics, inputs.counted), batch


def inputs_of(
    function: str, features: Any, kernel: Any, bias: Any, where: Any, temperature: Any, statics: Statics
) -> tuple[streams.Inputs, blocks.Batch]:
    """Checked, with all rows along one axis and the temperature as the only number per row; the batch."""
    given = checks.head(function, ("features", "kernel", "bias"), features, kernel, bias)
    features, kernel, bias = meshes.for_product(*given)
    checks.mesh_axes(function, statics.axis_name, kernel=kernel)
    where = checks.classes_present(function, where, kernel, statics.axes, statics.num_classes)
    temperature = checks.row_numbers(function, "temperature", temperature, features, scalar=True)
    checks.same_on_devices(function, statics.axes.mesh, features=features, temperature=temperature)
    batch = blocks.batch_of(features)
    kernel = kernel if where is None else without_absent(kernel, where)
    side = streams.Side(batch.rows(features), kernel, bias)
    return streams.Inputs((side,), where, (batch.rows(temperature),), None), batch


def ones_of(features: jax.Array) -> jax.Array:
    """1 for every row, [N], in float32 or wider, split as the rows are."""
    ones = jnp.ones((features.shape[0], 1), arrays.compute_dtype(features.dtype))
    return meshes.split_like(ones, features)[:, 0]


def plan_of(rules: row_rules.RowRules | None, options: Any, inputs: streams.Inputs, statics: Statics) -> streams.Plan:
    cut = streams.cut_of(inputs, statics.block_size)
    return streams.Plan(rules, options, cut, statics.precision, statics.axes.mesh)


def cap_of(statics: Statics) -> float | None:
    return None if statics.logit_cap is None else float(statics.logit_cap)


def _unit(weights: jax.Array) -> jax.Array:
    """What the weights are divided by, a constant: gradients of logits in float16 hold numbers from 6e-8 to 65 504."""
    largest = lax.stop_gradient(jnp.max(jnp.abs(weights), initial=0.0))
    unit = largest / jnp.clip(largest, 2.0**-10, 2.0**15)
    return jnp.where((unit > 0) & jnp.isfinite(unit), unit, 1.0)


def reduced(
    plan: streams.Plan,
    inputs: streams.Inputs,
    weights: jax.Array | None,
    objective: Callable[..., jax.Array],
    consts: tuple[Any, ...],
    reduction: str,
    batch: blocks.Batch,
    *,
    apart: bool,
) -> jax.Array:
    """Losses of the operation on rows, times the weights [N], as a mean, a sum, or one per row in the batch's shape.

    Rows of weight 0, and those that do not count already, are not computed where a whole block of them comes together.
    Apart from the blocks, the objective is differentiated by JAX, and the backward pass computes the blocks again.
    """
    features = inputs.sides[0].features
    rows = ones_of(features) if weights is None else weights
    if inputs.counted is not None:
        rows = jnp.where(inputs.counted, rows, 0.0)
    if weights is not None or inputs.counted is not None:
        inputs = inputs._replace(counted=rows != 0)
    if apart:
        outs = plan.rules.shown(_streamed(plan, inputs), rows == 0)
        losses = jnp.where(rows == 0, 0.0, rows * objective(outs, consts))
        if reduction == "none":
            return batch.back(losses)
        summed = jnp.sum(losses)
    else:
        unit = _unit(rows) if weights is not None and features.dtype == jnp.float16 else 1.0
        summed = unit * streams.streamed_sum(plan, objective, inputs, rows / unit, consts)
    if reduction == "sum":
        return summed
    # Divided here, not in the weights of the rows: gradients of logits in float16 would vanish.
    total = jnp.sum(rows)
    return jnp.where(total == 0, 0.0, summed / jnp.where(total == 0, 1.0, total))
