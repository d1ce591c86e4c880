"""Trees, leaves, arguments and combinations that nobody gives on purpose."""

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx


class Pair(NamedTuple):
    """A named tuple of parameters."""

    kernel: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    """A dataclass of parameters."""

    kernel: Any
    bias: Any = None


def nested(depth):
    tree = jnp.array([3.0, -4.0])
    for level in range(depth):
        tree = [tree] if level % 2 else {"next": tree}
    return tree


SHARED = jnp.array([3.0, -4.0])
TREES = {
    "empty_dict": {},
    "empty_tuple": (),
    "none": None,
    "nones": {"a": None, "b": [None, None]},
    "empty_containers": {"a": [], "b": ((), {}), "c": jnp.ones(2)},
    "no_elements": {"a": jnp.zeros((0,)), "b": jnp.zeros((3, 0, 2)), "c": jnp.array([3.0, 4.0])},
    "scalars": {"a": jnp.float32(2.0), "b": jnp.ones((1, 1, 1, 1))},
    "python_numbers": {"a": 2.0, "b": jnp.ones(2)},
    "tuples": (jnp.ones(2), (jnp.array([0.5]), (jnp.array(-2.0),))),
    "named_tuple": Pair(jnp.ones((2, 2)), Pair(jnp.array([0.5]), None)),
    "dataclass": Layer(jnp.ones((2, 2)), Layer(jnp.array([-0.5]))),
    "shared": {"a": SHARED, "b": SHARED, "c": [SHARED]},
    "numbers_for_keys": {3: jnp.ones(2), 1: jnp.array([4.0])},
    "deep": nested(500),
    "wide": [jnp.array([0.5, -2.0])] * 10_000,
    "functions": {"f": jnp.tanh, "w": jnp.ones(2), "n": 3, "key": jax.random.key(0)},
}
OPTIMIZERS = {
    "sgd": (lambda: gradtx.sgd(0.5, momentum=0.9), lambda g: -0.5 * g),
    "clip": (lambda: gradtx.clip(1.0), lambda g: np.clip(g, -1, 1)),
    "adam": (lambda: gradtx.adam(0.5, eps=0.0), lambda g: -0.5 * np.sign(g)),
    "clipped_lion": (
        lambda: gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.lion(0.5, weight_decay=0.0)),
        lambda g: -0.5 * np.sign(g),
    ),
}


# A decay reads the parameters, and None has none; ten thousand leaves take their time.
LEFT_OUT = {("none", "clipped_lion"), ("wide", "adam"), ("wide", "clipped_lion")}


@pytest.mark.parametrize(
    ("kind", "name"),
    [row for row in itertools.product(TREES, OPTIMIZERS) if row not in LEFT_OUT],
)
def test_any_tree_is_updated_leaf_by_leaf(kind, name):
    tree = TREES[kind]
    make, expected = OPTIMIZERS[name]
    tx = make()
    state = tx.init(tree)
    updates, new_state = tx.update(tree, state, tree)
    assert jax.tree.structure(updates) == jax.tree.structure(tree)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    for found, leaf in zip(*map(jax.tree.leaves, (updates, tree)), strict=True):
        if isinstance(leaf, float) or jnp.issubdtype(getattr(leaf, "dtype", int), jnp.inexact):
            np.testing.assert_allclose(found, expected(np.asarray(leaf)), rtol=1e-6)
        else:
            assert found is leaf or found == 0


@pytest.mark.parametrize(
    "leaf",
    [
        "text",
        b"bytes",
        object(),
        {1, 2},
        np.array(["text"]),
        np.array([None]),
        np.datetime64("2020"),
    ],
    ids=["text", "bytes", "object", "set", "texts", "objects", "time"],
)
@pytest.mark.parametrize(
    "make",
    [
        lambda: gradtx.adamw(0.1),
        lambda: gradtx.clip(1.0),
        lambda: gradtx.MultiSteps(gradtx.sgd(0.1), 2),
    ],
    ids=["adamw", "clip", "MultiSteps"],
)
def test_a_leaf_that_cannot_be_trained_is_named(make, leaf):
    with pytest.raises(ValueError, match=r"at 'layer/1'"):
        make().init({"layer": [jnp.ones(2), leaf]})


