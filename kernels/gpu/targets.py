"""The GPUs that the Triton kernels are compiled for, without one of them.

The operators run on tensors without memory, and what they launch is written down. A stand-in for Triton's driver then
names a GPU, and Triton compiles each launch as it would there: the same arguments, specialised in the same way.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import patch

import torch
import triton
from minivim.kernels.gpu.conv import launch as conv
from minivim.kernels.gpu.scan import launch as scan
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

FAMILIES = (
    ("cuda", 32, (75, 80, 86, 89, 90, 100, 120)),
    ("hip", 64, ("gfx90a", "gfx942")),
    ("hip", 32, ("gfx1100",)),
)
TARGETS = {f"{kind}:{arch}": GPUTarget(kind, arch, lanes) for kind, lanes, names in FAMILIES for arch in names}
L, E, N, WIDTH = 197, 384, 16, 4  # of Vim-Tiny's scan and convolution at 224 x 224
BATCHES = (256, 128, 64, 8)  # for which `plan` gives 4, 2 and 1 channels a lane, and several chunks of time


class Launch(NamedTuple):
    """A kernel, its arguments, and its constants by name, with the warps."""

    kernel: JITFunction
    arguments: tuple
    constants: dict

    @property
    def name(self) -> str:
        return self.kernel.__name__


def scans(batch: int, two: bool) -> None:
    """Forward with and without kept states, and backward; in one direction gate and scan are one kernel."""
    wide = torch.empty(batch, L, E, dtype=torch.bfloat16, device="meta")
    narrow = torch.empty(batch, L, N, dtype=torch.bfloat16, device="meta")
    A, D = (torch.empty(*shape, dtype=torch.float32, device="meta") for shape in ((E, N), (E,)))
    inputs = [wide, wide, A, narrow, narrow]
    for save in (False, True):
        back = (*inputs, D, D) if two else (None,) * 7
        out, _, y, states = scan.scan.plain(*inputs, D, wide, D, None, *back, True, False, save)
    vectors = [D, D] if two else [D]
    scan.scan_backward.plain(inputs, inputs if two else [], vectors, vectors, wide, y, states, out, None, True, False)


def convolutions(batch: int, two: bool) -> None:
    """Forward and backward."""
    x = torch.empty(batch, L, E, dtype=torch.bfloat16, device="meta")
    weight, bias = (torch.empty(*shape, dtype=torch.float32, device="meta") for shape in ((E, WIDTH), (E,)))
    y = conv.conv.plain(x, weight, bias, weight if two else None, bias if two else None, False)
    weights, biases = ([weight] * 2, [bias] * 2) if two else ([weight], [bias])
    conv.conv_backward.plain(x, weights, biases, y, False)


def launches() -> list[Launch]:
    """What the operators launch for a Vim-Tiny in bfloat16.

    RuntimeError under TRITON_INTERPRET=1, which leaves nothing to compile.
    """
    if not isinstance(scan.kernels.scan_forward, JITFunction):
        raise RuntimeError("Triton's interpreter is on, and compiles nothing: TRITON_INTERPRET must not be 1")
    found = []

    def record(kernel, *arguments, grid, warmup, **constants):
        found.append(Launch(kernel, arguments, constants))

    with patch.object(JITFunction, "run", record):
        for batch in BATCHES:
            scans(batch, two=True)
        scans(BATCHES[-1], two=False)
        for two in (False, True):
            convolutions(BATCHES[-1], two)
    return found


def compile_launch(launch: Launch, target: str):
    """What Triton makes of a launch; `asm` holds the machine code. Afterwards this process can launch nothing."""
    stand_in = SimpleNamespace(
        get_current_device=lambda: target,  # Triton keeps what it has compiled apart by device
        get_current_stream=lambda device: 0,
        get_current_target=lambda: TARGETS[target],
    )
    driver.set_active(stand_in)
    return launch.kernel.warmup(*launch.arguments, grid=(1,), **launch.constants)


def tool(name: str) -> Path:
    """A program that Triton's wheel carries."""
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def inspect(name: str, option: str, cubin: bytes) -> str:
    """What one of NVIDIA's programs says of machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool(name), option, file.name], capture_output=True, text=True, check=True).stdout


def resources(asm: dict) -> tuple[int, int]:
    """(registers, bytes spilled to memory) of a thread."""
    if "amdgcn" in asm:
        text, patterns = asm["amdgcn"], (r"\.vgpr_count:\s*(\d+)", r"\.private_segment_fixed_size:\s*(\d+)")
    else:
        text, patterns = inspect("cuobjdump", "-res-usage", asm["cubin"]), (r"REG:(\d+)", r"STACK:(\d+)")
    registers, spilled = (int(re.search(pattern, text)[1]) for pattern in patterns)
    return registers, spilled


def reason(error: BaseException) -> str:
    """The first line that says what is wrong: Triton's errors begin with the kernel's source, the cause comes last."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = getattr(error, "error_message", None) or str(error) or type(error).__name__
    return str(said).strip().splitlines()[0]


def report(targets: Iterable[str]) -> bool:
    """Compile every launch for each target and print a line a target; whether all could be compiled."""
    launched, failed = launches(), False
    columns = ("kernels", "variants", "seconds", "registers", "spilled bytes")
    print("target".ljust(12), *(f"{column:>13}" for column in columns))
    for target in targets:
        begun, variants, errors = time.perf_counter(), {}, {}
        for launch in launched:
            try:
                compiled = compile_launch(launch, target)
                variants[compiled.hash] = (launch.name, *resources(compiled.asm))
            except Exception as error:  # every version of Triton has its own
                errors.setdefault(launch.name, reason(error))
        names, registers, spilled = zip(*variants.values(), strict=True) if variants else ((), (0,), (0,))
        seconds = time.perf_counter() - begun
        row = (len({*names} - {*errors}), len(variants), f"{seconds:.1f}", max(registers), max(spilled))
        print(f"{target:<12}", *(f"{entry:>13}" for entry in row), flush=True)
        for name, error in errors.items():
            print(f"{target} {name}: {error}", file=sys.stderr, flush=True)
        failed |= bool(errors)
    return not failed
