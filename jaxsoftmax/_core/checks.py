"""Every error that the package raises is built here, from static facts alone, so that it is the same under jit."""

import math
import numbers
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxsoftmax._core import arrays, meshes
from jaxsoftmax._core.meshes import Axes, Axis, AxisName

__all__ = [
    "boolean",
    "choice",
    "class_axes",
    "class_axis",
    "class_vector",
    "class_weights",
    "classes_present",
    "exactly_one",
    "fail",
    "flag",
    "floating",
    "head",
    "ignored",
    "integers",
    "labels",
    "mask",
    "mesh_axes",
    "numbers_in",
    "numeric",
    "per_row",
    "positive",
    "random_key",
    "real",
    "row_labels",
    "row_numbers",
    "same_dtype",
    "same_on_devices",
    "same_shape",
    "scalar",
    "signed",
    "static_axis",
    "whole",
]

# The shapes of the raw keys of JAX's generators.
_KEY_DATA = ((2,), (4,))
# What every eager call asks for: a union written in its place would be built anew each time.
_REAL = (int, float, np.number)


def fail(kind: type[Exception], function: str, rule: str, **values: Any) -> NoReturn:
    """Raises  jaxsoftmax.<function>: <rule>; got <name>=<value>, ..."""
    got = ", ".join(f"{name}={_show(value)}" for name, value in values.items())
    raise kind(f"jaxsoftmax.{function}: {rule}; got {got}")


def exactly_one(function: str, **given: Any) -> tuple[str, Any]:
    """The name and the value of the one argument that is not None."""
    present = [(name, value) for name, value in given.items() if value is not None]
    if len(present) != 1:
        fail(TypeError, function, f"exactly one of {' and '.join(given)} must be given", **given)
    return present[0]


def _show(value: Any) -> str:
    """float32[8,10] for an array, [float32[], ...] for a list of them, what Python prints for anything else."""
    if isinstance(value, jax.Array | np.ndarray):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, list) and isinstance(next(iter(value), None), jax.Array | list):
        return f"[{_show(value[0])}{', ...' if len(value) > 1 else ''}]"
    return repr(value)


def numbers_in(function: str, low: float, high: float, **options: Any) -> None:
    """Options given as Python numbers lie in [low, high]; arrays, traced or not, and None pass."""
    for name, value in options.items():
        if isinstance(value, _REAL) and not low <= value <= high:
            bound = f"{low:g} or more" if high == math.inf else f"between {low:g} and {high:g}"
            fail(ValueError, function, f"{name} must be {bound}", **{name: value})


def positive(function: str, **options: float | None) -> None:
    """Options that are fixed when a function is traced: a finite Python number above 0, or None."""
    for name, value in options.items():
        if value is not None and not (isinstance(value, _REAL) and 0 < value < math.inf):
            fail(ValueError, function, f"{name} must be a finite number above 0, not an array", **{name: value})


def whole(function: str, **options: int | None) -> None:
    """Options that are fixed when a function is traced: a Python integer, or None."""
    for name, value in options.items():
        if value is not None and (not isinstance(value, numbers.Integral) or isinstance(value, bool)):
            fail(TypeError, function, f"{name} must be an integer", **{name: value})


def ignored(function: str, ignore_label: int | None) -> None:
    """The label that is ignored: an integer that a label can be, or None."""
    whole(function, ignore_label=ignore_label)
    if ignore_label is None:
        return
    widest = jnp.iinfo(jax.dtypes.canonicalize_dtype(np.int64))
    if not widest.min <= ignore_label <= widest.max:
        rule = f"ignore_label must be of {widest.bits} bits, as labels are"
        fail(ValueError, function, rule, ignore_label=ignore_label)


def flag(function: str, **options: bool) -> None:
    """Options that are fixed when a function is traced: True or False."""
    for name, value in options.items():
        if not isinstance(value, bool | np.bool_):
            fail(TypeError, function, f"{name} must be True or False", **{name: value})


def choice(function: str, allowed: Sequence[str], **option: Any) -> None:
    """The option is one of the words."""
    for name, value in option.items():
        if value not in allowed:
            fail(ValueError, function, f"{name} must be one of {', '.join(map(repr, allowed))}", **{name: value})


def floating(function: str, **array: ArrayLike) -> jax.Array:
    """The one array, of a real floating dtype."""
    ((name, value),) = array.items()
    converted = _array(function, name, value)
    if not jnp.issubdtype(converted.dtype, jnp.floating):
        fail(TypeError, function, f"{name} must have a floating dtype", **{name: converted})
    return converted


def boolean(function: str, **array: ArrayLike) -> jax.Array:
    """The one array, of booleans."""
    ((name, value),) = array.items()
    converted = _array(function, name, value)
    if converted.dtype != jnp.bool_:
        fail(TypeError, function, f"{name} must be boolean", **{name: converted})
    return converted


