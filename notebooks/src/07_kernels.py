# %% [markdown]
# # 07 · Kernels: the scan on the chip
#
# [Chapter 06](06_scans.ipynb) asked in which order a scan may be computed. This chapter asks where its numbers are
# while that happens. You write a first kernel of four lines. Then one idea is added at a time, until you can read the
# kernel that this package runs on a GPU.
#
# **Learning goals.** After this chapter you can
# - say what a program, a lane and a register are, and point at them in a (B, L, E) box;
# - write a Triton kernel, launch it, print from inside it;
# - say what masked lanes must load, and find the bug of a mask that comes too early;
# - walk through time inside a program, with all states in registers;
# - count bytes, exponentials and instructions of a step, and read the same off the machine code;
# - cut time into chunks, and run both directions in one launch;
# - read the package's forward kernel, and a backward one without a race;
# - say the same of a CPU, with other words.
#
# **Prerequisites.** [Chapter 05](05_selection.ipynb): the selective scan, softplus. [Chapter 06](06_scans.ipynb): pairs
# (a, b) and how they combine, chunks, the adjoint recurrence.
#
# **Time.** 75 minutes for the core, 90 with everything; all cells together run for about 30 seconds.

# %% [markdown]
# Previous: [06 Scans](06_scans.ipynb) · Map: [00 Start here](00_start_here.ipynb) · Next:
# [08 Vision Mamba](08_vision_mamba.ipynb)
#
# **Triton** is a language inside Python: a function marked `@triton.jit` is compiled for a GPU. Such a function is
# called a **kernel**. (The word has nothing to do with the kernel $K$ of
# [chapter 03](03_recurrence_is_convolution.ipynb).) No GPU is needed: Triton's interpreter runs every kernel here on
# your CPU, lane by lane.
#
# The first cell decides where the kernels run. With a GPU they are compiled for it. Without one,
# `TRITON_INTERPRET=1` has Triton run them in Python; it must be set before Triton is imported. Where Triton cannot be
# installed (macOS, Windows), a small stand-in runs the same kernels on PyTorch. What is missing there: the
# machine code of section 7 and the package's own kernel in section 10. The text says so again at those places.

# %%
import json
import math
import os
import platform
import re
import textwrap
import time
from importlib.util import find_spec
from itertools import permutations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
try:
    import triton
    import triton.language as tl
except ImportError:
    from minivim.course.standin import tl, triton

from minivim.course import check
from minivim.course.machine_code import loop_of
from minivim.figures import COLOURS, arrow, box, canvas, flipbook, show, use_style
from minivim.ops import bidirectional_scan, selective_scan

use_style()

# %% tags=["nbval-ignore-output"]
kind = "compiled for the GPU" if device == "cuda" else "Triton's interpreter, on the CPU"
kind = kind if find_spec("triton") else "the stand-in, on PyTorch"
print("the kernels of this chapter run here by:", kind)

# %% [markdown]
# ## 1. Where the time goes
#
# *Core.*
#
# This is the selective scan as a loop, with the letters of [chapter 05](05_selection.ipynb), but the
# step as an index, $h_t$ for $h[t]$:
#
# $$h_t = e^{\Delta_t A}\, h_{t-1} + \Delta_t u_t B_t \qquad\qquad y_t = C_t \cdot h_t \tag{7.1}$$
#
# *Mamba, arXiv 2312.00752, Eq. 2, with the step that its code takes: zero-order hold for A, Euler for B.* There is one
# system for each channel. `u`, `delta`, `y` are (B, L, E), `A` is (E, N), `B` and `C` are (B, L, N). The loop is slow
# and surely right. **Every kernel of this chapter must equal it.**


# %%
def scan_by_loop(u, delta, A, B, C):
    """(y (B, L, E), last state (B, E, N)) of (7.1), one step after the other."""
    h, y = torch.zeros(len(u), *A.shape, dtype=u.dtype, device=u.device), []
    for t in range(u.shape[1]):
        delta_t = delta[:, t, :, None]
        h = torch.exp(delta_t * A) * h + delta_t * u[:, t, :, None] * B[:, t, None]
        y.append((h * C[:, t, None]).sum(-1))
    return torch.stack(y, dim=1), h


# %%
def random_inputs(batch=2, L=11, E=20, N=4, seed=0):
    """u, delta (B, L, E), A (E, N), B, C (B, L, N)."""
    generator = torch.Generator().manual_seed(seed)
    u, raw = torch.randn(2, batch, L, E, generator=generator).to(device)
    B, C = torch.randn(2, batch, L, N, generator=generator).to(device)
    A = -torch.rand(E, N, generator=generator).to(device) * 4
    return u, F.softplus(raw), A, B, C


def close(one, other, tolerance=2e-6):
    """Whether no number differs by more than `tolerance` times the largest one."""
    return bool((one - other).abs().max() <= tolerance * other.abs().max())


# %%
u, delta, A, B, C = random_inputs()
y, last = scan_by_loop(u, delta, A, B, C)
assert close(selective_scan(u, delta, A, B, C, backend="reference"), y)
print("y:", tuple(y.shape), " last state:", tuple(last.shape))

# %% [markdown]
# **The trouble.** Each operation of PyTorch stands alone. It fetches its inputs from memory and puts its result back.
# On the way, arrays of N numbers for each channel appear: (B, E, N) at each step of our loop, and over all steps N = 16
# times as much as the input. (Small ones may stay in a cache, a small fast memory on the chip. Then PyTorch waits
# longer for the start of each operation, [chapter 06](06_scans.ipynb).)
#
# A chip computes in **registers**: a few hundred numbers right beside the arithmetic. Memory is far away. A **kernel**
# is a function that the chip runs from beginning to end. What it keeps in a variable stays in a register. It goes to
# memory only for what it loads and stores.

# %%
figure, axis = canvas(6.6, 2.8)
arrow(axis, (1.5, 2.55), (6.3, 2.55), "one after the other", "grey")
axis.text(0.1, 1.95, "PyTorch", va="center", fontsize=10, weight="bold")
axis.text(0.1, 1.68, "large arrays", va="center", fontsize=9, color=COLOURS["red"])
axis.text(1.7, 1.72, "load", ha="right", va="center", fontsize=8)
axis.text(2.1, 1.72, "store", va="center", fontsize=8)
for index, step in enumerate(["Δ·A", "exp", "· h", "+ ΔuB", "· C, sum"]):
    place = 1.9 + index
    box(axis, place, 2.1, step, width=0.8, height=0.36, colour="orange")
    arrow(axis, (place - 0.15, 1.5), (place - 0.15, 1.92), colour="red")
    arrow(axis, (place + 0.15, 1.92), (place + 0.15, 1.5), colour="red")
box(axis, 3.9, 1.35, "memory: (B, L, E, N), again and again", 4.9, 0.3, "grey")
axis.text(0.1, 0.8, "one kernel", va="center", fontsize=10, weight="bold")
axis.text(0.1, 0.53, "small arrays", va="center", fontsize=9, color=COLOURS["blue"])
axis.text(2.55, 0.51, "load", ha="right", va="center", fontsize=8)
axis.text(5.25, 0.51, "store", va="center", fontsize=8)
box(axis, 3.9, 0.85, "exp, ·h, +, ·C, sum: all in registers", 4.9, 0.36, "green")
arrow(axis, (2.6, 0.35), (2.6, 0.67), colour="blue")
arrow(axis, (5.2, 0.67), (5.2, 0.35), colour="blue")
box(axis, 3.9, 0.2, "memory: u, Δ, B, C in; y out", 4.9, 0.3, "grey")
show(figure, "Five PyTorch operations that go to memory and back, and one kernel")
print("trips to memory and back: 5 for PyTorch, 1 for one kernel")

# %% [markdown]
# **What to see.** An arrow up is a load from memory, an arrow down is a store. Above, ten of them, red, and nearly all
# move a large array: N numbers for each channel. What one operation hands to the next goes through memory. Below, two,
# blue, and what they move has no N. Let us count the bytes, for one image in Vim-Tiny: L = 197 tokens, E = 384
# channels, N = 16 states.

# %%
L, E, N = 197, 384, 16
large, small = L * E * N, L * E
operations = {  # numbers read and written by each line of the loop, all steps together
    "delta * A": small + large,
    "exp": 2 * large,
    "times h": 3 * large,
    "plus delta u B": 3 * large,
    "times C, sum": 3 * large + small,
}
naive, fused = 4 * sum(operations.values()), 4 * (3 * small + 2 * L * N)
print(f"million bytes moved: {naive / 1e6:.3g} by PyTorch, {fused / 1e6:.2g} by one kernel")
print(f"that is {naive / fused:.0f} times as many")
assert naive / fused > 50

# %% [markdown]
# ## 2. A first kernel
#
# *Core.*
#
# Four lines:


# %%
@triton.jit
def double(x, y, BLOCK: tl.constexpr):
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + d, 2 * tl.load(x + d))


# %%
x = torch.arange(12.0, device=device)
y = torch.zeros_like(x)
double[(3,)](x, y, BLOCK=4)
print("y:", [int(number) for number in y.tolist()])
assert torch.equal(y, 2 * x)

# %% [markdown]
# Read it slowly.
#
# - `double[(3,)](...)` **launches** the kernel: three **programs** run the same four lines. The only thing that differs
#   is the number that `tl.program_id(0)` gives them: 0, 1, 2. They may run at the same time and in any order.
# - `tl.arange(0, BLOCK)` is a block of four numbers, 0 to 3. Each of them belongs to a **lane**. All lanes of a program
#   do the same instruction at the same time, each with its own number. So `d` is 4, 5, 6, 7 in program 1.
# - `x` is not an array here. It is an **address**: where the tensor's first number lies in memory. `x + d` are four
#   addresses. `tl.load` fetches the four numbers there into registers, `tl.store` puts four numbers into memory.
# - `BLOCK: tl.constexpr` is known when the kernel is compiled. A block's size must be, and it must be a power of two.
#
# There is no return value and no loop over elements. On a GPU, lanes come in groups of 32. Such a group is a **warp**:
# 32 numbers that one instruction works on. A program is one warp or several. (When this chapter counts what a GPU does,
# a program is one warp: 32 lanes.)

