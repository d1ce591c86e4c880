"""Which operation made the first NaN: known mistakes in known places."""

import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gradtx import diagnostics

WIDTH = 4


def kernels(number=2, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal((WIDTH, WIDTH)), jnp.float32) for _ in range(number)]


def batch():
    return jnp.asarray(np.random.default_rng(1).standard_normal((5, WIDTH)), jnp.float32)


def loss_with(function, after=1):
    """A network that applies a function to the output of one layer."""

    def loss_fn(params, x):
        for i, kernel in enumerate(params):
            x = x @ kernel
            x = function(x) if i == after else jnp.tanh(x)
        return jnp.mean(x**2)

    return loss_fn


def line_of(function):
    """The file and the number of the function's last line, where the mistake is."""
    lines, first = inspect.getsourcelines(function)
    return f"{pathlib.Path(__file__).name}:{first + len(lines) - 1}"


def log_of_negative(z):
    return jnp.log(-jnp.abs(z) - 1)


def root_of_negative(z):
    return jnp.sqrt(-jnp.abs(z) - 1)


def zero_by_zero(z):
    return (z * 0) / (z * 0)


def power_of_negative(z):
    return jnp.power(-jnp.abs(z) - 1, 0.5)


MISTAKES = {
    "log": (log_of_negative, "log"),
    "sqrt": (root_of_negative, "sqrt"),
    "div": (zero_by_zero, "div"),
    "pow": (power_of_negative, "pow"),
}


def assert_culprit(report, **expected):
    assert report.kind == "nan", report.verdict
    for field, value in expected.items():
        assert getattr(report.culprit, field) == value, field
    if report.culprit.source:
        assert report.culprit.source in report.verdict


@pytest.mark.parametrize("mistake", MISTAKES)
def test_operation_layer_and_line(mistake):
    function, operation = MISTAKES[mistake]
    report = diagnostics.signal_report(loss_with(function), kernels(), batch())
    assert_culprit(
        report, made="NaN", operation=operation, layer="1", in_gradient=False, infinity=None
    )
    assert report.diagnosis.layers == ("1",)
    assert report.culprit.source.startswith(line_of(function))
    assert function.__name__ in report.culprit.source
    assert f"`{operation}`" in report.verdict
    assert "'1'" in report.verdict


def test_finite_loss_has_no_culprit():
    report = diagnostics.signal_report(loss_with(jnp.tanh), kernels(), batch())
    assert report.culprit is None
    assert report.kind != "nan"


def test_in_the_first_layer():
    report = diagnostics.signal_report(loss_with(log_of_negative, 0), kernels(), batch())
    assert_culprit(report, operation="log", layer="0")


def test_the_first_of_several_mistakes():
    def loss_fn(params, x):
        hidden = root_of_negative(x @ params[0])
        return jnp.mean(log_of_negative(hidden @ params[1]))

    assert_culprit(
        diagnostics.signal_report(loss_fn, kernels(), batch()), operation="sqrt", layer="0"
    )


def test_before_all_layers():
    def loss_fn(params, x):
        return jnp.mean(log_of_negative(x) @ params[0])

    report = diagnostics.signal_report(loss_fn, kernels(1), batch())
    assert_culprit(report, operation="log", layer="")
    assert "before the first layer" in report.verdict


def exponential(z):
    return jnp.exp(1e4 * jnp.abs(z))


def softmax_without_shift(z):
    return exponential(z) / jnp.sum(exponential(z), axis=-1, keepdims=True)


def test_nan_that_comes_from_an_infinity():
    report = diagnostics.signal_report(loss_with(softmax_without_shift), kernels(), batch())
    assert_culprit(report, made="NaN", operation="div", layer="1")
    infinity = report.culprit.infinity
    assert (infinity.made, infinity.operation, infinity.layer) == ("infinity", "exp", "1")
    assert infinity.source.startswith(line_of(exponential))
    assert "`exp`" in report.verdict
    assert infinity.source in report.verdict
    assert "subtract the largest" in report.verdict


def test_infinite_loss():
    def loss_fn(params, x):
        return jnp.sum(exponential(x @ params[0]))

    report = diagnostics.signal_report(loss_fn, kernels(1), batch())
    assert np.isinf(report.loss)
    assert_culprit(report, made="infinity", operation="exp", layer="0", in_gradient=False)
    assert "infinity" in report.verdict


