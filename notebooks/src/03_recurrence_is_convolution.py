# %% [markdown]
# # 03 · Recurrence is convolution
#
# A linear state-space model can be run in two ways. As a recurrence: one step after the other, with a state that is
# carried along. As a convolution: all steps at once, with no state at all. Both give the same numbers. The first is how
# such a model generates, the second is how it trains. This chapter shows why they are the same, what each costs, and
# where the equality ends.
#
# **Learning goals.** After this chapter you can
# - unroll a recurrence into a kernel, by hand and in code;
# - write a causal convolution as a sum, as a matrix and by FFT, and say why the FFT needs zeros at the end;
# - convert a model between the convention of control and that of S4, which are one step apart;
# - test whether a system is linear, time-invariant and causal, and say which law Mamba gives up;
# - count what each way costs, and choose;
# - read off the eigenvalues how long a model remembers;
# - train a linear state-space layer (LSSL) and run it as a recurrence afterwards.
#
# **Prerequisites.** Chapter 01: state, input, output. Chapter 02: how $A$, $B$ and a step size become $\bar A$ and
# $\bar B$; eigenvalues. Sections 7 and 9 need complex numbers: $e^{i\varphi} = \cos\varphi + i \sin\varphi$.
#
# **Time.** 110 minutes with the exercises. All cells together run for less than half a minute.

# %%
import math
import time

import matplotlib.pyplot as plt
import torch
from torch import nn

from minivim import lti
from minivim.course import check
from minivim.discretize import discretize
from minivim.figures import flipbook
from minivim.hippo import legs
from minivim.s4 import LSSL

plt.rcParams["figure.dpi"] = 75

# %% [markdown]
# We compute in float64, with 16 decimal digits. As in chapter 02, two results count as equal if no number differs by
# more than a tolerance, which is $10^{-12}$ unless a check says otherwise.

# %%
torch.set_default_dtype(torch.float64)


def close(one, other, tolerance=1e-12):
    """Whether no two numbers differ by more than `tolerance`."""
    return bool((one - other).abs().max() <= tolerance)


assert close(torch.ones(2), torch.ones(2)) and not close(torch.ones(2), torch.ones(2) + 1e-11)

# %% [markdown]
# ## 1. A system that fits into the head
#
# Chapter 02 turned a continuous model into a discrete one. Its (2.2), with the output beside it, is where we start:
#
# $$h[t] = \bar A\, h[t-1] + \bar B\, u[t] \qquad\quad y[t] = C\, h[t] + D\, u[t] \qquad\quad h[-1] = 0 \tag{3.1}$$
#
# *S4, arXiv 2111.00396, Eq. 3, where the state is called x.* Here $u$ is the input, $h$ the state, $y$ the output and
# $t = 0, 1, 2, \dots$ the step. The skip $D\,u[t]$ hands the input straight to the output. It has nothing to do with
# memory, so we leave it out ($D = 0$) until we need it.
#
# Take one number as the state, $\bar A = \tfrac12$, $\bar B = 1$, $C = 1$. Each step keeps half of the state and adds
# the input. The input is 8, 0, 5.
#
# | step t | half of the old state | + input u[t] | = state h[t] = output y[t] |
# |---|---|---|---|
# | 0 | 0 | 8 | 8 |
# | 1 | 4 | 0 | 4 |
# | 2 | 2 | 5 | 7 |

# %%
h, y = 0.0, []
for u_t in [8.0, 0.0, 5.0]:
    h = 0.5 * h + u_t
    y.append(h)
print("outputs:", y)
assert y == [8, 4, 7]

# %% [markdown]
# ## 2. Unrolling
#
# Where does the 7 come from? Put each line of the table into the next one:
#
# $$\begin{aligned}
# h[0] &= \bar B u[0] \\
# h[1] &= \bar A \bar B u[0] + \bar B u[1] \\
# h[2] &= \bar A^2 \bar B u[0] + \bar A \bar B u[1] + \bar B u[2]
# \end{aligned}$$
#
# So $y[2] = \tfrac14 \cdot 8 + \tfrac12 \cdot 0 + 1 \cdot 5 = 7$. The state is gone. What is left is a sum over the
# inputs. Each input has a factor, and the factor depends on one thing only: how many steps ago the input came. Call
# this age $k$. The factors, in the order of age, are the **kernel** $K$:
#
# $$K[k] = C \bar A^k \bar B \qquad\qquad y[t] = \sum_{k=0}^{t} K[k]\, u[t-k] \tag{3.2}$$
#
# *S4, arXiv 2111.00396, Eq. 4 and 5.* The sum is called a **convolution**, written $y = K * u$. With a skip, $D\,u[t]$
# is added, as before.
#
# There is a way to see the kernel without any algebra. Kick the system once, with an input of 1 at step 0, and watch.
# The answer to this **impulse** is the kernel itself.

# %%
h, K = 0.0, []
for u_t in [1.0, 0.0, 0.0, 0.0]:
    h = 0.5 * h + u_t
    K.append(h)
print("kernel:", K)
assert K == [0.5**k for k in range(4)]
assert K[2] * 8 + K[1] * 0 + K[0] * 5 == 7

# %%
steps = torch.arange(8)
first, second = 8 * 0.5**steps, torch.where(steps >= 2, 5 * 0.5 ** (steps - 2), 0.0)
fig, axis = plt.subplots(figsize=(6, 2.9), layout="constrained")
axis.bar(steps, first, color="tab:blue", label="8, put in at step 0")
axis.bar(steps, second, bottom=first, color="tab:orange", label="5, put in at step 2")
axis.set(xlabel="step t", ylabel="output y[t]", ylim=(0, 8.5), title="What is left of each input")
axis.legend()
plt.show()
print("at step 2:", first[2].item(), "+", second[2].item(), "=", (first + second)[2].item())
assert (first + second)[:3].tolist() == [8, 4, 7]

# %% [markdown]
# **What to see.** The two inputs leave the same trace: 1, 1/2, 1/4, and so on, once times 8, once times 5 and two steps
# later. The output is the sum. That is all a convolution is: every input starts a copy of the kernel, and the copies
# are added.
#
# ### Exercise 03.1 · The first four numbers
#
# **Goal.** Unroll a system with one state. **Difficulty.** recall. **Minutes.** 3
#
# The state is one number again, but $\bar A$, $\bar B$ and $C$ can be any floats `a`, `b`, `c`. Return the list of the
# numbers $K[0]$, $K[1]$, $K[2]$ and $K[3]$.
#
# <details><summary>Hint</summary>
#
# An impulse enters through $b$. It is read at once, through $c$. So $K[0]$ holds no $a$ at all.
#
# </details>


# %%
def first_four(a, b, c):
    """The kernel at ages 0 to 3, as a list of four floats; a, b, c are floats."""
    # BEGIN SOLUTION
    return [c * b, c * a * b, c * a**2 * b, c * a**3 * b]
    # END SOLUTION


# %%
check("03.1", first_four)

# %% [markdown]
# **More than one state.** Nothing changes but the shapes: $\bar A$ is an (N, N) matrix, $\bar B$ a column (N, 1), $C$ a
# row (1, N), and $\bar A^k$ is a matrix power. The kernel is still one number for each age. Here it is, read off the
# formula.


# %%
def kernel_by_powers(A_bar, B_bar, C, L):
    """Equation 3.2, left, for one input and one output: the first L numbers of the kernel, (L,)."""
    return torch.stack([(C @ torch.linalg.matrix_power(A_bar, k) @ B_bar)[0, 0] for k in range(L)])


tiny = torch.tensor([[0.5]]), torch.ones(1, 1), torch.ones(1, 1)  # A_bar, B_bar, C of section 1
print("kernel:", kernel_by_powers(*tiny, 4).tolist())
assert kernel_by_powers(*tiny, 4).tolist() == K

# %% [markdown]
# Our second example is the weight on a spring from chapter 02, now with some friction. The state is (position,
# velocity), the input is a push, and the output is the position. We let the zero-order hold make it discrete, with a
# step of 1.

