"""How sure a metric is: bootstrap confidence intervals, every resample at once."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxsoftmax._core import arrays as array_rules
from jaxsoftmax._core import calls, checks, meshes
from jaxsoftmax.calibration import inputs

__all__ = ["BootstrapInterval", "bootstrap"]

AT_ONCE = 2**22  # numbers per array of weights, in a batch of resamples


class BootstrapInterval(NamedTuple):
    """A statistic and what it might have been; every field has the structure of what the statistic returns.

    Attributes:
        estimate: The statistic of the data themselves.
        lower: The lower end of the interval.
        upper: The upper end of the interval.
        samples: [resamples, ...], the statistic of each resample.
    """

    estimate: Any
    lower: Any
    upper: Any
    samples: Any


def bootstrap(
    key: ArrayLike,
    statistic: Callable[..., Any],
    arrays: tuple[ArrayLike, ...],
    *,
    weights: ArrayLike | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    batch_size: int | None = None,
) -> BootstrapInterval:
    """Percentile confidence intervals of any statistic, by drawing the rows again with replacement.

    A resample draws as many rows as there are, and enters the statistic as weights: how often each row was drawn.

    Args:
        key: A random key.
        statistic: Called as statistic(*arrays, weights=w), w of [N], where a row of weight k must count as k rows; it
            returns numbers, arrays, or a NamedTuple of them such as `calibration_summary` does. It runs under jit,
            compiled once for each function object and shape.
        arrays: A tuple of what the statistic takes by position, the first axis of the first of them N.
        weights: [N], each row's own weight, 0 or more; 1 by default. Rows of weight 0 are never drawn.
        resamples: How many, 1 or more.
        level: Of confidence, between 0 and 1.
        batch_size: How many resamples at once; by default so many that their weights take 16 MB.

    Returns:
        BootstrapInterval; floating fields in float32 or wider.

    Raises:
        TypeError: The key is none, the statistic is not a function, arrays is not a tuple, or resamples or batch_size
            is no integer.
        ValueError: There is no row, a shape does not fit, an option is out of range, or a weight that can be seen, not
            traced, is negative.

    Numerics:
        The ends are quantiles of the samples, interpolated linearly as NumPy does. A statistic with a bias, such as the
        binned calibration error of a model that is well calibrated, has it twice in the samples: there the estimate can
        lie at or below the lower end, which says that the metric is mostly noise. The same key gives the same draws
        whatever the batch size.

    Gradient:
        Of the statistic, through estimate and samples; none by the draws.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsoftmax
        >>> values = jnp.arange(100.0)
        >>> interval = jaxsoftmax.calibration.bootstrap(jax.random.key(0), jaxsoftmax.weighted_mean, (values,))
        >>> print(bool(interval.lower < interval.estimate < interval.upper))
        True

    References:
        B. Efron, Bootstrap Methods: Another Look at the Jackknife, 1979.
    """
    name = "calibration.bootstrap"
    checks.random_key(name, key)
    if not callable(statistic):
        checks.fail(TypeError, name, "statistic must be a function", statistic=statistic)
    if not isinstance(arrays, tuple) or not arrays:
        checks.fail(TypeError, name, "arrays must be a tuple of one array or more", arrays=arrays)
    checks.whole(name, resamples=resamples, batch_size=batch_size)
    checks.numbers_in(name, 1, math.inf, resamples=resamples, batch_size=batch_size)
    if not (isinstance(level, int | float | np.number) and 0 < level < 1):
        checks.fail(ValueError, name, "level must be between 0 and 1, and neither", level=level)
    first = checks.numeric(name, arrays=arrays[0])
    if first.ndim == 0 or first.shape[0] == 0:
        checks.fail(ValueError, name, "arrays must have one row or more", arrays=first)
    first = meshes.whole_along(first, *range(1, first.ndim))
    rows = lax.stop_gradient(first.reshape(first.shape[0], -1)[:, 0])
    dtype = array_rules.compute_dtype(first.dtype)
    counts = inputs.row_weights(name, weights, rows, dtype)
    estimate = _floats(statistic(*arrays, weights=counts))
    if batch_size is None:
        batch_size = max(1, min(resamples, AT_ONCE // first.shape[0]))
    samples = _samples_call(key, arrays, counts, statistic=statistic, resamples=resamples, batch_size=batch_size)
    tail = (1.0 - level) / 2.0
    lower, upper = (jax.tree.map(lambda s, q=q: jnp.quantile(s, q, axis=0), samples) for q in (tail, 1.0 - tail))
    return BootstrapInterval(estimate, lower, upper, samples)


@calls.compiled("statistic", "resamples", "batch_size")
def _samples_call(key: Any, arrays: Any, weights: jax.Array, *, statistic: Any, resamples: int, batch_size: int) -> Any:
    # The arrays are the same for all, and so is whatever the statistic computes of them alone: only weights are drawn.
    def sample(key: jax.Array) -> Any:
        return _floats(statistic(*arrays, weights=weights * draws(key, weights)))

    return lax.map(sample, jax.random.split(key, resamples), batch_size=min(batch_size, resamples))


def draws(key: jax.Array, weights: jax.Array) -> jax.Array:
    """[N], how often each of the M rows with a weight is drawn in M draws with replacement."""
    weights = meshes.whole(weights)
    size = weights.shape[0]
    present = weights != 0
    number = jnp.sum(present.astype(jnp.int32))
    # Shapes are fixed: N draws are made among the present rows, which come first in this order, and M of them count.
    order = jnp.argsort(~present, stable=True)
    drawn = jax.random.randint(key, (size,), 0, jnp.maximum(number, 1))
    counting = (jnp.arange(size, dtype=jnp.int32) < number).astype(weights.dtype)
    return jnp.zeros(size, weights.dtype).at[order[drawn]].add(counting)


def _floats(tree: Any) -> Any:
    """Every leaf in float32 or wider."""

    def widened(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        return leaf.astype(array_rules.compute_dtype(leaf.dtype))

    return jax.tree.map(widened, tree)
