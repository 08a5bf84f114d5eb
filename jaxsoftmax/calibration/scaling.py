"""Temperature scaling: calibration by one number, found wherever there is one, at any scale of the logits."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftmax._core import arrays, calls, checks, rules, scalars
from jaxsoftmax._core.meshes import Axes
from jaxsoftmax.calibration import inputs
from jaxsoftmax.losses import cross_entropy, weighted_mean

__all__ = ["TemperatureScaling", "apply_temperature", "fit_temperature"]


class TemperatureScaling(NamedTuple):
    """A temperature for logits, and how it was found.

    Attributes:
        temperature: T > 0, finite, a scalar, float32 or wider: the logits are divided by it.
        nll_before: The mean negative log-likelihood of the rows at T = 1, in nats.
        nll_after: The same at T.
        converged: Whether T is right, be it a minimum or a bound; False where the solver reached its last iteration, or
            where T is NaN.
        at_bound: Whether the likelihood has no maximum at any T in range, and T is the bound towards which it grows.
    """

    temperature: jax.Array
    nll_before: jax.Array
    nll_after: jax.Array
    converged: jax.Array
    at_bound: jax.Array


def fit_temperature(
    logits: ArrayLike, labels: ArrayLike, *, weights: ArrayLike | None = None, where: ArrayLike | None = None
) -> TemperatureScaling:
    """The temperature of the largest likelihood: where the mean negative log-likelihood equals the mean entropy.

    argmin over T of  Σᵢ wᵢ · -log softmax(zᵢ / T)[yᵢ]

    Args:
        logits: z, [..., V], floating; all axes but the last are rows, at least one.
        labels: y, [...], integers in [0, V).
        weights: w, [...], ≥ 0, how much each row counts; 1 by default. A row of weight 0 may hold anything.
        where: Which classes are present: boolean, of the shape of the logits or [V].

    Returns:
        TemperatureScaling with scalar fields; `jax.vmap` over logits and labels fits many models at once.

    Raises:
        TypeError: The logits are not floating, the labels not integers, or the mask not boolean.
        ValueError: There are no rows or no classes, a shape does not fit, or a label or weight that can be seen is out
            of range; under jit, such a label or weight makes the result NaN.

    Numerics:
        T is right to 1e-4 relative for logits of any scale, where the mean logit of the labels is above that of all
        classes by a hundredth of a spread or more (a spread is the root of the mean variance within the rows). Without
        a maximum there are two bounds. Where every label is a largest logit of its row, T → 0: T is 1/100 of the
        smallest gap below a largest logit, which leaves e⁻¹⁰⁰ to the other classes. Where the labels have no larger
        logits than other classes, T → ∞: T is 10⁴ spreads, as also where a maximum lies beyond. Where all logits of
        each row are equal, or no row counts, T is 1, converged and not at a bound. A row whose labelled class is absent
        costs +inf at any T, and takes no part in the choice of it. +inf or NaN in a row that counts makes T NaN.

    Gradient:
        By the implicit function theorem, with f = Σᵢ wᵢ (Σⱼ pᵢⱼ zᵢⱼ - zᵢ[yᵢ]) and the variances of z under p:
        dT = T² df / Σᵢ wᵢ Varᵢ at fixed T; 0 at a bound. All modes, of any order, forward
        mode inside of `jaxsoftmax.forward_mode()`. nll_after has the gradient of the loss at fixed T, since that by T
        is 0.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> logits = jnp.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
        >>> fit = jaxsoftmax.calibration.fit_temperature(logits, jnp.array([0, 0, 1, 1]))
        >>> print(f"{fit.temperature:.4f} {fit.nll_before:.4f} {fit.nll_after:.4f}")
        3.6410 1.0181 0.5623

    References:
        C. Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    name = "calibration.fit_temperature"
    return solve_temperature(fit_rows(name, logits, labels, weights, where))


