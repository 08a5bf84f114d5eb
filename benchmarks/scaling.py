"""The cost of a head over a mesh as formulas, against compiled programs: `python -m benchmarks.scaling`.

The value and gradient of a loss are compiled for simulated CPU devices, on every mesh of rows times classes, and the
collectives, matrix products and temporary memory of the programs are put beside what the formulas say. The run fails
where bytes or products differ, or where a program has any collective but all-reduces. Nothing is executed or timed.
The formulas are then evaluated for meshes of a size that cannot be simulated, with the rates of data sheets; see
`docs/scaling.md`.
"""

import argparse
import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsoftmax
from benchmarks import harness, programs
from jaxsoftmax import objectives
from jaxsoftmax._core import blocks

DEVICES = (1, 2, 4, 8, 16, 32, 64)
QUICK_DEVICES = (1, 8)
ROOT = pathlib.Path(__file__).parent.parent
AXES = ("rows", "classes")
SHAPE = (1024, 64, 4096)
QUICK_SHAPE = (128, 16, 512)

# The formulas.


@dataclasses.dataclass(frozen=True)
class Head:
    """A head on a mesh.

    Attributes:
        rows: N, of all devices.
        width: D, the length of a row of features; 0 for a head on logits.
        classes: V, of all devices.
        over: how many devices split the rows, and how many the classes.
        block: rows in a block on a device.
        numbers: how many sums per row are packed in one message: 2, and 4 where the mean over the classes is used.
        bias: whether there is one.
        item: bytes of a number in the features and the kernel, or in the logits.
    """

    rows: int
    width: int
    classes: int
    over: tuple[int, int]
    block: int
    numbers: int = 2
    bias: bool = False
    item: int = 4

    @property
    def own_rows(self) -> int:
        return self.rows // self.over[0]

    @property
    def own_classes(self) -> int:
        return self.classes // self.over[1]

    @property
    def blocks(self) -> int:
        return math.ceil(self.own_rows / self.block)


@dataclasses.dataclass(frozen=True)
class Message:
    """An array of so many bytes, summed or maximized over the devices of one mesh axis, so many times in a step."""

    content: str
    axis: str
    bytes: int
    count: int = 1


def messages(head: Head) -> list[Message]:
    """What a device exchanges in one step, value and gradient."""
    numbers = [
        Message("row maximum", "classes", 4 * head.block, head.blocks),
        Message("row sums", "classes", 4 * head.numbers * head.block, head.blocks),
        Message("loss and weight", "rows", 4 * 2),
    ]
    if not head.width:
        return numbers
    gradients = [
        Message("features' gradient", "classes", 4 * head.own_rows * head.width),
        Message("kernel's gradient", "rows", 4 * head.width * head.own_classes),
    ]
    return numbers + gradients + ([Message("bias's gradient", "rows", 4 * head.own_classes)] if head.bias else [])


def message_bytes(head: Head) -> dict[str, int]:
    """Bytes of the messages by mesh axis; an axis of one device sends none."""
    sums = dict.fromkeys(AXES, 0)
    for message in messages(head):
        if head.over[AXES.index(message.axis)] > 1:
            sums[message.axis] += message.bytes * message.count
    return sums


def sent_bytes(message: float, devices: int) -> float:
    """What each device sends when so many sum a message in a ring: a scattered sum, then all gather the parts."""
    return 2 * (devices - 1) / devices * message


def product_flops(head: Head) -> int:
    """Of the matrix products on a device: logits, features' gradient and kernel's, of whole blocks of rows."""
    return 6 * head.blocks * head.block * head.width * head.own_classes


def working_bytes(head: Head) -> int:
    """What a device needs beyond the arguments, from the arrays that grow with the shapes; the compiler may differ.

    A head on logits has their gradient as its result, and one array more where the mean is used. A streamed head sums
    both gradients in float32, and beside them it has the logits of a block twice (and their gradient in half precision,
    where the products take that), or later the gradients that it returns.
    """
    if not head.width:
        return head.own_rows * head.own_classes * (head.item + (4 if head.numbers == 4 else 0))
    padded = head.blocks * head.block
    sums = 4 * head.width * (padded + head.own_classes)
    results = head.item * head.width * (head.own_rows + head.own_classes)
    block = head.block * head.own_classes * (8 if head.item == 4 else 8 + head.item)
    return sums + max(block, results)


# The programs.


def mesh_of(over: tuple[int, int]) -> Mesh:
    devices = np.array(jax.devices()[: math.prod(over)]).reshape(over)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 2)


def smoothed(statistics: jaxsoftmax.RowStatistics) -> jax.Array:
    return objectives.cross_entropy(statistics, label_smoothing=0.1)


