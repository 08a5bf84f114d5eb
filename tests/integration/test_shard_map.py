"""Classes split over a mesh inside of `jax.shard_map`: with `axis_name` every operation gives what one device gives."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsoftmax
from jaxsoftmax import objectives
from tests.helpers import SCALES, assert_same, message_bytes
from tests.stepwise import stepwise

N, V, D = 8, 16, 3
# The first and the last class of every device, whether there are 4 or 8.
LABELS = np.array([0, 15, 7, 8, 3, 4, 11, 12], np.int32)

_rng = np.random.default_rng(11)


def _normal(*shape: int) -> np.ndarray:
    return _rng.standard_normal(shape).astype(np.float32)


Z, OTHER, FEATURES, KERNEL, BIAS = _normal(N, V), _normal(N, V), _normal(N, D), _normal(D, V), _normal(V)
TEACHER_FEATURES, TEACHER_KERNEL = _normal(N, 2), _normal(2, V)
DISTRIBUTION = (np.exp(OTHER) / 20.0).astype(np.float32)
T, WEIGHTS = (_rng.uniform(0.5, 2.0, N).astype(np.float32) for _ in range(2))
CLASS_WEIGHTS = _rng.uniform(0.5, 2.0, V).astype(np.float32)

BY_BOTH, BY_ROW, BY_CLASS = PartitionSpec("data", "model"), PartitionSpec("data"), PartitionSpec("model")
OF_KERNEL, WHOLE = PartitionSpec(None, "model"), PartitionSpec()

Function = Callable[..., jax.Array]


class Split(NamedTuple):
    """f(axis_name, *args), how each argument is split, and the result; "sum" where rows are still to be summed."""

    function: Function
    args: tuple[np.ndarray, ...]
    specs: tuple[PartitionSpec, ...]
    out: PartitionSpec | str = BY_ROW


_ROW, _ROWS_T, _HEAD = (BY_BOTH, BY_ROW), (BY_BOTH, BY_ROW, BY_ROW), (BY_ROW, OF_KERNEL)

OPERATIONS: dict[str, Split] = {
    "softmax": Split(lambda a, z, t: jaxsoftmax.softmax(z, temperature=t, axis_name=a), (Z, T), _ROW, BY_BOTH),
    "log_softmax": Split(lambda a, z, t: jaxsoftmax.log_softmax(z, temperature=t, axis_name=a), (Z, T), _ROW, BY_BOTH),
    "logsumexp": Split(
        lambda a, z, w, t: jaxsoftmax.logsumexp(z, weights=w, temperature=t, axis_name=a),
        (Z, DISTRIBUTION, T),
        (BY_BOTH, BY_BOTH, BY_ROW),
    ),
    "smooth_max": Split(lambda a, z, t: jaxsoftmax.smooth_max(z, temperature=t, axis_name=a), (Z, T), _ROW),
    "row_statistics": Split(
        lambda a, z, y, t: jnp.stack(jaxsoftmax.row_statistics(z, y, temperature=t, axis_name=a), -1),
        (Z, LABELS, T),
        _ROWS_T,
    ),
    "cross_entropy": Split(
        lambda a, z, y, t, w: jaxsoftmax.cross_entropy(
            z, y, temperature=t, class_weights=w, label_smoothing=0.1, z_loss=0.1, axis_name=a
        ),
        (Z, LABELS, T, CLASS_WEIGHTS),
        (*_ROWS_T, BY_CLASS),
    ),
    "focal_loss": Split(
        lambda a, z, y, w: jaxsoftmax.focal_loss(z, y, gamma=1.7, alpha=w, ignore_label=7, axis_name=a),
        (Z, LABELS, CLASS_WEIGHTS),
        (*_ROW, BY_CLASS),
    ),
    "poly_loss": Split(lambda a, z, y: jaxsoftmax.poly_loss(z, y, logit_cap=3.0, axis_name=a), (Z, LABELS), _ROW),
    "soft_cross_entropy": Split(
        lambda a, z, q, t: jaxsoftmax.soft_cross_entropy(z, q, temperature=t, logit_cap=3.0, axis_name=a),
        (Z, DISTRIBUTION, T),
        (BY_BOTH, BY_BOTH, BY_ROW),
    ),
    "kl_divergence": Split(
        lambda a, z, w, t: jaxsoftmax.kl_divergence(z, w, temperature=t, axis_name=a),
        (Z, OTHER, T),
        (BY_BOTH, BY_BOTH, BY_ROW),
    ),
    "entropy": Split(lambda a, z, t: jaxsoftmax.entropy(z, temperature=t, axis_name=a), (Z, T), _ROW),
    "hinge_loss": Split(lambda a, z, y: jaxsoftmax.hinge_loss(z, y, axis_name=a), (Z, LABELS), _ROW),
    "weston_watkins": Split(
        lambda a, z, y: jaxsoftmax.hinge_loss(z, y, variant="weston_watkins", axis_name=a), (Z, LABELS), _ROW
    ),
    "linear_statistics": Split(
        lambda a, h, w, b, y, t: jnp.stack(
            jaxsoftmax.linear_statistics(h, w, y, bias=b, temperature=t, logit_cap=3.0, block_size=2, axis_name=a), -1
        ),
        (FEATURES, KERNEL, BIAS, LABELS, T),
        (*_HEAD, BY_CLASS, BY_ROW, BY_ROW),
    ),
    "linear_cross_entropy": Split(
        lambda a, h, w, b, y, t: jaxsoftmax.linear_cross_entropy(
            h, w, y, bias=b, temperature=t, label_smoothing=0.1, z_loss=0.1, reduction="none", block_size=3, axis_name=a
        ),
        (FEATURES, KERNEL, BIAS, LABELS, T),
        (*_HEAD, BY_CLASS, BY_ROW, BY_ROW),
    ),
    "linear_loss": Split(
        lambda a, h, w, b, y, t, r: jaxsoftmax.linear_loss(
            objectives.focal, h, w, y, bias=b, temperature=t, weights=r, reduction="sum", block_size=3, axis_name=a
        )[None],
        (FEATURES, KERNEL, BIAS, LABELS, T, WEIGHTS),
        (*_HEAD, BY_CLASS, BY_ROW, BY_ROW, BY_ROW),
        "sum",
    ),
    "linear_log_probs": Split(
        lambda a, h, w, y: jaxsoftmax.linear_log_probs(h, w, y, num_classes=13, ignore_label=7, axis_name=a),
        (FEATURES, KERNEL, np.minimum(LABELS, 12)),
        (*_HEAD, BY_ROW),
    ),
    "linear_entropy": Split(
        lambda a, h, w, t: jaxsoftmax.linear_entropy(h, w, temperature=t, logit_cap=3.0, block_size=3, axis_name=a),
        (FEATURES, KERNEL, T),
        (*_HEAD, BY_ROW),
    ),
    "linear_kl_divergence": Split(
        lambda a, *args: jaxsoftmax.linear_kl_divergence(*args, reduction="none", block_size=3, axis_name=a),
        (FEATURES, KERNEL, TEACHER_FEATURES, TEACHER_KERNEL),
        (*_HEAD, *_HEAD),
    ),
    "mean": Split(lambda a, x: jaxsoftmax.weighted_mean(x, axis_name=a and "data")[None], (T,), (BY_ROW,), WHOLE),
    "weighted_mean": Split(
        lambda a, x, w: jaxsoftmax.weighted_mean(x, w, axis_name=a and "data")[None],
        (T, WEIGHTS),
        (BY_ROW, BY_ROW),
        WHOLE,
    ),
}
# Without a gradient.
CONSTANTS: dict[str, Split] = {
    "linear_top_k": Split(
        lambda a, h, w: jaxsoftmax.linear_top_k(h, w, 5, num_classes=13, axis_name=a).log_probs,
        (FEATURES, KERNEL),
        _HEAD,
    ),
    "linear_top_k_indices": Split(
        lambda a, h, w: jaxsoftmax.linear_top_k(h, w, 5, num_classes=13, axis_name=a).indices, (FEATURES, KERNEL), _HEAD
    ),
    "linear_top_k_of_ties": Split(
        lambda a, h, w: jaxsoftmax.linear_top_k(h, 0 * w, 5, axis_name=a).indices, (FEATURES, KERNEL), _HEAD
    ),
    "linear_accuracy": Split(
        lambda a, h, w, y: N * jaxsoftmax.linear_accuracy(h, w, y, k=3, axis_name=a)[None] * y.shape[0] / N,
        (FEATURES, KERNEL, LABELS),
        (*_HEAD, BY_ROW),
        "sum",
    ),
}
MESHES = ((1, 8), (2, 4), (8, 1))


def over(shape: tuple[int, int], split: Split, **options: Any) -> Function:
    """The operation over a mesh, as a function of global arrays."""
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def own(*args: Any) -> jax.Array:
        out = split.function("model", *args)
        return lax.psum(out, "data") if split.out == "sum" else out

    out = WHOLE if split.out == "sum" else split.out
    return jax.shard_map(own, mesh=mesh, in_specs=split.specs, out_specs=out, **options)


def alone(split: Split) -> Function:
    """The operation on one device."""
    return lambda *args: split.function(None, *args)


def floats(args: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(i for i, x in enumerate(args) if jnp.issubdtype(x.dtype, jnp.floating))


def weighted_sum(out: jax.Array) -> jax.Array:
    """A cotangent that is not uniform."""
    return jnp.sum(out * (jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape) + 0.25))


def along(x: jax.Array) -> jax.Array:
    return jnp.sin(1.0 + jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)


def by_floats(function: Function, args: tuple[Any, ...]) -> tuple[Function, list[Any]]:
    """The function of its float arguments."""
    places = floats(args)

    def of_floats(*given: Any) -> jax.Array:
        every = list(args)
        for place, x in zip(places, given, strict=True):
            every[place] = x
        return function(*every)

    return of_floats, [args[i] for i in places]


def gradients(function: Function, *args: Any) -> Any:
    """Value and gradients."""
    function, given = by_floats(function, args)
    return function(*given), jax.grad(lambda *a: weighted_sum(function(*a)), range(len(given)))(*given)


def second(function: Function, *args: Any) -> Any:
    """Hessian-vector products, forward over reverse and reverse over reverse."""
    function, given = by_floats(function, args)
    gradient = jax.grad(lambda *a: weighted_sum(function(*a)), range(len(given)))
    reverse = jax.grad(lambda *a: sum(jnp.sum(along(x) * x) for x in gradient(*a)), range(len(given)))
    return jax.jvp(gradient, given, [along(x) for x in given])[1], reverse(*given)


def forward_mode(function: Function, *args: Any) -> Any:
    """Tangents, and gradients, by the tangent rule."""
    function, given = by_floats(function, args)
    with jaxsoftmax.forward_mode():
        out = jax.jvp(function, given, [along(x) for x in given])[1]
        return out, jax.grad(lambda *a: weighted_sum(function(*a)), range(len(given)))(*given)


def remat(function: Function, *args: Any) -> Any:
    """Gradients through jax.checkpoint."""
    return gradients(jax.checkpoint(function), *args)


def batched(function: Function, *args: Any) -> Any:
    """Gradients under vmap."""
    places = floats(args)
    many = [jnp.stack([x, 0.5 * x]) if i in places else x for i, x in enumerate(args)]
    axes = [0 if i in places else None for i in range(len(args))]
    return jax.vmap(lambda *a: gradients(function, *a), in_axes=axes)(*many)


def scanned(function: Function, *args: Any) -> Any:
    """Gradients accumulated over microbatches by scan."""
    places = floats(args)

    def step(total: Any, share: jax.Array) -> Any:
        scaled = [x * share if i in places else x for i, x in enumerate(args)]
        return jax.tree.map(jnp.add, total, gradients(function, *scaled)[1]), None

    start = tuple(jnp.zeros(args[i].shape, args[i].dtype) for i in places)
    return lax.scan(step, start, jnp.array([1.0, 0.5], jnp.float32))[0]


# What depends on the rules of an operation, and what on how the rules are put together, in one of each kind.
OF_RULES = (second, forward_mode)
OF_KINDS = (remat, batched, scanned)
KINDS = ("softmax", "cross_entropy", "linear_cross_entropy", "linear_loss")
LAWS = {law.__name__: law for law in (*OF_RULES, *OF_KINDS)}
CASES = [(name, law.__name__) for law in LAWS.values() for name in (OPERATIONS if law in OF_RULES else KINDS)]


@pytest.mark.parametrize(("name", "law"), CASES)
def test_laws(name: str, law: str) -> None:
    """Every transformation, on a mesh of rows and classes."""
    split = OPERATIONS[name]
    check, transformed = LAWS[law], over((2, 4), split)
    expected = stepwise(lambda *a: check(alone(split), *a))(*split.args)
    assert_same(jax.jit(lambda *a: check(transformed, *a))(*split.args), expected)


@pytest.mark.parametrize(
    ("name", "shape"), [(name, shape) for shape in MESHES for name in (OPERATIONS if shape == (2, 4) else KINDS)]
)
def test_scales(name: str, shape: tuple[int, int]) -> None:
    """Value and gradients on meshes of every shape, at four scales of the logits."""
    split = OPERATIONS[name]
    first, transformed = split.args[0], over(shape, split)
    one = stepwise(lambda *a: gradients(alone(split), *a))
    many = jax.jit(lambda *a: gradients(transformed, *a))
    for scale in SCALES if name not in ("mean", "weighted_mean") else (1.0,):
        args = (first * np.float32(scale), *split.args[1:])
        assert_same(many(*args), one(*args))


@pytest.mark.parametrize("name", ["softmax", "cross_entropy"])
def test_half_precision(name: str) -> None:
    """bfloat16 logits: float32 on every device, and the one rounding of one device."""
    split = OPERATIONS[name]
    args = jnp.asarray(split.args[0], jnp.bfloat16), *split.args[1:]
    out = jax.eval_shape(alone(split), *args)
    cotangent = jnp.asarray(_normal(*out.shape), out.dtype)  # an argument, so that no program leaves out its rounding

    def gradient(function: Function) -> Any:
        of_floats, given = by_floats(function, args)

        def both(cotangent: Any, *given: Any) -> Any:
            value, pullback = jax.vjp(of_floats, *given)
            return value, pullback(cotangent)

        return jax.jit(both)(cotangent, *given)

    actual, expected = gradient(over((2, 4), split)), gradient(alone(split))
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        a, e = (np.asarray(x, np.float32) for x in (a, e))
        np.testing.assert_allclose(a, e, rtol=2**-7, atol=2e-6 * float(np.max(np.abs(e))))


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("name", CONSTANTS)
def test_constants(name: str, shape: tuple[int, int]) -> None:
    """What has no gradient; of equal classes the first, whatever device has it."""
    split = CONSTANTS[name]
    expected = stepwise(alone(split))(*split.args)
    actual = jax.jit(over(shape, split))(*split.args)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["cross_entropy", "linear_cross_entropy"])
def test_gradient_inside(name: str) -> None:
    """The gradient taken on the devices, grad of grad among them, is the one taken outside."""
    split = OPERATIONS[name]
    places = floats(split.args)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def own(*args: Any) -> Any:
        function, given = by_floats(lambda *a: split.function("model", *a), args)
        total = lambda *a: lax.psum(jnp.sum(jnp.square(function(*a))), "data")  # noqa: E731
        gradient = jax.grad(total, range(len(given)))
        squares = jax.grad(lambda *a: lax.psum(jnp.sum(jnp.square(gradient(*a)[0])), ("data",)), 0)
        return gradient(*given), squares(*given) if name == "linear_cross_entropy" else None

    specs = tuple(split.specs[i] for i in places)
    out = specs, specs[0] if name == "linear_cross_entropy" else None
    actual = jax.jit(jax.shard_map(own, mesh=mesh, in_specs=split.specs, out_specs=out))(*split.args)

    function, given = by_floats(alone(split), split.args)
    gradient = jax.grad(lambda *a: jnp.sum(jnp.square(function(*a))), range(len(given)))
    squares = jax.grad(lambda *a: jnp.sum(jnp.square(gradient(*a)[0])), 0)
    expected = gradient(*given), squares(*given) if name == "linear_cross_entropy" else None
    assert_same(actual, expected)


def test_vmap_with_spmd_axis_name() -> None:
    """Many problems, split over one axis of the mesh, each with its classes split over the other.

    On logits only: JAX refuses this for `scan` and `jax.checkpoint` inside of `shard_map`, plain code included.
    """
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    options = {"label_smoothing": 0.1, "z_loss": 0.1}
    split = jax.shard_map(
        lambda z: jaxsoftmax.cross_entropy(z, LABELS, axis_name="model", **options),
        mesh=mesh,
        in_specs=OF_KERNEL,
        out_specs=WHOLE,
    )

    def gradients_of(function: Function, **options: Any) -> Function:
        return jax.jit(jax.vmap(jax.grad(lambda z: weighted_sum(function(z))), **options))

    many = np.stack([Z, np.float32(0.5) * Z])
    actual = gradients_of(split, spmd_axis_name="data")(jax.device_put(many, NamedSharding(mesh, BY_ROW)))
    assert_same(actual, gradients_of(lambda z: jaxsoftmax.cross_entropy(z, LABELS, **options))(many))
    assert actual.sharding.spec[0] == "data"


def test_targets_that_do_not_vary() -> None:
    """A constant on every device, as the other side of a loss that has gradients by both."""
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    for function in (jaxsoftmax.soft_cross_entropy, jaxsoftmax.kl_divergence):

        def own(z: Any, function: Any = function) -> jax.Array:
            return function(z, jnp.full(z.shape, 1 / V), axis_name="model")

        split = jax.shard_map(own, mesh=mesh, in_specs=OF_KERNEL, out_specs=WHOLE)
        expected = jax.grad(lambda z, function=function: jnp.sum(function(z, jnp.full(z.shape, 1 / V))))(Z)
        assert_same(jax.jit(jax.grad(lambda z, split=split: jnp.sum(split(z))))(Z), expected)


def test_labels_beyond_all_classes() -> None:
    """NaN, in the value and the gradient of that row alone, as on one device."""
    split = OPERATIONS["cross_entropy"]
    labels = np.array([0, 16, 7, -1, 3, 100, 11, 12], np.int32)
    args = (Z, labels, T, CLASS_WEIGHTS)
    wrong = (labels < 0) | (labels >= V)
    value, (dlogits, *_) = jax.jit(lambda *a: gradients(over((2, 4), split), *a))(*args)
    np.testing.assert_array_equal(np.isnan(value), wrong)
    np.testing.assert_array_equal(np.isnan(dlogits).all(axis=1), wrong)
    np.testing.assert_array_equal(np.isnan(dlogits).any(axis=1), wrong)


def test_broken_and_absent_classes() -> None:
    """Inf, NaN and absent classes on one device only count for the whole row, and for no other."""
    logits = Z.copy()
    logits[0, 3], logits[1, 12], logits[2, :8], logits[3] = np.nan, np.inf, -np.inf, -np.inf
    split = OPERATIONS["cross_entropy"]
    plain = split._replace(
        function=lambda a, z, y: jaxsoftmax.cross_entropy(z, y, axis_name=a), args=(logits, LABELS), specs=_ROW
    )
    expected = jax.jit(lambda *a: gradients(alone(plain), *a))(*plain.args)
    actual = jax.jit(lambda *a: gradients(over((1, 8), plain), *a))(*plain.args)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=2e-5)


# Per row: the maximum, and the packed sum of target and rest.
NUMBERS = 3


@pytest.mark.parametrize("shape", [(1, 8), (2, 4)])
def test_messages_of_dense_logits(shape: tuple[int, int]) -> None:
    """Value and gradient exchange one maximum and one packed sum of two numbers per row, and nothing else."""
    plain = Split(lambda a, z, y: jaxsoftmax.cross_entropy(z, y, axis_name=a), (Z, LABELS), _ROW)
    text = jax.jit(lambda *a: gradients(over(shape, plain), *a)).lower(*plain.args).compile().as_text()
    assert message_bytes(text) == {"all-reduce": 4 * NUMBERS * N // shape[0]}


@pytest.mark.parametrize(
    ("check_vma", "rule"), [(False, "check_vma=True"), (True, "logits must be split over axis_name")]
)
def test_errors_in_shard_map(check_vma: bool, rule: str) -> None:
    """A gradient that would be ambiguous is refused, and so are logits that every device has whole."""
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec() if check_vma else PartitionSpec(None, "model")
    function = jax.shard_map(
        lambda z: jaxsoftmax.softmax(z, axis_name="model"),
        mesh=mesh,
        in_specs=spec,
        out_specs=spec,
        check_vma=check_vma,
    )
    with pytest.raises(ValueError, match=rule):
        function(Z)


def test_error_of_labels_that_differ() -> None:
    """Numbers per row are the same on all devices of a row."""
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))

    def own(z: Any) -> jax.Array:
        labels = jnp.full(N, lax.axis_index("model"))
        return jaxsoftmax.cross_entropy(z, labels, axis_name="model")

    with pytest.raises(ValueError, match="labels must be the same on all devices of axis_name"):
        jax.shard_map(own, mesh=mesh, in_specs=PartitionSpec(None, "model"), out_specs=PartitionSpec())(Z)


def test_error_of_vmap() -> None:
    """vmap with an axis name is no shard_map."""
    with pytest.raises(ValueError, match="check_vma=True"):
        jax.vmap(lambda z: jaxsoftmax.softmax(z, axis_name="model"), axis_name="model")(Z)
