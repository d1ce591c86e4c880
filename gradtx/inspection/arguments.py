"""Refusing arguments in the wrong order in one line, because the text of a tree fills pages."""

from __future__ import annotations

import inspect
from typing import Any

import optax

from gradtx.compose.sequence import as_transformation
from gradtx.inputs import is_transformation


def checked_transformation(
    owner: str, argument: str, tx: Any
) -> optax.GradientTransformationExtraArgs:
    """`tx` as a transformation, or a ValueError that names its type."""
    if not is_transformation(tx) and not inspect.isroutine(tx):
        kind = type(tx).__name__
        raise ValueError(f"{owner}: {argument} must be a gradient transformation, got a {kind}")
    return as_transformation(owner, argument, tx)


def checked_params(owner: str, params: Any) -> None:
    """Refuse a transformation in place of parameters."""
    if is_transformation(params):
        raise ValueError(f"{owner}: params must be the parameters, got a transformation")
