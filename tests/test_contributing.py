"""Nothing that belongs to a public function was forgotten, and what was is named."""

import functools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import optax
import pytest

import gradtx
from gradtx import catalogue, diagnostics, initializers, normalization
from gradtx.compose.parts import Part, composed
from gradtx.effect import Effect
from gradtx.kernels.sign import SIGN
from gradtx.lift import lift

from .forgotten import (
    Kind,
    forgotten,
    functions_of,
    is_inner_part,
    is_used,
    misplaced,
    names_in,
    names_in_tests,
    undeclared,
)
from .testing.test_exports import EXPORTS, makes_a_transformation

# What docstrings must have beside summary, arguments, results and an example.
SECTIONS = {
    "kernels": ["equation"],
    "recipes": ["equation", "Raises", "Source"],
    "wrappers": [],
    "precision": ["equation", "Raises", "Source"],
}
ROOMS = tuple(SECTIONS)
METHODS = (Path(__file__).parents[1] / "examples" / "site" / "methods.md").read_text()

TRANSFORMATIONS = {
    name: function
    for name, function in functions_of(*ROOMS).items()
    if makes_a_transformation(function) and not is_inner_part(function)
}
WRAPPERS = [method.name for method in catalogue.methods("wrapper")]
# These are what their factory is.
MADE_BY_FACTORIES = {"with_hyperparams"}
MEASURES = {
    "diagnostics": diagnostics,
    "initializers": initializers,
    "normalization": normalization,
}


TESTS_OF_ROOMS = ", ".join(f"tests/{room}" for room in ROOMS)


@functools.cache
def transformation(*sections: str) -> Kind:
    places = {
        "gradtx/__init__.pyi, the list of public names": frozenset(gradtx.__all__),
        "a table in tests/testing/exports": {name.split("-")[0] for name in EXPORTS},
        f"a test in {TESTS_OF_ROOMS}, other than of refused arguments": names_in_tests(ROOMS),
        "the tables of all methods (python -m gradtx.catalogue examples/site/methods.md)": {
            *re.findall(r"^\| `(\w+)` ", METHODS, re.MULTILINE),
            *MADE_BY_FACTORIES,
        },
    }
    return Kind(places, sections)


def measure(room: str) -> Kind:
    places = {
        f"__all__ of gradtx/{room}/__init__.py": frozenset(MEASURES[room].__all__),
        f"a test in tests/{room}": names_in_tests([room]),
    }
    # Some initializers, such as zeros, refuse nothing.
    return Kind(places, () if room == "initializers" else ("Raises",))


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_nothing_was_forgotten_for_a_transformation(name):
    function = TRANSFORMATIONS[name]
    room = function.__module__.split(".")[1]
    lines = forgotten(name, function, transformation(*SECTIONS[room]))
    if name not in MADE_BY_FACTORIES:
        lines += undeclared(function)
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("name", WRAPPERS)
def test_nothing_was_forgotten_for_a_wrapper(name):
    assert misplaced(getattr(gradtx, name)) == []


@pytest.mark.parametrize("room", MEASURES)
def test_nothing_was_forgotten_for_what_is_not_a_transformation(room):
    lines = [
        line
        for name, function in functions_of(room).items()
        # Other names, such as those of jax, are of the same function.
        if name == function.__name__ and (name in MEASURES[room].__all__ or not is_used(function))
        for line in forgotten(name, function, measure(room))
    ]
    assert not lines, "\n".join(lines)


# A complete function, and all places that must have its name.


def scale_by_two(factor):
    """Multiply the updates by two.

        u = 2 * g

    Args:
        factor: not read.

    Returns:
        The transformation.

    Raises:
        ValueError: never.

    Source:
        Euclid, "Elements", book VII.

    Example:
        >>> 2 * 1
        2
    """


ALL_SECTIONS = Kind(
    {"the list": {"scale_by_two"}, "the tests": {"scale_by_two"}}, ("equation", "Raises", "Source")
)


def test_a_complete_function_lacks_nothing():
    assert forgotten("scale_by_two", scale_by_two, ALL_SECTIONS) == []


def test_each_place_without_the_name_is_named():
    for place in ALL_SECTIONS.places:
        kind = replace(ALL_SECTIONS, places=ALL_SECTIONS.places | {place: {"scale_by_three"}})
        assert forgotten("scale_by_two", scale_by_two, kind) == [f"scale_by_two is not in {place}"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("two.", "summary: one sentence in one line, with a period"),
        ("        u = 2 * g\n", "equation, indented by four spaces"),
        ("    Args:\n", "section 'Args'"),
        ("        factor: not read.\n", "entry for the argument 'factor'"),
        ("    Returns:\n", "section 'Returns'"),
        ("    Raises:\n", "section 'Raises'"),
        ("    Source:\n", "section 'Source'"),
        ("    Example:\n", "section 'Example'"),
        (">>> ", "example that runs, with '>>>'"),
    ],
)
def test_each_part_that_a_docstring_lacks_is_named(text, part):
    def incomplete(factor): ...

    incomplete.__doc__ = scale_by_two.__doc__.replace(text, "", 1)
    assert incomplete.__doc__ != scale_by_two.__doc__
    expected = f"the docstring of scale_by_two has no {part}"
    assert forgotten("scale_by_two", incomplete, ALL_SECTIONS) == [expected]


def test_a_kernel_without_a_degree_is_named():
    silent = replace(SIGN, name="scale_by_two", degree=None)
    assert undeclared(lambda: lift(SIGN)) == []
    assert undeclared(lambda: gradtx.chain(lift(silent), gradtx.sgd(0.1))) == [
        "scale_by_two has no degree"
    ]


class Keeping(NamedTuple):
    kept: Any


def test_states_in_fields_that_were_not_declared_are_named():
    def keeping(inner: optax.GradientTransformation, **declared):
        def init(params):
            return Keeping(inner.init(params))

        def update(updates, state, params=None):
            updates, kept = inner.update(updates, state.kept, params)
            return updates, Keeping(kept)

        parts = (Part("", inner),)
        return composed("keeping", parts, init, update, effect=Effect(degree=1, **declared))

    def declared(inner: optax.GradientTransformation):
        return keeping(inner, states=("kept",))

    def silent(inner: optax.GradientTransformation):
        return keeping(inner)

    assert misplaced(declared) == []
    assert misplaced(silent) == [
        "the effect of silent does not name the fields of the states inside"
    ]


def test_a_function_that_is_only_refused_counts_as_untested(tmp_path):
    path = tmp_path / "test_something.py"
    path.write_text(
        "compared = gradtx.adam\n"
        "refused = wrong_arguments(gradtx.lion, {})\n"
        "with pytest.raises(ValueError):\n"
        "    gradtx.sgd(None)\n"
    )
    assert {"adam", "lion", "sgd"} & names_in(path) == {"adam"}
