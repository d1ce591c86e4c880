"""The experiment on rounding: its claim fails where updates get lost.

That it holds is what `python -m examples.experiments --quick` tells.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from examples.experiments import rounding

KEY = jax.random.key(1)


def test_the_exact_line_is_that_of_adamw_in_double_precision():
    p = 1.0
    for step in range(1, 201):
        # The moments of a constant gradient of 1 are 1 after their corrections.
        p -= rounding.RATE * (1 + rounding.DECAY * p)
        assert abs(rounding.closed_form(step) - p) < 1e-9


def test_the_line_is_not_followed_without_a_wrapper(monkeypatch):
    monkeypatch.setattr(gradtx, "with_kahan_sum", lambda tx: tx)
    path = np.asarray(rounding.follow("Kahan sum", jnp.bfloat16, KEY)).astype(np.float64)
    exact = rounding.closed_form(np.arange(1, rounding.STEPS + 1))[:, None]
    paths = {name: path if name == "Kahan sum" else exact for name in rounding.WRAPPED}
    still, follows = rounding._path_checks({**paths, rounding.PLAIN: path})
    assert (still.holds, follows.holds) == (True, False)


def made_up(loss, lost, memory):
    return rounding.Training(np.array([[1.0, loss], [1.0, loss + 0.2]]), np.array([[lost]]), memory)


@pytest.mark.parametrize(
    ("wrong", "training"),
    [
        (0, {"nearest": (1.5, 1.0, 10)}),
        (1, {"nearest": (3.0, 0.5, 10)}),
        (2, {"stochastic": (1.3, 0.0, 10)}),
        (3, {"Kahan sum": (1.0, 0.1, 12)}),
        (4, {"master weights": (1.0, 0.0, 12)}),
    ],
)
def test_each_check_can_fail(wrong, training):
    values = {
        "float32": (1.0, 0.0, 12),
        "nearest": (3.0, 1.0, 10),
        "stochastic": (1.0, 0.0, 10),
        "Kahan sum": (1.0, 0.0, 12),
        "master weights": (1.0, 0.0, 14),
        **training,
    }
    trained = {
        (name, "float32" if name == "float32" else "bfloat16"): made_up(*value)
        for name, value in values.items()
    }
    checks = rounding._training_checks(trained)
    assert [i for i, check in enumerate(checks) if not check.holds] == [wrong]


@pytest.mark.parametrize("name", rounding.WRAPPED)
def test_what_a_wrapper_stores_is_counted(name):
    expected = {"stochastic": 10, "Kahan sum": 12, "master weights": 14}[name]
    tx = rounding.WAYS[name].wrap(gradtx.adamw(0.1), KEY)
    params = jnp.ones(10_000, jnp.float16)
    assert round(gradtx.explain(tx, params).bytes_per_parameter + 2, 1) == expected
