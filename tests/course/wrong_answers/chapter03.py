"""Wrong answers to chapter 03 as learners give them, and the hint that each must get."""

import torch


def starts_with_age_one(a, b, c):
    return [c * a**k * b for k in range(1, 5)]


def adds_up(a, b, c):
    state, numbers = 0.0, []
    for _ in range(4):
        state = a * state + b
        numbers.append(c * state)
    return numbers


def reads_before_the_input(a, b, c):
    return [0.0, c * b, c * a * b, c * a * a * b]


def forgets_the_output_map(a, b, c):
    return [a**k * b for k in range(4)]


def three_numbers(a, b, c):
    return [c * b, c * a * b, c * a * a * b]


def powers_of_each_number(A_bar, B_bar, C, L):
    return torch.stack([(C @ A_bar**k @ B_bar)[0, 0] for k in range(L)])


def multiplies_before_reading(A_bar, B_bar, C, L):
    column, numbers = B_bar, []
    for _ in range(L):
        column = A_bar @ column
        numbers.append((C @ column)[0, 0])
    return torch.stack(numbers)


def transposed(A_bar, B_bar, C, L):
    return torch.stack([(C @ torch.linalg.matrix_power(A_bar.T, k) @ B_bar)[0, 0] for k in range(L)])


def one_step_too_late(A, B, C, L):
    return torch.stack([C.new_zeros(()), *((C @ torch.linalg.matrix_power(A, k) @ B)[0, 0] for k in range(L - 1))])


def keeps_the_matrices(A_bar, B_bar, C, L):
    return torch.stack([C @ torch.linalg.matrix_power(A_bar, k) @ B_bar for k in range(L)])


def input_at_every_step(A_bar, B_bar, C, L):
    state, numbers = torch.zeros_like(B_bar), []
    for _ in range(L):
        state = A_bar @ state + B_bar
        numbers.append((C @ state)[0, 0])
    return torch.stack(numbers)


def changes_nothing(A, B, C, D):
    return A, B, C, D


def from_s4_to_control(A, B, C, D):
    return A, B, C @ A, C @ B + D


def by_the_inverse(A, B, C, D):
    C = C @ torch.linalg.inv(A)
    return A, B, C, D - C @ B


def blocks(A, B, C, D, keeps_input=0.0, enters=1.0, at_once=0.0):
    """The right model, except for what the last three say."""
    N, M = B.shape
    unit = torch.eye(M, dtype=A.dtype)
    upper, lower = torch.cat((A, enters * B), dim=1), torch.cat((A.new_zeros(M, N), keeps_input * unit), dim=1)
    return torch.cat((upper, lower)), torch.cat((at_once * B, unit)), torch.cat((C, D), dim=1), torch.zeros_like(D)


def keeps_the_old_input(A, B, C, D):
    return blocks(A, B, C, D, keeps_input=1.0)


def input_never_enters(A, B, C, D):
    return blocks(A, B, C, D, enters=0.0)


def input_enters_at_once(A, B, C, D):
    return blocks(A, B, C, D, at_once=1.0)


def loses_the_skip(A, B, C, D):
    return blocks(A, B, C, torch.zeros_like(D))


def skips_twice(A, B, C, D):
    return *blocks(A, B, C, D)[:3], D


def forgets_to_widen_C(A, B, C, D):
    A, B, _, _ = blocks(A, B, C, D)
    return A, B, C, D


def negative_index(u, K):
    y = torch.zeros_like(u)
    for t in range(len(u)):
        for k in range(len(K)):
            y[t] += K[k] * u[(t - k) % len(u)]
    return y


def negative_index_as_it_happens(u, K):
    return torch.stack([sum(K[k] * u[t - k] for k in range(len(K))) for t in range(len(u))])


def one_age_too_few(u, K):
    y = torch.zeros_like(u)
    for t in range(len(u)):
        for k in range(min(t, len(K))):
            y[t] += K[k] * u[t - k]
    return y


def range_too_short(u, K):
    y = torch.zeros_like(u)
    for t in range(len(u)):
        for k in range(min(t, len(K) - 1)):
            y[t] += K[k] * u[t - k]
    return y


def replaces(u, K):
    y = torch.zeros_like(u)
    for t in range(len(u)):
        for k in range(min(t + 1, len(K))):
            y[t] = K[k] * u[t - k]
    return y


def correlation(u, K):
    y = torch.zeros_like(u)
    for t in range(len(u)):
        for k in range(min(len(K), len(u) - t)):
            y[t] += K[k] * u[t + k]
    return y


def whole_convolution(u, K):
    y = u.new_zeros(len(u) + len(K) - 1)
    for s in range(len(u)):
        y[s : s + len(K)] += u[s] * K
    return y


