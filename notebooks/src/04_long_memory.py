# %% [markdown]
# # 04 · Long memory: HiPPO, S4, DSS, S4D
#
# A state of 64 numbers can remember a thousand. This chapter shows how, in a picture that moves. Then it makes that
# memory fast enough to train: first S4, with three pieces of algebra, then S4D, which needs two lines. At the end both
# read handwritten digits pixel by pixel.
#
# **Learning goals.** After this chapter you can
# - say what the numbers in a HiPPO state are, compute two of them by hand, and draw the past from them;
# - write down the matrix HiPPO-LegS, and say where each of its parts comes from;
# - compare memories: what a state knows about the input of long ago;
# - derive S4's kernel: generating function, roots of unity, diagonal plus low rank, Woodbury;
# - write S4D's kernel in two lines, and say what it gives up;
# - say where complex numbers are needed, and why Mamba has none;
# - filter an image with S4ND, and train S4D and S4 on pixel sequences.
#
# **Prerequisites.** Chapter 02: from $A$, $B$ and a step size $\Delta$ to $\bar A$ and $\bar B$. Chapter 03: the kernel
# $K[k] = C \bar A^k \bar B$, convolution by FFT, poles. Integrals of polynomials. Complex numbers.
#
# **Time.** 120 minutes with the exercises. All cells together run for about a minute; most of it is training.

# %%
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from minivim import lti
from minivim.course import check
from minivim.data import load_data
from minivim.data.augment import normalise
from minivim.discretize import discretize
from minivim.figures import flipbook
from minivim.hippo import basis, dplr, legs, legt, reconstruct, remember
from minivim.s4 import DSS, S4, S4D, S4ND
from minivim.s4.generating import dplr_kernel, initial_system

plt.rcParams["figure.dpi"] = 75

# %% [markdown]
# We compute in float64 until the training starts. Two results count as equal if no number differs by more than a
# tolerance, which is $10^{-12}$ unless a check says otherwise.

# %%
torch.set_default_dtype(torch.float64)


def close(one, other, tolerance=1e-12):
    """Whether no two numbers differ by more than `tolerance`."""
    return bool((one - other).abs().max() <= tolerance)


assert close(torch.ones(2), torch.ones(2)) and not close(torch.ones(2), torch.ones(2) + 1e-11)

# %% [markdown]
# ## 1. Two numbers remember a line
#
# You are told numbers, one after the other, and may keep only **one**. Which one tells most about the past? The mean is
# a good answer. It can be kept up to date without the old numbers: at the k-th input, the mean moves by a k-th of the
# way towards it. Inputs 8, 0, 4 give the means 8, 4, 4.
#
# With **two** numbers you can keep a trend as well. Squeeze the whole past into the interval from $x = 0$ (the
# beginning) to $x = 1$ (now). Then keep
#
# $$h_0 = \int_0^1 u(x)\,dx \qquad\qquad h_1 = \int_0^1 u(x)\,\sqrt3\,(2x-1)\,dx \tag{4.1}$$
#
# $h_0$ is the mean. In $h_1$ the recent half counts with a plus sign and the older half with a minus sign, so it
# measures whether the input rises. The $\sqrt3$ gives the function $g_1(x) = \sqrt3\,(2x - 1)$ the length 1: the
# integral of its square is 1. From the two numbers, the past is drawn again as a straight line:
#
# $$u(x) \approx h_0 + h_1\,\sqrt3\,(2x-1)$$
#
# **By hand.** The input was 2 during the first half and 6 during the second. The mean is $h_0 = 4$. The integral of
# $2x - 1$ over the first half is $-\tfrac14$, over the second half $+\tfrac14$. So $h_1 = \sqrt3\,(-\tfrac14 \cdot 2 +
# \tfrac14 \cdot 6) = \sqrt3 = 1.73$. The line is $4 + 3\,(2x-1)$. It rises from 1 to 7. In the middle of the first half
# it is 2.5, where the truth is 2; in the middle of the second half it is 5.5, where the truth is 6.

# %%
x = (torch.arange(1000) + 0.5) / 1000  # the middles of a thousand strips: sums over them are integrals
u = torch.where(x < 0.5, 2.0, 6.0)
g_1 = math.sqrt(3) * (2 * x - 1)
h_0, h_1 = u.mean(), (u * g_1).mean()
line = h_0 + h_1 * g_1  # (1000,)
print(f"h_0 = {h_0:.3g}, h_1 = {h_1:.3g}; the line runs from {line[0]:.2g} to {line[-1]:.2g}")
assert math.isclose(h_0, 4) and math.isclose(h_1, math.sqrt(3))

# %% [markdown]
# ### Exercise 04.1 · Read the line
#
# **Goal.** Draw a past from two numbers. **Difficulty.** recall. **Minutes.** 3
#
# Given the floats `h_0`, `h_1` and a position `x` between 0 (the beginning) and 1 (now), return the value of the line.
#
# <details><summary>Hint</summary>
#
# It is the formula above. At $x = \tfrac12$ the line goes through the mean.
#
# </details>


# %%
def read_line(h_0, h_1, x):
    """The remembered input at position x of the past; all floats."""
    # BEGIN SOLUTION
    return h_0 + h_1 * math.sqrt(3) * (2 * x - 1)
    # END SOLUTION


# %%
check("04.1", read_line)

# %% [markdown]
# ## 2. N numbers remember a curve
#
# Go on with curves of degree 2, 3, and so on. The functions that fit together are the **Legendre polynomials** $P_n$.
# Scaled to the interval from 0 to 1 and to length 1, they are
#
# $$g_n(x) = \sqrt{2n+1}\; P_n(2x-1): \qquad g_0 = 1, \quad g_1 = \sqrt3\,(2x-1), \quad g_2 = \sqrt5\,(6x^2 - 6x + 1),
# \;\dots$$
#
# They are **orthonormal**: the integral of $g_n g_k$ is 1 if $n = k$ and 0 if not. So they behave like perpendicular
# axes in space. Each number of the state is the coordinate along one axis, and the past is drawn by adding up:
#
# $$h_n = \int_0^1 u(x)\, g_n(x)\, dx \qquad\qquad u(x) \approx \sum_{n=0}^{N-1} h_n\, g_n(x) \tag{4.2}$$
#
# Of all polynomials of degree below N, this sum is the one with the smallest mean squared error. For a projection onto
# perpendicular axes is always the nearest point. The package's `basis` gives the functions.

# %%
G = basis(64, x)  # (1000 positions, 64 functions)
products = G[:, :8].T @ G[:, :8] / 1000  # the integrals of g_n g_k, as sums over the strips
print("integrals of g_n g_k, up to 0.001 the identity:", close(products, torch.eye(8), 1e-3))
assert close(products, torch.eye(8), 1e-3)  # not exact, because the strips have a width
assert close(G[:, 2], math.sqrt(5) * (6 * x**2 - 6 * x + 1))

# %%
fig, axis = plt.subplots(figsize=(6, 2.9), layout="constrained")
for n in range(5):
    axis.plot(x, G[:, n], label=f"$g_{n}$")
axis.set(xlabel="position x in the past (0: the beginning, 1: now)", ylabel="$g_n(x)$", title="The axes of memory")
axis.legend(ncols=5, loc="lower center", fontsize=8)
plt.show()
now = basis(5, torch.ones(1))[0]
print("at x = 1 (now) they are the square roots of 1, 3, 5, 7, 9:", [f"{value:.2f}" for value in now])
assert close(now, torch.tensor([1.0, 3.0, 5.0, 7.0, 9.0]).sqrt())

# %% [markdown]
# **What to see.** $g_n$ crosses zero n times, so later functions see finer detail. All meet "now" at their highest
# value, $\sqrt{2n+1}$. Keep this in mind: it will be $B$.
#
# ## 3. A memory that updates itself
#
# So far we needed the whole past to compute the state. The discovery of HiPPO (high-order polynomial projection
# operators) is that nobody needs it: the state can be kept up to date from itself and the newest input. Let $t$ be the
# time since the beginning. Two things happen while time moves on.
#
# - **A new input arrives** at $x = 1$. There $g_n(1) = \sqrt{2n+1}$. So $h_n$ receives $\sqrt{2n+1}\; u(t)$.
# - **All older inputs are squeezed.** What was at time $s$ has the position $x = s/t$. This shrinks as $t$ grows. Each
#   moment of the past slides to the left, under another part of each $g_n$. So the coordinates change. The change of
#   $h_n$ turns out to be a sum of $h_0, \dots, h_n$ with fixed weights. Such weights form a lower triangular matrix.
#
# Both happen at the rate $1/t$: one more second means much to a memory of ten seconds, and little to one of a thousand.
# The result is a state-space model:
#
# $$h'(t) = \frac1t \bigl(A\,h(t) + B\,u(t)\bigr) \qquad
# A_{nk} = -\begin{cases} \sqrt{(2n+1)(2k+1)} & k < n \\ n+1 & k = n \\ 0 & k > n \end{cases}
# \qquad B_n = \sqrt{2n+1} \tag{4.3}$$
#
# *HiPPO, arXiv 2008.07669, Theorem 2.* It is called **LegS**, scaled Legendre. Mind the sign: HiPPO's paper writes
# $h' = -\tfrac1t A h + \tfrac1t B u$ with positive entries in $A$. S4 and we put the minus inside $A$. So $A$ is
# stable: it is triangular, and its eigenvalues are its diagonal, $-1, -2, \dots, -N$.
#
# For N = 1 this is $h' = (u - h)/t$: the running mean, moving towards the input by a share that shrinks with time.
#
# <details><summary>Where A comes from, in five lines</summary>
#
# With $x = s/t$, (4.2) reads $h_n(t) = \frac1t \int_0^t u(s)\, g_n(s/t)\, ds$. Take the derivative by $t$. The upper
# limit gives $\frac1t u(t) g_n(1)$. The factor $\frac1t$ gives $-\frac1t h_n$. And $g_n(s/t)$ gives $-\frac1t \int_0^1
# u(xt)\, x\, g_n'(x)\, dx$. Now $x\,g_n'(x)$ is a polynomial of degree n, so it is a sum of $g_0 \dots g_n$: the
# identity for Legendre polynomials is $x\, g_n' = n\, g_n + \sum_{k<n} \sqrt{(2n+1)(2k+1)}\, g_k$. Put it in and
# collect.
#
# </details>
#
# The identity in the fold is the only thing one has to believe: $-(g_n + x\,g_n') = \sum_k A_{nk}\, g_k$. We check it
# for N = 8, with the derivative taken as a difference.

