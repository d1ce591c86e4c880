"""Different transformations for different leaves."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import optax

from gradtx.arguments import check_flag
from gradtx.compose.parts import Part, composed
from gradtx.compose.sequence import ExtraArgs, Transformation, as_transformation, set_to_zero
from gradtx.effect import IN_SERIES
from gradtx.inputs import check_state, describe_state
from gradtx.joined import Finish, Leaves, join
from gradtx.messages import listed
from gradtx.select import Mask, check_mask, fitted, is_function_of_tree, mask_for


def masked(
    inner: Transformation, mask: Mask, *, mask_compatible_extra_args: bool = False
) -> ExtraArgs:
    """Transform only the leaves that a mask chooses; the others pass unchanged.

    The gradient of a leaf that passes is its update, so that `masked(adam(1e-3), mask)` alone adds
    whole gradients to the parameters it leaves out. To keep those as they are, use
    `selective_transform`.

    Args:
        inner: the transformation of the chosen leaves.
        mask: a tree of booleans (or a prefix of one), a function of the parameters that returns
            one, or a `gradtx.select(...)`.
        mask_compatible_extra_args: whether extra arguments that have the structure of the updates
            are masked too.

    Returns:
        A transformation with the state `MaskedState(inner_state)`; the leaves left out own no
        state.

    Raises:
        ValueError: if `inner` is not a transformation; in `init` and `update`, if the mask does
            not fit the tree.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.masked(gradtx.scale(-1.0), gradtx.select("kernel"))
        >>> grads = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
        >>> updates, _ = tx.update(grads, tx.init(grads))
        >>> print(updates["kernel"], updates["bias"])
        [-1. -1.] [1. 1.]
    """
    return masked_for(
        "masked", "mask", inner, mask, mask_compatible_extra_args=mask_compatible_extra_args
    )


def masked_for(
    owner: str,
    argument: str,
    inner: Transformation,
    mask: Mask,
    *,
    mask_compatible_extra_args: bool = False,
) -> ExtraArgs:
    """`masked`, whose messages name the function that was called and its argument."""
    inner = as_transformation(owner, "inner", inner)
    check_flag(owner, "mask_compatible_extra_args", mask_compatible_extra_args)
    check_mask(owner, mask, argument)
    flags_of = functools.partial(mask_for, owner, mask, argument=argument)

    def init(params: Any) -> Any:
        # A tree without leaves has nothing to hide; optax passes one to learn the layout.
        if not jax.tree.leaves(params):
            return optax.MaskedState(inner.init(params))
        return optax.MaskedState(inner.init(_hidden(params, flags_of(params))))

    def joined(leaves: Leaves, state: Any) -> Finish:
        flags = flags_of(_asked(owner, mask, leaves))
        chosen = _chosen(owner, flags, leaves, mask_compatible_extra_args)
        finish = join(inner.update, chosen, state.inner_state)
        return lambda: optax.MaskedState(finish())

    return composed(
        "masked",
        (Part("", inner, flags_of),),
        init,
        joined,
        state=optax.MaskedState,
        joins=True,
        effect=IN_SERIES,
    )


def _hidden(tree: Any, flags: Any) -> Any:
    """The tree with nothing in place of what is not chosen."""
    return jax.tree.map(lambda flag, part: part if flag else optax.MaskedNode(), flags, tree)


def _chosen(owner: str, flags: Any, leaves: Leaves, mask_compatible_extra_args: bool) -> Leaves:
    """The chosen leaves, with their parameters and extra arguments."""
    shapes = leaves.shapes()
    own = fitted(owner, "the mask", flags, shapes)
    extra = leaves.extra
    if mask_compatible_extra_args:
        structure = jax.tree.structure(shapes)
        extra = {
            name: _hidden(value, own) if jax.tree.structure(value) == structure else value
            for name, value in extra.items()
        }
    params = leaves.params
    if params is not None:
        # Parameters that do not fit are refused by whatever reads them.
        with contextlib.suppress(ValueError):
            params = _hidden(params, fitted(owner, "the mask", flags, params))
    return leaves.restricted(owner, lambda tree: _hidden(tree, own), params, extra)


def _asked(owner: str, choice: Any, leaves: Leaves) -> Any:
    """The tree that a choice is for: of a function the parameters, where they are given."""
    if not is_function_of_tree(choice):
        return leaves.shapes()
    if leaves.params is None:
        return leaves.updates()
    leaves.aligned(owner, "params", leaves.params)
    return leaves.params


def partition(
    transforms: Mapping[Hashable, Transformation],
    param_labels: Any | Callable[[Any], Any],
    *,
    mask_compatible_extra_args: bool = False,
) -> ExtraArgs:
    """Transform each group of leaves in its own way.

    A group owns the state of its own leaves only, and a norm inside its transformation is the norm
    of this group. `set_to_zero()` freezes a group.

    Args:
        transforms: label -> transformation.
        param_labels: a tree of labels (or a prefix of one), or a function of the parameters that
            returns one, such as `gradtx.select.groups(...)`.
        mask_compatible_extra_args: whether extra arguments that have the structure of the updates
            are masked too.

    Returns:
        A transformation with the state `PartitionState(inner_states)`.

    Raises:
        ValueError: if a value is not a transformation; in `init`, if a leaf's label has no
            transformation.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.partition(
        ...     {"fast": gradtx.sgd(1.0), "slow": gradtx.sgd(0.1)},
        ...     gradtx.select.groups({"fast": "head"}, rest="slow"),
        ... )
        >>> grads = {"body": jnp.ones(1), "head": jnp.ones(1)}
        >>> updates, _ = tx.update(grads, tx.init(grads))
        >>> print(updates["body"], updates["head"])
        [-0.1] [-1.]
    """
    transforms = _checked(transforms)
    check_flag("partition", "mask_compatible_extra_args", mask_compatible_extra_args)

    def labels_of(tree: Any) -> Any:
        labels = param_labels(tree) if is_function_of_tree(param_labels) else param_labels
        labels = fitted("partition", "param_labels", labels, tree)
        _refuse_unknown(labels, transforms)
        return labels

    def init(params: Any) -> Any:
        # A tree without leaves has no labels; optax passes one to learn the layout.
        is_empty = not jax.tree.leaves(params)
        labels = params if is_empty else labels_of(params)
        return _states_of_groups(
            {
                label: tx.init(params if is_empty else _hidden(params, _chosen_by(label, labels)))
                for label, tx in transforms.items()
            }
        )

    def joined(leaves: Leaves, state: Any) -> Finish:
        labels = labels_of(_asked("partition", param_labels, leaves))
        finishes = {}
        for label, tx in transforms.items():
            inner_state = _state_of_group(state, label).inner_state
            flags = _chosen_by(label, labels)
            chosen = _chosen("partition", flags, leaves, mask_compatible_extra_args)
            finishes[label] = join(tx.update, chosen, inner_state)
        return lambda: _states_of_groups({label: finish() for label, finish in finishes.items()})

    parts = tuple(
        Part(str(label), tx, lambda tree, label=label: _chosen_by(label, labels_of(tree)))
        for label, tx in transforms.items()
    )
    kept = optax.transforms.PartitionState
    return composed(
        "partition",
        parts,
        init,
        joined,
        state=kept,
        joins=True,
        effect=IN_SERIES,
    )


def _checked(transforms: Any) -> dict[Hashable, ExtraArgs]:
    """The transformations by label, or a ValueError if an argument of `partition` is not that."""
    if not isinstance(transforms, Mapping):
        raise ValueError(
            "partition: transforms must be a dictionary from labels to transformations, got "
            f"{type(transforms).__name__}"
        )
    return {
        label: as_transformation("partition", f"transforms[{label!r}]", tx)
        for label, tx in transforms.items()
    }


def _states_of_groups(states: Mapping[Hashable, Any]) -> Any:
    return optax.transforms.PartitionState(
        {label: optax.MaskedState(state) for label, state in states.items()}
    )


def _refuse_unknown(labels: Any, transforms: Mapping[Hashable, Transformation]) -> None:
    unknown = set(jax.tree.leaves(labels)) - set(transforms)
    if unknown:
        missing = sorted(map(str, unknown))
        raise ValueError(
            f"partition: no transformation for the labels {listed(missing)}; there are "
            f"{listed(sorted(map(str, transforms)), near=missing[0])}"
        )


def _state_of_group(state: Any, label: Hashable) -> Any:
    states = state.inner_states
    if not isinstance(states, Mapping) or label not in states:
        raise ValueError(
            f"partition: the state has nothing for the label {label!r}, but "
            f"{describe_state(states)}"
        )
    check_state(f"partition: {label}", states[label], optax.MaskedState._fields)
    return states[label]


def _chosen_by(label: Hashable, labels: Any) -> Any:
    return jax.tree.map(lambda own: own == label, labels)


def freeze(mask: Mask) -> ExtraArgs:
    """Set the updates of the chosen leaves to zero.

    What stands before it in a chain does not know of it: an optimizer still keeps state for the
    frozen leaves, and a clipping by the global norm still counts their gradients, which shortens
    the steps of the others. `selective_transform` around the whole optimizer has neither fault,
    and is what to use for fine-tuning.

    Args:
        mask: the leaves to freeze: a tree of booleans, a function of the parameters that returns
            one, or a `gradtx.select(...)`.

    Returns:
        A transformation with the state `MaskedState(EmptyState())`.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.chain(gradtx.sgd(1.0), gradtx.freeze(gradtx.select("body")))
        >>> grads = {"body": jnp.ones(1), "head": jnp.ones(1)}
        >>> updates, _ = tx.update(grads, tx.init(grads))
        >>> print(updates["body"], updates["head"])
        [0.] [-1.]
    """
    return masked_for("freeze", "mask", set_to_zero(), mask)


def selective_transform(optimizer: Transformation, *, freeze_mask: Mask) -> ExtraArgs:
    """Train some leaves and freeze the others, which own no optimizer state.

    The optimizer sees only the leaves that are trained: a frozen leaf has no moments, counts in no
    global norm and does not decay, and `explain` shows it as frozen. So give it everything that
    belongs to the optimizer, the clipping too.

    Args:
        optimizer: the whole transformation of the leaves that are trained.
        freeze_mask: the leaves to freeze, as in `freeze`.

    Returns:
        A transformation with the state `PartitionState` of the groups "train" and "freeze".

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> optimizer = gradtx.chain(
        ...     gradtx.clip_by_global_norm(1.0), gradtx.sgd(0.5, momentum=0.9)
        ... )
        >>> tx = gradtx.selective_transform(optimizer, freeze_mask=gradtx.select("body"))
        >>> gradients = {"body": jnp.full(3, 1000.0), "head": jnp.ones(1)}
        >>> updates, state = tx.update(gradients, tx.init(gradients))
        >>> print(updates["body"], updates["head"])
        [0. 0. 0.] [-0.5]
        >>> [momentum.shape for momentum in jax.tree.leaves(state)]
        [(1,)]
    """
    optimizer = as_transformation("selective_transform", "optimizer", optimizer)
    check_mask("selective_transform", freeze_mask, "freeze_mask")

    def labels(tree: Any) -> Any:
        flags = mask_for("selective_transform", freeze_mask, tree, "freeze_mask")
        return jax.tree.map(lambda flag: "freeze" if flag else "train", flags)

    return partition({"train": optimizer, "freeze": set_to_zero()}, labels)
