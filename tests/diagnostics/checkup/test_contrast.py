"""`check_examples`: an example that is its own negative."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from gradtx import diagnostics

from .batches import D, N, X, entropy, kinds, normal


@pytest.fixture(autouse=True)
def ranks_may_differ():
    with jax.numpy_rank_promotion("allow"):
        yield


OTHER = X + 0.1 * normal(N, D, seed=7)
EYE = jnp.eye(2 * N, dtype=bool)
PARTNERS = (jnp.arange(2 * N) + N) % (2 * N)


def unit(z):
    return z / jnp.linalg.norm(z, axis=-1, keepdims=True)


def embedded(params, *x):
    return unit(jnp.tanh(jnp.concatenate(x) @ params["w0"]) @ params["w1"])


def similarities(params, x, other):
    z = embedded(params, x, other)
    return z @ z.T / 0.1


def of_entropy(params, x, other):
    return entropy(similarities(params, x, other), PARTNERS)


def of_logsumexp(params, x, other):
    s = similarities(params, x, other)
    return jnp.mean(jax.nn.logsumexp(s, axis=1) - s[jnp.arange(2 * N), PARTNERS])


def of_exponentials(params, x, other):
    e = jnp.exp(jnp.einsum("id,jd->ij", *2 * [embedded(params, x, other)]) / params["t"])
    return -jnp.mean(jnp.log(e[jnp.arange(2 * N), PARTNERS] / jnp.sum(e, axis=1)))


def of_two_parts(params, x, other):
    a, b = embedded(params, x), embedded(params, other)
    return entropy(jnp.concatenate([a @ b.T, a @ a.T], axis=1) / 0.1, jnp.arange(N))


PARAMS = {"w0": normal(D, 8), "w1": normal(8, 4), "t": jnp.asarray(0.1)}


@pytest.mark.parametrize(
    "loss_fn", [of_entropy, of_logsumexp, of_exponentials, of_two_parts], ids=lambda f: f.__name__
)
def test_an_example_is_its_own_negative(loss_fn):
    (finding,) = diagnostics.check_examples(loss_fn, PARAMS, X, OTHER)
    assert kinds([finding]) == [("self_similarity", "error")]
    assert ("similarities" if loss_fn in (of_entropy, of_logsumexp) else loss_fn.__name__) in (
        finding.source
    )
    assert finding.place.startswith(("w1", "t"))
    # With itself each is as similar as can be, so that at most half is left for its partner.
    s = similarities(PARAMS, X, OTHER)
    assert bool(jnp.all(jnp.diag(s) >= s.max(1) - 1e-4))


def masked(params, x, other):
    return entropy(jnp.where(EYE, -1e9, similarities(params, x, other)), PARTNERS)


def penalized(params, x, other):
    return entropy(similarities(params, x, other) - 1e9 * EYE.astype(jnp.float32), PARTNERS)


def multiplied(params, x, other):
    s = similarities(params, x, other)
    e = jnp.exp(s) * (1 - EYE.astype(jnp.float32))
    return -jnp.mean(jnp.log(jnp.exp(s)[jnp.arange(2 * N), PARTNERS] / jnp.sum(e, axis=1)))


def subtracted(params, x, other):
    e = jnp.exp(similarities(params, x, other))
    total = jnp.sum(e, axis=1) - jnp.diag(e)
    return -jnp.mean(jnp.log(e[jnp.arange(2 * N), PARTNERS] / total))


def cut_out(params, x, other):
    s = similarities(params, x, other)
    off = jnp.delete(s.ravel(), jnp.arange(2 * N) * (2 * N + 1), assume_unique_indices=True)
    return entropy(
        off.reshape(2 * N, 2 * N - 1), PARTNERS - jnp.where(jnp.arange(2 * N) < PARTNERS, 1, 0)
    )


def two_towers(params, x, other):
    return entropy(embedded(params, x) @ embedded(params, other).T / 0.1, jnp.arange(N))


def uniform(params, x, other):
    z = embedded(params, x, other)
    square = jnp.sum((z[:, None] - z[None]) ** 2, -1)
    alignment = jnp.mean(jnp.sum((z[:N] - z[N:]) ** 2, -1))
    return alignment + jax.nn.logsumexp(-2 * square)


def attending(params, x, other):
    z = embedded(params, x, other)
    z = jax.nn.softmax(z @ z.T) @ z
    return entropy(z @ params["w1"].T, PARTNERS % 8)


HEALTHY = (masked, penalized, multiplied, subtracted, cut_out, two_towers, uniform, attending)


@pytest.mark.parametrize("loss_fn", HEALTHY, ids=lambda loss_fn: loss_fn.__name__)
def test_losses_that_leave_it_out(loss_fn):
    findings = diagnostics.check_examples(loss_fn, PARAMS, X, OTHER)
    assert "self_similarity" not in [one.kind for one in findings]


def test_equinox():
    def loss_fn(model, x, other, has_mask):
        z = unit(jax.vmap(model)(jnp.concatenate([x, other])))
        s = z @ z.T / 0.5
        return entropy(jnp.where(EYE, -jnp.inf, s) if has_mask else s, PARTNERS)

    model = eqx.nn.MLP(D, 4, 8, 1, key=jax.random.key(0))
    findings = diagnostics.check_examples(loss_fn, model, X, OTHER, False)
    assert [one.kind for one in findings] == ["self_similarity"]
    assert not diagnostics.check_examples(loss_fn, model, X, OTHER, True)
