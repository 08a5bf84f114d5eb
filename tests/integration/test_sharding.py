"""Classes split over the devices of a mesh, in Auto and in Explicit mode: the numbers of a single device."""

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsoftmax

ROWS, CLASSES = 4, 16
Z = (3.0 * np.random.default_rng(0).standard_normal((ROWS, CLASSES))).astype(np.float32)
LABELS = np.array([0, 15, 7, 8], np.int32)

MESHES: dict[str, tuple[tuple[int, ...], tuple[str, ...], PartitionSpec]] = {
    "8": ((8,), ("classes",), PartitionSpec(None, "classes")),
    "2x4": ((2, 4), ("rows", "classes"), PartitionSpec("rows", "classes")),
}
MODES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}

FUNCTIONS: dict[str, Callable[[Any, Any], jax.Array]] = {
    "softmax": lambda z, y: jaxsoftmax.softmax(z),
    "log_softmax": lambda z, y: jaxsoftmax.log_softmax(z),
    "softmax_with_temperature": lambda z, y: jaxsoftmax.softmax(z, temperature=2.0),
    "cross_entropy": lambda z, y: jaxsoftmax.cross_entropy(z, y),
    "cross_entropy_with_temperature": lambda z, y: jaxsoftmax.cross_entropy(z, y, temperature=2.0),
    "focal_loss": lambda z, y: jaxsoftmax.focal_loss(z, y),
    "cross_entropy_smoothed": lambda z, y: jaxsoftmax.cross_entropy(
        z, y, label_smoothing=0.1, z_loss=0.01, logit_cap=20.0
    ),
}


def cotangent(function: Callable[[Any, Any], jax.Array]) -> np.ndarray:
    """Not uniform."""
    shape = jax.eval_shape(function, Z, LABELS).shape
    return np.cos(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)


def placed(mesh: str, mode: str, values: np.ndarray) -> tuple[jax.sharding.Mesh, jax.Array, jax.Array, jax.Array]:
    """The mesh, and logits, labels and the values, per row or per class, on it."""
    shape, names, spec = MESHES[mesh]
    built = jax.make_mesh(shape, names, axis_types=(MODES[mode],) * len(shape))
    by_class, by_row = NamedSharding(built, spec), NamedSharding(built, PartitionSpec(spec[0]))
    of_values = by_class if values.ndim == 2 else by_row
    return built, jax.device_put(Z, by_class), jax.device_put(LABELS, by_row), jax.device_put(values, of_values)


def value_and_gradient(function: Callable[[Any, Any], jax.Array], logits: Any, labels: Any, cotangent: Any) -> Any:
    """What is compared."""
    value, pullback = jax.vjp(lambda z: function(z, labels), logits)
    return value, pullback(cotangent)[0]


COMPILED = jax.jit(value_and_gradient, static_argnums=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_split_classes(name: str, mesh: str, mode: str) -> None:
    """Value and gradient are those of one device, and the gradient is split as the logits are."""
    function = FUNCTIONS[name]
    expected = COMPILED(function, Z, LABELS, cotangent(function))
    built, logits, *rest = placed(mesh, mode, cotangent(function))
    with jax.set_mesh(built):
        actual = COMPILED(function, logits, *rest)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-7)
    assert actual[1].sharding.is_equivalent_to(logits.sharding, 2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mesh", MESHES)
def test_logits_are_never_gathered(mesh: str, mode: str) -> None:
    """The compiled value and gradient of the cross entropy hold no all-gather: the devices exchange numbers per row."""
    function = FUNCTIONS["cross_entropy"]
    built, *arguments = placed(mesh, mode, cotangent(function))
    with jax.set_mesh(built):
        text = COMPILED.lower(function, *arguments).compile().as_text()
    assert re.search(r"\ball-reduce(-start)?\(", text)
    assert not re.search(r"\b(all-gather|all-to-all|collective-permute)(-start)?\(", text)


@pytest.mark.parametrize("mesh", MESHES)
def test_vmap_over_a_mesh_axis(mesh: str) -> None:
    """vmap with spmd_axis_name, rows on one axis of the mesh: the gradients of each row by itself."""
    built, *_ = placed(mesh, "auto", Z)
    axis = MESHES[mesh][1][0]
    rows = NamedSharding(built, PartitionSpec(axis))
    gradient = jax.grad(lambda z, y: jaxsoftmax.cross_entropy(z, y, label_smoothing=0.1))
    many = np.concatenate([Z, -Z]), np.concatenate([LABELS, LABELS])
    with jax.set_mesh(built):
        split = [jax.device_put(x, rows) for x in many]
        actual = jax.jit(jax.vmap(gradient, spmd_axis_name=axis))(*split)
    np.testing.assert_allclose(actual, jax.jit(jax.vmap(gradient))(*many), rtol=1e-6, atol=1e-7)