# %%
figure, axis = canvas(6.6, 1.5)
for program, colour in enumerate(["blue", "orange", "green"]):
    middle = 1.25 + 2 * program
    axis.text(middle, 1.2, f"program {program}", ha="center", color=COLOURS[colour])
    for lane in range(4):
        place = 0.5 + 2 * program + 0.5 * lane
        box(axis, place, 0.75, str(4 * program + lane), 0.44, 0.44, colour)
        axis.text(place, 0.33, f"lane {lane}", ha="center", fontsize=7)
show(figure, "Twelve numbers; programs 0, 1 and 2 own four neighbours each")
print("numbers: 12 = 3 programs of 4 lanes")

# %% [markdown]
# **What to see.** Neighbouring lanes own neighbouring numbers. That is not a matter of taste: memory hands out
# neighbours together, so 32 lanes are served by one trip.
#
# **Look inside.** In the interpreter a kernel may print.


# %%
@triton.jit
def tell(x, BLOCK: tl.constexpr):
    p = tl.program_id(0)
    d = p * BLOCK + tl.arange(0, BLOCK)
    print("program, its lanes' numbers, what they load:", p, d, tl.load(x + d))


tell[(3,)](x, BLOCK=4)

# %% [markdown]
# The programs came one after the other here, because the interpreter has no choice. A GPU promises no order. (On a GPU
# `print` works, too, through the driver; the text may appear late, and not in the notebook. On macOS and Windows the
# numbers look a little different.)
#
# ## 3. Masks, and what masked lanes load
#
# *Core.*
#
# Ten numbers do not divide into blocks of four. The third program has two lanes too many. Let us see what they do. `x`
# and `y` lie in one piece of memory, with other people's numbers (-1) behind them.

# %%
memory = torch.full((24,), -1.0, device=device)
x, y = memory[:10], memory[11:21]
x.copy_(torch.arange(10.0))
double[(3,)](x, y, BLOCK=4)
behind = memory[21:].tolist()
print("behind y there was -1, -1, -1; now there is:", [int(number) for number in behind])
assert behind != [-1, -1, -1]

# %%
figure, axis = canvas(8.6, 1.8)
for place, number in enumerate(memory.int().tolist()):
    colour = "blue" if place < 10 else "green" if 11 <= place < 21 else "grey"
    box(axis, 0.4 + 0.34 * place, 0.7, str(number), 0.31, 0.36, colour)
for lane, colour, left in ((2, "red", 3.2), (3, "purple", 6.6)):  # of program 2
    start, end = 0.4 + 0.34 * (8 + lane), 0.4 + 0.34 * (19 + lane)
    arrow(axis, (start, 0.9), (end, 0.9), colour=colour, bend=-0.1)
    axis.text(left, 1.4, f"program 2, lane {lane}", color=COLOURS[colour])
for middle, name in ((1.93, "x"), (3.8, "others'"), (5.67, "y"), (7.88, "others'")):
    axis.text(middle, 0.3, name, ha="center")
show(figure, "A row of 24 numbers: x, a -1, y, three more; two arrows end behind y")
print("numbers in this piece of memory:", len(memory), " that nobody may touch:", 1 + 3)

# %% [markdown]
# **What to see.** One piece of memory after the run; an arrow is load, double, store. No error, no warning: two
# numbers that belonged to somebody else are gone. The two lanes too many asked for numbers 10 and 11. Number 10 is the
# -1 behind `x`: it was doubled, and -2 stands behind `y`. Number 11 is one place further, where `y` begins; program 0
# had put a 0 there, and twice 0 is 0. The third -1 was nobody's turn.
#
# In a real program the lost numbers were a weight, or a part of another image. The answer is a **mask**: a block of
# booleans. Lanes whose mask is False load and store nothing.


# %%
@triton.jit
def double_inside(x, y, E, BLOCK: tl.constexpr):
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = d < E
    tl.store(y + d, 2 * tl.load(x + d, mask=inside, other=0.0), mask=inside)


# %%
memory[10:] = -1
double_inside[(triton.cdiv(10, 4),)](x, y, 10, BLOCK=4)
behind = memory[21:].tolist()
print("y:", [int(number) for number in y.tolist()])
print("behind y:", [int(number) for number in behind])
assert torch.equal(y, 2 * x) and behind == [-1, -1, -1]

# %% [markdown]
# `triton.cdiv(10, 4)` is 10 / 4, rounded up: 3 programs.
#
# ### Exercise 07.1 · Who owns what
#
# **Goal.** Know a program's numbers. **Difficulty.** recall. **Minutes.** 4. **Core.**
#
# A launch has blocks of `BLOCK` lanes over `E` numbers. Return a pair: the list of the numbers that the program with
# the id `program` owns, and how many of its lanes are masked. Programs that own nothing have an empty list.
#
# <details><summary>Hint</summary>
#
# The lanes ask for the numbers from `program * BLOCK` on, `BLOCK` of them. Inside are those below `E`.
#
# </details>


# %%
def owned(program, BLOCK, E):
    """([numbers that the program owns], masked lanes); all whole numbers."""
    # BEGIN SOLUTION
    d = range(program * BLOCK, (program + 1) * BLOCK)
    inside = [number for number in d if number < E]
    return inside, BLOCK - len(inside)
    # END SOLUTION


# %%
check("07.1", owned)

# %% [markdown]
# **A masked lane still computes.** It takes part in every instruction with the number `other`. Where lanes meet, in a
# sum or a maximum, that number counts. Here are three numbers, -4, -2 and -7, on four lanes, so one lane is masked. It
# loads first 0, then 7, then $-\infty$:


# %%
@triton.jit
def sum_and_largest(x, out, E, other, BLOCK: tl.constexpr):
    d = tl.arange(0, BLOCK)
    v = tl.load(x + d, mask=d < E, other=other)
    tl.store(out, tl.sum(v, axis=0))
    tl.store(out + 1, tl.max(v, axis=0))


# %%
x, out = torch.tensor([-4.0, -2.0, -7.0], device=device), torch.zeros(2, device=device)
for other in (0.0, 7.0, -math.inf):
    sum_and_largest[(1,)](x, out, 3, other, BLOCK=4)
    print(f"other = {other:>4}: sum {out[0].item():>4.0f}, largest {out[1].item():>3.0f}")
assert out.tolist() == [-math.inf, -2]

# %% [markdown]
# The sum should be -13, the largest -2. With 0 the sum is right and the largest is wrong: nobody gave us a 0. With 7
# both are wrong: the 7 is added, and it is the largest. With $-\infty$ the largest is right and the sum is not. What a
# masked lane must load depends on what is done with it: the number that **changes nothing**, called the **identity** of
# the operation. Adding 0 changes nothing. Taking the larger one of $v$ and $-\infty$ changes nothing.
#
# A scan has an identity, too. Its elements are the pairs $(a, b)$ of [chapter 06](06_scans.ipynb), each of which stands
# for the step $h \mapsto a\,h + b$:
#
# $$(a_2, b_2) \circ (a_1, b_1) = (a_2 a_1,\; a_2 b_1 + b_2) \tag{7.2}$$
#
# Its identity is the pair $(1, 0)$: times 1, plus 0, and every h stays as it is. So a masked place of a scan must have
# $a = 1$ and $b = 0$. All zeros, $(0, 0)$, would wipe the state out.
#
# ### Exercise 07.2 · The number that changes nothing
#
# **Goal.** Give each operation its identity. **Difficulty.** recall. **Minutes.** 4. **Core.**
#
# `operation` is "sum", "product", "max", "min" or "scan". Return the float that masked lanes must load; for "scan" the
# pair (a, b) of floats.
#
# <details><summary>Hint</summary>
#
# Which number changes no product? Which is smaller than all others, which larger? Infinity is `math.inf`. The scan's
# pair stands above this exercise.
#
# </details>


# %%
def identity(operation):
    """A float, or for "scan" a pair of floats (a, b)."""
    # BEGIN SOLUTION
    numbers = {"sum": 0.0, "product": 1.0, "max": -math.inf, "min": math.inf}
    return (1.0, 0.0) if operation == "scan" else numbers[operation]
    # END SOLUTION


# %%
check("07.2", identity)

# %% [markdown]
# ## 4. Time walks inside a program
#
# *Core.*
#
# Back to the scan. What may run at the same time? Images do not know of each other. Channels do not, either: each has a
# system of its own. But step t needs step t - 1. So:
#
# - **one program** owns BLOCK channels of one image: a two-dimensional launch, blocks of channels times images;
# - **lanes are channels** (channels never meet in a forward scan, so it should not matter what a masked lane loads; we
#   shall try it);
# - **time is a loop** inside the program. The state h is a variable. It stays in a register from the first step to the
#   last.
#
# One might expect that a fast scan must be a parallel scan. Here is none: every program walks step by step. What runs
# at the same time are channels and images, and these are enough to keep a chip busy: 128 images of Vim-Tiny have 49,152
# channels. (Section 8 is about what to do when there are not enough.)
#
# **Where is $u[b, t, d]$?** Memory is one long row. The tensor is (B, L, E) and its last dimension lies side by side,
# so the place is $(b\,L + t)\,E + d$. Neighbouring lanes own neighbouring places.

# %%
u, delta, A, B, C = random_inputs()
(_, L, E), N = u.shape, A.shape[1]
b, t, d = 1, 3, 17
print("place of u[1, 3, 17]:", (b * L + t) * E + d)
assert u.flatten()[(b * L + t) * E + d] == u[b, t, d]

# %% [markdown]
# We begin with one state for each channel, N = 1. One detail comes from the hardware: it has no $e^x$, but it has
# $2^x$. So we hand over $A \log_2 e$ and use `tl.exp2`:
#
# $$e^{\Delta A} = 2^{\Delta\, (A \log_2 e)} \tag{7.3}$$
#
# The multiplication by $\log_2 e$ is done once, not at every step.


# %%
@triton.jit
def scan_one_state(u, delta, A, B, y, L, E, other, BLOCK: tl.constexpr):
    """h = exp(delta A) h + delta u B, y = h; A (E,) is A log2(e), B (B, L)."""
    b, d = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = d < E
    a = tl.load(A + d, mask=inside, other=0.0)
    h = tl.zeros([BLOCK], tl.float32)
    for t in range(L):
        row = (b * L + t) * E + d
        u_t = tl.load(u + row, mask=inside, other=other)
        delta_t = tl.load(delta + row, mask=inside, other=other)
        h = tl.exp2(delta_t * a) * h + delta_t * u_t * tl.load(B + b * L + t)
        tl.store(y + row, h, mask=inside)


