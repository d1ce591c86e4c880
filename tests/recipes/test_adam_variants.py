"""AdaBelief, Yogi and RAdam against their papers, with learning rate."""

import pytest

import gradtx

from ..trajectory import (
    ANY_NUMBER,
    DECAY,
    NON_NEGATIVE,
    Case,
    cases,
    check_equation,
    check_refused,
    equation_tests,
    wrong_arguments,
)


def rising(count):
    """A threshold for RAdam, which must not fall below 4."""
    return 4.5 + count / 32


CASES = [
    *cases(
        gradtx.adabelief,
        {"learning_rate": 1e-3},
        {"learning_rate": 0.1, "b1": 0.5, "b2": 0.9, "eps_root": 1e-2, "nesterov": True},
    ),
    *cases(
        gradtx.yogi,
        {"learning_rate": 1e-3},
        {"learning_rate": 0.1, "b1": 0.5, "b2": 0.9, "eps": 0.1},
    ),
    *cases(
        gradtx.radam,
        {"learning_rate": 1e-3},
        {"learning_rate": 0.1, "b1": 0.5, "threshold": 4.0, "nesterov": True},
        {"learning_rate": 0.1, "b2": 0.99, "eps_root": 1e-2, "threshold": rising},
    ),
]


@pytest.mark.parametrize(("check", "case"), equation_tests(CASES, unlike_optax=[gradtx.yogi]))
def test_equation(check, case):
    check(case)


@pytest.mark.parametrize("b2", [0.9, 0.9999])
def test_radam_stays_accurate_across_its_threshold(b2):
    arguments = {"learning_rate": 0.01, "b2": b2}
    check_equation(Case(gradtx.radam, arguments, steps=48))


MOMENTS = {"learning_rate": ANY_NUMBER, "b1": DECAY, "b2": DECAY, "eps": NON_NEGATIVE}
VALID = {"learning_rate": 0.1}


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        *wrong_arguments(gradtx.adabelief, VALID, **MOMENTS, eps_root=NON_NEGATIVE),
        *wrong_arguments(gradtx.yogi, VALID, **MOMENTS),
        *wrong_arguments(
            gradtx.radam,
            VALID,
            **MOMENTS,
            eps_root=NON_NEGATIVE,
            threshold=(3.9, *NON_NEGATIVE),
        ),
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
