"""The transformations that every operation must stand, as functions from a function to numbers.

Each law takes a scalar function f of the operation's arguments and returns named results, all of them traced as one
program and run step by step, but for those of shard_map, which are compiled. What they must equal is computed from the
operation's plain expression, in the function below each law, and by the plainest means: many ways to one derivative
have one truth.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, PartitionSpec

import jaxsoftmax
from tests.conformance.operations import Operation
from tests.stepwise import stepwise

Function = Callable[..., jax.Array]


def scalar(operation: Operation, function: Function) -> Function:
    """The function's values, weighted unevenly and summed through a nonlinearity that has all derivatives."""
    weights = operation.cotangent()
    return lambda *args: jnp.sum(weights * jnp.sin(function(*args)))


def first_order(f: Function, operation: Operation, args: Any, forward: bool) -> dict[str, Any]:
    """Reverse mode and vmap; forward mode where it is switched on."""
    over = tuple(range(len(args)))
    gradient = jax.grad(f, over)
    batch = operation.batch(2)
    results = {
        "value": f(*args),
        "grad": gradient(*args),
        "vmap of grad": jax.vmap(gradient)(*batch),
        "vmap over one": jax.vmap(gradient, in_axes=(0, *[None] * (len(args) - 1)))(batch[0], *args[1:]),
    }
    if forward:
        tangents = operation.tangents()
        _, pushed = jax.linearize(f, *args)
        results["jvp"] = jax.jvp(f, args, tangents)
        results["linearize"] = pushed(*tangents)
        results["linear_transpose"] = jax.linear_transpose(pushed, *args)(jnp.float32(1.5))
        results["jacfwd"] = jax.jacfwd(f)(*args)
    return results


def first_order_truth(f: Function, operation: Operation, args: Any) -> dict[str, Any]:
    """The gradient, of one and of a batch, and its product with the tangents."""
    over = tuple(range(len(args)))
    value, gradient = jax.value_and_grad(f, over)(*args)
    batch = operation.batch(2)
    slope = sum(jnp.sum(g * t) for g, t in zip(gradient, operation.tangents(), strict=True))
    return {
        "value": value,
        "grad": gradient,
        "vmap of grad": jax.vmap(jax.grad(f, over))(*batch),
        "vmap over one": jax.vmap(jax.grad(f, over), in_axes=(0, *[None] * (len(args) - 1)))(batch[0], *args[1:]),
        "jvp": (value, slope),
        "linearize": slope,
        "linear_transpose": tuple(1.5 * g for g in gradient),
        "jacfwd": gradient[0],
    }


def higher_order(f: Function, operation: Operation, args: Any, forward: bool) -> dict[str, Any]:
    """Hessian-vector products each way, and the third derivative along a line."""
    over = tuple(range(len(args)))
    tangents = operation.tangents()

    def push(g: Function) -> Function:
        return lambda *a: jax.jvp(g, a, tangents)[1]

    def along(*a: Any) -> jax.Array:
        return sum(jnp.sum(g * t) for g, t in zip(jax.grad(f, over)(*a), tangents, strict=True))

    def line(t: Any) -> jax.Array:
        return f(*(a + t * d for a, d in zip(args, tangents, strict=True)))

    results = {
        "forward over reverse": push(jax.grad(f, over))(*args),
        "reverse over reverse": jax.grad(along, over)(*args),
        "third order": jax.grad(jax.grad(jax.grad(line)))(0.0),
    }
    if forward:
        results["reverse over forward"] = jax.grad(push(f), over)(*args)
        results["forward over forward"] = push(push(f))(*args)
    return results


def higher_order_truth(f: Function, operation: Operation, args: Any) -> dict[str, Any]:
    """One Hessian-vector product, its product with the tangents, and the third derivative by forward mode."""
    tangents = operation.tangents()

    def push(g: Function) -> Function:
        return lambda *a: jax.jvp(g, a, tangents)[1]

    product = push(jax.grad(f, tuple(range(len(args)))))(*args)
    return {
        "forward over reverse": product,
        "reverse over reverse": product,
        "third order": push(push(push(f)))(*args),
        "reverse over forward": product,
        "forward over forward": sum(jnp.sum(h * t) for h, t in zip(product, tangents, strict=True)),
    }


def control_flow(f: Function, operation: Operation, args: Any, forward: bool) -> dict[str, Any]:
    """Rematerialized with two policies, and in the bodies of scan, fori_loop and cond."""
    del forward
    over = tuple(range(len(args)))
    batch = operation.batch(3)

    def scanned(*rows: Any) -> jax.Array:
        return lax.scan(lambda c, row: (c + jnp.cos(c) * f(*row), None), 0.5, rows)[0]

    def branched(*a: Any) -> jax.Array:
        once = lax.cond(jnp.sum(a[0]) > 1e6, lambda *b: 0.0 * f(*b), f, *a)
        return lax.fori_loop(0, 2, lambda i, c: c + jnp.cos(c) * f(*a), once)

    def weighted(w: Any, *rows: Any) -> jax.Array:
        return lax.scan(lambda c, row: (c + w * f(*row) * jnp.sin(c), None), 1.0, rows)[0]

    saved = jax.checkpoint(f, policy=jax.checkpoint_policies.everything_saveable)
    return {
        "remat": jax.grad(jax.checkpoint(f), over)(*args),
        "remat with a policy": jax.grad(saved, over)(*args),
        "scan of remat": jax.grad(jax.checkpoint(scanned), over)(*batch),
        "cond and fori_loop": jax.grad(branched, over)(*args),
        # Wrong by half its size in JAX where a residual is a bare argument.
        "mixed derivative through scan": jax.grad(lambda *rows: jax.grad(weighted)(0.7, *rows), over)(*batch),
    }


