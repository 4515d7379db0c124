"""timm's conventions, on Vim and DeiT: intermediates, pooling, checkpointing, names and sizes."""

import pytest
import torch
from torch import nn

import minivim
from minivim import create_model
from minivim.models import checkpoints
from minivim.models import timm as timm_registry

MODELS = {
    "vim": ("vim_nano_patch2_8", {}),
    "vim, no class token": ("vim_nano_patch2_8", {"cls_token": "none"}),
    "vim, two class tokens, snake": ("vim_nano_patch2_8", {"cls_token": "double", "scan_order": "snake"}),
    "vim, columns of another shape": ("vim_nano_patch2_8", {"scan_order": "columns", "img_size": (8, 4)}),
    "deit": ("deit_tiny_patch4_32", {"img_size": 8, "patch_size": 2, "num_heads": 4}),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def model(request):
    name, overrides = request.param
    return create_model(name, embed_dim=16, depth=4, **overrides).eval()


@pytest.fixture
def image(model):
    return torch.randn(2, 3, *model.config.image_shape)


def hooked_streams(model, image):
    """The stream after each block, by hooks on the blocks alone."""
    streams = []

    def note(_, inputs, output):
        streams.append(output[0] + output[1] if isinstance(output, tuple) else output)

    handles = [block.register_forward_hook(note) for block in model.blocks]
    model(image)
    for handle in handles:
        handle.remove()
    return streams


def test_intermediates_are_the_streams_after_the_blocks(model, image):
    features, found = model.forward_intermediates(image, output_fmt="NLC")
    torch.testing.assert_close(features, model.forward_features(image))
    for stream, patches in zip(hooked_streams(model, image), found, strict=True):
        torch.testing.assert_close(patches, model.patch_tokens(stream))


def test_updates_add_up_to_the_stream(model, image):
    updates = model.forward_intermediates(image, intermediates_only=True, source="update")
    [last] = model.forward_intermediates(image, 1, intermediates_only=True)
    start = model.to_grid(model.patch_tokens(model.embed(image)))
    torch.testing.assert_close(start + sum(updates), last)


@pytest.mark.parametrize(
    ("indices", "blocks"), [(None, [0, 1, 2, 3]), (2, [2, 3]), ([-4, 2], [0, 2]), ((3, 1), [1, 3]), ([2, -2], [2])]
)
def test_indices_choose_blocks(model, image, indices, blocks):
    everything = model.forward_intermediates(image, intermediates_only=True)
    found = model.forward_intermediates(image, indices, intermediates_only=True)
    assert all(torch.equal(a, everything[i]) for a, i in zip(found, blocks, strict=True))


def test_the_last_intermediate_with_norm_is_the_grid(model, image):
    [last] = model.forward_intermediates(image, 1, norm=True, intermediates_only=True)
    torch.testing.assert_close(last, model.forward_grid(image))
    [tokens] = model.get_intermediate_layers(image, 1, norm=True)
    torch.testing.assert_close(tokens, model.patch_tokens(model.forward_features(image)))
    [grid] = model.get_intermediate_layers(image, 1, reshape=True, norm=True)
    torch.testing.assert_close(grid, last)


def test_a_mark_on_the_class_token_never_reaches_the_grid(model, image):
    if model.cls_token is None:
        pytest.skip("has no class token")
    tokens = torch.zeros(1, model.config.num_tokens, 16)
    tokens[:, list(model.config.cls_positions)] = 1
    assert model.patch_tokens(tokens).abs().max() == 0
    assert model.class_tokens(tokens).shape == (1, model.num_prefix_tokens, 16)
    [(patches, classes)] = model.forward_intermediates(image, 1, True, intermediates_only=True)
    assert classes.shape == (2, model.num_prefix_tokens, 16) and patches.shape[2:] == model.patch_embed.grid_size


def test_stopping_early_leaves_blocks_out(model, image):
    ran = []
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    features, _ = model.forward_intermediates(image, [1], stop_early=True)
    assert ran == [0, 1] and features.shape == (2, model.config.num_tokens, 16)


def test_pruning_keeps_the_intermediates(model, image):
    expected = model.forward_intermediates(image, [0, 2], intermediates_only=True)
    assert model.prune_intermediate_layers([0, -2], prune_norm=True) == [0, 2]
    assert (len(model.blocks), model.config.depth, model.num_classes) == (3, 3, 0)
    assert isinstance(model.norm, nn.Identity) and isinstance(model.head, nn.Identity)
    found = model.forward_intermediates(image, [0, 2], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"indices": 0}, "indices is 0; it must be a number of blocks from 1 to 4"),
        ({"indices": 5}, "indices is 5; it must be a number of blocks from 1 to 4"),
        ({"indices": [4]}, r"indices is \[4\]; each must be a block's index from -4 to 3"),
        ({"indices": []}, r"indices is \[\]; each must be"),
        ({"output_fmt": "NHWC"}, "output_fmt is 'NHWC'"),
        ({"source": "block"}, "source is 'block'"),
        ({"source": "update", "norm": True}, "norm is True, but source is 'update'"),
    ],
)
def test_what_cannot_be_taken_is_refused(model, image, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.forward_intermediates(image, **arguments)


def test_checkpointing_gives_the_same_gradients_from_less_saved(model, image):
    def run():
        saved = []

        def pack(x):
            saved.append(x.numel())
            return x

        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = model(image).sin().sum()
        loss.backward()
        return sum(saved), [p.grad.clone() for p in model.parameters()]

    plain, expected = run()
    model.set_grad_checkpointing()
    less, found = run()
    assert less < plain / 2
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    model.set_grad_checkpointing(False)
    assert run()[0] == plain


def test_names_and_sizes(model):
    assert model.embed_dim == model.num_features == model.head_hidden_size == 16
    assert model.patch_embed.grid_size == model.config.grid_shape
    assert model.patch_embed.num_patches == model.config.num_patches
    assert model.num_prefix_tokens == model.config.num_tokens - model.config.num_patches
    assert [info["module"] for info in model.feature_info] == [f"blocks.{i}" for i in range(4)]
    assert {(info["num_chs"], info["reduction"]) for info in model.feature_info} == {(16, 2)}
    assert model.pretrained_cfg == model.default_cfg
    model.set_input_size((8, 12))
    assert model.patch_embed.grid_size == (4, 6) and model(torch.randn(1, 3, 8, 12)).shape == (1, 10)


@pytest.mark.parametrize("pool", ["token", "avg", "max", ""])
def test_pooling_can_be_changed(model, image, pool, tmp_path):
    if pool == "token" and model.cls_token is None:
        with pytest.raises(ValueError, match="global_pool is 'token', but cls_token is 'none'; it must be a token"):
            model.reset_classifier(5, pool)
        return
    tokens = model.forward_features(image)
    model.reset_classifier(5, pool)
    patches = model.patch_tokens(tokens)
    expected = {
        "token": lambda: model.class_tokens(tokens).mean(1),
        "avg": lambda: patches.mean(1),
        "max": lambda: patches.max(1).values,
        "": lambda: tokens,
    }[pool]()
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), expected)
    torch.testing.assert_close(model(image), model.head(expected))
    checkpoints.save(model, tmp_path / "model.safetensors")
    assert torch.equal(checkpoints.load(tmp_path / "model.safetensors").eval()(image), model(image))


