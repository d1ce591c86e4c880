"""Mechanic: a scale for the updates of any optimizer, tuned while it runs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from optax import ScalarOrSchedule
from optax.contrib import MechanicState

from gradtx import trees
from gradtx.compose.parts import Part, composed
from gradtx.compose.sequence import as_transformation
from gradtx.inputs import as_array
from gradtx.kernel import COUNT, NON_NEGATIVE, POSITIVE, check, check_hyperparameter
from gradtx.kernels.arithmetic import safe_divide
from gradtx.lift import evaluate
from gradtx.wrappers.steps import in_step, is_step

_OWNER = "mechanize"


def mechanize(
    base_optimizer: optax.GradientTransformation,
    weight_decay: ScalarOrSchedule = 1e-2,
    eps: ArrayLike = 1e-8,
    s_init: ArrayLike = 1e-6,
    num_betas: int = 6,
    *,
    clip_rewards: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Multiply all that an optimizer has added up so far by a scale that is learned: Mechanic.

        D = (p - p_0) / S,   S = sum_i s_i,   D = 0 at the start
        h = -<D, g + weight_decay * S * ||g|| * p / ||p||>
        for each i, with beta = 1 - 0.1^i,  i = 1 ... n:
            m <- max(beta * m, |h| + eps)
            v <- beta^2 * v + h^2
            r <- max(beta * r + s * h, 0)
            s <- (s_init / n * m + r) / (sqrt(v) + eps)
        p <- p_0 + S * (D + u),   with the new S and the optimizer's update u

    Products and norms are those of the whole tree; p / ||p|| is 0 where p is. Wrap the whole
    optimizer, with a learning rate of 1 or a schedule that starts there: nothing else may move the
    parameters. A call in which the optimizer takes no step, because an `apply_if_finite` in it
    skips one, changes nothing; of a `MultiSteps` in it, g is the last gradient that it collects,
    so that `MultiSteps` around it is better.

    Args:
        base_optimizer: the transformation whose updates are scaled.
        weight_decay: lambda in the paper, >= 0; a number, a scalar array or a schedule.
        eps: added to the denominator, > 0.
        s_init: the scale at the start, > 0; it should be far too small.
        num_betas: n, a whole number >= 1.
        clip_rewards: whether h counts in r by at most the old m, and r is limited only where s is
            formed: the authors' later practice, and optax's.

    Returns:
        A transformation with the state `MechanicState(base_optimizer_state, count, r, m, v, s,
        x0)`; its update needs `params`. D is recalculated from them, so that no step shorter than
        their rounding is remembered. (optax adds eps to S there, which lets a small D decay.)

    Raises:
        ValueError: if an argument lies outside its range, or `base_optimizer` is not a
            transformation; in `update`, if `params` is missing or has other shapes.

    Source:
        Cutkosky, Defazio & Mehta 2023, "Mechanic: a learning rate tuner", Algorithm 1. |h| + eps
        in m, as in the authors' program, lets the first steps begin.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array([2.0])
        >>> tx = gradtx.mechanize(gradtx.sgd(1.0), s_init=0.25)
        >>> print(tx.update(jnp.array([2.0]), tx.init(params), params)[0])
        [-0.5]
    """
    inner = as_transformation(_OWNER, "base_optimizer", base_optimizer)
    weight_decay = check_hyperparameter(_OWNER, "weight_decay", weight_decay, NON_NEGATIVE)
    eps = check(_OWNER, "eps", eps, POSITIVE)
    s_init = check(_OWNER, "s_init", s_init, POSITIVE)
    num_betas = check(_OWNER, "num_betas", num_betas, COUNT)
    number = int(num_betas)

    def init(params: Any) -> MechanicState:
        leaves = [as_array(p) for p in jax.tree.leaves(params) if trees.is_parameter(p)]
        zeros = jnp.zeros(number, trees.widest(leaves))
        return MechanicState(
            base_optimizer_state=inner.init(params),
            count=jnp.zeros([], jnp.int32),
            r=zeros,
            m=jnp.copy(zeros),
            v=jnp.copy(zeros),
            s=jnp.full_like(zeros, s_init),
            x0=jax.tree.map(_start, params),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        if params is None:
            raise ValueError(f"{_OWNER}: needs the parameters; call update(updates, state, params)")
        changes, inner_state = inner.update(updates, state.base_optimizer_state, params, **extra)
        step = is_step(state.base_optimizer_state, inner_state, changes)
        old = {name: getattr(state, name) for name in ("count", *"rmvs", "x0")}
        new, kept = in_step(
            _OWNER, step, lambda: tune(updates, state, params, changes), changes, old
        )
        return new, MechanicState(base_optimizer_state=inner_state, **kept)

    def tune(updates: Any, state: Any, params: Any, changes: Any) -> tuple[Any, dict[str, Any]]:
        leaves, treedef = trees.flatten(changes)
        aligned = {
            "the gradients": trees.flatten_like(_OWNER, "gradients", updates, "updates", changes),
            "params": trees.flatten_like(_OWNER, "params", params, "updates", changes),
            "the state's x0": trees.flatten_like(_OWNER, "x0", state.x0, "updates", changes),
        }
        active = [i for i, leaf in enumerate(leaves) if trees.is_parameter(leaf)]
        for i in active:
            for what, others in aligned.items():
                if not trees.is_parameter(others[i]) or np.shape(others[i]) != np.shape(leaves[i]):
                    trees.refuse_shape(_OWNER, "updates", changes, i, what, others[i])
        gradients, points, starts = (
            [jnp.asarray(others[i]) for i in active] for others in aligned.values()
        )
        # A run may begin at other parameters than those that made the state.
        starts = [_either(state.count == 0, p, x0) for p, x0 in zip(points, starts, strict=True)]
        decay = evaluate(weight_decay, state.count) if callable(weight_decay) else weight_decay
        tuned, stretch, scale = _tune(
            {name: getattr(state, name) for name in "rmvs"},
            trees.sum_of(_progress, gradients, starts, points),
            trees.sum_of(_pull, points, starts),
            trees.norm_of_leaves(gradients),
            trees.norm_of_leaves(points),
            jnp.asarray(decay),
            jnp.asarray(eps),
            jnp.asarray(s_init),
            clip_rewards=bool(clip_rewards),
        )
        new_x0 = aligned["the state's x0"]
        for i, p, x0 in zip(active, points, starts, strict=True):
            leaves[i] = _rescaled(leaves[i], p, x0, stretch, scale)
            new_x0[i] = x0
        count = optax.safe_increment(state.count)
        return treedef.unflatten(leaves), {"count": count, "x0": treedef.unflatten(new_x0)} | tuned

    return composed(_OWNER, (Part("", inner),), init, update, locality="tree", state=MechanicState)


def _start(parameter: Any) -> jax.Array | None:
    if not trees.is_parameter(parameter):
        return None
    dtype = trees.compute_dtype(jnp.result_type(parameter))
    if isinstance(parameter, jax.ShapeDtypeStruct):
        return jnp.zeros_like(parameter, dtype)  # the first step takes its parameters instead
    # A copy, because the caller may donate both.
    return jnp.array(parameter, dtype)


@jax.jit
def _either(is_first: jax.Array, parameter: jax.Array, start: jax.Array) -> jax.Array:
    return jnp.where(is_first, parameter.astype(start.dtype), start)


def _progress(g: jax.Array, start: jax.Array, p: jax.Array) -> jax.Array:
    return trees.inner_product(g, start - p)


def _pull(p: jax.Array, start: jax.Array) -> jax.Array:
    return trees.inner_product(p, start - p)


@functools.partial(jax.jit, static_argnames="clip_rewards")
def _tune(
    old: dict[str, jax.Array],
    progress: jax.Array,
    pull: jax.Array,
    gradient_norm: jax.Array,
    norm: jax.Array,
    weight_decay: jax.Array,
    eps: jax.Array,
    s_init: jax.Array,
    *,
    clip_rewards: bool,
) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
    """The new r, m, v and s, the factor of p - p_0 in the update, and that of the update."""
    dtype = old["s"].dtype
    progress, pull, gradient_norm, norm, weight_decay, eps, s_init = (
        number.astype(dtype)
        for number in (progress, pull, gradient_norm, norm, weight_decay, eps, s_init)
    )
    r, m, v, s = (old[name] for name in "rmvs")
    number = s.size
    # In float64, where 1 - 0.1^6 is exact enough.
    beta = jnp.asarray(1 - 0.1 ** np.arange(1, number + 1), dtype)
    scale = jnp.sum(s)
    # The product with p first: it is zero where p and its norm are, and p / ||p|| is no direction.
    h = safe_divide(progress, scale) + weight_decay * gradient_norm * safe_divide(pull, norm)
    reward = beta * r + s * (jnp.clip(h, -m, m) if clip_rewards else h)
    rewards = jnp.maximum(reward, 0)
    m = jnp.maximum(beta * m, jnp.abs(h) + eps)
    v = beta**2 * v + h**2
    s = (s_init / number * m + rewards) / (jnp.sqrt(v) + eps)
    new_scale = jnp.sum(s)
    new = {"r": reward if clip_rewards else rewards, "m": m, "v": v, "s": s}
    return new, safe_divide(new_scale - scale, scale), new_scale


@jax.jit
def _rescaled(
    change: jax.Array, p: jax.Array, start: jax.Array, stretch: jax.Array, scale: jax.Array
) -> jax.Array:
    """p_0 + S * (D + u) - p, with D from p and the old S."""
    dtype = start.dtype
    way = p.astype(dtype) - start
    new = stretch.astype(dtype) * way + scale.astype(dtype) * change.astype(dtype)
    return new.astype(change.dtype)
