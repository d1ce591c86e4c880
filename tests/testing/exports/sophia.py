"""Sophia and its estimate of the Hessian's diagonal."""

import gradtx

from .export import Export, bowl, halved


def with_objective(params):
    """The loss under the name that optax has for it here."""
    return {"obj_fn": bowl}


EXPORTS = {
    "hutchinson_estimator_diag_hessian": Export(
        gradtx.hutchinson_estimator_diag_hessian, with_objective
    ),
    "scale_by_sophia": Export(lambda: gradtx.scale_by_sophia(b2=halved), with_objective),
    "sophia": Export(lambda: gradtx.sophia(0.1, update_interval=2), with_objective),
}
