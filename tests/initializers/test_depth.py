"""What initializers are for: preserving the size of a signal through thirty layers.

With independent zero-mean weights of variance scale/fan_in, a layer multiplies the mean square of
its signal by `scale` if it is linear and by scale/2 if it rectifies, exactly in expectation over
the weights and at any width n. Given its input, the squares of a layer's n outputs are independent
with squared coefficient of variation 2 (linear) or 5 (rectified), so that over the depth L the
gain has coefficient of variation sqrt((1 + 2/n)^L - 1) or sqrt((1 + 5/n)^L - 1).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx import initializers as gi

DEPTH = 30
WIDTH = 256
NETWORKS = 16
ACTIVATIONS = {"linear": lambda z: z, "relu": jax.nn.relu, "tanh": jnp.tanh}
SPREAD = {"linear": 2, "relu": 5}


@functools.partial(jax.jit, static_argnames=("init", "activation", "networks"))
def gains(init, activation, networks=NETWORKS):
    """Mean square of the last layer's signal over that of the input, for every network."""

    def one_network(key):
        input_key, *layer_keys = jax.random.split(key, DEPTH + 1)

        def layer(signal, layer_key):
            kernel = init(layer_key, (WIDTH, WIDTH))
            return ACTIVATIONS[activation](signal @ kernel), None

        signal = jax.random.normal(input_key, (WIDTH,))
        output, _ = jax.lax.scan(layer, signal, jnp.stack(layer_keys))
        return jnp.mean(output**2) / jnp.mean(signal**2)

    return jax.lax.map(one_network, jax.random.split(jax.random.key(8), networks))


CASES = {
    # initializer, activation, gain per layer
    "he normal with relu keeps": (gi.he_normal(), "relu", 1),
    "he uniform with relu keeps": (gi.he_uniform(), "relu", 1),
    "glorot uniform with linear keeps": (gi.glorot_uniform(), "linear", 1),
    "lecun normal with linear keeps": (gi.lecun_normal(), "linear", 1),
    "lecun normal with relu vanishes": (gi.lecun_normal(), "relu", 1 / 2),
    "glorot uniform with relu vanishes": (gi.glorot_uniform(), "relu", 1 / 2),
    "he normal with linear explodes": (gi.he_normal(), "linear", 2),
    "small random with linear vanishes": (gi.small_random(0.05), "linear", WIDTH * 0.05**2),
}


@pytest.mark.parametrize("name", CASES)
def test_gain_over_thirty_layers(name):
    init, activation, gain_per_layer = CASES[name]
    relative = np.asarray(gains(init, activation), np.float64) / gain_per_layer**DEPTH
    spread = math.sqrt((1 + SPREAD[activation] / WIDTH) ** DEPTH - 1)
    assert abs(relative.mean() - 1) < 5 * spread / math.sqrt(NETWORKS)


def test_tanh_follows_its_mean_field():
    """Poole et al. (2016), equation (3): q' = ∫ tanh²(√q z) φ(z) dz, which decays like 1/depth."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    q = 1.0
    for _ in range(DEPTH):
        q = weights @ np.tanh(math.sqrt(q) * nodes) ** 2 / weights.sum()
    measured = np.asarray(gains(gi.glorot_normal(), "tanh"), np.float64)
    assert abs(measured.mean() - q) < 5 * measured.std() / math.sqrt(NETWORKS)


def test_orthogonal_layers_keep_every_length():
    np.testing.assert_allclose(gains(gi.orthogonal(), "linear", networks=2), 1, rtol=1e-4)
