"""What a step did, as the state tells: learning rate, norms, skipped steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import GetAttrKey
from optax.contrib import ReduceLROnPlateauState
from optax.transforms import MonitorState, SnapshotState

from gradtx import norms, trees
from gradtx.compose.parts import Part, composed
from gradtx.compose.sequence import as_transformation
from gradtx.effect import LINEAR
from gradtx.inputs import check_order
from gradtx.leaves import Aligned, parameters_of
from gradtx.lengths import Length
from gradtx.precision.lost import share_lost
from gradtx.precision.narrow import is_narrow, moves
from gradtx.wrappers.accumulate import reported_skip
from gradtx.wrappers.rates import Path, learning_rates_of, places_of
from gradtx.wrappers.steps import counted, is_step


class MetricsState(NamedTuple):
    """The state of `with_metrics`.

    Attributes:
        count: the number of steps, int32, without the calls in which a wrapper inside held the step
            back.
        measurements: name -> scalar; several learning rates are a dictionary of their own.
        inner_state: the state of the wrapped transformation.
    """

    count: jax.Array
    measurements: dict[str, Any]
    inner_state: Any

    def measured(self) -> dict[str, Any]:
        """What `metrics` reads: name -> scalar, or several by place."""
        return {"step": self.count, **self.measurements}


def with_metrics(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Record at each step what goes into a transformation and what comes out of it.

        gradient_norm = ||g||,    update_norm = ||u||,    update_ratio = ||u|| / ||p||

    `gradtx.metrics(state)` reads the values of the last call. Wrap the whole optimizer, so that g
    is the gradient before any clipping, and u what is added to the parameters. While a `MultiSteps`
    inside collects gradients, or an `apply_if_finite` skips one, g is that gradient, u is zero, and
    the number of steps does not change.

    Where parameters have a real dtype below 32 bits, one more number says how many of their
    elements an update does not move:

        lost_to_rounding = sum_i [u_i != 0 and round(p_i + u_i) = p_i] / sum_i [u_i != 0]

    If it is large, most of the training is lost: `with_stochastic_rounding`, `with_kahan_sum` and
    `with_master_weights` lose nothing, and it is 0 around them.

    The learning rate is recorded too, where `tx` is made of transformations of this library: that
    of each `scale_by_learning_rate`, and of any other kernel with a hyperparameter of this name. A
    schedule is evaluated at the count in its own state, which does not advance while steps are
    skipped or gradients accumulate. Nothing is recorded from inside `inject_hyperparams`, whose
    state has the learning rate already, nor from inside optax's transformations.

    Args:
        tx: any transformation. Its updates pass unchanged.

    Returns:
        A transformation with the state `MetricsState(count, measurements, inner_state)`. Norms are
        taken over the leaves that have an update, in at least float32, and are 0 before the first
        step. The ratio is 0 if both norms are zero, infinite if only that of the parameters is. It
        is NaN if `update` is called without parameters, and so is the share that is lost, which
        otherwise is 0 if all updates are.

    Raises:
        ValueError: if `tx` is not a transformation; in `update`, if the parameters or the updates
            of `tx` differ in structure from the gradient.

    Source:
        The ratio: Karpathy, "CS231n: neural networks, part 3", section "Ratio of weights:updates",
        for all layers together.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.with_metrics(gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.sgd(0.1)))
        >>> params = jnp.array([0.0, 2.0])
        >>> _, state = tx.update(jnp.array([3.0, 4.0]), tx.init(params), params)
        >>> for name, value in gradtx.metrics(state).items():
        ...     print(f"{name} {value:.2f}")
        gradient_norm 5.00
        learning_rate 0.10
        step 1.00
        update_norm 0.10
        update_ratio 0.05
    """
    owner = "with_metrics"
    inner = as_transformation(owner, "tx", tx)

    def learning_rates(inner_state: Any) -> dict[str, Any]:
        found = list(learning_rates_of(inner, inner_state))
        places = places_of([path for path, _ in found])
        rates = {place: rate for place, (_, rate) in zip(places, found, strict=True)}
        return {"learning_rate": rates.get("", rates)} if rates else {}

    def init(params: Any) -> MetricsState:
        inner_state = inner.init(params)
        leaves = parameters_of(params)
        measurements = {name: jnp.zeros([], norms.widest(leaves)) for name in _NORMS}
        if any(map(is_narrow, leaves)):
            measurements[_LOST] = jnp.zeros([], jnp.float32)
        measurements |= learning_rates(inner_state)
        return MetricsState(jnp.zeros([], jnp.int32), measurements, inner_state)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        new, inner_state = inner.update(updates, state.inner_state, params, **extra)
        measurements = _norms(owner, updates, new, params) | learning_rates(state.inner_state)
        if _LOST in state.measurements:
            measurements[_LOST] = _share_lost(owner, new, params)
        measurements = jax.tree.map(
            lambda old, value: value.astype(old.dtype), state.measurements, measurements
        )
        count = counted(is_step(state.inner_state, inner_state, new), state.count)
        return new, MetricsState(count, measurements, inner_state)

    return composed(owner, (Part("", inner),), init, update, state=MetricsState, effect=LINEAR)


