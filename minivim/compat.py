"""The selective scan under mamba_ssm's name, argument order and layout (batch, channels, time): a drop-in."""

import torch
from jaxtyping import Float
from torch import Tensor

from minivim.ops import selective_scan


def selective_scan_fn(
    u: Float[Tensor, "B E L"],
    delta: Float[Tensor, "B E L"],
    A: Float[Tensor, "E N"],
    B: Float[Tensor, "B *G N L"],
    C: Float[Tensor, "B *G N L"],
    D: Float[Tensor, " E"] | None = None,
    z: Float[Tensor, "B E L"] | None = None,
    delta_bias: Float[Tensor, " E"] | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Float[Tensor, "B E L"] | tuple[Float[Tensor, "B E L"], Float[Tensor, "B E N"]]:
    """`mamba_ssm.ops.selective_scan_interface.selective_scan_fn` on any device, through `minivim.selective_scan`.

    u, delta, z (B, E, L); A (E, N), real; D, delta_bias (E,);
    B, C (B, N, L), or (B, G, N, L) for G groups of E / G channels.
    Returns out (B, E, L) in u's dtype, with return_last_state also the last state (B, E, N).
    Raises TypeError or ValueError for complex A, B or C, for B or C without time, for channels not divisible by G.
    """
    for name, x in (("A", A), ("B", B), ("C", C)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is a {type(x).__name__}; it must be a tensor")
        if x.is_complex():
            raise TypeError(f"{name} has dtype {x.dtype}; complex {name} is not supported, it must be real")
    for name, x in (("B", B), ("C", C)):
        if x.ndim not in (3, 4):
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be (B, N, L) or (B, G, N, L)")
    B, C = (x if x.ndim == 4 else x[:, None] for x in (B, C))
    groups, channels = B.shape[1], A.shape[0]
    if C.shape[1] != groups:
        raise ValueError(f"C has {C.shape[1]} groups; it must have as many as B, which has {groups}")
    if channels % groups:
        raise ValueError(f"B has {groups} groups; their number must divide the {channels} channels of A")
    width = channels // groups
    results = []
    for g in range(groups):
        own = slice(g * width, (g + 1) * width)
        u_g, delta_g, z_g = (None if x is None else x[:, own].transpose(1, 2) for x in (u, delta, z))
        D_g, bias_g = (None if x is None else x[own] for x in (D, delta_bias))
        B_g, C_g = B[:, g].transpose(1, 2), C[:, g].transpose(1, 2)
        results.append(
            selective_scan(u_g, delta_g, A[own], B_g, C_g, D_g, z_g, bias_g, delta_softplus, return_last_state=True)
        )
    out = torch.cat([out.transpose(1, 2) for out, _ in results], dim=1)
    return (out, torch.cat([last for _, last in results], dim=1)) if return_last_state else out
