# %% [markdown]
# # 01 · State-space models
#
# Every chapter of this course turns on one pair of equations. This chapter shows where it comes from and what it was
# made for: to know where a thing is when all that you have is noisy measurements of it.
#
# **Learning goals.** After this chapter you can
# - say what a state is, and write a system as a state-space model with its matrices A, B, C, D and its noises w, v;
# - translate between the letters of four literatures, and say why this course writes h for the state;
# - derive the Kalman filter, predict and correct, and program it in ten lines;
# - explain what the gain does, and see in it the first gate of this course;
# - look back with the smoother: two passes, forward and backward; and say what that shares with Vim's two directions,
#   and what not;
# - tell which parts of a state a sensor can reveal.
#
# **Prerequisites.** Chapter 00. Matrix products, the inverse, the rank; the mean, variance and covariance of a
# Gaussian.
#
# **Time.** 100 minutes with the exercises. All cells together run for less than half a minute.

# %%
import math

import matplotlib.pyplot as plt
import torch

from minivim import lti
from minivim.course import check
from minivim.figures import flipbook
from minivim.lti import LinearGaussian, kalman_filter, rts_smoother, simulate

plt.rcParams["figure.dpi"] = 75

# %% [markdown]
# In this chapter every number is float64, with 16 decimal digits. Two results count as equal if no number differs by
# more than a tolerance, which is $10^{-12}$ unless a check says otherwise, and why.

# %%
torch.set_default_dtype(torch.float64)


def close(one, other, tolerance=1e-12):
    """Whether no two numbers differ by more than `tolerance`."""
    return bool((one - other).abs().max() <= tolerance)


assert close(torch.ones(2), torch.ones(2)) and not close(torch.ones(2), torch.ones(2) + 1e-11)

# %% [markdown]
# ## 1. A robot in a corridor
#
# A robot drives along a corridor. Once a second, a sensor measures where it is. The sensor is bad: it is off by about
# 5 metres. Where is the robot? And how fast is it, which nothing measures at all?
#
# To answer, we need a description of how the robot moves. What must we know *now* in order to say where it will be
# *next*? Its position alone does not do: it may be driving to the left or to the right. Position and speed together do.
# That is a **state**: the numbers that hold everything about the past which matters for the future.
#
# $$h[t] = \begin{pmatrix} \text{position in m} \\ \text{speed in m/s} \end{pmatrix}$$
#
# Here t = 0, 1, 2, ... counts the seconds. The robot accelerates as its motor is told to: by $u[t]$, in m/s², constant
# for one second. After that second
#
# - the position has grown by the speed times 1 s, and by $\tfrac12 u[t]$;
# - the speed has grown by $u[t]$.
#
# **By hand.** The robot starts at 0 m with 2 m/s. The motor is told 2, 0, -2. Between t = 1 and t = 2, a wheel slips
# on a wet spot, and 1 m/s is lost. The sensor errs by +1, -1, +2 metres.
#
# | t | position | speed | told: u | slip: w | | measured: y |
# |---|---|---|---|---|---|---|
# | 0 | 0 | 2 | 2 | 0 | | 0 + 1 = 1 |
# | 1 | 0 + 2 + 1 = 3 | 2 + 2 = 4 | 0 | -1 | | 3 - 1 = 2 |
# | 2 | 3 + 4 + 0 = 7 | 4 + 0 - 1 = 3 | -2 | 0 | | 7 + 2 = 9 |
# | 3 | 7 + 3 - 1 = 9 | 3 - 2 = 1 | | | | |
#
# Recompute the row t = 3: if you get 9 and 1, you have understood the model.

# %%
position, speed = 0.0, 2.0
path, measured = [(position, speed)], []
for told, slip, error in [(2, 0, 1), (0, -1, -1), (-2, 0, 2)]:
    measured.append(position + error)
    position, speed = position + speed + told / 2, speed + told + slip
    path.append((position, speed))
print("position and speed:", path)
print("measured:", measured)
assert path == [(0, 2), (3, 4), (7, 3), (9, 1)] and measured == [1, 2, 9]

# %% [markdown]
# Everything in the table is a sum of multiples: the rule is linear. So it can be written with matrices.
#
# $$h[t+1] = A\,h[t] + B\,u[t] + w[t] \tag{1.1}$$
# $$y[t] = C\,h[t] + D\,u[t] + v[t] \tag{1.2}$$
#
# *Kalman, "A New Approach to Linear Filtering and Prediction Problems", 1960, in today's letters.* For the robot:
#
# | letter | name | what it does | shape | the robot |
# |---|---|---|---|---|
# | $h$ | state | what the past leaves behind | N = 2 numbers | position, speed |
# | $u$ | input | what we tell or know | M = 1 | acceleration |
# | $y$ | output | what we measure | P = 1 | measured position |
# | $A$ | state matrix | how the state moves by itself | N x N | [[1, 1], [0, 1]] |
# | $B$ | input map | how the input enters the state | N x M | [[0.5], [1]] |
# | $C$ | output map | what the sensor reads of the state | P x N | [[1, 0]] |
# | $D$ | skip | what of the input goes to the output directly | P x M | [[0]] |
# | $w$ | state noise | what moves the state and nobody told us | N numbers a step | slips |
# | $v$ | measurement noise | the sensor's error | P numbers a step | metres |
#
# The number of steps is L. A sequence is a tensor with time first: u is (L, M), h is (L, N), y is (L, P).
#
# The state is the hidden part. A measurement shows one number of two, and that one is wrong by metres.

# %%
A = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
B = torch.tensor([[0.5], [1.0]])
C = torch.tensor([[1.0, 0.0]])
D = torch.zeros(1, 1)

h = torch.tensor([0.0, 2.0])
for told, slip in [(2, 0), (0, -1), (-2, 0)]:
    h = A @ h + B @ torch.tensor([float(told)]) + torch.tensor([0.0, slip])  # equation 1.1
print("after three steps:", h.tolist())
assert h.tolist() == [9, 1]

# %% [markdown]
# ### Exercise 01.1 · A simulator
#
# **Goal.** Run a state-space model. **Difficulty.** recall. **Minutes.** 5
#
# Write (1.1) and (1.2) for any matrices. `A` (N, N), `B` (N, M), `C` (P, N), `D` (P, M); `h` (N,) is the first state,
# h[0]; `u` (L, M), `w` (L, N), `v` (L, P). Return the outputs y as a tensor (L, P).
#
# <details><summary>Hint</summary>
#
# In each step, first read y[t] from the state, then move the state. Collect the outputs in a list and end with
# `torch.stack`.
#
# </details>


# %%
def outputs_of(A, B, C, D, h, u, w, v):
    """Equations 1.1 and 1.2: y (L, P)."""
    # BEGIN SOLUTION
    y = []
    for t in range(len(u)):
        y.append(C @ h + D @ u[t] + v[t])
        h = A @ h + B @ u[t] + w[t]
    return torch.stack(y)
    # END SOLUTION


# %%
check("01.1", outputs_of)

# %% [markdown]
# ## 2. The noise
#
# Nobody knows the slips and the sensor's errors. What one may know is how large they are as a rule. We describe them by
# Gaussians, independent from step to step:
#
# $$w[t] \sim N(0, Q) \qquad v[t] \sim N(0, R) \qquad h[0] \sim N(\text{mean}, \text{covariance}) \tag{1.3}$$
#
# $N(m, P)$ is the Gaussian with mean $m$ and covariance $P$. The diagonal of a covariance holds the variances, the
# squares of the usual errors; the other numbers say what goes together with what. The last part is what we believe
# about the start before anything is measured.
#
# Why Gaussians? Because they stay what they are. A linear map of a Gaussian is a Gaussian, a sum of independent ones is
# a Gaussian, and so is what remains of one when a part of it becomes known. The whole chapter lives on that: we only
# ever have to carry a mean and a covariance.
#
# For our robot, a second adds a slip of about 0.2 m/s to the speed and none to the position: $Q$ holds 0 and $0.2^2$ on
# the diagonal. The sensor errs by 5 m, so $R = 25$. Before the first measurement, we believe that the robot is at 20 m,
# give or take 10 m, and stands still, give or take 2 m/s. The motor is told a cosine, so the robot goes to and fro. One
# call of the package collects all of it. Another draws a run: a start, slips and errors at random.

