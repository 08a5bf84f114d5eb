"""Losses between two distributions per row; one value per row, in float32 or wider."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftmax._core import arrays, calls, checks, folds, meshes, passes, rules
from jaxsoftmax._core.meshes import Axes, AxisName
from jaxsoftmax.normalizers import centre_of, log_softmax_pull, log_softmax_push
from jaxsoftmax.statistics import cap_slope, capped

__all__ = ["kl_divergence", "soft_cross_entropy"]


def soft_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    logit_cap: float | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Softmax cross entropy with a distribution per row.

    -Σⱼ qⱼ log pⱼ

    Args:
        logits: [..., V], floating.
        targets: q, [..., V], floating, ≥ 0; they need not sum to 1.
        axis: The class axis.
        where: Which classes are present: boolean, of the shape of the logits or [V].
        temperature: T ≥ 0 divides the logits; a scalar or one number per row.
        logit_cap: Logits become cap · tanh(z / cap), before the temperature.
        axis_name: The mesh axis, or axes, over which the classes are split, inside of `jax.shard_map`.

    Returns:
        [...] in nats, float32 or wider.

    Raises:
        TypeError: The logits or targets are not floating, or the mask is not boolean.
        ValueError: The axis is out of range, the class axis is empty, a shape does not fit or an option is out of
            range.

    Numerics:
        0 · -inf = 0. Mass on an absent class costs +inf. -log p as in `log_softmax`, exact where p is near 1.

    Gradient:
        dzⱼ = pⱼ Σ q - qⱼ (by 1 - p where p is more than half), dqⱼ = -log pⱼ; 0 for absent classes, in both. Kept: the
        arguments and two numbers per row. Reverse mode of any order, forward over reverse; forward mode inside of
        `jaxsoftmax.forward_mode()`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> print(jaxsoftmax.soft_cross_entropy(jnp.array([[0.0, 0.0, -jnp.inf]]), jnp.array([[0.5, 0.5, 0.0]])))
        [0.6931472]
    """
    axis = checks.static_axis("soft_cross_entropy", axis, axis_name)
    checks.numbers_in("soft_cross_entropy", 0, math.inf, temperature=temperature)
    checks.positive("soft_cross_entropy", logit_cap=logit_cap)
    return _soft_cross_entropy_call(
        logits, targets, where, temperature, axis=axis, axis_name=axis_name, logit_cap=logit_cap
    )


