"""What the stories of pictures and of text share: the lock, the stages' bookkeeping, the edit and its three arms.

The method and the size of an edit come from the config; the traced edit is on disk before the truth can be read.
"""

import importlib.metadata
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml

import uimjax
from uimjax import checkpoint, steps, store
from uimjax.audit import scorecard
from uimjax.config import LOCK, MitigateChoice, TraceChoice, TrainChoice, read_yaml
from uimjax.errors import CorruptError, MismatchError, MissingFileError, OutputError, UsageError
from uimjax.interpret import methods
from uimjax.interpret.base import Scores
from uimjax.interpret.index import JOURNAL, Index
from uimjax.mitigate import edit, oracle, proof
from uimjax.mitigate.edit import Edit
from uimjax.mitigate.forgetting import CEU, NPO, Counterfactual, GradDiff
from uimjax.mitigate.unlearning import Unlearning
from uimjax.progress import Progress
from uimjax.references import call
from uimjax.report import tables
from uimjax.store.base import atomic
from uimjax.study.outputs import BEFORE, write_outputs
from uimjax.study.outputs import FILE as OUTPUTS
from uimjax.task import SIGN, Task
from uimjax.workflow.saying import Voice

STAGES = ("train", "audit", "trace", "mitigate")
TRACED = ("scores.parquet", "null.parquet", "trace.json", "edit-traced.json")
MITIGATED = (OUTPUTS, "outcomes.json", "causal.json", "scorecard.json", "edit-oracle.json")


@dataclass(frozen=True)
class Failure:
    """One planted failure on its way through the loop: where its files are, and what measures and mends it.

    `data` are the training rows; `outcome` measures new parameters, `voice` lets them speak; `seeds` repeat every
    edit.
    """

    folder: Path
    task: Task
    data: Any
    trace: TraceChoice
    mitigate: MitigateChoice
    train: TrainChoice
    seeds: tuple[int, ...]
    outcome: Callable[[Any], proof.Outcome]
    voice: Voice

    @property
    def truth(self) -> Path:
        return truth_of(self.folder)

    @property
    def decided(self) -> Path:
        return self.folder / "edit-traced.json"


def truth_of(folder: Path) -> Path:
    """The sealed file of what was planted."""
    return folder / "truth.json"


# ---------------------------------------------------------------- before anything runs


def check_methods(trace: TraceChoice, words: bool) -> None:
    """Every method named in the config exists, and fits the corpus."""
    known = [*methods.PRESETS, *methods.BASELINES]
    for name in (trace.method, *trace.compare):
        if name not in known:
            methods.get(name)
        if name == "bm25" and not words:
            raise UsageError("bm25 compares words and this corpus is pictures; leave it out of trace.compare")


def check_budget(mitigate: MitigateChoice, count: int) -> None:
    if edit.budget_rows(mitigate.budget, count) >= count:
        raise UsageError(f"mitigate.budget {mitigate.budget} is every one of the {count} training rows")


def check_one(config: Any, standard: str, instead: str) -> None:
    """Of two keys that exclude each other, the standard one still has its default."""
    if getattr(config, standard) != type(config).model_fields[standard].default:
        raise UsageError(f"{standard} and {instead} are both given, and only one can be used; leave one out")


def parts_of(reference: str) -> tuple[Any, Any]:
    """(train, test) from the reader's own function.

    Raises:
        UsageError: it fails, or returns something else than a pair.
    """
    found = call(reference)
    if not isinstance(found, tuple) or len(found) != 2:
        raise UsageError(f"{reference} returned {type(found).__name__}; a pair (train, test) was wanted")
    return found


