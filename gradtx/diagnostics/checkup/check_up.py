"""`check_up`: all examinations that apply to a training set-up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gradtx.diagnostics.checkup.attention import ATTENTION
from gradtx.diagnostics.checkup.data import DATA
from gradtx.diagnostics.checkup.dropout import DROPOUT
from gradtx.diagnostics.checkup.examples import EXAMPLES
from gradtx.diagnostics.checkup.finding import Finding, folded
from gradtx.diagnostics.checkup.head import HEAD
from gradtx.diagnostics.checkup.labels import LABELS
from gradtx.diagnostics.checkup.learning import LEARNING
from gradtx.diagnostics.checkup.parameters import PARAMETERS
from gradtx.diagnostics.checkup.precision import PRECISION
from gradtx.diagnostics.checkup.result import CheckUp
from gradtx.diagnostics.checkup.shapes import SHAPES
from gradtx.diagnostics.checkup.signal import SIGNAL
from gradtx.diagnostics.checkup.subject import Examination, Subject, examine, subject_of
from gradtx.messages import shown

_EXAMINATIONS = (
    SIGNAL,
    PARAMETERS,
    DATA,
    LABELS,
    PRECISION,
    HEAD,
    ATTENTION,
    EXAMPLES,
    SHAPES,
    DROPOUT,
)


def check_up(
    loss_fn: Callable[..., Any],
    params: Any,
    *batch: Any,
    has_aux: bool = False,
    classes: int | None = None,
    tx: Any = None,
    learning: bool = False,
) -> CheckUp:
    """Examine a training set-up, and say what is wrong with it.

    The loss is traced, and evaluated a few times; the network does not have to be modified. Each
    examination can also be called alone: `check_parameters`, for example.

    Args:
        loss_fn: the loss, a real scalar: `loss_fn(params, *batch)`.
        params: the parameters, a tree of arrays. Leaves that are not inexact arrays are left alone.
        *batch: further arguments of the loss function. Arrays are treated as data; anything else is
            passed on unchanged.
        has_aux: whether the loss returns a pair of the loss and something else.
        classes: the number of classes of a classifier; None: what the loss shows.
        tx: the optimizer, a gradient transformation; None: nothing is said about updates. Its first
            update is looked at; whether training with it works shows only with `learning`.
        learning: whether to train on the batch, and see what the loss does. That takes a few
            seconds for a small network, and half as long again as the rest for a large one; see
            `check_learning`.

    Returns:
        A `CheckUp`: `findings` are sorted, the worst first, each with the place, the figures and a
        cure. `print` shows them, and `assert_healthy()` raises an error if one of them is worse
        than a remark.

    Raises:
        ValueError: if `loss_fn` is not callable or does not return a real scalar, if `params` has
            no inexact arrays, or if `classes` is not an integer of at least 2.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx import diagnostics
        >>> params = {"hidden": jnp.full((4, 8), 0.1), "head": jnp.ones(8), "old": jnp.ones(3)}
        >>> def loss_fn(params, x, y):
        ...     hidden = jnp.tanh(x @ params["hidden"])
        ...     return jnp.mean((hidden @ params["head"] - y) ** 2)
        >>> x = jnp.linspace(-1.0, 1.0, 32).reshape(8, 4)
        >>> checked = diagnostics.check_up(loss_fn, params, x, x[:, 0])
        >>> for finding in checked.findings:
        ...     print(finding.severity, finding.kind, finding.place)
        error identical_units hidden
        warning unused old
    """
    subject = subject_of(
        "check_up", loss_fn, params, batch, has_aux=has_aux, classes=classes, tx=tx
    )
    examinations = (*_EXAMINATIONS, LEARNING) if learning else _EXAMINATIONS
    findings = _all_findings(subject, examinations)
    # The report is there unless it failed, which is then one of the findings.
    is_tried = tx is None or learning
    return CheckUp(subject.loss, folded(findings), vars(subject).get("report"), is_tried=is_tried)


def _all_findings(subject: Subject, examinations: Sequence[Examination]) -> list[Finding]:
    """The findings of all examinations; one that a program defeats does not spoil the others."""
    try:
        return examine(subject, *examinations)
    except Exception:
        findings = []
        for one in examinations:
            try:
                findings += examine(subject, one)
            except Exception as error:
                findings.append(_not_examined(one.name, error))
        return findings


def _not_examined(name: str, error: Exception) -> Finding:
    return Finding(
        "not_examined",
        "remark",
        f"the examination '{name}' failed, with {type(error).__name__}: {shown(str(error))}",
        f"call it alone, check_{name}, to see the whole error, and report it as a bug.",
        evidence={"examination": name},
    )
