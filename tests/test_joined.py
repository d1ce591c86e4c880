"""Leaves on their way through a chain: where steps wait, what they are then, and what they give."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.leaf import steps_of_many

PARAMS = {
    "dense": {"kernel": jnp.linspace(-1, 1, 6).reshape(2, 3), "bias": jnp.arange(3.0)},
    "out": {"kernel": jnp.full((3, 2), 0.5), "bias": jnp.zeros(2)},
}
GRADIENTS = [jax.tree.map(lambda p, n=n: jnp.sin(n + 3 * p) * 2.0**n, PARAMS) for n in range(3)]


def schedule(count):
    return 0.1 / (1 + count)


CHAINS = {
    "clipped adamw": lambda lib, kernels: [
        lib.clip_by_global_norm(1.0),
        lib.adamw(0.1, mask=kernels),
    ],
    "nested": lambda lib, kernels: [
        lib.chain(lib.clip(0.5), lib.chain(lib.trace(0.9), lib.identity())),
        lib.masked(lib.chain(lib.scale_by_adam(), lib.clip_by_global_norm(0.3)), kernels),
        lib.scale_by_learning_rate(schedule),
    ],
    "groups": lambda lib, kernels: [
        lib.clip_by_global_norm(2.0),
        lib.partition({True: lib.adam(0.1), False: lib.sgd(schedule, momentum=0.5)}, kernels),
        lib.add_decayed_weights(-0.01),
    ],
    "norms in the middle": lambda lib, kernels: [
        lib.scale(3.0),
        lib.clip_by_global_norm(1.0),
        lib.scale_by_adam(),
        lib.scale_by_trust_ratio(),
        lib.clip_by_global_norm(1.0),
        lib.freeze(kernels),
        lib.scale(-0.1),
    ],
}


def kernels(tree):
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", tree)


def check_close(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), tree, expected
    )


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("compile_it", [False, True])
def test_a_chain_gives_what_its_parts_give_one_after_another(name, compile_it):
    parts = [gradtx.with_extra_args_support(tx) for tx in CHAINS[name](gradtx, kernels)]
    tx = gradtx.chain(*parts)
    update = jax.jit(tx.update) if compile_it else tx.update
    state, states, params = tx.init(PARAMS), [part.init(PARAMS) for part in parts], PARAMS
    for gradient in GRADIENTS:
        updates, state = update(gradient, state, params)
        expected = gradient
        for i, part in enumerate(parts):
            expected, states[i] = part.update(expected, states[i], params)
        check_close((updates, state), (expected, tuple(states)))
        params = optax.apply_updates(params, updates)


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_gives_what_optax_gives(name):
    tx, reference = (lib.chain(*CHAINS[name](lib, kernels)) for lib in (gradtx, optax))
    state, right_state = tx.init(PARAMS), reference.init(PARAMS)
    params = right_params = PARAMS
    with jax.numpy_dtype_promotion("standard"):
        for gradient in GRADIENTS:
            params, state = gradtx.update_and_apply(tx, gradient, state, params)
            updates, right_state = reference.update(gradient, right_state, right_params)
            right_params = optax.apply_updates(right_params, updates)
    check_close(params, right_params)
    for own, right in zip(jax.tree.leaves(state), jax.tree.leaves(right_state), strict=True):
        np.testing.assert_allclose(own, right, rtol=1e-4, atol=1e-6)


def calls(tx):
    """The names of the functions that an update calls, each as often as it is called."""
    jaxpr = jax.make_jaxpr(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)
    named = [eqn.params["name"] for eqn in jaxpr.eqns if "name" in eqn.params]
    return [name for name in named if "scale" in name or "clip" in name or "trace" in name]


def test_each_leaf_takes_one_step():
    number = len(jax.tree.leaves(PARAMS))
    assert len(calls(gradtx.adamw(0.1))) == number
    clipped = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(0.1))
    assert len(calls(clipped)) == number  # the factor is no function of its own
    masked = gradtx.chain(gradtx.clip(1.0), gradtx.masked(gradtx.trace(0.9), kernels))
    assert sorted(calls(masked)) == ["clip"] * 2 + ["clip_trace"] * 2
    interrupted = gradtx.chain(gradtx.clip(1.0), optax.scale(2.0), gradtx.trace(0.9))
    assert sorted(calls(interrupted)) == ["clip"] * 4 + ["trace"] * 4


def test_leaves_of_one_type_are_traced_once():
    traced = []

    def counted(g, p):
        traced.append(g.shape)
        return g

    params = {f"layer{i}": jnp.ones(3 + i % 2) for i in range(10)}
    kernel = gradtx.kernel.Kernel("counted", lambda g, *, p: counted(g, p))
    tx = gradtx.chain(gradtx.lift.lift(kernel), gradtx.scale(2.0))
    jax.jit(tx.update).lower(params, tx.init(params), params)
    assert sorted(traced) == [(3,), (4,)]


def test_eagerly_leaves_of_one_type_share_a_call(monkeypatch):
    params = {
        "many": [jnp.full(3, n / 10) for n in range(9)],
        "narrow": [jnp.full(3, n / 10, jnp.bfloat16) for n in range(2)],
        "single": jnp.ones((3, 1)),
    }
    gradients = jax.tree.map(lambda p: jnp.cos(7 * p), params)
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(0.1), gradtx.add_noise(1, 0, 0))
    state = tx.init(params)
    expected, _ = jax.jit(tx.update)(gradients, state, params)

    numbers = []

    def counted(*steps):
        return lambda leaves, shared: (
            numbers.append(len(leaves)) or steps_of_many(*steps)(leaves, shared)
        )

    monkeypatch.setattr("gradtx.waiting.steps_of_many", counted)
    monkeypatch.setattr("gradtx.waiting._TOGETHER", 6)  # a program of 64 takes long to compile
    check_close(tx.update(gradients, state, params)[0], expected)
    assert sorted(numbers) == [2, 3, 6]


def test_eager_leaves_on_several_devices_stay_there():
    devices = jax.devices()[:3]
    params = [jax.device_put(jnp.full(3, n / 10), devices[n % 3]) for n in range(6)]
    tx = gradtx.adamw(0.1)
    updates, state = tx.update(params, tx.init(params), params)
    assert [x.device for x in updates] == [x.device for x in state[0].mu] == [*devices, *devices]
    check_close(updates, tx.update(list(map(np.asarray, params)), tx.init(params), params)[0])


def test_what_nothing_changes_comes_back_as_it_was():
    tree = {"f": jnp.ones(2), "function": jnp.sin}
    tx = gradtx.chain(gradtx.identity(), gradtx.named_chain(("same", gradtx.identity())))
    updates, _ = tx.update(tree, tx.init(None))
    assert updates is tree


def test_a_part_that_changes_the_tree_is_followed():
    def only_kernels(updates, params):
        return {name: layer["kernel"] for name, layer in updates.items()}

    tx = gradtx.chain(gradtx.scale(2.0), gradtx.stateless(only_kernels), gradtx.scale(3.0))
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), None)
    check_close(updates, {name: 6 * layer["kernel"] for name, layer in PARAMS.items()})
    groups = {True: gradtx.stateless(only_kernels)}
    for name, within in (
        ("masked", gradtx.masked(gradtx.stateless(only_kernels), True)),
        ("partition", gradtx.partition(groups, True)),
    ):
        with pytest.raises(
            ValueError, match=f"{name}: updates and its inner updates differ at 'dense"
        ):
            within.update(PARAMS, within.init(PARAMS))


def test_the_state_is_that_of_the_step_where_the_same_piece_stands_twice():
    tx = gradtx.chain(gradtx.trace(0.5), gradtx.scale(2.0), gradtx.trace(0.5))
    state = tx.init(jnp.zeros(1))
    updates, state = tx.update(jnp.ones(1), state)
    updates, state = tx.update(jnp.ones(1), state)
    np.testing.assert_allclose(state[0].trace, [1.5])
    np.testing.assert_allclose(state[2].trace, [0.5 * 2 + 3])
    np.testing.assert_allclose(updates, state[2].trace)


TREES = {
    "float32": PARAMS,
    "bfloat16": jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS),
    "strangers": {"w": jnp.ones(2), "steps": jnp.int32(3), "none": None, "number": 1.5},
}
APPLIED = {
    "clipped adamw": gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(0.1)),
    "optax": optax.chain(optax.trace(0.9), optax.scale(-0.1)),
    "MultiSteps": gradtx.MultiSteps(gradtx.sgd(0.1, momentum=0.9), 2),
    "masked": gradtx.masked(gradtx.sgd(0.1), gradtx.select("w|kernel")),
    "adafactor": gradtx.adafactor(0.1),
    "apply_if_finite": gradtx.apply_if_finite(gradtx.adam(0.1), 3),
}


# optax's own transformations add and multiply whatever they are given.
PAIRS = [(n, t) for n in APPLIED for t in TREES if (n, t) != ("optax", "strangers")]


@pytest.mark.parametrize(("name", "tree"), PAIRS)
def test_update_and_apply_is_an_update_and_its_addition(name, tree):
    tx, params = APPLIED[name], TREES[tree]
    gradient = jax.tree.map(lambda p: jnp.ones_like(p) if jnp.ndim(p) else 0.5, params)
    if tree == "strangers":
        gradient |= {"steps": None}
    state = tx.init(params)
    updates, expected_state = tx.update(gradient, state, params)
    expected = gradtx.apply_updates(params, updates), expected_state
    result = gradtx.update_and_apply(tx, gradient, state, params)
    compiled = jax.jit(lambda *arguments: gradtx.update_and_apply(tx, *arguments))(
        gradient, state, params
    )
    for found in result, compiled:
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for own, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert jnp.result_type(own) == jnp.result_type(right)
            is_exact = not jnp.issubdtype(jnp.result_type(right), jnp.inexact)
            tolerance = 0 if is_exact else 2 * float(jnp.finfo(jnp.result_type(right)).eps)
            own, right = np.asarray(own, np.float64), np.asarray(right, np.float64)
            np.testing.assert_allclose(own, right, rtol=tolerance, atol=1e-7)


def test_update_and_apply_of_lookahead_moves_both_parameters():
    tx = gradtx.lookahead(gradtx.sgd(0.5), sync_period=1, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(jnp.array([1.0]))
    new, _ = gradtx.update_and_apply(tx, jnp.array([1.0]), tx.init(params), params)
    np.testing.assert_allclose((new.fast, new.slow), ([0.75], [0.75]))


def test_update_and_apply_hands_on_extra_arguments():
    tx = gradtx.polyak_sgd()
    params = jnp.array([2.0])
    new, _ = gradtx.update_and_apply(tx, jnp.array([2.0]), tx.init(params), params, value=2.0)
    np.testing.assert_allclose(new, [1.0])


def test_update_and_apply_refuses_what_does_not_fit():
    tx = gradtx.sgd(0.1)
    params = {"w": jnp.ones(2)}
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"shapes differ at 'w'.*\(2,\).*\(3,\)"):
        gradtx.update_and_apply(tx, {"w": jnp.ones(3)}, state, params)
    with pytest.raises(ValueError, match=r"update_and_apply: .* differ at"):
        gradtx.update_and_apply(tx, {"v": jnp.ones(2)}, state, params)
    with pytest.raises(ValueError, match=r"the parameter at 'w' is of int32"):
        gradtx.update_and_apply(tx, {"w": jnp.ones(2)}, state, {"w": jnp.ones(2, jnp.int32)})
    with pytest.raises(ValueError, match="update_and_apply: tx must be a gradient transformation"):
        gradtx.update_and_apply(gradtx.sgd, params, state, params)


def test_each_leaf_gives_its_parameter_and_slots_and_no_update():
    tx = gradtx.chain(gradtx.clip(1.0), gradtx.adamw(0.1))

    def step(gradient, state, params):
        return gradtx.update_and_apply(tx, gradient, state, params)

    jaxpr = jax.make_jaxpr(step)(PARAMS, tx.init(PARAMS), PARAMS)
    steps = [eqn for eqn in jaxpr.eqns if "apply_updates" in eqn.params.get("name", "")]
    assert [len(eqn.outvars) for eqn in steps] == [3] * len(jax.tree.leaves(PARAMS))


def test_what_waits_at_equal_matrices_comes_before_the_step_that_they_take_together():
    tx = gradtx.chain(gradtx.clip(0.01), gradtx.scale_by_muon())
    matrices = {"a": PARAMS["dense"]["kernel"], "b": 2 * PARAMS["dense"]["kernel"]}
    updates, _ = tx.update(matrices, tx.init(matrices), matrices)
    for name, matrix in matrices.items():
        clipped = jnp.clip(matrix, -0.01, 0.01)
        muon = gradtx.scale_by_muon()
        expected, _ = muon.update(clipped, muon.init(matrix), matrix)
        np.testing.assert_allclose(updates[name], expected, atol=1e-5)
