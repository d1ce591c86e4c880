"""The benchmark: everything runs, on tiny sizes, and nothing here depends on how long it takes."""

import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from matplotlib import image

from gradtx.bench import __main__ as command
from gradtx.bench import device, measure, methods, normalization, programs, report
from gradtx.bench.measure import Figure, Settings

MEASURES = {
    "trace": {"trace", "lower", "trace + lower"},
    "compile": {"compile", "temporary"},
    "step": {"step"},
    "eager": {"update"},
    "construction": {"build"},
    "import": {"import"},
    "normalization": {
        "forward",
        "forward + backward",
        "temporary, forward",
        "temporary, forward + backward",
    },
    "methods": {"compile", "step"},
    "grouped": {"trace", "lower", "trace + lower", "compile", "temporary", "step"},
    "grouped-matrices": {"compile", "temporary", "step"},
    "quantized": {"compile", "temporary", "state", "step"},
}
PEERS = {"normalization": "flax", "grouped-matrices": "ungrouped", "quantized": "float32"}


def test_a_quick_run_measures_every_section(tmp_path):
    # In a separate process, because it clears jax's caches.
    figures, picture = tmp_path / "deeper" / "figures.json", tmp_path / "ratios.png"
    arguments = ["--quick", "--cpu-time", "--json", str(figures), "--plot", str(picture)]
    done = subprocess.run(
        [sys.executable, "-m", "gradtx.bench", *arguments],
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(figures.read_text())
    for name in ("jax", "jaxlib", "optax"):
        assert f"{name} {found[name]}" in done.stdout
    assert f"{found['device']}, {found['cpus']} CPUs, cpu time" in done.stdout
    assert (found["clock"], found["repeats"]) == ("cpu", 1)
    measures = {}
    for row in found["figures"]:
        assert row.keys() == {*Figure.__dataclass_fields__, "ratio"}
        in_bytes = "temporary" in row["measure"] or row["measure"] == "state"
        assert row["unit"] == ("bytes" if in_bytes else "seconds")
        assert row["peer"] == PEERS.get(row["section"], "optax")
        if row["ours"]:
            assert row["ratio"] == row["theirs"] / row["ours"]
        measures.setdefault(row["section"], set()).add(row["measure"])
        assert row["case"] in done.stdout
    assert measures == MEASURES
    assert [row["case"] for row in found["figures"] if row["bound"]] == ["1 leaf of 4K"]
    assert image.imread(picture).std() > 0.05


def test_a_quick_run_on_the_device_compares_all_results(tmp_path):
    file = tmp_path / "device.json"
    done = subprocess.run(
        [sys.executable, "-m", "gradtx.bench", "--device", "--quick", "--json", str(file)],
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(file.read_text())
    assert found["bandwidth"] > 0
    assert "GB/s" in done.stdout
    cases = {}
    for row in found["runs"]:
        assert row.keys() == set(device.Run.__dataclass_fields__)
        assert row["case"] in done.stdout
        assert row["name"] in done.stdout
        assert row["difference"] <= row["tolerance"]
        cases.setdefault(row["case"], []).append(row)
    assert len(cases) == 8
    for case, (first, *others) in cases.items():
        assert first["difference"] == 0
        if case.startswith(("soap", "shampoo")):
            continue  # optax lacks them
        assert first["name"].startswith("optax")
        # They are different programs, and each has moved; the step of Lion has two values.
        assert case.startswith("lion") or all(row["difference"] > 0 for row in others)
    leaf = {row["name"]: row for row in cases["1 leaf of 4K"]}
    # Two moments, and a count; or a copy of the parameters besides.
    assert leaf["gradtx"]["state"] == 2 * 4 * 4096 + 4
    assert leaf["gradtx bfloat16, master weights"]["state"] == 3 * 4 * 4096 + 4


def test_results_that_differ_fail_with_their_names(monkeypatch, capsys):
    run = device.Run("1 leaf", "gradtx", 1.0, 0.5, 3, 0, None, 8, 1.0, 1.0, 0.3, 0.1)
    monkeypatch.setattr(device, "runs", lambda *arguments: iter([run]))
    with pytest.raises(SystemExit) as end:
        command.main(["--device", "--quick"])
    assert end.value.code == 1
    assert (
        "1 leaf, gradtx: differs by 0.3 of the movement, allowed are 0.1" in capsys.readouterr().out
    )


def test_kernels_are_counted_through_loops_and_fusions():
    def looped(x):
        return jax.lax.fori_loop(0, x.shape[0], lambda i, y: jnp.sin(y @ y), x)

    # A product and its sine, and no more for fewer of them.
    counts = []
    for function in (lambda x: jnp.sin(x @ x), looped):
        program = jax.jit(function).lower(jnp.ones((4, 4))).compile().as_text()
        counts.append(measure.launched(program))
    plain, loop = counts
    assert plain == 2
    # The loop adds its counter and its test, and may copy what it carries.
    assert plain < loop <= plain + 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeats", "0"], "argument --repeats: must be a whole number >= 1, got '0'"),
        (["--only", "steps"], "argument --only: invalid choice: 'steps' (choose from "),
        (["--plot", "a.txt"], "argument --plot: must end in .pdf, .png or .svg, got 'a.txt'"),
    ],
    ids=["repeats", "only", "plot"],
)
def test_wrong_arguments_are_refused_before_anything_is_measured(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"gradtx\[diagnostics\]"):
        command.main(["--plot", "ratios.png"])
    assert capsys.readouterr().out == ""


