"""The dynamics of training: what each example does to the loss, step by step, in fixed memory per example."""

from uimjax.understand.dynamics.collector import Collector, State, Statistics
from uimjax.understand.dynamics.gradients import (
    graded,
    input_gradients,
    noise_init,
    noise_scale,
    noise_update,
    vog_finish,
    vog_init,
    vog_update,
)
from uimjax.understand.dynamics.scores import Definitions, scores

__all__ = [
    "Collector", "Definitions", "State", "Statistics", "graded", "input_gradients", "noise_init", "noise_scale",
    "noise_update", "scores", "vog_finish", "vog_init", "vog_update",
]  # fmt: skip
