"""Timing, compiled memory, targets, tables and files shared by the benchmarks.

A machine that other programs share is fast one second and slow the next, so absolute times mean little. The candidates
of one comparison therefore run in one process, in turn, and every round gives one ratio to the baseline of the same
round; the median over the rounds is reported, with the quartiles to show how far to trust it.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "Candidate",
    "Measurement",
    "Target",
    "compiled",
    "device_name",
    "environment",
    "measure",
    "megabytes",
    "parse_shape",
    "print_table",
    "print_targets",
    "result_path",
    "sample",
    "shape_text",
    "summarize",
    "timed",
    "to_float64",
    "to_torch",
    "torch_candidate",
    "torch_module",
    "worst_of",
    "write_json",
]

# A sample shorter than this repeats its call, so that the clock and the dispatch do not drown what is measured.
SHORTEST_SAMPLE_S = 2e-3
MOST_ROUNDS = 151


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Something to time: `run` does the work once and returns when it is done."""

    run: Callable[[], Any]
    temp_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The median time of one candidate, and its ratio to the baseline: median and quartiles over the rounds."""

    median_s: float
    ratio: float
    lower: float
    upper: float
    rounds: int
    temp_bytes: int | None


def compiled(function: Callable, *args: Any) -> Candidate:
    """Compiles `function` for `args` ahead of time, and reads how much temporary memory the program asks for."""
    program = jax.jit(function).lower(*args).compile()
    temp_bytes = program.memory_analysis().temp_size_in_bytes
    return Candidate(lambda: jax.block_until_ready(program(*args)), temp_bytes)


def torch_module(threads: int = 2) -> Any:
    """The torch module, set to `threads` threads, or None where it is not installed or would use another device."""
    if jax.default_backend() != "cpu":
        return None
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(threads)
    return torch


def to_torch(torch: Any, array: jax.Array) -> Any:
    """The same values as a tensor; None for a random key, which torch keeps to itself."""
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        return None
    if jnp.issubdtype(array.dtype, jnp.integer):
        return torch.from_numpy(np.array(array, np.int64))
    return torch.from_numpy(np.array(array, np.float32)).to(getattr(torch, array.dtype.name))


def to_float64(array: Any) -> np.ndarray:
    """The values of an array or of a tensor; numpy itself cannot read a tensor in bfloat16."""
    return np.asarray(array, np.float64) if isinstance(array, jax.Array) else array.double().numpy()


def torch_candidate(
    function: Callable, args: Sequence, differentiate: Sequence[int] = (), seed: Any = None
) -> Candidate:
    """The same for torch on the CPU, which returns when it is done: the forward pass, or forward and backward.

    Args:
        function: takes `args`, tensors.
        args: the tensors.
        differentiate: which arguments to differentiate with respect to; none means the forward pass alone.
        seed: the cotangent of the result, where it is not a scalar.

    Returns:
        The candidate, without a figure for memory.
    """
    import torch

    if not differentiate:

        def run() -> Any:
            with torch.no_grad():
                return function(*args)

        return Candidate(run)

    leaves = [arg.clone().requires_grad_() if i in differentiate else arg for i, arg in enumerate(args)]
    wanted = [leaves[i] for i in differentiate]

    def run_backward() -> Any:
        value = function(*leaves)
        return value, torch.autograd.grad(value, wanted, seed)

    return Candidate(run_backward)


def timed(run: Callable[[], Any], repeats: int) -> float:
    """Seconds of one call, as the mean of `repeats` calls one after the other."""
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def sample(
    candidates: Mapping[str, Candidate],
    least_rounds: int = 15,
    budget_s: float = 1.0,
    settle: bool = False,
) -> dict[str, list[float]]:
    """Times the candidates in turn, in an order that changes from round to round.

    Args:
        candidates: by name.
        least_rounds: how many rounds to run at least.
        budget_s: the seconds that short comparisons fill with more rounds, up to `MOST_ROUNDS`.
        settle: whether to run a sample untimed before each timed one. The threads of some libraries go on spinning
            after a call returns (torch's do) and slow down whatever runs next, by a third as measured on two cores.

    Returns:
        The seconds of one call, round by round, per name.
    """
    # The first call warms caches and allocators, the second tells how long one takes.
    for candidate in candidates.values():
        candidate.run()
    once = {name: timed(candidate.run, 1) for name, candidate in candidates.items()}
    repeats = {name: max(1, round(SHORTEST_SAMPLE_S / seconds)) for name, seconds in once.items()}
    round_s = sum(once[name] * repeats[name] for name in candidates) * (1 + settle)
    rounds = max(least_rounds, min(MOST_ROUNDS, int(budget_s / round_s)))

    names = list(candidates)
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        # Rotated, and backwards in every other cycle, so that none always follows the same other one.
        cycle, turn = divmod(i, len(names))
        order = names[turn:] + names[:turn]
        for name in reversed(order) if cycle % 2 else order:
            if settle:
                timed(candidates[name].run, repeats[name])
            times[name].append(timed(candidates[name].run, repeats[name]))
    return times


def summarize(
    candidates: Mapping[str, Candidate], times: Mapping[str, Sequence[float]], baseline: str
) -> dict[str, Measurement]:
    """One measurement per candidate from the times of `sample`, with ratios to the one named `baseline`."""
    results = {}
    for name, candidate in candidates.items():
        ratios = [mine / base for mine, base in zip(times[name], times[baseline], strict=True)]
        lower, middle, upper = statistics.quantiles(ratios, n=4, method="inclusive")
        results[name] = Measurement(
            statistics.median(times[name]), middle, lower, upper, len(ratios), candidate.temp_bytes
        )
    return results


def measure(candidates: Mapping[str, Candidate], baseline: str, **effort: Any) -> dict[str, Measurement]:
    """One measurement per candidate, with ratios to the one named `baseline`; `effort` is that of `sample`."""
    return summarize(candidates, sample(candidates, **effort), baseline)


@dataclasses.dataclass(frozen=True)
class Target:
    """A promise and what was measured: the worst figure of all places where it holds, and that place."""

    promise: str
    limit: float
    worst: float
    place: str

    @property
    def met(self) -> bool:
        return self.worst <= self.limit


def worst_of(promise: str, limit: float, figures: Iterable[tuple[float, str]]) -> list[Target]:
    """One target, or none where nothing was measured for it."""
    figures = list(figures)
    return [Target(promise, limit, *max(figures))] if figures else []


def device_name() -> str:
    """The kind of the first device, fit for a file name: `cpu`, `nvidia-h200`."""
    return jax.devices()[0].device_kind.lower().replace(" ", "-")


def environment() -> dict[str, Any]:
    """What a reader must know to compare two result files."""
    versions = {}
    for package in ("jax", "jaxlib", "optax", "torch", "tokamax"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": jax.devices()[0].device_kind,
        "cpu_count": os.cpu_count(),
        "load_average": os.getloadavg(),
        "versions": versions,
    }


def result_path(name: str) -> pathlib.Path:
    """The default place of a result file: benchmarks/results/<name>-<device>.json."""
    return pathlib.Path(__file__).parent / "results" / f"{name}-{device_name()}.json"


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes `content` with the environment in front of it, and makes the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": environment(), **content}, indent=1) + "\n")
    print(f"\nwrote {os.path.relpath(path)}")


def parse_shape(text: str) -> tuple[int, ...]:
    """A shape as flags have it: `4096x1000`."""
    return tuple(map(int, text.split("x")))


def shape_text(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.1f}"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells).rstrip())


def print_targets(results: Sequence[Target]) -> None:
    print_table(
        ("target, at its worst place", "limit", "measured", "", "at"),
        [
            (t.promise, f"{t.limit:.3g}", f"{t.worst:.4g}", "met" if t.met else "not met", t.place or "-")
            for t in results
        ],
    )