RENAMED = {
    "updates": lambda tx, one, other: tx.update(other, tx.init(one), one),
    "params": lambda tx, one, other: tx.update(one, tx.init(one), other),
    "state": lambda tx, one, other: tx.update(other, tx.init(one), other),
    "apply_updates": lambda tx, one, other: gradtx.apply_updates(one, other),
}


@pytest.mark.parametrize("what", RENAMED)
@pytest.mark.parametrize("depth", [0, 2])
def test_a_message_about_a_renamed_key_has_both_names(what, depth):
    one: Any = {"bias": jnp.ones(2), "kernel": jnp.ones(3)}
    other: Any = {"bias": jnp.ones(2), "weight": jnp.ones(3)}
    for _ in range(depth):
        one, other = {"layer": one}, {"layer": other}
    above = "layer/" * depth
    with pytest.raises(ValueError, match="differ at") as error:
        RENAMED[what](gradtx.adamw(0.1), one, other)
    assert f"'{above}kernel'" in str(error.value)
    assert f"'{above}weight'" in str(error.value)


COUNTING = {
    "scale_by_adam": gradtx.scale_by_adam,
    "scale_by_adan": gradtx.scale_by_adan,
    "scale_by_ademamix": gradtx.scale_by_ademamix,
    "scale_by_radam": gradtx.scale_by_radam,
    "scale_by_novograd": gradtx.scale_by_novograd,
    "scale_by_adopt": gradtx.scale_by_adopt,
    "scale_by_factored_rms": gradtx.scale_by_factored_rms,
    "scale_by_schedule": lambda: gradtx.scale_by_schedule(lambda t: 1 / (t + 1.0)),
    "ema": lambda: gradtx.ema(0.9),
    "scale_by_mars": gradtx.scale_by_mars,
    "madgrad": lambda: gradtx.madgrad(0.1),
    "schedule": lambda: gradtx.sgd(lambda count: 0.5),
    "with_metrics": lambda: gradtx.with_metrics(gradtx.sgd(0.5)),
    "lookahead": lambda: gradtx.average_params(gradtx.sgd(0.5), 0.9),
}


@pytest.mark.parametrize("name", COUNTING)
def test_a_counter_stops_at_its_largest_number(name):
    tx, params = COUNTING[name](), jnp.ones(3)
    largest = np.iinfo(np.int32).max
    state = jax.tree.map(
        lambda leaf: jnp.int32(largest - 1) if leaf.dtype == jnp.int32 else leaf, tx.init(params)
    )
    for _ in range(3):
        updates, state = tx.update(jnp.array([1.0, -2.0, 3.0]), state, params)
        assert np.all(np.isfinite(updates))
    counters = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.int32]
    assert counters
    assert all(counter == largest for counter in counters)


# Every wrapper around every kind of transformation, where it changes nothing.

KINDS = {
    "kernel": lambda: gradtx.scale_by_adam(),
    "chain": lambda: gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.sgd(0.5, momentum=0.9)),
    "masked": lambda: gradtx.masked(gradtx.scale(3.0), lambda tree: {"a": True, "b": False}),
    "partition": lambda: gradtx.partition(
        {"x": gradtx.sgd(0.5), "y": gradtx.lion(0.1)}, {"a": "x", "b": "y"}
    ),
    "wrapper": lambda: gradtx.MultiSteps(gradtx.adam(0.1), 1).gradient_transformation(),
    "optax": lambda: optax.adam(0.1),
    "extra": lambda: gradtx.polyak_sgd(),
    "schedule": lambda: gradtx.adamw(lambda count: 0.1 / (count + 1)),
    "leaf": lambda: gradtx.scale_by_trust_ratio(),
}
WRAPPERS = {
    "chain": gradtx.chain,
    "chain_of_two": lambda tx: gradtx.chain(tx, gradtx.identity()),
    "named_chain": lambda tx: gradtx.named_chain(("only", tx)),
    "masked": lambda tx: gradtx.masked(tx, {"a": True, "b": True}),
    "partition": lambda tx: gradtx.partition({"all": tx}, {"a": "all", "b": "all"}),
    "MultiSteps": lambda tx: gradtx.MultiSteps(tx, 1).gradient_transformation(),
    "apply_if_finite": lambda tx: gradtx.apply_if_finite(tx, 3),
    "conditionally": lambda tx: gradtx.conditionally_transform(tx, lambda step: step >= 0),
    "with_metrics": gradtx.with_metrics,
    "average_params": lambda tx: gradtx.average_params(tx, 0.9),
    "extra_args": gradtx.with_extra_args_support,
    "snapshot": lambda tx: gradtx.chain(tx, gradtx.snapshot("norm", gradtx.global_norm)),
}
PARAMS = {"a": jnp.array([[1.0, -2.0], [0.5, 0.25]]), "b": jnp.array([3.0, -0.5])}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_that_changes_nothing_changes_nothing(wrapper, kind):
    inner, outer = KINDS[kind](), WRAPPERS[wrapper](KINDS[kind]())
    extra = {"value": jnp.float32(2.0)} if kind == "extra" else {}
    state, outer_state = inner.init(PARAMS), outer.init(PARAMS)
    with jax.numpy_dtype_promotion("standard"):
        for size in (1.0, -3e30, 1e-30):
            gradient = jax.tree.map(lambda p, size=size: p * size, PARAMS)
            wanted, state = inner.update(gradient, state, PARAMS, **extra)
            found, outer_state = outer.update(gradient, outer_state, PARAMS, **extra)
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, wanted)


