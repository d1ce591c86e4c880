"""Adam-mini: Adam with one second moment for each block of elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import DTypeLike
from optax import ScalarOrSchedule

from gradtx import boxes, trees
from gradtx.kernel import Kernel, PerLeaf, Slot
from gradtx.kernels.adam import ADAM_RANGES
from gradtx.kernels.arithmetic import debias, safe_divide
from gradtx.lift import lift
from gradtx.messages import for_static, shown
from gradtx.norms import abs_squared

Axes: TypeAlias = int | Sequence[int]
Blocks: TypeAlias = Axes | Callable[[str, Any], Axes]


def _adamini(g, *, mu, nu, t, b1, b2, eps, eps_root):
    within = tuple(axis for axis, length in enumerate(nu.shape) if length == 1)
    number = math.prod(g.shape[axis] for axis in within)
    square = jnp.sum(abs_squared(g) / max(number, 1), axis=within, keepdims=True)
    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * square
    return safe_divide(debias(mu, b1, t), lax.sqrt(debias(nu, b2, t) + eps_root) + eps, eps), mu, nu


def _shape_of_blocks(shape: tuple[int, ...], blocks: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length if axis in blocks else 1 for axis, length in enumerate(shape))


ADAMINI = Kernel(
    "scale_by_adamini",
    _adamini,
    slots=(Slot("mu"), Slot("nu", real=True, non_negative=True, shape=_shape_of_blocks)),
    hyperparameters=ADAM_RANGES,
    options=("blocks",),
    state=optax.ScaleByAdamState,
    elementwise=False,
    degree=0,
    source="Zhang et al. 2024, Algorithm 1",
    bounded="squares",
)


def _axes_of_leaves(blocks: Blocks) -> PerLeaf:
    """For each leaf the axes, counted from 0, along which each index has its own block."""
    common = None if callable(blocks) else _as_axes(blocks)

    def axes_of(name: str, leaf: Any) -> tuple[int, ...]:
        if not trees.is_parameter(leaf):
            return ()
        rank = np.ndim(leaf)
        if callable(blocks):
            axes = _as_axes(blocks(name, leaf))
        else:
            axes = common if common is not None and rank > 1 else ()
        if not all(-rank <= axis < rank for axis in axes):
            raise ValueError(
                f"scale_by_adamini: blocks names the axes {shown(axes)}, which the leaf at "
                f"'{name}' of shape {np.shape(leaf)} does not have"
            )
        return tuple(axis % rank for axis in axes)

    def choose(tree: Any) -> Any:
        return boxes.map_named(axes_of, tree)

    return PerLeaf(choose)


def _as_axes(axes: object) -> tuple[int, ...]:
    several = tuple(axes) if isinstance(axes, Sequence) else (axes,)
    numbers = tuple(axis for axis in several if isinstance(axis, int) and axis is not True)
    if len(numbers) != len(several) or isinstance(axes, str):
        raise ValueError(
            "scale_by_adamini: blocks must be an axis, a sequence of axes, or a function "
            f"(path, leaf) that returns them, got {shown(axes)}{for_static('blocks', axes)}"
        )
    return numbers


def scale_by_adamini(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    blocks: Blocks = -1,
) -> optax.GradientTransformationExtraArgs:
    """Adam-mini's scaling: Adam's with one second moment for each block of elements.

        m <- b1 * m + (1 - b1) * g,                  m_hat = m / (1 - b1^t)
        v <- b2 * v + (1 - b2) * mean(g^2),          v_hat = v / (1 - b2^t)
        u = m_hat / (sqrt(v_hat + eps_root) + eps)

    with one number v, and one mean of g^2, for each block. The blocks should be the diagonal blocks
    of the Hessian: the weights of one output neuron, of one attention head, of one token. v then
    takes almost no memory, which halves that of Adam's state.

    Args:
        b1: the decay rate of the first moment, in [0, 1); a number, a scalar array or a schedule.
        b2: the decay rate of the second moment, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to the denominator inside the root, >= 0.
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.
        blocks: the axis, or axes, along which each index has its own block: -1 for the output
            neurons of a kernel of shape (..., inputs, outputs); 1 for the heads of attention
            weights (inputs, heads, size); 0 for the tokens of an embedding (tokens, features); (0,
            -1) for a stack of layers; () for whole leaves. Vectors and scalars are one block each.
            Or a function from the path of a leaf, such as "decoder/0/query", and the leaf to its
            axes, also of vectors; with all axes it is Adam.

    Returns:
        The transformation, with the state `ScaleByAdamState(count, mu, nu)`, whose `nu` has
        length 1 along all axes but those of `blocks`.

    Raises:
        ValueError: if an argument lies outside its range; in `init`, if a leaf does not have the
            axes.

    Source:
        Zhang et al. 2024, "Adam-mini: use fewer learning rates to gain more", Algorithm 1, with the
        blocks of its section 2.3. Since version 1.1.0 the authors' code has one number for each
        token of the embedding (0 here, for an array (tokens, features)) and of the output layer
        (-1, for (features, tokens)), for each head of queries and keys, and for each output neuron
        of all other matrices; the parameters of a normalization are one block, and a bias has one
        number for each element (0, which a function may return for it).

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_adamini()
        >>> gradient = jnp.array([[7.0, 2.0], [1.0, 2.0]])  # columns of mean size 5 and 2
        >>> updates, state = tx.update(gradient, tx.init(jnp.zeros((2, 2))))
        >>> print(state.nu.shape, [f"{update:.2f}" for update in updates.ravel()])
        (1, 2) ['1.40', '1.00', '0.20', '1.00']
    """
    return lift(
        ADAMINI,
        dtypes={"mu": mu_dtype},
        b1=b1,
        b2=b2,
        eps=eps,
        eps_root=eps_root,
        blocks=_axes_of_leaves(blocks),
    )
