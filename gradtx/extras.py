"""Optional packages, each of an extra of gradtx that installs it."""

from __future__ import annotations

import importlib
from types import ModuleType


def load(owner: str, module: str, extra: str, package: str = "") -> ModuleType:
    """Import a module that an extra installs, or say how to install it.

    Args:
        owner: what needs it, which opens the message.
        module: its name.
        extra: the extra.
        package: what is installed; "": the first part of the module's name.

    Raises:
        ImportError: naming the extra, if the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{owner}: this needs {package or module.partition('.')[0]}, which is not installed; "
            f'run pip install "gradtx[{extra}]"'
        ) from error
