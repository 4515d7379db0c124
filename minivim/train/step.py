"""What one step of training is made of: its random numbers, its images, its learning rate, its gradients."""

import hashlib
import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from minivim.models import Backbone


def seed_from(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part: neighbouring steps get unrelated random numbers."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def learning_rate(step: int, steps: int, peak: float, warmup: float, end: float) -> float:
    """The rate of a step: a line up to `peak` in the first `warmup` share, then half a cosine down to `end` * peak."""
    rising = round(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    progress = (step - rising) / max(1, steps - 1 - rising)
    return peak * (end + (1 - end) * (1 + math.cos(math.pi * progress)) / 2)


def decay_groups(model: Backbone, weight_decay: float) -> list[dict]:
    """AdamW's two groups: what decays, and what must not (A_log, D, biases, norms, embeddings), as the model says."""
    spared = model.no_weight_decay()
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for name, p in named if name not in spared], "weight_decay": weight_decay},
        {"params": [p for name, p in named if name in spared], "weight_decay": 0.0},
    ]


def epoch_batches(
    count: int, batch_size: int, seed: int, epoch: int, rank: int = 0, size: int = 1
) -> Int64[Tensor, "steps share"]:
    """The epoch's batches of indices: all images shuffled, the remainder left out; of each the share of `rank`."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed_from("order", seed, epoch)))
    steps, share = count // batch_size, batch_size // size
    return order[: steps * batch_size].view(steps, batch_size)[:, rank * share : (rank + 1) * share]


def accumulate_gradients(
    model: nn.Module,
    images: Float[Tensor, "B 3 H W"],
    targets: Float[Tensor, "B K"],
    bf16: bool = False,
    parts: int = 1,
    loss_of: Callable = F.cross_entropy,
) -> Float[Tensor, ""]:
    """Fresh gradients of the mean loss in the parameters' .grad; the loss itself, which stays on the device.

    The batch is computed in `parts`, one after the other, as equal as can be: less memory for the same gradients.
    For a DistributedDataParallel model the gradients are those of the joint batch of all processes.
    """
    model.zero_grad(set_to_none=True)
    total = torch.zeros((), device=images.device)
    pieces = list(zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True))
    for i, (some, wanted) in enumerate(pieces):
        last = i == len(pieces) - 1
        # The processes exchange their gradients once a batch.
        with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext():
            with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
                logits = model(some)
            loss = loss_of(logits.float(), wanted) * (len(some) / len(images))
            loss.backward()
        total += loss.detach()
    return total


def compute_gradients(
    model: nn.Module, images: Float[Tensor, "B 3 H W"], targets: Float[Tensor, "B K"], bf16: bool = False
) -> float:
    """Fresh gradients of the mean cross-entropy in the parameters' .grad; returns the loss."""
    return accumulate_gradients(model, images, targets, bf16).item()


def to_device(x: Shaped[Tensor, "..."], device: torch.device) -> Shaped[Tensor, "..."]:
    """A copy on the device, which a GPU fetches while the process goes on."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
