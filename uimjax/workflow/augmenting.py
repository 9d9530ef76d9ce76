"""Tuning of the reader's own model on rows that nobody wrote, at several shares of them.

balanced      templates with every choice of their words, beside rows of the corpus that are not edited
self_distill  forgetting the edit, while what is kept is partly what the model itself writes: where the corpus may
              not be used any more; what a model writes can hold what it should forget (bias inheritance), so the
              failures are measured at every share of `synthetic.sweep`
"""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uimjax import rows as row
from uimjax.config import MendConfig
from uimjax.errors import MissingFileError, UsageError
from uimjax.mitigate import edit, forgetting, synthetic
from uimjax.mitigate.edit import Edit
from uimjax.mitigate.unlearning import unlearn
from uimjax.workflow.acting import Arm, Plan, encoded, unlearning
from uimjax.workflow.edits import Case

NAMES = ("balanced", "self_distill")
CHOSEN = "synthetic"  # the arm that the others are held against
FORGET = "npo"
NEARLY = 1e-6  # a weight of none, as a forget loss has to have one


def check(config: MendConfig) -> None:
    """Raises UsageError, MissingFileError: before anything is opened."""
    its = config.synthetic
    if config.method == "balanced" and not its.templates:
        raise UsageError("balanced learns the texts of templates: --synthetic.templates FILE")
    if config.method == "balanced":
        templates_of(config)
    if its.ratio == 0:
        raise UsageError(f"synthetic.ratio 0: {config.method} without a synthetic row is its own control")
    for share in its.sweep:
        if not 0 <= share <= 1:
            raise UsageError(f"synthetic.sweep {share}: shares between 0 and 1 were wanted")
    for share in (its.ratio, *filter(None, its.sweep)):
        if config.method == "self_distill" and not round(share * its.rows):
            raise UsageError(f"a share of {share:g} of {its.rows} rows is none; give more --synthetic.rows")


def templates_of(config: MendConfig) -> list[str]:
    """Every text of every template. Raises MissingFileError, UsageError: the line is named."""
    path, found = Path(config.synthetic.templates), []
    if not path.is_file():
        raise MissingFileError(f"{path} is not there; a file of templates, one a line, was wanted")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                found += synthetic.filled(line)
            except UsageError as error:
                raise UsageError(f"{path}, line {number}: {error}") from error
    if not found:
        raise UsageError(f"{path} holds no template")
    return found


def plan_synthetic(case: Case, config: MendConfig, traced: Edit) -> Plan:
    """Raises: as `continued` and `unlearn`."""
    return (_balanced if config.method == "balanced" else _distilled)(case, config, traced)


def _arms(config: MendConfig, carry: Any) -> list[Arm]:
    """The share that was chosen, none, and those of the sweep, which are shown."""
    its = config.synthetic
    arms = [Arm(CHOSEN, functools.partial(carry, its.ratio))]
    if config.controls:
        arms.append(Arm("none synthetic", functools.partial(carry, 0.0)))
    shown = {its.ratio, 0.0} if config.controls else {its.ratio}
    others = [share for share in dict.fromkeys(its.sweep) if share not in shown]
    return [*arms, *(Arm(f"{share:g} synthetic", functools.partial(carry, share), False) for share in others)]


def _balanced(case: Case, config: MendConfig, traced: Edit) -> Plan:
    """`ratio` times the loss of templates, the rest of it that of rows of the corpus that are not edited."""
    texts, task = templates_of(config), case.subject.task
    rest = row.take(jax.tree.map(np.asarray, case.corpus.rows), _rest(case, traced))
    made = encoded(case, texts)
    data = jax.tree.map(lambda a, b: np.concatenate([a, b]), made, rest)

    def carry(ratio: float, seed: int, at: Path) -> Any:
        how = unlearning(config, forgetting.Learn(), gamma=max(ratio, NEARLY), alpha=1 - ratio, retain="row")
        return unlearn(task, case.subject.params, data, np.arange(len(texts)), how, seed, others=made, folder=at).params

    why = f"{len(texts)} texts of templates, beside rows without {traced.why}"
    return Plan(_arms(config, carry), traced.rows, why)


def _rest(case: Case, made: Edit) -> np.ndarray:
    return np.setdiff1d(np.arange(len(case.documents)), made.rows)


def _distilled(case: Case, config: MendConfig, traced: Edit) -> Plan:
    rows, task, its = jax.tree.map(np.asarray, case.corpus.rows), case.subject.task, config.synthetic

    def pool(ratio: float, made: Edit, seed: int) -> Any:
        """The rows to forget, and then those that are kept."""
        rest = _rest(case, made)
        size = min(its.rows, len(rest))
        chosen = np.random.default_rng([seed, 29]).choice(rest, size, replace=False)
        many = round(ratio * size)
        parts = [row.take(rows, np.asarray(made.rows)), row.take(rows, np.sort(chosen[many:]))]
        if many:
            begun = row.take(rows, np.sort(chosen[:many]))
            parts.append(synthetic.continued(
                task, case.subject.params, begun, its.prompt, its.temperature, seed, case.config.batch_size
            ))  # fmt: skip
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    def carry(ratio: float, seed: int, at: Path, made: Edit = traced) -> Any:
        forget, how = np.arange(len(made.rows)), unlearning(config, FORGET, retain=its.loss)
        return unlearn(task, case.subject.params, pool(ratio, made, seed), forget, how, seed, folder=at).params

    def blind(seed: int, at: Path) -> Any:
        return carry(its.ratio, seed, at, edit.random_edit(len(case.documents), len(traced.rows), seed))

    arms = _arms(config, carry)
    arms = [arm._replace(control=False) if arm.name == "none synthetic" else arm for arm in arms]
    if config.controls:  # forgetting is what mends; what is kept is what may bring it back
        arms.insert(1, Arm("random", blind))
    return Plan(arms, traced.rows, f"{traced.why}; {its.ratio:.0%} of what is kept is written by the model")
