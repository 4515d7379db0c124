# %% [markdown]
# # 00 · Start here
#
# This course builds a Vision Mamba (Vim) from one equation. Before the equation, you see the goal: a minute from now,
# a small Vim has learned to read handwritten digits on your own machine.
#
# **Learning goals.** After this notebook you can
# - train a Vim on real images and judge it: accuracy, mistakes, confusion matrix;
# - compute three steps of a state-space model by hand, and say what its step size does;
# - find any symbol of the course in the notation table;
# - say where Vim wins against a vision transformer, and where it loses.
#
# **Prerequisites.** Python, a little PyTorch (`nn.Module`, an optimizer), matrix products.
#
# **Time.** 25 minutes of reading. All cells together run for about a minute on two CPU cores. Nothing is downloaded.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

import minivim
from minivim.course import check
from minivim.data import load_data
from minivim.data.augment import normalise, random_affine
from minivim.train import compute_gradients, decay_groups, epoch_batches, learning_rate

plt.rcParams["figure.dpi"] = 75

# %% [markdown]
# ## 1. Real images
#
# scikit-learn comes with 1,797 handwritten digits. People wrote them on paper forms; each one was scanned and reduced
# to 8 x 8 pixels. `load_data` gives whole numbers from 0 to 255 in three equal colour channels. It puts a fifth of the
# images aside for the test. The model does not see those while it learns.

# %%
data = load_data("digits")
print("training images:", tuple(data.train_images.shape))
print("test images:    ", tuple(data.test_images.shape))
assert len(data.train_images) + len(data.test_images) == 1797

# %%
fig, axes = plt.subplots(1, 10, figsize=(9, 1.4))
for axis, image, label in zip(axes, data.train_images, data.train_labels, strict=False):
    axis.imshow(image[0], cmap="gray_r")
    axis.set_title(data.classes[label])
    axis.axis("off")
plt.show()
print("their labels:", data.train_labels[:10].tolist())

# %% [markdown]
# **What to see.** 64 pixels are few. You can read most of the digits, and you hesitate at some. So will the model.
#
# A network learns best from numbers around zero. `normalise` subtracts the mean of the training images and divides by
# their standard deviation. We check both on the training images.

# %%
train_images = normalise(data.train_images, data.mean, data.std)
test_images = normalise(data.test_images, data.mean, data.std)
print("mean within 0.001 of 0:", abs(train_images.mean()).item() < 1e-3)
print("standard deviation within 0.001 of 1:", abs(train_images.std() - 1).item() < 1e-3)
assert abs(train_images.mean()) < 1e-3 and abs(train_images.std() - 1) < 1e-3

# %% [markdown]
# ## 2. The model
#
# `vim_nano_patch2_8` is a Vim small enough for a laptop. The name says what it takes: patches of 2 x 2 pixels out of
# 8 x 8. So one image becomes 4 x 4 = 16 patches. Each patch becomes a vector of 64 numbers, called a token. A class
# token joins them in the middle of the sequence, which makes 17 tokens. Four blocks mix the tokens. At the end the
# class token alone is turned into ten scores, one a digit. The scores are called logits.

# %%
torch.manual_seed(0)
model = minivim.create_model("vim_nano_patch2_8")
tokens = model.forward_features(test_images[:1])
logits = model(test_images[:1])
print("tokens:", tuple(tokens.shape), " logits:", tuple(logits.shape))
print(f"parameters: {sum(p.numel() for p in model.parameters()):,}")
assert tokens.shape == (1, 4 * 4 + 1, 64) and logits.shape == (1, 10)

# %% [markdown]
# The weights are random, so the model guesses. With ten classes, guessing is right about once in ten.


# %%
@torch.inference_mode()
def accuracy(images, labels):
    """The share of images whose largest logit is the right one."""
    return (model(images).argmax(1) == labels).float().mean().item()


before = accuracy(test_images, data.test_labels)
print("untrained, below 25 %:", before < 0.25)
assert before < 0.25

