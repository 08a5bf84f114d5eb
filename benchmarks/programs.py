"""What the text of a compiled program says: its collectives and its matrix products, in loops too."""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

WIDTHS = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "s8": 1, "u8": 1, "s32": 4, "u32": 4, "s64": 8, "u64": 8}
COLLECTIVE = re.compile(
    r"= (?P<shape>\(.*?\)|\S+) (?P<kind>all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|"
    r"reduce-scatter|ragged-all-to-all)(?:-start)?\("
)
DOT = re.compile(r"= (\S+) dot\((?:\S+ )?%?([\w.-]+), .*?lhs_contracting_dims=\{([\d,]*)\}")
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
DEFINITION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = ")
CALLED = re.compile(r"\b(?:calls|to_apply|(?:true|false)_computation|branch_computations)=(\{[^}]*\}|[\w.%-]+)")
LOOP = re.compile(r"\bwhile\(.*\bbody=%?([\w.-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
GROUPS = re.compile(
    r"replica_groups=(\{\{.*?\}\}|\{\}|mesh\['[^\]]*'=\d+\] \{[^}:]*\}|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)"
)

Groups = frozenset[frozenset[int]]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction: kind, devices that sum together (of all-reduces), bytes of the result, how often it runs."""

    kind: str
    groups: Groups
    bytes: int
    count: int


def integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def array_bytes(shape: str) -> int:
    """Bytes of an array, or of all arrays of a tuple."""
    return sum(WIDTHS[kind] * math.prod(integers(dims)) for kind, dims in ARRAY.findall(shape))


def groups_of(line: str, devices: int) -> Groups:
    """The groups of an all-reduce: listed, all devices in one, axes of a mesh, or an iota transposed and reshaped."""
    found = GROUPS.search(line)
    if found is None:
        raise ValueError(f"no replica groups in: {line.strip()}")
    text = found[1]
    if text.startswith("{"):
        listed = [integers(group) for group in re.findall(r"\{([\d,]+)\}", text)] or [range(devices)]
        return frozenset(map(frozenset, listed))
    if text.startswith("mesh"):
        sizes, _, together = text.partition("] ")
        mesh = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
        last = re.findall(r"'([^']+)'", together)
        order = [list(mesh).index(name) for name in sorted(mesh, key=last.__contains__)]
        ids = np.arange(devices).reshape(*mesh.values()).transpose(order)
        shape = (-1, math.prod(mesh[name] for name in last))
    else:
        target, _, rest = text.partition("<=")
        source, _, transposed = rest.partition("T")
        ids = np.arange(devices).reshape(integers(source))
        ids = ids.transpose(integers(transposed)) if transposed else ids
        shape = integers(target)
    return frozenset(map(frozenset, ids.reshape(shape).tolist()))


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by name, and the name of the entry."""
    found: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if head := COMPUTATION.match(line):
            lines = found[head.group(2)] = [line]
            entry = head.group(2) if head.group(1) else entry
        else:
            lines.append(line)
    return found, entry


def instructions(text: str) -> Iterator[tuple[str, list[str], int]]:
    """Each line that runs, the lines of its computation, and how often it runs; a branch counts as taken."""
    found, entry = computations(text)

    def walk(name: str, times: int) -> Iterator[tuple[str, list[str], int]]:
        for line in found[name][1:]:
            if "-done(" in line or "-update(" in line:
                continue
            yield line, found[name], times
            if loop := LOOP.search(line):
                trips = TRIPS.search(line)
                if trips is None:
                    raise ValueError(f"a loop of unknown length: {line.strip()}")
                yield from walk(loop.group(1), times * int(trips.group(1)))
                continue
            for called in CALLED.findall(line):
                for other in re.findall(r"[\w.-]+", called):
                    yield from walk(other, times)

    return walk(entry, 1)


def collectives(text: str, devices: int) -> list[Collective]:
    """The collectives of a compiled program, of an asynchronous pair the start; no all-reduces of one device."""
    found = []
    for line, _, times in instructions(text):
        if match := COLLECTIVE.search(line):
            groups = groups_of(line, devices) if match["kind"] == "all-reduce" else frozenset()
            if match["kind"] != "all-reduce" or max(map(len, groups)) > 1:
                found.append(Collective(match["kind"], groups, array_bytes(match["shape"]), times))
    return found


def dot_flops(text: str) -> int:
    """Two for each multiplication in the matrix products of a compiled program."""
    flops = 0
    for line, lines, times in instructions(text):
        if match := DOT.search(line):
            result, left, over = match.groups()
            shape = shape_in(lines, left)
            depth = math.prod(shape[axis] for axis in integers(over))
            flops += times * 2 * math.prod(integers(ARRAY.search(result)[2])) * depth
    return flops


def shape_in(lines: Sequence[str], name: str) -> tuple[int, ...]:
    """The shape of a value or parameter of a computation."""
    for line in lines[1:]:
        if (defined := DEFINITION.match(line)) and defined.group(1) == name:
            return integers(ARRAY.search(line, defined.end())[2])
    raise ValueError(f"{name} is not defined in {lines[0]}")
