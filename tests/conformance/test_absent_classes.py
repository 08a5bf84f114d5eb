"""Absent classes, and rows without any, change no second derivative of the others, in a scan or out of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoftmax
from tests.stepwise import stepwise

# Rows of two classes, to which an absent one is added, and a row of absent ones alone.
LOGITS = np.float32([[1.0, 0.0], [2.0, 2.0], [-3.0, 5.0]])
OTHERS = np.float32([[0.0, 0.4], [1.0, 0.0], [0.3, 0.1]])
SHARES = np.float32([[0.5, 0.5], [1.0, 0.0], [0.2, 1.6]])
TEMPERATURE = np.float32([0.7, 1.0, 3.0])
LABELS = np.array([0, 1, 0], np.int32)

# Each of one row of logits z and its temperature; some take another row of the same length too.
FUNCTIONS = {
    "softmax": lambda z, t, _: jnp.square(jaxsoftmax.softmax(z, temperature=t)),
    "log_softmax": lambda z, t, _: jnp.where(jnp.isneginf(z), 0, jaxsoftmax.log_softmax(z, temperature=t)) ** 2,
    "logsumexp": lambda z, t, _: jaxsoftmax.logsumexp(z, temperature=t),
    "smooth_max": lambda z, t, _: jaxsoftmax.smooth_max(z, temperature=t),
    "entropy": lambda z, t, _: jaxsoftmax.entropy(z, temperature=t, base=2),
    "soft_cross_entropy": lambda z, t, q: jaxsoftmax.soft_cross_entropy(z, jnp.maximum(q, 0), temperature=t) ** 2,
    "kl_divergence": lambda z, t, w: jaxsoftmax.kl_divergence(z, w, temperature=t),
    "cross_entropy": lambda z, t, _, y: jaxsoftmax.cross_entropy(z, y, temperature=t),
    "smoothed": lambda z, t, _, y: jaxsoftmax.cross_entropy(z, y, temperature=t, label_smoothing=0.1, z_loss=0.1),
    "focal_loss": lambda z, t, _, y: jaxsoftmax.focal_loss(z, y, gamma=0.5, temperature=t),
}


def second_derivatives(name, way, *args):
    return stepwise(lambda *a: _second_derivatives(name, way, *a))(*args)


def _second_derivatives(name, way, z, t, other, labels):
    """Of a function of the first derivatives, none of whose slopes is small: all blocks of the Hessian are in it."""
    function = FUNCTIONS[name]

    def total(z, t, other):
        rows = (z, t, other, labels) if function.__code__.co_argcount == 4 else (z, t, other)

        def step(carry, row):
            value = function(*row)
            return carry, jnp.sum(jnp.where(jnp.isfinite(value), value, 0))

        if way == "scan":
            return jnp.sum(jax.lax.scan(step, 0.0, rows)[1])
        return jnp.sum(jax.vmap(lambda *row: step(0.0, row)[1])(*rows))

    def slopes(*args):
        weights = [30.0 + 10.0 * jnp.arange(a.size, dtype=a.dtype).reshape(a.shape) for a in args]
        # An absent class has slope 0; a weight by its place in the row must not depend on how many there are.
        weights[0], weights[2] = (jnp.broadcast_to(jnp.arange(10.0, 10.0 + z.shape[1]), z.shape) for _ in range(2))
        gradients = jax.grad(total, (0, 1, 2))(*args)
        return sum(jnp.vdot(w, g) for w, g in zip(weights, gradients, strict=True))

    if way == "forward over reverse":
        tangents = (jnp.ones_like(z), jnp.ones_like(t), jnp.ones_like(other))
        return jax.jvp(jax.grad(total, (0, 1, 2)), (z, t, other), tangents)[1]
    return jax.grad(slopes, (0, 1, 2))(z, t, other)


@pytest.mark.parametrize("way", ["vmap", "scan", "forward over reverse"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_second_derivatives(name, way):
    others = SHARES if name == "soft_cross_entropy" else OTHERS
    absent = np.float32(0 if name == "soft_cross_entropy" else -np.inf)

    def extended(rows, value):
        return np.pad(np.pad(rows, ((0, 0), (0, 1)), constant_values=value), ((0, 1), (0, 0)), constant_values=value)

    plain = second_derivatives(name, "vmap" if way == "scan" else way, LOGITS, TEMPERATURE, others, LABELS)
    z, other = extended(LOGITS, -np.inf), extended(others, absent)
    t, labels = np.append(TEMPERATURE, np.float32(0.5)), np.append(LABELS, np.int32(0))
    by_z, by_t, by_other = second_derivatives(name, way, z, t, other, labels)
    scale = max(float(np.max(np.abs(x))) for x in plain)
    assert scale > 0.1
    for got, exact in (
        (by_z, extended(plain[0], 0)),
        (by_t, np.append(plain[1], 0)),
        (by_other, extended(plain[2], 0)),
    ):
        np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - {"log_softmax", "soft_cross_entropy", "kl_divergence"}))
def test_second_derivatives_at_temperature_zero(name):
    """0 by the temperature, and in a scan, where JAX takes plain derivatives, what they are outside of one.

    The others are infinite there.
    """
    zero = np.zeros_like(TEMPERATURE)
    outside, inside = (second_derivatives(name, way, LOGITS, zero, SHARES, LABELS) for way in ("vmap", "scan"))
    assert not np.any(outside[1])
    for got, exact in zip(inside, outside, strict=True):
        assert np.all(np.isfinite(exact))
        np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("classes", [1, 17])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_rows_without_any_class(name, classes):
    """Of one class, over which a compiler reduces nothing, and of several; beside rows that have classes."""
    rows = np.full((3, classes), -np.inf, np.float32)
    rows[1] = 2.0
    other = np.zeros_like(rows) if name == "soft_cross_entropy" else rows
    labels = np.zeros(3, np.int32)
    function = FUNCTIONS[name]

    def values(z, t, other):
        arguments = (z, t, other, labels) if function.__code__.co_argcount == 4 else (z, t, other)
        return jax.vmap(function)(*arguments)

    def total(*args):
        value = values(*args)
        return jnp.sum(jnp.where(jnp.isfinite(value), value, 0)), value

    (_, value), slopes = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(rows, np.ones(3, np.float32), other)
    assert not np.any(np.isnan(value))
    np.testing.assert_array_equal(value[0], value[2])
    expected = {"logsumexp": -np.inf, "smooth_max": -np.inf, "cross_entropy": np.inf, "focal_loss": np.inf}
    assert np.all(value[0] == (np.inf if name == "smoothed" else expected.get(name, 0)))
    for slope in slopes:
        assert not np.any(slope[::2])
        assert np.all(np.isfinite(slope[1]))
