"""How far probabilities are from what happens: proper scores, and errors and curves over bins of confidence."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxsoftmax._core import arrays, calls, checks, meshes, scalars
from jaxsoftmax._core.meshes import Axes
from jaxsoftmax.calibration import inputs
from jaxsoftmax.losses import cross_entropy, weighted_mean
from jaxsoftmax.statistics import row_statistics

__all__ = [
    "ReliabilityCurve",
    "brier_score",
    "expected_calibration_error",
    "negative_log_likelihood",
    "reliability_curve",
]


class ReliabilityCurve(NamedTuple):
    """Confidence against accuracy, bin by bin; with `classwise`, every field has a leading axis of V.

    Bin k holds the confidences above edges[k] up to edges[k + 1], and the first one 0 too.

    Attributes:
        edges: [bins + 1], from 0 to 1.
        confidence: [bins], the mean confidence; 0 in an empty bin.
        accuracy: [bins], the share of events that came true; 0 in an empty bin.
        gap: [bins], accuracy - confidence, summed row by row: positive where the model is under-confident.
        weight: [bins], the sum of the weights of the rows: their number, without weights.
    """

    edges: jax.Array
    confidence: jax.Array
    accuracy: jax.Array
    gap: jax.Array
    weight: jax.Array


def expected_calibration_error(
    labels: ArrayLike,
    *,
    logits: ArrayLike | None = None,
    probs: ArrayLike | None = None,
    bins: int = 15,
    binning: str = "width",
    norm: int | str = 1,
    classwise: bool = False,
    debias: bool = False,
    weights: ArrayLike | None = None,
) -> jax.Array:
    """The binned calibration error: ECE, its squared and maximal kin, of the top label or of every class.

    (Σₖ nₖ |accuracyₖ - confidenceₖ|^norm / Σₖ nₖ)^(1 / norm)

    Args:
        labels: [...], integers in [0, V).
        logits: [..., V], floating; give either these or the probabilities.
        probs: [..., V], floating; each row sums to 1.
        bins: How many, 1 or more.
        binning: "width" for bins of equal width, "mass" for bins of equal weight (adaptive).
        norm: 1 for the ECE, 2 for the root of the mean square, "max" for the largest gap of a bin that is not empty
            (MCE).
        classwise: Bin the probability of each class, and take the mean of |gap|^norm over the classes too: for norm 1
            the mean of the classes' errors, whose sum is V times that; for norm 2 the marginal calibration error of
            Kumar et al.; for "max" the largest gap of any class.
        debias: Take off, bin by bin, what the noise of finitely many rows adds. With s² = accuracy (1 - accuracy) /
            (n - 1), 0 for n ≤ 1: for norm 2, s² (Bröcker; Kumar et al.); for norm 1, E|gap + s ξ| - |gap| with ξ
            standard normal. An error that falls below 0 is 0.
        weights: [...], how many times each row counts, 0 or more; 1 by default.

    Returns:
        A scalar in [0, 1], float32 or wider; 0 where the weights sum to 0, for no rows at all, and for V = 1.

    Raises:
        TypeError: Neither or both of logits and probs are given, a dtype is wrong, bins is not an integer, or a flag is
            not a bool.
        ValueError: A shape does not fit, an option is out of range, debias is asked of norm "max", or values that can
            be seen, not traced, are out of range: labels, weights, or probabilities that are none.

    Numerics:
        The bins are those of `reliability_curve`. Traced labels or probabilities that are out of range make NaN.

    Gradient:
        Through the confidences in their bins, which are constants, as is whether the top label is right: 0 where a
        rounding moves a row to another bin, finite everywhere. A smooth one is that of `smooth_calibration_error`. All
        modes.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> probs, labels = jnp.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7]]), jnp.array([0, 1, 1])
        >>> print(f"{jaxsoftmax.calibration.expected_calibration_error(labels, probs=probs):.4f}")
        0.3667

    References:
        C. Guo et al., On Calibration of Modern Neural Networks, 2017; M. Kull et al., Beyond Temperature Scaling, 2019
        (classwise); A. Kumar et al., Verified Uncertainty Calibration, 2019; J. Bröcker, Estimating Reliability and
        Resolution of Probability Forecasts through Decomposition of the Empirical Score, 2012.
    """
    name = "calibration.expected_calibration_error"
    _check_binning(name, bins, binning, classwise)
    checks.flag(name, debias=debias)
    if isinstance(norm, bool) or norm not in (1, 2, "max"):
        checks.fail(ValueError, name, "norm must be one of 1, 2, 'max'", norm=norm)
    if debias and norm == "max":
        checks.fail(ValueError, name, "debias must be False for norm 'max'", debias=debias, norm=norm)
    rows = inputs.rows_of(name, labels, logits, probs, weights)
    return error_of_rows(rows, bins=bins, binning=binning, norm=norm, classwise=classwise, debias=debias)


def reliability_curve(
    labels: ArrayLike,
    *,
    logits: ArrayLike | None = None,
    probs: ArrayLike | None = None,
    bins: int = 15,
    binning: str = "width",
    classwise: bool = False,
    weights: ArrayLike | None = None,
) -> ReliabilityCurve:
    """Mean confidence and accuracy in bins of confidence, from which the expected calibration error is computed.

    Args:
        labels: [...], integers in [0, V).
        logits: [..., V], floating; give either these or the probabilities.
        probs: [..., V], floating; each row sums to 1.
        bins: How many, 1 or more.
        binning: "width" for bins of equal width, "mass" for bins of equal weight (adaptive).
        classwise: One curve for the probability of each class, instead of the one of the top label.
        weights: [...], how many times each row counts, 0 or more; 1 by default.

    Returns:
        ReliabilityCurve with fields [bins], or [V, bins] if classwise; float32 or wider.

    Raises:
        TypeError: Neither or both of logits and probs are given, a dtype is wrong, bins is not an integer, or classwise
            is not a bool.
        ValueError: A shape does not fit, an option is out of range, or values that can be seen, not traced, are out of
            range: labels, weights, or probabilities that are none.

    Numerics:
        By width, bin k of K holds k / K < c ≤ (k + 1) / K, as in Guo et al. and scikit-learn. An edge is a quotient of
        whole numbers rounded once, so that the confidence 0.3 is on the edge 3 / 10 and in the bin below. 0 falls in
        the first bin; 1, and the 1.0000002 that rounding makes of it, in the last. By mass, a confidence is in the bin
        in which the middle of its ties lies on the scale of cumulative weight: bins of N / K rows where K divides N and
        nothing is tied, while equal confidences are never parted, whatever their order, and leave bins empty if they
        outweigh them; an inner edge is the largest confidence below it. Traced labels or probabilities that are out of
        range make NaN.

    Gradient:
        Confidence and gap by the confidences of the rows in the bin; edges and accuracy are constants. All modes.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> probs, labels = jnp.array([[0.9, 0.1], [0.9, 0.1], [0.5, 0.5]]), jnp.array([0, 1, 1])
        >>> curve = jaxsoftmax.calibration.reliability_curve(labels, probs=probs, bins=2)
        >>> print(curve.accuracy, curve.weight)
        [0.  0.5] [1. 2.]

    References:
        A. Niculescu-Mizil, R. Caruana, Predicting Good Probabilities with Supervised Learning, 2005; C. Guo et al., On
        Calibration of Modern Neural Networks, 2017.
    """
    name = "calibration.reliability_curve"
    _check_binning(name, bins, binning, classwise)
    rows = inputs.rows_of(name, labels, logits, probs, weights)
    return _curve_call(rows, bins=bins, binning=binning, classwise=classwise)


def brier_score(
    labels: ArrayLike,
    *,
    logits: ArrayLike | None = None,
    probs: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> jax.Array:
    """The Brier score, on the scale of its inventor: the squared error summed over the classes.

    Σᵢ wᵢ Σⱼ (pᵢⱼ - 1[j = yᵢ])² / Σ w

    Args:
        labels: [...], integers in [0, V).
        logits: [..., V], floating; give either these or the probabilities.
        probs: [..., V], floating; each row sums to 1.
        weights: [...], how much each row counts, 0 or more; 1 by default.

    Returns:
        A scalar in [0, 2], float32 or wider; 0 where the weights sum to 0, for no rows at all, and for V = 1. Half of
        it lies in [0, 1], and is the usual (p - y)² of two classes (scikit-learn's `scale_by_half`); the mean over the
        classes is this divided by V.

    Raises:
        TypeError: Neither or both of logits and probs are given, or a dtype is wrong.
        ValueError: A shape does not fit, or values that can be seen, not traced, are out of range: labels, weights, or
            probabilities that are none.

    Numerics:
        From logits, 1 - p[y] is computed as itself, so that the score of a certain label is 1.2e-14 and not 0. Traced
        labels or probabilities that are out of range make NaN.

    Gradient:
        2 (p - 1[j = y]) by the probabilities; by the logits finite everywhere. All modes.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> score = jaxsoftmax.calibration.brier_score(jnp.array([0]), probs=jnp.array([[0.8, 0.2]]))
        >>> print(f"{score:.2f}")
        0.08

    References:
        G. W. Brier, Verification of Forecasts Expressed in Terms of Probability, 1950.
    """
    return brier_of_rows(inputs.rows_of("calibration.brier_score", labels, logits, probs, weights))


def negative_log_likelihood(
    labels: ArrayLike,
    *,
    logits: ArrayLike | None = None,
    probs: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> jax.Array:
    """The mean negative log-likelihood of the labels, or log loss.

    -Σᵢ wᵢ log pᵢ[yᵢ] / Σ w

    Args:
        labels: [...], integers in [0, V).
        logits: [..., V], floating; give either these or the probabilities.
        probs: [..., V], floating; each row sums to 1.
        weights: [...], how much each row counts, 0 or more; 1 by default.

    Returns:
        A scalar of 0 or more, in nats, float32 or wider; 0 where the weights sum to 0, for no rows at all, and for
        V = 1.

    Raises:
        TypeError: Neither or both of logits and probs are given, or a dtype is wrong.
        ValueError: A shape does not fit, or values that can be seen, not traced, are out of range: labels, weights, or
            probabilities that are none.

    Numerics:
        From logits by `cross_entropy`, exact however certain the label; from probabilities their logarithm, inf where
        the label has probability 0. Nothing is clipped. Traced labels or probabilities that are out of range make NaN.

    Gradient:
        p - 1[j = y] by the logits; -1 / p[y] by the probability of the label, and 0 where that is 0. All modes, as for
        `cross_entropy`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> labels, probs = jnp.array([0, 1]), jnp.array([[1.0, 0.0], [0.5, 0.5]])
        >>> print(f"{jaxsoftmax.calibration.negative_log_likelihood(labels, probs=probs):.4f}")
        0.3466
    """
    return likelihood_of_rows(inputs.rows_of("calibration.negative_log_likelihood", labels, logits, probs, weights))


def _check_binning(name: str, bins: int, binning: str, classwise: bool) -> None:
    """The options that say what the bins are."""
    checks.whole(name, bins=bins)
    checks.numbers_in(name, 1, math.inf, bins=bins)
    checks.choice(name, ("width", "mass"), binning=binning)
    checks.flag(name, classwise=classwise)


@calls.compiled("bins", "binning", "norm", "classwise", "debias")
def error_of_rows(
    rows: inputs.Rows, *, bins: int, binning: str, norm: int | str, classwise: bool, debias: bool
) -> jax.Array:
    """The error of rows in canonical form."""
    curve = _curve(rows, bins, binning, classwise)
    total = jnp.sum(rows.weights)
    share = curve.weight / jnp.where(total == 0, 1.0, total)
    if norm == "max":
        error = jnp.max(jnp.abs(curve.gap))  # that of an empty bin is 0
    else:
        power = jnp.abs(curve.gap) if norm == 1 else jnp.square(curve.gap)
        if debias:
            power = power - _noise(curve, norm)
        error = jnp.mean(jnp.sum(share * power, axis=1))
        if debias:
            error = jnp.where(error < 0, 0.0, error)
        if norm == 2:
            error = jnp.where(error == 0, 0.0, jnp.sqrt(jnp.where(error == 0, 1.0, error)))
    return inputs.poisoned(error, rows.broken)


def _noise(curve: ReliabilityCurve, norm: int | str) -> jax.Array:
    """What the variance s² of the accuracy adds to the expectation of gap², or of |gap|, the normal law assumed.

    For N(g, s²) the mean of the absolute value is  s √(2 / π) exp(-g² / 2 s²) + g erf(g / s √2),  and |g| for s = 0.
    """
    several = curve.weight > 1.0
    freedom = jnp.where(several, curve.weight - 1.0, 1.0)
    variance = jnp.where(several, curve.accuracy * (1.0 - curve.accuracy) / freedom, 0.0)
    if norm == 2:
        return variance
    deviation = jnp.sqrt(jnp.where(variance > 0, variance, 1.0))
    ratio = curve.gap / deviation / math.sqrt(2.0)
    spread = math.sqrt(2.0 / math.pi) * deviation * jnp.exp(-jnp.square(ratio))
    return jnp.where(variance > 0, spread + curve.gap * lax.erf(ratio) - jnp.abs(curve.gap), 0.0)


@calls.compiled("bins", "binning", "classwise")
def _curve_call(rows: inputs.Rows, *, bins: int, binning: str, classwise: bool) -> ReliabilityCurve:
    curve = _curve(rows, bins, binning, classwise)
    return inputs.poisoned(curve if classwise else jax.tree.map(lambda field: field[0], curve), rows.broken)


def _curve(rows: inputs.Rows, bins: int, binning: str, classwise: bool) -> ReliabilityCurve:
    """Fields [V, bins], or [1, bins] for the top label."""
    weights = meshes.whole(rows.weights)

    def one(said: jax.Array, came: jax.Array) -> ReliabilityCurve:
        fixed = lax.stop_gradient(said)
        edges, index = _by_width(fixed, bins) if binning == "width" else _by_mass(fixed, weights, bins)

        weight = inputs.sums_by(index, weights, bins)
        inverse = scalars.inverse(weight)
        sums = (inputs.sums_by(index, weights * values, bins) for values in (said, came, came - said))
        confidence, accuracy, gap = (each * inverse for each in sums)
        return ReliabilityCurve(edges, confidence, accuracy, gap, weight)

    return jax.vmap(one)(*inputs.events(rows, classwise))


def _by_width(confidence: jax.Array, bins: int) -> tuple[jax.Array, jax.Array]:
    """Edges and the bin of each row: the number of inner edges below its confidence."""
    edges = jnp.asarray(np.arange(bins + 1) / bins, confidence.dtype)
    return edges, jnp.searchsorted(edges[1:-1], confidence, side="left").astype(jnp.int32)


def _by_mass(confidence: jax.Array, weights: jax.Array, bins: int) -> tuple[jax.Array, jax.Array]:
    """The same for bins of equal weight; products are compared, not quotients, so that whole weights are exact."""
    weights = lax.stop_gradient(weights)
    order = jnp.argsort(confidence)
    ranked = confidence[order]
    below = jnp.concatenate([jnp.zeros(1, weights.dtype), jnp.cumsum(weights[order])])
    first, last = (jnp.searchsorted(ranked, confidence, side=side) for side in ("left", "right"))
    twice_middle = below[first] + below[last]
    inner = jnp.arange(1, bins, dtype=weights.dtype) * (2.0 * below[-1])
    index = jnp.searchsorted(inner, bins * twice_middle, side="right").astype(jnp.int32)
    counted = jnp.where(weights > 0, confidence, 0.0)
    largest = lax.cummax(jnp.zeros(bins, confidence.dtype).at[index].max(counted))
    ends = jnp.asarray([0.0, 1.0], confidence.dtype)
    return jnp.concatenate([ends[:1], largest[:-1], ends[1:]]), index


@calls.compiled()
def brier_of_rows(rows: inputs.Rows) -> jax.Array:
    """The score of rows in canonical form."""
    if rows.logits is None:
        probs = inputs.probabilities(rows)
        error = jnp.sum(jnp.square(probs - jax.nn.one_hot(rows.labels, probs.shape[1], dtype=probs.dtype)), axis=1)
    else:
        # The label's own term by its error probability, which does not vanish as p[y] rounds to 1.
        label = arrays.is_label(rows.labels[:, None], rows.logits, Axes((1,)))
        probs = jnp.where(label, 0.0, inputs.probabilities(rows))
        missed = row_statistics(rows.logits, rows.labels).error_prob
        error = jnp.square(missed) + jnp.sum(jnp.square(probs), axis=1)
    return inputs.poisoned(weighted_mean(error, rows.weights), rows.broken)


@calls.compiled()
def likelihood_of_rows(rows: inputs.Rows) -> jax.Array:
    """The negative log-likelihood of rows in canonical form."""
    if rows.probs is None:
        assert rows.logits is not None
        loss = cross_entropy(rows.logits, rows.labels)
    else:
        prob = jnp.squeeze(arrays.own_pick(rows.probs, rows.labels[:, None], Axes((1,))), 1)
        loss = -scalars.safe_log(jnp.where(prob > 0, prob, 0.0))
    return inputs.poisoned(weighted_mean(loss, rows.weights), rows.broken)
