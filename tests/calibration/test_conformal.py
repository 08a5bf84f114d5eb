"""Conformal prediction: scores by the formulas, the exact rank, sets that agree with them, the promised coverage."""

from fractions import Fraction
from math import ceil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxsoftmax
from jaxsoftmax import calibration
from jaxsoftmax.calibration.conformal import _rank
from tests.helpers import assert_contract, assert_refused, call, masks, planted

RNG = np.random.default_rng(0)
LOGITS = (2.0 * RNG.standard_normal((60, 7))).astype(np.float32)
LABELS = RNG.integers(0, 7, 60).astype(np.int32)
KEY = jax.random.key(5)
METHODS = {
    "lac": {"method": "lac"},
    "aps": {"method": "aps"},
    "raps": {"method": "raps", "penalty": 0.1, "k_reg": 2},
    "random aps": {"method": "aps", "key": KEY},
    "random raps": {"method": "raps", "penalty": 0.1, "k_reg": 2, "key": KEY},
}


def softmax(logits):
    p = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def before_and_rank(p, label):
    """The probability of the classes before the label, and its rank from 1."""
    earlier = [j for j in range(len(p)) if p[j] > p[label] or (p[j] == p[label] and j < label)]
    return sum(p[j] for j in earlier), len(earlier) + 1


def test_scores_by_hand():
    probs = np.float32([[0.125, 0.5, 0.25, 0.125]] * 4)
    labels = np.arange(4)
    np.testing.assert_array_equal(calibration.conformal_scores(labels, probs=probs), [0.875, 0.5, 0.75, 0.875])
    aps = calibration.conformal_scores(labels, probs=probs, method="aps")
    np.testing.assert_array_equal(aps, [0.875, 0.5, 0.75, 1.0])
    raps = calibration.conformal_scores(labels, probs=probs, method="raps", penalty=0.5, k_reg=1)
    np.testing.assert_array_equal(raps, [0.875 + 1.0, 0.5, 0.75 + 0.5, 1.0 + 1.5])


