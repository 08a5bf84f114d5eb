"""The search behind the affine calibrators: a convex problem in nats, from the temperature on."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftmax._core import arrays, calls
from jaxsoftmax._core.meshes import Axes
from jaxsoftmax.calibration import inputs
from jaxsoftmax.calibration.scaling import TemperatureScaling, separable, solve_temperature
from jaxsoftmax.losses import cross_entropy, weighted_mean
from jaxsoftmax.normalizers import log_softmax, softmax

__all__: list[str] = []


class Penalties(NamedTuple):
    """Of the diagonal, of the rest of the matrix, and of the intercepts; scalars of the compute dtype."""

    diagonal: jax.Array
    off_diagonal: jax.Array
    intercept: jax.Array


class AffineFit(NamedTuple):
    """[V] or [V, V], [V], and the report."""

    kernel: jax.Array
    bias: jax.Array
    nll_before: jax.Array
    nll_after: jax.Array
    converged: jax.Array
    iterations: jax.Array


def centred(logits: jax.Array) -> jax.Array:
    """z - mean z over the present classes, 0 for absent ones, float32 or wider."""
    absent = jnp.isneginf(logits)
    largest = arrays.row_max(logits, Axes((logits.ndim - 1,)))
    # less the largest one first, or a common offset would cost the mean its digits
    d = _bounded(jnp.where(absent, 0.0, logits.astype(largest.dtype) - largest))
    classes = jnp.sum(~absent, axis=-1, keepdims=True).astype(d.dtype)
    mean = jnp.sum(d, axis=-1, keepdims=True) / jnp.maximum(classes, 1.0)
    return jnp.where(absent, 0.0, d - mean)


def normalized(logits: jax.Array) -> jax.Array:
    """log softmax(z), 0 for absent classes, float32 or wider."""
    wide = logits.astype(arrays.compute_dtype(logits.dtype))
    return _bounded(jnp.where(jnp.isneginf(wide), 0.0, log_softmax(wide)))


def _bounded(features: jax.Array) -> jax.Array:
    """Held so far from overflow that sums and products of them are no NaN: for -inf written as a finite number."""
    limit = float(jnp.finfo(features.dtype).max) * 2.0**-30
    return jnp.clip(features, -limit, limit)


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x times a matrix, or a diagonal given as a vector, in full precision on every device."""
    if kernel.ndim == 1:
        return x * kernel.reshape((1,) * (x.ndim - 1) + kernel.shape)
    return jnp.matmul(x, kernel, precision=lax.Precision.HIGHEST)


# The problem.
#
# x are the features over T, and s their root mean square. In  u = x + (x / s) D + b  the corrections D and b are in
# nats and all of about one size: one unit of penalty suits all of them, and L-BFGS needs no other scaling. The
# penalties are those of a normal prior whose precision is V times the caller's number, because V entries of D add up in
# each logit. What is minimized is the mean over the rows. Its gradient counts as vanished when its norm is a small part
# of the mean norm of the rows' own gradients, whose mean it is.

_MOST_ITERATIONS = 500
_MEMORY = 10


@calls.compiled("vector", "logarithmic")
def solve_affine(rows: inputs.Rows, penalties: Penalties, *, vector: bool, logarithmic: bool) -> AffineFit:
    """The fit, from rows that are checked: a diagonal for `vector`, of log-probabilities where `logarithmic`."""
    rows, penalties = jax.tree.map(lax.stop_gradient, (rows, penalties))
    assert rows.logits is not None
    features = normalized(rows.logits) if logarithmic else centred(rows.logits)
    classes = features.shape[1]
    diagonal = jnp.ones(classes, features.dtype) if vector else jnp.eye(classes, dtype=features.dtype)
    return _solve(rows, solve_temperature(rows), penalties, features, diagonal, jnp.ones_like(diagonal))


def solve_every(rows: inputs.Rows, penalties: Penalties) -> tuple[TemperatureScaling, AffineFit, AffineFit, AffineFit]:
    """Temperature, vector, matrix and Dirichlet fits in one program, which takes a third of the time to compile.

    The vector is a matrix here, none of whose entries but the diagonal may change.
    """
    rows, penalties = jax.tree.map(lax.stop_gradient, (rows, penalties))
    assert rows.logits is not None
    scaling = solve_temperature(rows)
    linear, logarithmic = centred(rows.logits), normalized(rows.logits)
    diagonal = jnp.eye(linear.shape[1], dtype=linear.dtype)
    features = jnp.stack([linear, linear, logarithmic])
    free = jnp.stack([diagonal, jnp.ones_like(diagonal), jnp.ones_like(diagonal)])
    fits = jax.vmap(_solve, (None, None, None, 0, None, 0))(rows, scaling, penalties, features, diagonal, free)
    vector, matrix, dirichlet = (jax.tree.map(lambda x, k=k: x[k], fits) for k in range(3))
    return scaling, vector._replace(kernel=jnp.diagonal(vector.kernel)), matrix, dirichlet


