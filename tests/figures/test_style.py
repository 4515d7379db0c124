"""The style: colours that everyone tells apart, figures with alt texts, the same bytes in every run."""

import base64
import io
import itertools
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

plt = pytest.importorskip("matplotlib.pyplot", reason="pictures need the extra 'notebooks'")
Image = pytest.importorskip("PIL.Image", reason="pictures need the extra 'notebooks'")

from minivim.figures import COLOURS, Picture, show, use_style  # noqa: E402 (after the skips)

# What a reader without one kind of cones sees, of linear RGB. Source: Machado, Oliveira, Fernandes (2009), severity 1.
SEEN = {
    "all cones": np.eye(3),
    "no red cones": np.array([
        [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]
    ]),
    "no green cones": np.array([
        [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]
    ]),
}  # fmt: skip
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


@pytest.fixture(autouse=True)
def own_style():
    with plt.rc_context():
        yield
    plt.close("all")


def lightness_and_hue(colour, cones):
    """CIE L*a*b* of a colour "#RRGGBB" as such a reader sees it; a distance of 2 is just visible."""
    rgb = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(cones @ linear, 0, 1) / (TO_XYZ @ np.ones(3))
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("cones", SEEN)
def test_everyone_tells_the_colours_apart(cones):
    seen = {name: lightness_and_hue(colour, SEEN[cones]) for name, colour in COLOURS.items()}
    distances = {pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]) for pair in itertools.combinations(seen, 2)}
    assert min(distances.values()) > 12, min(distances, key=distances.get)


def test_the_style_is_chosen():
    use_style()
    figure, axis = plt.subplots()
    colours = [axis.plot([0, 1])[0].get_color() for _ in COLOURS]
    assert colours == [*COLOURS.values()]
    assert figure.dpi == 100 and figure.get_constrained_layout()
    assert axis.xaxis.get_gridlines()[0].get_visible()


def curve():
    use_style()
    figure, axis = plt.subplots(figsize=(4, 2))
    axis.plot([0, 1, 4, 9])
    return figure


def test_a_notebook_gets_a_png_with_its_alt_text(monkeypatch):
    shown = []
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=shown.append))
    figure = curve()
    show(figure, 'a curve "rises" & 1 < 2')
    show(curve(), 'a curve "rises" & 1 < 2')
    assert plt.get_fignums() == []
    assert shown[0] == shown[1]
    picture = Image.open(io.BytesIO(shown[0].png))
    assert (picture.size, picture.mode, picture.format) == ((400, 200), "P", "PNG")
    page = shown[0]._repr_html_()
    assert '<img alt="a curve &quot;rises&quot; &amp; 1 &lt; 2" ' in page
    assert base64.b64decode(re.search('src="data:image/png;base64,(.*?)"', page)[1]) == shown[0].png
    assert "//" not in page.partition("base64")[0]


def test_outside_a_notebook_the_alt_text_is_printed():
    """In a process of its own, because a test may have loaded IPython."""
    code = (
        "import sys, matplotlib; matplotlib.use('agg')\n"
        "import matplotlib.pyplot as plt; from minivim.figures import show\n"
        "show(plt.figure(), 'nothing yet'); assert not plt.get_fignums() and 'IPython.display' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout == "Picture('nothing yet')\n"
    assert repr(Picture("a", b"png")) == "Picture('a')"


@pytest.mark.parametrize("alt", ["", " \n"])
def test_a_figure_without_words_is_refused(alt):
    with pytest.raises(ValueError, match=re.escape(f"alt is {alt!r}; it must say in words what the figure shows")):
        show(curve(), alt)
