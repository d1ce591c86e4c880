"""GaLore: its subspaces against NumPy's, its steps against the paper, its states against optax."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import GaLoreDimensionNumbers

import gradtx
from gradtx.testing import references

from ..trajectory import ANY_NUMBER, COUNT, check_refused, wrong_arguments

RANK, GAP, STEPS = 2, 3, 7
SHAPES = {"wide": (3, 5), "tall": (5, 3), "square": (4, 4), "vector": (6,)}


def gradients(steps=STEPS):
    rng = np.random.default_rng(7)
    return [
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
        for _ in range(steps)
    ]


def run(tx, steps):
    update = jax.jit(tx.update)
    state = tx.init(jax.tree.map(jnp.asarray, steps[0]))
    for g in steps:
        updates, state = update(jax.tree.map(jnp.asarray, g), state)
        yield jax.tree.map(np.asarray, (updates, state))


def adam(t, g, old):
    return references.scale_by_adam.step(t, g, 0.0, old)


def onto(basis):
    """The orthogonal projection onto the span of the columns, which has no sign."""
    return basis @ basis.T


@pytest.mark.parametrize("size", [1.0, 1e20, 1e30, 3e38])
@pytest.mark.parametrize("name", ["wide", "tall"])
def test_the_size_of_a_gradient_does_not_change_a_step_of_adam_in_a_subspace(name, size):
    tx = gradtx.scale_by_galore(RANK, GAP)
    g = gradients(1)[0][name]
    large = g * np.float32(size / np.abs(g).max())
    ((updates, _),), ((expected, _),) = (run(tx, [{name: own}]) for own in (large, g))
    assert not np.isclose(np.abs(expected[name]).min(), np.abs(expected[name]).max())
    np.testing.assert_allclose(updates[name], expected[name], rtol=0, atol=1e-5)


def test_products_too_large_for_float32_are_the_largest_number():
    g = np.full((2, 2), 3e38, np.float32)
    tx = gradtx.scale_by_galore(1)
    _, state = tx.update({"w": jnp.asarray(g)}, tx.init({"w": jnp.asarray(g)}))
    first = gradtx.tree.get(state, "mu")["w"]
    # The product is 3e38 * sqrt(2); Adam takes it for the largest number whose square is finite.
    assert np.all(np.isfinite(first))
    assert np.abs(first).max() > 1e17


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equation(dtype):
    """Zhao et al. 2024, Algorithm 2, with the subspace as it is stored."""
    steps = [jax.tree.map(lambda g: g.astype(dtype), g) for g in gradients()]
    tolerance = 2e-6 if dtype == "float32" else 1e-11
    with jax.enable_x64(dtype == "float64"):
        tx = gradtx.scale_by_galore(RANK, GAP, scale=0.25)
        trajectory = list(run(tx, steps))
    old, before = {name: {"mu": 0.0, "nu": 0.0} for name in SHAPES}, {}
    for t, (g, (updates, state)) in enumerate(zip(steps, trajectory, strict=True), start=1):
        for name, gradient in g.items():
            # The shorter side is projected: a tall matrix is treated as its transpose.
            G = np.float64(gradient.T if name == "tall" else gradient)
            P = np.float64(state.projector[name])
            if name == "vector":
                assert P.size == 0
                expected, old[name] = adam(t, G, old[name])
                np.testing.assert_allclose(updates[name], expected, rtol=0, atol=tolerance)
                continue
            assert P.shape == (min(G.shape), RANK)
            if t % GAP == 1:
                leading = np.linalg.svd(G)[0][:, :RANK]
                np.testing.assert_allclose(onto(P), onto(leading), atol=10 * tolerance)
            else:
                np.testing.assert_array_equal(P, before[name])
            before[name] = P
            N, old[name] = adam(t, P.T @ G, old[name])
            update = 0.25 * P @ N
            np.testing.assert_allclose(
                updates[name], update.T if name == "tall" else update, rtol=0, atol=4 * tolerance
            )
            mu = state.base_optimizer_state.mu[name]
            assert mu.shape == (N.T if name == "tall" else N).shape


def test_subspace_is_only_sought_in_its_steps():
    tx = gradtx.scale_by_galore(RANK, GAP)
    g = {"wide": jnp.ones((3, 5))}
    jaxpr = jax.make_jaxpr(tx.update)(g, tx.init(g))

    def places(jaxpr, is_conditional=False):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "svd":
                yield is_conditional
            inside = is_conditional or equation.primitive.name == "cond"
            for inner in jax.tree.leaves(list(equation.params.values())):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from places(getattr(inner, "jaxpr", inner), inside)

    assert list(places(jaxpr.jaxpr)) == [True]


@pytest.fixture
def as_optax_likes_it():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("as_optax_likes_it")
def test_run_changes_hands_mid_training():
    """Both libraries call one routine for the SVD, so that the signs agree."""
    steps = gradients()
    params = jax.tree.map(jnp.asarray, steps[0])
    ours = gradtx.galore(0.1, RANK, GAP, 0.25, weight_decay=0.1, projected_side="longer")
    shorter = gradtx.galore(0.1, RANK, GAP, 0.25, weight_decay=0.1)
    theirs = optax.contrib.galore(0.1, RANK, GAP, 0.25, weight_decay=0.1)
    chex.assert_trees_all_equal_shapes_and_dtypes(ours.init(params), theirs.init(params))
    chex.assert_trees_all_equal_structs(shorter.init(params), theirs.init(params))

    updates_of = {id(tx): jax.jit(tx.update) for tx in (ours, shorter, theirs)}

    def trajectory(order):
        state, result = order[0].init(params), []
        for tx, g in zip(order, steps, strict=True):
            updates, state = updates_of[id(tx)](jax.tree.map(jnp.asarray, g), state, params)
            result.append(updates)
        return result

    expected = trajectory([theirs] * STEPS)
    for order in (
        [ours] * 2 + [theirs] * 3 + [ours] * 2,
        # A state of optax's is taken by the other side too, as it is.
        [theirs] * 2 + [shorter] * 3 + [theirs] * 2,
    ):
        chex.assert_trees_all_close(trajectory(order), expected, rtol=1e-4, atol=1e-6)


def test_arrays_of_more_axes_are_stacks_of_matrices():
    rng = np.random.default_rng(8)
    stack = jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32)
    heads = jnp.asarray(rng.normal(size=(3, 2, 4)), jnp.float32)
    numbers = {
        "stack": GaLoreDimensionNumbers(1, -1),  # axis 0 counts
        "heads": GaLoreDimensionNumbers(reduction_axis=(2, 0), output_axis=1),
        "plain": None,
    }
    tree = {"stack": stack, "heads": heads, "plain": stack[0]}
    alone = {"0": stack[0], "1": stack[1], "heads": heads.transpose(2, 0, 1).reshape(12, 2)}
    whole = gradtx.scale_by_galore(1, weight_dimension_numbers=numbers)
    plain = gradtx.scale_by_galore(1)
    updates, state = jax.jit(whole.update)(tree, whole.init(tree))
    expected, _ = jax.jit(plain.update)(alone, plain.init(alone))
    np.testing.assert_allclose(updates["stack"], [expected["0"], expected["1"]], rtol=1e-5)
    matrix = updates["heads"].transpose(2, 0, 1).reshape(12, 2)
    np.testing.assert_allclose(matrix, expected["heads"], rtol=1e-5)
    assert state.projector["stack"].shape == (2, 3, 1)
    assert state.base_optimizer_state.mu["stack"].shape == (2, 1, 5)
    assert state.base_optimizer_state.mu["plain"].shape == (3, 5)


def test_dimension_numbers_may_be_a_function_or_one_for_all():
    params = {"a": jnp.ones((2, 3, 4)), "b": jnp.ones(3), "frozen": None}

    def of_tree(tree):
        return jax.tree.map(lambda p: one if p.ndim > 1 else None, tree)

    one = GaLoreDimensionNumbers(0, (1, 2))
    for choice in (one, of_tree):
        tx = gradtx.scale_by_galore(1, weight_dimension_numbers=choice)
        _, state = tx.update(params, tx.init(params), params)
        assert state.projector["a"].shape == (2, 1)
        assert state.projector["b"].size == 0
        assert state.projector["frozen"] is None


sgd = functools.partial(gradtx.scale_by_galore, base_optimizer=gradtx.identity())


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)], ids=["wide", "tall"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_a_gradient_within_the_subspace_passes_unchanged(shape, dtype):
    rng = np.random.default_rng(9)
    left, right = rng.normal(size=(shape[0], 2)), rng.normal(size=(2, shape[1]))
    if dtype == "complex64":
        left = left + 1j * rng.normal(size=left.shape)
    tx = sgd(rank=2 if dtype != "bfloat16" else 3)  # rounding leaves no rank of 2
    g = jnp.asarray(left @ right, dtype)
    updates, state = tx.update(g, tx.init(g))
    assert updates.dtype == g.dtype
    wide = np.complex128 if dtype == "complex64" else np.float64
    tolerance = 4e-3 if dtype == "bfloat16" else 2e-6
    np.testing.assert_allclose(
        np.asarray(updates).astype(wide), np.asarray(g).astype(wide), rtol=tolerance, atol=tolerance
    )
    P = np.asarray(state.projector)
    assert P.dtype == ("complex64" if dtype == "complex64" else "float32")
    np.testing.assert_allclose(P.conj().T @ P, np.eye(P.shape[1]), atol=1e-6)


def matrix_with(singular_values, seed):
    rng = np.random.default_rng(seed)
    (U, _), (V, _) = (np.linalg.qr(rng.normal(size=(n, len(singular_values)))) for n in (4, 6))
    return U @ np.diag(singular_values) @ V.T


@pytest.mark.parametrize(
    ("gap", "left_over"), [(1, [2.0, 1.0, 0.0]), (100, [4.0, 2.0, 1.0])], ids=["often", "once"]
)
def test_each_new_subspace_of_rank_one_clears_one_singular_value(gap, left_over):
    # The gradient of ||W - target||^2 / 2 is W - target: a step of length 1 in the subspace clears
    # what lies there. With one subspace for ever nothing is left to clear after the first step.
    target = jnp.asarray(matrix_with([8.0, 4.0, 2.0, 1.0], 10), jnp.float32)
    tx, W = sgd(1, gap), jnp.zeros((4, 6))
    state, update = tx.init(W), jax.jit(tx.update)
    for _ in range(2 if gap == 1 else 5):
        updates, state = update(W - target, state)
        W = W - updates
    values = np.linalg.svd(np.float64(target - W), compute_uv=False)
    np.testing.assert_allclose(values, [*left_over, 0.0][:4], atol=1e-5)


def test_scale_may_follow_a_schedule_and_spares_vectors():
    tx = sgd(2, scale=lambda count: 1.0 + count)
    g = {"matrix": jnp.diag(jnp.array([3.0, 2.0])), "vector": jnp.ones(2)}
    state = tx.init(g)
    for factor in (1.0, 2.0):
        updates, state = tx.update(g, state)
        np.testing.assert_allclose(updates["matrix"], factor * g["matrix"], atol=1e-6)
        np.testing.assert_array_equal(updates["vector"], g["vector"])


def test_base_optimizer_gets_the_extra_arguments_but_no_parameters():
    seen = []

    def update(updates, state, params=None, **extra):
        seen.append((updates.shape, params, extra))
        return updates, state

    base = optax.GradientTransformationExtraArgs(lambda params: params, update)
    tx = gradtx.scale_by_galore(1, base_optimizer=base)
    g = jnp.ones((2, 3))
    tx.update(g, tx.init(g), g, value=1.0)
    assert seen == [((1, 3), None, {"value": 1.0})]


@pytest.mark.parametrize(
    "numbers",
    [
        GaLoreDimensionNumbers(0, 2),
        GaLoreDimensionNumbers(0, 0),
        GaLoreDimensionNumbers((), 0),
        GaLoreDimensionNumbers(0, 0.5),
    ],
    ids=["out-of-range", "twice", "no-rows", "no-integer"],
)
def test_dimension_numbers_that_do_not_fit_are_refused(numbers):
    tx = gradtx.scale_by_galore(1, weight_dimension_numbers=numbers)
    with pytest.raises(ValueError, match=r"scale_by_galore: weight_dimension_numbers.*'w'.*\(2, 3"):
        tx.init({"w": jnp.ones((2, 3))})


@pytest.mark.parametrize(
    "numbers",
    [{"v": GaLoreDimensionNumbers()}, lambda tree: {"w": 1}],
    ids=["other-tree", "no-numbers"],
)
def test_dimension_numbers_must_have_the_structure_of_the_parameters(numbers):
    tx = gradtx.scale_by_galore(1, weight_dimension_numbers=numbers)
    with pytest.raises(ValueError, match=r"weight_dimension_numbers .* prefix of the parameters"):
        tx.init({"w": jnp.ones((2, 3))})


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(
        gradtx.scale_by_galore,
        {},
        rank=COUNT,
        update_proj_gap=COUNT,
        scale=ANY_NUMBER,
        base_optimizer=(0.5,),
        projected_side=("left", None),
    ),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)


def test_a_projector_may_be_kept_in_another_dtype():
    g = jnp.asarray(gradients(1)[0]["wide"])
    tx = gradtx.scale_by_galore(RANK, base_optimizer=gradtx.identity())
    _, state = tx.update(g, tx.init(g))
    narrow = state._replace(projector=state.projector.astype(jnp.bfloat16))
    updates, narrow = tx.update(g, narrow)
    assert (updates.dtype, narrow.projector.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(updates, tx.update(g, state)[0], rtol=0.1, atol=0.05)
