"""Operations on the rows of one block of logits: what the streamed head is made of."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsoftmax._core import folds

__all__ = ["RowRules", "by_columns", "seen", "zeros_where"]


class RowRules(NamedTuple):
    """Rules on tuples of logits [B, V], one for each side, and of rows, arrays of one number per row, [B], or None.

    Attributes:
        forward: (options, logits, rows) -> (outs, numbers), both tuples of [B], or None in their place.
        backward: (options, logits, rows, numbers, cotangents of outs) -> (cotangents of logits, cotangents of rows).
        tangent: (options, logits, rows, numbers, tangents of logits, tangents of rows) -> tangents of outs.
        in_one_pass: options -> options for a forward and a backward pass on the same logits, one after the other.
        shown: (outs, which) -> outs that an objective can take of rows that do not count; zeros.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    tangent: Callable[..., Any]
    in_one_pass: Callable[[Any], Any] = lambda options: options
    shown: Callable[[Any, jax.Array], Any] = lambda outs, which: zeros_where(which, outs)


def zeros_where(which: jax.Array, values: Any) -> Any:
    """Numbers per row, and 0 where told, whatever stood there."""
    return jax.tree.map(lambda x: jnp.where(which, jnp.zeros((), x.dtype), x), values)


def seen(
    options: Any, logits: jax.Array, *, long_from: int = folds.LONG + 1, whole: bool = False
) -> tuple[Any, Callable[[Any], Any]]:
    """How an operation of logits in memory sees a block of them, [B, V].

    Returns its options, which are class axes or have them, with those of what it sees; and a function that turns logits
    and numbers per row, [B], into arrays of one rank: rows, folded where they are long and not to stay whole, and
    columns.
    """
    fold = None if whole else folds.fold_of(folds.axes_of(options), logits, long_from=long_from)

    def shown(x: jax.Array) -> jax.Array:
        x = x[:, None] if x.ndim == 1 else x
        return x if fold is None else fold.into(x)

    return options if fold is None else folds.with_axes(options, fold.axes), functools.partial(jax.tree.map, shown)


def _per_row(columns: Any) -> Any:
    """Columns of whatever rank as [B]."""
    return jax.tree.map(lambda x: jnp.squeeze(x, tuple(range(1, x.ndim))), columns)


def by_columns(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    tangent: Callable[..., Any],
    *,
    long_from: int = folds.LONG + 1,
    whole_forward: Callable[[Any], bool] = lambda options: False,
    whole_backward: bool = False,
    **more: Any,
) -> RowRules:
    """Row rules from those of an operation of logits in memory, whose numbers per row are columns.

    The forward rule is given its rows as they are where the options say so; for the rest see `rules.on_rows`.
    """

    def on_rows(options: Any, logits: Any, rows: Any) -> Any:
        options, shown = seen(options, logits[0], long_from=long_from, whole=whole_forward(options))
        return _per_row(forward(options, shown(logits), shown(rows)))

    def pull(options: Any, logits: Any, rows: Any, numbers: Any, cotangents: Any) -> Any:
        options, shown = seen(options, logits[0], whole=whole_backward)
        dlogits, drows = backward(options, *map(shown, (logits, rows, numbers, cotangents)))
        return tuple(folds.in_one_row(d, folds.axes_of(options)) for d in dlogits), _per_row(drows)

    def push(options: Any, logits: Any, rows: Any, numbers: Any, along: Any, trows: Any) -> Any:
        options, shown = seen(options, logits[0])
        return _per_row(tangent(options, *map(shown, (logits, rows, numbers, along, trows))))

    return RowRules(on_rows, pull, push, **more)
