"""Calibration by an affine map of the logits: vector scaling, matrix scaling and Dirichlet calibration."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsoftmax._core import arrays, calls, checks
from jaxsoftmax.calibration import inputs
from jaxsoftmax.calibration.affine_fits import Penalties, centred, normalized, product, solve_affine
from jaxsoftmax.calibration.scaling import fit_rows, made_by

__all__ = [
    "DirichletCalibration",
    "MatrixScaling",
    "VectorScaling",
    "apply_dirichlet",
    "apply_matrix_scaling",
    "apply_vector_scaling",
    "fit_dirichlet",
    "fit_matrix_scaling",
    "fit_vector_scaling",
]

PENALTY = 2.0  # what kept validation losses of networks at or below those of temperature scaling, from 10 V rows on


class VectorScaling(NamedTuple):
    """A factor and an intercept per class, and how they were found.

    Attributes:
        scale: [V], float32 or wider: multiplies the logits less the mean of their row.
        bias: [V], in nats.
        nll_before: The mean negative log-likelihood of the rows with the logits as they are, in nats.
        nll_after: The same after calibration.
        converged: Whether the gradient vanished, as far as the precision allows.
        iterations: Steps taken, int32.
    """

    scale: jax.Array
    bias: jax.Array
    nll_before: jax.Array
    nll_after: jax.Array
    converged: jax.Array
    iterations: jax.Array


class MatrixScaling(NamedTuple):
    """A matrix and an intercept per class, and how they were found.

    Attributes:
        kernel: [V, V], float32 or wider: the logits less the mean of their row are multiplied by it from the right.
        bias: [V], in nats.
        nll_before: The mean negative log-likelihood of the rows with the logits as they are, in nats.
        nll_after: The same after calibration.
        converged: Whether the gradient vanished, as far as the precision allows.
        iterations: Steps taken, int32.
    """

    kernel: jax.Array
    bias: jax.Array
    nll_before: jax.Array
    nll_after: jax.Array
    converged: jax.Array
    iterations: jax.Array


class DirichletCalibration(NamedTuple):
    """A matrix for log-probabilities and an intercept per class, and how they were found.

    Attributes:
        kernel: [V, V], float32 or wider: the log-probabilities are multiplied by it from the right.
        bias: [V], in nats.
        nll_before: The mean negative log-likelihood of the rows with the probabilities as they are, in nats.
        nll_after: The same after calibration.
        converged: Whether the gradient vanished, as far as the precision allows.
        iterations: Steps taken, int32.
    """

    kernel: jax.Array
    bias: jax.Array
    nll_before: jax.Array
    nll_after: jax.Array
    converged: jax.Array
    iterations: jax.Array


def fit_vector_scaling(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    where: ArrayLike | None = None,
    diagonal_penalty: ArrayLike = PENALTY,
    intercept_penalty: ArrayLike = PENALTY,
) -> VectorScaling:
    """Vector scaling: a factor and an intercept per class, drawn towards temperature scaling.

    uⱼ = (1 + Dⱼ/s) xⱼ + bⱼ,  x = (z - mean z)/T;  min over D, b of  Σᵢ wᵢ nllᵢ + V/2 (δ Σⱼ Dⱼ² + μ Σⱼ bⱼ²)

    Args:
        logits: z, [..., V], floating; all axes but the last are rows, at least one.
        labels: [...], integers in [0, V).
        weights: w, [...], ≥ 0, how much each row counts; 1 by default. A row of weight 0 may hold anything.
        where: Which classes are present: boolean, of the shape of the logits or [V].
        diagonal_penalty: δ ≥ 0.
        intercept_penalty: μ ≥ 0.

    Returns:
        VectorScaling with fields [V] and scalars: scale = (1 + D/s)/T and bias = b.

    Raises:
        TypeError: The logits are not floating, the labels not integers, or the mask not boolean.
        ValueError: There are no rows or no classes, a shape does not fit, or a label, weight or penalty that can be
            seen is out of range; under jit, such a one makes the result NaN.

    Numerics:
        T is that of `fit_temperature`, where the search starts, or 1 where every label is a largest logit of its row,
        so that T would be 0. s is the root mean square of x: D is in nats, and the penalties mean the same at any scale
        of the logits. Beside many rows they vanish. With penalties of 0, separable data has no minimum, and the search
        may end unconverged. A number that is added to all logits of a row changes nothing. An absent class stays
        absent, and a row whose labelled class is absent costs +inf and takes no part in the search. Absent means -inf
        or `where`: a large negative number in its place would set the mean of its row and s.

    Gradient:
        None: the result is a constant to differentiation.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> logits, labels = jnp.array([[3.0, 0.0], [3.0, 0.0], [0.0, 3.0]]), jnp.array([0, 1, 1])
        >>> fit = jaxsoftmax.calibration.fit_vector_scaling(logits, labels)
        >>> print(f"{fit.nll_before:.2f} {fit.nll_after:.2f} {fit.converged}")
        1.05 0.59 True

    References:
        C. Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    return _fit(_VECTOR, logits, labels, weights, where, diagonal_penalty, 0.0, intercept_penalty)


