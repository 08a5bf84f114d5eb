"""Time and compiled memory of each operation beside jax.nn, optax and torch: `python -m benchmarks.speed`.

Every figure is a ratio, ours over the baseline, so below 1 is faster. Beside the operations on large arrays it measures
what one eager call on a small array costs, and what importing the package adds to importing jax; it ends with the
targets that the library sets itself and whether they are met.
"""

import argparse
import dataclasses
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import charts, harness
from benchmarks.operations import OPERATIONS, Operation

FORWARD = "forward"
GRADIENT = "value and gradient"
EAGER = "eager"
NORMALIZERS = ("softmax", "log_softmax", "logsumexp")

SHAPES = ((4096, 1000), (1024, 32000), (512, 50304), (65536, 10), (16, 8, 128, 128))
QUICK_SHAPES = ((256, 1000), (32, 32000), (4096, 10))
DTYPES = ("float32", "bfloat16")
# Arguments of `harness.sample`.
EFFORT = {"least_rounds": 15, "budget_s": 1.0}
QUICK_EFFORT = {"least_rounds": 5, "budget_s": 0.1}
EAGER_SHAPE = (8, 10)
IMPORTS = 7

IMPORT_PROGRAM = """
import time, jax, jax.numpy
start = time.perf_counter()
import jaxsoftmax
print(time.perf_counter() - start)
"""


@dataclasses.dataclass(frozen=True)
class Record:
    """One comparison: an operation at one shape, in one dtype, forward or with its gradient."""

    operation: str
    mode: str
    shape: tuple[int, ...]
    dtype: str
    baseline: str
    measurements: dict[str, harness.Measurement]

    @property
    def ours(self) -> harness.Measurement:
        return self.measurements["jaxsoftmax"]

    @property
    def base(self) -> harness.Measurement:
        return self.measurements[self.baseline]

    @property
    def title(self) -> str:
        return f"{self.operation} / {self.baseline}"

    @property
    def place(self) -> str:
        return f"{harness.shape_text(self.shape)} {self.dtype}"


def with_gradient(function: Callable, operation: Operation) -> Callable:
    """Value and gradient: of the mean of a loss, or pulled back from a cotangent given as the last argument."""
    if operation.is_loss:
        return jax.value_and_grad(lambda *args: jnp.mean(function(*args)), argnums=operation.differentiate)

    def value_and_pullback(*args: Any) -> tuple:
        *inputs, cotangent = args
        value, pullback = jax.vjp(function, *inputs)
        gradients = pullback(cotangent)
        return value, [gradients[i] for i in operation.differentiate]

    return value_and_pullback


def torch_candidate(
    operation: Operation, mode: str, args: tuple, cotangent: jax.Array | None
) -> harness.Candidate | None:
    """The operation in torch, or None where torch or its function is missing."""
    torch = harness.torch_module()
    if torch is None or operation.torch is None:
        return None
    tensors = [harness.to_torch(torch, arg) for arg in args]
    function = partial(operation.torch, torch)
    if mode == FORWARD:
        return harness.torch_candidate(function, tensors)
    if operation.is_loss:
        return harness.torch_candidate(lambda *xs: function(*xs).mean(), tensors, operation.differentiate)
    return harness.torch_candidate(function, tensors, operation.differentiate, harness.to_torch(torch, cotangent))


