# %% [markdown]
# # 06 · Scans
#
# $h[t]$ needs $h[t-1]$, which needs $h[t-2]$. So a recurrence must be computed one step after the other. Must it?
# This chapter computes a thousand states in ten rounds. Then it measures the plain loop beside that, on a
# processor like yours: with one recurrence the ten rounds beat the loop as PyTorch runs it, with thousands at once, as
# in a real layer, the loop wins. You will be able to say when which one is ahead, and why.
#
# **Learning goals.** After this chapter you can
# - put two steps of a recurrence together into one, and test whether a rule allows that;
# - draw three parallel scans, and count their work and their depth;
# - predict from sequences and lanes (the numbers that a processor handles at once) which scan is the fastest;
# - say where the shortcut by cumulative products overflows, and mend it;
# - derive the backward pass of a scan by hand, write it, and check it;
# - trade memory for computing, with numbers predicted before they are measured;
# - tell a wrong gradient from a wrong test.
#
# **Prerequisites.** [Chapter 05](05_selection.ipynb): the selective scan, $\bar A[t] = e^{\Delta[t] A}$. [Chapter
# 02](02_discretization.ipynb): the recurrence. The chain rule; `loss.backward()`.
#
# **Time.** 81 minutes for the core, 99 with everything; all cells together run for 20 seconds.
#
# Previous: [05 Selection](05_selection.ipynb) · Next: [07 Kernels](07_kernels.ipynb) · [The map](00_start_here.ipynb)

# %%
import json
import math
import time
import weakref
from fractions import Fraction
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from minivim import selective_scan
from minivim.course import check
from minivim.figures import COLOURS, arrow, box, canvas, flipbook, show, use_style
from minivim.ops import scan_reference

use_style()
torch.set_default_dtype(torch.float64)


