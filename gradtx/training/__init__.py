"""Training: the state of a run, one compiled step, and the batches to feed it.

A run is three things: `TrainState.create` makes the state, `make_train_step` compiles the step that
takes a state and a batch to the next state and the step's metrics, and `minibatches` cuts the data
into shuffled batches.
"""

from gradtx.training.batches import minibatches
from gradtx.training.state import TrainState
from gradtx.training.step import make_train_step

__all__ = ["TrainState", "make_train_step", "minibatches"]
