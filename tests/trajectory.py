"""A trajectory of gradients, passed through a transformation and the paper's equation."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradtx.testing import references
from gradtx.testing.references import Reference

STEPS = 24
SHAPES = {"matrix": (2, 5), "vector": (7,)}

# A step rounds each of its few operations to 6e-8. Moving averages forget the errors of old steps.
SINGLE = 2e-6
# Here the papers are less exact: their 1 - 0.9999^t loses four digits.
DOUBLE = 1e-12


@dataclass(frozen=True)
class Case:
    """A factory, and the arguments that it and its reference are given.

    Attributes:
        factory: makes the transformation.
        arguments: keyword arguments. Floats and functions are hyperparameters, others are options.
        equation: makes the reference; None: that of the factory's name.
        steps: the number of steps.
    """

    factory: Callable[..., optax.GradientTransformationExtraArgs]
    arguments: dict[str, Any] = field(default_factory=dict)
    equation: Callable[..., Reference] | None = None
    steps: int = STEPS

    def reference(self) -> Reference:
        """The equation with the arguments that are about numbers."""
        make = self.equation or getattr(references, self.factory.__name__)
        return make(**{name: x for name, x in self.arguments.items() if "dtype" not in name})

    def __str__(self) -> str:
        settings = [
            f"{name}={getattr(value, '__name__', value)}" for name, value in self.arguments.items()
        ]
        return "-".join([self.factory.__name__, *settings])

    def hyperparameters(self) -> dict[str, float]:
        """The numbers among the arguments and the defaults."""
        signature = inspect.signature(self.factory).parameters
        defaults = {name: parameter.default for name, parameter in signature.items()}
        given = defaults | self.arguments
        return {name: value for name, value in given.items() if type(value) is float}

    def is_in_optax(self) -> bool:
        """Whether optax has the factory and these arguments, under the same names.

        Few of its hyperparameters may be schedules.
        """
        peer = getattr(optax, self.factory.__name__, None)
        if peer is None or any(callable(value) for value in self.arguments.values()):
            return False
        return self.arguments.keys() <= inspect.signature(peer).parameters.keys()


Check = Callable[[Case], None]


def cases(factory: Any, *settings: dict[str, Any], **fields: Any) -> list[Case]:
    """One case for each dictionary of arguments."""
    return [Case(factory, arguments, **fields) for arguments in settings]


def last_cases(table: list[Case]) -> list[Case]:
    """The last case of each factory."""
    return list({case.factory: case for case in table}.values())


def equation_tests(table: list[Case], *, unlike_optax: Iterable[Any] = ()) -> list[Any]:
    """Test parameters (check, case) that compare each case with the paper and with optax.

    Every case runs in double precision. In single precision the last one of each factory, which
    should say most about it, runs with its hyperparameters as arrays and as schedules, the others
    with numbers.

    Args:
        table: the cases.
        unlike_optax: the factories that follow the paper where optax does not.
    """
    tunable = [case for case in last_cases(table) if case.hyperparameters()]
    peers = [case for case in table if case.is_in_optax() and case.factory not in unlike_optax]
    checks: list[tuple[Check, list[Case]]] = [
        (single, [case for case in table if case not in tunable]),
        (double, [case for case in table if case not in peers]),
        (double_and_optax, peers),
        (arrays, tunable),
        (schedules, tunable),
    ]
    return [
        pytest.param(check, case, id=f"{check.__name__}-{case}")
        for check, chosen in checks
        for case in chosen
    ]


def with_hyperparameters(case: Case, convert: Callable[[float], Any]) -> Case:
    """The case with every hyperparameter converted, those that have a default too."""
    changed = {name: convert(value) for name, value in case.hyperparameters().items()}
    return replace(case, arguments=case.arguments | changed)


def single(case: Case) -> None:
    """Compare with the paper in single precision."""
    check_equation(case)


def double(case: Case) -> None:
    """Compare with the paper in double precision."""
    with jax.enable_x64(True):
        check_equation(case)


def double_and_optax(case: Case) -> None:
    """Compare with the paper and with optax in double precision."""
    with jax.enable_x64(True):
        check_optax(case, check_equation(case))


def arrays(case: Case) -> None:
    """Compare with the paper with every hyperparameter an array, and without an outer jit."""
    check_equation(with_hyperparameters(case, jnp.asarray), jitted=False)


def schedules(case: Case) -> None:
    """Compare with the paper with every hyperparameter a schedule that falls at each step."""

    def falling(value: float) -> Callable[[Any], jax.Array]:
        # A table, so that no compiler rounds the values in its own way.
        table = np.array([value * (1 - count / 64) for count in range(case.steps)])
        return lambda count: jnp.asarray(table)[count]

    check_equation(with_hyperparameters(case, falling))


def complex_gradients(case: Case) -> None:
    """Compare with the paper where the parameters are complex."""
    check_equation(case, is_complex=True)


@functools.cache
def inputs(
    steps: int, is_complex: bool = False
) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """Gradients and parameters, which single precision represents exactly.

    The gradients have elements of very different size and a common drift; one is zero, and one
    is the negative of the one before.
    """
    rng = np.random.default_rng(20)

    def normal(shape: tuple[int, ...]) -> np.ndarray:
        real = rng.normal(size=shape)
        return real + 1j * rng.normal(size=shape) if is_complex else real

    def exact(x: np.ndarray) -> np.ndarray:
        return x.astype(np.complex64 if is_complex else np.float32).astype(x.dtype)

    drift = {name: normal(shape) for name, shape in SHAPES.items()}
    size = {name: np.exp(rng.normal(size=shape)) for name, shape in SHAPES.items()}
    gradients = [
        {name: exact(size[name] * (drift[name] + normal(shape))) for name, shape in SHAPES.items()}
        for _ in range(steps)
    ]
    gradients[7] = {name: 0 * g for name, g in gradients[7].items()}
    gradients[12] = {name: -g for name, g in gradients[11].items()}
    params = [{name: exact(normal(shape)) for name, shape in SHAPES.items()} for _ in range(steps)]
    return gradients, params


def run(
    tx: optax.GradientTransformation,
    gradients: list[dict[str, np.ndarray]],
    params: list[dict[str, np.ndarray]],
    jitted: bool = True,
    extra: list[dict[str, Any]] | None = None,
) -> Iterator[tuple[dict[str, np.ndarray], Any]]:
    """The updates and the state of each step, in single precision unless jax works in double."""

    def update(g: Any, state: Any, p: Any, more: Any) -> Any:
        return tx.update(g, state, p, **more)

    update = jax.jit(update) if jitted else update
    state = tx.init(jax.tree.map(jnp.asarray, params[0]))
    for g, p, more in zip(gradients, params, extra or [{}] * len(params), strict=True):
        g, p, more = jax.tree.map(jnp.asarray, (g, p, more))
        updates, state = update(g, state, p, more)
        assert jax.tree.map(jnp.result_type, updates) == jax.tree.map(jnp.result_type, g)
        yield jax.tree.map(np.asarray, (updates, state))


def losses(steps: int) -> list[dict[str, float]]:
    """A loss for each step, which single precision represents exactly."""
    rng = np.random.default_rng(3)
    return [{"value": float(np.float32(8 * loss))} for loss in rng.exponential(size=steps)]


def updates_of(
    reference: Reference, gradients: list[dict[str, np.ndarray]]
) -> list[dict[str, np.ndarray]]:
    """The reference's update of each step, where it does not need the parameters."""
    leaves = [list(g.values()) for g in gradients]
    return [dict(zip(gradients[0], u, strict=True)) for u, _ in reference.run(leaves, leaves)]


