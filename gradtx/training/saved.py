"""What a checkpoint holds: arrays in the form that orbax stores, and descriptions of them."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding

from gradtx import trees
from gradtx.inspection.layouts import rows_of_stacks
from gradtx.messages import shown

# Marks an array or a key among the values of JSON.
_MARK = "gradtx.training"


class Leaf(NamedTuple):
    """What an array of a checkpoint is.

    Attributes:
        dtype: the name of its dtype.
        shape: its shape.
        generator: the generator of PRNG keys; None: it has no keys, or none that are known.
        rows: how many rows are more than padding, in a stack (see `GroupedState`); 0: it is none.
    """

    dtype: str
    shape: tuple[int, ...]
    generator: str | None = None
    rows: int = 0

    @classmethod
    def of(cls, leaf: Any) -> Leaf:
        """The description of an array, a number, or the shape of an array."""
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        has_keys = _is_key(leaf) and isinstance(leaf, jax.Array)
        generator = str(jax.random.key_impl(leaf)) if has_keys else None
        return cls(str(dtype), np.shape(leaf), generator)

    @classmethod
    def from_json(cls, fields: Any) -> Leaf:
        """The description that was written as a list."""
        dtype, shape, generator, rows = fields
        return cls(dtype, tuple(shape), generator, rows)

    def fits(self, target: Leaf) -> bool:
        """Whether it can be restored as another array: itself, or with other padding."""
        if self[:2] == target[:2]:
            return True
        is_of_rows = self.dtype == target.dtype and self.shape[1:] == target.shape[1:]
        return is_of_rows and len(target.shape) > 0 and 0 < self.rows <= target.shape[0]

    def __str__(self) -> str:
        """As it is written in messages: float32[2,3]."""
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


Leaves = Mapping[str, Leaf]


def leaves_of(owner: str, what: str, tree: Any) -> dict[str, Leaf]:
    """The description of each array of a tree, by its path.

    Raises:
        ValueError: if a leaf is not an array or a number, or orbax would mix up two leaves.
    """
    found: dict[str, Leaf] = {}
    names: dict[str, str] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        place = trees.path_name(path)
        if not hasattr(leaf, "dtype") and not isinstance(leaf, bool | int | float | complex):
            raise ValueError(
                f"{owner}: {what} must consist of arrays, got {shown(leaf)} at '{place}'"
            )
        # What an array is called in the files.
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name in names:
            raise ValueError(
                f"{owner}: {what} must not have two arrays of one name, got '{names[name]}' and "
                f"'{place}', which are both stored as '{name}'"
            )
        names[name] = place
        found[place] = Leaf.of(leaf)
    return found


def with_rows(leaves: Leaves, state: Any) -> dict[str, Leaf]:
    """The descriptions of a state that has its parameters as `params`, with the rows of stacks."""
    params = state.get("params") if isinstance(state, Mapping) else getattr(state, "params", None)
    found = {} if params is None else rows_of_stacks(state, params)
    rows = {trees.path_name(path): number for path, number in found.items()}
    return {path: leaf._replace(rows=rows.get(path, 0)) for path, leaf in leaves.items()}


def differences(saved: Leaves, target: Leaves) -> Iterator[str]:
    """Where a checkpoint and a target have not the same arrays, one line for each path."""
    for path in dict.fromkeys([*saved, *target]):
        if path not in target:
            yield f"'{path}': {saved[path]} in the checkpoint, nothing in the target"
        elif path not in saved:
            yield f"'{path}': nothing in the checkpoint, {target[path]} in the target"
        elif not saved[path].fits(target[path]):
            yield f"'{path}': {saved[path]} in the checkpoint, {target[path]} in the target"


def stored(tree: Any) -> Any:
    """A tree in the form that orbax stores."""

    def one(leaf: Any) -> Any:
        if np.size(leaf) == 0:
            return None  # orbax stores no empty arrays
        data = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        # Of an array that each process has for itself, the first process stores its own.
        is_own = jax.process_count() > 1 and getattr(data, "is_fully_addressable", True)
        return np.asarray(data) if is_own or not isinstance(data, jax.Array) else data

    return jax.tree.map(one, tree)


def advice(found: Sequence[str]) -> str:
    """What to do about differences, if some may be in the state of an optimizer."""
    elsewhere = re.compile(r"'(params|model_state|step|key)(/|')")
    if all(map(elsewhere.match, found)):
        return ""
    return (
        "\nTo go on with another optimizer, restore the state of the old one, and carry it over "
        "with gradtx.migrate."
    )


def to_restore(owner: str, target: Any, saved: Leaves) -> Any:
    """A tree that says how orbax is to restore what `restored` makes the leaves of `target` of."""

    def one(path: Any, leaf: Any) -> Any:
        if np.size(leaf) == 0:
            return None
        description = saved[trees.path_name(path)]
        data = _data_of(leaf, description)
        sharding = _sharding(owner, path, leaf)
        if sharding is None:  # an array of NumPy, described by one that takes no memory
            shape = (*description.shape, *data.shape[np.ndim(leaf) :])
            return np.broadcast_to(np.zeros((), data.dtype), shape)
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(one, target)


def restored(owner: str, target: Any, found: Any, saved: Leaves) -> Any:
    """The tree of arrays that orbax has restored for `to_restore`, as `target` has them."""
    named, treedef = jax.tree_util.tree_flatten_with_path(target)

    def one(path: Any, leaf: Any, part: Any) -> Any:
        description = saved[trees.path_name(path)]
        if part is None:
            data, sharding = _data_of(leaf, description), _sharding(owner, path, leaf)
            part = np.zeros(data.shape, data.dtype)
            part = part if sharding is None else jax.device_put(part, sharding)
        elif description.shape != np.shape(leaf) and not isinstance(part, jax.Array):
            # Other padding; orbax sees to that of arrays on a mesh.
            rows = part[: description.rows]
            part = np.zeros((np.shape(leaf)[0], *part.shape[1:]), part.dtype)
            part[: len(rows)] = rows
        if _is_key(leaf):
            return jax.random.wrap_key_data(jnp.asarray(part), impl=description.generator)
        if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            return part if isinstance(part, jax.Array) else jnp.array(part)
        return np.asarray(part) if hasattr(leaf, "dtype") else type(leaf)(part)

    parts = treedef.flatten_up_to(found)
    return treedef.unflatten(
        one(path, leaf, part) for (path, leaf), part in zip(named, parts, strict=True)
    )


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _data_of(leaf: Any, saved: Leaf) -> jax.ShapeDtypeStruct:
    """The type of the numbers that are stored for a leaf."""
    if not _is_key(leaf):
        return jax.ShapeDtypeStruct(np.shape(leaf), np.dtype(Leaf.of(leaf).dtype))
    data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=saved.generator)))
    return jax.ShapeDtypeStruct((*leaf.shape, *data.shape), data.dtype)


def _sharding(owner: str, path: Any, leaf: Any) -> Any:
    """Where an array is to lie; None for an array that is bound to no device."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None or (isinstance(leaf, jax.Array) and not leaf.committed):
        return None
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh):
        mesh = jax.sharding.get_mesh()
        if mesh.empty:
            raise ValueError(
                f"{owner}: target must say on which devices '{trees.path_name(path)}' is to lie, "
                "got a mesh without devices; set the mesh with jax.set_mesh"
            )
        return NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)
    return sharding