# %%
A = torch.tensor([[0.0, 1.0], [-1.0, -0.2]])  # position' = velocity; velocity' = -position - 0.2 velocity + push
B = torch.tensor([[0.0], [1.0]])
C = torch.tensor([[1.0, 0.0]])
A_bar, B_bar = discretize(A, B, 1.0, "zoh")
spring = A_bar, B_bar, C

spring_kernel = kernel_by_powers(*spring, 40)
packaged = lti.kernel(*spring, 40)  # (L, outputs, inputs), because the package allows several of each
print("shapes:", tuple(spring_kernel.shape), tuple(packaged.shape))
assert close(spring_kernel, packaged[:, 0, 0])

# %%
fig, axes = plt.subplots(1, 2, figsize=(8.4, 2.7), layout="constrained")
for axis, system, name in zip(axes, (tiny, spring), ("Half of the state is kept", "A weight on a spring"), strict=True):
    axis.stem(lti.kernel(*system, 40)[:, 0, 0], basefmt="grey", markerfmt=".")
    axis.set(xlabel="age k of an input (steps)", ylabel="K[k]", title=name)
plt.show()
lowest = spring_kernel.argmin().item()
print("the spring answers a push most negatively after", lowest, "steps")
assert spring_kernel[lowest] < 0 < spring_kernel.max()

# %% [markdown]
# **What to see.** A kernel is the memory of a system, drawn. The left system forgets within a few steps. The right one
# swings: 4 steps after a push the weight is on the other side, so a push of that age counts with a minus sign.
#
# ### Exercise 03.2 · The kernel without powers
#
# **Goal.** Compute a kernel with products of a matrix and a vector only. **Difficulty.** derive. **Minutes.** 8
#
# `kernel_by_powers` wastes work: for each age it computes a matrix power from the start. An (N, N) matrix times a
# column costs $N^2$ multiplications, a matrix times a matrix $N^3$. Write a version that keeps one column of N numbers
# and multiplies it by $\bar A$ once for each age.
#
# `A_bar` (N, N), `B_bar` (N, 1), `C` (1, N) and the number `L` go in; a tensor (L,) comes out.
#
# <details><summary>Hint</summary>
#
# Start with the column $\bar B$. Read it with $C$: that is $K[0]$. Multiply by $\bar A$, read again: $K[1]$. This is
# the recurrence itself, run on an impulse.
#
# </details>


# %%
def kernel(A_bar, B_bar, C, L):
    """K[k] = C A_bar^k B_bar for k = 0 .. L - 1; A_bar (N, N), B_bar (N, 1), C (1, N) -> (L,)."""
    # BEGIN SOLUTION
    column, numbers = B_bar, []
    for _ in range(L):
        numbers.append((C @ column)[0, 0])
        column = A_bar @ column
    return torch.stack(numbers)
    # END SOLUTION


# %%
check("03.2", kernel)

# %% [markdown]
# ## 3. One step off: two conventions
#
# Chapter 01 wrote the state equation as control does, and ended with a warning: S4's is one step off. We leave out the
# noise, and call control's state $x$ for a moment, so that the two can stand side by side. Both are discrete here, so
# we drop the bars:
#
# | | state | output | answer to an impulse at step 0 |
# |---|---|---|---|
# | control (chapter 01) | $x[t+1] = A\,x[t] + B\,u[t]$ | $y[t] = C\,x[t] + D\,u[t]$ | $D,\; CB,\; CAB,\; CA^2B,\dots$ |
# | S4, Mamba (3.1) | $h[t] = A\,h[t-1] + B\,u[t]$ | $y[t] = C\,h[t] + D\,u[t]$ | $CB + D,\; CAB,\; CA^2B,\dots$ |
#
# In control, $x[t]$ is the state **before** the input of step t arrives. In S4, $h[t]$ is the state **after** it. So
# with the same four matrices the two models differ: control's output lags one step behind. People who mix the two get a
# model that is right and late, which is hard to see in a plot of 1,000 steps.
#
# Neither convention can do more than the other. Start from S4. Say $x[t] = h[t-1]$: the same memory, looked at before
# the input. Then $x[t+1] = h[t] = A\,x[t] + B\,u[t]$, as control wants it. And the output is
#
# $$y[t] = C\,h[t] + D\,u[t] = C\,(A\,x[t] + B\,u[t]) + D\,u[t] = \underbrace{CA}_{C'}\, x[t] +
# \underbrace{(CB + D)}_{D'}\, u[t] \tag{3.3}$$
#
# So an S4 model $(A, B, C, D)$ is the control model $(A, B, CA, CB + D)$. We try it on the tiny system.

# %%
A_bar, B_bar, C = tiny
no_skip = torch.zeros(1, 1)
late = lti.impulse_response(A_bar, B_bar, C, no_skip, 4)[:, 0, 0]  # control's convention, unchanged matrices
converted = lti.impulse_response(A_bar, B_bar, C @ A_bar, C @ B_bar, 4)[:, 0, 0]
print("S4:                          ", lti.kernel(*tiny, 4)[:, 0, 0].tolist())
print("control, the same matrices:  ", late.tolist())
print("control, converted with (3.3):", converted.tolist())
assert torch.equal(late[1:], lti.kernel(*tiny, 3)[:, 0, 0]) and late[0] == 0
assert torch.equal(converted, lti.kernel(*tiny, 4)[:, 0, 0])

# %% [markdown]
# **And back?** Reading (3.3) backwards needs $C = C' A^{-1}$, and $A$ may have no inverse. A pure delay, $y[t] =
# u[t-1]$, is in control the model $A = 0$, $B = C = 1$, $D = 0$: nothing but one number that is handed on. There is a
# way that always works. It takes a larger state.
#
# ### Exercise 03.3 · From control to S4
#
# **Goal.** Convert a model, skip included, without an inverse. **Difficulty.** derive. **Minutes.** 12
#
# The new state $h[t]$ is a column of N + M numbers: $x[t]$, and below it $u[t]$, the input that has just come in. Given
# the matrices of a control model, `A` (N, N), `B` (N, M), `C` (P, N), `D` (P, M) for M inputs and P outputs, return the
# four matrices of an S4 model (3.1) that gives the same outputs, as a tuple in the same order.
#
# <details><summary>Hint</summary>
#
# Control says $x[t] = A\,x[t-1] + B\,u[t-1]$. Both things on the right stand in the old state $h[t-1]$. The lower half
# of $h[t]$ comes from the new input alone. So what are the four blocks of the new A, and the two blocks of the new B?
# Last: which row reads $C\,x[t] + D\,u[t]$ off $h[t]$, and what is left for the new D? `torch.cat` puts blocks
# together, below each other with `dim=0` and side by side with `dim=1`.
#
# </details>


# %%
def to_s4(A, B, C, D):
    """An S4 model with the outputs of this control model; A (N, N), B (N, M), C (P, N), D (P, M) -> four matrices."""
    # BEGIN SOLUTION
    N, M = B.shape
    stays_or_enters = torch.cat((A, B), dim=1)
    forgotten = A.new_zeros(M, N + M)
    new_input = torch.cat((A.new_zeros(N, M), torch.eye(M, dtype=A.dtype)), dim=0)
    return torch.cat((stays_or_enters, forgotten), dim=0), new_input, torch.cat((C, D), dim=1), torch.zeros_like(D)
    # END SOLUTION


# %%
check("03.3", to_s4)

# %% [markdown]
# ## 4. Convolution: flip and slide
#
# From here on we forget the state and look at the sum in (3.2). For the output at step t, the newest input meets
# $K[0]$, the one before it $K[1]$, and so on, into the past:
#
# | | u[0] = 8 | u[1] = 0 | u[2] = 5 | |
# |---|---|---|---|---|
# | for y[0] | K[0] = 1 | | | 8 |
# | for y[1] | K[1] = 1/2 | K[0] = 1 | | 4 + 0 = 4 |
# | for y[2] | K[2] = 1/4 | K[1] = 1/2 | K[0] = 1 | 2 + 0 + 5 = 7 |
#
# Read a row of kernel numbers from left to right: the kernel stands there backwards. From row to row it moves one place
# to the right. Hence the picture: flip the kernel, slide it along the input, multiply what lies on top of each other,
# add. The following function does one such position.


