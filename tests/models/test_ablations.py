"""The fields that ablations vary, each against a model built in another way."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F

from minivim import DeiT, DeiTConfig, MambaBlock, VimConfig, VisionMamba, create_model, load_official, to_official

SMALL = {"img_size": (12, 8), "patch_size": 4, "embed_dim": 16, "depth": 2, "num_classes": 5, "state_dim": 4}


def model(**changes):
    torch.manual_seed(0)
    return VisionMamba(VimConfig(**{**SMALL, **changes})).eval()


def with_state_of(other, **changes):
    """Another configuration with the same weights, where it has them."""
    copied = model(**changes)
    copied.load_state_dict({name: other.state_dict()[name] for name in copied.state_dict()})
    return copied


def images(height=12, width=8):
    return torch.randn(2, 3, height, width)


def test_one_direction_is_a_stack_of_mamba_blocks():
    vim, x = model(directions=1), images()
    stream = vim.embed(x)
    for each in vim.blocks:
        block = MambaBlock(16, state_dim=4)
        names = {"in_proj.weight": "in_proj.weight", "out_proj.weight": "out_proj.weight"}
        names |= {f"ssm.{name}": f"forward_ssm.{name}" for name in dict(block.ssm.named_parameters())}
        state = each.mixer.state_dict()
        assert set(names.values()) == set(state)
        block.load_state_dict({ours: state[theirs] for ours, theirs in names.items()})
        stream = stream + block(F.rms_norm(stream, (16,), each.norm.weight, 1e-5))
    middle = F.rms_norm(stream, (16,), vim.norm.weight, 1e-5)[:, 3]
    torch.testing.assert_close(vim(x), vim.head(middle), rtol=1e-4, atol=1e-5)


def test_one_direction_sees_nothing_that_comes_after():
    vim, x = model(directions=1, cls_token="head"), images()
    changed = x.clone()
    changed[:, :, 8:] += 1  # the last row of patches
    same = (vim.forward_features(x) - vim.forward_features(changed)).abs().amax((0, 2)) == 0
    assert same.tolist() == [True] * 5 + [False] * 2
    assert not (model(cls_token="head").forward_features(x) == model(cls_token="head").forward_features(changed)).any()


def test_official_names_of_one_direction():
    vim = model(directions=1, img_size=12)
    state = to_official(vim)
    assert not any("_b." in name or "A_b_log" in name for name in state)
    again = load_official(state, img_size=12)
    assert again.config.directions == 1
    x = images(12, 12)
    assert torch.equal(again.eval()(x), vim(x))


def transposed(vim, **changes):
    """The same model for transposed pictures: rows of patches are columns there."""
    other = with_state_of(vim, **changes)
    rows, columns = vim.config.grid_shape
    places = [i for i in range(vim.config.num_tokens) if i not in vim.config.cls_positions]
    with torch.no_grad():
        other.patch_embed.proj.weight.copy_(vim.patch_embed.proj.weight.transpose(2, 3))
        grid = vim.pos_embed[:, places].reshape(1, rows, columns, -1).transpose(1, 2).flatten(1, 2)
        other.pos_embed[:, places] = grid
    return other


@pytest.mark.parametrize("cls_token", ["middle", "head", "double", "none", "max"])
@pytest.mark.parametrize("stride", [None, 2])
def test_columns_are_the_rows_of_the_transposed_picture(stride, cls_token):
    vim = model(scan_order="columns", cls_token=cls_token, stride=stride)
    rows = transposed(vim, scan_order="rows", cls_token=cls_token, stride=stride, img_size=(8, 12))
    x = images()
    torch.testing.assert_close(vim(x), rows(x.transpose(2, 3)))
    torch.testing.assert_close(vim.forward_grid(x), rows.forward_grid(x.transpose(2, 3)).transpose(2, 3))


def mirrored(grid, rows):
    """Every second row from right to left; grid (B, rows columns, ...)."""
    turned = grid.unflatten(1, (rows, -1)).clone()
    turned[:, 1::2] = turned[:, 1::2].flip(2)
    return turned.flatten(1, 2)


@pytest.mark.parametrize("size", [(12, 8), (8, 12), (20, 4), (4, 20)])
@pytest.mark.parametrize("cls_token", ["middle", "head", "double", "none"])
def test_snake_is_rows_of_a_picture_whose_odd_rows_are_mirrored(cls_token, size):
    vim = model(scan_order="snake", cls_token=cls_token, img_size=size)
    rows = with_state_of(vim, scan_order="rows", cls_token=cls_token, img_size=size)
    count = vim.config.grid_shape[0]
    places = [i for i in range(vim.config.num_tokens) if i not in vim.config.cls_positions]
    with torch.no_grad():
        rows.pos_embed[:, places] = mirrored(vim.pos_embed[:, places], count)
    x = images(*size)
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    patches = mirrored(patches, count).unflatten(1, (count, -1)).permute(0, 3, 1, 4, 2, 5)
    other = patches.flatten(4, 5).flatten(2, 3)
    torch.testing.assert_close(vim(x), rows(other))
    grid = mirrored(rows.forward_grid(other).flatten(2).transpose(1, 2), count)
    torch.testing.assert_close(vim.forward_grid(x).flatten(2).transpose(1, 2), grid)


@pytest.mark.parametrize("order", ["columns", "snake"])
def test_an_order_follows_a_new_size_and_is_no_part_of_the_weights(order, unchecked):
    vim = model(scan_order=order, img_size=(8, 8))
    assert vim.state_dict().keys() == model(img_size=(8, 8)).state_dict().keys()
    resized = copy.deepcopy(vim).resize_to(12, 8)
    fresh = model(scan_order=order)
    fresh.load_state_dict(resized.state_dict())
    x = images()
    assert torch.equal(resized(x), fresh(x))
    traced = torch.compile(resized, fullgraph=True, backend="eager")
    torch.testing.assert_close(traced(x), fresh(x))
    exported = torch.export.export(resized, (x,))
    torch.testing.assert_close(exported.module()(x), fresh(x))


@pytest.mark.parametrize("order", ["rows", "columns", "snake"])
def test_a_model_made_without_memory_is_whole_once_it_has_weights(order):
    """Nothing but parameters has to be filled: no buffer holds what the configuration says already."""
    made, x = model(scan_order=order), images()
    with torch.device("meta"):
        empty = VisionMamba(made.config)
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(made.state_dict())
    assert torch.equal(filled.eval()(x), made(x))


def test_without_position_embedding_nothing_is_added():
    vim, x = model(), images()
    bare = with_state_of(vim, pos_embed=False)
    assert bare.pos_embed is None and not any("pos_embed" in name for name in bare.state_dict())
    with torch.no_grad():
        vim.pos_embed.zero_()
    assert torch.equal(bare(x), vim(x))
    assert bare.resize_to(8, 8)(images(8, 8)).shape == (2, 5)
    bare.reset_classifier(3)
    assert bare.set_backend("chunked")(images(8, 8)).shape == (2, 3)
    deit = DeiT(DeiTConfig(img_size=8, patch_size=4, embed_dim=12, depth=1, pos_embed=False))
    assert deit.pos_embed is None and deit(images(8, 8)).shape == (2, 1000)
    with pytest.raises(ValueError, match="lacks pos_embed"):
        load_official(to_official(bare))


def test_max_takes_each_features_largest_value():
    vim, x = model(cls_token="max"), images()
    mean = with_state_of(vim, cls_token="none")
    tokens = mean.forward_features(x)
    assert torch.equal(vim.forward_features(x), tokens)
    assert torch.equal(vim(x), vim.head(tokens.max(dim=1).values))
    assert torch.equal(mean(x), mean.head(tokens.mean(dim=1)))


FIELDS = {"directions": (1, 2), "scan_order": ("rows", "columns", "snake"), "pos_embed": (True, False)}
FIELDS |= {"cls_token": ("middle", "head", "double", "none", "max"), "init": ("paper", "official")}


@pytest.mark.parametrize("field", FIELDS)
def test_every_value_of_a_field_gives_another_model(field):
    x = images()
    outputs = [model(**{field: value})(x) for value in FIELDS[field]]
    assert all(not torch.allclose(a, b, atol=1e-4) for a, b in itertools.combinations(outputs, 2))


@pytest.mark.parametrize(
    ("field", "value"),
    [("directions", 0), ("directions", 3), ("directions", True), ("directions", "2"), ("scan_order", "hilbert")]
    + [("scan_order", None), ("pos_embed", 1), ("pos_embed", None), ("cls_token", "mean")],
)
def test_other_values_are_refused_by_name(field, value, unchecked):
    with pytest.raises(ValueError, match=f"{field} is {value!r}; it must be"):
        VimConfig(**{field: value})


@pytest.mark.parametrize("backend", ["auto", "chunked", "reference"])
def test_another_default_device_than_the_inputs(backend):
    vim, x = create_model("vim_nano_patch2_8", depth=1, scan_order="snake", drop_path_rate=0.5).train(), images(8, 8)
    vim.set_backend(backend)
    deit = create_model("deit_tiny_patch4_32", img_size=8, depth=1)
    torch.manual_seed(0)
    expected = torch.autograd.grad(vim(x).sum(), list(vim.parameters()))
    try:
        torch.set_default_device("meta")
        torch.manual_seed(0)
        found = torch.autograd.grad(vim(x).sum(), list(vim.parameters()))
        resized = copy.deepcopy(vim).resize_to(12, 8)
        assert resized(torch.randn(1, 3, 12, 8, device="cpu")).device.type == "cpu"
        assert deit(x).device.type == "cpu"
        deit.reset_classifier(3)
        assert deit(x).shape == (2, 3) and deit.head.weight.device.type == "cpu"
    finally:
        torch.set_default_device(None)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("field", "value"), [("scan_order", "snake"), ("scan_order", "columns"), ("cls_token", "max")])
def test_what_the_official_code_lacks_gets_no_official_names(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value!r}; it must be one that the official code has"):
        to_official(model(**{field: value}))
