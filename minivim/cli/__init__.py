"""The command line: `minivim COMMAND ...`, the same as `python -m minivim COMMAND ...`.

A mistake of the user ends in one sentence on stderr and exit code 2, never in a traceback.
"""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Mapping, Sequence

import torch

import minivim
from minivim.checks import printable, shortened, shown
from minivim.cli.commands import BENCHES, COMMANDS
from minivim.cli.flags import parse
from minivim.cli.help import Command, help_text, overview
from minivim.processes import lacks_memory

MISTAKES = (ValueError, TypeError, ImportError, OSError, MemoryError, torch.OutOfMemoryError)
LONGEST = 280  # characters of a sentence
HELP = ("-h", "--help")
PIPE_CLOSED = 128 + 13  # what a shell says of a command that SIGPIPE ended


def no_arguments(command: str, arguments: Sequence[str]) -> None:
    """Refuse arguments of a command that takes none."""
    if arguments:
        raise ValueError(f"{command} was given {shown(' '.join(arguments))}; it must be called without arguments")


def call(name: str, command: Command, arguments: Sequence[str]) -> None:
    """Run one command with its flags, or explain it."""
    if any(word in HELP for word in arguments):
        print(help_text(name, command))
    elif command.target is None:
        no_arguments(name, arguments)
        command.run()
    else:
        command.run(parse(command.target(), arguments, name))


def choose(name: str, commands: Mapping[str, Command], arguments: Sequence[str]) -> None:
    """Run the command that the first word names, or list them all."""
    word, *rest = arguments or ("",)
    if word in HELP:
        print(overview(f"minivim {name}".rstrip(), commands))
    elif word not in commands:
        raise ValueError(f"{name or 'the command'} is {shown(word)}; it must be one of {', '.join(commands)}")
    else:
        call(f"{name} {word}".lstrip(), commands[word], rest)


def run(arguments: Sequence[str]) -> None:
    """Run what the words say."""
    word, *rest = arguments or HELP[-1:]
    if word == "--version":
        no_arguments(word, rest)
        print("minivim", minivim.__version__)
    elif word == "bench":
        choose("bench", BENCHES, rest)
    else:
        choose("", COMMANDS, [word, *rest])


def is_mistake(error: BaseException) -> bool:
    """Whether the user can mend it: a wrong value or file, a missing package, too little memory."""
    return isinstance(error, MISTAKES) or lacks_memory(error)


def sentence(error: BaseException) -> str:
    """An error in one line that a terminal can show, however long what it quotes."""
    if lacks_memory(error) or isinstance(error, MemoryError):
        return "memory is too small for this; batch_size, img_size, shape or the model must be smaller"
    text = printable(" ".join(str(error).split()))
    return shortened(text, LONGEST) or type(error).__name__


def show_warning(message: Warning | str, *_) -> None:
    """Print a warning in one line, without the line of code that gave it."""
    print("minivim: warning:", printable(str(message)), file=sys.stderr)


def hide_output() -> None:
    """Send what is still to be printed nowhere, so that Python does not stumble over it at its end."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; its exit code: 0, 2 after a mistake, 128 + n after signal n (130 Ctrl-C, 141 a pipe)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the console cannot show is escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning  # type: ignore[assignment]  # its other arguments are not read
            run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except SystemExit as end:  # a run that a signal stopped
        return int(end.code or 0)
    except KeyboardInterrupt:
        print("minivim: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, head for one, has seen enough
        hide_output()
        return PIPE_CLOSED
    except Exception as error:
        if not is_mistake(error):
            raise
        print("minivim: error:", sentence(error), file=sys.stderr)
        return 2
    return 0
