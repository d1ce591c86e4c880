"""Descent along the gradient, its momentum, its sign, or Newton's direction."""

import gradtx

from .export import SMALL, Export, with_loss

EXPORTS = {
    "ema": Export(lambda: gradtx.ema(0.9)),
    "lion": Export(lambda: gradtx.lion(0.1)),
    "newton": Export(gradtx.newton, with_loss, SMALL),
    "scale_by_lion": Export(gradtx.scale_by_lion),
    "scale_by_newton": Export(
        lambda: gradtx.scale_by_newton(solver="cg", damping=0.1), with_loss, SMALL
    ),
    "scale_by_sign": Export(gradtx.scale_by_sign),
    "sgd": Export(lambda: gradtx.sgd(0.1)),
    "sgd-momentum": Export(lambda: gradtx.sgd(0.1, momentum=0.9, nesterov=True)),
    "sign_sgd": Export(lambda: gradtx.sign_sgd(0.1)),
    "signum": Export(lambda: gradtx.signum(0.1)),
    "simple_moving_average": Export(lambda: gradtx.simple_moving_average(3)),
    "trace": Export(lambda: gradtx.trace(0.9)),
}
