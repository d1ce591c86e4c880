"""What is broken, in few words, and each fault once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gradtx.testing.comparison import Violation
from gradtx.testing.errors import explained, place_of

_LINES = 8

# What a broken clause brings about: the clauses that are not reported where it is. Each of them is
# checked later than its cause.
_BROUGHT_ABOUT: dict[str, tuple[str, ...]] = {
    "calls": ("*",),
    "purity": (
        *("jit", "vmap", "scan", "eval_shape", "sharding", "donation", "layouts", "side_effects"),
        *("long_run", "numpy", "order", "type"),
    ),
    "updates": (
        *("none_leaves", "masked_leaves", "empty_trees", "vmap", "scan", "double_precision"),
        *("complex", "missing_gradients", "half_precision"),
    ),
    "state": (
        *("none_leaves", "masked_leaves", "empty_trees", "jit", "vmap", "scan", "eval_shape"),
        *("sharding", "double_precision", "donation", "layouts", "missing_gradients"),
        *("half_precision", "weak_types"),
    ),
    "jit": (
        *("vmap", "scan", "eval_shape", "sharding", "long_run", "weak_types"),
        *("donation", "layouts", "half_precision"),
    ),
    "weak_types": ("double_precision",),
    "leaks": ("side_effects",),
    "side_effects": ("long_run", "numpy", "order", "type", "donation", "missing_gradients"),
    "idle": ("mismatches",),
    "unread_parameters": ("mismatches",),
    "long_run": ("counters", "zeros", "half_precision", "full_counters"),
    "counters": ("full_counters",),
    "zeros": ("half_precision",),
    "none_leaves": ("missing_gradients",),
    "sharding": ("layouts",),
    "statistics": ("equation",),
}


@dataclass(frozen=True)
class Failure:
    """A broken clause.

    Attributes:
        clause: the name of the clause.
        sentence: what was asked, with which input and leaf, and what came.
        hint: what to look at; empty: unknown.
        error: the exception that says so, or that the transformation raised.
    """

    clause: str
    sentence: str
    hint: str = ""
    error: Exception | None = None

    def __str__(self) -> str:
        return f"{self.clause}: {self.sentence}"


def failure_of(error: Exception, name: str, asks: str, given: str, hint: str) -> Failure:
    """The failure that an exception means; a `Violation` may say more than its clause does."""
    if isinstance(error, Violation):
        given = given if error.given is None else error.given
        sentence, hint = str(error), error.hint or hint
    else:
        got, other = explained(error)
        sentence, hint = f"expected {asks} to run, got {got}", other or hint
    sentence = f"with {given}, {sentence}" if given else sentence
    return Failure(name, sentence, hint, error)


class ConformanceError(AssertionError):
    """A transformation breaks its contract.

    Args:
        failures: the broken clauses, in the order in which they were checked, or only their names
            with what was expected and what was found.
        remark: the last line of the message; empty: none.

    Attributes:
        failures: the name of each broken clause, with what was expected and what was found.
        causes: the names of the clauses that are the cause, each with those that fail with it.
    """

    def __init__(
        self, failures: Sequence[Failure] | Mapping[str, str], *, remark: str = ""
    ) -> None:
        if isinstance(failures, Mapping):
            failures = [Failure(*item) for item in failures.items()]
        self.failures = {one.clause: one.sentence for one in failures}
        self.causes = folded(failures)
        named = {one.clause: one for one in failures}
        lines = _lines([(named[name], also) for name, also in self.causes.items()])
        super().__init__("\n".join([*lines, *filter(None, [remark])]))


def folded(failures: Sequence[Failure]) -> dict[str, tuple[str, ...]]:
    """The clauses that are broken by themselves, each with those that fail for the same reason."""
    causes: dict[str, tuple[str, ...]] = {}
    root: dict[str, str] = {}
    for i, one in enumerate(failures):
        earlier = sorted(failures[:i], key=lambda other: not _is_same_error(other.error, one.error))
        cause = next((other for other in earlier if _brings_about(other, one)), None)
        root[one.clause] = one.clause if cause is None else root[cause.clause]
        if cause is None:
            causes[one.clause] = ()
        else:
            causes[root[one.clause]] += (one.clause,)
    return causes


def _brings_about(cause: Failure, one: Failure) -> bool:
    """Whether a failure follows from an earlier one, as far as one knows."""
    names = _BROUGHT_ABOUT.get(cause.clause, ())
    return one.clause in names or "*" in names or _is_same_error(cause.error, one.error)


def _is_same_error(first: Exception | None, second: Exception | None) -> bool:
    """Whether the transformation raised the same in the same line."""
    if first is None or second is None or isinstance(first, Violation):
        return False
    return type(first) is type(second) and place_of(first) == place_of(second) != ""


def _lines(causes: Sequence[tuple[Failure, tuple[str, ...]]]) -> list[str]:
    lines: list[str] = []
    for i, (one, also) in enumerate(causes):
        block = [str(one)]
        block += [f"    Look at: {one.hint}."] if one.hint else []
        block += [f"    Also fails: {', '.join(also)}."] if also else []
        is_last = i == len(causes) - 1
        if len(lines) + len(block) + (not is_last) > _LINES:
            lines.append(f"Broken too: {', '.join(other.clause for other, _ in causes[i:])}.")
            break
        lines += block
    return lines
