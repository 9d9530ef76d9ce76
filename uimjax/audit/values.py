"""Weakness 6, values: does the model prefer the answer that it should not give?

The probe, over held-out questions:

    mean[p(rejected) / (p(rejected) + p(chosen))]      the preference's probability (Bradley and Terry), 0 to 1

Beside it `error`: share of the items with the bad answer likelier, and the mean `lead` in nats.
"""

import functools
from typing import Any

from uimjax.audit import base
from uimjax.task import Measurement, Task


def probe(task: Task, params: Any, pairs: Any) -> base.Probed:
    """`pairs`: `{"bad": rows of rejected answers, "good": rows of chosen ones}`."""
    return base.of_pairs(task, params, pairs)


@functools.lru_cache(maxsize=16)
def measurement(task: Task) -> Measurement:
    """Queries are `(rows of rejected answers, rows of chosen ones)`; rises with the failure."""
    return base.lead(task, "values", "log p of the rejected answer minus that of the chosen one")
