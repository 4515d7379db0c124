"""Where a fused kernel may stand for a module: only where calling the module would do the same and nothing else."""

from typing import TypeGuard, TypeVar

from torch import nn
from torch.nn.modules.module import _has_any_global_hook  # no public name tells it

METHODS = {"forward", "conv", "select", "scan"}  # those that a fused kernel stands for
Kind = TypeVar("Kind", bound=nn.Module)


def is_plain(module: nn.Module, kind: type[Kind]) -> TypeGuard[Kind]:
    """Whether `module` is a `kind` as its class made it: no subclass, parametrization, hook or method of its own.

    Whatever else a user has put there (an adapter, a pruned, quantised or observed layer) must be called.
    """
    if type(module) is not kind or _has_any_global_hook():
        return False
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return False
    return METHODS.isdisjoint(module.__dict__)