# %%
Q = torch.diag(torch.tensor([0.0, 0.2**2]))
R = torch.tensor([[5.0**2]])
start = torch.tensor([20.0, 0.0]), torch.diag(torch.tensor([10.0**2, 2.0**2]))
robot = LinearGaussian(A, B, C, D, Q, R, *start)

L = 60
seconds = torch.arange(L)
u = -0.5 * torch.cos(2 * math.pi / 40 * seconds)[:, None]  # (L, 1): a period takes 40 seconds
h, y = simulate(robot, u, torch.Generator().manual_seed(30))
print("h:", tuple(h.shape), " y:", tuple(y.shape))
assert h.shape == (L, 2) and y.shape == (L, 1)

# %% [markdown]
# Is that (1.1) to (1.3)? Then what the equations leave unexplained must be the noise: nothing at all in the position,
# about 0.2 m/s in the speed, about 5 m in the sensor.

# %%
left = h[1:] - h[:-1] @ A.T - u[:-1] @ B.T  # w[t] for all t at once; rows are times, hence A.T
error = y - h @ C.T
print("largest left in the position below 1e-12:", (left[:, 0].abs().max() < 1e-12).item())
print(f"usual slip {left[:, 1].std():.1f} m/s, usual error of the sensor {error.std():.0f} m")
assert left[:, 0].abs().max() < 1e-12
assert abs(left[:, 1].std() - 0.2) < 0.06 and abs(error.std() - 5) < 1.5  # 59 and 60 draws: within 3 deviations

# %%
fig, (above, below) = plt.subplots(2, 1, figsize=(7.6, 3.8), sharex=True, layout="constrained")
above.plot(seconds, h[:, 0], color="black", label="truth")
above.plot(seconds, y, ".", color="tab:red", label="measured")
above.set(ylabel="position (m)")
above.legend(loc="center left", bbox_to_anchor=(1, 0.5))
below.plot(seconds, h[:, 1], color="black", label="truth")
below.set(xlabel="time (s)", ylabel="speed (m/s)")
plt.show()
print(f"measured: {y.numel()} numbers; wanted: {h.numel()}")
off = (y[1:] - y[:-1]).flatten() - h[1:, 1]
print(f"largest speed {h[:, 1].abs().max():.1f} m/s; usual error of a difference {off.std():.1f} m/s")

# %% [markdown]
# **What to see.** The red points are all that we are given. The two black curves are what we want. The differences of
# neighbouring red points tell little about the speed. Two sensor errors of 5 m stand in each, so as a rule they are off
# by $5\sqrt2 \approx 7$ m/s (here by 7.8), and the robot never drives faster than 3.7 m/s.
#
# ## 3. The same equations in other letters
#
# Four literatures use this model, each with its own alphabet. You will meet all of them.
#
# | | this course | control | tracking, robotics | S4 | Mamba, Vim |
# |---|---|---|---|---|---|
# | state | h | x | x | x | h |
# | input | u | u | u | u | x |
# | output, measurement | y | y | z | y | y |
# | state matrix | A | A | F | A | A |
# | input map | B | B | B or G | B | B |
# | output map | C | C | H | C | C |
# | skip | D | D | | D | D |
# | state noise, its covariance | w, Q | w, Q | w, Q | | |
# | measurement noise, its covariance | v, R | v, R | v, R | | |
# | matrices of a backward direction | A, B, C of their own | | G, I | | A, B, C of their own (Vim) |
#
# So tutorials that lead to Vim come in two forms. They say the same, and both leave out $D$:
#
# $$x[t+1] = A\,x[t] + B\,u[t] + w[t] \qquad y[t] = C\,x[t] + v[t] \tag{1.4a}$$
# $$x[t+1] = F\,x[t] + B\,u[t] + w[t] \qquad y[t] = H\,x[t] + v[t] \tag{1.4b}$$
#
# When the second form gets a direction that walks from the end to the beginning, the alphabet goes on: after F comes
# **G**, its state matrix, and after H comes **I**, its output map.
#
# $$x_b[t-1] = G\,x_b[t] + B_b\,u[t] \qquad y_b[t] = I\,x_b[t] \tag{1.4c}$$
#
# Section 8 builds such a direction. Beware: this $I$ is an output map; everywhere else, $I$ is the identity matrix.
#
# **Why h and not x?** In control, x is the state. In Mamba and Vim, x is the input. Both are too common to be wished
# away, so this course uses x for neither: h is the state (as in "hidden"), u is the input. And where have the noises
# gone in S4 and Mamba? They have no sensor to distrust. Their matrices are learned; what stays is the skeleton,
# $h$, $A$, $B$, $C$, $D$.
#
# **Letters that serve twice.** There are more things than letters, and every book has such cases. In a shape, P is the
# number of outputs; in the equations below, $P$ is a covariance. $K$ is the gain here, and the kernel of a convolution
# in chapter 03. $R$ is the covariance of $v$ here, and the rank of delta in Mamba.
#
# ## 4. Two opinions, one better
#
# Before the robot, the smallest case: one number, and two opinions on it.
#
# From the past we believe that the robot is at 10 m, with a variance of 4, that is $N(10, 4)$. The sensor now says 13,
# with a variance of 2. Where is it?
#
# Bayes' rule: what we know afterwards is proportional to what we knew before times how well it explains the
# measurement. Both are Gaussians in $h$, and a product of exponentials adds their exponents:
#
# $$p(h \mid y) \;\propto\; \exp\Big(-\frac{(h - 10)^2}{2 \cdot 4}\Big)
# \cdot \exp\Big(-\frac{(13 - h)^2}{2 \cdot 2}\Big)$$
#
# The exponent is again quadratic in $h$, so the product is again a Gaussian. Which one? A Gaussian with mean $m$ and
# variance $V$ has the exponent
#
# $$-\frac{(h - m)^2}{2 V} = -\frac{h^2}{2} \cdot \frac1V + h \cdot \frac mV + \dots$$
#
# and the dots do not contain $h$. So we compare coefficients. That of $-h^2/2$ is one over the variance, and here it is
# $\tfrac14 + \tfrac12 = \tfrac34$. That of $h$ is the mean over the variance, and here it is
# $\tfrac{10}{4} + \tfrac{13}{2} = 9$. So the variance is $\tfrac43$, and the mean is $9 \cdot \tfrac43 = 12$.
#
# One over a variance is called the **precision**: precisions add, and means are averaged with the precisions as
# weights. With letters, for $N(m, P)$ and a measurement $y$ of variance $R$, the same is
#
# $$K = \frac{P}{P + R} \qquad \text{mean} = m + K\,(y - m) \qquad \text{variance} = (1 - K)\,P \tag{1.5}$$
#
# $K$ is the **gain**. Here it is $\tfrac{4}{4+2} = \tfrac23$: we go two thirds of the way from what we believed to what
# we measured, $10 + \tfrac23 \cdot 3 = 12$, because the sensor is twice as sure as we were.

# %%
m, P, measurement, variance = 10.0, 4.0, 13.0, 2.0
K = P / (P + variance)
print(f"gain {K:.2f}, mean {m + K * (measurement - m):.0f}, variance {(1 - K) * P:.2f}")
assert math.isclose(m + K * (measurement - m), 12) and math.isclose((1 - K) * P, 4 / 3)

# %% [markdown]
# We do not have to believe the algebra. Multiply the two curves on a fine grid, and compute the mean and the variance
# of the product from the numbers.


# %%
def gaussian(x, mean, variance):
    return torch.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


