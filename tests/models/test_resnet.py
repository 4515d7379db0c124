"""ResNet-50 against the sizes of its paper's Table 1, and its convolutions against a plain functional forward pass."""

import pytest
import torch
import torch.nn.functional as F

from minivim.models.resnet import STAGES, Bottleneck, ResNet50


def weights(in_width: int, out_width: int, side: int) -> int:
    """A convolution without bias, and the scale and shift of its norm."""
    return in_width * out_width * side**2 + 2 * out_width


def test_parameters_are_those_of_the_layers_and_the_published_count():
    expected, in_width = weights(3, 64, 7) + 2048 * 1000 + 1000, 64
    for width, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
        expected += weights(in_width, 4 * width, 1)  # the first block's shortcut
        for _ in range(depth):
            expected += weights(in_width, width, 1) + weights(width, width, 3) + weights(width, 4 * width, 1)
            in_width = 4 * width
    with torch.device("meta"):
        found = sum(parameter.numel() for parameter in ResNet50().parameters())
    assert found == expected == 25_557_032


@pytest.mark.parametrize(("height", "width"), [(224, 224), (96, 33)])
def test_each_stage_halves_the_sides_and_doubles_the_channels(height, width):
    with torch.device("meta"):
        model, x = ResNet50(num_classes=7, in_chans=4), torch.empty(2, 4, height, width)
    x, step = model.stem(x), 4
    assert x.shape == (2, 64, -(-height // step), -(-width // step))
    for stage, (inner, depth) in zip(model.stages, STAGES, strict=True):
        x = stage(x)
        assert len(stage) == depth and x.shape == (2, 4 * inner, -(-height // step), -(-width // step))
        step *= 2
    assert model.forward_head(x, pre_logits=True).shape == (2, model.num_features) == (2, 2048)
    assert model.forward_head(x).shape == (2, 7)


def test_it_computes_what_the_layers_say_one_by_one():
    model = ResNet50(num_classes=3)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    state = iter(model.state_dict().values())

    def conv(x, stride=1):
        weight, scale, shift, mean, variance, _ = (next(state) for _ in range(6))
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        return F.batch_norm(x, mean, variance, scale, shift)

    model.train()(torch.randn(2, 3, 40, 40))  # so that the norms know a mean and a variance
    image = torch.randn(1, 3, 40, 56)
    x = F.max_pool2d(F.relu(conv(image, 2)), 3, 2, 1)
    for index, (_, depth) in enumerate(STAGES):
        for block in range(depth):
            stride = 2 if index and not block else 1
            y = F.relu(conv(F.relu(conv(x)), stride))
            x = F.relu(conv(y) + (x if block else conv(x, stride)))
    expected = F.linear(x.flatten(2).mean(2), next(state), next(state))
    torch.testing.assert_close(model.eval()(image), expected, rtol=1e-4, atol=1e-4)


def test_a_new_block_is_its_shortcut():
    x = torch.rand(2, 8, 5, 5)
    torch.testing.assert_close(Bottleneck(8, 2).eval()(x), x)
