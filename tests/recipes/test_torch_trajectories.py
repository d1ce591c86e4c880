"""PyTorch's optimizers, written in gradtx, against trajectories that PyTorch made in float64.

There is one function for each optimizer. It takes PyTorch's settings, all of them, and shows what
they are called here and, where the two follow another convention, what stands for PyTorch's.
`make_torch_trajectories.py` makes the stored file.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx

with np.load(Path(__file__).with_name("torch_trajectories.npz")) as file:
    STORED: dict[str, Any] = dict(file)

# Relative to the largest change of a step. A trajectory is the sum of twelve steps of a few
# operations each, and PyTorch's 1 - 0.999^t loses three digits.
TOLERANCE = 1e-12

ExtraArgs = optax.GradientTransformationExtraArgs


def of_count(function: Callable[[jax.Array], Any]) -> optax.Schedule:
    """A schedule from a function of the number of steps taken, given in double precision."""
    return lambda count: function(jnp.asarray(count, jnp.float64))


def correction(decay: float) -> Callable[[jax.Array], Any]:
    """sqrt(1 - decay^t), t = count + 1: what corrects the root of a second moment."""
    return lambda count: jnp.sqrt(1 - decay ** (count + 1))


def sgd(lr, *, momentum, dampening, weight_decay, nesterov):
    """PyTorch leaves the dampening out of the first step."""
    dampened = of_count(lambda count: jnp.where(count == 0, 0.0, dampening))
    return gradtx.chain(
        gradtx.add_decayed_weights(weight_decay),
        gradtx.sgd(lr, momentum, nesterov, dampening=dampened)
        if momentum
        else gradtx.sgd(lr, dampening=dampening),
    )


def adagrad(lr, *, lr_decay, eps, weight_decay, initial_accumulator_value):
    """PyTorch adds eps outside of the root, as RMSProp can.

    With s = (t + 1) * v the sum of squares becomes the mean of squares, which RMSProp's v is if it
    keeps the share t / (t + 1).
    """

    def falling(count):
        return lr / (1 + lr_decay * jnp.asarray(count, jnp.float64))

    if eps == 0:
        direction = gradtx.adagrad(falling, initial_accumulator_value, eps)
    else:
        direction = gradtx.rmsprop(
            of_count(lambda count: falling(count) / jnp.sqrt(count + 2)),
            decay=of_count(lambda count: (count + 1) / (count + 2)),
            eps=of_count(lambda count: eps / jnp.sqrt(count + 2)),
            initial_scale=initial_accumulator_value,
            eps_in_sqrt=False,
        )
    return gradtx.chain(gradtx.add_decayed_weights(weight_decay), direction)


def rmsprop(lr: Any, *, alpha, eps, centered, momentum, weight_decay):
    """PyTorch multiplies by the learning rate after the momentum, which matters if it changes."""
    decay = gradtx.add_decayed_weights(weight_decay)
    if momentum and not isinstance(lr, float):
        scaling = gradtx.scale_by_stddev if centered else gradtx.scale_by_rms
        return gradtx.chain(
            decay,
            scaling(alpha, eps, eps_in_sqrt=False),
            gradtx.trace(momentum),
            gradtx.scale_by_learning_rate(lr),
        )
    named = gradtx.rmsprop(
        lr, alpha, eps, eps_in_sqrt=False, centered=centered, momentum=momentum or None
    )
    return gradtx.chain(decay, named)


def adadelta(lr, *, rho, eps, weight_decay):
    return gradtx.adadelta(lr, rho, eps, weight_decay)


def adam(lr, *, betas, eps, weight_decay, amsgrad, decoupled_weight_decay):
    b1, b2 = betas
    if amsgrad:
        return with_weight_decay(
            lr, scale_by_amsgrad(b1, b2, eps), weight_decay, decoupled_weight_decay
        )
    if decoupled_weight_decay:
        return gradtx.adamw(lr, b1, b2, eps, weight_decay=weight_decay)
    return gradtx.chain(gradtx.add_decayed_weights(weight_decay), gradtx.adam(lr, b1, b2, eps))


def scale_by_amsgrad(b1, b2, eps):
    """PyTorch corrects the largest second moment after the maximum: eps has to be corrected too."""
    corrected = correction(b2)
    return gradtx.chain(
        gradtx.scale_by_amsgrad(
            b1, b2, of_count(lambda count: eps * corrected(count)), bias_correction_nu=False
        ),
        gradtx.scale_by_schedule(of_count(corrected)),
    )


def adamax(lr, *, betas, eps, weight_decay):
    b1, b2 = betas
    return gradtx.chain(gradtx.add_decayed_weights(weight_decay), gradtx.adamax(lr, b1, b2, eps))


def nadam(lr, *, betas, eps, weight_decay, momentum_decay, decoupled_weight_decay):
    """PyTorch's first moment decays by b1, and its look ahead by another, growing factor mu_t.

        m_hat = mu_{t+1} * m / (1 - mu_1 ... mu_{t+1}) + (1 - mu_t) * g / (1 - mu_1 ... mu_t)

    where the first summand belongs to Adam, and the second to Adam without a first moment.
    """
    b1, b2 = betas
    t = np.arange(1, len(STORED["size"]) + 2)
    mu = b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
    missing = 1 - np.cumprod(mu)
    of_average = mu[1:] / missing[1:] * (1 - b1 ** t[:-1])
    of_gradient = ((1 - mu) / missing)[:-1]
    direction = added(
        gradtx.chain(gradtx.scale_by_adam(b1, b2, eps), scale_by_table(of_average)),
        gradtx.chain(gradtx.scale_by_adam(0.0, b2, eps), scale_by_table(of_gradient)),
    )
    return with_weight_decay(lr, direction, weight_decay, decoupled_weight_decay)


def radam(lr, *, betas, eps, weight_decay, decoupled_weight_decay):
    """PyTorch adds eps to the root of v before it is corrected."""
    b1, b2 = betas
    corrected = correction(b2)
    direction = gradtx.scale_by_radam(b1, b2, of_count(lambda count: eps / corrected(count)))
    return with_weight_decay(lr, direction, weight_decay, decoupled_weight_decay)


def rprop(lr, *, etas, step_sizes):
    """PyTorch keeps the first step size within its bounds too."""
    return gradtx.rprop(float(np.clip(lr, *step_sizes)), *etas, *step_sizes)


def adafactor(lr: Any, *, beta2_decay, eps, d, weight_decay):
    """PyTorch bounds the relative step by 1 / sqrt(t), but decays by lr alone.

    Its first eps only bounds v from below.
    """
    _, smallest_scale = eps
    rate = lr if callable(lr) else lambda count: lr
    return gradtx.adafactor(
        of_count(lambda count: jnp.minimum(rate(count), 1 / jnp.sqrt(count + 1))),
        min_dim_size_to_factor=1,
        decay_rate=-beta2_decay,
        clipping_threshold=d,
        weight_decay_rate=of_count(lambda count: weight_decay * rate(count)),
        eps=0.0,
        min_scale=smallest_scale,
    )


def muon(
    lr,
    *,
    momentum,
    nesterov,
    weight_decay,
    ns_coefficients,
    ns_steps,
    eps,
    adjust_lr_fn,
    ns_dtype=None,
):
    """PyTorch's momentum is not corrected for its start, and its matrices are (output, input).

    Its eps only bounds the norm from below, and no norm here is that small.
    """
    assert eps <= 1e-3
    return gradtx.muon(
        lr,
        tuple(ns_coefficients),
        ns_steps,
        beta=momentum,
        eps=0.0,
        weight_decay=weight_decay,
        nesterov=nesterov,
        muon_weight_dimension_numbers=gradtx.MuonDimensionNumbers(1, 0),
        consistent_rms={"match_rms_adamw": 0.2}.get(adjust_lr_fn),
        bias_correction=False,
        ns_dtype=ns_dtype,
    )


def with_weight_decay(lr, direction, weight_decay, decoupled):
    decay = gradtx.add_decayed_weights(weight_decay)
    parts = (direction, decay) if decoupled else (decay, direction)
    return gradtx.chain(*parts, gradtx.scale_by_learning_rate(lr))


def added(first: ExtraArgs, second: ExtraArgs) -> ExtraArgs:
    """The sum of the updates of two transformations."""

    def update(updates, state, params=None):
        one, state_one = first.update(updates, state[0], params)
        two, state_two = second.update(updates, state[1], params)
        return jax.tree.map(jnp.add, one, two), (state_one, state_two)

    return ExtraArgs(lambda params: (first.init(params), second.init(params)), update)


def scale_by_table(factors: np.ndarray) -> ExtraArgs:
    """Multiply the updates of each step by a number of its own."""
    return gradtx.scale_by_schedule(lambda count: jnp.asarray(factors)[count])


IN_GRADTX: dict[str, Callable[..., ExtraArgs]] = {
    "SGD": sgd,
    "Adagrad": adagrad,
    "RMSprop": rmsprop,
    "Adadelta": adadelta,
    "Adam": adam,
    "AdamW": adam,
    "Adamax": adamax,
    "NAdam": nadam,
    "RAdam": radam,
    "Rprop": rprop,
    "Adafactor": adafactor,
    "Muon": muon,
}


def torch_settings(name: str) -> dict[str, Any]:
    """The optimizer's name, its settings, and the factor of its learning rate, of a stored case."""
    return json.loads(str(STORED[f"case/{name}/settings"]))


