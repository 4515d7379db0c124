"""Whatever wraps the weights: prefixes, containers, several models in a file, and tensors that are no weights."""

import os
import warnings
from pathlib import Path

import pytest
import torch

from minivim import VimBlock, VimConfig, VisionMamba, load_official, to_official
from minivim.models import checkpoints
from tests.models.checkpoints.reference import official_state

PREFIXES = ["", "module.", "_orig_mod.", "backbone.", "backbone.net.", "model.", "module._orig_mod."]
PREFIXES += ["_orig_mod.module.", "model.module.backbone.net.", "ema.module."]


def assert_same(model, state: dict) -> None:
    found = to_official(model)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.fixture(autouse=True)
def nothing_is_said():
    """Whoever expects a warning asks for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_taken_off(prefix, tmp_path):
    state = official_state()
    wrapped = {f"{prefix}{name}": value for name, value in state.items()}
    assert_same(load_official(wrapped), state)
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "a.pth")
    assert_same(load_official(tmp_path / "a.pth"), state)
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(wrapped, tmp_path / "a.safetensors")
    assert_same(load_official(tmp_path / "a.safetensors"), state)


def test_what_wraps_a_block_is_taken_off():
    state = official_state()
    names = {
        "layers.0.": "layers.0._orig_mod.",
        "layers.1.": "_fsdp_wrapped_module.layers.1._checkpoint_wrapped_module.",
    }
    wrapped = dict(state)
    for name in state:
        for old, new in names.items():
            if name.startswith(old):
                wrapped[name.replace(old, new)] = wrapped.pop(name)
    assert_same(load_official(wrapped), state)


def test_an_average_carries_its_counter():
    state = official_state()
    averaged = {"n_averaged": torch.tensor(7)} | {f"module.{name}": value for name, value in state.items()}
    assert_same(load_official(averaged), state)
    model = VisionMamba(VimConfig(img_size=8, patch_size=4, embed_dim=8, depth=1, num_classes=2))
    twice = torch.optim.swa_utils.AveragedModel(torch.nn.DataParallel(model)).state_dict()
    loaded = checkpoints.weights.find_weights({"ema": twice}, "x")
    assert loaded.keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"model": s},
        lambda s: {"state_dict": s, "epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.4", "callbacks": {}},
        lambda s: {
            "model_ema": s,
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1}]},
        },
        lambda s: {"checkpoint": {"model": {"net": s}}, "rng": torch.zeros(4, dtype=torch.uint8)},
        lambda s: {"epoch": 3, "scaler": "none", **s},
    ],
)
def test_containers_are_opened_and_the_rest_is_ignored(wrap, tmp_path):
    state = official_state()
    assert_same(load_official(wrap(state)), state)
    torch.save(wrap(state), tmp_path / "a.pth")
    assert_same(load_official(tmp_path / "a.pth"), state)


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("model", "model_ema"), "model"),
        (("model_ema", "model"), "model"),
        (("ema_state_dict", "state_dict"), "state_dict"),
        (("teacher", "student"), "student"),
        (("first", "second"), "first"),
        (("model_ema", "teacher"), "model_ema"),
    ],
)
def test_of_several_models_one_is_taken_and_it_is_said_which(names, taken, tmp_path):
    content = {name: official_state(seed=seed) for seed, name in enumerate(names)}
    torch.save(content, tmp_path / "a.pth")
    flat = {f"{name}.{key}": value for name, state in content.items() for key, value in state.items()}
    for path_or_state_dict in (tmp_path / "a.pth", content, flat):
        with pytest.warns(UserWarning, match=f"holds several models: {names[0]}, {names[1]}; {taken} is taken"):
            assert_same(load_official(path_or_state_dict), content[taken])
        for name in names:  # asked for by name: nothing is said
            assert_same(load_official(path_or_state_dict, weights=name), content[name])
        with pytest.raises(ValueError, match=f"weights is 'other'; it must be one of .*{names[0]}, {names[1]}"):
            load_official(path_or_state_dict, weights="other")


def test_the_warning_stands_at_a_line_outside_the_package(tmp_path):
    content = {"model": official_state(), "model_ema": official_state(seed=1)}
    torch.save(content, tmp_path / "a.pth")
    for load in (load_official, checkpoints.load_any):
        with pytest.warns(UserWarning) as noted:
            load(tmp_path / "a.pth")
        assert not Path(noted[0].filename).is_relative_to(Path(checkpoints.__file__).parents[2])


def test_tensors_beside_the_model_are_noted():
    state = official_state()
    wrapped = {f"backbone.{name}": value for name, value in state.items()} | {"decode_head.weight": torch.zeros(3)}
    with pytest.warns(UserWarning, match="1 tensors beside the model are left out: decode_head.weight"):
        assert_same(load_official(wrapped), state)


def test_a_file_that_contains_itself_ends(tmp_path):
    content = {"model": official_state()}
    content["again"], content["model"]["up"] = content, content
    assert_same(load_official(content), official_state())


# ---------------------------------------------------------------- what is no weight


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(5, dtype=torch.int64), "holds head.bias as torch.int64"),
        (torch.ones(5, dtype=torch.bool), "holds head.bias as torch.bool"),
        (torch.ones(5, dtype=torch.complex64), "holds head.bias as torch.complex64"),
        (torch.ones(5).to_sparse(), "holds head.bias as torch.float32, torch.sparse_coo"),
        (torch.ones(5, device="meta"), "holds head.bias as on the meta device"),
        (torch.tensor([1.0, 2.0, float("nan"), 0.0, 0.0]), "holds NaN or infinite values in head.bias"),
        (torch.tensor([1.0, 2.0, float("-inf"), 0.0, 0.0]), "holds NaN or infinite values in head.bias"),
    ],
    ids=str,
)
def test_tensors_that_are_no_weights_are_named(tensor, message, tmp_path):
    state = official_state() | {"head.bias": tensor}
    with pytest.raises(ValueError, match=message):
        load_official(state)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message):
        load_official(tmp_path / "a.pth")


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_every_floating_precision_is_taken(kind):
    state = {name: value.to(kind) for name, value in official_state().items()}
    assert_same(load_official(state), {name: value.float() for name, value in state.items()})


def test_a_few_bytes_do_not_pose_as_a_large_model(tmp_path):
    state = official_state()
    for name, shape in {"pos_embed": (1, 10**12 + 1, 16), "head.weight": (10**15, 16)}.items():
        torch.save(state | {name: torch.zeros(1).expand(shape)}, tmp_path / "a.pth")
        with pytest.raises(ValueError, match="holds tensors that share memory; each weight must have its own"):
            load_official(tmp_path / "a.pth")


def test_many_names_of_blocks_build_no_block(monkeypatch):
    state, built, build = official_state(), [], VimBlock.__init__
    monkeypatch.setattr(VimBlock, "__init__", lambda self, *a: (built.append(self), build(self, *a))[1])
    for index in range(2, 2000):
        state[f"layers.{index}.norm.weight"] = state["norm_f.weight"]
    with pytest.raises(ValueError, match="does not fit the model.*missing: layers.2.mixer.in_proj.weight"):
        load_official(state)
    assert len(built) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layers.999999999.norm.weight": torch.zeros(16)},
            "has the blocks 0, 1, 999999999; they must be numbered from 0",
        ),
        ({"layers.99999999999999.norm.weight": torch.zeros(16)}, "1 unexpected: layers.99999999999999"),
        ({"patch_embed.proj.weight": torch.zeros(16)}, r"of shape \(16,\); it must have 4 dimensions"),
        ({"patch_embed.proj.weight": torch.zeros(0, 3, 4, 4)}, r"of shape \(0, 3, 4, 4\)"),
        ({"layers.0.mixer.A_log": torch.tensor(1.0)}, r"of shape \(\); it must have 2"),
        ({"pos_embed": torch.tensor(1.0)}, "pos_embed"),
        ({"head.weight": torch.tensor(1.0)}, r"of another shape: head.weight \(\)"),
        ({"pos_embed": torch.zeros(1, 1, 16)}, "pos_embed has 0 patches"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_names_and_shapes_of_a_strangers_file(changes, message):
    with pytest.raises(ValueError, match=message):
        load_official(official_state() | changes)


def test_sentences_are_short_and_cannot_steer_a_terminal(tmp_path):
    state = official_state() | {f"\x1b[31m\n\ud800{k}{'x' * 1000}": torch.zeros(1) for k in range(500)}
    del state["norm_f.weight"]
    with pytest.raises(ValueError, match=r"1 missing: norm_f.weight; 500 unexpected: .* and 498 more") as error:
        load_official(state)
    assert str(error.value).isprintable() and len(str(error.value)) < 500
    with pytest.raises(ValueError, match="lacks patch_embed.proj.weight|must be an official Vim state dict") as error:
        load_official({f"\x1b[31m{name}": value for name, value in state.items()})
    assert str(error.value).isprintable() and len(str(error.value)) < 500
    assert os.listdir(tmp_path) == []
