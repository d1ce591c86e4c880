"""The graph of a traced loss, and the measurements of its operations."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from gradtx.diagnostics.tracing.graph import Graph
from gradtx.diagnostics.tracing.observe import observe
from gradtx.diagnostics.tracing.traced import trace_loss

PARAMS = {"stack": jnp.full((3, 4, 4), 0.5), "head": jnp.ones((4, 2)), "unused": jnp.ones(3)}
X = jnp.arange(8.0).reshape(2, 4) / 8


def softplus_twice(z):
    return jax.nn.softplus(-z) + 2 * jax.nn.softplus(z)


def loss_fn(params, x, labels):
    x, sums = lax.scan(lambda x, w: (jnp.tanh(x @ w), jnp.sum(x)), x, params["stack"])
    z = lax.cond(x[0, 0] > 0, lambda z: 2 * z, lambda z: z - 1, x @ params["head"])
    z = lax.while_loop(lambda z: z[0, 0] > 100, lambda z: z / 2, z)
    return jnp.mean(softplus_twice(z)) + jnp.sum(sums) + 0 * jnp.sum(labels)


def traced():
    return trace_loss("test", loss_fn, PARAMS, (X, jnp.arange(2.0)), has_aux=False)


def test_dependencies_pass_loops_branches_and_calls():
    loss = traced()
    graph = Graph(loss.closed_jaxpr)
    names = [*loss.names, *loss.data_names]
    reached = {names[i] for i in range(len(names)) if graph.output.depends >> i & 1}
    assert reached == {"stack", "head", "argument args[0]", "argument args[1]"}
    upstream = {value.argument for value in graph.upstream(graph.output)} - {None}
    assert {names[i] for i in upstream} == reached
    by_name = dict(zip(names, graph.arguments, strict=True))
    assert graph.output in set(graph.downstream(by_name["stack"]))
    assert graph.output not in set(graph.downstream(by_name["unused"]))


def test_what_a_loop_carries_depends_on_earlier_iterations():
    def carried(params, x):
        def step(pair, _):
            first, second = pair
            return (first + params["w"], second * first), None

        (_, second), _ = lax.scan(step, (x, x), length=3)
        return jnp.sum(second)

    loss = trace_loss("test", carried, {"w": jnp.ones(2)}, (jnp.ones(2),), has_aux=False)
    graph = Graph(loss.closed_jaxpr)
    # In the first iteration, the product does not see w yet.
    assert graph.output.depends == 0b11


def test_shards_are_entered():
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = {"in_specs": (P(), P("d")), "out_specs": P()}

    @jax.shard_map(mesh=mesh, **specs)
    def mapped(w, x):
        return lax.pmean(jnp.mean(x @ w), "d")

    loss = trace_loss("test", mapped, jnp.ones((4, 3)), (jnp.ones((8, 4)),), has_aux=False)
    graph = Graph(loss.closed_jaxpr)
    (product,) = graph.named("dot_general")
    assert product.output.shape == (4, 3)
    assert graph.output.depends == product.output.depends == 0b11
    assert graph.output in set(graph.downstream(product.output))


def test_lines_are_those_of_the_calls_of_library_functions():
    graph = Graph(traced().closed_jaxpr)
    softplus = list(graph.named("log1p"))
    assert [node.occurrence for node in softplus] == [0, 1]
    assert all("(softplus_twice)" in node.line for node in softplus)
    assert all("test_graph.py" in node.line for node in softplus)


def test_measurements_are_those_of_the_operations():
    loss = traced()
    graph = Graph(loss.closed_jaxpr)

    def largest(inputs, results):
        return {"input": jnp.max(inputs[0]), "output": jnp.max(results[0])}

    nodes = list(graph.named("tanh", "log1p"))
    measured = observe(loss, {node: [largest] for node in nodes})
    assert set(measured) == set(nodes)
    x, expected = np.asarray(X, np.float64), []
    for w in np.asarray(PARAMS["stack"], np.float64):
        expected.append(np.max(x @ w))
        x = np.tanh(x @ w)
    tanh, minus, plus = (measured[node] for node in nodes)
    np.testing.assert_allclose(tanh["input"], expected, rtol=1e-6)
    np.testing.assert_allclose(tanh["output"], np.tanh(expected), rtol=1e-6)
    z = 2 * x @ np.ones((4, 2))
    # log(1 + exp(-|z|)), whichever sign the argument has.
    for one in (minus, plus):
        np.testing.assert_allclose(one["input"], np.max(np.exp(-np.abs(z))), rtol=1e-5)


def test_measurements_of_other_data():
    loss = traced()
    node = next(Graph(loss.closed_jaxpr).named("tanh"))
    requests = {node: [lambda inputs, results: {"input": jnp.max(inputs[0])}]}
    measured = observe(loss, requests, data=[jnp.zeros_like(X), jnp.zeros(2)])
    np.testing.assert_array_equal(measured[node]["input"], np.zeros(3))
