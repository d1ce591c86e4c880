"""Shampoo and SOAP: preconditioners for each axis of a parameter."""

from __future__ import annotations

from jax.typing import DTypeLike
from optax import GradientTransformation, ScalarOrSchedule
from optax import GradientTransformationExtraArgs as ExtraArgs

from gradtx.compose.sequence import as_transformation, chain
from gradtx.kernels.momentum import ema
from gradtx.kernels.scale import scale_by_learning_rate, weight_decay_of
from gradtx.kernels.shampoo import scale_by_shampoo
from gradtx.kernels.soap import scale_by_soap
from gradtx.select import Decay, Mask
from gradtx.wrappers.grafting import graft


def shampoo(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule | None = 0.9,
    b2: ScalarOrSchedule = 1.0,
    eps: ScalarOrSchedule = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
    *,
    update_interval: int = 1,
    max_dimension: int = 1024,
    grafting: GradientTransformation | None = None,
    decay: Decay = "all",
) -> ExtraArgs:
    """Shampoo: the gradient times an inverse root of its second moments along each axis.

        M <- b1 * M + (1 - b1) * G,    M_hat = M / (1 - b1^t)
        L <- b2 * L + (1 - b2) * G G^T,    R <- b2 * R + (1 - b2) * G^T G
        u = -learning_rate * (L_hat^(-1/4) M_hat R_hat^(-1/4) + weight_decay * p)

    with sums in place of L_hat and R_hat for b2 = 1; see `scale_by_shampoo`. With grafting each
    gradient's own step D gets its length, and the average is taken of what results:

        D = L_hat^(-1/4) G R_hat^(-1/4),    D <- ||grafting(G)|| / ||D|| * D
        M <- b1 * M + (1 - b1) * D,    M_hat = M / (1 - b1^t)
        u = -learning_rate * (M_hat + weight_decay * p)

    so that the average shortens steps that contradict each other. Giving an averaged direction the
    length of grafting(G) would undo that: without any signal, at b1 = 0.9, such steps are
    sqrt((1 + b1) / (1 - b1)) = 4.4 times as long.

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        b1: the decay rate of the first moment, in [0, 1). None takes no average.
        b2: the decay rate of L and R, in [0, 1]. With 1 they are sums over all gradients.
        eps: added to the eigenvalues relative to the largest one, >= 0.
        weight_decay: the strength of the weight decay, >= 0, multiplied by the learning rate.
        mask: the leaves to decay: a tree of booleans, a function of the parameters that returns
            one, or a `gradtx.select(...)`; None: all leaves.
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.
        update_interval: the number of steps from one calculation of the roots to the next, >= 1.
        max_dimension: the longest axis that gets a matrix, >= 1. Longer ones get its diagonal.
        grafting: a transformation whose updates give the length of each array's step, such as
            `identity()`, `scale_by_rss()` or `scale_by_rms()`; None: no grafting. It should not
            average gradients itself: b1 does that for both.
        decay: the leaves to decay if there is no mask: "all", or "matrices" for those of
            `select.matrices`.

    Returns:
        The chain of `scale_by_shampoo`, `add_decayed_weights` and `scale_by_learning_rate`. With
        grafting its first part is `graft(grafting, scale_by_shampoo(None, ...))` and `ema(b1)`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Gupta, Koren & Singer 2018, "Shampoo: preconditioned stochastic tensor optimization",
        Algorithms 1 and 2; Anil et al. 2020, "Scalable second order optimization for deep
        learning", for grafting. Their code sums the steps, including the weight decay, instead of
        averaging them.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.zeros((2, 2))
        >>> tx = gradtx.shampoo(0.5)
        >>> updates, _ = tx.update(jnp.diag(jnp.array([3.0, 300.0])), tx.init(params), params)
        >>> print(updates.round(2) + 0.0)
        [[-0.5  0. ]
         [ 0.  -0.5]]
    """
    scaled = scale_by_shampoo(
        b1 if grafting is None else None,
        b2,
        eps,
        mu_dtype,
        update_interval=update_interval,
        max_dimension=max_dimension,
    )
    pieces = [scaled]
    if grafting is not None:
        pieces = [graft(as_transformation("shampoo", "grafting", grafting), scaled)]
        if b1 is not None:
            pieces.append(ema(b1, accumulator_dtype=mu_dtype))
    return chain(
        *pieces,
        weight_decay_of("shampoo", weight_decay, mask, decay=decay),
        scale_by_learning_rate(learning_rate),
    )


def soap(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.95,
    shampoo_beta: ScalarOrSchedule | None = None,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.01,
    mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
    *,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10000,
    decay: Decay = "all",
) -> ExtraArgs:
    """SOAP: AdamW in the eigenbasis of Shampoo's preconditioners.

        M <- b1 * M + (1 - b1) * G V <- b2 * V + (1 - b2) * (Q_L^T G Q_R)^2
        u = -learning_rate * (Q_L ((Q_L^T M_hat Q_R) / (sqrt(V_hat) + eps))
        Q_R^T + weight_decay * p)

    where the columns of Q_L and Q_R approximate the eigenvectors of averages of G G^T and G^T G;
    see `scale_by_soap`. The first step initializes them, and only decays the weights.

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        b1: the decay rate of the first moment, in [0, 1).
        b2: the decay rate of the second moment, in [0, 1).
        shampoo_beta: the decay rate of the averages of G G^T and G^T G, in [0, 1); None: b2.
        eps: added to the denominator outside the root, >= 0.
        weight_decay: the strength of the weight decay, >= 0, multiplied by the learning rate.
        mask: the leaves to decay: a tree of booleans, a function of the parameters that returns
            one, or a `gradtx.select(...)`; None: all leaves.
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.
        precondition_frequency: the number of steps from one update of the bases to the next, >= 1.
        max_precond_dim: the longest axis that gets a basis, >= 1.
        decay: the leaves to decay if there is no mask: "all", or "matrices" for those of
            `select.matrices`.

    Returns:
        The chain of `scale_by_soap`, `add_decayed_weights` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Vyas et al. 2024, "SOAP: improving and stabilizing Shampoo using Adam", Algorithm 3. The
        authors' code does not decay the weights in its first step, and in all others decays them
        after the step, p <- (1 - learning_rate * weight_decay) * (p - learning_rate * U); for its
        eps see `scale_by_soap`. While the gradients so far have a low rank, the rest of the basis
        depends on rounding, so that runs on different devices diverge until they have full rank.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params, g = jnp.zeros((2, 2)), jnp.array([[3.0, 4.0], [0.0, 0.0]])
        >>> tx = gradtx.soap(0.5)
        >>> _, state = tx.update(g, tx.init(params), params)
        >>> updates, _ = tx.update(g, state, params)
        >>> print(f"{updates[0, 0]:.2f} {updates[0, 1]:.2f}")
        -0.30 -0.40
    """
    return chain(
        scale_by_soap(
            b1,
            b2,
            shampoo_beta,
            eps,
            mu_dtype,
            precondition_frequency=precondition_frequency,
            max_precond_dim=max_precond_dim,
        ),
        weight_decay_of("soap", weight_decay, mask, decay=decay),
        scale_by_learning_rate(learning_rate),
    )
