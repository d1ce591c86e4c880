"""The ratio of update to parameter against NumPy, at the edges, and for every dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradtx.diagnostics import update_ratio


def test_update_ratio_is_the_quotient_of_the_norms():
    rng = np.random.default_rng(0)
    shapes = {"matrix": (3, 4), "vector": (5,), "scalar": ()}
    u, p = ({k: np.asarray(rng.normal(size=s)) for k, s in shapes.items()} for _ in range(2))
    found = jax.jit(update_ratio)(*(jax.tree.map(jnp.float32, tree) for tree in (u, p)))
    for name in shapes:
        assert found[name].shape == ()
        expected = np.sqrt((u[name] ** 2).sum() / (p[name] ** 2).sum())
        np.testing.assert_allclose(found[name], expected, rtol=5e-7, err_msg=name)


@pytest.mark.parametrize(
    ("u", "p", "expected"),
    [
        (0.0, 0.0, 0.0),
        (1.0, 0.0, np.inf),
        (0.0, 1.0, 0.0),
        (0.0, np.nan, np.nan),
        (np.nan, 0.0, np.nan),
        (np.inf, 1.0, np.inf),
        (1e30, 4e30, 0.25),
        (1e-30, 4e-30, 0.25),
    ],
)
def test_update_ratio_at_the_edge(u, p, expected):
    found = update_ratio(jnp.array([u, 0.0]), jnp.array([p, 0.0]))
    np.testing.assert_allclose(found, expected, rtol=3e-7)


@pytest.mark.parametrize(
    ("update_dtype", "parameter_dtype", "expected"),
    [
        (jnp.float16, jnp.float16, jnp.float32),
        (jnp.bfloat16, jnp.float32, jnp.float32),
        (jnp.float32, jnp.float64, jnp.float64),
        (jnp.complex64, jnp.complex64, jnp.float32),
    ],
)
def test_update_ratio_of_dtypes(update_dtype, parameter_dtype, expected):
    with jax.enable_x64(True):
        # In float16 the squares, 90000 and 160000, would overflow.
        u, p = jnp.array([300, 400], update_dtype), jnp.array([0, 1000], parameter_dtype)
        found = update_ratio(u, p)
        assert found.dtype == expected
        np.testing.assert_allclose(found, 0.5, rtol=3e-7)


def test_update_ratio_leaves_out_what_is_not_a_parameter():
    params = {"w": jnp.ones(2), "frozen": jnp.ones(2), "steps": jnp.arange(2), "f": jnp.tanh}
    updates = {"w": jnp.ones(2), "frozen": None, "steps": np.zeros(2, jax.dtypes.float0), "f": None}
    found = update_ratio(updates, params)
    assert {name for name, value in found.items() if value is None} == {"frozen", "steps", "f"}
    assert float(found["w"]) == 1.0
    hidden = {"w": jnp.ones(2), "hidden": optax.MaskedNode()}
    assert update_ratio(hidden, hidden)["hidden"] == optax.MaskedNode()
    assert float(update_ratio(jnp.zeros((0, 3)), jnp.zeros((0, 3)))) == 0


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": jnp.ones((1, 2))}, r"shapes differ at 'w'.*\(2,\).*\(1, 2\)"),
        ({"v": jnp.ones(2)}, "updates and params differ at 'w'"),
        (None, "updates and params differ"),
    ],
    ids=["shape", "structure", "none"],
)
def test_update_ratio_refuses(params, message):
    with pytest.raises(ValueError, match=f"update_ratio: {message}"):
        update_ratio({"w": jnp.ones(2)}, params)
