"""Muon and NorMuon for the matrices among the parameters, AdamW for everything else."""

from __future__ import annotations

from typing import Any

import jax
from jax.typing import DTypeLike
from optax import GradientTransformationExtraArgs as ExtraArgs
from optax import ScalarOrSchedule

from gradtx.arguments import ANY_NUMBER, DECAY, NON_NEGATIVE, check_hyperparameter
from gradtx.compose.groups import partition
from gradtx.compose.sequence import chain
from gradtx.kernels.matrices import WeightDimensionNumbers, check_numbers, spread_numbers
from gradtx.kernels.muon import scale_by_muon, scale_by_shape
from gradtx.kernels.normuon import scale_by_normuon
from gradtx.kernels.orthogonalize import NS_COEFFS, Preconditioning
from gradtx.kernels.scale import scale_by_learning_rate, weight_decay_of
from gradtx.recipes.adam import adamw
from gradtx.roles import layer_shapes
from gradtx.select import Decay, Mask

_NUMBERS = "muon_weight_dimension_numbers"


def muon(
    learning_rate: ScalarOrSchedule,
    ns_coeffs: Any = NS_COEFFS,
    ns_steps: int = 5,
    beta: ScalarOrSchedule = 0.95,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: Preconditioning = "frobenius",
    adam_b1: ScalarOrSchedule = 0.9,
    adam_b2: ScalarOrSchedule = 0.999,
    adam_eps_root: ScalarOrSchedule = 0.0,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    adam_learning_rate: ScalarOrSchedule | None = None,
    muon_weight_dimension_numbers: WeightDimensionNumbers | None = None,
    consistent_rms: ScalarOrSchedule | None = None,
    bias_correction: bool = True,
    ns_dtype: DTypeLike | None = None,
    decay: Decay = "all",
) -> ExtraArgs:
    """Muon: orthogonalized momentum for the matrices, AdamW for everything else.

        M <- beta * M + (1 - beta) * G,    M_hat = M / (1 - beta^t)
        O = NewtonSchulz(M_hat) * sqrt(max(1, fan_out / fan_in))
        u = -learning_rate * (O + weight_decay * p)

    with nesterov and the iteration as in `scale_by_muon`; with `consistent_rms` the factor is
    consistent_rms * sqrt(max(fan_in, fan_out)).

    An array of three or more axes is a batch of matrices in the last two, such as layers that are
    stacked for a scan. Vectors and stacks of vectors go to AdamW; they are recognized by the rule
    of `select.matrices`, except that axes of length 1 count here. Pass dimension numbers where that
    rule does not fit: MuonDimensionNumbers((0, 1, 2), 3) for convolutions in the layout (height,
    width, inputs, outputs), MuonDimensionNumbers(0, 2) for attention heads (width, heads, size)
    that are separate matrices, and None for embeddings and output layers, which then go to AdamW.

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        ns_coeffs: the coefficients of the iteration, see `scale_by_muon`.
        ns_steps: the number of iterations, >= 1. Several triples of `ns_coeffs` give their own
            number.
        beta: the decay rate of the momentum, in [0, 1).
        eps: added to the norm of the momentum in the iteration, >= 0. AdamW has the same eps.
        weight_decay: the strength of the weight decay, >= 0, multiplied by the learning rate. It
            applies to the matrices; `adam_weight_decay` is that of the others.
        weight_decay_mask: the leaves to decay: a tree of booleans, a function of the parameters
            that returns one, or a `gradtx.select(...)`; None: all leaves. Of these, only the
            matrices decay.
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.
        nesterov: whether to use Nesterov momentum. It applies to AdamW too.
        adaptive: whether to multiply by the inner product <M_hat, O>.
        preconditioning: the scaling before the first iteration, see `scale_by_muon`.
        adam_b1: AdamW's decay rate of the first moment, in [0, 1).
        adam_b2: AdamW's decay rate of the second moment, in [0, 1).
        adam_eps_root: added to AdamW's denominator inside the root, >= 0.
        adam_weight_decay: the strength of AdamW's weight decay, >= 0.
        adam_learning_rate: AdamW's step size; None: `learning_rate`.
        muon_weight_dimension_numbers: the axes of the matrices: a tree of `MuonDimensionNumbers`,
            and of None for what goes to AdamW, or a prefix of one, or a function of the parameters
            that returns it. None: all arrays of two or more axes except stacks of vectors are
            matrices in the last two.
        consistent_rms: the root mean square of the elements of an update, >= 0, before the learning
            rate. 0.2 suits AdamW's learning rates and weight decay. None: the factor above.
        bias_correction: whether to correct the bias of averages that start at zero.
        ns_dtype: a narrower dtype for the factors of the products in the iteration, such as
            bfloat16; None: that of the gradient, at least float32, and products are as precise as
            `jax_default_matmul_precision` says.
        decay: the leaves to decay if there is no mask: "all", or "matrices" for those of
            `select.matrices`. It also applies to AdamW, which has no mask.

    Returns:
        The partition of the parameters into "muon" and "adam".

    Raises:
        ValueError: if an argument lies outside its range; in `init`, if the dimension numbers do
            not fit the parameters.

    Source:
        Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; Liu et al.
        2025, "Muon is scalable for LLM training". Without dimension numbers, optax gives arrays of
        three or more axes to AdamW, and all of two axes to Muon. PyTorch's matrices have the layout
        (output, input), MuonDimensionNumbers(1, 0). It does not correct M, uses eps as a lower
        bound of the norm, and iterates in bfloat16.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
        >>> grads = {"kernel": jnp.diag(jnp.array([3.0, 300.0])), "bias": jnp.array([1.0, -9.0])}
        >>> tx = gradtx.muon(0.1)
        >>> updates, state = tx.update(grads, tx.init(params), params)
        >>> print(updates["kernel"].round(1) + 0.0)
        [[-0.1  0. ]
         [ 0.  -0.1]]
        >>> print(list(state.inner_states))
        ['muon', 'adam']
    """
    check_numbers("muon", muon_weight_dimension_numbers, _NUMBERS)
    _check_adam("muon", adam_b1, adam_b2, adam_eps_root, adam_weight_decay, adam_learning_rate)
    return _partition_matrices(
        "muon",
        chain(
            scale_by_muon(
                ns_coeffs,
                ns_steps,
                beta,
                eps,
                mu_dtype,
                nesterov=nesterov,
                adaptive=adaptive,
                preconditioning=preconditioning,
                weight_dimension_numbers=muon_weight_dimension_numbers,
                bias_correction=bias_correction,
                ns_dtype=ns_dtype,
            ),
            scale_by_shape(muon_weight_dimension_numbers, consistent_rms),
            weight_decay_of(
                "muon", weight_decay, weight_decay_mask, decay=decay, argument="weight_decay_mask"
            ),
            scale_by_learning_rate(learning_rate),
        ),
        adamw(
            learning_rate if adam_learning_rate is None else adam_learning_rate,
            adam_b1,
            adam_b2,
            eps,
            adam_eps_root,
            mu_dtype,
            adam_weight_decay,
            nesterov=nesterov,
            decay=decay,
        ),
        muon_weight_dimension_numbers,
    )


