"""What decides the speed of the Triton scan, read off the machine code for sm_90, without a GPU."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")
from minivim.kernels.gpu import sass


@pytest.fixture(scope="module")
def loops() -> dict[str, dict]:
    if sass.disassembler() is None:
        pytest.skip("Triton's wheel carries no disassembler here")
    # In a process of its own: the interpreter, once chosen, cannot compile.
    code = "import json, dataclasses; from minivim.kernels.gpu.sass import table; "
    code += "print(json.dumps({k: dataclasses.asdict(v) for k, v in table().items()}))"
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def test_no_kernel_spills_and_no_forward_loop_leaves_its_lane(loops):
    for name, loop in loops.items():
        assert loop["spills"] == 0, name
        if name != "backward":
            assert (loop["shuffles"], loop["shared"]) == (0, 0), name


def test_instructions_a_step(loops):
    """The bound that kernels/README.md derives: the scan is limited by issued instructions."""
    allowed = {"forward": 185, "chunk states": 145, "backward": 600}
    for name, loop in loops.items():
        kind = name.partition(", V")[0].removesuffix(", backward").removesuffix(", keeping states")
        assert 16 * 5 <= loop["instructions"] <= allowed[kind], name  # 5 a state: no loop can have fewer
        assert loop["warps"] >= 8, name


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
