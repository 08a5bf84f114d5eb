"""What callers give: labels, probabilities and weights, their values checked wherever they can be seen.

Shapes and dtypes are static, so their errors come from `checks`, as everywhere. The values of an array are seen only
while it is concrete. Then a label out of range or a probability that is none is a ValueError; of a traced array, whose
values cannot be read, the same fault makes the result NaN. Rows of weight 0 are exempt from both: that is how a batch
is padded to a fixed shape.
"""

import math
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxsoftmax._core import arrays, calls, checks, meshes
from jaxsoftmax.normalizers import softmax

__all__ = [
    "Rows",
    "check_labels",
    "check_probs",
    "events",
    "poisoned",
    "probabilities",
    "row_weights",
    "rows_of",
    "strength",
    "sums_by",
    "visible",
]

Tree = TypeVar("Tree")


class Rows(NamedTuple):
    """N rows in canonical form: exactly one of logits and probs, and nothing in a row of weight 0 that spoils others.

    Attributes:
        logits: [N, V] in their own dtype, or None.
        probs: [N, V], float32 or wider, or None.
        labels: [N], int32 or int64.
        weights: [N], float32 or wider; NaN where a traced weight is negative.
        broken: A scalar: whether any row that counts has a label, a weight, logits or probabilities out of range.
    """

    logits: jax.Array | None
    probs: jax.Array | None
    labels: jax.Array
    weights: jax.Array
    broken: jax.Array


def visible(*values: Any) -> bool:
    """Whether the values of all of these arrays can be read now, by this process; None counts as read."""
    return not any(
        isinstance(value, jax.core.Tracer) or (isinstance(value, jax.Array) and not value.is_fully_addressable)
        for value in values
    )


def check_labels(function: str, labels: ArrayLike, num_classes: int, weights: ArrayLike | None = None) -> jax.Array:
    """True for the rows that count and whose label is outside of [0, V): none, if the values can be seen.

    Args:
        function: In whose name to complain, such as "calibration.brier_score".
        labels: [...], integers.
        num_classes: V.
        weights: [...]; rows of weight 0 do not count.

    Returns:
        [...], boolean, to be handed to `poisoned`.

    Raises:
        ValueError: A label is out of range, and can be seen.
    """

    def broken() -> jax.Array:
        signed = checks.signed(jnp.asarray(labels))
        return _counting((signed < 0) | (signed >= num_classes), weights)

    if visible(labels, weights):
        row = _first(broken)
        if row is not None:
            label = int(np.asarray(labels)[row])
            checks.fail(ValueError, function, f"labels must lie in [0, {num_classes})", labels=label, row=_plain(row))
        return jnp.zeros(jnp.shape(labels), jnp.bool_)
    return broken()


def check_probs(function: str, probs: ArrayLike, weights: ArrayLike | None = None) -> jax.Array:
    """True for the rows that count and are no distribution: none, if the values can be seen.

    Each entry lies in [0, 1] and each row sums to 1, to 1e-3, or to 2e-2 in half precision.

    Args:
        function: In whose name to complain, such as "calibration.brier_score".
        probs: [..., V], floating.
        weights: [...]; rows of weight 0 do not count.

    Returns:
        [...], boolean, to be handed to `poisoned`.

    Raises:
        ValueError: A row is no distribution, and can be seen.
    """

    def outside() -> jax.Array:
        return _counting(_outside(probs), weights)

    def unequal() -> jax.Array:
        return _counting(_unequal(probs), weights)

    if visible(probs, weights):
        hint = "; for unnormalized scores pass logits="
        row = _first(outside)
        if row is not None:
            values = np.asarray(probs)[row].astype(np.float64)
            worst = float(values[np.argmax(np.where(np.isnan(values), np.inf, np.abs(values - 0.5)))])
            checks.fail(ValueError, function, f"probs must lie in [0, 1]{hint}", probs=worst, row=_plain(row))
        row = _first(unequal)
        if row is not None:
            total = float(np.asarray(probs)[row].astype(np.float64).sum())
            rule = f"probs must sum to 1 along the last axis{hint}"
            checks.fail(ValueError, function, rule, sum=total, row=_plain(row))
        return jnp.zeros(jnp.shape(probs)[:-1], jnp.bool_)
    return _counting(_no_probs(probs), weights)