grid = torch.linspace(-20, 40, 6001)
product = gaussian(grid, 10, 4) * gaussian(grid, 13, 2)
product = product / product.sum()
mean_on_grid = (grid * product).sum()
variance_on_grid = ((grid - mean_on_grid) ** 2 * product).sum()
assert close(torch.stack([mean_on_grid, variance_on_grid]), torch.tensor([12, 4 / 3]))

# %%
shown = torch.linspace(2, 19, 300)
fig, axis = plt.subplots(figsize=(6.4, 2.6))
axis.plot(shown, gaussian(shown, 10, 4), color="tab:blue", label="believed: N(10, 4)")
axis.plot(shown, gaussian(shown, 13, 2), color="tab:red", label="measured: N(13, 2)")
axis.plot(shown, gaussian(shown, 12, 4 / 3), color="tab:green", label="both: N(12, 1.33)")
axis.set(xlabel="position (m)", ylabel="density", title="Two opinions and what follows from them")
axis.legend()
plt.show()
print(f"usual errors: {math.sqrt(4):.2g} and {math.sqrt(2):.2g} m alone, {math.sqrt(4 / 3):.2g} m together")

# %% [markdown]
# **What to see.** The green curve lies between the others, nearer to the surer one. And it is narrower than both: even
# a bad measurement adds something.

# %% [markdown]
# ### Exercise 01.2 · Fuse two numbers
#
# **Goal.** Use (1.5). **Difficulty.** derive. **Minutes.** 5
#
# `mean` and `variance` describe what is believed, `y` and `R` the measurement and its variance; all are floats. Return
# (mean, variance) of what is known after it. For the numbers above: (12.0, 1.333...).
#
# <details><summary>Hint</summary>
#
# First the gain. It lies between 0 and 1. It is near 1 if the sensor is sure and the belief is not.
#
# </details>


# %%
def fuse(mean, variance, y, R):
    """Equation 1.5: (mean, variance), floats."""
    # BEGIN SOLUTION
    K = variance / (variance + R)
    return mean + K * (y - mean), (1 - K) * variance
    # END SOLUTION


# %%
check("01.2", fuse)

# %% [markdown]
# ## 5. The Kalman filter
#
# The filter walks through time with a mean $m$ and a covariance $P$ of the state. In each step, it does two things.
#
# **Predict: a second passes.** Let $e = h[t] - m$ be our error, with covariance $P$. By (1.1), the next state is
# $A\,h[t] + B\,u[t] + w[t]$. The part we can compute is $A m + B u[t]$. What is left is $A e + w[t]$: a linear map of
# the old error, plus noise that has nothing to do with it. The covariance of $A e$ is $A P A^T$, and the variances of
# independent things add:
#
# $$m \leftarrow A\,m + B\,u[t] \qquad\qquad P \leftarrow A\,P\,A^T + Q \tag{1.6}$$
#
# Prediction makes us less sure: $Q$ is added.
#
# **By hand.** Let $m = (3, 4)$, let $P$ hold 1 and 4 on the diagonal, $u = 0$, and for once $Q$ with 0 and 1. Then
#
# $$m \leftarrow \begin{pmatrix} 7 \\ 4 \end{pmatrix} \qquad
# P \leftarrow \begin{pmatrix} 1 & 1 \\ 0 & 1 \end{pmatrix} \begin{pmatrix} 1 & 0 \\ 0 & 4 \end{pmatrix}
# \begin{pmatrix} 1 & 0 \\ 1 & 1 \end{pmatrix} + \begin{pmatrix} 0 & 0 \\ 0 & 1 \end{pmatrix}
# = \begin{pmatrix} 5 & 4 \\ 4 & 5 \end{pmatrix}$$
#
# Look at the 4 off the diagonal. A second ago, position and speed had nothing to do with each other. Now they have: if
# the robot is farther than we think, it is probably because it is faster than we think. That number is what will allow
# us to learn a speed from a position.

# %% [markdown]
# ### Exercise 01.3 · Predict
#
# **Goal.** Program (1.6). **Difficulty.** derive. **Minutes.** 5
#
# `A` (N, N), `B` (N, M), `Q` (N, N), `mean` (N,), `covariance` (N, N), `u` (M,). Return (mean, covariance) of the next
# state. Try the numbers above, too.
#
# <details><summary>Hint</summary>
#
# The transposed matrix is `A.T`. It stands on the right: the covariance of $A e$ is the expectation of
# $(A e)(A e)^T = A\, e e^T A^T$.
#
# </details>


# %%
def predict(A, B, Q, mean, covariance, u):
    """Equation 1.6: (mean (N,), covariance (N, N))."""
    # BEGIN SOLUTION
    return A @ mean + B @ u, A @ covariance @ A.T + Q
    # END SOLUTION


# %%
check("01.3", predict)

# %% [markdown]
# **Correct: a measurement arrives.** By (1.2) we expect to measure $C m + D u[t]$. The difference to what we do measure
# is the **innovation**, the surprise:
#
# $$s = y[t] - C\,m - D\,u[t] = C\,e + v[t]$$
#
# Its covariance is $S = C P C^T + R$, by the same rule as above. What does it tell about our error $e$? We look for a
# matrix $K$ such that $K s$ explains all of $e$ that $s$ can explain. Then the rest, $e - K s$, is no longer correlated
# with $s$:
#
# $$0 = \mathrm{Cov}(e - K s,\, s) = P\,C^T - K\,S \qquad\Rightarrow\qquad K = P\,C^T S^{-1} \tag{1.7}$$
#
# For Gaussians, uncorrelated means independent. So once $s$ is known, the rest $e - K s$ still has mean 0, and still
# has its own covariance. That is what $K s$ leaves of $P$, $P - K S K^T$. By (1.7), $S K^T = C P$, so it is $P - K C
# P$. And as the state is $h[t] = m + K s + (e - K s)$,
#
# $$m \leftarrow m + K\,s \qquad\qquad P \leftarrow P - K\,C\,P \tag{1.8}$$
#
# *Kalman, 1960.* With one number and $C = 1$, this is (1.5). Two things that (1.8) does **not** contain: $R$ is not
# added to the new $P$ (it has done its work in $S$), and $P$ does not depend on the measured value.
#
# **By hand.** Go on from above, with $R = 3$ and the measurement $y = 11$. $S = 5 + 3 = 8$. The gain is the first
# column of $P$ over $S$: $K = (\tfrac58, \tfrac48)$. The surprise is $11 - 7 = 4$. So
#
# $$m \leftarrow \begin{pmatrix} 7 + 2.5 \\ 4 + 2 \end{pmatrix} = \begin{pmatrix} 9.5 \\ 6 \end{pmatrix} \qquad
# P \leftarrow \begin{pmatrix} 5 & 4 \\ 4 & 5 \end{pmatrix} - \begin{pmatrix} 5/8 \\ 4/8 \end{pmatrix}
# \begin{pmatrix} 5 & 4 \end{pmatrix} = \begin{pmatrix} 1.875 & 1.5 \\ 1.5 & 3 \end{pmatrix}$$
#
# We measured a position, and the speed has changed from 4 to 6; its variance has fallen from 5 to 3. That is the 4 off
# the diagonal at work.

# %% [markdown]
# ### Exercise 01.4 · Correct
#
# **Goal.** Program (1.7) and (1.8) with $D = 0$. **Difficulty.** derive. **Minutes.** 8
#
# `C` (P, N), `R` (P, P), `mean` (N,), `covariance` (N, N), `y` (P,). Return (mean, covariance) after the measurement.
# For the numbers above: (9.5, 6) and [[1.875, 1.5], [1.5, 3]].
#
# <details><summary>Hint</summary>
#
# `torch.linalg.inv(S)` is the inverse. Compute S, then K, then the two results. Both results use the old covariance.
#
# </details>


