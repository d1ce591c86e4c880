"""gradtx with optax, flax, equinox and orbax: chains, states and runs that change hands."""

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gradtx

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.array([0.5, -0.5, 2.0])}

# Some of optax's transformations mix dtypes, which the strict test process would refuse.
pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def gradients(params, step):
    """The gradients of a smooth loss that is different at each step."""
    return jax.tree.map(lambda p: jnp.sin(3.0 * p + step) + 0.1 * p, params)


def train(tx, params, state, steps, first=0):
    @jax.jit
    def one(params, state, step):
        updates, state = tx.update(gradients(params, step), state, params)
        return optax.apply_updates(params, updates), state

    for step in range(first, first + steps):
        params, state = one(params, state, jnp.float32(step))
    return params, state


# optax forms 1 - 0.999^t by a subtraction, which shifts its first steps, of length 0.1, by a share
# of 6.4e-6: up to 8e-6 in twelve steps.
TOLERANCE = 8e-6

WARMUP = optax.linear_schedule(0.0, 0.1, 5)


def centralize_as_optax(lib):
    return lib.centralize() if lib is optax else lib.centralize(layout="torch")


SHARED = {
    "sgd": lambda lib: lib.sgd(0.1),
    "sgd-momentum": lambda lib: lib.sgd(0.1, momentum=0.9),
    "sgd-nesterov-schedule": lambda lib: lib.sgd(WARMUP, momentum=0.9, nesterov=True),
    "adam": lambda lib: lib.adam(0.1),
    "adam-schedule-root": lambda lib: lib.adam(WARMUP, b1=0.8, eps_root=1e-6),
    "nadam": lambda lib: lib.nadam(0.1),
    "adamw": lambda lib: lib.adamw(0.1, weight_decay=0.05),
    "adamw-mask": lambda lib: lib.adamw(0.1, weight_decay=0.05, mask={"w": True, "b": False}),
    "nadamw": lambda lib: lib.nadamw(0.1),
    "rmsprop": lambda lib: lib.rmsprop(0.01),
    "rmsprop-centered": lambda lib: lib.rmsprop(0.01, centered=True, momentum=0.9),
    "rmsprop-corrected": lambda lib: lib.rmsprop(
        0.01, eps_in_sqrt=False, bias_correction=True, nesterov=True, momentum=0.5
    ),
    "rmsprop-centered-corrected": lambda lib: lib.rmsprop(
        0.01, centered=True, bias_correction=True, initial_scale=0.1
    ),
    "lion": lambda lib: lib.lion(0.01),
    "adagrad": lambda lib: lib.adagrad(0.1),
    "adadelta": lambda lib: lib.adadelta(1.0, weight_decay=0.1),
    "amsgrad": lambda lib: lib.amsgrad(0.1),
    "adamax": lambda lib: lib.adamax(0.1),
    "adamaxw": lambda lib: lib.adamaxw(0.1, weight_decay=0.1),
    "adabelief": lambda lib: lib.adabelief(0.1, eps=1e-8),
    "signum": lambda lib: lib.signum(0.1),
    "sign_sgd": lambda lib: lib.sign_sgd(0.1),
    "noise": lambda lib: lib.chain(lib.add_noise(0.01, 0.55, 7), lib.scale(-0.1)),
    "clipped": lambda lib: lib.chain(
        lib.clip(1.0),
        lib.clip_by_block_rms(0.5),
        lib.adaptive_grad_clip(0.2),
        lib.clip_by_global_norm(0.3),
        lib.zero_nans(),
        centralize_as_optax(lib),
        lib.normalize_by_update_norm(),
        lib.ema(0.9),
        lib.add_decayed_weights(WARMUP),
        lib.scale_by_learning_rate(WARMUP),
    ),
    "partition": lambda lib: lib.partition(
        {"a": lib.adam(0.1), "b": lib.sgd(0.1, momentum=0.9)}, {"w": "a", "b": "b"}
    ),
    "selective": lambda lib: lib.selective_transform(
        lib.adam(0.1), freeze_mask={"w": True, "b": False}
    ),
    "conditional": lambda lib: lib.conditionally_mask(lib.adam(0.1), lambda step: step % 3 != 1),
    "named": lambda lib: lib.named_chain(("m", lib.trace(0.9)), ("lr", lib.scale(-0.1))),
}


