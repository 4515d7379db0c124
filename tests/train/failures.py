"""Runs that are killed, stopped or find the disk full at random moments, alone or as two processes; each is resumed.

python -m tests.train.failures --count 100

Each must end with the bits, weights, averages and the optimizer's, of a run of as many processes that was left alone.
A full disk is a small tmpfs, which takes root on Linux; elsewhere the others are tried.
"""

import argparse
import errno
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from minivim.ops import choose_backend
from minivim.train.loop import train
from minivim.train.recipes import TrainConfig
from tests.train.small_runs import same

SETTINGS = {
    "data": "digits", "embed_dim": 16, "depth": 1, "patch_size": 4, "epochs": 4, "drop_path": 0.1, "threads": 1,
    "progress": False, "save_seconds": 0.0,
}  # fmt: skip
KINDS = {"kill": -signal.SIGKILL, "stop": 128 + signal.SIGTERM, "fill": errno.ENOSPC}  # and what the process ends with
MISSING_ANOTHER = 2
TOO_LATE = -signal.SIGTERM  # how a stopped process ends that has saved its last step and only draws its curves
context = multiprocessing.get_context("forkserver")  # imports everything once, so that its processes start fast
context.set_forkserver_preload(
    ["minivim.train.loop", "torch._dynamo", "safetensors.torch", "matplotlib.figure", "sklearn.datasets", "tqdm.auto"]
)


def work(config: TrainConfig, rank: int, size: int, port: int) -> None:
    """What each process does."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        train(config)
    except OSError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.errno or MISSING_ANOTHER) from error


def start(folder: Path, size: int, resume: bool = False) -> list:
    """The processes of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = TrainConfig(out=str(folder), resume=resume, **SETTINGS)
    processes = [context.Process(target=work, args=(config, rank, size, port)) for rank in range(size)]
    for process in processes:
        process.start()
    return processes


def end(processes: list) -> list[int]:
    """Wait; the exit codes."""
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]


def state_of(run: Path) -> dict:
    """What a run has saved."""
    return torch.load(run / "state.pt", weights_only=True)


def untimed(state: dict) -> dict:
    """A state without its times."""
    history = [{key: value for key, value in record.items() if key != "seconds"} for record in state["history"]]
    return state | {"history": history, "seconds": None}


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 2 MiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def can_mount(folder: str) -> bool:
    """Whether this user may make a small disk."""
    try:
        with small_disk(Path(folder)):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def disturb(kind: str, disk: Path, process) -> None:
    """Kill or stop the process, or leave 4 KiB of its disk."""
    if kind == "kill":
        process.kill()
    elif kind == "stop":
        process.terminate()
    else:
        found = os.statvfs(disk)
        (disk / "others").write_bytes(bytes(max(0, found.f_bavail * found.f_frsize - 4096)))


def check_codes(kind: str, codes: list[int], finished: bool) -> None:
    """AssertionError unless a run that was disturbed so may end so; in the last moments others may have ended already.

    `finished`: whether the last step is in its state.
    """
    own = {KINDS[kind], TOO_LATE} if kind == "stop" and finished else {KINDS[kind]}
    assert own & set(codes) and set(codes) <= own | {MISSING_ANOTHER, 0}, (kind, codes)


def one(kind: str, disk: Path, size: int, expected: dict, moments: random.Random) -> int:
    """A run, disturbed and resumed; the step to which its state was saved, -1 if it was too fast."""
    run = disk / "run"
    processes = start(run, size)
    while not (run / "state.pt").exists() and processes[0].is_alive():
        time.sleep(0.001)
    time.sleep(moments.uniform(0, 0.8 * expected["seconds"]))
    disturb(kind, disk, moments.choice(processes))
    codes = end(processes)
    if not any(codes):
        return -1
    (disk / "others").unlink(missing_ok=True)
    step = state_of(run)["step"]
    check_codes(kind, codes, finished=step == expected["step"])
    codes = end(start(run, size, resume=True))
    assert not any(codes), codes
    return step


def main(count: int, seed: int = 0) -> Counter:
    """Disturb `count` runs; how many of each kind were met. AssertionError for one whose end differs."""
    moments, met, left_alone = random.Random(seed), Counter(), {}
    # The server's children are forked, and may not examine what nobody has examined: all are told what this one finds.
    SETTINGS["backend"] = choose_backend("auto", torch.device("cpu")).name
    with tempfile.TemporaryDirectory() as place:
        for size in (1, 2):
            assert not any(end(start(Path(place, f"alone{size}"), size)))
            left_alone[size] = state_of(Path(place, f"alone{size}"))
        kinds = [kind for kind in KINDS if kind != "fill" or can_mount(place)]
        while met.total() < count:
            kind, size = kinds[met.total() % len(kinds)], 1 + met.total() // len(kinds) % 2
            expected = left_alone[size]
            disk = Path(tempfile.mkdtemp(dir=place))
            with small_disk(disk) if kind == "fill" else nullcontext():
                step = one(kind, disk, size, expected, moments)
                if step >= 0:
                    assert same(untimed(state_of(disk / "run")), untimed(expected))
                    met[f"{kind}, {size}"] += 1
                    print(f"{kind}, {size} process(es): resumed from step {step} of {expected['step']}", flush=True)
    return met


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    print(dict(main(**vars(parser.parse_args()))))
