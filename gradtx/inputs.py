"""What `update` is given, read by its meaning: integers as gradients, states by field name.

An input is refused only if it would be misread; whatever has one well-defined meaning works. What
is not read is not checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradtx import trees
from gradtx.messages import listed, shown

# A parameter that `update` was not given; None is one that is missing.
UNKNOWN = object()


def is_exact(leaf: Any) -> bool:
    """Whether a leaf is an integer or a boolean, or an array of them; float0 is neither."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return isinstance(leaf, int)
    return trees.is_subdtype(dtype, jnp.integer) or trees.is_subdtype(dtype, np.bool_)


def as_gradient(gradient: Any, parameter: Any, slots: Sequence[Any] = ()) -> Any:
    """A gradient of integers as inexact numbers; any other as it is.

    Args:
        gradient: one leaf of the updates.
        parameter: its parameter, or `UNKNOWN`.
        slots: what the state holds for it; None where the parameter is not inexact.

    Returns:
        The gradient in its parameter's dtype, or in the default dtype if that is unknown. If the
        parameter is known not to be inexact, zero: it is left alone.
    """
    if not is_exact(gradient):
        return gradient
    if trees.is_parameter(parameter):
        return jnp.asarray(gradient, jnp.result_type(parameter))
    is_unknown = parameter is UNKNOWN and not slots
    if is_unknown or any(slot is not None for slot in slots):
        return jnp.asarray(gradient, jnp.result_type(float))
    is_array = hasattr(gradient, "dtype")
    return jnp.zeros_like(gradient) if is_array else type(gradient)(0)


def as_gradients(updates: Any, params: Any) -> Any:
    """Updates with integer gradients promoted, see `as_gradient`."""
    leaves, treedef = trees.flatten(updates)
    if not any(map(is_exact, leaves)):
        return updates
    return treedef.unflatten(map(as_gradient, leaves, known_parameters(treedef, params)))


