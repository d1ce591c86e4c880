"""Optional packages, for the tables and pictures of the diagnostics."""

from __future__ import annotations

from types import ModuleType

from gradtx import extras


def load(module: str) -> ModuleType:
    """Import a module of the extra `diagnostics`, or say how to install it.

    Raises:
        ImportError: naming the extra, if the module is not installed.
    """
    return extras.load("gradtx.diagnostics", module, "diagnostics")
