"""Examine the zoo: `python -m tests.diagnostics.zoo.run [--healthy | --sick] [NAME ...]`.

A NAME selects the cases, and the files of cases, that contain it. The table has a line for each
case: whether what was found is right, what was found, and where. The exit status is 1 if more is
wrong than the zoo allows.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax

from gradtx import diagnostics

from .case import Healthy, SetUp, Sick, healthy_cases, sick_cases, trained

# Of the findings on healthy cases, and of the faults in sick ones.
ALLOWED_FALSE_ALARMS = 2
ALLOWED_MISSED = 0.1


@dataclass(frozen=True)
class Outcome:
    """What the examination of one set-up came to.

    Attributes:
        name: the case, and the state of it.
        is_right: whether that is what had to be found.
        found: the findings above a remark, one per line; or the exception.
        others: the number of findings that the case does not speak of.
        seconds: the duration, compilation included.
    """

    name: str
    is_right: bool
    found: tuple[str, ...]
    others: int
    seconds: float


def examine(set_up: SetUp) -> tuple[Any, ...]:
    """The findings above a remark."""
    # As in a user's process, where arrays of unequal rank may meet.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        checked = diagnostics.check_up(
            set_up.loss_fn, set_up.params, *set_up.batch, **set_up.options
        )
    failed = [finding for finding in checked.findings if finding.kind == "not_examined"]
    if failed:
        # For a user a remark, for the zoo an error.
        raise RuntimeError(failed[0].sentence)
    return tuple(finding for finding in checked.findings if finding.severity != "remark")


def _line(finding: Any) -> str:
    return f"{finding.kind} at {finding.place} ({finding.source}): {finding.sentence}"


def _outcome(name: str, build: Any, judge: Any) -> Outcome:
    start = time.perf_counter()
    try:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            set_up = build()
        findings = examine(set_up)
    except Exception as error:  # One broken case must not hide the others.
        lines = (f"{type(error).__name__}: {str(error)[:500]}",)
        return Outcome(name, False, lines, 0, time.perf_counter() - start)
    is_right, others = judge(findings)
    lines = tuple(map(_line, findings))
    return Outcome(name, is_right, lines, others, time.perf_counter() - start)


def healthy_outcomes(case: Healthy) -> Iterator[Outcome]:
    """Nothing may be found at initialization, nor after some steps."""

    def judge(findings: Any) -> tuple[bool, int]:
        return not findings, len(findings)

    yield _outcome(case.name, case.build, judge)
    if case.is_trained:

        def after() -> SetUp:
            return trained(case.build(), case.rate)[0]

        yield _outcome(f"{case.name}, trained", after, judge)


def _names_the_fault(case: Sick, finding: Any) -> bool:
    return finding.kind in case.kinds and case.is_at(f"{finding.place} {finding.source}")


def sick_outcomes(case: Sick) -> Iterator[Outcome]:
    """The fault must be named with its place, and be gone where it is repaired."""

    def judge(findings: Any) -> tuple[bool, int]:
        named = [f for f in findings if _names_the_fault(case, f)]
        return bool(named), len(findings) - len(named)

    yield _outcome(case.name, case.build, judge)
    if case.is_curable:

        def judge_cured(findings: Any) -> tuple[bool, int]:
            named = [f for f in findings if f.kind in case.kinds]
            return not named, len(findings) - len(named)

        yield _outcome(f"{case.name}, cured", lambda: case.build(cured=True), judge_cured)


def _shown(outcomes: Iterable[Outcome], is_verbose: bool) -> list[Outcome]:
    """The outcomes, each printed as soon as it is there."""
    kept = []
    for outcome in outcomes:
        mark = "right" if outcome.is_right else "WRONG"
        lines = outcome.found if is_verbose or not outcome.is_right else ()
        print(f"{mark}  {outcome.seconds:5.1f} s  +{outcome.others}  {outcome.name}", flush=True)
        for line in lines:
            print(f"{' ' * 20}{line}")
        kept.append(outcome)
    return kept


def main(arguments: list[str] | None = None) -> int:
    """Examine the selected cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--healthy", action="store_true", help="only the healthy cases")
    parser.add_argument("--sick", action="store_true", help="only the sick cases")
    parser.add_argument("--verbose", action="store_true", help="show what was found where right")
    parser.add_argument("names", nargs="*", metavar="NAME")
    chosen = parser.parse_args(arguments)

    def is_chosen(case: Any) -> bool:
        words = f"{case.name} {case.build.__module__}"
        return not chosen.names or any(name in words for name in chosen.names)

    # Each program runs once.
    jax.config.update("jax_disable_most_optimizations", True)
    status = 0
    if not chosen.sick:
        cases = [case for case in healthy_cases() if is_chosen(case)]
        outcomes = _shown((o for case in cases for o in healthy_outcomes(case)), chosen.verbose)
        alarms = sum(outcome.others for outcome in outcomes)
        broken = sum(not (o.is_right or o.others) for o in outcomes)
        print(f"{len(outcomes)} states of {len(cases)}: {alarms} false alarms, {broken} errors")
        status |= alarms + broken > ALLOWED_FALSE_ALARMS
    if not chosen.healthy:
        cases = [case for case in sick_cases() if is_chosen(case)]
        both = [_shown(sick_outcomes(case), chosen.verbose) for case in cases]
        named = sum(outcomes[0].is_right for outcomes in both)
        cured = [outcome.is_right for outcomes in both for outcome in outcomes[1:]]
        print(f"{named} of {len(cases)} named, {sum(cured)} of {len(cured)} cures confirmed")
        status |= len(cases) - named > ALLOWED_MISSED * len(cases)
    return status


if __name__ == "__main__":
    sys.exit(main())