def _check_adam(owner: str, b1: Any, b2: Any, eps_root: Any, weight_decay: Any, rate: Any) -> None:
    """Check AdamW's arguments under the names that they have here, which are not AdamW's."""
    for argument, value, valid in (
        ("adam_b1", b1, DECAY),
        ("adam_b2", b2, DECAY),
        ("adam_eps_root", eps_root, NON_NEGATIVE),
        ("adam_weight_decay", weight_decay, NON_NEGATIVE),
        ("adam_learning_rate", 0.0 if rate is None else rate, ANY_NUMBER),
    ):
        check_hyperparameter(owner, argument, value, valid)


def _partition_matrices(
    name: str,
    of_matrices: ExtraArgs,
    of_others: ExtraArgs,
    numbers: WeightDimensionNumbers | None,
) -> ExtraArgs:
    def labels(params: Any) -> Any:
        if numbers is None:
            shapes = layer_shapes(params)
            return jax.tree.structure(params).unflatten(
                name if len(shape) >= 2 else "adam" for shape in shapes
            )
        own = spread_numbers(name, numbers, params, _NUMBERS)
        return jax.tree.map(lambda _, given: name if given else "adam", params, own)

    return partition({name: of_matrices, "adam": of_others}, labels)


def normuon(
    learning_rate: ScalarOrSchedule,
    ns_coeffs: Any = NS_COEFFS,
    ns_steps: int = 5,
    beta: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.95,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    preconditioning: Preconditioning = "frobenius",
    adam_b1: ScalarOrSchedule = 0.9,
    adam_b2: ScalarOrSchedule = 0.999,
    adam_eps_root: ScalarOrSchedule = 0.0,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    adam_learning_rate: ScalarOrSchedule | None = None,
    muon_weight_dimension_numbers: WeightDimensionNumbers | None = None,
    consistent_rms: ScalarOrSchedule | None = 0.2,
    ns_dtype: DTypeLike | None = None,
    decay: Decay = "all",
) -> ExtraArgs:
    """NorMuon: Muon with a learning rate for each neuron, AdamW for what is not a matrix.

        M <- beta * M + (1 - beta) * G,    O = NewtonSchulz(M)
        v_j <- b2 * v_j + (1 - b2) * mean_i(O_ij^2),    N_ij = O_ij / (sqrt(v_j) + eps)
        u = -learning_rate * (consistent_rms * sqrt(m * n) / ||N||_F * N + weight_decay * p)

    With `consistent_rms=None` the factor is sqrt(max(1, n / m)) * ||O||_F, the length of a step of
    Muon, where m is the number of inputs and n that of outputs.

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule. AdamW's learning rates
            are a good start with the default `consistent_rms`.
        ns_coeffs: the coefficients of the iteration, see `scale_by_muon`.
        ns_steps: the number of iterations, >= 1. Several triples of `ns_coeffs` give their own
            number.
        beta: the decay rate of the momentum, in [0, 1).
        b2: the decay rate of the second moment, in [0, 1).
        eps: added to the norm of the momentum in the iteration, >= 0. It is also added to the root
            of v, and AdamW has the same eps.
        weight_decay: the strength of the weight decay, >= 0, multiplied by the learning rate. It
            applies to the matrices; `adam_weight_decay` is that of the others.
        weight_decay_mask: the leaves to decay: a tree of booleans, a function of the parameters
            that returns one, or a `gradtx.select(...)`; None: all leaves. Of these, only the
            matrices decay.
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.
        nesterov: whether to use Nesterov momentum. It applies to AdamW too; the paper has none.
        preconditioning: the scaling before the first iteration, see `scale_by_muon`.
        adam_b1: AdamW's decay rate of the first moment, in [0, 1).
        adam_b2: AdamW's decay rate of the second moment, in [0, 1).
        adam_eps_root: added to AdamW's denominator inside the root, >= 0.
        adam_weight_decay: the strength of AdamW's weight decay, >= 0.
        adam_learning_rate: AdamW's step size; None: `learning_rate`.
        muon_weight_dimension_numbers: the axes of the matrices, see `muon`.
        consistent_rms: the root mean square of the elements of an update, >= 0, before the learning
            rate. None: the length of a step of Muon, which suits Muon's learning rates.
        ns_dtype: a narrower dtype for the factors of the products in the iteration, such as
            bfloat16; None: that of the gradient, at least float32, and products are as precise as
            `jax_default_matmul_precision` says.
        decay: the leaves to decay if there is no mask: "all", or "matrices" for those of
            `select.matrices`. It also applies to AdamW, which has no mask.

    Returns:
        The partition of the parameters into "normuon" and "adam".

    Raises:
        ValueError: if an argument lies outside its range; in `init`, if the dimension numbers do
            not fit the parameters.

    Source:
        Li et al. 2025, "NorMuon: making Muon more efficient and scalable", Algorithm 1. The
        authors' code is the case `nesterov=True, consistent_rms=None`; see `scale_by_normuon`.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = {"kernel": jnp.zeros((4, 2)), "bias": jnp.zeros(2)}
        >>> grads = {"kernel": jnp.eye(4, 2) + 1.0, "bias": jnp.ones(2)}
        >>> tx = gradtx.normuon(0.1)
        >>> updates, _ = tx.update(grads, tx.init(params), params)
        >>> print(f"{jnp.sqrt(jnp.mean(updates['kernel'] ** 2)):.3f}")
        0.020
    """
    check_numbers("normuon", muon_weight_dimension_numbers, _NUMBERS)
    _check_adam("normuon", adam_b1, adam_b2, adam_eps_root, adam_weight_decay, adam_learning_rate)
    return _partition_matrices(
        "normuon",
        chain(
            scale_by_normuon(
                ns_coeffs,
                ns_steps,
                beta,
                b2,
                eps,
                mu_dtype,
                nesterov=nesterov,
                preconditioning=preconditioning,
                weight_dimension_numbers=muon_weight_dimension_numbers,
                consistent_rms=consistent_rms,
                ns_dtype=ns_dtype,
            ),
            weight_decay_of(
                "normuon",
                weight_decay,
                weight_decay_mask,
                decay=decay,
                argument="weight_decay_mask",
            ),
            scale_by_learning_rate(learning_rate),
        ),
        adamw(
            learning_rate if adam_learning_rate is None else adam_learning_rate,
            adam_b1,
            adam_b2,
            eps,
            adam_eps_root,
            mu_dtype,
            adam_weight_decay,
            nesterov=nesterov,
            decay=decay,
        ),
        muon_weight_dimension_numbers,
    )
