"""What is known of optax's own transformations, which do not say what made them."""

from __future__ import annotations

import inspect
from types import CodeType
from typing import Any

import jax
import optax

from gradtx.compose.parts import Part
from gradtx.effect import ZERO, Effect
from gradtx.inspection.values import closure_of
from gradtx.kernels.clip import (
    ADAPTIVE_GRAD_CLIP,
    CLIP,
    CLIP_BY_BLOCK_RMS,
    CLIP_BY_GLOBAL_NORM,
    ZERO_NANS,
)
from gradtx.select import is_function_of_tree

# What the functions of these names in optax do to updates. They have no numbers that explain shows.
_CLIPPING = (ADAPTIVE_GRAD_CLIP, CLIP, CLIP_BY_BLOCK_RMS, CLIP_BY_GLOBAL_NORM, ZERO_NANS)
_EFFECTS: dict[str, Effect] = {"set_to_zero": ZERO, **{kernel.name: kernel for kernel in _CLIPPING}}


def optax_maker(function: Any) -> str:
    """The name of the public function of optax that made a function; "" if none did.

    A name alone is not enough, because anyone may write a `set_to_zero`: the function's code must
    be part of that of optax's function.
    """
    name = getattr(function, "__qualname__", "").partition(".")[0]
    # `getattr` would warn about deprecated names.
    maker = inspect.unwrap(vars(optax).get(name, lambda: None))
    constants = getattr(getattr(maker, "__code__", None), "co_consts", ())
    own = getattr(function, "__code__", None)
    return name if isinstance(own, CodeType) and own in constants else ""


def optax_effect(update: Any) -> Effect | None:
    """What a transformation of optax does to updates; None if it is not known."""
    return _EFFECTS.get(optax_maker(update))


def unadapted(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The transformation behind optax's adapter for extra arguments."""
    hidden = closure_of(tx.update).get("tx")
    if optax_maker(tx.update) != "with_extra_args_support" or hidden is None:
        return tx
    return unadapted(hidden)


def optax_parts(tx: optax.GradientTransformation) -> tuple[Part, ...] | None:
    """The parts of optax's compositions, in their order; None for other transformations."""
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
