"""Averages of past gradients: heavy ball, exponential, box."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from optax import ScalarOrSchedule

from gradtx.arguments import check_flag, check_static
from gradtx.explicit import laid_out_as
from gradtx.kernel import DECAY, KEPT, Kernel, Slot
from gradtx.kernels.arithmetic import debias as debiased
from gradtx.lift import lift
from gradtx.norms import mean


def _trace(g, *, trace, decay, dampening, nesterov):
    g = (1 - dampening) * g
    trace = decay * trace + g
    return (decay * trace + g if nesterov else trace), trace


TRACE = Kernel(
    "trace",
    _trace,
    slots=(Slot("trace", dtype_argument="accumulator_dtype"),),
    hyperparameters={"decay": KEPT, "dampening": DECAY},
    options=("nesterov",),
    state=optax.TraceState,
    degree=1,
    decay="mixes",
    source="Polyak 1964, equation (9)",
)


def trace(
    decay: ScalarOrSchedule,
    nesterov: bool = False,
    accumulator_dtype: DTypeLike | None = None,
    *,
    dampening: ScalarOrSchedule = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Accumulate past gradients: momentum.

        v <- decay * v + (1 - dampening) * g
        u = v,    or with nesterov    u = decay * v + (1 - dampening) * g

    With dampening 0 it is the heavy ball; with dampening = decay the low-pass filter
    v <- decay * v + (1 - decay) * g.

    Args:
        decay: the decay rate of the momentum, in [-1, 1]; a number, a scalar array or a schedule.
            With 1 it is a running sum.
        nesterov: whether to use Nesterov momentum.
        accumulator_dtype: the storage dtype of the momentum; None: the parameter's, at least
            float32.
        dampening: the share of the gradient that is left out, in [0, 1).

    Returns:
        The transformation, with the state `TraceState(trace)`.

    Raises:
        ValueError: if `decay` is not in [-1, 1], or `dampening` not in [0, 1).

    Source:
        Polyak 1964, equation (9); Sutskever et al. 2013, "On the importance of initialization
        and momentum in deep learning", equations (1) to (4). PyTorch leaves the dampening out of
        the first step; here the equation holds from the first step on.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.trace(0.5)
        >>> state = tx.init(jnp.zeros(1))
        >>> for _ in range(3):
        ...     updates, state = tx.update(jnp.ones(1), state)
        >>> print(updates)
        [1.75]
    """
    nesterov = check_flag("trace", "nesterov", nesterov)
    return lift(
        TRACE,
        dtypes={"trace": accumulator_dtype},
        decay=decay,
        dampening=dampening,
        nesterov=nesterov,
    )


def _ema(g, *, ema, t, decay, debias):
    ema = decay * ema + (1 - decay) * g
    return (debiased(ema, decay, t) if debias else ema), ema


EMA = Kernel(
    "ema",
    _ema,
    slots=(Slot("ema", dtype_argument="accumulator_dtype"),),
    hyperparameters={"decay": DECAY},
    options=("debias",),
    state=optax.EmaState,
    degree=1,
    decay="mixes",
    source="Kingma & Ba 2015, section 3",
)


def ema(
    decay: ScalarOrSchedule,
    debias: bool = True,
    accumulator_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Replace the updates by their exponential moving average.

        m_t = decay * m_{t-1} + (1 - decay) * g_t,    m_0 = 0
        u_t = m_t / (1 - decay^t),    or m_t without debias

    Args:
        decay: the decay rate of the average, in [0, 1); a number, a scalar array or a schedule.
        debias: whether to correct the bias of an average that starts at zero.
        accumulator_dtype: the storage dtype of the average; None: the parameter's, at least
            float32.

    Returns:
        The transformation, with the state `EmaState(count, ema)`.

    Raises:
        ValueError: if `decay` is not in [0, 1).

    Source:
        Kingma & Ba 2015, "Adam", section 3.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.ema(0.5)
        >>> state = tx.init(jnp.zeros(1))
        >>> for g in (3.0, 6.0):
        ...     updates, state = tx.update(jnp.array([g]), state)
        >>> print(updates)
        [5.]
    """
    return lift(
        EMA,
        dtypes={"ema": accumulator_dtype},
        decay=decay,
        debias=check_flag("ema", "debias", debias),
    )


class SimpleMovingAverageState(NamedTuple):
    """The state of `simple_moving_average`.

    Attributes:
        count: number of gradients seen, int32.
        history: for each parameter of shape (...) an array of shape (window, ...), the newest
            last.
    """

    count: jax.Array
    history: optax.Updates


def _simple_moving_average(g, *, history, t, window):
    history = jnp.concatenate([history[1:], laid_out_as(g[None], history[:1])])
    return mean(history, 0, jnp.minimum(t, window))[0], history


SIMPLE_MOVING_AVERAGE = Kernel(
    "simple_moving_average",
    _simple_moving_average,
    slots=(Slot("history", shape=lambda shape, window: (window, *shape)),),
    options=("window",),
    state=SimpleMovingAverageState,
    degree=1,
    decay="mixes",
)


def simple_moving_average(window: int) -> optax.GradientTransformationExtraArgs:
    """Replace the updates by the mean of the last `window` of them.

        u_t = (g_t + g_{t-1} + ... + g_{t-n+1}) / n,    n = min(t, window)

    Args:
        window: how many updates to average, a whole number >= 1. The state is this many times as
            large as the parameters.

    Returns:
        The transformation, with the state `SimpleMovingAverageState(count, history)`.

    Raises:
        ValueError: if `window` is not a whole number >= 1.

    Source:
        The moving average of time series analysis, a box filter of length `window`.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.simple_moving_average(2)
        >>> state = tx.init(jnp.zeros(1))
        >>> for g in (1.0, 2.0, 6.0):
        ...     updates, state = tx.update(jnp.array([g]), state)
        ...     print(updates)
        [1.]
        [1.5]
        [4.]
    """
    window = check_static("simple_moving_average", "window", window)
    return lift(SIMPLE_MOVING_AVERAGE, window=window)
