"""Every optimizer on several devices: its state stays where its parameters are."""

import functools
import inspect

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradtx

from ..parts import is_elementwise
from ..testing.exports.export import Export
from ..testing.test_exports import EXPORTS

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
SHAPES = {"bias": (16,), "kernel": (8, 16)}
# By name the shape of the mesh, and how the parameters are sharded on it.
LAYOUTS = {
    "replicated": ((8,), {"bias": P(None), "kernel": P(None, None)}),
    "fsdp": ((8,), {"bias": P("a"), "kernel": P("a", None)}),
    "2d": ((4, 2), {"bias": P("b"), "kernel": P("a", "b")}),
    "2d-fsdp": ((4, 2), {"bias": P(("a", "b")), "kernel": P("a", "b")}),
}


def is_ours(name):
    """Whether it is a whole optimizer, and not one of optax that is exported as it is."""
    takes_rate = "learning_rate" in inspect.signature(getattr(gradtx, name)).parameters
    return takes_rate and not name.startswith(("scale_by", "lbfgs"))


OPTIMIZERS: dict[str, Export] = {
    name: export for name, export in EXPORTS.items() if "-" not in name and is_ours(name)
} | {
    "sgd-momentum": EXPORTS["sgd-momentum"],
    "simple_moving_average": EXPORTS["simple_moving_average"],
    "average_params": EXPORTS["average_params"],
    "MultiSteps": Export(lambda: gradtx.MultiSteps(gradtx.adam(0.1), 2).gradient_transformation()),
}
# A basis of the 16 columns would be that of a null space, which rounding decides, see
# `test_distributed`. Of the 8 rows, the first gradient determines it.
OPTIMIZERS["soap"] = Export(lambda: gradtx.soap(0.01, max_precond_dim=8))
# How far three steps may be from those on one device. Products of matrices are summed in another
# order.
TOLERANCES = dict.fromkeys(("galore", "muon", "normuon", "shampoo", "soap"), 1e-5)
# Newton's method has no state, and a Hessian takes long to compile.
COMPILED = [name for name in OPTIMIZERS if name != "newton"]


# Whose numbers are those of any layout.
ELEMENTWISE = [name for name in COMPILED if is_elementwise(OPTIMIZERS[name].make())]


@pytest.fixture(scope="module")
def compilations():
    """A list that grows by one with every program that is compiled."""
    compiled = []

    def listen(event, duration, **details):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield compiled
    jax.monitoring.unregister_event_duration_listener(listen)


@functools.cache
def on_one_device(name):
    """The parameters after three steps on one device, for all tests of an optimizer."""
    tx, update = update_of(name)

    @jax.jit
    def run(params, gradients):
        return scanned(tx, update, gradients, params, tx.init(params))

    return run(numbers(0), stacked_gradients())


def scanned(tx, update, gradients, params, state):
    """The parameters after a scan over gradients."""

    def step(carry, g):
        params, state = carry
        updates, state = update(g, state, params)
        return (gradtx.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), gradients)[0][0]


def stacked_gradients():
    return jax.tree.map(lambda *leaves: np.stack(leaves), *map(numbers, (1, 2, 3)))


def numbers(seed):
    generator = np.random.default_rng(seed)
    return {n: np.float32(generator.standard_normal(shape)) for n, shape in SHAPES.items()}


def sharded(kind, layout):
    shape, specs = LAYOUTS[layout]
    mesh = jax.make_mesh(shape, ("a", "b")[: len(shape)], axis_types=(kind,) * len(shape))
    if kind == AUTO:  # as the compiler writes it
        specs = {
            name: P(*[axis for axis in spec if axis is not None]) for name, spec in specs.items()
        }
    return mesh, {name: NamedSharding(mesh, spec) for name, spec in specs.items()}


def update_of(name, wrap=lambda tx: tx):
    """The transformation, and its update with the extra arguments that it needs."""
    extra_args = OPTIMIZERS[name].extra_args or (lambda params: {})
    tx = wrap(OPTIMIZERS[name].make())
    return tx, lambda g, state, p: tx.update(g, state, p, **extra_args(p))


def three_steps(name, place, compilations, wrap=lambda tx: tx):
    """The parameters and the state before and after each step; one program takes all of them."""
    tx, update = update_of(name, wrap)

    @jax.jit
    def step(gradients, state, params):
        updates, state = update(gradients, state, params)
        return gradtx.apply_updates(params, updates), state

    params = place(numbers(0))
    run = [(params, jax.jit(tx.init)(params))]
    for seed in (1, 2, 3):
        gradients = place(numbers(seed))
        before = len(compilations)
        run.append(step(gradients, run[-1][1], run[-1][0]))
        assert seed == 1 or len(compilations) == before, f"step {seed} was compiled again"
    return run