# %%
def correct(C, R, mean, covariance, y):
    """Equations 1.7 and 1.8: (mean (N,), covariance (N, N))."""
    # BEGIN SOLUTION
    S = C @ covariance @ C.T + R
    K = covariance @ C.T @ torch.linalg.inv(S)
    return mean + K @ (y - C @ mean), covariance - K @ C @ covariance
    # END SOLUTION


# %%
check("01.4", correct)

# %% [markdown]
# **The filter** is a loop of both. It starts with a correction, because `mean` and `covariance` describe h[0] before
# y[0] has been seen.


# %%
def naive_filter(model, u, y):
    """Means (L, N) and covariances (L, N, N) of h[t] given y[0] .. y[t]."""
    A, B, C, D, Q, R = model.at(0)  # the matrices of step 0; here they never change
    m, P, means, covariances = model.mean, model.covariance, [], []
    for t in range(len(y)):
        K = P @ C.T @ torch.linalg.inv(C @ P @ C.T + R)  # 1.7
        m, P = m + K @ (y[t] - C @ m - D @ u[t]), P - K @ C @ P  # 1.8
        means.append(m)
        covariances.append(P)
        m, P = A @ m + B @ u[t], A @ P @ A.T + Q  # 1.6
    return torch.stack(means), torch.stack(covariances)


predicted = torch.tensor([7.0, 4.0]), torch.tensor([[5.0, 4.0], [4.0, 5.0]])
by_hand = LinearGaussian(A, B, C, D, Q, torch.tensor([[3.0]]), *predicted)
means, covariances = naive_filter(by_hand, torch.zeros(1, 1), torch.tensor([[11.0]]))
print("by hand: [9.5, 6]   by code:", means[0].tolist())
assert close(means[0], torch.tensor([9.5, 6.0]))
assert close(covariances[0], torch.tensor([[1.875, 1.5], [1.5, 3.0]]))

# %% [markdown]
# The package's `kalman_filter` returns the means and covariances after each measurement, those before it (predicted),
# and the log-likelihood of all measurements (section 12). It writes the new covariance as a sum of positive terms
# (Joseph's form), which equals $P - K C P$ and stays a covariance in float32.

# %%
filtered = kalman_filter(robot, u, y)
means, covariances = naive_filter(robot, u, y)
print("naive filter equals the package's:", close(means, filtered.mean) and close(covariances, filtered.covariance))
assert close(means, filtered.mean) and close(covariances, filtered.covariance)

# %% [markdown]
# **The filter at work.** The state is a point in a plane: position to the right, speed upward. What the filter believes
# is a Gaussian in this plane. We draw it as an ellipse of two standard deviations. Each second has two frames: predict,
# then correct.


# %%
def ellipse(mean, covariance):
    """Points (2, 100) two standard deviations around the mean."""
    angle = torch.linspace(0, 2 * math.pi, 100)
    circle = torch.stack([angle.cos(), angle.sin()])
    return mean[:, None] + 2 * torch.linalg.cholesky(covariance) @ circle


def draw_belief(figure, frame):
    t, corrected = divmod(frame, 2)
    axis = figure.add_subplot()
    predicted = ellipse(filtered.predicted_mean[t], filtered.predicted_covariance[t])
    axis.plot(*predicted, color="tab:blue", label="predicted")
    if corrected:
        axis.axvspan(y[t].item() - 10, y[t].item() + 10, color="tab:red", alpha=0.15, label="measured")
        axis.plot(*ellipse(filtered.mean[t], filtered.covariance[t]), color="tab:green", label="corrected")
    axis.plot(*h[t], "k*", markersize=11, label="truth")
    axis.set(xlim=(-5, 65), ylim=(-6, 6), xlabel="position (m)", ylabel="speed (m/s)")
    event = "a measurement arrives" if corrected else "time passes" if t > 0 else "nothing is measured yet"
    axis.set_title(f"second {t}: {event}")
    axis.legend(loc="upper right")


uncertain = [filtered.predicted_covariance[0, 1, 1].sqrt().item(), filtered.covariance[8, 1, 1].sqrt().item()]
print(f"usual error of the speed: {uncertain[0]:.1f} m/s at first, {uncertain[1]:.2f} m/s after second 8")
assert uncertain[1] < uncertain[0] / 2
flipbook(draw_belief, range(18), "What the filter believes, second by second, in the plane of position and speed")

# %% [markdown]
# **What to see.** Press play. The red strip is what a measurement says: the position, give or take two standard
# deviations. It says nothing about the speed, so it is as high as the picture. It pulls the ellipse to itself and makes
# it narrower. When time passes, the ellipse is sheared: its upper part, the fast robots, moves to the right. So it gets
# tilted. And a vertical strip that cuts a tilted ellipse cuts its height, too. That is how a speed is seen by a sensor
# that sees only positions.
#
# Now the whole minute. The bands are two standard deviations to each side: the filter's own opinion of how wrong it may
# be.


# %%
def show_track(axis, mean, covariance, number, colour, label):
    """One number of the state: mean and band."""
    deviation = covariance[:, number, number].sqrt()
    axis.plot(seconds, mean[:, number], color=colour, label=label)
    low, high = mean[:, number] - 2 * deviation, mean[:, number] + 2 * deviation
    axis.fill_between(seconds, low, high, color=colour, alpha=0.2, linewidth=0)


def inside(mean, covariance):
    """How many of the true states lie in the band, for each number of the state."""
    deviation = covariance.diagonal(dim1=1, dim2=2).sqrt()
    return ((h - mean).abs() <= 2 * deviation).sum(0).tolist()


# %%
fig, axes = plt.subplots(2, 1, figsize=(7.6, 4.2), sharex=True, layout="constrained")
axes[0].plot(seconds, y, ".", color="tab:red", label="measured")
for number, axis in enumerate(axes):
    show_track(axis, filtered.mean, filtered.covariance, number, "tab:blue", "filter")
    axis.plot(seconds, h[:, number], color="black", label="truth")
axes[0].set(ylabel="position (m)")
axes[1].set(xlabel="time (s)", ylabel="speed (m/s)")
axes[0].legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
counts = inside(filtered.mean, filtered.covariance)
print(f"true positions inside the band: {counts[0]} of {L}; true speeds: {counts[1]} of {L}")
assert min(counts) >= 0.85 * L

# %% [markdown]
# **What to see.** The band starts wide and becomes narrow within a few seconds, for the speed as well. It should hold
# the truth in 95 of 100 cases, if the model is right. The estimate often lags a little where the robot has slipped: the
# filter needs several measurements to believe it.
#
# ## 6. What the gain means
#
# The covariances in (1.6) to (1.8) do not depend on the measurements. So the gain can be computed before the first one
# arrives: it depends on the model alone. Where it ends is decided by the ratio of $Q$ to $R$, how much the robot slips
# against how badly the sensor measures.


# %%
def gains(model, u):
    """K[t] (L, N) for one sensor."""
    P = kalman_filter(model, u, torch.zeros(len(u), 1)).predicted_covariance
    return (P @ model.C.T / (model.C @ P @ model.C.T + model.R))[:, :, 0]


fig, axis = plt.subplots(figsize=(6.6, 2.7), layout="constrained")
final = {}
for slip, colour in [(0.02, "tab:green"), (0.2, "tab:blue"), (2.0, "tab:red")]:
    model = LinearGaussian(A, B, C, D, torch.diag(torch.tensor([0.0, slip**2])), R, *start)
    curve = gains(model, u)[:, 0]
    final[slip] = curve[-1].item()
    axis.plot(seconds, curve, color=colour, label=f"usual slip {slip} m/s")
axis.set(xlabel="time (s)", ylabel="gain for the position", title="How much of the surprise is believed", ylim=(0, 1))
axis.legend()
plt.show()
print("gain after a minute:", {slip: f"{value:.2f}" for slip, value in final.items()})
assert final[0.02] < final[0.2] < final[2.0] < 1

