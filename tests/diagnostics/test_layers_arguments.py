"""Arguments of all kinds for `signal_report`: accepted, refused, and never modified."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gradtx import diagnostics

from .layer_reference import (
    BATCH,
    LISTED,
    STACKED,
    WIDTH,
    assert_layer,
    batch,
    block,
    in_a_branch,
    loss_of,
    numbers,
    reference,
    scanned,
    through,
    unstacked,
)
from .signal_statistics import rms

pytestmark = pytest.mark.usefixtures("double_precision")


def test_data_may_be_closed_over():
    loss, expected = reference()
    x = batch()
    report = diagnostics.signal_report(
        lambda params: through(block)(params, x), unstacked(numbers())
    )
    assert report.loss == pytest.approx(loss, rel=1e-12)
    assert [layer.name for layer in report.layers] == LISTED
    for layer, of_layer in zip(report.layers, expected, strict=True):
        assert_layer(layer, of_layer)


def test_parameters_may_be_closed_over_as_data():
    """Only products with `params` are layers; those with frozen weights are not."""
    frozen = numbers()["kernel"][0]

    def loss_fn(params, x):
        return loss_of(jnp.tanh(x @ frozen), params["head"])

    report = diagnostics.signal_report(loss_fn, {"head": numbers()["head"]}, batch())
    assert [layer.name for layer in report.layers] == ["head"]


def test_leaves_that_are_not_parameters_are_left_alone():
    def loss_fn(params, x, options):
        assert options["depth"] == 1
        assert params["name"] is None
        hidden = params["activation"](x @ params["w"]) * params["table"][1].astype(x.dtype)
        return loss_of(hidden, params["head"])

    params = {
        "w": numbers()["kernel"][0],
        "head": numbers()["head"],
        "activation": jnp.tanh,
        "name": None,
        "table": jnp.asarray([1, 2]),
    }
    report = diagnostics.signal_report(loss_fn, params, batch(), {"depth": 1, "mode": "train"})
    assert [layer.name for layer in report.layers] == ["w", "head"]
    image = np.tanh(np.asarray(batch()) @ np.asarray(params["w"]))
    assert_layer(report.layers[1], {"input_rms": 2 * rms(image)})


def test_numpy_arrays():
    loss, expected = reference()
    params = jax.tree.map(np.asarray, unstacked(numbers()))
    report = diagnostics.signal_report(through(block), params, np.asarray(batch()))
    assert report.loss == pytest.approx(loss, rel=1e-12)
    assert_layer(report.layers[0], expected[0])


def test_equinox_module_with_functions_and_static_fields():
    network = eqx.nn.MLP(WIDTH, 2, 8, 2, activation=jax.nn.relu, key=jax.random.key(0))

    def loss_fn(network, x):
        return jnp.mean(jax.vmap(network)(x) ** 2)

    report = diagnostics.signal_report(loss_fn, network, batch())
    assert [layer.name for layer in report.layers] == [f"layers/{i}/weight" for i in range(3)]
    signal, units = np.asarray(batch()), (8, 8, 2)
    for i, (layer, linear) in enumerate(zip(report.layers, network.layers, strict=True)):
        assert_layer(layer, {"input_rms": rms(signal)})
        z = signal @ np.asarray(linear.weight).T + np.asarray(linear.bias)
        signal = np.maximum(z, 0) if i < 2 else z
        expected = {"rms": rms(signal), "zero_fraction": np.mean(signal == 0)}
        assert_layer(layer, expected)
        assert sorted(layer.shape) == sorted((BATCH, units[i]))


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "raw"])
def test_prng_key_and_dropout(typed):
    key = jax.random.key(3) if typed else jax.random.PRNGKey(3)

    def loss_fn(params, x, key):
        hidden = jnp.tanh(x @ params["w"])
        keep = jax.random.bernoulli(key, 0.5, hidden.shape)
        return loss_of(jnp.where(keep, hidden, 0.0), params["head"])

    params = {"w": numbers()["kernel"][0], "head": numbers()["head"]}
    first, last = diagnostics.signal_report(loss_fn, params, batch(), key).layers
    image = np.tanh(np.asarray(batch()) @ np.asarray(params["w"]))
    keep = np.asarray(jax.random.bernoulli(key, 0.5, image.shape))
    assert_layer(first, {"rms": rms(image), "zero_fraction": 0.0})
    assert_layer(last, {"input_rms": rms(image * keep)})


def test_auxiliary_output():
    _, expected = reference()

    def loss_fn(params, x):
        return through(block)(params, x), {"logits": x, "text": "anything"}

    report = diagnostics.signal_report(loss_fn, unstacked(numbers()), batch(), has_aux=True)
    assert_layer(report.layers[1], expected[1])


def test_integer_and_boolean_data():
    def loss_fn(params, x, labels, keep):
        logits = jax.nn.one_hot(x, 5, dtype=jnp.float64) @ params["w"]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
        return -jnp.sum(jnp.where(keep[:, None], chosen, 0.0))

    params = {"w": jnp.asarray(np.random.default_rng(13).standard_normal((5, 3)))}
    x, labels = jnp.asarray([0, 4, 2, 1]), jnp.asarray([0, 1, 2, 0])
    keep = jnp.asarray([True, False, True, True])
    (layer,) = diagnostics.signal_report(loss_fn, params, x, labels, keep).layers
    gradient = jax.jit(jax.grad(loss_fn))(params, x, labels, keep)["w"]
    logits = np.asarray(params["w"])[np.asarray(x)]
    assert_layer(layer, {"rms": rms(logits), "weight_grad_rms": rms(gradient)})


# Wrong arguments.


def identity_loss(params, x):
    return loss_of(x, params["head"])


REFUSED = {
    "not_callable": (3, {"head": 1.0}, False, "loss_fn must be a function, got 3"),
    "no_parameters": (identity_loss, {"head": 1}, False, "params must have inexact arrays"),
    "empty_params": (identity_loss, {}, False, "params must have inexact arrays"),
    "no_layer": (lambda p, x: jnp.sum(x) * p["head"].sum(), None, False, "must have a layer"),
    "vector_loss": (
        lambda p, x: jnp.sum(x @ p["head"], 0),
        None,
        False,
        r"float64 of shape \(2,\)",
    ),
    "integer_loss": (
        lambda p, x: jnp.sum(x @ p["head"]).astype(int),
        None,
        False,
        "real scalar, got int64",
    ),
    "complex_loss": (
        lambda p, x: lax.complex(jnp.sum(x @ p["head"]), 1.0),
        None,
        False,
        "real scalar, got complex128",
    ),
    "unexpected_aux": (lambda p, x: (loss_of(x, p["head"]), x), None, False, "real scalar"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    loss_fn, params, has_aux, message = REFUSED[case]
    params = {"head": numbers()["head"]} if params is None else params
    with pytest.raises(ValueError, match=f"signal_report: .*{message}"):
        diagnostics.signal_report(loss_fn, params, batch(), has_aux=has_aux)


# Side effects.


def test_nothing_leaks_and_nothing_is_changed():
    params, x = numbers(), batch()
    before = jax.tree.map(np.array, params)
    with jax.checking_leaks():
        report = diagnostics.signal_report(scanned(jax.checkpoint(in_a_branch)), params, x)
    assert [layer.name for layer in report.layers] == STACKED
    jax.tree.map(np.testing.assert_array_equal, params, before)
    for value in vars(report.layers[0]).values():
        assert isinstance(value, (str, int, float, bool, tuple))


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_sharded_batch(kind):
    """A batch that is sharded over devices is measured as a whole."""
    axis_type = getattr(jax.sharding.AxisType, kind)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(axis_type,))

    def put(tree, *axes):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        return jax.device_put(tree, sharding)

    x = jnp.asarray(np.random.default_rng(14).standard_normal((8, WIDTH)))
    params = {"w": numbers()["kernel"][0], "head": numbers()["head"]}

    def loss_fn(params, x):
        return loss_of(jnp.tanh(x @ params["w"]), params["head"])

    first, _ = diagnostics.signal_report(loss_fn, put(params), put(x, "batch")).layers
    image = np.tanh(np.asarray(x) @ np.asarray(params["w"]))
    gradient = jax.jit(jax.grad(loss_fn))(params, x)["w"]
    assert_layer(first, {"rms": rms(image), "weight_grad_rms": rms(gradient)})