def test_dropout_stands_before_the_head():
    model = create_model("vim_nano_patch2_8", embed_dim=16, depth=1, drop_rate=0.5)
    tokens = torch.ones(4, 17, 16)
    features = model.train().forward_head(tokens, pre_logits=True)
    assert set(features.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(model.eval().forward_head(tokens, pre_logits=True), torch.ones(4, 16))


@pytest.mark.parametrize(
    ("arguments", "cls_token", "pooling"),
    [
        ({"global_pool": "avg"}, "none", "avg"),
        ({"global_pool": "token"}, "middle", "token"),
        ({"global_pool": "avg", "cls_token": "head"}, "head", "token"),
        ({"global_pool": "token", "cls_token": "none"}, "none", "avg"),
        ({"global_pool": ""}, "middle", ""),
    ],
)
def test_global_pool_is_a_second_name_for_cls_token(arguments, cls_token, pooling):
    config = create_model("vim_nano_patch2_8", depth=1, **arguments).config
    assert (config.cls_token, config.pooling) == (cls_token, pooling)


def test_pretrained_weights_are_refused_by_name():
    with pytest.raises(ValueError, match="pretrained is True; it must be False, and checkpoint= a file"):
        create_model("vim_nano_patch2_8", pretrained=True)


class Registry:
    """What the registration asks of timm: whether a name is taken, a model's data, an entry."""

    def __init__(self):
        self.models, self.data = {}, {}

    def is_model(self, name):
        return name in self.models

    def generate_default_cfgs(self, given):
        self.data.update(given)
        return given

    def register_model(self, function):
        assert function.__name__ not in self.models
        self.models[function.__name__] = function


def test_registration_enters_each_model_once(monkeypatch):
    registry = Registry()
    monkeypatch.setattr(timm_registry, "timm_module", lambda name: registry)
    names = minivim.register_with_timm()
    assert minivim.register_with_timm() == names == list(registry.models)
    assert {name.removeprefix("minivim_") for name in names} == set(minivim.list_models())
    assert not [name for name in names if name.startswith("deit")]  # timm has its own
    assert registry.data["vim_nano_patch2_8"]["input_size"] == (3, 8, 8)
    model = registry.models["vim_nano_patch2_8"](num_classes=3, global_pool="avg")
    assert (type(model), model.num_classes, model.config.pooling) == (minivim.VisionMamba, 3, "avg")
    with pytest.raises(ValueError, match="feature_cls is 'fx'; it must be 'getter'"):
        registry.models["vim_nano_patch2_8"](features_only=True, feature_cls="fx")


def test_a_timm_that_cannot_be_imported_is_named(monkeypatch):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(timm_registry.importlib, "import_module", broken)
    with pytest.raises(ImportError, match=r"timm could not be imported \(operator torchvision::nms does not exist\)"):
        minivim.register_with_timm()


def test_overlapping_patches_are_reduced_by_their_stride():
    with torch.device("meta"):
        model = create_model("vim_tiny_patch16_224_stride8", depth=1)
    assert [info["reduction"] for info in model.feature_info] == [8]


def test_the_norm_and_the_head_stay_where_only_blocks_are_cut_off(model, image):
    head = model.head
    [expected] = model.forward_intermediates(image, [1], norm=True, output_fmt="NLC", intermediates_only=True)
    model.prune_intermediate_layers([1], prune_head=False)
    assert model.head is head and len(model.blocks) == 2
    torch.testing.assert_close(model.patch_tokens(model.forward_features(image)), expected)


def test_intermediate_layers_come_with_their_class_tokens_when_asked(model, image):
    [(patches, classes)] = model.get_intermediate_layers(image, 1, return_prefix_tokens=True)
    tokens = hooked_streams(model, image)[-1]
    torch.testing.assert_close(patches, model.patch_tokens(tokens))
    torch.testing.assert_close(classes, model.class_tokens(tokens))
