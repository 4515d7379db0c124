"""Optional dependencies: imported where they are used, and named when they are missing."""

import importlib
from importlib import metadata
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import `module`; if it is missing, raise an ImportError that names the extra which installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} could not be imported ({error}); install it with: pip install 'minivim[{extra}]'"
        ) from error


def version(distribution: str) -> str | None:
    """The installed version of a distribution, None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
