"""Chapter 02, from continuous to discrete: the checkers."""

import math
from collections.abc import Callable

import torch

from minivim.course.exercises.checking import compare, demand, exercise
from minivim.discretize import discretize, discretize_diagonal


def generator(seed: int) -> torch.Generator:
    """Random numbers that are the same for everybody."""
    return torch.Generator().manual_seed(seed)


def exact(A: float, delta: float) -> tuple[float, float]:
    """(A_bar, factor of B) of one state by ZOH, as floats."""
    A_bar, factor = discretize_diagonal(torch.tensor(A, dtype=torch.float64), delta)
    return A_bar.item(), factor.item()


@exercise("02.1", "One Euler step")
def euler_step(answer: Callable) -> None:
    """h + delta * (A h + B u) for floats."""
    for A, B, delta, h, u in [(-0.6, 1.5, 0.4, 10.0, 7.0), (-1.0, 1.0, 0.5, 64.0, 0.0), (-0.7, 2.0, 0.25, 3.0, -1.5)]:
        A_bar, factor = exact(A, delta)
        slope = A * h + B * u
        causes = {
            "the slope must be multiplied by delta": h + slope,
            "this is the change; the new state is the old state plus the change": delta * slope,
            "the input is missing: the slope is A h + B u": h + delta * A * h,
            "delta belongs to the whole slope, to A h and to B u": h + delta * A * h + B * u,
            "A and B are given; yours is right for A = -1 and B = 1 only": h + delta * (u - h),
            "B is missing": h + delta * (A * h + u),
            "this is the exact step, with the exponential; Euler takes the slope at the start": A_bar * h
            + factor * B * u,
            "this is backward Euler, with the slope at the new state": (h + delta * B * u) / (1 - delta * A),
        }
        given = f"A = {A}, B = {B}, delta = {delta}, h = {h}, u = {u}"
        compare(answer(A, B, delta, h, u), h + delta * slope, "the state after one step", given=given, causes=causes)


@exercise("02.2", "The exact step")
def zoh_step(answer: Callable) -> None:
    """(A_bar, B_bar) by zero-order hold for floats, also at A = 0."""
    for A, B, delta in [(-3.0, 2.0, 0.2), (-0.02, 1.5, 0.7), (0.4, -1.5, 1.1), (0.0, 2.0, 0.3)]:
        A_bar, factor = exact(A, delta)
        causes = {
            "B_bar is Euler's delta B; the integral of exp(s A) over the step is asked for": (A_bar, delta * B),
            "B_bar lacks B: it is the integral times B": (A_bar, factor),
            "A_bar is Euler's 1 + delta A; ZOH takes the exponential": (1 + delta * A, factor * B),
            "the exponent of A_bar is delta A, with a plus": (math.exp(-delta * A), factor * B),
            "delta is missing in the exponent": (math.exp(A), (math.exp(A) - 1) / A * B if A else delta * B),
            "B_bar has the wrong sign: it is (exp(delta A) - 1) / A times B": (A_bar, -factor * B),
        }
        if A:
            causes["exp(delta A) - 1 must be divided by A"] = A_bar, (A_bar - 1) * B
            causes["divide by A, not by delta A: the integral over the step grows with delta"] = (
                A_bar,
                factor * B / delta,
            )
        else:
            causes["for A = 0 the input still counts: the integral of exp(0) over the step is delta"] = A_bar, 0.0
            causes["delta is missing: for A = 0 the integral of exp(0) over the step is delta, not 1"] = A_bar, B
        given = f"A = {A}, B = {B}, delta = {delta}"
        compare(answer(A, B, delta), (A_bar, factor * B), "(A_bar, B_bar)", given=given, causes=causes)


