"""Learning-rate multipliers by path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx

PARAMS = {
    "embedding": jnp.full((2, 2), 3.0),
    "layers": [{"kernel": jnp.full(2, 3.0)}, {"kernel": jnp.full(2, 3.0)}],
}


def updates_of(tx, steps=1):
    """The last of some updates from a gradient of ones."""
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    state = tx.init(PARAMS)
    for _ in range(steps):
        updates, state = tx.update(ones, state, PARAMS)
    return {
        "embedding": float(updates["embedding"][0, 0]),
        "layers": [float(layer["kernel"][0]) for layer in updates["layers"]],
    }


def test_each_leaf_has_the_factor_of_its_pattern():
    tx = gradtx.multiply_learning_rate({"embedding": 0.25, "layers/1": np.float32(8.0)}, rest=2.0)
    assert updates_of(tx) == {"embedding": 0.25, "layers": [2.0, 8.0]}


def test_other_leaves_keep_their_rate():
    tx = gradtx.multiply_learning_rate({"embedding": 0.5})
    assert updates_of(tx) == {"embedding": 0.5, "layers": [1.0, 1.0]}


def test_schedules_count_from_zero():
    tx = gradtx.multiply_learning_rate({"embedding": lambda count: 2.0 + count}, rest=0.5)
    assert updates_of(tx, steps=3) == {"embedding": 4.0, "layers": [0.5, 0.5]}


def test_rates_decay_by_layer():
    def factor(path):
        return 0.5 ** (0 if path == "embedding" else 1 + int(path.split("/")[1]))

    tx = gradtx.multiply_learning_rate(factor)
    assert updates_of(tx) == {"embedding": 1.0, "layers": [0.5, 0.25]}
    assert jax.tree.leaves(tx.init(PARAMS)) == []


def test_after_an_optimizer_it_multiplies_rate_and_decay():
    tx = gradtx.chain(
        gradtx.adamw(0.5, weight_decay=0.1), gradtx.multiply_learning_rate({"embedding": 0.5})
    )
    slow = updates_of(gradtx.adamw(0.25, weight_decay=0.1))
    fast = updates_of(gradtx.adamw(0.5, weight_decay=0.1))
    assert updates_of(tx) == {"embedding": slow["embedding"], "layers": fast["layers"]}


def test_half_precision_multiplies_in_float32():
    tx = gradtx.multiply_learning_rate({"w": 2.0**-20})
    updates, _ = tx.update({"w": jnp.full(1, 2.0**10, jnp.float16)}, tx.init({"w": jnp.ones(1)}))
    assert updates["w"].dtype == jnp.float16
    assert float(updates["w"][0]) == 2.0**-10


MISTAKES = {
    "nan": ({"embedding": float("nan")}, "the factor of 'embedding' must be a number"),
    "no_function": (0.1, "factors must map patterns to factors"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_wrong_factors_are_refused_when_built(name):
    factors, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        gradtx.multiply_learning_rate(factors)


MISFITS = {
    "unmatched": ({"decoder": 0.1}, 1.0, "'decoder' matches none of the paths"),
    "doubly_matched": ({"layers": 0.1, "kernel": 0.2}, 1.0, "in more than one group.*layers/0"),
    "no_rest": ({"embedding": 0.1}, None, "in no group.*layers/0/kernel"),
    "nan": (lambda path: float("nan"), 1.0, "the factor of 'embedding' must be a number"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_patterns_that_do_not_fit_list_the_paths(name):
    factors, rest, message = MISFITS[name]
    tx = gradtx.multiply_learning_rate(factors, rest)
    with pytest.raises(ValueError, match=message):
        updates_of(tx)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            ["kernel", "layer"],
            r"leaves in more than one group: \[\('layer/kernel', \('kernel', 'layer'",
        ),
        (["kernl"], r"'kernl' matches none of the paths .*; did you mean 'kernel'\?"),
        (["ker(nel"], r"'ker\(nel' is not a regular expression"),
    ],
)
def test_patterns_are_refused_in_its_name(patterns, message):
    with pytest.raises(ValueError, match=f"^multiply_learning_rate: {message}"):
        gradtx.multiply_learning_rate(dict.fromkeys(patterns, 2.0), rest=1.0).init(
            {"layer": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}}
        )
