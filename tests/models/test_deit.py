"""DeiT against PyTorch's own Transformer layer, its two attentions against each other, and its parameter counts."""

import pytest
import torch
from torch import nn

from minivim import DeiT, DeiTConfig, create_model

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


def small(**overrides) -> DeiT:
    return DeiT(DeiTConfig(**{**SMALL, **overrides}))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("deit_tiny_patch16_224", 5_717_416),
        ("deit_small_patch16_224", 22_050_664),
        ("deit_base_patch16_224", 86_567_656),
    ],
)
def test_parameter_counts_of_the_paper(name, count):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in create_model(name).parameters()) == count


def test_block_equals_pytorchs_transformer_layer():
    model = small()
    block = model.blocks[0]
    layer = nn.TransformerEncoderLayer(
        24, 3, 96, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    for parameter in block.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    layer.self_attn.in_proj_weight.data = block.attention.qkv.weight.data
    layer.self_attn.in_proj_bias.data = block.attention.qkv.bias.data
    pairs = [
        (layer.self_attn.out_proj, block.attention.proj),
        (layer.norm1, block.norm1),
        (layer.norm2, block.norm2),
        (layer.linear1, block.mlp[0]),
        (layer.linear2, block.mlp[2]),
    ]
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 17, 24)
    torch.testing.assert_close(block(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("img_size", [16, (8, 20)])
def test_fused_and_naive_attention_are_equal_with_gradients(img_size):
    fused, naive = small(img_size=img_size), small(img_size=img_size, fused_attention=False)
    naive.load_state_dict(fused.state_dict())
    image = torch.randn(2, 3, *fused.config.image_shape)
    torch.testing.assert_close(fused(image), naive(image), rtol=1e-5, atol=1e-5)
    for model in (fused, naive):
        model(image).square().sum().backward()
    for (name, a), b in zip(fused.named_parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_the_class_token_stands_first_and_sees_all():
    model = small(depth=1)
    tokens = model.embed(torch.randn(1, 3, 16, 16)).detach().requires_grad_()
    torch.testing.assert_close(tokens[:, :1], model.cls_token + model.pos_embed[:, :1])
    features = model.forward_head(model.forward_tokens(tokens), pre_logits=True)
    assert torch.equal(features, model.forward_tokens(tokens)[:, 0])
    features.square().sum().backward()
    assert (tokens.grad[0].abs().sum(-1) > 0).all()


def test_without_position_embedding_patches_have_no_order():
    model = small()
    model.pos_embed.data.zero_()
    tokens = model.embed(torch.randn(1, 3, 16, 16))
    shuffled = torch.cat((tokens[:, :1], tokens[:, 1:].flip(1)), dim=1)
    a, b = (model.forward_head(model.forward_tokens(x)) for x in (tokens, shuffled))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_resize_to_keeps_the_class_token_first():
    model = small()
    first, image = model.pos_embed[:, :1].detach().clone(), torch.randn(1, 3, 16, 16)
    logits = model(image)
    assert torch.equal(model.resize_to(16, 16)(image), logits)
    model.resize_to(8, 24)
    assert model.pos_embed.shape == (1, 13, 24) and torch.equal(model.pos_embed[:, :1], first)
    assert model.forward_grid(torch.randn(1, 3, 8, 24)).shape == (1, 24, 2, 6)


def test_drop_path_rises_linearly_to_the_last_block():
    model = small(depth=5, drop_path_rate=0.4)
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    plain, image = small(depth=5), torch.randn(8, 3, 16, 16)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(image), plain(image))
    assert not torch.equal(model.train()(image), plain(image))


def test_weight_decay_and_timm_names():
    model = small()
    spared = model.no_weight_decay()
    assert {"cls_token", "pos_embed", "norm.weight", "blocks.0.attention.qkv.bias"} < spared
    assert not any(name.endswith(("qkv.weight", "mlp.0.weight", "head.weight")) for name in spared)
    model.reset_classifier(3)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 3) and model.get_classifier().out_features == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_heads": 5}, "num_heads is 5; it must divide embed_dim 24"),
        ({"num_heads": 0}, "num_heads is 0; it must be a whole number of at least 1"),
        ({"mlp_ratio": 0}, "mlp_ratio is 0; it must be a whole number of at least 1"),
        ({"img_size": 15}, "img_size is 15; each side must be a multiple of patch_size 4"),
        ({"fused_attention": "yes"}, "fused_attention is 'yes'; it must be True or False"),
    ],
)
def test_impossible_configurations_are_refused(unchecked, overrides, message):
    with pytest.raises(ValueError, match=message):
        small(**overrides)


def test_unknown_key_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"heads is 3, but DeiTConfig has no such field.*num_heads"):
        create_model("deit_tiny_patch16_224", heads=3)
