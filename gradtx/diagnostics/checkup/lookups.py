"""Where a traced loss looks something up by an index, and which indices it uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from gradtx.diagnostics.checkup.subject import Subject
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.observe import Measure
from gradtx.diagnostics.tracing.patterns import VIEWS, is_number, source_of, uses_of
from gradtx.diagnostics.tracing.targets import OneHot, one_hots

_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
# Operations that an index passes before it is used.
_BEFORE_USE = VIEWS | {"select_n", "add", "concatenate", "slice", "sub", "squeeze", "loop_slice"}


@dataclass(eq=False)
class Lookup:
    """A use of indices that do not depend on the parameters.

    Attributes:
        node: the operation.
        indices: the indices that it takes.
        table: what is looked up; None: it is a one-hot code.
        sizes: how many entries there are, for each component of an index.
        is_meant: whether the program says what is to happen with indices out of range.
        key: opens the names of its measurements.
    """

    node: Node
    indices: Value
    table: Value | None
    sizes: tuple[int, ...]
    is_meant: bool = False
    key: str = "lookup"

    def names(self, subject: Subject) -> list[str]:
        """The arguments that the indices come from."""
        return [
            subject.name(one)
            for one in subject.data
            if self.indices.depends >> (one.argument or 0) & 1
        ]

    def table_name(self, subject: Subject) -> str:
        """The parameter or argument in which something is looked up; empty: it is computed."""
        return subject.name(source_of(self.table)) if self.table is not None else ""

    def outside(self, subject: Subject) -> tuple[int, int, int, int, int] | None:
        """The worst component of the indices, as they were given; None: it was not measured.

        Returns:
            Its lowest and highest index, how many are outside, how many there are, and the size.
        """
        measured = subject.measured.get(self.node, {})
        if f"{self.key}/outside" not in measured:
            return None
        parts = {
            name: np.moveaxis(np.asarray(measured[f"{self.key}/{name}"]), -1, 0)
            for name in ("low", "high", "outside", "number")
        }
        worst = int(np.argmax([part.sum() for part in parts["outside"]]))
        low, size = int(parts["low"][worst].min()), self.sizes[worst]
        # An index below zero was counted from the end, once.
        low -= size if low < 0 and self.table is not None and self._is_wrapped else 0
        high = int(parts["high"][worst].max())
        outside, number = (int(parts[name][worst].sum()) for name in ("outside", "number"))
        return low, high, outside, number, size

    @property
    def _is_wrapped(self) -> bool:
        value = source_of(self.indices, VIEWS | {"concatenate"})
        return value.producer is not None and value.producer.name == "select_n"


def lookups(subject: Subject) -> list[Lookup]:
    """All uses of indices that JAX clamps, or drops, where they are out of range."""
    found = []
    for node in subject.graph.named("gather", "dynamic_slice", "scatter-add"):
        lookup = {"gather": _gather, "dynamic_slice": _slice, "scatter-add": _scatter}[node.name](
            node
        )
        if lookup is not None and not subject.is_trained(lookup.indices):
            found.append(lookup)
    for code in one_hots(subject.graph):
        if not subject.is_trained(code.labels):
            found.append(_one_hot(code))
    return found


def request(lookup: Lookup) -> tuple[Node, Measure]:
    """What has to be measured for `Lookup.outside`."""
    is_slice, position = lookup.node.name == "dynamic_slice", _position(lookup)

    def measure(inputs: Sequence[Any], results: Sequence[Any]) -> dict[str, Any]:
        del results
        indices = jnp.stack(inputs[1:], -1) if is_slice else inputs[position]
        if lookup.table is None:
            indices = indices[..., None]
        indices = indices.reshape(-1, indices.shape[-1]).astype(jnp.int32)
        outside = (indices < 0) | (indices >= jnp.asarray(lookup.sizes, jnp.int32)[None])
        number = jnp.full(indices.shape[-1:], indices.shape[0], jnp.int32)
        return {
            f"{lookup.key}/low": jnp.min(indices, 0, initial=2**31 - 1),
            f"{lookup.key}/high": jnp.max(indices, 0, initial=-(2**31)),
            f"{lookup.key}/outside": jnp.sum(outside, 0),
            f"{lookup.key}/number": number,
        }

    return lookup.node, measure


def _position(lookup: Lookup) -> int:
    """Which input of the operation are the indices."""
    if lookup.table is not None:
        return 1
    return next(i for i, value in enumerate(lookup.node.inputs) if value is lookup.indices)


def _gather(node: Node) -> Lookup | None:
    parameters = node.equation.params
    table, indices = node.inputs
    numbers, fill = parameters["dimension_numbers"], parameters["fill_value"]
    # Somebody may have said what is to happen with indices out of range. A slice that `vmap` turned
    # into this operation is clipped too, but keeps all axes.
    is_clipped = parameters["mode"] == lax.GatherScatterMode.CLIP and numbers.collapsed_slice_dims
    is_filled = fill is not None and np.isfinite(fill) and jnp.issubdtype(table.dtype, jnp.inexact)
    if not indices.size:
        return None
    sizes = [
        table.shape[axis] - parameters["slice_sizes"][axis] + 1 for axis in numbers.start_index_map
    ]
    is_meant = bool(is_clipped or is_filled)
    return Lookup(node, indices, table, tuple(sizes), is_meant) if sizes else None


def _slice(node: Node) -> Lookup | None:
    table, *starts = node.inputs
    sizes = zip(table.shape, node.output.shape, strict=True)
    moving = [start for start in starts if start.depends]
    if not moving:
        return None
    return Lookup(node, moving[0], table, tuple(size - cut + 1 for size, cut in sizes))


def _scatter(node: Node) -> Lookup | None:
    """A sum over segments, where what belongs to no segment is dropped."""
    table, indices, updates = node.inputs
    numbers = node.equation.params["dimension_numbers"]
    axes = numbers.scatter_dims_to_operand_dims
    if not indices.size or set(axes) != set(numbers.inserted_window_dims) or not updates.depends:
        return None
    return Lookup(node, indices, table, tuple(table.shape[axis] for axis in axes))


def _one_hot(code: OneHot) -> Lookup:
    return Lookup(code.node, code.node.inputs[code.position], None, (code.classes,))


def is_masked(subject: Subject, lookup: Lookup) -> bool:
    """Whether the indices, or what they come from, are compared with something by the program.

    Their comparisons with zero that count negative indices from the end do not count.
    """
    for argument in subject.data:
        if not lookup.indices.depends >> (argument.argument or 0) & 1:
            continue
        for value in subject.graph.downstream(argument, lambda node, i: node.name in _BEFORE_USE):
            for node, i in value.users:
                if node.name in _COMPARISONS and not _is_wrapping(node, i):
                    other = node.inputs[1 - i]
                    if not other.depends and source_of(other).size == 1:
                        return True
    return False


def _is_wrapping(node: Node, i: int) -> bool:
    return (
        node.name == "lt"
        and is_number(node.inputs[1 - i], 0)
        and all(user.name == "select_n" and at == 0 for user, at in uses_of(node.output))
        and all(
            any(_is_sum(branch, node.inputs[i]) for branch in user.inputs[1:])
            for user, _ in uses_of(node.output)
        )
    )


def _is_sum(branch: Value, of: Value) -> bool:
    producer = source_of(branch).producer
    return (
        producer is not None
        and producer.name == "add"
        and any(source_of(value) is source_of(of) for value in producer.inputs)
    )
