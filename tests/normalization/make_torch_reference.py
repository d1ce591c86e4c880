"""Writes torch_reference.npz: normalizations and their gradients, by PyTorch in float64.

Run `python tests/normalization/make_torch_reference.py` where PyTorch is installed. The tests
read only the file that it writes. Arrays are named `case/array`; `d_x` and the like are
gradients of sum(weight * y).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

EPSILON = 1e-5
STEPS = 3


class Reference:
    """The arrays of all cases, and the random numbers that they are made from."""

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self._random = np.random.default_rng(20240501)
        self.arrays: dict[str, np.ndarray] = {"torch_version": np.array(torch.__version__)}

    def tensor(self, shape: tuple[int, ...], shift: float = 0.0) -> Any:
        """Normally distributed numbers around `shift`."""
        return self._torch.tensor(self._random.normal(shift, 1.0, shape), requires_grad=True)

    def record(self, case: str, function: Callable[..., Any], x: Any, *parameters: Any) -> None:
        """Record the values and gradients of a function."""
        y = function(x, *parameters)
        weight = self.tensor(tuple(y.shape)).detach()
        names = ("x", "scale", "bias")[: 1 + len(parameters)]
        gradients = self._torch.autograd.grad((weight * y).sum(), (x, *parameters))
        self.arrays[f"{case}/y"], self.arrays[f"{case}/weight"] = y.detach().numpy(), weight.numpy()
        for name, value, gradient in zip(names, (x, *parameters), gradients, strict=True):
            self.arrays[f"{case}/{name}"] = value.detach().numpy()
            self.arrays[f"{case}/d_{name}"] = gradient.numpy()


def main() -> None:
    """Runs every case and writes the file next to this script."""
    reference = Reference()
    record_batch_norm(reference)
    record_layer_and_rms_norm(reference)
    record_group_and_instance_norm(reference)
    np.savez_compressed(Path(__file__).with_name("torch_reference.npz"), **reference.arrays)


def record_batch_norm(reference: Reference) -> None:
    """Record some steps of training, and an evaluation with the running statistics."""
    import torch
    import torch.nn.functional as F

    tensor = reference.tensor
    scale, bias = tensor((4,), 1.0), tensor((4,))
    mean, var = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    for step in range(STEPS):
        reference.record(
            f"batch_norm_{step}",
            lambda x, g, b: F.batch_norm(x, mean, var, g, b, True, 0.1, EPSILON),
            tensor((4, 4, 3), float(step)),
            scale,
            bias,
        )
        reference.arrays[f"batch_norm_{step}/mean"] = mean.numpy().copy()
        reference.arrays[f"batch_norm_{step}/var"] = var.numpy().copy()
    reference.record(
        "batch_norm_evaluation",
        lambda x, g, b: F.batch_norm(x, mean, var, g, b, False, 0.1, EPSILON),
        tensor((4, 4, 3)),
        scale,
        bias,
    )


def record_layer_and_rms_norm(reference: Reference) -> None:
    """Record normalizations over one and two axes."""
    import torch.nn.functional as F

    tensor = reference.tensor
    for case, shape in (("layer_norm_1", (5,)), ("layer_norm_2", (4, 5))):
        reference.record(
            case,
            lambda x, g, b, shape=shape: F.layer_norm(x, shape, g, b, EPSILON),
            tensor((2, 4, 5), 2.0),
            tensor(shape, 1.0),
            tensor(shape),
        )
    for case, shape in (("rms_norm_1", (5,)), ("rms_norm_2", (4, 5))):
        reference.record(
            case,
            lambda x, g, shape=shape: F.rms_norm(x, shape, g, EPSILON),
            tensor((2, 4, 5), 2.0),
            tensor(shape, 1.0),
        )


def record_group_and_instance_norm(reference: Reference) -> None:
    """Record normalizations of groups of channels, and of single channels."""
    import torch.nn.functional as F

    tensor = reference.tensor
    for groups in (2, 3):
        reference.record(
            f"group_norm_{groups}",
            lambda x, g, b, groups=groups: F.group_norm(x, groups, g, b, EPSILON),
            tensor((2, 6, 4), 2.0),
            tensor((6,), 1.0),
            tensor((6,)),
        )
    reference.record(
        "instance_norm",
        lambda x, g, b: F.instance_norm(x, None, None, g, b, True, 0.1, EPSILON),
        tensor((2, 4, 2, 3), 2.0),
        tensor((4,), 1.0),
        tensor((4,)),
    )


if __name__ == "__main__":
    main()
