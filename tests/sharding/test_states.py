"""`state_shardings`: where a state lies, in the structure that `init` gives it."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradtx
from gradtx.sharding import state_shardings

SHAPES = {"kernel": (8, 16), "other": (8, 16), "bias": (16,), "scale": ()}
SPECS = {"kernel": P("a", "b"), "other": P("a", "b"), "bias": P("b"), "scale": P()}
LABELS = {"kernel": "x", "other": "x", "bias": "y", "scale": "y"}
ADAM = functools.partial(gradtx.adam, 0.1)

# Whatever holds states; in each of them the first moments of the kernel lie where the kernel does.
OURS = {
    "adam": ADAM,
    "sm3": lambda: gradtx.sm3(0.1),
    "adafactor": lambda: gradtx.adafactor(0.1, min_dim_size_to_factor=4, momentum=0.9),
    "soap": lambda: gradtx.soap(0.1),
    "galore": lambda: gradtx.galore(0.1, rank=2),
    "MultiSteps": lambda: gradtx.MultiSteps(ADAM(), 2),
    "masked": lambda: gradtx.masked(ADAM(), gradtx.select("kernel")),
    "partition": lambda: gradtx.partition({"x": ADAM(), "y": gradtx.sgd(0.1, 0.9)}, LABELS),
    "hyperparameters": lambda: gradtx.inject_hyperparams(gradtx.adamw)(0.1),
    "grouped": lambda: gradtx.grouped(ADAM()),
    "quantized": lambda: gradtx.quantize_state(ADAM(), min_size=16, block_size=32),
    "cast": lambda: gradtx.cast_state(ADAM()),
    "average": lambda: gradtx.average_params(ADAM(), 0.9),
}
OPTAX = {
    "adam": lambda: optax.adam(0.1),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(0.1), 2),
    "masked": lambda: optax.masked(optax.adam(0.1), {name: name == "kernel" for name in SHAPES}),
    "partition": lambda: optax.partition({"x": optax.adam(0.1), "y": optax.sgd(0.1)}, LABELS),
    "hyperparameters": lambda: optax.inject_hyperparams(optax.adamw)(0.1),
}


def mesh_of(kind=AxisType.Auto):
    return jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))


def sharded(mesh, specs=SPECS):
    return {name: NamedSharding(mesh, spec) for name, spec in specs.items()}


def parameters(shardings):
    generator = np.random.default_rng(0)
    values = {n: np.float32(generator.standard_normal(shape)) for n, shape in SHAPES.items()}
    return jax.device_put(values, shardings)


def shapes():
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()}


def specs_of(tree):
    """By path the specifications, without what is not sharded at their ends."""

    def trimmed(sharding):
        spec = [*sharding.spec]
        while spec and spec[-1] is None:
            spec.pop()
        return spec

    named, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): trimmed(own) for path, own in named}


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", OURS)
def test_our_states_lie_where_init_puts_them(name, kind):
    tx, mesh = OURS[name](), mesh_of(kind)
    found = state_shardings(tx, shapes(), sharded(mesh))
    params = parameters(sharded(mesh))
    with jax.set_mesh(mesh):
        state = jax.jit(tx.init)(params)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert specs_of(found) == specs_of(jax.tree.map(lambda leaf: leaf.sharding, state))
    assert ["a", "b"] in specs_of(found).values() or name in {"galore", "quantized", "grouped"}
    assert state_shardings(tx, params) == found


@pytest.mark.parametrize("name", OPTAX)
def test_states_of_optax_lie_where_their_parameters_do(name):
    tx, mesh = OPTAX[name](), mesh_of()
    params = parameters(sharded(mesh))
    found = state_shardings(tx, params)
    state = jax.jit(tx.init, out_shardings=found)(params)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for path, spec in specs_of(jax.tree.map(lambda leaf: leaf.sharding, state)).items():
        is_moment = re.search(r"(mu|nu|acc_grads)\['(\w+)'\]$", path)
        assert spec == ([*SPECS[is_moment[2]]] if is_moment else []), path


def test_stacks_are_sharded_as_the_leaves_in_them():
    # Leaves of one shape in two layouts are in one stack on a mesh with automatic axes.
    specs = {**SPECS, "other": P("b", "a")}
    tx = gradtx.grouped(gradtx.adam(0.1))
    state = state_shardings(tx, shapes(), sharded(mesh_of(), specs)).inner_state[0]
    assert state.mu["kernel"].spec == P(None, "a", "b")
    assert state.mu["other"] is None
    assert state.nu["bias"].spec == P("b")


def test_blocks_are_sharded_as_far_as_they_follow_the_parameter():
    tx = gradtx.quantize_state(gradtx.sgd(0.1, 0.9), min_size=16, block_size=8)
    trace = state_shardings(tx, shapes(), sharded(mesh_of())).inner_state[0].trace
    assert trace["kernel"].codes.spec == trace["kernel"].scales.spec == P("a", "b")
    tx = gradtx.quantize_state(gradtx.sgd(0.1, 0.9), min_size=16, block_size=128)
    trace = state_shardings(tx, shapes(), sharded(mesh_of())).inner_state[0].trace
    assert trace["kernel"].codes.spec == P("a", "b")
    assert trace["kernel"].scales.spec == P()


def test_what_explicit_axes_refuse_is_asked_of_the_compiler():
    def init(params):
        stack = jnp.stack([params["kernel"], params["other"].T.reshape(8, 16)])
        whole = jax.lax.with_sharding_constraint(stack, NamedSharding(mesh, P(None, None, "a")))
        return {"whole": whole, "mine": jnp.zeros((8, 16)), "count": jnp.zeros([], jnp.int32)}

    mesh = mesh_of()
    tx = optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))
    found = state_shardings(tx, shapes(), sharded(mesh))
    assert specs_of(found) == {"['count']": [], "['mine']": [], "['whole']": [None, None, "a"]}


def test_a_state_moves_to_the_host_and_back():
    mesh = mesh_of()
    params = parameters(sharded(mesh))
    tx = gradtx.adam(0.1)
    there, here = (
        state_shardings(tx, params, memory_kind="pinned_host"),
        state_shardings(tx, params),
    )
    state = jax.jit(tx.init, out_shardings=there)(params)
    assert state[0].mu["kernel"].sharding.memory_kind == "pinned_host"
    assert state[0].mu["kernel"].sharding.spec == SPECS["kernel"]
    assert state[0].count.sharding.memory_kind == here[0].count.memory_kind

    @functools.partial(jax.jit, out_shardings=(None, there))
    def step(gradients, state):
        return tx.update(gradients, jax.device_put(state, here))

    updates, state = step(params, state)
    expected, _ = tx.update(jax.device_get(params), tx.init(jax.device_get(params)))
    jax.tree.map(np.testing.assert_allclose, jax.device_get(updates), jax.device_get(expected))
    assert state[0].nu["kernel"].sharding.memory_kind == "pinned_host"


def test_one_sharding_stands_for_a_whole_tree_and_other_leaves_need_none():
    everywhere = NamedSharding(mesh_of(), P())
    params = {"layers": shapes(), "steps": jnp.int32(3), "frozen": None, "name": jnp.tanh}
    found = state_shardings(
        gradtx.adam(0.1), params, {**params, "layers": everywhere} | {"steps": None, "name": None}
    )
    assert found[0].mu["layers"]["kernel"].spec == P()
    assert found[0].mu["steps"] is None


@pytest.mark.parametrize(
    ("shardings", "message"),
    [
        (None, r"the parameter at 'bias' needs a NamedSharding, got None"),
        ({**SPECS, "bias": P("a", "b")}, r"P\('a', 'b'\) does not divide the axes of 'bias'"),
        (
            {**SPECS, "bias": P(("a", "b", "c"))},
            r"does not divide the axes of 'bias' of shape \(12,",
        ),
        ({"kernel": P()}, r"shardings must be a tree like params"),
    ],
)
def test_what_does_not_fit_is_refused(shardings, message):
    mesh = jax.make_mesh((2, 2, 2), ("a", "b", "c"), axis_types=(AxisType.Auto,) * 3)
    params = {**shapes(), "bias": jax.ShapeDtypeStruct((12,), jnp.float32)}
    own = None if shardings is None else sharded(mesh, shardings)
    with pytest.raises(ValueError, match=f"^state_shardings: .*{message}"):
        state_shardings(gradtx.adam(0.1), params, own)


def test_parameters_on_two_meshes_are_refused():
    other = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    shardings = {**sharded(mesh_of()), "bias": NamedSharding(other, P("d"))}
    with pytest.raises(ValueError, match=r"^state_shardings: the parameters must be on one mesh"):
        state_shardings(gradtx.adam(0.1), shapes(), shardings)


def test_a_memory_that_the_devices_lack_is_refused():
    with pytest.raises(ValueError, match=r"^state_shardings: memory_kind must be .*'tape'"):
        state_shardings(gradtx.adam(0.1), shapes(), sharded(mesh_of()), memory_kind="tape")