def integers(function: str, **array: ArrayLike) -> jax.Array:
    """The one array, of integers, signed."""
    ((name, value),) = array.items()
    return signed(_whole_numbers(function, name, value))


def _whole_numbers(function: str, name: str, value: ArrayLike) -> jax.Array:
    """An array of integers, of the dtype that it has."""
    converted = _array(function, name, value)
    if not jnp.issubdtype(converted.dtype, jnp.integer):
        fail(TypeError, function, f"{name} must be integers", **{name: converted})
    return converted


def _array(function: str, name: str, value: Any) -> jax.Array:
    """Arrays, scalars and what stands for an array, as a parameter of Flax; no list, which hides its dtype."""
    if not isinstance(value, jax.Array) and callable(convert := getattr(value, "__jax_array__", None)):
        value = convert()
    if not isinstance(value, jax.Array | np.ndarray | np.generic | numbers.Number):
        fail(TypeError, function, f"{name} must be an array", **{name: value})
    return jnp.asarray(value)


def static_axis(function: str, axis: Any, axis_name: Any = None) -> Any:
    """The axis, of Python integers, if it can be one at all and the name one of a mesh; before jit compares it."""
    if axis_name is not None:
        names = meshes.names_of(axis_name)
        strings = bool(names) and all(isinstance(name, str) for name in names)
        if not (strings and len(set(names)) == len(names)):
            fail(TypeError, function, "axis_name must be a string or a tuple of different ones", axis_name=axis_name)
    if axis is None or type(axis) is int:
        return axis
    if type(axis) is tuple and {*map(type, axis)} <= {int}:
        return axis
    given = axis if isinstance(axis, tuple) else (axis,)
    if not all(isinstance(a, int | np.integer) and not isinstance(a, bool) for a in given):
        fail(TypeError, function, "axis must be an integer, a tuple of integers or None", axis=axis)
    return tuple(int(a) for a in given) if isinstance(axis, tuple) else int(axis)


def class_axis(function: str, axis: Axis, axis_name: AxisName = None, **array: jax.Array) -> Axes:
    """The one class axis of the array, counted from 0, and the mesh axes that split it."""
    if not isinstance(axis, int):
        fail(TypeError, function, "axis must be an integer", axis=axis)
    return class_axes(function, axis, axis_name, **array)


