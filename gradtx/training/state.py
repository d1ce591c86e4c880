"""The state of a training run: everything that a step reads and replaces."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from gradtx.compose.sequence import as_transformation
from gradtx.messages import shown
from gradtx.trees import path_name

_OWNER = "TrainState.create"


class TrainState(NamedTuple):
    """What a training run carries from step to step, and what its checkpoint holds.

    It is an immutable tree of arrays: it works with `jax.jit`, `jax.device_put`, `jax.tree.map` and
    orbax, and `state._replace(step=...)` returns a changed copy.

    Attributes:
        params: the parameters, a tree of arrays.
        opt_state: the state of the gradient transformation.
        step: the number of calls of the training step, an int32 scalar; calls in which the
            transformation only accumulates a gradient (`MultiSteps`) or skips it count too.
        model_state: the rest of the network's state, such as the running statistics of batch
            normalization; None: there is none.
        key: the PRNG key of the run, from which each step derives its own; None: the loss is not
            random.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.training import TrainState
        >>> state = TrainState.create({"w": jnp.ones(2)}, gradtx.adam(1e-3))
        >>> print(state.params, state.step)
        {'w': Array([1., 1.], dtype=float32)} 0
    """

    params: Any
    opt_state: Any
    step: jax.Array
    model_state: Any = None
    key: jax.Array | None = None

    @classmethod
    def create(
        cls,
        params: Any,
        tx: optax.GradientTransformation,
        model_state: Any = None,
        key: jax.Array | None = None,
    ) -> TrainState:
        """The state before the first step.

        Every array is copied, so that a step may reuse the state's memory (see `donate` of
        `make_train_step`) while the arrays passed here stay valid. If parameters are on a mesh of
        devices, arrays of the state that are not placed yet are replicated over that mesh.

        Args:
            params: the parameters, a tree of arrays or numbers. Functions and other settings, as
                in a module of equinox, have no place in it: `equinox.partition` takes them out.
            tx: the gradient transformation that will update them.
            model_state: the rest of the network's state, a tree of arrays; None: there is none.
            key: the PRNG key of the run, for a loss with dropout or other noise.

        Returns:
            The state, with `step` 0.

        Raises:
            ValueError: if `tx` is not a gradient transformation, or a leaf is neither an array nor
                a number, naming its path.

        Example:
            >>> import jax
            >>> import jax.numpy as jnp
            >>> import gradtx
            >>> from gradtx.training import TrainState
            >>> state = TrainState.create(jnp.zeros(3), gradtx.sgd(0.1), key=jax.random.key(0))
            >>> state.params.shape, state.key.dtype
            ((3,), key<fry>)
        """
        tx = as_transformation(_OWNER, "tx", tx)
        for argument, tree in (("params", params), ("model_state", model_state)):
            _check_arrays(argument, tree)
        state = cls(params, tx.init(params), jnp.zeros([], jnp.int32), model_state, key)
        return _on_one_mesh(jax.tree.map(_copy, state))


def _check_arrays(argument: str, tree: Any) -> None:
    """Refuse functions, texts and other leaves that a compiled step cannot take."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    wrong = {path_name(path): leaf for path, leaf in leaves if not _is_array(leaf)}
    if wrong:
        path, leaf = next(iter(wrong.items()))
        others = len(wrong) - 1
        more = (
            f", and {others:,} other lea{'f' if others == 1 else 'ves'} like it" if others else ""
        )
        raise ValueError(
            f"{_OWNER}: {argument} must be a tree of arrays, got {shown(leaf)} at '{path}'{more}; "
            "take it out with equinox.partition(model, equinox.is_array), and put it back in the "
            "loss with equinox.combine"
        )


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") or isinstance(leaf, bool | int | float | complex)


def _copy(leaf: Any) -> Any:
    # An explicit dtype makes a weakly typed array a strongly typed one. Otherwise its type would
    # change in the first step, and the second step would be compiled again.
    return jnp.array(leaf, dtype=jnp.result_type(leaf), copy=True)


def _on_one_mesh(state: TrainState) -> TrainState:
    """The state with its unplaced arrays replicated over the mesh that the others are on."""

    def mesh_of(leaf: Any) -> Any:
        # A tracer has no sharding yet.
        sharding = getattr(leaf, "sharding", None)
        return sharding.mesh if isinstance(sharding, NamedSharding) else None

    meshes = {mesh for mesh in map(mesh_of, jax.tree.leaves(state)) if mesh is not None}
    if len(meshes) != 1:
        return state
    replicated = NamedSharding(meshes.pop(), PartitionSpec())
    return jax.tree.map(
        lambda leaf: leaf if mesh_of(leaf) is not None else _put(leaf, replicated), state
    )


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    # Onto devices of other processes too, jax puts neither keys nor arrays bound to a device.
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = jax.device_put(np.asarray(jax.random.key_data(leaf)), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return jax.device_put(np.asarray(leaf), sharding)
