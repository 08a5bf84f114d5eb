"""The charts of the benchmarks, as PNG files; without matplotlib a line says that there is none."""

import os
import pathlib
from collections.abc import Mapping

__all__ = ["draw_bars", "draw_points"]


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
    figure.legend(handles, names, loc="outside upper center", ncols=min(len(series), 2 * columns), frameon=False)
    figure.savefig(path, dpi=110)
    print(f"wrote {os.path.relpath(path)}")


def draw_points(
    path: pathlib.Path,
    panels: Mapping[str, Mapping[str, tuple[float | None, float]]],
    columns: int,
    labels: tuple[str, str],
) -> None:
    """Draws one point per series on logarithmic axes, where the lower left is best.

    Args:
        path: where to write the PNG.
        panels: by title, the points (x, y) of the panel by series; a series without x is a dashed line at its y.
        columns: how many panels stand side by side.
        labels: what x and y are.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullLocator
    except ImportError:
        print("no chart: matplotlib is not installed")
        return

    series = list(dict.fromkeys(name for points in panels.values() for name in points))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, (title, points) in zip(axes, panels.items(), strict=True):
        axis.set_xscale("log")
        axis.set_yscale("log")
        for name, (x, y) in points.items():
            colour = f"C{series.index(name)}"
            if x is None:
                axis.axhline(y, color=colour, linestyle="--", label=name)
            else:
                axis.plot(x, y, "o", color=colour, markersize=9, label=name)
        # Within one decade a logarithmic axis would have a single number.
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(LogLocator(subs=(1, 2, 5)))
            side.set_major_formatter("{x:g}")
            side.set_minor_locator(NullLocator())
        axis.margins(0.2)
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
        axis.set_title(title)
        axis.set_xlabel(labels[0])
        axis.set_ylabel(labels[1])
    handles = {
        name: handle for axis in figure.axes for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=2 * columns, frameon=False)
    figure.savefig(path, dpi=110)
    print(f"wrote {os.path.relpath(path)}")
