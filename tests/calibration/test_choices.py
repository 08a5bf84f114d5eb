"""The choice of a calibrator: held-out losses, folds, what is chosen where, and under jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsoftmax import calibration
from jaxsoftmax.calibration import apply_calibrator, choose_calibrator
from jaxsoftmax.calibration.choices import _deal
from tests.helpers import assert_refused
from tests.oracles import calibrators as oracle

KEY = jax.random.key(0)
NAMES = ("none", "temperature", "vector", "matrix", "dirichlet")
ROWS, CLASSES, FOLDS = 90, 3, 3
# One compiled program for all tests of this shape.
CHOOSE = jax.jit(lambda key, z, y, w, m: choose_calibrator(key, z, y, weights=w, where=m, folds=FOLDS))
ONES = np.ones(ROWS, np.float32)
EVERY = np.ones((ROWS, CLASSES), bool)


def choose(logits, labels, weights=ONES, where=EVERY, key=KEY):
    return CHOOSE(key, logits, labels, weights, where)


def drawn(mix, bias=0.0, factor=1.0, seed=0):
    """Labels from the softmax of  z mix + bias,  and the logits  factor z."""
    rng = np.random.default_rng(seed)
    logits = 2.0 * rng.standard_normal((ROWS, CLASSES))
    labels = np.argmax(logits @ np.asarray(mix) + np.asarray(bias) + rng.gumbel(size=logits.shape), axis=1)
    return (factor * logits).astype(np.float32), labels.astype(np.int32)


def reference(logits, labels, fold, weights=ONES):
    """[5], the held-out mean losses, one calibrator and one fold after the other, in float64."""
    losses = np.zeros((len(NAMES), len(labels)))
    for which in range(FOLDS):
        train, test = (fold != which) & (weights > 0), fold == which
        temperature = oracle.temperature(logits[train], labels[train], weights[train]).value
        losses[0, test] = oracle.losses(logits[test], labels[test])
        losses[1, test] = oracle.losses(logits[test] / temperature, labels[test])
        for n, kind in enumerate(NAMES[2:], 2):
            fit = oracle.affine(logits[train], labels[train], kind, (2.0,) * 3, weights[train])
            losses[n, test] = oracle.losses(oracle.apply(logits[test], kind, *fit), labels[test])
    return losses


@pytest.mark.parametrize("weighted", [False, True])
def test_held_out_losses(weighted):
    """Those of a loop over folds and calibrators in float64, and the standard errors of their differences."""
    logits, labels = drawn(np.eye(CLASSES), factor=2.0)
    weights = np.random.default_rng(1).integers(0, 3, ROWS).astype(np.float32) if weighted else ONES
    choice = choose(logits, labels, weights)
    fold = np.asarray(_deal(KEY, jnp.asarray(labels), jnp.asarray(weights), FOLDS))
    losses = reference(logits, labels, fold, weights)
    nlls = losses @ weights / weights.sum()
    np.testing.assert_allclose(choice.nlls, nlls, rtol=2e-4)
    assert choice.best == np.argmin(nlls)
    differences = losses - losses[choice.best]
    variances = (differences - (nlls - nlls[choice.best])[:, None]) ** 2 @ weights / weights.sum()
    errors = np.sqrt(variances / (weights.sum() ** 2 / np.sum(weights**2) - 1))
    np.testing.assert_allclose(choice.errors, errors, rtol=1e-2, atol=1e-6)
    assert choice.errors[choice.best] == 0


def test_the_calibrators_are_fit_to_all_rows():
    """Each is of its kind, and the minimum with the default penalties; and the chosen one is applied."""
    logits, labels = drawn(np.eye(CLASSES), factor=2.0)
    choice = choose(logits, labels)
    assert choice.names == NAMES
    uses = (
        calibration.apply_temperature,
        calibration.apply_vector_scaling,
        calibration.apply_matrix_scaling,
        calibration.apply_dirichlet,
    )
    np.testing.assert_allclose(choice.temperature.temperature, oracle.temperature(logits, labels).value, rtol=1e-5)
    kinds = (calibration.VectorScaling, calibration.MatrixScaling, calibration.DirichletCalibration)
    for name, kind, fit in zip(NAMES[2:], kinds, choice[4:], strict=True):
        kernel, bias = oracle.affine(logits, labels, name, (2.0,) * 3)
        assert type(fit) is kind and fit.converged
        np.testing.assert_allclose(fit[0], kernel, atol=5e-4)
        np.testing.assert_allclose(fit.bias, bias, atol=5e-4)
        nlls = [oracle.mean_nll(z, labels) for z in (logits, oracle.apply(logits, name, kernel, bias))]
        np.testing.assert_allclose([fit.nll_before, fit.nll_after], nlls, rtol=1e-4)
    new = drawn(np.eye(CLASSES), seed=5)[0][:7]
    expected = [new, *(use(new, fit) for use, fit in zip(uses, choice[3:], strict=True))]
    for best in range(len(NAMES)):
        applied = apply_calibrator(new, choice._replace(best=jnp.int32(best)))
        np.testing.assert_allclose(applied, expected[best], rtol=1e-6)


CASES = {
    "none": drawn(np.eye(CLASSES), seed=10),
    "temperature": drawn(np.eye(CLASSES), factor=6.0, seed=11),
    "vector": drawn(np.eye(CLASSES), bias=[3.0, -3.0, 0.0], seed=12),
    "matrix": drawn([[0, 2, 0], [0, 0, 2], [2, 0, 0]], seed=13),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_chosen(name):
    """The smallest calibrator that holds the truth is among the good ones: within two standard errors of the best."""
    choice = choose(*CASES[name])
    truth = NAMES.index(name)
    assert choice.nlls[truth] - choice.nlls[choice.best] <= 2 * choice.errors[truth]
    smaller = choice.nlls[:truth] - choice.nlls[truth]
    assert np.all(smaller > 0.1), (choice.nlls, "smaller ones would have done")
    assert choice.best >= truth


def test_separable_labels_do_not_choose_a_temperature():
    """Its held-out loss is the least, 0, because nothing speaks against T = 0; nor does anything speak for it."""
    logits, _ = drawn(np.eye(CLASSES))
    choice = choose(logits, np.argmax(logits, axis=1).astype(np.int32))
    assert choice.temperature.at_bound
    assert np.argmin(choice.nlls) == NAMES.index("temperature")
    assert NAMES[choice.best] != "temperature"
    others = np.delete(choice.nlls, NAMES.index("temperature"))
    assert choice.nlls[choice.best] == np.min(others)


def test_rows_that_do_not_count():
    """Weight 0 with anything in it, and a row whose label is absent: the figures are those without."""
    logits, labels = drawn(np.eye(CLASSES), factor=2.0)
    weights, where = ONES.copy(), EVERY.copy()
    weights[[3, 50]] = 0
    spoiled, strange = logits.copy(), labels.copy()
    spoiled[3], strange[3] = np.nan, -7
    where[50, labels[50]] = False
    choice, plain = choose(spoiled, strange, weights, where), choose(logits, labels, weights)
    lost = choose(spoiled, strange, np.where(np.arange(ROWS) == 50, 1, weights).astype(np.float32), where)
    for other in (plain, lost):
        np.testing.assert_allclose(choice.nlls, other.nlls, rtol=1e-6)
        np.testing.assert_allclose(choice.errors, other.errors, rtol=1e-4, atol=1e-7)
        assert choice.best == other.best
    assert np.all(np.isfinite(choice.nlls))


@pytest.mark.parametrize("folds", [2, 5])
def test_folds_are_stratified(folds):
    """Every class, and the rows that count as a whole, are spread evenly; another key deals otherwise."""
    labels = jnp.asarray(np.random.default_rng(3).choice(4, 203, p=[0.6, 0.3, 0.08, 0.02]), jnp.int32)
    weights = jnp.asarray(np.random.default_rng(4).uniform(size=203) < 0.8, jnp.float32)
    fold = np.asarray(_deal(KEY, labels, weights, folds))
    counted = np.asarray(weights) > 0
    for part in [counted, *(counted & (np.asarray(labels) == k) for k in range(4))]:
        counts = np.bincount(fold[part], minlength=folds)
        assert np.ptp(counts) <= 1, counts
    assert np.any(fold != np.asarray(_deal(jax.random.key(1), labels, weights, folds)))
    np.testing.assert_array_equal(fold, _deal(KEY, labels, weights, folds))


def test_under_vmap():
    """Over data sets, choice and use: every one as by itself."""
    names = ("none", "temperature")
    logits, labels = (np.stack(arrays) for arrays in zip(*(CASES[name] for name in names), strict=True))

    @jax.jit
    def calibrated(z, y):
        choice = choose_calibrator(KEY, z, y, folds=FOLDS)
        return choice.best, choice.nlls, apply_calibrator(z, choice)

    best, nlls, applied = jax.vmap(calibrated)(logits, labels)
    for n, name in enumerate(names):
        alone = choose(*CASES[name])
        assert best[n] == alone.best
        np.testing.assert_allclose(nlls[n], alone.nlls, rtol=1e-4)
        np.testing.assert_allclose(applied[n], apply_calibrator(logits[n], alone), atol=2e-3)


def test_absent_classes_of_apply():
    choice = choose(*CASES["matrix"])
    some = np.array([True, False, True])
    for best in range(len(NAMES)):
        one = choice._replace(best=jnp.int32(best))
        by_mask = apply_calibrator(CASES["none"][0], one, where=some)
        by_value = apply_calibrator(np.where(some, CASES["none"][0], -np.inf).astype(np.float32), one)
        np.testing.assert_array_equal(by_mask, by_value)
        np.testing.assert_array_equal(np.isneginf(by_mask), np.broadcast_to(~some, by_mask.shape))


# Input that is wrong.

Z, Y = np.float32([[1, 2, 0], [3, 1, 0], [0, 1, 0]]), np.int32([0, 2, 1])
BAD = [
    ({"key": 7}, TypeError, "key must be a key of jax.random"),
    ({"folds": 1}, ValueError, "folds must be 2 or more, and no more than the rows"),
    ({"folds": 4}, ValueError, "folds must be 2 or more, and no more than the rows"),
    ({"folds": 2.0}, TypeError, "folds must be an integer"),
    ({"logits": np.int32([[1, 2, 0], [3, 1, 0], [0, 0, 0]])}, TypeError, "logits must have a floating dtype"),
    ({"labels": np.float32([0, 1, 2])}, TypeError, "labels must be integers"),
    ({"logits": Z[:0], "labels": Y[:0]}, ValueError, "there must be at least one row"),
    ({"weights": np.ones(2, np.float32)}, ValueError, "weights must have one number per row"),
    ({"where": np.ones(3)}, TypeError, "where must be boolean"),
]


@pytest.mark.parametrize(("arguments", "kind", "rule"), BAD)
def test_static_errors(arguments, kind, rule):
    given = {"key": KEY, "logits": Z, "labels": Y, "folds": 2} | arguments
    assert_refused(choose_calibrator, "calibration.choose_calibrator", given, kind, rule)


def test_labels_out_of_range():
    """An error where they can be seen, NaN where they are traced."""
    logits, labels = CASES["none"]
    labels = np.where(np.arange(ROWS) == 4, CLASSES, labels).astype(np.int32)
    with pytest.raises(
        ValueError, match=r"jaxsoftmax\.calibration\.choose_calibrator: labels must lie in \[0, 3\); got"
    ):
        choose_calibrator(KEY, logits, labels)
    choice = choose(logits, labels)
    assert np.all(np.isnan(choice.nlls)) and np.isnan(choice.temperature.temperature)
    assert np.all(np.isnan(choice.matrix.kernel))


def test_errors_of_apply():
    choice = choose(*CASES["none"])
    prefix = r"jaxsoftmax\.calibration\.apply_calibrator: "
    with pytest.raises(TypeError, match=prefix + "calibrator must be what choose_calibrator returns; got"):
        apply_calibrator(Z, choice.temperature)
    with pytest.raises(ValueError, match=prefix + "logits must have the classes of the calibrator"):
        apply_calibrator(Z[:, :2], choice)
    with pytest.raises(TypeError, match=prefix + "logits must have a floating dtype; got"):
        apply_calibrator(Y, choice)
