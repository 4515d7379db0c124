"""Small Vims trained on digits: orders of the scan, position embedding, directions, convolution, first step sizes.

    python docs/measurements/08_orders.py [SEEDS]     writes 08_orders.json beside this file; what is there is kept

Chapter 08 draws the result. Each run takes about 20 seconds of one CPU thread.
"""

import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from trainings import measure

from minivim.models.mamba import SelectiveSSM
from minivim.models.vim import VimMixer
from minivim.train import TrainConfig, TrainResult, train

OUT = Path(__file__).with_suffix(".json")
COMMON = {"data": "digits", "patch_size": 1, "embed_dim": 32, "depth": 2, "epochs": 15, "lr": 8e-3, "threads": 1}
EXPERIMENTS = {
    f"{order}, {'with' if pos_embed else 'without'} position": {"scan_order": order, "pos_embed": pos_embed}
    for pos_embed in (True, False)
    for order in ("rows", "columns", "snake")
} | {
    "official init": {"init": "official"},
    "centred convolution": {},
    "forward only": {"directions": 1},
    "forward only, mean of all tokens": {"directions": 1, "cls_token": "none"},
    "mean of all tokens": {"cls_token": "none"},
}


def centred_conv(ssm: SelectiveSSM, x: Float[Tensor, "B L E"]) -> Float[Tensor, "B L E"]:
    """The convolution of one direction, with its four taps around the token in place of before it, and SiLU."""
    padding = (1, 2) if ssm.reverse else (2, 1)
    padded = F.pad(x, (0, 0, *padding))
    L, weight = x.shape[1], ssm.conv_weight.flip(1) if ssm.reverse else ssm.conv_weight
    taps = [padded[:, k : k + L] * weight[:, k] for k in range(weight.shape[1])]
    return F.silu(sum(taps) + ssm.conv_bias)


def centred_mixer(mixer: VimMixer, x: Float[Tensor, "B L D"], backend: object = None) -> Float[Tensor, "B L D"]:
    """What `VimMixer.forward` computes, with centred convolutions."""
    x, z = mixer.in_proj(x).chunk(2, dim=-1)
    both = [ssm.scan(centred_conv(ssm, x), z) for ssm in (mixer.forward_ssm, mixer.backward_ssm)]
    return mixer.out_proj((both[0] + both[1]) / 2)


def run(name: str, seed: int, out: str) -> TrainResult:
    """One training."""
    config = TrainConfig(**COMMON, **EXPERIMENTS[name], seed=seed, out=out, progress=False)
    forward = centred_mixer if name == "centred convolution" else VimMixer.forward
    with mock.patch.object(VimMixer, "forward", forward):
        return train(config)


def step_sizes(model: torch.nn.Module) -> dict[str, list[float]]:
    """The 10, 50 and 90 % points of the step sizes that the biases alone give, for each direction."""
    sizes = {}
    for way in ("forward", "backward"):
        biases = [p for name, p in model.named_parameters() if name.endswith(f"{way}_ssm.dt_proj.bias")]
        if biases:
            points = F.softplus(torch.cat(biases)).quantile(torch.tensor([0.1, 0.5, 0.9]))
            sizes[way] = [float(f"{point:.3g}") for point in points]
    return sizes


def record(name: str, seed: int) -> dict:
    """What is kept of one run: the validation accuracy after each epoch, and the step sizes before and after."""
    with tempfile.TemporaryDirectory() as folder:
        result = run(name, seed, f"{folder}/run")
    accuracy = [round(epoch["val_accuracy"], 4) for epoch in result.history]
    torch.manual_seed(seed)
    fresh = type(result.model)(result.model.config)
    return {
        "name": name,
        "seed": seed,
        "accuracy": accuracy,
        "parameters": sum(p.numel() for p in result.model.parameters()),
        "step_sizes": {"before": step_sizes(fresh), "after": step_sizes(result.model)},
    }


if __name__ == "__main__":
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    measure(OUT, f"python docs/measurements/08_orders.py {seeds}", COMMON, EXPERIMENTS, seeds, record)