def test_what_is_slow_is_measured_at_least_five_times():
    assert Settings(3).slow_repeats == 5
    assert Settings(30).slow_repeats == 10
    assert Settings(1, quick=True).slow_repeats == 1


def test_tasks_take_turns_and_give_their_medians():
    order = []
    numbers = {"a": iter([1.0, 9.0, 2.0]), "b": iter([5.0, 3.0, 4.0])}

    def task(name):
        order.append(name)
        return {"step": next(numbers[name])}

    tasks = {name: lambda name=name: task(name) for name in "ab"}
    assert measure.in_turn(tasks, 3) == {"a": {"step": 2.0}, "b": {"step": 4.0}}
    assert "".join(order) == "abbaab"


def test_a_program_continues_from_what_it_returned():
    def step(params, count, gradient):
        return params + gradient, count + 1

    arguments = (jnp.zeros(3), jnp.int32(0), jnp.ones(3))
    subject = measure.Subject(Settings(1, quick=True), step, arguments, 2)
    subject.warm_up(4)
    assert subject.step().keys() == {"step"}
    params, count = subject.carried
    assert count == 4 + 4 + 4
    assert params.tolist() == [12.0] * 3


def test_trees_have_the_sizes_that_their_names_say():
    trees = programs.trees()
    sizes = {name: [leaf.size for leaf in jax.tree.leaves(tree)] for name, tree in trees.items()}
    assert sizes["1 leaf of 16M"] == [2**24]
    assert sizes["500 leaves of 32K"] == [2**15] * 500
    assert sizes["300 leaves of 64"] == [64] * 300
    assert sizes["1,000 leaves of 64"] == [64] * 1000
    gpt = sizes["GPT-like, 12 layers, 10M"]
    assert len(gpt) == 4 + 12 * 12
    assert 9.8e6 < sum(gpt) < 10.2e6


@pytest.mark.parametrize("method", [*methods.names(), methods.ACCUMULATED])
def test_each_method_is_built_by_both_libraries(method):
    params = jnp.ones((2, 2))
    for library in programs.LIBRARIES:
        tx = methods.transformation(library, method)
        assert jax.tree.structure(tx.init(params)).num_leaves >= 0


def test_methods_are_those_that_optax_has_too():
    names = methods.names()
    assert {"adamw", "muon", "lamb", "prodigy", "dpsgd"} <= {*names}
    assert {"soap", "lookahead", "scale_by_adam"}.isdisjoint(names)


def test_without_flax_a_notice_says_so(monkeypatch):
    assert normalization.missing() is None
    monkeypatch.setattr(normalization.importlib.util, "find_spec", lambda name: None)
    assert normalization.missing() == "normalization: skipped, because flax is not installed"


FIGURES = [
    Figure("step", "1 leaf", "step", 0.03, 0.02, bound=0.01),
    Figure("step", "2 leaves", "step", 1.5, 2.0),
    Figure("compile", "1 leaf", "compile", 2e-4, 4e-4),
    Figure("compile", "1 leaf", "temporary", 1e6, 0.0, unit="bytes"),
    Figure("compile", "2 leaves", "temporary", 2e5, 8e6, unit="bytes"),
    Figure("compile", "3 leaves", "temporary", 8.0, 80.0, unit="bytes"),
]


def test_a_table_shows_units_ratios_and_the_share_of_the_bound():
    assert [line.split() for line in report.table(FIGURES[:2])] == [
        ["optax", "gradtx", "ratio", "bound", "/", "gradtx"],
        ["1", "leaf", "step", "30.0", "ms", "20.0", "ms", "1.50", "0.50"],
        ["2", "leaves", "step", "1.50", "s", "2.00", "s", "0.75"],
    ]
    assert [line.split() for line in report.table(FIGURES[2:4])] == [
        ["optax", "gradtx", "ratio"],
        ["1", "leaf", "compile", "200", "µs", "400", "µs", "0.50"],
        ["temporary", "1,000,000", "bytes", "0", "bytes"],
    ]


def test_losses_are_listed_from_the_worst_on():
    assert list(report.losses(FIGURES)) == [
        "0.025  compile: 2 leaves, temporary",
        "0.50  compile: 1 leaf, compile",
        "0.75  step: 2 leaves, step",
    ]


def test_the_chart_has_a_panel_for_each_section_and_a_bar_for_each_time():
    drawing = report.chart(FIGURES, "a machine")
    bars = [[bar.get_width() for bar in axes.patches] for axes in drawing.axes]
    assert bars == [[pytest.approx(0.5), pytest.approx(-0.25)], [pytest.approx(-0.5)]]
    for axes in drawing.axes:
        assert axes.get_xscale() == "log"
        assert math.isclose(axes.lines[0].get_xdata()[0], 1.0)
    labels = [label.get_text() for label in drawing.axes[0].get_yticklabels()]
    assert labels == ["1 leaf  step", "2 leaves  step"]


def test_the_chart_of_many_figures_has_two_columns():
    many = [Figure("methods", f"method {i}", "step", 1.0, 1.0 + i) for i in range(40)]
    left, middle, right = report.chart([*FIGURES, *many], "a machine").axes
    assert left.get_position().x0 == middle.get_position().x0 < right.get_position().x0
