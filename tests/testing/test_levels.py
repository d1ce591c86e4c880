"""Levels, promises and capabilities: which clauses are checked."""

import jax
import jax.numpy as jnp
import optax
import pytest

import gradtx
from gradtx.testing import CAPABILITIES, ConformanceError, check_transformation, clauses
from gradtx.testing.report import Failure, folded

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(3, 2), "b": jnp.ones(2)}


def by_name():
    """Steps for `w` and `b`, whatever else there is: it needs both names."""

    def update(updates, state, params=None):
        return {"w": 0.1 * updates["w"], "b": updates["b"]}, state

    return optax.GradientTransformation(lambda params: (), update)


def test_each_clause_has_one_of_two_levels():
    must, promises = clauses("must"), clauses("promises")
    assert {**must, **promises} == clauses()
    assert not set(must) & set(promises)
    assert {"calls", "purity", "jit", "scan", "none_leaves"} <= set(must)
    assert {"type", "half_precision", "mismatches", "layouts"} <= set(promises)


def test_promises_are_chosen_by_name():
    tx = optax.GradientTransformation(*gradtx.sgd(0.1))
    check_transformation(tx, PARAMS, level="must")
    check_transformation(tx, PARAMS, promises=["mismatches"])
    with pytest.raises(ConformanceError, match=r"^type: expected"):
        check_transformation(tx, PARAMS, promises=["mismatches", "type"])


def test_names_of_leaves_are_a_capability():
    with pytest.raises(ConformanceError, match="got arithmetic with None"):
        check_transformation(by_name(), PARAMS, level="must")
    check_transformation(by_name(), PARAMS, level="must", capabilities=["names"])


def test_arguments_of_a_loss_are_passed_on():
    given = {}

    def update(updates, state, params=None, *, value, grad, value_fn):
        given.update(value=value, grad=grad, value_fn=value_fn)
        return updates, state

    tx = optax.GradientTransformationExtraArgs(lambda params: (), update)
    with pytest.raises(ConformanceError, match=r"got a demand for the argument 'value', 'grad'"):
        check_transformation(tx, PARAMS, clauses=["calls"])
    check_transformation(tx, PARAMS, clauses=["calls"], capabilities=["value", "grad", "value_fn"])
    expected, slope = jax.value_and_grad(given["value_fn"])(PARAMS)
    assert given["value"] == expected
    assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, given["grad"], slope)))


def test_what_is_passed_by_hand_comes_first():
    def update(updates, state, params=None, *, value):
        assert value == 3
        return updates, state

    tx = optax.GradientTransformationExtraArgs(lambda params: (), update)
    check_transformation(
        tx, PARAMS, clauses=["calls"], capabilities="value", extra_args={"value": 3}
    )


def test_every_capability_that_passes_no_argument_exempts_from_a_clause():
    exempting = {name for one in clauses().values() for name in one.unless}
    assert exempting == set(CAPABILITIES) - {"value", "grad", "value_fn"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"level": "may"}, 'level must be "must" or "promises", got \'may\''),
        ({"level": "must", "promises": ["type"]}, 'promises must be None where level is "must"'),
        ({"promises": ["jit"]}, r"promises has the unknown names \['jit'\]; there are \['type'"),
        ({"capabilities": ["names", "eyes"]}, r"capabilities has the unknown names \['eyes'\]"),
        ({"skip": ["jits"]}, r"skip has the unknown names .*did you mean 'jit'"),
    ],
)
def test_wrong_names_are_refused(arguments, says):
    with pytest.raises(ValueError, match=f"check_transformation: {says}"):
        check_transformation(gradtx.sgd(0.1), PARAMS, **arguments)


def test_what_follows_is_listed_with_its_cause():
    named = {name: Failure(name, "") for name in clauses()}
    assert folded([named["state"], named["scan"], named["vmap"]]) == {"state": ("scan", "vmap")}
    assert folded([named["jit"], named["type"]]) == {"jit": (), "type": ()}


def test_one_error_of_one_line_is_one_fault():
    def update(updates, state, params=None, **extra):
        if sum(map(jnp.sum, jax.tree.leaves(updates))) > 0:
            updates = jax.tree.map(jnp.negative, updates)
        return updates, state

    tx = optax.GradientTransformationExtraArgs(lambda params: (), update)
    with pytest.raises(ConformanceError) as caught:
        check_transformation(tx, PARAMS, level="must")
    assert list(caught.value.causes) == ["jit"]
    assert {"vmap", "scan", "eval_shape"} <= set(caught.value.causes["jit"])
    first, look, also = str(caught.value).splitlines()
    assert "a decision in Python about a number that is only known when" in first
    assert "(TracerBoolConversionError at test_levels.py:" in first
    assert look.startswith("    Look at: use `jnp.where`")
    assert also.startswith("    Also fails: vmap, scan")


def test_a_message_has_fewer_than_ten_lines_and_says_that_only_promises_are_broken():
    def update(updates, state, params=None):
        return jax.tree.map(lambda u, v: u * v.astype(u.dtype), updates, state), state

    tx = optax.GradientTransformation(lambda params: params, update)
    with pytest.raises(ConformanceError) as caught:
        check_transformation(tx, PARAMS)
    assert len(caught.value.causes) > 4
    *lines, more, last = str(caught.value).splitlines()
    assert len(lines) < 8
    assert more.startswith("Broken too: ")
    assert "level='must'" in last
    with pytest.raises(ConformanceError) as caught:
        check_transformation(by_name(), PARAMS)
    assert "level='must'" not in str(caught.value)


NEEDING = {
    "value": gradtx.polyak_sgd(),
    "value of optax": optax.polyak_sgd(),
    "value_fn": gradtx.scale_by_newton(),
    "value, grad, value_fn": optax.scale_by_backtracking_linesearch(3),
    "obj_fn": gradtx.hutchinson_estimator_diag_hessian(0),
}


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("value", 'capabilities=("value",)'),
        ("value of optax", 'capabilities=("value",)'),
        ("value_fn", 'capabilities=("value_fn",)'),
        ("value, grad, value_fn", 'capabilities=("value", "grad", "value_fn")'),
        ("obj_fn", 'extra_args={"obj_fn": ...}'),
    ],
)
def test_a_missing_extra_argument_is_named_as_it_is_passed(name, way):
    with pytest.raises(ConformanceError) as caught:
        check_transformation(NEEDING[name], PARAMS)
    _, look = str(caught.value).splitlines()
    assert look == f"    Look at: pass `{way}`."


@pytest.mark.parametrize(
    ("clause", "ways"),
    [
        ("none_leaves", ["names", "whole_tree"]),
        ("missing_gradients", ["names", "whole_tree", "own_clock"]),
    ],
)
def test_a_clause_names_the_capabilities_that_exempt_from_it(clause, ways):
    with pytest.raises(ConformanceError) as caught:
        clauses()[clause](by_name(), PARAMS)
    told = " or ".join(f'`capabilities=("{way}",)`' for way in ways)
    assert str(caught.value).endswith(f"; if it needs that, say so with {told}.")
