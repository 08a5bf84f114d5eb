"""The streamed head on global arrays over a mesh: the numbers of one device, and what the devices exchange and hold."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsoftmax
from jaxsoftmax import objectives
from tests.helpers import SCALES, assert_same, message_bytes
from tests.stepwise import stepwise

N, V, D = 48, 64, 8
PADDED = 61  # classes, where the last columns of the kernel are padding
IGNORED = 5
MODES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
SHAPES = ((1, 8), (2, 4), (8, 1))

_rng = np.random.default_rng(5)
FEATURES, KERNEL = (_rng.standard_normal(shape).astype(np.float32) for shape in ((N, D), (D, V)))
BIAS = _rng.standard_normal(V).astype(np.float32)
WEIGHTS = np.where(np.arange(N) % 7 == 3, 0.0, _rng.uniform(0.5, 2.0, N)).astype(np.float32)
# On every device, on the first and the last class of each, and ignored.
LABELS = np.concatenate([np.arange(8) * 8, np.arange(8) * 8 + 7, _rng.integers(0, V, N - 16)]).astype(np.int32)
LABELS = np.where(np.arange(N) % 6 == 1, IGNORED, np.minimum(LABELS, PADDED - 1)).astype(np.int32)

OBJECTIVES: dict[str, Callable[..., jax.Array]] = {
    "cross_entropy": functools.partial(objectives.cross_entropy, label_smoothing=0.1, z_loss=0.01),
    "focal": objectives.focal,
    "poly": objectives.poly,
    "z_loss": objectives.z_loss,
    "additive_margin": functools.partial(objectives.additive_margin, scale=2.0),
    "angular_margin": lambda s: objectives.angular_margin(s, scale=2.0) * 0.1,
    "own": lambda s: -s.log_prob + 0.1 * s.error_prob,
}


def everything(statistics: Any) -> jax.Array:
    """All objectives that logits of any size allow, each with a share of its own."""
    names = [name for name in OBJECTIVES if name != "angular_margin"]
    return sum((0.5 + 0.25 * i) * OBJECTIVES[name](statistics) for i, name in enumerate(names))


def mesh_of(shape: tuple[int, int], mode: str = "auto") -> jax.sharding.Mesh:
    return jax.make_mesh(shape, ("data", "model"), axis_types=(MODES[mode],) * 2)


SPECS = (PartitionSpec("data"), PartitionSpec(None, "model"), PartitionSpec("model"), PartitionSpec("data"))


def placed(mesh: jax.sharding.Mesh, *arrays: np.ndarray) -> list[jax.Array]:
    """Features, kernel, bias and weights on the mesh."""
    return [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, SPECS, strict=True)]


def on_mesh(objective: Any, mesh: jax.sharding.Mesh, **options: Any) -> Callable[..., Any]:
    """Value and gradients of the sharded loss; options may name a place where rows are split for labels."""
    loss = jaxsoftmax.sharded_linear_loss(objective, mesh)
    return jax.jit(jax.value_and_grad(lambda h, w, b, r, y: loss(h, w, y, bias=b, weights=r, **options), (0, 1, 2, 3)))


def on_one(objective: Any, run: Callable[..., Any] = stepwise, **options: Any) -> Callable[..., Any]:
    """The same of the plain one, step by step unless it is to be compiled."""

    def loss(h: Any, w: Any, b: Any, r: Any, y: Any) -> jax.Array:
        return jaxsoftmax.linear_loss(objective, h, w, y, bias=b, weights=r, **options)

    return run(jax.value_and_grad(loss, (0, 1, 2, 3)))


@pytest.mark.parametrize("num_classes", [None, PADDED])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_device(shape: tuple[int, int], num_classes: int | None) -> None:
    """Value and all gradients at four logit scales, with and without padding columns, ignored rows and weights of 0."""
    options = {"num_classes": num_classes, "ignore_label": IGNORED, "block_size": 5}
    kernel = KERNEL.copy()
    if num_classes is not None:
        kernel[:, num_classes:] = np.nan  # whatever padding holds
    one, many = on_one(everything, **options), on_mesh(everything, mesh_of(shape), **options)
    for scale in SCALES:
        features = FEATURES * np.float32(scale)
        expected = one(features, kernel, BIAS, WEIGHTS, LABELS)
        assert_same(many(features, kernel, BIAS, WEIGHTS, LABELS), expected)
        if num_classes is not None:
            assert not np.any(expected[1][1][:, num_classes:])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives(name: str) -> None:
    """Each by itself."""
    features = FEATURES / np.float32(20.0) if name == "angular_margin" else FEATURES
    bias = BIAS / np.float32(20.0) if name == "angular_margin" else BIAS
    expected = on_one(OBJECTIVES[name])(features, KERNEL, bias, WEIGHTS, LABELS)
    assert_same(on_mesh(OBJECTIVES[name], mesh_of((2, 4)))(features, KERNEL, bias, WEIGHTS, LABELS), expected)


def test_half_precision() -> None:
    """bfloat16 over the mesh errs no more against float64 than on one device, but for the rounding of partial sums."""
    arguments = [jnp.asarray(x, jnp.bfloat16) for x in (FEATURES, KERNEL)]
    wide = [np.asarray(x, np.float32) for x in arguments]
    exact = on_one(everything)(*wide, BIAS, WEIGHTS, LABELS)
    one = on_one(everything, jax.jit)(*arguments, BIAS, WEIGHTS, LABELS)
    many = on_mesh(everything, mesh_of((2, 4)))(*arguments, BIAS, WEIGHTS, LABELS)
    assert [x.dtype for x in many[1]] == [x.dtype for x in one[1]]
    for e, o, m in zip(*(jax.tree.leaves(x) for x in (exact, one, many)), strict=True):
        e, o, m = (np.asarray(x, np.float64) for x in (e, o, m))
        size = np.max(np.abs(e))
        assert np.max(np.abs(m - e)) <= np.max(np.abs(o - e)) + 1e-3 * size


@pytest.mark.parametrize("forward", [False, True])
def test_half_precision_is_rounded_once(forward: bool) -> None:
    """A gradient that devices share is summed over them in float32: large parts of either sign leave the small sum."""
    features, bias = jnp.asarray(FEATURES, jnp.bfloat16), jnp.asarray(BIAS, jnp.bfloat16)
    signs = np.where(np.arange(N) // 6 % 2, -1.0, 1.02).astype(np.float32)  # six rows on a device, of one sign
    of_sign = np.tile(FEATURES[:6], (8, 1))
    features, labels = jnp.asarray(of_sign, jnp.bfloat16), np.tile(LABELS[:6], 8)
    kernel = jnp.asarray(KERNEL, jnp.bfloat16)
    wide = [np.asarray(x, np.float32) for x in (features, kernel, bias)]
    exact = on_one(objectives.cross_entropy)(*wide, signs, labels)[1][2]
    with jaxsoftmax.forward_mode() if forward else contextlib.nullcontext():
        actual = on_mesh(objectives.cross_entropy, mesh_of((8, 1)))(features, kernel, bias, signs, labels)[1][2]
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(actual, np.float32), exact, rtol=2**-8, atol=1e-6 * float(np.max(np.abs(exact)))
    )


@pytest.mark.parametrize("mode", MODES)
def test_statistics(mode: str) -> None:
    """Of every row, in the shape of the batch, split as the rows are, where rows come in several axes."""
    mesh = mesh_of((2, 4), mode)
    features, labels = FEATURES.reshape(6, 8, D), LABELS.reshape(6, 8)
    statistics = jaxsoftmax.sharded_linear_statistics(mesh)
    expected = stepwise(functools.partial(jaxsoftmax.linear_statistics, temperature=0.5))(features, KERNEL, labels)
    by_row, kernel = NamedSharding(mesh, SPECS[0]), jax.device_put(KERNEL, NamedSharding(mesh, SPECS[1]))
    arguments = jax.device_put(features, by_row), kernel, jax.device_put(labels, by_row)
    actual = jax.jit(functools.partial(statistics, temperature=0.5))(*arguments)
    assert_same(actual, expected)
    assert actual.target.sharding.spec[0] == "data"


@pytest.mark.parametrize("mode", MODES)
def test_arrays_that_are_split(mode: str) -> None:
    """In both modes of a mesh, gradients come split as the arguments are, and weights that sum to 0 give 0."""
    mesh = mesh_of((2, 4), mode)
    expected = on_one(everything)(FEATURES, KERNEL, BIAS, WEIGHTS, LABELS)
    arguments = placed(mesh, FEATURES, KERNEL, BIAS, WEIGHTS)
    labels = jax.device_put(LABELS, NamedSharding(mesh, SPECS[0]))
    function = on_mesh(everything, mesh)
    value, gradients = function(*arguments, labels)
    assert_same((value, gradients), expected)
    for gradient, argument in zip(gradients, arguments, strict=True):
        assert gradient.sharding.is_equivalent_to(argument.sharding, gradient.ndim)
    zero = jax.tree.leaves(function(*arguments[:3], 0.0 * arguments[3], labels))
    assert not any(np.any(x) for x in zero[:4])


def cost(rows: int, classes: int, devices: tuple[int, int]) -> int:
    """Bytes of the messages of value and gradient on a device, without options, in float32."""
    own_rows, own_classes = rows // devices[0], classes // devices[1]
    numbers = 4 * own_rows * 3  # the maximum, target and rest
    mean = 4 * 2  # the sum of the losses and that of the weights
    return numbers + mean + 4 * own_rows * D + 4 * D * own_classes


@pytest.mark.parametrize("shape", [(2, 4), (1, 8)])
def test_messages(shape: tuple[int, int]) -> None:
    """Nothing is gathered, and the sums are those of the cost model."""
    loss = jaxsoftmax.sharded_linear_loss(objectives.focal, mesh_of(shape))
    gradient = jax.jit(jax.value_and_grad(lambda h, w, y: loss(h, w, y, block_size=N), (0, 1)))
    mesh = mesh_of(shape)
    arguments = [jax.device_put(x, NamedSharding(mesh, s)) for x, s in ((FEATURES, SPECS[0]), (KERNEL, SPECS[1]))]
    labels = jax.device_put(LABELS, NamedSharding(mesh, SPECS[0]))
    found = message_bytes(gradient.lower(*arguments, labels).compile().as_text())
    expected = cost(N, V, shape)
    if shape[0] == 1:
        expected -= 4 * D * V // shape[1] + 8  # the kernel's columns and the mean are those of all rows already
    assert found == {"all-reduce": expected}


def temporary_bytes(shape: tuple[int, int], rows: int, classes: int) -> int:
    """Of value and gradient on each device."""
    mesh = mesh_of(shape)
    loss = jaxsoftmax.sharded_linear_loss(objectives.cross_entropy, mesh)
    h, w, y = (
        jax.ShapeDtypeStruct(s, t, sharding=NamedSharding(mesh, spec))
        for s, t, spec in (
            ((rows, 64), jnp.float32, SPECS[0]),
            ((64, classes), jnp.float32, SPECS[1]),
            ((rows,), jnp.int32, SPECS[0]),
        )
    )
    gradient = jax.jit(jax.value_and_grad(lambda h, w, y: loss(h, w, y, block_size=rows), (0, 1)))
    return gradient.lower(h, w, y).compile().memory_analysis().temp_size_in_bytes


def test_memory() -> None:
    """What a device holds falls as one over the number of devices that split the classes."""
    one, eight = temporary_bytes((1, 1), 64, 2**16), temporary_bytes((1, 8), 64, 2**16)
    assert abs(8 * eight / one - 1) < 0.15


Maker = Callable[..., Any]
MESH = mesh_of((2, 4))


@pytest.mark.parametrize(
    ("call", "kind", "rule"),
    [
        (lambda f: f(objectives.focal, MESH, rows="x"), ValueError, "rows must name axes of the mesh"),
        (lambda f: f(objectives.focal, MESH, classes=("model", "y")), ValueError, "classes must name axes of the mesh"),
        (lambda f: f(objectives.focal, MESH, classes="data"), ValueError, "rows and classes must be different axes"),
        (lambda f: f(objectives.focal, MESH, rows=3), TypeError, "must be a string or a tuple of different ones"),
        (lambda f: f(1.0, MESH), TypeError, "objective must be a function"),
        (lambda f: f(objectives.focal, None), TypeError, "mesh must be a jax.sharding.Mesh"),
        (lambda f: f(objectives.focal, MESH)(FEATURES, KERNEL.T, LABELS), ValueError, "kernel must have shape [D, V]"),
        (lambda f: f(objectives.focal, MESH)(FEATURES, KERNEL, LABELS[1:]), ValueError, "labels must have the shape"),
        (lambda f: f(objectives.focal, MESH)(FEATURES, KERNEL, LABELS * 1.0), TypeError, "labels must be integers"),
        (
            lambda f: f(objectives.focal, MESH)(FEATURES, KERNEL, LABELS, weights=WEIGHTS[1:]),
            ValueError,
            "weights must have one number per row",
        ),
        (
            lambda f: f(objectives.focal, MESH)(FEATURES, KERNEL, LABELS, temperature=WEIGHTS[1:]),
            ValueError,
            "temperature must be a scalar or have one number per row",
        ),
        (lambda f: f(objectives.focal, MESH)(FEATURES, KERNEL, LABELS, temperature=-1.0), ValueError, "temperature"),
        (
            lambda f: f(objectives.focal, MESH)(FEATURES, KERNEL, LABELS, bias=BIAS[1:]),
            ValueError,
            "bias must have shape [V]",
        ),
        (
            lambda f: f(objectives.focal, MESH)(FEATURES, KERNEL, LABELS, where=BIAS[1:] > 0),
            ValueError,
            "where must have shape [V]",
        ),
        (lambda f: f(objectives.focal, MESH)(FEATURES, KERNEL[:, :62], LABELS), ValueError, "pass num_classes"),
        (lambda f: f(objectives.focal, MESH)(FEATURES[:47], KERNEL, LABELS[:47]), ValueError, "rows of weight 0"),
        (lambda f: f(objectives.focal, MESH)(FEATURES[0], KERNEL, LABELS), ValueError, "must have shape [N, ..., D]"),
        (
            lambda f: f(objectives.focal, MESH)(FEATURES, KERNEL, LABELS, num_classes=65),
            ValueError,
            "num_classes must be at most 64",
        ),
    ],
)
def test_errors(call: Callable[[Maker], Any], kind: type[Exception], rule: str) -> None:
    """Named after the function that was called."""
    with pytest.raises(kind) as error:
        call(jaxsoftmax.sharded_linear_loss)
    assert str(error.value).startswith(("jaxsoftmax.sharded_linear_loss: ", "jaxsoftmax.linear_loss: "))
    assert rule in str(error.value)


def test_error_of_features_split_along_their_width() -> None:
    """Eagerly from the array, and on an explicit mesh under jit too."""
    for mode in MODES:
        mesh = mesh_of((2, 4), mode)
        features = jax.device_put(FEATURES, NamedSharding(mesh, PartitionSpec("data", "model")))
        loss = jaxsoftmax.sharded_linear_loss(objectives.focal, mesh)
        with pytest.raises(ValueError, match="features must be whole along D"):
            (jax.jit(loss) if mode == "explicit" else loss)(features, KERNEL, LABELS)


def test_closures() -> None:
    """A traced number that the objective closes over has its gradient on an automatic mesh; an explicit one refuses."""
    closing = {
        mode: jax.device_put(np.float32(0.5), NamedSharding(mesh_of((2, 4), mode), PartitionSpec())) for mode in MODES
    }

    def slope(loss: Callable[..., Any]) -> Any:
        return jax.jit(jax.grad(lambda g: loss(lambda s: g * s.error_prob - s.log_prob)(FEATURES, KERNEL, LABELS)))

    expected = slope(lambda f: functools.partial(jaxsoftmax.linear_loss, f))(0.5)
    actual = slope(lambda f: jaxsoftmax.sharded_linear_loss(f, MESH))(closing["auto"])
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    mesh = mesh_of((2, 4), "explicit")
    with (
        pytest.raises(ValueError, match="objective must not close over arrays on an explicit mesh"),
        jax.set_mesh(mesh),
    ):
        slope(lambda f: jaxsoftmax.sharded_linear_loss(f, mesh))(closing["explicit"])


def test_rows_or_classes_alone() -> None:
    """Either may be split over no axis or over several."""
    expected = on_one(everything)(FEATURES, KERNEL, BIAS, WEIGHTS, LABELS)
    for rows, classes in ((None, ("data", "model")), (("data", "model"), None)):
        loss = jaxsoftmax.sharded_linear_loss(everything, MESH, rows=rows, classes=classes)
        gradient = jax.jit(
            jax.value_and_grad(lambda h, w, b, r, loss=loss: loss(h, w, LABELS, bias=b, weights=r), (0, 1, 2, 3))
        )
        assert_same(gradient(FEATURES, KERNEL, BIAS, WEIGHTS), expected)
