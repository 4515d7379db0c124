"""The examination of a compiled backend: each operation, there and back, compared with `chunked`.

On a GPU another process does it, so that a fault of the device cannot take the user's process along; what it compiles
is found in Triton's cache by this one.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from minivim.ops.implementations import Backend, load

TOLERANCE = 1e-4  # of the largest value of each result, float32
Answer = TypeVar("Answer")
CHILD_SECONDS = 600.0  # compiling all kernels takes one to three minutes
SIZES = (2, 70, 40, 16)  # B, L, E, N: threads share the work, and Triton cuts time into chunks


# ---- the examination -------------------------------------------------------------------------------------------------


def inputs_on(device: torch.device) -> dict[str, Tensor]:
    """Random inputs of all operations, float32; those of the second direction end in _back."""
    B, L, E, N = SIZES
    generator = torch.Generator("cpu").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(device).requires_grad_()

    tensors = {"x": normal(B, L, E), "z": normal(B, L, E), "residual": normal(B, L, E), "norm_weight": normal(E)}
    for end in ("", "_back"):
        tensors |= {f"weight{end}": normal(E, 4), f"bias{end}": normal(E), f"h{end}": normal(B, E, N)}
        tensors |= {f"{name}{end}": normal(B, L, E) for name in ("u", "delta")}
        tensors |= {f"{name}{end}": normal(B, L, N) for name in ("B", "C")}
        tensors |= {f"{name}{end}": normal(E) for name in ("D", "delta_bias")}
        tensors |= {f"A{end}": normal(E, N).detach().abs().neg().requires_grad_()}
    return tensors


def outputs_of(backend: Backend, t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every operation of the backend, once in each direction."""
    ahead, back = (
        tuple(t[name + end] for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")) for end in ("", "_back")
    )
    convs = (t["weight"], t["bias"]), (t["weight_back"], t["bias_back"])
    found = {"scan in both directions": backend.bidirectional_scan(ahead, back, t["z"])}
    found["convolution"], found["convolution in reverse"] = backend.bidirectional_conv(t["x"], *convs)
    found["scan"], found["last state"] = backend.scan(*ahead[:6], None, ahead[6], True, t["h"], False)
    found["scan in reverse"], found["first state"] = backend.scan(*back[:6], t["z"], back[6], True, t["h_back"], True)
    found["norm"], found["sum"] = backend.add_norm(t["x"], t["residual"], t["norm_weight"], 1e-5)
    return found


def results(backend: Backend, device: torch.device) -> dict[str, Tensor]:
    """The outputs, and the gradients of a weighted sum of them all."""
    inputs = inputs_on(device)
    found = outputs_of(backend, inputs)
    weights = {name: torch.arange(x.numel(), dtype=torch.float32, device=device).cos() for name, x in found.items()}
    loss = torch.stack([(out.flatten() * weights[name]).sum() for name, out in found.items()]).sum()
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    found = {name: out.detach() for name, out in found.items()}
    return found | {f"gradient of {name}": x for name, x in zip(inputs, gradients, strict=True)}


def error(found: Float[Tensor, "..."], wanted: Float[Tensor, "..."]) -> float:
    """The largest difference, as a share of the largest value."""
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def examine(name: str, device: torch.device) -> str | None:
    """What is wrong with a backend on a device, in words; None if it computes what another does.

    The other is `chunked`, and for `chunked` itself the reference.
    """
    other = "reference" if name == "chunked" else "chunked"
    try:
        found, wanted = results(load(name), device), results(load(other), device)
        errors = {each: error(found[each], wanted[each]) for each in wanted}
    except Exception as failure:  # compilers and drivers raise what they like
        return f"it cannot run here ({type(failure).__name__}: {first_line(failure)})"
    wrong = [each for each in errors if not errors[each] <= TOLERANCE]  # so that nan is wrong too
    if not wrong:
        return None
    return f"its {wrong[0]} differs from that of {other!r} by {errors[wrong[0]]:.1e} of the largest value"


def first_line(failure: Exception) -> str:
    """The beginning of what an exception says."""
    return next(iter(str(failure).strip().splitlines()), "")[:200]


# ---- where it takes place --------------------------------------------------------------------------------------------


def in_a_thread(function: Callable[..., Answer], *arguments: object) -> Answer:
    """Call in a thread of its own, which has none of the caller's modes: autocast, no_grad, hooks, default device."""
    answer = []
    thread = threading.Thread(target=lambda: answer.append(function(*arguments)))
    thread.start()
    thread.join()
    return answer[0]


def in_a_child(name: str, device: torch.device) -> str | None:
    """Examine in a process of its own, which may crash or hang."""
    code = "from minivim.ops.proof import answer; answer()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable or "python", "-c", code, name, str(device)]
    try:
        child = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=CHILD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"its examination did not end within {CHILD_SECONDS:g} s"
    except OSError as failure:
        return f"its examination could not be started ({failure})"
    if child.returncode:
        said = (child.stderr.strip().splitlines() or [""])[-1][:200]
        return f"its examination ended with exit code {child.returncode} ({said})"
    return json.loads(child.stdout.strip().splitlines()[-1])


def answer() -> None:
    """What the child runs: print the verdict as the last line."""
    name, device = sys.argv[1:]
    print(json.dumps(examine(name, torch.device(device))))