def order_causes(A: float, alpha: float, steps: int) -> tuple[float, dict[str, float]]:
    """The measured order, and what the usual mistakes give."""

    def one_step(alpha: float, steps: int) -> float:
        value = torch.tensor(A, dtype=torch.float64)
        return discretize_diagonal(value, 1 / steps, "generalized_bilinear", alpha)[0].item()

    def error(alpha: float, steps: int) -> float:
        return abs(one_step(alpha, steps) ** steps - math.exp(A))

    def error_of_one_step(steps: int) -> float:
        return abs(one_step(alpha, steps) - math.exp(A / steps))

    ratio = error(alpha, steps) / error(alpha, 2 * steps)
    causes = {
        "this is the ratio of the errors; its logarithm to base 2 is asked for": ratio,
        "this is the natural logarithm; take the one to base 2": math.log(ratio),
        "the ratio is upside down: the error with few steps comes first": -math.log2(ratio),
        "both runs have the same number of steps": 0.0,
        "you compare after a single step; walk to time 1, with all steps": math.log2(
            error_of_one_step(steps) / error_of_one_step(2 * steps)
        ),
        "the second run keeps the step size of the first, so it ends at time 2; halve the step, too": math.log2(
            error(alpha, steps) / abs(one_step(alpha, steps) ** (2 * steps) - math.exp(A))
        ),
    }
    swapped = error(1 - alpha, steps) / error(1 - alpha, 2 * steps)
    causes["alpha is the share of the new state; you gave it to the old one"] = math.log2(swapped)
    return math.log2(ratio), causes


@exercise("02.3", "Measure an order")
def measured_order(answer: Callable) -> None:
    """log2 of error(steps) / error(2 steps) of the alpha rule at time 1."""
    for A, alpha, steps in [(-1.0, 0.0, 8), (-2.0, 1.0, 16), (-1.0, 0.5, 8), (0.7, 0.3, 10), (-1.5, 0.49, 100)]:
        expected, causes = order_causes(A, alpha, steps)
        given = f"A = {A}, alpha = {alpha}, steps = {steps}"
        compare(answer(A, alpha, steps), expected, "the order", given=given, causes=causes)


@exercise("02.4", "S4's rule")
def bilinear(answer: Callable) -> None:
    """(A_bar, B_bar) by the bilinear rule for matrices."""
    for seed, (N, M, delta) in enumerate([(1, 1, 0.5), (2, 1, 0.2), (4, 3, 0.7)]):
        A = torch.randn(N, N, dtype=torch.float64, generator=generator(seed)) - torch.eye(N, dtype=torch.float64)
        B = torch.randn(N, M, dtype=torch.float64, generator=generator(seed + 10))
        A_bar, B_bar = discretize(A, B, delta, "bilinear")
        identity, half = torch.eye(N, dtype=torch.float64), delta / 2 * A
        by_numbers = (identity + half) / (identity - half)
        causes = {
            "B_bar lacks the factor (I - delta/2 A)^-1": (A_bar, delta * B),
            "B_bar lacks delta": (A_bar, B_bar / delta),
            "B_bar takes the whole delta, only A takes half": (A_bar, B_bar / 2),
            "`/` divides number by number; use torch.linalg.solve for the inverse of a matrix": (by_numbers, B_bar),
            "`/` divides number by number, B by a matrix, too; use torch.linalg.solve": (
                by_numbers,
                delta * B[:, :1] / (identity - half),
            ),
            "`1 - delta / 2 * A` subtracts from every number of the matrix; I is torch.eye": (
                torch.linalg.solve(1 - half, 1 + half),
                torch.linalg.solve(1 - half, delta * B),
            ),
            "the inverse belongs to I - delta/2 A, the product to I + delta/2 A": (
                torch.linalg.solve(identity + half, identity - half),
                torch.linalg.solve(identity + half, delta * B),
            ),
            "this is backward Euler: both sides must take half of delta A": discretize(A, B, delta, "backward_euler"),
            "this is forward Euler; take half of delta A on each side": discretize(A, B, delta, "euler"),
            "this is ZOH": discretize(A, B, delta),
            "you used A transposed": discretize(A.mT, B, delta, "bilinear"),
            "delta A must be halved on both sides": (
                torch.linalg.solve(identity - 2 * half, identity + 2 * half),
                torch.linalg.solve(identity - 2 * half, delta * B),
            ),
        }
        given = f"A of shape {tuple(A.shape)}, B of shape {tuple(B.shape)}, delta = {delta}"
        compare(answer(A, B, delta), (A_bar, B_bar), "(A_bar, B_bar)", given=given, causes=causes)


