"""The machine code of a kernel's loop, read without a GPU, from a process that interprets kernels."""

import pytest

from minivim.course import machine_code

triton = pytest.importorskip("triton")
tl = triton.language
needs_disassembler = pytest.mark.skipif(machine_code.disassembler() is None, reason="Triton's wheel carries none here")


@triton.jit
def fade(x, y, L, E, N: tl.constexpr, BLOCK: tl.constexpr):
    d, n = tl.arange(0, BLOCK), tl.arange(0, N)
    h = tl.zeros([N, BLOCK], tl.float32)
    for t in range(L):
        x_t = tl.load(x + t * E + d)
        h = tl.exp2(x_t[None, :] * (n[:, None] + 1)) * h + x_t[None, :]
    tl.store(y + n[:, None] * E + d[None, :], h)


@triton.jit
def wrong(x, L, BLOCK: tl.constexpr):
    for t in range(L):
        tl.store(x + tl.arange(0, BLOCK), tl.no_such_word(t))


@needs_disassembler
def test_the_loop_has_an_exponential_a_state_and_ends_in_a_branch():
    body = machine_code.loop_of(fade, {"N": 8, "BLOCK": 32}, numbers=("L", "E"))
    names = [line.split()[1 if line.startswith("@") else 0] for line in body]
    assert names.count("MUFU.EX2") % 8 == 0 and "MUFU.EX2" in names
    assert names[-1] == "BRA"
    assert sum(name.startswith("LDG") for name in names) == names.count("MUFU.EX2") // 8


@needs_disassembler
def test_what_the_compiler_refuses_is_an_error():
    with pytest.raises(RuntimeError, match="(?s)cannot compile wrong.*no_such_word"):
        machine_code.loop_of(wrong, {"BLOCK": 32}, numbers=("L",))


def test_without_a_disassembler_there_is_no_code(monkeypatch):
    monkeypatch.setattr(machine_code, "find_spec", lambda name: None)
    assert machine_code.loop_of(fade, {"N": 8, "BLOCK": 32}, numbers=("L", "E")) is None