def compiled_step(head: Head) -> jax.stages.Compiled:
    """The program of value and gradient of the mean loss over all rows."""
    mesh = mesh_of(head.over)
    dtype = {2: jnp.bfloat16, 4: jnp.float32}[head.item]
    smoothing = 0.1 if head.numbers == 4 else 0.0

    def argument(shape: tuple[int, ...], dtype: jax.typing.DTypeLike, *axes: str | None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*axes)))

    labels = argument((head.rows,), jnp.int32, "rows")
    if not head.width:

        def own(logits: jax.Array, labels: jax.Array) -> jax.Array:
            losses = jaxsoftmax.cross_entropy(logits, labels, label_smoothing=smoothing, axis_name="classes")
            return jaxsoftmax.weighted_mean(losses, labels >= 0, axis_name="rows")

        dense = jax.shard_map(own, mesh=mesh, in_specs=(P(*AXES), P("rows")), out_specs=P())
        logits = argument((head.rows, head.classes), dtype, *AXES)
        return jax.jit(jax.value_and_grad(dense)).lower(logits, labels).compile()

    objective = smoothed if smoothing else objectives.cross_entropy
    loss = jaxsoftmax.sharded_linear_loss(objective, mesh, rows="rows", classes="classes")

    def streamed(features: jax.Array, kernel: jax.Array, bias: jax.Array | None, labels: jax.Array) -> jax.Array:
        return loss(features, kernel, labels, bias=bias, block_size=head.block)

    features = argument((head.rows, head.width), dtype, "rows")
    kernel = argument((head.width, head.classes), dtype, None, "classes")
    bias = argument((head.classes,), dtype, "classes") if head.bias else None
    step = jax.value_and_grad(streamed, (0, 1, 2) if head.bias else (0, 1))
    return jax.jit(step).lower(features, kernel, bias, labels).compile()


