"""Three small problems on which optimizers are compared, each with the loss that decides."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples import digits, language_model, transformer
from examples.text import load_text
from gradtx.training import minibatches

CONDITION = 1e4
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Problem:
    """What an optimizer minimizes, and how it is judged.

    Attributes:
        title: what is trained on what.
        measure: what the evaluation measures, with its unit.
        parts: how often it is evaluated.
        steps: the number of steps from one evaluation to the next.
        start: seed -> the parameters before the first step, and the data that stay the same.
        batches: seed -> the batches of all steps, with a first axis of steps.
        loss: (parameters, data, batch) -> the loss whose gradient the optimizer gets.
        evaluate: (parameters, data) -> what is measured.
        clipped: whether the gradient is clipped by its global norm.
        tuned_with: the seeds with which learning rates are tuned, more where results vary more.
        matrices: a regular expression for the paths of the matrices of the layers: Muon and SOAP
            get these, and AdamW the rest; empty: they get all, and do as they do by default.
    """

    title: str
    measure: str
    parts: int
    steps: int
    start: Callable[[int], tuple[Any, Any]]
    batches: Callable[[int], Any]
    loss: Callable[[Any, Any, Any], jax.Array]
    evaluate: Callable[[Any, Any], jax.Array]
    clipped: bool = True
    tuned_with: tuple[int, ...] = (0,)
    matrices: str = ""

    @property
    def total_steps(self) -> int:
        """The number of steps of a run."""
        return self.parts * self.steps


def regression(quick: bool = False) -> Problem:
    """Linear least squares with all samples at each step: no noise, but a narrow valley.

    The Hessian has the condition number 1e4, and its axes are not those of the parameters.
    """
    samples, inputs, outputs = (8, 4, 2) if quick else (128, 32, 16)
    parts, steps = (2, 4) if quick else (25, 20)

    def start(seed: int) -> tuple[Any, Any]:
        rng = np.random.default_rng(seed)
        left, _ = np.linalg.qr(rng.normal(size=(samples, inputs)))
        right, _ = np.linalg.qr(rng.normal(size=(inputs, inputs)))
        deviations = np.geomspace(1, CONDITION**-0.5, inputs)
        x = left * deviations @ right * np.sqrt(samples)
        y = x @ rng.normal(size=(inputs, outputs))
        data = {"x": x, "y": y / np.sqrt(np.mean(y**2))}
        data = {name: jnp.asarray(values, jnp.float32) for name, values in data.items()}
        return {"kernel": jnp.zeros((inputs, outputs))}, data

    def evaluate(params: Any, data: Any) -> jax.Array:
        return jnp.mean((data["x"] @ params["kernel"] - data["y"]) ** 2)

    return Problem(
        title=f"Least squares, condition number {CONDITION:,.0f}",
        measure="squared error, relative to the first one",
        parts=parts,
        steps=steps,
        start=start,
        batches=lambda seed: jnp.zeros(parts * steps),
        loss=lambda params, data, batch: outputs * evaluate(params, data) / 2,
        evaluate=evaluate,
        clipped=False,
    )


def read_digits(quick: bool = False) -> Problem:
    """The network with batch normalization that reads the digits of scikit-learn."""
    samples = digits.load_digits()
    parts, steps = (2, 2) if quick else (10, 22)
    everything = jax.tree.map(jnp.asarray, samples._asdict())
    _, stats = digits.init_network(jax.random.key(0))

    def evaluate(params: Any, data: Any) -> jax.Array:
        # The statistics at these parameters, which may be averages of those that were trained.
        _, tracked = digits.apply_network(
            params, stats, data["train"]["image"], training=True, momentum=0.0
        )
        logits, _ = digits.apply_network(params, tracked, data["test"]["image"], training=False)
        likely = jax.nn.log_softmax(logits)
        return -jnp.mean(jnp.take_along_axis(likely, data["test"]["label"][:, None], axis=-1))

    return Problem(
        title="Handwritten digits, a network with batch normalization",
        measure="cross-entropy of 360 test images, nats",
        parts=parts,
        steps=steps,
        start=lambda seed: (digits.init_network(jax.random.key(seed))[0], everything),
        batches=lambda seed: _stacked(seed, samples.train, 64, parts * steps),
        loss=lambda params, data, batch: digits.loss_fn(params, stats, batch)[0],
        evaluate=evaluate,
        tuned_with=(0, 4, 5),
    )


def language(quick: bool = False) -> Problem:
    """The transformer of `examples.language_model`."""
    settings = language_model.Settings()
    if quick:
        settings = replace(settings, layers=1, width=8, context=8, batch_size=4)
    parts, steps = (2, 2) if quick else (15, 16)
    text = load_text(settings.context)
    vocabulary = len(text.characters)
    shape = transformer.Shape(
        vocabulary, settings.context, settings.layers, settings.width, language_model.HEADS
    )
    held_out = jnp.asarray(language_model.batches_of(text.validation, settings.batch_size))
    return Problem(
        title="A small transformer on English text",
        measure="cross-entropy of held-out text, nats per character",
        parts=parts,
        steps=steps,
        start=lambda seed: (transformer.init_transformer(jax.random.key(seed), shape), held_out),
        batches=lambda seed: _stacked(seed, text.train, settings.batch_size, parts * steps),
        loss=lambda params, data, batch: language_model.loss_fn(params, batch),
        evaluate=language_model.mean_loss,
        matrices=language_model.MATRICES,
    )


def _stacked(seed: int, samples: Any, batch_size: int, steps: int) -> Any:
    """So many batches, with a first axis of steps."""
    key = jax.random.fold_in(jax.random.key(seed), 1)
    batches = minibatches(key, samples, batch_size, epochs=None, drop_remainder=True)
    chosen = [batch for _, batch in zip(range(steps), batches, strict=False)]
    return jax.tree.map(lambda *arrays: jnp.asarray(np.stack(arrays)), *chosen)


PROBLEMS: dict[str, Callable[[bool], Problem]] = {
    "regression": regression,
    "digits": read_digits,
    "language": language,
}
