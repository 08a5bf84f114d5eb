"""The uncertainty scores: values and gradients in the tails, at the edges, under every transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsoftmax
from jaxsoftmax import calibration
from tests.helpers import assert_contract, assert_refused, cotangents, masks, planted, value_and_gradients
from tests.oracles.scores import score

# The function, the name of its formula, and options.
CASES = {
    "max_probability": (calibration.max_probability_score, "max_probability", {}),
    "margin": (calibration.margin_score, "margin", {}),
    "gini": (calibration.gini_score, "gini", {}),
    "generalized_entropy": (calibration.generalized_entropy_score, "generalized_entropy", {}),
    "of the best": (calibration.generalized_entropy_score, "generalized_entropy", {"gamma": 0.5, "k": 3}),
}
SCORES = {
    "max_probability_score": calibration.max_probability_score,
    "max_logit_score": calibration.max_logit_score,
    "energy_score": calibration.energy_score,
    "entropy_score": calibration.entropy_score,
    "margin_score": calibration.margin_score,
    "gini_score": calibration.gini_score,
    "generalized_entropy_score": calibration.generalized_entropy_score,
}
Z = np.ones((2, 3), np.float32)


def check(case, logits, *, where=None, temperature=None):
    """Scores and gradients of a batch of rows against the exact ones."""
    function, name, options = case
    options = options | {"k": min(options["k"], logits.shape[1])} if "k" in options else options
    dtype = np.float64 if logits.dtype == np.float64 else np.float32
    cotangent = cotangents(len(logits), dtype=dtype)

    def with_temperature(logits, temperature, where):
        return function(logits, where=where, temperature=temperature, **options)

    def without(logits, where):
        return function(logits, where=where, **options)

    if temperature is None:
        results = value_and_gradients(without, cotangent, [logits], [where])
    else:
        results = value_and_gradients(with_temperature, cotangent, [logits, temperature], [where])
    exact = score(logits, name, cotangent, where=where, temperature=temperature, **options)
    gain = 2.0 if temperature is None else 2.0 / min(1.0, temperature.min()) ** 2
    assert_contract(results[0], exact.value.value, dtype, exact.value.magnitude, name="score")
    assert_contract(results[1], exact.logits.value, logits.dtype, exact.logits.magnitude, gain=gain, name="by logits")
    if temperature is not None:
        by_temperature = exact.temperature
        assert_contract(results[2], *by_temperature[:1], dtype, by_temperature[1], gain=gain, name="by temperature")


@pytest.mark.parametrize("classes", [1, 2, 7])
@pytest.mark.parametrize("case", CASES)
def test_contract(case, classes):
    check(CASES[case], planted(classes).logits)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_half_precision(case, dtype):
    """Scores are float32, and gradients those of float32 rounded once."""
    check(CASES[case], planted(7, dtype, offsets=(1e4,)).logits)


@pytest.mark.parametrize("case", CASES)
def test_float64(case):
    with jax.enable_x64(True):
        check(CASES[case], planted(5, np.float64).logits)


@pytest.mark.parametrize("case", CASES)
def test_where_and_temperature_per_row(case):
    logits, labels = planted(7, seed=4)
    where = masks(*logits.shape, labels)
    logits = np.where(where, logits, np.resize(np.float32([np.nan, np.inf, 1e30]), logits.shape))
    temperature = np.resize(np.float32([1.0, 0.07, 3.0, 20.0]), len(logits))
    check(CASES[case], logits, where=where, temperature=temperature)


def test_many_classes():
    """Against float64, where it loses nothing: at four scales, no row confident."""
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((4, 1000)) * [[0.1], [0.5], [1.0], [2.0]]).astype(np.float32)
    p = np.exp(logits.astype(np.float64))
    p = np.sort(p / p.sum(-1, keepdims=True))[:, ::-1]
    expected = {
        "max_probability_score": 1 - p[:, 0],
        "margin_score": 1 - (p[:, 0] - p[:, 1]),
        "gini_score": 1 - np.square(p).sum(-1),
        "entropy_score": -(p * np.log(p)).sum(-1),
        "generalized_entropy_score": (p**0.1 * (1 - p) ** 0.1).sum(-1),
    }
    for name, exact in expected.items():
        np.testing.assert_allclose(SCORES[name](logits), exact, rtol=2e-6, err_msg=name)
    best = calibration.generalized_entropy_score(logits, gamma=0.3, k=100)
    np.testing.assert_allclose(best, ((p * (1 - p)) ** 0.3)[:, :100].sum(-1), rtol=2e-6)


def test_energy_entropy_and_largest_logit_are_those_of_the_library():
    """And their signs are such that the uncertain row scores more."""
    logits = planted(7).logits
    where = masks(*logits.shape)
    for temperature in (0.0, 0.5, 3.0):
        energy = calibration.energy_score(logits, where=where, temperature=temperature)
        smooth = jaxsoftmax.smooth_max(logits, where=where, temperature=temperature)
        np.testing.assert_array_equal(energy, -smooth)
        entropy = calibration.entropy_score(logits, where=where, temperature=temperature)
        np.testing.assert_array_equal(entropy, jaxsoftmax.entropy(logits, where=where, temperature=temperature))
    np.testing.assert_array_equal(
        calibration.max_logit_score(logits, where=where), -np.where(where, logits, -np.inf).max(-1)
    )
    assert calibration.energy_score(np.float32([0.0, 0.0])) == np.float32(-np.log(2.0))


@pytest.mark.parametrize("name", SCORES)
def test_larger_is_more_uncertain(name):
    """Also between rows whose largest probability rounds to 1 alike."""
    logits = np.float32([[0, 0, 0], [1, 0, 0], [9, 0, 0], [30, 0, 0], [60, 0, 0]])
    scores = np.asarray(SCORES[name](logits))
    assert np.all(np.diff(scores) < 0)


@pytest.mark.parametrize("name", SCORES)
def test_edges(name):
    """No class, one class, and rows broken by inf or NaN, which stay alone; the gradients of all others are finite."""
    inf, nan = np.inf, np.nan
    logits = np.float32([[-inf] * 3, [4, -inf, -inf], [80, 0, -80], [1, 1, -inf], [nan, 0, 0], [inf, 0, 0]])
    values, gradient = value_and_gradients(SCORES[name], np.ones(6, np.float32), [logits])
    none = {"max_probability_score": 1, "margin_score": 1, "max_logit_score": np.inf, "energy_score": np.inf}
    one = {"max_logit_score": -4, "energy_score": -4}
    assert values[0] == none.get(name, 0)
    assert values[1] == one.get(name, 0)
    np.testing.assert_array_equal(np.isnan(values), [False] * 4 + [True] * 2)
    assert np.all(np.isfinite(gradient[:4]))
    np.testing.assert_array_equal(gradient[:4][np.isneginf(logits[:4])], 0)


@pytest.mark.parametrize("name", SCORES)
def test_axis_jit_vmap_and_forward_mode(name):
    function = SCORES[name]
    logits = np.random.default_rng(1).normal(size=(3, 4, 5)).astype(np.float32)
    where = masks(12, 5).reshape(3, 4, 5)
    expected = function(logits, where=where)
    moved = [np.moveaxis(x, -1, 1) for x in (logits, where)]
    np.testing.assert_allclose(function(moved[0], axis=1, where=moved[1]), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(function)(logits, where=where), expected, rtol=1e-6)
    mapped = jax.vmap(lambda x, m: function(x, where=m))(logits, where)
    np.testing.assert_allclose(mapped, expected, rtol=1e-6)
    direction = np.cos(np.arange(60, dtype=np.float32)).reshape(3, 4, 5)
    with jaxsoftmax.forward_mode():
        _, along = jax.jvp(function, (logits,), (direction,))
    _, gradient = value_and_gradients(function, np.ones((3, 4), np.float32), [logits])
    np.testing.assert_allclose(np.sum(along), np.sum(gradient * direction), rtol=1e-4)


BAD = [
    ({"logits": np.ones((2, 3), np.int32)}, TypeError, "logits must have a floating dtype"),
    ({"logits": [[1.0, 2.0]]}, TypeError, "logits must be an array"),
    ({"logits": np.ones((2, 0), np.float32)}, ValueError, "the class axis must not be empty"),
    ({"logits": np.float32(1.0)}, ValueError, "axis must lie in [0, 0)"),
    ({"where": np.ones((2, 3), np.float32)}, TypeError, "where must be boolean"),
    ({"where": np.ones(2, bool)}, ValueError, "where must have the shape of logits, or [V]"),
    ({"axis": 2}, ValueError, "axis must lie in [-2, 2)"),
    ({"axis": (0, 1)}, TypeError, "axis must be an integer"),
    ({"temperature": -1.0}, ValueError, "temperature must be 0 or more"),
    ({"temperature": np.ones(3, np.float32)}, ValueError, "temperature must be a scalar or have one number per row"),
    ({"gamma": 0.0}, ValueError, "gamma must be a finite number above 0"),
    ({"k": 0}, ValueError, "k must lie in [1, 3], the number of classes"),
    ({"k": 4}, ValueError, "k must lie in [1, 3], the number of classes"),
    ({"k": 1.0}, TypeError, "k must be an integer"),
]


def takes(name, option):
    """Whether the score has this option."""
    only = {"gamma": ("generalized_entropy_score",), "k": ("generalized_entropy_score",)}
    return name in only.get(option, SCORES) and (name, option) != ("max_logit_score", "temperature")


BAD_CASES = [pytest.param(n, *bad, id=f"{n}-{i}") for i, bad in enumerate(BAD) for n in SCORES if takes(n, *bad[0])]


@pytest.mark.parametrize(("name", "arguments", "kind", "rule"), BAD_CASES)
def test_bad_input(name, arguments, kind, rule):
    """In the name of the score, eagerly and under jit alike."""
    assert_refused(SCORES[name], f"calibration.{name}", {"logits": Z} | arguments, kind, rule)
