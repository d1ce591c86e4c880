"""One training step: gradient, update, new parameters and metrics, compiled together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from gradtx import norms, trees
from gradtx.arguments import ANY_NUMBER, check_hyperparameter, evaluate
from gradtx.compose.sequence import as_transformation
from gradtx.inputs import loss_and_aux, real_scalar
from gradtx.leaves import Aligned
from gradtx.messages import listed, shown
from gradtx.training.layouts import KeptLayouts
from gradtx.training.state import TrainState
from gradtx.updates import UPDATES_TOO, advance
from gradtx.wrappers.rates import scheduled_rates_of
from gradtx.wrappers.steps import holding_back

Metrics = dict[str, Any]

_OWNER = "make_train_step"


def make_train_step(
    loss_fn: Callable[..., Any],
    tx: optax.GradientTransformation,
    *,
    has_model_state: bool = False,
    has_aux: bool = False,
    has_key: bool = False,
    learning_rate: optax.ScalarOrSchedule | None = None,
    donate: bool = True,
    shardings: Literal["as given"] | None = "as given",
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """Build the compiled function that advances a training run by one step.

        g = d loss / d params,    u = tx(g),    params <- params + u

    Three flags say what the loss function takes and returns:

        has_model_state  has_aux   returns
        False            False     loss
        False            True      (loss, aux)
        True             False     (loss, model_state)
        True             True      (loss, (model_state, aux))

    It is called as `loss_fn(params, batch)`, or as `loss_fn(params, model_state, batch, key)` with
    the arguments that the flags ask for.

    Transformations that need the loss, such as `newton` and the line search of `lbfgs`, receive it
    as the extra arguments `value`, `grad` and `value_fn`: the loss of this batch, as a function of
    the parameters alone.

    Args:
        loss_fn: the loss of a batch, a real scalar, differentiable in its first argument.
        tx: the gradient transformation, the one that was given to `TrainState.create`.
        has_model_state: whether the loss takes and returns `state.model_state`, such as the
            running statistics of batch normalization.
        has_aux: whether the loss returns a dictionary of further metrics.
        has_key: whether the loss takes a PRNG key. It is `fold_in(state.key, state.step)`, so that
            a run resumed from a checkpoint draws the same numbers.
        learning_rate: what to report as the learning rate: a number, or the schedule that `tx` was
            made with, evaluated at the count in the state of `tx` (or at `state.step` if there is
            none, as in a transformation of your own). None: the value named `learning_rate` in
            that state, where `inject_hyperparams` and line searches keep that of the last step; if
            there is none, or more than one, no learning rate is reported.
        donate: whether a step may reuse the memory of the state that it is given. The arrays of
            that state are then deleted: continue with the returned state.
        shardings: "as given": on a mesh, each array of the returned state lies as that of the given
            state does, such as replicated parameters beside the sharded state of
            `gradtx.sharding.zero`; None: the compiler decides.

    Returns:
        A function `train_step(state, batch) -> (state, metrics)`, compiled once for each type of
        state and batch. `batch` is any tree of arrays. The metrics stay on the device, so
        nothing waits for a step until its metrics are read:

        - "loss": the loss before the update,
        - "gradient_norm": the global norm of g, before any clipping,
        - "update_norm": the global norm of u,
        - "learning_rate": see above. If parts of `tx` follow the schedule but do not step at
          the same time, such as a `MultiSteps` in one group of `partition`, each has an entry of
          its own, as in `gradtx.metrics`: "learning_rate/matrices",
        - and the entries of `aux`.

        A complex parameter's gradient is conjugated, so that it points uphill. Parameters that are
        not inexact arrays are left alone. If the batches lie on a mesh, put the state there too
        before the first step (`jax.device_put`): otherwise that step moves it, and the second step
        is compiled again.

    Raises:
        ValueError: if `loss_fn` is not callable, `tx` is not a gradient transformation,
            `learning_rate` is neither a number nor a schedule, or `shardings` is something else; in
            the step, if the loss is not a real scalar or `loss_fn` does not return what the flags
            say, if `aux` uses the name of another metric, if the model state changes its structure,
            shapes or dtypes, if the state lacks the key or the model state that the flags ask for,
            or if `tx` can skip steps and has no count for the schedule.

    Source:
        Goodfellow, Bengio & Courville 2016, "Deep learning", Algorithm 8.1.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.training import TrainState, make_train_step
        >>> def loss_fn(params, batch):
        ...     return jnp.mean((batch["x"] * params["slope"] - batch["y"]) ** 2)
        >>> tx = gradtx.sgd(0.25)
        >>> train_step = make_train_step(loss_fn, tx, learning_rate=0.25)
        >>> state = TrainState.create({"slope": jnp.array(0.0)}, tx)
        >>> state, metrics = train_step(state, {"x": jnp.ones(4), "y": jnp.full(4, 2.0)})
        >>> print(state.params["slope"], metrics["loss"], metrics["gradient_norm"])
        1.0 4.0 4.0
    """
    if not callable(loss_fn):
        raise ValueError(f"{_OWNER}: loss_fn must be a function, got {shown(loss_fn)}")
    transformation = as_transformation(_OWNER, "tx", tx)
    if learning_rate is not None:
        learning_rate = check_hyperparameter(_OWNER, "learning_rate", learning_rate, ANY_NUMBER)

    if shardings not in ("as given", None):
        raise ValueError(f'{_OWNER}: shardings must be "as given" or None, got {shown(shardings)}')

    loss = _Loss(loss_fn, has_model_state, has_aux, has_key)
    value_and_grad = jax.value_and_grad(loss, has_aux=True, allow_int=True)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        _check_is_state(state)

        def value_fn(params: Any) -> jax.Array:
            return loss(params, state, batch)[0]

        (value, (model_state, aux)), gradient = value_and_grad(state.params, state, batch)
        gradient = jax.tree.map(_uphill, gradient)
        extra = {"value": value, "grad": gradient, "value_fn": value_fn}
        params, updates, opt_state = advance(
            transformation, gradient, state.opt_state, state.params, extra, UPDATES_TOO
        )
        _check_same_types(state.model_state, model_state)
        new_state = state._replace(
            params=params,
            opt_state=opt_state,
            step=optax.safe_increment(state.step),
            model_state=model_state,
        )
        metrics = {
            "loss": value,
            "gradient_norm": norms.global_norm(gradient),
            "update_norm": norms.global_norm(updates),
        }
        if callable(learning_rate):
            metrics |= _scheduled_rates(learning_rate, transformation, state)
        else:
            metrics |= _constant_rate(learning_rate, opt_state)
        return jax.tree.map(_strongly_typed, new_state), _merged(metrics, aux)

    if shardings is None:
        return jax.jit(train_step, donate_argnums=0 if donate else ())
    return KeptLayouts(train_step, donate=donate)


@dataclass(frozen=True)
class _Loss:
    """A loss function, with the flags that say what it takes and returns."""

    function: Callable[..., Any]
    has_model_state: bool
    has_aux: bool
    has_key: bool

    def __call__(
        self, params: Any, state: TrainState, batch: Any
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        """The loss, the new model state (or the old one) and aux (or no metrics)."""
        result = self.function(*self._arguments(params, state, batch))
        if not (self.has_model_state or self.has_aux):
            return loss_and_aux(_OWNER, result, has_aux=False)[0], (state.model_state, {})
        loss, rest = _pair("loss_fn must return (loss, ...)", result)
        if self.has_model_state and self.has_aux:
            model_state, aux = _pair("loss_fn must return (loss, (model_state, aux))", rest)
        else:
            model_state, aux = (rest, {}) if self.has_model_state else (state.model_state, rest)
        return real_scalar(_OWNER, loss), (model_state, aux)

    def _arguments(self, params: Any, state: TrainState, batch: Any) -> list[Any]:
        arguments = [params]
        if self.has_model_state:
            arguments.append(_present("model_state", state.model_state))
        arguments.append(batch)
        if self.has_key:
            arguments.append(jax.random.fold_in(_present("key", state.key), state.step))
        return arguments


def _scheduled_rates(
    schedule: optax.Schedule, tx: optax.GradientTransformation, state: TrainState
) -> Metrics:
    """The schedule at the count of `tx`; `state.step` also counts calls that take no step."""
    rates = scheduled_rates_of(tx, state.opt_state, schedule)
    if not rates and holding_back(state.opt_state):
        raise ValueError(
            f"{_OWNER}: learning_rate is a schedule, but no count for it was found in the state of "
            "tx, which can skip steps (MultiSteps, apply_if_finite, ...); keep the learning rate "
            "in the state with gradtx.inject_hyperparams, and omit this argument"
        )
    rates = rates or {"": evaluate(schedule, state.step)}
    return {
        f"learning_rate/{place}" if place else "learning_rate": rate
        for place, rate in rates.items()
    }


def _constant_rate(given: ArrayLike | None, opt_state: Any) -> Metrics:
    """The given number, or the only learning rate in the state."""
    if given is not None:
        return {"learning_rate": jnp.asarray(given, dtype=float)}
    found = [value for _, value in optax.tree.get_all_with_path(opt_state, "learning_rate")]
    scalars = [value for value in found if isinstance(value, jax.Array) and value.ndim == 0]
    return {"learning_rate": scalars[0]} if len(scalars) == 1 else {}


def _check_is_state(state: Any) -> None:
    if not hasattr(state, "opt_state"):
        is_array = hasattr(state, "shape")
        kind = f"an array of shape {state.shape}" if is_array else type(state).__name__
        raise ValueError(
            f"{_OWNER}: the step takes (state, batch), where state must be a TrainState, got {kind}"
        )


def _merged(metrics: Metrics, aux: Any) -> Metrics:
    if not isinstance(aux, dict):
        raise ValueError(
            f"{_OWNER}: with has_aux, aux must be a dictionary of metrics, got {type(aux).__name__}"
        )
    taken = sorted(metrics.keys() & aux.keys())
    if taken:
        raise ValueError(
            f"{_OWNER}: aux must not use the names of other metrics, got {listed(taken)}"
        )
    return {**metrics, **aux}


def _check_same_types(old: Any, new: Any) -> None:
    """Refuse a model state whose type changed: the next step would be compiled again."""
    named = {"the old model_state": old, "the new model_state": new}
    aligned = Aligned(_OWNER, named, takes_part=lambda *_: True, same_shapes=False)
    for path, was, is_now in zip(trees.paths(old), *map(aligned.parts, named), strict=True):
        if _type_name(was) != _type_name(is_now):
            raise ValueError(
                f"{_OWNER}: the loss changed the type of the model_state at '{path}' from "
                f"{_type_name(was)} to {_type_name(is_now)}"
            )


def _type_name(leaf: Any) -> str:
    is_array = hasattr(leaf, "dtype")
    return f"{leaf.dtype} of shape {leaf.shape}" if is_array else type(leaf).__name__


def _pair(message: str, result: Any) -> Any:
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise ValueError(f"{_OWNER}: {message}, got {type(result).__name__}")
    return result


def _present(field: str, value: Any) -> Any:
    if value is None:
        raise ValueError(
            f"{_OWNER}: has_{field} needs a state with a {field}; pass one to "
            f"TrainState.create(params, tx, {field}=...)"
        )
    return value


def _strongly_typed(leaf: Any) -> jax.Array:
    # A weak type would differ from the one that the step was compiled for.
    return jnp.asarray(leaf, dtype=jnp.result_type(leaf))


def _uphill(gradient: Any) -> Any:
    """The direction of steepest ascent, of which JAX's gradient is the complex conjugate."""
    return jnp.conj(gradient) if jnp.issubdtype(gradient.dtype, jnp.complexfloating) else gradient
