"""The scan in ONNX: one Scan node, whose body is one step of the recurrence, so that a file does not grow with L.

    h[t] = exp(delta[t] * A) * h[t-1] + (delta[t] * u[t]) * B[t]              y[t] = C[t] . h[t]

Eq. 2 of Mamba (arXiv 2312.00752). No array of all states (B, L, E, N) exists, and a scan that walks back reads its
inputs from their ends: nothing is flipped. A model that is given BACKEND holds the operator `minivim::scan` wherever it
scans; TRANSLATIONS say to torch.onnx what that is. This module needs onnxscript: import it where a model is exported.
"""

from collections.abc import Sequence
from functools import partial

import torch

from minivim.extras import require
from minivim.ops.implementations import Backend, one_after_the_other, one_and_the_other
from minivim.ops.reference import add_norm_reference, conv_reference, scan_reference

onnxscript = require("onnxscript", "onnx")
op, graph, FLOAT = onnxscript.opset18, onnxscript.graph, onnxscript.FLOAT
clear = onnxscript.ir.passes.common.ClearMetadataAndDocStringPass()

SCAN = torch.library.custom_op(
    "minivim::scan",
    scan_reference,
    mutates_args=(),
    schema="(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "bool delta_softplus, Tensor? initial_state, bool reverse) -> (Tensor, Tensor)",
)


@SCAN.register_fake
def _shapes(u, delta, A, *rest):
    return torch.empty_like(u), u.new_empty(u.shape[0], *A.shape)


BACKEND = Backend(
    "onnx",
    SCAN,
    partial(one_after_the_other, SCAN),
    conv_reference,
    partial(one_and_the_other, conv_reference),
    add_norm_reference,
)


@onnxscript.script(onnxscript.values.Opset("minivim", 1), default_opset=op)
def _recurrence(
    h, delta, drive, A, B, C, inputs: Sequence[int], output: Sequence[int]
) -> tuple[FLOAT, FLOAT]:  # the exporter counts the outputs here
    @graph()
    def step(h_t, delta_t, drive_t, B_t, C_t):
        # (B, N, E), as long rows suit processors: three times as fast as (B, E, N).
        state = op.Exp(delta_t * A) * h_t + drive_t * B_t
        y_t = op.MatMul(C_t, state)
        return state, y_t

    last, y = op.Scan(
        h,
        delta,
        drive,
        B,
        C,
        body=step,
        num_scan_inputs=4,
        scan_input_axes=[1, 1, 1, 1],
        scan_output_axes=[1],
        scan_input_directions=inputs,
        scan_output_directions=output,
    )
    return last, y


def _translate(u, delta, A, B, C, D, z, delta_bias, delta_softplus: bool, initial_state, reverse: bool):
    """`minivim::scan` in the operators of ONNX; arguments as of `scan_reference`."""
    if delta_bias is not None:
        delta = op.Add(delta, delta_bias)
    if delta_softplus:
        delta = op.Softplus(delta)
    A = op.Transpose(A, perm=[1, 0])
    if initial_state is None:
        h = op.Expand(0.0, op.Concat(op.Shape(u, start=0, end=1), op.Shape(A), axis=0))
    else:
        h = op.Transpose(initial_state, perm=[0, 2, 1])
    # (B, L, 1, E), twice, (B, L, N, 1) and (B, L, 1, N): each step multiplies by broadcasting.
    rows = [op.Unsqueeze(x, [axis]) for x, axis in ((delta, 2), (op.Mul(delta, u), 2), (B, 3), (C, 2))]
    delta, drive, B, C = rows
    last, y = _recurrence(h, delta, drive, A, B, C, inputs=[int(reverse)] * 4, output=[int(reverse)])
    y = op.Squeeze(y, [2])
    if D is not None:
        y = op.Add(y, op.Mul(D, u))
    if z is not None:
        y = op.Mul(y, op.Mul(z, op.Sigmoid(z)))
    return y, op.Transpose(last, perm=[0, 2, 1])


TRANSLATIONS = {torch.ops.minivim.scan.default: _translate}