# %% [markdown]
# **What to see.** At the start all three believe the sensor, because they know next to nothing: the gain is $100/(100
# + 25) = 0.8$. Then the gain falls, and it settles; the red one falls too far at first and comes back. With a robot
# that hardly slips, it settles near 0.1: the past is trusted, and one measurement cannot change much. With a robot
# that slips a lot, it settles at 0.6: the past is soon out of date.
#
# **The filter is itself a state-space model.** Put (1.6) into (1.8), with $u = 0$ and $D = 0$:
#
# $$m[t] = (I - K[t]\,C)\,A\; m[t-1] + K[t]\; y[t] \tag{1.9}$$
#
# Compare it with (0.2) of chapter 00, $h[t] = e^{\Delta[t] A}\,h[t-1] + \Delta[t] B[t]\,u[t]$. Let $\bar A$ be whatever
# multiplies the old state, and $\bar B$ whatever multiplies the input. Then both read
#
# $$h[t] = \bar A[t]\,h[t-1] + \bar B[t]\,u[t]$$
#
# In the filter the state is the estimate, the input is the measurement, $\bar A = (I - K C) A$ and $\bar B = K$. One
# quantity rules both: where $K$ is large, the old estimate is dropped and the measurement taken in; where $K$ is small,
# the old one is kept. The gain is a **gate**, as $\Delta$ is in Mamba. One difference remains: $K[t]$ is fixed before
# any measurement has come.
#
# When the gain has settled, $\bar A$ and $\bar B$ are constant. We check that with the package's `recurrence`, which
# runs $h[t] = \bar A h[t-1] + \bar B u[t]$, $y[t] = C h[t]$ from zero: started with the settled covariance, it must
# equal the filter.

# %%
settled = kalman_filter(robot, torch.zeros(300, 1), torch.zeros(300, 1)).predicted_covariance[-1]
K = settled @ C.T / (C @ settled @ C.T + R)
A_bar, B_bar = (torch.eye(2) - K @ C) @ A, K
steady = LinearGaussian(A, B, C, D, Q, R, torch.zeros(2), settled)
by_filter = kalman_filter(steady, 0 * u, y).mean
by_recurrence = lti.recurrence(A_bar, B_bar, torch.eye(2), y)
print("the settled filter is a recurrence:", close(by_filter, by_recurrence))
assert close(by_filter, by_recurrence)

# %% [markdown]
# **Stable or not.** Without inputs and noise, the state after t steps is $A^t h[0]$. It fades if all eigenvalues of $A$
# are smaller than 1 in absolute value. Then the system is called stable. If one is larger than 1, the state explodes.
# In continuous time (chapter 02) the line is elsewhere: the real parts must be negative.
#
# The robot's $A$ has the eigenvalue 1, twice: a robot that rolls does not stop by itself. So $A$ is not stable, and
# without a sensor our error would grow for ever. The filter's $\bar A$ is stable: old errors fade.

# %%
for name, matrix in {"A": A, "A_bar": A_bar}.items():
    sizes = torch.linalg.eigvals(matrix).abs()
    print(f"{name}: largest size of an eigenvalue {sizes.max():.2g}, stable: {lti.is_stable(matrix)}")
assert not lti.is_stable(A) and lti.is_stable(A_bar)
assert torch.linalg.matrix_power(A_bar, 100).abs().max() < 1e-3

# %% [markdown]
# ## 7. Looking back: the smoother
#
# The filter is honest about time: at second 20 it uses the measurements up to second 20. But when the minute is over,
# we have them all. What was the speed at second 20, *given everything*? A measurement at second 22 helps: where the
# robot is then depends on how fast it was before.
#
# The **smoother** answers this with a second pass, from the end to the beginning. At the last step there is no future,
# so filter and smoother agree. From there we walk back. Suppose first that someone told us the state $h[t+1]$ exactly.
# Our prediction of it was $m^-$, with the covariance $P^- = A P A^T + Q$, and its error is $A e + w[t]$. This is the
# same situation as in (1.7): a surprise, $h[t+1] - m^-$, that is correlated with our error $e$, with
# $\mathrm{Cov}(e, A e + w) = P A^T$. So there is a gain again, and it has the same form:
#
# $$J = P\,A^T (P^-)^{-1} \tag{1.10}$$
#
# and the estimate of $h[t]$ would be $m + J\,(h[t+1] - m^-)$, with the covariance $P - J P^- J^T$. Measurements after
# $t+1$ would add nothing: they depend on $h[t]$ through $h[t+1]$ only.
#
# Nobody tells us $h[t+1]$, but from the step before we know it as $N(m_s, P_s)$; this $s$ stands for smoothed. Put the
# mean in, and add what its uncertainty contributes, $J P_s J^T$:
#
# $$m_s[t] = m + J\,(m_s[t+1] - m^-) \qquad\qquad P_s[t] = P + J\,(P_s[t+1] - P^-)\,J^T \tag{1.11}$$
#
# *Rauch, Tung and Striebel, 1965.* Here $m$ and $P$ are the filter's at $t$, and $m^-$, $P^-$ its prediction for $t+1$.
#
# **By hand.** One number that only drifts: $A = 1$, $Q = 1$. The filter says $N(2, 1)$ at t, so it predicts $N(2, 2)$
# for t+1. Later measurements show that it was $N(4, 1)$ there. Then $J = 1/2$, the mean is $2 + \tfrac12 (4 - 2) = 3$,
# and the variance is $1 + \tfrac14 (1 - 2) = 0.75$. The future has pulled the estimate towards itself, and made it
# surer.

# %% [markdown]
# ### Exercise 01.5 · One step back
#
# **Goal.** Program (1.10) and (1.11). **Difficulty.** derive. **Minutes.** 8
#
# `mean` and `covariance` are the filter's at t, `predicted_mean` and `predicted_covariance` its prediction for t+1,
# `next_mean` and `next_covariance` the smoother's at t+1; all are tensors, (N,) or (N, N), and `A` is (N, N). Return
# (mean, covariance) of the smoother at t.
#
# <details><summary>Hint</summary>
#
# Try it with the numbers above as tensors of shape (1,) and (1, 1). If the covariance gets larger than the filter's,
# look at the order of the difference.
#
# </details>


# %%
def one_step_back(A, mean, covariance, predicted_mean, predicted_covariance, next_mean, next_covariance):
    """Equations 1.10 and 1.11: (mean (N,), covariance (N, N))."""
    # BEGIN SOLUTION
    J = covariance @ A.T @ torch.linalg.inv(predicted_covariance)
    return mean + J @ (next_mean - predicted_mean), covariance + J @ (next_covariance - predicted_covariance) @ J.T
    # END SOLUTION


# %%
check("01.5", one_step_back)


# %%
def naive_smoother(model, filtered):
    """Means (L, N) and covariances (L, N, N) of h[t] given all measurements."""
    means, covariances = [filtered.mean[-1]], [filtered.covariance[-1]]
    for t in range(len(filtered.mean) - 2, -1, -1):  # from the end to the beginning
        m, P, P_minus = filtered.mean[t], filtered.covariance[t], filtered.predicted_covariance[t + 1]
        J = P @ model.A.T @ torch.linalg.inv(P_minus)  # 1.10
        means.append(m + J @ (means[-1] - filtered.predicted_mean[t + 1]))  # 1.11
        covariances.append(P + J @ (covariances[-1] - P_minus) @ J.T)
    return torch.stack(means[::-1]), torch.stack(covariances[::-1])


smooth_mean, smooth_covariance = rts_smoother(robot, filtered)
means, covariances = naive_smoother(robot, filtered)
print("naive smoother equals the package's:", close(means, smooth_mean) and close(covariances, smooth_covariance))
assert close(means, smooth_mean) and close(covariances, smooth_covariance)

