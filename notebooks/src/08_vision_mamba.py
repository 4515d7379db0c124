# %% [markdown]
# # 08 · Vision Mamba
#
# Mamba reads a sequence once, from left to right. An image has no left to right. This chapter builds what Vim does
# about that, one small piece at a time, until the pieces are the official model: the same parameters, the same
# outputs.
#
# **Learning goals.** After this chapter you can
# - turn an image into tokens, with a stride smaller than the patch, and say where the class token stands and why;
# - show that one direction hides half of the image from the class token, and that two directions do not;
# - write the bidirectional mixer in 30 lines and prove it equal to `minivim.VimBlock`;
# - name the places where the paper's Algorithm 1 and its code differ;
# - count the 7,148,008 parameters of Vim-Tiny by hand, and resize the model to another image size.
#
# **Prerequisites.** Chapter 00: the notation table and the recurrence (0.2). Helpful: PyTorch's `nn.Linear`,
# `nn.Conv2d`, and what a gradient is.
#
# **Time.** 90 minutes of reading and trying. All cells together run for less than a minute on two CPU cores.

# %%
import copy
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

import minivim
from minivim import VimBlock, VimConfig, selective_scan
from minivim.ops import causal_conv_silu

plt.rcParams["figure.dpi"] = 75

# %% [markdown]
# ## 1. An image becomes tokens
#
# **Small numbers first.** Take an image of 4 x 4 pixels with the values 0 to 15, and patches of 2 x 2. The patches are
# read like text, row by row. So there are four tokens, and the first one holds 0, 1, 4, 5.

# %%
small = torch.arange(16.0).view(1, 1, 4, 4)  # (batch, channels, height, width)
patches = rearrange(small, "b c (r p) (k q) -> b (r k) (c p q)", p=2, q=2)
print(small[0, 0].int().tolist())
print("tokens:", patches[0].int().tolist())
assert patches[0, 0].tolist() == [0, 1, 4, 5] and patches[0, 3].tolist() == [10, 11, 14, 15]

# %% [markdown]
# Each patch is then mapped to D numbers by a linear layer, the same for all patches (ViT, arXiv 2010.11929, Eq. 1):
#
# $$\text{token}_m = W\,\text{patch}_m + b \tag{8.1}$$
#
# Most code writes this as a convolution with kernel P and stride P. It is the same thing: a kernel that moves by its
# own width meets each patch once.

# %%
torch.manual_seed(0)
conv = nn.Conv2d(1, 3, kernel_size=2, stride=2)
by_convolution = conv(small).flatten(2).transpose(1, 2)  # (B, M, D)
by_linear = patches @ conv.weight.flatten(1).T + conv.bias
print("convolution equals linear layer on patches:", torch.allclose(by_convolution, by_linear, atol=1e-5))
assert torch.allclose(by_convolution, by_linear, atol=1e-5)  # float32

# %% [markdown]
# **A stride smaller than the patch** makes patches overlap, and gives more of them. Along a side of H pixels there are
#
# $$\frac{H - P}{\text{stride}} + 1 \tag{8.2}$$
#
# patches. Vim's best models are fine-tuned at stride 8 with patches of 16: 729 tokens in place of 196.


# %%
def patches_along(side, patch, stride):
    """Equation 8.2."""
    return (side - patch) // stride + 1


for stride in (16, 8):
    along = patches_along(224, 16, stride)
    print(f"224 pixels, patch 16, stride {stride}: {along} x {along} = {along**2} patches")
    assert VimConfig(img_size=224, patch_size=16, stride=stride).grid_shape == (along, along)

# %% [markdown]
# Now a real image: a photograph that comes with scikit-learn, cut to 224 x 224 pixels.

# %%
from sklearn.datasets import load_sample_image

