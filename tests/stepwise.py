"""A traced function, run one primitive after another: what it computes, without the compiler's time.

A test of a transformation asks whether it can be traced and what comes of it. A program of derivatives of derivatives
takes the compiler many times as long as it takes to trace; its primitives are few, and compiled once for all tests.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core


def stepwise(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as `jax.jit` would trace it, evaluated step by step; loops are loops of Python."""

    def evaluate(*args: Any) -> Any:
        traced, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        return jax.tree.unflatten(jax.tree.structure(shape), _run(traced, jax.tree.leaves(args)))

    return evaluate


def _opened(traced: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and its constants; jax 0.12 has no closed ones inside of equations any more."""
    return (traced.jaxpr, traced.consts) if hasattr(traced, "consts") else (traced, ())


def _run(traced: Any, args: Sequence[Any]) -> list[Any]:
    """The results of a jaxpr."""
    jaxpr, constants = _opened(traced)
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *args], strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in jaxpr.eqns:
        results = _step(equation, [read(v) for v in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _step(equation: Any, args: list[Any]) -> list[Any]:
    """The results of one equation: a call is entered, a loop is run, all else is the primitive's own."""
    name, params = equation.primitive.name, equation.params
    if name in _LOOPS:
        return _LOOPS[name](equation, args)
    if name in _CALLS:
        return _run(params[_CALLS[name]], args)
    results = equation.primitive.bind(*args, **params)
    return results if equation.primitive.multiple_results else [results]


def _scan(equation: Any, args: list[Any]) -> list[Any]:
    """Constants, carries and rows of the arguments are told apart by their ranks, which all versions have."""
    params = equation.params
    body, _ = _opened(params["jaxpr"])
    rows = sum(np.ndim(a) != v.aval.ndim for a, v in zip(args, body.invars, strict=True))
    carries = sum(v.aval.ndim == w.aval.ndim for v, w in zip(equation.outvars, body.outvars, strict=True))
    before = len(args) - rows - carries
    constants, carry = args[:before], args[before : before + carries]
    xs = [np.asarray(x) for x in args[before + carries :]]
    order = range(params["length"])
    ys: list[Any] = [None] * len(order)
    for i in reversed(order) if params["reverse"] else order:
        results = _run(params["jaxpr"], [*constants, *carry, *[x[i] for x in xs]])
        carry, ys[i] = results[:carries], results[carries:]
    return [*carry, *[np.stack(y) for y in zip(*ys, strict=True)]]


def _while(equation: Any, args: list[Any]) -> list[Any]:
    """Under vmap, those go on whose own condition holds."""
    params = equation.params
    ends = np.cumsum([params["cond_nconsts"], params["body_nconsts"]])
    of_condition, of_body, carry = args[: ends[0]], args[ends[0] : ends[1]], args[ends[1] :]
    while np.any(goes_on := np.asarray(_run(params["cond_jaxpr"], [*of_condition, *carry])[0])):
        new = _run(params["body_jaxpr"], [*of_body, *carry])
        shapes = [goes_on.shape + (1,) * (np.ndim(x) - goes_on.ndim) for x in new]
        carry = [np.where(goes_on.reshape(s), n, o) for s, n, o in zip(shapes, new, carry, strict=True)]
    return carry


def _cond(equation: Any, args: list[Any]) -> list[Any]:
    return _run(equation.params["branches"][int(args[0])], args[1:])


# Where a call has its jaxpr. Others that have one, as `shard_map`, are more than a call and are run as they are.
_CALLS = {
    "jit": "jaxpr",
    "remat2": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "eval_jaxpr": "call_jaxpr",
}
_LOOPS = {"scan": _scan, "while": _while, "cond": _cond}
