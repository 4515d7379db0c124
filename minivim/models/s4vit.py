"""S4ND-ViT-B (arXiv 2210.06583): a ViT-B whose attention is replaced by S4 along the sequence of patches.

S4ND in one dimension is S4, once in each direction. The sizes are the choice of its released configuration
(state-spaces/s4, configs/experiment/s4nd/vit/vit_b_16_s4_imagenet_v2.yaml): N 64, two channels, one A, P and B for all
features (n_ssm 1), a gated linear map behind, no class token and no position embedding. They give 88,786,408
parameters; with an A, P and B for each feature it would be 90,553,576.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from minivim.hippo import dplr
from minivim.models.backbone import Backbone
from minivim.models.registry import create_model
from minivim.s4.generating import dplr_kernel
from minivim.s4.lssl import log_step_sizes
from minivim.s4.systems import as_complex, as_parameter


class S4Mixer(nn.Module):
    """S4 in both directions, then GELU and a gated linear map, (B, L, D) -> (B, L, D): stands where attention stood.

    Each feature has one delta and, for each channel and direction, one row C of N states. As in the released code, what
    is learned is C (I - A_bar^L), for the L that the model is trained at.
    """

    def __init__(self, D: int, N: int = 64, channels: int = 2):
        super().__init__()
        Lambda, P, B, _ = (each[N // 2 :] for each in dplr(N))
        dtype = torch.get_default_dtype()
        self.log_delta = log_step_sizes(D, 0.001, 0.1)
        self.log_decay = nn.Parameter(torch.log(-Lambda.real).to(dtype))
        self.frequency = nn.Parameter(Lambda.imag.to(dtype).clone())
        self.P, self.B = as_parameter(P), as_parameter(B)
        self.C = as_parameter(torch.randn(2, channels, D, N // 2, dtype=torch.complex128))
        self.skip = nn.Parameter(torch.randn(channels, D))
        self.mix = nn.Linear(channels * D, 2 * D)

    def kernels(self, L: int) -> Float[Tensor, "2 channels D L"]:
        """Those that look back, k = 0 .. L - 1 tokens, and those that look ahead, 1 .. L; one a channel and feature."""
        delta = self.log_delta.double().exp()
        Lambda = torch.complex(-self.log_decay.double().exp(), self.frequency.double())
        shared = (Lambda, as_complex(self.P), as_complex(self.B))
        Lambda, P, B = (torch.cat((each, each.conj())).expand(len(delta), -1) for each in shared)
        C = as_complex(self.C)
        rows = torch.cat((C, C.conj()), dim=-1).flatten(0, 1)
        kernels = torch.stack([dplr_kernel(Lambda, P, B, row, delta, L) for row in rows])
        return kernels.unflatten(0, C.shape[:2]).to(self.skip)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """Each token sees all others, through one circular convolution over 2 L tokens, L of them zeros."""
        u, L = x.mT[:, None], x.shape[1]
        back, ahead = self.kernels(L)
        around = torch.fft.rfft(torch.cat((back, ahead.flip(-1)), dim=-1))
        y = torch.fft.irfft(torch.fft.rfft(u, 2 * L) * around, 2 * L)[..., :L] + self.skip[..., None] * u
        return F.glu(self.mix(F.gelu(rearrange(y, "B channels D L -> B L (channels D)"))), dim=-1)


def s4nd_vit_base(**overrides) -> Backbone:
    """S4ND-ViT-B, a DeiT with other mixers; `overrides` replace fields of its configuration.

    Raises ValueError for an unknown or impossible field.
    """
    model = create_model("deit_base_patch16_224", **{"cls_token": "none", "pos_embed": False, **overrides})
    for block in model.blocks:
        block.attention = S4Mixer(model.embed_dim)
    return model