# %%
LOG2E = math.log2(math.e)
y = torch.empty_like(u)
grid = (triton.cdiv(E, 8), len(u))
A_1, B_1 = A[:, 0] * LOG2E, B[..., 0].contiguous()
expected = scan_by_loop(u, delta, A[:, :1], B[..., :1], torch.ones_like(C[..., :1]))[0]

# %%
for other in (0.0, 7.0):
    scan_one_state[grid](u, delta, A_1, B_1, y, L, E, other, BLOCK=8)
    print(f"masked lanes load {other:.0f}: equal to the loop: {close(y, expected)}")
    assert close(y, expected)

# %% [markdown]
# Six programs ran, 3 x 2. With 7 in the masked lanes the result is the same: a masked lane has a wrong state then, but
# no other lane reads it, and it is not stored. In a sum over channels the 7 would be wrong. Section 11 has one.
#
# Here are the six programs at work:

# %%
COLOUR_OF = ["blue", "orange", "green", "purple", "brown", "red"]  # of a program


def draw_program(axis, image, block, step):
    """One program's part of the box: BLOCK = 8 channels of an image, lit at `step`."""
    colour = COLOURS[COLOUR_OF[3 * image + block]]
    x, y = 8 * block + 30 * image, 1
    lanes = min(8, 20 - 8 * block)

    def fill(x, y, width, height, **options):
        axis.add_patch(plt.Rectangle((x, y), width, height, **options))

    fill(x, y, lanes, 11, facecolor="white", edgecolor=colour, linewidth=1.5)
    fill(x, y, lanes, step, facecolor=colour, alpha=0.25)
    fill(x, y + step, lanes, 1, facecolor=colour)
    fill(x + lanes, y + step, 8 - lanes, 1, facecolor="white", edgecolor=colour)
    if lanes < 8:
        look = {"fontsize": 7, "ha": "center", "va": "center"}
        axis.text(x + lanes / 2 + 4, y + step + 0.5, "masked", **look)
    lines = x + np.arange(1, lanes)
    axis.vlines(lines, y, y + 11, color=colour, linewidth=0.3)


# %%
def draw_box(figure, step):
    """The (B, L, E) box: two images, side by side, each cut into three programs."""
    axis = figure.subplots()
    axis.set(xlim=(-3, 58), ylim=(15, -1))
    axis.axis("off")
    for image in (0, 1):
        for block in range(3):
            draw_program(axis, image, block, step)
    axis.set_title(f"step {step}: six programs, each lights one row", fontsize=11)
    axis.text(-0.8, 6.5, "L: 11 steps", rotation=90, ha="right", va="center", fontsize=9)
    for image in (0, 1):
        axis.text(30 * image, 0.5, f"image {image}", fontsize=9)
        middle = 10 + 30 * image
        axis.text(middle, 13.5, "E: 20 channels are lanes", ha="center", fontsize=9)


print("numbers in the box:", u.numel(), " programs:", 2 * 3, " steps each:", L)
flipbook(draw_box, range(11), "Six programs walk down a box, a row at a time")

# %% [markdown]
# **What to see.** Six colours are six programs: three blocks of channels for each of two images. A lane is the column
# between two thin lines. In every frame all six programs go one row further, and keep their states. Full colour is the
# row of this step, pale the rows before it, white the rows to come. The last block of each image has only four
# channels: its other four lanes are the frame beside it, masked. Of the whole box, only the row of this step is
# in registers, and the state.
#
# ## 5. N states in registers
#
# *Core.*
#
# Now N states for each channel. The variable `h` becomes a block of (N, BLOCK): a column for each lane. Two kinds of
# numbers meet in it, and each is **broadcast** along the other direction.

# %%
figure, axis = canvas(7.4, 3.0)
rows = [2.0 - 0.38 * state for state in range(4)]
for lane in range(8):
    place = 2.5 + 0.4 * lane
    box(axis, place, 2.6, "", 0.34, 0.3, "orange")
    box(axis, place, 0.3, "", 0.34, 0.3, "purple")
    arrow(axis, (place, 2.43), (place, 2.19), colour="orange")
    arrow(axis, (place, 0.69), (place, 0.47), colour="purple")
    for row in rows:
        box(axis, place, row, "h", 0.34, 0.32, "green")
for row in rows:
    box(axis, 1.75, row, "B", 0.34, 0.32, "blue")
    arrow(axis, (1.94, row), (2.3, row), colour="blue")
    box(axis, 6.05, row, "C", 0.34, 0.32, "red")
    arrow(axis, (5.86, row), (5.5, row), colour="red")
axis.text(1.45, 1.45, "one number for\neach state", ha="right", va="center", fontsize=9)
axis.text(6.35, 1.45, "one number for\neach state", va="center", fontsize=9)
axis.text(5.6, 2.6, "$Δ_t u_t$: one number for each lane", va="center", fontsize=9)
axis.text(5.6, 0.3, "$y_t$: sum of C h down each lane", va="center", fontsize=9)
show(figure, "A block h of 4 states by 8 lanes; B left, C right, a row above, y below")
print("numbers of h in a lane's registers:", 4, " in the block:", 4 * 8)

# %% [markdown]
# **What to see.** The green block is h: a row for each state, a column for each lane. $B_t$ stands at the left and
# $C_t$ at the right, one number for each state. All lanes use them; that is what "all channels share B and C" means for
# a kernel. $\Delta_t u_t$ stands on top, one number for each lane. In code: `B_t[:, None]` is a column, `(delta_t *
# u_t)[None, :]` is a row, and their product fills the block.
#
# $y_t = C_t \cdot h_t$ is the sum down each column. **It stays within a lane.** If states were lanes, every step would
# end in a sum across lanes, which do not see each other's registers: they would have to exchange numbers.
#
# And `A` is handed over as (N, E), turned on its side, so that neighbouring lanes again own neighbouring places.


# %%
@triton.jit
def scan(u, delta, A, B, C, y, L, E, N: tl.constexpr, BLOCK: tl.constexpr):
    """(7.1) with N states a channel; A (N, E) is A log2(e), transposed."""
    d, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, N)
    b, inside = tl.program_id(1), d < E
    a = tl.load(A + n[:, None] * E + d[None, :], mask=inside[None, :], other=0.0)
    h = tl.zeros([N, BLOCK], tl.float32)
    for t in range(L):
        row, token = (b * L + t) * E + d, (b * L + t) * N + n
        u_t = tl.load(u + row, mask=inside, other=0.0)
        delta_t = tl.load(delta + row, mask=inside, other=0.0)
        B_t, C_t = tl.load(B + token), tl.load(C + token)
        h = tl.exp2(delta_t[None, :] * a) * h + (delta_t * u_t)[None, :] * B_t[:, None]
        tl.store(y + row, tl.sum(h * C_t[:, None], axis=0), mask=inside)


# %%
def turned(A):
    """A (E, N) as the kernels want it: A log2(e), (N, E), in one piece."""
    return (A * LOG2E).T.contiguous()


y = torch.empty_like(u)
scan[grid](u, delta, turned(A), B, C, y, L, E, N=N, BLOCK=8)
expected, last = scan_by_loop(u, delta, A, B, C)
print("states in registers:", N * 8, "a program; equal to the loop:", close(y, expected))
assert close(y, expected)

# %% [markdown]
# This is the whole idea of the fast scan: fourteen lines, and no array of shape (B, L, E, N) anywhere. (Here N must be
# a power of two. The package pads other N with states that are masked, as channels are.)
#
# ## 6. The mask that came too early
#
# *Core.*
#
# In a Mamba block the step size is not loaded as it is. The kernel computes it: $\Delta = \operatorname{softplus}(r +
# \beta)$ from the raw number $r$ and a bias $\beta$. And kernels often take several steps at once, in tiles of K; the
# backward pass does. If L is no multiple of K, the last tile reaches beyond the last step. Those steps are masked:
# `mask=inside, other=0.0`. That looks careful. Here is such a kernel, with a switch for a second mask. (The two long
# numbers are $\log_2 e$ and $\log 2$: softplus by powers of two.)


# %%
@triton.jit
def scan_tiles(
    u, raw, bias, A, B, states, L, E,
    BLOCK: tl.constexpr, K: tl.constexpr, AFTER: tl.constexpr,
):  # fmt: skip
    """One state for each channel, tiles of K steps; keeps h, of padded steps too."""
    d = tl.arange(0, BLOCK)
    a = tl.load(A + d, mask=d < E, other=0.0)
    beta = tl.load(bias + d, mask=d < E, other=0.0)
    h = tl.zeros([BLOCK], tl.float32)
    for head in range(0, L, K):
        for k in tl.static_range(K):
            t = head + k
            inside = (d < E) & (t < L)
            r = tl.load(raw + t * E + d, mask=inside, other=0.0) + beta
            step = tl.log2(1.0 + tl.exp2(r * 1.4426950408889634)) * 0.6931471805599453
            if AFTER:
                step = tl.where(inside, step, 0.0)
            u_t = tl.load(u + t * E + d, mask=inside, other=0.0)
            B_t = tl.load(B + t, mask=t < L, other=0.0)
            h = tl.exp2(step * a) * h + step * u_t * B_t
            tl.store(states + t * E + d, h, mask=d < E)


# %% [markdown]
# Two channels, five real steps, tiles of four: three steps are padding. All inputs are simple, so that the state is
# easy to follow: $u = B = 1$, $r = 0$, $\beta = 0$, $A = -1$ and $A = -0.2$.

# %%
L, E, K = 5, 2, 4
u, bias = torch.ones(L, E, device=device), torch.zeros(E, device=device)
A, B = torch.tensor([-1.0, -0.2], device=device), torch.ones(L, device=device)
early, late = torch.empty(2, 8, E, device=device)
for states, after in ((early, False), (late, True)):
    scan_tiles[(1,)](u, 0 * u, bias, A * LOG2E, B, states, L, E, BLOCK=2, K=K, AFTER=after)
for name, h in (("before softplus only", early[:, 0]), ("after softplus, too", late[:, 0])):
    print(f"mask {name:>20}: h after step 5 is {h[4]:.3g}, at the end {h[7]:.3g}")
assert torch.equal(late[4], late[7]) and (early[7] < early[4]).all()
assert torch.equal(late[4], early[4])  # no difference at any real step

# %%
figure, axis = plt.subplots(figsize=(6.4, 2.9))
for channel, colour, height in ((0, "blue", 0.8), (1, "orange", 2.2)):
    for h, line in ((early, "o--"), (late, "o-")):
        axis.plot(range(1, 9), h[:, channel].cpu(), line, color=COLOURS[colour])
    axis.text(3, height, f"A = {A[channel]:.1f}", ha="center", color=COLOURS[colour])
