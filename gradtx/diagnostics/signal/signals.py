"""`signal_report`: measures the signal of each layer, and the backpropagated gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradtx.diagnostics.signal import nonfinite, trends
from gradtx.diagnostics.signal.learning import idle_parameters, unseen
from gradtx.diagnostics.signal.measuring import measure_layers
from gradtx.diagnostics.signal.passage import passages
from gradtx.diagnostics.signal.report import SignalReport
from gradtx.diagnostics.signal.silence import find_silence
from gradtx.diagnostics.tracing.traced import TracedLoss, trace_loss


def signal_report(
    loss_fn: Callable[..., Any], params: Any, *args: Any, has_aux: bool = False
) -> SignalReport:
    """Measure the signal in each layer of a network, and diagnose what is wrong.

    For a layer with weights W, inputs x, output z = W x + b and nonlinearity f, over all samples,
    positions and units of the batch:

        rms = sqrt(mean f(z)^2),    grad_rms = sqrt(mean (d loss / d z)^2)

    The loss may be any pure function of parameters: plain JAX, flax, equinox, haiku. It is traced,
    so the network does not have to be modified: a layer is a matrix product or a convolution of
    data with a parameter. Layers are found inside `jit`, `scan`, `cond`, `checkpoint`,
    `shard_map` and functions with custom derivatives. In a scan, a layer that takes slices of
    stacked parameters counts as many layers; one that uses the same parameter in each iteration (a
    recurrent network) is one layer, measured over all iterations. A product of two signals, as in
    attention, is not a layer.

    In a `shard_map`, measurements are taken over all devices, and shapes are those on one device.
    In a `while_loop`, only the signal is measured, over all iterations, because no gradient passes
    back through it. Operations that cannot be looked into, such as calls out of JAX and solvers,
    are listed as `unseen` if they take parameters, and "healthy" is said of the rest only.
    Parameters without a gradient are listed as `idle_parameters`.

    A layer's output is followed through its bias, normalization and sums to the first nonlinearity,
    as long as the operations are elementwise: it is not followed through pooling.

    A recurrence is judged by how the gradient changes from step to step in a layer that receives
    the state of the previous step. This is meaningful only if the loss depends on the last steps
    alone: a loss at every step contributes a gradient of its own at every step.

    Args:
        loss_fn: the loss, a real scalar: `loss_fn(params, *args)`.
        params: the parameters, a tree of arrays. Leaves that are not inexact arrays (the functions
            and numbers in an equinox module) are left alone.
        *args: further arguments of the loss function, such as a batch. Arrays are treated as data;
            anything else is passed on unchanged.
        has_aux: whether the loss returns a pair of the loss and something else.

    Returns:
        A `SignalReport`: `verdict` says what is wrong and how to fix it, `layers` has a
        `LayerSignal` for each layer in the order of evaluation, `table()` and `plot()` show them.

    Raises:
        ValueError: if `loss_fn` is not callable, does not return a real scalar, or has no layer
            although its parameters learn and nothing is hidden.

    Source:
        Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural
        networks", section 4; He et al. 2015, "Delving deep into rectifiers", section 2.2.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from gradtx import diagnostics, initializers
        >>> keys = jax.random.split(jax.random.key(0), 20)
        >>> too_large = initializers.variance_scaling(8.0, "fan_in", "normal")
        >>> params = [too_large(key, (64, 64)) for key in keys]
        >>> def loss_fn(params, x):
        ...     for kernel in params:
        ...         x = jax.nn.relu(x @ kernel)
        ...     return jnp.mean(x)
        >>> report = diagnostics.signal_report(loss_fn, params, jnp.ones((8, 64)))
        >>> print(report.kind, len(report.layers), report.layers[0].activation)
        exploding 20 relu
    """
    loss = trace_loss("signal_report", loss_fn, params, args, has_aux=has_aux)
    report = report_of(loss)
    if report is None:
        raise ValueError(
            "signal_report: loss_fn must have a layer, a matrix product or a convolution of data "
            f"with a parameter; none was found for {len(loss.params)} parameters"
        )
    return report


def report_of(loss: TracedLoss) -> SignalReport | None:
    """The report on a traced loss; None: it has no layer."""
    measured = measure_layers(loss)
    layers, found = measured.layers, measured.found
    learns = any(measured.has_gradient)
    if not layers and not measured.hidden and learns:
        return None
    finite = np.isfinite([measured.loss, *(layer.weight_grad_rms for layer in layers)])
    culprit = None if finite.all() else nonfinite.find_culprit(loss)
    trunk = ()
    if finite.all() and trends.notable_over_layers(layers):
        trunk = passages(loss, layers)
    leaves = {part.leaf for layer in found for part in layer.origin.parts}
    first = {part.leaf for layer in found if layer.receives_data for part in layer.origin.parts}
    return SignalReport(
        loss=measured.loss,
        layers=tuple(layers),
        culprit=culprit,
        idle_parameters=idle_parameters(loss, measured.has_gradient, first),
        unseen=unseen(measured.hidden, loss.names),
        coverage=(
            sum(loss.params[leaf].size for leaf in leaves),
            sum(array.size for array in loss.params),
        ),
        learns=learns,
        trunk=trunk,
        silence=find_silence(loss, layers) if finite.all() else None,
    )
