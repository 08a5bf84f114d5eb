"""The pictures: what is drawn is what the metrics say, and nothing global changes."""

import io
import os
import subprocess
import sys
from pathlib import Path

import jax
import matplotlib
import numpy as np
import pytest
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import jaxsoftmax
from jaxsoftmax import calibration
from jaxsoftmax.calibration.plots import wilson_interval

RNG = np.random.default_rng(0)
LOGITS = (3.0 * RNG.standard_normal((300, 4))).astype(np.float32)
LABELS = np.where(RNG.uniform(size=300) < 0.6, LOGITS.argmax(-1), RNG.integers(0, 4, 300))


def png(figure):
    """The size of the drawing, which fails where an artist is broken."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return len(buffer.getvalue())


def histogram(axes):
    (below,) = axes.child_axes
    return below


def rectangles(axes):
    """Left, bottom, width and height of every bar."""
    return np.array([(*bar.get_xy(), bar.get_width(), bar.get_height()) for bar in axes.patches])


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_reliability_diagram_draws_the_curve(binning):
    axes = calibration.reliability_diagram(LABELS, logits=LOGITS, bins=10, binning=binning, label="raw")
    curve = calibration.reliability_curve(LABELS, logits=LOGITS, bins=10, binning=binning)
    edges, confidence, accuracy, _, weight = map(np.asarray, curve)
    filled = weight > 0
    assert isinstance(axes, Axes) and png(axes.figure) > 5000

    diagonal, line = axes.get_lines()
    np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
    np.testing.assert_allclose(line.get_xydata(), np.stack([confidence, accuracy], -1)[filled], rtol=1e-6)

    left, low, width, height = rectangles(axes).T
    np.testing.assert_allclose(left, edges[:-1][filled], rtol=1e-6)
    np.testing.assert_allclose(width, np.diff(edges)[filled], rtol=1e-5)
    assert np.all((low <= accuracy[filled]) & (accuracy[filled] <= low + height + 1e-9)) and np.all(height > 0)

    left, low, width, height = rectangles(histogram(axes)).T
    np.testing.assert_allclose(left, edges[:-1][filled], rtol=1e-6)
    np.testing.assert_array_equal(low, 0)
    np.testing.assert_allclose(height, weight[filled] / 300, rtol=1e-6)
    np.testing.assert_allclose(height.sum(), 1, rtol=1e-6)

    error = calibration.expected_calibration_error(LABELS, logits=LOGITS, bins=10, binning=binning)
    assert axes.get_legend_handles_labels()[1] == [f"raw (ECE {100 * float(error):.1f} %)"]


def test_bands_are_wilson_intervals():
    """Against scipy, at a share of 0 and 1 too; more confidence or fewer rows make them wider."""
    shares, counts = np.array([0, 3, 7, 10, 1]), np.array([4, 10, 10, 10, 1])
    for level in (0.5, 0.95, 0.999):
        low, high = wilson_interval(shares / counts, counts, level)
        exact = [
            scipy.stats.binomtest(k, n).proportion_ci(level, "wilson") for k, n in zip(shares, counts, strict=True)
        ]
        np.testing.assert_allclose(np.stack([low, high], -1), exact, rtol=1e-9, atol=1e-12)
    heights = [
        rectangles(calibration.reliability_diagram(LABELS[:n], logits=LOGITS[:n], bins=1, level=level))[0, 3]
        for n, level in ((300, 0.5), (300, 0.95), (60, 0.95))
    ]
    assert heights[0] < heights[1] < heights[2]
    low, high = wilson_interval(np.array([float((LOGITS.argmax(-1) == LABELS).mean())]), np.array([300.0]), 0.95)
    np.testing.assert_allclose(heights[1], high - low, rtol=1e-5)


def test_two_curves_in_one_diagram():
    """Before and after by two calls: one diagonal, one histogram with the bars of both, two entries."""
    axes = calibration.reliability_diagram(LABELS, logits=LOGITS, label="before")
    bars = len(histogram(axes).patches)
    again = calibration.reliability_diagram(LABELS, logits=LOGITS / 3, ax=axes, label="after")
    assert again is axes
    assert len(axes.get_lines()) == 3
    assert len(histogram(axes).patches) > bars
    titles = axes.get_legend_handles_labels()[1]
    assert [title.split()[0] for title in titles] == ["before", "after"]
    colors = [line.get_color() for line in axes.get_lines()[1:]]
    assert colors[0] != colors[1]
    assert axes.patches[0].get_facecolor()[:3] == matplotlib.colors.to_rgb(colors[0])
    assert axes.patches[-1].get_facecolor()[:3] == matplotlib.colors.to_rgb(colors[1])
    assert png(axes.figure) > 5000


def test_weights_are_numbers_of_rows():
    rng = np.random.default_rng(1)
    weights = rng.integers(0, 3, 300)
    weighted = calibration.reliability_diagram(LABELS, logits=LOGITS, weights=weights)
    repeated = calibration.reliability_diagram(np.repeat(LABELS, weights), logits=np.repeat(LOGITS, weights, axis=0))
    for of_axes in (lambda axes: axes, histogram):
        np.testing.assert_allclose(rectangles(of_axes(weighted)), rectangles(of_axes(repeated)), rtol=1e-4, atol=1e-6)


def test_reliability_comparison():
    probs = np.asarray(jaxsoftmax.softmax(LOGITS))
    for given in ({"logits": {"before": LOGITS, "after": LOGITS / 3}}, {"probs": {"before": probs, "after": probs}}):
        figure = calibration.reliability_comparison(LABELS, **given, bins=8)
        assert isinstance(figure, Figure) and png(figure) > 5000
        assert [axes.get_title() for axes in figure.axes] == ["before", "after"]
        one = calibration.reliability_diagram(LABELS, logits=LOGITS, bins=8)
        line, expected = (axes.get_lines()[1].get_xydata() for axes in (figure.axes[0], one))
        np.testing.assert_allclose(line, expected, rtol=1e-5)


def test_risk_coverage_plot():
    rng = np.random.default_rng(2)
    uncertainty = calibration.max_probability_score(LOGITS)
    losses = LOGITS.argmax(-1) != LABELS
    weights = rng.integers(0, 2, 300)
    curve = calibration.selective_risk(uncertainty, losses, weights=weights)
    axes = calibration.risk_coverage_plot(uncertainty, losses, weights=weights, label="probability")
    assert calibration.risk_coverage_plot(uncertainty, losses, ax=axes) is axes
    line, _ = axes.get_lines()
    np.testing.assert_array_equal(line.get_xydata(), np.stack([curve.coverage, curve.risk], -1))
    assert axes.get_legend_handles_labels()[1][0] == f"probability (AURC {float(curve.area):.4f})"
    assert png(axes.figure) > 5000


def test_no_rows():
    """An empty picture."""
    nothing = np.zeros(0, np.int32)
    axes = calibration.reliability_diagram(nothing, logits=LOGITS[:0])
    assert len(axes.patches) == 0 and png(axes.figure) > 1000
    axes = calibration.risk_coverage_plot(np.zeros(0, np.float32), nothing)
    assert png(axes.figure) > 1000


def test_nothing_global_changes(tmp_path):
    """Matplotlib is loaded by the first picture, pyplot never, and no setting is another afterwards."""
    script = """
