"""Operations on rows of logits that are never there as a whole: features times kernel, a block of rows at a time.

An operation on rows is three rules on the logits of one block, [B, V] (`row_rules`). `streamed` makes of it an
operation on features and kernels whose backward pass computes the blocks again. `streamed_sum` adds a loss per row, as
a function of the operation's outputs, and computes the gradients while it has the logits of a block in hand.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsoftmax._core import arrays, blocks, meshes, passes, rules
from jaxsoftmax._core.row_rules import zeros_where

__all__ = ["Inputs", "Plan", "Side", "cut_of", "logits_of", "map_blocks", "streamed", "streamed_sum"]

# The fewest columns in which a block adds to the kernel's gradient; up to how many rows the other product is computed
# there, too, and then of so many numbers of the kernel.
LEAST_COLUMNS = 2048
FEW_ROWS = 128
PART = 2**20


class Plan(NamedTuple):
    """What is fixed when a program is traced; the rules may be None where `map_blocks` is all that is needed.

    The mesh axes are those that split the classes inside of `shard_map`.
    """

    rules: Any
    options: Any
    cut: blocks.Cut
    precision: Any
    mesh: tuple[str, ...]


class Side(NamedTuple):
    """Features [N, D], kernel [D, V] and bias [V] or None: logits [N, V]."""

    features: jax.Array
    kernel: jax.Array
    bias: jax.Array | None


class Inputs(NamedTuple):
    """The sides, which classes are present, [V], the rows, and which rows count, [N]; None where all do."""

    sides: tuple[Side, ...]
    where: jax.Array | None
    rows: tuple[jax.Array | None, ...]
    counted: jax.Array | None


def cut_of(inputs: Inputs, block_size: int | None) -> blocks.Cut:
    """How the rows are cut, by the logits of all sides."""
    width = max(side.kernel.shape[0] for side in inputs.sides)
    classes = sum(side.kernel.shape[1] for side in inputs.sides)
    devices = max(meshes.devices_beside(side.features, side.kernel) for side in inputs.sides)
    return blocks.cut_of(_count(inputs), width, classes, devices, block_size)


# Derivation. With z = h W + b, a block of rows at a time, and dz from the operation's own rule:
#     dh = dz W^T        dW = sum over blocks of h^T dz        db = sum over rows of dz
#     tangent of z = th W + h tW + tb
# dz takes the dtype of the features, so that each product runs where the forward one did (on a CPU, which multiplies
# nothing narrower, dW is a product of the same numbers in float32); products, dW and db accumulate in float32 or wider.
# A row that does not count has its features at 0 and its cotangents at 0, whatever they held, and a block without any
# that counts is passed over.


class _Block(NamedTuple):
    """The arrays of one block, [B, ...]: features of each side, the rows, and which count."""

    features: tuple[jax.Array, ...]
    rows: tuple[jax.Array | None, ...]
    counted: jax.Array | None


class _Products(NamedTuple):
    """What is summed over the blocks for one side."""

    kernel: jax.Array
    bias: jax.Array | None


def _count(inputs: Inputs) -> int:
    return inputs.sides[0].features.shape[0]


def _blocks_of(plan: Plan, inputs: Inputs) -> _Block:
    """The blocks, stacked. Filling rows repeat the last one, so that all is regular; their cotangents are 0."""
    features = tuple(side.features for side in inputs.sides)
    return jax.tree.map(functools.partial(blocks.cut, by=plan.cut), _Block(features, inputs.rows, inputs.counted))


def _features(block: _Block) -> tuple[jax.Array, ...]:
    """The features, 0 where a row does not count."""
    if block.counted is None:
        return block.features
    return tuple(jnp.where(block.counted[:, None], h, jnp.zeros((), h.dtype)) for h in block.features)


def _product(
    a: jax.Array, b: jax.Array, over: tuple[int, int], precision: Any, like: jax.Array | None = None
) -> jax.Array:
    """The matrix product over one axis of each, accumulated in float32 or wider.

    On an explicit mesh it is split as `like` is: without that JAX refuses a sum over an axis that is split.
    """
    dimensions = (((over[0],), (over[1],)), ((), ()))
    wide = arrays.compute_dtype(a.dtype)
    return lax.dot_general(
        a,
        b.astype(a.dtype),
        dimensions,
        precision=precision,
        preferred_element_type=wide,
        out_sharding=None if like is None else meshes.explicit_sharding(like),
    )


def logits_of(side: Side, where: jax.Array | None, precision: Any) -> jax.Array:
    """h W + b in float32 or wider, -inf for absent classes."""
    logits = _product(side.features, side.kernel, (1, 0), precision)
    if side.bias is not None:
        logits = logits + side.bias.astype(logits.dtype)[None]
    return arrays.present(logits, None if where is None else where[None])


def _logits(plan: Plan, inputs: Inputs, features: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(
        logits_of(side._replace(features=h), inputs.where, plan.precision)
        for side, h in zip(inputs.sides, features, strict=True)
    )


def _where_counted(counted: jax.Array | None, values: Any) -> Any:
    """Numbers per row, 0 where a row does not count."""
    return values if counted is None else zeros_where(~counted, values)


def _unless_empty(
    plan: Plan, counted: jax.Array | None, compute: Callable[[Any, Any], Any], sums: Any, block: Any
) -> Any:
    """compute(sums, block) -> (sums, results); in a block where no row counts, the same sums and zeros.

    Where the classes are split every block is computed: devices that wait for each other must not branch. On an
    explicit mesh, too, where `jax.vmap` makes a selection of the branch that JAX refuses; a block has rows of all
    devices there.
    """
    if counted is None or plan.mesh or meshes.explicit_sharding(counted) is not None:
        return compute(sums, block)
    _, results = jax.eval_shape(compute, sums, block)
    nothing = jax.tree.map(lambda x: meshes.zeros(x, meshes.varying(counted)), results)
    return lax.cond(jnp.any(counted), compute, lambda sums, _: (sums, nothing), sums, block)


def map_blocks(plan: Plan, inputs: Inputs, function: Callable[..., Any], *more: Any) -> Any:
    """function(logits, block, features, *more of the block) for every block; its results [B, ...] joined to [N, ...].

    Rows that do not count give 0, or what the function gives for features of 0.
    """

    # Rematerialized, so that the derivative of a derivative keeps no logits of any block.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(block: _Block, more: Any) -> Any:
        def compute(_: None, operand: Any) -> Any:
            block, more = operand
            features = _features(block)
            return None, function(_logits(plan, inputs, features), block, features, *more)

        return _unless_empty(plan, block.counted, compute, None, (block, more))

    cuts = _blocks_of(plan, inputs), jax.tree.map(functools.partial(blocks.cut, by=plan.cut), more)
    _, out = lax.scan(lambda _, xs: body(*xs), None, cuts)
    return jax.tree.map(functools.partial(blocks.join, by=plan.cut, count=_count(inputs)), out)


def _add_gradients(plan: Plan, sums: _Products, side: Side, dlogits: jax.Array) -> tuple[jax.Array, _Products]:
    """dh = dz W^T of a block, and the sums with h^T dz and dz added.

    On a CPU h^T is written out first, as wide as the sum: of rows that are few beside the classes XLA makes the product
    from it in two thirds of the time. And it is added in parts of columns, so that no second array of the kernel's size
    is written; elsewhere the products can add to what is there. Where JAX divides the work over a mesh, columns cut
    from a split kernel would be gathered: there all at once, too.
    """
    kernel, narrow = sums.kernel, dlogits.astype(side.features.dtype)
    parts, both = _parts_of(side)
    bias = None if sums.bias is None else sums.bias + jnp.sum(dlogits, axis=0)
    features = side.features.T
    if jax.default_backend() == "cpu":
        features = passes.opaque(features.astype(kernel.dtype))
    if parts == 1 or not both:
        dfeatures = _product(narrow, side.kernel, (1, 1), plan.precision, side.features)
    if parts == 1:
        return dfeatures, _Products(kernel + _product(features, narrow, (1, 0), plan.precision, side.kernel), bias)

    classes = kernel.shape[1]
    columns = math.ceil(classes / parts)

    def add(i: Any, so_far: tuple[jax.Array, jax.Array | None]) -> tuple[jax.Array, jax.Array | None]:
        # The last part begins early, to be as wide as the others, and has zeros where the one before it has been.
        total, dfeatures = so_far
        start = jnp.minimum(i * columns, classes - columns)
        part = lax.dynamic_slice_in_dim(narrow, start, columns, 1)
        if parts * columns != classes:
            part = jnp.where(start + jnp.arange(columns) >= i * columns, part, jnp.zeros((), part.dtype))
        there = lax.dynamic_slice_in_dim(total, start, columns, 1) + _product(features, part, (1, 0), plan.precision)
        if dfeatures is not None:
            weights = lax.dynamic_slice_in_dim(side.kernel, start, columns, 1)
            dfeatures = dfeatures + _product(part, weights, (1, 1), plan.precision)
        return lax.dynamic_update_slice_in_dim(total, there, start, 1), dfeatures

    start = (
        meshes.zeros(side.features, meshes.varying(dlogits) | meshes.varying(kernel), kernel.dtype) if both else None
    )
    kernel, summed = lax.fori_loop(0, parts, add, (kernel, start))
    return summed if both else dfeatures, _Products(kernel, bias)


def _parts_of(side: Side) -> tuple[int, bool]:
    """In how many parts of columns the gradients of a block are computed, and whether that of the features is, too.

    With few rows XLA spends more time on bringing the kernel in order for its product than on the product; of so few
    columns that they stay in a cache it takes half of the time.
    """
    rows, (depth, classes) = side.features.shape[0], side.kernel.shape
    if jax.default_backend() != "cpu" or meshes.devices_beside(side.features, side.kernel) > 1:
        return 1, False
    both = rows <= FEW_ROWS and side.features.dtype == arrays.compute_dtype(side.features.dtype)
    # A part of the sum has a quarter of the numbers of the block's logits, at most.
    numbers = min(rows * classes // 4, PART) if both else rows * classes // 4
    parts = math.ceil(classes / max(numbers // max(depth, 1), LEAST_COLUMNS))
    return parts, both and parts > 1


def _no_products(inputs: Inputs) -> tuple[_Products, ...]:
    """Sums that start at 0."""

    def start(side: Side) -> _Products:
        wide = arrays.compute_dtype(side.features.dtype)
        axes = meshes.varying(side.features) | meshes.varying(side.kernel)
        bias = None if side.bias is None else meshes.zeros(side.bias, axes, wide)
        return _Products(meshes.zeros(side.kernel, axes, wide), bias)

    return tuple(map(start, inputs.sides))


Gradients = tuple[Any, ...]


def _scan_gradients(
    plan: Plan, inputs: Inputs, slopes: Callable[..., Any], consts: Any, cotangents: Any, numbers: Any = ()
) -> tuple[Inputs, Any, Any]:
    """Sums the gradients over the blocks.

    slopes(logits, block, cotangents, numbers) -> (cotangents of logits, cotangents of rows, [B, ...] to be stacked,
    contributions to the constants), on the cotangents and numbers of the block. Returns the gradients by the inputs,
    all in float32 or wider, the stacked results [N, ...] and the sums of the contributions.
    """

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(sums: Any, block: _Block, given: Any) -> Any:
        def compute(sums: Any, operand: Any) -> Any:
            (products, total), (block, given) = sums, operand
            features = _features(block)
            dlogits, drows, kept, contributions = slopes(_logits(plan, inputs, features), block, *given)
            sides = [side._replace(features=h) for side, h in zip(inputs.sides, features, strict=True)]
            added = [_add_gradients(plan, *of_side) for of_side in zip(products, sides, dlogits, strict=True)]
            dfeatures, products = zip(*added, strict=True)
            total = jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, contributions)
            return (products, total), (dfeatures, drows, kept)

        return _unless_empty(plan, block.counted, compute, sums, (block, given))

    rows = meshes.varying(inputs.sides[0].features)
    start = _no_products(inputs), jax.tree.map(lambda x: meshes.zeros(x, rows, arrays.compute_dtype(x.dtype)), consts)
    given = (
        jax.tree.map(functools.partial(blocks.cut, by=plan.cut, zeros=True), cotangents),
        jax.tree.map(functools.partial(blocks.cut, by=plan.cut), numbers),
    )
    cuts = _blocks_of(plan, inputs), given
    (products, total), stacked = lax.scan(lambda sums, xs: body(sums, *xs), start, cuts)
    dfeatures, drows, kept = jax.tree.map(functools.partial(blocks.join, by=plan.cut, count=_count(inputs)), stacked)
    sides = tuple(Side(h, p.kernel, p.bias) for h, p in zip(dfeatures, products, strict=True))
    return Inputs(sides, None, drows, None), kept, total


def _floating(x: jax.Array) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def _as_arguments(gradients: Any, arguments: Any) -> Any:
    """One cotangent per argument, of its dtype, and None for integers, booleans and None.

    What devices contribute to an argument that they share is summed, before it is rounded.
    """

    def one(argument: Any, gradient: Any) -> Any:
        if argument is None or gradient is None or not _floating(argument):
            return None
        return meshes.sum_like(gradient, argument).astype(argument.dtype)

    return jax.tree.map(one, arguments, gradients, is_leaf=lambda x: x is None)


class _Structured(NamedTuple):
    """Static: the plan, and how the flat arguments of an operation are put together."""

    plan: Plan
    structure: Any
    objective: Any = None

    @property
    def mesh(self) -> tuple[str, ...]:
        return self.plan.mesh

    def arguments(self, leaves: Any) -> Any:
        """As they were given: those that devices share do not vary, and their cotangents are summed."""
        return jax.tree.unflatten(self.structure, leaves)

    def inputs(self, leaves: Any) -> Any:
        """Varying alike, from here on and not inside of a block: a second derivative would send a message for each."""
        return self.arguments(rules.vary_alike(leaves, self.mesh))


class _Residuals(NamedTuple):
    """The arguments, and the operation's own numbers per row."""

    arguments: tuple[Any, ...]
    numbers: Any