@pytest.mark.parametrize("recipe", SHARED.values(), ids=SHARED)
def test_run_changes_hands_mid_training(recipe):
    ours, theirs = recipe(gradtx), recipe(optax)
    chex.assert_trees_all_equal_structs(ours.init(PARAMS), theirs.init(PARAMS))
    chex.assert_trees_all_equal_shapes_and_dtypes(ours.init(PARAMS), theirs.init(PARAMS))
    expected, expected_state = train(theirs, PARAMS, theirs.init(PARAMS), 12)

    params, state = train(theirs, PARAMS, theirs.init(PARAMS), 4)
    params, state = train(ours, params, state, 4, first=4)
    params, state = train(theirs, params, state, 4, first=8)
    chex.assert_trees_all_close(params, expected, rtol=1e-5, atol=TOLERANCE)
    chex.assert_trees_all_equal_structs(state, expected_state)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, expected_state)

    params, state = train(ours, PARAMS, ours.init(PARAMS), 6)
    params, _ = train(theirs, params, state, 6, first=6)
    chex.assert_trees_all_close(params, expected, rtol=1e-5, atol=TOLERANCE)


@pytest.mark.parametrize(
    "build",
    [
        lambda: optax.chain(gradtx.clip_by_global_norm(1.0), optax.adam(0.1)),
        lambda: gradtx.chain(optax.clip_by_global_norm(1.0), gradtx.adam(0.1)),
        lambda: optax.chain(optax.clip_by_global_norm(1.0), gradtx.adam(0.1)),
        lambda: gradtx.masked(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)), True),
        lambda: optax.masked(gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adam(0.1)), True),
        lambda: optax.apply_if_finite(
            gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adam(0.1)), 3
        ),
        lambda: optax.MultiSteps(
            gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adam(0.1)), 1
        ),
        lambda: optax.inject_hyperparams(
            lambda rate: gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adam(rate))
        )(rate=0.1),
    ],
    ids=[
        "ours-in-optax",
        "optax-in-ours",
        "alternating",
        "optax-masked-by-ours",
        "ours-masked-by-optax",
        "apply_if_finite",
        "MultiSteps",
        "inject_hyperparams",
    ],
)
def test_transformations_of_both_libraries_chain(build):
    tx = build()
    reference = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    params, _ = train(tx, PARAMS, tx.init(PARAMS), 5)
    expected, _ = train(reference, PARAMS, reference.init(PARAMS), 5)
    chex.assert_trees_all_close(params, expected, rtol=1e-5, atol=TOLERANCE)


