"""What a transformation makes of the update that it is given, as it says of itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

Degree: TypeAlias = Literal[0, 1, "between"]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What `explain`, `cautious` and the conformance kit ask about a transformation.

    A kernel is one; `composed` takes one for a wrapper, and `declared` puts one on any update
    function.

    Attributes:
        degree: how the update grows with the gradient, apart from weight decay and noise. 1: in
            proportion, update(3 g) = 3 update(g). 0: not at all, update(3 g) = update(g) but for
            eps, as long as no slot starts with a value of its own. "between": less than in
            proportion, or in some steps only. None: it is not said.
        sense: which way a gradient's update points. 1: along the gradient. -1: against it, so that
            it is added to the parameters as it comes. 0: nowhere, it is zero. "factor": as the
            sign of its factor says; a schedule is expected to turn it against the gradient.
        factor: the number that the update is multiplied by, beside its sense: the name of a
            hyperparameter or an option, or a function that takes them by name; "": 1.
        rate: the name of the hyperparameter that is, or stands for, a learning rate. It is not an
            error not to have it.
        gain: whether the update is multiplied by a number that depends on the data or the shape.
        applies: the option that says whether the degree holds for a leaf; the update of any other
            leaf grows in proportion. "": it holds for all leaves.
        decays: the name of the hyperparameter that is a weight decay, added to the update; it is
            not an error not to have it. "": it adds none, whatever its hyperparameters are called.
        decay_applies: the option that says whether this weight decay is added to a leaf; "": it is
            added to all leaves.
        decay: what becomes of a weight decay that was added to the gradient. "keeps": it is
            multiplied by what multiplies the gradient. "mixes": it is adapted or averaged as a
            part of the gradient. "limits": it is shortened together with the gradient. "hides": it
            is not known. "": "hides" with a gain, else "keeps" if the degree is 1, else "mixes".
        hidden: why only the run will tell what the update is multiplied by; "": it is known.
        hidden_later: whether that is not so in the first step.
        moves: whether it moves a parameter whose gradient is 0, other than by weight decay.
        inside: what the transformations inside of it do. "first": the first makes the updates that
            the whole changes. "all": one after another they are the whole. "graft": the first gives
            the length and the second the direction. "elsewhere": the first makes updates from
            another gradient than the one that came. "aside": they make no updates.
        states: the fields, or indices, of its state at which the states of the transformations
            inside of it are, in their order. (): its state is that of the transformation inside.
            A chain has them in a tuple or by label, and groups by label; they need not say it.
        trains: the class of a pair of parameters, and the field of it that the transformation
            inside trains; the other field follows. None: all parameters are trained.
        clock: whether schedules inside of it count other steps than those around it.
    """

    degree: Degree | None = None
    sense: Literal[1, -1, 0, "factor"] = 1
    factor: str | Callable[..., float] = ""
    rate: str = "learning_rate"
    gain: bool = False
    applies: str = ""
    decays: str = "weight_decay"
    decay_applies: str = ""
    decay: Literal["", "keeps", "mixes", "limits", "hides"] = ""
    hidden: str = ""
    hidden_later: bool = False
    moves: bool = False
    inside: Literal["first", "all", "graft", "elsewhere", "aside"] = "first"
    states: tuple[str | int, ...] = ("inner_state",)
    trains: tuple[type, str] | None = None
    clock: bool = False

    @property
    def is_declared(self) -> bool:
        """Whether it is said how the update grows, or why only the run will tell."""
        return self.degree is not None or bool(self.hidden)


# Hands the updates on as they are, or multiplied by 1 on average.
LINEAR = Effect(degree=1)
# The same, by a wrapper whose state is that of the transformation inside of it.
LINEAR_WITHOUT_STATE = Effect(degree=1, states=())
ZERO = Effect(degree=1, sense=0)
IN_SERIES = Effect(inside="all")

_Update = TypeVar("_Update", bound=Callable[..., Any])


def declared(effect: Effect) -> Callable[[_Update], _Update]:
    """Let an update function say what it makes of the updates.

    Args:
        effect: what it makes of them.

    Returns:
        A decorator of update functions; `effect_of` finds the effect again.
    """

    def declare(update: _Update) -> _Update:
        vars(update)["effect"] = effect
        return update

    return declare