def compare(operation: Operation, mode: str, shape: tuple[int, ...], dtype: str, effort: dict) -> Record:
    """Compiles and times an operation and its peers."""
    args = operation.inputs(jax.random.key(0), shape, jnp.dtype(dtype))
    functions = {"jaxsoftmax": operation.ours, **operation.peers}
    cotangent = None
    if mode == GRADIENT and not operation.is_loss:
        result = jax.eval_shape(operation.ours, *args)
        cotangent = jax.random.normal(jax.random.key(1), result.shape).astype(result.dtype)

    def candidate(function: Callable) -> harness.Candidate:
        if mode == FORWARD:
            return harness.compiled(function, *args)
        extra = () if cotangent is None else (cotangent,)
        return harness.compiled(with_gradient(function, operation), *args, *extra)

    candidates = {name: candidate(function) for name, function in functions.items()}
    baseline = next(iter(operation.peers))
    measurements = harness.measure(candidates, baseline, **effort)
    # Apart from the others, which its spinning threads would disturb.
    if in_torch := torch_candidate(operation, mode, args, cotangent):
        pair = {baseline: candidates[baseline], "torch": in_torch}
        measurements["torch"] = harness.measure(pair, baseline, **effort, settle=True)["torch"]
    return Record(operation.name, mode, shape, dtype, baseline, measurements)


def compare_eager(operation: Operation, effort: dict) -> Record:
    """Times single calls outside of jit on a small array, where the way through Python is what counts."""
    args = operation.inputs(jax.random.key(0), EAGER_SHAPE, jnp.float32)
    baseline, peer = next(iter(operation.peers.items()))
    candidates = {
        name: harness.Candidate(lambda function=function: jax.block_until_ready(function(*args)))
        for name, function in (("jaxsoftmax", operation.ours), (baseline, peer))
    }
    measurements = harness.measure(candidates, baseline, **effort)
    return Record(operation.name, EAGER, EAGER_SHAPE, "float32", baseline, measurements)


