"""Descent with differential privacy."""

from __future__ import annotations

import jax
from optax import GradientTransformationExtraArgs as ExtraArgs
from optax import ScalarOrSchedule

from gradtx.arguments import KEPT, check_hyperparameter, check_key
from gradtx.compose.sequence import chain, identity
from gradtx.kernels.momentum import trace
from gradtx.kernels.privacy import differentially_private_aggregate
from gradtx.kernels.scale import scale_by_learning_rate


def dpsgd(
    learning_rate: ScalarOrSchedule,
    l2_norm_clip: ScalarOrSchedule,
    noise_multiplier: ScalarOrSchedule,
    seed: jax.Array | int,
    momentum: ScalarOrSchedule | None = None,
    nesterov: bool = False,
    *,
    lot_size: float | None = None,
) -> ExtraArgs:
    """Stochastic gradient descent that keeps each example private.

        g = (sum_i min(1, C / ||g_i||) * g_i + N(0, (noise_multiplier * C)^2)) / lot_size
        u = -learning_rate * g,    or with momentum that of `sgd`

    The incoming gradients have one more axis than the parameters, the first, which counts the
    examples: `jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, batch)`.

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        l2_norm_clip: the largest norm of one example's gradient, finite and >= 0. C above.
        noise_multiplier: the noise's standard deviation in units of `l2_norm_clip`, finite and >=
            0.
        seed: a PRNG key, or an integer seed.
        momentum: the decay rate of the momentum, in [-1, 1]; None: no momentum.
        nesterov: whether to use Nesterov momentum.
        lot_size: what the sum is divided by, > 0; None: the number of examples in the updates.

    Returns:
        The chain of `differentially_private_aggregate`, `trace` (if there is momentum, else
        `identity`) and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range; in `update`, if the updates do not have
            the first axis.

    Source:
        Abadi et al. 2016, "Deep learning with differential privacy", Algorithm 1.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> loss = lambda x, target: jnp.sum((x - target) ** 2) / 2
        >>> x, targets = jnp.zeros(2), jnp.array([[3.0, 4.0], [0.0, 0.5]])
        >>> tx = gradtx.dpsgd(1.0, l2_norm_clip=1.0, noise_multiplier=0.0, seed=0)
        >>> grads = jax.vmap(jax.grad(loss), in_axes=(None, 0))(x, targets)
        >>> updates, state = tx.update(grads, tx.init(x), x)
        >>> print(updates)
        [0.3  0.65]
    """
    if momentum is not None:
        momentum = check_hyperparameter("dpsgd", "momentum", momentum, KEPT)
    key = check_key("dpsgd", seed)
    return chain(
        differentially_private_aggregate(l2_norm_clip, noise_multiplier, key, lot_size=lot_size),
        identity() if momentum is None else trace(momentum, nesterov),
        scale_by_learning_rate(learning_rate),
    )
