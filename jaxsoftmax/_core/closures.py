"""Whether a program that was compiled for a user's function can be used for it again.

`jax.jit` knows a function by its identity. What the function reads beside its arguments, in a closure or in the globals
of its module, may have changed by the next call, or may be a tracer.
"""

import functools
import types
from collections.abc import Iterator
from typing import Any

__all__ = ["constants_of"]

LIBRARIES = ("builtins", "jax", "jaxlib", "jaxsoftmax", "math", "numpy", "optax")


def constants_of(function: Any) -> tuple[Any, ...] | None:
    """What a function takes from globals, numbers, strings and functions, as a key; None where it may depend on more.

    A function of one of the `LIBRARIES` depends on nothing, and one that is defined at the top of a module on the
    globals that it names, through the functions that it calls, too.
    """
    try:
        return tuple(_constants(function, set()))
    except _DependsOnMore:
        return None


class _DependsOnMore(Exception):
    """The function may depend on something that no key has."""


def _constants(function: Any, seen: set[int]) -> Iterator[Any]:
    if isinstance(function, functools.partial):
        _check_all_constant((*function.args, *function.keywords.values()))
        yield from _constants(function.func, seen)
        return
    if id(function) in seen or _of_library(function):
        return
    if not isinstance(function, types.FunctionType) or function.__closure__ is not None:
        raise _DependsOnMore
    seen.add(id(function))
    _check_all_constant((*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()))
    for name in sorted(_names_in(function.__code__) & function.__globals__.keys()):
        value = function.__globals__[name]
        if _is_constant(value):
            yield name, type(value), value
        else:
            yield name, value  # another function may take its name
            yield from _constants(value, seen)


def _names_in(code: types.CodeType) -> set[str]:
    """All names that may be globals, in functions inside of it, too; names of attributes are among them."""
    inner = (_names_in(const) for const in code.co_consts if isinstance(const, types.CodeType))
    return set(code.co_names).union(*inner)


def _of_library(value: Any) -> bool:
    """A module of the libraries, or a function or class that one of them defines."""
    defined = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    callable_ = isinstance(value, types.ModuleType) or callable(value)
    return callable_ and isinstance(defined, str) and defined.partition(".")[0] in LIBRARIES


def _is_constant(value: Any) -> bool:
    return isinstance(value, int | float | str | None)


def _check_all_constant(values: tuple[Any, ...]) -> None:
    if not all(map(_is_constant, values)):
        raise _DependsOnMore