Trajectory = list[tuple[dict[str, np.ndarray], Any]]


def check_equation(
    case: Case,
    *,
    is_complex: bool = False,
    jitted: bool = True,
    tolerance: float | None = None,
    points: bool = False,
) -> Trajectory:
    """Compare updates and slots with the reference's at every step.

    The tolerance is relative to the largest element, because a sum of gradients may be much
    smaller than they are.

    Args:
        case: the factory and its arguments.
        is_complex: whether parameters are complex.
        jitted: whether to compile.
        tolerance: None: as exact as the dtype allows.
        points: whether to compare p + u, in the place of an update u that is the difference of two
            points.
    """
    gradients, params = inputs(case.steps, is_complex)
    reference = case.reference()
    extra = losses(case.steps) if reference.given else None
    ours = list(run(case.factory(**case.arguments), gradients, params, jitted, extra))
    if tolerance is None:
        tolerance = DOUBLE if jnp.zeros(()).dtype == jnp.float64 else SINGLE
    leaves = [[list(tree.values()) for tree in trees] for trees in (gradients, params)]
    theirs = reference.run(*leaves, extra or ())
    for t, ((updates, state), (expected, slots)) in enumerate(
        zip(ours, theirs, strict=True), start=1
    ):
        origin = params[t - 1] if points else dict.fromkeys(updates, 0.0)
        right = dict(zip(updates, expected, strict=True))
        shifted, right = ({k: origin[k] + u[k] for k in u} for u in (updates, right))
        assert_close(shifted, right, tolerance, f"updates of step {t}", reference.whole)
        for slot in slots[0]:
            values = dict(zip(updates, [s[slot] for s in slots], strict=not reference.whole))
            check_slot(state, slot, values, tolerance, f"{slot} of step {t}", reference.whole)
    return ours


