"""`check_up` and what it returns: sorted and folded findings, as text, HTML and JSON."""

import importlib
import json
from dataclasses import replace
from html.parser import HTMLParser

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gradtx import diagnostics
from gradtx.diagnostics.checkup.finding import Finding, folded
from gradtx.diagnostics.checkup.subject import Examination, subject_of

X = jnp.asarray(np.random.default_rng(0).standard_normal((16, 4)), jnp.float32)
LABELS = np.arange(16) % 3


def constant_loss(params, x):
    hidden = jnp.tanh(x @ params["hidden"])
    return jnp.mean((hidden @ params["head"] - x[:, 0]) ** 2)


SICK = {"hidden": jnp.full((4, 8), 0.1), "head": jnp.ones(8), "old<": jnp.ones(3)}


@pytest.fixture(scope="module")
def checked():
    return diagnostics.check_up(constant_loss, SICK, X)


def test_the_worst_comes_first(checked):
    assert [(one.severity, one.kind) for one in checked.findings] == [
        ("error", "identical_units"),
        ("warning", "unused"),
    ]
    assert {one.examination for one in checked.findings} == {"parameters"}
    assert not checked.is_healthy
    assert [one.kind for one in checked.at_least("error")] == ["identical_units"]
    assert checked.loss == pytest.approx(float(constant_loss(SICK, X)))
    assert [layer.name for layer in checked.signal.layers] == ["hidden", "head"]


def test_text_has_all_that_is_needed(checked):
    text = str(checked)
    assert text.startswith("CheckUp: 1 error, 1 warning, loss ")
    for one in checked.findings:
        assert all(part in text for part in (one.kind, one.place, one.sentence, one.cure))


def test_json_is_read_back(checked):
    content = json.loads(checked.to_json())
    assert content["loss"] == checked.loss
    assert [one["kind"] for one in content["findings"]] == ["identical_units", "unused"]
    assert content["findings"][1]["evidence"] == {"parameters": ["old<"], "elements": 3}


def test_json_of_what_json_has_no_numbers_for():
    finding = diagnostics.Finding(
        "nan", "error", "", "", evidence={"largest": np.float32(np.inf), "shape": (np.int64(2),)}
    )
    content = json.loads(diagnostics.CheckUp(float("nan"), (finding,)).to_json())
    assert content["loss"] == "nan"
    assert content["findings"][0]["evidence"] == {"largest": "inf", "shape": [2]}


def test_html_is_escaped(checked):
    class Text(HTMLParser):
        def __init__(self):
            super().__init__()
            self.found = []

        def handle_data(self, data):
            self.found.append(data)

    parser = Text()
    parser.feed(checked._repr_html_())
    text = "".join(parser.found)
    assert "old<" in text
    assert all(one.sentence in text for one in checked.findings)


def test_assertion_names_the_worst(checked):
    with pytest.raises(AssertionError, match=r"(?s)2 faults.*identical_units.*unused"):
        checked.assert_healthy()
    checked.assert_healthy(ignore=("identical_units", "unused"))
    with pytest.raises(AssertionError, match="found 1 fault:"):
        checked.assert_healthy(severity="error")
    with pytest.raises(ValueError, match="severity must be one of"):
        checked.assert_healthy(severity="fatal")
    with pytest.raises(ValueError, match="ignore must hold several kinds, got 'unused'"):
        checked.assert_healthy(ignore="unused")
    with pytest.raises(
        ValueError, match=r"got \['class_imbalanc'\]; did you mean 'class_imbalance'"
    ):
        checked.assert_healthy(ignore=("class_imbalanc",))
    with pytest.raises(ValueError, match=r"got \['xyz'\]; they are \['nan', .*'class_imbalance'"):
        checked.assert_healthy(ignore=("xyz",))


def test_remarks_are_no_faults():
    remark = diagnostics.Finding("unseen", "remark", "not seen", "look at it", place="w")
    checked = diagnostics.CheckUp(1.0, (remark,))
    assert checked.is_healthy
    checked.assert_healthy()
    with pytest.raises(AssertionError, match="found 1 fault:"):
        checked.assert_healthy(severity="remark")