# %%
def largest_error(found, expected):
    """The largest difference, as a part of the largest expected number."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


assert largest_error(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 5.0])) == 0.2

# %% [markdown]
# ## 1. Every step waits
#
# *Core.*
#
# After its projections, a selective layer is nothing but this, once for each channel and each of its states:
#
# $$h[t] = a[t]\, h[t-1] + b[t] \qquad a[t] = e^{\Delta[t] A} \qquad b[t] = \Delta[t]\, B[t]\, u[t] \tag{6.1}$$
#
# *Mamba, arXiv 2312.00752, Eq. 2, with the discretization of its code.* Four tokens are enough to see the difficulty.
# With $a = \tfrac12, \tfrac12, \tfrac14, \tfrac12$ and $b = 8, 2, 1, 3$, and nothing before: $h = 8$, then $\tfrac12
# \cdot 8 + 2 = 6$, then $\tfrac14 \cdot 6 + 1 = 2.5$, then $\tfrac12 \cdot 2.5 + 3 = 4.25$.

# %%
a = torch.tensor([0.5, 0.5, 0.25, 0.5])
b = torch.tensor([8.0, 2.0, 1.0, 3.0])


def loop(a, b):
    """All states of (6.1), one after the other: a, b (L, ...) -> h (L, ...)."""
    h, states = torch.zeros_like(b[0]), []
    for a_t, b_t in zip(a.unbind(0), b.unbind(0), strict=True):
        h = a_t * h + b_t
        states.append(h)
    return torch.stack(states)


# %%
print("states:", loop(a, b).tolist())
assert loop(a, b).tolist() == [8, 6, 2.5, 4.25]

# %%
figure, axis = canvas(7.6, 1.7)
box(axis, 0.5, 1.2, "h = 0", 0.7, 0.45, "grey")
for t in range(4):
    box(axis, 2 + 1.6 * t, 1.2, f"h[{t}] = {loop(a, b)[t].item():g}", 0.95, 0.45)
    left = 0.85 if t == 0 else 0.88 + 1.6 * t
    arrow(axis, (left, 1.2), (1.52 + 1.6 * t, 1.2), f"×{a[t].item():g}")
    box(axis, 2 + 1.6 * t, 0.35, f"b[{t}] = {b[t].item():g}", 0.95, 0.4, "orange")
    arrow(axis, (2 + 1.6 * t, 0.55), (2 + 1.6 * t, 0.97))
show(figure, "Four states in a row; each is a times the one before, plus b from below")
print("steps that wait for each other:", len(a) - 1)

# %% [markdown]
# **What to see.** The arrows between the states form one chain. The last state waits for all others.
#
# Three remarks before we break the chain.
# - **No convolution.** In [chapter 03](03_recurrence_is_convolution.ipynb) the FFT removed the waiting, because $a$ was
#   the same at every step. Here each token chooses its own $a[t]$. There is no kernel.
# - **"Should it not be $u[t-1]$?"** $b[t]$ holds the input of the same step. Books that write $u[t-1]$ number
#   the states differently ([chapter 02](02_discretization.ipynb), after (2.2)). The chain is the same.
# - **Shapes.** Image, channel and state never meet inside a scan. So we put time first and all else into one axis: $a$
#   and $b$ are (L, S), with $S = B \cdot E \cdot N$ columns. From here on **a sequence** is one such column: the L
#   values of one state of one channel of one image, a recurrence of its own. No sequence waits for another. Vim-Tiny,
#   the smallest of the image models that this course is heading for, reads its tokens forwards and backwards, and
#   has $384 \cdot 16 = 6144$ sequences for one image and direction.

# %% [markdown]
# ## 2. Two steps are one step
#
# *Core.*
#
# A step does one thing: multiply by $a$, add $b$. Write it as a pair $(a, b)$. Two steps, first $(a_1, b_1)$, then
# $(a_2, b_2)$, do
#
# $$a_2\,(a_1 h + b_1) + b_2 = (a_2 a_1)\, h + (a_2 b_1 + b_2)$$
#
# This is again: multiply by a number, add a number. So two steps *are* a step. Write $\bullet$ for "and then":
#
# $$(a_1, b_1) \bullet (a_2, b_2) = (a_2 a_1,\; a_2 b_1 + b_2) \tag{6.2}$$
#
# *Blelloch, Prefix sums and their applications, section 1.4.1.* **By hand:** $(\tfrac12, 8) \bullet (\tfrac12, 2) =
# (\tfrac14, 6)$. Starting from 0, this one step gives 6, which is $h[1]$. The step that does nothing is $(1, 0)$, the
# **identity**.
#
# ### Exercise 06.1 · Two steps in one
#
# **Goal.** Write the rule on which the chapter stands. **Difficulty.** recall. **Minutes.** 4. **Core.**
#
# `first` and `second` are pairs $(a, b)$ of tensors. `first` happens first. Return the pair of (6.2).
#
# <details><summary>Hint</summary>
#
# `(a_1, b_1), (a_2, b_2) = first, second`. What was added first is multiplied by the second step, too.
#
# </details>


# %%
def two_in_one(first, second):
    """The step that does what `first` and then `second` do: pairs of tensors -> a pair."""
    # BEGIN SOLUTION
    (a_1, b_1), (a_2, b_2) = first, second
    return a_2 * a_1, a_2 * b_1 + b_2
    # END SOLUTION


# %%
check("06.1", two_in_one)

# %% [markdown]
# ## 3. May the brackets move?
#
# *Core.*
#
# Four steps can be put together from the left, $((s_0 \bullet s_1) \bullet s_2) \bullet s_3$. That is the chain again.
# Or two people take two steps each, at the same time, and a third puts the halves together: $(s_0 \bullet s_1) \bullet
# (s_2 \bullet s_3)$. Both must give the same. A rule for which brackets may move is called **associative**:
#
# $$(x \bullet y) \bullet z = x \bullet (y \bullet z) \tag{6.3}$$


# %%
def and_then(first, second):
    """The rule (6.2) on two pairs."""
    (a_1, b_1), (a_2, b_2) = first, second
    return a_2 * a_1, a_2 * b_1 + b_2


def text(pair):
    return f"({Fraction(pair[0].item())}, {pair[1].item():.3g})"


# %%
steps = list(zip(a, b, strict=True))
left, right = and_then(*steps[:2]), and_then(*steps[2:])
chain = and_then(and_then(left, steps[2]), steps[3])
print("chain:", text(chain), " tree:", text(and_then(left, right)))
assert chain == and_then(left, right) and chain[1] == loop(a, b)[-1]


# %%
def draw_joins(axis, shift, joins, title):
    """Four steps and their joins; a join is (x, y, pair, the places it comes from)."""
    axis.text(1.85 + shift, 2.72, title, ha="center")
    for t, step in enumerate(steps):
        box(axis, 0.5 + 0.9 * t + shift, 2.3, text(step), 0.8, 0.34, "orange")
    for x, y, pair, *sources in joins:
        box(axis, x + shift, y, text(pair), 1.15, 0.34)
        for x_from, y_from in sources:
            side = 0.15 if x_from > x else -0.15
            start = (x_from + shift, y_from - 0.17)
            arrow(axis, start, (x + side + shift, y + 0.17), colour="grey")


# %%
one, two, three, four = ((0.5 + 0.9 * t, 2.3) for t in range(4))
three_joined = and_then(left, steps[2])
chained = [(0.95, 1.65, left, one, two), (1.85, 1.0, three_joined, (0.95, 1.65), three)]
chained += [(2.75, 0.35, chain, (1.85, 1.0), four)]
halves = [(0.95, 1.65, left, one, two), (2.75, 1.65, right, three, four)]
halves += [(1.85, 1.0, chain, (0.95, 1.65), (2.75, 1.65))]
figure, axis = canvas(8.2, 2.9)
draw_joins(axis, 0, chained, "a chain: 3 rounds")
draw_joins(axis, 4.3, halves, "a tree: 2 rounds")
show(figure, "Four steps joined one by one in three rounds, by halves in two; same result")
print("joins in the chain:", len(chained), " in the tree:", len(halves))

# %% [markdown]
# **What to see.** Three joins each, and the same last box. In the tree two of them happen at the same time.
#
# **Test before you scan.** A scan cannot notice that its rule is not associative. It returns numbers, and they are
# wrong. This happens: somebody wants a running sum that fades, $y \leftarrow 0.9\,y + x$, hands the rule "0.9 times
# left, plus right" to a library's parallel scan, and wonders about the result. So try (6.3) on random triples first.


# %%
def gap(rule, draw, triples=1000):
    """How far (x . y) . z and x . (y . z) are apart, at most, on random triples."""
    worst = 0.0
    for _ in range(triples):
        x, y, z = draw(), draw(), draw()
        one, other = rule(rule(x, y), z), rule(x, rule(y, z))
        for p, q in zip(one, other, strict=True):
            worst = max(worst, (p - q).abs().max().item())
    return worst


# %%
def numbers():
    return (torch.randn(()),)


def pairs():
    return torch.rand(()), torch.randn(())


def matrices():
    return (torch.randn(3, 3),)


RULES = {
    "pairs, (6.2)": (and_then, pairs),
    "the larger": (lambda x, y: (torch.maximum(x[0], y[0]),), numbers),
    "matrix product": (lambda x, y: (y[0] @ x[0],), matrices),
    "0.9 left + right": (lambda x, y: (0.9 * x[0] + y[0],), numbers),
    "mean of the two": (lambda x, y: ((x[0] + y[0]) / 2,), numbers),
}

# %%
torch.manual_seed(0)
gaps = {name: gap(*rule) for name, rule in RULES.items()}
for name, worst in gaps.items():
    verdict = "associative" if worst < 1e-12 else f"NOT associative, off by {worst:.1g}"
    print(f"{name:>17}: {verdict}")
assert [worst < 1e-12 for worst in gaps.values()] == [True, True, True, False, False]

# %%
fade, one = RULES["0.9 left + right"][0], (torch.tensor(1.0),)
as_chain = fade(fade(fade(one, one), one), one)[0]
as_tree = fade(fade(one, one), fade(one, one))[0]
print(f"four ones, fading by 0.9: chain {as_chain:.3g}, tree {as_tree:.3g}")
assert as_chain < as_tree

# %% [markdown]
# The rule 0.9 left + right is off by more than rounding. Why? Take 0.5, and the numbers 8, 2, 1. From the left:
# $0.5\,(0.5 \cdot 8 + 2) + 1 = 4$, which is right. With the other brackets: $0.5 \cdot 8 + (0.5 \cdot 2 + 1) = 6$. The
# 8 has passed **two** steps and was halved once. A number alone does not tell how many steps it stands for. The pair
# $(a, b)$ does: its $a$ is what the whole part multiplies by.
#
# Two remarks. Associative is not *commutative*: brackets may move, neighbours may not be exchanged, so every
# scan below minds which one comes first. And in floating point (6.3) holds up to rounding. So a parallel scan and a
# loop differ in the last digits, and neither is wrong.
#
# ### Exercise 06.2 · Mend the rule
#
# **Goal.** Make a rule associative by carrying more. **Difficulty.** derive. **Minutes.** 7. **Core.**
#
# Parts are pairs (value, count): a value with how many steps it stands for. One step is $(x, 1)$. Return `left` and
# then `right` as one part, so that values fade by `g` (a float, for example 0.9) with each step, however the brackets
# stand.
#
# <details><summary>Hint</summary>
#
# Everything in the left value must pass all steps of the right part. How often is it multiplied by g on its way?
#
# </details>


# %%
def fading_sum(left, right, g):
    """`left` and then `right` as one part; parts are (value, count), g a float."""
    # BEGIN SOLUTION
    (value_1, count_1), (value_2, count_2) = left, right
    return g**count_2 * value_1 + value_2, count_1 + count_2
    # END SOLUTION


# %%
check("06.2", fading_sum)

# %% [markdown]
# ## 4. All states in $\log_2 L$ rounds: Hillis and Steele
#
# *Core.*
#
# A tree gives the last state. We want **all**: $s_0$, then $s_0 \bullet s_1$, then $s_0 \bullet s_1 \bullet s_2$, and
# so on. This is called a **scan**, and the selective scan has its name from here.
#
# To compare ways of doing it we count in one currency, the **combine**: one use of (6.2) for one sequence. **Work** is
# how many there are in all. **Depth** is how many rounds must wait for each other; inside a round all combines can
# happen at once. The function below notes for each round how many combines it does. In the shapes, the last axis holds
# the sequences. All axes before it are time.

# %%
rounds = []  # how many combines each round has done


def combine(first, second):
    """(6.2) for many pairs at once: one round. a and b are (..., S)."""
    (a_1, b_1), (a_2, b_2) = first, second
    rounds.append(a_2.shape[:-1].numel())
    return a_2 * a_1, a_2 * b_1 + b_2


# %%
def count(scan, L):
    """(work, depth) of a scan of L steps."""
    rounds.clear()
    scan(torch.rand(L, 1), torch.rand(L, 1))
    return sum(rounds), len(rounds)


# %%
def sequential(a, b):
    """All prefixes, one after the other: a, b (L, S) -> h (L, S)."""
    prefixes = [(a[0], b[0])]
    for step in zip(a[1:, None], b[1:, None], strict=True):
        prefixes.append(combine(prefixes[-1], step))
    return torch.stack([h.view(-1) for _, h in prefixes])


print("sequential, L = 8: work, depth =", count(sequential, 8))
assert count(sequential, 8) == (7, 7)

# %% [markdown]
# The loop does one combine a round: work $L - 1$, depth $L - 1$. No scan can do with less work: each combine can finish
# one state.
#
# **Hillis and Steele** (1986): in the first round every step joins with the one before it. Then every part stands for
# two steps. In the next round every part joins with the part two places before, then four, then eight. Press *play*.


# %%
def label(first, last):
    return f"{first}" if first == last else f"{first}–{last}"


def draw_hillis_steele(figure, frame):
    axis = figure.add_subplot()
    axis.set(xlim=(-0.6, 7.6), ylim=(3.5, -0.5))
    axis.axis("off")
    for level in range(4):
        lit, distance = level <= (frame + 1) // 2, 2 ** (level - 1)
        for t in range(8):
            first, known = max(0, t - 2**level + 1), level <= frame // 2
            colour = ("green" if first == 0 else "blue") if known else "white"
            box(axis, t, level, label(first, t) if known else "", 0.72, 0.46, colour)
            top, bottom = level - 0.77, level - 0.23
            if level and lit and t >= distance:
                arrow(axis, (t - distance, top), (t - 0.1, bottom), colour="orange")
            if level and lit:
                arrow(axis, (t, top), (t, bottom), colour="grey")
    done = sum(8 - 2**level for level in range(frame // 2))  # in the rows that are filled
    when = "in" if frame % 2 else "after" if frame else "before"
    axis.set_title(f"{when} round {max(1, (frame + 1) // 2)} of 3: {done} combines done")


# %%
print("rounds:", math.ceil(math.log2(8)), " combines:", (8 - 1) + (8 - 2) + (8 - 4))
flipbook(draw_hillis_steele, range(7), "Hillis and Steele: eight steps in three rounds")

# %% [markdown]
# **What to see.** A box says which steps it stands for. Green boxes begin at step 0: they are finished states. After
# each round twice as many are green. An orange arrow brings the part from further left, a grey one the part itself.


# %%
def hillis_steele(a, b):
    """All prefixes in ceil(log2 L) rounds: a, b (L, S) -> h (L, S)."""
    distance = 1
    while distance < len(a):
        a_new, b_new = combine((a[:-distance], b[:-distance]), (a[distance:], b[distance:]))
        a, b = torch.cat((a[:distance], a_new)), torch.cat((b[:distance], b_new))
        distance *= 2
    return b


# %%
assert largest_error(hillis_steele(a[:, None], b[:, None])[:, 0], loop(a, b)) == 0
for L in (8, 1024):
    print(f"L = {L}: work, depth =", count(hillis_steele, L))
assert count(hillis_steele, 1024) == (1024 * 10 - 1023, 10)

# %% [markdown]
# Ten rounds in place of 1,023. But look at the work: 9,217 combines in place of 1,023. For L a power of 2 it is
# $L \log_2 L - L + 1$. **A parallel scan is not less work. It is more work, with less waiting.**
#
# ### Exercise 06.3 · Count for any length
#
# **Goal.** Know the price exactly. **Difficulty.** derive. **Minutes.** 6. **Optional.**
#
# For a whole number `L` from 1 on, not only a power of 2, return the pair (work, depth) of Hillis and Steele's scan.
#
# <details><summary>Hint</summary>
#
# The round with distance d joins all positions that have one d places before them. How many are these? The distances
# are 1, 2, 4, ..., as long as d < L.
#
# </details>


# %%
def hillis_steele_cost(L):
    """(work, depth) of Hillis and Steele's scan of L steps; whole numbers."""
    # BEGIN SOLUTION
    distances = [2**k for k in range((L - 1).bit_length())]
    return sum(L - distance for distance in distances), len(distances)
    # END SOLUTION


