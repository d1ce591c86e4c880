"""A loss as JAX traces it: a list of equations between its parameters and a number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from gradtx import trees
from gradtx.diagnostics.tracing.provenance import Origin, TracedValue
from gradtx.inputs import loss_and_aux
from gradtx.messages import shown


@dataclass(frozen=True)
class TracedLoss:
    """A loss, traced.

    Attributes:
        closed_jaxpr: the equations, as a function of the parameters and then the data.
        params: the inexact arrays among the parameters.
        data: the arrays among the other arguments.
        names: the path of each parameter.
        data_names: the path of each array of the data.
        integers: the paths of the integer arrays among the parameters, which count as data.
    """

    closed_jaxpr: Any
    params: list[jax.Array]
    data: list[jax.Array]
    names: list[str]
    data_names: list[str]
    integers: tuple[str, ...] = ()

    @property
    def all_names(self) -> list[str]:
        """How to refer to each argument in a sentence."""
        return [*(f"parameter '{name}'" for name in self.names), *self.data_names]

    def values(self, params: Sequence[jax.Array], data: Sequence[jax.Array]) -> list[TracedValue]:
        """The arguments, for an interpreter of the equations."""
        return [
            *(TracedValue(array, origin=Origin(leaf)) for leaf, array in enumerate(params)),
            *(TracedValue(array, is_signal=True) for array in data),
        ]

    def call(self, params: Sequence[jax.Array], data: Sequence[jax.Array]) -> jax.Array:
        """The loss of other parameters or other data of the same shapes."""
        return jaxpr_as_fun(self.closed_jaxpr)(*params, *data)[0]

    def gradient(self) -> TracedLoss:
        """The loss and its gradient, traced together."""
        value_and_grad = jax.value_and_grad(self.call)
        closed_jaxpr = jax.make_jaxpr(value_and_grad)(self.params, self.data)
        return TracedLoss(closed_jaxpr, self.params, self.data, self.names, self.data_names)


def trace_loss(
    owner: str, loss_fn: Callable[..., Any], params: Any, args: Sequence[Any], *, has_aux: bool
) -> TracedLoss:
    """Trace a loss with respect to all arrays among its arguments.

    Args:
        owner: name of the caller, which opens error messages.
        loss_fn: the loss, `loss_fn(params, *args)`.
        params: the parameters; leaves that are not inexact arrays are left alone.
        args: the other arguments; leaves that are not arrays are left alone.
        has_aux: whether the loss returns a pair of the loss and something else.

    Raises:
        ValueError: if `loss_fn` is not callable, `params` has no parameters, or the loss is not a
            real scalar.
    """
    if not callable(loss_fn):
        raise ValueError(f"{owner}: loss_fn must be a function, got {shown(loss_fn)}")
    leaves, treedef = jax.tree.flatten((params, tuple(args)))
    number = len(jax.tree.leaves(params))
    is_parameter = [i < number and trees.is_trained(leaf) for i, leaf in enumerate(leaves)]
    is_data = [
        not known and hasattr(leaf, "dtype") and hasattr(leaf, "shape")
        for leaf, known in zip(leaves, is_parameter, strict=True)
    ]
    if not any(is_parameter):
        raise ValueError(f"{owner}: params must have inexact arrays, got {shown(params)}")
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path((params, tuple(args)))[0]]

    def loss_of(params: Sequence[jax.Array], data: Sequence[jax.Array]) -> jax.Array:
        given_params, given_data = iter(params), iter(data)
        full = [
            next(given_params) if mine else next(given_data) if given else leaf
            for leaf, mine, given in zip(leaves, is_parameter, is_data, strict=True)
        ]
        full_params, full_args = jax.tree.unflatten(treedef, full)
        result = loss_fn(full_params, *full_args)
        return loss_and_aux(owner, result, has_aux=has_aux)[0]

    arrays_of_params, arrays_of_data = (
        [jnp.asarray(leaf) for leaf, is_chosen in zip(leaves, chosen, strict=True) if is_chosen]
        for chosen in (is_parameter, is_data)
    )
    names = [
        trees.path_name(path[1:]) for path, mine in zip(paths, is_parameter, strict=True) if mine
    ]
    data_names = [
        f"argument {('params', 'args')[path[0].idx]}{jax.tree_util.keystr(path[1:])}"
        for path, given in zip(paths, is_data, strict=True)
        if given
    ]
    closed_jaxpr = jax.make_jaxpr(loss_of)(arrays_of_params, arrays_of_data)
    integers = tuple(
        trees.path_name(path[1:])
        for path, leaf, given in zip(paths[:number], leaves, is_data, strict=False)
        if given and jnp.issubdtype(leaf.dtype, jnp.integer)
    )
    return TracedLoss(closed_jaxpr, arrays_of_params, arrays_of_data, names, data_names, integers)
