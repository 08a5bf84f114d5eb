"""Calibrators in float64: a bracketed search for the temperature, and scipy's minimizers for the others."""

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq, minimize
from scipy.special import log_softmax


class Temperature(NamedTuple):
    """T, or None where the likelihood has no maximum, and where it grows: "cold" for T → 0, "hot" for T → ∞."""

    value: float | None
    bound: str | None


def losses(logits: Any, labels: Any) -> np.ndarray:
    """[N], the negative log-likelihoods; absent classes are -inf."""
    logits = np.asarray(logits, np.float64)
    return -log_softmax(logits, axis=1)[np.arange(len(logits)), labels]


def mean_nll(logits: Any, labels: Any, weights: Any = None) -> float:
    """Over the rows whose weight is not 0."""
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    some = weights > 0
    return float(np.average(losses(np.asarray(logits)[some], np.asarray(labels)[some]), weights=weights[some]))


def mean_entropy(logits: Any) -> float:
    """Of the rows, in nats."""
    log_p = log_softmax(np.asarray(logits, np.float64), axis=1)
    p = np.exp(log_p)
    return float(-np.sum(p * np.where(p > 0, log_p, 0.0), axis=1).mean())


def temperature(logits: Any, labels: Any, weights: Any = None) -> Temperature:
    """The root of the derivative of the mean loss by 1 / T, in a bracket of forty powers of e on either side."""
    z, labels = np.asarray(logits, np.float64), np.asarray(labels)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    z, labels, weights = z[weights > 0], labels[weights > 0], weights[weights > 0]
    d = z - z.max(axis=1, keepdims=True)
    present = ~np.isneginf(d)
    d = np.where(present, d, 0.0)
    unit = -d.min()
    d = d / unit
    label = d[np.arange(len(labels)), labels]

    def slope(log_inverse: float) -> float:
        terms = np.where(present, np.exp(np.exp(log_inverse) * d), 0.0)
        return float(weights @ ((terms * d).sum(1) / terms.sum(1) - label))

    if np.all(label == 0):
        return Temperature(None, "cold")
    if slope(-800.0) >= 0:
        return Temperature(None, "hot")
    return Temperature(float(unit * np.exp(-brentq(slope, -40.0, 40.0, xtol=1e-13, rtol=1e-14))), None)


def platt(scores: Any, labels: Any, weights: Any = None) -> np.ndarray:
    """Slope and intercept, with Platt's targets, from standardized scores."""
    s, labels = np.asarray(scores, np.float64), np.asarray(labels)
    weights = np.ones(len(s)) if weights is None else np.asarray(weights, np.float64)
    center = np.average(s, weights=weights)
    unit = np.sqrt(np.average((s - center) ** 2, weights=weights))
    x = (s - center) / unit
    ones, zeros = weights @ (labels == 1), weights @ (labels == 0)
    targets = np.where(labels == 1, (ones + 1) / (ones + 2), 1 / (zeros + 2))

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        u = line[0] * x + line[1]
        error = weights * (1 / (1 + np.exp(-u)) - targets)
        return float(weights @ (np.logaddexp(0, u) - targets * u)), np.array([error @ x, error.sum()])

    slope, intercept = minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-9}).x
    return np.array([slope / unit, intercept - slope * center / unit])


def features(logits: Any, kind: str) -> np.ndarray:
    """z - mean z, or log softmax(z), with 0 for absent classes."""
    z = np.asarray(logits, np.float64)
    present = ~np.isneginf(z)
    if kind == "dirichlet":
        return np.where(present, log_softmax(z, axis=1), 0.0)
    mean = np.where(present, z, 0.0).sum(1, keepdims=True) / present.sum(1, keepdims=True)
    return np.where(present, z - mean, 0.0)


def apply(logits: Any, kind: str, kernel: Any, bias: Any) -> np.ndarray:
    """Features times kernel, a diagonal if it has one axis, plus bias."""
    kernel = np.asarray(kernel, np.float64)
    out = features(logits, kind) @ (np.diag(kernel) if kernel.ndim == 1 else kernel) + np.asarray(bias, np.float64)
    return np.where(np.isneginf(np.asarray(logits)), -np.inf, out)


def affine(
    logits: Any, labels: Any, kind: str, penalties: tuple[float, float, float], weights: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of "vector", "matrix" or "dirichlet", around the temperature, from the definition."""
    z, labels = np.asarray(logits, np.float64), np.asarray(labels)
    weights = np.ones(len(z)) if weights is None else np.asarray(weights, np.float64)
    found = temperature(z, labels, weights)
    center = 1.0 if found.bound == "cold" else found.value
    x = features(z, kind) / center
    present = ~np.isneginf(z)
    unit = np.sqrt(np.sum(weights[:, None] * x**2) / np.sum(weights[:, None] * present))
    classes = z.shape[1]
    eye = np.eye(classes)
    strength = np.where(eye == 1, penalties[0], penalties[1])
    free = eye if kind == "vector" else np.ones_like(eye)
    hot = np.eye(classes)[labels]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        kernel, bias = free * flat[: classes**2].reshape(classes, classes), flat[classes**2 :]
        log_p = log_softmax(np.where(present, x + x / unit @ kernel + bias, -np.inf), axis=1)
        value = -weights @ log_p[np.arange(len(z)), labels]
        value += classes / 2 * (np.sum(strength * kernel**2) + penalties[2] * np.sum(bias**2))
        error = weights[:, None] * (np.exp(log_p) - hot)
        by_kernel = free * ((x / unit).T @ error + classes * strength * kernel)
        return value, np.concatenate([by_kernel.ravel(), error.sum(0) + classes * penalties[2] * bias])

    start = np.zeros(classes**2 + classes)
    options = {"maxiter": 10_000, "ftol": 1e-16, "gtol": 1e-9, "maxcor": 50}
    flat = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
    kernel = (eye + free * flat[: classes**2].reshape(classes, classes) / unit) / center
    return (np.diag(kernel) if kind == "vector" else kernel), flat[classes**2 :]
