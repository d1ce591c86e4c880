"""What `signal_report` says, as a finding."""

from collections.abc import Iterator

from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.subject import Examination, Subject, place_of

_WARNINGS = ("unstandardized",)


def _findings(subject: Subject) -> Iterator[Finding]:
    report = subject.report
    # `check_parameters` says more about what is cut off.
    if report is None or report.kind in ("healthy", "blocked"):
        return
    diagnosis = report.diagnosis
    sentence, _, cure = diagnosis.sentence.partition(" To fix it, ")
    culprit = report.culprit
    yield Finding(
        kind=diagnosis.kind,
        severity="warning" if diagnosis.kind in _WARNINGS else "error",
        sentence=sentence.removeprefix(f"{diagnosis.kind}: "),
        cure=cure or "see the sentence.",
        place=place_of(diagnosis.layers),
        source=culprit.source if culprit else "",
        evidence={"factor": diagnosis.factor, "layers": list(diagnosis.layers)},
    )


SIGNAL = Examination(_findings)
