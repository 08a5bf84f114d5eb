"""The few numbers through which softmax losses see a row of logits, and the dense head that computes them."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftmax._core import arrays, calls, checks, folds, meshes, passes, rules, scalars
from jaxsoftmax._core.meshes import Axes, AxisName

__all__ = ["RowStatistics", "row_statistics"]


class RowStatistics(NamedTuple):
    """What an objective sees of each row; all fields have shape [...], in float32 or wider, in nats.

    target, rest and mean are relative to `shift`, the row's largest logit, so that a common offset of the logits costs
    no digit; absolute values are one addition away. To differentiation by the logits the shift is a constant.

    Attributes:
        target: z[y], the logit of the labelled class; -inf where it is absent, NaN where the label is out of range.
        rest: The log-sum-exp of all other classes; -inf where there are none.
        mean: The mean of the logits of the present classes.
        shift: The largest logit.
        classes: The number of present classes.
    """

    target: jax.Array
    rest: jax.Array
    mean: jax.Array
    shift: jax.Array
    classes: jax.Array

    @property
    def log_odds(self) -> jax.Array:
        """log p[y] - log(1 - p[y]); -inf where the labelled class is absent."""
        return scalars.log_odds(self.target, self.rest)

    @property
    def log_normalizer(self) -> jax.Array:
        """The log-sum-exp of all classes."""
        return self.shift + scalars.log_add(self.target, self.rest)

    @property
    def log_prob(self) -> jax.Array:
        """log p[y]; its negative is the cross entropy."""
        return -scalars.softplus(-self.log_odds)

    @property
    def prob(self) -> jax.Array:
        """p[y]."""
        return scalars.sigmoid(self.log_odds)

    @property
    def error_prob(self) -> jax.Array:
        """1 - p[y], exact to the last digit also where p[y] rounds to 1."""
        return scalars.sigmoid(-self.log_odds)


class Head(NamedTuple):
    """The options of the dense head that are fixed when a program is traced."""

    axis: Any
    logit_cap: float | None
    ignore_label: int | None
    axis_name: AxisName


def row_statistics(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    logit_cap: float | None = None,
    ignore_label: int | None = None,
    axis_name: AxisName = None,
) -> RowStatistics:
    """The statistics of every row, from logits in memory.

    target = z[y] - m,  rest = log Σ_{j≠y} exp(zⱼ - m),  mean = Σⱼ (zⱼ - m) / K,  shift = m = max z

    Args:
        logits: [..., V], floating.
        labels: [...], integers in [0, V).
        axis: The class axis.
        where: Which classes are present: boolean, of the shape of the logits or [V].
        temperature: T ≥ 0 divides the logits; a scalar or one number per row.
        logit_cap: Logits become cap · tanh(z / cap), before the temperature.
        ignore_label: The one label whose rows do not count: they look like a certain label, target 0 and rest -inf, so
            that every objective gives 0, and their gradient is 0.
        axis_name: The mesh axis, or axes, over which the classes are split, inside of `jax.shard_map`. Labels count
            through all devices, major axis first.

    Returns:
        RowStatistics with fields [...], float32 or wider.

    Raises:
        TypeError: The logits are not floating, the labels not integers, or the mask not boolean.
        ValueError: The axis is out of range, the class axis is empty, a shape does not fit or an option is out of
            range.

    Numerics:
        The other classes are summed by themselves, so that log-odds are exact at both ends. A label outside of [0, V)
        makes its row NaN: it is never wrapped or clamped. +inf or NaN makes its own row NaN. Capped logits are rounded
        before they are compared: where many saturate, their differences have the digits of logits as large as the cap.

    Gradient:
        dzⱼ = g_rest exp((zⱼ - m) - rest) for j ≠ y,  dz_y = g_target,  plus g_mean / K for the present classes. Kept:
        the arguments and four numbers per row. Reverse mode of any order, forward over reverse; forward mode inside of
        `jaxsoftmax.forward_mode()`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> statistics = jaxsoftmax.row_statistics(jnp.array([[17.0, 0.0]]), jnp.array([0]))
        >>> print(f"{statistics.log_odds[0]:.1f} {statistics.error_prob[0]:.4e}")
        17.0 4.1399e-08
    """
    head = checked_head("row_statistics", temperature, axis, logit_cap, ignore_label, axis_name)
    return _row_statistics_call(logits, labels, where, temperature, head=head)


@calls.compiled("head")
def _row_statistics_call(logits: Any, labels: Any, where: Any, temperature: Any, *, head: Head) -> RowStatistics:
    return dense("row_statistics", logits, labels, where, temperature, head, mean=True)


def checked_head(
    function: str, temperature: Any, axis: Any, logit_cap: float | None, ignore_label: int | None, axis_name: AxisName
) -> Head:
    """The options that are Python values, checked before anything is traced."""
    axis = checks.static_axis(function, axis, axis_name)
    checks.numbers_in(function, 0, math.inf, temperature=temperature)
    checks.positive(function, logit_cap=logit_cap)
    checks.ignored(function, ignore_label)
    return Head(axis, logit_cap, ignore_label, axis_name)


def dense(
    function: str, logits: Any, labels: Any, where: Any, temperature: Any, head: Head, *, mean: bool
) -> RowStatistics:
    """Checks the arguments in the name of the function and computes; without `mean`, mean and classes are None."""
    logits = checks.floating(function, logits=logits)
    axes = checks.class_axis(function, head.axis, head.axis_name, logits=logits)
    logits, labels = meshes.split_alike(logits, checks.labels(function, labels, logits, axes))
    where = checks.mask(function, where, logits, axes)
    temperature = checks.per_row(function, "temperature", temperature, logits, axes)
    classes = None
    if mean:
        classes = arrays.own_sum(~jnp.isneginf(arrays.present(logits, where)), axes).astype(jnp.float32)
        classes = classes.astype(arrays.compute_dtype(logits.dtype))
    cap = None if head.logit_cap is None else float(head.logit_cap)
    in_one_pass = folds.fold_of(axes, logits) is None
    options = DenseOptions(axes, cap, head.ignore_label, in_one_pass)
    out: Any = _dense(options, logits, labels, where, classes, temperature)
    return jax.tree.map(lambda x: jnp.squeeze(x, axes.one), RowStatistics._make(out))


# Derivation.
#
# Let m = max z, a constant (objectives see differences, or add `shift`, which carries its value), and d = (z - m) / T:
#     target = d_y                        d target = dd_y
#     rest = log sum_{j != y} exp(d_j)    d rest = sum_{j != y} w_j dd_j,   w_j = exp(d_j - rest)
#     mean = sum of present d_j / K       d mean = sum of present dd_j / K
#     shift = m / T                       d shift = -(m / T^2) dT
#     classes = K                         a constant
# and dd_j = (dz_j - d_j dT) / T; with a cap, dz_j = (1 - tanh^2(logit / cap)) dlogit_j.
#
# The labelled class is left out of the sum by a selection where the exponentials are written out for a backward pass of
# the same program, which uses the very same, and by a factor of arithmetic, which stays inside of the fused sum, where
# there is none.


# Up to here the products that follow from a gradient are better done one after the other; measured between 3 and 1 000
# classes on a CPU.
FEW_CLASSES = 256


class DenseOptions(NamedTuple):
    """What is fixed when a program is traced.

    In one pass, forward and backward are of the same logits: there the exponentials are written out for both, and a
    selection is done on the way. It is not, where rows are folded for the forward pass.
    """

    axes: Axes
    logit_cap: float | None
    ignore_label: int | None
    one_pass: bool = False

    @property
    def mesh(self) -> tuple[str, ...]:
        return self.axes.mesh


class DenseResiduals(NamedTuple):
    """The arguments, but K of all devices, and per row: m, target and exp(rest)."""

    logits: jax.Array
    labels: jax.Array
    where: jax.Array | None
    classes: jax.Array | None
    temperature: jax.Array | None
    largest: jax.Array
    target: jax.Array
    others: jax.Array


def capped(logits: jax.Array, where: jax.Array | None, cap: float | None) -> jax.Array:
    """cap tanh(logit / cap) of the present classes; infinities stay what they are."""
    values = arrays.present(logits, where)
    if cap is None:
        return values
    values = values.astype(arrays.compute_dtype(values.dtype))
    return jnp.where(jnp.isinf(values), values, cap * jnp.tanh(values / cap))


def cap_slope(logits: jax.Array, where: jax.Array | None, cap: float) -> jax.Array:
    """1 - tanh^2(x) = 4 t / (1 + t)^2 with x = logit / cap and t = exp(-2 |x|), which does not cancel."""
    values = arrays.present(logits, where)
    decay = jnp.exp(-2.0 * jnp.abs(values.astype(arrays.compute_dtype(values.dtype)) / cap))
    return 4.0 * decay / jnp.square(1.0 + decay)


def _selects(options: DenseOptions, logits: jax.Array) -> bool:
    """Whether the label's term is selected away. Of short rows XLA:CPU writes the terms out in any case."""
    axes = options.axes
    return options.one_pass or len(axes.dims) > 1 or arrays.sums_at_once(logits, axes)


