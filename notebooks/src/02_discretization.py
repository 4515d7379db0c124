# %% [markdown]
# # 02 · From continuous to discrete
#
# A state-space model is born in continuous time: it says how fast a state changes. A computer works in steps. This
# chapter builds the bridge, and finds on it the letter that Mamba made famous: the step size $\Delta$.
#
# **Learning goals.** After this chapter you can
# - turn $h' = A h + B u$ into a recurrence in four ways, by hand and in code: forward Euler, backward Euler, bilinear,
#   zero-order hold;
# - measure how fast each error shrinks with the step, and say for which input the zero-order hold is exact;
# - look at an eigenvalue and a step size, and predict which rule explodes, which one dies, and which one is right;
# - compute the half-life of a memory from $\Delta$ and $A$, and explain why $\Delta$ is a gate;
# - say when the exponential of a matrix may be taken number by number;
# - say what Mamba's paper and Mamba's code do with $B$, and what the difference is worth.
#
# **Prerequisites.** Chapter 01: state, input, output, eigenvalues and stability. Derivatives, and the exponential
# function. Complex numbers appear in section 7.
#
# **Time.** 90 minutes with the exercises. All cells together run for less than half a minute.

# %%
import math

import matplotlib.pyplot as plt
import torch

from minivim import selective_scan
from minivim.course import check
from minivim.discretize import discretize, discretize_diagonal
from minivim.figures import flipbook

plt.rcParams["figure.dpi"] = 75

# %% [markdown]
# We measure small errors in this chapter, so every number is float64, with 16 decimal digits. Four rules will appear
# again and again. Each gets its name and its colour once. And two results count as equal if no number differs by more
# than a tolerance, which is $10^{-12}$ unless a check says otherwise.

# %%
torch.set_default_dtype(torch.float64)
RULES = {"euler": "forward Euler", "backward_euler": "backward Euler", "bilinear": "bilinear", "zoh": "ZOH"}
COLOURS = {"euler": "tab:red", "backward_euler": "tab:blue", "bilinear": "tab:green", "zoh": "black"}


def close(one, other, tolerance=1e-12):
    """Whether no two numbers differ by more than `tolerance`."""
    return bool((one - other).abs().max() <= tolerance)


assert close(torch.ones(2), torch.ones(2)) and not close(torch.ones(2), torch.ones(2) + 1e-11)

# %% [markdown]
# ## 1. A cup of coffee
#
# A cup of coffee stands in a room. Let $h(t)$ be how many degrees it is warmer than the room at time $t$. The warmer
# it is, the faster it loses heat (Newton's law of cooling). If we count time in half hours, an ordinary cup obeys
#
# $$h'(t) = -h(t)$$
#
# The prime is the derivative by time: degrees per half hour. The coffee is poured at 84 degrees into a room of 20
# degrees, so $h(0) = 64$.
#
# **How warm is it after a quarter of an hour?** That is a step of $\Delta = 0.5$. The oldest idea, Euler's, is to look
# at the slope now and to pretend that it lasts for the whole step. The slope now is $-64$:
#
# $$h(0.5) \approx 64 + 0.5 \cdot (-64) = 32$$
#
# From there, the next steps give 16 and 8. Each step halves the rest.
#
# The exact answer is the exponential function, for it is its own derivative: $h(t) = 64\,e^{-t}$. After one step
# that is 38.8. Euler's coffee is too cold. The reason is in the word "pretend": while the coffee cools, it loses heat
# more slowly, and Euler does not notice until the step is over.

# %%
delta, h = 0.5, 64.0
by_euler, exact = [h], [h]
for step in range(3):
    h = h + delta * (-h)
    by_euler.append(h)
    exact.append(64 * math.exp(-delta * (step + 1)))
print("Euler:", by_euler, " exact:", [f"{value:.3g}" for value in exact])
assert by_euler == [64, 32, 16, 8]

# %% [markdown]
# Now the cup, cold this time, is put on a heating plate. Let the plate be $u$ degrees warmer than the room. Heat flows
# from the plate into the cup, in proportion to the difference between them:
#
# $$h'(t) = -h(t) + u(t)$$
#
# Let $h(0) = 0$ and $u = 40$. The slope is now $-0 + 40 = 40$, so Euler's first step is $0 + 0.5 \cdot 40 = 20$; then
# 30, then 35. The exact answer comes close to 40 as $1 - e^{-t}$ comes close to 1: $h(t) = 40\,(1 - e^{-t})$.

# %%
h, u = 0.0, 40.0
heated = [h]
for _ in range(3):
    h = h + delta * (-h + u)
    heated.append(h)
print("Euler:", heated, " exact:", [f"{40 * (1 - math.exp(-delta * step)):.3g}" for step in range(4)])
assert heated == [0, 20, 30, 35]

# %%
times = torch.linspace(0, 1.5, 100)
curves = {"cooling": 64 * torch.exp(-times), "on a plate of 40 degrees": 40 - 40 * torch.exp(-times)}
fig, axes = plt.subplots(1, 2, figsize=(7.6, 2.5), layout="constrained")
for axis, (title, curve), steps in zip(axes, curves.items(), (by_euler, heated), strict=True):
    axis.plot(times, curve, color="black", label="exact")
    axis.plot([0, 0.5, 1, 1.5], steps, "o-", color=COLOURS["euler"], label="Euler, step 0.5")
    axis.set(xlabel="time (half hours)", ylabel="degrees above the room", title=title, xticks=[0, 0.5, 1, 1.5])
axes[0].legend()
plt.show()
print(f"error of the cooling cup after the second step: {by_euler[2] - exact[2]:.2g} degrees")

# %% [markdown]
# **What to see.** Each red line leaves its point along the slope at that point, and then walks straight on while the
# truth bends. So Euler is always ahead of the truth: it cools too fast, and it warms up too fast.

# %% [markdown]
# ### Exercise 02.1 · One Euler step
#
# **Goal.** Write Euler's step for any numbers. **Difficulty.** recall. **Minutes.** 3
#
# For $h' = A h + B u$ with plain numbers, return the state after one forward Euler step of size `delta`. `A`, `B`,
# `delta`, `h`, `u` and the result are floats. For the cup on the plate, $A = -1$ and $B = 1$.
#
# <details><summary>Hint</summary>
#
# New state = old state + step size times slope. The slope is everything on the right-hand side of the equation.
#
# </details>


# %%
def euler_step(A, B, delta, h, u):
    """The state after one forward Euler step; all floats."""
    # BEGIN SOLUTION
    return h + delta * (A * h + B * u)
    # END SOLUTION


# %%
check("02.1", euler_step)

# %% [markdown]
# ## 2. The equation, and every letter in it
#
# The cup is the smallest case of a **continuous state-space model**:
#
# $$h'(t) = A\,h(t) + B\,u(t) \qquad\quad y(t) = C\,h(t) + D\,u(t) \tag{2.1}$$
#
# *S4, arXiv 2111.00396, Eq. 1, where the state is called x.*
#
# | letter | what it is | shape | in the cup |
# |---|---|---|---|
# | $t$ | time, a real number | | in half hours |
# | $h(t)$ | the state: all that the past leaves behind | (N,) | degrees above the room |
# | $h'(t)$ | its derivative: change per unit of time | (N,) | degrees per half hour |
# | $u(t)$ | the input | (M,) | the plate, degrees above the room |
# | $y(t)$ | the output | (P,) | what a thermometer shows |
# | $A$ | how the state changes by itself | (N, N) | $-1$ per half hour |
# | $B$ | how the input changes the state | (N, M) | $1$ per half hour |
# | $C$ | how the output is read from the state | (P, N) | 1 |
# | $D$ | input that goes to the output directly | (P, M) | 0 |
#
# N is the number of states, M of inputs, P of outputs; for the cup, all are 1. The second equation
# contains no derivative. So $C$ and $D$ stay as they are, and we can forget them for this chapter.
#
# **Where does $\Delta$ come from?** Our data is a sequence: $u[0], u[1], u[2], \dots$ A sequence knows first and next.
# It has no clock. To feed it to (2.1), we must say how long each number lasts. That is the **step size** $\Delta$
# (`delta` in code): the number $u[t]$ is held for a time $\Delta$, then comes $u[t+1]$. The input is a staircase:
#
# $$u(s) = u[t] \quad\text{for}\quad t\,\Delta \le s < (t+1)\,\Delta$$
#
# We look at the state at the end of each stair and call it $h[t]$. So $h[t]$ has already seen $u[t]$, and $h[-1]$ is
# the state at the start, usually zero. Every rule of this chapter turns (2.1) into
#
# $$h[t] = \bar A\,h[t-1] + \bar B\,u[t] \tag{2.2}$$
#
# *S4, Eq. 3; Mamba, arXiv 2312.00752, Eq. 2.* The bar means: belongs to the recurrence, no longer to the differential
# equation. Round brackets are for time, square brackets for steps. The rules differ in nothing but the two numbers (or
# matrices) $\bar A$ and $\bar B$. Euler's step was $h + \Delta(-h + u)$, so there $\bar A = 1 - \Delta$ and
# $\bar B = \Delta$. Every rule in the package gives such a pair.

