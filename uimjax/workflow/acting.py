"""What a mitigation does with an edit of the reader's own model: each arm as a function from a seed to parameters."""

import dataclasses
import functools
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax import steps, store
from uimjax.config import MendConfig
from uimjax.errors import UnknownNameError, UsageError
from uimjax.mitigate import edit, forgetting, newton
from uimjax.mitigate.edit import Edit
from uimjax.mitigate.private import Private, fine_tune
from uimjax.mitigate.synthetic import swapped
from uimjax.mitigate.unlearning import Unlearning, unlearn
from uimjax.store.base import atomic, make_folder
from uimjax.task import Task
from uimjax.workflow.edits import Case, ranked_edit

TUNED = ("drop", "downweight", "private", "newton")  # beside the forget losses
WITH_OTHERS = ("cda", "dpo")  # losses that see another answer to every row


class Arm(NamedTuple):
    """`carry(seed, folder)` returns new parameters. `control`: the first arm is held against it; else it is shown."""

    name: str
    carry: Callable[[int, Path], Any]
    control: bool = True


def told(name: str) -> str:
    """An arm, to a reader."""
    return f"{name} rows" if name in ("traced", "ranked", "random", "curated") else name


class Plan(NamedTuple):
    """`arms`: the method itself, then what it is held against; `rows`: those that it acts on; `why`: by which rule;
    `culprits`: whether the rows are an edit of what a trace found; `clean`: rows that tell the cost (default: others).
    """

    arms: list[Arm]
    rows: tuple[int, ...]
    why: str
    culprits: bool = True
    clean: Any = None


def choice(config: MendConfig) -> str | Unlearning | Private | steps.Recipe:
    """What the method's name stands for, with the config's choices. Raises UnknownNameError, UsageError."""
    if config.method not in (*forgetting.LOSSES, *TUNED):
        raise UnknownNameError("method", config.method, [*forgetting.LOSSES, *TUNED])
    given = bool(config.swap) + bool(config.instead)
    if config.method == "cda" and (not config.swap or config.instead):
        raise UsageError("cda sets words of two groups in each other's place: --swap he=she")
    if config.method == "dpo" and given != 1:
        raise UsageError("dpo wants another answer for every row to forget: either the row with words in each other's "
                         "place, --swap he=she, or one text for all, --instead 'I do not know.'")  # fmt: skip
    pairs_of(config)
    if config.method == "newton":
        return config.method
    if config.method == "private":
        return Private(
            config.epsilon, clip=config.clip, steps=config.steps, batch_size=config.retain_size,
            together=config.retain_size, learning_rate=config.learning_rate,
        )  # fmt: skip
    return recipe(config) if config.method in ("drop", "downweight") else unlearning(config, config.method)


def recipe(config: MendConfig) -> steps.Recipe:
    return steps.Recipe(config.epochs, config.retain_size, config.learning_rate, clip=1.0, warmup=0.1)


def unlearning(config: MendConfig, loss: Any, **more: Any) -> Unlearning:
    kept = more.get("alpha", forgetting.get(loss).alpha) > 0
    made: dict[str, Any] = {"gamma": config.gamma} | ({"retain": "row"} if config.method == "cda" else {}) | more
    return Unlearning(
        loss, steps=config.steps, heal_steps=config.heal_steps if kept else 0, learning_rate=config.learning_rate,
        batch_size=config.batch_size, retain_size=config.retain_size, most=config.most, lora=config.lora,
        include=config.include, **made,
    )  # fmt: skip


def pairs_of(config: MendConfig) -> list[tuple[str, str]]:
    """The words that change places. Raises UsageError: not a=b."""
    found = [tuple(its.split("=")) for its in config.swap]
    for its, pair in zip(config.swap, found, strict=True):
        if len(pair) != 2 or not all(word.strip() for word in pair):
            raise UsageError(f"--swap {its}: two words were wanted, he=she")
    return found  # type: ignore[return-value]  # of two words each


def plan_edit(case: Case, config: MendConfig, traced: Edit) -> Plan:
    """The rows of an edit, and as many by words and drawn blindly, with another draw for each seed; where words change
    places, among the rows that hold one of them, as the others would stay as they are.

    Raises:
        UsageError: no row of the edit holds a word, or too few others do.
    """
    how, pool = choice(config), np.arange(len(case.documents))
    if config.swap:
        pool = _holding(case, config, traced)
    arms = [Arm("traced", functools.partial(carry_out, case, config, how, traced))]
    if config.controls:
        ranked = ranked_edit(case, len(traced.rows), pool)
        arms.append(Arm("ranked", functools.partial(carry_out, case, config, how, ranked)))
        arms.append(Arm("random", functools.partial(_blind, case, config, how, len(traced.rows), pool)))
    return Plan(arms, traced.rows, traced.why)


