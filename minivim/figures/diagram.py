"""Block diagrams: boxes and arrows, best on a canvas whose unit is an inch: there a text that fits once fits always."""

from typing import Any

from minivim.extras import require
from minivim.figures.style import COLOURS

SIZE = 9  # of the text, in points
Number = float | int
Point = tuple[Number, Number]


def canvas(width: Number, height: Number) -> tuple[Any, Any]:
    """A figure of `width` x `height` inches and its one axis: no frame, from (0, 0) at the bottom left, in inches."""
    figure, axis = require("matplotlib.pyplot", "notebooks").subplots(figsize=(width, height), layout="constrained")
    axis.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axis.axis("off")
    return figure, axis


def box(
    axis: Any, x: Number, y: Number, text: str, width: Number = 1.2, height: Number = 0.45, colour: str = "blue"
) -> None:
    """A box with rounded corners around the middle (x, y), pale inside, its edge in `colour`, with `text` in it.

    `colour` is a name in `COLOURS`, or "white" for a box without colour.

    Raises:
        ValueError: `colour` is not such a name.
    """
    if colour not in {*COLOURS, "white"}:
        raise ValueError(f"colour is {colour!r}; it must be one of {', '.join(COLOURS)}, white")
    edge = COLOURS.get(colour, COLOURS["grey"])
    patches, colours = require("matplotlib.patches", "notebooks"), require("matplotlib.colors", "notebooks")
    inside = colours.to_rgba(edge, 0.18) if colour != "white" else "white"
    corner = x - width / 2, y - height / 2
    shape = f"round,pad=0,rounding_size={min(width, height) / 6}"
    axis.add_patch(
        patches.FancyBboxPatch(corner, width, height, shape, facecolor=inside, edgecolor=edge, linewidth=1.4)
    )
    axis.text(x, y, text, ha="center", va="center", fontsize=SIZE)
    axis.autoscale_view()


def arrow(
    axis: Any,
    start: Point,
    end: Point,
    text: str = "",
    colour: str = "black",
    bend: Number = 0.0,
) -> None:
    """An arrow from `start` to `end`, with `text` on its middle.

    `colour` is a name in `COLOURS`. `bend` is how far the middle stands aside, as a part of the arrow's length: to the
    right of who walks along it where positive.

    Raises:
        ValueError: `colour` is not such a name.
    """
    if colour not in COLOURS:
        raise ValueError(f"colour is {colour!r}; it must be one of {', '.join(COLOURS)}")
    line = {"arrowstyle": "-|>", "color": COLOURS[colour], "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", end, start, arrowprops=line | {"connectionstyle": f"arc3,rad={2 * bend}"})
    (left, low), (right, high) = start, end
    middle = (left + right) / 2 + bend * (high - low), (low + high) / 2 - bend * (right - left)
    if text:
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
        axis.text(*middle, text, ha="center", va="center", fontsize=SIZE, color=COLOURS[colour], bbox=paper)
