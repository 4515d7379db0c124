"""The command line: `minivim COMMAND ...`, the same as `python -m minivim COMMAND ...`.

A mistake of the user ends in one sentence on stderr and exit code 2, never in a traceback.
"""

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence

import torch

from minivim.extras import require

MISTAKES = (ValueError, TypeError, ImportError, OSError, torch.OutOfMemoryError, MemoryError)


def parse(target: Callable, arguments: Sequence[str], command: str, **options):
    """Build or call `target`, a dataclass or a function, from flags; a wrong flag is a ValueError in one sentence."""
    tyro = require("tyro", "train")
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                target, args=list(arguments), prog=f"minivim {command}", config=(tyro.conf.UseAppendAction,), **options
            )
    except SystemExit as end:
        if not end.code:  # --help
            raise
        raise ValueError(one_sentence(complaint.getvalue())) from None


def one_sentence(box: str) -> str:
    """tyro's framed complaint as one line: what was wrong, and how the flag is written."""
    lines = [re.sub(r"[╭╮╰╯│─]+", " ", line) for line in box.splitlines()[1:]]
    text = " ".join(" ".join(lines).split())
    text = re.sub(r" ?For full helptext.*", "", text)
    text = re.sub(r"Argument helptext: (\S+ \S+).*", r"(it must be given as \1)", text)
    return re.sub(r"^Error parsing (?=-)|^Error parsing \S+: ", "", text)


def no_arguments(command: str, arguments: Sequence[str]) -> None:
    """Refuse arguments of a command that takes none."""
    if arguments:
        raise ValueError(f"{command} was given {' '.join(arguments)!r} but must be called without arguments")


def models(arguments: Sequence[str]) -> None:
    """List the models: parameters, tokens, image size"""
    no_arguments("models", arguments)
    from minivim import create_model, list_models

    print(f"{'model':<32} {'parameters':>12} {'tokens':>7} {'image':>9}")
    for name in list_models():
        with torch.device("meta"):
            model = create_model(name)
        parameters = sum(p.numel() for p in model.parameters())
        height, width = model.default_cfg["input_size"][1:]
        print(f"{name:<32} {parameters:>12,} {model.pos_embed.shape[1]:>7} {f'{height}x{width}':>9}")


def doctor(arguments: Sequence[str]) -> None:
    """Say what runs here: versions, device, backends, and test each backend"""
    no_arguments("doctor", arguments)
    from minivim.doctor import doctor

    print(doctor())


def bench(arguments: Sequence[str]) -> None:
    """Measure speed and memory: bench scan, bench model"""
    from minivim.bench import ScanBench, bench_scan
    from minivim.bench_report import table

    kinds = {"scan": (ScanBench, bench_scan)}
    kind, *flags = arguments or [""]
    if kind not in kinds:
        raise ValueError(f"bench was given {kind!r} but must be given one of {', '.join(kinds)}")
    configuration, run = kinds[kind]
    config = parse(configuration, flags, f"bench {kind}")
    report = run(config)
    print(table(report))
    print("written:", *report.save(config.out))


COMMANDS = {"models": models, "doctor": doctor, "bench": bench}


def usage() -> str:
    """What `minivim --help` prints."""
    lines = [f"  {name:<8} {function.__doc__}" for name, function in COMMANDS.items()]
    return "\n".join(["usage: minivim COMMAND ...", "", *lines, "", "minivim COMMAND --help lists its flags."])


def run(arguments: Sequence[str]) -> None:
    """Run one command."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    command, *rest = arguments
    if command not in COMMANDS:
        raise ValueError(f"the command was {command!r} but must be one of {', '.join(COMMANDS)}")
    COMMANDS[command](rest)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 after a mistake, 130 after Ctrl-C."""
    try:
        run(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as end:
        return int(end.code or 0)
    except KeyboardInterrupt:
        print("minivim: interrupted", file=sys.stderr)
        return 130
    except MISTAKES as error:
        print("minivim: error:", " ".join(str(error).split()) or type(error).__name__, file=sys.stderr)
        return 2
    return 0