# %%
A, B = torch.tensor([[-1.0]]), torch.tensor([[1.0]])
A_bar, B_bar = discretize(A, B, delta=0.5, method="euler")
print("A_bar:", A_bar.item(), " B_bar:", B_bar.item(), " one step of the heated cup:", (B_bar * 40).item())
assert A_bar.item() == 1 - 0.5 and B_bar.item() == 0.5

# %% [markdown]
# Two points about indices and letters that cost people days.
#
# - **"Euler uses the old input, the papers use the new one."** Some books write $h[t+1] = \bar A h[t] + \bar B u[t]$.
#   So did chapter 01. It is the same recurrence with another name for the state: there $h[t]$ is the state before
#   $u[t]$ arrives, here after. It has nothing to do with the choice between Euler and the other rules.
# - **Chapter 01 had no bars.** Its $A$ and $B$ already belonged to a recurrence, so they were what is $\bar A$ and
#   $\bar B$ here. From now on, $A$ and $B$ without a bar belong to the differential equation.
#
# **Only products count.** $A$ is measured in 1/time and $\Delta$ in time, so $\Delta A$ is a pure number. A system that
# runs twice as fast, looked at in steps of half the size, is the same recurrence. So nobody can tell you "the right
# $\Delta$" without $A$. In a recording, $\Delta$ is the time between two samples. In a sentence or an image there is
# no clock, and the model may choose $\Delta$ as it likes: it is learned.

# %%
A, B = torch.tensor([[-1.0, 2.0], [-2.0, -0.5]]), torch.tensor([[1.0], [0.3]])
for method in RULES:
    once, fast = discretize(A, B, 0.1, method), discretize(2 * A, 2 * B, 0.05, method)
    assert all(close(one, other) for one, other in zip(once, fast, strict=True))
print("twice as fast in half the step is the same recurrence, for", len(RULES), "rules")

# %% [markdown]
# ## 3. The exact step: zero-order hold
#
# While $u$ stands still, (2.1) can be solved exactly. Let us do it once, for one step from time $0$ to time $\Delta$,
# with the input held at $u$. Bring $A h$ to the left and multiply by $e^{-sA}$:
#
# $$e^{-sA}\bigl(h'(s) - A\,h(s)\bigr) = e^{-sA} B\,u
# \qquad\text{and the left side is the derivative of}\quad e^{-sA} h(s)$$
#
# Integrate both sides over $s$ from $0$ to $\Delta$, multiply by $e^{\Delta A}$, and in the integral count $s$ from the
# end of the step instead of from its start:
#
# $$h(\Delta) = \underbrace{e^{\Delta A}}_{\bar A}\,h(0) + \underbrace{\int_0^\Delta e^{sA}\,ds\;B}_{\bar B}\;u
# \tag{2.3}$$
#
# (Read $A$ as a number for now. Section 7 says what $e^{sA}$ is for a matrix, and all of this stays true.) Nothing was
# approximated. This is the **zero-order hold**, ZOH. The name is about the input, which is held and not
# interpolated: a polynomial of order zero. If $A$ is a number and not zero, the integral is $(e^{\Delta A} - 1)/A$. If
# $A$ is zero, it is $\Delta$. Mamba writes the same thing as $\bar B = (\Delta A)^{-1}(e^{\Delta A} - I)\,\Delta B$
# (Eq. 4).
#
# **By hand.** The cup has $A = -1$, $B = 1$, $\Delta = 0.5$. So $\bar A = e^{-0.5} = 0.607$: after a quarter of an
# hour, 60.7 % of the warmth is left. And $\bar B = (e^{-0.5} - 1)/(-1) = 0.393$: 39.3 % of the plate's warmth have
# come in. On a plate of 40 degrees, a cold cup has $0.393 \cdot 40 = 15.7$ degrees after one step. That is the exact
# value of section 1.
#
# `discretize_diagonal` is the package's function for numbers. It gives $\bar A$ and the factor of $B$. We check it
# against (2.3), with the integral as a plain sum over ten thousand thin strips.

# %%
A_bar, factor = discretize_diagonal(torch.tensor(-1.0), 0.5)  # ZOH unless told otherwise
middles = (torch.arange(10_000) + 0.5) / 10_000 * 0.5
integral = torch.exp(-middles).sum() * 0.5 / 10_000
print(f"A_bar = {A_bar:.3f}, B_bar = {factor:.3f}, the integral = {integral:.3f}")
assert abs(A_bar - math.exp(-0.5)) < 1e-15 and abs(factor - integral) < 1e-9

# %% [markdown]
# ### Exercise 02.2 · The exact step
#
# **Goal.** Compute ZOH for one number, also where the formula divides by zero. **Difficulty.** derive.
# **Minutes.** 8
#
# Return the pair `(A_bar, B_bar)` of (2.3) for floats `A`, `B`, `delta`. `A` may be zero: a bucket under a tap, which
# forgets nothing.
#
# <details><summary>Hint</summary>
#
# For $A = 0$, the function under the integral is $e^{0} = 1$. `math.exp` is the exponential.
#
# </details>


# %%
def zoh_step(A, B, delta):
    """(A_bar, B_bar) by zero-order hold; all floats, A may be 0."""
    # BEGIN SOLUTION
    integral = delta if A == 0 else (math.exp(delta * A) - 1) / A
    return math.exp(delta * A), integral * B
    # END SOLUTION


# %%
check("02.2", zoh_step)

# %% [markdown]
# **A trap for small steps.** Mamba's smallest step at the start of its training is 0.001, and networks calculate in
# float32, with 7 digits. There $e^{-0.001} = 0.9990005$. If we subtract 1, the leading digits cancel, and only four
# digits are left. `torch.expm1` computes $e^x - 1$ in one go, so that nothing cancels; the package uses it. We compare
# both, in float32, with the first terms of the series $x + x^2/2 + x^3/6 + \dots$, in float64.

# %%
x = torch.tensor([-1e-3, -1e-5, -1e-7])
exact_values = x + x**2 / 2 + x**3 / 6 + x**4 / 24  # what is left out is below 1e-13
naive = torch.exp(x.float()) - 1
ours = discretize_diagonal(x.float(), 1.0)[1] * x.float()
for name, values in (("exp(x) - 1", naive), ("package", ours)):
    errors = ((values - exact_values) / exact_values).abs()
    print(f"{name:>10}: relative error below 1e-6:", [bool(error < 1e-6) for error in errors])
assert ((ours - exact_values) / exact_values).abs().max() < 1e-6 < ((naive - exact_values) / exact_values).abs().min()

