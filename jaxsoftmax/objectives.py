"""A loss as a function of the row statistics: a few lines each, for dense, streamed and sharded heads alike.

Every objective takes a `RowStatistics` first and returns one loss per row, [...], in the dtype of the statistics;
options are keyword-only, and `functools.partial` fixes them. To write your own, take what you need from the statistics:

    def objective(statistics):
        return -statistics.log_prob + 0.1 * statistics.error_prob

A labelled class that is absent costs +inf, a label out of range NaN, an ignored row exactly 0.
"""

import math
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsoftmax._core import checks, meshes, rules, scalars
from jaxsoftmax.statistics import RowStatistics

__all__ = ["additive_margin", "angular_margin", "cross_entropy", "focal", "poly", "z_loss"]


def cross_entropy(
    statistics: RowStatistics,
    *,
    label_smoothing: ArrayLike = 0.0,
    smoothing: str = "uniform",
    z_loss: ArrayLike = 0.0,
) -> jax.Array:
    """Cross entropy of the labels, with label smoothing and z-loss.

    (1 - ε) · -log p[y]  +  ε · mean over present classes of -log pⱼ  +  z_loss · (log normalizer)²

    Args:
        statistics: Fields [...].
        label_smoothing: ε in [0, 1].
        smoothing: "uniform" mixes with the uniform distribution over the K present classes (ε/K each, as torch, optax,
            TensorFlow and Keras do); "others" gives ε/(K-1) to each class but the labelled one (fairseq, Megatron).
        z_loss: Coefficient ≥ 0 of the squared log normalizer.

    Returns:
        [...] in nats.

    Raises:
        ValueError: An option is out of range or unknown.

    Numerics:
        -log p[y] = softplus(-log-odds), right to the last digit however certain the label. Both terms of the smoothing
        are positive, so that nothing cancels; only with "others" and ε = 1 a rounding of the labelled logit's size
        stays of it.

    Gradient:
        d(-log p[y]) / d(log-odds) = -(1 - p[y]). All modes, as for `row_statistics`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> statistics = jaxsoftmax.row_statistics(jnp.array([[2.0, 0.0, 0.0]]), jnp.array([0]))
        >>> [loss] = jaxsoftmax.objectives.cross_entropy(statistics, label_smoothing=0.1)
        >>> print(f"{loss:.4f}")
        0.3729

    References:
        C. Szegedy et al., Rethinking the Inception Architecture, 2016 (label smoothing).
        A. Chowdhery et al., PaLM, 2022 (z-loss).
    """
    checks.numbers_in("objectives.cross_entropy", 0, 1, label_smoothing=label_smoothing)
    checks.numbers_in("objectives.cross_entropy", 0, math.inf, z_loss=z_loss)
    checks.choice("objectives.cross_entropy", ("uniform", "others"), smoothing=smoothing)
    return penalized(smoothed(statistics, label_smoothing, smoothing), statistics, z_loss)


def z_loss(statistics: RowStatistics) -> jax.Array:
    """The squared log normalizer, which keeps logits from drifting.

    (log Σⱼ exp(zⱼ))²

    Args:
        statistics: Fields [...].

    Returns:
        [...] in nats squared; 0 where no class is present.

    Gradient:
        2 log Z by the log normalizer log Z. All modes, as for `row_statistics`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> statistics = jaxsoftmax.row_statistics(jnp.array([[0.0, 0.0]]), jnp.array([0]))
        >>> [loss] = jaxsoftmax.objectives.z_loss(statistics)
        >>> print(f"{loss:.4f}")
        0.4805

    References:
        A. Chowdhery et al., PaLM: Scaling Language Modeling with Pathways, 2022, section 5.
    """
    nothing = jnp.isneginf(statistics.target) & jnp.isneginf(statistics.rest)
    return _square(jnp.where(nothing, 0.0, statistics.log_normalizer))


def focal(statistics: RowStatistics, *, gamma: ArrayLike = 2.0) -> jax.Array:
    """The focal loss: cross entropy weighted down where the label is already likely.

    (1 - p[y])^γ · -log p[y]

    Args:
        statistics: Fields [...].
        gamma: γ ≥ 0, a scalar; 0 gives the cross entropy.

    Returns:
        [...] in nats.

    Raises:
        ValueError: A Python number γ < 0.

    Numerics:
        With x = -log-odds: σ(x)^γ softplus(x), the power as exp(-γ softplus(-x)). Finite for every γ at p → 0 and p →
        1.

    Gradient:
        σ(x)^γ (γ σ(-x) softplus(x) + σ(x)) by x, never a power of γ - 1, which is infinite at p = 1 for γ < 1; by γ the
        loss times log(1 - p[y]). All modes, as for `row_statistics`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> statistics = jaxsoftmax.row_statistics(jnp.array([[2.0, 0.0, 0.0]]), jnp.array([0]))
        >>> [loss] = jaxsoftmax.objectives.focal(statistics, gamma=0.5)
        >>> print(f"{loss:.4f}")
        0.1106

    References:
        T.-Y. Lin et al., Focal Loss for Dense Object Detection, 2017.
    """
    checks.numbers_in("objectives.focal", 0, math.inf, gamma=gamma)
    x = -statistics.log_odds
    return _focal(x, _option("focal", x, gamma=gamma))


