"""S4ND-ViT-B: its published size, and its mixer against the two sums over tokens that its FFT stands for."""

import pytest
import torch
import torch.nn.functional as F

from minivim.discretize import discretize
from minivim.models.s4vit import S4Mixer, s4nd_vit_base
from minivim.s4.systems import as_complex


def test_parameters_are_those_of_the_released_configuration_and_round_to_the_published_size():
    D, N, channels, depth = 768, 64, 2, 12
    shared = 4 * N  # of A, P and B one of each conjugate pair, as two real numbers
    shared -= N  # three of them
    kernels = shared + D + 2 * channels * D * N  # delta; C for each direction and channel, N / 2 complex numbers
    mixer = kernels + channels * D + channels * D * 2 * D + 2 * D
    block = mixer + 2 * 2 * D + 8 * D * D + 5 * D  # two norms, the MLP
    expected = 3 * 16 * 16 * D + D + depth * block + 2 * D + 1000 * D + 1000
    with torch.device("meta"):
        found = sum(parameter.numel() for parameter in s4nd_vit_base().parameters())
    assert found == expected == 88_786_408 and round(found / 1e6, 1) == 88.8
    assert found + depth * (D - 1) * shared == 90_553_576  # with systems of their own


def by_steps(mixer: S4Mixer, L: int) -> torch.Tensor:
    """The kernels (2, channels, D, L) as C A_bar^k B_bar, from dense matrices and powers."""
    delta = mixer.log_delta.double().exp()
    Lambda = torch.complex(-mixer.log_decay.double().exp(), mixer.frequency.double())
    Lambda, P, B = (torch.cat((x, x.conj())) for x in (Lambda, as_complex(mixer.P), as_complex(mixer.B)))
    A = (torch.diag(Lambda) - P[:, None] * P.conj()).expand(len(delta), -1, -1)
    A_bar, B_bar = discretize(A, B[:, None].expand(len(delta), -1, -1), delta, "bilinear")
    C = torch.cat((as_complex(mixer.C), as_complex(mixer.C).conj()), dim=-1)
    rest = torch.eye(len(Lambda)) - torch.linalg.matrix_power(A_bar, L)
    C = torch.linalg.solve(rest, C[..., None, :], left=False)[..., 0, :]  # what is learned is C (I - A_bar^L)
    columns = [torch.linalg.matrix_power(A_bar, k) @ B_bar for k in range(L)]
    return torch.stack([(C[..., None, :] @ column)[..., 0, 0] for column in columns], dim=-1).real


@pytest.mark.parametrize("L", [1, 7])
def test_mixer_is_a_sum_over_the_tokens_before_and_one_over_those_behind(L):
    torch.manual_seed(0)
    mixer = S4Mixer(3, N=4).double()
    x = torch.randn(2, L, 3, dtype=torch.float64)
    back, ahead = by_steps(mixer, L)
    y = torch.zeros(2, L, 2, 3, dtype=torch.float64)
    for t in range(L):
        y[:, t] += mixer.skip * x[:, t, None]
        for s in range(L):
            y[:, t] += (back[..., t - s] if s <= t else ahead[..., s - t - 1]) * x[:, s, None]
    value, gate = mixer.mix(F.gelu(y.flatten(2))).chunk(2, dim=-1)
    torch.testing.assert_close(mixer(x), value * gate.sigmoid(), rtol=1e-8, atol=1e-8)


def test_it_is_a_deit_with_other_mixers_and_learns():
    model = s4nd_vit_base(img_size=32, patch_size=8, embed_dim=12, num_heads=1, depth=2, num_classes=5)
    images = torch.randn(2, 3, 32, 32)
    logits = model(images)
    assert logits.shape == (2, 5) and model.config.num_tokens == 16 and model.pos_embed is None
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert not torch.equal(logits, model(images.flip(-1)))  # the order of the patches matters without an embedding
