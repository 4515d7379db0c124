"""Chapter 05, selection: the checkers."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from minivim.course.exercises.checking import Wrong, compare, demand, exercise
from minivim.ops import selective_scan


def _normal(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers, the same for everybody, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _steps(*shape: int, seed: int) -> Tensor:
    """Step sizes between 0.05 and 1."""
    return 0.05 + 0.95 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _row(found: object, length: int, what: str) -> Tensor:
    """What was returned, as `length` numbers in float64; Wrong if it is anything else."""
    try:
        row = torch.as_tensor(found, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"{what}: yours is a {type(found).__name__}; it must be a tensor of {length} numbers") from None
    demand(row.shape == (length,), f"{what}: yours has shape {tuple(row.shape)}; it must be ({length},)")
    return row


@exercise("05.1", "Hold what is marked")
def choose_delta(answer: Callable) -> None:
    """Any step sizes that skip, mix and reset; what is compared is the share of the token."""
    shares = {"mix": 0.5, "skip": 0.0, "reset": 1.0}
    for tokens in (["skip", "mix", "reset", "skip", "mix"], ["reset", "mix"], ["mix", "skip", "skip"]):
        delta = _row(answer(list(tokens)), len(tokens), "delta")
        demand(not delta.isnan().any(), "delta: yours holds NaN (not a number)")
        demand((delta >= 0).all(), f"delta: yours holds {delta.min():.3g}; a step size is never negative")

        def share(mix: float, skip: float, reset: float, tokens: tuple = tuple(tokens)) -> Tensor:
            sizes = torch.tensor([{"mix": mix, "skip": skip, "reset": reset}[each] for each in tokens])
            return 1 - torch.exp(-sizes.double())

        half = math.log(2)
        causes = {
            "these are the shares g; the step size is -log(1 - g)": share(0.5, 0.0, 1.0),
            "a step of 0.5 lets in 39 % of the token; one half is log 2": share(0.5, 0.0, 20.0),
            "a step of 1 lets in 63 % of the token; one half is log 2": share(1.0, 0.0, 20.0),
            "a step of 1 resets only 63 %; for a thousandth it takes 7": share(half, 0.0, 1.0),
            "skip and reset are swapped: a small step leaves the state alone": share(half, 20.0, 0.0),
            "this is the logarithm to the base 10; the natural one is meant": share(math.log10(2), 0.0, 20.0),
            "0.69 is log 2 in two digits; take all of them: math.log(2)": share(0.69, 0.0, 20.0),
            "mix and skip are swapped: skip leaves the state alone": share(0.0, half, 20.0),
            "mix and reset are swapped": share(20.0, 0.0, half),
            "mix is one half of each; only skip leaves the state as it is": share(0.0, 0.0, 20.0),
            "log 1000 = 6.9 is for reset; one half is log 2": share(20.0, 0.0, 20.0),
        }
        expected = torch.tensor([shares[each] for each in tokens], dtype=torch.float64)
        what = "the share 1 - exp(-delta) of each token"
        given = f"tokens = {tokens}"
        compare(1 - torch.exp(-delta), expected, what, tolerance=1.01e-3, given=given, causes=causes)
        kept = 1 - torch.exp(-delta[torch.tensor([each == "skip" for each in tokens])])
        demand((kept < 1e-5).all(), "skip: your step still lets a little of the token in; it must count for nothing")


@exercise("05.2", "Half-life")
def half_life(answer: Callable) -> None:
    """log 2 / (delta |A|) for floats."""
    for delta, A in [(0.1, -1.0), (0.001, -3.0), (0.1, -16.0), (2.5, -0.4)]:
        tokens = math.log(2) / (delta * -A)
        causes = {
            "A is negative, a half-life is not: take |A|": -tokens,
            "this is the time until 1/e = 0.37 is left; log 2 is missing": 1 / (delta * -A),
            "this is what one token leaves, exp(delta A); how many tokens until one half?": math.exp(delta * A),
            "delta is missing: half-lives are counted in tokens": math.log(2) / -A,
            "A is missing: each state fades at its own rate": math.log(2) / delta,
            "this is log 2 times delta |A|; it must be divided": math.log(2) * delta * -A,
            "divide by both: log 2 / (delta |A|)": math.log(2) / delta * -A,
            "the logarithm is the natural one": math.log10(2) / (delta * -A),
            "a half-life need not be a whole number of tokens, it is not rounded down": float(math.floor(tokens)),
            "half is left after log 2 / (delta |A|), not after 0.5 / (delta |A|)": 0.5 / (delta * -A),
            "a half-life need not be a whole number of tokens": float(math.ceil(tokens)),
        }
        compare(answer(delta, A), tokens, "the half-life", given=f"delta = {delta}, A = {A}", causes=causes)


@exercise("05.3", "The raw number for a share")
def raw_number(answer: Callable) -> None:
    """log(g / (1 - g)) for floats."""
    for g in (0.9, 0.3, 0.02, 0.999):
        raw, delta = math.log(g / (1 - g)), -math.log(1 - g)
        causes = {
            "this is the step size; go on: which x has this softplus?": delta,
            "this is the share for the raw number g; the way back is asked for": 1 / (1 + math.exp(-g)),
            "this is the x for the step size g; from the share to the step it is -log(1 - g)": math.log(math.expm1(g)),
            "the sign is the other way round: more share, larger x": -raw,
            "the logarithm is the natural one": math.log10(g / (1 - g)),
            "the logarithm is the natural one, not to the base 2": math.log2(g / (1 - g)),
            "this is log(1 - g), the step size with a minus; go on from the step size": math.log(1 - g),
            "x is log(g / (1 - g)), with 1 - g below": math.log(g / (1 + g)),
            "this is log g; divide by 1 - g": math.log(g),
            "this is the odds g / (1 - g); take the logarithm": g / (1 - g),
            "this is log delta; softplus is undone by log(exp(delta) - 1)": math.log(delta),
            "softplus is undone by log(exp(delta) - 1), with a minus": math.log1p(math.exp(delta)),
            "this is softplus of g": math.log1p(math.exp(g)),
            "the step is -log(1 - g), not -log g": math.log(math.expm1(-math.log(g))),
        }
        compare(answer(g), raw, "x", given=f"g = {g}", causes=causes)


@exercise("05.4", "What selection costs")
def selective_parameters(answer: Callable) -> None:
    """x_proj, dt_proj with bias, A_log, D."""
    for E, N, R in [(64, 16, 5), (384, 16, 12), (10, 3, 4)]:
        count = E * (R + 2 * N) + R * E + E + E * N + E
        causes = {
            "E numbers are missing: the bias of W_dt, or D": count - E,
            "the bias of W_dt and D are missing: E numbers each": count - 2 * E,
            "E N numbers are missing: A_log, or one N of R + 2 N, since W_x has rows for B and for C": count - E * N,
            "W_x is missing": count - E * (R + 2 * N),
            "W_x has no bias": count + R + 2 * N,
            "W_x has rows for B and C, too: R + 2 N": count - 2 * E * N,
            "R E numbers are missing: W_x has R rows for dt, too, and W_dt is (E, R)": count - E * R,
            "W_dt is (E, R), not (E, E): that is what the rank saves": count - R * E + E * E,
            "A_log holds N numbers for each of the E channels": count - E * N + N,
            "A is no (N, N) matrix: a channel has N numbers": count - E * N + E * N * N,
            "D has one number for each of the E channels, not N numbers": count - E + N,
            "D has one number for each of the E channels, not one for all": count - E + 1,
            "the bias of W_dt has E numbers, one for each output": count - E + R,
            "D has one number for each channel, not for each state": count - E + E * N,
        }
        causes = {cause: number for cause, number in causes.items() if number != count}
        compare(answer(E, N, R), count, "the number of parameters", given=f"E = {E}, N = {N}, R = {R}", causes=causes)


@exercise("05.5", "Let the token choose")
def select(answer: Callable) -> None:
    """(softplus(W_dt dt + b), B, C)."""
    for batch, L, E, N, R, seed in [(2, 5, 6, 3, 2, 1), (1, 4, 8, 2, 3, 2), (3, 1, 4, 5, 1, 3)]:
        u, x_weight = _normal(batch, L, E, seed=seed), _normal(R + 2 * N, E, seed=seed + 10)
        dt_weight, dt_bias = _normal(E, R, seed=seed + 20), _normal(E, seed=seed + 30)
        dt, B, C = F.linear(u, x_weight).split([R, N, N], dim=-1)
        raw = F.linear(dt, dt_weight, dt_bias)
        delta = F.softplus(raw)
        last_B, last_C, last_dt = F.linear(u, x_weight).split([N, N, R], dim=-1)
        causes = {
            "softplus is missing: delta must be positive": (raw, B, C),
            "the bias comes before softplus": (F.softplus(F.linear(dt, dt_weight)) + dt_bias, B, C),
            "the bias of dt is missing": (F.softplus(F.linear(dt, dt_weight)), B, C),
            "exp in place of softplus": (raw.exp(), B, C),
            "a sigmoid in place of softplus": (raw.sigmoid(), B, C),
            "SiLU in place of softplus": (F.silu(raw), B, C),
            "ReLU in place of softplus: a step of exactly 0 could not be learned away": (raw.relu(), B, C),
            "B and C are swapped: the rows of B come before those of C": (delta, C, B),
            "the rows of x_weight are dt, B, C, in this order": (
                F.softplus(F.linear(last_dt, dt_weight, dt_bias)),
                last_B,
                last_C,
            ),
            "softplus is for delta only; B and C may have either sign": (delta, F.softplus(B), F.softplus(C)),
            "softplus comes after dt_weight, not before": (F.linear(F.softplus(dt), dt_weight, dt_bias), B, C),
            "softplus is applied twice": (F.softplus(delta), B, C),
        }
        given = f"batch = {batch}, L = {L}, E = {E}, N = {N}, R = {R}"
        found = answer(u, x_weight, dt_weight, dt_bias, N)
        compare(found, (delta, B, C), "(delta, B, C)", given=given, causes=causes)


def _loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, step: Callable) -> Tensor:
    """y of a scan whose `step(h, A_bar, delta, B, u)` gives (next state, what is read); all have N last."""
    h, y = torch.zeros_like(u[:, 0, :, None] * A), []
    for t in range(u.shape[1]):
        delta_t, u_t = delta[:, t, :, None], u[:, t, :, None]
        h, read = step(h, torch.exp(delta_t * A), delta_t, B[:, t, None], u_t)
        y.append((read * C[:, t, None]).sum(-1))
    return torch.stack(y, dim=1)


@exercise("05.6", "The selective scan")
def scan(answer: Callable) -> None:
    """The selective scan without skip and gate."""
    for batch, L, E, N, seed in [(2, 5, 3, 4, 1), (1, 7, 4, 2, 2), (3, 2, 2, 5, 3), (1, 1, 2, 3, 4)]:
        u, delta = _normal(batch, L, E, seed=seed), _steps(batch, L, E, seed=seed + 10)
        A = -0.2 - 2 * _steps(E, N, seed=seed + 20)
        B, C = _normal(batch, L, N, seed=seed + 30), _normal(batch, L, N, seed=seed + 40)
        given = (u, delta, A, B, C)

        def by(step: Callable, given: tuple = given) -> Tensor:
            return _loop(*given, lambda *each: (step(*each), step(*each)))

        expected = selective_scan(*given, backend="reference")
        causes = {
            "this is the paper's zero-order hold for B; (5.4) writes delta B u": by(
                lambda h, A_bar, d, B, u: A_bar * h + (A_bar - 1) * d / A_bar.log() * B * u
            ),
            "delta is missing in what is written: delta B u": by(lambda h, A_bar, d, B, u: A_bar * h + B * u),
            "u is missing in what is written: delta B u": by(lambda h, A_bar, d, B, u: A_bar * h + d * B),
            "B is missing in what is written: delta B u": by(lambda h, A_bar, d, B, u: A_bar * h + d * u + 0 * B),
            "the state is not carried on: h[t] starts from h[t - 1]": by(lambda h, A_bar, d, B, u: d * B * u + 0 * h),
            "the state does not fade: exp(delta A) is missing": by(lambda h, A_bar, d, B, u: h + d * B * u),
            "the exponential is missing: A_bar is exp(delta A)": by(
                lambda h, A_bar, d, B, u: A_bar.log() * h + d * B * u
            ),
            "A_bar is exp(delta A), not Euler's 1 + delta A": by(
                lambda h, A_bar, d, B, u: (1 + A_bar.log()) * h + d * B * u
            ),
            "delta is missing in the exponent": by(lambda h, A_bar, d, B, u: A_bar ** (1 / d) * h + d * B * u),
            "the exponent has the wrong sign: A is already negative": by(
                lambda h, A_bar, d, B, u: h / A_bar + d * B * u
            ),
            "what is written must not fade in the same step": by(lambda h, A_bar, d, B, u: A_bar * (h + d * B * u)),
            "the state is read before the token is written; read h[t], not h[t - 1]": _loop(
                *given, lambda h, A_bar, d, B, u: (A_bar * h + d * B * u, h)
            ),
            "this is the mean over the N states; the sum is asked for": expected / N,
            "B and C are swapped: write with B, read with C": selective_scan(u, delta, A, C, B, backend="reference"),
            "y = h C here, without the skip D u": expected + u,
            "C is missing: y[t] = h[t] C[t]": selective_scan(u, delta, A, B, torch.ones_like(C), backend="reference"),
            "the scan runs backwards": selective_scan(*given, reverse=True, backend="reference"),
        }
        causes = {cause: y for cause, y in causes.items() if not torch.allclose(y, expected)}
        sizes = f"batch = {batch}, L = {L}, E = {E}, N = {N}"
        compare(answer(*given), expected, "y", given=sizes, causes=causes)


@exercise("05.7", "The convolution, one token at a time")
def conv_step(answer: Callable) -> None:
    """(silu of the convolution, next window)."""
    for batch, E, K, seed in [(2, 3, 4, 1), (1, 5, 3, 2), (3, 2, 2, 3)]:
        window, x = _normal(batch, K - 1, E, seed=seed), _normal(batch, E, seed=seed + 10)
        weight, bias = _normal(E, K, seed=seed + 20), _normal(E, seed=seed + 30)
        inputs = torch.cat((window, x[:, None]), dim=1)
        linear = (inputs * weight.T).sum(1)
        y, following = F.silu(linear + bias), inputs[:, 1:]
        flipped = (inputs * weight.T.flip(0)).sum(1)
        causes = {
            "the weights are reversed: the last column belongs to the newest input": (
                F.silu(flipped + bias),
                following,
            ),
            "SiLU is missing": (linear + bias, following),
            "the bias is missing": (F.silu(linear), following),
            "the bias comes before SiLU": (F.silu(linear) + bias, following),
            "this is a sigmoid; SiLU is x times it": (torch.sigmoid(linear + bias), following),
            "this is GELU; SiLU is asked for": (F.gelu(linear + bias), following),
            "this is the mean over K; the sum is asked for": (F.silu(linear / K + bias), following),
            "the window comes first, the new input last: it gets the last column": (
                F.silu((torch.cat((x[:, None], window), dim=1) * weight.T).sum(1) + bias),
                following,
            ),
            "this is ReLU; SiLU is asked for": (F.relu(linear + bias), following),
            "the window has not moved on: leave out the oldest input, add the newest": (y, window),
            "the next window holds K inputs; the oldest is no longer needed": (y, inputs),
            "in the next window the newest input must be last": (y, following.flip(1)),
            "the oldest input stands first: it leaves at the front, and the newest enters at the end": (
                y,
                torch.cat((x[:, None], window[:, :-1]), dim=1),
            ),
            "the new input itself is missing from the convolution": (
                F.silu((window * weight.T[:-1]).sum(1) + bias),
                following,
            ),
            "the next window holds inputs, not outputs": (y, torch.cat((window[:, 1:], y[:, None]), dim=1)),
        }
        given = f"batch = {batch}, E = {E}, K = {K}"
        compare(answer(window, x, weight, bias), (y, following), "(y, next window)", given=given, causes=causes)


def _matrix(delta: Tensor, A: Tensor, B: Tensor, C: Tensor, first: int = 1, last: int = 1) -> Tensor:
    """(L, L, N): the terms of M[t, s], with delta[s + first .. t + last - 1] in the exponent; zero for s > t."""
    L = len(delta)
    M = torch.zeros(L, L, len(A), dtype=torch.float64)
    for t in range(L):
        for s in range(t + 1):
            M[t, s] = C[t] * torch.exp(A * delta[s + first : t + last].sum()) * delta[s] * B[s]
    return M


@exercise("05.8", "The matrix of a sequence")
def token_matrix(answer: Callable) -> None:
    """M (L, L) with y = M u for one channel."""
    for L, N, seed in [(5, 3, 1), (3, 4, 2), (1, 2, 3)]:
        delta, A = _steps(L, seed=seed), -0.2 - 2 * _steps(N, seed=seed + 10)
        B, C = _normal(L, N, seed=seed + 20), _normal(L, N, seed=seed + 30)
        terms = _matrix(delta, A, B, C)
        expected = terms.sum(-1)
        total = delta.cumsum(0)
        counts = torch.arange(L)[:, None] - torch.arange(L)
        fades = torch.exp(A * (total[:, None] - total)[..., None])  # (L, L, N)
        everywhere = (C[:, None] * fades * delta[:, None] * B).sum(-1)
        causes = {
            "the exponent starts at s + 1: what a token has just written has not faded": _matrix(
                delta, A, B, C, first=0
            ).sum(-1),
            "the exponent ends at t, not at t - 1": _matrix(delta, A, B, C, last=0).sum(-1),
            "delta[s] is missing: a token writes delta B u": (terms / delta[:, None]).sum(-1),
            "a token writes with its own delta[s], not with delta[t]": (
                terms / delta[:, None] * delta[:, None, None]
            ).sum(-1),
            "B and C are swapped: token s writes with B[s], token t reads with C[t]": _matrix(delta, A, C, B).sum(-1),
            "this is transposed: M[t, s] has the reader first": expected.T,
            "above the diagonal M is zero: nobody reads the future": everywhere,
            "the diagonal is missing: a token reads what it has just written": expected.tril(-1),
            "the fading is missing": (terms / fades).tril_().sum(-1) if L == N else (C @ (delta[:, None] * B).T).tril(),
            "the exponent has the wrong sign: A is already negative": (terms / fades**2).sum(-1),
            "the exponent holds the sum of delta, not the number of tokens": (
                (C[:, None] * torch.exp(A * counts[..., None]) * delta[:, None] * B).sum(-1).tril()
            ),
            "the sum of delta begins at s + 1, not at the first token": (
                (C[:, None] * torch.exp(A * total[:, None, None]) * delta[:, None] * B).sum(-1).tril()
            ),
            "this is the mean over the N states; the sum is asked for": terms.mean(-1),
            "a token writes its own B[s], not B[t]": (C[:, None] * fades * delta[:, None] * B[:, None]).sum(-1).tril(),
        }
        causes = {cause: M for cause, M in causes.items() if not torch.allclose(M, expected)}
        compare(answer(delta, A, B, C), expected, "M", given=f"L = {L}, N = {N}", causes=causes)


@exercise("05.9", "One number decides all")
def all_decays(answer: Callable) -> None:
    """first ** (A[:, n] / A[:, 0]) for every n."""
    for batch, L, E, N, seed in [(2, 3, 4, 5, 1), (1, 4, 2, 3, 2)]:
        delta, A = _steps(batch, L, E, seed=seed), -0.2 - 2 * _steps(E, N, seed=seed + 10)
        expected = torch.exp(delta[..., None] * A)
        first, ratio = expected[..., 0], A / A[:, :1]
        counted = torch.arange(1, N + 1, dtype=torch.float64)
        causes = {
            "the ratio belongs into the exponent: first ** (A[:, n] / A[:, 0])": first[..., None] * ratio,
            "the ratio is upside down: A[:, n] / A[:, 0]": first[..., None] ** (1 / ratio),
            "this is first ** (n + 1); it is right only while A is -1, -2, ...": first[..., None] ** counted,
            "this is first ** A; divide A by A[:, 0]": first[..., None] ** A,
            "this is first ** (-A); it is right only while A[:, 0] is -1": first[..., None] ** -A,
            "first is already exp(delta A[:, 0]), not delta": torch.exp(first[..., None] * A),
            "first is already exp(delta A[:, 0]); this takes it for delta A[:, 0]": torch.exp(first[..., None] * ratio),
            "state 0 is given: divide A by A[:, 0], not by the last": first[..., None] ** (A / A[:, -1:]),
            "this is delta A; the exponential is missing": delta[..., None] * A,
            "the same for all states: each has its own A[:, n]": first[..., None].expand_as(expected),
            "this is delta, not A_bar: go on with exp(delta A)": (first.log() / A[:, 0])[..., None].expand_as(expected),
        }
        sizes = f"batch = {batch}, L = {L}, E = {E}, N = {N}"
        compare(answer(first, A), expected, "A_bar", given=sizes, causes=causes)
