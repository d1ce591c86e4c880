"""One finding of an examination, and which findings follow from others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

# From the worst to the mildest. A remark may be on purpose, and is not a reason to act.
SEVERITIES = ("error", "warning", "remark")


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a training set-up, or may be.

    Attributes:
        kind: a word for it that programs can compare, such as "label_out_of_range".
        severity: "error" (the set-up does not do what it is meant to do), "warning" (it trains
            badly, or on something else), or "remark" (it may be on purpose).
        sentence: what is wrong, in words.
        cure: what to do about it.
        place: the parameter or argument concerned, by its path; several are separated by commas;
            empty: none.
        source: the line of the program, as `file.py:12 (function)`; empty: unknown.
        evidence: the figures from which it was concluded.
        consequences: the findings that follow from it, and should go away with it.
        examination: the part of the check-up that found it, such as "labels".
    """

    kind: str
    severity: str
    sentence: str
    cure: str
    place: str = ""
    source: str = ""
    evidence: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    consequences: tuple[Finding, ...] = ()
    examination: str = ""

    def __str__(self) -> str:
        where = ", ".join(filter(None, (self.place, self.source)))
        text = f"{self.severity}: {self.kind}"
        text += f" ({where})" if where else ""
        text += f"\n    {self.sentence}\n    Cure: {self.cure}"
        kinds = dict.fromkeys(one.kind for one in self.consequences if one.kind != self.kind)
        text += f"\n    What follows from it: {', '.join(kinds)}" if kinds else ""
        return text

    def as_dict(self) -> dict[str, Any]:
        """The finding as plain data, for JSON."""
        return {
            "kind": self.kind,
            "examination": self.examination,
            "severity": self.severity,
            "sentence": self.sentence,
            "cure": self.cure,
            "place": self.place,
            "source": self.source,
            "evidence": dict(self.evidence),
            "consequences": [one.as_dict() for one in self.consequences],
        }


# What a finding brings about: the kinds that are folded under it where both are found.
_SIGNAL = ("vanishing", "exploding", "dead", "saturated")
_BROUGHT_ABOUT: dict[str, tuple[str, ...]] = {
    "nan_data": ("nan",),
    "constant_feature": ("nan",),
    "index_out_of_range": ("nan",),
    "vanishing_epsilon": ("nan", "underflow", "overflow", "constant_feature"),
    "overflow": ("nan", "underflow"),
    "underflow": ("nan", "zero_gradient", "vanishing"),
    "empty_mask": ("nan",),
    "nan": (*_SIGNAL, "initial_loss", "large_logits", "zero_gradient"),
    "zero_loss": ("constant_loss", "zero_gradient", "blocked", "vanishing"),
    "constant_loss": ("zero_gradient", "unused", "vanishing"),
    "blocked": ("zero_gradient", "constant_loss", "vanishing", "saturated", "identical_units"),
    "identical_units": ("zero_gradient", "dead", "vanishing", "constant_loss"),
    "target_out_of_range": ("dead", "saturated", "exploding", "initial_loss", "zero_gradient"),
    "huge_feature": ("unstandardized", "exploding", "saturated", "large_logits", "initial_loss"),
    "unstandardized": ("exploding", "saturated", "large_logits", "initial_loss", "dead"),
    "exploding": ("large_logits", "initial_loss", "saturated", "one_hot_attention"),
    "constant_norm": ("zero_gradient", "dead", "vanishing", "constant_loss", "identical_units"),
    "constant_state": ("zero_gradient", "unused", "dead", "vanishing", "blocked"),
    "dead": ("zero_gradient", "vanishing"),
    "dropout_rate": ("dead", "exploding", "vanishing", "large_logits", "initial_loss"),
    "dropped_outputs": ("initial_loss",),
    "vanishing": ("zero_gradient",),
    "saturated": ("zero_gradient", "vanishing"),
    "large_logits": ("initial_loss",),
    "self_similarity": ("large_logits", "initial_loss", "one_hot_attention"),
    "unscaled_attention": ("one_hot_attention",),
    "label_out_of_range": ("initial_loss", "nan"),
    "double_softmax": ("vanishing", "cannot_overfit"),
    "wrong_sign": ("initial_loss", "cannot_overfit"),
    "swapped_arguments": ("initial_loss", "large_logits", "cannot_overfit"),
    "several_labels": ("initial_loss", "large_logits", "cannot_overfit"),
    "dominant_penalty": ("cannot_overfit", "learning_rate"),
    "broadcast_difference": ("broadcast_target", "mixed_examples"),
    "wrong_axis": (
        *("mixed_examples", "initial_loss", "future_leak"),
        *("constant_loss", "zero_loss", "zero_gradient"),
    ),
    "learning_rate": ("update_ratio", "cannot_overfit"),
    "lost_update": ("update_ratio", "cannot_overfit", "learning_rate"),
    "wrong_gradient": ("cannot_overfit", "learning_rate", "vanishing", "exploding"),
    "identical_examples": (
        *("constant_feature", "single_class", "unstandardized", "dead", "vanishing"),
        *("zero_gradient", "cannot_overfit"),
    ),
}


def folded(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings, the worst first, and under each those that follow from it."""
    ordered = sorted(findings, key=lambda one: SEVERITIES.index(one.severity))
    cause_of = {
        i: next(
            (j for j, cause in enumerate(ordered) if _brings_about(cause, finding)),
            None,
        )
        for i, finding in enumerate(ordered)
    }

    def root(i: int) -> int:
        cause = cause_of[i]
        return i if cause is None else root(cause)

    roots = [root(i) for i in range(len(ordered))]
    return tuple(
        replace(finding, consequences=tuple(ordered[j] for j, r in enumerate(roots) if r == i != j))
        for i, finding in enumerate(ordered)
        if roots[i] == i
    )


def _brings_about(cause: Finding, finding: Finding) -> bool:
    """Whether a finding follows from another, as far as one knows."""
    # A remark brings nothing about, and only an error makes NaN.
    if cause.severity == "remark" or (finding.kind == "nan" and cause.severity != "error"):
        return False
    # What the signal shows has been traced to the batch, or to a parameter.
    if finding.kind == cause.kind:
        return finding.examination == "signal" != cause.examination
    return finding.kind in _BROUGHT_ABOUT.get(cause.kind, ())
