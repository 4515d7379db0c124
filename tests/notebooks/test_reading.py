"""What a reader can rely on: short texts, pictures with words, honest minutes, marks, links.

A rule is a function of a notebook (`stored.NOTEBOOKS`' form) and its name that returns what breaks it, in words.
"""

import copy
import re
from functools import cache

import pytest

from minivim.figures import Flipbook, Picture
from tests.notebooks.stored import FIGURE, FLIPBOOK, NOTEBOOKS, ROOT, SOLUTIONS, build, flipbooks, nbformat, pictures

OLD = ("00", "01", "02", "03", "04")  # chapters written before the rules; this only gets shorter
NAMES = {path.stem[:2]: path.name for path in NOTEBOOKS}
FOLD = re.compile(r"<details>.*?</details>", re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SECTION = re.compile(r"^## \d+\. .*$", re.MULTILINE)
MARK = re.compile(r"\A\s*\*(Core|Optional)\.\*\s*\n")
EXERCISE = re.compile(r"^### Exercise (\d\d\.\d+)", re.MULTILINE)
HEADER = re.compile(r"\*\*Minutes\.\*\*\s+(\d+)\.?\s+\*\*(Core|Optional)\.\*\*")
TIME = re.compile(
    r"(\d+) minutes for the core, (\d+) with everything; all cells together run for (?:about )?(\d+) seconds"
)
MOST_WORDS, WORDS_A_MINUTE = 250, 150
WIDEST_CODE = 92  # columns; more are cut off in JupyterLab at 1,300 pixels
MOST_CORE_EXERCISES, MOST_CORE_MINUTES = 6, 90
FEWEST_WORDS_OF_ALT = 5


def prose(cell):
    """The text of a markdown cell without its folds."""
    return FOLD.sub("", cell.source) if cell.cell_type == "markdown" else ""


def links(cell):
    """Where the links of a text lead, without the part after #; a(b)[c] in code is none."""
    return [link.partition("#")[0] for link in LINK.findall(re.sub(r"`[^`]*`", "", prose(cell)))]


def words(text):
    return len(text.split())


def parts(notebook):
    """(core or not, cells) of what stands before the first section, of each section, and of the end without a mark."""
    found = [(True, [])]
    for cell in notebook.cells:
        heading = re.search(r"^## ", prose(cell), re.MULTILINE)
        if heading:
            section = SECTION.search(cell.source)
            mark = section and MARK.match(cell.source[section.end() :])
            found.append((not (mark and mark[1] == "Optional"), []))
        found[-1][1].append(cell)
    return found


def exercises(notebook):
    """(number, minutes, core or not, in a core section or not) of each exercise; minutes None without a header."""
    found = []
    for core_section, cells in parts(notebook):
        for cell in cells:
            number, header = EXERCISE.search(prose(cell)), HEADER.search(prose(cell))
            if number:
                minutes, mark = (int(header[1]), header[2]) if header else (None, None)
                found.append((number[1], minutes, mark == "Core", core_section))
    return found


# ---- the rules -------------------------------------------------------------------------------------------------------


def texts_are_short(notebook, name):
    long = [cell.source[:60] for cell in notebook.cells if words(prose(cell)) > MOST_WORDS]
    return [f"more than {MOST_WORDS} words: {start!r}" for start in long]


def code_is_narrow(notebook, name):
    lines = [line for cell in notebook.cells if cell.cell_type == "code" for line in cell.source.splitlines()]
    return [f"wider than {WIDEST_CODE} columns: {line!r}" for line in lines if len(line) > WIDEST_CODE]


def figures_have_words(notebook, name):
    wrong = []
    for cell in notebook.cells:
        if any(FIGURE in output.get("data", {}) for output in cell.get("outputs", [])):
            wrong.append(f"a picture without alt text; end with show(figure, alt): {cell.source[-60:]!r}")
        shown = pictures(cell) if cell.cell_type == "code" else re.findall(r"!\[(.*?)\]\(", cell.source)
        wrong += [f"an alt text says too little: {alt!r}" for alt in shown if words(alt) < FEWEST_WORDS_OF_ALT]
    return wrong


def flipbooks_stand_still_too(notebook, name):
    pages = [page for cell in notebook.cells if cell.cell_type == "code" for page in flipbooks(cell)]
    still = [re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL) for page in pages]
    return [
        f"a flipbook without frames beside each other: {page[:60]!r}"
        for page in still
        if not 3 <= page.count("<img ") <= 4 or not re.search(r"\d of its \d+ frames", page)
    ]


