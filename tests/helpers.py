"""Planted data, and the one assertion that says what the numerics promise."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoftmax
from benchmarks import programs

SCALES = (0.1, 1.0, 5.0, 30.0)
GAPS = (17.0, 40.0, 80.0)
OFFSETS = (1e4, 1e6, -1e6)


class Planted(NamedTuple):
    """Logits [N, V] and one label per row."""

    logits: np.ndarray
    labels: np.ndarray


def planted(
    classes: int, dtype: Any = np.float32, *, absent: bool = True, offsets: Sequence[float] = OFFSETS, seed: int = 0
) -> Planted:
    """Rows at every scale, confident and right, confident and wrong, tied, with absent classes, far from 0.

    No labelled class is absent. Logits are rounded to `dtype`: the exact results are those of the rounded numbers.
    """
    rng = np.random.default_rng([seed, classes])
    rows: list[np.ndarray] = []
    labels: list[int] = []

    def add(row: np.ndarray, label: int) -> None:
        rows.append(row)
        labels.append(label % classes)

    def noise(scale: float = 1.0) -> np.ndarray:
        return scale * rng.standard_normal(classes)

    for scale in SCALES:
        for _ in range(2):
            add(noise(scale), int(rng.integers(classes)))
    for gap in GAPS:
        for wrong in (0, 1):
            row, top = noise(), int(rng.integers(classes))
            row[top] = np.delete(row, top).max(initial=-3.0) + gap
            add(row, top + wrong)
    two = noise(5.0)
    two[[0, -1]] = two.max() + 1.0
    add(two, 0)
    add(np.full(classes, 2.5), classes - 1)
    if absent:
        one = noise()
        one[0] = -np.inf if classes > 1 else one[0]
        add(one, classes - 1)
        most = np.full(classes, -np.inf)
        most[[0, classes // 2]] = (0.5, 0.25)
        add(most, classes // 2)
    for offset in offsets:
        add(offset + noise(3.0), int(rng.integers(classes)))
    return Planted(np.stack(rows).astype(dtype), np.array(labels, np.int32))


def cotangents(*shape: int, dtype: Any = np.float32, seed: int = 1) -> np.ndarray:
    """Of both signs, between 0.5 and 2 in magnitude, with a 0 here and there."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.5, 2.0, shape) * rng.choice([-1.0, 1.0, 1.0], shape)
    return np.where(rng.uniform(size=shape) < 0.05, 0.0, values).astype(dtype)


