"""The one style of the course's figures: `use_style` chooses it, `show` displays a figure with its alt text."""

import base64
import html
import io
import sys
from dataclasses import dataclass
from typing import Any

from minivim.extras import require

DPI = 100
PALETTE = 256  # colours that a still picture keeps: nobody sees the difference, and it is a third of the bytes
# Colours that colour-blind readers tell apart. Source: Okabe and Ito, Color Universal Design (2008); brown and grey,
# which are darker and duller than all of theirs, are ours.
COLOURS = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "red": "#D55E00",
    "purple": "#CC79A7",
    "brown": "#5C3A12",
    "grey": "#6E6E6E",
    "black": "#000000",
}


@dataclass(frozen=True)
class Picture:
    """A PNG file and what it shows in words; a notebook displays it as an image with that alt text."""

    alt: str
    png: bytes

    def __repr__(self) -> str:
        return f"Picture({self.alt!r})"

    def _repr_html_(self) -> str:
        """HTML, because JupyterLab gives no alt text to an output of type image/png, whatever its metadata say."""
        data = base64.b64encode(self.png).decode()
        return f'<img alt="{html.escape(self.alt)}" src="data:image/png;base64,{data}" style="max-width: 100%">'


def use_style() -> None:
    """Choose the course's style for all figures that follow: 100 dpi, the colours in `COLOURS`, a light grid.

    Raises:
        ImportError: matplotlib is missing; the message names the extra to install.
    """
    matplotlib = require("matplotlib", "notebooks")
    matplotlib.rcParams.update(
        {
            "figure.dpi": DPI,
            "figure.figsize": (6.4, 3.2),
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.prop_cycle": matplotlib.cycler(color=[*COLOURS.values()]),
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.alpha": 0.3,
            "legend.fontsize": 9,
            "legend.framealpha": 0.85,
            "legend.edgecolor": "white",
            "lines.linewidth": 1.8,
            "image.cmap": "cividis",
        }
    )


def show(figure: Any, alt: str) -> None:
    """Display a matplotlib figure as a PNG with the alt text `alt`, and close it; the last word of a figure's cell.

    Outside a notebook there is nobody to show it to: then the alt text is printed.

    Raises:
        ValueError: `alt` is empty; it must say in words what the figure shows.
    """
    if not alt.strip():
        raise ValueError(f"alt is {alt!r}; it must say in words what the figure shows")
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=figure.dpi)
    require("matplotlib.pyplot", "notebooks").close(figure)  # else the notebook would show it a second time
    notebook = sys.modules.get("IPython.display")  # every notebook has loaded it, and nothing else needs it
    (notebook.display if notebook else print)(Picture(alt, with_palette(raw.getvalue(), PALETTE)))


def with_palette(picture: bytes, colours: int) -> bytes:
    """A PNG with that many colours at most: a drawing looks the same at a third of the bytes."""
    image, small = require("PIL.Image", "notebooks").open(io.BytesIO(picture)), io.BytesIO()
    image.convert("RGB").quantize(colours, dither=0).save(small, "PNG", optimize=True)
    return small.getvalue()
