"""The Triton kernels as guests of PyTorch: one opaque operator for compilers, autocast, checkpoints, DDP, CUDA graphs.

In the interpreter on a CPU; on the device where there is a GPU.
"""

import os
from contextlib import nullcontext

import pytest
import torch

triton = pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("neither a GPU nor TRITON_INTERPRET=1 before Triton's first import", allow_module_level=True)

import torch.distributed as dist  # noqa: E402 (after the skip)
from minivim.kernels import operators  # noqa: E402 (after the skip)
from minivim.kernels.gpu.conv.launch import conv  # noqa: E402
from minivim.kernels.gpu.scan import launch as scan_gpu  # noqa: E402
from minivim.kernels.gpu.scan.launch import scan  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from minivim.models.vim import VimConfig, VisionMamba  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """States kept every 4 steps instead of 32: the interpreter takes its time over every step, needed or not."""
    monkeypatch.setattr(scan_gpu, "K", 4)


def small(backend="triton"):
    """One block on 4 patches and a class token: 5 tokens."""
    torch.manual_seed(0)
    config = VimConfig(img_size=4, patch_size=2, embed_dim=12, depth=1, state_dim=4, num_classes=3)
    return VisionMamba(config).to(DEVICE).set_backend(backend)


def images(batch=2):
    return torch.randn(batch, 3, 4, 4, generator=torch.Generator().manual_seed(1)).to(DEVICE)


def gradients(model, logits):
    return torch.autograd.grad(logits.float().square().sum(), list(model.parameters()))


def assert_same(found, expected, **tolerance):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **(tolerance or TOLERANCE))


def leaves(*shapes):
    return [torch.randn(*shape, device=DEVICE).requires_grad_() for shape in shapes]


def direction(B=2, L=5, E=6, N=3):
    u, delta, A, *rest = leaves((B, L, E), (B, L, E), (E, N), (B, L, N), (B, L, N), (E,), (E,))
    return u, delta, (-A.abs()).detach().requires_grad_(), *rest


def one_direction():
    u, delta, A, B, C, D, bias = direction()
    z, start = leaves((2, 5, 6), (2, 6, 3))
    return (u, delta, A, B, C, D, z, bias, start, *[None] * 7, True, True, True)


def bare():
    return (*direction()[:5], *[None] * 11, False, False, True)


def both_directions():
    *first, bias = direction()
    return (*first, *leaves((2, 5, 6)), bias, None, *direction(), True, False, True)


OPERATORS = {
    "scan": (scan, one_direction),
    "scan, bare": (scan, bare),
    "scan, both directions": (scan, both_directions),
    "convolution": (conv, lambda: (*leaves((2, 5, 6), (6, 4), (6,)), None, None, True)),
    "convolution, both directions": (conv, lambda: (*leaves((2, 5, 6), (6, 4), (6,), (6, 4), (6,)), False)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name):
    """PyTorch's own test of an operator: schema, fake implementation, gradient, and all of it while compiling."""
    operator, arguments = OPERATORS[name]
    torch.library.opcheck(operator, arguments())


@pytest.mark.parametrize("name", OPERATORS)
def test_launches_are_guarded(name, monkeypatch):
    operator, arguments = OPERATORS[name]
    guarded = []
    monkeypatch.setattr(operators, "guard", lambda tensors: nullcontext(guarded.append(tensors)))
    operator.plain(*arguments())
    assert len(guarded) == 1


def test_compiled_in_one_graph(unchecked):
    model = small()
    graphs = []

    def count(graph, _inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=count)
    assert_same([compiled(images())], [model(images())])
    assert len(graphs) == 1
    assert sum("scan_gpu" in target for target in graphs[0]) == sum("conv_gpu" in target for target in graphs[0]) == 1


def test_compiled_gradients(unchecked):
    model = small()
    expected = gradients(model, model(images()))
    compiled = torch.compile(model, fullgraph=True, backend="inductor" if DEVICE == "cuda" else "aot_eager")
    assert_same(gradients(model, compiled(images())), expected)


def test_autocast_computes_in_bf16_and_keeps_states_in_float32():
    found = {}
    for backend in ("triton", "reference"):
        model = small(backend)
        with torch.autocast(DEVICE, torch.bfloat16):
            logits = model(images())
        found[backend] = [logits.float(), *gradients(model, logits)]
        assert all(gradient.dtype == torch.float32 for gradient in found[backend][1:])
    largest = max(x.abs().max().item() for x in found["reference"])
    assert_same(found["triton"], found["reference"], rtol=0.05, atol=0.02 * largest)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(use_reentrant):
    block = small().blocks[0]
    x = torch.randn(2, 5, 12, device=DEVICE).requires_grad_()
    wanted = [x, *block.parameters()]
    expected = torch.autograd.grad(block(x)[0].square().sum(), wanted)
    update, _ = checkpoint(block, x, None, use_reentrant=use_reentrant)
    update.square().sum().backward()  # re-entrant checkpoints allow no torch.autograd.grad
    assert_same([leaf.grad for leaf in wanted], expected)


def one_of_two(rank: int, folder: str) -> None:
    """What each process does: the gradients of its half of the batch, averaged with the other's."""
    torch.set_num_threads(1)
    scan_gpu.K = 4
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = small()
    together = DistributedDataParallel(model)
    together(images(4)[2 * rank : 2 * rank + 2]).square().sum().backward()
    torch.save([parameter.grad.cpu() for parameter in model.parameters()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_distributed_data_parallel(tmp_path):
    torch.multiprocessing.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    model = small("reference")
    expected = [gradient.cpu() / 2 for gradient in gradients(model, model(images(4)))]  # the mean of two halves
    for rank in range(2):
        assert_same(torch.load(tmp_path / f"{rank}.pt", weights_only=True), expected)


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a GPU")
def test_cuda_graphs_replay_on_new_images():
    model, fixed = small(), images()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compile the kernels before the capture
        for _ in range(3):
            gradients(model, model(fixed))
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = model(fixed)
        found = [logits, *gradients(model, logits)]
    fresh = torch.randn_like(fixed)
    fixed.copy_(fresh)
    graph.replay()
    logits = model(fresh)
    assert_same(found, [logits, *gradients(model, logits)])
