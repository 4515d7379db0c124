"""Where a fused kernel may stand for a module: only where calling the module would do the same and nothing else."""

from torch import nn
from torch.nn.modules.module import _has_any_global_hook  # no public name tells it


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether `module` is a `kind` as its class made it: no subclass, parametrization, hook or method of its own.

    Whatever else a user has put there (an adapter, a pruned, quantised or observed layer) must be called.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if type(module) is not kind or any(hooks) or _has_any_global_hook():
        return False
    return not any(name in module.__dict__ for name in ("forward", "conv", "select", "scan"))