# %%
A, B = legs(8)
step = 1e-6
derivative = (basis(8, x + step) - basis(8, x - step)) / (2 * step)  # g_n'(x)
rates = -(basis(8, x) + x[:, None] * derivative)  # what sliding does to each axis: -(g_n + x g_n')
print("A h is what sliding does to the state:", close(rates, basis(8, x) @ A.T, 1e-6))
assert close(rates, basis(8, x) @ A.T, 1e-6)  # the difference is not quite the derivative
assert close(B, basis(8, torch.ones(1))[0])

# %% [markdown]
# ### Exercise 04.2 · The LegS matrix
#
# **Goal.** Build $A$ and $B$ of (4.3). **Difficulty.** recall. **Minutes.** 6
#
# For a number `N`, return the pair `(A, B)` of shapes (N, N) and (N,), float64. The indices n and k count from 0.
#
# <details><summary>Hint</summary>
#
# `torch.outer(B, B)` holds all products $\sqrt{2n+1}\sqrt{2k+1}$. `torch.tril(X, diagonal=-1)` keeps what is strictly
# below the diagonal. Two loops over n and k are fine, too.
#
# </details>


# %%
def legs_matrices(N):
    """(A, B) of HiPPO-LegS, stable: A (N, N), B (N,)."""
    # BEGIN SOLUTION
    n = torch.arange(N, dtype=torch.float64)
    B = torch.sqrt(2 * n + 1)
    return -torch.tril(torch.outer(B, B), diagonal=-1) - torch.diag(n + 1), B
    # END SOLUTION


# %%
check("04.2", legs_matrices)

# %% [markdown]
# **In steps.** The factor $1/t$ makes (4.3) time-varying: $A/t$ is another matrix at each moment. There is a trick. Use
# another clock, $\tau = \log t$. On it a second lasts $1/t$, so $dh/d\tau = A\,h + B\,u$, and this is time-invariant.
# The step from $t = k$ to $t = k + 1$ has the length $\Delta = \log\frac{k+1}{k}$ on the new clock, and zero-order hold
# (chapter 02) makes it exact for samples that are held. For N = 1: $\bar A = e^{-\Delta} = \frac{k}{k+1}$ and $\bar B =
# \frac{1}{k+1}$, the running mean to the last digit.


# %%
def remember_by_loop(u, N):
    """The LegS state after each input, (L, N); input k lasts from time k to time k + 1."""
    A, B = legs(N)
    h = torch.zeros(N)
    h[0] = u[0]  # a past that is constant: mean u[0], nothing else
    states = [h]
    for k in range(1, len(u)):
        A_bar, B_bar = discretize(A, B[:, None], math.log((k + 1) / k), "zoh")
        h = A_bar @ h + B_bar[:, 0] * u[k]
        states.append(h)
    return torch.stack(states)


# %%
means = remember_by_loop(torch.tensor([8.0, 0.0, 4.0]), 1)[:, 0]
line = remember_by_loop(torch.tensor([2.0, 6.0]), 2)[-1]
print("running means of 8, 0, 4:", [round(mean) for mean in means.tolist()])
print("section 1, the line for 2 and then 6:", [f"{number:.3g}" for number in line])
noise = torch.randn(50, generator=torch.Generator().manual_seed(0))
assert close(remember_by_loop(noise, 8), remember(noise, 8), 1e-10)  # the package's

# %% [markdown]
# ## 4. A thousand in sixty-four
#
# Now the picture that this chapter is for. The signal has 1,000 samples. At each step the state, 64 numbers, is all
# that is kept. At twelve moments we stop and draw the past from the state alone, by (4.2).

# %%
time = torch.linspace(0, 1, 1000)
signal = torch.sin(2 * math.pi * (3 * time + 6 * time**2)) * (0.4 + time) + 0.5 * torch.sign(torch.sin(11 * time))
states = remember(signal, 64)
print("samples:", len(signal), " numbers in each state:", states.shape[1])


# %%
def recall(steps):
    """The past of the first `steps` samples, drawn from the state at that time."""
    return reconstruct(states[steps - 1], (torch.arange(steps) + 0.5) / steps)


def error(steps):
    """Root mean squared error of the drawing, in parts of the signal's own root mean square."""
    return ((recall(steps) - signal[:steps]).square().mean() / signal.square().mean()).sqrt().item()


print(f"error after 1000 steps: {error(1000):.1%}")
assert error(1000) < 0.15


# %%
def draw_memory(figure, steps):
    past, state = figure.subplots(2, 1, height_ratios=[2, 1])
    past.plot(signal[:steps], color="black", linewidth=2.5, alpha=0.35, label="signal")
    past.plot(recall(steps), color="tab:red", linewidth=1, label="drawn from the state")
    past.set(xlim=(0, 1000), ylim=(-2.6, 2.6), xlabel="sample", ylabel="signal")
    past.set_title(f"after {steps} samples: error {error(steps):.1%}")
    past.legend(loc="upper left", fontsize=7)
    state.bar(range(64), states[steps - 1], color="tab:blue")
    state.set(ylim=(-1.1, 1.1), ylabel="$h_n$", xlabel="n: the 64 numbers of the state")


# %%
moments = [20, 60, 120, 180, 250, 340, 440, 550, 660, 770, 880, 1000]
print("frames:", len(moments), " largest error among them below 20 %:", max(map(error, moments)) < 0.2)
flipbook(draw_memory, moments, "A state of 64 numbers draws a past of up to a thousand samples")

# %% [markdown]
# **What to see.** Press *play*. Grey: what really happened. Red: what the state believes. It holds the whole past at
# every moment, from the first sample to the last. Smooth parts are all but exact. The red line fails at one kind of
# place, the three jumps of the signal: no polynomial can jump. And as the past grows, the same 64 numbers must serve
# more of it: the corners at a jump grow rounder. Lower picture: with more ups and downs to remember, later numbers are
# needed.
#
# **No step size.** Play the signal at half the speed, each sample twice. The state at the end is the same, because only
# the *share* of time counts. Most models of sequences cannot do this.

# %%
slow = remember(signal[:300].repeat_interleave(2), 64)[-1]
print("half the speed leaves the same state:", close(slow, states[299], 1e-9))
assert close(slow, states[299], 1e-9)

# %% [markdown]
# ## 5. What does a state know?
#
# Is HiPPO's matrix special, or would any matrix do? Chapter 01 taught how to ask. A state is a linear function of the
# past, $h = M u$ with a matrix $M$ (N, L). Let the L inputs be Gaussian with mean 0, variance 1 and the covariance $S$
# (L, L), and let $h$ be read with a small noise of covariance $R$ (N, N). What is left to guess about the inputs is
# then Gaussian, too. Its covariance is that of the Kalman filter, (1.7) and (1.8), with $M$ in the place of $C$ and $S$
# in the place of $P$:
#
# $$S - S M^\top (M S M^\top + R)^{-1} M S$$
#
# The diagonal holds one variance for each input. Its square root is 1 if the state knows nothing of that input, and 0
# if it knows all.
#
# We let the inputs be smooth: inputs less than about 15 steps apart resemble each other. And each number of the state
# is read with a noise of 1 % of its own standard deviation. Otherwise differences in the twelfth digit would count as
# memory.

# %%
L, N = 500, 32
ages = torch.arange(L - 1.0, -1, -1)  # of the inputs 0 .. L - 1; the last has age 0
S = torch.exp(-((ages[:, None] - ages) ** 2) / (2 * 15**2))  # covariance of the inputs


