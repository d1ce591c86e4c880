"""How many of optax's factories, and of gradtx's of the same names, keep each clause.

    python -m gradtx.testing RESULTS.json [PAGE.md ...]

updates the results, which takes minutes for each clause that they lack, and the table of them in a
text. A result is the names of the clauses that a factory breaks, each factory with its defaults, on
a tree of a matrix, a vector and a scalar.
"""

from __future__ import annotations

import inspect
import json
import re
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

import gradtx
from gradtx.catalogue import example_of
from gradtx.testing.clause import ULPS, Case
from gradtx.testing.conformance import clauses
from gradtx.testing.trees import gradients_like
from gradtx.wrappers.factory import members_of

LIBRARIES = ("optax", "gradtx")

# Needs more than simple arguments: another factory, pairs of parameters, gradients of examples, a
# loss with a key of its own, or other functions than those of gradtx.
_LEFT_OUT = frozenset(
    {
        *("chain", "named_chain", "inject_hyperparams", "inject_stateful_hyperparams"),
        *("multi_transform", "partition", "lookahead", "stateless", "stateless_with_tree_map"),
        *("differentially_private_aggregate", "dpsgd", "sophia", "scale_by_muon"),
        *("measure_with_ema", "snapshot", "conditionally_mask", "conditionally_transform"),
    }
)
_LOSS = ("value", "grad", "value_fn")
_CAPABILITIES = {
    **dict.fromkeys(
        ("lbfgs", "scale_by_backtracking_linesearch", "scale_by_zoom_linesearch"), _LOSS
    ),
    **dict.fromkeys(("polyak_sgd", "scale_by_polyak", "momo", "momo_adam"), ("value",)),
    "reduce_on_plateau": ("value",),
    "schedule_free": ("own_clock",),
}
_SHAPES = {
    "kernel": jax.ShapeDtypeStruct((8, 3), jnp.float32),
    "layers": [jax.ShapeDtypeStruct((3,), jnp.float32)],
    "temperature": jax.ShapeDtypeStruct((), jnp.float32),
}

WORDS = ("breaks", "keeps")
Results = dict[str, dict[str, dict[str, str]]]


def factories() -> list[str]:
    """The names of optax's public factories that can be called with simple arguments."""
    names = set()
    for module in (optax, optax.contrib):
        for name, thing in inspect.getmembers(module, inspect.isfunction):
            returned = str(inspect.signature(thing).return_annotation)
            if "GradientTransformation" in returned and not name.startswith("_"):
                names.add(name)
    return sorted(names - _LEFT_OUT)


def made(library: str, name: str) -> optax.GradientTransformation:
    """What a factory of a library makes, with the arguments that gradtx's signature asks for."""
    ours = getattr(gradtx, name)
    theirs = getattr(optax.contrib, name, None) or getattr(optax, name)
    inner = {"gradtx": gradtx.sgd(0.1), "optax": optax.sgd(0.1)}[library]
    arguments = {}
    for argument in inspect.signature(ours, eval_str=True).parameters.values():
        if argument.default is not argument.empty or argument.kind is argument.VAR_KEYWORD:
            continue
        if argument.name in ("mask", "freeze_mask"):
            arguments[argument.name] = _is_matrix
        elif optax.GradientTransformation in members_of(argument.annotation):
            arguments[argument.name] = inner
        else:
            arguments[argument.name] = example_of(argument)
    with warnings.catch_warnings(action="ignore"):  # some have a notice for their users
        return {"gradtx": ours, "optax": theirs}[library](**arguments)


def _is_matrix(params: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)


def broken(library: str, name: str, checked: Collection[str]) -> set[str]:
    """Which of these clauses a factory breaks; all of them if it cannot be called."""
    needs = frozenset(_CAPABILITIES.get(name, ()))
    case = Case(made(library, name), gradients_like(_SHAPES), None, ULPS, needs)
    known = clauses()
    if known["calls"].judge(case) is not None:
        return set(checked)
    return {clause for clause in checked if known[clause].judge(case) is not None}


def update(path: Path, report: Callable[[str], None] = print) -> None:
    """Add the results that a file lacks, and take those away that nobody asks for."""
    results: Results = json.loads(path.read_text()) if path.exists() else {}
    names = list(clauses())
    for library in LIBRARIES:
        old, new = results.get(library, {}), {}
        results[library] = {**old, **new}
        for name in factories():
            found = {word: set(old.get(name, {}).get(word, "").split()) for word in WORDS}
            missing = set(names) - found["breaks"] - found["keeps"]
            if missing:
                found["breaks"] |= broken(library, name, missing)
                found["keeps"] |= missing - found["breaks"]
                report(f"{library}.{name}: breaks {len(found['breaks'])} of {len(names)}")
            new[name] = {word: " ".join(n for n in names if n in found[word]) for word in WORDS}
            results[library] = {**old, **new}
            path.write_text(json.dumps(results, indent=1) + "\n")
        results[library] = new
    path.write_text(json.dumps(results, indent=1) + "\n")


def tried(results: Results) -> set[str]:
    """The clauses that the results know."""
    found = (each for library in LIBRARIES for each in results[library].values())
    return {clause for each in found for word in WORDS for clause in each[word].split()}


def table(results: Results) -> str:
    """The results as a table in Markdown: how many factories keep each clause."""
    rows = ["| Clause | Level | optax | gradtx |", "|-|-|-|-|"]
    known = tried(results)
    for name, clause in clauses().items():
        if name not in known:
            continue
        optaxs, ours = (
            sum(name in each["keeps"].split() for each in results[library].values())
            for library in LIBRARIES
        )
        level = "must" if clause.level == "must" else "promise"
        rows.append(f"| `{name}` | {level} | {optaxs} | {ours} |")
    return "\n".join(rows)


def with_table(text: str, results: Results) -> str:
    """A text with its table of clauses brought up to date."""
    pattern = r"(?m)^\| Clause \| Level \|.*\n(?:\|.*\n)+"
    return re.sub(pattern, lambda _: f"{table(results)}\n", text)


def main(arguments: list[str]) -> None:
    """Update the results, and the texts that have a table of them."""
    path, *texts = map(Path, arguments)
    update(path)
    for text in texts:
        text.write_text(with_table(text.read_text(), json.loads(path.read_text())))
