"""Optional packages, for the tables and pictures of the diagnostics."""

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
            f"gradtx.diagnostics: this needs {module.partition('.')[0]}, which is not installed; "
            'run pip install "gradtx[diagnostics]"'
        ) from error
