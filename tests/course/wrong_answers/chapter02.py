"""Answers to the exercises of chapter 02 as learners give them, and the hint that each must get."""

import math

import torch
import torch.nn.functional as F

from minivim.discretize import discretize


def bilinear_by_numbers(A, B, delta):
    identity = torch.eye(len(A), dtype=A.dtype)
    new = identity - delta / 2 * A
    return (identity + delta / 2 * A) / new, torch.linalg.solve(new, delta * B)


def bilinear_upside_down(A, B, delta):
    identity = torch.eye(len(A), dtype=A.dtype)
    new = identity + delta / 2 * A
    return torch.linalg.solve(new, identity - delta / 2 * A), torch.linalg.solve(new, delta * B)


def bilinear_not_halved(A, B, delta):
    identity = torch.eye(len(A), dtype=A.dtype)
    new = identity - delta * A
    return torch.linalg.solve(new, identity + delta * A), torch.linalg.solve(new, delta * B)


def bilinear_plain_B(A, B, delta):
    identity = torch.eye(len(A), dtype=A.dtype)
    return torch.linalg.solve(identity - delta / 2 * A, identity + delta / 2 * A), delta * B


def bilinear_with_ones(A, B, delta):
    new = 1 - delta / 2 * A
    return torch.linalg.solve(new, 1 + delta / 2 * A), torch.linalg.solve(new, delta * B)


def alpha_step(A, alpha, steps):
    x = A / steps
    return (1 + (1 - alpha) * x) / (1 - alpha * x)


def order_of_one_step(A, alpha, steps):
    first, second = (abs(alpha_step(A, alpha, n) - math.exp(A / n)) for n in (steps, 2 * steps))
    return math.log2(first / second)


def order_as_ratio(A, alpha, steps):
    first, second = (abs(alpha_step(A, alpha, n) ** n - math.exp(A)) for n in (steps, 2 * steps))
    return first / second


def order_same_step_size(A, alpha, steps):
    first, second = (abs(alpha_step(A, alpha, steps) ** n - math.exp(A)) for n in (steps, 2 * steps))
    return math.log2(first / second)


def order_alpha_swapped(A, alpha, steps):
    first, second = (abs(alpha_step(A, 1 - alpha, n) ** n - math.exp(A)) for n in (steps, 2 * steps))
    return math.log2(first / second)


def zoh_without_delta_at_zero(A, B, delta):
    return math.exp(delta * A), B * (math.exp(delta * A) - 1) / A if A else B


def zoh_zero_at_zero(A, B, delta):
    return math.exp(delta * A), B * (math.exp(delta * A) - 1) / A if A else 0.0


def exact_above(limit, A, delta):
    return math.expm1(delta * A) / A if abs(delta * A) > limit else delta


WRONG = {
    "02.1": [
        (lambda A, B, delta, h, u: h + A * h + B * u, "multiplied by delta"),
        (lambda A, B, delta, h, u: delta * (A * h + B * u), "this is the change"),
        (lambda A, B, delta, h, u: h + delta * A * h, "the input is missing"),
        (lambda A, B, delta, h, u: h + delta * A * h + B * u, "delta belongs to the whole slope"),
        (lambda A, B, delta, h, u: h + delta * (A * h + u), "B is missing"),
        (lambda A, B, delta, h, u: h + delta * (u - h), "for A = -1 and B = 1 only"),
        (lambda A, B, delta, h, u: (h + delta * B * u) / (1 - delta * A), "backward Euler"),
        (lambda A, B, delta, h, u: 32.0, r"yours 32, expected 11\.8"),
    ],
    "02.2": [
        (lambda A, B, delta: (math.exp(delta * A), delta * B), "Euler's delta B"),
        (lambda A, B, delta: (math.exp(delta * A), (math.exp(delta * A) - 1) / A), "lacks B"),
        (lambda A, B, delta: (math.exp(delta * A), (math.exp(delta * A) - 1) / A * B), "ZeroDivisionError"),
        (lambda A, B, delta: (math.exp(-delta * A), (math.exp(delta * A) - 1) / A * B), "with a plus"),
        (lambda A, B, delta: (math.exp(A), (math.exp(A) - 1) / A * B), "delta is missing in the exponent"),
        (lambda A, B, delta: (math.exp(delta * A), (math.exp(delta * A) - 1) * B), "must be divided by A"),
        (lambda A, B, delta: (math.exp(delta * A), math.expm1(delta * A) / (delta * A) * B), "not by delta A"),
        (lambda A, B, delta: (math.exp(delta * A), exact_above(0.1, A, delta) * B), r"given A = -0\.02"),
        (zoh_without_delta_at_zero, "delta, not 1"),
        (zoh_zero_at_zero, "the integral of exp\\(0\\) over the step is delta"),
    ],
    "02.3": [
        (order_of_one_step, "after a single step"),
        (order_as_ratio, "logarithm to base 2"),
        (order_same_step_size, "ends at time 2"),
        (order_alpha_swapped, "share of the new state"),
        (lambda A, alpha, steps: 2.0 if alpha == 0.5 else 1.0, "expected 1\\.0"),
    ],
    "02.4": [
        (bilinear_by_numbers, "number by number"),
        (bilinear_upside_down, "the inverse belongs to I - delta/2 A"),
        (bilinear_not_halved, "must be halved on both sides"),
        (lambda A, B, delta: discretize(A.T, B, delta, "bilinear"), "you used A transposed"),
        (bilinear_plain_B, "B_bar lacks the factor"),
        (bilinear_with_ones, "I is torch.eye"),
    ],
    "02.5": [
        (lambda a: max(0.0, (-2 * a.real / a.abs() ** 2).max().item()), "the smallest limit counts"),
        (lambda a: (2 / a.abs()).min().item(), "for real a only"),
        (lambda a: (-2 / a.real).min().item(), "the imaginary part counts"),
        (lambda a: max(0.0, (-2 * a.real / a.abs() ** 2)[a.abs().argmax()].item()), "nearer to 0 can set the limit"),
        (lambda a: (-2 * a.real / a.abs() ** 2).clamp(min=0).min().item(), "NaN"),
        (lambda a: (-2 * a.real / a.abs() ** 2).min().item(), "no step is stable"),
    ],
    "02.6": [
        (lambda A_log, tokens: torch.log(torch.expm1(math.log(2) / (A_log.abs() * tokens))), "you used A_log itself"),
        (
            lambda A_log, tokens: torch.log(torch.expm1(math.log(2) / (-torch.exp(A_log) * tokens))),
            r"\(2\.8\) has \|A\|",
        ),
        (lambda A_log, tokens: torch.log(torch.expm1(1 / (torch.exp(A_log) * tokens))), "ln 2 is missing"),
        (lambda A_log, tokens: math.log(2) / (torch.exp(A_log) * tokens), "softplus must still be undone"),
        (lambda A_log, tokens: torch.log(math.log(2) / (torch.exp(A_log) * tokens)), "the logarithm alone"),
        (lambda A_log, tokens: F.softplus(math.log(2) / (torch.exp(A_log) * tokens)), "undone, not applied"),
    ],
    "02.7": [
        (lambda A_bar, B_bar, factor: (A_bar**factor, factor * B_bar), "with Euler only"),
        (lambda A_bar, B_bar, factor: (A_bar**factor, B_bar), "B_bar must change, too"),
        (lambda A_bar, B_bar, factor: (factor * A_bar, factor * B_bar), "a power, not a product"),
        (
            lambda A_bar, B_bar, factor: (A_bar**factor, B_bar * (A_bar - 1) / (A_bar**factor - 1)),
            "the fraction is upside down",
        ),
    ],
}
