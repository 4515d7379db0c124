"""Every field of TrainConfig does something: it changes the weights of the first steps, or it has a test of its own."""

import ast
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn

import minivim.train.loop as train_module
from minivim import create_model
from minivim.data.images import LazyImages
from minivim.models import checkpoints
from minivim.ops import implementations
from minivim.processes import Team
from minivim.train import train
from minivim.train.loop import Trainer
from minivim.train.recipes import TrainConfig, resolve
from minivim.train.run import Run
from tests.train.small_runs import lazily, records_of, same, small, small_bundle, striped_folder, stripes, tensors_of

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")

# field -> a value other than that of `COMMON`, which must change the weights
CHANGES = {
    "preset": "shapes", "model": "deit_tiny_patch4_32", "seed": 1, "epochs": 4, "batch_size": 40, "lr": 1e-2,
    "lr_end": 0.9, "layer_decay": 0.5, "warmup": 0.5, "weight_decay": 0.5, "beta2": 0.9, "grad_clip": 1e-3,
    "ema": 0.1, "bf16": True, "crop": 2, "flip": 1.0, "rotate": 30.0, "zoom": 0.4, "shift": 2.0, "jitter": 0.8,
    "erase": 1.0, "smoothing": 0.5, "mixup": 1.0, "cutmix": 1.0, "patch_size": 2, "stride": 2,
    "embed_dim": 48, "depth": 2, "expand": 1, "state_dim": 4, "cls_token": "head", "pos_embed": False, "directions": 1,
    "scan_order": "snake", "init": "official", "drop_path": 0.9,
}  # fmt: skip
# Where images come from, how it is computed, what is written: each has its test, test_FIELD_..., below.
ELSEWHERE = {
    "data", "val_share", "train_share", "classes", "in_memory", "image_column", "label_column", "out", "resume",
    "accumulate", "crop_scale", "eval_crop", "img_size", "backend", "compile", "device", "threads",
    "workers", "eval_every", "save_seconds", "tensorboard", "progress",
}  # fmt: skip
# What only a run that starts from a file has.
TUNED = {"freeze"}
COMMON = {"epochs": 2, "depth": 1, "embed_dim": 24, "ema": 0.0, "flip": 0.0, "warmup": 0.0, "preset": "digits"}


def trainer_of(tmp_path, images=None, **changes) -> Trainer:
    """A run on the stripes, or on other images, that has not begun."""
    config = resolve(small(tmp_path, **COMMON | changes))
    return Trainer(config, images or small_bundle(), Team(0, 1, torch.device("cpu")))


def take_steps(trainer: Trainer, count: int = 3) -> list[torch.Tensor]:
    """What would be saved after the first steps."""
    for images, labels in islice(trainer._batches(), count):
        trainer.train_step(images, labels)
    return [parameter.detach().clone() for parameter in trainer.final_model.parameters()]


@pytest.fixture(scope="module")
def common(tmp_path_factory):
    """The weights that every change is compared with."""
    torch.manual_seed(0)
    return take_steps(trainer_of(tmp_path_factory.mktemp("common")))


