"""What a benchmark found: as rows, as a table, as JSON and as a picture."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minivim.bench.measure import Rounds
from minivim.extras import require

MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One contestant in one contest.

    case: the contest's size in words; length: tokens L; mode: what was timed; seconds: the median of one call;
    spread: (upper quartile - lower quartile) / median; ratio: median / the first contestant's median;
    extra_bytes: the most memory beyond the inputs, None if not measured; error: the largest difference from the
    reference over the reference's largest value, None for a yardstick, which computes something else;
    items: the batch size.
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

    @property
    def per_second(self) -> float:
        """Batch items in a second."""
        return self.items / self.seconds


@dataclass(frozen=True)
class Report:
    """A whole benchmark: its rows, where they were measured, and how quiet the machine was."""

    title: str
    environment: dict
    rounds: int
    discarded: int
    noisy_kept: int
    gated: bool
    rows: list[Row]

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
    """Time against the number of tokens, one panel a mode; bars where there is only one size."""
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
    figure.suptitle(f"{report.title}\n{report.environment['device_name']}, {report.environment['threads']} threads")
    figure.savefig(path, dpi=110)


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
