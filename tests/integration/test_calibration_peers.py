"""Side by side with scikit-learn, torchmetrics, netcal and relplot: the same numbers, or the reason why not."""

import importlib
import warnings

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss, precision_recall_fscore_support

from jaxsoftmax import calibration
from tests.oracles.calibration import softmax_rows

RNG = np.random.default_rng(0)
LOGITS = (2 * RNG.standard_normal((600, 4))).astype(np.float32)
PROBS = softmax_rows(LOGITS).astype(np.float32)
LABELS = RNG.integers(0, 4, 600).astype(np.int32)
WEIGHTS = RNG.integers(0, 3, 600).astype(np.float32)


def peer(name):
    """The package, or a skip; what it warns of as it is imported is its own affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError:
            pytest.skip(f"{name} is not installed")


def two_classes(said):
    """Probabilities [N, 2] of an event that is class 1."""
    said = np.asarray(said)
    return np.stack([1 - said, said], 1).astype(np.float32)


def top_gaps(labels, probs, bins):
    """The curve of the event alone: class 1 of two."""
    curve = calibration.reliability_curve(labels, probs=probs, bins=bins, classwise=True)
    return np.sum(curve.weight[1] * np.abs(curve.gap[1])) / len(labels)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_scores_of_scikit_learn(weights):
    """Its Brier score of several classes has our scale; that of two, by default half of it."""
    wide = PROBS.astype(np.float64)
    wide /= wide.sum(1, keepdims=True)
    options = {"sample_weight": weights, "labels": range(4)}
    ours = {"weights": weights, "probs": PROBS}
    np.testing.assert_allclose(
        calibration.brier_score(LABELS, **ours), brier_score_loss(LABELS, wide, **options), rtol=1e-5
    )
    np.testing.assert_allclose(
        calibration.negative_log_likelihood(LABELS, **ours), log_loss(LABELS, wide, **options), rtol=1e-5
    )
    event = LABELS % 2
    half = brier_score_loss(event, PROBS[:, 1], sample_weight=weights)
    score = calibration.brier_score(event, probs=two_classes(PROBS[:, 1]), weights=weights)
    np.testing.assert_allclose(score / 2, half, rtol=1e-5)


def test_likelihood_is_not_clipped_as_in_scikit_learn():
    """What was called impossible costs inf; scikit-learn clips at the rounding of the dtype."""
    assert np.isfinite(log_loss([1, 0], np.array([[1.0, 0.0], [0.5, 0.5]])))
    assert calibration.negative_log_likelihood(np.int32([1, 0]), probs=np.float32([[1, 0], [0.5, 0.5]])) == np.inf


@pytest.mark.parametrize(("strategy", "binning"), [("uniform", "width"), ("quantile", "mass")])
def test_curve_of_scikit_learn(strategy, binning):
    """The same bins, of which scikit-learn leaves out the empty ones."""
    event, said = LABELS % 2, PROBS[:, 1]
    accuracy, confidence = calibration_curve(event, said.astype(np.float64), n_bins=12, strategy=strategy)
    curve = calibration.reliability_curve(event, probs=two_classes(said), bins=12, binning=binning, classwise=True)
    full = curve.weight[1] > 0
    np.testing.assert_allclose(curve.accuracy[1][full], accuracy, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(curve.confidence[1][full], confidence, rtol=1e-5)


def test_edges_of_scikit_learn():
    """A confidence on an edge is in the bin below, there and here."""
    said, event = np.array([0.2, 0.15, 0.4, 0.7, 0.65]), np.int32([1, 0, 1, 0, 1])
    accuracy, _ = calibration_curve(event, said, n_bins=10)
    curve = calibration.reliability_curve(event, probs=two_classes(said), bins=10, classwise=True)
    np.testing.assert_allclose(curve.accuracy[1][curve.weight[1] > 0], accuracy, rtol=1e-6)


def test_ties_in_quantiles_of_scikit_learn():
    """Its quantile edges repeat where many are tied, and the row below joins them; ours go by cumulative weight."""
    said, event = np.array([0.1, 0.5, 0.5, 0.5, 0.5, 0.9]), np.int32([0, 1, 0, 1, 0, 1])
    accuracy, _ = calibration_curve(event, said, n_bins=3, strategy="quantile")
    curve = calibration.reliability_curve(event, probs=two_classes(said), bins=3, binning="mass", classwise=True)
    np.testing.assert_allclose(accuracy, [2 / 5, 1])
    np.testing.assert_allclose(curve.accuracy[1], [0, 0.5, 1])


def test_classes_of_scikit_learn():
    summary = calibration.calibration_summary(LABELS, probs=PROBS, weights=WEIGHTS)
    theirs = precision_recall_fscore_support(LABELS, PROBS.argmax(1), sample_weight=WEIGHTS, zero_division=0)
    for ours, their in zip((summary.precision, summary.recall, summary.f1, summary.support), theirs, strict=True):
        np.testing.assert_allclose(ours, their, rtol=1e-5)


def torch_error(probs, labels, **options):
    """torchmetrics' calibration error of the top label."""
    torch, metrics = peer("torch"), peer("torchmetrics.functional.classification")
    given = torch.tensor(np.asarray(probs)), torch.tensor(np.asarray(labels, np.int64))
    return float(metrics.multiclass_calibration_error(*given, probs.shape[1], **options))


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("norm", [1, 2, "max"])
def test_errors_of_torchmetrics(norm, bins):
    """The same where no confidence is on an edge."""
    theirs = torch_error(PROBS, LABELS, n_bins=bins, norm="max" if norm == "max" else f"l{norm}")
    ours = calibration.expected_calibration_error(LABELS, probs=PROBS, bins=bins, norm=norm)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_certainty_in_torchmetrics():
    """Its bins are closed below, so that 1 has a bin too many, apart from 0.95: (0.05 + 1) / 2 and not 0.475."""
    probs, labels = np.float32([[1.0, 0.0], [0.95, 0.05]]), np.int32([1, 0])
    np.testing.assert_allclose(torch_error(probs, labels, n_bins=10), 0.525, rtol=1e-6)
    ours = calibration.expected_calibration_error(labels, probs=probs, bins=10)
    np.testing.assert_allclose(ours, abs(0.975 - 0.5), rtol=1e-6)


