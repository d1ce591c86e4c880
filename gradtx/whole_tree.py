"""The equations of a kernel on the whole tree, which come before its step on each leaf."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from gradtx import norms, trees
from gradtx.arguments import real_number
from gradtx.bounds import bounded_each
from gradtx.joined import Leaves
from gradtx.kernel import Kernel, Slot, measure_arguments
from gradtx.leaf import as_scalar, scalar_step_of


@dataclass(frozen=True)
class WholeTree:
    """What the steps of the leaves share: measures, factors and the scalars of the state.

    Attributes:
        kernel: the kernel.
        owner: the function that the user called, which opens the messages.
        slots: the kernel's slots, with the dtypes that the user asked for.
        static: the hyperparameters and options that are compiled into the steps.
    """

    kernel: Kernel
    owner: str
    slots: tuple[Slot, ...]
    static: dict[str, Any]

    def measured(
        self,
        leaves: Leaves,
        active: list[int],
        slots: list[list[Any]],
        values: dict[str, Any],
        t: Any,
        inner: Any,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the step on a leaf takes of the whole tree, and the new scalars of the state.

        Args:
            leaves: the leaves on their way through the chain.
            active: the numbers of those that have a gradient.
            slots: for each slot what the state has for each leaf.
            values: the hyperparameters that are arguments of the compiled step.
            t: the number of this step; None: nothing counts it.
            inner: the state that holds the slots.
        """
        kernel = self.kernel
        if not (kernel.scalar_step or kernel.measures or kernel.scalars or kernel.extras):
            return values, {}
        if kernel.measures:
            leaves.take_steps(rounded=False)
        own_leaves = [leaves.leaves[i] for i in active]
        values_of = [leaf.present(leaf.value) for leaf in own_leaves]
        gradients = [g if isinstance(g, jax.Array) else jnp.asarray(g) for g in values_of]
        if kernel.bounded and kernel.measures:
            gradients = bounded_each(gradients, kernel.bounded)
        dtype = norms.widest(gradients)
        kept = {scalar.name: getattr(inner, scalar.name) for scalar in kernel.scalars}
        known: dict[str, Any] = {
            name: as_scalar(jnp.asarray(value), dtype)
            for name, value in (values | kept | self._extras(leaves)).items()
        }
        if t is not None:
            known["t"] = t.astype(dtype)
        given = known | self.static | self._lists(leaves, active, slots)
        for name, measure in kernel.measures.items():
            values[name] = known[name] = measure(
                gradients, **{own: given[own] for own in measure_arguments(measure)}
            )
        factors, new = self._scalar_step(known, kept)
        values |= factors | new
        return {name: values[name] for name in values if name in kernel.arguments}, new

    def _lists(
        self, leaves: Leaves, active: list[int], slots: list[list[Any]]
    ) -> dict[str, list[Any]]:
        """The slots and parameters that a measure asks for, as lists of those of the leaves."""
        measures = self.kernel.measures.values()
        asked = {own for measure in measures for own in measure_arguments(measure)}
        own_leaves = [leaves.leaves[i] for i in active]
        lists = {
            slot.read_as: [
                leaf.present(trees.decoded(own[i]))
                for leaf, i in zip(own_leaves, active, strict=True)
            ]
            for slot, own in zip(self.slots, slots, strict=True)
            if slot.read_as in asked
        }
        if "p" in asked:
            lists["p"] = [leaf.present(leaf.parameter) for leaf in own_leaves]
        return lists

    def _extras(self, leaves: Leaves) -> dict[str, jax.Array]:
        """The extra arguments of `update` that the kernel asks for."""
        for name in self.kernel.extras:
            if leaves.extra.get(name) is None:
                raise ValueError(
                    f"{self.owner}: needs {name}; call update(updates, state, params, {name}=...)"
                )
        return {
            name: real_number(f"{self.owner}: {name}", leaves.extra[name])
            for name in self.kernel.extras
        }

    def _scalar_step(
        self, known: dict[str, Any], kept: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The factors and the new scalars of the whole tree."""
        kernel = self.kernel
        if kernel.scalar_step is None:
            return {}, kept
        asked = inspect.signature(kernel.scalar_step).parameters
        static = tuple((name, value) for name, value in self.static.items() if name in asked)
        step: Any = scalar_step_of(kernel.name, kernel.scalar_step, static)
        given = {name: known[name] for name in asked if name in known}
        if any(isinstance(value, Tracer) for value in jax.tree.leaves(given)):
            # It happens once in the program, and a function of its own would take longer to trace.
            step = step.__wrapped__
        result = step(kept, given)
        factors, scalars = (
            {name: result[name] for name in names} for names in (kernel.factors, kept)
        )
        return factors, scalars