def _forward(static: _Structured, *leaves: Any) -> Any:
    plan, inputs = static.plan, static.inputs(leaves)

    def function(logits: Any, block: _Block, _: Any) -> Any:
        return plan.rules.forward(plan.options, logits, block.rows)

    outs, numbers = map_blocks(plan, inputs, function)
    return outs, _Residuals(leaves, numbers)


def _backward(static: _Structured, residuals: _Residuals, cotangents: Any) -> Any:
    plan, inputs = static.plan, static.inputs(residuals.arguments)

    def slopes(logits: Any, block: _Block, cotangents: Any, numbers: Any) -> Any:
        cotangents = _where_counted(block.counted, cotangents)
        dlogits, drows = plan.rules.backward(plan.options, logits, block.rows, numbers, cotangents)
        return dlogits, drows, None, ()

    gradients, _, _ = _scan_gradients(plan, inputs, slopes, (), cotangents, residuals.numbers)
    arguments = static.arguments(residuals.arguments)
    return tuple(jax.tree.leaves(_as_arguments(gradients, arguments), is_leaf=lambda x: x is None))


def _tangent(static: _Structured, residuals: _Residuals, tangents: Any) -> Any:
    plan, inputs = static.plan, static.inputs(residuals.arguments)
    along = static.arguments(rules.vary_alike((residuals.arguments, tangents), static.mesh)[1])

    def function(logits: Any, block: _Block, features: Any, numbers: Any, row_tangents: Any, tfeatures: Any) -> Any:
        tlogits = []
        for side, t, h, th in zip(inputs.sides, along.sides, features, tfeatures, strict=True):
            pushed = _product(_where_rows(block.counted, th), side.kernel, (1, 0), plan.precision)
            pushed = pushed + _product(h, t.kernel, (1, 0), plan.precision)
            if t.bias is not None:
                pushed = pushed + t.bias.astype(pushed.dtype)[None]
            present = None if inputs.where is None else meshes.split_like(inputs.where[None], pushed)
            tlogits.append(pushed if present is None else jnp.where(present, pushed, 0.0))
        row_tangents = _where_counted(block.counted, row_tangents)
        outs = plan.rules.tangent(plan.options, logits, block.rows, numbers, tuple(tlogits), row_tangents)
        return _where_counted(block.counted, outs)

    tfeatures = tuple(side.features for side in along.sides)
    return map_blocks(plan, inputs, function, residuals.numbers, along.rows, tfeatures)


