"""The Triton kernels, in the interpreter on a CPU (on the device where there is a GPU), against the float64 loop.

Every buffer that a kernel should fill is poisoned with NaN first, so that nothing it leaves out goes unseen.
"""

import itertools
import os

import pytest
import torch

triton = pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("neither a GPU nor TRITON_INTERPRET=1 before Triton's first import", allow_module_level=True)

from minivim.kernels.gpu.scan import launch as scan_gpu  # noqa: E402

from minivim.ops import bidirectional_conv_silu, bidirectional_scan, causal_conv_silu, selective_scan  # noqa: E402  # noqa: E402
from tests.ops.test_scan import OPTIONS, errors, problem, run  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    empty, empty_like = torch.empty, torch.empty_like

    def poison(x):
        return x.fill_(float("nan")) if x.is_floating_point() else x

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))


def on_device(inputs):
    return {k: v.to(DEVICE) for k, v in inputs.items()}


def both(inputs, tolerance, dtype=torch.float32, **options):
    """Compare "triton" with the loop in float64 on the same numbers."""
    inputs = {k: v.to(dtype).double() for k, v in inputs.items()}
    expected = run(inputs, "reference", **options)
    found = {k: v.cpu() for k, v in run(on_device(inputs), "triton", dtype=dtype, **options).items()}
    for name, error in errors(found, expected).items():
        allowed = tolerance
        if name == "ddelta_bias":  # a sum that nearly cancels is as exact as its terms
            terms = expected["ddelta"].abs().sum((0, 1)).max() / expected[name].abs().max()
            allowed *= max(1.0, terms.item())
        assert error <= allowed, f"{name}: relative error {error:.2e}, allowed {allowed:.0e}"


