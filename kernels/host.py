"""What the CPU operators share: machine code by name, addresses and strides of tensors, the header of a launch."""

from array import array
from functools import cache
from types import ModuleType

import torch
from minivim.kernels.lanes import LANES
from minivim.kernels.parallel import launch
from numba import cfunc, int64, void
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

SLABS = 8  # parts of the batch: tasks enough for many cores, few partial sums over the batch
GROUP = 6 * LANES  # channels of one task: they share their partial sums of dB and dC
SMALL = 2**15  # multiplications below which waking a second thread costs more than it brings

compiled_kernels = []  # keeps the machine code alive


@cache
def address(module: ModuleType, name: str, dtype: torch.dtype) -> int:
    """The machine code of a kernel: compiled at its first use, afterwards read from numba's cache on disk."""
    entry = getattr(module, f"{name}_{str(dtype).removeprefix('torch.')}")
    compiled = cfunc(void(int64), cache=True)(entry)
    compiled_kernels.append(compiled)
    return compiled.address


def partition(batch: int, channels: int) -> tuple[int, int]:
    """(slabs, groups): a task is a slab of the batch and a group of channels, whatever the number of threads."""
    return min(batch, SLABS), -(-channels // GROUP)


def run(module: ModuleType, name: str, dtype: torch.dtype, sizes: list[int], fields: list[int], work: int) -> None:
    """Hand all tasks to the threads; sizes begin with batch, L, E; work counts multiplications."""
    slabs, groups = partition(sizes[0], sizes[2])
    arguments = array("q", [0, slabs * groups, slabs, groups, *sizes, *fields])
    launch(address(module, name, dtype), arguments, 1 if work < SMALL else slabs * groups)


def compute_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything else: half precision is computed in float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in `dtype` with neighbouring channels side by side in memory; a copy only where it must be."""
    if x.dtype != dtype:
        x = x.to(dtype)
    return x if x.stride(-1) == 1 else x.contiguous()


def walk(x: Tensor | None, reverse: bool) -> tuple[int, int, int]:
    """Address of the first step, and the strides from one row of the batch and from one step to the next."""
    if x is None:
        return 0, 0, 0
    start, (batch, time, _) = x.data_ptr(), x.stride()
    return (start + (x.shape[1] - 1) * time * x.element_size(), batch, -time) if reverse else (start, batch, time)


def pointer(x: Tensor | None) -> int:
    """The address of x, 0 for None."""
    return 0 if x is None else x.data_ptr()


def operator(name: str):
    """Register a function as a PyTorch operator `minivim::name`; `plain` is the function itself."""

    def register(function):
        registered = torch.library.custom_op(f"minivim::{name}", mutates_args=(), device_types="cpu")(function)
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
