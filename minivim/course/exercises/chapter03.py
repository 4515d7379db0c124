"""The checkers of chapter 03, Recurrence is convolution."""

import torch
from torch import Tensor

from minivim import lti
from minivim.course.exercises.checking import compare, demand, exercise


def _numbers(*shape: int, seed: int) -> Tensor:
    """Normal random numbers in float64, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _system(N: int, M: int, P: int, seed: int) -> tuple[Tensor, ...]:
    """A stable A (N, N), and B (N, M), C (P, N), D (P, M)."""
    A = _numbers(N, N, seed=seed)
    A = 0.9 * A / torch.linalg.matrix_norm(A, 2)
    return A, _numbers(N, M, seed=seed + 1), _numbers(P, N, seed=seed + 2), _numbers(P, M, seed=seed + 3)


@exercise("03.1", "The first four numbers")
def first_four(answer):
    """K[0] .. K[3] of a system with one state."""
    for a, b, c in ((0.5, 1.0, 1.0), (0.5, 3.0, 5.0), (-0.8, 2.0, 0.25), (1.5, -1.0, 4.0)):
        expected = [c * a**k * b for k in range(4)]
        causes = {
            "you read the state before the input came in; K[0] is c b, not 0": [0.0, *expected[:3]],
            "you began at age 1; at age 0 the input has just come in and nothing has faded yet": [
                c * a**k * b for k in range(1, 5)
            ],
            "you added the numbers up, which is the answer to an input of 1 at every step": [
                sum(expected[: k + 1]) for k in range(4)
            ],
            "c is missing: the output reads the state through it": [a**k * b for k in range(4)],
            "b is missing: the input enters the state through it": [c * a**k for k in range(4)],
            "b is raised to a power with a; the input enters only once": [c * (a * b) ** k for k in range(4)],
        }
        compare(answer(a, b, c), expected, "the list", 1e-9, f"a = {a}, b = {b}, c = {c}", causes)


@exercise("03.2", "The kernel without powers")
def kernel(answer):
    """K[k] = C A_bar^k B_bar, (L,)."""
    for N, L in ((1, 4), (3, 8), (2, 1), (5, 20)):
        A, B, C, _ = _system(N, 1, 1, seed=10 * N)
        expected = lti.kernel(A, B, C, L + 1)[:, 0, 0]
        elementwise = torch.stack([(C @ A**k @ B)[0, 0] for k in range(L)])
        causes = {
            "you multiplied by A_bar before the first reading; K[0] is C B_bar": expected[1:],
            "the power was taken number by number; A_bar^k is a product of matrices, A_bar @ A_bar @ ...": elementwise,
            "you used A_bar transposed: column @ A_bar, or A_bar.T": lti.kernel(A.T, B, C, L)[:, 0, 0],
            "you added the numbers up; the impulse comes in once, at step 0": expected[:L].cumsum(0),
        }
        compare(answer(A, B, C, L), expected[:L], "the kernel", 1e-9, f"N = {N} states and L = {L}", causes)


def _response(A: Tensor, B: Tensor, C: Tensor, D: Tensor, length: int) -> Tensor:
    """The answer of an S4 model (3.1) to an impulse at step 0: C B + D, C A B, C A^2 B, ..., (length, P, M)."""
    return lti.kernel(A, B, C, length) + D * (torch.arange(length) == 0)[:, None, None]


def _as_model(found: object, M: int, P: int) -> tuple[Tensor, ...]:
    """The learner's four matrices in float64, once their number and shapes fit together."""
    demand(isinstance(found, (tuple, list)) and len(found) == 4, "return a tuple of four matrices: A, B, C, D")
    for name, matrix in zip("ABCD", found, strict=True):
        demand(isinstance(matrix, Tensor) and matrix.ndim == 2, f"the new {name} must be a tensor of two dimensions")
    S = len(found[0])
    for name, matrix, shape in zip("ABCD", found, ((S, S), (S, M), (P, S), (P, M)), strict=True):
        sizes = f"for {S} states, {M} inputs and {P} outputs it must be {shape}"
        demand(matrix.shape == shape, f"the new {name} has shape {tuple(matrix.shape)}; {sizes}")
    return tuple(matrix.to(torch.float64) for matrix in found)


