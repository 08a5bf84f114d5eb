"""What the functions of calibration accept: a clear error where values can be seen, NaN where they cannot."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsoftmax import calibration
from jaxsoftmax.calibration import inputs
from tests.helpers import call

Z = np.float32([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0], [1.0, 1.0, 0.0]])
P = np.float32([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25], [0.0, 0.0, 1.0], [0.4, 0.4, 0.2]])
Y = np.int32([0, 1, 2, 0])

# Every metric of labels and logits or probabilities.
METRICS = {
    name: getattr(calibration, name)
    for name in (
        "brier_score",
        "calibration_summary",
        "expected_calibration_error",
        "negative_log_likelihood",
        "reliability_curve",
        "smooth_calibration_error",
        "smooth_reliability_curve",
    )
}


def spoiled(row, column, value, dtype=np.float32):
    """The probabilities with one entry replaced."""
    probs = P.astype(dtype)
    probs[row, column] = value
    return probs


# What replaces good arguments, the error, its rule, what it got, and whether it is static, so the same under jit.
BAD = [
    ({"probs": None}, TypeError, "exactly one of logits and probs must be given", "logits=None, probs=None", True),
    ({"logits": Z}, TypeError, "exactly one of logits and probs must be given", "logits=float32[4,3]", True),
    ({"probs": P.astype(np.int32)}, TypeError, "probs must have a floating dtype", "probs=int32[4,3]", True),
    ({"probs": P.tolist()}, TypeError, "probs must be an array", "probs=[[", True),
    ({"probs": P[:, :0]}, ValueError, "the class axis must not be empty", "axis=-1, probs=float32[4,0]", True),
    ({"probs": np.float32(1.0)}, ValueError, "axis must lie in", "axis=-1", True),
    ({"probs": P[:3]}, ValueError, "labels must have the shape of probs", "labels=int32[4], probs=float32[3,3]", True),
    ({"labels": Y.astype(np.float32)}, TypeError, "labels must be integers", "labels=float32[4]", True),
    ({"labels": Y[:, None]}, ValueError, "labels must have the shape of probs", "labels=int32[4,1]", True),
    ({"weights": np.ones(3)}, ValueError, "weights must have one number per row", "weights=", True),
    ({"weights": [1.0] * 4}, TypeError, "weights must be an array", "weights=[1.0", True),
    ({"labels": np.int32([0, 1, 3, 0])}, ValueError, "labels must lie in [0, 3)", "labels=3, row=2", False),
    ({"labels": np.int8([0, -1, 1, 0])}, ValueError, "labels must lie in [0, 3)", "labels=-1, row=1", False),
    ({"labels": np.uint32([0, 2**32 - 1, 1, 0])}, ValueError, "labels must lie in", "labels=4294967295, row=1", False),
    ({"probs": spoiled(1, 0, 1.5)}, ValueError, "probs must lie in [0, 1]; for unn", "probs=1.5, row=1", False),
    ({"probs": spoiled(2, 0, -0.5)}, ValueError, "probs must lie in [0, 1]", "probs=-0.5, row=2", False),
    ({"probs": spoiled(2, 0, np.nan)}, ValueError, "probs must lie in [0, 1]", "probs=nan, row=2", False),
    ({"probs": spoiled(1, 0, 0.75)}, ValueError, "probs must sum to 1 along the last axis", "sum=1.5, row=1", False),
    ({"probs": spoiled(1, 0, 0.252)}, ValueError, "unnormalized scores pass logits=", "sum=1.00", False),
    ({"probs": spoiled(1, 0, 0.3, jnp.bfloat16)}, ValueError, "probs must sum to 1", "sum=1.05", False),
    ({"weights": np.float32([1, -1, 1, 1])}, ValueError, "weights must be finite and 0 or more", "-1.0, row=1", False),
    ({"weights": np.float32([1, 1, np.inf, 1])}, ValueError, "weights must be finite", "weights=inf, row=2", False),
]


# One compiled program for each shape and dtype.
TRACED = {name: jax.jit(metric) for name, metric in METRICS.items()}
ONES = np.ones(4, np.float32)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(("bad", "kind", "rule", "got", "static"), BAD, ids=lambda v: str(v)[:24])
def test_message(name, bad, kind, rule, got, static):
    """Error, rule and value in the function's name; under jit the same, or NaN in the place of a value never seen."""
    arguments = {"labels": Y, "probs": P} | bad
    with pytest.raises(kind) as eager:
        METRICS[name](**arguments)
    pattern = rf"jaxsoftmax\.calibration\.{name}: .*{re.escape(rule)}.*; got .*{re.escape(got)}"
    assert re.match(pattern, str(eager.value)), str(eager.value)
    if static:
        with pytest.raises(kind) as traced:
            call(METRICS[name], arguments, jit=True)
        assert str(traced.value) == str(eager.value)
    elif not np.isinf(arguments.get("weights", 0.0)).any() and (name == "brier_score" or common(bad)):
        leaves = jax.tree.leaves(TRACED[name](**{"weights": ONES} | arguments))
        assert all(np.all(np.isnan(leaf)) for leaf in leaves)