def minutes_are_honest(notebook, name):
    stated = TIME.search(" ".join(notebook.cells[0].source.split()))
    if not stated:
        return [f"the first cell says no '{TIME.pattern}'"]
    core, everything, seconds = map(int, stated.groups())
    needed = {"with everything": seconds / 60, "for the core": seconds / 60}
    for is_core, cells in parts(notebook):
        reading = sum(words(prose(cell)) for cell in cells) / WORDS_A_MINUTE
        needed["with everything"] += reading
        needed["for the core"] += reading * is_core
    for _, minutes, is_core, _ in exercises(notebook):
        needed["with everything"] += minutes or 0
        needed["for the core"] += (minutes or 0) * is_core
    stated = {"with everything": everything, "for the core": core}
    wrong = [
        f"{stated[what]} minutes {what} are stated, {minutes:.0f} are needed"
        for what, minutes in needed.items()
        if abs(stated[what] - minutes) > 0.15 * minutes
    ]
    if max(core, needed["for the core"]) > MOST_CORE_MINUTES + 0.5:
        wrong.append(f"the core takes {core} minutes ({needed['for the core']:.0f}), more than {MOST_CORE_MINUTES}")
    return wrong


def all_is_core_or_optional(notebook, name):
    wrong = []
    for cell in notebook.cells:
        for section in SECTION.finditer(prose(cell)):
            if not MARK.match(cell.source[section.end() :]):
                wrong.append(f"neither *Core.* nor *Optional.* below {section[0]!r}")
    for number, minutes, is_core, in_core in exercises(notebook):
        if minutes is None:
            wrong.append(f"exercise {number} has no '**Minutes.** 5. **Core.**' or '**Optional.**'")
        if is_core and not in_core:
            wrong.append(f"exercise {number} is core in an optional section")
    core = [number for number, _, is_core, _ in exercises(notebook) if is_core]
    if not 1 <= len(core) <= MOST_CORE_EXERCISES or not any(SECTION.search(prose(cell)) for cell in notebook.cells):
        wrong.append(f"{len(core)} exercises are core; 1 to {MOST_CORE_EXERCISES} are, and sections are numbered")
    return wrong


def neighbours_are_linked(notebook, name):
    chapter = int(name[:2])
    wanted = {NAMES.get(f"{number:02d}") for number in (0, chapter - 1, chapter + 1)} - {None, name}
    places = {"beginning": notebook.cells[:2], "end": notebook.cells[-2:]}
    wrong = []
    for where, cells in places.items():
        linked = {link for cell in cells for link in links(cell)}
        wrong += [f"no link to {missing} at the {where}" for missing in sorted(wanted - linked)]
    return wrong


def links_lead_somewhere(notebook, name):
    local = [link for cell in notebook.cells for link in links(cell) if link and "://" not in link]
    return [f"nothing is at {link}" for link in local if not (ROOT / "notebooks" / link).exists()]


def chapters_are_linked(notebook, name):
    wrong = []
    for cell in notebook.cells:
        for found in re.finditer(r"[Cc]hapters?\s+(\d\d)\b", LINK.sub("", prose(cell))):
            if found[1] in NAMES and found[1] != name[:2]:
                wrong.append(f"not a link: {' '.join(found[0].split())!r} in {cell.source[:60]!r}")
    return wrong


def flows_are_drawn(notebook, name):
    """One drawing of boxes and arrows at least, and a picture in half of the core's sections."""
    wrong = []
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    if not re.search(r"\barrow\(", code) and not any(".svg)" in prose(cell) for cell in notebook.cells):
        wrong.append("no block, tree or flow is drawn with box and arrow, and there is no SVG")
    sections = [cells for is_core, cells in parts(notebook) if is_core and SECTION.search(prose(cells[0]))]
    drawn = [any(pictures_of(cell) for cell in cells) for cells in sections]
    if sum(drawn) < len(drawn) / 2:
        bare = [SECTION.search(cells[0].source)[0] for cells, shown in zip(sections, drawn, strict=True) if not shown]
        wrong.append(f"more than half of the core's sections have no picture: {', '.join(bare)}")
    return wrong


def pictures_of(cell):
    """What a cell shows: figures, flipbooks, pictures of a text."""
    if cell.cell_type == "markdown":
        return re.findall(r"!\[.*?\]\(", cell.source)
    return pictures(cell) + flipbooks(cell)


RULES = [
    texts_are_short,
    code_is_narrow,
    figures_have_words,
    flipbooks_stand_still_too,
    minutes_are_honest,
    all_is_core_or_optional,
    neighbours_are_linked,
    links_lead_somewhere,
    chapters_are_linked,
    flows_are_drawn,
]


@cache
def read(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem[:2] not in OLD], ids=lambda path: path.stem)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_chapter_holds_the_rule(rule, path):
    assert rule(read(path), path.name) == []


@pytest.mark.parametrize("path", [path for path in SOLUTIONS if path.stem[:2] not in OLD], ids=lambda path: path.stem)
def test_a_solution_is_narrow_too(path):
    assert code_is_narrow(read(path), path.name) == []


@pytest.mark.parametrize("chapter", OLD)
def test_an_old_chapter_still_breaks_a_rule(chapter):
    """A chapter that breaks none leaves the list, so that it stays so."""
    [path] = [path for path in NOTEBOOKS if path.stem[:2] == chapter]
    assert [each for rule in RULES for each in rule(read(path), path.name)], f"take {chapter} off the list OLD"


# ---- each rule notices -----------------------------------------------------------------------------------------------

FRAMES = Flipbook("a flipbook of four frames", (b"1", b"2", b"3", b"4", b"5"))._repr_html_()
ALT = "three boxes, an arrow from each to the next"
MAP = "[The map](00_start_here.ipynb)"


