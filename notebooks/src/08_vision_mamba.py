# %% [markdown]
# # 08 · Vision Mamba
#
# Mamba reads a sequence once, from left to right. An image has no left to right. This chapter builds what **Vision
# Mamba**, Vim for short, does about that, one small piece at a time, until the pieces are the official model: the same
# parameters, the same outputs.
#
# **Learning goals.** After this chapter you can
# - turn an image into tokens, and say at which place of the sequence a patch stands, for three orders of reading;
# - say what the class token in the middle hears after one block: forward, backward, and both ways;
# - write the mixer with its two directions in 30 lines, and prove it equal to `minivim.VimBlock`;
# - count the 7,148,008 parameters of Vim-Tiny by hand;
# - walk backwards without flipping the wrong axis, and say which picture a flipped sequence is;
# - name the places where Vim's code departs from its paper;
# - resize a Vim to another image size, and find the fault in the official way.
#
# **Prerequisites.** [Chapter 05](05_selection.ipynb): the selective recurrence, and what $\Delta$, $B$, $C$ and the
# gate do. Helpful: [chapter 07](07_kernels.ipynb). What a gradient is.
#
# **Time.** 86 minutes for the core, 97 with everything; all cells together run for about 35 seconds on two CPU
# cores.
#
# **Links.** Previous: [07 · Kernels](07_kernels.ipynb). Next: [09 · Training](09_training.ipynb). Map of the course:
# [00 · Start here](00_start_here.ipynb).

# %%
import copy
import json
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from einops import rearrange
from IPython.display import display
from torch import nn
from tqdm.auto import tqdm

import minivim
from minivim import VimBlock, VimConfig, selective_scan
from minivim.course import check
from minivim.data import load_data
from minivim.data.augment import normalise
from minivim.figures import COLOURS, arrow, box, canvas, flipbook, show, use_style
from minivim.models.vim import reorder
from minivim.ops import causal_conv_silu

use_style()

# %% [markdown]
# ## 1. An image becomes tokens
#
# *Core.*
#
# The whole model first. Small numbers: an image of 4 x 4 pixels, cut into patches of 2 x 2, so four patches.

# %%
figure, axis = canvas(8.6, 2.5)
box(axis, 0.65, 1.25, "image\n4 x 4 pixels", 1.1, 0.6, "grey")
arrow(axis, (1.2, 1.25), (1.6, 1.25))
names = ["patch 0", "patch 1", "class", "patch 2", "patch 3"]
for place, name in enumerate(names):
    y = 2.25 - 0.5 * place
    box(axis, 2.1, y, name, 0.9, 0.38, "orange" if name == "class" else "blue")
    arrow(axis, (2.55, y), (2.9, y))
box(axis, 3.5, 1.25, "+ position\nembedding", 1.1, 2.4, "green")
arrow(axis, (4.05, 1.25), (4.4, 1.25))
box(axis, 5.05, 1.25, "24 blocks:\nnorm, mixer,\nadd", 1.2, 2.4, "purple")
arrow(axis, (5.65, 1.25), (6.0, 1.25))
box(axis, 6.6, 1.25, "last norm,\nclass token\nonly", 1.1, 0.85, "orange")
arrow(axis, (7.15, 1.25), (7.5, 1.25))
box(axis, 8.0, 1.25, "linear:\nscores", 0.9, 0.6, "grey")
show(figure, "Flow of Vim: image, patches and class token, positions, blocks, scores")
print("tokens:", len(names), " the class token stands at place", names.index("class"))

# %% [markdown]
# **What to see.** Blue: the patches, in the order in which they are read. Orange: the class token, a learned vector
# that belongs to no patch. It stands in the middle, and the class is read off it alone. So all that the model knows of
# the image must reach this one token. How it gets there is the subject of this chapter.
#
# Now in code. The image holds the values 0 to 15. Patches are read like text, row by row. `rearrange` (from the library
# einops) cuts and joins axes by name: `(r p)` on the left cuts the height into r rows of patches with p pixels each,
# `(r k)` on the right joins rows and columns of patches into one axis.

# %%
small = torch.arange(16.0).view(1, 1, 4, 4)  # (batch, channels, height, width)
patches = rearrange(small, "b c (r p) (k q) -> b (r k) (c p q)", p=2, q=2)
print(small[0, 0].int().tolist())
print("tokens:", patches[0].int().tolist())
assert patches[0, 0].tolist() == [0, 1, 4, 5] and patches[0, 3].tolist() == [10, 11, 14, 15]

# %% [markdown]
# Each patch is then mapped to D numbers by a linear layer, the same for all M patches:
#
# $$\text{token}_m = W\,\text{patch}_m + b \tag{8.1}$$
#
# *Vision Transformer (ViT), arXiv 2010.11929, Eq. 1.* Most code writes this as a convolution with kernel P and stride
# P, where P is the patch's side in pixels. It is the same thing: a kernel that moves by its own width meets each patch
# once.

# %%
torch.manual_seed(0)
conv = nn.Conv2d(1, 3, kernel_size=2, stride=2)
by_convolution = conv(small).flatten(2).transpose(1, 2)  # (B, M, D)
by_linear = patches @ conv.weight.flatten(1).T + conv.bias
equal = torch.allclose(by_convolution, by_linear, atol=1e-5)  # float32
print("convolution equals linear layer on patches:", equal)
assert equal

# %% [markdown]
# **A stride smaller than the patch** makes patches overlap, and gives more of them. Along a side of H pixels there are
#
# $$\frac{H - P}{\text{stride}} + 1 \tag{8.2}$$
#
# patches. The paper's longer sequences are made this way: models fine-tuned at stride 8 with patches of 16 have 729
# patches in place of 196.


# %%
def patches_along(side, patch, stride):
    """Equation 8.2."""
    return (side - patch) // stride + 1


for stride in (16, 8):
    along = patches_along(224, 16, stride)
    print(f"224 pixels, patch 16, stride {stride}: {along} x {along} = {along**2} patches")
    assert VimConfig(patch_size=16, stride=stride).grid_shape == (along, along)

# %% [markdown]
# A real image: a photograph that comes with scikit-learn, cut to 224 x 224 pixels.

# %%
from sklearn.datasets import load_sample_image