def test_masked_infinity_is_not_blamed():
    """A mask of minus infinity in attention is intended; the NaN has another cause."""

    def loss_fn(params, x):
        scores = jnp.where(jnp.tril(jnp.ones((5, 5), bool)), (x @ params[0]) @ x.T, -jnp.inf)
        shares = jax.nn.softmax(scores)
        return jnp.mean(root_of_negative(shares @ x @ params[1]))

    report = diagnostics.signal_report(loss_fn, kernels(2), batch())
    assert_culprit(report, operation="sqrt", layer="1", infinity=None)


def test_masked_infinity_alone_is_healthy():
    def loss_fn(params, x):
        scores = jnp.where(jnp.tril(jnp.ones((5, 5), bool)), (x @ params[0]) @ x.T, -jnp.inf)
        return jnp.mean((jax.nn.softmax(scores) @ x @ params[1]) ** 2)

    assert diagnostics.signal_report(loss_fn, kernels(2), batch()).culprit is None


def test_row_that_is_masked_as_a_whole():
    """A softmax whose arguments are all minus infinity."""

    def loss_fn(params, x):
        scores = jnp.where(jnp.arange(5)[:, None] > 0, (x @ params[0]) @ x.T, -jnp.inf)
        return jnp.mean(jax.nn.softmax(scores) @ x @ params[1])

    report = diagnostics.signal_report(loss_fn, kernels(2), batch())
    assert_culprit(report, made="NaN", layer="0", in_gradient=False)


# In the backward pass.


def distance_to_itself(z):
    return jnp.sqrt(jnp.square(z - lax.stop_gradient(z)))


def safe_only_afterwards(z):
    return jnp.where(z > 0, jnp.sqrt(z), 0.0)


def test_gradient_that_is_not_finite():
    """The derivative of a root at zero is infinite, and times zero it is NaN."""
    report = diagnostics.signal_report(
        loss_with(lambda z: z + distance_to_itself(z)), kernels(3), batch()
    )
    assert np.isfinite(report.loss)
    assert_culprit(report, made="NaN", in_gradient=True)
    assert report.diagnosis.layers == ("1",)
    assert "in the backward pass" in report.verdict
    # From there on to the first layer the gradient is not finite.
    assert [bool(np.isfinite(layer.grad_rms)) for layer in report.layers] == [False, False, True]
    assert report.culprit.source.startswith(line_of(distance_to_itself))
    # The program has a root, and no denominator.
    assert "small epsilon under the root" in report.verdict


def test_nan_that_is_selected_away_too_late():
    """The loss is finite, but 0 times the derivative of the root is NaN."""
    report = diagnostics.signal_report(loss_with(safe_only_afterwards), kernels(), batch())
    assert np.isfinite(report.loss)
    assert_culprit(report, operation="sqrt", layer="1")
    assert "jnp.where before the root" in report.verdict
    assert report.culprit.source.startswith(line_of(safe_only_afterwards))


# Loops, branches and calls.


def test_layer_and_iteration_of_a_scan():
    """The third layer of a stack makes an output whose logarithm is not finite."""
    stack = jnp.stack([jnp.eye(WIDTH)] * 5).at[2].multiply(-1.0)

    def loss_fn(params, x):
        def step(x, kernel):
            return jnp.exp(jnp.log(x @ kernel)), None

        return jnp.mean(lax.scan(step, x, params["kernel"])[0])

    report = diagnostics.signal_report(loss_fn, {"kernel": stack}, jnp.abs(batch()) + 1)
    assert_culprit(report, operation="log", layer="kernel[2]")
    assert report.diagnosis.layers == ("kernel[2]",)
    assert report.culprit.source.endswith("step)")


def test_layer_and_iteration_of_a_reversed_scan():
    stack = jnp.stack([jnp.eye(WIDTH)] * 5).at[jnp.asarray([1, 3])].multiply(-1.0)

    def loss_fn(params, x):
        def step(x, kernel):
            return jnp.exp(jnp.log(x @ kernel)), None

        return jnp.mean(lax.scan(step, x, params["kernel"], reverse=True)[0])

    report = diagnostics.signal_report(loss_fn, {"kernel": stack}, jnp.abs(batch()) + 1)
    assert_culprit(report, operation="log", layer="kernel[3]")


def test_nested_scans():
    stack = jnp.stack([jnp.eye(WIDTH)] * 6).reshape(3, 2, WIDTH, WIDTH)
    stack = stack.at[1, 1].multiply(-1.0).at[2, 0].multiply(-1.0)

    def loss_fn(params, x):
        def inner(x, kernel):
            return jnp.exp(jnp.log(x @ kernel)), None

        def outer(x, kernels):
            return lax.scan(inner, x, kernels)[0], None

        return jnp.mean(lax.scan(outer, x, params["kernel"])[0])

    report = diagnostics.signal_report(loss_fn, {"kernel": stack}, jnp.abs(batch()) + 1)
    assert_culprit(report, operation="log", layer="kernel[1][1]")


