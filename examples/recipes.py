"""Every named optimizer of gradtx, with what it needs to train the network of `digits`."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gradtx


@dataclass(frozen=True)
class Settings:
    """How a recipe is used.

    Attributes:
        learning_rate: the largest learning rate of the schedule.
        options: further arguments of the recipe.
        full_batch: whether it needs the exact gradient, because it compares gradients of
            different steps or relies on their length. Such a recipe sees all samples at each step,
            without clipping and with a constant learning rate.
    """

    learning_rate: float = 0.003
    options: Mapping[str, Any] = field(default_factory=dict)
    full_batch: bool = False


_DECAY = {"weight_decay": 1.0, "mask": gradtx.select("kernel")}

# Optimizers that the training here does not suit.
_OMITTED = {
    "optimistic_adam": "deprecated for optimistic_adam_v2",
    "dpsgd": "needs the gradient of each sample",
    "polyak_sgd": "finds its own step size",
}

# Other recipes use the default settings, which suit Adam and its relatives.
_SETTINGS = {
    "adadelta": Settings(learning_rate=3.0),
    "adagrad": Settings(learning_rate=0.1),
    "adamaxw": Settings(options=_DECAY),
    "adamw": Settings(options=_DECAY),
    "lbfgs": Settings(learning_rate=1.0, full_batch=True),
    "lion": Settings(learning_rate=0.001, options=_DECAY),
    "momentum": Settings(learning_rate=0.1, options={"momentum": 0.9}),
    "nadamw": Settings(options=_DECAY),
    "newton": Settings(
        learning_rate=1.0,
        options={"solver": "cg", "damping": 1.0, "max_iterations": 5},
        full_batch=True,
    ),
    "noisy_sgd": Settings(learning_rate=0.5, options={"key": 0}),
    "rprop": Settings(learning_rate=0.001, full_batch=True),
    "sgd": Settings(learning_rate=0.5),
    "sign_sgd": Settings(learning_rate=0.001),
    "signum": Settings(learning_rate=0.001),
}


def names() -> list[str]:
    """The names of the optimizers that can be trained with here."""
    return sorted({*gradtx.names(), "momentum"} - _OMITTED.keys())


def settings_of(name: str) -> Settings:
    """How the recipe of this name is used."""
    return _SETTINGS.get(name, Settings())


def recipe(name: str) -> Callable[..., gradtx.GradientTransformationExtraArgs]:
    """The recipe of this name as a function of its `learning_rate`."""
    own = "sgd" if name == "momentum" else name
    return functools.partial(gradtx.make, own, **settings_of(name).options)
