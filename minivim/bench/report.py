"""What a benchmark found: as rows, as a table, as JSON and as a picture."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from minivim.bench.measure import Rounds
from minivim.extras import require

MIB, GIB = 2**20, 2**30
# Vim, Figure 1 (b), (c): side of the image, 10^(what is printed) images a second, GB; DeiT-Ti finds no memory at 1248
SIDES = [512, 640, 738, 1024, 1248]
FIGURE_1: dict[str, tuple[list[int], list[int], list[float]]] = {
    "Vim-Ti": (SIDES, [347, 195, 117, 81, 51], [3.32, 4.22, 5.03, 8.13, 11.14]),
    "DeiT-Ti": (SIDES, [347, 178, 112, 37, 18], [4.56, 8.09, 12.48, 40.09]),
}
FIGURE_1_COLOURS = {"Vim-Ti": "0.3", "DeiT-Ti": "0.65"}


@dataclass(frozen=True)
class Row:
    """One contestant in one contest.

    case: the contest's size in words; length: tokens L; mode: what was timed; seconds: the median of one call;
    spread: (upper quartile - lower quartile) / median; ratio: median / the first contestant's median;
    extra_bytes: the most memory beyond the inputs, None if not measured; error: the largest difference from the
    reference over the reference's largest value, None for a yardstick, which computes something else;
    items: the batch size; side: the image's, in pixels, None for a scan.
    """

    name: str
    case: str
    length: int
    mode: str
    seconds: float
    spread: float
    ratio: float
    extra_bytes: int | None
    error: float | None
    items: int = 1
    side: int | None = None

    @property
    def per_second(self) -> float:
        """Batch items in a second."""
        return self.items / self.seconds


@dataclass(frozen=True)
class Report:
    """A whole benchmark: its rows, where they were measured, how quiet the machine was, what found no memory."""

    title: str
    environment: dict
    rounds: int
    discarded: int
    noisy_kept: int
    gated: bool
    rows: list[Row]
    too_large: list[str] = field(default_factory=list)

    def save(self, out: Path) -> list[Path]:
        """Write OUT.json and OUT.png; returns their paths."""
        out.parent.mkdir(parents=True, exist_ok=True)
        paths = [out.with_name(out.name + suffix) for suffix in (".json", ".png")]
        paths[0].write_text(json.dumps(asdict(self), indent=2) + "\n")
        plot(self, paths[1])
        return paths


def summarise(names: Sequence[str], rounds: Rounds, **common) -> list[Row]:
    """Rows of one contest, from the seconds of its rounds; ratios are to the first contestant.

    `common` holds each row's other fields; a field given as a dict is looked up by contestant.
    """
    medians = [statistics.median(seconds) for seconds in rounds.seconds]
    rows = []
    for name, seconds, median in zip(names, rounds.seconds, medians, strict=True):
        fields = {key: value[name] if isinstance(value, dict) else value for key, value in common.items()}
        rows.append(Row(name=name, seconds=median, spread=spread(seconds), ratio=median / medians[0], **fields))
    return rows


def spread(seconds: Sequence[float]) -> float:
    """The distance between the quartiles over the median; 0 for a single value."""
    if len(seconds) < 2:
        return 0.0
    lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    return (upper - lower) / median


def table(report: Report) -> str:
    """The report as text: one block a contest."""
    lines = [report.title, *describe(report)]
    for case, mode in dict.fromkeys((row.case, row.mode) for row in report.rows):
        rows = [row for row in report.rows if (row.case, row.mode) == (case, mode)]
        lines += ["", f"{case}, {mode}", *block(rows)]
    lines += [""] * bool(report.too_large) + [f"out of memory: {each}" for each in report.too_large]
    return "\n".join(lines)


def describe(report: Report) -> list[str]:
    """The lines that say where and how the rows were measured."""
    where = report.environment
    versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    quiet = f"{report.discarded} discarded because other processes were busy"
    if report.noisy_kept:
        quiet += f", {report.noisy_kept} kept although they were"
    if not report.gated:
        quiet = "not gated: this system does not say what other processes do"
    return [
        f"{where['device']}: {where['device_name']}; {where['threads']} threads; {where['platform']}",
        f"Python {where['python']}, {versions}",
        f"medians of {report.rounds} interleaved rounds; {quiet}",
    ]


def block(rows: Sequence[Row]) -> list[str]:
    """Aligned columns of one contest."""
    cells = [("", "ms", "spread", "ratio", "ms/item", "items/s", "extra MiB", "error")]
    for row in rows:
        memory = "-" if row.extra_bytes is None else f"{row.extra_bytes / MIB:.1f}"
        error = "-" if row.error is None else f"{row.error:.1e}"
        times = f"{row.seconds * 1e3:.4g}", f"{row.spread:.0%}", f"{row.ratio:.2f}"
        items = f"{1e3 / row.per_second:.4g}", f"{row.per_second:.4g}"
        cells.append((row.name, *times, *items, memory, error))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    aligned = [[cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in cells]
    return ["  ".join([line[0].ljust(widths[0]), *columns[1:]]) for line, columns in zip(cells, aligned, strict=True)]


def plot(report: Report, path: Path) -> None:
    """Models of several sizes as in the paper's Figure 1; else time against the number of tokens, one panel a mode.

    Bars where there is only one size.
    """
    if len({row.side for row in report.rows}) > 1:
        plot_sides(report, path)
        return
    modes = list(dict.fromkeys(row.mode for row in report.rows))
    figure = require("matplotlib.figure", "train").Figure(figsize=(6.4 * len(modes), 4.2), layout="constrained")
    axes = figure.subplots(1, len(modes), squeeze=False)
    for axis, mode in zip(axes[0], modes, strict=True):
        rows = [row for row in report.rows if row.mode == mode]
        draw = (
            draw_lines if len({row.length for row in rows}) > 1 and len({row.case for row in rows}) > 1 else draw_bars
        )
        draw(axis, rows)
        axis.set_title(mode)
    finish(figure, report, path)


def finish(figure: Any, report: Report, path: Path) -> None:
    """Say where it was measured, and write the file."""
    figure.suptitle(f"{report.title}\n{report.environment['device_name']}, {report.environment['threads']} threads")
    figure.savefig(path, dpi=110)


def plot_sides(report: Report, path: Path) -> None:
    """Images a second, and memory, against the image's side: the shape of Figure 1, with the paper's points beside."""
    figure = require("matplotlib.figure", "train").Figure(figsize=(12, 4.8), layout="constrained")
    speed, memory = figure.subplots(1, 2)
    for name in dict.fromkeys(row.name for row in report.rows):
        rows = sorted((row for row in report.rows if row.name == name), key=lambda row: row.length)
        speed.plot([row.side for row in rows], [row.per_second for row in rows], marker="o", label=name)
        weighed = [row for row in rows if row.extra_bytes is not None]
        memory.plot([row.side for row in weighed], [(row.extra_bytes or 0) / GIB for row in weighed], marker="o")
    for name, (sides, rates, sizes) in FIGURE_1.items():
        style: dict[str, Any] = {"marker": "s", "fillstyle": "none", "linestyle": "--", "color": FIGURE_1_COLOURS[name]}
        speed.plot(sides, rates, label=f"{name}, paper (A100, batch not stated)", **style)
        memory.plot(sides[: len(sizes)], sizes, **style)
    sides = sorted({row.side for row in report.rows if row.side is not None})
    weight = "memory beyond weights and images (GiB)\nthe paper: GPU memory (GB)"
    for axis, label in ((speed, "images a second"), (memory, weight)):
        axis.set(xlabel="side of the image (pixels)", ylabel=label, yscale="log", xscale="log")
        axis.set_xticks(sides, [str(side) for side in sides])
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
    speed.legend(fontsize=8)
    finish(figure, report, path)


def draw_lines(axis: Any, rows: Sequence[Row]) -> None:
    """Median milliseconds against L, both logarithmic, one line a contestant and batch size."""
    for name, items in dict.fromkeys((row.name, row.items) for row in rows):
        points = sorted((row.length, row.seconds * 1e3) for row in rows if (row.name, row.items) == (name, items))
        axis.plot(*zip(*points, strict=True), marker="o", label=f"{name}, batch {items}")
    axis.set(xlabel="tokens L", ylabel="median time (ms)", xscale="log", yscale="log")
    lengths = sorted({row.length for row in rows})
    axis.set_xticks(lengths, [str(length) for length in lengths])
    axis.set_xticks([], minor=True)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def draw_bars(axis: Any, rows: Sequence[Row]) -> None:
    """Median milliseconds of each contestant as logarithmic bars, the first on top."""
    several = len({row.case for row in rows}) > 1
    labels = [f"{row.name} ({row.case})" if several else row.name for row in rows][::-1]
    times = [row.seconds * 1e3 for row in rows][::-1]
    drawn = axis.barh(labels, times)
    axis.bar_label(drawn, fmt="%.3g", padding=3)
    axis.set(xlabel="median time (ms)", xscale="log", xlim=(10 ** math.floor(math.log10(min(times))), max(times) * 4))
