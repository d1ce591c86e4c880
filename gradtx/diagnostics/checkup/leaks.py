"""Features that tell the target."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from gradtx.diagnostics.checkup.entries import inputs_of, sources_of
from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.ranges import differences
from gradtx.diagnostics.checkup.subject import Subject
from gradtx.diagnostics.tracing.graph import Value

# One or two features may be all that a curve depends on.
_FEWEST_FEATURES = 3
# By chance, a column is no copy of so many targets, nor of two classes if the rarer one has so
# many examples.
_FEWEST_EXAMPLES, _RARE = 16, 6
_SAME = 1 - 1e-6


def findings(subject: Subject) -> Iterator[Finding]:
    """The features that are a target, up to a factor and an offset."""
    number = subject.examples or 0
    read = [
        value
        for value in inputs_of(subject)
        if value.shape and value.shape[0] == number and len(value.shape) <= 2 and _is_real(value)
    ]
    columns = {value: subject.array(value).reshape(number, -1) for value in read}
    if number < _FEWEST_EXAMPLES or sum(c.shape[1] for c in columns.values()) < _FEWEST_FEATURES:
        return
    for target, line in _targets(subject).items():
        goal = subject.array(target)
        # What is predicted from itself is to be found in the features.
        if target in read or goal.size != number or not _is_telling(goal.ravel()):
            continue
        for value, table in columns.items():
            same = np.abs(_correlations(table, goal.ravel())) > _SAME
            if same.any():
                column = int(np.flatnonzero(same)[0])
                yield _leak(subject, value, column, target, line)
                return


def _is_real(value: Value) -> bool:
    return jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)


def _targets(subject: Subject) -> dict[Value, str]:
    """The arrays of the batch that outputs are compared with, and the line where they are."""
    met = [(one.node.inputs[one.target], one.node) for one in differences(subject)]
    met += [
        (one.labels or one.targets, one.node)
        for one in subject.cross_entropies
        if one.labels or one.targets
    ]
    met += [(one.targets, one.node) for one in subject.binary_cross_entropies]
    made_of = ((sources_of(subject, value), node.line) for value, node in met if value is not None)
    # A target that is made of several arrays is none of them.
    return {one[0]: line for one, line in made_of if len(one) == 1 and _is_real(one[0])}


def _is_telling(goal: np.ndarray) -> bool:
    """Whether a copy of it is no chance."""
    _, counts = np.unique(goal, return_counts=True)
    return len(counts) > 2 or (len(counts) == 2 and int(counts.min()) >= _RARE)


def _correlations(table: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The coefficient of correlation of each column with the goal; zero for a constant one."""
    columns = table.astype(np.float64) - table.mean(0, dtype=np.float64)
    goal = goal.astype(np.float64) - goal.mean(dtype=np.float64)
    norms = np.linalg.norm(columns, axis=0) * np.linalg.norm(goal)
    return goal @ columns / np.where(norms > 0, norms, np.inf)


def _leak(subject: Subject, value: Value, column: int, target: Value, line: str) -> Finding:
    index = f" [{column}]" if len(value.shape) > 1 else ""
    place = f"{subject.name(value)}{index}"
    return Finding(
        "target_leak",
        "warning",
        f"the feature {place} is the target in {subject.name(target)}, up to a factor and an "
        "offset: the network is told the answer.",
        "leave the target out of the features, and look for others that are not known before it.",
        place=place,
        source=line,
        evidence={"feature": column, "target": subject.name(target)},
    )
