"""One step for several mini-batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike, DTypeLike

from gradtx import trees
from gradtx.arguments import COUNT, check_dtype, check_flag, check_hyperparameter, evaluate
from gradtx.compose.parts import Part, composed, widens
from gradtx.compose.sequence import as_transformation
from gradtx.effect import Effect
from gradtx.inputs import as_gradients, check_state
from gradtx.joined import run_wide
from gradtx.leaves import Aligned, equation, map_parameters
from gradtx.messages import shown
from gradtx.placement import zeros_beside
from gradtx.wrappers.branches import either, zeros_like

_OWNER = "MultiSteps"
_TOTAL = "the state's acc_grads"


class MultiSteps:
    """Collect the gradients of k mini-batches, then take one step with their mean.

        a_n = a_{n-1} + (g_n - a_{n-1}) / n,    a_0 = 0
        u_n = inner(a_k) if n = k, else 0

    This equals the step on a batch k times as large, provided that the loss is a mean over samples
    and all mini-batches have the same size. In the other k - 1 mini-steps the updates are zero; the
    inner transformation does not run, and its state does not change. Its schedules count steps, not
    mini-steps.

    Args:
        opt: the transformation that takes the steps.
        every_k_schedule: k, a whole number >= 1, or a function of the number of steps taken so
            far that returns it.
        use_grad_mean: whether the gradients are averaged. False: a_n = a_{n-1} + g_n.
        should_skip_update_fn: a function of (gradient, number of steps, params) that returns a
            boolean scalar, whether to skip the mini-batch as if it had not occurred, and a tree to
            keep in the state's `skip_state`; for example `skip_not_finite`. None: nothing is
            skipped.
        accumulator_dtype: the storage dtype of the accumulated gradients; None: the parameter's, at
            least float32. optax uses float32 for float64 and complex parameters too.

    Attributes:
        inner_opt: the transformation that takes the steps.

    Raises:
        ValueError: if `every_k_schedule` is not a whole number >= 1, `opt` not a transformation,
            or `accumulator_dtype` not an inexact dtype.

    Source:
        Goyal et al. 2017, "Accurate, large minibatch SGD", section 2: the mean over samples.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.MultiSteps(gradtx.sgd(0.5), every_k_schedule=2)
        >>> state = tx.init(jnp.zeros(1))
        >>> for gradient in [1.0, 3.0]:
        ...     updates, state = tx.update(jnp.array([gradient]), state)
        ...     print(updates, tx.has_updated(state))
        [0.] False
        [-1.] True
    """

    def __init__(
        self,
        opt: optax.GradientTransformation,
        every_k_schedule: int | Callable[[jax.Array], ArrayLike],
        use_grad_mean: bool = True,
        should_skip_update_fn: optax.ShouldSkipUpdateFunction | None = None,
        accumulator_dtype: DTypeLike | None = None,
    ) -> None:
        self._opt = as_transformation(_OWNER, "opt", opt)
        every_k_schedule = check_hyperparameter(_OWNER, "every_k_schedule", every_k_schedule, COUNT)
        self._every_k_schedule = every_k_schedule
        self._use_grad_mean = check_flag("MultiSteps", "use_grad_mean", use_grad_mean)
        if should_skip_update_fn is not None and not callable(should_skip_update_fn):
            raise ValueError(
                f"{_OWNER}: should_skip_update_fn must be a function, got "
                f"{shown(should_skip_update_fn)}"
            )
        self._should_skip_update_fn = should_skip_update_fn
        self._dtype = check_dtype(_OWNER, "accumulator_dtype", accumulator_dtype)

    @property
    def inner_opt(self) -> optax.GradientTransformationExtraArgs:
        """The transformation that takes the steps."""
        return self._opt

    def init(self, params: Any) -> optax.MultiStepsState:
        """The state before the first mini-step."""
        gradient_step = jnp.zeros([], jnp.int32)
        _, skip_state = self._should_skip(zeros_like(params), gradient_step, params)
        return optax.MultiStepsState(
            mini_step=jnp.zeros([], jnp.int32),
            gradient_step=gradient_step,
            inner_opt_state=self._opt.init(params),
            acc_grads=map_parameters(self._start, params),
            skip_state=skip_state,
        )

    def update(
        self, updates: Any, state: optax.MultiStepsState, params: Any = None, **extra: Any
    ) -> tuple[Any, optax.MultiStepsState]:
        """Take one mini-step, whose updates are zero unless it completes a step.

        Args:
            updates: the gradient of a mini-batch.
            state: the state.
            params: the parameters, if the inner transformation needs them.
            **extra: extra arguments of the inner transformation, which sees only those of the last
                mini-step.

        Returns:
            The updates and the new state.

        Raises:
            ValueError: if the gradient and the state do not match.
        """
        check_state(_OWNER, state, optax.MultiStepsState._fields)
        updates = as_gradients(updates, params)
        skip, skip_state = self._should_skip(updates, state.gradient_step, params)
        mini_step = jnp.asarray(state.mini_step)
        is_last = mini_step + 1 >= self._number_of_mini_steps(state.gradient_step)
        emit = is_last if skip is None else is_last & ~skip
        aligned = Aligned(_OWNER, {"updates": updates, _TOTAL: state.acc_grads})
        gradients, totals = aligned.arrays(), aligned.arrays(_TOTAL)
        for i, gradient, total in zip(aligned.active, gradients, totals, strict=True):
            if np.iscomplexobj(gradient):
                trees.refuse_real(_OWNER, aligned.path(i), gradient, "acc_grads", total)
        accumulated = _mean if self._use_grad_mean else _sum

        def with_this() -> list[jax.Array]:
            return [accumulated(a, g, n=mini_step) for a, g in zip(totals, gradients, strict=True)]

        def step() -> Any:
            wide, inner_state = aligned.tree_of(with_this()), state.inner_opt_state
            new, inner_state = run_wide(self._opt.update, wide, updates, inner_state, params, extra)
            return new, (inner_state, aligned.tree_of(map(jnp.zeros_like, totals), _TOTAL))

        def wait() -> Any:
            kept = with_this()
            if skip is not None:
                kept = [jnp.where(skip, *pair) for pair in zip(totals, kept, strict=True)]
            return zeros_like(updates), (state.inner_opt_state, aligned.tree_of(kept, _TOTAL))

        old = (state.inner_opt_state, state.acc_grads)
        new_updates, (inner_state, acc_grads) = either(
            _OWNER, emit, step, wait, updates, old, wide=widens(self._opt)
        )
        next_mini_step = jnp.where(is_last, 0, mini_step + 1)
        if skip is not None:
            next_mini_step = jnp.where(skip, mini_step, next_mini_step)
        gradient_step = optax.safe_increment(state.gradient_step)
        return new_updates, optax.MultiStepsState(
            mini_step=next_mini_step,
            gradient_step=jnp.where(emit, gradient_step, state.gradient_step),
            inner_opt_state=inner_state,
            acc_grads=acc_grads,
            skip_state=skip_state,
        )

    def has_updated(self, state: optax.MultiStepsState) -> jax.Array:
        """Whether the last mini-step completed a step, so that its updates were not just zeros.

        A mini-batch that was skipped completes none, if `skip_state` tells so under "should_skip",
        as that of `skip_not_finite` does. (optax repeats its answer for the mini-step before.)
        """
        is_done = (jnp.asarray(state.mini_step) == 0) & (jnp.asarray(state.gradient_step) > 0)
        return is_done & ~jnp.asarray(reported_skip(state, default=False))

    def gradient_transformation(self) -> optax.GradientTransformationExtraArgs:
        """This as optax's pair of functions, for use in a chain."""
        # Functions, because copying a bound method would copy this object too.
        return composed(
            _OWNER,
            (Part("", self._opt),),
            lambda params: self.init(params),
            lambda *arguments, **extra: self.update(*arguments, **extra),
            state=optax.MultiStepsState,
            effect=Effect(degree=1, states=("inner_opt_state",), clock=True),
        )

    def _start(self, parameter: Any) -> jax.Array:
        own = jnp.result_type(parameter)
        dtype = trees.compute_dtype(own) if self._dtype is None else self._dtype
        if jnp.issubdtype(own, jnp.complexfloating) and jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"{_OWNER}: acc_grads of a complex parameter does not fit into {dtype}"
            )
        return zeros_beside(parameter, dtype)

    def _should_skip(
        self, updates: Any, gradient_step: ArrayLike, params: Any
    ) -> tuple[jax.Array | None, Any]:
        if self._should_skip_update_fn is None:
            return None, ()
        skip, skip_state = self._should_skip_update_fn(updates, gradient_step, params)
        if jnp.shape(skip) != () or not jnp.issubdtype(jnp.result_type(skip), bool):
            raise ValueError(
                f"{_OWNER}: should_skip_update_fn must return a boolean scalar, got "
                f"{jnp.result_type(skip)} of shape {jnp.shape(skip)}"
            )
        return jnp.asarray(skip), skip_state

    def _number_of_mini_steps(self, gradient_step: ArrayLike) -> jax.Array:
        every_k = self._every_k_schedule
        if callable(every_k):
            return evaluate(every_k, jnp.asarray(gradient_step)).astype(jnp.int32)
        return jnp.asarray(every_k).astype(jnp.int32)


def reported_skip(state: optax.MultiStepsState, default: Any = None) -> Any:
    """Whether the last mini-batch was skipped, where `skip_state` tells."""
    told: Any = state.skip_state
    return told.get("should_skip", default) if isinstance(told, Mapping) else default


@equation()
def _mean(a: jax.Array, g: jax.Array, *, n: jax.Array) -> jax.Array:
    """The mean of n gradients before this one, with this one."""
    # The difference of two large gradients would overflow.
    return jnp.where(n == 0, g, a + (g / (n + 1) - a / (n + 1)))


@equation()
def _sum(a: jax.Array, g: jax.Array, *, n: jax.Array) -> jax.Array:
    """The sum of n gradients before this one, with this one."""
    return jnp.where(n == 0, g, a + g)
