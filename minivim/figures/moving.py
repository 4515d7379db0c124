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
from minivim.figures.style import with_palette

WIDTH, HEIGHT, DPI = 480, 260, 75  # pixels, pixels, pixels per inch
PALETTE = 64  # colours of a frame: enough for lines and text with smooth edges, a third of the bytes of all colours
MOST_FRAMES = 60

STILL = 4  # frames that a page without scripts shows

# The HTML is what a page without scripts shows: a few frames. The script hides them and adds a picture with controls.
# It takes those frames from there, so that none is stored twice. Widths are attributes because JupyterLab takes styles
# away from a notebook that is not trusted yet.
# All books of the class are set up, not the script's neighbour, because front ends move scripts.
PAGE = Template("""\
<div class="flipbook-$key" style="max-width: ${width}px">
<div>
$stills
<p>This picture moves where scripts run. Here stand $count of its $all frames, side by side.</p>
</div>
</div>
<script>
(() => {
  const others = $others;
  for (const book of document.querySelectorAll(".flipbook-$key:not([data-ready])")) {
    book.dataset.ready = "yes";
    const stills = [...book.querySelectorAll("img")].map((image) => image.src);
    const pictures = others.map((other) => other ? "data:image/png;base64," + other : stills.shift());
    book.firstElementChild.style.display = "none";
    const image = document.createElement("img");
    image.alt = $name;
    image.style.maxWidth = "100%";
    const bar = document.createElement("div");
    bar.style.cssText = "display: flex; gap: 8px; align-items: center";
    bar.innerHTML = '<button type="button"></button><input type="range" min="0" style="flex: 1"><output></output>';
    const [button, slider, count] = bar.children;
    slider.max = pictures.length - 1;
    slider.value = $middle;
    slider.setAttribute("aria-label", image.alt);
    let timer = null;
    const show = () => {
      image.src = pictures[slider.value];
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
    book.append(image, bar);
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
        """Self-contained HTML; without scripts it is four frames side by side, or all if there are fewer."""
        pictures = [base64.b64encode(frame).decode() for frame in self.frames]
        last, count = len(pictures) - 1, min(STILL, len(pictures))
        shown = [round(part * last / (count - 1)) for part in range(count)]
        name = html.escape(self.name)
        stills = [
            f'<img alt="{name}, frame {index + 1} of {len(pictures)}" width="{96 // count}%"'
            f' src="data:image/png;base64,{pictures[index]}">'
            for index in shown
        ]
        return PAGE.substitute(
            key=hashlib.sha256(self.name.encode()).hexdigest()[:8],
            width=WIDTH,
            stills="\n".join(stills),
            count=count,
            all=len(pictures),
            others=json.dumps(["" if index in shown else picture for index, picture in enumerate(pictures)]),
            name=json.dumps(self.name).replace("<", "\\u003c"),
            middle=len(pictures) // 2,
        )


def draw_frame(draw: Callable, value: object) -> bytes:
    """The figure that `draw(figure, value)` fills, as a PNG of WIDTH x HEIGHT pixels with a small palette."""
    figure = require("matplotlib.figure", "notebooks").Figure(
        figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, layout="constrained"
    )
    draw(figure, value)
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=DPI)
    return with_palette(raw.getvalue(), PALETTE)


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
