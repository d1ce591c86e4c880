"""Averages of the parameters, kept beside any optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradtx import boxes
from gradtx.arguments import DECAY, check_flag, check_hyperparameter
from gradtx.compose.parts import Part, composed
from gradtx.compose.sequence import as_transformation
from gradtx.effect import LINEAR
from gradtx.inputs import check_given, check_order
from gradtx.kernels.momentum import ema
from gradtx.leaves import map_leaves
from gradtx.stored import to_store
from gradtx.updates import apply_updates
from gradtx.wrappers.steps import is_step, kept_after

_OWNER = "average_params"


class AverageParamsState(NamedTuple):
    """The state of `average_params`.

    Attributes:
        average: the `EmaState` of a pair: the parameters, and the number 1, whose average is the
            sum of the weights so far (None without debias).
        inner_state: the state of the wrapped transformation.
    """

    average: Any
    inner_state: Any

    def evaluated(self) -> tuple[Any, Callable[[Any, Any], jax.Array]]:
        """What `eval_params` reads: the average, and the rule for a parameter and its average."""
        average, weight = self.average.ema
        return average, lambda p, mean: averaged_leaf(p, mean, weight)


def average_params(
    tx: optax.GradientTransformation,
    decay: optax.ScalarOrSchedule,
    debias: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Keep the exponential moving average of the parameters as they are after each update.

        p_t = p_{t-1} + u_t
        a_t = decay * a_{t-1} + (1 - decay) * p_t,    a_0 = 0
        averaged_params = a_t / (1 - decay^t),        or a_t without debias

    The updates are unchanged: training runs on the raw parameters, and `averaged_params(state)`
    returns the averaged ones for evaluation. Wrap the whole optimizer, so that u_t is what is added
    to the parameters. t counts their steps only: it does not advance while a `MultiSteps` inside
    collects gradients, an `apply_if_finite` skips one, or `sam` climbs.

    Args:
        tx: the transformation whose updates are applied.
        decay: the decay rate of the average, in [0, 1); a number, a scalar array or a schedule.
        debias: whether to correct the bias of an average that starts at zero.

    Returns:
        A transformation with the state `AverageParamsState(average, inner_state)`; its update
        needs `params`. The average of half-precision parameters is kept in float32.

    Raises:
        ValueError: if `decay` is not in [0, 1), or `tx` is not a transformation; in `update`, if
            `params` is missing.

    Source:
        Polyak & Juditsky 1992, "Acceleration of stochastic approximation by averaging";
        Kingma & Ba 2015, "Adam", section 7.2.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.average_params(gradtx.sgd(1.0), decay=0.5)
        >>> params, state = jnp.array([4.0]), tx.init(jnp.array([4.0]))
        >>> for _ in range(2):
        ...     updates, state = tx.update(jnp.array([1.0]), state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> print(params, gradtx.averaged_params(state).round(1))
        [2.] [2.3]
    """
    debias = check_flag("average_params", "debias", debias)
    inner = as_transformation(_OWNER, "tx", tx)
    decay = check_hyperparameter(_OWNER, "decay", decay, DECAY)
    average = ema(decay, debias=False)

    def observed(params: Any) -> Any:
        return params, jnp.ones(()) if debias else None

    def init(params: Any) -> AverageParamsState:
        return AverageParamsState(average.init(observed(params)), inner.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        check_given(_OWNER, params)
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra)
        step = is_step(state.inner_state, inner_state, updates)

        def advance() -> Any:
            return average.update(observed(apply_updates(params, updates)), state.average)[1]

        new = kept_after(_OWNER, step, advance, state.average)
        return updates, AverageParamsState(new, inner_state)

    return composed(
        _OWNER, (Part("", inner),), init, update, state=AverageParamsState, effect=LINEAR
    )


def averaged_params(state: Any, params: Any = None) -> Any:
    """Read the averaged parameters from the state of any chain that has an `average_params`.

    Args:
        state: an optimizer state, however deeply nested.
        params: the raw parameters; the result takes their dtypes, their leaves that are not
            inexact arrays (as in an equinox module) and, before the first update, their values.
            None: the average as it is stored, at least float32 and zero before the first update,
            with None in place of such leaves.

    Returns:
        A tree of the structure of the parameters.

    Raises:
        ValueError: if the state has no average of parameters, or several, or `state` and `params`
            were swapped.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.average_params(gradtx.sgd(1.0), decay=0.9)
        >>> params = jnp.array([4.0])
        >>> _, state = tx.update(jnp.array([1.0]), tx.init(params), params)
        >>> print(gradtx.averaged_params(state).round(1))
        [3.]
    """
    check_order("averaged_params", state, params)
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, AverageParamsState))
    found = [node for node in nodes if isinstance(node, AverageParamsState)]
    if len(found) != 1:
        raise ValueError(
            f"averaged_params: expected one average_params in the state, found {len(found)}"
        )
    average, weight = found[0].average.ema
    if params is None:
        return jax.tree.map(lambda a: _debiased(a, weight), average)
    # nnx.Optimizer keeps its state in other boxes than those of the parameters.
    averaged = map_leaves(
        lambda p, a: averaged_leaf(p, a, weight),
        "averaged_params",
        {"params": boxes.opened(params), "the average": boxes.opened(average)},
    )
    return jax.tree.structure(params).unflatten(jax.tree.leaves(averaged))


def averaged_leaf(p: Any, average: jax.Array, weight: jax.Array | None) -> jax.Array:
    """The average of one parameter in its dtype; the parameter itself before the first update."""
    mean = to_store(_debiased(average, weight), jnp.result_type(p))
    return mean if weight is None else jnp.where(weight == 0, p, mean)


def _debiased(average: jax.Array, weight: jax.Array | None) -> jax.Array:
    if weight is None:
        return average
    return average / jnp.where(weight == 0, 1.0, weight).astype(average.dtype)