def fit_matrix_scaling(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    where: ArrayLike | None = None,
    diagonal_penalty: ArrayLike = PENALTY,
    off_diagonal_penalty: ArrayLike = PENALTY,
    intercept_penalty: ArrayLike = PENALTY,
) -> MatrixScaling:
    """Matrix scaling: a linear map and an intercept per class, drawn towards temperature scaling.

    u = x (I + D/s) + b,  x = (z - mean z)/T;  min of  Σᵢ wᵢ nllᵢ + V/2 (δ Σⱼ Dⱼⱼ² + ω Σ_{j≠k} Dⱼₖ² + μ Σⱼ bⱼ²)

    Args:
        logits: z, [..., V], floating; all axes but the last are rows, at least one.
        labels: [...], integers in [0, V).
        weights: w, [...], ≥ 0, how much each row counts; 1 by default. A row of weight 0 may hold anything.
        where: Which classes are present: boolean, of the shape of the logits or [V].
        diagonal_penalty: δ ≥ 0; 0 for the off-diagonal and intercept regularization (ODIR) of Kull et al.
        off_diagonal_penalty: ω ≥ 0.
        intercept_penalty: μ ≥ 0.

    Returns:
        MatrixScaling with fields [V, V], [V] and scalars: kernel = (I + D/s)/T and bias = b.

    Raises:
        TypeError: The logits are not floating, the labels not integers, or the mask not boolean.
        ValueError: There are no rows or no classes, a shape does not fit, or a label, weight or penalty that can be
            seen is out of range; under jit, such a one makes the result NaN.

    Numerics:
        As for `fit_vector_scaling`. An absent class counts as the mean of its row to the other classes. Without
        penalties, V² numbers fit to a few hundred rows are worse than a temperature; with those by default they were
        not, on the networks and sizes of the tests.

    Gradient:
        None: the result is a constant to differentiation.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> logits, labels = jnp.array([[3.0, 0.0], [3.0, 0.0], [0.0, 3.0]]), jnp.array([0, 1, 1])
        >>> fit = jaxsoftmax.calibration.fit_matrix_scaling(logits, labels)
        >>> print(f"{fit.nll_before:.2f} {fit.nll_after:.2f} {fit.converged}")
        1.05 0.59 True

    References:
        C. Guo et al., On Calibration of Modern Neural Networks, 2017.
        M. Kull et al., Beyond temperature scaling: Obtaining well-calibrated multi-class probabilities with Dirichlet
        calibration, 2019 (ODIR).
    """
    penalties = (diagonal_penalty, off_diagonal_penalty, intercept_penalty)
    return _fit(_MATRIX, logits, labels, weights, where, *penalties)