def class_axes(function: str, axis: Axis, axis_name: AxisName = None, **array: jax.Array) -> Axes:
    """The class axes of the array, counted from 0, none of them twice, with at least one class; and those of a mesh."""
    ((name, value),) = array.items()
    ndim = value.ndim
    given = range(ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    if not all(-ndim <= a < ndim for a in given):
        fail(ValueError, function, f"axis must lie in [{-ndim}, {ndim})", axis=axis, **array)
    axes = tuple(sorted(a % ndim for a in given))
    if len(set(axes)) < len(axes):
        fail(ValueError, function, "axis must not name an axis twice", axis=axis, **array)
    if not axes:
        fail(ValueError, function, f"{name} must have a class axis", axis=axis, **array)
    if 0 in (value.shape[a] for a in axes):
        fail(ValueError, function, "the class axis must not be empty", axis=axis, **array)
    return Axes(axes, mesh_axes(function, axis_name, **array))


def mask(
    function: str, where: ArrayLike | None, logits: jax.Array, axes: Axes, owner: str = "logits"
) -> jax.Array | None:
    """A boolean mask of the rank of the logits (or another owner), or None; [V] stands for every row."""
    if where is None:
        return None
    return _of_classes(function, "where", boolean(function, where=where), logits, axes, owner)


def class_weights(function: str, name: str, weights: ArrayLike, logits: jax.Array, axes: Axes) -> jax.Array:
    """Weights of the logits' rank in the compute dtype; those of shape [V] stand for every row."""
    converted = floating(function, **{name: weights})
    converted = converted.astype(arrays.compute_dtype(logits.dtype))
    return _of_classes(function, name, converted, logits, axes)


def _of_classes(
    function: str, name: str, value: jax.Array, logits: jax.Array, axes: Axes, owner: str = "logits"
) -> jax.Array:
    if value.shape == logits.shape:
        return meshes.split_like(value, logits)
    if len(axes.dims) == 1 and value.shape == (logits.shape[axes.one],):
        value = value.reshape([size if a == axes.one else 1 for a, size in enumerate(logits.shape)])
        return meshes.split_like(value, logits)
    fail(ValueError, function, f"{name} must have the shape of {owner}, or [V]", **{name: value, owner: logits})


def class_vector(function: str, name: str, weights: ArrayLike, logits: jax.Array, axes: Axes) -> jax.Array:
    """One number per class, [V], of the logits' rank in the compute dtype."""
    converted = _array(function, name, weights)
    if converted.shape != (logits.shape[axes.one],):
        fail(ValueError, function, f"{name} must have shape [V]", **{name: converted}, logits=logits, axis=axes.one)
    return class_weights(function, name, converted, logits, axes)


def scalar(function: str, dtype: Any, **option: ArrayLike) -> jax.Array:
    """The one option, a number or an array without axes."""
    ((name, value),) = option.items()
    converted = _array(function, name, value)
    if converted.shape != ():
        fail(ValueError, function, f"{name} must be a scalar", **{name: converted})
    return converted.astype(dtype)


def random_key(function: str, key: Any) -> None:
    """One key of jax.random, of either kind."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not typed and (dtype != jnp.uint32 or shape not in _KEY_DATA):
        fail(TypeError, function, "key must be a key of jax.random", key=key)
    if typed and shape != ():
        fail(ValueError, function, "key must be one key, not an array of them; use jax.vmap", key=key)


def numeric(function: str, **array: ArrayLike) -> jax.Array:
    """The one array, floating, integer or boolean."""
    ((name, value),) = array.items()
    converted = _array(function, name, value)
    if not any(jnp.issubdtype(converted.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        fail(TypeError, function, f"{name} must be numbers", **{name: converted})
    return converted


def real(function: str, **array: ArrayLike) -> jax.Array:
    """The one array, floating or integer."""
    converted = numeric(function, **array)
    if converted.dtype == jnp.bool_:
        ((name, _),) = array.items()
        fail(TypeError, function, f"{name} must be numbers, not booleans", **{name: converted})
    return converted


def per_row(function: str, name: str, value: ArrayLike | None, logits: jax.Array, axes: Axes) -> jax.Array | None:
    """A scalar or one number per row, of the logits' rank with the class axes at size 1, in the compute dtype."""
    if value is None:
        return None
    converted = real(function, **{name: value})
    rows = tuple(1 if a in axes.dims else size for a, size in enumerate(logits.shape))
    batch = tuple(size for a, size in enumerate(logits.shape) if a not in axes.dims)
    if converted.shape not in ((), batch, rows):
        fail(
            ValueError,
            function,
            f"{name} must be a scalar or have one number per row",
            **{name: converted},
            logits=logits,
        )
    converted = converted.reshape(rows if converted.shape else [1] * logits.ndim)
    same_on_devices(function, axes.mesh, **{name: converted})
    converted = jnp.broadcast_to(converted.astype(arrays.compute_dtype(logits.dtype)), rows)
    return meshes.split_like(converted, logits)


def rows(
    function: str, logits: jax.Array, where: Any, temperature: Any, axis: Any, axis_name: AxisName
) -> tuple[Axes, jax.Array | None, jax.Array | None]:
    """The one class axis, and mask and temperature of the logits' rank."""
    axes = class_axis(function, axis, axis_name, logits=logits)
    where = mask(function, where, logits, axes)
    return axes, where, per_row(function, "temperature", temperature, logits, axes)


def labels(function: str, labels: ArrayLike, logits: jax.Array, axes: Axes, owner: str = "logits") -> jax.Array:
    """Integer labels, one per row of the logits (or another owner), with the class axis back at size 1."""
    converted = _whole_numbers(function, "labels", labels)
    batch = tuple(size for a, size in enumerate(logits.shape) if a != axes.one)
    if converted.shape != batch:
        rule = f"labels must have the shape of {owner} without the class axis"
        fail(ValueError, function, rule, labels=converted, **{owner: logits}, axis=axes.one)
    same_on_devices(function, axes.mesh, labels=converted)
    return jnp.expand_dims(signed(converted), axes.one)


def signed(labels: jax.Array) -> jax.Array:
    """As int32 or int64; what does not fit stays out of the range of any label."""
    if labels.dtype in (jnp.uint32, jnp.uint64):
        labels = jnp.minimum(labels, jnp.asarray(2**31 - 1, labels.dtype))
    return labels if labels.dtype == jnp.int64 else labels.astype(jnp.int32)


def head(
    function: str, names: tuple[str, str, str], features: ArrayLike, kernel: ArrayLike, bias: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Features [..., D], kernel [D, V] and bias [V] or None, by the names that the function gives them."""
    of_features, of_kernel, of_bias = names
    features = floating(function, **{of_features: features})
    kernel = floating(function, **{of_kernel: kernel})
    given = {of_features: features, of_kernel: kernel}
    if features.ndim == 0 or kernel.ndim != 2:
        fail(ValueError, function, f"{of_features} must have shape [..., D] and {of_kernel} [D, V]", **given)
    if features.shape[-1] != kernel.shape[0]:
        rule = f"{of_kernel} must have shape [D, V] where {of_features} has [..., D]"
        if features.shape[-1] == kernel.shape[1]:
            rule += f"; it looks transposed, pass {of_kernel}.T"
        fail(ValueError, function, rule, **given)
    if kernel.shape[1] == 0:
        fail(ValueError, function, "the class axis must not be empty", **given)
    if bias is not None:
        bias = floating(function, **{of_bias: bias})
        if bias.shape != kernel.shape[1:]:
            fail(ValueError, function, f"{of_bias} must have shape [V]", **{of_bias: bias, of_kernel: kernel})
    return features, kernel, bias


def classes_present(
    function: str, where: ArrayLike | None, kernel: jax.Array, axes: Axes, num_classes: int | None
) -> jax.Array | None:
    """A boolean mask [V] of the classes of a kernel, or None; those from the number of classes on are padding."""
    if num_classes is not None:
        size = kernel.shape[1]
        if num_classes > axes.classes(size):
            rule = f"num_classes must be at most {axes.classes(size)}, the columns of the kernel on all devices"
            fail(ValueError, function, rule, num_classes=num_classes, kernel=kernel)
        if num_classes < axes.classes(size):
            own = classes_present(function, where, kernel, axes, None)
            real = jnp.arange(size) < axes.local(jnp.asarray(num_classes), size)
            return real if own is None else own & real
    if where is None:
        return None
    converted = boolean(function, where=where)
    if converted.shape != kernel.shape[1:]:
        fail(ValueError, function, "where must have shape [V]", where=converted, kernel=kernel)
    return meshes.split_like(converted[None], kernel)[0]


def row_labels(function: str, labels: ArrayLike, features: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Features, and integer labels, one per row of them; split alike."""
    features = floating(function, features=features)
    converted = _whole_numbers(function, "labels", labels)
    if converted.shape != features.shape[:-1]:
        rule = "labels must have the shape of features without the last axis"
        fail(ValueError, function, rule, labels=converted, features=features)
    features, column = meshes.split_alike(features, signed(converted)[..., None])
    return features, column[..., 0]


def row_numbers(
    function: str, name: str, value: ArrayLike | None, features: jax.Array, *, scalar: bool
) -> jax.Array | None:
    """One number per row of features, or a scalar where it may be one, in the compute dtype; None stays."""
    if value is None:
        return None
    converted = real(function, **{name: value}) if scalar else numeric(function, **{name: value})
    batch = features.shape[:-1]
    if converted.shape != batch and not (scalar and converted.shape == ()):
        rule = f"{name} must {'be a scalar or ' if scalar else ''}have one number per row"
        fail(ValueError, function, rule, **{name: converted}, features=features)
    return _as_rows(jnp.broadcast_to(converted.astype(arrays.compute_dtype(features.dtype)), batch), features)


def _as_rows(x: jax.Array, features: jax.Array) -> jax.Array:
    """Numbers per row, split over an explicit mesh as the rows are."""
    return meshes.split_like(x[..., None], features)[..., 0]


def same_shape(function: str, **values: jax.Array) -> None:
    """All of the arrays have one shape."""
    if len({value.shape for value in values.values()}) > 1:
        fail(ValueError, function, f"{' and '.join(values)} must have the same shape", **values)


def same_dtype(function: str, **values: jax.Array) -> None:
    """All of the arrays have one dtype; casting is left to the caller, who knows which one loses nothing."""
    if len({value.dtype for value in values.values()}) > 1:
        fail(TypeError, function, f"{' and '.join(values)} must have the same dtype", **values)


def mesh_axes(function: str, axis_name: AxisName, **split: jax.Array) -> tuple[str, ...]:
    """The mesh axes over which the classes of the one array are split, inside of `jax.shard_map`; none for None."""
    names = meshes.names_of(axis_name)
    if not names:
        return ()
    try:
        varying = meshes.varying(lax.axis_index(names))
    except NameError:
        fail(ValueError, function, "axis_name must name an axis of a mesh inside of jax.shard_map", axis_name=axis_name)
    if not varying:
        rule = "axis_name needs jax.shard_map with check_vma=True, or gradients would be ambiguous"
        fail(ValueError, function, rule, axis_name=axis_name)
    ((name, value),) = split.items()
    if not set(names) <= meshes.varying(value):
        rule = f"{name} must be split over axis_name, each device with its own classes"
        fail(ValueError, function, rule, axis_name=axis_name, **split)
    return names


def same_on_devices(function: str, names: tuple[str, ...], **values: Any) -> None:
    """Numbers per row are the same on all the devices that share a row."""
    for name, value in values.items():
        if isinstance(value, jax.Array) and meshes.varying(value) & set(names):
            rule = f"{name} must be the same on all devices of axis_name"
            fail(ValueError, function, rule, **{name: value}, axis_name=names)
