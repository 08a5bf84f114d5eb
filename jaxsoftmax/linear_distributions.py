"""What the distributions of a streamed head are: log-probabilities, entropies and divergences."""

import dataclasses
from typing import Any, NamedTuple

import jax
from jax.typing import ArrayLike

from jaxsoftmax._core import blocks, calls, checks, folds, meshes, row_rules, streams
from jaxsoftmax._core.meshes import Axes, AxisName
from jaxsoftmax.divergences import DivergenceOptions, KLResiduals, kl_backward, kl_forward, kl_tangent
from jaxsoftmax.entropies import EntropyResiduals, entropy_backward, entropy_forward, entropy_tangent
from jaxsoftmax.linear_rows import (
    Statics,
    cap_of,
    check_statics,
    inputs_of,
    plan_of,
    reduced,
    statistics_of_rows,
    without_absent,
)
from jaxsoftmax.statistics import cap_slope, capped

__all__ = ["linear_entropy", "linear_kl_divergence", "linear_log_probs"]


def linear_log_probs(
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
) -> jax.Array:
    """The log-probability of each row's label, from features and kernel: what policy optimization needs.

    log p[y],  p = softmax((h W + b) / T)

    Args:
        features: h, [..., D], floating.
        kernel: W, [D, V], floating; a tied embedding is passed transposed.
        labels: [...], integers in [0, V): the actions or tokens.
        bias: b, [V].
        where: Which classes are present: boolean, [V].
        temperature: T ≥ 0 divides the logits; a scalar or one number per row.
        logit_cap: Logits become cap · tanh(z / cap), before the temperature.
        ignore_label: The one label whose rows have log-probability 0 and gradient 0.
        num_classes: How many of the columns are classes; those that follow pad the kernel, and are absent.
        block_size: Rows in a block, as in `linear_statistics`.
        precision: Of the matrix products, as `jax.lax.dot_general` takes it.
        axis_name: The mesh axis, or axes, over which the classes are split, inside of `jax.shard_map`: kernel, bias and
            where are each device's own columns, and labels count through all devices.

    Returns:
        [...] in nats, float32 or wider.

    Raises:
        TypeError: Features or kernel are not floating, the labels not integers, or the mask not boolean.
        ValueError: The kernel is not [D, V], a shape does not fit or an option is out of range.

    Numerics:
        -log1p(Σ_{j≠y} exp(zⱼ - z_y)), right to the last digit when p[y] nears 1; an absent label has -inf.

    Gradient:
        As for `linear_statistics`: the blocks are computed again. All modes.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> features, kernel = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0, 3.0], [1.0, 0.0, -1.0]])
        >>> [log_prob] = jaxsoftmax.linear_log_probs(features, kernel, jnp.array([0]))
        >>> print(f"{log_prob:.4f}")
        -0.1698
    """
    statics = Statics(logit_cap, ignore_label, num_classes, block_size, precision, axis_name)
    check_statics("linear_log_probs", temperature, statics)
    return _log_probs_call(features, kernel, labels, bias, where, temperature, statics=statics)