def left_to_guess(M):
    """Standard deviation of each input once the state M u is known up to 1 %; M (N, L) -> (L,)."""
    seen = M @ S
    covariance = seen @ M.T
    R = torch.diag(0.01**2 * covariance.diagonal())
    return (S - seen.T @ torch.linalg.solve(covariance + R, seen)).diagonal().clamp(min=0).sqrt()


# %%
all_kept, last_kept = left_to_guess(torch.eye(L)), left_to_guess(torch.eye(L)[-1:])
print(f"all inputs kept: below the noise, {(all_kept < 0.01).all()}; only the last kept: first {last_kept[0]:.2f}")
assert all_kept.max() < 0.01 and last_kept[0] > 0.999

# %% [markdown]
# Four states of 32 numbers compete:
# - **LegS**: the whole past.
# - **LegT**, translated Legendre: the same polynomials on a window of the last 200 steps. Its matrix is in
#   `minivim.hippo`; here $1/t$ is replaced by $1/200$.
# - **Random**: $\bar A$ is a random rotation, times 0.99. So all its poles have the radius 0.99, all 32 states fade
#   slowly, and it has a fair chance.
# - **Slow turns**: 16 complex numbers, which are 32 real ones. Each has a pole of radius 0.99, too, but the angles are
#   chosen: evenly spread between 0.01 and 0.2.


# %%
def trace(A_bar, B_bar):
    """What each input leaves in each state at the end: the matrix M (N, L) of a time-invariant system."""
    identity = torch.eye(len(A_bar), dtype=A_bar.dtype)
    return lti.kernel(A_bar, B_bar, identity, L)[:, :, 0].flip(0).T  # the impulse of age k leaves A_bar^k B_bar


