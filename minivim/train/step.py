"""What one step of training is made of: its random numbers, its images, its learning rate, its gradients."""

import hashlib
import math
import re
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


def layer_of(name: str, model: Backbone) -> int:
    """A parameter's layer by timm's `group_matcher`: 0 the embedding, then the blocks, then last norm and head."""
    matcher, depth = model.group_matcher(), len(model.blocks)
    if re.match(matcher["stem"], name):
        return 0
    for pattern, order in matcher["blocks"]:
        found = re.match(pattern, name)
        if found:
            return min(int(found[1]) if order is None else order[0], depth) + 1
    return depth + 1


def decay_groups(model: Backbone, weight_decay: float, layer_decay: float = 1.0) -> list[dict]:
    """AdamW's groups: what decays, then what must not (A_log, D, biases, norms, embeddings), as the model says.

    With a layer_decay below 1 both are split by layer; lr_scale, layer_decay^(layers above), is what its learning rate
    is a multiple of (BEiT, arXiv 2106.08254). Parameters that ask for no gradient are in none.
    """
    spared, top = model.no_weight_decay(), len(model.blocks) + 1
    groups: dict[tuple, list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (name in spared, layer_decay ** (top - layer_of(name, model)))
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "weight_decay": 0.0 if is_spared else weight_decay, "lr_scale": scale}
        for (is_spared, scale), parameters in sorted(groups.items(), key=lambda item: item[0])
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