# %%
check("06.3", hillis_steele_cost)

# %% [markdown]
# ## 5. No overlaps: Blelloch
#
# *Core.*
#
# Hillis and Steele compute parts that overlap: in the third row above, 1–4, 2–5, 3–6 and 4–7 all contain step 4.
# **Blelloch** (1990) lets no two parts of a row overlap. He walks through one tree two times.
#
# - **Up.** Neighbours join, then the joins join, up to the root. Every part remembers what it stands for. The number
#   of joins halves from floor to floor: $L/2 + L/4 + \dots + 1 = L - 1$ combines.
# - **Down.** Every part learns what came **before** it. Before the root came nothing: the identity $(1, 0)$. A left
#   half has the same before it as its parent. A right half has, in addition, the left half: *before the parent*
#   $\bullet$ *left half*. One combine for each parent: $L - 1$ again.
#
# At the bottom each step knows all that came before it. That is the state *before* the step, so one shift to the left
# gives $h$, and the root gives the last one.


# %%
def draw_blelloch(figure, frame):
    axis = figure.add_subplot()
    axis.set(xlim=(-0.6, 7.6), ylim=(-0.5, 3.55))
    axis.axis("off")
    for level in range(4):
        width, down = 2**level, frame >= 7 - level
        for first in range(0, 8, width):
            x, last = first + (width - 1) / 2, first + width - 1
            name = "" if level > frame else f"{label(first, last)}"
            past = f"\npast: {label(0, first - 1) if first else '–'}" if down else ""
            colour = "white" if level > frame else "green" if down else "blue"
            box(axis, x, level, name + past, 0.84 if level == 0 else 1.5, 0.62, colour)
            if level and frame >= level:
                for child in (x - width / 4, x + width / 4):
                    ends = [(child, level - 0.69), (x, level - 0.31)]
                    start, end = ends[::-1] if frame >= 8 - level else ends
                    arrow(axis, start, end, colour="grey")
                if level and frame >= 8 - level:  # the left half goes to its sibling
                    gap = width / 4 - (0.42 if level == 1 else 0.75)
                    ends = (x - gap, level - 1.2), (x + gap, level - 1.2)
                    arrow(axis, *ends, colour="orange")
    turn = frame - (frame > 3)  # frame 4 gives the root its past, without a combine
    done = sum([4, 2, 1, 1, 2, 4][:turn])
    when = f"{'up' if frame < 4 else 'down'}, after round {turn} of 6"
    axis.set_title(f"{when if frame else 'before round 1'}: {done} combines done")


# %%
print("combines: up", 4 + 2 + 1, " down", 1 + 2 + 4, " rounds:", 2 * 3)
flipbook(draw_blelloch, range(8), "Blelloch: up a tree and down, eight steps in six rounds")

# %% [markdown]
# **What to see.** Blue boxes climb: each says which steps it stands for. Then green runs down: each box also says
# which steps are its past. The root has none. A grey arrow hands the parent's past down; an orange arrow adds the left
# half to the past of its right sibling. At the end every step knows its past, from 0 to the one before it.
#
# The code needs a length that is a power of 2. Other lengths are filled up with steps that do nothing, $(1, 0)$. The
# padding stands at the end and is cut off, so here any numbers would do. It matters as soon as the state *after* the
# last step is handed on: $(1, 0)$ leaves it as it was, a zero in place of the 1 would wipe it out. [Chapter
# 07](07_kernels.ipynb) needs that.


# %%
def padded(a, b, multiple):
    """a and b with identity steps (1, 0) at the end, so that `multiple` divides L."""
    shape = -len(a) % multiple, a.shape[1]
    return torch.cat((a, a.new_ones(shape))), torch.cat((b, b.new_zeros(shape)))


def interleaved(even, odd):
    """The two tensors in turns, along the first dimension."""
    return torch.stack((even, odd), dim=1).flatten(0, 1)


# %%
def blelloch(a, b):
    """All prefixes in 2 log2 L rounds, up and down a tree: a, b (L, S) -> h (L, S)."""
    L = len(a)
    floors = [padded(a, b, 2 ** (L - 1).bit_length())]
    while len(floors[-1][0]) > 1:  # up
        a, b = floors[-1]
        floors.append(combine((a[0::2], b[0::2]), (a[1::2], b[1::2])))
    a_all, b_all = floors.pop()
    before = torch.ones_like(a_all), torch.zeros_like(b_all)
    for a, b in reversed(floors):  # down
        before_right = combine(before, (a[0::2], b[0::2]))
        before = tuple(map(interleaved, before, before_right))
    return torch.cat((before[1][1:], b_all))[:L]


# %%
assert largest_error(blelloch(a[:, None], b[:, None])[:, 0], loop(a, b)) == 0
for L in (8, 64, 1024):
    work, depth = count(blelloch, L)
    print(f"L = {L:>4}: work {work:>4}, depth {depth:>2}")
    assert (work, depth) == (2 * (L - 1), 2 * math.log2(L))

# %% [markdown]
# Twice the work of the loop, whatever L is. So "a parallel scan costs $O(L \log L)$" is true for Hillis and Steele and
# false for Blelloch. And twice is still not less.
#
# ## 6. In chunks
#
# *Core.*
#
# Trees are not the only way. A few workers may share the steps as people would: cut the sequence into chunks of K
# steps.
#
# 1. **Inside.** Each worker walks through its own chunk, as if nothing came before. All walk at the same time.
# 2. **Carry.** The last prefix of each chunk is handed on, from chunk to chunk.
# 3. **Fix.** Each chunk puts what it was handed in front of its other prefixes. One round.


# %%
def draw_chunks(figure, frame):
    axis = figure.add_subplot()
    axis.set(xlim=(-1.3, 3.6), ylim=(2.5, -0.5))
    axis.axis("off")
    for chunk in range(3):
        axis.text(-0.95, chunk, f"chunk {chunk}", ha="center", va="center", fontsize=9)
        for k in range(4):
            t, carried = 4 * chunk + k, frame >= 3 + chunk if k == 3 else frame >= 6
            known, final = frame >= k, frame >= k and (chunk == 0 or carried)
            name = label(0 if final else 4 * chunk, t) if known else ""
            colour = "green" if final else "blue" if known else "white"
            box(axis, k, chunk, name, 0.72, 0.5, colour)
            if 0 < k <= frame and frame < 4:
                arrow(axis, (k - 0.64, chunk), (k - 0.36, chunk), colour="grey")
        if 0 < chunk <= frame - 3:
            arrow(axis, (3, chunk - 0.75), (3, chunk - 0.25), colour="orange")
            for k in range(3 if frame >= 6 else 0):
                arrow(axis, (2.7, chunk - 0.8), (k, chunk - 0.25), colour="orange")
    name = "inside" if frame < 4 else "carry" if frame < 6 else "fix"
    done, when = sum([3, 3, 3, 1, 1, 6][:frame]), f"{name}, after round {frame} of 6"
    axis.set_title(f"{when if frame else 'before round 1'}: {done} combines done")


# %%
print("combines: inside", 3 * 3, " carry", 2, " fix", 2 * 3, " rounds:", 3 + 2 + 1)
flipbook(draw_chunks, range(7), "A scan in chunks: three chunks of four steps, six rounds")

# %% [markdown]
# **What to see.** Three rounds inside, all chunks at once (the first chunk is green at once: nothing comes before it).
# Two rounds hand on the last column. One round finishes all the rest.


# %%
def chunked(a, b, K):
    """All prefixes by chunks of K steps: a, b (L, S) -> h (L, S)."""
    L = len(a)
    a, b = (x.unflatten(0, (-1, K)) for x in padded(a, b, K))  # (chunks, K, S)
    inside = [(a[:, 0], b[:, 0])]
    for k in range(1, K):
        inside.append(combine(inside[-1], (a[:, k], b[:, k])))
    a, b = (torch.stack(parts, dim=1) for parts in zip(*inside, strict=True))
    carry = [(a[:1, -1], b[:1, -1])]
    for c in range(1, len(a)):
        carry.append(combine(carry[-1], (a[c : c + 1, -1], b[c : c + 1, -1])))
    a_carry, b_carry = (torch.cat(parts)[:, None] for parts in zip(*carry, strict=True))
    _, fixed = combine((a_carry[:-1], b_carry[:-1]), (a[1:, :-1], b[1:, :-1]))
    return torch.cat((torch.cat((b[:1, :-1], fixed)), b_carry), dim=1).flatten(0, 1)[:L]


