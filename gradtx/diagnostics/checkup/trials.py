"""Short runs of training on one batch, to see whether an optimizer and a loss go together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from gradtx import trees
from gradtx.diagnostics.checkup.subject import Subject

# A loss has fallen if it is lower by this share of its first value.
FALL = 0.01
STEPS, _TOGETHER = 40, 10


@dataclass(frozen=True, eq=False)
class Trial:
    """A run on one batch.

    Attributes:
        losses: the loss before each step, and after the last one.
        gradient_norms: the norm of the whole gradient before each step.
        update_norms: the norm of the whole update in each step.
    """

    losses: np.ndarray
    gradient_norms: np.ndarray
    update_norms: np.ndarray

    @property
    def fall(self) -> float:
        """By how much the loss has fallen in the end, relative to its first value."""
        last = float(np.mean(self.losses[-3:]))
        if not np.isfinite(last):
            return -np.inf
        first = float(self.losses[0])
        # What float32 cannot tell from zero is no fall, even if the first loss is zero.
        return (first - last) / max(abs(first), 1e-6)

    @property
    def has_fallen(self) -> bool:
        """Whether the loss has clearly fallen."""
        return self.fall > FALL


@dataclass(eq=False)
class Trials:
    """The runs of a loss with an optimizer.

    Attributes:
        subject: the loss, its parameters and the batch.
        tx: the optimizer.
    """

    subject: Subject
    tx: optax.GradientTransformation

    def run(self, factor: float = 1.0, *, steps: int = STEPS, until: float = np.inf) -> Trial:
        """A run with the updates of the optimizer, multiplied by a factor.

        Args:
            factor: what each update is multiplied by.
            steps: the number of steps, a multiple of 10.
            until: how far the loss has to fall for the run to stop early, see `Trial.fall`.
        """
        traced = self.subject.traced
        params, state = traced.params, self._initial(traced.params)
        measured: list[np.ndarray] = []
        while True:
            params, state, last, each = self._compiled(
                params, state, traced.data, jnp.float32(factor)
            )
            measured.append(np.asarray(jax.device_get(each), float))
            losses, gradient_norms, update_norms = np.concatenate(measured, 1)
            trial = Trial(np.append(losses, float(last)), gradient_norms, update_norms)
            if len(gradient_norms) >= steps or trial.fall > until:
                return trial

    def first_update(
        self, gradients: Sequence[Any], params: Sequence[Any] | None = None
    ) -> list[np.ndarray]:
        """The first update of each parameter, for some gradients."""
        params = self.subject.traced.params if params is None else params
        return jax.device_get(self._first(list(gradients), list(params)))

    @functools.cached_property
    def updates(self) -> list[np.ndarray]:
        """The first update of each parameter, for the gradient of the loss."""
        return self.first_update(self.subject.gradients)

    @functools.cached_property
    def _first(self) -> Callable[..., Any]:
        def update(gradients: Any, params: Any) -> Any:
            tree = self.subject.as_tree(params)
            return self._update(gradients, self.tx.init(tree), params, jnp.zeros(()))[0]

        return jax.jit(update)

    @functools.cached_property
    def _initial(self) -> Callable[..., Any]:
        return jax.jit(lambda params: self.tx.init(self.subject.as_tree(params)))

    @functools.cached_property
    def _compiled(self) -> Callable[..., Any]:
        traced = self.subject.traced

        def run(params: Any, state: Any, data: Any, factor: jax.Array) -> Any:
            def step(carry: Any, _: None) -> Any:
                params, state = carry
                loss, gradients = jax.value_and_grad(traced.call)(params, data)
                updates, state = self._update(gradients, state, params, loss, data)
                updates = [(factor * u).astype(u.dtype) for u in updates]
                params = optax.apply_updates(params, updates)
                return (params, state), (loss, _norm(gradients), _norm(updates))

            (params, state), each = lax.scan(step, (params, state), length=_TOGETHER)
            return params, state, traced.call(params, data), each

        return jax.jit(run)

    def _update(
        self, gradients: Any, state: Any, params: Any, loss: jax.Array, data: Any = None
    ) -> tuple[list[jax.Array], Any]:
        """One update; some optimizers want to know the loss, or to evaluate it elsewhere."""
        data = self.subject.traced.data if data is None else data
        tree = self.subject.as_tree(gradients)
        updates, state = optax.with_extra_args_support(self.tx).update(
            tree,
            state,
            self.subject.as_tree(params),
            value=loss,
            grad=tree,
            value_fn=lambda params: self.subject.traced.call(jax.tree.leaves(params), data),
        )
        return jax.tree.leaves(updates), state


def _norm(arrays: Sequence[jax.Array]) -> jax.Array:
    total = sum((jnp.sum(jnp.square(jnp.abs(a.astype(_wide(a))))) for a in arrays), jnp.zeros(()))
    return jnp.sqrt(total)


def _wide(array: jax.Array) -> np.dtype:
    return trees.compute_dtype(array.dtype)
