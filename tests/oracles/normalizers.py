"""Softmax, its logarithm, log-sum-exp and the smooth maximum, with their gradients under a cotangent."""

from typing import Any, NamedTuple

import numpy as np
from mpmath import mp, mpf

from tests.oracles.exact import INF, ZERO, Exact, Row, Truth, per_class, per_row, precise, term, total


class NormalizerTruth(NamedTuple):
    """The value, and the gradients with respect to the logits [N, V], the temperature [N] and the weights [N, V]."""

    value: Truth
    logits: Truth
    temperature: Truth
    weights: Truth | None = None


def _rows(logits: Any, where: Any, temperature: Any, cotangent: Any) -> Any:
    logits = np.asarray(logits)
    masks = per_class(where, logits.shape)
    temperatures = per_row(temperature, len(logits))
    for n, row in enumerate(logits):
        upstream = np.ones(logits.shape[1]) if cotangent is None else np.asarray(cotangent)[n]
        yield Row(row, None if masks is None else masks[n], temperatures[n]), upstream


@precise
def softmax(logits: Any, cotangent: Any = None, *, where: Any = None, temperature: Any = None) -> NormalizerTruth:
    """p; the gradient p (g - sum p g).

    The magnitude of the gradient's terms is taken after the cotangent of a class with more than half of the mass has
    been subtracted, which changes nothing else: otherwise the terms of such a class would cancel.
    """
    values, by_logits, by_temperature = [], [], []
    for row, upstream in _rows(logits, where, temperature, cotangent):
        g = {j: mpf(float(upstream[j])) for j in row.present}
        centre = next((g[j] for j in row.present if row.p[j] > 0.5), mpf(0))
        mean = total(term(row.p[j] * (g[j] - centre)) for j in row.present)
        dz = {j: (term(g[j] - centre) - mean) * row.p[j] for j in row.present}
        values.append([term(row.p.get(j, 0)) for j in range(row.size)])
        by_logits.append(row.by_logits(dz))
        by_temperature.append(row.by_temperature(dz))
    return NormalizerTruth(Truth.of(values), Truth.of(by_logits), Truth.of(by_temperature))


@precise
def log_softmax(logits: Any, cotangent: Any = None, *, where: Any = None, temperature: Any = None) -> NormalizerTruth:
    """log p; the gradient g (1 - p) - p times the sum of the other g. Absent classes are constants, -inf."""
    values, by_logits, by_temperature = [], [], []
    for row, upstream in _rows(logits, where, temperature, cotangent):
        g = {j: mpf(float(upstream[j])) for j in row.present}
        whole = total(term(g[j]) for j in row.present)
        dz = {}
        for j in row.present:
            others = Exact(whole.value - g[j], whole.magnitude - abs(g[j]))
            dz[j] = term(g[j] * (1 - row.p[j])) - others * row.p[j]
        values.append([term(row.log_p[j]) if j in row.log_p else -INF for j in range(row.size)])
        by_logits.append(row.by_logits(dz))
        by_temperature.append(row.by_temperature(dz))
    return NormalizerTruth(Truth.of(values), Truth.of(by_logits), Truth.of(by_temperature))


@precise
def logsumexp(
    logits: Any, cotangent: Any = None, *, where: Any = None, weights: Any = None, temperature: Any = None
) -> NormalizerTruth:
    """log sum w exp z; the gradients g w exp(z) / sum, and g exp(z) / sum by w. A weight of 0 is absence."""
    logits = np.asarray(logits)
    shape = logits.shape
    w = np.ones(shape) if weights is None else per_class(np.asarray(weights, np.float64), shape)
    allowed = np.ones(shape, bool) if where is None else per_class(where, shape)
    cotangent = np.ones(len(logits)) if cotangent is None else np.asarray(cotangent, np.float64)
    temperatures = per_row(temperature, len(logits))
    values, by_logits, by_temperature, by_weights = [], [], [], []
    for n in range(len(logits)):
        row = Row(logits[n], allowed[n] & (w[n] != 0), temperatures[n])
        offered = Row(logits[n], allowed[n], temperatures[n])
        g = mpf(float(cotangent[n]))
        if not row.present:
            values.append(-INF)
            dz, dw = {}, [ZERO] * row.size
        else:
            whole = total(term(mpf(float(w[n, j])) * row.terms[j]) for j in row.present)
            condition = whole.magnitude / abs(whole.value)
            values.append(term(row.top) + Exact(mp.log(whole.value), abs(mp.log(whole.value)) + condition - 1))
            dz = {
                j: term(g * mpf(float(w[n, j])) * row.terms[j] / whole.value).stretched(condition) for j in row.present
            }
            dw = [
                term(g * mp.exp(offered.z[j] - row.top) / whole.value).stretched(condition) if j in offered.z else ZERO
                for j in range(row.size)
            ]
        by_logits.append(row.by_logits(dz))
        by_temperature.append(row.by_temperature(dz))
        by_weights.append(dw)
    return NormalizerTruth(Truth.of(values), Truth.of(by_logits), Truth.of(by_temperature), Truth.of(by_weights))


@precise
def smooth_max(logits: Any, cotangent: Any = None, *, where: Any = None, temperature: Any = 1.0) -> NormalizerTruth:
    """T log sum exp(x / T); the gradients g p, and with respect to T the entropy of p."""
    logits = np.asarray(logits)
    masks = per_class(where, logits.shape)
    cotangent = np.ones(len(logits)) if cotangent is None else np.asarray(cotangent, np.float64)
    values, by_logits, by_temperature = [], [], []
    for n, t in enumerate(per_row(temperature, len(logits))):
        row = Row(logits[n], None if masks is None else masks[n], t)
        g = mpf(float(cotangent[n]))
        top = max((mpf(float(logits[n, j])) for j in row.present), default=-mp.inf)
        values.append(term(top) + term(t * mp.log(row.sum)) if row.present else -INF)
        by_logits.append([term(g * row.p[j]) if j in row.p else ZERO for j in range(row.size)])
        by_temperature.append(term(-g * mp.fsum(row.p[j] * row.log_p[j] for j in row.present)))
    return NormalizerTruth(Truth.of(values), Truth.of(by_logits), Truth.of(by_temperature))
