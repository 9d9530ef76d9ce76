"""The dynamics of training: what each example does to the loss, step by step, in fixed memory per example."""

from uimjax.understand.dynamics.averaging import averaged
from uimjax.understand.dynamics.collector import Collector, State, Statistics
from uimjax.understand.dynamics.elsewhere import cartography, logits_log, steps_log
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
from uimjax.understand.dynamics.influence import agreement
from uimjax.understand.dynamics.labels import indicator_labels, label_issues, threshold
from uimjax.understand.dynamics.reading import clusters, compare, detection, documents_of, ranks, spikes, suspicious
from uimjax.understand.dynamics.scoring import Definitions, scores
from uimjax.understand.dynamics.table import Table, read, read_seeds, write

__all__ = [
    "Collector", "Definitions", "State", "Statistics", "Table", "agreement", "averaged", "cartography", "clusters",
    "compare", "detection", "documents_of", "graded", "indicator_labels", "input_gradients", "label_issues",
    "logits_log", "noise_init", "noise_scale", "noise_update", "ranks", "read", "read_seeds", "scores", "spikes",
    "steps_log", "suspicious", "threshold", "vog_finish", "vog_init", "vog_update", "write",
]  # fmt: skip
