"""The row statistics and what is derived from them."""

from typing import Any, NamedTuple

import numpy as np
from mpmath import mp, mpf

from tests.oracles.exact import INF, ZERO, Exact, Row, Truth, per_class, per_row, precise, term, total


class StatisticsTruth(NamedTuple):
    """Every field and property [N], and the gradients of a weighted sum of target, rest and mean."""

    fields: dict[str, Truth]
    logits: Truth
    temperature: Truth


@precise
def row_statistics(
    logits: Any,
    labels: Any,
    cotangent: Any,
    *,
    where: Any = None,
    temperature: Any = None,
    logit_cap: float | None = None,
) -> StatisticsTruth:
    """target = z_y - m, rest = log sum of the other exp(z - m), mean of z - m, and shift = m = max z.

    `cotangent` holds three arrays [N], for target, rest and mean.
    """
    logits = np.asarray(logits)
    masks = per_class(where, logits.shape)
    temperatures = per_row(temperature, len(logits))
    fields: dict[str, list[Exact]] = {}
    by_logits, by_temperature = [], []
    for n, label in enumerate(np.asarray(labels)):
        row = Row(logits[n], None if masks is None else masks[n], temperatures[n], logit_cap)
        by_target, by_rest, by_mean = (mpf(float(c[n])) for c in cotangent)
        for name, value in _fields(row, int(label)).items():
            fields.setdefault(name, []).append(value.stretched(1 if name == "classes" else row.stretch))
        others = mp.fsum(row.terms[j] for j in row.present if j != label)
        dz = {}
        for j in row.present:
            if j == label:
                own = term(by_target)
            else:  # exp(z - m - rest), and rest is a field, which comes rounded
                own = term(by_rest * row.terms[j] / others).stretched(1 + abs(mp.log(others)))
            dz[j] = own + term(by_mean / len(row.present))
        by_logits.append(row.by_logits(dz))
        moment = total(dz[j] * term(row.z[j] - row.top) for j in dz).stretched(row.stretch)
        by_temperature.append(moment * (-1 / row.temperature))
    return StatisticsTruth(
        {name: Truth.of(values) for name, values in fields.items()}, Truth.of(by_logits), Truth.of(by_temperature)
    )


def _fields(row: Row, label: int) -> dict[str, Exact]:
    others = [j for j in row.present if j != label]
    target = term(row.z[label] - row.top) if label in row.z else -INF
    rest = -INF
    if others:
        # What follows sees exp(rest): an absolute error of the logarithm is a relative one there; 1 counts as a term.
        value = mp.log(mp.fsum(row.terms[j] for j in others))
        rest = Exact(value, 1 + abs(value))
    mean = total(term(value - row.top) for value in row.z.values()) * (mpf(1) / max(len(row.present), 1))
    prob = row.p.get(label, mpf(0))
    return {
        "target": target,
        "rest": rest,
        "mean": mean,
        "shift": term(row.top) if row.present else -INF,
        "classes": term(len(row.present)),
        "log_odds": target - rest if others and label in row.z else INF if label in row.z else -INF,
        "log_normalizer": row.log_normalizer,
        "log_prob": term(row.log_p[label]) if label in row.z else -INF,
        "prob": term(prob),
        "error_prob": term(1 - prob) if row.present else ZERO,
    }
