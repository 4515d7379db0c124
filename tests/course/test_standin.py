"""The stand-in for Triton runs the same kernels and finds the same numbers."""

from types import SimpleNamespace

import pytest
import torch

from minivim.course import standin


def leaky_sums(words):
    """A kernel with programs, lanes, masks, time and a sum over lanes, in the words of Triton or of the stand-in."""
    triton, tl = words.triton, words.tl

    @triton.jit
    def kernel(x, y, sums, L, E, BLOCK: tl.constexpr):
        b, d = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        h = tl.zeros([BLOCK], tl.float32)
        for t in range(L):
            x_t = tl.load(x + (b * L + t) * E + d, mask=d < E, other=0.0)
            h = tl.exp2(-x_t) * h + tl.where(x_t > 0, x_t, 0.5 * x_t)
            tl.store(y + (b * L + t) * E + d, h, mask=d < E)
            largest = tl.max(tl.where(d < E, h, float("-inf")), axis=0)
            tl.store(sums + (tl.program_id(0) * tl.num_programs(1) + b) * L + t, tl.sum(h, axis=0) + largest)

    def run(x):
        (batch, L, E), blocks = x.shape, triton.cdiv(x.shape[2], 4)
        y, sums = torch.zeros_like(x), torch.zeros(blocks, batch, L)
        kernel[(blocks, batch)](x, y, sums, L, E, BLOCK=4)
        return y, sums

    return run


def test_a_kernel_finds_what_tritons_interpreter_finds():
    triton = pytest.importorskip("triton")
    x = torch.randn(2, 5, 10)
    ours, theirs = leaky_sums(standin)(x), leaky_sums(SimpleNamespace(triton=triton, tl=triton.language))(x)
    for one, other in zip(ours, theirs, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other)


def test_the_loop_agrees():
    x = torch.randn(2, 5, 10)
    y, h = leaky_sums(standin)(x)[0], torch.zeros(2, 10)
    for t in range(5):
        h = torch.exp2(-x[:, t]) * h + torch.where(x[:, t] > 0, x[:, t], 0.5 * x[:, t])
        torch.testing.assert_close(y[:, t], h)


@standin.triton.jit
def copy(x, y, BLOCK):
    """Copies without a mask."""
    d = standin.tl.program_id(0) * BLOCK + standin.tl.arange(0, BLOCK)
    standin.tl.store(y + d, standin.tl.load(x + (d + 1) - 1))


def test_a_forgotten_mask_reaches_the_neighbours_and_no_further():
    memory = torch.arange(12.0)
    copy[(3,)](memory[:10], memory[2:12].zero_(), BLOCK=2)
    assert memory.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0]
    with pytest.raises(IndexError, match="places 12 to 15; the memory has 0 to 11"):
        copy[(4,)](memory, memory, BLOCK=4)
    with pytest.raises(IndexError, match="places 12 to 12"):
        copy[(13,)](memory, memory, BLOCK=1)


def test_whole_numbers_stay_whole_and_kernels_call_each_other():
    tl, seen = standin.tl, []

    @standin.triton.jit
    def twice(x):
        return 2 * x

    @standin.triton.jit
    def kernel(order):
        seen.append((twice(tl.load(order + tl.program_id(0))).item(), tl.program_id(1), tl.num_programs(1)))

    kernel[(2, 2)](torch.tensor([3, 5]))
    assert seen == [(6, 0, 2), (6, 1, 2), (10, 0, 2), (10, 1, 2)]
    assert standin.triton.cdiv(7, 4) == 2
