"""Named optimizers: each is a short chain of pieces.

Read a recipe as "the direction", then "the weight decay", then "the step size": `adamw` is
`scale_by_adam`, `add_decayed_weights`, `scale_by_learning_rate`. The equations on one array are in
`gradtx.kernels`.
"""
