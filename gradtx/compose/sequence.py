"""Transformations one after another, and the simplest ones to put there."""

from __future__ import annotations

import inspect
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradtx import trees
from gradtx.compose.parts import Part, composed, in_series, would_lose
from gradtx.effect import IN_SERIES, ZERO
from gradtx.inputs import check_order, describe_state
from gradtx.joined import Finish, Leaves, join
from gradtx.leaves import map_leaves
from gradtx.messages import listed, shown

Transformation = optax.GradientTransformation
ExtraArgs = optax.GradientTransformationExtraArgs


def with_extra_args_support(tx: Transformation) -> ExtraArgs:
    """A transformation that accepts, and ignores, the extra arguments that others need.

    Args:
        tx: any gradient transformation.

    Returns:
        `tx` itself if it takes extra arguments, else a transformation that drops them.

    Raises:
        ValueError: if `tx` is not a gradient transformation.

    Example:
        >>> import gradtx
        >>> import optax
        >>> tx = gradtx.with_extra_args_support(optax.GradientTransformation(*optax.identity()))
        >>> print(tx.update(1.0, tx.init(None), value=2.0)[0])
        1.0
    """
    return as_transformation("with_extra_args_support", "tx", tx)


def as_transformation(owner: str, argument: str, tx: Any) -> ExtraArgs:
    """`tx` with support for extra arguments, or a ValueError that says which argument is wrong."""
    if isinstance(tx, ExtraArgs):
        return tx
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        hint = "; did you forget to call it?" if callable(tx) else ""
        raise ValueError(
            f"{owner}: {argument} must be a gradient transformation, got {shown(tx)}{hint}"
        )
    if isinstance(tx, Transformation):
        return optax.with_extra_args_support(tx)
    # Objects with the two methods, such as MultiSteps, optax's or ours.
    if hasattr(tx, "gradient_transformation"):
        made = tx.gradient_transformation()
        if isinstance(made, ExtraArgs):
            return made
    arguments = inspect.signature(tx.update).parameters.values()
    if any(argument.kind is argument.VAR_KEYWORD for argument in arguments):
        return ExtraArgs(tx.init, tx.update)
    return optax.with_extra_args_support(Transformation(tx.init, tx.update))


def chain(*args: Transformation) -> ExtraArgs:
    """Apply transformations one after another.

        u_0 = g,    u_i = tx_i(u_{i-1})

    Updates in half precision stay in float32 from one equation of this library to the next. They
    are rounded once, at the end; before that only for what needs them as arrays of their own dtype,
    such as `grouped`, or a transformation of another library.

    Args:
        *args: gradient transformations, the first applied first.

    Returns:
        A transformation whose state is the tuple of their states.

    Raises:
        ValueError: if an argument is not a gradient transformation, or would alter updates that
            have to be added as they are, such as those of `with_kahan_sum`; in `update`, if the
            state belongs to another chain. The place of a piece without a state may hold anything
            that is empty, such as None.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.chain(gradtx.clip_by_global_norm(2.5), gradtx.sgd(0.5))
        >>> updates, state = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)))
        >>> print(updates)
        [-0.75 -1.  ]
    """
    transformations = [
        tx if isinstance(tx, ExtraArgs) else as_transformation("chain", f"argument {i}", tx)
        for i, tx in enumerate(args)
    ]

    def init(params: Any) -> Any:
        return tuple(tx.init(params) for tx in transformations)

    def joined(leaves: Leaves, state: Any) -> Finish:
        if state is None:
            raise ValueError("chain: needs a state, got None; make one with init(params)")
        if not _may_hold_states(state) or len(state) != len(transformations):
            check_order("chain", state, leaves.params)
            raise ValueError(
                f"chain: expected the states of {len(transformations)} transformations, got "
                f"{describe_state(state)}; gradtx.migrate carries the state of another "
                "transformation over"
            )
        finishes = []
        for i, (tx, inner) in enumerate(zip(transformations, state, strict=True)):
            _refuse_loss("chain", f"place {i}", tx, inner)
            finishes.append(join(tx.update, leaves, inner))
        return lambda: _in_container_of(state, [finish() for finish in finishes])

    parts = tuple([Part("", tx) for tx in transformations])
    return in_series(composed("chain", parts, init, joined, joins=True, effect=IN_SERIES))


def _may_hold_states(state: Any) -> bool:
    """Whether it is a tuple or a list that is not the state of one transformation by its class."""
    is_one = hasattr(state, "_fields") and type(state).__module__.startswith(("gradtx.", "optax."))
    return isinstance(state, tuple | list) and not is_one


def _in_container_of(state: Any, new_states: list[Any]) -> Any:
    """The states in the container that they came in, so that a loop can carry a restored list."""
    if isinstance(state, list):
        return new_states
    return type(state)(*new_states) if hasattr(state, "_fields") else tuple(new_states)


def _refuse_loss(owner: str, place: str, tx: Transformation, state: Any) -> None:
    """Refuse a state at the place of a piece that would not read it."""
    if would_lose(tx, state):
        raise ValueError(
            f"{owner}: {place} has no state, got {describe_state(state)}; gradtx.migrate carries "
            "the state of another transformation over"
        )


