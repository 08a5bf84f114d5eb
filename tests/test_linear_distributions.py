"""Log-probabilities, entropies, divergences and best classes of a streamed head, beside the dense operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoftmax
from tests.helpers import SCALES
from tests.linear_cases import IGNORED, N, V, arguments, assert_close, compiled, gradients

BLOCKS = (None, 1, 7, N + 3)


def masked(labels):
    """About four classes in five, the labels among them."""
    mask = np.random.default_rng(5).uniform(size=V) < 0.8
    mask[labels[labels >= 0]] = True
    return mask


@pytest.mark.parametrize("scale", SCALES)
def test_log_probs(scale):
    """Minus the cross entropy, 0 for ignored rows; with every option at once."""
    features, kernel, bias, temperature, _, labels = arguments(scale)
    mask = masked(labels)
    options = {"where": mask, "logit_cap": 40.0, "ignore_label": IGNORED}

    def expected(h, w, b, t, labels):
        return -jaxsoftmax.cross_entropy(h @ w + b[None], labels, temperature=t, **options)

    def actual(h, w, b, t, labels):
        return jaxsoftmax.linear_log_probs(h, w, labels, bias=b, temperature=t, block_size=7, **options)

    floats = (features, kernel, bias, temperature)
    assert_close(gradients(actual, floats, labels), gradients(expected, floats, labels), 1e-5)


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("scale", SCALES)
def test_entropy(scale, cap):
    """The entropy of the logits, capped too."""
    features, kernel, bias, temperature, _, labels = arguments(scale)
    mask = masked(labels)

    def expected(h, w, b, t, _):
        logits = h @ w + b[None]
        logits = logits if cap is None else cap * jnp.tanh(logits / cap)
        return jaxsoftmax.entropy(logits, temperature=t, where=mask)

    def actual(h, w, b, t, _):
        return jaxsoftmax.linear_entropy(h, w, bias=b, temperature=t, where=mask, logit_cap=cap, block_size=7)

    floats = (features, kernel, bias, temperature)
    assert_close(gradients(actual, floats, labels), gradients(expected, floats, labels), 2e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_kl_divergence(reduction):
    """From a teacher of another width, with gradients to both; blocks of any size."""
    student, student_kernel, bias, temperature, weights, labels = arguments(1.0)
    teacher, teacher_kernel = (x[..., :4] if i == 0 else x[:4] for i, x in enumerate(arguments(3.0, seed=1)[:2]))
    mask = masked(labels)

    def expected(h, w, g, v, b, t, _):
        losses = jaxsoftmax.kl_divergence(h @ w + b[None], g @ v, temperature=t, where=mask)
        losses = weights * losses
        return losses if reduction == "none" else losses.sum() / (weights.sum() if reduction == "mean" else 1.0)

    def actual(block):
        return lambda h, w, g, v, b, t, _: jaxsoftmax.linear_kl_divergence(
            h,
            w,
            g,
            v,
            student_bias=b,
            temperature=t,
            where=mask,
            weights=weights,
            reduction=reduction,
            block_size=block,
        )

    floats = (student, student_kernel, teacher, teacher_kernel, bias, temperature)
    exact = gradients(expected, floats, labels)
    for block in BLOCKS:
        assert_close(compiled(actual(block))(floats, labels), exact, 1e-5)


def test_kl_divergence_of_equals_is_nothing():
    """A student that is its teacher has divergence 0 and gradient 0 to rounding."""
    features, kernel, *_ = arguments(5.0)
    loss = jax.value_and_grad(lambda h: jaxsoftmax.linear_kl_divergence(h, kernel, features, kernel, block_size=4))
    value, slope = loss(jnp.asarray(features))
    assert value == 0
    assert np.max(np.abs(slope)) < 1e-6


def test_a_frozen_teacher_costs_its_logits_alone():
    """Four products, where the gradients of both sides take six."""
    if jax.default_backend() != "cpu":
        pytest.skip("products are calls of a library there, which XLA does not count")
    features, kernel = jnp.ones((64, 512)), jnp.ones((512, 1024))

    def flops(argnums):
        loss = jax.value_and_grad(jaxsoftmax.linear_kl_divergence, argnums)
        program = jax.jit(loss).lower(features, kernel, features, kernel).compile()
        return program.cost_analysis()["flops"] / (2 * 64 * 512 * 1024)

    assert flops((0, 1)) < 4.3
    assert 5.9 < flops((0, 1, 2, 3)) < 6.4


@pytest.mark.parametrize("block", BLOCKS)
def test_top_k(block):
    """Indices and log-probabilities of the dense path; equal logits by the lower index, absent classes last."""
    features, kernel, bias, temperature, _, _ = arguments(1.0)
    kernel[:, 7] = kernel[:, 3]
    bias[7] = bias[3]
    mask = np.arange(V) != 11
    best = jaxsoftmax.linear_top_k(
        features, kernel, 5, bias=bias, where=mask, temperature=temperature, block_size=block
    )
    logits = np.where(mask, features @ kernel + bias, -np.inf)
    log_probs = jaxsoftmax.log_softmax(logits, temperature=temperature)
    indices = np.argsort(-logits, axis=-1, stable=True)[:, :5]
    np.testing.assert_array_equal(best.indices, indices)
    np.testing.assert_allclose(best.log_probs, np.take_along_axis(np.asarray(log_probs), indices, 1), rtol=2e-5)
    assert best.indices.dtype == jnp.int32


def test_all_classes_are_the_best():
    """k = V sorts them; the absent one has log-probability -inf; nothing is differentiated."""
    features, kernel, *_ = arguments(1.0)
    mask = np.arange(V) != 4

    def total(h):
        best = jaxsoftmax.linear_top_k(h, kernel, V, where=mask, block_size=9)
        return jnp.sum(best.log_probs[:, :-1]), best

    (_, best), slope = jax.value_and_grad(total, has_aux=True)(jnp.asarray(features))
    np.testing.assert_array_equal(np.sort(best.indices, -1), np.broadcast_to(np.arange(V), (N, V)))
    assert np.all(np.asarray(best.indices)[:, -1] == 4)
    assert np.all(np.isneginf(best.log_probs[:, -1]))
    assert not np.any(np.asarray(slope))


@pytest.mark.parametrize("k", [1, 3])
def test_accuracy(k):
    """The weighted share of rows whose label is among the best; ignored rows do not count."""
    features, kernel, bias, _, weights, labels = arguments(1.0)
    order = np.argsort(-(features @ kernel + bias), axis=-1, stable=True)[:, :k]
    counted = np.where(labels == IGNORED, 0.0, weights)
    expected = np.sum(counted * np.any(order == labels[:, None], -1)) / np.sum(counted)
    actual = jaxsoftmax.linear_accuracy(
        features, kernel, labels, k=k, weights=weights, bias=bias, ignore_label=IGNORED, block_size=6
    )
    assert 0 < expected < 1
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_broken_and_absent_labels_are_no_hits():
    """A model of NaN is never right, nor is a label that is absent."""
    kernel = np.eye(3, 4, dtype=np.float32)
    labels = np.zeros(2, np.int32)
    assert jaxsoftmax.linear_accuracy(np.full((2, 3), np.nan, np.float32), kernel, labels) == 0
    mask = np.array([False, True, True, False])
    assert jaxsoftmax.linear_accuracy(np.eye(2, 3, dtype=np.float32), kernel, labels, k=4, where=mask) == 0
