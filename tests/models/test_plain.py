"""A module of a model is what runs: whatever a user puts there is called, and plain modules keep the fused path."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from minivim import MambaBlock, create_model
from minivim.models import mamba, vim
from minivim.models.plain import is_plain

SMALL = {"embed_dim": 16, "depth": 2}


@pytest.fixture(params=[{}, {"directions": 1}], ids=["both directions", "one direction"])
def model(request):
    return create_model("vim_nano_patch2_8", **SMALL, **request.param).eval()


@pytest.fixture
def x():
    return torch.randn(2, 3, 8, 8)


class Wrapper(nn.Module):
    """What an adapter does: call the layer, and add something of its own."""

    def __init__(self, base):
        super().__init__()
        self.base, self.gain = base, nn.Parameter(torch.zeros(()))

    def forward(self, x, *rest):
        y = self.base(x, *rest)
        return tuple(each * (1 + self.gain) for each in y) if isinstance(y, tuple) else y * (1 + self.gain)


def names(model):
    """The layers that a forward pass goes through."""
    return [name for name, module in model.named_modules() if name and not isinstance(module, nn.ModuleList)]


def put(model, name, module):
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def test_every_forward_hook_fires_once_and_changes_nothing(model, x):
    expected, fired = model(x), []
    for name in names(model):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: fired.append(name))
    torch.testing.assert_close(model(x), expected)
    assert sorted(fired) == sorted(names(model))


def test_every_forward_pre_hook_and_backward_hook_fires(model, x):
    before, after = [], []
    for name in names(model):
        module = model.get_submodule(name)
        module.register_forward_pre_hook(lambda *_, name=name: before.append(name))
        module.register_full_backward_hook(lambda *_, name=name: after.append(name))
    model(x.requires_grad_()).sum().backward()
    assert sorted(before) == sorted(after) == sorted(names(model))


def test_a_global_hook_sees_the_layers_too(model, x):
    seen = set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.add(module))
    try:
        model(x)
    finally:
        handle.remove()
    assert {model.get_submodule(name) for name in names(model)} <= seen


def test_every_wrapped_layer_is_called(model, x):
    for name in names(model):
        wrapped = copy.deepcopy(model)
        put(wrapped, name, Wrapper(wrapped.get_submodule(name)))
        out = wrapped(x)
        torch.testing.assert_close(out, model(x), msg=name)
        gain = wrapped.get_submodule(name).gain
        assert torch.autograd.grad(out.sin().sum(), gain)[0].abs() > 0, name


def test_a_wrapped_model_takes_its_backend_everywhere(model, x):
    for name in ("blocks.0.mixer", "blocks.1.mixer.forward_ssm"):
        put(model, name, Wrapper(model.get_submodule(name)))
    model.set_backend("reference")
    x.requires_grad_()
    [first] = torch.autograd.grad(model(x).sin().sum(), x, create_graph=True)
    [second] = torch.autograd.grad(first.square().sum(), x)  # which no other backend has
    assert second.abs().max() > 0


@pytest.mark.parametrize("name", ["blocks.0.mixer.forward_ssm.dt_proj", "blocks.1.mixer.in_proj", "patch_embed.proj"])
def test_pruned_and_spectrally_normalised_weights_are_the_ones_that_run(model, x, name):
    for change in (
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        parametrizations.spectral_norm,
        parametrizations.weight_norm,
    ):
        changed, plain = copy.deepcopy(model), copy.deepcopy(model)
        change(changed.get_submodule(name))
        changed.eval()(x)
        plain.get_submodule(name).weight = nn.Parameter(changed.get_submodule(name).weight.detach().clone())
        torch.testing.assert_close(changed(x), plain(x))


@pytest.mark.parametrize("parameter", ["A_log", "D", "conv_weight", "conv_bias"])
def test_a_pruned_parameter_of_a_state_space_model_is_the_one_that_runs(model, x, parameter):
    changed, plain = copy.deepcopy(model), copy.deepcopy(model)
    ssm = changed.blocks[0].mixer.forward_ssm
    prune.random_unstructured(ssm, parameter, 0.5)
    with torch.no_grad():
        getattr(ssm, f"{parameter}_orig").add_(0.1)  # in place: the mask is applied anew at each call
        changed(x)
        getattr(plain.blocks[0].mixer.forward_ssm, parameter).copy_(getattr(ssm, parameter))
    torch.testing.assert_close(changed(x), plain(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamic_quantisation_is_close_and_takes_effect(model, x):
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        found, expected = quantised(x), model(x)
    assert 0 < (found - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("norm", [nn.LayerNorm(16), nn.Identity(), nn.RMSNorm(16, eps=0.5), nn.RMSNorm(16)])
def test_another_norm_is_the_one_that_runs(model, x, norm):
    model.blocks[1].norm = norm
    seen = []
    model.blocks[0].register_forward_hook(lambda _, inputs, output: seen.append(output))
    model.blocks[1].mixer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(x)
    (update, residual), given = seen
    torch.testing.assert_close(given, norm(update + residual))


def test_another_patch_convolution_is_the_one_that_runs(model, x):
    overlapping = nn.Conv2d(3, 16, kernel_size=4, stride=2, padding=1)  # the same grid from larger patches
    model.patch_embed.proj = overlapping
    torch.testing.assert_close(model.patch_embed(x), overlapping(x).flatten(2).transpose(1, 2))


@pytest.mark.parametrize("option", [{"padding": 1}, {"dilation": 2}, {"groups": 2}])
def test_a_convolution_of_the_same_patches_with_another_option_is_the_one_that_runs(option):
    model = create_model("vim_nano_patch2_8", **SMALL | {"in_chans": 2})
    image = torch.randn(2, 2, 8, 8)
    model.patch_embed.proj = nn.Conv2d(2, 16, kernel_size=2, stride=2, **option)
    torch.testing.assert_close(model.patch_embed(image), model.patch_embed.proj(image).flatten(2).transpose(1, 2))


def test_two_state_space_models_in_one_direction_are_not_run_as_a_pair(x):
    model = create_model("vim_nano_patch2_8", **SMALL).eval()
    mixer = model.blocks[0].mixer
    tokens = torch.randn(2, 5, 16)
    before = mixer(tokens)
    mixer.backward_ssm.reverse = False
    u, z = mixer.in_proj(tokens).chunk(2, dim=-1)
    expected = mixer.out_proj((mixer.forward_ssm(u, z) + mixer.backward_ssm(u, z)) / 2)
    torch.testing.assert_close(mixer(tokens), expected)
    assert not torch.allclose(before, expected)


def without_bias(ssm):
    ssm.dt_proj = nn.Linear(ssm.dt_proj.in_features, ssm.dt_proj.out_features, bias=False)


def with_states(N):
    def change(ssm):
        ssm.split = (ssm.split[0], N, N)
        ssm.x_proj, ssm.A_log = nn.Linear(32, sum(ssm.split), bias=False), nn.Parameter(torch.randn(32, N))

    return change


def with_taps(ssm):
    ssm.conv_weight = nn.Parameter(torch.randn(32, 2))


@pytest.mark.parametrize("change", [without_bias, with_states(4), with_states(40), with_taps])
@pytest.mark.parametrize("way", ["forward_ssm", "backward_ssm"])
def test_two_unequal_state_space_models_are_each_run_by_itself(way, change):
    mixer = create_model("vim_nano_patch2_8", **SMALL).blocks[0].mixer
    change(getattr(mixer, way))
    tokens = torch.randn(2, 5, 16)
    u, z = mixer.in_proj(tokens).chunk(2, dim=-1)
    expected = mixer.out_proj((mixer.forward_ssm(u, z) + mixer.backward_ssm(u, z)) / 2)
    found = mixer(tokens)
    torch.testing.assert_close(found, expected)
    weights = list(mixer.parameters())
    pair = (torch.autograd.grad(y.sin().sum(), weights) for y in (found, expected))
    torch.testing.assert_close(*pair)


def test_a_mamba_block_calls_what_stands_in_it():
    block, x = MambaBlock(8), torch.randn(1, 5, 8)
    expected = block(x)
    for name in ("ssm", "ssm.dt_proj", "ssm.x_proj", "in_proj", "out_proj"):
        wrapped = copy.deepcopy(block)
        put(wrapped, name, Wrapper(wrapped.get_submodule(name)))
        torch.testing.assert_close(wrapped(x), expected)
        wrapped(x).sin().sum().backward()
        assert wrapped.get_submodule(name).gain.grad.abs() > 0


def test_plain_models_keep_the_fused_path(x, monkeypatch):
    counts = dict.fromkeys(("bidirectional_scan", "add_rms_norm"), 0)

    def count(name, function):
        def counted(*arguments, **options):
            counts[name] += 1
            return function(*arguments, **options)

        monkeypatch.setattr(vim, name, counted)

    for name in counts:
        count(name, getattr(vim, name))
    create_model("vim_nano_patch2_8", **SMALL)(x)
    assert counts == {"bidirectional_scan": 2, "add_rms_norm": 3}


def test_a_subclass_is_not_plain():
    layer = nn.Linear(2, 2)
    assert is_plain(layer, nn.Linear) and not is_plain(layer, nn.Module)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_a_layer_with_a_hook_of_any_kind_is_not_plain(kind):
    layer = nn.Linear(2, 2)
    handle = getattr(layer, f"register_{kind}_hook")(lambda *_: None)
    assert not is_plain(layer, nn.Linear)
    handle.remove()
    assert is_plain(layer, nn.Linear)


@pytest.mark.parametrize("method", ["forward", "conv", "select", "scan"])
def test_a_model_with_a_method_of_its_own_is_not_plain(method):
    ssm = mamba.SelectiveSSM(4, 2, 1, 3)
    assert is_plain(ssm, mamba.SelectiveSSM)
    setattr(ssm, method, getattr(ssm, method))
    assert not is_plain(ssm, mamba.SelectiveSSM)


@pytest.mark.parametrize("change", ["copy_", "data", "load_state_dict", "swap"])
def test_a_parameter_changed_in_place_is_seen(model, x, change):
    model(x)
    fresh = create_model("vim_nano_patch2_8", **SMALL, directions=model.config.directions).eval()
    with torch.no_grad():
        if change == "load_state_dict":
            model.load_state_dict(fresh.state_dict())
        else:
            for own, new in zip(model.parameters(), fresh.parameters(), strict=True):
                if change == "copy_":
                    own.copy_(new)
                elif change == "data":
                    own.data = new.data.clone()
                else:
                    own.set_(new.clone())
        assert torch.equal(model(x), fresh(x))