CASES = [key.split("/")[1] for key in STORED if key.endswith("/settings")]


def trajectory(tx: ExtraArgs, kind: str) -> dict[str, np.ndarray]:
    """The parameters after each step, from those and with the gradients that PyTorch had."""
    noise = {
        key.split("/")[1]: STORED[key]
        for key in STORED
        if key.startswith(f"{kind}/") and key.endswith("/noise")
    }

    @jax.jit
    def run(params, noise, sizes):
        def step(carry, inputs):
            params, state = carry
            noise, size = inputs
            gradients = jax.tree.map(lambda p, e: size * (e + jnp.tanh(p)), params, noise)
            updates, state = tx.update(gradients, state, params)
            params = gradtx.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (params, tx.init(params)), (noise, sizes))[1]

    with jax.enable_x64(True):
        start = {leaf: STORED[f"{kind}/{leaf}"] for leaf in noise}
        return jax.tree.map(np.asarray, run(start, noise, STORED["size"]))


def difference(name: str, tx: ExtraArgs) -> float:
    """The largest difference of any element at any step, over the largest change of a step."""
    kind = "vectors_and_matrices" if f"case/{name}/vector" in STORED else "matrices"
    differences = []
    for leaf, ours in trajectory(tx, kind).items():
        theirs = STORED[f"case/{name}/{leaf}"]
        assert ours.dtype == theirs.dtype == np.float64
        steps = np.diff(theirs, axis=0, prepend=STORED[f"{kind}/{leaf}"][None])
        differences.append(np.max(np.abs(ours - theirs)) / np.max(np.abs(steps)))
    return float(np.max(differences))


