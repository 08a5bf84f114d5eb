"""Scores of how uncertain a row of logits is, all of them larger for the more uncertain.

Each score is built from operations that are exact in the tails, so that confident rows, which all round to a maximum
probability of 1, still have an order.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftmax._core import arrays, calls, checks, scalars
from jaxsoftmax._core.meshes import Axes
from jaxsoftmax.entropies import entropy
from jaxsoftmax.normalizers import log_softmax, logsumexp, smooth_max, softmax
from jaxsoftmax.statistics import RowStatistics, row_statistics

__all__ = [
    "energy_score",
    "entropy_score",
    "generalized_entropy_score",
    "gini_score",
    "margin_score",
    "max_logit_score",
    "max_probability_score",
]


def max_probability_score(
    logits: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None, temperature: ArrayLike | None = None
) -> jax.Array:
    """How much probability the most probable class lacks.

    1 - maxⱼ pⱼ

    Args:
        logits: [..., V], floating.
        axis: The class axis.
        where: Which classes are present: boolean, of the shape of the logits or [V].
        temperature: T ≥ 0 divides the logits; a scalar or one number per row.

    Returns:
        [...], float32 or wider; between 0 and 1 - 1/V, and larger for the more uncertain.

    Raises:
        TypeError: The logits are not floating, or the mask is not boolean.
        ValueError: The axis is out of range, the class axis is empty, a shape does not fit or a Python number T < 0.

    Numerics:
        The sum of the other probabilities, never a difference from 1: rows that are certain to 1e-30 keep their order.
        1 in a row without any class; 0 where V = 1.

    Gradient:
        pⱼ pₘ at the other classes and -pₘ (1 - pₘ) at the most probable one, m, over T; of tied ones m is the first.
        All modes, as for `row_statistics`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> certain, open_ = jaxsoftmax.calibration.max_probability_score(jnp.array([[50.0, 0.0], [0.0, 0.0]]))
        >>> print(f"{certain:.4e} {open_:.1f}")
        1.9287e-22 0.5

    References:
        D. Hendrycks and K. Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution Examples, 2017.
    """
    return _score("max_probability_score", _max_probability, logits, where, temperature, axis)


def max_logit_score(logits: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None) -> jax.Array:
    """The largest logit, negated: what softmax discards, and what tells unknown inputs where classes are many.

    -maxⱼ zⱼ

    Args:
        logits: [..., V], floating.
        axis: The class axis.
        where: Which classes are present: boolean, of the shape of the logits or [V].

    Returns:
        [...], float32 or wider; larger for the more uncertain.

    Raises:
        TypeError: The logits are not floating, or the mask is not boolean.
        ValueError: The axis is out of range, the class axis is empty or a shape does not fit.

    Numerics:
        +inf in a row without any class.

    Gradient:
        -1 at the largest logit; tied ones share it. All modes, as for `smooth_max`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> print(jaxsoftmax.calibration.max_logit_score(jnp.array([[3.0, 0.0], [1.0, -1.0]])))
        [-3. -1.]

    References:
        D. Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings, 2022.
    """
    return _score("max_logit_score", _max_logit, logits, where, None, axis)


def energy_score(
    logits: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None, temperature: ArrayLike = 1.0
) -> jax.Array:
    """The free energy of the logits.

    -T log Σⱼ exp(zⱼ / T)

    Args:
        logits: [..., V], floating.
        axis: The class axis.
        where: Which classes are present: boolean, of the shape of the logits or [V].
        temperature: T ≥ 0, a scalar or one number per row; 0 gives the largest logit, negated.

    Returns:
        [...] in the unit of the logits, float32 or wider; larger for the more uncertain.

    Raises:
        TypeError: The logits are not floating, or the mask is not boolean.
        ValueError: The axis is out of range, the class axis is empty, a shape does not fit or a Python number T < 0.

    Numerics:
        As `smooth_max`. +inf in a row without any class.

    Gradient:
        -pⱼ by the logits and -H(p) by T. All modes, as for `smooth_max`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> print(f"{jaxsoftmax.calibration.energy_score(jnp.array([1.0, 1.0])):.4f}")
        -1.6931

    References:
        W. Liu et al., Energy-based Out-of-distribution Detection, 2020.
    """
    return _score("energy_score", _energy, logits, where, temperature, axis)


def entropy_score(
    logits: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None, temperature: ArrayLike | None = None
) -> jax.Array:
    """The entropy of the softmax distribution: `jaxsoftmax.entropy` under the name that it has among the scores.

    -Σⱼ pⱼ log pⱼ

    Args:
        logits: [..., V], floating.
        axis: The class axis.
        where: Which classes are present: boolean, of the shape of the logits or [V].
        temperature: T ≥ 0 divides the logits; a scalar or one number per row.

    Returns:
        [...] in nats, float32 or wider; between 0 and log V, and larger for the more uncertain.

    Raises:
        TypeError: The logits are not floating, or the mask is not boolean.
        ValueError: The axis is out of range, the class axis is empty, a shape does not fit or a Python number T < 0.

    Numerics:
        As `jaxsoftmax.entropy`. 0 in a row without any class.

    Gradient:
        As `jaxsoftmax.entropy`, in all modes.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> print(f"{jaxsoftmax.calibration.entropy_score(jnp.zeros(4)):.4f}")
        1.3863
    """
    return _score("entropy_score", _entropy, logits, where, temperature, axis)


def margin_score(
    logits: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None, temperature: ArrayLike | None = None
) -> jax.Array:
    """How far the two most probable classes are from being apart.

    1 - (p₁ - p₂) = (1 - p₁) + p₂

    Args:
        logits: [..., V], floating.
        axis: The class axis.
        where: Which classes are present: boolean, of the shape of the logits or [V].
        temperature: T ≥ 0 divides the logits; a scalar or one number per row.

    Returns:
        [...], float32 or wider; between 0 and 1, and larger for the more uncertain.

    Raises:
        TypeError: The logits are not floating, or the mask is not boolean.
        ValueError: The axis is out of range, the class axis is empty, a shape does not fit or a Python number T < 0.

    Numerics:
        A sum of two exact terms ≥ 0. With one class present p₂ = 0, hence 0; 1 in a row without any class.

    Gradient:
        That of p₂ less that of p₁; of tied classes the first one comes first. All modes, as for `row_statistics`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> apart, tied = jaxsoftmax.calibration.margin_score(jnp.array([[40.0, 0.0, 0.0], [2.0, 2.0, 0.0]]))
        >>> print(f"{apart:.4e} {tied:.1f}")
        1.2745e-17 1.0

    References:
        T. Scheffer, C. Decomain and S. Wrobel, Active Hidden Markov Models for Information Extraction, 2001.
    """
    return _score("margin_score", _margin, logits, where, temperature, axis)


def gini_score(
    logits: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None, temperature: ArrayLike | None = None
) -> jax.Array:
    """The Gini impurity: how often two draws from the distribution differ.

    1 - Σⱼ pⱼ² = Σⱼ pⱼ (1 - pⱼ)

    Args:
        logits: [..., V], floating.
        axis: The class axis.
        where: Which classes are present: boolean, of the shape of the logits or [V].
        temperature: T ≥ 0 divides the logits; a scalar or one number per row.

    Returns:
        [...], float32 or wider; between 0 and 1 - 1/V, and larger for the more uncertain.

    Raises:
        TypeError: The logits are not floating, or the mask is not boolean.
        ValueError: The axis is out of range, the class axis is empty, a shape does not fit or a Python number T < 0.

    Numerics:
        Summed as pⱼ (1 - pⱼ), where 1 - p of the most probable class is the sum of the others. 0 in a row without any
        class.

    Gradient:
        -2 pⱼ (pⱼ - Σₖ pₖ²) / T. All modes, as for `softmax`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> certain, open_ = jaxsoftmax.calibration.gini_score(jnp.array([[50.0, 0.0], [0.0, 0.0]]))
        >>> print(f"{certain:.4e} {open_:.1f}")
        3.8575e-22 0.5

    References:
        L. Breiman et al., Classification and Regression Trees, 1984.
    """
    return _score("gini_score", _gini, logits, where, temperature, axis)


def generalized_entropy_score(
    logits: ArrayLike,
    *,
    gamma: float = 0.1,
    k: int | None = None,
    axis: int = -1,
    where: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
) -> jax.Array:
    """The generalized entropy of the most probable classes, which small probabilities move more than in the entropy.

    Σ over the k largest of pⱼ^γ (1 - pⱼ)^γ

    Args:
        logits: [..., V], floating.
        gamma: γ > 0, a Python number; the smaller, the more the improbable classes count. 1 gives the Gini impurity.
        k: How many classes, 1 to V; by default all. The paper has 100 of 1000, since the long tail is mostly noise.
        axis: The class axis.
        where: Which classes are present: boolean, of the shape of the logits or [V].
        temperature: T ≥ 0 divides the logits; a scalar or one number per row.

    Returns:
        [...], float32 or wider; ≥ 0, and larger for the more uncertain.

    Raises:
        TypeError: The logits are not floating, k is not an integer, or the mask is not boolean.
        ValueError: The axis is out of range, the class axis is empty, a shape does not fit or an option is out of
            range.

    Numerics:
        From log p and log(1 - p), each exact at both ends: p^γ is right also where p underflows. Absent classes add
        nothing; 0 in a row without any class.

    Gradient:
        γ pⱼ^γ (1 - pⱼ)^γ (d log pⱼ + d log(1 - pⱼ)), summed; finite also for γ < 1. All modes, as for `log_softmax`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> print(f"{jaxsoftmax.calibration.generalized_entropy_score(jnp.zeros(2), gamma=0.5):.1f}")
        1.0

    References:
        X. Liu, Y. Lochman and C. Zach, GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection, 2023.
    """
    name = "generalized_entropy_score"
    checks.positive(f"calibration.{name}", gamma=gamma)
    checks.whole(f"calibration.{name}", k=k)
    options = (float(gamma), None if k is None else int(k))
    return _score(name, _generalized_entropy, logits, where, temperature, axis, options)


# Derivation.
#
# The row statistics of the most probable class m give p_m and 1 - p_m, each to the last digit, with a derivative rule
# that keeps them so. Every other class has p_j <= 1/2, where 1 - p_j is exact as it stands. What follows from these is
# summed with one sign, in the value and, since a softmax rule centres its cotangent at m, in the gradient:
#     Gini     p_m (1 - p_m) + sum_{j != m} p_j (1 - p_j)
#     margin   (1 - p_m) + p_2
#     GEN      exp(gamma (log p + log(1 - p))),  log(1 - p_m) = -softplus(log-odds of m),  log(1 - p_j) = log1p(-p_j)
# In GEN the others' log-sum-exp is not that of the row statistics, which sums exp(z - max z): with a small gamma,
# (1 - p_m)^gamma counts where these have long underflowed. It is taken relative to the largest of the others.


def _score(
    name: str,
    formula: Callable[..., jax.Array],
    logits: Any,
    where: Any,
    temperature: Any,
    axis: Any,
    options: Any = (),
) -> jax.Array:
    """What every score begins with; the options are static."""
    name = f"calibration.{name}"
    axis = checks.static_axis(name, axis)
    checks.numbers_in(name, 0, math.inf, temperature=temperature)
    return _score_call(logits, where, temperature, name=name, formula=formula, axis=axis, options=options)


@calls.compiled("name", "formula", "axis", "options")
def _score_call(
    logits: Any, where: Any, temperature: Any, *, name: str, formula: Any, axis: int, options: Any
) -> jax.Array:
    logits = checks.floating(name, logits=logits)
    axes = checks.class_axis(name, axis, logits=logits)
    axis = axes.one
    where = checks.mask(name, where, logits, axes)
    temperature = checks.per_row(name, "temperature", temperature, logits, axes)
    if options and options[1] is not None and not 1 <= options[1] <= logits.shape[axis]:
        rule = f"k must lie in [1, {logits.shape[axis]}], the number of classes"
        checks.fail(ValueError, name, rule, k=options[1], logits=logits)
    wide = arrays.present(logits, where).astype(arrays.compute_dtype(logits.dtype))
    return formula(wide, axis, temperature, *options)


def _top(values: jax.Array, axis: int, temperature: Any) -> tuple[jax.Array, RowStatistics]:
    """Where the most probable class stands, and the statistics with it for a label."""
    top = jnp.argmax(values, axis=axis)
    statistics = row_statistics(values, top, axis=axis, temperature=temperature)
    return arrays.is_label(jnp.expand_dims(top, axis), values, Axes((axis,))), statistics


def _max_probability(values: jax.Array, axis: int, temperature: Any) -> jax.Array:
    return _top(values, axis, temperature)[1].error_prob


def _max_logit(values: jax.Array, axis: int, temperature: Any) -> jax.Array:
    # Not jnp.max, which gives absent classes of an empty row a gradient.
    return -smooth_max(values, temperature=0.0, axis=axis)


def _energy(values: jax.Array, axis: int, temperature: Any) -> jax.Array:
    return -smooth_max(values, temperature=temperature, axis=axis)


def _entropy(values: jax.Array, axis: int, temperature: Any) -> jax.Array:
    return entropy(values, axis=axis, temperature=temperature)


def _margin(values: jax.Array, axis: int, temperature: Any) -> jax.Array:
    is_top, first = _top(values, axis, temperature)
    others = jnp.where(is_top, -jnp.inf, lax.stop_gradient(values))
    second = row_statistics(values, jnp.argmax(others, axis=axis), axis=axis, temperature=temperature)
    alone = jnp.all(jnp.isneginf(others), axis=axis)
    return first.error_prob + jnp.where(alone, 0.0, second.prob)


def _gini(values: jax.Array, axis: int, temperature: Any) -> jax.Array:
    is_top, top = _top(values, axis, temperature)
    p = jnp.where(is_top, 0.0, softmax(values, axis=axis, temperature=temperature))
    return top.prob * top.error_prob + jnp.sum(p * (1.0 - p), axis=axis)


def _generalized_entropy(values: jax.Array, axis: int, temperature: Any, gamma: float, k: int | None) -> jax.Array:
    axes = Axes((axis,))
    is_top = arrays.is_label(jnp.argmax(values, axis=axis, keepdims=True), values, axes)
    log_p = log_softmax(values, axis=axis, temperature=temperature)
    shift = arrays.row_max(values, axes)
    rest = logsumexp(jnp.where(is_top, -jnp.inf, values - shift), axis=axis, temperature=temperature, keepdims=True)
    target = arrays.row_sum(jnp.where(is_top, arrays.centred(values, shift, temperature), 0.0), axes)
    lacking = -scalars.softplus(scalars.log_odds(target, rest))
    log_missing = jnp.where(is_top, lacking, jnp.log1p(-jnp.exp(jnp.where(is_top, -jnp.inf, log_p))))
    terms = jnp.exp(gamma * (log_p + log_missing))
    if k is not None:
        best = lax.top_k(jnp.moveaxis(lax.stop_gradient(values), axis, -1), k)[1]
        terms = jnp.take_along_axis(terms, jnp.moveaxis(best, -1, axis), axis=axis)
    return jnp.sum(terms, axis=axis)
