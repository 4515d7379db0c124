"""Vision Mamba against the official code's numbers, against a slow transcription of it, and against its own laws."""

from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from packaging.version import Version

from minivim import (
    VimBlock,
    VimConfig,
    VisionMamba,
    available_backends,
    create_model,
    load_official,
    to_official,
)
from minivim.models.checkpoints import official_name
from minivim.ops import scan_reference
from tests.ops.test_scan import load_fixture

FIXTURES = Path(__file__).parents[1] / "fixtures"
SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_classes": 5, "state_dim": 4}


def small(**overrides) -> VisionMamba:
    return VisionMamba(VimConfig(**{**SMALL, **overrides}))


def parameter_count(name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_model(name).parameters())


# ---------------- the official code


@pytest.mark.parametrize(("name", "stride"), [("vim_mini", 8), ("vim_mini_stride", 4)])
def test_equals_the_official_code_with_all_gradients(name, stride):
    data = load_fixture(FIXTURES / f"{name}.safetensors")
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

    def expand(name):
        return weights[name].expand(len(image), 1, -1)

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


# ---------------- laws


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


# ---------------- initialization


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


# ---------------- precision, backends, compilers


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


@pytest.mark.parametrize("backend", [name for name in available_backends("cpu") if name != "reference"])
def test_compiles_and_exports(backend, unchecked):
    if Version(torch.__version__) < Version("2.8") and backend == "chunked":
        pytest.skip("torch 2.7 cannot trace the wrappers of the shape checks, switched off or not")
    model, image = small(depth=1, img_size=8).eval().set_backend(backend), torch.randn(2, 3, 8, 8)
    expected = model(image)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(image), expected, rtol=1e-5, atol=1e-5)
    exported = torch.export.export(model, (image,)).module()
    torch.testing.assert_close(exported(image), expected, rtol=1e-5, atol=1e-5)


# ---------------- configuration


def test_configuration_is_frozen_and_has_the_documented_fields():
    config = VimConfig()
    with pytest.raises(FrozenInstanceError):
        config.depth = 3
    assert {field.name for field in fields(VimConfig)} == set(
        "img_size patch_size stride in_chans num_classes embed_dim depth expand state_dim dt_rank conv_kernel "
        "cls_token pos_embed drop_path_rate drop_rate global_pool init directions scan_order norm_eps".split()
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
        ({"img_size": 2, "stride": 2}, "img_size is 2; each side must be patch_size 4 plus a multiple of stride 2"),
        ({"global_pool": "token", "cls_token": "max"}, "global_pool is 'token', but cls_token is 'max'; it must be a"),
        (
            {"global_pool": "token", "cls_token": "none"},
            "global_pool is 'token', but cls_token is 'none'; it must be a",
        ),
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
        ({"norm_eps": 0.0}, "norm_eps is 0.0; it must be a number above 0"),
        ({"norm_eps": float("nan")}, "norm_eps is nan; it must be a number above 0"),
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