# %%
for L, K in ((12, 4), (1024, 4), (1024, 32), (1024, 256)):
    work, depth = count(lambda a, b, K=K: chunked(a, b, K), L)
    print(f"L = {L:>4}, K = {K:>3}: work {work}, depth {depth}")
    assert (work, depth) == (2 * L - K - L // K, K + L // K - 1)

# %% [markdown]
# Work $2L - K - L/K$, depth $K + L/K - 1$. The depth is smallest where the two terms are equal, at $K = \sqrt L$. That
# is far from $\log L$. But a worker walks through its own chunk as a plain loop, and only one number pair a chunk goes
# from worker to worker. This is the form that real kernels use when one sequence must be cut
# ([chapter 07](07_kernels.ipynb)).
#
# Now a promise must be kept: *all* scans give the states of the loop, up to rounding, for any length and in float32
# too. We compare the outputs $y[t] = \sum_n C_n[t]\, h_n[t]$ of a whole selective scan with the package's plain
# reference in float64.

# %%
SCANS = {
    "loop": sequential,
    "Hillis-Steele": hillis_steele,
    "Blelloch": blelloch,
    "chunked, K = 32": lambda a, b: chunked(a, b, 32),
}


# %%
def example(L, B=2, E=3, N=4, seed=0):
    """Random u, delta (B, L, E), A (E, N), B and C (B, L, N) of a selective scan."""
    generator = torch.Generator().manual_seed(seed)
    u, maps = (torch.randn(B, L, width, generator=generator) for width in (E, 2 * N))
    delta = 0.001 + 0.099 * torch.rand(B, L, E, generator=generator)  # where Mamba starts
    A = -torch.arange(1.0, N + 1).repeat(E, 1)
    return u, delta, A, *maps.split(N, dim=-1)


# %%
def scan_with(scan, u, delta, A, B, C):
    """The outputs (B, L, E) of a selective scan whose states are computed by `scan`."""
    a = torch.exp(delta[..., None] * A)  # (B, L, E, N)
    b = (delta * u)[..., None] * B[:, :, None]
    h = scan(*(x.movedim(1, 0).flatten(1) for x in (a, b)))  # (L, S) with S = B E N
    h = h.view(-1, *a.shape[:1], *a.shape[2:]).movedim(0, 1)
    return torch.einsum("blen,bln->ble", h, C)


# %%
worst = dict.fromkeys((torch.float32, torch.float64), 0.0)
for L in (1, 2, 3, 7, 63, 64, 65, 197, 1000, 1024):
    exact, _ = scan_reference(*example(L))
    for dtype in worst:
        given = [x.to(dtype) for x in example(L)]
        errors = [largest_error(scan_with(scan, *given), exact) for scan in SCANS.values()]
        worst[dtype] = max(worst[dtype], *errors)
print("lengths up to 1,024, four scans; of the largest |y|:")
print("float32 within 2e-6:", worst[torch.float32] < 2e-6)
print("float64 within 1e-12:", worst[torch.float64] < 1e-12)
assert worst[torch.float32] < 2e-6 and worst[torch.float64] < 1e-12

# %%
lengths = [2**k for k in range(2, 13, 2)]
costs = {name: [count(scan, L) for L in lengths] for name, scan in SCANS.items()}
del costs["chunked, K = 32"]
by_roots = [lambda a, b, K=2**k: chunked(a, b, K) for k in range(1, 7)]
costs["chunked, K = √L"] = [count(*each) for each in zip(by_roots, lengths, strict=True)]

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.1))
STYLES = "o-", "s-", "^-", "x--"  # the last is dashed: what lies below stays visible
for (name, found), style in zip(costs.items(), STYLES, strict=True):
    for axis, part in zip(axes, range(2), strict=True):
        axis.loglog(lengths, [cost[part] for cost in found], style, base=2, label=name)
axes[0].set(xlabel="length L", ylabel="combines", title="Work")
axes[1].set(xlabel="length L", ylabel="rounds", title="Depth")
axes[0].legend()
show(figure, "Work and depth of four scans against the length, both on logarithmic axes")
print("L = 4096: work", [found[-1][0] for found in costs.values()], end=" ")
print("depth", [found[-1][1] for found in costs.values()])

# %% [markdown]
# **What to see.** The order is turned round. The loop has the least work and the greatest depth. Hillis and Steele have
# the most work and the least depth. Nobody wins both. In the left picture Blelloch (green triangles) and the chunks
# (dashed, crosses) lie nearly on each other.
#
# ## 7. Which one is fast here?
#
# *Core.*
#
# **Predict before you run.** L = 1,024 steps, one core of your processor. Which scan is the fastest for one sequence
# (one column of $a$ and $b$, section 1)? And for 6,144, one image and direction of Vim-Tiny? Below stand the scans of
# this chapter, the plain loop of section 1, and that loop compiled: the same arithmetic, without Python between the
# steps. The compiler is **numba**, a library that turns a plain Python function over arrays into machine code the
# first time it is called. [Chapter 07](07_kernels.ipynb) uses it for its kernels.

# %%
try:
    import numba
except ImportError:
    print("numba is not installed: the compiled loop is left out")
    numba = None


# %%
def walk(a, b, h):
    """The loop of section 1 on arrays (L, S), written out for a compiler; fills h."""
    for s in range(a.shape[1]):
        h[0, s] = b[0, s]
    for t in range(1, a.shape[0]):
        for s in range(a.shape[1]):
            h[t, s] = a[t, s] * h[t - 1, s] + b[t, s]


# %%
def compiled(a, b):
    """All states by the compiled loop: a, b (L, S) -> h (L, S)."""
    h = torch.empty_like(b)
    fast_walk(a.numpy(), b.numpy(), h.numpy())
    return h


fast_walk = numba.njit(walk) if numba else walk
assert largest_error(compiled(a[:, None], b[:, None])[:, 0], loop(a, b)) == 0

# %%
# `sequential` carries the products of a, too, only to be counted; here the plain loop runs
ENTRANTS = {**SCANS, "loop": loop, "compiled loop": compiled}
if not numba:
    del ENTRANTS["compiled loop"]


# %%
def race(widths, repeats, L=1024):
    """Seconds of each scan for S sequences of L steps, the best of `repeats` runs."""
    seconds = {name: [] for name in ENTRANTS}
    for S in widths:
        a, b = torch.rand(L, S, dtype=torch.float32), torch.randn(L, S, dtype=torch.float32)
        for name, scan in ENTRANTS.items():
            runs = []
            for _ in range(repeats):
                start = time.perf_counter()
                scan(a, b)
                runs.append(time.perf_counter() - start)
            seconds[name].append(min(runs))
    return seconds


# %% tags=["nbval-ignore-output"]
# Your machine, on one core; a few seconds.
threads = torch.get_num_threads()
torch.set_num_threads(1)
for name, (one, many) in race([1, 2048], repeats=3).items():
    print(f"{name:>16}: {1e3 * one:8.2f} ms for 1 sequence, {1e3 * many:8.1f} ms for 2,048")
torch.set_num_threads(threads)

# %% [markdown]
# Times differ from machine to machine and from run to run, so yours are not stored. Your run stops at 2,048 sequences:
# with 6,144 it would take three times as long and as much memory, and the order is clear by then. The next picture
# shows one machine, measured the same way with more widths, up to the 6,144 of Vim-Tiny (one thread of a two-core
# server CPU; `docs/measurements/06_scans.json`).

# %%
measured = json.loads(Path("../docs/measurements/06_scans.json").read_text())["data"]
widths, seconds = measured["sequences"], measured["seconds"]
few, many = ({name: values[i] for name, values in seconds.items()} for i in (0, -1))
factor = few["loop"] / few["Blelloch"]
print(f"1 sequence: the loop needs more than 5 times as long as Blelloch: {factor > 5}")
for name in ("Blelloch", "Hillis-Steele"):
    print(f"6,144: {name} needs {many[name] / many['loop']:.1f} times as long as the loop")
for *others, fastest in zip(*seconds.values(), strict=True):
    assert fastest < min(others)  # the compiled loop

# %%
figure, axis = plt.subplots(figsize=(6.8, 3.6))
for (name, values), style in zip(seconds.items(), (*STYLES, "v:"), strict=True):
    axis.loglog(widths, [1e3 * value for value in values], style, label=name)
axis.set(xlabel="sequences S", ylabel="milliseconds", title="1,024 steps on one core")
axis.legend(ncols=2, fontsize=8)
show(figure, "Time of five scans against the number of sequences, on logarithmic axes")
print("scans:", len(seconds), " widths:", widths)

# %% [markdown]
# **What to see.** Left, few sequences: the loop in PyTorch is slow, the parallel scans are fast. Right, many sequences:
# the order is turned round. The compiled loop is the lowest line everywhere. (It is the
# only scan that is compiled here. For one sequence a compiled Blelloch would have idle lanes to use; the picture does
# not say whether it would win.)
#
# Why? Three costs are at play.
# - **Starting an operation** costs PyTorch a few microseconds, however small the tensors are. The loop starts
#   thousands, Blelloch about a hundred. With one sequence nothing else counts. So the left side says nothing about
#   parallel scans. It says that Python is slow, and a compiler removes that.
# - **Work.** With many sequences the arithmetic counts, and there Hillis and Steele have nine times as much.
# - **Memory, probably.** Blelloch has twice the combines, and each is three operations where the loop needs two: a
#   factor of 3. The rest of its distance is not measured here. The loop keeps its
#   S states in the processor's cache, a small fast memory on the chip, reads $a$ and $b$ once and writes $h$ once. The
#   rounds of a tree read and write long arrays that do not fit there.

