"""Split-conformal prediction: sets of classes that hold the label with a probability that is chosen beforehand.

Scores of held-out rows give a threshold, and the set of a new row are the classes that score no more than it:

    scores = conformal_scores(labels, logits=held_out, method="aps", key=first)
    threshold = conformal_threshold(scores, alpha=0.1)
    sets = conformal_sets(threshold, logits=new, method="aps", key=second)

If the rows are exchangeable, the label is in the set with probability 1 - alpha or more, whatever the model is worth.
"""

import math
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxsoftmax._core import arrays, calls, checks, meshes
from jaxsoftmax._core.meshes import Axes
from jaxsoftmax.calibration.inputs import check_labels, poisoned, row_weights, strength, visible
from jaxsoftmax.calibration.rows import distributions
from jaxsoftmax.losses import weighted_mean

__all__ = ["ConformalReport", "conformal_report", "conformal_scores", "conformal_sets", "conformal_threshold"]

METHODS = ("lac", "aps", "raps")


class ConformalReport(NamedTuple):
    """What prediction sets are worth on labelled rows.

    Attributes:
        coverage: A scalar, the share of the rows whose set holds the label.
        size: A scalar, the mean number of classes in a set.
        empty: A scalar, the share of the rows whose set is empty.
        single: A scalar, the share of the rows whose set is one class.
    """

    coverage: jax.Array
    size: jax.Array
    empty: jax.Array
    single: jax.Array


