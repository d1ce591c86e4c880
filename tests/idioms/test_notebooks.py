"""States in a notebook: treescope shows each of their arrays, under the names of their fields."""

import jax
import jax.numpy as jnp
import pytest
import treescope

import gradtx

PARAMS = {"layers": [jnp.ones((3, 2)), jnp.ones(3)], "head": jnp.ones((2, 2))}
TRANSFORMATIONS = {
    "ScaleByAdamState": gradtx.adamw(0.1),
    "MuonState": gradtx.muon(0.1),
    "QuantizedState": gradtx.quantize_state(gradtx.adamw(0.1)),
    "MultiStepsState": gradtx.MultiSteps(gradtx.sgd(0.1), 2).gradient_transformation(),
    "ShampooState": gradtx.shampoo(0.1),
    "ScheduleFreeState": gradtx.schedule_free_adamw(0.1),
    "GroupedState": gradtx.grouped(gradtx.adamw(0.1)),
    "MetricsState": gradtx.with_metrics(gradtx.lion(0.1)),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_each_array_of_a_state_is_shown(name):
    state = TRANSFORMATIONS[name].init(PARAMS)
    text = treescope.render_to_text(state)
    assert text.count("jax.Array") == len(jax.tree.leaves(state))
    assert f"{name}(" in text


def test_a_table_stands_beside_the_fields_of_an_explanation():
    page = treescope.render_to_html(gradtx.explain(gradtx.adamw(0.1), PARAMS), compressed=False)
    assert page.count("<td") >= len(jax.tree.leaves(PARAMS))
