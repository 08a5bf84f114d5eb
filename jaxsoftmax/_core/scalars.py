"""The logistic function and its relatives, exact to the last digit at both ends.

They are plain functions, for use inside of rules; the forms are such that plain differentiation keeps every digit too.
"""

import jax
import jax.numpy as jnp

__all__ = ["log_add", "log_odds", "safe_log", "sigmoid", "softplus", "times"]


def softplus(x: jax.Array) -> jax.Array:
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|))."""
    return jnp.maximum(x, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def sigmoid(x: jax.Array) -> jax.Array:
    """1 / (1 + exp(-x)), without the cancellation of the form by tanh that compilers use."""
    return jnp.exp(jnp.minimum(x, 0.0)) / (1.0 + jnp.exp(-jnp.abs(x)))


def log_odds(target: jax.Array, rest: jax.Array) -> jax.Array:
    """target - rest, and -inf where target is, even if rest is too."""
    nothing = jnp.isneginf(target) & jnp.isneginf(rest)
    return target - jnp.where(nothing, 0.0, rest)


def safe_log(x: jax.Array) -> jax.Array:
    """log x for x >= 0, with derivative 0 at 0."""
    return jnp.where(x == 0, -jnp.inf, jnp.log(jnp.where(x == 0, 1.0, x)))


def times(factor: jax.Array, term: jax.Array) -> jax.Array:
    """factor * term, where 0 * inf counts as 0."""
    return factor * jnp.where((factor == 0) & jnp.isinf(term), 0.0, term)


def log_add(a: jax.Array, b: jax.Array) -> jax.Array:
    """log(exp(a) + exp(b)); -inf where both are, with derivative 0."""
    nothing = jnp.isneginf(a) & jnp.isneginf(b)
    difference = jnp.where(nothing, 0.0, a) - jnp.where(nothing, 0.0, b)
    return jnp.where(nothing, -jnp.inf, jnp.maximum(a, b) + jnp.log1p(jnp.exp(-jnp.abs(difference))))