def test_scores_by_the_formulas():
    """For every label of every row; the random ones at a draw that is uniform in [0, 1)."""
    rows, classes = LOGITS.shape
    logits, labels = np.repeat(LOGITS, classes, axis=0), np.tile(np.arange(classes), rows)
    p = softmax(logits)
    own = p[np.arange(len(p)), labels]
    before, rank = np.transpose([before_and_rank(*pair) for pair in zip(p, labels, strict=True)])
    scores = {name: calibration.conformal_scores(labels, logits=logits, **options) for name, options in METHODS.items()}
    extra = 0.1 * np.maximum(rank - 2, 0)
    np.testing.assert_allclose(scores["lac"], 1 - own, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(scores["aps"], before + own, rtol=1e-6)
    np.testing.assert_allclose(scores["raps"], before + own + extra, rtol=1e-6)
    np.testing.assert_allclose(scores["random raps"] - scores["random aps"], extra, atol=1e-6)
    large = own > 0.01
    draws = ((scores["random aps"] - before) / own)[large]
    assert draws.min() > -1e-4 and draws.max() < 1 + 1e-4
    assert scipy.stats.kstest(draws, "uniform").pvalue > 1e-3
    other = calibration.conformal_scores(labels, logits=logits, method="aps", key=jax.random.key(6))
    assert np.all(other[large] != scores["random aps"][large])


def test_one_draw_for_each_row():
    """The same number for all classes of a row, so that its set is an initial part of the ranking."""
    labels = np.tile(np.arange(7), (60, 1))
    scores = jax.vmap(lambda y: calibration.conformal_scores(y, logits=LOGITS, method="aps", key=KEY), 1)(labels)
    for row, p in enumerate(softmax(LOGITS)):
        draws = [(float(scores[j, row]) - before_and_rank(p, j)[0]) / p[j] for j in range(7) if p[j] > 0.05]
        np.testing.assert_allclose(draws, draws[0], atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_confident_rows_keep_their_digits(dtype):
    logits, labels = planted(7, dtype, offsets=(1e4,))
    scores = calibration.conformal_scores(labels, logits=logits)
    exact = jaxsoftmax.row_statistics(logits, labels).error_prob
    assert_contract(scores, exact, np.float32)
    assert np.min(scores) < 1e-30


def test_probabilities_and_logits_agree():
    """Probabilities that miss a sum of 1 by their rounding are divided by it."""
    probs = np.asarray(jaxsoftmax.softmax(LOGITS))
    for options in METHODS.values():
        ours = calibration.conformal_scores(LABELS, probs=probs, **options)
        np.testing.assert_allclose(ours, calibration.conformal_scores(LABELS, logits=LOGITS, **options), rtol=1e-5)
        rounded = probs.astype(jnp.bfloat16)
        wide = rounded.astype(np.float32)
        scaled = calibration.conformal_scores(LABELS, probs=wide / wide.sum(-1, keepdims=True), **options)
        np.testing.assert_allclose(calibration.conformal_scores(LABELS, probs=rounded, **options), scaled, rtol=1e-5)


@pytest.mark.parametrize("alpha", ["0.1", "0.05", "0.3", "0.7", "0.001", "0.123456"])
def test_rank_is_exact(alpha):
    """Against rational arithmetic, as Python integers and as int32."""
    share = Fraction(alpha)
    counts = [*range(300), 999, 10**6 - 1, 10**6, 2**30 - 1]
    exact = [ceil((n + 1) * (1 - share)) for n in counts]
    pair = share.numerator, share.denominator
    assert [_rank(n, pair) for n in counts] == exact
    np.testing.assert_array_equal(jax.vmap(lambda n: _rank(n, pair))(np.array(counts, np.int32)), exact)


@pytest.mark.parametrize(("rows", "alpha", "rank"), [(99, 0.1, 90), (9, 0.7, 3), (19, 0.05, 19), (99, 1 - 1e-9, 1)])
def test_threshold_is_the_score_of_this_rank(rows, alpha, rank):
    """In floating point 10 (1 - 0.7) is a little more than 3, and the fourth score would be taken."""
    rng = np.random.default_rng(1)
    scores = rng.permutation(rows).astype(np.float32) + 1
    assert calibration.conformal_threshold(scores, alpha=alpha) == rank
    weights = np.append(np.ones(rows, np.int32), 0)
    padded = np.append(scores, np.float32(-5.0))
    assert calibration.conformal_threshold(padded, alpha=alpha, weights=weights) == rank
    assert jax.jit(lambda s, w: calibration.conformal_threshold(s, alpha=alpha, weights=w))(padded, weights) == rank


def test_threshold_is_infinite_where_rows_are_too_few():
    """Below 1 / alpha - 1 rows, none included."""
    for rows in range(12):
        threshold = calibration.conformal_threshold(np.ones(rows, np.float32), alpha=0.1)
        assert threshold == (np.inf if rows < 9 else 1.0)
        weights = np.arange(12) < rows
        assert calibration.conformal_threshold(np.ones(12, np.float32), alpha=0.1, weights=weights) == threshold


def test_threshold_of_broken_rows():
    scores = np.float32([np.nan, 1, 2, 3])
    assert np.isnan(calibration.conformal_threshold(scores, alpha=0.5))
    assert calibration.conformal_threshold(scores, alpha=0.5, weights=np.array([0, 1, 1, 1])) == 2
    traced = jax.jit(lambda w: calibration.conformal_threshold(scores, alpha=0.5, weights=w))
    assert np.isnan(traced(np.float32([0, 1, 1, 0.5])))


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_row_is_in_its_set_exactly_if_its_score_is_at_most_the_threshold(method, tied, jit):
    """Bit for bit, at every score as a threshold."""
    logits = np.round(LOGITS) if tied else LOGITS

    def run(logits):
        scores = calibration.conformal_scores(LABELS, logits=logits, **METHODS[method])
        sets = jax.vmap(lambda t: calibration.conformal_sets(t, logits=logits, **METHODS[method]))(scores)
        return scores, sets

    scores, sets = map(np.asarray, (jax.jit(run) if jit else run)(logits))
    np.testing.assert_array_equal(sets[:, np.arange(60), LABELS], scores[None, :] <= scores[:, None])


@pytest.mark.parametrize("method", METHODS)
def test_sets_follow_the_ranking(method):
    """A class is in the set only if all the more probable ones are; a larger threshold gives a larger set."""
    order = np.argsort(-LOGITS, axis=-1, kind="stable")
    sizes = []
    for threshold in (0.0, 0.3, 0.8, 0.95, 1.0, 2.0):
        sets = np.asarray(calibration.conformal_sets(threshold, logits=LOGITS, **METHODS[method]))
        ranked = np.take_along_axis(sets, order, axis=-1)
        assert np.all(np.diff(ranked.astype(int), axis=-1) <= 0)
        sizes.append(sets.sum())
    assert sizes == sorted(sizes) and sizes[-1] == LOGITS.size


@pytest.mark.parametrize("method", METHODS)
def test_absent_classes(method):
    """In no set, whatever the threshold, without a rank, and with the score +inf; the others as if alone."""
    where = masks(60, 7, LABELS)
    where[:, 6] = False
    labels = np.where(LABELS == 6, 0, LABELS)
    where[np.arange(60), labels] = True
    logits = np.where(where, LOGITS, np.float32(np.nan))
    options = METHODS[method]
    sets = np.asarray(calibration.conformal_sets(np.inf, logits=logits, where=where, **options))
    np.testing.assert_array_equal(sets, where)
    hole = np.where(where, LOGITS, -np.inf).astype(np.float32)
    scores = calibration.conformal_scores(labels, logits=logits, where=where, **options)
    np.testing.assert_array_equal(scores, calibration.conformal_scores(labels, logits=hole, **options))
    alone = calibration.conformal_scores(labels, logits=hole[:, :6], **options)
    np.testing.assert_allclose(scores, alone, rtol=1e-6)
    absent = calibration.conformal_scores(np.full(60, 6), logits=hole, **options)
    assert np.all(np.isposinf(absent))
    probs = np.asarray(jaxsoftmax.softmax(hole))
    np.testing.assert_allclose(
        calibration.conformal_scores(labels, probs=probs, where=where, **options), scores, rtol=1e-5
    )
    nothing = calibration.conformal_sets(np.inf, logits=np.full((2, 3), -np.inf, np.float32), nonempty=True, **options)
    assert not np.any(nothing)


def test_underflowed_classes_come_before_absent_ones():
    """A class of probability 0 in float32 that is present has its rank among those present."""
    logits = np.float32([[0.0, -np.inf, -np.inf, -200.0]])
    score = calibration.conformal_scores(np.array([3]), logits=logits, method="raps", penalty=1.0, k_reg=1)
    assert score[0] == 2.0


def test_sums_rise_to_1_and_no_further():
    """Rounded sums of 300 probabilities, some of which come to more than 1, or would fall from a rank to the next."""
    rng = np.random.default_rng(2)
    logits = rng.standard_normal((50, 300)).astype(np.float32)
    last = logits.argmin(-1)
    for options in ({}, {"key": KEY}):
        scores = calibration.conformal_scores(last, logits=logits, method="aps", **options)
        assert np.min(scores) > 0.999 and np.max(scores) <= 1
        sets = np.asarray(calibration.conformal_sets(1.0, logits=logits, method="aps", **options))
        assert np.all(sets)


def test_empty_sets():
    probs = np.float32([[0.5, 0.3, 0.2], [0.9, 0.1, 0.0]])
    for method in ("lac", "aps"):
        sets = calibration.conformal_sets(0.05, probs=probs, method=method)
        assert not np.any(sets)
        kept = calibration.conformal_sets(0.05, probs=probs, method=method, nonempty=True)
        np.testing.assert_array_equal(kept, [[True, False, False]] * 2)


def test_threshold_by_class():
    """Thresholds from the rows of each class by itself keep their promise class by class."""
    scores = calibration.conformal_scores(LABELS, logits=LOGITS)
    of_class = (LABELS[None] == np.arange(7)[:, None]).astype(np.int32)
    thresholds = jax.vmap(lambda w: calibration.conformal_threshold(scores, alpha=0.4, weights=w))(of_class)
    for label in range(7):
        alone = calibration.conformal_threshold(np.asarray(scores)[label == LABELS], alpha=0.4)
        assert thresholds[label] == alone
    sets = np.asarray(calibration.conformal_sets(thresholds, logits=LOGITS))
    for label in range(7):
        np.testing.assert_array_equal(
            sets[:, label], calibration.conformal_sets(thresholds[label], logits=LOGITS)[:, label]
        )


def test_one_class():
    logits = np.zeros((3, 1), np.float32)
    np.testing.assert_array_equal(calibration.conformal_scores(np.zeros(3, int), logits=logits), 0)
    np.testing.assert_array_equal(calibration.conformal_scores(np.zeros(3, int), logits=logits, method="aps"), 1)
    assert np.all(calibration.conformal_sets(0.0, logits=logits))


def test_report_by_hand():
    sets = np.array([[True, True, False], [False, False, False], [False, True, False], [True, True, True]])
    labels = np.array([0, 1, 2, 2])
    report = calibration.conformal_report(sets, labels)
    assert report == (0.5, 1.5, 0.25, 0.25)
    weighted = calibration.conformal_report(sets, np.array([0, 1, 2, -9]), weights=np.array([2, 1, 1, 0]))
    assert weighted == (0.5, 1.25, 0.25, 0.25)
    assert calibration.conformal_report(sets[:0], labels[:0]) == (0, 0, 0, 0)
    assert calibration.conformal_report(sets, labels, weights=np.zeros(4)) == (0, 0, 0, 0)
    traced = jax.jit(calibration.conformal_report)(sets, np.array([0, 1, 2, 3]))
    assert all(np.isnan(field) for field in traced)


# Coverage. With a threshold of rank k among n exchangeable scores without ties, the coverage is Beta(k, n + 1 - k), and
# the number of m new rows that are covered is beta-binomial.

SPLITS, ROWS, NEW, ALPHA = 200, 50, 400, 0.1


def covered(options, shift=0):
    """How many of the new rows are covered, [SPLITS], by the threshold, or by the score `shift` ranks lower."""

    def split(key):
        of_logits, of_labels, first, second = jax.random.split(key, 4)
        true = 1.5 * jax.random.normal(of_logits, (ROWS + NEW, 8))
        labels = jax.random.categorical(of_labels, true)
        # over-confident and biased: the promise is kept for any model
        logits = 2.5 * true + jnp.linspace(-1.0, 1.0, 8, dtype=jnp.float32)[None]
        held, new = (options | {"key": key} if "key" in options else options for key in (first, second))
        scores = calibration.conformal_scores(labels[:ROWS], logits=logits[:ROWS], **held)
        threshold = calibration.conformal_threshold(scores, alpha=ALPHA)
        if shift:
            threshold = jnp.sort(scores)[_rank(ROWS, (1, 10)) - 1 - shift]
        sets = calibration.conformal_sets(threshold, logits=logits[ROWS:], **new)
        return calibration.conformal_report(sets, labels[ROWS:]).coverage * NEW

    return np.rint(np.asarray(jax.jit(jax.vmap(split))(jax.random.split(jax.random.key(11), SPLITS))))


RANK = ceil(Fraction(9, 10) * (ROWS + 1))
LAW = scipy.stats.betabinom(NEW, RANK, ROWS + 1 - RANK)


def within_band(counts):
    """Every split within the band that one in ten million leaves, and the mean within five standard errors."""
    low, high = LAW.ppf(1e-7), LAW.ppf(1 - 1e-7)
    mean = abs(counts.mean() - LAW.mean()) < 5 * LAW.std() / SPLITS**0.5
    return bool(np.all((counts >= low) & (counts <= high)) and mean)


@pytest.mark.parametrize("method", ["lac", "random aps", "random raps"])
def test_coverage_of_200_splits(method):
    """Of scores without ties: the whole distribution is the promised one."""
    counts = covered(METHODS[method])
    assert within_band(counts)
    observed = np.searchsorted(np.sort(counts), np.arange(NEW + 1), side="right") / SPLITS
    # the distance that empirical and true distribution exceed once in ten thousand (Dvoretzky, Kiefer, Wolfowitz)
    assert np.max(np.abs(observed - LAW.cdf(np.arange(NEW + 1)))) < np.sqrt(np.log(2 / 1e-4) / (2 * SPLITS))


@pytest.mark.parametrize("method", ["aps", "raps"])
def test_coverage_of_200_splits_without_a_draw(method):
    """Sums that end at 1 tie: coverage is at least the promised one."""
    counts = covered(METHODS[method])
    assert counts.mean() > LAW.mean() - 5 * LAW.std() / SPLITS**0.5
    assert counts.mean() / NEW < 0.97


def test_the_band_rejects_the_rank_below():
    """One rank too low, which the quantile without its finite-sample term would take, is out of the band."""
    assert not within_band(covered(METHODS["lac"], shift=1))


# Bad input.

Z, Y = LOGITS[:3], LABELS[:3]
P = softmax(Z).astype(np.float32)
FUNCTIONS = {
    "conformal_scores": (calibration.conformal_scores, {"labels": Y}),
    "conformal_sets": (calibration.conformal_sets, {"threshold": np.float32(0.5)}),
    "conformal_threshold": (calibration.conformal_threshold, {"scores": np.ones(3, np.float32)}),
    "conformal_report": (calibration.conformal_report, {"sets": Z > 0, "labels": Y}),
}
BOTH, OF_SCORES, OF_SETS = ("conformal_scores", "conformal_sets"), ("conformal_scores",), ("conformal_sets",)
OF_THRESHOLD, OF_REPORT = ("conformal_threshold",), ("conformal_report",)
UNEQUAL = np.float32([[0.5, 0.2, 0.1], [0.2, 0.2, 0.6]])
BAD = [
    (BOTH, {}, TypeError, "exactly one of logits and probs must be given"),
    (BOTH, {"logits": Z, "probs": P}, TypeError, "exactly one of logits and probs must be given"),
    (BOTH, {"logits": [[1.0, 2.0]]}, TypeError, "logits must be an array"),
    (BOTH, {"probs": np.ones((3, 7), np.int32)}, TypeError, "probs must have a floating dtype"),
    (BOTH, {"logits": np.ones((3, 0), np.float32)}, ValueError, "the class axis must not be empty"),
    (BOTH, {"logits": Z, "where": np.ones(3, bool)}, ValueError, "where must have the shape of logits, or [V]"),
    (BOTH, {"probs": P, "where": np.ones(3, bool)}, ValueError, "where must have the shape of probs, or [V]"),
    (BOTH, {"logits": Z, "method": "naive"}, ValueError, "method must be one of 'lac', 'aps', 'raps'"),
    (BOTH, {"logits": Z, "key": KEY}, ValueError, "a key is for 'aps' and 'raps' alone"),
    (BOTH, {"logits": Z, "penalty": -1.0}, ValueError, "penalty must be finite and 0 or more"),
    (BOTH, {"logits": Z, "penalty": np.ones(2, np.float32)}, ValueError, "penalty must be a scalar"),
    (BOTH, {"logits": Z, "method": "aps", "key": 7}, TypeError, "key must be a key of jax.random"),
    (BOTH, {"logits": Z, "k_reg": -1}, ValueError, "k_reg must be 0 or more"),
    (BOTH, {"logits": Z, "k_reg": 1.5}, TypeError, "k_reg must be an integer"),
    (OF_SCORES, {"logits": Z, "labels": Y.astype(np.float32)}, TypeError, "labels must be integers"),
    (OF_SCORES, {"logits": Z, "labels": Y[:2]}, ValueError, "labels must have the shape of logits without the class"),
    (OF_SCORES, {"probs": P, "labels": Y[:2]}, ValueError, "labels must have the shape of probs without the class"),
    (OF_SCORES, {"logits": Z, "weights": np.ones(2)}, ValueError, "weights must have one number per row"),
    (OF_SETS, {"logits": Z, "threshold": np.ones(3, np.float32)}, ValueError, "threshold must be a scalar or have"),
    (OF_SETS, {"logits": Z, "nonempty": 1}, TypeError, "nonempty must be True or False"),
    (OF_THRESHOLD, {"alpha": 0.0}, ValueError, "alpha must be a finite number above 0"),
    (OF_THRESHOLD, {"alpha": 1.0}, ValueError, "alpha must lie between 0 and 1"),
    (OF_THRESHOLD, {"scores": np.ones(3, np.int32)}, TypeError, "scores must have a floating dtype"),
    (OF_THRESHOLD, {"scores": np.ones((3, 1), np.float32)}, ValueError, "scores must have shape [N]"),
    (OF_THRESHOLD, {"weights": np.ones(2, np.int32)}, ValueError, "scores and weights must have the same shape"),
    (OF_REPORT, {"sets": Z}, TypeError, "sets must be boolean"),
    (OF_REPORT, {"labels": Y[:2]}, ValueError, "labels must have the shape of sets without the class axis"),
    (OF_REPORT, {"weights": np.ones(2)}, ValueError, "weights must have one number per row"),
]
SEEN = [
    (OF_SCORES, {"logits": Z, "labels": np.array([0, 7, 1])}, "labels must lie in [0, 7); got labels=7, row=1"),
    (OF_SCORES, {"logits": Z, "labels": np.array([-1, 0, 1])}, "labels must lie in [0, 7); got labels=-1, row=0"),
    (BOTH, {"probs": Z}, "probs must lie in [0, 1]; for unnormalized scores pass logits="),
    (BOTH, {"probs": 0.5 * P}, "probs must sum to 1 along the last axis"),
    (BOTH, {"logits": Z, "method": "raps", "penalty": np.float32(-1)}, "penalty must be finite and 0 or more"),
    (OF_THRESHOLD, {"weights": np.float32([1, 0.5, 1])}, "weights must be 0 or 1; got weights=0.5"),
    (OF_REPORT, {"labels": np.array([0, 1, 9])}, "labels must lie in [0, 7); got labels=9, row=2"),
    (OF_REPORT, {"weights": np.float32([0, 1, -1])}, "weights must be finite and 0 or more"),
]


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "rule"),
    [pytest.param(n, *bad, id=f"{n}-{i}") for i, (names, *bad) in enumerate(BAD) for n in names],
)
def test_bad_input(name, arguments, kind, rule):
    function, good = FUNCTIONS[name]
    assert_refused(function, f"calibration.{name}", good | arguments, kind, rule)


