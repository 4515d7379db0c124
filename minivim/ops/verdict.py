"""Whether a compiled backend has proved itself on a device: asked once, and kept on disk for every later process.

A verdict holds for this device, driver, these versions and kernels; what else may change makes it be asked again.
"""

import json
import platform
import sys
import threading
import warnings
from pathlib import Path

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from minivim.extras import version
from minivim.files import write_atomically
from minivim.kernels import forks, store

FILE = "verdicts.json"
known: dict[tuple[str, str], bool] = {}  # (backend, device) -> whether it has proved itself
said: set[str] = set()  # what has been warned of
lock = threading.RLock()


def processor() -> str:
    """The CPU, and what it can do, as the system describes the first core."""
    described = Path("/proc/cpuinfo")
    if not described.exists():
        return f"{platform.processor()} {platform.machine()}"
    with described.open() as file:
        lines = [line for line, _ in zip(file, range(40), strict=False)]
    return " ".join(
        line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "flags", "Feat"))
    )


def accelerator(device: torch.device) -> str:
    """The GPU, and its driver."""
    drivers = (Path("/proc/driver/nvidia/version"), Path("/sys/module/amdgpu/version"))
    driver = " ".join(path.read_text().partition("\n")[0] for path in drivers if path.exists())
    return f"{torch.cuda.get_device_name(device)} {torch.cuda.get_device_capability(device)} {driver}"


def circumstances(name: str, device: torch.device) -> str:
    """All that a verdict depends on beside the kernels' own lines, which name the folder."""
    packages = ("torch", "numpy", "numba", "llvmlite", "triton")
    versions = [f"{package} {found}" for package in packages if (found := version(package))]
    place = processor() if device.type == "cpu" else accelerator(device)
    return "; ".join([name, platform.python_version(), *versions, place])


def verdicts() -> dict[str, str | None]:
    """What is on disk; nothing if that cannot be read."""
    folder = store.folder()
    try:
        found = json.loads((folder / FILE).read_text()) if folder else {}
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def remember(name: str, device: torch.device, found: str | None) -> None:
    """Keep a verdict for this process, and on disk for the next; a full disk costs the next one its time."""
    known[name, str(device)] = found is None
    folder = store.folder()
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)  # damaged kernels may have been thrown away with it
        written = verdicts() | {circumstances(name, device): found}
        write_atomically(folder / FILE, json.dumps(written, indent=1).encode())
    except OSError:
        return


def check(name: str, device: torch.device) -> str | None:
    """Examine now, whatever was found before, and keep the verdict."""
    from minivim.ops.proof import examine, in_a_child, in_a_thread  # which a process needs once in its life, or never

    print(f"minivim: compiling and checking the {name} kernels on {device}; this happens once", file=sys.stderr)
    found = in_a_thread(examine, name, device) if device.type == "cpu" else in_a_child(name, device)
    remember(name, device, found)
    return found


def must_wait() -> bool:
    """Whether this is no place to run anything: a trace, a transform, a forked worker."""
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    return transformed or torch.jit.is_tracing() or is_in_torch_dispatch_mode() or forks.forked


def warn(sentence: str) -> None:
    """A warning that is given once in a process."""
    if sentence not in said:
        said.add(sentence)
        warnings.warn(f"{sentence} (`minivim doctor` checks again)", RuntimeWarning, stacklevel=4)


def holds(name: str, kind: str, index: int | None, compiling: bool) -> bool:
    """Whether "auto" may take a compiled backend on this device; examines it if nobody has yet, and says so if not."""
    device = torch.device(kind) if index is None else torch.device(kind, index)
    if (name, str(device)) in known:
        return known[name, str(device)]
    with lock:
        written, key = verdicts(), circumstances(name, device)
        if key in written:
            found = written[key]
            known[name, str(device)] = found is None
        elif compiling or must_wait():
            found = "nothing may be compiled inside a trace, a vmap or a forked worker: call it once outside, first"
        else:
            found = check(name, device)
    if found is not None:
        warn(f"backend {name!r} is not used on {device}: {found}; the slower 'chunked' runs instead")
    return found is None


# torch.compile calls this while it traces and takes the answer for a constant; its decorator of that name would import
# the compiler, which takes seconds.
holds._dynamo_marked_constant = True  # type: ignore[attr-defined]  # an attribute that Dynamo looks for
