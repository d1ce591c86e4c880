"""Whether an update, its parameter and its slots agree, or a message that says where not."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gradtx import trees
from gradtx.kernel import Kernel
from gradtx.messages import shown


def check_leaf(
    owner: str,
    kernel: Kernel,
    index: int,
    leaf: Sequence[Any],
    options: Mapping[str, Any],
    updates: Any,
    state: Any,
) -> None:
    """Refuse a leaf whose parameter or slots are missing or of another shape.

    Args:
        owner: the function that the user called, which opens the messages.
        kernel: the declarations.
        index: the number of the leaf in `trees.flatten(updates)`.
        leaf: its update, its parameter (None if there are no parameters), and its slots in the
            order of declaration.
        options: its options, which the shapes of slots may depend on.
        updates: the whole tree of updates, for the message.
        state: the whole state, of `kernel.state`, for the message.

    Raises:
        ValueError: naming the transformation, the path and both shapes.
    """
    gradient, parameter, *slots = leaf
    shape = np.shape(gradient)
    if parameter is not None and np.shape(parameter) != shape:
        trees.refuse_shape(owner, "updates", updates, index, "params", parameter)
    for slot, value in zip(kernel.slots, slots, strict=True):
        if value is None:
            raise ValueError(
                f"{owner}: the state has no {slot.name} at "
                f"'{trees.paths(updates)[index]}', where updates has shape {shape}; was init "
                "called with these parameters, and are they inexact numbers?"
            )
        expected = slot.shape_for(shape, options)
        what = f"the state's {slot.name}"
        if not (isinstance(expected, list) or jax.tree_util.all_leaves([value])):
            kept = getattr(state, slot.name)
            trees.flatten_like(owner, what, kept, "updates", updates)
        if jax.tree.map(np.shape, value) != expected:
            trees.refuse_shape(owner, "updates", updates, index, what, value)
    if kernel.needs_parameters and not trees.is_parameter(parameter):
        raise ValueError(
            f"{owner}: needs the parameter at '{trees.paths(updates)[index]}', "
            f"where updates has shape {shape}; params has {shown(parameter)}"
        )