@pytest.mark.parametrize(
    ("name", "arguments", "rule"),
    [pytest.param(n, *bad, id=f"{n}-{i}") for i, (names, *bad) in enumerate(SEEN) for n in names],
)
def test_bad_values(name, arguments, rule):
    """An error where they can be seen; where they cannot, NaN in the row, or an empty set."""
    function, good = FUNCTIONS[name]
    options = good | arguments
    with pytest.raises(ValueError) as eager:
        call(function, options, jit=False)
    assert str(eager.value).startswith(f"jaxsoftmax.calibration.{name}: {rule}")
    traced = call(function, options, jit=True)
    if name == "conformal_sets":
        assert not np.any(traced)
    else:
        assert np.any([np.any(np.isnan(leaf)) for leaf in jax.tree.leaves(traced)])


def test_only_the_broken_row_is_nan():
    labels = np.array([0, 7, 1])
    scores = jax.jit(lambda y: calibration.conformal_scores(y, logits=Z))(labels)
    np.testing.assert_array_equal(np.isnan(scores), [False, True, False])
    sets = jax.jit(lambda p: calibration.conformal_sets(np.inf, probs=p))(np.stack([P[0], Z[1], P[2]]))
    np.testing.assert_array_equal(np.any(sets, axis=-1), [True, False, True])


def test_padding():
    """Rows of weight 0 may hold anything and take no part."""
    logits = np.concatenate([Z, np.full((1, 7), np.nan, np.float32)])
    probs = np.concatenate([P, np.full((1, 7), 9.0, np.float32)])
    labels, weights = np.append(Y, -1), np.array([1, 1, 1, 0])
    for options in ({"logits": logits}, {"probs": probs}):
        scores = calibration.conformal_scores(labels, weights=weights, **options)
        assert np.all(np.isfinite(scores[:3])) and np.isposinf(scores[3])
        threshold = calibration.conformal_threshold(scores, alpha=0.5, weights=weights)
        assert threshold == np.sort(scores[:3])[1]


def test_unequal_probabilities_are_told_apart_from_rounding():
    with pytest.raises(ValueError, match="probs must sum to 1"):
        calibration.conformal_sets(0.5, probs=UNEQUAL)
    assert calibration.conformal_sets(0.5, probs=UNEQUAL[1]).shape == (3,)
