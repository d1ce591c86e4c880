"""The measurements of one layer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerSignal:
    """The measurements of a layer z = W x + b with the nonlinearity f, over a batch.

    Means are over samples, positions and units, and in a recurrence over its steps. A layer without
    a nonlinearity, such as the last one, has f(z) = z.

    Attributes:
        name: the path of the weights W among the parameters, with the index in a stack of several:
            `kernel[2]`.
        shape: the shape of z; in a recurrence, at one step.
        weight_shape: the shape of W in the product.
        fan_in: the number of products that are summed for one element of z.
        activation: the name of f, or of the last operation in it; empty: there is none.
        depth: the number of layers on the longest path from the data to this one, including it.
        is_hidden: whether another layer receives its signal.
        is_recurrent: whether it receives the state of a recurrence from the previous step.
        is_gate: whether it decides how much of another signal passes, as in an LSTM or a GLU.
        input_mean: mean of x.
        input_rms: root mean square of x.
        output_mean: mean of z.
        output_rms: root mean square of z.
        mean: mean of f(z).
        rms: root mean square of f(z).
        zero_fraction: the fraction of f(z) that is exactly zero. Half is healthy for a relu.
        dead_fraction: the fraction of units whose f(z) is zero for the whole batch, and f'(z) too.
        units: the number of units.
        saturated_fraction: the fraction of f(z) where f is flat: |f'(z)| < 0.05 for a smooth f
            (tanh beyond ±0.975); f'(z) = 0 and f(z) != 0 for a piecewise linear f.
        grad_rms: root mean square of d loss / d z; NaN in a `while_loop`, which has no backward
            pass.
        weight_rms: root mean square of W.
        weight_grad_rms: root mean square of d loss / d W.
        rms_by_step: `rms` at each step of a recurrence; otherwise empty.
        grad_rms_by_step: `grad_rms` at each step of a recurrence; otherwise empty.
        receives_raw_data: whether x is data that no parameter has changed yet.
    """

    name: str
    shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    fan_in: int
    activation: str
    depth: int
    is_hidden: bool
    is_recurrent: bool
    input_rms: float
    output_rms: float
    mean: float
    rms: float
    zero_fraction: float
    dead_fraction: float
    units: int
    saturated_fraction: float
    grad_rms: float
    weight_rms: float
    weight_grad_rms: float
    rms_by_step: tuple[float, ...] = ()
    grad_rms_by_step: tuple[float, ...] = ()
    is_gate: bool = False
    input_mean: float = 0.0
    output_mean: float = 0.0
    receives_raw_data: bool = False
