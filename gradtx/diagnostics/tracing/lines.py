"""The lines of the user's program that the equations of a traced function come from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Stack frames in these folders do not belong to the user.
_SEPARATOR = os.sep
_HERE = str(Path(__file__).parents[1])
_LIBRARIES = "site-packages"


def functions_of(equation: Any) -> list[str]:
    """The names of the functions in which an equation was made, innermost first."""
    return [frame.function_name for frame in _frames(equation)]


def line_of(equation: Any, calls: Sequence[tuple[Any, Any]] = ()) -> str:
    """The line of the user's program that an equation comes from.

    Args:
        equation: the equation.
        calls: the calls around it, outermost first, as pairs of the equation that calls and the
            function that it calls. A function of a library is traced once and then kept, with the
            lines of whoever called it first; so the line is that of its call.

    Returns:
        `file.py:12 (function)`; empty: unknown.
    """
    for call, function in calls:
        if _LIBRARIES in (getattr(function.debug_info, "func_src_info", None) or ""):
            return line_of(call)
    for libraries in ((_LIBRARIES, _HERE), (f"{_SEPARATOR}jax{_SEPARATOR}", _HERE)):
        for frame in _frames(equation):
            if not any(library in frame.file_name for library in libraries):
                return _shown(frame)
    return ""


def _frames(equation: Any) -> list[Any]:
    traceback = equation.source_info.traceback
    return list(traceback.frames) if traceback is not None else []


def _shown(frame: Any) -> str:
    return f"{Path(frame.file_name).name}:{frame.line_num} ({frame.function_name})"
