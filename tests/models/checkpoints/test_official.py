"""Official checkpoints: they go through unchanged, and wrong ones are refused by name."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from minivim import DeiT, DeiTConfig, VimConfig, VisionMamba, load_official, to_official
from minivim.models import checkpoints

safetensors = pytest.importorskip("safetensors.torch", reason="checkpoints need the extra 'train'")
load_file, save_file = safetensors.load_file, safetensors.save_file

FIXTURES = Path(__file__).parents[2] / "fixtures"
SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_classes": 5, "state_dim": 4}


def small(**overrides) -> VisionMamba:
    return VisionMamba(VimConfig(**{**SMALL, **overrides}))


def official_weights(name: str = "vim_mini") -> dict[str, torch.Tensor]:
    data = load_file(FIXTURES / f"{name}.safetensors")
    return {key.removeprefix("model."): value for key, value in data.items() if key.startswith("model.")}


def assert_same_weights(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


# ---------------------------------------------------------------- official files


@pytest.mark.parametrize("name", ["vim_mini", "vim_mini_stride"])
def test_official_weights_come_and_go_bit_for_bit(name, tmp_path):
    weights = official_weights(name)
    assert_same_weights(to_official(load_official(weights)), weights)
    official = {"model": weights, "epoch": 3, "args": Namespace(lr=0.1, output_dir="out"), "scaler": {"scale": 2.0}}
    torch.save(official, tmp_path / "a.pth")
    torch.save(weights, tmp_path / "b.pth")
    save_file(weights, tmp_path / "c.safetensors")
    for file in ("a.pth", "b.pth", "c.safetensors"):
        assert_same_weights(to_official(load_official(tmp_path / file)), weights)
        assert_same_weights(to_official(load_official(str(tmp_path / file))), weights)


def test_to_official_shares_no_memory_with_the_model():
    model = small()
    to_official(model)["layers.0.mixer.D"].zero_()
    assert (model.blocks[0].mixer.forward_ssm.D == 1).all()


@pytest.mark.parametrize("cls_token", ["middle", "head", "double", "none"])
def test_configuration_is_read_off_the_shapes(cls_token):
    shape = {
        "embed_dim": 20, "depth": 3, "expand": 3, "state_dim": 5, "dt_rank": 4, "conv_kernel": 2, "patch_size": 8,
        "in_chans": 1, "num_classes": 6, "img_size": 24,
    }  # fmt: skip
    model = VisionMamba(VimConfig(**shape, cls_token=cls_token))
    official = to_official(model)
    assert ("cls_token_tail" in official, "cls_token" in official) == (
        cls_token == "double",
        cls_token in ("middle", "head"),
    )
    overrides = {"cls_token": "head"} if cls_token == "head" else {}  # the one thing no shape tells
    loaded = load_official(official, **overrides)
    assert loaded.config == model.config
    assert_same_weights(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("grid", "patch_size", "overrides", "img_size", "stride"),
    [
        (14, 16, {}, 224, None),  # vim_tiny_patch16_224
        (27, 16, {}, 224, 8),  # the published stride-8 fine-tunings
        (24, 16, {}, 384, None),
        (8, 4, {}, 32, None),
        (7, 8, {"stride": 4}, 32, 4),
        (7, 8, {"img_size": 32}, 32, 4),
        (7, 8, {}, 56, None),
        (4, 8, {"img_size": (16, 64), "stride": None}, (16, 64), None),  # 2 x 8 patches: 16 as well
    ],
)
def test_image_size_and_stride_follow_from_the_grid(grid, patch_size, overrides, img_size, stride):
    config = VimConfig(img_size=grid * patch_size, patch_size=patch_size, embed_dim=4, depth=1, state_dim=2)
    loaded = load_official(to_official(VisionMamba(config)), **overrides)
    assert (loaded.config.img_size, loaded.config.stride) == (img_size, stride)


def test_a_wrong_state_dict_is_refused_with_the_names():
    weights = official_weights()
    weights.pop("layers.1.mixer.D_b")
    weights["rope.freqs_cos"] = torch.zeros(4)
    weights["norm_f.weight"] = torch.zeros(31)
    with pytest.raises(ValueError, match="does not fit the model") as error:
        load_official(weights)
    for part in (
        "path_or_state_dict does not fit the model; its names and shapes must be the same",
        "1 missing: layers.1.mixer.D_b",
        "1 unexpected: rope.freqs_cos",
        "its names tell if_rope=True",
        "1 of another shape: norm_f.weight (31,) instead of (32,)",
    ):
        assert part in str(error.value)


def test_our_own_names_are_not_official_ones(tmp_path):
    checkpoints.save(small(), tmp_path / "ours.safetensors")
    with pytest.raises(ValueError, match=r"ours.safetensors'; it must be an official checkpoint"):
        load_official(tmp_path / "ours.safetensors")
    with pytest.raises(ValueError, match=r"path_or_state_dict lacks layers\.0\.mixer\.A_log"):
        load_official(small().state_dict())


def write_bad_files(folder: Path) -> None:
    (folder / "folder.pth").mkdir()
    (folder / "text.pth").write_text("no checkpoint")
    (folder / "empty.pth").touch()
    (folder / "text.safetensors").write_text("no checkpoint")
    torch.save([1, 2, 3], folder / "list.pth")
    torch.save(torch.zeros(3), folder / "tensor.pth")
    torch.save({}, folder / "nothing.pth")
    torch.save({"model": {"pos_embed": 3.0}}, folder / "number.pth")
    torch.save({"epoch": 3, "pos_embed": torch.zeros(1)}, folder / "epoch.pth")
    torch.save({"weight": torch.zeros(3)}, folder / "other.pth")
    torch.save(to_official(small()), folder / "whole.pth")
    (folder / "cut.pth").write_bytes((folder / "whole.pth").read_bytes()[:-500])
    save_file({"weight": torch.zeros(3)}, folder / "other.safetensors")
    header = {"model": "ResNet", "config": {}}
    save_file({"weight": torch.zeros(3)}, folder / "class.safetensors", metadata={"minivim": json.dumps(header)})
    header = {"model": "VisionMamba", "config": {"depht": 3}}
    save_file({"weight": torch.zeros(3)}, folder / "field.safetensors", metadata={"minivim": json.dumps(header)})


@pytest.mark.parametrize(
    ("function", "file", "message"),
    [
        (load_official, "missing.pth", "missing.pth'; it must be an existing file"),
        (load_official, "folder.pth", "folder.pth'; it must be an existing file"),
        (load_official, "text.pth", "text.pth'; it must be a checkpoint that torch.load"),
        (load_official, "empty.pth", "empty.pth'; it must be a checkpoint that torch.load"),
        (load_official, "cut.pth", "cut.pth'; it must be a checkpoint that torch.load"),
        (load_official, "text.safetensors", "text.safetensors'; it must be a safetensors file"),
        (load_official, "list.pth", "list.pth holds a list; it must be a state dict"),
        (load_official, "tensor.pth", "tensor.pth holds a Tensor; it must be a state dict"),
        (load_official, "nothing.pth", "nothing.pth holds a dict without entries; it must be a state dict"),
        (load_official, "number.pth", "number.pth holds a float under 'pos_embed'; each value must be a tensor"),
        (load_official, "epoch.pth", "epoch.pth holds a int under 'epoch'; each value must be a tensor"),
        (load_official, "other.pth", "other.pth lacks patch_embed.proj.weight.*it must be an official Vim state dict"),
        (checkpoints.load, "missing.safetensors", "missing.safetensors'; it must be an existing file"),
        (checkpoints.load, "text.safetensors", "text.safetensors'; it must be a safetensors file"),
        (checkpoints.load, "other.safetensors", "other.safetensors'; it must be a file written by minivim"),
        (checkpoints.load, "whole.pth", "whole.pth'; it must be a file written by minivim"),
        (checkpoints.load, "class.safetensors", "class.safetensors'; it must be .* this version of minivim .*ResNet"),
        (checkpoints.load, "field.safetensors", "field.safetensors'; it must be .* this version of minivim .*depht"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path, function, file, message):
    write_bad_files(tmp_path)
    with pytest.raises(ValueError, match=message):
        function(tmp_path / file)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"d_state": 16}, "d_state is 16; an override must be one of .*state_dim"),
        ({"depth": 3}, r"missing: layers\.2\.norm\.weight"),
        ({"num_classes": 5}, r"head\.weight \(10, 32\) instead of \(5, 32\)"),
        ({"img_size": 64, "stride": 8}, r"pos_embed \(1, 17, 32\) instead of \(1, 65, 32\).*resize_to"),
        ({"cls_token": "none"}, "pos_embed has 17 patches, which is no square; img_size and stride must be given"),
        ({"cls_token": "tail"}, "cls_token is 'tail'; it must be one of"),
    ],
)
def test_overrides_that_contradict_the_weights_are_refused(unchecked, overrides, message):
    with pytest.raises(ValueError, match=message):
        load_official(official_weights(), **overrides)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scan_order": "snake"}, "scan_order is 'snake'"),
        ({"cls_token": "max"}, "cls_token is 'max'"),
        ({"global_pool": "avg"}, "global_pool is 'avg' and cls_token 'middle'; they must be a pair that the official"),
        ({"global_pool": ""}, "global_pool is '' and cls_token 'middle'"),
        ({"cls_token": "none", "global_pool": "max"}, "global_pool is 'max' and cls_token 'none'"),
    ],
)
def test_what_the_official_code_cannot_compute_gets_no_official_names(fields, message):
    with pytest.raises(ValueError, match=message):
        to_official(small(**fields))


@pytest.mark.parametrize("option", [{"norm_epsilon": 1e-2}, {"use_middle_cls_token": False}])
def test_to_official_and_back_with_the_options_that_it_names(option):
    model = load_official(official_weights(), **option)
    again = load_official(to_official(model), **option)
    assert again.config == model.config
    assert_same_weights(again.state_dict(), model.state_dict())


def test_added_directions_become_averaged_ones():
    weights = official_weights()
    model = load_official(weights, if_divide_out=False)
    doubled = {name: value * 2 if "out_proj" in name else value for name, value in weights.items()}
    assert_same_weights(to_official(model), doubled)  # for if_divide_out=True, as its docstring says


def test_how_official_evaluation_prepares_images_is_known():
    weights = official_weights()  # images of 32 pixels are not resized there
    assert load_official(weights).default_cfg["crop_pct"] == 1.0
    large = to_official(VisionMamba(VimConfig(img_size=64, patch_size=8, embed_dim=8, depth=1, num_classes=2)))
    assert load_official(large).default_cfg["crop_pct"] == 0.875
    said = {"model": large, "args": Namespace(eval_crop_ratio=1.0, mean=[0.5] * 3, std=[0.25] * 3)}
    cfg = load_official(said).pretrained_cfg
    assert (cfg["crop_pct"], cfg["mean"], cfg["std"]) == (1.0, (0.5,) * 3, (0.25,) * 3)


def test_an_argument_of_another_type_is_refused(unchecked):
    with pytest.raises(TypeError, match="path_or_state_dict is 3; it must be a path or a state dict"):
        load_official(3)
    with pytest.raises(TypeError, match="model is a DeiT; it must be a VisionMamba"):
        to_official(DeiT(DeiTConfig(img_size=8, patch_size=4, embed_dim=12, depth=1)))