def _sum_of_others(
    options: DenseOptions, values: jax.Array, labels: jax.Array, largest: jax.Array, temperature: jax.Array | None
) -> jax.Array:
    """The sum of the other exponentials on this device; in a folded row the label is left out of its own part alone."""
    axes = options.axes
    terms = jnp.exp(arrays.centred(values, largest, temperature))
    if len(axes.dims) == 1:
        return arrays.own_sum(_others(options, terms, values, labels), axes)
    outer, inner = axes.folded
    sums = passes.opaque(arrays.own_sum(terms, inner))
    part, place = jnp.divmod(axes.local(labels, axes.size(values)), values.shape[inner.one])
    own = arrays.part_of(values, jnp.clip(part, 0, values.shape[outer.one] - 1), axes)
    terms = jnp.exp(arrays.centred(own, passes.opaque(largest), temperature))
    left = arrays.own_sum(jnp.where(arrays.is_label(place, own, inner), 0.0, terms), inner)
    return arrays.sum_of_parts(sums, part, left, axes)


def _others(options: DenseOptions, terms: jax.Array, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The terms, and 0 at the labelled class."""
    if _selects(options, logits):
        return jnp.where(arrays.is_label(labels, logits, options.axes), 0.0, terms)
    return terms * arrays.not_label(labels, logits, options.axes, terms.dtype)


def dense_forward(
    options: DenseOptions, logits: Any, labels: Any, where: Any, classes: Any, temperature: Any
) -> tuple[Any, DenseResiduals]:
    axes, size = options.axes, options.axes.size(logits)
    values = capped(logits, where, options.logit_cap)
    largest = arrays.row_max(values, axes)

    target = arrays.own_pick(values, labels, axes)
    others = _sum_of_others(options, values, labels, largest, temperature)
    total = None
    if classes is not None:
        scaled = arrays.centred(values, passes.opaque(largest), temperature)
        total = arrays.own_sum(jnp.where(jnp.isneginf(scaled), 0.0, scaled), axes)
    target, others, total, classes = meshes.packed_sum(axes, target.astype(largest.dtype), others, total, classes)

    target = jnp.where(arrays.is_class(labels, size, axes), arrays.centred(target, largest, temperature), jnp.nan)
    if _selects(options, logits):
        # Where the label's own term is NaN the row must be, though it has been selected away.
        others = jnp.where(jnp.isnan(target), jnp.nan, others)
    mean = None if total is None else total / jnp.maximum(classes, 1.0)
    residuals = DenseResiduals(logits, labels, where, classes, temperature, largest, target, others)
    out: Any = (target, scalars.safe_log(others), mean, arrays.quotient(largest, temperature))
    if options.ignore_label is not None:
        ignored = labels == options.ignore_label
        certain = (0.0, -jnp.inf, 0.0, 0.0)
        out = tuple(x if x is None else jnp.where(ignored, value, x) for x, value in zip(out, certain, strict=True))
    return (*out, classes), residuals


class _OverOthers(NamedTuple):
    """x / others as  raised x / over,  with a power of two near 1 / others, and  over = others raised  in [1, 2).

    An exponential times `raised`, a constant, is at most 1, so that no derivative has a product that is lost below the
    smallest normal number, or a square of a number that is as small as others can be. By the bits of its exponent,
    which the compiler computes anew for each use where it would write a quotient out. Where others is 0, so is x.
    """

    raised: jax.Array
    x: jax.Array
    over: jax.Array


def _over_others(x: jax.Array, others: jax.Array) -> _OverOthers:
    info = jnp.finfo(others.dtype)
    bits = lax.bitcast_convert_type(lax.stop_gradient(others), jnp.int64 if info.bits == 64 else jnp.int32)
    mirrored = (2 * (info.maxexp - 1) - (bits >> info.nmant)) << info.nmant
    raised = lax.bitcast_convert_type(mirrored, others.dtype)
    nothing = others == 0
    return _OverOthers(raised, jnp.where(nothing, 0.0 * x, x), jnp.where(nothing, 1.0, others * raised))


def _with_label(
    logits: jax.Array, labels: jax.Array, at_label: jax.Array, terms: jax.Array, slope: _OverOthers, axes: Axes
) -> jax.Array:
    """The number of the row at the labelled class, and the term times its slope at the others.

    A quotient, unlike a product, is not computed anew for each of its uses. Rows along several axes have two in the
    products of a layer, and one of them transposed.
    """
    label = arrays.is_label(labels, logits, axes)
    if _are_few(logits, axes):
        return jnp.where(label, at_label, terms * slope.raised * (slope.x / slope.over))
    return jnp.where(label, at_label, terms * slope.raised * slope.x) / jnp.where(label, 1.0, slope.over)


def _are_few(logits: jax.Array, axes: Axes) -> bool:
    """Whether these are the logits of a plain layer, [N, V], with few classes."""
    size = axes.size(logits)
    return logits.ndim == 2 and axes.dims == (1,) and isinstance(size, int) and size <= FEW_CLASSES


def dense_backward(options: DenseOptions, residuals: DenseResiduals, cotangents: Any) -> Any:
    logits, labels, where, classes, temperature, largest, *_ = residuals
    axes = options.axes
    by_target, by_rest, by_mean, by_shift, _ = cotangents
    scaled = arrays.centred(capped(logits, where, options.logit_cap), largest, temperature)
    # Absent, the labelled class takes nothing; but in a row broken by inf or NaN it is NaN like the others.
    by_target = jnp.where(jnp.isneginf(residuals.target), 0.0 * by_rest, by_target)
    by_target = by_target + 0.0 * lax.stop_gradient(residuals.others)
    terms = jnp.exp(scaled)
    if options.one_pass:
        terms = _others(options, terms, logits, labels)
    gradient = _with_label(logits, labels, by_target, terms, _over_others(by_rest, residuals.others), axes)
    if classes is not None:
        gradient = gradient + jnp.where(jnp.isneginf(scaled), 0.0, by_mean / jnp.maximum(classes, 1.0))
    if options.ignore_label is not None:
        counted = labels != options.ignore_label
        gradient, by_shift = jnp.where(counted, gradient, 0.0), jnp.where(counted, by_shift, 0.0)
    dlogits, dtemperature = arrays.to_inputs(gradient, scaled, temperature, axes)
    if temperature is not None:
        dtemperature = dtemperature - by_shift * arrays.quotient_slope(largest, temperature)
    if options.logit_cap is not None:
        dlogits = dlogits * cap_slope(logits, where, options.logit_cap)
    if dlogits.dtype == logits.dtype and _are_few(logits, axes):
        dlogits = passes.one_by_one(dlogits, labels)
    elif not all(x is None for x in (classes, temperature, options.ignore_label, options.logit_cap)):
        dlogits = passes.once(dlogits, residuals.others)  # the quotient was not the last step
    return dlogits.astype(logits.dtype), None, None, None, dtemperature


def dense_tangent(options: DenseOptions, residuals: DenseResiduals, tangents: Any) -> Any:
    logits, labels, where, classes, temperature, largest, *_ = residuals
    axes = options.axes
    scaled = arrays.centred(capped(logits, where, options.logit_cap), largest, temperature)
    vector = tangents[0].astype(scaled.dtype)
    if options.logit_cap is not None:
        vector = vector * cap_slope(logits, where, options.logit_cap)
    vector = arrays.from_inputs(vector, tangents[4], scaled, temperature)
    label = arrays.is_label(labels, logits, axes)
    target = arrays.own_sum(jnp.where(label, vector, 0.0), axes)
    raised, one, over = _over_others(jnp.ones_like(residuals.others), residuals.others)
    rest = arrays.own_sum(jnp.where(label, 0.0, jnp.exp(scaled) * raised * (one / over) * vector), axes)
    total = None if classes is None else arrays.own_sum(vector, axes)
    target, rest, total = meshes.packed_sum(axes, target, rest, total)
    mean = None if classes is None else total / jnp.maximum(classes, 1.0)
    shift = jnp.zeros_like(rest)
    if temperature is not None:
        shift = -arrays.quotient_slope(largest, temperature) * tangents[4]
    out: Any = (target, rest, mean, shift)
    if options.ignore_label is not None:
        ignored = labels == options.ignore_label
        out = tuple(x if x is None else jnp.where(ignored, 0.0, x) for x in out)
    return (*out, None if classes is None else jnp.zeros_like(classes))


_dense = rules.on_rows(
    dense_forward,
    dense_backward,
    dense_tangent,
    value_options=lambda options: options._replace(one_pass=False),
    value_long_from=folds.LONG_WITHOUT_ONE,
    whole_backward=True,
)