def _where_rows(counted: jax.Array | None, x: jax.Array) -> jax.Array:
    return x if counted is None else jnp.where(counted[:, None], x, jnp.zeros((), x.dtype))


_streamed = rules.operation(_forward, _backward, _tangent, sums=True)


def streamed(plan: Plan, inputs: Inputs) -> Any:
    """The outputs of the operation on rows, each [N]; a row that does not count gives some number, with gradient 0."""
    leaves, structure = jax.tree.flatten(inputs, is_leaf=lambda x: x is None)
    return _streamed(_Structured(plan, structure), *leaves)


# The weighted sum of losses, with its gradients from the same pass.
#
#     total = sum_i r_i f(outs_i, c),        d total/dr_i = f_i,  and by all else r_i times the gradient of f_i
#
# The gradients are kept for the backward pass, in float32 or wider, and are multiplied there by the one cotangent; the
# tangent is the inner product with them. Without differentiation none of this is computed.


class _Summed(NamedTuple):
    """All arguments: the inputs, the weight of each row, [N], and what the objective closes over."""

    inputs: Inputs
    weights: jax.Array
    consts: tuple[Any, ...]


class _SumResiduals(NamedTuple):
    """The gradients by all arguments, and the arguments, for their dtypes."""

    gradients: Any
    arguments: tuple[Any, ...]


