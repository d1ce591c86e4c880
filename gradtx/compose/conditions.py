"""Transformations that act in some steps only."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jax import lax

from gradtx import trees
from gradtx.compose.parts import Part, composed, widens
from gradtx.compose.sequence import ExtraArgs, Transformation, as_transformation, set_to_zero
from gradtx.effect import Effect
from gradtx.explicit import laid_out_as
from gradtx.leaves import Aligned
from gradtx.messages import shown


def conditionally_transform(
    inner: Transformation,
    should_transform_fn: Callable[..., Any],
    forward_extra_args: bool = False,
) -> ExtraArgs:
    """Transform the updates in some steps; in the others they pass unchanged.

    Args:
        inner: the transformation; its state stays as it is in the other steps.
        should_transform_fn: a function of the step, counted from 0, that returns a boolean.
        forward_extra_args: whether that function gets the extra arguments of `update` too.

    Returns:
        A transformation with the state `ConditionallyTransformState(inner_state, step)`.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.conditionally_transform(gradtx.scale(2.0), lambda step: step >= 1)
        >>> state = tx.init(jnp.zeros(1))
        >>> for _ in range(2):
        ...     updates, state = tx.update(jnp.ones(1), state)
        ...     print(updates)
        [1.]
        [2.]
    """
    return _conditional(
        inner,
        should_transform_fn,
        forward_extra_args,
        "conditionally_transform",
        otherwise=lambda updates: updates,
        state_class=optax.transforms.ConditionallyTransformState,
    )


def conditionally_mask(
    inner: Transformation,
    should_transform_fn: Callable[..., Any],
    forward_extra_args: bool = False,
) -> ExtraArgs:
    """Transform the updates in some steps; in the others they are zero.

    Args:
        inner: the transformation; its state stays as it is in the other steps.
        should_transform_fn: a function of the step, counted from 0, that returns a boolean.
        forward_extra_args: whether that function gets the extra arguments of `update` too.

    Returns:
        A transformation with the state `ConditionallyMaskState(step, inner_state)`.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.conditionally_mask(gradtx.scale(2.0), lambda step: step >= 1)
        >>> state = tx.init(jnp.zeros(1))
        >>> for _ in range(2):
        ...     updates, state = tx.update(jnp.ones(1), state)
        ...     print(updates)
        [0.]
        [2.]
    """
    zero = set_to_zero()
    return _conditional(
        inner,
        should_transform_fn,
        forward_extra_args,
        "conditionally_mask",
        otherwise=lambda updates: zero.update(updates, optax.EmptyState())[0],
        state_class=optax.transforms.ConditionallyMaskState,
    )


_SOMETIMES = Effect(degree=1, hidden="acts in some steps only")


def _conditional(
    inner: Transformation,
    should_transform_fn: Callable[..., Any],
    forward_extra_args: bool,
    owner: str,
    otherwise: Callable[[Any], Any],
    state_class: Any,
) -> ExtraArgs:
    inner = as_transformation(owner, "inner", inner)
    if not callable(should_transform_fn):
        raise ValueError(
            f"{owner}: should_transform_fn must be a function of the step, got "
            f"{shown(should_transform_fn)}"
        )

    def init(params: Any) -> Any:
        return state_class(step=jnp.zeros([], jnp.int32), inner_state=inner.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        condition = should_transform_fn(state.step, **(extra if forward_extra_args else {}))
        # Only arrays pass through a conditional; whatever else there is stays as it is.
        align = functools.partial(
            Aligned, owner, takes_part=lambda leaf, *_: trees.is_number(leaf), same_shapes=False
        )

        def numbers_of(new: Any, inner_state: Any) -> Any:
            aligned = align({"updates": updates, "the inner updates": new})
            numbers = aligned.parts("the inner updates")
            if widens(inner):  # the other branch does not
                numbers = [_widened(number) for number in numbers]
            pairs = zip(numbers, aligned.parts(), strict=True)
            return [laid_out_as(number, update) for number, update in pairs], inner_state

        numbers, inner_state = lax.cond(
            condition,
            lambda: numbers_of(*inner.update(updates, state.inner_state, params, **extra)),
            lambda: numbers_of(otherwise(updates), state.inner_state),
        )
        new_state = state_class(step=optax.safe_increment(state.step), inner_state=inner_state)
        return align({"updates": updates}).tree_of(numbers), new_state

    return composed(owner, (Part("", inner),), init, update, state=state_class, effect=_SOMETIMES)


def _widened(number: Any) -> Any:
    if not trees.is_parameter(number):
        return number
    array = jnp.asarray(number)
    return array.astype(trees.compute_dtype(array.dtype))
