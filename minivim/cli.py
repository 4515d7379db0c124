"""The command line: `minivim COMMAND ...`, the same as `python -m minivim COMMAND ...`.

A mistake of the user ends in one sentence on stderr and exit code 2, never in a traceback.
"""

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import torch

from minivim.extras import require

MISTAKES = (ValueError, TypeError, ImportError, OSError, MemoryError, torch.OutOfMemoryError)


def parse(target: Callable, arguments: Sequence[str], command: str):
    """Build `target`, a dataclass or a function, from flags; a wrong flag is a ValueError in one sentence."""
    tyro = require("tyro", "train")
    complaint = io.StringIO()
    config = (tyro.conf.UseAppendAction,)  # a sequence is a flag given several times
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(target, args=list(arguments), prog=f"minivim {command}", config=config)
    except SystemExit as end:
        if not end.code:  # --help
            raise
        raise ValueError(one_sentence(complaint.getvalue())) from None


def one_sentence(box: str) -> str:
    """tyro's framed complaint as one line: what was wrong, and how the flag is written."""
    plain = re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯│─]+|-{3,}", " ", box.partition("\n")[2])  # colours, frame, title
    text = " ".join(plain.split())
    text = re.sub(r" ?For full helptext.*", "", text).replace("{None}|", "")
    text = re.sub(r"Argument helptext: (\S+ \S+).*", r"(it must be given as \1)", text)
    text = re.sub(r" Got errors:.*?(?=\(it must|$)", " ", text)
    return re.sub(r"^Error parsing (?=-)|^Error parsing \S+: ", "", text)


def spell_out_switches(configuration: type, arguments: Sequence[str]) -> list[str]:
    """`--resume` and `--no-resume` as the `--resume True` and `--resume False` that an optional boolean wants."""
    switches = {f"--{field.name.replace('_', '-')}" for field in fields(configuration) if field.type == (bool | None)}
    spelled = []
    for argument, following in pairwise([*arguments, ""]):
        plain = argument.replace("_", "-")
        positive = plain.replace("--no-", "--", 1)
        if positive not in switches:
            spelled.append(argument)
        elif plain != positive:
            spelled += [positive, "False"]
        else:
            spelled += [plain] if following in ("True", "False", "None") else [plain, "True"]
    return spelled


def no_arguments(command: str, arguments: Sequence[str]) -> None:
    """Refuse arguments of a command that takes none."""
    if arguments:
        raise ValueError(f"{command} was given {' '.join(arguments)!r}; it must be called without arguments")


def train(arguments: Sequence[str]) -> None:
    """Train a model: minivim train --data digits"""
    from minivim.train.recipes import TrainConfig

    config = parse(TrainConfig, spell_out_switches(TrainConfig, arguments), "train")
    from minivim.train import train

    train(config)


def eval_flags(
    checkpoint: str, /, *, data: str, backend: str = "auto", device: str | None = None, workers: int = 2,
    classes: int | str | None = None, image_column: str | None = None, label_column: str | None = None,
) -> dict:  # fmt: skip
    """Score a checkpoint on the test images of a set.

    Args:
        checkpoint: A file written by minivim train.
        data: digits, shapes, cifar10, cifar100, imagenet, OWNER/NAME on the hub, or a folder.
        backend: The scan's backend: auto, reference, chunked, numba or triton.
        device: cpu, cuda, ...; by default cuda if there is one.
        workers: Processes that decode images; only for sets too large for memory.
        classes: Only some classes: the first N, or those in a text file, one a line, in its order.
        image_column: The column of a table that holds the images; by default the only one.
        label_column: The column of a table that holds the labels; by default the only one.
    """
    columns = {"classes": classes, "image_column": image_column, "label_column": label_column}
    return {"checkpoint": checkpoint, "data": data, "backend": backend, "device": device, "workers": workers} | columns


def evaluate(arguments: Sequence[str]) -> None:
    """Score a checkpoint: minivim eval CHECKPOINT --data digits"""
    flags = parse(eval_flags, arguments, "eval")
    from minivim.train import evaluate

    found = evaluate(flags.pop("checkpoint"), flags.pop("data"), **flags)
    print(f"{found['images']:,} images, accuracy {found['accuracy']:.2%}, cross-entropy {found['loss']:.4f}")
    width = max(len(name) for name in found["per_class"])
    for name, accuracy in found["per_class"].items():
        print(f"  {name:<{width}}  {accuracy:7.2%}")


def predict_flags(
    checkpoint: str, images: tuple[str, ...], /, *, top: int = 3, backend: str = "auto", device: str | None = None
) -> dict:
    """Name what is in pictures.

    Args:
        checkpoint: A file written by minivim train.
        images: Image files.
        top: How many classes to show for each image.
        backend: The scan's backend: auto, reference, chunked, numba or triton.
        device: cpu, cuda, ...; by default cuda if there is one.
    """
    return {"checkpoint": checkpoint, "images": images, "top": top, "backend": backend, "device": device}


