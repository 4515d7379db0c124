"""What goes under mamba_ssm's names, every form of B and C and the step, against the recurrence in that layout."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from minivim.compat import selective_scan_fn, selective_state_update

BATCH, E, N, L = 2, 6, 3, 11
FORMS = {"fixed": (E, N), "tokens": (BATCH, N, L), "1 group": (BATCH, 1, N, L), "3 groups": (BATCH, 3, N, L)}


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def arguments(B="tokens", C="tokens", states=N):
    """Random arguments of `selective_scan_fn` by name, float64."""
    shapes = {name: tuple(states if size == N else size for size in FORMS[form]) for name, form in (("B", B), ("C", C))}
    return {
        "u": randn(BATCH, E, L),
        "delta": randn(BATCH, E, L),
        "A": -0.1 - torch.rand(E, states, dtype=torch.float64),
        "B": randn(*shapes["B"]),
        "C": randn(*shapes["C"]),
        "D": randn(E),
        "z": randn(BATCH, E, L),
        "delta_bias": randn(E),
    }


def everywhere(x):
    """A map of any form as (BATCH, E, N, L)."""
    if x.ndim == 2:
        return x[None, :, :, None].expand(BATCH, -1, -1, L)
    x = x[:, None] if x.ndim == 3 else x
    return torch.stack([x[:, e * x.shape[1] // E] for e in range(E)], dim=1)


def by_hand(u, delta, A, B, C, D=None, z=None, delta_bias=None):
    """(out, last state): the recurrence, one token after the other, with softplus."""
    B, C = everywhere(B), everywhere(C)
    delta = F.softplus(delta if delta_bias is None else delta + delta_bias[:, None])
    h, rows = torch.zeros_like(B[..., 0]), []
    for t in range(L):
        h = torch.exp(delta[:, :, t, None] * A) * h + (delta * u)[:, :, t, None] * B[..., t]
        rows.append((h * C[..., t]).sum(-1))
    out = torch.stack(rows, dim=2)
    out = out if D is None else out + D[:, None] * u
    return (out if z is None else out * F.silu(z)), h


def gradients(outputs, leaves):
    """By fixed random weights of all outputs."""
    generator = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in outputs)
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("bare", [False, True], ids=["everything", "no D, z, delta_bias"])
@pytest.mark.parametrize(
    ("B", "C"),
    [
        pair
        for pair in itertools.product(FORMS, FORMS)
        if "3 groups" not in pair or pair[0] == pair[1] or "fixed" in pair
    ],
)
def test_every_form_of_the_maps_is_the_recurrence(B, C, bare):
    inputs = {
        name: x.requires_grad_()
        for name, x in arguments(B, C).items()
        if not bare or len(name) < 6 and name not in "Dz"
    }
    found = selective_scan_fn(**inputs, delta_softplus=True, return_last_state=True)
    expected = by_hand(**inputs)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two)
    leaves = list(inputs.values())
    for one, two in zip(gradients(found, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(one, two)
    assert torch.equal(selective_scan_fn(**inputs, delta_softplus=True), found[0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_what_goes_in_and_out_only(form, dtype):
    whole = {"A", "D", "delta_bias"} | ({"B", "C"} if form == "fixed" else set())
    inputs = {name: x.to(torch.float32 if name in whole else dtype) for name, x in arguments(form, form).items()}
    leaves = [x.requires_grad_() for x in inputs.values()]
    out, last = selective_scan_fn(**inputs, delta_softplus=True, return_last_state=True)
    doubles = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    expected = by_hand(**doubles)
    assert (out.dtype, last.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(out.double(), expected[0], rtol=torch.finfo(dtype).eps, atol=1e-5)
    torch.testing.assert_close(last.double(), expected[1], rtol=1e-5, atol=1e-5)
    found, wanted = (
        torch.autograd.grad(x.double().sum(), each)
        for x, each in ((out, leaves), (expected[0], list(doubles.values())))
    )
    for leaf, one, two in zip(leaves, found, wanted, strict=True):
        assert one.dtype == leaf.dtype
        torch.testing.assert_close(one.double(), two, rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("form", ["fixed", "tokens"])
def test_more_states_than_a_kernel_takes(form):
    inputs = arguments(form, form, states=65)
    torch.testing.assert_close(selective_scan_fn(**inputs, delta_softplus=True), by_hand(**inputs)[0])


# --- one token

HEADS = {"no heads": (E,), "3 heads": (3, 2)}


def tokens_of(inputs, own, groups):
    """The arguments of each step, in the layout with or without heads."""
    channels = {name: x.reshape(*own, *x.shape[1:]) for name, x in inputs.items() if name in ("A", "D")}
    channels["dt_bias"] = inputs["delta_bias"].reshape(own)
    for t in range(L):
        tokens = {name: inputs[name][..., t].reshape(BATCH, *own) for name in ("u", "delta", "z")}
        maps = {name: inputs[name][..., t] for name in ("B", "C")}
        yield {"x": tokens["u"], "dt": tokens["delta"], "z": tokens["z"]} | maps | channels


@pytest.mark.parametrize(
    ("own", "form"),
    [
        ("no heads", "tokens"),
        ("no heads", "1 group"),
        ("3 heads", "tokens"),
        ("3 heads", "1 group"),
        ("3 heads", "3 groups"),
    ],
)
def test_steps_are_the_scan(own, form):
    inputs = {name: x.requires_grad_() for name, x in arguments(form, form).items()}
    own = HEADS[own]
    pool = torch.zeros(BATCH, *own, N, dtype=torch.float64)
    state, outs = pool.view(pool.shape), []
    for token in tokens_of(inputs, own, form):
        outs.append(selective_state_update(state, **token, dt_softplus=True))
        assert outs[-1].shape == token["x"].shape
    found, expected = (torch.stack(outs, -1).flatten(1, -2), state.flatten(1, -2)), by_hand(**inputs)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two)
    assert state.data_ptr() == pool.data_ptr()
    leaves = list(inputs.values())
    for one, two in zip(gradients(found, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_rounds_to_the_dtypes_of_state_and_x(dtype):
    token = {name: x.float() for name, x in next(tokens_of(arguments(), (E,), 1)).items()}
    state = torch.randn(BATCH, E, N).to(dtype)
    double = state.double()
    out = selective_state_update(state, **token)
    expected = selective_state_update(double, **{name: x.double() for name, x in token.items()})
    assert (out.dtype, state.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state.double(), double, rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("rows", [[3, 0], [4, -1], [-1, -1]])
def test_rows_of_a_pool_are_the_only_ones_that_change(rows):
    token = next(tokens_of(arguments(), (E,), 1))
    pool = randn(5, E, N)
    before, indices = pool.clone(), torch.tensor(rows, dtype=torch.int32)
    out = selective_state_update(pool, **token, state_batch_indices=indices)
    own = before[indices.clamp(min=0)]
    expected = selective_state_update(own, **token)
    for k, row in enumerate(rows):
        assert torch.equal(out[k], expected[k] if row >= 0 else torch.zeros(E, dtype=torch.float64))
        if row >= 0:
            before[row] = own[k]
    assert torch.equal(pool, before)


# --- bad input


def zeros(name, *shape, dtype=torch.float64, device=None):
    return {name: torch.zeros(*shape, dtype=dtype, device=device)}


COMPLEX = torch.complex128
BAD_SCANS = [
    (zeros("A", E, N, dtype=COMPLEX), TypeError, "A has dtype torch.complex128; it must be a real floating-point"),
    (zeros("B", E, N, dtype=COMPLEX), TypeError, "B has dtype torch.complex128; it must be a real"),
    (zeros("C", BATCH, N, L, dtype=COMPLEX), TypeError, "C has dtype torch.complex128; it must be a real"),
    (zeros("u", BATCH, L), ValueError, r"u has shape \(2, 11\); it must be \(B, E, L\)"),
    (zeros("u", BATCH, E, 0), ValueError, r"u has shape \(2, 6, 0\); no size of \(B, E, L\) may be 0"),
    (zeros("delta", BATCH, L, E), ValueError, r"delta has shape \(2, 11, 6\); it must be \(B, E, L\) = \(2, 6, 11\)"),
    (zeros("z", BATCH, L, E), ValueError, r"z has shape \(2, 11, 6\); it must be \(B, E, L\) = \(2, 6, 11\)"),
    (zeros("A", E + 1, N), ValueError, r"A has shape \(7, 3\); it must be \(E, N\) = \(6, 3\)"),
    (zeros("B", N, E), ValueError, r"B has shape \(3, 6\); it must be \(E, N\) = \(6, 3\)"),
    (zeros("B", N), ValueError, r"B has shape \(3,\); it must be \(E, N\) or \(B, N, L\) or \(B, G, N, L\)"),
    (zeros("C", BATCH, L, N), ValueError, r"C has shape \(2, 11, 3\); it must be \(B, N, L\) = \(2, 3, 11\)"),
    (zeros("C", BATCH, 2, L, N), ValueError, r"C has shape .* it must be \(B, G, N, L\) = \(2, 2, 3, 11\)"),
    (zeros("C", BATCH, 2, N, L), ValueError, "C has 2 groups; it must have as many as B, which has 1"),
    (zeros("B", BATCH, 4, N, L) | zeros("C", E, N), ValueError, "B has 4 groups; .* must divide the 6 channels"),
    (zeros("B", BATCH, 0, N, L) | zeros("C", BATCH, 0, N, L), ValueError, "B has 0 groups"),
    (zeros("D", 1), ValueError, r"D has shape \(1,\); it must be \(E,\) = \(6,\)"),
    (zeros("delta_bias", E, device="meta"), ValueError, "delta_bias is on device meta; it must be on cpu, as u is"),
    ({"C": 3}, TypeError, "C is a int; it must be a tensor"),
    ({"u": None}, TypeError, "u is a NoneType; it must be a tensor"),
]


@pytest.mark.parametrize(("change", "error", "sentence"), BAD_SCANS)
def test_a_bad_argument_of_the_scan_is_named(change, error, sentence, unchecked):
    with pytest.raises(error, match=sentence):
        selective_scan_fn(**arguments() | change)


ROWS = "state_batch_indices"
BAD_STEPS = [
    (zeros("state", BATCH, E), ValueError, r"state has shape \(2, 6\); it must be \(B, P, N\)"),
    (zeros("state", BATCH, 3, 2, N), ValueError, r"x has shape \(2, 6\); it must be \(B, H, P\) = \(2, 3, 2\)"),
    (zeros("state", 3, E, N), ValueError, r"x has shape \(2, 6\); it must be \(B, P\) = \(3, 6\)"),
    (zeros("state", BATCH, E, N, dtype=COMPLEX), TypeError, "state has dtype torch.complex128"),
    (zeros("x", BATCH, E, dtype=torch.int64), TypeError, "x has dtype torch.int64; it must be a real floating"),
    (zeros("dt", BATCH, 1), ValueError, r"dt has shape \(2, 1\); it must be \(B, P\) = \(2, 6\)"),
    (zeros("A", N), ValueError, r"A has shape \(3,\); it must be \(P, N\) = \(6, 3\)"),
    (zeros("B", BATCH, N + 1), ValueError, r"B has shape \(2, 4\); it must be \(B, N\) = \(2, 3\)"),
    (zeros("B", N), ValueError, r"B has shape \(3,\); it must be \(B, N\) or \(B, G, N\)"),
    (zeros("C", BATCH, 2, N), ValueError, "C has 2 groups; it must have as many as B, which has 1"),
    (zeros("B", BATCH, 2, N) | zeros("C", BATCH, 2, N), ValueError, "B has 2 groups; .* must divide the 1 heads"),
    (zeros("D", E, 1), ValueError, r"D has shape \(6, 1\); it must be \(P,\) = \(6,\)"),
    (zeros("z", BATCH, E, device="meta"), ValueError, "z is on device meta; it must be on cpu, as state is"),
    ({"dt_bias": 0.5}, TypeError, "dt_bias is a float; it must be a tensor"),
    ({ROWS: [0, 1]}, TypeError, f"{ROWS} is a list; it must be a tensor of int32 or int64"),
    (zeros(ROWS, BATCH), TypeError, f"{ROWS} has dtype torch.float64; it must be a tensor of int32 or int64"),
    (zeros(ROWS, 3, dtype=torch.int32), ValueError, rf"{ROWS} has shape \(3,\); it must be \(B,\) = \(2,\)"),
    ({ROWS: torch.tensor([0, 2])}, ValueError, f"{ROWS} has 2; it must be below 2, the rows of state"),
]


@pytest.mark.parametrize(("change", "error", "sentence"), BAD_STEPS)
def test_a_bad_argument_of_the_step_is_named(change, error, sentence, unchecked):
    given = {"state": torch.zeros(BATCH, E, N, dtype=torch.float64)} | next(tokens_of(arguments(), (E,), 1)) | change
    with pytest.raises(error, match=sentence):
        selective_state_update(**given)
