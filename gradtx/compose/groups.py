"""Different transformations for different leaves."""

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import optax

from gradtx import trees
from gradtx.compose.parts import Part, composed
from gradtx.compose.sequence import ExtraArgs, Transformation, as_transformation, set_to_zero
from gradtx.select import Mask, is_function_of_tree, mask_for


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
    inner = as_transformation("masked", "inner", inner)

    def hide(tree: Any, flags: Any) -> Any:
        try:
            return jax.tree.map(
                lambda flag, part: part if flag else optax.MaskedNode(), flags, tree
            )
        except (ValueError, TypeError, KeyError) as mismatch:
            raise ValueError(
                "masked: the mask is no prefix of the tree: "
                f"{jax.tree.structure(flags)} against {jax.tree.structure(tree)}"
            ) from mismatch

    def init(params: Any) -> Any:
        # A tree without leaves has nothing to hide; optax passes one to learn the layout.
        if not jax.tree.leaves(params):
            return optax.MaskedState(inner.init(params))
        return optax.MaskedState(inner.init(hide(params, mask_for("masked", mask, params))))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        # A function of the parameters is asked about the parameters wherever they are known.
        flags = mask_for("masked", mask, _known("masked", updates, params))
        if mask_compatible_extra_args:
            structure = jax.tree.structure(updates)
            extra = {
                name: hide(value, flags) if jax.tree.structure(value) == structure else value
                for name, value in extra.items()
            }
        hidden_params = None if params is None else hide(params, flags)
        new, inner_state = inner.update(
            hide(updates, flags), state.inner_state, hidden_params, **extra
        )
        merged = jax.tree.map(lambda flag, a, b: a if flag else b, flags, new, updates)
        return merged, optax.MaskedState(inner_state)

    part = Part("", inner, functools.partial(mask_for, "masked", mask))
    return composed("masked", (part,), init, update)


def _known(owner: str, updates: Any, params: Any) -> Any:
    """The parameters, which must agree with the updates; without them the updates."""
    if params is None:
        return updates
    trees.flatten_like(owner, "params", params, "updates", updates)
    return params


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
    if not isinstance(transforms, Mapping):
        raise ValueError(
            "partition: transforms must be a dictionary from labels to transformations, got "
            f"{type(transforms).__name__}"
        )
    transforms = {
        label: as_transformation("partition", f"transforms[{label!r}]", tx)
        for label, tx in transforms.items()
    }

    def labels_of(tree: Any) -> Any:
        return param_labels(tree) if is_function_of_tree(param_labels) else param_labels

    def chosen_by(label: Hashable, labels: Any) -> Any:
        return jax.tree.map(lambda own: own == label, labels)

    def groups(tree: Any) -> dict[Hashable, ExtraArgs]:
        labels = labels_of(tree)
        unknown = set(jax.tree.leaves(labels)) - set(transforms)
        if unknown:
            raise ValueError(
                f"partition: no transformation for the labels {sorted(map(str, unknown))}; there "
                f"are {sorted(map(str, transforms))}"
            )
        return {
            label: masked(
                tx,
                chosen_by(label, labels),
                mask_compatible_extra_args=mask_compatible_extra_args,
            )
            for label, tx in transforms.items()
        }

    def init(params: Any) -> Any:
        # A tree without leaves has no labels; optax passes one to learn the layout.
        if not jax.tree.leaves(params):
            inner_states = {
                label: optax.MaskedState(tx.init(params)) for label, tx in transforms.items()
            }
        else:
            inner_states = {label: tx.init(params) for label, tx in groups(params).items()}
        return optax.transforms.PartitionState(inner_states)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        new_states = {}
        for label, tx in groups(_known("partition", updates, params)).items():
            updates, new_states[label] = tx.update(
                updates, state.inner_states[label], params, **extra
            )
        return updates, optax.transforms.PartitionState(new_states)

    parts = tuple(
        Part(str(label), tx, lambda tree, label=label: chosen_by(label, labels_of(tree)))
        for label, tx in transforms.items()
    )
    return composed("partition", parts, init, update)


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
    return masked(set_to_zero(), mask)


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

    def labels(tree: Any) -> Any:
        flags = mask_for("selective_transform", freeze_mask, tree)
        return jax.tree.map(lambda flag: "freeze" if flag else "train", flags)

    return partition({"train": optimizer, "freeze": set_to_zero()}, labels)
