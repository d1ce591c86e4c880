"""A small training run that survives being killed: `python killed_run.py [--folder FOLDER]`.

It prints the number of each step that it has taken, and at the end a digest of its bits.
"""

import argparse
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradtx
from gradtx.training import Checkpoints, TrainState, make_train_step, minibatches

EPOCHS, BATCH_SIZE, WIDTH = 12, 4, 128
# The last batch of each epoch is smaller.
DATA = np.random.default_rng(0).normal(size=(38, WIDTH)).astype(np.float32)
STEPS = EPOCHS * 10


def loss_fn(params, model_state, batch, key):
    hidden = jax.nn.relu(batch @ params["in"])
    kept = jax.random.bernoulli(key, 0.9, hidden.shape)  # dropout
    loss = jnp.mean((jnp.where(kept, hidden, 0) @ params["out"] - batch) ** 2)
    return loss, 0.9 * model_state + 0.1 * jnp.mean(hidden)


TX = gradtx.average_params(
    gradtx.quantize_state(gradtx.adam(optax.linear_schedule(1e-3, 0.0, STEPS))), 0.9
)


@jax.jit
def new_state():
    """The state before the first step."""
    first, second = jax.random.split(jax.random.key(0))
    params = {
        "in": 0.05 * jax.random.normal(first, (WIDTH, WIDTH)),
        "out": 0.05 * jax.random.normal(second, (WIDTH, WIDTH)),
    }
    return TrainState.create(params, TX, jnp.zeros([]), jax.random.key(1))


def digest(state, losses):
    """The bits of a state and of the losses that led to it."""
    state = state._replace(key=jax.random.key_data(state.key))
    found = hashlib.sha256(np.float32(losses).tobytes())
    for leaf in jax.tree.leaves(state):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def main():
    """Train from the last checkpoint on."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder")
    folder = parser.parse_args().folder
    state = new_state()
    train_step = make_train_step(loss_fn, TX, has_model_state=True, has_key=True)
    losses, checkpoints = [], None
    if folder is not None:
        checkpoints = Checkpoints(folder, every=3, keep=2, settings={"width": WIDTH})
        if checkpoints.latest_step() is not None:
            state, losses, _ = checkpoints.restore(state)
    print("start", int(state.step), flush=True)
    batches = minibatches(jax.random.key(2), DATA, BATCH_SIZE, epochs=EPOCHS, start=int(state.step))
    for batch in batches:
        state, metrics = train_step(state, batch)
        losses.append(float(metrics["loss"]))
        if checkpoints is not None:
            checkpoints.save(state, losses)
        print("step", int(state.step), flush=True)
    if checkpoints is not None:
        checkpoints.close()
    print("end", digest(state, losses), flush=True)


if __name__ == "__main__":
    main()
