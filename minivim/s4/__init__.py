"""State-space layers (B, L, H) -> (B, L, H) that run as a convolution or as a recurrence: LSSL, S4, DSS, S4D.

Each of the H channels is a linear system of its own, N real states, step size delta:

    h[t] = A_bar h[t-1] + B_bar u[t]        y[t] = C h[t] + D u[t]        h[-1] = 0

`forward` convolves u with the kernel K[k] = C A_bar^k B_bar by FFT; `step` takes one token at a time. They differ in
what A may be, and so in how K is computed:

    LSSL    HiPPO-LegS, dense and fixed          powers of A_bar                         arXiv 2110.13985
    S4      diagonal minus rank one              generating function, Cauchy, Woodbury   arXiv 2111.00396
    DSS     diagonal, shared by all channels     sums of powers                          arXiv 2203.14343
    S4D     diagonal                             sums of powers                          arXiv 2206.11893

and S4ND, (B, H, W, C) -> (B, H, W, C), two of S4D's systems, one along each side of an image (arXiv 2210.06583).

Eigenvalues have the real part -exp(.), so every system is stable whatever is learned. Kernels and states are computed
in float64 (complex128): |A_bar| is close to 1, and the roundings of a thousand steps add up.
"""

from minivim.s4.layers import DSS, S4, S4D
from minivim.s4.lssl import LSSL
from minivim.s4.nd import S4ND

__all__ = ["DSS", "LSSL", "S4", "S4D", "S4ND"]
