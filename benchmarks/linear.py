"""Time, memory and errors of a language model's loss, and of its gradients: `python -m benchmarks.linear`.

Each step (see `benchmarks.heads`) is compared with optax on the whole logits, and with the three matrix products that
no step can do without: as `jnp.matmul` writes them, and without the logits, which no step needs to write whole. It ends
with the targets that the library sets itself and whether they are met.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Callable, Sequence

from benchmarks import charts, harness, heads
from benchmarks.heads import BASES, DENSE, MEAN, PER_ROW, TOKAMAX, TORCH_CHUNKED

SHAPES = ((2048, 512, 32768), (4096, 256, 50304), (1024, 256, 131072), (8192, 64, 8192))
QUICK_SHAPES = ((256, 64, 2048), (128, 32, 8192))
DTYPES = ("float32", "bfloat16")
# Arguments of `harness.sample`. torch has fewer rounds, because its own chunks take ten times as long as ours, and need
# not settle at full size: its threads spin for 10 ms after steps of half a second and more.
EFFORT = {"least_rounds": 5, "budget_s": 10.0}
TORCH_EFFORT = {"least_rounds": 3, "budget_s": 5.0}
QUICK_EFFORT = {"least_rounds": 5, "budget_s": 0.1}
QUICK_TORCH_EFFORT = {"least_rounds": 3, "budget_s": 0.1, "settle": True}

# By shape, the most temporary memory that the library allows itself, as a share of what the whole logits take.
MEMORY_SHARES = {(2048, 512, 32768): 1 / 8, (1024, 256, 131072): 1 / 16}


@dataclasses.dataclass(frozen=True)
class Record:
    """All steps at one shape (N, D, V) in one dtype.

    Attributes:
        to_dense: the measurements by step, with ratios to optax.
        to_products: the same, with ratios to the bare products.
        to_written: the same, with ratios to the products that write the logits too.
        errors: by step, of the gradient with respect to features and of that with respect to kernel.
    """

    shape: tuple[int, int, int]
    dtype: str
    to_dense: dict[str, harness.Measurement]
    to_products: dict[str, harness.Measurement]
    to_written: dict[str, harness.Measurement]
    errors: dict[str, dict[str, dict[str, float]]]

    @property
    def place(self) -> str:
        return f"{harness.shape_text(self.shape)} {self.dtype}"

    def bytes_beyond_gradient(self, name: str) -> int | None:
        """Temporary bytes beyond one copy of the kernel's gradient in float32, which a sum over blocks cannot avoid."""
        _, width, classes = self.shape
        used = self.to_dense[name].temp_bytes
        return None if used is None else max(0, used - 4 * width * classes)


def compare(shape: tuple[int, int, int], dtype: str, effort: dict, torch_effort: dict) -> Record:
    """Compiles, times and judges the steps of one head."""
    head = heads.make_head(shape, dtype)
    names = [MEAN, PER_ROW, DENSE, *BASES, *([TOKAMAX] if heads.has_tokamax() else [])]
    candidates = {name: heads.compiled_step(name, head) for name in names}
    ratios = measure_all(candidates, effort)
    # Apart from the others, which its spinning threads would disturb.
    if in_torch := heads.torch_steps(head):
        references = {name: candidates[name] for name in (DENSE, *BASES)}
        for measured, beside in zip(ratios, measure_all(references | in_torch, torch_effort), strict=True):
            measured |= {name: beside[name] for name in in_torch}

    truth = heads.Truth(head)
    errors = {}
    for name, candidate in (candidates | in_torch).items():
        if name not in BASES:
            _, gradients = candidate.run()
            errors[name] = truth.errors(gradients, heads.row_weights(name, head))
    return Record(shape, dtype, *ratios, errors)


def measure_all(candidates: dict[str, harness.Candidate], effort: dict) -> list[dict[str, harness.Measurement]]:
    """Measurements with ratios to optax, to the bare products, and to those that write all."""
    times = harness.sample(candidates, **effort)
    return [harness.summarize(candidates, times, baseline) for baseline in (DENSE, *BASES)]


