"""What runs the laws step by step computes what the compiled program does."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.stepwise import stepwise

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
