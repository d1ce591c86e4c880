"""Writes torch_trajectories.npz: parameters under PyTorch's optimizers, step by step, in float64.

Run `python tests/recipes/make_torch_trajectories.py` where PyTorch is installed. The tests read
only the file that it writes:

- `vectors_and_matrices/LEAF`, `matrices/LEAF`: the parameters at the start. The cases of the
  second kind are about optimizers that take nothing but matrices.
- `vectors_and_matrices/LEAF/noise`, `matrices/LEAF/noise`: one array for each step, and `size`,
  one number for each step. The gradient at p is size * (noise + tanh(p)).
- `case/NAME/settings`: json text with the name of the optimizer, its settings, and the factor by
  which the learning rate changes after each step.
- `case/NAME/LEAF`: the parameters after each step.

PyTorch's Muon rounds its matrices to bfloat16 and orthogonalizes them there. Here they stay in
float64, except in the case `muon_bfloat16`.
"""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

# Gradients of different size, so that every epsilon counts somewhere; one of them is zero.
SIZE = np.array([1.0, 0.3, 2.0, 0.05, 0.0, 1.0, 0.01, 5.0, 0.7, 0.1, 1.0, 0.4])
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "vectors_and_matrices": {"matrix": (3, 4), "vector": (5,)},
    "matrices": {"wide": (2, 4), "tall": (5, 3)},
}

Case = tuple[str, str, dict[str, Any], float]


def case(name: str, optimizer: str, /, *, factor: float = 1.0, **settings: Any) -> Case:
    """A name, PyTorch's class, and its settings."""
    return name, optimizer, settings, factor


CASES = [
    case("sgd_decay", "SGD", lr=0.3, weight_decay=0.2),
    case("sgd_momentum", "SGD", factor=0.8, lr=0.1, momentum=0.8, weight_decay=0.4),
    case("sgd_dampening", "SGD", lr=0.2, momentum=0.7, dampening=0.6, weight_decay=0.1),
    case("sgd_low_pass", "SGD", factor=1.1, lr=0.5, momentum=0.9, dampening=0.9),
    case("sgd_nesterov", "SGD", lr=0.1, momentum=0.6, nesterov=True, weight_decay=0.3),
    case("sgd_nesterov_factor", "SGD", factor=0.7, lr=0.2, momentum=0.95, nesterov=True),
    case("adagrad", "Adagrad", lr=0.3),
    case("adagrad_without_eps", "Adagrad", lr=0.5, initial_accumulator_value=0.7, eps=0.0),
    case("adagrad_lr_decay", "Adagrad", lr=0.8, lr_decay=0.3, eps=0.2, weight_decay=0.1),
    case(
        "adagrad_accumulator",
        "Adagrad",
        lr=0.4,
        lr_decay=0.1,
        initial_accumulator_value=0.2,
        eps=0.05,
    ),
    case("rmsprop", "RMSprop", lr=0.1),
    case("rmsprop_eps", "RMSprop", factor=0.9, lr=0.2, alpha=0.6, eps=0.3, weight_decay=0.2),
    case("rmsprop_centered", "RMSprop", lr=0.05, alpha=0.9, centered=True),
    case(
        "rmsprop_centered_eps",
        "RMSprop",
        lr=0.1,
        alpha=0.5,
        eps=0.2,
        centered=True,
        weight_decay=0.1,
    ),
    case("rmsprop_momentum", "RMSprop", factor=0.8, lr=0.05, alpha=0.8, eps=0.1, momentum=0.9),
    case(
        "rmsprop_centered_momentum",
        "RMSprop",
        lr=0.1,
        alpha=0.7,
        eps=0.5,
        centered=True,
        momentum=0.5,
        weight_decay=0.3,
    ),
    case("adadelta", "Adadelta"),
    case("adadelta_eps", "Adadelta", lr=0.7, rho=0.6, eps=0.05),
    case("adadelta_decay", "Adadelta", factor=0.9, lr=2.0, rho=0.3, eps=1e-2, weight_decay=0.2),
    case("adam", "Adam", lr=0.1),
    case("adam_eps", "Adam", factor=0.9, lr=0.3, betas=(0.5, 0.7), eps=0.2),
    case("adam_decay", "Adam", lr=0.2, betas=(0.95, 0.8), eps=1e-3, weight_decay=0.3),
    case("amsgrad", "Adam", lr=0.1, amsgrad=True),
    case("amsgrad_eps", "Adam", lr=0.2, betas=(0.6, 0.5), eps=0.1, amsgrad=True),
    case(
        "amsgrad_decay",
        "Adam",
        factor=0.8,
        lr=0.3,
        betas=(0.8, 0.9),
        eps=0.02,
        amsgrad=True,
        weight_decay=0.2,
    ),
    case("adamw", "AdamW", lr=0.1),
    case("adamw_factor", "AdamW", factor=0.8, lr=0.2, betas=(0.7, 0.9), eps=0.1, weight_decay=0.7),
    case(
        "adamw_amsgrad",
        "AdamW",
        lr=0.1,
        betas=(0.9, 0.6),
        eps=0.05,
        amsgrad=True,
        weight_decay=0.5,
    ),
    case("adamax", "Adamax", lr=0.1),
    case("adamax_eps", "Adamax", lr=0.2, betas=(0.5, 0.8), eps=0.3),
    case("adamax_decay", "Adamax", factor=0.9, lr=0.3, betas=(0.8, 0.6), weight_decay=0.4),
    case("nadam", "NAdam", lr=0.1),
    case("nadam_constant", "NAdam", lr=0.1, betas=(0.8, 0.9), eps=0.01, momentum_decay=1e5),
    case(
        "nadam_momentum_decay",
        "NAdam",
        factor=0.9,
        lr=0.2,
        betas=(0.9, 0.7),
        eps=0.1,
        momentum_decay=2.0,
        weight_decay=0.3,
    ),
    case(
        "nadam_decoupled",
        "NAdam",
        lr=0.1,
        betas=(0.6, 0.9),
        momentum_decay=0.5,
        weight_decay=0.4,
        decoupled_weight_decay=True,
    ),
    case("radam", "RAdam", lr=0.2),
    case("radam_eps", "RAdam", factor=0.9, lr=0.2, betas=(0.7, 0.9), eps=0.1, weight_decay=0.3),
    case(
        "radam_decoupled",
        "RAdam",
        lr=0.3,
        betas=(0.5, 0.95),
        eps=0.02,
        weight_decay=0.4,
        decoupled_weight_decay=True,
    ),
    case("rprop", "Rprop"),
    case("rprop_bounds", "Rprop", lr=0.1, etas=(0.4, 1.6), step_sizes=(0.06, 0.2)),
    case("rprop_start_outside", "Rprop", lr=0.5, etas=(0.7, 1.1), step_sizes=(0.01, 0.3)),
    case("adafactor", "Adafactor", lr=0.1),
    case("adafactor_relative_step", "Adafactor", lr=0.5, beta2_decay=-0.5, d=1.5),
    case("adafactor_decay", "Adafactor", factor=0.9, lr=0.2, d=2.0, weight_decay=0.3),
    case("adafactor_scale", "Adafactor", lr=0.1, beta2_decay=-0.9, eps=(1e-9, 1.5)),
    case("muon", "Muon", lr=0.1),
    case("muon_plain", "Muon", lr=0.2, momentum=0.6, nesterov=False, weight_decay=0.4),
    case(
        "muon_match_rms_adamw",
        "Muon",
        factor=0.9,
        lr=0.2,
        momentum=0.8,
        ns_steps=3,
        adjust_lr_fn="match_rms_adamw",
    ),
    case(
        "muon_coefficients",
        "Muon",
        lr=0.1,
        momentum=0.7,
        weight_decay=0.0,
        ns_coefficients=(1.875, -1.25, 0.375),
        ns_steps=8,
    ),
    case(
        "muon_bfloat16",
        "Muon",
        lr=0.1,
        momentum=0.7,
        weight_decay=0.0,
        ns_coefficients=(1.875, -1.25, 0.375),
        ns_steps=8,
    ),
    case("muon_eps", "Muon", lr=0.1, momentum=0.7, ns_steps=2, eps=1e-3),
]


