"""What a caller is told: every error names the function, the rule and what was given, eagerly and under jit alike."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoftmax
from jaxsoftmax import objectives

Z = np.ones((2, 3), np.float32)
Y = np.zeros(2, np.int32)
KEY = jax.random.key(0)
INTEGERS = np.ones((2, 3), np.int32)
COMPLEX = np.ones((2, 3), np.complex64)
FLOAT_LABELS = np.zeros(2, np.float32)
EMPTY = np.ones((2, 0), np.float32)


def ones(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    """An array of a shape that does not fit."""
    return np.ones(shape, dtype)


# The good arguments of every function, by name: those by position first.
GOOD: dict[str, dict[str, Any]] = {
    "softmax": {"logits": Z},
    "log_softmax": {"logits": Z},
    "logsumexp": {"logits": Z},
    "smooth_max": {"logits": Z},
    "gumbel_softmax": {"key": KEY, "logits": Z},
    "straight_through": {"hard": Z, "soft": Z},
    "row_statistics": {"logits": Z, "labels": Y},
    "cross_entropy": {"logits": Z, "labels": Y},
    "focal_loss": {"logits": Z, "labels": Y},
    "poly_loss": {"logits": Z, "labels": Y},
    "hinge_loss": {"logits": Z, "labels": Y},
    "soft_cross_entropy": {"logits": Z, "targets": Z},
    "kl_divergence": {"logits": Z, "target_logits": Z},
    "entropy": {"logits": Z},
    "binary_cross_entropy": {"logits": Z, "labels": Z},
    "sigmoid_focal_loss": {"logits": Z, "labels": Z},
    "smooth_labels": {"targets": Z, "label_smoothing": 0.1},
    "weighted_mean": {"values": Z},
}
KERNEL = np.ones((3, 5), np.float32)
GOOD |= {
    "linear_statistics": {"features": Z, "kernel": KERNEL, "labels": Y},
    "linear_loss": {"objective": objectives.focal, "features": Z, "kernel": KERNEL, "labels": Y},
    "linear_cross_entropy": {"features": Z, "kernel": KERNEL, "labels": Y},
    "linear_log_probs": {"features": Z, "kernel": KERNEL, "labels": Y},
    "linear_entropy": {"features": Z, "kernel": KERNEL},
    "linear_kl_divergence": {
        "student_features": Z,
        "student_kernel": KERNEL,
        "teacher_features": ones(2, 4),
        "teacher_kernel": ones(4, 5),
    },
    "linear_top_k": {"features": Z, "kernel": KERNEL, "k": 2},
    "linear_accuracy": {"features": Z, "kernel": KERNEL, "labels": Y},
}
STATISTICS = jax.tree.map(np.asarray, jaxsoftmax.row_statistics(Z, Y))
GOOD |= {f"objectives.{name}": {"statistics": STATISTICS} for name in objectives.__all__}

NORMALIZERS = ("softmax", "log_softmax", "logsumexp", "smooth_max")
LABELLED = ("row_statistics", "cross_entropy", "focal_loss", "poly_loss", "hinge_loss")
CAPPED = ("row_statistics", "cross_entropy", "focal_loss", "poly_loss", "soft_cross_entropy")
TEMPERED = (*NORMALIZERS, "gumbel_softmax", *CAPPED, "kl_divergence", "entropy")
PAIRED = ("soft_cross_entropy", "kl_divergence")
BINARY = ("binary_cross_entropy", "sigmoid_focal_loss")
OF_LOGITS = (*NORMALIZERS, "gumbel_softmax", *LABELLED, *PAIRED, "entropy", *BINARY)
ONE_AXIS = (*LABELLED, "gumbel_softmax", *PAIRED, "entropy", "smooth_labels")
MASKED = (*OF_LOGITS, "smooth_labels")
LINEAR_LOSSES = ("linear_loss", "linear_cross_entropy")
LINEAR_LABELLED = ("linear_statistics", *LINEAR_LOSSES, "linear_log_probs", "linear_accuracy")
LINEAR_PLAIN = (*LINEAR_LABELLED, "linear_entropy", "linear_top_k")
LINEAR = (*LINEAR_PLAIN, "linear_kl_divergence")
LINEAR_TEMPERED = ("linear_statistics", *LINEAR_LOSSES, "linear_log_probs", "linear_entropy", "linear_kl_divergence")
REDUCED = (*LINEAR_LOSSES, "linear_kl_divergence")
OVER_A_MESH = (*NORMALIZERS, *LABELLED, *PAIRED, "entropy", *LINEAR, "weighted_mean")
NO_FUNCTIONS = ("RowStatistics", "TopClasses", "calibration", "forward_mode", "objectives")
# Functions that make functions: test_sharding.py.
MAKERS = ("sharded_linear_loss", "sharded_linear_statistics")


def _total(statistics: Any) -> jax.Array:
    """No loss per row."""
    return jnp.sum(statistics.target)


MEANS = ("weighted_mean", *REDUCED, "linear_accuracy")


class Bad(NamedTuple):
    """The functions; what replaces a good argument, the first of which is to blame; the error and its rule."""

    functions: tuple[str, ...]
    arguments: dict[str, Any]
    kind: type[Exception]
    rule: str


TABLE = [
    # dtypes
    Bad(OF_LOGITS, {"logits": INTEGERS}, TypeError, "logits must have a floating dtype"),
    Bad(OF_LOGITS, {"logits": Z > 0}, TypeError, "logits must have a floating dtype"),
    Bad(OF_LOGITS, {"logits": Z.astype(np.complex64)}, TypeError, "logits must have a floating dtype"),
    Bad(LABELLED, {"labels": FLOAT_LABELS}, TypeError, "labels must be integers"),
    Bad(LABELLED, {"labels": Y > 0}, TypeError, "labels must be integers"),
    Bad(BINARY, {"labels": KEY}, TypeError, "labels must be numbers"),
    Bad(MASKED, {"where": INTEGERS}, TypeError, "where must be boolean"),
    Bad((*TEMPERED, *LINEAR_TEMPERED), {"temperature": Y > 0}, TypeError, "temperature must be numbers, not booleans"),
    Bad(("soft_cross_entropy",), {"targets": INTEGERS}, TypeError, "targets must have a floating dtype"),
    Bad(("kl_divergence",), {"target_logits": INTEGERS}, TypeError, "target_logits must have a floating dtype"),
    Bad(("kl_divergence",), {"target_logits": Z.astype(np.float16)}, TypeError, "must have the same dtype"),
    Bad(("logsumexp",), {"weights": INTEGERS}, TypeError, "weights must have a floating dtype"),
    Bad(
        ("cross_entropy",), {"class_weights": ones(3, dtype=np.int32)}, TypeError, "class_weights must have a floating"
    ),
    Bad(("straight_through",), {"soft": INTEGERS}, TypeError, "soft must have a floating dtype"),
    Bad(("smooth_labels",), {"targets": INTEGERS}, TypeError, "targets must have a floating dtype"),
    Bad(("weighted_mean",), {"values": COMPLEX}, TypeError, "values must be numbers"),
    # lists hide their dtype
    Bad(OF_LOGITS, {"logits": [[1.0, 2.0, 3.0]]}, TypeError, "logits must be an array"),
    Bad((*LABELLED, *BINARY), {"labels": [0, 0]}, TypeError, "labels must be an array"),
    Bad(MASKED, {"where": [True, True, False]}, TypeError, "where must be an array"),
    Bad(TEMPERED, {"temperature": [1.0, 2.0]}, TypeError, "temperature must be an array"),
    Bad(("cross_entropy",), {"class_weights": [1.0, 1.0, 1.0]}, TypeError, "class_weights must be an array"),
    Bad(("soft_cross_entropy",), {"targets": [[1.0, 2.0, 3.0]]}, TypeError, "targets must be an array"),
    Bad(("weighted_mean",), {"values": [1.0]}, TypeError, "values must be an array"),
    Bad(("weighted_mean",), {"weights": [1.0]}, TypeError, "weights must be an array"),
    # shapes
    Bad(LABELLED, {"labels": ones(5, 1, 3, dtype=np.int32)}, ValueError, "labels must have the shape of logits"),
    Bad(LABELLED, {"labels": ones(2, 1, dtype=np.int32)}, ValueError, "labels must have the shape of logits"),
    Bad(LABELLED, {"labels": np.int32(0)}, ValueError, "labels must have the shape of logits"),
    Bad(BINARY, {"labels": Y}, ValueError, "logits and labels must have the same shape"),
    Bad(MASKED, {"where": ones(2, dtype=bool)}, ValueError, "where must have the shape of logits"),
    Bad(MASKED, {"where": ones(2, 1, dtype=bool)}, ValueError, "where must have the shape of logits"),
    Bad(TEMPERED, {"temperature": ones(3)}, ValueError, "temperature must be a scalar or have one number per row"),
    Bad(TEMPERED, {"temperature": ones(2, 3)}, ValueError, "temperature must be a scalar or have one number per row"),
    Bad(("logsumexp",), {"weights": ones(2)}, ValueError, "weights must have the shape of logits"),
    Bad(("cross_entropy",), {"class_weights": ones(2)}, ValueError, "class_weights must have shape [V]"),
    Bad(("cross_entropy",), {"class_weights": ones(2, 3)}, ValueError, "class_weights must have shape [V]"),
    Bad(("cross_entropy",), {"label_smoothing": ones(5)}, ValueError, "label_smoothing must"),
    Bad(("cross_entropy",), {"z_loss": ones(5)}, ValueError, "z_loss must"),
    Bad(("focal_loss",), {"alpha": ones(2)}, ValueError, "alpha must have shape [V]"),
    Bad(("focal_loss", "sigmoid_focal_loss"), {"gamma": ones(2)}, ValueError, "gamma must be a scalar"),
    Bad(("sigmoid_focal_loss",), {"alpha": ones(3)}, ValueError, "alpha must be a scalar"),
    Bad(("poly_loss",), {"epsilon": ones(2)}, ValueError, "epsilon must be a scalar"),
    Bad(("hinge_loss",), {"margin": ones(2)}, ValueError, "margin must be a scalar"),
    Bad(("binary_cross_entropy",), {"positive_weight": ones(2)}, ValueError, "positive_weight must have shape [V]"),
    Bad(("smooth_labels",), {"label_smoothing": ones(2)}, ValueError, "label_smoothing must be a scalar"),
    Bad(("soft_cross_entropy",), {"targets": ones(2, 4)}, ValueError, "logits and targets must have the same shape"),
    Bad(("soft_cross_entropy",), {"targets": ones(3)}, ValueError, "logits and targets must have the same shape"),
    Bad(("kl_divergence",), {"target_logits": ones(1, 3)}, ValueError, "must have the same shape"),
    Bad(("straight_through",), {"hard": ones(3)}, ValueError, "hard and soft must have the same shape"),
    Bad(("weighted_mean",), {"weights": ones(2)}, ValueError, "values and weights must have the same shape"),
    Bad(("objectives.focal",), {"gamma": ones(5)}, ValueError, "gamma must"),
    Bad(("objectives.poly",), {"epsilon": ones(5)}, ValueError, "epsilon must"),
    # the class axis
    Bad((*NORMALIZERS, *ONE_AXIS), {"axis": 2}, ValueError, "axis must lie in [-2, 2)"),
    Bad((*NORMALIZERS, *ONE_AXIS), {"axis": -3}, ValueError, "axis must lie in [-2, 2)"),
    Bad((*NORMALIZERS, *ONE_AXIS), {"axis": 0.5}, TypeError, "axis must be an integer"),
    Bad((*NORMALIZERS, *ONE_AXIS), {"axis": "last"}, TypeError, "axis must be an integer"),
    Bad((*NORMALIZERS, *ONE_AXIS), {"axis": True}, TypeError, "axis must be an integer"),
    Bad((*NORMALIZERS, *ONE_AXIS), {"axis": [0]}, TypeError, "axis must be an integer"),
    Bad(ONE_AXIS, {"axis": (0, 1)}, TypeError, "axis must be an integer"),
    Bad(ONE_AXIS, {"axis": None}, TypeError, "axis must be an integer"),
    Bad(NORMALIZERS, {"axis": (0, -2)}, ValueError, "axis must not name an axis twice"),
    Bad(NORMALIZERS, {"axis": ()}, ValueError, "must have a class axis"),
    Bad((*NORMALIZERS, "gumbel_softmax", *LABELLED, "entropy"), {"logits": EMPTY}, ValueError, "must not be empty"),
    Bad(("soft_cross_entropy",), {"logits": EMPTY, "targets": EMPTY}, ValueError, "must not be empty"),
    Bad(("kl_divergence",), {"logits": EMPTY, "target_logits": EMPTY}, ValueError, "must not be empty"),
    Bad(("smooth_labels",), {"targets": EMPTY}, ValueError, "must not be empty"),
    Bad((*LABELLED, "softmax", "entropy"), {"logits": np.float32(1.0)}, ValueError, "axis must lie in [0, 0)"),
    # features and kernels
    Bad(LINEAR_PLAIN, {"features": INTEGERS}, TypeError, "features must have a floating dtype"),
    Bad(LINEAR_PLAIN, {"features": [[1.0, 2.0, 3.0]]}, TypeError, "features must be an array"),
    Bad(LINEAR_PLAIN, {"kernel": ones(3, 5, dtype=np.int32)}, TypeError, "kernel must have a floating dtype"),
    Bad(LINEAR_PLAIN, {"kernel": ones(4, 5)}, ValueError, "kernel must have shape [D, V] where features has [..., D]"),
    Bad(LINEAR_PLAIN, {"kernel": ones(5, 3)}, ValueError, "it looks transposed, pass kernel.T"),
    Bad(LINEAR_PLAIN, {"kernel": ones(3)}, ValueError, "features must have shape [..., D] and kernel [D, V]"),
    Bad(LINEAR_PLAIN, {"kernel": ones(3, 0)}, ValueError, "the class axis must not be empty"),
    Bad(LINEAR_PLAIN, {"bias": ones(3)}, ValueError, "bias must have shape [V]"),
    Bad(LINEAR_LABELLED, {"labels": FLOAT_LABELS}, TypeError, "labels must be integers"),
    Bad(LINEAR_LABELLED, {"labels": ones(2, 1, dtype=np.int32)}, ValueError, "labels must have the shape of features"),
    Bad(LINEAR, {"where": ones(5)}, TypeError, "where must be boolean"),
    Bad(LINEAR, {"where": ones(2, 5, dtype=bool)}, ValueError, "where must have shape [V]"),
    Bad(LINEAR, {"block_size": 0}, ValueError, "block_size must be 1 or more"),
    Bad(LINEAR, {"block_size": 2.5}, TypeError, "block_size must be an integer"),
    Bad(LINEAR_TEMPERED, {"temperature": -1.0}, ValueError, "temperature must be 0 or more"),
    Bad(LINEAR_TEMPERED, {"temperature": ones(3)}, ValueError, "temperature must be a scalar or have one number per"),
    Bad(LINEAR_LABELLED, {"ignore_label": 1.5}, TypeError, "ignore_label must be an integer"),
    Bad(("linear_statistics", "linear_entropy"), {"logit_cap": 0}, ValueError, "logit_cap must be a finite number"),
    Bad((*REDUCED, "linear_accuracy"), {"weights": ones(3)}, ValueError, "weights must have one number per row"),
    Bad(REDUCED, {"reduction": "average"}, ValueError, "reduction must be one of 'mean'"),
    Bad(("linear_loss",), {"objective": 1.0}, TypeError, "objective must be a function of RowStatistics"),
    Bad(("linear_loss",), {"objective": _total}, ValueError, "objective must return one loss per row"),
    Bad(("linear_cross_entropy",), {"label_smoothing": 1.5}, ValueError, "label_smoothing must be between"),
    Bad(("linear_cross_entropy",), {"smoothing": "torch"}, ValueError, "smoothing must be one of 'uniform'"),
    Bad(("linear_cross_entropy",), {"z_loss": -1.0}, ValueError, "z_loss must be 0 or more"),
    Bad(("linear_top_k", "linear_accuracy"), {"k": 6}, ValueError, "k must lie in [1, 5], the number of classes"),
    Bad(("linear_top_k", "linear_accuracy"), {"k": 1.0}, TypeError, "k must be an integer"),
    Bad(("linear_kl_divergence",), {"student_kernel": ones(5, 3)}, ValueError, "pass student_kernel.T"),
    Bad(
        ("linear_kl_divergence",), {"teacher_features": ones(2, 3)}, ValueError, "teacher_kernel must have shape [D, V]"
    ),
    Bad(
        ("linear_kl_divergence",), {"teacher_features": ones(3, 4)}, ValueError, "must have the same rows and the same"
    ),
    Bad(("linear_kl_divergence",), {"teacher_features": ones(2, 4, dtype=np.float16)}, TypeError, "the same dtype"),
    # options
    Bad(TEMPERED, {"temperature": -1.0}, ValueError, "temperature must be 0 or more"),
    Bad(TEMPERED, {"temperature": float("nan")}, ValueError, "temperature must be 0 or more"),
    Bad(("cross_entropy", "smooth_labels"), {"label_smoothing": 1.5}, ValueError, "label_smoothing must be between"),
    Bad(("cross_entropy", "smooth_labels"), {"label_smoothing": -0.1}, ValueError, "label_smoothing must be between"),
    Bad(("cross_entropy", "smooth_labels"), {"smoothing": "torch"}, ValueError, "smoothing must be one of 'uniform'"),
    Bad(("cross_entropy",), {"z_loss": -1.0}, ValueError, "z_loss must be 0 or more"),
    Bad(("focal_loss", "sigmoid_focal_loss"), {"gamma": -1}, ValueError, "gamma must be 0 or more"),
    Bad(("focal_loss",), {"alpha": -1}, ValueError, "alpha must be 0 or more"),
    Bad(("sigmoid_focal_loss",), {"alpha": 1.5}, ValueError, "alpha must be between 0 and 1"),
    Bad(("poly_loss",), {"epsilon": -2}, ValueError, "epsilon must be -1 or more"),
    Bad(("binary_cross_entropy",), {"positive_weight": -1.0}, ValueError, "positive_weight must be 0 or more"),
    Bad(("hinge_loss",), {"variant": "vapnik"}, ValueError, "variant must be one of 'crammer_singer'"),
    Bad(("gumbel_softmax",), {"key": 7}, TypeError, "key must be a key of jax.random"),
    Bad(("gumbel_softmax",), {"key": np.zeros(2, np.int32)}, TypeError, "key must be a key of jax.random"),
    Bad(("gumbel_softmax",), {"key": np.zeros(3, np.uint32)}, TypeError, "key must be a key of jax.random"),
    Bad(("gumbel_softmax",), {"key": jax.random.split(KEY)}, ValueError, "key must be one key, not an array of them"),
    Bad(("gumbel_softmax",), {"hard": 1}, TypeError, "hard must be True or False"),
    Bad(CAPPED, {"logit_cap": 0}, ValueError, "logit_cap must be a finite number above 0"),
    Bad(CAPPED, {"logit_cap": float("inf")}, ValueError, "logit_cap must be a finite number above 0"),
    Bad(CAPPED, {"logit_cap": ones()}, ValueError, "logit_cap must be a finite number above 0, not an array"),
    Bad(LABELLED, {"ignore_label": 1.5}, TypeError, "ignore_label must be an integer"),
    Bad(LABELLED, {"ignore_label": True}, TypeError, "ignore_label must be an integer"),
    Bad(LABELLED, {"ignore_label": Y}, TypeError, "ignore_label must be an integer"),
    Bad((*LABELLED, *LINEAR_LABELLED), {"ignore_label": 2**31}, ValueError, "ignore_label must be of 32 bits"),
    Bad(OVER_A_MESH, {"axis_name": 3}, TypeError, "axis_name must be a string or a tuple of different ones"),
    Bad(OVER_A_MESH, {"axis_name": ("a", "a")}, TypeError, "axis_name must be a string or a tuple of different ones"),
    Bad(OVER_A_MESH, {"axis_name": ["a"]}, TypeError, "axis_name must be a string or a tuple of different ones"),
    Bad(OVER_A_MESH, {"axis_name": "a"}, ValueError, "axis_name must name an axis of a mesh inside of jax.shard_map"),
    Bad(LINEAR, {"num_classes": 6}, ValueError, "num_classes must be at most 5"),
    Bad(LINEAR, {"num_classes": 0}, ValueError, "num_classes must be 1 or more"),
    Bad(LINEAR, {"num_classes": 2.5}, TypeError, "num_classes must be an integer"),
    Bad(("entropy",), {"base": 1}, ValueError, "base must not be 1"),
    Bad(("entropy",), {"base": -2.0}, ValueError, "base must be a finite number above 0"),
    Bad(("objectives.cross_entropy",), {"label_smoothing": 1.5}, ValueError, "label_smoothing must be between 0 and 1"),
    Bad(("objectives.cross_entropy",), {"smoothing": "torch"}, ValueError, "smoothing must be one of 'uniform'"),
    Bad(("objectives.cross_entropy",), {"z_loss": -1}, ValueError, "z_loss must be 0 or more"),
    Bad(("objectives.focal",), {"gamma": -1}, ValueError, "gamma must be 0 or more"),
    Bad(("objectives.poly",), {"epsilon": -2}, ValueError, "epsilon must be -1 or more"),
    Bad(("objectives.angular_margin",), {"margin": 4}, ValueError, "margin must be between 0 and 3.14"),
    Bad(("objectives.angular_margin",), {"scale": -1}, ValueError, "scale must be 0 or more"),
]


def function(name: str) -> Callable[..., Any]:
    """By its public path."""
    return getattr(objectives if name.startswith("objectives.") else jaxsoftmax, name.rpartition(".")[2])


def is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic | jax.Array | jaxsoftmax.RowStatistics)


def call(name: str, arguments: dict[str, Any], *, jit: bool) -> Any:
    """The function at the arguments; under jit with every array traced."""
    if not jit:
        return function(name)(**arguments)
    fixed = {key: value for key, value in arguments.items() if not is_array(value)}
    traced = {key: value for key, value in arguments.items() if is_array(value)}
    return jax.jit(lambda arrays: function(name)(**arrays, **fixed))(traced)


def cases() -> list[Any]:
    """One for every function of every row of the table."""
    return [
        pytest.param(name, bad, id=f"{name}-{number}-{'-'.join(bad.arguments)}")
        for number, bad in enumerate(TABLE)
        for name in bad.functions
    ]


@pytest.mark.parametrize(("name", "bad"), cases())
def test_message(name: str, bad: Bad) -> None:
    """The documented error, in the name of the function, with the rule and the argument to blame."""
    arguments = GOOD[name] | bad.arguments
    with pytest.raises((TypeError, ValueError)) as eager:
        call(name, arguments, jit=False)
    assert eager.type is bad.kind
    message = str(eager.value)
    first = next(iter(bad.arguments))
    rule = bad.rule if name != "smooth_labels" else bad.rule.replace("logits", "targets")
    assert re.match(rf"jaxsoftmax\.{re.escape(name)}: .*{re.escape(rule)}.*; got (.*, )?{first}=", message), message
    if not (isinstance(bad.arguments[first], np.ndarray) and first in ("logit_cap", "ignore_label")):
        with pytest.raises(bad.kind) as traced:
            call(name, arguments, jit=True)
        assert str(traced.value) == message


def test_numbers_of_numpy_and_booleans_are_told_apart() -> None:
    """An axis is the same as numpy has it, also where the other is compiled already; True is no axis for being 1."""
    for axis in (1, np.int64(1), np.int8(-1)):
        np.testing.assert_array_equal(jaxsoftmax.cross_entropy(Z, Y, axis=axis), jaxsoftmax.cross_entropy(Z, Y))
    for axis in (True, (0, 1), (np.int64(0), True)):
        with pytest.raises(TypeError, match=r"jaxsoftmax\.cross_entropy: axis must be an integer"):
            jaxsoftmax.cross_entropy(Z, Y, axis=axis)
    both: Any = (np.int64(0), 1)
    np.testing.assert_array_equal(jaxsoftmax.logsumexp(Z, axis=both), jaxsoftmax.logsumexp(Z, axis=(0, 1)))


@pytest.mark.parametrize("temperature", [2, np.int64(2), np.int32([2, 2]), jnp.array(2)])
def test_a_temperature_may_be_an_integer(temperature: Any) -> None:
    """For dense and streamed heads alike."""
    dense = jaxsoftmax.cross_entropy(Z @ KERNEL * np.arange(5, dtype=np.float32), Y, temperature=temperature)
    streamed = jaxsoftmax.linear_log_probs(Z, KERNEL * np.arange(5, dtype=np.float32), Y, temperature=temperature)
    expected = np.log(np.sum(np.exp(1.5 * np.arange(5.0))))
    for loss in (dense, -streamed):
        np.testing.assert_allclose(loss, [expected] * 2, rtol=1e-6)


def test_a_list_is_shown_by_what_it_holds() -> None:
    """Under jit its elements are tracers, whose names say nothing."""
    with pytest.raises(TypeError, match=r"labels must be an array; got labels=\[int32\[\], \.\.\.\]"):
        jaxsoftmax.cross_entropy(Z, [0, 0])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", GOOD)
def test_good_arguments(name: str) -> None:
    """The arguments that the table spoils are right."""
    jax.eval_shape(lambda: call(name, GOOD[name], jit=True))


def test_every_function_is_in_the_table() -> None:
    """A new function needs rows."""
    public = {n for n in jaxsoftmax.__all__ if n not in (*NO_FUNCTIONS, *MAKERS)}
    assert public | {f"objectives.{n}" for n in objectives.__all__} == set(GOOD)
    without_rules = {"objectives.z_loss", "objectives.additive_margin"}
    assert {name for bad in TABLE for name in bad.functions} == set(GOOD) - without_rules


@pytest.mark.parametrize("name", GOOD)
def test_empty_batch(name: str) -> None:
    """No rows are no error: an empty result, empty gradients, and 0 for a mean."""
    arguments = {
        key: value if key.endswith("kernel") else jax.tree.map(lambda x: x[:0] if getattr(x, "ndim", 0) else x, value)
        for key, value in GOOD[name].items()
    }
    floats = {k: v for k, v in arguments.items() if k != "key" and is_array(v) and k != "labels"}
    rest = {k: v for k, v in arguments.items() if k not in floats}

    def total(some: dict[str, Any]) -> Any:
        out = function(name)(**some, **rest)
        return sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(out)), out

    (value, out), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(floats)
    assert value == 0
    assert all(leaf.size == 0 for leaf in jax.tree.leaves(out)) or name in MEANS
    assert jax.tree.map(np.shape, gradients) == jax.tree.map(np.shape, floats)
