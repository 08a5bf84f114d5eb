"""One row of very many classes in float64, for float32 results.

Every exponential is right to a few units of 1e-16 relative to itself, sums are correctly rounded (`math.fsum`) and of
one sign, and the classes other than the largest are summed by themselves: nothing cancels, so all of it is right to
1e-12, a ten-thousandth of what float32 may err by.
"""

import math

import numpy as np

from tests.oracles.exact import Truth


def normalizer(name: str, logits: np.ndarray, cotangent: np.ndarray) -> tuple[Truth, Truth]:
    """The value and the gradient of softmax, log_softmax, logsumexp or smooth_max (at T = 1)."""
    logits, cotangent = np.asarray(logits, np.float64), np.asarray(cotangent, np.float64)
    top = int(np.argmax(logits))
    scaled = logits - logits[top]
    terms = np.exp(scaled)
    others = math.fsum(np.delete(terms, top))
    p, missing = terms / (1 + others), (1 + others - terms) / (1 + others)
    missing[top] = others / (1 + others)
    if name == "softmax":
        g = cotangent - (cotangent[top] if p[top] > 0.5 else 0.0)
        gradient = Truth(p * (g - math.fsum(p * g)), p * (np.abs(g) + math.fsum(p * np.abs(g))))
        return Truth(p, p), gradient
    if name == "log_softmax":
        rest = math.fsum(np.delete(cotangent, top))
        own = cotangent * missing
        g = np.where(np.arange(len(p)) == top, rest, rest + cotangent[top] - cotangent)
        size = np.abs(own) + p * (math.fsum(np.abs(cotangent)) - np.abs(cotangent))
        value = scaled - math.log1p(others)
        return Truth(value, np.abs(value)), Truth(own - p * g, size)
    value = np.float64(logits[top] + math.log1p(others))
    return Truth(value, abs(logits[top]) + math.log1p(others)), Truth(cotangent * p, np.abs(cotangent) * p)


def cross_entropy(logits: np.ndarray, label: int) -> tuple[Truth, Truth]:
    """The loss of one row and its gradient."""
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max()
    rest = math.log(math.fsum(np.exp(np.delete(logits, label))))
    odds = logits[label] - rest
    loss = np.float64(np.logaddexp(0.0, -odds))
    gradient = np.exp(logits - rest - np.logaddexp(0.0, odds))
    gradient[label] = -1 / (1 + np.exp(odds))
    return Truth(loss, np.abs(loss)), Truth(gradient, np.abs(gradient))