def import_seconds() -> float:
    """Seconds that `import jaxsoftmax` takes after `import jax`: the median over fresh processes, but for the first.

    The first writes the bytecode, as an installation does, in a folder of its own whatever the environment says.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-X", f"pycache_prefix={folder}", "-c", IMPORT_PROGRAM]
        env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        _, *runs = [
            subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
            for _ in range(IMPORTS + 1)
        ]
    return statistics.median(map(float, runs))


def print_records(records: Sequence[Record]) -> None:
    rows = []
    for record in records:
        named = ("jaxsoftmax", record.baseline)
        others = [f"{name} {m.ratio:.2f}" for name, m in record.measurements.items() if name not in named]
        rows.append(
            (
                f"{record.operation}, {record.mode}",
                f"{record.ours.median_s * 1e3:.3f}",
                f"{record.ours.ratio:.2f}",
                f"{record.ours.lower:.2f}-{record.ours.upper:.2f}",
                record.baseline,
                harness.megabytes(record.ours.temp_bytes),
                harness.megabytes(record.base.temp_bytes),
                ", ".join(others),
            )
        )
    harness.print_table(
        ("operation", "ours ms", "ratio", "quartiles", "to", "ours MB", "base MB", "others' ratios"), rows
    )


def print_eager(records: Sequence[Record]) -> None:
    harness.print_table(
        ("eager call", "ours us", "base us", "ratio", "quartiles", "to"),
        [
            (
                record.operation,
                f"{record.ours.median_s * 1e6:.0f}",
                f"{record.base.median_s * 1e6:.0f}",
                f"{record.ours.ratio:.2f}",
                f"{record.ours.lower:.2f}-{record.ours.upper:.2f}",
                record.baseline,
            )
            for record in records
        ],
    )


def extra_bytes(record: Record) -> int:
    return record.ours.temp_bytes - record.base.temp_bytes


def targets(records: Sequence[Record], import_s: float) -> list[harness.Target]:
    """The targets of the library, each judged at its worst place."""

    def ratios(operation: str, mode: str) -> list[tuple[float, str]]:
        return [(r.ours.ratio, r.place) for r in records if (r.operation, r.mode) == (operation, mode)]

    results = []
    for name in NORMALIZERS:
        results += harness.worst_of(f"{name}, forward, ratio to jax.nn", 1.1, ratios(name, FORWARD))
    in_product = [r for r in records if (r.operation, r.mode) == ("cross_entropy in product", GRADIENT)]
    results += harness.worst_of(
        "cross_entropy in product, value and gradient, ratio to optax",
        1.05,
        ((r.ours.ratio, r.place) for r in in_product),
    )
    results += harness.worst_of(
        "cross_entropy in product, value and gradient, temporary bytes beyond optax's",
        0,
        ((extra_bytes(r), r.place) for r in in_product),
    )
    results += harness.worst_of(
        "cross_entropy, value and gradient, ratio to optax", 1.3, ratios("cross_entropy", GRADIENT)
    )
    results += harness.worst_of(
        "focal_loss in product, value and gradient, ratio to our cross_entropy",
        1.1,
        ratios("focal_loss in product", GRADIENT),
    )
    for name in NORMALIZERS:
        results += harness.worst_of(f"{name}, eager, ratio to jax.nn", 1.5, ratios(name, EAGER))
    return [*results, harness.Target("import beyond jax's own, ms", 50, import_s * 1e3, "")]


def draw(records: Sequence[Record], path: pathlib.Path) -> None:
    """Draws the ratios of the compiled operations: one panel per dtype and mode, one group of bars per operation."""
    modes = [mode for mode in (FORWARD, GRADIENT) if any(r.mode == mode for r in records)]
    dtypes = list(dict.fromkeys(r.dtype for r in records if r.mode in modes))
    panels = {}
    for mode in modes:
        for dtype in dtypes:
            chosen = [r for r in records if (r.mode, r.dtype) == (mode, dtype)]
            panels[f"{mode}, {dtype}"] = {
                group: {harness.shape_text(r.shape): r.ours.ratio for r in chosen if r.title == group}
                for group in dict.fromkeys(r.title for r in chosen)
            }
    charts.draw_bars(path, panels, columns=len(dtypes), label="time, ours / baseline (below 1: ours is faster)")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.splitlines()[0])
    names = [operation.name for operation in OPERATIONS]
    parser.add_argument("--quick", action="store_true", help="small shapes, float32, few rounds")
    parser.add_argument("--only", nargs="+", metavar="OP", choices=names, help=", ".join(names))
    parser.add_argument(
        "--shapes", nargs="+", metavar="AxB", type=harness.parse_shape, help="for instance 4096x1000 16x8x128x128"
    )
    parser.add_argument("--dtype", nargs="+", choices=DTYPES)
    parser.add_argument(
        "--out", type=pathlib.Path, help="the JSON file, beside it the chart (.png); default for full runs"
    )
    flags = parser.parse_args(arguments)
    # A partial or hurried run must not overwrite the figures of a full one.
    if flags.out is None and not (flags.quick or flags.only or flags.shapes or flags.dtype):
        flags.out = harness.result_path("speed")
    flags.only = flags.only or names
    flags.shapes = flags.shapes or (QUICK_SHAPES if flags.quick else SHAPES)
    flags.dtype = flags.dtype or (DTYPES[:1] if flags.quick else DTYPES)
    return flags


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    chosen = [operation for operation in OPERATIONS if operation.name in flags.only]
    effort = QUICK_EFFORT if flags.quick else EFFORT
    records: list[Record] = []

    for dtype in flags.dtype:
        for shape in flags.shapes:
            print(f"\n{harness.shape_text(shape)} {dtype}")
            here = [compare(o, mode, shape, dtype, effort) for o in chosen for mode in (FORWARD, GRADIENT)]
            print_records(here)
            records += here

    print(f"\n{harness.shape_text(EAGER_SHAPE)} float32, outside of jit")
    eager = [compare_eager(operation, effort) for operation in chosen if "product" not in operation.name]
    print_eager(eager)
    records += eager

    import_s = import_seconds()
    results = targets(records, import_s)
    print("\ntargets")
    harness.print_targets(results)

    if flags.out is None:
        return
    harness.write_json(
        flags.out,
        {
            "import_s": import_s,
            "targets": [dataclasses.asdict(t) | {"met": t.met} for t in results],
            "records": [dataclasses.asdict(record) for record in records],
        },
    )
    draw(records, flags.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
