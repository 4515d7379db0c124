"""Every backend computes the same scan: the float64 loop, autograd, official vectors and the scan's laws say so."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minivim.ops import available_backends, bidirectional_scan, implementations, scan_reference, selective_scan

FAST = [name for name in ("numba", "chunked") if name in available_backends("cpu")]
BACKENDS = [*FAST, "reference"]
FIXTURES = Path(__file__).parents[1] / "fixtures"
OPTIONS = ("D", "z", "delta_bias", "initial_state")


def load_fixture(path: Path) -> dict[str, torch.Tensor]:
    return pytest.importorskip("safetensors.torch").load_file(path)


def problem(batch, L, E, N, options=OPTIONS, softplus=True, dtype=torch.float64):
    """Random inputs by name; without softplus delta is positive as it stands."""

    def randn(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    inputs = {
        "u": randn(batch, L, E),
        "delta": randn(batch, L, E) if softplus else torch.rand(batch, L, E, dtype=torch.float64),
        "A": -0.1 - 3 * torch.rand(E, N, dtype=torch.float64),
        "B": randn(batch, L, N),
        "C": randn(batch, L, N),
        "D": randn(E),
        "z": randn(batch, L, E),
        "delta_bias": randn(E),
        "initial_state": randn(batch, E, N),
    }
    return {k: v.to(dtype) for k, v in inputs.items() if k not in OPTIONS or k in options}


def run(inputs, backend, softplus=True, reverse=False, dtype=None):
    """Output, last state and all gradients, by name, for fixed random gradients of the two results."""
    leaves = {k: v.detach().to(dtype or v.dtype).requires_grad_() for k, v in inputs.items()}
    out, last = selective_scan(
        **leaves, delta_softplus=softplus, return_last_state=True, reverse=reverse, backend=backend
    )
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device) for x in (out, last)]
    loss = sum((x * weight).sum() for x, weight in zip((out, last), weights, strict=True))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {"out": out.detach(), "last_state": last.detach()} | {
        f"d{name}": g for name, g in zip(leaves, gradients, strict=True)
    }


def errors(result, expected):
    """Largest error of each result, relative to the largest entry of what it should be."""
    return {
        name: ((result[name].double() - want).abs().max() / want.abs().max().clamp_min(1e-12)).item()
        for name, want in expected.items()
    }


def assert_close(result, expected, tolerance):
    for name, error in errors(result, expected).items():
        assert error <= tolerance, f"{name}: relative error {error:.2e}, allowed {tolerance:.0e}"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("L", [1, 2, 3, 7, 63, 64, 65, 197, 1025])
def test_float32_equals_the_float64_loop(L, reverse):
    """Outputs, last state and all nine gradients to 1e-5, for every E and N, both directions, every backend."""
    for E, N in itertools.product((1, 3, 16, 48), (1, 4, 16, 32)):
        inputs = problem(2 if L < 1000 else 1, L, E, N)
        # The same float32 numbers for both: what is compared is the computation, not the rounding of its inputs.
        inputs = {k: v.float().double() for k, v in inputs.items()}
        expected = run(inputs, "reference", reverse=reverse)
        # Where a sum over all steps nearly cancels, no order of summation in float32 reaches 1e-5: the loop tells.
        loop = errors(run(inputs, "reference", reverse=reverse, dtype=torch.float32), expected) if E == 1 else {}
        for backend in FAST:
            found = errors(run(inputs, backend, reverse=reverse, dtype=torch.float32), expected)
            for name, error in found.items():
                allowed = max(1e-5, 10 * loop.get(name, 0.0))
                assert error <= allowed, f"{backend}, E={E}, N={N}: {name} is off by {error:.2e}, allowed {allowed:.0e}"


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("options", [c for r in range(5) for c in itertools.combinations(OPTIONS, r)], ids="-".join)
def test_each_option_may_be_left_out(options, softplus, backend):
    inputs = problem(2, 19, 5, 3, options, softplus)
    for reverse in (False, True):
        expected = run(inputs, "reference", softplus, reverse)
        assert_close(run(inputs, backend, softplus, reverse), expected, 1e-12)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck(backend, reverse):
    """Against finite differences in float64, which know nothing of any derivation."""
    inputs = problem(2, 18, 3, 2)
    names = list(inputs)

    def scan(*tensors):
        named = dict(zip(names, tensors, strict=True))
        return selective_scan(**named, delta_softplus=True, return_last_state=True, reverse=reverse, backend=backend)

    assert torch.autograd.gradcheck(scan, [x.requires_grad_() for x in inputs.values()])


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_runs_give_the_same_bits(backend):
    inputs = problem(3, 65, 48, 16, dtype=torch.float32)
    first, second = run(inputs, backend), run(inputs, backend)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.skipif("numba" not in FAST, reason="numba is not installed")
def test_the_number_of_threads_does_not_change_the_bits():
    inputs, before, results = problem(3, 65, 100, 16, dtype=torch.float32), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(inputs, "numba"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0][name], other[name]) for other in results[1:] for name in other)


@pytest.mark.parametrize("backend", FAST)
def test_strided_inputs(backend):
    """Views as a model makes them: B and C cut out of one projection, z out of another; and batch or time expanded."""
    joint = torch.randn(2, 33, 5 + 2 * 4, dtype=torch.float64)
    xz = torch.randn(2, 33, 2 * 6, dtype=torch.float64)
    inputs = problem(2, 33, 6, 4) | {"B": joint[..., 5:9], "C": joint[..., 9:], "u": xz[..., :6], "z": xz[..., 6:]}
    inputs["delta"] = torch.randn(33, 2, 6, dtype=torch.float64).transpose(0, 1)
    contiguous = {k: v.contiguous() for k, v in inputs.items()}
    for reverse in (False, True):
        options = {"delta_softplus": True, "reverse": reverse, "return_last_state": True, "backend": backend}
        torch.testing.assert_close(selective_scan(**inputs, **options), selective_scan(**contiguous, **options))
    transposed = problem(2, 33, 6, 4)["u"].transpose(1, 2).contiguous().transpose(1, 2)
    expanded = inputs | {"u": transposed, "delta": torch.randn(1, 1, 6, dtype=torch.float64).expand(2, 33, 6)}
    plain = {k: v.contiguous() for k, v in expanded.items()}
    assert_close(run(expanded, backend), run(plain, "reference"), 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_within_its_rounding(backend, dtype):
    """Half-precision inputs, float32 state: the result is the exact one, rounded once."""
    inputs = {k: v.to(dtype).double() for k, v in problem(2, 65, 16, 16).items()}
    expected = run(inputs, "reference")
    half = run(inputs, backend, dtype=dtype)
    assert half["out"].dtype == dtype and half["du"].dtype == dtype and half["last_state"].dtype == torch.float32
    assert_close(half, expected, torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", BACKENDS)
def test_official_vectors(backend):
    """The official code's outputs and gradients, in its layout (batch, channels, time), to 1e-5."""
    for name in ("selective_scan", "selective_scan_bare"):
        stored = load_fixture(FIXTURES / f"{name}.safetensors")
        inputs = {k.removeprefix("in."): v for k, v in stored.items() if k.startswith("in.")}
        ours = {k: (v.transpose(1, 2) if v.ndim == 3 else v).requires_grad_() for k, v in inputs.items()}
        options = {"delta_softplus": name == "selective_scan", "return_last_state": True, "backend": backend}
        out, last_state = selective_scan(**ours, **options)
        torch.testing.assert_close(out.transpose(1, 2), stored["out"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(last_state, stored["last_state"], rtol=1e-5, atol=1e-5)
        gradients = torch.autograd.grad(out, list(ours.values()), stored["grad_out"].transpose(1, 2))
        for key, gradient in zip(ours, gradients, strict=True):
            official = stored[f"grad.{key}"]
            gradient = gradient.transpose(1, 2) if gradient.ndim == 3 else gradient
            assert (gradient - official).abs().max() <= 1e-5 * official.abs().max(), key


# --- laws


@pytest.mark.parametrize("backend", BACKENDS)
def test_reverse_is_flip_scan_flip(backend):
    inputs = problem(2, 37, 5, 4)
    flipped = {k: v.flip(1) if v.ndim == 3 and k != "initial_state" else v for k, v in inputs.items()}
    forward = selective_scan(**flipped, delta_softplus=True, return_last_state=True, backend=backend)
    reverse = selective_scan(**inputs, delta_softplus=True, return_last_state=True, reverse=True, backend=backend)
    torch.testing.assert_close(reverse[0], forward[0].flip(1))
    torch.testing.assert_close(reverse[1], forward[1])


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25)
@given(L=st.integers(2, 70), cut=st.integers(1, 69), E=st.integers(1, 20), N=st.integers(1, 9), reverse=st.booleans())
def test_two_halves_with_the_state_between_are_the_whole(backend, L, cut, E, N, reverse):
    cut = min(cut, L - 1)
    inputs = problem(1, L, E, N, ("D", "z", "delta_bias"))
    options = {"delta_softplus": True, "return_last_state": True, "reverse": reverse, "backend": backend}
    whole, last = selective_scan(**inputs, **options)
    parts = (slice(cut, None), slice(0, cut)) if reverse else (slice(0, cut), slice(cut, None))
    state, out = None, torch.empty_like(whole)
    for part in parts:
        piece = {k: v[:, part] if v.ndim == 3 else v for k, v in inputs.items()}
        out[:, part], state = selective_scan(**piece, initial_state=state, **options)
    torch.testing.assert_close(out, whole)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=40)