@exercise("03.3", "From control to S4")
def to_s4(answer):
    """An S4 model that answers an impulse as the control model (A, B, C, D) does."""
    for N, M, P in ((3, 1, 1), (1, 1, 1), (4, 2, 3)):
        A, B, C, D = _system(N, M, P, seed=100 + N)
        A[-1] = 0  # no inverse
        L, expected = N + 3, lti.impulse_response(A, B, C, D, N + 3)
        model = answer(A, B, C, D)
        found = _response(*_as_model(model, M, P), L)
        found = found.to(min((matrix.dtype for matrix in model), key=lambda dtype: dtype.itemsize))  # what it can hold
        skip = torch.cat((D[None], torch.zeros(L - 1, P, M, dtype=D.dtype)))
        causes = {
            "nothing has changed; S4 reads the state after the input, one step early": _response(A, B, C, D, L),
            "you went from S4 to control, by (3.3), and not back": _response(A, B, C @ A, C @ B + D, L),
            "the skip D is lost": expected - skip,
            "the skip D counts twice: through the state and through the new D": expected + skip,
            "the old input stays in the state for ever; the lower rows of the new A are 0": expected.cumsum(0),
            "u[t] enters x at once, too; the upper rows of the new B are 0": expected + lti.kernel(A, B, C, L),
            "no input reaches x: the upper rows of the new A are A and, beside it, B": skip,
        }
        given = f"N = {N} states, M = {M} inputs, P = {P} outputs, A without an inverse"
        compare(found, expected, "the answer of your model to an impulse", 1e-9, given, causes)


def _full(u: Tensor, K: Tensor) -> Tensor:
    """All L + M - 1 numbers of the convolution of u (..., L) and K (M,)."""
    n = u.shape[-1] + len(K) - 1
    pad = torch.nn.functional.pad
    return lti.fft_convolution(pad(u, (0, n - u.shape[-1])), pad(K, (0, n - len(K))))


def _on_a_ring(u: Tensor, K: Tensor, n: int) -> Tensor:
    """The convolution on a ring of n places, cut to the length of u; both are cut or filled up to n."""
    return torch.fft.irfft(torch.fft.rfft(u, n=n) * torch.fft.rfft(K, n=n), n=n)[..., : u.shape[-1]]


def _without_length(u: Tensor, K: Tensor, n: int) -> Tensor:
    """The same for an odd n, but the way back has an even number of places, as irfft takes it if n is not given."""
    return torch.fft.irfft(torch.fft.rfft(u, n=n) * torch.fft.rfft(K, n=n), n=max(n - 1, 2))[..., : u.shape[-1]]


