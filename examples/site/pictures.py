"""The pictures of the README and of the site's first page, each from a run that happens here.

    python -m examples.site.pictures

A picture is only written if what it shows is so: each function asserts what its picture promises.
"""

import io
import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from matplotlib.figure import Figure
from PIL import Image

import gradtx
from examples import commands
from examples.digits import load_digits
from examples.experiments.experiment import COLORS
from examples.experiments.networks import apply_dense, cross_entropy, init_dense, shuffled_batches
from gradtx import diagnostics, initializers
from gradtx.testing import survey

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "tests" / "testing" / "survey.json"
BLACK, BLUE, VERMILION, GREEN, *_, SKY = COLORS
PIXELS_PER_INCH = 120
WIDTH = 7.6


def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The mean squared error, if `y` has a second axis, as the predictions have."""
    predictions = jax.nn.relu(x @ params["hidden"]) @ params["head"]
    return jnp.mean((predictions - y) ** 2)


def check_up() -> Figure:
    """A training program with a fault that raises no error, and what is said about it."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (256, 8))
    y = x[:, 0] + 0.5 * jnp.sin(3 * x[:, 1])
    params = {
        "hidden": initializers.he_normal()(keys[1], (8, 64)),
        "head": initializers.lecun_normal()(keys[2], (64, 1)),
    }

    def run(targets: jax.Array) -> np.ndarray:
        def gradient(params: Any, _: jax.Array) -> Any:
            return jax.grad(loss_fn)(params, x, targets)

        return _train(gradtx.adam(0.01), params, gradient, lambda p: loss_fn(p, x, y[:, None]))

    faulty, cured = run(y), run(y[:, None])
    finding = diagnostics.check_up(loss_fn, params, x, y).findings[0]
    diagnostics.check_up(loss_fn, params, x, y[:, None]).assert_healthy()
    assert finding.kind == "broadcast_difference"
    assert cured[-1] < 0.1 * faulty[-1]

    figure = _figure(2.6)
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    left.semilogy(faulty, color=VERMILION, label="y of shape (256,)")
    left.semilogy(cured, color=BLUE, label="cured: y[:, None]")
    left.set(xlabel="step", ylabel="mean squared error", title="A loss that raises no error")
    left.legend(frameon=False)
    said = textwrap.dedent(str(finding)).splitlines()
    said = [textwrap.fill(line, 52, subsequent_indent="    ") for line in said]
    lines = ["> diagnostics.check_up(loss_fn, params, x, y)", "", *said]
    right.text(0, 1, "\n".join(lines), family="monospace", fontsize=7.5, va="top")
    right.set_axis_off()
    return figure


