"""Rows of logits: dtype policy, absent classes, temperature, the row maximum and the sums that start from it.

Everything here keeps reduced axes with size 1, so that per-row numbers broadcast against the logits whatever the class
axis is, and nothing is ever transposed.

XLA:CPU runs a chain of max, subtract, divide, exp, min, multiply and sum as one kernel that writes no array of the size
of the logits. A comparison, a select or a clamp (a minimum of a maximum, both with constants) in the chain breaks it,
and so does a value (the row maximum, a constant, an exponential) that two kernels share. Hence arithmetic in place of
masks, constants that differ between the forward and the backward pass, and what `passes` has.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsoftmax._core import folds, meshes, passes
from jaxsoftmax._core.meshes import Axes

__all__ = [
    "above_bottom",
    "absence",
    "centred",
    "common_dtype",
    "compute_dtype",
    "divided",
    "excess",
    "finite",
    "from_inputs",
    "held",
    "inverse_temperature",
    "is_class",
    "is_label",
    "mean_under",
    "near_top",
    "no_class",
    "not_label",
    "own_pick",
    "own_sum",
    "part_of",
    "positive",
    "present",
    "quotient",
    "quotient_slope",
    "reciprocal",
    "row_max",
    "row_sum",
    "row_sums",
    "sum_of_parts",
    "sum_to",
    "sums_at_once",
    "to_inputs",
    "where_mass",
]


def compute_dtype(dtype: Any) -> Any:
    """float32 for everything narrower, the dtype itself otherwise."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def common_dtype(a: Any, b: Any) -> Any:
    """The wider of two dtypes, where an integer counts for nothing."""
    return a if a == jnp.float64 or not jnp.issubdtype(b, jnp.floating) else compute_dtype(b)


def row_sum(x: jax.Array, axes: Axes) -> jax.Array:
    """Sum over the class axes, kept with size 1."""
    return meshes.total_of(own_sum(x, axes), axes)


def own_sum(x: jax.Array, axes: Axes) -> jax.Array:
    """Sum over the classes of this device alone, kept with size 1."""
    return folds.sum_along(x, axes)


# Up to here two sums at once are faster; measured at 3, 10, 16, 32 and 64 classes on a CPU.
SHORT_ROW = 16


def sums_at_once(x: jax.Array, axes: Axes) -> bool:
    """Whether two sums over such rows are best done as one reduction.

    Of a sum and all that leads to it and follows from it XLA:CPU makes one kernel, which for short rows takes several
    times as long as loops; two sums in one reduction are beyond it, and become loops.
    """
    classes = axes.size(x)
    short = len(axes.dims) == 1 and isinstance(classes, int) and classes <= SHORT_ROW
    return short and jax.default_backend() == "cpu" and meshes.explicit_sharding(x) is None


def row_sums(x: jax.Array, y: jax.Array, axes: Axes) -> tuple[jax.Array, jax.Array]:
    """`row_sum` of two arrays of one shape, in one message where devices share a row."""
    own = _sums_at_once(axes, x, y) if sums_at_once(x, axes) else (own_sum(x, axes), own_sum(y, axes))
    return meshes.packed_sum(axes, *own)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sums_at_once(axes: Axes, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Inside of a scan JAX differentiates this twice without the rule below. Its own rule for a reduction refuses
    # tangents that are absent; behind the barrier none is.
    x, y = lax.optimization_barrier((x, y))
    zero = jnp.zeros((), x.dtype)
    sums = lax.reduce((x, y), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), axes.dims)
    return jnp.expand_dims(sums[0], axes.dims), jnp.expand_dims(sums[1], axes.dims)


@_sums_at_once.defjvp
def _sums_at_once_tangent(axes: Axes, primals: Any, tangents: Any) -> Any:
    return _sums_at_once(axes, *primals), tuple(own_sum(t, axes) for t in tangents)


# Seen with 0.10, and no longer with 0.12.
LEAVES_OUT_ROUNDING = jax.__version_info__ < (0, 12)


def present(logits: jax.Array, where: jax.Array | None) -> jax.Array:
    """The logits with absent classes at -inf; whatever stood there, NaN included, is gone.

    Those of half precision are made opaque. In a program that computes them itself the compiler may leave out their
    rounding in one use and not in another; between a maximum and a sum that is more than exp can take. Of many rows on
    a CPU jax before 0.12 leaves it out even so, wherever logits are widened in the one kernel.
    """
    if logits.dtype != compute_dtype(logits.dtype):
        logits = passes.opaque(logits)
    if where is None:
        return logits
    if not np.isinf(float(np.asarray(np.inf, logits.dtype))):  # some of eight bits and of four have no infinity
        logits = logits.astype(compute_dtype(logits.dtype))
    where = meshes.split_like(where.reshape((1,) * (logits.ndim - where.ndim) + where.shape), logits)
    return jnp.where(where, logits, jnp.asarray(-jnp.inf, logits.dtype))


