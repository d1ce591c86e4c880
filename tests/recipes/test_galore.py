"""GaLore's recipe: what it adds to the piece."""

import jax.numpy as jnp
import numpy as np

import gradtx


def test_weight_decays_outside_the_subspace_where_the_mask_says():
    params = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "bias": jnp.array([5.0])}
    grads = {"kernel": jnp.diag(jnp.array([8.0, 1.0])), "bias": jnp.array([2.0])}
    tx = gradtx.galore(
        0.5,
        rank=1,
        scale=0.25,
        base_optimizer=gradtx.identity(),
        weight_decay=0.1,
        mask=gradtx.select("kernel"),
    )
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [[-1.05, -0.1], [-0.15, -0.2]], rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], [-1.0])