def test_extra_arguments_pass_through_optax_chains():
    tx = optax.chain(gradtx.clip(100.0), gradtx.scale_by_newton(), gradtx.scale(-1.0))
    params = jnp.array([3.0, -1.0])

    def loss(x):
        return jnp.sum(jnp.array([1.0, 4.0]) * (x - 1.0) ** 2)

    updates, _ = tx.update(jax.grad(loss)(params), tx.init(params), params, value_fn=loss)
    np.testing.assert_allclose(params + updates, [1.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize("recipe", SHARED.values(), ids=SHARED)
def test_tree_map_params_finds_what_is_shaped_like_parameters(recipe):
    def mark(tx):
        return optax.tree_map_params(
            tx, lambda leaf: "parameter", tx.init(PARAMS), transform_non_params=lambda leaf: "other"
        )

    assert mark(recipe(gradtx)) == mark(recipe(optax))


def test_state_is_read_by_field_name():
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(WARMUP))
    _, state = train(tx, PARAMS, tx.init(PARAMS), 2)
    assert optax.tree.get(state, "mu")["w"].shape == (2, 3)
    assert len(optax.tree.get_all_with_path(state, "count")) == 2


def test_lbfgs_and_line_searches_are_those_of_optax():
    for name in (
        "lbfgs",
        "scale_by_lbfgs",
        "scale_by_backtracking_linesearch",
        "scale_by_zoom_linesearch",
        "value_and_grad_from_state",
    ):
        assert getattr(gradtx, name) is getattr(optax, name)
    assert gradtx.schedules.warmup_cosine_decay_schedule is optax.warmup_cosine_decay_schedule


def test_flax_train_state_takes_our_transformations():
    model = nn.Dense(3)
    inputs = jnp.ones((4, 2))
    variables = model.init(jax.random.key(0), inputs)
    state = TrainState.create(
        apply_fn=model.apply, params=variables["params"], tx=gradtx.adamw(0.1)
    )
    grads = jax.grad(lambda p: jnp.sum(model.apply({"params": p}, inputs) ** 2))(state.params)
    state = state.apply_gradients(grads=grads)
    assert not np.allclose(state.params["kernel"], variables["params"]["kernel"])


OF_LISTS = {
    "sm3": lambda: gradtx.sm3(0.1),
    "soap": lambda: gradtx.soap(0.1),
    "shampoo": lambda: gradtx.shampoo(0.1, grafting=gradtx.scale_by_rss()),
}


@pytest.mark.parametrize("name", OF_LISTS)
def test_nnx_optimizer_keeps_lists_of_arrays_in_containers_of_its_own(name):
    tx = OF_LISTS[name]()
    model = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    params = {"kernel": model.kernel[...], "bias": model.bias[...]}
    expected, _ = train(tx, params, tx.init(params), 3)

    @nnx.jit
    def step(model, optimizer, number):
        now = nnx.state(model, nnx.Param)
        optimizer.update(model, gradients(now, number))

    for number in range(3):
        step(model, optimizer, jnp.float32(number))
    np.testing.assert_allclose(model.kernel[...], expected["kernel"], rtol=1e-5)
    np.testing.assert_allclose(model.bias[...], expected["bias"], rtol=1e-5)


CHOOSING = {
    "pattern": lambda: gradtx.freeze(gradtx.select("^head/bias$")),
    "predicate": lambda: gradtx.freeze(gradtx.select(lambda path, leaf: path.endswith("d/bias"))),
    "groups": lambda: gradtx.partition(
        {"frozen": gradtx.set_to_zero(), "rest": gradtx.identity()},
        gradtx.select.groups({"frozen": "^head/bias$"}, rest="rest"),
    ),
    "multiplier": lambda: gradtx.multiply_learning_rate(
        lambda path: 0.0 if path == "head/bias" else 1.0
    ),
    "blocks": lambda: gradtx.chain(
        gradtx.adamini(0.1, blocks=lambda path, leaf: {"head/bias": 0}.get(path, ())),
        gradtx.freeze(gradtx.select("^head/bias$")),
    ),
}


class TwoLayers(nnx.Module):
    def __init__(self, rngs):
        self.body = nnx.Linear(2, 3, rngs=rngs)
        self.head = nnx.Linear(3, 2, rngs=rngs)


@pytest.mark.parametrize("name", CHOOSING)
def test_leaves_of_nnx_have_one_name_in_init_and_update(name):
    model = TwoLayers(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, gradtx.chain(gradtx.sgd(0.1), CHOOSING[name]()), wrt=nnx.Param)
    before = nnx.clone(model)
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    np.testing.assert_array_equal(model.head.bias[...], before.head.bias[...])
    assert (model.head.kernel[...] != before.head.kernel[...]).all()
    assert (model.body.bias[...] != before.body.bias[...]).all()


def test_explain_calls_leaves_of_nnx_as_patterns_do():
    params = nnx.state(TwoLayers(nnx.Rngs(0)), nnx.Param)
    names = [row.path for row in gradtx.explain(gradtx.sgd(0.1), params, all_leaves=True).rows]
    assert sorted(names) == ["body/bias", "body/kernel", "head/bias", "head/kernel"]


AVERAGING = {
    "average_params": lambda: gradtx.average_params(gradtx.sgd(0.1), 0.5),
    "schedule_free": lambda: gradtx.schedule_free_sgd(0.1),
}


@pytest.mark.parametrize("name", AVERAGING)
def test_parameters_to_evaluate_go_back_into_an_nnx_module(name):
    model, tx = TwoLayers(nnx.Rngs(0)), AVERAGING[name]()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    pure = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    pure_state = tx.init(pure)
    for _ in range(3):
        optimizer.update(model, jax.tree.map(jnp.sin, nnx.state(model, nnx.Param)))
        updates, pure_state = tx.update(jax.tree.map(jnp.sin, pure), pure_state, pure)
        pure = gradtx.apply_updates(pure, updates)

    params = nnx.state(model, nnx.Param)
    evaluated = gradtx.eval_params(optimizer.opt_state, params)
    assert jax.tree.structure(evaluated) == jax.tree.structure(params)
    chex.assert_trees_all_close(
        nnx.to_pure_dict(evaluated), gradtx.eval_params(pure_state, pure), rtol=1e-6
    )
    nnx.update(model, evaluated)
    assert (model.head.kernel[...] != pure["head"]["kernel"]).all()


def test_averaged_parameters_come_in_the_containers_of_nnx():
    model = TwoLayers(nnx.Rngs(0))
    tx = gradtx.average_params(gradtx.sgd(0.1), 0.5)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.sin, nnx.state(model, nnx.Param)))
    params = nnx.state(model, nnx.Param)
    averaged = gradtx.averaged_params(optimizer.opt_state, params)
    assert jax.tree.structure(averaged) == jax.tree.structure(params)
    chex.assert_trees_all_close(averaged, params, rtol=1e-6)  # after one step