def trained(params: Any) -> Any:
    """The parameters that a gradient belongs to: the fast ones of lookahead's pair."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def known_parameters(treedef: Any, params: Any) -> list[Any]:
    """The parameters of the updates, each `UNKNOWN` if they are not given or do not match."""
    if params is not None:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return treedef.flatten_up_to(trained(params))
    return [UNKNOWN] * treedef.num_leaves


def as_array(leaf: Any) -> Any:
    """A number as an array; an array, or just its shape and dtype, as it is."""
    return leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)


def refuse_shapes_alone(owner: str, what: str, leaf: Any) -> None:
    """Refuse the mere shape and dtype of a parameter whose values the initial state needs.

    Raises:
        ValueError: if the leaf has no values.
    """
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise ValueError(
            f"{owner}: {what} starts with the values of the parameters, got {leaf}; for the "
            "shapes of the state use jax.eval_shape(tx.init, params)"
        )


def refuse_foreign(owner: str, params: Any, leaves: Sequence[Any]) -> None:
    """Refuse leaves that are neither numbers nor arrays of them, nor functions, nor missing.

    Args:
        owner: name of the caller, which opens error messages.
        params: the parameters.
        leaves: their leaves, None among them.

    Raises:
        ValueError: naming the path and the leaf.
    """
    for i, leaf in enumerate(leaves):
        if not _belongs(leaf):
            raise ValueError(
                f"{owner}: params has {shown(leaf)} at '{trees.paths(params)[i]}'; a leaf must be "
                "a number or an array of numbers, or None or a function, which are left alone"
            )


def _belongs(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return leaf is None or isinstance(leaf, int | float | complex) or callable(leaf)
    # Of numpy's own kinds of arrays those of objects, texts and times.
    return getattr(dtype, "kind", "") not in tuple("OSUMm")


def check_given(owner: str, params: Any) -> None:
    """Refuse to go on without the parameters.

    Raises:
        ValueError: if there are none.
    """
    if params is None:
        raise ValueError(f"{owner}: needs the parameters; call update(updates, state, params)")


def check_order(owner: str, state: Any, params: Any) -> None:
    """Refuse swapped state and parameters, and a transformation in place of the state.

    Args:
        owner: name of the caller, which opens error messages.
        state: what was given as the optimizer state.
        params: what was given as the parameters.

    Raises:
        ValueError: if they were swapped, or `state` is a transformation.
    """
    if is_transformation(state):
        raise ValueError(f"{owner}: state must be an optimizer state, got a transformation")
    if holds_state(params) and not holds_state(state):
        raise ValueError(
            f"{owner}: params holds an optimizer state, and state holds none; the state comes first"
        )


def real_scalar(owner: str, loss: Any) -> jax.Array:
    """The loss, if it is a real number.

    Args:
        owner: name of the caller, which opens error messages.
        loss: what a loss function returned.

    Raises:
        ValueError: if it is anything else, such as a pair of the loss and other things.
    """
    dtype = getattr(loss, "dtype", None)
    if dtype is None or loss.shape or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{owner}: the loss must be a real scalar, got {_kind_of(loss)}")
    return loss


def _kind_of(loss: Any) -> str:
    is_array = hasattr(loss, "dtype")
    return f"{loss.dtype} of shape {loss.shape}" if is_array else describe_state(loss)


def loss_and_aux(owner: str, result: Any, *, has_aux: bool) -> tuple[jax.Array, Any]:
    """The loss, and what else a loss function returned; None: nothing else.

    Args:
        owner: name of the caller, which has an argument `has_aux` and opens error messages.
        result: what a loss function returned.
        has_aux: whether it returns a pair of the loss and something else.

    Raises:
        ValueError: if the result is no such pair, or the loss is not a real number.
    """
    is_several = isinstance(result, tuple | list)
    if has_aux and not (is_several and len(result) == 2):
        raise ValueError(
            f"{owner}: with has_aux=True the loss function must return a pair, (loss, aux), got "
            f"{_kind_of(result)}"
        )
    if is_several and not has_aux:
        raise ValueError(
            f"{owner}: the loss must be a real scalar, got {_kind_of(result)}; if it returns "
            "(loss, aux), pass has_aux=True"
        )
    loss, aux = result if has_aux else (result, None)
    return real_scalar(owner, loss), aux


def is_transformation(value: Any) -> bool:
    """Whether a value has the two methods of a transformation."""
    return hasattr(value, "init") and hasattr(value, "update")


def holds_state(tree: Any) -> bool:
    """Whether a tree holds an optimizer state: a named tuple of a class of gradtx or optax.

    The classes that parameters may have do not count. States of other classes are not recognized.
    """

    def is_state(node: Any) -> bool:
        if isinstance(node, optax.LookaheadParams | optax.MaskedNode):
            return False
        package = type(node).__module__.partition(".")[0]
        return hasattr(node, "_fields") and package in ("gradtx", "optax")

    return any(map(is_state, jax.tree.leaves(tree, is_leaf=is_state)))


def check_state(owner: str, state: Any, fields: Sequence[str]) -> None:
    """Refuse a state that lacks a field; further fields and other classes are accepted.

    Args:
        owner: name of the caller, which opens error messages.
        state: the state that `update` was given.
        fields: the fields that are read.

    Raises:
        ValueError: if a field is missing.
    """
    if has_fields(state, fields):
        return
    if state is None:
        raise ValueError(f"{owner}: needs a state, got None; make one with init(params)")
    raise ValueError(
        f"{owner}: expected a state with the fields {tuple(fields)}, got {describe_state(state)}; "
        "was it made by the init of this transformation? gradtx.migrate carries over a state that "
        "was restored without its classes, or that belongs to another transformation"
    )


def has_fields(state: Any, fields: Sequence[str]) -> bool:
    """Whether a state, of whatever class, has these fields."""
    if isinstance(state, tuple | list | Mapping):  # whose methods may have such names
        return set(fields) <= set(getattr(state, "_fields", ()))
    return all(hasattr(state, field) for field in fields)


def describe_state(state: Any) -> str:
    """What a state is, in a few words, for a message."""
    name = type(state).__name__
    if isinstance(state, Mapping):
        return f"{name} with the keys {listed(state)}"
    if hasattr(state, "_fields"):
        return f"{name} with the fields {state._fields}"
    if isinstance(state, tuple | list):
        return f"{name} of length {len(state)}"
    return name


def with_fields(made: type, state: Any, new: Mapping[str, Any]) -> Any:
    """The new state, in the class of the old one, so that its further fields are kept."""
    if type(state) is not made and hasattr(state, "_replace"):
        return state._replace(**new)
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        return dataclasses.replace(state, **new)
    return made(**new)
