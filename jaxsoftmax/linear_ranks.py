"""The best classes of a streamed head, and how often the label is among them."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftmax._core import arrays, calls, checks, folds, meshes, row_rules, streams
from jaxsoftmax._core.meshes import Axes, AxisName
from jaxsoftmax.linear_rows import Statics, cap_of, check_statics, inputs_of, plan_of
from jaxsoftmax.losses import weighted_mean
from jaxsoftmax.statistics import capped

__all__ = ["TopClasses", "linear_accuracy", "linear_top_k"]


class TopClasses(NamedTuple):
    """The k most probable classes of each row, the best first; of equal ones the lower index.

    Attributes:
        indices: [..., k], int32.
        log_probs: [..., k] in nats, float32 or wider; -inf for absent classes.
    """

    indices: jax.Array
    log_probs: jax.Array


def linear_top_k(
    features: ArrayLike,
    kernel: ArrayLike,
    k: int,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    logit_cap: float | None = None,
    num_classes: int | None = None,
    block_size: int | None = None,
    precision: Any = None,
    axis_name: AxisName = None,
) -> TopClasses:
    """The k most probable classes of each row and their log-probabilities, from features and kernel.

    Args:
        features: h, [..., D], floating.
        kernel: W, [D, V], floating; a tied embedding is passed transposed.
        k: How many, 1 to V.
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
        TopClasses with fields [..., k].

    Raises:
        TypeError: Features or kernel are not floating, k not an integer, or the mask not boolean.
        ValueError: The kernel is not [D, V], a shape does not fit or an option is out of range.

    Numerics:
        Log-probabilities as in `log_softmax`.

    Gradient:
        None: the result is a constant to differentiation. For that of a known class see `linear_log_probs`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> features, kernel = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0, 3.0], [1.0, 0.0, -1.0]])
        >>> print(jaxsoftmax.linear_top_k(features, kernel, 2).indices)
        [[0 2]]
    """
    statics = Statics(logit_cap, None, num_classes, block_size, precision, axis_name)
    check_statics("linear_top_k", temperature, statics)
    checks.whole("linear_top_k", k=k)
    return _top_k_call(features, kernel, bias, where, temperature, k=k, statics=statics)


def linear_accuracy(
    features: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    k: int = 1,
    weights: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    ignore_label: int | None = None,
    num_classes: int | None = None,
    block_size: int | None = None,
    precision: Any = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """The share of rows whose label is among the k most probable classes, from features and kernel.

    Args:
        features: h, [..., D], floating.
        kernel: W, [D, V], floating; a tied embedding is passed transposed.
        labels: [...], integers in [0, V); another label is among no classes.
        k: How many classes, 1 to V.
        weights: [...], how much each row counts; 1 by default.
        bias: b, [V].
        where: Which classes are present: boolean, [V].
        ignore_label: The one label whose rows do not count.
        num_classes: How many of the columns are classes; those that follow pad the kernel, and are absent.
        block_size: Rows in a block, as in `linear_statistics`.
        precision: Of the matrix products, as `jax.lax.dot_general` takes it.
        axis_name: The mesh axis, or axes, over which the classes are split, inside of `jax.shard_map`: kernel, bias and
            where are each device's own columns, and labels count through all devices.

    Returns:
        A scalar in [0, 1], float32 or wider; 0 where no row counts.

    Raises:
        TypeError: Features or kernel are not floating, labels or k not integers, or the mask not boolean.
        ValueError: The kernel is not [D, V], a shape does not fit or an option is out of range.

    Gradient:
        None: the result is a constant to differentiation.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> features, kernel = jnp.array([[1.0], [-1.0]]), jnp.array([[1.0, 0.0, -1.0]])
        >>> print(jaxsoftmax.linear_accuracy(features, kernel, jnp.array([0, 1])))
        0.5
    """
    statics = Statics(None, ignore_label, num_classes, block_size, precision, axis_name)
    check_statics("linear_accuracy", None, statics)
    checks.whole("linear_accuracy", k=k)
    return _accuracy_call(features, kernel, labels, weights, bias, where, k=k, statics=statics)


@calls.compiled("k", "statics")
def _top_k_call(
    features: Any, kernel: Any, bias: Any, where: Any, temperature: Any, *, k: int, statics: Statics
) -> TopClasses:
    return _top_k("linear_top_k", features, kernel, bias, where, temperature, k, statics)


def _top_k(
    function: str, features: Any, kernel: Any, bias: Any, where: Any, temperature: Any, k: int, statics: Statics
) -> TopClasses:
    inputs, batch = inputs_of(function, features, kernel, bias, where, temperature, statics)
    inputs = jax.tree.map(lax.stop_gradient, inputs)
    axes, own = statics.axes, inputs.sides[0].kernel.shape[1]
    classes = statics.num_classes or axes.classes(own)
    if not 1 <= k <= classes:
        checks.fail(ValueError, function, f"k must lie in [1, {classes}], the number of classes", k=k)

    def function_of_block(logits: Any, block: Any, _: Any) -> Any:
        values = capped(logits[0], None, cap_of(statics))
        class_axes, shown = row_rules.seen(axes, values, long_from=folds.LONG_WITHOUT_ONE)
        scale = shown(block.rows[0])
        numbers = *arrays.excess(shown(values), class_axes, scale), scale
        largest, others, scale = jax.tree.map(lambda x: folds.in_one_row(x, class_axes), numbers)
        best, indices = _best(values, k, axes)
        return indices, arrays.centred(best, largest, scale) - jnp.log1p(others)

    indices, log_probs = streams.map_blocks(plan_of(None, None, inputs, statics), inputs, function_of_block)
    return TopClasses(batch.back(indices), batch.back(log_probs))


def _best(values: jax.Array, k: int, axes: Axes) -> tuple[jax.Array, jax.Array]:
    """The k largest values of each row, [B, k], and where they stand; of equal ones the first.

    Over a mesh each device offers its own best. A sum of offers, 0 but for the device's own place, gives all of them to
    all, in the order of the classes.
    """
    rows, size = values.shape
    offers, indices = _best_of_groups(values, min(k, size))
    if not axes.mesh:
        return offers, indices
    devices, place = axes.classes(1), lax.axis_index(axes.mesh)

    def gathered(x: jax.Array) -> jax.Array:
        mine = jnp.arange(devices)[:, None, None] == place
        everyone = meshes.total_of(jnp.where(mine, x[None], jnp.zeros((), x.dtype)), axes)
        return jnp.swapaxes(everyone, 0, 1).reshape(rows, devices * x.shape[1])

    best, places = lax.top_k(gathered(offers), k)
    return best, jnp.take_along_axis(gathered(indices + place * size), places, axis=1)


def _best_of_groups(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The same on one device, and where JAX divides the work: then of each device's own classes first."""
    rows, size = values.shape
    groups = math.gcd(size, meshes.devices_beside(values))
    if groups == 1:
        best, indices = lax.top_k(values, k)
        return best, indices.astype(jnp.int32)
    own = size // groups
    offers, indices = lax.top_k(values.reshape(rows, groups, own), min(k, own))
    indices = indices.astype(jnp.int32) + own * jnp.arange(groups, dtype=jnp.int32)[None, :, None]
    offers, indices = (meshes.whole_along(x.reshape(rows, groups * min(k, own)), 1) for x in (offers, indices))
    best, places = lax.top_k(offers, k)
    chosen = lax.broadcasted_iota(places.dtype, (rows, k, offers.shape[1]), 2) == places[:, :, None]
    return best, jnp.sum(jnp.where(chosen, indices[:, None], 0), axis=2)


@calls.compiled("k", "statics")
def _accuracy_call(
    features: Any, kernel: Any, labels: Any, weights: Any, bias: Any, where: Any, *, k: int, statics: Statics
) -> jax.Array:
    name = "linear_accuracy"
    features, labels = checks.row_labels(name, labels, features)
    best = _top_k(name, features, kernel, bias, where, None, k, statics)
    checks.same_on_devices(name, statics.axes.mesh, labels=labels)
    # Absent classes and those of a row broken by NaN are no hits.
    present = best.log_probs > -jnp.inf
    hits = jnp.any((best.indices.astype(labels.dtype) == labels[..., None]) & present, axis=-1)
    given: Any = checks.row_numbers(name, "weights", weights, features, scalar=False)
    checks.same_on_devices(name, statics.axes.mesh, weights=given)
    rows = jnp.ones(labels.shape, arrays.compute_dtype(features.dtype)) if weights is None else given
    if statics.ignore_label is not None:
        rows = jnp.where(labels == statics.ignore_label, 0.0, rows)
    return lax.stop_gradient(weighted_mean(hits, rows))