for place, text in ((late[7, 1], "mask after softplus"), (early[7, 1], "before only")):
    axis.text(8.2, place.item(), text, va="center")
axis.axvspan(5.2, 8.1, color=COLOURS["grey"], alpha=0.15)
axis.text(6.6, 2.95, "padding", ha="center")
axis.set(xlabel="step", ylabel="state h", xlim=(0.7, 10.6), ylim=(0, 3.2))
show(figure, "States rise for five steps; in the padding they stay, or they fade")
lost = 1 - early[7] / late[7]
print("share of the last state that is lost:", [f"{share:.0%}" for share in lost.tolist()])

# %% [markdown]
# **What to see.** Solid lines stay level in the padding, as they must. Dashed lines fall: the last state has faded, and
# whoever goes on from it, for instance token by token, goes on from a wrong number.
#
# **Why?** The masked steps loaded $r = 0$. But $\operatorname{softplus}(0) = \log 2 = 0.69$: a step that is not there
# has become a step of ordinary length. It adds nothing, since $u = 0$, so $b = 0$ as it should be. But $a = e^{0.69 A}$
# and not 1. The pair $(a, b)$ must be the identity $(1, 0)$ **where the scan uses it**, after everything that is done
# to what was loaded. So $\Delta$ is masked after softplus: $\Delta = 0$ gives $a = e^0 = 1$ and $b = 0$.
#
# The bug is hard to find: `y` is right at every real step, and lengths that are multiples of K are right altogether.
#
# ### Exercise 07.3 · How much is lost
#
# **Goal.** Predict the damage. **Difficulty.** derive. **Minutes.** 6. **Core.**
#
# A kernel masks before softplus only. A channel has the states `A` (N,), negative numbers, and the bias `bias`, a
# float; `padding` steps are padded. By which number, below 1, has the padding multiplied each state at the end?
# Return a tensor (N,).
#
# <details><summary>Hint</summary>
#
# A padded step loads r = 0, adds the bias and takes softplus. What does one such step do to h? And `padding` of them?
# `math.log1p(math.exp(bias))` is softplus of a float.
#
# </details>


# %%
def fade_of_padding(A, bias, padding):
    """The factors (N,) by which padded steps shrink the states; A (N,)."""
    # BEGIN SOLUTION
    delta = math.log1p(math.exp(bias))
    return torch.exp(A * delta * padding)
    # END SOLUTION


# %%
check("07.3", fade_of_padding)

# %% [markdown]
# ## 7. What bounds the speed
#
# *Core.*
#
# Two more words. A **cycle** is one tick of the chip's clock; there are about two billion in a second. A **scheduler**
# is the part of a GPU that starts instructions: one in each cycle, for all 32 lanes of a warp.
#
# Three things can make a kernel wait: **bytes** from memory, **exponentials** (a small unit of the chip computes them),
# and **instructions** (the scheduler starts no more than one in a cycle). So count them, for one step of the kernel
# `scan`, and for one warp of 32 lanes with one channel each. For one state of a lane:
#
# | | instruction |
# |---|---|
# | $\Delta \cdot a$ | multiplication |
# | $2^{\dots}$ | exponential |
# | $\dots \cdot h$ | multiplication |
# | $\dots + (\Delta u)\, B$ | multiply-add, one instruction |
# | $y + h\,C$ | multiply-add |
#
# Five instructions for each state, one of them an exponential; and one multiplication $\Delta \cdot u$ for all states
# together. All 32 lanes at once: an instruction is counted once, not 32 times. Bytes: u, delta and y for each channel,
# B and C once for all.

# %% [markdown]
# ### Exercise 07.4 · Count a step
#
# **Goal.** Count what a step costs. **Difficulty.** derive. **Minutes.** 8. **Core.**
#
# A warp has 32 lanes, each with `V` channels of `N` states. A number takes `width` bytes. Return a tuple of whole
# numbers: the instructions of the arithmetic (the table, and $\Delta \cdot u$), how many of these are exponentials, and
# the bytes loaded and stored by the whole warp in one step.
#
# <details><summary>Hint</summary>
#
# Begin with V = 1 and N = 1: 6 instructions, 1 exponential. In bytes: u, delta and y have 32 V numbers each. B_t and
# C_t have N numbers each, for all lanes together.
#
# </details>


# %%
def count_step(N, V, width):
    """(arithmetic instructions, exponentials among them, bytes) of a step of a warp."""
    # BEGIN SOLUTION
    return (5 * N + 1) * V, N * V, (3 * 32 * V + 2 * N) * width
    # END SOLUTION


# %%
check("07.4", count_step)

# %% [markdown]
# **Now ask the compiler.** What Triton makes of `scan` can be read without a GPU: Triton's package has a compiler for
# NVIDIA's chips on board, and a disassembler, which turns machine code into text. `loop_of` compiles our kernel in a
# child process (this process has chosen the interpreter) and returns the instructions of the loop over time.

# %%
body = loop_of(scan, {"N": 16, "BLOCK": 32}, numbers=("L", "E"))
if body is None:
    print("no disassembler here: below stand the counts that Triton 3.7.1 gave")
for instruction in (body or [])[-6:]:
    print(instruction.partition(" desc")[0])  # without addresses

# %% [markdown]
# These are the last six lines of the loop: the machine code of a Hopper GPU (sm_90). The names that matter to us:
# `MUFU.EX2` is $2^x$, `FMUL` a multiplication, `FFMA` a fused multiply-add, `LDG` and `STG` load from and store to
# memory. `BRA` branches back to the beginning. Count them by kind:

# %%
KINDS = {"MUFU.EX2": "exponentials", "FMUL": "multiplications", "FFMA": "multiply-adds"}
KINDS |= {"LDG": "loads and stores", "STG": "loads and stores"}
REST = "addresses, loop"


def count_kinds(body):
    """How many instructions there are of each kind."""
    counts = dict.fromkeys([*KINDS.values(), REST], 0)
    for line in body:
        name = re.sub(r"^@!?U?P\d+ ", "", line).split()[0]
        kinds = [kind for key, kind in KINDS.items() if name.startswith(key)]
        counts[kinds[0] if kinds else REST] += 1
    return counts


counts = count_kinds(body or [])
if body is None:
    counts = dict(zip(counts, (16, 34, 31, 11, 19), strict=True))
arithmetic = sum(list(counts.values())[:3])
print(*(f"{count} {kind}" for kind, count in counts.items()), sep=", ")
print(f"arithmetic: {arithmetic}; counted by hand for N = 16: {5 * 16 + 1}")
assert counts["exponentials"] % 16 == 0 and arithmetic >= 81

# %%
figure, axis = plt.subplots(figsize=(6.4, 2.2))
left, colours = 0, ["red", "orange", "blue", "green", "grey"]
for (name, number), colour in zip(counts.items(), colours, strict=True):
    axis.barh(0, number, left=left, color=COLOURS[colour], label=f"{number} {name}")
    left += number
axis.axvline(5 * 16 + 1, color="black", linestyle="--")
axis.text(5 * 16 - 1, 0.45, "counted by hand: 81", ha="right", va="bottom")
axis.set(xlabel="instructions of one step, 32 channels, N = 16", ylabel="", yticks=[])
axis.set(xlim=(0, 165), ylim=(-0.45, 0.7))
axis.legend(fontsize=9, loc="center right")
show(figure, "All instructions of a step, by kind; at 81 the arithmetic ends")
print("instructions of a step:", left, " beyond the arithmetic:", left - arithmetic)

# %% [markdown]
# **What to see.** The arithmetic ends at the dashed line, at the number counted by hand: the compiler wastes nothing
# there, and nothing can be saved there without leaving out arithmetic. What is right of the line is the price of moving
# numbers and of counting time.
#
# By kind, the table of this section has $2 \cdot 16 + 1 = 33$ multiplications and $2 \cdot 16 = 32$ multiply-adds. The
# compiler has 34 and 31: the sum $y$ begins with one product $h\,C$ to which nothing is added yet. Both ways it is 65.
#
# **Three clocks.** How long does a step take, if only one thing bounds it? Take an NVIDIA H200: 132 multiprocessors (a
# GPU's cores) with four schedulers each, so 528 schedulers, and 1.9 billion cycles in a second.
#
# - *Instructions:* one in a cycle.
# - *Exponentials:* a scheduler's unit for them has 4 lanes, so a warp of 32 keeps it busy for 32 / 4 = 8 cycles.
# - *Bytes:* memory copies $4.3 \cdot 10^{12}$ bytes in a second, for all 528 schedulers together. (B and C are read by
#   12 warps, one after the other, and come from a cache; they are left out.) A number takes 4 bytes in float32, and 2
#   in bfloat16.

# %%
bytes_a_cycle = 4.3e12 / (528 * 1.9e9)
clocks = {
    "instructions": sum(counts.values()),
    "exponentials": 8 * counts["exponentials"],
    "bytes, float32": 3 * 32 * 4 / bytes_a_cycle,
    "bytes, bfloat16": 3 * 32 * 2 / bytes_a_cycle,
    "PyTorch: bytes": naive / fused * 3 * 32 * 4 / bytes_a_cycle,
}
for name, cycles in clocks.items():
    print(f"{name:>15}: {cycles:>5.0f} cycles")
assert clocks["bytes, float32"] < clocks["instructions"] < clocks["PyTorch: bytes"] / 10

# %%
figure, axis = plt.subplots(figsize=(6.4, 2.3))
colours = [COLOURS[name] for name in ("blue", "red", "green", "green", "grey")]
places = range(len(clocks))
axis.scatter(clocks.values(), places, s=60, color=colours)
for place, cycles in zip(places, clocks.values(), strict=True):
    axis.annotate(f"{cycles:.0f}", (cycles, place), (8, -4), textcoords="offset points")
axis.set(xlabel="cycles for a step of 32 channels, computed", ylabel="", xscale="log")
axis.set(xlim=(10, 2e4), xticks=[10, 100, 1000, 10000], ylim=(4.5, -0.5))
axis.set_xticklabels(["10", "100", "1,000", "10,000"])
axis.set_yticks(places, clocks)
show(figure, "Five dots: a kernel's clocks from 45 to 128 cycles, PyTorch's far right")
largest = max(list(clocks)[:4], key=clocks.get)
print(f"the kernel's largest clock: {largest}, {clocks[largest]} cycles")

