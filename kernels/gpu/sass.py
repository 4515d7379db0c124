"""What the GPU will run, without a GPU: the Triton kernels as the operators launch them, compiled, and counted.

    python -m minivim.kernels.gpu.sass                                   # the scan's loops, in the code for sm_90
    python -m minivim.kernels.gpu.sass --targets                         # every kernel, for every GPU of `targets.py`
    python -m minivim.kernels.gpu.sass --targets cuda:90 hip:gfx942

The scan is bound by issued instructions, so instructions per step and 32 channels are its speed. Each line of the first
table gives those of the loop over time, how many of them are shuffles, shared-memory accesses or spills, the registers,
and the warps that fit on a multiprocessor with that many. The second says what could be compiled; what could not is
named with the compiler's reason, and the command ends with 1.
"""

import argparse
import os
import re
import sys
from dataclasses import dataclass

from minivim.kernels.gpu.targets import TARGETS, Launch, N, compile_launch, inspect, launches, report, resources, tool

HOPPER = "cuda:90"
REGISTERS, WARPS = 65536, 64  # of a multiprocessor
PROGRAMS = 32  # that run on it at once, at most


@dataclass(frozen=True)
class Loop:
    """The inner loop of one kernel, for one step of 32 channels."""

    instructions: float
    shuffles: int
    shared: int
    spills: int
    registers: int
    warps: int  # resident on a multiprocessor


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


def measure(launch: Launch) -> Loop:
    """Count the loops over time; an iteration's steps are told by their exponentials, N a channel and step."""
    asm = compile_launch(launch, HOPPER).asm
    channels = launch.constants.get("V", 1)  # of a lane
    together = 2 if launch.name == "scan_backward" else 1  # steps that the source itself takes in one iteration
    least = together * N * channels
    bodies = [body for body in loops(inspect("nvdisasm", "-c", asm["cubin"])) if count(r"MUFU\.EX2", body) >= least]
    steps = [together * (count(r"MUFU\.EX2", body) // least) for body in bodies]
    registers, _ = resources(asm)
    return Loop(
        sum(len(body) / step for body, step in zip(bodies, steps, strict=True)) / channels,
        sum(count(r"\bSHFL", body) for body in bodies),
        sum(count(r"\b(LDS|STS|LDSM|BAR)\b", body) for body in bodies),
        sum(count(r"\b(LDL|STL)\b", body) for body in bodies),
        registers,
        resident_warps(registers),
    )


def label(launch: Launch) -> str:
    """The kernel and what it is compiled for, in words."""
    constants, names = launch.constants, launch.kernel.arg_names
    gated = "z" in names and launch.arguments[names.index("z")] is not None
    parts = {
        f"V = {constants.get('V')}": "V" in constants,
        "from a state": constants.get("START"),
        "keeping states": constants.get("SAVE"),
        "gated": gated,
        "adjoint": constants.get("ADJOINT"),
    }
    return ", ".join([launch.name.removeprefix("scan_"), *(part for part, there in parts.items() if there)])


def table() -> dict[str, Loop]:
    """The loop of every variant of the scan's kernels."""
    return {label(launch): measure(launch) for launch in launches() if launch.name.startswith("scan_")}


def print_loops() -> None:
    columns = ("instructions", "shuffles", "shared", "spills", "registers", "warps")
    print(f"sm_90, N = {N}, a step of 32 channels".ljust(52), *(f"{column:>12}" for column in columns))
    for name, loop in table().items():
        print(f"{name:<52}", *(f"{getattr(loop, column):>12.4g}" for column in columns))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m minivim.kernels.gpu.sass", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--targets",
        nargs="*",
        choices=TARGETS,
        metavar="TARGET",
        help=f"compile for these, or all: {', '.join(TARGETS)}",
    )
    targets = parser.parse_args().targets
    if not tool("nvdisasm").exists():
        print("no disassembler: Triton's wheel carries one; pip install 'minivim[triton]'", file=sys.stderr)
        return 2
    if targets is None:
        print_loops()
        return 0
    os.environ["TRITON_ALWAYS_COMPILE"] = "1"  # the seconds are the compiler's, not those of its cache
    return 0 if report(targets or TARGETS) else 1


if __name__ == "__main__":
    sys.exit(main())
