"""The course's notebooks: fresh, executed, small, honest. `pytest --nbval notebooks/` compares what they compute."""

import base64
import copy
import io
import json
import re
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

Image = pytest.importorskip("PIL.Image", reason="the notebooks need the extra 'notebooks'")

from minivim.figures.moving import flipbook  # noqa: E402 (after the skip)
from tests.notebooks.stored import (  # noqa: E402 (after the skip)
    CHECK,
    FIGURE,
    FLIPBOOK,
    IGNORED,
    NOTEBOOKS,
    PICTURE,
    ROOT,
    SOLUTIONS,
    build,
    code_cells,
    compared,
    drawing_code,
    flipbooks,
    lines,
    nbformat,
    shows_figure,
    text_of,
)  # fmt: skip

LESSONS = NOTEBOOKS[1:]  # 00 has nothing that must move
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS, ids=lambda path: path.stem)


# ---- the notebooks as they are stored --------------------------------------------------------------------------------


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} == {path.stem for path in build.sources()} != set()


def test_no_notebook_is_stale():
    assert build.stale() == []


@each_notebook
def test_is_valid_and_small(path):
    nbformat.validate(json.loads(path.read_text()))
    assert path.stat().st_size <= 700_000


@each_notebook
def test_was_executed_from_top_to_bottom(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@each_notebook
def test_stores_no_error_warning_or_svg(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", cell.source
            assert "image/svg+xml" not in output.get("data", {}), cell.source
        assert not re.search(r"Traceback|Warning", text_of(cell)), cell.source


VARIABLE = {
    "a time": r"\d\s?(ns|µs|us|ms|s|sec|seconds|min)\b",
    "a version": r"\b\d+\.\d+\.\d+",
    "an address": r"0x[0-9a-fA-F]{6,}",
    "a path": r"(?<![\w.])/(home|tmp|work|usr|Users)/",
    "a raw tensor or array": r"tensor\(|array\(",
    "the repr of an object": r"<\w+[\w.]* (object )?at |\bModule\(",
}


def significant_digits(number):
    return len(re.sub(r"[eE].*$", "", number).replace(".", "").lstrip("0"))


@each_notebook
def test_stored_text_does_not_vary(path):
    for cell in filter(compared, code_cells(path)):
        text = text_of(cell)
        for what, pattern in VARIABLE.items():
            assert not re.search(pattern, text), f"{what} in the output of:\n{cell.source}\n\n{text}"
        for number in re.findall(r"\d*\.\d+(?:[eE][+-]?\d+)?", text):
            assert significant_digits(number) <= 3, f"{number} in the output of:\n{cell.source}"


@each_notebook
def test_few_cells_are_volatile(path):
    cells = code_cells(path)
    assert sum(not compared(cell) for cell in cells) <= len(cells) / 5


@each_notebook
def test_what_varies_is_not_stored(path):
    assert all(compared(cell) or cell.outputs == [] for cell in code_cells(path))


@each_notebook
def test_cells_are_short(path):
    lengths = [len(lines(cell)) for cell in code_cells(path)]
    assert statistics.median(lengths) <= 8
    assert max(lengths) <= 40


@each_notebook
def test_a_third_of_the_cells_checks_something(path):
    cells = code_cells(path)
    assert sum(bool(CHECK.search(cell.source)) for cell in cells) >= 0.3 * len(cells)


@each_notebook
def test_figures_have_labels_and_a_number(path):
    cells = code_cells(path)
    for cell in filter(shows_figure, cells):
        code = drawing_code(cell, cells)
        picture_only = 'axis("off")' in code or "canvas(" in code
        assert picture_only or ("xlabel" in code and "ylabel" in code), cell.source
        assert re.search(r"\d", text_of(cell)), f"a figure without a printed number:\n{cell.source}"


@each_notebook
def test_a_figure_is_followed_by_what_to_see(path):
    cells = nbformat.read(path, as_version=4).cells
    for cell, following in pairwise(cells):
        if cell.cell_type == "code" and shows_figure(cell):
            assert following.cell_type == "markdown" and "**What to see.**" in following.source, cell.source


@each_notebook
def test_flipbooks_are_small_and_need_no_network(path):
    pages = [page for cell in code_cells(path) for page in flipbooks(cell)]
    for page in pages:
        assert "//" not in PICTURE.sub("", page)
        frames = [base64.b64decode(frame) for frame in PICTURE.findall(page)]
        assert 2 < len(frames) <= 31
        assert {Image.open(io.BytesIO(frame)).size for frame in frames} == {(480, 260)}
    assert len({re.search(FLIPBOOK + "(\\w+)", page)[1] for page in pages}) == len(pages), "two share a name"


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_has_pictures_and_one_of_them_moves(path):
    figures = [cell for cell in code_cells(path) if shows_figure(cell)]
    assert len(figures) >= 3
    assert any(flipbooks(cell) for cell in figures)


@each_notebook
def test_opens_with_goals_and_ends_with_reading(path):
    cells = nbformat.read(path, as_version=4).cells
    for part in ("Learning goals", "Prerequisites", "Time"):
        assert part in cells[0].source
    assert "Further reading" in cells[-1].source


def wrong_cells(solved, learner):
    """The cells of a solved notebook that print something else than those of the open one, or fail their checker."""
    pairs = zip(code_cells(solved), code_cells(learner), strict=True)
    wrong = []
    for ours, theirs in pairs:
        checked = "[todo]" in text_of(theirs)
        right = "[ok]" in text_of(ours) if checked else text_of(ours) == text_of(theirs) or not compared(theirs)
        wrong += [] if right else [ours.source]
    return wrong


def test_the_map_links_every_chapter():
    text = "\n".join(cell.source for cell in nbformat.read(NOTEBOOKS[0], as_version=4).cells)
    assert re.findall(r"\]\((\w+\.ipynb)\)", text) == [path.name for path in NOTEBOOKS[1:]]


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_a_solution_prints_what_the_open_notebook_prints(path):
    """Nbval runs the open notebooks only; this carries its verdict over to the solved ones."""
    assert wrong_cells(path, path.parents[1] / path.name) == []


# ---- nbval notices a changed number ----------------------------------------------------------------------------------


def altered_cut(notebook):
    """The notebook up to the first number that nbval compares, with that number changed."""
    cut = copy.deepcopy(notebook)
    cut.cells = [cell for cell in cut.cells if cell.cell_type == "code"]
    for index, cell in enumerate(cut.cells):
        for output in cell.outputs:
            if compared(cell) and output.output_type == "stream" and re.search(r"\d", output.text):
                output.text = re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), output.text, count=1)
                cut.cells = cut.cells[: index + 1]
                return cut
    raise AssertionError("the notebook prints no number")