def differ(found: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """Whether two models are of other shapes or of other numbers."""
    return len(found) != len(other) or not all(map(torch.equal, found, other))


def test_every_field_is_in_one_of_the_tables_and_has_its_test():
    assert {field.name for field in fields(TrainConfig)} == CHANGES.keys() | ELSEWHERE | TUNED
    assert not CHANGES.keys() & ELSEWHERE and not TUNED & (CHANGES.keys() | ELSEWHERE)
    tests = [node.name for node in ast.parse(Path(__file__).read_text()).body if isinstance(node, ast.FunctionDef)]
    assert [field for field in ELSEWHERE if not any(name.startswith(f"test_{field}_") for name in tests)] == []


def test_the_same_configuration_gives_the_same_weights(tmp_path, common):
    assert not differ(take_steps(trainer_of(tmp_path)), common)


def test_a_file_and_what_is_frozen_change_the_weights(tmp_path, common):
    file = str(tmp_path / "old.safetensors")
    checkpoints.save(create_model("vim_nano_patch2_8", embed_dim=24, depth=1, patch_size=4), file)
    started = take_steps(trainer_of(tmp_path, init=file))
    assert differ(started, common) and differ(take_steps(trainer_of(tmp_path, init=file, freeze=True)), started)


@pytest.mark.parametrize("field", CHANGES)
def test_a_field_changes_the_weights(tmp_path, common, field):
    assert differ(take_steps(trainer_of(tmp_path, **{field: CHANGES[field]})), common)


# ---- where images come from ------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path) -> Callable:
    """Runs of one epoch on a folder of stripes, 48 of them for training."""
    folder, count = str(striped_folder(tmp_path / "stripes")), iter(range(9))
    return lambda **changes: train(small(tmp_path / str(next(count)), **{"data": folder, "epochs": 1} | changes))


def extra_of(result) -> dict:
    """What is stored beside the weights."""
    return checkpoints.load_extra(result.out / "best.safetensors")


def test_data_name_the_images_and_so_the_classes(run):
    assert extra_of(run())["classes"] == ["columns", "rows"]


def test_val_share_is_cut_from_the_training_images(run):
    for share, counts in ((0.0, (48, None)), (0.25, (36, 12))):
        result = run(val_share=share)
        labels = result.data.val_labels
        assert (len(result.data.train_labels), labels if labels is None else len(labels)) == counts
        assert ("val_accuracy" in result.history[-1]) == (share > 0)


def test_train_share_is_kept_of_the_training_images(run):
    for share, count in ((1.0, 48), (0.5, 24)):
        data = run(train_share=share, val_share=0.0).data
        assert (len(data.train_labels), len(data.test_labels)) == (count, 12)


def test_classes_are_the_first_ones_or_those_of_a_file(run, tmp_path):
    (tmp_path / "order.txt").write_text("8\n2\n")
    assert extra_of(run(data="digits", classes=3, batch_size=200))["classes"] == ["0", "1", "2"]
    assert extra_of(run(data="digits", classes=str(tmp_path / "order.txt"), batch_size=200))["classes"] == ["8", "2"]


@pytest.fixture
def table(tmp_path, monkeypatch) -> str:
    """A parquet file with stripes and with the same pictures upside down, with labels and with these plus five."""
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    images, labels = stripes(60, 0)
    columns = {"label": labels.tolist(), "group": (labels + 5).tolist()}
    for name, pixels in (("photo", images), ("flipped", images.flip(2))):
        columns[name] = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    features = {name: datasets.Image() if name in ("photo", "flipped") else datasets.Value("int64") for name in columns}
    (tmp_path / "table").mkdir()
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    made.to_parquet(tmp_path / "table" / "train.parquet")
    return str(tmp_path / "table")


def test_image_column_is_the_one_that_is_read(run, table):
    photo, flipped = (run(data=table, image_column=column).data.train_images for column in ("photo", "flipped"))
    assert torch.equal(photo, flipped.flip(2)) and not torch.equal(photo, flipped)


def test_label_column_is_the_one_that_is_read(run, table):
    columns = {"image_column": "photo", "data": table}
    assert extra_of(run(label_column="group", **columns))["classes"] == ["5", "6"]
    assert extra_of(run(**columns))["classes"] == ["0", "1"]


def test_img_size_is_that_of_images_and_model(run):
    result = run(img_size=16)
    assert result.data.train_images.shape[-2:] == result.model.config.image_shape == (16, 16)


def test_in_memory_or_decoded_when_they_are_asked_for(run):
    for wanted, lazy in ((None, False), (True, False), (False, True)):
        result = run(in_memory=wanted, workers=0)
        parts = result.data.train_images, result.data.val_images, result.data.test_images
        assert {isinstance(images, LazyImages) for images in parts} == {lazy}


@pytest.mark.parametrize("in_memory", [True, False])
def test_eval_crop_is_what_evaluation_sees_and_training_where_no_crop_is_drawn(tmp_path, run, in_memory):
    trainers = {}
    for share in (1.0, 0.5):
        result = run(in_memory=in_memory, eval_crop=share, img_size=4, crop_scale=1.0, workers=0)
        config = resolve(small(tmp_path / "again", **{**COMMON, "eval_crop": share, "crop_scale": 1.0}))
        trainers[share] = Trainer(config, result.data, Team(0, 1, torch.device("cpu")))
        assert trainers[share].model.preparation.crop_pct == result.model.preparation.crop_pct == share
    for part in ("val_images", "test_images"):
        whole, centre = (getattr(trainers[share].data, part)[0] for share in (1.0, 0.5))
        assert centre.shape == whole.shape == (3, 4, 4) and not torch.equal(centre, whole)
    assert not torch.equal(trainers[1.0].images[0], trainers[0.5].images[0])


def test_crop_scale_is_the_smallest_crop_of_images_not_in_memory(tmp_path):
    images = lazily(tmp_path)
    whole, cut = (take_steps(trainer_of(tmp_path, images, crop_scale=scale, workers=0)) for scale in (1.0, 0.08))
    assert differ(whole, cut)


@dataclass
class Watched:
    """A path that notes, in a folder, which process opens it."""

    path: Path
    folder: Path

    def __fspath__(self) -> str:
        (self.folder / str(os.getpid())).touch()
        return str(self.path)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_decode_the_images_in_training_and_evaluation(tmp_path, workers):
    (tmp_path / "seen").mkdir()
    images = lazily(tmp_path / "images", item=lambda path: Watched(path, tmp_path / "seen"))
    trainer = trainer_of(tmp_path, images, workers=workers)
    for work in (lambda: take_steps(trainer), lambda: trainer.task.evaluate(trainer.model, "test")):
        work()
        seen = {int(path.name) for path in (tmp_path / "seen").iterdir()}
        assert (seen == {os.getpid()}) if workers == 0 else (len(seen) >= 1 and os.getpid() not in seen)
        for path in (tmp_path / "seen").iterdir():
            path.unlink()


# ---- how it is computed ----------------------------------------------------------------------------------------------


def test_accumulate_is_the_number_of_parts(tmp_path):
    for parts, sizes in ((1, [20]), (3, [7, 7, 6])):
        trainer, seen = trainer_of(tmp_path, accumulate=parts), []
        trainer.model.register_forward_hook(lambda module, inputs, out, seen=seen: seen.append(len(out)))
        take_steps(trainer, 1)
        assert seen == sizes


def test_backend_is_the_one_that_scans(tmp_path, monkeypatch):
    called = []

    def noted(backend, *arguments):
        called.append(backend.name)
        return backend.bidirectional_scan(*arguments)

    for name in ("chunked", "reference"):
        backend = implementations.load(name)
        monkeypatch.setitem(implementations.LOADED, name, backend._replace(bidirectional_scan=partial(noted, backend)))
    for name in ("chunked", "reference"):
        take_steps(trainer_of(tmp_path, backend=name), 1)
        assert set(called) == {name}
        called.clear()


class Compiled(nn.Module):
    """What torch.compile is taken to return; it counts its calls."""

    def __init__(self, model: nn.Module, **options):
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, x):
        self.calls += 1
        return self.model(x)


