"""The findings for a loss from which no gradient reaches the parameters."""

from __future__ import annotations

from collections.abc import Sequence

from gradtx.diagnostics.signal.diagnosis import Diagnosis
from gradtx.diagnostics.signal.layer_signal import LayerSignal
from gradtx.diagnostics.signal.learning import IdleParameter

_STRAIGHT_THROUGH = (
    "keep the numbers as they are, or pass the gradient straight through: x + stop_gradient(f(x) "
    "- x)"
)
_CURES = {
    "stop_gradient": "remove the stop_gradient or, if the parameters are frozen on purpose, take "
    "them out of the parameters",
    "argmax": "use a softmax, which has a derivative, or train on the logits",
    "argmin": "pass the gradient of codes straight through, z + stop_gradient(codes - z), or use a "
    "softmax of the negative values, which has a derivative",
    **dict.fromkeys(
        ("argsort", "top_k"), "use the sorted or selected values, which have a derivative"
    ),
    "while_loop": "use a scan, or a fori_loop with a fixed number of steps, through which a "
    "gradient passes backwards",
    **dict.fromkeys((">", ">=", "<", "<=", "==", "!="), "use a smooth function, such as a sigmoid"),
}


def blocked(idle: Sequence[IdleParameter], layers: Sequence[LayerSignal]) -> Diagnosis | None:
    """Parameters that the loss depends on only through operations without a derivative."""
    found = [one for one in idle if one.reason == "blocked"]
    if not found:
        return None
    cuts = list(dict.fromkeys((one.operation, one.source) for one in found))
    where = " and ".join(
        f"`{operation}`{f' at {source}' if source else ''}" for operation, source in cuts[:2]
    )
    more = f" and {len(cuts) - 2} other places" if len(cuts) > 2 else ""
    cure = cure_of(cuts[0][0])
    names = {one.name for one in found}
    verb = "does" if len(found) == 1 else "do"
    return Diagnosis(
        "blocked",
        tuple(layer.name for layer in layers if layer.name.split("[")[0] in names),
        0.0,
        f"blocked: no gradient passes through {where}{more}, so {some(sorted(names))} {verb} not "
        f"learn. To fix it, {cure}.",
    )


def cure_of(operation: str) -> str:
    """What to do about an operation that passes no gradient on."""
    return _CURES.get(operation, _STRAIGHT_THROUGH)


def solved(loss: float, *, learns: bool) -> Diagnosis | None:
    """A loss that is exactly zero and has no gradient."""
    if learns or loss:
        return None
    return Diagnosis(
        "zero_loss",
        (),
        0.0,
        "zero_loss: the loss is exactly zero and has no gradient: the problem is solved, or the "
        "labels are compared with themselves, or a softmax has a single class. To fix it, look at "
        "what the loss compares, and at its smallest terms.",
    )


def constant(idle: Sequence[IdleParameter], *, learns: bool) -> Diagnosis | None:
    """A loss that is not zero and has no gradient."""
    if learns:
        return None
    if all(one.reason in ("unused", "integer_parameter") for one in idle):
        sentence = (
            "the loss does not depend on any parameter. To fix it, compute it from the outputs of "
            "the network."
        )
    else:
        sentence = (
            "the loss depends on the parameters, but for this batch its gradient is exactly zero. "
            "To fix it, look for a clip or a maximum that always acts, a factor or a mask that is "
            "zero, or a softmax over a single number."
        )
    return Diagnosis("constant_loss", (), 0.0, f"constant_loss: {sentence}")


def some(names: Sequence[str], most: int = 3) -> str:
    """A few names, and how many more there are."""
    quoted = ", ".join(f"'{name}'" for name in names[:most])
    return f"{quoted} and {len(names) - most:,} more" if len(names) > most else quoted
