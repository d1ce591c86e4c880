"""A network of flax that several idioms train."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.training import train_state

X = jnp.array([[1.0, -1.0], [0.5, 2.0]])


def dense(tx):
    """The state of a training run of one layer."""
    model = nn.Dense(2)
    params = model.init(jax.random.key(0), X)["params"]
    return train_state.TrainState.create(apply_fn=model.apply, params=params, tx=tx)


def linen_gradients(state):
    """The gradient of its mean square output."""
    return jax.grad(lambda params: jnp.mean(state.apply_fn({"params": params}, X) ** 2))(
        state.params
    )