def linear_entropy(
    features: ArrayLike,
    kernel: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    logit_cap: float | None = None,
    num_classes: int | None = None,
    block_size: int | None = None,
    precision: Any = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """The entropy of each row's distribution, from features and kernel.

    H(p) = -Σⱼ pⱼ log pⱼ,  p = softmax((h W + b) / T)

    Args:
        features: h, [..., D], floating.
        kernel: W, [D, V], floating; a tied embedding is passed transposed.
        bias: b, [V].
        where: Which classes are present: boolean, [V].
        temperature: T ≥ 0 divides the logits; a scalar or one number per row.
        logit_cap: Logits become cap · tanh(z / cap), before the temperature.
        num_classes: How many of the columns are classes; those that follow pad the kernel, and are absent.
        block_size: Rows in a block, as in `linear_statistics`.
        precision: Of the matrix products, as `jax.lax.dot_general` takes it.
        axis_name: The mesh axis, or axes, over which the classes are split, inside of `jax.shard_map`: kernel, bias and
            where are each device's own columns, and labels count through all devices.

    Returns:
        [...] in nats, float32 or wider.

    Raises:
        TypeError: Features or kernel are not floating, or the mask not boolean.
        ValueError: The kernel is not [D, V], a shape does not fit or an option is out of range.

    Numerics:
        As in `entropy`, on logits that accumulate in float32 or wider.

    Gradient:
        dz as in `entropy`, and from there as in `linear_statistics`: the blocks are computed again. All modes.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> print(jaxsoftmax.linear_entropy(jnp.zeros((1, 2)), jnp.ones((2, 4))))
        [1.3862944]
    """
    statics = Statics(logit_cap, None, num_classes, block_size, precision, axis_name)
    check_statics("linear_entropy", temperature, statics)
    return _entropy_call(features, kernel, bias, where, temperature, statics=statics)


def linear_kl_divergence(
    student_features: ArrayLike,
    student_kernel: ArrayLike,
    teacher_features: ArrayLike,
    teacher_kernel: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    reduction: str = "mean",
    student_bias: ArrayLike | None = None,
    teacher_bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    num_classes: int | None = None,
    block_size: int | None = None,
    precision: Any = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """The divergence of a student from its teacher, where neither side's logits are ever held.

    KL(q ‖ p) = Σⱼ qⱼ (log qⱼ - log pⱼ),  p of the student, q of the teacher, both of softmax((h W + b) / T)

    Args:
        student_features: [..., D], floating.
        student_kernel: [D, V], floating.
        teacher_features: [..., E], floating: the teacher may have another width.
        teacher_kernel: [E, V], floating.
        weights: [...], how much each row counts; 1 by default.
        reduction: "mean" over the weights, "sum", or "none".
        student_bias: [V].
        teacher_bias: [V].
        where: Which classes are present in both: boolean, [V].
        temperature: T ≥ 0 divides both; a scalar or one number per row. The usual factor T² is left to the caller.
        num_classes: How many of the columns are classes; those that follow pad the kernel, and are absent.
        block_size: Rows in a block; by default as in `linear_statistics` for the classes of both sides together.
        precision: Of the matrix products, as `jax.lax.dot_general` takes it.
        axis_name: The mesh axis, or axes, over which the classes are split, inside of `jax.shard_map`: kernel, bias and
            where are each device's own columns, and labels count through all devices.

    Returns:
        A scalar, or [...] for "none", in nats, ≥ 0, float32 or wider. The mean is 0 where the weights sum to 0.

    Raises:
        TypeError: Features or kernels are not floating or not of one dtype, or the mask is not boolean.
        ValueError: A kernel is not [D, V], a shape does not fit or an option is out of range or unknown.

    Numerics:
        As in `kl_divergence`, on logits that accumulate in float32 or wider.

    Gradient:
        By both sides, the temperature and the weights, as in `linear_loss`. A frozen teacher costs no products beyond
        its logits: under jit what is not asked for is not computed. All modes.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> student, teacher = jnp.array([[1.0, 0.0]]), jnp.array([[2.0]])
        >>> kernels = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[1.0, 0.0]])
        >>> print(f"{jaxsoftmax.linear_kl_divergence(student, kernels[0], teacher, kernels[1]):.4f}")
        0.0671

    References:
        G. Hinton, O. Vinyals and J. Dean, Distilling the Knowledge in a Neural Network, 2015.
    """
    statics = Statics(None, None, num_classes, block_size, precision, axis_name)
    check_statics("linear_kl_divergence", temperature, statics)
    checks.choice("linear_kl_divergence", ("mean", "sum", "none"), reduction=reduction)
    student = student_features, student_kernel, student_bias
    teacher = teacher_features, teacher_kernel, teacher_bias
    return _kl_call(student, teacher, weights, where, temperature, reduction=reduction, statics=statics)


# The rules are those of the dense operations (divergences.py, entropies.py), on the logits of a block.


class _EntropyNumbers(NamedTuple):
    """What the backward pass needs of a row."""

    shift: jax.Array
    others: jax.Array


def _entropy_residuals(
    options: DivergenceOptions, logits: Any, rows: Any, numbers: _EntropyNumbers
) -> EntropyResiduals:
    values = capped(logits[0], None, options.logit_cap)
    return EntropyResiduals(values, None, rows[0], *numbers)


def _entropy_rows_forward(options: DivergenceOptions, logits: Any, rows: Any) -> Any:
    values = capped(logits[0], None, options.logit_cap)
    out, kept = entropy_forward(options.axes, values, None, rows[0])
    return out, _EntropyNumbers(kept.shift, kept.others)


def _entropy_rows_backward(options: DivergenceOptions, logits: Any, rows: Any, numbers: Any, cotangent: Any) -> Any:
    residuals = _entropy_residuals(options, logits, rows, numbers)
    dlogits, _, dtemperature = entropy_backward(options.axes, residuals, cotangent)
    if options.logit_cap is not None:
        dlogits = dlogits * cap_slope(logits[0], None, options.logit_cap)
    return (dlogits,), (dtemperature,)


def _entropy_rows_tangent(
    options: DivergenceOptions, logits: Any, rows: Any, numbers: Any, along: Any, trows: Any
) -> Any:
    residuals = _entropy_residuals(options, logits, rows, numbers)
    tangent = along[0] if options.logit_cap is None else along[0] * cap_slope(logits[0], None, options.logit_cap)
    return entropy_tangent(options.axes, residuals, (tangent, None, trows[0]))


_ENTROPY = row_rules.by_columns(
    _entropy_rows_forward, _entropy_rows_backward, _entropy_rows_tangent, long_from=folds.LONG_WITHOUT_ONE
)


class _KLNumbers(NamedTuple):
    """What the backward pass needs of a row."""

    largest: jax.Array
    others: jax.Array
    target_largest: jax.Array
    target_others: jax.Array
    log_ratio: jax.Array


def _kl_residuals(logits: Any, rows: Any, numbers: _KLNumbers) -> KLResiduals:
    return KLResiduals._make((*logits, None, rows[0], *numbers))


def _kl_rows_forward(axes: Axes, logits: Any, rows: Any) -> Any:
    student, teacher = logits
    out, kept = kl_forward(axes, student, teacher, None, rows[0])
    numbers = (kept.largest, kept.others, kept.target_largest, kept.target_others, kept.log_ratio)
    return out, _KLNumbers._make(numbers)


def _kl_rows_backward(axes: Axes, logits: Any, rows: Any, numbers: Any, cotangent: Any) -> Any:
    *dlogits, _where, dtemperature = kl_backward(axes, _kl_residuals(logits, rows, numbers), cotangent)
    return tuple(dlogits), (dtemperature,)


def _kl_rows_tangent(axes: Axes, logits: Any, rows: Any, numbers: Any, along: Any, trows: Any) -> Any:
    return kl_tangent(axes, _kl_residuals(logits, rows, numbers), (*along, None, trows[0]))


_KL = row_rules.by_columns(_kl_rows_forward, _kl_rows_backward, _kl_rows_tangent, long_from=folds.LONG_WITHOUT_ONE)


@calls.compiled("statics")
def _log_probs_call(
    features: Any, kernel: Any, labels: Any, bias: Any, where: Any, temperature: Any, *, statics: Statics
) -> jax.Array:
    name = "linear_log_probs"
    statistics, batch = statistics_of_rows(
        name, features, kernel, labels, bias, where, temperature, statics, mean=False
    )
    return batch.back(statistics.log_prob)


@calls.compiled("statics")
def _entropy_call(
    features: Any, kernel: Any, bias: Any, where: Any, temperature: Any, *, statics: Statics
) -> jax.Array:
    inputs, batch = inputs_of("linear_entropy", features, kernel, bias, where, temperature, statics)
    options = DivergenceOptions(statics.axes, cap_of(statics))
    return batch.back(streams.streamed(plan_of(_ENTROPY, options, inputs, statics), inputs))


@dataclasses.dataclass(frozen=True)
class _Itself:
    """The objective of an operation whose output is the loss."""

    def __call__(self, loss: jax.Array, consts: tuple[Any, ...]) -> jax.Array:
        return loss


def _side_by_side(student: streams.Side, teacher: streams.Side) -> tuple[streams.Side, streams.Side]:
    """Both sides on an explicit mesh, with their rows split alike, and their classes."""
    sides = meshes.together((student, teacher))
    features = meshes.split_alike(*(meshes.whole_along(side.features, -1) for side in sides))
    kernels = meshes.split_alike(*(meshes.whole_along(side.kernel, 0) for side in sides))
    student, teacher = (
        streams.Side(*meshes.for_product(h, w, side.bias)) for h, w, side in zip(features, kernels, sides, strict=True)
    )
    return student, teacher


@calls.compiled("reduction", "statics")
def _kl_call(
    student: Any, teacher: Any, weights: Any, where: Any, temperature: Any, *, reduction: str, statics: Statics
) -> jax.Array:
    name = "linear_kl_divergence"
    student, teacher = (
        streams.Side(*checks.head(name, (f"{who}_features", f"{who}_kernel", f"{who}_bias"), *given))
        for who, given in (("student", student), ("teacher", teacher))
    )
    checks.same_dtype(name, student_features=student.features, teacher_features=teacher.features)
    if teacher.features.shape[:-1] != student.features.shape[:-1] or teacher.kernel.shape[1] != student.kernel.shape[1]:
        rule = "student and teacher must have the same rows and the same classes"
        given = dict(zip(("student_features", "student_kernel"), student, strict=False))
        given |= dict(zip(("teacher_features", "teacher_kernel"), teacher, strict=False))
        checks.fail(ValueError, name, rule, **given)
    student, teacher = _side_by_side(student, teacher)
    for who, side in (("student", student), ("teacher", teacher)):
        checks.mesh_axes(name, statics.axis_name, **{f"{who}_kernel": side.kernel})
        checks.same_on_devices(name, statics.axes.mesh, **{f"{who}_features": side.features})
    where = checks.classes_present(name, where, student.kernel, statics.axes, statics.num_classes)
    temperature = checks.row_numbers(name, "temperature", temperature, student.features, scalar=True)
    weights = checks.row_numbers(name, "weights", weights, student.features, scalar=False)
    checks.same_on_devices(name, statics.axes.mesh, temperature=temperature, weights=weights)
    batch = blocks.batch_of(student.features)
    if where is not None:
        student, teacher = (side._replace(kernel=without_absent(side.kernel, where)) for side in (student, teacher))
    sides = tuple(side._replace(features=batch.rows(side.features)) for side in (student, teacher))
    inputs = streams.Inputs(sides, where, (batch.rows(temperature),), None)
    plan = plan_of(_KL, statics.axes, inputs, statics)
    return reduced(plan, inputs, batch.rows(weights), _Itself(), (), reduction, batch, apart=reduction == "none")