def row_max(logits: jax.Array, axes: Axes, *, constant: bool = True, in_one_kernel: bool = False) -> jax.Array:
    """The largest logit of each row; the lowest finite number where no class is present.

    In the logits' own dtype, where it is exact and fast; but in one kernel with exponentials, which may be of logits
    whose rounding has been left out (see `present`), of widened ones. To differentiation it is a constant, always so on
    a mesh.
    """
    lowest, wide = float(jnp.finfo(logits.dtype).min), compute_dtype(logits.dtype)
    if in_one_kernel and LEAVES_OUT_ROUNDING and folds.are_many(logits, axes):
        logits = logits.astype(wide)
    if constant or axes.mesh:
        logits = lax.stop_gradient(logits)
    size = axes.size(logits)
    several = isinstance(size, int) and (size > SHORT_ROW or (size > 1 and meshes.alone()))
    if constant and several and meshes.explicit_sharding(logits) is None:
        # From the lowest number on: a maximum after the reduction keeps XLA:CPU from going on to the exponentials. Of a
        # single class, which can be what a device has, XLA forgets where the reduction started.
        largest = jnp.expand_dims(lax.reduce(logits, np.asarray(lowest, logits.dtype), lax.max, axes.dims), axes.dims)
    else:
        largest = jnp.max(logits, axis=axes.dims, keepdims=True, initial=lowest)
    return meshes.largest_of(largest.astype(wide), axes)


def divided(x: jax.Array, temperature: jax.Array | None) -> jax.Array:
    """x / T for differences x <= 0 from the row maximum, with T = 0 as the limit.

    T is held above the smallest normal number, and where that is needed the quotient is multiplied by 2**126: then 0
    stays 0 and every other difference becomes -inf, which is the limit, without a select. A negative T makes NaN.

    A custom_jvp does not outlive a `scan`: differentiated twice, JAX takes the plain derivative. That comes from a term
    that is 0, in which no number is so large that it would not be; by T below 2**-62 it is 0.
    """
    return x if temperature is None else _divided(x, temperature)


@jax.custom_jvp
def _divided(x: jax.Array, temperature: jax.Array) -> jax.Array:
    tiny = float(jnp.finfo(temperature.dtype).tiny)
    inverse = jnp.where(temperature < 2.0**-62, 0.0, 1.0 / jnp.maximum(temperature, 2.0**-62))
    product = jnp.maximum(x, -(2.0**64)) * inverse
    # A constant would be folded with the factor, and overflow.
    temperature = passes.opaque(lax.stop_gradient(temperature))
    huge = temperature > 2.0**100  # the compiler multiplies by 1 / T, which must not vanish: -inf times 0 is NaN
    bounded = jnp.clip(jnp.where(huge, temperature * 2.0**-24, temperature), tiny, 2.0**104)
    factor = jnp.where(temperature <= tiny, 2.0**126, jnp.where(huge, 2.0**-24, 1.0))
    quotient = lax.stop_gradient(x) / bounded * jnp.where(temperature >= 0, factor, jnp.nan)
    return quotient + (product - lax.stop_gradient(product))


@_divided.defjvp
def _divided_tangent(primals: Any, tangents: Any) -> Any:
    scaled = _divided(*primals)
    return scaled, from_inputs(tangents[0], tangents[1], scaled, primals[1])


def inverse_temperature(temperature: jax.Array) -> jax.Array:
    """1 / T, and 0 at T = 0, where the gradient is defined to be 0."""
    tiny = float(jnp.finfo(temperature.dtype).tiny)
    return jnp.where(temperature <= tiny, 0.0, 1.0 / jnp.where(temperature <= tiny, 1.0, temperature))


def centred(logits: jax.Array, shift: jax.Array, temperature: jax.Array | None) -> jax.Array:
    """(z - shift) / T in the compute dtype: 0 for the largest class, -inf for an absent one.

    In this order: x / T first can overflow, and under jit the compiler fuses it into a NaN.
    """
    return divided(logits.astype(shift.dtype) - shift, temperature)


