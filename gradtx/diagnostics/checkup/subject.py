"""What is examined: a loss with its parameters and a batch, and what is known about it so far."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import trees
from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.signal.learning import IdleParameter, idle_parameters
from gradtx.diagnostics.signal.report import SignalReport
from gradtx.diagnostics.signal.signals import report_of
from gradtx.diagnostics.tracing.attention import Attention, attentions
from gradtx.diagnostics.tracing.axes import Axes
from gradtx.diagnostics.tracing.dropouts import Dropout, dropouts
from gradtx.diagnostics.tracing.graph import Graph, Node, Value
from gradtx.diagnostics.tracing.observe import Measure, Measured, observer
from gradtx.diagnostics.tracing.patterns import Sigmoid, Softmax, sigmoids, softmaxes
from gradtx.diagnostics.tracing.targets import (
    BinaryCrossEntropy,
    CrossEntropy,
    binary_cross_entropies,
    cross_entropies,
)
from gradtx.diagnostics.tracing.traced import TracedLoss, trace_loss
from gradtx.messages import shown


@dataclass(eq=False)
class Subject:
    """A loss, its parameters and a batch. What several examinations need is computed once.

    Attributes:
        traced: the loss, traced.
        classes: the number of classes, if it was given.
        tx: the optimizer, if it was given.
        loss_fn: the loss as it was given.
        given: the parameters as they were given.
        batch: the further arguments of the loss, as they were given.
        has_aux: whether the loss returns a pair of the loss and something else.
        measured: what was measured of single operations.
        observed: measures the same of other data, without being compiled again.
    """

    traced: TracedLoss
    classes: int | None = None
    tx: Any = None
    loss_fn: Any = None
    given: Any = None
    batch: tuple[Any, ...] = ()
    has_aux: bool = False
    measured: dict[Node, Measured] = field(default_factory=dict)
    observed: Callable[[Sequence[jax.Array]], dict[Node, Measured]] | None = None

    @functools.cached_property
    def graph(self) -> Graph:
        """The loss as a graph."""
        return Graph(self.traced.closed_jaxpr)

    @functools.cached_property
    def report(self) -> SignalReport | None:
        """What `signal_report` says; None: the loss has no layer."""
        return report_of(self.traced)

    @functools.cached_property
    def idle(self) -> tuple[IdleParameter, ...]:
        """The parameters without a gradient, and why."""
        if self.report is not None:
            return self.report.idle_parameters
        return idle_parameters(self.traced, [bool(np.any(g)) for g in self.gradients], ())

    @functools.cached_property
    def loss_and_gradients(self) -> tuple[float, list[np.ndarray]]:
        """The loss, and its gradient with respect to each parameter; NaN: it has none."""
        params, data = self.traced.params, self.traced.data
        if self.endless_loop is not None:
            value = jax.jit(self.traced.call)(params, data)
            return float(value), [np.full(p.shape, np.nan, p.dtype) for p in params]
        run = jax.jit(jax.value_and_grad(self.traced.call))
        value, gradients = jax.device_get(run(params, data))
        return float(value), gradients

    @functools.cached_property
    def endless_loop(self) -> Node | None:
        """A loop of unknown length that trained values pass, which has no gradient in reverse."""
        return next(
            (
                node
                for node in self.graph.named("loop_carry")
                if node.equation.primitive.name == "while"
                and not node.has_own_derivative
                and self.is_trained(node.output)
                and jnp.issubdtype(node.output.dtype, jnp.inexact)
            ),
            None,
        )

    @functools.cached_property
    def loss_of(self) -> Callable[[Sequence[jax.Array]], jax.Array]:
        """The loss of other data, as a compiled function."""
        return jax.jit(functools.partial(self.traced.call, self.traced.params))

    @property
    def loss(self) -> float:
        """The loss of the batch."""
        return self.loss_and_gradients[0]

    @property
    def gradients(self) -> list[np.ndarray]:
        """The gradient with respect to each parameter."""
        return self.loss_and_gradients[1]

    @functools.cached_property
    def is_finite(self) -> bool:
        """Whether the loss is finite, and its gradient if it has one."""
        if not np.isfinite(self.loss) or self.endless_loop is not None:
            return bool(np.isfinite(self.loss))
        return all(np.isfinite(g.astype(np.complex64)).all() for g in self.gradients)

    @functools.cached_property
    def updates(self) -> dict[str, jax.Array]:
        """The first update of each parameter by the optimizer, before it is added."""
        params = self.as_tree(self.traced.params)
        gradients = self.as_tree([jnp.asarray(gradient) for gradient in self.gradients])
        updates, _ = self.tx.update(gradients, self.tx.init(params), params)
        return dict(zip(self.traced.names, jax.tree.leaves(updates), strict=True))

    def as_tree(self, arrays: Sequence[Any]) -> Any:
        """One array for each parameter as the tree that an optimizer takes."""
        leaves, treedef = jax.tree.flatten(self.given)
        remaining = iter(arrays)
        return treedef.unflatten(
            next(remaining) if trees.is_trained(leaf) else None for leaf in leaves
        )

    @functools.cached_property
    def zeros_that_learn(self) -> list[Value]:
        """The parameters that are exactly zero, and whose gradient is not."""
        return [
            value
            for value, array, gradient in zip(
                self.parameters, self.traced.params, self.gradients, strict=True
            )
            if value.size and not np.any(array) and np.any(gradient)
        ]

    @functools.cached_property
    def softmaxes(self) -> list[Softmax]:
        """The softmaxes and their logarithms."""
        return softmaxes(self.graph)

    @functools.cached_property
    def attentions(self) -> list[Attention]:
        """The softmaxes that weight a sum of values.

        A product of a classifier's probabilities with targets is none.
        """
        return [
            one
            for one in attentions(self.graph, self.softmaxes)
            if all(map(self.is_given, one.scores.inputs)) or any(map(self.is_trained, _others(one)))
        ]

    @functools.cached_property
    def sigmoids(self) -> list[Sigmoid]:
        """The sigmoids and their logarithms."""
        return sigmoids(self.graph)

    @functools.cached_property
    def cross_entropies(self) -> list[CrossEntropy]:
        """The cross-entropies with labels that are not trained."""
        return cross_entropies(self.graph, self.is_trained, self.softmaxes)

    @functools.cached_property
    def binary_cross_entropies(self) -> list[BinaryCrossEntropy]:
        """The cross-entropies of two classes with targets that are not trained."""
        return binary_cross_entropies(self.graph, self.is_trained, self.sigmoids)

    @functools.cached_property
    def dropouts(self) -> list[Dropout]:
        """The dropouts of what is made of parameters and data."""
        return dropouts(self.graph, lambda one: self.is_trained(one) and self.is_given(one))

    @property
    def parameters(self) -> list[Value]:
        """The parameters, as values of the graph."""
        return self.graph.arguments[: len(self.traced.params)]

    @property
    def data(self) -> list[Value]:
        """The arrays among the other arguments, as values of the graph."""
        return self.graph.arguments[len(self.traced.params) :]

    @functools.cached_property
    def examples(self) -> int | None:
        """The number of examples in the batch; None: its arrays have no common first axis.

        Each argument has one vote, which counts more if its arrays have many axes: the averages of
        a batch norm, or the weights of a frozen network, do not outvote the batch.
        """
        by_argument: dict[str, list[Value]] = defaultdict(list)
        for value in self.data:
            if value.shape:
                by_argument[self.name(value).split("]")[0]].append(value)
        votes: dict[int, float] = defaultdict(float)
        for values in by_argument.values():
            for size in {value.shape[0] for value in values}:
                mine = [len(value.shape) for value in values if value.shape[0] == size]
                votes[size] += max(mine) * len(mine) / len(values)
        if not votes:
            return None
        size = max(votes, key=lambda size: votes[size])
        return size if 2 * votes[size] > sum(votes.values()) else None

    @property
    def given_data(self) -> list[Any]:
        """The arrays of the data as they were given, before they became arrays of jax."""
        leaves, others = jax.tree.leaves(self.given), jax.tree.leaves(self.batch)
        untrained = [leaf for leaf in leaves if not trees.is_trained(leaf)]
        return [one for one in [*untrained, *others] if hasattr(one, "dtype")]

    @functools.cached_property
    def axes(self) -> Axes:
        """Which axes of the values count the examples."""
        number = self.examples or 0
        leaves = [value for value in self.data if value.shape and value.shape[0] == number > 1]
        return Axes(self.graph, number, leaves)

    def array(self, value: Value) -> np.ndarray:
        """The numbers of an argument or a constant."""
        if value.argument is None:
            return np.asarray(value.constant)
        return np.asarray([*self.traced.params, *self.traced.data][value.argument])

    def name(self, value: Value) -> str:
        """The path of an argument, as it is called in a finding; empty: it is not an argument."""
        if value.argument is None:
            return ""
        return [*self.traced.names, *self.traced.data_names][value.argument]

    def is_trained(self, value: Value) -> bool:
        """Whether a value depends on a parameter."""
        return value.depends & ((1 << len(self.traced.params)) - 1) != 0

    def is_given(self, value: Value) -> bool:
        """Whether a value depends on the batch."""
        return value.depends >> len(self.traced.params) != 0

    def trained_arguments_of(self, value: Value) -> list[Value]:
        """The parameters that a value depends on."""
        return [one for one in self.parameters if value.depends >> (one.argument or 0) & 1]

    def data_with(self, value: Value, array: np.ndarray) -> list[jax.Array]:
        """The data with other numbers for one of its arguments."""
        data = list(self.traced.data)
        data[self.data.index(value)] = jax.device_put(array)
        return data

    def observe(self, requests: Iterable[tuple[Node, Measure]]) -> None:
        """Measure operations, in one evaluation, for `measured`."""
        by_node: dict[Node, list[Measure]] = {}
        for node, measure in requests:
            by_node.setdefault(node, []).append(measure)
        self.observed = observer(self.traced, by_node)
        for node, measured in self.observed(self.traced.data).items():
            self.measured.setdefault(node, {}).update(measured)


def _others(attention: Attention) -> list[Value]:
    """What the weights of an attention are multiplied with."""
    mine = attention.softmax.probabilities
    depends = 0 if mine is None else mine.depends
    return [value for value in attention.values.inputs if value.depends != depends]


@dataclass(frozen=True)
class Examination:
    """One part of a check-up.

    Attributes:
        findings: what it finds.
        requests: the operations that have to be measured for it, and what to measure of each.
    """

    findings: Callable[[Subject], Iterable[Finding]]
    requests: Callable[[Subject], Iterable[tuple[Node, Measure]]] = lambda subject: ()

    @property
    def name(self) -> str:
        """What it examines, as its file is called."""
        return self.findings.__module__.rpartition(".")[2]


def subject_of(
    owner: str,
    loss_fn: Callable[..., Any],
    params: Any,
    batch: Sequence[Any],
    *,
    has_aux: bool,
    classes: int | None = None,
    tx: Any = None,
) -> Subject:
    """What is to be examined, traced.

    Raises:
        ValueError: if the arguments do not describe a loss; see `trace_loss`.
    """
    if classes is not None and (not isinstance(classes, int) or classes < 2):
        raise ValueError(f"{owner}: classes must be an integer of at least 2, got {shown(classes)}")
    traced = trace_loss(owner, loss_fn, params, batch, has_aux=has_aux)
    return Subject(traced, classes, tx, loss_fn, params, tuple(batch), has_aux)


def examine(subject: Subject, *examinations: Examination) -> list[Finding]:
    """The findings of some examinations, which share one evaluation."""
    subject.observe(request for one in examinations for request in one.requests(subject))
    return [
        replace(finding, examination=one.name)
        for one in examinations
        for finding in one.findings(subject)
    ]


def some(names: Sequence[str], most: int = 3) -> str:
    """A few names, and how many more there are."""
    quoted = ", ".join(f"'{name}'" for name in names[:most])
    return f"{quoted} and {len(names) - most:,} more" if len(names) > most else quoted


def place_of(names: Sequence[str], most: int = 20) -> str:
    """The names, as the place of a finding."""
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])])
