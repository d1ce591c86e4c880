"""GaLore, in subspaces of rank 2."""

import gradtx

from .export import Export

EXPORTS = {
    "galore": Export(lambda: gradtx.galore(0.1, rank=2, weight_decay=0.1)),
    "scale_by_galore": Export(
        lambda: gradtx.scale_by_galore(rank=2, update_proj_gap=1, projected_side="longer")
    ),
}
