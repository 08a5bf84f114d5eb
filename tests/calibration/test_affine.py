"""Vector, matrix and Dirichlet calibration: the minimum that scipy finds, and what no calibrator may change."""

import functools
import inspect
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from jaxsoftmax import calibration
from jaxsoftmax.calibration import (
    apply_dirichlet,
    apply_matrix_scaling,
    apply_vector_scaling,
    fit_dirichlet,
    fit_matrix_scaling,
    fit_temperature,
    fit_vector_scaling,
)
from tests.helpers import assert_refused
from tests.oracles import calibrators as oracle

KINDS = {
    "vector": (fit_vector_scaling, apply_vector_scaling),
    "matrix": (fit_matrix_scaling, apply_matrix_scaling),
    "dirichlet": (fit_dirichlet, apply_dirichlet),
}
# One compiled program for each kind and shape: weights, mask and penalties are always given.
FITS = {kind: jax.jit(fit) for kind, (fit, _) in KINDS.items()}
ROWS, CLASSES = 120, 4
EVERY = np.ones((ROWS, CLASSES), bool)
ONES = np.ones(ROWS, np.float32)


def confused(seed=0, rows=ROWS, classes=CLASSES):
    """Logits that favour some classes and mix others up, so that each kind of calibration has something to do."""
    rng = np.random.default_rng([seed, rows, classes])
    logits = 1.5 * rng.standard_normal((rows, classes))
    mix = np.eye(classes) + 0.4 * rng.standard_normal((classes, classes))
    labels = np.argmax(logits @ mix + rng.standard_normal(classes) + rng.gumbel(size=logits.shape), axis=1)
    return (3.0 * logits).astype(np.float32), labels.astype(np.int32)


def solve(kind, logits, labels, weights=ONES, where=EVERY, penalties=(2.0,) * 3):
    """Penalties of the diagonal, of the rest of the matrix, which a vector does not have, and of the intercepts."""
    names = ("diagonal_penalty", "off_diagonal_penalty", "intercept_penalty")
    given = {name: np.float32(value) for name, value in zip(names, penalties, strict=True)}
    if kind == "vector":
        del given["off_diagonal_penalty"]
    return FITS[kind](logits, labels, weights=weights, where=where, **given)


def kernel_of(fit):
    return fit.scale if isinstance(fit, calibration.VectorScaling) else fit.kernel


def check(fit, kind, logits, labels, penalties, weights=None, scale=1.0):
    """Calibrated logits and the report against those of the exact minimum."""
    kernel, bias = oracle.affine(logits, labels, kind, penalties, weights)
    assert fit.converged
    np.testing.assert_allclose(kernel_of(fit) * scale, kernel * scale, atol=5e-4)
    np.testing.assert_allclose(fit.bias, bias, atol=5e-4)
    calibrated = oracle.apply(logits, kind, kernel, bias)
    np.testing.assert_allclose(KINDS[kind][1](logits, fit), calibrated, atol=5e-3)
    np.testing.assert_allclose(fit.nll_after, oracle.mean_nll(calibrated, labels, weights), rtol=1e-4)
    np.testing.assert_allclose(fit.nll_before, oracle.mean_nll(logits, labels, weights), rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("penalty", [2.0, 0.02])
def test_the_minimum(kind, penalty):
    """By default and with little regularization."""
    logits, labels = confused()
    fit = solve(kind, logits, labels, penalties=(penalty,) * 3)
    check(fit, kind, logits, labels, (penalty,) * 3)
    options = inspect.signature(KINDS[kind][0]).parameters.values()
    assert all(option.default == 2.0 for option in options if option.name.endswith("penalty"))


@pytest.mark.parametrize("kind", ["matrix", "dirichlet"])
def test_odir(kind):
    """No penalty on the diagonal, different ones elsewhere."""
    logits, labels = confused(1)
    fit = solve(kind, logits, labels, penalties=(0.0, 3.0, 0.5))
    check(fit, kind, logits, labels, (0.0, 3.0, 0.5))


@pytest.mark.parametrize("kind", ["vector", "matrix"])
@pytest.mark.parametrize("scale", [0.05, 100.0, 1e-20, 1e20])
def test_scale(kind, scale):
    """Logits of another scale are calibrated to the same probabilities."""
    logits, labels = confused(2)
    fit = solve(kind, logits, labels)
    scaled = np.float32(scale) * logits
    other = solve(kind, scaled, labels)
    assert other.converged
    np.testing.assert_allclose(KINDS[kind][1](scaled, other), KINDS[kind][1](logits, fit), atol=2e-3)
    np.testing.assert_allclose(other.nll_after, fit.nll_after, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.05, 100.0])
