"""The smooth calibration error: its reference implementation's numbers, the exact integral, and its gradient."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsoftmax.calibration import smooth_calibration_error, smooth_reliability_curve
from tests.oracles import calibration as oracle

# From relplot 1.0.3 (Apple), the implementation by the authors of the paper: relplot.smECE(f, y) with f and y of
# `forecasts(seed, rows, power)`. "default" is what it gives as it comes, with the kernel on 200 mesh points and the
# bandwidth to 2^-10 by bisection; "fine" is with relplot.config.smECE_mesh_pts = 40001, where the bandwidth's steps are
# what is left of its error.
REFERENCE = [
    # seed, rows, power, default, fine
    (0, 100, 1.0, 0.05874575887913404, 0.058499629025071595),
    (1, 300, 2.0, 0.17021921377364685, 0.1705836330572744),
    (2, 500, 0.5, 0.15553770014734788, 0.15579754612866611),
    (3, 100, 1.3, 0.06852520183331401, 0.06870379440291818),
]


def forecasts(seed, rows, power):
    """Probabilities of an event, uniform, and whether it came true, with the probability to the power."""
    rng = np.random.default_rng(seed)
    said = rng.uniform(size=rows)
    return said, (rng.uniform(size=rows) < said**power).astype(float)


def as_classes(said, came, dtype=np.float32):
    """The same as probabilities of two classes, where `classwise=True` is about the probability of either."""
    return np.stack([1 - said, said], 1).astype(dtype), came.astype(np.int32)


def error_of(said, came, **options):
    probs, labels = as_classes(said, came)
    return smooth_calibration_error(labels, probs=probs, classwise=True, **options)


@pytest.mark.parametrize(("seed", "rows", "power", "default", "fine"), REFERENCE)
def test_reference_implementation(seed, rows, power, default, fine):
    """Within 1e-3 of its default, which is the resolution that it states (eps), and 2.5e-4 of its finer mesh."""
    ours = error_of(*forecasts(seed, rows, power))
    np.testing.assert_allclose(ours, default, atol=1e-3, rtol=0)
    np.testing.assert_allclose(ours, fine, atol=2.5e-4, rtol=0)


@pytest.mark.parametrize(("seed", "rows", "power"), [case[:3] for case in REFERENCE])
def test_exact_fixed_point(seed, rows, power):
    """The kernel summed pair by pair, in float64, and the root by Brent's method."""
    said, came = forecasts(seed, rows, power)
    np.testing.assert_allclose(error_of(said, came), oracle.smooth_calibration_error(said, came), rtol=2e-5)


@pytest.mark.parametrize("bandwidth", [0.005, 0.02, 0.3, 2.0])
def test_exact_integral(bandwidth):
    """Between the exact numbers for σ² and for what the grid may add to it, a quarter of the square of a cell.

    Lines between the nodes cut off up to 1.3e-5 of it at the smallest σ.
    """
    said, came = forecasts(0, 100, 1.0)
    exact, wider = (oracle.smooth_error(said, came, np.sqrt(bandwidth**2 + extra)) for extra in (0, 0.25 / 4096**2))
    assert wider - 4e-6 <= error_of(said, came, bandwidth=bandwidth) <= exact + 2e-6


def test_weights():
    said, came = forecasts(5, 60, 2.0)
    weights = np.random.default_rng(6).uniform(0, 3, 60)
    ours = error_of(said, came, weights=weights.astype(np.float32))
    np.testing.assert_allclose(ours, oracle.smooth_calibration_error(said, came, weights), rtol=2e-5)


def test_top_label():
    """Confidence and correctness of the largest class, from logits as from probabilities."""
    rng = np.random.default_rng(7)
    logits = (2 * rng.standard_normal((80, 4))).astype(np.float32)
    labels = rng.integers(0, 4, 80).astype(np.int32)
    p = oracle.softmax_rows(logits)
    ((said, came),) = oracle.pairs(p, labels, False)
    exact = oracle.smooth_calibration_error(said, came)
    np.testing.assert_allclose(smooth_calibration_error(labels, logits=logits), exact, rtol=2e-5)
    np.testing.assert_allclose(smooth_calibration_error(labels, probs=p.astype(np.float32)), exact, rtol=2e-5)
    by_class = [oracle.smooth_calibration_error(*pair) for pair in oracle.pairs(p, labels, True)]
    ours = smooth_calibration_error(labels, logits=logits, classwise=True)
    np.testing.assert_allclose(ours, np.mean(by_class), rtol=2e-5)