# %% [markdown]
# ## 4. Rules that replace the derivative by a difference
#
# The exponential costs something, for a matrix in particular, and the input may not be held anyway. The other family of
# rules starts from the definition of the derivative, with a step that does not go to zero:
#
# $$\frac{h[t] - h[t-1]}{\Delta} = A \cdot (\text{a state during the step}) + B\,u[t]$$
#
# Which state? At the start of the step it is $h[t-1]$, at its end $h[t]$. Take a share $\alpha$ of the new one and a
# share $1 - \alpha$ of the old one. The input is held, so there is only one $u[t]$ to take. Now bring $h[t]$ to the
# left:
#
# $$(I - \alpha \Delta A)\,h[t] = \bigl(I + (1-\alpha)\,\Delta A\bigr)\,h[t-1] + \Delta B\,u[t]$$
#
# $$\bar A = (I - \alpha \Delta A)^{-1}\bigl(I + (1-\alpha)\,\Delta A\bigr) \qquad
# \bar B = (I - \alpha \Delta A)^{-1}\,\Delta B \tag{2.4}$$
#
# $I$ is the identity matrix, or 1 if $A$ is a number.
#
# | $\alpha$ | name | the slope is taken | where it is used |
# |---|---|---|---|
# | 0 | forward Euler | at the old state | the first rule anyone tries; the $\bar B$ of Mamba's code |
# | 1 | backward Euler | at the new state, so an equation must be solved | stiff equations: slow and fast states |
# | 1/2 | bilinear, also called Tustin's or trapezoidal | at the mean of both | S4, Eq. 3 |
#
# Backward Euler sounds like cheating: it uses the new state to compute the new state. For a linear equation this is no
# problem. We have just solved for $h[t]$.
#
# **By hand**, for the cooling cup with $\Delta A = -0.5$: forward Euler $1 - 0.5 = 0.5$; backward Euler
# $1/(1 + 0.5) = 0.667$; bilinear $(1 - 0.25)/(1 + 0.25) = 0.6$; and the truth $e^{-0.5} = 0.607$.


# %%
def difference_rule(A, B, delta, alpha):
    """Equation 2.4 for numbers."""
    denominator = 1 - alpha * delta * A
    return (1 + (1 - alpha) * delta * A) / denominator, delta * B / denominator


SHARES = {"euler": 0.0, "backward_euler": 1.0, "bilinear": 0.5}
for method, alpha in SHARES.items():
    A_bar, B_bar = difference_rule(-1.0, 1.0, 0.5, alpha)
    print(f"{RULES[method]:>14}: A_bar = {A_bar:.3f}, B_bar = {B_bar:.3f}")
print(f"{'ZOH':>14}: A_bar = {math.exp(-0.5):.3f}, B_bar = {1 - math.exp(-0.5):.3f}")
assert difference_rule(-1.0, 1.0, 0.5, 0.5)[0] == 0.6

# %% [markdown]
# For each rule, $\bar A + \bar B = 1$ here. That is no accident: a cup that is as warm as its plate stays so. All four
# rules get the resting point right. They differ in how they get there. Now our function against the package, for many
# values, and for an $\alpha$ that has no name:

# %%
A, delta = torch.linspace(-3, 0.5, 50), 0.3
for method, alpha in {**SHARES, "generalized_bilinear": 0.3}.items():
    named = None if method in SHARES else alpha
    A_bar, factor = discretize_diagonal(A, delta, method, named)
    ours = difference_rule(A, 1.0, delta, alpha)
    assert close(A_bar, ours[0]) and close(factor, ours[1])
print("difference_rule equals the package for", len(A), "values of A and 4 values of alpha")

# %% [markdown]
# ## 5. How fast the error shrinks
#
# All rules approximate the exponential. Write $x = \Delta A$ and compare the power series:
#
# | rule | A_bar as a function of x | its series | first wrong term |
# |---|---|---|---|
# | exact, ZOH | exp(x) | 1 + x + x²/2 + x³/6 + ... | none |
# | forward Euler | 1 + x | 1 + x | x² |
# | backward Euler | 1 / (1 - x) | 1 + x + x² + ... | x² |
# | bilinear | (1 + x/2) / (1 - x/2) | 1 + x + x²/2 + x³/4 + ... | x³ |
#
# So one step of Euler is wrong by something like $\Delta^2$. To reach a fixed time, say 1, we need $1/\Delta$ steps,
# and their errors add up: $\Delta^2 \cdot 1/\Delta = \Delta$. **Half the step, half the error.** That is **order** 1.
# The bilinear rule gains one power: half the step, a quarter of the error, order 2.
#
# If the error is $c\,\Delta^p$, then $\log(\text{error}) = \log c + p \log \Delta$. On paper with two logarithmic axes
# this is a straight line with the slope $p$. Let us measure $p$: the cooling cup, at time 1, for eight step sizes.

# %%
step_counts = 2 ** torch.arange(3, 11)  # 8, 16, ... 1024 steps from time 0 to time 1
deltas = 1 / step_counts
errors = {}
for method in RULES:
    A_bar, _ = discretize_diagonal(torch.tensor(-1.0), deltas, method)
    errors[method] = (64 * A_bar**step_counts - 64 * math.exp(-1)).abs()
assert errors["zoh"].max() < 1e-11  # what is left is rounding


def slope(deltas, errors):
    """The slope of the straight line through log(error) against log(delta), by least squares."""
    x, y = deltas.log(), errors.log()
    x = x - x.mean()
    return ((x * y).sum() / (x * x).sum()).item()


slopes = {method: slope(deltas, errors[method]) for method in SHARES}
for method, expected in {"euler": 1, "backward_euler": 1, "bilinear": 2}.items():
    print(f"{RULES[method]}: slope {slopes[method]:.2f}")
    assert abs(slopes[method] - expected) < 0.02

# %%
fig, axis = plt.subplots(figsize=(5.4, 3.2), layout="constrained")
for method, name in RULES.items():
    style = "o--" if method == "backward_euler" else "o-"
    axis.loglog(deltas, errors[method].clamp(min=1e-15), style, color=COLOURS[method], label=name)
axis.set(
    xlabel="step size delta", ylabel="error at time 1 (degrees)", title="Error of the cooling cup", ylim=(1e-16, 30)
)
axis.legend()
axis.grid(alpha=0.3)
plt.show()
better = errors["euler"][-1] / errors["bilinear"][-1]
print(f"at the smallest step, bilinear is better than Euler by a factor of about {round(better.item(), -2):,.0f}")

# %% [markdown]
# **What to see.** Both Eulers lie on lines with slope 1, almost the same line. Bilinear has slope 2: at the smallest
# step it is thousands of times better. ZOH has no slope: it is exact at every step size, and the black dots at the
# bottom are the rounding of float64.

# %% [markdown]
# ### Exercise 02.3 · Measure an order
#
# **Goal.** Build the instrument that measures the order of a rule. **Difficulty.** build. **Minutes.** 10
#
# Given are floats `A` and `alpha` and a whole number `steps`. Start with $h = 1$ and $u = 0$. Walk from time 0 to time
# 1 with rule (2.4), once in `steps` steps and once in `2 * steps` steps. Both runs end with an error against $e^A$.
# Return $\log_2$ of the first error divided by the second, a float: the measured order.
#
# When the check is [ok], investigate. What order has $\alpha = 0.5$? And $\alpha = 0.49$, with 8 steps and with 8,000?
#
# <details><summary>Hint</summary>
#
# Every step multiplies by the same $\bar A$, so the state at time 1 is a power of it. $\Delta$ is 1 divided by the
# number of steps. `math.log2` exists.
#
# </details>
#
# <details><summary>What there is to find</summary>
#
# The first wrong term of the rule is $(\alpha - \tfrac12)\,x^2$. It vanishes only at exactly $\tfrac12$, and there
# the order is 2. At 0.49 it is small but there. With 8 steps for $A = -1$, the $x^3$ term is about as large, and you
# measure 1.4. With 8,000 steps you measure 1.0. An order is a statement about small steps, and a rule that is "nearly
# bilinear" has the order of Euler.
#
# </details>


# %%
def measured_order(A, alpha, steps):
    """log2 of error(steps) / error(2 * steps) at time 1; A and alpha floats, steps an int, result a float."""

    # BEGIN SOLUTION
    def error(steps):
        x = A / steps
        return abs(((1 + (1 - alpha) * x) / (1 - alpha * x)) ** steps - math.exp(A))

    return math.log2(error(steps) / error(2 * steps))
    # END SOLUTION


# %%
check("02.3", measured_order)

