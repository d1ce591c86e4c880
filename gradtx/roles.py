"""What the leaves of a tree are for: matrices, or vectors such as biases and scales.

A stack of vectors has the shape of a matrix, so shapes alone are not enough. Names are split into
words at underscores, digits and capital letters, `LayerNorm_0` into `Layer` and `Norm`, and the
last word of a name that is listed below counts. The first of these rules that applies decides:

    1. A leaf is a vector by the words bias, offset, shift, beta, scale, gamma and gain, and by
       those of a norm: `layer_scale`, `ln_1`, `norm_weight`, but neither `rescale` nor
       `scale_proj`. Otherwise a name that ends in the word weight or w says nothing.
    2. A leaf is a bias by the name `b`, `b1` or `b_out`, or by a sibling with a `w` in place of the
       `b` at an end of its name (`bq` next to `wq`), but not next to one with an `a` (`lora_b`).
    3. A leaf of a norm is a vector, unless it has the word of a matrix (`norm/kernel`) or more axes
       than a bias next to it. A module is a norm by its class or, if that has none of the words, by
       its name: `LayerNorm_0`, `bn1`, `ln_f`, but not `norm_mlp`.
    4. Where all arrays of a module share leading axes, those that its biases have in addition to
       their own axis count the layers of a stack, and the remaining axes decide. A bias's own axis
       is its last one that is longer than 1; in a linear layer, the last one.
    5. The shape decides.

Numbers in a path and the boxes of flax (`kernel/value`) are not names, and haiku's `~` is not a
module.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np

from gradtx.trees import is_parameter

Shape: TypeAlias = tuple[int, ...]
Kind: TypeAlias = Literal["bias", "scale", "norm", "matrix", "weight"]

_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("bias", "biases", "offset", "offsets", "shift", "beta"), "bias"),
    **dict.fromkeys(("scale", "scales", "gamma", "gain"), "scale"),
    **dict.fromkeys(("norm", "ln", "bn", "gn", "rms"), "norm"),
    **dict.fromkeys(("w", "weight", "weights"), "weight"),
    **dict.fromkeys(("kernel", "matrix", "table", "embed", "embedding", "embeddings"), "matrix"),
    **dict.fromkeys(("linear", "dense", "conv", "proj", "projection", "head"), "matrix"),
    **dict.fromkeys(("attention", "attn", "mlp", "ffn", "rnn", "lstm", "gru", "block"), "matrix"),
}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_END_OF_NORM = re.compile(r"(norms?|normali[sz]ation)$")
_BIAS = re.compile(r"b\d*|b_\w+")
_LINEAR = {"linear", "dense"}
_WRAPPERS = ("value", "raw_value")
# In place of a leaf that belongs to another group: only its name is known.
_HIDDEN = object()


class _Step(NamedTuple):
    """A key of a path, the class of the node that has it, and whether it is the only one there."""

    key: str
    holder: str
    is_only: bool


class _Place(NamedTuple):
    """Where a leaf lies: its name, its module, what follows the name, and the module's class."""

    name: str
    module: tuple[str, ...]
    rest: tuple[str, ...]
    holder: str

    @property
    def module_name(self) -> str:
        """The last part of the module's path that is not a number."""
        return next((name for name in reversed(self.module) if not name.isdigit()), "")


def layer_shapes(tree: Any) -> list[Shape]:
    """The shape that each leaf has in one layer, by the rule of this module.

    Args:
        tree: arrays, or their shapes and dtypes, with anything else among them.

    Returns:
        For each leaf of `jax.tree.leaves(tree)` its shape without the axes that count the layers of
        a stack, as far as they are known; for a vector only its last axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.roles import layer_shapes
        >>> layers = {"norm": {"weight": jnp.ones((12, 3))}, "proj": {"weight": jnp.ones((12, 3))}}
        >>> layer_shapes(layers)
        [(3,), (12, 3)]
    """
    shapes: list[Shape] = []
    places: list[_Place] = []
    modules: dict[tuple[Any, ...], dict[str, Shape | None]] = {}
    for steps, leaf in _steps(tree, ()):
        place, shape = _place_of(steps), tuple(np.shape(leaf))
        if leaf is not _HIDDEN:
            places.append(place)
            shapes.append(shape)
        if leaf is _HIDDEN or is_parameter(leaf):
            own = None if leaf is _HIDDEN else shape
            modules.setdefault((place.module, place.rest), {})[place.name] = own
    return [
        _layer_shape(place, shape, modules.get((place.module, place.rest), {}))
        for place, shape in zip(places, shapes, strict=True)
    ]


