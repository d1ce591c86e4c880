"""How the layout of an operation's result follows from those of its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gradtx.diagnostics.tracing import primitives
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.layout import (
    Axis,
    Layout,
    Part,
    axis_of,
    has_rows,
    is_clash,
    joined,
    precedence,
    regrouped,
    size_of,
)


@dataclass(frozen=True)
class Meeting:
    """An operation in which something meets the rows of the batch.

    Attributes:
        node: the operation.
        axis: the axis of its output.
        position: which input it is that meets the rows.
    """

    node: Node
    axis: int
    position: int


@dataclass
class Signs:
    """What shows on the way how the rows are used.

    Attributes:
        clashes: where rows meet other rows that are not in the same order.
        places: where the rows meet something that has numbers of its own for each of them, such as
            an embedding of positions, or a causal mask.
        slid: the convolutions and windows that run along the rows, and the edges into the loops
            whose iterations are the rows.
        indexed: where rows are picked in an order that is computed.
        scanned: what the iterations of these loops count, by the equation of the loop.
    """

    clashes: list[Meeting] = field(default_factory=list)
    places: list[Meeting] = field(default_factory=list)
    slid: list[Node] = field(default_factory=list)
    indexed: list[Node] = field(default_factory=list)
    scanned: dict[int, Axis] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One result of one operation.

    Attributes:
        node: the operation.
        layouts: the layouts of its inputs.
        output: the result.
        signs: what is noticed.
    """

    node: Node
    layouts: list[Layout]
    output: Value
    signs: Signs

    @property
    def first(self) -> Layout:
        """The layout of the first input."""
        return self.layouts[0]


def layout_after(step: Step) -> Layout:
    """The layout of a result."""
    name = step.node.name
    if name in _RULES:
        layout = _RULES[name](step)
    elif name in primitives.ELEMENTWISE:
        layout = _elementwise(step)
    elif name.startswith(("reduce_", "arg")):
        axes = step.node.equation.params.get("axes", ())
        layout = _without(step.layouts[step.node.outputs.index(step.output)], axes)
    else:
        layout = _leading(step)
    if tuple(map(size_of, layout)) != step.output.shape:
        return tuple(axis_of(size) for size in step.output.shape)
    return layout


def _elementwise(step: Step) -> Layout:
    shape = step.output.shape
    taking = [i for i, layout in enumerate(step.layouts) if len(layout) == len(shape)]
    axes: list[Axis] = []
    for number, size in enumerate(shape):
        one = axis_of(size, "copies")
        meeting = [i for i in taking if size_of(step.layouts[i][number]) == size > 1]
        for i in meeting:
            other = step.layouts[i][number]
            if is_clash(one, other):
                step.signs.clashes.append(Meeting(step.node, number, i))
            one = joined(one, other)
        if has_rows(one):
            step.signs.places += [
                Meeting(step.node, number, i)
                for i in meeting
                if all(part.kind == "other" for part in step.layouts[i][number])
            ]
        axes.append(one)
    return tuple(axes)


def _without(layout: Layout, axes: tuple[int, ...]) -> Layout:
    return tuple(axis for i, axis in enumerate(layout) if i not in axes)


def _leading(step: Step) -> Layout:
    """Of an operation that is not known: it is taken to leave the leading axes alone."""
    layout = max(
        step.layouts, key=lambda one: sum(precedence(p) for axis in one for p in axis), default=()
    )
    result = []
    for size, axis in zip(step.output.shape, layout, strict=False):
        if size_of(axis) != size:
            break
        result.append(axis)
    return (*result, *(axis_of(size) for size in step.output.shape[len(result) :]))


def _broadcast(step: Step) -> Layout:
    dimensions = list(step.node.equation.params["broadcast_dimensions"])
    result = []
    for axis, size in enumerate(step.output.shape):
        source = step.first[dimensions.index(axis)] if axis in dimensions else ()
        result.append(source if size_of(source) == size else axis_of(size, "copies"))
    return tuple(result)


def _contract(step: Step) -> Layout:
    first, second = step.layouts
    contracted, (batch1, batch2) = step.node.equation.params["dimension_numbers"]
    shared = [joined(first[i], second[j]) for i, j in zip(batch1, batch2, strict=True)]
    free1 = _without(first, (*contracted[0], *batch1))
    free2 = _without(second, (*contracted[1], *batch2))
    return (*shared, *free1, *free2)