# %%
fig, axes = plt.subplots(2, 1, figsize=(7.6, 4.2), sharex=True, layout="constrained")
for number, axis in enumerate(axes):
    show_track(axis, filtered.mean, filtered.covariance, number, "tab:blue", "filter")
    show_track(axis, smooth_mean, smooth_covariance, number, "tab:orange", "smoother")
    axis.plot(seconds, h[:, number], color="black", label="truth")
axes[0].set(ylabel="position (m)")
axes[1].set(xlabel="time (s)", ylabel="speed (m/s)")
axes[0].legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
counts = inside(smooth_mean, smooth_covariance)
print(f"true positions inside the smoother's band: {counts[0]} of {L}; true speeds: {counts[1]} of {L}")
assert min(counts) >= 0.85 * L
assert torch.equal(smooth_mean[-1], filtered.mean[-1])

# %% [markdown]
# **What to see.** The orange band is narrower everywhere but at the end, where both meet, because there the past is all
# there is. The orange curve does not lag behind the truth: it sees a slip coming.
#
# ## 8. Two directions
#
# Filter and smoother together are the first **bidirectional state-space model** of this course: one pass forward, one
# pass backward. We look at what each place sees. An estimate is a weighted sum of the measurements (plus something that
# does not depend on them). How large is the weight of each measurement in the position at second 30? We read it off a
# gradient.


# %%
def weights(estimate):
    """How the estimated position at second 30 depends on each measurement, (L,)."""
    probe = y.clone().requires_grad_()
    return torch.autograd.grad(estimate(probe)[30, 0], probe)[0][:, 0]


by_filter = weights(lambda y: kalman_filter(robot, u, y).mean)
by_smoother = weights(lambda y: rts_smoother(robot, kalman_filter(robot, u, y))[0])
counts = {"filter": (by_filter[31:] != 0).sum().item(), "smoother": (by_smoother[31:] != 0).sum().item()}
print("measurements after second 30 that count:", counts)
assert counts == {"filter": 0, "smoother": 29}

# %%
fig, axis = plt.subplots(figsize=(6.8, 2.7), layout="constrained")
axis.vlines(seconds - 0.15, 0, by_filter, color="tab:blue", linewidth=3, label="filter")
axis.vlines(seconds + 0.25, 0, by_smoother, color="tab:orange", linewidth=3, label="smoother")
axis.axvline(30, color="grey", linestyle=":")
axis.set(xlabel="second of the measurement", ylabel="weight", title="What the estimate at second 30 is made of")
axis.legend()
plt.show()
print(f"largest weight: filter {by_filter.max():.2f}, smoother {by_smoother.max():.2f}")
assert by_smoother.argmax() == 30

# %% [markdown]
# **What to see.** The filter's weights lie on one side, fade with the distance, and end at second 30. The smoother's
# lie on both sides, and none of them needs to be large: an average over more measurements is a better average. Some old
# weights of the filter are below zero. That is no error. Had an old measurement been larger, the way from there to the
# recent ones would be flatter. So the speed would be estimated lower, and the robot less far by now.
#
# You will see this picture again in chapter 08, with patches of an image in place of measurements. There it is the
# reason why Vim runs in two directions.
#
# **The other way to combine.** The smoother's backward pass reads what the forward pass has found. There is a second
# way, closer to Vim: run a filter of its own from the end to the beginning, on the same measurements, and combine the
# two opinions at each place (Fraser and Potter, 1969).
#
# The backward filter needs a model of time running backwards. Solve (1.1) for $h[t]$:
#
# $$h[t] = G\,h[t+1] - G\,B\,u[t] - G\,w[t] \qquad\text{with}\qquad G = A^{-1} \tag{1.12}$$
#
# That is the G of (1.4c). For the robot, it says: a second ago the position was smaller by the speed. The output map of
# the backward direction is the same sensor, so $I = C$. And how to combine? Forward has seen y[0] to y[t], backward has
# seen y[t+1] to y[L-1]. Given $h[t]$, these two have nothing to do with each other: two independent opinions. That is
# section 4: precisions add, and means are averaged with the precisions as weights. Now both are matrices.

# %%
G = torch.linalg.inv(A)
nothing_known = torch.zeros(2), 1e8 * torch.eye(2)  # our belief about the start has been used by the forward filter
backward_model = LinearGaussian(G, -G @ B, C, D, G @ Q @ G.T, R, *nothing_known)
u_backward = torch.cat([u[:-1].flip(0), torch.zeros(1, 1)])  # from h[t+1] to h[t] it is u[t] that counts
backward = kalman_filter(backward_model, u_backward, y.flip(0))

forward_precision = torch.linalg.inv(filtered.covariance)
backward_precision = torch.linalg.inv(backward.predicted_covariance.flip(0))  # predicted: y[t] must not count twice
covariance = torch.linalg.inv(forward_precision + backward_precision)
votes = forward_precision @ filtered.mean[..., None] + backward_precision @ backward.predicted_mean.flip(0)[..., None]
combined = (covariance @ votes)[..., 0]
print("two filters, combined, equal the smoother to 1e-5:", close(combined, smooth_mean, 1e-5))
assert close(combined, smooth_mean, 1e-5)  # 1e8 is not quite "nothing known"; with 1e10, the error is 100 times smaller
assert close(covariance, smooth_covariance, 1e-5)

# %% [markdown]
# Flip, filter, flip, combine: a reader of Vim's code will recognise it. How far does the resemblance go?
#
# | | smoother | Vim (chapter 08) |
# |---|---|---|
# | what two passes give | every place knows what comes before and after it | the same |
# | cost | two walks, each proportional to L | the same |
# | the backward pass reads | the forward results (1.11), or y (two filters) | the same tokens as the forward pass |
# | its matrices | follow from the forward ones: $G = A^{-1}$, $I = C$ | are learned, not tied to the others |
# | how they are combined | by precision: the surer one counts more | averaged with equal weights |
# | the matrices change | with time, if the model says so | with the tokens: they are computed from them |
# | what for | all that can be known, if the model is right | whatever lowers the loss |
#
# So Vim is no smoother: nothing in it is a probability. But the reason for two directions is the same. If the whole
# sequence is there, it is a waste to look at half of it.
#
# ## 9. What is gained
#
# One run proves little. We repeat the minute a hundred times with other noises, and measure the usual error, as a
# root-mean-square: the root of the mean of the squared errors, over all seconds and runs. For the speed, the raw way is
# the difference of two neighbouring measurements.


# %%
def squared_errors(seed):
    """Mean squared errors of one run: (raw, filter, smoother) x (position, speed)."""
    h, y = simulate(robot, u, torch.Generator().manual_seed(seed))
    filtered = kalman_filter(robot, u, y)
    raw = torch.cat([y[1:], y[1:] - y[:-1]], dim=1)
    estimates = raw, filtered.mean[1:], rts_smoother(robot, filtered)[0][1:]
    return torch.stack([((each - h[1:]) ** 2).mean(0) for each in estimates])


rms = torch.stack([squared_errors(seed) for seed in range(100)]).mean(0).sqrt()
for unit, values in (("m", rms[:, 0]), ("m/s", rms[:, 1])):
    print(f"measured, filter, smoother in {unit}:", [f"{value:.1f}" for value in values])
assert rms[1, 0] < rms[0, 0] / 1.5 and rms[2, 0] < rms[1, 0] / 1.5
assert rms[1, 1] < rms[0, 1] / 5 and rms[2, 1] < rms[1, 1] / 1.5

# %%
fig, axes = plt.subplots(1, 2, figsize=(7.4, 2.5), layout="constrained")
names = ["measured", "filter", "smoother"]
for axis, values, title, unit in zip(axes, rms.T, ("Position", "Speed"), ("m", "m/s"), strict=True):
    bars = axis.bar(names, values, color=["tab:red", "tab:blue", "tab:orange"])
    axis.bar_label(bars, fmt="%.1f")
    axis.set(xlabel="estimate", ylabel=f"usual error ({unit})", title=title, ylim=(0, 1.15 * values.max()))
