"""Pictures of calibration and of selective risk, with matplotlib: the extra `plots`, imported when one is first drawn.

Without `ax=` a picture is a `matplotlib.figure.Figure` of its own, which no window, no backend and no global state of
pyplot knows of; save it by `axes.figure.savefig(...)`, or show it as the last expression of a notebook's cell. The
values are read, so none of this is for use inside of jit.
"""

from collections.abc import Mapping
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from jaxsoftmax._core import checks
from jaxsoftmax.calibration.metrics import ReliabilityCurve, reliability_curve
from jaxsoftmax.calibration.risks import selective_risk

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["reliability_comparison", "reliability_diagram", "risk_coverage_plot"]

HISTOGRAM = "confidences"
BELOW = 0.3  # its height, for a diagram of height 1


def reliability_diagram(
    labels: ArrayLike,
    *,
    logits: ArrayLike | None = None,
    probs: ArrayLike | None = None,
    bins: int = 15,
    binning: str = "width",
    weights: ArrayLike | None = None,
    level: float = 0.95,
    ax: "Axes | None" = None,
    label: str | None = None,
) -> "Axes":
    """Draws accuracy against confidence, with confidence bands, and a histogram of the confidences below.

    Args:
        labels: [...], integers in [0, V).
        logits: [..., V], floating; give either these or the probabilities.
        probs: [..., V], floating; each row sums to 1.
        bins: How many, 1 or more.
        binning: "width" for bins of equal width, "mass" for bins of equal weight.
        weights: [...], how many times each row counts, 0 or more; 1 by default.
        level: Of the bands, between 0 and 1.
        ax: Where to draw; by default a new figure. The histogram takes half of the height of these axes from the room
            below them. Call again with the same axes for a second curve, as of the probabilities after a calibration,
            or use `reliability_comparison`.
        label: For the legend, to which the expected calibration error is added.

    Returns:
        Axes with the curve; their child below has the histogram, and `axes.figure` is the whole figure.

    Raises:
        ImportError: Matplotlib is not installed.
        TypeError: As for `reliability_curve`.
        ValueError: As for `reliability_curve`, or the level is out of range.

    Numerics:
        The bins are those of `reliability_curve`, and empty ones are left out. A band is Wilson's interval of a bin's
        accuracy, with the bin's weight for the number of rows: it is never empty, not even at accuracy 1.

    Gradient:
        None: a picture.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> probs, labels = jnp.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]]), jnp.array([0, 1, 1])
        >>> axes = jaxsoftmax.calibration.reliability_diagram(labels, probs=probs, label="raw")
        >>> print(axes.get_legend_handles_labels()[1])
        ['raw (ECE 43.3 %)']

    References:
        M. H. DeGroot and S. E. Fienberg, The Comparison and Evaluation of Forecasters, 1983.
        E. B. Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.
    """
    name = "calibration.reliability_diagram"
    _check_level(name, level)
    curve = reliability_curve(labels, logits=logits, probs=probs, bins=bins, binning=binning, weights=weights)
    axes = _new_diagrams(name, 1)[1][0] if ax is None else ax
    _draw_reliability(axes, curve, level, label)
    return axes


def reliability_comparison(
    labels: ArrayLike,
    *,
    logits: Mapping[str, ArrayLike] | None = None,
    probs: Mapping[str, ArrayLike] | None = None,
    bins: int = 15,
    binning: str = "width",
    weights: ArrayLike | None = None,
    level: float = 0.95,
) -> "Figure":
    """Draws reliability diagrams of the same rows side by side, such as before and after a calibration.

    Args:
        labels: [...], integers in [0, V).
        logits: By name, as {"before": [..., V], "after": [..., V]}; give either these or the probabilities.
        probs: By name, [..., V] each.
        bins: How many, 1 or more.
        binning: "width" for bins of equal width, "mass" for bins of equal weight.
        weights: [...], how many times each row counts, 0 or more; 1 by default.
        level: Of the bands, between 0 and 1.

    Returns:
        Figure with one `reliability_diagram` for each name, in this order and under this title.

    Raises:
        ImportError: Matplotlib is not installed.
        TypeError: Neither or both of logits and probs are given, they are no mapping, or as for `reliability_curve`.
        ValueError: There is no name, the level is out of range, or as for `reliability_curve`.

    Gradient:
        None: a picture.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> logits, labels = jnp.array([[3.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 1, 1])
        >>> named = {"before": logits, "after": logits / 2.0}
        >>> figure = jaxsoftmax.calibration.reliability_comparison(labels, logits=named)
        >>> print([axes.get_title() for axes in figure.axes])
        ['before', 'after']
    """
    name = "calibration.reliability_comparison"
    _check_level(name, level)
    owner, named = checks.exactly_one(name, logits=logits, probs=probs)
    if not isinstance(named, Mapping):
        checks.fail(TypeError, name, f"{owner} must be a mapping from names to arrays", **{owner: named})
    if not named:
        checks.fail(ValueError, name, f"{owner} must have a name or more", **{owner: named})
    curves = {}
    for title, values in named.items():
        given: dict[str, Any] = {owner: values}
        curves[title] = reliability_curve(labels, **given, bins=bins, binning=binning, weights=weights)
    figure, columns = _new_diagrams(name, len(curves))
    for axes, (title, curve) in zip(columns, curves.items(), strict=True):
        _draw_reliability(axes, curve, level, None)
        axes.set_title(title)
    return figure


