"""What a transformation does to the update that it is given, as it declares itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

Degree: TypeAlias = Literal[0, 1, "between"]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What a transformation does to an update.

    `explain`, `cautious`, `with_metrics` and the conformance kit read it. A kernel is an effect;
    `composed` takes one for a wrapper, and `declared` attaches one to any update function.

    Attributes:
        degree: how the update grows with the gradient, apart from weight decay and noise. 1: in
            proportion, update(3 g) = 3 update(g). 0: not at all, update(3 g) = update(g), except
            for eps and the initial values of slots. "between": less than in proportion, or in some
            steps only. None: not declared.
        sense: the direction of the update. 1: along the gradient. -1: against it, ready to be added
            to the parameters. 0: none, it is zero. "factor": that of the sign of its factor; a
            schedule is taken to be negative.
        factor: a number that the update is multiplied by, apart from its sense: the name of a
            hyperparameter or an option, or a function of these by name; "": 1.
        rate: the name of the hyperparameter that is a learning rate, if there is one of this name.
        gain: whether the update is multiplied by a number that depends on the data or the shape.
        applies: the option that says whether the degree holds for a leaf; for other leaves it is 1.
            "": it holds for all leaves.
        decays: the name of the hyperparameter that is a weight decay, added to the update, if there
            is one of this name. "": it adds none, whatever its hyperparameters are called.
        decay_applies: the option that says whether this weight decay is added for a leaf; "": it is
            added for all leaves.
        decay: what becomes of a weight decay that was added to the gradient before. "keeps": it is
            multiplied by what multiplies the gradient. "mixes": it is adapted or averaged together
            with the gradient. "limits": it is clipped together with the gradient. "hides": that is
            not known. "": "hides" with a gain, else "keeps" if the degree is 1, else "mixes".
        hidden: why it is not known before the run what the update is multiplied by, as the rest of
            a sentence that begins with the name; "": it is known.
        hidden_later: whether it is known in the first step nevertheless.
        moves: whether it moves a parameter whose gradient is 0, other than by weight decay.
        inside: what the transformations inside it do. "first": the first makes the updates that the
            whole changes. "all": one after another they are the whole. "graft": the first gives the
            length and the second the direction. "elsewhere": the first makes updates from another
            gradient than the given one. "aside": they make no updates.
        states: the fields, or indices, of its state in which the states of the transformations
            inside it are, in their order. (): its state is that of the transformation inside. A
            chain, which has them in a tuple or by label, and groups need not declare it.
        trains: the class of a pair of parameters, and the field that the transformation inside it
            trains; the other field follows. None: all parameters are trained.
        clock: whether schedules inside it count other steps than those around it.
        widens: whether its updates of narrow parameters are float32, whatever the dtype of the
            gradient, and the parameters have to become what it calculated with them.
        alters: whether updates come out otherwise than they went in, or than what is inside hands
            out, save for steps that are left out.
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
    widens: bool = False
    alters: bool = False

    @property
    def is_declared(self) -> bool:
        """Whether it declares how the update grows, or why that is not known."""
        return self.degree is not None or bool(self.hidden)


# Does not change updates, or multiplies them by 1 on average.
LINEAR = Effect(degree=1)
# The same, for a wrapper whose state is that of the transformation inside it.
LINEAR_WITHOUT_STATE = Effect(degree=1, states=())
ZERO = Effect(degree=1, sense=0)
IN_SERIES = Effect(inside="all")

_Update = TypeVar("_Update", bound=Callable[..., Any])


def declared(effect: Effect) -> Callable[[_Update], _Update]:
    """Attach an effect to an update function.

    Args:
        effect: what the function does to updates.

    Returns:
        A decorator; `gradtx.compose.parts.effect_of` returns the effect.
    """

    def declare(update: _Update) -> _Update:
        vars(update)["effect"] = effect
        return update

    return declare
