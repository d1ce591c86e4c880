"""AdEMAMix and its simplified form against their papers, with learning rate."""

import optax
import optax.contrib
import pytest

import gradtx

from ..trajectory import (
    ANY_NUMBER,
    DECAY,
    NON_NEGATIVE,
    cases,
    check_refused,
    double,
    wrong_arguments,
)
from ..wrappers.changing_hands import check_changes_hands

CASES = [
    *cases(
        gradtx.ademamix,
        {"learning_rate": 0.1, "b1": 0.5, "b2": 0.9, "b3": 0.95, "weight_decay": 0.1},
    ),
    *cases(
        gradtx.simplified_ademamix,
        {"learning_rate": 0.1, "b1": 0.5, "b2": 0.9, "alpha": 2.0, "weight_decay": 0.1},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equation(case):
    double(case)


def only_matrices(params):
    return {name: leaf.ndim > 1 for name, leaf in params.items()}


@pytest.mark.parametrize("name", ["ademamix", "simplified_ademamix"])
def test_a_run_changes_hands(name):
    settings = {
        "learning_rate": optax.linear_schedule(0.02, 0.01, 8),
        "b1": 0.9,
        "b2": 0.9,
        # They start at 0 in both libraries.
        "alpha": optax.linear_schedule(0, 5, 5),
        "weight_decay": 0.1,
        "mask": only_matrices,
    }
    if name == "ademamix":
        settings["b3"] = lambda count: 0.9 + count / 100
    ours, theirs = getattr(gradtx, name), getattr(optax.contrib, name)
    check_changes_hands(ours(**settings), theirs(**settings), at=4, steps=8)


SHARED = {
    "learning_rate": ANY_NUMBER,
    "b1": DECAY,
    "b2": DECAY,
    "alpha": ANY_NUMBER,
    "eps": NON_NEGATIVE,
    "eps_root": NON_NEGATIVE,
    "weight_decay": NON_NEGATIVE,
}
VALID = {"learning_rate": 0.1}


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        *wrong_arguments(gradtx.ademamix, VALID, **SHARED, b3=DECAY, mu_dtype=("int32",)),
        *wrong_arguments(gradtx.simplified_ademamix, VALID, **SHARED),
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
