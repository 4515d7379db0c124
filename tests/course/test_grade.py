"""`minivim grade`: what people hand in, by mistake or on purpose, gets a clear row and hurts no other submission."""

import csv
import json
import sys
from pathlib import Path

import pytest
import torch

from minivim import cli
from minivim.course.exercises.checking import EXERCISES, compare, exercise
from minivim.course.grade import report as grade
from minivim.course.grade import wire as grade_wire
from minivim.course.grade.run import Limits, clean, run_submission

nbformat = pytest.importorskip("nbformat", reason="the notebooks need the extra 'notebooks'")
pytest.importorskip("tyro", reason="the command line needs the extra 'train'")

nbformat = pytest.importorskip("nbformat", reason="the notebooks need the extra 'notebooks'")

IMPORT = "from minivim.course import check"
CHECKS = f'{IMPORT}\ncheck("97.1", double)\ncheck("97.2", add)'
SOLVED = "def double(x):\n    return 2 * x\ndef add(x, y):\n    return x + y"
OPEN = 'def double(x):\n    raise NotImplementedError("your turn")\ndef add(x, y):\n    return x - y'
SECONDS = 4.0  # the time limit of the submissions that never end
FIND_WIRE = """\
import gc
from minivim.course.grade.wire import Wire
[wire] = [each for each in gc.get_objects() if isinstance(each, Wire)]"""
FORGE = """\
import minivim.course.exercises.checking as checking
import minivim.course.exercises.judging as judging
checking.compare = checking.demand = lambda *arguments, **options: None
judging.judge = lambda number, answer: judging.Verdict(number, "", "ok")
checking.EXERCISES.clear()"""
FORK = """\
import os, time
for leave in (lambda: None, os.setsid):
    if os.fork() == 0:
        leave()
        open("PIDS", "a").write(f"{os.getpid()}\\n")
        time.sleep(600)"""