photo = torch.tensor(load_sample_image("flower.jpg"))[100:324, 200:424]  # (height, width, 3), bytes
image = (photo.permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
print("image:", tuple(image.shape))
assert image.shape == (1, 3, 224, 224)

# %%
order = torch.arange(14 * 14).view(14, 14)
fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained")
left.imshow(photo)
left.hlines(range(0, 224, 16), 0, 223, color="black", linewidth=0.8)
left.vlines(range(0, 224, 16), 0, 223, color="black", linewidth=0.8)
left.set(xlabel="pixel column", ylabel="pixel row", title="196 patches of 16 x 16 pixels")
drawn = right.imshow(order, cmap="viridis")
fig.colorbar(drawn, label="place in the sequence")
right.set(xlabel="patch column", ylabel="patch row", title="the order in which they are read")
plt.show()
print("steps from a patch to its right neighbour:", (order[0, 1] - order[0, 0]).item())
print("steps from a patch to the one below:      ", (order[1, 0] - order[0, 0]).item())
assert order[1, 0] - order[0, 0] == 14

# %% [markdown]
# **What to see.** The right picture is the price of a sequence: a patch and its right neighbour are one step apart, a
# patch and the one below it are 14 steps apart. A recurrence knows order, but only this one-dimensional order. Where a
# token stands in the image has to be told. That is what the position embedding is for.
#
# ## 2. The class token in the middle, and the position embedding
#
# As in ViT, one more token joins the patches. It belongs to no patch; it is a learned vector, and from its final value
# the class is read. ViT puts it at the front. Vim puts it at place M // 2 of M patches. Then a learned position
# embedding is added to every token, the class token too:
#
# $$T_0 = [\,p_0, \dots, p_{M/2-1},\; t_{cls},\; p_{M/2}, \dots, p_{M-1}\,] + E_{pos} \tag{8.3}$$
#
# *Vim, section 3.2. The equation there has the class token at the front; the text and the code have it in the middle.*
#
# Why the middle? A recurrence forgets with distance. We count the steps from the class token to the farthest patch.

# %%
M = 196
for name, place in {"front": 0, "middle": M // 2}.items():
    print(f"class token at the {name}: farthest patch {max(place, M - place)} steps away")
assert max(M // 2, M - M // 2) == M // 2

# %% [markdown]
# In code, equation 8.3 is three lines. We compare with Vim-Tiny's own `embed`.

# %%
torch.manual_seed(0)
vim = minivim.create_model("vim_tiny_patch16_224").eval()
patch_tokens = vim.patch_embed(image)  # (1, 196, 192)
middle = patch_tokens.shape[1] // 2
tokens = torch.cat([patch_tokens[:, :middle], vim.cls_token, patch_tokens[:, middle:]], dim=1) + vim.pos_embed
print("tokens:", tuple(tokens.shape), " class token at place", middle)
assert torch.equal(tokens, vim.embed(image))

# %% [markdown]
# ## 3. One direction
#
# The mixer lets tokens meet. Here is what one direction does, from the outside in. Sizes for Vim-Tiny: D = 192, inner
# width E = 384, state size N = 16, rank R = 12, convolution width K = 4.
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
# *Mamba, arXiv 2312.00752, Algorithm 2 and Figure 3.* The steps from the convolution to the gate belong to a
# direction; the first and the last step are shared. As a function:


# %%
def one_direction(ssm, x, z, reverse=False):
    """The steps from the convolution to the gate; `ssm` holds the weights. x, z (B, L, E) -> (B, L, E)."""
    u = causal_conv_silu(x, ssm.conv_weight, ssm.conv_bias, reverse=reverse)
    E, N = ssm.A_log.shape
    dt, B, C = ssm.x_proj(u).split([ssm.dt_proj.in_features, N, N], dim=-1)
    delta = F.softplus(ssm.dt_proj(dt))
    A = -torch.exp(ssm.A_log)  # negative for any A_log: the state can only fade
    y = selective_scan(u, delta, A, B, C, ssm.D, reverse=reverse)
    return y * F.silu(z)


mixer = vim.blocks[0].mixer
with torch.no_grad():
    x, z = mixer.in_proj(tokens).chunk(2, dim=-1)
    mine, package = one_direction(mixer.forward_ssm, x, z), mixer.forward_ssm(x, z)
print("largest difference to the package below 1e-5:", ((mine - package).abs().max() < 1e-5).item())
assert torch.allclose(mine, package, atol=1e-5)  # float32; the package adds softplus and gate inside the scan

# %% [markdown]
# **A law: causality.** Token t of the output depends on tokens 0 to t only. We test it with a gradient: how does
# output token 98 move when any input token moves?


# %%
def influence(layer, tokens, target):
    """How strongly each input token moves output token `target`: norms of one random row of the Jacobian, (L,)."""
    tokens = tokens.detach().requires_grad_()
    output = layer(tokens)[0, target]
    probe = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    return torch.autograd.grad(output, tokens, probe)[0][0].norm(dim=-1)


def only(ssm, reverse):
    """The mixer with one of its directions only."""
    return lambda tokens: mixer.out_proj(one_direction(ssm, *mixer.in_proj(tokens).chunk(2, dim=-1), reverse))


forward_only = only(mixer.forward_ssm, reverse=False)
reach = influence(forward_only, tokens, middle)
print("tokens up to the class token that reach it:", (reach[: middle + 1] > 0).sum().item(), "of", middle + 1)
print("tokens after it that reach it:             ", (reach[middle + 1 :] > 0).sum().item())
assert (reach[: middle + 1] > 0).all() and (reach[middle + 1 :] == 0).all()

# %% [markdown]
# The convolution is causal as well: it looks at the token itself and the three before it. Nothing about images asks
# for that. It must be so, or the convolution would leak later tokens into a scan that claims not to see them. In the
# other direction it looks at the three tokens after it.

# %%
probe = torch.zeros(1, 9, 1)
probe[0, 4] = 1  # one token speaks; who hears it?
ones, zero = torch.ones(1, 4), torch.zeros(1)
for reverse in (False, True):
    heard = causal_conv_silu(probe, ones, zero, reverse=reverse)[0, :, 0].nonzero().flatten().tolist()
    print(f"reverse={reverse}: token 4 is heard by tokens", heard)
    assert heard == ([1, 2, 3, 4] if reverse else [4, 5, 6, 7])

# %% [markdown]
# ## 4. Why one direction is not enough
#
# The class token stands in the middle. With the forward direction alone, the lower half of the image cannot reach it.
# Do more layers help? No: a chain of causal maps is causal. We stack four and look.


# %%
def four_layers(tokens):
    for block in vim.blocks[:4]:
        x, z = block.mixer.in_proj(block.norm(tokens)).chunk(2, dim=-1)
        tokens = tokens + block.mixer.out_proj(one_direction(block.mixer.forward_ssm, x, z))
    return tokens


reach = influence(four_layers, tokens, middle)
print("patches that reach the class token through four forward layers:", (reach > 0).sum().item() - 1, "of", M)
assert (reach > 0).sum() - 1 == M // 2

# %% [markdown]
# Now the same measurement for the forward direction, for the backward direction, and for both, drawn where the
# patches are in the image.

# %%
backward_only = only(mixer.backward_ssm, reverse=True)
ways = {"forward": forward_only, "backward": backward_only, "both": mixer}
reaches = {name: influence(layer, tokens, middle) for name, layer in ways.items()}

counts = {}
for name, reach in reaches.items():
    patch_reach = torch.cat([reach[:middle], reach[middle + 1 :]])  # without the class token itself
    counts[name] = (patch_reach > 0).sum().item()
    reaches[name] = patch_reach.view(14, 14)
print("patches that reach the class token:", counts)
assert counts == {"forward": 98, "backward": 98, "both": 196}

# %%
fig, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
floor = torch.log10(reaches["both"].min()).item()
for axis, (name, reach) in zip(axes, reaches.items(), strict=True):
    drawn = axis.imshow(torch.log10(reach.masked_fill(reach == 0, torch.nan)), vmin=floor, cmap="viridis")
    axis.set(xlabel="patch column", ylabel="patch row", title=f"{name}: {counts[name]} patches")
    axis.set_facecolor("lightgrey")
fig.colorbar(drawn, label="log10 of the influence")
plt.show()
print("grey means exactly zero: in the left picture", M - counts["forward"], "patches of", M)

# %% [markdown]
# **What to see.** Left: the class token knows the upper half of the image only. Middle: the lower half only. Right:
# all of it, after a single block. The brightest patches are the three before and the three after the class token: those
# two convolutions reach them directly. All others come through the scans, and fade with the distance along the
# sequence, hence row by row.
#
# So the worry "a class token in the middle sees only half of the image" is right for one direction and wrong for Vim.
#
# ## 5. Both directions: the mixer
#
# Vim runs two such models on the same x and z, each with weights of its own: one walks from the first token to the
# last, the other from the last to the first. Their outputs are averaged. Here is the whole mixer.


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


class Mixer(nn.Module):
    """Two directions on the same tokens, averaged: (B, L, D) -> (B, L, D)."""

    def __init__(self, D, N=16, K=4):
        super().__init__()
        E, R = 2 * D, -(-D // 16)
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
# ## 6. Laws of the mixer
#
# **Flip symmetry.** Exchange the weights of the two directions and flip the order of the tokens: the output is
# flipped, and nothing else. An error in either direction breaks this law.


# %%
def exchanged(mixer):
    """A copy with the weights of the two directions exchanged."""
    swapped = copy.deepcopy(mixer)
    swapped.forward_ssm.load_state_dict(mixer.backward_ssm.state_dict())
    swapped.backward_ssm.load_state_dict(mixer.forward_ssm.state_dict())
    return swapped


with torch.no_grad():
    flipped = exchanged(own)(tokens.flip(1))
    straight = own(tokens)
print("flip in, flip out:", torch.allclose(flipped.flip(1), straight, atol=1e-5))
assert torch.allclose(flipped.flip(1), straight, atol=1e-5)

# %% [markdown]
# **Which axis is flipped?** Many codes write the backward direction as flip, scan, flip. In the layout (B, D, L) of
# the official kernels the tokens are the last axis, and `flip(-1)` is right. In our layout (B, L, D) the last axis is
# the channels, and `flip(-1)` reverses the channels. Both run. Both give the same shape. Only one is bidirectional.

# %%
ssm = own.backward_ssm
with torch.no_grad():
    x, z = own.in_proj(tokens).chunk(2, dim=-1)
    right = one_direction(ssm, x, z, reverse=True)
    by_flip = {axis: one_direction(ssm, x.flip(axis), z.flip(axis)).flip(axis) for axis in (1, -1)}
for axis, result in by_flip.items():
    equal = torch.allclose(result, right, atol=1e-5)
    print(f"flip({axis}): equal shape {result.shape == right.shape}, equal values {equal}")
assert torch.allclose(by_flip[1], right, atol=1e-5) and not torch.allclose(by_flip[-1], right, atol=1e-2)

# %% [markdown]
# A shape check cannot find this error. A far-token check finds it at once: with the wrong axis, the last patch does
# not reach the class token.


# %%
def wrong_axis(tokens):
    x, z = own.in_proj(tokens).chunk(2, dim=-1)
    backward = one_direction(own.backward_ssm, x.flip(-1), z.flip(-1)).flip(-1)
    return own.out_proj((own.forward_ssm(x, z) + backward) / 2)


for name, layer in {"right axis": own, "wrong axis": wrong_axis}.items():
    reach = influence(layer, tokens, middle)
    print(f"{name}: first patch reaches the class token: {(reach[0] > 0).item()}, last patch: {(reach[-1] > 0).item()}")
assert reach[0] > 0 and reach[-1] == 0  # the wrong axis, which came last

# %% [markdown]
# **Walking back is free, flipping is not.** `flip` copies a tensor. Flip, scan, flip copies the scan's inputs u,
# delta, z, B and C, and its output. `reverse=True` walks from token L-1 to token 0 and copies nothing. The residual
# need not be flipped either: both outputs come back in the order of the tokens.

# %%
L, E, N, bytes_each = 197, 384, 16, 4
copied = (4 * L * E + 2 * L * N) * bytes_each
print(f"copied for one image in one block: {copied / 1e6:.2f} MB; in 24 blocks: {24 * copied / 1e6:.1f} MB")
assert tokens.flip(1).data_ptr() != tokens.data_ptr()  # flip really copies

# %% [markdown]
# ## 7. The residual stream and its norm
#
# A mixer's output is an update. It is added to a stream that runs through all blocks. Before each mixer, a token is
# divided by its root mean square (RMSNorm, Zhang and Sennrich, arXiv 1910.07467, Eq. 4):
#
# $$\mathrm{norm}(x) = \frac{x}{\sqrt{\tfrac{1}{D}\sum_d x_d^2 + \epsilon}} \cdot g \tag{8.4}$$
#
# By hand: for x = (3, 4) the mean square is 12.5, its root 3.54, so the result is (0.849, 1.13). The length of a token
# is gone, its direction stays.


# %%
def rms_norm(x, gain, eps=1e-5):
    """Equation 8.4."""
    return x / torch.sqrt((x**2).mean(dim=-1, keepdim=True) + eps) * gain


example = rms_norm(torch.tensor([3.0, 4.0]), torch.ones(2))
print("norm of (3, 4):", [f"{value:.3g}" for value in example.tolist()])
norm = vim.blocks[0].norm
assert torch.allclose(rms_norm(tokens, norm.weight), norm(tokens), atol=1e-5)
assert torch.allclose(norm(200 * tokens), norm(100 * tokens), atol=1e-4)  # the length is gone; eps plays no part here

# %% [markdown]
# Most papers write a block as $T_l = T_{l-1} + \mathrm{mixer}(\mathrm{norm}(T_{l-1}))$. The official code, and ours,
# cut the chain in another place: a block receives the last update and the stream, adds them, normalises, mixes, and
# hands on its own update, not yet added. That lets a kernel do the addition and the norm in one pass. The last
# addition comes after the last block. Two blocks in both ways:

# %%
first, second = vim.blocks[:2]
with torch.no_grad():
    update, stream = first(tokens)
    update, stream = second(update, stream)
    as_in_code = stream + update

    as_in_papers = tokens + first.mixer(first.norm(tokens))
    as_in_papers = as_in_papers + second.mixer(second.norm(as_in_papers))
print("the same stream:", torch.allclose(as_in_code, as_in_papers, atol=1e-5))
assert torch.allclose(as_in_code, as_in_papers, atol=1e-5)

# %% [markdown]
# Now we have a block: add, norm, mixer. Ours against `minivim.VimBlock`, in a few lines.

# %%
torch.manual_seed(1)
block = VimBlock(VimConfig(embed_dim=32))
own = Mixer(D=32)
own.load_state_dict(block.mixer.state_dict())
incoming, stream = torch.randn(2, 10, 32), torch.randn(2, 10, 32)
with torch.no_grad():
    theirs_update, theirs_stream = block(incoming, stream)
    ours_stream = incoming + stream
    ours_update = own(rms_norm(ours_stream, block.norm.weight))
print("our block equals VimBlock to 1e-5:", torch.allclose(ours_update, theirs_update, atol=1e-5))
assert torch.equal(ours_stream, theirs_stream) and torch.allclose(ours_update, theirs_update, atol=1e-5)

# %% [markdown]
# ## 8. The paper and its code
#
# Algorithm 1 of the paper describes a Vim block. The code that produced the published weights (hustvl/Vim, commit
# dd0358a) differs in places. To load those weights, one must follow the code. Ours does.
#
# | | paper | code, and `minivim` |
# |---|---|---|
# | decay of the state | Algorithm 1: $\bar A = \Delta \otimes A$, without exp; the text has it | $e^{\Delta A}$ |
# | input map | the text: zero-order hold, $\bar B = (\Delta A)^{-1}(e^{\Delta A} - I)\,\Delta B$ | $\Delta B$: Euler |
# | two directions | added | averaged: half the sum |
# | skip $D\,u$ | not in the algorithm | there, in each direction |
# | step size | one linear map E -> E | two: E -> R -> E, with R = 12 for Tiny |
# | class token | in the equation of section 3.2: at the front | in the middle |
# | initial step size, backward | not stated | official: bias zeroed by accident; `minivim`: as forward |
#
# We look at the four that change numbers.
#
# **Algorithm 1 without the exponential** would explode. Take $\Delta = 0.1$ and the fastest state, $A = -16$.

# %%
delta, A = 0.1, torch.arange(-16.0, 0)
with_exp, without = torch.exp(delta * A[0]).item(), (delta * A[0]).item()
print(f"exp(delta A) = {with_exp:.2g}: after 20 steps {with_exp**20:.1g}")
print(f"delta A = {without:.2g}: after 20 steps {without**20:.1g}, and its sign changes at every step")
assert 0 < with_exp < 1 < abs(without)

# %% [markdown]
# **Euler or zero-order hold for B.** With $s = |A|\,\Delta$, the hold gives $\Delta B$ times $(1 - e^{-s})/s$, and
# Euler gives $\Delta B$ itself. For small s they agree. For s = 1.6 Euler is twice as large. Does it matter? The
# network learns B from its data, so it can make up for much of it; but weights trained with one are wrong with the
# other.

# %%
s = torch.tensor([0.001, 0.1, 1.6])
ratio = (1 - torch.exp(-s)) / s
print("s:", [f"{v:.2g}" for v in s.tolist()], " hold / Euler:", [f"{v:.3g}" for v in ratio.tolist()])
assert abs(ratio[0] - 1) < 1e-3 and abs(ratio[2] - 0.5) < 0.01

# %% [markdown]
# **Sum or average.** The two differ by a factor of two in every block, and hence in the weights that training finds.
# Loading official weights into a sum gives another function. `out_proj` is linear, so the update is exactly doubled:

# %%
with torch.no_grad():
    normed = block.norm(incoming)
    x, z = block.mixer.in_proj(normed).chunk(2, dim=-1)
    summed = block.mixer.out_proj(block.mixer.forward_ssm(x, z) + block.mixer.backward_ssm(x, z))
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
    """The initial step sizes (what the bias alone gives) of all blocks: forward and backward."""
    torch.manual_seed(0)
    mixers = [block.mixer for block in minivim.create_model("vim_tiny_patch16_224", init=init).blocks]
    parts = [[getattr(m, way).dt_proj.bias for m in mixers] for way in ("forward_ssm", "backward_ssm")]
    return [F.softplus(torch.cat(part)).detach() for part in parts]


sizes = {"paper": step_sizes("paper"), "official": step_sizes("official")}
print("half-life, backward, official code:", round((0.6931 / sizes["official"][1].median()).item()), "token")
for size in (*sizes["paper"], sizes["official"][0]):
    assert 0.00099 < size.min() and size.max() < 0.101  # softplus in float32
assert torch.allclose(sizes["official"][1], torch.log(torch.tensor(2.0)))

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 2.8), sharey=True, layout="constrained")
bins = torch.logspace(-3.1, 0, 40)
for axis, (init, (forward, backward)) in zip(axes, sizes.items(), strict=True):
    axis.hist(forward, bins, label="forward")
    axis.hist(backward, bins, label="backward", histtype="step", linewidth=1.8, color="black")
    axis.set(xscale="log", yscale="log", xlabel="initial step size delta", ylabel="channels", title=f'init="{init}"')
axes[0].legend()
plt.show()
print("channels drawn for each direction:", len(sizes["paper"][0]))

# %% [markdown]
# **What to see.** Left: both directions cover 0.001 to 0.1 evenly, which is a half-life of 7 to 693 tokens. Right: all
# 9,216 backward channels of the official initialisation stand at 0.693, a half-life of one token. Training can repair
# it, so the published weights are fine. `minivim` initialises both directions alike and keeps the other way as
# `init="official"`, for the comparison in chapter 09.
#
# ## 9. 7,148,008 parameters, counted by hand
#
# All pieces are known, so all numbers can be counted.


# %%
def count(D, depth=24, N=16, K=4, P=16, image=224, classes=1000):
    """Parameters of a Vim by part."""
    E, R, L = 2 * D, -(-D // 16), (image // P) ** 2 + 1
    direction = {
        "conv: K E + E": K * E + E,
        "x_proj: E (R + 2 N)": E * (R + 2 * N),
        "dt_proj: R E + E": R * E + E,
        "A_log: E N": E * N,
        "D: E": E,
    }
    rest = {"in_proj: 2 D E": 2 * D * E, "out_proj: E D": E * D, "norm: D": D}
    outside = {
        "patch embedding: 3 P P D + D": 3 * P * P * D + D,
        "class token: D": D,
        "position embedding: L D": L * D,
        "last norm: D": D,
        "head: D classes + classes": D * classes + classes,
    }
    times = {"two directions": (2 * depth, direction), "each block": (depth, rest), "once": (1, outside)}
    return {part: (n, size) for n, group in times.values() for part, size in group.items()}


parts = count(D=192)
for part, (n, size) in parts.items():
    print(f"{part:30s} {n:3d} x {size:7,d} = {n * size:9,d}")
total = sum(n * size for n, size in parts.values())
print(f"{'together':30s} {total:25,d}")
assert total == 7_148_008 == sum(p.numel() for p in vim.parameters())

# %% [markdown]
# 86 % of the parameters are in three kinds of matrices: in_proj, out_proj and x_proj. The recurrence itself, A_log and
# D, takes 4 %. The same function counts the larger models.

# %%
for name, D, expected in (("Small", 384, 25_796_584), ("Base", 768, 97_598_440)):
    total = sum(n * size for n, size in count(D).values())
    print(f"Vim-{name}, D = {D}: {total:,}")
    assert total == expected

# %% [markdown]
# ## 10. Equal to the official model
#
# Counting is not enough: two models can have equal shapes and compute different things. The file `vim_mini` holds a
# small Vim made by the official code: its weights, two images, and the logits it gave for them. `load_official`
# translates the names, reads the sizes off the shapes, and refuses whatever does not fit.

# %%
from safetensors.torch import load_file

repository = Path(minivim.__file__).parents[1]
official = load_file(repository / "tests" / "fixtures" / "vim_mini.safetensors")
weights = {name.removeprefix("model."): value for name, value in official.items() if name.startswith("model.")}
small_vim = minivim.load_official(weights).eval()
with torch.no_grad():
    difference = (small_vim(official["image"]) - official["logits"]).abs().max().item()
print("logits:", tuple(official["logits"].shape), " equal to the official ones to 1e-5:", difference < 1e-5)
assert difference < 1e-5  # float32

# %% [markdown]
# The check is sharp. Every difference of section 8 would be seen; here, the class token at the front instead of in the
# middle. All shapes fit, no error is raised, and the result is wrong.

# %%
front = minivim.load_official(weights, cls_token="head").eval()
with torch.no_grad():
    difference = (front(official["image"]) - official["logits"]).abs().max().item()
print("with the class token at the front, equal to 1e-5:", difference < 1e-5)
assert difference > 1e-3

# %% [markdown]
# ## 11. Another image size
#
# A Vim takes any number of tokens, but its position embedding has one vector for each place. For another image size,
# the vectors of the patches are interpolated on their 14 x 14 grid. The class token's vector is no point of this grid.
# It must be taken out first and put back at the new middle. Scripts written for DeiT assume that it stands at place 0.
# With a token in the middle they shift half of the grid.
#
# We make that visible. Let the position embedding of a patch be its column number, and that of the class token 50.

# %%
ramp = minivim.create_model("vim_tiny_patch16_224", embed_dim=16, depth=1)
columns = torch.arange(14.0).repeat(14)  # 0 .. 13 in every row
places = torch.cat([columns[:98], torch.tensor([50.0]), columns[98:]])
with torch.no_grad():
    ramp.pos_embed.copy_(places.view(1, 197, 1).expand(1, 197, 16))

as_if_first = places[1:].view(1, 1, 14, 14)  # what a script sees that takes place 0 for the class token
wrong = F.interpolate(as_if_first, size=(20, 20), mode="bicubic")[0, 0]
ramp.resize_to(320, 320)
resized = ramp.pos_embed[0, :, 0].detach()
right = torch.cat([resized[:200], resized[201:]]).view(20, 20)
print("class token still 50, at place 200:", resized[200].item() == 50)
assert resized[200] == 50 and len(resized) == 20 * 20 + 1
assert torch.allclose(right, right[:1].expand(20, 20), atol=1e-4)  # every row is the same ramp

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
for axis, grid, title in ((axes[0], right, "resize_to"), (axes[1], wrong, "class token taken to be first")):
    drawn = axis.imshow(grid, vmin=0, vmax=14, cmap="viridis")
    axis.set(xlabel="patch column", ylabel="patch row", title=title)
fig.colorbar(drawn, label="position embedding")
plt.show()
print("largest difference between two rows, right way below 0.001:", (right.std(dim=0).max() < 1e-3).item())
print(f"largest value, wrong way: {wrong.max():.0f}, though no column number is larger than 13")
assert wrong.max() > 20

# %% [markdown]
# **What to see.** Left: the same ramp in each row, now 20 columns wide. Right: in the upper half each row is shifted
# by one column and ends with the 0 of the next row; in the middle, the class token's vector leaks into the patches.
#
# Two more laws. Resizing to the present size changes nothing. And images need not be square.

# %%
same = minivim.create_model("vim_tiny_patch16_224", embed_dim=16, depth=1)
before = same.pos_embed.detach().clone()
same.resize_to(224, 224)
assert torch.equal(same.pos_embed, before)

wide = same.resize_to(160, 320).eval()
with torch.no_grad():
    logits = wide(torch.zeros(1, 3, 160, 320))
print("160 x 320 pixels:", wide.config.grid_shape, "patches, class token at", wide.config.cls_positions[0])
assert wide.config.grid_shape == (10, 20) and logits.shape == (1, 1000)

# %% [markdown]
# ## 12. One vector for each patch
#
# For segmentation or detection one wants a feature map, not a class. `forward_grid` takes the class token out and lays
# the other tokens back on their grid.

# %%
with torch.no_grad():
    picture = torch.randn(1, 3, 160, 320, generator=torch.Generator().manual_seed(0))
    grid, features = wide.forward_grid(picture), wide.forward_features(picture)
print("image (1, 3, 160, 320) -> grid", tuple(grid.shape))
assert torch.equal(grid[0, :, 0, 0], features[0, 0])  # the first patch
assert torch.equal(grid[0, :, 9, 19], features[0, -1])  # the last patch, after the class token
assert torch.equal(grid[0, :, 5, 0], features[0, 101])  # patch 100 stands behind the class token, which is token 100

# %% [markdown]
# ## Try this
#
# Four questions to think about first and then to change in code. Each cell runs as it is.
#
# **1.** With the class token at the front and one forward layer, which patches reach it? Predict, then replace
# `place` by 0, and by 196.

# %%
place = middle
reach = influence(forward_only, tokens, place)
print(f"output token {place} hears {(reach > 0).sum().item()} of {len(reach)} tokens")

# %% [markdown]
# **2.** If both directions had the same weights, which law would the mixer obey that Vim does not? Predict what
# `tied` prints, then think about what a mirrored photograph of a cat is.

# %%
tied = copy.deepcopy(mixer)
tied.backward_ssm.load_state_dict(tied.forward_ssm.state_dict())
with torch.no_grad():
    for name, layer in {"Vim": mixer, "tied": tied}.items():
        print(f"{name}: flip in, flip out:", torch.allclose(layer(tokens.flip(1)), layer(tokens).flip(1), atol=1e-5))

# %% [markdown]
# **3.** Which part of the parameters grows fastest when the model gets wider? Predict the ratio for `in_proj` and for
# `A_log` when D doubles, then compare with `x_proj`.

# %%
narrow, wide_parts = count(D=192), count(D=384)
for part in ("in_proj: 2 D E", "A_log: E N", "x_proj: E (R + 2 N)"):
    print(f"{part}: grows by a factor of {wide_parts[part][1] / narrow[part][1]:.2f}")

# %% [markdown]
# **4.** Rows are read left to right. If the image were read column by column, which neighbours would be close? Change
# the order with `transpose`, and say how a model could have both.

# %%
by_columns = order.T  # the place in the sequence of each patch when columns are read first
print("steps to the right neighbour:", (by_columns[0, 1] - by_columns[0, 0]).item())
print("steps to the patch below:    ", (by_columns[1, 0] - by_columns[0, 0]).item())

# %% [markdown]
# ## What you built, and where it lives
#
# | what | where |
# |---|---|
# | patches, class token, position embedding, `resize_to`, `forward_grid` | `minivim/models/backbone.py` |
# | one direction | `minivim/models/mamba.py`: `SelectiveSSM` |
# | both directions, block, model | `minivim/models/vim.py`: `VimMixer`, `VimBlock`, `VisionMamba` |
# | official names | `minivim/models/checkpoints.py`: `load_official`, `to_official` |
# | the scan and the convolution | `minivim/ops/`, fast in `kernels/` |
#
# ## Further reading
#
# - L. Zhu et al., *Vision Mamba*, 2024, arXiv 2401.09417: section 3 and Algorithm 1. Code: hustvl/Vim.
# - A. Gu, T. Dao, *Mamba*, 2023, arXiv 2312.00752: section 3.
# - A. Dosovitskiy et al., *An Image is Worth 16x16 Words* (ViT), 2020, arXiv 2010.11929: patches and class token.
# - B. Zhang, R. Sennrich, *Root Mean Square Layer Normalization*, 2019, arXiv 1910.07467.
# - Y. Liu et al., *VMamba*, 2024, arXiv 2401.10166: another answer to the order of patches, with four scan paths.
