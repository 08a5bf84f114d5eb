"""The objectives on dense statistics: values and gradients from logits, and with respect to their own options."""

import jax
import numpy as np
import pytest

import jaxsoftmax
from jaxsoftmax import objectives
from tests import oracles
from tests.helpers import assert_contract, cotangents, hessian_products, masks, planted, value_and_gradients

CASES = {
    "cross_entropy": (objectives.cross_entropy, oracles.cross_entropy, {}),
    "label smoothing": (objectives.cross_entropy, oracles.cross_entropy, {"label_smoothing": 0.1}),
    "label smoothing of others": (
        objectives.cross_entropy,
        oracles.cross_entropy,
        {"label_smoothing": 0.1, "smoothing": "others"},
    ),
    "others alone": (objectives.cross_entropy, oracles.cross_entropy, {"label_smoothing": 1.0, "smoothing": "others"}),
    "cross_entropy and z_loss": (objectives.cross_entropy, oracles.cross_entropy, {"z_loss": 1e-2}),
    "z_loss": (objectives.z_loss, oracles.z_loss, {}),
    "focal": (objectives.focal, oracles.focal_loss, {}),
    "focal 0": (objectives.focal, oracles.focal_loss, {"gamma": 0.0}),
    "focal 0.5": (objectives.focal, oracles.focal_loss, {"gamma": 0.5}),
    "focal 5": (objectives.focal, oracles.focal_loss, {"gamma": 5.0}),
    "poly": (objectives.poly, oracles.poly_loss, {"epsilon": 2.0}),
}


def loss_of(objective, options, temperature=False, **head):
    """f(logits, [temperature,] labels, where) -> losses."""

    def with_temperature(logits, temperature, labels, where):
        statistics = jaxsoftmax.row_statistics(logits, labels, where=where, temperature=temperature, **head)
        return objective(statistics, **options)

    return (
        with_temperature if temperature else lambda logits, labels, where: with_temperature(logits, None, labels, where)
    )


def check(case, logits, labels, *, where=None, temperature=None, gain=2.0):
    objective, oracle, options = case
    cotangent = cotangents(len(logits), dtype=logits.dtype)
    arguments = [logits] if temperature is None else [logits, temperature]
    value, *gradients = value_and_gradients(
        loss_of(objective, options, temperature is not None), cotangent, arguments, [labels, where]
    )
    exact = oracle(logits, labels, cotangent, where=where, temperature=temperature, **options)
    gain = gain if temperature is None else gain / temperature.min() ** 2
    assert_contract(value, exact.loss.value, logits.dtype, exact.loss.magnitude, name="loss")
    assert_contract(gradients[0], exact.logits.value, logits.dtype, exact.logits.magnitude, gain=gain, name="by logits")
    if temperature is not None:
        assert_contract(
            gradients[1],
            exact.temperature.value,
            temperature.dtype,
            exact.temperature.magnitude,
            gain=gain,
            name="by temperature",
        )


@pytest.mark.parametrize("case", CASES)
def test_contract(case):
    check(CASES[case], *planted(7))


@pytest.mark.parametrize("case", ["cross_entropy", "label smoothing of others", "z_loss", "focal 0.5", "poly"])
def test_contract_with_temperature_and_where(case):
    logits, labels = planted(7, seed=3)
    where = masks(*logits.shape, labels)
    logits = np.where(where, logits, np.resize(np.float32([np.nan, np.inf, 1e30]), logits.shape))
    check(CASES[case], logits, labels, where=where, temperature=np.resize(np.float32([1.0, 0.3, 4.0]), len(logits)))


@pytest.mark.parametrize("case", ["label smoothing", "cross_entropy and z_loss", "focal 0.5", "poly"])
def test_contract_in_float64(case):
    with jax.enable_x64(True):
        logits, labels = planted(7, np.float64)
        confident = np.float64([[700.0, 0.0, 1.0, 2.0, -3.0, 0.5, 0.0]])
        check(CASES[case], np.concatenate([logits, confident]), np.append(labels, 0).astype(np.int32))


COSINES = np.float32(
    [
        [0.9, 0.1, -0.2, 0.3, 0.0],
        [0.1, 0.9, -0.2, 0.3, 0.0],
        [-0.95, 0.5, 0.25, 0.125, -0.5],
        [0.5, 0.5, 0.5, 0.5, 0.5],
        [0.3, 0.31, 0.32, -0.9, 0.95],
        [-0.8, -0.9, -0.85, -0.95, -0.7],
    ]
)
COSINE_LABELS = np.int32([0, 0, 0, 3, 4, 1])


@pytest.mark.parametrize("margin", [0.0, 0.35, 0.8])
@pytest.mark.parametrize("kind", ["additive_margin", "angular_margin"])
def test_margins(kind, margin):
    logits = 64 * COSINES
    options = {"margin": margin, "scale": 64.0}
    # A margin of m multiplies the odds of the other classes, and so an exponential that is 0 in float32, by exp(s m).
    gain = 2.0 * np.exp(64.0 * margin)
    check((getattr(objectives, kind), getattr(oracles, kind), options), logits, COSINE_LABELS, gain=gain)