import sys
import numpy as np
from jaxsoftmax import calibration
assert "matplotlib" not in sys.modules
labels, logits = np.array([0, 1]), np.eye(2, dtype=np.float32)
from matplotlib import rcParams
before = rcParams.copy()  # reading the backend by its key would load pyplot
calibration.reliability_diagram(labels, logits=logits).figure.savefig(sys.argv[1])
calibration.reliability_comparison(labels, logits={"a": logits})
calibration.risk_coverage_plot(logits[0], labels)
assert "matplotlib.pyplot" not in sys.modules
assert dict(dict.items(rcParams)) == dict(dict.items(before))
"""
    root = Path(jaxsoftmax.__file__).parent.parent
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    picture = tmp_path / "diagram.png"
    run = [sys.executable, "-W", "error", "-c", script, str(picture)]
    subprocess.run(run, env={**os.environ, "PYTHONPATH": path}, check=True, timeout=200)
    assert picture.stat().st_size > 1000


@pytest.mark.parametrize("name", ["reliability_diagram", "reliability_comparison", "risk_coverage_plot"])
def test_without_matplotlib(name, monkeypatch):
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    arguments = {
        "reliability_diagram": lambda f: f(LABELS, logits=LOGITS),
        "reliability_comparison": lambda f: f(LABELS, logits={"raw": LOGITS}),
        "risk_coverage_plot": lambda f: f(LOGITS[:, 0], LABELS),
    }
    with pytest.raises(ImportError, match=rf"jaxsoftmax\.calibration\.{name}: .*pip install jaxsoftmax\[plots\]"):
        arguments[name](getattr(calibration, name))


BAD = [
    ("reliability_diagram", {}, TypeError, "exactly one of logits and probs must be given"),
    ("reliability_diagram", {"logits": LOGITS, "level": 1.0}, ValueError, "level must be a number between 0 and 1"),
    ("reliability_diagram", {"logits": LOGITS, "bins": 0}, ValueError, "bins must be 1 or more"),
    ("reliability_diagram", {"probs": LOGITS}, ValueError, "probs must lie in [0, 1]"),
    ("reliability_comparison", {}, TypeError, "exactly one of logits and probs must be given"),
    ("reliability_comparison", {"logits": {}}, ValueError, "logits must have a name or more"),
    ("reliability_comparison", {"logits": LOGITS}, TypeError, "logits must be a mapping from names to arrays"),
    ("reliability_comparison", {"logits": {"a": LOGITS}, "level": "95"}, ValueError, "level must be a number between"),
]


@pytest.mark.parametrize(("name", "arguments", "kind", "rule"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input(name, arguments, kind, rule):
    with pytest.raises(kind) as error:
        getattr(calibration, name)(LABELS, **arguments)
    assert str(error.value).startswith("jaxsoftmax.calibration.")
    assert rule in str(error.value)


def test_not_inside_of_jit():
    """Values are read."""
    with pytest.raises(jax.errors.TracerArrayConversionError):
        jax.jit(lambda z: len(calibration.reliability_diagram(LABELS, logits=z).patches))(LOGITS)