def common(arrays):
    """Of 32 bits and signed: other dtypes are other programs, and those of one metric will do."""
    return all(array.dtype in (np.int32, np.float32) for array in arrays.values())


@pytest.mark.parametrize("name", METRICS)
def test_a_value_that_can_be_seen_is_refused_while_others_are_traced(name):
    with pytest.raises(ValueError, match="labels must lie in"):
        jax.jit(lambda p: METRICS[name](np.int32([0, 1, 3, 0]), probs=p))(P)
    with pytest.raises(ValueError, match="probs must sum to 1"):
        jax.jit(lambda y: METRICS[name](y, probs=P / 2))(Y)
    with pytest.raises(ValueError, match="weights must be finite"):
        jax.jit(lambda p: METRICS[name](Y, probs=p, weights=np.float32([1, 1, 1, -1])))(P)


@pytest.mark.parametrize("owner", ["logits", "probs"])
@pytest.mark.parametrize("name", METRICS)
def test_rows_of_weight_0_are_exempt(name, owner):
    """Padding of any content changes neither value nor gradient, and gets gradient 0.

    What it is compared with has the same shape, each good row twice at half its weight.
    """
    good = {"logits": Z, "probs": P}[owner]
    pads = np.float32([[0, 0, 0], [np.nan, 1, 2], [np.inf, 7, 0], [-5, -5, -5]])
    padded = np.concatenate([good[:2], pads, good[2:]]), np.concatenate([Y[:2], np.int32([0, -100, 3, 7]), Y[2:]])
    weights = np.float32([1, 2, 0, 0, 0, 0, 1, 3])
    kept = weights > 0
    twice = np.tile(good, (2, 1)), np.tile(Y, 2), np.tile(weights[kept] / 2, 2)

    def total(scores, labels, weights):
        leaves = jax.tree.leaves(METRICS[name](labels, **{owner: scores}, weights=weights))
        return sum(
            jnp.sum(leaf * jnp.cos(i + jnp.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape)))
            for i, leaf in enumerate(leaves)
        )

    both = jax.jit(jax.value_and_grad(total))
    value, gradient = both(*padded, weights)
    expected, by_twice = both(*twice)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient[kept], by_twice[:4] + by_twice[4:], rtol=1e-4, atol=1e-6)
    assert np.all(gradient[~kept] == 0)
    assert np.any(gradient != 0)
    np.testing.assert_allclose(total(*padded, weights), value, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", METRICS)
def test_logits_that_are_no_numbers_make_nan(name, bad):
    logits = Z.copy()
    logits[1, 2] = bad
    metric, traced = METRICS[name], TRACED[name]
    for result in (metric(Y, logits=logits), traced(Y, logits=logits), traced(Y, logits=logits, weights=ONES)):
        assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(result))