_NORMS = ("gradient_norm", "update_norm", "update_ratio")
_LOST = "lost_to_rounding"


def _norms(owner: str, gradients: Any, updates: Any, params: Any) -> dict[str, jax.Array]:
    size = norms.norm_of_leaves(parameters_of(gradients))
    change = norms.length_of_leaves(parameters_of(updates))
    ratio = jnp.full_like(change.size, jnp.nan)
    if params is not None:
        moved = Aligned(
            owner,
            {"updates": updates, "params": params},
            takes_part=lambda *leaf: all(map(trees.is_parameter, leaf)),
            same_shapes=False,
        )
        ratio = _ratio(change, norms.length_of_leaves(moved.arrays("params")))
    return dict(zip(_NORMS, (size, change.norm, ratio), strict=True))


def _ratio(change: Length, whole: Length) -> jax.Array:
    """The quotient of two norms, also where they lie beyond the range of their dtype."""
    dtype = np.promote_types(change.size.dtype, whole.size.dtype)
    change, whole = change.astype(dtype), whole.astype(dtype)
    is_nothing = (change.size == 0) & (whole.size == 0)
    return change.size / jnp.where(is_nothing, 1, whole.size) * (whole.unit / change.unit)


def _share_lost(owner: str, updates: Any, params: Any) -> jax.Array:
    if params is None:
        return jnp.full([], jnp.nan, jnp.float32)
    narrow = Aligned(owner, {"params": params, "the updates": updates}, takes_part=moves)
    return share_lost(narrow.arrays(), narrow.arrays("the updates"))


