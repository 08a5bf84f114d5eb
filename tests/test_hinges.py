"""The multiclass hinge losses: values and subgradients. Labels, absent classes and NaN: see test_losses.py."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoftmax
from tests import oracles
from tests.helpers import assert_contract, cotangents, masks, planted, value_and_gradients

VARIANTS = ("crammer_singer", "weston_watkins")


@pytest.mark.parametrize("classes", [1, 2, 7])
@pytest.mark.parametrize("variant", VARIANTS)
def test_contract(variant, classes):
    """With planted ties, kinks and offsets; the margin is differentiable too."""
    logits, labels = planted(classes)
    kinks = np.round(2 * logits[4:8]) / 2
    logits, labels = np.concatenate([logits, kinks]), np.concatenate([labels, labels[4:8]])
    where = masks(*logits.shape, labels)
    cotangent = cotangents(len(logits))

    def function(logits, margin, labels, where):
        return jaxsoftmax.hinge_loss(logits, labels, margin=margin, variant=variant, where=where)

    loss, by_logits, by_margin = value_and_gradients(function, cotangent, [logits, np.float32(1.5)], [labels, where])
    exact, slopes = oracles.hinge_loss(logits, labels, cotangent, margin=1.5, variant=variant, where=where)
    assert_contract(loss, exact.loss.value, np.float32, exact.loss.magnitude)
    assert_contract(by_logits, exact.logits.value, np.float32)
    size = slopes.value * np.abs(cotangent)
    assert_contract(by_margin, (slopes.value * cotangent).sum(), np.float32, size.sum())


@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision(variant):
    logits, labels = planted(7, jnp.bfloat16, offsets=(1e4,))
    cotangent = cotangents(len(logits))
    loss, gradient = value_and_gradients(
        lambda x, y: jaxsoftmax.hinge_loss(x, y, variant=variant), cotangent, [logits], [labels]
    )
    exact, _ = oracles.hinge_loss(logits, labels, cotangent, variant=variant)
    assert_contract(loss, exact.loss.value, np.float32, exact.loss.magnitude)
    assert_contract(gradient, exact.logits.value, jnp.bfloat16)


def test_the_kink_has_slope_zero_and_ties_share():
    logits = np.float32([[2.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    labels = np.int32([0, 0])
    loss, gradient = value_and_gradients(jaxsoftmax.hinge_loss, np.ones(2, np.float32), [logits], [labels])
    np.testing.assert_array_equal(loss, [0, 1])
    np.testing.assert_array_equal(gradient, [[0, 0, 0], [-1, 0.5, 0.5]])