# %%
def flip_and_slide(u, K, t):
    """The products K[k] u[t-k], one for each input up to step t; their sum is y[t]."""
    return K[: t + 1].flip(0) * u[: t + 1]


u = torch.tensor([8.0, 0.0, 5.0])
K = lti.kernel(*tiny, 3)[:, 0, 0]
for t in range(3):
    print(f"y[{t}] =", " + ".join(f"{product:g}" for product in flip_and_slide(u, K, t)))
assert [flip_and_slide(u, K, t).sum().item() for t in range(3)] == [8, 4, 7]

# %% [markdown]
# Now with the spring and a longer input: three pushes, then a pull. We first run it as a recurrence. The package's loop
# is `lti.recurrence`; it takes the input as (L, inputs). Then we convolve. The two must agree.

# %%
pushes = torch.zeros(16)
pushes[[1, 3, 4, 9]] = torch.tensor([1.0, 0.5, 1.0, -1.2])
by_recurrence = lti.recurrence(*spring, pushes[:, None])[:, 0]
by_convolution = torch.stack([flip_and_slide(pushes, spring_kernel, t).sum() for t in range(16)])
print("largest difference below 1e-12:", close(by_recurrence, by_convolution))
assert close(by_recurrence, by_convolution)


# %%
def draw_slide(figure, t):
    above, below = figure.subplots(2, 1, sharex=True)
    above.axhline(0, color="lightgrey")
    above.vlines(range(16), 0, pushes, color="black", linewidth=3, label="input")
    above.plot(range(t + 1), spring_kernel[: t + 1].flip(0), ".-", color="tab:blue", label="kernel, flipped")
    above.bar(range(t + 1), flip_and_slide(pushes, spring_kernel, t), color="tab:orange", label="products")
    above.set(ylabel="input", ylim=(-1.8, 1.4), title=f"step {t}: the orange bars add up to {by_convolution[t]:.2f}")
    above.legend(loc="lower left", fontsize=7, ncols=3)
    below.plot(by_convolution[: t + 1], ".-", color="tab:orange")
    below.set(xlabel="step", ylabel="output", xlim=(-0.6, 15.6), ylim=(-1.2, 1.2), xticks=range(0, 16, 5))


print("frames:", len(pushes), " inputs that are not 0:", (pushes != 0).sum().item())
flipbook(draw_slide, range(16), "A flipped kernel slides over the input; the products are added and give the output")

# %% [markdown]
# **What to see.** Press *play*, or move the slider. Black: the input. Blue: the flipped kernel; its newest end, $K[0]$,
# is always at the present step. Orange: the products. There is one wherever an input is not 0, and it grows and shrinks
# as the kernel slides over that input. Below: their sum, step by step. The line is the position of the weight.
#
# ### Exercise 03.4 · A causal convolution
#
# **Goal.** Write the sum (3.2) as two loops. **Difficulty.** build. **Minutes.** 8
#
# The input `u` has L numbers and the kernel `K` has M. M may be smaller than L (the kernel is over) or larger (its tail
# is not needed yet). Return $y$, a tensor with L numbers. Use plain loops.
#
# <details><summary>Hint</summary>
#
# For each t, let k run from 0 to the smaller of t and M - 1, both included. If k ran further than t, `u[t - k]` would
# have a negative index. Python then reads from the *end* of u and does not complain.
#
# </details>


# %%
def causal_convolution(u, K):
    """y[t] = sum of K[k] u[t-k] over k from 0 to t, as far as K goes; u (L,), K (M,) -> (L,)."""
    # BEGIN SOLUTION
    y = torch.zeros_like(u)
    for t in range(len(u)):
        for k in range(min(t + 1, len(K))):
            y[t] = y[t] + K[k] * u[t - k]
    return y
    # END SOLUTION


# %%
check("03.4", causal_convolution)

# %% [markdown]
# **A word on words.** PyTorch's `nn.Conv1d` does not flip the kernel. It computes $\sum_k W[k]\, u[t+k]$, which
# mathematicians call a correlation. With learned weights it makes no difference, for a flipped kernel can be learned as
# well. With a kernel that was computed, as here, it does.

# %%
flipped = torch.nn.functional.conv1d(pushes.view(1, 1, -1), spring_kernel[:16].flip(0).view(1, 1, -1), padding=15)
print("conv1d gives", flipped.shape[-1], "numbers; the first 16 are ours")
assert close(flipped[0, 0, :16], by_convolution)

# %% [markdown]
# ## 5. Convolution is a matrix
#
# Every output is a weighted sum of the inputs. So there is a matrix $T$ with $y = T u$. Its entry in row t and column s
# says how much the input of step s counts at step t. By (3.2) that is $K[t - s]$ if $s \le t$, and 0 if the input comes
# later:
#
# $$T = \begin{pmatrix} K[0] & & & \\ K[1] & K[0] & & \\ K[2] & K[1] & K[0] & \\ \vdots & & & \ddots \end{pmatrix}
# \tag{3.4}$$
#
# The same number stands all along a diagonal, because it is the age t - s that counts. Such a matrix is called
# **Toeplitz**. We can find the matrix of any linear system without knowing what is inside: column s is the answer to an
# impulse at step s.


# %%
def matrix_of(run, L):
    """The matrix (L, L) of a linear system; `run` takes and gives (L,)."""
    return torch.stack([run(impulse) for impulse in torch.eye(L)], dim=1)


def is_toeplitz(T):
    """Whether each entry equals its neighbour one down and one to the right."""
    return close(T[1:, 1:], T[:-1, :-1])


def run_tiny(u):
    return lti.recurrence(*tiny, u[:, None])[:, 0]


T = matrix_of(run_tiny, 3)
print(T.tolist())
assert (T @ u).tolist() == [8, 4, 7] and is_toeplitz(T)

# %% [markdown]
# **A system that changes.** What if the factor that keeps the state is not the same at each step? Let it be 0.9 as a
# rule, but 0 at step 7: there the system forgets all it knows. Such a system is **time-varying**. It is still linear,
# so it still has a matrix. Is the matrix Toeplitz?

# %%
keep = torch.full((16,), 0.9)
keep[7] = 0


def run_spring(u):
    return lti.recurrence(*spring, u[:, None])[:, 0]


def run_varying(u):
    h, y = 0.0, []
    for factor, u_t in zip(keep, u, strict=False):
        h = factor * h + u_t
        y.append(h)
    return torch.stack(y)


matrices = {"spring": matrix_of(run_spring, 16), "time-varying": matrix_of(run_varying, 16)}
print({name: is_toeplitz(matrix) for name, matrix in matrices.items()})
assert is_toeplitz(matrices["spring"]) and not is_toeplitz(matrices["time-varying"])

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 3.5), layout="constrained")
for axis, (name, matrix) in zip(axes, matrices.items(), strict=True):
    drawn = axis.imshow(matrix, cmap="RdBu", vmin=-1, vmax=1)
    axis.set(xlabel="step s of the input", ylabel="step t of the output", title=name.capitalize())
fig.colorbar(drawn, label="how much the input counts")
plt.show()
for name, matrix in matrices.items():
    spread = max(matrix.diagonal(-k).max() - matrix.diagonal(-k).min() for k in range(16)).item()
    print(f"{name}: along a diagonal the numbers differ by at most {abs(spread):.1f}")

