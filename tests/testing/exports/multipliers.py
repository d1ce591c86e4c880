"""Learning-rate multipliers."""

import gradtx

from .export import Export, halved


def by_path(path: str) -> float:
    return 0.5 ** path.count("/")


EXPORTS = {
    "multiply_learning_rate": Export(
        lambda: gradtx.chain(gradtx.adam(0.1), gradtx.multiply_learning_rate({".": 0.5}))
    ),
    "multiply_learning_rate-schedule": Export(
        lambda: gradtx.multiply_learning_rate({".": halved}, rest=None)
    ),
    "multiply_learning_rate-function": Export(
        lambda: gradtx.multiply_learning_rate(by_path), capabilities=["names"]
    ),
}
