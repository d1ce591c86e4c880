"""The contract as tests of pytest."""

import sys

import jax
import jax.numpy as jnp
import optax
import pytest

import gradtx
from gradtx.testing import ConformanceError, transformation_test_suite

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(3, 2)}
CHEAP = ["calls", "purity", "type"]

test_one = transformation_test_suite(gradtx.sgd(0.1), PARAMS, clauses=CHEAP)
test_several = transformation_test_suite(
    {"sgd": gradtx.sgd(0.1), "lion": lambda: gradtx.lion(0.1)}, PARAMS, clauses=CHEAP
)


def lookalike():
    def update(updates, state, params=None):
        if sum(map(jnp.sum, jax.tree.leaves(updates))) > 0:
            updates = jax.tree.map(jnp.negative, updates)
        return updates, state

    return optax.GradientTransformation(lambda params: (), update)


def cases_of(test):
    (mark,) = test.pytestmark
    return mark.kwargs["ids"], mark.args[1]


def test_ids_name_the_clauses_and_what_has_a_name():
    assert cases_of(test_one)[0] == CHEAP
    assert cases_of(test_several)[0][2:4] == ["sgd-type", "lion-calls"]
    ids, _ = cases_of(transformation_test_suite(lookalike, level="must", skip=["jit"]))
    assert ids[0] == "calls"
    assert "jit" not in ids
    assert "type" not in ids


def test_a_fault_fails_one_test_and_what_follows_is_skipped():
    test = transformation_test_suite(lookalike, PARAMS)
    test("", "calls")
    with pytest.raises(ConformanceError, match=r"^jit: .*a decision in Python about a number"):
        test("", "jit")
    with pytest.raises(pytest.skip.Exception, match="fails for the same reason as jit"):
        test("", "scan")
    with pytest.raises(ConformanceError, match=r"^type: expected an optax"):
        test("", "type")


def test_a_function_is_called_once_and_late():
    made = []

    def make():
        made.append(gradtx.sgd(0.1))
        return made[-1]

    test = transformation_test_suite(make, PARAMS)
    assert made == []
    test("", "calls")
    test("", "purity")
    assert len(made) == 1


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="transformation_test_suite: tx must be a gradient"):
        transformation_test_suite(3)
    with pytest.raises(ValueError, match="transformation_test_suite: skip has the unknown names"):
        transformation_test_suite(gradtx.sgd(0.1), skip=["jits"])
    with pytest.raises(ValueError, match="transformation_test_suite: tx must be a gradient"):
        transformation_test_suite(lambda: 3)("", "calls")


def test_without_pytest_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytest", None)
    with pytest.raises(ImportError, match=r'needs pytest: pip install "gradtx\[test\]"'):
        transformation_test_suite(gradtx.sgd(0.1))
