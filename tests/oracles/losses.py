"""The losses on logits, each from its definition, with the gradients with respect to everything that is differentiable.

A formula sees one `Row` of effective logits z and gives the loss and dz; the logits, the temperature and the cap are
reached by the chain rule in `exact.Row`. Where a margin is subtracted inside of an exponential, the rounding of that
difference is an error relative to its terms, and the magnitudes say so.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from mpmath import mp, mpf

from tests.oracles.exact import INF, NAN, ZERO, Exact, Row, Truth, per_class, per_row, precise, term, total

Formula = Callable[[Row, int], tuple[Exact, dict[int, Exact]]]


class LossTruth(NamedTuple):
    """The loss [N], and the gradients with respect to the logits [N, V] and the temperature [N]."""

    loss: Truth
    logits: Truth
    temperature: Truth


def _labelled(
    formula: Formula,
    logits: Any,
    labels: Any,
    cotangent: Any,
    *,
    where: Any = None,
    temperature: Any = None,
    logit_cap: float | None = None,
    ignore_label: int | None = None,
    factors: Any = None,
) -> LossTruth:
    """Row by row; `factors` [N] multiplies the loss, with its gradients, before the cotangent does."""
    logits, labels = np.asarray(logits), np.asarray(labels)
    rows, classes = logits.shape
    masks = per_class(where, logits.shape)
    temperatures = per_row(temperature, rows)
    cotangents = per_row(1.0 if cotangent is None else cotangent, rows)
    factors = per_row(1.0 if factors is None else factors, rows)
    losses, by_logits, by_temperature = [], [], []
    for n in range(rows):
        label = int(labels[n])
        row = Row(logits[n], None if masks is None else masks[n], temperatures[n], logit_cap)
        if ignore_label is not None and label == ignore_label:
            loss, dz = ZERO, {}
        elif not 0 <= label < classes:
            losses.append(NAN)
            by_logits.append([NAN] * classes)
            by_temperature.append(NAN)
            continue
        else:
            loss, dz = formula(row, label)
        upstream = cotangents[n] * factors[n]
        dz = {j: g * upstream for j, g in dz.items()}
        losses.append((loss * factors[n]).stretched(row.stretch))
        by_logits.append(row.by_logits(dz))
        by_temperature.append(row.by_temperature(dz))
    return LossTruth(Truth.of(losses), Truth.of(by_logits), Truth.of(by_temperature))


def _absent_label(row: Row) -> tuple[Exact, dict[int, Exact]]:
    """The label's class is absent: the loss is infinite; the others keep their probabilities as gradient."""
    return INF, {j: term(p) for j, p in row.p.items()}


def _by_log_odds(value: mpf, slope: mpf, row: Row, label: int, condition: Any = 1) -> tuple[Exact, dict[int, Exact]]:
    """A loss of the log-odds d alone: dz is dL/dd at the label, its opposite, shared by mass, at the others."""
    others = mp.fsum(row.terms[j] for j in row.present if j != label)
    dz = {j: term(-slope * row.terms[j] / others).stretched(condition) for j in row.present if j != label}
    dz[label] = term(slope).stretched(condition)
    return term(value).stretched(condition), dz


@precise
def cross_entropy(
    logits: Any,
    labels: Any,
    cotangent: Any = None,
    *,
    label_smoothing: float = 0.0,
    smoothing: str = "uniform",
    z_loss: float = 0.0,
    class_weights: Any = None,
    **options: Any,
) -> LossTruth:
    """-sum q log p + z_loss (log sum exp z)^2, with q the label mixed with the other classes.

    The class weight multiplies the cross entropy, not the z-loss.
    """
    eps, lam = mpf(float(label_smoothing)), mpf(float(z_loss))
    weights = np.ones(np.shape(logits)[1]) if class_weights is None else np.asarray(class_weights, np.float64)

    def formula(row: Row, label: int) -> tuple[Exact, dict[int, Exact]]:
        weight = mpf(float(weights[label]))
        if label not in row.z:
            loss, dz = _absent_label(row)
            dz = {j: g * weight for j, g in dz.items()}
        else:
            q = _mixed(row.present, label, eps, smoothing)
            loss = total(term(-q[j] * row.log_p[j]) for j in row.present) * weight
            dz = {j: (term(row.p[j]) - term(q[j])) * weight for j in row.present if j != label}
            dz[label] = (term(row.p[label] - 1) + term(1 - q[label])) * weight
        if lam:
            normalizer = row.log_normalizer
            loss = loss + normalizer * normalizer * lam
            dz = {j: g + _normalizer_slope(row, j) * lam for j, g in dz.items()}
        return loss, dz

    return _labelled(formula, logits, labels, cotangent, **options)


def _normalizer_slope(row: Row, j: int) -> Exact:
    """2 p_j log sum exp z: a large number times a probability, which may err by its own logarithm."""
    return (row.log_normalizer * (2 * row.p[j])).stretched(1 - row.log_p[j])