def _solve(
    rows: inputs.Rows,
    scaling: TemperatureScaling,
    penalties: Penalties,
    features: jax.Array,
    diagonal: jax.Array,
    free: jax.Array,
) -> AffineFit:
    """The fit to features [N, V] of a kernel like `diagonal`, which is the identity, and moves where `free` is 1."""
    assert rows.logits is not None
    logits, dtype = rows.logits, features.dtype
    absent = jnp.isneginf(logits)
    lost = jnp.isneginf(arrays.own_pick(logits, rows.labels[:, None], Axes((1,))))[:, 0]
    weights = jnp.where(lost, 0.0, rows.weights)
    temperature = jnp.where(separable(logits, rows.labels, weights), 1.0, scaling.temperature)
    x = _bounded(features / temperature)
    size = _root_mean_square(x, jnp.where(absent, 0.0, weights[:, None]))
    unit = jnp.where(size == 0, 1.0, size)
    scaled = x / unit
    total = jnp.sum(weights)
    strength = features.shape[1] / jnp.where(total == 0, 1.0, total)
    of_kernel = penalties.off_diagonal + (penalties.diagonal - penalties.off_diagonal) * diagonal

    def calibrated(correction: Any) -> jax.Array:
        kernel, bias = correction
        return jnp.where(absent, -jnp.inf, x + product(scaled, free * kernel) + bias[None])

    def objective(correction: Any) -> jax.Array:
        kernel, bias = correction
        squares = jnp.sum(of_kernel * jnp.square(kernel)) + penalties.intercept * jnp.sum(jnp.square(bias))
        return weighted_mean(cross_entropy(calibrated(correction), rows.labels), weights) + strength / 2.0 * squares

    start = (jnp.zeros_like(diagonal), jnp.zeros(features.shape[1:], dtype))
    errors = softmax(calibrated(start)) - jax.nn.one_hot(rows.labels, features.shape[1], dtype=dtype)
    slopes = jnp.sum(jnp.square(errors), axis=1) * (1.0 + jnp.sum(jnp.square(scaled), axis=1))
    close = float(jnp.finfo(dtype).eps) ** 0.5 / 32.0 * weighted_mean(jnp.sqrt(slopes), weights)
    (kernel, bias), converged, iterations = _minimize(objective, start, close)

    after = weighted_mean(cross_entropy(calibrated((kernel, bias)), rows.labels), rows.weights)
    kernel = (diagonal + free * kernel / unit) / temperature
    numbers = inputs.poisoned((kernel, bias, scaling.nll_before, after), rows.broken, jnp.isnan(sum(penalties)))
    return AffineFit(*numbers, converged & jnp.isfinite(jnp.sum(numbers[1])), iterations)


def _root_mean_square(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Of the entries, by these weights; in units of the largest one, whose square may overflow."""
    largest = jnp.max(jnp.where(weights == 0, 0.0, jnp.abs(x)))
    return largest * jnp.sqrt(weighted_mean(jnp.square(x / jnp.where(largest == 0, 1.0, largest)), weights))


def _minimize(objective: Any, start: Any, close: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
    """The minimum by L-BFGS, whether the norm of the gradient came down to `close`, and the number of steps."""
    import optax  # type: ignore[import-untyped]

    method = optax.lbfgs(memory_size=_MEMORY)

    def unfinished(carry: Any) -> jax.Array:
        *_, gradient, iteration = carry
        return (optax.tree.norm(gradient) > close) & (iteration < _MOST_ITERATIONS)

    def improve(carry: Any) -> Any:
        point, state, value, gradient, iteration = carry
        # optax's own indices mix int32 with int64 in 64-bit mode
        with jax.numpy_dtype_promotion("standard"):
            step, state = method.update(gradient, state, point, value=value, grad=gradient, value_fn=objective)
        # the line search knows both at the point that it chose
        value, gradient = optax.tree.get(state, "value"), optax.tree.get(state, "grad")
        return optax.apply_updates(point, step), state, value, gradient, iteration + 1

    first = (start, method.init(start), *jax.value_and_grad(objective)(start), jnp.int32(0))
    point, _, _, gradient, iterations = lax.while_loop(unfinished, improve, first)
    return point, optax.tree.norm(gradient) <= close, iterations
