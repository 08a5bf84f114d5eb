"""The elementwise losses of independent decisions: values and gradients by logits, labels, weights and options."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsoftmax
from tests import oracles
from tests.helpers import assert_contract, cotangents, hessian_products, planted, value_and_gradients
from tests.stepwise import stepwise

LOGITS = np.concatenate([planted(6, absent=False).logits, np.float32([[0, -0.0, 1e-30, 90, -90, 1e30]])])
LABELS = np.resize(np.float32([0, 1, 1, 0, 0.25, 1, 0, 0.9]), LOGITS.shape)


def check(function, oracle, logits, labels, dtype=np.float32):
    cotangent = cotangents(*logits.shape, dtype=dtype)
    results = value_and_gradients(function, cotangent, [logits, labels])
    exact = oracle(logits, labels, cotangent)
    assert_contract(results[0], exact.loss.value, dtype, exact.loss.magnitude, name="loss")
    assert_contract(results[1], exact.logits.value, logits.dtype, exact.logits.magnitude, name="by logits")
    assert_contract(results[2], exact.labels.value, labels.dtype, exact.labels.magnitude, name="by labels")


@pytest.mark.parametrize("weight", [None, 2.5])
def test_binary_cross_entropy(weight):
    check(
        lambda x, y: jaxsoftmax.binary_cross_entropy(x, y, positive_weight=weight),
        lambda x, y, g: oracles.binary_cross_entropy(x, y, g, positive_weight=weight or 1.0),
        LOGITS,
        LABELS,
    )


def test_binary_cross_entropy_by_the_weight():
    cotangent = cotangents(*LOGITS.shape)
    exact = oracles.binary_cross_entropy(LOGITS, LABELS, cotangent).weight
    for weight, axes in ((np.float32(1.5), (0, 1)), (np.full(6, 1.5, np.float32), 0)):
        _, gradient = value_and_gradients(
            lambda w, x, y: jaxsoftmax.binary_cross_entropy(x, y, positive_weight=w),
            cotangent,
            [weight],
            [LOGITS, LABELS],
        )
        assert_contract(gradient, exact.value.sum(axes), np.float32, exact.magnitude.sum(axes))


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, None), (0.0, None), (0.5, 0.25), (5.0, 0.75)])
def test_sigmoid_focal_loss(gamma, alpha):
    check(
        lambda x, y: jaxsoftmax.sigmoid_focal_loss(x, y, gamma=gamma, alpha=alpha),
        lambda x, y, g: oracles.sigmoid_focal_loss(x, y, g, gamma=gamma, alpha=alpha),
        LOGITS,
        LABELS,
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, np.float64])
def test_other_precisions(dtype):
    with jax.enable_x64(dtype == np.float64):
        rows = slice(0, 14)
        logits, labels = LOGITS[rows].astype(dtype), LABELS[rows].astype(dtype)
        out = np.float64 if dtype == np.float64 else np.float32
        for ours, oracle in (
            (jaxsoftmax.binary_cross_entropy, oracles.binary_cross_entropy),
            (jaxsoftmax.sigmoid_focal_loss, oracles.sigmoid_focal_loss),
        ):
            check(ours, oracle, logits, labels, out)


@pytest.mark.parametrize("name", ["binary_cross_entropy", "sigmoid_focal_loss"])
def test_edges(name):
    """Infinite logits on the right side cost 0, on the wrong side infinity; NaN and masked elements touch no other."""
    function = getattr(jaxsoftmax, name)
    logits = np.float32([[np.inf, -np.inf, np.inf, -np.inf], [np.nan, 0.5, np.nan, np.inf]])
    labels = np.float32([[1, 0, 0, 1], [1, 1, 0, np.nan]])
    where = np.array([[True] * 4, [True, True, False, False]])
    loss, by_logits, by_labels = value_and_gradients(
        lambda x, y, w: function(x, y, where=w), np.ones((2, 4), np.float32), [logits, labels], [where]
    )
    np.testing.assert_array_equal(loss[0], [0, 0, np.inf, np.inf])
    np.testing.assert_array_equal(by_logits[0], [0, 0, 1, -1])
    assert np.isnan(loss[1, 0])
    assert np.isnan(by_logits[1, 0])
    assert np.isfinite(loss[1, 1])
    for array in (loss, by_logits, by_labels):
        np.testing.assert_array_equal(array[1, 2:], [0, 0])
    wide = value_and_gradients(
        lambda x, y, w: function(x, y, where=w),
        np.ones((2, 4), np.float32),
        [logits, labels],
        [where[1]],
    )
    np.testing.assert_array_equal(wide[0][:, 2:], np.zeros((2, 2)))


@pytest.mark.parametrize("name", ["binary_cross_entropy", "sigmoid_focal_loss"])
def test_labels_of_every_type_and_shapes(name):
    function = getattr(jaxsoftmax, name)
    logits = np.random.default_rng(30).normal(size=(3, 4)).astype(np.float32)
    labels = np.arange(12).reshape(3, 4) % 2
    expected = np.asarray(function(logits, labels.astype(np.float32)))
    for dtype in (np.bool_, np.int32, np.uint8, jnp.bfloat16):
        np.testing.assert_array_equal(function(logits, labels.astype(dtype)), expected)
    np.testing.assert_array_equal(function(logits[0, 1], np.float32(1)), expected[0, 1])
    assert function(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)).shape == (0, 3)


def test_gamma_and_alpha_are_differentiable():
    cotangent = cotangents(*LOGITS.shape)
    _, by_gamma, by_alpha = value_and_gradients(
        lambda g, a, x, y: jaxsoftmax.sigmoid_focal_loss(x, y, gamma=g, alpha=a),
        cotangent,
        [np.float32(1.5), np.float32(0.25)],
        [LOGITS, LABELS],
    )

    def total(gamma, alpha):
        return (oracles.sigmoid_focal_loss(LOGITS, LABELS, gamma=gamma, alpha=alpha).loss.value * cotangent).sum()

    step = 2.0**-16
    size = np.abs(oracles.sigmoid_focal_loss(LOGITS, LABELS, gamma=1.5).loss.value * cotangent).sum()
    np.testing.assert_allclose(
        by_gamma, (total(1.5 + step, 0.25) - total(1.5 - step, 0.25)) / (2 * step), atol=1e-6 * size
    )
    np.testing.assert_allclose(by_alpha, (total(1.5, 0.5) - total(1.5, 0.0)) / 0.5, atol=1e-6 * size)


def test_agreement_with_optax():
    rng = np.random.default_rng(31)
    logits = rng.normal(size=(4, 5)).astype(np.float32)
    labels = (rng.uniform(size=(4, 5)) < 0.5).astype(np.float32)
    np.testing.assert_allclose(
        jaxsoftmax.binary_cross_entropy(logits, labels), optax.sigmoid_binary_cross_entropy(logits, labels), rtol=1e-5
    )
    np.testing.assert_allclose(
        jaxsoftmax.sigmoid_focal_loss(logits, labels, alpha=0.25),
        optax.sigmoid_focal_loss(logits, labels, alpha=0.25),
        rtol=1e-5,
    )


def test_an_infinite_slope_counts_for_nothing_where_nothing_comes_in():
    """By labels, the slope at a logit of -inf is infinite; a cotangent or a tangent of 0 makes it 0."""
    logits, labels = np.float32([-np.inf, np.inf, 1.0]), np.float32([0.0, 1.0, 0.0])
    for function in (jaxsoftmax.binary_cross_entropy, jaxsoftmax.sigmoid_focal_loss):
        results = value_and_gradients(function, np.zeros(3, np.float32), [logits, labels])
        np.testing.assert_array_equal(results[1:], np.zeros((2, 3)))
        with jaxsoftmax.forward_mode():
            _, pushed = jax.jvp(lambda z, f=function: f(z, labels), (logits,), (np.ones(3, np.float32),))
        np.testing.assert_array_equal(pushed[:2], np.zeros(2))
        second = jax.jvp(jax.grad(lambda z, f=function: jnp.sum(f(z, labels))), (logits,), (np.ones(3, np.float32),))[1]
        np.testing.assert_array_equal(second[:2], np.zeros(2))


@pytest.mark.parametrize("way", ["vmap", "scan"])
@pytest.mark.parametrize("name", ["binary_cross_entropy", "sigmoid_focal_loss"])
def test_second_derivatives_at_infinite_logits(name, way):
    """Far from 0 a loss is linear in logit and label, with the mixed derivative -1, and no square of it is NaN."""
    function = getattr(jaxsoftmax, name)
    logits = np.float32([np.inf, -np.inf, 0.5, 1e30, -1e30, np.inf, -np.inf])
    labels = np.float32([1, 0, 0.25, 1, 0, 0, 0.75])

    def products(power, count):
        def total(rows):
            if way == "vmap":
                return jnp.sum(function(rows[0], rows[1]) ** power)
            step = lambda carry, row: (carry + function(row[0], row[1]) ** power, None)  # noqa: E731
            return jax.lax.scan(step, 0.0, rows.T)[0]

        point = np.stack([logits, labels])[:, :count]
        direction = np.stack([np.full(count, 2.0, np.float32), np.full(count, 3.0, np.float32)])
        # Not those inside of forward_mode: an infinite slope is the largest number there, whose own derivative is 0.
        return stepwise(lambda: hessian_products(total, point, direction)[:2])()

    for by_logits, by_labels in products(1, 7):
        np.testing.assert_allclose(np.delete(by_logits, 2), [-3] * 6, rtol=1e-6)
        np.testing.assert_allclose(np.delete(by_labels, 2), [-2] * 6, rtol=1e-6)
        assert np.all(np.isfinite([by_logits[2], by_labels[2]]))
    for product in products(2, 2):
        assert not np.any(np.isnan(product))
