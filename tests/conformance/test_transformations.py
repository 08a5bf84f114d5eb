"""Every operation under every transformation, outside and inside of `forward_mode()`, against the plain expression."""

import contextlib
import functools
from typing import Any

import jax
import numpy as np
import pytest

import jaxsoftmax
from tests.conformance import laws
from tests.conformance.operations import OPERATIONS


@functools.cache
def _expected(law: str, name: str) -> dict[str, Any]:
    return laws.expected(law, OPERATIONS[name])


@pytest.mark.parametrize("forward", [False, True], ids=["custom_vjp", "custom_jvp"])
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("law", laws.LAWS)
def test_law(law: str, name: str, forward: bool) -> None:
    """The operation's results equal those of the plain expression."""
    assert not laws.mistakes(law, OPERATIONS[name], forward, _expected(law, name))


@pytest.mark.parametrize("name", OPERATIONS)
def test_switching_around_a_jitted_function(name: str) -> None:
    """The switch is part of the cache key of jit, both ways; outside, JAX's own error refuses forward mode."""
    operation, over = OPERATIONS[name], range(len(OPERATIONS[name].args))
    f = jax.jit(laws.scalar(operation, operation.function))
    before, gradient = jax.jit(jax.value_and_grad(f, over))(*operation.args)
    with jaxsoftmax.forward_mode():
        after, slope = jax.jit(lambda *a: jax.jvp(f, a, operation.tangents()))(*operation.args)
    along = sum(np.vdot(g, t) for g, t in zip(gradient, operation.tangents(), strict=True))
    size = sum(np.vdot(np.abs(g), np.abs(t)) for g, t in zip(gradient, operation.tangents(), strict=True))
    np.testing.assert_allclose(after, before, rtol=1e-6)
    np.testing.assert_allclose(slope, along, rtol=0, atol=1e-6 * size)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(f, operation.args, operation.tangents())


@pytest.mark.parametrize("forward", [False, True], ids=["custom_vjp", "custom_jvp"])
@pytest.mark.parametrize("name", ["log_softmax", "cross_entropy", "kl_divergence", "sigmoid_focal_loss"])
def test_export(name: str, forward: bool) -> None:
    """Serialized with two orders of derivatives; one operation for each way in which rules are built."""
    operation = OPERATIONS[name]
    f = laws.scalar(operation, operation.function)
    with jaxsoftmax.forward_mode() if forward else contextlib.nullcontext():
        data = jax.export.export(jax.jit(f))(*operation.args).serialize(vjp_order=2)
    called = jax.export.deserialize(data).call
    np.testing.assert_allclose(jax.grad(called)(*operation.args), jax.grad(f)(*operation.args), rtol=1e-5, atol=1e-6)


def test_decorator_and_nesting() -> None:
    """forward_mode() as a decorator, inside of itself, and left by an exception."""
    logits = OPERATIONS["softmax"].args[0]

    @jaxsoftmax.forward_mode()
    def slope() -> jax.Array:
        with jaxsoftmax.forward_mode():
            pass
        return jax.jvp(jaxsoftmax.softmax, (logits,), (logits,))[1]

    np.testing.assert_array_equal(slope(), slope())
    with pytest.raises(KeyError), jaxsoftmax.forward_mode():
        raise KeyError
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(jaxsoftmax.softmax, (logits,), (logits,))