def cut(monkeypatch, V=1, chunks=1, K=scan_gpu.K):
    """Cut time into chunks of a few steps, which a GPU would do for long sequences only."""

    def plan(directions, batch, L, E):
        steps = -(-L // chunks)
        steps = -(-steps // K) * K
        return scan_gpu.Plan(V, -(-L // steps), steps)

    monkeypatch.setattr(scan_gpu, "K", K)
    monkeypatch.setattr(scan_gpu, "plan", plan)


LENGTHS, CHANNELS, STATES = (1, 2, 3, 31, 32, 33, 65, 197), (1, 3, 32, 40), (1, 4, 16)


def sizes():
    """(L, E, N, reverse): all of them on a GPU; the interpreter takes 50 ms a step, so there each pair of values."""
    if torch.cuda.is_available():
        return list(itertools.product(LENGTHS, CHANNELS, STATES, (False, True)))
    return [
        (L, E, STATES[(i + j) % 3], (i // 2 + j) % 2 == 1)
        for i, L in enumerate(LENGTHS)
        for j, E in enumerate(CHANNELS)
    ]


def test_each_pair_of_sizes_is_tried():
    values = (LENGTHS, CHANNELS, STATES, (False, True))
    for a, b in itertools.combinations(range(4), 2):
        assert {(case[a], case[b]) for case in sizes()} == set(itertools.product(values[a], values[b]))


@pytest.mark.parametrize("L, E, N, reverse", sizes())
def test_sizes_and_directions(L, E, N, reverse):
    both(problem(1, L, E, N), 1e-5, reverse=reverse)


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("left_out", [*OPTIONS, "none", "all"])
def test_each_option_may_be_left_out(left_out, softplus, monkeypatch):
    cut(monkeypatch, K=4)
    options = [] if left_out == "all" else [option for option in OPTIONS if option != left_out]
    for reverse in (False, True):
        both(problem(1, 7, 5, 3, options, softplus), 1e-5, softplus=softplus, reverse=reverse)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("L, E, N, reverse", [(21, 6, 4, True), (33, 40, 16, False), (3, 1, 1, True)])
def test_half_precision_within_its_rounding(L, E, N, reverse, dtype):
    both(problem(1, L, E, N), 6 * torch.finfo(dtype).eps, dtype=dtype, reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("L", [5, 8, 21])
def test_chunks_of_time_equal_one_run(L, reverse, monkeypatch):
    inputs = on_device(problem(2, L, 3, 4))
    cut(monkeypatch, K=4)
    whole = run(inputs, "triton", reverse=reverse)
    cut(monkeypatch, chunks=4, K=4)
    assert scan_gpu.plan(1, 1, L, 3).chunks > 1
    for name, error in errors(run(inputs, "triton", reverse=reverse), whole).items():
        assert error <= 1e-12, f"{name}: {error:.1e}"


@pytest.mark.parametrize("V", [2, 4])
def test_several_channels_a_lane(V, monkeypatch):
    cut(monkeypatch, V=V)
    both(problem(1, 4, 4 * V, 4), 1e-5)


@pytest.mark.parametrize("chunks", [1, 3])
def test_gradcheck(chunks, monkeypatch):
    """Against finite differences in float64, which know nothing of any derivation."""
    cut(monkeypatch, chunks=chunks, K=2)
    inputs = {k: v.to(DEVICE).requires_grad_() for k, v in problem(1, 5, 2, 2).items()}

    def scan(*values):
        return selective_scan(
            **dict(zip(inputs, values, strict=True)), delta_softplus=True, return_last_state=True, backend="triton"
        )

    assert torch.autograd.gradcheck(scan, list(inputs.values()), fast_mode=not torch.cuda.is_available())


@pytest.mark.parametrize("chunks", [1, 2])
def test_both_directions_in_one_launch(chunks, monkeypatch):
    cut(monkeypatch, chunks=chunks, K=4)

    def pair(backend):
        torch.manual_seed(1)
        leaves = []
        for _ in range(2):
            x = problem(2, 11, 6, 4, ("D", "delta_bias"))
            leaves += [x[k].to(DEVICE) for k in ("u", "delta", "A", "B", "C", "D", "delta_bias")]
        # As in a Vim block: z is half of a wider tensor, one u is strided.
        leaves += [torch.randn(2, 11, 12, dtype=torch.float64).to(DEVICE)[..., 6:]]
        leaves = [x.detach().requires_grad_() for x in leaves]
        out = bidirectional_scan(tuple(leaves[:7]), tuple(leaves[7:14]), leaves[14], backend=backend)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(DEVICE)
        return [out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)]

    for ours, theirs in zip(pair("triton"), pair("reference"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


def test_strided_inputs_and_two_runs_bit_equal():
    inputs = on_device(problem(2, 6, 8, 4, dtype=torch.float32))
    wide = {k: torch.cat((v, v), dim=-1)[..., : v.shape[-1]] if v.ndim == 3 else v for k, v in inputs.items()}
    first, again = run(inputs, "triton"), run(wide, "triton")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_too_many_states_are_refused():
    inputs = on_device(problem(1, 2, 1, 65))
    with pytest.raises(ValueError, match="A has 65 states; backend 'triton' takes at most 64"):
        selective_scan(**inputs, backend="triton")


def test_the_plan_fills_the_gpu_or_cuts_time():
    """A warp holds 32 V channels: large batches get many channels a lane, long sequences of small batches chunks."""
    assert scan_gpu.plan(2, 128, 197, 384) == (2, 1, 197)
    assert scan_gpu.plan(2, 128, 197, 768) == (4, 1, 197)
    V, chunks, steps = scan_gpu.plan(2, 1, 6085, 384)
    assert V == 1 and chunks > 16 and steps % scan_gpu.K == 0 and (chunks - 1) * steps < 6085 <= chunks * steps
    assert scan_gpu.plan(1, 1, 7, 3) == (1, 1, scan_gpu.K)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("L, E, K", [(1, 3, 4), (5, 64, 4), (33, 65, 3), (40, 1, 1)])
def test_convolution(L, E, K, reverse):
    def run_on(backend):
        torch.manual_seed(0)
        leaves = [torch.randn(*shape, dtype=torch.float64) for shape in ((2, L, 2 * E), (E, K), (E,))]
        x, *rest = (leaf.to(DEVICE).requires_grad_() for leaf in leaves)
        y = causal_conv_silu(x[..., E:], *rest, reverse=reverse, backend=backend)
        return [y.detach(), *torch.autograd.grad((y * torch.arange(1.0, E + 1, device=DEVICE)).sum(), [x, *rest])]

    for ours, theirs in zip(run_on("triton"), run_on("reference"), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_both_convolutions_in_one_launch():
    def run_on(backend):
        torch.manual_seed(0)
        shapes = ((2, 35, 10), (10, 4), (10,), (10, 4), (10,))
        x, *rest = (torch.randn(*s, dtype=torch.float64).to(DEVICE).requires_grad_() for s in shapes)
        y = torch.stack(bidirectional_conv_silu(x, tuple(rest[:2]), tuple(rest[2:]), backend=backend))
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(DEVICE)
        return [y.detach(), *torch.autograd.grad((y * weight).sum(), [x, *rest])]

    for ours, theirs in zip(run_on("triton"), run_on("reference"), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_vim_block_equals_the_reference():
    from minivim.models.vim import VimBlock, VimConfig

    block = VimBlock(VimConfig(embed_dim=12, depth=1, state_dim=4)).to(DEVICE)
    x = torch.randn(1, 9, 12, device=DEVICE)
    found = {}
    for backend in ("triton", "reference"):
        block.mixer.backend = backend
        y = block(x, None)[0]
        gradients = torch.autograd.grad(y.square().sum(), list(block.parameters()))
        found[backend] = [y.detach(), *gradients]
    for ours, theirs in zip(found["triton"], found["reference"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())
