"""What a backend cannot differentiate it refuses by name; what records operators sees them, and records them right."""

import math

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from minivim import MambaBlock, create_model
from minivim.ops import add_rms_norm, available_backends, causal_conv_silu, selective_scan

COMPILED = [name for name in ("numba", "chunked") if name in available_backends("cpu")]
each_backend = pytest.mark.parametrize("backend", COMPILED)
REFUSED = "use backend='reference'"


def fixed(*shape):
    """Numbers that are the same at every call, and that vmap has nothing to ask about."""
    return torch.arange(1.0, 1 + math.prod(shape)).sin().view(shape)


def scan(u, backend):
    B, delta = fixed(*u.shape[:2], 4), fixed(*u.shape)
    return selective_scan(u, delta, -fixed(6, 4).abs(), B, B, fixed(6), delta, None, True, backend=backend)


def delta_scan(delta, backend):
    B = fixed(*delta.shape[:2], 4)
    return selective_scan(fixed(*delta.shape), delta, -fixed(6, 4).abs(), B, B, backend=backend)


def convolution(x, backend):
    return causal_conv_silu(x, fixed(6, 4), fixed(6), reverse=True, backend=backend)


def norm(x, backend):
    return add_rms_norm(x, torch.ones_like(x), torch.arange(1.0, 7.0), backend=backend)[0]


def block(x, backend):
    torch.manual_seed(1)
    mamba = MambaBlock(6, expand=1, state_dim=3)
    mamba.backend = backend
    return mamba(x)


FUNCTIONS = {"scan": scan, "scan of delta": delta_scan, "convolution": convolution, "norm": norm, "block": block}
each_function = pytest.mark.parametrize("name", FUNCTIONS)


def plain(name, backend):
    """Whether a backend runs plain PyTorch there, which has all derivatives."""
    return backend == "chunked" and name in ("convolution", "norm")


def penalty(function, x, backend):
    """The gradient of a gradient penalty, which a missing second derivative would change."""
    x = x.clone().requires_grad_()
    y = function(x, backend)
    (slope,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    return torch.autograd.grad(slope.square().sum(), x)[0]


@each_backend
@each_function
def test_second_derivatives_are_right_or_refused(name, backend):
    x = torch.randn(2, 7, 6)
    if plain(name, backend):
        torch.testing.assert_close(penalty(FUNCTIONS[name], x, backend), penalty(FUNCTIONS[name], x, "reference"))
    else:
        with pytest.raises(NotImplementedError, match=f"{backend!r} has no second derivatives; {REFUSED}"):
            penalty(FUNCTIONS[name], x, backend)


@each_backend
def test_a_second_derivative_through_a_sum_is_refused_too(backend):
    """The cotangent of a sum has no history: here a gradient without the inputs' share would pass unseen."""
    x = torch.randn(2, 7, 6, requires_grad=True)
    (slope,) = torch.autograd.grad(delta_scan(x, backend).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        slope.sum().backward()


@each_backend
def test_a_graph_that_nobody_differentiates_again_costs_nothing(backend):
    x = torch.randn(2, 7, 6, requires_grad=True)
    once = torch.autograd.grad(scan(x, backend).sum(), x)[0]
    twice = torch.autograd.grad(scan(x, backend).sum(), x, create_graph=True)[0]
    assert torch.equal(once, twice)


@each_backend
@each_function
def test_forward_mode_is_right_or_refused(name, backend):
    x, direction = torch.randn(2, 7, 6), torch.randn(2, 7, 6)

    def tangent(backend):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(FUNCTIONS[name](forward_ad.make_dual(x, direction), backend)).tangent

    if plain(name, backend):
        torch.testing.assert_close(tangent(backend), tangent("reference"))
    else:
        with pytest.raises(NotImplementedError, match=f"{backend!r} has no forward-mode derivatives; {REFUSED}"):
            tangent(backend)


TRANSFORMS = {
    "vmap": lambda f, x: vmap(lambda each: f(each[None]))(x),
    "grad": lambda f, x: grad(lambda each: f(each).sum())(x),
    "jacrev": lambda f, x: jacrev(f)(x),
    "jvp": lambda f, x: jvp(f, (x,), (torch.ones_like(x),)),
    "hessian": lambda f, x: hessian(lambda each: f(each).sum())(x),
}


@each_backend
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ["scan", "delta_scan", "convolution", "norm"])
def test_torch_func_is_right_or_refused(name, transform, backend, unchecked):
    function = globals()[name]
    if plain(name, backend) or backend == "reference":
        TRANSFORMS[transform](lambda x: function(x, backend), torch.randn(2, 3, 6))
    else:
        with pytest.raises(NotImplementedError, match=f"{backend!r} has no torch.func transforms .*; {REFUSED}"):
            TRANSFORMS[transform](lambda x: function(x, backend), torch.randn(2, 3, 6))


def test_the_reference_has_them_all(unchecked):
    for name in ("delta_scan", "convolution", "norm"):
        for transform in TRANSFORMS.values():
            transform(lambda x, name=name: globals()[name](x, "reference"), torch.randn(2, 3, 6))


def test_per_sample_gradients_of_a_model_on_the_reference(unchecked):
    model = create_model("vim_nano_patch2_8", depth=1, embed_dim=8)
    x, weights = torch.randn(3, 3, 8, 8), dict(model.named_parameters())

    def loss(weights, image):
        return functional_call(model, weights, (image[None],)).square().sum()

    with pytest.raises(NotImplementedError, match=REFUSED):
        vmap(grad(loss), (None, 0))(weights, x)
    model.set_backend("reference")
    found = vmap(grad(loss), (None, 0))(weights, x)
    for i, image in enumerate(x):
        model.zero_grad()
        model(image[None]).square().sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name][i], parameter.grad, rtol=1e-3, atol=1e-5)


