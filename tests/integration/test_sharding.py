"""Classes split over the devices of a mesh, in Auto and in Explicit mode: the numbers of a single device."""

import contextlib
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsoftmax
from jaxsoftmax import calibration
from tests.helpers import assert_same, with_gradients

ROWS, CLASSES = 4, 16
Z = (3.0 * np.random.default_rng(0).standard_normal((ROWS, CLASSES))).astype(np.float32)
LABELS = np.array([0, 15, 7, 8], np.int32)
# Options that are not split.
DISTRIBUTION = (np.exp(np.cos(np.arange(ROWS * CLASSES))) / 16.0).astype(np.float32).reshape(ROWS, CLASSES)
CLASS_WEIGHTS = (1.0 + 0.5 * np.cos(np.arange(CLASSES))).astype(np.float32)
PRESENT = np.arange(CLASSES) != 5

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
    "hinge_loss": lambda z, y: jaxsoftmax.hinge_loss(z, y),
    "entropy": lambda z, y: jaxsoftmax.entropy(z, temperature=2.0),
    "kl_divergence": lambda z, y: jaxsoftmax.kl_divergence(z, 2.0 * z),
    "soft_cross_entropy": lambda z, y: jaxsoftmax.soft_cross_entropy(z, DISTRIBUTION),
    "logsumexp_of_some": lambda z, y: jaxsoftmax.logsumexp(z, weights=CLASS_WEIGHTS, where=PRESENT),
    "cross_entropy_weighted": lambda z, y: jaxsoftmax.cross_entropy(z, y, class_weights=CLASS_WEIGHTS, where=PRESENT),
    "times_its_mean": lambda z, y: (
        jaxsoftmax.cross_entropy(z, y) * jaxsoftmax.weighted_mean(jaxsoftmax.cross_entropy(z, y))
    ),
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


# Arguments that are split differently, on an explicit mesh: JAX alone would refuse most of them.

TARGETS = (DISTRIBUTION / DISTRIBUTION.sum(1, keepdims=True)).astype(np.float32)
ROW_SPLIT, CLASS_SPLIT, BOTH = (PartitionSpec(*s) for s in (("rows", None), (None, "classes"), ("rows", "classes")))
WHOLE = PartitionSpec()
TEMPERATURES = np.linspace(0.5, 2.0, len(Z), dtype=np.float32)
LABELS_AS_ROWS = np.eye(Z.shape[1], dtype=np.float32)[LABELS]

Placed = tuple[Callable[..., Any], list[tuple[Any, PartitionSpec | None]]]

DIFFERENTLY: dict[str, Placed] = {
    "whole_logits": (
        lambda z, y: jaxsoftmax.cross_entropy(z, y, class_weights=CLASS_WEIGHTS, label_smoothing=0.1),
        [(Z, WHOLE), (LABELS, PartitionSpec("rows"))],
    ),
    "rows_and_classes_on_one_axis": (
        lambda z, y: jaxsoftmax.cross_entropy(z, y),
        [(Z, CLASS_SPLIT), (LABELS, PartitionSpec("classes"))],
    ),
    "hinge_of_whole_logits": (jaxsoftmax.hinge_loss, [(Z, WHOLE), (LABELS, PartitionSpec("rows"))]),
    "whole_targets": (jaxsoftmax.soft_cross_entropy, [(Z, BOTH), (TARGETS, WHOLE)]),
    "targets_split_otherwise": (jaxsoftmax.kl_divergence, [(Z, ROW_SPLIT), (2.0 * Z, CLASS_SPLIT)]),
    "binary": (jaxsoftmax.binary_cross_entropy, [(Z, WHOLE), (TARGETS, BOTH)]),
    "smooth_labels": (
        lambda q: jaxsoftmax.smooth_labels(q, 0.1, smoothing="others", where=PRESENT),
        [(TARGETS, BOTH)],
    ),
    "weights_split_otherwise": (
        jaxsoftmax.weighted_mean,
        [(Z[:, 0], PartitionSpec("rows")), (TARGETS[:, 0], PartitionSpec("classes"))],
    ),
    "hard_and_soft": (
        lambda hard, soft: jaxsoftmax.straight_through(jax.lax.stop_gradient(hard), soft),
        [(LABELS_AS_ROWS, CLASS_SPLIT), (Z, ROW_SPLIT)],
    ),
    "options_that_are_arrays": (
        lambda z, e: jaxsoftmax.cross_entropy(z, LABELS, label_smoothing=e, z_loss=e),
        [(Z, BOTH), (np.float32(0.1), WHOLE)],
    ),
    # Of one argument alone, with the others on no mesh.
    "values_alone": (jaxsoftmax.weighted_mean, [(Z[:, 0], PartitionSpec("rows")), (TARGETS[:, 0], None)]),
    "labels_alone": (
        lambda z, y: jaxsoftmax.cross_entropy(z, y, label_smoothing=0.1),
        [(Z, None), (LABELS, PartitionSpec("classes"))],
    ),
    "temperature_alone": (
        lambda z, t: jaxsoftmax.cross_entropy(z, LABELS, temperature=t),
        [(Z, None), (TEMPERATURES, PartitionSpec("classes"))],
    ),
    "weights_alone": (lambda z, w: jaxsoftmax.logsumexp(z, weights=w), [(Z, None), (TARGETS, BOTH)]),
    "targets_alone": (jaxsoftmax.kl_divergence, [(Z, None), (2.0 * Z, BOTH)]),
    "probabilities_alone": (jaxsoftmax.soft_cross_entropy, [(Z, None), (TARGETS, BOTH)]),
    "binary_labels_alone": (jaxsoftmax.binary_cross_entropy, [(Z, None), (TARGETS, BOTH)]),
    "mask_alone": (
        lambda z, where: jaxsoftmax.sigmoid_focal_loss(z, TARGETS, where=where),
        [(Z, None), (np.broadcast_to(PRESENT, Z.shape), BOTH)],
    ),
}


