"""Time and device memory of a language model's loss, and of its gradients, on one GPU: `python -m benchmarks.gpu`.

The heads are those of large models, in bfloat16. The most memory that a device ever had in use cannot be set back, so
every step (see `benchmarks.heads`) runs in a process of its own. Such a machine is rarely shared, so that times from
different processes compare; how fast a step can be is told by the three matrix products, timed in the same way.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks import harness, heads
from benchmarks.heads import DENSE, MEAN, PER_ROW, PRODUCTS, ROUNDED, TOKAMAX

SHAPES = ((8192, 2304, 256000), (8192, 4096, 128256))
DTYPE = "bfloat16"
# optax twice: on logits in float32, whose backward products take a gradient in float32, and on rounded ones, as many
# models have them.
STEPS = (MEAN, PER_ROW, DENSE, ROUNDED, PRODUCTS, TOKAMAX)
# Arguments of `harness.sample`.
EFFORT = {"least_rounds": 15, "budget_s": 3.0}


@dataclasses.dataclass(frozen=True)
class Run:
    """One step in a process of its own; all but the step and the shape are None where the device is too small.

    Attributes:
        step: its name.
        shape: (N, D, V).
        median_s: of one call.
        temp_bytes: what the compiled program asks for.
        peak_bytes: the most that the device had in use, arguments and results included.
        argument_bytes: what it had in use before the program was compiled.
        compile_peak_bytes: the most that it had in use when the program was compiled: XLA tries out kernels then.
    """

    step: str
    shape: tuple[int, int, int]
    median_s: float | None = None
    temp_bytes: int | None = None
    peak_bytes: int | None = None
    argument_bytes: int | None = None
    compile_peak_bytes: int | None = None


def measure_here(step: str, shape: tuple[int, int, int]) -> Run:
    """Runs a step in this process, which must not have used the device before."""
    device = jax.devices()[0]
    try:
        head = heads.make_head(shape, DTYPE)
        argument_bytes = device.memory_stats()["bytes_in_use"]
        candidate = heads.compiled_step(step, head)
        compile_peak_bytes = device.memory_stats()["peak_bytes_in_use"]
        measured = harness.measure({step: candidate}, step, **EFFORT)[step]
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Run(step, shape)
    peak_bytes = device.memory_stats()["peak_bytes_in_use"]
    return Run(step, shape, measured.median_s, measured.temp_bytes, peak_bytes, argument_bytes, compile_peak_bytes)


def measure_apart(step: str, shape: tuple[int, int, int]) -> Run:
    """The same in a fresh process, whose errors go to the screen."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--here", step, "--shapes", "x".join(map(str, shape))]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return Run(**json.loads(output.splitlines()[-1]) | {"shape": shape})


def print_runs(runs: Sequence[Run]) -> None:
    """Prints the steps at one shape."""
    seconds = {run.step: run.median_s for run in runs}

    def ratio(name: str, run: Run) -> str:
        return f"{run.median_s / seconds[name]:.2f}" if seconds.get(name) else "-"

    rows = []
    for run in runs:
        if run.median_s is None:
            rows.append((run.step, "does not fit", *["-"] * 7))
            continue
        operations = 6 * run.shape[0] * run.shape[1] * run.shape[2]
        # Where the compiler's own trials needed more than the program, the peak is theirs.
        bound = "≤ " if run.peak_bytes == run.compile_peak_bytes else ""
        # The products are given the gradient of the logits, so that what they use says nothing about a step.
        memory = ["-"] * 3
        if run.step != PRODUCTS:
            memory = [
                bound + harness.megabytes(run.peak_bytes),
                bound + harness.megabytes(run.peak_bytes - run.argument_bytes),
                harness.megabytes(run.temp_bytes),
            ]
        rows.append(
            (
                run.step,
                f"{run.median_s * 1e3:.1f}",
                ratio(DENSE, run),
                ratio(ROUNDED, run),
                f"{seconds[PRODUCTS] / run.median_s:.2f}" if seconds[PRODUCTS] else "-",
                f"{operations / run.median_s / 1e12:.0f}",
                *memory,
            )
        )
    harness.print_table(
        (
            "value and gradient",
            "ms",
            "to optax",
            "to rounded",
            "of the products' rate",
            "TFLOP/s",
            "peak MB",
            "beyond arguments",
            "compiled temporary",
        ),
        rows,
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shapes", nargs="+", metavar="NxDxV", type=harness.parse_shape, help="for instance 8192x2304x256000"
    )
    parser.add_argument("--out", type=pathlib.Path, help="the JSON file; default for full runs")
    parser.add_argument("--here", metavar="STEP", choices=STEPS, help="run one step in this process and print its JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    # By default the first process to look at a GPU takes three quarters of its memory and leaves too little to the
    # others; what a step itself has in use counts the same either way.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.95")
    if jax.default_backend() != "gpu":
        print("jax sees no GPU on this machine, so there is nothing to measure")
        return
    shapes = flags.shapes or SHAPES
    if flags.here:
        for shape in shapes:
            print(json.dumps(dataclasses.asdict(measure_here(flags.here, shape))))
        return

    steps = [step for step in STEPS if step != TOKAMAX or heads.has_tokamax()]
    if TOKAMAX not in steps:
        print("\nleft out, because it is not installed: tokamax")
    results: list[Run] = []
    for shape in shapes:
        print(f"\nfeatures times kernel, (N, D, V) = {harness.shape_text(shape)} {DTYPE}, {harness.device_name()}")
        runs = [measure_apart(step, shape) for step in steps]
        print_runs(runs)
        results += runs

    out = flags.out or (None if flags.shapes else harness.result_path("gpu"))
    if out:
        content: dict[str, Any] = {"dtype": DTYPE, "runs": [dataclasses.asdict(run) for run in results]}
        harness.write_json(out, content)


if __name__ == "__main__":
    main()
