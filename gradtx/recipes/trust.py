"""Optimizers whose steps follow the size of each layer: LARS, LAMB, Fromage, NovoGrad."""

from __future__ import annotations

from optax import GradientTransformationExtraArgs as ExtraArgs
from optax import ScalarOrSchedule

from gradtx.arguments import ANY_NUMBER, KEPT, check_hyperparameter
from gradtx.compose.groups import masked
from gradtx.compose.sequence import chain, identity
from gradtx.kernels.adam import scale_by_adam
from gradtx.kernels.momentum import trace
from gradtx.kernels.novograd import scale_by_novograd
from gradtx.kernels.scale import scale_by_learning_rate, weight_decay_of
from gradtx.kernels.trust import (
    scale_by_local_rate,
    scale_by_trust_ratio,
    undo_growth,
)
from gradtx.select import Decay, Mask, decayed_leaves, flag_of_each_leaf


def lars(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask = True,
    trust_coefficient: ScalarOrSchedule = 0.001,
    eps: ScalarOrSchedule = 0.0,
    trust_ratio_mask: Mask = True,
    momentum: ScalarOrSchedule = 0.9,
    nesterov: bool = False,
    *,
    decay: Decay = "all",
) -> ExtraArgs:
    """LARS: momentum with a learning rate for each layer, in proportion to its weights.

        rate = trust_coefficient * ||p|| / (||g|| + weight_decay * ||p|| + eps)
        v <- momentum * v - learning_rate * rate * (g + weight_decay * p)
        u = v,    or with nesterov one step ahead

    The rate is 1 where ||p|| or the denominator is 0.

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        weight_decay: the multiple of the parameters that is added to the gradient, >= 0.
        weight_decay_mask: the leaves to decay: a tree of booleans, a function of the parameters
            that returns one, or a `gradtx.select(...)`; None: all leaves, which True stands for
            too.
        trust_coefficient: the length of an update relative to the weights, before the learning
            rate.
        eps: added to the denominator, >= 0.
        trust_ratio_mask: the leaves that have their own rate; for all others it is 1.
        momentum: the decay rate of the momentum, in [-1, 1].
        nesterov: whether to use Nesterov momentum.
        decay: the leaves to decay if there is no mask: "all", or "matrices" for those of
            `select.matrices`.

    Returns:
        The chain of `scale_by_local_rate`, `scale_by_learning_rate` and `trace`, with the state
        of optax's `lars`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        You, Gitman & Ginsburg 2017, "Large batch training of convolutional networks", equation
        (6) and Algorithm 1. optax has ||g + weight_decay * p|| in the denominator, which is
        smaller where gradient and weights point in opposite directions.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array([0.0, 10.0])
        >>> tx = gradtx.lars(0.5, trust_coefficient=0.5)
        >>> print(tx.update(jnp.array([3.0, 4.0]), tx.init(params), params)[0])
        [-1.5 -2. ]
    """
    momentum = check_hyperparameter("lars", "momentum", momentum, KEPT)
    step = scale_by_local_rate(
        weight_decay,
        trust_coefficient,
        eps,
        decays=flag_of_each_leaf(
            "lars", decayed_leaves("lars", decay, weight_decay_mask), "weight_decay_mask"
        ),
        trusts=flag_of_each_leaf("lars", trust_ratio_mask, "trust_ratio_mask"),
    )
    return chain(
        # As in optax's chain of decay, trust ratio and rate, whose states the two masks wrap.
        masked(step, True),
        masked(identity(), True),
        scale_by_learning_rate(learning_rate),
        trace(momentum, nesterov),
    )


