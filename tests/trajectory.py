"""A trajectory of gradients, passed through a transformation and the paper's equation."""

import functools
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from .papers import Paper

STEPS = 24
SHAPES = {"matrix": (2, 5), "vector": (7,)}

# A step rounds each of its few operations to 6e-8. Moving averages forget the errors of old steps.
SINGLE = 2e-6
# Here the papers are less exact: their 1 - 0.9999^t loses four digits.
DOUBLE = 1e-12


@dataclass(frozen=True)
class Case:
    """A factory, its paper's equation, and the arguments that both are given.

    Attributes:
        factory: makes the transformation.
        paper: one step of the equation, see `papers`.
        arguments: keyword arguments. Floats and functions are hyperparameters, others are options.
        on_tree: whether the equation is about all leaves as one vector.
        steps: the number of steps.
    """

    factory: Callable[..., optax.GradientTransformationExtraArgs]
    paper: Paper
    arguments: dict[str, Any] = field(default_factory=dict)
    on_tree: bool = False
    steps: int = STEPS

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


def cases(factory: Any, paper: Paper, *settings: dict[str, Any], **fields: Any) -> list[Case]:
    """One case for each dictionary of arguments."""
    return [Case(factory, paper, arguments, **fields) for arguments in settings]


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
) -> Iterator[tuple[dict[str, np.ndarray], Any]]:
    """The updates and the state of each step, in single precision unless jax works in double."""
    update = jax.jit(tx.update) if jitted else tx.update
    state = tx.init(jax.tree.map(jnp.asarray, params[0]))
    for g, p in zip(gradients, params, strict=True):
        g, p = jax.tree.map(jnp.asarray, (g, p))
        updates, state = update(g, state, p)
        assert jax.tree.map(jnp.result_type, updates) == jax.tree.map(jnp.result_type, g)
        yield jax.tree.map(np.asarray, (updates, state))


def run_paper(
    case: Case,
    gradients: list[dict[str, np.ndarray]],
    params: list[dict[str, np.ndarray]],
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]]:
    """The updates and the slots, name -> leaves, of each step."""
    old: dict[str, Any] = {leaf: defaultdict(float) for leaf in gradients[0]}
    for count, (g, p) in enumerate(zip(gradients, params, strict=True)):
        values = {name: at(value, count) for name, value in case.arguments.items()}
        updates = {}
        for leaf in g:
            updates[leaf], new = case.paper(count + 1, g[leaf], p[leaf], old[leaf], **values)
            old[leaf] = defaultdict(float, new)
        slots = next(iter(old.values()))
        yield updates, {slot: {leaf: old[leaf][slot] for leaf in old} for slot in slots}


def at(value: Any, count: int) -> Any:
    """The value at a step of a number or a schedule, exactly as given."""
    value = value(jnp.int32(count)) if callable(value) else value
    return float(value) if isinstance(value, jax.Array) else value


def as_vector(tree: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All leaves as one vector."""
    return {"tree": np.concatenate([leaf.ravel() for leaf in tree.values()])}


Trajectory = list[tuple[dict[str, np.ndarray], Any]]


def check_equation(case: Case, *, is_complex: bool = False, jitted: bool = True) -> Trajectory:
    """Compare updates and slots with the paper's at every step, as exactly as the dtype allows.

    The tolerance is relative to the largest element, because a sum of gradients may be much
    smaller than they are.
    """
    gradients, params = inputs(case.steps, is_complex)
    trajectory = ours = list(run(case.factory(**case.arguments), gradients, params, jitted))
    if case.on_tree:
        gradients, params = [list(map(as_vector, trees)) for trees in (gradients, params)]
        ours = [(as_vector(updates), state) for updates, state in ours]
    tolerance = DOUBLE if jnp.zeros(()).dtype == jnp.float64 else SINGLE
    theirs = run_paper(case, gradients, params)
    for t, ((updates, state), (expected, slots)) in enumerate(
        zip(ours, theirs, strict=True), start=1
    ):
        assert_close(updates, expected, tolerance, f"updates of step {t}")
        for slot, values in slots.items():
            assert_close(optax.tree.get(state, slot), values, tolerance, f"{slot} of step {t}")
    return trajectory


def check_optax(case: Case, ours: Trajectory) -> None:
    """Compare updates with optax's, in double precision, where its rounding does not show."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        tx = getattr(optax, case.factory.__name__)(**case.arguments)
        theirs = list(run(tx, *inputs(case.steps)))
    for t, ((updates, _), (expected, _)) in enumerate(zip(ours, theirs, strict=True), start=1):
        # optax's 1 - 0.999^t loses three digits.
        assert_close(updates, expected, 1e-11, f"updates of step {t}, against optax")


def assert_close(tree: Any, expected: Any, tolerance: float, what: str) -> None:
    """Compare leaf by leaf, relative to the leaf's largest element."""
    assert tree.keys() == expected.keys()
    for leaf, value in expected.items():
        assert np.all(np.isfinite(value)), "the paper's equation left the range of numbers"
        np.testing.assert_allclose(
            tree[leaf],
            np.broadcast_to(value, np.shape(tree[leaf])),
            rtol=tolerance,
            atol=tolerance * np.max(np.abs(value)),
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
