"""Gradient descent with added noise."""

from __future__ import annotations

import jax
from optax import GradientTransformationExtraArgs as ExtraArgs
from optax import ScalarOrSchedule

from gradtx.compose.sequence import chain
from gradtx.kernels.noise import add_noise, noise_key
from gradtx.kernels.scale import scale_by_learning_rate


def noisy_sgd(
    learning_rate: ScalarOrSchedule,
    eta: ScalarOrSchedule = 0.01,
    gamma: ScalarOrSchedule = 0.55,
    key: jax.Array | int | None = None,
    *,
    seed: int | None = None,
) -> ExtraArgs:
    """Gradient descent with Gaussian noise, whose variance decays with the step.

        u_t = -learning_rate * (g_t + N(0, eta / t^gamma)),    t = 1, 2, ...

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        eta: variance of the noise at the first step, >= 0.
        gamma: how fast the variance decays, >= 0.
        key: a PRNG key, or an integer seed; None: 0, with a warning.
        seed: the former name of `key`, deprecated.

    Returns:
        The chain of `add_noise` and `scale_by_learning_rate`.

    Raises:
        ValueError: if a number lies outside its range, `key` is neither a key nor a seed, or
            `seed` is given too.

    Source:
        Neelakantan et al. 2015, "Adding gradient noise improves learning for very deep
        networks", section 3.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.zeros(10_000)
        >>> tx = gradtx.noisy_sgd(0.5, eta=4.0, key=jax.random.key(0))
        >>> updates, _ = tx.update(params, tx.init(params))
        >>> print(f"{updates.std():.1f}")
        1.0
    """
    key = noise_key("noisy_sgd", key, seed)
    return chain(add_noise(eta, gamma, key), scale_by_learning_rate(learning_rate))