def main() -> None:
    """Runs every case and writes the file beside this script."""
    import torch

    # PyTorch keeps its counters and NAdam's product of momenta in the default dtype.
    torch.set_default_dtype(torch.float64)
    round_to_bfloat16 = torch.Tensor.bfloat16

    random = np.random.default_rng(20250611)
    arrays: dict[str, np.ndarray] = {"torch_version": np.array(torch.__version__), "size": SIZE}
    for kind, shapes in SHAPES.items():
        for leaf, shape in shapes.items():
            arrays[f"{kind}/{leaf}"] = random.normal(size=shape)
            drift = random.normal(size=shape)
            arrays[f"{kind}/{leaf}/noise"] = drift + random.normal(size=(len(SIZE), *shape))

    for name, optimizer, settings, factor in CASES:
        kind = "matrices" if optimizer == "Muon" else "vectors_and_matrices"
        params = {leaf: torch.tensor(arrays[f"{kind}/{leaf}"]) for leaf in SHAPES[kind]}
        stepper = getattr(torch.optim, optimizer)(list(params.values()), **settings)
        schedule = torch.optim.lr_scheduler.ExponentialLR(stepper, factor)
        trajectory: dict[str, list[np.ndarray]] = {leaf: [] for leaf in params}
        rounding = round_to_bfloat16 if name == "muon_bfloat16" else torch.Tensor.clone
        for t, size in enumerate(SIZE):
            for leaf, p in params.items():
                p.grad = size * (torch.tensor(arrays[f"{kind}/{leaf}/noise"][t]) + torch.tanh(p))
            with mock.patch.object(torch.Tensor, "bfloat16", rounding):
                stepper.step()
            schedule.step()
            for leaf, p in params.items():
                trajectory[leaf].append(p.numpy().copy())
        # All settings, with PyTorch's defaults; of no use here are those that pick an
        # implementation.
        used = {
            key: value
            for key, value in stepper.defaults.items()
            if key not in ("foreach", "maximize", "capturable", "differentiable", "fused")
        }
        text = json.dumps({"optimizer": optimizer, "settings": used, "factor": factor})
        arrays[f"case/{name}/settings"] = np.array(text)
        for leaf, values in trajectory.items():
            arrays[f"case/{name}/{leaf}"] = np.stack(values)
    np.savez_compressed(Path(__file__).with_name("torch_trajectories.npz"), **arrays)


if __name__ == "__main__":
    main()