photo = torch.tensor(load_sample_image("china.jpg"))[20:244, 150:374]  # (224, 224, 3)
image = (photo.permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
print("image:", tuple(image.shape))
assert image.shape == (1, 3, 224, 224)

# %% [markdown]
# ## 2. The class token in the middle, and the position embedding
#
# *Core.*
#
# ViT puts the class token at the front. Vim puts it at place M // 2 of M patches. Then a learned vector is added to
# every token, the class token too, one vector for each place of the picture: the **position embedding** $E_{pos}$.
# With $p_m$ for the token of patch m, what enters the first block is
#
# $$T_0 = [\,p_0, \dots, p_{M/2-1},\; t_{cls},\; p_{M/2}, \dots, p_{M-1}\,] + E_{pos} \tag{8.3}$$
#
# *Vim, arXiv 2401.09417, Eq. 4. The equation there prints the class token at the front; section 4.4 of the paper, and
# its code, have it in the middle.*
#
# **Why the middle?** A recurrence forgets with distance. In the middle, the farthest patch is 98 steps away; at the
# front it is 196. The paper gives another reason, too: the object often stands in the middle of the picture. And it
# measured five designs (Table 5 of version 3; Vim-Ti, ImageNet; top-1 accuracy is the share of images whose class gets
# the highest score):
#
# | mean of all tokens | maximum | front | both ends | middle |
# |---|---|---|---|---|
# | 73.9 | 73.4 | 75.2 | 74.3 | **76.1** |

# %%
M = 196
for name, place in {"front": 0, "middle": M // 2}.items():
    print(f"class token at the {name}: farthest patch {max(place, M - place)} steps away")
assert max(M // 2, M - M // 2) == 98

# %% [markdown]
# In code, equation 8.3 is three lines. We compare with Vim-Tiny's own `embed`.

# %%
torch.manual_seed(0)
vim = minivim.create_model("vim_tiny_patch16_224").eval()
patch_tokens = vim.patch_embed(image)  # (1, 196, 192)
middle = patch_tokens.shape[1] // 2
before, after = patch_tokens.split(middle, dim=1)
tokens = torch.cat([before, vim.cls_token, after], dim=1) + vim.pos_embed
print("tokens:", tuple(tokens.shape), " class token at place", middle)
assert torch.equal(tokens, vim.embed(image))

# %% [markdown]
# ## 3. A sequence has one order, an image has two
#
# *Core.*
#
# Rows are one way to read an image. Here are two more: column by column, and the **snake**, which walks every second
# row from right to left.


# %%
def path(order, rows, columns):
    """The (row, column) of each patch in the order of reading."""
    if order == "columns":
        return [(row, column) for column in range(columns) for row in range(rows)]
    there, back = range(columns), range(columns - 1, -1, -1)
    turned = [order == "snake" and row % 2 == 1 for row in range(rows)]
    return [(row, k) for row in range(rows) for k in (back if turned[row] else there)]


# %%
for order in ("rows", "columns", "snake"):
    config = VimConfig(img_size=64, scan_order=order)  # a grid of 4 x 4 patches
    numbered = torch.tensor([*range(8), -1, *range(8, 16)])  # -1: the class token
    read = reorder(numbered.view(1, 17, 1), config).flatten().tolist()
    expected = [4 * row + column for row, column in path(order, 4, 4)]
    assert read[8] == -1 and read[:8] + read[9:] == expected
    print(f"{order:>7}: places of patches 0 to 15:", [read.index(k) for k in range(16)])

# %%
figure, axes = plt.subplots(1, 3, figsize=(8, 2.7))
for axis, order in zip(axes, ("rows", "columns", "snake"), strict=True):
    down, right = zip(*path(order, 4, 4), strict=True)
    axis.plot(right, down, color=COLOURS["grey"], zorder=1)
    axis.scatter(right, down, s=260, color=COLOURS["blue"], zorder=2)
    for place, (y, x) in enumerate(zip(down, right, strict=True)):
        axis.text(x, y, place + (place >= 8), ha="center", va="center", color="white")
    axis.set(xlabel="patch column", ylabel="patch row", title=order)
    axis.set(xlim=(-0.5, 3.5), ylim=(3.5, -0.5), xticks=range(4), yticks=range(4))
show(figure, "Three paths over 4 x 4 patches: row by row, column by column, and as a snake")
print("patches in each picture:", 16, " the number 8 is missing: it is the class token's")

# %% [markdown]
# **What to see.** The numbers are places in the sequence, the same as in the lists above: the first four of a list are
# the first row of its picture. (The lists number the patches row by row, whatever the order of reading.) The grey
# line jumps at the end of each row (left) or column (middle); the snake never jumps. But in each picture, some
# neighbours in the image are far apart on the line. On Vim's grid of 14 x 14:

# %%
for order in ("rows", "columns", "snake"):
    place = {patch: k for k, patch in enumerate(path(order, 14, 14))}
    below = [abs(place[y + 1, x] - place[y, x]) for y in range(13) for x in range(14)]
    beside = [abs(place[y, x + 1] - place[y, x]) for y in range(14) for x in range(13)]
    means = [sum(steps) / len(steps) for steps in (beside, below)]
    print(f"{order:>7}: to the patch beside {means[0]:.0f} steps on average,", end=" ")
    print(f"to the one below {means[1]:.0f}, at most {max(below)}")
    assert max(below) == {"rows": 14, "columns": 1, "snake": 27}[order]

# %% [markdown]
# The snake takes no jumps, and yet the patch below is as far away on average as by rows: near at one end of a row, far
# at the other. A recurrence knows order, but only this one-dimensional order. Two directions do not change that: by
# rows, the patch below is 14 steps away whether one walks there or back. Where a token stands in the image has to be
# told, and the position embedding tells it. How much does it matter, and which order is best? Section 11 measures it.
#
# ### Exercise 08.1 · Where does a patch stand?
#
# **Goal.** Find a patch in the sequence. **Difficulty.** recall. **Minutes.** 8. **Core.**
#
# Given `row`, `column`, the size of the grid `rows`, `columns`, and `order` ("rows", "columns" or "snake"), return the
# place of that patch in Vim's sequence, a whole number. All counts begin at 0. The class token stands in the middle,
# at place M // 2 of M = rows x columns patches, so every patch from the M // 2-th on stands one place later.
#
# <details><summary>Hint</summary>
#
# First the place among the patches alone. In a snake, an odd row is read from the right: its column c comes as number
# columns - 1 - c. Then compare with M // 2.
#
# </details>


# %%
def place_of_patch(row, column, rows, columns, order):
    """The place of a patch in the sequence with the class token in the middle."""
    # BEGIN SOLUTION
    if order == "columns":
        place = column * rows + row
    else:
        turned = order == "snake" and row % 2 == 1
        place = row * columns + (columns - 1 - column if turned else column)
    return place + (place >= rows * columns // 2)
    # END SOLUTION


# %%
check("08.1", place_of_patch)

# %% [markdown]
# ## 4. One direction
#
# *Core.*
#
# The mixer lets tokens meet. One direction is Mamba's block of [chapter 05](05_selection.ipynb). Sizes for Vim-Tiny:
# D = 192, inner width E = 384, state size N = 16, rank R = 12, convolution width K = 4.
#
# | step | equation | shape |
# |---|---|---|
# | widen | $x, z = W_{in}\, T$ | two of (B, L, E) |
# | look at the last K tokens | $u = \mathrm{silu}(\mathrm{conv}(x))$, each channel for itself | (B, L, E) |
# | choose | $\mathit{dt}, B, C = W_x\, u$ | R, N, N numbers per token |
# | step size | $\Delta = \mathrm{softplus}(W_{dt}\,\mathit{dt} + b_{dt})$ | (B, L, E) |
# | scan | $h[t] = e^{\Delta[t] A} h[t-1] + \Delta[t] B[t] u[t]$ | h: (B, E, N) |
# | read | $y[t] = C[t] \cdot h[t] + D\, u[t]$ | (B, L, E) |
# | gate | $y \cdot \mathrm{silu}(z)$ | (B, L, E) |
# | narrow | $W_{out}\, y$ | (B, L, D) |
#
# *Mamba, arXiv 2312.00752, Algorithm 2 and Figure 3.* Two letters are taken twice: B is the batch in a shape and the
# input map in an equation; D is the width in a shape and the skip in an equation. The steps from the convolution to
# the gate belong to a direction; the first and the last are shared.


# %%
def one_direction(ssm, x, z, reverse=False):
    """From the convolution to the gate, with the weights of `ssm`: (B, L, E) -> same."""
    u = causal_conv_silu(x, ssm.conv_weight, ssm.conv_bias, reverse=reverse)
    E, N = ssm.A_log.shape
    dt, B, C = ssm.x_proj(u).split([ssm.dt_proj.in_features, N, N], dim=-1)
    delta = F.softplus(ssm.dt_proj(dt))
    A = -torch.exp(ssm.A_log)  # negative for any A_log: the state can only fade
    y = selective_scan(u, delta, A, B, C, ssm.D, reverse=reverse)
    return y * F.silu(z)


# %%
mixer = vim.blocks[0].mixer
with torch.no_grad():
    x, z = mixer.in_proj(tokens).chunk(2, dim=-1)
    mine, package = one_direction(mixer.forward_ssm, x, z), mixer.forward_ssm(x, z)
equal = torch.allclose(mine, package, atol=1e-5)  # float32
print("equal to the package to 1e-5:", equal)
assert equal

# %% [markdown]
# **A law: causality.** Walking forward, token t of the output depends on tokens 0 to t only. We ask a gradient: how
# does one output token move when any input token moves?


# %%
def influence(layer, tokens, target):
    """How strongly each input token moves output token `target`: norms of gradients."""
    tokens = tokens.detach().requires_grad_()
    output = layer(tokens)[0, target]  # D numbers; a random sum of them has a gradient
    probe = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    return torch.autograd.grad(output, tokens, probe)[0][0].norm(dim=-1)


# %%
def one_way(mixer, way):
    """The mixer with one of its directions only: "forward" or "backward"."""
    ssm, reverse = getattr(mixer, f"{way}_ssm"), way == "backward"

    def run(tokens):
        x, z = mixer.in_proj(tokens).chunk(2, dim=-1)
        return mixer.out_proj(one_direction(ssm, x, z, reverse))

    return run


# %%
reach = influence(one_way(mixer, "forward"), tokens, middle)
up_to_it, after_it = reach[: middle + 1] > 0, reach[middle + 1 :] > 0
print("tokens up to the class token that move it:", up_to_it.sum().item(), "of", middle + 1)
print("tokens after it that move it:             ", after_it.sum().item())
assert up_to_it.all() and not after_it.any()

# %% [markdown]
# ## 5. What does the class token hear?
#
# *Core.*
#
# With the forward direction alone, the lower half of the image cannot reach a class token in the middle. Do more
# blocks help? And what does the second direction change? First a picture of the two walks, on 16 patches and the class
# token at place 8.


# %%
def draw_walks(figure, read):
    """Both scans after `read` tokens, over 16 patches and the class token at place 8."""
    sequence, grid = figure.subplots(1, 2, width_ratios=[2.2, 1])
    walks = {"forward": ("blue", range(read)), "backward": ("red", range(17 - read, 17))}
    for height, (colour, seen) in zip((1, 0), walks.values(), strict=True):
        colours = [COLOURS[colour] if place in seen else "lightgrey" for place in range(17)]
        sequence.bar(range(17), 0.8, width=0.9, bottom=height, color=colours)
    sequence.axvspan(7.5, 8.5, fill=False, edgecolor="black", linewidth=2)
    sequence.set(yticks=[0.4, 1.4], yticklabels=["backward", "forward"], ylabel="scan")
    sequence.set(xlabel="place (box: class token)", title=f"tokens read: {read} of 17")
    sequence.set_xticks([0, 4, 8, 12, 16])
    sequence.grid(visible=False)
    halves = [COLOURS["blue"]] * 8 + [COLOURS["red"]] * 8
    grid.scatter(
        [patch % 4 for patch in range(16)],
        [patch // 4 for patch in range(16)],
        marker="s",
        s=420,
        color=halves if read >= 9 else ["lightgrey"] * 16,
    )
    grid.set(xlim=(-0.6, 3.6), ylim=(3.6, -0.6), xticks=range(4), yticks=range(4))
    grid.set(xlabel="patch column", ylabel="patch row", title="class token hears")
    grid.grid(visible=False)


# %%
print("tokens that each scan has read when it is at the class token:", 8 + 1)
counts = [*range(1, 10), 11, 13, 15, 17]
flipbook(draw_walks, counts, "Two scans walk over 17 tokens towards each other")

# %% [markdown]
# **What to see.** Left: coloured places have been read. Each scan carries what it read in its state. The ninth token
# of both is the class token, at place 8 in the middle: one comes there with the upper half of the image, one with the
# lower half. At this moment, and not before, the class token learns all 16 patches (right). Then the scans go on: every
# other token hears both sides, too.
#
# Now the real mixer: the gradient of the class token, for the forward direction, the backward direction, and both,
# after one block and after four.


# %%
def stack(depth, way):
    """The first `depth` blocks, with one direction or both, as a function of the tokens."""

    def run(tokens):
        for block in vim.blocks[:depth]:
            mixer = block.mixer if way == "both" else one_way(block.mixer, way)
            tokens = tokens + mixer(block.norm(tokens))
        return tokens

    return run


# %%
reaches, ways = {}, ("forward", "backward", "both")
for depth in (1, 4):
    for way in ways:
        reach = influence(stack(depth, way), tokens, middle)
        reaches[depth, way] = torch.cat([reach[:middle], reach[middle + 1 :]]).view(14, 14)
    counts = [(reaches[depth, way] > 0).sum().item() for way in ways]
    print(f"patches that reach the class token after {depth} block(s):", counts)
    assert counts == [98, 98, 196]

# %%
figure, axes = plt.subplots(2, 3, figsize=(8, 4.6), sharex=True, sharey=True)
for axis, ((depth, way), reach) in zip(axes.flat, reaches.items(), strict=True):
    brightness = torch.log10(reach.masked_fill(reach == 0, torch.nan))
    drawn = axis.imshow(brightness, vmin=-7, vmax=0)
    blocks = "one block" if depth == 1 else f"{depth} blocks"
    axis.set(xlabel="patch column", ylabel="patch row", title=f"{way}, {blocks}")
    axis.set(xticks=[0, 5, 10], yticks=[0, 5, 10])
    axis.patch.set(facecolor="white", edgecolor="black", hatch="///")
    axis.grid(visible=False)
    axis.label_outer()
figure.colorbar(drawn, ax=axes, label="log10 of the influence")
show(
    figure,
    "Influence of each patch on the class token, three ways, one block and four",
)
hatched = [(reach == 0).sum().item() for reach in reaches.values()]
print("hatched patches, exactly zero:", hatched[:3], "and", hatched[3:])

# %% [markdown]
# **What to see.** White with black lines is exactly zero. Forward: the class token knows the upper half only. Backward:
# the lower half only. Both: the whole image, after a single block. Four blocks change nothing about these zeros: a
# chain of walks in one direction is still a walk in one direction. The brightest patches are the three before the class
# token and the three behind it: the convolutions reach them directly. After one block all others come through the
# scans.
#
# **So, after one block,** the class token in the middle hears
# - by the forward scan: itself and the 98 patches before it, the upper half;
# - by the backward scan: itself and the 98 patches after it, the lower half;
# - by both: all 196 patches. Nothing is missing, and no second block is needed for that.
#
# "A class token in the middle sees only half of the image" is right for one direction and wrong for Vim.

# %% [markdown]
# ### Exercise 08.2 · Who can be heard?
#
# **Goal.** Count what reaches the class token. **Difficulty.** derive. **Minutes.** 8. **Core.**
#
# `M` patches and a class token at place `place` of the sequence (so `place` patches stand before it). A chain of
# `layers` layers runs over them, all of one kind, each with a skip connection. `way` is "forward", "backward" or "both"
# for the scans, or "convolution": then there is no scan, only a causal convolution over the last `K` tokens, the token
# itself counted. Return how many patches can reach the class token at the end.
#
# <details><summary>Hint</summary>
#
# A scan reaches any distance in one layer. A convolution brings a token K - 1 places further in each layer, and it ends
# where the sequence ends. Test: 3 layers with K = 4 reach 9 patches, if there are so many.
#
# </details>


# %%
def patches_heard(M, place, way, layers, K):
    """How many of M patches can reach the class token at `place`."""
    # BEGIN SOLUTION
    before, after = place, M - place
    reached = {"forward": before, "backward": after, "both": M}
    return reached[way] if way != "convolution" else min(before, layers * (K - 1))
    # END SOLUTION


# %%
check("08.2", patches_heard)

# %% [markdown]
# ## 6. The mixer: both directions
#
# *Core.*
#
# Vim runs two such models on the same x and z, each with weights of its own. One walks from the first token to the
# last, the other from the last to the first. Their outputs are averaged.

# %%
figure, axis = canvas(8.6, 3.0)
box(axis, 0.6, 1.5, "tokens\n(B, L, D)", 1.0, 0.6, "grey")
arrow(axis, (1.1, 1.5), (1.45, 1.5))
box(axis, 1.9, 1.5, "in_proj", 0.9, 0.5, "purple")
for y, way, colour in ((2.5, "forward", "blue"), (0.5, "backward", "red")):
    arrow(axis, (2.35, 1.5), (2.75, y), "x")
    box(axis, 3.45, y, "convolution,\nSiLU", 1.3, 0.6, colour)
    arrow(axis, (4.1, y), (4.4, y))
    box(axis, 5.1, y, f"{way}\n" + r"$\Delta$, B, C, scan", 1.4, 0.6, colour)
    arrow(axis, (5.8, y), (6.1, y))
    box(axis, 6.45, y, "gate", 0.7, 0.6, colour)
    arrow(axis, (2.35, 1.5), (6.1, 1.5 + 0.72 * (y - 1.5)), "z", "grey")
    arrow(axis, (6.6, 1.5 + 0.7 * (y - 1.5)), (7.0, 1.5 + 0.1 * (y - 1.5)))
box(axis, 7.35, 1.5, "mean", 0.65, 0.6, "purple")
arrow(axis, (7.68, 1.5), (7.85, 1.5))
box(axis, 8.2, 1.5, "out_\nproj", 0.65, 0.6, "purple")
show(
    figure,
    "The mixer: in_proj, two directions of convolution, scan and gate, mean, out_proj",
)
print("boxes that a direction has for itself:", 3, " boxes that both share:", 3)

# %% [markdown]
# **What to see.** Above in blue, below in orange: each direction has its own convolution, its own $\Delta$, B, C, A and
# D. Pink: shared by both. The gate's values, silu(z), are the same for both. Two convolutions alone would look both
# ways, but only three tokens far. It is the backward *scan* that reaches all.


# %%
class Direction(nn.Module):
    """The weights of one direction."""

    def __init__(self, E, N, R, K, reverse):
        super().__init__()
        self.reverse = reverse
        self.conv_weight = nn.Parameter(torch.randn(E, K) / K**0.5)
        self.conv_bias = nn.Parameter(torch.zeros(E))
        self.x_proj = nn.Linear(E, R + 2 * N, bias=False)
        self.dt_proj = nn.Linear(R, E)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, N + 1)).repeat(E, 1))
        self.D = nn.Parameter(torch.ones(E))

    def forward(self, x, z):
        return one_direction(self, x, z, self.reverse)


# %%
class Mixer(nn.Module):
    """Two directions on the same tokens, averaged: (B, L, D) -> (B, L, D)."""

    def __init__(self, D, N=16, K=4):
        super().__init__()
        E, R = 2 * D, -(-D // 16)  # R: D / 16, rounded up
        self.in_proj = nn.Linear(D, 2 * E, bias=False)
        self.forward_ssm = Direction(E, N, R, K, reverse=False)
        self.backward_ssm = Direction(E, N, R, K, reverse=True)
        self.out_proj = nn.Linear(E, D, bias=False)

    def forward(self, tokens):
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        return self.out_proj((self.forward_ssm(x, z) + self.backward_ssm(x, z)) / 2)


# %% [markdown]
# Is it Vim's? We give it the weights of the package's mixer. `load_state_dict` refuses a missing, an extra or a
# misshapen tensor, so it checks the structure. Then the outputs must be equal.

# %%
own = Mixer(D=192)
own.load_state_dict(mixer.state_dict())
with torch.no_grad():
    largest = (own(tokens) - mixer(tokens)).abs().max()
print("our mixer equals the package's to 1e-5:", (largest < 1e-5).item())
assert largest < 1e-5  # float32

# %% [markdown]
# **What is the second direction worth?** The paper compared four designs (Table 4 of version 3; Vim-Ti without a class
# token, so the mean of all tokens is classified; ADE20K names the object under each pixel, with a small head called
# Segmenter; its score mIoU is the area that the named and the true object share, in per cent of the area that they
# cover together, averaged over the kinds of object):
#
# | design | ImageNet top-1 | ADE20K mIoU |
# |---|---|---|
# | none: forward only | 73.2 | 32.3 |
# | layer: blocks alternate between forward and backward | 70.9 | 33.6 |
# | SSM: a second, backward scan | 72.8 | 33.2 |
# | SSM + convolution: the backward scan has its own convolution, too | **73.9** | **35.9** |
#
# Read it with care. For classification the gain is 0.7 points, and two of the three ways to look back did *worse* than
# not looking back. Here every token is averaged into the answer, and the last ones have seen everything, so one
# direction hides nothing. (The paper's text speaks of a loss of 7 points for the alternating design; its table says
# 2.3.) For segmentation, where every single token must know what is around it, the gain is 3.6 points.

# %% [markdown]
# ## 7. The block, and 7,148,008 parameters
#
# *Core.*
#
# A mixer's output is an update. It is added to a stream that runs through all blocks. Before each mixer, a token is
# divided by its root mean square:
#
# $$\mathrm{norm}(x) = \frac{x}{\sqrt{\tfrac{1}{D}\sum_d x_d^2 + \epsilon}} \cdot g \tag{8.4}$$
#
# *RMSNorm, arXiv 1910.07467, Eq. 4.* $\epsilon$ is tiny, so that nothing is divided by 0; $g$, the **gain**, is one
# learned factor for each of the D numbers. By hand, with gain 1: for x = (3, 4) the mean square is 12.5, its root 3.54,
# so the result is (0.849, 1.13). The length of a token is gone, its direction stays.


# %%
def rms_norm(x, gain, eps=1e-5):
    """Equation 8.4."""
    return x / torch.sqrt((x**2).mean(dim=-1, keepdim=True) + eps) * gain


example = rms_norm(torch.tensor([3.0, 4.0]), torch.ones(2))
print("norm of (3, 4):", [f"{value:.3g}" for value in example.tolist()])
norm = vim.blocks[0].norm
assert torch.allclose(rms_norm(tokens, norm.weight), norm(tokens), atol=1e-5)
assert torch.allclose(norm(200 * tokens), norm(100 * tokens), atol=1e-4)  # no length

# %% [markdown]
# Papers write a block as $T_l = T_{l-1} + \mathrm{mixer}(\mathrm{norm}(T_{l-1}))$. The official code, and ours, cut the
# same chain in another place. A block receives the last update and the stream. It adds them, normalises, mixes, and
# hands on its own update, not yet added. So one kernel can do the addition and the norm in one pass.

# %%
figure, axis = canvas(8.6, 2.2)
for left, title in ((0.2, "papers: norm, mixer, add"), (4.6, "code: add, norm, mixer")):
    in_papers, names = title.startswith("papers"), title.partition(": ")[2].split(", ")
    axis.text(left, 1.95, title)
    axis.text(left, 0.15, "stream", color=COLOURS["orange"])
    heights = [0.5 if name == "add" else 1.4 for name in names]
    seats = [(left + 0.7 + 1.3 * k, height) for k, height in enumerate(heights)]
    arrow(axis, (left, 0.5), (left + 3.9, 0.5), colour="orange")
    for (x, y), name in zip(seats, names, strict=True):
        box(axis, x, y, name, 0.8, 0.4, "orange" if name == "add" else "purple")
    (x0, y0), (x1, y1), (x2, y2) = seats
    if in_papers:
        arrow(axis, (left + 0.15, 0.5), (x0 - 0.2, 1.2))
        arrow(axis, (x0 + 0.4, y0), (x1 - 0.4, y1))
        arrow(axis, (x1 + 0.3, 1.2), (x2 - 0.2, 0.7), "update")
    else:
        arrow(axis, (left, 1.4), (x0 - 0.2, 0.7), "update")
        arrow(axis, (x0 + 0.3, 0.7), (x1 - 0.2, 1.2))
        arrow(axis, (x1 + 0.4, y1), (x2 - 0.4, y2))
        arrow(axis, (x2 + 0.4, y2), (left + 4.0, y2))
show(figure, "A block cut in two ways: norm, mixer, add; or add, norm, mixer")
print("steps in a block, both ways:", 3)

# %% [markdown]
# **What to see.** In a row of blocks both give the same chain: add, norm, mixer, add, norm, mixer, and so on. Left, a
# block begins before the norm and ends after the add. Right, it begins before the add: its update leaves at the top
# right and enters the next block at the top left, to be added there. Two blocks in both ways:

# %%
first, second = vim.blocks[:2]
with torch.no_grad():
    update, stream = first(tokens)
    update, stream = second(update, stream)
    as_in_code = stream + update

# %%
with torch.no_grad():
    as_in_papers = tokens + first.mixer(first.norm(tokens))
    as_in_papers = as_in_papers + second.mixer(second.norm(as_in_papers))
print("the same stream:", torch.allclose(as_in_code, as_in_papers, atol=1e-5))
assert torch.allclose(as_in_code, as_in_papers, atol=1e-5)

# %% [markdown]
# Now we have a block: add, norm, mixer. Ours against `minivim.VimBlock`:

# %%
torch.manual_seed(1)
block = VimBlock(VimConfig(embed_dim=32))
own_block = Mixer(D=32)
_ = own_block.load_state_dict(block.mixer.state_dict())


# %%
incoming, stream = torch.randn(2, 10, 32), torch.randn(2, 10, 32)
with torch.no_grad():
    theirs_update, theirs_stream = block(incoming, stream)
    ours_stream = incoming + stream
    ours_update = own_block(rms_norm(ours_stream, block.norm.weight))
equal = torch.allclose(ours_update, theirs_update, atol=1e-5)
print("our block equals VimBlock to 1e-5:", equal)
assert equal and torch.equal(ours_stream, theirs_stream)

# %% [markdown]
# All pieces are known, so all numbers can be counted. One by hand: `in_proj` maps D = 192 numbers to 2E = 768, without
# a bias. That is 192 x 768 = 147,456 numbers.
#
# ### Exercise 08.3 · Count them all
#
# **Goal.** Count the parameters of a Vim from its sizes. **Difficulty.** derive. **Minutes.** 12. **Core.**
#
# Return the number of parameters of a whole Vim: width `D`, `depth` blocks, state size `N`, convolution width `K`,
# patches of `P` x `P` pixels of an image of `side` x `side` with 3 colours, `classes` scores. E = 2D, and R is D / 16,
# rounded up. All shapes stand in `Direction`, `Mixer` and (8.1) to (8.4). Only four things have a bias: the
# convolution, `dt_proj`, the patch embedding and the head. There is one norm in each block and one at the end.
#
# <details><summary>Hint</summary>
#
# Count one direction, then one block (two directions, in_proj, out_proj, the norm's gain), then what is there once. A
# tensor of shape (E, K) has E times K numbers. Vim-Tiny, with the sizes of section 4, must give 7,148,008.
#
# </details>
#
# <details><summary>The count, part by part</summary>
#
# A direction: convolution KE + E; x_proj E(R + 2N); dt_proj RE + E; A_log EN; D: E. A block: two directions, in_proj
# 2DE, out_proj ED, norm D. Once: patch embedding 3PPD + D, class token D, position embedding (M + 1) D, last norm D,
# head D classes + classes.
#
# </details>


# %%
def count_parameters(D, depth, N, K, P, side, classes):
    """The number of parameters of a Vim."""
    # BEGIN SOLUTION
    E, R, M = 2 * D, -(-D // 16), (side // P) ** 2
    direction = K * E + E + E * (R + 2 * N) + R * E + E + E * N + E
    block = 2 * direction + 2 * D * E + E * D + D
    once = 3 * P * P * D + D + D + (M + 1) * D + D + D * classes + classes
    return depth * block + once
    # END SOLUTION


# %%
check("08.3", count_parameters)

# %% [markdown]
# The model itself must agree. We ask it where its parameters are.

# %%
total = sum(parameter.numel() for parameter in vim.parameters())
for kind in (
    "in_proj",
    "out_proj",
    "x_proj",
    "dt_proj",
    "conv",
    "A_log",
    "patch_embed",
    "head",
):
    numbers = sum(p.numel() for name, p in vim.named_parameters() if kind in name)
    print(f"{kind:>12} {numbers:9,d}  {numbers / total:4.0%}")
print(f"{'all':>12} {total:9,d}")
assert total == 7_148_008

# %% [markdown]
# The recurrence itself, A_log, has 4 % of the parameters. The matrices around it have the rest.
#
# <details><summary>What grows fastest when the model gets wider?</summary>
#
# Double D. `in_proj` and `out_proj` have D times E numbers: four times as many. `A_log` has EN: twice as many. `x_proj`
# lies between: E doubles, R doubles, but N stays, so 2.55 times (from 384 x 44 to 768 x 56). Hence Small has 3.6 times
# the parameters of Tiny, 25,796,584, and Base 97,598,440.
#
# </details>

# %% [markdown]
# ## 8. A trained effect
#
# *Core.*
#
# Gradients of an untrained model say what *can* reach the class token. Does it matter once a model is trained? We
# train two small Vims on handwritten digits of 8 x 8 pixels, cut into 16 patches: one that only walks forward, and one
# that walks both ways. Both have the class token in the middle. **Predict** what accuracy the first can reach when it
# sees the upper half of each digit only.

# %%
torch.set_num_threads(1)  # for models so small, a second thread would mostly wait
data = load_data("digits")
train_images = normalise(data.train_images, data.mean, data.std)
test_images = normalise(data.test_images, data.mean, data.std)


# %%
models, curves = {}, {"forward only": [], "both ways": []}
for directions, name in enumerate(curves, start=1):
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 2, "directions": directions}
    models[name] = minivim.create_model("vim_nano_patch2_8", **sizes)
    (place,) = models[name].config.cls_positions
    print(f"{name}: class token at place {place} of {models[name].config.num_tokens}")
    assert place == 8


# %%
def draw_curves():
    """The test accuracy of both models after each epoch so far."""
    figure, axis = plt.subplots(figsize=(6, 2.8))
    for (name, curve), marker in zip(curves.items(), "os", strict=True):
        axis.plot(range(1, len(curve) + 1), curve, marker=marker, label=name)
    axis.axhline(0.1, color=COLOURS["grey"], linestyle="--", label="guessing")
    axis.set(xlabel="epoch", ylabel="test accuracy", ylim=(0, 1), xlim=(0.5, 10.5))
    axis.legend(loc="lower right")
    return figure


@torch.no_grad()
def accuracy(model, images):
    """The share of the test labels that the model gives to `images`."""
    return (model(images).argmax(1) == data.test_labels).float().mean().item()


# %%
def train(name, watch, epochs=10, peak=1e-2):
    """AdamW, the learning rate rises and falls; the accuracy is noted after each epoch."""
    model, batches = models[name].train(), len(train_images) // 64
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, epochs * batches)
    for _ in tqdm(range(epochs), desc=name):
        for rows in torch.randperm(len(train_images))[: 64 * batches].split(64):
            loss = F.cross_entropy(model(train_images[rows]), data.train_labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        curves[name].append(accuracy(model, test_images))
        watch()


# %% tags=["nbval-ignore-output"]
screen = display(display_id=True)


def watch():
    """Draw the curves anew in the same place."""
    figure = draw_curves()
    screen.update(figure)
    plt.close(figure)


for name in curves:
    train(name, watch)

# %% [markdown]
# Then we ask the trained models a hard question. Keep the upper half of each test image, and replace its lower half by
# the lower half of another digit. Who notices?

# %%
others = test_images.flip(0)
mixed = {
    "lower half swapped": torch.cat([test_images[:, :, :4], others[:, :, 4:]], dim=2),
    "upper half swapped": torch.cat([others[:, :, :4], test_images[:, :, 4:]], dim=2),
}


# %%
moved = {}
for name, model in models.items():
    with torch.no_grad():
        change = model(mixed["lower half swapped"]) - model(test_images)
    moved[name] = change.abs().max().item()
print(
    "lower half swapped. Logits of the forward model that change:",
    moved["forward only"] > 0,
)
print(
    "Logits of the model that walks both ways change by more than 1:",
    moved["both ways"] > 1,
)
assert moved["forward only"] == 0 and moved["both ways"] > 1

# %%
tests = {"as they are": test_images, **mixed}
shares = {n: [accuracy(model, t) for t in tests.values()] for n, model in models.items()}
figure, axis = plt.subplots(figsize=(6.4, 3))
for k, (name, bars) in enumerate(shares.items()):
    axis.bar([x + 0.36 * k for x in range(3)], bars, width=0.34, label=name)
axis.set(xlabel="test images", ylabel="test accuracy", ylim=(0, 1.05))
axis.set_xticks([0.18, 1.18, 2.18], tests)
axis.legend(loc="upper right")
show(
    figure,
    "Accuracy of both models on whole test images and with half of each image swapped",
)
whole, lower, upper = shares["forward only"]
gain = shares["both ways"][0] - whole
print("forward only, lower half swapped: exactly the same accuracy:", whole == lower)
print("whole images: walking both ways is better by 1 to 12 points:", 0.01 < gain < 0.12)
assert whole == lower and upper < 0.4 and 0.01 < gain < 0.12

# %% [markdown]
# **What to see.** Left: the model that walks forward reads nine digits of ten without ever seeing their lower half.
# That much is in the upper half, and training finds it. Middle: it is blind below. Its logits do not change by a single
# bit when another digit's lower half is put there. Right: with another digit's upper half it answers for that digit, so
# it is right as often as by guessing. Walking both ways, the model is better on whole digits, and torn when the halves
# disagree.
#
# So training cannot make good what the architecture hides. But the loss in accuracy can be small enough to be
# overlooked: nobody who looked at the left bars alone would guess that one model sees half of each image.

# %% [markdown]
# ## 9. Walking back
#
# *Core.*
#
# **A law.** Exchange the weights of the two directions and flip the order of the tokens: the output is flipped, and
# nothing else. An error in one direction only breaks this law; the same error in both does not.


# %%
def exchanged(mixer):
    """A copy with the weights of the two directions exchanged."""
    swapped = copy.deepcopy(mixer)
    swapped.forward_ssm.load_state_dict(mixer.backward_ssm.state_dict())
    swapped.backward_ssm.load_state_dict(mixer.forward_ssm.state_dict())
    return swapped


# %%
with torch.no_grad():
    flipped, straight = exchanged(own)(tokens.flip(1)), own(tokens)
print("flip in, flip out:", torch.allclose(flipped.flip(1), straight, atol=1e-5))
assert torch.allclose(flipped.flip(1), straight, atol=1e-5)

# %% [markdown]
# **Which picture is a flipped sequence?** It is tempting to say: the mirror image. Look.

# %%
squares = rearrange(photo, "(r p) (c q) k -> (r c) p q k", p=16, q=16)  # 196 patches
laid = rearrange(squares.flip(0), "(r c) p q k -> (r p) (c q) k", r=14)
pictures = {"photo": photo, "order of patches flipped": laid, "mirror image": photo.flip(1)}
figure, axes = plt.subplots(1, 3, figsize=(6.4, 2.4))
for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
    axis.imshow(picture[::2, ::2])
    axis.set_title(title)
    axis.axis("off")
show(
    figure,
    "A photograph, the same with the order of its patches flipped, and its mirror image",
)
numbers = torch.arange(196).view(14, 14)
turned = torch.equal(numbers.flatten().flip(0).view(14, 14), numbers.rot90(2))
print("flipping 196 places turns the grid by 180 degrees:", turned)
assert turned and not torch.equal(numbers.rot90(2), numbers.flip(1))  # and is no mirror

# %% [markdown]
# **What to see.** Left: a tower beside the sky. Middle: its top points down, and it stands on the other side. The grid
# of patches is turned by 180 degrees, while each patch itself stays upright. A mirror (right) keeps the order of the
# rows and flips each row; no flip of the whole sequence does that.
#
# The law has a consequence. If both directions had the *same* weights, and no position embedding told the places, a
# turned sequence would give the class token the same value. With patches of one pixel, a turned sequence is a turned
# image. So such a model cannot tell a 6 from a 9. Vim can: it has different weights, and positions.

# %%
sizes = {"patch_size": 1, "embed_dim": 32, "depth": 2, "pos_embed": False}
apart = minivim.create_model("vim_nano_patch2_8", **sizes)
tied = copy.deepcopy(apart)
for block in tied.blocks:
    block.mixer.backward_ssm.load_state_dict(block.mixer.forward_ssm.state_dict())


# %%
six = test_images[data.test_labels == 6][:1]
with torch.no_grad():
    for name, model in {"same weights": tied, "own weights": apart}.items():
        same = torch.allclose(model(six), model(six.rot90(2, (2, 3))), atol=1e-5)
        print(f"{name}: a 6 and the same 6 turned by 180 degrees, the same logits: {same}")
        assert same == (name == "same weights")

# %% [markdown]
# **Which axis is flipped?** Many codes write the backward direction as flip, scan, flip. In the layout (B, D, L) of the
# official kernels the tokens are the last axis, and `flip(-1)` is right. In our layout (B, L, D) the last axis is the
# channels, and `flip(-1)` reverses the channels. Both run. Both give the same shape. Only one walks backwards.

# %%
ssm = own.backward_ssm
with torch.no_grad():
    x, z = own.in_proj(tokens).chunk(2, dim=-1)
    right = one_direction(ssm, x, z, reverse=True)
    for axis in (1, -1):
        result = one_direction(ssm, x.flip(axis), z.flip(axis)).flip(axis)
        equal = torch.allclose(result, right, atol=1e-5)
        same_shape = result.shape == right.shape
        print(f"flip({axis}): equal shape {same_shape}, equal values {equal}")
        assert equal == (axis == 1)

# %% [markdown]
# A check of shapes cannot find this error. A far token finds it at once: with the wrong axis, the last patch does not
# reach the class token.


# %%
def wrong_axis(tokens):
    x, z = own.in_proj(tokens).chunk(2, dim=-1)
    backward = one_direction(own.backward_ssm, x.flip(-1), z.flip(-1)).flip(-1)
    return own.out_proj((own.forward_ssm(x, z) + backward) / 2)


# %%
for name, layer in {"right axis": own, "wrong axis": wrong_axis}.items():
    reach = influence(layer, tokens, middle)
    heard = [(reach[place] > 0).item() for place in (0, -1)]
    print(f"{name}: first and last patch reach the class token: {heard}")
assert reach[0] > 0 and reach[-1] == 0  # the wrong axis, which came last

# %% [markdown]
# **Walking back is free, flipping is not.** `flip` copies a tensor. Flip, scan, flip copies the scan's inputs u, delta,
# z, B and C, and its output. `reverse=True` walks from token L - 1 to token 0 and copies nothing. And the residual (the
# stream of section 7, to which the update is added) need not be flipped: both outputs come back in the order of the
# tokens, so they can be added where they are.

# %%
L, E, N, bytes_each = 197, 384, 16, 4
copied = (4 * L * E + 2 * L * N) * bytes_each
copied /= 1e6
print(f"copied for one image: {copied:.2f} MB a block, {24 * copied:.0f} MB in all 24")
assert tokens.flip(1).data_ptr() != tokens.data_ptr()  # flip really copies

# %% [markdown]
# ### Exercise 08.4 · Two walks
#
# **Goal.** Build a recurrence that walks both ways. **Difficulty.** build. **Minutes.** 12. **Core.**
#
# `u` is (B, L, E). Channel e has the decay `a_forward[e]` for the walk from the first token to the last, and
# `a_backward[e]` for the walk from the last to the first. Each walk is $h[t] = a\,h[\text{the token before}] + u[t]$,
# and starts at 0. Return the mean of the two walks' h, (B, L, E), in the order of the tokens.
#
# By hand, one channel, both decays one half, u = 4, 0, 8: forward 4, 2, 9; backward 6, 4, 8; mean 5, 3, 8.5.
#
# <details><summary>Hint</summary>
#
# Write one function that walks forward, with a loop over t and `torch.stack(..., dim=1)`. For the other walk, flip the
# tokens, walk, and flip back. Which axis are the tokens?
#
# </details>


# %%
def two_walks(u, a_forward, a_backward):
    """Mean of both recurrences: u (B, L, E), decays (E,) -> (B, L, E)."""
    # BEGIN SOLUTION

    def walk(u, a):
        h, states = torch.zeros_like(u[:, 0]), []
        for token in u.unbind(dim=1):
            h = a * h + token
            states.append(h)
        return torch.stack(states, dim=1)

    return (walk(u, a_forward) + walk(u.flip(1), a_backward).flip(1)) / 2
    # END SOLUTION


# %%
check("08.4", two_walks)

# %% [markdown]
# ## 10. Must the convolution be causal?
#
# *Core.*
#
# Each direction's convolution looks at the token itself and at the three that its scan has passed before. What does
# token 4 look at? One token after the other speaks, and we note when output 4 hears it.

# %%
probe = torch.eye(9)[:, :, None]  # nine sequences; in the s-th, only token s speaks


# %%
ones, zero = torch.ones(1, 4), torch.zeros(1)
looks = {}
for reverse in (False, True):
    hears = causal_conv_silu(probe, ones, zero, reverse=reverse)[:, 4, 0] > 0
    looks[reverse] = hears.nonzero().flatten().tolist()
    print(f"reverse={reverse}: token 4 looks at tokens", looks[reverse])
assert looks == {False: [1, 2, 3, 4], True: [4, 5, 6, 7]}

# %% [markdown]
# Why causal? It is inherited. Mamba was built to write text: each token must be computed without the ones that follow,
# because they do not exist yet. An image is there all at once, and nothing is predicted in Vim. With two directions the
# mixer as a whole hears both sides anyway: no rule is broken if a convolution looks ahead. So the honest answer is: it
# need not be causal. And "causal" does not mean "shifted": the token itself is one of the four.

# %%
figure, axis = plt.subplots(figsize=(6.4, 2.2))
windows = {"centred": range(2, 6), "backward": looks[True], "forward": looks[False]}
for height, seen in enumerate(windows.values()):
    colours = [COLOURS["blue"] if t in seen else "lightgrey" for t in range(9)]
    colours[4] = COLOURS["orange"]
    axis.bar(range(9), 0.8, width=0.9, bottom=height - 0.4, color=colours)
axis.set(xlabel="token", ylabel="convolution", xticks=range(9))
axis.set(yticks=range(3), yticklabels=windows)
axis.set_title("What token 4 (orange) looks at")
axis.grid(visible=False)
show(
    figure,
    "Nine tokens: causal windows reach 3 to one side, the centred one 2 and 1",
)
print("tokens in the windows:", [len(seen) for seen in windows.values()])

# %% [markdown]
# **What to see.** Token 4 looks at what is coloured. Forward: itself and three to the left. Backward: itself and three
# to the right. Centred: two to the left and one to the right, because a window of 4 has no middle. Section 11 trains
# with all three. (The exercise takes an odd width, so that there is a middle.)
#
# ### Exercise 08.5 · A centred convolution
#
# **Goal.** Build the convolution that looks to both sides. **Difficulty.** build. **Minutes.** 10. **Optional.**
#
# `x` is (B, L, E), `weight` (E, K) with K odd, `bias` (E,). Return y (B, L, E), without SiLU:
#
# $$y[t, e] = \text{bias}[e] + \sum_{k=0}^{K-1} \text{weight}[e, k]\; x[t + k - \tfrac{K-1}{2},\, e]$$
#
# What lies before the first token or after the last counts as 0. For K = 3 the middle weight belongs to the token
# itself, weight 0 to the token before it.
#
# <details><summary>Hint</summary>
#
# `F.pad(x, (0, 0, m, m))` puts m rows of zeros before the first token and after the last. Then the sum has K terms,
# each a slice of L tokens. `F.conv1d` wants (B, E, L), weights (E, 1, K), `groups=E`.
#
# </details>


# %%
def centred_convolution(x, weight, bias):
    """Around each token: x (B, L, E), weight (E, K), bias (E,) -> (B, L, E)."""
    # BEGIN SOLUTION
    K, L = weight.shape[1], x.shape[1]
    padded = F.pad(x, (0, 0, K // 2, K // 2))
    return bias + sum(padded[:, k : k + L] * weight[:, k] for k in range(K))
    # END SOLUTION


# %%
check("08.5", centred_convolution)

# %% [markdown]
# ## 11. Measured: order, position, direction, convolution
#
# *Core.*
#
# Does the order of reading matter? Is a position embedding needed, though a recurrence knows the order of its tokens?
# What is lost by a centred convolution? Opinions differ, so we measured: a small Vim (D = 32, two blocks) on the
# digits, cut into patches of one pixel, so 64 tokens in rows of 8. Each variant was trained four times, with other
# random numbers, for 15 epochs. That takes a quarter of an hour of one quiet thread, so the results are stored; the
# command `python docs/measurements/08_orders.py 4` makes them again. **Predict first:** which of the six, three orders
# with and without position embedding, is best, which worst, and by how much?

# %%
repository = Path(minivim.__file__).parents[1]
measured = json.loads((repository / "docs" / "measurements" / "08_orders.json").read_text())


# %%
final = {}
for run in measured["runs"]:
    final.setdefault(run["name"], []).append(run["accuracy"][-1])
means = {name: sum(values) / len(values) for name, values in final.items()}
for name, values in final.items():
    low, high = min(values), max(values)
    print(f"{name:>33}: mean {means[name]:.1%}, {low:.1%} to {high:.1%}")
assert all(len(values) == 4 for values in final.values())

# %%
figure, axis = plt.subplots(figsize=(7.4, 4.2))
for height, (name, values) in enumerate(reversed(final.items())):
    group = "red" if "without" in name else "blue" if "position" in name else "green"
    colour = COLOURS[group]
    axis.scatter(values, [height] * len(values), color=colour, s=40)
    axis.plot([means[name]] * 2, [height - 0.3, height + 0.3], color=colour)
axis.set(xlabel="test accuracy after 15 epochs", ylabel="variant", yticks=range(len(final)))
axis.set_yticklabels(reversed(final))
axis.set_xticks([0.75, 0.8, 0.85, 0.9, 0.95, 1.0])
show(figure, "Test accuracies of all variants, one dot a run, a bar at the mean")
print("dots:", len(measured["runs"]), " test images:", len(data.test_labels))

# %% [markdown]
# **What to see.** Each dot is one run, each bar a mean. Blue: with a position embedding. Orange: without. Green: other
# changes; all of these read by rows, with a position embedding.
# - **Position.** Without it the model loses 5 to 8 points, in every order. But it still gets 85 to 91 %, where guessing
#   gives 10. So "a recurrence knows the order, it needs no positions" and "without positions it cannot work" are both
#   wrong: the recurrence knows something of the place, and the embedding tells more.
# - **Order.** Rows and snake overlap: four runs do not tell them apart. Columns have the lowest mean,
#   with and without positions, but only against rows with positions do the runs lie apart; why, they do not say.

# %% [markdown]
# - **Official init.** Another start of the step sizes; section 12 is about it.
# - **Convolution.** Centred (width 4, two taps before and one after, mirrored for the way back) or causal: no
#   difference. Causality is not needed here.
# - **Directions.** Forward only, with the class token in the middle: 75 %. In section 8 the same hidden half cost
#   much less: there the sequence had 16 patches, here it has 64. How much of the loss is the hidden half, and how much
#   the longer way, these runs do not say. Forward only, with the mean of all tokens: 94 %; both ways, with the mean:
#   96 %; these two overlap.
#
# These are small models on small images after 15 epochs, and the gaps may shrink with more training. One test image is
# 0.3 points. The machine is named in the file: one thread of an Intel Xeon.

# %% [markdown]
# ## 12. The paper and its code
#
# *Core.*
#
# Algorithm 1 of the paper describes a Vim block in 29 lines, some of them comments. Here they are, with their place in
# this chapter.
#
# | lines | Algorithm 1 (its x, after line 7, is our u) | here |
# |---|---|---|
# | 1, 2 | normalise the input | `rms_norm` |
# | 3, 4 | two linear maps: x and z, shared by the directions | `in_proj` |
# | 5, 6 | for each direction: | `forward_ssm`, `backward_ssm` |
# | 7 | convolution along the tokens, then SiLU | `causal_conv_silu` |
# | 8, 9 | linear maps to B and C | `x_proj` |
# | 10, 11 | $\Delta$ = softplus(linear + bias of this direction) | `x_proj`, `dt_proj`, `F.softplus` |
# | 12, 13 | $\bar A = \Delta \otimes A$ | inside `selective_scan`, with exp |
# | 14 | $\bar B = \Delta \otimes B$ | inside `selective_scan` |
# | 15 to 23 | h = 0; for each token $h = \bar A h + \bar B x$, $y = h\,C$; end of loops | inside `selective_scan` |
# | 24 to 26 | gate each direction's y by silu(z) | `y * F.silu(z)` |
# | 27 to 29 | add the two, linear map, add the block's input | `out_proj`, the stream |

# %% [markdown]
# The code that produced the published weights (hustvl/Vim, commit dd0358a) departs from this in places. To load those
# weights, one must follow the code. Ours does.
#
# | | paper | code, and `minivim` |
# |---|---|---|
# | decay of the state | Algorithm 1: without exp; Eq. 1 has it | $e^{\Delta A}$ |
# | input map | Eq. 1: zero-order hold; Algorithm 1: $\Delta B$ | $\Delta B$: Euler |
# | two directions | added | averaged: half the sum |
# | skip $D\,u$ | not in the algorithm | there, in each direction |
# | step size | one linear map | two: E to R to E, with R = 12 for Tiny |
# | class token | Eq. 4: at the front; section 4.4: in the middle | in the middle |
# | head | an MLP | one linear map |
# | block | norm, mixer, add | add, norm, mixer (section 7) |
# | initial step size, backward | not stated | official: bias zeroed by accident; `minivim`: as forward |
#
# The walk of the backward direction, and where its result is turned back, is not spelled out in the algorithm either.
# Most of these change what is computed. We look at four.
#
# **Algorithm 1 without the exponential** would explode. Take $\Delta = 0.1$ and the fastest state, $A = -16$.

# %%
delta, A = 0.1, torch.arange(-16.0, 0)
with_exp, without = torch.exp(delta * A[0]).item(), (delta * A[0]).item()
print(f"exp(delta A) = {with_exp:.2g}: after 20 steps {with_exp**20:.1g}")
print(f"delta A = {without:.2g}: after 20 steps {without**20:.1g}, with changing sign")
assert 0 < with_exp < 1 < abs(without)

# %% [markdown]
# **Euler or zero-order hold for B.** With $s = |A|\,\Delta$, the hold gives $\Delta B$ times $(1 - e^{-s})/s$, and
# Euler gives $\Delta B$ itself. For small s they agree. For s = 1.6 Euler is twice as large. Weights trained with one
# are wrong with the other; [chapter 05](05_selection.ipynb) swaps them in a trained model, and trains again.

# %%
s = torch.tensor([0.001, 0.1, 1.6])
ratio = (1 - torch.exp(-s)) / s
print("s:           ", [f"{v:.3g}" for v in s.tolist()])
print("hold / Euler:", [f"{v:.3g}" for v in ratio.tolist()])
assert abs(ratio[0] - 1) < 1e-3 and abs(ratio[2] - 0.5) < 0.01

# %% [markdown]
# **Sum or average.** The two differ by a factor of two in every block, and hence in the weights that training finds.
# Loading official weights into a sum gives another function. `out_proj` is linear, so the update is exactly doubled:

# %%
block = VimBlock(VimConfig(embed_dim=32))
with torch.no_grad():
    normed = block.norm(incoming)
    x, z = block.mixer.in_proj(normed).chunk(2, dim=-1)
    both = block.mixer.forward_ssm(x, z) + block.mixer.backward_ssm(x, z)
    summed = block.mixer.out_proj(both)
    averaged = block.mixer(normed)
print("the sum is twice the average:", torch.allclose(summed, 2 * averaged, atol=1e-5))
assert torch.allclose(summed, 2 * averaged, atol=1e-5)

# %% [markdown]
# **The forgotten bias.** Mamba starts with step sizes between 0.001 and 0.1, through a special bias of `dt_proj`. The
# official Vim marks this bias as "do not initialise again" in the forward direction only. A later pass over all layers
# sets the backward bias to 0, and softplus(0) = log 2 = 0.693. What does that do to memory? The slowest state has
# A = -1. It loses half of its content in $\log 2 / \Delta$ tokens.


# %%
def step_sizes(init):
    """The initial step sizes, by the bias alone, of all blocks: forward, backward."""
    torch.manual_seed(0)
    blocks = minivim.create_model("vim_tiny_patch16_224", init=init).blocks
    forward = [block.mixer.forward_ssm.dt_proj.bias for block in blocks]
    backward = [block.mixer.backward_ssm.dt_proj.bias for block in blocks]
    return [F.softplus(torch.cat(biases)).detach() for biases in (forward, backward)]


# %%
sizes = {"paper": step_sizes("paper"), "official": step_sizes("official")}
half_life = 0.6931 / sizes["official"][1].median().item()
print("half-life, backward, official code:", round(half_life), "token")
for size in (*sizes["paper"], sizes["official"][0]):
    assert 0.00099 < size.min() and size.max() < 0.101  # softplus in float32
assert torch.allclose(sizes["official"][1], torch.log(torch.tensor(2.0)))

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 2.9), sharey=True)
bins = torch.logspace(-3.1, 0, 40)
for axis, (init, (forward, backward)) in zip(axes, sizes.items(), strict=True):
    axis.hist(forward, bins, label="forward", color=COLOURS["blue"], alpha=0.5)
    axis.hist(backward, bins, label="backward", histtype="step", color=COLOURS["red"])
    axis.set(xscale="log", yscale="log", title=f'init="{init}"')
    axis.set(xlabel="initial step size", ylabel="channels")
axes[0].legend(loc="upper left")
axes[1].label_outer()
show(figure, "Initial step sizes: both directions alike, and the backward ones all at 0.69")
print("channels drawn for each direction:", len(sizes["paper"][0]))

# %% [markdown]
# **What to see.** Left: both directions cover 0.001 to 0.1 evenly on this logarithmic axis: a half-life of 7
# to 693 tokens for the slowest state, A = -1. Right: all
# 9,216 backward channels of the official initialisation stand at 0.693, a half-life of one token.
#
# Does training repair it? The stored runs of section 11 say. They kept the step sizes before and after training.

# %%
for name in ("rows, with position", "official init"):
    runs = [run for run in measured["runs"] if run["name"] == name]
    for when in ("before", "after"):
        medians = [run["step_sizes"][when]["backward"][1] for run in runs]
        shown = f"{min(medians):.2g} to {max(medians):.2g}"
        print(f"{name:>19}, {when:>6}: median backward step {shown}")
    print(f"{'':>19}  mean test accuracy {means[name]:.1%}")

# %% [markdown]
# No, not here. By the bias alone, the backward step began at 0.69 and ended close to it. The harm is small: 2 points on
# average, and the runs of the two starts overlap (section 11), so four runs do not prove even that. The scan can
# also forget less through $A$ and through what the tokens add to $\Delta$. This is a small model on 64 tokens. What 300
# epochs on ImageNet made of the bias, and what it costs on long sequences, we have not measured. `minivim` initialises
# both directions alike, and keeps the other way as `init="official"`.

# %% [markdown]
# ## 13. Equal to the official model
#
# *Core.*
#
# Two models can have equal shapes and compute different things. The file `vim_mini` holds a small Vim made by the
# official code: its weights, two images, and the logits it gave for them. `load_official` translates the names, reads
# the sizes off the shapes, and refuses whatever does not fit. For the published checkpoints it is the same line:
# `minivim.load_official("vim_t_midclstok_76p1acc.pth")`.

# %%
from safetensors.torch import load_file

official = load_file(repository / "tests" / "fixtures" / "vim_mini.safetensors")
weights = {name[6:]: value for name, value in official.items() if name.startswith("model.")}
small_vim = minivim.load_official(weights).eval()
with torch.no_grad():
    difference = (small_vim(official["image"]) - official["logits"]).abs().max().item()
print("our logits equal the official ones to 1e-5:", difference < 1e-5)
assert difference < 1e-5  # float32

# %% [markdown]
# And back: `to_official` gives our weights the official names, so the official code can load what was trained here.
#
# The check is sharp. Every difference that changes the function would be seen. We try one: the class token at the front
# instead of in the middle. All shapes fit, no error is raised, and the result is wrong.

# %%
returned = minivim.to_official(small_vim)
print(
    "official names:",
    len(returned),
    " all as they came:",
    returned.keys() == weights.keys(),
)
assert all(torch.equal(returned[name], weights[name]) for name in weights)


# %%
front = minivim.load_official(weights, cls_token="head").eval()
with torch.no_grad():
    difference = (front(official["image"]) - official["logits"]).abs().max().item()
print("with the class token at the front, equal to 1e-5:", difference < 1e-5)
assert difference > 1e-3

# %% [markdown]
# ## 14. Another image size
#
# *Core.*
#
# A Vim takes any number of tokens, but its position embedding has one vector for each place. For another image size,
# the vectors of the patches are interpolated on their 14 x 14 grid, here **bicubic**: a new value is a smooth mixture
# of the 4 x 4 old ones around it. The class token's vector is no point of this grid.
#
# The official fine-tuning script (hustvl/Vim, vim/main.py) resizes as DeiT does (a Vision Transformer with attention in
# place of scans), where the class token stands at the front. It keeps the vector at place 0, and interpolates the 196
# others as a grid. But with a token in the middle, place 0 is patch 0, and the class token's vector is one of the 196.
# What does the model get? We run the whole way: the script's resizing, and then the reading of the result by a model
# that has its class token in the middle.


# %%
def official_resize(pos_embed, side):
    """What the script does, in our words: (1, 197, D) -> (1, side * side + 1, D)."""
    kept, others = pos_embed[:, :1], pos_embed[:, 1:]  # "the class token", "the patches"
    grid = rearrange(others, "b (r c) d -> b d r c", r=14)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([kept, rearrange(grid, "b d r c -> b (r c) d")], dim=1)


# %%
def received(pos_embed, side):
    """What a model with a middle class token reads: grid of the patches, class token."""
    half = side * side // 2
    patches = torch.cat([pos_embed[:, :half], pos_embed[:, half + 1 :]], dim=1)
    return rearrange(patches, "1 (r c) d -> r c d", r=side), pos_embed[0, half]


# %% [markdown]
# We make it visible. Let the position embedding of a patch be its column number, 0 to 13, and that of the class token
# 50. Then each patch says which column it believes to stand in.

# %%
columns = torch.arange(14.0).repeat(14)
places = torch.cat([columns[:98], torch.tensor([50.0]), columns[98:]]).view(1, 197, 1)


# %%
ramp = minivim.create_model("vim_tiny_patch16_224", embed_dim=1, depth=1)
with torch.no_grad():
    ramp.pos_embed.copy_(places)
ramp.resize_to(320, 320)
right, right_class = received(ramp.pos_embed.detach(), 20)
wrong, wrong_class = received(official_resize(places, 20), 20)
print(f"class token: {right_class.item():.0f}; official way: {wrong_class.item():.1f}")
assert right_class == 50
assert torch.allclose(right, right[:1].expand(20, 20, 1), atol=1e-4)  # equal rows

# %%
error = (wrong - right)[..., 0]
figure, axes = plt.subplots(1, 3, figsize=(8.4, 2.9))
for axis, grid in zip(axes, (right, wrong), strict=False):
    drawn = axis.imshow(grid, vmin=0, vmax=14)
figure.colorbar(drawn, ax=axes[:2], label="column received")
drawn = axes[2].imshow(error, cmap="RdBu", vmin=-2, vmax=2)
label = "columns off: + to the right,\n\N{MINUS SIGN} to the left"
figure.colorbar(drawn, ax=axes[2], label=label, extend="both")
for axis, title in zip(axes, ("resize_to", "official way", "difference"), strict=True):
    axis.set(xlabel="patch column", ylabel="patch row", title=title)
    axis.set(xticks=[0, 10, 19], yticks=[0, 10, 19])
    axis.grid(visible=False)
axes[2].text(8.5, 4.5, "0.3 too far right", ha="center", va="center", fontsize=8)
axes[2].text(8.5, 15.5, "right place", ha="center", va="center", fontsize=8)
show(figure, "Column that each of 400 patches receives: right, official, difference")
print(f"upper half, official way: median {error[:9].median():.2f} columns off,", end=" ")
print(f"the worst patch {error.abs().max():.0f}")
print("last eight rows less than 0.001 off:", (error[12:].abs().max() < 1e-3).item())

# %% [markdown]
# **What to see.** Left: the same ramp in each row, now 20 columns wide. Middle and right: what the script gives.
# - **Rows 12 to 19 (white): right.** Behind the class token every patch stands one place later in the sequence, so
#   cutting one place off at the front sets it right.
# - **Rows 0 to 8 (pale blue): 0.3 columns off.** The cut moves each patch one column in the old grid; reading moves it
#   back by one column of the new grid, which is 14/20 = 0.7 of an old one. 0.3 is left.
# - **Edges (red and dark blue, left and right):** whole columns off, because the end of a row runs into the next row.
# - **Rows 7 to 11, at both edges:** the class token's 50 leaks in, for it was taken for the right end of row 6. The
#   worst is row 9, column 0, 26 columns off.
# - **The class token** receives 52.3, almost its own vector, by luck: place 200 of the new sequence is the right end of
#   row 9, and the vector was taken for the right end of row 6, about the same point of the picture.

# %% [markdown]
# So a model resized this way is not ruined, only confused in its upper half; some fine-tuning may well hide it.
#
# At equal size nothing is interpolated: the grid comes back as it went in, and the result is the old sequence, exactly.
# There the script is harmless. And `resize_to` at the present size changes nothing either.

# %%
assert torch.equal(official_resize(places, 14), places)


# %%
same = minivim.create_model("vim_tiny_patch16_224", embed_dim=16, depth=1)
before = same.pos_embed.detach().clone()
same.resize_to(224, 224)
print(
    "at equal size the script changes nothing:",
    torch.equal(official_resize(before, 14), before),
)
assert torch.equal(same.pos_embed, before)

# %% [markdown]
# Images need not be square:

# %%
wide = same.resize_to(160, 320).eval()
with torch.no_grad():
    logits = wide(torch.zeros(1, 3, 160, 320))
print(
    "160 x 320 pixels: grid",
    wide.config.grid_shape,
    " class token",
    wide.config.cls_positions,
)
assert wide.config.grid_shape == (10, 20) and logits.shape == (1, 1000)

# %% [markdown]
# ### Exercise 08.6 · Mend the resizing
#
# **Goal.** Find and mend the fault in `official_resize`. **Difficulty.** investigate. **Minutes.** 12. **Core.**
#
# Write it for a class token in the middle, and for grids that are not square. `pos_embed` is (1, M + 1, D) for
# M = old[0] x old[1] patches, with the class token's vector at place M // 2. `old` and `new` are (rows, columns).
# Return the position embedding for the new grid, (1, M' + 1, D), with the class token's vector unchanged at its new
# place, M' // 2. Interpolate the patches as `official_resize` does.
#
# <details><summary>Hint</summary>
#
# Three steps: take the middle out, interpolate what is left, put the middle back. Two numbers M // 2 are needed, the
# old one and the new one.
#
# </details>


# %%
def resize_with_middle(pos_embed, old, new):
    """Position embedding for another grid: (1, M + 1, D) -> (1, M' + 1, D)."""
    # BEGIN SOLUTION
    half, new_half = old[0] * old[1] // 2, new[0] * new[1] // 2
    patches = torch.cat([pos_embed[:, :half], pos_embed[:, half + 1 :]], dim=1)
    grid = rearrange(patches, "b (r c) d -> b d r c", r=old[0])
    grid = F.interpolate(grid, size=tuple(new), mode="bicubic", align_corners=False)
    patches = rearrange(grid, "b d r c -> b (r c) d")
    token = pos_embed[:, half : half + 1]
    return torch.cat([patches[:, :new_half], token, patches[:, new_half:]], dim=1)
    # END SOLUTION


# %%
check("08.6", resize_with_middle)

# %% [markdown]
# ## 15. One vector for each patch
#
# *Optional.*
#
# For segmentation or detection one wants a feature map, not a class. `forward_grid` takes the class token out and lays
# the other tokens back on their grid, whatever order they were read in.

# %%
with torch.no_grad():
    picture = torch.randn(1, 3, 160, 320, generator=torch.Generator().manual_seed(0))
    grid, features = wide.forward_grid(picture), wide.forward_features(picture)
print("image (1, 3, 160, 320) -> grid", tuple(grid.shape))
assert torch.equal(grid[0, :, 0, 0], features[0, 0])  # the first patch
assert torch.equal(grid[0, :, 9, 19], features[0, -1])  # the last patch
assert torch.equal(grid[0, :, 5, 0], features[0, 101])  # patch 100, behind the class token

# %% [markdown]
# ## What you built, and where it lives
#
# | what | where |
# |---|---|
# | patches, class token, position embedding, `resize_to`, `forward_grid` | `minivim/models/backbone.py` |
# | one direction | `minivim/models/mamba.py`: `SelectiveSSM` |
# | both directions, block, model, orders | `minivim/models/vim.py`: `VimMixer`, `VimBlock`, `VisionMamba`, `reorder` |
# | official names | `minivim/models/checkpoints/official.py`: `load_official`, `to_official` |
# | the scan and the convolution | `minivim/ops/`, fast in `kernels/` |
#
# **Links.** Previous: [07 · Kernels](07_kernels.ipynb). Next: [09 · Training](09_training.ipynb). Map of the course:
# [00 · Start here](00_start_here.ipynb).
#
# ## Further reading
#
# - L. Zhu et al., *Vision Mamba*, 2024, arXiv 2401.09417: section 3 and Algorithm 1. Code: hustvl/Vim.
# - A. Gu, T. Dao, *Mamba*, 2023, arXiv 2312.00752: section 3.
# - A. Dosovitskiy et al., *An Image is Worth 16x16 Words* (ViT), 2020, arXiv 2010.11929: patches and class token.
# - B. Zhang, R. Sennrich, *Root Mean Square Layer Normalization*, 2019, arXiv 1910.07467.
# - Y. Liu et al., *VMamba*, 2024, arXiv 2401.10166: another answer to the order of patches, with four scan paths.
