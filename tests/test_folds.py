"""Where long rows are folded, and the programs that come of it; tests/conformance judges what folded rows give."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsoftmax
from jaxsoftmax._core import folds
from jaxsoftmax._core.meshes import Axes


def groups(logits, *dims):
    """Of an array, or of zeros of a shape."""
    found = []
    logits = jnp.zeros(logits) if isinstance(logits, tuple) else logits

    def see(logits):
        fold = folds.fold_of(Axes(dims), logits)
        found.append(1 if fold is None else fold.groups)

    jax.jit(see).trace(logits)
    return found[0]


def test_parts():
    """Of one size, as few as there can be, none longer than 2**15; none where a row is short or no size divides it."""
    widths = 10, 32_000, 32_768, 32_769, 50_257, 50_304, 65_536, 100_000, 128_256, 131_072, 256_000, 65_537, 2 * 65_537
    assert [groups((2, width), 1) for width in widths] == [1, 1, 1, 3, 29, 2, 2, 4, 4, 4, 8, 1, 1]
    for width in range(2**15 + 1, 2**15 + 300):
        parts = groups((2, width), 1)
        assert parts == 1 or (width % parts == 0 and 64 <= width // parts <= 2**15)
        assert all(width % fewer for fewer in range(2, parts))


def test_only_the_last_axis():
    assert groups((50_304, 2), 0) == groups((2, 50_304), 0, 1) == groups((2, 50_304, 1), 1) == 1


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_not_across_devices(kind):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(kind,))
    logits = jax.device_put(jnp.zeros((2, 50_304)), NamedSharding(mesh, PartitionSpec(None, "x")))
    assert groups(logits, 1) == 1


def test_only_on_a_cpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert groups((2, 50_304), 1) == 1


@pytest.mark.parametrize(("shape", "axis"), [((64, 50_304), -1), ((64, 131, 384), (-2, -1))])
def test_sums_are_made_in_two_steps(shape, axis):
    """In the compiled program no sum runs over more than 2**15 numbers, and no exponential is written out."""
    logits = jax.ShapeDtypeStruct(shape, jnp.float32)
    program = jax.jit(lambda z: jaxsoftmax.logsumexp(z, axis=axis)).lower(logits).compile()
    sums = re.findall(r"reduce\([^)]*\), dimensions=\{([\d,]*)\}, to_apply=\S*", program.as_text())
    assert "2" in sums
    assert program.memory_analysis().temp_size_in_bytes < 2**20


def test_the_gradient_is_written_in_place():
    """Of logits that the program computes itself, whose softmax is written over them."""
    rows, depth, classes = 64, 16, 50_304
    labels = np.zeros(rows, np.int32)

    def loss(features, kernel):
        return jnp.mean(jaxsoftmax.cross_entropy(features @ kernel, labels))

    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((rows, depth), (depth, classes))]
    memory = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arrays).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1.2 * 4 * rows * classes


@pytest.mark.parametrize("classes", [50_257, 50_304])
def test_real_widths(classes):
    """Labels at both ends of every part, and what is summed of all parts."""
    labels = np.array([0, classes // 29 - 1, classes // 29, classes // 2 - 1, classes // 2, classes - 1], np.int32)
    logits = np.random.default_rng(classes).normal(size=(len(labels), classes)).astype(np.float32)
    wide = logits.astype(np.float64)
    terms = np.exp(wide)
    loss, gradient = jax.value_and_grad(lambda z: jnp.sum(jaxsoftmax.cross_entropy(z, labels)))(logits)
    probs = terms / terms.sum(-1, keepdims=True)
    rows = np.arange(len(labels))
    np.testing.assert_allclose(loss, -np.log(probs[rows, labels]).sum(), rtol=1e-6)
    expected = probs - (labels[:, None] == np.arange(classes))
    np.testing.assert_allclose(gradient, expected, rtol=2e-6)
    np.testing.assert_allclose(jaxsoftmax.softmax(logits), probs, rtol=2e-6)
    hard = jaxsoftmax.gumbel_softmax(jax.random.key(0), 1e4 * logits, hard=True)
    np.testing.assert_array_equal(np.argmax(hard, -1), np.argmax(logits, -1))