def named_chain(*args: tuple[str, Transformation]) -> ExtraArgs:
    """Apply transformations one after another, with a name for the state of each.

    Args:
        *args: pairs of a name and a gradient transformation.

    Returns:
        A transformation whose state is an ordered dictionary of their states.

    Raises:
        ValueError: if a name stands twice, an argument is not such a pair, or a transformation
            would alter updates that have to be added as they are, see `chain`.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.named_chain(("momentum", gradtx.trace(0.9)), ("step", gradtx.scale(-0.1)))
        >>> list(tx.init(jnp.zeros(2)))
        ['momentum', 'step']
    """
    for i, pair in enumerate(args):
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise ValueError(
                f"named_chain: argument {i} must be (name, transformation), got {shown(pair)}"
            )
    names = [name for name, _ in args]
    repeated = [name for name, number in Counter(names).items() if number > 1]
    if repeated:
        raise ValueError(f"named_chain: the names must be unique, got {listed(repeated)} twice")
    transformations = [(name, as_transformation("named_chain", name, tx)) for name, tx in args]

    def init(params: Any) -> Any:
        return OrderedDict((name, tx.init(params)) for name, tx in transformations)

    def joined(leaves: Leaves, state: Any) -> Finish:
        if not isinstance(state, Mapping) or set(state) != set(names):
            check_order("named_chain", state, leaves.params)
            raise ValueError(
                f"named_chain: expected the states of {listed(names)}, got {describe_state(state)}"
            )
        finishes = {}
        for name, tx in transformations:
            _refuse_loss("named_chain", repr(name), tx, state[name])
            finishes[name] = join(tx.update, leaves, state[name])
        # In the container that it came in, so that a loop can carry it.
        container = dict if type(state) is dict else OrderedDict
        return lambda: container((name, finishes[name]()) for name in state)

    parts = tuple(Part(name, tx) for name, tx in transformations)
    return in_series(composed("named_chain", parts, init, joined, joins=True, effect=IN_SERIES))


def identity() -> ExtraArgs:
    """Leave the updates as they are.

        u = g

    Returns:
        The transformation; its state is empty.

    Example:
        >>> import gradtx
        >>> tx = gradtx.identity()
        >>> print(tx.update(3.0, tx.init(None))[0])
        3.0
    """
    return composed(
        "identity",
        (),
        lambda params: optax.EmptyState(),
        lambda leaves, state: lambda: state,
        reads_state=False,
        joins=True,
        effect=IN_SERIES,
    )


def set_to_zero() -> ExtraArgs:
    """Replace the updates by zeros, so that the parameters stay as they are.

        u = 0

    Returns:
        The transformation; its state is empty.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.set_to_zero()
        >>> print(tx.update(jnp.array([jnp.nan, 1.0]), tx.init(None))[0])
        [0. 0.]
    """

    def zero(update: Any) -> Any:
        # What has no zero of its own (a function, the float0 of an integer) is zero already.
        return jnp.zeros_like(update) if trees.is_number(update) else update

    zeros = stateless(lambda updates, params: jax.tree.map(zero, updates))
    return composed(
        "set_to_zero",
        (),
        zeros.init,
        zeros.update,
        takes_integers=True,
        reads_state=False,
        effect=ZERO,
    )


def stateless(f: Callable[[Any, Any], Any]) -> ExtraArgs:
    """A transformation from a function of the updates and the parameters.

        u = f(g, p)

    Args:
        f: a function of the whole tree of updates and the tree of parameters, or None.

    Returns:
        The transformation; its state is empty.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.stateless(lambda updates, params: jax.tree.map(jnp.sign, updates))
        >>> print(tx.update(jnp.array([-3.0, 2.0]), tx.init(None))[0])
        [-1.  1.]
    """

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del extra
        return f(updates, params), state

    return ExtraArgs(lambda params: optax.EmptyState(), update)


def stateless_with_tree_map(f: Callable[[Any, Any], Any]) -> ExtraArgs:
    """A transformation from a function of one leaf of the updates and of the parameters.

        u_i = f(g_i, p_i)

    Args:
        f: a function of an update and its parameter, or None where no parameters are given.

    Returns:
        The transformation; its state is empty. Leaves that are None stay None.

    Raises:
        ValueError: in `update`, if updates and parameters differ in structure.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.stateless_with_tree_map(lambda g, p: g + 0.1 * p)
        >>> print(tx.update(jnp.array([1.0]), tx.init(None), jnp.array([10.0]))[0])
        [2.]
    """
    owner = "stateless_with_tree_map"

    def on_tree(updates: Any, params: Any) -> Any:
        named = {"updates": updates} | ({} if params is None else {"params": params})
        return map_leaves(
            lambda leaf, parameter=None: f(leaf, parameter),
            owner,
            named,
            takes_part=lambda leaf, *_: leaf is not None,
            same_shapes=False,
        )

    return stateless(on_tree)
