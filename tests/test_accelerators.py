"""What is done differently on an accelerator, on a CPU that calls itself one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsoftmax
from jaxsoftmax._core import blocks
from tests import helpers

# A shape that no other test has: what is traced for a CPU would be used again.
ROWS, CLASSES = 11, 29


@pytest.fixture(autouse=True)
def accelerator(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def plain_entropy(x):
    return -jnp.sum(jax.nn.softmax(x) * jax.nn.log_softmax(x), axis=-1)


def plain_divergence(x, y):
    return jnp.sum(jax.nn.softmax(y) * (jax.nn.log_softmax(y) - jax.nn.log_softmax(x)), axis=-1)


def labels():
    return np.random.default_rng(3).integers(0, CLASSES, ROWS)


def with_labels(loss):
    return lambda x: loss(x, labels()[: len(x)])


# By name: ours, the plain expression, and of how many arrays of logits or probabilities.
OPERATIONS = {
    "softmax": (jaxsoftmax.softmax, jax.nn.softmax, 1),
    "log_softmax": (jaxsoftmax.log_softmax, jax.nn.log_softmax, 1),
    "logsumexp": (jaxsoftmax.logsumexp, functools.partial(jax.nn.logsumexp, axis=-1), 1),
    "entropy": (jaxsoftmax.entropy, plain_entropy, 1),
    "soft_cross_entropy": (jaxsoftmax.soft_cross_entropy, lambda x, y: -jnp.sum(y * jax.nn.log_softmax(x), -1), 2),
    "kl_divergence": (jaxsoftmax.kl_divergence, plain_divergence, 2),
    "cross_entropy": (
        with_labels(jaxsoftmax.cross_entropy),
        with_labels(optax.softmax_cross_entropy_with_integer_labels),
        1,
    ),
}


def assert_near(actual, exact):
    """To a ten-thousandth, or to the last digit of the largest number of its row, whose like may have cancelled."""
    assert actual.shape == exact.shape
    for row, exact_row in zip(np.asarray(actual), exact, strict=True):
        atol = 2e-5 + np.finfo(np.float32).eps * np.max(np.abs(exact_row))
        np.testing.assert_allclose(row, exact_row, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("name", OPERATIONS)
def test_derivatives(name, monkeypatch):
    """Values, gradients and Hessian products of plain expressions in float64; what is kept are new values."""
    ours, plain, count = OPERATIONS[name]
    args = [3.0 * helpers.cotangents(ROWS, CLASSES, seed=seed) for seed in range(count)]
    direction = [helpers.cotangents(ROWS, CLASSES, seed=7 + seed) for seed in range(count)]

    def everything(function, args, direction):
        def total(*args):
            return jnp.sum(jnp.square(function(*args)))

        gradient = jax.grad(total, tuple(range(count)))
        products = jax.vjp(lambda *args: gradient(*args), *args)[1](tuple(direction))
        return function(*args), gradient(*args), products

    got = jax.jit(functools.partial(everything, ours))(args, direction)
    with jax.enable_x64(True):
        wide = jax.tree.map(np.float64, (args, direction))
        exact = jax.tree.map(np.asarray, jax.jit(functools.partial(everything, plain))(*wide))
    jax.tree.map(assert_near, got, exact)

    def barriers(rows):
        program = jax.make_jaxpr(lambda *args: jax.vjp(ours, *args)[1])(*(x[:rows] for x in args))
        return str(program).count("optimization_barrier")

    here = barriers(ROWS)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    of_the_sum = 1 if name == "soft_cross_entropy" else 0  # which a CPU alone has
    assert here >= barriers(ROWS - 1) - of_the_sum + 2  # of the numbers per row that the backward pass is given


def test_hinge_loss():
    """Shared by the classes of the largest violation, and nothing of what the margin separates; NaN stays NaN."""
    logits = np.float32([[0, 1, 1, -3], [5, 1, 1, 0], [0, np.nan, 1, 2]])
    by_logits, by_margin = jax.grad(
        lambda z, margin: jnp.sum(jaxsoftmax.hinge_loss(z, jnp.zeros(3, int), margin=margin)), (0, 1)
    )(logits, 1.0)
    np.testing.assert_array_equal(by_logits, [[-1, 0.5, 0.5, 0], [0, 0, 0, 0], [np.nan] * 4])
    assert np.isnan(by_margin)


@pytest.mark.parametrize(
    ("platform", "width", "classes", "rows"),
    [
        ("cpu", 512, 32768, 320),
        ("cpu", 64, 8192, 256),  # with the kernel's gradient, 10 of 30 MiB; of 1 024 rows 34
        ("cpu", 65, 8192, 512),
        ("cpu", 64, 4096, 1024),  # 17 MiB
        ("cpu", 512, 8192, 1024),  # of 512 rows 32 MiB
        ("cpu", 256, 131072, 88),
        ("gpu", 2304, 256000, 2048),
        ("gpu", 4096, 128256, 2048),
        ("gpu", 256, 131072, 1024),  # 512 MiB
        ("tpu", 64, 8192, 8192),  # 256 MiB
        ("tpu", 768, 50304, 2048),
        ("gpu", 1, 10**9, 1),
    ],
)
def test_rows_of_a_block(platform, width, classes, rows):
    assert blocks.most_rows(platform, width, classes) == rows


def test_the_streamed_head():
    """Blocks of the size for an accelerator, each of which adds to the gradient of the kernel at once."""
    rng = np.random.default_rng(0)
    rows, width, classes = 4099, 3, 70_000  # 1917 rows make 512 MiB
    features, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((rows, width), (width, classes)))
    given = rng.integers(0, classes, rows)
    program = jax.make_jaxpr(jax.grad(jaxsoftmax.linear_cross_entropy, (0, 1)))(features, kernel, given)
    assert f"f32[1367,{classes}]" in str(program)  # three blocks
    assert "dynamic_update_slice" not in str(program)


def test_the_streamed_head_adds_up():
    rng = np.random.default_rng(0)
    features, kernel = rng.standard_normal((ROWS, 5), np.float32), rng.standard_normal((5, 5000), np.float32)
    given = rng.integers(0, 5000, ROWS)

    def plain(features, kernel):
        return optax.softmax_cross_entropy_with_integer_labels(features @ kernel, given).mean()

    got = jax.value_and_grad(jaxsoftmax.linear_cross_entropy, (0, 1))(features, kernel, given, block_size=3)
    exact = jax.value_and_grad(plain, (0, 1))(features, kernel)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), got, exact)
