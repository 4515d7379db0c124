"""`minivim doctor`: what this machine can run, what "auto" picks, and whether each backend is right here."""

import time

import torch

from minivim.bench import measure
from minivim.bench.scan import ScanCase, error_against, reference_outputs
from minivim.ops import available_backends, choose_backend
from minivim.ops.implementations import NEEDS

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
SELF_TEST = (2, 32, 33, 16)  # B, E, L, N


def self_test(backend: str, device: str) -> str:
    """One small scan with gradients, compared with the reference in float64; or why the backend cannot run."""
    try:
        choose_backend(backend, torch.device(device))
    except ValueError as reason:
        return str(reason)
    case = ScanCase(*SELF_TEST, "float32", device)
    start = time.perf_counter()
    try:
        error = error_against(reference_outputs(case.inputs()), backend, channel_first=False, case=case)
    except ValueError as failure:
        return f"WRONG: {failure}"
    return f"right, error {error:.0e}, {time.perf_counter() - start:.1f} s with compilation"


def backend_lines(device: str) -> list[str]:
    """One line a backend: whether it can run and is right, or why it cannot."""
    lines = [f'scan backends on {device} ("auto" picks {available_backends(device)[0]}):']
    return lines + [f"  {backend:<10} {self_test(backend, device)}" for backend in NEEDS]


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
