"""The lift: from a kernel on one array to a gradient transformation on trees.

This is the only place that knows about missing leaves, dtypes, counters, schedules, keys and
error messages. Each kernel is traced once for each distinct type of leaf and then called, so that
the time to trace a step grows with the number of layers, not of operations.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from gradtx import trees
from gradtx.arguments import check_dtype, check_hyperparameter, evaluate
from gradtx.inputs import (
    as_array,
    as_gradients,
    check_state,
    has_fields,
    refuse_foreign,
    trained,
    with_fields,
)
from gradtx.joined import Finish, Leaves, Link, run
from gradtx.kernel import Kernel, PerLeaf, Slot
from gradtx.leaf import LeafStep, leaf_step_of, start_scalar, start_slot
from gradtx.placement import numbers_placed
from gradtx.waiting import WaitingStep, step_together
from gradtx.whole_tree import WholeTree

__all__ = ["lift"]


class ScheduledState(NamedTuple):
    """The state of a transformation that counts its steps only because a schedule needs it.

    Attributes:
        count: how many steps were taken, int32.
        inner_state: the state that the transformation has without a schedule.
    """

    count: jax.Array
    inner_state: Any


def lift(
    kernel: Kernel,
    *,
    owner: str = "",
    dtypes: Mapping[str, DTypeLike | None] | None = None,
    key: Any = None,
    **arguments: Any,
) -> optax.GradientTransformationExtraArgs:
    """Turn a kernel into an optax gradient transformation.

    Args:
        kernel: the equation on one leaf.
        owner: the function that the user called, which opens the messages; "": the kernel's name.
        dtypes: the storage dtypes of slots, by the slot's name; None leaves the slot's own.
        key: the PRNG key that `init` puts into the state, for a kernel that asks for one.
        **arguments: every hyperparameter (a number, a scalar array or a schedule) and every
            option of the kernel.

    Returns:
        A `GradientTransformationExtraArgs` whose state is `kernel.state`. If a hyperparameter is
        a schedule and that state has no count, it becomes `kernel.scheduled_state` where it was
        empty, else a `ScheduledState` around it.

    Raises:
        ValueError: if a hyperparameter lies outside its range, or one is missing or unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.kernel import NON_NEGATIVE, Kernel
        >>> from gradtx.lift import lift
        >>> def shrink(g, *, threshold):
        ...     return jnp.sign(g) * jnp.maximum(jnp.abs(g) - threshold, 0)
        >>> SHRINK = Kernel("soft_threshold", shrink, hyperparameters={"threshold": NON_NEGATIVE})
        >>> tx = lift(SHRINK, threshold=1.0)
        >>> updates, state = tx.update({"w": jnp.array([-3.0, 5.0])}, tx.init(None))
        >>> print(updates["w"])
        [-2.  4.]
    """
    lifted = _Lifted(kernel, owner or kernel.name, dtypes, key, arguments)
    return optax.GradientTransformationExtraArgs(lifted.init, lifted.update)


def kernel_of(transformation: optax.GradientTransformation) -> Kernel | None:
    """The kernel that a transformation was lifted from; None for any other transformation."""
    lifted = getattr(transformation.update, "__self__", None)
    return lifted.kernel if isinstance(lifted, _Lifted) else None


def hyperparameters_of(transformation: optax.GradientTransformation) -> dict[str, Any]:
    """The hyperparameters that a lifted transformation was built with, numbers and schedules."""
    lifted = getattr(transformation.update, "__self__", None)
    return lifted.values | lifted.schedules if isinstance(lifted, _Lifted) else {}


def options_of(transformation: optax.GradientTransformation, tree: Any) -> list[dict[str, Any]]:
    """For each leaf of `trees.flatten(tree)` the options that its step is given."""
    lifted = getattr(transformation.update, "__self__", None)
    leaves, _ = trees.flatten(tree)
    if not isinstance(lifted, _Lifted):
        return [{} for _ in leaves]
    chosen = {name: value for name, value in lifted.static.items() if name in lifted.kernel.options}
    return [chosen | own for own in lifted.own_options(tree, tree, len(leaves), lifted.per_leaf)]


class _Lifted(Link):
    """A kernel with its arguments sorted by how they reach the step.

    Nothing in it changes after it is built, so that a copy of it is itself.
    """

    def __init__(
        self,
        kernel: Kernel,
        owner: str,
        dtypes: Mapping[str, DTypeLike | None] | None,
        key: Any,
        arguments: dict[str, Any],
    ) -> None:
        if arguments.keys() != kernel.names:
            raise ValueError(
                f"{owner}: takes the arguments {sorted(kernel.names)}, got {sorted(arguments)}"
            )
        self.kernel = kernel
        self.owner = owner
        self.slots = kernel.slots
        if dtypes and any(dtype is not None for dtype in dtypes.values()):
            self.slots = tuple(
                _stored_in(slot, owner, dtypes.get(slot.name)) for slot in kernel.slots
            )
        self.key = key
        self.arguments = arguments
        self.values: dict[str, Any] = {}
        self.schedules: dict[str, Callable[[jax.Array], Any]] = {}
        for name, valid in kernel.hyperparameters.items():
            value = arguments[name]
            # Most are Python floats, and building an optimizer should cost no more than a look.
            if type(value) is float and valid.contains(value):
                self.values[name] = value
                continue
            value = check_hyperparameter(owner, name, value, valid)
            if callable(value):
                self.schedules[name] = value
            else:
                is_array = isinstance(value, np.ndarray | jax.Array)
                self.values[name] = jnp.asarray(value) if is_array else float(value)
        self.counts_for_schedules = bool(self.schedules) and not kernel.counts
        # A piece that reads nothing of its state accepts any.
        self.reads_state = self.counts_for_schedules or kernel.reads_state

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the kernel's state."""
        return self.kernel.state._fields

    @functools.cached_property
    def static(self) -> dict[str, Any]:
        """What is compiled into the step: the options of all leaves, and Python numbers.

        Numbers are compiled in, exactly as a plain closure would; arrays and the values of
        schedules are arguments of the compiled step, so that one step serves many values.
        """
        options = {name: self.arguments[name] for name in self.kernel.options}
        options = {name: v for name, v in options.items() if not isinstance(v, PerLeaf)}
        return options | {name: v for name, v in self.values.items() if isinstance(v, float)}

    @functools.cached_property
    def per_leaf(self) -> dict[str, Callable[[Any], Any]]:
        """The options that differ from leaf to leaf."""
        options = {name: self.arguments[name] for name in self.kernel.options}
        return {name: v.choose for name, v in options.items() if isinstance(v, PerLeaf)}

    @functools.cached_property
    def traced(self) -> tuple[str, ...]:
        """The hyperparameters that are arguments of the compiled step."""
        kernel = self.kernel
        asked = (kernel.arguments | kernel.tree_arguments) - self.static.keys()
        return tuple(name for name in kernel.hyperparameters if name in asked)

    def __deepcopy__(self, memo: Any) -> _Lifted:
        return self

    def init(self, params: Any) -> Any:
        """The state before the first step."""
        kernel = self.kernel
        params = trained(params)
        leaves, treedef = trees.flatten(params)
        refuse_foreign(self.owner, params, leaves)
        shaping = {name for slot in self.slots for name in slot.shape_options}
        own = self.own_options(params, params, len(leaves), shaping)
        fields: dict[str, Any] = {
            slot.name: treedef.unflatten(
                start_slot(self.owner, slot, self._number, leaf, self.static | options)
                for leaf, options in zip(leaves, own, strict=True)
            )
            for slot in self.slots
        }
        if kernel.scalars:
            parameters = [as_array(p) for p in jax.tree.leaves(params) if trees.is_parameter(p)]
            fields |= {
                scalar.name: start_scalar(self.owner, scalar, self._number, parameters)
                for scalar in kernel.scalars
            }
        fields |= {name: jnp.zeros([], jnp.int32) for name in kernel.counts}
        if "rng_key" in kernel.state._fields:
            # A copy, because the caller may donate the state.
            fields["rng_key"] = jnp.copy(self.key)
        state = self._pack(jnp.zeros([], jnp.int32), kernel.state(**fields))
        return numbers_placed(state, params)

    def update(self, updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        """One step: the new updates and the new state."""
        return run(self, updates, state, params, extra)

    def join(self, leaves: Leaves, state: Any) -> Finish:
        """Align what belongs to each leaf, measure the tree, and put the steps to the leaves."""
        count, inner = self._unpack(state, leaves)
        slots = self._aligned_slots(inner, leaves)
        leaves.promote(slots)
        if self.kernel.needs_parameters:
            leaves.align_parameters(self.owner)
        active = leaves.active()
        own = self._options_of_leaves(leaves) if self.per_leaf else [{}] * len(leaves.leaves)
        self._check(leaves, active, slots, own)

        t = None if count is None else optax.safe_increment(count)
        values = self._hyperparameters(count)
        scalars, new_scalars = self.whole_tree.measured(leaves, active, slots, values, t, inner)
        new_key, keys = self._keys(inner, leaves)

        steps = {
            i: WaitingStep(
                self._step_of(own[i]),
                tuple([slot[i] for slot in slots]),
                key,
                t if "t" in self.kernel.arguments else None,
                scalars,
            )
            for i, key in zip(active, keys, strict=True)
        }
        together = []
        for i, step in steps.items():
            leaf = leaves.leaves[i]
            if self.kernel.stacked and not leaf.is_stack:
                together.append((leaf, step))
            else:
                leaf.waiting.append(step)
        step_together(together)

        new = {} if new_key is None else {"rng_key": new_key}
        return functools.partial(
            self._finished, state, inner, leaves.treedef, slots, steps, t, new_scalars | new
        )

    def _finished(
        self,
        state: Any,
        inner: Any,
        treedef: Any,
        slots: list[list[Any]],
        steps: Mapping[int, WaitingStep],
        t: Any,
        fields: dict[str, Any],
    ) -> Any:
        """The new state, after the steps were taken."""
        for i, step in steps.items():
            for slot, value in zip(slots, step.new, strict=True):
                slot[i] = value
        fields |= {
            slot.name: treedef.unflatten(self._as_before(slot, inner, treedef, new))
            for slot, new in zip(self.slots, slots, strict=True)
        }
        first, *others = self.kernel.counts or (None,)
        fields |= {first: t} if first else {}
        fields |= {name: optax.safe_increment(getattr(inner, name)) for name in others}
        return self._renewed(t, state, inner, fields)

    def _aligned_slots(self, inner: Any, leaves: Leaves) -> list[list[Any]]:
        """For each slot what the state has for each leaf."""
        slots = []
        for slot in self.slots:
            kept, several = getattr(inner, slot.name), slot.shape is not None
            parts = leaves.aligned(self.owner, f"the state's {slot.name}", kept, subtrees=several)
            slots.append([trees.as_list(part) for part in parts] if several else parts)
        return slots

    def _as_before(self, slot: Slot, inner: Any, treedef: Any, new: list[Any]) -> Iterable[Any]:
        """The new values of a slot in the containers that the old ones came in."""
        if slot.shape is None:
            return new
        old = treedef.flatten_up_to(getattr(inner, slot.name))
        return map(trees.in_container_of, old, new)

    def _check(
        self, leaves: Leaves, active: list[int], slots: list[list[Any]], own: list[dict[str, Any]]
    ) -> None:
        """Refuse leaves whose parameter or slots are missing, or have another shape or kind."""
        if self.kernel.needs_parameters:
            for i in active:
                leaves.check_parameter(self.owner, i)
        for i in active if self.slots else ():
            leaf = leaves.leaves[i]
            shape = leaf.shape
            for slot, values in zip(self.slots, slots, strict=True):
                expected = shape
                if slot.shape is not None:
                    expected = slot.shape_for(shape, self.static | own[i])
                expected = leaf.stacked(expected)
                if getattr(values[i], "shape", None) != expected:
                    leaves.check_slot(self.owner, i, slot.name, values[i], expected)
                if np.iscomplexobj(leaf.value) and not slot.real:
                    leaves.check_complex(self.owner, i, slot.name, values[i])
        if leaves.has_stacks:
            for slot, values in zip(self.slots, slots, strict=True):
                leaves.check_rows(slot.name, values)

    def _number(self, fill: Any) -> Any:
        """A value at the start; a name stands for that hyperparameter's."""
        if not isinstance(fill, str):
            return fill
        if fill in self.schedules:
            return self._evaluated(fill, jnp.int32(0))
        return self.values[fill] if fill in self.values else self.static[fill]

    def _pack(self, count: Any, inner: Any) -> Any:
        if not self.counts_for_schedules:
            return inner
        if not inner:
            return self.kernel.scheduled_state(count)
        return ScheduledState(count, inner)

    def _unpack(self, state: Any, leaves: Leaves) -> tuple[Any, Any]:
        """The counter, if there is one, and the state that holds the slots."""
        own = self.kernel.state
        if not self.reads_state:
            if not has_fields(state, own._fields):
                state = self.init(as_gradients(leaves.shapes(), leaves.params))
            return None, state
        if self.counts_for_schedules and own._fields:
            check_state(self.owner, state, ScheduledState._fields)
            check_state(self.owner, state.inner_state, own._fields)
            return state.count, state.inner_state
        counters = ("count",) if self.counts_for_schedules else self.kernel.counts
        check_state(self.owner, state, own._fields or counters)
        return (getattr(state, counters[0]) if counters else None), state

    def _renewed(self, t: Any, state: Any, inner: Any, fields: dict[str, Any]) -> Any:
        """The new state, in the guise of the old one."""
        own = self.kernel.state
        if not self.counts_for_schedules:
            # What is not read comes back as it was.
            return with_fields(own, inner, fields) if own._fields else state
        if not own._fields:
            return with_fields(self.kernel.scheduled_state, state, {"count": t})
        new = {"count": t, "inner_state": with_fields(own, inner, fields)}
        return with_fields(ScheduledState, state, new)

    def _options_of_leaves(self, leaves: Leaves) -> list[dict[str, Any]]:
        """For each leaf the options that differ from leaf to leaf."""
        updates = leaves.shapes() if leaves.params is not None else leaves.updates()
        params = trained(leaves.params)
        return self.own_options(
            updates if params is None else params, updates, len(leaves.leaves), self.per_leaf
        )

    def own_options(
        self, tree: Any, updates: Any, number: int, names: Iterable[str]
    ) -> list[dict[str, Any]]:
        """For each leaf those of these options that differ from leaf to leaf."""
        own: list[dict[str, Any]] = [{} for _ in range(number)]
        for name in self.per_leaf.keys() & names:
            choose = self.per_leaf[name]
            values = trees.flatten_like(
                self.owner, name, choose(tree), "updates", updates, subtrees=True
            )
            for options, value in zip(own, values, strict=True):
                options[name] = value
        return own

    def _step_of(self, own: dict[str, Any]) -> LeafStep:
        """The step of a leaf with these options of its own."""
        if not own:
            return self.step
        return self._with_options(own)

    @functools.cached_property
    def step(self) -> LeafStep:
        """The step of all leaves, where no option differs."""
        return self._with_options({})

    def _with_options(self, own: dict[str, Any]) -> LeafStep:
        asked = self.kernel.arguments
        return leaf_step_of(
            self.kernel.name,
            self.kernel.step,
            tuple((slot.read_as if slot.is_read else "", slot.real) for slot in self.slots),
            tuple((name, value) for name, value in (self.static | own).items() if name in asked),
            "p" in asked,
            self.kernel.elementwise and "key" not in asked,
            self.kernel.bounded,
        )

    def _hyperparameters(self, count: Any) -> dict[str, jax.Array]:
        """The values of those that are arguments of the compiled step."""
        return {
            name: self._evaluated(name, count) if name in self.schedules else self.values[name]
            for name in self.traced
        }

    def _evaluated(self, name: str, count: Any) -> jax.Array:
        what = f"{self.owner}: {name}: a schedule's value"
        return evaluate(self.schedules[name], count, what)

    @functools.cached_property
    def whole_tree(self) -> WholeTree:
        """The equations on the whole tree."""
        return WholeTree(self.kernel, self.owner, self.slots, self.static)

    def _keys(self, inner: Any, leaves: Leaves) -> tuple[Any, Sequence[Any]]:
        if "key" not in self.kernel.arguments:
            return None, [None] * len(leaves.active())
        new_key, sample_key = jax.random.split(inner.rng_key)
        return new_key, leaves.keys(sample_key)


def _stored_in(slot: Slot, owner: str, dtype: DTypeLike | None) -> Slot:
    """The slot with the storage dtype that the user asked for."""
    if dtype is None:
        return slot
    argument = slot.dtype_argument or f"{slot.name}_dtype"
    return dataclasses.replace(slot, dtype=check_dtype(owner, argument, dtype))