@given(
    batch=st.integers(1, 11), L=st.integers(1, 50), E=st.integers(1, 110), N=st.integers(1, 20), reverse=st.booleans()
)
def test_any_shape(backend, batch, L, E, N, reverse):
    inputs = problem(batch, L, E, N)
    assert_close(run(inputs, backend, reverse=reverse), run(inputs, "reference", reverse=reverse), 1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_in_u_when_delta_is_fixed(backend):
    inputs = problem(1, 30, 4, 3, ("D", "z", "delta_bias"))
    v = torch.randn_like(inputs["u"])

    def of(u):
        return selective_scan(**inputs | {"u": u}, delta_softplus=True, backend=backend)

    torch.testing.assert_close(of(2 * inputs["u"] - 3 * v), 2 * of(inputs["u"]) - 3 * of(v))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_no_step_sees_what_comes_after_it(backend, reverse):
    inputs = problem(1, 40, 4, 3)
    u = inputs["u"].requires_grad_()
    out = selective_scan(**inputs, delta_softplus=True, reverse=reverse, backend=backend)
    (gradient,) = torch.autograd.grad(out[0, 20].sum(), u)
    seen = gradient[0].abs().sum(-1) > 0
    assert torch.equal(seen, torch.arange(40) >= 20 if reverse else torch.arange(40) <= 20)


@pytest.mark.parametrize("backend", BACKENDS)
def test_limits_of_delta(backend):
    """delta = 0 keeps the state and ignores the input; a huge delta forgets everything before."""
    inputs = problem(1, 9, 3, 2, ("initial_state",), softplus=False)
    options = {"return_last_state": True, "backend": backend}
    _, kept = selective_scan(**inputs | {"delta": torch.zeros_like(inputs["delta"])}, **options)
    torch.testing.assert_close(kept, inputs["initial_state"])
    huge = inputs | {"delta": torch.full_like(inputs["delta"], 1e3)}
    without = {k: v for k, v in huge.items() if k != "initial_state"}
    torch.testing.assert_close(selective_scan(**huge, **options)[0], selective_scan(**without, **options)[0])


@pytest.mark.parametrize("backend", FAST)
def test_nearly_undamped_states_over_a_long_time(backend):
    """Where a bias of exp near 0 would add up: half-life of 27 steps times 1/delta, 6,085 steps."""
    inputs = problem(1, 6085, 8, 4, ("D",), softplus=False)
    inputs |= {"A": torch.full_like(inputs["A"], -0.025), "delta": inputs["delta"] * 0.1}
    inputs = {k: v.float().double() for k, v in inputs.items()}
    expected = scan_reference(**inputs)[0]
    out = selective_scan(**{k: v.float() for k, v in inputs.items()}, backend=backend)
    assert errors({"out": out}, {"out": expected})["out"] <= 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_are_not_hidden(backend, value):
    inputs = problem(1, 20, 3, 4, softplus=True, dtype=torch.float32)
    for name in ("u", "delta", "B", "C", "z"):
        broken = inputs | {name: inputs[name].clone()}
        broken[name][0, 10] = value
        out = selective_scan(**broken, delta_softplus=True, backend=backend)
        assert torch.isfinite(out[0, :10]).all() and not torch.isfinite(out[0, 10]).all(), name


@pytest.mark.parametrize("backend", FAST)
def test_extreme_delta_before_softplus(backend):
    """softplus from its tail (e^-30) to its straight part (50), relative to float64."""
    inputs = problem(1, 9, 4, 4, ("D", "z"))
    inputs["delta"] = torch.linspace(-30, 50, 36, dtype=torch.float64).reshape(1, 9, 4)
    inputs = {k: v.float().double() for k, v in inputs.items()}
    assert_close(run(inputs, backend, dtype=torch.float32), run(inputs, "reference"), 1e-5)


# --- two directions at once


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 1, 3, 1), (2, 33, 20, 16), (9, 17, 50, 3)])
def test_both_directions_are_the_mean_of_two_scans(backend, shape):
    names = ("u", "delta", "A", "B", "C", "D", "delta_bias")
    z = torch.randn(shape[:3], dtype=torch.float64).requires_grad_()
    ahead, back = ([problem(*shape)[name].requires_grad_() for name in names] for _ in range(2))
    out = bidirectional_scan(tuple(ahead), tuple(back), z, backend=backend)
    each = [scan_reference(*x[:6], z, x[6], True, reverse=reverse)[0] for x, reverse in ((ahead, False), (back, True))]
    expected = (each[0] + each[1]) / 2
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    found, wanted = (torch.autograd.grad((y * weight).sum(), [*ahead, *back, z]) for y in (out, expected))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("states", [(4, 40), (40, 4), (5, 5)])
@pytest.mark.parametrize("missing", [None, "D", "delta_bias"])
@pytest.mark.parametrize("way", [0, 1])
def test_the_two_directions_may_be_unlike(backend, states, missing, way):
    names = ("u", "delta", "A", "B", "C", "D", "delta_bias")
    z = torch.randn(2, 7, 6, dtype=torch.float64).requires_grad_()
    pair = [{name: problem(2, 7, 6, N)[name].requires_grad_() for name in names} for N in states]
    pair[way] |= {missing: None} if missing else {}
    ahead, back = (tuple(each.values()) for each in pair)
    out = bidirectional_scan(ahead, back, z, backend=backend)
    each = [scan_reference(*x[:6], z, x[6], True, reverse=reverse)[0] for x, reverse in ((ahead, False), (back, True))]
    expected = (each[0] + each[1]) / 2
    torch.testing.assert_close(out, expected)
    leaves = [x for x in (*ahead, *back, z) if x is not None]
    for a, b in zip(*(torch.autograd.grad(y.sin().sum(), leaves) for y in (out, expected)), strict=True):
        torch.testing.assert_close(a, b)


