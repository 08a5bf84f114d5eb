"""What runs the laws step by step computes what the compiled program does."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from tests.stepwise import ELEMENTWISE, OF_ARRAYS, stepwise

ROWS = np.float32([[0.5, -1.0], [2.0, 0.25], [-0.75, 3.0]])


@jax.custom_jvp
def cubed(x):
    return x**3


cubed.defjvp(lambda primals, tangents: (cubed(*primals), 3.0 * primals[0] ** 2 * tangents[0]))


def everything(rows, scale):
    """Loops forward and backward with constants, carries and rows of every rank; a loop with an end; both branches."""

    def step(carry, row):
        total, last = carry
        value = jnp.sum(jnp.sin(row * last * scale)) + cubed(total)
        return (0.5 * jnp.cos(value), row), {"value": value, "row": row * total}

    (total, _), there = lax.scan(jax.checkpoint(step), (jnp.float32(0.1), rows[1]), rows)
    _, back = lax.scan(step, (total, rows[0]), rows, reverse=True)
    doubled = lax.while_loop(lambda c: jnp.max(jnp.abs(c)) < 50.0, lambda c: c * scale, rows)
    branches = [lax.cond(total > bound, jnp.sin, jnp.cos, total) for bound in (-9.0, 9.0)]
    return there, back, doubled, jnp.stack(branches), jax.jit(jnp.tanh)(scale)


def test_it_is_what_the_compiled_program_computes():
    def loss(rows, scale):
        there, back, _, branches, last = everything(rows, scale)
        return jnp.sum(there["value"] * back["value"]) + jnp.sum(back["row"][0]) + jnp.sum(branches) * last

    def of_many(rows, scale):
        return jax.vmap(everything, (0, None))(jnp.stack([rows, -rows]), scale)

    remat = jax.checkpoint(loss, policy=jax.checkpoint_policies.everything_saveable)
    for function in (everything, jax.grad(loss, (0, 1)), jax.jacfwd(jax.grad(loss)), jax.grad(remat), of_many):
        expected = jax.jit(function)(ROWS, np.float32(1.5))
        jax.tree.map(
            lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5),
            stepwise(function)(ROWS, np.float32(1.5)),
            expected,
        )


def every_primitive(x, y):
    """Of rows x [3, 2] and y > 0 [3, 2], all that numpy computes instead of JAX."""
    unary = (lax.abs, lax.cos, lax.exp, lax.expm1, lax.neg, lax.sign, lax.sin, lax.tanh, lax.square, lax.stop_gradient)
    of_positive = (lax.log, lax.log1p, lax.sqrt)
    binary = (lax.add, lax.sub, lax.mul, lax.max, lax.min, lax.div)
    comparisons = (lax.eq, lax.ne, lax.lt, lax.le, lax.gt, lax.ge)
    number, truth = jnp.sum(x) > 0, [compare(x, y) for compare in comparisons]
    numbers = lax.convert_element_type(10 * x, jnp.int32)
    return {
        "elementwise": [f(x) for f in unary] + [f(y) for f in of_positive] + [f(x, y) for f in binary],
        "gradient": jax.grad(lambda z: jnp.sum(z * jnp.sin(z)))(x),
        "power": [lax.pow(y, x), lax.pow(y, numbers), lax.integer_pow(x, 3), lax.integer_pow(x, -2)],
        "truth": [*truth, truth[2] & truth[1], truth[4] | truth[0], ~truth[3], lax.is_finite(x / 0), number],
        "integers": [numbers // 3, lax.div(numbers, 3 * jnp.ones_like(numbers)), numbers | 5],
        "choice": [jnp.where(truth[2], x, y), lax.select_n(x[0, 0] > 9, x, y)],
        "shape": [x.T, x.reshape(2, 3), x[1:, ::-1], lax.slice(x, (0, 0), (3, 2), (2, 1)), lax.squeeze(x[:1], (0,))],
        "turned": lax.reshape(x, (2, 3), (1, 0)),
        "joined": [jnp.concatenate([x, y], 1), jnp.broadcast_to(x[:, :1, None], (3, 2, 4)), checkpoint_name(x, "x")],
        "sums": [x.sum(), x.sum(0), x.max(1), x @ y.T, jnp.einsum("ij,ik->jk", x, y), jnp.einsum("ij,ij->i", x, y)],
    }


def names_in(jaxpr):
    """The primitives of a jaxpr and of all inside of it."""
    names = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        for inner in jax.tree.leaves(list(equation.params.values())):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                names |= names_in(getattr(inner, "jaxpr", inner))
    return names


def test_what_numpy_computes_is_what_the_primitives_compute():
    y = np.abs(ROWS) + np.float32(0.1)
    assert {*ELEMENTWISE, *OF_ARRAYS} <= names_in(jax.make_jaxpr(every_primitive)(ROWS, y).jaxpr)
    expected, actual = jax.jit(every_primitive)(ROWS, y), stepwise(every_primitive)(ROWS, y)
    for e, a in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        assert (e.dtype, e.shape) == (a.dtype, a.shape)
        np.testing.assert_allclose(a, e, rtol=1e-6)
