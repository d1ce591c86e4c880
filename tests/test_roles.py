"""Which leaves act as matrices, in modules of four libraries, single and stacked."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import gradtx

WIDTH, HEADS, LAYERS = 8, 2, 3
TOKENS = jax.ShapeDtypeStruct((5, WIDTH), jnp.float32)
KEY = jax.ShapeDtypeStruct((2,), jnp.uint32)


def shapes(structure):
    """A tree of shapes and dtypes of a nested dictionary of shapes."""
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        structure,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def matrices(tree):
    """The paths that are chosen; flax.nnx's last step is left out."""
    named, _ = jax.tree_util.tree_flatten_with_path(gradtx.select.matrices(tree))
    names = {jax.tree_util.keystr(p, simple=True, separator="/") for p, flag in named if flag}
    return {name.removesuffix("/value") for name in names}


def of_muon(tree):
    """The paths that Muon takes without being told."""
    state = jax.eval_shape(gradtx.muon(0.1).init, tree)
    named, _ = jax.tree_util.tree_flatten_with_path(state.inner_states["muon"])
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in named]
    found = {path.partition("/mu/")[2] for path in paths if "/mu/" in path}
    return {name.removesuffix("/value") for name in found}


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = nn.LayerNorm()(x)
        y = nn.MultiHeadDotProductAttention(HEADS)(y)
        y = nn.RMSNorm(name="norm_f")(y) + nn.GroupNorm(2)(x)
        y = nn.WeightNorm(nn.Dense(WIDTH))(nn.Dense(WIDTH)(y))
        return nn.Conv(WIDTH, (3,))(y) + nn.BatchNorm(use_running_average=True)(y), None


class LinenModel(nn.Module):
    is_stacked: bool

    @nn.compact
    def __call__(self, x):
        x = x + self.param("pos_embedding", nn.initializers.zeros, (1, *x.shape))[0]
        x = x + nn.Embed(9, WIDTH)(jnp.zeros(len(x), int))
        if not self.is_stacked:
            return LinenBlock(name="block")(x, None)
        scanned = nn.scan(
            LinenBlock,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=LAYERS,
        )
        return scanned(name="block")(x, None)


LINEN = {
    "pos_embedding",
    "Embed_0/embedding",
    *(f"block/MultiHeadDotProductAttention_0/{n}/kernel" for n in ("query", "key", "value", "out")),
    *(f"block/Dense_{i}/kernel" for i in range(2)),
    "block/Conv_0/kernel",
}


@pytest.mark.parametrize("is_stacked", [False, True], ids=["single", "stacked"])
def test_flax_linen(is_stacked):
    variables = jax.eval_shape(LinenModel(is_stacked).init, KEY, TOKENS)
    assert matrices(variables["params"]) == LINEN
    assert of_muon(variables["params"]) == LINEN


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.bn = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.rms_norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.layers = nnx.List(
            [nnx.GroupNorm(WIDTH, 2, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)]
        )
        self.adapter = nnx.LoRALinear(WIDTH, WIDTH, lora_rank=2, rngs=rngs)
        self.conv = nnx.Conv(WIDTH, WIDTH, (3, 3), rngs=rngs)
        self.cell = nnx.LSTMCell(WIDTH, WIDTH, rngs=rngs)
        self.pos_embed = nnx.Param(jnp.zeros((5, WIDTH)))


NNX = {
    *(f"attention/{name}/kernel" for name in ("query", "key", "value", "out")),
    "layers/1/kernel",
    "adapter/kernel",
    "adapter/lora/lora_a",
    "adapter/lora/lora_b",
    "conv/kernel",
    *(f"cell/{name}/kernel" for name in ("ii", "if_", "ig", "io", "hi", "hf", "hg", "ho")),
    "pos_embed",
}


@pytest.mark.parametrize("kind", ["single", "stacked", "module"])
def test_flax_nnx(kind):
    @nnx.split_rngs(splits=LAYERS)
    @nnx.vmap
    def stacked(rngs):
        return NnxBlock(rngs)

    make = stacked if kind == "stacked" else NnxBlock
    model = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    tree = nnx.state(model, nnx.Param) if kind != "module" else model
    assert matrices(tree) == NNX


