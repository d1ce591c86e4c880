"""Named optimizers: each is a short chain of pieces.

Read a recipe as "how the direction is found", then "what the weights lose", then "how far to go":
`adamw` is `scale_by_adam`, `add_decayed_weights`, `scale_by_learning_rate`. The equations on one
array are in `gradtx.kernels`.
"""
