"""A traced function, run one primitive after another: what it computes, without the compiler's time.

A test of a transformation asks whether it can be traced and what comes of it. A program of derivatives of derivatives
takes the compiler many times as long as it takes to trace. Its primitives are few: numpy has most of them, and of the
rest each is a small program of its own, compiled once for all tests.
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
        leaves = [_numbers(x) for x in jax.tree.leaves(args)]
        with np.errstate(all="ignore"):
            results = _run(traced, leaves)
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return evaluate


def _opened(traced: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and its constants; jax 0.12 has no closed ones inside of equations any more."""
    return (traced.jaxpr, traced.consts) if hasattr(traced, "consts") else (traced, ())


def _numbers(x: Any) -> Any:
    """An array of numpy; a key of jax.random as it is."""
    dtype = jax.typeof(x).dtype
    return x if jax.dtypes.issubdtype(dtype, jax.dtypes.extended) else np.asarray(x, dtype)


def _run(traced: Any, args: Sequence[Any]) -> list[Any]:
    """The results of a jaxpr."""
    jaxpr, constants = _opened(traced)
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*map(_numbers, constants), *args], strict=True))

    def read(variable: Any) -> Any:
        if isinstance(variable, core.Literal):
            return _numbers(variable.val)
        return values[variable]

    for equation in jaxpr.eqns:
        results = _step(equation, [read(v) for v in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _step(equation: Any, args: list[Any]) -> list[Any]:
    """The results of one equation: a call is entered, a loop is run, numpy computes what it has."""
    name, params = equation.primitive.name, equation.params
    if name in _LOOPS:
        return _LOOPS[name](equation, args)
    if name in _CALLS:
        return _run(params[_CALLS[name]], args)
    if all(isinstance(x, np.ndarray) and x.dtype in _DTYPES for x in args):
        dtype = equation.outvars[0].aval.dtype
        if name in ELEMENTWISE:
            return [np.asarray(ELEMENTWISE[name](*args), dtype)]
        if name in OF_ARRAYS:
            return [np.asarray(OF_ARRAYS[name](*args, **params), dtype)]
    results = equation.primitive.bind(*args, **params)
    return [_numbers(x) for x in (results if equation.primitive.multiple_results else [results])]


def _scan(equation: Any, args: list[Any]) -> list[Any]:
    """Constants, carries and rows of the arguments are told apart by their ranks, which all versions have."""
    params = equation.params
    body, _ = _opened(params["jaxpr"])
    rows = sum(np.ndim(a) != v.aval.ndim for a, v in zip(args, body.invars, strict=True))
    carries = sum(v.aval.ndim == w.aval.ndim for v, w in zip(equation.outvars, body.outvars, strict=True))
    before = len(args) - rows - carries
    constants, carry = args[:before], args[before : before + carries]
    xs = args[before + carries :]
    order = range(params["length"])
    ys: list[Any] = [None] * len(order)
    for i in reversed(order) if params["reverse"] else order:
        results = _run(params["jaxpr"], [*constants, *carry, *[x[i, ...] for x in xs]])
        carry, ys[i] = results[:carries], results[carries:]
    return [*carry, *[np.stack(y) for y in zip(*ys, strict=True)]]


def _while(equation: Any, args: list[Any]) -> list[Any]:
    """Under vmap, those go on whose own condition holds."""
    params = equation.params
    ends = np.cumsum([params["cond_nconsts"], params["body_nconsts"]])
    of_condition, of_body, carry = args[: ends[0]], args[ends[0] : ends[1]], args[ends[1] :]
    while np.any(goes_on := _run(params["cond_jaxpr"], [*of_condition, *carry])[0]):
        new = _run(params["body_jaxpr"], [*of_body, *carry])
        shapes = [goes_on.shape + (1,) * (np.ndim(x) - goes_on.ndim) for x in new]
        carry = [np.where(goes_on.reshape(s), n, o) for s, n, o in zip(shapes, new, carry, strict=True)]
    return carry


def _cond(equation: Any, args: list[Any]) -> list[Any]:
    return _run(equation.params["branches"][int(args[0])], args[1:])


# Those of numpy itself; it would round the sums of half precision more often than the primitives do.
_DTYPES = (np.bool_, np.int32, np.int64, np.float32, np.float64)
ELEMENTWISE = {
    **{name: getattr(np, name) for name in ("abs", "cos", "exp", "expm1", "log", "log1p", "sin", "sqrt", "square")},
    **{"add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "tanh": np.tanh},
    **{"max": np.maximum, "min": np.minimum, "eq": np.equal, "ne": np.not_equal, "is_finite": np.isfinite},
    **{"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal},
    **{"and": np.bitwise_and, "or": np.bitwise_or, "not": np.bitwise_not},
    **{"sign": np.sign, "pow": np.power, "div": np.true_divide},
    "select_n": lambda which, no, yes: np.where(which, yes, no),
    "stop_gradient": np.asarray,
}


def _dot_general(a: np.ndarray, b: np.ndarray, *, dimension_numbers: Any, **_: Any) -> np.ndarray:
    """Sums over the contracted axes; batch axes come first, then what is left of each."""
    contracted, batch = dimension_numbers
    of_a, of_b = list(range(a.ndim)), list(range(a.ndim, a.ndim + b.ndim))
    for i, j in zip((*contracted[0], *batch[0]), (*contracted[1], *batch[1]), strict=True):
        of_b[j] = of_a[i]
    shared = [of_a[i] for i in batch[0]]
    bound = {*shared, *(of_a[i] for i in contracted[0])}
    return np.einsum(a, of_a, b, of_b, [*shared, *(x for x in of_a + of_b if x not in bound)])


def _broadcast(x: np.ndarray, *, shape: Any, broadcast_dimensions: Any, **_: Any) -> np.ndarray:
    sizes = dict(zip(broadcast_dimensions, x.shape, strict=True))
    return np.broadcast_to(x.reshape([sizes.get(axis, 1) for axis in range(len(shape))]), shape)


def _reshape(x: np.ndarray, *, new_sizes: Any, dimensions: Any, **_: Any) -> np.ndarray:
    return (x if dimensions is None else x.transpose(dimensions)).reshape(new_sizes)


def _slice(x: np.ndarray, *, start_indices: Any, limit_indices: Any, strides: Any) -> np.ndarray:
    return x[tuple(map(slice, start_indices, limit_indices, strides or [1] * x.ndim))]


OF_ARRAYS = {
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda *xs, dimension: np.concatenate(xs, dimension),
    "convert_element_type": lambda x, *, new_dtype, **_: x.astype(new_dtype),
    "dot_general": _dot_general,
    "integer_pow": lambda x, *, y: x**y,
    "name": lambda x, **_: x,
    "reduce_max": lambda x, *, axes, **_: x.max(axes),
    "reduce_sum": lambda x, *, axes, **_: x.sum(axes, dtype=x.dtype),
    "reshape": _reshape,
    "slice": _slice,
    "squeeze": lambda x, *, dimensions: x.squeeze(dimensions),
    "transpose": lambda x, *, permutation: x.transpose(permutation),
}

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
