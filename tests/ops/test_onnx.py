"""The scan as an ONNX node: every argument, both ways, against the loop; and as the operator that a trace holds."""

import numpy as np
import pytest
import torch
from torch import nn

from minivim.ops import scan_reference

onnxruntime = pytest.importorskip("onnxruntime", reason="these tests need the extra 'onnx'")
pytest.importorskip("onnxscript", reason="these tests need the extra 'onnx'")
from minivim.ops.onnx import BACKEND, SCAN, TRANSLATIONS  # noqa: E402  # imports onnxscript

pytestmark = pytest.mark.usefixtures("unchecked")
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


def arguments(batch=2, L=5, E=3, N=4):
    sizes = {"u": (batch, L, E), "delta": (batch, L, E), "B": (batch, L, N), "C": (batch, L, N), "z": (batch, L, E)}
    sizes |= {"D": (E,), "delta_bias": (E,), "initial_state": (batch, E, N)}
    found = {name: torch.randn(size) for name, size in sizes.items()}
    return {**found, "A": -torch.rand(E, N)}


class Scans(nn.Module):
    """The scan with all its arguments and with none of the optional ones, in both directions."""

    def __init__(self, scan):
        super().__init__()
        self.scan = scan

    def forward(self, u, delta, A, B, C, D, z, delta_bias, initial_state):
        step = delta.abs()
        return (
            *self.scan(u, delta, A, B, C, D, z, delta_bias, True, initial_state, False),
            *self.scan(u, delta, A, B, C, D, z, delta_bias, True, initial_state, True),
            *self.scan(u, step, A, B, C, None, None, None, False, None, False),
            *self.scan(u, step, A, B, C, None, None, None, False, None, True),
        )


def test_a_scan_node_computes_what_the_loop_computes(tmp_path):
    values = arguments()
    inputs = tuple(values[name] for name in NAMES)
    program = torch.onnx.export(
        Scans(BACKEND.scan).eval(), inputs, dynamo=True, input_names=NAMES, custom_translation_table=TRANSLATIONS
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    found = session.run(None, {name: value.numpy() for name, value in values.items()})
    expected = Scans(scan_reference)(*inputs)
    assert len(found) == len(expected) == 8
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-5, atol=1e-5)


def test_the_operator_is_the_reference_and_tells_its_shapes():
    values = arguments()
    inputs = [values[name] for name in NAMES]
    inputs = (*inputs[:8], True, inputs[8], True)
    for one, other in zip(SCAN(*inputs), scan_reference(*inputs), strict=True):
        assert torch.equal(one, other)
    torch.library.opcheck(SCAN, inputs, test_utils=("test_schema", "test_faketensor"))