def _sum_value(static: _Structured, *leaves: Any) -> jax.Array:
    plan, (inputs, weights, consts) = static.plan, static.inputs(leaves)

    def function(logits: Any, block: _Block, _: Any, weights: Any) -> Any:
        outs, _numbers = plan.rules.forward(plan.options, logits, block.rows)
        return _weighted(weights, static.objective(outs, consts))

    return jnp.sum(map_blocks(plan, inputs, function, weights))


def _weighted(weights: jax.Array, losses: jax.Array) -> jax.Array:
    """r f, and 0 for weight 0 whatever the loss is."""
    return jnp.where(weights == 0, 0.0, weights * losses)


def _with_floats(
    consts: tuple[Any, ...], floats: tuple[Any, ...], of: tuple[Any, ...] | None = None
) -> tuple[Any, ...]:
    """The constants (or what is in their places) with others for the floating ones, which alone have derivatives."""
    left = iter(floats)
    return tuple(
        next(left) if _floating(there) else c for c, there in zip(consts, consts if of is None else of, strict=True)
    )


def _sum_forward(static: _Structured, *leaves: Any) -> Any:
    plan, (inputs, weights, consts) = static.plan, static.inputs(leaves)
    floats = tuple(c for c in consts if _floating(c))
    options = plan.rules.in_one_pass(plan.options)

    def slopes(logits: Any, block: _Block, weights: Any, _: Any) -> Any:
        outs, numbers = plan.rules.forward(options, logits, block.rows)
        # So that no infinite loss of a row of weight 0 meets the cotangent 0.
        outs = plan.rules.shown(outs, weights == 0)
        losses, pull = jax.vjp(lambda outs, some: static.objective(outs, _with_floats(consts, some)), outs, floats)
        cotangents, dfloats = pull(weights)
        cotangents = zeros_where(weights == 0, cotangents)
        dlogits, drows = plan.rules.backward(options, logits, block.rows, numbers, cotangents)
        return dlogits, drows, losses, dfloats

    gradients, losses, dfloats = _scan_gradients(plan, inputs, slopes, floats, weights)
    dconsts = _with_floats(tuple(None for _ in consts), dfloats, of=consts)
    losses = zeros_where(weights == 0, losses)
    return jnp.sum(_weighted(weights, losses)), _SumResiduals(_Summed(gradients, losses, dconsts), leaves)