def fit_dirichlet(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    where: ArrayLike | None = None,
    diagonal_penalty: ArrayLike = PENALTY,
    off_diagonal_penalty: ArrayLike = PENALTY,
    intercept_penalty: ArrayLike = PENALTY,
) -> DirichletCalibration:
    """Dirichlet calibration: a linear map of the log-probabilities, drawn towards temperature scaling.

    u = x (I + D/s) + b,  x = log softmax(z)/T;  min of  Σᵢ wᵢ nllᵢ + V/2 (δ Σⱼ Dⱼⱼ² + ω Σ_{j≠k} Dⱼₖ² + μ Σⱼ bⱼ²)

    Args:
        logits: z, [..., V], floating: log-probabilities or logits, which are normalized first.
        labels: [...], integers in [0, V).
        weights: w, [...], ≥ 0, how much each row counts; 1 by default. A row of weight 0 may hold anything.
        where: Which classes are present: boolean, of the shape of the logits or [V].
        diagonal_penalty: δ ≥ 0; 0 for the off-diagonal and intercept regularization (ODIR) of Kull et al.
        off_diagonal_penalty: ω ≥ 0.
        intercept_penalty: μ ≥ 0.

    Returns:
        DirichletCalibration with fields [V, V], [V] and scalars: kernel = (I + D/s)/T and bias = b.

    Raises:
        TypeError: The logits are not floating, the labels not integers, or the mask not boolean.
        ValueError: There are no rows or no classes, a shape does not fit, or a label, weight or penalty that can be
            seen is out of range; under jit, such a one makes the result NaN.

    Numerics:
        As for `fit_vector_scaling`. An absent class counts as 0 to the other classes. What it has beyond matrix scaling
        is the log normalizer of each row, as one more feature. Log-probabilities of logits that differ by less than
        1e-5 are all but equal in float32: where T is so small, use another calibrator.

    Gradient:
        None: the result is a constant to differentiation.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> probs, labels = jnp.array([[0.95, 0.05], [0.95, 0.05], [0.05, 0.95]]), jnp.array([0, 1, 1])
        >>> fit = jaxsoftmax.calibration.fit_dirichlet(jnp.log(probs), labels)
        >>> print(f"{fit.nll_before:.2f} {fit.nll_after:.2f} {fit.converged}")
        1.03 0.56 True

    References:
        M. Kull et al., Beyond temperature scaling: Obtaining well-calibrated multi-class probabilities with Dirichlet
        calibration, 2019.
    """
    penalties = (diagonal_penalty, off_diagonal_penalty, intercept_penalty)
    return _fit(_DIRICHLET, logits, labels, weights, where, *penalties)


def apply_vector_scaling(logits: ArrayLike, calibrator: VectorScaling, *, where: ArrayLike | None = None) -> jax.Array:
    """The calibrated logits; their softmax are the calibrated probabilities.

    scale · (z - mean z) + bias

    Args:
        logits: z, [..., V], floating.
        calibrator: From `fit_vector_scaling`.
        where: Which classes are present: boolean, of the shape of the logits or [V].

    Returns:
        [..., V] in nats, float32 or wider; -inf for absent classes.

    Raises:
        TypeError: The logits are not floating, the mask not boolean, or the calibrator is another.
        ValueError: A shape does not fit.

    Gradient:
        Linear in the logits and in the numbers of the calibrator; 0 for absent classes. All modes.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> logits, labels = jnp.array([[3.0, 0.0], [3.0, 0.0], [0.0, 3.0]]), jnp.array([0, 1, 1])
        >>> fit = jaxsoftmax.calibration.fit_vector_scaling(logits, labels)
        >>> print(jnp.round(jaxsoftmax.softmax(jaxsoftmax.calibration.apply_vector_scaling(logits[0], fit)), 2))
        [0.61 0.39]

    References:
        C. Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    return _apply(_VECTOR, logits, where, calibrator)


def apply_matrix_scaling(logits: ArrayLike, calibrator: MatrixScaling, *, where: ArrayLike | None = None) -> jax.Array:
    """The calibrated logits; their softmax are the calibrated probabilities.

    (z - mean z) kernel + bias

    Args:
        logits: z, [..., V], floating.
        calibrator: From `fit_matrix_scaling`.
        where: Which classes are present: boolean, of the shape of the logits or [V].

    Returns:
        [..., V] in nats, float32 or wider; -inf for absent classes.

    Raises:
        TypeError: The logits are not floating, the mask not boolean, or the calibrator is another.
        ValueError: A shape does not fit.

    Gradient:
        Linear in the logits and in the numbers of the calibrator; 0 for absent classes. All modes.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> logits, labels = jnp.array([[3.0, 0.0], [3.0, 0.0], [0.0, 3.0]]), jnp.array([0, 1, 1])
        >>> fit = jaxsoftmax.calibration.fit_matrix_scaling(logits, labels)
        >>> print(jnp.round(jaxsoftmax.softmax(jaxsoftmax.calibration.apply_matrix_scaling(logits[0], fit)), 2))
        [0.62 0.38]

    References:
        C. Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    return _apply(_MATRIX, logits, where, calibrator)


