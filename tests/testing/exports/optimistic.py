"""Gradients extrapolated from the last one."""

import warnings

import gradtx

from .export import Export


def deprecated():
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        return gradtx.optimistic_adam(0.1)


EXPORTS = {
    "optimistic_adam": Export(deprecated),
    "optimistic_adam_v2": Export(lambda: gradtx.optimistic_adam_v2(0.1)),
    "optimistic_gradient_descent": Export(lambda: gradtx.optimistic_gradient_descent(0.1)),
    "scale_by_optimistic_gradient": Export(gradtx.scale_by_optimistic_gradient),
}
