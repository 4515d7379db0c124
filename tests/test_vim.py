"""Vision Mamba against the official code's numbers, against a slow transcription of it, and against its own laws."""

import re
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from minivim import (
    VimBlock,
    VimConfig,
    VisionMamba,
    available_backends,
    create_model,
    list_models,
    load_official,
    to_official,
)
from minivim.backbone import DropPath
from minivim.checkpoints import official_name
from minivim.scan import scan_reference

FIXTURES = Path(__file__).parent / "fixtures"
SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_classes": 5, "state_dim": 4}


def small(**overrides) -> VisionMamba:
    return VisionMamba(VimConfig(**{**SMALL, **overrides}))


def parameter_count(name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_model(name).parameters())


# ---------------------------------------------------------------- the official code


@pytest.mark.parametrize(("name", "stride"), [("vim_mini", 8), ("vim_mini_stride", 4)])
def test_equals_the_official_code_with_all_gradients(name, stride):
    data = load_file(FIXTURES / f"{name}.safetensors")
    weights = {key.removeprefix("model."): value for key, value in data.items() if key.startswith("model.")}
    model = load_official(weights, stride=stride)
    assert model.config.img_size == 32
    features = model.forward_head(model.forward_features(data["image"]), pre_logits=True)
    logits = model(data["image"])
    torch.testing.assert_close(features, data["features"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, data["logits"], rtol=1e-4, atol=1e-5)
    loss = F.cross_entropy(logits, torch.tensor([0, 1]))  # the labels that the stored loss and gradients belong to
    torch.testing.assert_close(loss, data["loss"][0], rtol=1e-5, atol=0)
    loss.backward()
    for ours, parameter in model.named_parameters():
        expected = data[f"grad.{official_name(ours)}"]
        error = (parameter.grad.view_as(expected) - expected).abs().max() / expected.abs().max()
        assert error < 1e-4, (ours, error.item())


def slow_mixer(weights: dict, x: torch.Tensor) -> torch.Tensor:
    """The mixer of the official code for (B, L, D): channel-first, with flips, on official names."""
    xz = (x @ weights["in_proj.weight"].T).transpose(1, 2)
    total = 0
    for conv, x_proj, dt_proj, A_log, D, flip in (
        ("conv1d", "x_proj", "dt_proj", "A_log", "D", False),
        ("conv1d_b", "x_proj_b", "dt_proj_b", "A_b_log", "D_b", True),
    ):
        u, z = (xz.flip(-1) if flip else xz).chunk(2, dim=1)
        kernel = weights[f"{conv}.weight"]
        u = F.silu(F.conv1d(F.pad(u, (kernel.shape[-1] - 1, 0)), kernel, weights[f"{conv}.bias"], groups=len(kernel)))
        u = u.transpose(1, 2)
        N, R = weights[A_log].shape[1], weights[f"{dt_proj}.weight"].shape[1]
        dt, B, C = (u @ weights[f"{x_proj}.weight"].T).split([R, N, N], dim=-1)
        delta = F.softplus(dt @ weights[f"{dt_proj}.weight"].T + weights[f"{dt_proj}.bias"])
        y, _ = scan_reference(u, delta, -torch.exp(weights[A_log]), B, C, weights[D], z.transpose(1, 2))
        total = total + (y.flip(1) if flip else y)
    return (total / 2) @ weights["out_proj.weight"].T


def slow_vim(model: VisionMamba, image: torch.Tensor) -> torch.Tensor:
    """The whole official model, written out: conv2d, class tokens by hand, x + mixer(rms_norm(x))."""
    config, weights = model.config, to_official(model)
    patches = F.conv2d(
        image, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=config.patch_stride
    )
    x = patches.flatten(2).transpose(1, 2)
    M = x.shape[1]
    expand = lambda name: weights[name].expand(len(image), 1, -1)  # noqa: E731 - three uses, all below
    if config.cls_token == "middle":
        x = torch.cat((x[:, : M // 2], expand("cls_token"), x[:, M // 2 :]), dim=1)
    elif config.cls_token == "head":
        x = torch.cat((expand("cls_token"), x), dim=1)
    elif config.cls_token == "double":
        x = torch.cat((expand("cls_token_head"), x, expand("cls_token_tail")), dim=1)
    x = x + weights["pos_embed"]

    def norm(x, weight):
        return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight

    for i in range(config.depth):
        prefix = f"layers.{i}."
        block = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        mixer = {k.removeprefix("mixer."): v for k, v in block.items() if k.startswith("mixer.")}
        x = x + slow_mixer(mixer, norm(x, block["norm.weight"]))
    x = norm(x, weights["norm_f.weight"])
    pooled = {
        "middle": lambda: x[:, M // 2],
        "head": lambda: x[:, 0],
        "double": lambda: (x[:, 0] + x[:, -1]) / 2,
        "none": lambda: x.mean(1),
    }[config.cls_token]()
    return pooled @ weights["head.weight"].T + weights["head.bias"]


@pytest.mark.parametrize("geometry", [{}, {"stride": 2}, {"img_size": (8, 20)}, {"img_size": 12}])
@pytest.mark.parametrize("cls_token", ["middle", "head", "double", "none"])
def test_every_class_token_equals_the_slow_transcription(cls_token, geometry):
    model = small(cls_token=cls_token, **geometry).double()
    for parameter in model.parameters():  # nothing at a special value, such as D = 1
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    image = torch.randn(2, 3, *model.config.image_shape, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(image), slow_vim(model, image), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vim_tiny_patch16_224", 7_148_008),
        ("vim_small_patch16_224", 25_796_584),
        ("vim_base_patch16_224", 97_598_440),
    ],
)
def test_parameter_counts_of_the_paper(name, count):
    assert parameter_count(name) == count


def test_stride_8_adds_position_embeddings_only():
    added = (27 * 27 - 14 * 14) * 192
    assert parameter_count("vim_tiny_patch16_224_stride8") - parameter_count("vim_tiny_patch16_224") == added


# ---------------------------------------------------------------- laws


def silence(ssm) -> None:
    """A direction without input: its convolution gives 0, hence u = 0 and y = 0."""
    ssm.conv_weight.data.zero_()
    ssm.conv_bias.data.zero_()


@pytest.mark.parametrize("silenced", [None, "forward_ssm", "backward_ssm"])
def test_after_one_block_the_class_token_sees_the_far_patches(silenced):
    model = small(depth=1)
    if silenced:
        silence(getattr(model.blocks[0].mixer, silenced))
    tokens = model.embed(torch.randn(1, 3, 16, 16)).detach().requires_grad_()
    middle = model.config.cls_positions[0]
    model.forward_tokens(tokens)[0, middle].sum().backward()
    seen = tokens.grad[0].abs().sum(-1) > 0
    before, after = seen[:middle], seen[middle + 1 :]
    assert seen[middle]
    assert before.all() if silenced != "forward_ssm" else not before.any()
    assert after.all() if silenced != "backward_ssm" else not after.any()


def test_swapping_the_directions_and_flipping_the_sequence_flips_the_output():
    model = small(cls_token="none").double()
    x = torch.randn(2, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        expected = model.forward_tokens(x).flip(1)
        unswapped = model.forward_tokens(x.flip(1))
        for block in model.blocks:
            ahead, back = block.mixer.forward_ssm.state_dict(), block.mixer.backward_ssm.state_dict()
            ahead = {name: value.clone() for name, value in ahead.items()}
            block.mixer.forward_ssm.load_state_dict(back)
            block.mixer.backward_ssm.load_state_dict(ahead)
        torch.testing.assert_close(model.forward_tokens(x.flip(1)), expected, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(unswapped, expected, rtol=1e-3)


@pytest.mark.parametrize("cls_token", ["middle", "none"])
def test_samples_do_not_mix(cls_token):
    model = small(cls_token=cls_token)
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        alone = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(model(images), alone, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- initialization


@pytest.mark.parametrize("init", ["paper", "official"])
def test_initialization_after_building_the_whole_model(init):
    model = small(init=init, embed_dim=64, state_dim=16)
    for block in model.blocks:
        ahead, back = block.mixer.forward_ssm, block.mixer.backward_ssm
        special = [ahead, back] if init == "paper" else [ahead]
        for ssm in special:
            delta = F.softplus(ssm.dt_proj.bias.double())
            assert delta.min() >= 0.001 * (1 - 1e-5) and delta.max() <= 0.1 * (1 + 1e-5)
            assert delta.max() / delta.min() > 20  # spread over the range
        if init == "official":
            assert (back.dt_proj.bias == 0).all()
        for ssm in (ahead, back):
            torch.testing.assert_close(-torch.exp(ssm.A_log), -torch.arange(1.0, 17.0).expand(128, 16))
            assert 0.4 < ssm.dt_proj.weight.abs().max() <= 4**-0.5  # rank 4
            assert (ssm.D == 1).all()
        bound = 128**-0.5 / model.config.depth**0.5  # PyTorch's bound for 128 inputs, scaled down with depth
        assert 0.9 * bound < block.mixer.out_proj.weight.abs().max() <= bound
    assert (model.head.bias == 0).all() and (model.patch_embed.proj.bias == 0).all()
    assert 0.018 < model.pos_embed.std() < 0.022
    assert 0.8 < model.patch_embed.proj.weight.std() * 48**0.5 < 1.2  # LeCun: variance 1 / (3 * 4 * 4)


# ---------------------------------------------------------------- sizes


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


# ---------------------------------------------------------------- drop path


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


# ---------------------------------------------------------------- precision, backends, compilers


def test_bf16_autocast_keeps_residual_and_parameters_float32():
    model, image = small(), torch.randn(2, 3, 16, 16)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _inputs, outputs: seen.append([x.dtype for x in outputs]))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(image)
        model.blocks[0](torch.randn(2, 4, 16, dtype=torch.bfloat16))  # a block by itself, on bf16 tokens
    assert seen == [[torch.bfloat16, torch.float32]] * 3
    torch.testing.assert_close(logits.float(), model(image), rtol=0.05, atol=0.05)
    logits.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_set_backend_reaches_every_mixer():
    model = small()
    assert {block.mixer.backend for block in model.blocks} == {"auto"}
    assert model.set_backend("reference") is model
    assert {block.mixer.backend for block in model.blocks} == {"reference"}


@pytest.mark.parametrize("backend", available_backends("cpu"))
def test_every_backend_gives_the_same_model(backend):
    model, image = small(), torch.randn(2, 3, 16, 16)
    expected = model.set_backend("reference")(image)
    torch.testing.assert_close(model.set_backend(backend)(image), expected, rtol=1e-4, atol=1e-5)


def test_compiles_and_exports(unchecked):
    model, image = small(depth=1, img_size=8).eval(), torch.randn(2, 3, 8, 8)
    expected = model(image)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(image), expected, rtol=1e-5, atol=1e-5)
    exported = torch.export.export(model, (image,)).module()
    torch.testing.assert_close(exported(image), expected, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- timm's conventions


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


# ---------------------------------------------------------------- names and configurations


def test_every_listed_model_can_be_built_and_the_small_ones_run():
    assert {"vim_tiny_patch16_224", "vim_small_patch16_224_stride8", "vim_base_patch16_224_stride8"} < set(
        list_models()
    )
    with torch.device("meta"):
        for name in list_models():
            model = create_model(name, depth=1)
            assert model.default_cfg["input_size"][1] == int(re.search(r"_(224|32|8)(_|$)", name)[1])
    nano = create_model("vim_nano_patch2_8")
    assert nano.config.num_patches == 16
    assert nano(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_overrides_reach_the_configuration():
    model = create_model("vim_nano_patch2_8", depth=1, cls_token="double", num_classes=3)
    assert (len(model.blocks), model.config.cls_token, model.head.out_features) == (1, "double", 3)


def test_configuration_is_frozen_and_has_the_documented_fields():
    config = VimConfig()
    with pytest.raises(FrozenInstanceError):
        config.depth = 3
    assert {field.name for field in fields(VimConfig)} == set(
        "img_size patch_size stride in_chans num_classes embed_dim depth expand state_dim dt_rank conv_kernel "
        "cls_token drop_path_rate init".split()
    )
    assert (config.inner_dim, config.delta_rank, replace(config, embed_dim=200).delta_rank) == (384, 12, 13)
    assert VimBlock(VimConfig(**SMALL))(torch.randn(1, 3, 16))[0].shape == (1, 3, 16)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"img_size": 18}, "img_size is 18; each side must be a multiple of patch_size 4"),
        ({"img_size": 17, "stride": 2}, "img_size is 17; each side must be patch_size 4 plus a multiple of stride 2"),
        ({"img_size": (16, 18)}, r"img_size is \(16, 18\); each side must be a multiple"),
        ({"img_size": 2}, "img_size is 2; each side must be a multiple"),
        ({"img_size": (16,)}, r"img_size is \(16,\); it must be one whole number or \(height, width\)"),
        ({"img_size": "16"}, r"img_size is '16'; it must be one whole number or \(height, width\)"),
        ({"img_size": (16, 16.0)}, "img_size is 16.0; it must be a whole number of at least 1"),
        ({"patch_size": 0}, "patch_size is 0; it must be a whole number of at least 1"),
        ({"patch_size": 4.0}, "patch_size is 4.0; it must be a whole number"),
        ({"stride": 0}, "stride is 0; it must be a whole number of at least 1"),
        ({"in_chans": -3}, "in_chans is -3; it must be"),
        ({"num_classes": -1}, "num_classes is -1; it must be a whole number of at least 0"),
        ({"embed_dim": 0}, "embed_dim is 0; it must be"),
        ({"depth": True}, "depth is True; it must be a whole number"),
        ({"expand": 0}, "expand is 0; it must be"),
        ({"state_dim": None}, "state_dim is None; it must be"),
        ({"dt_rank": 0}, "dt_rank is 0; it must be"),
        ({"conv_kernel": 0}, "conv_kernel is 0; it must be"),
        ({"cls_token": "tail"}, "cls_token is 'tail'; it must be one of 'middle', 'head', 'double', 'none'"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0; it must be a number from 0"),
        ({"drop_path_rate": -0.1}, "drop_path_rate is -0.1; it must be"),
        ({"init": "zero"}, "init is 'zero'; it must be one of 'paper', 'official'"),
    ],
)
def test_impossible_configurations_are_refused(unchecked, overrides, message):
    with pytest.raises(ValueError, match=message):
        small(**overrides)


def test_unknown_configuration_key_is_an_error_that_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"d_state is 8, but VimConfig has no such field.*state_dim.*init"):
        create_model("vim_nano_patch2_8", d_state=8)
    with pytest.raises(TypeError, match="d_state"):
        VimConfig(d_state=8)


def test_unknown_model_is_an_error_that_lists_the_names():
    with pytest.raises(ValueError, match=r"name is 'vim_tiny'; it must be one of .*vim_nano_patch2_8.*deit_base"):
        create_model("vim_tiny")
    with pytest.raises(ValueError, match=r"did you mean 'vim_tiny_patch16_224'\?"):
        create_model("vim_tinny_patch16_224")


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
