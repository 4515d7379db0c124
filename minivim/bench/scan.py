"""Speed and memory, measured: backends of the scan, and whole models, side by side in one process.

Before any time is printed, every contestant's result is compared with the reference's. The method is that of
`measure.py`: interleaved rounds, medians, ratios to the first contestant, rounds on a busy machine discarded.
"""

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minivim.bench import measure
from minivim.bench.report import Report, Row, summarise
from minivim.checks import LARGEST, MOST_THREADS, check_choice, check_whole, shown
from minivim.ops import available_backends, bidirectional_scan, selective_scan
from minivim.processes import use_threads

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
TOLERANCES = {"float32": 1e-4, "float64": 1e-9, "bfloat16": 3e-2}  # of the largest value of each result
LARGEST_STATE = 4096
YARDSTICK = "torch.exp on (B, E, L, N)"
DIRECTION = ("u", "delta", "A", "B", "C", "D", "delta_bias")  # what each direction has of its own


def check_run(device: str, threads: int | None, rounds: int, out: Path) -> None:
    """Refuse what both benchmarks refuse."""
    check_choice("device", device, ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda'; it must be 'cpu' here, where torch sees no CUDA device")
    if threads is not None:
        check_whole("threads", threads, maximum=MOST_THREADS)
    check_whole("rounds", rounds)
    if out.name in ("", ".."):
        raise ValueError(f"out is {shown(str(out))}; it must end in a name, to which .json and .png are added")


def parse_shape(text: str) -> tuple[int, int, int]:
    """Read "B,E,L": batch, channels, tokens."""
    try:
        B, E, L = (int(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"shape is {shown(text)}; it must be three whole numbers B,E,L, as in 1,384,197") from None
    if min(B, E, L) < 1:
        raise ValueError(f"shape is {shown(text)}; each of B, E and L must be at least 1")
    if B * E * L > LARGEST:
        raise ValueError(f"shape is {shown(text)}; B times E times L must be at most {LARGEST:,}")
    return B, E, L


def load_against(against: str) -> Callable:
    """The function that "module:function" names; it must have mamba_ssm's selective_scan_fn signature and layout."""
    module, _, name = against.partition(":")
    if not (module and name):
        raise ValueError(f"against is {shown(against)}; it must be module:function, as in my_scan:selective_scan_fn")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"against is {shown(against)}; it must name a function that can be imported: {error}"
        ) from error
    if not callable(function):
        raise ValueError(f"against is {shown(against)}; it must name a function, not a {type(function).__name__}")
    return function


@dataclass(frozen=True)
class ScanBench:
    """Time the selective scan's backends side by side, and a second implementation if you name one."""

    shape: tuple[str, ...] = ()
    """B,E,L: batch, channels, tokens; may be given several times (default: 1,384,197)."""
    state: int = 16
    """N, the states of a channel."""
    directions: int = 1
    """1, or 2 as in a Vim block, averaged and gated; --against is then called twice, once on flipped copies."""
    backend: tuple[str, ...] = ()
    """A backend to time; may be given several times (default: all that can run). The reference always runs."""
    against: str | None = None
    """module:function with mamba_ssm's signature: selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, ...)."""
    backward: bool = True
    """Also time forward + backward, with gradients of all inputs."""
    memory: bool = True
    """Also measure the peak memory beyond the inputs."""
    rounds: int = 9
    """Interleaved rounds on a quiet machine."""
    threads: int | None = None
    """CPU threads (default: torch's own choice)."""
    dtype: str = "float32"
    """float32, float64 or bfloat16."""
    device: str = "cpu"
    """cpu or cuda."""
    out: Path = Path("bench_scan")
    """OUT.json and OUT.png are written."""

    def check(self) -> None:
        """Raise ValueError, naming the field, for a value that cannot be."""
        check_run(self.device, self.threads, self.rounds, self.out)
        check_choice("dtype", self.dtype, tuple(DTYPES))
        check_whole("state", self.state, maximum=LARGEST_STATE)
        check_choice("directions", self.directions, (1, 2))
        for name in self.backend:
            check_choice("backend", name, available_backends(self.device))
        for shape in self.shape:
            parse_shape(shape)
        if self.against is not None:
            load_against(self.against)

    def contestants(self) -> list[str]:
        """Backends best first, then the other implementation, then the yardstick."""
        chosen = self.backend or available_backends(self.device)
        names = [*dict.fromkeys([*chosen, "reference"])]
        return [*names, self.against, YARDSTICK] if self.against else [*names, YARDSTICK]


@dataclass(frozen=True)
class ScanCase:
    """One size of the scan."""

    B: int
    E: int
    L: int
    N: int
    dtype: str
    device: str
    directions: int = 1

    def inputs(self) -> dict[str, Tensor]:
        """Inputs as Vim has them: softplus(delta + bias) around [0.001, 0.1], A = -(1..N), skip and gate; seed 0.

        The names of what the second direction has of its own end in _back.
        """
        random = torch.Generator().manual_seed(0)
        B, E, L, N = self.B, self.E, self.L, self.N

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random)

        tensors = {"z": normal(B, L, E)}
        for end in ("", "_back")[: self.directions]:
            step = torch.exp(math.log(1e-3) + torch.rand(E, generator=random) * math.log(100))
            tensors |= {
                f"u{end}": normal(B, L, E),
                f"delta{end}": 0.5 * normal(B, L, E),
                f"A{end}": -torch.arange(1.0, N + 1).repeat(E, 1),
                f"B{end}": normal(B, L, N),
                f"C{end}": normal(B, L, N),
                f"D{end}": torch.ones(E),
                f"delta_bias{end}": step + torch.log(-torch.expm1(-step)),  # the inverse of softplus
            }
        activations, parameters = DTYPES[self.dtype], torch.float64 if self.dtype == "float64" else torch.float32
        return {name: x.to(self.device, activations if x.dim() == 3 else parameters) for name, x in tensors.items()}

    def __str__(self) -> str:
        both = ", both directions" if self.directions == 2 else ""
        return f"(B, E, L) = ({self.B}, {self.E}, {self.L}), N = {self.N}, {self.dtype}{both}"