# Both side by side.


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one step on a device: bytes of messages, products, bytes beyond the arguments.

    Attributes:
        messages: by mesh axis; other collectives, and those of other groups, have keys of their own.
        flops: of the matrix products.
        memory: temporary bytes and results together.
    """

    messages: dict[str, int]
    flops: int
    memory: int


@dataclasses.dataclass(frozen=True)
class Check:
    """One head by the formulas and in its program, which has so many temporary bytes."""

    case: str
    head: Head
    expected: Cost
    compiled: Cost
    temporary: int

    @property
    def agrees(self) -> bool:
        """In all but memory, where the compiler has a say."""
        return (self.expected.messages, self.expected.flops) == (self.compiled.messages, self.compiled.flops)


def compiled_bytes(found: Sequence[programs.Collective], over: tuple[int, int]) -> dict[str, int]:
    """Bytes of the collectives by mesh axis, and by kind or groups what is no all-reduce over one axis."""
    ids = np.arange(math.prod(over)).reshape(over)
    groups = {"rows": frozenset(map(frozenset, ids.T.tolist())), "classes": frozenset(map(frozenset, ids.tolist()))}
    sums = dict.fromkeys(AXES, 0)
    for one in found:
        axes = [axis for axis in AXES if groups[axis] == one.groups]
        key = one.kind if one.kind != "all-reduce" else axes[0] if axes else "all-reduce over other devices"
        sums[key] = sums.get(key, 0) + one.bytes * one.count
    return sums


def check(case: str, head: Head) -> Check:
    """Compiles one head and reads its program."""
    program = compiled_step(head)
    text, memory = program.as_text(), program.memory_analysis()
    messages = compiled_bytes(programs.collectives(text, math.prod(head.over)), head.over)
    temporary = memory.temp_size_in_bytes
    return Check(
        case,
        head,
        Cost(message_bytes(head), product_flops(head), working_bytes(head)),
        Cost(messages, programs.dot_flops(text), temporary + memory.output_size_in_bytes),
        temporary,
    )


def cases(shape: tuple[int, int, int], over: tuple[int, int]) -> dict[str, Head]:
    """The heads that are compiled on one mesh, by what they compute; the first on every mesh, the others on some."""
    rows, width, classes = shape
    own = rows // over[0]
    streamed, dense = Head(rows, width, classes, over, own), Head(rows, 0, classes, over, own)
    # Blocks that do not divide the rows are filled up.
    uneven = {"block": max(1, own * 3 // 8), "numbers": 4, "bias": True, "item": 2}
    return {
        "streamed, four blocks": dataclasses.replace(streamed, block=max(1, own // 4)),
        "streamed, one block": streamed,
        "streamed, bfloat16, label smoothing, bias, three uneven blocks": dataclasses.replace(streamed, **uneven),
        "on logits": dense,
        "on logits, label smoothing": dataclasses.replace(dense, numbers=4),
    }


def meshes(devices: int) -> list[tuple[int, int]]:
    """All ways to split so many devices, a power of two, in rows times classes."""
    powers = [2**i for i in range(devices.bit_length())]
    return [(devices // classes, classes) for classes in powers]


def checks(shape: tuple[int, int, int], devices: Sequence[int]) -> list[Check]:
    """The first case on every mesh, the others on the most even mesh and on classes alone."""
    results = []
    for count in devices:
        ways = meshes(count)
        for over in ways:
            chosen = list(cases(shape, over).items())
            some = over in (ways[len(ways) // 2], ways[-1])
            results += [check(case, head) for case, head in (chosen if some else chosen[:1])]
    return sorted(results, key=lambda c: list(cases(shape, c.head.over)).index(c.case))


def print_checks(results: Sequence[Check]) -> None:
    columns = ("over classes", "over rows", "products", "kB beyond arguments")
    header = ("rows x classes", *(text for column in columns for text in (column, "compiled")), "kB temporary", "")
    for case in dict.fromkeys(result.case for result in results):
        chosen = [result for result in results if result.case == case]
        head = chosen[0].head
        shape = (head.rows, head.width, head.classes) if head.width else (head.rows, head.classes)
        print(f"\n{case}, {'(N, D, V)' if head.width else '(N, V)'} = {harness.shape_text(shape)}, on a device")
        rows = []
        for result in chosen:
            sides = result.expected, result.compiled
            cells = [f"{side.messages[axis]}" for axis in ("classes", "rows") for side in sides]
            cells += [f"{side.flops}" for side in sides] + [f"{side.memory / 1e3:.0f}" for side in sides]
            others = [f"{key} {size}" for key, size in result.compiled.messages.items() if key not in AXES]
            verdict = " ".join(others or ["" if result.agrees else "differs"])
            rows.append(("{} x {}".format(*result.head.over), *cells, f"{result.temporary / 1e3:.0f}", verdict))
        harness.print_table(header, rows)


# On paper.


@dataclasses.dataclass(frozen=True)
class Rates:
    """One kind of accelerator, by its data sheets.

    Attributes:
        name: what it is.
        flops: products per second, two for each multiplication.
        near: bytes per second and direction to the devices of the same node.
        far: the same to other nodes, for each device.
        node: devices in a node.
    """

    name: str
    flops: float
    near: float
    far: float
    node: int

    def bandwidth(self, axis: str, over: tuple[int, int]) -> float:
        """Bytes per second at which a device sends along a mesh axis; neighbouring devices are along the classes.

        Where an axis has several devices in each node, a message leaves the node through the network cards of all.
        """
        classes = min(over[1], self.node)
        inside = classes if axis == "classes" else min(over[0], self.node // classes)
        crosses = over[AXES.index(axis)] > inside
        return min(self.near, self.far * inside) if crosses else self.near


# NVIDIA H100 SXM: 1979 TFLOP/s in bfloat16 with sparsity, half of it without; NVLink 900 GB/s in both directions
# together. DGX H100: eight of them, each with a network card of 400 Gb/s.
H100 = Rates("H100 SXM", flops=989e12, near=450e9, far=50e9, node=8)
TOKENS = 2**22
PAPER_MODELS = ((4096, 128256), (8192, 256000))
PAPER_DEVICES = (1024, 16384)
PAPER_SPLITS = (1, 2, 4, 8, 16, 32, 64)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One step of one head on one mesh, in seconds and bytes per device, and how many messages of the rows' numbers."""

    head: Head
    compute_s: float
    classes_s: float
    rows_s: float
    memory: float
    messages: int


def estimate(width: int, classes: int, devices: int, split: int, rates: Rates = H100) -> Estimate:
    """The formulas for bfloat16 and blocks of the size that the library takes on an accelerator."""
    over = devices // split, split
    rows, own = TOKENS // over[0], classes // split
    parts = math.ceil(rows / blocks.most_rows("gpu", width, own))
    head = Head(TOKENS, width, classes, over, math.ceil(rows / parts), item=2)
    seconds = {
        axis: sent_bytes(size, over[i]) / rates.bandwidth(axis, over)
        for i, (axis, size) in enumerate(message_bytes(head).items())
    }
    arguments = head.item * width * (rows + own)
    return Estimate(
        head,
        6 * rows * width * own / rates.flops,
        seconds["classes"],
        seconds["rows"],
        arguments + working_bytes(head),
        2 * parts if split > 1 else 0,
    )


def paper() -> dict[str, list[Estimate]]:
    """Every model on every number of devices, with its classes split in all ways."""
    return {
        f"D = {width}, V = {classes}, {devices} devices": [
            estimate(width, classes, devices, split) for split in PAPER_SPLITS
        ]
        for width, classes in PAPER_MODELS
        for devices in PAPER_DEVICES
    }