@each_backend
def test_several_cotangents_at_once_are_refused(backend):
    x = torch.randn(1, 2, 6, requires_grad=True)
    with pytest.raises(NotImplementedError, match="is_grads_batched.*reference"):
        torch.autograd.grad(scan(x, backend), x, torch.eye(12).view(12, 1, 2, 6), is_grads_batched=True)


@each_backend
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_of_both_kinds_give_the_same_gradients(reentrant, backend):
    model = create_model("vim_nano_patch2_8", embed_dim=16).set_backend(backend).train()
    x = torch.randn(2, 3, 8, 8)

    def gradients(call):
        model.zero_grad()
        update, residual = model.embed(x), None
        for each in model.blocks:
            update, residual = call(each, update, residual)
        (update.sin().sum() + residual.sum()).backward()
        return [p.grad.clone() for p in model.blocks.parameters()]

    plain = gradients(lambda each, *inputs: each(*inputs))
    again = gradients(lambda each, *inputs: checkpoint(each, *inputs, use_reentrant=reentrant))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@each_backend
@pytest.mark.parametrize("recording", [False, True], ids=["no_grad", "grad"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_traced_model_is_the_model(recording, backend, unchecked):
    model = create_model("vim_nano_patch2_8", embed_dim=16, depth=2).set_backend(backend).eval()
    x, other = torch.randn(2, 2, 3, 8, 8)
    with torch.set_grad_enabled(recording):
        traced = torch.jit.trace(model, x)
    torch.testing.assert_close(traced(other), model(other))
    parameters = list(model.parameters())
    for a, b in zip(
        torch.autograd.grad(traced(other).sin().sum(), parameters),
        torch.autograd.grad(model(other).sin().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.skipif("numba" not in COMPILED, reason="needs numba")
@pytest.mark.parametrize("call", [scan, convolution, norm], ids=["scan", "convolution", "norm"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_and_a_dispatch_mode_see_operators(call, unchecked):
    """What holds a Python function in its place computes the same, but cannot leave the process."""

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
            seen.add(operator.namespace)
            return operator(*arguments, **(keywords or {}))

    seen, x = set(), fixed(2, 5, 6).requires_grad_()
    with Log():
        call(x, "numba")
    graph = torch.jit.trace(lambda x: call(x, "numba"), x, check_trace=False).graph
    assert not [node for node in graph.nodes() if node.kind() == "prim::PythonOp"]
    assert "minivim" in seen


def negated(x):
    """x, as a view whose minus sign is still to be written: the imaginary part of a conjugate."""
    view = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert view.is_neg()
    return view


@pytest.mark.parametrize("backend", [*COMPILED, "reference"])
def test_a_pending_minus_sign_is_not_lost(backend):
    shapes = {"u": (2, 7, 6), "delta": (2, 7, 6), "A": (6, 4), "B": (2, 7, 4), "C": (2, 7, 4), "D": (6,)}
    shapes |= {"z": (2, 7, 6), "delta_bias": (6,), "initial_state": (2, 6, 4)}
    inputs = {name: torch.randn(shape) for name, shape in shapes.items()}
    expected = selective_scan(**inputs, backend="reference")
    for name in shapes:
        changed = inputs | {name: negated(inputs[name])}
        torch.testing.assert_close(selective_scan(**changed, backend=backend), expected)
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    out = selective_scan(**leaves, backend=backend)
    plain = torch.autograd.grad(out, list(leaves.values()), torch.ones_like(out), retain_graph=True)
    for a, b in zip(torch.autograd.grad(out, list(leaves.values()), negated(torch.ones_like(out))), plain, strict=True):
        torch.testing.assert_close(a, b)
    x, weight, bias = torch.randn(2, 7, 6), torch.randn(6, 4), torch.randn(6)
    torch.testing.assert_close(
        causal_conv_silu(negated(x), negated(weight), negated(bias), backend=backend),
        causal_conv_silu(x, weight, bias, backend="reference"),
    )
    torch.testing.assert_close(
        add_rms_norm(negated(x), negated(x), negated(bias), backend=backend)[0],
        add_rms_norm(x, x, bias, backend="reference")[0],
    )


def test_a_sparse_input_is_named(unchecked):
    u, A, B = torch.rand(1, 5, 4), -torch.rand(4, 3), torch.rand(1, 5, 3)
    with pytest.raises(TypeError, match="u has layout torch.sparse_coo; it must be dense"):
        selective_scan(u.to_sparse(), u, A, B, B)
