"""The axes of a mesh that users name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from gradtx.messages import shown


def checked_axes(owner: str, mesh: Any, axis: str | Sequence[str]) -> tuple[str, ...]:
    """The names of one or several axes of a mesh, or a ValueError."""
    if not isinstance(mesh, Mesh | AbstractMesh):
        raise ValueError(f"{owner}: mesh must be a mesh of devices, got {shown(mesh)}")
    axes = (axis,) if isinstance(axis, str) else tuple(axis)
    if not axes or len({*axes}) < len(axes) or not {*axes} <= {*mesh.axis_names}:
        raise ValueError(
            f"{owner}: axis must name axes of the mesh, which has {mesh.axis_names}, got "
            f"{shown(axis)}"
        )
    return axes