def print_record(record: Record) -> None:
    rows = []
    for name, measured in record.to_dense.items():
        errors = record.errors.get(name)
        figures = [errors[of][which] for of in ("features", "kernel") for which in ("max", "rms")] if errors else []
        rows.append(
            (
                name,
                f"{measured.median_s * 1e3:.1f}",
                f"{measured.ratio:.2f}",
                f"{measured.lower:.2f}-{measured.upper:.2f}",
                f"{record.to_products[name].ratio:.2f}",
                f"{record.to_written[name].ratio:.2f}",
                harness.megabytes(measured.temp_bytes),
                harness.megabytes(record.bytes_beyond_gradient(name)),
                *([f"{figure:.1e}" for figure in figures] or ["-"] * 4),
            )
        )
    harness.print_table(
        (
            "value and gradient",
            "ms",
            "to optax",
            "quartiles",
            "to products",
            "written",
            "MB",
            "MB beyond dW",
            "dh: max",
            "rms",
            "dW: max",
            "rms error",
        ),
        rows,
    )


def targets(records: Sequence[Record]) -> list[harness.Target]:
    """The targets of the library, each judged at its worst place."""

    def worst(
        promise: str, limit: float, figure: Callable[[Record], float], chosen: Sequence[Record] = records
    ) -> list:
        return harness.worst_of(promise, limit, ((figure(r), r.place) for r in chosen))

    results = [
        *worst("mean, ratio to optax", 1.1, lambda r: r.to_dense[MEAN].ratio),
        *worst("mean, ratio to the three products, written", 1.15, lambda r: r.to_written[MEAN].ratio),
        *worst("mean, ratio to the three products, no logits written", 1.15, lambda r: r.to_products[MEAN].ratio),
        *worst("none, ratio to optax", 1.45, lambda r: r.to_dense[PER_ROW].ratio),
        *worst(
            "mean, ratio to torch's chunks as they come",
            1 / 3,
            # Each against optax in its own rounds.
            lambda r: r.to_dense[MEAN].ratio / r.to_dense[TORCH_CHUNKED].ratio,
            [r for r in records if TORCH_CHUNKED in r.to_dense],
        ),
    ]
    for shape, share in MEMORY_SHARES.items():
        results += worst(
            "mean, temporary bytes beyond one kernel gradient, ratio to optax's",
            share,
            lambda r: r.bytes_beyond_gradient(MEAN) / r.to_dense[DENSE].temp_bytes,
            [r for r in records if r.shape == shape],
        )
    return results


def draw(records: Sequence[Record], path: pathlib.Path) -> None:
    """Draws time against temporary memory: one panel per shape and dtype, one colour per step."""
    panels = {}
    for record in records:
        points = panels[record.place] = {}
        for name, measured in record.to_dense.items():
            # What the products write is no part of a step; torch does not tell. At 0 bytes there would be no point.
            known = measured.temp_bytes is not None and name not in BASES
            points[name] = max(0.1, measured.temp_bytes / 1e6) if known else None, measured.median_s * 1e3
    columns = len({record.shape for record in records})
    charts.draw_points(path, panels, columns, ("temporary memory, MB", "value and gradient, ms"))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.linear", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small shapes, few rounds")
    parser.add_argument(
        "--shapes", nargs="+", metavar="NxDxV", type=harness.parse_shape, help="for instance 2048x512x32768"
    )
    parser.add_argument("--dtype", nargs="+", choices=DTYPES)
    parser.add_argument(
        "--out", type=pathlib.Path, help="the JSON file, beside it the chart (.png); default for full runs"
    )
    flags = parser.parse_args(arguments)
    # A partial or hurried run must not overwrite the figures of a full one.
    if flags.out is None and not (flags.quick or flags.shapes or flags.dtype):
        flags.out = harness.result_path("linear")
    flags.shapes = flags.shapes or (QUICK_SHAPES if flags.quick else SHAPES)
    flags.dtype = flags.dtype or DTYPES
    return flags


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    efforts = (QUICK_EFFORT, QUICK_TORCH_EFFORT) if flags.quick else (EFFORT, TORCH_EFFORT)
    present = {"torch": harness.torch_module() is not None, "tokamax": heads.has_tokamax()}
    if absent := [name for name, here in present.items() if not here]:
        print(f"\nleft out, because it is not installed or would use another device: {', '.join(absent)}")

    records = []
    for dtype in flags.dtype:
        for shape in flags.shapes:
            record = compare(shape, dtype, *efforts)
            print(f"\nfeatures times kernel, (N, D, V) = {record.place}")
            print_record(record)
            records.append(record)

    results = targets(records)
    print("\ntargets")
    harness.print_targets(results)

    if flags.out is None:
        return
    harness.write_json(
        flags.out,
        {
            "targets": [dataclasses.asdict(t) | {"met": t.met} for t in results],
            "records": [dataclasses.asdict(record) for record in records],
        },
    )
    draw(records, flags.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