def test_an_optimizer_that_was_not_trained_with_is_mentioned(monkeypatch):
    module = importlib.import_module("gradtx.diagnostics.checkup.check_up")
    monkeypatch.setattr(module, "_EXAMINATIONS", ())
    monkeypatch.setattr(module, "LEARNING", Examination(lambda subject: []))

    def loss(params, x):
        return jnp.mean((x @ params["w"] - x[:, 0] - 1) ** 2)

    params = {"w": jnp.array([0.3, -0.2, 0.1, 0.5])}
    message = "; nothing was trained with tx: learning=True does that"
    for tx, learning in ((None, False), (optax.sgd(1e-2), False), (optax.sgd(1e-2), True)):
        checked = diagnostics.check_up(loss, params, X, tx=tx, learning=learning)
        assert str(checked).splitlines()[0].endswith(message) is (tx is not None and not learning)
        assert (message in checked._repr_html_()) is not checked.is_tried


def test_the_loss_returns_what_has_aux_says():
    def pair(params, x):
        return constant_loss(params, x), x

    with pytest.raises(ValueError, match=r"got tuple of length 2; .* pass has_aux=True"):
        diagnostics.check_up(pair, SICK, X)
    with pytest.raises(ValueError, match=r"has_aux=True .* must return a pair, .* got float32"):
        diagnostics.check_up(constant_loss, SICK, X, has_aux=True)


def test_assertion_is_short_however_much_is_wrong():
    finding = diagnostics.Finding("unused", "warning", "not used", "remove it", place="w")
    checked = diagnostics.CheckUp(1.0, (finding,) * 100)
    with pytest.raises(AssertionError) as error:
        checked.assert_healthy()
    assert len(str(error.value).splitlines()) < 10


def test_what_follows_is_folded_under_its_cause():
    def found(kind, severity="error"):
        return diagnostics.Finding(kind, severity, "", "")

    findings = [found("zero_gradient", "warning"), found("vanishing"), found("blocked")]
    (root,) = folded([*findings])
    assert root.kind == "blocked"
    assert {one.kind for one in root.consequences} == {"vanishing", "zero_gradient"}
    assert "What follows from it: vanishing, zero_gradient" in str(root)
    # A remark brings nothing about.
    kinds = [one.kind for one in folded([found("vanishing"), found("blocked", "remark")])]
    assert kinds == ["vanishing", "blocked"]


# Healthy set-ups of several frameworks, with whatever they keep among their parameters and data.


