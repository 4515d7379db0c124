"""What decides the speed of the Triton scan, read off the machine code, and what compiles: both without a GPU."""

import ast
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("triton")
from minivim.kernels.gpu import sass, targets

ROOT = Path(__file__).resolve().parents[3]
PINNED = re.search(r"^triton==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
SLACK = 1.0 if version("triton") == PINNED else 1.1  # the limits are the pinned compiler's
SOURCES = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "kernels" / "gpu").rglob("*.py"))}


def compiler(*arguments: str) -> subprocess.CompletedProcess:
    """Python in a process of its own: the interpreter, once chosen, cannot compile."""
    if not targets.tool("nvdisasm").exists():
        pytest.skip("Triton's wheel carries no disassembler here")
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=500)


def said(code: str):
    """The JSON that `code` prints."""
    found = compiler("-c", f"import dataclasses, json; from minivim.kernels.gpu import sass, targets; {code}")
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.fixture(scope="module")
def loops() -> dict[str, dict]:
    return said("print(json.dumps({k: dataclasses.asdict(v) for k, v in sass.table().items()}))")


def test_no_loop_spills_and_no_forward_loop_leaves_its_lane(loops):
    for name, loop in loops.items():
        assert loop["spills"] == 0, name
        if not name.startswith("backward"):
            assert (loop["shuffles"], loop["shared"]) == (0, 0), name


def test_instructions_a_step(loops):
    """The bound that kernels/README.md derives: the scan is limited by issued instructions."""
    allowed = {"forward": 190, "states": 145, "backward": 610}
    for name, loop in loops.items():
        limit = allowed[name.partition(",")[0]] + (20 if "gated" in name else 0)
        assert 16 * 5 <= loop["instructions"] <= limit * SLACK, name  # 5 a state: no loop can have fewer
        assert loop["warps"] >= 8, name


def test_the_table_holds_every_number_of_channels_a_lane(loops):
    assert {f"forward, V = {V}{saved}" for V in (1, 2, 4) for saved in ("", ", keeping states")} <= set(loops)


def test_loops_are_told_from_what_surrounds_them():
    assembly = """
.L_x_1:
        /*0000*/                   MOV R1, R2 ;
.L_x_2:
        /*0010*/                   MUFU.EX2 R7, R7 ;
        /*0020*/              @!P0 BRA `(.L_x_2) ;
        /*0030*/               @P1 BRA `(.L_x_1) ;
        /*0040*/                   BRA `(.L_x_9) ;
"""
    assert sass.loops(assembly) == [["MUFU.EX2 R7, R7", "@!P0 BRA `(.L_x_2)"]]
    assert sass.resident_warps(94) == 21
    assert sass.resident_warps(255) == 8


def kernels() -> set[str]:
    """The functions under triton.jit."""
    functions = [node for tree in SOURCES.values() for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {each.name for each in functions if any("triton.jit" in ast.unparse(d) for d in each.decorator_list)}


def launched() -> set[str]:
    """The names before [grid](...)."""
    calls = [node for tree in SOURCES.values() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {ast.unparse(call.func.value).rpartition(".")[2] for call in calls if isinstance(call.func, ast.Subscript)}
    return names & kernels()


def test_every_kernel_that_a_launcher_launches_is_compiled():
    found = said("print(json.dumps([launch.name for launch in targets.launches()]))")
    assert set(found) == launched()
    called = {node.func.id for tree in SOURCES.values() for node in ast.walk(tree) if isinstance(node, ast.Call)
              if isinstance(node.func, ast.Name)}  # fmt: skip
    assert kernels() == launched() | (kernels() & called), "a kernel that nothing launches or calls"


@pytest.mark.parametrize("target", ["cuda:90", "hip:gfx942"])
def test_every_kernel_compiles_for_both_makers(target):
    """The other targets are compiled on request: --targets alone."""
    found = compiler("-m", "minivim.kernels.gpu.sass", "--targets", target)
    if "ld.lld not found" in found.stderr:
        pytest.skip("this version of Triton links with ROCm's own linker")
    assert found.returncode == 0, found.stderr
    (head, *_), (name, kernels, variants, _, registers, _) = (line.split() for line in found.stdout.splitlines())
    assert (head, name) == ("target", target)
    assert int(kernels) == len(launched())
    assert int(variants) > int(kernels)
    assert 64 < int(registers) <= 255


def test_a_kernel_that_cannot_be_compiled_is_named_with_the_reason():
    code = """
import sys
from minivim.kernels.gpu import sass, targets
good, *_, bad = targets.launches()
bad.constants["BLOCK"] = 33
targets.launches = lambda: [good, bad]
sys.argv[1:] = ["--targets", "cuda:75"]
sys.exit(sass.main())
"""
    found = compiler("-c", code)
    assert found.returncode == 1
    assert found.stdout.splitlines()[1].split()[:3] == ["cuda:75", "1", "1"]
    assert found.stderr == "cuda:75 conv_backward_input: arange's range must be a power of 2\n"


def test_an_unknown_target_is_named_beside_the_known_ones():
    found = compiler("-m", "minivim.kernels.gpu.sass", "--targets", "cuda:91")
    assert found.returncode == 2
    assert "'cuda:91'" in found.stderr
    assert all(target in found.stderr for target in targets.TARGETS)


def test_the_interpreter_is_an_error_that_says_what_to_do():
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("there is a GPU: the tests run without the interpreter")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET must not be 1"):
        targets.launches()
