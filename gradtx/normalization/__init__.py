"""Normalization as functions: statistics first, then one way to apply them.

Every function here is `statistics -> normalize`. `moments` computes statistics that can be
masked, merged across micro-batches and combined across devices; `normalize` applies any mean and
variance; the named normalizations choose over which axes the statistics run. Nothing keeps
state: `batch_norm` takes its running statistics and returns the new ones.
"""

from __future__ import annotations

from gradtx.normalization.affine import normalize
from gradtx.normalization.batch import BatchStats, batch_norm, init_batch_stats
from gradtx.normalization.group import group_norm, instance_norm
from gradtx.normalization.layer import layer_norm, rms_norm
from gradtx.normalization.statistics import Moments, merge_moments, moments
from gradtx.normalization.whitening import standardize, whiten

__all__ = [
    "BatchStats",
    "Moments",
    "batch_norm",
    "group_norm",
    "init_batch_stats",
    "instance_norm",
    "layer_norm",
    "merge_moments",
    "moments",
    "normalize",
    "rms_norm",
    "standardize",
    "whiten",
]
