"""A NaN is explained by what its operation took: ranges, tables, masks, half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gradtx import diagnostics

WIDTH, SAMPLES, ROWS = 4, 6, 10
WEIGHTS = jax.random.normal(jax.random.key(0), (WIDTH, WIDTH))
TABLE = jax.random.normal(jax.random.key(2), (ROWS, WIDTH))
X = jax.random.normal(jax.random.key(1), (SAMPLES, WIDTH))
PARAMS = {"table": TABLE, "w": WEIGHTS}


def looked_up(p, indices):
    return jnp.mean((jnp.take(p["table"], indices, axis=0) @ p["w"]) ** 2)


def test_indices_beyond_the_table_are_named_with_both_ranges():
    report = diagnostics.signal_report(looked_up, PARAMS, jnp.array([3, 0, 12]))
    assert (report.kind, report.culprit.operation) == ("nan", "gather")
    assert "The indices range from 0 to 12, but the parameter 'table' of shape (10, 4) has 10" in (
        report.verdict
    )
    assert "keep the indices below 10" in report.verdict
    assert report.culprit.source.startswith("test_nan_evidence.py:")
    table, indices = report.culprit.evidence.operands
    assert (table.name, table.shape, table.dtype) == ("parameter 'table'", (10, 4), "float32")
    assert (table.smallest, table.largest) == (np.min(TABLE), np.max(TABLE))
    assert (indices.smallest, indices.largest) == (0, 12)
    assert diagnostics.signal_report(looked_up, PARAMS, jnp.array([3, 0, 9])).kind != "nan"


def masked(p, x, fill):
    is_seen = jnp.arange(SAMPLES)[:, None] != jnp.array([2, 2, 2, 2])[None]
    scores = jnp.where(is_seen, x @ p["w"], fill)
    return jnp.mean((jax.nn.softmax(scores) @ p["w"]) ** 2)


@pytest.mark.parametrize("function", [jax.nn.softmax, jax.nn.log_softmax])
def test_rows_that_are_masked_entirely_are_counted(function):
    def loss_fn(p, x):
        is_seen = (jnp.arange(SAMPLES) % 3 > 0)[:, None]
        scores = jnp.where(is_seen, x @ p["w"], -jnp.inf)
        return jnp.mean((function(scores) @ p["w"]) ** 2)

    report = diagnostics.signal_report(loss_fn, PARAMS, X)
    assert report.kind == "nan"
    assert "In 2 of 6 rows everything is -inf" in report.verdict
    assert "jnp.finfo(dtype).min instead of -inf" in report.verdict


def test_advice_for_masked_rows_cures():
    assert diagnostics.signal_report(masked, PARAMS, X, -jnp.inf).kind == "nan"
    cured = diagnostics.signal_report(masked, PARAMS, X, float(jnp.finfo(jnp.float32).min))
    assert cured.kind != "nan"


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda z: jnp.exp(8 * z), "exp"),
        (lambda z: (200 * z) ** 2, "integer_pow"),
        (lambda z: (400 * z) * (400 * z[::-1]), "mul"),
    ],
)
def test_overflow_of_float16_is_told_with_the_operands(function, operation):
    def loss_fn(p, x, dtype):
        return jnp.mean(function((x @ p["w"]).astype(dtype)).astype(jnp.float32) * 1e-6)

    report = diagnostics.signal_report(loss_fn, PARAMS, X, jnp.float16)
    cause = report.culprit.infinity or report.culprit
    assert (report.kind, cause.operation) == ("nan", operation)
    assert "The result exceeds the largest float16, 65504, for operands from" in report.verdict
    assert "compute it in a wider dtype (float32, or bfloat16 for its range)" in report.verdict
    assert diagnostics.signal_report(loss_fn, PARAMS, X, jnp.bfloat16).kind != "nan"


@pytest.mark.parametrize("norm", ["divided", "root", "greatest"])
def test_epsilon_that_is_zero_in_float16_is_named(norm):
    def loss_fn(p, x, epsilon):
        h = jnp.where(x[:, :1] > 0, jax.nn.relu(x @ p["w"]), 0.0).astype(jnp.float16)
        total = jnp.sum(h**2, -1, keepdims=True)
        if norm == "divided":
            h = h / (jnp.sqrt(total) + epsilon)
        elif norm == "root":
            h = h * lax.rsqrt(total + epsilon)
        else:
            h = h / jnp.maximum(total, epsilon)
        return jnp.mean((h.astype(jnp.float32) @ p["w"] - 1) ** 2)

    report = diagnostics.signal_report(loss_fn, PARAMS, X, 1e-8)
    assert report.kind == "nan"
    assert "The epsilon at test_nan_evidence.py:" in report.verdict
    assert "is zero in float16, whose smallest number is 6e-08" in report.verdict
    assert "use a larger epsilon, such as 1e-4, or compute this in float32" in report.verdict
    if norm != "divided":  # the derivative of a root is infinite at zero, whatever is added to it
        assert diagnostics.signal_report(loss_fn, PARAMS, X, 1e-4).kind != "nan"


def test_argument_outside_the_domain_is_told_with_its_range():
    report = diagnostics.signal_report(lambda p, x: jnp.mean(jnp.log(x @ p["w"])), PARAMS, X)
    z = np.asarray(X) @ np.asarray(WEIGHTS)
    assert f"Its argument ranges from {z.min():.3g} to {z.max():.3g}." in report.verdict


def test_ratio_is_told_with_both_ranges():
    def loss_fn(p, x):
        h = jax.nn.relu(x @ p["w"] - 100)
        return jnp.mean(h / jnp.sum(h, -1, keepdims=True))

    report = diagnostics.signal_report(loss_fn, PARAMS, X)
    assert "Its numerator ranges from 0 to 0 and its denominator from 0 to 0." in report.verdict


def test_zero_times_infinity_is_told():
    def loss_fn(p, x):
        chances = jnp.where(x > 0, jax.nn.sigmoid(x @ p["w"]), 0.0)
        return -jnp.mean(jnp.where(x > 0, 1.0, 0.0) * jnp.log(chances))

    report = diagnostics.signal_report(loss_fn, PARAMS, X)
    assert report.kind == "nan"
    assert "an infinity that `log` produces" in report.verdict
    assert "Its argument ranges from 0 to" in report.verdict


def test_range_is_that_of_the_iteration_which_made_the_nan():
    def loss_fn(p, x):
        def step(h, shift):
            h = jnp.sqrt(h * h + 0.1 - shift)
            return h, jnp.sum(h)

        h, _ = lax.scan(step, jax.nn.relu(x @ p["w"]) + 1, jnp.array([0.0, 0.1, 50.0, 0.0]))
        return jnp.mean(h)

    report = diagnostics.signal_report(loss_fn, PARAMS, X)
    (operand,) = report.culprit.evidence.operands
    first = np.maximum(np.asarray(X) @ np.asarray(WEIGHTS), 0) + 1
    third = first**2 + 0.2 - 50
    assert operand.smallest == pytest.approx(third.min(), rel=1e-3)
    assert operand.largest == pytest.approx(third.max(), rel=1e-3)


def test_derivative_that_is_not_finite_is_told_with_the_argument():
    def loss_fn(p, x):
        z = x @ p["w"]
        return jnp.mean(jnp.sqrt(jnp.sum(jnp.where(x > 0, z, 0.0) * 0, -1) + z[:, 0] * 0) * z[:, 0])

    report = diagnostics.signal_report(loss_fn, PARAMS, X)
    assert (report.culprit.derivative_of, report.culprit.in_gradient) == ("sqrt", True)
    assert "the derivative of `sqrt`" in report.verdict
    assert "Its argument ranges from 0 to 0." in report.verdict