# %% [markdown]
# **What to see.** On this axis each line to the right is ten times as long. With float32 the kernel's three clocks
# stand close together: 90, 111 and 128 cycles. With bfloat16 there are half the bytes, so that clock goes down to 45,
# and the other two stay. The loop in PyTorch would wait for memory more than forty times as long as any of them, if
# every array went there and back. So the first thing that a kernel saves is bytes, as section 1 promised. Then the
# exponentials bound it, and the instructions come close behind. (These counts hold if the compiler does not know that
# 16 divides E: the end of this section.) With softplus and a gate, a step has more instructions,
# and these become the longest: `python -m minivim.kernels.gpu.sass` counts them for the package's kernels. Nothing was
# measured here. The kernel's dots are lower bounds: no GPU with these rates can be faster.
#
# **One word decides.** *Optional.* Tell the compiler that E is a multiple of 16 (Triton notices it by itself when it
# launches), and it rearranges the lanes: a lane loads four neighbouring channels at once, and the states are spread
# over lanes. Then y is a sum across lanes, and there are more instructions than before: launched plainly with E = 384,
# which 16 divides, they become the longest clock.

# %%
spread = loop_of(scan, {"N": 16, "BLOCK": 32}, numbers=("L", "E"), sixteens=("E",))
shuffles = sum(line.startswith(("SHFL", "BAR")) for line in spread or [])
total, exchanged = (len(spread), shuffles) if spread else (148, 11)
print(f"instructions: {sum(counts.values())} become {total}")
print(f"exchanges between lanes, and waits for them: 0 become {exchanged}")
assert total > sum(counts.values()) and exchanged > 0

# %% [markdown]
# That is why the package hands over `E_units` = E / V in place of E, and forbids Triton to look for a multiple of 16 in
# it: its lanes own V channels each, and all states of a channel stay in one lane. One cannot guess such a thing. One
# reads the machine code.
#
# ## 8. Chunks of time
#
# *Core.*
#
# A program of 32 lanes is one warp, and owns 32 channels. One image of Vim-Tiny has 384 channels: 12 warps for each
# direction. An H200 has 528 schedulers, and each wants several warps, so that it can work on one while another waits
# for memory.

# %%
schedulers = 528
for batch in (128, 8, 1):
    warps = 2 * batch * 384 // 32
    share = warps / schedulers
    print(f"batch {batch:>3}: {warps:>4} warps, {share:.2g} for each scheduler")
assert 2 * 384 // 32 < schedulers

# %% [markdown]
# With one image, nearly all of the chip is idle, while 24 warps (two directions) walk through time. Here the chunks of
# [chapter 06](06_scans.ipynb) earn their keep. Cut time into chunks and give each a program of its own. Three launches:
#
# 1. **States.** Each chunk starts from 0 and finds what it **adds** to the state. It also notes its **total** of
#    $\Delta$, which says by how much it would fade a state that enters. The fading of many steps is again one
#    exponential, because the exponents add up:
#
# $$\prod_t e^{\Delta_t A} = e^{A \sum_t \Delta_t} \tag{7.4}$$
#
# 2. **Combine.** Walk over the chunks, not over the steps: $h_{\text{next}} = e^{A\, \text{total}}\, h + \text{added}$.
# 3. **Scan.** All chunks at once, each from the state that enters it.

# %%
figure, axis = canvas(6.6, 2.9)
for height, name in ((2.4, "1. states"), (1.45, "2. combine"), (0.5, "3. scan")):
    axis.text(0.1, height, name, va="center", weight="bold", fontsize=9)
for chunk in range(4):
    place = 1.9 + 1.25 * chunk
    box(axis, place, 2.4, f"chunk {chunk}\nfrom 0", 1.05, 0.5, "orange")
    text = f"state before\nchunk {chunk}" + (": 0" if chunk == 0 else "")
    box(axis, place, 1.45, text, 1.05, 0.5, "purple")
    box(axis, place, 0.5, f"chunk {chunk}\nfrom its state", 1.05, 0.5, "green")
    arrow(axis, (place, 1.18), (place, 0.77), colour="grey")
    if chunk < 3:
        arrow(axis, (place, 2.13), (place + 1.1, 1.72), colour="grey")
        arrow(axis, (place + 0.53, 1.45), (place + 0.72, 1.45), colour="black")
show(figure, "Four chunks from 0 at once, a chain of four states, four chunks at once")
print("chunks at the same time: 4 in the first launch, 1 in the second, 4 in the third")

# %% [markdown]
# **What to see.** Top row, orange: each chunk, walked from a state of 0; it hands on what it adds, and its total.
# Middle row, pink: the chain. It is short, with one step for each chunk. Bottom row, green: each chunk again, now from
# the state that really enters it. No arrow leaves the orange box of chunk 3: nobody comes after it, so only the state
# after the last step would need what it adds. The price: every exponential is computed twice, in the first launch and
# in the third. So the package cuts time only where the chip would be idle.


# %%
@triton.jit
def chunk_states(
    u, delta, A, B, added, total, L, E, steps, N: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Launch 1: what a chunk adds (B, chunks, N, E), its sum of delta (B, chunks, E)."""
    b, chunk, chunks = tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    d, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, N)
    inside, place = d < E, n[:, None] * E + d[None, :]
    a = tl.load(A + place, mask=inside[None, :], other=0.0)
    h, sum_delta = tl.zeros([N, BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for t in range(chunk * steps, tl.minimum((chunk + 1) * steps, L)):
        row, token = (b * L + t) * E + d, (b * L + t) * N + n
        delta_t = tl.load(delta + row, mask=inside, other=0.0)
        u_t, B_t = tl.load(u + row, mask=inside, other=0.0), tl.load(B + token)
        h = tl.exp2(delta_t[None, :] * a) * h + (delta_t * u_t)[None, :] * B_t[:, None]
        sum_delta += delta_t
    run = b * chunks + chunk
    tl.store(added + run * N * E + place, h, mask=inside[None, :])
    tl.store(total + run * E + d, sum_delta, mask=inside)


# %%
@triton.jit
def combine(A, added, total, enters, chunks, E, N: tl.constexpr, BLOCK: tl.constexpr):
    """Launch 2: the state that enters each chunk (B, chunks, N, E)."""
    d, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, N)
    b, inside, place = tl.program_id(1), d < E, n[:, None] * E + d[None, :]
    a = tl.load(A + place, mask=inside[None, :], other=0.0)
    h = tl.zeros([N, BLOCK], tl.float32)
    for chunk in range(chunks):
        run = b * chunks + chunk
        tl.store(enters + run * N * E + place, h, mask=inside[None, :])
        step = tl.load(total + run * E + d, mask=inside, other=0.0)
        more = tl.load(added + run * N * E + place, mask=inside[None, :], other=0.0)
        h = tl.exp2(step[None, :] * a) * h + more


# %% [markdown]
# The third kernel is `scan` with two changes: time runs over one chunk, and h is loaded, not zero.


# %%
@triton.jit
def scan_chunks(
    u, delta, A, B, C, enters, y, L, E, steps, N: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Launch 3: y (B, L, E), every chunk from the state that enters it."""
    b, chunk, chunks = tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    d, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, N)
    inside, place = d < E, n[:, None] * E + d[None, :]
    a = tl.load(A + place, mask=inside[None, :], other=0.0)
    enters += (b * chunks + chunk) * N * E
    h = tl.load(enters + place, mask=inside[None, :], other=0.0)
    for t in range(chunk * steps, tl.minimum((chunk + 1) * steps, L)):
        row, token = (b * L + t) * E + d, (b * L + t) * N + n
        u_t = tl.load(u + row, mask=inside, other=0.0)
        delta_t = tl.load(delta + row, mask=inside, other=0.0)
        B_t, C_t = tl.load(B + token), tl.load(C + token)
        h = tl.exp2(delta_t[None, :] * a) * h + (delta_t * u_t)[None, :] * B_t[:, None]
        tl.store(y + row, tl.sum(h * C_t[:, None], axis=0), mask=inside)


# %%
def scan_in_chunks(u, delta, A, B, C, steps):
    """y and the states that enter the chunks, by the three launches."""
    (batch, L, E), N, a = u.shape, A.shape[1], turned(A)
    chunks, blocks = triton.cdiv(L, steps), triton.cdiv(E, 8)
    added, enters = torch.empty(2, batch, chunks, N, E, device=device)
    total, y = torch.empty(batch, chunks, E, device=device), torch.empty_like(u)
    grid = blocks, batch, chunks
    chunk_states[grid](u, delta, a, B, added, total, L, E, steps, N=N, BLOCK=8)
    combine[(blocks, batch)](a, added, total, enters, chunks, E, N=N, BLOCK=8)
    scan_chunks[grid](u, delta, a, B, C, enters, y, L, E, steps, N=N, BLOCK=8)
    return y, enters


# %%
u, delta, A, B, C = random_inputs()
expected, last = scan_by_loop(u, delta, A, B, C)
y, enters = scan_in_chunks(u, delta, A, B, C, steps=4)
_, before = scan_by_loop(u[:, :8], delta[:, :8], A, B[:, :8], C[:, :8])
print("11 steps in chunks of 4, 4 and 3; equal to the loop:", close(y, expected))
print("what enters chunk 2 is the state after 8 steps:", close(enters[:, 2].mT, before))
assert close(y, expected) and close(enters[:, 2].mT, before)

# %% [markdown]
# ### Exercise 07.5 · The chain in the middle
#
# **Goal.** Write launch 2 in PyTorch. **Difficulty.** build. **Minutes.** 10. **Core.**
#
# `added` (chunks, N, E) is what each chunk adds to a state that enters as 0, `total` (chunks, E) the sum of its
# $\Delta$, `A` is (E, N) as in the model (not turned, no $\log_2 e$). Return the states that **enter** the chunks,
# (chunks, N, E). The first one is 0.
#
# <details><summary>Hint</summary>
#
# One loop over the chunks. Note the state first, then move on: fade it by `torch.exp(A.T * total[c])` and add.
#
# </details>


# %%
def entering_states(added, total, A):
    """added (chunks, N, E), total (chunks, E), A (E, N) -> states before each chunk."""
    # BEGIN SOLUTION
    h, enters = torch.zeros_like(added[0]), []
    for more, step in zip(added, total, strict=True):
        enters.append(h)
        h = torch.exp(A.T * step) * h + more
    return torch.stack(enters)
    # END SOLUTION