def _sum_backward(static: _Structured, residuals: _SumResiduals, cotangent: jax.Array) -> Any:
    arguments = static.arguments(residuals.arguments)
    gradients = jax.tree.map(lambda g: cotangent * g, residuals.gradients)
    return tuple(jax.tree.leaves(_as_arguments(gradients, arguments), is_leaf=lambda x: x is None))


def _sum_tangent(static: _Structured, residuals: _SumResiduals, tangents: Any) -> jax.Array:
    gradients = jax.tree.leaves(residuals.gradients, is_leaf=lambda x: x is None)
    pairs = [(g, t) for g, t in zip(gradients, tangents, strict=True) if g is not None and t is not None]
    sums = [jnp.sum(g * t.astype(g.dtype)) for g, t in pairs]
    # Devices with other classes have their own part of some of the gradients.
    whole, parts = ([x for x in sums if bool(meshes.varying(x) & {*static.mesh}) == split] for split in (False, True))
    if parts:
        whole.append(lax.psum(functools.reduce(jnp.add, parts), static.mesh))
    return functools.reduce(jnp.add, whole)


_streamed_sum = rules.operation(_sum_forward, _sum_backward, _sum_tangent, value=_sum_value, sums=True)


def streamed_sum(
    plan: Plan, objective: Callable[..., jax.Array], inputs: Inputs, weights: jax.Array, consts: tuple[Any, ...]
) -> jax.Array:
    """sum_i weights_i objective(outs_i, consts), a scalar; a row of weight 0 takes no part."""
    leaves, structure = jax.tree.flatten(_Summed(inputs, weights, consts), is_leaf=lambda x: x is None)
    return _streamed_sum(_Structured(plan, structure, objective), *leaves)
