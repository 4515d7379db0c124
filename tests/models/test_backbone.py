"""What Vim and DeiT share: sizes, class tokens, stochastic depth, timm's conventions; seen on a small Vim."""

import re

import pytest
import torch
import torch.nn.functional as F

from minivim import VimConfig, VisionMamba, create_model
from minivim.models.backbone import DropPath, remove_tokens, take_tokens

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_classes": 5, "state_dim": 4}


def small(**overrides) -> VisionMamba:
    return VisionMamba(VimConfig(**{**SMALL, **overrides}))


# ---------------- sizes


@pytest.mark.parametrize("cls_token", ["middle", "head", "double", "none"])
def test_resize_to_the_present_size_changes_no_bit(cls_token):
    model = small(cls_token=cls_token)
    before, image = model.pos_embed.detach().clone(), torch.randn(1, 3, 16, 16)
    logits = model(image)
    assert model.resize_to(16, 16) is model
    assert torch.equal(model.pos_embed, before) and torch.equal(model(image), logits)
    assert model.config == VimConfig(**{**SMALL, "cls_token": cls_token})


@pytest.mark.parametrize(
    ("cls_token", "positions", "new_positions"),  # 16 patches -> 3 x 5 = 15 patches
    [("middle", [8], [7]), ("head", [0], [0]), ("double", [0, 17], [0, 16]), ("none", [], [])],
)
def test_resize_takes_class_tokens_out_of_the_grid(cls_token, positions, new_positions):
    model = small(cls_token=cls_token)
    old = model.pos_embed.detach().clone()[0]
    model.resize_to(12, 20)
    assert model.config.img_size == (12, 20) and model.patch_embed.config is model.config
    new = model.pos_embed.detach()[0]
    assert len(new) == 15 + len(positions)
    # Explicit and slow: gather the grid cell by cell, interpolate one channel at a time, place cell by cell.
    patches = [row for index, row in enumerate(old) if index not in positions]
    grid = torch.stack([torch.stack(patches[4 * row : 4 * row + 4]) for row in range(4)])  # (4, 4, D)
    resized = torch.stack(
        [
            F.interpolate(grid[None, None, :, :, d], size=(3, 5), mode="bicubic", align_corners=False)[0, 0]
            for d in range(16)
        ],
        dim=-1,
    )
    cells = iter(resized.reshape(15, 16))
    tokens = iter(old[positions])
    expected = torch.stack([next(tokens) if index in new_positions else next(cells) for index in range(len(new))])
    torch.testing.assert_close(new, expected, rtol=1e-5, atol=1e-6)
    assert model(torch.randn(1, 3, 12, 20)).shape == (1, 5)
    assert model.pos_embed.requires_grad


def test_resize_of_a_constant_grid_keeps_it_and_the_class_token():
    model = small()
    model.pos_embed.data.fill_(1.0)
    model.pos_embed.data[:, 8] = -7.0
    model.resize_to(32, 24)  # 8 x 6 patches, the class token at 24
    others = torch.cat((model.pos_embed[0, :24], model.pos_embed[0, 25:]))
    assert (model.pos_embed[0, 24] == -7).all()
    torch.testing.assert_close(others, torch.ones(48, 16))


@pytest.mark.parametrize("cls_token, positions", [("middle", [24]), ("head", [0]), ("double", [0, 50]), ("none", [])])
@pytest.mark.parametrize("hooked", [False, True], ids=["cut", "convolved"])
def test_at_half_the_stride_every_second_patch_is_the_old_one(cls_token, positions, hooked):
    model, image = small(cls_token=cls_token).eval(), torch.randn(2, 3, 16, 16)
    if hooked:
        model.patch_embed.proj.register_forward_hook(lambda *arguments: None)
    old = model.patch_embed(image)
    classes = take_tokens(model.pos_embed, model.config.cls_positions)
    grid = remove_tokens(model.pos_embed, model.config.cls_positions).unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    assert model.resize_to(16, 16, stride=2) is model and model.config.grid_shape == (7, 7)
    fine = model.patch_embed(image).unflatten(1, (7, 7))
    torch.testing.assert_close(fine[:, ::2, ::2].flatten(1, 2), old, rtol=1e-5, atol=1e-5)
    expected = list(F.interpolate(grid, size=(7, 7), mode="bicubic")[0].flatten(1).T)
    for place, token in zip(positions, classes[0], strict=True):
        expected.insert(place, token)
    torch.testing.assert_close(model.pos_embed[0], torch.stack(expected), rtol=1e-5, atol=1e-6)
    again = small(cls_token=cls_token, stride=2).eval()  # built at that stride, with these weights
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(image), model(image))
    assert again.config == model.config and model.resize_to(16, 16, 2).config == again.config


