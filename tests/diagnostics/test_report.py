"""Table, picture and page of a `SignalReport`: complete, escaped, labelled."""

import builtins
import dataclasses
import functools
import html.parser
import importlib
import io
import re
import sys

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

from gradtx import diagnostics


class Columns(html.parser.HTMLParser):
    """The cells of the tables of a page, the text outside of them, and the tags."""

    def __init__(self):
        super().__init__()
        self.rows, self.tags, self.text, self.open = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        else:
            self.text.append(data)


def parsed(page):
    parser = Columns()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


LONG_NAME = "encoder/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"
NASTY_NAME = "<b>&'\"[red]kernel[/red]"


@functools.cache
def report():
    """A relu layer that is half dead, with names that a page or a terminal might misinterpret."""
    rng = np.random.default_rng(0)
    params = {
        "A": jnp.asarray(rng.standard_normal((3, 8)), jnp.float32),
        "B": {LONG_NAME: jnp.asarray(rng.standard_normal((8, 6)), jnp.float32)},
        "C": {NASTY_NAME: jnp.asarray(rng.standard_normal((6, 2)), jnp.float32)},
    }

    def loss_fn(params, x):
        hidden = jax.nn.relu(x @ params["A"] - jnp.asarray([0.0, 99.0] * 4)[None])
        return jnp.mean((jnp.tanh(hidden @ params["B"][LONG_NAME]) @ params["C"][NASTY_NAME]) ** 2)

    x = jnp.asarray(rng.standard_normal((16, 3)), jnp.float32)
    return diagnostics.signal_report(loss_fn, params, x)


def deep_report(number):
    layers = [
        dataclasses.replace(report().layers[0], name=f"layer{i}/kernel", depth=i + 1)
        for i in range(number)
    ]
    return diagnostics.SignalReport(loss=1.0, layers=tuple(layers))


def test_table_has_every_layer_in_full():
    text = report().table()
    for name in ("A", f"B/{LONG_NAME}", f"C/{NASTY_NAME}"):
        assert name in text
    assert "…" not in text
    lines = [re.split(r"\s*[│┃]\s*", line.strip("│┃ ")) for line in text.splitlines()]
    rows = {cells[0]: cells for cells in lines if len(cells) > 3}
    headings = rows.pop("layer")
    assert len(rows) == 3
    assert list(rows) == [layer.name for layer in report().layers]
    for layer in report().layers:
        row = dict(zip(headings, rows[layer.name], strict=True))
        assert row["shape"] == "×".join(map(str, layer.shape))
        assert float(row["rms"]) == pytest.approx(layer.rms, rel=0.06)
        assert float(row["mean"]) == pytest.approx(layer.mean, rel=0.06)
        assert float(row["gradient rms"]) == pytest.approx(layer.grad_rms, rel=0.06)
        assert float(row["weight rms"]) == pytest.approx(layer.weight_rms, rel=0.06)
        assert float(row["weight gradient rms"]) == pytest.approx(layer.weight_grad_rms, rel=0.06)
        for heading, share in (
            ("zero", layer.zero_fraction),
            ("dead", layer.dead_fraction),
            ("saturated", layer.saturated_fraction),
        ):
            assert float(row[heading].rstrip("%")) == pytest.approx(100 * share, abs=0.51)
    assert rows["A"][headings.index("nonlinearity")] == "relu"
    assert f"{report().loss:.4g}" in text


def test_table_of_many_layers_has_a_line_for_each():
    text = deep_report(120).table()
    assert all(f"layer{i}/kernel" in text for i in range(120))


def test_table_does_not_depend_on_the_terminal(monkeypatch):
    expected = report().table()
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    assert report().table() == expected
    assert "\x1b" not in expected


def test_page_is_escaped_and_complete():
    page = report()._repr_html_()
    parser = parsed(page)
    assert set(parser.tags) <= {"p", "table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert "<b>" not in page
    headings, *rows = parser.rows
    assert [row[0] for row in rows] == [layer.name for layer in report().layers]
    assert all(len(row) == len(headings) for row in rows)
    assert any(report().verdict in text for text in parser.text)


def test_page_marks_the_layers_of_the_verdict():
    assert report().diagnosis.kind in ("dead", "saturated", "healthy", "exploding", "vanishing")
    sick = dataclasses.replace(
        report(),
        layers=tuple(
            dataclasses.replace(layer, dead_fraction=1.0 if layer.name == "A" else 0.0)
            for layer in report().layers
        ),
    )
    assert sick.diagnosis.layers == ("A",)
    rows = re.findall(r"<tr[^>]*>.*?</tr>", sick._repr_html_(), re.S)
    marked = [row for row in rows if re.match(r"<tr[^>]*bold", row)]
    assert len(marked) == 1
    assert "<td>A</td>" in marked[0]


def test_verdict_with_a_nasty_name_is_escaped():
    layers = tuple(
        dataclasses.replace(layer, dead_fraction=1.0, is_hidden=True) for layer in report().layers
    )
    sick = dataclasses.replace(report(), layers=layers)
    assert NASTY_NAME in sick.verdict
    parser = parsed(sick._repr_html_())
    assert "b" not in parser.tags
    assert any(NASTY_NAME in text for text in parser.text)


def test_text_has_the_verdict():
    text = str(report())
    assert report().verdict in text
    assert "3 layers" in text
    assert f"{report().loss:.4g}" in text


def test_picture_is_labelled():
    figure = report().plot()
    assert isinstance(figure, matplotlib.figure.Figure)
    assert len(figure.axes) == 3
    assert report().kind in figure.get_suptitle().lower()
    for axes in figure.axes:
        assert axes.get_title()
        assert axes.get_ylabel()
        texts = [text.get_text() for text in axes.get_legend().get_texts()]
        assert len(texts) >= 2
        assert all(texts)
    assert "layer" in figure.axes[-1].get_xlabel()
    assert "%" in figure.axes[-1].get_ylabel()
    names = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert names == [layer.name for layer in report().layers]


def test_picture_shows_the_numbers():
    signal, gradient, idle = report().plot().axes
    curves = {line.get_label(): np.asarray(line.get_ydata()) for line in signal.lines}
    curves |= {line.get_label(): np.asarray(line.get_ydata()) for line in gradient.lines}
    for label, attribute in (
        ("input", "input_rms"),
        ("after the nonlinearity", "rms"),
        ("at the layer's output", "grad_rms"),
        ("at its weights", "weight_grad_rms"),
    ):
        values = [getattr(layer, attribute) for layer in report().layers]
        np.testing.assert_allclose(curves[label], values)
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in idle.containers}
    for label in ("zero", "dead", "saturated"):
        shares = [100 * getattr(layer, f"{label}_fraction") for layer in report().layers]
        np.testing.assert_allclose(heights[label], shares)


