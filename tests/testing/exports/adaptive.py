"""Learning rates that adapt to the size of the gradients."""

import gradtx

from .export import Export

EXPORTS = {
    "adadelta": Export(lambda: gradtx.adadelta(1.0, weight_decay=0.1)),
    "adagrad": Export(lambda: gradtx.adagrad(0.1)),
    "rmsprop": Export(lambda: gradtx.rmsprop(0.1)),
    "rmsprop-centered": Export(lambda: gradtx.rmsprop(0.1, centered=True, momentum=0.9)),
    "rprop": Export(lambda: gradtx.rprop(0.1)),
    "scale_by_adadelta": Export(gradtx.scale_by_adadelta),
    "scale_by_rms": Export(lambda: gradtx.scale_by_rms(bias_correction=True)),
    "scale_by_rprop": Export(lambda: gradtx.scale_by_rprop(0.1)),
    "scale_by_rss": Export(gradtx.scale_by_rss),
    "scale_by_stddev": Export(gradtx.scale_by_stddev),
    # The corrected variance of the first step is zero but for rounding, which eps must cover.
    "scale_by_stddev-debiased": Export(
        lambda: gradtx.scale_by_stddev(eps=0.1, bias_correction=True)
    ),
}
