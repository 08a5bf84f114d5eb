"""The streamed head against the dense path on the same numbers: values, all gradients, blocks, options, dtypes."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

import jaxsoftmax
from jaxsoftmax import objectives
from jaxsoftmax._core import streams
from tests.helpers import SCALES
from tests.linear_cases import (
    BLOCKS,
    IGNORED,
    OBJECTIVES,
    D,
    N,
    V,
    arguments,
    assert_close,
    compiled,
    dense,
    gradients,
    reduce,
    streamed,
    without_weight_gradients,
)
from tests.stepwise import stepwise


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_equal_the_dense_path(name, reduction):
    """Every objective, in value and in all gradients, at four scales of the logits."""
    program = compiled(functools.partial(streamed, OBJECTIVES[name], reduction, 7))
    for scale in SCALES:
        *floats, labels = arguments(scale)
        expected, slopes = gradients(functools.partial(dense, OBJECTIVES[name], reduction), floats, labels)
        actual, ours = program(floats, labels)
        assert_close(actual, expected)
        assert_close(
            without_weight_gradients(ours, labels, floats[-1]),
            without_weight_gradients(slopes, labels, floats[-1]),
            2e-5,
        )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_blocks_of_any_size(reduction):
    """The size of a block changes nothing but the rounding of sums."""
    *floats, labels = arguments(5.0)
    objective = OBJECTIVES["smoothed"]
    expected = gradients(functools.partial(dense, objective, reduction), floats, labels)[0]
    slopes = gradients(functools.partial(streamed, objective, reduction, N), floats, labels)[1]
    for block in BLOCKS:
        value, ours = gradients(functools.partial(streamed, objective, reduction, block), floats, labels)
        assert_close(value, expected)
        assert_close(ours, slopes)


OPTIONS = {
    "nothing": {},
    "label_smoothing": {"label_smoothing": 0.1},
    "others": {"label_smoothing": 0.1, "smoothing": "others"},
    "z_loss": {"z_loss": 1e-2},
    "logit_cap": {"logit_cap": 3.0},
    "where": {"where": True},
    "all": {"label_smoothing": 0.1, "z_loss": 1e-2, "logit_cap": 3.0, "where": True},
}


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_cross_entropy(name, reduction):
    """Each alone and all together, beside `cross_entropy` on the logits."""
    *floats, labels = arguments(5.0)
    options = dict(OPTIONS[name])
    if options.pop("where", False):
        mask = np.random.default_rng(5).uniform(size=V) < 0.8
        mask[labels[labels >= 0]] = True
        options["where"] = mask

    def expected(features, kernel, bias, temperature, weights, labels):
        logits = features @ kernel + bias[None]
        losses = jaxsoftmax.cross_entropy(logits, labels, temperature=temperature, ignore_label=IGNORED, **options)
        return reduce(losses, jnp.where(labels == IGNORED, 0.0, weights), reduction)

    def actual(features, kernel, bias, temperature, weights, labels):
        return jaxsoftmax.linear_cross_entropy(
            features,
            kernel,
            labels,
            bias=bias,
            temperature=temperature,
            weights=weights,
            reduction=reduction,
            ignore_label=IGNORED,
            block_size=7,
            **options,
        )

    value, slopes = gradients(expected, floats, labels)
    ours, our_slopes = gradients(actual, floats, labels)
    assert_close(ours, value)
    assert_close(
        without_weight_gradients(our_slopes, labels, floats[-1]),
        without_weight_gradients(slopes, labels, floats[-1]),
        1e-5,
    )


def test_statistics_equal_the_dense_ones():
    """Field by field, with gradients through each; ignored rows look certain."""
    features, kernel, bias, temperature, _, labels = arguments(5.0)

    def fields(statistics):
        return jnp.stack([jnp.where(jnp.isfinite(x), x, 7.0) for x in statistics], -1)

    def expected(features, kernel, bias, temperature, labels):
        logits = features @ kernel + bias[None]
        return fields(jaxsoftmax.row_statistics(logits, labels, temperature=temperature, ignore_label=IGNORED))

    def actual(features, kernel, bias, temperature, labels):
        return fields(
            jaxsoftmax.linear_statistics(
                features, kernel, labels, bias=bias, temperature=temperature, ignore_label=IGNORED, block_size=4
            )
        )

    floats = (features, kernel, bias, temperature)
    assert_close(gradients(actual, floats, labels), gradients(expected, floats, labels), 1e-5)


def test_batches_of_any_rank():
    """Features [..., D] give [...]; a row alone gives a scalar."""
    features, kernel, _, _, _, labels = arguments(1.0)
    labels = np.abs(labels) % V
    flat = jaxsoftmax.linear_cross_entropy(features[:20], kernel, labels[:20], reduction="none")
    folded = jaxsoftmax.linear_cross_entropy(
        features[:20].reshape(4, 5, D), kernel, labels[:20].reshape(4, 5), reduction="none", block_size=3
    )
    np.testing.assert_allclose(folded, flat.reshape(4, 5), rtol=1e-6)
    alone = jaxsoftmax.linear_cross_entropy(features[0], kernel, labels[0], reduction="none")
    np.testing.assert_allclose(alone, flat[0], rtol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_rows_that_do_not_count_leak_nothing(reduction):
    """NaN and inf in their features reach no value and no gradient."""
    *floats, labels = arguments(5.0)
    spoilt = floats[0].copy()
    spoilt[labels == IGNORED] = np.nan
    spoilt[floats[-1] == 0] = np.inf
    function = functools.partial(streamed, objectives.cross_entropy, reduction, 4)
    clean, broken = (gradients(function, [x, *floats[1:]], labels) for x in (floats[0], spoilt))
    jax.tree.map(np.testing.assert_array_equal, broken, clean)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_counts(reduction):
    """A mean over no rows is 0 with gradients 0."""
    features, kernel, *_ = arguments(1.0)
    labels = np.full(N, IGNORED, np.int32)

    def total(features, kernel):
        out = jaxsoftmax.linear_cross_entropy(
            features, kernel, labels, ignore_label=IGNORED, reduction=reduction, block_size=5
        )
        return jnp.sum(out)

    value, slopes = jax.value_and_grad(total, (0, 1))(features, kernel)
    assert value == 0
    assert all(np.all(np.asarray(s) == 0) for s in slopes)


def test_a_label_out_of_range_breaks_its_row():
    """Never wrapped, never clamped."""
    features, kernel, *_ = arguments(1.0)
    labels = np.zeros(N, np.int32)
    labels[[2, 9]] = (-1, V)
    losses = jaxsoftmax.linear_cross_entropy(features, kernel, labels, reduction="none", block_size=5)
    np.testing.assert_array_equal(np.isnan(losses), np.isin(np.arange(N), [2, 9]))
    assert np.isnan(jaxsoftmax.linear_cross_entropy(features, kernel, labels))


def test_padding_is_no_class():
    """Equal logits give exactly log V, whatever the blocks: V = 507 and a cap of 1, features of 0."""
    losses = jaxsoftmax.linear_cross_entropy(
        jnp.zeros((10, 4)), jnp.zeros((4, 507)), jnp.zeros(10, int), logit_cap=1.0, reduction="none", block_size=4
    )
    np.testing.assert_allclose(losses, math.log(507), rtol=1e-6)


@pytest.mark.parametrize(
    ("few", "most", "columns", "rows"),
    [(0, 7, 7, 19), (0, 20, 14, 20), (0, V - 1, 21, 21), (0, V, V, 22), (128, 7, 7, 17), (128, 20, 14, 18)],
)
def test_gradients_in_columns(few, most, columns, rows, monkeypatch):
    """The even tiles in which the kernel's gradient is summed, of which the last one begins inside of its neighbour.

    Where rows are few the features' gradient is summed over the same tiles.
    """
    # A number of rows that no other test has, or what was traced with the true number of columns would be used again.
    features, kernel, bias, temperature, weights, labels = arguments(5.0)
    floats = [features[:rows], kernel, bias, temperature[:rows], weights[:rows]]
    for name, value in {"LEAST_COLUMNS": most, "FEW_ROWS": few, "PART": 1}.items():
        monkeypatch.setattr(streams, name, value)
    function = functools.partial(streamed, objectives.cross_entropy, "mean", 4)
    expected = gradients(functools.partial(dense, objectives.cross_entropy, "mean"), floats, labels[:rows])
    assert_close(compiled(function)(floats, labels[:rows]), expected, 2e-5)
    traced = str(jax.make_jaxpr(jax.grad(function, 1))(*floats, labels[:rows]))
    slices = len(re.findall(rf"f32\[{D},{columns}\] = dynamic_slice", traced))
    whole = columns == V or jax.default_backend() != "cpu"  # an accelerator adds to the gradient at once
    assert slices == (0 if whole else 2 if few else 1)


def test_blocks_in_which_nothing_counts_are_passed_over():
    """The objective runs once for each of the other blocks, in value and with gradients."""
    features, kernel, *_ = arguments(1.0)
    labels = np.zeros(20, np.int32)
    labels[5:15] = IGNORED
    calls = []

    def objective(statistics):
        jax.debug.callback(lambda: calls.append(1))
        return -statistics.log_prob

    def loss(features):
        return jaxsoftmax.linear_loss(
            objective, features, kernel, labels, ignore_label=IGNORED, reduction="sum", block_size=5
        )

    for function in (loss, jax.value_and_grad(loss)):
        calls.clear()
        jax.block_until_ready(function(features[:20]))
        jax.effects_barrier()
        assert len(calls) == 2


def test_a_users_objective_closes_over_what_is_differentiated():
    """A traced margin inside of the lambda, in both reductions, under jit and without."""
    features, kernel, _, _, _, labels = arguments(1.0)
    labels = np.abs(labels) % V

    def ours(margin, reduction):
        def objective(statistics):
            return objectives.additive_margin(statistics, margin=margin, scale=2.0)

        return jnp.sum(jaxsoftmax.linear_loss(objective, features, kernel, labels, reduction=reduction, block_size=4))

    def expected(margin):
        statistics = jaxsoftmax.row_statistics(features @ kernel, labels)
        return jnp.sum(objectives.additive_margin(statistics, margin=margin, scale=2.0))

    slope = jax.grad(expected)(jnp.float32(0.3))
    for reduction, size in (("sum", 1.0), ("none", 1.0), ("mean", N)):
        for wrap in (lambda f: f, jax.jit):
            ours_slope = wrap(jax.grad(lambda m, r=reduction: ours(m, r)))(jnp.float32(0.3))
            np.testing.assert_allclose(size * ours_slope, slope, rtol=1e-5)


def test_a_users_objective_closes_over_integers_and_keys():
    """Traced numbers without a derivative: under grad of jit they would leak from a rule that closes over them."""
    features, kernel, _, _, _, labels = arguments(1.0)
    labels = np.abs(labels) % V

    def ours(kernel, power, key):
        def objective(statistics):
            share = jax.random.uniform(key, (), jnp.float32)
            return -statistics.log_prob * power.astype(jnp.float32) + share * statistics.error_prob

        return jaxsoftmax.linear_loss(objective, features, kernel, labels, block_size=4)

    def expected(kernel, power, key):
        statistics = jaxsoftmax.row_statistics(features @ kernel, labels)
        share = jax.random.uniform(key, (), jnp.float32)
        return jnp.mean(-statistics.log_prob * power.astype(jnp.float32) + share * statistics.error_prob)

    given = kernel, jnp.int32(2), jax.random.key(0)
    np.testing.assert_allclose(jax.grad(jax.jit(ours))(*given), jax.grad(expected)(*given), rtol=1e-5, atol=1e-6)


def test_scan_over_microbatches():
    """Gradients accumulated over microbatches equal those of the whole batch."""
    features, kernel, _, _, _, labels = arguments(1.0)
    features, labels = features[:20], np.abs(labels[:20]) % V

    def loss(kernel, features, labels):
        return jaxsoftmax.linear_cross_entropy(features, kernel, labels, reduction="sum", block_size=3)

    def accumulate(total, batch):
        return total + jax.grad(loss)(kernel, *batch), None

    batches = features.reshape(4, 5, D), labels.reshape(4, 5)
    total, _ = jax.jit(lambda: lax.scan(accumulate, jnp.zeros_like(kernel), batches))()
    np.testing.assert_allclose(total, jax.grad(loss)(kernel, features, labels), rtol=1e-5, atol=1e-6)


class Scaled:
    """An objective with a state; not hashable."""

    __hash__ = None

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, statistics):
        return -self.scale * statistics.log_prob

    def loss(self, statistics):
        return -self.scale * statistics.log_prob


MADE = {
    "closure": lambda scale: lambda statistics: -scale * statistics.log_prob,
    "default": lambda scale: lambda statistics, scale=scale: -scale * statistics.log_prob,
    "bound method": lambda scale: Scaled(scale).loss,
    "callable object": Scaled,
    "partial": lambda scale: functools.partial(lambda s, statistics: -s * statistics.log_prob, scale),
    "jitted": lambda scale: jax.jit(lambda statistics: -scale * statistics.log_prob),
}


@pytest.mark.parametrize("kind", MADE)
def test_objectives_of_every_kind(kind):
    """What they hold is seen anew in every call, and is differentiated, given as an array or as a Python number."""
    features, kernel, _, _, _, labels = arguments(1.0)
    labels = np.abs(labels) % V

    def loss(scale, reduction="sum"):
        out = jaxsoftmax.linear_loss(MADE[kind](scale), features, kernel, labels, reduction=reduction, block_size=5)
        return jnp.sum(out)

    one = loss(1.0)
    np.testing.assert_allclose(loss(5.0), 5.0 * one, rtol=1e-5)
    for scale in (jnp.float32(2.0), 2.0):
        np.testing.assert_allclose(jax.grad(loss)(scale), one, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda s: loss(s, "none"))(2.0), one, rtol=1e-5)


def test_an_objective_that_changes_is_seen_to_change():
    """A bound method of an object whose state is set anew."""
    features, kernel, _, _, _, labels = arguments(1.0)
    scaled = Scaled(1.0)
    first = jaxsoftmax.linear_loss(scaled.loss, features, kernel, np.abs(labels) % V)
    scaled.scale = 5.0
    np.testing.assert_allclose(
        jaxsoftmax.linear_loss(scaled.loss, features, kernel, np.abs(labels) % V), 5.0 * first, rtol=1e-6
    )


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_rows_over_a_mesh(reduction, check_vma):
    """In shard_map with the kernel replicated; the objective plain, with options and with a closure."""
    features, kernel, *_ = arguments(1.0)
    features = np.resize(features, (24, D))
    labels = np.resize(np.append(np.arange(11), IGNORED), 24).astype(np.int32)
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Auto,))
    specs = (PartitionSpec("rows"), PartitionSpec(), PartitionSpec("rows"), PartitionSpec())
    margin = jnp.float32(0.2)

    def losses(features, kernel, labels, margin):
        options = {"ignore_label": IGNORED, "reduction": reduction, "block_size": 4}
        plain = jaxsoftmax.linear_cross_entropy(features, kernel, labels, **options)
        penalized = jaxsoftmax.linear_cross_entropy(features, kernel, labels, z_loss=1e-2, **options)
        custom = jaxsoftmax.linear_loss(
            lambda s: objectives.additive_margin(s, margin=margin, scale=2.0), features, kernel, labels, **options
        )
        return jnp.sum(plain + penalized + custom)

    sharded = jax.shard_map(
        lambda *a: lax.psum(losses(*a), "rows"),
        mesh=mesh,
        in_specs=specs,
        out_specs=PartitionSpec(),
        check_vma=check_vma,
    )

    def expected(features, kernel, labels, margin):
        parts = zip(features.reshape(4, 6, D), labels.reshape(4, 6), strict=True)
        return sum(losses(h, kernel, y, margin) for h, y in parts)

    arguments_ = (features, kernel, labels, margin)
    actual = jax.jit(jax.value_and_grad(sharded, (0, 1, 3)))(*arguments_)
    assert_close(actual, stepwise(jax.value_and_grad(expected, (0, 1, 3)))(*arguments_), 1e-5)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_absent_classes_leak_nothing(reduction):
    """NaN in the columns and biases of absent classes."""
    features, kernel, bias, _, _, labels = arguments(1.0)
    labels = np.abs(labels) % V
    mask = np.arange(V) != 40
    labels[labels == 40] = 0

    def total(h, w, b):
        return jnp.sum(
            jaxsoftmax.linear_cross_entropy(h, w, labels, bias=b, where=mask, reduction=reduction, block_size=5)
        )

    clean = jax.value_and_grad(total, (0, 1, 2))(features, kernel, bias)
    broken = jax.value_and_grad(total, (0, 1, 2))(
        features, np.where(mask, kernel, np.nan), np.where(mask, bias, np.nan)
    )
    jax.tree.map(np.testing.assert_array_equal, broken, clean)


@pytest.mark.parametrize("block", [4, 7])
def test_infinite_losses_that_do_not_count(block):
    """Rows of weight 0 and the rows that fill the last block give no NaN to what the objective closes over."""
    features, kernel, *_ = arguments(1.0)
    labels, weights = np.zeros(N, np.int32), np.ones(N, np.float32)
    labels[[2, N - 1]] = (1, 1)  # class 1 is absent
    weights[2] = 0.0
    mask = np.arange(V) != 1

    def loss(scale, last):
        return jaxsoftmax.linear_loss(
            lambda s: -scale * jnp.maximum(s.log_prob, -50.0),
            features,
            kernel,
            labels,
            weights=weights * np.append(np.ones(N - 1, np.float32), last),
            where=mask,
            block_size=block,
        )

    for last in (np.float32(0.0), np.float32(1.0)):
        assert np.isfinite(jax.grad(loss)(jnp.float32(1.0), last))


def test_weights_that_sum_to_nothing():
    """A mean over weights of both signs that cancel is 0, as `weighted_mean` has it."""
    features, kernel, *_ = arguments(1.0)
    weights = np.float32([1.0, -1.0])
    loss = jax.value_and_grad(jaxsoftmax.linear_cross_entropy)
    value, slope = loss(features[:2], kernel, np.int32([0, 1]), weights=weights)
    assert value == 0
    assert not np.any(np.asarray(slope))


def test_the_number_of_classes_in_every_block():
    """Blocks that are passed over have it too."""
    features, kernel, *_ = arguments(1.0)
    labels = np.where(np.arange(N) < 8, IGNORED, 0).astype(np.int32)
    statistics = jaxsoftmax.linear_statistics(features, kernel, labels, ignore_label=IGNORED, block_size=4)
    np.testing.assert_array_equal(statistics.classes, V)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("block", [1, N])
def test_rows_that_do_not_count_have_classes(reduction, block):
    """An objective may divide by their number, and its parameters have a gradient."""
    features, kernel, *_ = arguments(1.0)
    labels = np.where(np.arange(N) % 3 == 0, IGNORED, 1).astype(np.int32)
    weights = np.where(np.arange(N) % 3 == 1, np.float32(0.0), np.float32(2.0))

    def loss(scale):
        options = {"weights": weights, "ignore_label": IGNORED, "reduction": reduction, "block_size": block}
        return jnp.sum(
            jaxsoftmax.linear_loss(
                lambda s: scale * jnp.log(s.classes) / s.classes, features, kernel, labels, **options
            )
        )

    counted = 1.0 if reduction == "mean" else 2.0 * np.sum((labels != IGNORED) & (weights != 0))
    np.testing.assert_allclose(jax.value_and_grad(loss)(1.0), 2 * [counted * math.log(V) / V], rtol=1e-5)


def test_a_mean_in_float16_has_weights_of_any_size():
    """Gradients of logits in float16 hold numbers between 6e-8 and 65504; the size of the weights is not in them."""
    features, kernel, *_ = arguments(1.0)
    labels, weights = np.arange(N, dtype=np.int32) % V, 1.0 + np.arange(N, dtype=np.float32) % 3

    def slope(size):
        loss = functools.partial(jaxsoftmax.linear_cross_entropy, features.astype(jnp.float16), weights=size * weights)
        return np.asarray(jax.grad(loss)(kernel, labels))

    expected = slope(np.float32(1.0))
    for size in (1e-9, 1e6, 1e30):
        np.testing.assert_allclose(slope(np.float32(size)), expected, rtol=0, atol=1e-3 * np.max(np.abs(expected)))


def test_an_objective_of_all_rows_is_told_about_blocks():
    features, kernel, *_ = arguments(1.0)
    advantages, labels = jnp.ones(N), np.zeros(N, np.int32)
    with pytest.raises(TypeError) as failure:
        jaxsoftmax.linear_loss(lambda s: advantages * s.log_prob, features, kernel, labels, block_size=3)
    assert "jaxsoftmax.linear_loss: the objective sees a block of 3 rows at a time" in failure.value.__notes__[-1]


def test_losses_of_another_dtype():
    """An objective may return half precision."""
    features, kernel, _, _, _, labels = arguments(1.0)
    loss = jax.value_and_grad(
        lambda h: jaxsoftmax.linear_loss(lambda s: -s.log_prob.astype(jnp.bfloat16), h, kernel, np.abs(labels) % V)
    )
    value, slope = loss(features)
    assert value.dtype == slope.dtype == jnp.float32


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_label_that_is_no_number_breaks_its_row(bad, reduction):
    """Whatever the objective looks at, with its gradient and without."""
    features, kernel, labels = jnp.ones((1, 4)), jnp.eye(4, 5), jnp.array([1])
    bias = jnp.zeros(5).at[1].set(bad)
    for objective in (lambda s: s.rest, lambda s: s.target, lambda s: jnp.maximum(s.rest, -9.0)):

        def loss(features, objective=objective):
            return jnp.sum(jaxsoftmax.linear_loss(objective, features, kernel, labels, bias=bias, reduction=reduction))

        value, gradient = jax.value_and_grad(loss)(features)
        assert np.isnan([loss(features), value]).all()
        assert np.isnan(gradient).all()
