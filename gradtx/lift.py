"""The lift: from a kernel on one array to a gradient transformation on trees.

This is the only place that knows about missing leaves, dtypes, counters, schedules, keys and
error messages. Each kernel is traced once for each distinct type of leaf and then called, so that
the time to trace a step grows with the number of layers, not of operations.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from gradtx import trees
from gradtx.agreement import check_leaf
from gradtx.inputs import (
    as_array,
    as_gradient,
    as_gradients,
    check_state,
    has_fields,
    is_exact,
    known_parameters,
    trained,
    with_fields,
)
from gradtx.kernel import (
    Kernel,
    PerLeaf,
    Slot,
    check_dtype,
    check_hyperparameter,
    measure_arguments,
    squeezed,
)
from gradtx.leaf import as_scalar, leaf_step_of, scalar_step_of, start_scalar, start_slot


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
    lifted = _Lifted(kernel, owner or kernel.name, dtypes or {}, key, arguments)
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


class _Lifted:
    """A kernel with its arguments sorted by how they reach the step.

    Nothing in it changes after it is built, so that a copy of it is itself.
    """

    def __init__(
        self,
        kernel: Kernel,
        owner: str,
        dtypes: Mapping[str, DTypeLike | None],
        key: Any,
        arguments: dict[str, Any],
    ) -> None:
        expected = {*kernel.hyperparameters, *kernel.options}
        if arguments.keys() != expected:
            raise ValueError(
                f"{owner}: takes the arguments {sorted(expected)}, got {sorted(arguments)}"
            )
        self.kernel = kernel
        self.owner = owner
        self.slots = tuple(_stored_in(slot, owner, dtypes.get(slot.name)) for slot in kernel.slots)
        self.key = key
        self.schedules: dict[str, Callable[[jax.Array], Any]] = {}
        self.values: dict[str, Any] = {}
        # Python numbers are compiled in, exactly as a plain closure would; arrays and the values
        # of schedules are arguments of the compiled step, so that one step serves many values.
        self.static = {
            name: arguments[name]
            for name in kernel.options
            if not isinstance(arguments[name], PerLeaf)
        }
        self.per_leaf = {
            name: arguments[name].choose for name in kernel.options if name not in self.static
        }
        self.traced: tuple[str, ...] = ()
        for name, valid in kernel.hyperparameters.items():
            value = check_hyperparameter(owner, name, arguments[name], valid)
            if callable(value):
                self.schedules[name] = value
            else:
                is_array = isinstance(value, np.ndarray | jax.Array)
                self.values[name] = jnp.asarray(value) if is_array else float(value)
            if isinstance(self.values.get(name), float):
                self.static[name] = self.values[name]
            elif name in kernel.arguments | kernel.tree_arguments:
                self.traced += (name,)
        self.counts_for_schedules = bool(self.schedules) and not kernel.counts
        written = {slot.name for slot in kernel.slots if not slot.is_read}
        # A piece that reads nothing of its state accepts any.
        self.fields = kernel.state._fields
        self.reads_state = self.counts_for_schedules or bool({*kernel.state._fields} - written)

    def __deepcopy__(self, memo: Any) -> "_Lifted":
        return self

    def init(self, params: Any) -> Any:
        """The state before the first step."""
        kernel = self.kernel
        params = trained(params)
        leaves, treedef = trees.flatten(params)
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
        return self._pack(jnp.zeros([], jnp.int32), kernel.state(**fields))

    def update(self, updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        """One step: the new updates and the new state."""
        kernel = self.kernel
        params = trained(params)
        count, inner = self._unpack(state, updates, params)
        gradients, treedef = trees.flatten(updates)
        stored = self._stored(inner, updates)
        slots = [[trees.as_list(part) for part in parts] for parts in stored]
        parameters = self._parameters(params, updates, len(gradients))
        if any(map(is_exact, gradients)):
            gradients = self._promoted(gradients, slots, known_parameters(treedef, params))
            updates = treedef.unflatten(gradients)
        own = self.own_options(
            updates if params is None else params, updates, len(gradients), self.per_leaf
        )
        active = [i for i, gradient in enumerate(gradients) if trees.is_parameter(gradient)]
        for i, gradient in enumerate(gradients):
            leaf = [gradient, parameters[i], *(slot[i] for slot in slots)]
            if trees.is_parameter(gradient):
                check_leaf(self.owner, kernel, i, leaf, self.static | own[i], updates, inner)

        t = None if count is None else optax.safe_increment(count)
        scalars, new_scalars = self._scalars(
            count,
            t,
            inner,
            extra,
            [jnp.asarray(gradients[i]) for i in active],
            {
                slot.read_as: [values[i] for i in active]
                for slot, values in zip(kernel.slots, slots, strict=True)
            }
            | {"p": [parameters[i] for i in active]},
        )
        new_key, keys = self._keys(inner, len(active))
        key_of = dict(zip(active, keys, strict=True))
        for group in self._groups(active, gradients, slots, own):
            arguments = [
                (
                    gradients[i],
                    tuple(slot[i] for slot in slots),
                    parameters[i] if "p" in kernel.arguments else None,
                    key_of[i],
                )
                for i in group
            ]
            results = self._step(arguments, own[group[0]], t, scalars)
            for i, (update, new) in zip(group, results, strict=True):
                gradients[i] = update
                for slot, value in zip(slots, new, strict=True):
                    slot[i] = value

        fields = {
            slot.name: treedef.unflatten(map(trees.in_container_of, old, new))
            for slot, old, new in zip(kernel.slots, stored, slots, strict=True)
        }
        fields |= new_scalars
        fields |= {name: optax.safe_increment(getattr(inner, name)) for name in kernel.counts}
        if new_key is not None:
            fields["rng_key"] = new_key
        return treedef.unflatten(gradients), self._renewed(t, state, inner, fields)

    def _stored(self, inner: Any, updates: Any) -> list[list[Any]]:
        """For each slot what the state has for each leaf of the updates."""
        return [
            trees.flatten_like(
                self.owner,
                f"the state's {slot.name}",
                getattr(inner, slot.name),
                "updates",
                updates,
                subtrees=slot.shape is not None,
            )
            for slot in self.slots
        ]

    def _number(self, fill: Any) -> Any:
        """A value at the start; a name stands for that hyperparameter's."""
        if not isinstance(fill, str):
            return fill
        schedule = self.schedules.get(fill)
        if schedule is not None:
            return evaluate(schedule, jnp.int32(0))
        return self.values[fill] if fill in self.values else self.static[fill]

    def _pack(self, count: Any, inner: Any) -> Any:
        if not self.counts_for_schedules:
            return inner
        if not inner:
            return self.kernel.scheduled_state(count)
        return ScheduledState(count, inner)

    def _unpack(self, state: Any, updates: Any, params: Any) -> tuple[Any, Any]:
        """The counter, if there is one, and the state that holds the slots."""
        own = self.kernel.state
        if not self.reads_state:
            if not has_fields(state, own._fields):
                state = self.init(as_gradients(updates, params))
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

    def _parameters(self, params: Any, updates: Any, number: int) -> Sequence[Any]:
        if not self.kernel.needs_parameters:
            return [None] * number
        if params is None:
            raise ValueError(
                f"{self.owner}: needs the parameters; call update(updates, state, params)"
            )
        return trees.flatten_like(self.owner, "params", params, "updates", updates)

    def _promoted(
        self, gradients: list[Any], slots: list[list[Any]], parameters: list[Any]
    ) -> list[Any]:
        """The gradients, those of integers as what they are for the parameter and slots there."""
        return [
            as_gradient(gradient, parameter, [slot[i] for slot in slots])
            for i, (gradient, parameter) in enumerate(zip(gradients, parameters, strict=True))
        ]

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

    def _step(
        self, arguments: list[Any], own: dict[str, Any], t: Any, scalars: dict[str, Any]
    ) -> list[Any]:
        """The new update and slots of each of these leaves, which are of one type."""
        kernel = self.kernel
        static = {
            name: value for name, value in (self.static | own).items() if name in kernel.arguments
        }
        step = leaf_step_of(
            kernel.name,
            kernel.step,
            tuple((slot.read_as if slot.is_read else "", slot.real) for slot in self.slots),
            tuple(static.items()),
            stacked=len(arguments) > 1,
        )
        t = t if "t" in kernel.arguments else None
        if len(arguments) == 1:
            g, slots, p, key = arguments[0]
            return [step(g, slots, p, t, key, scalars)]
        g, slots, p, key = jax.tree.map(lambda *leaves: jnp.stack(leaves), *arguments)
        stacked = step(g, slots, p, t, key, scalars)
        return [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(len(arguments))]

    def _groups(
        self,
        active: list[int],
        gradients: list[Any],
        slots: list[list[Any]],
        own: list[dict[str, Any]],
    ) -> list[list[int]]:
        """The leaves that take their step together: those of one type, if the kernel stacks."""
        if not self.kernel.stacked:
            return [[i] for i in active]
        groups: dict[Any, list[int]] = {}
        for i in active:
            arrays, structure = jax.tree.flatten([gradients[i], [slot[i] for slot in slots]])
            types = tuple((np.shape(x), jnp.result_type(x)) for x in arrays)
            groups.setdefault((structure, types, tuple(own[i].items())), []).append(i)
        return list(groups.values())

    def _scalars(
        self,
        count: Any,
        t: Any,
        inner: Any,
        extra: dict[str, Any],
        gradients: list[jax.Array],
        leaves: dict[str, list[Any]],
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the step takes of the whole tree, and the new scalars of the state."""
        kernel = self.kernel
        values = {
            name: evaluate(self.schedules[name], count)
            if name in self.schedules
            else self.values[name]
            for name in self.traced
        }
        dtype = trees.widest(gradients)
        kept = {scalar.name: getattr(inner, scalar.name) for scalar in kernel.scalars}
        known: dict[str, Any] = {name: as_scalar(value, dtype) for name, value in values.items()}
        known |= {name: as_scalar(jnp.asarray(value), dtype) for name, value in kept.items()}
        for name in kernel.extras:
            if extra.get(name) is None:
                raise ValueError(
                    f"{self.owner}: needs {name}; call update(updates, state, params, {name}=...)"
                )
            value = squeezed(f"{self.owner}: {name}", jnp.asarray(extra[name]))
            known[name] = as_scalar(value, dtype)
        if t is not None:
            known["t"] = t.astype(dtype)
        given = known | leaves | self.static
        for name, measure in kernel.measures.items():
            values[name] = known[name] = measure(
                gradients, **{asked: given[asked] for asked in measure_arguments(measure)}
            )
        new = kept
        if kernel.scalar_step is not None:
            asked = inspect.signature(kernel.scalar_step).parameters
            step = scalar_step_of(
                kernel.name,
                kernel.scalar_step,
                tuple((name, value) for name, value in self.static.items() if name in asked),
            )
            result = step(kept, {name: known[name] for name in asked if name in known})
            new = {name: result[name] for name in kept}
            values |= {name: result[name] for name in kernel.factors}
        values |= new
        return {name: values[name] for name in values if name in kernel.arguments}, new

    def _keys(self, inner: Any, number: int) -> tuple[Any, Sequence[Any]]:
        if "key" not in self.kernel.arguments:
            return None, [None] * number
        new_key, sample_key = jax.random.split(inner.rng_key)
        return new_key, list(jax.random.split(sample_key, number)) if number else []


def _stored_in(slot: Slot, owner: str, dtype: DTypeLike | None) -> Slot:
    """The slot with the storage dtype that the user asked for."""
    if dtype is None:
        return slot
    argument = slot.dtype_argument or f"{slot.name}_dtype"
    return dataclasses.replace(slot, dtype=check_dtype(owner, argument, dtype))


def evaluate(schedule: Callable[[jax.Array], Any], count: jax.Array) -> jax.Array:
    """The value of a schedule at a step, as a scalar array."""
    # optax's schedules mix integers and floats, which strict promotion would refuse.
    with jax.numpy_dtype_promotion("standard"):
        return squeezed("a schedule's value", jnp.asarray(schedule(count)))
