"""`minivim grade`: runs the submissions of a class, each in a process of its own, and says who solved what.

It is made for students who make mistakes, not for attackers: a submission runs with your rights, so it can read your
files. For people you do not trust, run the grader in a container or under an account of its own.
"""

import csv
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from minivim.checks import shown
from minivim.course.exercises.checking import Exercise
from minivim.course.exercises.finding import exercises_of
from minivim.course.exercises.judging import Verdict
from minivim.course.grade.run import Limits, Outcome, clean, run_submission

LARGEST_NOTEBOOK = 2**26  # bytes
LONGEST_TEXT = 2**21  # letters in all cells together; a chapter has 40,000
CHECK_CALL = re.compile(r"""\bcheck\(\s*["'](\d\d)\.\d+["']""")
TITLE = re.compile(r"^#\s+(\d\d)\s+·", re.MULTILINE)
LARGEST_LIMIT = 10**6  # seconds, GiB, submissions at a time
MOST_RAISED = 10  # cells that raised, in the note
NOTE_WIDTH = 90  # characters of the table's last column


@dataclass(frozen=True)
class Submission:
    """A file that was handed in: the chapter it answers and its code cells, or why there are none."""

    name: str
    chapter: str = ""
    cells: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Report:
    """What one submission achieved: a verdict on every exercise of its chapter, and in words what happened."""

    submission: str
    chapter: str
    verdicts: tuple[Verdict, ...]
    note: str

    @property
    def points(self) -> int:
        """How many exercises are solved."""
        return sum(verdict.status == "ok" for verdict in self.verdicts)


def find_submissions(paths: Sequence[str]) -> list[tuple[str, Path]]:
    """Name and path of every submission: the files named, and each .ipynb below a folder.

    A name is the path below the folder; with several paths the folder's own name comes first.

    ValueError for a path that does not exist and for a folder without notebooks.
    """
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = [each for each in sorted(path.rglob("*.ipynb")) if ".ipynb_checkpoints" not in each.parts]
            if not inside:
                raise ValueError(f"the folder is {str(path)!r}; it must hold at least one .ipynb")
            base = path.parent if len(paths) > 1 else path
            found += [(each.relative_to(base).as_posix(), each) for each in inside]
        elif path.exists():
            found.append((path.name, path))
        else:
            raise ValueError(f"the submission is {str(path)!r}; it must be an existing file or folder")
    return found


