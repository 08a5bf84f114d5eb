"""From a forward, a backward and a tangent rule to one differentiable operation."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.dtypes import float0

from jaxsoftmax._core import arrays, folds, meshes, passes, scalars

__all__ = ["elementwise", "forward_mode", "on_rows", "operation", "vary_alike"]

_forward_mode = jax.make_user_context(False)


@contextlib.contextmanager
def forward_mode() -> Iterator[None]:
    """Lets the operations of this package be differentiated in forward mode.

    Outside, every operation carries its backward rule by `jax.custom_vjp`, which keeps the least memory and which JAX
    refuses to push forward (`jax.jvp`, `jax.jacfwd`, and what `jax.linearize` returns). Inside, every operation carries
    its tangent rule by `jax.custom_jvp`, and all modes work, reverse mode included. Values are the same in both.

    The switch is read when a function is traced, and it is part of the cache key of `jax.jit`: a function compiled
    outside is traced anew inside, and the reverse. Use it as a context manager or as a decorator; it nests.

    Yields:
        Nothing.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsoftmax
        >>> logits = jnp.array([1.0, 2.0, 3.0])
        >>> with jaxsoftmax.forward_mode():
        ...     value, slope = jax.jvp(jaxsoftmax.logsumexp, (logits,), (jnp.ones(3),))
        >>> print(f"{value:.4f} {slope:.4f}")
        3.4076 1.0000
    """
    with _forward_mode(True):
        yield


def operation(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    tangent: Callable[..., Any],
    value: Callable[..., Any] | None = None,
    *,
    sums: bool = False,
) -> Callable[..., Any]:
    """Builds the operation  (options, *args) -> out  from its three hand-written rules.

    Args:
        forward: (options, *args) -> (out, residuals). Plain operations only, so that it can be differentiated again.
        backward: (options, residuals, cotangent of out) -> one cotangent per argument, None for integers and None.
        tangent: (options, residuals, tangents of args) -> tangent of out; linear in the tangents, which are None for
            integers and None.
        value: (options, *args) -> out, where that is cheaper than the forward rule; it runs without differentiation.
        sums: Inside of `shard_map`, the backward rule itself sums the cotangent of an argument that devices share,
            before it is rounded to half precision; otherwise JAX does, after.

    Returns:
        A function whose first argument is hashable and static, with the mesh axes that split the classes, if any, as
        its attribute `mesh`; the others are arrays or None.
    """

    def first(options: Any, *args: Any) -> Any:
        return forward(options, *args)[0]

    by_backward = jax.custom_vjp(value or first, nondiff_argnums=(0,))
    by_tangent = jax.custom_jvp(value or first, nondiff_argnums=(0,))

    def forward_rule(options: Any, *args: Any) -> Any:
        out, residuals = forward(options, *args)
        return out, _apart(residuals, args)

    def tangent_rule(options: Any, primals: Any, tangents: Any) -> Any:
        out, residuals = forward(options, *primals)
        tangents = tuple(None if t is None or t.dtype == float0 else t for t in tangents)
        # Rematerialized: transposed as it stands, JAX would keep the probabilities for the backward pass.
        return out, jax.checkpoint(functools.partial(tangent, options))(residuals, tangents)

    by_backward.defvjp(forward_rule, backward)
    by_tangent.defjvp(tangent_rule)

    @functools.wraps(forward)
    def call(options: Any, *args: Any) -> Any:
        args = args if sums else vary_alike(args, getattr(options, "mesh", ()))
        return (by_tangent if _forward_mode.value else by_backward)(options, *args)

    return call


def on_rows(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    tangent: Callable[..., Any],
    *,
    long_from: int = folds.LONG + 1,
    value_options: Callable[[Any], Any] = lambda options: options,
    value_long_from: int | None = None,
    whole_backward: bool = False,
) -> Callable[..., Any]:
    """`operation` on rows of logits, which its rules see with two class axes where they are long (see `folds`).

    Of arguments and residuals the first floating array has the logits. The options are the class axes, or have them;
    arguments, residuals and outputs have the rank of the logits.

    Few rows are long to the forward rule from `long_from` classes on, and from `value_long_from`, by default the same,
    where nothing is differentiated; there it is given `value_options` of the options. With `whole_backward` the
    backward rule is given its rows as they are: one that sums nothing, or what is written out anyway, is faster so, for
    what comes of a folded row is not written in its place.
    """
    value_from = long_from if value_long_from is None else value_long_from

    def fold_of(options: Any, arrays: Any, long_from: int = folds.LONG + 1) -> Any:
        logits = next(x for x in jax.tree.leaves(arrays) if jnp.issubdtype(x.dtype, jnp.floating))
        return folds.fold_of(folds.axes_of(options), logits, long_from=long_from)

    def folded(rule: Callable[..., Any]) -> Callable[..., Any]:
        """A backward or a tangent rule."""

        def call(options: Any, residuals: Any, along: Any) -> Any:
            fold = fold_of(options, residuals)
            if fold is None:
                return rule(options, residuals, along)
            out = rule(folds.with_axes(options, fold.axes), *jax.tree.map(fold.into, (residuals, along)))
            return jax.tree.map(fold.back, out)

        return call

    @functools.wraps(forward)
    def forward_rule(options: Any, *args: Any, long_from: int = long_from) -> Any:
        fold = fold_of(options, args, long_from)
        if fold is None:
            return forward(options, *args)
        seen = jax.tree.map(fold.into, args)
        out, residuals = forward(folds.with_axes(options, fold.axes), *seen)
        # The arguments among the residuals are the very arrays that were given.
        given = {id(x): arg for x, arg in zip(*map(jax.tree.leaves, (seen, args)), strict=True)}
        kept = jax.tree.map(lambda x: given[id(x)] if id(x) in given else fold.back(x), residuals)
        return jax.tree.map(fold.back, out), kept

    def value(options: Any, *args: Any) -> Any:
        return forward_rule(value_options(options), *args, long_from=value_from)[0]

    return operation(forward_rule, backward if whole_backward else folded(backward), folded(tangent), value)


def elementwise(
    value: Callable[..., jax.Array], slopes: Callable[..., tuple[jax.Array, ...]]
) -> Callable[..., jax.Array]:
    """The operation whose partial derivatives, element by element, are the slopes.

    Both functions see their arguments widened to float32 or more. Arguments have one rank; where one has size 1 along
    an axis it stands for all. A derivative by an integer or boolean argument is never asked for. A slope may be
    infinite: times 0 it is 0 (in forward mode, which must stay linear, it is the largest number).
    """

    def widen(args: Sequence[jax.Array]) -> list[jax.Array]:
        wide = functools.reduce(arrays.common_dtype, (a.dtype for a in args), jnp.float32)
        return [a.astype(wide) for a in args]

    def forward(_: None, *args: jax.Array) -> Any:
        return value(*widen(args)), args

    def backward(_: None, args: Any, cotangent: jax.Array) -> Any:
        return tuple(
            arrays.sum_to(scalars.times(cotangent, slope), a.shape).astype(a.dtype)
            if jnp.issubdtype(a.dtype, jnp.floating)
            else None
            for a, slope in zip(args, slopes(*widen(args)), strict=True)
        )

    def tangent(_: None, args: Any, tangents: Any) -> jax.Array:
        return sum(
            jnp.nan_to_num(slope, nan=jnp.nan) * t.astype(slope.dtype)
            for slope, t in zip(slopes(*widen(args)), tangents, strict=True)
            if t is not None
        )

    return functools.partial(operation(forward, backward, tangent), None)


def _apart(residuals: Any, args: Any) -> Any:
    """The residuals as values of their own.

    Arguments, untouched, get a name. Without it JAX (0.10 to 0.12) takes such a residual for the argument itself inside
    of `scan`, and mixed second derivatives are silently wrong. The name costs nothing: it is an identity that the
    compiler removes. Numbers per row keep the backward pass from what an accelerator would write in the forward one.
    """
    inputs = {id(leaf) for leaf in jax.tree.leaves(args)}
    return jax.tree.map(
        lambda leaf: checkpoint_name(leaf, "input") if id(leaf) in inputs else passes.opaque_off_cpu(leaf), residuals
    )


def vary_alike(args: Sequence[Any], classes: Sequence[str]) -> tuple[Any, ...]:
    """Inside of `shard_map`: gives every argument the varying mesh axes of all of them, but those of the classes.

    Then each cotangent that a backward rule returns varies as its primal does, and JAX itself sums it where an argument
    was replicated. Over the axes that split the classes it is the rules that sum, for there the outputs do not vary.
    """
    leaves, structure = jax.tree.flatten(tuple(args))
    union: frozenset[str] = frozenset().union(*map(meshes.varying, leaves)) - frozenset(classes)
    return jax.tree.unflatten(structure, [meshes.vary(leaf, union) for leaf in leaves])
