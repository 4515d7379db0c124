"""What a kernel cannot differentiate is an error that says what can: never a zero that nobody sees.

A kernel has a first derivative, written by hand. It has no second one, no forward mode, and torch.func cannot look
into it. The reference is plain PyTorch and has all of them.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._C import _functorch as functorch
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

TRANSFORMS = "torch.func transforms (vmap, grad, jacrev, jvp)"


def unsupported(backend: str, what: str) -> NotImplementedError:
    """The error for a derivative that `backend` does not have."""
    return NotImplementedError(
        f"backend {backend!r} has no {what}; use backend='reference' (of a model: set_backend('reference'))"
    )


def refuse_transforms(backend: str, tensors: Sequence[Tensor | None]) -> None:
    """Raise if torch.func (vmap, grad, jacrev, ...) has wrapped one of `tensors`, or forward mode gave it a tangent."""
    transformed, forward_mode = functorch.peek_interpreter_stack() is not None, forward_ad._current_level >= 0
    if not (transformed or forward_mode):
        return
    given = [x for x in tensors if isinstance(x, Tensor)]
    if transformed and any(map(functorch.is_functorch_wrapped_tensor, given)):
        raise unsupported(backend, TRANSFORMS)
    if forward_mode and any(forward_ad.unpack_dual(x).tangent is not None for x in given):
        raise unsupported(backend, "forward-mode derivatives")


class FirstOnly(torch.autograd.Function):
    """The first `count` tensors as they are; asking for their derivative is an error."""

    @staticmethod
    def forward(ctx, backend, count, *tensors):
        ctx.backend = backend
        return tuple(x.view_as(x) for x in tensors[:count])

    @staticmethod
    @once_differentiable
    def backward(ctx, *_):
        raise unsupported(ctx.backend, "second derivatives")


def first_derivative(backend: str, gradient: Callable) -> Callable:
    """A backward pass from `gradient(ctx, saved, *cotangents)`, whose own derivative is refused.

    torch's `once_differentiable` refuses only where a cotangent has a history: the second derivative of a sum would be
    silently without what the gradient owes to the inputs.
    """

    def backward(ctx, *cotangents):
        saved = ctx.saved_tensors  # looked at once: a checkpoint computes them anew at each look
        if not torch.compiler.is_compiling():
            refuse_transforms(backend, (*saved, *cotangents))
            if any(x is not None and functorch.is_legacy_batchedtensor(x) for x in cotangents):
                raise unsupported(backend, "backward pass for several cotangents at once (is_grads_batched)")
        if not torch.is_grad_enabled():
            return gradient(ctx, saved, *cotangents)
        with torch.no_grad():
            gradients = gradient(ctx, saved, *cotangents)
        history = [x for x in (*saved, *cotangents) if x is not None and x.requires_grad]
        if not history:
            return gradients
        found = [x for x in gradients if isinstance(x, Tensor)]
        refused = iter(FirstOnly.apply(backend, len(found), *found, *history))
        return tuple(next(refused) if isinstance(x, Tensor) else x for x in gradients)

    return backward