# %% [markdown]
# And what did the parallel scans want to gain? Something to do for idle hands. A core adds and multiplies 8 or 16
# numbers at once, in **lanes**. But with 6,144 sequences no lane is ever idle: the loop gives each lane another
# *sequence*. Only who has more lanes than sequences has lanes to give to *time*.
#
# ### Exercise 06.4 · When does it pay?
#
# **Goal.** Predict the winner from lanes and sequences. **Difficulty.** derive. **Minutes.** 9. **Core.**
#
# A machine has `lanes` lanes. In one tick each lane does at most one combine of one sequence. Rounds wait for each
# other, so a round of n combines for each of `S` sequences takes $n S$ / `lanes` ticks, rounded up. Return the ticks
# (sequential, Hillis and Steele) for `L` steps, L a power of 2, as a pair of whole numbers.
#
# <details><summary>Hint</summary>
#
# The loop has $L - 1$ rounds of one combine for each sequence. Hillis and Steele have rounds of $L - 1, L - 2, L - 4,
# \dots$ Round up in each round, not at the end: `-(-x // y)` or `math.ceil(x / y)`.
#
# </details>


# %%
def ticks(L, S, lanes):
    """(sequential, Hillis and Steele): ticks for L steps of S sequences; whole numbers."""
    # BEGIN SOLUTION
    distances = [2**k for k in range((L - 1).bit_length())]
    tree = sum(math.ceil(S * (L - distance) / lanes) for distance in distances)
    return (L - 1) * math.ceil(S / lanes), tree
    # END SOLUTION


# %%
check("06.4", ticks)

# %% [markdown]
# With this count, every scan can be followed from one lane to a million. `rounds` holds what we need.


# %%
def ticks_of(scan, L, S, lanes):
    """Ticks of any scan of this chapter, from its rounds."""
    count(scan, L)
    return sum(math.ceil(S * n / lanes) for n in rounds)


# %%
for images, P in ((1, 16), (1, 16_896), (8, 16_896), (1, 2**20), (1, 2**24)):
    counted = {name: ticks_of(scan, 1024, images * 6144, P) for name, scan in SCANS.items()}
    best = min(counted, key=counted.get)
    print(f"{images} x 6144 sequences, {P:>8} lanes: least ticks for {best}")

# %%
lanes = [2**k for k in range(0, 25, 2)]
curves = {name: [] for name in SCANS}
for name, scan in SCANS.items():
    curves[name] = [ticks_of(scan, 1024, 6144, P) for P in lanes]
figure, axis = plt.subplots(figsize=(6.8, 3.5))
for (name, values), style in zip(curves.items(), STYLES, strict=True):
    axis.loglog(lanes, values, style, label=name)
for P, name in ((16, "one CPU core"), (16_896, "one H100")):
    axis.axvline(P, color=COLOURS["grey"], linestyle=":")
    axis.text(1.15 * P, 3e7, name, fontsize=8)
axis.set(xlabel="lanes", ylabel="ticks", title="6,144 sequences of 1,024 steps")
axis.legend(loc="lower left", fontsize=8)
flat = ticks_of(sequential, 1024, 6144, 6144)
show(figure, "Ticks of four scans against the lanes; with few lanes the loop is lowest")
print("ticks of the loop with a lane for each sequence:", flat)

# %% [markdown]
# **What to see.** As long as there are more sequences than lanes, all curves fall alike, and the loop is the lowest:
# it has the least work. (Blelloch, green, lies under the dashed line of the chunks.) From 6,144 lanes on the loop is
# flat. It has a lane for each sequence and nothing to do for the others. At the right edge the order is that of the
# depth.
#
# 16 are the lanes of one CPU core with wide vectors, as in the race. An H100, a large GPU, has 132 multiprocessors (its
# cores) with 128 lanes each. There, for one image, Blelloch and the chunks are just ahead. With a batch of 8 there are
# 49,152 sequences, more than lanes, and the loop leads again.
#
# **So why is Blelloch's scan not the fastest here?** With 6,144 sequences every lane of a CPU is busy anyway. Its short
# depth gains nothing, and its double work must be paid.
#
# So: **a parallel scan pays where batch times channels leave lanes idle.** The paper of Mamba names it as one of three
# techniques (section 3.3.2). The kernels of this package walk in time, give the lanes to channels, and cut long
# sequences into chunks only where lanes would be idle ([chapter 07](07_kernels.ipynb)).

# %% [markdown]
# ## 8. A shortcut that overflows
#
# *Core.*
#
# There is a scan in one line, found again and again. Write the product of all decays so far as $P[t] = a[0]\, a[1]
# \cdots a[t]$. Divide (6.1) by $P[t]$: then $h[t] / P[t] = h[t-1] / P[t-1] + b[t] / P[t]$, a plain running sum. So
#
# $$h[t] = P[t] \sum_{s \le t} \frac{b[s]}{P[s]} \tag{6.4}$$
#
# PyTorch has both parts, `cumprod` and `cumsum`. **By hand**, for our four steps: $P = \tfrac12, \tfrac14, \tfrac1{16},
# \tfrac1{32}$. $b/P = 16, 8, 16, 96$. Their running sum is $16, 24, 40, 136$. Times $P$: $8, 6, 2.5, 4.25$.


# %%
def by_products(a, b):
    """The scan by (6.4): a, b (L, ...) -> h (L, ...)."""
    P = torch.cumprod(a, dim=0)
    return P * torch.cumsum(b / P, dim=0)


short = largest_error(scan_with(by_products, *example(50)), scan_reference(*example(50))[0])
print("four steps:", by_products(a, b).tolist())
print("a selective scan of 50 steps equals the reference within 1e-12:", short < 1e-12)
assert by_products(a, b).tolist() == loop(a, b).tolist() and short < 1e-12

# %% [markdown]
# Equal in exact arithmetic. But $P$ shrinks with every step, and we divide by it. The largest number of float32 is
# about $3.4 \cdot 10^{38} = e^{88.7}$. If each step multiplies by $e^{-z}$, with $z = \Delta |A|$, then $1/P$ passes it
# after $88.7 / z$ steps. Mamba's own start has $\Delta$ up to 0.1 and $A$ down to $-16$, so $z = 1.6$: **55 steps**. A
# Vim has 197 tokens. We sweep length and decay, and draw where the trick holds.

# %%
decays = torch.logspace(-2, math.log10(5), 60)  # z
generator = torch.Generator().manual_seed(0)
a_sweep = torch.exp(-decays).expand(1024, 60)
b_sweep = torch.randn(1024, 60, generator=generator)
exact = loop(a_sweep, b_sweep)


def broken(scan):
    """Where float32 is wrong by more than 1e-4, or no number: (1024 steps, 60 decays)."""
    error = (scan(a_sweep.float(), b_sweep.float()) - exact).abs()
    return ~(error <= 1e-4 * exact.abs().amax(0))  # not `>`: NaN compares as False


# %%
first_bad = broken(by_products).double().argmax(0)  # 0 where none is bad
seen = first_bad > 0
print("decays that break within 1,024 steps:", seen.sum().item(), "of", len(decays))
ratio = first_bad[seen] * decays[seen] / 88.7
print(f"first bad step, as a part of 88.7 / z: {ratio.min():.2f} to {ratio.max():.2f}")
assert 0.9 < ratio.min() and ratio.max() < 1.1


# %%
def draw_broken(axis, scan, title):
    bad = broken(scan)
    steps = torch.arange(1024) + 1
    axis.pcolormesh(decays, steps, bad, cmap="Oranges", vmax=1.6, shading="nearest")
    axis.plot(decays, 88.7 / decays, "--", color=COLOURS["black"], label="88.7 / z")
    axis.set(xscale="log", yscale="log", ylim=(4, 1024), title=title)
    return bad.sum().item()


# %%
z, at = 1.6, torch.arange(1, 81)  # Mamba's fastest decay, 80 steps
a_one, b_one = torch.full((80, 1), math.exp(-z)), b_sweep[:80, :1]
right = loop(a_one, b_one)
found = by_products(a_one.float(), b_one.float())
error = ((found - right).abs() / right.abs().max())[:, 0]
cliff = error.isfinite().logical_not().double().argmax().item() + 1

# %%
figure, (left, axis) = plt.subplots(1, 2, figsize=(9, 3.2))
left.semilogy(at[: cliff - 1], error[: cliff - 1].clamp(min=1e-9), ".-", label="error")
left.axvline(88.7 / z, linestyle="--", color=COLOURS["black"], label="88.7 / z = 55")
left.axvspan(cliff, 80, color=COLOURS["orange"], alpha=0.4, label="no number")
left.set(xlabel="step", ylabel="error / largest state", title="z = 1.6, float32")
left.set(ylim=(1e-10, 10))
left.legend(loc="upper left", fontsize=8)
count_bad = draw_broken(axis, by_products, "All decays: orange is broken")
axis.set(xlabel="decay z of a step", ylabel="step")
axis.legend(loc="lower left")
show(figure, "Left: a tiny error, from step 57 on no number. Right: wrong above 88.7 / z")
print(f"first step without a number: {cliff}; broken in all: {count_bad / 1024 / 60:.0%}")
assert abs(cliff - 88.7 / z) < 3

