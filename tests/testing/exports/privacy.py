"""Differential privacy, after a piece that makes per-example gradients of one gradient."""

import jax.numpy as jnp

import gradtx

from .export import Export, halved, is_number


def of_examples(gradient, parameter):
    """Two examples whose gradients point the same way."""
    return jnp.stack([gradient, gradient / 2]) if is_number(gradient) else gradient


def behind(make):
    """A consumer of per-example gradients, after a piece that makes them."""
    return lambda: gradtx.chain(gradtx.stateless_with_tree_map(of_examples), make())


EXPORTS = {
    "differentially_private_aggregate": Export(
        behind(lambda: gradtx.differentially_private_aggregate(1.0, 0.5, 0))
    ),
    "differentially_private_aggregate-schedule": Export(
        behind(lambda: gradtx.differentially_private_aggregate(halved, 0.5, 0))
    ),
    "dpsgd": Export(behind(lambda: gradtx.dpsgd(0.1, 1.0, 0.5, 0, momentum=0.9))),
}
