"""The few words of Triton that chapter 07 uses, on PyTorch: where Triton is not installed, its kernels run on this.

    from minivim.course.standin import tl, triton

Programs run one after the other, lanes are the elements of a tensor. Nothing is compiled and nothing is fast; what a
kernel computes is the same. A load or store outside of the memory that a tensor was cut from is an IndexError.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import torch
from jaxtyping import Bool, Int, Num, Shaped
from torch import Tensor

here = SimpleNamespace(program=(0, 0, 0), grid=(1, 1, 1))  # of the program that runs


Places = int | Int[Tensor, "..."]
Mask = bool | Bool[Tensor, "..."]


class Pointer:
    """A place in memory, or a block of places; a number or a block of numbers added to it moves it."""

    def __init__(self, memory: Shaped[Tensor, " size"], place: Places) -> None:
        self.memory, self.place = memory, place

    def __add__(self, offset: Places) -> "Pointer":
        return Pointer(self.memory, self.place + offset)

    __radd__ = __add__

    def __sub__(self, offset: Places) -> "Pointer":
        return Pointer(self.memory, self.place - offset)

    def reach(self, mask: Mask) -> tuple[Int[Tensor, "..."], Bool[Tensor, "..."]]:
        """Places and mask in one shape. IndexError if a place under the mask is outside of the memory."""
        place, wanted = torch.broadcast_tensors(torch.as_tensor(self.place), torch.as_tensor(mask))
        inside = place[wanted]
        if inside.numel() and (inside.min() < 0 or inside.max() >= len(self.memory)):
            places = f"{inside.min().item()} to {inside.max().item()}"
            raise IndexError(f"a program reaches for the places {places}; the memory has 0 to {len(self.memory) - 1}")
        return place, wanted


def address(tensor: Shaped[Tensor, "..."]) -> Pointer:
    """Where a tensor begins. Its neighbours in the same memory are in reach, as on a GPU."""
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    return Pointer(tensor.detach().as_strided((count,), (1,), 0), tensor.storage_offset())


def load(pointer: Pointer, mask: Mask = True, other: float = 0.0) -> Shaped[Tensor, "..."]:
    """The numbers at a block of places; `other` where the mask is False. IndexError beyond the memory's ends."""
    place, wanted = pointer.reach(mask)
    found = pointer.memory[torch.where(wanted, place, 0)]
    return torch.where(wanted, found, torch.tensor(other, dtype=found.dtype))


def store(pointer: Pointer, value: float | Num[Tensor, "..."], mask: Mask = True) -> None:
    """Write the numbers where the mask holds. IndexError beyond the memory's ends."""
    place, wanted = pointer.reach(mask)
    value = torch.as_tensor(value, dtype=pointer.memory.dtype)
    place, wanted, value = torch.broadcast_tensors(place, wanted, value)
    pointer.memory[place[wanted]] = value[wanted]


class Kernel:
    """A function that `triton.jit` decorates: `kernel[grid](...)` launches it, another kernel may call it."""

    def __init__(self, function: Callable) -> None:
        self.fn, self.__doc__ = function, function.__doc__

    def __call__(self, *arguments, **constants):
        return self.fn(*arguments, **constants)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable:
        return partial(self.launch, grid)

    def launch(self, grid: tuple[int, ...], *arguments, num_warps: int = 4, **constants) -> None:
        """Run every program of the grid, the last axis fastest; tensors become addresses."""
        here.grid = (*grid, 1, 1)[:3]
        given = [address(each) if isinstance(each, Tensor) else each for each in arguments]
        for program in torch.cartesian_prod(*map(torch.arange, here.grid)).tolist():
            here.program = program
            self.fn(*given, **constants)


def reduce(operation: Callable) -> Callable:
    """A reduction over one axis, or over all."""
    return lambda block, axis=None: operation(block) if axis is None else operation(block, dim=axis)


triton = SimpleNamespace(
    jit=Kernel,
    cdiv=lambda a, b: -(-a // b),
    next_power_of_2=lambda n: 1 << (n - 1).bit_length(),
)
tl = SimpleNamespace(
    constexpr=object,
    float32=torch.float32,
    float64=torch.float64,
    program_id=lambda axis: here.program[axis],
    num_programs=lambda axis: here.grid[axis],
    arange=torch.arange,
    zeros=lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    full=lambda shape, value, dtype: torch.full(shape, value, dtype=dtype),
    load=load,
    store=store,
    static_range=range,
    cdiv=lambda a, b: -(-a // b),
    exp2=torch.exp2,
    log2=torch.log2,
    where=lambda condition, a, b: torch.where(torch.as_tensor(condition), a, b),
    minimum=lambda a, b: torch.minimum(torch.as_tensor(a), torch.as_tensor(b)),
    maximum=lambda a, b: torch.maximum(torch.as_tensor(a), torch.as_tensor(b)),
    sum=reduce(torch.sum),
    max=reduce(torch.amax),
)
