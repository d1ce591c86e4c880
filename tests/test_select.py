"""Choosing leaves by path, predicate, type, mask or function."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

import gradtx

PARAMS = {
    "encoder": {"layers": [{"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}]},
    "head": {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)},
}


def chosen(selection):
    mask = selection(PARAMS)
    assert jax.tree.structure(mask) == jax.tree.structure(PARAMS)
    named, _ = jax.tree_util.tree_flatten_with_path(mask)
    return {jax.tree_util.keystr(p, simple=True, separator="/") for p, flag in named if flag}


ENCODER = {"encoder/layers/0/kernel", "encoder/layers/0/bias"}
BIASES = {"encoder/layers/0/bias", "head/bias"}
SELECTIONS = {
    "search": ("bias", BIASES),
    "anchored": ("^encoder/", ENCODER),
    "index": (r"layers/0/kernel$", {"encoder/layers/0/kernel"}),
    "compiled": (re.compile("HEAD/BIAS", re.IGNORECASE), {"head/bias"}),
    "predicate": (lambda path, leaf: leaf.ndim == 1, BIASES),
    "predicate-path": (lambda path, leaf: path.startswith("encoder"), ENCODER),
    "function": (lambda tree: jax.tree.map(lambda x: x.ndim == 1, tree), BIASES),
    "prefix": ({"encoder": True, "head": False}, ENCODER),
    "everything": (True, ENCODER | {"head/kernel", "head/bias"}),
    "type": (list, ENCODER),
}


@pytest.mark.parametrize(("specification", "expected"), SELECTIONS.values(), ids=SELECTIONS.keys())
def test_select_by(specification, expected):
    assert chosen(gradtx.select(specification)) == expected


def test_selections_combine():
    bias, encoder = gradtx.select("bias"), gradtx.select("encoder")
    assert chosen(~bias) == {"encoder/layers/0/kernel", "head/kernel"}
    assert chosen(bias & encoder) == {"encoder/layers/0/bias"}
    assert chosen(bias | encoder) == BIASES | ENCODER


def test_pattern_that_matches_nothing_lists_the_paths():
    with pytest.raises(ValueError, match=r"'decoder' matches none.*encoder/layers/0/bias"):
        gradtx.select("decoder")(PARAMS)


def test_invalid_pattern_is_refused_when_built():
    with pytest.raises(ValueError, match=r"select: '\(' is not a regular expression"):
        gradtx.select("(")


@pytest.mark.parametrize("wrong", [3, None, ["kernel", "bias"]], ids=str)
def test_what_is_not_a_specification_is_refused_when_built(wrong):
    with pytest.raises(ValueError, match="select: the specification must be"):
        gradtx.select(wrong)


def test_combinations_take_specifications_and_say_what_they_are():
    assert chosen(gradtx.select("bias") & "^head") == {"head/bias"}
    both = ~gradtx.select("bias") | gradtx.select("head")
    assert repr(both) == "(~select('bias') | select('head'))"


def test_mask_that_is_a_string_or_an_array_is_refused():
    with pytest.raises(ValueError, match=r"did you mean select\('bias'\)"):
        gradtx.freeze("bias").init(PARAMS)
    with pytest.raises(ValueError, match="scalar booleans"):
        gradtx.freeze(jax.tree.map(lambda p: p > 0, PARAMS)).init(PARAMS)


def test_select_by_module_type():
    model = eqx.nn.Sequential([eqx.nn.Linear(2, 3, key=jax.random.key(0)), eqx.nn.LayerNorm(3)])
    mask = gradtx.select(eqx.nn.LayerNorm)(eqx.filter(model, eqx.is_inexact_array))
    assert jax.tree.leaves(mask) == [False, False, True, True]


def test_module_of_booleans_is_a_mask_although_it_can_be_called():
    model = eqx.filter(eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0)), eqx.is_inexact_array)
    mask = jax.tree.map(lambda leaf: leaf.ndim > 1, model)
    assert callable(mask)
    assert jax.tree.leaves(gradtx.select(mask)(model)) == [True, False, True, False]
    assert jax.tree.leaves((~gradtx.select(mask))(model)) == [False, True, False, True]


def test_mask_that_does_not_fit_is_refused_by_its_path():
    for mask in ({"encoder": True}, lambda tree: {"encoder": True}):
        with pytest.raises(
            ValueError, match=r"select: the mask and the tree differ at 'head/bias'"
        ):
            gradtx.select(mask)(PARAMS)
    with pytest.raises(
        ValueError, match=r"select: the mask must have scalar booleans .* got 'yes'"
    ):
        gradtx.select(lambda tree: {"encoder": "yes", "head": True})(PARAMS)


def test_function_may_return_a_prefix():
    assert chosen(gradtx.select(lambda tree: {"encoder": True, "head": False})) == ENCODER


def test_groups_label_every_leaf():
    labels = gradtx.select.groups({"vector": "bias", "matrix": gradtx.select("kernel")})(PARAMS)
    assert labels["head"] == {"bias": "vector", "kernel": "matrix"}
    labels = gradtx.select.groups({"head": "^head"}, rest="body")(PARAMS)
    assert labels["encoder"]["layers"] == [{"bias": "body", "kernel": "body"}]


def test_groups_list_leaves_that_match_twice_or_never():
    with pytest.raises(ValueError, match=r"more than one group.*head/bias.*\('a', 'b'\)"):
        gradtx.select.groups({"a": "bias", "b": "^head"})(PARAMS)
    with pytest.raises(ValueError, match=r"no group.*head/kernel"):
        gradtx.select.groups({"a": "bias", "b": "^encoder.*kernel"})(PARAMS)


TAKERS = {
    "masked": lambda mask: gradtx.masked(gradtx.scale(0.0), mask),
    "freeze": gradtx.freeze,
    "selective_transform": lambda mask: gradtx.selective_transform(
        gradtx.identity(), freeze_mask=mask
    ),
    "add_decayed_weights": lambda mask: gradtx.chain(
        gradtx.add_decayed_weights(1.0, mask), gradtx.add_decayed_weights(0.0)
    ),
    "optax.masked": lambda mask: optax.masked(gradtx.scale(0.0), mask),
}


@pytest.mark.parametrize("taker", TAKERS.values(), ids=TAKERS)
def test_everything_that_takes_a_mask_takes_a_selection(taker):
    changed = {}
    for name, mask in {
        "select": gradtx.select("bias"),
        "tree": gradtx.select("bias")(PARAMS),
        "function": lambda tree: gradtx.select("bias")(tree),
    }.items():
        tx = taker(mask)
        updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
        changed[name] = jax.tree.map(lambda u, p: bool((u != p).any()), updates, PARAMS)
    assert changed["select"] == changed["tree"] == changed["function"]
    assert changed["select"] == gradtx.select("bias")(PARAMS)


RECIPES_WITH_MASKS = {
    "adamw": lambda mask: gradtx.adamw(0.1, weight_decay=1.0, mask=mask),
    "nadamw": lambda mask: gradtx.nadamw(0.1, weight_decay=1.0, mask=mask),
    "adamaxw": lambda mask: gradtx.adamaxw(0.1, weight_decay=1.0, mask=mask),
    "lion": lambda mask: gradtx.lion(0.1, weight_decay=1.0, mask=mask),
    "adadelta": lambda mask: gradtx.adadelta(0.1, weight_decay=1.0, weight_decay_mask=mask),
}


@pytest.mark.parametrize("recipe", RECIPES_WITH_MASKS.values(), ids=RECIPES_WITH_MASKS)
def test_recipes_decay_the_selected_leaves_only(recipe):
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    tx = recipe(gradtx.select("kernel"))
    updates, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
    moved = jax.tree.map(lambda u: bool((u != 0).any()), updates)
    assert moved == gradtx.select("kernel")(PARAMS)


SHAPES = {
    "kernel": (2, 3),
    "row": (1, 3),
    "column": (3, 1),
    "vector": (3,),
    "scalar": (),
    "convolution": (3, 3, 1, 8),
    "empty": (0, 2),
    "bias": (12, 3),
    "norm_scale": (12, 3),
    "rescaled": (12, 3),
    "embedding": (100, 8),
}


def test_matrices_have_two_long_axes_and_no_name_of_a_vector():
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()}
    params |= {"nnx": {"scale": {"value": params["kernel"]}}, "function": jnp.tanh}
    mask = gradtx.select.matrices(params)
    chosen_ones = {name for name, flag in mask.items() if flag is True}
    assert chosen_ones == {"kernel", "convolution", "rescaled", "embedding"}
    assert mask["nnx"] == {"scale": {"value": False}}


def test_matrices_combine_and_label():
    assert chosen(gradtx.select.matrices & ~gradtx.select("head")) == {"encoder/layers/0/kernel"}
    assert repr(gradtx.select.matrices) == "select.matrices"
    groups = gradtx.select.groups({"matrices": gradtx.select.matrices}, rest="rest")
    assert groups({"a": jnp.ones((2, 2)), "b": jnp.ones(2)}) == {"a": "matrices", "b": "rest"}


def test_groups_of_optimizers_read_as_they_are_meant():
    params = {"embedding": jnp.ones((4, 2)), "kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    matrices = gradtx.select.matrices & ~gradtx.select("embedding")
    optimizers = {"matrices": gradtx.sgd(1.0, momentum=0.9), "rest": gradtx.adamw(1e-3)}
    tx = gradtx.partition(optimizers, gradtx.select.groups({"matrices": matrices}, rest="rest"))
    updates, _ = tx.update(params, tx.init(params), params)
    assert jnp.all(updates["kernel"] == -1.0)
    assert jnp.all(abs(updates["embedding"] + 1e-3 * (1 + 1e-4)) < 1e-8)

    forgotten = gradtx.partition(optimizers, gradtx.select.groups({"matrices": matrices}))
    with pytest.raises(ValueError, match=r"in no group, and no rest: \['bias', 'embedding'\]"):
        forgotten.init(params)


@pytest.mark.parametrize(
    "combine",
    [
        lambda: not gradtx.select("bias"),
        lambda: gradtx.select("bias") or gradtx.select("head"),
        lambda: gradtx.select("bias") and gradtx.select("head"),
        lambda: "all" if ~gradtx.select("bias") else None,
    ],
)
def test_words_do_not_combine_choices(combine):
    with pytest.raises(ValueError, match=r"^~?select\('bias'\): a choice is neither.*~, & and \|"):
        combine()