def _mistakes(u: Tensor, K: Tensor) -> dict[str, Tensor]:
    """What convolutions of u (..., L) and K (M,) that are not the causal one give."""
    L, M = u.shape[-1], len(K)
    full = _full(u, K)
    ahead = _full(u, K.flip(0))[..., M - 1 : M - 1 + L]
    return {
        "this is a correlation: the kernel is not flipped, so it meets later inputs, u[t + k]": ahead,
        "you cut the middle out (mode 'same'), so the output hears later inputs": full[..., (M - 1) // 2 :][..., :L],
        "the kernel stands backwards": _full(u, K.flip(0))[..., :L],
        "you cut the end out; the first L numbers are the outputs": full[..., M - 1 :][..., :L],
        "the output is one step late; K[0] belongs to the input of the same step": torch.nn.functional.pad(
            full[..., : L - 1], (1, 0)
        ),
    }


@exercise("03.4", "A causal convolution")
def causal_convolution(answer):
    """The sum (3.2) for a kernel of any length."""
    for L, M in ((6, 3), (5, 5), (4, 9), (1, 1), (12, 1)):
        u, K = _numbers(L, seed=L), _numbers(M, seed=50 + M)
        wrapped = torch.stack([sum(K[k] * u[(t - k) % L] for k in range(M)) for t in range(L)])
        short = _full(u, K)[:L].clone()
        short[:M] -= K[: min(L, M)] * u[0]
        causes = {
            "range(n) ends at n - 1; k must reach min(t, M - 1)": torch.stack(
                [(K[: min(t, M - 1)] * u[t - min(t, M - 1) + 1 : t + 1].flip(0)).sum() for t in range(L)]
            ),
            "each product replaces the one before; they must be added": torch.stack(
                [K[min(t, M - 1)] * u[t - min(t, M - 1)] for t in range(L)]
            ),
            "u[t - k] with k > t has a negative index and reads from the end of u": wrapped,
            "k stops at t - 1; the oldest input, u[0], is left out": short,
            **_mistakes(u, K),
        }
        given = f"u with L = {L} numbers and K with M = {M}"
        compare(answer(u, K), _full(u, K)[:L], "the output", 1e-9, given, causes)


@exercise("03.5", "The Toeplitz matrix")
def toeplitz(answer):
    """T[t, s] = K[t - s] on and below the diagonal, else 0."""
    for L in (3, 1, 8):
        K = _numbers(L, seed=60 + L)
        t = torch.arange(L)
        age = t[:, None] - t
        expected = torch.where(age >= 0, K[age.clamp(min=0)], 0.0)
        first_row = "K lies along the first row; the age is the row minus the column, t - s"
        causes = {
            first_row: expected.T,
            "negative ages read K from its end; above the diagonal there must be zeros": K[age % L],
            "ages count in both directions; above the diagonal there must be zeros": K[age.abs()],
            "negative ages give K[0]; above the diagonal there must be zeros": K[age.clamp(min=0)],
            "the diagonal is empty; an input counts at its own step, with K[0]": expected.tril(-1),
            "all rows begin with K[0]; in row t it must stand on the diagonal": K.expand(L, L).tril(),
        }
        compare(answer(K), expected, "the matrix", 1e-9, f"K = {[round(value, 3) for value in K.tolist()]}", causes)


@exercise("03.6", "Convolution by FFT")
def convolve_by_fft(answer):
    """The causal convolution of u (..., L) and K (M,), without a wrap."""
    for shape, M in (((6,), 4), ((6,), 6), ((2, 3, 5), 5), ((2, 7), 11), ((4,), 30), ((5,), 4), ((1,), 1)):
        u, K = _numbers(*shape, seed=sum(shape)), _numbers(M, seed=70 + M)
        L, expected = shape[-1], _full(u, K)[..., : shape[-1]]
        found, given = answer(u, K), f"u of shape {shape} and K with {M} numbers"
        demand(
            not isinstance(found, Tensor) or found.shape != (*shape[:-1], L + M),
            "the output has L + M numbers along time; keep the first L of the last dimension",
        )
        wrap = "the ring is too short, and the tail comes round to the front (n = {}); take n = L + M"
        rings = {max(L, M): "max(L, M)", 2 * M: "2 M", M: "M", 2 * L: "2 L", L: "L"}  # of equal ones the last stays
        causes = {wrap.format(name): _on_a_ring(u, K, n) for n, name in rings.items() if n >= L}
        odd = (L + M - 1) | 1  # L + M - 1 or L + M
        causes["irfft was not told its n, and gave an even number of places"] = _without_length(u, K, odd)
        compare(found, expected, "the output", 1e-9, given, causes | _mistakes(u, K))


def _choice(L: int, N: int, batch: int, generate: bool, ring: int = 2, share: int = 1, product: int = 4):
    """The cheapest way and its cost by the table of section 8.

    `ring`, `share` and `product` are what learners change: the places of the ring in units of L, how many times the
    kernel is made, and the multiplications of real numbers in one of complex numbers.
    """
    n = ring * L
    kernel_once = share * L * (N * N + N)
    transforms = product * (3 * n // 2 * (n.bit_length() - 1) + n)
    costs = {"recurrence": batch * L * (N * N + 2 * N), "sum": kernel_once + batch * L * (L + 1) // 2}
    if not generate:
        costs["fft"] = kernel_once + batch * transforms
    name = min(costs, key=costs.get)
    return name, costs[name]


@exercise("03.7", "Choose the way")
def choose(answer):
    """The cheapest of recurrence, sum and FFT, by counting."""
    cases = [(1024, 64, 5, False), (1024, 4, 3, False), (16, 64, 8, False), (1024, 64, 5, True), (64, 256, 2, False)]
    for case in [*cases, (4096, 16, 64, False), (4096, 4, 1, True), (2, 1, 1, False)]:
        L, N, batch, generate = case
        given = f"L = {L}, N = {N}, batch = {batch}, generate = {generate}"
        causes = {
            "the kernel may be made before the first input comes, so the sum can generate, too": (
                "recurrence",
                batch * L * (N * N + 2 * N) if generate else None,
            ),
            "the ring has n = 2 L places, not L": _choice(*case, ring=1),
            "a product of complex numbers takes four of real ones": _choice(*case, product=1),
            "making the kernel is not counted": _choice(*case, share=0),
            "the kernel is made once for the whole batch, not for each sequence": (
                None if generate else _choice(*case, share=batch)  # else it is the first cause's value
            ),
            "the batch is not counted": _choice(L, N, 1, generate),
            "the FFT needs all inputs, so it cannot generate": _choice(L, N, batch, False),
        }
        compare(answer(*case), _choice(*case), "the choice", 1e-9, given, causes)


def _product_matrix(a: Tensor, b: Tensor, c: Tensor, first: int, last: int) -> Tensor:
    """M[t, s] = c[t] a[t + last] ... a[s + first] b[s] on and below the diagonal, else 0; (3.10) is 1 and 0."""
    L = len(a)
    rows = [[c[t] * a[s + first : t + 1 + last].prod() * b[s] for s in range(t + 1)] for t in range(L)]
    return torch.stack([torch.cat((torch.stack(row), a.new_zeros(L - len(row)))) for row in rows])


@exercise("03.8", "The matrix of a changing system")
def changing_matrix(answer):
    """M[t, s] = c[t] a[t] ... a[s+1] b[s] on and below the diagonal, else 0."""
    for L, zero in ((4, None), (6, 3), (1, 0), (9, 4)):
        a, b, c = (_numbers(L, seed=80 + 3 * L + i) for i in range(3))
        if zero is not None:
            a[zero] = 0
        expected = _product_matrix(a, b, c, 1, 0)
        found, given = answer(a, b, c), f"L = {L}" + ("" if zero is None else f" and a[{zero}] = 0")
        demand(
            not isinstance(found, Tensor) or bool(found.isfinite().all()),
            f"the matrix holds NaN or infinity, given {given}; do you divide by a product of all a?",
        )
        ones = torch.ones_like(a)
        causes = {
            "the product begins at a[s]; what comes in at step s meets a[s + 1] first": _product_matrix(a, b, c, 0, 0),
            "the product ends at a[t - 1]; it must end at a[t]": _product_matrix(a, b, c, 1, -1),
            "b is taken at the step of the output; it belongs to the step s of the input": b[:, None]
            * _product_matrix(a, ones, c, 1, 0),
            "c is taken at the step of the input; it belongs to the step t of the output": c
            * _product_matrix(a, b, ones, 1, 0),
            "c is missing: the output reads the state through it": _product_matrix(a, b, ones, 1, 0),
            "b is missing: the input enters the state through it": _product_matrix(a, ones, c, 1, 0),
            "the product runs from a[s] to a[t - 1]; it must run from a[s + 1] to a[t]": _product_matrix(
                a, b, c, 0, -1
            ),
            "all rows hold the last one: they are one tensor, changed in place; keep copies": c[:, None]
            * _product_matrix(a, b, ones, 1, 0)[-1],
            "rows and columns are swapped: row t is the output, column s the input": expected.T,
        }
        compare(found, expected, "the matrix", 1e-9, given, causes)
