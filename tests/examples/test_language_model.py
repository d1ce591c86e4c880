"""The language model: it learns, writes, logs, and goes on where it was interrupted."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib import image

import gradtx
from examples import language_model, transformer
from examples.text import load_text
from gradtx.training import make_train_step

SHAPE = transformer.Shape(vocabulary=11, context=8, layers=2, width=8, heads=2)
# Nats per character of English text if each character were drawn by its frequency, see `_summary`.
FREQUENCIES_ALONE = 3.25


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_quick_run_learns_and_leaves_a_log_a_picture_and_a_sample(tmp_path, capsys):
    folder = tmp_path / "deeper" / "run"
    assert language_model.main(["--quick", "--output", str(folder)]) == 0
    assert "30 steps. Nats per character of the held-out text" in capsys.readouterr().out
    rows = rows_of(folder)
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert abs(rows[0]["loss"] - math.log(103)) < 0.2
    assert [row["step"] for row in rows if "averaged_loss" in row] == [10, 20, 30]
    assert max(rows[-1]["validation_loss"], rows[-1]["averaged_loss"]) < FREQUENCIES_ALONE
    (events,) = (folder / "events").iterdir()
    assert b"averaged_loss" in events.read_bytes()
    assert image.imread(folder / "losses.png").std() > 0.05
    assert len((folder / "sample.txt").read_text(encoding="utf-8")) == 332

    with pytest.raises(SystemExit, match="has a run already"):
        language_model.main(["--quick", "--output", str(folder)])
    assert rows_of(folder) == rows
    with pytest.raises(SystemExit, match="'seed': 0 in the checkpoint, 1 now"):
        language_model.main(["--quick", "--resume", "--seed", "1", "--output", str(folder)])


def test_an_interrupted_run_goes_on_and_ends_with_the_same_numbers(tmp_path, monkeypatch, capsys):
    settings = language_model.Settings(
        steps=12, layers=1, width=16, context=8, batch_size=4, every=4
    )
    text = load_text(settings.context)
    whole, params = language_model.train(settings, text, tmp_path / "whole")

    def interrupted(*arguments, **options):
        step, numbers = make_train_step(*arguments, **options), iter(range(10))

        def step_or_stop(*x):
            if next(numbers, None) is None:
                raise KeyboardInterrupt
            return step(*x)

        return step_or_stop

    with monkeypatch.context() as patch:
        patch.setattr(language_model, "make_train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            language_model.train(settings, text, tmp_path / "parts")
    assert len(rows_of(tmp_path / "parts")) == 10
    rows, resumed = language_model.train(settings, text, tmp_path / "parts", resume=True)
    assert "Going on after step 8 of" in capsys.readouterr().err
    assert rows == whole == rows_of(tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, resumed, params)


def test_there_is_nothing_to_resume_in_an_empty_folder(tmp_path):
    with pytest.raises(SystemExit, match="there is no checkpoint in"):
        language_model.main(["--quick", "--resume", "--output", str(tmp_path)])


@pytest.mark.parametrize("name", language_model.names())
def test_every_optimizer_can_be_built(name):
    settings = language_model.Settings(name, 0.125, steps=100)
    tx, schedule = language_model.make_optimizer(settings)
    jax.eval_shape(tx.init, language_model.init_params(settings, 11))
    assert schedule(0) == 0
    assert schedule(10) == 0.125


def test_muon_gets_the_matrices_of_the_layers_and_only_kernels_decay():
    settings = language_model.Settings()
    tx, _ = language_model.make_optimizer(settings)
    table = gradtx.explain(tx, language_model.init_params(settings, 11), step=60, all_leaves=True)
    muon = {row.path for row in table.rows if "scale_by_muon" in row.route}
    parts = ("attention/in", "attention/out", "mlp/in", "mlp/out")
    assert muon == {f"layers/{part}/kernel" for part in parts}
    decaying = {row.path for row in table.rows if row.weight_decay}
    assert decaying == muon | {"head/kernel"}


def test_the_text_is_split_into_sequences_that_continue_each_other():
    text = load_text(context=16)
    assert text.train.shape[1] == text.validation.shape[1] == 17
    assert 0.095 < len(text.validation) / (len(text.train) + len(text.validation)) < 0.105
    np.testing.assert_array_equal(text.train[:-1, -1], text.train[1:, 0])
    whole = text.decode(np.concatenate([*text.train[:, :-1], *text.validation[:, :-1]]))
    assert "Assert statements are a convenient way" in whole
    assert text.decode(text.encode("yield from")) == "yield from"
    with pytest.raises(ValueError, match=r"only characters of the corpus, not \['ж'\]"):
        text.encode("ж")


def test_a_token_depends_on_those_before_it_only():
    params = transformer.init_transformer(jax.random.key(0), SHAPE)
    tokens = jax.random.randint(jax.random.key(1), (3, 8), 0, 11)
    logits = transformer.apply_transformer(params, tokens, 2)
    changed = transformer.apply_transformer(params, tokens.at[:, 5].set((tokens[:, 5] + 1) % 11), 2)
    np.testing.assert_array_equal(logits[:, :5], changed[:, :5])
    assert np.all(np.any(logits[:, 5:] != changed[:, 5:], axis=(1, 2)))


def test_the_loss_is_the_cross_entropy_of_optax():
    params = transformer.init_transformer(jax.random.key(0), SHAPE)
    sequences = jax.random.randint(jax.random.key(1), (3, 9), 0, 11)
    logits = transformer.apply_transformer(params, sequences[:, :-1], 2)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, sequences[:, 1:])
    loss = transformer.loss_fn(params, sequences, heads=2)
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-6)


def test_attention_is_that_of_jax():
    params = transformer.init_transformer(jax.random.key(0), SHAPE)
    layer = jax.tree.map(lambda p: p[0], params["layers"]["attention"])
    x = jax.random.normal(jax.random.key(1), (3, 8, 8))
    inner = x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-5) @ layer["in"]["kernel"]
    heads = [part.reshape(3, 8, 2, 4) for part in jnp.split(inner, 3, axis=-1)]
    expected = jax.nn.dot_product_attention(*heads, is_causal=True).reshape(3, 8, 8)
    attended = transformer.attention(layer, x, heads=2)
    np.testing.assert_allclose(attended, expected @ layer["out"]["kernel"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "argument --steps: must be a whole number >= 1, got '0'"),
        (["--optimizer", "adma"], "there is no optimizer 'adma'; did you mean adam"),
        (["--learning-rate", "-1"], "argument --learning-rate: must be a number > 0, got '-1'"),
    ],
    ids=["steps", "optimizer", "learning-rate"],
)
def test_wrong_arguments_are_refused_before_the_training(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        language_model.main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
