"""Training: the state of a run, one compiled step, and the batches to feed it.

`TrainState.create` makes the state, `make_train_step` compiles the step that maps a state and a
batch to the next state and the metrics of the step, and `minibatches` splits the data into shuffled
batches. `accumulate_grads` computes the gradient of a batch that does not fit into memory.
`Checkpoints` saves a run, so that it goes on after it was interrupted.
"""

from __future__ import annotations

from gradtx.training.accumulation import accumulate_grads
from gradtx.training.batches import minibatches
from gradtx.training.checkpoints import Checkpoint, Checkpoints
from gradtx.training.state import TrainState
from gradtx.training.step import make_train_step

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "TrainState",
    "accumulate_grads",
    "make_train_step",
    "minibatches",
]