def check_slot(
    state: Any, slot: str, values: dict[str, Any], tolerance: float, what: str, whole: bool
) -> None:
    """Compare one slot of every leaf, or of all leaves as one vector."""
    found = getattr(state, slot) if hasattr(state, slot) else optax.tree.get(state, slot)
    if whole:
        [value] = values.values()
        vector = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found)])
        found, values = {"all": vector.reshape(np.shape(value))}, {"all": value}
    for leaf, value in values.items():
        # A slot may be a list, such as the bounds of each axis.
        parts = value if isinstance(value, list) else [value]
        ours = found[leaf] if isinstance(value, list) else [found[leaf]]
        named = {f"{leaf}, {i}": part for i, part in enumerate(ours)}
        # What is real, such as a square, must not take the memory of complex numbers.
        assert list(map(np.iscomplexobj, ours)) == list(map(np.iscomplexobj, parts)), what
        assert_close(named, dict(zip(named, parts, strict=True)), tolerance, what)


def check_optax(case: Case, ours: Trajectory) -> None:
    """Compare updates with optax's, in double precision, where its rounding does not show."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        tx = getattr(optax, case.factory.__name__)(**case.arguments)
        theirs = list(run(tx, *inputs(case.steps)))
    for t, ((updates, _), (expected, _)) in enumerate(zip(ours, theirs, strict=True), start=1):
        # optax's 1 - 0.999^t loses three digits.
        assert_close(updates, expected, 1e-11, f"updates of step {t}, against optax")


def assert_close(
    tree: Any, expected: Any, tolerance: float, what: str, whole: bool = False
) -> None:
    """Compare leaf by leaf, relative to the largest element of the leaf, or of the whole tree."""
    assert tree.keys() == expected.keys()
    largest = max(np.max(np.abs(value), initial=0) for value in expected.values())
    for leaf, value in expected.items():
        size = largest if whole else np.max(np.abs(value))
        assert np.all(np.isfinite(value)), "the paper's equation left the range of numbers"
        np.testing.assert_allclose(
            tree[leaf],
            np.broadcast_to(value, np.shape(tree[leaf])),
            rtol=tolerance,
            atol=tolerance * size,
            err_msg=f"{what}, {leaf}",
        )


# Wrong values of an argument that must be ...
ANY_NUMBER = (float("nan"), 1j, True, "high", [0.5, 0.5])
NON_NEGATIVE = (-1.0, *ANY_NUMBER)
KEPT = (1.5, -1.5, *ANY_NUMBER)
DECAY = (1.0, 1.5, *NON_NEGATIVE)
COUNT = (0, 1.5, *NON_NEGATIVE)


def wrong_arguments(factory: Any, valid: dict[str, Any], **wrong: tuple[Any, ...]) -> list[Any]:
    """A test parameter (factory, arguments, name, value) for each wrong value of each argument."""
    return [
        pytest.param(
            factory,
            valid | {name: value},
            name,
            value,
            id=f"{factory.__name__}-{name}={getattr(value, '__name__', value)}",
        )
        for name, values in wrong.items()
        for value in values
    ]


def check_refused(factory: Any, arguments: dict[str, Any], name: str, value: Any) -> None:
    """A wrong argument is refused at once, by name and value."""
    with pytest.raises(ValueError, match=rf"\b{name}\b") as refusal:
        factory(**arguments)
    assert str(value) in str(refusal.value)