# %% [markdown]
# ## 6. Exact, but for which input?
#
# "ZOH is exact" is said so often that its condition gets lost: exact **if the input is held**. The voltage that a
# computer sends to a motor is held until the next one comes. A token is held by definition: between two tokens there is
# nothing. A sound is not held. It moves between two samples, and a staircase is only an approximation to it.
#
# Let the plate follow a smooth wave, $u(t) = \cos 2t$. For this input the exact solution of $h' = -h + u$ from
# $h(0) = 0$ is known: the real part of $(e^{2it} - e^{-t})/(1 + 2i)$. We feed it with samples, in two ways: the value
# at the start of each stair, or the mean of its start and its end.


# %%
def final_state(method, delta, mean):
    """The state at time 1 for u(t) = cos 2t, with the chosen rule and stairs of width delta."""
    A_bar, B_bar = discretize_diagonal(torch.tensor(-1.0), delta, method)
    wave = torch.cos(2 * delta * torch.arange(round(1 / delta) + 1))
    h = 0.0
    for u in (wave[:-1] + wave[1:]) / 2 if mean else wave[:-1]:
        h = A_bar * h + B_bar * u
    return h


truth = ((torch.exp(torch.tensor(2j)) - math.exp(-1)) / (1 + 2j)).real
widths = torch.tensor([1 / 16, 1 / 32, 1 / 64, 1 / 128])
for method, name in RULES.items():
    start, mean = (torch.stack([final_state(method, w.item(), m) for w in widths]) - truth for m in (False, True))
    orders = slope(widths, start.abs()), slope(widths, mean.abs())
    print(f"{name:>14}: order {orders[0]:.1f} with the value at the start, {orders[1]:.1f} with the mean")
    assert abs(orders[0] - 1) < 0.1 and abs(orders[1] - (2 if method in ("zoh", "bilinear") else 1)) < 0.1

# %% [markdown]
# With the start values, ZOH is of order 1, like Euler: the staircase lags behind the wave by half a step, and an
# exact rule cannot know it. With the mean of both ends, ZOH and bilinear are of order 2. So the rule and the sampling
# must fit together. For tokens, which are held by definition, (2.3) is the truth. For sound, it is one good rule
# among others.
#
# ## 7. More than one state: the exponential of a matrix
#
# Hang a weight on a spring. Its state has two numbers, position and velocity. The velocity is the rate at which the
# position changes. The velocity itself changes by the force of the spring, which pulls back in proportion to the
# position; and $u$ is a push from outside. In suitable units:
#
# $$h = \begin{pmatrix}\text{position}\\ \text{velocity}\end{pmatrix}, \qquad
# h' = \begin{pmatrix}0 & 1\\ -1 & 0\end{pmatrix} h + \begin{pmatrix}0\\ 1\end{pmatrix} u$$
#
# (2.3) still holds, but now $e^{\Delta A}$ has a matrix in the exponent. It is defined by the series:
#
# $$e^{X} = I + X + \frac{X X}{2} + \frac{X X X}{6} + \dots \tag{2.5}$$
#
# The products are matrix products. For the spring the result is known: without a push, position and velocity turn in a
# circle, so $e^{\Delta A}$ is the rotation by the angle $\Delta$. The series, term by term:


# %%
def matrix_exponential(X, terms=25):
    """Equation 2.5, term by term; good for small X."""
    total = term = torch.eye(len(X))
    for order in range(1, terms):
        term = term @ X / order
        total = total + term
    return total


spring_A, spring_B = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), torch.tensor([[0.0], [1.0]])
cosine, sine = math.cos(0.5), math.sin(0.5)
rotation = torch.tensor([[cosine, sine], [-sine, cosine]])
assert close(matrix_exponential(0.5 * spring_A), rotation)
print("the series gives the rotation by 0.5; number by number:", torch.exp(0.5 * spring_A).round(decimals=2).tolist())

# %% [markdown]
# **The trap.** `torch.exp` takes the exponential of each number by itself. It runs, the shape is right, and the result
# has nothing to do with the rotation: zeros become $e^0 = 1$. For a matrix there is `torch.matrix_exp`. scipy has one,
# too, and the package needs one inside.

# %%
from scipy.linalg import expm

A_bar, _ = discretize(spring_A, spring_B, 0.5)
others = torch.matrix_exp(0.5 * spring_A), torch.from_numpy(expm(0.5 * spring_A.numpy()))
equal = all(close(A_bar, other) for other in others)
print("package = torch.matrix_exp = scipy:", equal)
print("package = torch.exp:", close(A_bar, torch.exp(0.5 * spring_A)))
assert equal and not close(A_bar, torch.exp(0.5 * spring_A))

# %% [markdown]
# **When number by number is right.** If $A$ is diagonal, then so are $A A$ and $A A A$: powers of a diagonal matrix are
# powers of its numbers. So the whole series is taken number by number, and
#
# $$e^{\Delta\,\mathrm{diag}(a_1, \dots, a_N)} = \mathrm{diag}(e^{\Delta a_1}, \dots, e^{\Delta a_N})$$
#
# The states do not touch each other. Each one is a cup of coffee. This is why S4D, Mamba and Vim store N numbers and
# not a matrix, and write `exp(delta * A)` with an ordinary `exp` and an ordinary product. In Mamba's code `A` has the
# shape (E, N), where E is the number of channels. That is not one rectangular matrix but E lists of N diagonal numbers.

# %%
a = torch.tensor([-1.0, -2.0, -3.0])
equal = close(torch.matrix_exp(0.1 * torch.diag(a)), torch.diag(torch.exp(0.1 * a)))
print("diagonal A: matrix exponential = exponential of each number:", equal)
assert equal
print("numbers to store for N = 16: dense", 16 * 16, "diagonal", 16)

# %% [markdown]
# **The bridge: eigenvalues.** Most matrices can be made diagonal by a change of coordinates. If $V$ holds the
# eigenvectors as columns and $a$ the eigenvalues, then $A = V\,\mathrm{diag}(a)\,V^{-1}$. In the series, each
# $V^{-1} V$ inside a product cancels, so
#
# $$e^{\Delta A} = V\,\mathrm{diag}(e^{\Delta a_1}, \dots, e^{\Delta a_N})\,V^{-1} \tag{2.6}$$
#
# In the coordinates of $V$, the spring is diagonal, too. The price is that its eigenvalues are complex: $\pm i$. A real
# negative eigenvalue is a cup of coffee. An imaginary pair is a swing. $-0.5 \pm 2i$ is a swing that dies out: the
# real part says how fast it fades, the imaginary part how fast it turns. That is why S4 works with complex numbers.

# %%
a, V = torch.linalg.eig(spring_A)
print("eigenvalues of the spring, imaginary parts:", sorted(round(value, 3) for value in a.imag.tolist()))
assert close(a.real, torch.zeros(2))
bridge = V @ torch.diag(torch.exp(0.5 * a)) @ torch.linalg.inv(V)
assert close(bridge.imag, torch.zeros(2, 2))
assert close(bridge.real, rotation)

# %% [markdown]
# **Where the bridge ends.** A train with an engine: position and velocity, and the push changes the velocity. There is
# no spring. $A = \begin{pmatrix}0 & 1\\0 & 0\end{pmatrix}$ has only one direction of eigenvectors. So $V$ has no
# inverse, and (2.6) does not exist. $A$ has no inverse either, so Mamba's form of $\bar B$, with its $A^{-1}$, fails,
# too. The step itself is harmless, and school physics knows it: after a time $\Delta$ with a push of 1 from rest, the
# velocity is $\Delta$ and the position $\Delta^2/2$.
#
# A trick of Van Loan (1978) gets both $\bar A$ and $\bar B$ out of one exponential, without any inverse. While the
# input is held, $u' = 0$. So make $u$ a part of the state:
#
# $$\begin{pmatrix}h\\u\end{pmatrix}' = \begin{pmatrix}A & B\\0 & 0\end{pmatrix}\begin{pmatrix}h\\u\end{pmatrix}
# \qquad\Longrightarrow\qquad
# \exp\,\Delta\begin{pmatrix}A & B\\0 & 0\end{pmatrix} = \begin{pmatrix}\bar A & \bar B\\0 & I\end{pmatrix} \tag{2.7}$$


