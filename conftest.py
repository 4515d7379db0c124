"""Makes the bare `pytest --nbval notebooks/` compare what it should, with no further flags."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SOLUTIONS = ROOT / "notebooks" / "solutions"
NBVAL_CELL_TIMEOUT = 2000  # nbval's own default, seconds


def pytest_configure(config):
    config.addinivalue_line("markers", "browser: drives JupyterLab in a browser; run with `pytest -m browser`")
    option = config.option
    if not getattr(option, "nbval", False):
        return
    from notebooks.build import CELL_TIMEOUT, ENVIRONMENT, compile_kernels  # a run without --nbval needs no Jupyter

    os.environ.update(ENVIRONMENT)  # the kernels inherit it
    compile_kernels()
    option.nbval_sanitize_with = option.nbval_sanitize_with or str(ROOT / "tests" / "nbval_sanitize.cfg")
    option.nbval_current_env = not option.nbval_kernel_name
    if float(option.nbval_cell_timeout) == NBVAL_CELL_TIMEOUT:
        option.nbval_cell_timeout = CELL_TIMEOUT
    if getattr(option, "dist", "no") == "load":
        option.dist = "loadfile"  # the cells of one notebook need one kernel


def pytest_ignore_collect(collection_path, config):
    """A solved notebook repeats the open one, so nbval would run everything twice; tests/test_notebooks.py compares
    its outputs with those of the open notebook instead. Naming the folder on the command line still runs it."""
    if collection_path == SOLUTIONS:
        return True
    return None


def pytest_collection_modifyitems(config, items):
    """Browser tests take minutes: they run only when they are asked for."""
    if "browser" in config.option.markexpr or any("test_lab" in argument for argument in config.args):
        return
    chosen = [item for item in items if item.get_closest_marker("browser") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen
