"""What the interpreter finds in a traced function, and where."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from gradtx.diagnostics.tracing.provenance import Loop

Arrays = dict[str, jax.Array]


@dataclass(frozen=True)
class Nesting:
    """A loop or a branch around something that was found.

    Attributes:
        loop: the loop; None: it is a branch.
        is_sliced: whether each iteration has a layer of its own, because the layer's parameter is a
            slice of a stack that the loop iterates over.
    """

    loop: Loop | None = None
    is_sliced: bool = False


@dataclass(frozen=True)
class Found:
    """Something found in the function, and what was measured there.

    Attributes:
        what: a `Layer`, or an equation with the layers whose outputs it depends on.
        arrays: the measurements, with an additional axis for each loop around it.
        place: its position: the numbers of the loops and branches around it, then its own.
        nesting: these loops and branches, outermost first.
    """

    what: Any
    arrays: Arrays
    place: tuple[int, ...]
    nesting: tuple[Nesting, ...] = ()

    def when(self, iterations: Sequence[int]) -> tuple[int, ...]:
        """A key that orders evaluations in time, given the iteration of each nesting."""
        result = [self.place[0]]
        for nesting, iteration, number in zip(
            self.nesting, iterations, self.place[1:], strict=True
        ):
            is_backwards = nesting.loop is not None and nesting.loop.is_backwards
            result += [-iteration if is_backwards else iteration, number]
        return tuple(result)