# %%
generator = torch.Generator().manual_seed(0)
A_random = 0.99 * torch.linalg.qr(torch.randn(N, N, generator=generator)).Q
B_random = torch.randn(N, 1, generator=generator)
turning = 0.99 * torch.exp(1j * torch.linspace(0.01, 0.2, N // 2))
M_turning = trace(torch.diag(turning), torch.ones(N // 2, 1, dtype=turning.dtype))  # complex (N/2, L)
A, B = legt(N)
memories = {
    "LegS, the whole past": basis(N, (torch.arange(L) + 0.5) / L).T / L,
    "LegT, window of 200": trace(*discretize(A, B[:, None], 1 / 200, "zoh")),
    "random": trace(A_random, B_random),
    "slow turns": torch.cat((M_turning.real, M_turning.imag)),
}
angles = torch.linalg.eigvals(A_random).angle().abs()
print("poles of the random one:", N, " with an angle below 0.2:", (angles < 0.2).sum().item())

# %%
unknown = {name: left_to_guess(M) for name, M in memories.items()}
for name, deviation in unknown.items():
    young, old = deviation[-200:].mean(), deviation[:-200].mean()
    print(f"{name:>20}: on the mean {young:.2f} below age 200, {old:.2f} above")
assert unknown["LegS, the whole past"].mean() < unknown["slow turns"].mean() < unknown["random"].mean() / 2

# %%
fig, axis = plt.subplots(figsize=(6.5, 2.9), layout="constrained")
for name, deviation in unknown.items():
    axis.plot(ages, deviation, label=name)
axis.set(xlabel="age of the input (steps)", ylabel="left to guess (0 to 1)", title="What 32 numbers know")
axis.legend(loc=(0.5, 0.42))
plt.show()
known = {name: (deviation < 0.5).sum().item() for name, deviation in unknown.items()}
print(
    "LegS knows all ages better than 0.5:",
    known["LegS, the whole past"] == L,
    "; random: fewer than half:",
    known["random"] < L / 2,
)

# %% [markdown]
# **What to see.** LegS is low everywhere. LegT is lower inside its window and knows nothing beyond it. The random
# matrix has the same number of states, and they fade as slowly as anybody could wish. But most pairs of poles turn by a
# large angle in every step, and a smooth input averages away in a state that turns fast. Our inputs hardly swing faster
# than 0.2 radians a step (their spectrum is a bell of the width 1/15), and only one pole of 32 turns as slowly as that.
# With slow angles, poles of the same radius know even more than LegS, up to an age of about 350. So HiPPO's matrix is
# not the only memory. But nobody had to tell it how fast the inputs swing. (The dip of the green line at the far right
# is the beginning of the input. Before it there was silence, and a state that swings fast notices such a jump.)
#
# ## 6. S4 stops the clock
#
# S4 (arXiv 2111.00396) takes LegS's $A$ and $B$ and **leaves out the $1/t$**. Then the system is time-invariant, a
# convolution, and all of chapter 03 applies. Instead of $1/t$ there is a step size $\Delta$ that each channel learns.
#
# But is it still a memory? HiPPO's theorem was about (4.3), with $1/t$. For a while nobody could say why it works
# without. The answer (arXiv 2206.12037) is short. On the clock $\tau = \log t$ nothing was left out: LegS *is*
# time-invariant there. S4 lets its steps run on that clock, each as long as $\Delta$. An input of age $\tau$ on that
# clock has the position $x = e^{-\tau}$. So
#
# $$\bigl(e^{\tau A} B\bigr)_n = e^{-\tau}\, g_n(e^{-\tau}) \tag{4.4}$$
#
# The left side is what an impulse leaves in state n after a time $\tau$. The right side is $g_n$ at its position, times
# the width that an input of width 1 on the clock has on the axis of x: $dx = e^{-\tau} d\tau$, up to the sign. S4
# remembers the past through Legendre polynomials, squeezed by an exponential: fine detail for what is recent, coarse
# for what is long ago. $\Delta$ decides how many steps fit into a unit of $\tau$; about $1/\Delta$ steps are remembered
# well.

# %%
A, B = legs(N)
tau = torch.linspace(0, 4, 161)
A_bar, _ = discretize(A, B[:, None], 4 / 160, "zoh")
responses = lti.kernel(A_bar, B[:, None], torch.eye(N), 161)[:, :, 0]  # exp(tau A) B, from exp(A / 40) applied often
warped = torch.exp(-tau)[:, None] * basis(N, torch.exp(-tau))
print("equation 4.4 holds for", N, "states:", close(responses, warped, 1e-8))
assert close(responses, warped, 1e-8)

# %%
fig, axis = plt.subplots(figsize=(6.5, 2.7), layout="constrained")
for n in (0, 1, 2, 4, 8):
    axis.plot(tau, responses[:, n], label=f"state {n}")
axis.set(
    xlabel=r"age $\tau$ of the impulse", ylabel=r"$(e^{\tau A} B)_n$", title="What an impulse leaves in S4's states"
)
axis.legend(ncols=5, fontsize=8)
plt.show()
crossings = (responses[:-1, 8] * responses[1:, 8] < 0).sum().item()
print(
    "state 8 crosses zero",
    crossings,
    "times, as g_8 does; the first crossing is at",
    f"{tau[(responses[:, 8] < 0).nonzero()[0]].item():.2g}",
)
assert crossings == 8

# %% [markdown]
# **What to see.** The polynomials of section 2, mirrored and squeezed: now is at the left. State 8 swings fast while an
# input is fresh and slowly when it is old.
#
# ## 7. S4: the kernel, four times
#
# A layer with H = 64 channels, N = 64 states and L = 1,000 steps needs 64 kernels of 1,000 numbers. The kernel by
# repeated products (chapter 03) takes $N^2 L$ multiplications for each channel, one after the other, and back again for
# the gradient, at each step of the training. S4 needs a multiple of $N L$, all at once. The way has four stations. We
# walk it with N = 4 and L = 16, and check each station against the one before.
#
# **Station 1: the naive kernel.** A loop. It is slow and surely right.

# %%
N, L, delta = 4, 16, 0.2
A, B = legs(N)
C = torch.tensor([1.0, -0.5, 0.3, 0.8])
A_bar, B_bar = discretize(A, B[:, None], delta, "bilinear")
column, naive = B_bar[:, 0], []
for _ in range(L):
    naive.append(C @ column)
    column = A_bar @ column
naive = torch.stack(naive)
print("first numbers of K:", [f"{number:.2f}" for number in naive[:4].tolist()])
assert close(naive, lti.kernel(A_bar, B_bar, C[None], L)[:, 0, 0])

# %% [markdown]
# **Station 2: the generating function.** The powers of $\bar A$ are the trouble. Do not compute the numbers $K[k]$, but
# their sum, weighted with the powers of a number $z$:
#
# $$\hat K(z) = \sum_{k=0}^{L-1} K[k]\, z^k = C \Bigl( \sum_{k=0}^{L-1} (\bar A z)^k \Bigr) \bar B
# = C\,\bigl(I - \bar A^L z^L\bigr)\,\bigl(I - \bar A z\bigr)^{-1} \bar B \tag{4.5}$$
#
# *S4, section 3.2 and Appendix C.3.* It is the geometric sum: $1 + q + \dots + q^{L-1} = (1 - q^L)/(1-q)$, with a
# matrix in the place of q. All powers but one have become one inverse. And the one that is left does not depend on $z$,
# if we choose $z$ well. Take the L-th **roots of unity**, $z_j = e^{-2\pi i j/L}$, the L complex numbers whose L-th
# power is 1. Then $\tilde C = C\,(I - \bar A^L)$ is the same for all of them and is computed once. And $\hat K(z_j) =
# \sum_k K[k]\, e^{-2\pi i jk/L}$ is, letter by letter, the discrete Fourier transform of $K$, (3.5). Its inverse gives
# $K$.

# %%
z = torch.exp(-2j * math.pi / L * torch.arange(L))
C_tilde = (C @ (torch.eye(N) - torch.linalg.matrix_power(A_bar, L))).to(z)
resolvents = torch.linalg.inv(torch.eye(N) - z[:, None, None] * A_bar)  # (L, N, N): one inverse for each root
generating = (C_tilde @ resolvents @ B_bar.to(z))[:, 0]
by_roots = torch.fft.ifft(generating)
print(
    "the inverse transform is real:",
    by_roots.imag.abs().max().item() < 1e-12,
    " and equals the naive kernel:",
    close(by_roots.real, naive),
)
assert close(generating, torch.fft.fft(naive))
assert close(by_roots.real, naive) and by_roots.imag.abs().max() < 1e-12

# %% [markdown]
# ### Exercise 04.3 · The generating function at one point
#
# **Goal.** Sum L terms without a loop over L. **Difficulty.** derive. **Minutes.** 8
#
# Return $\hat K(z)$ of (4.5) for any complex number `z`, not only for roots of unity. `A_bar` (N, N), `B_bar` (N, 1),
# `C` (1, N) are float64 tensors, `L` is a whole number, `z` a Python complex number. The result is a complex number or
# a complex tensor with one element and no dimensions.
#
# <details><summary>Hint</summary>
#
# Make the matrices complex first: `A_bar.to(torch.complex128)`. `torch.linalg.matrix_power(X, L)` is $X^L$, and
# `torch.linalg.solve(X, Y)` is $X^{-1} Y$. Do not forget $z^L$: it is 1 for a root of unity only.
#
# </details>


# %%
def generating_function(A_bar, B_bar, C, L, z):
    """Sum of C A_bar^k B_bar z^k for k = 0 .. L - 1; A_bar (N, N), B_bar (N, 1), C (1, N), z complex -> complex."""
    # BEGIN SOLUTION
    step = z * A_bar.to(torch.complex128)
    identity = torch.eye(len(A_bar), dtype=torch.complex128)
    truncated = C.to(torch.complex128) @ (identity - torch.linalg.matrix_power(step, L))
    return (truncated @ torch.linalg.solve(identity - step, B_bar.to(torch.complex128)))[0, 0]
    # END SOLUTION


# %%
check("04.3", generating_function)

# %% [markdown]
# **Station 3: back to the continuous A.** There are L inverses of (N, N) matrices now. That is no gain, unless the
# matrices are simple. $\bar A$ is not, so we put in the bilinear rule, $\bar A = (I - \tfrac\Delta2 A)^{-1} (I +
# \tfrac\Delta2 A)$ and $\bar B = (I - \tfrac\Delta2 A)^{-1} \Delta B$, and let the brackets cancel:
#
# $$(I - \bar A z)^{-1} \bar B = 2\, \Bigl( \tfrac{2(1 - z)}{\Delta}\, I - (1 + z)\, A \Bigr)^{-1} B \tag{4.6}$$
#
# *S4, Appendix C.3; the paper divides by $1 + z$, which fails at $z = -1$.* In two lines: $(I - \bar A z)^{-1} \bar B$
# does not change if $I - \bar A z$ and $\bar B$ are both multiplied by $I - \tfrac\Delta2 A$ from the left. That gives
# $\bigl((I - \tfrac\Delta2 A) - z (I + \tfrac\Delta2 A)\bigr)^{-1} \Delta B$. Sort by $I$ and $A$, and divide by
# $\Delta/2$.
#
# What is to be inverted is now $A$ plus a multiple of the identity. If $A$ were **diagonal**, $A =
# \operatorname{diag}(\lambda_n)$, this would be one division for each n. For each root
#
# $$\hat K(z) = \sum_{n} \frac{2\,\tilde C_n B_n}{r(z) - (1+z)\,\lambda_n} \qquad\text{with}\quad r(z) =
# \tfrac{2(1-z)}\Delta \tag{4.7}$$
#
# Such a matrix of numbers, one over a difference of rows and columns, is called a **Cauchy matrix**.

# %%
points = 2 * (1 - z) / delta  # r(z)
shifted = points[:, None, None] * torch.eye(N) - (1 + z)[:, None, None] * A
continuous = 2 * (C_tilde @ torch.linalg.inv(shifted) @ B[:, None].to(z))[:, 0]
print("with the continuous A, the same at all", L, "roots:", close(continuous, generating))
assert close(continuous, generating)

# %% [markdown]
# **Can LegS be made diagonal?** Any matrix with N different eigenvalues can: $A = V \Lambda V^{-1}$, and in the basis
# $V$ the state has a diagonal $A$. But look at $V$. The *condition number* of a matrix says by how much it can magnify
# an error. The eigenvectors of LegS become almost parallel, and their condition number explodes.

# %%
sizes = [4, 8, 12, 16, 20]
conditions = [torch.linalg.cond(torch.linalg.eig(legs(size)[0])[1]).item() for size in sizes]
print("condition at N = 4 below 1e3:", conditions[0] < 1e3, "; at N = 20 above 1e12:", conditions[-1] > 1e12)
assert conditions[0] < 1e3 and conditions[-1] > 1e12

# %% [markdown]
# At N = 20, an error in the twelfth digit can grow larger than the number itself. Float32, with its 7 digits, is lost
# at N = 12, as the picture below shows. *S4, Lemma 3.2.*
#
# But one small change makes LegS harmless. Add $\tfrac12\sqrt{(2n+1)(2k+1)}$ to every entry. Below the diagonal
# $-\sqrt{\dots}$ becomes $-\tfrac12\sqrt{\dots}$, above it 0 becomes $+\tfrac12\sqrt{\dots}$, and the diagonal becomes
# $-(n+1) + \tfrac12(2n+1) = -\tfrac12$. What was added is a matrix of **rank one**, $P P^\top$ with $P_n = \sqrt{n +
# \tfrac12}$. The sum is $-\tfrac12 I$ plus a skew-symmetric matrix: its transpose is its negative. Such a sum is
# *normal*: its eigenvectors are perpendicular, their condition number is 1, the best there is. Its eigenvalues are
# $-\tfrac12$ plus an imaginary number, and come in conjugate pairs. Here the complex numbers enter.
#
# $$A = V \bigl( \Lambda - P_V P_V^* \bigr) V^* \qquad P_V = V^* P \qquad \operatorname{Re} \Lambda_n =
# -\tfrac12 \tag{4.8}$$
#
# *S4, Theorem 1; S4D, arXiv 2206.11893, section 4.* The star is the conjugate transpose. This is **DPLR**, diagonal
# plus low rank, S4's form of HiPPO. In the basis $V$ the other two are $V^* B$ and $\tilde C V$. From here on $P$, $B$
# and $\tilde C$ are meant in this basis, without a mark.

# %%
A_16, B_16 = legs(16)
normal = A_16 + torch.outer(B_16, B_16) / 2  # P P^T = B B^T / 2
Lambda, P, B_V, V = dplr(16)
rebuilt = V @ (torch.diag(Lambda) - torch.outer(P, P.conj())) @ V.mH
print(
    "condition of V:", round(torch.linalg.cond(V).item(), 3), " all real parts -1/2:", bool((Lambda.real == -0.5).all())
)
assert close(normal + normal.T, -torch.eye(16))  # -1/2 I plus a skew-symmetric matrix
assert close(rebuilt, A_16, 1e-11)

# %%
fig, axes = plt.subplots(1, 3, figsize=(9, 2.9), layout="constrained", width_ratios=[1, 1, 1.3])
for axis, matrix, name in zip(axes, (A_16, normal), ("LegS, N = 16", "LegS plus rank one"), strict=False):
    axis.imshow(matrix, cmap="RdBu", vmin=-30, vmax=30)
    axis.set(xlabel="k", ylabel="n", title=name, xticks=[0, 5, 10, 15], yticks=[0, 5, 10, 15])
axes[2].semilogy(sizes, conditions, "o-", label="LegS")
axes[2].semilogy(sizes, [torch.linalg.cond(dplr(size).V).item() for size in sizes], "s-", label="LegS plus rank one")
axes[2].set(xlabel="N", ylabel="condition number", title="Eigenvectors", xticks=sizes)
axes[2].legend()
plt.show()
print("condition numbers drawn:", 2 * len(sizes))

# %% [markdown]
# **What to see.** Red is negative, blue positive, white is 0. Left: LegS, all below the diagonal or on it. Middle:
# after adding a matrix of rank one, the upper half is the mirror image of the lower one, with the opposite sign. Right,
# on a logarithmic axis: for LegS, errors grow by a constant factor with every state. For the normal matrix they do not
# grow.
#
# **Station 4: Woodbury.** $A$ is diagonal, up to rank one. The inverse in (4.6) is the inverse of a diagonal matrix,
# up to rank one. There is a formula for that (Sherman and Morrison for rank one, Woodbury in general):
#
# $$(X + p\,q^*)^{-1} = X^{-1} - \frac{X^{-1} p\; q^* X^{-1}}{1 + q^* X^{-1} p} \tag{4.9}$$
#
# ### Exercise 04.4 · Woodbury for rank one
#
# **Goal.** Solve a linear system in N steps in place of $N^3$. **Difficulty.** build. **Minutes.** 10
#
# Return $h = (\operatorname{diag}(d) + p\,q^*)^{-1} b$. All of `d`, `p`, `q`, `b` are complex tensors (N,), and so is
# the result. No (N, N) matrix may be needed.
#
# <details><summary>Hint</summary>
#
# $X^{-1} b$ is `b / d`. Multiply (4.9) by $b$ from the right: there are two such divisions, and two numbers of the form
# $q^* v$, which is `(q.conj() * v).sum()`.
#
# </details>


# %%
def solve_rank_one(d, p, q, b):
    """(diag(d) + p q^*)^-1 b; all complex (N,) -> (N,)."""
    # BEGIN SOLUTION
    from_b, from_p = b / d, p / d
    return from_b - from_p * (q.conj() * from_b).sum() / (1 + (q.conj() * from_p).sum())
    # END SOLUTION


# %%
check("04.4", solve_rank_one)

# %% [markdown]
# In (4.6) we have $X = r(z) I - (1+z)\Lambda$, diagonal, and the rank-one part $+(1+z)\, P P^*$. Put it into (4.9),
# with $\tilde C$ on the left and $B$ on the right. Four Cauchy sums are left, and the kernel is finished:
#
# $$\hat K(z) = 2 \Bigl[ k_{CB} - (1+z)\, \frac{k_{CP}\; k_{PB}}{1 + (1+z)\, k_{PP}} \Bigr] \qquad
# k_{CB} = \sum_n \frac{\tilde C_n B_n}{r(z) - (1+z)\,\Lambda_n} \quad\text{and so on} \tag{4.10}$$
#
# *S4, Algorithm 1.* In $k_{PB}$ and $k_{PP}$ the first $P$ is conjugated.


# %%
def kernel_s4(Lambda, P, B, C_tilde, delta, L):
    """Equation 4.10 at the roots of unity, and the inverse transform; all (N,) but delta and L -> (L,)."""
    z = torch.exp(-2j * math.pi / L * torch.arange(L))
    divisors = (2 * (1 - z) / delta)[:, None] - (1 + z)[:, None] * Lambda  # (L, N)

    def cauchy(row, column):
        return (row * column / divisors).sum(dim=1)

    low_rank = cauchy(C_tilde, P) * cauchy(P.conj(), B) / (1 + (1 + z) * cauchy(P.conj(), P))
    return torch.fft.ifft(2 * (cauchy(C_tilde, B) - (1 + z) * low_rank)).real


# %%
Lambda, P, B_V, V = dplr(N)
fast = kernel_s4(Lambda, P, B_V, C_tilde @ V, delta, L)
print("DPLR, Cauchy and Woodbury = naive kernel:", close(fast, naive))
assert close(fast, naive)
packaged = dplr_kernel(*(each[None] for each in (Lambda, P, B_V, C_tilde @ V)), torch.tensor([delta]), L)[0]
assert close(packaged, fast)

# %% [markdown]
# Four stations, one kernel. The package's layer `S4` learns $\Lambda$, $P$, $B$, $C$ and $\Delta$ for each channel. The
# real part of $\Lambda$ is $-e^{(\cdot)}$, so it stays negative. Subtracting $P P^*$ only adds damping. So the system
# is stable whatever is learned. As in chapter 03, the layer runs as a convolution or step by step. A step of the
# bilinear rule solves a linear system, as in exercise 04.4: it needs no (N, N) matrix either.


# %%
def run_by_steps(layer, u):
    """The recurrence, one token at a time: u (B, L, H) -> (B, L, H)."""
    state, outputs = layer.initial_state(len(u)), []
    for u_t in u.unbind(dim=1):
        y_t, state = layer.step(u_t, state)
        outputs.append(y_t)
    return torch.stack(outputs, dim=1)


# %%
torch.manual_seed(0)
layer, u = S4(H=4, N=64), torch.randn(1, 1024, 4)
with torch.no_grad():
    difference = (layer(u) - run_by_steps(layer, u)).abs().max()
print("u and y:", tuple(u.shape), " convolution = recurrence after 1,024 steps, to 1e-10:", (difference < 1e-10).item())
assert difference < 1e-10  # float64

# %% [markdown]
# **What it costs.** We count multiplications of numbers for one kernel, a complex division or multiplication as four.
#
# | | multiplications | N = 64, L = 1,000 |
# |---|---|---|
# | naive, one product after the other | $L\,(N^2 + N)$ | 4,160,000 |
# | S4: four Cauchy sums at all roots | $4 \cdot L \cdot N \cdot 4$ | 1,024,000 |
# | S4: inverse FFT | $\tfrac L2 \log_2 L \cdot 4$ | 20,000 |
# | S4D: powers and one sum (section 8) | $2 \cdot L \cdot \tfrac N2 \cdot 4$ | 256,000 |
#
# Not in the table is $\tilde C = C\,(I - \bar A^L)$. S4 avoids it in training: it learns $\tilde C$ in place of $C$,
# which belongs to one L. Ours learns $C$ and computes $\bar A^L$ by repeated squaring: between $\log_2 L$ and twice as
# many products, $N^3$ complex multiplications each. At N = 64 that is more than the naive kernel's count. But only 10
# to 20 products wait for each other, in place of 1,000, and L may change at any time. Know which one you have.

# %%
states_counted = torch.tensor([4, 8, 16, 32, 64, 128, 256])
steps_counted = 1000
counts = {
    "naive": steps_counted * (states_counted**2 + states_counted),
    "S4": 16 * steps_counted * states_counted + round(2 * steps_counted * math.log2(steps_counted)),
    "S4D": 4 * steps_counted * states_counted,
}
fig, axis = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
for (name, count), style in zip(counts.items(), ("o-", "s-", "^-"), strict=True):
    axis.loglog(states_counted, count, style, label=name)
axis.set(xlabel="states N", ylabel="multiplications", title="One kernel of 1,000 steps, counted")
axis.legend()
plt.show()
print("at N = 64:", {name: count[4].item() for name, count in counts.items()})
assert counts["naive"][4] > 3 * counts["S4"][4] > 9 * counts["S4D"][4]

# %% [markdown]
# **What to see.** The naive line has slope 2, the others slope 1. For a handful of states the loop needs fewer
# multiplications than S4. But it waits 1,000 times, and the Cauchy sums do not wait: no root needs another.
#
# ## 8. S4D: two lines
#
# DSS (arXiv 2203.14343) asked: what if we **throw the rank-one part away**? Keep $\Lambda$, forget $P$. S4D (arXiv
# 2206.11893) made it simple. With a diagonal $A$, chapter 02 says that $\bar A = e^{\Delta\Lambda}$ is taken number by
# number, and (3.8) says that the kernel is a mixture of powers. (There, $\lambda_n$ were the eigenvalues of $\bar A$.
# Here they are those of $A$.)
#
# $$K[k] = \sum_n C_n\, \bar B_n\, \bar A_n^{\,k} \qquad \bar A_n = e^{\Delta \lambda_n} \qquad \bar B_n =
# \frac{e^{\Delta\lambda_n} - 1}{\lambda_n}\, B_n \tag{4.11}$$
#
# *S4D, section 3.* No generating function, no Cauchy, no Woodbury. The matrix of all powers $\bar A_n^k$, one row
# for each n, is called a **Vandermonde matrix**.
#
# **Half of the states.** The eigenvalues come in conjugate pairs, and for a real kernel the coefficients do, too. A
# number plus its conjugate is twice its real part. So keep one of each pair, N/2 in all, and take $K = 2
# \operatorname{Re}(\dots)$.

# %%
Lambda = torch.complex(torch.full((8,), -0.5), math.pi * torch.arange(8.0))  # eight numbers stand for sixteen states
weights = torch.randn(8, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))


def kernel_s4d(Lambda, weights, delta, L):
    """Equation 4.11 with B = 1; Lambda and weights = C (N/2,) -> (L,)."""
    x = delta * Lambda
    return 2 * ((weights * (torch.exp(x) - 1) / Lambda) @ torch.exp(x[:, None] * torch.arange(L))).real


# %%
two_lines = kernel_s4d(Lambda, weights, 0.05, 100)
both = torch.diag(torch.cat((Lambda, Lambda.conj())))  # all sixteen, as a dense system
A_bar, B_bar = discretize(both, torch.ones(16, 1, dtype=both.dtype), 0.05, "zoh")
dense_kernel = lti.kernel(A_bar, B_bar, torch.cat((weights, weights.conj()))[None], 100)[:, 0, 0]
print(
    "sixteen states, real kernel:",
    dense_kernel.imag.abs().max().item() < 1e-12,
    " two lines give the same:",
    close(two_lines, dense_kernel.real),
)
assert close(two_lines, dense_kernel.real)

# %% [markdown]
# The layers `S4D` and `DSS` are these two lines with parameters. DSS shares one $\Lambda$ among all channels. Ours is
# the form that the paper calls $\mathrm{DSS}_{\exp}$, which is (4.11). (The other, $\mathrm{DSS}_{\mathrm{softmax}}$,
# divides each row of powers by its sum over L steps and is tied to one L.) Only the products $C_n B_n$ matter, so both
# layers keep $B = 1$ and learn $C$. We read the parameters out of both and compare.

# %%
torch.manual_seed(0)
for layer in (S4D(H=3, N=16), DSS(H=3, N=16)):
    system = layer.system
    Lambda = torch.complex(-system.log_decay.exp(), system.frequency).expand(3, -1)
    C_learned, deltas = torch.view_as_complex(system.C), system.log_delta.exp()
    ours = torch.stack([kernel_s4d(Lambda[c], C_learned[c], deltas[c], 65) for c in range(3)])
    print(
        f"{type(layer).__name__}: A_n are",
        tuple(system.log_decay.shape),
        " two lines = layer:",
        close(ours, layer.kernel(65), 1e-10),
    )
    assert close(ours, layer.kernel(65), 1e-10)

# %% [markdown]
# ### Exercise 04.5 · S4D's kernel
#
# **Goal.** The two lines, with a general $B$, for many channels at once. **Difficulty.** build. **Minutes.** 10
#
# `Lambda`, `B`, `C` are complex tensors (H, M), one of each conjugate pair; `delta` is a real tensor (H,); `L` a whole
# number. Return the real kernels (H, L) by zero-order hold.
#
# <details><summary>Hint</summary>
#
# `x = delta[:, None] * Lambda` is (H, M). The powers are `torch.exp(x[..., None] * torch.arange(L))`, of shape (H, M,
# L). Then a sum over M, and the conjugates must not be forgotten.
#
# </details>


# %%
def s4d_kernel(Lambda, B, C, delta, L):
    """K[k] = sum over pairs of C B_bar A_bar^k; Lambda, B, C complex (H, M), delta (H,) -> real (H, L)."""
    # BEGIN SOLUTION
    x = delta[:, None] * Lambda
    weights = C * B * (torch.exp(x) - 1) / Lambda
    return 2 * (weights[..., None] * torch.exp(x[..., None] * torch.arange(L))).sum(dim=1).real
    # END SOLUTION


# %%
check("04.5", s4d_kernel)

# %% [markdown]
# ## 9. What is lost without the rank-one part?
#
# The state of LegS is a projection: its numbers are coordinates, and $g_n$ draws the past from them. That was $A$ with
# its rank-one part. Without it, the state is something else. How different? S4D's Theorem 3 says: compare $e^{\tau A}B$
# of LegS with the diagonal system that has $\tfrac12 B$ as its input map. As N grows, the two approach each other. In
# which sense, the figure will show.
#
# Where does the half come from? $P P^\top h = \tfrac12 B\,(B^\top h)$, and $B^\top h = \sum_n h_n\, g_n(1)$ is the red
# curve of section 4 at $x = 1$: what the state itself believes the newest input to be. If it is right, $-P P^\top h$ in
# $A\,h$ subtracts $\tfrac12 B u$. Leave it out, and $B u - \tfrac12 B u = \tfrac12 B u$ must remain.

# %%
times = torch.linspace(0, 3, 2401)  # fine enough for the ripples of 64 states; those of 256 are finer
A, B = legs(4)  # triangular: the first four states do not know of any others
exact_impulse = torch.exp(-times) * basis(4, torch.exp(-times))[:, 3]  # equation 4.4
exact_step = discretize(A.expand(2401, 4, 4), B[:, None].expand(2401, 4, 1), times, "zoh")[1][:, 3, 0]
impulse, held = {}, {}
for size in (16, 64, 256):
    Lambda, _, B_V, V = dplr(size)
    growth = torch.exp(times[:, None] * Lambda)
    impulse[size] = (V[3] * growth @ (B_V / 2)).real
    held[size] = (V[3] * (growth - 1) / Lambda @ (B_V / 2)).real
losses = {size: (curve - exact_step).abs().max().item() for size, curve in held.items()}
ripples = {size: (impulse[size] - exact_impulse)[160:].square().mean().sqrt().item() for size in (16, 64)}
print("largest error of the answer to a held input:", {size: f"{loss:.1g}" for size, loss in losses.items()})
print(
    "root mean square error after an impulse, from age 0.2 on:",
    {size: f"{loss:.1f}" for size, loss in ripples.items()},
)
assert losses[16] > 3 * losses[64] > 9 * losses[256] and ripples[64] > 0.9 * ripples[16]

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 2.9), layout="constrained")
for axis, exact, curves in zip(axes, (exact_impulse, exact_step), (impulse, held), strict=True):
    for size, colour in ((64, "tab:orange"), (16, "tab:blue")):
        axis.plot(times, curves[size], linewidth=1, color=colour, label=f"diagonal part, N = {size}")
    axis.plot(times, exact, color="black", linewidth=3, alpha=0.5, label="LegS")
    axis.legend(fontsize=8)
axes[0].set(xlabel=r"age $\tau$ of an impulse", ylabel="state 3", title="What an impulse leaves")
axes[1].set(xlabel=r"time $\tau$ since the input became 1", ylabel="state 3", title="What a held input leaves")
plt.show()
print("at age 0 LegS has", f"{exact_impulse[0]:.3g}", "and the diagonal part with N = 256 half of that:", end=" ")
print(math.isclose(impulse[256][0], exact_impulse[0] / 2))

# %% [markdown]
# **What to see.** Left: the diagonal part ripples around LegS, wildly. With more states the ripples become faster (the
# orange ones run together into a band), not smaller: their root mean square stays at 0.7. And at age 0 half of the
# value is missing. Right: a held input is a sum of many impulses, and in a sum fast ripples cancel. With N = 64 the
# curves are one to the eye, and the printed errors shrink on. Real inputs are smooth more often than not. So the
# diagonal part is enough, if N is large. (That the two agree for a smooth input, and do not for an impulse, has been
# made precise: arXiv 2310.01698.)
#
# **Four ways to start.** If the exact matrix does not matter, its eigenvalues may be replaced by simple formulas:
#
# | init | $\lambda_n$ | from |
# |---|---|---|
# | S4D-LegS | eigenvalues of the normal part of LegS | S4D, section 4 |
# | S4D-Inv | $-\tfrac12 + i\,\tfrac N\pi \bigl( \tfrac{N}{2n+1} - 1 \bigr)$ | S4D, section 4: nearly those of LegS |
# | S4D-Lin | $-\tfrac12 + i \pi n$ | S4D, section 4: a Fourier series |
# | S4D-Real | $-(n+1)$ | the diagonal of LegS, without complex numbers; Mamba's choice |

# %%
fig, axes = plt.subplots(2, 4, figsize=(9.4, 4.2), layout="constrained", sharey="row")
for column, init in enumerate(("legs", "inv", "lin", "real")):
    A_init, _ = initial_system(init, 32)
    axes[0, column].plot(A_init.real, A_init.imag if A_init.is_complex() else 0 * A_init, ".")
    axes[0, column].set(xlabel="real part", title=f"S4D-{init.capitalize()}", ylim=(-5, 110))
    slowest = A_init[A_init.abs().argsort()]
    for n in (0, 1, 4):
        axes[1, column].plot(times, torch.exp(times * slowest[n]).real, label=f"number {n}")
    axes[1, column].set(xlabel=r"age $\tau$")
axes[0, 0].set(ylabel="imaginary part")
axes[1, 0].set(ylabel=r"Re $e^{\tau\lambda_n}$")
axes[1, 3].legend(fontsize=8)
plt.show()
for init in ("legs", "inv", "lin"):
    print(f"largest frequency of {init:>4} with N = 32: {initial_system(init, 32)[0].imag.max():.3g}")

# %% [markdown]
# **What to see.** Above: eigenvalues (of each pair the upper one; the highest of LegS and Inv are cut off). Below: the
# kernels that the mixture is made from. The complex ones swing at different speeds under one envelope, $e^{-\tau/2}$.
# The real ones cannot swing. They fade at different speeds.
#
# ### Exercise 04.6 · Initial eigenvalues
#
# **Goal.** Write two of the formulas. **Difficulty.** build. **Minutes.** 5
#
# For `name` "lin" or "inv" and an even `N`, return the complex tensor (N/2,) of eigenvalues, n = 0, 1, ..., N/2 - 1.
#
# <details><summary>Hint</summary>
#
# `torch.complex(real, imaginary)` joins two float64 tensors. In the formula for "inv", N is the number of all states,
# not of those that are kept.
#
# </details>


# %%
def initial_eigenvalues(name, N):
    """The eigenvalues of S4D-Lin or S4D-Inv: complex (N/2,)."""
    # BEGIN SOLUTION
    n = torch.arange(N // 2, dtype=torch.float64)
    imaginary = math.pi * n if name == "lin" else N / math.pi * (N / (2 * n + 1) - 1)
    return torch.complex(torch.full_like(n, -0.5), imaginary)
    # END SOLUTION


# %%
check("04.6", initial_eigenvalues)

# %% [markdown]
# **"Mamba uses HiPPO, and needs it." Neither is quite true.** Mamba starts from S4D-Real. Its $-1, -2, \dots, -N$ are
# indeed the diagonal of LegS, and that is all they have in common. The entries below the diagonal are gone, and with
# them the projection: no polynomial draws the past from Mamba's state. We can measure what this means with the method
# of section 5. Five states of 32 numbers, each with $\Delta = 0.01$, so that they look back a few hundred steps. (A
# complex number counts as two: its real and its imaginary part are read separately.)

# %%
L, N = 500, 32
unknown = {}
for name in ("legs", "inv", "lin", "real"):
    diagonal, B_init = initial_system(name, N)
    M = trace(*discretize(torch.diag(diagonal), B_init[:, None], 0.01, "zoh"))
    M = torch.cat((M.real, M.imag)) if M.is_complex() else M
    unknown[f"S4D-{name.capitalize()}"] = left_to_guess(M[M.abs().amax(1) > 0])  # frequency 0 has no imaginary part
A, B = legs(N)
unknown["S4 (LegS)"] = left_to_guess(trace(*discretize(A, B[:, None], 0.01, "bilinear")))
for name, deviation in unknown.items():
    young, old = deviation[-100:].mean(), deviation[:-100].mean()
    print(f"{name:>10}: on the mean {young:.2f} below age 100, {old:.2f} above")
assert unknown["S4D-Real"].mean() > 2 * unknown["S4 (LegS)"].mean()

# %%
fig, axis = plt.subplots(figsize=(6.5, 2.9), layout="constrained")
for name, deviation in unknown.items():
    axis.plot(ages, deviation, label=name)
axis.set(xlabel="age of the input (steps)", ylabel="left to guess", title="What 32 numbers know, by initialisation")
axis.legend(fontsize=8)
plt.show()
print("states of 32 numbers compared:", len(unknown))

# %% [markdown]
# **What to see.** S4 knows the last hundred steps all but exactly. S4D-Legs and S4D-Inv do not: this is what the
# low-rank part was worth. For what is older than about 230 steps, they do as well as S4 or a little better. S4D-Lin is
# a window: its frequencies are multiples of $\pi$, so all its parts repeat after $\tau = 2$, which is 200 steps, and it
# cannot tell what happened now from what happened 200 steps ago. S4D-Real loses most within a hundred steps. Fading
# exponentials are so alike that 32 of them tell hardly more than a few. (The curves that fall again at the far right
# notice the beginning of the input, as in section 5.)
#
# So why did Mamba drop complex numbers? Because it does not need one state to remember everything. It can *choose* what
# to put into the state, token by token (chapter 05), and it has thousands of channels, each with its own $\Delta$. Its
# paper takes real numbers by default and found complex ones better on one of its tasks, raw audio (arXiv 2312.00752,
# section 3.6). In its ablation, a random real start did as well as S4D-Real. As a rule: where a signal must be
# remembered as it was, complex states belong. Where the model may pick, real ones are enough, and a product of real
# numbers is a quarter of the work.
#
# ## 10. S4ND: images
#
# An image has two directions. S4ND (arXiv 2210.06583) gives each direction its own state-space model and multiplies:
#
# $$K[k, l] = K_{\text{vertical}}[k]\; K_{\text{horizontal}}[l] \tag{4.12}$$
#
# The kernel is as large as the image, but made from two short ones: an **outer product**. And there is a recurrence
# again: run the horizontal model along each row, then the vertical one down each column of the result.
#
# **By hand.** One real state in each direction, $\bar A = \tfrac12$, $\bar B = \tfrac12$, $C = 1$: each step keeps half
# of the state and adds half of the input. $K = \tfrac12, \tfrac14, \tfrac18, \dots$, and it adds up to 1, so it is a
# moving average. In two dimensions the corner $K[0, 0]$ is $\tfrac14$, and its neighbours are $\tfrac18$.

# %%
blur = S4ND(C=1, N=1, init="real")
with torch.no_grad():
    for side in (blur.vertical, blur.horizontal):
        side.log_delta.fill_(math.log(math.log(2)))  # A = -1, so A_bar = exp(-log 2) = 1/2, and B_bar = 1/2
        side.C.fill_(1)
    blur.D.fill_(0)
K = blur.kernel(3, 3)[0].detach()
print("kernel:", [[round(number, 4) for number in row] for row in K[:2, :2].tolist()])
assert close(K[:2, :2], torch.tensor([[1 / 4, 1 / 8], [1 / 8, 1 / 16]]))
assert torch.linalg.matrix_rank(K) == 1  # an outer product

# %% [markdown]
# Now a picture: ten of the handwritten digits, with a border of two pixels each, 24 x 60 pixels.

# %%
data = load_data("digits")
digits = F.pad(data.train_images[:10, 0].double() / 255, (2, 2, 2, 2))  # (10, 12, 12)
picture = digits.view(2, 5, 12, 12).permute(0, 2, 1, 3).reshape(1, 24, 60, 1)

# %%
with torch.no_grad():
    convolved = blur(picture)
    state, by_rows = blur.initial_state(1, 60), []
    for row in picture.unbind(dim=1):
        y, state = blur.step(row, state)
        by_rows.append(y)
print("one convolution = two recurrences:", close(convolved, torch.stack(by_rows, dim=1)))
assert close(convolved, torch.stack(by_rows, dim=1))

# %% [markdown]
# The recurrence walks from the top left, so each pixel sees what is above and to the left of it. An image has no such
# order. We let the same layer walk from all four corners, by flipping the image and flipping the answer back, and take
# the mean. (Vim does the same with its two directions.) What is left when the blurred picture is taken off the picture
# are the edges.


# %%
@torch.no_grad()
def from_all_corners(image):
    """The mean of four walks over the image (B, H, W, C), one from each corner."""
    corners = [(), (1,), (2,), (1, 2)]  # the axes to flip
    return sum(blur(image.flip(axes)).flip(axes) for axes in corners) / 4


smooth, turned = from_all_corners(picture), from_all_corners(picture.flip(1, 2)).flip(1, 2)
print("upside down, the same blur upside down:", close(smooth, turned))
assert close(smooth, turned)

# %%
images = {"picture": picture, "from one corner": convolved, "from four corners": smooth, "edges": picture - smooth}
fig, axes = plt.subplots(2, 2, figsize=(8.4, 3.9), layout="constrained")
for axis, (name, image) in zip(axes.flat, images.items(), strict=True):
    limit = image.abs().max()
    lowest, colours = (-limit, "RdBu") if name == "edges" else (0, "gray_r")
    axis.imshow(image[0, :, :, 0], cmap=colours, vmin=lowest, vmax=limit)
    axis.set_title(name)
    axis.axis("off")
plt.show()
print("decay rates that make this filter:", 2, " numbers in its kernel:", blur.kernel(24, 60).numel())

# %% [markdown]
# **What to see.** From one corner, everything is smeared to the right and downwards, like a shadow. From four corners
# the blur is even. The edges are blue where there is more ink than around, red where there is less. The filter is as
# large as the picture, 1,440 numbers, and was made of two decay rates. In a network these are learned.
#
# ### Exercise 04.7 · Two sides, one filter
#
# **Goal.** Filter an image without its 2-D kernel. **Difficulty.** investigate. **Minutes.** 10
#
# `image` is (H, W). `vertical` (H,) and `horizontal` (W,) are kernels. Return $y[i, j] = \sum_{k \le i} \sum_{l \le j}
# \text{vertical}[k]\, \text{horizontal}[l]\, u[i-k, j-l]$, the filtered image (H, W), by 1-D convolutions only:
# `lti.fft_convolution(u, K)` convolves along the last axis.
#
# When you have it: does it matter which direction comes first? Why is this cheaper than a full 2-D kernel?
#
# <details><summary>Hint</summary>
#
# The sum over l does not know k, so it can be done first, for each row. For the columns, transpose with `.mT`,
# convolve, transpose back.
#
# </details>
#
# <details><summary>Answers to the two questions</summary>
#
# The order does not matter: the two sums can be exchanged. A full kernel, summed directly, costs up to $HW$
# multiplications for each pixel. Two short ones cost up to $H + W$.
#
# </details>


# %%
def separable_filter(image, vertical, horizontal):
    """The image convolved with vertical[:, None] * horizontal: (H, W), (H,), (W,) -> (H, W)."""
    # BEGIN SOLUTION
    rows = lti.fft_convolution(image, horizontal)
    return lti.fft_convolution(rows.mT, vertical).mT
    # END SOLUTION


# %%
check("04.7", separable_filter)

# %% [markdown]
# ## 11. Reading digits pixel by pixel
#
# Now everything together. An image of 8 x 8 pixels is read like text, row by row: a sequence of 64 numbers. The model
# does not know that it is an image. To know that pixel 12 is below pixel 4, it must remember what it saw 8 steps ago.
#
# The model is the smallest that works. A linear map turns a pixel into 64 channels. Two blocks follow; each has a norm,
# a state-space layer, which mixes the steps, and a linear map, which mixes the channels. The result is added to the
# input. The mean over the 64 steps goes through one more norm into a linear classifier.

# %%
torch.set_default_dtype(torch.float32)
torch.set_num_threads(1)  # the model is so small that two threads would mostly wait for each other


def as_sequence(images):
    """(M, 3, 8, 8) whole numbers -> (M, 64, 1): normalised, one channel, row after row."""
    return normalise(images, data.mean, data.std)[:, 0].flatten(1)[..., None]


train_pixels, test_pixels = as_sequence(data.train_images), as_sequence(data.test_images)
print("training:", tuple(train_pixels.shape), " test:", tuple(test_pixels.shape))
assert abs(train_pixels.mean()) < 1e-3 and abs(train_pixels.std() - 1) < 1e-3


# %%
class Block(nn.Module):
    """u + mix(GELU(layer(norm(u)))): (B, L, H) -> (B, L, H)."""

    def __init__(self, layer, H):
        super().__init__()
        self.norm, self.layer, self.mix = nn.LayerNorm(H), layer, nn.Linear(H, H)

    def forward(self, u):
        return u + self.mix(F.gelu(self.layer(self.norm(u))))


# %%
class PixelReader(nn.Module):
    """Pixels (B, L, 1) -> logits (B, 10)."""

    def __init__(self, make_layer, H=64, depth=2):
        super().__init__()
        self.embed = nn.Linear(1, H)
        self.blocks = nn.Sequential(*(Block(make_layer(H), H) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(H), nn.Linear(H, 10)

    def forward(self, pixels):
        return self.head(self.norm(self.blocks(self.embed(pixels)).mean(dim=1)))


# %% [markdown]
# Two details of the training are special to state-space models. **No weight decay** for the system: pulling $\log
# \Delta$ and $\log(-\operatorname{Re} \lambda)$ towards 0 would mean a memory of a certain length, which nobody asked
# for. **Step sizes that fit:** 64 steps is a short sequence, so $\Delta$ starts between 0.01 and 1, in place of 0.001
# and 0.1. S4D starts at the eigenvalues of LegS, so the two models begin alike, but for the rank-one part.


# %%
def train(model, epochs=10, batch_size=64, peak=1e-2):
    """AdamW with one rise and fall of the learning rate; the loss of each step."""
    system = [p for name, p in model.named_parameters() if ".system." in name]
    others = [p for name, p in model.named_parameters() if ".system." not in name]
    optimizer = torch.optim.AdamW([{"params": system, "weight_decay": 0}, {"params": others, "weight_decay": 0.05}])
    steps = epochs * (len(train_pixels) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.15)
    losses = []
    for _ in tqdm(range(epochs), desc="epochs"):
        rows = torch.randperm(len(train_pixels))
        for batch in rows[: len(rows) // batch_size * batch_size].split(batch_size):
            loss = F.cross_entropy(model(train_pixels[batch]), data.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return losses


# %% tags=["nbval-ignore-output"]
makers = {
    "S4D": lambda H: S4D(H, 16, "legs", delta_min=0.01, delta_max=1.0),
    "S4": lambda H: S4(H, 16, delta_min=0.01, delta_max=1.0),
}
models, losses = {}, {}
for name, maker in makers.items():
    torch.manual_seed(0)
    models[name] = PixelReader(maker)
    losses[name] = train(models[name])

# %%
with torch.no_grad():
    logits = {name: model(test_pixels) for name, model in models.items()}
accuracy = {name: (scores.argmax(1) == data.test_labels).float().mean().item() for name, scores in logits.items()}
for name, share in accuracy.items():
    print(f"{name:>3}: at least 96 % of the {len(test_pixels)} test images right: {share >= 0.96}")
    assert share >= 0.96

# %%
fig, axis = plt.subplots(figsize=(6, 2.6), layout="constrained")
for name, curve in losses.items():
    smoothed = torch.tensor(curve).unfold(0, 22, 11).mean(1)  # the mean of an epoch, every half epoch
    axis.semilogy(1 + torch.arange(len(smoothed)) / 2, smoothed, label=name)
axis.set(xlabel="epoch", ylabel="cross-entropy", title="The loss while the models learn to read")
axis.legend()
plt.show()
print(
    "steps of training:",
    len(losses["S4D"]),
    " loss at the end below 0.2:",
    all(sum(c[-22:]) / 22 < 0.2 for c in losses.values()),
)

# %% [markdown]
# **What to see.** Both learn at about the same speed. On this task, S4's rank-one part is not missed.
#
# **The trained model as a recurrence.** Nothing is retrained. The same parameters now read one pixel at a time, with a
# state of $2 \times 64 \times 16$ numbers and a running sum for the mean. After each pixel it can be asked what it
# thinks. After the last one it must give the logits of the convolution.


# %%
@torch.no_grad()
def read_pixel_by_pixel(model, pixels):
    """The logits after each pixel: (B, L, 1) -> (B, L, 10)."""
    states = [block.layer.initial_state(len(pixels)) for block in model.blocks]
    total, answers = 0, []
    for t, pixel in enumerate(pixels.unbind(dim=1), 1):
        u = model.embed(pixel)
        for index, block in enumerate(model.blocks):
            y, states[index] = block.layer.step(block.norm(u), states[index])
            u = u + block.mix(F.gelu(y))
        total = total + u
        answers.append(model.head(model.norm(total / t)))
    return torch.stack(answers, dim=1)


# %%
step_by_step = {name: read_pixel_by_pixel(model, test_pixels[:50]) for name, model in models.items()}
for name, answers in step_by_step.items():
    same = close(answers[:, -1], logits[name][:50], 1e-3)  # float32
    print(f"{name:>3}: recurrence = convolution, logits within 1e-3: {same}")
    assert same

# %%
sure = (logits["S4D"][:50].softmax(1).amax(1) > 0.9) & (logits["S4D"][:50].argmax(1) == data.test_labels[:50])
chosen = sure.nonzero().flatten()[0].item()
label = data.test_labels[chosen].item()
belief = step_by_step["S4D"][chosen].softmax(dim=1)
fig, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained", width_ratios=[1, 3])
axes[0].imshow(data.test_images[chosen, 0], cmap="gray_r")
axes[0].set(title="read row by row", xticks=[], yticks=range(8))
for digit in range(10):
    axes[1].plot(range(1, 65), belief[:, digit], label=digit, linewidth=2.5 if digit == label else 1)
axes[1].set(xlabel="pixels read", ylabel="probability", title="What the model believes")
axes[1].legend(ncols=2, fontsize=7, title="digit")
plt.show()
print("at the end it is sure, and right:", (belief[-1, label] > 0.9).item(), " pixels read:", len(belief))

# %% [markdown]
# **What to see.** The thick line is the right digit. While the first rows are read, most of the picture is missing, and
# the beliefs change from row to row. The model was only ever asked after the last pixel; before, its answers are
# guesses from a mean over too few steps.
#
# **Where this ends.** All layers of this chapter are linear and time-invariant inside: the kernel is the same for all
# inputs. They take in everything, wanted or not. Chapter 05 lets the input decide.
#
# **What you built, and where it lives.**
#
# | here | in the package |
# |---|---|
# | `remember_by_loop`, exercise 04.2 | `minivim.hippo`: `legs`, `legt`, `fourier`, `remember`, `reconstruct`, `dplr` |
# | `kernel_s4`, exercises 04.3, 04.4 | `minivim.s4.generating.dplr_kernel`; the layer `minivim.s4.S4` |
# | `kernel_s4d`, exercises 04.5, 04.6 | `minivim.s4.generating.diagonal_kernel`; the layers `S4D`, `DSS` |
# | exercise 04.7 | `minivim.s4.nd`: the layer `S4ND` |
#
# ## Further reading
#
# - A. Gu et al., *HiPPO: Recurrent Memory with Optimal Polynomial Projections*, 2020, arXiv 2008.07669.
# - A. Gu, K. Goel, C. Ré, *Efficiently Modeling Long Sequences with Structured State Spaces* (S4), 2021, arXiv
#   2111.00396. Appendix C is section 7.
# - A. Gupta, A. Gu, J. Berant, *Diagonal State Spaces are as Effective as Structured State Spaces* (DSS), 2022, arXiv
#   2203.14343.
# - A. Gu et al., *On the Parameterization and Initialization of Diagonal State Space Models* (S4D), 2022, arXiv
#   2206.11893.
# - A. Gu et al., *How to Train Your HiPPO*, 2022, arXiv 2206.12037. Why S4 works without $1/t$.
# - E. Nguyen et al., *S4ND: Modeling Images and Videos as Multidimensional Signals Using State Spaces*, 2022, arXiv
#   2210.06583.
# - A. Voelker et al., *Legendre Memory Units*, 2019. LegT, found first.
