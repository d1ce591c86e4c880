"""What happens in a run: measurements that are recorded inside the compiled step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.core import Tracer

from gradtx import norms, trees
from gradtx.arguments import COUNT, check
from gradtx.effect import LINEAR, declared
from gradtx.leaves import map_leaves
from gradtx.messages import listed, shown

_OWNER = "record_history"

# A measure whose first argument has one of these names was not meant to receive the updates.
_NOT_UPDATES = frozenset({"grad", "loss", "params", "value"})


class HistoryState(NamedTuple):
    """The state of `record_history`.

    Attributes:
        count: the number of calls, int32.
        steps: the step at which each entry of the buffers was written, -1 if it was not; int32 of
            shape (length,).
        buffers: name of the measure -> its values, arrays of shape (length, ...) that are
            overwritten from the start when they are full.
    """

    count: jax.Array
    steps: jax.Array
    buffers: dict[str, Any]


def record_history(
    measures: Mapping[str, Callable[..., Any]] | None = None,
    length: int = 1000,
    *,
    every: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Record measurements of the updates at each step, without changing the updates.

        u = g
        buffer[(t / every) mod length] = measure(g),    t = 0, every, 2 every, ...

    It can stand anywhere in a chain: before clipping it sees the raw gradients, at the end what is
    added to the parameters. The buffers have a fixed size and are part of the state, so that
    nothing leaves the device until `history_of` reads them.

    Its place determines what counts as a step t. In a chain inside `MultiSteps` or
    `apply_if_finite`, t counts their steps and g is the mean gradient. In a chain around them, t
    counts calls; g is the gradient of one mini-batch or, after them, zero where they skip the step.

    Args:
        measures: name -> function. Its first argument receives the updates; each further argument
            without a default receives what its name says: `params`, or an extra argument of
            `update` such as `value`, the loss, which `gradtx.training.make_train_step` passes. It
            returns a real scalar, an array or a tree of arrays; it must be a scalar if the function
            asks for extra arguments. None: {"gradient_norm": gradtx.global_norm}.
        length: the number of measurements to keep, >= 1; older ones are overwritten.
        every: the number of steps from one measurement to the next, >= 1.

    Returns:
        A transformation with the state `HistoryState(count, steps, buffers)`. Values are stored in
        float32, or float64 if they are float64. Leaves that are not inexact arrays are passed to
        the measures as None; where a measure returns None, NaN is recorded.

    Raises:
        ValueError: if `measures` is empty or has a name or a function that cannot be used, or
            `length` or `every` is not a whole number >= 1; in `init`, if a measure is complex; in
            `update`, if a measure asks for an argument that is not given or returns shapes other
            than in `init`, or the state belongs to other measures.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.diagnostics import history_of, record_history
        >>> measures = {"norm": gradtx.global_norm, "loss": lambda updates, value: value}
        >>> tx = gradtx.chain(record_history(measures, length=2), gradtx.sgd(0.1))
        >>> state = tx.init(jnp.zeros(2))
        >>> for size in (1.0, 2.0, 3.0):
        ...     gradient = jnp.array([3.0, 4.0]) * size
        ...     updates, state = tx.update(gradient, state, value=jnp.array(size))
        >>> print({name: values.tolist() for name, values in history_of(state).items()})
        {'step': [1, 2], 'loss': [2.0, 3.0], 'norm': [10.0, 15.0]}
    """
    functions = _checked(measures)
    length = int(check(_OWNER, "length", length, COUNT))
    every = int(check(_OWNER, "every", every, COUNT))

    def init(params: Any) -> HistoryState:
        params = _parameters(params)
        buffers = {
            name: _empty_buffer(name, measure, params, length)
            for name, measure in functions.items()
        }
        return HistoryState(jnp.zeros([], jnp.int32), jnp.full(length, -1, jnp.int32), buffers)

    @declared(LINEAR)
    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        _check_state(state, functions)

        def record() -> tuple[jax.Array, dict[str, Any]]:
            available = dict(extra)
            if params is not None:
                available["params"] = _parameters(params)
            return _recorded(functions, state, every, _parameters(updates), available)

        def keep() -> tuple[jax.Array, dict[str, Any]]:
            return state.steps, state.buffers

        is_due = True if every == 1 else state.count % every == 0
        if isinstance(is_due, Tracer):
            steps, buffers = lax.cond(is_due, record, keep)
        else:
            # A `lax.cond` outside of jit would be compiled at each call.
            steps, buffers = record() if is_due else keep()
        return updates, HistoryState(jnp.asarray(optax.safe_increment(state.count)), steps, buffers)

    return optax.GradientTransformationExtraArgs(init, update)


class _Measure(NamedTuple):
    """A function of the updates, and the names of its other arguments."""

    function: Callable[..., Any]
    wanted: set[str]


def _checked(measures: Any) -> dict[str, _Measure]:
    """The measures by name, or the default one."""
    measures = {"gradient_norm": norms.global_norm} if measures is None else measures
    if not isinstance(measures, Mapping) or not measures:
        raise ValueError(
            f"{_OWNER}: measures must map at least one name to a function, got {shown(measures)}"
        )
    return {
        name: _Measure(function, _wanted(name, function)) for name, function in measures.items()
    }


def _check_state(state: HistoryState, functions: Mapping[str, _Measure]) -> None:
    if state.buffers.keys() != functions.keys():
        raise ValueError(
            f"{_OWNER}: the state is that of the measures {listed(sorted(state.buffers))}, not of "
            f"{listed(sorted(functions))}"
        )


