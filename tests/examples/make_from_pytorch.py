"""Writes from_pytorch.npz: what the left columns and the programs of the guide give in PyTorch.

Run `python -m tests.examples.make_from_pytorch` where PyTorch is installed, after each change of
a left column in examples/site/guides/03_from_pytorch.md. The tests read only the file that it
writes, with `from_pytorch.stored`. It has one group of arrays for each left column; `kind` is what
was done with it, the name of a function below without `of_`. Further groups are:

- `inputs`: the parameters `weight` and `bias` at the start, in PyTorch's layout, with noise, one
  array for each step, and `size`, one number for each step. The gradient at p is
  size * (noise + tanh(p)). `x` are inputs of normalization layers, one for each step, and
  `cotangent` what their outputs are multiplied by; `scale/N` and `shift/N` are the parameters of a
  layer of N elements, `mean` and `var` the running statistics at the start. `losses` are what
  ReduceLROnPlateau is shown.
- `programs`: the lists of numbers that the programs leave.
- `names`: the public classes or functions of modules of PyTorch.
"""

import inspect
import math
import re
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn, optim
from torch.nn import init
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm
from torch.optim import lr_scheduler, swa_utils

from tests.examples.from_pytorch import first_cell, rows, store, torch_programs

SIZE = np.array([1.0, 0.3, 2.0, 0.05, 0.0, 1.0, 0.01, 5.0, 0.7, 0.4, 1.0, 3.0])
LOSSES = np.array([3.0, 2.0, 2.1, 2.0, 1.9995, 1.99999, 2.2, 1.5, 1.6, 1.7, 1.8, 1.9, 1.4])
LAST_RATE = 25
QUANTILES = np.linspace(0.02, 0.98, 25)

Arrays = dict[str, Any]
NAMES = {
    "torch": torch,
    "nn": nn,
    "init": init,
    "optim": optim,
    "lr_scheduler": lr_scheduler,
    "swa_utils": swa_utils,
    "clip_grad_norm_": clip_grad_norm_,
    "clip_grad_value_": clip_grad_value_,
    "get_total_norm": get_total_norm,
    "math": math,
}


class Problem(nn.Module):
    """A layer's parameters, and losses with the gradient size * (noise + tanh(p))."""

    def __init__(self, arrays: Arrays) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(arrays["weight"]))
        self.bias = nn.Parameter(torch.tensor(arrays["bias"]))
        self._arrays = arrays

    def loss(self, step: int) -> torch.Tensor:
        parts = [
            (torch.tensor(self._arrays[f"{name}/noise"][step]) * p + torch.cosh(p).log()).sum()
            for name, p in self.named_parameters()
        ]
        return SIZE[step] * (parts[0] + parts[1])

    def names(self) -> Arrays:
        """What an expression may use."""
        return NAMES | {
            "model": self,
            "weight": self.weight,
            "bias": self.bias,
            "params": list(self.parameters()),
        }


def trajectory(
    arrays: Arrays, train: Callable[[Problem, int, Any], Any], make: str, averaged: Any = None
) -> Arrays:
    """The parameters, or those of another module, after each step of an optimizer."""
    problem = Problem(arrays)
    optimizer = eval(make, problem.names())
    average = eval(averaged, problem.names()) if averaged else None
    found: dict[str, list[np.ndarray]] = {"weight": [], "bias": []}
    for step in range(len(SIZE)):
        train(problem, step, optimizer)
        if average is not None:
            average.update_parameters(problem)
        for name, p in (average.module if average is not None else problem).named_parameters():
            found[name].append(p.detach().numpy().copy())
    return {name: np.stack(values) for name, values in found.items()}


def plain_step(problem: Problem, step: int, optimizer: Any) -> None:
    optimizer.zero_grad()
    problem.loss(step).backward()
    optimizer.step()


def of_optimizer(text: str, arrays: Arrays) -> Arrays:
    """An optimizer, perhaps with a scheduler. Muon orthogonalizes without rounding to bfloat16."""
    make, _, further = text.partition(" with ")
    schedule = None

    def train(problem: Problem, step: int, optimizer: Any) -> None:
        nonlocal schedule
        if further and schedule is None:
            schedule = eval(further, {**NAMES, "optimizer": optimizer})
        with mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone):
            plain_step(problem, step, optimizer)
        if schedule is not None:
            schedule.step()

    return trajectory(arrays, train, make)


def of_clipping(text: str, arrays: Arrays) -> Arrays:
    def train(problem: Problem, step: int, optimizer: Any) -> None:
        optimizer.zero_grad()
        problem.loss(step).backward()
        eval(text, problem.names())
        optimizer.step()

    return trajectory(arrays, train, "optim.SGD(params, lr=0.1)")


def of_accumulation(text: str, arrays: Arrays) -> Arrays:
    backward, _, _ = text.partition(" with ")

    def train(problem: Problem, step: int, optimizer: Any) -> None:
        eval(backward, {"loss": problem.loss(step)})
        if step % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()

    return trajectory(arrays, train, "optim.SGD(params, lr=0.1)")


def of_average(text: str, arrays: Arrays) -> Arrays:
    return trajectory(arrays, plain_step, "optim.SGD(params, lr=0.1)", text)


def of_schedule(text: str, arrays: Arrays) -> Arrays:
    optimizer = optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9)
    schedule = eval(text, {**NAMES, "optimizer": optimizer})
    rates = []
    plateau = isinstance(schedule, lr_scheduler.ReduceLROnPlateau)
    for step in range(len(LOSSES) if plateau else LAST_RATE):
        optimizer.step()
        if plateau:
            schedule.step(LOSSES[step])
        rates.append(optimizer.param_groups[0]["lr"])
        if not plateau and step + 1 < getattr(schedule, "total_steps", LAST_RATE):
            schedule.step()
    return {"plateau" if plateau else "rates": np.array(rates, np.float64)}


