"""Calibration without bins: the smooth calibration error, and the reliability curve that goes with it."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxsoftmax._core import arrays, calls, checks, meshes, scalars
from jaxsoftmax.calibration import inputs

__all__ = ["SmoothReliabilityCurve", "smooth_calibration_error", "smooth_reliability_curve"]

CELLS = 4096  # of the grid on [0, 1]
CLASSES_AT_ONCE = 64
STEPS = 60  # bisection alone takes 25 in float32 and 54 in float64
THIN = 1e-4  # a density under which there is nothing to average


class SmoothReliabilityCurve(NamedTuple):
    """Accuracy as a smooth function of confidence; with `classwise`, every field but the grid has a leading axis of V.

    Attributes:
        grid: [points], from 0 to 1, evenly spaced.
        accuracy: [points], the accuracy near this confidence; 0 where the density is below 1e-4.
        density: [points], of the confidences, which integrates to 1 over [0, 1].
        bandwidth: A scalar, the standard deviation of the kernel.
    """

    grid: jax.Array
    accuracy: jax.Array
    density: jax.Array
    bandwidth: jax.Array


def smooth_calibration_error(
    labels: ArrayLike,
    *,
    logits: ArrayLike | None = None,
    probs: ArrayLike | None = None,
    bandwidth: ArrayLike | None = None,
    classwise: bool = False,
    weights: ArrayLike | None = None,
) -> jax.Array:
    """The smooth calibration error, smECE: no bins, one number, the same for every reader.

    smECE_σ = ∫₀¹ |Σᵢ wᵢ (yᵢ - fᵢ) K_σ(t, fᵢ)| dt / Σ w,  taken at the σ for which smECE_σ = σ

    f is the confidence in the top label, y whether it is right, and K_σ the Gaussian of standard deviation σ, reflected
    at 0 and 1.

    Args:
        labels: [...], integers in [0, V).
        logits: [..., V], floating; give either these or the probabilities.
        probs: [..., V], floating; each row sums to 1.
        bandwidth: σ ≥ 0, a scalar, instead of the fixed point.
        classwise: Take f as the probability of a class and y as whether it is the label, and the mean over the classes
            of their errors. With two classes that is the error of the probability of either.
        weights: [...], how many times each row counts, 0 or more; 1 by default.

    Returns:
        A scalar in [0, 1], float32 or wider; 0 where the weights sum to 0, for no rows at all, and for V = 1.

    Raises:
        TypeError: Neither or both of logits and probs are given, a dtype is wrong, or classwise is not a bool.
        ValueError: A shape does not fit, the bandwidth is negative, or values that can be seen, not traced, are out of
            range: labels, weights, or probabilities that are none.

    Numerics:
        On a grid of 4096 cells, in O(N + cells) memory and two short Fourier transforms for each of some six steps. The
        grid adds to σ² at most a quarter of the square of a cell: 3e-4 of σ at 0.005, 2e-5 at 0.02; lines between its
        points cut off 1e-5 of the error at 0.005. Below the width of a cell, 2.4e-4, the kernel is as coarse as the
        grid. Traced labels or probabilities that are out of range, and an array of a negative bandwidth, make NaN.

    Gradient:
        By the implicit function theorem, d smECE = d(smECE_σ at fixed σ) / (1 - ∂smECE_σ/∂σ), whose denominator is 1 or
        more: finite everywhere, 0 where the error is 0. It is the derivative of the integral, not of its sum on the
        grid. All modes; second derivatives are finite too, and right where the smoothed residual changes its sign with
        a slope.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> probs = jnp.array([[0.7, 0.3], [0.7, 0.3]])
        >>> print(f"{jaxsoftmax.calibration.smooth_calibration_error(jnp.array([0, 0]), probs=probs):.4f}")
        0.3000

    References:
        J. Błasiok, P. Nakkiran, Smooth ECE: Principled Reliability Diagrams via Kernel Smoothing, 2023.
    """
    name = "calibration.smooth_calibration_error"
    checks.flag(name, classwise=classwise)
    bandwidth = _bandwidth_of(name, bandwidth)
    rows = inputs.rows_of(name, labels, logits, probs, weights)
    return smooth_error_of_rows(rows, bandwidth, classwise=classwise)


def smooth_reliability_curve(
    labels: ArrayLike,
    *,
    logits: ArrayLike | None = None,
    probs: ArrayLike | None = None,
    bandwidth: ArrayLike | None = None,
    points: int = 201,
    classwise: bool = False,
    weights: ArrayLike | None = None,
) -> SmoothReliabilityCurve:
    """Accuracy against confidence by kernel regression, for plots; the kernel is that of the smooth calibration error.

    accuracy(t) = Σᵢ wᵢ yᵢ K_σ(t, fᵢ) / Σᵢ wᵢ K_σ(t, fᵢ),  density(t) = Σᵢ wᵢ K_σ(t, fᵢ) / Σ w

    Args:
        labels: [...], integers in [0, V).
        logits: [..., V], floating; give either these or the probabilities.
        probs: [..., V], floating; each row sums to 1.
        bandwidth: σ ≥ 0, a scalar; by default the smooth calibration error itself.
        points: Of the grid, 2 or more.
        classwise: One curve for the probability of each class, instead of the one of the top label.
        weights: [...], how many times each row counts, 0 or more; 1 by default.

    Returns:
        SmoothReliabilityCurve, float32 or wider; accuracy and density are 0 where the weights sum to 0.

    Raises:
        TypeError: Neither or both of logits and probs are given, a dtype is wrong, points is not an integer, or
            classwise is not a bool.
        ValueError: A shape does not fit, points or the bandwidth is out of range, or values that can be seen, not
            traced, are out of range: labels, weights, or probabilities that are none.

    Numerics:
        As `smooth_calibration_error`, between whose grid points the curve is linear. Where the density is below 1e-4
        the accuracy is 0. Traced labels or probabilities that are out of range make NaN.

    Gradient:
        Through confidences and bandwidth. All modes.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> labels, probs = jnp.array([0, 1]), jnp.array([[0.9, 0.1], [0.6, 0.4]])
        >>> curve = jaxsoftmax.calibration.smooth_reliability_curve(labels, probs=probs, bandwidth=0.05, points=6)
        >>> print([f"{accuracy:.2f}" for accuracy in curve.accuracy])
        ['0.00', '0.00', '0.00', '0.00', '1.00', '1.00']

    References:
        J. Błasiok, P. Nakkiran, Smooth ECE: Principled Reliability Diagrams via Kernel Smoothing, 2023.
    """
    name = "calibration.smooth_reliability_curve"
    checks.flag(name, classwise=classwise)
    checks.whole(name, points=points)
    checks.numbers_in(name, 2, math.inf, points=points)
    bandwidth = _bandwidth_of(name, bandwidth)
    rows = inputs.rows_of(name, labels, logits, probs, weights)
    return _curve_call(rows, bandwidth, points=points, classwise=classwise)


# Each residual is shared by the two grid points beside its confidence, which keeps its mass and its mean. The grid is
# continued evenly beyond 0 and 1: on the circle of twice its length the reflected kernel is a plain convolution, and
# the two end points, their own mirror images, hold their mass twice. The convolution is the heat flow of the grid, that
# is
#     exp(-σ² (1 - cos θ) / h²)  at the frequency θ per cell of width h,
# which is the Gaussian for σ much above h, has variance σ² for every σ, and is a kernel of nonnegative weights even at
# σ = 0, where it is the identity. Hence the L1 norm never grows with σ, be it that of the nodes or of the lines between
# them, of which the kernel takes a mean of translates; smECE_σ - σ falls strictly, from smECE_0 at 0 to below 0 at
# smECE_0, and has one root between.


@calls.compiled("classwise")
def smooth_error_of_rows(rows: inputs.Rows, bandwidth: Any, *, classwise: bool) -> jax.Array:
    """The error of rows in canonical form."""
    confidence, right = inputs.events(rows, classwise)

    def one(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        spectrum = _spectrum(pair[0], _shares(rows.weights) * (pair[1] - pair[0]))
        return _fixed_point(spectrum) if bandwidth is None else _norm(spectrum, bandwidth.astype(spectrum.dtype))

    errors = lax.map(one, (confidence, right), batch_size=CLASSES_AT_ONCE)
    return inputs.poisoned(jnp.mean(errors), rows.broken)


@calls.compiled("points", "classwise")
def _curve_call(rows: inputs.Rows, bandwidth: Any, *, points: int, classwise: bool) -> SmoothReliabilityCurve:
    confidence, right = inputs.events(rows, classwise)
    shares = _shares(rows.weights)
    grid = jnp.asarray(np.linspace(0.0, 1.0, points), confidence.dtype)
    nodes = jnp.asarray(np.linspace(0.0, 1.0, CELLS + 1), confidence.dtype)

    def one(pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        said, came = pair
        width = bandwidth
        if width is None:
            width = _fixed_point(_spectrum(said, shares * (came - said)))
        width = width.astype(said.dtype)
        mass = _smoothed(_spectrum(said, shares), width)[: CELLS + 1]
        hits = _smoothed(_spectrum(said, shares * came), width)[: CELLS + 1]
        density, height = (jnp.interp(grid, nodes, x * CELLS) for x in (mass, hits))
        density = jnp.where(density < 0, 0.0, density)
        thick = density >= THIN
        return jnp.where(thick, height / jnp.where(thick, density, 1.0), 0.0), density, width

    accuracy, density, width = lax.map(one, (confidence, right), batch_size=CLASSES_AT_ONCE)
    if not classwise:
        accuracy, density, width = accuracy[0], density[0], width[0]
    return inputs.poisoned(SmoothReliabilityCurve(grid, accuracy, density, width), rows.broken)


def _bandwidth_of(name: str, bandwidth: ArrayLike | None) -> jax.Array | None:
    """A scalar, NaN where an array that is given is negative, or None."""
    checks.numbers_in(name, 0, math.inf, bandwidth=bandwidth)
    if bandwidth is None:
        return None
    given = checks.numeric(name, bandwidth=bandwidth)
    scalar = checks.scalar(name, arrays.compute_dtype(given.dtype), bandwidth=given)
    return jnp.where(scalar >= 0, scalar, jnp.nan)


def _shares(weights: jax.Array) -> jax.Array:
    """w / Σ w, and 0 where that sum is 0."""
    weights = meshes.whole(weights)
    return weights * scalars.inverse(jnp.sum(weights))


@jax.custom_jvp
def _spectrum(places: jax.Array, masses: jax.Array) -> jax.Array:
    """[CELLS + 1], the real Fourier coefficients  2 Σᵢ mᵢ cos(π k xᵢ)  of masses [N] at places [N] in [0, 1]."""
    nodes = _nodes(places, masses)
    circle = jnp.concatenate([2.0 * nodes[:1], nodes[1:-1], 2.0 * nodes[-1:], nodes[-2:0:-1]])
    return jnp.real(jnp.fft.rfft(circle))


@_spectrum.defjvp
def _spectrum_tangent(primals: Any, tangents: Any) -> Any:
    """2 Σᵢ (dmᵢ cos(π k xᵢ) - π k mᵢ dxᵢ sin(π k xᵢ)), the second sum from an odd continuation.

    Differences of neighbouring nodes, which is what the linear shares would give, lose three digits more.
    """
    (places, masses), (by_places, by_masses) = primals, tangents
    nodes = _nodes(places, masses * by_places)[1:-1]
    zero = jnp.zeros(1, nodes.dtype)
    sines = jnp.imag(jnp.fft.rfft(jnp.concatenate([zero, nodes, zero, -nodes[::-1]])))
    rates = jnp.asarray(np.pi * np.arange(CELLS + 1), nodes.dtype)
    return _spectrum(places, masses), _spectrum(places, by_masses) + rates * sines


def _nodes(places: jax.Array, masses: jax.Array) -> jax.Array:
    """[CELLS + 1], the masses on the grid, each shared by its two neighbours."""
    cells = places * CELLS
    left = jnp.clip(jnp.floor(lax.stop_gradient(cells)), 0, CELLS - 1)
    share = cells - left  # not clipped: a place of 1.0000002 differs from 1 by rounding only
    index = left.astype(jnp.int32)
    size = CELLS + 1
    return inputs.sums_by(index, masses * (1.0 - share), size) + inputs.sums_by(index + 1, masses * share, size)


def _smoothed(spectrum: jax.Array, bandwidth: jax.Array) -> jax.Array:
    """[2 CELLS], the masses around the circle after smoothing."""
    rates = CELLS**2 * (1.0 - np.cos(np.pi / CELLS * np.arange(CELLS + 1)))
    decay = jnp.exp(-jnp.square(bandwidth) * jnp.asarray(rates, spectrum.dtype))
    return jnp.fft.irfft(spectrum * decay, n=2 * CELLS)


def _norm(spectrum: jax.Array, bandwidth: jax.Array) -> jax.Array:
    """smECE_σ: the integral of the absolute value over [0, 1], half of that around the circle.

    Linear between the nodes, so that a change of sign moves with the rows, as second derivatives need it: of a line
    from a > 0 down to -b < 0 the integral is (a² + b²) / 2 (a + b), in units of a cell.
    """
    left = _smoothed(spectrum, bandwidth)
    right = jnp.roll(left, -1)
    crossed = jnp.sign(left) * jnp.sign(right) < 0
    both = jnp.abs(left) + jnp.abs(right)
    squares = jnp.square(left) + jnp.square(right)
    return 0.25 * jnp.sum(jnp.where(crossed, squares / jnp.where(crossed, both, 1.0), both))


def _fixed_point(spectrum: jax.Array) -> jax.Array:
    """The σ for which smECE_σ = σ."""

    def excess(bandwidth: jax.Array) -> jax.Array:
        return _norm(spectrum, bandwidth) - bandwidth

    def solve(function: Any, start: jax.Array) -> jax.Array:
        """Newton's method, and bisection where a step leaves the bracket, until the step is one of rounding."""
        tolerance = 4.0 * float(jnp.finfo(start.dtype).eps)

        def unfinished(state: Any) -> jax.Array:
            _, step, *_, count = state
            return (jnp.abs(step) > tolerance) & (count < STEPS)

        def improve(state: Any) -> Any:
            root, _, low, high, count = state
            value, slope = jax.jvp(function, (root,), (jnp.ones_like(root),))
            low, high = jnp.where(value > 0, root, low), jnp.where(value > 0, high, root)
            newton = root - value / slope
            better = jnp.where((newton >= low) & (newton <= high), newton, 0.5 * (low + high))
            return better, better - root, low, high, count + 1

        first = (start, start, jnp.zeros_like(start), start, jnp.zeros((), jnp.int32))
        return lax.while_loop(unfinished, improve, first)[0]

    start = lax.stop_gradient(_norm(spectrum, jnp.zeros((), spectrum.dtype)))
    return lax.custom_root(excess, start, solve, lambda linear, y: y / linear(jnp.ones_like(y)))