def write_lock(folder: Path, config: Any, digests: dict[str, str]) -> None:
    """The resolved config with the corpus's digests: what `uimjax run FOLDER` replays.

    Raises:
        MismatchError: the folder holds a run of the same config on a corpus that has changed since.
    """
    document = {"config": config.model_dump(mode="json"), "corpus": digests, "made_with": made_with()}
    if (folder / LOCK).exists():
        held = read_yaml(folder / LOCK)
        if held.get("config") == document["config"] and held.get("corpus") != digests:
            raise MismatchError(f"the corpus is not the one that {folder} was run on; choose another folder with --out")
    with atomic(folder / LOCK) as temporary:
        temporary.write_text(yaml.safe_dump(document, sort_keys=False))


def made_with() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    named = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "numpy", "tokenizers")}
    return {"uimjax": uimjax.__version__, **named, "python": sys.version.split()[0]}


def versions() -> list[str]:
    return [jax.__version__, uimjax.__version__]


def rebuilt(folder: Path, build: Callable[[], Index]) -> Index:
    """An index in `folder`: a build that was stopped is continued, one of other choices is made anew.

    Raises:
        OutputError: another process is building it.
    """
    try:
        return build()
    except MismatchError:
        with store.Journal.locked(folder / JOURNAL):
            shutil.rmtree(folder)
        return build()


MARK = "made-of.json"


def check_ours(folder: Path, names: Sequence[str]) -> None:
    """A folder that holds one of these names and no mark of ours is somebody's: a run would clear it.

    Raises:
        OutputError
    """
    found = [name for name in names if (folder / name).exists()]
    if found and not (folder / MARK).exists():
        raise OutputError(
            f"{folder} holds {', '.join(found)} and no run of uimjax; a run would write there and clear it. Choose an "
            "empty or a new folder with --out."
        )


def keep_or_clear(folder: Path, key: str, folders: Sequence[str], files: Sequence[str]) -> None:
    """What was made of the same choices is continued, the rest removed: an old edit must not unseal a new truth."""
    mark = folder / MARK
    if not mark.exists() or store.read_json(mark) != key:
        for name in folders:
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in files:
            (folder / name).unlink(missing_ok=True)
        store.write_json(mark, key)


def begun_from(folder: Path, made: Any) -> Any:
    """The parameters that the run in `folder` began with; `made`, which are kept there, where it begins now.

    Drawing them again on another machine, or by another compiler, rounds in another way. The run is still the same
    one, so what it has trained is not thrown away: only initial parameters that differ by more begin a new run.
    """
    at = folder / "initial"
    try:
        held = checkpoint.load(at, made, 0)[1]
    except (MissingFileError, MismatchError, CorruptError):
        held = None
    if held is None or not all(map(_nearly, jax.tree.leaves(held), jax.tree.leaves(made))):
        checkpoint.save(at, 0, made)
        return made
    return held


def _nearly(one: Any, other: Any) -> bool:
    one, other = (np.asarray(x, np.float64) for x in (one, other))
    return one.shape == other.shape and bool(np.all(np.abs(one - other) <= 1e-4 * np.abs(other).max(initial=0.0)))


# ---------------------------------------------------------------- trace


def write_trace(failure: Failure, scores: dict[str, Scores], nulls: Sequence[Scores]) -> dict[str, Any]:
    """Every method's scores, the strongest rows by the chosen one, and the edit that it asks for. `nulls`: the chosen
    method's scores for questions in which nothing failed."""
    choice = failure.trace
    count = len(scores[choice.method].values)
    columns = {name: s.values[:, 0] for name, s in scores.items()}
    tables.write_scores(failure.folder / "scores.parquet", columns, count)
    nulls_by_name = {f"null-{k}": s.values[:, 0] for k, s in enumerate(nulls)}
    tables.write_scores(failure.folder / "null.parquet", nulls_by_name, count)
    chosen = scores[choice.method]
    order = np.argsort(-chosen.values[:, 0], kind="stable")
    listed = {"proponents": order[: choice.top], "opponents": order[::-1][: choice.top]}
    found = {side: [{"row": int(i), "score": float(chosen.values[i, 0])} for i in ids] for side, ids in listed.items()}
    document = {"method": chosen.method, "sign": SIGN, "unit": chosen.unit, "rows": len(order), **found}
    store.write_json(failure.folder / "trace.json", document)
    size = edit.budget_rows(failure.mitigate.budget, len(order))
    edit.write_edit(failure.decided, edit.traced_edit(chosen.values[:, 0], size, chosen.method))
    return document


