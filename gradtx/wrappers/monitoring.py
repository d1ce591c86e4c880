"""Measurements of the updates inside a chain, the latest of which are kept in the state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from optax.transforms import MonitorState, SnapshotState

from gradtx import trees
from gradtx.compose.sequence import ExtraArgs, as_transformation, stateless
from gradtx.effect import LINEAR, Effect, declared
from gradtx.inputs import check_state
from gradtx.kernels.momentum import ema
from gradtx.leaves import map_leaves, map_parameters
from gradtx.messages import listed, shown
from gradtx.placement import with_numbers_placed

Measure = Callable[[Any], Any]
_MEASURING = Effect(hidden="measures the updates", decay="hides")


def snapshot(measure_name: str, measure: Measure) -> optax.GradientTransformationExtraArgs:
    """Measure the updates at each step, keep the latest value, and leave the updates as they are.

        u = g,    state.measurement[measure_name] = measure(g)

    It can be anywhere in a chain; `gradtx.metrics(state)` or `optax.tree.get(state, name)` reads
    the value. To keep the values of many steps, or to measure the parameters and the loss, see
    `gradtx.diagnostics.record_history`.

    Args:
        measure_name: the name of the measurement.
        measure: function of the updates that returns an array or a tree of arrays.

    Returns:
        A transformation with the state `SnapshotState({measure_name: value})`. The value is 0
        before the first step (optax measures the parameters there). The measure gets None in place
        of leaves that are not inexact arrays.

    Raises:
        ValueError: if `measure_name` is not a string or `measure` is not a function; in `update`,
            if the measure returns another structure or shape than in `init`.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.chain(gradtx.snapshot("norm", gradtx.global_norm), gradtx.clip(1.0))
        >>> updates, state = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)))
        >>> print(gradtx.metrics(state))
        {'norm': Array(5., dtype=float32)}
    """
    owner = "snapshot"
    _check_measure(owner, measure_name, measure)

    @with_numbers_placed
    def init(params: Any) -> SnapshotState:
        return SnapshotState({measure_name: _zeros(jax.eval_shape(measure, _parameters(params)))})

    @declared(LINEAR)
    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del params, extra
        check_state(owner, state, SnapshotState._fields)
        value = measure(_parameters(updates))
        old = state.measurement.get(measure_name)
        return updates, SnapshotState({measure_name: _typed(owner, measure_name, value, old)})

    return ExtraArgs(init, update)


def monitor(
    measures: Mapping[str, Measure | optax.GradientTransformation],
) -> optax.GradientTransformationExtraArgs:
    """Take several measurements at each step, which may remember earlier ones.

        u = g,    state.measurements[name] = measures[name](g)

    This is `snapshot` for many measures, and for measures with a state of their own, such as
    `measure_with_ema`. To keep the values of many steps, or to measure the parameters and the loss,
    see `gradtx.diagnostics.record_history`.

    Args:
        measures: name -> function of the updates, or a transformation whose "updates" are the
            measurement; it also gets the parameters and the extra arguments of `update`.

    Returns:
        A transformation with the state `MonitorState(measurements, measure_states)`. The
        measurements are 0 before the first step (optax has none there, so that the structure of its
        state changes in the first step), except for a transformation that requires an extra
        argument, whose measurement is missing there. Measures get None in place of leaves that are
        not inexact arrays.

    Raises:
        ValueError: if `measures` has a name that is not a string or a value that is neither a
            function nor a transformation; in `update`, if the state is that of another number of
            measures, or a measure returns another structure or shape than in `init`.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> is_long = gradtx.measure_with_ema(lambda g: gradtx.global_norm(g) > 1, decay=0.5)
        >>> tx = gradtx.monitor({"norm": gradtx.global_norm, "long": is_long})
        >>> state = tx.init(jnp.zeros(1))
        >>> for size in (2.0, 0.5):
        ...     _, state = tx.update(jnp.array([size]), state)
        ...     print({name: round(float(x), 3) for name, x in gradtx.metrics(state).items()})
        {'long': 1.0, 'norm': 2.0}
        {'long': 0.333, 'norm': 0.5}
    """
    owner = "monitor"
    if not isinstance(measures, Mapping):
        raise ValueError(f"{owner}: measures must map names to functions, got {shown(measures)}")
    transformations: dict[str, ExtraArgs] = {}
    for name, measure in measures.items():
        _check_measure(owner, name, measure)
        if callable(measure):
            transformations[name] = stateless(lambda updates, params, f=measure: f(updates))
        else:
            transformations[name] = as_transformation(owner, f"measures[{name!r}]", measure)

    @with_numbers_placed
    def init(params: Any) -> MonitorState:
        visible, measurements, states = _parameters(params), {}, []
        for name, tx in transformations.items():
            states.append(tx.init(visible))
            # One that requires an extra argument cannot be called without it.
            with contextlib.suppress(TypeError):
                value, _ = jax.eval_shape(tx.update, visible, states[-1], visible)
                measurements[name] = _zeros(value)
        return MonitorState(measurements, tuple(states))

    @declared(LINEAR)
    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        check_state(owner, state, MonitorState._fields)
        if len(state.measure_states) != len(transformations):
            raise ValueError(
                f"{owner}: the state is that of {len(state.measure_states)} measures, not of "
                f"{listed(transformations)}"
            )
        gradients, visible, measurements, states = _parameters(updates), _parameters(params), {}, []
        for (name, tx), old in zip(transformations.items(), state.measure_states, strict=True):
            value, new = tx.update(gradients, old, visible, **extra)
            measurements[name] = _typed(owner, name, value, state.measurements.get(name))
            states.append(new)
        return updates, MonitorState(measurements, tuple(states))

    return ExtraArgs(init, update)


def measure_with_ema(
    measure: Measure,
    decay: optax.ScalarOrSchedule,
    debias: bool = True,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """A measure for `monitor`: the exponential moving average of another measure.

        a_t = decay * a_{t-1} + (1 - decay) * measure(g_t),    a_0 = 0
        value = a_t / (1 - decay^t),                           or a_t without debias

    Args:
        measure: function of the updates that returns an array or a tree of arrays; booleans are
            averaged as 0 and 1.
        decay: the decay rate of the average, in [0, 1); a number, a scalar array or a schedule.
        debias: whether to correct the bias of an average that starts at zero.
        accumulator_dtype: the storage dtype of the average; None: the measure's, at least float32.

    Returns:
        A transformation whose "updates" are the average, in the measure's dtype, at least float32.
        Its state is that of the chain of a stateless transformation and `ema`.

    Raises:
        ValueError: if `measure` is not a function, or `decay` is not in [0, 1).

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.monitor({"mean": gradtx.measure_with_ema(jnp.mean, decay=0.5)})
        >>> state = tx.init(jnp.zeros(2))
        >>> for size in (3.0, 6.0):
        ...     _, state = tx.update(jnp.full(2, size), state)
        >>> print(state.measurements["mean"])
        5.0
    """
    owner = "measure_with_ema"
    _check_measure(owner, owner, measure)
    average = ema(decay, debias, accumulator_dtype)

    def number(value: Any) -> jax.Array:
        value = jnp.asarray(value)
        if not jnp.issubdtype(value.dtype, jnp.inexact):
            return value.astype(jnp.float32)
        return value.astype(trees.compute_dtype(value.dtype))

    def numbers(updates: Any) -> Any:
        return jax.tree.map(number, measure(updates))

    @with_numbers_placed
    def init(params: Any) -> Any:
        return optax.EmptyState(), average.init(_zeros(jax.eval_shape(numbers, params)))

    @declared(_MEASURING)
    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del params, extra
        value, average_state = average.update(numbers(updates), state[1])
        return value, (optax.EmptyState(), average_state)

    return ExtraArgs(init, update)


def _check_measure(owner: str, name: Any, measure: Any) -> None:
    if not isinstance(name, str):
        raise ValueError(f"{owner}: measure_name must be a string, got {shown(name)}")
    if not (callable(measure) or hasattr(measure, "update")):
        raise ValueError(f"{owner}: measure {name!r} must be a function, got {shown(measure)}")


def _parameters(tree: Any) -> Any:
    return map_parameters(lambda leaf: leaf, tree)


def _zeros(types: Any) -> Any:
    return jax.tree.map(lambda kind: jnp.zeros(kind.shape, kind.dtype), types)


def _typed(owner: str, name: str, value: Any, old: Any) -> Any:
    """A measurement in the dtypes of the previous one, with strong types."""
    if old is None:  # the first step of a run that optax started
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), value)
    owner = f"{owner}: measure {name!r}"
    return map_leaves(
        lambda was, is_now: jnp.asarray(is_now, jnp.result_type(was)),
        owner,
        {"the state": old, "its value": value},
        takes_part=lambda was, is_now: was is not None,
    )