# %%
def zoh(A, B, delta):
    """(A_bar, B_bar) by Equation 2.7; A (N, N), B (N, M)."""
    N, M = B.shape
    system = torch.zeros(N + M, N + M)
    system[:N] = torch.cat([A, B], dim=1)
    both = matrix_exponential(delta * system)
    return both[:N, :N], both[:N, N:]


train_A, train_B = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([[0.0], [1.0]])
A_bar, B_bar = zoh(train_A, train_B, 0.5)
print("the train after 0.5 with a push of 1: position", B_bar[0].item(), "velocity", B_bar[1].item())
assert close(B_bar.flatten(), torch.tensor([0.5**2 / 2, 0.5]))

# %%
torch.manual_seed(0)
for N, M in ((1, 1), (2, 1), (5, 3), (16, 1)):
    A, B = torch.randn(N, N) - torch.eye(N), torch.randn(N, M)
    ours, theirs = zoh(A, B, 0.3), discretize(A, B, 0.3)
    assert all(close(one, other, 1e-10) for one, other in zip(ours, theirs, strict=True))
print("zoh equals the package's discretize for 4 random systems with up to", N, "states")

# %% [markdown]
# ### Exercise 02.4 · S4's rule
#
# **Goal.** Write the bilinear rule for matrices. **Difficulty.** build. **Minutes.** 8
#
# Return `(A_bar, B_bar)` of (2.4) with $\alpha = 1/2$, which is Equation 3 of the S4 paper. `A` is (N, N), `B` is
# (N, M), `delta` a float; `A_bar` is (N, N) and `B_bar` is (N, M).
#
# <details><summary>Hint</summary>
#
# $I$ is `torch.eye(len(A), dtype=A.dtype)`. `torch.linalg.solve(X, Y)` gives $X^{-1} Y$, and is better than an inverse.
# Division with `/` is number by number.
#
# </details>


# %%
def bilinear(A, B, delta):
    """(A_bar (N, N), B_bar (N, M)) of A (N, N), B (N, M) and the float delta."""
    # BEGIN SOLUTION
    identity = torch.eye(len(A), dtype=A.dtype)
    new = identity - delta / 2 * A
    return torch.linalg.solve(new, identity + delta / 2 * A), torch.linalg.solve(new, delta * B)
    # END SOLUTION


# %%
check("02.4", bilinear)

# %% [markdown]
# ## 8. Stability: which rule explodes, which one dies
#
# Every rule builds $\bar A$ from powers and inverses of $A$, and so the bridge (2.6) works for all of them: in the
# coordinates of the eigenvectors, each state has a number $a$ of its own and is multiplied at each step by its own
# number $\bar A$. In continuous time a state fades if the real part of $a$ is negative, for then $e^{\Delta a}$ is
# smaller than 1 in size. Does the recurrence fade, too? It does if $|\bar A| < 1$. And $\bar A$ depends only on
# $x = \Delta a$, a point in the complex plane. So each rule has a map of the plane: the **stability region**, where
# $|\bar A| < 1$. We draw it by asking the package, point by point.

# %%
real, imaginary = torch.meshgrid(torch.linspace(-4, 2, 241), torch.linspace(-3, 3, 241), indexing="xy")
plane = torch.complex(real, imaginary)
size = {method: discretize_diagonal(plane, 1.0, method)[0].abs() for method in RULES}
left_half = real < -1e-9
for method, name in RULES.items():
    print(f"{name:>14}: stable in {(size[method][left_half] < 1).double().mean():.0%} of the left half drawn here")
assert close(size["euler"], (1 + plane).abs())  # so the region is a disc of radius 1 around -1
assert all((size[method][left_half] < 1).all() for method in ("backward_euler", "bilinear", "zoh"))

# %%
fig, axes = plt.subplots(1, 4, figsize=(9.6, 2.8), sharey=True, layout="constrained")
for axis, (method, name) in zip(axes, RULES.items(), strict=True):
    shades = axis.contourf(real, imaginary, size[method], levels=[0, 0.2, 0.4, 0.6, 0.8, 1], cmap="Greens_r")
    axis.contour(real, imaginary, size[method], levels=[1], colors="black", linewidths=0.8)
    axis.axvline(0, color="tab:red", linewidth=0.9)
    axis.set(xlabel="real part of delta A", title=name, aspect="equal", xticks=[-3, -2, -1, 0, 1])
axes[0].set_ylabel("imaginary part of delta A")
fig.colorbar(shades, label="size of A_bar")
plt.show()
print("at delta A = -3:", ", ".join(f"{name} {size[method][120, 40]:.2g}" for method, name in RULES.items()))

# %% [markdown]
# **What to see.** Green is where the recurrence fades; dark green means fast. Left of the red line, the true state
# fades. So a rule is right if its green fills exactly the left half.
# - **Forward Euler** is stable only in a small disc. A state that should fade, at $x = -3$, grows: $1 + x = -2$.
# - **Backward Euler** fades everywhere outside a disc in the right half. It fades also where the true state grows.
# - **Bilinear and ZOH** have exactly the left half. But look at the shades: far to the left, ZOH is dark, as it
#   should be, and bilinear is pale again. We come back to this in section 9.
#
# The spring lives on the red line itself. It neither fades nor grows: its energy, position$^2$ + velocity$^2$, never
# changes. We let it swing with all four rules, 100 steps of 0.2.


# %%
def run(A_bar, h, steps):
    """The states (steps + 1, N) from h (N,) on, without input."""
    states = [h]
    for _ in range(steps):
        states.append(A_bar @ states[-1])
    return torch.stack(states)


swings = {}
for method, name in RULES.items():
    swings[method] = run(discretize(spring_A, spring_B, 0.2, method)[0], torch.tensor([1.0, 0.0]), 100)
    print(f"{name:>14}: energy after 100 steps, as a multiple of the first: {swings[method][-1].square().sum():.3g}")
assert close(swings["euler"][-1].square().sum(), torch.tensor(1.04**100))
assert close(swings["backward_euler"][-1].square().sum(), torch.tensor(1.04**-100))
assert close(swings["bilinear"].square().sum(1), torch.ones(101))
assert close(swings["zoh"][:, 0], torch.cos(0.2 * torch.arange(101)))

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 2.7), layout="constrained", width_ratios=[2, 1])
for method, name in RULES.items():
    style = "--" if method == "zoh" else "-"
    left.plot(0.2 * torch.arange(101), swings[method][:, 0], style, color=COLOURS[method], label=name)
    right.plot(*swings[method].T, style, color=COLOURS[method])
left.set(xlabel="time", ylabel="position", ylim=(-4, 4), title="The spring with steps of 0.2")
right.set(xlabel="position", ylabel="velocity", xlim=(-4, 4), ylim=(-4, 4), aspect="equal", title="the same as a path")
left.legend(ncols=2, fontsize=8)
plt.show()
late = 100 * (0.2 - 2 * math.atan(0.1))
print(f"after {100 * 0.2:.0f} units of time, bilinear is {late:.2g} units late")

# %% [markdown]
# **What to see.** Euler spirals outwards: each step multiplies the energy by $1 + \Delta^2$. Backward Euler spirals
# inwards by the same factor. Bilinear and ZOH stay on the circle. Bilinear is not exact, though: it turns by
# $2 \arctan(\Delta/2)$ instead of $\Delta$, so it comes slowly too late.
#
# Now move the step size yourself. The system is a swing that dies out, with the eigenvalues $-0.5 \pm 2i$. On the
# left are the two points $x = \Delta a$ and Euler's disc; on the right is the position, exact and by Euler.

# %%
swing_A = torch.tensor([[-0.5, 2.0], [-2.0, -0.5]])  # its eigenvalues are -0.5 + 2i and -0.5 - 2i
swing_a = torch.tensor([-0.5 + 2j, -0.5 - 2j])
eigenvalues = torch.linalg.eigvals(swing_A)
assert close(eigenvalues.real, swing_a.real) and close(eigenvalues.imag.abs(), swing_a.imag.abs())
largest = 2 * 0.5 / (0.5**2 + 2**2)  # where |1 + x| = 1
assert abs(abs(1 + largest * swing_a[0]) - 1) < 1e-12