# ---------------------------------------------------------------- mitigate and verify


def carry_out(failure: Failure, params: Any, causal: Callable[[Edit], proof.Outcome], progress: Progress) -> None:
    """Carry out the traced, the oracle and the random edit; measure each, and whether the planted rows caused it."""
    folder, choice = failure.folder, failure.mitigate
    traced = edit.read_edit(failure.decided)
    planted = oracle.oracle_edit(failure.truth, failure.decided)
    scores = tables.read_scores(folder / "scores.parquet")
    count = len(next(iter(scores.values())))
    edit.write_edit(folder / "edit-oracle.json", planted)
    outcomes: dict[str, dict[str, list[Any]]] = {}
    said = {BEFORE: failure.voice.says(params)}
    for name, seed in progress(_jobs(choice, failure.seeds), "mitigating", unit="edits"):
        for made in (traced, planted, edit.random_edit(count, len(traced.rows), seed)):
            how = fix(choice, failure.train, name)
            after = edit.apply_edit(failure.task, params, failure.data, made, how, seed)
            outcomes.setdefault(name, {}).setdefault(made.arm, []).append(failure.outcome(after)._asdict())
            if (name, seed) == (choice.method, failure.seeds[0]):
                said[made.arm] = failure.voice.says(after)
    write_outputs(folder / OUTPUTS, failure.voice.outputs(said))
    store.write_json(folder / "outcomes.json", outcomes)
    store.write_json(folder / "causal.json", causal(planted)._asdict())
    base_rate, found = scorecard.scorecard(failure.truth, failure.decided, scores)
    document = {"base_rate": base_rate, "methods": {name: f._asdict() for name, f in found.items()}}
    store.write_json(folder / "scorecard.json", document)


def _jobs(choice: MitigateChoice, seeds: tuple[int, ...]) -> list[tuple[str, int]]:
    """The verdict's fix with every seed; those beside it with as many as the config grants them."""
    names = dict.fromkeys((choice.method, *choice.compare))
    return [(name, s) for name in names for s in seeds[: None if name == choice.method else choice.compare_seeds]]


def fix(choice: MitigateChoice, train: TrainChoice, name: str) -> Unlearning | steps.Recipe:
    """A mitigation by name, its strength from the config."""
    if name == "drop":
        settings: dict[str, Any] = train.model_dump() | {"epochs": choice.drop_epochs}
        if choice.drop_rate is not None:
            settings["learning_rate"] = choice.drop_rate
        return steps.Recipe(**settings)
    if name == "ce_u":  # of what is learned to the end, log p has no gradient to ascend; this loss has
        return Unlearning(
            CEU(), retain="kl", gamma=choice.gamma, alpha=1.0, steps=choice.steps, heal_steps=choice.heal_steps,
            learning_rate=choice.learning_rate, batch_size=choice.batch_size, retain_size=choice.retain_size,
            every=choice.steps + choice.heal_steps, watched=16,
        )  # fmt: skip
    return Unlearning(  # losses of whole rows: a secret is as long as it is
        loss={"npo": NPO(beta=choice.beta), "cda": Counterfactual()}.get(name, GradDiff(per="row")),
        retain="row",
        gamma=choice.gamma,
        steps=choice.steps,
        heal_steps=choice.heal_steps,
        learning_rate=choice.learning_rate,
        batch_size=choice.batch_size,
        retain_size=choice.retain_size,
        every=choice.steps + choice.heal_steps,
        watched=16,  # enough to see that it diverged
    )