def half_precision() -> Figure:
    """Networks with parameters in bfloat16 learn the digits with either library."""
    data = jax.tree.map(jnp.asarray, load_digits().train)
    steps = 800
    order = shuffled_batches(jax.random.key(1), len(data["label"]), 64, steps)
    start = init_dense(jax.random.key(0), (64, 128, 128, 10))

    def loss_of(layers: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        # Only the parameters and their gradients are in half precision.
        wide: Any = optax.tree.cast(layers, jnp.float32)
        return cross_entropy(apply_dense(wide, images), labels)

    def loss_of_all(layers: Any) -> jax.Array:
        return loss_of(layers, data["image"], data["label"])

    def gradient(layers: Any, step: jax.Array) -> Any:
        chosen = order[step]
        return jax.grad(loss_of)(layers, data["image"][chosen], data["label"][chosen])

    schedule = optax.cosine_decay_schedule(1e-3, steps)
    adamw = gradtx.adamw(schedule)
    ways = {
        "bfloat16, optax.adamw": (jnp.bfloat16, optax.adamw(schedule), VERMILION, "-"),
        "bfloat16, gradtx.adamw": (jnp.bfloat16, adamw, SKY, "-"),
        "bfloat16, with_kahan_sum(adamw)": (jnp.bfloat16, gradtx.with_kahan_sum(adamw), BLUE, "-"),
        "float32": (jnp.float32, adamw, BLACK, ":"),
    }
    figure = _figure(2.9)
    axis = figure.subplots()
    last = {}
    for name, (dtype, tx, color, style) in ways.items():
        loss = _train(tx, optax.tree.cast(start, dtype), gradient, loss_of_all, steps)
        last[name] = loss[-1]
        axis.semilogy(loss, color=color, linestyle=style, label=f"{name}: {loss[-1]:.4f}")
    theirs, plain, kahan, float32 = last.values()
    assert theirs > plain > kahan, last
    assert kahan < 1.2 * float32, last
    axis.set(xlabel="step", ylabel="loss on all images", title="A network that learns the digits")
    axis.legend(frameon=False, title="loss at the end", alignment="left")
    return figure


def explain() -> Figure:
    """What an optimizer with several groups will do to each leaf."""
    params = {
        "tokens": jax.ShapeDtypeStruct((1000, 64), jnp.float32),
        "layers": {
            "attention": jax.ShapeDtypeStruct((6, 64, 256), jnp.float32),
            "mlp": jax.ShapeDtypeStruct((6, 64, 256), jnp.float32),
            "scale": jax.ShapeDtypeStruct((6, 64), jnp.float32),
        },
        "head": {
            "kernel": jax.ShapeDtypeStruct((64, 1000), jnp.float32),
            "bias": jax.ShapeDtypeStruct((1000,), jnp.float32),
        },
    }
    groups = gradtx.partition(
        {"hidden": gradtx.muon(0.02), "rest": gradtx.adamw(1e-3, decay="matrices")},
        gradtx.select.groups({"hidden": "attention|mlp"}, rest="rest"),
    )
    tx = gradtx.selective_transform(groups, freeze_mask=gradtx.select("tokens"))
    plan = gradtx.explain(tx, params)
    shown = str(plan).splitlines()
    assert {row.path for row in plan.rows if row.kind == "trained"} >= {"layers/mlp", "head/bias"}
    longest = max(map(len, shown))
    figure = _figure(0.145 * (len(shown) + 2))
    lines = ["> print(gradtx.explain(tx, params))", "", *shown]
    figure.text(0.01, 0.98, "\n".join(lines), family="monospace", fontsize=800 / longest, va="top")
    return figure


def contract() -> Figure:
    """How many factories of optax, and of gradtx's of the same names, keep each clause."""
    results = json.loads(RESULTS.read_text())
    rows = [row.strip("| ").split(" | ") for row in survey.table(results).splitlines()[2:]]
    names = [name.strip("`").replace("_", " ") for name, *_ in rows]
    kept = {
        library: np.array([int(row[column]) for row in rows])
        for library, column in (("optax", 2), ("gradtx", 3))
    }
    assert (kept["gradtx"] >= kept["optax"]).all()
    figure = _figure(3.2)
    axis = figure.subplots()
    places = np.arange(len(rows))
    axis.vlines(places, kept["optax"], kept["gradtx"], color="lightgray", linewidth=3)
    for (library, number), color in zip(kept.items(), (VERMILION, BLUE), strict=True):
        axis.plot(places, number, "o", color=color, markersize=4, label=library)
    border = [level for _, level, *_ in rows].index("promise") - 0.5
    axis.axvline(border, color="black", linewidth=0.8)
    for x, text, side in (
        (border - 0.3, "what every transformation must keep", "right"),
        (border + 0.3, "what gradtx promises", "left"),
    ):
        axis.text(x, 111, text, va="bottom", ha=side, fontsize=8)
    axis.set_xticks(places, names, rotation=90, fontsize=7)
    axis.set(ylim=(0, 110), ylabel=f"of {len(results['optax'])} factories")
    axis.legend(frameon=False, loc="lower left")
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "check_up": check_up,
    "half_precision": half_precision,
    "explain": explain,
    "contract": contract,
}


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), layout="constrained")


def _train(
    tx: optax.GradientTransformation,
    params: Any,
    gradient: Callable[[Any, jax.Array], Any],
    measure: Callable[[Any], jax.Array],
    steps: int = 300,
) -> np.ndarray:
    """What is measured before each step."""

    def one(carry: Any, step: jax.Array) -> Any:
        params, state = carry
        updates, state = tx.update(gradient(params, step), state, params)
        return (optax.apply_updates(params, updates), state), measure(params)

    run = jax.jit(lambda: jax.lax.scan(one, (params, tx.init(params)), jnp.arange(steps))[1])
    return np.asarray(run())


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the pictures that are named on the command line, or all."""
    parser = commands.Parser(description="Draw the pictures of the README.")
    parser.add_argument(
        "names", nargs="*", type=commands.one_of("picture", PICTURES), help="which; all if none"
    )
    parser.add_argument("--out", type=Path, default=HERE / "static", help="the folder")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or PICTURES:
        with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 8}):
            buffer = io.BytesIO()
            PICTURES[name]().savefig(buffer, dpi=PIXELS_PER_INCH)
        path = arguments.out / f"{name}.png"
        # Few colors make a small file.
        Image.open(buffer).convert("RGB").quantize(64).save(path, optimize=True)
        print(f"{path}, {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
