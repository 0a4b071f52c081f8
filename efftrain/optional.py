"""Packages that only some jobs need, imported at the moment they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from efftrain.errors import MachineError


def require(package: str, extra: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Args:
        package: The name to import, such as `timm`.
        extra: The extra of efftrain that installs it.

    Returns:
        The imported module.

    Raises:
        MachineError: The package is not installed; the message is the pip line.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != package.split(".")[0]:
            raise
        raise MachineError(
            f"{package} is not installed; run: pip install 'efftrain[{extra}]'"
        ) from error
