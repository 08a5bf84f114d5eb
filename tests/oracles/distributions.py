"""Losses between distributions, entropies, smoothed labels and the weighted mean."""

from typing import Any, NamedTuple

import numpy as np
from mpmath import mp, mpf

from tests.oracles.exact import INF, ZERO, Exact, Row, Truth, per_class, per_row, precise, term, total


class DistributionTruth(NamedTuple):
    """The value [N]; the gradients with respect to logits [N, V], the other distribution [N, V] and temperature [N]."""

    value: Truth
    logits: Truth
    other: Truth
    temperature: Truth


def _rows(logits: Any, other: Any, cotangent: Any, where: Any, temperature: Any) -> Any:
    logits, other = np.asarray(logits), np.asarray(other)
    masks = per_class(where, logits.shape)
    temperatures = per_row(temperature, len(logits))
    upstream = per_row(1.0 if cotangent is None else cotangent, len(logits))
    for n in range(len(logits)):
        yield logits[n], other[n], None if masks is None else masks[n], temperatures[n], upstream[n]


@precise
def soft_cross_entropy(
    logits: Any,
    targets: Any,
    cotangent: Any = None,
    *,
    where: Any = None,
    temperature: Any = None,
    logit_cap: float | None = None,
) -> DistributionTruth:
    """-sum t log p, where t need not sum to 1, and 0 times -inf is 0.

    The gradient is p sum t - t; at a class with more than half of the mass, p times the other targets less t (1 - p).
    """
    values, by_logits, by_targets, by_temperature = [], [], [], []
    for logit_row, target_row, mask, t, g in _rows(logits, targets, cotangent, where, temperature):
        row = Row(logit_row, mask, t, logit_cap)
        target = [mpf(float(x)) for x in target_row]
        missing = any(target[j] > 0 for j in range(row.size) if j not in row.z)
        whole = mp.fsum(target[j] for j in row.present)
        loss = INF if missing else total(term(-target[j] * row.log_p[j]) for j in row.present).stretched(row.stretch)
        dz = {}
        for j in row.present:
            if row.p[j] > 0.5:
                slope = term(row.p[j] * (whole - target[j])) - term(target[j] * (1 - row.p[j]))
            else:
                slope = term(row.p[j] * whole) - term(target[j])
            dz[j] = slope * g
        values.append(loss)
        by_logits.append(row.by_logits(dz))
        by_targets.append(
            [term(-row.log_p[j] * g).stretched(row.stretch) if j in row.z else ZERO for j in range(row.size)]
        )
        by_temperature.append(row.by_temperature(dz))
    return DistributionTruth(*map(Truth.of, (values, by_logits, by_targets, by_temperature)))


@precise
def kl_divergence(
    logits: Any, target_logits: Any, cotangent: Any = None, *, where: Any = None, temperature: Any = None
) -> DistributionTruth:
    """sum t (log t - log p), with t and p the softmax of either row over the same temperature."""
    values, by_logits, by_targets, by_temperature = [], [], [], []
    for logit_row, target_row, mask, temperature_row, g in _rows(logits, target_logits, cotangent, where, temperature):
        model, target = Row(logit_row, mask, temperature_row), Row(target_row, mask, temperature_row)
        missing = any(j not in model.z for j in target.present)
        ratio = {j: term(target.log_p[j]) - term(model.log_p[j]) for j in target.present if j in model.z}
        divergence = total(ratio[j] * target.p[j] for j in ratio)
        dz = {j: (term(model.p[j]) - term(target.p.get(j, 0))) * g for j in model.present}
        du = {} if missing else {j: (ratio[j] - divergence) * (target.p[j] * g) for j in target.present}
        values.append(INF if missing else divergence)
        by_logits.append(model.by_logits(dz))
        by_targets.append(target.by_logits(du))
        by_temperature.append(model.by_temperature(dz) + target.by_temperature(du))
    return DistributionTruth(*map(Truth.of, (values, by_logits, by_targets, by_temperature)))


