"""What a network or a run is doing, and why.

`signal_report` follows the signal through all layers of any JAX function, and the gradient back
through them, and says what is wrong. Each of the others measures one thing: where units bend, how
noisy and how curved the loss is, what lies between two solutions, which weights matter, which
learning rates work, and what happened during a compiled loop.
"""

from __future__ import annotations

from gradtx.diagnostics.activations import activation_gain, relu_elbows
from gradtx.diagnostics.checkup.attention import check_attention
from gradtx.diagnostics.checkup.check_up import check_up
from gradtx.diagnostics.checkup.data import check_data
from gradtx.diagnostics.checkup.dropout import check_dropout
from gradtx.diagnostics.checkup.examples import check_examples
from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.head import check_head
from gradtx.diagnostics.checkup.labels import check_labels
from gradtx.diagnostics.checkup.learning import check_learning
from gradtx.diagnostics.checkup.parameters import check_parameters
from gradtx.diagnostics.checkup.precision import check_precision
from gradtx.diagnostics.checkup.result import CheckUp
from gradtx.diagnostics.checkup.shapes import check_shapes
from gradtx.diagnostics.history import HistoryState, record_history, update_ratio
from gradtx.diagnostics.landscape import ConnectingPath, connecting_path, interpolate_loss
from gradtx.diagnostics.learning_rate import LearningRateRange, learning_rate_range
from gradtx.diagnostics.noise_scale import NoiseScale, gradient_noise_scale
from gradtx.diagnostics.pruning import apply_mask, freeze_pruned, prune_by_magnitude
from gradtx.diagnostics.readout import history_of, plot_history
from gradtx.diagnostics.signal.diagnosis import Diagnosis
from gradtx.diagnostics.signal.evidence import Evidence, Operand
from gradtx.diagnostics.signal.layer_signal import LayerSignal
from gradtx.diagnostics.signal.learning import IdleParameter, Unseen
from gradtx.diagnostics.signal.nonfinite import Culprit
from gradtx.diagnostics.signal.report import SignalReport
from gradtx.diagnostics.signal.signals import signal_report
from gradtx.diagnostics.smoothness import (
    AlongGradient,
    along_gradient,
    curvature_along_gradient,
    lipschitz_along_gradient,
    sharpness,
)

__all__ = [
    "AlongGradient",
    "CheckUp",
    "ConnectingPath",
    "Culprit",
    "Diagnosis",
    "Evidence",
    "Finding",
    "HistoryState",
    "IdleParameter",
    "LayerSignal",
    "LearningRateRange",
    "NoiseScale",
    "Operand",
    "SignalReport",
    "Unseen",
    "activation_gain",
    "along_gradient",
    "apply_mask",
    "check_attention",
    "check_data",
    "check_dropout",
    "check_examples",
    "check_head",
    "check_labels",
    "check_learning",
    "check_parameters",
    "check_precision",
    "check_shapes",
    "check_up",
    "connecting_path",
    "curvature_along_gradient",
    "freeze_pruned",
    "gradient_noise_scale",
    "history_of",
    "interpolate_loss",
    "learning_rate_range",
    "lipschitz_along_gradient",
    "plot_history",
    "prune_by_magnitude",
    "record_history",
    "relu_elbows",
    "sharpness",
    "signal_report",
    "update_ratio",
]