@pytest.mark.parametrize(
    ("said", "came", "expected"),
    [
        ([0.7], [1], 0.3),  # one row: its residual, at every bandwidth
        ([1.0], [1], 0.0),
        ([1.0], [0], 1.0),
        ([0.0], [0], 0.0),
        ([0.5, 0.5], [1, 0], 0.0),  # residuals that cancel where they are
        ([0.5, 0.5, 0.5, 0.5], [1, 1, 1, 0], 0.25),
        ([1.0, 1.0, 1.0, 1.0], [1, 1, 1, 0], 0.25),
    ],
)
def test_by_hand(said, came, expected):
    np.testing.assert_allclose(error_of(np.array(said), np.array(came)), expected, atol=3e-7)


def test_a_small_error_of_many_rows():
    """A bandwidth near the width of a cell, where the grid's flow is still a kernel: the norm never grows with σ."""
    said = np.linspace(0.001, 0.999, 2000)
    probs, labels = as_classes(said, (np.arange(2000) % 2).astype(float))
    at = jax.jit(lambda s: smooth_calibration_error(labels, probs=probs, classwise=True, bandwidth=s))
    norms = np.array([at(s) for s in np.float32([0, 1e-5, 1e-4, 2e-4, 5e-4, 1e-3, 1e-2, 0.1, 1])])
    assert np.all(np.diff(norms) <= 1e-6)
    fixed = smooth_calibration_error(labels, probs=probs, classwise=True)
    np.testing.assert_allclose(at(fixed), fixed, rtol=1e-5)


def test_memory_is_that_of_rows_and_grid():
    """A hundred thousand rows: no array of rows times grid points, forward or backward."""
    rows = 100_000
    logits, labels = np.zeros((rows, 2), np.float32), np.zeros(rows, np.int32)
    for function in (
        lambda z: smooth_calibration_error(labels, logits=z),
        jax.grad(lambda z: smooth_calibration_error(labels, logits=z)),
    ):
        memory = jax.jit(function).lower(logits).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 40 * 4 * rows


# The gradient.


@pytest.mark.parametrize("bandwidth", [None, 0.05])
def test_gradient_against_the_exact_integral(bandwidth):
    """Finite differences of the exact error, along random directions in float64: the fixed point moves too."""
    said, came = forecasts(3, 30, 1.3)
    rng = np.random.default_rng(8)

    def exact(said):
        if bandwidth is None:
            return oracle.smooth_calibration_error(said, came)
        return oracle.smooth_error(said, came, bandwidth)

    for wide in (False, True):
        with jax.enable_x64(wide):
            probs, labels = as_classes(said, came, np.float64 if wide else np.float32)

            def ours(p, labels=labels):
                return smooth_calibration_error(labels, probs=p, classwise=True, bandwidth=bandwidth)

            gradient = jax.jit(jax.grad(ours))(probs)
            # the mean over both classes, which are each other's mirror images
            by_said = np.asarray(gradient[:, 1] - gradient[:, 0], np.float64)
        for _ in range(2):
            direction = 1e-5 * rng.standard_normal(30)
            difference = (exact(said + direction) - exact(said - direction)) / 2
            size = np.sum(np.abs(by_said * direction))
            np.testing.assert_allclose(np.sum(by_said * direction), difference, atol=1e-3 * size, rtol=0)