@pytest.mark.parametrize("name", METRICS)
def test_rounding_of_probabilities_is_accepted(name):
    """1.0000002 and a sum that is off by as little; in bfloat16, the roundings of bfloat16."""
    probs = np.float32([[1.0000002, 0.0, 0.0], [-1e-8, 0.5, 0.5000002]])
    half = np.random.default_rng(0).dirichlet(np.ones(3), 50).astype(jnp.bfloat16)
    for labels, p in ((np.int32([0, 1]), probs), (np.zeros(50, np.int32), half)):
        result = METRICS[name](labels, probs=p)
        assert all(np.all(np.isfinite(leaf)) and leaf.dtype == np.float32 for leaf in jax.tree.leaves(result))


@pytest.mark.parametrize("name", METRICS)
def test_batches_of_any_shape_are_rows(name):
    flat = METRICS[name](Y, probs=P, weights=np.int32([1, 2, 3, 0]))
    square = METRICS[name](Y.reshape(2, 2), probs=P.reshape(2, 2, 3), weights=np.int32([[1, 2], [3, 0]]))
    one = METRICS[name](Y[1], probs=P[1])
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(flat), jax.tree.leaves(square), strict=True))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(METRICS[name](Y[1:2], probs=P[1:2])), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", [bool, np.int8, np.int32, np.float32, jnp.bfloat16])
def test_weights_of_every_dtype(kind):
    weights = np.array([1, 0, 1, 1]).astype(kind)
    got = inputs.row_weights("calibration.f", weights, jnp.asarray(Y), jnp.float32)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, [1, 0, 1, 1])


def test_checks_say_which_rows_are_broken_when_traced():
    """The two helpers by themselves: one flag a row, for functions of a result per row."""
    labels, probs, weights = np.int32([0, 5, -1, 9]), spoiled(1, 0, 2.0), np.float32([1, 1, 1, 0])
    check = jax.jit(lambda y, w: inputs.check_labels("calibration.f", y, 3, w))
    np.testing.assert_array_equal(check(labels, weights), [False, True, True, False])
    np.testing.assert_array_equal(check(labels, np.ones(4, np.float32)), [False, True, True, True])
    check_probs = jax.jit(lambda p: inputs.check_probs("calibration.f", p))
    np.testing.assert_array_equal(check_probs(probs), [False, True, False, False])
    np.testing.assert_array_equal(inputs.check_labels("calibration.f", Y, 3), [False] * 4)


def test_poisoned():
    """NaN in value and gradient, integers and booleans as they were; nothing changes where nothing is broken."""
    tree = {"a": jnp.ones(3), "b": jnp.arange(2)}
    good, bad = jnp.zeros(4, bool), jnp.array([False, True])
    same = inputs.poisoned(tree, good)
    np.testing.assert_array_equal(same["a"], tree["a"])
    spoiled_tree = inputs.poisoned(tree, good, bad)
    assert np.all(np.isnan(spoiled_tree["a"]))
    np.testing.assert_array_equal(spoiled_tree["b"], tree["b"])
    assert np.isnan(jax.grad(lambda x: inputs.poisoned(x * x, bad))(2.0))
    assert jax.grad(lambda x: inputs.poisoned(x * x, good))(2.0) == 4.0


def test_poisoned_booleans_of_one_row():
    """The compiler takes the product of 0 or 1, converted from a boolean, and NaN for a selection: 0 would stay."""
    summary = jax.jit(calibration.calibration_summary)(np.int32([9]), probs=P[:1])
    assert np.isnan(summary.accuracy)


def test_a_row_without_any_class_is_wrong():
    """Every logit -inf: confidence 0, and never right, whatever the label; nothing is predicted."""
    rows = inputs.rows_of("calibration.f", np.int32([0]), np.full((1, 3), -np.inf, np.float32), None, None)
    np.testing.assert_array_equal(inputs.events(rows, False), np.zeros((2, 1, 1)))
    logits = np.concatenate([Z[:3], np.full((1, 3), -np.inf, np.float32)])
    summary = calibration.calibration_summary(np.zeros(4, np.int32), logits=logits)
    np.testing.assert_array_equal(summary.predicted, [1, 1, 1])
    np.testing.assert_array_equal(summary.precision, [1, 0, 0])