def read_submission(name: str, path: Path) -> Submission:
    """Read a file; whatever is wrong with it is said in `problem`."""
    name = " ".join(clean(name, 200).split())
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        if path.stat().st_size > LARGEST_NOTEBOOK:
            raise ValueError(f"it is larger than {LARGEST_NOTEBOOK:,} bytes")
        cells = cells_of(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else "it cannot be read as JSON"
        return Submission(name, problem=f"no notebook: {reason}")
    if sum(len(text) for _, text in cells) > LONGEST_TEXT:
        return Submission(
            name, problem=f"no notebook of this course: its cells hold more than {LONGEST_TEXT:,} letters"
        )
    chapter = chapter_of(cells)
    if not exercises_of(chapter):
        return Submission(name, problem="no notebook with exercises of this course: no check(...) and no title says so")
    return Submission(name, chapter, tuple(text for kind, text in cells if kind == "code"))


def cells_of(notebook: object) -> list[tuple[str, str]]:
    """Kind and text of every cell. ValueError if `notebook` is none."""
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise ValueError("it is JSON, but holds no list of cells (the format must be version 4)")
    texts = [cell.get("source", "") for cell in cells]
    texts = ["".join(map(str, text)) if isinstance(text, list) else str(text) for text in texts]
    return [(str(cell.get("cell_type")), text) for cell, text in zip(cells, texts, strict=True)]


def chapter_of(cells: list[tuple[str, str]]) -> str:
    """The chapter in the title; without one, the chapter whose exercises are checked most often; "" if none."""
    titles = [TITLE.search(text) for kind, text in cells if kind == "markdown"]
    titled = [title[1] for title in titles if title and exercises_of(title[1])]
    checked = [chapter for kind, text in cells if kind == "code" for chapter in CHECK_CALL.findall(text)]
    return (titled or [chapter for chapter, _ in Counter(checked).most_common(1)] or [""])[0]


def grade(submission: Submission, limits: Limits) -> Report:
    """Run a submission and report on it."""
    if submission.problem:
        return Report(submission.name, "", (), submission.problem)
    outcome = run_submission(list(submission.cells), limits)
    verdicts = tuple(final_verdict(each, outcome) for each in exercises_of(submission.chapter))
    return Report(submission.name, submission.chapter, verdicts, describe(verdicts, outcome))


def final_verdict(exercise: Exercise, outcome: Outcome) -> Verdict:
    """The last verdict on an exercise; "error" where the run ended during its check, "todo" where it had none."""
    if outcome.checking == exercise.number:
        return Verdict(exercise.number, exercise.title, "error", f"{outcome.problem} while this was checked")
    return outcome.verdicts.get(exercise.number, Verdict(exercise.number, exercise.title, "todo", "never checked"))


def describe(verdicts: Sequence[Verdict], outcome: Outcome) -> str:
    """What happened, the gravest first."""
    parts = []
    if outcome.problem:
        parts.append(
            f"{outcome.problem} in cell {outcome.cell}" + f" (check {outcome.checking})" * bool(outcome.checking)
        )
    parts += [f"cell {cell} raised {text}" for cell, text in list(outcome.raised.items())[:MOST_RAISED]]
    parts += [f"{each.number}: {each.message}" for each in verdicts if each.status == "fix"]
    unsolved = sum(each.status == "todo" for each in verdicts)
    parts += [f"{unsolved} not done"] if unsolved else []
    return "; ".join(" ".join(part.split()) for part in parts) or "all solved"


def grade_all(submissions: Sequence[Submission], limits: Limits, workers: int) -> Iterator[Report]:
    """The reports in the order of the submissions, `workers` at a time."""
    if workers == 1:
        yield from (grade(submission, limits) for submission in submissions)
        return
    try:  # fresh processes, because a forked copy of one in which PyTorch has run can hang
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            yield from pool.map(partial(grade, limits=limits), submissions)
    except BrokenProcessPool as error:
        raise OSError("one of the grader's own processes was killed; the results so far are kept") from error


def table(reports: Sequence[Report]) -> str:
    """A table for each chapter: submissions by exercises, points, and what happened."""
    parts = []
    for chapter in sorted({report.chapter for report in reports}, key=lambda chapter: chapter or "~"):
        chosen = [report for report in reports if report.chapter == chapter]
        numbers = [verdict.number for verdict in chosen[0].verdicts]
        rows = [[f"chapter {chapter}" if chapter else "no chapter", *numbers, "points", "what happened"]]
        rows += [[r.submission, *(v.status for v in r.verdicts), points_text(r), shorten(r.note)] for r in chosen]
        parts.append(align(rows))
    return "\n\n".join(parts)


def points_text(report: Report) -> str:
    """Such as 3/5."""
    return f"{report.points}/{len(report.verdicts)}" if report.verdicts else "-"


def shorten(note: str) -> str:
    """The note, cut off."""
    return note if len(note) <= NOTE_WIDTH else note[: NOTE_WIDTH - 4] + " ..."


def align(rows: list[list[str]]) -> str:
    """The rows with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def write_csv(reports: Sequence[Report], path: Path) -> None:
    """One line a submission: for a gradebook."""
    numbers = sorted({verdict.number for report in reports for verdict in report.verdicts}, key=natural)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["submission", "chapter", "points", "of", *numbers, "what happened"])
        for report in reports:
            status = {verdict.number: verdict.status for verdict in report.verdicts}
            cells = [status.get(number, "") for number in numbers]
            writer.writerow(
                [harmless(report.submission), report.chapter, report.points, len(status), *cells, report.note]
            )


def natural(number: str) -> list[int]:
    """The order of exercises: 01.2 before 01.10."""
    return [int(part) for part in number.split(".")]


def harmless(name: str) -> str:
    """A file's name that no spreadsheet takes for a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@")) else name


def write_json(reports: Sequence[Report], path: Path) -> None:
    """Everything, with all messages."""
    content = [
        {
            "submission": report.submission,
            "chapter": report.chapter,
            "points": report.points,
            "of": len(report.verdicts),
            "what happened": report.note,
            "exercises": [
                {"number": v.number, "title": v.title, "status": v.status, "message": v.message}
                for v in report.verdicts
            ],
        }
        for report in reports
    ]
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def grade_files(
    paths: Sequence[str],
    csv: str | None = None,
    json: str | None = None,
    time_limit: float = 300.0,
    memory_limit: float = 4.0,
    workers: int = 1,
) -> list[Report]:
    """Grade files and folders; `memory_limit` in GiB, `time_limit` in seconds, both for each submission.

    The CSV and JSON files are written again after each submission, so that a run that is stopped leaves its results.
    ValueError for a limit that is not positive and for paths that hold no submissions.
    """
    for name, value in (("time_limit", time_limit), ("memory_limit", memory_limit), ("workers", workers)):
        if not 0 < value <= LARGEST_LIMIT:
            raise ValueError(f"{name} is {shown(value)}; it must be greater than 0 and at most {LARGEST_LIMIT:,}")
    if not paths:
        raise ValueError("no submission is named; there must be at least one file or folder")
    # All are read before the first one runs, so that none can change another.
    submissions = [read_submission(name, path) for name, path in find_submissions(paths)]
    threads = max(1, (os.cpu_count() or 1) // workers)
    limits = Limits(time_limit, int(memory_limit * 2**30), threads)
    reports: list[Report] = []
    save_all(reports, csv, json)  # a wrong path shows now rather than at the end
    for report in grade_all(submissions, limits, workers):
        reports.append(report)
        done = f"[{len(reports)}/{len(submissions)}] {report.submission}: {points_text(report)}"
        print(done, file=sys.stderr, flush=True)
        save_all(reports, csv, json)
    return reports


def save_all(reports: Sequence[Report], csv_file: str | None, json_file: str | None) -> None:
    """Write the files that were asked for."""
    if csv_file:
        write_csv(reports, Path(csv_file))
    if json_file:
        write_json(reports, Path(json_file))
