"""The commands: what each one's flags are, and what it does with them."""

import inspect
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from minivim.checks import check_whole, is_first_process, printable
from minivim.cli.help import Command, written


def train_flags() -> type:
    """What the flags of `train` build."""
    from minivim.train.recipes import TrainConfig

    return TrainConfig


def train_default(name: str) -> str:
    """A field's default, and where a preset has another one."""
    from minivim.train.recipes import BASE, PRESETS, given

    base, presets = getattr(BASE, name), {preset: given(config).get(name) for preset, config in PRESETS.items()}
    words = [] if base is None else [f"default: {written(base)}"]
    others = [f"{preset} {written(value)}" for preset, value in presets.items() if value not in (None, base)]
    return "; ".join(words + [", ".join(others)] * bool(others))


def train(config: Any) -> None:
    """Train, and say how to go on; of several processes one speaks."""
    from minivim.train import train

    out = train(config).out
    if is_first_process():
        print(*next_commands(out), sep="\n")


def next_commands(out: Path) -> list[str]:
    """The command lines that one wants after a training run, ready to be copied; none after a silent run."""
    from minivim.train.recipes import saved_config
    from minivim.train.run import BEST_FILE

    config = saved_config(out)
    if not config.progress:
        return []
    flags = []
    for name, parameter in inspect.signature(eval_flags).parameters.items():
        value = getattr(config, name, None)  # what described the data and the machine still does
        flags += [] if value in (None, parameter.default) else [f"--{name.replace('_', '-')}", str(value)]
    weights = str(out / BEST_FILE)
    lines = [["minivim", "predict", weights, "IMAGE"], ["minivim", "eval", weights, *flags]]
    return ["next:", *(f"  {printable(shlex.join(line))}" for line in lines)]


def eval_flags(
    checkpoint: str, /, *, data: str, backend: str = "auto", device: str | None = None, workers: int = 2,
    classes: int | str | None = None, image_column: str | None = None, label_column: str | None = None,
) -> dict:  # fmt: skip
    """Score a checkpoint on the test images of a set.

    Args:
        checkpoint: A file written by minivim train, or an official one (.pth, .safetensors).
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


def evaluate(flags: dict) -> None:
    """Print the accuracy, of all images and of each class."""
    from minivim.train import evaluate

    found = evaluate(flags.pop("checkpoint"), flags.pop("data"), **flags)
    print(f"{found['images']:,} images, accuracy {found['accuracy']:.2%}, cross-entropy {found['loss']:.4f}")
    per_class = [(printable(name), accuracy) for name, accuracy in found["per_class"].items()]
    width = max(len(name) for name, _ in per_class)
    for name, accuracy in per_class:
        print(f"  {name:<{width}}  {accuracy:7.2%}")


def predict_flags(files: tuple[str, ...], /, *, top: int = 3, backend: str = "auto", device: str | None = None) -> dict:
    """Name what is in pictures.

    Args:
        files: A checkpoint, written by minivim train or an official one, then image files; image files alone are named
            by the Vim that is shipped, which knows CIFAR-10's ten classes.
        top: How many classes to show for each image.
        backend: The scan's backend: auto, reference, chunked, numba or triton.
        device: cpu, cuda, ...; by default cuda if there is one.
    """
    return {"files": files, "top": top, "backend": backend, "device": device}


def checkpoint_and_images(files: Sequence[str]) -> tuple[str, Sequence[str]]:
    """(what names the images, the images): the first file is a checkpoint unless it is an image."""
    from minivim.data.images import is_image
    from minivim.models.checkpoints import load_extra, shipped

    if not files:
        raise ValueError("files is empty; it must name at least one image file")
    if not is_image(files[0]):
        return files[0], files[1:]
    weights = shipped()
    classes = ", ".join(load_extra(weights)["classes"])
    print(f"minivim: the Vim that is shipped knows {classes}", file=sys.stderr)
    return str(weights), files


def predict(flags: dict) -> None:
    """Print the likeliest classes of each picture."""
    from minivim.train import predict

    check_whole("top", flags["top"])
    checkpoint, images = checkpoint_and_images(flags.pop("files"))
    found = predict(checkpoint, images, **flags)
    width = max(len(printable(image)) for image in images)
    for image, classes in zip(images, found, strict=True):
        line = "  ".join(f"{printable(name)} {probability:.1%}" for name, probability in classes)
        print(f"{printable(image):<{width}}  {line}")


def models() -> None:
    """Print each model's size."""
    from minivim import create_model, list_models

    print(f"{'model':<32} {'parameters':>12} {'tokens':>7} {'image':>9}")
    for name in list_models():
        with torch.device("meta"):
            model = create_model(name)
        parameters = sum(p.numel() for p in model.parameters())
        height, width = model.config.image_shape
        print(f"{name:<32} {parameters:>12,} {model.config.num_tokens:>7} {f'{height}x{width}':>9}")


def doctor() -> None:
    """Print what runs here."""
    from minivim.bench.doctor import diagnose

    print(diagnose())


def flops_flags(models: tuple[str, ...] = (), /, *, img_size: int | None = None) -> dict:
    """Count parameters and multiply-adds.

    Args:
        models: Models by name; by default those of the Vim paper's Table 1. The parts of a single one are shown.
        img_size: The image's side in pixels; by default each model's own.
    """
    return {"models": models, "img_size": img_size}


