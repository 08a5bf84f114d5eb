"""What follows from a gradient by the logits, in a program with one device and with several."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import jaxsoftmax
from jaxsoftmax import statistics
from jaxsoftmax._core import passes
from tests.helpers import cotangents

# Shapes that no other test has: what is traced with several devices would be used again.
ROWS, CLASSES, FEATURES = 13, 6, 5
UPDATE = "dynamic-update-slice"


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def layer(loss, rows, classes):
    """The compiled gradients, by features and kernel, of a layer's mean loss."""

    def total(features, kernel, labels):
        return jnp.mean(loss(features @ kernel, labels))

    shapes = (*rows, FEATURES), (FEATURES, classes)
    arguments = *(jax.ShapeDtypeStruct(s, np.float32) for s in shapes), jax.ShapeDtypeStruct(rows, np.int32)
    return jax.jit(jax.grad(total, argnums=(0, 1))).lower(*arguments).compile()


def program(*rows, classes=CLASSES, **options):
    return layer(functools.partial(jaxsoftmax.cross_entropy, **options), rows, classes).as_text()


@pytest.mark.parametrize("options", [{}, {"ignore_label": -1}], ids=["plain", "ignore_label"])
def test_in_a_layer_of_few_classes(alone, options):
    assert UPDATE in program(ROWS, **options)


@pytest.mark.parametrize(
    ("rows", "classes"), [((ROWS,), statistics.FEW_CLASSES + 1), ((2, ROWS), CLASSES)], ids=["wide", "of sequences"]
)
def test_not_where_it_would_copy(alone, rows, classes):
    assert UPDATE not in program(*rows, classes=classes)


def test_not_where_devices_may_share_the_rows():
    assert jax.device_count() > 1
    assert UPDATE not in program(ROWS + 1)


def test_not_on_an_explicit_mesh(alone):
    """Where JAX refuses an update that does not say how it is split; here one device of it is all there is."""
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:1])
    logits = cotangents(ROWS + 2, CLASSES)
    labels = np.arange(ROWS + 2) % CLASSES

    def gradient(logits, labels):
        return jax.grad(lambda z: jnp.sum(jaxsoftmax.cross_entropy(z, labels)))(logits)

    expected = gradient(logits, labels)
    with jax.set_mesh(mesh):
        split = jax.device_put(logits, PartitionSpec("x", None)), jax.device_put(labels, PartitionSpec("x"))
        np.testing.assert_allclose(gradient(*split), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("first", [0, CLASSES - 1, -1, CLASSES, -100, 2**31 - 1])
def test_the_gradient_is_the_same(alone, first, dtype):
    """Whatever number the first label has that chooses the place."""
    gradient = jnp.asarray(cotangents(ROWS, CLASSES), dtype).at[0, 1].set(jnp.nan)
    labels = jnp.full((ROWS, 1), first, jnp.int32)
    for settled in (passes.one_by_one, jax.jit(passes.one_by_one)):
        np.testing.assert_array_equal(settled(gradient, labels).astype(np.float32), gradient.astype(np.float32))
    np.testing.assert_array_equal(passes.one_by_one(gradient[:0], labels[:0]), gradient[:0])


def test_transformations(alone):
    logits = cotangents(3, ROWS, CLASSES)
    labels = np.random.default_rng(1).integers(0, CLASSES, (3, ROWS))

    def loss(logits, labels):
        return jnp.sum(jaxsoftmax.cross_entropy(logits, labels))

    gradients = jax.vmap(jax.grad(loss))(logits, labels)
    products = jax.vmap(lambda x, y: jax.jvp(lambda x: jax.grad(loss)(x, y), (x,), (x,))[1])(logits, labels)
    twice = jax.vmap(jax.grad(lambda x, y: jnp.sum(x * jax.grad(loss)(x, y))))(logits, labels)
    p = jax.nn.softmax(logits)
    hot = jax.nn.one_hot(labels, CLASSES)
    curved = p * (logits - jnp.sum(p * logits, axis=-1, keepdims=True))
    np.testing.assert_allclose(gradients, p - hot, atol=1e-6)
    np.testing.assert_allclose(products, curved, atol=1e-6)
    np.testing.assert_allclose(twice, p - hot + curved, atol=1e-6)


def plain_smoothed(logits, labels):
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), 0.1)
    return optax.softmax_cross_entropy(logits, targets)


def divergence(logits, labels):
    return jaxsoftmax.kl_divergence(logits, 3.0 * jax.nn.one_hot(labels, logits.shape[-1]))


def plain_divergence(logits, labels):
    targets = 3.0 * jax.nn.one_hot(labels, logits.shape[-1])
    return optax.kl_divergence(jax.nn.log_softmax(logits), jax.nn.softmax(targets))


# By name: ours and the plain expression, each of logits and labels.
ON_SEQUENCES = {
    "cross_entropy": (jaxsoftmax.cross_entropy, optax.softmax_cross_entropy_with_integer_labels),
    "focal_loss": (jaxsoftmax.focal_loss, optax.softmax_cross_entropy_with_integer_labels),
    "ignore_label": (
        functools.partial(jaxsoftmax.cross_entropy, ignore_label=-100),
        optax.softmax_cross_entropy_with_integer_labels,
    ),
    "temperature": (
        functools.partial(jaxsoftmax.cross_entropy, temperature=0.7),
        lambda z, y: optax.softmax_cross_entropy_with_integer_labels(z / 0.7, y),
    ),
    "label_smoothing": (functools.partial(jaxsoftmax.cross_entropy, label_smoothing=0.1), plain_smoothed),
    "kl_divergence": (divergence, plain_divergence),
}


@pytest.mark.parametrize("shape", [(4, 64, 40), (4, 128, 1000)])
@pytest.mark.parametrize("name", ON_SEQUENCES)
def test_a_layer_on_sequences_takes_no_more_memory(name, shape):
    """Its kernel's gradient is a product with the transposed gradient by the logits, which is computed once for all."""
    *rows, classes = shape

    def temporary(loss):
        return layer(loss, rows, classes).memory_analysis().temp_size_in_bytes

    ours, plain = map(temporary, ON_SEQUENCES[name])
    assert ours <= plain + 64 * np.prod(rows)  # numbers per row


def test_a_gradient_that_is_computed_once_is_the_same():
    gradient = jnp.asarray(cotangents(2, ROWS, CLASSES)).at[0, 0, :3].set(jnp.array([jnp.nan, jnp.inf, -0.0]))
    for number in (0.0, 1.0, jnp.inf, -jnp.inf, jnp.nan):
        numbers = jnp.full((2, ROWS, 1), number)
        np.testing.assert_array_equal(jax.jit(passes.once)(gradient, numbers), gradient)
        np.testing.assert_array_equal(passes.once(gradient[0], numbers[0]), gradient[0])