# %% [markdown]
# ## 3. Training
#
# One step of training: take 64 images, compute the loss (cross-entropy: minus the logarithm of the probability that
# the model gave to the right digit), compute its gradient, move all weights a little against the gradient. 22 steps
# show every training image once; that is an epoch. The learning rate rises for the first tenth of the steps and then
# falls along half a cosine. Each time an image is shown, `random_affine` turns it by up to 10 degrees, sizes it by up
# to 10 % and moves it by up to 0.6 pixels. It stays the same digit, but it is never the same image twice, so the model
# cannot learn the images by heart.
#
# The model is so small that two threads would mostly wait for each other, so we use one. Run the cell and watch the
# bar; it takes less than a minute.

# %% tags=["nbval-ignore-output"]
torch.set_num_threads(1)
epochs, batch_size = 15, 64
steps = epochs * (len(train_images) // batch_size)
targets = F.one_hot(data.train_labels, 10).float()
optimizer = torch.optim.AdamW(decay_groups(model, weight_decay=0.05))
generator = torch.Generator().manual_seed(0)

losses = []
for epoch in tqdm(range(epochs), desc="epochs"):
    for rows in epoch_batches(len(train_images), batch_size, seed=0, epoch=epoch):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(len(losses), steps, peak=4e-3, warmup=0.1, end=0.01)
        moved = random_affine(data.train_images[rows] / 255, 10, 0.1, 0.6, generator)
        losses.append(compute_gradients(model, normalise(moved, data.mean, data.std), targets[rows]))
        optimizer.step()

# %%
fig, axis = plt.subplots(figsize=(6, 2.6))
axis.semilogy(losses)
axis.set(xlabel="training step", ylabel="cross-entropy", title="The loss while the model learns")
plt.show()
first, last = sum(losses[:5]) / 5, sum(losses[-22:]) / 22
print(f"mean loss of the first 5 steps: {first:.1f}; fell to less than a tenth: {last < first / 10}")
assert abs(first - torch.log(torch.tensor(10.0))) < 0.5  # guessing among ten costs log 10 = 2.3
assert last < first / 10

# %% [markdown]
# **What to see.** The curve starts at log 10 = 2.3, the price of guessing among ten. It falls by more than a factor of
# ten, in jumps, because each step sees 64 other images. The axis is logarithmic: equal distances are equal factors.
#
# ## 4. What it can do now
#
# The only fair judge is the images that the model has never seen.

# %%
after = accuracy(test_images, data.test_labels)
print("test images:", len(test_images))
print("at least 97 % right:", after >= 0.97)
assert after >= 0.97

# %% [markdown]
# Here are sixteen of them, with the model's answer and the probability it gives to that answer.

# %%
with torch.inference_mode():
    probabilities = model(test_images).softmax(dim=1)
confidence, answers = probabilities.max(dim=1)


def show(axis, index):
    """Test image number `index`, with the model's answer and its probability in per cent; red if it is wrong."""
    right = answers[index] == data.test_labels[index]
    axis.imshow(data.test_images[index, 0], cmap="gray_r")
    axis.set_title(f"{answers[index]} ({confidence[index]:.0%})", color="black" if right else "red", fontsize=9)


assert torch.allclose(probabilities.sum(dim=1), torch.ones(len(test_images)), atol=1e-5)

# %%
fig, axes = plt.subplots(2, 8, figsize=(9, 3))
for index, axis in enumerate(axes.flat):
    show(axis, index)
    axis.axis("off")
fig.tight_layout()
plt.show()
print("right among these 16, at least 14:", (answers[:16] == data.test_labels[:16]).sum().item() >= 14)

# %% [markdown]
# **What to see.** Most answers carry a probability near 100 %. That does not mean that the model is never wrong, as the
# next picture shows: these are its mistakes, eight of them at most.

# %%
mistakes = (answers != data.test_labels).nonzero().flatten()
fig, axes = plt.subplots(1, 8, figsize=(9, 1.7))
for axis in axes:
    axis.axis("off")
for axis, index in zip(axes, mistakes, strict=False):
    show(axis, index)
    axis.text(3.5, 9, f"truth {data.test_labels[index]}", ha="center", fontsize=9)
plt.show()
print("mistakes, at most 3 in 100:", len(mistakes) <= 0.03 * len(test_images))

# %% [markdown]
# **What to see.** Cover the truth and guess: some would fool you, too. Compare the probabilities with those above. A
# model that knows when it is unsure gives its mistakes less than 100 %.
#
# The confusion matrix collects all test images. Row: the truth. Column: the model's answer. Right answers are on the
# diagonal, so a row shows what a digit is mistaken for.

# %%
confusion = torch.zeros(10, 10, dtype=torch.long)
for truth, answer in zip(data.test_labels, answers, strict=True):
    confusion[truth, answer] += 1

assert torch.equal(confusion.sum(dim=1), data.test_labels.bincount())  # a row counts all images of its digit
assert confusion.trace() == (answers == data.test_labels).sum()  # the diagonal counts the right answers

# %%
fig, axis = plt.subplots(figsize=(4.4, 4))
axis.imshow(confusion.clamp(max=4), cmap="Blues")  # one mistake must be visible beside 36 right answers
for truth, answer in confusion.nonzero().tolist():
    shade = "white" if confusion[truth, answer] > 2 else "black"
    axis.text(answer, truth, confusion[truth, answer].item(), ha="center", va="center", color=shade, fontsize=9)
axis.set(xlabel="answer", ylabel="truth", xticks=range(10), yticks=range(10), title=f"{after:.1%} right")
plt.show()
print("test images in each row:", confusion.sum(dim=1).tolist())

# %% [markdown]
# **What to see.** A full diagonal, and a few lonely ones beside it.
#
# The same training, longer, with a moving average of the weights, checkpoints and a log, is one
# command: `minivim train --data digits`. Chapter 09 takes it apart.
#
# ## 5. The one equation
#
# Between the pixels and the answer, one equation does the mixing. Control engineers have used it since the 1960s. A
# system has a state $x$. At each step, the state is multiplied by a matrix, and an input $u$ is added; $w$ is noise:
#
# $$x[t+1] = A\,x[t] + B\,u[t] + w[t] \tag{0.1}$$
#
# *Kalman, "A New Approach to Linear Filtering and Prediction Problems", 1960.* Mamba and Vim keep the idea, write $h$
# for the state, have no noise, and let each token choose its own step size $\Delta$:
#
# $$h[t] = e^{\Delta[t] A}\, h[t-1] + \Delta[t]\, B[t]\, u[t] \qquad\quad y[t] = C[t] \cdot h[t] \tag{0.2}$$
#
# *Gu and Dao, arXiv 2312.00752, Eq. 2, with the discretization that the authors' code uses.*
#
# **By hand.** Take one number as the state. Let $A = -1$ and $\Delta = \log 2 \approx 0.693$: then
# $e^{\Delta A} = \tfrac12$, so each step keeps half of the state. Let $B = 1/\log 2$, so that $\Delta B = 1$, and let
# $C = 2$. The input is 8, 0, 5, and the state starts at 0:
#
# | step | half of the old state | + input | = state h | output y = 2 h |
# |---|---|---|---|---|
# | 0 | 0 | 8 | 8 | 16 |
# | 1 | 4 | 0 | 4 | 8 |
# | 2 | 2 | 5 | 7 | 14 |
#
# Now by code: first as a loop, then with the package's `selective_scan`. Its shapes are (batch, tokens, channels);
# here all are 1 but the tokens.

# %%
log2 = torch.log(torch.tensor(2.0))
u = torch.tensor([8.0, 0.0, 5.0]).view(1, 3, 1)
delta = log2.expand(1, 3, 1)
A = torch.tensor([[-1.0]])
B = (1 / log2).expand(1, 3, 1)
C = torch.full((1, 3, 1), 2.0)

h, y = 0.0, []
for t in range(3):
    h = torch.exp(delta[0, t] * A[0]) * h + delta[0, t] * B[0, t] * u[0, t]
    y.append((C[0, t] * h).item())
print("by hand: [16, 8, 14]   loop:", [round(value) for value in y])
assert torch.allclose(torch.tensor(y), torch.tensor([16.0, 8.0, 14.0]), atol=1e-4)  # float32

# %%
scanned = minivim.selective_scan(u, delta, A, B, C)
print("selective_scan:", [round(value) for value in scanned.flatten().tolist()])
assert torch.allclose(scanned.flatten(), torch.tensor(y), atol=1e-4)

# %% [markdown]
# **The step size is a gate.** In (0.2) the step size stands in two places. If $\Delta[t] = 0$, then $e^0 = 1$: the
# state stays as it is, and the input counts for nothing. The token is skipped. If $\Delta[t]$ is large, then
# $e^{\Delta A}$ is nearly 0: the past is forgotten. A model that chooses $\Delta$ from the token itself can therefore
# choose what to remember. That is what "selective" means. Nothing is cut out of the sequence.

# %%
skip = delta.clone()
skip[0, 2] = 0  # token 2 is skipped: its 5 must not count, and nothing must decay
skipped = minivim.selective_scan(u, skip, A, B, C).flatten()
print("token 2 skipped:  ", [round(value) for value in skipped.tolist()])
assert skipped[2] == skipped[1]

forget = delta.clone()
forget[0, 2] = 20  # exp(-20) is 0.000000002: what came before token 2 must not count
B_forget = torch.where(forget == 20, 1 / forget, B)  # so that the input still enters with factor 1
forgotten = minivim.selective_scan(u, forget, A, B_forget, C).flatten()
print("the past forgotten:", [round(value) for value in forgotten.tolist()])
assert abs(forgotten[2] - 2 * 5) < 1e-4

# %% [markdown]
# ## 6. One notation for all of it
#
# The equation was found again in four fields, with four alphabets. The course uses one. The second column is the
# letter in all our code and text. An empty place means that this field has no such thing.
#
# | what it is, in words | code | shape | control, Kalman | S4 | Mamba, Vim |
# |---|---|---|---|---|---|
# | **batch**: how many sequences at once | `B` (a size) | | | | B |
# | **tokens**: how long a sequence is; `t` is the place in it | `L` | | t | L | L (Vim: M) |
# | **model width**: numbers per token between the blocks | `D` (a size) | Tiny: 192 | | H | D |
# | **inner width**: numbers per token inside a block, 2 D | `E` | Tiny: 384 | | | E |
# | **state size**: numbers that each channel remembers | `N` | 16 | n | N | N |
# | **rank of delta**: numbers from which all E step sizes are made | `R` | ceil(D/16) | | | dt_rank |
# | **input** of the state-space model | `u` | (B, L, E) | u | u | x |
# | **state**: all that the past leaves behind | `h` | (B, E, N) | x | x | h |
# | **output** | `y` | (B, L, E) | y, z | y | y |
# | **state matrix**: how the state fades by itself; diagonal, negative | `A` | (E, N) | A, F | A | A = -exp(A_log) |
# | **input map**: how strongly the input enters each state | `B` | (B, L, N) | B, G | B | B |
# | **output map**: how the output is read from the state | `C` | (B, L, N) | C, H | C | C |
# | **skip**: input that goes to the output directly | `D` | (E,) | D | D | D |
# | **step size**: how much time passes at this token | `delta` | (B, L, E) | dt | Δ | Δ |
# | **gate**: multiplies the output, silu(z) | `z` | (B, L, E) | | | z |
# | **noises**: of the state, of the measurement | `w`, `v` | | w, v | | |
#
# Three things that confuse everyone at first:
# - **B and D mean two things each.** As sizes in a shape they are the batch and the model width. As tensors they are
#   the input map and the skip. The literature does the same.
# - **The state is x in control and in S4, but h in Mamba**, where x is the input. We write h for the state and u for
#   the input, always.
# - **A is stored with shape (E, N), but it is not a rectangular matrix.** It is E diagonals of length N: each of the
#   E channels has a system of its own, with N states that do not touch each other. So `delta * A` is a product number
#   by number, and so is its exponential.
#
# We check the last point: for a diagonal matrix, the matrix exponential is the exponential of each diagonal number.

# %%
diagonal = -torch.arange(1.0, 5.0)
assert torch.allclose(torch.matrix_exp(torch.diag(diagonal)), torch.diag(torch.exp(diagonal)), atol=1e-6)

dense = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
print("equal for a diagonal matrix: True; for a dense one:", torch.allclose(torch.matrix_exp(dense), torch.exp(dense)))
assert not torch.allclose(torch.matrix_exp(dense), torch.exp(dense))

# %% [markdown]
# Shapes are always channel-last, (batch, tokens, channels), as `nn.Linear` gives them. The table can be read off the
# model that you have just trained.

# %%
config = model.config
ssm = model.blocks[0].mixer.forward_ssm
D, E, N, R = config.embed_dim, config.inner_dim, config.state_dim, config.delta_rank
print(f"D = {D}, E = {E}, N = {N}, R = {R}, L = {config.num_patches + 1}")
assert E == 2 * D and R == -(-D // 16)
assert ssm.A_log.shape == (E, N) and ssm.D.shape == (E,) and ssm.dt_proj.weight.shape == (E, R)

# %% [markdown]
# ## 7. How exercises work
#
# The chapters hold exercises, at least five each. An exercise is a function whose body says
# `raise NotImplementedError("your turn")`. You replace that line, run the cell, and run the cell below it. That one
# calls a checker, which tries your function on several inputs and prints one of three things:
#
# - `[todo]`: the line still stands there.
# - `[fix]`: something is wrong. It says what: the first number that differs, yours and the expected one, and, if it
#   recognises the mistake, the likely cause.
# - `[ok]`: solved.
#
# A checker never stops the notebook: *Run All* works while exercises are open. Nothing later in a chapter depends on
# an exercise, so you may leave any of them out. Each one says how hard it is: **recall** (you have just read it),
# **derive** (a line of mathematics on paper), **build** (a function of a few lines), **investigate** (find something
# out). `notebooks/solutions/` holds the same chapters solved. Here is one to try it on.
#
# ### Exercise 00.1 · One step of the state
#
# **Goal.** Turn equation (0.2) into code. **Difficulty.** recall. **Minutes.** 3
#
# A channel has a state `h` of N numbers, and a state matrix that is diagonal: `A` holds its N diagonal numbers. One
# token arrives, with the step size `delta`, the input `u` (both are numbers) and the input map `B`. Return the new
# state. Before you solve it, run both cells as they are. Then return something wrong, such as `A * h`, and read what
# the checker says.
#
# <details><summary>Hint</summary>
#
# All N numbers can be treated at once: `torch.exp` and `*` work number by number. Which two of the five arguments
# does the step size multiply?
#
# </details>


# %%
def one_step(h, delta, A, B, u):
    """The state after one token: h, A and B have shape (N,), delta and u are numbers; returns shape (N,)."""
    # BEGIN SOLUTION
    return torch.exp(delta * A) * h + delta * B * u
    # END SOLUTION


# %%
check("00.1", one_step)

# %% [markdown]
# ## 8. The map
#
# One line of thought runs through the course: the state equation; how it is made discrete; that it is a convolution;
# how it can remember for long; how it chooses what to remember; how to run it fast; and how to use it for images.
#
# | | chapter | what you build | minutes: core, all |
# |---|---|---|---|
# | 00 | Start here | a trained digit reader | you are here |
# | 01 | [State-space models](01_state_space_models.ipynb) | simulator, Kalman filter, smoother | |
# | 02 | [From continuous to discrete](02_discretization.ipynb) | Euler, bilinear, zero-order hold | |
# | 03 | [Recurrence is convolution](03_recurrence_is_convolution.ipynb) | one model, run in two ways | |
# | 04 | [Long memory: HiPPO, S4, DSS, S4D](04_long_memory.ipynb) | a state that remembers a whole signal | |
# | 05 | [Selection: Mamba](05_selection.ipynb) | the selective scan and its block | 76, 105 |
# | 06 | [Scans](06_scans.ipynb) | parallel scans, and the backward pass by hand | 81, 99 |
# | 07 | [Kernels](07_kernels.ipynb) | the scan, fast, on CPU and GPU | 75, 90 |
# | 08 | [Vision Mamba](08_vision_mamba.ipynb) | the whole Vim, equal to the official one | 86, 97 |
# | 09 | [Training](09_training.ipynb) | a loop, a diagnosis, ablations, NaNs and their cure | 85, 110 |
# | 10 | Vim against DeiT | speed and memory on your machine | to come |
# | 11 | Looking inside | what the model attends to | to come |
#
# From chapter 05 on, each section and exercise says whether it is core or optional.
#
# **What many people get wrong**, and where it is met:
#
# | one reads or thinks | tried out in |
# |---|---|
# | Mamba discretizes $B$ by zero-order hold | 05, section 12 |
# | $A$, (E, N), is one matrix; E is the batch; `A_log` is the logarithm of $A$ | 05, section 7 |
# | selection drops or samples tokens | 05, sections 3 and 4 |
# | $A$ depends on the token; $\bar A$ might as well be made directly | 05, sections 7 and 13 |
# | Mamba trains as a convolution | 05, section 10 |
# | any update rule may be scanned in parallel | 06, section 3 |
# | a parallel scan is less work, so always faster | 06, sections 4, 5 and 7 |
# | dividing by a cumulative product is the same thing | 06, section 8 |
# | my gradient test fails, so the scan is wrong | 06, section 11 |
# | what a masked lane loads does not matter | 07, sections 3 and 6 |
# | both directions: two convolutions, or a flip along whatever axis, and one of the residual | 08, sections 6 and 9 |
# | a class token in the middle sees half of the image | 08, sections 5 and 8 |
# | a recurrence knows positions, so needs no embedding | 08, sections 3 and 11 |
# | the convolution must be causal, in images too; causal means shifted by one | 07, section 14; 08, section 10 |
# | a good training ends with the loss 0 | 09, section 3 |
# | half precision is half precision: float16 or bfloat16 | 09, section 4 |
# | weight decay is good for all weights | 09, section 5 |
# | the better of two runs is the better model | 09, section 6 |
# | a low accuracy means a bad model | 09, section 7 |
#
# ## 9. Where Vim wins, and where it loses
#
# Compare it with DeiT, the vision transformer of the same size. Both cut the image into patches. What differs is how
# tokens meet. Attention compares every token with every other: the work grows with the square of their number. A scan
# passes once over the tokens: the work grows in proportion to their number. We count at two image sizes.

# %%
for side in (224, 1248):
    tokens = (side // 16) ** 2 + 1
    print(f"{side} x {side} pixels: {tokens:,} tokens, {tokens**2:,} pairs of tokens")
growth = ((1248 // 16) ** 2 + 1) / ((224 // 16) ** 2 + 1)
print(f"tokens grow by a factor of {growth:.0f}, pairs by {growth**2:.0f}")
assert 30 < growth < 32

# %% [markdown]
# - **Large images: Vim wins.** The paper reports 2.8 times the speed of DeiT and 86.8 % less GPU memory, for feature
#   extraction in batches at 1248 x 1248 pixels (arXiv 2401.09417, abstract). That is the size at which these numbers
#   hold; they are no statement about 224 x 224.
# - **Ordinary images: no advantage in speed.** At 224 x 224 there are 197 tokens. Attention over 197 tokens is cheap,
#   and it is a matrix product, which is what hardware does best. Chapter 10 measures where the lines cross.
# - **Accuracy per parameter: Vim wins against DeiT.** On ImageNet the paper reports 76.1 % for Vim-Tiny and 72.2 % for
#   DeiT-Tiny.
# - **Is the scan needed for classification? Perhaps not.** MambaOut (arXiv 2405.07992) removes the state-space model
#   from Mamba's block and classifies ImageNet images better than the visual Mamba models it compares with. Its
#   authors argue that such a model pays off where sequences are long or must be read in order, and that
#   classification is neither.
#
# So why learn it? Because a state that is carried along, in place of a look at everything, is one of the few ideas that
# scale to long inputs. And because it is one equation.
#
# **What you built.** A trained Vim. It lives in `minivim/models/vim.py`; its data in `minivim/data/`, the pieces
# of the training loop in `minivim/train/`, the scan in `minivim/ops/`.
#
# ## Further reading
#
# - L. Zhu et al., *Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model*, 2024,
#   arXiv 2401.09417.
# - A. Gu, T. Dao, *Mamba: Linear-Time Sequence Modeling with Selective State Spaces*, 2023, arXiv 2312.00752.
# - H. Touvron et al., *Training data-efficient image transformers* (DeiT), 2020, arXiv 2012.12877.
# - W. Yu, X. Wang, *MambaOut: Do We Really Need Mamba for Vision?*, 2024, arXiv 2405.07992.
# - E. Alpaydin, C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning Repository, 1998.
