"""The process in which a submission runs: `python -m minivim.course.grade.child`, started by minivim.course.grade.run.

It runs the notebook's code cells and lends its functions to the checkers, which run in the grader's process. So nothing
that a submission does to this process can change a verdict.
"""

import linecache
import os
import re
import socket
import sys
from collections.abc import Callable
from types import ModuleType

import torch

import minivim
from minivim import course, figures, ops
from minivim.course import exercises
from minivim.course.exercises.checking import Todo, Wrong
from minivim.course.exercises.guarding import Guarded, named, shorten
from minivim.course.exercises.judging import MOST_SAID
from minivim.course.grade.wire import Wire, decode, encode
from minivim.data import augment
from minivim.s4 import generating

MAGIC = re.compile(r"^(\s*)[%!?].*$", re.MULTILINE)
LARGEST_FILE = 2**26  # bytes


def hide_streams() -> None:
    """Throw away what the submission prints, also what goes around sys.stdout."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)


def set_limits(memory: int) -> None:
    """At most `memory` bytes, files of 64 MB, no core dumps; where the system has such limits."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {"RLIMIT_DATA": memory, "RLIMIT_FSIZE": LARGEST_FILE, "RLIMIT_CORE": 0}
    for name, limit in limits.items():
        kind = getattr(resource, name)
        _, hard = resource.getrlimit(kind)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))


def plain_python(source: str) -> str:
    """A cell without IPython's magics; a cell that is all magic, such as %%bash, becomes empty."""
    if source.startswith("%%"):
        first, _, rest = source.partition("\n")
        source = rest if first.split()[0] in ("%%time", "%%timeit", "%%capture", "%%prun") else ""
    try:
        compile(source, "cell", "exec")
        return source
    except (SyntaxError, ValueError):
        return MAGIC.sub(r"\1pass", source)


class Announcer:
    """Stands in for `minivim.course.check`: says that a check is due, and lends the function to the checker."""

    def __init__(self, wire: Wire) -> None:
        self.wire, self.process, self.busy = wire, os.getpid(), False

    def check(self, number: str, answer: object) -> None:
        """Announce the check and answer the checker's calls until it has its verdict."""
        if self.busy or os.getpid() != self.process:  # called by an answer, or by a forked copy of the submission
            return
        self.busy = True
        try:
            dtype = str(torch.get_default_dtype()).removeprefix("torch.")  # so that the checker's tensors fit
            self.wire.send("check", number=str(number)[:20], dtype=dtype)
            guarded = Guarded(answer)
            while (message := self.wire.receive())["kind"] == "call":
                self.reply(guarded, message)
        finally:
            self.busy = False

    def reply(self, guarded: Guarded, message: dict) -> None:
        """Call the function and send back what it gives."""
        try:
            result = guarded(*decode(message["arguments"]), **decode(message["options"]))
            self.wire.send("value", value=encode(result))
        except Todo:
            self.wire.send("todo")
        except Wrong as wrong:
            self.wire.send("wrong", text=str(wrong)[:MOST_SAID])
        except (TypeError, ValueError) as error:
            self.wire.send("wrong", text=f"your function returned {shorten(error)}")
        except BaseException as error:
            self.wire.send("wrong", text=f"your function raised {named(error)}")


def run_cells(cells: list[str], wire: Wire) -> None:
    """Run all cells in order in one namespace; what raises is reported, and the next cell runs."""
    module = ModuleType("__main__")
    module.display = lambda *arguments, **options: None
    sys.modules["__main__"] = module
    for index, source in enumerate(cells, 1):
        wire.send("cell", cell=index)
        try:
            code, name = plain_python(source), f"cell {index}"
            linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
            exec(compile(code, name, "exec"), module.__dict__)
        except BaseException as error:
            wire.send("raised", text=named(error))


def stand_in(check: Callable) -> None:
    """Put `check` in the place of the course's own, under every name that a submission may import it by.

    Notebooks handed out before the package had rooms still say `minivim.exercises`, `minivim.viz` and the like.
    """
    course.check = exercises.check = check
    former = {"exercises": exercises, "viz": figures, "scan": ops, "conv": ops, "augment": augment}
    for name, room in {**former, "s4_kernels": generating}.items():
        sys.modules[f"minivim.{name}"] = room
        setattr(minivim, name, room)


def main() -> None:
    """Connect to the grader and run what it sends."""
    address = os.environ["MINIVIM_GRADER"]
    hide_streams()
    wire = Wire(socket.create_connection(("127.0.0.1", int(address.partition(":")[0]))))
    wire.send("hello", address=address)
    setup = wire.receive()
    set_limits(setup["memory"])
    stand_in(Announcer(wire).check)
    run_cells(setup["cells"], wire)
    wire.send("done")
    os._exit(0)  # a thread that the submission has left behind must not keep it alive


if __name__ == "__main__":
    main()
