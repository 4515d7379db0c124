"""Answers to the exercises of chapter 05 as learners give them, and the hint that each must get."""

import math

import torch
import torch.nn.functional as F

from minivim import selective_scan


def steps(mix, skip, reset):
    return lambda tokens: torch.tensor([{"mix": mix, "skip": skip, "reset": reset}[token] for token in tokens])


def project(u, x_weight, dt_weight, dt_bias, N, order=(0, 1, 2), bend=F.softplus, late_bias=False):
    """select with the slips that learners make: rows in another order, another nonlinearity, a late bias."""
    R = dt_weight.shape[1]
    parts = F.linear(u, x_weight).split([[R, N, N][index] for index in order], dim=-1)
    dt, B, C = (parts[order.index(index)] for index in range(3))
    if late_bias:
        return bend(F.linear(dt, dt_weight)) + dt_bias, B, C
    return bend(F.linear(dt, dt_weight, dt_bias)), B, C


def loop(u, delta, A, B, C, step):
    """y of a scan whose step(h, x, d, B, u) gives the next state; x = delta A."""
    h, y = torch.zeros_like(u[:, 0, :, None] * A), []
    for t in range(u.shape[1]):
        d, u_t = delta[:, t, :, None], u[:, t, :, None]
        h = step(h, d * A, d, B[:, t, None], u_t)
        y.append((h * C[:, t, None]).sum(-1))
    return torch.stack(y, dim=1)


def wrong_scan(step):
    return lambda *given: loop(*given, step)


def read_first(u, delta, A, B, C):
    h, y = torch.zeros_like(u[:, 0, :, None] * A), []
    for t in range(u.shape[1]):
        y.append((h * C[:, t, None]).sum(-1))
        h = torch.exp(delta[:, t, :, None] * A) * h + delta[:, t, :, None] * B[:, t, None] * u[:, t, :, None]
    return torch.stack(y, dim=1)


def conv(window, x, weight, bias, bend=F.silu, flip=False, following=None):
    inputs = torch.cat((window, x[:, None]), dim=1)
    taps = weight.T.flip(0) if flip else weight.T
    y = bend((inputs * taps).sum(1) + bias)
    return y, inputs[:, 1:] if following is None else following(inputs)


def matrix(delta, A, B, C, first=1, last=1, writes=None, upper=False, sign=1):
    L = len(delta)
    M = torch.zeros(L, L, dtype=torch.float64)
    total = torch.cat((torch.zeros(1, dtype=torch.float64), delta.cumsum(0)))
    for t in range(L):
        for s in range(L if upper else t + 1):
            passed = total[t + last] - total[s + first]
            own = delta[s] if writes is None else writes(t, s)
            M[t, s] = (C[t] * torch.exp(sign * A * passed) * own * B[s]).sum()
    return M


