"""The length of one optimizer's steps for the direction of another's."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax

from gradtx import lengths, norms
from gradtx.compose.parts import Part, composed
from gradtx.compose.sequence import as_transformation
from gradtx.effect import Effect
from gradtx.inputs import check_state
from gradtx.joined import Finish, Leaves, join
from gradtx.leaves import equation, map_leaves

GRAFT = Effect(
    degree=1, decay="hides", inside="graft", states=("magnitude", "direction"), alters=True
)


class GraftState(NamedTuple):
    """The state of `graft`.

    Attributes:
        magnitude: the state of the transformation that gives the lengths.
        direction: the state of the transformation that gives the directions.
    """

    magnitude: Any
    direction: Any


def graft(
    magnitude: optax.GradientTransformation, direction: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Give each array's step the length of one optimizer's and the direction of another's.

        u = ||m|| / ||d|| * d,    m = magnitude(g), d = direction(g)

    and u = 0 where d = 0. So a learning rate that was tuned for one optimizer suits the other.

    Both get the same gradient, and each may average it or not. If only `direction` does, the
    average has less noise and is shorter, and is stretched to the full length again: at a decay of
    0.9 by up to sqrt(1.9 / 0.1) = 4.4. Average in both, or in neither and then the result, as
    `shampoo` does: `chain(graft(scale_by_rss(), scale_by_shampoo(None)), ema(0.9))`.

    Args:
        magnitude: the transformation whose updates give the lengths.
        direction: the transformation whose updates give the directions.

    Returns:
        A transformation with the state `GraftState(magnitude, direction)`.

    Raises:
        ValueError: if an argument is not a transformation.

    Source:
        Agarwal et al. 2020, "Disentangling adaptive gradient methods from learning rates",
        Algorithm 1, layer by layer.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.graft(magnitude=gradtx.identity(), direction=gradtx.sign_sgd(1.0))
        >>> g = {"w": jnp.array([30.0, 40.0, 0.0, 0.0])}
        >>> print(tx.update(g, tx.init(g))[0]["w"].round(1) + 0.0)
        [-35.4 -35.4   0.    0. ]
    """
    owner = "graft"
    magnitude = as_transformation(owner, "magnitude", magnitude)
    direction = as_transformation(owner, "direction", direction)

    def init(params: Any) -> GraftState:
        return GraftState(magnitude.init(params), direction.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        lengths, magnitude_state = magnitude.update(updates, state.magnitude, params, **extra)
        directions, direction_state = direction.update(updates, state.direction, params, **extra)
        named = {"the directions": directions, "the lengths": lengths}
        grafted = map_leaves(_grafted, owner, named)
        return grafted, GraftState(magnitude_state, direction_state)

    def on_stacks(leaves: Leaves, state: Any) -> Finish:
        check_state(owner, state, GraftState._fields)
        measured = leaves.twin()
        finishes = (
            join(magnitude.update, measured, state.magnitude),
            join(direction.update, leaves, state.direction),
        )
        measured.take_steps()
        leaves.take_steps()
        for i in leaves.active():
            leaf, length = leaves.leaves[i], measured.leaves[i].value
            grafted = jax.vmap(_grafted) if leaf.is_stack else _grafted
            leaf.value = grafted(leaf.value, length)
        return lambda: GraftState(*(finish() for finish in finishes))

    return composed(
        owner,
        (Part("magnitude", magnitude), Part("direction", direction)),
        init,
        update,
        locality="leaf",
        state=GraftState,
        effect=GRAFT,
        on_stacks=on_stacks,
    )


@equation()
def _grafted(d: jax.Array, m: jax.Array) -> jax.Array:
    unit = lengths.direction(d, norms.length(d))
    return lengths.multiplied(unit, norms.length(m))
