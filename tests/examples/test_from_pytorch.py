"""The rows of the guide for users of PyTorch: both columns give the same, or differ as it says.

The right column is evaluated here, and compared with what the left one gave in PyTorch, which
`make_from_pytorch.py` stored. A row that was not stored fails.
"""

import ast
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import initializers, normalization
from tests.examples.from_pytorch import DIFFERENT, GUIDE, Row, rows, stored

ROWS, STORED = rows(), stored()
INPUTS = STORED["inputs"]
NAMES = {
    "jax": jax,
    "jnp": jnp,
    "gradtx": gradtx,
    "initializers": initializers,
    "normalization": normalization,
}
# Relative to the largest number, or change of a step, unless a row says something else. Both
# libraries compute in float64; PyTorch's 1 - 0.999^t loses three digits, and steps add up.
TOLERANCE = 1e-12


@pytest.fixture(autouse=True)
def as_in_a_notebook():
    """The settings of a reader, except for the precision."""
    with (
        jax.enable_x64(True),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
    ):
        yield


def relative(ours: Any, theirs: np.ndarray, size: Any = None) -> float:
    """The largest difference over the largest number, or over `size`."""
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape
    largest = np.max(np.abs(theirs)) if size is None else size
    return float(np.max(np.abs(ours - theirs)) / (largest or 1.0))


def gradients_at(params: dict[str, Any], noise: dict[str, Any], size: Any) -> dict[str, Any]:
    return jax.tree.map(lambda p, e: size * (e + jnp.tanh(p)), params, noise)


def trajectory(row: Row, read: Callable[[Any, Any], Any]) -> float:
    """Compare what `read` finds after each step, in the layout of JAX."""
    tx = eval(row.gradtx, NAMES | {"tx": gradtx.sgd(0.1)})
    found = STORED[row.torch]
    # An optimizer of matrices is given nothing else in PyTorch.
    leaves = ["weight"] if "Muon([weight]" in row.torch else ["weight", "bias"]
    start = {name: jnp.asarray(INPUTS[name].T) for name in leaves}
    noise = {name: jnp.asarray(np.moveaxis(INPUTS[f"{name}/noise"].T, -1, 0)) for name in leaves}

    @jax.jit
    def run(params, noise, sizes):
        def step(carry, inputs):
            params, state = carry
            updates, state = tx.update(gradients_at(params, *inputs), state, params)
            params = gradtx.apply_updates(params, updates)
            return (params, state), read(params, state)

        return jax.lax.scan(step, (params, tx.init(params)), (noise, sizes))[1]

    ours = run(start, noise, INPUTS["size"])
    theirs = {name: np.moveaxis(found[name].T, -1, 0) for name in leaves}
    before = {name: INPUTS[name].T[None] for name in leaves}
    steps = [np.diff(theirs[name], axis=0, prepend=before[name]) for name in leaves]
    size = max(np.max(np.abs(step)) for step in steps)
    return max(relative(ours[name], theirs[name], size) for name in leaves)


def parameters(row: Row) -> float:
    return trajectory(row, lambda params, state: params)


def average(row: Row) -> float:
    return trajectory(row, lambda params, state: gradtx.averaged_params(state))


def schedule(row: Row) -> float:
    found = STORED[row.torch]
    function = eval(row.gradtx, NAMES | {"tx": gradtx.sgd(0.1)})
    if "rates" in found:
        # A function of an int32 is a float32 where JAX does not see a float first.
        steps = jnp.arange(found["rates"].size, dtype=jnp.float64)
        return relative(jax.jit(jax.vmap(function))(steps), found["rates"])
    rates, state = [], function.init(jnp.zeros(()))
    for loss in INPUTS["losses"]:
        update, state = function.update(jnp.ones(()), state, jnp.zeros(()), value=loss)
        rates.append(-update)
    return relative(rates, found["plateau"])