def lamb(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-6,
    eps_root: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    *,
    decay: Decay = "all",
) -> ExtraArgs:
    """LAMB: AdamW whose step in each layer has the length of its weights.

        r = m_hat / (sqrt(v_hat + eps_root) + eps) + weight_decay * p
        u = -learning_rate * ||p|| / ||r|| * r

    with m_hat and v_hat as in `adam`; the ratio is 1 where ||p|| or ||r|| is 0.

    Args:
        learning_rate: the length of a step relative to the weights; a number, a scalar
            array or a schedule.
        b1: the decay rate of the first moment, in [0, 1).
        b2: the decay rate of the second moment, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to the denominator inside the root, >= 0.
        weight_decay: the multiple of the parameters that is added to the direction, >= 0.
        mask: the leaves to decay: a tree of booleans, a function of the parameters that returns
            one, or a `gradtx.select(...)`; None: all leaves.
        decay: the leaves to decay if there is no mask: "all", or "matrices" for those of
            `select.matrices`.

    Returns:
        The chain of `scale_by_adam`, `add_decayed_weights`, `scale_by_trust_ratio` and
        `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        You et al. 2020, "Large batch optimization for deep learning: training BERT in 76
        minutes", Algorithm 2, with phi(x) = x.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array([3.0, 4.0])
        >>> tx = gradtx.lamb(0.5)
        >>> updates, _ = tx.update(jnp.array([1.0, -20.0]), tx.init(params), params)
        >>> print(jnp.linalg.norm(updates))
        2.5
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root),
        weight_decay_of("lamb", weight_decay, mask, decay=decay),
        scale_by_trust_ratio(),
        scale_by_learning_rate(learning_rate),
    )


def fromage(learning_rate: ScalarOrSchedule, min_norm: ScalarOrSchedule = 1e-6) -> ExtraArgs:
    """Fromage: steps of a given length relative to the weights, without growth of the weights.

        p + u = (p - learning_rate * ||p|| / ||g|| * g) / sqrt(1 + learning_rate^2)

    Args:
        learning_rate: the length of a step relative to the weights; a number, a scalar
            array or a schedule.
        min_norm: the lower bound of both norms, >= 0. It lets weights of zero grow; the paper has
            0.

    Returns:
        The chain of `scale_by_trust_ratio`, `scale_by_learning_rate` and `undo_growth`, with the
        state of optax's `fromage`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Bernstein et al. 2020, "On the distance between two neural networks and the stability of
        learning", Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array([4.0, 0.0])
        >>> tx = gradtx.fromage(0.75)
        >>> updates, _ = tx.update(jnp.array([0.0, -7.0]), tx.init(params), params)
        >>> print(params + updates)
        [3.2 2.4]
    """
    learning_rate = check_hyperparameter("fromage", "learning_rate", learning_rate, ANY_NUMBER)
    return chain(
        scale_by_trust_ratio(min_norm),
        scale_by_learning_rate(learning_rate),
        undo_growth(learning_rate),
    )


def novograd(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.25,
    eps: ScalarOrSchedule = 1e-6,
    eps_root: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
) -> ExtraArgs:
    """NovoGrad: momentum of gradients divided by a running norm of their layer.

        v <- b2 * v + (1 - b2) * ||g||^2,    at the first step v = ||g||^2
        m <- b1 * m + g / (sqrt(v + eps_root) + eps) + weight_decay * p
        u = -learning_rate * m

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        b1: the decay rate of the first moment, in [0, 1).
        b2: the decay rate of the second moment, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to the denominator inside the root, >= 0.
        weight_decay: the multiple of the parameters that is added to the momentum in each step, >=
            0.

    Returns:
        The chain of `scale_by_novograd` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Ginsburg et al. 2019, "Stochastic gradient methods with layer-wise adaptive moments for
        training of deep networks", Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.zeros(2)
        >>> tx = gradtx.novograd(0.5, eps=0.0)
        >>> print(tx.update(jnp.array([3.0, 4.0]), tx.init(params), params)[0])
        [-0.3 -0.4]
    """
    return chain(
        scale_by_novograd(b1, b2, eps, eps_root, weight_decay),
        scale_by_learning_rate(learning_rate),
    )