def draw_step(figure, delta):
    """Euler's disc with the two points (left), and Euler's curve beside the exact one (right)."""
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.6])
    inside = abs(1 + delta * swing_a[0]) < 1
    colour = "tab:green" if inside else "tab:red"
    left.add_patch(plt.Circle((-1, 0), 1, color="tab:green", alpha=0.25))
    left.axvline(0, color="gray", linewidth=0.8)
    left.plot((delta * swing_a).real, (delta * swing_a).imag, "o", color=colour)
    left.set(xlim=(-2.1, 0.5), ylim=(-1.3, 1.3), aspect="equal", xlabel="real part of delta a", ylabel="imaginary part")
    left.set_title(f"delta = {delta:.2f}", fontsize=10)
    fine = torch.linspace(0, 6, 200)
    states = run(discretize(swing_A, spring_B, delta, "euler")[0], torch.tensor([1.0, 0.0]), int(6 / delta))
    right.plot(fine, torch.exp(-0.5 * fine) * torch.cos(2 * fine), color="black", linewidth=1, label="exact")
    right.plot(
        delta * torch.arange(len(states)), states[:, 0], "o-", color=colour, markersize=3, linewidth=0.8, label="Euler"
    )
    right.set(xlabel="time", ylabel="position", ylim=(-2.4, 2.4))
    right.set_title("fades" if inside else "explodes", fontsize=10)
    right.legend(loc="lower left", fontsize=8)


# %%
print(f"the points leave the disc at delta = {largest:.3f}")
steps = [0.03, 0.06, 0.1, 0.14, 0.18, 0.22, 0.25, 0.28, 0.32, 0.36, 0.4, 0.5]
flipbook(draw_step, steps, "Euler's rule for a swing while its step grows")

# %% [markdown]
# **What to see.** For small steps, the points stand near zero, just inside the disc, and the dots follow the line. As
# `delta` grows, the points walk straight away from zero, towards the edge of the disc. The dots swing too far long
# before anything explodes: there the rule is stable and still wrong. Beyond 0.235 the points are outside. Every swing
# is now larger than the one before, and the dots leave the picture.

# %% [markdown]
# ### Exercise 02.5 · The largest step
#
# **Goal.** Compute the step size at which Euler becomes unstable. **Difficulty.** build. **Minutes.** 10
#
# `eigenvalues` is a complex tensor (N,), the eigenvalues of some $A$. Euler is stable for all $\Delta$ between 0 and a
# limit. Return the limit as a float. If one eigenvalue has a real part of zero or more, no step is stable: return 0.0.
#
# <details><summary>Hint</summary>
#
# Write $a = p + iq$ and solve $|1 + \Delta a|^2 = (1 + \Delta p)^2 + (\Delta q)^2 = 1$ for $\Delta$. All eigenvalues
# must be inside the disc.
#
# </details>


# %%
def largest_euler_step(eigenvalues):
    """The smallest unstable step size, a float, for eigenvalues (N,), complex."""
    # BEGIN SOLUTION
    limits = -2 * eigenvalues.real / eigenvalues.abs() ** 2
    return max(0.0, limits.min().item())
    # END SOLUTION


# %%
check("02.5", largest_euler_step)

# %% [markdown]
# ## 9. The step size is a gate
#
# From here on $A$ is diagonal, and we look at one state: a cup. At each step, ZOH keeps the share $e^{\Delta A}$ of it.
#
# **Half-life.** How large must $\Delta$ be so that one step forgets half of the state? Solve
# $e^{\Delta A} = \tfrac12$:
#
# $$\Delta = \frac{\ln 2}{|A|} \qquad\text{and over many steps:}\qquad
# \text{half-life} = \frac{\ln 2}{\Delta\,|A|} \text{ tokens} \tag{2.8}$$
#
# Mamba starts its training with $A = -1, -2, \dots, -16$ for the 16 states of each channel, and with step sizes between
# 0.001 and 0.1 (arXiv 2312.00752, section 3.6). How long do these states remember?

# %%
A, delta = torch.tensor([-1.0, -4.0, -16.0]), torch.tensor([0.001, 0.01, 0.1])
half_lives = math.log(2) / (delta[:, None] * A.abs())
print("half-life in tokens   A = -1   A = -4   A = -16")
for step, row in zip(delta, half_lives, strict=True):
    print(f"delta = {step:<5.3g}       " + "".join(f"{value:9.3g}" for value in row))
A_bar, _ = discretize_diagonal(A, delta[:, None])
assert close(A_bar**half_lives, torch.full((3, 3), 0.5))

# %%
tokens = torch.arange(0, 801)
fig, axis = plt.subplots(figsize=(6, 2.7), layout="constrained")
for A_value, delta_value, colour in ((-1, 0.001, "tab:blue"), (-16, 0.001, "tab:orange"), (-1, 0.1, "tab:green")):
    A_bar, _ = discretize_diagonal(torch.tensor(float(A_value)), delta_value)
    axis.plot(tokens, A_bar**tokens, color=colour, label=f"A = {A_value}, delta = {delta_value}")
axis.axhline(0.5, color="gray", linewidth=0.8)
axis.set(xlabel="tokens since the input", ylabel="share still in the state", title="Memories of a Mamba at its start")
axis.legend()
plt.show()
print("tokens until half is gone:", [round(math.log(2) / x) for x in (0.001, 0.016, 0.1)])

# %% [markdown]
# **What to see.** Half-lives from less than one token to hundreds of tokens, all there before the training starts. The
# blue and the orange state belong to the same channel and share its $\Delta$: $A$ spreads the memory within a channel,
# $\Delta$ across channels. Where curves cross the gray line, half is gone.
#
# **Why is $A$ negative?** Because a positive one would explode. Training could push a number past zero, so Mamba does
# not learn $A$. It learns `A_log`, and computes `A = -exp(A_log)`, which is negative whatever `A_log` is. In the same
# way, `delta = softplus(...)` is positive whatever is inside ($\text{softplus}(z) = \ln(1 + e^z)$). So $\Delta A$ is
# always negative and $\bar A$ always between 0 and 1. The name `A_log` confuses: it is $\ln |A|$, not the logarithm of
# $A$, which does not exist for a negative number. Here is what one sign does over 1,000 tokens:

# %%
A_log = torch.log(torch.arange(1.0, 17.0))  # Mamba's start
A = -torch.exp(A_log)
assert close(A, -torch.arange(1.0, 17.0))
for name, signed in (("A = -exp(A_log)", A), ("A = +exp(A_log)", -A)):
    A_bar, _ = discretize_diagonal(signed, 0.1)
    print(f"{name}: fastest state after 1,000 tokens is finite:", bool((A_bar[-1] ** 1000).isfinite()))
assert torch.isinf(discretize_diagonal(-A, 0.1)[0][-1] ** 1000)

# %% [markdown]
# ### Exercise 02.6 · A memory to order
#
# **Goal.** Initialise a Mamba for a wanted half-life. **Difficulty.** build. **Minutes.** 10
#
# A Mamba stores `A_log` (N,), from which it makes $A$, and a number $z$, from which it makes $\Delta =
# \text{softplus}(z)$. Each of the N states would need its own $z$ to have a half-life of `tokens` tokens. Which?
# `tokens` is a float; return the N answers as a tensor (N,). Mamba's own initialisation does the last part of it: it
# draws a step size and looks for the bias $z$ that gives it.
#
# <details><summary>Hint</summary>
#
# First $A$ from `A_log`, then $\Delta$ from (2.8), and last solve $\Delta = \ln(1 + e^z)$ for $z$.
#
# </details>


# %%
def softplus_input(A_log, tokens):
    """The z (N,) for which softplus(z) gives each state a half-life of `tokens`; A_log (N,)."""
    # BEGIN SOLUTION
    delta = math.log(2) / (torch.exp(A_log) * tokens)
    return torch.log(torch.expm1(delta))
    # END SOLUTION


# %%
check("02.6", softplus_input)