def control_flow_truth(f: Function, operation: Operation, args: Any) -> dict[str, Any]:
    """Without control flow: f of all rows at once, and the few numbers that come of it written out."""
    over = tuple(range(len(args)))
    batch = operation.batch(3)

    def scanned(*rows: Any) -> jax.Array:
        carry = jnp.float32(0.5)
        for value in jax.vmap(f)(*rows):
            carry = carry + jnp.cos(carry) * value
        return carry

    def branched(*a: Any) -> jax.Array:
        value = carry = f(*a)
        for _ in range(2):
            carry = carry + jnp.cos(carry) * value
        return carry

    def weighted(w: Any, values: jax.Array) -> jax.Array:
        carry = jnp.float32(1.0)
        for value in values:
            carry = carry + w * value * jnp.sin(carry)
        return carry

    gradient = jax.grad(f, over)(*args)
    return {
        "remat": gradient,
        "remat with a policy": gradient,
        "scan of remat": jax.grad(scanned, over)(*batch),
        "cond and fori_loop": jax.grad(branched, over)(*args),
        "mixed derivative through scan": jax.grad(lambda *rows: jax.grad(weighted)(0.7, jax.vmap(f)(*rows)), over)(
            *batch
        ),
    }


def sharded(f: Function, operation: Operation, args: Any, forward: bool) -> dict[str, Any]:
    """In shard_map: each device has its own first argument; the others are replicated, their cotangents summed."""
    del forward
    over = tuple(range(len(args)))
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Auto,))
    specs = (PartitionSpec("rows"), *[PartitionSpec()] * (len(args) - 1))
    first = operation.batch(4)[0]

    def local(x: Any, *rest: Any) -> jax.Array:
        return lax.psum(f(x[0], *rest), "rows")

    def local_gradients(x: Any, *rest: Any) -> Any:
        own = jax.grad(lambda y: f(y[0], *rest))(x)
        return own, jax.jvp(lambda y: jax.grad(lambda u: f(u[0], *rest))(y), (x,), (own,))[1]

    results = {}
    for check in (True, False):
        outside = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=check)
        results[f"grad of shard_map, check_vma={check}"] = jax.value_and_grad(outside, over)(first, *args[1:])
        inside = jax.shard_map(
            local_gradients, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("rows"), check_vma=check
        )
        results[f"grad in shard_map, check_vma={check}"] = inside(first, *args[1:])
    return results


def sharded_truth(f: Function, operation: Operation, args: Any) -> dict[str, Any]:
    """On one device."""
    over = tuple(range(len(args)))
    first, rest = operation.batch(4)[0], args[1:]

    def total(x: Any, *rest: Any) -> jax.Array:
        return jnp.sum(jax.vmap(lambda row: f(row, *rest))(x))

    def gradient(x: Any) -> jax.Array:
        return jax.grad(total)(x, *rest)

    outside, own = jax.value_and_grad(total, over)(first, *rest), gradient(first)
    inside = (own, jax.jvp(gradient, (first,), (own,))[1])
    results = {}
    for check in (True, False):
        results[f"grad of shard_map, check_vma={check}"] = outside
        results[f"grad in shard_map, check_vma={check}"] = inside
    return results


LAWS = {law.__name__: law for law in (first_order, higher_order, control_flow, sharded)}
TRUTHS = dict(zip(LAWS, (first_order_truth, higher_order_truth, control_flow_truth, sharded_truth), strict=True))


def evaluate(name: str, operation: Operation, function: Function, forward: bool) -> dict[str, Any]:
    """All results of the law."""
    f = scalar(operation, function)
    run = jax.jit if name == "sharded" else stepwise
    return run(lambda *args: LAWS[name](f, operation, args, forward))(*operation.args)


def expected(name: str, operation: Operation) -> dict[str, Any]:
    """What the results of the law must be, from the plain expression."""
    f = scalar(operation, operation.plain)
    return stepwise(lambda *args: TRUTHS[name](f, operation, args))(*operation.args)


def mistakes(name: str, operation: Operation, forward: bool, expected: dict[str, Any]) -> dict[str, float]:
    """The results of the law that differ from what they must be by more than is allowed."""
    with jaxsoftmax.forward_mode() if forward else contextlib.nullcontext():
        actual = evaluate(name, operation, operation.function, forward)
    wrong = {key: differences(actual[key], expected[key]) for key in actual}
    return {key: value for key, value in wrong.items() if not value <= TOLERANCES[name]}


def differences(actual: Any, expected: Any) -> float:
    """The largest difference of two trees, relative to 1 plus the size of each array."""

    def one(a: Any, e: Any) -> float:
        a, e = np.asarray(a), np.asarray(e)
        assert a.shape == e.shape, (a.shape, e.shape)
        return float(np.max(np.abs(a - e), initial=0.0) / (1.0 + np.max(np.abs(e), initial=0.0)))

    return float(np.max(jax.tree.leaves(jax.tree.map(one, actual, expected))))  # a NaN anywhere is a NaN here


# Float32 rounding, amplified by each order of differentiation and by the loops.
TOLERANCES = {"first_order": 2e-5, "higher_order": 5e-4, "control_flow": 2e-4, "sharded": 2e-4}