def most_devices(classes: int, bandwidth: float, flops: float) -> float:
    """Over how many devices the classes may be split before the features' gradient takes longer than the products."""
    return 1 + 0.75 * classes * bandwidth / flops


def print_paper(estimates: Mapping[str, Sequence[Estimate]]) -> None:
    for title, row in estimates.items():
        print(f"\n{title}, {TOKENS} rows, {H100.name}")
        harness.print_table(
            ("rows x classes", "own rows", "products, ms", "over classes, ms", "over rows, ms", "GB", "row messages"),
            [
                (
                    "{} x {}".format(*e.head.over),
                    f"{e.head.own_rows}",
                    *(f"{seconds * 1e3:.2f}" for seconds in (e.compute_s, e.classes_s, e.rows_s)),
                    f"{e.memory / 1e9:.1f}",
                    f"{e.messages}",
                )
                for e in row
            ],
        )
    print("\nthe features' gradient takes as long as the products where the classes are split over")
    harness.print_table(
        ("V", "in a node", "across nodes, all cards", "across nodes, one card"),
        [
            (
                f"{classes}",
                *(
                    f"{most_devices(classes, bandwidth, H100.flops):.1f}"
                    for bandwidth in (H100.near, min(H100.near, H100.node * H100.far), H100.far)
                ),
            )
            for _, classes in PAPER_MODELS
        ],
    )


def draw(estimates: Mapping[str, Sequence[Estimate]], path: pathlib.Path) -> None:
    """Draws the times against the devices that split the classes: one panel per model and number of devices."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no chart: matplotlib is not installed")
        return

    lines = {
        "matrix products": ("black", "-", lambda e: e.compute_s),
        "messages over the classes": ("C0", "-", lambda e: e.classes_s),
        "messages over the rows": ("C1", "-", lambda e: e.rows_s),
        "all messages": ("C3", "--", lambda e: e.classes_s + e.rows_s),
    }
    columns = len(PAPER_DEVICES)
    figure = Figure(figsize=(5.2 * columns, 3.7 * len(PAPER_MODELS)), layout="constrained")
    axes = figure.subplots(len(PAPER_MODELS), columns, squeeze=False, sharex=True).flat
    for axis, (title, row) in zip(axes, estimates.items(), strict=True):
        for name, (colour, style, seconds) in lines.items():
            points = [(e.head.over[1], 1e3 * seconds(e)) for e in row if seconds(e)]
            axis.plot(*zip(*points, strict=True), style, color=colour, marker="o", markersize=4, label=name)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
        axis.set_title(title)
        axis.set_xlabel("devices that split the classes")
        axis.set_ylabel("ms in a step")
        axis.tick_params(labelbottom=True)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(lines), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"wrote {os.path.relpath(path)}")


def simulate(devices: int) -> None:
    """So many simulated devices, which must be asked for before JAX uses one."""
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:
        pass
    if len(jax.devices()) < devices:
        raise SystemExit(f"{devices} devices are needed and JAX runs with {len(jax.devices())} already")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small shape on 1 and 8 devices")
    parser.add_argument("--devices", nargs="+", type=int, choices=DEVICES, help="how many simulated devices")
    parser.add_argument(
        "--out", type=pathlib.Path, help="the JSON file, beside it the chart (.png); default for full runs"
    )
    flags = parser.parse_args(arguments)
    flags.chart = flags.out and flags.out.with_suffix(".png")
    # A partial or hurried run must not overwrite the figures of a full one.
    if flags.out is None and not (flags.quick or flags.devices):
        flags.out, flags.chart = ROOT / "benchmarks" / "results" / "scaling.json", ROOT / "docs" / "scaling.png"
    flags.devices = flags.devices or (QUICK_DEVICES if flags.quick else DEVICES)
    return flags


def main(arguments: Sequence[str] | None = None) -> None:
    flags = parse(arguments)
    simulate(max(flags.devices))
    results = checks(QUICK_SHAPE if flags.quick else SHAPE, flags.devices)
    print_checks(results)
    estimates = paper()
    print_paper(estimates)
    differing = [result for result in results if not result.agrees]
    print(f"\n{len(results)} programs, {len(differing)} of them differ from the formulas")
    if flags.out is not None:
        harness.write_json(
            flags.out,
            {
                "programs": [dataclasses.asdict(result) | {"agrees": result.agrees} for result in results],
                "rates": dataclasses.asdict(H100),
                "paper": {title: [dataclasses.asdict(e) for e in row] for title, row in estimates.items()},
            },
        )
        draw(estimates, flags.chart)
    if differing:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
