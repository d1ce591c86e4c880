"""Conditions that factor matrices exchange nothing: exchanges in them may wait for each other."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradtx

pytestmark = pytest.mark.usefixtures("usual_compilation")

EXCHANGE = re.compile(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\W")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \([^\n]*\{\n(.*?)\n\}", re.MULTILINE | re.DOTALL)


def exchanges_in_conditions(program):
    """The exchanges in the branches of a compiled program, and in what these call."""
    bodies = dict(COMPUTATION.findall(program))

    def named(text):
        return [name for name in re.findall(r"[\w.-]+", text) if name in bodies]

    conditions = [
        line for body in bodies.values() for line in body.splitlines() if " conditional(" in line
    ]
    reached = named("\n".join(conditions))
    assert reached
    for name in reached:
        reached += [other for other in named(bodies[name]) if other not in reached]
    return [line for name in reached for line in bodies[name].splitlines() if EXCHANGE.search(line)]


@pytest.mark.parametrize("name", ["shampoo", "soap"])
@pytest.mark.parametrize("spec", [P("a"), P("a", "b")], ids=["fsdp", "2d"])
def test_exchanges_come_before_and_after(name, spec):
    shape = (8,) if len(spec) == 1 else (4, 2)
    axes = tuple(spec)
    mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes))
    params = jax.device_put({"w": jnp.ones((16, 8))}, NamedSharding(mesh, spec))
    tx = getattr(gradtx, name)(0.1)
    state = jax.eval_shape(tx.init, params)
    state = jax.tree.map(jnp.zeros_like, state)
    state = jax.device_put(state, gradtx.sharding.state_shardings(tx, params))
    program = jax.jit(tx.update).lower(params, state, params).compile().as_text()
    assert EXCHANGE.search(program)
    assert not exchanges_in_conditions(program)