# --- bad input


def shaped(name, *shape, dtype=torch.float32):
    return {name: torch.zeros(*shape, dtype=dtype)}


BAD = [
    ({"u": [1.0]}, TypeError, "u is a list; it must be a tensor"),
    (shaped("u", 2, 5), ValueError, r"u has shape \(2, 5\); it must be \(B, L, E\)"),
    (shaped("u", 2, 0, 6), ValueError, r"u has shape \(2, 0, 6\).* may be 0"),
    (shaped("u", 2, 5, 6, dtype=torch.int64), TypeError, "u has dtype torch.int64; it must be a real floating"),
    (shaped("A", 6), ValueError, r"A has shape \(6,\); it must be \(E, N\)"),
    (shaped("A", 7, 4), ValueError, r"A has shape \(7, 4\); it must be \(E, N\) = \(6, 4\)"),
    (shaped("A", 6, 4, dtype=torch.complex64), TypeError, "A has dtype torch.complex64; it must be a real"),
    ({"A": None}, TypeError, "A is a NoneType; it must be a tensor"),
    (shaped("delta", 2, 5, 7), ValueError, r"delta has shape \(2, 5, 7\); it must be \(B, L, E\) = \(2, 5, 6\)"),
    (shaped("delta", 2, 6, 5), ValueError, r"delta has shape \(2, 6, 5\); it must be \(B, L, E\) = \(2, 5, 6\)"),
    (shaped("B", 2, 4, 5), ValueError, r"B has shape \(2, 4, 5\); it must be \(B, L, N\) = \(2, 5, 4\)"),
    (shaped("C", 2, 5, 3), ValueError, r"C has shape \(2, 5, 3\); it must be \(B, L, N\) = \(2, 5, 4\)"),
    ({"C": None}, TypeError, "C is a NoneType; it must be a tensor"),
    (shaped("D", 1), ValueError, r"D has shape \(1,\); it must be \(E,\) = \(6,\)"),
    ({"D": 1.0}, TypeError, "D is a float; it must be a tensor"),
    (shaped("z", 2, 5, 12), ValueError, r"z has shape \(2, 5, 12\); it must be \(B, L, E\) = \(2, 5, 6\)"),
    (shaped("delta_bias", 6, 1), ValueError, r"delta_bias has shape \(6, 1\); it must be \(E,\) = \(6,\)"),
    (shaped("initial_state", 2, 4, 6), ValueError, r"initial_state has shape .* must be \(B, E, N\) = \(2, 6, 4\)"),
    ({"z": torch.zeros(2, 5, 6, device="meta")}, ValueError, "z is on device meta; it must be on cpu, as u is"),
    ({"backend": "cuda"}, ValueError, "backend is 'cuda'; it must be one of 'auto', "),
]