def row_weights(function: str, weights: ArrayLike | None, labels: jax.Array, dtype: Any) -> jax.Array:
    """One weight of 0 or more per label, in this dtype; all 1 for None.

    Args:
        function: In whose name to complain.
        weights: [...], floating, integer or boolean.
        labels: [...], which give the shape.
        dtype: Of the result.

    Returns:
        [...]; NaN where a weight that is traced is negative or NaN, which makes every mean over the rows NaN.

    Raises:
        TypeError: The weights are not numbers.
        ValueError: Their shape is another, or a weight that can be seen is negative, infinite or NaN.
    """
    if weights is None:
        return jnp.ones(labels.shape, dtype)
    converted = checks.numeric(function, weights=weights)
    if converted.shape != labels.shape:
        rule = "weights must have one number per row"
        checks.fail(ValueError, function, rule, weights=converted, labels=labels)
    wide = converted.astype(dtype)
    if visible(weights):
        row = _first(lambda: ~(jnp.isfinite(seen := jnp.asarray(weights).astype(dtype)) & (seen >= 0)))
        if row is not None:
            rule = "weights must be finite and 0 or more"
            checks.fail(ValueError, function, rule, weights=float(np.asarray(weights)[row]), row=_plain(row))
    return jnp.where(wide >= 0, wide, jnp.nan)


def strength(function: str, dtype: Any, **penalty: ArrayLike) -> jax.Array:
    """The one penalty, a finite scalar of 0 or more.

    Args:
        function: In whose name to complain.
        dtype: Of the result.
        **penalty: By its name, a number or an array without axes.

    Returns:
        A scalar; NaN where it is traced and out of range.

    Raises:
        TypeError: It is no number.
        ValueError: It has axes, or it can be seen and is negative, infinite or NaN.
    """
    ((name, value),) = penalty.items()
    converted = checks.scalar(function, dtype, **penalty)
    if visible(value) and not 0 <= (seen := float(np.asarray(value))) < math.inf:
        checks.fail(ValueError, function, f"{name} must be finite and 0 or more", **{name: seen})
    return jnp.where((converted >= 0) & (converted < jnp.inf), converted, jnp.nan)


def rows_of(
    function: str,
    labels: ArrayLike,
    logits: ArrayLike | None,
    probs: ArrayLike | None,
    weights: ArrayLike | None,
) -> Rows:
    """Every check, then the rows in canonical form; to be called before jit, which hides the values.

    Args:
        function: In whose name to complain.
        labels: [...], integers in [0, V).
        logits: [..., V], or None.
        probs: [..., V], or None.
        weights: [...], or None.

    Returns:
        Rows.

    Raises:
        TypeError: Neither or both of logits and probs are given, or a dtype is wrong.
        ValueError: A shape does not fit, or a value that can be seen is out of range.
    """
    owner, given = checks.exactly_one(function, logits=logits, probs=probs)
    scores = checks.floating(function, **{owner: given})
    axis = checks.class_axis(function, -1, None, **{owner: scores})
    classes = scores.shape[axis.one]
    columns = checks.labels(function, labels, scores, axis, owner)
    rows = jnp.squeeze(columns, axis.one)
    counts = row_weights(function, weights, rows, arrays.compute_dtype(scores.dtype))
    # of the arrays as they were given: under jit, whatever is computed of a visible array is traced
    broken = check_labels(function, labels, classes, weights)
    if probs is not None:
        broken |= check_probs(function, probs, weights)
    return _canonical(scores, rows, counts, broken, of_logits=probs is None, weighted=weights is not None)


@calls.compiled("of_logits", "weighted")
def _canonical(
    scores: jax.Array, labels: jax.Array, weights: jax.Array, broken: jax.Array, *, of_logits: bool, weighted: bool
) -> Rows:
    spoiling = _not_numbers(scores) if of_logits else _no_probs(scores)
    if of_logits:
        broken |= spoiling & (weights != 0)
    broken = jnp.any(broken | jnp.isnan(weights))
    classes = scores.shape[-1]
    if weighted:
        # A row that could spoil others is replaced, by equal logits or a certain class. That is asked of the row, and
        # not of its weight: under vmap over weights alone nothing of the size of the logits is batched.
        first = lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1) == 0
        filler = jnp.zeros_like(scores) if of_logits else first.astype(scores.dtype)
        scores = jnp.where(spoiling[..., None], filler, scores)
        labels = jnp.where((labels < 0) | (labels >= classes), jnp.zeros((), labels.dtype), labels)
    size = math.prod(labels.shape)
    scores, labels, weights = scores.reshape(size, classes), labels.reshape(size), weights.reshape(size)
    if of_logits:
        return Rows(scores, None, labels, weights, broken)
    return Rows(None, _widened(scores), labels, weights, broken)


def probabilities(rows: Rows) -> jax.Array:
    """[N, V], float32 or wider: as given, or the softmax of the logits, which is never rounded to half precision."""
    return softmax(_widened(rows.logits)) if rows.probs is None else rows.probs


