"""What all operators share: registration with PyTorch, and the short way around its dispatcher."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

MAX_STATES = 64


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of states and sums: float64 for float64, float32 for everything else, half precision too."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def check_states(A: Tensor, backend: str) -> None:
    """ValueError if A has more states than a kernel keeps on its stack or in its registers."""
    if A.shape[1] > MAX_STATES:
        raise ValueError(f"A has {A.shape[1]} states; backend {backend!r} takes at most {MAX_STATES}: use 'chunked'")


def operator(name: str, device: str | None = None):
    """Register a function as a PyTorch operator `minivim::name`; `plain` is the function itself. None: any device."""

    def register(function):
        registered = torch.library.custom_op(f"minivim::{name}", mutates_args=(), device_types=device)(function)
        registered.plain = function
        return registered

    return register


def differentiate(registered, setup_context, gradient) -> None:
    """Give an operator its gradient, and an autograd function of the same parts, for `entry`, as `eager`."""
    registered.register_autograd(gradient, setup_context=setup_context)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            output = registered.plain(*inputs)
            setup_context(ctx, inputs, output)
            return output

        backward = staticmethod(once_differentiable(gradient))

    registered.eager = Eager


def entry(registered, tensors, gradient: bool = False):
    """The operator where someone records operators, else what it runs, without the dispatcher: 0.3 ms less a call."""
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode() or type(tensors[0]) not in (Tensor, Parameter):
        return registered
    return registered.eager.apply if gradient else registered.plain


def wants_gradient(tensors) -> bool:
    """Whether autograd may ask for the gradient of a function of these tensors, some of which may be None."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
