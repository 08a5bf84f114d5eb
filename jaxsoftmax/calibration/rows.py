"""Rows without labels, given as logits or as probabilities, brought to one form."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsoftmax._core import arrays, checks
from jaxsoftmax.calibration.inputs import check_probs, row_weights
from jaxsoftmax.normalizers import softmax

__all__: list[str] = []


class Distributions(NamedTuple):
    """A distribution per row.

    Attributes:
        probs: [..., V], float32 or wider; 0 for absent classes.
        present: [..., V] or None, whether a class is present: None where all are.
        weights: [...], float32 or wider, or None.
        broken: [...], the rows that count and are no distribution; none of them where their values can be seen.
    """

    probs: jax.Array
    present: jax.Array | None
    weights: jax.Array | None
    broken: jax.Array


def distributions(function: str, logits: Any, probs: Any, where: Any = None, weights: Any = None) -> Distributions:
    """Every check, in the name of the function, and the softmax of logits; to be called before jit hides the values.

    Args:
        function: In whose name to complain, such as "calibration.conformal_sets".
        logits: [..., V], floating, or None.
        probs: [..., V], floating, or None.
        where: Which classes are present: boolean, of the shape of the logits or [V].
        weights: [...]; rows of weight 0 may hold anything.

    Returns:
        Distributions.

    Raises:
        TypeError: Neither or both of logits and probs are given, or a dtype is wrong.
        ValueError: A shape does not fit, or probabilities that can be seen are none.
    """
    owner, given = checks.exactly_one(function, logits=logits, probs=probs)
    values = checks.floating(function, **{owner: given})
    axis = checks.class_axis(function, -1, None, **{owner: values})
    mask = checks.mask(function, where, values, axis, owner)
    dtype = arrays.compute_dtype(values.dtype)
    if weights is not None:
        weights = checks.numeric(function, weights=weights)
        if weights.shape != values.shape[:-1]:
            rule = "weights must have one number per row"
            checks.fail(ValueError, function, rule, weights=weights, **{owner: values})
        weights = row_weights(function, weights, values[..., 0], dtype)
    if probs is None:
        kept = arrays.present(values, mask).astype(dtype)
        broken = jnp.zeros(values.shape[:-1], bool)
        return Distributions(softmax(kept), ~jnp.isneginf(kept), weights, broken)
    if mask is not None:
        values = jnp.where(mask, values, jnp.zeros((), values.dtype))
        mask = jnp.broadcast_to(mask, values.shape)
    broken = check_probs(function, values, weights)
    return Distributions(values.astype(dtype), mask, weights, broken)
