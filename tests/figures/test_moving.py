"""The flipbook: frames that turn in a browser, stand still without scripts, and are the same bytes in every run."""

import base64
import io
import re

import pytest

from tests.notebooks.test_lab import chromium  # noqa: F401 (a fixture)

pytest.importorskip("matplotlib", reason="pictures need the extra 'notebooks'")
Image = pytest.importorskip("PIL.Image", reason="pictures need the extra 'notebooks'")

from minivim.figures.moving import HEIGHT, WIDTH, flipbook  # noqa: E402 (after the skips)


def draw(figure, value):
    axis = figure.add_subplot()
    axis.plot([0, value], color="tab:blue")
    axis.set(xlabel="time", ylabel="state", ylim=(0, 5), title=f"value {value}")


@pytest.fixture(scope="module")
def book():
    return flipbook(draw, [1, 2, 3, 4, 5], "a line that rises")


def without_scripts(page):
    return re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


def test_two_runs_give_the_same_bytes(book):
    again = flipbook(draw, (value for value in range(1, 6)), "a line that rises")
    assert again == book and again._repr_html_() == book._repr_html_()


def test_frames_are_small_pictures_of_one_size(book):
    pictures = [Image.open(io.BytesIO(frame)) for frame in book.frames]
    assert {(picture.size, picture.mode, picture.format) for picture in pictures} == {((WIDTH, HEIGHT), "P", "PNG")}
    assert len(set(book.frames)) == 5
    assert max(map(len, book.frames)) < 10_000


def test_a_frame_shows_what_was_drawn(book):
    first, last = (Image.open(io.BytesIO(book.frames[index])).convert("RGB") for index in (0, -1))
    blue = {letter: list(pixels(picture)) for letter, picture in (("first", first), ("last", last))}
    top = {letter: min(row for _, row in places) for letter, places in blue.items()}
    assert top["last"] < HEIGHT / 4 < top["first"]  # 5 is at the top of the axis, 1 is not


def pixels(picture):
    """Where a picture is as blue as the line."""
    for row in range(picture.height):
        for column in range(picture.width):
            red, green, blue = picture.getpixel((column, row))
            if red < 90 and 90 < green < 150 and blue > 150:
                yield column, row


@pytest.mark.parametrize(("count", "shown"), [(2, [1, 2]), (3, [1, 2, 3]), (5, [1, 2, 4, 5]), (12, [1, 5, 8, 12])])
def test_a_page_without_scripts_shows_four_frames_and_says_so(count, shown):
    book = flipbook(draw, range(1, count + 1), "a line that rises")
    page = book._repr_html_()
    still = without_scripts(page)
    stills = re.findall(r'<img alt="a line that rises, frame (\d+) of (\d+)" width="(\d+)%"\s+src="(.*?)"', still)
    assert [(int(index), int(of)) for index, of, _, _ in stills] == [(index, count) for index in shown]
    assert 90 <= sum(int(width) for _, _, width, _ in stills) <= 100
    assert f"{len(shown)} of its {count} frames" in still
    assert "<button" not in still and "<input" not in still
    frames = [base64.b64encode(frame).decode() for frame in book.frames]
    assert [url for _, _, _, url in stills] == [f"data:image/png;base64,{frames[index - 1]}" for index in shown]
    assert all(page.count(frame) == 1 for frame in frames)  # none is stored twice


def test_the_page_needs_no_network(book):
    page = book._repr_html_()
    assert "http" not in page and "//" not in re.sub(r"iVBORw0KGgo[A-Za-z0-9+/=]*", "", page)


def test_a_name_cannot_break_the_page():
    page = flipbook(draw, [1, 2], '"><script>alert(1)</script> & $name')._repr_html_()
    assert "<script>alert" not in page and "&lt;script&gt;" in page and "$name" in page
    assert page.count("<script>") == page.count("</script>") == 1


def test_two_books_do_not_disturb_each_other():
    first, second = (flipbook(draw, [1, 2], name)._repr_html_() for name in ("one", "two"))
    keys = [set(re.findall(r"flipbook-(\w+)", page)) for page in (first, second)]
    assert all(len(each) == 1 for each in keys) and keys[0] != keys[1]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("values", "name", "message"),
    [
        ([], "x", "values has 0 entries; it must have 2 to 60"),
        ([1], "x", "values has 1 entries"),
        (range(61), "x", "values has 61 entries"),
        ([1, 2], " ", "name is ' '; it must say in words"),
    ],
)
def test_mistakes_are_named(values, name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        flipbook(draw, values, name)


@pytest.mark.browser
def test_the_frames_turn_in_a_browser(book, chromium, tmp_path):  # noqa: F811 (a fixture)
    """The page as nbconvert and JupyterLab show it: by hand, by itself, and twice on one page."""
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    path = tmp_path / "page.html"
    path.write_text("<!doctype html><title>x</title>" + 2 * book._repr_html_())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        faults = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(path.as_uri())
        sources = (
            "() => [...document.querySelectorAll('[class^=flipbook]')].map(book => book.lastChild.previousSibling.src)"
        )
        middle, untouched = page.evaluate(sources)
        assert middle == untouched and page.locator("output").all_inner_texts() == ["3 / 5", "3 / 5"]
        assert page.locator("img").count() == 10 and page.locator("img:visible").count() == 2  # the stills are hidden
        page.locator("input").first.fill("4")
        assert page.locator("output").all_inner_texts() == ["5 / 5", "3 / 5"]
        assert page.evaluate(sources)[0] != middle and page.evaluate(sources)[1] == middle
        page.locator("button").first.click()
        page.wait_for_function("() => document.querySelector('output').textContent == '2 / 5'")  # past the end
        page.locator("button").first.click()
        assert page.locator("button").all_inner_texts() == ["play", "play"]
        still = browser.new_context(java_script_enabled=False).new_page()
        still.goto(path.as_uri())
        assert still.locator("img:visible").count() == 8 and still.locator("button").count() == 0
        browser.close()
    assert faults == []