@contextlib.contextmanager
def constants(module: Any, **values: int) -> Iterator[None]:
    """Constants of a module with other values. What was traced with others is forgotten, before and after."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(module, name, value)
        jax.clear_caches()
        yield
    jax.clear_caches()


def masks(rows: int, classes: int, labels: np.ndarray | None = None, seed: int = 2) -> np.ndarray:
    """True for about two classes in three, and for the labels."""
    mask = np.random.default_rng(seed).uniform(size=(rows, classes)) < 0.67
    if labels is not None:
        mask[np.arange(rows), labels] = True
    return mask


def compiled(function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """f(cotangent, arguments, constants=()): the value of function(*arguments, *constants), and the gradients.

    Value and gradients are one program, compiled once for all calls of the same shapes.
    """

    @jax.jit
    def run(cotangent: Any, arguments: Any, constants: Any) -> Any:
        value, pullback = jax.vjp(lambda *a: function(*a, *constants), *arguments)
        return value, *pullback(cotangent)

    def call(cotangent: Any, arguments: Sequence[Any], constants: Sequence[Any] = ()) -> tuple[Any, ...]:
        return jax.tree.map(np.asarray, run(cotangent, tuple(arguments), tuple(constants)))

    return call


def value_and_gradients(
    function: Callable[..., Any], cotangent: Any, arguments: Sequence[Any], constants: Sequence[Any] = ()
) -> tuple[Any, ...]:
    """The same for a single call."""
    return compiled(function)(cotangent, arguments, constants)


def hessian_products(function: Callable[[Any], jax.Array], point: Any, direction: Any) -> list[jax.Array]:
    """Hessian times direction: forward over reverse, reverse over reverse, then both inside of forward_mode."""

    def both() -> list[jax.Array]:
        gradient = jax.grad(function)
        forward = jax.jvp(gradient, (point,), (direction,))[1]
        return [forward, jax.grad(lambda x: jnp.vdot(gradient(x), direction))(point)]

    outside = both()
    with jaxsoftmax.forward_mode():
        return outside + both()


def call(function: Callable[..., Any], options: dict[str, Any], *, jit: bool) -> Any:
    """The function of its arguments by name; under jit with every array traced."""
    if not jit:
        return function(**options)
    traced = {k: v for k, v in options.items() if isinstance(v, np.ndarray | np.generic)}
    fixed = {k: v for k, v in options.items() if k not in traced}
    return jax.jit(lambda some: function(**some, **fixed))(traced)


def assert_refused(
    function: Callable[..., Any], name: str, options: dict[str, Any], kind: type[Exception], rule: str
) -> None:
    """An error in the name of the function, eagerly and under jit alike."""
    with pytest.raises(kind) as eager:
        call(function, options, jit=False)
    assert str(eager.value).startswith(f"jaxsoftmax.{name}: ")
    assert rule in str(eager.value)
    with pytest.raises(kind) as traced:
        call(function, options, jit=True)
    assert str(traced.value) == str(eager.value)


def assert_contract(
    actual: Any, exact: Any, dtype: Any, magnitude: Any = None, *, gain: float = 1.0, name: str = ""
) -> None:
    """The numerics contract: |error| <= 4 eps (1 + |log |exact||) |exact|, rounded to `dtype` once.

    eps is that of float32 or wider: a half-precision result may err by what float32 may err by, then be rounded, and
    no more. Where terms of mixed sign cancel, the bound is relative to `magnitude`, the sum of their magnitudes. Below
    the smallest normal number, where hardware may flush to 0, only the absolute error counts; `gain` is the factor, if
    it is large, by which such a number is multiplied on the way to the result. Infinities and NaN must be where they
    are in `exact`.
    """
    actual, exact = np.asarray(actual), np.asarray(exact, np.float64)
    assert actual.dtype == dtype, f"{name} dtype {actual.dtype}, not {jnp.dtype(dtype)}"
    assert actual.shape == exact.shape, f"{name} shape {actual.shape}, not {exact.shape}"
    info = jnp.finfo(np.float64 if dtype == np.float64 else np.float32)

    finite = np.isfinite(exact)
    size = np.where(finite, np.abs(exact), 0.0)
    logs = _log(size)
    if magnitude is not None:
        size = np.maximum(size, np.where(finite, magnitude, 0.0))
        logs = np.maximum(logs, _log(size))
    tolerance = 4 * float(info.eps) * (1 + logs) * size + 8 * gain * float(info.tiny)
    with np.errstate(over="ignore", invalid="ignore"):
        low = (exact - tolerance).astype(dtype).astype(np.float64)
        high = (exact + tolerance).astype(dtype).astype(np.float64)
        got = actual.astype(np.float64)
    right = ((low <= got) & (got <= high)) | (np.isnan(got) & np.isnan(exact))
    if np.all(right):
        return
    wrong = np.argwhere(~right)
    lines = [
        f"  {tuple(map(int, i))}: {got[*i]!r}, exact {exact[*i]!r}, "
        f"error / tolerance {abs(got[*i] - exact[*i]) / tolerance[*i]:.3g}"
        for i in wrong[:8]
    ]
    raise AssertionError("\n".join([f"{name} {len(wrong)} of {exact.size} entries are off:", *lines]))


def _log(size: np.ndarray) -> np.ndarray:
    """|log size|, and 0 for 0."""
    return np.abs(np.log(np.where(size > 0, size, 1.0)))


def assert_same(actual: Any, expected: Any) -> None:
    """To float32 rounding, relative to the largest number of each array."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.all(np.isfinite(e))
        np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-6 * float(np.max(np.abs(e))))


def with_gradients(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    """The gradients by all floating arguments of a sum of the result with different weights, and the result."""

    def call(*args: Any) -> Any:
        places = tuple(i for i, x in enumerate(args) if jnp.issubdtype(x.dtype, jnp.floating))

        def total(*args: Any) -> Any:
            out = function(*args)
            return jnp.sum(out * jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)), out

        return jax.grad(total, places, has_aux=True)(*args)

    return call


def message_bytes(text: str) -> dict[str, int]:
    """The bytes of each kind of collective in a compiled program for eight devices."""
    found: dict[str, int] = {}
    for one in programs.collectives(text, 8):
        found[one.kind] = found.get(one.kind, 0) + one.bytes * one.count
    return found