@pytest.mark.parametrize(("change", "error", "sentence"), BAD)
def test_bad_input_is_named(change, error, sentence, unchecked):
    inputs = problem(2, 5, 6, 4, dtype=torch.float32) | change
    with pytest.raises(error, match=sentence):
        selective_scan(**inputs)


def test_a_backend_that_cannot_run_says_why(monkeypatch, unchecked):
    with monkeypatch.context() as patch:
        patch.setitem(implementations.INSTALLED, "numba", False)
        assert available_backends("cpu") == ("chunked", "reference")
        with pytest.raises(ValueError, match=r"backend is 'numba', .* numba is not installed; .*minivim\[numba\]"):
            selective_scan(**problem(1, 3, 2, 2), backend="numba")
    with monkeypatch.context() as patch:
        patch.setitem(implementations.INSTALLED, "triton", True)
        assert available_backends("cuda") == ("triton", "chunked", "reference")
        patch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(
            ValueError, match="backend is 'triton', which cannot run on device cpu: it runs on cuda only"
        ):
            selective_scan(**problem(1, 3, 2, 2), backend="triton")
        patch.setitem(implementations.INSTALLED, "triton", False)
        with pytest.raises(ValueError, match=r"triton is not installed; .*minivim\[triton\]"):
            selective_scan(**problem(1, 3, 2, 2), backend="triton")
    monkeypatch.setitem(implementations.INSTALLED, "numba", True)
    with pytest.raises(ValueError, match="backend is 'numba', which cannot run on device meta: it runs on cpu only"):
        selective_scan(**{k: v.to("meta") for k, v in problem(1, 3, 2, 2).items()}, backend="numba")


@pytest.mark.skipif("numba" not in FAST, reason="numba is not installed")
def test_too_many_states_for_the_kernel(unchecked):
    with pytest.raises(ValueError, match="A has 65 states; backend 'numba' takes at most 64: use 'chunked'"):
        selective_scan(**problem(1, 3, 2, 65), backend="numba")
    inputs = problem(1, 20, 3, 64)
    assert_close(run(inputs, "numba"), run(inputs, "reference"), 1e-12)
