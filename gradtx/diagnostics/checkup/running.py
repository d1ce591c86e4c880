"""Batch norms that use the averages of training before there has been any."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.subject import Subject, place_of
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.patterns import VIEWS, uses_of


def fresh_averages(subject: Subject) -> Iterator[Finding]:
    """A signal that is normalized by means of zero and variances of one that were passed in."""
    pairs = list(_pairs(subject))
    if not pairs:
        return
    names = [subject.name(mean) for mean, _, _ in pairs]
    yield Finding(
        "running_average",
        "warning",
        f"the batch norm subtracts {names[0]} and divides by {subject.name(pairs[0][1])}, which "
        "are 0 and 1 as at the beginning: it normalizes nothing"
        f"{f', as {len(pairs) - 1} others do' if len(pairs) > 1 else ''}.",
        "train with the statistics of the batch (use_running_average=False, training=True), and "
        "keep the averages that come back.",
        place=place_of(names),
        source=pairs[0][2].line,
        evidence={"norms": len(pairs)},
    )


def _pairs(subject: Subject) -> Iterator[tuple[Value, Value, Node]]:
    """The means and variances, and where the means are subtracted."""
    vectors = [v for v in subject.data if v.size > 1 and jnp.issubdtype(v.dtype, jnp.floating)]
    variances = [v for v in vectors if _is_root_taken(v) and np.all(subject.array(v) == 1)]
    for mean in vectors if variances else ():
        for node, i in uses_of(mean):
            is_centering = node.name == "sub" and i == 1 and subject.is_trained(node.inputs[0])
            if not is_centering or np.any(subject.array(mean)):
                continue
            for variance in variances:
                scaled = {user for user, _ in uses_of(node.output)}
                if variance.shape == mean.shape and scaled & set(_scalings(subject, variance)):
                    yield mean, variance, node
                    break


def _is_root_taken(value: Value) -> bool:
    users = (user for user, _ in uses_of(value, VIEWS | {"add"}))
    return any(user.name in ("sqrt", "rsqrt") for user in users)


def _scalings(subject: Subject, variance: Value) -> Iterator[Node]:
    """The operations that scale by the root of a variance, perhaps times a gain."""

    def crosses(node: Node, i: int) -> bool:
        is_gain = node.name == "mul" and not subject.is_given(node.inputs[1 - i])
        return is_gain or node.name in VIEWS | {"add", "sqrt", "rsqrt"}

    for value in subject.graph.downstream(variance, crosses):
        yield from (user for user, _ in value.users if user.name in ("mul", "div"))