def poly(statistics: RowStatistics, *, epsilon: ArrayLike = 1.0) -> jax.Array:
    """Poly-1: cross entropy with the first coefficient of its expansion in 1 - p changed by ε.

    -log p[y] + ε (1 - p[y])

    Args:
        statistics: Fields [...].
        epsilon: ε ≥ -1, a scalar.

    Returns:
        [...] in nats.

    Raises:
        ValueError: A Python number ε < -1.

    Gradient:
        -(1 - p[y]) (1 + ε p[y]) by the log-odds, 1 - p[y] by ε. All modes, as for `row_statistics`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> statistics = jaxsoftmax.row_statistics(jnp.array([[2.0, 0.0, 0.0]]), jnp.array([0]))
        >>> [loss] = jaxsoftmax.objectives.poly(statistics)
        >>> print(f"{loss:.4f}")
        0.4526

    References:
        Z. Leng et al., PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions, 2022.
    """
    checks.numbers_in("objectives.poly", -1, math.inf, epsilon=epsilon)
    x = -statistics.log_odds
    return _poly(x, _option("poly", x, epsilon=epsilon))


def additive_margin(statistics: RowStatistics, *, margin: ArrayLike = 0.35, scale: ArrayLike = 64.0) -> jax.Array:
    """CosFace: the cosine of the labelled class must win by a margin.

    -log( exp(s (cos θ_y - m)) / (exp(s (cos θ_y - m)) + Σ_{j≠y} exp(s cos θⱼ)) )

    Args:
        statistics: Those of the logits s · cos θ, fields [...].
        margin: m, in cosines.
        scale: s, the factor that is already in the logits.

    Returns:
        [...] in nats.

    Gradient:
        That of the cross entropy at log-odds less s m. All modes, as for `row_statistics`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> statistics = jaxsoftmax.row_statistics(10.0 * jnp.array([[0.9, 0.2]]), jnp.array([0]))
        >>> [loss] = jaxsoftmax.objectives.additive_margin(statistics, margin=0.35, scale=10.0)
        >>> print(f"{loss:.4f}")
        0.0298

    References:
        H. Wang et al., CosFace: Large Margin Cosine Loss for Deep Face Recognition, 2018.
    """
    x = -statistics.log_odds
    name = "additive_margin"
    return _logistic(x + _option(name, x, margin=margin) * _option(name, x, scale=scale))


def angular_margin(statistics: RowStatistics, *, margin: ArrayLike = 0.5, scale: ArrayLike = 64.0) -> jax.Array:
    """ArcFace: the angle of the labelled class must win by a margin.

    The labelled logit s cos θ becomes s cos(θ + m), or s (cos θ - m sin m) where θ + m passes π; then cross entropy.

    Args:
        statistics: Those of the logits s · cos θ, fields [...].
        margin: m in [0, π], in radians.
        scale: s > 0, the factor that is already in the logits.

    Returns:
        [...] in nats.

    Raises:
        ValueError: A Python number is out of range.

    Numerics:
        The cosine is held in [-1, 1], where rounding can push it out.

    Gradient:
        d cos(θ + m) / d cos θ = sin(θ + m) / sin θ, true also where others take it for 1. It is infinite at |cos θ| =
        1; there sin θ is held at the square root of the machine epsilon, below which the cosine does not resolve it.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> statistics = jaxsoftmax.row_statistics(10.0 * jnp.array([[1.0, 0.2]]), jnp.array([0]))
        >>> [loss] = jaxsoftmax.objectives.angular_margin(statistics, margin=0.5, scale=10.0)
        >>> print(f"{loss:.5f}")
        0.00114

    References:
        J. Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face Recognition, 2019.
    """
    checks.numbers_in("objectives.angular_margin", 0, math.pi, margin=margin)
    checks.numbers_in("objectives.angular_margin", 0, math.inf, scale=scale)
    scales = _option("angular_margin", statistics.target, scale=scale)
    cosine = (statistics.target + statistics.shift) / scales
    gap = _margin_gap(cosine, _option("angular_margin", statistics.target, margin=margin))
    return _logistic(scales * gap - statistics.log_odds)