def to_json(owner: str, what: str, value: Any, place: str = "") -> Any:
    """A small tree as values of JSON: numbers, strings, None, arrays and PRNG keys.

    Raises:
        ValueError: if there is anything else in it.
    """
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [to_json(owner, what, x, f"{place}/{i}") for i, x in enumerate(value)]
        case Mapping() if all(isinstance(key, str) for key in value):
            return {key: to_json(owner, what, x, f"{place}/{key}") for key, x in value.items()}
        case np.ndarray() | np.generic() | jax.Array():
            return {_MARK: _array_to_json(value)}
    at = f" at '{place[1:]}'" if place else ""
    raise ValueError(
        f"{owner}: {what} must consist of dictionaries (with strings as keys), lists, numbers, "
        f"strings, None, arrays and PRNG keys, got {shown(value)}{at}"
    )


def _array_to_json(array: Any) -> list[Any]:
    data = np.asarray(jax.random.key_data(array) if _is_key(array) else array)
    text = base64.b64encode(data.tobytes()).decode()
    return [str(data.dtype), data.shape, Leaf.of(array).generator, text]


def from_json(value: Any) -> Any:
    """The tree that `to_json` was given, with lists for tuples and arrays of NumPy."""
    if isinstance(value, list):
        return [from_json(x) for x in value]
    if not isinstance(value, dict):
        return value
    if set(value) != {_MARK}:
        return {key: from_json(x) for key, x in value.items()}
    dtype, shape, generator, text = value[_MARK]
    array = np.frombuffer(base64.b64decode(text), np.dtype(dtype)).reshape(shape).copy()
    if generator is None:
        return array
    return jax.random.wrap_key_data(jnp.asarray(array), impl=generator)


def as_settings(owner: str, settings: Any) -> Any:
    """Settings as they come back from a file.

    Raises:
        ValueError: if they are not values of JSON, or have no names.
    """
    if settings is None:
        return None
    if not isinstance(settings, Mapping):
        raise ValueError(f"{owner}: settings must be a dictionary, got {shown(settings)}")
    for name, value in settings.items():
        try:
            json.dumps({name: value}, allow_nan=True)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{owner}: settings must be values of JSON, got {shown(value)} at {name!r}"
            ) from error
    return json.loads(json.dumps(dict(settings)))


def other_settings(saved: Any, given: Any, place: str = "") -> Iterator[str]:
    """Which settings are not the same, one line for each."""
    if not (isinstance(saved, dict) and isinstance(given, dict)):
        if json.dumps(saved) != json.dumps(given):
            yield f"'{place[1:]}': {shown(saved)} in the checkpoint, {shown(given)} now"
        return
    for key in dict.fromkeys([*saved, *given]):
        if key in saved and key in given:
            yield from other_settings(saved[key], given[key], f"{place}/{key}")
        else:
            where = "only in the checkpoint" if key in saved else "only now"
            yield f"'{f'{place}/{key}'[1:]}': {shown(saved.get(key, given.get(key)))} {where}"


def lines_of(found: Sequence[str], limit: int = 6) -> str:
    """The first lines for a message, and how many more there are."""
    more = [f"and {len(found) - limit:,} more"] if len(found) > limit else []
    return "".join(f"\n  {line}" for line in [*found[:limit], *more])
