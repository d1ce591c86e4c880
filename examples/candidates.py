"""The optimizers that are compared, with those settings that are not their defaults."""

from typing import Any, NamedTuple

import optax

import gradtx
from examples import language_model
from examples.problems import MAX_GRADIENT_NORM, Problem


class Candidate(NamedTuple):
    """An optimizer that takes part.

    Attributes:
        options: its arguments, apart from the learning rate.
        guess: the first learning rate to try.
        tuned: whether the learning rate is tuned.
        recipe: its name in gradtx; empty: that of the candidate.
        for_matrices: whether AdamW takes the parameters that are not matrices of layers, where the
            problem says which ones are.
    """

    options: dict[str, Any]
    guess: float = 0.01
    tuned: bool = True
    recipe: str = ""
    for_matrices: bool = False


CANDIDATES = {
    "adamw": Candidate({"weight_decay": 0.0}),
    "muon": Candidate(language_model.FOR_MATRICES["muon"], for_matrices=True),
    "soap": Candidate({"weight_decay": 0.0}, for_matrices=True),
    "schedule_free_adamw": Candidate({}),
    "momentum": Candidate({"momentum": 0.9}, 0.1, recipe="sgd"),
    "lion": Candidate({"weight_decay": 0.0}, 0.001),
    # The matrices of the transformer have sides of 64 and more.
    "adafactor": Candidate({"min_dim_size_to_factor": 32}, 0.1),
    "prodigy": Candidate({"safeguard_warmup": True}, 1.0, tuned=False),
}


def make_optimizer(name: str, problem: Problem, rate: Any) -> optax.GradientTransformation:
    """The candidate with a warm-up and a decay, behind the clipping."""
    shape = language_model.schedule_of(name, 1.0, problem.total_steps)

    def schedule(count: Any) -> Any:
        return rate * shape(count)

    candidate = CANDIDATES[name]
    tx = gradtx.make(candidate.recipe or name, learning_rate=schedule, **candidate.options)
    if candidate.for_matrices and problem.matrices:
        others = gradtx.adamw(schedule, weight_decay=0.0)
        groups = gradtx.select.groups({"matrices": problem.matrices}, rest="others")
        tx = gradtx.partition({"matrices": tx, "others": others}, groups)
    return (
        gradtx.chain(gradtx.clip_by_global_norm(MAX_GRADIENT_NORM), tx) if problem.clipped else tx
    )