def _mixed(present: list[int], label: int, eps: mpf, smoothing: str) -> dict[int, mpf]:
    """One-hot targets mixed with the uniform distribution over all present classes, or over the others only."""
    count = len(present)
    if smoothing == "uniform":
        return {j: eps / count + (1 - eps if j == label else 0) for j in present}
    if count == 1:
        return {label: mpf(1)}
    return {j: 1 - eps if j == label else eps / (count - 1) for j in present}


@precise
def z_loss(logits: Any, labels: Any, cotangent: Any = None, **options: Any) -> LossTruth:
    """(log sum exp z)^2."""

    def formula(row: Row, label: int) -> tuple[Exact, dict[int, Exact]]:
        normalizer = row.log_normalizer
        return normalizer * normalizer, {j: _normalizer_slope(row, j) for j in row.present}

    return _labelled(formula, logits, labels, cotangent, **options)


@precise
def focal_loss(
    logits: Any, labels: Any, cotangent: Any = None, *, gamma: float = 2.0, alpha: Any = None, **options: Any
) -> LossTruth:
    """-alpha_y (1 - p_y)^gamma log p_y."""
    power = mpf(float(gamma))

    def formula(row: Row, label: int) -> tuple[Exact, dict[int, Exact]]:
        if label not in row.z:
            return _absent_label(row)
        p, log_p = row.p[label], row.log_p[label]
        if p == 1:
            return ZERO, {label: ZERO}
        modulation = (1 - p) ** power
        return _by_log_odds(-modulation * log_p, -modulation * (1 - p - power * p * log_p), row, label)

    if alpha is not None:
        alpha = np.broadcast_to(np.asarray(alpha, np.float64), np.shape(logits)[1])
        options["factors"] = alpha[np.asarray(labels)]
    return _labelled(formula, logits, labels, cotangent, **options)


@precise
def poly_loss(logits: Any, labels: Any, cotangent: Any = None, *, epsilon: float = 1.0, **options: Any) -> LossTruth:
    """-log p_y + epsilon (1 - p_y)."""
    eps = mpf(float(epsilon))

    def formula(row: Row, label: int) -> tuple[Exact, dict[int, Exact]]:
        if label not in row.z:
            return _absent_label(row)
        p, log_p = row.p[label], row.log_p[label]
        return _by_log_odds(-log_p + eps * (1 - p), -(1 - p) * (1 + eps * p), row, label)

    return _labelled(formula, logits, labels, cotangent, **options)


@precise
def additive_margin(
    logits: Any, labels: Any, cotangent: Any = None, *, margin: float = 0.35, scale: float = 64.0, **options: Any
) -> LossTruth:
    """CosFace: the cross entropy after scale * margin is taken from the labelled logit."""
    shift = mpf(float(margin)) * mpf(float(scale))

    def formula(row: Row, label: int) -> tuple[Exact, dict[int, Exact]]:
        return _moved_target(row, label, row.z[label] - shift, mpf(1), abs(shift))

    return _labelled(formula, logits, labels, cotangent, **options)


@precise
def angular_margin(
    logits: Any, labels: Any, cotangent: Any = None, *, margin: float = 0.5, scale: float = 64.0, **options: Any
) -> LossTruth:
    """ArcFace: the labelled logit s cos(theta) becomes s cos(theta + m), or s (cos(theta) - m sin m) beyond pi."""
    m, s = mpf(float(margin)), mpf(float(scale))

    def formula(row: Row, label: int) -> tuple[Exact, dict[int, Exact]]:
        cosine = row.z[label] / s
        angle = mp.acos(cosine)
        if angle + m <= mp.pi:
            moved, slope = s * mp.cos(angle + m), mp.sin(angle + m) / mp.sin(angle)
        else:
            moved, slope = s * (cosine - m * mp.sin(m)), mpf(1)
        # The cosine comes rounded, and 1 / sin(theta) and cos(theta + m) stretch its error.
        return _moved_target(row, label, moved, slope, s * max(1, slope))

    return _labelled(formula, logits, labels, cotangent, **options)


def _moved_target(row: Row, label: int, moved: mpf, slope: mpf, size: mpf) -> tuple[Exact, dict[int, Exact]]:
    """The cross entropy with another logit at the label: `slope` is its derivative, `size` that of its terms.

    The log-odds are a difference of numbers of this size; their absolute error is the relative error of what follows.
    """
    others = mp.fsum(row.terms[j] for j in row.present if j != label)
    if others == 0:
        return ZERO, {label: ZERO}
    odds = moved - row.top - mp.log(others)
    loss = mp.log1p(mp.exp(-odds))
    error = 1 / (1 + mp.exp(odds))
    value, dz = _by_log_odds(loss, -error, row, label, 1 + size + abs(odds))
    dz[label] = dz[label] * slope
    return value, dz


