"""Descent with gradients of matrices that are projected to a subspace of low rank."""

from __future__ import annotations

from typing import Literal

import optax
from optax import GradientTransformationExtraArgs as ExtraArgs
from optax import ScalarOrSchedule

from gradtx.compose.sequence import chain
from gradtx.kernels.matrices import WeightDimensionNumbers
from gradtx.kernels.scale import scale_by_learning_rate, weight_decay_of
from gradtx.select import Decay, Mask
from gradtx.wrappers.projected import scale_by_galore


def galore(
    learning_rate: ScalarOrSchedule,
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: ScalarOrSchedule = 1.0,
    base_optimizer: optax.GradientTransformation | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    weight_dimension_numbers: WeightDimensionNumbers | None = None,
    *,
    projected_side: Literal["shorter", "longer"] = "shorter",
    decay: Decay = "all",
) -> ExtraArgs:
    """GaLore: Adam, or another optimizer, in a subspace of low rank for each matrix.

        G = U S V^T,    P <- U[:, :rank]       in the steps 1, 1 + T, 1 + 2T, ...
        u = -learning_rate * (scale * P base_optimizer(P^T G) + weight_decay * p)

    See `scale_by_galore` for which side of a matrix is projected, and where optax does not follow
    the paper.

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        rank: the largest rank of the subspace, >= 1.
        update_proj_gap: the number of steps T from one choice of the subspace to the next, >= 1.
        scale: the factor of the updates of matrices. The paper has 0.25.
        base_optimizer: the transformation in the subspace; None: `scale_by_adam()`. It gets no
            parameters.
        weight_decay: the strength of the weight decay, >= 0, multiplied by the learning rate.
        mask: the leaves to decay: a tree of booleans, a function of the parameters that returns
            one, or a `gradtx.select(...)`; None: all leaves.
        weight_dimension_numbers: the axes of the matrices, see `scale_by_galore`.
        projected_side: "shorter" as in the paper, or "longer" as in optax.
        decay: the leaves to decay if there is no mask: "all", or "matrices" for those of
            `select.matrices`.

    Returns:
        The chain of `scale_by_galore`, `add_decayed_weights` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Zhao et al. 2024, "GaLore: memory-efficient LLM training by gradient low-rank projection",
        Algorithm 2.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
        >>> tx = gradtx.galore(0.5, rank=1)
        >>> updates, state = tx.update(params, tx.init(params), params)
        >>> print(state[0].base_optimizer_state.mu["kernel"].shape)
        (1, 3)
    """
    direction = scale_by_galore(
        rank,
        update_proj_gap,
        scale,
        base_optimizer,
        weight_dimension_numbers,
        projected_side=projected_side,
    )
    return chain(
        direction,
        weight_decay_of("galore", weight_decay, mask, decay=decay),
        scale_by_learning_rate(learning_rate),
    )