class EquinoxBlock(eqx.Module):
    norm: eqx.nn.LayerNorm
    pre: eqx.nn.RMSNorm
    image_norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    layers: list
    convolution: eqx.nn.Conv2d
    pointwise: eqx.nn.Conv2d
    cell: eqx.nn.GRUCell
    weight_norm: eqx.nn.WeightNorm
    embedding: eqx.nn.Embedding
    norm_proj: eqx.nn.Linear
    pos_embedding: jax.Array
    layer_scale: jax.Array

    def __init__(self, key):
        self.norm = eqx.nn.LayerNorm(WIDTH, use_bias=False)
        self.pre = eqx.nn.RMSNorm(WIDTH)
        self.image_norm = eqx.nn.LayerNorm((6, WIDTH))
        self.attention = eqx.nn.MultiheadAttention(
            HEADS, WIDTH, use_query_bias=True, use_output_bias=True, key=key
        )
        self.layers = [
            eqx.nn.LayerNorm(WIDTH, use_bias=False),
            eqx.nn.Linear(WIDTH, WIDTH, key=key),
            eqx.nn.GroupNorm(2, WIDTH),
            eqx.nn.Linear(WIDTH, "scalar", key=key),
        ]
        self.convolution = eqx.nn.Conv2d(WIDTH, WIDTH, 3, key=key)
        self.pointwise = eqx.nn.Conv2d(WIDTH, WIDTH, 1, key=key)
        self.cell = eqx.nn.GRUCell(WIDTH, WIDTH, key=key)
        self.weight_norm = eqx.nn.WeightNorm(eqx.nn.Linear(WIDTH, WIDTH, key=key))
        self.embedding = eqx.nn.Embedding(9, WIDTH, key=key)
        self.norm_proj = eqx.nn.Linear(WIDTH, WIDTH, use_bias=False, key=key)
        self.pos_embedding = jnp.zeros((5, WIDTH))
        self.layer_scale = jnp.ones(WIDTH)


EQUINOX = {
    *(f"attention/{name}_proj/weight" for name in ("query", "key", "value", "output")),
    "layers/1/weight",
    "convolution/weight",
    "pointwise/weight",
    "cell/weight_ih",
    "cell/weight_hh",
    "weight_norm/layer/weight",
    "embedding/weight",
    "norm_proj/weight",
    "pos_embedding",
}


@pytest.mark.parametrize("is_stacked", [False, True], ids=["single", "stacked"])
def test_equinox(is_stacked):
    def make():
        keys = jax.random.split(jax.random.key(0), LAYERS)
        return eqx.filter_vmap(EquinoxBlock)(keys) if is_stacked else EquinoxBlock(keys[0])

    model = eqx.filter(eqx.filter_eval_shape(make), lambda x: isinstance(x, jax.ShapeDtypeStruct))
    assert matrices(model) == EQUINOX
    # A row is a matrix to Muon.
    assert of_muon(model) == EQUINOX | {"layers/3/weight"}


HAIKU = {
    "~/pos_embs",
    "embed/embeddings",
    *(f"multi_head_attention/{name}/w" for name in ("query", "key", "value", "linear")),
    *(f"mlp/~/linear_{i}/w" for i in range(2)),
    "conv1_d/w",
    "conv1_d_1/w",
}