@pytest.mark.parametrize("name", COMPILED)
def test_steps_on_several_devices(name, compilations):
    _, shardings = sharded(AUTO, "2d-fsdp")
    run = three_steps(name, lambda tree: jax.device_put(tree, shardings), compilations)
    check_bytes(run[0][1])
    check(name, run)
    # `test_types_stay_on_explicit_meshes` shows where the others lie on explicit meshes and in
    # `zero`. Their numbers do not depend on that; some are in `test_a_scan_takes_steps`.
    if name not in ELEMENTWISE:
        mesh, own = sharded(EXPLICIT, "2d")
        with jax.set_mesh(mesh):
            check(name, three_steps(name, lambda tree: jax.device_put(tree, own), compilations))
        check_steps_with_zero(name, compilations)


def check_steps_with_zero(name, compilations):
    mesh, shardings = sharded(AUTO, "replicated")
    run = three_steps(
        name,
        lambda tree: jax.device_put(tree, shardings),
        compilations,
        lambda tx: gradtx.sharding.zero(tx, mesh, "a"),
    )
    check_bytes(run[0][1])
    assert all(leaf.sharding.is_fully_replicated for leaf in run[-1][0].values())
    check(name, run)


def check(name, run):
    """Everything stays where it is, with the numbers of one device."""
    check_layouts(run)
    expected = on_one_device(name)
    for path, found in run[-1][0].items():
        tolerance = TOLERANCES.get(name, 1e-6)
        np.testing.assert_allclose(found, expected[path], rtol=0, atol=tolerance, err_msg=path)


def check_layouts(run):
    """Parameters and states lie where they did before the first step."""
    for after in run[1:]:
        for (path, old), new in zip(
            jax.tree_util.tree_flatten_with_path(run[0])[0], jax.tree.leaves(after), strict=True
        ):
            assert new.sharding.is_equivalent_to(old.sharding, old.ndim), (path, old, new)


def check_bytes(state):
    """Each of eight devices has its part of a state in the shape of the parameters."""
    leaves = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    if {leaf.shape for leaf in leaves} <= {*SHAPES.values()}:
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
        assert held <= 1.2 / 8 * sum(leaf.nbytes for leaf in leaves)


def types(tree, shardings):
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[name])
        for name, leaf in tree.items()
    }


def layouts_in(tree):
    """By path the types of arrays, with their layouts."""

    def spec(leaf):
        spec = [*getattr(leaf.sharding, "spec", ())]
        while spec and spec[-1] is None:
            spec.pop()
        return leaf.shape, leaf.dtype, spec

    named, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): spec(leaf) for path, leaf in named}


@pytest.mark.parametrize("layout", ["replicated", "fsdp", "2d"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_types_stay_on_explicit_meshes(name, layout):
    tx, update = update_of(name)
    mesh, shardings = sharded(EXPLICIT, layout)
    params = types(numbers(0), shardings)
    everywhere = types(numbers(0), dict.fromkeys(shardings, NamedSharding(mesh, P())))
    with jax.set_mesh(mesh):
        state = jax.eval_shape(tx.init, params)
        updates, new = jax.eval_shape(update, params, state, params)
        # ZeRO-1: replicated gradients and parameters, and a sharded state.
        _, of_part = jax.eval_shape(update, everywhere, state, everywhere)
    assert layouts_in(new) == layouts_in(of_part) == layouts_in(state)
    assert layouts_in(updates) == layouts_in(params)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_types_stay_in_zero(name):
    mesh, shardings = sharded(EXPLICIT, "replicated")
    tx, update = update_of(name, lambda tx: gradtx.sharding.zero(tx, mesh, "a"))
    params = types(numbers(0), shardings)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(tx.init, params)
        updates, new = jax.eval_shape(update, params, state, params)
    assert layouts_in(new) == layouts_in(state)
    assert layouts_in(updates) == layouts_in(params)
    in_parts = [spec for shape, _, spec in layouts_in(state).values() if shape]
    assert in_parts or name in ("noisy_sgd", "sign_sgd"), "only these keep no arrays"
    assert all("a" in spec for spec in in_parts)


@pytest.mark.parametrize("name", ["adam", "adafactor", "sm3", "adopt", "MultiSteps"])
def test_a_scan_takes_steps_on_an_explicit_mesh(name):
    tx, update = update_of(name)
    mesh, shardings = sharded(EXPLICIT, "2d")
    params = jax.device_put(numbers(0), shardings)
    with jax.set_mesh(mesh):
        stacked = {name: NamedSharding(mesh, P(None, *own.spec)) for name, own in shardings.items()}
        gradients = jax.device_put(stacked_gradients(), stacked)
        step = jax.jit(functools.partial(scanned, tx, update))
        params = step(gradients, params, tx.init(params))
    for path, found in params.items():
        np.testing.assert_allclose(found, on_one_device(name)[path], rtol=0, atol=1e-6)
