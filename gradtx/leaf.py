"""Where a leaf's slots start, and one compiled step of it; the same for the tree's scalars.

Everything here is about dtypes: what is stored narrowly is calculated in float32, and what comes
back has the dtype that it was stored in.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import norms, pieces, trees
from gradtx.bounds import bounded
from gradtx.explicit import laid_out_alike, laid_out_as
from gradtx.inputs import refuse_shapes_alone
from gradtx.kernel import Scalar, Slot
from gradtx.lengths import Length
from gradtx.placement import full_beside, lengths
from gradtx.remembered import passing_among, remembered
from gradtx.stored import to_store


def start_slot(
    owner: str,
    slot: Slot,
    number: Callable[[Any], Any],
    parameter: Any,
    options: Mapping[str, Any],
) -> Any:
    """A slot of one parameter before the first step; None of what is no parameter.

    Args:
        owner: name of the transformation, which opens the message.
        slot: the declaration.
        number: function from the declared fill to its value, for a hyperparameter's name.
        parameter: the leaf.
        options: what the slot's shape may ask for.
    """
    if not trees.is_parameter(parameter):
        return None
    own_dtype = jnp.result_type(parameter)
    dtype = jnp.dtype(slot.dtype or trees.compute_dtype(own_dtype))
    if slot.dtype is None:
        dtype = trees.real_dtype(dtype) if slot.real else dtype
    elif not slot.real and is_complex(own_dtype) and not is_complex(dtype):
        raise ValueError(f"{owner}: {slot.name} of a complex parameter does not fit into {dtype}")
    if slot.fill == "p":
        refuse_shapes_alone(owner, slot.name, parameter)
        # A copy, because the caller may donate both.
        return jnp.array(parameter, dtype)
    shapes = slot.shape_for(lengths(parameter), options)
    fill = slot.fill if callable(slot.fill) else number(slot.fill)

    def make(shape: tuple[int, ...]) -> jax.Array:
        return full_beside(parameter, shape, fill, dtype)

    return [make(shape) for shape in shapes] if isinstance(shapes, list) else make(shapes)


def start_scalar(
    owner: str, scalar: Scalar, number: Callable[[Any], Any], parameters: Sequence[jax.Array]
) -> jax.Array:
    """A scalar of the whole tree before the first step."""
    try:
        fill = scalar.fill(parameters) if callable(scalar.fill) else number(scalar.fill)
    except (TypeError, AttributeError):
        for parameter in parameters:
            refuse_shapes_alone(owner, scalar.name, parameter)
        raise
    return jnp.array(fill, scalar.dtype or norms.widest(parameters))


@dataclass(frozen=True, eq=False)
class LeafStep:
    """A kernel's step on one leaf: what is stored narrowly is calculated in float32.

    Attributes:
        name: the kernel's name.
        function: the equation.
        slots: for each slot the argument, "" if the step only writes it, and whether it is real.
        static: the options and the hyperparameters that are compiled in.
        reads_parameter: whether the equation mentions the parameter.
        elementwise: whether each element of the results depends on that element alone.
        bounded: what the equation makes of a gradient, see `gradtx.kernel.Kernel`.
        gives_parameter: whether it returns the new parameter instead of an update.
    """

    name: str
    function: Callable[..., Any]
    slots: tuple[tuple[str, bool], ...] = ()
    static: tuple[tuple[str, Any], ...] = ()
    reads_parameter: bool = False
    elementwise: bool = False
    bounded: str = ""
    gives_parameter: bool = False

    @functools.cached_property
    def passing(self) -> Any:
        """A function of the step that may end before the process does, or None."""
        return passing_among((self.function, *(value for _, value in self.static)))

    def __call__(
        self, g: Any, p: Any, slots: tuple[Any, ...], key: Any, t: Any, scalars: Mapping[str, Any]
    ) -> tuple[jax.Array, tuple[Any, ...]]:
        """The update, in the dtype that is calculated in, and the new slots as they are stored."""
        g = jnp.asarray(g)
        dtype = trees.compute_dtype(g.dtype)
        real = trees.real_dtype(dtype)
        given = dict(self.static)
        given |= {name: as_scalar(value, real) for name, value in scalars.items()}
        for (name, is_real), slot in zip(self.slots, slots, strict=True):
            if name:
                own = real if is_real else dtype
                widen = functools.partial(to_compute, dtype=own)
                given[name] = jax.tree.map(widen, slot, is_leaf=trees.is_stored)
        if self.reads_parameter:
            given["p"] = jnp.asarray(p).astype(dtype)
        given |= _in_one_layout({**given, "g": self._limited(g.astype(dtype), slots)})
        if t is not None:
            given["t"] = t.astype(real)
        if key is not None:
            given["key"] = key
        # A complex gradient meets real slots and numbers, which strict promotion would refuse.
        mixes = is_complex(dtype)
        with jax.numpy_dtype_promotion("standard") if mixes else contextlib.nullcontext():
            result = self.function(**given)
        update, *new = result if isinstance(result, tuple) else (result,)
        self._check_shapes(g, slots, update, new)
        new = tuple(
            jax.tree.map(_stored_as, value, slot) for value, slot in zip(new, slots, strict=True)
        )
        return update.astype(dtype), new

    def _limited(self, g: jax.Array, slots: tuple[Any, ...]) -> jax.Array:
        """The gradient, so that what the equation makes of it fits into the dtypes of the slots."""
        if not self.bounded:
            return g
        kept = {leaf.dtype for leaf in jax.tree.leaves(slots) if trees.is_parameter(leaf)}
        return bounded(g, self.bounded, kept)

    def _check_shapes(self, g: Any, slots: Any, update: Any, new: list[Any]) -> None:
        """Refuse what a kernel returned if it does not fit what it was given."""
        names = ["the update"] + [
            f"the slot {name or number!r}" for number, (name, _) in enumerate(self.slots)
        ]
        if len(new) != len(slots):
            s = "" if not new else "s"
            raise ValueError(
                f"{self.name}: the kernel returned {1 + len(new)} array{s}, expected {len(names)}: "
                f"{', '.join(names)}"
            )
        for what, returned, like in zip(names, (update, *new), (g, *slots), strict=True):
            found = jax.tree.map(np.shape, returned)
            expected = jax.tree.map(np.shape, like, is_leaf=trees.is_stored)
            if found != expected:
                raise ValueError(
                    f"{self.name}: the kernel returned {what} with shape {found} for a gradient of "
                    f"shape {g.shape}, expected shape {expected}"
                )


def _passing_of(
    name: str, function: Callable[..., Any], slots: Any, static: Any, *rest: Any
) -> Any:
    return passing_among((function, *(value for _, value in static)))


@remembered(_passing_of, maxsize=1024)
def leaf_step_of(*fields: Any) -> LeafStep:
    """The step with these fields. Equal ones are one object, so that their programs are found."""
    return LeafStep(*fields)


def passing_of(steps: Iterable[LeafStep], *_: Any) -> Any:
    """A function of these steps that may end before the process does, or None."""
    for step in steps:  # plainly, because it happens for each leaf of an eager step
        if step.passing is not None:
            return step.passing
    return None


@remembered(passing_of)
def composed_step(
    steps: tuple[LeafStep, ...], stacked: bool, dtype: Any
) -> Callable[..., tuple[jax.Array, list[Any]]]:
    """The compiled steps of one leaf, one after another, without rounding in between.

    Args:
        steps: the steps.
        stacked: whether the arrays are those of several leaves along their first axis.
        dtype: the dtype of the last update.

    Returns:
        A function of the gradient, the parameter and for each step the further arguments of
        `LeafStep`, that returns the last update and the new slots of each step. All transformations
        with the same numbers share it.
    """
    gives_parameter = steps[-1].gives_parameter

    def whole(g, p, arguments):
        new = []
        for step, given in zip(steps, arguments, strict=True):
            if step.gives_parameter:
                g = to_store(jnp.asarray(g), dtype)
            g, slots = step(g, p, *given)
            new.append(slots)
        return (g if gives_parameter else to_store(g, dtype)), new

    def composed(g, p, arguments):
        stored = any(trees.is_stored(slot) for own, *_ in arguments for slot in own)
        # In pieces, an update takes the place of its gradient.
        stored = stored and (gives_parameter or jnp.result_type(g) == dtype)
        if stored and all(step.elementwise for step in steps) and pieces.are_worth_it():
            found = pieces.in_pieces(whole, g, p, arguments, gives_parameter=gives_parameter)
            if found is not None:
                return found
        return whole(g, p, arguments)

    def of_stack(g, p, arguments):
        axes = (0, 0, [(0, 0, None, None)] * len(arguments))
        return jax.vmap(composed, axes)(g, p, arguments)

    function = of_stack if stacked else composed
    function.__name__ = "_".join(step.name for step in steps)
    return jax.jit(function)


@remembered(passing_of)
def steps_of_many(steps: tuple[LeafStep, ...], dtype: Any) -> Callable[..., list[Any]]:
    """`composed_step` of a list of leaves in one compiled function.

    Returns:
        A function of a list with each leaf's gradient, parameter and, for each step, its slots and
        key; and of what the leaves share, which is `t` and the scalars of each step.
    """
    step = composed_step(steps, False, dtype)

    def of_many(leaves, shared):
        return [
            step(g, p, [(*own, *rest) for own, rest in zip(given, shared, strict=True)])
            for g, p, given in leaves
        ]

    of_many.__name__ = f"{step.__name__}_of_many"
    return jax.jit(of_many)


@remembered(lambda step: step.passing)
def stacked_step(step: LeafStep) -> Callable[..., tuple[jax.Array, tuple[Any, ...]]]:
    """The compiled step of several leaves of one type, stacked along the first axis."""

    def stacked(*arguments):
        return jax.vmap(step, (0, 0, 0, 0, None, None))(*arguments)

    stacked.__name__ = step.name
    return jax.jit(stacked)


@remembered(lambda name, step, static: passing_among((step, *(value for _, value in static))))
def scalar_step_of(
    name: str,
    step: Callable[..., Any],
    static: tuple[tuple[str, Any], ...],
) -> Callable[..., dict[str, jax.Array]]:
    """The compiled step of the whole tree's scalars."""

    def scalar_step(scalars, given):
        new = dict(step(**dict(static), **given))
        for own, old in scalars.items():
            new[own] = _stored_as(jnp.asarray(new.get(own, old)), old)
        return new

    scalar_step.__name__ = name
    return jax.jit(scalar_step)