# Arguments that would be read wrongly.

WRONG = {
    "text": "0.1",
    "nan": float("nan"),
    "none": None,
    "list": [0.1],
    "long": jnp.ones(2),
    "complex": 1j,
    "boolean": True,
    "boolean_array": np.array(True),
    "array_of_texts": np.array("0.1"),
    "transformation": gradtx.sgd(0.1),
    "empty": jnp.ones(0),
    "object": object(),
}
NUMBERS = [
    ("scale_by_rms", {}, "decay"),
    ("adam", {"learning_rate": 0.1}, "b1"),
    ("adamw", {"learning_rate": 0.1}, "weight_decay"),
    ("trace", {}, "decay"),
    ("lion", {"learning_rate": 0.1}, "b2"),
    ("clip_by_global_norm", {}, "max_norm"),
    ("clip", {}, "max_delta"),
    ("clip_by_block_rms", {}, "threshold"),
    ("scale", {}, "step_size"),
    ("ema", {}, "decay"),
    ("add_decayed_weights", {}, "weight_decay"),
    ("scale_by_trust_ratio", {}, "min_norm"),
]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(("name", "others", "argument"), NUMBERS, ids=lambda x: str(x))
def test_a_wrong_number_is_refused_by_name_when_it_is_given(name, others, argument, wrong):
    with pytest.raises((ValueError, TypeError), match=argument):
        getattr(gradtx, name)(**others, **{argument: WRONG[wrong]})


SWITCHES = [
    ("adam", {"learning_rate": 0.1}, "nesterov"),
    ("sgd", {"learning_rate": 0.1, "momentum": 0.9}, "nesterov"),
    ("scale_by_amsgrad", {}, "bias_correction_mu"),
    ("scale_by_rms", {}, "bias_correction"),
    ("rmsprop", {"learning_rate": 0.1}, "centered"),
    ("scale_by_learning_rate", {"learning_rate": 0.1}, "flip_sign"),
    ("ema", {"decay": 0.9}, "debias"),
]


@pytest.mark.parametrize(
    "wrong",
    ["False", None, 0.5, [True], jnp.ones(2), gradtx.sgd(0.1)],
    ids=["text", "None", "half", "list", "array", "transformation"],
)
@pytest.mark.parametrize(("name", "others", "argument"), SWITCHES, ids=str)
def test_what_is_neither_true_nor_false_is_refused(name, others, argument, wrong):
    with pytest.raises(ValueError, match=f"{argument} must be True or False"):
        getattr(gradtx, name)(**others, **{argument: wrong})


@pytest.mark.parametrize(
    "right",
    [True, 1, np.bool_(True), np.array([True]), jnp.array(1)],
    ids=["bool", "int", "numpy_bool", "numpy_array", "array"],
)
def test_a_switch_may_be_a_number_or_an_array(right):
    gradient = jnp.array([1.0, -3.0])
    found, wanted = (gradtx.sgd(0.1, 0.9, nesterov=flag) for flag in (right, True))
    np.testing.assert_array_equal(updated(found, gradient), updated(wanted, gradient))


