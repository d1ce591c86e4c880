"""Features that are the same in a whole batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from gradtx.diagnostics.checkup.entries import Read, tables_of
from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.subject import Subject, place_of

# With fewer examples, a feature may be constant by chance.
_FEW = 8


def constant_features(subject: Subject, read: Read, constant: np.ndarray) -> Iterator[Finding]:
    """The finding on some features that a layer receives, if it is the batch that has them.

    What the loss makes constant, a mask or a one for the bias, it makes on purpose.
    """
    number = len(read.rms)
    tables, columns = [], []
    for value in subject.data:
        array = subject.array(value)
        if subject.name(value) not in read.arrays or array.dtype.kind not in "biuf":
            continue
        if any(np.all(np.ptp(rows[:, constant], 0) == 0) for rows in tables_of(array, number)):
            tables.append(subject.name(value))
        elif array.ndim == 1 and len(array) == subject.examples and np.ptp(array) == 0:
            columns.append(subject.name(value))
    if not tables and not columns:
        return
    features = [int(i) for i in constant]
    one = len(features) == 1
    value = read.mean[constant[0]]
    yield Finding(
        "constant_feature",
        "warning" if _is_odd(subject, read, constant) else "remark",
        f"{len(features):,} of {number:,} features {'is' if one else 'are'} the same in the whole "
        f"batch: {listed(features)}" + (f", always {value:.4g}." if one else "."),
        "leave out what is constant in the whole training set: it tells the network nothing. A "
        "column that should vary was not read or not joined as it was meant.",
        place=f"{place_of(tables)} {listed(features)}" if tables else place_of(columns),
        source=read.source,
        evidence={"features": features, "share": len(features) / number},
    )


def _is_odd(subject: Subject, read: Read, constant: np.ndarray) -> bool:
    """Whether a few columns of a table are constant that are no codes, borders or coordinates.

    Zeros are common where most numbers are zero, as in the corners of images, a one is a bias, and
    a boundary of a domain has few coordinates.
    """
    number = len(read.rms)
    is_table = any(
        subject.name(value) in read.arrays and value.shape == (subject.examples, number)
        for value in subject.data
    )
    is_code = np.isin(np.abs(read.mean[constant]), (0, 1)).any()
    return (
        is_table
        and not is_code
        and number > 3
        and 4 * len(constant) <= number
        and (subject.examples or 0) >= _FEW
    )


def listed(features: Sequence[int], most: int = 8) -> str:
    """The numbers of some features, as an index."""
    more = [f"... ({len(features) - most:,} more)"] if len(features) > most else []
    return f"[{', '.join([*map(str, features[:most]), *more])}]"
