"""Every field of TrainConfig does something: one that changes the training changes the weights of its first steps."""

from dataclasses import fields
from itertools import islice

import pytest
import torch

from minivim import create_model
from minivim.models import checkpoints
from minivim.processes import Team
from minivim.train.loop import Trainer
from minivim.train.recipes import TrainConfig, resolve
from tests.train.small_runs import small, small_bundle

# field -> a value other than that of `COMMON`, which must change the weights
CHANGES = {
    "preset": "shapes", "model": "deit_tiny_patch4_32", "seed": 1, "epochs": 4, "batch_size": 40, "lr": 1e-2,
    "lr_end": 0.9, "layer_decay": 0.5, "warmup": 0.5, "weight_decay": 0.5, "beta2": 0.9, "grad_clip": 1e-3,
    "ema": 0.1, "bf16": True, "crop": 2, "flip": 1.0, "rotate": 30.0, "zoom": 0.4, "shift": 2.0, "jitter": 0.8,
    "erase": 1.0, "smoothing": 0.5, "mixup": 1.0, "cutmix": 1.0, "patch_size": 2, "embed_dim": 48, "depth": 2,
    "expand": 1, "state_dim": 4, "cls_token": "head", "pos_embed": False, "directions": 1, "scan_order": "snake",
    "init": "official", "drop_path": 0.9,
}  # fmt: skip
# What leaves the weights of these steps as they are: where images come from, how it is computed, what is written.
ELSEWHERE = {
    "data", "val_share", "train_share", "classes", "image_column", "label_column", "out", "resume",
    "accumulate", "crop_scale", "img_size", "backend", "compile", "device", "threads",
    "workers", "eval_every", "save_seconds", "tensorboard", "progress",
}  # fmt: skip
# What only a run that starts from a file has.
TUNED = {"freeze"}
COMMON = {"epochs": 2, "depth": 1, "embed_dim": 24, "ema": 0.0, "flip": 0.0, "warmup": 0.0, "preset": "digits"}


def weights_after(tmp_path, **changes) -> list[torch.Tensor]:
    """What would be saved after the first three steps on the stripes."""
    data = small_bundle()
    trainer = Trainer(resolve(small(tmp_path, **COMMON | changes)), data, Team(0, 1, torch.device("cpu")))
    for images, labels in islice(trainer._batches(), 3):
        trainer.train_step(images, labels)
    return [parameter.detach().clone() for parameter in trainer.final_model.parameters()]


@pytest.fixture(scope="module")
def common(tmp_path_factory):
    """The weights that every change is compared with."""
    torch.manual_seed(0)
    return weights_after(tmp_path_factory.mktemp("common"))


def differ(found: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """Whether two models are of other shapes or of other numbers."""
    return len(found) != len(other) or not all(map(torch.equal, found, other))


def test_every_field_is_in_one_of_the_tables():
    assert {field.name for field in fields(TrainConfig)} == CHANGES.keys() | ELSEWHERE | TUNED
    assert not CHANGES.keys() & ELSEWHERE and not TUNED & (CHANGES.keys() | ELSEWHERE)


def test_the_same_configuration_gives_the_same_weights(tmp_path, common):
    assert not differ(weights_after(tmp_path), common)


def test_a_file_and_what_is_frozen_change_the_weights(tmp_path, common):
    file = str(tmp_path / "old.safetensors")
    checkpoints.save(create_model("vim_nano_patch2_8", embed_dim=24, depth=1, patch_size=4), file)
    started = weights_after(tmp_path, init=file)
    assert differ(started, common) and differ(weights_after(tmp_path, init=file, freeze=True), started)


@pytest.mark.parametrize("field", CHANGES)
def test_a_field_changes_the_weights(tmp_path, common, field):
    assert differ(weights_after(tmp_path, **{field: CHANGES[field]}), common)
