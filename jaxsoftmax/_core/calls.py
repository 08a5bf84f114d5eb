"""How a public function enters its computation: compiled once, with all of its arrays on one mesh."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from jaxsoftmax._core import meshes

__all__ = ["compiled", "on_one_mesh"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(*static: str) -> Callable[[_Function], _Function]:
    """A decorator: `on_one_mesh`, and compiled once for each value of these keywords, in place where it is called."""

    def decorated(function: Any) -> Any:
        return jax.jit(on_one_mesh(function), static_argnames=static, inline=True)

    return decorated


def on_one_mesh(function: _Function) -> _Function:
    """A decorator: the function finds the first of its positional arrays on the explicit mesh of the others."""

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        return function(*meshes.with_the_first(args), **options)

    return call  # type: ignore[return-value]