@pytest.mark.parametrize("classwise", [False, True])
def test_gradient_by_the_logits(classwise):
    """The chain rule through softmax, for the top label and for every class: finite differences of our own, float64.

    The gradient is that of the integral, our differences are those of its sum over cells: they part by the curvature
    of the smoothed residual within a cell, 1/4096 of its slope over σ.
    """
    rng = np.random.default_rng(8)
    with jax.enable_x64(True):
        logits, labels = 2 * rng.standard_normal((60, 3)), rng.integers(0, 3, 60)

        def error(z):
            return smooth_calibration_error(labels, logits=z, classwise=classwise)

        gradient = jax.jit(jax.grad(error))(logits)
        for _ in range(3):
            direction = 1e-6 * rng.standard_normal(logits.shape)
            difference = (error(logits + direction) - error(logits - direction)) / 2
            size = np.sum(np.abs(gradient * direction))
            np.testing.assert_allclose(np.sum(gradient * direction), difference, atol=2e-3 * size, rtol=0)


def test_gradient_at_a_fixed_bandwidth_is_another():
    """The implicit function theorem divides by 1 - dsmECE/dσ: a gradient that leaves it out is too large."""
    said, came = forecasts(0, 100, 1.0)
    probs, labels = as_classes(said, came)

    def error(p, bandwidth=None):
        return smooth_calibration_error(labels, probs=p, classwise=True, bandwidth=bandwidth)

    fixed, implicit = jax.jit(jax.value_and_grad(error))(probs)
    explicit, slope = jax.jit(jax.grad(error, (0, 1)))(probs, fixed)
    assert slope < -0.1
    np.testing.assert_allclose(implicit * (1 - slope), explicit, rtol=1e-4, atol=1e-7)


def test_gradient_in_forward_mode_and_of_weights():
    said, came = forecasts(2, 30, 2.0)
    probs, labels = as_classes(said, came)
    direction = np.cos(np.arange(60, dtype=np.float32)).reshape(30, 2)

    def error(p, w):
        return smooth_calibration_error(labels, probs=p, weights=w)

    weights = np.ones(30, np.float32)
    by_probs, by_weights = jax.jit(jax.grad(error, (0, 1)))(probs, weights)
    _, tangent = jax.jit(lambda p, t: jax.jvp(lambda p: error(p, weights), (p,), (t,)))(probs, direction)
    np.testing.assert_allclose(tangent, np.sum(by_probs * direction), rtol=1e-4)
    # the error does not change with the scale of the weights
    np.testing.assert_allclose(np.sum(by_weights), 0, atol=1e-6)
    assert np.any(by_weights != 0)


@pytest.mark.parametrize("bandwidth", [None, 0.05])
def test_second_derivative(bandwidth):
    """Second differences of the exact error along a line: most of it comes from changes of sign that move."""
    said, came = forecasts(0, 30, 1.0)
    said = 0.02 + 0.96 * said
    direction, step = np.random.default_rng(5).standard_normal(30), 1e-3
    exact = oracle.smooth_calibration_error if bandwidth is None else oracle.smooth_error
    options = () if bandwidth is None else (bandwidth,)
    low, middle, high = (exact(said + t * direction, came, *options) for t in (-step, 0.0, step))
    with jax.enable_x64(True):

        def ours(t):
            probs = jnp.stack([1 - (said + t * direction), said + t * direction], 1)
            return smooth_calibration_error(came.astype(np.int32), probs=probs, classwise=True, bandwidth=bandwidth)

        second = jax.jit(jax.jacfwd(jax.grad(ours)))(0.0)
    np.testing.assert_allclose(second, (high - 2 * middle + low) / step**2, rtol=0.02)


def test_gradient_descent_calibrates():
    """A temperature found by following the gradient of smECE: over-confident logits end with a tenth of the error."""
    rng = np.random.default_rng(9)
    true = rng.standard_normal((2000, 3)).astype(np.float32)
    labels = np.array([rng.choice(3, p=p) for p in oracle.softmax_rows(true)], np.int32)
    logits = 4 * true
    step = jax.jit(jax.value_and_grad(lambda b: smooth_calibration_error(labels, logits=logits * jnp.exp(b))))
    b = jnp.float32(0.0)
    first = step(b)[0]
    for _ in range(60):
        b = b - 0.5 * step(b)[1]
    assert step(b)[0] < 0.15 * first
    np.testing.assert_allclose(jnp.exp(b), 0.25, rtol=0.15)