# %% [markdown]
# **Now let $\Delta$ change from token to token.** (2.2) stays true with a pair $\bar A[t], \bar B[t]$ for each token.
# Take $A = -1$ and $B = 1$, the cup again, and write $g = 1 - e^{-\Delta}$. Then ZOH says
#
# $$h[t] = (1 - g[t])\,h[t-1] + g[t]\,u[t] \qquad g[t] = 1 - e^{-\Delta[t]} \tag{2.9}$$
#
# This is a **gate**. $\Delta = 0$ gives $g = 0$: keep the state, ignore the token. $\Delta$ large gives $g = 1$:
# forget the past, take the token. Anything between mixes. Try it by hand: $u = 8, 100, 5$ with $\Delta = \ln 2$, $0$,
# $20$.
#
# | token: u | step: delta | gate: g | state: (1 - g) h + g u |
# |---|---|---|---|
# | 8 | ln 2 | 1/2 | 0 + 4 = 4 |
# | 100 | 0 | 0 | 4 + 0 = 4 |
# | 5 | 20 | 1 | 0 + 5 = 5 |

# %%
u, delta = torch.tensor([8.0, 100.0, 5.0]), torch.tensor([math.log(2), 0.0, 20.0])
A_bar, B_bar = discretize_diagonal(torch.tensor(-1.0), delta)
h, states = torch.tensor(0.0), []
for t in range(3):
    h = A_bar[t] * h + B_bar[t] * u[t]
    states.append(round(h.item(), 6))
print("states:", states)
assert states == [4, 4, 5]

# %% [markdown]
# If the network computes $\Delta[t] = \text{softplus}(z[t])$ from the token, then $1 - e^{-\Delta[t]}$ is exactly the
# sigmoid of $z[t]$: the gate of the classical recurrent networks (*Mamba, Theorem 1*). So the oldest idea of recurrent
# networks, and the sampling of a differential equation, are one thing. Nothing is cut out of the sequence; the tokens
# with small $\Delta$ simply leave the state alone.

# %%
z = torch.linspace(-8, 8, 101)
g = 1 - discretize_diagonal(torch.tensor(-1.0), torch.nn.functional.softplus(z))[0]
print("1 - exp(-softplus(z)) = sigmoid(z):", close(g, torch.sigmoid(z)))
assert close(g, torch.sigmoid(z))

# %% [markdown]
# **Would another rule do as a gate?** Draw what each rule keeps of the state as $\Delta |A|$ grows.

# %%
x = torch.logspace(-2, 2, 200)
fig, axis = plt.subplots(figsize=(6, 2.7), layout="constrained")
for method, name in RULES.items():
    axis.semilogx(x, discretize_diagonal(-x, 1.0, method)[0], color=COLOURS[method], label=name)
axis.axhline(0, color="gray", linewidth=0.8)
axis.set(xlabel="delta |A|", ylabel="A_bar: what is kept", ylim=(-1.5, 1.1), title="From keeping to forgetting")
axis.legend()
plt.show()
kept = {name: discretize_diagonal(torch.tensor(-100.0), 1.0, method)[0] for method, name in RULES.items()}
print("kept at delta |A| = 100:", ", ".join(f"{name} {value:.2g}" for name, value in kept.items()))

# %% [markdown]
# **What to see.** On the left, where steps are small, all rules agree. On the right they part. ZOH and backward Euler
# forget: they go to 0. Forward Euler leaves the picture. Bilinear goes to $-1$: after a large step, the state is not
# forgotten but comes back with the other sign, again and again. It is stable, and it is no gate. With a fixed, small
# $\Delta$, as in S4, that hardly matters. With a $\Delta$ that the token chooses, as in Mamba, it would.
#
# ## 10. What Mamba's paper says and what its code does
#
# The paper (arXiv 2312.00752, Eq. 4) states ZOH for both. The code, and Vim's code, take ZOH for $A$ and
# Euler's simple product for $B$:
#
# | | $\bar A$ | $\bar B$ |
# |---|---|---|
# | paper | $e^{\Delta A}$ | $(\Delta A)^{-1}(e^{\Delta A} - I)\,\Delta B$ |
# | code | $e^{\Delta A}$ | $\Delta B$ |
#
# So "Mamba discretises $B$ with ZOH" is true of the text and false of the code and of the weights trained with it.
# How far are they apart? For one state with $x = \Delta |A|$, the ratio is
#
# $$\frac{\bar B_{\text{ZOH}}}{\bar B_{\text{Euler}}} = \frac{1 - e^{-x}}{x} \tag{2.10}$$
#
# For $x \to 0$ it is 1. By hand at $x = 1$: $1 - 0.368 = 0.632$. Now the corners of Mamba's initialisation.

# %%
for n, delta in ((1, 0.001), (1, 0.1), (16, 0.001), (16, 0.1)):
    _, exact_factor = discretize_diagonal(torch.tensor(-float(n)), delta, "zoh")
    _, euler_factor = discretize_diagonal(torch.tensor(-float(n)), delta, "euler")
    ratio = (exact_factor / euler_factor).item()
    print(f"A = {-n:3}, delta = {delta:5}: ZOH is smaller by {100 * (1 - ratio):.2g} %")
    assert abs(ratio - (1 - math.exp(-n * delta)) / (n * delta)) < 1e-12

# %%
x = torch.logspace(-3, 1, 200)
fig, axis = plt.subplots(figsize=(6, 2.3), layout="constrained")
axis.semilogx(x, (1 - torch.exp(-x)) / x, color="black")
axis.axvspan(0.001, 1.6, color="tab:orange", alpha=0.2, label="Mamba at its start")
axis.set(xlabel="delta |A|", ylabel="ZOH / Euler", ylim=(0, 1.05), title="How much smaller B_bar is with ZOH")
axis.legend()
plt.show()
smaller = [100 * (1 - (1 - math.exp(-x)) / x) for x in (0.001, 1.6)]
print(f"ZOH is smaller by {smaller[0]:.1g} % at the left end of the band and by {smaller[1]:.2g} % at the right end")

# %% [markdown]
# **What to see.** In most of the orange band the ratio is close to 1. At its left end, where $A$ is $-1$ and $\Delta$
# is 0.001, it is 0.9995: nobody could tell the rules apart. At its right end, for $A = -16$ and $\Delta = 0.1$, it is a
# half: where fast states meet large steps, the code lets in twice as much as the paper.
#
# **What does it do to an output?** One channel with Mamba's 16 states and a random input, once with the paper's
# $\bar B$ and once with the code's. The code's version is also what `minivim.selective_scan` computes.


# %%
def outputs(A, B, C, delta, u, method):
    """y (L,) of one channel: A (N,) by ZOH, B (N,) by `method`; delta and u (L,)."""
    A_bar, _ = discretize_diagonal(A, delta[:, None], "zoh")
    _, factor = discretize_diagonal(A, delta[:, None], method)
    h, y = torch.zeros_like(A), []
    for t in range(len(u)):
        h = A_bar[t] * h + factor[t] * B * u[t]
        y.append(C @ h)
    return torch.stack(y)


generator = torch.Generator().manual_seed(0)
A, L = -torch.arange(1.0, 17.0), 200
B, C, u = (torch.randn(size, generator=generator) for size in (16, 16, L))
fixed = torch.full((L,), 0.1)
paper, code = (outputs(A, B, C, fixed, u, method) for method in ("zoh", "euler"))
scanned = selective_scan(
    u.view(1, L, 1), fixed.view(1, L, 1), A.view(1, 16), B.expand(1, L, 16), C.expand(1, L, 16), backend="reference"
)
print("selective_scan does what the code does:", close(scanned.flatten(), code))
assert close(scanned.flatten(), code)


# %%
def difference(one, other):
    """The size of the difference as a share of the size of `one`."""
    return ((one - other).norm() / one.norm()).item()


for step in (0.001, 0.01, 0.1):
    pair = [outputs(A, B, C, torch.full((L,), step), u, method) for method in ("zoh", "euler")]
    print(f"delta = {step}: the outputs differ by {difference(*pair):.1%}")
assert difference(paper, code) > 0.1