def apply_temperature(logits: ArrayLike, calibrator: TemperatureScaling) -> jax.Array:
    """The logits divided by the temperature; their softmax are the calibrated probabilities.

    z / T

    Args:
        logits: z, [..., V], floating.
        calibrator: From `fit_temperature`.

    Returns:
        [..., V], float32 or wider; -inf stays -inf.

    Raises:
        TypeError: The logits are not floating, or the calibrator is another.

    Gradient:
        1 / T by the logits, -z / T² by the temperature. All modes.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> logits = jnp.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
        >>> fit = jaxsoftmax.calibration.fit_temperature(logits, jnp.array([0, 0, 1, 1]))
        >>> print(jnp.round(jaxsoftmax.softmax(jaxsoftmax.calibration.apply_temperature(logits[0], fit)), 2))
        [0.75 0.25]

    References:
        C. Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    name = "calibration.apply_temperature"
    logits = checks.floating(name, logits=logits)
    made_by(name, calibrator, TemperatureScaling, "fit_temperature")
    dtype = arrays.common_dtype(arrays.compute_dtype(logits.dtype), calibrator.temperature.dtype)
    return arrays.divided(logits.astype(dtype), calibrator.temperature.astype(dtype))


def fit_rows(function: str, logits: Any, labels: Any, weights: Any, where: Any) -> inputs.Rows:
    """The checked rows to fit to, at least one, with absent classes at -inf."""
    logits = checks.floating(function, logits=logits)
    mask = checks.mask(function, where, logits, checks.class_axis(function, -1, logits=logits))
    rows = inputs.rows_of(function, labels, arrays.present(logits, mask), None, weights)
    if rows.labels.shape[0] == 0:
        checks.fail(ValueError, function, "there must be at least one row", logits=logits)
    return rows


def separable(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """Whether the label of every row [N, V] that counts is a largest logit of it, so that the best T is 0."""
    target = jnp.squeeze(arrays.own_pick(logits, labels[:, None], Axes((1,))), 1)
    return jnp.all((target == jnp.max(logits, axis=1)) | (weights == 0))


def made_by(function: str, calibrator: Any, kind: type, maker: str) -> None:
    """A calibrator comes from the function that fits its kind."""
    if not isinstance(calibrator, kind):
        checks.fail(TypeError, function, f"calibrator must be what {maker} returns", calibrator=calibrator)


# The temperature.
#
# Per row let d_j = z_j - max z, and b = 1 / T. The mean loss  L(b) = mean of (log sum_j exp(b d_j) - b d_y)  is convex
# in b, and with
#     E(b) = mean of -sum_j p_j d_j,   M = mean of -d_y,   V(b) = mean of the variance of d under p
# its derivatives are  L' = M - E,  L'' = V. All terms of E and of M have one sign, so neither cancels, and in a row
# whose label is its largest logit both are small. E falls as b grows. Hence
#     M = 0          every label is a largest logit: L falls for ever,
#     M >= E(0)      L grows from b = 0 on,
#     otherwise      there is one root of log E(b) = log M, and it lies in
#                    (E(0) - M) / (mean of (min d)^2 / 4)  <=  b  <=  (K - 1) / (e M),
# because V is at most the square of half the range, and  -sum_j p_j d_j  at most the sum of -d_j exp(b d_j), of which
# no term exceeds 1 / (e b). Newton's step by b for log E = log M is  log(E / M) E / V. It takes three to eight
# evaluations, the one at b = 0 included: near 0, where E = E(0) - V b, and where E falls as exp(-b g) because of one
# nearest gap g, log E is about linear in b. A step that leaves the bracket goes to its geometric middle instead. The
# step from b = 0 is all that is needed to see that the root is beyond the bound.
#
# Scalars are in units of the largest logit, and E and V are computed as b E and b^2 V from x = b d, which is
# moderate where p is not 0: so no scale of the logits overflows.

_ITERATIONS = 64
_ROUNDING = 16.0
_LEAST_LOSS = 1e-20
_LEAST_GAPS = 1e-2
_MOST_SPREADS = 1e4


class _Rows(NamedTuple):
    """What a row contributes: logits, [N, V], max z, [N, 1], d_y, [N], and weights, [N], which sum to 1.

    A row whose label is absent takes no part: its weight and d_y are 0.
    """

    logits: jax.Array
    largest: jax.Array
    target: jax.Array
    weights: jax.Array


@calls.compiled()
def solve_temperature(rows: inputs.Rows) -> TemperatureScaling:
    """The fit, from rows that are checked."""
    assert rows.logits is not None
    temperature, converged, at_bound = _solve(_rows(rows.logits, rows.labels, rows.weights))
    numbers = (temperature, *_mean_losses(None, rows.logits, rows.labels, rows.weights, temperature))
    temperature, nll_before, nll_after = inputs.poisoned(numbers, rows.broken)
    return TemperatureScaling(temperature, nll_before, nll_after, converged & jnp.isfinite(temperature), at_bound)


def _rows(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> _Rows:
    largest = arrays.row_max(logits, Axes((1,)))
    target = arrays.own_pick(logits, labels[:, None], Axes((1,))).astype(largest.dtype) - largest
    target = jnp.squeeze(target, 1)
    counted = (weights != 0) & ~jnp.isneginf(target)
    weights = jnp.where(counted, weights, 0.0)
    total = jnp.sum(weights)
    return _Rows(logits, largest, jnp.where(counted, target, 0.0), weights / jnp.where(total == 0, 1.0, total))


def _solve(rows: _Rows) -> tuple[jax.Array, jax.Array, jax.Array]:
    """T, whether it is right, and whether it is a bound."""
    fixed = jax.tree.map(lax.stop_gradient, rows)
    ends = _at_zero(fixed)
    of_labels = -jnp.sum(fixed.weights * (fixed.target / ends.unit))
    flat = ends.mean == 0
    cold = ~flat & (of_labels == 0)
    hottest = _MOST_SPREADS * jnp.sqrt(ends.variance)
    start = ends.mean / ends.variance * jnp.log(ends.mean / jnp.where(of_labels == 0, 1.0, of_labels))
    hot = ~flat & ((of_labels >= ends.mean) | (~cold & (start * hottest < 1.0)))
    searched = ~(flat | cold | hot)

    def safe(x: jax.Array) -> jax.Array:
        return jnp.where(searched, x, 1.0)

    # not so low that b d_y is next to nothing: there lies at most a root that -inf, written as a number, has made
    low = safe(jnp.maximum(4.0 * (ends.mean - of_labels) / ends.square, _LEAST_LOSS / of_labels))
    high = safe((fixed.logits.shape[1] - 1) / (math.e * of_labels))
    inverse, step = _search(fixed, ends.unit, safe(of_labels), searched, low, high, safe(start))
    at_bound = cold | hot
    bound = jnp.where(flat, 1.0, ends.unit * jnp.where(cold, _LEAST_GAPS * ends.nearest, hottest))
    temperature = jnp.where(flat | at_bound, bound, _implicit(rows, inverse / ends.unit))
    return temperature, step <= _close(inverse.dtype), at_bound


class _AtZero(NamedTuple):
    """A unit, the largest logit or so, and in units of it: E(0), V(0), the mean of (min d)^2, the smallest gap > 0."""

    unit: jax.Array
    mean: jax.Array
    variance: jax.Array
    square: jax.Array
    nearest: jax.Array


def _at_zero(rows: _Rows) -> _AtZero:
    absent, counted = jnp.isneginf(rows.logits), rows.weights != 0
    sizes = jnp.where(absent, 0.0, rows.logits.astype(rows.largest.dtype))
    high, low = _row_reductions((sizes, 0.0, jnp.maximum), (sizes, 0.0, jnp.minimum))
    size = jnp.max(jnp.where(counted, jnp.maximum(high, -low), 0.0))
    # Held below the lowest finite number, which often stands for -inf: in units of it the other gaps would vanish.
    unit = jnp.where(size == 0, 1.0, jnp.minimum(size, float(jnp.finfo(size.dtype).max) * 2.0**-30))
    gap = jnp.where(absent, 0.0, -arrays.centred(rows.logits, rows.largest, None) / unit)
    classes, first, second, widest, nearest = _row_reductions(
        (jnp.where(absent, 0.0, 1.0).astype(gap.dtype), 0.0, jnp.add),
        (gap, 0.0, jnp.add),
        (jnp.square(gap), 0.0, jnp.add),
        (gap, 0.0, jnp.maximum),
        (jnp.where(gap > 0, gap, jnp.inf), jnp.inf, jnp.minimum),
    )
    mean, mean_square = first / jnp.maximum(classes, 1.0), second / jnp.maximum(classes, 1.0)

    def average(x: jax.Array) -> jax.Array:
        return jnp.sum(rows.weights * jnp.where(counted, x, 0.0))

    variance = average(jnp.maximum(mean_square - jnp.square(mean), 0.0))
    nearest = jnp.min(jnp.where(counted, nearest, jnp.inf))
    return _AtZero(unit, average(mean), variance, average(jnp.square(widest)), nearest)


def _moments(rows: _Rows, inverse: jax.Array) -> tuple[jax.Array, jax.Array]:
    """b E and b^2 V at b > 0."""
    # held where its exponential is 0 long since, so that an absent class adds nothing, without a select
    x = jnp.maximum(inverse * arrays.centred(rows.logits, rows.largest, None), -1e4)
    terms = jnp.exp(x)
    total, first, second = _row_reductions(*((term, 0.0, jnp.add) for term in (terms, terms * x, terms * x * x)))
    total = jnp.where(total == 0, 1.0, total)  # no class at all
    mean = first / total
    variance = jnp.maximum(second / total - mean * mean, 0.0)
    return -jnp.sum(rows.weights * mean), jnp.sum(rows.weights * variance)


def _row_reductions(*reductions: tuple[jax.Array, float, Any]) -> list[jax.Array]:
    """Each of (terms, start, operation) along the classes, all in one pass: many times as fast as apart on a CPU."""
    terms, starts, operations = zip(*reductions, strict=True)

    def combine(a: Any, b: Any) -> Any:
        return tuple(operation(x, y) for operation, x, y in zip(operations, a, b, strict=True))

    return list(
        lax.reduce(terms, tuple(jnp.asarray(s, t.dtype) for s, t in zip(starts, terms, strict=True)), combine, (1,))
    )


def _close(dtype: Any) -> float:
    """The relative size of a last step: Newton's next one would be of the order of its square."""
    return float(jnp.finfo(dtype).eps) ** 0.5


