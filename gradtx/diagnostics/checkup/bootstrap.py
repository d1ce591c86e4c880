"""Targets that a network makes itself, and through which the gradient passes."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.marginals import is_in_loss
from gradtx.diagnostics.checkup.ranges import is_measured_by_loss
from gradtx.diagnostics.checkup.subject import Subject, place_of
from gradtx.diagnostics.tracing.flow import is_differentiable
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.patterns import VIEWS, source_of, uses_of

# The future is discounted by a factor of at least this, and less than one.
_LEAST_DISCOUNT = 0.5
_AFTER_PICK = VIEWS | {"neg", "reduce_sum", "select_n"}


def findings(subject: Subject) -> Iterator[Finding]:
    """Returns and advantages of reinforcement learning that are trained to fit the predictions."""
    seen = set()
    for node in subject.graph.named("sub"):
        if not (is_measured_by_loss(node.output) and is_in_loss(subject, node.output)):
            continue
        for i, value in enumerate(node.inputs):
            sum_ = _return(subject, value)
            other = node.inputs[1 - i]
            is_pair = sum_ is not None and subject.is_trained(other) and subject.is_given(other)
            if is_pair and _return(subject, other) is None and _learns(subject, value):
                assert sum_ is not None
                if sum_.line not in seen:
                    seen.add(sum_.line)
                    yield _moves(subject, sum_, is_only=not _learns(subject, other))
    yield from _advantages(subject)


def _learns(subject: Subject, value: Value) -> bool:
    """Whether a gradient passes from a value to a parameter."""
    return any(
        one in subject.parameters for one in subject.graph.upstream(value, is_differentiable)
    )


def _return(subject: Subject, value: Value) -> Node | None:
    """The sum in `reward + discount * prediction`; None: the value is something else."""
    node = _without_stops(value).producer
    if node is None or node.name != "add":
        return None
    for reward, future in (node.inputs, node.inputs[::-1]):
        is_reward = subject.is_given(reward) and not subject.is_trained(reward) and reward.size > 1
        # In a residual step, what is added to is what the prediction is made of.
        if is_reward and not reward.depends & future.depends and _is_discounted(subject, future):
            return node
    return None


def _without_stops(value: Value) -> Value:
    return source_of(value, VIEWS - {"stop_gradient"})


def _is_discounted(subject: Subject, value: Value) -> bool:
    """Whether a value is a prediction, times a discount and perhaps a mask."""
    factors, waiting = [], [_without_stops(value)]
    for one in waiting:
        node = one.producer
        if node is not None and node.name == "mul":
            waiting += map(_without_stops, node.inputs)
        else:
            factors.append(one)
    predictions = [one for one in factors if subject.is_trained(one)]
    others = [one for one in factors if not subject.is_trained(one)]
    is_one = len(predictions) == 1 and subject.is_given(predictions[0])
    return is_one and any(_is_discount(subject, one) for one in others)


def _is_discount(subject: Subject, value: Value) -> bool:
    if value.argument is None and value.constant is None:
        return False
    array = subject.array(value)
    if not array.size or not jnp.issubdtype(value.dtype, jnp.floating):
        return False
    # In an array, the last step of an episode has a discount of zero.
    is_bounded = array.min() >= 0 and array.max() < 1
    return bool(is_bounded and np.mean(array) >= _LEAST_DISCOUNT)


def _moves(subject: Subject, sum_: Node, *, is_only: bool) -> Finding:
    rewards = [value for value in sum_.inputs if not subject.is_trained(value)]
    names = [
        subject.name(one)
        for one in subject.data
        if any(value.depends >> (one.argument or 0) & 1 for value in rewards)
    ]
    also = "only through it, and not through the prediction" if is_only else "through it, too"
    return Finding(
        "moving_target",
        "error" if is_only else "warning",
        "the target, a reward and a discounted prediction, is made with trained parameters, and "
        f"the gradient passes {also}: the values of later states are bent to what is predicted.",
        "stop the gradient of the target, jax.lax.stop_gradient(target), and make it with the "
        "parameters of a target network if the training is not stable.",
        place=place_of(names),
        source=sum_.line,
        evidence={"stops_prediction": is_only},
    )


def _advantages(subject: Subject) -> Iterator[Finding]:
    """Log-probabilities times advantages, where both are trained."""
    for entropy in subject.cross_entropies:
        for node, i in uses_of(entropy.node.output, _AFTER_PICK):
            if node.name != "mul" or not is_in_loss(subject, node.output):
                continue
            weight = _without_stops(node.inputs[1 - i])
            made = weight.producer
            if made is None or made.name != "sub" or not _is_advantage(subject, made):
                continue
            if _learns(subject, weight) and _learns(subject, node.inputs[i]):
                yield _bends_values(subject, node, made)
                return


def _is_advantage(subject: Subject, difference: Node) -> bool:
    """Whether a value is subtracted from a return."""
    goal, value = difference.inputs
    is_given = subject.is_given(goal) and not subject.is_trained(goal)
    return subject.is_trained(value) and (is_given or _return(subject, goal) is not None)


def _bends_values(subject: Subject, product: Node, difference: Node) -> Finding:
    values = [one for one in difference.inputs if subject.is_trained(one)]
    names = dict.fromkeys(
        subject.name(one)
        for value in values
        for one in subject.graph.upstream(value, is_differentiable)
        if one in subject.parameters
    )
    return Finding(
        "moving_target",
        "warning",
        "log-probabilities are multiplied by advantages that are made with trained parameters, and "
        "the gradient passes through both: the values are bent to make the actions look good.",
        "stop the gradient of the advantages, jax.lax.stop_gradient(advantages), and train the "
        "values with a loss of their own.",
        place=place_of(list(names)),
        source=product.line or difference.line,
        evidence={"stops_prediction": False},
    )