# %% [markdown]
# **What to see.** White is 0. Above the diagonal all is white: no output hears a later input. On the left, stripes run
# along the diagonals: one kernel, moved. On the right there are two triangles. What came before step 7 and what comes
# from step 7 on never meet. No single kernel can draw this picture.
#
# Keep the right picture in mind. In Mamba the factor that keeps the state depends on the token (chapter 05). Its matrix
# looks like the right one. So "Mamba trains in convolution mode" is wrong: S4 does, Mamba cannot.
#
# ### Exercise 03.5 · The Toeplitz matrix
#
# **Goal.** Build the matrix (3.4) from a kernel. **Difficulty.** build. **Minutes.** 8
#
# `K` has L numbers. Return $T$ with shape (L, L), such that `T @ u` is the causal convolution of u with K.
#
# <details><summary>Hint</summary>
#
# `age = t[:, None] - t[None, :]` with `t = torch.arange(L)` holds t - s in row t and column s. Indexing `K` with a
# tensor of ages gives a tensor of that shape. Negative ages need a 0, not `K` from its end.
#
# </details>


# %%
def toeplitz(K):
    """T[t, s] = K[t - s] where s <= t, else 0; K (L,) -> (L, L)."""
    # BEGIN SOLUTION
    t = torch.arange(len(K))
    age = t[:, None] - t[None, :]
    return torch.where(age >= 0, K[age.clamp(min=0)], 0.0)
    # END SOLUTION


# %%
check("03.5", toeplitz)

# %% [markdown]
# ## 6. Three laws
#
# Which systems are convolutions? Exactly those that obey three laws.
#
# - **Linear.** The answer to $2u - 3v$ is twice the answer to $u$ minus three times the answer to $v$.
# - **Time-invariant.** The same input a few steps later gives the same output, the same steps later.
# - **Causal.** What comes later does not change what came out before. The present is not "later": $y[t]$ may use
#   $u[t]$.
#
# The reason takes three lines. Any input is a sum of impulses: $u[s]$ times an impulse at step s, for each s. Linear:
# so the output is $u[s]$ times the answer to an impulse at s, added over s. Time-invariant: all these answers are one
# and the same $K$, moved by s steps. Causal: $K$ does not begin before its impulse. Together, that is (3.2).
#
# A law can be tested from outside, on random inputs.


