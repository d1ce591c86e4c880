"""What `check_up` found: sorted findings, as text, HTML or JSON."""

from __future__ import annotations

import html
import json
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np

from gradtx.diagnostics.checkup.finding import SEVERITIES, Finding
from gradtx.diagnostics.checkup.kinds import KINDS
from gradtx.diagnostics.signal.report import SignalReport
from gradtx.messages import listed

# How many findings an error message names.
_MOST_NAMED = 3


@dataclass(frozen=True)
class CheckUp:
    """What is wrong with a training set-up; returned by `check_up`.

    Attributes:
        loss: the loss of the batch.
        findings: the findings, the worst first, each with those that follow from it.
        signal: the report on the signal in the layers; None: the loss has no layer.
        is_tried: whether the optimizer that was given, if any, was trained with.
    """

    loss: float
    findings: tuple[Finding, ...]
    signal: SignalReport | None = None
    is_tried: bool = True

    @property
    def is_healthy(self) -> bool:
        """Whether there is nothing worse than a remark."""
        return not self.at_least("warning")

    def at_least(self, severity: str) -> tuple[Finding, ...]:
        """The findings that are at least as bad as "error", "warning" or "remark".

        Raises:
            ValueError: if it is none of these.
        """
        if severity not in SEVERITIES:
            raise ValueError(f"at_least: severity must be one of {SEVERITIES}, got {severity!r}")
        allowed = SEVERITIES[: SEVERITIES.index(severity) + 1]
        return tuple(one for one in self.findings if one.severity in allowed)

    def assert_healthy(self, *, ignore: Collection[str] = (), severity: str = "warning") -> None:
        """Raise an error if a finding is worse than a remark, for the test of a training set-up.

        Args:
            ignore: kinds of findings that are on purpose.
            severity: the mildest severity that counts: "error", "warning" or "remark".

        Raises:
            AssertionError: if there is such a finding; the message names the worst ones.
            ValueError: if `severity` is none of these, or `ignore` is a string, or a word in it is
                no kind.
        """
        if isinstance(ignore, str):
            raise ValueError(f"assert_healthy: ignore must hold several kinds, got {ignore!r}")
        all_kinds = [kind for kinds in KINDS.values() for kind in kinds]
        unknown = sorted({str(kind) for kind in ignore} - {*all_kinds})
        if unknown:
            near = get_close_matches(unknown[0], all_kinds, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"they are {listed(all_kinds, 100)}"
            raise ValueError(
                f"assert_healthy: ignore must hold kinds of findings, got {listed(unknown)}; {hint}"
            )
        wrong = [one for one in self.at_least(severity) if one.kind not in ignore]
        if wrong:
            lines = [f"{one.kind} ({one.place or one.source}): {one.sentence}" for one in wrong]
            more = len(lines) - _MOST_NAMED
            lines[_MOST_NAMED:] = [f"... and {more} more"] if more > 0 else []
            raise AssertionError(
                "\n".join(
                    [f"check_up found {len(wrong)} fault{'s' if len(wrong) > 1 else ''}:", *lines]
                )
            )

    def to_json(self) -> str:
        """The findings as JSON: the loss, and a list of objects with the fields of `Finding`."""
        content = {"loss": self.loss, "findings": [one.as_dict() for one in self.findings]}
        return json.dumps(_plain(content), indent=2, allow_nan=False)

    def __str__(self) -> str:
        rest = "" if self.is_tried else "; nothing was trained with tx: learning=True does that"
        if not self.findings:
            return f"CheckUp: nothing found, loss {self.loss:.4g}{rest}"
        numbers = [
            f"{number} {severity}{'s' if number > 1 else ''}"
            for severity in SEVERITIES
            if (number := sum(one.severity == severity for one in self.findings))
        ]
        title = f"CheckUp: {', '.join(numbers)}, loss {self.loss:.4g}{rest}"
        return "\n".join([title, *map(str, self.findings)])

    def _repr_html_(self) -> str:
        items = "".join(
            f"<li><b>{html.escape(one.severity)}: {html.escape(one.kind)}</b> "
            f"{html.escape(', '.join(filter(None, (one.place, one.source))))}<br>"
            f"{html.escape(one.sentence)}<br><i>{html.escape(one.cure)}</i></li>"
            for one in self.findings
        )
        return f"<p>{html.escape(str(self).splitlines()[0])}</p><ul>{items}</ul>"


def _plain(value: Any) -> Any:
    """The value in the types of JSON, which has neither NaN nor infinity."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(one) for one in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else str(value)
    return value.item() if isinstance(value, np.generic) else value