@precise
def hinge_loss(
    logits: Any,
    labels: Any,
    cotangent: Any = None,
    *,
    margin: float = 1.0,
    variant: str = "crammer_singer",
    where: Any = None,
    ignore_label: int | None = None,
) -> tuple[LossTruth, Truth]:
    """max(0, max_j a_j) or sum_j max(0, a_j), with a_j = m + z_j - z_y over the other classes; the gradients by m [N].

    The slope of a maximum is shared by the classes that attain it, and is 0 at the kink.
    """
    m = mpf(float(margin))
    by_margin = []

    def formula(row: Row, label: int) -> tuple[Exact, dict[int, Exact]]:
        others = [j for j in row.present if j != label]
        if label not in row.z:
            violations = {j: m + row.z[j] for j in others}
            loss = INF
        else:
            violations = {j: m + row.z[j] - row.z[label] for j in others}
            loss = None
        broken = [j for j in others if violations[j] > 0]
        if variant == "crammer_singer" and broken:
            worst = max(violations[j] for j in broken)
            broken = [j for j in broken if violations[j] == worst]
        share = mpf(1) / (len(broken) if variant == "crammer_singer" and broken else 1)
        if loss is None:
            loss = total((term(m) + term(row.z[j] - row.z[label])) * share for j in broken)
        dz = {j: term(share) for j in broken}
        dz[label] = term(-share * len(broken)) if label in row.z else ZERO
        by_margin.append(term(share * len(broken)))
        return loss, dz

    truth = _labelled(formula, logits, labels, cotangent, where=where, ignore_label=ignore_label)
    return truth, Truth.of(by_margin)


def _binary(logits: Any, labels: Any, cotangent: Any, formula: Callable[..., tuple[Exact, ...]]) -> list[Truth]:
    """Elementwise: formula(x, label) -> (loss, d loss / dx, ...); everything after the loss times the cotangent."""
    logits = np.asarray(logits)
    labels = np.broadcast_to(np.asarray(labels), logits.shape)
    cotangent = np.ones(logits.shape) if cotangent is None else np.asarray(cotangent)
    entries = []
    for x, label, g in zip(logits.ravel(), labels.ravel(), cotangent.ravel(), strict=True):
        loss, *slopes = formula(mpf(float(x)), mpf(float(label)))
        entries.append([loss, *(slope * mpf(float(g)) for slope in slopes)])
    return [
        Truth.of([entry[k] for entry in entries]).map(lambda x: x.reshape(logits.shape)) for k in range(len(entries[0]))
    ]


class BinaryTruth(NamedTuple):
    """Elementwise: the loss and the gradients with respect to logits, labels and (where there is one) weight."""

    loss: Truth
    logits: Truth
    labels: Truth
    weight: Truth | None = None


def _softplus(x: mpf) -> mpf:
    return mp.log1p(mp.exp(x))


def _sigmoid(x: mpf) -> mpf:
    return 1 / (1 + mp.exp(-x))


@precise
def binary_cross_entropy(
    logits: Any, labels: Any, cotangent: Any = None, *, positive_weight: float = 1.0
) -> BinaryTruth:
    """w y log(1 + exp(-x)) + (1 - y) log(1 + exp x)."""
    w = mpf(float(positive_weight))

    def formula(x: mpf, y: mpf) -> tuple[Exact, ...]:
        loss = term(w * y * _softplus(-x)) + term((1 - y) * _softplus(x))
        slope = term(-w * y * _sigmoid(-x)) + term((1 - y) * _sigmoid(x))
        return loss, slope, term(w * _softplus(-x)) - term(_softplus(x)), term(y * _softplus(-x))

    return BinaryTruth(*_binary(logits, labels, cotangent, formula))


@precise
def sigmoid_focal_loss(
    logits: Any, labels: Any, cotangent: Any = None, *, gamma: float = 2.0, alpha: float | None = None
) -> BinaryTruth:
    """a y (1 - s)^gamma (-log s) + (1 - a) (1 - y) s^gamma (-log(1 - s)), s = sigmoid(x); no weights without alpha."""
    power = mpf(float(gamma))
    positive, negative = (mpf(1), mpf(1)) if alpha is None else (mpf(float(alpha)), 1 - mpf(float(alpha)))

    def side(x: mpf) -> tuple[mpf, mpf]:
        """The loss of being wrong at log-odds x, and its slope."""
        wrong, loss = _sigmoid(x), _softplus(x)
        return wrong**power * loss, wrong**power * (power * _sigmoid(-x) * loss + wrong)

    def formula(x: mpf, y: mpf) -> tuple[Exact, ...]:
        missed, missed_slope = side(-x)
        found, found_slope = side(x)
        loss = term(positive * y * missed) + term(negative * (1 - y) * found)
        slope = term(-positive * y * missed_slope) + term(negative * (1 - y) * found_slope)
        return loss, slope, term(positive * missed) - term(negative * found)

    return BinaryTruth(*_binary(logits, labels, cotangent, formula))