@functools.partial(jax.jit, static_argnums=0)
def by_all(function: Callable[..., Any], *args: Any) -> Any:
    """The gradients by all floating arguments, and the result."""
    return with_gradients(function)(*args)


def explicit_mesh() -> jax.sharding.Mesh:
    """Two devices for rows times four for classes."""
    return jax.make_mesh((2, 4), ("rows", "classes"), axis_types=(AxisType.Explicit,) * 2)


def check_differently(function: Callable[..., Any], arguments: Any, *, inside: bool = True) -> None:
    """The numbers of one device, and gradients that are split as the arguments are, where these are on the mesh.

    Inside of `jax.set_mesh` or outside.
    """
    values = [x for x, _ in arguments]
    expected = by_all(function, *values)
    mesh = explicit_mesh()
    with jax.set_mesh(mesh) if inside else contextlib.nullcontext():
        placed = [x if spec is None else jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in arguments]
        actual = by_all(function, *placed)
    assert_same(actual, expected)
    floats = [x for x in placed if jnp.issubdtype(x.dtype, jnp.floating)]
    for gradient, argument in zip(actual[0], floats, strict=True):
        on_mesh = isinstance(argument, jax.Array)
        assert not on_mesh or gradient.sharding.is_equivalent_to(argument.sharding, gradient.ndim)


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
@pytest.mark.parametrize("name", DIFFERENTLY)
def test_arguments_split_differently(name: str, inside: bool) -> None:
    """What is whole is cut, and what is split otherwise is moved."""
    check_differently(*DIFFERENTLY[name], inside=inside)


CALIBRATION: dict[str, Callable[..., Any]] = {
    "bins_of_equal_width": lambda z, y: calibration.expected_calibration_error(y, logits=z),
    "bins_of_equal_mass": lambda z, y: calibration.expected_calibration_error(
        y, logits=z, binning="mass", classwise=True
    ),
    "smooth_error": lambda z, y: calibration.smooth_calibration_error(y, logits=z),
    "summary": lambda z, y: calibration.calibration_summary(y, logits=z).precision,
    "selective_risk": lambda z, y: (
        calibration.selective_risk(calibration.entropy_score(z), jaxsoftmax.cross_entropy(z, y)).area
    ),
    "scores": lambda z, y: calibration.conformal_scores(y, logits=z, method="raps"),
    "threshold": lambda z, y: calibration.conformal_threshold(jaxsoftmax.cross_entropy(z, y), alpha=0.5),
    "bootstrap": lambda z, y: (
        calibration.bootstrap(
            jax.random.key(0),
            lambda z, y, weights: calibration.negative_log_likelihood(y, logits=z, weights=weights),
            (z, y),
            resamples=3,
        ).samples
    ),
    "choice": lambda z, y: calibration.choose_calibrator(jax.random.key(0), z, y, folds=2).matrix.bias,
    "temperature": lambda z, y: calibration.fit_temperature(z, y).temperature,
}


@pytest.mark.parametrize("name", CALIBRATION)
def test_calibration(name: str) -> None:
    """What ranks rows, or puts them in bins, brings them together."""
    check_differently(CALIBRATION[name], [(Z, BOTH), (LABELS, PartitionSpec("rows"))])