# %% [markdown]
# **What to see.** Left, one decay: the error stays at the last digits of float32 (errors of 0 are drawn at $10^{-9}$),
# and then there is no number at all. It does not get worse slowly. It falls off a cliff. Right, all decays: orange is
# broken, that is wrong, infinite, or not a number. The border is the dashed line, which was computed before anything
# ran. In a training run this is the moment when some step size has grown too large: NaN.
#
# So the trick must carry a label: **float32, only while $z L$ stays below 80; float64, below 700.** A logarithm does
# not help. `exp(-cumsum(log a))` is the same $1/P$.

# %%
for dtype, limit, tolerance in ((torch.float32, 80, 2e-6), (torch.float64, 700, 1e-12)):
    for z in (0.1, 0.4, 1.6, 5.0):
        length = min(1024, int(limit / z))
        given = torch.full((length, 1), math.exp(-z)), b_sweep[:length, :1]
        error = largest_error(by_products(*(x.to(dtype) for x in given)), loop(*given))
        assert error < tolerance
    print(f"{limit} / z steps, at most 1,024: within {tolerance} of the largest state")

# %% [markdown]
# **The mend.** Let the products begin anew in every chunk of K steps. Then $zK$ counts in place of $zL$. What came
# before the chunk enters as one number, the state $h_0$ before its first step, which fades like everything else:
#
# $$h[t] = P[t]\, \Bigl( h_0 + \sum_{s \le t} \frac{b[s]}{P[s]} \Bigr) \qquad \text{products and sum within the
# chunk} \tag{6.5}$$
#
# ### Exercise 06.5 · The trick in chunks
#
# **Goal.** Make the shortcut safe. **Difficulty.** build. **Minutes.** 10. **Core.**
#
# `a` and `b` are (L, S), `K` divides L. Return all states (L, S), by (6.5): a loop over the chunks, none over the
# steps inside.
#
# <details><summary>Hint</summary>
#
# `for a_part, b_part in zip(a.split(K), b.split(K))`. The state that a chunk hands on is its last row, which already
# contains all that came before.
#
# </details>


# %%
def products_in_chunks(a, b, K):
    """All states of h[t] = a[t] h[t-1] + b[t], by (6.5): a, b (L, S) -> h (L, S)."""
    # BEGIN SOLUTION
    h, parts = torch.zeros_like(b[:1]), []
    for a_part, b_part in zip(a.split(K), b.split(K), strict=True):
        P = torch.cumprod(a_part, dim=0)
        parts.append(P * (h + torch.cumsum(b_part / P, dim=0)))
        h = parts[-1][-1:]
    return torch.cat(parts)
    # END SOLUTION


# %%
check("06.5", products_in_chunks)


# %%
def mended(a, b, K=16):
    """(6.5) for a, b (L, S)."""
    h, parts = torch.zeros_like(b[:1]), []
    for a_part, b_part in zip(a.split(K), b.split(K), strict=True):
        P = torch.cumprod(a_part, dim=0)
        parts.append(P * (h + torch.cumsum(b_part / P, dim=0)))
        h = parts[-1][-1:]
    return torch.cat(parts)


# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 3), sharey=True)
names = "over all steps", "in chunks of 16", "in chunks of 32"
ways = by_products, mended, lambda a, b: mended(a, b, 32)
bad = [draw_broken(*each) for each in zip(axes, ways, names, strict=True)]
for axis, K in zip(axes, (1024, 16, 32), strict=True):
    axis.axvspan(decays[-1], 9, facecolor="white", edgecolor=COLOURS["grey"], hatch="///")
    axis.text(6.9, 9, "not swept", rotation=90, ha="center", bbox={"color": "white"})
    axis.axvline(88.7 / K, color=COLOURS["blue"], label=f"88.7 / {K} = {88.7 / K:.2g}")
    axis.set(xlim=(0.01, 9), xlabel="decay z of a step")
    axis.legend(loc="lower left", fontsize=8)
axes[0].set_ylabel("step")
show(figure, "Broken states: above the line; none with chunks of 16; a strip with 32")
print("broken states:", dict(zip(names, bad, strict=True)), " 80 / 16 =", 80 / 16)
assert bad[1] == 0 < bad[2] < bad[0]

# %% [markdown]
# **What to see.** The blue line stands at $z = 88.7/K$, where $1/P$ overflows within a chunk of K steps (left: all
# 1,024 steps are one chunk). Left of it nothing is broken.
# (Dashed: the border without chunks, for comparison.) We swept decays up to 5; the hatched strip beyond is unknown.
# Chunks of 16: up to 5 nothing is broken at any length. Chunks of 32 are broken right of the line, from within the
# *first* chunk on: one bad number is handed on for ever.
#
# A mend with a limit is still a mend with a limit: a step with $z = 100$ breaks any chunk. The rule (6.2) has none. It
# multiplies numbers below 1 and divides by nothing. The worst that happens is that a product becomes 0, and then it
# should. All four scans of the sections 4 to 6 pass the whole field.

# %%
for name, scan in SCANS.items():
    strong = torch.full((64, 1), math.exp(-100.0))
    found = scan(strong.float(), torch.ones(64, 1).float())
    bad = broken(scan).sum().item() + (~torch.isfinite(found)).sum().item()
    print(f"{name:>21}: broken states {bad}")
    assert bad == 0

# %% [markdown]
# ## 9. The way back
#
# *Core.*
#
# To train, we need the gradient of a loss with respect to every $a[t]$ and $b[t]$. Three steps show all of it. Let the
# loss be any function of the three states. Call its direct derivative with respect to $h[t]$, with the other states
# held fixed, $dh[t]$.
#
# But the other states are not fixed. $h[1]$ acts on the loss directly, and through $h[2] = a[2]\, h[1] + b[2]$. So the
# full derivative, call it $g$, is
#
# $$g[2] = dh[2] \qquad g[1] = dh[1] + a[2]\, g[2] \qquad g[0] = dh[0] + a[1]\, g[1]$$
#
# In general, from the last step to the first:
#
# $$g[t] = dh[t] + a[t+1]\, g[t+1] \tag{6.6}$$
#
# This is called the **adjoint** recurrence. It is (6.1) again, walked from the right, with $dh$ in the place of $b$.
# And the two gradients that we want are local, because $a[t]$ and $b[t]$ act on nothing but $h[t]$:
#
# $$\frac{d\,\text{loss}}{d\,b[t]} = g[t] \qquad \frac{d\,\text{loss}}{d\,a[t]} = g[t]\, h[t-1] \tag{6.7}$$
#
# **By hand**, with the first three steps of section 1 and $dh = 2, 1, 4$: $g[2] = 4$, $g[1] = 1 + \tfrac14 \cdot 4 =
# 2$, $g[0] = 2 + \tfrac12 \cdot 2 = 3$. With respect to $a$: $0$ (nothing came before), $2 \cdot 8 = 16$, $4 \cdot 6 =
# 24$.

# %%
a_3, b_3 = a[:3].clone().requires_grad_(), b[:3].clone().requires_grad_()
dh = torch.tensor([2.0, 1.0, 4.0])
by_autograd = torch.autograd.grad(loop(a_3, b_3), (a_3, b_3), dh)
print("d loss / da:", by_autograd[0].tolist(), " d loss / db:", by_autograd[1].tolist())
assert by_autograd[0].tolist() == [0, 16, 24] and by_autograd[1].tolist() == [3, 2, 4]

# %%
figure, axis = canvas(7.6, 2.5)
for t, (state, g) in enumerate(zip((8, 6, 2.5), (3, 2, 4), strict=True)):
    x = 1.6 + 2.2 * t
    box(axis, x, 1.75, f"h[{t}] = {state:g}", 1.1, 0.42)
    box(axis, x, 0.75, f"g[{t}] = {g}", 1.1, 0.42, "orange")
    arrow(axis, (x, 0.12), (x, 0.52), f"dh = {dh[t]:g}", "orange")
    arrow(axis, (x, 2.4), (x, 1.98), f"b = {b[t]:g}", "blue")
    if t:
        arrow(axis, (x - 1.63, 1.75), (x - 0.57, 1.75), f"×{a[t]:g}", "blue")
        arrow(axis, (x - 0.57, 0.75), (x - 1.63, 0.75), f"×{a[t]:g}", "orange")
show(figure, "States go right, gradients go left, over the same edges and factors")
print("factors between three steps:", a[1:3].tolist(), "both ways")

