"""The lift: from a kernel on one array to a gradient transformation on trees.

This is the only place that knows about missing leaves, dtypes, counters, schedules, keys and
error messages. Each kernel is traced once for each distinct type of leaf and then called, so that
the time to trace a step grows with the number of layers, not of operations.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradtx import trees
from gradtx.kernel import Kernel, Slot, check_hyperparameter


class ScheduledState(NamedTuple):
    """The state of a transformation that counts its steps only because a schedule needs it.

    Attributes:
        count: how many steps were taken, int32.
        inner_state: the state that the transformation has without a schedule.
    """

    count: jax.Array
    inner_state: Any


def lift(
    kernel: Kernel, *, key: Any = None, **arguments: Any
) -> optax.GradientTransformationExtraArgs:
    """Turn a kernel into an optax gradient transformation.

    Args:
        kernel: the equation on one leaf.
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
        >>> kernel = Kernel("soft_threshold", shrink, hyperparameters={"threshold": NON_NEGATIVE})
        >>> tx = lift(kernel, threshold=1.0)
        >>> updates, state = tx.update({"w": jnp.array([-3.0, 5.0])}, tx.init(None))
        >>> print(updates["w"])
        [-2.  4.]
    """
    lifted = _Lifted(kernel, key, arguments)
    return optax.GradientTransformationExtraArgs(lifted.init, lifted.update)


def kernel_of(transformation: optax.GradientTransformation) -> Kernel | None:
    """The kernel that a transformation was lifted from; None for any other transformation."""
    lifted = getattr(transformation.update, "__self__", None)
    return lifted.kernel if isinstance(lifted, _Lifted) else None


class _Lifted:
    """A kernel with its arguments sorted by how they reach the step."""

    def __init__(self, kernel: Kernel, key: Any, arguments: dict[str, Any]) -> None:
        expected = {*kernel.hyperparameters, *kernel.options}
        if arguments.keys() != expected:
            raise ValueError(
                f"{kernel.name}: takes the arguments {sorted(expected)}, got {sorted(arguments)}"
            )
        self.kernel = kernel
        self.key = key
        self.schedules: dict[str, Callable[[jax.Array], Any]] = {}
        self.values: dict[str, Any] = {}
        # Python numbers are compiled in, exactly as a plain closure would; arrays and the values
        # of schedules are arguments of the compiled step, so that one step serves many values.
        static = {name: arguments[name] for name in kernel.options}
        self.traced: tuple[str, ...] = ()
        for name, valid in kernel.hyperparameters.items():
            value = arguments[name]
            check_hyperparameter(kernel.name, name, value, valid)
            if callable(value):
                self.schedules[name] = value
            else:
                is_array = isinstance(value, np.ndarray | jax.Array)
                self.values[name] = jnp.asarray(value) if is_array else float(value)
            if name in kernel.arguments:
                if isinstance(self.values.get(name), float):
                    static[name] = self.values[name]
                else:
                    self.traced += (name,)
        self.leaf_step = _leaf_step(
            kernel.name,
            kernel.step,
            tuple((slot.name, slot.real) for slot in kernel.slots),
            tuple(static.items()),
        )
        fields = getattr(kernel.state, "_fields", ())
        self.counts_for_schedules = bool(self.schedules) and "count" not in fields

    def init(self, params: Any) -> Any:
        """The state before the first step."""
        fields: dict[str, Any] = {
            slot.name: jax.tree.map(functools.partial(self._start, slot), params)
            for slot in self.kernel.slots
        }
        if "count" in self.kernel.state._fields:
            fields["count"] = jnp.zeros([], jnp.int32)
        if "rng_key" in self.kernel.state._fields:
            # A copy, because the caller may donate the state.
            fields["rng_key"] = jnp.copy(self.key)
        return self._pack(jnp.zeros([], jnp.int32), self.kernel.state(**fields))

    def update(self, updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        """One step: the new updates and the new state."""
        del extra
        kernel = self.kernel
        count, inner = self._unpack(state)
        gradients, treedef = trees.flatten(updates)
        slots = [
            trees.flatten_like(
                kernel.name,
                f"the state's {slot.name}",
                getattr(inner, slot.name),
                "updates",
                updates,
            )
            for slot in kernel.slots
        ]
        parameters = self._parameters(params, updates, len(gradients))
        active = [i for i, gradient in enumerate(gradients) if trees.is_parameter(gradient)]
        for i in active:
            self._check_shapes(i, updates, gradients[i], [slot[i] for slot in slots], parameters[i])

        t = None if count is None else optax.safe_increment(count)
        scalars = self._scalars(count, [gradients[i] for i in active])
        new_key, keys = self._keys(inner, len(active))
        for key, i in zip(keys, active, strict=True):
            gradients[i], new = self.leaf_step(
                gradients[i],
                tuple(slot[i] for slot in slots),
                parameters[i] if "p" in kernel.arguments else None,
                t if "t" in kernel.arguments else None,
                key,
                scalars,
            )
            for slot, value in zip(slots, new, strict=True):
                slot[i] = value

        fields = {
            slot.name: treedef.unflatten(leaves)
            for slot, leaves in zip(kernel.slots, slots, strict=True)
        }
        if "count" in kernel.state._fields:
            fields["count"] = t
        if new_key is not None:
            fields["rng_key"] = new_key
        return treedef.unflatten(gradients), self._pack(t, kernel.state(**fields))

    def _start(self, slot: Slot, parameter: Any) -> jax.Array | None:
        if not trees.is_parameter(parameter):
            return None
        own_dtype = jnp.result_type(parameter)
        dtype = slot.dtype
        if dtype is None:
            dtype = trees.compute_dtype(own_dtype)
            dtype = trees.real_dtype(dtype) if slot.real else dtype
        elif not slot.real and _is_complex(own_dtype) and not _is_complex(dtype):
            raise ValueError(
                f"{self.kernel.name}: {slot.name} of a complex parameter does not fit into {dtype}"
            )
        fill = slot.fill
        if isinstance(fill, str):
            at_start = self.schedules.get(fill)
            fill = self.values[fill] if at_start is None else evaluate(at_start, jnp.int32(0))
        shape = np.shape(parameter)
        if slot.shape_for(shape) == shape:
            # Like the parameter in sharding too.
            return jnp.full_like(parameter, fill, dtype=dtype)
        return jnp.full(slot.shape_for(shape), fill, dtype)

    def _pack(self, count: Any, inner: Any) -> Any:
        if not self.counts_for_schedules:
            return inner
        if not inner:
            return self.kernel.scheduled_state(count)
        return ScheduledState(count, inner)

    def _unpack(self, state: Any) -> tuple[Any, Any]:
        """The counter, if there is one, and the state that holds the slots."""
        expected = self.kernel.state
        if self.counts_for_schedules:
            expected = ScheduledState if expected._fields else self.kernel.scheduled_state
        if getattr(state, "_fields", None) != expected._fields:
            raise ValueError(
                f"{self.kernel.name}: expected a state with the fields {expected._fields}, got "
                f"{type(state).__name__} {getattr(state, '_fields', '')}; was it made by the init "
                "of this transformation?"
            )
        if expected is ScheduledState:
            return state.count, state.inner_state
        return (state.count if "count" in expected._fields else None), state

    def _parameters(self, params: Any, updates: Any, number: int) -> Sequence[Any]:
        if params is not None:
            return trees.flatten_like(self.kernel.name, "params", params, "updates", updates)
        if "p" in self.kernel.arguments:
            raise ValueError(
                f"{self.kernel.name}: needs the parameters; call update(updates, state, params)"
            )
        return [None] * number

    def _check_shapes(
        self, index: int, updates: Any, gradient: Any, slots: list[Any], parameter: Any
    ) -> None:
        shape = np.shape(gradient)
        for slot, value in zip(self.kernel.slots, slots, strict=True):
            if value is None:
                raise ValueError(
                    f"{self.kernel.name}: the state has no {slot.name} at "
                    f"'{trees.paths(updates)[index]}', where updates has shape {shape}; was init "
                    "called with these parameters?"
                )
            if np.shape(value) != slot.shape_for(shape):
                trees.refuse_shape(
                    self.kernel.name, "updates", updates, index, f"the state's {slot.name}", value
                )
        if "p" in self.kernel.arguments and not trees.is_parameter(parameter):
            raise ValueError(
                f"{self.kernel.name}: needs the parameter at '{trees.paths(updates)[index]}', "
                f"where updates has shape {shape}; params has {parameter!r}"
            )
        if parameter is not None and np.shape(parameter) != shape:
            trees.refuse_shape(self.kernel.name, "updates", updates, index, "params", parameter)

    def _scalars(self, count: Any, gradients: list[Any]) -> dict[str, Any]:
        scalars = {
            name: evaluate(self.schedules[name], count)
            if name in self.schedules
            else self.values[name]
            for name in self.traced
        }
        for name, measure in self.kernel.measures.items():
            scalars[name] = measure([jnp.asarray(gradient) for gradient in gradients])
        return scalars

    def _keys(self, inner: Any, number: int) -> tuple[Any, Sequence[Any]]:
        if "key" not in self.kernel.arguments:
            return None, [None] * number
        new_key, sample_key = jax.random.split(inner.rng_key)
        return new_key, list(jax.random.split(sample_key, number)) if number else []


def evaluate(schedule: Callable[[jax.Array], Any], count: jax.Array) -> jax.Array:
    """The value of a schedule at a step, as a scalar array."""
    # optax's schedules mix integers and floats, which strict promotion would refuse.
    with jax.numpy_dtype_promotion("standard"):
        value = jnp.asarray(schedule(count))
    if value.ndim:
        raise ValueError(f"a schedule must return a scalar, got shape {value.shape}")
    return value


@functools.lru_cache(maxsize=1024)
def _leaf_step(
    name: str,
    step: Callable[..., Any],
    slots_read: tuple[tuple[str, bool], ...],
    static: tuple[tuple[str, Any], ...],
) -> Callable[..., tuple[jax.Array, tuple[jax.Array, ...]]]:
    """The compiled step on one leaf, shared by all transformations with the same numbers."""

    def leaf_step(g, slots, p, t, key, scalars):
        g = jnp.asarray(g)
        dtype = trees.compute_dtype(g.dtype)
        real = trees.real_dtype(dtype)
        given = dict(static)
        given |= {name: value.astype(real) for name, value in scalars.items()}
        given |= {
            name: _to_compute(slot, real if is_real else dtype)
            for (name, is_real), slot in zip(slots_read, slots, strict=True)
        }
        if p is not None:
            given["p"] = jnp.asarray(p).astype(dtype)
        if t is not None:
            given["t"] = t.astype(real)
        if key is not None:
            given["key"] = key
        # A complex gradient meets real slots and numbers, which strict promotion would refuse.
        mixes = _is_complex(dtype)
        with jax.numpy_dtype_promotion("standard") if mixes else contextlib.nullcontext():
            result = step(g.astype(dtype), **given)
        results = result if isinstance(result, tuple) else (result,)
        expected = {"an update": g.shape}
        expected |= {
            f"a {slot_name}": slot.shape
            for (slot_name, _), slot in zip(slots_read, slots, strict=True)
        }
        if len(results) != len(expected):
            raise ValueError(
                f"{name}: the kernel returned {len(results)} arrays, expected {', '.join(expected)}"
            )
        for (what, shape), array in zip(expected.items(), results, strict=True):
            if np.shape(array) != shape:
                raise ValueError(
                    f"{name}: the kernel returned {what} of shape {np.shape(array)} for a "
                    f"gradient of shape {g.shape}, expected shape {shape}"
                )
        update, *new = results
        new = tuple(value.astype(slot.dtype) for value, slot in zip(new, slots, strict=True))
        return update.astype(g.dtype), new

    leaf_step.__name__ = name
    return jax.jit(leaf_step)


def _to_compute(slot: jax.Array, dtype: np.dtype) -> jax.Array:
    if not jnp.issubdtype(slot.dtype, jnp.inexact):
        return slot
    is_real = jnp.issubdtype(dtype, jnp.floating)
    return (jnp.real(slot) if is_real else slot).astype(dtype)


def _is_complex(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.complexfloating)