ODD_CELLS = {  # cell: what the note must say of it
    "%matplotlib inline\n!ls\n?help": "",
    "%%bash\nls": "",
    "%%time\nimport matplotlib.pyplot as plt\nplt.plot([1])\nplt.show()\ndisplay(1)": "",
    "import sys\nsys.exit(3)": "raised SystemExit: 3",
    "1 / 0": "raised ZeroDivisionError: division by zero",
    "def (": "raised SyntaxError",
    "class Evil(BaseException):\n    def __str__(self):\n        raise self\nraise Evil": "raised Evil: (its message",
    "raise ValueError('\\x1b[2J\\x07')": "raised ValueError: ?[2J?",
    "import os\nfor _ in range(1000):\n    print('x' * 10**6)\n    os.write(2, b'x' * 10**6)": "",
    "import torch\nkept = []\nwhile True:\n    kept.append(torch.empty(2**26))": "raised RuntimeError: [enforce fail",
    "del kept\nwith open('big', 'wb') as file:\n    while True:\n        file.write(bytes(2**24))": "File too large",
    FORK: "",
}
ODD_ANSWERS = {  # exercise: the function given for "add", and the status and message it must get
    "97.1": ("lambda x: 3 * x", "ok", ""),  # checked a second time below
    "97.2": ("lambda x, y: print('x' * 10**8) or x + y", "ok", ""),
    "97.3": ("lambda x, y: check('97.1', 5) or x + y", "ok", ""),
    "97.4": ("lambda x, y: (x + y).double().numpy()", "ok", ""),
    "97.5": ("lambda x, y: object()", "fix", "your function returned a object, where tensors, numbers"),
    "97.6": ("lambda x, y: x.add_(y)", "fix", "your function changes its argument x"),
    "97.7": ("lambda x, y: torch.empty(2**28)", "fix", "which is unusual or too large"),
    "97.8": ("5", "fix", "check was given a int"),
    "97.9": ("lambda x, y: ['x' * 10**6] * 20", "fix", "a message has 20,"),
}
# name: cells, the statuses of 97.1 and 97.2, what the note must say
SUBMISSIONS = {
    "survives": ([*ODD_CELLS, SOLVED, CHECKS], "ok ok", list(ODD_CELLS.values())),
    "odd answers": (
        [IMPORT + "\nimport torch"]
        + [f"check({number!r}, {answer})" for number, (answer, _, _) in ODD_ANSWERS.items()]
        + ["check('97.1', lambda x: 2 * x)"],
        "ok ok",
        ["97.5: your function"],
    ),
    "forges the checker": (
        [OPEN, FORGE, CHECKS],
        "todo fix",
        ["97.2: the sum, first difference at [0]", "you subtracted"],
    ),
    "forges check": ([SOLVED, "def check(*_):\n    print('[ok] 97.1')", *CHECKS.split("\n")[1:]], "todo todo", []),
    "kills itself": (
        [SOLVED, "import os\nos.kill(os.getpid(), 9)", CHECKS],
        "todo todo",
        ["its process was killed or broke off in cell 2"],
    ),
    "exits in an answer": (
        [SOLVED + "\ndef add(x, y):\n    import os\n    os._exit(7)", CHECKS],
        "ok error",
        ["its process ended with exit code 7 in cell 2 (check 97.2)"],
    ),
    "sends garbage": (
        [SOLVED, CHECKS, FIND_WIRE + "\nwire.connection.sendall(b'x' * 10**6)"],
        "ok ok",
        ["it sent the grader what no notebook sends (ValueError) in cell 3"],
    ),
    "announces infinity": (
        [SOLVED, CHECKS, FIND_WIRE + "\nwire.send('cell', cell=float('inf'))"],
        "ok ok",
        ["it sent the grader what no notebook sends (OverflowError)"],
    ),
    "chooses float64 and hangs up": (  # the checker's tensors must fit those that the answer makes
        [
            "import torch\ntorch.set_default_dtype(torch.float64)",
            SOLVED + "\ndef add(x, y):\n    return torch.eye(2) @ (x + y)",
            CHECKS,
            FIND_WIRE + "\nwire.connection.close()",
        ],
        "ok ok",
        ["its process"],
    ),
}
ENDLESS = {
    "loops in a cell": ([SOLVED, CHECKS, "while True: pass"], "ok ok", ["stopped after 4 s in cell 3"]),
    "loops in an answer": (
        [SOLVED + "\ndef add(x, y):\n    while True: pass", CHECKS],
        "ok error",
        ["stopped after 4 s in cell 2 (check 97.2)"],
    ),
    "sends half a message": (
        [SOLVED, CHECKS, FIND_WIRE + "\nwire.connection.sendall(b'\\0\\0')\nimport time\ntime.sleep(99)"],
        "ok ok",
        ["stopped after 4 s in cell 3"],
    ),
}
FILES = {
    "not_json.ipynb": (b"\x89PNG\r\n\x1a\n\xff\xfe", "no notebook: it cannot be read as JSON"),
    "empty.ipynb": (b"", "no notebook: it cannot be read as JSON"),
    "deep.ipynb": (b"[" * 100_000, "no notebook: it cannot be read as JSON"),
    "list.ipynb": (b"[1, 2]", "no list of cells"),
    "old.ipynb": (b'{"worksheets": []}', "no list of cells"),
    "odd.ipynb": (b'{"cells": [{"source": [1]}, {}]}', "no notebook with exercises of this course"),
    "new\nline.ipynb": (b"{}", "no list of cells"),
    "long.ipynb": (b'{"cells": [{"source": "%s"}]}' % (b"x" * 3_000_000), "its cells hold more than 2,097,152 letters"),
    "other.ipynb": (b'{"cells": [{"cell_type": "code", "source": "check(\\"96.1\\", f)"}]}', "of this course"),
}


@pytest.fixture(scope="module")
def toy():
    """A chapter 97: one exercise on doubling and eight on adding."""

    @exercise("97.1", "Double")
    def double(answer):
        for x in (2.0, -1.5):
            compare(answer(x), 2 * x, "the double")

    def add(answer):
        x, y = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -4.0])
        compare(answer(x, y), x + y, "the sum", causes={"you subtracted": x - y})

    for number in range(2, 10):
        exercise(f"97.{number}", "Add")(add)
    yield
    for number in range(1, 10):
        del EXERCISES[f"97.{number}"]


def write_notebook(path, cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), path)


@pytest.fixture(scope="module")
def graded(toy, tmp_path_factory):
    """The reports on all submissions, and the folder in which the CSV and JSON files are."""
    if sys.platform != "linux":
        pytest.skip("some of these submissions are harmless only under the limits that Linux has")
    folder = tmp_path_factory.mktemp("class")
    for kind, submissions in (("ending", SUBMISSIONS), ("endless", ENDLESS)):
        for name, (cells, _, _) in submissions.items():
            cells = [cell.replace("PIDS", str(folder / "pids")) for cell in cells]
            write_notebook(folder / kind / name / "97.ipynb", cells)
    for name, (content, _) in FILES.items():
        (folder / "ending" / name).write_bytes(content)
    out = str(folder / "out.csv"), str(folder / "out.json")
    reports = grade.grade_files([str(folder / "ending")], *out, time_limit=60.0, memory_limit=3.0)
    reports += grade.grade_files([str(folder / "endless")], time_limit=SECONDS)
    return {report.submission: report for report in reports}, folder


