"""How the state of a transformation lies on the devices, found without making one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from gradtx import trees
from gradtx.compose.sequence import as_transformation
from gradtx.messages import shown
from gradtx.precision.blocks import spec_of_scales

_OWNER = "state_shardings"
_Path = tuple[Any, ...]


def state_shardings(
    tx: optax.GradientTransformation,
    params: Any,
    shardings: Any = None,
    *,
    memory_kind: str | None = None,
) -> Any:
    """The shardings of an optimizer's state, for parameters that are sharded on a mesh.

    Each array of the state lies where its parameter does: one of the parameter's shape as the
    parameter itself; one that keeps some of its axes, such as the row sums of Adafactor, along
    these; a stack of `grouped` as the leaves in it, and not along its first axis. Counts, keys and
    other numbers of the whole tree are on all devices. Of an array that `quantize_state` keeps in
    blocks, the codes lie as it would, and the scales so along the axes before the blocks, and along
    the first of theirs if their number can be divided.

    This is where a transformation of this library puts its state, in a compiled `init` too. One of
    optax, whose compiled state is on one device or on all of them, puts it there with
    `jax.jit(tx.init, out_shardings=...)`. A restored state gets there with `jax.device_put`, or at
    once if the target that orbax is given has these shardings.

    Args:
        tx: the transformation, of gradtx, optax or your own.
        params: the parameters, or their shapes and dtypes.
        shardings: a tree of `NamedSharding` on one mesh for the parameters, or a prefix of one,
            such as one for all; None: those that the parameters have.
        memory_kind: the memory that the state is kept in, such as "pinned_host"; scalars stay with
            the parameters. None: that of the parameters.

    Returns:
        A tree of `NamedSharding` in the structure of `tx.init(params)`.

    Raises:
        ValueError: if a parameter has no `NamedSharding`, or one that does not divide its axes,
            naming the path; if they are on different meshes; or if the devices have no memory of
            that kind.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jax.sharding import NamedSharding, PartitionSpec
        >>> import gradtx
        >>> from gradtx.sharding import state_shardings
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> params = {"w": jax.ShapeDtypeStruct((256, 128), jnp.float32)}
        >>> rows = NamedSharding(mesh, PartitionSpec("data", None))
        >>> state = state_shardings(gradtx.scale_by_factored_rms(), params, rows)
        >>> state.v_col["w"].spec, state.v_row["w"].spec, state.count.spec
        (P('data',), P(), P())
    """
    tx = as_transformation(_OWNER, "tx", tx)
    tree = _sharded(params, shardings)
    state = tree.state_of(tx, tree.mesh)
    specs = _Specs(tx, tree).of(state)
    return jax.tree.map(
        lambda leaf, spec: tree.sharding(spec, memory_kind if leaf.ndim else None), state, specs
    )


@dataclass(frozen=True)
class _Sharded:
    """Parameters and how they are sharded.

    Attributes:
        treedef: the structure.
        leaves: the leaves; the shapes and dtypes of arrays.
        specs: the specification of each leaf.
        paths: the path of each leaf.
        mesh: the mesh.
        memory_kind: the kind of memory that the first parameter is in.
    """

    treedef: Any
    leaves: list[Any]
    specs: list[PartitionSpec]
    paths: list[_Path]
    mesh: Any
    memory_kind: str | None

    def state_of(self, tx: optax.GradientTransformation, mesh: Any) -> Any:
        """The state for parameters on this mesh, in the abstract."""
        return jax.eval_shape(*self._init(tx, mesh))

    def compiled_state_of(self, tx: optax.GradientTransformation) -> Any:
        """The shardings that the compiler chooses for the state."""
        init, arrays = self._init(tx, self.mesh)
        return jax.jit(init).lower(arrays).compile().output_shardings

    def _init(self, tx: optax.GradientTransformation, mesh: Any) -> tuple[Any, list[Any]]:
        places = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, jax.ShapeDtypeStruct)]

        def init(arrays: list[Any]) -> Any:
            leaves = [*self.leaves]
            for i, array in zip(places, arrays, strict=True):
                leaves[i] = array
            return tx.init(self.treedef.unflatten(leaves))

        return init, [
            self.leaves[i].update(sharding=NamedSharding(mesh, self.specs[i])) for i in places
        ]

    def sharding(self, spec: PartitionSpec, memory_kind: str | None) -> NamedSharding:
        """A sharding on the mesh."""
        kind = self.memory_kind if memory_kind is None else memory_kind
        try:
            return NamedSharding(self.mesh, spec, memory_kind=kind)
        except ValueError as error:
            raise ValueError(
                f"{_OWNER}: memory_kind must be one that the devices have, got {shown(kind)}; "
                f"{error}"
            ) from error


def _sharded(params: Any, shardings: Any) -> _Sharded:
    """The parameters with their shardings, which are checked."""
    named, treedef = jax.tree_util.tree_flatten_with_path(params)
    paths, leaves = [path for path, _ in named], [leaf for _, leaf in named]
    given = [getattr(leaf, "sharding", None) for leaf in leaves]
    if shardings is not None:
        try:
            broadcast = jax.tree.broadcast(shardings, params, is_leaf=lambda own: own is None)
        except ValueError as error:
            raise ValueError(
                f"{_OWNER}: shardings must be a tree like params, or a prefix of one; {error}"
            ) from error
        given = treedef.flatten_up_to(broadcast)
    for path, leaf, own in zip(paths, leaves, given, strict=True):
        _check(trees.path_name(path), leaf, own)
    known = [own for own in given if isinstance(own, NamedSharding)]
    meshes = {own.mesh for own in known}
    if len(meshes) != 1:
        raise ValueError(f"{_OWNER}: the parameters must be on one mesh, got {shown([*meshes])}")
    return _Sharded(
        treedef,
        [_type_of(leaf) for leaf in leaves],
        [own.spec if isinstance(own, NamedSharding) else PartitionSpec() for own in given],
        paths,
        known[0].mesh,
        known[0].memory_kind,
    )


def _check(path: str, leaf: Any, sharding: Any) -> None:
    """Refuse a parameter whose sharding is missing or does not fit."""
    if not isinstance(sharding, NamedSharding):
        if trees.is_parameter(leaf):
            raise ValueError(
                f"{_OWNER}: the parameter at '{path}' needs a NamedSharding, got {shown(sharding)}"
            )
        return
    shape, spec = np.shape(leaf), [*sharding.spec]
    sizes = [_number_of_devices(sharding.mesh, axes) for axes in spec]
    if len(spec) > len(shape) or any(n % size for n, size in zip(shape, sizes, strict=False)):
        raise ValueError(
            f"{_OWNER}: {sharding.spec} does not divide the axes of '{path}' of shape {shape} on a "
            f"mesh of {dict(sharding.mesh.shape)}"
        )


def _number_of_devices(mesh: Any, axes: Any) -> int:
    """The number of parts into which mesh axes divide an array's axis."""
    names = axes if isinstance(axes, tuple) else (axes,)
    return int(np.prod([mesh.shape[name] for name in names if isinstance(name, str)], dtype=int))


