"""A transformation against an equation in double precision."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx.testing import ConformanceError, check_reference, hostile_trees


def momentum(gradients, parameter):
    velocity, updates = np.zeros_like(parameter), []
    for g in gradients:
        velocity = 0.9 * velocity + g
        updates.append(-0.1 * (velocity + 0.01 * parameter))
    return updates


def transformation(decay=0.01):
    return gradtx.chain(
        gradtx.trace(0.9), gradtx.add_decayed_weights(decay), gradtx.scale_by_learning_rate(0.1)
    )


def test_a_right_equation_agrees():
    check_reference(transformation(), momentum)


@pytest.mark.parametrize("name", hostile_trees())
def test_a_right_equation_agrees_on_odd_trees(name):
    check_reference(transformation(), momentum, hostile_trees()[name], steps=2)


def test_a_wrong_number_is_found_where_it_is():
    with pytest.raises(ConformanceError, match="at 'dense/kernel': expected the update of step 1"):
        check_reference(transformation(decay=0.0101), momentum)


def test_a_mistake_of_a_later_step_is_found():
    def forgetful(gradients, parameter):
        return momentum(gradients[:2], parameter) + momentum(gradients[2:], parameter)

    with pytest.raises(ConformanceError, match="expected the update of step 3"):
        check_reference(transformation(), forgetful, jnp.ones(2))


def test_a_difference_of_a_few_roundings_is_none():
    def rounded(gradients, parameter):
        return [update * (1 + 2.0**-22) for update in momentum(gradients, parameter)]

    check_reference(transformation(), rounded)
    with pytest.raises(ConformanceError):
        check_reference(transformation(), rounded, ulps=1.0)