def test_constants_inside_of_a_shard_map_over_one_axis_of_two() -> None:
    """Labels and temperatures on no mesh, beside logits whose other axis stays explicit."""
    mesh = explicit_mesh()

    def loss(z: Any) -> jax.Array:
        return jaxsoftmax.cross_entropy(z, LABELS, temperature=TEMPERATURES, axis_name="classes")

    with jax.set_mesh(mesh):
        split = jax.shard_map(loss, in_specs=CLASS_SPLIT, out_specs=WHOLE, axis_names={"classes"})
        actual = jax.jit(split)(jax.device_put(Z, NamedSharding(mesh, BOTH)))
    assert_same(actual, jaxsoftmax.cross_entropy(Z, LABELS, temperature=TEMPERATURES))


def test_a_closure_of_arrays_of_which_one_is_on_a_mesh() -> None:
    """Eagerly, and outside of `jax.set_mesh`."""
    mesh = explicit_mesh()
    gamma = np.float32(1.5)

    def loss(h: Any, w: Any) -> jax.Array:
        return jaxsoftmax.linear_loss(lambda s: jaxsoftmax.objectives.focal(s, gamma=gamma), h, w, TOKENS)

    placed = jax.device_put(FEATURES, NamedSharding(mesh, ROW_SPLIT))
    assert_same(loss(placed, KERNEL), loss(FEATURES, KERNEL))


# The streamed head, where JAX divides the work: features split by rows, a kernel by classes.

N, D, V = 64, 6, 96
_rng = np.random.default_rng(3)
FEATURES, KERNEL = (_rng.standard_normal(shape).astype(np.float32) for shape in ((N, D), (D, V)))
BIAS, WEIGHTS = _rng.standard_normal(V).astype(np.float32), _rng.uniform(0.5, 2.0, N).astype(np.float32)
TOKENS = _rng.integers(0, V - 6, N).astype(np.int32)

HEADS: dict[str, Callable[..., Any]] = {
    "linear_loss_of_a_closure": lambda h, w, b, gamma=1.5: jaxsoftmax.linear_loss(
        lambda s: jaxsoftmax.objectives.focal(s, gamma=gamma), h, w, TOKENS, bias=b, block_size=16
    ),
    "linear_loss": lambda h, w, b: jaxsoftmax.linear_loss(
        jaxsoftmax.objectives.focal, h, w, TOKENS, bias=b, weights=WEIGHTS, ignore_label=3, block_size=16
    ),
    "linear_cross_entropy": lambda h, w, b: jaxsoftmax.linear_cross_entropy(
        h, w, TOKENS, bias=b, num_classes=V - 6, temperature=1.5, label_smoothing=0.1, block_size=16
    ),
    "linear_statistics": lambda h, w, b: (
        jaxsoftmax.linear_statistics(h, w, TOKENS, bias=b, temperature=1.5, block_size=16).log_odds
    ),
    "linear_entropy": lambda h, w, b: jaxsoftmax.linear_entropy(h, w, bias=b, block_size=16),
    "linear_kl_divergence": lambda h, w, b: jaxsoftmax.linear_kl_divergence(h, w, 2.0 * h, w, student_bias=b),
    "linear_top_k": lambda h, w, b: jaxsoftmax.linear_top_k(h, w, 5, bias=b, block_size=16).log_probs,
    "linear_accuracy": lambda h, w, b: jaxsoftmax.linear_accuracy(h, w, TOKENS, k=5, bias=b),
}
HEAD_MESHES = {"8x1": (8, 1), "1x8": (1, 8), "2x4": (2, 4)}


def head_on_mesh(mesh: str, mode: str) -> tuple[jax.sharding.Mesh, list[jax.Array]]:
    """The mesh, and features, kernel and bias on it."""
    built = jax.make_mesh(HEAD_MESHES[mesh], ("rows", "classes"), axis_types=(MODES[mode],) * 2)
    specs = PartitionSpec("rows", None), PartitionSpec(None, "classes"), PartitionSpec("classes")
    return built, [
        jax.device_put(x, NamedSharding(built, spec)) for x, spec in zip((FEATURES, KERNEL, BIAS), specs, strict=True)
    ]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "mesh"), [(n, m) for n in HEADS for m in HEAD_MESHES if m == "2x4" or n == "linear_loss"]
)
def test_streamed_head(name: str, mesh: str, mode: str) -> None:
    """The numbers of one device, with gradients split as the arguments are."""
    expected = by_all(HEADS[name], FEATURES, KERNEL, BIAS)
    built, arguments = head_on_mesh(mesh, mode)
    with jax.set_mesh(built):
        actual = by_all(HEADS[name], *arguments)
    assert_same(actual, expected)
    constant = name in ("linear_top_k", "linear_accuracy")  # whose gradients are zeros of no place
    for gradient, argument in zip(actual[0], arguments, strict=True):
        assert constant or gradient.sharding.is_equivalent_to(argument.sharding, gradient.ndim)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["linear_loss", "linear_statistics"])
