"""RowStatistics and the dense head: fields, properties and the gradients of target, rest and mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoftmax
from tests import oracles
from tests.helpers import assert_contract, cotangents, masks, planted, value_and_gradients

PROPERTIES = ("log_odds", "log_normalizer", "log_prob", "prob", "error_prob")


def check(logits, labels, *, dtype=np.float32, temperature=None, where=None, logit_cap=None):
    """Every field and property of a batch of rows, and the gradients of a weighted sum of the differentiable fields."""
    weights = [cotangents(len(logits), dtype=dtype, seed=seed) for seed in (11, 12, 13)]

    def function(logits, *rest):
        temperature_, labels_, where_ = rest if temperature is not None else (None, *rest)
        return jaxsoftmax.row_statistics(logits, labels_, temperature=temperature_, where=where_, logit_cap=logit_cap)

    zero = np.zeros(len(logits), dtype)
    upstream = jaxsoftmax.RowStatistics(*weights, zero, zero)
    arguments = [logits] if temperature is None else [logits, temperature]
    fields, *gradients = value_and_gradients(function, upstream, arguments, [labels, where])
    exact = oracles.row_statistics(logits, labels, weights, where=where, temperature=temperature, logit_cap=logit_cap)
    fields = jax.tree.map(jnp.asarray, fields)
    for name, truth in exact.fields.items():
        assert_contract(getattr(fields, name), truth.value, dtype, truth.magnitude, name=name)
    assert_contract(gradients[0], exact.logits.value, logits.dtype, exact.logits.magnitude)
    if temperature is not None:
        assert_contract(gradients[1], exact.temperature.value, dtype, exact.temperature.magnitude)


@pytest.mark.parametrize("classes", [1, 2, 7, 1000])
def test_contract(classes):
    logits, labels = planted(classes)
    rows = slice(None, None, 4 if classes == 1000 else 1)
    check(logits[rows], labels[rows])


def test_temperature_per_row_and_where():
    logits, labels = planted(7)
    where = masks(*logits.shape, labels)
    logits = np.where(where, logits, np.resize(np.float32([np.nan, np.inf, 1e30]), logits.shape))
    check(logits, labels, where=where, temperature=np.resize(np.float32([1.0, 0.07, 3.0, 20.0]), len(logits)))


@pytest.mark.parametrize("cap", [5.0, 30.0])
def test_logit_cap(cap):
    check(*planted(7), logit_cap=cap)


@pytest.mark.parametrize("name", PROPERTIES)
def test_gradients_of_the_properties(name):
    """By the logits; ties of the label with the rest are where max and abs have no derivative."""
    logits, labels = planted(2)
    logits, labels = np.concatenate([logits, -logits[:, ::-1]]), np.concatenate([labels, labels])
    finite = np.isfinite(logits).all(-1)
    logits, labels = logits[finite], labels[finite]
    _, gradient = value_and_gradients(
        lambda x, y: getattr(jaxsoftmax.row_statistics(x, y), name),
        np.ones(len(logits), np.float32),
        [logits],
        [labels],
    )
    exact = oracles.cross_entropy(logits, labels)
    loss, by_label = exact.loss.value, exact.logits.value
    p, wrong = np.exp(-loss), np.abs(by_label[:, 0])
    sign = np.sign(by_label)
    expected = {
        "log_odds": -sign,
        "log_normalizer": oracles.softmax(logits).value.value,
        "log_prob": -by_label,
        "prob": -sign * (p * wrong)[:, None],
        "error_prob": sign * (p * wrong)[:, None],
    }[name]
    assert_contract(gradient, expected, np.float32)


def test_float64():
    with jax.enable_x64(True):
        check(*planted(7, np.float64), dtype=np.float64)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision(dtype):
    """The statistics are float32, and the gradient is that of float32 rounded once."""
    check(*planted(7, dtype, offsets=(1e4,)))


def test_labels_that_do_not_count():
    """Out of range: NaN in target, hence in every property; ignored: a certain label, with gradient 0."""
    logits = np.random.default_rng(14).normal(size=(6, 5)).astype(np.float32)
    labels = np.int32([0, -1, 5, -100, 4, -7])
    statistics = jaxsoftmax.row_statistics(logits, labels, ignore_label=-100)
    broken = np.array([False, True, True, False, False, True])
    for name in ("log_odds", "log_normalizer", "log_prob", "prob", "error_prob"):
        np.testing.assert_array_equal(np.isnan(getattr(statistics, name)), broken)
    assert statistics.error_prob[3] == 0
    assert statistics.log_prob[3] == 0
    assert statistics.log_normalizer[3] == 0
    weights = [np.ones(6, np.float32)] * 5
    _, gradient = value_and_gradients(
        lambda x, y: jaxsoftmax.row_statistics(x, y, ignore_label=-100),
        jaxsoftmax.RowStatistics(*weights),
        [logits],
        [labels],
    )
    np.testing.assert_array_equal(gradient[3], np.zeros(5))
    assert np.all(np.isfinite(gradient[[0, 4]]))


@pytest.mark.parametrize("classes", [2, 300])
def test_a_large_cotangent_in_a_certain_row(classes):
    """It overflows in none of the factors of the slope."""
    logits = np.full((1, classes), -200.0, np.float32)
    logits[0, :2] = (0.0, -87.0)
    _, pull = jax.vjp(lambda z: jaxsoftmax.row_statistics(z, np.int32([0])).log_odds, logits)
    (slope,) = pull(np.float32([1e21]))
    np.testing.assert_allclose(slope[0, :2], [1e21, -1e21], rtol=1e-6)
    np.testing.assert_allclose(slope[0, 2:], 0.0, atol=1e-20)


def test_absent_labels_and_rows():
    logits = np.float32([[-np.inf, 1, 2], [3, 1, 2], [-np.inf] * 3, [0, -np.inf, -np.inf]])
    where = np.array([[True] * 3, [False, True, True], [True] * 3, [True] * 3])
    labels = np.zeros(4, np.int32)
    statistics = jaxsoftmax.row_statistics(logits, labels, where=where)
    np.testing.assert_array_equal(statistics.log_odds, np.float32([-np.inf, -np.inf, -np.inf, np.inf]))
    np.testing.assert_array_equal(statistics.prob, [0, 0, 0, 1])
    np.testing.assert_array_equal(statistics.log_prob, np.float32([-np.inf, -np.inf, -np.inf, 0]))
    np.testing.assert_array_equal(statistics.classes, [2, 2, 0, 1])
    np.testing.assert_allclose(statistics.log_normalizer, [np.log(np.e + np.e**2)] * 2 + [-np.inf, 0], rtol=1e-6)


def test_axis():
    logits = np.random.default_rng(15).normal(size=(3, 4, 5)).astype(np.float32)
    labels = np.random.default_rng(16).integers(0, 4, (3, 5)).astype(np.int32)
    statistics = jaxsoftmax.row_statistics(logits, labels, axis=1)
    flat = jaxsoftmax.row_statistics(np.moveaxis(logits, 1, -1), labels)
    for name, ours, theirs in zip(statistics._fields, statistics, flat, strict=True):
        assert ours.shape == (3, 5)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("classes", [1, 3, 300])
@pytest.mark.parametrize("field", ["target", "rest", "mean"])
def test_nan_and_infinity_break_the_whole_row(field, classes):
    """Whatever an objective takes of it; at the label and elsewhere."""
    logits = np.random.default_rng(3).normal(size=(6, classes)).astype(np.float32)
    logits[0, 0], logits[1, -1], logits[2, 0], logits[3, -1] = np.nan, np.nan, np.inf, np.inf

    def total(logits):
        statistics = jaxsoftmax.row_statistics(logits, np.zeros(logits.shape[:-1], np.int32))
        return jnp.sum(jnp.nan_to_num(getattr(statistics, field), nan=jnp.nan, neginf=0.0))

    for rows in (logits, logits.reshape(2, 3, classes)):
        gradient = jax.grad(total)(rows).reshape(6, classes)
        assert np.all(np.isnan(gradient[:4]))
        assert np.all(np.isfinite(gradient[4:]))
