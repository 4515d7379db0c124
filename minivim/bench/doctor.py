"""`minivim doctor`: what this machine can run, what "auto" picks, and whether each backend is right here."""

import statistics

import torch

from minivim.bench import measure
from minivim.bench.scan import ScanCase, scan_call
from minivim.ops import choose_backend
from minivim.ops.implementations import NEEDS, can_run, missing
from minivim.ops.proof import examine
from minivim.ops.verdict import check

OPTIONAL = {
    "numba": ("numba", "the fast scan on a CPU"),
    "triton": ("triton", "the fast scan on a CUDA device"),
    "tyro": ("train", "the flags of train, eval, predict, bench and grade"),
    "datasets": ("train", "data from the Hub and parquet folders"),
    "scikit-learn": ("train", "the embedded digits"),
    "safetensors": ("train", "checkpoints"),
    "matplotlib": ("train", "pictures"),
    "pillow": ("train", "image files"),
}
SHAPE = (1, 384, 197, 16)  # B, E, L, N of one direction of a Vim-Tiny's block on one image
ROUNDS = 3


def milliseconds(backend: str, device: str) -> float:
    """The median time of one scan, there and back."""
    call = scan_call(backend, False, "forward + backward", ScanCase(*SHAPE, "float32", device))
    sample = measure.cpu_sampler(call) if device == "cpu" else measure.cuda_sampler([call])
    return 1000 * statistics.median(sample() for _ in range(ROUNDS))


def examined(backend: str, device: str) -> str:
    """Whether a backend can run, computes what it should, and how fast; a compiled one is examined anew."""
    if not can_run(backend, device):
        return missing(backend) or f"cannot run on {device}: it runs on {NEEDS[backend][0]} only"
    wrong = check(backend, torch.device(device)) if NEEDS[backend][1] else examine(backend, torch.device(device))
    return f"WRONG: {wrong}" if wrong else f"right, {milliseconds(backend, device):.2f} ms"


def backend_lines(device: str) -> list[str]:
    """One line a backend, and what "auto" makes of it."""
    found = [f"  {backend:<10} {examined(backend, device)}" for backend in NEEDS]
    chosen = choose_backend("auto", torch.device(device)).name
    B, E, L, N = SHAPE
    measured = f"forward + backward of a scan with B {B}, E {E}, L {L}, N {N}"
    return [f'scan backends on {device} ("auto" picks {chosen}; times: {measured}):', *found]


def package_lines() -> list[str]:
    """One line an optional package."""
    lines = ["optional packages:"]
    for package, (extra, purpose) in OPTIONAL.items():
        found = measure.version(package) or f"missing, for {purpose}: pip install 'minivim[{extra}]'"
        lines.append(f"  {package:<13} {found}")
    return lines


def diagnose() -> str:
    """Everything that `minivim doctor` prints."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    here = measure.environment()
    versions = ", ".join(f"{name} {number}" for name, number in here["versions"].items())
    lines = [f"Python {here['python']} on {here['platform']}", versions]
    lines += [f"{device}: {measure.device_name(device)}" for device in devices]
    if devices == ["cpu"]:
        lines.append(
            "cuda: not available" + (", this torch was built without it" if torch.version.cuda is None else "")
        )
    lines += [f"threads: {here['threads']}", *package_lines()]
    for device in devices:
        lines += backend_lines(device)
    return "\n".join(lines)
