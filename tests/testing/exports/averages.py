"""Averages of the parameters."""

import gradtx

from .export import Export

EXPORTS = {
    "average_params": Export(
        lambda: gradtx.average_params(gradtx.sgd(0.1), 0.9),
        # The average of a parameter that stays moves towards it.
        capabilities=["own_clock"],
    ),
}