def predict(arguments: Sequence[str]) -> None:
    """Name what is in pictures: minivim predict CHECKPOINT IMAGE..."""
    flags = parse(predict_flags, arguments, "predict")
    from minivim.checks import check_whole
    from minivim.train import predict

    check_whole("top", flags["top"])
    images = flags.pop("images")
    found = predict(flags.pop("checkpoint"), images, **flags)
    width = max(len(image) for image in images)
    for image, classes in zip(images, found, strict=True):
        print(f"{image:<{width}}  " + "  ".join(f"{name} {probability:.1%}" for name, probability in classes))


def models(arguments: Sequence[str]) -> None:
    """List the models: parameters, tokens, image size"""
    no_arguments("models", arguments)
    from minivim import create_model, list_models

    print(f"{'model':<32} {'parameters':>12} {'tokens':>7} {'image':>9}")
    for name in list_models():
        with torch.device("meta"):
            model = create_model(name)
        parameters = sum(p.numel() for p in model.parameters())
        height, width = model.config.image_shape
        print(f"{name:<32} {parameters:>12,} {model.config.num_tokens:>7} {f'{height}x{width}':>9}")


def doctor(arguments: Sequence[str]) -> None:
    """Say what runs here: versions, devices, backends; test each backend"""
    no_arguments("doctor", arguments)
    from minivim.bench.doctor import diagnose

    print(diagnose())


def bench(arguments: Sequence[str]) -> None:
    """Measure speed and memory: minivim bench scan, minivim bench model"""
    from minivim.bench import ModelBench, ScanBench, bench_model, bench_scan
    from minivim.bench.report import table

    kinds = {"scan": (ScanBench, bench_scan), "model": (ModelBench, bench_model)}
    kind, *flags = arguments or [""]
    if kind in ("-h", "--help"):
        print(f"usage: minivim bench {{{','.join(kinds)}}} ...; minivim bench scan --help lists the flags")
        return
    if kind not in kinds:
        raise ValueError(f"bench was given {kind!r}; it must be given one of {', '.join(kinds)}")
    configuration, run = kinds[kind]
    config = parse(configuration, flags, f"bench {kind}")
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)  # fails before the measurement rather than after it
    report = run(config)
    print(table(report))
    print("written:", *report.save(config.out))


def grade_flags(
    paths: tuple[str, ...],
    /,
    *,
    csv: str | None = None,
    json: str | None = None,
    time_limit: float = 300.0,
    memory_limit: float = 4.0,
    workers: int = 1,
) -> dict:
    """Grade notebooks with exercises. A submission runs with your rights: use a container for people you do not trust.

    Args:
        paths: Notebooks, or folders in which every .ipynb is a submission.
        csv: Write one line a submission to this file.
        json: Write everything, with all messages, to this file.
        time_limit: Seconds for all cells of one submission.
        memory_limit: GiB for one submission (on Linux).
        workers: Submissions that run at the same time.
    """
    limits = {"time_limit": time_limit, "memory_limit": memory_limit, "workers": workers}
    return {"paths": paths, "csv": csv, "json": json} | limits


def grade(arguments: Sequence[str]) -> None:
    """Grade the exercises of a class: minivim grade FILE.ipynb|FOLDER"""
    flags = parse(grade_flags, arguments, "grade")
    from minivim.course.grade import grade_files, table

    print(table(grade_files(**flags)))


COMMANDS = {
    "train": train,
    "eval": evaluate,
    "predict": predict,
    "models": models,
    "doctor": doctor,
    "bench": bench,
    "grade": grade,
}


def usage() -> str:
    """What `minivim --help` prints."""
    lines = [f"  {name:<8} {function.__doc__}" for name, function in COMMANDS.items()]
    return "\n".join(["usage: minivim COMMAND ...", "", *lines, "", "minivim COMMAND --help lists a command's flags."])


def run(arguments: Sequence[str]) -> None:
    """Run one command."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    command, *rest = arguments
    if command not in COMMANDS:
        raise ValueError(f"the command is {command!r}; it must be one of {', '.join(COMMANDS)}")
    COMMANDS[command](rest)


def is_mistake(error: BaseException) -> bool:
    """Whether the user can mend it: a wrong value or file, a missing package, too little memory."""
    return isinstance(error, MISTAKES) or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 after a mistake, 130 after Ctrl-C."""
    try:
        run(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as end:  # tyro's --help
        return int(end.code or 0)
    except KeyboardInterrupt:
        print("minivim: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if not is_mistake(error):
            raise
        print("minivim: error:", " ".join(str(error).split()) or type(error).__name__, file=sys.stderr)
        return 2
    return 0