def initializer(row: Row) -> float:
    """The difference, or that of two distributions.

    A difference of distributions as large as chance allows counts as `TOLERANCE`.
    """
    found = STORED[row.torch]
    shape = tuple(int(size) for size in found["shape"])
    axes = (2, 3, 1, 0) if len(shape) == 4 else tuple(reversed(range(len(shape))))
    if "in_axis=1, out_axis=0" in row.gradtx:
        axes = tuple(range(len(shape)))
    function = eval(row.gradtx, NAMES)
    ours = np.asarray(function(jax.random.key(0), tuple(shape[axis] for axis in axes)))
    if "values" in found:
        return relative(ours, np.transpose(found["values"], axes))
    # Five standard deviations of the difference of two samples.
    chance = 5 / np.sqrt(ours.size)
    below = np.mean(ours.ravel() < found["quantiles"][:, None], axis=1)
    ratios = [
        np.max(np.abs(below - found["probabilities"])) / (chance / np.sqrt(2)),
        abs(ours.std() / found["deviation"] - 1) / chance,
    ]
    extremes = np.array([ours.min(), ours.max()])
    spread = np.ptp(found["extremes"])
    # Numbers with a bound come close to it; normal ones do not end at the same place.
    bounded = spread < 5 * found["deviation"]
    ratios.append(
        np.max(np.abs(extremes - found["extremes"])) / spread / (50 / ours.size if bounded else 0.1)
    )
    largest, smallest = found.get("singular", (1, 0))
    if largest - smallest < 1e-10 * largest:
        singular = np.linalg.svd(ours, compute_uv=False)
        ratios.append(np.max(np.abs(singular / largest - 1)) / TOLERANCE)
    return float(max(ratios)) * TOLERANCE


def layer(row: Row) -> float:
    """The outputs, gradients and running statistics of one batch after the other."""
    found = STORED[row.torch]
    shape = tuple(int(size) for size in found["features"])
    size = int(np.prod(shape))
    params = [INPUTS[f"{name}/{size}"].reshape(shape) for name in ("scale", "shift")]
    stats = normalization.BatchStats(jnp.asarray(INPUTS["mean"]), jnp.asarray(INPUTS["var"]))
    code = compile(row.gradtx, row.gradtx, "eval")

    @jax.jit
    def both(x, cotangent, stats, *params):
        def forward(x, scale, bias):
            names = {"x": x, "scale": scale, "bias": bias, "stats": stats}
            y = eval(code, NAMES | names)
            return y if isinstance(y, tuple) else (y, stats)

        y, pullback, stats_after = jax.vjp(forward, x, *params, has_aux=True)
        gradients = {f"gradient_{i}": g for i, g in enumerate(pullback(cotangent))}
        return {"y": y, **gradients}, stats_after

    differences = []
    for i, (x, cotangent) in enumerate(zip(INPUTS["x"], INPUTS["cotangent"], strict=True)):
        ours, stats = both(x, cotangent, stats, *params)
        ours |= {"running_mean": stats.mean, "running_var": stats.var}
        compared = found.keys() & ours.keys()
        assert {"y", "gradient_0", "gradient_1"} <= compared == found.keys() - {"kind", "features"}
        differences += [relative(ours[name], found[name][i]) for name in compared]
    return max(differences)


def number(row: Row) -> float:
    params = {name: INPUTS[name] for name in ("weight", "bias")}
    noise = {name: INPUTS[f"{name}/noise"][0] for name in params}
    gradients = gradients_at(params, noise, INPUTS["size"][0])
    ours = eval(row.gradtx, NAMES | {"gradients": gradients})
    return relative(ours, STORED[row.torch]["number"])


DIFFERENCE: dict[str, Callable[[Row], float]] = {
    "optimizer": parameters,
    "clipping": parameters,
    "accumulation": parameters,
    "average": average,
    "schedule": schedule,
    "initializer": initializer,
    "normalization": layer,
    "number": number,
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.torch}, {row.gradtx}")
def test_a_row(row):
    difference = DIFFERENCE[STORED[row.torch]["kind"]](row)
    stated = re.search(r"up to (\de-\d+)", row.note)
    allowed = float(stated[1]) if stated else TOLERANCE
    if row.section == DIFFERENT:
        assert difference > 2 * TOLERANCE
    else:
        assert difference < allowed
    # What is said to differ does, and not by much less than that.
    if stated:
        assert difference > 1e-3 * allowed


def test_every_stored_row_is_in_the_guide():
    assert {row.torch for row in ROWS} == STORED.keys() - {
        "torch_version",
        "inputs",
        "programs",
        "names",
    }


@pytest.mark.parametrize("module", STORED["names"])
def test_every_name_of_pytorch_is_in_the_guide(module):
    # The tables have one of those that differ in the number of dimensions, or in laziness.
    names = {re.sub(r"^Lazy|(?<=[a-z])[123]d$", "", name) for name in STORED["names"][module]}
    assert [name for name in sorted(names) if name not in GUIDE.read_text()] == []


@pytest.mark.parametrize("name", STORED["programs"])
def test_the_numbers_of_a_program(name):
    printed = re.search(rf"^{name} = (\[?\d.*)$", GUIDE.read_text(), re.MULTILINE)
    assert printed
    theirs = STORED["programs"][name]
    np.testing.assert_array_equal(ast.literal_eval(printed[1]), np.round(theirs, 6))
