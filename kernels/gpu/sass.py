"""What the GPU will run: the Triton kernels compiled for sm_90, without a GPU, and their inner loops counted.

    python -m minivim.kernels.gpu.sass

The scan is bound by issued instructions, so instructions per step and 32 channels are its speed. Each line gives those
of the loop over time, how many of them are shuffles, shared-memory accesses or spills, and the warps that fit on a
multiprocessor with that many registers.
"""

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

TARGET = 90  # compute capability of Hopper, times ten
REGISTERS, WARPS = 65536, 64  # of a multiprocessor
PROGRAMS = 32  # that run on it at once, at most
N, K = 16, 32


@dataclass(frozen=True)
class Loop:
    """The inner loop of one kernel, for one step of 32 channels."""

    instructions: float
    shuffles: int
    shared: int
    spills: int
    registers: int
    warps: int  # resident on a multiprocessor


def disassembler() -> Path | None:
    """Triton's wheel carries one."""
    try:
        import triton
    except ImportError:
        return None
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    return path if path.exists() else None


def compile_for_gpu(kernel, pointers: dict[str, str], constants: dict) -> bytes:
    """The cubin of a kernel; arguments that are neither pointer nor constant are 32-bit integers, multiples of 16."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_source

    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
    fixed = {(names.index(name),): value for name, value in constants.items()}
    plain = ("L", "steps", "chunks", "E_units")
    attributes = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name not in constants and name not in plain
    }
    source = ASTSource(kernel, signature, fixed, attributes)
    compiled = compile_source(source, target=GPUTarget("cuda", TARGET, 32), options={"num_warps": 1})
    return compiled.asm["cubin"]


def disassemble(cubin: bytes) -> str:
    """Assembly with labels."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        found = subprocess.run([str(disassembler()), "-c", file.name], capture_output=True, text=True, check=True)
    return found.stdout


def loops(assembly: str) -> list[list[str]]:
    """The bodies of all loops that hold no other loop: from a label to a branch back to it."""
    lines, labels, found = [], {}, []
    for line in assembly.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(lines)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            lines.append(instruction[1].strip())
            target = re.search(r"\bBRA\b.*?(\.L_\w+)", lines[-1])
            if target and target[1] in labels:
                found.append((labels[target[1]], len(lines)))
    inner = [a for a in found if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in found)]
    return [lines[start:end] for start, end in inner]


def count(pattern: str, body: list[str]) -> int:
    return sum(bool(re.search(pattern, line)) for line in body)


def resident_warps(registers: int) -> int:
    """Programs of one warp that fit: registers are given out 8 a thread at a time."""
    return min(WARPS, PROGRAMS, REGISTERS // (32 * (-(-registers // 8) * 8)))


def measure(kernel, pointers: dict[str, str], constants: dict, exponentials: int) -> Loop:
    """Count the loop over time; `exponentials`: states times channels a lane, to tell an unrolled step from two."""
    assembly = disassemble(compile_for_gpu(kernel, pointers, constants))
    bodies = [body for body in loops(assembly) if count(r"MUFU\.EX2", body) >= exponentials]
    steps = [count(r"MUFU\.EX2", body) // exponentials for body in bodies]
    channels = exponentials / constants["N"]
    registers = max([int(n) for n in re.findall(r"\bR(\d+)\b", assembly)], default=0) + 1
    return Loop(
        sum(len(body) / step for body, step in zip(bodies, steps, strict=True)) / channels,
        sum(count(r"\bSHFL", body) for body in bodies),
        sum(count(r"\b(LDS|STS|LDSM|BAR)\b", body) for body in bodies),
        count(r"\b(LDL|STL)\b", assembly.splitlines()),
        registers,
        resident_warps(registers),
    )


def table() -> dict[str, Loop]:
    """Every kernel's loop, by name and channels a lane (V); bfloat16 activations, N = 16, softplus, no gate."""
    import triton.language as tl
    from minivim.kernels.gpu.scan import kernels

    halves = dict.fromkeys(("u", "delta", "x", "dy", "y", "du", "ddelta"), "*bf16")
    singles = "A B C D bias states last added faded scratch dA dB dC dD dbias dstart".split()
    pointers = halves | dict.fromkeys(singles, "*fp32")
    shared = {"STATES": N, "N": N, "ACC": tl.float32, "REVERSE": 0, "SOFTPLUS": True, "MASK": False}
    found = {}
    for V in (1, 2, 4):
        lanes = shared | {"BLOCK": 32 * V, "V": V}
        run = lanes | {"z": None, "out": None, "start": None, "K": K, "START": False}
        for save in (False, True):
            name = f"forward{', keeping states' if save else ''}, V = {V}"
            fixed = run | {"SAVE": save} | ({} if save else {"states": None})
            found[name] = measure(kernels.scan_forward, pointers, fixed, N * V)
        for adjoint in (False, True):
            name = f"chunk states{', backward' if adjoint else ''}, V = {V}"
            found[name] = measure(kernels.scan_states, pointers, lanes | {"ADJOINT": adjoint}, N * V)
    fixed = shared | {"BLOCK": 32, "start": None, "K": K, "START": False}
    found["backward"] = measure(kernels.scan_backward, pointers, fixed, N)
    return found


def main() -> int:
    if disassembler() is None:
        print("no disassembler: Triton's wheel carries one; pip install 'minivim[triton]'", file=sys.stderr)
        return 2
    columns = ("instructions", "shuffles", "shared", "spills", "registers", "warps")
    print(f"sm_{TARGET}, N = {N}, a step of 32 channels".ljust(34), *(f"{column:>12}" for column in columns))
    for name, loop in table().items():
        print(f"{name:<34}", *(f"{getattr(loop, column):>12.4g}" for column in columns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
