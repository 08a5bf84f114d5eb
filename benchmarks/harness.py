"""Timing, compiled memory, tables and files shared by the benchmarks.

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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

__all__ = [
    "Candidate",
    "Measurement",
    "compiled",
    "device_name",
    "draw_bars",
    "environment",
    "measure",
    "print_table",
    "result_path",
    "timed",
    "torch_candidate",
    "torch_module",
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


def measure(
    candidates: Mapping[str, Candidate],
    baseline: str,
    least_rounds: int = 15,
    budget_s: float = 1.0,
    settle: bool = False,
) -> dict[str, Measurement]:
    """Times the candidates in turn, in an order that changes from round to round.

    Args:
        candidates: by name.
        baseline: the name of the one that the others are divided by.
        least_rounds: how many rounds to run at least.
        budget_s: the seconds that short comparisons fill with more rounds, up to `MOST_ROUNDS`.
        settle: whether to run a sample untimed before each timed one. The threads of some libraries go on spinning
            after a call returns (torch's do) and slow down whatever runs next, by a third as measured on two cores.

    Returns:
        One measurement per name.
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

    results = {}
    for name in names:
        ratios = [mine / base for mine, base in zip(times[name], times[baseline], strict=True)]
        lower, middle, upper = statistics.quantiles(ratios, n=4, method="inclusive")
        results[name] = Measurement(
            statistics.median(times[name]), middle, lower, upper, rounds, candidates[name].temp_bytes
        )
    return results


def device_name() -> str:
    """The kind of the first device, fit for a file name: `cpu`, `nvidia-h200`."""
    return jax.devices()[0].device_kind.lower().replace(" ", "-")


def environment() -> dict[str, Any]:
    """What a reader must know to compare two result files."""
    versions = {}
    for package in ("jax", "jaxlib", "optax", "torch"):
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


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells).rstrip())


def draw_bars(
    path: pathlib.Path, panels: Mapping[str, Mapping[str, Mapping[str, float]]], columns: int, label: str
) -> None:
    """Draws ratios as bars that start at 1, on a logarithmic axis, so that twice and half as long look alike.

    Args:
        path: where to write the PNG.
        panels: by title, the groups of the panel by name, each with its ratios by series.
        columns: how many panels stand side by side.
        label: what the ratio is.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no chart: matplotlib is not installed")
        return

    series = list(dict.fromkeys(name for groups in panels.values() for group in groups.values() for name in group))
    most_groups = max(len(groups) for groups in panels.values())
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6.4 * columns, (0.4 * most_groups + 1.2) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
    height = 0.8 / len(series)
    for axis, (title, groups) in zip(axes, panels.items(), strict=True):
        for i, name in enumerate(series):
            places = [
                (place + (i + 0.5) * height - 0.4, g[name]) for place, g in enumerate(groups.values()) if name in g
            ]
            centres, ratios = zip(*places, strict=True)
            axis.barh(centres, [ratio - 1 for ratio in ratios], 0.9 * height, left=1, color=f"C{i}", label=name)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
        axis.margins(y=0.01)
        axis.set_yticks(range(len(groups)), groups)
        axis.set_title(title)
        axis.set_xlabel(label)
        axis.tick_params(labelbottom=True)
    # The panels share their axes, so one call holds for each. The first group goes on top.
    every = [ratio for groups in panels.values() for group in groups.values() for ratio in group.values()]
    figure.axes[0].set_xlim(min(0.8, *every) / 1.1, max(1.25, *every) * 1.1)
    figure.axes[0].invert_yaxis()
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(series), frameon=False)
    figure.savefig(path, dpi=110)
    print(f"wrote {os.path.relpath(path)}")