CASES = {
    "one_layer": lambda: deep_report(1),
    "many_layers": lambda: deep_report(50),
    "nan": lambda: dataclasses.replace(
        report(),
        loss=float("nan"),
        layers=tuple(
            dataclasses.replace(layer, rms=float("nan"), grad_rms=float("nan"))
            for layer in report().layers
        ),
    ),
    "infinite": lambda: dataclasses.replace(
        report(),
        layers=tuple(dataclasses.replace(layer, rms=float("inf")) for layer in report().layers),
    ),
    "all_zero": lambda: dataclasses.replace(
        report(),
        layers=tuple(
            dataclasses.replace(layer, rms=0.0, input_rms=0.0, grad_rms=0.0, weight_grad_rms=0.0)
            for layer in report().layers
        ),
    ),
    "dollar": lambda: diagnostics.SignalReport(
        loss=1.0, layers=(dataclasses.replace(report().layers[0], name="$\\frac{w$_%"),)
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_odd_reports_are_plotted_and_printed(case):
    odd = CASES[case]()
    picture = io.BytesIO()
    odd.plot().savefig(picture, format="png", dpi=20)
    assert picture.getvalue().startswith(b"\x89PNG")
    assert all(layer.name in odd.table() for layer in odd.layers)
    assert len(parsed(odd._repr_html_()).rows) == len(odd.layers) + 1
    assert odd.verdict


@pytest.mark.parametrize(("what", "package"), [("table", "rich"), ("plot", "matplotlib")])
def test_missing_package_is_named_with_its_extra(monkeypatch, what, package):
    for name in list(sys.modules):
        if name.partition(".")[0] == package:
            monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def refuse(name, *arguments, **keywords):
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    def refuse_module(name, *arguments):
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real_import_module(name, *arguments)

    real_import_module = importlib.import_module
    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr(importlib, "import_module", refuse_module)
    with pytest.raises(ImportError, match=rf"{package}.*gradtx\[diagnostics\]"):
        getattr(report(), what)()


def test_nothing_but_jax_is_needed_for_the_verdict(monkeypatch):
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(name))
    assert report().verdict
    assert report()._repr_html_()
    assert str(report())


@pytest.mark.parametrize("ratio", [1.0, 1.02, 3.0, 30.0, 1e3, 1e9])
def test_axes_of_any_length_have_numbers_to_read(ratio):
    layer = report().layers[0]
    layers = tuple(
        dataclasses.replace(layer, rms=rms, input_rms=rms, grad_rms=rms, weight_grad_rms=rms)
        for rms in np.geomspace(0.1, 0.1 * ratio, 5)
    )
    figure = diagnostics.SignalReport(loss=1.0, layers=layers).plot()
    figure.draw_without_rendering()
    for axes in figure.axes[:2]:
        low, high = axes.get_ylim()
        labels = [
            label.get_text()
            for label in axes.get_yticklabels()
            if low <= label.get_position()[1] <= high and label.get_text()
        ]
        assert len(labels) >= 3
        assert len(set(labels)) == len(labels)
        if ratio <= 100:
            assert all(re.fullmatch(r"[\d.e+-]+", label) for label in labels)


def test_line_of_the_inputs_is_seen_where_it_equals_the_other():
    signal = report().plot().axes[0]
    after, before = (line for line in signal.lines if line.get_linestyle() != "None")
    assert (after.get_label(), before.get_label()) == ("after the nonlinearity", "input")
    # It lies above, with larger markers that are open and with gaps between its dashes.
    assert before.get_zorder() >= after.get_zorder()
    assert before.get_markersize() > after.get_markersize()
    assert before.get_fillstyle() == "none"
    assert before.get_linestyle() == "--"


def test_plotting_leaves_no_figure_open():
    before = "matplotlib.pyplot" in sys.modules
    report().plot()
    assert ("matplotlib.pyplot" in sys.modules) is before


def test_report_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        report().loss = 0.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        report().layers[0].rms = 0.0