def test_edges_in_torchmetrics():
    """0.8 of ten bins is in the bin above there, with 0.85; here and in netcal in the bin below, alone."""
    probs, labels = np.float32([[0.8, 0.2], [0.85, 0.15]]), np.int32([1, 0])
    np.testing.assert_allclose(torch_error(probs, labels, n_bins=10), abs(0.825 - 0.5), rtol=1e-6)
    ours = calibration.expected_calibration_error(labels, probs=probs, bins=10)
    np.testing.assert_allclose(ours, (0.8 + 0.15) / 2, rtol=1e-6)


def test_logits_that_look_like_probabilities_in_torchmetrics():
    """It takes numbers in [0, 1] for probabilities; here the name of the argument says what they are."""
    logits, labels = np.float32([[0.9, 0.3], [0.2, 0.8]]), np.int32([0, 1])
    guessed = torch_error(logits, labels, n_bins=10)
    np.testing.assert_allclose(guessed, 0.15, rtol=1e-5)
    ours = calibration.expected_calibration_error(labels, logits=logits, bins=10)
    np.testing.assert_allclose(ours, np.mean(1 - softmax_rows(logits).max(1)), rtol=1e-5)
    with pytest.raises(ValueError, match="probs must sum to 1"):
        calibration.expected_calibration_error(labels, probs=logits, bins=10)


@pytest.mark.filterwarnings("ignore")
def test_errors_of_netcal():
    """ECE and MCE; its ACE is the mean over the bins that are not empty, each counting the same, of equal width."""
    metrics = peer("netcal.metrics")
    wide = PROBS.astype(np.float64)
    theirs = [kind(bins=10).measure(wide, LABELS) for kind in (metrics.ECE, metrics.MCE, metrics.ACE)]
    curve = calibration.reliability_curve(LABELS, probs=PROBS, bins=10)
    ours = [calibration.expected_calibration_error(LABELS, probs=PROBS, bins=10, norm=norm) for norm in (1, "max")]
    np.testing.assert_allclose([*ours, np.mean(np.abs(curve.gap)[curve.weight > 0])], theirs, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("said", "event"),
    [
        ([0.0, 0.05, 0.9], [1, 0, 1]),
        ([0.05, 0.95, 1.0], [1, 0, 1]),
        ([0.3, 0.25], [1, 0]),
        ([0.3, 0.35], [1, 0]),
        ([0.6, 0.55], [1, 0]),
        ([0.7, 0.75], [1, 0]),
        ([0.5], [1]),
    ],
)
def test_edges_of_netcal(said, event):
    """0, 1 and the edges between are where ours are."""
    theirs = peer("netcal.metrics").ECE(bins=10).measure(np.array(said), np.array(event))
    np.testing.assert_allclose(top_gaps(np.int32(event), two_classes(said), 10), theirs, rtol=1e-5)


@pytest.mark.parametrize(("seed", "power"), [(0, 1.0), (1, 2.0), (2, 0.5)])
def test_smooth_error_of_relplot(seed, power):
    """To the resolution of its bandwidth, 2^-10: as it comes, and with a finer mesh for what is left of its error."""
    relplot = peer("relplot")
    rng = np.random.default_rng(seed)
    said = rng.uniform(size=400)
    event = (rng.uniform(size=400) < said**power).astype(np.int32)
    ours = calibration.smooth_calibration_error(event, probs=two_classes(said), classwise=True)
    np.testing.assert_allclose(ours, relplot.smECE(said, event.astype(float)), atol=1e-3, rtol=0)
    at = calibration.smooth_calibration_error(event, probs=two_classes(said), classwise=True, bandwidth=0.1)
    np.testing.assert_allclose(at, relplot.smECE_sigma(said, event.astype(float), sigma=0.1), atol=1e-3, rtol=0)


def test_top_label_of_relplot():
    """The confidence and the correctness of several classes, as its own function takes them from logits."""
    relplot = peer("relplot")
    said, right = relplot.multiclass_logits_to_confidences(LOGITS, LABELS)
    ours = calibration.smooth_calibration_error(LABELS, logits=LOGITS)
    np.testing.assert_allclose(ours, relplot.smECE(np.asarray(said), np.asarray(right, float)), atol=1e-3, rtol=0)