def kl_divergence(
    logits: ArrayLike,
    target_logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """The Kullback-Leibler divergence of the model from the target, both given by logits.

    KL(q ‖ p) = Σⱼ qⱼ (log qⱼ - log pⱼ),  p = softmax(logits / T),  q = softmax(target_logits / T)

    Args:
        logits: [..., V], floating: those of the model.
        target_logits: [..., V], floating: those of the target, a teacher's for instance.
        axis: The class axis.
        where: Which classes are present in both: boolean, of the shape of the logits or [V].
        temperature: T ≥ 0 divides both; a scalar or one number per row.
        axis_name: The mesh axis, or axes, over which the classes are split, inside of `jax.shard_map`.

    Returns:
        [...] in nats, ≥ 0, float32 or wider.

    Raises:
        TypeError: The logits are not floating, or the mask is not boolean.
        ValueError: The axis is out of range, the class axis is empty, a shape does not fit or a Python number T < 0.

    Numerics:
        Summed as qⱼ (exp δⱼ - 1 - δⱼ) with δ = log p - log q, whose terms are all ≥ 0, so that nearly equal
        distributions have a small divergence and not the rounding error of a large one. A class absent in q costs
        nothing; one present in q and absent in p costs +inf, with gradient 0 there and the formula on the others.

    Gradient:
        By the model's logits pⱼ - qⱼ, by the target's -qⱼ (δⱼ + KL), each over T. Kept: the arguments and five numbers
        per row. Reverse mode of any order, forward over reverse; forward mode inside of `jaxsoftmax.forward_mode()`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> print(f"{jaxsoftmax.kl_divergence(jnp.array([0.0, 0.001]), jnp.array([0.0, 0.0])):.4e}")
        1.2500e-07

    References:
        S. Kullback and R. A. Leibler, On Information and Sufficiency, 1951.
        G. Hinton, O. Vinyals and J. Dean, Distilling the Knowledge in a Neural Network, 2015.
    """
    axis = checks.static_axis("kl_divergence", axis, axis_name)
    checks.numbers_in("kl_divergence", 0, math.inf, temperature=temperature)
    return _kl_call(logits, target_logits, where, temperature, axis=axis, axis_name=axis_name)


# Derivation. With d = (z - m) / T, e = exp(d), S = sum e, others = S - 1 (arrays.excess) and L = log S = log1p(others):
#
#   soft cross entropy   f = sum_j q_j (L - d_j), all terms >= 0. It is -sum_j q_j log p_j, so that df/dd is minus the
#                        log-softmax rule at the cotangent q, and df/dq_j = L - d_j.
#   KL divergence        With a_j = (z_j - m_z - w_j + m_w) / T (z the model's logits, w the target's) and
#                        D = log sum_j q_j exp(a_j):  delta_j = log p_j - log q_j = a_j - D.  Since sum p = sum q,
#                        f = sum_j (p_j - q_j - q_j delta_j), each term >= 0: q_j phi(delta_j), phi(t) = exp(t) - 1 - t.
#                        df/dz_j = (p_j - q_j) / T = q_j expm1(delta_j) / T,
#                        df/dw_j = q_j (log q_j - log p_j - f) / T = -q_j (delta_j - sum q delta) / T.
#                        For close logits D = log1p(sum q expm1(a)) has the relative precision of a; else D = L_z - L_w.


class DivergenceResiduals(NamedTuple):
    """The arguments, and per row: m and S - 1."""

    logits: jax.Array
    targets: jax.Array
    where: jax.Array | None
    temperature: jax.Array | None
    shift: jax.Array
    others: jax.Array


class DivergenceOptions(NamedTuple):
    """What is fixed when a program is traced."""

    axes: Axes
    logit_cap: float | None

    @property
    def mesh(self) -> tuple[str, ...]:
        return self.axes.mesh


def _soft_scaled(options: DivergenceOptions, residuals: DivergenceResiduals) -> jax.Array:
    values = capped(residuals.logits, residuals.where, options.logit_cap)
    return arrays.centred(values, residuals.shift, residuals.temperature)


def _soft_forward(options: DivergenceOptions, logits: Any, targets: Any, where: Any, temperature: Any) -> Any:
    axes = options.axes
    numbers = arrays.excess(capped(logits, where, options.logit_cap), axes, temperature)
    residuals = DivergenceResiduals(logits, targets, where, temperature, *numbers)
    scaled = _soft_scaled(options, residuals)
    costs = _sum_of_costs(targets.astype(scaled.dtype), scaled, jnp.log1p(residuals.others), axes)
    return passes.opaque_on_cpu(costs), residuals


def _sum_of_costs(targets: jax.Array, scaled: jax.Array, log_total: jax.Array, axes: Axes) -> jax.Array:
    """sum q (L - d); an absent class adds, with derivatives 0, 0 without mass and inf with it."""
    absence = arrays.absence(scaled)
    present = (4.0 - jnp.minimum(absence, 4.0)) * 0.25  # no constant that another kernel has
    beyond, scaled = arrays.where_mass(targets, absence), arrays.finite(scaled)
    if not arrays.sums_at_once(scaled, axes):
        return arrays.row_sum(targets * ((log_total - scaled) * present) + beyond, axes)
    mass, costs = arrays.row_sums(targets * present, beyond - targets * (scaled * present), axes)
    return mass * log_total + costs


def _soft_backward(options: DivergenceOptions, residuals: DivergenceResiduals, cotangent: jax.Array) -> Any:
    axes = options.axes
    scaled = _soft_scaled(options, residuals)
    targets = residuals.targets.astype(scaled.dtype)
    gradient = -cotangent * log_softmax_pull(scaled, residuals.others, targets, axes)
    dlogits, dtemperature = arrays.to_inputs(gradient, scaled, residuals.temperature, axes)
    if options.logit_cap is not None:
        dlogits = dlogits * cap_slope(residuals.logits, residuals.where, options.logit_cap)
    surprise = jnp.where(jnp.isneginf(scaled), 0.0, jnp.log1p(residuals.others) - scaled)
    dtargets = meshes.sum_like(cotangent * surprise, residuals.targets).astype(residuals.targets.dtype)
    return dlogits.astype(residuals.logits.dtype), dtargets, None, dtemperature


def _soft_tangent(options: DivergenceOptions, residuals: DivergenceResiduals, tangents: Any) -> jax.Array:
    axes = options.axes
    scaled = _soft_scaled(options, residuals)
    vector = tangents[0].astype(scaled.dtype)
    if options.logit_cap is not None:
        vector = vector * cap_slope(residuals.logits, residuals.where, options.logit_cap)
    vector = arrays.from_inputs(vector, tangents[3], scaled, residuals.temperature)
    surprise = jnp.where(jnp.isneginf(scaled), 0.0, jnp.log1p(residuals.others) - scaled)
    pushed = log_softmax_push(scaled, residuals.others, vector, axes)
    terms = tangents[1].astype(scaled.dtype) * surprise - residuals.targets.astype(scaled.dtype) * pushed
    return arrays.row_sum(terms, axes)


_soft_cross_entropy = rules.on_rows(_soft_forward, _soft_backward, _soft_tangent, long_from=folds.LONG_SUMMED_TWICE)


@calls.compiled("axis", "logit_cap", "axis_name")
def _soft_cross_entropy_call(
    logits: Any, targets: Any, where: Any, temperature: Any, *, axis: int, logit_cap: float | None, axis_name: AxisName
) -> jax.Array:
    name = "soft_cross_entropy"
    logits = checks.floating(name, logits=logits)
    targets = checks.floating(name, targets=targets)
    checks.same_shape(name, logits=logits, targets=targets)
    logits, targets = meshes.split_alike(logits, targets)
    axes, where, temperature = checks.rows(name, logits, where, temperature, axis, axis_name)
    options = DivergenceOptions(axes, None if logit_cap is None else float(logit_cap))
    return jnp.squeeze(_soft_cross_entropy(options, logits, targets, where, temperature), axes.one)


class KLResiduals(NamedTuple):
    """The arguments, and per row: m and S - 1 of the model and of the target, and D."""

    logits: jax.Array
    target_logits: jax.Array
    where: jax.Array | None
    temperature: jax.Array | None
    largest: jax.Array
    others: jax.Array
    target_largest: jax.Array
    target_others: jax.Array
    log_ratio: Any


class _Pair(NamedTuple):
    """Per class: d of the model and the target, which are absent, p, q, and delta, 0 where either is absent."""

    model: jax.Array
    target: jax.Array
    model_absent: jax.Array
    target_absent: jax.Array
    p: jax.Array
    q: jax.Array
    delta: jax.Array


def _gap(residuals: KLResiduals) -> tuple[jax.Array, ...]:
    """Per class: d of the model and the target, which are absent, and a, 0 where either is absent."""
    where, temperature = residuals.where, residuals.temperature
    largest, target_largest = residuals.largest, residuals.target_largest
    values, target_values = arrays.present(residuals.logits, where), arrays.present(residuals.target_logits, where)
    model = arrays.centred(values, largest, temperature)
    target = arrays.centred(target_values, target_largest, temperature)
    model_absent, target_absent = jnp.isneginf(model), jnp.isneginf(target)
    absent = model_absent | target_absent

    # (z - m_z) - (w - m_w) with the roundings of the three differences, so that close distributions lose no digit
    # whatever the offset of their logits.
    z, w = (jnp.where(absent, 0.0, x.astype(largest.dtype)) for x in (values, target_values))
    (z, z_lost), (w, w_lost) = _difference(z, largest), _difference(w, target_largest)
    gap, gap_lost = _difference(jnp.where(absent, 0.0, z), jnp.where(absent, 0.0, w))
    gap = gap + jnp.where(absent, 0.0, gap_lost + (z_lost - w_lost))
    if temperature is not None:
        gap = gap * arrays.inverse_temperature(temperature)
    return model, target, model_absent, target_absent, gap


def _difference(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """a - b as it is rounded, and what the rounding lost, exactly (Knuth's two-sum); a constant to differentiation."""
    rounded = a - b
    other = a - rounded
    lost = (a - (rounded + other)) + (other - b)
    return rounded, lax.stop_gradient(lost)


def _log_ratio(axes: Axes, residuals: KLResiduals) -> jax.Array:
    """D = L_z - L_w, by log1p(G) where the two distributions are close, G = sum q (exp(a) - 1).

    A term is (exp(d_z) - exp(d_w)) / S_w where a is large, and where the class is absent in either; nearer, d_z and d_w
    have roundings that the difference would show, and one of them is enough.
    """
    model, target, model_absent, target_absent, gap = _gap(residuals)
    apart = (jnp.abs(gap) > 2.0) | model_absent | target_absent
    gap = jnp.where(apart, 0.0, gap)
    small = jnp.abs(gap) < 0.5
    near = jnp.where(small, gap, 0.0)
    growth = jnp.where(small, near + _beyond_linear(near), jnp.exp(gap) - 1.0)
    terms = jnp.where(apart, jnp.exp(model) - jnp.exp(target), jnp.exp(target) * growth)
    total = arrays.row_sum(terms, axes) * (1.0 / (1.0 + residuals.target_others))
    close = jnp.abs(total) < 0.5
    far = jnp.log1p(residuals.others) - jnp.log1p(residuals.target_others)
    return jnp.where(close, jnp.log1p(jnp.where(close, total, 0.0)), far)


def _pair(residuals: KLResiduals) -> _Pair:
    model, target, model_absent, target_absent, gap = _gap(residuals)
    p = jnp.exp(model) * (1.0 / (1.0 + residuals.others))
    q = jnp.exp(target) * (1.0 / (1.0 + residuals.target_others))
    delta = jnp.where(model_absent | target_absent, 0.0, gap - residuals.log_ratio)
    return _Pair(model, target, model_absent, target_absent, p, q, delta)


def _beyond_linear(t: jax.Array) -> jax.Array:
    """phi(t) = exp(t) - 1 - t for |t| <= 1/2, by its series, long enough for the fourth derivative."""
    series = jnp.ones_like(t)
    for n in range(11 if t.dtype == jnp.float32 else 18, 2, -1):
        series = 1.0 + t * (1.0 / n) * series
    return 0.5 * jnp.square(t) * series


def _kl_terms(pair: _Pair) -> jax.Array:
    """q phi(delta) >= 0, where nothing cancels as p - q - q delta: there q may be 0 and p not.

    Nearer, p and q have each a rounding of an exponent, which the difference would show many times over.
    """
    delta = jnp.where(pair.target_absent, 4.0, pair.delta)
    near = jnp.abs(delta) < 0.5
    growth = jnp.exp(jnp.minimum(delta, 2.0)) - 1.0
    beyond_linear = jnp.where(near, _beyond_linear(jnp.where(near, delta, 0.0)), growth - delta)
    terms = jnp.where(delta < 2.0, pair.q * beyond_linear, (pair.p - pair.q) - pair.q * delta)
    return jnp.where(pair.model_absent & ~pair.target_absent, jnp.inf, terms)


def kl_forward(axes: Axes, logits: Any, target_logits: Any, where: Any, temperature: Any) -> Any:
    model = arrays.excess(arrays.present(logits, where), axes, temperature)
    target = arrays.excess(arrays.present(target_logits, where), axes, temperature)
    residuals = KLResiduals(logits, target_logits, where, temperature, *model, *target, None)
    # A CPU takes a pass for D, an accelerator one for it and for the sums; both keep nothing for the terms.
    on_cpu = jax.default_backend() == "cpu"
    sums = residuals.others + residuals.target_others
    log_ratio = _log_ratio(axes, _again(residuals, (lambda m: passes.after(m, sums)) if on_cpu else passes.opaque))
    residuals = residuals._replace(log_ratio=log_ratio)
    last = _again(residuals, lambda m: passes.after(m, log_ratio))
    return arrays.row_sum(_kl_terms(_pair(last)), axes), residuals if on_cpu else last


def _again(residuals: KLResiduals, renew: Callable[[jax.Array], jax.Array]) -> KLResiduals:
    """The same for another pass over the logits."""
    return residuals._replace(largest=renew(residuals.largest), target_largest=renew(residuals.target_largest))


def _kl_slopes(axes: Axes, pair: _Pair, residuals: KLResiduals) -> tuple[jax.Array, jax.Array]:
    """By d of the model p - q = q expm1(delta); by d of the target -q (delta - sum q delta), since f = -sum q delta."""
    small = jnp.abs(pair.delta) < 0.5
    delta = jnp.where(small, pair.delta, 0.0)
    near = pair.q * (delta + _beyond_linear(delta))
    difference = jnp.where(small & ~pair.target_absent, near, pair.p - pair.q)
    # Less the largest class's, where that has more than half of the mass, or its own slope would cancel. Where the
    # difference is more than there are numbers, q is 0, and 0 has to come of it.
    centre = centre_of(pair.target, 1.0 + residuals.target_others, pair.delta, axes)
    delta = jnp.minimum(pair.delta - centre, float(jnp.finfo(pair.delta.dtype).max))
    by_target = pair.q * (arrays.row_sum(pair.q * delta, axes) - delta)
    broken = 0.0 * (residuals.others + residuals.target_others)
    by_model = jnp.where(pair.model_absent, 0.0, difference) + broken
    return by_model, jnp.where(pair.model_absent, 0.0, by_target) + broken


def kl_backward(axes: Axes, residuals: KLResiduals, cotangent: jax.Array) -> Any:
    pair = _pair(residuals)
    by_model, by_target = _kl_slopes(axes, pair, residuals)
    temperature = residuals.temperature
    dlogits, by_t = arrays.to_inputs(cotangent * by_model, pair.model, temperature, axes)
    dtargets, target_by_t = arrays.to_inputs(cotangent * by_target, pair.target, temperature, axes)
    dtemperature = None if by_t is None or target_by_t is None else by_t + target_by_t
    logits, target_logits = residuals.logits, residuals.target_logits
    dlogits, dtargets = passes.once(dlogits, residuals.others), passes.once(dtargets, residuals.others)
    dlogits, dtargets = meshes.sum_like(dlogits, logits), meshes.sum_like(dtargets, target_logits)
    return dlogits.astype(logits.dtype), dtargets.astype(target_logits.dtype), None, dtemperature


def kl_tangent(axes: Axes, residuals: KLResiduals, tangents: Any) -> jax.Array:
    pair = _pair(residuals)
    by_model, by_target = _kl_slopes(axes, pair, residuals)
    model = arrays.from_inputs(tangents[0], tangents[3], pair.model, residuals.temperature)
    target = arrays.from_inputs(tangents[1], tangents[3], pair.target, residuals.temperature)
    return arrays.row_sum(by_model * model + by_target * target, axes)


_kl = rules.on_rows(
    kl_forward,
    kl_backward,
    kl_tangent,
    long_from=folds.LONG_WITHOUT_ONE,
    value_long_from=folds.LONG_SUMMED_TWICE,
)


@calls.compiled("axis", "axis_name")
def _kl_call(
    logits: Any, target_logits: Any, where: Any, temperature: Any, *, axis: int, axis_name: AxisName
) -> jax.Array:
    name = "kl_divergence"
    logits = checks.floating(name, logits=logits)
    target_logits = checks.floating(name, target_logits=target_logits)
    checks.same_shape(name, logits=logits, target_logits=target_logits)
    checks.same_dtype(name, logits=logits, target_logits=target_logits)
    logits, target_logits = meshes.split_alike(logits, target_logits)
    axes, where, temperature = checks.rows(name, logits, where, temperature, axis, axis_name)
    return jnp.squeeze(_kl(axes, logits, target_logits, where, temperature), axes.one)
