"""Calibration from the definitions, in float64, one row, one bin and one point at a time."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq


class Bins(NamedTuple):
    """Sums of each bin, and the largest confidence in it, or -1."""

    confidence: list[float]
    accuracy: list[float]
    weight: list[float]
    largest: list[float]


def softmax_rows(logits: Any) -> np.ndarray:
    """[N, V] probabilities."""
    z = np.asarray(logits, np.float64)
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def pairs(probs: Any, labels: Any, classwise: bool) -> list[tuple[list[float], list[float]]]:
    """Confidences and outcomes: of the top label, the first of equal ones, or of each class."""
    probs = np.asarray(probs)
    if classwise:
        return [([float(p[j]) for p in probs], [float(y == j) for y in labels]) for j in range(probs.shape[1])]
    tops = [max(range(len(p)), key=lambda j, p=p: (p[j], -j)) for p in probs]
    said = [float(p[t]) for p, t in zip(probs, tops, strict=True)]
    return [(said, [float(t == y) for t, y in zip(tops, labels, strict=True)])]


def width_bin(confidence: float, bins: int, dtype: Any) -> int:
    """The number of inner edges k / bins, rounded to the dtype, that are below the confidence."""
    return sum(confidence > float(np.asarray(k / bins, dtype)) for k in range(1, bins))


def mass_bin(confidence: float, everyone: Sequence[float], weights: Sequence[float], bins: int) -> int:
    """The bin of equal weight in which the middle of the ties lies."""
    below = math.fsum(w for c, w in zip(everyone, weights, strict=True) if c < confidence)
    tied = math.fsum(w for c, w in zip(everyone, weights, strict=True) if c == confidence)
    middle, total = below + tied / 2, math.fsum(weights)
    return sum(middle * bins >= k * total for k in range(1, bins))


def binned(
    confidence: Sequence[float], outcome: Sequence[float], weights: Sequence[float], bins: int, binning: str, dtype: Any
) -> Bins:
    """Means of each bin, 0 for an empty one."""
    found = Bins([], [], [], [])
    index = [
        width_bin(c, bins, dtype) if binning == "width" else mass_bin(c, confidence, weights, bins) for c in confidence
    ]
    for k in range(bins):
        rows = [i for i, at in enumerate(index) if at == k and weights[i] > 0]
        weight = math.fsum(weights[i] for i in rows)
        found.weight.append(weight)
        found.confidence.append(math.fsum(weights[i] * confidence[i] for i in rows) / weight if rows else 0.0)
        found.accuracy.append(math.fsum(weights[i] * outcome[i] for i in rows) / weight if rows else 0.0)
        found.largest.append(max((confidence[i] for i in rows), default=-1.0))
    return found


def expected_calibration_error(
    probs: Any,
    labels: Any,
    *,
    weights: Any = None,
    bins: int = 15,
    binning: str = "width",
    norm: int | str = 1,
    classwise: bool = False,
    debias: bool = False,
) -> float:
    """(mean over classes of the weighted mean over bins of |gap|^norm)^(1/norm), or the largest gap."""
    dtype = np.asarray(probs).dtype
    weights = [1.0] * len(labels) if weights is None else [float(w) for w in weights]
    total = math.fsum(weights)
    errors, gaps = [], [0.0]
    for confidence, outcome in pairs(probs, labels, classwise):
        terms = []
        for c, a, n in zip(*binned(confidence, outcome, weights, bins, binning, dtype)[:3], strict=True):
            gap = a - c
            variance = a * (1 - a) / (n - 1) if debias and n > 1 else 0.0
            gaps.append(abs(gap))
            if norm == 2:
                terms.append(n / total * (gap * gap - variance))
            elif variance > 0:
                terms.append(n / total * (2 * abs(gap) - folded_mean(gap, math.sqrt(variance))))
            else:
                terms.append(n / total * abs(gap))
        errors.append(math.fsum(terms))
    if norm == "max":
        return max(gaps)
    error = math.fsum(errors) / len(errors)
    error = max(error, 0.0) if debias else error
    return math.sqrt(error) if norm == 2 else error


def folded_mean(mean: float, deviation: float) -> float:
    """E|X| of a normal X, by quadrature."""
    x = np.linspace(-12.0, 12.0, 200_001)
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return float(np.trapezoid(np.abs(mean + deviation * x) * density, x))


def brier_score(probs: Any, labels: Any, weights: Any = None) -> float:
    """The squared error summed over the classes, weighted mean over the rows."""
    rows = [
        math.fsum((float(p[j]) - (j == y)) ** 2 for j in range(len(p)))
        for p, y in zip(np.asarray(probs), labels, strict=True)
    ]
    weights = [1.0] * len(rows) if weights is None else [float(w) for w in weights]
    return math.fsum(w * r for w, r in zip(weights, rows, strict=True)) / math.fsum(weights)


def smooth_error(confidence: Any, outcome: Any, bandwidth: float, weights: Any = None, points: int = 8000) -> float:
    """The integral over [0, 1] of |the mean of (y - f) K(t, f)|, K the reflected Gaussian, by the trapezoid rule."""
    f, y = np.asarray(confidence, np.float64), np.asarray(outcome, np.float64)
    shares = np.full(len(f), 1 / len(f)) if weights is None else np.asarray(weights) / np.sum(weights)
    t = np.linspace(0.0, 1.0, points + 1)
    total = np.zeros_like(t)
    for fi, residual in zip(f, shares * (y - f), strict=True):
        total += residual * reflected_gaussian(t, fi, bandwidth)
    return float(np.trapezoid(np.abs(total), t))


def reflected_gaussian(t: np.ndarray, place: float, bandwidth: float) -> np.ndarray:
    """The density at t in [0, 1] of a Gaussian that is folded back at 0 and at 1."""
    reach = 1 + math.ceil(4 * bandwidth)
    images = [2 * m + sign * place for m in range(-reach, reach + 1) for sign in (1, -1)]
    return sum(np.exp(-(((t - image) / bandwidth) ** 2) / 2) for image in images) / (bandwidth * math.sqrt(2 * math.pi))


def smooth_calibration_error(confidence: Any, outcome: Any, weights: Any = None, points: int = 4000) -> float:
    """The bandwidth that equals its error."""
    return float(brentq(lambda s: smooth_error(confidence, outcome, s, weights, points) - s, 1e-3, 1.0, xtol=1e-12))
