"""Further relatives of Adam, and the cautious wrapper."""

import gradtx

from .export import Export, halved, matrices

EXPORTS = {
    "acprop": Export(lambda: gradtx.acprop(0.1)),
    "adamini": Export(lambda: gradtx.adamini(0.1)),
    "adan": Export(lambda: gradtx.adan(0.1)),
    "adan-schedules": Export(lambda: gradtx.adan(halved, weight_decay=0.1, mask=matrices)),
    "ademamix": Export(lambda: gradtx.ademamix(0.1)),
    "ademamix-schedules": Export(lambda: gradtx.ademamix(0.1, b3=halved, alpha=halved)),
    "adopt": Export(lambda: gradtx.adopt(0.1)),
    "cautious": Export(lambda: gradtx.cautious(gradtx.adam(0.1))),
    "madgrad": Export(lambda: gradtx.madgrad(0.1), begins_with_values=True),
    "mars": Export(lambda: gradtx.mars(0.1)),
    "scale_by_acprop": Export(gradtx.scale_by_acprop),
    "scale_by_adamini": Export(gradtx.scale_by_adamini),
    "scale_by_adan": Export(gradtx.scale_by_adan),
    "scale_by_ademamix": Export(gradtx.scale_by_ademamix),
    "scale_by_adopt": Export(gradtx.scale_by_adopt),
    "scale_by_madgrad": Export(lambda: gradtx.scale_by_madgrad(0.1), begins_with_values=True),
    "scale_by_mars": Export(gradtx.scale_by_mars),
    "scale_by_simplified_ademamix": Export(gradtx.scale_by_simplified_ademamix),
    "simplified_ademamix": Export(lambda: gradtx.simplified_ademamix(0.1)),
}