def risk_coverage_plot(
    uncertainty: ArrayLike,
    losses: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    ax: "Axes | None" = None,
    label: str | None = None,
) -> "Axes":
    """Draws the mean loss of the least uncertain rows against their share of all rows.

    Args:
        uncertainty: [N], floating: larger for rows that are accepted later.
        losses: [N], numbers: 1 for a mistake and 0 else, or any finite cost.
        weights: [N], how much each row counts, ≥ 0; 1 by default.
        ax: Where to draw; by default a new figure. Call again with the same axes for the curve of another score.
        label: For the legend, to which the area under the curve is added.

    Returns:
        Axes with the curve; `axes.figure` is the whole figure.

    Raises:
        ImportError: Matplotlib is not installed.
        TypeError: As for `selective_risk`.
        ValueError: As for `selective_risk`.

    Gradient:
        None: a picture.

    Example:
        >>> import jax.numpy as jnp, jaxsoftmax
        >>> uncertainty, losses = jnp.array([0.1, 0.3, 0.2, 0.9]), jnp.array([0, 1, 0, 1])
        >>> axes = jaxsoftmax.calibration.risk_coverage_plot(uncertainty, losses, label="margin")
        >>> print(axes.get_legend_handles_labels()[1])
        ['margin (AURC 0.2083)']
    """
    name = "calibration.risk_coverage_plot"
    curve = selective_risk(uncertainty, losses, weights=weights)
    axes = _new_figure(name, 4.5, 3.6).add_subplot() if ax is None else ax
    title = _entry(label, f"AURC {float(curve.area):.4f}")
    axes.plot(np.asarray(curve.coverage), np.asarray(curve.risk), label=title)
    axes.set_xlim(0.0, 1.0)
    axes.set_xlabel("coverage")
    axes.set_ylabel("risk")
    axes.legend()
    return axes


def _check_level(name: str, level: float) -> None:
    if not (isinstance(level, int | float | np.number) and 0 < level < 1):
        checks.fail(ValueError, name, "level must be a number between 0 and 1", level=level)


def _entry(label: str | None, number: str) -> str:
    """For the legend."""
    return number if label is None else f"{label} ({number})"


def _new_figure(name: str, width: float, height: float) -> "Figure":
    """A figure that pyplot does not know, of a size in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        message = f"jaxsoftmax.{name}: pictures need matplotlib; pip install jaxsoftmax[plots]"
        raise ImportError(message) from error
    return Figure(figsize=(width, height), layout="constrained")


def _new_diagrams(name: str, columns: int) -> "tuple[Figure, list[Axes]]":
    """A figure and its axes side by side, with room for the histograms, which the layouts of matplotlib cut off."""
    width, height = 4.5 * columns, 5.5
    figure = _new_figure(name, width, height)
    figure.set_layout_engine("none")
    inches = {"left": 0.65, "right": width - 0.15, "bottom": 1.8, "top": height - 0.35}
    edges = {edge: at / (width if edge in ("left", "right") else height) for edge, at in inches.items()}
    return figure, list(figure.subplots(1, columns, squeeze=False, gridspec_kw={**edges, "wspace": 0.25})[0])


def _draw_reliability(axes: "Axes", curve: ReliabilityCurve, level: float, label: str | None) -> None:
    edges, confidence, accuracy, gap, weight = (np.asarray(field, np.float64) for field in curve)
    share = weight / max(weight.sum(), np.finfo(np.float64).tiny)
    filled = weight > 0
    left, width = edges[:-1][filled], np.diff(edges)[filled]
    low, high = wilson_interval(accuracy[filled], weight[filled], level)

    children: list[Any] = [child for child in axes.child_axes if child.get_label() == HISTOGRAM]
    below: Axes = children[0] if children else _prepared(axes)
    error = 100.0 * float(np.sum(share * np.abs(gap)))
    title = _entry(label, f"ECE {error:.1f} %")
    # Unclipped, so that a marker at 0 or 1 is whole.
    (line,) = axes.plot(confidence[filled], accuracy[filled], marker="o", markersize=4, label=title, clip_on=False)
    style: dict[str, Any] = {"width": width, "align": "edge", "color": line.get_color()}
    axes.bar(left, high - low, bottom=low, alpha=0.25, **style)
    below.bar(left, share[filled], alpha=0.5, **style)
    axes.legend(loc="upper left")


def _prepared(axes: "Axes") -> "Axes":
    """The diagonal, limits and names; returns the axes of the histogram, which it makes."""
    axes.plot([0.0, 1.0], [0.0, 1.0], linestyle="--", linewidth=1, color="gray", label="_perfect")
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(0.0, 1.0)
    axes.set_ylabel("accuracy")
    axes.tick_params(labelbottom=False)
    below = axes.inset_axes((0.0, -BELOW - 0.05, 1.0, BELOW), sharex=axes, label=HISTOGRAM)
    below.tick_params(labelbottom=True)
    below.set_xlabel("confidence")
    below.set_ylabel("share of rows")
    return below


def wilson_interval(share: np.ndarray, count: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities q that a share of successes does not contradict: (share - q)² ≤ z² q (1 - q) / count."""
    squared = NormalDist().inv_cdf((1.0 + float(level)) / 2.0) ** 2 / count
    middle = share + squared / 2.0
    half = np.sqrt(squared * (share * (1.0 - share) + squared / 4.0))
    low, high = (middle - half) / (1.0 + squared), (middle + half) / (1.0 + squared)
    return np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)