@exercise("02.5", "The largest step")
def largest_euler_step(answer: Callable) -> None:
    """The smallest of -2 Re(a) / |a|^2, and 0 if one real part is not negative."""
    cases = [
        [-1.3],
        [-0.5 + 2j, -0.5 - 2j],
        [-0.7, -16],
        [-0.1 + 1j, -0.1 - 1j, -3 + 0.5j, -0.5],
        [-3, -1 + 4j, -1 - 4j],
    ]
    for values in [*cases, [-2 + 0.5j], [-1, 0.2 + 0.3j], [1j, -1j], [-1.3, 0]]:
        a = torch.tensor(values, dtype=torch.complex128)
        limits = -2 * a.real / a.abs() ** 2
        expected = limits.min().item() if bool((a.real < 0).all()) else 0.0
        causes = {
            "one eigenvalue does not fade by itself, so no step is stable: return 0.0": limits.min().item(),
            "all states must be stable, so the smallest limit counts": limits.max().item(),
            "2 / |a| is right for real a only; the disc is met earlier by complex ones": (2 / a.abs()).min().item(),
            "the imaginary part counts, too: |1 + delta a| takes both": (-2 / a.real).min().item(),
            "an eigenvalue nearer to 0 can set the limit: look at all of them": limits[a.abs().argmax()].item(),
            "a factor of 2 is missing": expected / 2,
            "|a| must be squared": (-2 * a.real / a.abs()).min().item(),
        }
        found = answer(a)
        compare(found, expected, "the limit", given=f"eigenvalues {values}", causes=causes)


@exercise("02.6", "A memory to order")
def softplus_input(answer: Callable) -> None:
    """The z with softplus(z) = ln 2 / (|A| tokens) and A = -exp(A_log)."""
    for A_log, tokens in [([0.3], 4.0), ([math.log(n) for n in (1, 2, 16)], 50.0), ([-1.0, 0.5], 7.5)]:
        A_log = torch.tensor(A_log, dtype=torch.float64)
        size = torch.exp(A_log)  # |A|
        delta = math.log(2) / (size * tokens)
        wrong_steps = {
            "A is -exp(A_log); you used A_log itself": math.log(2) / (A_log.abs() * tokens),
            "more tokens need a smaller step: divide by tokens": math.log(2) * tokens / size,
            "ln 2 is missing: exp(delta A) = 1/2, not 1/e": 1 / (size * tokens),
            "delta must depend on tokens": math.log(2) / size,
            "|A| stands below: a faster state needs a smaller step": math.log(2) * size / tokens,
        }
        causes = {cause: torch.log(torch.expm1(step)) for cause, step in wrong_steps.items()}
        causes["this is delta; softplus must still be undone"] = delta
        causes["softplus must be undone, not applied"] = torch.log1p(torch.exp(delta))
        causes["the logarithm alone does not undo softplus: solve delta = ln(1 + exp(z))"] = torch.log(delta)
        given = f"A_log = {[round(value, 3) for value in A_log.tolist()]}, tokens = {tokens}"
        found = answer(A_log, tokens)
        undefined = isinstance(found, torch.Tensor) and found.isnan().any()
        demand(not undefined, "z is NaN, as the logarithm of a negative number is; A is negative, but (2.8) has |A|")
        compare(found, torch.log(torch.expm1(delta)), "z", given=given, causes=causes)


@exercise("02.7", "Change the rate of a finished model")
def resample(answer: Callable) -> None:
    """The ZOH pair of a step `factor` times as long, from the pair alone."""
    for seed, factor in enumerate([2.0, 0.5, 1.7]):
        A = -0.2 - 3 * torch.rand(4, dtype=torch.float64, generator=generator(seed))
        B = torch.randn(4, dtype=torch.float64, generator=generator(seed + 10))
        (A_bar, gain), (longer, longer_gain) = (discretize_diagonal(A, step) for step in (0.3, 0.3 * factor))
        B_bar, wanted = gain * B, longer_gain * B
        shorter = A_bar ** (1 / factor)
        causes = {
            "A_bar is a power, not a product: exp(factor delta A) = A_bar ** factor": (factor * A_bar, factor * B_bar),
            "B_bar grows by `factor` with Euler only; the input fades during the step": (longer, factor * B_bar),
            "B_bar must change, too: the input is held for longer": (longer, B_bar),
            "the exponent is factor, not 1 / factor": (shorter, B_bar * (shorter - 1) / (A_bar - 1)),
            "divide by A_bar - 1, which belongs to the old step": (longer, B_bar * (longer - 1)),
            "B_bar is no power: it is (A_bar - 1) B / A": (longer, B_bar.abs() ** factor * B_bar.sign()),
            "the fraction is upside down: the new A_bar - 1 stands above": (longer, B_bar * (A_bar - 1) / (longer - 1)),
        }
        found = answer(A_bar, B_bar, factor)
        compare(found, (longer, wanted), "(A_bar, B_bar)", given=f"factor = {factor}", causes=causes)
