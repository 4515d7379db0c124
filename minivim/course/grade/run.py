"""Runs one submission in its own process and judges its answers in this one.

The submission's process lends its functions over a socket (`child.py`); the checkers run here. What it prints,
redefines or overwrites in its own process therefore changes no verdict.
"""

import hmac
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from minivim.course.exercises.checking import Todo, Wrong
from minivim.course.exercises.guarding import Abandoned
from minivim.course.exercises.judging import MOST_SAID, Verdict, judge
from minivim.course.grade.wire import DTYPES, Wire, decode, encode

START_SECONDS = 60  # for the process to load PyTorch and call back
GRACE_SECONDS = 5  # after the time limit, for a checker that stumbles over an answer
ADDRESS = "MINIVIM_GRADER"  # the variable that tells the process where to call, and with which secret
# What a process needs to start. The rest of the environment may hold passwords.
INHERITED = ("HOME", "LANG", "LC_ALL", "PATH", "PYTHONPATH", "SYSTEMROOT", "TEMP", "TMPDIR", "USERPROFILE")
SET = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "PYTHONHASHSEED": "0"}


@dataclass(frozen=True)
class Limits:
    """What one submission may take: seconds for the whole notebook, bytes of memory, threads."""

    seconds: float
    memory: int
    threads: int


@dataclass
class Outcome:
    """What became of a submission: the last verdict on each exercise, the cells that raised, and why it ended early."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    raised: dict[int, str] = field(default_factory=dict)
    problem: str = ""
    cell: int = 0  # that ran last
    checking: str = ""  # the exercise that was being checked when it ended


def clean(text: object, most: int) -> str:
    """Text from a submission, cut off, without what would steer a terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in str(text)[:most])


def run_submission(cells: list[str], limits: Limits) -> Outcome:
    """Run the code cells and judge each exercise that they check. OSError if no process can be started."""
    with (
        tempfile.TemporaryDirectory(prefix="minivim-grade-", ignore_cleanup_errors=True) as folder,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        address = f"{server.getsockname()[1]}:{secrets.token_hex(16)}"
        with child_process(folder, address, limits.threads) as process, accept(server, process, address) as connection:
            run = Run(Wire(connection, time.monotonic() + limits.seconds), limits)
            ending = run.start(cells)
    run.outcome.problem = describe_ending(ending, limits, process.returncode)
    return run.outcome


@contextmanager
def child_process(folder: str, address: str, threads: int) -> Iterator[subprocess.Popen]:
    """The submission's process, in `folder`; at the end it dies with all that it has started."""
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    chosen = {ADDRESS: address, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    process = subprocess.Popen(
        [sys.executable, "-m", "minivim.course.grade.child"],
        cwd=folder,
        env=inherited | SET | chosen,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError, PermissionError):  # all of them have ended already
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        kill_leftovers(address)


def kill_leftovers(address: str) -> None:
    """Kill processes that have left the group: Linux shows what a process was started with, and forks keep it."""
    mark = f"{ADDRESS}={address}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it belongs to someone else, or has ended
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)


def accept(server: socket.socket, process: subprocess.Popen, address: str) -> socket.socket:
    """The connection of the process that was given the address. OSError if it does not call."""
    last = time.monotonic() + START_SECONDS
    server.settimeout(0.5)
    while time.monotonic() < last and process.poll() is None:
        with suppress(OSError, EOFError, ValueError):  # nobody has called yet, or a stranger has
            connection, _ = server.accept()
            if hmac.compare_digest(str(Wire(connection, time.monotonic() + 5).receive().get("address")), address):
                return connection
            connection.close()
    raise OSError("the process for a submission did not start; try: python -m minivim.course.grade.child")


class Run:
    """A submission while it runs."""

    def __init__(self, wire: Wire, limits: Limits) -> None:
        self.wire, self.limits, self.outcome = wire, limits, Outcome()

    def start(self, cells: list[str]) -> BaseException | None:
        """Run the cells to their end; the return value says why that was not reached."""
        try:
            with alarm(self.limits.seconds + GRACE_SECONDS):
                self.wire.send("start", cells=cells, memory=self.limits.memory)
                while (message := self.wire.receive())["kind"] != "done":
                    self.handle(message)
        except Abandoned as abandoned:
            return abandoned.__cause__
        except Exception as error:  # whatever it sends, the other submissions are still to be graded
            return error
        return None

    def handle(self, message: dict) -> None:
        """Note where the notebook is and which cells raise; judge what is to be checked."""
        if message["kind"] == "cell":
            self.outcome.cell = int(message["cell"])
        elif message["kind"] == "raised":
            self.outcome.raised[self.outcome.cell] = clean(message["text"], 300)
        elif message["kind"] == "check":
            self.outcome.checking = clean(message["number"], 20)
            with default_dtype(DTYPES[message["dtype"]]):
                verdict = judge(self.outcome.checking, self.call)
            if verdict.title:  # there is such an exercise
                self.outcome.verdicts[verdict.number] = verdict
            self.outcome.checking = ""
            self.wire.send("verdict")
        else:
            raise ValueError(f"a message is of kind {message['kind']!r}")

    def call(self, *arguments, **options):
        """The submission's function, called in its own process."""
        try:
            self.wire.send("call", arguments=encode(arguments), options=encode(options))
            reply = self.wire.receive()
            if reply["kind"] == "value":
                return decode(reply["value"])
            wrong = Todo() if reply["kind"] == "todo" else Wrong(clean(reply["text"], MOST_SAID))
        except Exception as error:
            raise Abandoned from error
        raise wrong


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """The type of new tensors that the notebook has chosen. TypeError if it is none of floating-point numbers."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Abandon after that time a checker that a strange answer keeps busy, where the system can."""

    def ring(*arguments) -> None:
        raise Abandoned from TimeoutError()

    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def describe_ending(ending: BaseException | None, limits: Limits, code: int) -> str:
    """Why a run ended early, in words; empty if it did not."""
    if ending is None:
        return ""
    if isinstance(ending, TimeoutError):
        return f"stopped after {limits.seconds:g} s"
    if isinstance(ending, (EOFError, OSError)):
        if code >= 0:
            return f"its process ended with exit code {code}"
        name = signal.Signals(-code).name
        return "its process was killed or broke off" if name == "SIGKILL" else f"its process was ended by {name}"
    return f"it sent the grader what no notebook sends ({type(ending).__name__})"