def _in_one_layout(given: dict[str, Any]) -> dict[str, Any]:
    """The gradient and what else is given in its shape, in one layout where that is a type.

    With replicated gradients and a sharded state, each device steps its part of the state.
    """
    shape = given["g"].shape
    names = [name for name, value in given.items() if getattr(value, "shape", None) == shape]
    return dict(zip(names, laid_out_alike([given[name] for name in names]), strict=True))


def _stored_as(value: jax.Array, slot: Any) -> Any:
    if not trees.is_stored(slot):
        return laid_out_as(to_store(value, slot.dtype), slot)
    like = next(array for array in jax.tree.leaves(slot) if array.shape == value.shape)
    return slot.encoded(laid_out_as(value, like))


def to_compute(slot: Any, dtype: np.dtype) -> jax.Array:
    """A stored number in the dtype to calculate in; integers and booleans as they are."""
    if trees.is_stored(slot):
        slot = slot.decoded()
    if not jnp.issubdtype(slot.dtype, jnp.inexact):
        return slot
    is_real = jnp.issubdtype(dtype, jnp.floating)
    return (jnp.real(slot) if is_real else slot).astype(dtype)


def as_scalar(value: Any, dtype: np.dtype) -> Any:
    """A number or a length of the whole tree in the real dtype to calculate in.

    A boolean stays as it is.
    """
    if isinstance(value, Length):
        return value.astype(dtype)
    return value if value.dtype == np.bool_ else value.astype(dtype)


def is_complex(dtype: Any) -> bool:
    """Whether a dtype is complex."""
    return jnp.issubdtype(dtype, jnp.complexfloating)
