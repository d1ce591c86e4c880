"""What can be told of optax's own transformations, which are functions without a name."""

import inspect
from types import CodeType
from typing import Any

import jax
import optax

from gradtx.compose.parts import Part
from gradtx.inspection.values import closure_of
from gradtx.select import is_function_of_tree

# What does the same in optax, and has no number that explain would show.
_SAME = (
    "adaptive_grad_clip",
    "clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "set_to_zero",
    "zero_nans",
)


def optax_maker(function: Any) -> str:
    """The name of the public function of optax that made a function; "" if none did.

    A name alone would prove nothing, because anyone may write a `set_to_zero`: the function's code
    must be a part of the code of optax's.
    """
    name = getattr(function, "__qualname__", "").partition(".")[0]
    # Asking the module itself would warn of what is deprecated.
    maker = inspect.unwrap(vars(optax).get(name, lambda: None))
    constants = getattr(getattr(maker, "__code__", None), "co_consts", ())
    own = getattr(function, "__code__", None)
    return name if isinstance(own, CodeType) and own in constants else ""


def meaning_of(update: Any) -> str:
    """What does the same as a transformation of optax in this library; "" if it is not known."""
    name = optax_maker(update)
    return name if name in _SAME else ""


def unadapted(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """What optax's adapter for extra arguments stands for."""
    hidden = closure_of(tx.update).get("tx")
    if optax_maker(tx.update) != "with_extra_args_support" or hidden is None:
        return tx
    return unadapted(hidden)


def optax_parts(tx: optax.GradientTransformation) -> tuple[Part, ...] | None:
    """The parts of what optax put together, in their order; None of anything else."""
    inside = closure_of(tx.update)
    match optax_maker(tx.update), inside:
        case "identity", _:
            return ()
        case "chain", {"update_fns": updates}:
            inits = closure_of(tx.init)["init_fns"]
            made = map(optax.GradientTransformationExtraArgs, inits, updates)
            return tuple(Part("", part) for part in made)
        case "named_chain", {"transforms": named}:
            return tuple(Part(name, part) for name, part in named)
        case "masked", {"inner": inner, "mask": mask}:
            choose = mask if is_function_of_tree(mask) else lambda tree: mask
            return (Part("", inner, choose),)
        case "partition", {"transforms": transforms, "param_labels": labels}:
            labels_of = labels if callable(labels) else lambda tree: labels
            return tuple(
                Part(str(label), part, lambda tree, label=label: _equal(labels_of(tree), label))
                for label, part in transforms.items()
            )
    return None


def _equal(labels: Any, label: Any) -> Any:
    return jax.tree.map(lambda own: own == label, labels)