def apply_dirichlet(
    logits: ArrayLike, calibrator: DirichletCalibration, *, where: ArrayLike | None = None
) -> jax.Array:
    """The calibrated logits; their softmax are the calibrated probabilities.

    log softmax(z) kernel + bias

    Args:
        logits: z, [..., V], floating: log-probabilities or logits, as in `fit_dirichlet`.
        calibrator: From `fit_dirichlet`.
        where: Which classes are present: boolean, of the shape of the logits or [V].

    Returns:
        [..., V] in nats, float32 or wider; -inf for absent classes.

    Raises:
        TypeError: The logits are not floating, the mask not boolean, or the calibrator is another.
        ValueError: A shape does not fit.

    Gradient:
        Linear in the log-probabilities and in the numbers of the calibrator; 0 for absent classes. Modes as for
        `log_softmax`.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> probs, labels = jnp.array([[0.95, 0.05], [0.95, 0.05], [0.05, 0.95]]), jnp.array([0, 1, 1])
        >>> fit = jaxsoftmax.calibration.fit_dirichlet(jnp.log(probs), labels)
        >>> print(jnp.round(jaxsoftmax.softmax(jaxsoftmax.calibration.apply_dirichlet(jnp.log(probs[0]), fit)), 2))
        [0.58 0.42]

    References:
        M. Kull et al., Beyond temperature scaling: Obtaining well-calibrated multi-class probabilities with Dirichlet
        calibration, 2019.
    """
    return _apply(_DIRICHLET, logits, where, calibrator)


class _Kind(NamedTuple):
    """Its name in those of the functions, what a fit returns, and whether it is applied to log-probabilities."""

    name: str
    fitted: Any
    logarithmic: bool


_VECTOR = _Kind("vector_scaling", VectorScaling, False)
_MATRIX = _Kind("matrix_scaling", MatrixScaling, False)
_DIRICHLET = _Kind("dirichlet", DirichletCalibration, True)


def _fit(kind: _Kind, logits: Any, labels: Any, weights: Any, where: Any, *penalties: Any) -> Any:
    """What kind.fitted has: the kernel, a diagonal for vector scaling, the intercepts and the report."""
    function = f"calibration.fit_{kind.name}"
    names = ("diagonal_penalty", "off_diagonal_penalty", "intercept_penalty")
    given = dict(zip(names, penalties, strict=True))
    rows = fit_rows(function, logits, labels, weights, where)
    assert rows.logits is not None
    dtype = arrays.compute_dtype(rows.logits.dtype)
    scalars = Penalties(*(inputs.strength(function, dtype, **{name: value}) for name, value in given.items()))
    return kind.fitted(*solve_affine(rows, scalars, vector=kind is _VECTOR, logarithmic=kind.logarithmic))


def default_penalties(rows: inputs.Rows) -> Penalties:
    """Those of the functions above."""
    return Penalties(*(jnp.full((), PENALTY, rows.weights.dtype) for _ in Penalties._fields))


def _apply(kind: _Kind, logits: Any, where: Any, calibrator: Any) -> jax.Array:
    function = f"calibration.apply_{kind.name}"
    made_by(function, calibrator, kind.fitted, f"fit_{kind.name}")
    kernel, bias = calibrator[:2]
    logits = checks.floating(function, logits=logits)
    mask = checks.mask(function, where, logits, checks.class_axis(function, -1, logits=logits))
    if bias.shape != logits.shape[-1:]:
        rule = "logits must have the classes of the calibrator along the last axis"
        checks.fail(ValueError, function, rule, logits=logits, bias=bias)
    return _calibrated(arrays.present(logits, mask), kernel, bias, logarithmic=kind.logarithmic)


@calls.compiled("logarithmic")
def _calibrated(logits: jax.Array, kernel: jax.Array, bias: jax.Array, *, logarithmic: bool) -> jax.Array:
    features = normalized(logits) if logarithmic else centred(logits)
    dtype = arrays.common_dtype(features.dtype, bias.dtype)
    features, kernel, bias = features.astype(dtype), kernel.astype(dtype), bias.astype(dtype)
    out = product(features, kernel) + bias.reshape((1,) * (logits.ndim - 1) + bias.shape)
    return jnp.where(jnp.isneginf(logits), -jnp.inf, out)