plt.show()
print(f"the smoother's error of the position is {rms[2, 0] / rms[0, 0]:.1f} of the sensor's")

# %% [markdown]
# **What to see.** The filter halves the error of the sensor, and the smoother halves it again, nearly. For the speed
# the two help far more: a difference of two bad measurements is worse than either of them.
#
# The filter cannot be beaten, by the way. It *computes* the mean of the state given the measurements up to now, and no
# other estimate from these has a smaller mean squared error. That holds if the model is right and the noises are
# Gaussian. It is the model that is usually wrong.
#
# ## 10. When the model changes with time
#
# The robot drives through a tunnel: from second 25 to 39, no measurement arrives. Nothing new is needed for that. In
# (1.1) and (1.2) the matrices may change from step to step: $A[t]$, $B[t]$, $C[t]$, $Q[t]$, $R[t]$. In the derivation
# of the filter nothing changes but the index. A step without a measurement is a step at which the sensor sees nothing,
# $C[t] = 0$: the gain (1.7) is then 0, and (1.8) leaves everything as it is.

# %%
open_air = (seconds < 25) | (seconds >= 40)
C_tunnel = torch.where(open_air[:, None, None], C, 0 * C)  # (L, 1, 2): a matrix for every step
tunnel = LinearGaussian(A, B, C_tunnel, D, Q, R, *start)
through = kalman_filter(tunnel, u, y)
back = rts_smoother(tunnel, through)
noise = torch.where(open_air[:, None], y, 1e6)  # whatever stands in y where nothing is seen
print("what y holds in the tunnel counts:", not torch.equal(kalman_filter(tunnel, u, noise).mean, through.mean))
assert torch.equal(kalman_filter(tunnel, u, noise).mean, through.mean)

# %%
fig, axis = plt.subplots(figsize=(7.4, 2.8), layout="constrained")
axis.axvspan(24.5, 39.5, color="lightgrey", label="tunnel")
axis.plot(seconds[open_air], y[open_air], ".", color="tab:red", label="measured")
show_track(axis, through.mean, through.covariance, 0, "tab:blue", "filter")
show_track(axis, *back, 0, "tab:orange", "smoother")
axis.plot(seconds, h[:, 0], color="black", label="truth")
axis.set(xlabel="time (s)", ylabel="position (m)", title="Fifteen seconds without a sensor")
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
deviations = [each[39, 0, 0].sqrt().item() for each in (through.covariance, back[1])]
print(f"usual error at the end of the tunnel: filter {deviations[0]:.0f} m, smoother {deviations[1]:.1f} m")
print("second in the tunnel at which the smoother is least sure:", 25 + back[1][25:40, 0, 0].argmax().item())
assert deviations[0] > 3 * deviations[1]

# %% [markdown]
# **What to see.** In the tunnel the blue band opens like a trumpet: the filter drives on blindly, and knows that it is
# blind. At the first measurement after the tunnel it closes again. Within the tunnel, the orange band is widest in the
# middle: the smoother knows both of its ends.
#
# **The door to Mamba.** A gain of 0 means: let the state run by itself, ignore the measurement. Here, *time* decides
# where that happens; it is written in the model before the data arrives. In Mamba, $\bar A[t]$, $\bar B[t]$ and $C[t]$
# change with time as well, but it is the input itself that decides: the model looks at a token, and chooses how much of
# the state to keep and how much of the token to take. That is selection. Chapter 05 goes through this door. Until then
# the matrices stay constant, which allows what chapter 03 is about.

# %% [markdown]
# ### Exercise 01.6 · A tunnel
#
# **Goal.** A filter for measurements with gaps. **Difficulty.** build. **Minutes.** 12
#
# `y` is a list of L entries: a float, or None where nothing was measured. The model has one output: `A` (N, N), `C` (1,
# N), `Q` (N, N), `R` (1, 1); `mean` (N,) and `covariance` (N, N) describe h[0] before y[0] is seen. There is no input.
# Return the means of h[t] given what was measured up to t, a tensor (L, N).
#
# <details><summary>Hint</summary>
#
# Take the loop of `naive_filter`. What happens at every step, and what only where there is a measurement? A mean
# belongs into the list at every step. And 0.0 is a measurement: ask `is None`.
#
# </details>


# %%
def filter_with_gaps(A, C, Q, R, mean, covariance, y):
    """Means (L, N); y is a list of floats and None."""
    # BEGIN SOLUTION
    means = []
    for measurement in y:
        if measurement is not None:
            K = covariance @ C.T / (C @ covariance @ C.T + R)
            mean = mean + K[:, 0] * (measurement - C @ mean)
            covariance = covariance - K @ C @ covariance
        means.append(mean)
        mean, covariance = A @ mean, A @ covariance @ A.T + Q
    return torch.stack(means)
    # END SOLUTION


# %%
check("01.6", filter_with_gaps)

# %% [markdown]
# ## 11. What can be seen at all
#
# We found a speed from positions. Would it go the other way round, a position from speeds? Take away all noise and all
# inputs. Then the first N outputs are
#
# $$\begin{pmatrix} y[0] \\ y[1] \\ \vdots \\ y[N-1] \end{pmatrix} =
# \begin{pmatrix} C \\ C A \\ \vdots \\ C A^{N-1} \end{pmatrix} h[0] \tag{1.13}$$
#
# *Kalman, "On the General Theory of Control Systems", 1960.* The matrix on the right is the observability matrix. If
# its rank is N, then the outputs determine the state; the system is called **observable**. If the rank is smaller,
# there are directions in the space of states that no output ever shows, however long we measure. (More than N outputs
# do not help: by the theorem of Cayley and Hamilton, $A^N$ is a combination of the lower powers.)
#
# **By hand.** A sensor for the position: the rows are $C = (1, 0)$ and $C A = (1, 1)$. Rank 2: two positions give the
# speed. A sensor for the speed: the rows are $(0, 1)$ and $(0, 1)$. Rank 1. The position is lost.

# %%
sensors = {"position": torch.tensor([[1.0, 0.0]]), "speed": torch.tensor([[0.0, 1.0]])}
for name, sensor in sensors.items():
    matrix = torch.cat([sensor, sensor @ A])  # equation 1.13 for N = 2
    assert torch.equal(matrix, lti.observability(A, sensor))
    print(f"sensor for the {name}: rank {torch.linalg.matrix_rank(matrix)}, observable: {lti.is_observable(A, sensor)}")
assert lti.is_observable(A, sensors["position"]) and not lti.is_observable(A, sensors["speed"])

# %% [markdown]
# What does the filter do with a system that is not observable? It stays right, but it cannot become sure.

# %%
fig, axis = plt.subplots(figsize=(6.4, 2.6), layout="constrained")
last = {}
metre = start[0], torch.diag(torch.tensor([1.0, 4.0]))  # this time we know the start to within a metre
for (name, sensor), error, colour in zip(sensors.items(), (5.0, 0.5), ("tab:blue", "tab:red"), strict=True):
    model = LinearGaussian(A, B, sensor, D, Q, torch.tensor([[error**2]]), *metre)
    deviation = kalman_filter(model, u, 0 * y).covariance[:, 0, 0].sqrt()  # the same for every y, so any y will do
    last[name] = deviation[-1].item()
    axis.plot(seconds, deviation, color=colour, label=f"measured: the {name}")
axis.set(xlabel="time (s)", ylabel="usual error of the position (m)", ylim=(0, 5), title="Can the position be known?")
axis.legend()
plt.show()
print("after a minute:", {name: f"{value:.1f} m" for name, value in last.items()})
assert last["speed"] > last["position"]

# %% [markdown]
# **What to see.** With positions the error settles, although that sensor is off by 5 m. With speeds it grows and never
# stops growing, although that sensor is off by only 0.5 m/s and we knew the start to within a metre. This is how you
# walk through a dark room by counting your steps.
#
# The mirror image is **controllability**: can the inputs drive the state wherever we like? There, the columns
# $B, AB, \dots, A^{N-1}B$ must have rank N. The robot's motor can bring it to any position with any speed.