@pytest.mark.parametrize("name", [*SUBMISSIONS, *ENDLESS])
def test_a_submission_gets_a_clear_row(graded, name):
    _, statuses, words = (SUBMISSIONS | ENDLESS)[name]
    report = graded[0][f"{name}/97.ipynb"]
    assert " ".join(verdict.status for verdict in report.verdicts[:2]) == statuses, report.note
    assert all(word in report.note for word in words), report.note
    assert report.note.isprintable()


@pytest.mark.parametrize("number", ODD_ANSWERS)
def test_an_odd_answer_gets_its_verdict(graded, number):
    [verdict] = [each for each in graded[0]["odd answers/97.ipynb"].verdicts if each.number == number]
    _, status, message = ODD_ANSWERS[number]
    assert verdict.status == status and message in verdict.message, verdict


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_notebook_gets_a_clear_row(graded, name):
    report = graded[0][name.replace("\n", " ")]
    assert report.verdicts == () and FILES[name][1] in report.note


def test_what_a_submission_has_forked_is_dead(graded):
    pids = (graded[1] / "pids").read_text().split()
    assert len(pids) == 2
    for pid in pids:
        stat = Path(f"/proc/{pid}/stat")
        assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX"  # a zombie runs no more


# ---- the table and the files -----------------------------------------------------------------------------------------


def test_the_csv_has_a_line_for_each_submission(graded):
    with (graded[1] / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["submission"] for row in rows] == [name for name in graded[0] if "loops" not in name][: len(rows)]
    row = next(row for row in rows if row["submission"] == "survives/97.ipynb")
    assert (row["chapter"], row["points"], row["of"], row["97.2"], row["97.3"]) == ("97", "2", "9", "ok", "todo")
    assert row["what happened"] == graded[0]["survives/97.ipynb"].note


def test_the_json_has_every_message(graded):
    entries = {entry["submission"]: entry for entry in json.loads((graded[1] / "out.json").read_text())}
    assert len(entries) == len(SUBMISSIONS) + len(FILES)
    found = {each["number"]: each for each in entries["odd answers/97.ipynb"]["exercises"]}
    assert found["97.6"] == {
        "number": "97.6",
        "title": "Add",
        "status": "fix",
        "message": "your function changes its argument x; work on a copy, such as x.clone()",
    }


def test_the_table_aligns_and_cuts(graded):
    text = grade.table(list(graded[0].values()))
    first, second = text.split("\n\n")
    assert first.startswith("chapter 97") and second.startswith("no chapter")
    heading, *rows = first.splitlines()
    assert len(rows) == len(SUBMISSIONS) + len(ENDLESS)
    assert all(row[heading.index("points") - 1] == " " for row in rows)
    assert max(map(len, rows)) <= heading.index("what happened") + grade.NOTE_WIDTH


def test_a_formula_in_a_name_is_disarmed(tmp_path):
    report = grade.Report("=1+1.ipynb", "", (), "no notebook")
    grade.write_csv([report], tmp_path / "out.csv")
    assert "'=1+1.ipynb,,0,0,no notebook" in (tmp_path / "out.csv").read_text()


def test_exercises_are_in_their_natural_order():
    assert sorted(["97.10", "97.2", "08.1"], key=grade.natural) == ["08.1", "97.2", "97.10"]


# ---- the command -----------------------------------------------------------------------------------------------------


