"""The clauses about several devices, on as many as there may be."""

import jax
import pytest

import gradtx
from gradtx.testing import check_layouts, check_sharding, hostile_parameters


@pytest.mark.parametrize("number", [2, 3])
def test_an_array_without_elements_may_lie_anywhere(number, monkeypatch):
    devices = jax.devices()[:number]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "device_count", lambda: number)
    tx, params = gradtx.sgd(0.1, momentum=0.9), hostile_parameters()
    assert (0, 2) in [leaf.shape for leaf in jax.tree.leaves(params)]
    check_sharding(tx, params)
    check_layouts(tx, params)
