"""A transformation against an equation in double precision."""

import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.testing import ConformanceError, check_reference, hostile_trees, references
from gradtx.testing.references import Equation

PARAMS = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.array([0.25])}


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


EQUATIONS = [name for name in references.__all__ if isinstance(getattr(references, name), Equation)]


@pytest.mark.parametrize("name", [n for n in EQUATIONS if hasattr(gradtx, n)])
def test_arguments_are_those_of_the_library(name):
    ours = inspect.signature(getattr(references, name)).parameters
    theirs = inspect.signature(getattr(gradtx, name)).parameters
    assert ours.keys() <= theirs.keys()
    for argument, parameter in ours.items():
        default = theirs[argument].default
        # Two functions are never equal.
        assert callable(default) or parameter.default == default, argument
    positional = [n for n, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == list(theirs)[: len(positional)]


def test_equations_that_are_not_in_the_library_have_another_name():
    assert {name for name in EQUATIONS if not hasattr(gradtx, name)} == {
        "mechanized_sgd",
        "scale_by_dog",
        "scale_by_dowg",
    }


@pytest.mark.parametrize("name", EQUATIONS)
def test_documentation_names_the_arguments_and_the_source(name):
    equation = getattr(references, name)
    text = inspect.getdoc(equation)
    for argument in inspect.signature(equation.step).parameters:
        assert argument in ("t", "g", "p", "old") or re.search(rf"^    \**{argument}: ", text, re.M)
    # The pieces are definitions.
    is_piece = equation.step.__module__.endswith(".pieces")
    assert is_piece or ("\nSlots:\n" in text and "\nSource:\n" in text)


FAMILIES = {
    "adamw": ({"learning_rate": 0.1, "b2": 0.9}, ("mu", "nu")),
    "rmsprop": ({"learning_rate": 0.1, "momentum": 0.9}, ("nu", "trace")),
    "clip_by_global_norm": ({"max_norm": 0.5}, ()),
    "prodigy": ({"estim_lr0": 0.1}, ("estim_lr", "exp_avg")),
    "momo": ({"weight_decay": 0.1}, ("barf", "lb", "exp_avg")),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_library_and_its_reference_agree(name):
    arguments, slots = FAMILIES[name]
    tx, reference = (getattr(library, name)(**arguments) for library in (gradtx, references))
    check_reference(tx, reference, PARAMS, slots=slots)


@pytest.mark.parametrize("name", FAMILIES)
def test_another_number_is_found(name):
    arguments, _ = FAMILIES[name]
    changed = {key: 1.001 * value for key, value in arguments.items()}
    tx, reference = getattr(gradtx, name)(**changed), getattr(references, name)(**arguments)
    with pytest.raises(ConformanceError, match="expected the update of step"):
        check_reference(tx, reference, PARAMS)


def test_another_slot_is_found():
    reference = references.scale_by_adam(b2=0.9)

    def update(updates, state, params=None):
        found, new = tx.update(updates, state)
        return found, new._replace(mu=new.nu)

    tx = gradtx.scale_by_adam(b2=0.9)
    wrong = optax.GradientTransformation(tx.init, update)
    check_reference(wrong, reference, {"w": jnp.ones(2)}, steps=1)
    with pytest.raises(ConformanceError, match="expected mu of step 1"):
        check_reference(wrong, reference, {"w": jnp.ones(2)}, steps=1, slots=("mu",))


def test_hyperparameters_may_be_schedules():
    tx = gradtx.scale_by_schedule(lambda count: 0.5**count)
    check_reference(tx, references.scale_by_schedule(lambda count: 0.5**count), jnp.ones(2))


def test_references_know_nothing_of_jax():
    for path in Path(references.__file__).parent.glob("*.py"):
        text = path.read_text()
        assert path.stem == "check" or not re.search(r"^(import|from) jax", text, re.M)


def test_a_wrong_hyperparameter_is_refused_by_name():
    with pytest.raises(TypeError, match="b4"):
        references.adam(0.1, b4=0.5)


def test_an_equation_that_loses_digits_in_single_precision_is_right():
    def update(updates, state, params=None):
        count = state + 1
        # The plain 1 - b^t, of which single precision leaves four digits.
        return 0.001 * updates / (1 - 0.999 ** count.astype(updates.dtype)), count

    tx = optax.GradientTransformation(lambda params: jnp.int32(0), update)

    @references.equation
    def corrected(t, g, p, old, *, decay=0.999):
        return (1 - decay) * g / (1 - decay**t), {}

    check_reference(tx, corrected(), jnp.array([1.0, -2.0]))
    with pytest.raises(ConformanceError, match="expected the update of step 1"):
        check_reference(tx, corrected(decay=0.99901), jnp.array([1.0, -2.0]))


def test_optax_agrees_too():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        check_reference(optax.adam(0.1), references.adam(0.1))


def test_a_number_is_a_vector_of_one_element():
    gradients = [np.array(2.0), np.array(-1.0)]
    vector = references.scale_by_sm3()([g[None] for g in gradients], 0.0)
    number = references.scale_by_sm3()(gradients, 0.0)
    np.testing.assert_array_equal(number, np.ravel(vector))
