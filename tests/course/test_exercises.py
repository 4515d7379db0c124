"""Every checker tells solution, stub and planted wrong answers apart; every exercise is written in the same form."""

import ast
import importlib
import json
import re
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from minivim.course.exercises.finding import exercises_of
from minivim.course.exercises.judging import judge
from minivim.course.grade.wire import decode, encode

nbformat = pytest.importorskip("nbformat", reason="the notebooks need the extra 'notebooks'")
pytest.importorskip("jupytext", reason="the notebooks need the extra 'notebooks'")
pytest.importorskip("nbclient", reason="the notebooks need the extra 'notebooks'")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "notebooks"))
import build  # noqa: E402 (a script beside the notebooks, not part of the package)

SOURCES = {path.stem[:2]: path for path in build.sources()}
MODULES = {path.stem[-2:]: path for path in (ROOT / "minivim" / "course" / "exercises").glob("chapter[0-9][0-9].py")}
REGISTERED = {chapter: re.findall(r'@exercise\(\s*"(\d\d\.\d+)"', MODULES[chapter].read_text()) for chapter in MODULES}
NUMBERS = [number for chapter in sorted(REGISTERED) for number in REGISTERED[chapter]]
FEWEST = dict.fromkeys(SOURCES, 4) | {f"0{chapter}": 5 for chapter in range(1, 5)}
FEWEST |= {"00": 0, "05": 9, "06": 8, "07": 7, "08": 6, "09": 8}  # 00 comes before the first chapter
FEWEST_WRONG = 4  # planted answers to each exercise
SINGLE = {torch.float64: torch.float32, torch.complex128: torch.complex64}
DIFFICULTIES = ["recall", "derive", "build", "investigate"]
CHECK = re.compile(r'check\("(\d\d\.\d+)", (\w+)\)')
each_exercise = pytest.mark.parametrize("number", NUMBERS)
each_chapter = pytest.mark.parametrize("chapter", sorted(set(SOURCES) | set(MODULES)))


@cache
def cells(chapter, solved=False):
    return build.read_source(SOURCES[chapter], solved=solved).cells


def exercises_in(chapter):
    """(number, function's name, index of the check's cell) of every exercise in the notebook."""
    calls = [(CHECK.fullmatch(cell.source.strip()), index) for index, cell in enumerate(cells(chapter))]
    return [(call[1], call[2], index) for call, index in calls if call]


def find(number):
    """The function's name and the indices of the exercise's three cells: task, answer, check."""
    [(name, index)] = [(name, index) for each, name, index in exercises_in(number[:2]) if each == number]
    return name, index - 2, index - 1, index


@cache
def first_cell(chapter):
    """The names that a notebook's first code cell defines, and the type of new tensors that it chooses."""
    before, names = torch.get_default_dtype(), {}
    exec(next(cell for cell in cells(chapter) if cell.cell_type == "code").source, names)
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(before)
    return names, dtype


@pytest.fixture(autouse=True)
def notebook_dtype(request):
    """A test of an exercise makes new tensors of the type that its notebook does."""
    before, number = torch.get_default_dtype(), getattr(request.node, "callspec", None)
    number = number and number.params.get("number")
    if number:
        torch.set_default_dtype(first_cell(number[:2])[1])
    yield
    torch.set_default_dtype(before)


def function(number, solved):
    """The learner's function, from nothing but the notebook's first code cell and the exercise's own."""
    name, _, answer, _ = find(number)
    names = dict(first_cell(number[:2])[0])
    exec(cells(number[:2], solved)[answer].source, names)
    return names[name]


def wrong_answers(number):
    return importlib.import_module(f"tests.course.wrong_answers.chapter{number[:2]}").WRONG[number]


@each_exercise
def test_the_solution_is_right(number):
    verdict = judge(number, function(number, True))
    assert (verdict.status, verdict.message, verdict.printed) == ("ok", "", "")


@each_exercise
def test_the_solution_is_right_from_another_process(number):
    """As `minivim grade` runs it: all that is passed to it and returned goes over the wire."""

    def sent(value):
        return decode(json.loads(json.dumps(encode(value))))

    answer = function(number, True)
    verdict = judge(number, lambda *arguments, **options: sent(answer(*sent(arguments), **sent(options))))
    assert (verdict.status, verdict.message) == ("ok", "")


def test_an_answer_may_use_autograd():
    """Also within gradcheck, which runs it as a backward pass."""

    def answer(a, b, starts, dh):
        a, b = (x.detach().clone().requires_grad_() for x in (a, b))
        states = [starts[0]]
        for a_t, b_t in zip(a, b, strict=True):
            states.append(a_t * states[-1] + b_t)
        return torch.autograd.grad(torch.stack(states[1:]), (a, b), dh)

    assert judge("06.7", answer).status == "ok"


