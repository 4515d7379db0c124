"""Block diagrams: boxes stand where they are put, arrows end where they should, words are there."""

import io
import re

import numpy as np
import pytest

plt = pytest.importorskip("matplotlib.pyplot", reason="pictures need the extra 'notebooks'")

from minivim.figures import COLOURS, arrow, box, canvas  # noqa: E402 (after the skip)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def drawn(figure):
    """The pixels of a figure, (rows, columns, 3) between 0 and 1, 100 to the inch."""
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=100)
    return plt.imread(io.BytesIO(raw.getvalue()))[..., :3]


def is_like(pixels, colour, tolerance=0.1):
    """Where the pixels have that colour, "#RRGGBB"."""
    rgb = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.abs(pixels - rgb).max(-1) < tolerance


def test_a_box_stands_where_it_is_put_in_inches():
    figure, axis = canvas(4, 2)
    box(axis, 1, 1.5, "scan", width=1.2, height=0.5, colour="red")
    rows, columns = is_like(drawn(figure), COLOURS["red"]).nonzero()
    edges = np.array([columns.min(), columns.max(), rows.min(), rows.max()]) / 100
    assert np.abs(edges - [0.4, 1.6, 0.25, 0.75]).max() < 0.08  # rows count from the top
    assert [text.get_text() for text in axis.texts] == ["scan"]


@pytest.mark.parametrize(("bend", "aside"), [(0, 0), (0.2, 0.4), (-0.2, -0.4)])
def test_an_arrow_leads_from_start_to_end_past_its_text(bend, aside):
    figure, axis = canvas(4, 2)
    arrow(axis, (1, 1), (3, 1), "u", colour="blue", bend=bend)
    rows, columns = is_like(drawn(figure), COLOURS["blue"], 0.2).nonzero()
    assert abs(columns.min() - 100) < 8 and abs(columns.max() - 300) < 8
    last = axis.texts[-1]
    assert last.get_text() == "u" and last.get_position() == pytest.approx((2, 1 - aside))
    near = [row for row, column in zip(rows, columns, strict=True) if 180 < column < 220]
    assert abs(np.mean(near) - 100 * (1 + aside)) < 8  # the line passes where the text is


def test_an_axis_of_ones_own_makes_room_for_a_box():
    _, axis = plt.subplots()
    box(axis, 10, 10, "far", width=2, height=1)
    assert axis.get_xlim()[0] <= 9 and axis.get_xlim()[1] >= 11


def test_unknown_colours_are_named():
    _, axis = canvas(2, 2)
    sentence = re.escape("colour is 'pink'; it must be one of blue, orange")
    with pytest.raises(ValueError, match=sentence):
        box(axis, 1, 1, "x", colour="pink")
    with pytest.raises(ValueError, match=sentence):
        arrow(axis, (0, 0), (1, 1), colour="pink")
