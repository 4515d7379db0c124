"""A slow Vim in the official code's terms: its options, its names, plain loops, nothing of ours; for several tests."""

import torch
import torch.nn.functional as F

# The official constructor's defaults, but for the sizes.
DEFAULTS = {
    "img_size": 16, "patch_size": 4, "stride": 4, "depth": 2, "embed_dim": 16, "d_state": 4, "channels": 3,
    "num_classes": 5, "norm_epsilon": 1e-5, "final_pool_type": "mean", "if_abs_pos_embed": True, "bimamba_type": "v2",
    "if_cls_token": True, "if_divide_out": True, "use_double_cls_token": False, "use_middle_cls_token": True,
}  # fmt: skip


def official_state(seed: int = 0, **options) -> dict[str, torch.Tensor]:
    """Random weights, none at a special value, under the official names."""
    o, generator, state = {**DEFAULTS, **options}, torch.Generator().manual_seed(seed), {}

    def add(name: str, *shape: int, scale: float = 0.3, shift: float = 0.0) -> None:
        state[name] = scale * torch.randn(*shape, generator=generator) + shift

    D, E, N = o["embed_dim"], 2 * o["embed_dim"], o["d_state"]
    R, P, patches = -(-D // 16), o["patch_size"], ((o["img_size"] - o["patch_size"]) // o["stride"] + 1) ** 2
    tokens = (2 if o["use_double_cls_token"] else 1) if o["if_cls_token"] else 0
    if tokens == 2:
        add("cls_token_head", 1, 1, D)
        add("cls_token_tail", 1, 1, D)
    elif tokens:
        add("cls_token", 1, 1, D)
    if o["if_abs_pos_embed"]:
        add("pos_embed", 1, patches + tokens, D)
    add("patch_embed.proj.weight", D, o["channels"], P, P)
    add("patch_embed.proj.bias", D)
    for layer in range(o["depth"]):
        mixer = f"layers.{layer}.mixer."
        for b in ("", "_b") if o["bimamba_type"] == "v2" else ("",):
            add(f"{mixer}A{b}_log", E, N)
            add(f"{mixer}D{b}", E, shift=1.0)
            add(f"{mixer}conv1d{b}.weight", E, 1, 4)
            add(f"{mixer}conv1d{b}.bias", E)
            add(f"{mixer}x_proj{b}.weight", R + 2 * N, E)
            add(f"{mixer}dt_proj{b}.weight", E, R)
            add(f"{mixer}dt_proj{b}.bias", E, shift=-2.0)
        add(f"{mixer}in_proj.weight", 2 * E, D)
        add(f"{mixer}out_proj.weight", D, E)
        add(f"layers.{layer}.norm.weight", D, shift=1.0)
    add("norm_f.weight", D, shift=1.0)
    add("head.weight", o["num_classes"], D)
    add("head.bias", o["num_classes"])
    return state


def one_direction(w: dict, b: str, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Convolution, selection, recurrence and gate of one direction on (B, L, E), from left to right."""
    kernel = w[f"conv1d{b}.weight"]
    u = F.conv1d(F.pad(x.transpose(1, 2), (kernel.shape[-1] - 1, 0)), kernel, w[f"conv1d{b}.bias"], groups=len(kernel))
    u = F.silu(u).transpose(1, 2)
    A, R = -torch.exp(w[f"A{b}_log"]), w[f"dt_proj{b}.weight"].shape[1]
    dt, B, C = (u @ w[f"x_proj{b}.weight"].T).split([R, A.shape[1], A.shape[1]], dim=-1)
    delta = F.softplus(dt @ w[f"dt_proj{b}.weight"].T + w[f"dt_proj{b}.bias"])
    h, steps = u.new_zeros(len(u), *A.shape), []
    for t in range(u.shape[1]):
        h = torch.exp(delta[:, t, :, None] * A) * h + (delta * u)[:, t, :, None] * B[:, t, None]
        steps.append((h * C[:, t, None]).sum(-1) + w[f"D{b}"] * u[:, t])
    return torch.stack(steps, dim=1) * F.silu(z)


def official_mixer(w: dict, x: torch.Tensor, o: dict) -> torch.Tensor:
    """One or two directions, their sum halved where if_divide_out says so."""
    x, z = (x @ w["in_proj.weight"].T).chunk(2, dim=-1)
    y = one_direction(w, "", x, z)
    if o["bimamba_type"] == "v2":
        y = y + one_direction(w, "_b", x.flip(1), z.flip(1)).flip(1)
        y = y / 2 if o["if_divide_out"] else y
    return y @ w["out_proj.weight"].T


def official_forward(state: dict, image: torch.Tensor, **options) -> torch.Tensor:
    """What the official model with these options computes in evaluation, in float64."""
    o, w, image = {**DEFAULTS, **options}, {name: value.double() for name, value in state.items()}, image.double()
    x = F.conv2d(image, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=o["stride"])
    x = x.flatten(2).transpose(1, 2)
    M, places = x.shape[1], []
    if o["if_cls_token"] and o["use_double_cls_token"]:
        places = [0, M + 1]
        x = torch.cat(
            (w["cls_token_head"].expand(len(x), -1, -1), x, w["cls_token_tail"].expand(len(x), -1, -1)), dim=1
        )
    elif o["if_cls_token"]:
        places = [M // 2 if o["use_middle_cls_token"] else 0]
        x = torch.cat((x[:, : places[0]], w["cls_token"].expand(len(x), -1, -1), x[:, places[0] :]), dim=1)
    x = x + w["pos_embed"] if o["if_abs_pos_embed"] else x

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / torch.sqrt(x.square().mean(-1, keepdim=True) + o["norm_epsilon"]) * weight

    for layer in range(o["depth"]):
        prefix = f"layers.{layer}.mixer."
        mixer = {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}
        x = x + official_mixer(mixer, norm(x, w[f"layers.{layer}.norm.weight"]), o)
    x = norm(x, w["norm_f.weight"])
    if places:
        x = x[:, places].mean(dim=1)
    elif o["final_pool_type"] == "mean":
        x = x.mean(dim=1)
    elif o["final_pool_type"] == "none":
        x = x[:, -1]
    logits = x @ w["head.weight"].T + w["head.bias"]
    return logits.amax(dim=1) if o["final_pool_type"] == "max" else logits
