"""Pictures that move: a flipbook of frames with a slider, which needs no server, no network and no widget."""

import base64
import hashlib
import html
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from string import Template

from minivim.extras import require

WIDTH, HEIGHT, DPI = 480, 260, 75  # pixels, pixels, pixels per inch
COLOURS = 64  # of a frame's palette: enough for lines and text with smooth edges, a third of the bytes of all colours
MOST_FRAMES = 60

# The picture stands in the HTML and only the script adds the controls: a page that runs no scripts shows a picture
# and no dead buttons. All books of the class are set up, not the script's neighbour, because front ends move scripts.
PAGE = Template("""\
<div class="flipbook-$key" style="max-width: ${width}px">
<img alt="$name" src="data:image/png;base64,$shown" style="max-width: 100%">
</div>
<script>
(() => {
  const pictures = $pictures;
  for (const book of document.querySelectorAll(".flipbook-$key:not([data-ready])")) {
    book.dataset.ready = "yes";
    const image = book.querySelector("img");
    const bar = document.createElement("div");
    bar.style.cssText = "display: flex; gap: 8px; align-items: center";
    bar.innerHTML = '<button type="button"></button><input type="range" min="0" style="flex: 1"><output></output>';
    const [button, slider, count] = bar.children;
    slider.max = pictures.length - 1;
    slider.value = $middle;
    slider.setAttribute("aria-label", image.alt);
    let timer = null;
    const show = () => {
      image.src = "data:image/png;base64," + pictures[slider.value];
      count.textContent = (Number(slider.value) + 1) + " / " + pictures.length;
    };
    const stop = () => { clearInterval(timer); timer = null; button.textContent = "play"; };
    const turn = () => {
      if (!book.isConnected) stop();
      slider.value = (Number(slider.value) + 1) % pictures.length;
      show();
    };
    button.onclick = () => {
      if (timer) return stop();
      timer = setInterval(turn, 300);
      button.textContent = "pause";
    };
    slider.oninput = () => { stop(); show(); };
    book.append(bar);
    stop();
    show();
  }
})();
</script>
""")


@dataclass(frozen=True)
class Flipbook:
    """Frames (PNG files) that a notebook shows as one picture with a slider and a play button."""

    name: str
    frames: tuple[bytes, ...]

    def __repr__(self) -> str:
        return f"Flipbook({self.name!r})"

    def _repr_html_(self) -> str:
        """Self-contained HTML; without scripts it is the picture in the middle."""
        pictures = [base64.b64encode(frame).decode() for frame in self.frames]
        middle = len(pictures) // 2
        return PAGE.substitute(
            key=hashlib.sha256(self.name.encode()).hexdigest()[:8],
            name=html.escape(self.name),
            width=WIDTH,
            shown=pictures[middle],
            pictures=json.dumps(pictures),
            middle=middle,
        )


def with_palette(picture: bytes, colours: int) -> bytes:
    """A PNG with that many colours at most: a drawing looks the same at a third of the bytes."""
    image, small = require("PIL.Image", "notebooks").open(io.BytesIO(picture)), io.BytesIO()
    image.convert("RGB").quantize(colours, dither=0).save(small, "PNG", optimize=True)
    return small.getvalue()


def draw_frame(draw: Callable, value: object) -> bytes:
    """The figure that `draw(figure, value)` fills, as a PNG of WIDTH x HEIGHT pixels with a small palette."""
    figure = require("matplotlib.figure", "notebooks").Figure(
        figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, layout="constrained"
    )
    draw(figure, value)
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=DPI)
    return with_palette(raw.getvalue(), COLOURS)


def flipbook(draw: Callable, values: Iterable, name: str) -> Flipbook:
    """A picture with a slider and a play button, one frame for each of `values`.

    `draw(figure, value)` draws one frame into an empty matplotlib Figure of 480 x 260 pixels. `name` says in words what
    is shown; it is the text for who cannot see the picture, and no two flipbooks of a notebook may share it. Twelve to
    twenty frames look smooth and take about 100 KB. In a notebook the flipbook is the last expression of a cell.

    Raises:
        ValueError: `values` has fewer than 2 or more than 60 entries, or `name` is empty.
    """
    values = list(values)
    if not 2 <= len(values) <= MOST_FRAMES:
        raise ValueError(f"values has {len(values)} entries; it must have 2 to {MOST_FRAMES}, one a frame")
    if not name.strip():
        raise ValueError(f"name is {name!r}; it must say in words what the flipbook shows")
    return Flipbook(name, tuple(draw_frame(draw, value) for value in values))
