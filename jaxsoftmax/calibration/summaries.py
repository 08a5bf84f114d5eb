"""The usual numbers about a classifier's probabilities, all at once."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsoftmax._core import calls, checks
from jaxsoftmax.calibration import inputs
from jaxsoftmax.calibration.metrics import brier_of_rows, error_of_rows, likelihood_of_rows
from jaxsoftmax.calibration.smooth_metrics import smooth_error_of_rows
from jaxsoftmax.losses import weighted_mean

__all__ = ["CalibrationSummary", "calibration_summary"]


class CalibrationSummary(NamedTuple):
    """One number for each metric, and one per class for those of the classes.

    Attributes:
        accuracy: A scalar, the share of rows whose top label is right.
        confidence: A scalar, the mean probability of the top label; above the accuracy for an over-confident model.
        negative_log_likelihood: A scalar, in nats.
        brier_score: A scalar, summed over the classes.
        expected_calibration_error: A scalar, of the top label.
        classwise_calibration_error: A scalar, the mean over the classes.
        smooth_calibration_error: A scalar, of the top label.
        support: [V], the weight of the rows with this label.
        predicted: [V], the weight of the rows with this top label.
        precision: [V], the share of the predicted ones that are right; 0 where there are none.
        recall: [V], the share of those with this label that are found; 0 where there are none.
        f1: [V], the harmonic mean of both; 0 where there are neither.
    """

    accuracy: jax.Array
    confidence: jax.Array
    negative_log_likelihood: jax.Array
    brier_score: jax.Array
    expected_calibration_error: jax.Array
    classwise_calibration_error: jax.Array
    smooth_calibration_error: jax.Array
    support: jax.Array
    predicted: jax.Array
    precision: jax.Array
    recall: jax.Array
    f1: jax.Array


def calibration_summary(
    labels: ArrayLike,
    *,
    logits: ArrayLike | None = None,
    probs: ArrayLike | None = None,
    bins: int = 15,
    weights: ArrayLike | None = None,
) -> CalibrationSummary:
    """Accuracy, proper scores, calibration errors, and precision and recall of every class.

    Args:
        labels: [...], integers in [0, V).
        logits: [..., V], floating; give either these or the probabilities.
        probs: [..., V], floating; each row sums to 1.
        bins: Of equal width, for the binned errors.
        weights: [...], how many times each row counts, 0 or more; 1 by default.

    Returns:
        CalibrationSummary, float32 or wider; 0 in every field where the weights sum to 0, and for no rows at all.

    Raises:
        TypeError: Neither or both of logits and probs are given, a dtype is wrong, or bins is not an integer.
        ValueError: A shape does not fit, bins is out of range, or values that can be seen, not traced, are out of
            range: labels, weights, or probabilities that are none.

    Numerics:
        As each metric by itself. Of equal probabilities the lower class is the top label. Traced labels or
        probabilities that are out of range make NaN.

    Gradient:
        As each metric by itself; accuracy and the numbers of the classes are constants to differentiation by the
        probabilities. All modes.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> probs = jnp.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]])
        >>> summary = jaxsoftmax.calibration.calibration_summary(jnp.array([0, 1, 1]), probs=probs)
        >>> print(f"{summary.accuracy:.3f} {summary.confidence:.3f}", summary.recall)
        0.667 0.767 [1.  0.5]
    """
    name = "calibration.calibration_summary"
    checks.whole(name, bins=bins)
    checks.numbers_in(name, 1, math.inf, bins=bins)
    return _summary_call(inputs.rows_of(name, labels, logits, probs, weights), bins=bins)


@calls.compiled("bins")
def _summary_call(rows: inputs.Rows, *, bins: int) -> CalibrationSummary:
    error = functools.partial(error_of_rows, rows, bins=bins, binning="width", norm=1, debias=False)
    ((confidence,), (right,)) = inputs.events(rows, classwise=False)
    scores: Any = rows.logits if rows.probs is None else rows.probs
    classes, top = scores.shape[1], jnp.argmax(scores, axis=1)

    def share(part: jax.Array, whole: jax.Array) -> jax.Array:
        return jnp.where(whole == 0, 0.0, part / jnp.where(whole == 0, 1.0, whole))

    hits = inputs.sums_by(rows.labels, rows.weights * right, classes)
    support = inputs.sums_by(rows.labels, rows.weights, classes)
    predicted = inputs.sums_by(top, jnp.where(confidence == 0, 0.0, rows.weights), classes)
    summary = CalibrationSummary(
        accuracy=weighted_mean(right, rows.weights),
        confidence=weighted_mean(confidence, rows.weights),
        negative_log_likelihood=likelihood_of_rows(rows),
        brier_score=brier_of_rows(rows),
        expected_calibration_error=error(classwise=False),
        classwise_calibration_error=error(classwise=True),
        smooth_calibration_error=smooth_error_of_rows(rows, None, classwise=False),
        support=support,
        predicted=predicted,
        precision=share(hits, predicted),
        recall=share(hits, support),
        f1=share(2.0 * hits, support + predicted),
    )
    return inputs.poisoned(summary, rows.broken)
