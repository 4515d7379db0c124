"""The trained weights that come with the package."""

from importlib import resources
from pathlib import Path

from minivim.checks import check_choice

NAMES = ("vim_cifar10",)


def shipped(name: str = "vim_cifar10") -> Path:
    """The file of a shipped model, vim_cifar10, for `load` and wherever a checkpoint is asked for.

    Its card, NAME.md, is beside it: data, command, curve, accuracy. Raises ValueError for another name.
    """
    check_choice("name", name, NAMES)
    return Path(str(resources.files("minivim.shipped") / f"{name}.safetensors"))