def smoothed(statistics: RowStatistics, label_smoothing: ArrayLike, smoothing: str) -> jax.Array:
    """Cross entropy with label smoothing, of checked arguments."""
    if isinstance(label_smoothing, int | float) and label_smoothing == 0:
        return _logistic(-statistics.log_odds)
    share = _option("cross_entropy", statistics.target, label_smoothing=label_smoothing)
    rows = statistics.target, statistics.rest, statistics.mean, share
    return _smoothed(*rows) if smoothing == "uniform" else _smoothed_by_others(*rows, statistics.classes)


def penalized(loss: jax.Array, statistics: RowStatistics, coefficient: ArrayLike) -> jax.Array:
    """The loss plus the z-loss times its coefficient, of checked arguments."""
    if isinstance(coefficient, int | float) and coefficient == 0:
        return loss
    return loss + _option("cross_entropy", loss, z_loss=coefficient) * z_loss(statistics)


def _option(function: str, rows: jax.Array, **option: ArrayLike) -> jax.Array:
    """A scalar option, once for each row; times ones, which on an explicit mesh have the rows' places."""
    return checks.scalar(f"objectives.{function}", rows.dtype, **option) * meshes.ones_like(rows)


# Derivation. Everything is a function of x = -log-odds, the log-odds of being wrong; s = sigmoid, and 1 - s(x) = s(-x).
#
#   cross entropy      f = softplus(x)                 f' = s(x)
#   label smoothing    f = (1 - e) softplus(x) + e (log(exp(target) + exp(rest)) - mean),  both terms positive;
#                      by target e s(-x) - (1 - e) s(x), by rest s(x), by mean -e, by e target - mean.
#                      By the K - 1 others: the same with their mean, and in the slopes with e K / (K - 1) for e: a
#                      mixture with all classes, whose first term is negative for e near 1
#   focal              f = s(x)^gamma softplus(x)      f' = s(x)^gamma (gamma s(-x) softplus(x) + s(x)),  from
#                                                      d log s / dx = s(-x);   df/dgamma = f log s(x)
#   poly-1             f = softplus(x) + eps s(x)      f' = s(x) + eps s(x) s(-x);   df/deps = s(x)
#
# At x = -inf (an ignored or certain row) and x = inf (an absent label) products of 0 and inf arise, whose limit is 0:
# there x, or a cost, is held at a number so far out that the rest is exact, and so near that no derivative overflows.
#
# The angular margin with c = cos(theta), q = sin(theta) = sqrt((1 - c)(1 + c)):
#     gap = c - cos(theta + m) = 2 c sin^2(m / 2) + q sin(m)
#     dgap/dc = 2 sin^2(m / 2) - c sin(m) / q,        dgap/dm = c sin(m) + q cos(m)
# and where theta + m > pi, that is c < -cos(m):  gap = m sin(m), dgap/dc = 0, dgap/dm = sin(m) + m cos(m).


_FAR = 2.0**64


def within_reach(x: jax.Array) -> jax.Array:
    """x, but no further from 0 than where its products with the slopes are finite."""
    return jnp.clip(x, -_FAR, _FAR)


# Infinite at T = 0, where the slope by the logits is 0: what is multiplied by it must be finite.
_square = rules.elementwise(jnp.square, lambda x: (2.0 * within_reach(x),))


_logistic = rules.elementwise(scalars.softplus, lambda x: (scalars.sigmoid(x),))


def _smoothed_value(target: jax.Array, rest: jax.Array, mean: jax.Array, share: jax.Array) -> jax.Array:
    plain = scalars.softplus(-scalars.log_odds(target, rest))
    uniform = scalars.log_add(target, rest) - mean
    absent = jnp.isneginf(target)
    return jnp.where(absent, plain, (1.0 - share) * jnp.where(absent, 0.0, plain) + share * uniform)


def _smoothed_slopes(target: jax.Array, rest: jax.Array, mean: jax.Array, share: jax.Array) -> tuple[jax.Array, ...]:
    odds = scalars.log_odds(target, rest)
    wrong, right = scalars.both_sigmoid(odds)
    by_share = jnp.where(jnp.isneginf(target), 0.0, target - mean)
    return share * right - (1.0 - share) * wrong, wrong, -share, by_share


_smoothed = rules.elementwise(_smoothed_value, _smoothed_slopes)


