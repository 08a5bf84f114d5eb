"""The exact answers that `benchmarks.accuracy` judges by, with the float32 inputs taken as exact.

float64 is provably enough. Differences of float32 numbers are exact in float64 or off by 2^-53 of themselves, every sum
below has terms of one sign or is judged relative to the sum of the magnitudes, and nothing subtracts two nearly equal
results: the label's class is kept apart from the rest, so that 1 - p is a sigmoid and not a difference. That bounds
the relative error by about (gap + V) * 2^-53, 1e-11 at the worst sizes here, against 6e-8 for half a unit of float32.
`audit` holds this against the textbook formulas in mpmath with some hundreds of digits.
"""

from collections.abc import Callable

import mpmath
import numpy as np
from scipy.special import expit

__all__ = ["GAMMA", "audit", "exact", "textbook"]

GAMMA = 2.0
# Enough for 1 - p to keep twenty digits where p is exp(-800) away from 1.
DIGITS = 400

Answers = dict[str, tuple[np.ndarray, np.ndarray]]


def exact(logits: np.ndarray, labels: np.ndarray, cotangent: np.ndarray) -> Answers:
    """The exact values and gradients, [N] or [N, V], each with the magnitude that its error is relative to.

    The magnitude is that of the answer, or for sums of mixed signs the sum of the magnitudes of the terms.
    """
    z, g = logits.astype(np.float64), cotangent.astype(np.float64)
    is_label = labels[:, None] == np.arange(z.shape[-1])
    is_top = z.argmax(-1)[:, None] == np.arange(z.shape[-1])

    # Each entry relative to the largest of the others, so that a gap of hundreds does not underflow.
    target, rest, share = split(z, is_label)
    log_odds = target - rest
    wrong = expit(-log_odds)
    right = expit(log_odds)
    loss = np.logaddexp(0, -log_odds)
    loss_slope = np.where(is_label, -wrong[:, None], wrong[:, None] * share)

    focal_by_log_odds = GAMMA * wrong**GAMMA * right * loss + wrong ** (GAMMA + 1)
    focal_slope = np.where(is_label, -focal_by_log_odds[:, None], focal_by_log_odds[:, None] * share)

    top, others, _ = split(z, is_top)
    top_log_prob = -np.logaddexp(0, others - top)[:, None]
    log_probs = np.where(is_top, top_log_prob, (z - z.max(-1, keepdims=True)) + top_log_prob)
    probs = np.exp(log_probs)
    of_label = right[:, None]

    # The cotangent relative to its value at the top class: what is left there is a sum over the other classes.
    centred = g - (g * is_top).sum(-1, keepdims=True)
    mean = (probs * centred).sum(-1, keepdims=True)
    mean_size = (probs * np.abs(centred)).sum(-1, keepdims=True)

    answers = {
        "cross_entropy": loss,
        "cross_entropy, gradient": loss_slope,
        "focal_loss": wrong**GAMMA * loss,
        "focal_loss, gradient": focal_slope,
        "softmax": probs,
        "softmax, gradient, one-hot": np.where(is_label, of_label * wrong[:, None], -probs * of_label),
        "softmax, gradient, any": probs * (centred - mean),
        "log_softmax": log_probs,
        "log_softmax, gradient, one-hot": np.where(is_label, wrong[:, None], -probs),
        "log_softmax, gradient, any": g - probs * g.sum(-1, keepdims=True),
    }
    sizes = {
        "softmax, gradient, any": probs * (np.abs(centred) + mean_size),
        "log_softmax, gradient, one-hot": is_label + probs,
        "log_softmax, gradient, any": np.abs(g) + probs * np.abs(g).sum(-1, keepdims=True),
    }
    return {name: (answer, sizes.get(name, np.abs(answer))) for name, answer in answers.items()}


def split(z: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One entry of a row and the log-sum-exp of the others, both relative to the largest other, and their shares."""
    others = np.where(chosen, -np.inf, z)
    # A row of one class has no others: any finite shift will do.
    shift = np.where(chosen.all(-1), 0.0, others.max(-1))[:, None]
    weights = np.exp(others - shift)
    total = weights.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        rest = np.log(total[:, 0])
    return (z * chosen).sum(-1) - shift[:, 0], rest, weights / np.where(total == 0, 1, total)


def textbook(logits: np.ndarray, label: int, cotangent: np.ndarray) -> dict[str, list]:
    """One row by the textbook formulas in mpmath, with digits to burn."""
    with mpmath.workdps(DIGITS):
        z, g = [mpmath.mpf(float(x)) for x in logits], [mpmath.mpf(float(x)) for x in cotangent]
        weights = [mpmath.exp(x) for x in z]
        total = mpmath.fsum(weights)
        probs = [w / total for w in weights]
        hot = [int(j == label) for j in range(len(z))]
        p, loss = probs[label], -mpmath.log(probs[label])
        focal_slope = GAMMA * (1 - p) ** (GAMMA - 1) * p * loss + (1 - p) ** GAMMA
        mean, g_total = mpmath.fdot(probs, g), mpmath.fsum(g)
        return {
            "cross_entropy": [loss],
            "cross_entropy, gradient": [q - h for q, h in zip(probs, hot, strict=True)],
            "focal_loss": [(1 - p) ** GAMMA * loss],
            "focal_loss, gradient": [focal_slope * (q - h) for q, h in zip(probs, hot, strict=True)],
            "softmax": probs,
            "softmax, gradient, one-hot": [q * (h - p) for q, h in zip(probs, hot, strict=True)],
            "softmax, gradient, any": [q * (x - mean) for q, x in zip(probs, g, strict=True)],
            "log_softmax": [mpmath.log(q) for q in probs],
            "log_softmax, gradient, one-hot": [h - q for q, h in zip(probs, hot, strict=True)],
            "log_softmax, gradient, any": [x - q * g_total for q, x in zip(probs, g, strict=True)],
        }


def audit(logits: np.ndarray, labels: np.ndarray, cotangent: np.ndarray, rows: int, worth: Callable) -> float:
    """The largest error of `exact` relative to the magnitudes, against `textbook` on the first rows.

    `worth` says of an array of magnitudes which of them count.
    """
    answers = exact(logits[:rows], labels[:rows], cotangent[:rows])
    worst = 0.0
    for i in range(min(rows, len(logits))):
        for name, truths in textbook(logits[i], int(labels[i]), cotangent[i]).items():
            answer, size = (np.atleast_1d(array[i]) for array in answers[name])
            with mpmath.workdps(DIGITS):
                errors = [abs(t - mpmath.mpf(float(a))) for t, a in zip(truths, answer, strict=True)]
                counted = zip(errors, size, worth(size), strict=True)
                worst = max([worst, *(float(error / mpmath.mpf(float(s))) for error, s, counts in counted if counts)])
    return worst
