"""ZeRO on eight devices: a part of the state on each, whole parameters, the same numbers."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradtx
from gradtx.sharding import distributed, zero
from gradtx.testing import check_transformation

RNG = np.random.default_rng(0)
# The last two have no axis that eight devices divide, or are too small to be worth it.
SHAPES = {"w": (4, 16), "v": (8, 3), "b": (16,), "odd": (5, 3), "scalar": ()}
PARAMS = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
GRADIENTS = [
    {name: RNG.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    for _ in range(3)
]
SPLIT = {"w": (None, "data"), "v": ("data",), "b": ("data",), "odd": (), "scalar": ()}

TRANSFORMATIONS = {
    "clipped": lambda: gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(0.1)),
    "lamb": lambda: gradtx.lamb(0.1),
    "collects": lambda: gradtx.MultiSteps(gradtx.adam(0.1), 2).gradient_transformation(),
    "averages": lambda: gradtx.average_params(gradtx.lion(0.1), 0.9),
    "optax": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)),
    "grouped": lambda: gradtx.grouped(gradtx.adam(0.1)),
}


@pytest.fixture
def use(request):
    """The context of a mesh with axes of a type, as users of explicit meshes set it."""
    stack = contextlib.ExitStack()

    def mesh(kind=AxisType.Auto, shape=(8,), names=("data",)):
        made = jax.make_mesh(shape, names, axis_types=(kind,) * len(names))
        if kind is AxisType.Explicit:
            stack.enter_context(jax.set_mesh(made))
        return made

    with stack:
        yield mesh


def trained(tx, params, gradients):
    """Parameters, state, and the layouts after init and after the steps."""
    state = jax.jit(tx.init)(params)
    before = [leaf.sharding for leaf in jax.tree.leaves(state)]
    step = jax.jit(lambda p, s, g: gradtx.update_and_apply(tx, g, s, p))
    for gradient in gradients:
        params, state = step(params, state, gradient)
    for leaf, sharding in zip(jax.tree.leaves(state), before, strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    return params, state


def bytes_of(tree):
    """Those on the first device, and in all arrays."""
    arrays = jax.tree.leaves(tree)
    return sum(x.addressable_shards[0].data.nbytes for x in arrays), sum(x.nbytes for x in arrays)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_the_numbers_of_one_device(name, use):
    with jax.numpy_dtype_promotion("standard"):
        tx = TRANSFORMATIONS[name]()
        expected, _ = trained(tx, PARAMS, GRADIENTS)
        for kind in (AxisType.Auto, AxisType.Explicit):
            mesh = use(kind)
            params, gradients = jax.device_put(
                (PARAMS, GRADIENTS), NamedSharding(mesh, PartitionSpec())
            )
            found, state = trained(zero(tx, mesh), params, gradients)
            for key, value in found.items():
                assert value.sharding.is_fully_replicated, (kind, key)
                np.testing.assert_allclose(value, expected[key], rtol=1e-6, atol=1e-6)
            mine, whole = bytes_of([x for x in jax.tree.leaves(state) if x.size % 8 == 0])
            assert mine == whole / 8


def test_layouts_of_the_state_and_eager_calls(use):
    mesh = use()
    tx = zero(gradtx.adam(0.1), mesh)
    params = jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec()))
    state = tx.init(params)
    for name, spec in SPLIT.items():
        mu = gradtx.tree.get(state, "mu")[name]
        expected = NamedSharding(mesh, PartitionSpec(*spec))
        assert mu.sharding.is_equivalent_to(expected, mu.ndim)
    updates, _ = tx.update(GRADIENTS[0], state, params)
    expected, _ = gradtx.adam(0.1).update(GRADIENTS[0], gradtx.adam(0.1).init(PARAMS), PARAMS)
    for name, update in updates.items():
        assert update.sharding.is_fully_replicated
        np.testing.assert_allclose(update, expected[name], rtol=1e-6, atol=1e-7)


def test_axes_of_another_kind_of_parallelism_stay(use):
    mesh = use(shape=(4, 2), names=("data", "model"))
    specs = {"w": (None, "model"), "v": ("model",), "b": ("model",), "odd": (), "scalar": ()}
    shardings = {key: NamedSharding(mesh, PartitionSpec(*spec)) for key, spec in specs.items()}
    params, gradients = (
        jax.device_put(PARAMS, shardings),
        [jax.device_put(gradient, shardings) for gradient in GRADIENTS],
    )
    expected, _ = trained(gradtx.adam(0.1), PARAMS, GRADIENTS)
    found, state = trained(zero(gradtx.adam(0.1), mesh, shardings=shardings), params, gradients)
    for name, value in found.items():
        assert value.sharding.is_equivalent_to(shardings[name], value.ndim), name
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-6)
    # The first axis is free, and four devices divide it.
    assert gradtx.tree.get(state, "mu")["w"].sharding.spec == PartitionSpec("data", "model")


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize(
    ("shape", "names", "w"),
    [
        ((8,), ("data",), ("data",)),
        ((4, 2), ("data", "model"), (None, "model")),
        ((4, 2), ("data", "model"), ()),
    ],
    ids=["fsdp", "model", "replicated"],
)
def test_unknown_layouts_of_parameters_stay(shape, names, w, is_compiled, use):
    mesh = use(shape=shape, names=names)
    sharding = NamedSharding(mesh, PartitionSpec(*w))
    params, gradient = jax.device_put(({"w": jnp.ones((8, 16))},) * 2, sharding)
    tx = zero(gradtx.adam(0.1), mesh)
    step = jax.jit(lambda p, s, g: gradtx.update_and_apply(tx, g, s, p))
    state = (jax.jit(tx.init) if is_compiled else tx.init)(params)
    for _ in range(2):
        params, state = step(params, state, gradient)
    assert params["w"].sharding.is_equivalent_to(sharding, 2)
    assert step._cache_size() == 1


def test_what_is_sharded_along_the_axis_stays(use):
    mesh = use()
    sharded = NamedSharding(mesh, PartitionSpec("data"))
    params = {"v": jax.device_put(PARAMS["v"], sharded)}
    tx = zero(gradtx.sgd(0.1, momentum=0.9), mesh)
    updates, state = tx.update(params, tx.init(params), params)
    for leaf in jax.tree.leaves((updates, state)):
        assert leaf.sharding.is_equivalent_to(sharded, leaf.ndim)


@pytest.mark.usefixtures("usual_compilation")
@pytest.mark.parametrize("stage", [1, 2])
def test_inside_shard_map(stage, use):
    mesh = use()
    inner = gradtx.adamw(0.1)
    tx = zero(inner, mesh, stage=stage)
    rows = RNG.normal(size=(16, 8)).astype(np.float32)
    start = {"w": PARAMS["v"], "odd": PARAMS["odd"]}

    def loss(params, x):
        return jnp.mean((x @ params["w"]) ** 2) + jnp.mean(x) * jnp.sum(params["odd"] ** 2)

    params, state = start, inner.init(start)
    for _ in range(3):
        gradient = jax.grad(loss)(params, rows)
        params, state = gradtx.update_and_apply(inner, gradient, state, params)

    whole = tx.init(jax.device_put(start, NamedSharding(mesh, PartitionSpec())))
    specs = jax.tree.map(
        lambda leaf: getattr(leaf.sharding, "spec", PartitionSpec()), whole
    )  # the count is where it may be copied

    def step(params, state, x):
        # Each device's own gradient, not the sum that shard_map would make of it.
        own = jax.tree.map(lambda p: jax.lax.pcast(p, "data", to="varying"), params)
        gradient = jax.grad(loss)(own, x)
        if stage == 1:
            gradient = jax.lax.pmean(gradient, "data")
        return gradtx.update_and_apply(tx, gradient, state, params)

    everywhere, mine = PartitionSpec(), PartitionSpec("data")
    mapped = jax.jit(
        jax.shard_map(
            step, mesh=mesh, in_specs=(everywhere, specs, mine), out_specs=(everywhere, specs)
        )
    )
    found, found_state = start, whole
    for _ in range(3):
        found, found_state = mapped(found, found_state, rows)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        (found, found_state),
        (params, state),
    )
    if stage == 2:
        program = mapped.lower(found, found_state, rows).compile().as_text()
        assert "reduce-scatter" in program


@pytest.mark.parametrize(
    ("tx", "message"),
    [
        (gradtx.clip_by_global_norm(1.0), "clip_by_global_norm depends on whole arrays"),
        (gradtx.chain(gradtx.scale_by_muon(), gradtx.scale(0.1)), "scale_by_muon depends on"),
        (optax.adam(0.1), "it is not known whether"),
    ],
    ids=["norm", "matrices", "optax"],
)
def test_parts_are_not_taken_for_whole_arrays(tx, message, use):
    split = zero(tx, use())
    specs = PartitionSpec()

    def update(params):
        return split.update(params, tx.init(params), params)[0]

    with jax.numpy_dtype_promotion("standard"), pytest.raises(ValueError, match=message):
        jax.eval_shape(
            jax.shard_map(update, mesh=use(), in_specs=specs, out_specs=specs), {"v": PARAMS["v"]}
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"axis": "model"},
            "axis must name axes of the mesh, which has \\('data',\\), got 'model'",
        ),
        ({"axis": ("data", "data")}, "axis must name axes of the mesh"),
        ({"axis": ()}, "axis must name axes of the mesh"),
        ({"mesh": None}, "mesh must be a mesh of devices, got None"),
        ({"stage": 3}, "stage must be 1 or 2, got 3"),
        ({"stage": True}, "stage must be 1 or 2, got True"),
    ],
)
def test_refuses(arguments, message, use):
    with pytest.raises(ValueError, match=f"zero: {message}"):
        zero(gradtx.adam(0.1), **({"mesh": use()} | arguments))


def test_names_what_shardings_lack(use):
    mesh = use()
    tx = zero(gradtx.adam(0.1), mesh, shardings={"v": NamedSharding(mesh, PartitionSpec())})
    with pytest.raises(ValueError, match="zero: params and shardings differ at 'w'"):
        tx.init({"v": jnp.ones(8), "w": jnp.ones(8)})


def test_explain_shows_the_bytes_on_each_device(use):
    mesh = use()
    params = jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec()))
    size = {name: leaf.nbytes for name, leaf in PARAMS.items()}
    split = sum(size[name] for name, spec in SPLIT.items() if spec)
    for tx, share in ((gradtx.adam(0.1), 1), (zero(gradtx.adam(0.1), mesh), 8)):
        found = gradtx.explain(tx, params)
        own = 4 + 2 * (sum(size.values()) - split) + 2 * split // share
        assert found.bytes_per_device == own
        assert str(found).endswith(f", {own:,} bytes on each device")
        # Equal to what is there.
        first, _ = bytes_of(tx.init(params))
        assert first == own
    for inner in (gradtx.grouped(gradtx.adam(0.1)), distributed(gradtx.muon(0.1), mesh)):
        assert gradtx.explain(zero(inner, mesh), params).bytes_per_device
    assert gradtx.explain(gradtx.adam(0.1), PARAMS).bytes_per_device is None
    assert "on each device" not in str(gradtx.explain(gradtx.adam(0.1), PARAMS))


def test_lookahead_has_two_trees_of_parameters(use):
    mesh = use()
    tx = gradtx.lookahead(gradtx.adam(0.1), sync_period=2, slow_step_size=0.5)
    start = gradtx.LookaheadParams.init_synced({"w": jnp.asarray(PARAMS["w"])})
    gradients = [{"w": gradient["w"]} for gradient in GRADIENTS]
    expected, _ = trained(tx, start, gradients)
    on_mesh = jax.device_put((start, gradients), NamedSharding(mesh, PartitionSpec()))
    found, _ = trained(zero(tx, mesh), *on_mesh)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected)
    assert found.fast["w"].sharding.is_fully_replicated


def test_contract(use):
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.trace(0.9))
    # That clause has a mesh of its own, and this transformation belongs to one.
    check_transformation(zero(tx, use()), skip=["layouts"])


@pytest.mark.parametrize("wrap", [zero, distributed])
def test_another_explicit_mesh_is_named(wrap, use):
    tx = wrap(gradtx.scale_by_muon(), use(AxisType.Explicit))
    other = use(AxisType.Explicit, names=("rows",))
    params = {"w": jax.device_put(PARAMS["v"], NamedSharding(other, PartitionSpec("rows")))}
    with pytest.raises(ValueError, match=rf"{wrap.__name__}: .*8, 3\) is on a mesh .*rows"):
        jax.jit(tx.init)(params)


def test_arrays_of_another_mesh_are_moved(use):
    other = NamedSharding(use(names=("rows",)), PartitionSpec("rows"))
    tx = zero(gradtx.adam(0.1), use())
    state = tx.init({"v": jax.device_put(PARAMS["v"], other)})
    assert gradtx.tree.get(state, "mu")["v"].sharding.spec == PartitionSpec("data")