# The curve.


@pytest.mark.parametrize("bandwidth", [None, 0.05])
def test_curve(bandwidth):
    """Kernel regression pair by pair, at the bandwidth of the error unless another is given."""
    said, came = forecasts(1, 120, 2.0)
    probs, labels = as_classes(said, came)
    weights = np.random.default_rng(2).integers(0, 3, 120)
    curve = smooth_reliability_curve(
        labels, probs=probs, classwise=True, bandwidth=bandwidth, points=17, weights=weights
    )
    np.testing.assert_array_equal(curve.grid, np.linspace(0, 1, 17, dtype=np.float32))
    width = oracle.smooth_calibration_error(said, came, weights) if bandwidth is None else bandwidth
    np.testing.assert_allclose(curve.bandwidth[1], width, rtol=2e-5)
    kernel = np.stack([oracle.reflected_gaussian(np.linspace(0, 1, 17), f, width) for f in said], 1)
    np.testing.assert_allclose(curve.density[1], kernel @ weights / weights.sum(), rtol=1e-3)
    np.testing.assert_allclose(curve.accuracy[1], kernel @ (weights * came) / (kernel @ weights), rtol=1e-3, atol=1e-5)


def test_curve_of_the_top_label():
    """Flat where the accuracy is, a density that integrates to 1, and 0 where nobody is."""
    probs = np.float32([[0.9, 0.1]] * 4)
    curve = smooth_reliability_curve(np.int32([0, 0, 0, 1]), probs=probs, points=1001, bandwidth=0.02)
    near = np.abs(curve.grid - 0.9) < 0.05
    np.testing.assert_allclose(curve.accuracy[near], 0.75, rtol=1e-4)
    np.testing.assert_allclose(np.trapezoid(curve.density, curve.grid), 1.0, rtol=1e-4)
    assert np.all(curve.accuracy[curve.grid < 0.7] == 0)
    assert curve.accuracy.shape == curve.density.shape == (1001,)
    assert curve.bandwidth == np.float32(0.02)


P, Y = np.float32([[0.5, 0.5]]), np.int32([0])
BAD = [
    (smooth_calibration_error, {"bandwidth": -0.1}, ValueError, "bandwidth must be 0 or more"),
    (smooth_calibration_error, {"bandwidth": float("nan")}, ValueError, "bandwidth must be 0 or more"),
    (smooth_calibration_error, {"bandwidth": np.ones(2)}, ValueError, "bandwidth must be a scalar"),
    (smooth_calibration_error, {"bandwidth": "silverman"}, TypeError, "bandwidth must be an array"),
    (smooth_calibration_error, {"classwise": 1}, TypeError, "classwise must be True or False"),
    (smooth_reliability_curve, {"bandwidth": -1}, ValueError, "bandwidth must be 0 or more"),
    (smooth_reliability_curve, {"points": 1}, ValueError, "points must be 2 or more"),
    (smooth_reliability_curve, {"points": 10.0}, TypeError, "points must be an integer"),
    (smooth_reliability_curve, {"classwise": "both"}, TypeError, "classwise must be True or False"),
]


@pytest.mark.parametrize(("function", "options", "kind", "rule"), BAD, ids=lambda v: str(v)[:30])
def test_options(function, options, kind, rule):
    """The same error eagerly and under jit."""
    with pytest.raises(kind) as eager:
        function(Y, probs=P, **options)
    pattern = rf"jaxsoftmax\.calibration\.{function.__name__}: {re.escape(rule)}.*; got {next(iter(options))}="
    assert re.match(pattern, str(eager.value)), str(eager.value)
    with pytest.raises(kind) as traced:
        jax.jit(lambda p: function(Y, probs=p, **options))(P)
    assert str(traced.value) == str(eager.value)


def test_a_negative_bandwidth_that_is_an_array_makes_nan():
    assert np.isnan(jax.jit(lambda s: smooth_calibration_error(Y, probs=P, bandwidth=s))(np.float32(-0.1)))