@pytest.mark.parametrize("cls_token", ["middle", "head", "double", "none"])
def test_forward_grid_holds_the_patches_in_reading_order(cls_token):
    model = small(cls_token=cls_token, img_size=(8, 16))
    image = torch.randn(2, 3, 8, 16)
    grid, tokens = model.forward_grid(image), model.forward_features(image)
    assert grid.shape == (2, 16, 2, 4)
    positions = {"middle": [4], "head": [0], "double": [0, 9], "none": []}[cls_token]
    patches = [token for index, token in enumerate(tokens.unbind(1)) if index not in positions]
    for index, patch in enumerate(patches):
        assert torch.equal(grid[:, :, index // 4, index % 4], patch)


def test_patches_overlap_with_a_smaller_stride():
    model = small(stride=2)
    assert model.config.grid_shape == (7, 7)
    image = torch.randn(2, 3, 16, 16)
    expected = model.patch_embed.proj(image).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.patch_embed(image), expected, rtol=1e-5, atol=1e-5)
    assert model.patch_embed(image).is_contiguous()


# ---------------- drop path


def test_drop_path_rises_linearly_and_acts_on_the_update_of_the_block_before():
    model = small(depth=5, drop_path_rate=0.4)
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0, 0, 0.1, 0.2, 0.3])
    assert model.drop_path.rate == 0.4


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    x = torch.ones(20_000, 2, 3)
    y = DropPath(0.3)(x)
    kept = y[:, 0, 0] > 0
    assert torch.equal(y, kept[:, None, None] / 0.7 * x)
    assert abs(kept.double().mean() - 0.7) < 5 * (0.3 * 0.7 / 20_000) ** 0.5
    assert torch.equal(DropPath(0.3).eval()(x), x)


def test_drop_path_does_nothing_in_evaluation_and_drops_all_updates_near_1():
    model, image = small(drop_path_rate=0.5), torch.randn(2, 3, 16, 16)
    plain = small()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(image), plain(image))
    assert not torch.equal(model.train()(image.repeat(8, 1, 1, 1)), plain(image.repeat(8, 1, 1, 1)))
    for module in model.modules():
        if isinstance(module, DropPath):
            module.rate = 1 - 1e-12
    tokens = model.embed(image)
    model.blocks[0].drop_path.rate = 0.0  # what comes into the first block is no update
    torch.testing.assert_close(model.forward_tokens(tokens), model.norm(tokens))


# ---------------- timm's conventions


def test_head_features_and_classifier():
    model, image = small(), torch.randn(2, 3, 16, 16)
    tokens = model.forward_features(image)
    assert tokens.shape == (2, 17, 16)
    assert torch.equal(model.forward_head(tokens), model(image))
    assert torch.equal(model.forward_head(tokens, pre_logits=True), tokens[:, 8])
    assert model.get_classifier() is model.head and model.num_features == 16
    model.double().reset_classifier(7)
    assert model(image.double()).shape == (2, 7)
    assert model.num_classes == model.config.num_classes == 7
    model.reset_classifier(0)
    assert torch.equal(model(image.double()), model.forward_head(model.forward_features(image.double()), True))


def test_weight_decay_leaves_alone_what_section_5_lists():
    model = small(cls_token="double")
    spared = model.no_weight_decay()
    names = {name for name, _ in model.named_parameters()}
    decayed = {re.sub(r"blocks\.\d+\.mixer\.((forward|backward)_ssm\.)?", "", name) for name in names - spared}
    assert spared < names
    matrices = ("in_proj", "x_proj", "dt_proj", "out_proj", "head", "patch_embed.proj")
    assert decayed == {"conv_weight", *(f"{name}.weight" for name in matrices)}


def test_group_matcher_sorts_every_parameter_but_the_head():
    model = small()
    groups = model.group_matcher()
    patterns = [groups["stem"], *(pattern for pattern, _ in groups["blocks"])]
    for name, _ in model.named_parameters():
        hits = sum(re.match(pattern, name) is not None for pattern in patterns)
        assert hits == (0 if name.startswith("head") else 1), name
    assert re.match(groups["blocks"][0][0], "blocks.1.norm.weight")[1] == "1"


def test_default_cfg_describes_the_model():
    cfg = create_model("vim_nano_patch2_8").default_cfg
    assert cfg["input_size"] == (3, 8, 8) and cfg["num_classes"] == 10
    model = create_model("vim_nano_patch2_8")
    assert model.get_submodule(cfg["classifier"]).out_features == 10
    assert isinstance(model.get_submodule(cfg["first_conv"]), torch.nn.Conv2d)


# ---------------- bad arguments


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.zeros(1, 3, 16, 20), ValueError, r"image has shape \(1, 3, 16, 20\); it must be \(batch, 3, 16, 16\)"),
        (torch.zeros(1, 1, 16, 16), ValueError, r"image has shape \(1, 1, 16, 16\); it must be \(batch, 3, 16, 16\)"),
        (torch.zeros(3, 16, 16), ValueError, r"image has shape \(3, 16, 16\); it must be \(batch, 3, 16, 16\)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), TypeError, r"image has dtype torch.uint8; it must be floating"),
    ],
)
def test_images_that_do_not_fit_are_refused(unchecked, image, error, message):
    with pytest.raises(error, match=message):
        small()(image)


def test_other_bad_arguments_are_refused():
    model = small()
    with pytest.raises(ValueError, match=r"img_size is \(16, 18\); each side must be a multiple of patch_size 4"):
        model.resize_to(16, 18)
    with pytest.raises(ValueError, match="backend is 'cuda'; it must be one of 'auto', .*'reference'"):
        model.set_backend("cuda")
    with pytest.raises(ValueError, match="num_classes is -2; it must be a whole number of at least 0"):
        model.reset_classifier(-2)
    assert model(torch.randn(1, 3, 16, 16)).shape == (1, 5)  # and the model is as it was
