"""Gradients with noise."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import ScalarOrSchedule

from gradtx.arguments import check_key
from gradtx.kernel import NON_NEGATIVE, Kernel
from gradtx.lift import lift
from gradtx.messages import shown


def _add_noise(g, *, key, t, eta, gamma):
    deviation = jnp.sqrt(eta / t**gamma)
    return g + deviation * jax.random.normal(key, g.shape, g.dtype)


ADD_NOISE = Kernel(
    "add_noise",
    _add_noise,
    hyperparameters={"eta": NON_NEGATIVE, "gamma": NON_NEGATIVE},
    state=optax.AddNoiseState,
    degree=1,
    moves=True,
    source="Neelakantan et al. 2015, section 3",
)


def noise_key(owner: str, key: Any, seed: Any) -> Any:
    """The PRNG key from `key` or its former name `seed`; that of 0 if neither is given.

    Warns, as optax does, about the former name and about a missing key, at the line that called the
    public function.
    """
    if seed is not None:
        warnings.warn(f"{owner}: seed is deprecated, use key", DeprecationWarning, stacklevel=3)
        if key is not None:
            raise ValueError(
                f"{owner}: takes key or seed, not both, got {shown(key)} and {shown(seed)}"
            )
        return check_key(owner, seed)
    if key is None:
        warnings.warn(
            f"{owner}: without a key the noise is that of key=0, the same in every run",
            stacklevel=3,
        )
        key = 0
    return check_key(owner, key)


def add_noise(
    eta: ScalarOrSchedule,
    gamma: ScalarOrSchedule,
    key: jax.Array | int | None = None,
    *,
    seed: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Add Gaussian noise whose variance decays with the step.

        u_t = g_t + N(0, eta / t^gamma),    t = 1, 2, ...

    Args:
        eta: variance of the noise at the first step, >= 0.
        gamma: how fast the variance decays, >= 0. The paper has 0.55.
        key: a PRNG key, or an integer seed; None: 0, with a warning.
        seed: the former name of `key`, deprecated.

    Returns:
        The transformation, with the state `AddNoiseState(count, rng_key)`.

    Raises:
        ValueError: if `eta` or `gamma` is negative or NaN, `key` is neither a key nor a seed, or
            `seed` is given too.

    Source:
        Neelakantan et al. 2015, "Adding gradient noise improves learning for very deep
        networks", section 3, equations (1) and (2), counted from 1.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.add_noise(eta=0.01, gamma=0.55, key=jax.random.key(0))
        >>> updates, state = tx.update({"w": jnp.zeros(10_000)}, tx.init(()))
        >>> print(round(float(updates["w"].std()), 2))
        0.1
    """
    return lift(ADD_NOISE, key=noise_key("add_noise", key, seed), eta=eta, gamma=gamma)
