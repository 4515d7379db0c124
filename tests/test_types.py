"""The annotations as a type checker sees them: none contradicts another, and a program gets what they promise."""

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

if find_spec("mypy") is None:
    pytest.skip("mypy is not installed: pip install 'minivim[dev]'", allow_module_level=True)

# `# E: code` at the end of a line is what mypy must say of it; of the others it must say nothing.
PROGRAM = """
from typing import assert_type

import torch
from torch import Tensor, nn

import minivim
from minivim import compat
from minivim.models import Backbone

u, A, B = torch.ones(1, 3, 2), -torch.ones(2, 4), torch.ones(1, 3, 4)

assert_type(minivim.__version__, str)
assert_type(minivim.available_backends(), tuple[str, ...])
assert_type(minivim.list_models(), list[str])

assert_type(minivim.selective_scan(u, u, A, B, B), Tensor)
assert_type(minivim.selective_scan(u, u, A, B, B, reverse=True, backend="chunked"), Tensor)
assert_type(minivim.selective_scan(u, u, A, B, B, return_last_state=True), tuple[Tensor, Tensor])
minivim.selective_scan(u, u, A, B)  # E: call-overload
minivim.selective_scan(u, u, A, B, B, reverse="yes")  # E: call-overload
minivim.selective_scan(u, u, A, B, B, return_last_state=True).sum()  # E: attr-defined

assert_type(compat.selective_scan_fn(u, u, A, B, B), Tensor)
assert_type(compat.selective_scan_fn(u, u, A, B, B, return_last_state=True), tuple[Tensor, Tensor])
assert_type(compat.selective_state_update(u, u[0], u[0], A, B[0], B[0]), Tensor)
compat.selective_state_update(u, u[0], u[0], A, B[0], B[0], D=1.0)  # E: arg-type

model = minivim.create_model("vim_tiny_patch16_224", num_classes=10)
assert_type(model.num_features, int)
assert_type(model.num_prefix_tokens, int)
assert_type(model.default_cfg, dict)
assert_type(model.resize_to(64, 64), Backbone)
model.resize_to("64", 64)  # E: arg-type
minivim.create_model(3)  # E: arg-type
minivim.VimConfig(embed_dim=32, layers=2)  # E: call-arg
minivim.VimConfig(depth="two")  # E: arg-type
config = minivim.VimConfig(depth=2)
config.depth = 3  # E: misc
vim = minivim.VisionMamba(config)
assert_type(vim.get_classifier(), nn.Module)
assert_type(vim.forward_features(torch.ones(1, 3, 224, 224)), Tensor)

block = minivim.MambaBlock(8)
output, state = block.step(torch.ones(1, 8), block.initial_state(1))
assert_type(output, Tensor)
assert_type(state.ssm, Tensor)
minivim.MambaBlock(8, expand="twice")  # E: arg-type
"""


@pytest.fixture(scope="module")
def complaints(tmp_path_factory) -> list[tuple[str, int, str]]:
    """(file, line, what mypy says of it), for the package as a wheel lays it out, and the program."""
    folder = tmp_path_factory.mktemp("types")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "minivim", folder / "minivim", ignore=ignore)
    shutil.copytree(ROOT / "kernels", folder / "minivim" / "kernels", ignore=ignore)
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", ".cache"]
    answer = subprocess.run(
        [*command, "minivim", "program.py"], cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    assert answer.returncode in (0, 1), answer.stdout + answer.stderr
    lines = re.findall(r"^(\S+?):(\d+): error: (.*)$", answer.stdout, re.MULTILINE)
    return [(path, int(number), text) for path, number, text in lines]


def test_the_package_does_not_contradict_its_annotations(complaints):
    assert [each for each in complaints if each[0] != "program.py"] == []


def test_a_users_program_gets_the_types_that_are_promised(complaints):
    found = {(line, text.rpartition("[")[2].rstrip("]")) for path, line, text in complaints if path == "program.py"}
    expected = {
        (number, line.partition("# E: ")[2]) for number, line in enumerate(PROGRAM.splitlines(), 1) if "# E: " in line
    }
    assert found == expected
    assert len(expected) >= 8


def test_each_ignored_error_has_its_code_and_its_reason():
    files = [*(ROOT / "minivim").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    waived = [line for path in files for line in path.read_text().splitlines() if "type: ignore" in line]
    assert waived
    assert all(re.search(r"# type: ignore\[[a-z-]+\]  # .{8,}", line) for line in waived), waived