def to_inputs(
    gradient: jax.Array, scaled: jax.Array, temperature: jax.Array | None, axes: Axes
) -> tuple[jax.Array, jax.Array | None]:
    """From the gradient with respect to d = (z - shift) / T to those with respect to z and T.

    dz = dd / T  and  dT = -(1 / T) sum_j dd_j d_j,  where an absent class (dd = 0, d = -inf) adds nothing.
    """
    if temperature is None:
        return gradient, None
    inverse = inverse_temperature(temperature)
    moments = jnp.where(gradient == 0, 0.0, gradient * jnp.where(gradient == 0, 0.0, scaled))
    moments = _bounded(moments, 2.0**-17)  # infinities of either sign would sum to NaN
    return gradient * inverse, jnp.where(inverse == 0, 0.0, _bounded(-row_sum(moments, axes) * inverse))


def _bounded(slope: jax.Array, share: float = 2.0**-24) -> jax.Array:
    """Slopes by T, which grow as 1 / T**2, held so far from overflow that the sum of those of 2**24 rows is no NaN."""
    limit = float(jnp.finfo(slope.dtype).max) * share
    return jnp.clip(slope, -limit, limit)


def from_inputs(
    logits_tangent: jax.Array, temperature_tangent: jax.Array | None, scaled: jax.Array, temperature: jax.Array | None
) -> jax.Array:
    """The tangent of d = (z - shift) / T:  (dz - d dT) / T,  and 0 for an absent class."""
    tangent = logits_tangent.astype(scaled.dtype)
    absent = jnp.isneginf(scaled)
    if temperature is not None and temperature_tangent is not None:
        inverse = inverse_temperature(temperature)
        slope = _bounded(jnp.where(absent | (inverse == 0), 0.0, scaled) * inverse)
        tangent = inverse * tangent - slope * temperature_tangent
    return jnp.where(absent, 0.0, tangent)


def quotient(shift: jax.Array, temperature: jax.Array | None) -> jax.Array:
    """m / T for the absolute value of a row's logits; at T = 0 the limit, -inf, 0 or inf by the sign of m."""
    if temperature is None:
        return shift
    zero = temperature <= float(jnp.finfo(temperature.dtype).tiny)
    temperature = jnp.where(no_class(shift), lax.stop_gradient(temperature), temperature)
    limit = jnp.where(shift == 0, 0.0, jnp.sign(shift) * jnp.inf)
    return jnp.where(zero, limit, shift / jnp.where(zero, 1.0, temperature))


def quotient_slope(shift: jax.Array, temperature: jax.Array) -> jax.Array:
    """-d(m / T)/dT = m / T^2, and 0 at T = 0 and in a row without any class."""
    inverse = inverse_temperature(temperature)
    nothing = (inverse == 0) | no_class(shift)
    return jnp.where(nothing, 0.0, _bounded(jnp.where(nothing, 0.0, shift) * inverse * inverse))


def no_class(shift: jax.Array) -> jax.Array:
    """Whether a row has no class, by its largest logit."""
    return shift <= float(jnp.finfo(shift.dtype).min)