def _by_others_value(*rows: jax.Array) -> jax.Array:
    target, rest, mean, share, classes = rows
    sum_of_others = classes * mean - jnp.where(jnp.isneginf(target), 0.0, target)
    return _smoothed_value(target, rest, sum_of_others / jnp.maximum(classes - 1.0, 1.0), share)


def _by_others_slopes(*rows: jax.Array) -> tuple[jax.Array, ...]:
    target, rest, mean, share, classes = rows
    factor = jnp.where(classes > 1.0, classes / jnp.maximum(classes - 1.0, 1.0), 0.0)  # a single class has no others
    *slopes, by_share = _smoothed_slopes(target, rest, mean, share * factor)
    return *slopes, by_share * factor, jnp.zeros_like(classes)


_smoothed_by_others = rules.elementwise(_by_others_value, _by_others_slopes)


class Focal(NamedTuple):
    """What the focal loss of x and its slopes are made of: -log s(x), the cross entropy -log s(-x), s(-x) and s(x)."""

    right: jax.Array
    wrong: jax.Array
    prob: jax.Array
    error: jax.Array

    @classmethod
    def of(cls, x: jax.Array) -> Self:
        return cls(*scalars.both_softplus(x), *scalars.both_sigmoid(x))

    def mirrored(self) -> Self:
        """The same of -x."""
        return type(self)(self.wrong, self.right, self.error, self.prob)

    def value(self, gamma: jax.Array) -> jax.Array:
        return self.near(gamma) + self.beyond

    def near(self, gamma: jax.Array) -> jax.Array:
        """The value where the cross entropy is within reach; beyond, the power is 1, and it lacks what is `beyond`."""
        return self._power(gamma) * jnp.minimum(self.wrong, _FAR)

    @property
    def beyond(self) -> jax.Array:
        """Apart from the power, for then an infinite cost has finite derivatives."""
        return self.wrong - jnp.minimum(self.wrong, _FAR)

    def slopes(self, gamma: jax.Array) -> tuple[jax.Array, jax.Array]:
        """By x and by gamma."""
        power, wrong = self._power(gamma), jnp.minimum(self.wrong, _FAR)
        return power * (gamma * self.prob * wrong + self.error), -power * wrong * jnp.minimum(self.right, _FAR)

    def _power(self, gamma: jax.Array) -> jax.Array:
        """s(x)^gamma."""
        return jnp.exp(-gamma * jnp.minimum(self.right, _FAR))


_focal = rules.elementwise(lambda x, gamma: Focal.of(x).value(gamma), lambda x, gamma: Focal.of(x).slopes(gamma))


def _poly_value(x: jax.Array, epsilon: jax.Array) -> jax.Array:
    return scalars.softplus(x) + epsilon * scalars.sigmoid(x)


def _poly_slopes(x: jax.Array, epsilon: jax.Array) -> tuple[jax.Array, jax.Array]:
    wrong = scalars.sigmoid(x)
    return wrong + epsilon * wrong * scalars.sigmoid(-x), wrong


_poly = rules.elementwise(_poly_value, _poly_slopes)


def _angle(cosine: jax.Array, margin: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """c in [-1, 1], sin(theta), and whether theta + m stays within pi."""
    cosine = jnp.clip(cosine, -1.0, 1.0)
    return cosine, jnp.sqrt((1.0 - cosine) * (1.0 + cosine)), cosine >= -jnp.cos(margin)


def _margin_gap_value(cosine: jax.Array, margin: jax.Array) -> jax.Array:
    cosine, sine, within = _angle(cosine, margin)
    gap = 2.0 * cosine * jnp.square(jnp.sin(margin / 2.0)) + sine * jnp.sin(margin)
    return jnp.where(within, gap, margin * jnp.sin(margin))


def _margin_gap_slopes(cosine: jax.Array, margin: jax.Array) -> tuple[jax.Array, jax.Array]:
    cosine, _, within = _angle(cosine, margin)
    squared = jnp.maximum((1.0 - cosine) * (1.0 + cosine), float(jnp.finfo(cosine.dtype).eps))
    sine = jnp.sqrt(squared)  # held before the root, whose own slope is infinite at 0
    by_cosine = 2.0 * jnp.square(jnp.sin(margin / 2.0)) - cosine * jnp.sin(margin) / sine
    by_margin = cosine * jnp.sin(margin) + sine * jnp.cos(margin)
    beyond = jnp.sin(margin) + margin * jnp.cos(margin)
    return jnp.where(within, by_cosine, 0.0), jnp.where(within, by_margin, beyond)


_margin_gap = rules.elementwise(_margin_gap_value, _margin_gap_slopes)
