"""The zoo: nothing is found in healthy set-ups, and in sick ones the fault and its place.

`ZOO=all` examines all of it, which takes a quarter of an hour.
"""

import os

import jax
import pytest

from .zoo import run
from .zoo.case import healthy_cases, sick_cases, trained

IS_WHOLE = os.environ.get("ZOO") == "all"
HEALTHY = {case.name: case for case in healthy_cases()}
SICK = {case.name: case for case in sick_cases()}

# Of what is quick to compile, something from each family.
HEALTHY_SAMPLE = (
    "softmax regression, unequal classes",
    "rectifier network",
    "LeNet-5",
    "Fixup",
    "LoRA",
    "LSTM with a forget bias of 1",
    "discriminator of a GAN",
    "CLIP",
    "graph convolution",
)
TRAINED_SAMPLE = ("CLIP",)
SICK_SAMPLE = (
    "hidden weights constant",
    "an encoder behind stop_gradient",
    "one example repeated",
    "a time stamp among the features",
    "biases of -10 before relu",
    "the accuracy as loss",
)


def _described(outcomes):
    wrong = [outcome for outcome in outcomes if not outcome.is_right]
    return "\n".join(f"{one.name}: {'; '.join(one.found) or 'nothing found'}" for one in wrong)


def test_the_zoo_is_large_enough():
    assert len(HEALTHY) >= 60
    assert sum(case.is_trained for case in HEALTHY.values()) >= 20
    assert len(SICK) >= 60
    assert {case.framework for case in HEALTHY.values()} == {
        *("jax", "linen", "nnx", "equinox", "haiku")
    }


@pytest.mark.parametrize("name", SICK)
def test_a_sick_case_says_where_its_fault_is(name):
    case = SICK[name]
    assert case.marked_lines or case.where
    assert case.is_curable


def test_the_place_of_a_fault_is_a_marked_line_or_a_path():
    case = SICK["an encoder behind stop_gradient"]
    (line,) = case.marked_lines
    assert case.is_at(f"somewhere, {line} (loss_fn)")
    assert case.is_at("encoder/kernel")
    assert not case.is_at("head/kernel, sick_parameters.py:1 (loss_fn)")


@pytest.mark.parametrize("name", HEALTHY if IS_WHOLE else HEALTHY_SAMPLE[:2])
def test_a_healthy_case_trains(name):
    case = HEALTHY[name]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        _, losses = trained(case.build(), case.rate)
    assert losses[-1] < losses[0] - 0.1 * abs(losses[0])


@pytest.mark.parametrize("name", HEALTHY_SAMPLE)
def test_nothing_is_found_in_a_healthy_case(name):
    outcomes = run.healthy_outcomes(HEALTHY[name])
    outcomes = list(outcomes) if name in TRAINED_SAMPLE else [next(outcomes)]
    assert not _described(outcomes)


@pytest.mark.parametrize("name", SICK_SAMPLE)
def test_the_fault_of_a_sick_case_is_named_and_gone_when_cured(name):
    outcomes = list(run.sick_outcomes(SICK[name]))
    assert len(outcomes) == 2
    assert not _described(outcomes)


@pytest.mark.skipif(not IS_WHOLE, reason="takes a quarter of an hour; set ZOO=all")
def test_the_whole_zoo():
    healthy = [outcome for case in HEALTHY.values() for outcome in run.healthy_outcomes(case)]
    assert sum(max(o.others, not o.is_right) for o in healthy) <= run.ALLOWED_FALSE_ALARMS, (
        _described(healthy)
    )
    sick = [next(run.sick_outcomes(case)) for case in SICK.values()]
    assert sum(not o.is_right for o in sick) <= run.ALLOWED_MISSED * len(sick), _described(sick)
