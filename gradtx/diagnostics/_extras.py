"""Packages that only the tables and pictures of the diagnostics need."""

import importlib
from types import ModuleType


def load(module: str) -> ModuleType:
    """Import a module of the extra `diagnostics`, or say how to install it.

    Raises:
        ImportError: naming the extra, if the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"gradtx.diagnostics needs {module.partition('.')[0]} here, which is not installed: "
            'pip install "gradtx[diagnostics]"'
        ) from error
