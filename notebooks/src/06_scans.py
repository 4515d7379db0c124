# %% [markdown]
# # 06 · Scans
#
# $h[t]$ needs $h[t-1]$, which needs $h[t-2]$. So a recurrence must be computed one step after the other. Must it?
# This chapter computes a thousand states in ten rounds. Then it measures that on your processor the slow loop is the
# faster way, and explains why. Both are true, and who builds or uses Mamba needs both.
#
# **Learning goals.** After this chapter you can
# - put two steps of a recurrence together into one, and test whether a rule allows that;
# - draw three parallel scans, and count their work and their depth;
# - predict from sequences and lanes which scan is the fastest;
# - say where the shortcut by cumulative products overflows, and mend it;
# - derive the backward pass of a scan by hand, write it, and check it;
# - trade memory for computing, with numbers predicted before they are measured;
# - tell a wrong gradient from a wrong test.
#
# **Prerequisites.** [Chapter 05](05_selection.ipynb): the selective scan, $\bar A[t] = e^{\Delta[t] A}$. [Chapter
# 02](02_discretization.ipynb): the recurrence. The chain rule; `loss.backward()`.
#
# **Time.** 85 minutes for the core, 105 with everything; all cells together run for 40 seconds.
#
# Previous: [05 Selection](05_selection.ipynb) · Next: [07 Kernels](07_kernels.ipynb) · [The map](00_start_here.ipynb)

# %%
import json
import math
import time
import weakref
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


print("states:", loop(a, b).tolist())
assert loop(a, b).tolist() == [8, 6, 2.5, 4.25]

# %%
figure, axis = canvas(7.6, 1.7)
box(axis, 0.5, 1.2, "h = 0", 0.7, 0.45, "grey")
for t in range(4):
    box(axis, 2 + 1.6 * t, 1.2, f"h[{t}] = {loop(a, b)[t].item():g}", 0.95, 0.45)
    arrow(axis, (0.85 if t == 0 else 0.88 + 1.6 * t, 1.2), (1.52 + 1.6 * t, 1.2), f"×{a[t].item():g}")
    box(axis, 2 + 1.6 * t, 0.35, f"b[{t}] = {b[t].item():g}", 0.95, 0.4, "orange")
    arrow(axis, (2 + 1.6 * t, 0.55), (2 + 1.6 * t, 0.97))
show(figure, "Four states in a row; an arrow from each to the next multiplies by a, one from below adds b")
print("steps that wait for each other:", len(a) - 1)

# %% [markdown]
# **What to see.** The arrows between the states form one chain. The last state waits for all others.
#
# Three remarks before we break the chain.
# - **No convolution.** In [chapter 03](03_recurrence_is_convolution.ipynb) the FFT removed the waiting, because $a$ was
#   the same at every step. Here each token chooses its own $a[t]$. There is no kernel.
# - **"Should it not be $u[t-1]$?"** $b[t]$ holds the input of the same step. Who writes $u[t-1]$ names the states
#   otherwise ([chapter 02](02_discretization.ipynb), after (2.2)). The chain is the same.
# - **Shapes.** Image, channel and state never meet inside a scan. So we put time first and all else into one axis: $a$
#   and $b$ are (L, S), with $S = B \cdot E \cdot N$ independent **sequences**. Vim-Tiny has $384 \cdot 16 = 6144$ of
#   them for one image and direction.
#
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
