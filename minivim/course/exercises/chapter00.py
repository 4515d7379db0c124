"""Checkers of chapter 00, Start here."""

import torch

from minivim.course.exercises.checking import compare, exercise


@exercise("00.1", "One step of the state")
def one_step(answer):
    """One step of the recurrence of Mamba's code: exp(delta A) h + delta B u."""
    cases = [([1.7], 0.4, [-1.5], [3.0], 4.0), ([1.0, -2.0, 0.5], 0.1, [-1.3, -2.0, -4.0], [1.2, 0.3, -0.8], -3.0)]
    for h, delta, A, B, u in cases:
        given = f"h = {h}, delta = {delta}, A = {A}, B = {B}, u = {u}"
        h, A, B = torch.tensor(h), torch.tensor(A), torch.tensor(B)
        decay = torch.exp(delta * A)
        causes = {
            "the exponential is missing: the old state is multiplied by exp(delta A)": delta * A * h + delta * B * u,
            "this is Euler's step; the old state is multiplied by exp(delta A), not by 1 + delta A": h
            + delta * (A * h + B * u),
            "the exponential and the step size are missing: the old state is multiplied by exp(delta A)": A * h
            + delta * B * u,
            "this is ZOH for B; Mamba's code takes delta B": decay * h + (decay - 1) / A * B * u,
            "the step size is missing in the exponential": torch.exp(A) * h + delta * B * u,
            "the step size is missing at the input": decay * h + B * u,
            "the input is missing": decay * h,
            "the old state is missing": delta * B * u,
            "the old state must decay: A is negative, so it needs no minus": torch.exp(-delta * A) * h + delta * B * u,
        }
        compare(answer(h, delta, A, B, u), decay * h + delta * B * u, "the new state", given=given, causes=causes)
