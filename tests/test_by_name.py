"""Optimizers by name make what their functions make, and errors name what is wrong."""

import inspect
import re
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx.catalogue import methods

PARAMS = {"kernel": jnp.linspace(-1.0, 1.0, 12).reshape(4, 3), "bias": jnp.ones(3)}


def test_the_names_are_those_of_the_catalogue_and_of_optaxs_lbfgs():
    listed = {method.name for method in methods("optimizer")}
    assert set(gradtx.names()) == listed | {"lbfgs"}
    assert gradtx.names() == tuple(sorted(gradtx.names()))


@pytest.mark.parametrize("name", gradtx.names())
def test_each_can_be_made_with_its_required_arguments(name):
    given = {"learning_rate": 0.1, "l2_norm_clip": 1.0, "noise_multiplier": 1.0, "seed": 0}
    if name == "noisy_sgd":
        given["key"] = 0  # without one it warns
    arguments = {
        argument.name: given[argument.name]
        for argument in inspect.signature(getattr(gradtx, name)).parameters.values()
        if argument.default is argument.empty or argument.name == "key"
    }
    with warnings.catch_warnings(action="ignore"):  # one is deprecated
        made, called = gradtx.make(name, **arguments), getattr(gradtx, name)(**arguments)
    state, expected = (jax.eval_shape(tx.init, PARAMS) for tx in (made, called))
    chex.assert_trees_all_equal_structs(state, expected)


@pytest.mark.parametrize("name", ["schedule_free_adamw", "schedule-free-adamw"])
def test_the_arguments_are_those_of_the_function(name):
    arguments = {"learning_rate": 0.1, "b1": 0.8, "weight_decay": 0.5}
    made = gradtx.make(name, **arguments)
    called = gradtx.schedule_free_adamw(**arguments)
    gradients = jax.tree.map(lambda p: p + 1, PARAMS)
    updates = [tx.update(gradients, tx.init(PARAMS), PARAMS)[0] for tx in (made, called)]
    chex.assert_trees_all_equal(*updates)
    default = gradtx.schedule_free_adamw(0.1)
    other, _ = default.update(gradients, default.init(PARAMS), PARAMS)
    assert not np.array_equal(other["kernel"], updates[0]["kernel"])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("rmspropp", {}, "make: there is no optimizer 'rmspropp'; did you mean 'rmsprop'?"),
        ("AdaFactor", {}, "make: there is no optimizer 'AdaFactor'; did you mean 'adafactor'"),
        ("qqq", {}, "make: there is no optimizer 'qqq'; gradtx.names() returns all names"),
        # Public names, but no optimizers: a piece, a wrapper, a class, a module.
        ("scale_by_adam", {}, "make: there is no optimizer 'scale_by_adam'"),
        ("schedule_free", {}, "make: there is no optimizer 'schedule_free'; did you mean"),
        ("MultiSteps", {}, "make: there is no optimizer 'MultiSteps'"),
        ("training", {}, "make: there is no optimizer 'training'"),
        ("__doc__", {}, "make: there is no optimizer '__doc__'"),
        (3, {}, "make: name must be a string, got 3"),
        ("sgd", {}, "make: sgd needs ['learning_rate']"),
        ("dpsgd", {"seed": 0}, "needs ['learning_rate', 'l2_norm_clip', 'noise_multiplier']"),
        (
            "adam",
            {"learning_rat": 0.1},
            "make: adam has no argument 'learning_rat'; did you mean 'learning_rate'?",
        ),
        (
            "sign_sgd",
            {"learning_rate": 0.1, "qqq": 1},
            "make: sign_sgd has no argument 'qqq'; it has ['learning_rate']",
        ),
        ("adam", {"learning_rate": 0.1, "b1": 1.5}, "adam: b1 must "),
    ],
)
def test_what_is_wrong_is_named(name, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        gradtx.make(name, **arguments)


def test_an_error_inside_an_optimizer_stays_as_it_is(monkeypatch):
    def broken(learning_rate):
        return len(learning_rate)

    broken.__module__ = "gradtx.recipes.broken"
    monkeypatch.setattr(gradtx, "sgd", broken)
    with pytest.raises(TypeError, match="has no len"):
        gradtx.make("sgd", learning_rate=0.1)
