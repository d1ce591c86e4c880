"""Leaves that step in groups get the numbers that they get by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradtx

from ..parts import is_elementwise, kernels_in
from ..testing.test_exports import EXPORTS
from ..trajectory import check_refused

SHAPES = {"kernel": (3, 2), "bias": (3,), "table": (2, 4)}
NUMBERS = {"kernel": 3, "bias": 2, "table": 1}


def tree(seed, shapes=SHAPES):
    """Several arrays of most shapes, layer by layer; of all shapes, two narrow ones too."""
    random = np.random.default_rng(seed)
    layers = {
        f"layer{i}": {
            name: jnp.asarray(random.standard_normal(shape), jnp.float32)
            for name, shape in shapes.items()
            if i < NUMBERS[name]
        }
        for i in range(3)
    }
    for i in range(2 if "table" in shapes else 0):
        narrow = random.standard_normal((3, 2))
        layers[f"layer{i}"]["narrow"] = jnp.asarray(narrow, jnp.bfloat16)
    return layers


SMALL = {name: SHAPES[name] for name in ("kernel", "bias")}
MATRICES = {"kernel": SHAPES["kernel"]}
ONLY_MATRICES = {"scale_by_muon", "scale_by_normuon"}
# Optimizers and pieces that groups would not preserve; other wrappers go around `grouped`.
REFUSED = {
    *("apply_every", "differentially_private_aggregate", "dpsgd", "lbfgs", "newton"),
    *("hutchinson_estimator_diag_hessian", "polyak_sgd", "scale_by_backtracking_linesearch"),
    *("scale_by_lbfgs", "scale_by_newton", "scale_by_sophia", "scale_by_zoom_linesearch"),
    *("schedule_free_adamw", "schedule_free_sgd", "sophia"),
}
WRAPPERS = ("gradtx.wrappers.", "gradtx.precision.", "gradtx.compose.")


def message_for(name):
    """The refusal of a transformation; "" if it may be grouped."""
    try:
        gradtx.grouped(EXPORTS[name].make())
    except ValueError as refusal:
        return str(refusal)
    return ""


MESSAGES = {name: message_for(name) for name in EXPORTS}
ACCEPTED = {name.split("-")[0] for name, message in MESSAGES.items() if not message}
ELEMENTWISE = {name for name in ACCEPTED if is_elementwise(EXPORTS[name].make())}


def with_each_kernel():
    """All that may be grouped, but not what has only kernels that are in what is here already.

    Compositions are all here, and optimizers of which an element depends on others.
    """
    kernels, found = set(), []
    accepted = {name: kernels_in(EXPORTS[name].make()) for name in EXPORTS if name in ACCEPTED}
    for name, own in sorted(accepted.items(), key=lambda item: -len(item[1])):
        module = getattr(gradtx, name).__module__
        is_piece = module.startswith("gradtx.kernels.")
        is_plain = module.startswith("gradtx.recipes.") and name in ELEMENTWISE
        if own - kernels or not own or not (is_piece or is_plain):
            found.append(name)
            kernels |= own
    return found


def trajectory(tx, gradients, params, extra=lambda params: {}):
    """The parameters after each step."""

    @jax.jit
    def step(params, state, gradient):
        return gradtx.update_and_apply(tx, gradient, state, params, **extra(params))

    state, found = tx.init(params), []
    for gradient in gradients:
        params, state = step(params, state, gradient)
        found.append(params)
    return found, state


def check_same(found, expected, tolerance=2e-6):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        assert one.dtype == other.dtype
        message = jax.tree_util.keystr(path)
        one, other = np.float32(one), np.float32(other)
        np.testing.assert_allclose(one, other, tolerance, tolerance, err_msg=message)


@pytest.mark.parametrize("name", with_each_kernel())
def test_a_group_gives_the_numbers_of_its_leaves(name):
    shapes = MATRICES if name in ONLY_MATRICES | ELEMENTWISE else SMALL
    # Two in a group and one by itself, which are different for measures and whole arrays only.
    size = 3 if name in ELEMENTWISE else 2
    export = EXPORTS[name]
    gradients, params = [tree(seed, shapes) for seed in (1, 2)], tree(0, shapes)
    extra = export.extra_args or (lambda params: {})
    found, _ = trajectory(gradtx.grouped(export.make(), group_size=size), gradients, params, extra)
    expected, _ = trajectory(export.make(), gradients, params, extra)
    check_same(found, expected)


def test_what_groups_would_not_preserve_is_refused_by_name():
    assert all(message.startswith(("grouped: ", "")) for message in MESSAGES.values())
    refused = {name.split("-")[0] for name, message in MESSAGES.items() if message}
    own = {name for name in refused if not getattr(gradtx, name).__module__.startswith(WRAPPERS)}
    assert own == REFUSED
    assert {"chain", "named_chain", "masked", "partition", "with_hyperparams"} <= ACCEPTED
    assert {"adamw", "lamb", "muon", "soap", "adafactor", "prodigy", "noisy_sgd"} <= ACCEPTED


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optax.scale_by_adam(), r"optax\.scale_by_adam .* elementwise=True"),
        (lambda: gradtx.chain(optax.sgd(0.1)), r"optax\.chain .* elementwise=True"),
        (lambda: gradtx.cautious(gradtx.adam(0.1)), r"cautious .* put grouped inside of cautious"),
        (
            lambda: gradtx.chain(gradtx.clip(1.0), gradtx.lookahead(gradtx.sgd(0.1), 2, 0.5)),
            r"lookahead .* put grouped inside of lookahead",
        ),
        (lambda: gradtx.chain(gradtx.grouped(gradtx.sgd(0.1))), "is in groups already"),
    ],
    ids=["optax", "optax-in-a-chain", "wrapper", "wrapper-in-a-chain", "twice"],
)
def test_a_refusal_says_what_to_do(make, message):
    with pytest.raises(ValueError, match=rf"^grouped: .*{message}"):
        gradtx.grouped(make())


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        ({"group_size": 0}, "group_size", 0),
        ({"group_size": 2.5}, "group_size", 2.5),
        ({"max_leaf_size": -1}, "max_leaf_size", -1),
    ],
    ids=str,
)
def test_wrong_argument(arguments, name, value):
    check_refused(lambda **own: gradtx.grouped(gradtx.sgd(0.1), **own), arguments, name, value)


def stacks_of(tx, params):
    """The places and shapes of the stacks of momentum."""
    trace = gradtx.tree.get(jax.eval_shape(tx.init, params), "trace")
    return {jax.tree_util.keystr(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(trace)}


@pytest.mark.parametrize(
    ("number", "lengths"),
    [(1, []), (2, [2]), (16, [16]), (17, [9, 9]), (33, [11, 11, 11]), (48, [16, 16, 16])],
)
def test_groups_of_a_type_are_equally_long_with_little_padding(number, lengths):
    params = [jnp.zeros(3)] * number
    shapes = stacks_of(gradtx.grouped(gradtx.trace(0.9)), params).values()
    assert list(shapes) == ([(length, 3) for length in lengths] or [(3,)])


def test_only_chosen_and_small_leaves_are_grouped():
    params = {name: jnp.zeros(9 if name in "de" else 2) for name in "abcdef"}
    momentum = gradtx.trace(0.9)
    small = gradtx.grouped(momentum, max_leaf_size=8)
    assert stacks_of(small, params) == {"['a']": (4, 2), "['d']": (9,), "['e']": (9,)}
    expected = {"['a']": (3, 2), "['d']": (9,), "['e']": (9,), "['f']": (2,)}
    for choice in ("[a-d]", gradtx.select("[a-d]"), lambda path, leaf: path in "abcd"):
        assert stacks_of(gradtx.grouped(momentum, select=choice), params) == expected
    masked = gradtx.grouped(momentum, select=dict.fromkeys("abcdef", False))
    assert set(stacks_of(masked, params).values()) == {(2,), (9,)}


def test_leaves_that_are_treated_differently_share_no_group():
    params = {name: jnp.ones(2) for name in "abcdef"}
    fast = gradtx.select("a|b|c")
    tx = gradtx.partition(
        {"fast": gradtx.sgd(1.0, momentum=0.9), "slow": gradtx.set_to_zero()},
        gradtx.select.groups({"fast": fast}, rest="slow"),
    )
    assert stacks_of(gradtx.grouped(tx), params) == {"['a']": (3, 2)}
    tx = gradtx.chain(gradtx.trace(0.9), gradtx.masked(gradtx.scale(2.0), lambda tree: fast(tree)))
    assert stacks_of(gradtx.grouped(tx), params) == {"['a']": (3, 2), "['d']": (3, 2)}
    updates, _ = gradtx.grouped(tx).update(params, gradtx.grouped(tx).init(params), params)
    assert [float(updates[name][0]) for name in "abcdef"] == [2.0, 2.0, 2.0, 1.0, 1.0, 1.0]


def test_a_missing_gradient_leaves_its_parameter_and_its_row_alone():
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(0.1), gradtx.scale(2.0))
    params = {name: jnp.full(2, 1.0 + i) for i, name in enumerate("abcd")}
    first, second = params, params | {"a": None, "c": None}
    found, _ = trajectory(gradtx.grouped(tx), [first, second, second], params)
    expected, _ = trajectory(tx, [first, second, second], params)
    check_same(found, expected)
    grouped = gradtx.grouped(tx)
    state = grouped.update(first, grouped.init(params), params)[1]
    updates, new = grouped.update(second, state, params)
    assert updates["a"] is updates["c"] is None
    old_mu, new_mu = (gradtx.tree.get(x, "mu")["a"] for x in (state, new))
    np.testing.assert_array_equal(new_mu[::2], old_mu[::2])
    assert np.all(new_mu[1::2] != old_mu[1::2])


def test_measures_of_parameters_do_not_see_rows_without_a_gradient():
    params = {name: jnp.full(2, 1.0 + i) for i, name in enumerate("abc")}
    gradients = [params, params | {"b": None}, params | {"b": None}]
    dog = gradtx.dog(1.0, init_step=("learning_rate", 0.5))
    for tx in (dog, gradtx.prodigy(0.1, estim_lr0=0.1), gradtx.noisy_sgd(0.1, key=0)):
        found, _ = trajectory(gradtx.grouped(tx, group_size=2), gradients, params)
        check_same(found, trajectory(tx, gradients, params)[0])


def test_updates_alone_tell_the_groups_where_no_parameters_are_given():
    params, gradient = tree(0), tree(1)
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adam(0.1))
    grouped = gradtx.grouped(tx, group_size=2)
    updates, _ = grouped.update(gradient, grouped.init(params))
    check_same(updates, tx.update(gradient, tx.init(params))[0])
    wide = jax.tree.map(lambda g: g.astype(jnp.float32), gradient)
    with pytest.raises(ValueError, match=r"grouped: .*call update\(updates, state, params\)|shape"):
        grouped.update(wide, grouped.init(params))
    expected, _ = tx.update(wide, tx.init(params))
    check_same(grouped.update(wide, grouped.init(params), params)[0], expected)


def test_gradients_of_integers_are_read_as_those_of_their_group():
    params = {name: jnp.full(2, 2.0) for name in "ab"}
    tx = gradtx.grouped(gradtx.sgd(0.5, momentum=0.9))
    gradient = {name: jnp.array([1, 3]) for name in "ab"}
    for given in (params, None):
        updates, _ = tx.update(gradient, tx.init(params), given)
        np.testing.assert_array_equal(updates["b"], [-0.5, -1.5])


def test_gradients_of_several_dtypes_come_back_in_their_own():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    gradient = {"a": jnp.ones(2), "b": jnp.ones(2, jnp.bfloat16)}
    tx = gradtx.grouped(gradtx.sgd(0.1))
    updates, _ = tx.update(gradient, tx.init(params), params)
    check_same(updates, jax.tree.map(lambda g: -0.1 * g, gradient), 0.01)


def test_a_state_of_other_groups_is_refused():
    tx = gradtx.grouped(gradtx.sgd(0.1, momentum=0.9))
    params = {name: jnp.ones(2) for name in "abc"}
    plain = gradtx.sgd(0.1, momentum=0.9).init(params)
    with pytest.raises(ValueError, match=r"fields \('inner_state', 'places'\)"):
        tx.update(params, plain, params)
    with pytest.raises(ValueError, match=r"'a' has shape \(2,\), expected \(3, 2\).*migrate"):
        tx.update(params, tx.init(params)._replace(inner_state=plain), params)
    other = gradtx.grouped(gradtx.sgd(0.1, momentum=0.9), select={"a": True, "b": True, "c": False})
    with pytest.raises(ValueError, match="grouped: "):
        tx.update(params, other.init(params), params)
    with pytest.raises(ValueError, match="trace"):
        other.update(params, tx.init(params), params)


def test_hyperparameters_inside_and_outside_follow_their_schedules():
    params, gradients = tree(0), [tree(seed) for seed in (1, 2, 3)]
    schedule = gradtx.schedules.linear_schedule(0.1, 0.0, 3)
    expected, _ = trajectory(gradtx.adam(schedule), gradients, params)

    def own(learning_rate):
        return gradtx.chain(gradtx.adam(learning_rate))

    for inside in (gradtx.inject_hyperparams(gradtx.adam), gradtx.inject_hyperparams(own)):
        found, state = trajectory(gradtx.grouped(inside(schedule)), gradients, params)
        check_same(found, expected)
        inner = state.inner_state
        assert inner.count == 3
        np.testing.assert_allclose(gradtx.metrics(state)["learning_rate"], 0.1 / 3, rtol=1e-6)

    def outside(learning_rate):
        return gradtx.grouped(gradtx.adam(learning_rate))

    found, _ = trajectory(gradtx.inject_hyperparams(outside)(schedule), gradients, params)
    check_same(found, expected)
    metered = gradtx.with_metrics(gradtx.grouped(gradtx.adam(schedule)))
    found, state = trajectory(metered, gradients, params)
    check_same(found, expected)
    values = gradtx.metrics(state)
    np.testing.assert_allclose(values["learning_rate"], 0.1 / 3, rtol=1e-6)
    norm = gradtx.global_norm(gradients[-1])
    np.testing.assert_allclose(values["gradient_norm"], norm, rtol=1e-6)


AROUND = {
    "MultiSteps": lambda tx: gradtx.MultiSteps(tx, 2).gradient_transformation(),
    "apply_if_finite": lambda tx: gradtx.apply_if_finite(tx, 2),
    "average_params": lambda tx: gradtx.average_params(tx, 0.9),
    "masked": lambda tx: gradtx.masked(tx, gradtx.select("layer")),
    "schedule_free": lambda tx: gradtx.schedule_free(tx, 0.1),
    "chain": lambda tx: gradtx.chain(gradtx.clip(0.5), tx, gradtx.scale(0.5)),
}


@pytest.mark.parametrize("name", AROUND)
def test_wrappers_go_around(name):
    params, gradients = tree(0), [tree(seed) for seed in (1, 2, 3, 4)]
    wrap = AROUND[name]
    found, state = trajectory(wrap(gradtx.grouped(gradtx.adam(0.1))), gradients, params)
    expected, plain = trajectory(wrap(gradtx.adam(0.1)), gradients, params)
    check_same(found, expected)
    check_same(gradtx.eval_params(state, found[-1]), gradtx.eval_params(plain, expected[-1]))


def test_the_safe_transformations_of_others_work_on_stacks():
    params, gradients = tree(0), [tree(seed) for seed in (1, 2, 3)]
    with jax.numpy_dtype_promotion("standard"):
        tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), optax.adam(0.1))
        grouped = gradtx.grouped(tx, elementwise=True, group_size=2)
        found, state = trajectory(grouped, gradients, params)
        check_same(found, trajectory(tx, gradients, params)[0])
    assert gradtx.tree.get(state, "mu")["layer0"]["kernel"].shape == (2, 3, 2)
    grouped = gradtx.grouped(optax.trace(0.9), elementwise=True)
    gradient = gradients[0] | {"layer1": jax.tree.map(lambda x: None, gradients[0]["layer1"])}
    with pytest.raises(ValueError, match="no gradient at 'layer1/bias'"):
        grouped.update(gradient, grouped.init(params), params)


def test_the_updates_of_a_step_come_back_beside_its_parameters():
    from gradtx.updates import UPDATES_TOO, advance

    params, gradient = tree(0), tree(1)
    tx = gradtx.adam(0.1)
    expected = advance(tx, gradient, tx.init(params), params, {}, UPDATES_TOO)
    grouped = gradtx.grouped(tx, group_size=2)
    found = advance(grouped, gradient, grouped.init(params), params, {}, UPDATES_TOO)
    check_same(found[:2], expected[:2])


def test_a_whole_group_is_one_call_of_a_compiled_step():
    params = [jnp.ones(3)] * 40
    tx = gradtx.grouped(gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adam(0.1)))
    traced = jax.make_jaxpr(lambda g, s, p: gradtx.update_and_apply(tx, g, s, p))
    program = traced(params, tx.init(params), params)
    names = [e.params["name"] for e in program.eqns if e.primitive.name in ("jit", "pjit")]
    assert sum("scale_by_adam" in name for name in names) == 3
    assert len(program.eqns) < 40


def test_a_population_trains_in_groups():
    params, gradient = tree(0), tree(1)

    def step(tx, rate):
        state = tx.init(params)
        state.inner_state.hyperparams["learning_rate"] = rate
        return gradtx.update_and_apply(tx, gradient, state, params)[0]

    tx = gradtx.grouped(gradtx.with_hyperparams(gradtx.adam, learning_rate=0.1))
    found = jax.vmap(lambda rate: step(tx, rate))(jnp.array([0.1, 0.2]))
    for i, rate in enumerate((0.1, 0.2)):
        adam = gradtx.adam(rate)
        expected, _ = gradtx.update_and_apply(adam, gradient, adam.init(params), params)
        check_same(jax.tree.map(lambda x, i=i: x[i], found), expected)


def test_matrices_on_other_axes_are_refused():
    params = {name: jnp.ones((2, 3, 4)) for name in "ab"}
    tx = gradtx.scale_by_normuon(weight_dimension_numbers=gradtx.MuonDimensionNumbers(0, 2))
    grouped = gradtx.grouped(tx)
    with pytest.raises(ValueError, match=r"^as_matrices: the matrices of 'a' .* grouped"):
        grouped.update(params, grouped.init(params), params)


def test_grafted_steps_have_the_lengths_of_single_leaves():
    params, gradients = tree(0), [tree(seed) for seed in (1, 2)]
    missing = gradients[1] | {"layer1": jax.tree.map(lambda x: None, gradients[1]["layer1"])}
    tx = gradtx.chain(gradtx.graft(gradtx.trace(0.9), gradtx.adam(0.1)), gradtx.ema(0.5))
    found, _ = trajectory(gradtx.grouped(tx), [gradients[0], missing], params)
    check_same(found, trajectory(tx, [gradients[0], missing], params)[0])


def test_projected_gradients_are_those_of_single_leaves():
    params, gradients = tree(0, MATRICES), [tree(seed, MATRICES) for seed in (1, 2, 3)]
    gradients[1]["layer1"]["kernel"] = None
    numbers = gradtx.GaLoreDimensionNumbers(-2, -1)
    scale = gradtx.schedules.linear_schedule(1.0, 0.5, 3)
    tx = gradtx.galore(0.1, 1, 2, scale, gradtx.scale_by_muon(), weight_dimension_numbers=numbers)
    found, state = trajectory(gradtx.grouped(tx), gradients, params)
    expected, plain = trajectory(tx, gradients, params)
    check_same(found, expected, 1e-5)
    own, other = (gradtx.tree.get(x, "projector") for x in (state, plain))
    for i in range(3):
        np.testing.assert_allclose(
            own["layer0"]["kernel"][i], other[f"layer{i}"]["kernel"], rtol=1e-5, atol=1e-6
        )
    with pytest.raises(ValueError, match=r"grouped: the state's projector at 'layer0/kernel'"):
        gradtx.grouped(tx).update(gradients[0], state._replace(inner_state=plain), params)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_stacks_lie_as_their_leaves_do(kind):
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(kind,))
    params = {name: jnp.arange(16.0).reshape(8, 2) + i for i, name in enumerate("abcd")}
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(0.1))
    expected, _ = gradtx.update_and_apply(tx, params, tx.init(params), params)
    with jax.set_mesh(mesh):
        spread = NamedSharding(mesh, PartitionSpec("devices", None))
        sharded = {name: jax.device_put(x, spread) for name, x in params.items()}
        if kind is AxisType.Explicit:  # of another type than the others
            sharded["c"] = jax.device_put(params["c"], NamedSharding(mesh, PartitionSpec()))
        grouped = gradtx.grouped(tx)
        state = grouped.init(sharded)
        step = jax.jit(lambda s, p: gradtx.update_and_apply(grouped, p, s, p))
        found, new = step(state, sharded)
        for own in (state, new):
            stack = gradtx.tree.get(own, "mu")["a"]
            assert stack.shape == ((3 if kind is AxisType.Explicit else 4), 8, 2)
            along = NamedSharding(mesh, PartitionSpec(None, "devices", None))
            assert stack.sharding.is_equivalent_to(along, 3)
        assert all(found[x].sharding.is_equivalent_to(sharded[x].sharding, 2) for x in "abd")
    check_same(jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, expected))


def test_leaves_of_a_shard_map_are_stacked_on_each_device():
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
    params = {name: jnp.arange(16.0).reshape(8, 2) + i for i, name in enumerate("abc")}
    tx = gradtx.sgd(0.1, momentum=0.9)
    grouped, along = gradtx.grouped(tx), PartitionSpec("devices")

    def step(params):
        return gradtx.update_and_apply(grouped, params, grouped.init(params), params)[0]

    found = jax.shard_map(step, mesh=mesh, in_specs=along, out_specs=along)(params)
    check_same(found, gradtx.update_and_apply(tx, params, tx.init(params), params)[0])


def test_its_state_is_named_where_it_is_given_to_what_is_inside():
    params = {"a": jnp.ones(3), "b": jnp.ones(3)}
    # A chain of two, as the state has two fields.
    for inner in (gradtx.sgd(0.1), gradtx.sgd(0.1, momentum=0.9), gradtx.scale_by_adam()):
        state = gradtx.grouped(inner).init(params)
        with pytest.raises(ValueError, match=r"got GroupedState with .*; .*gradtx\.migrate"):
            inner.update(params, state, params)
        moved, _ = gradtx.migrate(state, inner, params)
        inner.update(params, moved, params)


def test_a_pattern_without_a_leaf_is_refused_in_its_name():
    with pytest.raises(ValueError, match=r"^grouped: 'kernl' matches none of the paths"):
        gradtx.grouped(gradtx.trace(0.9), select="kernl").init({"kernel": jnp.ones(2)})
