"""A learner's first minutes: JupyterLab opens notebook 00 in a real browser, and all its cells run without an error.

It takes as long as training the notebook's model does, so `pytest` leaves it out unless asked: pytest -m browser
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = "00_start_here.ipynb"
START_SECONDS, RUN_SECONDS = 120, 900
KERNEL_IDLE = """() => {
    const session = window.jupyterapp?.shell?.currentWidget?.sessionContext?.session;
    return session?.kernel?.status === 'idle';
}"""
RUN_ALL = "() => window.jupyterapp.commands.execute('notebook:run-all-cells')"  # resolves when all cells have run
CODE_CELLS = """() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells
    .filter(cell => cell.cell_type === 'code')
    .map(cell => ({count: cell.execution_count, source: cell.source, outputs: cell.outputs}))"""


def find_chromium():
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("MINIVIM_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture
def chromium():
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium on the path (set MINIVIM_CHROMIUM to one)")
    return path


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab that serves a copy of the notebook, so that the stored one stays as it is."""
    pytest.importorskip("jupyterlab", reason="JupyterLab comes with the extra 'notebooks'")
    shutil.copy(ROOT / "notebooks" / NOTEBOOK, tmp_path)
    port = free_port()
    options = {
        "ServerApp.ip": "127.0.0.1", "ServerApp.port": port, "ServerApp.root_dir": tmp_path,
        "IdentityProvider.token": "", "ServerApp.password": "", "ServerApp.disable_check_xsrf": True,
        "LabApp.expose_app_in_browser": True, "LabApp.news_url": None,
    }  # fmt: skip
    flags = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", *flags]
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # the tests draw to files
    with (tmp_path / "lab.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"{address}/api"):
            assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "lab.log").read_text()
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


@pytest.mark.browser
def test_notebook_00_runs_in_jupyterlab(lab, chromium):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright comes with the extra 'dev'")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(1000 * START_SECONDS)
        page.goto(f"{lab}/lab/tree/{NOTEBOOK}?reset", wait_until="domcontentloaded")
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        page.wait_for_function(KERNEL_IDLE)
        page.set_default_timeout(1000 * RUN_SECONDS)
        page.evaluate("() => window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
        page.evaluate(RUN_ALL)
        cells = page.evaluate(CODE_CELLS)
        pictures = page.locator(".jp-OutputArea-output img").count()
        browser.close()
    assert [cell["count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell["outputs"]:
            assert output["output_type"] != "error", cell["source"]
            assert output.get("name") != "stderr", (cell["source"], output)
    assert pictures > 0