class EntropyTruth(NamedTuple):
    """The entropy [N]; the gradients with respect to logits [N, V] and temperature [N]."""

    value: Truth
    logits: Truth
    temperature: Truth


@precise
def entropy(
    logits: Any, cotangent: Any = None, *, where: Any = None, temperature: Any = None, base: float | None = None
) -> EntropyTruth:
    """-sum p log p, over log base."""
    unit = mpf(1) if base is None else 1 / mp.log(mpf(float(base)))
    values, by_logits, by_temperature = [], [], []
    for logit_row, _, mask, t, g in _rows(logits, logits, cotangent, where, temperature):
        row = Row(logit_row, mask, t)
        value = total(term(-row.p[j] * row.log_p[j]) for j in row.present)
        dz = {j: (term(-row.log_p[j]) - value) * (row.p[j] * unit * g) for j in row.present}
        values.append(value * unit)
        by_logits.append(row.by_logits(dz))
        by_temperature.append(row.by_temperature(dz))
    return EntropyTruth(*map(Truth.of, (values, by_logits, by_temperature)))


class SmoothedTruth(NamedTuple):
    """The smoothed targets and the gradient with respect to the targets, both [N, V]."""

    value: Truth
    targets: Truth


@precise
def smooth_labels(
    targets: Any, label_smoothing: float, cotangent: Any = None, *, where: Any = None, smoothing: str = "uniform"
) -> SmoothedTruth:
    """(1 - eps) t + eps / K over the present classes, or eps (1 - t) / (K - 1): what is taken goes to the others."""
    targets = np.asarray(targets)
    eps = mpf(float(label_smoothing))
    masks = np.ones(targets.shape, bool) if where is None else per_class(where, targets.shape)
    upstream = np.ones(targets.shape) if cotangent is None else np.asarray(cotangent)
    values, by_targets = [], []
    for target, mask, g in zip(targets, masks, upstream, strict=True):
        count = int(mask.sum())
        value, slopes = [], []
        for t, allowed, factor in zip(target, mask, g, strict=True):
            t = mpf(float(t))
            if not allowed:
                entry, slope = ZERO, ZERO
            elif smoothing == "uniform":
                entry, slope = term((1 - eps) * t) + term(eps / count), term(1 - eps)
            elif count == 1:
                entry, slope = term(t), term(1)
            else:
                entry = term((1 - eps) * t) + term(eps / (count - 1)) + term(-eps * t / (count - 1))
                slope = term(1 - eps) - term(eps / (count - 1))
            value.append(entry)
            slopes.append(slope * mpf(float(factor)))
        values.append(value)
        by_targets.append(slopes)
    return SmoothedTruth(Truth.of(values), Truth.of(by_targets))


class MeanTruth(NamedTuple):
    """The mean, a scalar, and its gradients with respect to values and weights."""

    value: Truth
    values: Truth
    weights: Truth


@precise
def weighted_mean(values: Any, weights: Any, cotangent: float = 1.0) -> MeanTruth:
    """sum w v / sum w; 0 where the weights sum to 0; a value of weight 0 takes no part, whatever it is."""
    values, weights = np.asarray(values), np.asarray(weights)
    shape = values.shape
    g = mpf(float(cotangent))
    pairs = [(mpf(float(v)), mpf(float(w))) for v, w in zip(values.ravel(), weights.ravel(), strict=True)]
    whole = mp.fsum(w for _, w in pairs)
    if whole == 0:
        nothing = Truth.of([ZERO] * len(pairs)).map(lambda x: x.reshape(shape))
        return MeanTruth(Truth.of(ZERO), nothing, nothing)
    mean: Exact = total(term(v * w) for v, w in pairs if w != 0) * (1 / whole)
    by_values = [term(g * w / whole) for _, w in pairs]
    by_weights = [(term(v) - mean) * (g / whole) if mp.isfinite(v) else ZERO for v, _ in pairs]
    return MeanTruth(
        Truth.of(mean),
        Truth.of(by_values).map(lambda x: x.reshape(shape)),
        Truth.of(by_weights).map(lambda x: x.reshape(shape)),
    )
