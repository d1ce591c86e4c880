"""Writes torch_reference.npz: normalizations and their gradients, by PyTorch in float64.

Run `python tests/normalization/make_torch_reference.py` where PyTorch is installed. The tests
read only the file that it writes. Arrays are named `case/array`; `d_x` and the like are
gradients of sum(weight * y).
"""

from pathlib import Path

import numpy as np

EPSILON = 1e-5
STEPS = 3


def main() -> None:
    """Runs every case and writes the file beside this script."""
    import torch
    import torch.nn.functional as F

    random = np.random.default_rng(20240501)
    arrays: dict[str, np.ndarray] = {"torch_version": np.array(torch.__version__)}

    def tensor(shape: tuple[int, ...], shift: float = 0.0) -> torch.Tensor:
        return torch.tensor(random.normal(shift, 1.0, shape), requires_grad=True)

    def record(case: str, function, x: torch.Tensor, *parameters: torch.Tensor) -> None:
        y = function(x, *parameters)
        weight = tensor(tuple(y.shape)).detach()
        names = ("x", "scale", "bias")[: 1 + len(parameters)]
        gradients = torch.autograd.grad((weight * y).sum(), (x, *parameters))
        arrays[f"{case}/y"], arrays[f"{case}/weight"] = y.detach().numpy(), weight.numpy()
        for name, value, gradient in zip(names, (x, *parameters), gradients, strict=True):
            arrays[f"{case}/{name}"] = value.detach().numpy()
            arrays[f"{case}/d_{name}"] = gradient.numpy()

    scale, bias = tensor((4,), 1.0), tensor((4,))
    mean, var = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    for step in range(STEPS):
        record(
            f"batch_norm_{step}",
            lambda x, g, b: F.batch_norm(x, mean, var, g, b, True, 0.1, EPSILON),
            tensor((4, 4, 3), float(step)),
            scale,
            bias,
        )
        arrays[f"batch_norm_{step}/mean"] = mean.numpy().copy()
        arrays[f"batch_norm_{step}/var"] = var.numpy().copy()
    record(
        "batch_norm_evaluation",
        lambda x, g, b: F.batch_norm(x, mean, var, g, b, False, 0.1, EPSILON),
        tensor((4, 4, 3)),
        scale,
        bias,
    )

    for case, shape in (("layer_norm_1", (5,)), ("layer_norm_2", (4, 5))):
        record(
            case,
            lambda x, g, b, shape=shape: F.layer_norm(x, shape, g, b, EPSILON),
            tensor((2, 4, 5), 2.0),
            tensor(shape, 1.0),
            tensor(shape),
        )
    for case, shape in (("rms_norm_1", (5,)), ("rms_norm_2", (4, 5))):
        record(
            case,
            lambda x, g, shape=shape: F.rms_norm(x, shape, g, EPSILON),
            tensor((2, 4, 5), 2.0),
            tensor(shape, 1.0),
        )
    for groups in (2, 3):
        record(
            f"group_norm_{groups}",
            lambda x, g, b, groups=groups: F.group_norm(x, groups, g, b, EPSILON),
            tensor((2, 6, 4), 2.0),
            tensor((6,), 1.0),
            tensor((6,)),
        )
    record(
        "instance_norm",
        lambda x, g, b: F.instance_norm(x, None, None, g, b, True, 0.1, EPSILON),
        tensor((2, 4, 2, 3), 2.0),
        tensor((4,), 1.0),
        tensor((4,)),
    )
    np.savez_compressed(Path(__file__).with_name("torch_reference.npz"), **arrays)


if __name__ == "__main__":
    main()
