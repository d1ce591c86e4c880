"""Hyperparameters kept in the state, where they can be read, changed, saved and vectorized."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from optax.schedules import StatefulSchedule, WrappedSchedule

from gradtx import trees
from gradtx.arguments import check_dtype
from gradtx.compose.parts import Composed, Part, widens
from gradtx.compose.sequence import ExtraArgs, as_transformation
from gradtx.effect import LINEAR
from gradtx.inputs import check_state
from gradtx.joined import Finish, Leaves, join
from gradtx.messages import listed, shown
from gradtx.placement import with_numbers_placed
from gradtx.wrappers.factory import Factory
from gradtx.wrappers.steps import is_step, kept_after

_State = optax.InjectStatefulHyperparamsState


@dataclass(eq=False, kw_only=True)
class Injected(Composed):
    """An update function that makes its transformation at each step, from the hyperparameters.

    Attributes:
        make: the function from hyperparameters by name to the transformation.
        schedules: the hyperparameters that are schedules.
    """

    make: Callable[[dict[str, Any]], ExtraArgs]
    schedules: Mapping[str, StatefulSchedule]


def inject_hyperparams(
    inner_factory: Callable[..., optax.GradientTransformation],
    static_args: str | Iterable[str] = (),
    hyperparam_dtype: DTypeLike | None = None,
) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """Keep all numeric arguments of a factory in the state, including its defaults.

        h_t = schedule(t - 1), or the value in the state,    t = 1, 2, ...
        u_t = inner_factory(**h_t)(g_t)

    `state.hyperparams` maps names to scalars. Those that were given as numbers can be changed there
    between steps; those that were given as schedules are overwritten at each step. The values are
    arguments of the compiled step, so that it is compiled once for all of them, and `jax.vmap`
    over states trains with many values at once.

    A call in which a wrapper that the factory makes, such as a `MultiSteps`, holds the step back
    is not counted, so that schedules do not advance. (optax counts calls.)

    The values are float32, however narrow the parameters (in bfloat16 a b2 of 0.999 would be 1), or
    float64 where jax works in double precision and the given value does. optax casts them to the
    parameters' dtype.

    What counts as a hyperparameter:

    - in a factory of gradtx, each argument that is annotated as a `ScalarOrSchedule`, or as an
      `ArrayLike` if its value is not an integer; but an argument that optax's factory of this name
      lacks only if it is given;
    - in any other factory, as in optax, each argument whose value is a number, an array or a
      schedule. A function is taken for a schedule, unless it is annotated as a function that
      returns a boolean or anything, as a mask is; a class, a `gradtx.select`, and a tree of arrays
      or booleans that happens to be callable are not.

    Args:
        inner_factory: a function that returns a gradient transformation.
        static_args: the names of arguments that are not hyperparameters.
        hyperparam_dtype: the dtype of all real hyperparameters; None: see above.

    Returns:
        A function with the arguments of `inner_factory`, in which each hyperparameter may be a
        number, an array, a schedule of the number of steps already taken, which starts at 0, or a
        `StatefulSchedule`. It returns a transformation with the state
        `InjectStatefulHyperparamsState(count, hyperparams, hyperparams_states, inner_state)`.

    Raises:
        ValueError: if `inner_factory` is not a function, has no argument of a name in
            `static_args`, or `hyperparam_dtype` is not inexact; in the returned function, if
            `inner_factory` refuses a value; in `update`, if the state has other hyperparameters.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.inject_hyperparams(gradtx.sgd)(learning_rate=0.5)
        >>> state = tx.init(jnp.zeros(1))
        >>> state.hyperparams["learning_rate"] = jnp.float32(0.25)
        >>> updates, state = tx.update(jnp.ones(1), state)
        >>> print(updates)
        [-0.25]
    """
    owner = "inject_hyperparams"
    factory = Factory(owner, inner_factory)
    if not isinstance(static_args, Iterable):
        raise ValueError(f"{owner}: static_args must be names, got {shown(static_args)}")
    static = {static_args} if isinstance(static_args, str) else set(static_args)
    unknown = sorted(map(str, static - factory.signature.parameters.keys()))
    if unknown:
        raise ValueError(
            f"{owner}: static_args must name arguments of inner_factory, got {listed(unknown)}; "
            f"they are {listed(factory.signature.parameters, near=unknown[0])}"
        )
    dtype = check_dtype(owner, "hyperparam_dtype", hyperparam_dtype)

    @functools.wraps(inner_factory)
    def with_hyperparameters_in_state(*args: Any, **kwargs: Any) -> ExtraArgs:
        bound = factory.signature.bind(*args, **kwargs)
        left_out = factory.added - bound.arguments.keys()
        bound.apply_defaults()
        names = factory.arguments(bound).keys() - static - left_out
        return _injected(owner, factory, bound, names, dtype)

    return with_hyperparameters_in_state


# optax's former name.
inject_stateful_hyperparams = inject_hyperparams


def with_hyperparams(
    factory: Callable[..., optax.GradientTransformation], /, *args: Any, **kwargs: Any
) -> optax.GradientTransformationExtraArgs:
    """Build a transformation whose given hyperparameters are kept in its state.

        with_hyperparams(factory, learning_rate=0.1) = factory(learning_rate=h),
        h = state.hyperparams["learning_rate"]

    This is a direct form of `inject_hyperparams`, with one difference: only the arguments that are
    given here are in the state. The defaults are constants of the compiled step, as they are in
    `factory(*args, **kwargs)`.

    Args:
        factory: a function that returns a gradient transformation.
        *args: its positional arguments.
        **kwargs: its arguments by keyword. A hyperparameter may be a number, an array, a schedule
            or a `StatefulSchedule`; for what counts as one see `inject_hyperparams`. To keep an
            argument out of the state, bind it first: `functools.partial(factory, b1=0.8)`.

    Returns:
        A transformation with the state of `inject_hyperparams`.

    Raises:
        ValueError: if `factory` is not a function, or refuses a value.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.with_hyperparams(gradtx.sgd, learning_rate=0.1)
        >>> state = tx.init(jnp.zeros(1))
        >>> print(state.hyperparams)
        {'learning_rate': Array(0.1, dtype=float32)}
        >>> def step(learning_rate):
        ...     hyperparams = {"learning_rate": learning_rate}
        ...     return tx.update(jnp.ones(1), state._replace(hyperparams=hyperparams))[0]
        >>> print(jax.vmap(step)(jnp.array([1.0, 2.0])))
        [[-1.]
         [-2.]]
    """
    owner = "with_hyperparams"
    made = Factory(owner, factory)
    bound = made.signature.bind(*args, **kwargs)
    return _injected(owner, made, bound, made.arguments(bound).keys(), None)


def _injected(
    owner: str,
    factory: Factory,
    bound: inspect.BoundArguments,
    names: Iterable[str],
    dtype: np.dtype | None,
) -> ExtraArgs:
    given = factory.hyperparameters(bound, names)
    numbers = {name: value for name, value in given.items() if not callable(value)}
    schedules = {name: _stateful(value) for name, value in given.items() if callable(value)}
    own = _Hyperparameters(schedules, dtype, factory.is_ours)

    def make(values: dict[str, Any]) -> ExtraArgs:
        return as_transformation(owner, "the factory's result", factory.make(bound, values))

    @with_numbers_placed
    def init(params: Any) -> _State:
        states = {name: schedule.init() for name, schedule in schedules.items()}
        hyperparams = own.at_start() | {k: own.stored(value) for k, value in numbers.items()}
        inner_state = make(hyperparams).init(params)
        return _State(jnp.zeros([], jnp.int32), hyperparams, states, inner_state)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        _check_state(owner, state, given)
        hyperparams = own.now(state, extra)
        inner = make(hyperparams)
        take_step = inner.update if factory.is_ours else _keeping_dtypes(inner)
        new, inner_state = take_step(updates, state.inner_state, params, **extra)
        return new, renewed(state, hyperparams, inner_state, new, extra)

    def renewed(state: Any, hyperparams: Any, inner_state: Any, updates: Any, extra: Any) -> _State:
        step = is_step(state.inner_state, inner_state, updates)
        old = (state.count, state.hyperparams_states)
        count, states = kept_after(owner, step, lambda: own.advanced(state, extra), old)
        return _State(count, hyperparams, states, inner_state)

    def on_stacks(leaves: Leaves, state: Any) -> Finish:
        _check_state(owner, state, given)
        hyperparams = own.now(state, leaves.extra)
        finish = join(make(hyperparams).update, leaves, state.inner_state)

        def finished() -> _State:
            inner_state, updates = finish(), [leaf.value for leaf in leaves.leaves]
            if not factory.is_ours:
                inner_state = _with_dtypes_of(state.inner_state, inner_state)
            return renewed(state, hyperparams, inner_state, updates, leaves.extra)

        return finished

    # Made here once, so that wrong values are refused at construction.
    parts = (Part("", make(numbers | own.at_start())),)
    own_parts = {"make": make, "schedules": schedules, "on_stacks": on_stacks}
    return ExtraArgs(init, Injected(owner, parts, update, effect=LINEAR, **own_parts))


def _stateful(schedule: Any) -> StatefulSchedule:
    return schedule if isinstance(schedule, StatefulSchedule) else WrappedSchedule(schedule)


@dataclass(frozen=True)
class _Hyperparameters:
    """How a state keeps hyperparameters.

    Attributes:
        schedules: the schedules of those that have one.
        dtype: the dtype of all real ones; None: at least float32.
        are_real: whether integers are stored as real numbers too.
    """

    schedules: dict[str, StatefulSchedule]
    dtype: np.dtype | None
    are_real: bool

    def stored(self, value: Any) -> jax.Array:
        """A value as the state keeps it."""
        value = jnp.array(value)  # a copy, because the caller may donate the state
        if jnp.issubdtype(value.dtype, jnp.inexact):
            return value.astype(self.dtype or trees.compute_dtype(value.dtype))
        if self.are_real:
            return value.astype(self.dtype or jnp.result_type(float))
        return value.astype(value.dtype) if value.weak_type else value

    def at_start(self) -> dict[str, Any]:
        """The values of the schedules before the first step."""
        return {
            name: self._scheduled(name, schedule.init(), {})
            for name, schedule in self.schedules.items()
        }

    def now(self, state: Any, extra: Mapping[str, Any]) -> dict[str, Any]:
        """The values of this step: those in the state, unless there is a schedule."""
        values = {
            name: value
            if isinstance(value, jax.Array) and not value.weak_type
            else self.stored(value)
            for name, value in state.hyperparams.items()
        }
        return values | {
            name: self._scheduled(name, state.hyperparams_states[name], extra)
            for name in self.schedules
        }

    def advanced(self, state: Any, extra: Mapping[str, Any]) -> tuple[jax.Array, dict[str, Any]]:
        """The count and the states of the schedules after a step."""
        states = {
            name: schedule.update(state.hyperparams_states[name], **extra)
            for name, schedule in self.schedules.items()
        }
        return jnp.asarray(optax.safe_increment(state.count)), states

    def _scheduled(self, name: str, schedule_state: Any, extra: Mapping[str, Any]) -> jax.Array:
        # Schedules mix integers and floats, which strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            return self.stored(self.schedules[name](schedule_state, **extra))


def _keeping_dtypes(tx: ExtraArgs) -> Callable[..., tuple[Any, Any]]:
    """The update of what may change dtypes, with its results cast back to those before."""
    is_wide = widens(tx)

    def stepped(updates: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        # With arrays in place of Python numbers, strict promotion would refuse mixed dtypes.
        with jax.numpy_dtype_promotion("standard"):
            new, new_state = tx.update(updates, state, params, **extra)
        new = new if is_wide else _with_dtypes_of(updates, new)
        return new, _with_dtypes_of(state, new_state)

    return stepped


def _check_state(owner: str, state: Any, given: dict[str, Any]) -> None:
    check_state(owner, state, _State._fields)
    if state.hyperparams.keys() != given.keys():
        raise ValueError(
            f"{owner}: the state has the hyperparameters {listed(sorted(state.hyperparams))}, "
            f"expected {listed(sorted(given))}"
        )


def _with_dtypes_of(old: Any, new: Any) -> Any:
    if jax.tree.structure(old) != jax.tree.structure(new):
        return new

    def converted(before: Any, after: Any) -> Any:
        is_array = isinstance(after, jax.Array) and trees.is_parameter(before)
        return after.astype(jnp.result_type(before)) if is_array else after

    return jax.tree.map(converted, old, new)
