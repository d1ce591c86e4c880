"""A clause of the contract: a public function, and the case that it judges."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradtx.testing.capabilities import CAPABILITIES, arguments_for, check_capabilities
from gradtx.testing.report import ConformanceError, Failure, failure_of
from gradtx.testing.trees import gradients_like, is_parameter, usual_parameters

Level: TypeAlias = Literal["must", "promises"]
ExtraArgs = Mapping[str, Any] | Callable[[Any], Mapping[str, Any]] | None

# Compilation contracts multiplications with additions and reorders sums; each of the few dozen
# operations of an optimizer may therefore be off by a rounding or two.
ULPS = 64.0


class CompiledRun(NamedTuple):
    """Two compiled steps.

    Attributes:
        state: the state before the first step.
        steps: the updates and the state after each step.
        is_retraced: whether the second step was traced again.
    """

    state: Any
    steps: list[tuple[Any, Any]]
    is_retraced: bool


@dataclass(frozen=True, eq=False)
class Case:
    """A transformation with inputs; what several clauses need is computed once.

    Attributes:
        tx: the transformation.
        params: the tree of parameters; they stay the same in all steps.
        extra_args: the extra arguments of the update, or a function of the parameters that
            returns them.
        ulps: how far eager and compiled numbers may differ, see `expect_same`.
        capabilities: what the transformation needs, see `CAPABILITIES`.
    """

    tx: optax.GradientTransformation
    params: Any
    extra_args: ExtraArgs
    ulps: float
    capabilities: frozenset[str] = frozenset()

    def extra(self, params: Any) -> Mapping[str, Any]:
        """The extra arguments of an update at `params`."""
        given = self.extra_args(params) if callable(self.extra_args) else self.extra_args or {}
        return {**arguments_for(self.capabilities, params), **given}

    def gradients(self, step: int) -> Any:
        """The gradients of a step, counted from 1."""
        return gradients_like(self.params, seed=step)

    def update(self, updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        """One step of the transformation."""
        return self.tx.update(updates, state, params, **self.extra(params))

    @functools.cached_property
    def magnitude(self) -> float:
        """The size of the largest parameter."""
        sizes = (
            np.max(np.abs(np.asarray(leaf)), initial=0)
            for leaf in jax.tree.leaves(self.params)
            if is_parameter(leaf)
        )
        return max(map(float, sizes), default=0.0)

    @functools.cached_property
    def state(self) -> Any:
        """The state before the first step."""
        return self.tx.init(self.params)

    @functools.cached_property
    def steps(self) -> list[tuple[Any, Any]]:
        """The updates and the state after each of two eager steps."""
        first = self.update(self.gradients(1), self.state, self.params)
        return [first, self.update(self.gradients(2), first[1], self.params)]

    @functools.cached_property
    def traces(self) -> list[str]:
        """One entry for each trace of the compiled update."""
        return []

    @functools.cached_property
    def compiled(self) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
        """The compiled update. It donates the gradients and the state, as a training step does."""

        def traced(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
            self.traces.append("update")
            return self.update(updates, state, params)

        step = jax.jit(traced, donate_argnums=(0, 1))

        def call(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
            with warnings.catch_warnings():
                # It is fine if no output can reuse a gradient.
                warnings.filterwarnings("ignore", "Some donated buffers were not usable")
                return step(updates, state, params)

        return call

    @functools.cached_property
    def compiled_run(self) -> CompiledRun:
        """Two compiled steps."""
        state = jax.jit(self.tx.init)(self.params)
        first = self.compiled(self.gradients(1), copy(state), self.params)
        traces = len(self.traces)
        second = self.compiled(self.gradients(2), copy(first[1]), self.params)
        return CompiledRun(state, [first, second], len(self.traces) > traces)


def copy(tree: Any) -> Any:
    """A copy of the tree in its own buffers, which may be donated."""
    return jax.tree.map(lambda leaf: jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf, tree)


class Clause:
    """One clause of the contract, to be called with a transformation.

    Attributes:
        name: what the clause is called in messages and in `check_transformation`.
        level: "must" if every transformation has to keep it, "promises" if it is more than that.
        unless: the capabilities that exempt from it, because it changes what they need.
    """

    def __init__(
        self,
        check: Callable[[Case], None],
        name: str,
        level: Level,
        asks: str,
        given: str,
        hint: str,
        unless: Collection[str],
    ) -> None:
        functools.update_wrapper(self, check)
        self.__signature__ = inspect.signature(self.__call__)  # not that of the wrapped function
        self.name, self.level = name, level
        self.unless = check_capabilities(f"the clause '{name}'", unless)
        self._check, self._asks, self._given, self._hint = check, asks, given, hint

    def __call__(
        self,
        tx: optax.GradientTransformation,
        params: Any = None,
        *,
        extra_args: ExtraArgs = None,
        capabilities: Collection[str] = (),
        ulps: float = ULPS,
    ) -> None:
        """Check a transformation against this clause.

        Args:
            tx: the transformation, of gradtx, optax or your own.
            params: a tree of arrays; None: that of `check_transformation`.
            extra_args: the extra arguments that the update needs, or a function of the parameters
                that returns them as a dictionary.
            capabilities: what the transformation needs, see `check_transformation`.
            ulps: how far eager and compiled numbers may differ, in units of the last place of
                the largest number of a leaf.

        Raises:
            ConformanceError: if the transformation breaks the clause.
        """
        params = usual_parameters() if params is None else params
        needs = check_capabilities(f"check_{self.name}", capabilities)
        failure = self.judge(Case(tx, params, extra_args, ulps, needs))
        if failure is not None:
            raise ConformanceError([failure]) from failure.error

    def judge(self, case: Case) -> Failure | None:
        """What is wrong with a case; None: nothing, or its capabilities exempt from the clause."""
        if self.unless & case.capabilities:
            return None
        try:
            self._check(case)
        except Exception as error:
            failure = failure_of(error, self.name, self._asks, self._given, self._hint)
            return replace(failure, hint="; ".join(filter(None, [failure.hint, self._exemption])))
        return None

    @property
    def _exemption(self) -> str:
        """How to say that the transformation needs what the clause changes."""
        ways = [f'`capabilities=("{name}",)`' for name in CAPABILITIES if name in self.unless]
        return f"if it needs that, say so with {' or '.join(ways)}" if ways else ""


def clause(
    name: str,
    *,
    level: Level,
    asks: str,
    hint: str,
    given: str = "standard normal gradients",
    unless: Collection[str] = (),
) -> Callable[[Callable[[Case], None]], Clause]:
    """Make a clause from a function that raises `Violation`, or whatever the transformation raises.

    Args:
        name: the name of the clause.
        level: "must" or "promises".
        asks: what is called or asked for, for the message of a transformation that raises; it
            stands in "expected ... to run".
        hint: what to look at, for a failure that does not know better; without a full stop.
        given: with which input, for a failure that does not say; empty if its other words do.
        unless: the capabilities that exempt from it.
    """
    return functools.partial(
        Clause, name=name, level=level, asks=asks, given=given, hint=hint, unless=unless
    )