def run_nbval(folder):
    """The outcome of every cell under this project's own pytest configuration, by notebook."""
    command = [sys.executable, "-m", "pytest", "--nbval", "-p", "conftest", "-p", "no:cacheprovider", "-rA", "-q"]
    run = subprocess.run([*command, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=600)
    outcomes = {}
    for outcome, name in re.findall(r"^(PASSED|FAILED|ERROR|XFAIL|XPASS) (?:\S*/)?(\S+?\.ipynb)::", run.stdout, re.M):
        outcomes.setdefault(Path(name).stem, []).append(outcome)
    assert outcomes, run.stdout + run.stderr
    return outcomes


@pytest.fixture(scope="module")
def outcomes_of_altered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("altered")
    for path in NOTEBOOKS:
        nbformat.write(altered_cut(nbformat.read(path, as_version=4)), folder / path.name)
    return run_nbval(folder)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nbval_sees_an_altered_number(path, outcomes_of_altered):
    outcomes = outcomes_of_altered[path.stem]
    assert outcomes.count("FAILED") == 1
    assert len(outcomes) == len(altered_cut(nbformat.read(path, as_version=4)).cells)


def test_nbval_compares_a_flipbook_but_not_its_pictures(tmp_path):
    page = flipbook(lambda figure, value: figure.add_subplot().plot([0, value]), [1, 2], "a line")._repr_html_()
    other = flipbook(lambda figure, value: figure.add_subplot().plot([value, 0]), [1, 2], "a line")._repr_html_()
    assert other != page
    notebook = nbformat.v4.new_notebook(metadata=build.METADATA)
    for stored in (page, other, page.replace("a line", "a circle")):
        shown = nbformat.v4.new_output("execute_result", data={"text/html": stored}, execution_count=1)
        cell = nbformat.v4.new_code_cell(f"from IPython.display import HTML\nHTML({page!r})", execution_count=1)
        cell.outputs = [
            shown,
        ]
        shown.data["text/plain"] = "<IPython.core.display.HTML object>"
        notebook.cells.append(cell)
    nbformat.write(notebook, tmp_path / "books.ipynb")
    assert run_nbval(tmp_path)["books"] == ["PASSED", "PASSED", "FAILED"]


# ---- the machinery ---------------------------------------------------------------------------------------------------

TOY = '''\
# %% [markdown]
# # A toy

# %%
import time

import numpy as np
import matplotlib.pyplot as plt
from tqdm.auto import tqdm

numbers = np.random.default_rng(0).normal(size=100)
print(f"{numbers.mean():.2f}")
time.sleep(0.5)
print("after a pause")

# %% tags=["nbval-ignore-output"]
started = time.perf_counter()
print(started)
plt.plot([0, started])
plt.show()

# %%
for _ in tqdm(range(3)):
    pass
plt.plot(numbers)
plt.show()

# %%
def double(x):
    """Twice x."""
    # BEGIN SOLUTION
    y = x + x
    return y
    # END SOLUTION

# %%
try:
    print("[ok]", double(2))
except NotImplementedError:
    print("[todo]")
'''


@pytest.fixture
def toy(tmp_path):
    source = tmp_path / "src" / "01_toy.py"
    source.parent.mkdir()
    source.write_text(TOY)
    return source


def test_build_opens_and_solves_the_exercises(toy, tmp_path):
    learner, solved = build.build(toy)
    assert (learner, solved) == (tmp_path / "01_toy.ipynb", tmp_path / "solutions" / "01_toy.ipynb")
    exercise = 'def double(x):\n    """Twice x."""\n    '
    assert code_cells(learner)[3].source == exercise + 'raise NotImplementedError("your turn")'
    assert code_cells(solved)[3].source == exercise + "y = x + x\n    return y"
    assert (text_of(code_cells(learner)[4]), text_of(code_cells(solved)[4])) == ("[todo]\n", "[ok] 4\n")
    assert wrong_cells(solved, learner) == []
    assert len(code_cells(learner)[0].outputs) == 1  # the pause has not cut it in two
    assert code_cells(learner)[1].metadata == {"tags": [IGNORED]}
    assert code_cells(learner)[1].outputs == []  # a time is neither printed nor drawn
    assert len(code_cells(learner)[2].outputs) == 1  # the progress bar is gone, the figure is there
    assert shows_figure(code_cells(learner)[2])
    assert Image.open(io.BytesIO(base64.b64decode(code_cells(learner)[2].outputs[0].data[FIGURE]))).mode == "P"


@pytest.mark.parametrize(("index", "text"), [(0, "0.5"), (4, "[fix]")], ids=["another number", "not solved"])
def test_a_wrong_solution_is_found(toy, index, text):
    learner, solved = build.products(toy)
    for path, words in ((learner, ["0.1", "[todo]"]), (solved, ["0.1", "[ok]"])):
        notebook = build.read_source(toy, solved=path == solved)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for cell, word in zip((cells[0], cells[4]), words, strict=True):
            cell.outputs = [nbformat.v4.new_output("stream", text=word)]
        if path == solved:
            assert wrong_cells_after_writing(notebook, path, learner) == []
            cells[index].outputs = [nbformat.v4.new_output("stream", text=text)]
            assert wrong_cells_after_writing(notebook, path, learner) == [cells[index].source]
        else:
            nbformat.write(notebook, path)


def wrong_cells_after_writing(notebook, path, learner):
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    return wrong_cells(path, learner)


def test_build_gives_the_same_bytes_twice(toy):
    first = [path.read_bytes() for path in build.build(toy)]
    assert [path.read_bytes() for path in build.build(toy)] == first


@pytest.mark.parametrize(
    ("old", "new"),
    [("x + x", "2 * x"), ("# # A toy", "# # A game"), (f'tags=["{IGNORED}"]', ""), ("\n# %%\ntry", "\ntry")],
)
def test_an_edited_source_makes_its_notebooks_stale(toy, old, new):
    for target, notebook in build.products(toy).items():
        target.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, target)
    stored = build.products(toy)
    assert not any(build.is_stale(target, notebook) for target, notebook in stored.items())
    toy.write_text(TOY.replace(old, new))
    assert any(build.is_stale(target, notebook) for target, notebook in build.products(toy).items())


