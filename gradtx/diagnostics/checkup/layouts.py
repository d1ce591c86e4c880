"""Images and sequences whose channels are along another axis than a convolution takes them from."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradtx.diagnostics.checkup.entries import Entry, entries_of, sources_of
from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.subject import Subject, place_of

# An image has one or three channels, and at least so many rows.
_CHANNELS = (1, 3)
_FEWEST_ROWS = 8
# A sequence that has one step is none, if it has so many channels.
_MANY = 16


def findings(subject: Subject) -> Iterator[Finding]:
    """The first convolutions that take rows for channels, and channels for rows."""
    seen = set()
    for entry in entries_of(subject):
        if entry.node.name != "conv_general_dilated" or entry.position or entry.value in seen:
            continue
        axis = _channel_axis(entry)
        if axis is not None:
            seen.add(entry.value)
            yield _wrong_layout(subject, entry, axis)


def _channel_axis(entry: Entry) -> int | None:
    """The axis of the channels, which the convolution goes along; None: there is none such."""
    numbers = entry.node.equation.params["dimension_numbers"]
    _, channels, *places = numbers.lhs_spec
    shape, kernel = entry.value.shape, entry.node.inputs[1].shape
    for axis, of_kernel in zip(places, numbers.rhs_spec[2:], strict=True):
        others = [shape[other] for other in places if other != axis]
        # A kernel of length 1 leaves an axis alone.
        if kernel[of_kernel] == 1 or shape[axis] not in _CHANNELS:
            continue
        if not others and shape[axis] == 1 and shape[channels] >= _MANY:
            return axis
        if others and min(*others, shape[channels]) >= _FEWEST_ROWS:
            return axis
    return None


def _wrong_layout(subject: Subject, entry: Entry, axis: int) -> Finding:
    numbers = entry.node.equation.params["dimension_numbers"]
    shape, channels = entry.value.shape, numbers.lhs_spec[1]
    size = math.prod(shape[other] for other in numbers.lhs_spec[2:] if other != axis)
    what = "an image" if len(shape) > 3 else "a sequence"
    names = [subject.name(value) for value in sources_of(subject, entry.value)]
    return Finding(
        "wrong_layout",
        "error" if size in (shape[channels], 1) else "warning",
        f"the convolution takes axis {channels} of an array of shape {shape} for the channels, of "
        f"which there are {shape[channels]} then, and goes along axis {axis}, of length "
        f"{shape[axis]}, as if that were a side of {what}.",
        f"put the channels where the convolution expects them: jnp.moveaxis(x, {axis}, "
        f"{channels}). Flax and haiku take channels last, equinox takes them first.",
        place=place_of(names),
        source=entry.node.line,
        evidence={"shape": list(shape), "axis": channels, "channel_axis": axis},
    )
