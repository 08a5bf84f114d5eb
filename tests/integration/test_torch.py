"""Side by side with torch: value and gradient of what both libraries have."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoftmax

torch = pytest.importorskip("torch", reason="torch is not installed", exc_type=ImportError)

RNG = np.random.default_rng(0)
Z = (2.0 * RNG.standard_normal((6, 5))).astype(np.float32)
TARGET_LOGITS = RNG.standard_normal((6, 5)).astype(np.float32)
LABELS = np.array([0, 1, -100, 3, 4, 0], np.int32)
CLASS_WEIGHTS = np.array([1.0, 0.5, 2.0, 1.5, 0.0], np.float32)
BITS = (TARGET_LOGITS > 0).astype(np.float32)


def assert_same(ours: Callable[[Any], jax.Array], theirs: Callable[[Any], Any]) -> None:
    """Value and gradient under the same cotangent, which is not uniform."""
    value, pullback = jax.vjp(jax.jit(ours), jnp.asarray(Z))
    cotangent = np.cos(np.arange(value.size, dtype=np.float32)).reshape(value.shape)
    z = torch.tensor(Z, requires_grad=True)
    expected = theirs(z)
    expected.backward(torch.tensor(cotangent))
    np.testing.assert_allclose(value, expected.detach().numpy(), rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(pullback(jnp.asarray(cotangent))[0], z.grad.numpy(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing: float) -> None:
    """Label smoothing and ignore_index, one loss per row."""
    labels = torch.tensor(LABELS, dtype=torch.int64)
    assert_same(
        lambda z: jaxsoftmax.cross_entropy(z, LABELS, label_smoothing=smoothing, ignore_label=-100),
        lambda z: torch.nn.functional.cross_entropy(z, labels, label_smoothing=smoothing, reduction="none"),
    )


def test_cross_entropy_with_class_weights() -> None:
    """Class weights without smoothing: with it, torch weights the uniform part class by class."""
    labels, weights = torch.tensor(LABELS, dtype=torch.int64), torch.tensor(CLASS_WEIGHTS)
    assert_same(
        lambda z: jaxsoftmax.cross_entropy(z, LABELS, class_weights=CLASS_WEIGHTS, ignore_label=-100),
        lambda z: torch.nn.functional.cross_entropy(z, labels, weight=weights, reduction="none"),
    )


def test_mean_of_cross_entropy_with_class_weights() -> None:
    """The mean of torch divides by the sum of the labels' weights: `weighted_mean` of the plain loss."""
    counted = np.where(LABELS < 0, 0.0, CLASS_WEIGHTS[np.maximum(LABELS, 0)]).astype(np.float32)
    labels, weights = torch.tensor(LABELS, dtype=torch.int64), torch.tensor(CLASS_WEIGHTS)
    assert_same(
        lambda z: jaxsoftmax.weighted_mean(jaxsoftmax.cross_entropy(z, LABELS, ignore_label=-100), counted),
        lambda z: torch.nn.functional.cross_entropy(z, labels, weight=weights),
    )


def test_soft_targets() -> None:
    """Distributions in place of labels."""
    q = np.exp(TARGET_LOGITS) / np.exp(TARGET_LOGITS).sum(-1, keepdims=True)
    assert_same(
        lambda z: jaxsoftmax.soft_cross_entropy(z, q),
        lambda z: torch.nn.functional.cross_entropy(z, torch.tensor(q), reduction="none"),
    )


def test_kl_divergence() -> None:
    """Both distributions by logits."""
    target = torch.log_softmax(torch.tensor(TARGET_LOGITS), -1)
    assert_same(
        lambda z: jaxsoftmax.kl_divergence(z, TARGET_LOGITS),
        lambda z: torch.nn.functional.kl_div(z.log_softmax(-1), target, reduction="none", log_target=True).sum(-1),
    )


def test_normalizers() -> None:
    """softmax, log_softmax and logsumexp along the first axis."""
    assert_same(lambda z: jaxsoftmax.softmax(z, axis=0), lambda z: torch.softmax(z, 0))
    assert_same(lambda z: jaxsoftmax.log_softmax(z, axis=0), lambda z: torch.log_softmax(z, 0))
    assert_same(lambda z: jaxsoftmax.logsumexp(z, axis=0), lambda z: torch.logsumexp(z, 0))


def test_binary_cross_entropy() -> None:
    """With a weight of the positives for each class."""
    weight, bits = torch.tensor(CLASS_WEIGHTS), torch.tensor(BITS)
    with_logits = torch.nn.functional.binary_cross_entropy_with_logits
    assert_same(
        lambda z: jaxsoftmax.binary_cross_entropy(z, BITS, positive_weight=CLASS_WEIGHTS),
        lambda z: with_logits(z, bits, pos_weight=weight, reduction="none"),
    )


def test_hinge_loss() -> None:
    """Weston-Watkins over V is the multi-margin loss of torch."""
    labels = np.abs(LABELS) % 5
    multi_margin = torch.nn.functional.multi_margin_loss
    assert_same(
        lambda z: jaxsoftmax.hinge_loss(z, labels, variant="weston_watkins") / 5.0,
        lambda z: multi_margin(z, torch.tensor(labels, dtype=torch.int64), reduction="none"),
    )
