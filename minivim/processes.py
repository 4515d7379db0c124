"""Devices, threads, memory and the processes of a training run."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

from minivim.checks import is_first_process, shown


def lacks_memory(error: BaseException) -> bool:
    """Whether a tensor found no room; only some of these errors have a type of their own."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )


@dataclass(frozen=True)
class Team:
    """The processes that train together: this one's number, how many there are, its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def cuda_devices(self) -> list[torch.device]:
        """This process's GPU, if it has one."""
        return [self.device] if self.device.type == "cuda" else []

    def mean(self, numbers: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The mean of what the processes hold, in float64 and the same for all; each of them must ask for it."""
        numbers = numbers.cpu().double()
        if self.size > 1:
            numbers = numbers.to(self.device, copy=True)
            dist.all_reduce(numbers)
        return numbers.cpu() / self.size

    def give(self, tensors: Iterable[Shaped[Tensor, "..."]]) -> None:
        """Fill the tensors with those of the first process; each of them must ask for it."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)


def choose_device(name: str | None = None, rank: int | None = None) -> torch.device:
    """The device of that name; None: CUDA if there is one, else the CPU. ValueError for one that is not here.

    With a `rank`, "cuda" is the GPU of that number, and the GPU becomes the current one before any is touched.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and rank is not None:
        name = f"cuda:{rank}"
    try:
        place = torch.device(name)
        if place.type not in usable_devices():
            raise RuntimeError(f"it is of type {place.type}")
        if place.type == "cuda" and rank is not None and torch.backends.cuda.is_built():
            torch.cuda.set_device(place)  # what names no device, NCCL's barrier for one, must not land on the first GPU
        torch.empty(0, device=place)
        return place
    except (RuntimeError, AssertionError) as error:
        here = ", ".join(usable_devices())
        raise ValueError(f"device is {shown(name)}; it must be a device that this machine has: {here}") from error


def usable_devices() -> list[str]:
    """The kinds of device that this machine computes on; "meta" and its like hold no numbers."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return ["cpu"] if accelerator is None else ["cpu", accelerator.type]


@contextmanager
def met_by_all() -> Iterator[None]:
    """An error that all processes of torchrun meet alike is told by the first; the others end with exit code 2."""
    try:
        yield
    except Exception as error:
        if not is_first_process():
            raise SystemExit(2) from error
        raise


@contextmanager
def told_once(rank: int) -> Iterator[None]:
    """The process that fails first raises its error; the others, which only miss it, end with exit code 2."""
    try:
        yield
    except Exception as error:
        if not _fails_first():
            raise SystemExit(2) from error
        if isinstance(error, RuntimeError) and ("gloo" in str(error) or isinstance(error, dist.DistError)):
            raise ConnectionError(
                f"process {rank} of the run misses another one, which has ended without a word"
            ) from error
        raise


def _fails_first() -> bool:
    """Whether none of the processes has failed before this one; each asks once."""
    try:
        return dist.distributed_c10d._get_default_store().add("minivim/failures", 1) == 1
    except (RuntimeError, ValueError):  # the process that kept count is gone
        return True


@contextmanager
def join_team(device: str | None) -> Iterator[Team]:
    """Join the processes that torchrun started (gloo on CPUs, NCCL on GPUs); a lone process is a team of one.

    What goes wrong in a process of torchrun's is told by one of them, see `told_once`.
    """
    place = choose_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    starts = not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", 1)) > 1
    if starts:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        together = dist.is_initialized()
        rank, size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        with told_once(rank) if starts else nullcontext():
            yield Team(rank, size, place)
    finally:
        if starts:
            dist.destroy_process_group()


def keep_freed_memory() -> None:
    """Let glibc keep up to 64 MiB of freed memory for the next tensors.

    It keeps twice the largest block that it saw freed, 32 MiB at most; the rest goes back to the system and returns
    page by page, zeroed: up to a third of a model's time on long sequences. A block that nobody writes to is free.
    """
    torch.empty(2**25 - 2**14, dtype=torch.uint8, device="cpu")


@contextmanager
def use_threads(count: int | None) -> Iterator[None]:
    """That many CPU threads, and the former number afterwards; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