def test_streamed_head_stays_where_it_is(name: str, mode: str) -> None:
    """Each device computes its share of every block: rows, kernel and logits are never gathered."""
    built, arguments = head_on_mesh("2x4", mode)
    with jax.set_mesh(built):
        compiled = by_all.lower(HEADS[name], *arguments).compile()
    text = compiled.as_text()
    assert re.search(r"\ball-reduce(-start)?\(", text)
    assert not re.search(r"\b(all-gather|all-to-all|collective-permute)(-start)?\(", text)
    # one block of logits is [8, 24] on each device
    assert "f32[8,24]" in text and not re.search(r"f32\[(16|64),(24|96)\]|f32\[8,96\]", text)


OF_DEPTH, OF_TIME = PartitionSpec(None, None, "classes"), PartitionSpec(None, "rows")
BATCH = FEATURES.reshape(4, 16, D)[..., :4], TOKENS.reshape(4, 16), WEIGHTS.reshape(4, 16)
SMALL = KERNEL[:4]


def _batch_loss(h: Any, w: Any, b: Any, y: Any, r: Any, **options: Any) -> jax.Array:
    return jaxsoftmax.linear_loss(
        jaxsoftmax.objectives.focal, h, w, y, bias=b, weights=r, ignore_label=3, block_size=16, **options
    )


def _batch(of_features: Any, of_kernel: Any, of_bias: Any, of_labels: Any, of_weights: Any) -> list[Any]:
    h, y, r = BATCH
    return [(h, of_features), (SMALL, of_kernel), (BIAS, of_bias), (y, of_labels), (r, of_weights)]


OTHER, ITS_BIAS = -KERNEL[2:], BIAS[::-1].copy()
OF_KERNEL_ROWS = PartitionSpec(None, "rows")


def _distilled(h: Any, w: Any, b: Any, t: Any, u: Any, c: Any) -> jax.Array:
    options: Any = {"student_bias": b, "teacher_bias": c, "reduction": "none", "block_size": 16}
    return jaxsoftmax.linear_kl_divergence(h, w, t, u, **options)


HEADS_DIFFERENTLY: dict[str, Placed] = {
    "whole_features": (_batch_loss, _batch(WHOLE, CLASS_SPLIT, WHOLE, ROW_SPLIT, WHOLE)),
    "second_axis": (
        lambda *args: _batch_loss(*args, reduction="none"),
        _batch(OF_TIME, CLASS_SPLIT, PartitionSpec("classes"), OF_TIME, ROW_SPLIT),
    ),
    "both_axes": (
        lambda *args: _batch_loss(*args, reduction="none"),
        _batch(PartitionSpec("rows", "classes"), WHOLE, WHOLE, WHOLE, WHOLE),
    ),
    "depth": (_batch_loss, _batch(OF_DEPTH, PartitionSpec("classes", None), WHOLE, ROW_SPLIT, ROW_SPLIT)),
    "kernel_over_all_devices": (_batch_loss, _batch(ROW_SPLIT, PartitionSpec(None, "rows"), WHOLE, WHOLE, WHOLE)),
    "teacher": (
        lambda h, w, t: jaxsoftmax.linear_kl_divergence(h, w, t, w, reduction="none", block_size=16),
        [(BATCH[0], ROW_SPLIT), (SMALL, CLASS_SPLIT), (2.0 * BATCH[0], PartitionSpec(None, "classes"))],
    ),
    "kernel_of_the_teacher": (
        _distilled,
        [
            *[(BATCH[0], WHOLE), (SMALL, CLASS_SPLIT), (BIAS, PartitionSpec("rows"))],
            *[(2.0 * BATCH[0], WHOLE), (OTHER, OF_KERNEL_ROWS), (ITS_BIAS, WHOLE)],
        ],
    ),
    "rows_over_classes_of_the_teacher": (
        _distilled,
        [
            *[(BATCH[0], ROW_SPLIT), (SMALL, WHOLE), (BIAS, PartitionSpec("rows"))],
            *[(2.0 * BATCH[0], WHOLE), (OTHER, OF_KERNEL_ROWS), (ITS_BIAS, PartitionSpec("rows"))],
        ],
    ),
    "teacher_alone": (
        _distilled,
        [
            (BATCH[0], None),
            (SMALL, None),
            (BIAS, None),
            (2.0 * BATCH[0], None),
            (OTHER, BOTH),
            (ITS_BIAS, None),
        ],
    ),
    "where_and_bias": (
        lambda h, w, b, where: _batch_loss(h, w, b, BATCH[1], BATCH[2], where=where),
        [
            *[(BATCH[0], WHOLE), (SMALL, CLASS_SPLIT), (BIAS, PartitionSpec("classes"))],
            (np.isin(np.arange(V), TOKENS) | (np.arange(V) % 2 == 0), PartitionSpec("rows")),
        ],
    ),
    "temperature_of_a_head_alone": (
        lambda h, w, b, t: _batch_loss(h, w, b, BATCH[1], BATCH[2], temperature=t),
        [
            (BATCH[0], None),
            (SMALL, None),
            (BIAS, None),
            (np.linspace(0.5, 2.0, 64, dtype=np.float32).reshape(4, 16), OF_TIME),
        ],
    ),
}


