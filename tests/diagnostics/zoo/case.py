"""What the zoo consists of: training set-ups that are known to be healthy or sick.

A healthy case is a published architecture as its authors initialize it. A sick case has one fault
that was asked about in public or is on a published list of faults, and states what an examination
has to find: words for its kind, and the place.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import optax

# Ends the line of a sick case where its fault is.
MARK = "# fault"


@dataclass(frozen=True)
class SetUp:
    """What a user passes to `check_up`: a loss, its parameters, a batch, and keyword arguments."""

    loss_fn: Callable[..., Any]
    params: Any
    batch: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Healthy:
    """A published architecture.

    Attributes:
        name: unique words.
        framework: jax, linen, nnx, equinox or haiku.
        source: the paper.
        build: makes the set-up at initialization.
        rate: the learning rate of adam at which its loss falls.
        is_trained: whether it is also examined after 40 steps.
    """

    name: str
    framework: str
    source: str
    build: Callable[[], SetUp]
    rate: float = 3e-3
    is_trained: bool = False


@dataclass(frozen=True)
class Sick:
    """A set-up with a fault.

    Attributes:
        name: unique words.
        framework: jax, linen, nnx, equinox or haiku.
        source: where it was asked or published, and the family of faults.
        build: makes the set-up; with `cured=True`, the repaired one.
        kinds: what the fault may be called; it has several names where several are right.
        where: a regular expression that the place or the source of the finding has to match. The
            marked line of `build` is right in any case.
        how: how the fault shows when one trains.
        is_curable: whether `build` knows the cure.
    """

    name: str
    framework: str
    source: str
    build: Callable[..., SetUp]
    kinds: frozenset[str]
    where: str
    how: str
    is_curable: bool

    @property
    def marked_lines(self) -> frozenset[str]:
        """The lines of the fault, as `file:line`."""
        lines, first = inspect.getsourcelines(self.build)
        file = Path(inspect.getsourcefile(self.build) or "").name
        marked = (i for i, line in enumerate(lines) if line.rstrip().endswith(MARK))
        return frozenset(f"{file}:{first + i}" for i in marked)

    def is_at(self, place: str) -> bool:
        """Whether a finding with this place, or this source, names where the fault is."""
        lines = re.findall(r"(\w+\.py):(\d+)", place)
        if any(f"{file}:{line}" in self.marked_lines for file, line in lines):
            return True
        return bool(self.where) and re.search(self.where, place) is not None


_HEALTHY: dict[str, Healthy] = {}
_SICK: dict[str, Sick] = {}


def healthy(name: str, framework: str, source: str, **settings: Any) -> Callable[..., Any]:
    """Put the decorated function, which builds a set-up, among the healthy cases."""

    def enter(build: Callable[[], SetUp]) -> Callable[[], SetUp]:
        assert name not in _HEALTHY, name
        _HEALTHY[name] = Healthy(name, framework, source, build, **settings)
        return build

    return enter


def sick(
    name: str, framework: str, source: str, *, kinds: str, how: str, where: str = ""
) -> Callable[..., Any]:
    """Put the decorated function, which builds a set-up, among the sick cases.

    A function with the argument `cured` also builds the repaired one. `kinds` are separated by
    spaces.
    """

    def enter(build: Callable[..., SetUp]) -> Callable[..., SetUp]:
        assert name not in _SICK, name
        is_curable = "cured" in inspect.signature(build).parameters
        words = frozenset(kinds.split())
        _SICK[name] = Sick(name, framework, source, build, words, where, how, is_curable)
        return build

    return enter


def _modules(prefix: str) -> Iterator[str]:
    for path in sorted(Path(__file__).parent.glob(f"{prefix}_*.py")):
        yield f"{__package__}.{path.stem}"


def healthy_cases() -> tuple[Healthy, ...]:
    """All healthy cases."""
    for module in _modules("healthy"):
        importlib.import_module(module)
    return tuple(_HEALTHY.values())


def sick_cases() -> tuple[Sick, ...]:
    """All sick cases."""
    for module in _modules("sick"):
        importlib.import_module(module)
    return tuple(_SICK.values())


def trained(set_up: SetUp, rate: float, steps: int = 40) -> tuple[SetUp, list[float]]:
    """The set-up after some steps of adam on its batch, and the losses on the way."""
    has_aux = set_up.options.get("has_aux", False)
    params, rest = eqx.partition(set_up.params, eqx.is_inexact_array)
    tx = optax.adam(rate)

    @jax.jit
    def step(params, state):
        def loss_of(params):
            loss = set_up.loss_fn(eqx.combine(params, rest), *set_up.batch)
            return loss[0] if has_aux else loss

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    state, losses = tx.init(params), []
    for _ in range(steps):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    after = SetUp(set_up.loss_fn, eqx.combine(params, rest), set_up.batch, set_up.options)
    return after, losses