def in_gradtx(name: str, **further: Any) -> ExtraArgs:
    """The transformation that stands for a stored case."""
    case = torch_settings(name)
    settings, factor = case["settings"], case["factor"]
    lr = settings.pop("lr")
    rate = lr if factor == 1 else of_count(lambda count: lr * factor**count)
    with jax.enable_x64(True):
        return IN_GRADTX[case["optimizer"]](rate, **settings, **further)


@pytest.mark.parametrize("name", [name for name in CASES if name != "muon_bfloat16"])
def test_trajectory(name):
    assert difference(name, in_gradtx(name)) < TOLERANCE


@pytest.mark.parametrize("ns_dtype", [None, "bfloat16"])
def test_muon_of_matrices_that_pytorch_rounds_to_bfloat16(ns_dtype):
    # PyTorch rounds the sums of the products too, and not only the factors.
    assert 1e-4 < difference("muon_bfloat16", in_gradtx("muon_bfloat16", ns_dtype=ns_dtype)) < 3e-2


def test_nadam_without_a_schedule_of_its_momentum():
    # With such a momentum_decay PyTorch's mu_t is b1.
    assert difference("nadam_constant", gradtx.nadam(0.1, 0.8, 0.9, 0.01)) < TOLERANCE


# The same settings under the same names.
DIFFERING = {
    "sgd_dampening": lambda: gradtx.chain(
        gradtx.add_decayed_weights(0.1), gradtx.sgd(0.2, 0.7, dampening=0.6)
    ),
    "adagrad_lr_decay": lambda: gradtx.chain(
        gradtx.add_decayed_weights(0.1),
        gradtx.adagrad(of_count(lambda count: 0.8 / (1 + 0.3 * count)), 0.0, 0.2),
    ),
    "rmsprop_momentum": lambda: gradtx.rmsprop(
        of_count(lambda count: 0.05 * 0.8**count), 0.8, 0.1, eps_in_sqrt=False, momentum=0.9
    ),
    "amsgrad_eps": lambda: gradtx.amsgrad(0.2, 0.6, 0.5, 0.1),
    "nadam": lambda: gradtx.nadam(0.1),
    "radam_eps": lambda: gradtx.chain(
        gradtx.add_decayed_weights(0.3),
        gradtx.radam(of_count(lambda count: 0.2 * 0.9**count), 0.7, 0.9, 0.1),
    ),
    "adafactor_relative_step": lambda: gradtx.adafactor(
        0.5, min_dim_size_to_factor=1, decay_rate=0.5, clipping_threshold=1.5, eps=0.0
    ),
    "rprop_start_outside": lambda: gradtx.rprop(0.5, 0.7, 1.1, 0.01, 0.3),
}


@pytest.mark.parametrize("name", DIFFERING)
def test_conventions_that_the_docstrings_say_differ(name):
    with jax.enable_x64(True):
        tx = DIFFERING[name]()
    assert difference(name, tx) > 1e-3