def conformal_scores(
    labels: ArrayLike,
    *,
    logits: ArrayLike | None = None,
    probs: ArrayLike | None = None,
    method: str = "lac",
    key: jax.Array | None = None,
    penalty: ArrayLike = 0.01,
    k_reg: int = 5,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> jax.Array:
    """How badly each label conforms to the prediction: the scores from which `conformal_threshold` takes its quantile.

    lac:  1 - p[y].  aps:  the probability of the classes before y, the most probable first, plus u p[y].  raps:  the
    same plus penalty · max(0, rank of y - k_reg)

    Args:
        labels: [...], integers in [0, V).
        logits: [..., V], floating; either these or the probabilities.
        probs: [..., V], floating: distributions, which are divided by their sum to take their rounding off.
        method: "lac" for the smallest sets on average, "aps" for sets that grow with the difficulty of the row, "raps"
            for those without the long tail.
        key: A random key: u is uniform in [0, 1), one number per row, and coverage is exact rather than too high. By
            default u = 1. For "aps" and "raps"; keep this key apart from that of new rows.
        penalty: For "raps", finite and ≥ 0, a scalar.
        k_reg: For "raps": ranks up to this one (the most probable class has rank 1) cost nothing.
        where: Which classes are present: boolean, of the shape of the logits or [V].
        weights: [...]: a row of weight 0, such as padding, may hold anything, and its score is +inf.

    Returns:
        [...], float32 or wider; between 0 and 1, and more with a penalty; +inf for a label that is absent.

    Raises:
        TypeError: Neither or both of logits and probs are given, or a dtype is wrong.
        ValueError: A shape does not fit, an option is out of range, a key is given for "lac", or labels,
            probabilities or a penalty that can be seen are out of range; where they are traced, the score is NaN.

    Numerics:
        1 - p of the most probable class is the sum of the others, so that confident rows do not all score 0. Of equally
        probable classes the one of lower index comes first. One computation gives the scores of all classes here and in
        `conformal_sets`: at the same shapes, a row is in its set exactly if its score is at most the threshold.

    Gradient:
        That of the probabilities, with the order of the classes a constant.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> probs = jnp.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]])
        >>> print(jaxsoftmax.calibration.conformal_scores(jnp.array([0, 2]), probs=probs))
        [0.5  0.75]
        >>> print(jaxsoftmax.calibration.conformal_scores(jnp.array([0, 2]), probs=probs, method="aps"))
        [0.5 1. ]

    References:
        M. Sadinle, J. Lei and L. Wasserman, Least Ambiguous Set-Valued Classifiers With Bounded Error Levels, 2019.
        Y. Romano, M. Sesia and E. Candès, Classification with Valid and Adaptive Coverage, 2020.
        A. Angelopoulos et al., Uncertainty Sets for Image Classifiers using Conformal Prediction, 2021.
    """
    name = "calibration.conformal_scores"
    _check_options(name, method, key, k_reg)
    rows = distributions(name, logits, probs, where, weights)
    owner = "logits" if probs is None else "probs"
    column = checks.labels(name, labels, rows.probs, Axes((rows.probs.ndim - 1,)), owner)
    broken = rows.broken | check_labels(name, column[..., 0], rows.probs.shape[-1], rows.weights)
    penalty = strength(name, rows.probs.dtype, penalty=penalty)
    scores = _class_scores(rows.probs, rows.present, key, penalty, method=method, k_reg=int(k_reg))
    scores = jnp.where(broken, jnp.nan, arrays.own_pick(scores, column, Axes((scores.ndim - 1,)))[..., 0])
    return scores if rows.weights is None else jnp.where(rows.weights == 0, jnp.inf, scores)


def conformal_threshold(scores: ArrayLike, *, alpha: float = 0.1, weights: ArrayLike | None = None) -> jax.Array:
    """The threshold that holds with a finite number of rows: the ⌈(n + 1)(1 - α)⌉-th smallest of n scores.

    Args:
        scores: [N], floating, from `conformal_scores`.
        alpha: How often a set may miss its label, between 0 and 1: a Python number, read as the nearest fraction with a
            denominator of at most a million, so that 0.1 is 1/10.
        weights: [N], 0 or 1: rows of weight 0 do not count, so that n is a number of rows of a padded batch, or those
            of one class: with `vmap` over classes, thresholds [V] for sets that keep their promise class by class.

    Returns:
        A scalar, float32 or wider; +inf where n is too small to promise anything, which is where n < 1/α - 1.

    Raises:
        TypeError: The scores are not floating, or the weights are not numbers.
        ValueError: The shapes are not [N], alpha is out of range, or a weight that can be seen is neither 0 nor 1;
            where it is traced, the threshold is NaN.

    Numerics:
        The rank is computed in integers. A NaN among the scores that count makes NaN, whose sets are empty.

    Gradient:
        That of the score which is the threshold.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> scores = jnp.arange(1.0, 100.0)
        >>> [jaxsoftmax.calibration.conformal_threshold(some).item() for some in (scores, scores[:8])]
        [90.0, inf]

    References:
        V. Vovk, A. Gammerman and G. Shafer, Algorithmic Learning in a Random World, 2005.
    """
    name = "calibration.conformal_threshold"
    checks.positive(name, alpha=alpha)
    if not alpha < 1:
        checks.fail(ValueError, name, "alpha must lie between 0 and 1", alpha=alpha)
    scores = checks.floating(name, scores=scores)
    if scores.ndim != 1:
        checks.fail(ValueError, name, "scores must have shape [N]", scores=scores)
    if weights is not None:
        weights = checks.numeric(name, weights=weights)
        checks.same_shape(name, scores=scores, weights=weights)
        values = np.asarray(weights) if visible(weights) else np.zeros(0)
        wrong = values[(values != 0) & (values != 1)]
        if wrong.size:
            checks.fail(ValueError, name, "weights must be 0 or 1", weights=wrong.flat[0].item())
    fraction = Fraction(float(alpha)).limit_denominator(10**6)
    return _threshold(scores, weights, alpha=(fraction.numerator, fraction.denominator))


def conformal_sets(
    threshold: ArrayLike,
    *,
    logits: ArrayLike | None = None,
    probs: ArrayLike | None = None,
    method: str = "lac",
    key: jax.Array | None = None,
    penalty: ArrayLike = 0.01,
    k_reg: int = 5,
    where: ArrayLike | None = None,
    nonempty: bool = False,
) -> jax.Array:
    """The classes whose scores are at most the threshold.

    Args:
        threshold: A scalar, or [V] for one per class.
        logits: [..., V], floating; either these or the probabilities.
        probs: [..., V], floating: distributions, which are divided by their sum to take their rounding off.
        method: "lac", "aps" or "raps", as for the scores behind the threshold.
        key: A random key, for "aps" and "raps": given if and only if one was given for the scores.
        penalty: For "raps", as for the scores.
        k_reg: For "raps", as for the scores.
        where: Which classes are present: boolean, of the shape of the logits or [V].
        nonempty: Whether the most probable class is always in the set. It only adds to the coverage; without it, a row
            on which no class conforms has an empty set.

    Returns:
        [..., V], boolean; absent classes are in no set.

    Raises:
        TypeError: Neither or both of logits and probs are given, or a dtype is wrong.
        ValueError: A shape does not fit, an option is out of range, a key is given for "lac", or probabilities or a
            penalty that can be seen are out of range; where they are traced, or a score is NaN, the set is empty.

    Numerics:
        As `conformal_scores`. A threshold of +inf gives the set of all classes that are present.

    Gradient:
        None: sets are boolean.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> probs = jnp.array([[0.9, 0.07, 0.03], [0.4, 0.35, 0.25]])
        >>> print(jaxsoftmax.calibration.conformal_sets(0.7, probs=probs))
        [[ True False False]
         [ True  True False]]
    """
    name = "calibration.conformal_sets"
    _check_options(name, method, key, k_reg)
    checks.flag(name, nonempty=nonempty)
    threshold = checks.numeric(name, threshold=threshold)
    rows = distributions(name, logits, probs, where)
    if threshold.shape not in ((), rows.probs.shape[-1:]):
        owner, given = ("logits", logits) if probs is None else ("probs", probs)
        checks.fail(
            ValueError, name, "threshold must be a scalar or have shape [V]", threshold=threshold, **{owner: given}
        )
    penalty = strength(name, rows.probs.dtype, penalty=penalty)
    scores = _class_scores(rows.probs, rows.present, key, penalty, method=method, k_reg=int(k_reg))
    dtype = arrays.common_dtype(scores.dtype, threshold.dtype)
    limit = threshold.astype(dtype).reshape((1,) * (scores.ndim - 1) + (-1,))
    sets = scores.astype(dtype) <= limit
    if nonempty:
        top = jnp.argmax(rows.probs, axis=-1, keepdims=True)
        sets |= arrays.is_label(top, scores, Axes((scores.ndim - 1,))) & ~jnp.isnan(scores)
    sets &= ~rows.broken[..., None]
    return sets if rows.present is None else sets & rows.present


def conformal_report(sets: ArrayLike, labels: ArrayLike, *, weights: ArrayLike | None = None) -> ConformalReport:
    """Coverage and size of prediction sets on labelled rows.

    Args:
        sets: [..., V], boolean, from `conformal_sets`.
        labels: [...], integers in [0, V).
        weights: [...], how much each row counts, ≥ 0; 1 by default.

    Returns:
        ConformalReport of scalars, float32; 0 where the weights sum to 0.

    Raises:
        TypeError: The sets are not boolean, the labels not integers, or the weights not numbers.
        ValueError: A shape does not fit, or labels or weights that can be seen are out of range; where they are traced,
            the report is NaN.

    Numerics:
        With n scores behind the threshold and k the rank of it among them,
        the coverage over endless new rows is distributed as Beta(k, n + 1 - k).

    Gradient:
        None: sets are boolean.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> sets, labels = jnp.array([[True, True], [True, False]]), jnp.array([1, 1])
        >>> report = jaxsoftmax.calibration.conformal_report(sets, labels)
        >>> print(report.coverage, report.size, report.single)
        0.5 1.5 0.5
    """
    name = "calibration.conformal_report"
    sets = checks.boolean(name, sets=sets)
    axis = checks.class_axis(name, -1, sets=sets)
    column = checks.labels(name, labels, sets, axis, "sets")
    counts = row_weights(name, weights, column[..., 0], jnp.float32)
    broken = check_labels(name, column[..., 0], sets.shape[-1], counts)
    size = jnp.sum(sets, axis=-1, dtype=jnp.float32)
    held = jnp.any(sets & arrays.is_label(column, sets, axis), axis=-1)
    fields = (held, size, size == 0, size == 1)
    return poisoned(ConformalReport(*(weighted_mean(field, counts) for field in fields)), broken)


def _check_options(name: str, method: str, key: Any, k_reg: int) -> None:
    checks.choice(name, METHODS, method=method)
    checks.whole(name, k_reg=k_reg)
    checks.numbers_in(name, 0, math.inf, k_reg=k_reg)
    if key is not None:
        checks.random_key(name, key)
        if method == "lac":
            checks.fail(ValueError, name, "a key is for 'aps' and 'raps' alone", method=method)


@calls.compiled("method", "k_reg")
def _class_scores(probs: Any, present: Any, key: Any, penalty: Any, *, method: str, k_reg: int) -> jax.Array:
    """The score that each class would have as a label; +inf for absent ones."""
    if method != "lac":
        probs = meshes.whole_along(probs, -1)
        present = None if present is None else meshes.split_like(present, probs)
    total = jnp.sum(probs, axis=-1, keepdims=True)
    probs = probs / jnp.where(total == 0, 1.0, total)
    if method == "lac":
        top = jnp.argmax(probs, axis=-1, keepdims=True)
        is_top = arrays.is_label(top, probs, Axes((probs.ndim - 1,)))
        others = jnp.sum(jnp.where(is_top, 0.0, probs), axis=-1, keepdims=True)
        scores = jnp.where(is_top, others, 1.0 - probs)
    else:
        keys = lax.stop_gradient(probs if present is None else jnp.where(present, probs, -1.0))
        order = jnp.argsort(keys, axis=-1, descending=True, stable=True)
        falling = jnp.take_along_axis(probs, order, axis=-1)
        draws = 1.0 if key is None else jax.random.uniform(key, (*probs.shape[:-1], 1), probs.dtype)
        scores = jnp.cumsum(falling, axis=-1) - (1.0 - draws) * falling
        # Rising by rank and at most 1, which sums are but for their rounding.
        scores = jnp.minimum(lax.cummax(scores, axis=scores.ndim - 1), 1.0)
        if method == "raps":
            ranks = jnp.arange(1, probs.shape[-1] + 1, dtype=probs.dtype)
            extra = penalty * jnp.maximum(ranks - k_reg, 0.0)
            scores = scores + extra.reshape((1,) * (probs.ndim - 1) + (-1,))
        scores = jnp.take_along_axis(scores, jnp.argsort(order, axis=-1), axis=-1)
    return scores if present is None else jnp.where(present, scores, jnp.inf)


@calls.compiled("alpha")
def _threshold(scores: jax.Array, weights: Any, *, alpha: tuple[int, int]) -> jax.Array:
    scores, weights = meshes.whole((scores, weights))
    scores = scores.astype(arrays.compute_dtype(scores.dtype))
    size = scores.shape[0]
    count: Any = size
    broken = jnp.isnan(scores)
    if weights is not None:
        weights = weights.astype(scores.dtype)
        counted = weights != 0
        count = jnp.sum(counted, dtype=jnp.int32)
        broken = counted & (broken | (weights != 1))
        scores = jnp.where(counted, scores, jnp.inf)
    rank = jnp.maximum(_rank(count, alpha), 1)  # 0 only where the fraction is 1, for an alpha next to it
    rising = jnp.append(jnp.sort(scores), jnp.asarray(jnp.inf, scores.dtype))
    chosen = rising[jnp.minimum(rank, size + 1) - 1]
    return jnp.where(jnp.any(broken), jnp.nan, jnp.where(rank > count, jnp.inf, chosen))


def _rank(count: Any, alpha: tuple[int, int]) -> Any:
    """ceil((n + 1)(1 - a)) = m - floor(m a) with m = n + 1 and a = p / q: by long division, in 32 bits.

    m = c q + r gives floor(m a) = c p + floor(r p / q), and r p is built from the bits of p, with q taken out at once.
    """
    p, q = alpha
    m = count + 1
    whole, r = m // q * p, m % q
    quotient, remainder = 0 * r, 0 * r
    for bit in f"{p:b}":
        remainder = 2 * remainder + (r if bit == "1" else 0)
        quotient = 2 * quotient + remainder // q
        remainder = remainder % q
    return m - whole - quotient
