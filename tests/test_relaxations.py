"""gumbel_softmax and straight_through: one-hot bit for bit, the right distribution, gradients of the soft sample."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxsoftmax
from tests.helpers import compiled, cotangents, value_and_gradients

KEY = jax.random.key(7)
SHAPE = (20, 6)
LOGITS = np.random.default_rng(60).normal(size=SHAPE).astype(np.float32)
TEMPERATURE = np.linspace(0.3, 2.0, 20, dtype=np.float32)
EVERY = np.ones(SHAPE, bool)


def sampler(hard):
    return compiled(lambda x, t, w: jaxsoftmax.gumbel_softmax(KEY, x, temperature=t, where=w, hard=hard))


# Most tests share these two programs: drawing random numbers takes long to compile.
SOFT, HARD = sampler(False), sampler(True)


def test_the_noise_is_never_infinite():
    """Of two classes, a noise that is infinite, or NaN, would make a probability of exactly 0 or 1, or NaN."""
    sample = np.asarray(jax.jit(jaxsoftmax.gumbel_softmax)(KEY, np.zeros((1_000_000, 2), np.float32)))
    assert np.all((sample > 0) & (sample <= 1))
    np.testing.assert_allclose(sample.sum(-1), 1, atol=1e-6)
    # The difference of two Gumbel variables is logistic.
    difference = np.log(sample[:, 0]) - np.log(sample[:, 1])
    assert scipy.stats.kstest(difference, "logistic").pvalue > 1e-3


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32, jnp.float64])
def test_the_noise_of_every_bit_pattern(dtype):
    """A generator that draws the smallest numbers, the largest, and some between: by the documented formula."""
    size = 64 if dtype == jnp.float64 else 32
    drawn = [0, 1, 2**7 + 1, 2**20, 2 ** (size - 1), 3 * 2 ** (size - 2), 2**size - 2**7, 2**size - 1]

    def draw(key, bit_width, shape):
        assert bit_width == size
        return jnp.array(drawn, f"uint{size}").reshape(shape)

    chosen = jax.extend.random.define_prng_impl(
        key_shape=(1,), seed=lambda seed: jnp.zeros(1, jnp.uint32), split=None, random_bits=draw, fold_in=None
    )
    with jax.enable_x64(dtype == jnp.float64):
        logits = jnp.zeros((1, len(drawn)), dtype)
        sample = np.asarray(jaxsoftmax.gumbel_softmax(jax.random.key(0, impl=chosen), logits))[0]
    largest = np.nextafter(np.dtype(f"float{size}").type(1), 0).astype(np.float64)
    v = np.minimum((np.float64(drawn) + 0.5) / 2.0**size, largest)
    odds = -1.0 / np.log1p(-v)  # exp(g)
    assert sample.dtype == dtype
    # A g of 23 is rounded to 2e-6; the probabilities of float16 to 2**-11, and the small ones to 2**-25.
    rounding = {"rtol": 5e-4, "atol": 3e-8} if dtype == jnp.float16 else {"rtol": 3e-6}
    np.testing.assert_allclose(sample, odds / odds.sum(), **rounding)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_hard_samples_are_one_hot_bit_for_bit(dtype):
    """Eager and compiled, at every scale, over ties that rounding makes, and where the noise is swamped."""
    with jax.enable_x64(dtype == jnp.float64):
        scale = np.float64([0, 1, 30, 1e4])[:, None, None]
        logits = scale * np.random.default_rng(61).normal(size=(4, 100, 9))
        logits[3] = 6e4
        logits = jnp.asarray(logits, dtype)

        def function(logits):
            return jaxsoftmax.gumbel_softmax(KEY, logits, temperature=0.3, hard=True)

        samples = [jax.jit(function)(logits)]
        if dtype == jnp.bfloat16:
            samples.append(function(logits))
        for sample in samples:
            assert sample.dtype == dtype
            bits = np.asarray(sample).view(f"u{sample.dtype.itemsize}")
            one = np.ones((), sample.dtype).view(bits.dtype)
            assert np.all((bits == 0) | (bits == one))
            np.testing.assert_array_equal((bits == one).sum(-1), np.ones((4, 100)))


def test_ties():
    """Where the noise is lost in rounding all classes tie: a hard sample is one of them, at T = 0 they share."""
    logits = np.full(SHAPE, 1e30, np.float32)
    hard, *_ = HARD(LOGITS, [logits, TEMPERATURE], [EVERY])
    np.testing.assert_array_equal(np.sort(hard, -1)[:, -2:], np.tile([0.0, 1.0], (20, 1)))
    soft, *_ = SOFT(LOGITS, [logits, 0 * TEMPERATURE], [EVERY])
    np.testing.assert_allclose(soft, np.full(SHAPE, 1 / 6), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gradient_of_hard_is_that_of_soft(dtype):
    cotangent = cotangents(*SHAPE, dtype=dtype)
    arguments = [LOGITS.astype(dtype), TEMPERATURE]
    soft, *soft_gradients = SOFT(cotangent, arguments, [EVERY])
    hard, *hard_gradients = HARD(cotangent, arguments, [EVERY])
    np.testing.assert_array_equal(hard.argmax(-1), soft.argmax(-1))
    for a, b in zip(soft_gradients, hard_gradients, strict=True):
        assert np.all(np.isfinite(a.astype(np.float32)))
        np.testing.assert_array_equal(a, b)
    assert soft.dtype == hard.dtype == soft_gradients[0].dtype == dtype
    assert soft_gradients[1].dtype == np.float32
    assert np.count_nonzero(soft_gradients[0]) > 100


def test_gradients_are_those_of_softmax_at_the_same_noise():
    """The noise is recovered from a sample of the same key; temperature and mask then act as in softmax."""
    sample, *_ = SOFT(LOGITS, [LOGITS, np.ones_like(TEMPERATURE)], [EVERY])
    where = np.random.default_rng(62).uniform(size=SHAPE) < 0.7
    where[:, 0] = True
    cotangent = cotangents(*SHAPE)
    ours = SOFT(cotangent, [LOGITS, TEMPERATURE], [where])
    theirs = value_and_gradients(
        lambda x, t, w: jaxsoftmax.softmax(x, temperature=t, where=w), cotangent, [np.log(sample), TEMPERATURE], [where]
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(ours[0][~where], np.zeros((~where).sum()))
    np.testing.assert_array_equal(ours[1][~where], np.zeros((~where).sum()))


def test_temperature_zero_is_the_hard_sample():
    hard, *_ = HARD(LOGITS, [LOGITS, TEMPERATURE], [EVERY])
    for function in (SOFT, HARD):
        value, by_logits, by_temperature = function(cotangents(*SHAPE), [LOGITS, 0 * TEMPERATURE], [EVERY])
        np.testing.assert_array_equal(value, hard)
        np.testing.assert_array_equal(by_logits, np.zeros(SHAPE))
        np.testing.assert_array_equal(by_temperature, np.zeros(20))
        cold = function(cotangents(*SHAPE), [LOGITS, np.full_like(TEMPERATURE, 1e-30)], [EVERY])
        np.testing.assert_array_equal(cold[0], hard)
        assert not any(np.any(np.isnan(x)) for x in cold)


@pytest.mark.parametrize("function", [SOFT, HARD], ids=["soft", "hard"])
def test_absent_classes_and_broken_rows(function):
    logits, where = LOGITS.copy(), EVERY.copy()
    logits[0, 1] = logits[2] = -np.inf
    logits[1, 2] = np.nan
    logits[4, 1] = np.nan
    where[4, 1] = where[3] = False
    value, by_logits, by_temperature = function(np.ones(SHAPE, np.float32), [logits, TEMPERATURE], [where])
    broken = np.arange(20) == 1
    for array in (value, by_logits):
        assert np.all(np.isnan(array[broken]))
        assert np.all(np.isfinite(array[~broken]))
        np.testing.assert_array_equal(array[2:4], np.zeros((2, 6)))
        assert array[0, 1] == array[4, 1] == 0
    assert np.all(np.isfinite(by_temperature[~broken]))
    present = ~np.isin(np.arange(20), (1, 2, 3))
    np.testing.assert_allclose(value[present].sum(-1), np.ones(17), rtol=1e-6)


def counts(logits, draws):
    """f(temperature): how often each class of one row is the largest, over independent rows of one call."""

    @jax.jit
    def run(logits, temperature):
        rows = jnp.broadcast_to(logits, (draws, *logits.shape))
        sample = jaxsoftmax.gumbel_softmax(KEY, rows, hard=True, temperature=temperature)
        return jnp.sum(sample.astype(jnp.float32), 0)

    return lambda temperature=1.0: np.asarray(run(logits, temperature))


def test_the_largest_class_is_a_sample_from_softmax():
    logits = np.float32([0.0, 1.0, -2.0, 0.5, 3.0, -np.inf])
    run = counts(logits, 200_000)
    observed = run()
    p = np.exp(logits[:5].astype(np.float64))
    assert observed[5] == 0
    assert scipy.stats.chisquare(observed[:5], 200_000 * p / p.sum()).pvalue > 1e-3
    np.testing.assert_array_equal(run(0.1), observed)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_a_thousand_equal_classes_are_equally_likely(dtype):
    """Noise drawn in bfloat16 has some hundred values and prefers the first classes."""
    observed = counts(np.full(1000, 3.0, dtype), 5_000)()
    assert observed.sum() == 5_000
    assert scipy.stats.binomtest(int(observed[:100].sum()), 5_000, 0.1).pvalue > 1e-3
    assert scipy.stats.chisquare(observed.reshape(100, 10).sum(-1)).pvalue > 1e-3


def test_axis_batch_and_keys():
    logits = np.random.default_rng(63).normal(size=(3, 4, 5)).astype(np.float32)

    @jax.jit
    def run(key, logits):
        return {
            "soft": jaxsoftmax.gumbel_softmax(key, logits, axis=1),
            "hard": jaxsoftmax.gumbel_softmax(key, logits, axis=1, hard=True),
            "none": jaxsoftmax.gumbel_softmax(key, logits[:0]),
            "single": jaxsoftmax.gumbel_softmax(key, logits[0, 0, :1], hard=True),
        }

    first, again, other = run(KEY, logits), run(KEY, logits), run(jax.random.key(8), logits)
    np.testing.assert_allclose(first["soft"].sum(1), np.ones((3, 5)), rtol=1e-6)
    np.testing.assert_array_equal(first["hard"].sum(1), np.ones((3, 5)))
    np.testing.assert_array_equal(first["hard"].argmax(1), first["soft"].argmax(1))
    assert first["none"].shape == (0, 4, 5)
    np.testing.assert_array_equal(first["single"], [1])
    np.testing.assert_array_equal(first["soft"], again["soft"])
    assert not np.allclose(first["soft"], other["soft"])
    raw = run(jax.random.key_data(KEY), logits)
    np.testing.assert_array_equal(first["soft"], raw["soft"])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_straight_through(dtype):
    """The value of hard, bit for bit, and the gradient of soft."""
    soft = np.random.default_rng(64).uniform(size=(50, 7)).astype(dtype)
    hard = np.round(soft.astype(np.float32)).astype(dtype)
    cotangent = cotangents(50, 7, dtype=dtype)
    value, by_hard, by_soft = value_and_gradients(jaxsoftmax.straight_through, cotangent, [hard, soft])
    assert value.dtype == dtype
    np.testing.assert_array_equal(value, hard)
    np.testing.assert_array_equal(by_hard, np.zeros((50, 7)))
    np.testing.assert_array_equal(by_soft, cotangent)
    chosen = soft == soft.max(-1, keepdims=True)
    value, by_soft = value_and_gradients(lambda s, h: jaxsoftmax.straight_through(h, s), cotangent, [soft], [chosen])
    np.testing.assert_array_equal(value, chosen.astype(dtype))
    np.testing.assert_array_equal(by_soft, cotangent)
