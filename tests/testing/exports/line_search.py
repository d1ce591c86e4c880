"""Functions of optax that are exported unchanged."""

import gradtx

from .export import FLOAT32, OWNED_BY_OPTAX, Export, with_value

EXPORTS = {
    "lbfgs": Export(gradtx.lbfgs, with_value, FLOAT32, skip=OWNED_BY_OPTAX),
    "scale_by_backtracking_linesearch": Export(
        lambda: gradtx.scale_by_backtracking_linesearch(5), with_value, FLOAT32, skip=OWNED_BY_OPTAX
    ),
    "scale_by_lbfgs": Export(gradtx.scale_by_lbfgs, None, FLOAT32, skip=OWNED_BY_OPTAX),
    "scale_by_zoom_linesearch": Export(
        lambda: gradtx.scale_by_zoom_linesearch(5), with_value, FLOAT32, skip=OWNED_BY_OPTAX
    ),
}
