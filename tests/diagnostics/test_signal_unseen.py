"""What is entered, and what is named because it cannot be: meshes, while loops, solvers, calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from gradtx import diagnostics

WIDTH, SAMPLES = 8, 4


def weights(*shapes):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [
        jax.random.normal(key, shape) / shape[-2] ** 0.5
        for key, shape in zip(keys, shapes, strict=True)
    ]


X = jax.random.normal(jax.random.key(1), (SAMPLES, WIDTH))
PARAMS = dict(
    zip(
        ("up", "down", "stack", "branch"),
        weights((WIDTH, 2 * WIDTH), (2 * WIDTH, WIDTH), (3, WIDTH, WIDTH), (WIDTH, WIDTH)),
        strict=True,
    )
)
# Some units are dead on one device, and none on all of them.
PARAMS["up"] = PARAMS["up"].at[:, 3].set(X[0])


def network(params, x, add=lambda terms: terms):
    hidden = jax.nn.relu(x @ params["up"])
    hidden = jnp.tanh(add(hidden @ params["down"]))
    hidden, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), hidden, params["stack"])
    hidden = lax.cond(
        jnp.sum(hidden) > -99, lambda h: jax.nn.relu(h @ params["branch"]), lambda h: h, hidden
    )
    return jnp.mean(hidden**2)


def on_mesh(params, x):
    """The network, with the samples shared by two devices and two layers by two others each."""
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def program(params, x):
        return lax.pmean(network(params, x, lambda terms: lax.psum(terms, "model")), "data")

    columns, rows = PartitionSpec(None, "model"), PartitionSpec("model")
    specs = {"up": columns, "down": rows, "stack": PartitionSpec(), "branch": PartitionSpec()}
    return jax.shard_map(
        program, mesh=mesh, in_specs=(specs, PartitionSpec("data")), out_specs=PartitionSpec()
    )(params, x)


def test_devices_of_a_mesh_are_measured_as_one():
    alone = diagnostics.signal_report(network, PARAMS, X)
    together = diagnostics.signal_report(on_mesh, PARAMS, X)
    assert together.loss == pytest.approx(alone.loss, rel=1e-5)
    assert (together.kind, together.unseen) == (alone.kind, ())
    for one, other in zip(alone.layers, together.layers, strict=True):
        for what in ("name", "activation", "depth", "is_hidden", "units"):
            assert getattr(one, what) == getattr(other, what), what
        for what in ("rms", "mean", "output_rms", "input_rms", "grad_rms", "weight_rms"):
            assert getattr(other, what) == pytest.approx(getattr(one, what), rel=1e-4, abs=1e-6)
        for what in ("weight_grad_rms", "zero_fraction", "dead_fraction", "saturated_fraction"):
            assert getattr(other, what) == pytest.approx(getattr(one, what), rel=1e-4, abs=1e-6)
    gradient = np.asarray(jax.jit(jax.grad(network))(PARAMS, X)["down"], np.float64)
    assert together.layers[1].weight_grad_rms == pytest.approx(
        np.sqrt(np.mean(gradient**2)), rel=1e-4
    )


def test_nan_on_a_mesh_has_a_culprit():
    def loss_fn(params, x):
        mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
        run = jax.shard_map(
            lambda w, x: lax.pmean(jnp.mean(jnp.log(x @ w)), "data"),
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec("data")),
            out_specs=PartitionSpec(),
        )
        return run(params, x)

    report = diagnostics.signal_report(loss_fn, PARAMS["branch"], X)
    assert (report.kind, report.culprit.operation) == ("nan", "log")


def iterated(weight, x):
    """A fixed point z = tanh(z W / 3 + x), by iterations whose number is not known."""

    def step(carry):
        z, _, number = carry
        new = jnp.tanh(z @ weight / 3 + x)
        return new, jnp.max(jnp.abs(new - z)), number + 1

    start = (jnp.zeros_like(x), jnp.inf, 0)
    return lax.while_loop(lambda carry: carry[1] > 1e-6, step, start)


@jax.custom_vjp
def fixed_point(weight, x):
    return iterated(weight, x)[0]


def fixed_point_backward(saved, cotangent):
    weight, x, z = saved
    _, pull_back = jax.vjp(lambda w, x, z: jnp.tanh(z @ w / 3 + x), weight, x, z)
    total = cotangent
    for _ in range(20):
        total = cotangent + pull_back(total)[2]
    return pull_back(total)[:2]


fixed_point.defvjp(lambda w, x: (lambda z: (z, (w, x, z)))(fixed_point(w, x)), fixed_point_backward)


def test_iterations_of_unknown_number_are_measured_forwards():
    def loss_fn(params, x):
        return jnp.mean((fixed_point(params["inside"], x @ params["first"]) - 1) ** 2)

    params = {"first": PARAMS["branch"], "inside": PARAMS["stack"][0]}
    report = diagnostics.signal_report(loss_fn, params, X)
    first, inside = report.layers
    assert (first.name, inside.name, inside.activation) == ("first", "inside", "tanh")
    outputs, z, x = [], np.zeros(X.shape), np.asarray(X @ params["first"], np.float64)
    number = int(iterated(params["inside"], X @ params["first"])[2])
    for _ in range(number):
        z = np.tanh(z @ np.asarray(params["inside"], np.float64) / 3 + x)
        outputs.append(z)
    assert inside.rms == pytest.approx(np.sqrt(np.mean(np.square(outputs))), rel=1e-4)
    assert inside.mean == pytest.approx(np.mean(outputs), rel=1e-3)
    gradient = jax.jit(jax.grad(loss_fn))(params, X)["inside"]
    assert inside.weight_grad_rms == pytest.approx(np.sqrt(np.mean(gradient**2)), rel=1e-4)
    assert np.isnan(inside.grad_rms)
    assert first.grad_rms > 0
    assert report.kind == "healthy", report.verdict
    assert "nan" not in report.verdict


def test_loop_without_a_backward_pass_blocks_the_gradient():
    def loss_fn(params, x):
        z, *_ = iterated(params["inside"], x @ params["first"])
        return jnp.mean((z @ params["last"] - 1) ** 2)

    params = {"first": PARAMS["branch"], "inside": PARAMS["stack"][0], "last": PARAMS["stack"][1]}
    report = diagnostics.signal_report(loss_fn, params, X)
    assert report.kind == "blocked"
    assert set(report.diagnosis.layers) == {"first", "inside"}
    assert "`while_loop` at test_signal_unseen.py:" in report.verdict
    assert "use a scan" in report.verdict


def solved(params, x):
    """A layer, and a system of equations whose matrix is a parameter."""
    hidden = jnp.tanh(x @ params["first"])
    system = 3 * jnp.eye(WIDTH) + params["system"]
    solution = lax.custom_linear_solve(
        lambda v: system @ v,
        hidden.T,
        lambda _, b: jnp.linalg.solve(system, b),
        lambda _, b: jnp.linalg.solve(system.T, b),
    )
    return jnp.mean(solution**2)


def called(params, x):
    """A layer, and a product outside of JAX, with the derivative that belongs to it."""

    @jax.custom_vjp
    def outside(w, h):
        shape = jax.ShapeDtypeStruct(h.shape, h.dtype)
        return jax.pure_callback(lambda w, h: np.asarray(h) @ np.asarray(w), shape, w, h)

    outside.defvjp(
        lambda w, h: (outside(w, h), (w, h)),
        lambda saved, g: (saved[1].T @ g, g @ saved[0].T),
    )
    return jnp.mean(outside(params["system"], jnp.tanh(x @ params["first"])) ** 2)


@pytest.mark.parametrize(
    ("loss_fn", "operation"), [(called, "pure_callback"), (solved, "custom_linear_solve")]
)
def test_what_hides_parameters_is_named(loss_fn, operation):
    params = {"first": PARAMS["branch"], "system": PARAMS["stack"][0]}
    report = diagnostics.signal_report(loss_fn, params, X)
    assert report.kind == "healthy", report.verdict
    assert [layer.name for layer in report.layers] == ["first"]
    (hidden,) = report.unseen
    assert (hidden.operation, hidden.parameters) == (operation, ("system",))
    assert hidden.source.startswith("test_signal_unseen.py:")
    assert report.coverage == (WIDTH**2, 2 * WIDTH**2)
    assert f"Of 128 parameters, 64 are in layers that were measured; not seen: `{operation}`" in (
        report.verdict
    )


def test_nothing_but_a_hidden_call_is_not_called_healthy():
    report = diagnostics.signal_report(
        lambda params, x: called({**params, "first": jnp.eye(WIDTH)}, x),
        {"system": PARAMS["branch"]},
        X,
    )
    assert (report.kind, report.layers) == ("unseen", ())
    assert "`pure_callback`" in report.verdict
    assert str(report).count("\n") < 10
    assert "pure_callback" in report._repr_html_()


def test_experts_with_a_weight_each_are_layers():
    def loss_fn(params, x):
        sizes = jnp.array([1, 3], jnp.int32)
        return jnp.mean(jax.nn.relu(lax.ragged_dot(x, params, sizes)) ** 2)

    (layer,) = diagnostics.signal_report(loss_fn, PARAMS["stack"][:2], X).layers
    z = np.maximum(np.concatenate([X[:1] @ PARAMS["stack"][0], X[1:] @ PARAMS["stack"][1]]), 0)
    assert layer.rms == pytest.approx(np.sqrt(np.mean(z**2)), rel=1e-4)
    assert (layer.fan_in, layer.units, layer.activation) == (WIDTH, WIDTH, "relu")
