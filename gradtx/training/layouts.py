"""A compiled step that leaves each array of its state where it lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import NamedSharding


class KeptLayouts:
    """A function of a state and a batch, compiled so that the new state lies as the old one does.

    The compiler may otherwise choose: replicated parameters beside a sharded state would become
    sharded ones in the first step, which would then be compiled again. On axes that are explicit,
    types say how arrays lie.

    Args:
        function: returns the new state and anything else.
        donate: whether the state's memory may be reused.
    """

    def __init__(self, function: Callable[[Any, Any], tuple[Any, Any]], *, donate: bool) -> None:
        self.__wrapped__ = function
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self._donated = (0,) if donate else ()
        self._compiled: dict[Any, Any] = {}

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """Take a step."""
        return self._for(state)(state, batch)

    def trace(self, state: Any, batch: Any) -> Any:
        """See `jax.jit`."""
        return self._for(state).trace(state, batch)

    def lower(self, state: Any, batch: Any) -> Any:
        """See `jax.jit`."""
        return self._for(state).lower(state, batch)

    def _cache_size(self) -> int:
        """How often the function was compiled for calls, as compiled functions of JAX tell it."""
        return sum(compiled._cache_size() for compiled in self._compiled.values())

    def _for(self, state: Any) -> Any:
        """The compiled function for a state that lies like this."""
        # One device leaves no choice.
        layouts = jax.tree.map(_layout_of, state) if jax.device_count() > 1 else None
        leaves, treedef = jax.tree.flatten(layouts, is_leaf=lambda leaf: leaf is None)
        key = treedef, tuple(leaves)
        if key not in self._compiled:
            out = None if all(leaf is None for leaf in leaves) else (layouts, None)
            self._compiled[key] = jax.jit(
                self.__wrapped__, donate_argnums=self._donated, out_shardings=out
            )
        return self._compiled[key]


def _layout_of(leaf: Any) -> NamedSharding | None:
    """How an array lies on the automatic axes of a mesh; None: the compiler decides, or a type."""
    sharding = None if isinstance(leaf, Tracer) else getattr(leaf, "sharding", None)
    if not isinstance(sharding, NamedSharding) or sharding.mesh.size == 1:
        return None
    return sharding if len(sharding.mesh.auto_axes) == len(sharding.mesh.axis_names) else None
