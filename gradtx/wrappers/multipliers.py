"""Learning rates that differ from leaf to leaf by a factor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from optax import GradientTransformationExtraArgs as ExtraArgs
from optax import ScalarOrSchedule

from gradtx import boxes
from gradtx.arguments import check, check_hyperparameter
from gradtx.compose.groups import partition
from gradtx.kernel import ANY_NUMBER, Kernel, PerLeaf
from gradtx.lift import lift
from gradtx.messages import in_the_name_of, shown
from gradtx.select import select

Multipliers: TypeAlias = Mapping[str, ScalarOrSchedule] | Callable[[str], float]

_OWNER = "multiply_learning_rate"
_REST = "all others"


def _multiplied(g, *, factor):
    return factor * g


MULTIPLY_LEARNING_RATE = Kernel(
    _OWNER, _multiplied, hyperparameters={"factor": ANY_NUMBER}, degree=1, factor="factor"
)
MULTIPLY_EACH_LEARNING_RATE = Kernel(
    _OWNER, _multiplied, options=("factor",), degree=1, factor="factor"
)


def multiply_learning_rate(factors: Multipliers, rest: ScalarOrSchedule | None = 1.0) -> ExtraArgs:
    """Multiply the update of each leaf by a factor of its own.

        u_i = factor_i * g_i

    After an optimizer in a chain the factor multiplies its learning rate, as PyTorch's parameter
    groups do, and any weight decay that the learning rate multiplies. Before an optimizer that
    normalizes gradients, such as Adam, it has no effect.

    Args:
        factors: pattern -> factor, where the pattern is searched for in the key path, as in
            `gradtx.select`, and the factor is a number, a scalar array or a schedule; or a function
            from the key path to a number.
        rest: the factor of the leaves that no pattern matches; None: each must match one.

    Returns:
        A transformation with the state `PartitionState` of the patterns, which holds only the
        counts of schedules; for a function the state is empty.

    Raises:
        ValueError: if a factor is NaN or not a scalar; in `init` and `update`, if a
            pattern matches no leaf, a leaf is in two patterns or, without `rest`, in none; the
            message lists the paths.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = {"embedding": jnp.ones(1), "layer_0": jnp.ones(1), "layer_1": jnp.ones(1)}
        >>> tx = gradtx.chain(gradtx.sgd(1.0), gradtx.multiply_learning_rate({"embedding": 0.1}))
        >>> updates, _ = tx.update(params, tx.init(params))
        >>> print(updates["embedding"], updates["layer_0"], updates["layer_1"])
        [-0.1] [-1.] [-1.]

        Smaller rates for lower layers:

        >>> depths = {"embedding": 2, "layer_0": 1, "layer_1": 0}
        >>> tx = gradtx.multiply_learning_rate(lambda path: 0.5 ** depths[path])
        >>> updates, _ = tx.update(params, tx.init(params))
        >>> print(updates["embedding"], updates["layer_0"], updates["layer_1"])
        [0.25] [0.5] [1.]
    """
    if not isinstance(factors, Mapping):
        return _by_function(factors)
    by_label: dict[str, ScalarOrSchedule] = dict(factors)
    if rest is not None:
        by_label[_REST] = rest
    for label, factor in by_label.items():
        name = "rest" if label == _REST else f"the factor of {label!r}"
        check_hyperparameter(_OWNER, name, factor, ANY_NUMBER)
    return partition(
        {label: lift(MULTIPLY_LEARNING_RATE, factor=factor) for label, factor in by_label.items()},
        _labels(factors, None if rest is None else _REST),
    )


def _labels(patterns: Iterable[str], rest: str | None) -> Callable[[Any], Any]:
    """The pattern that each leaf matches, as a label."""
    with in_the_name_of(_OWNER):
        labels = select.groups({pattern: pattern for pattern in patterns}, rest)

    def labels_of(tree: Any) -> Any:
        with in_the_name_of(_OWNER):
            return labels(tree)

    return labels_of


def _by_function(factor_of: Callable[[str], float]) -> ExtraArgs:
    if not callable(factor_of):
        raise ValueError(
            f"{_OWNER}: factors must map patterns to factors, or be a function of the path, got "
            f"{shown(factor_of)}"
        )

    def factor_at(name: str, _: Any) -> float:
        factor = factor_of(name)
        return float(check(_OWNER, f"the factor of {name!r}", factor, ANY_NUMBER))

    def factors(tree: Any) -> Any:
        return boxes.map_named(factor_at, tree)

    return lift(MULTIPLY_EACH_LEARNING_RATE, factor=PerLeaf(factors))
