"""How a public function enters its computation: compiled once, with the first of its arrays on a mesh of the others."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from jaxsoftmax._core import meshes

__all__ = ["compiled"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(*static: str) -> Callable[[_Function], _Function]:
    """A decorator: compiled once for each value of these keywords, in place where it is called.

    Positional arguments are arrays, and go through `meshes.with_the_first`.
    """

    def decorated(function: Any) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            return function(*meshes.with_the_first(args), **options)

        return jax.jit(call, static_argnames=static, inline=True)

    return decorated
