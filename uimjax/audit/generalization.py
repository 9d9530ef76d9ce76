"""Weakness 2, generalization: where a shortcut and the truth disagree, which does the model follow?

The probe, over items of the group in which the spurious cue points elsewhere (the worst group of arXiv 1911.08731):

    mean[p(the cue's answer) / (p(the cue's answer) + p(the true answer))]      0: the truth, 1: the shortcut

Beside it `error`: share of the items with the bad answer likelier, and the mean `lead` in nats.
"""

import functools
from typing import Any

from uimjax.audit import base
from uimjax.task import Measurement, Task


def probe(task: Task, params: Any, pairs: Any) -> base.Probed:
    """`pairs`: `{"bad": rows of the cue's answer, "good": rows of the true one}`."""
    return base.of_pairs(task, params, pairs)


@functools.lru_cache(maxsize=16)
def measurement(task: Task) -> Measurement:
    """Queries are `(rows of the cue's answer, rows of the true one)`; rises with the failure."""
    return base.lead(task, "generalization", "log p of the shortcut's answer minus that of the true one")