def sum_to(x: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Sum over the axes along which an argument of this shape was broadcast."""
    axes = tuple(a for a, (size, own) in enumerate(zip(x.shape, shape, strict=True)) if own == 1 and size != 1)
    return jnp.sum(x, axis=axes, keepdims=True) if axes else x


def above_bottom(scaled: jax.Array) -> jax.Array:
    """1 for a present class, 0 for an absent one (d = -inf), in arithmetic, and no clamp."""
    return jnp.maximum(jnp.minimum(lax.stop_gradient(scaled) + float(jnp.finfo(scaled.dtype).max), 0.0) + 1.0, 0.0)


def positive(x: jax.Array) -> jax.Array:
    """1 where x > 0 and 0 elsewhere, in arithmetic, and no clamp; a constant to differentiation."""
    big = 2.0 ** (jnp.finfo(x.dtype).maxexp - 1)  # times the smallest normal number it is above 1
    return jnp.maximum(1.0 - jnp.maximum(1.0 - lax.stop_gradient(x) * big, 0.0), 0.0)


def finite(scaled: jax.Array) -> jax.Array:
    """d, and the lowest finite number for an absent class, which 0 can be multiplied by."""
    return jnp.maximum(scaled, float(jnp.finfo(scaled.dtype).min))


def held(scaled: jax.Array) -> jax.Array:
    """d, but no further down than where exp(d) is 0 in every precision, for products with it.

    Unlike the lowest finite number it overflows in no derivative of theirs.
    """
    return jnp.maximum(scaled, -4096.0)


def absence(scaled: jax.Array) -> jax.Array:
    """inf for an absent class (d = -inf) and 0 for every other, in arithmetic; a constant to differentiation.

    With  x = lowest - d,  x + |x| is inf for an absent class and 0 for the others.
    """
    below = float(jnp.finfo(scaled.dtype).min) - lax.stop_gradient(scaled)
    return below + jnp.abs(below)


def where_mass(mass: jax.Array, absence: jax.Array) -> jax.Array:
    """inf for a class that is absent and has mass, and 0 for every other class; a constant to differentiation."""
    big = 2.0 ** (jnp.finfo(absence.dtype).maxexp - 1)
    return jnp.minimum(jnp.abs(lax.stop_gradient(mass)) * big, absence) * big


def near_top(scaled: jax.Array) -> jax.Array:
    """1 for the largest class, falling to 0 for those that are 1/8 or more below, from d = (z - max z) / T.

    A constant to differentiation: it is only ever added here and taken off there.
    """
    return jnp.maximum(1.0 + 8.0 * lax.stop_gradient(scaled), 0.0)


def reciprocal(total: jax.Array) -> jax.Array:
    """1 / S for S >= 1, and finite with slope 0 for the S = 0 of a row without any class, without a select."""
    return 1.0 / jnp.maximum(total, 0.25)


# The sum of the other exponentials.
#
# With d_j = (z_j - max z) / T and e_j = exp(d_j), S = sum_j e_j is at least 1, and log S loses the digits of the others
# as S nears 1. What is kept is the excess S - 1. Where one class alone has e > 1/2, it is  A = sum_j min(e_j, 1 - e_j):
# the largest class adds exactly 0, and the others, to the last digit, themselves. Where another has e > 1/2 too, S is
# more than 3/2, and S - 1 loses nothing; A is less. So the excess is  max(A, min(S - 1, 8 (S - 1.4))),  whose second
# entry is S - 1 from S = 1.46 on, and below A, for which it has no say, from S = 1.4 down. Where the compiler computes
# the logits anew for one of the sums and rounds them differently, it is as exact as the plain S - 1, and no worse.
#
# Of a folded row the largest class stands in one part, and only there is it left out: the sums of the parts, all
# positive, add up to S - 1 when the excess of that part takes the place of its sum.
#
# What a loss does with S and d does not depend on max z, whose derivative could as well be taken for 0. But then that
# of S - 1 would be  sum_j e_j dz_j  with the largest class in it, and what a second derivative makes of it would lose
# the others against that one; with the derivative of max z it is  sum_j e_j (dz_j - dz_top).


def excess(logits: jax.Array, axes: Axes, temperature: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """The row maximum, and  sum_j exp((z_j - max z) / T) - 1.

    The latter is exact to the last digit however small, and 0 in a row without any class.
    """
    if len(axes.dims) == 2 and not axes.mesh and folds.is_folded(logits, axes, long_from=folds.LONG_SUMMED_TWICE):
        return _excess_of_parts(logits, axes, temperature)
    shift = row_max(logits, axes, constant=False, in_one_kernel=True)
    terms = jnp.exp(centred(logits, shift, temperature))
    constants = lax.stop_gradient(terms)
    # min(e, 1 - e). On a CPU with 1 as a number of the row: what two kernels share is written out, and backward passes
    # have the constant. Elsewhere such a number takes a kernel of its own.
    if jax.default_backend() == "cpu":
        one = 1.0 + 0.0 * lax.stop_gradient(shift)
        without_top, total = row_sums(jnp.minimum(constants, one - constants), terms, axes)
    else:
        less, total = row_sums(jnp.maximum(-constants, constants - 1.0), terms, axes)
        without_top = -less
    constant = lax.stop_gradient(total)
    # The derivatives are those of S, whichever sum has the digits.
    return shift, _without_largest(without_top, constant) + (total - constant)


def _without_largest(without_top: jax.Array, total: jax.Array) -> jax.Array:
    """S - 1 from A and S."""
    return jnp.maximum(without_top, jnp.minimum(total - 1.0, 8.0 * total - 11.2))


def _excess_of_parts(logits: jax.Array, axes: Axes, temperature: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """`excess` of a row that is folded, by the excess of the part that has the largest class."""
    outer, inner = axes.folded
    tops = passes.opaque(row_max(logits, inner, constant=False))
    shift = row_max(tops, outer, constant=False)
    sums = passes.opaque(own_sum(jnp.exp(centred(logits, shift, temperature)), inner))
    total, parts = own_sum(sums, outer), lax.stop_gradient(sums)

    first = jnp.argmax(tops, axis=outer.one, keepdims=True)
    terms = jnp.exp(lax.stop_gradient(centred(part_of(logits, first, axes), passes.opaque(shift), temperature)))
    without_top = _without_largest(own_sum(jnp.minimum(terms, 1.0 - terms), inner), own_pick(parts, first, outer))
    value = sum_of_parts(parts, first, without_top, axes)
    return passes.opaque(shift), value + (total - lax.stop_gradient(total))


def part_of(logits: jax.Array, part: jax.Array, axes: Axes) -> jax.Array:
    """One part of each folded row, [..., 1, K], by its number, which must be in range."""
    outer, _ = axes.folded
    return jnp.take_along_axis(logits, part, axis=outer.one, mode="promise_in_bounds")


def sum_of_parts(sums: jax.Array, part: jax.Array, other: jax.Array, axes: Axes) -> jax.Array:
    """The sum of the parts' sums, [..., G, 1], with another number in the place of one of them."""
    outer, _ = axes.folded
    return own_sum(jnp.where(is_label(part, sums, outer), other, sums), outer)


def mean_under(terms: jax.Array, values: jax.Array, total: jax.Array, axes: Axes) -> jax.Array:
    """sum p x, with p the terms over their total, which two sums at once find anew."""
    products = terms * values
    if sums_at_once(products, axes):
        sums, total = row_sums(products, terms, axes)
    else:
        sums = row_sum(products, axes)
    return sums * reciprocal(total)


def is_label(labels: jax.Array, logits: jax.Array, axes: Axes) -> jax.Array:
    """True at each row's labelled class, by comparison with an iota; no gather, so nothing moves on a mesh."""
    labels, split = axes.local(labels, axes.size(logits)), meshes.explicit_sharding(logits)
    *outer, inner = axes.dims
    numbers = lax.broadcasted_iota(labels.dtype, logits.shape, inner, out_sharding=split)
    for axis in outer:  # of a folded row
        numbers = numbers + logits.shape[inner] * lax.broadcasted_iota(labels.dtype, logits.shape, axis)
    return numbers == labels


def not_label(labels: jax.Array, logits: jax.Array, axes: Axes, dtype: Any) -> jax.Array:
    """0 at each row's labelled class and 1 elsewhere, in arithmetic that stays inside of a fused sum.

    The class numbers are made opaque to the compiler, which otherwise writes their broadcast out. Whole numbers of
    float32 are exact to 2**24 classes; beyond, and for a symbolic number, the comparison is used.
    """
    size = axes.size(logits)
    if not (isinstance(size, int) and axes.classes(size) <= 2**24):
        return jnp.where(is_label(labels, logits, axes), 0.0, 1.0).astype(dtype)
    numbers = passes.opaque(jnp.arange(size, dtype=dtype))
    numbers = numbers.reshape([size if a in axes.dims else 1 for a, size in enumerate(logits.shape)])
    numbers = meshes.split_like(numbers, logits)
    return jnp.minimum(jnp.abs(numbers - axes.local(labels, size).astype(dtype)), 1.0)


def own_pick(values: jax.Array, labels: jax.Array, axes: Axes) -> jax.Array:
    """values[..., label], kept with size 1; 0 where another device has that class.

    Labels out of the range of all devices give some number. A gather, which reads one number a row and stays local
    under automatic partitioning; on an explicit mesh, where JAX refuses a gather along a split axis, a comparison with
    an iota.
    """
    size = axes.size(values)
    own = axes.local(labels, size)
    if any(entry is not None for x in (values, labels) for entry in jax.typeof(x).sharding.spec):
        chosen = is_label(labels, jnp.broadcast_arrays(values, labels)[0], axes)
        return own_sum(jnp.where(chosen, values, jnp.zeros((), values.dtype)), axes)
    at = jnp.clip(own, 0, size - 1)
    row, places = folds.in_one_row(values, axes), folds.in_one_row(at, axes)
    picked = jnp.take_along_axis(row, places, axis=axes.one, mode="promise_in_bounds").reshape(at.shape)
    return jnp.where((own >= 0) & (own < size), picked, jnp.zeros((), values.dtype)) if axes.mesh else picked


def is_class(labels: jax.Array, size: int, axes: Axes) -> jax.Array:
    """Whether a label names a class of any device, where each has so many."""
    return (labels >= 0) & (labels < axes.classes(size))
