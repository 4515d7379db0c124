"""Answers to the exercise of chapter 00 as learners give them, and the hint that each must get."""

import math

import torch

WRONG = {
    "00.1": [
        (lambda h, delta, A, B, u: A * h, r"the new state, first difference at \[0\]: yours -2.55, expected 5\.73"),
        (lambda h, delta, A, B, u: delta * A * h + delta * B * u, "the exponential is missing"),
        (lambda h, delta, A, B, u: torch.exp(A) * h + delta * B * u, "step size is missing in the exponential"),
        (lambda h, delta, A, B, u: torch.exp(delta * A) * h + B * u, "step size is missing at the input"),
        (lambda h, delta, A, B, u: torch.exp(delta * A) * h, "the input is missing"),
        (lambda h, delta, A, B, u: torch.exp(-delta * A) * h + delta * B * u, "needs no minus"),
        (lambda h, delta, A, B, u: (1 + delta * A) * h + delta * B * u, "this is Euler's step"),
        (lambda h, delta, A, B, u: A * h + delta * B * u, "the exponential and the step size are missing"),
        (lambda h, delta, A, B, u: torch.exp(delta * A) * h + torch.expm1(delta * A) / A * B * u, "ZOH for B"),
        (lambda h, delta, A, B, u: math.exp(delta * A[0]) * h + delta * B * u, r"first difference at \[1\]"),
        (lambda h, A, B, u: h, "takes .* but is called with 5 arguments"),
    ]
}
