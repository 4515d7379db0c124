"""Signals that ask a run to stop: it saves its state between two steps and says how to go on."""

import os
import signal
import threading
import time
from types import FrameType

NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Signals:
    """While it is entered, the first signal is only noted in `received`; the next one does what it always did.

    What comes within `patience` seconds after the first one counts as the same: torchrun passes on a Ctrl-C that the
    terminal has sent to all. A signal that is ignored, as SIGHUP is below nohup, stays ignored. Python hears signals
    in the main thread only: in another one nothing is changed.
    """

    def __init__(self, patience: float, speaks: bool):
        self.patience, self.speaks = patience, speaks
        self.received, self.noted_at, self.owner = 0, 0.0, os.getpid()
        self.before: dict = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in NUMBERS}
            self.before = {number: was for number, was in found.items() if was not in (None, signal.SIG_IGN)}
            for number in self.before:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, was in self.before.items():
            signal.signal(number, was)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.owner:  # a worker that decodes images ends when the run does
            return
        if not self.received:
            self.received, self.noted_at = number, time.monotonic()
            if self.speaks:  # not through print, which may be at work in what was interrupted
                name = signal.Signals(number).name
                os.write(2, f"\nminivim: {name}: saving after this step; again: end now\n".encode())
        elif time.monotonic() - self.noted_at >= self.patience:
            self.__exit__()
            os.kill(os.getpid(), number)
