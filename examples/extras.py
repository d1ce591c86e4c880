"""Optional packages, which only the examples need."""

import importlib
from types import ModuleType


def load(module: str) -> ModuleType:
    """Import a module of the extra `examples`, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SystemExit(
            f"The examples need {module.partition('.')[0]}, which is not installed: "
            'pip install "gradtx[examples]"'
        ) from error