# %%
print("robot controllable by its motor:", lti.is_controllable(A, B))
assert lti.is_controllable(A, B)
assert torch.equal(lti.controllability(A, B), lti.observability(A.T, B.T).T)  # the mirror image

# %% [markdown]
# ### Exercise 01.7 · Which sensor sees it all?
#
# **Goal.** Count what a sensor never shows. **Difficulty.** investigate. **Minutes.** 10
#
# On a slope, the robot is also pushed: by a constant acceleration that nobody knows. Make it a third number of the
# state, one that stays what it is: $A$ = [[1, 1, 0.5], [0, 1, 1], [0, 0, 1]]. Which sensor would you buy?
#
# `sensors` is a dict from a name to a C of shape (P, N), where P may be 1 or more. Return a dict from each name to the
# number of directions of the state which that sensor never sees: N minus the rank of the observability matrix, an int.
#
# <details><summary>Hint</summary>
#
# N is `len(A)`. Build the blocks C, C A, C A A, ... in a loop: each is the one before times A. Then `torch.cat` and
# `torch.linalg.matrix_rank`, and make it an `int`.
#
# </details>


# %%
def unseen_directions(A, sensors):
    """{name: N - rank of the observability matrix} for each sensor's C."""
    # BEGIN SOLUTION
    unseen = {}
    for name, block in sensors.items():
        blocks = [block]
        for _ in range(len(A) - 1):
            blocks.append(blocks[-1] @ A)
        unseen[name] = len(A) - int(torch.linalg.matrix_rank(torch.cat(blocks)))
    return unseen
    # END SOLUTION


# %%
check("01.7", unseen_directions)

# %% [markdown]
# ## 12. Where do Q and R come from?
#
# The sensor's R can be measured: let the robot stand still, and take the variance of what comes in. Q is harder,
# because nobody sees the slips. But a model can be judged by how well it predicts. The filter predicts each measurement
# before it arrives: as a Gaussian with mean $C m + D u$ and covariance $S$. The density of what then arrived,
# multiplied over all steps, is the likelihood of the model. Its logarithm is a sum. With
# $N(s;\, 0,\, S)$ for the density of that Gaussian, at the surprise $s$:
#
# $$\log p(y[0], \dots, y[L-1]) = \sum_t \log N\big(s[t];\, 0,\, S[t]\big) \tag{1.14}$$
#
# A model that is too sure is punished by large surprises. A model that is too modest is punished by a wide $S$, whose
# density is low everywhere. Take the one measurement of section 4: from $N(10, 4)$ and $R = 2$
# follows the prediction $N(10, 6)$, and 13 came.

# %%
one = torch.ones(1, 1)
single = LinearGaussian(one, one, one, 0 * one, 0 * one, 2 * one, torch.tensor([10.0]), 4 * one)
by_package = kalman_filter(single, 0 * one, 13 * one).log_likelihood
by_formula = -(3**2) / (2 * 6) - math.log(2 * math.pi * 6) / 2
print(f"log-likelihood of the one measurement: {by_formula:.2f}")
assert math.isclose(by_package, by_formula, rel_tol=1e-12)

# %% [markdown]
# The log-likelihood is differentiable: `kalman_filter` is ordinary PyTorch. So the matrices of a state-space model can
# be learned by gradient descent, and that is what S4 and Mamba do with theirs, with another loss.

# %% [markdown]
# ### Exercise 01.8 · How much does it slip?
#
# **Goal.** Choose Q by the likelihood. **Difficulty.** investigate. **Minutes.** 10
#
# `parts` is a dict with everything that `LinearGaussian` needs but Q: `LinearGaussian(**parts, Q=...)`. The candidates
# are Q = level * `unit` (N, N) for each float in the list `levels`. `u` (L, M) and `y` (L, P) are the inputs and the
# measurements. Return the level under which the measurements are most likely.
#
# Then think: why not take the level whose filtered positions come closest to the measurements?
#
# <details><summary>Hint</summary>
#
# `kalman_filter(model, u, y).log_likelihood` is a number. `max(levels, key=...)` finds the best level.
#
# </details>
#
# <details><summary>Why not the closest?</summary>
#
# The larger Q, the more the filter believes each measurement. With Q without limit it repeats them, errors and all, and
# is as close as can be. Closeness is measured after the measurement has been used. The likelihood asks before.
#
# </details>


# %%
def likeliest_level(parts, unit, levels, u, y):
    """The level with the largest log-likelihood, a float out of `levels`."""
    # BEGIN SOLUTION
    filtered = {level: kalman_filter(LinearGaussian(**parts, Q=level * unit), u, y) for level in levels}
    return max(levels, key=lambda level: filtered[level].log_likelihood.item())
    # END SOLUTION


# %%
check("01.8", likeliest_level)

# %% [markdown]
# ## 13. One step early, one step late
#
# A warning for chapter 03. Control writes (1.1): the input $u[t]$ changes the *next* state, $h[t+1]$. S4 and Mamba
# write
#
# $$h[t] = \bar A\,h[t-1] + \bar B\,u[t] \qquad y[t] = C\,h[t] + D\,u[t] \tag{1.15}$$
#
# *Gu et al., arXiv 2111.00396, Eq. 3.* There, $u[t]$ is already in $h[t]$ when $y[t]$ is read. Send in a single 1 at
# step 0, and look at what comes out: in control's form $D, CB, CAB, CA^2B, \dots$; in (1.15) $CB + D, CAB, CA^2B,
# \dots$ The numbers are the same, one step earlier. Neither is wrong, but who mixes them is off by one.

# %%
impulse = torch.zeros(6, 1)
impulse[0] = 1
late = lti.impulse_response(A, B, C, D, 6)[:, 0, 0]
early = lti.recurrence(A, B, C, impulse)[:, 0]
print("control's form:", late.tolist())
print("S4's form:     ", early.tolist())
assert torch.equal(late[1:], early[:-1])

# %% [markdown]
# By hand: one kick of 1 m/s² for one second leaves the robot with 1 m/s. It is at 0.5 m after one second, at 1.5 m
# after two, at 2.5 m after three. The first row says so, and the second says the same one step early. This sequence of
# numbers, the impulse response, will become the kernel of a convolution in chapter 03.

# %% [markdown]
# ## What you built, and where it lives
#
# A simulator, the Kalman filter and the Rauch-Tung-Striebel smoother. They live in `minivim/lti.py`
# as `LinearGaussian`, `simulate`, `kalman_filter` and `rts_smoother`, next to `kernel`, `recurrence` and
# `fft_convolution`, which chapter 03 uses, and `is_stable`, `is_controllable`, `is_observable`. Next: chapter 02, where
# the robot's second is made longer and shorter, and gets its name, $\Delta$.
#
# ## Further reading
#
# - R. E. Kalman, *A New Approach to Linear Filtering and Prediction Problems*, Journal of Basic Engineering, 1960.
# - R. E. Kalman, *On the General Theory of Control Systems*, IFAC Congress, 1960: observability and controllability.
# - H. E. Rauch, F. Tung, C. T. Striebel, *Maximum Likelihood Estimates of Linear Dynamic Systems*, AIAA Journal, 1965.
# - D. Fraser, J. Potter, *The Optimum Linear Smoother as a Combination of Two Optimum Linear Filters*, IEEE
#   Transactions on Automatic Control, 1969.
# - S. Särkkä, L. Svensson, *Bayesian Filtering and Smoothing*, Cambridge University Press, second edition, 2023.
# - A. Gu, K. Goel, C. Ré, *Efficiently Modeling Long Sequences with Structured State Spaces* (S4), 2021, arXiv
#   2111.00396.
# - A. Gu, T. Dao, *Mamba: Linear-Time Sequence Modeling with Selective State Spaces*, 2023, arXiv 2312.00752.