# %%
check("07.5", entering_states)

# %% [markdown]
# ## 9. Both directions in one launch
#
# *Core.*
#
# Vim scans the tokens forward and backward ([chapter 08](08_vision_mamba.ipynb)), each direction with its own B, C and
# delta. A simple way back: flip u, delta, B and C in memory, scan, and flip y. Each of these five flips reads an array
# and writes it again, and computes nothing. A kernel can walk the other way instead. Direction 0 starts at step 0 and
# goes up; direction 1 starts at L - 1 and goes down:
#
# $$t = \text{first} + \text{sign} \cdot i, \qquad \text{first} = \text{direction} \cdot (L - 1), \qquad \text{sign} = 1
# - 2 \cdot \text{direction} \tag{7.5}$$
#
# The direction is one more axis of the launch, so both run at the same time, and twice as many programs keep the chip
# busy. The inputs of direction 1 lie behind those of direction 0: `u` is (2, B, L, E), and so on.


# %%
@triton.jit
def scan_both(u, delta, A, B, C, y, L, E, N: tl.constexpr, BLOCK: tl.constexpr):
    """(7.1) in both directions; a 2 stands in front of all shapes; A turned."""
    b, direction = tl.program_id(1), tl.program_id(2)
    walk = direction * tl.num_programs(1) + b  # images forward, then images backward
    d, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, N)
    inside = d < E
    A += direction * N * E
    a = tl.load(A + n[:, None] * E + d[None, :], mask=inside[None, :], other=0.0)
    h = tl.zeros([N, BLOCK], tl.float32)
    first, sign = direction * (L - 1), 1 - 2 * direction
    for i in range(L):
        t = first + sign * i
        row, token = (walk * L + t) * E + d, (walk * L + t) * N + n
        u_t = tl.load(u + row, mask=inside, other=0.0)
        delta_t = tl.load(delta + row, mask=inside, other=0.0)
        B_t, C_t = tl.load(B + token), tl.load(C + token)
        h = tl.exp2(delta_t[None, :] * a) * h + (delta_t * u_t)[None, :] * B_t[:, None]
        tl.store(y + row, tl.sum(h * C_t[:, None], axis=0), mask=inside)


# %%
ahead, back = random_inputs(seed=1), random_inputs(seed=2)
u, delta, A, B, C = (torch.stack(pair) for pair in zip(ahead, back, strict=True))
A, y = torch.stack([turned(each) for each in A]), torch.empty_like(u)
grid = (3, 2, 2)
scan_both[grid](u, delta, A, B, C, y, 11, 20, N=4, BLOCK=8)
forward = scan_by_loop(*ahead)[0]
flipped = [x if x.dim() == 2 else x.flip(1) for x in back]
backward = scan_by_loop(*flipped)[0].flip(1)
print("programs:", math.prod(grid), " forward equal:", close(y[0], forward))
print("backward equal to flip, loop, flip:", close(y[1], backward))
assert close(y[0], forward) and close(y[1], backward)

# %%
figure, axis = canvas(6.6, 2.0)
for token in range(8):
    box(axis, 1.5 + 0.6 * token, 1.0, str(token), width=0.5, height=0.4, colour="grey")
arrow(axis, (1.3, 1.55), (5.9, 1.55), colour="blue")
arrow(axis, (5.9, 0.45), (1.3, 0.45), colour="orange")
axis.text(3.6, 1.75, "direction 0: first = 0, sign = +1", ha="center")
axis.text(3.6, 0.12, "direction 1: first = 7, sign = -1", ha="center")
axis.text(1.0, 1.0, "tokens", ha="right", va="center", fontsize=9)
show(figure, "Eight tokens in a row; an arrow walks right from 0, another left from 7")
print("tokens: 8; flipped copies in memory:", 0)

# %% [markdown]
# **What to see.** One row of tokens, two walks: to the right from token 0, and to the left from token 7. Nothing is
# turned round in memory.
#
# ### Exercise 07.6 · A kernel of your own
#
# **Goal.** Write a kernel: lanes, mask, time, direction. **Difficulty.** build. **Minutes.** 15. **Core.**
#
# The simplest memory halves its state at every step: $h_t = \tfrac12 h_{t-1} + x_t$. `x` is (L, E). Return (2, L, E):
# in `[0]` all $h_t$ forward, in `[1]` all $h_t$ backward, where the walk begins at the last step. Write the kernel and
# its launch, with blocks of 8 channels and one launch for both directions; E is not always a multiple of 8. The frame
# gives you `y` with 64 numbers to spare, so that a forgotten mask damages nobody.
#
# <details><summary>Hint</summary>
#
# Take `scan_one_state`. The launch is `kernel[(triton.cdiv(E, 8), 2)](x, y, L, E, BLOCK=8)`. In the kernel, the
# direction r is `tl.program_id(1)`. `x` is the same for both directions. Step t of direction r goes to the place
# `(r * L + t) * E + d`.
#
# </details>


# %%
def both_ways(x):
    """x (L, E) -> h forward and backward (2, L, E)."""
    L, E = x.shape
    x, y = x.float().contiguous().to(device), torch.zeros(2 * L * E + 64, device=device)

    # BEGIN SOLUTION
    @triton.jit
    def kernel(x, y, L, E, BLOCK: tl.constexpr):
        d, direction = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
        h = tl.zeros([BLOCK], tl.float32)
        for i in range(L):
            t = direction * (L - 1) + (1 - 2 * direction) * i
            h = 0.5 * h + tl.load(x + t * E + d, mask=d < E, other=0.0)
            tl.store(y + (direction * L + t) * E + d, h, mask=d < E)

    kernel[(triton.cdiv(E, 8), 2)](x, y, L, E, BLOCK=8)
    # END SOLUTION
    return y[: 2 * L * E].view(2, L, E).cpu()


# %%
check("07.6", both_ways)

# %% [markdown]
# ## 10. The package's own
#
# *Core.*
#
# You have met every idea of the kernel that `minivim` runs on a GPU. Here is its loop over time, as it stands in
# `kernels/gpu/scan/kernels.py`.

# %%
[folder] = find_spec("minivim.kernels").submodule_search_locations
source = (Path(folder) / "gpu" / "scan" / "kernels.py").read_text()
start = source.index("        for i in range(head", source.index("def scan_forward"))
loop = source[start : source.index("    if chunk == chunks - 1", start)]
print(textwrap.dedent(loop))
assert "step_size(raw, inside, SOFTPLUS)" in loop

# %% [markdown]
# | in the kernel | the step of this chapter |
# |---|---|
# | `mask=inside, other=0.0` | section 3 |
# | `h = tl.exp2(delta_i[None, :] * a_log2) * h + ...` | sections 4 and 5: states in registers, B and C broadcast |
# | `step_size(raw, inside, SOFTPLUS)` | section 6: bias, softplus, and only then the mask |
# | `for i in range(head, ...)`, `chunk`, `low`, `high` | section 8: one chunk of time |
# | `sign`, `t` | section 9: the direction |
# | `u_t`, `delta_t`, `z_t` | *not values*: how many numbers lie between two steps; `u_p` is where the first step lies |
# | `shift`, `some`, `ACC` | the bias; the mask of states; float32 |
# | `u_ahead`, `raw_ahead` | loaded one step early: memory is far, and the step hides the wait |
# | `skip`, `z_i * sigmoid(z_i)` | $D\,u$ and the gate, while the numbers are here |
# | `.to(tl.int64)`, `E_units` | addresses beyond 2 billion; the layout of section 7 |
#
# What it has and `scan` has not: it loads ahead, it gates, it counts addresses in 64 bits, it takes bfloat16 and keeps
# h in float32, and it saves every 32nd state for the backward pass. Run it, with everything switched on, and compare it
# with the loop. (Without Triton it cannot run. Then the next two cells take `chunked`, the package's scan in PyTorch,
# and print its name.)

# %%
own = "triton" if find_spec("triton") else "chunked"  # without Triton ours is missing
u, raw, A, B, C = random_inputs(batch=1, L=37, E=40, N=16, seed=3)
generator = torch.Generator().manual_seed(4)
z = torch.randn(1, 37, 40, generator=generator).to(device)
D, bias = torch.randn(2, 40, generator=generator).to(device)
rest = D, z, bias, True  # True: softplus
found = selective_scan(u, raw, A, B, C, *rest, backend=own)
expected = (scan_by_loop(u, F.softplus(raw + bias), A, B, C)[0] + D * u) * F.silu(z)
print(f"the package's kernel ({own}) equals the loop:", close(found, expected))
assert close(found, expected)

# %%
reverse = selective_scan(u, raw, A, B, C, *rest, reverse=True, backend=own)
u_r, delta_r, B_r, C_r = (x.flip(1) for x in (u, F.softplus(raw + bias), B, C))
expected = (scan_by_loop(u_r, delta_r, A, B_r, C_r)[0].flip(1) + D * u) * F.silu(z)
direction = u, raw, A, B, C, D, bias
both = bidirectional_scan(direction, direction, z, backend=own)
print("reversed, equal to flip, loop, flip:", close(reverse, expected))
print("both in one launch, equal to their mean:", close(both, (found + reverse) / 2))
assert close(reverse, expected) and close(both, (found + reverse) / 2)

# %% tags=["nbval-ignore-output"]
if device == "cuda" and own == "triton":
    big = random_inputs(batch=32, L=197, E=384, N=16)
    milliseconds = triton.testing.do_bench(lambda: selective_scan(*big, backend=own))
    print(f"this GPU: {milliseconds:.3f} ms for 32 images of Vim-Tiny, one direction")
else:
    print("no GPU here: the interpreter says what a kernel computes, not how long it takes")

# %% [markdown]
# ## 11. Backward, without a race
#
# *Optional.*
#
# The backward pass is the adjoint recurrence of [chapter 06](06_scans.ipynb): with $a_t = e^{\Delta_t A}$ and $g_t$ the
# gradient of $h_t$,
#
# $$g_t = C_t\, dy_t + a_{t+1}\, g_{t+1} \tag{7.6}$$
#
# *[Chapter 06](06_scans.ipynb), (6.6), with $dh_t = C_t\, dy_t$.* It walks from the last step to the first, in
# registers, like everything here. From $g_t$ follow all gradients. With $q_t = g_t\, a_t\, h_{t-1}$, used twice:
#
# $$du_t = \Delta_t \sum_n g_t B_t \tag{7.7}$$
#
# $$d\Delta_t = \sum_n q_t A + u_t \sum_n g_t B_t \tag{7.8}$$
#
# $$dA = \sum_t \Delta_t\, q_t \tag{7.9}$$
#
# $$dB_t = \sum_d g_t\, \Delta_t u_t \qquad dC_t = \sum_d dy_t\, h_t \tag{7.10}$$
#
# *The chain rule on (7.1), as in [chapter 06](06_scans.ipynb), (6.7): $\Delta_t$ stands in it twice, in
# $a_t = e^{\Delta_t A}$ and in $\Delta_t u_t B_t$, hence two terms.*
# The sums go over the states n, the channels d, and the steps t (in dA over the images, too).