# %% [markdown]
# At large steps the outputs differ a lot, and nobody who trains a Mamba notices. Why? Because $B$ is learned. If
# $\Delta$ is the same for all tokens, the ratio (2.10) is one number per state. Multiply the $B$ of the code by it,
# and the code computes what the paper says. If $\Delta$ changes from token to token, so does the ratio, and no fixed
# $B$ makes up for all of them.

# %%
ratio = discretize_diagonal(A, 0.1, "zoh")[1] / 0.1
changing = 0.001 * 100 ** torch.rand(L, generator=generator)  # between 0.001 and 0.1
for name, delta in (("the same for all tokens", fixed), ("changing", changing)):
    corrected, wanted = outputs(A, B * ratio, C, delta, u, "euler"), outputs(A, B, C, delta, u, "zoh")
    print(f"delta {name}: a corrected B gives the paper's output:", close(corrected, wanted, 1e-10))
assert not close(corrected, wanted, 1e-10)
assert close(outputs(A, B * ratio, C, fixed, u, "euler"), paper, 1e-10)

# %% [markdown]
# In Mamba, $B$ depends on the token, too, so the network can make up for more than this. What cannot be mixed is
# weights: a model trained with one rule gives other outputs with the other. And the gate (2.9) is exact only for the
# paper's rule. In the code, the token enters with the factor $\Delta$ and not $1 - e^{-\Delta}$. The two agree while
# $\Delta$ is small. For a large $\Delta$, the past is forgotten as before, but the new token enters enlarged.
#
# **The course uses what the code does**, so that official weights work. `minivim.discretize` has all rules.
#
# ## 11. Another sampling rate
#
# A recurrence with learned $\bar A$ and $\bar B$ knows only steps. A model that learns $A$, $B$ and $\Delta$ knows
# time. If the same recording comes at half the rate, each sample lasts twice as long: **double $\Delta$, keep $A$ and
# $B$.** This is a promise of S4 (arXiv 2111.00396, section 1: speech at half of the sampling rate, without new
# training).
#
# First the exact law. Let every token last twice as long, which is the same as saying it twice. With ZOH, one step of
# $2\Delta$ is exactly two steps of $\Delta$ with the same token, for $e^{\Delta A} e^{\Delta A} = e^{2 \Delta A}$. None
# of the other three has this.

# %%
A_values = -torch.arange(1.0, 5.0)
for method, name in RULES.items():
    (small_A, small_B), (large_A, large_B) = (discretize_diagonal(A_values, step, method) for step in (0.2, 0.4))
    twice = small_A * small_A, small_A * small_B + small_B  # h -> A_bar (A_bar h + B_bar u) + B_bar u
    same = close(twice[0], large_A) and close(twice[1], large_B)
    print(f"{name:>14}: two steps of 0.2 = one step of 0.4: {same}")
    assert same == (method == "zoh")

# %% [markdown]
# Now a sound, which is not held, so that the law holds only nearly. The system is a resonator, the swing of section 8
# made five times as fast: it answers to one pitch. We "train" it at 100 samples per unit of time, which here means only
# that we choose the step size 0.01. Then the recording comes with every second sample left out.


# %%
def respond(A_bar, B_bar, u):
    """The first state over time, (L,), for the input u (L,)."""
    h, y = torch.zeros(2), []
    for value in u:
        h = A_bar @ h + B_bar[:, 0] * value
        y.append(h[0])
    return torch.stack(y)


resonator_A, resonator_B = 5 * swing_A, torch.tensor([[0.0], [5.0]])
clock = torch.arange(0, 4, 0.01)
sound = torch.sin(10 * clock) * torch.exp(-((clock - 2) ** 2)) + 0.5 * torch.sin(3 * clock)
full = respond(*discretize(resonator_A, resonator_B, 0.01), sound)
old = respond(*discretize(resonator_A, resonator_B, 0.01), sound[::2])
new = respond(*discretize(resonator_A, resonator_B, 0.02), sound[::2])
print(f"same recurrence: off by {difference(full[1::2], old):.0%}")
print(f"delta doubled:   off by {difference(full[1::2], new):.1%}")
assert difference(full[1::2], new) < 0.15 < 0.5 < difference(full[1::2], old)

# %%
fig, axis = plt.subplots(figsize=(7, 2.6), layout="constrained")
axis.plot(clock + 0.01, full, color="black", label="full rate, delta = 0.01")
axis.plot(clock[1::2] + 0.01, new, "--", color="tab:green", label="half rate, delta = 0.02")
axis.plot(clock[1::2] + 0.01, old, color="tab:red", linewidth=0.9, label="half rate, delta still 0.01")
axis.set(xlabel="time", ylabel="first state", title="One resonator, two sampling rates")
axis.legend(fontsize=8)
plt.show()
print("samples at full rate:", len(full), " at half rate:", len(new))

# %% [markdown]
# **What to see.** The green line lies nearly on the black one, though it comes from half of the data and from a model
# that was made for another rate. The red one kept its old $\bar A$ and $\bar B$. It hears everything an octave too
# high, and the resonator no longer answers. What remains between green and black is section 6: the samples are held
# longer than before, so they come half a step later.

# %% [markdown]
# ### Exercise 02.7 · Change the rate of a finished model
#
# **Goal.** Recover time from a recurrence. **Difficulty.** investigate. **Minutes.** 12
#
# Somebody gives you a diagonal recurrence made by ZOH, `A_bar` (N,), between 0 and 1, and `B_bar` (N,), but not $A$,
# $B$ or $\Delta$. Return the pair `(A_bar, B_bar)` for steps that are `factor` times as long; `factor` is a float
# such as 2.0, 0.5 or 1.7.
#
# <details><summary>Hint</summary>
#
# $\bar A = e^{\Delta A}$, so what is $e^{\text{factor} \cdot \Delta A}$? For $\bar B$, (2.3) says
# $\bar B = (\bar A - 1) \cdot B/A$. The last fraction does not change with the step.
#
# </details>


# %%
def resample(A_bar, B_bar, factor):
    """(A_bar, B_bar) for steps `factor` times as long; A_bar and B_bar (N,) by ZOH, 0 < A_bar < 1."""
    # BEGIN SOLUTION
    longer = A_bar**factor
    return longer, B_bar * (longer - 1) / (A_bar - 1)
    # END SOLUTION


# %%
check("02.7", resample)

# %% [markdown]
# ## What you built, and where it lives
#
# | what | where |
# |---|---|
# | the four rules for a matrix $A$, and the family with $\alpha$ | `minivim/discretize.py`: `discretize` |
# | the same for a diagonal $A$, number by number | `minivim/discretize.py`: `discretize_diagonal` |
# | Mamba's mixture: $\bar A = e^{\Delta A}$, $\bar B = \Delta B$ | `minivim/ops/scan.py`: `selective_scan` |
#
# **To take along.** All that later chapters need from here is (2.2): a pair $\bar A$ and $\bar B$, made from $A$, $B$
# and $\Delta$ by (2.3) or (2.4). ZOH is exact for a held input. Bilinear is of order 2 and needs no exponential. The
# product $\Delta |A|$ says how much one token makes a state forget. Chapter 03 takes the recurrence (2.2) and finds
# that it is a convolution.
#
# ## Further reading
#
# - A. Gu, K. Goel, C. Ré, *Efficiently Modeling Long Sequences with Structured State Spaces* (S4), 2021,
#   arXiv 2111.00396: section 2.3 and Eq. 3 for the bilinear rule.
# - A. Gu, T. Dao, *Mamba*, 2023, arXiv 2312.00752: section 2 and Eq. 4 for ZOH, section 3.5 for $\Delta$ as a gate.
# - A. Gu et al., *On the Parameterization and Initialization of Diagonal State Space Models* (S4D), 2022,
#   arXiv 2206.11893: both rules for diagonal $A$.
# - C. Van Loan, *Computing Integrals Involving the Matrix Exponential*, IEEE Transactions on Automatic Control 23 (3),
#   1978.
# - A. Tustin, *A method of analysing the behaviour of linear systems in terms of time series*, 1947: the bilinear rule.
