"""What the interpreter finds in a traced function, and where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from gradtx.diagnostics.tracing.provenance import Loop

Arrays = dict[str, jax.Array]
Measured = dict[str, np.ndarray]


@dataclass(frozen=True)
class Nesting:
    """A loop or a branch around something that was found.

    Attributes:
        loop: the loop; None: it is a branch.
        is_sliced: whether each iteration has a layer of its own, because the layer's parameter is a
            slice of a stack that the loop iterates over.
        mesh: the names of the axes of a mesh, if it is the program of each of its devices.
    """

    loop: Loop | None = None
    is_sliced: bool = False
    mesh: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """Something found in the function, and what was measured there.

    Attributes:
        what: a `Layer`, or an equation with the layers whose outputs it depends on.
        arrays: the measurements, with an additional axis for each loop around it, and for each axis
            of a mesh.
        place: its position: the numbers of the loops and branches around it, then its own.
        nesting: these loops and branches, outermost first.
        slot: the number of the slot whose gradient is the measurement in the backward pass; None:
            it has none.
    """

    what: Any
    arrays: Arrays
    place: tuple[int, ...]
    nesting: tuple[Nesting, ...] = ()
    slot: int | None = None

    def when(self, iterations: Sequence[int]) -> tuple[int, ...]:
        """A key that orders evaluations in time, given the iteration of each nesting."""
        result = [self.place[0]]
        for nesting, iteration, number in zip(
            self.nesting, iterations, self.place[1:], strict=True
        ):
            is_backwards = nesting.loop is not None and nesting.loop.is_backwards
            result += [-iteration if is_backwards else iteration, number]
        return tuple(result)

    def over_devices(
        self, arrays: Measured, combine: Callable[[str, np.ndarray, int, str], np.ndarray]
    ) -> tuple[Found, Measured]:
        """The same, with the measurements of all devices of each mesh combined into one.

        Args:
            arrays: the measurements.
            combine: combines those of one name along an axis of the array, which is the axis of the
                mesh with the given name.
        """
        axes = [name for one in self.nesting for name in (one.mesh or ("",) * bool(one.loop))]
        for axis, name in reversed(list(enumerate(axes))):
            if name:
                arrays = {key: combine(key, array, axis, name) for key, array in arrays.items()}
        outside = tuple(replace(one, mesh=()) for one in self.nesting)
        return replace(self, nesting=outside), arrays