def _steps(node: Any, above: tuple[_Step, ...]) -> Iterator[tuple[tuple[_Step, ...], Any]]:
    """Each leaf, and each placeholder for one, with the keys that lead to it."""
    parts, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    if not parts and above:
        yield above, _HIDDEN
    for path, part in parts:
        if not path:
            yield above, part
            continue
        key = jax.tree_util.keystr(path, simple=True, separator="/")
        yield from _steps(part, (*above, _Step(key, type(node).__name__, len(parts) == 1)))


def _place_of(steps: tuple[_Step, ...]) -> _Place:
    end = len(steps)
    while end and (
        steps[end - 1].key.isdigit()
        or (steps[end - 1].is_only and steps[end - 1].key in _WRAPPERS and end > 1)
    ):
        end -= 1
    names = [name for step in steps[:end] for name in step.key.split("/") if name != "~"]
    return _Place(
        names[-1] if names else "",
        tuple(names[:-1]),
        tuple(step.key for step in steps[end:]),
        steps[end - 1].holder if end else "",
    )


def _layer_shape(place: _Place, shape: Shape, beside: Mapping[str, Shape | None]) -> Shape:
    kind = _kind_of_leaf(place.name, beside)
    if kind in ("bias", "scale", "norm"):
        return shape[-1:]
    known = {name: other for name, other in beside.items() if other is not None}
    biases = [other for name, other in known.items() if _kind_of_leaf(name, beside) == "bias"]
    if kind != "matrix" and _is_norm(place) and all(len(shape) <= len(bias) for bias in biases):
        return shape[-1:]
    together = zip(*known.values(), strict=False)
    shared = itertools.takewhile(lambda lengths: len({*lengths}) == 1, together)
    is_linear = not _LINEAR.isdisjoint(_words(place.holder) + _words(place.module_name))
    stack = min((_number_of_layers(bias, is_linear) for bias in biases), default=0)
    return shape[min(stack, len(list(shared))) :]


def _kind_of_leaf(name: str, beside: Iterable[str]) -> Kind | None:
    """What the name of a leaf says, given the names of its siblings; None if it says nothing."""
    with_a, with_w, with_capital = (_with(letter, name) & set(beside) for letter in "awW")
    if (with_w or with_capital) and not with_a:
        return "bias"
    kinds = _kinds(name)
    if kinds and kinds[-1] == "weight":
        return "norm" if kinds[-2:-1] == ("norm",) else None
    if not kinds and _BIAS.fullmatch(name) and not with_a:
        return "bias"
    return kinds[-1] if kinds else None


def _with(letter: str, name: str) -> set[str]:
    """The names with this letter in place of a b at one end."""
    first = {letter + name[1:]} if name.startswith("b") else set()
    return first | ({name[:-1] + letter} if name.endswith("b") else set())


def _words(name: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in _WORD.findall(name))


@functools.lru_cache(maxsize=4096)
def _kinds(name: str) -> tuple[Kind, ...]:
    """What the known words of a name say, in their order."""
    words = ("norm" if _END_OF_NORM.search(word) else word for word in _words(name))
    return tuple(_KINDS[word] for word in words if word in _KINDS)


def _is_norm(place: _Place) -> bool:
    """Whether a leaf belongs to a norm, by the class of its module or else by its name."""
    for name in (place.holder, place.module_name):
        kinds = [kind for kind in _kinds(name) if kind in ("norm", "matrix")]
        if kinds:
            return kinds[-1] == "norm"
    return False


def _number_of_layers(bias: Shape, is_linear: bool) -> int:
    """How many axes of a bias count layers."""
    while bias and bias[-1] == 1 and not is_linear:
        bias = bias[:-1]  # of a convolution in the layout (channels, height, width)
    return max(len(bias) - 1, 0)