# %%
def laws(run, L=16, delay=3):
    """Which laws `run`, from (L,) to (L,), obeys on one random example: linear, time-invariant, causal."""
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, L, generator=generator)
    linear = close(run(2 * u - 3 * v), 2 * run(u) - 3 * run(v), 1e-10)
    u[-delay:] = 0  # room for the delay
    invariant = close(run(u.roll(delay))[delay:], run(u)[:-delay], 1e-10)
    changed = torch.cat((u[: L // 2], v[L // 2 :]))
    causal = close(run(changed)[: L // 2], run(u)[: L // 2], 1e-10)
    return linear, invariant, causal


assert laws(run_tiny) == laws(run_spring) == (True, True, True)
print("spring: linear, time-invariant, causal =", laws(run_spring))

# %% [markdown]
# Now three that break one law each. The time-varying system of section 5. A **selective** system, which decides by the
# input itself how much of the state it keeps; this is the idea of Mamba in one line. And a blur, which averages each
# input with its two neighbours, as image filters do.


# %%
def run_selective(u):
    h, y = 0.0, []
    for u_t in u:
        h = torch.sigmoid(u_t) * h + u_t  # the factor lies between 0 and 1 and depends on the token
        y.append(h)
    return torch.stack(y)


def run_blur(u):
    padded = torch.nn.functional.pad(u, (1, 1))
    return (padded[:-2] + padded[1:-1] + padded[2:]) / 3


print(f"{'':14}{'linear':8}{'time-invariant':16}{'causal'}")
for name, run in (("time-varying", run_varying), ("selective", run_selective), ("blur", run_blur)):
    linear, invariant, causal = laws(run)
    print(f"{name:14}{linear!s:8}{invariant!s:16}{causal}")
assert laws(run_varying) == (True, False, True)
assert laws(run_selective) == (False, True, True)
assert laws(run_blur) == (True, True, False)

# %% [markdown]
# **Mamba and the laws.** The selective system is time-invariant: the same tokens later give the same answer later. But
# it is not linear, because the input stands in the factor, too. One may also write down the factors that one input has
# given, and keep them for all other inputs. What is left is linear, but not time-invariant; that is the right picture
# of section 5. Either way a law is broken, and there is no kernel.
#
# ## 7. The fast way: FFT
#
# The sum (3.2) costs about $L^2/2$ multiplications. For a sequence of a million steps that is half a million million.
# There is a way with about $L \log L$. It goes through the **discrete Fourier transform** (DFT), which writes a signal
# of L numbers as a sum of L waves:
#
# $$\hat u[f] = \sum_{t=0}^{L-1} u[t]\, e^{-2\pi i f t / L} \qquad f = 0, \dots, L-1 \tag{3.5}$$
#
# A wave is $e^{2\pi i f t / L}$: a point that runs f times around the unit circle in L steps. $\hat u[f]$ says how much
# of it is in the signal. The fast Fourier transform (FFT; Cooley and Tukey, 1965) computes the same L numbers with
# about $L \log L$ multiplications. We check this once, for L = 8: the DFT as a matrix product, and PyTorch's FFT.

# %%
t = torch.arange(8)
waves = torch.exp(-2j * math.pi * t[:, None] * t[None, :] / 8)  # row f: the wave f, running backwards
u = torch.tensor([0.0, 0, 0, 0, 0, 0, 8, 0])
assert close(waves @ u.to(waves.dtype), torch.fft.fft(u))
print("multiplications of the matrix product:", waves.numel(), " of an FFT: about", 8 // 2 * 3)

# %% [markdown]
# The inverse transform, with a plus sign in the exponent and a factor 1/L, goes back from the waves to the signal.
#
# Why waves? Because a wave that is moved by s steps is still the same wave, times the number $e^{-2\pi i f s / L}$. We
# move our input by 3 steps without touching it: transform, multiply each wave by its number, go back.

# %%
moved = torch.fft.ifft(torch.fft.fft(u) * torch.exp(-2j * math.pi * t * 3 / 8)).real
print("before:", u.int().tolist(), " moved by 3:", moved.round().int().tolist())
assert close(moved, u.roll(3))

# %% [markdown]
# The 8 of step 6 is now at step 1. The waves have no beginning and no end. After L steps they start again, so they live
# on a ring, where what leaves at the end comes back at the front.
#
# A convolution is a sum of moved copies of the kernel. For each wave, every copy is only a number times that wave. So
# the whole sum becomes one multiplication for each frequency. This is the **convolution theorem**:
#
# $$y = K \circledast u \quad\Longleftrightarrow\quad \hat y[f] = \hat K[f]\; \hat u[f] \text{ for each } f \tag{3.6}$$
#
# The hats are the transforms (3.5) of $y$, $K$ and $u$. The circle is a warning: the copies are moved on the ring.
#
# $$(K \circledast u)[t] = \sum_{s=0}^{L-1} K[(t - s) \bmod L]\, u[s] \tag{3.7}$$
#
# This is the **circular** convolution. Ours has no ring. See what happens if one forgets it. The kernel is that of
# section 1, the input is a single 8 at step 6:
#
# | step | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 |
# |---|---|---|---|---|---|---|---|---|
# | u | 0 | 0 | 0 | 0 | 0 | 0 | 8 | 0 |
# | right | 0 | 0 | 0 | 0 | 0 | 0 | 8 | 4 |
# | on a ring | 2 | 1 | 0.5 | 0.25 | 0.125 | 0.0625 | 8 | 4 |
#
# After step 7 the trace 8, 4, 2, 1, ... goes on at step 0. The answer comes before the question.


# %%
def circular_convolution(u, K):
    """Equation 3.7; u, K (L,) -> (L,)."""
    L = len(u)
    return torch.stack([sum(K[(t - s) % L] * u[s] for s in range(L)) for t in range(L)])


K = lti.kernel(*tiny, 8)[:, 0, 0]
by_hand = torch.tensor([2, 1, 0.5, 0.25, 0.125, 0.0625, 8, 4])
on_a_ring = torch.fft.irfft(torch.fft.rfft(K) * torch.fft.rfft(u), n=8)  # r: for real signals; n: how many numbers
print("on a ring, as by hand:", close(on_a_ring, by_hand), "  right:", run_tiny(u).tolist())
assert close(on_a_ring, by_hand)
assert close(circular_convolution(u, K), by_hand)

# %% [markdown]
# **The cure: zeros.** Make the ring longer. Fill both signals up with 8 zeros, so that the ring has 16 places. The tail
# now falls into the added places, and nothing comes round to the front. Then keep the first 8 numbers.

# %%
on_a_longer_ring = torch.fft.irfft(torch.fft.rfft(K, n=16) * torch.fft.rfft(u, n=16), n=16)  # n fills up with zeros
print("kept:", [float(f"{value:.3f}") + 0.0 for value in on_a_longer_ring[:8].tolist()])
assert close(on_a_longer_ring[:8], run_tiny(u))

# %%
fig, axes = plt.subplots(1, 2, figsize=(8.4, 2.7), layout="constrained", sharey=True)
for axis, signal, wrapped in zip(axes, (on_a_ring, on_a_longer_ring), (6, 0), strict=True):
    axis.bar(range(len(signal)), signal, color=["tab:red"] * wrapped + ["tab:blue"] * (len(signal) - wrapped))
    axis.set(xlabel="step", ylabel="output", title=f"A ring of {len(signal)} places")
axes[0].text(2.5, 3, "the end of the trace,\ncome round", color="tab:red", ha="center")
axes[1].axvspan(7.5, 15.5, color="lightgrey", zorder=0)
axes[1].text(11.5, 5, "added places,\nthrown away", ha="center")
plt.show()
print("wrong numbers on the ring of 8:", (on_a_ring - run_tiny(u)).abs().gt(1e-9).sum().item())

# %% [markdown]
# **What to see.** Left: the red bars are the tail of the trace, in the wrong place. Right: the same tail, but on free
# ground. Everybody makes this mistake once. It gives no error and no strange shape, and if the kernel is short, the
# numbers are nearly right. A test of causality finds it at once: law three of section 6.
#
# How many zeros are needed? The last input can meet the last number of the kernel. Its product belongs to step 2L - 2,
# so the ring needs 2L - 1 places. We try all lengths.


# %%
def by_fft(u, K, n):
    """Convolution of u and K, both (L,), on a ring of n places, cut to L numbers."""
    return torch.fft.irfft(torch.fft.rfft(u, n=n) * torch.fft.rfft(K, n=n), n=n)[: len(u)]


u, K = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
enough = [n for n in range(8, 20) if close(by_fft(u, K, n), lti.fft_convolution(u, K))]
print("L = 8: the shortest ring that gives the right numbers has", enough[0], "places")
assert enough == list(range(2 * 8 - 1, 20))

# %% [markdown]
# In practice one takes 2L, which is even and easy to remember. That is `lti.fft_convolution`. It works on many channels
# and sequences at once: the time must be the last dimension. We hold it against the sum for lengths that tend to break
# things.

# %%
for L in (1, 2, 3, 63, 64, 65, 197):
    u, K = torch.randn(2, L, generator=torch.Generator().manual_seed(L))
    by_sum = torch.stack([flip_and_slide(u, K, t).sum() for t in range(L)])
    assert close(lti.fft_convolution(u, K), by_sum, 1e-11)
    assert close(by_fft(u, K, 2 * L), by_sum, 1e-11)
print("equal for 7 lengths; laws:", laws(lambda u: lti.fft_convolution(u, spring_kernel[:16])))

# %% [markdown]
# ### Exercise 03.6 · Convolution by FFT
#
# **Goal.** Write a causal FFT convolution that never wraps. **Difficulty.** build. **Minutes.** 10
#
# The input `u` (..., L) may have leading dimensions; the kernel `K` has M numbers, and M may be smaller or larger than
# L. Return the causal convolution, (..., L). Use `torch.fft.rfft` and `torch.fft.irfft`, no loop.
#
# <details><summary>Hint</summary>
#
# The last step that a product can reach is L + M - 2. A ring of L + M places is always enough. 2L is not, if K is
# longer than u: then the last products come round. And tell `irfft` its n, too. Without it, it gives an even number of
# places.
#
# </details>


# %%
def convolve_by_fft(u, K):
    """The causal convolution of u (..., L) with K (M,), by FFT -> (..., L)."""
    # BEGIN SOLUTION
    L, n = u.shape[-1], u.shape[-1] + len(K)
    return torch.fft.irfft(torch.fft.rfft(u, n=n) * torch.fft.rfft(K, n=n), n=n)[..., :L]
    # END SOLUTION


# %%
check("03.6", convolve_by_fft)

# %% [markdown]
# ## 8. What each way costs
#
# We count multiplications of real numbers for one channel with N states and a dense $\bar A$, to get L outputs.
#
# | | multiplications | rounds that must wait for each other | memory besides u and y |
# |---|---|---|---|
# | recurrence | $L\,(N^2 + 2N)$ | L | the state, N numbers |
# | sum over the kernel | $L(L+1)/2$ | 1 | the kernel, L numbers |
# | FFT on a ring of $n = 2L$ | $6\,n\log_2 n + 4n$ | about $2 \log_2 n$ | a few times n numbers |
#
# *Recurrence:* per step $N^2$ for $\bar A h$, and N each for $\bar B u$ and $C h$. *FFT:* three transforms, each with
# $\tfrac n2 \log_2 n$ products of complex numbers (if n is a power of 2), and n products in between; a product of
# complex numbers takes four of real ones. The kernel comes on top, once: $L\,(N^2 + N)$ as in exercise 03.2. *Memory*
# is that of running; training keeps more for the gradient, also the L states of a recurrence.
#
# Counting is half of the truth. The other half is waiting. A recurrence cannot begin step 5 before step 4 is done. A
# processor with a thousand arithmetic units uses few of them. The sum and the FFT give it all the work at once. We draw
# both halves, for N = 4 states; the kernel is made beforehand.

# %%
lengths = [2**power for power in range(4, 12)]
N = 4
multiplications = {
    "recurrence": [L * (N**2 + 2 * N) for L in lengths],
    "sum": [L * (L + 1) / 2 for L in lengths],
    "FFT": [6 * 2 * L * math.log2(2 * L) + 4 * 2 * L for L in lengths],
}
rounds = {"recurrence": lengths, "sum": [1 for L in lengths], "FFT": [2 * math.log2(2 * L) for L in lengths]}
print("L = 2048, thousands of multiplications:", {name: round(n[-1] / 1000) for name, n in multiplications.items()})
print("L = 2048, rounds:", {name: round(n[-1]) for name, n in rounds.items()})
assert multiplications["recurrence"][-1] < multiplications["FFT"][-1] < multiplications["sum"][-1]

# %%
fig, axes = plt.subplots(1, 3, figsize=(10.5, 3.2), layout="constrained")
for name, style in zip(multiplications, ("o-", "s-", "^-"), strict=True):
    axes[0].loglog(lengths, multiplications[name], style, label=name)
    axes[1].loglog(lengths, rounds[name], style, label=name)
axes[0].set(xlabel="length L", ylabel="multiplications", title="All inputs known: the work")
axes[1].set(xlabel="length L", ylabel="rounds", title="All inputs known: the waiting")
so_far = torch.arange(1, 2049)
axes[2].loglog(so_far, torch.full((2048,), 4.0**2 + 2 * 4), label="recurrence")
axes[2].loglog(so_far, so_far, label="sum")
axes[2].set(xlabel="inputs so far", ylabel="multiplications", title="For the next output only")
for axis in axes:
    axis.legend()
plt.show()
print("for the next output, recurrence and sum cost the same after", 4**2 + 2 * 4, "inputs")

# %% [markdown]
# **What to see.** Both axes are logarithmic, so $L^p$ is a straight line of slope p. Left: the sum has slope 2 and ends
# highest. The recurrence is the *lowest* line at 2,048 steps: it needs a sixth of the multiplications of the FFT.
# Middle: the same recurrence needs 2,048 rounds, the FFT 24, the sum 1.
#
# On the right only the *next* output is wanted, because the next input is not known yet. This is how a model writes
# text, or follows a measurement. The recurrence does the same small work at step 2,000 as at step 1, and remembers N
# numbers. The sum must go back over all the past, and keep it. The FFT cannot even begin.
#
# Left and middle disagree when all inputs are known. Which of the two decides? Time does, so we measure it. The next
# cell computes the same outputs in three ways.

# %%
noise = torch.randn(2048, generator=torch.Generator().manual_seed(0))
A_bar, B_bar = discretize(torch.diag(-torch.arange(1.0, 5.0)), torch.ones(4, 1), 0.01, "zoh")
system = A_bar, B_bar, torch.ones(1, 4)
long_kernel = lti.kernel(*system, 2048)[:, 0, 0]
ages = torch.arange(2048)[:, None] - torch.arange(2048)
long_matrix = torch.where(ages >= 0, long_kernel[ages.clamp(min=0)], 0.0)
ways = {
    "recurrence": lambda L: lti.recurrence(*system, noise[:L, None])[:, 0],
    "sum": lambda L: long_matrix[:L, :L] @ noise[:L],  # all sums at once, by the matrix (3.4), zeros included
    "FFT": lambda L: lti.fft_convolution(noise[:L], long_kernel[:L]),
}
assert all(close(way(2048), ways["FFT"](2048), 1e-10) for way in ways.values())
print("three ways, one result, L = 2048")

# %% [markdown]
# Times differ from machine to machine and from run to run. So no picture of them is stored in this notebook: **run the
# next cell, and see yours.** Before you do, say which line will be the highest, and what slope it will have.

# %% tags=["nbval-ignore-output"]
seconds = {name: [] for name in ways}
for name, way in ways.items():
    for L in lengths:
        best = math.inf
        for _ in range(5):  # the shortest of five: whatever else the machine does only makes it longer
            start = time.perf_counter()
            way(L)
            best = min(best, time.perf_counter() - start)
        seconds[name].append(best)

fig, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
for (name, times), style in zip(seconds.items(), ("o-", "s-", "^-"), strict=True):
    axis.loglog(lengths, times, style, label=name)
axis.set(xlabel="length L", ylabel="seconds", title="All inputs known, measured on this machine")
axis.legend()
plt.show()

# %%
faster = seconds["recurrence"][-1] > 10 * seconds["FFT"][-1]
print("at L = 2048 the FFT is more than 10 times faster than the loop:", faster)
assert faster

# %% [markdown]
# **What to see, when you have run it.** The recurrence lies high, with slope 1: L steps, one after the other. Each
# costs as much time as Python takes to start a few tiny operations. So against the other two, the waiting decides.
# Between these two, the work decides: the sum starts low, but its slope goes towards 2, and the FFT is the lowest line
# for long sequences. Where it is flat, starting the operation costs more than the operation.
#
# So: **train as a convolution, when all inputs are known; generate as a recurrence, when they come one by one.** One
# model, two ways to run it. S4 does exactly this.
#
# The loop's weakness is the waiting, not the work. And the work can shrink further: for a diagonal $\bar A$ a step
# takes only $3N$ multiplications. Chapter 06 removes the waiting without any FFT, and chapter 07 removes the cost of
# starting operations. That is why Mamba, which has no kernel, can be fast.
#
# ### Exercise 03.7 · Choose the way
#
# **Goal.** Decide by counting. **Difficulty.** investigate. **Minutes.** 12
#
# A layer with one channel, N states and a dense $\bar A$ must process `batch` sequences of length L, a power of 2. Use
# the table above. Return the name of the cheapest way and its number of multiplications, as a tuple of a string and a
# number:
# - `"recurrence"`: for each sequence, the recurrence.
# - `"sum"`: the kernel once for the whole batch, and the sum over the kernel for each sequence.
# - `"fft"`: the kernel once, and the FFT row of the table for each sequence. Not available if `generate` is True: then
#   each output must be there before the next input is known.
#
# When you have it, try it: for which N does the recurrence win at L = 1024 and batch 1? And at batch 64?
#
# <details><summary>Hint</summary>
#
# The ring has n = 2L places. Its logarithm is exact with `math.log2(n)`, or as a whole number `n.bit_length() - 1`. Put
# the costs into a dict and use `min(costs, key=costs.get)`.
#
# </details>


# %%
def choose(L, N, batch, generate):
    """The cheapest way and its multiplications; L, N, batch are whole numbers, generate is a bool -> (str, int)."""
    # BEGIN SOLUTION
    n = 2 * L
    kernel_once = L * (N * N + N)
    costs = {"recurrence": batch * L * (N * N + 2 * N), "sum": kernel_once + batch * L * (L + 1) // 2}
    if not generate:
        costs["fft"] = kernel_once + batch * (6 * n * (n.bit_length() - 1) + 4 * n)
    name = min(costs, key=costs.get)
    return name, costs[name]
    # END SOLUTION


# %%
check("03.7", choose)

# %% [markdown]
# <details><summary>What counting shows</summary>
#
# At L = 1024 and batch 1 the recurrence wins below N = 140, where the FFT costs the same: making the kernel takes
# nearly as many multiplications as running the recurrence once. At batch 64 it wins only up to N = 10. The kernel is
# made once and shared by all sequences. This is what makes the convolution a way to *train*.
#
# </details>
#
# ## 9. How long a kernel remembers
#
# With one state, $K[k] = C \bar A^k \bar B$ is a power of one number. If $|\bar A| < 1$ it fades; the time until half
# is left is the half-life, $\log \tfrac12 / \log |\bar A|$ steps. (With $\bar A = e^{\Delta A}$ it is the half-life of
# chapter 02.) If $|\bar A| > 1$, it explodes.
#
# With N states, look along the eigenvectors. If $\bar A = V \Lambda V^{-1}$ with the eigenvalues $\lambda_1, \dots,
# \lambda_N$ on the diagonal of $\Lambda$, then $\bar A^k = V \Lambda^k V^{-1}$, and
#
# $$K[k] = \sum_{n=1}^{N} c_n\, \lambda_n^k \qquad\text{with}\quad c_n = (C V)_n\, (V^{-1} \bar B)_n \tag{3.8}$$
#
# A kernel is a mixture of N powers. Control calls the $\lambda_n$ the **poles**. A complex pole $\lambda = r
# e^{i\theta}$ gives $\lambda^k = r^k e^{i \theta k}$: the radius $r$ says how long it remembers, the angle $\theta$ how
# fast it swings. The matrices are real, so complex poles come in pairs, $re^{i\theta}$ and $re^{-i\theta}$, and the
# imaginary parts cancel. We check (3.8) on the spring.

# %%
A_bar, B_bar, C = spring
poles, V = torch.linalg.eig(A_bar)
shares = (C.to(V.dtype) @ V)[0] * torch.linalg.solve(V, B_bar.to(V.dtype))[:, 0]
mixture = (shares * poles ** torch.arange(40)[:, None]).sum(dim=1)
radius, angle = poles[0].abs().item(), poles[0].angle().abs().item()
print(f"radius {radius:.3f}: half-life {math.log(0.5) / math.log(radius):.1f} steps")
print(f"angle {angle:.3f}: one swing in {2 * math.pi / angle:.1f} steps")
assert close(mixture, spring_kernel)  # and so the imaginary parts cancel


# %%
def draw_pole(figure, pole):
    plane, memory = figure.subplots(1, 2, width_ratios=[1, 1.3])
    plane.add_patch(plt.Circle((0, 0), 1, fill=False, color="grey"))
    plane.plot([pole.real, pole.real], [pole.imag, -pole.imag], "kx", markersize=9, markeredgewidth=2)
    plane.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    plane.set(xlabel="real part", ylabel="imaginary part", title=f"poles, radius {abs(pole):.2f}")
    verdict = "explodes" if abs(pole) > 1.001 else "never fades" if abs(pole) > 0.999 else "fades"
    memory.plot([(pole**k).real for k in range(20)], ".-", color="tab:red" if verdict == "explodes" else "tab:blue")
    memory.set(
        xlabel="age k (steps)", ylabel="K[k]", ylim=(-2.2, 2.2), yticks=range(-2, 3), title=f"the kernel {verdict}"
    )


path = [complex(radius) for radius in (0.5, 0.7, 0.85, 0.95)]
path += [0.95 * complex(math.cos(angle), math.sin(angle)) for angle in (0.1, 0.2, 0.4, 0.7, 1.0)]
path += [radius * complex(math.cos(1.0), math.sin(1.0)) for radius in (0.98, 1.0, 1.03)]
print("frames:", len(path), " poles outside the unit circle:", sum(abs(pole) > 1.001 for pole in path))
flipbook(draw_pole, path, "A pair of poles moves in the complex plane, and the kernel changes with it")

# %% [markdown]
# **What to see.** Crosses are poles. A pair has equal shares $c_n = \tfrac12$ here, so $K[k] = r^k \cos \theta k$.
# First the pole moves outwards along the real axis: the memory gets longer. Then it becomes a pair and turns: the
# kernel begins to swing, faster and faster. Then it moves outwards again and crosses the circle of radius 1: there the
# kernel never fades, and beyond it explodes. A training run that pushes a pole over the circle can end in NaN. This is
# why state-space layers do not learn a free $\bar A$.
#
# **A mixture can do what its parts cannot.** A power of a real number between 0 and 1 has its peak at age 0. Can a
# kernel look back at age 10, and nowhere else? As a mixture, yes. We take the matrices of LSSL, called HiPPO-LegS;
# chapter 04 explains where they come from. We leave $\bar A$ and $\bar B$ alone and choose only $C$, which says how
# much of each state goes into the mixture: by least squares, so that the kernel comes close to a 1 at age 10 and 0
# elsewhere.

# %%
wanted = torch.zeros(40)
wanted[10] = 1
fits = {}
for N in (4, 12, 24):
    A, B = legs(N)
    A_bar, B_bar = discretize(A, B[:, None], 0.1, "bilinear")
    parts = lti.kernel(A_bar, B_bar, torch.eye(N), 40)[:, :, 0]  # (40, N): what each state makes of an impulse
    C = torch.linalg.lstsq(parts, wanted[:, None]).solution
    fits[N] = (parts @ C)[:, 0]
    print(f"{N:2} states: the kernel is {fits[N][10]:.2f} at age 10")
assert fits[4][10] < 0.2 < fits[12][10] < 0.5 and abs(fits[24][10] - 1) < 1e-3

# %%
fig, axes = plt.subplots(1, 2, figsize=(8.8, 3), layout="constrained")
for n, line in enumerate(parts.T[:4]):
    axes[0].plot(line, label=f"state {n}")
for N, fit in fits.items():
    axes[1].plot(fit, ".-", label=f"{N} states")
for axis, title in zip(axes, ("The first four parts", "The best mixture for a look back at age 10"), strict=True):
    axis.set(xlabel="age k (steps)", ylabel="K[k]", title=title)
    axis.legend()
plt.show()
print("the first four are largest at the ages", parts[:, :4].abs().argmax(dim=0).tolist())

# %% [markdown]
# **What to see.** Left: the first four parts of 24. Each is largest at age 0; state 3 has a hump near age 10, but a low
# and broad one. Right: 4 states can only say "roughly then", 24 states can point at one step. There is a limit behind
# this. N numbers cannot hold more than N independent inputs. Whoever wants to hand out the input of 10 steps ago, at
# every step, must hold that one and the ten since then: eleven numbers at least. The 12 states here do not reach it,
# because LegS shares them among older inputs as well.
#
# ## 10. A layer that learns
#
# Now $C$ shall be learned from examples, together with the step size. The **linear state-space layer** (LSSL; Gu et
# al., arXiv 2110.13985) puts H such systems side by side, one for each channel. A channel does not see the others; the
# linear layers before and after mix them. Input and output are (B, L, H): batch, length, channels. Here is what ours
# does:
# - $A$ and $B$ are HiPPO-LegS, the same for all channels, and stay fixed. (The paper learns $A$, too, within a family
#   of structured matrices. Fixed is simpler and enough here. A free $A$ would let the poles leave the circle.)
# - Each channel learns its step size $\Delta$, as $\log \Delta$, so that it stays positive; its $C$; its skip $D$.
# - $\bar A$, $\bar B$ come from the bilinear rule of chapter 02. The eigenvalues of $A$ are -1, -2, ..., -N, and for
#   such the rule keeps the poles inside the circle, whatever $\Delta$.
# - `layer(u)` makes the kernels (H, L) and convolves by FFT. `layer.step(u_t, state)` makes one step of the recurrence.

# %%
torch.manual_seed(0)
layer = LSSL(H=4, N=24, delta_min=0.05, delta_max=0.2)
print({name: tuple(parameter.shape) for name, parameter in layer.named_parameters()})
A_bar, B_bar = layer.discretized()
inside = bool((torch.linalg.eigvals(A_bar).abs() < 1).all())
print("one A, four step sizes, so four A_bar:", tuple(A_bar.shape), " all poles inside the circle:", inside)
for channel in range(4):
    K = lti.kernel(A_bar[channel], B_bar[channel, :, None], layer.C[channel, None], 50)[:, 0, 0]
    assert close(layer.kernel(50)[channel], K)
assert inside

# %% [markdown]
# `layer.kernel` does not loop over L ages. It cuts an age into $k = jm + i$ with $m \approx \sqrt L$ and uses $K[jm +
# i] = (C \bar A^{jm})(\bar A^i \bar B)$: about $\sqrt L$ rows times about $\sqrt L$ columns. Training needs the
# intermediate results for the gradient, and these are far fewer than L vectors of N numbers.
#
# `layer.step` computes $\bar A$ and $\bar B$ anew at each call. That is simple, and right after every training step,
# but not fast: about $N^3$ multiplications per channel and token, where the step itself takes $N^2$. Diagonal matrices
# (chapter 04) make this price vanish.
#
# **Convolution and recurrence, once more.** One layer, two ways, the same outputs.


# %%
def run_by_steps(layer, u):
    """The recurrence, one token at a time: u (B, L, H) -> (B, L, H)."""
    state, outputs = layer.initial_state(len(u)), []
    for u_t in u.unbind(dim=1):
        y_t, state = layer.step(u_t, state)
        outputs.append(y_t)
    return torch.stack(outputs, dim=1)


u = torch.randn(2, 65, 4)
with torch.no_grad():
    same = close(layer(u), run_by_steps(layer, u), 1e-10)
print("output:", tuple(layer(u).shape), " convolution = recurrence:", same)
assert same

# %% [markdown]
# **The task: say what came 10 steps ago.** The input is noise, so nothing can be guessed: each number is independent of
# all others. Whoever has no memory can do no better than to answer 0, the mean. The mean squared error of that is 1,
# the variance of the input. A model that remembers can reach 0.
#
# Two models compete. Both map the input to a few channels and back. Between these, one has an LSSL, the other a network
# that looks at one step at a time.

# %%
LAG = 10


def train(model, steps=150, L=64):
    """Adam on fresh noise; the error of the last step."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(steps):
        u = torch.randn(16, L, 1, generator=generator)
        error = (model(u)[:, LAG:] - u[:, :-LAG]).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    return error.item()


def response(model, L=40):
    """What the whole model makes of an impulse, (L,); the answer to silence, which is the bias, is taken off."""
    with torch.no_grad():
        return (model(torch.eye(1, L)[..., None]) - model(torch.zeros(1, L, 1)))[0, :, 0]


# %%
torch.set_num_threads(1)  # the models are so small that two threads would mostly wait for each other
torch.manual_seed(0)
with_memory = nn.Sequential(nn.Linear(1, 4), LSSL(4, 24, 0.05, 0.2), nn.Linear(4, 1))
without = nn.Sequential(nn.Linear(1, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 1))
before = response(with_memory)
errors = {"without memory": train(without), "with an LSSL": train(with_memory)}
after = response(with_memory)
print("without memory, error above 0.9: ", errors["without memory"] > 0.9)
print("with an LSSL, error below 0.05:  ", errors["with an LSSL"] < 0.05)
assert errors["without memory"] > 0.9 and errors["with an LSSL"] < 0.05
assert torch.equal(with_memory[1].A, legs(24)[0])  # A was left alone

# %% [markdown]
# The model with the LSSL is linear from end to end, so it has one kernel as a whole. What has it learned?

# %%
fig, axes = plt.subplots(1, 2, figsize=(8.4, 2.7), layout="constrained")
for axis, curve, name in zip(axes, (before, after), ("Before training", "After training"), strict=True):
    axis.stem(curve, basefmt="grey", markerfmt=".")
    axis.set(xlabel="age k of an input (steps)", ylabel="K[k]", title=name)
plt.show()
print("the learned kernel looks at age", after.abs().argmax().item())
assert after.abs().argmax() == LAG and abs(after[LAG] - 1) < 0.1

# %% [markdown]
# **What to see.** Nobody told the model what a kernel is, or what 10 is. It saw inputs and wanted outputs, and found
# the mixture of section 9: a 1 at age 10, next to nothing elsewhere.
#
# **And now as a recurrence.** Trained as a convolution on 64 steps, run one token at a time on 500. The kernel was
# never used at such ages, but its tail has faded, so nothing goes wrong.

# %%
encoder, memory, decoder = with_memory
with torch.no_grad():
    u = torch.randn(4, 500, 1)
    by_steps = decoder(run_by_steps(memory, encoder(u)))
    at_once = with_memory(u)
    error = (by_steps[:, LAG:] - u[:, :-LAG]).square().mean()
same = close(by_steps, at_once, 1e-10)
print("same answers:", same, "  error still below 0.05:", (error < 0.05).item())
print("numbers kept from step to step:", memory.initial_state(1).numel(), "  inputs seen in the end:", u.shape[1])
assert same and error < 0.05

# %% [markdown]
# ## 11. Where the convolution ends
#
# The trained layer looks back 10 steps, whatever the input. Now a task where the age is not fixed: **repeat the last
# number that was marked.** One step in five is marked. To make it easy, the numbers that are not marked are already 0.
# What is the best that any kernel can do? No training is needed to find out. The output is linear in $K$, so least
# squares gives the best kernel.

# %%
generator = torch.Generator().manual_seed(0)
marked = torch.rand(4000, generator=generator) < 0.2
u = torch.where(marked, torch.randn(4000, generator=generator), 0.0)

h, wanted = 0.0, []
for mark, u_t in zip(marked.tolist(), u.tolist(), strict=True):
    h = (0 if mark else 1) * h + u_t  # forgets all and takes the new number, or keeps all
    wanted.append(h)
wanted = torch.tensor(wanted)
assert torch.equal(wanted[marked], u[marked])
print("steps:", len(u), " marked:", marked.sum().item())

# %%
windows = nn.functional.pad(u, (39, 0)).unfold(0, 40, 1)  # (4000, 40): row t holds the 40 inputs up to step t
flipped_kernel = torch.linalg.lstsq(windows, wanted[:, None]).solution[:, 0]
error = ((windows @ flipped_kernel - wanted).square().mean() / wanted.square().mean()).item()
print("the best kernel leaves more than a third of the variance unexplained:", error > 1 / 3)
fades = close(flipped_kernel.flip(0), 0.8 ** torch.arange(40), 0.1)  # 4,000 steps are a small sample
print("it is about 0.8^k:", fades)
assert error > 1 / 3 and fades

# %% [markdown]
# The best kernel fails. It weighs an input of age k by about $0.8^k$: that is the probability that no newer mark has
# come since. It can only bet. And look at the loop that made the wanted outputs: it is a state-space model with a
# *single* number as its state, and it is always right. The difference is that its factor depends on the token. It is 0
# at a mark, else 1. So let the factors change from step to step. Then (3.1) becomes
#
# $$h[t] = \bar A[t]\, h[t-1] + \bar B[t]\, u[t] \qquad\quad y[t] = C[t]\, h[t] \tag{3.9}$$
#
# Unroll it as in section 2. An input of step s enters through $\bar B[s]$, then it is multiplied by $\bar A[s+1]$,
# $\bar A[s+2]$, up to $\bar A[t]$, and read by $C[t]$:
#
# $$M[t, s] = C[t]\; \bar A[t]\, \bar A[t-1] \cdots \bar A[s+1]\; \bar B[s] \qquad (s \le t) \tag{3.10}$$
#
# Now $M$ depends on s and t, not on t - s alone. It is a matrix like the right one in section 5. This is the door to
# chapter 05, where the model learns to choose the factors. And it will come back in chapter 11, where it is read like
# an attention map: which token listens to which.
#
# ### Exercise 03.8 · The matrix of a changing system
#
# **Goal.** Build (3.10) for one state. **Difficulty.** investigate. **Minutes.** 12
#
# `a`, `b` and `c` are tensors (L,): the factors $\bar A[t]$, $\bar B[t]$, $C[t]$ of a system with one state. Some `a`
# may be 0. Return $M$, (L, L), such that `M @ u` is the output.
#
# Before you start: which entries must be 0 if `a[3]` is 0? Which entries hold no `a` at all?
#
# <details><summary>Hint</summary>
#
# Walk down the rows. A row of $M$ without its $C$ is the row above it times `a[t]`, plus `b[t]` on the diagonal: that
# is the recurrence (3.9), run on all impulses at once. Dividing products of all `a` by each other is shorter, but fails
# for an `a` of 0.
#
# </details>


# %%
def changing_matrix(a, b, c):
    """M[t, s] = c[t] a[t] ... a[s+1] b[s] where s <= t, else 0; a, b, c (L,) -> (L, L)."""
    # BEGIN SOLUTION
    L = len(a)
    row, rows = torch.zeros_like(b), []
    for t in range(L):
        row = a[t] * row
        row[t] = b[t]
        rows.append(c[t] * row)
    return torch.stack(rows)
    # END SOLUTION


# %%
check("03.8", changing_matrix)

# %% [markdown]
# ## What you built, and where it lives
#
# | what | where |
# |---|---|
# | the recurrence, and the kernel $K[k] = C \bar A^k \bar B$ | `minivim/lti.py`: `recurrence`, `kernel` |
# | the answer to an impulse in control's convention | `minivim/lti.py`: `impulse_response` |
# | the causal convolution by FFT | `minivim/lti.py`: `fft_convolution` |
# | the layer | `minivim/s4/lssl.py`: `LSSL`; import it from `minivim.s4` |
#
# The kernel of an LSSL is made from dense matrices: every doubling is a product of (N, N) matrices for each channel.
# For hundreds of channels and thousands of steps that is too slow. Chapter 04 finds matrices that make it fast, and
# says why HiPPO's are the ones to start from.
#
# ## Further reading
#
# - A. Gu et al., *Combining Recurrent, Convolutional, and Continuous-time Models with Linear State-Space Layers*
#   (LSSL), 2021, arXiv 2110.13985.
# - A. Gu, K. Goel, C. Ré, *Efficiently Modeling Long Sequences with Structured State Spaces* (S4), 2021, arXiv
#   2111.00396. Section 2 is this chapter in two pages.
# - J. W. Cooley, J. W. Tukey, *An Algorithm for the Machine Calculation of Complex Fourier Series*, 1965.
# - A. V. Oppenheim, R. W. Schafer, *Discrete-Time Signal Processing*. The textbook on linear time-invariant systems.
# - E. Martin, C. Cundy, *Parallelizing Linear Recurrent Neural Nets Over Sequence Length*, 2017, arXiv 1709.04057. The
#   way without a kernel, for chapter 06.
