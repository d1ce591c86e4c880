"""Values and gradients against results of PyTorch, stored in float64."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx.normalization import (
    BatchStats,
    batch_norm,
    group_norm,
    init_batch_stats,
    instance_norm,
    layer_norm,
    rms_norm,
)

pytestmark = pytest.mark.usefixtures("x64")
close = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13)


@pytest.fixture(scope="module")
def stored() -> dict[str, np.ndarray]:
    """The stored arrays by name."""
    with np.load(Path(__file__).with_name("torch_reference.npz")) as file:
        return dict(file)


def check_case(stored: dict[str, np.ndarray], case: str, function) -> None:
    """Compares y and the gradients of sum(weight * y) with those stored under a name."""
    arguments = [
        jnp.asarray(stored[f"{case}/{name}"])
        for name in ("x", "scale", "bias")
        if f"{case}/{name}" in stored
    ]
    y, pullback = jax.vjp(jax.jit(function), *arguments)
    gradients = pullback(jnp.asarray(stored[f"{case}/weight"]))
    close(y, stored[f"{case}/y"])
    for name, gradient in zip(("x", "scale", "bias"), gradients, strict=False):
        close(gradient, stored[f"{case}/d_{name}"], err_msg=name)


CASES = {
    "layer_norm_1": layer_norm,
    "layer_norm_2": partial(layer_norm, axis=(1, 2)),
    "rms_norm_1": rms_norm,
    "rms_norm_2": partial(rms_norm, axis=(-1, -2)),
    "group_norm_2": partial(group_norm, groups=2, axis=1),
    "group_norm_3": partial(group_norm, groups=3, axis=-2),
    "instance_norm": partial(instance_norm, axis=1),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(stored, case):
    check_case(stored, case, CASES[case])


def test_batch_norm_trains_as_in_pytorch(stored):
    # PyTorch's momentum is 0.1: the share that is replaced, not the one that is kept.
    train = partial(batch_norm, training=True, momentum=0.9, unbiased_running=True, axis=1)
    stats = init_batch_stats(4, jnp.float64)
    for step in range(3):
        case = f"batch_norm_{step}"
        check_case(stored, case, lambda x, g, b, stats=stats: train(x, stats, g, b)[0])
        _, stats = train(jnp.asarray(stored[f"{case}/x"]), stats)
        close(stats.mean, stored[f"{case}/mean"])
        close(stats.var, stored[f"{case}/var"])


def test_batch_norm_evaluates_as_in_pytorch(stored):
    stats = BatchStats(*(jnp.asarray(stored[f"batch_norm_2/{name}"]) for name in ("mean", "var")))
    evaluate = partial(batch_norm, training=False, axis=1)
    check_case(stored, "batch_norm_evaluation", lambda x, g, b: evaluate(x, stats, g, b)[0])