def metrics(state: Any) -> dict[str, jax.Array]:
    """Read from an optimizer's state what is worth watching, however the state is nested.

    It returns what it finds of

        learning_rate        of `inject_hyperparams`, `with_metrics` and line searches
        gradient_norm, update_norm, update_ratio, step
                             of `with_metrics`
        lost_to_rounding     of `with_metrics`: the share of the updates of half-precision
                             parameters that rounding loses
        skipped_steps        of `apply_if_finite`: how many gradients so far were not finite
        consecutive_skipped  of `apply_if_finite`: how many of them came last in a row
        learning_rate_scale  of `reduce_on_plateau`
        gradient_step, mini_step
                             of `MultiSteps`: the number of steps so far, and of gradients that have
                             been collected for the next
        last_skipped         of `MultiSteps` with `should_skip_update_fn`: whether the last gradient
                             was skipped

    and every scalar of `snapshot` and `monitor`, under its own name. Where a name occurs more than
    once, each is followed by its place, as in "learning_rate/matrices": the keys of the
    dictionaries that lead to it, such as the labels of `partition` and `named_chain`, or, where
    these are the same, its whole path, which is empty for the outermost transformation.

    Args:
        state: the state of any transformation, of this library or optax.

    Returns:
        A dictionary of scalars. The function can be called inside a compiled function, and under
        `jax.vmap` for many states at once. Outside, the scalars are the state's own arrays, and are
        deleted with it if it is donated.

    Raises:
        ValueError: if `state` is a transformation.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> rates = {"matrices": gradtx.sgd(0.02), "others": gradtx.sgd(0.001)}
        >>> labels = gradtx.select.groups({"matrices": "kernel"}, rest="others")
        >>> tx = gradtx.with_metrics(gradtx.partition(rates, labels))
        >>> state = tx.init({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)})
        >>> for name, value in gradtx.metrics(state).items():
        ...     print(f"{name} {value:.3f}")
        gradient_norm 0.000
        learning_rate/matrices 0.020
        learning_rate/others 0.001
        step 0.000
        update_norm 0.000
        update_ratio 0.000
    """
    check_order("metrics", state, None)
    found: dict[str, list[tuple[Path, Any]]] = {}
    for name, path, value in _measurements(state, ()):
        found.setdefault(name, []).append((path, value))
    return {
        f"{name}/{place}" if place else name: value
        for name, values in sorted(found.items())
        for place, (_, value) in zip(places_of([path for path, _ in values]), values, strict=True)
    }


def _measurements(state: Any, path: Path) -> Iterator[tuple[str, Path, Any]]:
    """The name, the place and the value of each measurement in a state."""
    fields = getattr(state, "_fields", None)
    if fields is not None:
        for below, value in jax.tree_util.tree_leaves_with_path(_measured(state)):
            yield below[0].key, (*path, *below[1:]), value
        for field in fields:
            yield from _measurements(getattr(state, field), (*path, GetAttrKey(field)))
        return
    named, _ = jax.tree_util.tree_flatten_with_path(state, is_leaf=lambda node: node is not state)
    for below, inner in named:
        if inner is not state:
            yield from _measurements(inner, (*path, *below))


def _measured(state: Any) -> dict[str, Any]:
    """What a single state tells, without those inside it."""
    if callable(getattr(state, "measured", None)):
        return state.measured()
    return next((read(state) for own, read in _READERS.items() if isinstance(state, own)), {})


def _of_hyperparameters(state: Any) -> dict[str, Any]:
    return {name: value for name, value in state.hyperparams.items() if name == "learning_rate"}


def _of_multi_steps(state: Any) -> dict[str, Any]:
    found = {"last_skipped": reported_skip(state)}  # None is no measurement
    return {"gradient_step": state.gradient_step, "mini_step": state.mini_step, **found}


def _scalars(measurements: Any) -> Any:
    return jax.tree.map(lambda value: value if jnp.ndim(value) == 0 else None, measurements)


# What optax's classes tell. One of this library's own has a method `measured`.
_READERS: dict[type, Callable[[Any], dict[str, Any]]] = {
    optax.InjectHyperparamsState: _of_hyperparameters,
    optax.InjectStatefulHyperparamsState: _of_hyperparameters,
    optax.ApplyIfFiniteState: lambda state: {
        "skipped_steps": state.total_notfinite,
        "consecutive_skipped": state.notfinite_count,
    },
    optax.MultiStepsState: _of_multi_steps,
    ReduceLROnPlateauState: lambda state: {"learning_rate_scale": state.scale},
    SnapshotState: lambda state: _scalars(state.measurement),
    MonitorState: lambda state: _scalars(state.measurements),
    optax.ScaleByBacktrackingLinesearchState: lambda state: {"learning_rate": state.learning_rate},
    optax.ScaleByZoomLinesearchState: lambda state: {"learning_rate": state.learning_rate},
}