def test_angular_margin_is_finite_where_the_angle_has_no_derivative():
    cosines = np.float32([[1.0, 0.0], [-1.0, 0.0], [1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [1.0000001, 0.5]])
    labels = np.zeros(len(cosines), np.int32)
    for scale in (1.0, 64.0):
        value, gradient = value_and_gradients(
            loss_of(objectives.angular_margin, {"margin": 0.5, "scale": scale}),
            np.ones(len(cosines), np.float32),
            [scale * cosines],
            [labels, None],
        )
        assert np.all(np.isfinite(value))
        assert np.all(np.isfinite(gradient))
        assert np.all(gradient[:, 0] <= 0)


def test_margin_gradients_by_margin():
    """The loss is softplus(s m - log-odds): by m it is s times the probability of being wrong under the margin."""
    logits = 64 * COSINES
    statistics = jaxsoftmax.row_statistics(logits, COSINE_LABELS)

    def losses(margin):
        return objectives.additive_margin(statistics, margin=margin, scale=64.0)

    margin = np.full(len(logits), 0.35, np.float32)
    one = np.ones(len(logits), np.float32)
    value, slope = value_and_gradients(lambda m: jax.vmap(_margin_loss)(statistics, m), one, [margin])
    exact = oracles.additive_margin(logits, COSINE_LABELS, margin=np.float32(0.35), scale=64.0)
    by_label = -np.take_along_axis(exact.logits.value, COSINE_LABELS[:, None], 1)[:, 0]
    size = np.take_along_axis(exact.logits.magnitude, COSINE_LABELS[:, None], 1)[:, 0]
    assert_contract(value, exact.loss.value, np.float32, exact.loss.magnitude)
    assert_contract(slope, 64 * by_label, np.float32, 64 * size)
    np.testing.assert_array_equal(losses(0.35), value)


def _margin_loss(statistics, margin):
    return objectives.additive_margin(statistics, margin=margin, scale=64.0)


TIES = np.float64([[2.5, 2.5, -np.inf], [2.5, 2.5, 2.5], [1.0, 0.0, -np.inf], [0.5, -1.0, 3.0], [9.0, 0.0, 0.0]])


@pytest.mark.parametrize("case", CASES)
def test_second_derivatives(case):
    """At ties, where max and abs have no derivative, and elsewhere, against differences of exact gradients."""
    objective, oracle, options = CASES[case]
    labels = np.zeros(len(TIES), np.int32)
    step = 1e-4

    def exact(k):
        moved = [oracle(TIES + s * step * np.eye(3)[k], labels, **options).logits.value for s in (-2, -1, 1, 2)]
        return (moved[0] - 8 * moved[1] + 8 * moved[2] - moved[3]) / (12 * step)

    with jax.enable_x64(True):
        function = loss_of(objective, options)
        hessian = jax.jit(jax.vmap(jax.hessian(lambda x, y: function(x, y, None))))(TIES, labels)
    np.testing.assert_allclose(hessian, np.stack([exact(k) for k in range(3)], 1), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("case", ["cross_entropy", "focal 0.5", "focal", "poly"])
def test_second_derivatives_of_certain_rows(case):
    """Down to the smallest results, every way: by one gap x between two classes, against float64."""
    objective, _, options = CASES[case]
    gaps = np.float32([0.5, 10, 21, 22, 28, 35, 43, 43.5, 44, 50, 65, 70, 80])
    logits = np.stack([0 * gaps, -gaps], -1)
    directions = np.stack([np.ones_like(gaps), np.resize(np.float32([0.9, -0.1]), len(gaps))], -1)
    plain = {
        "cross_entropy": jax.nn.softplus,
        "focal 0.5": lambda x: jax.nn.sigmoid(x) ** 0.5 * jax.nn.softplus(x),
        "focal": lambda x: jax.nn.sigmoid(x) ** 2 * jax.nn.softplus(x),
        "poly": lambda x: jax.nn.softplus(x) + 2.0 * jax.nn.sigmoid(x),
    }[case]
    with jax.enable_x64(True):
        curvature = np.asarray(jax.vmap(jax.grad(jax.grad(plain)))(-np.float64(gaps)))
    along = np.float64(directions[:, 1]) - directions[:, 0]
    exact = (curvature * along)[:, None] * np.float64([-1, 1])

    def losses(z):
        return objective(jaxsoftmax.row_statistics(z, np.zeros(len(gaps), np.int32)), **options).sum()

    seen = np.abs(exact) > 1e-36
    assert seen.sum() >= 8
    for product in hessian_products(losses, logits, directions):
        np.testing.assert_allclose(product[seen], exact[seen], rtol=1e-4)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_z_loss_at_temperature_0(sign):
    """The limit: infinite, for a largest logit of either sign; its gradient is 0, as that of everything at T = 0."""
    logits, temperature = sign * np.float32([[1.0, 2.0, 0.5]]), np.float32([0.0])

    def loss(z, t):
        return objectives.z_loss(jaxsoftmax.row_statistics(z, np.int32([1]), temperature=t)).sum()

    value, gradients = jax.value_and_grad(loss, (0, 1))(logits, temperature)
    assert value == np.inf
    with jaxsoftmax.forward_mode():
        pushed = jax.jvp(loss, (logits, temperature), (np.ones_like(logits), np.ones_like(temperature)))[1]
    for slope in (*gradients, pushed):
        np.testing.assert_array_equal(slope, np.zeros_like(slope))


@pytest.mark.parametrize("case", CASES)
def test_ignored_rows_are_exactly_zero(case):
    objective, _, options = CASES[case]
    logits, labels = planted(7)
    labels = np.where(np.arange(len(labels)) % 3 == 0, -100, labels).astype(np.int32)
    ignored = labels == -100
    loss, gradient = value_and_gradients(
        loss_of(objective, options, ignore_label=-100), cotangents(len(logits)), [logits], [labels, None]
    )
    np.testing.assert_array_equal(loss[ignored], np.zeros(ignored.sum()))
    np.testing.assert_array_equal(gradient[ignored], np.zeros((ignored.sum(), 7)))
    assert np.all(np.isfinite(loss))
    assert np.count_nonzero(gradient[~ignored]) > 50