def _search(
    rows: _Rows, unit: Any, of_labels: Any, searched: Any, low: jax.Array, high: jax.Array, start: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The root b in units of 1 / unit, and the relative size of the last step."""

    def unfinished(state: Any) -> jax.Array:
        *_, step, iteration = state
        return (step > _close(start.dtype)) & (iteration < _ITERATIONS)

    def improve(state: Any) -> Any:
        inverse, low, high, _, iteration = state
        # bound to the step, or the compiler takes z - max z out of the loop and writes it out
        largest, inverse = lax.optimization_barrier((rows.largest, inverse))
        mean, variance = _moments(rows._replace(largest=largest), inverse / unit)
        excess = jnp.log(mean / (inverse * of_labels))
        low, high = jnp.where(excess > 0, inverse, low), jnp.where(excess > 0, high, inverse)
        newton = inverse * (1.0 + excess * mean / variance)
        inside = (low <= newton) & (newton <= high)  # and not NaN, as where the variance vanishes
        found = jnp.where(inside, newton, jnp.sqrt(low) * jnp.sqrt(high))
        # where T is so large that E hardly depends on it, the sums agree to rounding before b settles
        step = jnp.where(jnp.abs(excess) <= _ROUNDING * eps, 0.0, jnp.abs(jnp.log(found / inverse)))
        return found, low, high, step, iteration + 1

    eps = float(jnp.finfo(start.dtype).eps)

    first = (jnp.clip(start, low, high), low, high, jnp.where(searched, jnp.inf, 0.0).astype(start.dtype), 0)
    inverse, _, _, step, _ = lax.while_loop(unfinished, improve, first)
    return inverse, step


def _implicit(rows: _Rows, inverse: jax.Array) -> jax.Array:
    """T = 1 / b, differentiable as the root that it is: that of f(s) = b (M - E) at T = exp(s) / b, which is s = 0.

    The search is over: this computes nothing until it is differentiated.
    """

    def function(s: jax.Array) -> jax.Array:
        d = arrays.centred(rows.logits, rows.largest, None)
        absent = jnp.isneginf(d)
        x = jnp.exp(-s) * inverse * jnp.where(absent, 0.0, d)
        terms = jnp.where(absent, 0.0, jnp.exp(x))
        total = jnp.sum(terms, axis=1)
        mean = jnp.sum(terms * x, axis=1) / jnp.where(total == 0, 1.0, total)
        return jnp.sum(rows.weights * (mean - jnp.exp(-s) * inverse * rows.target))

    def divide(slope: Any, value: jax.Array) -> jax.Array:
        variance = slope(jnp.ones_like(value))
        return jnp.where(variance == 0, 0.0, value / jnp.where(variance == 0, 1.0, variance))

    return jnp.exp(lax.custom_root(function, jnp.zeros_like(inverse), lambda _, found: found, divide)) / inverse


# The mean losses at T = 1 and at T, which are all that a fit computes beside its search. Where nobody differentiates,
# both are summed in one pass, which on a CPU and a few classes takes a fourth of the time of two cross entropies.


def _two_losses(_: None, logits: Any, labels: Any, weights: Any, temperature: Any) -> tuple[jax.Array, jax.Array]:
    before, after = cross_entropy(logits, labels), cross_entropy(logits, labels, temperature=temperature)
    return weighted_mean(before, weights), weighted_mean(after, weights)


def _two_losses_at_once(
    _: None, logits: Any, labels: Any, weights: Any, temperature: Any
) -> tuple[jax.Array, jax.Array]:
    largest = arrays.row_max(logits, Axes((1,)))
    d = arrays.centred(logits, largest, None)
    target = jnp.squeeze(arrays.own_pick(logits, labels[:, None], Axes((1,))).astype(d.dtype) - largest, 1)
    temperature = jnp.maximum(temperature, float(jnp.finfo(d.dtype).tiny))
    other = ~arrays.is_label(labels[:, None], d, Axes((1,)))
    terms = (jnp.where(other, jnp.exp(x), 0.0) for x in (d, d / temperature))
    before, after = _row_reductions(*((term, 0.0, jnp.add) for term in terms))

    def mean(target: jax.Array, others: jax.Array) -> jax.Array:
        return weighted_mean(scalars.softplus(-scalars.log_odds(target, scalars.safe_log(others))), weights)

    return mean(target, before), mean(target / temperature, after)


def _two_losses_forward(_: None, *args: Any) -> Any:
    return _two_losses(None, *args), args


def _two_losses_backward(_: None, args: Any, cotangents: Any) -> Any:
    logits, labels, weights, temperature = args

    def function(logits: Any, weights: Any, temperature: Any) -> Any:
        return _two_losses(None, logits, labels, weights, temperature)

    _, pullback = jax.vjp(function, logits, weights, temperature)
    by_logits, by_weights, by_temperature = pullback(cotangents)
    return by_logits, None, by_weights, by_temperature


def _two_losses_tangent(_: None, args: Any, tangents: Any) -> Any:
    logits, labels, weights, temperature = args
    moved = (tangents[0], tangents[2], tangents[3])
    return jax.jvp(lambda z, w, t: _two_losses(None, z, labels, w, t), (logits, weights, temperature), moved)[1]


_mean_losses = rules.operation(_two_losses_forward, _two_losses_backward, _two_losses_tangent, _two_losses_at_once)
