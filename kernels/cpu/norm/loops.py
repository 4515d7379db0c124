"""Add and RMSNorm on a CPU, forward and backward, in two short walks over each row of D numbers.

    r = update + residual     s = 1 / sqrt(mean(r^2) + eps)     y = s r w
    dr = s (dy w - s^2 mean(dy w r) r) + the gradient that r has of its own        dw = sum_rows dy s r

A task is a slab of the rows. Sizes and addresses travel in one int64 array, as in `scan/forward.py`; rows are D apart.
"""

from math import sqrt

from minivim.kernels.cpu.lanes import (
    LANES,
    fma,
    load,
    load_part,
    next_task,
    pointer,
    stack,
    store,
    store_part,
    store_total,
    unpack,
    zero,
)
from numba import float32, float64, int64, njit


@njit(error_model="numpy")
def forward(arguments, dtype):
    counter = pointer(arguments, int64)
    _, tasks, slabs, _, rows, D, _, update, residual, weight, total, y, scales = unpack(counter, 13)
    eps = pointer(arguments + 8 * 13, float64)[0]
    update_p, residual_p, weight_p = pointer(update, dtype), pointer(residual, dtype), pointer(weight, dtype)
    total_p, y_p, scales_p = pointer(total, dtype), pointer(y, dtype), pointer(scales, dtype)
    sum_of_squares = stack(1, dtype)
    task = next_task(counter)
    while task < tasks:
        for row in range(task * rows // slabs, (task + 1) * rows // slabs):
            squares = zero(dtype)
            for d in range(0, D, LANES):
                r = load_part(update_p, row * D + d, D - d)
                if residual != 0:
                    r = r + load_part(residual_p, row * D + d, D - d)
                store_part(total_p, row * D + d, r, D - d)
                squares = fma(r, r, squares)
            store_total(sum_of_squares, 0, squares)
            scale = 1.0 / sqrt(sum_of_squares[0] / D + eps)
            scales_p[row] = scale
            for d in range(0, D, LANES):
                r, w = load_part(total_p, row * D + d, D - d), load_part(weight_p, d, D - d)
                store_part(y_p, row * D + d, r * scale * w, D - d)
        task = next_task(counter)


@njit(error_model="numpy")
def backward(arguments, dtype):
    counter = pointer(arguments, int64)
    _, tasks, slabs, _, rows, D, _, total, weight, scales, dy, dtotal, dr, dw = unpack(counter, 14)
    total_p, weight_p, scales_p = pointer(total, dtype), pointer(weight, dtype), pointer(scales, dtype)
    dy_p, dtotal_p, dr_p, dw_p = pointer(dy, dtype), pointer(dtotal, dtype), pointer(dr, dtype), pointer(dw, dtype)
    product, sums = stack(1, dtype), stack(D + LANES, dtype)
    task = next_task(counter)
    while task < tasks:
        for d in range(0, D, LANES):
            store(sums, d, zero(dtype))
        for row in range(task * rows // slabs, (task + 1) * rows // slabs):
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
                if dtotal != 0:
                    dr_d = dr_d + load_part(dtotal_p, row * D + d, D - d)
                store_part(dr_p, row * D + d, dr_d, D - d)
        for d in range(0, D, LANES):
            store_part(dw_p, task * D + d, load(sums, d), D - d)
        task = next_task(counter)


def forward_float32(arguments):
    forward(arguments, float32)


def forward_float64(arguments):
    forward(arguments, float64)


def backward_float32(arguments):
    backward(arguments, float32)


def backward_float64(arguments):
    backward(arguments, float64)
