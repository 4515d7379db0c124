"""The one-directional Mamba block: causality, step == forward, the recurrence written out, initialization."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from minivim import MambaBlock
from minivim.ops import implementations


def by_hand(block: MambaBlock, x: torch.Tensor) -> torch.Tensor:
    """The block for one sequence (L, D), token by token and channel by channel, from the equations."""
    ssm = block.ssm
    E, K = ssm.conv_weight.shape
    N = ssm.A_log.shape[1]
    R = ssm.dt_proj.weight.shape[1]
    projected = x @ block.in_proj.weight.T
    inputs, gates = projected[:, :E], projected[:, E:]
    h = torch.zeros(E, N, dtype=x.dtype)
    rows = []
    for t in range(len(x)):
        u = ssm.conv_bias.clone()
        for k in range(K):
            if t - k >= 0:
                u = u + ssm.conv_weight[:, K - 1 - k] * inputs[t - k]
        u = u * torch.sigmoid(u)
        selected = ssm.x_proj.weight @ u
        dt, B, C = selected[:R], selected[R : R + N], selected[R + N :]
        delta = torch.log1p(torch.exp(ssm.dt_proj.weight @ dt + ssm.dt_proj.bias))
        h = torch.exp(delta[:, None] * -torch.exp(ssm.A_log)) * h + torch.outer(delta * u, B)
        y = (h @ C + ssm.D * u) * gates[t] * torch.sigmoid(gates[t])
        rows.append(block.out_proj.weight @ y)
    return torch.stack(rows)


@pytest.fixture
def block() -> MambaBlock:
    return MambaBlock(12, state_dim=5, conv_kernel=3, dt_rank=2).double()


def test_equals_the_equations_written_out(block):
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(block(x), torch.stack([by_hand(block, row) for row in x]), rtol=1e-10, atol=1e-12)


def test_the_state_matrix_is_float32_whatever_the_weights_are(block):
    A_log = block.bfloat16().ssm.A_log
    A = block.ssm.select(torch.randn(1, 3, 24, dtype=torch.bfloat16))[2]
    assert A.dtype == torch.float32 and torch.equal(A, -A_log.float().exp())
    assert block.double().ssm.select(torch.randn(1, 3, 24, dtype=torch.float64))[2].dtype == torch.float64


def test_the_blocks_choice_of_a_backend_is_its_ssms(block, monkeypatch):
    called = []

    def noted(backend, *arguments):
        called.append(backend.name)
        return backend.scan(*arguments)

    for name in ("chunked", "reference"):
        backend = implementations.load(name)
        monkeypatch.setitem(implementations.LOADED, name, backend._replace(scan=partial(noted, backend)))
    x = torch.randn(1, 4, 12, dtype=torch.float64)
    for block.backend, block.ssm.backend in (("chunked", "reference"), ("reference", "chunked")):
        block(x)
        block.step(x[:, 0], block.initial_state(1))
        assert called == [block.backend] * 2
        called.clear()


@pytest.mark.parametrize("conv_kernel", [1, 4])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_step_equals_forward(conv_kernel, length):
    block = MambaBlock(8, conv_kernel=conv_kernel)
    x = torch.randn(3, length, 8)
    state = block.initial_state(3)
    assert state.conv.shape == (3, conv_kernel - 1, 16) and state.ssm.shape == (3, 16, 16)
    outputs = []
    with torch.no_grad():
        for token in x.unbind(1):
            output, state = block.step(token, state)
            outputs.append(output)
        torch.testing.assert_close(torch.stack(outputs, dim=1), block(x), rtol=1e-5, atol=1e-6)


def test_a_chunk_of_tokens_after_others_is_the_rest_of_the_sequence(block):
    x, z = torch.randn(2, 3, 9, 24, dtype=torch.float64)
    state = block.initial_state(3)
    parts = []
    for start, stop in ((0, 1), (1, 6), (6, 9)):  # shorter and longer than the convolution
        y, state = block.ssm(x[:, start:stop], z[:, start:stop], state=state)
        parts.append(y)
        assert state.conv.shape == (3, 2, 24)  # and no more with time
    torch.testing.assert_close(torch.cat(parts, dim=1), block.ssm(x, z))


def run_steps(block, x):
    state, outputs = block.initial_state(len(x)), []
    for token in x.unbind(1):
        output, state = block.step(token, state)
        outputs.append(output)
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("name", ["ssm", "ssm.x_proj", "ssm.dt_proj", "in_proj", "out_proj"])
def test_hooks_act_in_step_as_in_forward(block, name):
    x, seen = torch.randn(2, 4, 12, dtype=torch.float64), []
    layer = block.get_submodule(name)
    layer.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2, *inputs[1:]))
    layer.register_forward_hook(lambda *_: seen.append(name))
    torch.testing.assert_close(run_steps(block, x), block(x))
    assert seen == [name] * 5


def test_a_pruned_parameter_acts_in_step(block):
    x = torch.randn(2, 4, 12, dtype=torch.float64)
    before = run_steps(block, x)
    prune.random_unstructured(block.ssm, "conv_weight", 0.5)
    with torch.no_grad():
        block.ssm.conv_weight_orig.mul_(2)  # in place: the mask is applied anew at each call
    torch.testing.assert_close(run_steps(block, x), block(x))
    assert not torch.allclose(run_steps(block, x), before)


def test_a_method_of_its_own_acts_in_step(block):
    x = torch.randn(2, 4, 12, dtype=torch.float64)
    conv = block.ssm.conv
    block.ssm.conv = lambda *arguments: 2 * conv(*arguments)
    torch.testing.assert_close(run_steps(block, x), block(x))
    block.ssm.forward = lambda x, z, backend: x * z
    with pytest.raises(TypeError, match="unexpected keyword argument 'state'"):
        run_steps(block, x)


def test_a_stranger_in_place_of_the_ssm_is_refused_by_name(block):
    state = block.initial_state(2)
    block.ssm = nn.Sequential(block.ssm)
    for call in (lambda: block.initial_state(2), lambda: block.step(torch.ones(2, 12, dtype=torch.float64), state)):
        with pytest.raises(TypeError, match="ssm is a Sequential; to go step by step it must be a SelectiveSSM"):
            call()


def test_steps_backwards_are_refused(block):
    block.ssm.reverse = True
    with pytest.raises(ValueError, match="reverse is True; it must be False where a state comes"):
        run_steps(block, torch.ones(2, 3, 12, dtype=torch.float64))


def test_is_causal_and_remembers(block):
    x = torch.randn(1, 9, 12, dtype=torch.float64, requires_grad=True)
    block(x)[0, 5].sum().backward()
    reached = x.grad[0].abs().sum(-1) > 0
    assert reached.tolist() == [True] * 6 + [False] * 3


def test_initialization_ranges():
    block = MambaBlock(64)
    ssm = block.ssm
    delta = F.softplus(ssm.dt_proj.bias.double())
    assert delta.min() >= 0.001 * (1 - 1e-5) and delta.max() <= 0.1 * (1 + 1e-5)
    assert 0.2 < (delta < 0.01).double().mean() < 0.8  # log-uniform: half of them below the geometric middle
    torch.testing.assert_close(-torch.exp(ssm.A_log), -torch.arange(1.0, 17.0).expand(128, 16))
    assert ssm.dt_proj.weight.shape == (128, math.ceil(64 / 16))
    assert 0.4 < ssm.dt_proj.weight.abs().max() <= 4**-0.5
    assert (ssm.D == 1).all()


def test_gradients_are_finite_and_reach_every_parameter():
    block = MambaBlock(8)
    block(torch.randn(2, 5, 8)).square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name