def transposed(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """(B, L, E) to (B, E, L) and back, contiguous; parameters stay as they are."""
    return {name: x.transpose(1, 2).contiguous() if x.dim() == 3 else x for name, x in inputs.items()}


def scan_function(name: str, channel_first: bool) -> Callable[..., Tensor]:
    """A contestant as a function of the inputs by name, for one direction or, where there is a u_back, for both."""
    one = load_against(name) if channel_first else partial(selective_scan, backend=name)

    def scan(z: Tensor, **inputs: Tensor) -> Tensor:
        ahead = {key: inputs[key] for key in DIRECTION}
        if "u_back" not in inputs:
            return one(**ahead, z=z, delta_softplus=True)
        back = {key: inputs[f"{key}_back"] for key in DIRECTION}
        if not channel_first:
            return bidirectional_scan(tuple(ahead.values()), tuple(back.values()), z, backend=name)
        flipped = {key: x.flip(-1) if x.dim() == 3 else x for key, x in back.items()}
        y = one(**flipped, z=z.flip(-1), delta_softplus=True).flip(-1)
        return (one(**ahead, z=z, delta_softplus=True) + y) / 2

    return scan


def outputs(function: Callable, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The output and all gradients; z serves as the cotangent, being of the output's shape in either layout."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    out = function(**leaves)
    gradients = torch.autograd.grad(out, list(leaves.values()), inputs["z"].detach())
    return {"output": out.detach()} | {f"gradient of {name}": x for name, x in zip(leaves, gradients, strict=True)}


def reference_outputs(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the naive loop gives in float64, one batch item at a time to bound its memory."""
    reference = scan_function("reference", channel_first=False)
    inputs = {name: x.double() for name, x in inputs.items()}
    items = [
        outputs(reference, {name: x[b : b + 1] if x.dim() == 3 else x for name, x in inputs.items()})
        for b in range(inputs["u"].shape[0])
    ]
    parts = {key: [item[key] for item in items] for key in items[0]}
    return {key: torch.cat(each) if each[0].dim() == 3 else torch.stack(each).sum(0) for key, each in parts.items()}


def error_against(expected: dict[str, Tensor], name: str, channel_first: bool, case: ScanCase) -> float:
    """The largest relative error of a contestant's output and gradients.

    Raises ValueError if it fails or if its error exceeds the dtype's tolerance.
    """
    inputs = case.inputs()
    try:
        found = outputs(scan_function(name, channel_first), transposed(inputs) if channel_first else inputs)
    except Exception as error:  # whatever a foreign function raises, the user needs to know which one it was
        raise ValueError(f"{name} fails at {case}: {type(error).__name__}: {error}") from error
    found = transposed(found) if channel_first else found
    errors = {key: ((found[key] - x).abs().max() / x.abs().max()).item() for key, x in expected.items()}
    worst = max(errors, key=lambda key: math.inf if math.isnan(errors[key]) else errors[key])
    if not errors[worst] <= TOLERANCES[case.dtype]:
        raise ValueError(
            f"{name} does not compute the reference's function at {case}: its {worst} is off by {errors[worst]:.1e} "
            f"of the largest value but must be within {TOLERANCES[case.dtype]:.0e}"
        )
    return errors[worst]


def scan_call(name: str, channel_first: bool, mode: str, case: ScanCase) -> Callable[[], object]:
    """A call without arguments that runs one contestant on inputs of its own."""
    inputs = case.inputs()
    if name == YARDSTICK:
        x = (inputs["delta"].transpose(1, 2)[..., None] * inputs["A"][:, None]).contiguous()  # (B, E, L, N)
        x = x.repeat(case.directions, 1, 1, 1)
        y = torch.empty_like(x)
        return lambda: torch.exp(x, out=y)
    function = scan_function(name, channel_first)
    inputs = transposed(inputs) if channel_first else inputs
    if mode == "forward":
        return torch.no_grad()(lambda: function(**inputs))
    leaves = {key: x.requires_grad_() for key, x in inputs.items()}
    cotangent = leaves["z"].detach()

    def forward_and_backward() -> tuple[Tensor, ...]:
        out = function(**leaves)
        return torch.autograd.grad(out, list(leaves.values()), cotangent)

    return forward_and_backward


def scan_memory(name: str, channel_first: bool, mode: str, case: ScanCase) -> int | None:
    """Peak memory of one call beyond its inputs; outputs and gradients count. A tiny call compiles first."""
    tiny = replace(case, B=1, L=2)
    scan_call(name, channel_first, mode, tiny)()
    call = scan_call(name, channel_first, mode, case)
    return measure.peak_extra_bytes(call, case.device)


def peak(function: Callable, device: str, *arguments) -> int | None:
    """A memory function's answer: from a fresh process on the CPU, whose allocator keeps what it once had."""
    return measure.in_child(function, *arguments) if device == "cpu" else function(*arguments)


def sampler(
    make_call: Callable[[], Callable[[], object]], device: str, input_bytes: int, *, graph: bool = True
) -> Callable[[], float]:
    """A timer for a call; on CUDA for as many copies of it as exceed the L2 cache, in a CUDA graph if `graph`."""
    if device == "cpu":
        return measure.cpu_sampler(make_call())
    return measure.cuda_sampler([make_call() for _ in range(measure.copies_beyond_cache(input_bytes))], graph=graph)


def time_scan(config: ScanBench, case: ScanCase, mode: str, errors: dict[str, float | None]) -> tuple:
    """One contest: the rows and the rounds they came from."""
    input_bytes = sum(x.nbytes for x in case.inputs().values())
    arguments = {name: (name, name == config.against, mode, case) for name in errors}
    samplers = [sampler(partial(scan_call, *a), case.device, input_bytes) for a in arguments.values()]
    rounds = measure.interleave(samplers, config.rounds)
    memory = {
        name: peak(scan_memory, case.device, *a) if config.memory and name != YARDSTICK else None
        for name, a in arguments.items()
    }
    rows = summarise(
        list(errors), rounds, case=str(case), length=case.L, mode=mode, extra_bytes=memory, error=errors, items=case.B
    )
    return rows, rounds


def collect(
    title: str, config: Any, contests: Sequence[tuple[list[Row], measure.Rounds]], too_large: Sequence[str] = ()
) -> Report:
    """The contests as one report."""
    rows, rounds = zip(*contests, strict=True)
    return Report(
        title=title,
        environment=measure.environment(config.device),
        rounds=config.rounds,
        discarded=sum(r.discarded for r in rounds),
        noisy_kept=sum(r.noisy_kept for r in rounds),
        gated=all(r.gated for r in rounds),
        rows=[row for block in rows for row in block],
        too_large=list(too_large),
    )


def bench_scan(config: ScanBench) -> Report:
    """Check, time and weigh every contestant at every shape.

    Raises ValueError for a configuration that cannot be, and if a contestant does not compute the reference's function.
    """
    config.check()
    with use_threads(config.threads):
        contests = []
        for shape in config.shape or ("1,384,197",):
            case = ScanCase(*parse_shape(shape), config.state, config.dtype, config.device, config.directions)
            expected = reference_outputs(case.inputs())
            errors = {
                name: None if name == YARDSTICK else error_against(expected, name, name == config.against, case)
                for name in config.contestants()
            }
            for mode in ("forward", "forward + backward") if config.backward else ("forward",):
                contests.append(time_scan(config, case, mode, errors))
        return collect("selective scan", config, contests)
