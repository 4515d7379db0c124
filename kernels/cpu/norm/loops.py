"""Add and RMSNorm on a CPU, forward and backward, in two short walks over each row of D numbers.

    r = update + residual     s = 1 / sqrt(mean(r^2) + eps)     y = s r w
    dr = s (dy w - s^2 mean(dy w r) r) + the gradient that r has of its own        dw = sum_rows dy s r

A task is a slab of the rows, and D the number of channels of a row.
"""

from math import sqrt

from minivim.kernels.cpu.lanes import (
    LANES,
    compiled,
    fma,
    load,
    load_part,
    pointer,
    stack,
    store,
    store_part,
    store_total,
    unpack,
    zero,
)
from minivim.kernels.cpu.records import Header, Norm, NormGradient
from minivim.kernels.cpu.tasks import next_task
from numba import float32, float64


@compiled
def forward(arguments, dtype):
    header, place = unpack(arguments, Header)
    part, _ = unpack(place, Norm)
    D, update_p, residual_p = header.E, pointer(part.update, dtype), pointer(part.residual, dtype)
    weight_p, total_p = pointer(part.weight, dtype), pointer(part.total, dtype)
    y_p, scales_p = pointer(part.y, dtype), pointer(part.scales, dtype)
    sum_of_squares = stack(1, dtype)
    task = next_task(arguments, header)
    while task.number < header.tasks:
        for row in range(task.first, task.last):
            squares = zero(dtype)
            for d in range(0, D, LANES):
                r = load_part(update_p, row * D + d, D - d)
                if part.residual != 0:
                    r = r + load_part(residual_p, row * D + d, D - d)
                store_part(total_p, row * D + d, r, D - d)
                squares = fma(r, r, squares)
            store_total(sum_of_squares, 0, squares)
            scale = 1.0 / sqrt(sum_of_squares[0] / D + part.eps)
            scales_p[row] = scale
            for d in range(0, D, LANES):
                r, w = load_part(total_p, row * D + d, D - d), load_part(weight_p, d, D - d)
                store_part(y_p, row * D + d, r * scale * w, D - d)
        task = next_task(arguments, header)


@compiled
def backward(arguments, dtype):
    header, place = unpack(arguments, Header)
    part, _ = unpack(place, NormGradient)
    D, total_p, weight_p = header.E, pointer(part.total, dtype), pointer(part.weight, dtype)
    scales_p, dy_p, dtotal_p = pointer(part.scales, dtype), pointer(part.dy, dtype), pointer(part.dtotal, dtype)
    dr_p, sums_p = pointer(part.dr, dtype), pointer(part.sums, dtype)
    product, sums = stack(1, dtype), stack(D + LANES, dtype)
    task = next_task(arguments, header)
    while task.number < header.tasks:
        for d in range(0, D, LANES):
            store(sums, d, zero(dtype))
        for row in range(task.first, task.last):
            scale, products = scales_p[row], zero(dtype)
            for d in range(0, D, LANES):
                r, g = load_part(total_p, row * D + d, D - d), load_part(dy_p, row * D + d, D - d)
                store(sums, d, fma(g, r * scale, load(sums, d)))
                products = fma(g * load_part(weight_p, d, D - d), r, products)
            store_total(product, 0, products)
            slope = scale * scale * scale * product[0] / D
            for d in range(0, D, LANES):
                r, g = load_part(total_p, row * D + d, D - d), load_part(dy_p, row * D + d, D - d)
                dr_d = g * load_part(weight_p, d, D - d) * scale - r * slope
                if part.dtotal != 0:
                    dr_d = dr_d + load_part(dtotal_p, row * D + d, D - d)
                store_part(dr_p, row * D + d, dr_d, D - d)
        for d in range(0, D, LANES):
            store_part(sums_p, task.slab * D + d, load(sums, d), D - d)
        task = next_task(arguments, header)


# `compile.address` finds these by name.
def forward_float32(arguments):
    forward(arguments, float32)


def forward_float64(arguments):
    forward(arguments, float64)


def backward_float32(arguments):
    backward(arguments, float32)


def backward_float64(arguments):
    backward(arguments, float64)
