"""`check_precision`: what float16 and bfloat16 cannot hold is named, with its line."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

from gradtx import diagnostics

RNG = np.random.default_rng(0)
X = RNG.standard_normal((32, 8))
PARAMS = {"w0": RNG.standard_normal((8, 8)) / np.sqrt(8), "w1": RNG.standard_normal((8, 1)) / 3}


def found(loss_fn, dtype, x=X, params=PARAMS):
    """The findings for a loss in some dtype, which is returned in float32."""
    x, params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (x, params))
    return diagnostics.check_precision(
        lambda params, x: loss_fn(params, x).astype(jnp.float32), params, x
    )


def only(findings, kind):
    (finding,) = findings
    assert finding.kind == kind
    assert finding.source.startswith("test_precision.py:")
    return finding


def hidden(params, x):
    return jax.nn.relu(x @ params["w0"])


def squares(scale):
    return lambda params, x: jnp.mean((scale * hidden(params, x)) ** 2)


def test_overflow_of_float16():
    finding = only(found(squares(1000), jnp.float16), "overflow")
    assert finding.severity == "error"
    large = 1000 * np.maximum(np.float16(X) @ np.float16(PARAMS["w0"]), 0).astype(float)
    assert abs(finding.evidence["number"] - np.sum(large**2 > 65_520)) <= 2
    assert finding.evidence["largest"] == pytest.approx(large.max(), rel=1e-2)
    for healthy in (found(squares(1), jnp.float16), found(squares(1000), jnp.bfloat16)):
        assert not healthy


def test_overflow_that_does_no_harm_is_a_warning():
    def loss_fn(params, x):
        scores = lax.stop_gradient(jnp.exp(100 * x @ params["w0"]))
        return jnp.mean(hidden(params, x) / (1 + scores))

    assert only(found(loss_fn, jnp.float16), "overflow").severity == "warning"


def masked(mask):
    def loss_fn(params, x):
        scores = x @ params["w0"] @ x.T
        keep = jnp.tril(jnp.ones(scores.shape, bool))
        return jnp.mean(jax.nn.softmax(mask(scores, keep)) @ x)

    return loss_fn


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_mask_of_float16():
    def added(scores, keep):
        return scores + (1 - keep.astype(scores.dtype)) * -1e9

    assert only(found(masked(added), jnp.float16), "overflow").evidence["operation"] == "mul"
    assert not found(masked(added), jnp.bfloat16)
    for fill in (-1e9, -np.inf, -65_504.0):
        chosen = masked(lambda scores, keep, fill=fill: jnp.where(keep, scores, fill))
        assert not found(chosen, jnp.float16)


def normalized(epsilon):
    def loss_fn(params, x):
        z = x @ params["w0"]
        return jnp.mean(z / jnp.sqrt(jnp.mean(z**2, -1, keepdims=True) + epsilon))

    return loss_fn


def test_epsilon_that_is_rounded_to_zero():
    finding = only(found(normalized(1e-8), jnp.float16), "vanishing_epsilon")
    assert (finding.severity, finding.evidence["zeros"]) == ("warning", 0)
    with_zeros = np.where(np.arange(32)[:, None] < 3, 0, X)
    finding = only(found(normalized(1e-8), jnp.float16, with_zeros), "vanishing_epsilon")
    assert (finding.severity, finding.evidence["zeros"]) == ("error", 3)
    assert not found(normalized(1e-4), jnp.float16, with_zeros)
    for dtype in (jnp.bfloat16, jnp.float32):
        assert not found(normalized(1e-8), dtype, with_zeros)


@pytest.mark.parametrize(
    "protected",
    [
        lambda z: jnp.log(jax.nn.softmax(z) + 1e-9),
        lambda z: z / (jnp.linalg.norm(z, axis=-1, keepdims=True) + 1e-12),
        lambda z: jnp.log(jnp.clip(jax.nn.softmax(1000 * z), 1e-10, 2.0)),
        lambda z: z / jnp.maximum(jnp.linalg.norm(0 * z, axis=-1, keepdims=True), 1e-12),
        lambda z: lax.rsqrt(jnp.square(z) + 1e-8),
    ],
    ids=["log", "norm", "clip", "maximum", "rsqrt"],
)
def test_other_epsilons(protected):
    def loss_fn(params, x):
        return jnp.mean(protected(x @ params["w0"]))

    assert "vanishing_epsilon" in [one.kind for one in found(loss_fn, jnp.float16)]
    assert not found(loss_fn, jnp.float32)


@pytest.mark.parametrize(("dtype", "epsilon"), [(jnp.float32, 1e-8), (jnp.bfloat16, 1e-3)])
def test_one_minus_epsilon_that_is_rounded_to_one(dtype, epsilon):
    def loss_fn(epsilon):
        def loss(params, x):
            p = jnp.clip(jax.nn.sigmoid(x @ params["w0"]), epsilon, 1 - epsilon)
            return -jnp.mean(jnp.log(p) + jnp.log(1 - p))

        return loss

    finding = only(found(loss_fn(epsilon), dtype), "vanishing_epsilon")
    assert np.asarray(1 - epsilon, dtype) == 1
    assert finding.evidence["operation"] == "log"
    assert not found(loss_fn(0.01), dtype)
    assert not found(loss_fn(1e-6), jnp.float32)


def test_relu_is_no_protection():
    def loss_fn(params, x):
        return jnp.mean(jnp.sqrt(jax.nn.relu(x @ params["w0"]) + 0.1) / (1 + hidden(params, x)))

    assert not [one for one in found(loss_fn, jnp.float16) if one.kind == "vanishing_epsilon"]


def test_softplus_is_no_protection():
    def loss_fn(params, x):
        scale = jax.nn.softplus(x @ params["w0"])
        return jnp.mean(jnp.log(scale) + 1 / scale)

    assert not found(loss_fn, jnp.float16)


def test_logarithm_of_what_became_zero():
    def loss_fn(log_softmax):
        return lambda params, x: -jnp.mean(log_softmax(30 * x @ params["w0"]))

    finding = only(found(loss_fn(lambda z: jnp.log(jax.nn.softmax(z))), jnp.float16), "underflow")
    assert finding.severity == "error"
    assert not found(loss_fn(jax.nn.log_softmax), jnp.float16)


def test_gradient_that_becomes_zero():
    def loss_fn(params, x):
        return jnp.mean(1e-3 * (x @ params["w0"] @ params["w1"]) ** 2)

    params, x = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float16), (PARAMS, X / 300))
    (finding,) = diagnostics.check_precision(loss_fn, params, x)
    assert (finding.kind, finding.severity) == ("underflow", "warning")
    gradient = jax.grad(loss_fn)(params, x)
    wide = jax.grad(loss_fn)(*jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, x)))
    for name, share in finding.evidence["shares"].items():
        assert share > 0.25
        lost = np.mean((gradient[name] == 0) & (wide[name] != 0))
        assert share == pytest.approx(float(lost), abs=0.1)
    assert not diagnostics.check_precision(lambda *args: 4096 * loss_fn(*args), params, x)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, x))
    assert not diagnostics.check_precision(loss_fn, *wide)


def in_a_loop(params, x):
    def step(total, row):
        return total + jnp.mean(row @ params["w0"]), None

    return lax.scan(step, jnp.zeros((), x.dtype), x)[0]


@pytest.mark.parametrize(
    "total",
    [
        in_a_loop,
        lambda params, x: lax.reduce_sum(x @ params["w1"], (0, 1)),
        lambda params, x: jnp.cumsum(x @ params["w1"], 0)[-1, 0],
        lambda params, x: jax.ops.segment_sum(x @ params["w1"], jnp.zeros(len(x), int), 1)[0, 0],
    ],
    ids=["scan", "reduce_sum", "cumsum", "segment_sum"],
)
def test_long_sums_in_bfloat16(total):
    many = np.ones((300, 8))
    finding = only(found(total, jnp.bfloat16, many), "low_precision_sum")
    assert (finding.severity, finding.evidence["terms"]) == ("warning", 300)
    for dtype, x in ((jnp.bfloat16, many[:200]), (jnp.float16, many), (jnp.float32, many)):
        assert not found(total, dtype, x)
    finding = only(found(total, jnp.float16, np.ones((2100, 8)) / 100), "low_precision_sum")
    assert finding.evidence["dtype"] == "float16"


def test_the_sum_really_stops_growing():
    ones = {"w0": np.ones((8, 8)) / 8}
    total = in_a_loop(*jax.tree.map(lambda leaf: jnp.asarray(leaf, "bfloat16"), (ones, X * 0 + 1)))
    assert total == 32
    many = np.ones((500, 8))
    total = in_a_loop(*jax.tree.map(lambda leaf: jnp.asarray(leaf, "bfloat16"), (ones, many)))
    assert total == 256


def test_sums_of_jax_itself_are_healthy():
    def loss_fn(params, x):
        z = x @ params["w0"]
        return jnp.mean(jax.nn.softmax(z, 0)) + jnp.sum(z) / 300 + jnp.var(z) + jnp.std(z, 0)[0]

    assert not found(loss_fn, jnp.bfloat16, RNG.standard_normal((600, 8)))


def test_residual_stream_is_no_sum():
    def loss_fn(params, x):
        def step(x, _):
            return x + jnp.tanh(x @ params["w0"]) / 300, None

        return jnp.mean(lax.scan(step, x, None, length=300)[0])

    assert not found(loss_fn, jnp.bfloat16)


class Block(nn.Module):
    dtype: str

    @nn.compact
    def __call__(self, x):
        attention = nn.MultiHeadDotProductAttention(2, dtype=self.dtype)
        x = x + attention(nn.LayerNorm(dtype=self.dtype)(x), mask=nn.make_causal_mask(x[..., 0]))
        x = x + nn.Dense(8, dtype=self.dtype)(nn.gelu(nn.Dense(16, dtype=self.dtype)(x)))
        return nn.Dense(5, dtype=self.dtype)(nn.RMSNorm(dtype=self.dtype)(x))


# The parameters are in float32 in either case.
initial = jax.jit(Block("bfloat16").init)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@jax.numpy_dtype_promotion("standard")
def test_transformer_of_linen_is_healthy(dtype):
    x = jnp.asarray(RNG.standard_normal((8, 64, 8)), jnp.float32)
    variables = initial(jax.random.key(0), x)

    def loss_fn(params, x):
        logits = Block(dtype).apply({"params": params}, x).astype(jnp.float32)
        labels = jnp.zeros(logits.shape[:2], int)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    assert not diagnostics.check_precision(loss_fn, variables["params"], x)


@jax.numpy_dtype_promotion("standard")
def test_networks_of_nnx_and_equinox_are_healthy():
    x = jnp.asarray(RNG.standard_normal((8, 12, 12, 3)), jnp.bfloat16)
    net = nnx.Sequential(
        nnx.Conv(3, 4, (3, 3), dtype=jnp.bfloat16, rngs=nnx.Rngs(0)),
        nnx.GroupNorm(4, num_groups=2, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)),
    )
    graph, state = nnx.split(net)

    def loss_of_nnx(state, x):
        return jnp.mean(jax.nn.relu(nnx.merge(graph, state)(x)).astype(jnp.float32))

    assert not diagnostics.check_precision(loss_of_nnx, state, x)
    norm = eqx.nn.Sequential([eqx.nn.Linear(8, 8, key=jax.random.key(0)), eqx.nn.LayerNorm(8)])
    norm = jax.tree.map(lambda leaf: leaf.astype(jnp.float16) if eqx.is_array(leaf) else leaf, norm)

    def loss_of_equinox(net, x):
        return jnp.mean(jnp.tanh(jax.vmap(net)(x)) ** 2)

    assert not diagnostics.check_precision(loss_of_equinox, norm, jnp.asarray(X, jnp.float16))


def test_consequences_are_folded():
    def loss_fn(params, x):
        return squares(1000)(params, x).astype(jnp.float32)

    params, x = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float16), (PARAMS, X))
    checked = diagnostics.check_up(loss_fn, params, x)
    assert "overflow" in [one.kind for one in checked.findings]
    assert "nan" not in [one.kind for one in checked.findings]
