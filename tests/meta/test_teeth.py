"""The suite bites: operations that are wrong on purpose, each beside the right one, before the generic laws."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsoftmax._core import rules
from tests.conformance import laws
from tests.conformance import test_residuals as residuals_law
from tests.conformance.operations import CLASSES, LABELS, LOGITS, ONE_HOT, ROWS, Operation
from tests.helpers import assert_contract, value_and_gradients

SMOOTHING = 0.1
WHERE = np.array([[True, True, False, True], [True, False, True, True], [False, True, True, True]])


# A softmax and a cross entropy in a few lines, with one fault each, or none.


def softmax(fault: str | None = None) -> Callable[[Any], jax.Array]:
    """Of the last axis."""

    def total(x: jax.Array) -> jax.Array:
        if fault == "bfloat16 accumulator":
            return jnp.sum(x.astype(jnp.bfloat16), -1, keepdims=True, dtype=jnp.bfloat16).astype(jnp.float32)
        return jnp.sum(x, -1, keepdims=True)

    def forward(_: None, z: Any) -> Any:
        wide = z.astype(jnp.float32)
        shift = jnp.max(lax.stop_gradient(wide), -1, keepdims=True)
        terms = jnp.exp(wide - shift)
        p = terms / total(terms)
        return p.astype(z.dtype), (z, p if fault == "kept probabilities" else total(terms))

    def probabilities(residuals: Any) -> jax.Array:
        z, kept = residuals
        if fault == "kept probabilities":
            return kept
        wide = z.astype(jnp.float32)
        return jnp.exp(wide - jnp.max(lax.stop_gradient(wide), -1, keepdims=True)) / kept

    def jacobian(residuals: Any, vector: jax.Array, uncentred: bool) -> jax.Array:
        p = probabilities(residuals)
        if fault == "constant to the second derivative":
            p = lax.stop_gradient(p)
        mean = total(p * vector)
        if fault == "mean for sum":
            mean = mean / vector.shape[-1]
        return (p * (vector - (0.0 if uncentred else mean))).astype(residuals[0].dtype)

    def backward(_: None, residuals: Any, cotangent: jax.Array) -> Any:
        sign = -1.0 if fault == "wrong sign" else 1.0
        return (sign * jacobian(residuals, cotangent.astype(jnp.float32), fault == "no centre in the backward"),)

    def tangent(_: None, residuals: Any, tangents: Any) -> jax.Array:
        return jacobian(residuals, tangents[0].astype(jnp.float32), fault == "no centre in the tangent")

    return functools.partial(rules.operation(forward, backward, tangent), None)


def cross_entropy(fault: str | None = None, where: Any = None, smoothing: float = 0.0) -> Callable[..., jax.Array]:
    """With labels, from the log-sum-exp of the other classes; with a mask, and with smoothing, if they are given."""

    def parts(z: jax.Array, labels: jax.Array, mask: Any) -> Any:
        pad = [(0, 0), (0, -z.shape[-1] % 8)]
        padded = jnp.pad(z if mask is None else jnp.where(mask, z, -jnp.inf), pad, constant_values=-jnp.inf)
        if fault == "unmasked pad":
            padded = jnp.pad(z, pad)
        wrapped = labels % z.shape[-1] if fault == "wrapped label" else labels
        label = wrapped[:, None] == jnp.arange(padded.shape[-1], dtype=jnp.int32)[None]
        rest = jax.nn.logsumexp(jnp.where(label, -jnp.inf, padded), axis=-1, keepdims=True)
        target = jnp.sum(jnp.where(label, padded, 0.0), -1, keepdims=True)
        inside = (wrapped >= 0) & (wrapped < z.shape[-1])
        return padded, label, rest, jnp.where(inside[:, None], target, jnp.nan)

    def forward(_: None, z: Any, labels: Any, mask: Any) -> Any:
        _, _, rest, target = parts(z, labels, mask)
        classes = z.shape[-1] - (fault == "wrong number of classes")
        loss = jax.nn.softplus(rest - target)
        if smoothing:
            mean = jnp.sum(z, -1, keepdims=True) / classes
            loss = (1.0 - smoothing) * loss + smoothing * (jnp.logaddexp(rest, target) - mean)
        return loss[:, 0], (z, labels, mask)

    def slopes(residuals: Any) -> jax.Array:
        z, labels, mask = residuals
        padded, label, rest, target = parts(z, labels, None if fault == "where forgotten" else mask)
        wrong = jax.nn.sigmoid(rest - target)
        gradient = jnp.where(label, -wrong, wrong * jnp.exp(padded - rest))[:, : z.shape[-1]]
        if smoothing:
            classes = z.shape[-1] - (fault == "wrong number of classes")
            label = label[:, : z.shape[-1]]
            gradient = gradient + smoothing * (label.astype(z.dtype) - 1.0 / classes)
        return gradient

    def backward(_: None, residuals: Any, cotangent: jax.Array) -> Any:
        return cotangent[:, None] * slopes(residuals), None, None

    def tangent(_: None, residuals: Any, tangents: Any) -> jax.Array:
        return jnp.sum(slopes(residuals) * tangents[0], -1)

    call = rules.operation(forward, backward, tangent)
    return lambda z, labels=LABELS: call(None, z, jnp.asarray(labels), None if where is None else jnp.asarray(where))


def plain_cross_entropy(z: Any) -> jax.Array:
    return -jnp.sum(ONE_HOT * jax.nn.log_softmax(z), -1)


def plain_masked(z: Any) -> jax.Array:
    masked = jnp.where(WHERE, z, -jnp.inf)
    return jax.nn.logsumexp(masked, axis=-1) - jnp.sum(jnp.where(ONE_HOT == 1, z, 0.0), -1)


def plain_smoothed(z: Any) -> jax.Array:
    q = (1.0 - SMOOTHING) * ONE_HOT + SMOOTHING / CLASSES
    return -jnp.sum(q * jax.nn.log_softmax(z), -1)


WHERE[np.arange(ROWS), LABELS] = True
PLAIN: dict[str, tuple[Callable[[str | None], Any], Callable[..., jax.Array]]] = {
    "softmax": (softmax, jax.nn.softmax),
    "cross entropy": (cross_entropy, plain_cross_entropy),
    "masked": (functools.partial(cross_entropy, where=WHERE), plain_masked),
    "smoothed": (functools.partial(cross_entropy, smoothing=SMOOTHING), plain_smoothed),
}

# The operation, its fault, the law that must see it, and whether in forward mode.
FAULTS = [
    ("softmax", "wrong sign", "first_order", False),
    ("softmax", "mean for sum", "first_order", False),
    ("softmax", "bfloat16 accumulator", "first_order", False),
    ("softmax", "no centre in the backward", "first_order", False),
    ("softmax", "no centre in the tangent", "first_order", True),
    ("softmax", "constant to the second derivative", "higher_order", False),
    ("cross entropy", "unmasked pad", "first_order", False),
    ("masked", "where forgotten", "first_order", False),
    ("smoothed", "wrong number of classes", "first_order", False),
]


@functools.cache
def passes(name: str, fault: str | None, law: str, forward: bool) -> bool:
    """What `test_law` asserts, of an operation with this fault."""
    make, plain = PLAIN[name]
    return stands(Operation(make(fault), plain, (LOGITS,)), law, forward)


def stands(operation: Operation, law: str = "first_order", forward: bool = False) -> bool:
    """What `test_law` asserts."""
    with rules.forward_mode() if forward else contextlib.nullcontext():
        actual = laws.evaluate(law, operation, operation.function, forward)
    expected = laws.expected(law, operation)
    return all(laws.differences(actual[key], expected[key]) <= laws.TOLERANCES[law] for key in actual)


@pytest.mark.parametrize(("name", "fault", "law", "forward"), FAULTS, ids=lambda v: str(v).replace(" ", "_"))
def test_laws_reject_the_fault_alone(name: str, fault: str, law: str, forward: bool) -> None:
    """The law passes the operation without the fault, and not with it."""
    assert passes(name, None, law, forward)
    assert not passes(name, fault, law, forward)


def test_first_order_does_not_see_second_derivatives() -> None:
    """The fault of the second derivative is seen by the second order alone: the tests above are no accident."""
    assert passes("softmax", "constant to the second derivative", "first_order", False)


def test_laws_reject_a_nan_in_a_later_gradient() -> None:
    """A NaN counts wherever it stands among the results."""

    def product(broken: bool) -> Callable[..., jax.Array]:
        def backward(residuals: Any, g: jax.Array) -> Any:
            a, b = residuals
            return g * b, jnp.full_like(a, jnp.nan) if broken else g * a

        operation = jax.custom_vjp(lambda a, b: a * b)
        operation.defvjp(lambda a, b: (a * b, (a, b)), backward)
        return operation

    assert stands(Operation(product(False), lambda a, b: a * b, (LOGITS, LOGITS)))
    assert not stands(Operation(product(True), lambda a, b: a * b, (LOGITS, LOGITS)))


def test_laws_reject_a_result_of_another_shape() -> None:
    """Shapes are compared, not broadcast."""
    row = np.ones((ROWS, 1), np.float32)
    assert laws.differences({"a": row}, {"a": row}) == 0.0
    with pytest.raises((AssertionError, ValueError)):
        assert laws.differences({"a": row}, {"a": row[:, 0]}) <= 1.0


# The numerics contract.


def exact_softmax(z: np.ndarray, cotangent: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, gradient and the magnitude of the terms of the gradient, in float64."""
    wide, g = z.astype(np.float64), cotangent.astype(np.float64)
    p = np.exp(wide - wide.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    gradient = p * (g - (p * g).sum(-1, keepdims=True))
    return p, gradient, p * (np.abs(g) + (p * np.abs(g)).sum(-1, keepdims=True))


@pytest.mark.parametrize("fault", ["wrong sign", "mean for sum", "bfloat16 accumulator"])
def test_contract_rejects_the_fault_alone(fault: str) -> None:
    """The numerics contract holds for the right softmax, and not for one with the fault."""
    z = np.random.default_rng(0).standard_normal((4, 24)).astype(np.float32)
    cotangent = np.cos(np.arange(96, dtype=np.float32)).reshape(4, 24)
    p, gradient, magnitude = exact_softmax(z, cotangent)

    def judge(function: Callable[..., Any]) -> None:
        value, by_logits = value_and_gradients(function, cotangent, (z,))
        assert_contract(value, p, np.float32)
        assert_contract(by_logits, gradient, np.float32, magnitude)

    judge(softmax())
    with pytest.raises(AssertionError, match="entries are off"):
        judge(softmax(fault))


def judge_losses(function: Callable[..., Any], z: np.ndarray, labels: np.ndarray, loss: Any, gradient: Any) -> None:
    """Value and gradient against exact ones, relative to terms of the size of the logits."""
    size = max(1.0, float(np.nanmax(np.abs(z))))
    value, by_logits = value_and_gradients(function, np.ones(len(z), np.float32), (z,), (labels,))
    assert_contract(value, loss, np.float32, np.full(len(z), size))
    assert_contract(by_logits, gradient, np.float32, np.full(z.shape, size))


def exact_losses(z: np.ndarray, labels: np.ndarray, where: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Cross entropy and gradient in float64; NaN for a label out of range."""
    wide = np.where(True if where is None else where, z, -np.inf).astype(np.float64)
    p = np.exp(wide - wide.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    rows, inside = np.arange(len(z)), (labels >= 0) & (labels < z.shape[1])
    safe = np.where(inside, labels, 0)
    loss, gradient = -np.log(p[rows, safe]), p.copy()
    gradient[rows, safe] -= 1.0
    return np.where(inside, loss, np.nan), np.where(inside[:, None], gradient, np.nan)


def test_contract_rejects_a_masked_nan_that_leaks() -> None:
    """A backward rule that forgets `where` leaks the NaN under it."""
    z = np.where(WHERE, LOGITS, np.nan).astype(np.float32)
    exact = exact_losses(z, LABELS, WHERE)
    judge_losses(cross_entropy(where=WHERE), z, LABELS, *exact)
    with pytest.raises(AssertionError, match="entries are off"):
        judge_losses(cross_entropy("where forgotten", where=WHERE), z, LABELS, *exact)


def test_contract_rejects_a_masked_class_that_learns() -> None:
    """A backward rule that forgets `where` gives absent classes a gradient."""
    exact = exact_losses(LOGITS, LABELS, WHERE)
    judge_losses(cross_entropy(where=WHERE), LOGITS, LABELS, *exact)
    with pytest.raises(AssertionError, match="entries are off"):
        judge_losses(cross_entropy("where forgotten", where=WHERE), LOGITS, LABELS, *exact)


@pytest.mark.parametrize("label", [-1, -100, CLASSES])
def test_contract_rejects_a_wrapped_label(label: int) -> None:
    """A label out of range must make its row NaN, not train another class."""
    labels = np.array([0, label, 1], np.int32)
    exact = exact_losses(LOGITS, labels)
    judge_losses(cross_entropy(), LOGITS, labels, *exact)
    with pytest.raises(AssertionError, match="entries are off"):
        judge_losses(cross_entropy("wrapped label"), LOGITS, labels, *exact)


def test_contract_rejects_an_unmasked_pad_at_a_mild_scale_only() -> None:
    """Padding with zeros shows where the logits are mild; one test at a large scale would hide it."""
    exact = exact_losses(LOGITS, LABELS)
    with pytest.raises(AssertionError, match="entries are off"):
        judge_losses(cross_entropy("unmasked pad"), LOGITS, LABELS, *exact)
    high = (LOGITS + np.float32(60.0)).astype(np.float32)
    judge_losses(cross_entropy("unmasked pad"), high, LABELS, *exact_losses(high, LABELS))


@pytest.mark.parametrize(
    ("actual", "exact"),
    [
        (np.float32([1.0, 2.0]), [1.0, 2.00001]),
        (np.float32([1.0, np.nan]), [1.0, 0.0]),
        (np.float32([1.0, 0.0]), [1.0, np.nan]),
        (np.float32([1.0, np.inf]), [1.0, -np.inf]),
        (np.float32([1.0, 0.0]), [1.0, 1e-30]),
        (np.float32([1.0]), [1.0, 1.0]),
        (np.float64([1.0, 2.0]), [1.0, 2.0]),
    ],
    ids=["value", "NaN", "no NaN", "sign of inf", "flushed", "shape", "dtype"],
)
def test_contract_rejects(actual: np.ndarray, exact: list[float]) -> None:
    """One entry off, a misplaced NaN or infinity, a lost tail, another shape or dtype."""
    assert_contract(np.float32(exact), exact, np.float32)
    with pytest.raises(AssertionError):
        assert_contract(actual, exact, np.float32)


def test_residuals_reject_kept_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backward rule that keeps the probabilities keeps a second array of the size of the logits."""
    monkeypatch.setitem(residuals_law.KEPT, "right", (softmax(), 1))
    monkeypatch.setitem(residuals_law.KEPT, "broken", (softmax("kept probabilities"), 1))
    law = residuals_law.test_reverse_mode_keeps_the_arguments_and_numbers_per_row
    law("right")
    with pytest.raises(AssertionError):
        law("broken")
