"""Objectives that are compiled once, and what they read from globals, which may change between two calls."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsoftmax
from jaxsoftmax._core.closures import constants_of

SCALE = 1.0
STATE = {"scale": 1.0}
FEATURES = np.float32([[0.5, -1.0], [1.0, 0.25], [-0.5, 2.0]])
KERNEL = np.float32([[1.0, 0.0, 2.0, -1.0], [0.5, 1.0, -1.0, 0.0]])
LABELS = np.int32([0, 3, 1])


def by_number(statistics):
    return -SCALE * statistics.log_prob


def by_function(statistics):
    return helper(statistics)


def helper(statistics):
    return by_number(statistics)


def by_function_inside(statistics):
    return (lambda s: by_number(s))(statistics)


def by_state(statistics):
    return -STATE["scale"] * statistics.log_prob


def by_itself(statistics, depth=2):
    return by_itself(statistics, depth - 1) if depth else by_number(statistics)


def of_libraries(statistics):
    return optax.huber_loss(jnp.exp(np.pi * statistics.target)) + jax.nn.relu(statistics.log_odds)


def loss(objective, reduction="mean"):
    return jnp.sum(jaxsoftmax.linear_loss(objective, FEATURES, KERNEL, LABELS, reduction=reduction))


@pytest.mark.parametrize("objective", [by_number, by_function, by_function_inside, by_itself], ids=lambda f: f.__name__)
def test_numbers_of_the_module_are_seen_to_change(objective, monkeypatch):
    """At first hand, through other functions, inside of one and recursively; what comes back is remembered."""
    first = loss(objective)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    np.testing.assert_allclose(loss(objective), 3.0 * first, rtol=1e-6)
    monkeypatch.setitem(globals(), "SCALE", 1.0)
    assert loss(objective) == first


def test_functions_of_the_module_are_seen_to_change(monkeypatch):
    first = loss(by_function)
    monkeypatch.setitem(globals(), "helper", lambda statistics: -5.0 * statistics.log_prob)
    np.testing.assert_allclose(loss(by_function), 5.0 * first, rtol=1e-6)
    monkeypatch.setitem(globals(), "helper", lambda statistics: -7.0 * statistics.log_prob)
    np.testing.assert_allclose(loss(by_function), 7.0 * first, rtol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_what_is_traced_may_come_through_a_global(reduction):
    """It is differentiated, and nothing of the trace stays behind."""
    first = loss(by_state, reduction)

    def scaled(scale):
        STATE["scale"] = scale
        return loss(by_state, reduction)

    try:
        for _ in range(2):
            np.testing.assert_allclose(jax.grad(scaled)(3.0), first, rtol=1e-6)
    finally:
        STATE["scale"] = 1.0
    np.testing.assert_allclose(loss(by_state, reduction), first, rtol=1e-6)


def keys(objective):
    """Without the code of the functions."""
    return tuple(key for key in constants_of(objective) if isinstance(key, tuple))


def with_attribute(statistics):
    return -with_attribute.scale * statistics.log_prob


with_attribute.scale = 2.0


def with_import(statistics):
    from tests import helpers

    return len(helpers.SCALES) * statistics.log_prob


by_python = jnp.frompyfunc(lambda x, y: SCALE * x * y, 2, 1)


def by_made(statistics):
    return by_python(statistics.log_prob, 1.0)


def test_what_is_remembered():
    """Functions of libraries and of numbers alone are; what may hold state, or is made anew, is not."""
    assert keys(by_number) == (("SCALE", float, "1.0"),)
    for function in (jnp.add, jnp.where, jax.nn.relu, jnp.float32, np.exp, optax.huber_loss, jax.jit, abs):
        assert constants_of(function) == (), function
    assert constants_of(jaxsoftmax.objectives.focal) == ()
    assert keys(functools.partial(jaxsoftmax.objectives.focal, gamma=2.0)) == (("gamma", float, "2.0"),)
    assert keys(of_libraries) == (("jax", jax), ("jnp", jnp), ("np", np), ("optax", optax))
    for objective in (
        by_state,
        lambda statistics, *, state=STATE: state["scale"] * statistics.target,
        functools.partial(by_number, jnp.ones(())),
        jax.jit(by_number),
        with_attribute,
        with_import,
        by_made,
        functools.wraps(jnp.exp)(lambda statistics: by_state(statistics)),
    ):
        assert constants_of(objective) is None


def test_equal_constants_are_told_apart(monkeypatch):
    """1 and True make programs of other dtypes, and 0.0 is not -0.0."""
    found = []
    for value in (1, 1.0, True, 0.0, -0.0):
        monkeypatch.setitem(globals(), "SCALE", value)
        found.append(constants_of(by_number))
    assert len(set(found)) == 5
