"""Our own files: they come back whole, and what no `save` has written is refused before anything is built."""

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from minivim import DeiT, DeiTConfig, VimConfig, VisionMamba, create_model, to_official
from minivim.files import write_atomically
from minivim.models import checkpoints
from minivim.preparation import Preparation

safetensors = pytest.importorskip("safetensors.torch", reason="checkpoints need the extra 'train'")

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_classes": 5, "state_dim": 4}


def small(**overrides) -> VisionMamba:
    return VisionMamba(VimConfig(**{**SMALL, **overrides}))


def assert_same_weights(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


@pytest.mark.parametrize(
    "model",
    [
        small(),
        small(cls_token="double", img_size=(8, 16), stride=2, dt_rank=3, init="official"),
        small(cls_token="none", num_classes=0),
        DeiT(DeiTConfig(img_size=8, patch_size=4, embed_dim=12, depth=1, fused_attention=False)),
    ],
    ids=["vim", "double", "none", "deit"],
)
def test_save_and_load_bring_back_weights_and_configuration(model, tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoints.save(model, path, extra={"classes": ["cat", "dog"]})
    loaded = checkpoints.load(path)
    assert type(loaded) is type(model) and loaded.config == model.config
    assert_same_weights(loaded.state_dict(), model.state_dict())
    assert checkpoints.load_extra(path) == {"classes": ["cat", "dog"]}
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_a_resized_model_is_loaded_at_its_new_size(tmp_path):
    model = small().resize_to(8, 24)
    checkpoints.save(model, tmp_path / "model.safetensors")
    loaded, image = checkpoints.load(tmp_path / "model.safetensors"), torch.randn(1, 3, 8, 24)
    assert torch.equal(loaded(image), model(image))


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    model = small()
    checkpoints.save(model, path)
    before = path.read_bytes()

    def fail(_descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(small(), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_the_new_file_takes_the_old_ones_place_only_when_it_is_on_the_disk(tmp_path, monkeypatch):
    path, calls = tmp_path / "file", []
    for name in ("fsync", "replace"):
        function = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, function=function: (calls.append((name, a)), function(*a)))
    write_atomically(path, b"content")
    assert path.read_bytes() == b"content"
    assert [name for name, _ in calls] == ["fsync", "replace"]
    assert Path(calls[1][1][0]).parent == tmp_path  # a rename is atomic only within one file system


def test_create_model_takes_our_and_official_checkpoints(tmp_path):
    model = create_model("vim_nano_patch2_8", depth=1)
    checkpoints.save(model, tmp_path / "ours.safetensors")
    torch.save({"model": to_official(model)}, tmp_path / "official.pth")
    for file in ("ours.safetensors", "official.pth"):
        loaded = create_model("vim_nano_patch2_8", checkpoint=tmp_path / file, depth=1)
        assert_same_weights(loaded.state_dict(), model.state_dict())
    with pytest.raises(ValueError, match=r"does not fit the model.*missing: blocks\.1\."):
        create_model("vim_nano_patch2_8", checkpoint=tmp_path / "ours.safetensors", depth=2)
    with pytest.raises(ValueError, match=r"unexpected: blocks\.0\.mixer"):
        create_model("deit_tiny_patch4_32", checkpoint=tmp_path / "ours.safetensors", depth=1)


# ---------------------------------------------------------------- what is saved can be loaded


WRAPPERS = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "data parallel": nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "averaged, compiled": lambda model: torch.optim.swa_utils.AveragedModel(torch.compile(model, backend="eager")),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_what_wraps_a_model_is_left_out(wrap, tmp_path):
    model = small()
    wrapped = wrap(model)
    checkpoints.save(wrapped, tmp_path / "a.safetensors")
    assert_same_weights(checkpoints.load(tmp_path / "a.safetensors").state_dict(), model.state_dict())
    assert_same_weights(to_official(wrapped), to_official(model))


def test_a_compiled_block_is_saved_as_a_block(tmp_path):
    model, expected = small(), None
    expected = copy.deepcopy(model.state_dict())
    model.blocks[0] = torch.compile(model.blocks[0], backend="eager")
    checkpoints.save(model, tmp_path / "a.safetensors")
    assert_same_weights(checkpoints.load(tmp_path / "a.safetensors").state_dict(), expected)


class LoRA(nn.Module):
    """A layer with an adapter beside it."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.layer, self.A, self.B = layer, nn.Linear(layer.in_features, 2), nn.Linear(2, layer.out_features)


def replace_head(model):
    model.head = nn.Linear(16, 7)


def add_adapter(model):
    model.blocks[1].mixer.in_proj = LoRA(model.blocks[1].mixer.in_proj)


CHANGES = {
    "adapter": (add_adapter, r"unexpected: blocks\.1\.mixer\.in_proj\.layer\.weight.*merge adapters"),
    "new head": (replace_head, r"head\.weight \(7, 16\) instead of \(5, 16\).*call reset_classifier\(num_classes\)"),
    "no norm": (lambda model: model.prune_intermediate_layers(1, prune_norm=True), r"missing: norm\.weight"),
    "parametrized": (
        lambda model: torch.nn.utils.parametrizations.weight_norm(model.blocks[0].mixer.out_proj),
        "unexpected: .*parametrizations",
    ),
}


@pytest.mark.parametrize("change, message", CHANGES.values(), ids=CHANGES.keys())
def test_a_model_that_could_not_be_loaded_again_is_not_saved(change, message, tmp_path):
    model = small()
    change(model)
    for write in (lambda: checkpoints.save(model, tmp_path / "a.safetensors"), lambda: to_official(model)):
        with pytest.raises(ValueError, match=f"model does not fit .*{message}"):
            write()
    assert os.listdir(tmp_path) == []


def test_other_models_are_refused(tmp_path, unchecked):
    class Mine(VisionMamba):
        pass

    for model, message in ((nn.Linear(2, 2), "model is a Linear"), (nn.DataParallel(nn.Linear(2, 2)), "is a Linear")):
        with pytest.raises(TypeError, match=message):
            checkpoints.save(model, tmp_path / "a.safetensors")
    with pytest.raises(TypeError, match="model is a Mine; it must be exactly a VisionMamba or DeiT"):
        checkpoints.save(Mine(VimConfig(**SMALL)), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="model is on the meta device"):
        checkpoints.save(small().to("meta"), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="std is"):
        checkpoints.save(small(), tmp_path / "a.safetensors", {"mean": [0.5] * 3, "std": [0.5, 0.0, 0.5]})


def test_how_images_are_prepared_is_kept(tmp_path):
    model = small()
    assert model.default_cfg["crop_pct"] == 1.0
    model.preparation = Preparation(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0), crop_pct=0.9)
    checkpoints.save(model, tmp_path / "a.safetensors", {"classes": ["x"]})
    loaded = checkpoints.load(tmp_path / "a.safetensors")
    assert loaded.preparation == model.preparation
    assert {name: loaded.pretrained_cfg[name] for name in ("mean", "std", "crop_pct")} == {
        "mean": (0.1, 0.2, 0.3),
        "std": (1.0, 2.0, 3.0),
        "crop_pct": 0.9,
    }
    fresh = create_model("vim_nano_patch2_8", checkpoint=tmp_path / "a.safetensors", **SMALL)
    assert fresh.preparation == model.preparation


def test_another_number_of_classes_or_size_says_how(tmp_path):
    checkpoints.save(small(), tmp_path / "a.safetensors")
    official = {"model": to_official(small())}
    torch.save(official, tmp_path / "a.pth")
    for file in ("a.safetensors", "a.pth"):
        with pytest.raises(ValueError, match=r"load with the file's own, then call reset_classifier\(num_classes\)"):
            create_model("vim_nano_patch2_8", checkpoint=tmp_path / file, **{**SMALL, "num_classes": 3})
        with pytest.raises(ValueError, match=r"load at the file's own, then call resize_to\(height, width\)"):
            create_model("vim_nano_patch2_8", checkpoint=tmp_path / file, **{**SMALL, "img_size": 32})


@pytest.mark.parametrize(
    ("saved", "asked"),
    [
        ({"cls_token": "head"}, {"cls_token": "middle"}),
        ({"scan_order": "snake"}, {"scan_order": "rows"}),
        ({"norm_eps": 1e-3}, {"norm_eps": 1e-5}),
        ({"img_size": (8, 32)}, {"img_size": 16}),  # as many tokens
        ({"img_size": 10, "stride": 2}, {"img_size": 16}),
    ],
)
def test_weights_are_not_taken_for_what_they_are_not(saved, asked, tmp_path):
    checkpoints.save(small(**saved), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=f"weights for ({'|'.join(saved)}) .*they must be the same"):
        create_model("vim_nano_patch2_8", checkpoint=tmp_path / "a.safetensors", **{**SMALL, **asked})
    create_model("vim_nano_patch2_8", checkpoint=tmp_path / "a.safetensors", **{**SMALL, **saved})


def test_heads_and_pools_that_shapes_do_not_tell(tmp_path):
    config = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1}
    checkpoints.save(DeiT(DeiTConfig(**config, num_heads=2)), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="weights for num_heads 2, but the model's is 3"):
        checkpoints.load_weights(DeiT(DeiTConfig(**config, num_heads=3)), tmp_path / "a.safetensors")
    checkpoints.save(small(cls_token="none"), tmp_path / "b.safetensors")  # the pool is the user's choice
    checkpoints.load_weights(small(cls_token="max"), tmp_path / "b.safetensors")
    checkpoints.load_weights(small(cls_token="none", global_pool=""), tmp_path / "b.safetensors")


def test_own_names_in_a_file_of_torch(tmp_path):
    model = small()
    torch.save(
        {"state_dict": {f"model.{name}": value for name, value in model.state_dict().items()}}, tmp_path / "a.pt"
    )
    assert_same_weights(checkpoints.load_weights(small(), tmp_path / "a.pt").state_dict(), model.state_dict())


# ---------------------------------------------------------------- headers that no `save` has written


def forge(path: Path, changes: dict | None = None, **header) -> Path:
    """A file of ours with another configuration, or another header."""
    model = small()
    checkpoints.save(model, path)
    tensors, told = checkpoints.read_file(path)
    told["config"] |= changes or {}
    path.write_bytes(safetensors.save(tensors, metadata={"minivim": json.dumps(told | header)}))
    return path


HUGE = [
    {"depth": 10**9},
    {"depth": 3},
    {"embed_dim": 10**12},
    {"num_classes": 10**18},
    {"state_dim": 10**18},
    {"state_dim": 10**30},
    {"expand": 10**15},
    {"dt_rank": 10**13},
    {"conv_kernel": 10**18},
    {"img_size": 4 * 10**18},
    {"img_size": [4 * 10**9, 4 * 10**9]},
    {"in_chans": 10**17},
    {"patch_size": 10**9, "img_size": 10**9},
]


@pytest.mark.parametrize("changes", HUGE, ids=str)
def test_sizes_that_the_file_does_not_hold_are_refused_at_once(changes, tmp_path):
    path = forge(tmp_path / "a.safetensors", changes)  # to build it would take hours, or all memory
    with pytest.raises(ValueError, match="does not fit the model|no model can have it|of at most") as error:
        checkpoints.load(path)
    assert len(str(error.value)) < 500 + len(str(path))


NOT_VALUES = [
    ({"depth": None}, "depth is None"),
    ({"depth": True}, "depth is True"),
    ({"depth": 2.0}, "depth is 2.0"),
    ({"embed_dim": [16]}, r"embed_dim is \(16,\)"),
    ({"embed_dim": {"a": 1}}, "embed_dim is {'a': 1}"),
    ({"cls_token": 3}, "cls_token is 3"),
    ({"cls_token": {}}, "cls_token is {}"),
    ({"norm_eps": "small"}, "norm_eps is 'small'"),
    ({"norm_eps": True}, "norm_eps is True"),
    ({"norm_eps": float("inf")}, "norm_eps is inf"),
    ({"img_size": [16, 16, 16]}, r"img_size is \(16, 16, 16\)"),
    ({"img_size": None}, "img_size is None"),
    ({"drop_path_rate": float("nan")}, "drop_path_rate is nan"),
    ({"init": "x" * 10**5}, "init is 'xxx"),
    ({"\x1b[2J\n": 1}, r"config has \\x1b\[2J\\n; VimConfig has no such field"),
]


@pytest.mark.parametrize("changes, message", NOT_VALUES, ids=lambda value: str(value)[:40])
def test_values_of_another_kind_are_refused(changes, message, tmp_path, unchecked):
    path = forge(tmp_path / "a.safetensors", changes)
    with pytest.raises(ValueError, match=f"it must be a file of this version of minivim .*{message}") as error:
        checkpoints.load(path)
    assert str(error.value).isprintable() and len(str(error.value)) < 400 + len(str(path))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"model": ["VisionMamba"]}, r"model is \['VisionMamba'\]; it must be one of"),
        ({"model": None}, "model is None"),
        ({"config": None}, "config is None; it must be the fields"),
        ({"config": [1]}, r"config is \[1\]"),
        ({"extra": None}, "extra is None; it must be a dict"),
        ({"extra": "text"}, "extra is 'text'"),
        ({"extra": {"mean": None, "std": None}}, "mean is None; it must be one finite number a channel"),
        ({"extra": {"mean": [0.5] * 3, "std": [0.5, 0.0, 0.5]}}, "its numbers must be above 0"),
        ({"extra": {"mean": [0.5] * 3, "std": [0.5, -1.0, 0.5]}}, "its numbers must be above 0"),
        ({"extra": {"mean": [0.5] * 3, "std": [0.5, float("nan"), 0.5]}}, "std is .*nan.*one finite number"),
        ({"extra": {"mean": [0.5] * 3, "std": [True] * 3}}, "std is .*True"),
        ({"extra": {"mean": [0.5] * 2, "std": [0.5] * 3}}, "mean has 2 numbers, std 3"),
        ({"extra": {"mean": [0.5] * 4, "std": [0.5] * 4}}, "mean has 4 numbers; it must have one for each of 3"),
        ({"extra": {"crop_pct": 1e-9}}, "crop_pct is 1e-09; it must be a number from 0.1 to 1"),
    ],
    ids=str,
)
def test_headers_that_are_none_are_refused(header, message, tmp_path, unchecked):
    with pytest.raises(ValueError, match=message):
        checkpoints.load(forge(tmp_path / "a.safetensors", **header))


@pytest.mark.parametrize("text", ["[1, 2]", "null", '"text"', "3", "{", "[" * 10**5], ids=lambda text: text[:8])
def test_a_header_is_an_object(text, tmp_path):
    data = safetensors.save(small().state_dict(), metadata={"minivim": text})
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="a.safetensors'; it must be a safetensors file"):
        checkpoints.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_another_precision_are_taken(kind, tmp_path):
    model = small().to(kind)
    checkpoints.save(model, tmp_path / "a.safetensors")
    loaded = checkpoints.load(tmp_path / "a.safetensors")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert all(torch.equal(a, b.float()) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value, tmp_path):
    model = small()
    model.blocks[1].mixer.forward_ssm.D.data[3] = value
    checkpoints.save(model, tmp_path / "a.safetensors")
    message = r"a.safetensors holds NaN or infinite values in blocks\.1\.mixer\.forward_ssm\.D; weights must be finite"
    with pytest.raises(ValueError, match=message):
        checkpoints.load(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=message):
        checkpoints.load_weights(small(), tmp_path / "a.safetensors")
