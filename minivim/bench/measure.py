"""How to measure on a machine that is never quite idle: interleaved rounds, an idle gate, peak memory.

A ratio between two times is only worth something if both were taken in one process, in turns, while nobody else worked.
So contestants take turns in rounds, and a round in which other processes were busy is discarded and repeated.
"""

import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from minivim.extras import version

IDLE_CORES = 0.12  # a round during which others used more than this much of one core is discarded
SAMPLE_SECONDS = 0.1  # short calls are repeated until a sample lasts this long: /proc/stat ticks every 10 ms
ATTEMPTS = 4  # at most this many times the asked-for rounds are run
VERSIONS = ("minivim", "torch", "numpy", "einops", "numba", "triton")


def device_name(device: str) -> str:
    """What the machine calls its processor or accelerator."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} logical cores"


def environment(device: str = "cpu") -> dict:
    """What a measurement depends on: the device, the threads and the versions."""
    return {
        "device": device,
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONS if version(name)},
    }


def busy_seconds() -> float | None:
    """Seconds that all cores together have worked since boot (stolen time included); None without /proc/stat."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(ticks) for ticks in fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class LoadMeter:
    """How much of a core other processes used since the meter was made."""

    def __init__(self) -> None:
        self.start = self.read()

    @staticmethod
    def read() -> tuple[float, float, float | None]:
        """Wall time, processor time of ours and of our ended children, all processors' busy time, in seconds."""
        times = os.times()
        own = time.process_time() + times.children_user + times.children_system
        return time.perf_counter(), own, busy_seconds()

    def foreign_cores(self) -> float | None:
        """Busy cores that were not ours; None where the system does not say."""
        (wall, own, busy), (wall_now, own_now, busy_now) = self.start, self.read()
        if busy is None or busy_now is None:
            return None
        return max(0.0, (busy_now - busy - (own_now - own)) / (wall_now - wall))


@dataclass(frozen=True)
class Rounds:
    """What interleaved rounds gave: seconds[contestant][round], and how quiet the machine was."""

    seconds: list[list[float]]
    discarded: int
    noisy_kept: int
    gated: bool


def interleave(samplers: Sequence[Callable[[], float]], rounds: int) -> Rounds:
    """Sample every contestant once a round until `rounds` quiet rounds are there, or ATTEMPTS times as many were run.

    Each sampler returns the seconds of one call. If quiet rounds are too few, the quietest of the others fill up.
    """
    quiet: list[list[float]] = []
    noisy: list[tuple[float, list[float]]] = []
    gated = busy_seconds() is not None
    while len(quiet) < rounds and len(quiet) + len(noisy) < ATTEMPTS * rounds:
        meter = LoadMeter()
        times = [sampler() for sampler in samplers]
        load = meter.foreign_cores()
        if load is None or load <= IDLE_CORES:
            quiet.append(times)
        else:
            noisy.append((load, times))
    fill = [times for _, times in sorted(noisy, key=lambda pair: pair[0])[: rounds - len(quiet)]]
    return Rounds([list(times) for times in zip(*quiet, *fill, strict=True)], len(noisy) - len(fill), len(fill), gated)


def cpu_sampler(call: Callable[[], object]) -> Callable[[], float]:
    """A sampler for a call on the CPU; the first call, which may compile, is not timed."""
    call()
    start = time.perf_counter()
    call()
    repeats = max(1, round(SAMPLE_SECONDS / (time.perf_counter() - start)))

    def sample() -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats

    return sample


def captured(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """All calls as one CUDA graph, so that launching costs nothing; as a plain loop if they cannot be captured."""

    def eager() -> None:
        for call in calls:
            call()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compilation and workspaces must not fall into the capture
        eager()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            eager()
    except RuntimeError:  # the call synchronises or allocates in a way that graphs forbid
        torch.cuda.synchronize()
        return eager
    return graph.replay


def cuda_sampler(calls: Sequence[Callable[[], object]], *, graph: bool = True) -> Callable[[], float]:
    """A sampler for the same call on several copies of its input, timed by CUDA events.

    Copies that together exceed the L2 cache keep each call from finding its input there.
    """

    def eager() -> None:
        for call in calls:
            call()

    eager()
    run = captured(calls) if graph else eager
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def elapsed(repeats: int) -> float:
        start.record()
        for _ in range(repeats):
            run()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1000 / repeats

    elapsed(1)
    repeats = max(1, round(SAMPLE_SECONDS / elapsed(1)))
    return lambda: elapsed(repeats) / len(calls)


def copies_beyond_cache(input_bytes: int) -> int:
    """How many copies of an input are twice the L2 cache of the current CUDA device (at most 64)."""
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return min(64, max(1, -(-2 * cache // input_bytes)))


def resident_bytes(field: str) -> int:
    """A field of /proc/self/status in bytes: VmRSS is what is resident now, VmHWM the most there ever was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak_extra_bytes(call: Callable[[], object], device: str) -> int | None:
    """The most memory that `call` held beyond what there was before it; None where the system does not say.

    On CUDA from the allocator; on Linux from the high-water mark of the resident set, which is reset first.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = call()
        torch.cuda.synchronize()
        del kept
        return torch.cuda.max_memory_allocated() - before
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = resident_bytes("VmRSS")
    call()
    return max(0, resident_bytes("VmHWM") - before)


def _answer(pipe, threads: int, function: Callable, arguments: tuple) -> None:
    torch.set_num_threads(threads)
    pipe.send(function(*arguments))


def in_child(function: Callable, *arguments):
    """Run a module-level function in a fresh process with as many threads, and return what it returns.

    Raises ChildProcessError if the process ends without an answer, for instance for lack of memory.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(theirs, torch.get_num_threads(), function, arguments))
    child.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        child.join()
        raise ChildProcessError(f"{function.__name__}{arguments} ended with exit code {child.exitcode}") from None
    finally:
        child.join()
