"""Weakness 3, deteriorated performance: noise in the training data stands in the way of the right answer.

The probe, over held-out places:

    mean[p(what the noise puts there) / (p(what the noise puts there) + p(the right one))]      0: unharmed

Beside it `error`: share of the items with the bad answer likelier, and the mean `lead` in nats.
"""

import functools
from typing import Any

from uimjax.audit import base
from uimjax.task import Measurement, Task


def probe(task: Task, params: Any, pairs: Any) -> base.Probed:
    """`pairs`: `{"bad": rows of what the noise puts there, "good": rows of the right one}`."""
    return base.of_pairs(task, params, pairs)


@functools.lru_cache(maxsize=16)
def measurement(task: Task) -> Measurement:
    """Queries are `(rows of what the noise puts there, rows of the right one)`; rises with the failure."""
    return base.lead(task, "deterioration", "log p of what noise puts there minus that of the right one")