@pytest.mark.parametrize(
    "code",
    [
        "# BEGIN SOLUTION\nx = 1\n# END SOLUTION",
        "def f():\n    # BEGIN SOLUTION\n    return 1",
        "def f():\n    return 1\n    # END SOLUTION",
        "def f():\n    # BEGIN SOLUTION\n    # BEGIN SOLUTION\n    return 1\n    # END SOLUTION",
    ],
    ids=["outside a function", "no end", "no begin", "nested"],
)
def test_a_misplaced_marker_is_refused(code):
    with pytest.raises(ValueError, match="SOLUTION|inside a function"):
        build.split_solution(code)


def test_an_unknown_notebook_is_refused():
    with pytest.raises(ValueError, match="no notebook is called '77'"):
        build.sources(["77"])


@pytest.mark.parametrize(
    "text",
    ["took 3.1 ms", "12 s", "torch 2.13.0", "at 0x7f01ab23", "/usr/ada/x.py", "tensor([1])", "<a.B object at 0x1>"],
)
def test_what_varies_is_recognised(text):
    assert any(re.search(pattern, text) for pattern in VARIABLE.values())


@pytest.mark.parametrize(("number", "digits"), [("0.99", 2), ("1.234", 4), ("0.00123", 3), ("1.5e-07", 2)])
def test_significant_digits(number, digits):
    assert significant_digits(number) == digits
