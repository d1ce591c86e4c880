"""Initializers: the numbers that training starts from.

Every initializer is a function `init(key, shape, dtype, out_sharding)` with the signature of
`jax.nn.initializers`, whose names, arguments and defaults it shares: the same call gives the same
numbers. `variance_scaling` has exactly the requested variance, truncated or not, and so does
`truncated_normal` with `exact_stddev=True`. Dtypes below 32 bits are drawn in float32 and
rounded once, and never to a bound that the distribution does not reach.

The same key draws the same random bits, whether compiled or not and on any layout of devices, so
the numbers agree up to how a compiler rounds the last bits of a function. This requires a
generator with that property: jax's default, Threefry, has it; its `rbg` generators do not.
"""

from __future__ import annotations

from gradtx.initializers.bias import (
    bias_normal,
    small_random,
)
from gradtx.initializers.distributions import (
    constant,
    normal,
    ones,
    truncated_normal,
    uniform,
    uniform_symmetric,
    zeros,
)
from gradtx.initializers.initializer import (
    Initializer,
)
from gradtx.initializers.orthogonal import (
    delta_orthogonal,
    identity,
    orthogonal,
)
from gradtx.initializers.recipes import (
    glorot_normal,
    glorot_uniform,
    he_normal,
    he_uniform,
    kaiming_normal,
    kaiming_uniform,
    lecun_normal,
    lecun_uniform,
    xavier_normal,
    xavier_uniform,
)
from gradtx.initializers.scaling import (
    compute_fans,
    variance_scaling,
)

__all__ = [
    "Initializer",
    "bias_normal",
    "compute_fans",
    "constant",
    "delta_orthogonal",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "identity",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun_normal",
    "lecun_uniform",
    "normal",
    "ones",
    "orthogonal",
    "small_random",
    "truncated_normal",
    "uniform",
    "uniform_symmetric",
    "variance_scaling",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]