def of_initializer(text: str, arrays: Arrays) -> Arrays:
    """The array itself if nothing is random, otherwise its distribution."""
    drawn = []
    for seed in range(2):
        torch.manual_seed(seed)
        names = {**NAMES, "w": torch.empty(300, 200), "k": torch.empty(32, 48, 3, 3)}
        drawn.append(eval(text, names).detach().numpy())
    values = drawn[0]
    shape = np.array(values.shape)
    if np.array_equal(*drawn):
        return {"shape": shape, "values": values}
    matrix = {}
    if values.ndim == 2:
        matrix["singular"] = np.linalg.svd(values, compute_uv=False)[[0, -1]]
    return {
        **matrix,
        "shape": shape,
        "quantiles": np.quantile(values, QUANTILES),
        "probabilities": QUANTILES,
        "deviation": values.std(),
        "extremes": np.array([values.min(), values.max()]),
    }


def of_normalization(text: str, arrays: Arrays) -> Arrays:
    """Outputs, gradients and running statistics, batch after batch."""
    layer = eval(text, NAMES)
    for name, p in layer.named_parameters():
        stored = arrays[f"{'scale' if name == 'weight' else 'shift'}/{p.numel()}"]
        p.data.copy_(torch.tensor(stored).reshape(p.shape))
    if "running_mean" in dict(layer.named_buffers()):
        layer.running_mean.copy_(torch.tensor(arrays["mean"]))
        layer.running_var.copy_(torch.tensor(arrays["var"]))
    found: dict[str, list[np.ndarray]] = {}
    for value, cotangent in zip(arrays["x"], arrays["cotangent"], strict=True):
        x = torch.tensor(value, requires_grad=True)
        y = layer(x)
        params = list(layer.parameters())
        gradients = torch.autograd.grad((torch.tensor(cotangent) * y).sum(), (x, *params))
        results = {"y": y, **{f"gradient_{i}": g for i, g in enumerate(gradients)}}
        for name in ("running_mean", "running_var"):
            if getattr(layer, name, None) is not None:
                results[name] = getattr(layer, name)
        for name, result in results.items():
            found.setdefault(name, []).append(result.detach().numpy().copy())
    results = {name: np.stack(values) for name, values in found.items()}
    return {"features": np.array(layer.weight.shape), **results}


def of_number(text: str, arrays: Arrays) -> Arrays:
    problem = Problem(arrays)
    problem.loss(0).backward()
    gradients = [p.grad for p in problem.parameters()]
    return {"number": np.array(float(eval(text, {**NAMES, "gradients": gradients})))}


KINDS = {
    r"init\.calculate_gain|get_total_norm": of_number,
    r"init\.|nn\.\w+\(.*\)\.(weight|bias)$": of_initializer,
    r"nn\.": of_normalization,
    r"optim\.": of_optimizer,
    r"lr_scheduler\.|swa_utils\.SWALR": of_schedule,
    r"swa_utils\.AveragedModel": of_average,
    r"clip_grad": of_clipping,
    r"\(?loss": of_accumulation,
}


def kind_of(text: str) -> Callable[[str, Arrays], Arrays]:
    return next(of for pattern, of in KINDS.items() if re.match(pattern, text))


def inputs() -> Arrays:
    """What all expressions work on."""
    random = np.random.default_rng(20261128)
    arrays: Arrays = {"size": SIZE}
    for name, shape in {"weight": (4, 3), "bias": (4,)}.items():
        arrays[name] = random.normal(size=shape)
        drift = random.normal(size=shape)
        arrays[f"{name}/noise"] = drift + random.normal(size=(len(SIZE), *shape))
    arrays["losses"] = LOSSES
    arrays["x"] = random.normal(2.0, 3.0, size=(3, 5, 4, 3))
    arrays["cotangent"] = random.normal(size=(3, 5, 4, 3))
    arrays["mean"], arrays["var"] = random.normal(size=4), random.uniform(0.5, 2.0, size=4)
    for size in (3, 4, 12):
        arrays[f"scale/{size}"], arrays[f"shift/{size}"] = random.normal(1.0, 1.0, size=(2, size))
    return arrays


def names_of(module: Any) -> list[str]:
    """The public names that a module defines for its users."""
    base = {optim: optim.Optimizer, lr_scheduler: lr_scheduler.LRScheduler}.get(module)

    def belongs(name: str) -> bool:
        value = getattr(module, name)
        if base is not None:
            return inspect.isclass(value) and issubclass(value, base) and value is not base
        return name.endswith("_") if module is init else "Norm" in name

    return [name for name in dir(module) if not name.startswith("_") and belongs(name)]


def main() -> None:
    """Runs all expressions and programs and writes the file."""
    programs: dict[str, Any] = {}
    exec(first_cell(), programs)
    for program in torch_programs():
        exec(program, programs)

    # PyTorch keeps its counters and NAdam's product of momenta in the default dtype.
    torch.set_default_dtype(torch.float64)
    arrays = inputs()
    groups: dict[str, dict[str, Any]] = {
        "torch_version": {"torch_version": torch.__version__},
        "inputs": arrays,
        "programs": {name: value for name, value in programs.items() if name.startswith("torch_")},
        "names": {m.__name__: names_of(m) for m in (optim, lr_scheduler, init, nn)},
    }
    for row in rows():
        of = kind_of(row.torch)
        kind = of.__name__.removeprefix("of_")
        groups[row.torch] = {"kind": kind, **of(row.torch, arrays)}
    store(groups)


if __name__ == "__main__":
    main()