def test_compile_makes_the_compiled_model_run(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", Compiled)
    trainer = trainer_of(tmp_path, compile=True)
    take_steps(trainer)
    assert trainer.trainee.calls == 3 and trainer.trainee.model is trainer.model
    plain = trainer_of(tmp_path)
    assert plain.trainee is plain.model


def test_device_is_where_the_weights_are(small_data, tmp_path, monkeypatch):
    """On the device that has no numbers, which is one here."""

    class Seen(Exception):
        pass

    def look(model, backend, device):
        raise Seen(str(next(model.parameters()).device), str(device))

    monkeypatch.setattr("minivim.processes.usable_devices", lambda: ["cpu", "meta"])
    monkeypatch.setattr(train_module, "apply_backend", look)
    for device in ("cpu", "meta"):
        with pytest.raises(Seen) as seen:
            train(small(tmp_path, device=device))
        assert seen.value.args == (device, device)


def test_threads_are_those_of_the_steps(small_data, tmp_path, monkeypatch):
    original, seen = Trainer.train_step, set()
    monkeypatch.setattr(Trainer, "train_step", lambda *args: seen.add(torch.get_num_threads()) or original(*args))
    for threads in (1, 2):
        train(small(tmp_path / str(threads), epochs=1, threads=threads))
        assert seen == {threads}
        seen.clear()


# ---- what is written -------------------------------------------------------------------------------------------------


def test_out_is_the_folder(small_data, tmp_path):
    result = train(small(tmp_path, epochs=1, out=str(tmp_path / "here" / "it is")))
    assert result.out == tmp_path / "here" / "it is" and tensors_of(result.out)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_resume_goes_on_from_the_state(small_data, tmp_path, monkeypatch):
    first = train(small(tmp_path, epochs=1))
    before = tensors_of(first.out)
    monkeypatch.setattr(Trainer, "train_step", lambda *args: pytest.fail("it began anew"))
    again = train(small(tmp_path, epochs=1, resume=True))
    assert again.history == first.history and same(tensors_of(again.out), before)


def test_eval_every_so_many_epochs_and_after_the_last(small_data, tmp_path):
    for every, epochs in ((1, [1, 2, 3]), (2, [2, 3]), (9, [3])):
        result = train(small(tmp_path / str(every), eval_every=every))
        assert [record["epoch"] for record in records_of(result.out) if "val_accuracy" in record] == epochs
        assert [record["epoch"] for record in records_of(result.out)] == [1, 2, 3]


def test_save_seconds_pass_between_two_states(small_data, tmp_path, monkeypatch):
    original, steps = Run.save_state, []
    monkeypatch.setattr(Run, "save_state", lambda self, state: steps.append(state["step"]) or original(self, state))
    for seconds, saved in ((0.0, [*range(1, 9), 8]), (1e6, [8])):
        train(small(tmp_path / str(seconds), epochs=1, save_seconds=seconds))
        assert steps == saved
        steps.clear()


def test_tensorboard_events_are_written_on_request(small_data, tmp_path):
    pytest.importorskip("tensorboard")
    for wanted in (False, True):
        result = train(small(tmp_path / str(wanted), epochs=1, tensorboard=wanted))
        assert bool(list(result.out.glob("events.out.tfevents.*"))) == wanted


def test_progress_is_shown_or_nothing_is(small_data, tmp_path, capsys):
    for wanted in (False, True):
        train(small(tmp_path / str(wanted), epochs=1, backend="chunked", progress=wanted))
        said = capsys.readouterr()
        assert ("test accuracy" in said.out) == ("8/8" in said.err) == wanted
        assert wanted or said == ("", "")


# ---- the optimizer's numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_a_step_is_that_of_adamw_with_the_gradient_clipped(tmp_path, monkeypatch, clip):
    """Decoupled weight decay (1711.05101, algorithm 2), in float64 and by hand, on gradients out of a hat."""
    rates, decay, beta2 = [0.005, 0.01, 0.01], 0.3, 0.9
    trainer = trainer_of(tmp_path, lr=0.01, warmup=2 / 16, weight_decay=decay, beta2=beta2, grad_clip=clip, lr_end=1.0)
    named, generator = dict(trainer.model.named_parameters()), torch.Generator().manual_seed(0)
    wanted = {name: parameter.detach().double() for name, parameter in named.items()}
    drawn: list[dict] = []

    def draw(*_):
        drawn.append({name: torch.randn(value.shape, generator=generator) for name, value in named.items()})
        for name, parameter in named.items():
            parameter.grad = drawn[-1][name].clone()
        return torch.tensor(1.0)

    monkeypatch.setattr(train_module, "accumulate_gradients", draw)
    take_steps(trainer)
    first, second = ({name: torch.zeros_like(value) for name, value in wanted.items()} for _ in range(2))
    for step, (rate, gradients) in enumerate(zip(rates, drawn, strict=True), 1):
        norm = torch.stack([gradient.double().square().sum() for gradient in gradients.values()]).sum().sqrt()
        for name, gradient in gradients.items():
            gradient = gradient.double() * min(1, clip / norm if clip else 1)
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = beta2 * second[name] + (1 - beta2) * gradient**2
            spread = (second[name] / (1 - beta2**step)).sqrt() + 1e-8
            shrunk = 1 - rate * (0 if name in trainer.model.no_weight_decay() else decay)
            wanted[name] = shrunk * wanted[name] - rate * first[name] / (1 - 0.9**step) / spread
    for name, parameter in named.items():
        torch.testing.assert_close(parameter.detach().double(), wanted[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("bf16", [False, True])
def test_bf16_is_the_type_of_matrix_products_in_training_and_evaluation(tmp_path, bf16):
    trainer, seen = trainer_of(tmp_path, bf16=bf16), []
    trainer.model.head.register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
    take_steps(trainer, 1)
    trainer.task.evaluate(trainer.model, "test")
    assert seen == [torch.bfloat16 if bf16 else torch.float32] * 2
