"""Cautious optimizers: no step against the gradient."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from gradtx.arguments import check, check_flag
from gradtx.compose.parts import Part, composed, effect_of, parts_of
from gradtx.compose.sequence import as_transformation
from gradtx.effect import Effect
from gradtx.kernel import NON_NEGATIVE, Kernel
from gradtx.lift import hyperparameters_of, kernel_of, lift


def _agreeing(g, *, p, xi, downhill):
    """The elements of an update `g` that agree with the gradient `p`, longer the fewer they are."""
    # A product of signs, because that of two small numbers may underflow.
    agreement = jnp.real(jnp.conj(jnp.sign(g)) * jnp.sign(p))
    agrees = agreement < 0 if downhill else agreement > 0
    divisor = jnp.sum(agrees, dtype=agreement.dtype) + xi
    factor = g.size / jnp.where(divisor == 0, 1.0, divisor)
    return jnp.where(agrees, g * factor, jnp.zeros_like(g))


CAUTIOUS = Kernel(
    "cautious",
    _agreeing,
    hyperparameters={"xi": NON_NEGATIVE},
    options=("downhill",),
    elementwise=False,
    degree=1,
    gain=True,
    states=(),
    source="Liang et al. 2024, Algorithm 2",
)


def cautious(
    tx: optax.GradientTransformation,
    *,
    xi: ArrayLike = 1.0,
    downhill: bool | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Drop the elements of an update that go against the current gradient: a cautious optimizer.

        phi = 1 where u * g < 0, else 0
        u <- u * phi * size(phi) / (sum(phi) + xi)

    for each leaf, where u is its update from `tx` and g its gradient. What is left of an update is
    lengthened in proportion to what was dropped. The state of `tx` is not affected.

    Decoupled weight decay should be added outside, because it has nothing to do with the gradient:
    `chain(cautious(scale_by_adam()), add_decayed_weights(0.1), scale_by_learning_rate(0.001))`,
    whereas `cautious(adamw(...))` masks the decay too.

    Args:
        tx: the transformation whose updates are masked.
        xi: added to the number of elements that agree, >= 0. With 1 a leaf of a single element gets
            half of its update, with 0 all of it.
        downhill: whether the updates of `tx` are ready to be added to the parameters, as those of
            an optimizer are. False: they point along the gradient, as those of `scale_by_adam` do
            before their sign is flipped, and phi is 1 where u * g > 0. None: False if `tx` is made
            of pieces of this library none of which flips the sign, or of kernels of your own
            without a learning rate.

    Returns:
        A transformation with the state of `tx`.

    Raises:
        ValueError: if `tx` is not a transformation, or `xi` is negative, NaN or not a scalar.

    Source:
        Liang et al. 2024, "Cautious optimizers: improving training with one line of code",
        Algorithm 2. The authors' code has max(mean(phi), 0.001) in the denominator, which is xi = 0
        unless fewer than one in a thousand elements agree.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.cautious(gradtx.sgd(1.0, momentum=0.5), xi=0.0)
        >>> state = tx.init(jnp.zeros(2))
        >>> updates, state = tx.update(jnp.array([4.0, 4.0]), state)
        >>> print(tx.update(jnp.array([-1.0, 1.0]), state)[0])  # momentum: [-1, -3]
        [ 0. -6.]
    """
    inner = as_transformation("cautious", "tx", tx)
    xi = check("cautious", "xi", xi, NON_NEGATIVE)
    # The gradient is passed as the parameters, which the equation does not need.
    flips = _flips(inner) if downhill is None else check_flag("cautious", "downhill", downhill)
    mask = lift(CAUTIOUS, xi=xi, downhill=flips)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        proposed, state = inner.update(updates, state, params, **extra)
        cautiously, _ = mask.update(proposed, optax.EmptyState(), updates)
        return cautiously, state

    return composed(
        "cautious", (Part("", inner),), inner.init, update, locality="leaf", effect=CAUTIOUS
    )


def _flips(tx: optax.GradientTransformation) -> bool:
    """Whether a transformation turns a gradient into what is added to the parameters."""
    effect = kernel_of(tx) or effect_of(tx)
    if effect is None:
        # From another library, a whole optimizer is expected.
        return True
    if isinstance(effect, Kernel) and not effect.is_declared:
        return effect.rate in effect.hyperparameters
    parts = parts_of(tx)[_DIRECTING[effect.inside]]
    return _is_against(tx, effect) or any(_flips(part.transformation) for part in parts)


def _is_against(tx: optax.GradientTransformation, effect: Effect) -> bool:
    if effect.sense != "factor":
        return effect.sense == -1
    factor = hyperparameters_of(tx)[str(effect.factor)]
    return callable(factor) or (isinstance(factor, float) and factor < 0)


# Which parts of a transformation give its updates their direction.
_DIRECTING = {
    "first": slice(1),
    "all": slice(None),
    "graft": slice(1, 2),
    "elsewhere": slice(1),
    "aside": slice(0),
}