CALLS = {
    "jit_of_checkpoint": lambda f: jax.jit(jax.checkpoint(f)),
    "vmap": jax.vmap,
    "cond": lambda f: lambda z: lax.cond(jnp.sum(z) < 1e9, f, jnp.tanh, z),
    "untaken_branch": lambda f: lambda z: f(lax.cond(jnp.sum(z) > 1e9, zero_by_zero, jnp.tanh, z)),
    "scan": lambda f: lambda z: lax.scan(lambda _, row: (None, f(row)), None, z)[1],
}


@pytest.mark.parametrize("call", CALLS)
def test_inside_of(call):
    function = CALLS[call](log_of_negative)
    report = diagnostics.signal_report(loss_with(function), kernels(), batch())
    assert_culprit(report, operation="log", layer="1")
    assert report.culprit.source.startswith(line_of(log_of_negative))


@jax.custom_vjp
def log_with_rule(z):
    return jnp.log(z)


log_with_rule.defvjp(lambda z: (jnp.log(z), z), lambda z, gradient: (gradient / (z * 0 + 1),))


def test_inside_of_a_function_with_its_own_derivative():
    report = diagnostics.signal_report(
        loss_with(lambda z: log_with_rule(-jnp.abs(z) - 1)), kernels(), batch()
    )
    assert_culprit(report, operation="log", layer="1", in_gradient=False)


# Arguments that are not finite.


def test_parameter_with_nan():
    params = {"first": kernels()[0], "second": kernels()[1].at[0, 0].set(jnp.nan)}

    def loss_fn(params, x):
        return jnp.mean(x @ params["first"] @ params["second"])

    report = diagnostics.signal_report(loss_fn, params, batch())
    assert report.kind == "nan"
    assert "second" in report.verdict
    assert "first" not in report.verdict
    assert report.culprit.operation == "argument"


def test_data_with_nan():
    report = diagnostics.signal_report(
        loss_with(jnp.tanh), kernels(), batch().at[1, 1].set(jnp.nan)
    )
    assert report.kind == "nan"
    assert "argument" in report.verdict


def test_data_with_infinity():
    report = diagnostics.signal_report(loss_with(jnp.sin), kernels(), batch().at[1, 1].set(jnp.inf))
    assert report.kind == "nan"
    assert "argument" in report.verdict


# Half precision overflows early.


def test_overflow_of_float16():
    def loss_fn(params, x):
        hidden = x
        for kernel in params:
            hidden = hidden @ kernel
        return jnp.mean((hidden - hidden).astype(jnp.float32))

    params = [jnp.full((WIDTH, WIDTH), 100.0, jnp.float16)] * 3
    report = diagnostics.signal_report(loss_fn, params, jnp.ones((2, WIDTH), jnp.float16))
    assert_culprit(report, made="NaN", operation="sub")
    assert report.culprit.infinity.operation == "dot_general"
    assert report.culprit.infinity.layer == "1"
    assert "wider dtype" in report.verdict


def test_infinite_mask_among_the_data_is_not_blamed_for_another_nan():
    """A mask in attention is infinite on purpose; the NaN comes from a logarithm."""

    def loss_fn(params, x, mask):
        scores = jax.nn.softmax(x @ params + mask)
        return jnp.mean(jnp.log(scores[:, 0] - 2.0))

    mask = jnp.zeros((4, 3)).at[:, 2].set(-jnp.inf)
    report = diagnostics.signal_report(loss_fn, jnp.ones((2, 3)), jnp.ones((4, 2)), mask)
    assert (report.culprit.operation, report.culprit.infinity) == ("log", None)
    assert "keep its argument away from zero" in report.verdict


def test_infinity_that_becomes_finite_again_is_not_the_cause():
    def loss_fn(params, x):
        share = 1 / (1 + jnp.exp(-100 * (x @ params)))
        return -jnp.mean(0 * jnp.log(share))

    report = diagnostics.signal_report(loss_fn, jnp.ones((4, 1)), jnp.full((2, 4), -1.0))
    assert (report.culprit.operation, report.culprit.infinity.operation) == ("mul", "log")
    assert "log_sigmoid" in report.verdict
