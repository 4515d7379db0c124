"""Fine-tuning: a run starts from a file's weights, in its shape; layers learn at their rates, or the head alone."""

import json
import re
from argparse import Namespace
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from minivim import create_model, to_official
from minivim.data import load_data
from minivim.data.augment import normalise
from minivim.models import checkpoints
from minivim.processes import Team
from minivim.train.loop import Trainer, train
from minivim.train.recipes import CONFIG_FILE, STATE_FILE, TrainConfig, resolve
from minivim.train.step import decay_groups, layer_of
from minivim.train.tasks import begin, build_model
from tests.train.small_runs import cut_after, records_of, same, small, tensors_of

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")

CPU = Team(0, 1, torch.device("cpu"))
SIZES = {"embed_dim": 16, "depth": 2, "patch_size": 4, "num_classes": 5}
EXTRA = {"classes": list("abcde"), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 0.875}
tuned = partial(small, model=None, embed_dim=None, depth=None, patch_size=None)  # all of the shape is the file's


def written(path: Path, name: str = "vim_nano_patch2_8", extra: dict | None = None, **sizes) -> str:
    """A file of ours with random weights; all tensors differ from what a fresh model has."""
    torch.manual_seed(7)
    model = create_model(name, **{**SIZES, **sizes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    checkpoints.save(model, path, EXTRA | {"recipe": {"model": name}} if extra is None else extra)
    return str(path)


@pytest.fixture
def file(tmp_path) -> str:
    """Weights of a Vim for images of 16 x 16 pixels and five classes."""
    return written(tmp_path / "old.safetensors", img_size=16)


def start(file: str, data, tmp_path, **changes) -> Trainer:
    """A trainer at step 0."""
    return Trainer(resolve(tuned(tmp_path, init=file, **changes)), data, CPU)


# ---- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vim_nano_patch2_8", "deit_tiny_patch4_32"])
def test_all_but_the_head_is_the_files_and_the_position_embedding_is_resized(small_data, tmp_path, name):
    sizes = {"embed_dim": 24} if name.startswith("deit") else {"cls_token": "double"}
    file = written(tmp_path / "old.safetensors", name, img_size=16, **sizes)
    trainer = start(file, small_data, tmp_path, drop_path=0.3)
    found, old = trainer.model, checkpoints.load(file)
    assert trainer.config.model == name and type(found) is type(old)
    expected = old.resize_to(8, 8).state_dict()
    for key, tensor in found.state_dict().items():
        assert key.startswith("head.") or torch.equal(tensor, expected[key]), key
    assert found.config == replace(old.config, num_classes=2, drop_path_rate=0.3, img_size=8)
    assert found.head.weight.shape == (2, old.embed_dim) and found.head.weight.std() < 0.1
    assert found.head.bias.tolist() == [0, 0]
    assert max(module.rate for module in found.modules() if hasattr(module, "rate")) == 0.3


def test_the_head_stays_where_the_classes_are_the_same(small_data, tmp_path):
    for classes, kept in ((small_data.classes, True), (("columns", "rows"), False), (None, False)):
        extra = {} if classes is None else {"classes": list(classes)}
        file = written(tmp_path / "old.safetensors", extra=extra, num_classes=2)
        head, old = start(file, small_data, tmp_path).model.head, checkpoints.load(file).head
        # A file of ours that names no classes has as many: as with an official one, they are taken for the same.
        assert torch.equal(head.weight, old.weight) == (kept or classes is None)
    three = replace(small_data, classes=tuple("abc"))
    assert start(file, three, tmp_path).model.head.weight.shape == (3, 16)


def test_the_fresh_head_is_the_seeds(file, small_data, tmp_path):
    heads = [start(file, small_data, tmp_path, seed=seed).model.head.weight for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_images_are_normalised_as_the_file_says_and_cut_as_the_run_does(file, small_data, tmp_path):
    trainer = start(file, small_data, tmp_path, smoothing=0.0, flip=0.0)
    images, labels = small_data.train_images[:4], small_data.train_labels[:4]
    found, _ = trainer.task.prepare(images, labels, torch.Generator())
    assert torch.allclose(found, normalise(images, EXTRA["mean"], EXTRA["std"]), atol=1e-6)
    assert asdict(trainer.model.preparation) == {"mean": EXTRA["mean"], "std": EXTRA["std"], "crop_pct": 1.0}
    assert start(file, small_data, tmp_path, eval_crop=0.5).model.preparation.crop_pct == 0.5
    with torch.no_grad():
        logits = trainer.model.eval()(normalise(small_data.val_images, EXTRA["mean"], EXTRA["std"]))
    loss = torch.nn.functional.cross_entropy(logits, small_data.val_labels).item()
    assert trainer.task.evaluate(trainer.model, "val")["val_loss"] == pytest.approx(loss, rel=1e-4)
    bare = written(tmp_path / "bare.safetensors", extra={})
    assert start(bare, small_data, tmp_path).model.preparation.mean == small_data.mean


def test_what_is_kept_and_what_is_new_is_said_in_one_line(small_data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = written(Path("old.safetensors"), img_size=16)
    train(tuned(tmp_path, init=file, epochs=1, progress=True, img_size=8, freeze=True))
    said = capsys.readouterr().out
    line = f"starts from {file}: a new head for 2 classes (it has 5), position embedding resized from 16x16 to "
    assert f"{line}8x8 pixels, its mean and std\n" in said
    assert re.search(r"^vim_nano_patch2_8: [\d,]+ parameters, 34 of them trained, 5 tokens", said, re.MULTILINE)
    written(Path("same.safetensors"), extra={"classes": list(small_data.classes)}, num_classes=2)
    origin = begin(resolve(tuned(tmp_path, init="same.safetensors")), small_data)[1]
    assert origin == "starts from same.safetensors: its head, mean and std of these images"


@pytest.mark.parametrize("beside", [{}, {"args": Namespace(lr=0.1, output_dir="out"), "epoch": 3}], ids=str)
def test_an_official_file_is_one_too(small_data, tmp_path, beside):
    weights = {"model": to_official(checkpoints.load(written(tmp_path / "x.safetensors", img_size=16)))}
    torch.save(weights | beside, tmp_path / "official.pth")
    trainer = start(str(tmp_path / "official.pth"), small_data, tmp_path)
    old = checkpoints.load(tmp_path / "x.safetensors").resize_to(8, 8)
    for key, tensor in trainer.model.state_dict().items():
        assert key.startswith("head.") or torch.equal(tensor, old.state_dict()[key]), key
    assert trainer.model.preparation.mean == (0.485, 0.456, 0.406)


def test_build_model_gives_what_training_begins_with(file, small_data, tmp_path):
    config = resolve(tuned(tmp_path, init=file))
    torch.manual_seed(config.seed)
    assert same(build_model(config, small_data).state_dict(), start(file, small_data, tmp_path).model.state_dict())


# ---- the shape -------------------------------------------------------------------------------------------------------


def test_the_shape_is_the_files_whatever_the_preset_says(file):
    config = resolve(TrainConfig(data="photos", preset="cifar10_cpu", init=file, epochs=7))
    assert (config.model, config.embed_dim, config.depth, config.expand) == ("vim_nano_patch2_8", 16, 2, 2)
    assert (config.state_dim, config.patch_size, config.img_size) == (16, 4, 16)
    assert (config.lr, config.crop, config.epochs) == (5e-3, 2, 7)  # the preset's and the user's own
    assert resolve(config) == config
    assert resolve(TrainConfig(init=file, img_size=24, depth=2)).img_size == 24


def test_images_that_are_no_squares_have_no_size_not_even_the_presets_when_a_run_goes_on(tmp_path):
    wide = written(tmp_path / "wide.safetensors", img_size=(8, 16))
    config = resolve(TrainConfig(data="photos", preset="cifar10_cpu", init=wide, out=str(tmp_path)))
    assert config.img_size is None
    (tmp_path / CONFIG_FILE).write_text(json.dumps(asdict(config)))
    (tmp_path / STATE_FILE).touch()
    assert resolve(TrainConfig(out=str(tmp_path), resume=True)) == replace(config, resume=True)


def test_the_name_is_the_recipes_or_that_of_the_nearest_registered_model(tmp_path):
    assert resolve(TrainConfig(init=written(tmp_path / "told.safetensors"))).model == "vim_nano_patch2_8"
    for recipe in ({"model": "deit_tiny_patch4_32"}, {"model": ["x"]}, "x"):
        file = written(tmp_path / "file.safetensors", extra={"recipe": recipe})
        assert resolve(TrainConfig(init=file)).model == "vim_tiny_patch4_32"  # by its patches
    built = {"model": "vim_nano_patch2_8", "embed_dim": 16, "depth": 2, "patch_size": 4}
    assert resolve(TrainConfig(init=file, **built)).model == "vim_nano_patch2_8"  # as one builds it
    for name in ("vim_nano_patch2_8", "vim_small_patch16_224"):
        with pytest.raises(ValueError, match=f"^model is '{name}'; it must be 'vim_tiny_patch4_32', as in init, "):
            resolve(TrainConfig(init=file, model=name))
    sizes = {"expand": 2, "state_dim": 16, "cls_token": "middle", "pos_embed": True, "directions": 2}
    with pytest.raises(ValueError, match="^model is 'deit_tiny_patch4_32'; it must be 'vim_tiny_patch4_32', as in"):
        resolve(TrainConfig(**built | sizes | {"init": file, "model": "deit_tiny_patch4_32", "scan_order": "rows"}))
    wide = written(tmp_path / "wide.safetensors", "deit_small_patch16_224", depth=1, embed_dim=384, patch_size=16)
    assert resolve(TrainConfig(init=wide)).model == "deit_small_patch16_224"


OTHER = {
    "model": "deit_tiny_patch4_32", "patch_size": 2, "embed_dim": 24, "depth": 3, "expand": 1, "state_dim": 4,
    "cls_token": "head", "pos_embed": False, "directions": 1, "scan_order": "snake",
}  # fmt: skip


def test_the_stride_is_the_files_unless_another_one_is_given(file, tmp_path):
    assert resolve(TrainConfig(init=file)).stride == resolve(TrainConfig(init=file, stride=4)).stride == 4
    fine = written(tmp_path / "fine.safetensors", stride=2)
    assert resolve(TrainConfig(init=fine)).stride == 2 and resolve(TrainConfig(init=fine, stride=1)).stride == 1
    with pytest.raises(ValueError, match="^stride is 0; it must be from 1 to"):
        resolve(TrainConfig(init=fine, stride=0))
    sizes = {"model": "vim_tiny_patch4_32", "embed_dim": 16, "depth": 2}  # whose own stride is the patch's side
    with pytest.raises(ValueError, match="^model is 'vim_tiny_patch4_32'; it must be 'vim_nano_patch2_8', as in init"):
        resolve(TrainConfig(init=fine, **sizes))
    assert resolve(TrainConfig(init=file, **sizes)).stride == 4
    assert resolve(TrainConfig(init=fine, stride=1, **sizes)).stride == 1


@pytest.mark.parametrize("name", ["vim_nano_patch2_8", "deit_tiny_patch4_32"])
def test_a_model_goes_on_at_a_finer_stride(small_data, tmp_path, name):
    file = written(tmp_path / "old.safetensors", name, embed_dim=24, img_size=8)
    trainer = start(file, small_data, tmp_path, stride=2)
    expected = checkpoints.load(file).resize_to(8, 8, 2).state_dict()
    assert trainer.model.config.grid_shape == (3, 3) and trainer.model.config.stride == 2
    for key, tensor in trainer.model.state_dict().items():
        assert key.startswith("head.") or torch.equal(tensor, expected[key]), key
    assert "position embedding resized from stride 4 to 2, its mean" in trainer.task.origin
    both = start(
        written(tmp_path / "large.safetensors", name, embed_dim=24, img_size=16), small_data, tmp_path, stride=2
    )
    assert "position embedding resized from 16x16 to 8x8 pixels and from stride 4 to 2, " in both.task.origin
    with pytest.raises(ValueError, match="^img_size is 8; each side must be patch_size 4 plus a multiple of stride 3"):
        start(file, small_data, tmp_path, stride=3)


@pytest.mark.parametrize("field", OTHER)
def test_another_shape_than_the_files_is_refused_by_name(file, tmp_path, field):
    with pytest.raises(ValueError, match=rf"^{field} is '?{OTHER[field]}'?; it must be .*, as in init, '.*'$"):
        resolve(TrainConfig(init=file, **{field: OTHER[field]}))
    deit = written(tmp_path / "deit.safetensors", "deit_tiny_patch4_32", embed_dim=24)
    if field in ("expand", "state_dim", "directions", "scan_order"):
        with pytest.raises(ValueError, match=f"^{field} is .*; it must not be given, as in init"):
            resolve(TrainConfig(init=deit, **{field: OTHER[field]}))
    assert resolve(TrainConfig(init=deit, preset="cifar10_cpu")).expand is None


def bad_files(folder: Path) -> dict[str, tuple[str, str]]:
    """Files that no run starts from, and what is said of each."""
    torch.save({"blocks.0.attn.qkv.weight": torch.zeros(3, 3)}, folder / "other.pth")
    (folder / "damaged.safetensors").write_bytes(b"nonsense")
    (folder / "damaged.pth").write_bytes(b"nonsense" * 30)
    written(folder / "grey.safetensors", in_chans=1, extra={"classes": list("abcde")})
    written(folder / "tokens.safetensors", global_pool="", extra={})
    loads = "it must be weights of minivim or official ones"
    missing = "it must be paper, official or an existing file"
    return {
        "none.pth": missing, "": missing,
        "other.pth": loads, "damaged.safetensors": loads, "damaged.pth": loads,
        "grey.safetensors": "for 1 channels; they must be three", "tokens.safetensors": "it must be a classifier",
    }  # fmt: skip


def test_a_file_that_gives_no_start_is_refused_in_one_sentence(tmp_path, small_data, unchecked):
    for name, sentence in bad_files(tmp_path).items():
        with pytest.raises(ValueError, match=f"^init is '.*{sentence}") as caught:
            train(tuned(tmp_path, init=str(tmp_path / name)))
        assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300
        assert not (tmp_path / "run").exists()
    for init in (5, True, "offical"):
        with pytest.raises(ValueError, match=f"^init is '?{init}'?; it must be paper, official or an existing file"):
            resolve(TrainConfig(init=init))
    with pytest.raises(ValueError, match="^init is ''; it must not be empty"):
        resolve(TrainConfig(init=""))
    with pytest.raises(ValueError, match="^img_size is 10; each side must be a multiple of patch_size 4"):
        start(written(tmp_path / "a.safetensors"), replace(small_data, train_images=torch.zeros(160, 3, 10, 10).byte()),
              tmp_path)  # fmt: skip


# ---- rates of learning -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vim_nano_patch2_8", "deit_tiny_patch4_32"])
def test_layers_are_those_of_timm(name):
    """The embedding learns at decay^(depth + 1), each block at the next one's rate times decay, the head at 1."""
    timm_optim = pytest.importorskip("timm.optim")
    model = create_model(name, embed_dim=24, depth=3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    expected = {
        names[id(parameter)]: group["lr_scale"]
        for group in timm_optim.param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=0.7)
        for parameter in group["params"]
    }
    found = {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in decay_groups(model, 0.05, 0.7)
        for parameter in group["params"]
    }
    assert found.keys() == expected.keys() == set(names.values())
    for key, (scale, weight_decay) in found.items():
        assert scale == pytest.approx(expected[key], rel=1e-9), key
        assert (weight_decay == 0) == (key in model.no_weight_decay())


@pytest.mark.parametrize("name", ["vim_nano_patch2_8", "deit_tiny_patch4_32"])
def test_the_embedding_is_layer_0_and_the_head_the_last(name):
    model = create_model(name, embed_dim=24, depth=12)
    for parameter, _ in model.named_parameters():
        block = re.match(r"blocks\.(\d+)\.", parameter)
        below = parameter.startswith(("patch_embed.", "pos_embed", "cls_token"))
        assert layer_of(parameter, model) == (int(block[1]) + 1 if block else 0 if below else 13), parameter


def test_a_step_of_each_layer_is_its_share_of_what_it_would_be(small_data, tmp_path):
    """AdamW's first step is proportional to the rate, so that the ratio of two steps is the ratio of the rates."""
    file, moved = written(tmp_path / "old.safetensors"), {}
    for layer_decay in (1.0, 0.5):
        trainer = start(file, small_data, tmp_path, layer_decay=layer_decay, ema=0.0, warmup=0.0)
        before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
        trainer.train_step(small_data.train_images[:20], small_data.train_labels[:20])
        moved[layer_decay] = [p.detach() - old for p, old in zip(trainer.model.parameters(), before, strict=True)]
    for (name, _), whole, part in zip(trainer.model.named_parameters(), moved[1.0], moved[0.5], strict=True):
        scale = 0.5 ** (3 - layer_of(name, trainer.model))
        assert torch.allclose(part, whole * scale, atol=1e-6), name
        assert whole.abs().max() > 1e-4
    assert [group["lr_scale"] for group in decay_groups(trainer.model, 0.1)] == [1.0, 1.0]


def test_the_rate_that_is_recorded_is_the_heads(small_data, tmp_path):
    rates = []
    for layer_decay in (1.0, 0.5):
        result = train(small(tmp_path / str(layer_decay), layer_decay=layer_decay))
        rates.append([record["lr"] for record in result.history])
    assert rates[0] == rates[1]


# ---- the head alone --------------------------------------------------------------------------------------------------

FROZEN = {
    "plain": {"warmup": 0.0}, "in parts": {"accumulate": 3}, "bfloat16": {"bf16": True},
    "without average": {"ema": 0.0}, "a preset with drop path": {"preset": "cifar10", "batch_size": 20, "epochs": 2},
}  # fmt: skip


@pytest.mark.parametrize("case", FROZEN)
@pytest.mark.parametrize("name", ["vim_nano_patch2_8", "deit_tiny_patch4_32"])
def test_what_is_frozen_stays_bit_for_bit_and_the_head_learns(small_data, tmp_path, name, case):
    file = written(tmp_path / "old.safetensors", name, embed_dim=24, img_size=8)
    result = train(tuned(tmp_path, init=file, freeze=True, weight_decay=0.5, lr=1e-2, **FROZEN[case]))
    old, new = checkpoints.read_file(file)[0], tensors_of(result.out)
    state = torch.load(result.out / "state.pt", weights_only=True)
    for key, tensor in new.items():
        assert key.startswith("head.") or torch.equal(tensor, old[key]), key
        assert key.startswith("head.") or torch.equal(state["model"][key], old[key]), key
    assert [shape for group in state["optimizer"]["param_groups"] for shape in group["params"]] == [0, 1]
    assert sorted(moment["exp_avg"].numel() for moment in state["optimizer"]["state"].values()) == [2, 48]
    assert result.model.config.drop_path_rate == 0
    first = start(file, small_data, tmp_path, freeze=True).model.head.weight
    assert (new["head.weight"] - first).abs().max() > 0.01 and new["head.bias"].abs().min() > 0


@pytest.mark.parametrize("changes, sentence", [
    ({"freeze": True, "init": None}, "freeze is True; it must be False without a file in init: .* random"),
    ({"freeze": True, "init": "paper"}, "freeze is True; it must be False without a file in init: .* random"),
    ({"freeze": True, "layer_decay": 0.75}, "layer_decay is 0.75; it must be 1 with freeze"),
    ({"freeze": True, "drop_path": 0.1}, "drop_path is 0.1; it must be 0 with freeze"),
    *[({"layer_decay": value}, f"layer_decay is {value}; it must be from 0.001 to 1") for value in
      (0, -1, 2, float("nan"))],
    *[({"train_share": value}, f"train_share is {value}; it must be from 0.0001 to 1") for value in
      (0, -1, 2, float("nan"))],
])  # fmt: skip
def test_what_makes_no_sense_is_refused(file, changes, sentence, unchecked):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        resolve(TrainConfig(**{"init": file, **changes}))


# ---- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"freeze": True}, {"layer_decay": 0.5, "drop_path": 0.2, "stride": 1}], ids=str)
def test_a_cut_run_goes_on_bit_for_bit_without_the_file(small_data, tmp_path, monkeypatch, changes):
    file = written(tmp_path / "old.safetensors", embed_dim=24, stride=2)
    changes = {"init": file, "save_seconds": 0.0, "preset": "cifar10_cpu", **changes}
    whole = train(tuned(tmp_path / "whole", **changes))
    with monkeypatch.context() as patch:
        cut_after(patch, 11)
        with pytest.raises(InterruptedError):
            train(tuned(tmp_path, **changes))
    Path(file).unlink()
    with pytest.raises(ValueError, match=f"^init is 'other'; it must be '{file}', as in the run that is resumed"):
        resolve(TrainConfig(out=str(tmp_path / "run"), resume=True, init="other"))
    with pytest.raises(ValueError, match="^embed_dim is 32; it must be 24, as in the run that is resumed"):
        resolve(TrainConfig(out=str(tmp_path / "run"), resume=True, embed_dim=32))
    with pytest.raises(ValueError, match="^stride is 4; it must be [12], as in the run that is resumed"):
        resolve(TrainConfig(out=str(tmp_path / "run"), resume=True, stride=4))
    train(TrainConfig(out=str(tmp_path / "run"), resume=True))
    assert records_of(whole.out) == records_of(tmp_path / "run")
    assert same(tensors_of(whole.out), tensors_of(tmp_path / "run"))


def test_a_run_that_started_from_nothing_does_not_go_on_from_a_file(file, small_data, tmp_path):
    train(small(tmp_path, epochs=1))
    with pytest.raises(ValueError, match=r"\(it is of another run, whose init is None instead of '"):
        train(TrainConfig(out=str(tmp_path / "run"), resume=True, init=file))


def test_a_run_of_a_version_without_these_fields_goes_on(small_data, tmp_path, monkeypatch):
    whole = train(small(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        cut_after(patch, 11)
        with pytest.raises(InterruptedError):
            train(small(tmp_path, save_seconds=0.0))
    new, out = ("freeze", "layer_decay", "train_share"), tmp_path / "run"
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key not in new}))
    trainer = Trainer(resolve(small(tmp_path, resume=True)), small_data, CPU)
    state = trainer.run.load_state(CPU.device)
    del state["header"]
    for group in state["optimizer"]["param_groups"]:
        del group["lr_scale"]
    theirs = {key: value for key, value in state.pop("config").items() if key not in new}
    monkeypatch.setattr(type(trainer.run), "identity", theirs)
    trainer.run.save_state(state)
    monkeypatch.undo()
    monkeypatch.setattr("minivim.train.loop.load_data", lambda *args, **options: small_data)
    train(TrainConfig(out=str(out), resume=True))
    assert records_of(whole.out) == records_of(out) and same(tensors_of(whole.out), tensors_of(out))


# ---- few labels ------------------------------------------------------------------------------------------------------


def test_a_share_of_the_labels_is_one_of_each_class_and_part_of_a_larger_share():
    pytest.importorskip("sklearn")

    def rows(images) -> set[bytes]:
        return {image.numpy().tobytes() for image in images}

    whole, third, tenth = (load_data("digits", train_share=share) for share in (1.0, 0.3, 0.1))
    assert rows(tenth.train_images) < rows(third.train_images) < rows(whole.train_images)
    assert torch.equal(tenth.test_images, whole.test_images)
    counts = tenth.train_labels.bincount() / whole.train_labels.bincount()
    assert counts.min() > 0.09 and counts.max() < 0.11
    some = load_data("digits", train_share=0.3, val_share=0.5)
    assert rows(some.train_images) | rows(some.val_images) == rows(third.train_images)
    assert load_data("digits", train_share=0.001).train_labels.bincount().tolist() == [1] * 10
    for share in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"train_share is {share}; it must be from 0.0001 to 1"):
            load_data("digits", train_share=share)


def test_a_run_sees_its_share_of_the_labels(tmp_path):
    result = train(small(tmp_path, train_share=0.1, epochs=1))
    assert 140 <= len(result.data.train_labels) + len(result.data.val_labels) <= 148
    assert len(result.data.test_labels) == 359