# %% [markdown]
# **What to see.** Blue goes right, orange goes left. Each edge has one factor, and both directions multiply by it. The
# edge between $h[1]$ and $h[2]$ carries $a[2]$, so $g[1]$ receives $a[2]\, g[2]$, not $a[1]\, g[2]$. Whoever writes
# $a[t]$ in (6.6) has made the most common mistake of all. It stays unseen as long as all $a$ are equal.
#
# ### Exercise 06.6 · The backward pass
#
# **Goal.** Write (6.6) and (6.7). **Difficulty.** build. **Minutes.** 12. **Core.**
#
# `a`, `h`, `dh` are (L, S): decays, states of the forward pass (the state before the first is 0), and direct
# derivatives. Return the pair of gradients, with respect to `a` and to `b`. The checker also runs PyTorch's
# `gradcheck` on it, which moves every input a little and watches the output.
#
# <details><summary>Hint</summary>
#
# Walk t from L - 1 to 0 and keep `carry`, which is $a[t+1]\, g[t+1]$. It is 0 at first. After using it at step t,
# replace it by `a[t] * g`.
#
# </details>


# %%
def scan_backward(a, h, dh):
    """(d loss / d a, d loss / d b) of h[t] = a[t] h[t-1] + b[t]; all (L, S)."""
    # BEGIN SOLUTION
    da, db, carry = torch.zeros_like(a), torch.zeros_like(a), torch.zeros_like(a[0])
    for t in reversed(range(len(a))):
        db[t] = dh[t] + carry
        if t > 0:
            da[t] = db[t] * h[t - 1]
        carry = a[t] * db[t]
    return da, db
    # END SOLUTION


# %%
check("06.6", scan_backward)

# %% [markdown]
# (6.6) is a recurrence with pairs $(a[t+1], dh[t])$, so **any scan runs it**: turn time round and shift $a$ by one.
# The last step has no step after it, so there is no $a[t+1]$. We put a 0 at the end, `a_next`, so that it has as many
# steps as $dh$. Any number would do: time is turned round, so this 0 comes first and multiplies the state before the
# first step, which is 0.
#
# The backward pass is as parallel as the forward pass. We write it so, in two lines, around any scan. PyTorch takes
# over all that is local in time, from $u, \Delta, A, B, C$ to $a$ and $b$ and back.


# %%
class Scan(torch.autograd.Function):
    """(6.1) by any scan, (6.6) and (6.7) as its gradient: a, b (L, S) -> h (L, S)."""

    @staticmethod
    def forward(ctx, scan, a, b):
        h = scan(a, b)
        ctx.scan = scan
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx, dh):
        a, h = ctx.saved_tensors
        a_next = torch.cat((a[1:], torch.zeros_like(a[:1])))
        g = ctx.scan(a_next.flip(0), dh.flip(0)).flip(0)
        h_before = torch.cat((torch.zeros_like(h[:1]), h[:-1]))
        return None, g * h_before, g


# %%
for name, scan in SCANS.items():
    given = [torch.rand(11, 2, requires_grad=True), torch.randn(11, 2, requires_grad=True)]
    passes = torch.autograd.gradcheck(lambda a, b, scan=scan: Scan.apply(scan, a, b), given)
    print(f"{name:>21}: gradcheck passes: {passes}")
    assert passes

# %%
given = [x.requires_grad_() for x in example(65)]
dy = torch.randn(2, 65, 3, generator=torch.Generator().manual_seed(1))
expected = torch.autograd.grad(scan_reference(*given)[0], given, dy)
ours = torch.autograd.grad(
    scan_with(lambda a, b: Scan.apply(hillis_steele, a, b), *given),
    given,
    dy,
)

# %%
for name, found, exact in zip(("u", "delta", "A", "B", "C"), ours, expected, strict=True):
    right = largest_error(found, exact) < 1e-12
    shape = tuple(found.shape)
    print(f"with respect to {name:>5}, {shape!s:>10}: as the package's: {right}")
    assert right

# %% [markdown]
# ## 10. Memory: keep or compute again
#
# *Core.*
#
# The backward pass needs $a[t]$ and $h[t-1]$ of every step. Autograd keeps them. How much is that? Call one array of
# shape (B, L, E, N) a **full array**. A loop over the steps keeps $e^{\Delta A}$ and $h$: two full arrays for each
# direction of each layer.
#
# **Predict**, for Vim-Tiny: 64 images, 197 tokens, E = 384, N = 16, float32, 24 layers, two directions.

# %%
full = 64 * 197 * 384 * 16 * 4 / 2**20
total = 2 * 48 * full / 1024
print(f"one full array: {full:.0f} MiB; two in each of 48 scans: {total:.1f} GiB")
assert round(total, 1) == 27.7

# %% [markdown]
# 28 GiB, for a model of 7 million parameters. The way out: keep only the state at the start of every K steps, and
# compute the others again when the backward pass comes there. Then there are
#
# $$\underbrace{\frac1K}_{\text{states kept}} + \underbrace{\frac{2K}{L}}_{\text{the one chunk that is open}}
# \quad\text{full arrays} \tag{6.8}$$
#
# The first term falls with K, the second grows. They are equal at $K = \sqrt{L/2}$. For L = 128 that is K = 8, with
# 0.25 full arrays in place of 2. The price: every step of the forward pass is computed twice.
#
# *The idea: Chen et al., Training deep nets with sublinear memory cost, arXiv 1604.06174.* Mamba's paper calls it
# recomputation (section 3.3.2). PyTorch has it built in: `checkpoint(function, ...)` keeps the arguments of the
# function and nothing else. We run chunks through it, and count.

# %%
calls = []


def run_chunk(u, delta, A, B, C, h):
    """The outputs of a few steps, and the state after them, step by step."""
    calls.append(len(h))
    outputs = []
    steps = zip(*(x.unbind(1) for x in (u, delta, B, C)), strict=True)
    for u_t, delta_t, B_t, C_t in steps:
        a_t = torch.exp(delta_t[..., None] * A)
        h = a_t * h + (delta_t * u_t)[..., None] * B_t[:, None]
        outputs.append((h * C_t[:, None]).sum(-1))
    return torch.stack(outputs, dim=1), h


# %%
def with_recomputation(u, delta, A, B, C, K):
    """A selective scan that keeps a state every K steps: y (B, L, E)."""
    h, outputs = u.new_zeros(len(u), *A.shape), []
    chunks = zip(*(x.split(K, dim=1) for x in (u, delta, B, C)), strict=True)
    for u_k, delta_k, B_k, C_k in chunks:
        y, h = checkpoint(run_chunk, u_k, delta_k, A, B_k, C_k, h, use_reentrant=False)
        outputs.append(y)
    return torch.cat(outputs, dim=1)


# %%
given = [x.requires_grad_() for x in example(100)]
kept = with_recomputation(*given, 7)
assert largest_error(kept, scan_reference(*given)[0]) < 1e-12
calls.clear()
kept.sum().backward()
print("chunks run in the backward pass:", len(calls), "of", math.ceil(100 / 7))
assert len(calls) == 15

# %% [markdown]
# Now the measurement, with a small meter. You need not follow how it hooks into PyTorch; what it does is bookkeeping:
# - PyTorch calls `__torch_dispatch__` for every operation inside `with Memory()`. We run the operation and look at the
#   tensors that come out.
# - Is the memory of such a tensor new to us, by its address? Then we add its bytes to `now`. A view, such as a slice,
#   has the address of a tensor that we know, and adds nothing.
# - `weakref.finalize` calls `free` when nobody uses this memory any more. Then we take the bytes off again.
#
# `peak` is the largest that `now` has ever been. Below the class is a test small enough to do by hand.