def test_a_state_of_nnx_variables_migrates():
    params = nnx.state(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), nnx.Param)
    tx = gradtx.adam(0.1)
    _, report = gradtx.migrate(tx.init(params), tx, params)
    assert not report.fresh
    assert not report.dropped


@pytest.mark.parametrize("filtered", [True, False], ids=["arrays", "whole-module"])
def test_equinox_modules_are_trees_of_parameters(filtered):
    model = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(0.1))
    state = tx.init(eqx.filter(model, eqx.is_inexact_array) if filtered else model)
    grads = eqx.filter_grad(lambda m: jnp.sum(m(jnp.ones(2)) ** 2))(model)
    params = eqx.filter(model, eqx.is_inexact_array)
    updates, state = tx.update(grads, state, params)
    new = gradtx.apply_updates(model, updates)
    assert new.activation is model.activation
    assert not np.allclose(new.layers[0].weight, model.layers[0].weight)


def test_orbax_saves_and_restores_our_states(tmp_path):
    tx = gradtx.average_params(gradtx.chain(gradtx.clip(1.0), gradtx.adamw(WARMUP)), 0.9)
    params, state = train(tx, PARAMS, tx.init(PARAMS), 3)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(
            tmp_path / "state", jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        )
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal(
        train(tx, params, restored, 2, first=3), train(tx, params, state, 2, first=3)
    )


def test_sharded_step_agrees_with_one_device_and_keeps_its_layout():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharding = NamedSharding(mesh, P("data"))
    params = {"w": jnp.linspace(-1.0, 1.0, 16).reshape(8, 2)}
    tx = gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.adamw(0.1), gradtx.ema(0.9))
    expected, expected_state = train(tx, params, tx.init(params), 3)
    sharded = jax.device_put(params, sharding)
    result, state = train(tx, sharded, tx.init(sharded), 3)
    chex.assert_trees_all_close((result, state), (expected, expected_state), rtol=1e-6, atol=1e-8)
    for leaf in (result["w"], state[1][0].mu["w"], state[2].ema["w"]):
        assert leaf.sharding.is_equivalent_to(sharding, 2)


@pytest.mark.parametrize("name", ["sm3", "shampoo"])
def test_statistics_of_a_vector_have_its_layout(name):
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), P("data"))
    state = OF_LISTS[name]().init(jax.device_put(jnp.ones(16), sharding))
    slots = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (16,)]
    assert len(slots) >= 2
    assert all(leaf.sharding.is_equivalent_to(sharding, 1) for leaf in slots)


def test_shard_map_clips_by_the_norm_of_the_whole():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    tx = gradtx.chain(gradtx.clip_by_global_norm(0.1, axis_name="data"), gradtx.scale(-1.0))
    whole = jnp.linspace(-1.0, 1.0, 16)

    @jax.jit
    @lambda f: jax.shard_map(f, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    def step(piece):
        return tx.update(piece, tx.init(piece))[0]

    np.testing.assert_allclose(step(whole), -0.1 * whole / jnp.linalg.norm(whole), rtol=1e-6)
