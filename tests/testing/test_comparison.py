"""What the messages about two trees of different structure say."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
import pytest

from gradtx.testing import ConformanceError, check_transformation

ONES = jnp.ones(2)


class State(NamedTuple):
    count: Any
    mu: Any


TURNED = {
    "a named tuple": (
        State(jnp.int32(0), ONES),
        lambda state: (state[0] + 1, state[1]),
        "expected the state after step 1 to have a container State, got tuple",
    ),
    "a list inside": (
        {"mu": [ONES]},
        lambda state: {"mu": (2 * state["mu"][0],)},
        "at 'mu': expected the state after step 1 to have a container list, got tuple",
    ),
    "nothing": (
        None,
        lambda state: {"mu": ONES},
        "expected the state after step 1 to have None, got dict",
    ),
    "a dictionary of others": (
        {"mu": ONES},
        lambda state: {"nu": ONES},
        r"at 'mu': expected the state after step 1 to have float32\[2\], got no leaf there",
    ),
}


@pytest.mark.parametrize("name", TURNED)
def test_a_state_that_turns_into_another_is_reported_once_and_names_both(name):
    start, turn, says = TURNED[name]
    tx = optax.GradientTransformation(
        lambda params: start, lambda updates, state, params=None: (updates, turn(state))
    )
    with pytest.raises(ConformanceError, match=says) as caught:
        check_transformation(tx, ONES, clauses=["state", "idle"])
    assert list(caught.value.causes) == ["state"]
