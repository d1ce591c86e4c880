"""Everything exported that makes or wraps a transformation keeps the contract."""

import importlib
import inspect
import pkgutil
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.testing import ConformanceError, check_transformation

from . import exports
from .exports.export import HANDS_ON, Export, matrices

FAMILIES = [
    importlib.import_module(f"{exports.__name__}.{module.name}")
    for module in pkgutil.iter_modules(exports.__path__)
]
TABLES = [family.EXPORTS for family in FAMILIES if hasattr(family, "EXPORTS")]
EXPORTS: dict[str, Export] = {name: table[name] for table in TABLES for name in table}
# The tests of equations compile all methods as users do, here these are.
COMPILED_AS_USUAL = {"adam", "muon", "quantize_state-around_muon"}

SCALES_EVERYTHING = {"non_parameters": "optax multiplies whatever it is given"}
OPTAX: dict[str, Export] = {
    "optax_chain-of_ours": Export(
        lambda: optax.chain(gradtx.clip(1.0), gradtx.adam(0.1), optax.identity())
    ),
    "optax_identity": Export(lambda: optax.with_extra_args_support(optax.identity())),
    "optax_sgd": Export(lambda: optax.sgd(0.1), skip=SCALES_EVERYTHING),
    "optax_sign_sgd": Export(lambda: optax.sign_sgd(0.1), skip=SCALES_EVERYTHING),
    "optax_apply_if_finite": Export(
        lambda: optax.apply_if_finite(optax.sgd(0.1), 3), skip=SCALES_EVERYTHING
    ),
    "optax_masked-ours": Export(
        lambda: optax.masked(gradtx.adam(0.1), matrices),
        skip={"missing_gradients": "optax's mask does not fit a gradient that is None", **HANDS_ON},
    ),
}


def makes_a_transformation(exported: Any) -> bool:
    """Whether a function says that it returns a transformation."""
    if not inspect.isroutine(exported):
        return False
    returned = inspect.signature(exported, eval_str=True).return_annotation
    name = returned if isinstance(returned, str) else getattr(returned, "__name__", "")
    return "GradientTransformation" in name


def test_no_name_stands_in_two_families():
    names = Counter(name for table in TABLES for name in table)
    assert max(names.values()) == 1, names.most_common(1)


def test_every_exported_factory_is_in_the_table():
    factories = {n for n in gradtx.__all__ if makes_a_transformation(getattr(gradtx, n))}
    assert len(factories) > 50
    assert {name.split("-")[0] for name in EXPORTS} == factories


# What a factor of 0.1 behind a piece cannot hide, and takes long to compile.
OF_ITS_NUMBERS = (
    *("scan", "vmap", "sharding", "half_precision", "double_precision", "complex"),
    # The chain is asked for the degree of each kernel in it.
    *("degree", "sizes"),
)


def optimizer_of(piece: str) -> str | None:
    """The optimizer that is this piece and a learning rate, and is judged with the same leaves."""
    name = piece.removeprefix("scale_by_")
    is_inside = name != piece and name in EXPORTS
    return name if is_inside and EXPORTS[name].params is EXPORTS[piece].params is None else None


@pytest.mark.parametrize("name", [*EXPORTS, *OPTAX])
def test_contract(name, request):
    if name in COMPILED_AS_USUAL:
        request.getfixturevalue("usual_compilation")
    export = {**EXPORTS, **OPTAX}[name]
    judged_there = {} if optimizer_of(name) is None else dict.fromkeys(OF_ITS_NUMBERS, "in a chain")
    check_transformation(
        export.make(),
        export.params,
        capabilities=export.capabilities,
        extra_args=export.extra_args,
        skip=export.skip | judged_there,
    )


@pytest.mark.parametrize("name", OPTAX)
def test_what_is_skipped_is_a_defect_that_the_kit_finds(name):
    export = OPTAX[name]
    for clause in export.skip:
        with pytest.raises(ConformanceError, match=clause):
            check_transformation(export.make(), clauses=[clause])


@pytest.mark.parametrize("name", EXPORTS)
def test_init_takes_shapes_and_dtypes_where_values_do_not_matter(name):
    tx, params = EXPORTS[name].make(), EXPORTS[name].params or {"w": jnp.ones((4, 3))}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)), params)
    if EXPORTS[name].begins_with_values:
        with pytest.raises(ValueError, match=r"starts with the values .*use jax.eval_shape"):
            tx.init(shapes)
        return
    expected = jax.eval_shape(tx.init, params)
    found = jax.eval_shape(lambda: tx.init(shapes))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert jax.tree.leaves(found) == jax.tree.leaves(expected)
