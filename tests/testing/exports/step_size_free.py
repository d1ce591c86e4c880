"""Methods that find their own step size."""

import gradtx

from .export import Export, bowl, halved, matrices


def with_value(params):
    return {"value": bowl(params)}


EXPORTS = {
    "cocob": Export(lambda: gradtx.cocob(weight_decay=0.1, mask=matrices), begins_with_values=True),
    "dadapt_adamw": Export(lambda: gradtx.dadapt_adamw(weight_decay=0.1, growth_rate=1.5)),
    "dog": Export(lambda: gradtx.dog(halved, weight_decay=0.1), begins_with_values=True),
    "dowg": Export(lambda: gradtx.dowg(weight_decay=0.1, mask=matrices), begins_with_values=True),
    "mechanize": Export(lambda: gradtx.mechanize(gradtx.adam(halved))),
    "momo": Export(lambda: gradtx.momo(weight_decay=0.1, adapt_lower_bound=True), with_value),
    "momo_adam": Export(lambda: gradtx.momo_adam(halved, weight_decay=0.1), with_value),
    "polyak_sgd": Export(lambda: gradtx.polyak_sgd(scaling=halved), with_value),
    "prodigy": Export(lambda: gradtx.prodigy(safeguard_warmup=True), begins_with_values=True),
    "prodigy-growth_rate": Export(lambda: gradtx.prodigy(growth_rate=1.5), begins_with_values=True),
    "scale_by_cocob": Export(gradtx.scale_by_cocob, begins_with_values=True),
    "scale_by_distance_over_gradients": Export(
        lambda: gradtx.scale_by_distance_over_gradients(global_scale=halved),
        skip={"double_precision": "param_dtype is float32 by default, as in optax"},
        begins_with_values=True,
    ),
    "scale_by_polyak": Export(lambda: gradtx.scale_by_polyak(variant="sps+"), with_value),
}
