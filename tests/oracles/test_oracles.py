"""The oracles against SciPy and against differences of themselves, and the assertion against wrong results."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from tests import oracles
from tests.helpers import assert_contract, planted

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 4))
OTHER = RNG.normal(size=(3, 4))
TARGETS = RNG.uniform(size=(3, 4))
LABELS = np.array([0, 3, 1])
WHERE = np.array([[True, True, False, True]] * 3)
TEMPERATURE = np.array([0.5, 1.0, 2.0])
COTANGENT = np.array([1.0, -2.0, 0.5])
WIDE = RNG.normal(size=(3, 4))
WEIGHTS = RNG.uniform(0.5, 2.0, (3, 4))


@pytest.fixture(autouse=True)
def _fewer_digits(monkeypatch):
    """Differences need no more than float64 can hold."""
    monkeypatch.setattr(oracles.exact, "DIGITS_WIDE", 40)


def difference(function, x, step=1e-3):
    """The gradient of a scalar function by a difference of fourth order."""
    out = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        moved = [x.copy() for _ in range(4)]
        for y, k in zip(moved, (-2, -1, 1, 2), strict=True):
            y[i] += k * step
        a, b, c, d = (function(y) for y in moved)
        out[i] = (a - 8 * b + 8 * c - d) / (12 * step)
    return out


def shared(oracle, **options):
    """f(logits, temperature) -> (value, {argument: gradient}) with the same mask everywhere."""

    def call(cotangent, logits, temperature):
        truth = oracle(logits, cotangent, where=WHERE, temperature=temperature, **options)
        return truth[0], {"logits": truth.logits, "temperature": truth.temperature}

    return call


def labelled(oracle, **options):
    def call(cotangent, logits, temperature):
        truth = oracle(logits, LABELS, cotangent, where=WHERE, temperature=temperature, **options)
        return truth.loss, {"logits": truth.logits, "temperature": truth.temperature}

    return call


def paired(oracle, other):
    def call(cotangent, logits, temperature):
        truth = oracle(logits, other * WHERE, cotangent, where=WHERE, temperature=temperature)
        return truth.value, {"logits": truth.logits, "temperature": truth.temperature}

    return call


CASES = {
    "softmax": (shared(oracles.softmax), WIDE),
    "log_softmax": (shared(oracles.log_softmax), WIDE * WHERE),
    "logsumexp": (shared(oracles.logsumexp, weights=WEIGHTS), COTANGENT),
    "smooth_max": (shared(oracles.smooth_max), COTANGENT),
    "entropy": (shared(oracles.entropy, base=2.0), COTANGENT),
    "cross_entropy": (
        labelled(oracles.cross_entropy, label_smoothing=0.1, z_loss=0.3, class_weights=WEIGHTS[0]),
        COTANGENT,
    ),
    "cross_entropy, others": (labelled(oracles.cross_entropy, label_smoothing=0.1, smoothing="others"), COTANGENT),
    "cross_entropy, cap": (labelled(oracles.cross_entropy, logit_cap=1.5), COTANGENT),
    "z_loss": (labelled(oracles.z_loss), COTANGENT),
    "focal_loss": (labelled(oracles.focal_loss, gamma=1.5, alpha=WEIGHTS[0]), COTANGENT),
    "poly_loss": (labelled(oracles.poly_loss, epsilon=0.7), COTANGENT),
    "additive_margin": (labelled(oracles.additive_margin, margin=0.2, scale=4.0), COTANGENT),
    "angular_margin": (labelled(oracles.angular_margin, margin=0.2, scale=8.0), COTANGENT),
    "soft_cross_entropy": (paired(oracles.soft_cross_entropy, TARGETS), COTANGENT),
    "kl_divergence": (paired(oracles.kl_divergence, OTHER), COTANGENT),
}


def weighed(truth, cotangent):
    finite = np.isfinite(truth.value)
    return np.sum(np.where(finite, truth.value, 0.0) * cotangent)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_differences(name):
    call, cotangent = CASES[name]
    temperature = np.ones(3) if name == "angular_margin" else TEMPERATURE
    _, gradients = call(cotangent, LOGITS, temperature)
    by_logits = difference(lambda x: weighed(call(cotangent, x, temperature)[0], cotangent), LOGITS)
    np.testing.assert_allclose(gradients["logits"].value, by_logits, rtol=1e-8, atol=1e-9)
    if name != "angular_margin":  # whose scale says what the logits are
        by_temperature = difference(lambda t: weighed(call(cotangent, LOGITS, t)[0], cotangent), temperature)
        np.testing.assert_allclose(gradients["temperature"].value, by_temperature, rtol=1e-8, atol=1e-9)
    for truth in gradients.values():
        assert np.all(truth.magnitude >= np.abs(truth.value) * (1 - 1e-12))


def test_gradients_by_the_other_arguments_are_differences():
    def check(gradient, function, x):
        np.testing.assert_allclose(gradient.value, difference(function, x), rtol=1e-8, atol=1e-9)

    truth = oracles.soft_cross_entropy(LOGITS, TARGETS, COTANGENT)
    check(truth.other, lambda t: weighed(oracles.soft_cross_entropy(LOGITS, t).value, COTANGENT), TARGETS)
    truth = oracles.kl_divergence(LOGITS, OTHER, COTANGENT)
    check(truth.other, lambda t: weighed(oracles.kl_divergence(LOGITS, t).value, COTANGENT), OTHER)
    truth = oracles.logsumexp(LOGITS, COTANGENT, weights=WEIGHTS)
    check(truth.weights, lambda w: weighed(oracles.logsumexp(LOGITS, weights=w).value, COTANGENT), WEIGHTS)
    for smoothing in ("uniform", "others"):
        options = {"where": WHERE, "smoothing": smoothing}
        truth = oracles.smooth_labels(TARGETS, 0.2, WIDE, **options)
        check(truth.targets, lambda t, o=options: weighed(oracles.smooth_labels(t, 0.2, **o).value, WIDE), TARGETS)
    truth = oracles.weighted_mean(OTHER, WEIGHTS, 3.0)
    check(truth.values, lambda v: 3 * oracles.weighted_mean(v, WEIGHTS).value.value, OTHER)
    check(truth.weights, lambda w: 3 * oracles.weighted_mean(OTHER, w).value.value, WEIGHTS)
    truth = oracles.binary_cross_entropy(LOGITS, TARGETS, WIDE, positive_weight=1.5)

    def binary(logits, labels, weight):
        return weighed(oracles.binary_cross_entropy(logits, labels, positive_weight=weight).loss, WIDE)

    check(truth.logits, lambda x: binary(x, TARGETS, 1.5), LOGITS)
    check(truth.labels, lambda y: binary(LOGITS, y, 1.5), TARGETS)
    check(truth.weight.map(np.sum), lambda w: binary(LOGITS, TARGETS, w[()]), np.array(1.5))
    truth = oracles.sigmoid_focal_loss(LOGITS, TARGETS, WIDE, gamma=0.5, alpha=0.25)

    def focal(logits, labels):
        return weighed(oracles.sigmoid_focal_loss(logits, labels, gamma=0.5, alpha=0.25).loss, WIDE)

    check(truth.logits, lambda x: focal(x, TARGETS), LOGITS)
    check(truth.labels, lambda y: focal(LOGITS, y), TARGETS)
    truth, slopes = oracles.hinge_loss(LOGITS, LABELS, COTANGENT, margin=1.2, variant="weston_watkins")

    def hinge(logits, margin=1.2):
        return weighed(oracles.hinge_loss(logits, LABELS, margin=margin, variant="weston_watkins")[0].loss, COTANGENT)

    check(truth.logits, hinge, LOGITS)
    check(slopes.map(lambda x: (x * COTANGENT).sum()), lambda m: hinge(LOGITS, m[()]), np.array(1.2))


def test_row_statistics_are_differences():
    weights = [COTANGENT, 2 * COTANGENT, -COTANGENT + 1]

    def weighed_fields(logits, temperature):
        fields = oracles.row_statistics(
            logits, LABELS, weights, where=WHERE, temperature=temperature, logit_cap=2.0
        ).fields
        # The shift is a constant to differentiation; together with it each field is a function of the logits alone.
        names = ("target", "rest", "mean")
        return sum(weighed(fields[n], w) + weighed(fields["shift"], w) for n, w in zip(names, weights, strict=True))

    truth = oracles.row_statistics(LOGITS, LABELS, weights, where=WHERE, temperature=TEMPERATURE, logit_cap=2.0)
    by_logits = difference(lambda x: weighed_fields(x, TEMPERATURE), LOGITS)
    np.testing.assert_allclose(truth.logits.value, by_logits, rtol=1e-8, atol=1e-9)


def test_values_against_scipy():
    for weights in (None, WEIGHTS):
        mine = oracles.logsumexp(LOGITS, weights=weights).value.value
        np.testing.assert_allclose(mine, scipy.special.logsumexp(LOGITS, axis=-1, b=weights), rtol=1e-13)
    p, t = scipy.special.softmax(LOGITS, -1), scipy.special.softmax(OTHER, -1)
    np.testing.assert_allclose(oracles.softmax(LOGITS).value.value, p, rtol=1e-13)
    np.testing.assert_allclose(oracles.log_softmax(LOGITS).value.value, np.log(p), rtol=1e-13)
    np.testing.assert_allclose(oracles.entropy(LOGITS).value.value, scipy.special.entr(p).sum(-1), rtol=1e-13)
    divergence = scipy.special.rel_entr(t, p).sum(-1)
    np.testing.assert_allclose(oracles.kl_divergence(LOGITS, OTHER).value.value, divergence, rtol=1e-12)
    soft = -(TARGETS * np.log(p)).sum(-1)
    np.testing.assert_allclose(oracles.soft_cross_entropy(LOGITS, TARGETS).value.value, soft, rtol=1e-13)
    picked = -np.log(p[np.arange(3), LABELS])
    np.testing.assert_allclose(oracles.cross_entropy(LOGITS, LABELS).loss.value, picked, rtol=1e-13)


def test_tails(monkeypatch):
    monkeypatch.undo()
    loss = oracles.cross_entropy(np.float32([[17.0, 0.0], [80.0, 0.0]]), [0, 0])
    np.testing.assert_allclose(loss.loss.value, np.exp([-17.0, -80.0]), rtol=3e-8)
    np.testing.assert_allclose(loss.logits.value[1], [-np.exp(-80.0), np.exp(-80.0)], rtol=1e-14)
    loss = oracles.cross_entropy(np.float64([[700.0, 0.0]]), [0])
    np.testing.assert_allclose(loss.loss.value, np.exp(-700.0), rtol=1e-14)


def test_wide_agrees_with_arbitrary_precision():
    logits, labels = planted(7, absent=False)
    cotangent = np.random.default_rng(1).normal(size=logits.shape)
    for name in ("softmax", "log_softmax", "logsumexp", "smooth_max"):
        exact = getattr(oracles, name)(logits, cotangent if "soft" in name else cotangent[:, 0])
        for n, row in enumerate(logits):
            value, gradient = oracles.wide.normalizer(name, row, cotangent[n] if "soft" in name else cotangent[n, :1])
            np.testing.assert_allclose(value.value, exact.value.value[n], rtol=1e-12)
            size = exact.logits.magnitude[n]
            assert np.all(np.abs(gradient.value - exact.logits.value[n]) <= 1e-12 * size)
            np.testing.assert_allclose(gradient.magnitude, size, rtol=1e-3)
    exact = oracles.cross_entropy(logits, labels)
    for n, (row, label) in enumerate(zip(logits, labels, strict=True)):
        loss, gradient = oracles.wide.cross_entropy(row, label)
        np.testing.assert_allclose(loss.value, exact.loss.value[n], rtol=1e-12)
        np.testing.assert_allclose(gradient.value, exact.logits.value[n], rtol=1e-12)


EXACT = np.array([0.3, 4.1399e-8, -1e-30, 0.0, np.inf, np.nan])


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16, np.float64])
def test_the_contract_accepts_correct_rounding(dtype):
    assert_contract(EXACT.astype(dtype), EXACT, dtype)


@pytest.mark.parametrize(
    ("index", "wrong"),
    [(0, 0.3 * (1 + 2e-6)), (1, 0.0), (1, 4.1e-8), (2, 0.0), (2, 1e-30), (3, 1e-30), (4, 3e38), (4, np.nan), (5, 0.0)],
)
def test_the_contract_rejects_errors(index, wrong):
    actual = EXACT.astype(np.float32)
    actual[index] = wrong
    with pytest.raises(AssertionError, match="1 of 6 entries"):
        assert_contract(actual, EXACT, np.float32)


def test_the_contract_rejects_a_second_rounding():
    """A bfloat16 result that is one unit off, as after a sum in bfloat16, though within its precision."""
    actual = np.array([0.3]).astype(jnp.bfloat16)
    off = np.nextafter(actual, np.array([1.0]).astype(jnp.bfloat16))
    assert_contract(actual, np.array([0.3]), jnp.bfloat16)
    with pytest.raises(AssertionError):
        assert_contract(off, np.array([0.3]), jnp.bfloat16)
    with pytest.raises(AssertionError, match="dtype"):
        assert_contract(actual, np.array([0.3]), np.float32)
    with pytest.raises(AssertionError, match="shape"):
        assert_contract(actual, np.array([[0.3]]), jnp.bfloat16)


def test_the_contract_measures_by_the_magnitude_where_signs_are_mixed():
    exact, actual = np.array([1e-6]), np.float32([1.1e-6])
    assert_contract(actual, exact, np.float32, magnitude=np.array([1.0]))
    with pytest.raises(AssertionError):
        assert_contract(actual, exact, np.float32, magnitude=np.array([1e-3]))
    with pytest.raises(AssertionError):
        assert_contract(actual, exact, np.float32)
