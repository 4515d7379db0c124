"""Hundreds of wrong command lines in one process: each must end in one sentence that names what is wrong.

    python -m tests.fuzz_commands [COUNT]

The lines follow from the fields of the configurations, so that a new field is tried without being named here. Nothing
is trained: where a training run would begin, a line has failed. With COUNT about as many are tried, evenly chosen.
"""

import contextlib
import inspect
import io
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from minivim import cli
from minivim.cli.help import kind_of
from minivim.train.recipes import TrainConfig

LONGEST = 300  # characters of a complaint
LINE_SECONDS = 20  # a line takes milliseconds; the machine may be busy
STRANGE = ("", "a\0b", "\ud800")  # wrong for every flag
WORDS = ("x y", "a\nb", "\x1b[31mred\x1b[0m", "é" * 40, "a" * 5000, "nan", "-1", "../..", "{}", "%s")
NUMBERS = ("x", "-1", "-1e-9", "nan", "inf", "-inf", "1e400", "0x10", "1,5", "1 2", "\x1b[31m1", "True", "a" * 5000)
WRONG = {
    float: (*STRANGE, *NUMBERS),
    int: (*STRANGE, *NUMBERS, "0.5", "1e20", str(10**30), str(2**64), "9" * 5000),
    bool: (*STRANGE, "perhaps", "2", "nan", "\x1b[31mTrue"),
    str: (*STRANGE,),
    Path: (*STRANGE,),
}
CHOICES = ("preset", "model", "backend", "cls_token", "scan_order", "init", "dtype", "attention", "against", "shape")
DEVICES = ("meta", "cuda:99", "cuda:x", "xla", "fpga", "cpu:-1", ":", "vulkan")
FLAGS = {  # a command line's beginning, and what its flags build
    "train --data digits --out NEW --no-progress --threads 1 --backend reference": TrainConfig,
    "eval CHECKPOINT --data digits": cli.COMMANDS["eval"].target(),
    "predict CHECKPOINT PICTURE": cli.COMMANDS["predict"].target(),
    "flops vim_nano_patch2_8": cli.COMMANDS["flops"].target(),
    "grade NOTEBOOK": cli.COMMANDS["grade"].target(),
    "bench scan --rounds 1 --shape 1,2,3 --no-memory": cli.BENCHES["scan"].target(),
    "bench model --rounds 1 --model vim_nano_patch2_8 --no-memory": cli.BENCHES["model"].target(),
    "bench data --data digits": cli.BENCHES["data"].target(),
}
SINGLE = (
    "", " ", "fly", "--fly", "-x", "\ud800", "train extra", "train --epochs", "train --lr --epochs 3",
    "train --epochs 3 --epochs 4", "train --epochs 3 --epochs=4", "train --flip 0 --flip 0", "train --resume",
    "train --resume --no-resume", "train --lr_end 0.1 --lr-end 0.2", "train --epoks 3", "train --data nowhere",
    "train --data digits --out NEW --batch-size 1000000000000", "train --data digits --out NEW --batch-size 1439",
    "train --data digits --out NEW --accumulate 65", "train --data digits --out NEW --patch-size 3",
    "train --data digits --out NEW --freeze", "train --data digits --out NEW --freeze --init paper",
    "train --data digits --out NEW --init none.pth", "train --data digits --out NEW --init PICTURE",
    "train --data digits --out NEW --init .", "train --data digits --out NEW --init CHECKPOINT --depth 3",
    "train --data digits --out NEW --init CHECKPOINT --model deit_tiny_patch4_32",
    "train --data digits --out NEW --init CHECKPOINT --img-size 7", "train --data digits --out NEW --layer-decay 2",
    "train --data digits --out NEW --init CHECKPOINT --freeze --layer-decay 0.5",
    "train --data digits --out NEW --init CHECKPOINT --freeze --drop-path 0.1",
    "train --data digits --out NEW --train-share 0", "train --data digits --out NEW --freeze --init CHECKPOINT.pth",
    "train --data=", "train --no-epochs", "train --EPOCHS 3", "train -epochs 3", "train --directions 3",
    "eval", "eval CHECKPOINT", "eval --data digits", "eval none --data digits", "eval PICTURE --data digits",
    "eval CHECKPOINT PICTURE --data digits", "eval CHECKPOINT --data digits --data digits", "eval . --data digits",
    "eval CHECKPOINT --data shapes", "eval CHECKPOINT --data \x1b[31m", "eval CHECKPOINT --data a\nb/c\nd/e",
    "predict", "predict CHECKPOINT", "predict CHECKPOINT CHECKPOINT", "predict CHECKPOINT none", "predict CHECKPOINT .",
    "predict PICTURE PICTURE", "predict CHECKPOINT PICTURE --top 0", "predict CHECKPOINT \x1b[31m.png",
    "models all", "models --all", "doctor now", "--version now", "bench", "bench disk", "bench scan scan",
    "bench scan --shape 1", "bench scan --shape 1e20,1,1", "bench scan --shape 0,1,1", "bench scan --shape 9,9,9e9",
    "bench scan --shape 100000000000000000000,1,1", "bench scan --directions 3", "bench model --img-size 7",
    "flops x", "flops vim_nano_patch2_8 --img-size 7", "flops resnet50 --img-size 0",
    "bench model --batch 0", "grade", "grade nowhere", "grade PICTURE --time-limit 0", "grade NOTEBOOK --workers 0",
    "export", "export CHECKPOINT", "export none x.onnx", "export CHECKPOINT no/such/folder.onnx",
)  # fmt: skip