def _convolve(step: Step) -> Layout:
    parameters = step.node.equation.params
    numbers = parameters["dimension_numbers"]
    batch, feature, *spatial = numbers.lhs_spec
    if any(has_rows(step.first[i]) for i in spatial):
        step.signs.slid.append(step.node)
    result = [axis_of(size) for size in step.output.shape]
    result[numbers.out_spec[0]] = step.first[batch]
    # A convolution with its own kernel for each example has the examples as groups of features.
    groups, along = step.first[feature], numbers.out_spec[1]
    number = parameters["feature_group_count"]
    if groups and groups[0].kind == "rows" and groups[0].size == number:
        result[along] = (groups[0], *axis_of(step.output.shape[along] // number))
    return tuple(result)


def _concatenate(step: Step) -> Layout:
    along = step.node.equation.params["dimension"]
    result = list(_together([_but(layout, along) for layout in step.layouts]))
    pieces = {layout[along] for layout in step.layouts}
    is_torn = any(part.kind == "torn" for piece in pieces for part in piece)
    if len(pieces) == 1 and not is_torn:
        result[along] = (Part("other", len(step.layouts)), *next(iter(pieces)))
    else:
        result[along] = axis_of(step.output.shape[along], "torn" if is_torn else "other")
    return tuple(result)


def _but(layout: Layout, along: int) -> Layout:
    return tuple(() if i == along else axis for i, axis in enumerate(layout))


def _together(layouts: list[Layout]) -> Layout:
    """The layouts of equally shaped arrays, joined."""
    result = list(layouts[0])
    for layout in layouts[1:]:
        result = [joined(one, other) for one, other in zip(result, layout, strict=True)]
    return tuple(result)


def _cut(step: Step) -> Layout:
    """Of slices and paddings: a part of the examples counts something else.

    What has neither whole examples nor the same part of all is torn.
    """
    result = []
    for axis, size in zip(step.first, step.output.shape, strict=True):
        is_torn = has_rows(axis) and any(part.kind not in ("rows", "copies") for part in axis)
        kind = "torn" if is_torn else "other"
        result.append(axis if size_of(axis) == size else axis_of(size, kind))
    return tuple(result)


def _gather(step: Step) -> Layout:
    numbers = step.node.equation.params["dimension_numbers"]
    sizes = step.node.equation.params["slice_sizes"]
    operand, indices = step.first, list(step.layouts[1][:-1])
    dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [
        axis if size_of(axis) == sizes[i] else axis_of(sizes[i])
        for i, axis in enumerate(operand)
        if i not in dropped
    ]
    for i, j in zip(
        numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True
    ):
        if is_clash(indices[j], operand[i]):
            step.signs.clashes.append(Meeting(step.node, j, 0))
        indices[j] = joined(indices[j], operand[i])
    if numbers.start_index_map == (0,) and has_rows(operand[0]) and step.node.inputs[1].depends:
        step.signs.indexed.append(step.node)
    if any(map(has_rows, operand)):
        torn = [i for i, axis in enumerate(indices) if any(p.kind == "torn" for p in axis)]
        step.signs.clashes += [Meeting(step.node, i, 1) for i in torn]
    return tuple(
        kept.pop(0) if i in numbers.offset_dims else indices.pop(0)
        for i in range(len(step.output.shape))
    )


def _window(step: Step) -> Layout:
    sizes = step.node.equation.params["window_dimensions"]
    if any(size > 1 and has_rows(axis) for axis, size in zip(step.first, sizes, strict=True)):
        step.signs.slid.append(step.node)
    return _cut(step)


def _loop_slice(step: Step) -> Layout:
    if has_rows(step.first[0]):
        step.signs.slid.append(step.node)
        step.signs.scanned[id(step.node.equation)] = step.first[0]
    return step.first[1:]


def _loop_stack(step: Step) -> Layout:
    along = step.signs.scanned.get(id(step.node.equation), axis_of(step.output.shape[0]))
    return (along, *step.first)


_RULES: dict[str, Callable[[Step], Layout]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": lambda step: regrouped(step.first, step.output.shape),
    "transpose": lambda step: tuple(
        step.first[i] for i in step.node.equation.params["permutation"]
    ),
    "squeeze": lambda step: _without(step.first, step.node.equation.params["dimensions"]),
    "dot_general": _contract,
    "conv_general_dilated": _convolve,
    "concatenate": _concatenate,
    "gather": _gather,
    "random_bits": lambda step: tuple(axis_of(size, "copies") for size in step.output.shape),
    "loop_slice": _loop_slice,
    "loop_stack": _loop_stack,
    "loop_carry": lambda step: _together(step.layouts),
    "branch": lambda step: _together(step.layouts[1:]),
    **dict.fromkeys(("slice", "dynamic_slice", "pad", "split"), _cut),
    **dict.fromkeys(("reduce_window", "reduce_window_max", "reduce_window_sum"), _window),
    **dict.fromkeys(("scatter", "scatter-add", "dynamic_update_slice"), lambda step: step.first),
}
