"""What all operators share: registration with PyTorch, and the short way around its dispatcher."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import wraps

import torch
from minivim.kernels.derivatives import TRANSFORMS, first_derivative, refuse_transforms, unsupported
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

MAX_STATES = 64
PLAIN = {Tensor, Parameter, type(None)}  # what nobody records
DEVICES = {"numba": "cpu", "triton": None}  # None: any, since Triton's interpreter runs on a CPU


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of states and sums: float64 for float64, float32 for everything else, half precision too."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def check_states(A: Tensor, backend: str) -> None:
    """ValueError if A has more states than a kernel keeps on its stack or in its registers."""
    if A.shape[1] > MAX_STATES:
        raise ValueError(f"A has {A.shape[1]} states; backend {backend!r} takes at most {MAX_STATES}: use 'chunked'")


def in_memory(arguments: Sequence) -> list:
    """Tensors as their memory holds them: a kernel reads addresses, which know of no pending minus sign."""
    found = [x.resolve_neg() if isinstance(x, Tensor) and x.is_neg() else x for x in arguments]
    return [in_memory(x) if isinstance(x, (list, tuple)) else x for x in found]


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x.to(dtype), without the call, which takes a microsecond, where x has it already."""
    return x if x.dtype == dtype else x.to(dtype)


def guard(arguments: Sequence):
    """Make the first tensor's GPU the current one: that is where a launch goes, whatever the tensors' device."""
    first = next(x for x in arguments if isinstance(x, Tensor | list))
    first = first[0] if isinstance(first, list) else first
    return torch.cuda.device(first.device) if first.is_cuda else nullcontext()


def operator(name: str, backend: str) -> Callable:
    """Register a function as a PyTorch operator `minivim::name`; `plain` is the function without the dispatcher."""
    device = DEVICES[backend]

    def register(function: Callable):
        @wraps(function)
        def plain(*arguments):
            return function(*in_memory(arguments))

        @wraps(function)
        def guarded(*arguments):
            with guard(arguments):
                return plain(*arguments)

        run = plain if device == "cpu" else guarded
        registered = torch.library.custom_op(f"minivim::{name}", mutates_args=(), device_types=device)(run)
        registered.plain, registered.backend = run, backend  # type: ignore[attr-defined]  # both belong to it
        registered.register_vmap(lambda *_: refuse_vmap(backend))
        return registered

    return register


def refuse_vmap(backend: str) -> None:
    """What vmap meets where a graph holds the operator."""
    raise unsupported(backend, TRANSFORMS)


def differentiate(registered, setup_context: Callable, gradient: Callable) -> None:
    """Give an operator its gradient, and an autograd function of the same parts, for `entry`, as `eager`.

    gradient(ctx, saved, *cotangents): saved are ctx.saved_tensors.
    """
    backward_pass = first_derivative(registered.backend, gradient)
    registered.register_autograd(backward_pass, setup_context=setup_context)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            output = registered.plain(*inputs)
            setup_context(ctx, inputs, output)
            return output

        backward = staticmethod(backward_pass)

    registered.eager = Eager


def recorded(tensors: Sequence[Tensor | None]) -> bool:
    """Whether someone writes down which operators run: a tracer, a dispatch mode, a tensor of another class."""
    if torch.jit.is_tracing() or is_in_torch_dispatch_mode():
        return True
    return not PLAIN.issuperset(map(type, tensors))


def entry(registered, tensors: Sequence[Tensor | None], gradient: bool = False) -> Callable:
    """The operator where someone records operators, else what it runs, without the dispatcher: 0.3 ms less a call."""
    if torch.compiler.is_compiling():
        return registered
    refuse_transforms(registered.backend, tensors)
    if recorded(tensors):
        return registered
    return registered.eager.apply if gradient else registered.plain


def wants_gradient(tensors: Sequence[Tensor | None]) -> bool:
    """Whether autograd may ask for the gradient of a function of these tensors, some of which may be None.

    Of a traced function it may, later, whatever holds while it is traced.
    """
    return torch.jit.is_tracing() or torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
