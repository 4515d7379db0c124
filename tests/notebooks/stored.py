"""The stored notebooks, and what their cells hold: for the tests beside this file."""

import html
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("nbclient", reason="the notebooks need the extra 'notebooks'")
nbformat = pytest.importorskip("nbformat", reason="the notebooks need the extra 'notebooks'")
pytest.importorskip("jupytext", reason="the notebooks need the extra 'notebooks'")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "notebooks"))
import build as build  # noqa: E402 (a script beside the notebooks, not part of the package; passed on)

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
IGNORED = "nbval-ignore-output"
CHECK = re.compile(r"\bassert\b|\bassert_close\(|\bcheck\(")
FIGURE = "image/png"
FLIPBOOK = 'class="flipbook-'
PICTURE = re.compile(r"iVBORw0KGgo[A-Za-z0-9+/=]*")


def code_cells(path):
    """A stored notebook's cells of code."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def text_of(cell):
    """What a cell printed or returned, as text."""
    outputs = [output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "\n".join(text for text in outputs if not text.startswith(("<Figure size", "Flipbook(", "Picture(")))


def compared(cell):
    return IGNORED not in cell.metadata.get("tags", [])


def flipbooks(cell):
    """The HTML of the flipbooks that a cell shows."""
    pages = [output.get("data", {}).get("text/html", "") for output in cell.outputs]
    return [page for page in pages if FLIPBOOK in page]


def pictures(cell):
    """The alt texts of the pictures that a cell shows with `show`."""
    pages = [output.get("data", {}).get("text/html", "") for output in cell.outputs]
    return [
        html.unescape(alt) for page in pages if FLIPBOOK not in page for alt in re.findall(r'<img alt="(.*?)"', page)
    ]


def shows_figure(cell):
    bare = any(FIGURE in output.get("data", {}) for output in cell.outputs)
    return bare or bool(flipbooks(cell)) or bool(pictures(cell))


def drawing_code(cell, cells):
    """The cell, with the cell that defines the function which draws its flipbook's frames."""
    drawer = re.search(r"\bflipbook\(\s*(\w+)", cell.source)
    defining = [each.source for each in cells if drawer and f"def {drawer[1]}(" in each.source]
    return "\n".join([cell.source, *defining])


def lines(cell):
    return [line for line in cell.source.splitlines() if line.strip()]