def flops(flags: dict) -> None:
    """Print the table, and the parts of a single model."""
    from minivim.bench.flops import TABLE_1, measure, report

    print(report([measure(name, flags["img_size"]) for name in flags["models"] or TABLE_1]))


def scan_bench() -> type:
    """What the flags of `bench scan` build."""
    from minivim.bench import ScanBench

    return ScanBench


def model_bench() -> type:
    """What the flags of `bench model` build."""
    from minivim.bench import ModelBench

    return ModelBench


def data_bench() -> type:
    """What the flags of `bench data` build."""
    from minivim.bench import DataBench

    return DataBench


def bench(config: Any) -> None:
    """Measure, print the table, write the files."""
    from minivim.bench import DataBench, ModelBench, ScanBench, bench_data, bench_model, bench_scan
    from minivim.bench.report import table

    config.check()
    config.out.parent.mkdir(parents=True, exist_ok=True)  # fails before the measurement rather than after it
    measured: dict = {ScanBench: bench_scan, ModelBench: bench_model, DataBench: bench_data}
    report = measured[type(config)](config)
    print(printable(table(report), kept="\n"))
    print("written:", *(printable(str(path)) for path in report.save(config.out)))


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


def grade(flags: dict) -> None:
    """Print the table of points."""
    from minivim.course.grade import grade_files, table

    print(table(grade_files(**flags)))


def export_flags(checkpoint: str, file: str, /) -> dict:
    """Write a model as an ONNX file, for whatever runs ONNX without PyTorch, or its weights at half the size.

    Args:
        checkpoint: A file written by minivim train, or an official one.
        file: The file to write: NAME.onnx, or NAME.safetensors, the weights in bfloat16.
    """
    return {"checkpoint": checkpoint, "file": file}


def export(flags: dict) -> None:
    """Write the file, and print what is in it."""
    from minivim.models import checkpoints

    model, extra = checkpoints.load_any(flags["checkpoint"])
    if flags["file"].endswith(".safetensors"):
        checkpoints.save(model.bfloat16(), flags["file"], extra)
        count, size = sum(p.numel() for p in model.parameters()), Path(flags["file"]).stat().st_size
        print(printable(f"{flags['file']}: {size / 1e6:.1f} MB, {count:,} weights in bfloat16"))
        return
    from minivim.models.export import describe, export_onnx

    export_onnx(model, flags["file"], extra)
    print(printable(describe(model, flags["file"])))


HEADINGS = {
    "data": "the run", "epochs": "optimisation", "crop": "augmentation", "img_size": "the model",
    "backend": "the machine, and what is written",
}  # fmt: skip

COMMANDS = {
    "train": Command(
        "Train a model",
        train,
        ("minivim train --data digits", "minivim train --data photos --epochs 50 --out runs/photos",
         "minivim train --out runs/photos --resume",
         "minivim train --data flowers --init runs/photos/best.safetensors --freeze"),
        train_flags, HEADINGS, train_default,
    ),
    "eval": Command(
        "Score a checkpoint on the test images of a set",
        evaluate,
        ("minivim eval runs/photos/best.safetensors --data photos",),
        lambda: eval_flags,
    ),
    "predict": Command(
        "Name what is in pictures",
        predict,
        ("minivim predict cat.jpg", "minivim predict runs/photos/best.safetensors cat.jpg dog.jpg --top 1"),
        lambda: predict_flags,
    ),
    "models": Command("List the models: parameters, tokens, image size", models, ("minivim models",)),
    "doctor": Command(
        "Say what runs here: versions, devices, backends; test each backend", doctor, ("minivim doctor",)
    ),
    "flops": Command(
        "Count the parameters of models, and the multiply-adds for one image",
        flops,
        ("minivim flops", "minivim flops vim_tiny_patch16_224 --img-size 1248"),
        lambda: flops_flags,
    ),
    "bench": Command("Measure speed and memory: bench scan, bench model, bench data", bench),
    "grade": Command(
        "Grade the exercises of a class. A submission runs with your rights: use a container for people you do not "
        "trust",
        grade,
        ("minivim grade notebooks/01_state_space_models.ipynb", "minivim grade class --csv points.csv --workers 4"),
        lambda: grade_flags,
    ),
    "export": Command(
        "Write a model as an ONNX file, for whatever runs ONNX without PyTorch, or its weights at half the size",
        export,
        ("minivim export runs/photos/best.safetensors photos.onnx",
         "minivim export runs/photos/best.safetensors photos.safetensors"),
        lambda: export_flags,
    ),
}  # fmt: skip

BENCHES = {
    "scan": Command(
        "Time the selective scan's backends side by side, and a second implementation if you name one",
        bench,
        ("minivim bench scan", "minivim bench scan --shape 1,384,197 --shape 1,384,4096 --no-backward"),
        scan_bench,
    ),
    "model": Command(
        "Time whole models side by side: Vim on each scan backend, DeiT with fused and naive attention",
        bench,
        ("minivim bench model", "minivim bench model --img-size 224 --img-size 512 --threads 1"),
        model_bench,
    ),
    "data": Command(
        "Time images on their way from files to the model, for each number of workers, beside a training step",
        bench,
        ("minivim bench data --data photos", "minivim bench data --data photos --workers 4 --workers 8 --device cuda"),
        data_bench,
    ),
}