# %% [markdown]
# Two things are new.
#
# **It needs the states.** At teaching size the forward pass stores them all, (B, L, N, E): the large array again. The
# package stores every 32nd and computes the others a second time, in the registers and a small scratch.
#
# **It sums over channels.** The sums of (7.10) go over all channels, and these belong to different programs. If all of
# them added to the same place, two could read the old number, both add, and both write: one sum is lost. That is a
# **race**. The way out: each program leaves its part in a place of its own, and the parts are added afterwards, always
# in the same order. No race, and the same bits in every run.


# %%
@triton.jit
def scan_backward(
    u, delta, A, B, C, states, dy, du, ddelta, dA, dB, dC,
    L, E, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """All gradients; dA (B, N, E), dB, dC (blocks, B, L, N) are parts to be added up."""
    d, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, N)
    b = tl.program_id(1)
    part = (tl.program_id(0) * tl.num_programs(1) + b) * L * N + n
    inside, place = d < E, n[:, None] * E + d[None, :]
    a_log2 = tl.load(A + place, mask=inside[None, :], other=0.0)
    carry, sum_A = tl.zeros([N, BLOCK], tl.float32), tl.zeros([N, BLOCK], tl.float32)
    for i in range(L):
        t = L - 1 - i
        row, token = (b * L + t) * E + d, (b * L + t) * N + n
        u_t = tl.load(u + row, mask=inside, other=0.0)
        delta_t = tl.load(delta + row, mask=inside, other=0.0)
        dy_t = tl.load(dy + row, mask=inside, other=0.0)
        B_t, C_t = tl.load(B + token), tl.load(C + token)
        a = tl.exp2(delta_t[None, :] * a_log2)
        kept = states + (b * L + t - 1) * N * E + place
        before = tl.load(kept, mask=inside[None, :] & (t > 0), other=0.0)
        h = a * before + (delta_t * u_t)[None, :] * B_t[:, None]
        g = carry + dy_t[None, :] * C_t[:, None]  # (7.6)
        q, s = g * a * before, tl.sum(g * B_t[:, None], axis=0)
        tl.store(du + row, delta_t * s, mask=inside)  # (7.7)
        change = tl.sum(q * a_log2, axis=0) * 0.6931471805599453 + u_t * s  # (7.8)
        tl.store(ddelta + row, change, mask=inside)
        sum_A += delta_t[None, :] * q  # (7.9), and (7.10):
        tl.store(dB + part + t * N, tl.sum(g * (delta_t * u_t)[None, :], axis=1))
        tl.store(dC + part + t * N, tl.sum(dy_t[None, :] * h, axis=1))
        carry = a * g
    tl.store(dA + b * N * E + place, sum_A, mask=inside[None, :])


# %% [markdown]
# The number 0.693... is $\log 2$: it turns $A \log_2 e$ back into A. The masked lanes do no harm: their $dy$ and
# $\Delta u$ are 0, the identity of the sums over channels. Compare all five gradients with those that PyTorch finds
# through the loop.

# %%
inputs = [x.requires_grad_() for x in random_inputs(seed=5)]
u, delta, A, B, C = inputs
y = scan_by_loop(*inputs)[0]
until = [slice(0, t + 1) for t in range(11)]
states = [scan_by_loop(u[:, s], delta[:, s], A, B[:, s], C[:, s])[1].mT for s in until]
states = torch.stack(states, dim=1).detach()  # (B, L, N, E)
dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(6)).to(device)
expected = torch.autograd.grad(y, inputs, dy)

# %%
u, delta, A, B, C = (x.detach() for x in inputs)
du, ddelta = torch.empty(2, *u.shape, device=device)
dB, dC = torch.empty(2, 3, *B.shape, device=device)
dA = torch.empty(2, 4, 20, device=device)
gradients, A = (du, ddelta, dA, dB, dC), turned(A)
scan_backward[(3, 2)](u, delta, A, B, C, states, dy, *gradients, 11, 20, N=4, BLOCK=8)
found = du, ddelta, dA.sum(0).T, dB.sum(0), dC.sum(0)
for name, ours, theirs in zip(("u", "delta", "A", "B", "C"), found, expected, strict=True):
    print(f"gradient of {name:>5}: equal to autograd's {close(ours, theirs)}")
    assert close(ours, theirs)

# %% [markdown]
# ## 12. The interpreter as a debugger
#
# *Optional.*
#
# What goes wrong in kernels is mostly two things: a place that is wrong, and an order that is not there. A wrong place
# is found by printing, as in section 2. An order that is not there is harder: **on the machine where you test, it may
# be there by chance.** The interpreter runs program 0, then 1, then 2. A GPU does not.
#
# Here is a running sum over 12 numbers, in chunks of 3. Each program adds its chunk to what its neighbour on the left
# has left behind. To find out whether the order matters, hand it over: a table says which chunk a program takes.


# %%
@triton.jit
def relay(order, x, ends, BLOCK: tl.constexpr):
    """ends[c]: the sum of all of x up to chunk c, or so it is meant."""
    c = tl.load(order + tl.program_id(0))
    d = tl.arange(0, BLOCK)
    own = tl.sum(tl.load(x + 3 * c + d, mask=d < 3, other=0.0), axis=0)
    left = tl.load(ends + c - 1, mask=c > 0, other=0.0)
    tl.store(ends + c, left + own)


# %%
x = torch.arange(1.0, 13.0, device=device)
right = x.view(4, 3).sum(1).cumsum(0)


# %%
def run_relay(order):
    """Whether the programs, in this order, find the running sum."""
    ends = torch.zeros(4, device=device)
    relay[(4,)](torch.tensor(order, device=device), x, ends, BLOCK=4)
    return torch.equal(ends, right)


# %%
outcomes = [run_relay(order) for order in permutations(range(4))]
print("in the order 0, 1, 2, 3:", run_relay((0, 1, 2, 3)))
print("orders in which the sum is right:", sum(outcomes), "of", len(outcomes))
assert device == "cuda" or (outcomes[0] and sum(outcomes) == 1)

# %% [markdown]
# One order in 24 is right, and it is the one that the interpreter takes. **A result that changes with the order of the
# programs is a race.** That is why section 8 needs three launches: between two launches everything is finished, and
# that is the only order a launch can count on.
#
# **What this test cannot find.** The lost sum of section 11: load, add, store to one place. In the interpreter a
# program runs to its end before the next one begins, so the sum is right in every order. On a GPU two programs may run
# step by step at the same time. Let two programs do so here, by hand:

# %%
total = 0.0


def program(own):
    """Adds its number to `total`: load, then store; in between, another one may run."""
    global total
    loaded = total
    yield
    total = loaded + own


for schedule in ("AABB", "ABAB"):
    total, running = 0.0, {"A": program(3.0), "B": program(4.0)}
    for name in schedule:
        next(running[name], None)
    print(f"order of steps {schedule}: 3 + 4 = {total:.0f}")
assert total == 4

# %% [markdown]
# ### Exercise 07.7 · Who disturbs whom
#
# **Goal.** Find races without running anything. **Difficulty.** investigate. **Minutes.** 10. **Optional.**
#
# For each program of a launch you get the list of places that it reads and the list of places that it writes. Return
# the list of all pairs (p, q) with p < q whose order, or whose steps, can matter; sorted. Then look at section 8: which
# of its launches would have such pairs if they were one?
#
# <details><summary>Hint</summary>
#
# Two programs that only read a place do not disturb each other. If one writes a place that the other reads or writes,
# they do. It does not matter which of the two is p.
#
# </details>
#
# <details><summary>Answer to the question</summary>
#
# Launch 1 writes `added` and `total`, launch 2 reads them; launch 2 writes `enters`, launch 3 reads it. In one launch,
# every program of chunk c would have to wait for those of chunk c - 1, and with what this chapter has no program can be
# told to wait.
#
# </details>


# %%
def conflicts(reads, writes):
    """reads, writes: a list of places for each program -> sorted list of pairs (p, q)."""
    # BEGIN SOLUTION
    pairs = []
    for p in range(len(reads)):
        for q in range(p + 1, len(reads)):
            touched_p, touched_q = {*reads[p], *writes[p]}, {*reads[q], *writes[q]}
            if touched_p & {*writes[q]} or touched_q & {*writes[p]}:
                pairs.append((p, q))
    return pairs
    # END SOLUTION


# %%
check("07.7", conflicts)

# %% [markdown]
# ## 13. The same words on a CPU
#
# *Core.*
#
# A CPU has few cores, but each has lanes, too: a vector register holds 8 or 16 numbers of float32, and one instruction
# works on all of them (SIMD). It has a cache, a small fast memory beside each core. The package's CPU kernel is written
# in numba, which compiles Python functions. Nothing has to be learned anew:
#
# | on a GPU | on a CPU |
# |---|---|
# | program | task: a group of channels of some images; threads take tasks from a counter |
# | 32 lanes of a warp | 8 or 16 lanes of a vector register |
# | states in registers | four states at a time in registers, the others in the first cache |
# | mask of the last block | `load_part`: the first `count` lanes, 0 in the others |
# | chunk of time for more programs | chunk of 16 steps, so that its numbers stay in the cache |
# | direction: sign and first step | the same code on negative strides |
# | one exponential instruction | none: a polynomial of degree 5, in every lane |
# | bound by instructions and exponentials | bound by exponentials |
#
# Here is `scan` once more, as loops. The innermost loop is the lanes. The compiler turns it into vector instructions,
# if it can.

# %%
try:
    from numba import njit
except ImportError:  # the same loops in plain Python: right, and slow

    def njit(**options):
        return lambda function: function


