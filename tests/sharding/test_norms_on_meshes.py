"""All norms of a step cross the devices of a mesh at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradtx
from gradtx.testing import collectives

P = PartitionSpec
SHAPES = {
    "rows": ((8, 12), P("data")),
    "columns": ((4, 16), P(None, ("data", "model"))),
    "both": ((12, 8), P("data", "model")),
    "turned": ((8, 12), P("model", "data")),
    "whole": ((8, 12), P()),
    "bias": ((8,), P("model")),
}
METHODS = {
    "global norm": gradtx.clip_by_global_norm(0.1),
    "clip_by_block_rms": gradtx.clip_by_block_rms(0.1),
    "lamb": gradtx.lamb(0.1),
    "lars": gradtx.lars(0.1),
    "adafactor": gradtx.adafactor(0.1, min_dim_size_to_factor=128),
    "metrics": gradtx.with_metrics(gradtx.adam(0.1)),
}
MESHES = {
    "automatic": ((8,), AxisType.Auto),
    "explicit": ((8,), AxisType.Explicit),
    "explicit, two axes": ((4, 2), AxisType.Explicit),
}


def tree(seed, on):
    random = np.random.default_rng(seed)
    names = SHAPES if "two" in on else ("rows", "columns", "bias")
    return {x: jnp.asarray(random.standard_normal(SHAPES[x][0]), jnp.float32) for x in names}


def laid_out(tree, mesh):
    """Along the first axis that the mesh divides, or in several ways on two axes."""

    def spec(name):
        if len(mesh.axis_names) > 1:
            return SHAPES[name][1]
        axes = [axis for axis, n in enumerate(SHAPES[name][0]) if n % 8 == 0]
        return P(*[None] * axes[0], "data")

    return {x: jax.device_put(tree[x], NamedSharding(mesh, spec(x))) for x in tree}


CASES = [(method, on) for method in METHODS for on in ("automatic", "explicit, two axes")]
# The norms of the columns of a matrix do not all cross the same devices of a mesh of two axes.
CASES += [("adaptive clipping", on) for on in ("automatic", "explicit")]
CASES += [("global norm", "explicit")]
METHODS["adaptive clipping"] = gradtx.adaptive_grad_clip(0.01)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request):
    """A case, and its updates on one device, which are compiled before `usual_compilation`."""
    method, on = request.param
    tx, params = METHODS[method], tree(0, on)
    return method, on, tx.update(tree(1, on), tx.init(params), params)[0]


@pytest.mark.usefixtures("usual_compilation")
def test_one_all_reduce_and_the_numbers_of_one_device(case):
    method, on, expected = case
    shape, kind = MESHES[on]
    mesh = jax.make_mesh(shape, ("data", "model")[: len(shape)], axis_types=(kind,) * len(shape))
    tx = METHODS[method]
    params, gradient = laid_out(tree(0, on), mesh), laid_out(tree(1, on), mesh)
    state = tx.init(params)
    step = jax.jit(tx.update).lower(gradient, state, params).compile()
    sent = {x: own.number for x, own in collectives(step).items() if own.number}
    assert sent == {"all-reduce": 1}
    found, _ = step(gradient, state, params)
    for x, update in expected.items():
        np.testing.assert_allclose(np.asarray(found[x]), update, rtol=1e-6, err_msg=x)