def chapter():
    """A short chapter 01 of one core and one optional section, that holds all rules."""
    new = nbformat.v4
    next_one = f"[next]({NAMES['02']})"
    texts = [
        "# 01 · Toy\n\n**Time.** 10 minutes for the core, 15 with everything; all cells together run for 6 seconds.",
        f"Previous and {MAP}. Next: {next_one}.",
        "## 1. First\n\n*Core.*\n\n" + "word " * 240,
        "### Exercise 01.1 · One\n\n**Goal.** A goal. **Minutes.** 7. **Core.**\n\n<details>"
        + "fold " * 300
        + "</details>",
        "## 2. Second\n\n*Optional.*\n\nSee [chapter 02](02_discretization.ipynb), and chapter 01, and chapter 77.",
        "### Exercise 01.2 · Two\n\n**Minutes.** 5.\n**Optional.**",
        f"## What you built\n\n{MAP}, {next_one}.\n\n## Further reading",
    ]
    cells = [new.new_markdown_cell(text) for text in texts]
    figure = new.new_code_cell("figure, axis = canvas(4, 1)\narrow(axis, (1, 1), (2, 1))")
    figure.outputs = [new.new_output("display_data", data={"text/html": Picture(ALT, b"png")._repr_html_()})]
    moving = new.new_code_cell('flipbook(draw, values, "a flipbook of four frames")')
    moving.outputs = [new.new_output("display_data", data={"text/html": FRAMES})]
    return new.new_notebook(cells=[*cells[:3], figure, moving, *cells[3:]])


def edited(old, replacement):
    """The chapter with a text changed wherever it stands, in sources and in outputs."""
    notebook = copy.deepcopy(chapter())
    before = copy.deepcopy(notebook)
    for cell in notebook.cells:
        cell.source = cell.source.replace(old, replacement)
        for output in cell.get("outputs", []):
            output.data["text/html"] = output.data["text/html"].replace(old, replacement)
    assert notebook != before
    return notebook


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_good_chapter_breaks_no_rule(rule):
    assert rule(chapter(), NAMES["01"]) == []


BROKEN = [
    (texts_are_short, "word " * 240, "word " * 260),
    (texts_are_short, "</details>", ""),
    (code_is_narrow, "canvas(4, 1)", "canvas(4, 1)  # " + "x" * 80),
    (figures_have_words, ALT, "a figure"),
    (figures_have_words, ALT, ""),
    (flipbooks_stand_still_too, "of its 5 frames", "frames"),
    (flipbooks_stand_still_too, "<img ", "<span "),
    (minutes_are_honest, "15 with", "20 with"),
    (minutes_are_honest, "10 minutes", "7 minutes"),
    (minutes_are_honest, "Minutes.** 7", "Minutes.** 12"),
    (minutes_are_honest, "run for 6 seconds", "run quickly"),
    (all_is_core_or_optional, "*Core.*\n\nword", "word"),
    (all_is_core_or_optional, "7. **Core.**", "7"),
    (all_is_core_or_optional, "7. **Core.**", "7. **Optional.**"),
    (all_is_core_or_optional, "5.\n**Optional.**", "5. **Core.**"),
    (neighbours_are_linked, f"Previous and {MAP}", "Previous"),
    (neighbours_are_linked, f"## What you built\n\n{MAP}", "## What you built"),
    (links_lead_somewhere, "](02_discretization.ipynb)", "](02_discretisation.ipynb)"),
    (chapters_are_linked, "and chapter 77", "and chapter\n03"),
    (chapters_are_linked, "and chapter 77", "and chapters 03 and 04"),
    (flows_are_drawn, "arrow(", "box("),
]


@pytest.mark.parametrize(("rule", "old", "replacement"), BROKEN)
def test_a_rule_notices(rule, old, replacement):
    assert rule(edited(old, replacement), NAMES["01"]) != []


def test_too_much_core_is_noticed():
    notebook = chapter()
    notebook.cells[0].source = (
        notebook.cells[0].source.replace("10 minutes", "98 minutes").replace("15 with", "103 with")
    )
    notebook.cells[5].source = notebook.cells[5].source.replace("Minutes.** 7", "Minutes.** 95")
    assert ["more than 90" in each for each in minutes_are_honest(notebook, NAMES["01"])] == [True]
    seven = chapter()
    seven.cells += 6 * [seven.cells[5]]
    assert any("7 exercises are core" in each for each in all_is_core_or_optional(seven, NAMES["01"]))


def test_a_bare_picture_is_noticed():
    notebook = chapter()
    notebook.cells[3].outputs[0].data = {FIGURE: "png"}
    assert any("without alt text" in each for each in figures_have_words(notebook, NAMES["01"]))
    assert FLIPBOOK in FRAMES and build.FIGURE == FIGURE


def test_sections_without_pictures_are_noticed():
    notebook = chapter()
    for cell in notebook.cells[3:5]:
        cell.outputs = []
    assert any("1. First" in each for each in flows_are_drawn(notebook, NAMES["01"]))