def events(rows: Rows, classwise: bool) -> tuple[jax.Array, jax.Array]:
    """The probabilities that were said, and 1 where the event came true: [1, N] of the top label, [V, N] of each class.

    Neither is split over an explicit mesh: what follows puts the rows in order, or in bins.
    The top label is the one of the largest logit, or probability, the first of equal ones. A row without any class
    present has confidence 0 and is wrong.
    """
    probs = probabilities(rows)
    if classwise:
        happened = jax.nn.one_hot(rows.labels, probs.shape[1], dtype=probs.dtype)
        return meshes.whole((probs.T, happened.T))
    scores = rows.logits if rows.logits is not None else probs
    confidence = jnp.max(probs, axis=1)
    top = jnp.argmax(scores, axis=1).astype(rows.labels.dtype)
    right = (top == rows.labels) & (confidence != 0)
    return meshes.whole((confidence[None], right.astype(probs.dtype)[None]))


def sums_by(index: jax.Array, values: jax.Array, size: int) -> jax.Array:
    """[size], the sum of the values [N] of each index [N].

    By runs of rows, whose sums are then added: one by one in float32, a million times 0.9 is 0.892 million. There are
    so many runs that a sum has few terms in both steps, and that all of them together take no more room than the rows.
    """
    index, values = meshes.whole((index, values))
    rows = index.shape[0]
    runs = max(1, min(math.isqrt(rows), rows // size))
    run = jnp.arange(rows, dtype=jnp.int32) % runs
    return jnp.sum(jnp.zeros((runs, size), values.dtype).at[run, index].add(values), axis=0)


def poisoned(tree: Tree, *broken: jax.Array) -> Tree:
    """The tree with every floating array NaN, value and gradient, if any entry of `broken` is True.

    Args:
        tree: Arrays, such as a NamedTuple of results; integers and booleans stay.
        broken: What `check_labels` and `check_probs` return.

    Returns:
        The tree.
    """
    any_broken = jnp.any(jnp.stack([jnp.any(b) for b in broken]))

    def spoil(leaf: jax.Array) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        # The selection is for the value, since the compiler drops a NaN that a converted boolean is multiplied by; the
        # product is for the gradient.
        spoiled = leaf * jnp.where(any_broken, jnp.nan, 1.0).astype(leaf.dtype)
        return jnp.where(any_broken, jnp.nan, spoiled)

    return jax.tree.map(spoil, tree)


def _widened(scores: Any) -> jax.Array:
    """In float32 or wider."""
    scores = jnp.asarray(scores)
    return scores.astype(arrays.compute_dtype(scores.dtype))


@calls.compiled()
def _not_numbers(logits: jax.Array) -> jax.Array:
    """True for the rows with a NaN or +inf among the logits."""
    return ~jnp.all(lax.stop_gradient(logits) < jnp.inf, axis=-1)


def _no_probs(probs: ArrayLike) -> jax.Array:
    """True for the rows that are no distribution."""
    return _outside(probs) | _unequal(probs)


@calls.compiled()
def _outside(probs: ArrayLike) -> jax.Array:
    """True for the rows with an entry outside of [0, 1]; so written that NaN is outside."""
    wide, tolerance = lax.stop_gradient(_widened(probs)), _tolerance(probs)
    return ~jnp.all((wide >= -tolerance) & (wide <= 1.0 + tolerance), axis=-1)


@calls.compiled()
def _unequal(probs: ArrayLike) -> jax.Array:
    """True for the rows whose sum is not 1."""
    return ~(jnp.abs(jnp.sum(lax.stop_gradient(_widened(probs)), axis=-1) - 1.0) <= _tolerance(probs))


def _tolerance(probs: ArrayLike) -> float:
    """How much rounding may change a probability or a sum of them."""
    return 2e-2 if jnp.asarray(probs).dtype in (jnp.bfloat16, jnp.float16) else 1e-3


def _counting(broken: jax.Array, weights: Any) -> jax.Array:
    """The broken rows whose weight is not 0."""
    return broken if weights is None else broken & jnp.asarray(weights).astype(jnp.bool_)


def _first(broken: Any) -> tuple[int, ...] | None:
    """The index of the first broken row, from values that can be seen, also while something else is traced."""
    with jax.ensure_compile_time_eval():
        found = broken()
        if not bool(jnp.any(found)):
            return None
    return tuple(int(i) for i in np.argwhere(np.asarray(found))[0])


def _plain(row: tuple[int, ...]) -> Any:
    """3 for (3,)."""
    return row[0] if len(row) == 1 else row