@pytest.mark.parametrize("name", HEADS_DIFFERENTLY)
def test_heads_split_differently(name: str) -> None:
    """Batches of several axes, features and kernels along their depth, and one axis for rows and classes."""
    check_differently(*HEADS_DIFFERENTLY[name])


def test_vmap_over_labels_and_weights_of_a_head() -> None:
    """Rows that do not count differ from label to label, and with them which blocks there is nothing to do for."""
    mesh = explicit_mesh()
    labels, weights = np.stack([TOKENS, TOKENS[::-1]]), np.stack([WEIGHTS, WEIGHTS * (np.arange(N) < N // 4)])

    def losses(h: Any, w: Any) -> jax.Array:
        def one(y: Any, r: Any) -> jax.Array:
            return jaxsoftmax.linear_cross_entropy(h, w, y, weights=r, ignore_label=3, block_size=16)

        return jax.vmap(one)(labels, weights)

    with jax.set_mesh(mesh):
        split = [jax.device_put(x, NamedSharding(mesh, s)) for x, s in ((FEATURES, ROW_SPLIT), (KERNEL, CLASS_SPLIT))]
        actual = by_all(losses, *split)
    assert_same(actual, by_all(losses, FEATURES, KERNEL))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_kernel_on_no_mesh(reduction: str) -> None:
    """Parameters that were made before the explicit mesh, beside rows that are split over it, and the reverse."""
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Explicit,))

    def loss(h: Any, w: Any, y: Any) -> jax.Array:
        return jaxsoftmax.linear_cross_entropy(h, w, y, reduction=reduction, block_size=16).sum()

    def put(x: Any, *spec: Any) -> jax.Array:
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    expected = jax.grad(loss, (0, 1))(FEATURES, KERNEL, TOKENS)
    with jax.set_mesh(mesh):
        for given in (
            (put(FEATURES, "rows"), KERNEL, put(TOKENS, "rows")),
            (FEATURES, put(KERNEL, None, "rows"), put(TOKENS)),
        ):
            for gradient, exact in zip(jax.jit(jax.grad(loss, (0, 1)))(*given), expected, strict=True):
                np.testing.assert_allclose(gradient, exact, rtol=0, atol=1e-6 * np.max(np.abs(exact)))
    outside = jax.jit(jax.grad(loss, 1))(put(FEATURES, "rows"), KERNEL, put(TOKENS, "rows"))
    np.testing.assert_allclose(outside, expected[1], rtol=0, atol=1e-6 * np.max(np.abs(expected[1])))


def test_a_temperature_on_no_mesh_that_other_code_uses_too() -> None:
    """Its gradients come as JAX has those of its own operations with what is on a mesh, or they would not add up."""
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Explicit,))

    def total(t: Any, z: Any, r: Any) -> jax.Array:
        return jnp.sum(jaxsoftmax.cross_entropy(z, LABELS, temperature=t) + t * r)

    split = [jax.device_put(x, NamedSharding(mesh, PartitionSpec("rows"))) for x in (Z, TEMPERATURES)]
    actual = jax.jit(jax.grad(total))(TEMPERATURES, *split)
    assert_same(actual, jax.grad(total)(TEMPERATURES, Z, TEMPERATURES))
