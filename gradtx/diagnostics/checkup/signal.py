"""What `signal_report` says, as a finding."""

from __future__ import annotations

from collections.abc import Iterator

from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.subject import Examination, Subject, place_of, some
from gradtx.diagnostics.signal.report import SignalReport

# `check_parameters` says more about what is cut off.
_SAID_ELSEWHERE = ("healthy", "blocked", "unseen")


def _findings(subject: Subject) -> Iterator[Finding]:
    report = subject.report
    if report is None:
        return
    if report.unseen:
        yield _unseen(report)
    if report.kind not in _SAID_ELSEWHERE:
        yield _diagnosis(report)


def _diagnosis(report: SignalReport) -> Finding:
    diagnosis, culprit, silence = report.diagnosis, report.culprit, report.silence
    sentence, _, cure = diagnosis.sentence.partition(" To fix it, ")
    return Finding(
        kind=diagnosis.kind,
        severity="warning" if diagnosis.kind == "unstandardized" else "error",
        sentence=sentence.removeprefix(f"{diagnosis.kind}: "),
        cure=cure or "see the sentence.",
        place=place_of(diagnosis.layers),
        source=culprit.source if culprit else silence.line if silence else "",
        evidence={"factor": diagnosis.factor, "layers": list(diagnosis.layers)},
    )


def _unseen(report: SignalReport) -> Finding:
    names = list(dict.fromkeys(name for one in report.unseen for name in one.parameters))
    operations = list(dict.fromkeys(one.operation for one in report.unseen))
    return Finding(
        "unseen",
        "remark",
        f"{some(operations)} cannot be looked into, so nothing is said about what becomes of "
        f"{some(names)} there.",
        "examine what it calls by itself.",
        place=place_of(names),
        source=report.unseen[0].source,
        evidence={"operations": operations, "parameters": names},
    )


SIGNAL = Examination(_findings)