def cut(path):
    """A notebook of the course, without what is neither its first code cell nor part of an exercise."""
    notebook = nbformat.read(path, as_version=4)
    code = [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    checks = [index for index in code if notebook.cells[index].source.startswith("check(")]
    kept = {0, code[0], *checks, *(index - 1 for index in checks)}
    notebook.cells = [cell for index, cell in enumerate(notebook.cells) if index in kept]
    return notebook


def test_an_open_notebook_is_all_to_do_and_a_solved_one_all_right(tmp_path, capsys):
    course, name = Path(__file__).parents[2] / "notebooks", "02_discretization.ipynb"
    for who, path in (("ada", course / name), ("eve", course / "solutions" / name)):
        (tmp_path / who).mkdir()
        nbformat.write(cut(path), tmp_path / who / name)
    out = tmp_path / "grades.csv"
    assert cli.main(["grade", str(tmp_path), "--csv", str(out), "--workers", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines()[1].startswith(f"[2/2] eve/{name}: ")
    rows = list(csv.reader(out.open(newline="")))
    statuses = {row[0]: row[4:-1] for row in rows[1:]}
    count = len(rows[0]) - 5
    assert statuses == {f"ada/{name}": ["todo"] * count, f"eve/{name}": ["ok"] * count}
    assert count >= 5 and f"{count}/{count}" in captured.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["no submission is named"]),
        (["nowhere"], ["submission is 'nowhere'", "must be an existing file or folder"]),
        (["EMPTY"], ["folder is", "must hold at least one .ipynb"]),
        (["FILE", "--time-limit", "0"], ["time_limit is 0", "greater than 0"]),
        (["FILE", "--memory-limit", "-1"], ["memory_limit is -1", "greater than 0"]),
        (["FILE", "--workers", "0"], ["workers is 0", "greater than 0"]),
        (["FILE", "--csv", "nowhere/out.csv"], ["nowhere/out.csv"]),
    ],
)
def test_a_mistake_of_the_caller_is_one_sentence(capsys, unchecked, tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.ipynb").write_text("{}")
    places = {"EMPTY": str(tmp_path / "empty"), "FILE": str(tmp_path / "x.ipynb")}
    code = cli.main(["grade", *(places.get(argument, argument) for argument in arguments)])
    captured = capsys.readouterr()
    assert code == 2 and captured.out == "" and captured.err.count("\n") == 1
    assert all(word in captured.err for word in words), captured.err


def test_a_file_that_is_no_notebook_can_be_graded(capsys, tmp_path):
    (tmp_path / "essay.txt").write_text("It was a dark and stormy night.")
    assert cli.main(["grade", str(tmp_path / "essay.txt")]) == 0
    assert "essay.txt" in capsys.readouterr().out


def test_checkpoints_of_jupyter_are_no_submissions(tmp_path):
    for folder in (".", ".ipynb_checkpoints"):
        write_notebook(tmp_path / folder / "01.ipynb", [])
    assert [name for name, _ in grade.find_submissions([str(tmp_path)])] == ["01.ipynb"]


@pytest.mark.parametrize(
    ("cells", "chapter"),
    [
        ([("markdown", "# 97 · A title"), ("code", "check('02.1', f)")], "97"),
        ([("markdown", "# 96 · No exercises"), ("code", 'check("97.1", f)')], "97"),
        ([("code", "check('02.1', f)\ncheck('97.1', f)\ncheck('97.2', f)")], "97"),
        ([("code", "# 97 · a comment"), ("markdown", "check('97.1', f)")], ""),
    ],
)
def test_the_chapter_is_read_off_the_title_or_the_checks(toy, cells, chapter):
    assert grade.chapter_of(cells) == chapter


def test_two_folders_keep_their_names_apart(tmp_path):
    for folder in ("a", "b"):
        write_notebook(tmp_path / folder / "01.ipynb", [])
    found = grade.find_submissions([str(tmp_path / "a"), str(tmp_path / "b")])
    assert [name for name, _ in found] == ["a/01.ipynb", "b/01.ipynb"]


def test_a_process_that_does_not_start_is_no_fault_of_the_submission(monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(OSError, match="the process for a submission did not start"):
        run_submission(["1"], Limits(1.0, 2**30, 1))


# ---- the wire --------------------------------------------------------------------------------------------------------

VALUES = [
    None,
    True,
    -3,
    2.5,
    float("inf"),
    1 + 2j,
    "text",
    [1, (2, [3])],
    {"a": (1,), 2: None},
    (),
    *(torch.arange(6).reshape(2, 3).to(dtype) for dtype in grade_wire.DTYPES.values()),
    torch.tensor(1.5),
    torch.empty(0, 3),
    torch.arange(6.0).reshape(2, 3).T,
    torch.complex(torch.ones(2), torch.ones(2)).conj(),
]


def equal(first, second):
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return type(first) is type(second) and first == second


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_what_is_sent_arrives(value):
    assert equal(grade_wire.decode(json.loads(json.dumps(grade_wire.encode(value)))), value)


@pytest.mark.parametrize(
    "message",
    [
        {"pickle": "x"},
        {"tensor": ["float32", [2], ""]},
        {"tensor": ["float32", [-1], "AAAAAA=="]},
        {"tensor": ["float32", [2**62, 4], "AAAAAA=="]},
        {"tensor": ["qint8", [1], "AA=="]},
        {"tensor": ["float32", [1.0], "AAAAAA=="]},
        {"tensor": ["float32", [1], "no base64"]},
        {"tensor": 5},
        {"dict": [[["a list"], 1]]},
        {"tuple": 1},
        {},
        {"a": 1, "b": 2},
    ],
    ids=str,
)
def test_what_nobody_sends_is_refused(message):
    with pytest.raises((ValueError, TypeError, KeyError)):
        grade_wire.decode(message)


def test_text_from_a_submission_steers_no_terminal():
    assert clean("a\x1b[31m\r\x9bz\u202e\n", 100) == "a?[31m??z?\n"
    assert clean("x" * 50, 10) == "x" * 10
