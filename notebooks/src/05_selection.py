# %% [markdown]
# # 05 · Selection: Mamba

# %%
import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from IPython.display import display
from torch import nn
from tqdm.auto import tqdm

from minivim import MambaBlock, lti, selective_scan
from minivim.course import check
from minivim.discretize import discretize_diagonal
from minivim.figures import COLOURS, arrow, box, canvas, flipbook, show, use_style
from minivim.models.mamba import SelectiveSSM
from minivim.s4 import S4D

use_style()
torch.set_num_threads(1)  # the models are so small that two threads would mostly wait for each other


# %%
def selective_copying(batch, places=32, count=4, kinds=8, generator=None):
    """(tokens, answers): (batch, places + count) and (batch, count), whole numbers.

    Token 0 .. kinds - 1: data. Token kinds: noise. Token kinds + 1: "now say the next one".
    """
    order = torch.rand(batch, places, generator=generator).argsort(1)
    where = order[:, :count].sort(1).values  # `count` different places, in order
    answers = torch.randint(kinds, (batch, count), generator=generator)
    noise = torch.full((batch, places), kinds).scatter(1, where, answers)
    return torch.cat((noise, torch.full((batch, count), kinds + 1)), 1), answers


# %%
class Reader(nn.Module):
    """Tokens (B, L) -> one score for each kind at each place, (B, L, kinds)."""

    def __init__(self, make_block, D, kinds=8, depth=2):
        super().__init__()
        self.embed = nn.Embedding(kinds + 2, D)
        self.blocks = nn.ModuleList(make_block(D) for _ in range(depth))
        self.norms = nn.ModuleList(nn.RMSNorm(D) for _ in range(depth + 1))
        self.head = nn.Linear(D, kinds)

    def forward(self, tokens):
        x = self.embed(tokens)
        for norm, block in zip(self.norms, self.blocks):
            x = x + block(norm(x))
        return self.head(self.norms[-1](x))


# %%
class S4DBlock(nn.Module):
    """The block of chapter 04: mix(GELU(S4D(x))), (B, L, D) -> (B, L, D)."""

    def __init__(self, D, N=42):
        super().__init__()
        self.layer = S4D(D, N, "legs", delta_min=0.01, delta_max=1.0)
        self.mix = nn.Linear(D, D)

    def forward(self, x):
        return self.mix(F.gelu(self.layer(x)))


# %%
def share_right(model, tokens, answers):
    """The share of the answers that the model's highest scores name."""
    guesses = model(tokens)[:, -answers.shape[1] :].argmax(-1)
    return (guesses == answers).float().mean().item()


def train(model, task, steps, peak=6e-3, watch=None):
    """Adam with one rise and fall of the learning rate; the share of right answers at each step."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), peak)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.15)
    shares = []
    for _ in tqdm(range(steps), desc="steps"):
        tokens, answers = task(64, generator=generator)
        scores = model(tokens)[:, -answers.shape[1] :]
        loss = F.cross_entropy(scores.flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        shares.append((scores.argmax(-1) == answers).float().mean().item())
        if watch and len(shares) % 50 == 0:
            watch(shares)
    return shares


# %%
class GatedS4D(nn.Module):
    """Mamba's block with S4D in the place of the selective part, (B, L, D) -> (B, L, D)."""

    def __init__(self, D, N=26):
        super().__init__()
        E = 2 * D
        self.in_proj, self.out_proj = nn.Linear(D, 2 * E, bias=False), nn.Linear(E, D, bias=False)
        self.conv = nn.Conv1d(E, E, 4, groups=E, padding=3)
        self.layer = S4D(E, N, "legs", delta_min=0.01, delta_max=1.0)

    def forward(self, x):
        x, z = self.in_proj(x).chunk(2, dim=-1)
        u = F.silu(self.conv(x.mT)[..., : x.shape[1]]).mT
        return self.out_proj(self.layer(u) * F.silu(z))


# %%
class PaperSSM(SelectiveSSM):
    """Mamba's selective part with the paper's rule for B: zero-order hold in the place of Euler's."""

    def scan(self, u, z, backend="auto", **state):
        u, delta, A, B, C, D, bias = self.select(u)
        delta, N = F.softplus(delta + bias), A.shape[1]
        x = (delta[..., None] * A).clamp(max=-1e-6)  # (B, L, E, N); not 0, which is divided by
        written = torch.expm1(x) / x * B[:, :, None] * u[..., None]  # what the paper writes / delta
        one = torch.ones_like(B[..., :1])
        h = selective_scan(
            written.flatten(2), delta.repeat_interleave(N, dim=-1), A.reshape(-1, 1), one, one
        )  # E N channels with one state each: (B, L, E N)
        y = (h.view(written.shape) * C[:, :, None]).sum(-1) + D * u
        return y * F.silu(z)


def paper_block(D):
    """A MambaBlock with the paper's rule for B."""
    block = MambaBlock(D)
    block.ssm.__class__ = PaperSSM
    return block


# %%
def induction(batch, places=64, kinds=16, generator=None):
    """(tokens, answers): (batch, places), (batch, 1). What came after the mark, when the mark comes again?"""
    tokens = torch.randint(kinds, (batch, places), generator=generator)
    where = torch.randint(places - 2, (batch, 1), generator=generator)
    answers = tokens.gather(1, where + 1)
    tokens.scatter_(1, where, kinds)
    tokens[:, -1] = kinds
    return tokens, answers
