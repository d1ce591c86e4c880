"""Averages in place of schedules."""

import gradtx

from .export import Export

STAYS = {"none_leaves": "without a gradient the average still moves towards z"}

EXPORTS = {
    "schedule_free": Export(
        lambda: gradtx.schedule_free(gradtx.adam(0.1, b1=0.0), 0.1), begins_with_values=True
    ),
    "schedule_free_sgd": Export(
        lambda: gradtx.schedule_free_sgd(0.1, warmup_steps=3, r=1.0), begins_with_values=True
    ),
    "schedule_free_adamw": Export(lambda: gradtx.schedule_free_adamw(0.1), begins_with_values=True),
}
