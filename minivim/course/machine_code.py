"""What a notebook's Triton kernel becomes on a GPU: compiled for sm_90 in a child process, and its loop over time read.

A child, because a process that has chosen Triton's interpreter can no longer compile. No GPU is needed: Triton's wheel
carries the compiler and the disassembler.
"""

import inspect
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

from minivim.extras import require

TARGET = ("cuda", 90, 32)  # Hopper, 32 lanes to a warp
HEAD = "import triton\nimport triton.language as tl\n\n\n"


def disassembler() -> Path | None:
    """The program that turns machine code into text; None where Triton or its wheel lacks it."""
    found = find_spec("triton")
    path = Path(found.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm" if found else None
    return path if path and path.exists() else None


def loop_of(kernel: Callable, constants: dict[str, int], numbers: tuple[str, ...], sixteens: tuple[str, ...] = ()):
    """The instructions of the kernel's loop over time, a list of texts; None where no disassembler is.

    `kernel` is decorated with `triton.jit` and calls no other; `constants` are its tl.constexpr arguments, `numbers`
    those that are whole numbers, `sixteens` the ones of these that are multiples of 16. All others are addresses of
    float32. One warp runs a program.

    Raises:
        RuntimeError: the compiler refuses the kernel; the message is the compiler's.
    """
    if disassembler() is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.py"
        file.write_text(HEAD + textwrap.dedent(inspect.getsource(kernel.fn)))
        order = json.dumps([kernel.fn.__name__, constants, numbers, sixteens])
        environment = os.environ | {"TRITON_INTERPRET": "0"}
        command = [sys.executable, "-m", "minivim.course.machine_code", str(file), order]
        child = subprocess.run(command, env=environment, capture_output=True, text=True)
    if child.returncode:
        raise RuntimeError(f"Triton cannot compile {kernel.fn.__name__}:\n{child.stderr}")
    return json.loads(child.stdout)


def compile_loop(file: Path, name: str, constants: dict, numbers: list[str], sixteens: list[str]) -> list[str]:
    """What `loop_of` returns, in a process that compiles."""
    from minivim.kernels.gpu.sass import count, loops

    backends, compiler = require("triton.backends.compiler", "triton"), require("triton.compiler", "triton")
    module = module_from_spec(spec_from_file_location("kernel", file))
    module.__spec__.loader.exec_module(module)
    kernel = getattr(module, name)
    signature, attributes = {}, {}
    for index, argument in enumerate(kernel.arg_names):
        signature[argument] = "constexpr" if argument in constants else "i32" if argument in numbers else "*fp32"
        if signature[argument] == "*fp32" or argument in sixteens:
            attributes[(index,)] = [["tt.divisibility", 16]]
    fixed = {(kernel.arg_names.index(key),): value for key, value in constants.items()}
    source = compiler.ASTSource(kernel, signature, fixed, attributes)
    compiled = compiler.compile(source, target=backends.GPUTarget(*TARGET), options={"num_warps": 1})
    code = Path(file).with_suffix(".cubin")
    code.write_bytes(compiled.asm["cubin"])
    text = subprocess.run([disassembler(), "-c", code], capture_output=True, text=True, check=True).stdout
    return max(loops(text), key=lambda body: count(r"MUFU\.EX2", body))


if __name__ == "__main__":
    print(json.dumps(compile_loop(Path(sys.argv[1]), *json.loads(sys.argv[2]))))