WRONG = {
    "05.1": [
        (steps(0.5, 0.0, 1.0), "these are the shares"),
        (steps(1.0, 0.0, 20.0), "63 %; one half|63 % of the token"),
        (steps(0.5, 0.0, 20.0), "39 %"),
        (steps(math.log(2), 20.0, 0.0), "skip and reset are swapped"),
        (steps(math.log(2), 0.0, 1.0), "resets only 63 %"),
        (steps(math.log(2), 1e-3, 7.0), "must count for nothing"),
        (steps(0.69, 0.0, 7.0), "in two digits"),
        (steps(0.0, 0.0, 10.0), "mix is one half of each"),
        (steps(0.0, math.log(2), 10.0), "mix and skip are swapped"),
        (steps(-math.log(2), 0.0, 10.0), "never negative"),
        (lambda tokens: 10.0, "yours has shape"),
    ],
    "05.2": [
        (lambda delta, A: math.log(2) / (delta * A), "take |A||negative"),
        (lambda delta, A: 1 / (delta * abs(A)), "log 2 is missing"),
        (lambda delta, A: math.exp(delta * A), "what one token leaves"),
        (lambda delta, A: math.log(2) / abs(A), "delta is missing"),
        (lambda delta, A: math.log(2) / delta, "A is missing"),
        (lambda delta, A: math.log(2) / delta * abs(A), "divide by both"),
        (lambda delta, A: math.log10(2) / (delta * abs(A)), "natural"),
        (lambda delta, A: float(math.ceil(math.log(2) / (delta * abs(A)))), "whole number"),
    ],
    "05.3": [
        (lambda g: -math.log(1 - g), "this is the step size"),
        (lambda g: 1 / (1 + math.exp(-g)), "the way back"),
        (lambda g: math.log(math.exp(g) - 1), "for the step size g"),
        (lambda g: math.log((1 - g) / g), "the sign"),
        (lambda g: g / (1 - g), "odds"),
        (lambda g: math.log(-math.log(1 - g)), "this is log delta"),
        (lambda g: math.log(g), "this is log g"),
        (lambda g: math.log(1 + math.exp(g)), "softplus of g"),
        (lambda g: math.log10(g / (1 - g)), "natural"),
    ],
    "05.4": [
        (lambda E, N, R: E * (R + 2 * N) + R * E + E * N + E, "bias of W_dt, or D"),
        (lambda E, N, R: E * (R + N) + R * E + E + E * N + E, "or one N of R"),
        (lambda E, N, R: E * (R + 2 * N) + E * E + E + E * N + E, "what the rank saves"),
        (lambda E, N, R: E * (R + 2 * N) + R * E + E + E, "E N numbers are missing: A_log"),
        (lambda E, N, R: E * (R + 2 * N) + R * E + E + E * N * N + E, "no .N, N. matrix"),
        (lambda E, N, R: E * (R + 2 * N) + R * E + E + N + E, "for each of the E channels"),
        (lambda E, N, R: E * 2 * N + R * E + E + E * N + E, "R E numbers are missing"),
        (lambda E, N, R: E * (R + 2 * N) + E + E * N + E, "R E numbers are missing"),
        (lambda E, N, R: (E + 1) * (R + 2 * N) + R * E + E + E * N + E, "W_x has no bias"),
    ],
    "05.5": [
        (lambda *given: project(*given, bend=lambda raw: raw), "softplus is missing"),
        (lambda *given: project(*given, late_bias=True), "bias comes before softplus"),
        (lambda *given: project(*given, bend=torch.exp), "exp in place"),
        (lambda *given: project(*given, order=(0, 2, 1)), "B and C are swapped"),
        (lambda *given: project(*given, order=(1, 2, 0)), "in this order"),
        (lambda *given: project(*given, bend=torch.relu), "ReLU"),
        (lambda *given: project(*given)[0], "must be a tuple of 3 values"),
        (lambda *given: (project(*given)[0], *map(F.softplus, project(*given)[1:])), "either sign"),
    ],
    "05.6": [
        (wrong_scan(lambda h, x, d, B, u: torch.exp(x) * h + torch.expm1(x) / (x / d) * B * u), "zero-order hold"),
        (wrong_scan(lambda h, x, d, B, u: torch.exp(x) * h + B * u), "delta is missing in what is written"),
        (wrong_scan(lambda h, x, d, B, u: x * h + d * B * u), "the exponential is missing"),
        (wrong_scan(lambda h, x, d, B, u: (1 + x) * h + d * B * u), "not Euler's"),
        (wrong_scan(lambda h, x, d, B, u: torch.exp(-x) * h + d * B * u), "wrong sign"),
        (wrong_scan(lambda h, x, d, B, u: torch.exp(x / d) * h + d * B * u), "delta is missing in the exponent"),
        (wrong_scan(lambda h, x, d, B, u: torch.exp(x) * (h + d * B * u)), "must not fade in the same step"),
        (lambda *given: selective_scan(*given, backend="reference") / given[2].shape[1], "the mean over the N states"),
        (read_first, "read before the token is written"),
        (lambda u, delta, A, B, C: selective_scan(u, delta, A, C, B, backend="reference"), "B and C are swapped"),
        (lambda *given: loop(*given, lambda h, x, d, B, u: d * B * u + 0 * h), "not carried on"),
    ],
    "05.7": [
        (lambda *given: conv(*given, flip=True), "weights are reversed"),
        (lambda *given: conv(*given, bend=lambda x: x), "SiLU is missing"),
        (lambda *given: conv(*given, bend=torch.sigmoid), "this is a sigmoid"),
        (lambda *given: conv(*given, following=lambda inputs: inputs[:, :-1]), "not moved on"),
        (lambda *given: conv(*given, following=lambda inputs: inputs), "shape"),
        (lambda *given: conv(*given, following=lambda inputs: inputs[:, 1:].flip(1)), "newest input must be last"),
        (lambda window, x, weight, bias: conv(window, x, weight, 0 * bias), "the bias is missing"),
        (
            lambda *given: conv(*given, following=lambda inputs: torch.cat((inputs[:, -1:], inputs[:, :-2]), 1)),
            "the newest enters at the end",
        ),
    ],
    "05.8": [
        (lambda *given: matrix(*given, first=0), "starts at s . 1"),
        (lambda *given: matrix(*given, writes=lambda t, s: 1.0), r"delta\[s\] is missing"),
        (lambda delta, A, B, C: matrix(delta, A, B, C, writes=lambda t, s: delta[t]), r"not with delta\[t\]"),
        (lambda delta, A, B, C: matrix(delta, A, C, B), "B and C are swapped"),
        (lambda *given: matrix(*given).T, "transposed"),
        (lambda *given: matrix(*given, upper=True), "above the diagonal"),
        (lambda *given: matrix(*given).tril(-1), "the diagonal is missing"),
        (lambda *given: matrix(*given, sign=-1), "wrong sign"),
    ],
    "05.9": [
        (lambda first, A: first[..., None] * A / A[:, :1], "belongs into the exponent"),
        (lambda first, A: first[..., None] ** (A[:, :1] / A), "upside down"),
        (lambda first, A: first[..., None] ** torch.arange(1, A.shape[1] + 1), "right only while A is -1"),
        (lambda first, A: first[..., None] ** A, "divide A by"),
        (lambda first, A: first[..., None] ** -A, "right only while A.:, 0. is -1"),
        (lambda first, A: torch.exp(first[..., None] * A), "not delta"),
        (lambda first, A: first.log()[..., None] * (A / A[:, :1]), "the exponential is missing"),
        (lambda first, A: first[..., None].expand(*first.shape, A.shape[1]), "the same for all states"),
    ],
}