class Hang(BaseException):
    """A line that took too long; no Exception, lest it be taken for a user's mistake."""


class Started(BaseException):
    """A line that should have been refused began to train."""


def wrong_values(name: str, kind: object) -> tuple[str, ...]:
    """What the flag of this name and type must refuse."""
    if name == "device":
        return (*STRANGE, *WORDS, *DEVICES)
    return (*STRANGE, *WORDS) if name in CHOICES else WRONG.get(kind, STRANGE)


def lines() -> Iterator[tuple[list[str], str]]:
    """Command lines, and what the complaint must name ("" for anything)."""
    for beginning, target in FLAGS.items():
        for name, parameter in inspect.signature(target).parameters.items():
            flag = f"--{name.replace('_', '-')}"
            if parameter.kind is parameter.POSITIONAL_ONLY:
                continue
            words = re.sub(rf"{flag} \S+|--no-{name}\b", "", beginning).split()
            for value in wrong_values(name, kind_of(parameter.annotation)):
                yield [*words, f"{flag}={value}"], name
    for line in SINGLE:
        yield line.split(" "), ""


def complaint(arguments: list[str], name: str) -> str:
    """What is wrong with how the command line refuses these arguments; "" if nothing."""
    out, err = io.StringIO(), io.StringIO()
    signal.alarm(LINE_SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(arguments)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error}"[:200]
    finally:
        signal.alarm(0)
    text = err.getvalue()
    if code != 2 or out.getvalue():
        return f"exit code {code}, prints {out.getvalue()[:80]!r}"
    if not text.startswith("minivim: error: ") or not text.endswith("\n") or not text[:-1].isprintable():
        return f"no printable line: {text[:200]!r}"
    if len(text) > LONGEST + 1:
        return f"{len(text)} characters: {text[:200]}"
    if name and not re.search(rf"\b{name.replace('_', '[-_]')}\b", text):
        return f"does not name {name}: {text}"
    return ""


def make_files(folder: Path) -> dict[str, str]:
    """What the command lines name, by its placeholder."""
    import json

    from PIL import Image

    from minivim import create_model
    from minivim.models import checkpoints

    places = {name: str(folder / name) for name in ("CHECKPOINT", "PICTURE", "NOTEBOOK")}
    model = create_model("vim_nano_patch2_8", depth=1, embed_dim=16)
    extra = {"classes": list("0123456789"), "mean": (0.3,) * 3, "std": (0.3,) * 3}
    places["CHECKPOINT"] += ".safetensors"
    checkpoints.save(model, Path(places["CHECKPOINT"]), extra)
    Image.new("RGB", (12, 9), (200, 100, 0)).save(folder / "picture.png")
    Path(folder / "empty.ipynb").write_text(
        json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []})
    )
    return places | {"PICTURE": str(folder / "picture.png"), "NOTEBOOK": str(folder / "empty.ipynb")}


def failures(count: int | None = None) -> tuple[int, list[str]]:
    """How many lines were tried, all or about `count`, evenly chosen; and what was wrong."""
    everything, found, tried = list(lines()), [], 0
    chosen = everything[:: max(1, len(everything) // count)] if count else everything

    def hang(*_):
        raise Hang

    with tempfile.TemporaryDirectory() as folder, mock.patch("minivim.train.loop.Trainer.fit", side_effect=Started):
        places, before = make_files(Path(folder)), signal.signal(signal.SIGALRM, hang)
        try:
            for arguments, name in chosen:
                places["NEW"] = str(Path(folder) / f"run{tried}")
                problem = complaint([places.get(word, word) for word in arguments], name)
                found += [f"{' '.join(arguments)[:100]!r}: {problem}"] if problem else []
                tried += 1
        finally:
            signal.signal(signal.SIGALRM, before)
    return tried, found


if __name__ == "__main__":
    tried, found = failures(*map(int, sys.argv[1:2]))
    print(*found, f"{tried} command lines, {len(found)} failures", sep="\n")
    sys.exit(bool(found))