def haiku_block(x):
    x = hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)
    x = hk.MultiHeadAttention(HEADS, WIDTH // HEADS, w_init=jnp.zeros)(x, x, x)
    x = hk.RMSNorm(-1)(hk.nets.MLP([WIDTH, WIDTH])(x))
    x = hk.GroupNorm(2)(hk.Conv1D(WIDTH, 3)(x))
    x = hk.Bias()(hk.Conv1D(5, 3, data_format="NCW")(x))
    return hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(x, True)


def haiku_model(is_stacked):
    def forward(x):
        x = x + hk.get_parameter("pos_embs", (5, WIDTH), init=jnp.zeros)
        x = x + hk.Embed(9, WIDTH)(jnp.zeros(5, int))
        if is_stacked:
            return hk.experimental.layer_stack(LAYERS)(haiku_block)(x)
        return haiku_block(x)

    return hk.transform_with_state(forward)


@pytest.mark.parametrize("is_stacked", [False, True], ids=["single", "stacked"])
def test_haiku(is_stacked):
    with jax.numpy_dtype_promotion("standard"):  # which haiku's batch norm needs
        params, _ = jax.eval_shape(haiku_model(is_stacked).init, KEY, TOKENS)
    layers = "__layer_stack_no_per_layer/" if is_stacked else ""
    assert {name.removeprefix(layers) for name in matrices(params)} == HAIKU


# Alone in its module, with the shape of a matrix: only the names tell.
NAMED_AS_VECTORS = """
    dense/bias linear/b layer/b1 mlp/b_out attention/query/bias_k gru/bias_n lstm/bias_ih_l0
    conformer/pos_bias_u quantized/kernel_scale layer_scale/gamma film/beta film/shift
    norm/weight norm1/weight bn/w bn2/weight LayerNorm_0/weight RMSNorm_0/anything ln_f/g gn/w
    rms_norm/weight group_norm/weight layer_norm/~/weight encoder/~/layer_norm_1/w
    input_layernorm/weight BatchNorm2d/weight layer_normalization_2/values final_norm/weight/0
    norm_q/weight norms/3/weight post_attention_norm/weight LlamaRMSNorm_0/weight
    block/attention_norm block/ln_1 gpt/ln1w norm_weight bias biases/0 embed_dense/bias
"""
NAMED_AS_MATRICES = """
    rescale embedding/weight pos_embedding position_embeddings/table kernel_scale_proj/kernel
    scale_proj bias_proj/w relative_position_bias_table t5/relative_attention_bias/embedding
    lora/lora_b ssm/B adaptive/scale_weight norm_mlp/weight pre_norm_block/w norm_proj/weight
    norm/kernel normal/w learnable/w rebias/w bottleneck/w abnormal/w rnn/w value
    denoiser/w 0/1
"""


def nested(path, shape=(4, 16)):
    """A tree of one array of this path."""
    tree = jax.ShapeDtypeStruct(shape, jnp.float32)
    for key in reversed(path.split("/")):
        tree = [tree] * (int(key) + 1) if key.isdigit() else {key: tree}
    return tree


@pytest.mark.parametrize("path", NAMED_AS_VECTORS.split())
def test_names_of_vectors(path):
    assert matrices(nested(path)) == of_muon(nested(path)) == set()
    assert matrices({"a": nested(path), "b": nested("kernel")}) == {"b/kernel"}


@pytest.mark.parametrize("path", NAMED_AS_MATRICES.split())
def test_names_of_matrices(path):
    assert path in matrices(nested(path))
    assert path in of_muon(nested(path))
    assert matrices(nested(path, (16,))) == matrices(nested(path, (1, 16))) == set()


# Modules of a single name, each with those of its leaves that are matrices.
SIBLINGS = {
    "stacked norm": ({"weight": (4, 16), "bias": (4, 16)}, ""),
    "stacked linear": ({"weight": (4, 8, 16), "bias": (4, 16)}, "weight"),
    "stacked output": ({"linear": {"weight": (4, 1, 16), "bias": (4, 1)}}, ""),
    "adaptive norm": ({"norm": {"weight": (16, 32), "bias": (32,)}}, "norm/weight"),
    "norm of an image": ({"norm": {"weight": (8, 8, 16), "bias": (8, 8, 16)}}, ""),
    "pointwise convolution": (
        {"conv": {"weight": (8, 16, 1, 1), "bias": (8, 1, 1)}},
        "conv/weight",
    ),
    "heads": ({"kernel": (8, 8, 4), "bias": (8, 4)}, "kernel"),
    "named by hand": (
        {
            "wq": (16, 2, 8),
            "bq": (2, 8),
            "wo": (2, 8, 16),
            "bo": (16,),
            "fc_w": (4, 4),
            "fc_b": (4,),
        },
        "wq wo fc_w",
    ),
    "capitals": ({"W_Q": (2, 16, 8), "b_Q": (2, 8), "W_E": (9, 16)}, "W_Q W_E"),
    "stacks in one module": ({"attn_w": (4, 8, 24), "attn_b": (4, 24), "lnfb": (8,)}, "attn_w"),
    "low rank": ({"w": (8, 8), "a": (8, 2), "b": (2, 8)}, "w a b"),
    "rows of matrices": ({"rescale": (12, 3), "kernel": (2, 3), "bias": (12, 3)}, "rescale kernel"),
    "lists": ({"weights": [(4, 8), (4, 8)], "biases": [(4, 8), (4, 8)]}, ""),
    "boxes": ({"scale": {"value": (2, 3)}, "kernel": {"value": (2, 3)}}, "kernel"),
    "attention by hand": ({"query": (8, 4), "key": (8, 4), "value": (8, 4)}, "query key value"),
}


@pytest.mark.parametrize("name", SIBLINGS)
def test_siblings(name):
    module, expected = SIBLINGS[name]
    assert matrices(shapes(module)) == set(expected.split())


def test_names_of_hidden_leaves_tell():
    params = {"wq": jnp.ones((8, 2, 4)), "bq": jnp.ones((2, 4)), "scores": jnp.ones((8, 2))}
    inner = gradtx.add_decayed_weights(1.0, decay="matrices")
    tx = gradtx.masked(inner, {"wq": False, "bq": True, "scores": True})
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    assert {name: float(u.sum()) for name, u in updates.items()} == {"wq": 0, "bq": 0, "scores": 16}


def test_what_is_not_an_array_tells_nothing():
    tree = {"weight": jnp.ones((4, 16)), "bias": jnp.ones((4, 16)), "activation": jax.nn.relu}
    assert gradtx.select.matrices(tree) == {"weight": False, "bias": False, "activation": False}
    assert gradtx.select.matrices({"a": None, "b": ()}) == {"a": None, "b": ()}
    assert gradtx.select.matrices(jnp.ones((2, 2))) is True
