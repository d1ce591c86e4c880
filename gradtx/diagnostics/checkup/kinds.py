"""The kinds of findings: what programs compare, how bad they are, and what they mean."""

# For each part of a check-up, its kinds: the severities that they have, and a line on each.
from __future__ import annotations

KINDS: dict[str, dict[str, tuple[str, str]]] = {
    "signal": {
        "nan": ("error", "a NaN or an infinity, and the operation that it comes from"),
        "vanishing": ("error", "the signal or its gradient shrinks from layer to layer"),
        "exploding": ("error", "the signal or its gradient grows from layer to layer"),
        "dead": ("error", "a layer's units are zero for the whole batch"),
        "saturated": ("error", "a layer's units are where the nonlinearity is flat"),
        "zero_loss": ("error", "the loss is exactly zero"),
        "constant_loss": ("error", "the loss has no gradient at all"),
        "unseen": ("remark", "an operation with parameters that cannot be looked into"),
    },
    "parameters": {
        "unused": ("warning", "the loss does not depend on a parameter"),
        "blocked": ("error, warning, remark", "an operation passes no gradient on to a parameter"),
        "constant_state": ("error", "a loop returns its state as it came"),
        "constant_norm": ("error", "a norm over a single number leaves nothing of it"),
        "running_average": ("warning", "a batch norm uses averages that nobody has taken"),
        "zero_gradient": ("warning, remark", "a gradient is exactly zero for this batch"),
        "integer_parameter": ("warning", "a parameter that no gradient can train"),
        "identical_units": ("error", "units with the same weights and the same gradients"),
        "lost_update": ("warning", "steps of the optimizer are lost in rounding"),
    },
    "data": {
        "nan_data": ("error, remark", "NaN or infinity in the batch or the parameters"),
        "identical_examples": ("warning, remark", "all examples are the same, or most"),
        "constant_feature": ("error, warning, remark", "a feature is the same in all examples"),
        "huge_feature": (
            "error, warning",
            "a feature drowns the others, or does not fit its dtype",
        ),
        "unstandardized": ("warning", "inputs that are too large, tiny, or hardly vary"),
        "target_leak": ("warning", "a feature is the target, up to a factor and an offset"),
        "wrong_layout": ("error, warning", "a convolution takes rows of images for channels"),
    },
    "labels": {
        "index_out_of_range": ("error, warning", "indices beyond a table"),
        "label_out_of_range": ("error, warning", "labels beyond the classes"),
        "single_class": ("warning", "all labels are the same"),
        "class_imbalance": ("warning", "one class has nearly all labels"),
        "swapped_arguments": ("error", "a cross-entropy takes the logarithm of the labels"),
        "several_labels": ("warning", "targets with several ones meet a softmax"),
        "class_as_number": ("warning", "a regression on the numbers of classes"),
    },
    "head": {
        "initial_loss": ("warning, remark", "the loss starts far above that of guessing"),
        "large_logits": ("warning", "the same, because the logits are large"),
        "double_softmax": ("error, warning", "a softmax or sigmoid is applied twice"),
        "target_out_of_range": ("error, warning", "targets that the outputs cannot reach"),
        "no_nonlinearity": ("error, warning", "layers with nothing between them"),
        "wrong_sign": ("error", "the likelihood is minimized"),
        "dominant_penalty": ("warning", "a penalty on the parameters outweighs the data"),
        "moving_target": ("error, warning", "a gradient passes through returns or advantages"),
    },
    "attention": {
        "one_hot_attention": ("warning", "queries that see a single key at the start"),
        "unscaled_attention": ("warning", "scores that are not divided by the root of the width"),
        "empty_mask": ("error, warning", "a mask hides all keys from a query"),
        "full_mask": ("warning, remark", "a mask hides nothing"),
    },
    "examples": {
        "mixed_examples": ("error, warning, remark", "the loss of an example depends on others"),
        "sum_over_examples": ("warning", "the loss is a sum over the batch, and no mean"),
        "padding": ("warning, remark", "padding takes part in the loss"),
        "future_leak": ("error", "a prediction sees what it is to predict"),
        "self_similarity": ("error", "an example is its own negative in a contrastive loss"),
    },
    "shapes": {
        "broadcast_difference": ("error", "(N, 1) and (N,) become (N, N)"),
        "broadcast_target": ("error, warning", "a target is repeated to meet predictions"),
        "wrong_axis": ("error", "a softmax is over another axis than that of the classes or keys"),
    },
    "dropout": {
        "same_mask": ("warning, remark", "the same units are dropped in several places or steps"),
        "dropout_rate": ("warning", "nearly everything is dropped"),
        "dropped_outputs": ("warning", "outputs are dropped"),
    },
    "precision": {
        "overflow": ("error, warning", "a result exceeds the largest number of its dtype"),
        "underflow": ("error, warning", "a result becomes zero"),
        "vanishing_epsilon": ("error, warning", "an epsilon is zero in half precision"),
        "low_precision_sum": ("warning", "a sum of many terms in half precision"),
    },
    "learning": {
        "cannot_overfit": ("warning, remark", "the loss of one batch does not fall"),
        "wrong_gradient": ("error", "a custom derivative is not that of the function"),
        "learning_rate": ("error, warning", "the learning rate is too large, or too small"),
        "update_ratio": ("error, warning", "steps longer than the weights, or far too short"),
        "weight_decay": ("warning", "weight decay outweighs the gradient"),
        "always_clipped": ("warning", "the gradient is clipped in each step"),
    },
    "any": {
        "not_examined": ("remark", "an examination that failed"),
    },
}
