"""Whether a program that was compiled for a user's function can be used for it again.

`jax.jit` knows a function by its identity. What the function reads beside its arguments, in a closure or in the globals
of its module, may have changed by the next call, or may be a tracer.
"""

import dis
import functools
import sys
import types
from collections.abc import Iterator
from typing import Any

__all__ = ["constants_of"]

LIBRARIES = ("builtins", "jax", "jaxlib", "jaxsoftmax", "math", "numpy", "optax")


def constants_of(function: Any) -> tuple[Any, ...] | None:
    """What a function takes from globals, numbers, strings and functions, as a key; None where it may depend on more.

    What stands in a module of the `LIBRARIES` under its own name depends on nothing, and a function that is defined at
    the top of a module on the globals that it names, through the functions that it calls, too.
    """
    try:
        return tuple(_constants(function, set()))
    except _DependsOnMore:
        return None


class _DependsOnMore(Exception):
    """The function may depend on something that no key has."""


def _constants(function: Any, seen: set[int]) -> Iterator[Any]:
    if isinstance(function, functools.partial):
        yield from _keys(dict(enumerate(function.args)) | function.keywords)
        yield from _constants(function.func, seen)
        return
    if id(function) in seen or _of_library(function):
        return
    if not isinstance(function, types.FunctionType) or function.__closure__ is not None or function.__dict__:
        raise _DependsOnMore
    seen.add(id(function))
    yield function.__code__
    yield from _keys(dict(enumerate(function.__defaults__ or ())) | (function.__kwdefaults__ or {}))
    for name in sorted(_names_in(function.__code__) & function.__globals__.keys()):
        value = function.__globals__[name]
        if type(value) in _CONSTANTS:
            yield from _keys({name: value})
        else:
            yield name, value  # another function may take its name
            yield from _constants(value, seen)


@functools.lru_cache(maxsize=256)
def _names_in(code: types.CodeType) -> frozenset[str]:
    """All names that may be globals, in functions inside of it, too; names of attributes are among them."""
    if any(instruction.opname == "IMPORT_NAME" for instruction in dis.get_instructions(code)):
        raise _DependsOnMore
    inner = (_names_in(const) for const in code.co_consts if isinstance(const, types.CodeType))
    return frozenset(code.co_names).union(*inner)


def _of_library(value: Any) -> bool:
    """Whether a library has it under its own name, and not something that was made from a function of the user's."""
    name = getattr(value, "__name__", None)
    if isinstance(value, types.ModuleType):
        return _library(name) is value
    return isinstance(name, str) and getattr(_library(getattr(value, "__module__", None)), name, None) is value


def _library(name: Any) -> types.ModuleType | None:
    """The module of that name, where it is one of the libraries'."""
    return sys.modules.get(name) if isinstance(name, str) and name.partition(".")[0] in LIBRARIES else None


_CONSTANTS = (bool, int, float, str, types.NoneType)


def _keys(values: dict[Any, Any]) -> Iterator[Any]:
    """The constants, told apart where they are equal, as 1 and True, or 0.0 and -0.0."""
    for name, value in values.items():
        if type(value) not in _CONSTANTS:
            raise _DependsOnMore
        yield name, type(value), repr(value)
