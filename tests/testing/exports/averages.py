"""Averages of the parameters."""

import gradtx

from .export import Export

EXPORTS = {
    "average_params": Export(
        lambda: gradtx.average_params(gradtx.sgd(0.1), 0.9),
        skip={"missing_gradients": "the average of a parameter that stays moves towards it"},
    ),
}
