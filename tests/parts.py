"""What a transformation is put together from."""

import optax

from gradtx.compose.parts import locality_of, parts_of
from gradtx.lift import kernel_of


def kernels_in(tx: optax.GradientTransformation) -> set[str]:
    """The names of its kernels."""
    if (kernel := kernel_of(tx)) is not None:
        return {kernel.name}
    return {name for part in parts_of(tx) for name in kernels_in(part.transformation)}


def is_elementwise(tx: optax.GradientTransformation) -> bool:
    """Whether it is made of kernels alone, each of which sees nothing but single elements."""
    if (kernel := kernel_of(tx)) is not None:
        return kernel.elementwise and not kernel.measures
    is_local = locality_of(tx) in (None, "element")
    parts = [part.transformation for part in parts_of(tx)]
    return is_local and bool(parts) and all(map(is_elementwise, parts))
