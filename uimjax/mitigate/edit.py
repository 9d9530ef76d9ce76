"""An Edit: which rows, what to do with them, by which rule. A readable file before anything runs."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from uimjax import rows as row
from uimjax.errors import UsageError
from uimjax.mitigate.unlearning import Unlearning, unlearn
from uimjax.steps import Recipe
from uimjax.store import read_manifest, write_manifest
from uimjax.task import Task
from uimjax.training import fit


@dataclass(frozen=True)
class Edit:
    """`rows`: ids, most suspicious first. `arm`: who chose them. `why`: the rule, in words."""

    arm: Literal["traced", "random", "oracle", "ranked", "curated"]
    rows: tuple[int, ...]
    why: str


def budget_rows(share: float, count: int) -> int:
    """The size of an edit: a share of the training rows, fixed before any score is seen."""
    return max(1, round(share * count))


def traced_edit(scores: np.ndarray, size: int, method: str) -> Edit:
    """The `size` strongest proponents; on a tie the lower id.

    Raises:
        UsageError: fewer rows than the edit needs.
    """
    if size >= len(scores):
        raise UsageError(f"an edit of {size} rows, of {len(scores)} rows in all; lower the budget")
    order = np.argsort(-np.asarray(scores), kind="stable")[:size]
    return Edit("traced", tuple(int(i) for i in order), f"the {size} strongest proponents by {method}")


def random_edit(count: int, size: int, seed: int) -> Edit:
    """The control that would expose a placebo: as many rows, drawn blindly."""
    chosen = np.random.default_rng([seed, 11]).choice(count, size, replace=False)
    return Edit("random", tuple(sorted(int(i) for i in chosen)), f"{size} rows drawn blindly, seed {seed}")


def write_edit(path: Path, edit: Edit) -> None:
    write_manifest(path, asdict(edit))


def read_edit(path: Path) -> Edit:
    found = read_manifest(path)
    return Edit(found["arm"], tuple(found["rows"]), found["why"])


def apply_edit(
    task: Task, params: Any, data: Any, edit: Edit, how: Recipe | Unlearning, seed: int, others: Any = None,
    weight: float = 0.0, folder: Path | None = None,
) -> Any:  # fmt: skip
    """New parameters: unlearn the rows, or fine-tune without them (a `Recipe`: drop-and-fine-tune), or with `weight` on
    them. `others`: as `unlearn` takes them, one for each row of the edit. `folder`: a stopped one goes on there.

    Raises:
        UsageError: the edit names rows that are not there, one twice, or all. As `unlearn` and `fit`.
    """
    ids = row.chosen(edit.rows, row.count(data), "in the edit")
    if isinstance(how, Unlearning):
        return unlearn(task, params, data, ids, how, seed, others=others, folder=folder).params
    weights = np.ones(row.count(data), np.float32)
    weights[ids] = weight
    return fit(task, params, data, replace(how, seed=seed), weights=weights, folder=folder, save_every=1).params
