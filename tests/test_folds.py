"""Where long rows are folded, and the programs that come of it; tests/conformance judges what folded rows give."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsoftmax
from jaxsoftmax._core import folds
from jaxsoftmax._core.meshes import Axes


def groups(logits, *dims, long_from=folds.LONG + 1):
    """Of an array, or of a shape."""
    found = []
    logits = jax.ShapeDtypeStruct(logits, jnp.bfloat16) if isinstance(logits, tuple) else logits

    def see(logits):
        fold = folds.fold_of(Axes(dims), logits, long_from=long_from)
        found.append(1 if fold is None else fold.sizes[0])

    jax.eval_shape(see, logits)
    return found[0]


def test_parts():
    """Of one size, as few as there can be, of 2**6 to 2**11; none where a row is short or no size divides it."""
    widths = 10, 32_768, 32_769, 50_257, 50_304, 65_536, 100_000, 128_256, 131_072, 256_000, 65_537, 2 * 65_537
    assert [groups((2, width), 1) for width in widths] == [1, 1, 33, 29, 32, 32, 50, 64, 64, 125, 1, 1]
    for width in range(2**15 + 1, 2**15 + 300):
        parts = groups((2, width), 1)
        assert parts == 1 or (width % parts == 0 and 64 <= width // parts <= 2**11)
        assert all(width % fewer for fewer in range(math.ceil(width / 2**11), parts))


def test_parts_for_a_sum_without_one_class():
    """Of shorter rows too, unless there are many."""
    shapes = (2, 4096), (2, 8192), (2, 32_000), (4095, 8192), (4096, 8192), (2, 4, 8192), (64, 64, 8192)
    without_one, twice = folds.LONG_WITHOUT_ONE, folds.LONG_SUMMED_TWICE
    assert [groups(shape, len(shape) - 1, long_from=without_one) for shape in shapes] == [1, 4, 16, 4, 1, 4, 1]
    assert [groups((2, width), 1, long_from=twice) for width in (2048, 2049, 2050, 4096)] == [1, 3, 2, 2]
    assert all(groups(shape, len(shape) - 1) == 1 for shape in shapes)


def test_only_the_last_axis():
    assert groups((50_304, 2), 0) == groups((2, 50_304), 0, 1) == groups((2, 50_304, 1), 1) == 1


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_not_across_devices(kind):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(kind,))
    logits = jax.device_put(jnp.zeros((2, 50_304)), NamedSharding(mesh, PartitionSpec(None, "x")))
    assert groups(logits, 1) == 1


def test_class_axes_that_devices_split():
    """Summed at once, as a gather or a sum of parts would bring the row to every device."""
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Explicit,))
    logits = np.random.default_rng(0).normal(size=(2, 64, 128)).astype(np.float32)
    split = jax.device_put(logits, NamedSharding(mesh, PartitionSpec(None, "x")))
    np.testing.assert_allclose(
        jaxsoftmax.log_softmax(split, axis=(-2, -1)), jaxsoftmax.log_softmax(logits, axis=(-2, -1)), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "shape"), [("log_softmax", "b, 8192"), ("entropy", "b, 50304"), ("softmax", "b, v"), ("logsumexp", "v")]
)
def test_sizes_that_are_not_known(name, shape):
    """A number of rows or classes that is a symbol is exported, in value and gradient."""
    logits = jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape), jnp.float32)

    def function(z):
        return jnp.sum(jnp.sin(getattr(jaxsoftmax, name)(z)))

    called = jax.export.export(jax.jit(jax.value_and_grad(function)))(logits).call
    row = np.linspace(-1.0, 1.0, 50_304 if "5" in shape else 8192, dtype=np.float32)
    row = row if shape == "v" else np.stack([row, -row])
    for actual, expected in zip(called(row), jax.value_and_grad(function)(row), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_key_is_no_row():
    """Two whole numbers beside logits of one axis."""
    logits = jnp.zeros(50_304)
    for key in (jax.random.PRNGKey(0), jax.random.key(0)):
        sample = jaxsoftmax.gumbel_softmax(key, logits, hard=True)
        assert jnp.sum(sample) == jnp.max(sample) == 1


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


@pytest.mark.parametrize("classes", [8192, 50_257, 50_304])
def test_real_widths(classes):
    """Labels and largest classes at both ends of every part, and what is summed of all parts."""
    labels = np.array([0, classes // 32 - 1, classes // 32, classes // 2 - 1, classes // 2, classes - 1], np.int32)
    rows, columns = np.arange(len(labels)), np.arange(classes)
    logits = np.random.default_rng(classes).normal(size=(len(labels), classes)).astype(np.float32)
    logits[rows[1:], labels[1:]] = (0, 7, 11, 25, 45)
    wide = logits.astype(np.float64)
    terms = np.exp(wide - wide.max(-1, keepdims=True))
    probs = terms / terms.sum(-1, keepdims=True)
    others = np.where(wide == wide.max(-1, keepdims=True), 0.0, terms).sum(-1, keepdims=True)
    log_probs = wide - wide.max(-1, keepdims=True) - np.log1p(others)

    loss, gradient = jax.value_and_grad(lambda z: jnp.sum(jaxsoftmax.cross_entropy(z, labels)))(logits)
    np.testing.assert_allclose(loss, -log_probs[rows, labels].sum(), rtol=1e-6)
    labelled = labels[:, None] == columns
    certain = np.where(labelled, 0.0, probs).sum(-1, keepdims=True)
    np.testing.assert_allclose(gradient, np.where(labelled, -certain, probs), rtol=4e-6)
    np.testing.assert_allclose(jaxsoftmax.softmax(logits), probs, rtol=4e-6)
    np.testing.assert_allclose(jaxsoftmax.log_softmax(logits), log_probs, rtol=1e-6)
    np.testing.assert_allclose(jaxsoftmax.entropy(logits), -(probs * log_probs).sum(-1), rtol=2e-6)
    hard = jaxsoftmax.gumbel_softmax(jax.random.key(0), 1e4 * logits, hard=True)
    np.testing.assert_array_equal(np.argmax(hard, -1), np.argmax(logits, -1))


def test_largest_classes_of_a_folded_row():
    """Ties in one part and in two, rows without any class, with one, with infinity and NaN, and T = 0."""
    classes, part = 8192, 2048
    rows = np.full((7, classes), -np.inf, np.float32)
    rows[0, [3, 5]] = 1.0
    rows[1, [3, part, part + 1]] = 1.0
    rows[3, part - 1] = 2.0
    rows[4, [0, part]] = (0.0, np.inf)
    rows[5, [0, part]] = (0.0, np.nan)
    rows[6, [part, 3 * part]] = (0.0, -40.0)
    entropies = jaxsoftmax.entropy(rows)
    expected = [math.log(2), math.log(3), 0.0, 0.0, np.nan, np.nan, 41 * math.exp(-40)]
    np.testing.assert_allclose(entropies, expected, rtol=1e-6)
    np.testing.assert_allclose(jaxsoftmax.entropy(rows[:2], temperature=0.0), expected[:2], rtol=1e-6)
    log_probs = jaxsoftmax.log_softmax(rows)
    np.testing.assert_allclose(log_probs[6, part], -math.exp(-40), rtol=1e-6)
    assert np.isneginf(log_probs[2]).all()
    assert np.isnan(log_probs[4:6]).all()