def updated(tx, gradient):
    return tx.update(gradient, tx.init(gradient), gradient)[0]


MASKED = {
    "masked": lambda mask: gradtx.masked(gradtx.sgd(0.1), mask),
    "freeze": gradtx.freeze,
    "adamw": lambda mask: gradtx.adamw(0.1, mask=mask),
    "lars": lambda mask: gradtx.lars(0.1, weight_decay_mask=mask),
    "selective_transform": lambda mask: gradtx.selective_transform(
        gradtx.sgd(0.1), freeze_mask=mask
    ),
}


@pytest.mark.parametrize("wrong", ["a", {"a": "b"}, 0.5, [2], {"a": jnp.ones(2)}], ids=str)
@pytest.mark.parametrize("name", MASKED)
def test_what_is_no_mask_is_refused_when_it_is_given(name, wrong):
    with pytest.raises(ValueError, match="mask must"):
        MASKED[name](wrong)


NO_TRANSFORMATIONS = {
    "number": 0.1,
    "none": None,
    "function": jnp.tanh,
    "class": gradtx.MultiSteps,
    "factory": gradtx.sgd,
}


@pytest.mark.parametrize("wrong", NO_TRANSFORMATIONS)
@pytest.mark.parametrize("wrapper", sorted(WRAPPERS.keys() - {"snapshot"}))
def test_what_is_no_transformation_is_refused_when_it_is_wrapped(wrapper, wrong):
    with pytest.raises((ValueError, TypeError), match=r"transformation"):
        WRAPPERS[wrapper](NO_TRANSFORMATIONS[wrong])


# Norms for equations of one's own.


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30, 3e38])
@pytest.mark.parametrize("ord", [None, 1, 2, 3, np.inf, -np.inf, 0])
def test_safe_norm_of_vectors_of_any_size(ord, size):
    x = np.array([[0.6, -0.7], [0.1, 0.9], [0.5, -0.2]], np.float32) * np.float32(size)
    exact = np.linalg.norm(x.astype(np.longdouble), ord=ord, axis=0)
    with np.errstate(over="ignore"):
        wanted = exact.astype(np.float32)
    np.testing.assert_allclose(gradtx.safe_norm(x, 0.0, ord, 0), wanted, rtol=1e-6)
    found = gradtx.safe_norm(x, 0.0, ord, axis=0, keepdims=True)
    assert found.shape == (1, 2)


@pytest.mark.parametrize("size", [1e-30, 1.0, 3e38])
@pytest.mark.parametrize("ord", [None, "fro", "nuc", 1, np.inf])
def test_safe_norm_of_a_matrix_of_any_size(ord, size):
    x = np.array([[0.2, -0.3], [0.1, 0.4]], np.float32) * np.float32(size)
    wanted = np.linalg.norm(x.astype(np.float64), ord=ord)
    np.testing.assert_allclose(gradtx.safe_norm(x, 0.0, ord), wanted, rtol=1e-6)
    np.testing.assert_allclose(gradtx.safe_norm(x, 1.1 * size, ord), 1.1 * size, rtol=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 3e38])
def test_derivatives_of_safe_norms(size):
    x = jnp.array([0.6, -0.8]) * size
    unit = [0.6, -0.8] if size else [0.0, 0.0]
    np.testing.assert_allclose(jax.grad(gradtx.safe_norm)(x, 0.0), unit, rtol=1e-6)
    found = jax.grad(gradtx.safe_root_mean_squares)(x, 0.0)
    np.testing.assert_allclose(found, np.array(unit) / np.sqrt(2), rtol=1e-6)
    assert not np.any(jax.grad(gradtx.safe_norm)(x, np.float32(3.4e38)))


@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 3e38])
def test_safe_root_mean_squares_of_any_size(size):
    x = np.array([[0.6, -0.7], [0.1, 0.9]], np.float32) * np.float32(size)
    wanted = np.sqrt(np.mean(x.astype(np.float64) ** 2))
    np.testing.assert_allclose(gradtx.safe_root_mean_squares(x, 0.0), wanted, rtol=1e-6)
    assert gradtx.safe_root_mean_squares(jnp.zeros((0, 3)), 0.25) == 0.25
    assert np.isnan(gradtx.safe_root_mean_squares(jnp.array([jnp.nan]), 0.25))