def test_every_patch_that_is_asked_for_is_in_its_grid():
    """An answer may look the patch up in a list of all."""

    def answer(row, column, rows, columns, order):
        patches = [(r, c) for r in range(rows) for c in range(columns)]
        if order == "columns":
            patches.sort(key=lambda patch: patch[::-1])
        if order == "snake":
            patches.sort(key=lambda patch: (patch[0], patch[1] * (-1) ** patch[0]))
        patches.insert(rows * columns // 2, "class token")
        return patches.index((row, column))

    assert judge("08.1", answer).status == "ok"


@each_exercise
def test_the_stub_is_still_to_do(number):
    verdict = judge(number, function(number, False))
    assert (verdict.status, verdict.message) == ("todo", "")


@each_exercise
def test_the_planted_mistakes_get_their_hint(number):
    planted = wrong_answers(number)
    assert len(planted) >= FEWEST_WRONG
    for answer, hint in planted:
        verdict = judge(number, answer)
        assert verdict.status == "fix", f"{answer.__name__} passed"
        assert re.search(hint, verdict.message), f"{answer.__name__} got no hint {hint!r} but: {verdict.message}"


def changed(value, change):
    """The value with every number and tensor in it changed."""
    if isinstance(value, dict):
        return {key: changed(part, change) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(changed(part, change) for part in value)
    return change(value) if isinstance(value, (bool, int, float, complex, torch.Tensor)) else value


def in_numpy(value):
    """An array, of no dimensions if it is a number."""
    return value.detach().numpy() if isinstance(value, torch.Tensor) else np.array(value)


def in_single(value):
    """In float32 where it was in float64."""
    value = torch.from_numpy(np.array(value)) if not isinstance(value, torch.Tensor) else value
    return value.to(SINGLE.get(value.dtype, value.dtype))


@each_exercise
@pytest.mark.parametrize("change", [in_numpy, in_single])
def test_the_type_of_a_number_makes_no_answer_wrong_or_right(number, change):
    def other(answer):
        return lambda *arguments, **options: changed(answer(*arguments, **options), change)

    verdict = judge(number, other(function(number, True)))
    assert (verdict.status, verdict.message) == ("ok", "")
    assert [judge(number, other(answer)).status for answer, _ in wrong_answers(number)] == ["fix"] * len(
        wrong_answers(number)
    )


@each_exercise
def test_the_same_answer_gets_the_same_verdict_twice(number):
    answer, _ = wrong_answers(number)[0]
    assert judge(number, answer) == judge(number, answer)


@each_exercise
@pytest.mark.parametrize("constant", [None, 0.0, (), "text", True], ids=repr)
def test_a_constant_is_not_an_answer_and_stops_nothing(number, constant):
    verdict = judge(number, lambda *arguments, **options: constant)
    assert verdict.status == "fix"
    assert verdict.message


@each_chapter
def test_notebook_and_checkers_know_the_same_exercises(chapter):
    here = [number for number, _, _ in exercises_in(chapter)] if chapter in SOURCES else []
    if chapter == "08" and not here:
        pytest.skip("chapter 08 has no exercises yet")
    assert here == [each.number for each in exercises_of(chapter)]
    assert here == [f"{chapter}.{count}" for count in range(1, len(here) + 1)]
    assert len(here) >= FEWEST[chapter]
    loose = [
        cell.source for cell in cells(chapter) if cell.cell_type == "code" and re.search(r"\bcheck\(", cell.source)
    ]
    assert len(loose) == len(here), "a cell calls check and does nothing else"


@each_exercise
def test_the_header_says_what_it_asks_for(number):
    name, task, answer, _ = find(number)
    notebook = cells(number[:2])
    assert notebook[task].cell_type == "markdown"
    before, heading, text = notebook[task].source.partition(f"### Exercise {number} · {judge(number, None).title}\n")
    assert heading and "### Exercise" not in before + text
    assert re.search(r"\*\*Goal\.\*\* \w", text)
    assert re.search(r"\*\*Minutes\.\*\* \d+", text)
    assert re.search(rf"\*\*Difficulty\.\*\* ({'|'.join(DIFFICULTIES)})\b", text)
    assert re.search(r"<details>\s*<summary>Hint</summary>\s+\S.*</details>", text, re.DOTALL)
    assert re.search(rf"^def {name}\(", notebook[answer].source, re.MULTILINE)
    assert "BEGIN SOLUTION" not in notebook[answer].source


@each_exercise
@pytest.mark.parametrize("solved", [False, True], ids=["open", "solved"])
def test_the_stored_notebook_shows_the_verdict(number, solved):
    folder = ROOT / "notebooks" / ("solutions" if solved else ".")
    notebook = nbformat.read(folder / f"{SOURCES[number[:2]].stem}.ipynb", as_version=4)
    output = notebook.cells[find(number)[3]].outputs[0]["text"]
    assert output == f"[{'ok' if solved else 'todo'}] {number} {judge(number, None).title}\n"


@each_chapter
def test_the_difficulty_rises(chapter):
    texts = (
        [cells(chapter)[index - 2].source.partition("### Exercise")[2] for _, _, index in exercises_in(chapter)]
        if chapter in SOURCES
        else []
    )
    levels = [DIFFICULTIES.index(re.search(r"\*\*Difficulty\.\*\* (\w+)", text)[1]) for text in texts]
    assert levels == sorted(levels)


@each_exercise
def test_no_other_cell_needs_the_answer(number):
    name, _, answer, check = find(number)
    for index, cell in enumerate(cells(number[:2])):
        if cell.cell_type == "code" and index not in (answer, check):
            used = {node.id for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)}
            assert name not in used, cell.source


def test_there_are_no_wrong_answers_to_nothing():
    for path in sorted((ROOT / "tests" / "course" / "wrong_answers").glob("chapter*.py")):
        planted = importlib.import_module(f"tests.course.wrong_answers.{path.stem}").WRONG
        assert set(planted) == set(REGISTERED[path.stem[-2:]])