def _holding(case: Case, config: MendConfig, traced: Edit) -> np.ndarray:
    """Rows with a word that changes places."""
    pairs, size = pairs_of(config), len(traced.rows)
    texts = case.corpus.texts(range(len(case.documents)))
    held = np.flatnonzero([a != b for a, b in zip(texts, swapped(texts, pairs), strict=True)])
    words = " and ".join(f"{a}={b}" for a, b in pairs)
    if not len(np.intersect1d(held, traced.rows)):
        raise UsageError(f"none of the {size} rows of the edit holds a word of {words}: nothing would change places")
    if config.controls and len(held) < size:
        raise UsageError(f"{len(held)} rows of the corpus hold a word of {words}, and the edit has {size}: no "
                         "control of its size can be drawn; make the edit smaller, or say --no-controls")  # fmt: skip
    return held


def _blind(case: Case, config: MendConfig, how: Any, size: int, pool: np.ndarray, seed: int, at: Path) -> Any:
    drawn = edit.random_edit(len(pool), size, seed)
    rows = tuple(sorted(int(pool[i]) for i in drawn.rows))
    return carry_out(case, config, how, dataclasses.replace(drawn, rows=rows), seed, at)


def carry_out(case: Case, config: MendConfig, how: Any, made: Edit, seed: int, at: Path) -> Any:
    """New parameters of an edit by a choice; a stopped run goes on in the folder `at`."""
    task, params = case.subject.task, case.subject.params
    rows = jax.tree.map(np.asarray, case.corpus.rows)
    if isinstance(how, str):
        return newton.remove(task, params, rows, made.rows, share=config.share, batch_size=config.batch_size).params
    if isinstance(how, Unlearning):
        hidden = _hidden(task) if "hidden" in how.needs else None
        others = others_of(case, config, made) if "other" in how.needs else None
        return unlearn(task, params, rows, made.rows, how, seed, others=others, hidden=hidden, folder=at).params
    if isinstance(how, Private):
        rest = row.take(rows, np.setdiff1d(np.arange(len(case.documents)), made.rows))
        made_of = fine_tune(task, params, rest, how, _secret(at.parent / f"{at.name}.seed"), folder=at)
        spent = {"epsilon": made_of.epsilon, "delta": made_of.delta, "noise": made_of.noise}
        store.write_json(at.parent / f"{at.name}.privacy.json", spent)
        return made_of.params
    weight = config.weight if config.method == "downweight" else 0.0
    return edit.apply_edit(task, params, rows, made, how, seed, weight=weight, folder=at)


def _secret(path: Path) -> int:
    """Drawn once and kept for a run that is continued: privacy holds against whoever does not know it, and everybody
    knows 0."""
    if not path.exists():
        make_folder(path.parent)
        with atomic(path) as temporary:
            temporary.write_text(str(secrets.randbits(128)))
    return int(path.read_text())


def others_of(case: Case, config: MendConfig, made: Edit) -> dict[str, np.ndarray]:
    """A row for each of the edit's: one text for all, or the row with words in each other's place, cut where it becomes
    too long."""
    if config.instead:
        return encoded(case, [config.instead] * len(made.rows))
    changed = swapped(case.corpus.texts(made.rows), pairs_of(config))
    starts = case.corpus.metadata()["start"].take(list(made.rows)).to_pylist()
    return encoded(case, changed, [start == 0 for start in starts])


def encoded(case: Case, texts: Sequence[str], begin: Sequence[bool] | None = None) -> dict[str, np.ndarray]:
    """Rows like the corpus's of texts, cut where they are too long; `begin`: which of them a document begins with."""
    length = case.config.length
    found = {name: np.zeros((len(texts), length), values.dtype) for name, values in case.corpus.rows.items()}
    first = [True] * len(texts) if begin is None else begin
    for k, (text, special) in enumerate(zip(texts, first, strict=True)):
        ids = case.subject.tokenizer.encode(text, add_special_tokens=special).ids[:length]
        found["tokens"][k, : len(ids)], found["counted"][k, : len(ids)] = ids, 1
    return found


@functools.lru_cache(maxsize=4)
def _hidden(task: Task):
    """`[T, D]` of the last layer: a task's features are means over the tokens that count, here of one token each. The
    model is run once all the same, since only the mean depends on which."""

    def hidden(params: Any, example: Any) -> Any:
        alone = jnp.eye(len(example["tokens"]))
        return jax.vmap(lambda counted: task.features(params, example | {"counted": counted}))(alone)  # type: ignore[misc]

    return hidden
