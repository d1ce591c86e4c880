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

# Its steps take longer than compiling them well.
pytestmark = pytest.mark.usefixtures("usual_compilation")

DEPTH = 30
WIDTH = 256
NETWORKS = 16
ACTIVATIONS = {"linear": lambda z: z, "relu": jax.nn.relu, "tanh": jnp.tanh}
SPREAD = {"linear": 2, "relu": 5}


@functools.cache
def gains(init, networks=NETWORKS):
    """Mean square of the last layer's signal over that of the input, for each activation.

    The activations share their kernels, and each has a float64 array with a gain of every network.
    """

    def one_network(key):
        input_key, *layer_keys = jax.random.split(key, DEPTH + 1)

        def layer(signals, layer_key):
            rows = signals @ init(layer_key, (WIDTH, WIDTH))
            pairs = zip(ACTIVATIONS.values(), rows, strict=True)
            return jnp.stack([activation(row) for activation, row in pairs]), None

        signal = jax.random.normal(input_key, (WIDTH,))
        start = jnp.tile(signal, (len(ACTIVATIONS), 1))
        outputs, _ = jax.lax.scan(layer, start, jnp.stack(layer_keys))
        return jnp.mean(outputs**2, axis=1) / jnp.mean(signal**2)

    measure = jax.jit(lambda keys: jax.lax.map(one_network, keys))
    measured = np.asarray(measure(jax.random.split(jax.random.key(8), networks)), np.float64)
    return dict(zip(ACTIVATIONS, measured.T, strict=True))


HE, LECUN, GLOROT = gi.he_normal(), gi.lecun_normal(), gi.glorot_uniform()
CASES = {
    # initializer, activation, gain per layer
    "he normal with relu keeps": (HE, "relu", 1),
    "he uniform with relu keeps": (gi.he_uniform(), "relu", 1),
    "glorot uniform with linear keeps": (GLOROT, "linear", 1),
    "lecun normal with linear keeps": (LECUN, "linear", 1),
    "lecun normal with relu vanishes": (LECUN, "relu", 1 / 2),
    "glorot uniform with relu vanishes": (GLOROT, "relu", 1 / 2),
    "he normal with linear explodes": (HE, "linear", 2),
    "small random with linear vanishes": (gi.small_random(0.05), "linear", WIDTH * 0.05**2),
}


@pytest.mark.parametrize("name", CASES)
def test_gain_over_thirty_layers(name):
    init, activation, gain_per_layer = CASES[name]
    relative = gains(init)[activation] / gain_per_layer**DEPTH
    spread = math.sqrt((1 + SPREAD[activation] / WIDTH) ** DEPTH - 1)
    assert abs(relative.mean() - 1) < 5 * spread / math.sqrt(NETWORKS)


def test_tanh_follows_its_mean_field():
    """Poole et al. (2016), equation (3): q' = ∫ tanh²(√q z) φ(z) dz, which decays like 1/depth."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    q = 1.0
    for _ in range(DEPTH):
        q = weights @ np.tanh(math.sqrt(q) * nodes) ** 2 / weights.sum()
    measured = gains(gi.glorot_normal())["tanh"]
    assert abs(measured.mean() - q) < 5 * measured.std() / math.sqrt(NETWORKS)


def test_orthogonal_layers_keep_every_length():
    np.testing.assert_allclose(gains(gi.orthogonal(), networks=2)["linear"], 1, rtol=1e-4)
