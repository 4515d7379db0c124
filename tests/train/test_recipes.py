"""Configurations: presets fill in what is not given, and impossible values are refused by name."""

import pytest
import torch

from minivim.data import ImageData
from minivim.processes import Team
from minivim.train import build_model, train
from minivim.train.recipes import BASE, PRESETS, TrainConfig, given, resolve
from minivim.train.tasks import Classification
from tests.train.small_runs import small


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_resolves_to_a_complete_configuration_and_explicit_fields_win(preset):
    config = resolve(TrainConfig(preset=preset, data="somewhere", epochs=7))
    assert config.epochs == 7 and config.preset == preset and config.data == "somewhere"
    assert resolve(config) == config
    for name, value in {**given(BASE), **given(PRESETS[preset])}.items():
        if name not in ("epochs", "data"):
            assert getattr(config, name) == value
    optional = {"img_size", "patch_size", "stride", "embed_dim", "depth", "expand", "state_dim", "cls_token"}
    optional |= {"device", "threads", "label_column"}
    optional |= {"pos_embed", "directions", "scan_order", "init", "classes", "in_memory", "image_column"}
    assert {name for name, value in vars(config).items() if value is None} <= optional


def test_the_preset_is_the_datas_own_unless_one_is_named():
    assert resolve(TrainConfig()).preset == "digits"
    assert resolve(TrainConfig(data="cifar10")).preset == "cifar10"
    assert resolve(TrainConfig(data="cifar10", preset="cifar10_cpu")).preset == "cifar10_cpu"
    assert resolve(TrainConfig(data="cifar100")).preset == "cifar100"
    assert resolve(TrainConfig(data="a/folder")).preset == "base"


def test_the_overrides_reach_the_model(small_data):
    config = resolve(
        TrainConfig(expand=1, state_dim=4, cls_token="none", embed_dim=24, depth=3, patch_size=4, drop_path=0.3)
    )
    found = build_model(config, small_data).config
    assert (found.expand, found.state_dim, found.cls_token, found.embed_dim, found.depth) == (1, 4, "none", 24, 3)
    assert (found.patch_size, found.drop_path_rate, found.num_classes, found.img_size) == (4, 0.3, 2, 8)


def test_patches_overlap_at_a_smaller_stride():
    sizes = {"data": "shapes", "patch_size": 8, "stride": 4, "embed_dim": 16, "depth": 1}
    images, labels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1])
    data = ImageData("x", images, labels, images, labels, ("a", "b"), (0.5,) * 3, (0.5,) * 3)
    model = build_model(resolve(TrainConfig(**sizes)), data)
    assert model.config.grid_shape == (7, 7) and model.forward_features(torch.zeros(1, 3, 32, 32)).shape[1] == 49 + 1
    with pytest.raises(ValueError, match="img_size is 32; each side must be patch_size 8 plus a multiple of stride 5"):
        build_model(resolve(TrainConfig(**sizes | {"stride": 5})), data)


def test_a_preset_of_a_vim_serves_a_deit_without_what_only_a_vim_has(small_data):
    config = resolve(TrainConfig(preset="cifar10_cpu", model="deit_tiny_patch4_32", img_size=8))
    assert (config.expand, config.state_dim) == (None, None) and PRESETS["cifar10_cpu"].expand == 1
    assert build_model(config, small_data).config.embed_dim == PRESETS["cifar10_cpu"].embed_dim
    asked = resolve(TrainConfig(preset="cifar10_cpu", model="deit_tiny_patch4_32", expand=2))
    with pytest.raises(ValueError, match="^expand is 2, but DeiTConfig has no such field"):
        build_model(asked, small_data)


def test_a_fresh_model_has_the_statistics_of_its_data(small_data, tmp_path):
    task = Classification(resolve(small(tmp_path)), small_data, Team(0, 1, torch.device("cpu")))
    assert task.build_model().preparation.mean == small_data.mean and task.origin == ""


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "base"])
def test_every_preset_builds_its_model(preset):
    size = {"digits": 8, "imagenet": 224, "imagenet_finetune": 224}.get(preset, 32)
    images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    labels = torch.tensor([0, 1])
    data = ImageData("x", images, labels, images, labels, ("a", "b", "c"), (0.5,) * 3, (0.5,) * 3)
    with torch.device("meta"):
        model = build_model(resolve(TrainConfig(preset=preset, data="x")), data)
    assert model.num_classes == 3 and model.config.image_shape == (size, size)


BAD = {
    "epochs": (0, "epochs is 0; it must be at least 1"),
    "batch_size": (161, "batch_size is 161; it must be at most the number of training images, 160"),
    "lr": (-1.0, "lr is -1.0; it must be at least 0"),
    "lr_end": (1.5, "lr_end is 1.5; it must be from 0 to 1"),
    "warmup": (2.0, "warmup is 2.0; it must be from 0 to 1"),
    "weight_decay": (-0.1, "weight_decay is -0.1"),
    "ema": (1.0, "ema is 1.0; it must be from 0 to"),
    "flip": (1.1, "flip is 1.1; it must be from 0 to 1"),
    "crop": (-1, "crop is -1; it must be from 0 to 256"),
    "mixup": (float("nan"), "mixup is nan; it must be from 0 to 1000"),
    "smoothing": ("a lot", "smoothing is 'a lot'; it must be a number"),
    "drop_path": (1.0, "drop_path is 1.0"),
    "threads": (0, "threads is 0; it must be from 1 to 1024"),
    "preset": ("cifar", "preset is 'cifar'; it must be one of base, digits"),
    "model": ("vim_huge", "'vim_huge'; it must be one of"),
    "embed_dim": (0, "embed_dim is 0; it must be from 1 to 65536"),
    "stride": (0, "stride is 0; it must be from 1 to"),
    "patch_size": (3, "img_size is 8; each side must be a multiple of patch_size 3"),
    "cls_token": ("left", "cls_token is 'left'; it must be one of"),
    "backend": ("cuda", "backend"),
    "device": ("cuda:77", "device is 'cuda:77'; it must be a device that this machine has"),
}


@pytest.mark.parametrize("field", ["epochs", "batch_size", "accumulate", "threads", "depth", "seed", "eval_every"])
def test_a_count_is_a_whole_number(small_data, tmp_path, unchecked, field):
    with pytest.raises(TypeError, match=f"^{field} is 1.5; it must be a whole number$"):
        train(small(tmp_path, **{field: 1.5}))


@pytest.mark.parametrize("field", BAD)
def test_an_impossible_setting_is_refused_in_one_sentence(small_data, tmp_path, unchecked, field):
    value, message = BAD[field]
    with pytest.raises((ValueError, TypeError)) as caught:
        train(small(tmp_path, **{field: value}))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
