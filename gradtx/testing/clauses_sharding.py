"""The clause about several devices."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gradtx.testing.clause import Case, clause
from gradtx.testing.clauses_structure import parts_like
from gradtx.testing.comparison import Violation, expect_same, flatten


@clause("sharding")
def check_sharding(case: Case) -> None:
    """Sharded over devices, the state lies where its parameters lie, and the numbers are the same.

    Each parameter is sharded along its first axis that the number of devices divides, under
    `jax.jit`; then all of them are replicated under `jax.shard_map`. On one device there is
    nothing to check.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_sharding
        >>> check_sharding(gradtx.sgd(0.1), jnp.ones(8))
    """
    devices = jax.devices()
    if len(devices) < 2:
        return
    mesh = Mesh(np.array(devices), ("devices",))

    def spread(leaf: Any) -> Any:
        sizes = [size and size % len(devices) == 0 for size in leaf.shape]
        axis = sizes.index(True) if True in sizes else len(sizes)
        spec = PartitionSpec(*[None] * axis, *["devices"] * (axis < len(sizes)))
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    params, gradients = (jax.tree.map(spread, tree) for tree in (case.params, case.gradients(1)))
    state = case.tx.init(params)
    _expect_beside("the state of init", state, params)
    result = jax.jit(case.update)(gradients, state, params)
    expect_same("the result on sharded inputs", case.steps[0], result, case.ulps)
    _expect_beside("the state of update", result[1], params)

    everywhere = PartitionSpec()
    mapped = jax.shard_map(case.update, mesh=mesh, in_specs=everywhere, out_specs=everywhere)
    result = jax.jit(mapped)(case.gradients(1), case.state, case.params)
    expect_same("the result under shard_map", case.steps[0], result, case.ulps)


def _expect_beside(what: str, state: Any, params: Any) -> None:
    for part in parts_like(state, params):
        for (path, leaf), (_, parameter) in zip(flatten(part)[0], flatten(params)[0], strict=True):
            if not isinstance(leaf, jax.Array) or leaf.shape != parameter.shape:
                continue
            if parameter.sharding.is_fully_replicated:
                continue  # an uncommitted array on one device is copied where it is needed
            if not leaf.sharding.is_equivalent_to(parameter.sharding, leaf.ndim):
                raise Violation(path, f"{what} to lie as {parameter.sharding}", f"{leaf.sharding}")
