"""The choice among the calibrators by cross-validation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsoftmax._core import arrays, calls, checks, meshes
from jaxsoftmax._core.meshes import Axes
from jaxsoftmax.calibration import inputs
from jaxsoftmax.calibration.affine import (
    DirichletCalibration,
    MatrixScaling,
    VectorScaling,
    apply_dirichlet,
    apply_matrix_scaling,
    apply_vector_scaling,
    default_penalties,
)
from jaxsoftmax.calibration.affine_fits import solve_every
from jaxsoftmax.calibration.scaling import TemperatureScaling, apply_temperature, fit_rows, made_by, separable
from jaxsoftmax.losses import cross_entropy, weighted_mean

__all__ = ["CalibratorChoice", "apply_calibrator", "choose_calibrator"]

_NAMES = ("none", "temperature", "vector", "matrix", "dirichlet")


class CalibratorChoice(NamedTuple):
    """The calibrator that was chosen, what speaks for it, and all of them as fit to all of the rows.

    The candidates are `names`, in this order: "none", "temperature", "vector", "matrix", "dirichlet".

    Attributes:
        best: Which one was chosen, int32: its name is names[best].
        nlls: [5], the mean negative log-likelihood of the held-out rows under each candidate, in nats.
        errors: [5], the standard errors of their differences from that of the chosen one, for which it is 0.
        temperature: TemperatureScaling.
        vector: VectorScaling.
        matrix: MatrixScaling.
        dirichlet: DirichletCalibration.
    """

    best: jax.Array
    nlls: jax.Array
    errors: jax.Array
    temperature: TemperatureScaling
    vector: VectorScaling
    matrix: MatrixScaling
    dirichlet: DirichletCalibration

    @property
    def names(self) -> tuple[str, ...]:
        """Of the candidates, the simplest first; the same for every choice."""
        return _NAMES


def choose_calibrator(
    key: jax.Array,
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    where: ArrayLike | None = None,
    folds: int = 5,
) -> CalibratorChoice:
    """No calibration, temperature, vector or matrix scaling, or Dirichlet calibration, as cross-validation decides.

    argmin over calibrators of the mean NLL of the rows of each fold, fit without them

    Args:
        key: Deals the rows out to the folds; the rows of each class are spread evenly.
        logits: [..., V], floating; all axes but the last are rows, at least as many as folds.
        labels: [...], integers in [0, V).
        weights: [...], ≥ 0, how much each row counts; 1 by default. A row of weight 0 may hold anything.
        where: Which classes are present: boolean, of the shape of the logits or [V].
        folds: How many, 2 or more; each is predicted from the others, with the default penalties.

    Returns:
        CalibratorChoice with fields of fixed shapes, for `apply_calibrator`, so that the choice itself can run inside
        of jit and vmap: an index and five figures, beside every calibrator as fit to all of the rows.

    Raises:
        TypeError: The key is none, the logits are not floating, the labels or folds not integers, or the mask not
            boolean.
        ValueError: There are fewer rows than folds, a shape does not fit, or a label or weight that can be seen is out
            of range; under jit, such a label or weight makes the figures NaN.

    Numerics:
        The errors are those of weighted means of differences, row by row, between held-out losses. All folds are fit at
        once, by weights of 0. Where every label is a largest logit of its row, the held-out NLL falls with T for ever,
        and temperature scaling is not chosen. A row whose labelled class is absent takes no part. No preference is
        given to simple calibrators: the penalties draw the others towards temperature scaling anyhow, and on the data
        that it was tried on, the rule of one standard error chose worse.

    Gradient:
        None: the result is a constant to differentiation.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsoftmax
        >>> logits = 8.0 * jax.random.normal(jax.random.key(0), (200, 3))
        >>> labels = jax.random.categorical(jax.random.key(1), logits / 4.0)
        >>> choice = jaxsoftmax.calibration.choose_calibrator(jax.random.key(2), logits, labels)
        >>> print(f"{choice.names[choice.best]}: {choice.nlls[0]:.2f} to {choice.nlls[choice.best]:.2f}")
        vector: 1.29 to 0.63

    References:
        M. Kull et al., Beyond temperature scaling: Obtaining well-calibrated multi-class probabilities with Dirichlet
        calibration, 2019.
    """
    name = "calibration.choose_calibrator"
    checks.random_key(name, key)
    checks.whole(name, folds=folds)
    rows = fit_rows(name, logits, labels, weights, where)
    if not 2 <= folds <= rows.labels.shape[0]:
        checks.fail(ValueError, name, "folds must be 2 or more, and no more than the rows", folds=folds, labels=labels)
    return _choose(key, rows, folds=int(folds))


def apply_calibrator(logits: ArrayLike, calibrator: CalibratorChoice, *, where: ArrayLike | None = None) -> jax.Array:
    """The logits as the chosen calibrator changes them; their softmax are the calibrated probabilities.

    Args:
        logits: [..., V], floating.
        calibrator: From `choose_calibrator`.
        where: Which classes are present: boolean, of the shape of the logits or [V].

    Returns:
        [..., V] in nats, float32 or wider; -inf for absent classes.

    Raises:
        TypeError: The logits are not floating, the mask not boolean, or the calibrator is another.
        ValueError: A shape does not fit.

    Gradient:
        That of the calibrator that was chosen.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsoftmax
        >>> logits = 8.0 * jax.random.normal(jax.random.key(0), (200, 3))
        >>> labels = jax.random.categorical(jax.random.key(1), logits / 4.0)
        >>> choice = jaxsoftmax.calibration.choose_calibrator(jax.random.key(2), logits, labels)
        >>> calibrated = jaxsoftmax.calibration.apply_calibrator(logits, choice)
        >>> print(f"{jnp.std(logits):.1f} {jnp.std(calibrated):.1f}")
        7.8 1.6
    """
    name = "calibration.apply_calibrator"
    made_by(name, calibrator, CalibratorChoice, "choose_calibrator")
    logits = checks.floating(name, logits=logits)
    mask = checks.mask(name, where, logits, checks.class_axis(name, -1, logits=logits))
    if logits.shape[-1:] != calibrator.vector.bias.shape:
        rule = "logits must have the classes of the calibrator along the last axis"
        checks.fail(ValueError, name, rule, logits=logits, bias=calibrator.vector.bias)
    dtype = arrays.common_dtype(arrays.compute_dtype(logits.dtype), calibrator.vector.bias.dtype)
    return lax.switch(calibrator.best, _USES, arrays.present(logits, mask).astype(dtype), _Fits(*calibrator[3:]))


class _Fits(NamedTuple):
    """All of the calibrators, fit to the same rows."""

    temperature: TemperatureScaling
    vector: VectorScaling
    matrix: MatrixScaling
    dirichlet: DirichletCalibration


# In the order of the names.
_USES = (
    lambda logits, fits: logits,
    lambda logits, fits: apply_temperature(logits, fits.temperature),
    lambda logits, fits: apply_vector_scaling(logits, fits.vector),
    lambda logits, fits: apply_matrix_scaling(logits, fits.matrix),
    lambda logits, fits: apply_dirichlet(logits, fits.dirichlet),
)


def _fit_all(rows: inputs.Rows) -> _Fits:
    scaling, vector, matrix, dirichlet = solve_every(rows, default_penalties(rows))
    return _Fits(scaling, VectorScaling(*vector), MatrixScaling(*matrix), DirichletCalibration(*dirichlet))


@calls.compiled("folds")
def _choose(key: jax.Array, rows: inputs.Rows, *, folds: int) -> CalibratorChoice:
    rows = meshes.whole(jax.tree.map(lax.stop_gradient, rows))
    assert rows.logits is not None
    logits, labels = rows.logits.astype(arrays.compute_dtype(rows.logits.dtype)), rows.labels
    rows = rows._replace(logits=logits)
    lost = jnp.isneginf(arrays.own_pick(logits, labels[:, None], Axes((1,))))[:, 0]
    weights = jnp.where(lost, 0.0, rows.weights)
    fold = _deal(key, labels, weights, folds)

    def fit(which: jax.Array) -> tuple[_Fits, jax.Array]:
        """Fits without one fold, and [5, N], the losses of its rows, 0 for all others."""
        held_out = fold == which
        fits = _fit_all(rows._replace(weights=jnp.where(held_out, 0.0, weights)))
        losses = jnp.stack([cross_entropy(use(logits, fits), labels) for use in _USES])
        return fits, jnp.where((held_out & (weights != 0))[None], losses, 0.0)

    # one fold more, without any rows: the fit to all of them, in the same program
    every, losses = jax.vmap(fit)(jnp.arange(folds + 1, dtype=fold.dtype))
    fits, losses = jax.tree.map(lambda x: x[folds], every), jnp.sum(losses, axis=0)
    mean = jax.vmap(weighted_mean, (0, None))
    nlls = mean(losses, weights)
    endless = jnp.array([name == "temperature" for name in _NAMES]) & separable(logits, labels, weights)
    best = jnp.argmin(jnp.where(endless, jnp.inf, nlls)).astype(jnp.int32)
    differences = losses - losses[best][None]
    variances = mean(jnp.square(differences - mean(differences, weights)[:, None]), weights)
    # the rows that the weights amount to, less the one that the mean takes
    total = jnp.sum(weights)
    effective = jnp.square(total) / jnp.maximum(jnp.sum(jnp.square(weights)), float(jnp.finfo(total.dtype).tiny))
    errors = jnp.sqrt(variances / jnp.maximum(effective - 1.0, 1.0))
    nlls, errors = inputs.poisoned((nlls, errors), rows.broken)
    return CalibratorChoice(best, nlls, errors, *fits)


def _deal(key: jax.Array, labels: jax.Array, weights: jax.Array, folds: int) -> jax.Array:
    """[N], the fold of each row: shuffled, sorted by class with the rows of weight 0 last, and dealt out in turn."""
    count = labels.shape[0]
    order = jnp.lexsort((jax.random.uniform(key, (count,)), labels, weights == 0))
    return jnp.zeros((count,), jnp.int32).at[order].set(jnp.arange(count, dtype=jnp.int32) % folds)
