"""Matrices that take their steps on different devices: the numbers, what is sent, who works."""

import contextlib
import math
import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradtx
from gradtx import testing
from gradtx.sharding import distributed, zero
from gradtx.testing import collectives

from ..trajectory import check_refused

P = PartitionSpec
NUMBER, SHAPE = 8, (16, 32)
ELEMENTS = NUMBER * 16 * 32
METHODS = {
    "muon": lambda: gradtx.muon(0.1, weight_decay=0.1),
    "normuon": lambda: gradtx.normuon(0.1),
    "galore": lambda: gradtx.galore(0.1, 8, update_proj_gap=2, weight_decay=0.1),
    "shampoo": lambda: gradtx.shampoo(0.1),
    # A basis of the 32 columns would be that of a null space, which rounding decides. At a usual
    # rate, because the first steps of Adam turn roundings of small elements into 1e-3 of a step.
    "soap": lambda: gradtx.soap(0.01, precondition_frequency=1, max_precond_dim=16),
}
LAYOUTS = {
    "replicated": ((8,), P(), {"all-gather": (1, ELEMENTS)}),
    "fsdp": ((8,), P("data"), {"all-to-all": (3, 3 * ELEMENTS // 8)}),
    "columns": ((8,), P(None, "data"), {"all-to-all": (3, 3 * ELEMENTS // 8)}),
    "two-axes": ((4, 2), P("data", "model"), None),
}
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
CASES = [
    *(("muon", layout, kind) for layout in LAYOUTS for kind in (AUTO, EXPLICIT)),
    *((method, "fsdp", AUTO) for method in METHODS if method != "muon"),
]


def tree(seed, number=NUMBER):
    """Layers with a kernel, and with a bias in the first."""
    random = np.random.default_rng(seed)

    def kernel():
        left, right = (np.linalg.qr(random.standard_normal((n, n)))[0] for n in SHAPE)
        # Far from equal singular values, whose vectors would be a matter of rounding.
        return np.float32(left * np.geomspace(1, 8, SHAPE[0]) @ right[: SHAPE[0]])

    layers = {f"layer{i}": {"kernel": kernel()} for i in range(number)}
    layers["layer0"]["bias"] = np.float32(random.standard_normal(32))
    return layers


def mesh_of(shape, kind):
    names = ("data", "model")[: len(shape)]
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(names))


def laid_out(tree, mesh, spec):
    return jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(mesh, spec if x.ndim > 1 else P())), tree
    )


def three_steps(tx, params, gradients):
    """The compiled step, the parameters after three, and the states before and after them."""
    state = jax.jit(tx.init)(params)
    step = jax.jit(lambda p, s, g: gradtx.update_and_apply(tx, g, s, p))
    step = step.lower(params, state, gradients[0]).compile()
    first = state
    for gradient in gradients:
        params, state = jax.block_until_ready(step(params, state, gradient))
    return step, params, first, state


def factored(program):
    """How many elements the matrices have that LAPACK factors, which are no operations of XLA."""
    calls = re.findall(r"= \(?f32\[([\d,]+)\].* custom-call.*lapack", program.as_text())
    return sum(math.prod(map(int, shape.split(","))) for shape in calls)


@pytest.fixture(scope="module")
def on_one_device():
    """Of each method the compiled step and the parameters after three, made once."""
    known = {}

    def made(method):
        if method not in known:
            gradients = [tree(seed) for seed in (1, 2, 3)]
            known[method] = three_steps(METHODS[method](), tree(0), gradients)[:2]
        return known[method]

    return made


@pytest.mark.parametrize(
    ("method", "layout", "kind"), CASES, ids=lambda own: getattr(own, "name", own)
)
def test_steps_are_those_of_one_device_with_one_exchange_each_way(
    method, layout, kind, on_one_device
):
    alone, expected = on_one_device(method)
    shape, spec, sends = LAYOUTS[layout]
    mesh = mesh_of(shape, kind)
    params, *gradients = (laid_out(tree(seed), mesh, spec) for seed in range(4))
    with jax.set_mesh(mesh) if kind is EXPLICIT else contextlib.nullcontext():
        tx = distributed(METHODS[method](), mesh)
        step, found, first, last = three_steps(tx, params, gradients)
    for own, other, before in zip(*map(jax.tree.leaves, (found, expected, params)), strict=True):
        np.testing.assert_allclose(np.asarray(own), np.asarray(other), rtol=1e-5, atol=1e-5)
        assert own.sharding.is_equivalent_to(before.sharding, own.ndim)
        assert jax.typeof(own) == jax.typeof(before)
    sent = collectives(step)
    assert sum(own.elements for own in sent.values()) <= 2 * ELEMENTS
    assert sends is None or {k: own for k, own in sent.items() if own.number} == sends
    assert step.cost_analysis()["flops"] <= 0.3 * alone.cost_analysis()["flops"]
    assert factored(step) <= 0.3 * factored(alone)
    stacked = NamedSharding(mesh, P("data"))
    stacks = [own for own in jax.tree.leaves(last) if own.ndim == 3]
    assert stacks
    assert all(own.sharding.is_equivalent_to(stacked, 3) for own in stacks)
    for own, before in zip(jax.tree.leaves(last), jax.tree.leaves(first), strict=True):
        assert jax.typeof(own) == jax.typeof(before)


def test_a_number_of_matrices_that_devices_do_not_divide():
    mesh = mesh_of((8,), EXPLICIT)
    params, gradient = (laid_out(tree(seed, 3), mesh, P("data")) for seed in (0, 1))
    gradient["layer1"]["kernel"] = None
    tx = gradtx.muon(0.1)
    expected, _ = tx.update(
        jax.tree.map(np.asarray, gradient), tx.init(tree(0, 3)), jax.tree.map(np.asarray, params)
    )
    spread = distributed(tx, mesh)
    found, state = spread.update(gradient, spread.init(params), params)
    assert found["layer1"]["kernel"] is None
    for own, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(np.asarray(own), np.asarray(other), rtol=1e-5, atol=1e-5)
    mu = gradtx.tree.get(state, "mu", filtering=lambda path, _: "muon" in str(path))
    assert mu["layer0"]["kernel"].shape == (8, *SHAPE)


@pytest.mark.parametrize(
    "clause",
    [
        *(testing.check_donation, testing.check_masked_leaves, testing.check_scan),
        *(testing.check_sharding, testing.check_vmap),
    ],
    ids=lambda clause: clause.__name__,
)
def test_the_contract_of_a_transformation(clause):
    # Of a quickly compiled one; Muon and Shampoo pass all clauses too, which take long.
    tx = gradtx.galore(0.1, 1, base_optimizer=gradtx.trace(0.9))
    clause(distributed(tx, mesh_of((8,), AUTO)))


def test_only_matrices_that_are_chosen_are_stacked():
    mesh = mesh_of((8,), AUTO)
    tx = distributed(gradtx.muon(0.1), mesh, select="layer[0-3]")
    state = jax.eval_shape(tx.init, tree(0))
    shapes = {x.shape for x in jax.tree.leaves(state.inner_state.inner_states["muon"])}
    assert shapes == {(), (3,), SHAPE, (8, *SHAPE)}


def test_states_are_carried_there_and_back():
    params = [tree(0)[f"layer{i}"]["kernel"] for i in range(3)]
    tx = gradtx.scale_by_muon()
    plain = tx.init(params)._replace(mu=params)
    spread, _ = gradtx.migrate(plain, distributed(tx, mesh_of((8,), AUTO)), params)
    np.testing.assert_array_equal(spread.inner_state.mu[0], [*params, *[np.zeros(SHAPE)] * 5])
    back, _ = gradtx.migrate(spread, tx, params)
    for own, other in zip(back.mu, params, strict=True):
        np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("axis", ["model", (), ("data", "batch")], ids=str)
def test_an_axis_that_the_mesh_does_not_have(axis):
    check_refused(
        lambda axis: distributed(gradtx.muon(0.1), mesh_of((8,), AUTO), axis),
        {"axis": axis},
        "axis",
        axis,
    )


def test_zero_inside_is_refused_by_name():
    mesh = mesh_of((8,), AUTO)
    with pytest.raises(ValueError, match=r"^distributed: zero .* put distributed inside of zero"):
        distributed(gradtx.chain(zero(gradtx.muon(0.1), mesh)), mesh)
    with pytest.raises(ValueError, match=r"^grouped: zero .* put grouped inside of zero"):
        gradtx.grouped(zero(gradtx.adam(0.1), mesh))


def test_what_stacks_would_not_preserve_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^distributed: cautious .* put distributed inside"):
        distributed(gradtx.cautious(gradtx.muon(0.1)), mesh_of((8,), AUTO))
