"""Gradients extrapolated from the last one."""

import gradtx

from .export import Export

EXPORTS = {
    "optimistic_adam": Export(lambda: gradtx.optimistic_adam(0.1)),
    "optimistic_adam_v2": Export(lambda: gradtx.optimistic_adam_v2(0.1)),
    "optimistic_gradient_descent": Export(lambda: gradtx.optimistic_gradient_descent(0.1)),
    "scale_by_optimistic_gradient": Export(gradtx.scale_by_optimistic_gradient),
}