def _empty_buffer(name: str, measure: _Measure, params: Any, length: int) -> Any:
    """The buffer of one measure, with room for `length` of its values."""

    def zeros(kind: Any) -> jax.Array:
        if jnp.issubdtype(kind.dtype, jnp.complexfloating):
            raise ValueError(f"{_OWNER}: measure {name!r} must be real, got {kind.dtype}")
        dtype = jnp.float64 if kind.dtype == jnp.float64 else jnp.float32
        return jnp.zeros((length, *kind.shape), dtype)

    # The types of extra arguments are not known before the first update.
    kind: Any = jax.ShapeDtypeStruct((), jnp.result_type(float))
    if measure.wanted <= {"params"}:
        kind = jax.eval_shape(measure.function, params, **dict.fromkeys(measure.wanted, params))
    return jax.tree.map(zeros, kind)


def _recorded(
    functions: Mapping[str, _Measure],
    state: HistoryState,
    every: int,
    updates: Any,
    available: dict[str, Any],
) -> tuple[jax.Array, dict[str, Any]]:
    """The steps and the buffers of the state, with the measurements of this step."""
    place = state.count // every % len(state.steps)
    buffers = {}
    for name, measure in functions.items():
        value = measure.function(updates, **_arguments(name, measure.wanted, available))
        buffers[name] = _written(name, state.buffers[name], place, value)
    return state.steps.at[place].set(state.count), buffers


def _wanted(name: Any, measure: Any) -> set[str]:
    """The names of the arguments that a measure asks for in addition to the updates."""
    if not isinstance(name, str) or name == "step":
        raise ValueError(
            f"{_OWNER}: a measure must have a name other than 'step', got {shown(name)}"
        )
    if not callable(measure):
        raise ValueError(
            f"{_OWNER}: measure {name!r} must be a function of the updates, got {shown(measure)}"
        )
    arguments = list(inspect.signature(measure).parameters.values())
    if not arguments or arguments[0].kind in (
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    ):
        raise ValueError(
            f"{_OWNER}: measure {name!r} must take the updates as its first argument, but takes "
            f"{inspect.signature(measure)}"
        )
    if arguments[0].name in _NOT_UPDATES:
        raise ValueError(
            f"{_OWNER}: measure {name!r} receives the updates as its first argument, which it "
            f"calls {arguments[0].name!r}; write it as lambda updates, {arguments[0].name}: ..."
        )
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        argument.name
        for argument in arguments[1:]
        if argument.default is inspect.Parameter.empty and argument.kind in named
    }


def _arguments(name: str, wanted: set[str], available: dict[str, Any]) -> dict[str, Any]:
    missing = sorted(wanted - available.keys())
    if missing:
        more = "" if missing[0] == "params" else f", {missing[0]}=..."
        raise ValueError(
            f"{_OWNER}: measure {name!r} needs {missing[0]!r}, which was not passed; call "
            f"update(updates, state, params{more})"
        )
    return {key: available[key] for key in wanted}


def _parameters(tree: Any) -> Any:
    return trees.only_trained(tree)


def _written(name: str, buffer: Any, place: jax.Array, value: Any) -> Any:
    """The buffers of one measure, with a new value in one place."""
    owner = f"{_OWNER}: measure {name!r}"

    def write(leaf: Any, part: Any) -> Any:
        if part is not None and np.shape(part) != leaf.shape[1:]:
            raise ValueError(
                f"{owner} must return the shape that its buffer was made for, {leaf.shape[1:]}, "
                f"got shape {np.shape(part)}"
            )
        part = jnp.full(leaf.shape[1:], jnp.nan) if part is None else jnp.asarray(part)
        return leaf.at[place].set(part.astype(leaf.dtype))

    return map_leaves(
        write,
        owner,
        {"its buffer": buffer, "its value": value},
        takes_part=lambda leaf, _: leaf is not None,
        same_shapes=False,
    )


def update_ratio(updates: Any, params: Any) -> Any:
    """How large the update of each parameter is, relative to the parameter.

        r_i = ||u_i|| / ||p_i||

    As a rule of thumb it is about 1e-3 in a healthy run; a ratio far below or above that suggests
    that the learning rate is much too low or too high.

    Args:
        updates: a tree of updates, as they are added to the parameters.
        params: the parameters, a tree of arrays.

    Returns:
        A tree of the structure of `updates` with scalars, float64 for float64 leaves, else
        float32, correct wherever the norms themselves can be represented. None where there is no
        update, or for leaves that are not inexact arrays; 0 where both norms are zero, infinite
        where only the parameter's is.

    Raises:
        ValueError: if structures or shapes differ, naming the path.

    Source:
        Karpathy, "CS231n: neural networks, part 3", section "Ratio of weights:updates"; its inverse
        in You, Gitman & Ginsburg 2017, "Large batch training of convolutional networks", section 4.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.diagnostics import update_ratio
        >>> params = {"w": jnp.array([3.0, 4.0]), "steps": jnp.array(7)}
        >>> print(update_ratio({"w": jnp.array([0.0, 0.5]), "steps": None}, params))
        {'steps': None, 'w': Array(0.1, dtype=float32)}
    """
    owner = "update_ratio"

    def ratio(u: Any, p: Any) -> jax.Array:
        sizes = [_norm(jnp.asarray(u)), _norm(jnp.asarray(p))]
        dtype = np.promote_types(sizes[0].dtype, sizes[1].dtype)
        change, size = (norm.astype(dtype) for norm in sizes)
        is_nothing = (change == 0) & (size == 0)
        return jnp.where(is_nothing, 0, change / jnp.where(is_nothing, 1, size))

    return map_leaves(
        ratio,
        owner,
        {"updates": updates, "params": params},
        takes_part=lambda *leaf: all(map(trees.is_trained, leaf)),
        rests=None,
    )


def _norm(x: jax.Array) -> jax.Array:
    return norms.norm(x.astype(trees.compute_dtype(x.dtype))).reshape(())
