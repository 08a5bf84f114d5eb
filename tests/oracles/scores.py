"""Uncertainty scores of rows of logits: values and gradients from the formulas, in arbitrary precision."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from mpmath import mp, mpf

from tests.oracles.exact import ZERO, Exact, Row, Truth, per_class, per_row, precise, term, total

Formula = Callable[[Row], tuple[Exact, dict[int, Exact]]]


class ScoreTruth(NamedTuple):
    """The score [N]; the gradients with respect to logits [N, V] and temperature [N]."""

    value: Truth
    logits: Truth
    temperature: Truth


def _ranked(row: Row) -> list[int]:
    """The classes present, the most probable first, of equal ones the first."""
    return sorted(row.present, key=lambda j: (-row.z[j], j))


def _slope(row: Row, a: int, j: int) -> mpf:
    """dp_a / dz_j = p_a (1[a = j] - p_j)."""
    return row.p[a] * ((1 if a == j else 0) - row.p[j])


def _lacking(row: Row) -> tuple[Exact, dict[int, Exact]]:
    """1 - max p; 1 where there is no class."""
    if not row.present:
        return term(1), {}
    top = _ranked(row)[0]
    return term(1 - row.p[top]), {j: term(-_slope(row, top, j)) for j in row.present}


def _margin(row: Row) -> tuple[Exact, dict[int, Exact]]:
    """1 - (p_1 - p_2), with p_2 = 0 where there is one class."""
    value, dz = _lacking(row)
    if len(row.present) > 1:
        second = _ranked(row)[1]
        value = value + term(row.p[second])
        dz = {j: dz[j] + term(_slope(row, second, j)) for j in row.present}
    return value, dz


def _gini(row: Row) -> tuple[Exact, dict[int, Exact]]:
    """1 - sum p^2, whose gradient is the sum over pairs -2 p_j p_k (p_j - p_k)."""
    value = total(term(row.p[j] * (1 - row.p[j])) for j in row.present)
    dz = {j: total(term(-2 * row.p[j] * row.p[k] * row.p[j]) for k in row.present if k != j) for j in row.present}
    for j in row.present:
        dz[j] = dz[j] + total(term(2 * row.p[j] * row.p[k] * row.p[k]) for k in row.present if k != j)
    return value, dz


def _generalized_entropy(gamma: float, k: int | None) -> Formula:
    """The sum of (p (1 - p))^gamma over the k most probable classes."""
    power = mpf(gamma)

    def formula(row: Row) -> tuple[Exact, dict[int, Exact]]:
        chosen = _ranked(row)[:k]
        missing = {j: mp.fsum(row.p[i] for i in row.present if i != j) for j in chosen}
        terms = {j: (row.p[j] * missing[j]) ** power if missing[j] else mpf(0) for j in chosen}
        # d log p_a and d log(1 - p_a) = -p_a / (1 - p_a) d log p_a, with d log p_a / dz_j = 1[a = j] - p_j
        up = {a: power * terms[a] for a in chosen}
        down = {a: power * terms[a] * row.p[a] / missing[a] if missing[a] else mpf(0) for a in chosen}
        dz = {}
        for j in row.present:
            slopes = {a: missing[j] if a == j else -row.p[j] for a in chosen}
            dz[j] = total(term(up[a] * slopes[a]) + term(-down[a] * slopes[a]) for a in chosen)
        return total(term(terms[j]) for j in chosen), dz

    return formula


@precise
def score(
    logits: Any,
    name: str,
    cotangent: Any = None,
    *,
    where: Any = None,
    temperature: Any = None,
    gamma: float = 0.1,
    k: int | None = None,
) -> ScoreTruth:
    """The score of this name and its gradients under the cotangent."""
    formulas: dict[str, Formula] = {
        "max_probability": _lacking,
        "margin": _margin,
        "gini": _gini,
        "generalized_entropy": _generalized_entropy(gamma, k),
    }
    logits = np.asarray(logits)
    masks, temperatures = per_class(where, logits.shape), per_row(temperature, len(logits))
    upstream = per_row(1.0 if cotangent is None else cotangent, len(logits))
    values, by_logits, by_temperature = [], [], []
    for n in range(len(logits)):
        row = Row(logits[n], None if masks is None else masks[n], temperatures[n])
        value, dz = formulas[name](row)
        dz = {j: slope * upstream[n] for j, slope in dz.items()}
        values.append(value)
        by_logits.append(row.by_logits(dz))
        by_temperature.append(row.by_temperature(dz) if row.present else ZERO)
    return ScoreTruth(*map(Truth.of, (values, by_logits, by_temperature)))