def cross_entropy(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


class Network(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(jax.nn.relu(self.norm(self.first(x)))))


def nnx_set_up():
    graph, params, rest = nnx.split(Network(nnx.Rngs(0)), nnx.Param, ...)

    def loss_fn(params, rest, x):
        return cross_entropy(nnx.merge(graph, params, rest)(x))

    return loss_fn, params, rest, X


def equinox_set_up():
    mlp = eqx.nn.MLP(4, 8, 8, 1, final_activation=jax.nn.relu, key=jax.random.key(0))
    head = eqx.nn.Linear(8, 3, key=jax.random.key(2))
    model = eqx.nn.Sequential([mlp, eqx.nn.Dropout(0.1), head])

    def loss_fn(model, batch, key):
        keys = jax.random.split(key, 16)
        logits = jax.vmap(lambda x, key: model(x, key=key))(batch["x"], keys)
        return cross_entropy(logits), {"logits": logits}

    return loss_fn, model, {"x": X}, jax.random.key(1)


def set_up_without_a_layer():
    return (lambda p, x: jnp.sum((p["a"] - x) ** 2)), {"a": jnp.ones(3)}, jnp.zeros(3)


def set_up_without_data():
    return (lambda p: jnp.sum(p["a"] ** 2)), {"a": jnp.ones(3), "empty": jnp.ones((0, 3))}


@pytest.mark.parametrize(
    "set_up", [nnx_set_up, equinox_set_up, set_up_without_a_layer, set_up_without_data]
)
def test_healthy_set_ups(set_up):
    loss_fn, *arguments = set_up()
    has_aux = set_up is equinox_set_up
    checked = diagnostics.check_up(loss_fn, *arguments, has_aux=has_aux)
    assert checked.is_healthy, checked
    checked.assert_healthy()
    value = eqx.filter_jit(loss_fn)(*arguments)
    assert checked.loss == pytest.approx(float(value[0] if has_aux else value), rel=1e-6)


def test_loop_of_unknown_length_is_named():
    def loss_fn(params, x):
        def body(x):
            return jnp.tanh(x @ params["w"])

        return jnp.mean(jax.lax.while_loop(lambda x: jnp.max(x) > 0.9, body, x) ** 2)

    (finding,) = diagnostics.check_parameters(loss_fn, {"w": jnp.eye(4)}, X)
    assert (finding.kind, finding.severity) == ("blocked", "error")
    assert finding.evidence["operation"] == "while_loop"
    assert finding.source.endswith("loss_fn)")


def test_examination_that_fails_does_not_spoil_the_others(monkeypatch):
    def fails(subject):
        raise TypeError("what a strange program")

    module = importlib.import_module("gradtx.diagnostics.checkup.check_up")
    examinations = (Examination(fails), *module._EXAMINATIONS)
    monkeypatch.setattr(module, "_EXAMINATIONS", examinations)
    checked = diagnostics.check_up(constant_loss, SICK, X)
    assert [one.kind for one in checked.findings] == ["identical_units", "unused", "not_examined"]
    assert "what a strange program" in checked.findings[-1].sentence
    assert checked.signal is not None


def test_what_cannot_be_looked_into_is_a_remark():
    def loss_fn(params, x):
        shape = jax.ShapeDtypeStruct((4, 8), jnp.float32)
        kernel = jax.pure_callback(np.asarray, shape, jax.lax.stop_gradient(params["hidden"]))
        return jnp.mean((jnp.tanh(x @ kernel) @ params["head"] - x[:, 0]) ** 2)

    params = {"hidden": jnp.asarray(np.random.default_rng(1).standard_normal((4, 8)), jnp.float32)}
    params["head"] = params["hidden"][0]
    checked = diagnostics.check_up(loss_fn, params, X)
    (finding,) = (one for one in checked.findings if one.kind == "unseen")
    assert (finding.severity, finding.place) == ("remark", "hidden")
    assert finding.evidence["operations"] == ["pure_callback"]


@pytest.mark.parametrize("classes", [1, 2.5, "three"])
def test_number_of_classes_is_checked(classes):
    with pytest.raises(ValueError, match="check_up: classes must be an integer of at least 2"):
        diagnostics.check_up(constant_loss, SICK, X, classes=classes)


def test_batch_is_not_outvoted_by_what_else_is_given():
    averages = [{"mean": jnp.zeros(8), "var": jnp.ones(8)} for _ in range(4)]
    frozen = {"w": jnp.ones((5, 4)), "b": jnp.ones(4)}

    def loss_fn(params, averages, frozen, x, y):
        return jnp.mean((x @ params["w"] - y) ** 2)

    def examples(*batch):
        return subject_of("test", loss_fn, {"w": jnp.ones(4)}, batch, has_aux=False).examples

    assert examples(averages, frozen, X, X[:, 0]) == 16
    assert examples(averages, None, X, X[:, 0]) == 16
    assert examples(None, None, X, jnp.ones(())) == 16
    # Neither a column of eight nor a row of sixteen has the majority.
    assert examples(jnp.ones(8), None, jnp.ones(4), jnp.ones(16)) is None


def test_what_follows_is_of_another_kind():
    consequence = Finding("constant_loss", "error", "a sentence.", "a cure.")
    finding = replace(consequence, consequences=(consequence,))
    assert "What follows" not in str(finding)
    other = replace(consequence, kind="zero_gradient")
    finding = replace(finding, consequences=(consequence, other))
    assert str(finding).endswith("What follows from it: zero_gradient")
