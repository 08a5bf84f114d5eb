"""The logistic function and its relatives, exact to the last digit at both ends.

They are plain functions, for use inside of rules; the forms are such that plain differentiation keeps every digit too.
"""

import jax
import jax.numpy as jnp
from jax import lax

__all__ = [
    "both_sigmoid",
    "both_softplus",
    "folded",
    "inverse",
    "log_add",
    "log_odds",
    "safe_log",
    "share",
    "sigmoid",
    "softplus",
    "times",
]


def folded(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether x > 0, and exp(-|x|).

    Forms by max and |x| have no second derivative at 0, where untrained logits start; this has one on either side.
    """
    positive = x > 0
    return positive, jnp.exp(jnp.where(positive, -x, x))


def softplus(x: jax.Array) -> jax.Array:
    """log(1 + exp(x)), as x + log1p(exp(-x)) for x > 0 and log1p(exp(x)) elsewhere."""
    return both_softplus(x)[1]


def sigmoid(x: jax.Array) -> jax.Array:
    """1 / (1 + exp(-x)) for x > 0 and exp(x) / (1 + exp(x)) elsewhere; no form by tanh, which loses the tail."""
    return both_sigmoid(x)[1]


def both_softplus(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """softplus(-x) and softplus(x), by one logarithm."""
    positive, decay = folded(x)
    common = jnp.log1p(decay)
    return jnp.where(positive, 0.0, -x) + common, jnp.where(positive, x, 0.0) + common


def both_sigmoid(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """sigmoid(-x) and sigmoid(x), by one exponential."""
    positive, decay = folded(x)
    return jnp.where(positive, decay, 1.0) / (1.0 + decay), jnp.where(positive, 1.0, decay) / (1.0 + decay)


def log_odds(target: jax.Array, rest: jax.Array) -> jax.Array:
    """target - rest, and -inf where target is, even if rest is too."""
    nothing = jnp.isneginf(target) & jnp.isneginf(rest)
    return target - jnp.where(nothing, 0.0, rest)


def safe_log(x: jax.Array) -> jax.Array:
    """log x for x >= 0, with derivative 0 at 0."""
    return jnp.where(x == 0, -jnp.inf, jnp.log(jnp.where(x == 0, 1.0, x)))


def inverse(x: jax.Array) -> jax.Array:
    """1 / x, and 0 with derivative 0 at 0."""
    return jnp.where(x == 0, 0.0, 1.0 / jnp.where(x == 0, 1.0, x))


def share(part: jax.Array, whole: jax.Array) -> jax.Array:
    """part / whole, 1 where part is the whole to the last digit, and 0 where the whole is 0.

    A compiler may divide by a number that several share as by its rounded reciprocal, and a GPU divides by
    approximation: x / x is not always 1.
    """
    nothing = whole == 0
    quotient = jnp.where(nothing, 0.0, part / jnp.where(nothing, 1.0, whole))
    return quotient + lax.stop_gradient(jnp.where((part == whole) & ~nothing, 1.0 - quotient, 0.0))


def times(factor: jax.Array, term: jax.Array) -> jax.Array:
    """factor * term, where 0 * inf counts as 0."""
    return factor * jnp.where((factor == 0) & jnp.isinf(term), 0.0, term)


def log_add(a: jax.Array, b: jax.Array) -> jax.Array:
    """log(exp(a) + exp(b)); -inf where both are, with derivative 0."""
    nothing = jnp.isneginf(a) & jnp.isneginf(b)
    difference = jnp.where(nothing, 0.0, a) - jnp.where(nothing, 0.0, b)
    positive, decay = folded(difference)
    return jnp.where(positive, a, b) + jnp.log1p(decay)
