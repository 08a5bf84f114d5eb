"""The losses on logits: values, every component of every gradient, and what they do at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsoftmax
from tests import oracles
from tests.helpers import assert_contract, compiled, cotangents, masks, planted, value_and_gradients

CASES = {
    "cross_entropy": (jaxsoftmax.cross_entropy, oracles.cross_entropy, {}),
    "everything": (
        jaxsoftmax.cross_entropy,
        oracles.cross_entropy,
        {"label_smoothing": 0.2, "smoothing": "others", "z_loss": 1e-3},
    ),
    "focal_loss": (jaxsoftmax.focal_loss, oracles.focal_loss, {"gamma": 0.5, "alpha": 0.25}),
    "poly_loss": (jaxsoftmax.poly_loss, oracles.poly_loss, {"epsilon": 2.0}),
}
LABELLED = {
    "cross_entropy": jaxsoftmax.cross_entropy,
    "everything": lambda x, y, **o: jaxsoftmax.cross_entropy(
        x, y, label_smoothing=0.2, z_loss=1e-3, logit_cap=30.0, temperature=2.0, **o
    ),
    "focal_loss": lambda x, y, **o: jaxsoftmax.focal_loss(x, y, gamma=0.5, **o),
    "poly_loss": jaxsoftmax.poly_loss,
    "hinge_loss": jaxsoftmax.hinge_loss,
    "weston_watkins": lambda x, y, **o: jaxsoftmax.hinge_loss(x, y, variant="weston_watkins", **o),
}
COMPILED = {name: compiled(lambda x, y, w, f=f: f(x, y, where=w)) for name, f in LABELLED.items()}


def check(case, logits, labels, *, where=None, temperature=None):
    """Losses and gradients of a batch of rows against the exact ones; the losses are in float32 or wider."""
    function, oracle, options = case
    dtype = np.float64 if logits.dtype == np.float64 else np.float32
    cotangent = cotangents(len(logits), dtype=dtype)

    def with_temperature(logits, temperature, labels, where):
        return function(logits, labels, where=where, temperature=temperature, **options)

    def without(logits, labels, where):
        return function(logits, labels, where=where, **options)

    if temperature is None:
        results = value_and_gradients(without, cotangent, [logits], [labels, where])
    else:
        results = value_and_gradients(with_temperature, cotangent, [logits, temperature], [labels, where])
    exact = oracle(logits, labels, cotangent, where=where, temperature=temperature, **options)
    gain = 2.0 if temperature is None else 2.0 / min(1.0, temperature.min()) ** 2
    assert_contract(results[0], exact.loss.value, dtype, exact.loss.magnitude, name="loss")
    assert_contract(results[1], exact.logits.value, logits.dtype, exact.logits.magnitude, gain=gain, name="by logits")
    if temperature is not None:
        by_temperature = exact.temperature if temperature.ndim else exact.temperature.map(np.sum)
        assert_contract(results[2], *by_temperature[:1], dtype, by_temperature[1], gain=gain, name="by temperature")


@pytest.mark.parametrize("classes", [1, 2, 7, 1000])
@pytest.mark.parametrize("case", CASES)
def test_contract(case, classes):
    logits, labels = planted(classes)
    rows = slice(0, None, 4 if classes == 1000 else 1)
    check(CASES[case], logits[rows], labels[rows])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_half_precision(case, dtype):
    """Losses are float32, and gradients those of float32 rounded once."""
    check(CASES[case], *planted(7, dtype, offsets=(1e4,)))


@pytest.mark.parametrize("case", CASES)
def test_float64(case):
    with jax.enable_x64(True):
        check(CASES[case], *planted(5, np.float64))


@pytest.mark.parametrize("case", CASES)
def test_where_and_temperature_per_row(case):
    logits, labels = planted(7, seed=4)
    where = masks(*logits.shape, labels)
    logits = np.where(where, logits, np.resize(np.float32([np.nan, np.inf, 1e30]), logits.shape))
    temperature = np.resize(np.float32([1.0, 0.07, 3.0, 20.0]), len(logits))
    check(CASES[case], logits, labels, where=where, temperature=temperature)


def test_temperature_as_a_scalar():
    check(CASES["cross_entropy"], *planted(7, offsets=()), temperature=np.float32(0.7))


def test_a_hundred_thousand_classes():
    logits = np.random.default_rng(20).normal(size=(3, 100_000)).astype(np.float32)
    logits[1] += 1e4
    logits[2, 77] += 60.0
    labels = np.int32([5, 99_999, 77])
    loss, gradient = value_and_gradients(jaxsoftmax.cross_entropy, np.ones(3, np.float32), [logits], [labels])
    for n in range(3):
        exact, slopes = oracles.wide.cross_entropy(logits[n], labels[n])
        assert_contract(loss[n], exact.value, np.float32)
        assert_contract(gradient[n], slopes.value, np.float32)


@pytest.mark.parametrize("temperature", [None, 0.25])
@pytest.mark.parametrize("cap", [5.0, 30.0])
def test_logit_cap(cap, temperature):
    """To the last digit also where the cap saturates: tanh is 1, but its slope is 4 exp(-2 x)."""
    case = (jaxsoftmax.cross_entropy, oracles.cross_entropy, {"logit_cap": cap})
    check(case, *planted(7), temperature=None if temperature is None else np.float32(temperature))


# Rows with labels out of range, ignored, absent; with NaN, infinity and the largest numbers. Most are of one shape,
# [8, 7], and share one compiled program for each loss.

EVERY = np.ones((8, 7), bool)


@pytest.mark.parametrize("name", LABELLED)
def test_a_label_out_of_range_makes_its_row_nan(name):
    """Never wrapped, never clamped, in the loss and in the gradient, and in no other row."""
    logits = np.random.default_rng(21).normal(size=(8, 7)).astype(np.float32)
    labels = np.int32([0, -1, 3, 7, -100, 6, 2**31 - 1, -(2**31)])
    bad = (labels < 0) | (labels >= 7)
    cotangent = cotangents(8, seed=3)
    loss, gradient = COMPILED[name](cotangent, [logits], [labels, EVERY])
    assert np.all(np.isnan(loss[bad]))
    assert np.all(np.isnan(gradient[bad]))
    right = COMPILED[name](cotangent, [logits], [np.where(bad, 0, labels).astype(np.int32), EVERY])
    np.testing.assert_array_equal(loss[~bad], right[0][~bad])
    np.testing.assert_array_equal(gradient[~bad], right[1][~bad])


@pytest.mark.parametrize(("name", "ignored"), [*((name, -100) for name in LABELLED), ("cross_entropy", 2)])
def test_ignored_rows_are_exactly_zero(name, ignored):
    """Whatever their logits; other labels out of range remain NaN, and other rows keep their own cotangents."""
    logits = np.random.default_rng(22).normal(size=(8, 7)).astype(np.float32)
    logits[2] *= 1e20
    logits[4] = -np.inf
    labels = np.int32([0, ignored, ignored, 3, ignored, -1, 7, 6])
    cotangent = cotangents(8, seed=4)
    loss, gradient = value_and_gradients(
        lambda x, y: LABELLED[name](x, y, ignore_label=ignored), cotangent, [logits], [labels]
    )
    np.testing.assert_array_equal(loss[[1, 2, 4]], np.zeros(3))
    np.testing.assert_array_equal(gradient[[1, 2, 4]], np.zeros((3, 7)))
    assert np.all(np.isnan(loss[5:7]))
    assert np.all(np.isnan(gradient[5:7]))
    counted = [0, 3, 7]
    right = COMPILED[name](cotangent, [logits], [np.where(labels == ignored, 0, labels).astype(np.int32), EVERY])
    np.testing.assert_allclose(loss[counted], right[0][counted], rtol=1e-6)
    np.testing.assert_allclose(gradient[counted], right[1][counted], rtol=1e-6)


@pytest.mark.parametrize("name", LABELLED)
def test_an_absent_label_costs_infinity(name):
    """With gradient 0 on that class; in a row without any class the gradient is 0 everywhere."""
    logits = np.random.default_rng(23).normal(size=(8, 7)).astype(np.float32)
    where = EVERY.copy()
    logits[0, 0] = logits[2] = -np.inf
    where[1, 0] = where[3] = False
    loss, gradient = COMPILED[name](np.full(8, 2.0, np.float32), [logits], [np.zeros(8, np.int32), where])
    np.testing.assert_array_equal(np.isposinf(loss), np.arange(8) < 4)
    np.testing.assert_array_equal(gradient[:4, 0], np.zeros(4))
    np.testing.assert_array_equal(gradient[2:4], np.zeros((2, 7)))
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("case", ["cross_entropy", "focal_loss", "poly_loss"])
def test_an_absent_label_leaves_the_others_their_probabilities(case):
    logits = np.float32([[-np.inf, 1, 2, 0], [3, 1, -np.inf, 30]])
    where = np.array([[True] * 4, [False, True, True, True]])
    function, oracle, options = CASES[case]
    loss, gradient = value_and_gradients(
        lambda x, y, w: function(x, y, where=w, **options),
        np.ones(2, np.float32),
        [logits],
        [np.zeros(2, np.int32), where],
    )
    exact = oracle(logits, [0, 0], where=where, **options)
    assert_contract(loss, exact.loss.value, np.float32)
    assert_contract(gradient, exact.logits.value, np.float32)


@pytest.mark.parametrize("name", ["cross_entropy", "hinge_loss"])
def test_labels_of_every_integer_type(name):
    """Narrow labels must not meet a class number that has wrapped around."""
    logits = np.random.default_rng(23).normal(size=(3, 1000)).astype(np.float32)
    labels = np.int32([5, 100, 127])
    cotangent = np.ones(3, np.float32)
    function = compiled(LABELLED[name])
    right = function(cotangent, [logits], [labels])
    for dtype in (np.uint8, np.int8, np.int16, np.uint32):
        narrow = function(cotangent, [logits], [labels.astype(dtype)])
        for a, b in zip(narrow, right, strict=True):
            # programs of their own, which a GPU may round differently
            np.testing.assert_allclose(a, b, rtol=0 if jax.default_backend() == "cpu" else 1e-6)


@pytest.mark.parametrize("shape", [(8, 7), (64, 1000)])
@pytest.mark.parametrize("name", LABELLED)
def test_nan_and_infinity_stay_in_their_row(name, shape):
    """At the label and elsewhere; the reductions of XLA:CPU have been seen to lose a NaN in large arrays."""
    where = EVERY if shape == EVERY.shape else None
    clean = np.random.default_rng(24).normal(size=shape).astype(np.float32)
    labels = np.full(shape[0], 3, np.int32)
    logits = clean.copy()
    logits[0, 3] = np.nan
    logits[1, 5] = np.nan
    logits[2, 3] = np.inf
    logits[3, -1] = np.inf
    logits[5, 0], logits[5, -1] = np.inf, np.nan
    bad = np.isin(np.arange(shape[0]), (0, 1, 2, 3, 5))
    cotangent = cotangents(shape[0], seed=5) + 3
    loss, gradient = COMPILED[name](cotangent, [logits], [labels, where])
    np.testing.assert_array_equal(np.isnan(loss), bad)
    exact = COMPILED[name](cotangent, [clean], [labels, where])
    np.testing.assert_array_equal(loss[~bad], exact[0][~bad])
    np.testing.assert_array_equal(gradient[~bad], exact[1][~bad])
    assert np.all(np.isnan(gradient[bad]))


@pytest.mark.parametrize("name", LABELLED)
def test_no_finite_input_makes_a_nan(name):
    huge, tiny = np.finfo(np.float32).max, np.finfo(np.float32).tiny
    logits = np.zeros((8, 7), np.float32)
    logits[:6, :3] = [
        [huge, -huge, 0],
        [-huge, huge, 0],
        [-huge] * 3,
        [tiny, -tiny, 0],
        [1e38, -np.inf, -1e38],
        [1e-45, 0, 0],
    ]
    logits[6] = -huge
    logits[7, 1:] = -np.inf
    for label in (0, 2):
        loss, gradient = COMPILED[name](np.ones(8, np.float32), [logits], [np.full(8, label, np.int32), EVERY])
        assert not np.any(np.isnan(loss))
        assert not np.any(np.isnan(gradient))


@pytest.mark.parametrize("name", ["cross_entropy", "everything", "hinge_loss"])
def test_axis_and_batch_dimensions(name):
    """The class axis first and in the middle, a single row, and a batch of none."""
    logits = np.random.default_rng(25).normal(size=(7, 2, 4)).astype(np.float32)
    labels = np.random.default_rng(26).integers(0, 7, (2, 4)).astype(np.int32)
    cotangent = cotangents(2, 4, seed=6)
    flat = COMPILED[name](cotangent.ravel(), [logits.reshape(7, 8).T], [labels.ravel(), EVERY])
    for axis in (0, 1):
        moved = np.moveaxis(logits, 0, axis)
        loss, gradient = value_and_gradients(
            lambda x, y, a=axis: LABELLED[name](x, y, axis=a), cotangent, [moved], [labels]
        )
        gradient = np.moveaxis(gradient, axis, 0).reshape(7, 8).T
        np.testing.assert_allclose(loss.ravel(), flat[0], rtol=1e-6)
        np.testing.assert_allclose(gradient, flat[1], rtol=1e-5, atol=1e-8)
    assert LABELLED[name](logits[:, 0, 0], jnp.int32(1)).shape == ()
    none = COMPILED[name](np.zeros(0, np.float32), [np.zeros((0, 4), np.float32)], [np.zeros(0, np.int32), None])
    assert [x.shape for x in none] == [(0,), (0, 4)]


# Options.


def test_class_weights():
    """They weight the cross entropy, smoothing included, never the z-loss; weight 0 silences an infinite loss."""
    logits, labels = planted(7)
    logits = np.concatenate([logits, np.float32([[-np.inf, 1, 2, 3, 4, 5, 6]])])
    labels = np.append(labels, 0).astype(np.int32)
    weights = np.float32([0.0, 0.5, 2.0, 1.0, 3.0, 0.25, 1.5])
    cotangent = cotangents(len(logits), seed=7)
    options = {"label_smoothing": 0.1, "z_loss": 1e-2}
    loss, by_logits, by_weights = value_and_gradients(
        lambda x, w, y: jaxsoftmax.cross_entropy(x, y, class_weights=w, **options),
        cotangent,
        [logits, weights],
        [labels],
    )
    exact = oracles.cross_entropy(logits[:-1], labels[:-1], cotangent[:-1], class_weights=weights, **options)
    assert_contract(loss[:-1], exact.loss.value, np.float32, exact.loss.magnitude)
    assert_contract(by_logits[:-1], exact.logits.value, np.float32, exact.logits.magnitude, gain=3.0)
    normalizer = oracles.z_loss(logits[-1:], [0]).loss.value[0]
    np.testing.assert_allclose(loss[-1], 1e-2 * normalizer, rtol=1e-6)
    assert np.all(np.isfinite(by_logits[-1]))
    plain = oracles.cross_entropy(logits[:-1], labels[:-1], label_smoothing=0.1).loss
    for k in range(1, 7):
        rows = labels[:-1] == k
        terms = plain.value[rows] * cotangent[:-1][rows]
        assert_contract(by_weights[k], terms.sum(), np.float32, np.abs(terms).sum())
    assert np.isfinite(by_weights[0])


def test_options_are_differentiable():
    """label_smoothing, z_loss, gamma, epsilon, alpha: one number for all rows, so that the rows are added up."""
    logits, labels = planted(7, offsets=(1e4,))
    one = np.ones(len(logits), np.float32)
    half = np.float32(0.5)
    p = np.exp(-oracles.cross_entropy(logits, labels).loss.value)
    plain = oracles.cross_entropy(logits, labels).loss.value
    uniform = oracles.cross_entropy(logits, labels, label_smoothing=1.0).loss.value
    wrong = oracles.poly_loss(logits, labels, epsilon=1.0).loss.value - plain
    focal = oracles.focal_loss(logits, labels, gamma=0.5).loss.value
    log_wrong = np.log(np.maximum(wrong, 1e-40))
    squared = oracles.z_loss(logits, labels).loss.value
    expected = {
        "label_smoothing": (jaxsoftmax.cross_entropy, uniform - plain, uniform + plain),
        "z_loss": (jaxsoftmax.cross_entropy, squared, squared),
        "gamma": (jaxsoftmax.focal_loss, focal * log_wrong, -focal * log_wrong),
        "epsilon": (jaxsoftmax.poly_loss, wrong, 1 - p + 1e-7),
    }
    for name, (function, slopes, sizes) in expected.items():
        _, gradient = value_and_gradients(
            lambda o, x, y, f=function, n=name: f(x, y, **{n: o}), one, [half], [logits, labels]
        )
        assert_contract(gradient, slopes.sum(), np.float32, sizes.sum(), name=name)
    alpha = np.linspace(0.1, 0.7, 7, dtype=np.float32)
    loss, gradient = value_and_gradients(
        lambda a, x, y: jaxsoftmax.focal_loss(x, y, alpha=a, gamma=0.5), one, [alpha], [logits, labels]
    )
    assert_contract(loss, focal * alpha.astype(np.float64)[labels], np.float32)
    assert_contract(gradient, np.bincount(labels, focal, 7), np.float32)


def test_logit_cap_of_absent_classes():
    """The cap comes before the mask: absent classes stay absent, and of equal logits the loss is log K."""
    logits = np.zeros((1, 507), np.float32)
    logits[0, 500:] = -np.inf
    where = np.arange(507) < 400
    loss = jaxsoftmax.cross_entropy(logits, np.int32([3]), logit_cap=1.0)
    assert_contract(loss, np.log([500.0]), np.float32)
    loss = jaxsoftmax.cross_entropy(logits, np.int32([3]), logit_cap=1.0, where=where)
    assert_contract(loss, np.log([400.0]), np.float32)


def test_extreme_temperatures():
    """T = 0 is the limit: 0 for the one best, log of the number of ties, infinity elsewhere; the gradient is 0."""
    logits = np.float32([[1, 3, 2, 3], [5, 1, 1, 1], [5, 1, 1, 1], [0, 0, 0, 0], [-1, -np.inf, -4, -2]])
    labels = np.int32([1, 0, 2, 3, 0])
    function = compiled(lambda x, t, y: jaxsoftmax.cross_entropy(x, y, temperature=t))
    loss, by_logits, by_temperature = function(np.ones(5, np.float32), [logits, np.zeros(5, np.float32)], [labels])
    np.testing.assert_allclose(loss, [np.log(2), 0, np.inf, np.log(4), 0], rtol=1e-6)
    np.testing.assert_array_equal(by_logits, np.zeros(logits.shape))
    np.testing.assert_array_equal(by_temperature, np.zeros(5))

    cold = np.full(5, 1e-30, np.float32)
    loss, by_logits, by_temperature = function(np.ones(5, np.float32), [logits, cold], [labels])
    exact = oracles.cross_entropy(logits, labels, temperature=cold)
    assert_contract(loss, exact.loss.value, np.float32)
    assert_contract(by_logits, exact.logits.value, np.float32)
    assert not np.any(np.isnan(by_temperature))

    far = np.float32([[3e9, 3e9 + 512, 3e9 - 1024, -np.inf], [3e9, -3e9, 0, 0]])
    check(CASES["cross_entropy"], far, np.int32([0, 0]), temperature=np.float32([0.3, 0.3]))


def test_half_precision_of_many_classes():
    zeros = np.zeros((2, 70_000), np.float16)
    loss, gradient = value_and_gradients(
        jaxsoftmax.cross_entropy, np.ones(2, np.float32), [zeros], [np.int32([0, 69_999])]
    )
    assert_contract(loss, np.log([70_000.0, 70_000.0]), np.float32)
    np.testing.assert_array_equal(gradient[0, 1:], np.full(69_999, 1 / 70_000, np.float16))
    assert gradient[0, 0] == np.float16(-1 + 1 / 70_000)
    logits = np.random.default_rng(27).normal(size=(4, 32_000)).astype(jnp.bfloat16)
    loss = jaxsoftmax.cross_entropy(logits, np.int32([0, 1, 2, 3]))
    exact = [oracles.wide.cross_entropy(row.astype(np.float64), n)[0].value for n, row in enumerate(logits)]
    assert_contract(loss, exact, np.float32)


def test_agreement_with_optax():
    logits, labels = planted(7, offsets=())
    onehot = np.eye(7, dtype=np.float32)[labels]

    @jax.jit
    def run(logits, labels, onehot):
        smooth = optax.smooth_labels(onehot, 0.1)
        return {
            "cross_entropy": (
                jaxsoftmax.cross_entropy(logits, labels),
                optax.softmax_cross_entropy_with_integer_labels(logits, labels),
            ),
            "label smoothing": (
                jaxsoftmax.cross_entropy(logits, labels, label_smoothing=0.1),
                optax.softmax_cross_entropy(logits, smooth),
            ),
            "poly_loss": (
                jaxsoftmax.poly_loss(logits, labels, epsilon=2.0),
                optax.losses.poly_loss_cross_entropy(logits, onehot, epsilon=2.0),
            ),
            "hinge_loss": (
                jaxsoftmax.hinge_loss(logits, labels),
                optax.losses.multiclass_hinge_loss(logits, labels),
            ),
            "smooth_labels": (jaxsoftmax.smooth_labels(onehot, 0.1), smooth),
        }

    for name, (ours, theirs) in run(logits[:8], labels[:8], onehot[:8]).items():
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=name)


# smooth_labels and weighted_mean.


@pytest.mark.parametrize("smoothing", ["uniform", "others"])
def test_smooth_labels(smoothing):
    rng = np.random.default_rng(28)
    targets = rng.dirichlet(np.ones(5), 6).astype(np.float32)
    targets[0] = [0, 0, 1, 0, 0]
    where = masks(6, 5)
    where[0] = True
    where[1] = [True, False, False, False, False]
    where[2] = False
    targets[3] = np.where(where[3], targets[3], np.nan)
    cotangent = cotangents(6, 5)
    for mask in (None, where):
        rows = slice(3 if mask is None else 0, 6) if mask is None else slice(None)
        rows = slice(4, 6) if mask is None else rows
        value, gradient = value_and_gradients(
            lambda t, w: jaxsoftmax.smooth_labels(t, 0.2, smoothing=smoothing, where=w),
            cotangent[rows],
            [targets[rows]],
            [mask],
        )
        exact = oracles.smooth_labels(targets[rows], np.float32(0.2), cotangent[rows], where=mask, smoothing=smoothing)
        assert_contract(value, exact.value.value, np.float32, exact.value.magnitude)
        assert_contract(gradient, exact.targets.value, np.float32, exact.targets.magnitude)
        if mask is not None:
            assert np.all(value[~mask] == 0)
            assert np.all(gradient[~mask] == 0)


def test_smooth_labels_agrees_with_the_smoothing_of_cross_entropy():
    logits, labels = planted(7, absent=False, offsets=())
    for smoothing in ("uniform", "others"):
        targets = jaxsoftmax.smooth_labels(jax.nn.one_hot(labels, 7), 0.2, smoothing=smoothing)
        np.testing.assert_allclose(
            jaxsoftmax.soft_cross_entropy(logits, targets),
            jaxsoftmax.cross_entropy(logits, labels, label_smoothing=0.2, smoothing=smoothing),
            rtol=1e-5,
        )
    half = jaxsoftmax.smooth_labels(jnp.eye(4, dtype=jnp.bfloat16), 0.1)
    assert_contract(half, 0.9 * np.eye(4) + 0.025, jnp.bfloat16)


def test_weighted_mean():
    rng = np.random.default_rng(29)
    values = rng.normal(size=(4, 5)).astype(np.float32) + 100
    weights = rng.uniform(size=(4, 5)).astype(np.float32)
    weights[0] = 0
    values[0, :3] = np.nan, np.inf, -np.inf
    mean, by_values, by_weights = value_and_gradients(jaxsoftmax.weighted_mean, np.float32(2.0), [values, weights])
    exact = oracles.weighted_mean(values, weights, 2.0)
    assert_contract(mean, exact.value.value, np.float32, exact.value.magnitude)
    assert_contract(by_values, exact.values.value, np.float32)
    known = np.isfinite(values)
    assert_contract(by_weights[known], exact.weights.value[known], np.float32, exact.weights.magnitude[known])
    assert not np.any(np.isnan(by_weights))
    values[1, 1] = np.nan
    assert np.isnan(jaxsoftmax.weighted_mean(values, weights))
    plain = jaxsoftmax.weighted_mean(values[2:])
    np.testing.assert_allclose(plain, values[2:].astype(np.float64).mean(), rtol=1e-6)


@pytest.mark.parametrize("shape", [(3,), (0,), (2, 3), ()])
def test_weighted_mean_of_nothing_is_zero(shape):
    values = np.full(shape, np.nan, np.float32)
    mean, by_values, by_weights = value_and_gradients(
        jaxsoftmax.weighted_mean, np.float32(1.0), [values, np.zeros(shape, np.float32)]
    )
    assert mean == 0
    np.testing.assert_array_equal(by_values, np.zeros(shape))
    np.testing.assert_array_equal(by_weights, np.zeros(shape))


def test_weighted_mean_takes_weights_of_any_type():
    values = np.float32([1, 3, np.nan])
    for dtype in (np.bool_, np.int32, np.float32, np.float16, jnp.bfloat16):
        assert jaxsoftmax.weighted_mean(values, np.array([1, 1, 0]).astype(dtype)) == 2
    many = jaxsoftmax.weighted_mean(np.ones(70_000, np.float16))
    assert many.dtype == np.float32
    assert many == 1


def test_weighted_mean_of_wider_weights():
    """Weights of float64 are not rounded to the dtype of the values, in which they may be inf."""
    with jax.enable_x64(True):
        mean = jaxsoftmax.weighted_mean(jnp.float32([1.0, 3.0]), jnp.array([1e60, 3e60]))
    assert mean.dtype == jnp.float64
    np.testing.assert_allclose(mean, 2.5, rtol=1e-12)


def test_labels_of_64_bits_are_not_wrapped():
    """2**32 + 1 is no label, signed or not."""
    with jax.enable_x64(True):
        for dtype in (np.int64, np.uint64):
            labels = np.array([1, 2**32 + 1], dtype)
            losses = jaxsoftmax.cross_entropy(np.zeros((2, 3), np.float32), labels)
            np.testing.assert_array_equal(np.isnan(losses), [False, True])