def test_scale_of_log_probabilities(scale):
    """Other logits have other log-probabilities, not multiples of the first: another problem, as well solved."""
    logits, labels = confused(2)
    scaled = np.float32(scale) * logits
    fit = solve("dirichlet", scaled, labels)
    kernel, bias = oracle.affine(scaled, labels, "dirichlet", (2.0,) * 3)
    assert fit.converged
    np.testing.assert_allclose(apply_dirichlet(scaled, fit), oracle.apply(scaled, "dirichlet", kernel, bias), atol=5e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_offsets(kind):
    """A number added to all logits of a row changes neither the fit nor what it makes of the row."""
    logits, labels = confused(3)
    logits = np.round(logits * 8) / 8
    shifted = logits + np.resize(np.float32([0.0, 1e4, -1e6]), ROWS)[:, None]
    fit, other = solve(kind, logits, labels), solve(kind, shifted, labels)
    np.testing.assert_allclose(kernel_of(other), kernel_of(fit), atol=1e-5)
    apply = KINDS[kind][1]
    np.testing.assert_allclose(apply(shifted, fit), apply(logits, fit), atol=1e-5)


def test_log_probabilities_are_logits_too():
    """Dirichlet calibration normalizes first, which leaves log-probabilities as they are."""
    logits, labels = confused(4)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    fit, other = solve("dirichlet", logits, labels), solve("dirichlet", log_probs, labels)
    np.testing.assert_allclose(other.kernel, fit.kernel, atol=1e-5)
    np.testing.assert_allclose(other.bias, fit.bias, atol=1e-5)
    np.testing.assert_allclose(
        apply_dirichlet(log_probs, fit), log_probs @ np.asarray(fit.kernel) + np.asarray(fit.bias), atol=1e-4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_strong_penalties_give_temperature_scaling(kind):
    """All of the calibrators are drawn towards it."""
    logits, labels = confused(5)
    fit = solve(kind, logits, labels, penalties=(1e8,) * 3)
    temperature = oracle.temperature(logits, labels).value
    calibrated = np.asarray(KINDS[kind][1](logits, fit), np.float64)
    np.testing.assert_allclose(
        oracle.losses(calibrated, labels), oracle.losses(logits / temperature, labels), atol=1e-4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_rows_that_do_not_count(kind):
    """Weights are counts, and a row of weight 0 may hold anything."""
    logits, labels = confused(6)
    weights = np.random.default_rng(1).integers(0, 3, ROWS).astype(np.float32)
    spoiled, strange = logits.copy(), labels.copy()
    empty = np.flatnonzero(weights == 0)
    spoiled[empty[:3]], strange[empty] = np.float32([[np.nan], [np.inf], [-np.inf]]), 99
    fit = solve(kind, spoiled, strange, weights)
    check(fit, kind, logits, labels, (2.0,) * 3, weights)
    # and counts in units of two weigh as much as the prior of twice the strength lets them
    doubled = solve(kind, logits, labels, 2 * weights)
    assert np.max(np.abs(kernel_of(doubled) - kernel_of(fit))) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_absent_classes(kind):
    """They stay absent and count as nothing; a row whose label is absent costs infinity and changes no number."""
    logits, labels = confused(7)
    where = np.random.default_rng(2).uniform(size=logits.shape) < 0.7
    where[np.arange(ROWS), labels] = True
    absent = np.where(where, logits, -np.inf).astype(np.float32)
    fit = solve(kind, np.where(where, logits, np.nan).astype(np.float32), labels, where=where)
    check(fit, kind, absent, labels, (2.0,) * 3)
    apply = KINDS[kind][1]
    calibrated = apply(np.where(where, logits, np.nan).astype(np.float32), fit, where=where)
    np.testing.assert_array_equal(np.isneginf(calibrated), ~where)
    np.testing.assert_allclose(apply(absent, fit), calibrated, atol=1e-6)

    kept = labels != 3
    some = np.array([True, True, True, False])
    lost = solve(kind, logits, labels, where=np.broadcast_to(some, logits.shape))
    assert np.isposinf(lost.nll_after) and lost.converged
    weights = kept.astype(np.float32)
    rest = solve(kind, logits, labels, weights, np.broadcast_to(some, logits.shape))
    for mine, other in zip(lost[:2], rest[:2], strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_by_large_numbers(kind):
    """They are no absent classes, and may spoil the fit; but nothing is NaN, and no class comes back."""
    logits, labels = confused(11)
    logits[:, 3], labels = np.finfo(np.float32).min, labels % 3
    fit = solve(kind, logits, labels)
    assert not np.any(np.isnan([*np.ravel(kernel_of(fit)), *fit.bias, fit.nll_before, fit.nll_after]))
    calibrated = KINDS[kind][1](logits, fit)
    assert not np.any(np.isnan(calibrated))
    np.testing.assert_array_equal(jax.nn.softmax(calibrated)[:, 3], np.zeros(ROWS))


@pytest.mark.parametrize("kind", KINDS)
def test_separable_labels(kind):
    """A temperature would go to 0; this starts from 1 and ends at a finite minimum."""
    logits, _ = confused(8)
    labels = np.argmax(logits, axis=1).astype(np.int32)
    fit = solve(kind, logits, labels)
    check(fit, kind, logits, labels, (2.0,) * 3)
    assert fit.nll_after < fit.nll_before


@pytest.mark.parametrize("kind", KINDS)
def test_contrary_labels(kind):
    """A temperature would go to infinity; the matrices turn the logits around."""
    logits, _ = confused(9)
    labels = np.argmin(logits, axis=1).astype(np.int32)
    fit = solve(kind, logits, labels)
    assert fit.converged and fit.nll_after < 0.8 * np.log(CLASSES)


def test_equal_logits():
    """Nothing but the frequencies of the labels is left to fit."""
    labels = np.int32([0, 0, 0, 1] * 30)
    for kind in KINDS:
        fit = solve(kind, np.ones((ROWS, CLASSES), np.float32), labels, penalties=(2.0, 2.0, 1e-4))
        probs = np.exp(
            -oracle.losses(np.asarray(KINDS[kind][1](np.ones((CLASSES, CLASSES), np.float32), fit)), range(4))
        )
        assert fit.converged
        np.testing.assert_allclose(probs, [0.75, 0.25, 0.0, 0.0], atol=2e-3)


def test_one_class_and_no_row_that_counts():
    one = fit_matrix_scaling(np.float32([[3.0], [1.0]]), np.int32([0, 0]))
    none = solve("matrix", *confused(), weights=np.zeros(ROWS, np.float32))
    for fit in (one, none):
        assert fit.converged and fit.nll_after == 0 and fit.iterations == 0
        np.testing.assert_array_equal(fit.kernel, np.eye(len(fit.bias)))
        np.testing.assert_array_equal(fit.bias, np.zeros(len(fit.bias)))


def test_many_at_once():
    """vmap over data sets gives what each gives by itself."""
    cases = [confused(seed) for seed in range(3)]
    weights, where = np.stack([ONES] * 3), np.stack([EVERY] * 3)
    fits = jax.jit(jax.vmap(lambda z, y, w, m: fit_vector_scaling(z, y, weights=w, where=m)))(
        np.stack([z for z, _ in cases]), np.stack([y for _, y in cases]), weights, where
    )
    for n, case in enumerate(cases):
        alone = solve("vector", *case)
        np.testing.assert_allclose(fits.scale[n], alone.scale, atol=1e-4)
        np.testing.assert_allclose(fits.bias[n], alone.bias, atol=1e-4)
    assert np.all(fits.converged)


def test_dtypes():
    logits, labels = confused(10)
    half = solve("vector", jnp.asarray(logits, jnp.bfloat16), labels)
    assert half.scale.dtype == half.nll_after.dtype == np.float32
    assert apply_vector_scaling(jnp.asarray(logits, jnp.bfloat16), half).dtype == np.float32
    rounded = np.asarray(jnp.asarray(logits, jnp.bfloat16), np.float32)
    np.testing.assert_allclose(half.scale, solve("vector", rounded, labels).scale, atol=1e-5)
    with jax.enable_x64(True):
        wide = fit_matrix_scaling(logits.astype(np.float64), labels)
        assert wide.kernel.dtype == np.float64 and wide.converged
        kernel, bias = oracle.affine(logits, labels, "matrix", (2.0,) * 3)
        np.testing.assert_allclose(wide.kernel, kernel, atol=1e-6)
        np.testing.assert_allclose(wide.bias, bias, atol=1e-6)


def test_a_constant_to_differentiation():
    logits, labels = confused()
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(fit_vector_scaling(z, labels).scale)))(logits)
    np.testing.assert_array_equal(gradient, np.zeros_like(logits))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_apply(kind):
    """By logits, kernel and bias, against differences; 0 and finite where a class is absent."""
    logits, labels = confused()
    fit, apply = solve(kind, logits, labels), KINDS[kind][1]
    cotangent = np.random.default_rng(3).standard_normal((5, CLASSES))
    with jax.enable_x64(True):
        fit = jax.tree.map(lambda x: np.asarray(x, np.float64 if x.dtype == np.float32 else None), fit)
        z = logits[:5].astype(np.float64)
        z[0, 1] = z[3, 0] = -np.inf
        present = ~np.isneginf(z)

        def total(z, numbers):
            out = apply(z, fit._replace(**dict(zip(fit._fields, numbers, strict=False))))
            return jnp.sum(jnp.where(present, cotangent * jnp.where(present, out, 0.0), 0.0))

        gradients = jax.grad(total, (0, 1))(z, tuple(fit[:2]))
        np.testing.assert_array_equal(gradients[0][~present], 0.0)
        direction = np.random.default_rng(4).standard_normal(z.shape) * present
        slope = (total(z + 1e-6 * direction, fit[:2]) - total(z - 1e-6 * direction, fit[:2])) / 2e-6
        np.testing.assert_allclose(np.sum(gradients[0] * direction), slope, rtol=1e-6)
        for n in range(2):
            ways = np.random.default_rng(5).standard_normal(fit[n].shape)
            up = [value + (1e-6 * ways if k == n else 0.0) for k, value in enumerate(fit[:2])]
            down = [value - (1e-6 * ways if k == n else 0.0) for k, value in enumerate(fit[:2])]
            slope = (total(z, up) - total(z, down)) / 2e-6
            np.testing.assert_allclose(np.sum(gradients[1][n] * ways), slope, rtol=1e-6)


# The default penalties on networks.


@functools.cache
def network(name):
    """Validation logits and labels of a network that has learned its few, partly wrong training labels by heart."""
    load, rows, noise = {
        "digits": (load_digits, 300, 0.2),
        "clean digits": (load_digits, 600, 0.0),
        "wine": (load_wine, 40, 0.2),
    }[name]
    data, labels = load(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    data, labels = StandardScaler().fit_transform(data)[order], labels[order]
    wrong = rng.integers(0, labels.max() + 1, len(labels))
    taught = np.where(rng.uniform(size=len(labels)) < noise, wrong, labels)
    model = MLPClassifier((64,), alpha=0.0, max_iter=300, tol=0.0, n_iter_no_change=1000, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(data[:rows], taught[:rows])
    hidden = np.maximum(data[rows:] @ model.coefs_[0] + model.intercepts_[0], 0.0)
    logits = hidden @ model.coefs_[1] + model.intercepts_[1]
    return logits.astype(np.float32), labels[rows:].astype(np.int32)


@pytest.mark.parametrize("name", ["digits", "clean digits", "wine"])
def test_the_default_penalties_do_not_overfit(name):
    """In the mean over splits, to 0.002 nats: never worse than a temperature; a matrix is better for wrong labels."""
    logits, labels = network(name)
    rows = min(200, len(labels) // 2)
    excess = {kind: [] for kind in KINDS}
    ones, every = np.ones(rows, np.float32), np.ones((rows, logits.shape[1]), bool)
    for split in range(8):
        order = np.random.default_rng(split).permutation(len(labels))
        (z, y), (z_new, y_new) = ((logits[part], labels[part]) for part in (order[:rows], order[rows:]))
        base = oracle.mean_nll(z_new / oracle.temperature(z, y).value, y_new)
        for kind, (_, apply) in KINDS.items():
            calibrated = np.asarray(apply(z_new, solve(kind, z, y, ones, every)))
            excess[kind].append(oracle.mean_nll(calibrated, y_new) - base)
    means = {kind: float(np.mean(values)) for kind, values in excess.items()}
    assert max(means.values()) <= 0.002, means
    assert name == "clean digits" or means["matrix"] < -0.002, means


def test_without_penalties_a_matrix_overfits():
    """What the penalties are for."""
    logits, labels = network("digits")
    z, y, z_new, y_new = logits[:200], labels[:200], logits[200:], labels[200:]
    base = oracle.mean_nll(z_new / oracle.temperature(z, y).value, y_new)
    free = solve("matrix", z, y, np.ones(200, np.float32), np.ones((200, 10), bool), (0.0,) * 3)
    assert oracle.mean_nll(np.asarray(apply_matrix_scaling(z_new, free)), y_new) > base + 0.5


# Input that is wrong.

Z, Y = np.float32([[1, 2, 0], [3, 1, 0]]), np.int32([0, 2])
BAD = [
    ({"logits": np.int32([[1, 2, 0], [3, 1, 0]])}, TypeError, "logits must have a floating dtype"),
    ({"labels": np.float32([0, 1])}, TypeError, "labels must be integers"),
    ({"labels": np.int32([0, 1, 2])}, ValueError, "labels must have the shape of logits without the class axis"),
    ({"logits": np.ones((2, 0), np.float32)}, ValueError, "the class axis must not be empty"),
    ({"logits": np.ones((0, 3), np.float32), "labels": Y[:0]}, ValueError, "there must be at least one row"),
    ({"where": np.ones(3)}, TypeError, "where must be boolean"),
    ({"weights": np.ones(3, np.float32)}, ValueError, "weights must have one number per row"),
    ({"diagonal_penalty": -1.0}, ValueError, "diagonal_penalty must be finite and 0 or more"),
    ({"intercept_penalty": np.ones(2, np.float32)}, ValueError, "intercept_penalty must be a scalar"),
    ({"intercept_penalty": [1.0]}, TypeError, "intercept_penalty must be an array"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("arguments", "error", "rule"), BAD)
def test_static_errors(kind, arguments, error, rule):
    fit = KINDS[kind][0]
    assert_refused(fit, f"calibration.{fit.__name__}", {"logits": Z, "labels": Y} | arguments, error, rule)


@pytest.mark.parametrize("kind", KINDS)
def test_values_out_of_range(kind):
    """An error where they can be seen, NaN where they are traced."""
    logits, labels = confused()
    fit = KINDS[kind][0]
    for arguments, rule in (
        ({"labels": np.where(np.arange(ROWS) == 5, CLASSES, labels), "weights": ONES}, "labels must lie in [0, 4)"),
        ({"labels": labels, "weights": -ONES}, "weights must be finite and 0 or more"),
        ({"labels": labels, "intercept_penalty": np.float32(-1)}, "intercept_penalty must be finite and 0 or more"),
    ):
        with pytest.raises(ValueError, match=rf"jaxsoftmax\.calibration\.{fit.__name__}: {re.escape(rule)}; got "):
            fit(logits, **arguments)
        penalties = (2.0, 2.0, arguments.pop("intercept_penalty", 2.0))
        found = solve(kind, logits, **arguments, penalties=penalties)
        assert np.all(np.isnan(kernel_of(found))) and np.all(np.isnan(found.bias)) and np.isnan(found.nll_after)
        assert not found.converged


@pytest.mark.parametrize("kind", KINDS)
def test_errors_of_apply(kind):
    fit = jax.eval_shape(KINDS[kind][0], Z, Y)
    apply = KINDS[kind][1]
    prefix = rf"jaxsoftmax\.calibration\.{apply.__name__}: "
    with pytest.raises(TypeError, match=prefix + f"calibrator must be what {KINDS[kind][0].__name__} returns; got"):
        apply(Z, fit_temperature)
    with pytest.raises(ValueError, match=prefix + "logits must have the classes of the calibrator along the last axis"):
        apply(Z[:, :2], fit)
    with pytest.raises(TypeError, match=prefix + "logits must have a floating dtype; got"):
        apply(Y, fit)
    with pytest.raises(ValueError, match=prefix + "where must have the shape of logits, or"):
        apply(Z, fit, where=np.ones(2, bool))