# %%
class Memory(TorchDispatchMode):
    """Counts the bytes of all tensors made inside `with Memory()`, now and at the peak."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()  # addresses

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        result = operation(*arguments, **(options or {}))
        for tensor in filter(torch.is_tensor, tree_leaves(result)):
            storage = tensor.untyped_storage()
            address, size = storage.data_ptr(), storage.nbytes()
            if address not in self.known:
                self.known.add(address)
                self.change(size)
                weakref.finalize(storage, self.free, address, size)
        return result

    def change(self, size):
        self.now += size
        self.peak = max(self.peak, self.now)

    def free(self, address, size):
        self.known.discard(address)
        self.change(-size)


# %%
with Memory() as memory:
    ones = torch.ones(1000)
    twice = ones + ones
    del ones
print("bytes now:", memory.now, " at the most:", memory.peak)
assert (memory.now, memory.peak) == (8000, 16000)


# %%
def peak_arrays(run, L=128, E=32, N=16):
    """The most memory of a forward and backward pass, in full arrays."""
    given = [x.requires_grad_() for x in example(L, 1, E, N)]
    with Memory() as memory:
        run(*given).sum().backward()
    return memory.peak / (L * E * N * 8)


# %%
sizes = [2, 4, 8, 16, 32, 64, 128]
predicted = [1 / K + 2 * K / 128 for K in sizes]
peaks = [peak_arrays(lambda *given, K=K: with_recomputation(*given, K)) for K in sizes]
plain = peak_arrays(lambda *given: run_chunk(*given, torch.zeros(1, 32, 16))[0])
print(f"all kept: predicted 2 full arrays, measured {plain:.2f}")
for K, guess, found in zip(sizes, predicted, peaks, strict=True):
    print(f"K = {K:>3}: predicted {guess:.2f}, measured {found:.2f}")
    assert guess < found < guess + 0.5
assert 2 < plain < 2.5

# %%
figure, axis = plt.subplots(figsize=(6.2, 3.2))
axis.plot(sizes, predicted, "--", label="predicted: 1/K + 2K/L")
axis.plot(sizes, peaks, "o", label="measured")
axis.axhline(plain, color=COLOURS["red"], linestyle=":", label="measured, all kept")
axis.set(xscale="log", ylim=(0, 2.6), xticks=sizes, xticklabels=sizes)
axis.set(xlabel="K, steps in a chunk", ylabel="full arrays at the most")
axis.set_title("Memory of a scan and its gradient, L = 128")
axis.minorticks_off()
axis.legend()
show(figure, "Predicted and measured memory against K: a valley around K = 4 to 16")
best = sizes[peaks.index(min(peaks))]
print(f"least at K = {best}: {plain / min(peaks):.1f} times less than with all kept")
assert best in (8, 16)

# %% [markdown]
# **What to see.** The valley lies where the prediction has it. The dots lie above the line by about a third of a full
# array: outputs, copies and gradients of the shape (B, L, E), which (6.8) leaves out. At N = 16 one of them is a
# sixteenth of a full array.
#
# On the left too many states are kept. On the right, at K = L, everything is computed twice and nothing is saved.
#
# The package's `chunked` backend works this way with K = 32 and gradients by hand, the kernels likewise.
#
# ### Exercise 06.7 · Back without the states
#
# **Goal.** Join the adjoint and recomputation. **Difficulty.** build. **Minutes.** 12. **Optional.**
#
# As in 06.6, return the two gradients. But the states are gone. You have `a`, `b`, `dh` (L, S), and `starts` (L / K,
# S): row c is the state **before** step $cK$. So the first row is the initial state, which need not be 0, and K is
# `len(a) // len(starts)`.
#
# <details><summary>Hint</summary>
#
# Take the chunks from the last to the first. In each, walk forward from `starts[c]` and note the state before every
# step. Then walk back as in 06.6. The carry goes on from chunk to chunk.
#
# </details>


# %%
def backward_from_starts(a, b, starts, dh):
    """(da, db); a, b, dh (L, S), starts (L / K, S): the state before each chunk."""
    # BEGIN SOLUTION
    K = len(a) // len(starts)
    da, db, carry = torch.zeros_like(a), torch.zeros_like(a), torch.zeros_like(a[0])
    for c in reversed(range(len(starts))):
        before = [starts[c]]
        for t in range(c * K, c * K + K - 1):
            before.append(a[t] * before[-1] + b[t])
        for t in reversed(range(c * K, c * K + K)):
            db[t] = dh[t] + carry
            da[t] = db[t] * before[t - c * K]
            carry = a[t] * db[t]
    return da, db
    # END SOLUTION


# %%
check("06.7", backward_from_starts)

# %%
given = [x.requires_grad_() for x in example(100)]
for name in ("chunked", "reference"):
    grads = torch.autograd.grad(selective_scan(*given, backend=name).sum(), given)
    ours = torch.autograd.grad(with_recomputation(*given, 10).sum(), given)
    error = max(map(largest_error, ours, grads))
    print(f"recomputed gradients equal those of {name!r} within 1e-12: {error < 1e-12}")
    assert error < 1e-12

# %% [markdown]
# ## 11. Debug this
#
# *Core.*
#
# "My gradient test fails, so the scan is wrong." Is it? The scan below keeps every eighth state and computes the others
# again. Three people have tested it, and each reports an error. **One report is about a bug. Two are about the test.**


# %%
class Suspect(torch.autograd.Function):
    """The scan (6.1), which keeps every eighth state: a, b (L, S) -> h (L, S)."""

    @staticmethod
    def forward(ctx, a, b):
        h = loop(a, b)
        ctx.save_for_backward(a, b, torch.cat((torch.zeros_like(h[:1]), h[7::8])))
        return h

    @staticmethod
    def backward(ctx, dh):
        a, b, starts = ctx.saved_tensors
        da, db, carry = torch.empty_like(a), torch.empty_like(b), torch.zeros_like(a[0])
        for first in reversed(range(0, len(a), 8)):
            h, states = starts[first // 8], []
            for t in range(first, min(first + 8, len(a))):
                h = a[t] * h + b[t]
                states.append(h)
            before = [torch.zeros_like(h), *states[:-1]]
            for t in reversed(range(first, min(first + 8, len(a)))):
                db[t] = dh[t] + carry
                da[t] = db[t] * before[t - first]
                carry = a[t] * db[t]
        return da, db


# %%
def inputs(L, dtype=torch.float64):
    """a and b (L, 1), with gradients."""
    generator = torch.Generator().manual_seed(L)
    a, b = torch.rand(L, 1, generator=generator), torch.randn(L, 1, generator=generator)
    return [x.to(dtype).requires_grad_() for x in (a, b)]


# %% [markdown]
# **Report A.** "Your gradient is far from autograd's, even for six steps."

# %%
a_6, b_6 = inputs(6)
found = torch.autograd.grad(Suspect.apply(a_6, b_6)[-1].sum(), a_6)[0]
expected = torch.autograd.grad(loop(a_6, b_6).sum(), a_6)[0]
print("report A, gradients equal:", bool(largest_error(found, expected) < 1e-6))

# %% [markdown]
# **Report B.** "I moved `a[2]` by a millionth and divided. The quotient is not your gradient."

# %%
a_6, b_6 = inputs(6, torch.float32)
step = torch.zeros_like(a_6)
step[2] = 1e-6
with torch.no_grad():
    more, less = (Suspect.apply(a_6 + sign * step, b_6).sum() for sign in (1, -1))
    quotient = (more - less) / 2e-6
found = torch.autograd.grad(Suspect.apply(a_6, b_6).sum(), a_6)[0][2, 0]
print("report B, equal within 0.1 %:", bool((quotient - found).abs() < 1e-3 * found.abs()))

# %% [markdown]
# **Report C.** "It is right for short sequences and wrong for long ones."

# %%
for L in (4, 8, 20):
    a_L, b_L = inputs(L)
    found = torch.autograd.grad(Suspect.apply(a_L, b_L).sum(), a_L)[0]
    expected = torch.autograd.grad(loop(a_L, b_L).sum(), a_L)[0]
    print(f"report C, L = {L:>2}, equal: {bool(largest_error(found, expected) < 1e-6)}")

# %% [markdown]
# Make a new cell and experiment. Ask each test: are the two losses the same function? Does the number type carry the
# digits that the test wants? Which gradients differ, and at which steps?
#
# ### Exercise 06.8 · Three reports
#
# **Goal.** Tell a wrong gradient from a wrong test. **Difficulty.** investigate. **Minutes.** 12. **Core.**
#
# Return a dict with four keys. `"A"`, `"B"`, `"C"`: `"test"` or `"code"`, whichever must be mended. `"steps"`: the list
# of all t at which the gradient with respect to `a` is wrong for L = 20.
#
# <details><summary>Hint</summary>
#
# A: write both losses down. B: repeat it with `inputs(6)`, in float64. C: print `found - expected`, all twenty numbers,
# for `a` and for `b`.
#
# </details>


# %%
def findings():
    """What is wrong: {"A": ..., "B": ..., "C": ..., "steps": [...]}."""
    # BEGIN SOLUTION
    return {"A": "test", "B": "test", "C": "code", "steps": [8, 16]}
    # END SOLUTION


# %%
check("06.8", findings)

# %% [markdown]
# <details><summary>What was wrong (open it when your answer is right)</summary>
#
# A compares two different losses: the last state alone, and the sum of all. With the same loss on both sides the
# gradients agree. B asks float32, which has 7 digits, for a change in the sixth. So only one or two digits of the
# quotient are true. In float64 it agrees. In float32 it agrees with a step of 0.001. C is a bug: at the first step of
# a chunk, "the state before" is set to 0. It is `starts[first // 8]`. The first chunk hides it, because there the
# state before is 0. So a test of at most eight steps can never see it, and the gradient with respect to `b`, which
# needs no state, is right everywhere.
#
# </details>
#
# Two habits follow. Test lengths beyond the first chunk, and odd ones. And test each gradient on its own: a loss that
# falls is no proof.
#
# **What you built, and where it lives.**
#
# | here | in the package |
# |---|---|
# | `loop`, `scan_with` | `minivim.ops.scan_reference` |
# | chunks, `Scan`, `with_recomputation`, exercises 06.6, 06.7 | `minivim/ops/chunked.py`, backend "chunked" |
# | `compiled` | `kernels/cpu/scan/`, backend "numba", in [chapter 07](07_kernels.ipynb) |
# | one call for all | `minivim.selective_scan(..., backend=...)` |
#
# Previous: [05 Selection](05_selection.ipynb) · Next: [07 Kernels](07_kernels.ipynb) · [The map](00_start_here.ipynb)
#
# ## Further reading
#
# - G. Blelloch, *Prefix Sums and Their Applications*, 1990. Section 1.4 has recurrences; (6.2) is there.
# - W. D. Hillis, G. Steele, *Data Parallel Algorithms*, 1986.
# - E. Martin, C. Cundy, *Parallelizing Linear Recurrent Neural Nets Over Sequence Length*, 2018, arXiv 1709.04057.
# - A. Gu, T. Dao, *Mamba*, 2023, arXiv 2312.00752, section 3.3.
# - T. Chen et al., *Training Deep Nets with Sublinear Memory Cost*, 2016, arXiv 1604.06174.
