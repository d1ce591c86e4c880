"""`check_parameters`: a batch norm that uses averages which nobody has taken."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from gradtx import diagnostics

from .batches import LABELS, C, D, X, entropy, kinds


class Network(nn.Module):
    is_training: bool

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=not self.is_training)(nn.Dense(8)(x))
        return nn.Dense(C)(nn.relu(x))


@pytest.mark.parametrize(
    ("is_training", "moved", "number"), [(False, 0, 1), (False, 0.1, 0), (True, 0, 0)]
)
def test_averages_of_linen(is_training, moved, number):
    model = Network(is_training)
    variables = jax.jit(model.init)(jax.random.key(0), X)

    def loss_fn(params, statistics, x, y):
        variables = {"params": params, "batch_stats": statistics}
        logits, updated = model.apply(variables, x, mutable=["batch_stats"])
        return entropy(logits, y), updated

    statistics = jax.tree.map(lambda s: s + moved, variables["batch_stats"])
    batch = (statistics, X, LABELS)
    findings = diagnostics.check_parameters(loss_fn, variables["params"], *batch, has_aux=True)
    assert kinds(findings) == [("running_average", "warning")] * number
    assert all("['mean']" in one.place for one in findings)
    if number:
        # The norm changes nothing but for its epsilon.
        plain = X @ variables["params"]["Dense_0"]["kernel"]
        normed = nn.BatchNorm(use_running_average=True, use_bias=False, use_scale=False).apply(
            {"batch_stats": statistics["BatchNorm_0"]}, plain
        )
        assert jnp.allclose(plain, normed, rtol=1e-4)


@pytest.mark.parametrize("is_training", [True, False])
def test_averages_of_nnx(is_training):
    class Normed(nnx.Module):
        def __init__(self, rngs):
            self.first, self.last = nnx.Linear(D, 8, rngs=rngs), nnx.Linear(8, C, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)

        def __call__(self, x):
            return self.last(jax.nn.relu(self.norm(self.first(x))))

    model = Normed(nnx.Rngs(0))
    if not is_training:
        model.eval()
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss_fn(params, rest, x, y):
        return entropy(nnx.merge(graph, params, rest, copy=True)(x), y)

    findings = diagnostics.check_parameters(loss_fn, params, rest, X, LABELS)
    assert [one.kind for one in findings] == ["running_average"] * (not is_training)