def _type_of(leaf: Any) -> Any:
    """The shape and dtype of an array or number; anything else as it is."""
    if not (hasattr(leaf, "dtype") or isinstance(leaf, bool | int | float | complex)):
        return leaf
    return jax.ShapeDtypeStruct(np.shape(leaf), getattr(leaf, "dtype", jax.numpy.result_type(leaf)))


class _Specs:
    """Where the arrays of a state lie.

    On a mesh whose axes are explicit, layouts are parts of types, so that the state in the abstract
    has them all. What cannot be traced there is asked of the compiler, and what neither tells is
    where the parameter lies that has the same path and shape.

    Args:
        tx: the transformation.
        tree: the parameters.
    """

    def __init__(self, tx: optax.GradientTransformation, tree: _Sharded) -> None:
        self._mesh = tree.mesh
        self._owners = dict(zip(tree.paths, zip(tree.leaves, tree.specs, strict=True), strict=True))
        try:
            self._found = self._by_path(tree.state_of(tx, _explicit(tree.mesh)))
        except Exception:  # whatever explicit axes refuse: init as such has been traced before
            self._found = {}
            if isinstance(tree.mesh, Mesh):
                shapes, where = tree.state_of(tx, tree.mesh), tree.compiled_state_of(tx)
                self._found = self._by_path(shapes, where)

    def _by_path(self, state: Any, shardings: Any = None) -> dict[_Path, Any]:
        """The shape and specification of each array that is sharded on a mesh."""
        named, treedef = jax.tree_util.tree_flatten_with_path(state)
        where = treedef.flatten_up_to(state if shardings is None else shardings)
        where = [getattr(own, "sharding", own) for own in where]
        return {
            path: (leaf.shape, own.spec)
            for (path, leaf), own in zip(named, where, strict=True)
            if isinstance(own, NamedSharding) and any(axis is not None for axis in own.spec)
        }

    def of(self, state: Any) -> Any:
        """The specification of each array of a state."""
        return jax.tree_util.tree_map_with_path(self._of_node, state, is_leaf=trees.is_stored)

    def _of_node(self, path: _Path, node: Any) -> Any:
        if not trees.is_stored(node):
            return self._of_array(path, node.shape)
        named, treedef = jax.tree_util.tree_flatten_with_path(node)
        specs = [self._of_array((*path, *below), array.shape) for below, array in named]
        if all(spec == PartitionSpec() for spec in specs):
            whole = self._of_array(path, node.shape)
            specs = [self._within(whole, node.shape, array.shape) for _, array in named]
        return treedef.unflatten(specs)

    def _within(self, whole: Any, shape: tuple[int, ...], own: tuple[int, ...]) -> PartitionSpec:
        """How an array of an array's form lies, by how that would."""
        return whole if own == shape else PartitionSpec(*spec_of_scales(whole, self._mesh, own))

    def _of_array(self, path: _Path, shape: tuple[int, ...]) -> PartitionSpec:
        found, spec = self._found.get(path, (None, None))
        if found == shape:
            return spec
        return self._beside_its_parameter(path, shape)

    def _beside_its_parameter(self, path: _Path, shape: tuple[int, ...]) -> PartitionSpec:
        places = [path[start:] for start in range(len(path) + 1)]
        for leaf, spec in (self._owners[own] for own in places if own in self._owners):
            if shape == np.shape(leaf):
                return spec
            # A stack, in which the leaf is the first.
            if shape[1:] == np.shape(leaf):
                return PartitionSpec(None, *spec)
            break
        return PartitionSpec()


def _explicit(mesh: Any) -> AbstractMesh:
    """The same mesh with explicit axes."""
    sizes = tuple(mesh.shape[name] for name in mesh.axis_names)
    types = (AxisType.Explicit,) * len(sizes)
    return AbstractMesh(sizes, mesh.axis_names, axis_types=types)
