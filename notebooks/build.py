"""Builds the course: src/NN_name.py (percent format) -> NN_name.ipynb, executed, with the exercises open,
and, where a source holds exercises, solutions/NN_name.ipynb, executed, with the exercises solved.

    python notebooks/build.py [NAME ...]            build all notebooks, or the named ones
    python notebooks/build.py --check [NAME ...]    build nothing; fail if a notebook differs from its source

An unchanged source gives the same bytes again: ids are counted, metadata is fixed, nothing that varies is stored.
"""

import argparse
import base64
import os
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

from minivim.figures import with_palette

HERE = Path(__file__).resolve().parent
BEGIN, END = "# BEGIN SOLUTION", "# END SOLUTION"
STUB = 'raise NotImplementedError("your turn")'
WIDGET = "application/vnd.jupyter.widget-view+json"
FIGURE = "image/png"
VOLATILE = "nbval-ignore-output"  # the tag of a cell whose output differs from run to run
CELL_TIMEOUT = 600  # seconds; the longest cell takes half a minute on two idle cores
# What a kernel must find so that two runs print the same; `pytest --nbval` sets the same (conftest.py).
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYTHONHASHSEED": "0",
}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}


def compile_kernels() -> None:
    """Have the fast scan compiled and checked now, so that no cell stores or shows that it was."""
    code = "import torch; from minivim.ops import choose_backend; choose_backend('auto', torch.device('cpu'))"
    subprocess.run([sys.executable, "-c", code], check=True)


def sources(names: list[str] = ()) -> list[Path]:
    """The source files, in course order; `names` may leave out the folder, the suffix and all but the number."""
    found = sorted((HERE / "src").glob("[0-9][0-9]_*.py"))
    wanted = [Path(name).stem for name in names]
    for name in wanted:
        if not any(path.stem.startswith(name) for path in found):
            raise ValueError(f"no notebook is called {name!r}; there are {', '.join(path.stem for path in found)}")
    return [path for path in found if not wanted or any(path.stem.startswith(name) for name in wanted)]


def split_solution(code: str) -> tuple[str, str]:
    """The learner's and the solved version of a cell; they are equal where the cell holds no exercise."""
    learner, solved, begin = [], [], None
    for line in code.splitlines():
        if line.strip() == BEGIN and begin is None:
            begin = line.removesuffix(BEGIN)
            if not begin:
                raise ValueError("a solution must stand inside a function, so that Run All works while it is open")
            learner.append(begin + STUB)
        elif line.strip() == END and begin is not None:
            begin = None
        elif line.strip() in (BEGIN, END):
            raise ValueError(f"{line.strip()!r} without its partner in:\n{code}")
        else:
            solved.append(line)
            if begin is None:
                learner.append(line)
    if begin is not None:
        raise ValueError(f"{BEGIN!r} without {END!r} in:\n{code}")
    return "\n".join(learner), "\n".join(solved)


def read_source(path: Path, solved: bool = False) -> nbformat.NotebookNode:
    """The notebook that `path` describes, not executed."""
    notebook = jupytext.read(path, fmt="py:percent")
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index:03d}"
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.source = split_solution(cell.source)[solved]
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def slimmed(picture: str) -> str:
    """A PNG, in base64, with a palette of 256 colours."""
    return base64.b64encode(with_palette(base64.b64decode(picture), 256)).decode()


def execute(notebook: nbformat.NotebookNode, folder: Path = HERE) -> nbformat.NotebookNode:
    """Run all cells in one kernel, in `folder`, and keep what does not vary."""
    # Streams are joined because a pause between two lines, which varies, would cut them in two.
    options = {"timeout": CELL_TIMEOUT, "record_timing": False, "store_widget_state": False, "coalesce_streams": True}
    client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(folder)}}, **options)
    client.execute(env=os.environ | ENVIRONMENT)
    notebook.metadata = nbformat.from_dict(METADATA)  # the kernel adds its own version
    for cell in notebook.cells:
        if cell.cell_type == "code":
            if VOLATILE in cell.metadata.get("tags", []):
                cell.outputs = []  # they are for the person who runs the cell
            # A progress bar is for the person who runs the cell; stored, it would show 0 %.
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
            for output in cell.outputs:
                if FIGURE in output.get("data", {}):
                    output.data[FIGURE] = slimmed(output.data[FIGURE])
    return notebook


def products(path: Path) -> dict[Path, nbformat.NotebookNode]:
    """The notebooks that a source gives, by the path where they belong, not executed."""
    learner, solved = read_source(path), read_source(path, solved=True)
    course = path.parent.parent
    made = {course / f"{path.stem}.ipynb": learner}
    if learner != solved:
        made[course / "solutions" / f"{path.stem}.ipynb"] = solved
    return made


def build(path: Path) -> list[Path]:
    """Execute and write what the source `path` gives."""
    made = products(path)
    for target, notebook in made.items():
        target.parent.mkdir(exist_ok=True)
        nbformat.write(execute(notebook, path.parent.parent), target)
    return list(made)


def is_stale(target: Path, fresh: nbformat.NotebookNode) -> bool:
    """Whether the stored notebook is missing or differs from its source in anything but results."""
    if not target.exists():
        return True
    stored = nbformat.read(target, as_version=4)
    parts = ("id", "cell_type", "source", "metadata")
    return [[cell.get(part) for part in parts] for cell in stored.cells] != [
        [cell.get(part) for part in parts] for cell in fresh.cells
    ]


def stale(names: list[str] = ()) -> list[Path]:
    """The notebooks that must be built again."""
    made = {target: fresh for path in sources(names) for target, fresh in products(path).items()}
    return [target for target, fresh in made.items() if is_stale(target, fresh)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="such as 00_start_here, or 00")
    parser.add_argument("--check", action="store_true", help="build nothing; fail if a notebook is stale")
    arguments = parser.parse_args()
    if arguments.check:
        outdated = stale(arguments.names)
        print("\n".join(f"stale: {path.relative_to(HERE)}" for path in outdated) or "no notebook is stale")
        return len(outdated) > 0
    compile_kernels()
    for path in sources(arguments.names):
        print("built", *(str(target.relative_to(HERE)) for target in build(path)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