def middle_of_the_convolution(u, K):
    return whole_convolution(u, K)[(len(K) - 1) // 2 :][: len(u)]


def one_step_late(u, K):
    return torch.cat((u.new_zeros(1), whole_convolution(u, K)[: len(u) - 1]))


def age_of(K):
    t = torch.arange(len(K))
    return t[:, None] - t


def reads_from_the_end(K):
    return K[age_of(K)]


def upper_triangle(K):
    return torch.where(age_of(K) <= 0, K[age_of(K).abs()], 0.0)


def symmetric(K):
    return K[age_of(K).abs()]


def empty_diagonal(K):
    return torch.where(age_of(K) > 0, K[age_of(K).abs()], 0.0)


def same_rows(K):
    return K.expand(len(K), len(K)).tril()


def ring_of(u, K, n):
    return torch.fft.irfft(torch.fft.rfft(u, n=n) * torch.fft.rfft(K, n=n), n=n)


def circular(u, K):
    return ring_of(u, K, u.shape[-1])[..., : u.shape[-1]]


def ring_of_the_longer(u, K):
    return ring_of(u, K, max(u.shape[-1], len(K)))[..., : u.shape[-1]]


def ring_of_two_lengths(u, K):
    return ring_of(u, K, 2 * u.shape[-1])[..., : u.shape[-1]]


def without_length(u, K, n):
    return torch.fft.irfft(torch.fft.rfft(u, n=n) * torch.fft.rfft(K, n=n))[..., : u.shape[-1]]


def even_places(u, K):
    return without_length(u, K, u.shape[-1] + len(K))


def even_places_on_the_shortest_ring(u, K):
    return without_length(u, K, u.shape[-1] + len(K) - 1)


def not_cut(u, K):
    return ring_of(u, K, u.shape[-1] + len(K))


def ring_of_two_kernels(u, K):
    return ring_of(u, K, 2 * len(K))[..., : u.shape[-1]]


def middle_by_fft(u, K):
    return not_cut(u, K)[..., (len(K) - 1) // 2 :][..., : u.shape[-1]]


def end_by_fft(u, K):
    return not_cut(u, K)[..., len(K) - 1 :][..., : u.shape[-1]]


def conjugate(u, K):
    n = u.shape[-1] + len(K)
    return torch.fft.irfft(torch.fft.rfft(u, n=n) * torch.fft.rfft(K, n=n).conj(), n=n)[..., : u.shape[-1]]


def stays_complex(u, K):
    n = u.shape[-1] + len(K)
    return torch.fft.ifft(torch.fft.fft(u, n=n) * torch.fft.fft(K, n=n))[..., : u.shape[-1]]


def cheapest(costs):
    name = min(costs, key=costs.get)
    return name, costs[name]


def ring_without_zeros(L, N, batch, generate):
    kernel, power = L * (N * N + N), L.bit_length() - 1
    costs = {"recurrence": batch * L * (N * N + 2 * N), "sum": kernel + batch * L * (L + 1) // 2}
    return cheapest(costs if generate else costs | {"fft": kernel + batch * (6 * L * power + 4 * L)})


def kernel_for_each_sequence(L, N, batch, generate):
    n, kernel = 2 * L, L * (N * N + N)
    costs = {"recurrence": L * (N * N + 2 * N), "sum": kernel + L * (L + 1) // 2}
    costs |= {} if generate else {"fft": kernel + 6 * n * (n.bit_length() - 1) + 4 * n}
    name, cost = cheapest(costs)
    return name, batch * cost


def free_kernel(L, N, batch, generate):
    n = 2 * L
    costs = {"recurrence": L * (N * N + 2 * N), "sum": L * (L + 1) // 2}
    costs |= {} if generate else {"fft": 6 * n * (n.bit_length() - 1) + 4 * n}
    name, cost = cheapest(costs)
    return name, batch * cost


def fft_generates(L, N, batch, generate):
    n, kernel = 2 * L, L * (N * N + N)
    fft = kernel + batch * (6 * n * (n.bit_length() - 1) + 4 * n)
    return cheapest({"recurrence": batch * L * (N * N + 2 * N), "sum": kernel + batch * L * (L + 1) // 2, "fft": fft})


def recurrence_generates(L, N, batch, generate):
    n, kernel, name = 2 * L, L * (N * N + N), "recurrence"
    costs = {name: batch * L * (N * N + 2 * N), "sum": kernel + batch * L * (L + 1) // 2}
    costs["fft"] = kernel + batch * (6 * n * (n.bit_length() - 1) + 4 * n)
    return (name, costs[name]) if generate else cheapest(costs)


def always_fft(L, N, batch, generate):
    n = 2 * L
    return "fft", L * (N * N + N) + batch * (6 * n * (n.bit_length() - 1) + 4 * n)


def divides_products(a, b, c):
    products = a.cumprod(0)
    return (c[:, None] * products[:, None] / products * b).tril()


def begins_too_early(a, b, c):
    rows = [[c[t] * a[s : t + 1].prod() * b[s] for s in range(t + 1)] for t in range(len(a))]
    return torch.stack([torch.stack([*row, *a.new_zeros(len(a) - len(row))]) for row in rows])


def shifted_product(a, b, c):
    rows = [[c[t] * a[s:t].prod() * b[s] for s in range(t + 1)] for t in range(len(a))]
    return torch.stack([torch.stack([*row, *a.new_zeros(len(a) - len(row))]) for row in rows])


def rows_without_copies(a, b, c):
    row, rows = torch.zeros_like(b), []
    for t in range(len(a)):
        row *= a[t]
        row[t] = b[t]
        rows.append(row)
    return c[:, None] * torch.stack(rows)


def right_rows(a, b, c):
    rows = [[c[t] * a[s + 1 : t + 1].prod() * b[s] for s in range(t + 1)] for t in range(len(a))]
    return torch.stack([torch.stack([*row, *a.new_zeros(len(a) - len(row))]) for row in rows])


def columns_are_outputs(a, b, c):
    return right_rows(a, b, c).T


def input_map_of_the_output(a, b, c):
    return right_rows(a, torch.ones_like(b), b * c)


def no_output_map(a, b, c):
    return right_rows(a, b, torch.ones_like(c))


WRONG = {
    "03.1": [
        (starts_with_age_one, "you began at age 1"),
        (reads_before_the_input, "before the input came in"),
        (adds_up, "you added the numbers up"),
        (forgets_the_output_map, "c is missing"),
        (three_numbers, "has 3 values; it must have 4"),
    ],
    "03.2": [
        (powers_of_each_number, "number by number"),
        (multiplies_before_reading, r"before the first reading; K\[0\] is C B_bar"),
        (transposed, "A_bar transposed"),
        (one_step_too_late, "all comes one step late"),
        (keeps_the_matrices, r"shape \(4, 1, 1\); it must be a tensor of shape \(4,\)"),
        (input_at_every_step, "comes in once, at step 0"),
    ],
    "03.3": [
        (changes_nothing, "nothing has changed"),
        (from_s4_to_control, "you went from S4 to control"),
        (by_the_inverse, "singular"),
        (keeps_the_old_input, "stays in the state for ever"),
        (input_never_enters, "no input reaches x"),
        (input_enters_at_once, r"u\[t\] enters x at once"),
        (loses_the_skip, "the skip D is lost"),
        (skips_twice, "the skip D counts twice"),
        (forgets_to_widen_C, r"the new C has shape \(1, 3\); for 4 states"),
    ],
    "03.4": [
        (negative_index, "reads from the end of u"),
        (negative_index_as_it_happens, "reads from the end of u"),
        (one_age_too_few, r"the oldest input, u\[0\], is left out"),
        (range_too_short, r"k must reach min\(t, M - 1\)"),
        (replaces, "they must be added"),
        (correlation, "this is a correlation"),
        (whole_convolution, r"shape \(8,\); it must be a tensor of shape \(6,\)"),
        (middle_of_the_convolution, "mode 'same'"),
        (one_step_late, "one step late"),
    ],
    "03.5": [
        (reads_from_the_end, "negative ages read K from its end"),
        (upper_triangle, "along the first row"),
        (symmetric, "ages count in both directions"),
        (empty_diagonal, "the diagonal is empty"),
        (same_rows, r"all rows begin with K\[0\]"),
    ],
    "03.6": [
        (circular, r"comes round to the front \(n = L\)"),
        (ring_of_the_longer, "comes round to the front"),
        (ring_of_two_lengths, r"comes round to the front \(n = 2 L\)"),
        (ring_of_two_kernels, r"comes round to the front \(n = 2 M\)"),
        (even_places, "irfft was not told its n"),
        (even_places_on_the_shortest_ring, "irfft was not told its n"),
        (not_cut, "keep the first L"),
        (middle_by_fft, "mode 'same'"),
        (end_by_fft, "you cut the end out"),
        (conjugate, "this is a correlation"),
        (stays_complex, "take .real"),
    ],
    "03.7": [
        (ring_without_zeros, "n = 2 L places, not L"),
        (kernel_for_each_sequence, "once for the whole batch"),
        (free_kernel, "making the kernel is not counted"),
        (fft_generates, "it cannot generate"),
        (recurrence_generates, "the sum can generate, too"),
        (always_fft, "it must be 'recurrence'"),
    ],
    "03.8": [
        (divides_products, "do you divide by a product of all a"),
        (begins_too_early, r"the product begins at a\[s\]"),
        (shifted_product, r"it must run from a\[s \+ 1\] to a\[t\]"),
        (rows_without_copies, "changed in place"),
        (columns_are_outputs, "rows and columns are swapped"),
        (input_map_of_the_output, "b is taken at the step of the output"),
        (no_output_map, "c is missing"),
    ],
}