# %%
@njit(fastmath=True)
def scan_cpu(u, delta, A, B, C, y, LANES):
    """(7.1) for arrays; A (N, E); a task is LANES channels of one image."""
    batch, L, E = u.shape
    N = A.shape[0]
    for task in range(batch * ((E + LANES - 1) // LANES)):
        b, e = task % batch, task // batch * LANES
        count = min(LANES, E - e)  # the mask: lanes that there are
        h = np.zeros((N, LANES), np.float32)
        for t in range(L):
            y[b, t, e : e + count] = 0
            for n in range(N):
                for k in range(count):
                    step, u_t = delta[b, t, e + k], u[b, t, e + k]
                    h[n, k] = np.exp(step * A[n, e + k]) * h[n, k] + step * u_t * B[b, t, n]
                    y[b, t, e + k] += h[n, k] * C[b, t, n]


# %%
def run_cpu(u, delta, A, B, C):
    """y (B, L, E) by `scan_cpu`."""
    arrays = [x.cpu().numpy() for x in (u, delta, A.T.contiguous(), B, C)]
    y = np.empty_like(arrays[0])
    scan_cpu(*arrays, y, 16)
    return torch.from_numpy(y)


inputs = random_inputs()
equal = close(run_cpu(*inputs), scan_by_loop(*inputs)[0].cpu())
print("lanes: 16, tasks:", 2 * triton.cdiv(20, 16), " equal to the loop:", equal)
assert equal

# %% [markdown]
# **How fast?** One image of Vim-Tiny, one thread: the loop of section 1 in PyTorch, `scan_cpu`, the package's kernel
# (`backend="numba"`), and, as a yardstick, PyTorch's `exp` of an array of shape (B, L, E, N) that is already there: the
# exponentials of the scan, with one trip through memory for them.


# %% tags=["nbval-ignore-output"]
def cpu_times(repeats):
    """Milliseconds of work of one thread, the median of `repeats` runs, by name."""
    inputs = [x.cpu() for x in random_inputs(batch=1, L=197, E=384, N=16)]
    large = inputs[1][..., None] * inputs[2]  # delta A, (B, L, E, N)
    work = {"loop in PyTorch": lambda: scan_by_loop(*inputs)}
    if find_spec("numba"):
        work["scan_cpu"] = lambda: run_cpu(*inputs)
        work["package"] = lambda: selective_scan(*inputs, backend="numba")
    work["exp alone"] = lambda: large.exp()
    threads, times = torch.get_num_threads(), {}
    torch.set_num_threads(1)
    for name, function in work.items():
        runs = []
        for _ in range(repeats + 1):  # the first one compiles
            start = time.process_time()
            function()
            runs.append(1e3 * (time.process_time() - start))
        times[name] = sorted(runs[1:])[repeats // 2]
    torch.set_num_threads(threads)
    return times


for name, milliseconds in cpu_times(5).items():
    print(f"{name:>15}: {milliseconds:.2f} ms")

# %% [markdown]
# The picture shows the same from a machine with a name: an Intel Xeon with AVX-512 (vectors of 16 lanes), kept in
# `docs/measurements/07_kernels.json`. *Optional:* set `MEASURE` to True to replace the file by your own.

# %%
MEASURE = False
project = Path(find_spec("minivim").origin).parents[1]
file = project / "docs" / "measurements" / "07_kernels.json"
if MEASURE:
    facts = {"machine": platform.processor(), "command": "notebook 07, MEASURE = True"}
    facts |= {"date": time.strftime("%Y-%m-%d"), "torch": torch.__version__}
    file.write_text(json.dumps(facts | {"milliseconds": cpu_times(50)}, indent=1) + "\n")
measured = json.loads(file.read_text())["milliseconds"]
figure, axis = plt.subplots(figsize=(6.4, 2.2))
bars = axis.barh(list(measured)[::-1], list(measured.values())[::-1], color=COLOURS["blue"])
axis.bar_label(bars, fmt="%.2g", padding=3)
axis.set(xlabel="milliseconds, one thread, (B, L, E, N) = (1, 197, 384, 16)", ylabel="")
axis.set(xlim=(0, 1.15 * max(measured.values())))
show(figure, "Four bars: loop in PyTorch and scan_cpu long, package and exp alone short")
print(f"scan_cpu takes {measured['scan_cpu'] / measured['package']:.2g} times as long")
assert measured["package"] < 2 * measured["exp alone"] < measured["scan_cpu"] / 2

# %% [markdown]
# **What to see.** `scan_cpu` never stores an array with an axis N, and is hardly faster than the loop in PyTorch. The
# package takes 16 times less: as long as PyTorch needs for the exponentials alone. All else that it does is hidden
# beneath.
#
# `scan_cpu` and the package's kernel run nearly the same loops. Why is one so slow? Again we read the machine code. In
# the names of an Intel or AMD chip, `expf` is a function that takes one number, and a name that ends in `ps` is an
# instruction for a whole vector.

# %% tags=["nbval-ignore-output"]
if find_spec("numba"):
    code = "".join(scan_cpu.inspect_asm().values())
    vectors = re.findall(r"\bv?(?:mul|fn?madd\d+)ps", code)
    print("calls of expf:", "expf" in code, " multiplications of vectors:", len(vectors))

# %% [markdown]
# On the machine of the picture: there are calls of `expf`, and not one multiplication of vectors. The call, for one
# number, keeps the compiler from turning the lanes into vector instructions: 1.2 million exponentials are computed one
# by one. (Where numba finds Intel's library of vector functions, it can be otherwise.) The package writes its lanes out
# (`kernels/cpu/lanes.py`), and computes $2^x$ in all 16 at once: split $x$ into a whole number and a rest between
# $-\tfrac12$ and $\tfrac12$, take a polynomial of the rest, and add the whole number to the exponent. The CPU has the
# same bound as the GPU: exponentials.

# %% [markdown]
# ## 14. Padding once more: the causal convolution
#
# *Optional.*
#
# In front of the scan, a Mamba block has a short convolution along time: width 4, one filter for each channel, and
# **causal**, so $y_t$ sees $x_{t-3}, \dots, x_t$. At the first three steps it reaches in front of the beginning. Its
# operation is a sum, so what is missing there loads 0. It is often asked whether a causal convolution must be shifted
# by one step, so that a token does not see itself. Look at what $y_t$ sees:


# %%
@triton.jit
def causal_conv(x, weight, y, L, E, BLOCK: tl.constexpr):
    """y[t] = sum over k of weight[:, k] x[t - 3 + k]; x, y (L, E), weight (E, 4)."""
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    for t in range(L):
        total = tl.zeros([BLOCK], tl.float32)
        for k in tl.static_range(4):
            s = t - 3 + k
            x_s = tl.load(x + s * E + d, mask=(d < E) & (s >= 0), other=0.0)
            total += x_s * tl.load(weight + 4 * d + k, mask=d < E, other=0.0)
        tl.store(y + t * E + d, total, mask=d < E)


# %%
x = torch.randn(9, 5, generator=torch.Generator().manual_seed(7)).to(device)
weight = torch.linspace(0.4, 1, 20).view(5, 4).to(device)
y = torch.empty_like(x)
causal_conv[(1,)](x, weight, y, 9, 5, BLOCK=8)
expected = F.conv1d(x.T[None], weight[:, None], padding=3, groups=5)[0, :, :9].T
print("equal to PyTorch's convolution, padded by 3 in front:", close(y, expected))
assert close(y, expected)

# %%
ones, seen = torch.eye(9, device=device), torch.empty(9, 9, device=device)
same = torch.ones(9, 4, device=device)  # channel s gets a single 1, at step s
causal_conv[(2,)](ones, same, seen, 9, 9, BLOCK=8)
seen = seen.cpu()
figure, axis = plt.subplots(figsize=(3.6, 3.2))
axis.imshow(seen > 0, cmap="Blues", vmax=1.6)
axis.grid(False)
axis.set(xlabel="input step s", ylabel="output step t", title="What $y_t$ sees")
axis.set(xticks=range(9), yticks=range(9))
show(figure, "A 9 by 9 grid; row t is coloured at t and the three steps before it")
print("inputs that y_0, ..., y_4 see:", (seen > 0).sum(1)[:5].tolist())
assert (seen.diag() > 0).all() and (seen.triu(1) == 0).all()

# %% [markdown]
# **What to see.** Every row ends on the diagonal: $y_t$ sees its own token and the three before it, never a later one.
# Nothing is shifted. A shift would be needed if $y_t$ had to *predict* $x_t$; it predicts, if anything, what comes
# next. The first rows are shorter, and the masked places loaded 0.

# %% [markdown]
# ## What you built, and where it lives
#
# | here | in the package |
# |---|---|
# | `scan`, `scan_tiles`, `scan_both`, `scan_chunks` | `scan_forward` in `minivim/kernels/gpu/scan/kernels.py` |
# | `chunk_states`, `combine`, exercise 07.5 | `scan_states`, `combine_states`, in that file (`faded`: our `total`) |
# | `scan_backward` | `scan_backward`: states every 32 steps, the others computed again |
# | softplus and mask, exercise 07.3 | `step_size` in `minivim/kernels/gpu/maths.py` |
# | the count of section 7, exercise 07.4 | `python -m minivim.kernels.gpu.sass` |
# | `scan_cpu` | `minivim/kernels/cpu/scan/forward.py`; its lanes are in `cpu/lanes.py` |
# | `causal_conv` | `minivim/kernels/gpu/conv/` and `cpu/conv/` |

# %% [markdown]
# You can now say what masked places must load: whatever takes part without a trace. Two things can be masked.
# **Channels beyond E:** in the forward scan nobody meets them, so any finite number would do; in the backward pass they
# are summed over, so they need 0. **Steps beyond L:** the state of a real channel walks through them, so they need the
# identity of the scan, $a = 1$, $b = 0$, at the place where the scan uses it.
#
# Previous: [06 Scans](06_scans.ipynb) · Map: [00 Start here](00_start_here.ipynb) · Next:
# [08 Vision Mamba](08_vision_mamba.ipynb)
#
# ## Further reading
#
# - A. Gu, T. Dao, *Mamba: Linear-Time Sequence Modeling with Selective State Spaces*, 2023, arXiv 2312.00752. Section
#   3.3 says what its kernel keeps on the chip and what it computes twice.
# - P. Tillet, H. T. Kung, D. Cox, *Triton: An Intermediate Language and Compiler for Tiled Neural Network
#   Computations*, 2019. The tutorials of Triton's documentation begin where section 2 does.
# - `kernels/README.md` of this project: derivations, counts, and what was tried and did not pay.
