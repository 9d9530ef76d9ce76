"""One seed of the suite: train and twins -> audit -> trace -> mitigate -> verify, whatever the rows are.

Every plant sits in one corpus. A twin is trained without one plant at a time: it is the clean twin of that weakness and
the causal check at once. Each edit is measured by all probes, so that what a fix does to the other weaknesses is seen.
Every stage leaves files and is skipped while these and their causes are unchanged.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uimjax import rows as row
from uimjax import store, training
from uimjax.audit import dynamics, scorecard
from uimjax.audit.base import Probed
from uimjax.audit.weaknesses import Weakness
from uimjax.config import SuiteConfig, VisionSuiteChoice, parse
from uimjax.corpora.picture_suite import PlantedPictures
from uimjax.corpora.text_suite import PlantedSuite, left_out
from uimjax.errors import UsageError
from uimjax.interpret import detectors, methods
from uimjax.mitigate import edit, oracle
from uimjax.mitigate.edit import Edit
from uimjax.mitigate.relearning import Relearning, relearn
from uimjax.progress import Progress, quiet
from uimjax.report import tables
from uimjax.study.outputs import BEFORE, write_outputs
from uimjax.study.outputs import FILE as OUTPUTS
from uimjax.task import Measurement, Task
from uimjax.workflow import base, saying, text

ARMS = ("traced", "oracle", "random")
OTHER_EVIDENCE = (*methods.BASELINES, *detectors.NAMES)


@dataclass(frozen=True, kw_only=True)
class Seeded(text.Loop, abc.ABC):
    """One seed of the suite in one modality: its plants, its model, and everything that follows from the config.
    `known`: the weaknesses that it plants, with their probes; `choices`: the part of the config that says how each is
    traced and mended."""

    suite: PlantedSuite | PlantedPictures
    choices: SuiteConfig | VisionSuiteChoice
    known: dict[str, Weakness]
    courses: dict[Path, dict[str, Any]] = field(default_factory=dict, compare=False, repr=False)  # measured once

    @property
    def count(self) -> int:
        return row.count(self.suite.train)

    def fitted(self, which: str) -> training.Fitted:
        """The trained model ("train"), or the one trained without the plant of a weakness."""
        if which not in self.read:
            name = "train" if which == "train" else f"twins/{which}"
            weights = self.suite.present if which == "train" else self.suite.without[which]
            again = which != "train" and getattr(self.choices, which).fix == "retrain"  # its oracle's course
            kept = every(self) if which in ("train", "dynamics") or again else ()
            self.read[which] = self.fit(weights, self.folder / name, kept)
        return self.read[which]

    def fit(self, weights: np.ndarray, folder: Path, kept: tuple[int, ...], progress: Progress = quiet):
        return training.fit(
            self.task, self.initial, self.suite.train, self.recipe, weights=weights, folder=folder, snapshots=kept,
            save_every=4, progress=progress,
        )  # fmt: skip

    def measurement(self, name: str) -> Measurement:
        return measured_by(self.known[name].measurement, self.task)

    def met(self) -> list[np.ndarray]:
        ends = text.snapshots(self.config)
        return [self.suite.present[start:end].mean(0) for start, end in zip((0, *ends), ends, strict=False)]

    @abc.abstractmethod
    def area(self, moments: list[Any]) -> Probed:
        """The probe of a training's course, from the parameters at each epoch's end."""

    @abc.abstractmethod
    def utility(self, params: Any) -> float:
        """What the model can do on clean held-out rows."""

    def others(self, name: str, made: Edit) -> Any:
        """Counterfactuals of an edit's rows, for the fix that tunes on both. Raises UsageError: not of texts."""
        del made
        raise UsageError(f"{name}: fix cda tunes on texts in other words, and these rows have none; choose another fix")

    def strongest(self, name: str, method: str, tokens: int, moments: list[text.Moment]) -> np.ndarray:
        """`[N]`: the scores of each row's strongest tokens. Raises UsageError: the rows have no tokens."""
        del method, moments
        raise UsageError(f"{name}: the {tokens} strongest tokens of a row were asked for, and these rows have none")

    def detected(self) -> dict[str, np.ndarray]:
        """Scores of detectors that need no question, high = suspicious."""
        return {}

    def probe(self, name: str, params: Any, folder: Path) -> dict[str, Any]:
        """By one weakness's probe; `folder` is the training's, whose course is what `dynamics` measures."""
        fun = self.known[name].probe
        if fun is None:  # of the course of a training, which most edits leave as it was
            if folder not in self.courses:
                moments = [training.snapshot(folder, self.initial, epochs) for epochs in every(self)]
                self.courses[folder] = self.area(moments)._asdict()
            return self.courses[folder]
        return fun(self.task, params, self.suite.cases[name].probe)._asdict()

    def outcome_of(self, params: Any, folder: Path) -> dict[str, Any]:
        """All probes, and the utility on clean held-out rows."""
        probes = {name: self.probe(name, params, folder) for name in self.known}
        return {"probes": probes, "utility": self.utility(params)}


@functools.lru_cache(maxsize=32)
def measured_by(make: Callable[[Task], Measurement], task: Task) -> Measurement:
    """One object a weakness and task, so that seeds share their programs."""
    return make(task)


def every(loop: text.Loop) -> tuple[int, ...]:
    return tuple(range(1, loop.recipe.epochs + 1))


# ---------------------------------------------------------------- train and audit


def train(loop: Seeded, progress: Progress):
    """Train the model, then a twin without each plant."""
    for which in progress(["train", *loop.known], "training the model and its twins", unit="models"):
        loop.fitted(which)
    yield f"the model and {len(loop.known)} twins, mean loss {loop.fitted('train').loss[-1]:.1f} nats a row"


def audit(loop: Seeded, progress: Progress):
    """All probes of the model, and of each twin."""

    def work() -> None:
        models = ["train", *loop.known]
        folders = [loop.folder / ("train" if name == "train" else f"twins/{name}") for name in models]
        document = {"before": loop.outcome_of(loop.fitted("train").params, folders[0]), "twins": {}}
        for name, folder in zip(models[1:], folders[1:], strict=True):
            params = loop.fitted(name).params
            document["twins"][name] = {"probe": loop.probe(name, params, folder), "utility": loop.utility(params)}
        store.write_json(loop.folder / "audit.json", document)

    done = store.run_stage(loop.folder, "audit", loop.key, ("audit.json",), work)
    del progress
    found = store.read_json(loop.folder / "audit.json")
    for name in loop.known:
        its, twin = found["before"]["probes"][name]["value"], found["twins"][name]["probe"]["value"]
        unit = loop.known[name].unit
        yield f"{name} {its:.2f} {unit}, {twin:.2f} without its plant{'' if done else ' (unchanged, kept)'}"


# ---------------------------------------------------------------- trace


def size_of(loop: Seeded, name: str) -> int:
    """Rows that an edit may touch: said by the config before any score is seen."""
    share = getattr(loop.choices, name).share
    return loop.choices.plants.positives if share is None else edit.budget_rows(share, loop.count)


def trace(loop: Seeded, progress: Progress):
    """Score every row by every method for every weakness; write the edits that the chosen methods ask for."""
    shared = text.Shared(
        functools.cache(lambda: text.moments(loop, progress)),
        functools.cache(lambda method: text.baseline(loop, method, next(iter(loop.known)))),
    )
    for name in loop.known:
        method, chosen = getattr(loop.choices, name).trace, getattr(loop.choices, name).chosen

        def work(name: str = name, method: str = method, chosen: str = chosen) -> None:
            choice = loop.config.trace.model_copy(update={"method": method})
            asked = dataclasses.replace(loop, config=loop.config.model_copy(update={"trace": choice}))
            scores, _, _ = text.score_documents(asked, name, shared, tokens=False)
            columns = {key: its.values[:, 0] for key, its in scores.items()}
            if tokens := getattr(loop.choices, name).tokens:
                columns = {chosen: asked.strongest(name, method, tokens, shared.moments())} | columns
            columns |= loop.detected()
            if name == "dynamics":  # data comes in shards, whose means are steadier than any row's score
                columns = {key: dynamics.of_shards(values, loop.suite.shards) for key, values in columns.items()}
            tables.write_scores(loop.folder / name / "scores.parquet", columns, loop.count)
            told = scores[method].method + (f", of the {tokens} strongest tokens" if tokens else "")
            traced = edit.traced_edit(columns[chosen], size_of(loop, name), told)
            edit.write_edit(loop.folder / name / "edit-traced.json", traced)
            store.write_json(loop.folder / name / "agreement.json", agreement(traced, columns))

        key = store.stage_key(loop.key, loop.choices.trace.model_dump(), chosen, size_of(loop, name))
        done = store.run_stage(
            loop.folder / name, "trace", key, ("scores.parquet", "edit-traced.json", "agreement.json"), work
        )
        yield f"{name} by {chosen}{'' if done else ' (unchanged, kept)'}"


def agreement(made: Edit, columns: dict[str, np.ndarray]) -> dict[str, float]:
    """Evidence that needs no gradient: the share of the edit's rows that each baseline and detector would name as well,
    among as many."""
    names = [name for name in columns if name in OTHER_EVIDENCE]
    size = len(made.rows)
    return {name: float(np.isin(np.argsort(-columns[name], kind="stable")[:size], made.rows).mean()) for name in names}


# ---------------------------------------------------------------- mitigate


def mitigate(loop: Seeded, progress: Progress):
    """Carry out the traced, the oracle's and a random edit of each weakness; measure all probes after each."""
    for name in progress([*loop.known], "mitigating", unit="weaknesses"):
        plan = getattr(loop.choices, name)

        def work(name: str = name) -> None:
            folder = loop.folder / name
            traced = edit.read_edit(folder / "edit-traced.json")
            planted = oracle.oracle_edit(base.truth_of(folder), folder / "edit-traced.json")
            blind = edit.random_edit(loop.count, len(traced.rows), loop.recipe.seed)
            outcomes: dict[str, Any] = {}
            voice = saying.of_probe(loop.task, loop.suite.cases[name].probe, loop.corpus)
            voice = voice if loop.recipe.seed == loop.config.seed else None  # people need not read every seed
            said = {BEFORE: voice.says(loop.fitted("train").params)} if voice else {}
            for made in (traced, planted, blind):
                params, course = _carried_out(loop, name, made)
                outcomes[made.arm] = loop.outcome_of(params, course)
                said |= {made.arm: voice.says(params)} if voice else {}
                if made.arm == "traced":
                    again = {
                        "relearned": relearned(loop, name, params, planted),
                        "reworded": reworded(loop, name, params),
                    }
                    store.write_json(folder / "again.json", again)
            store.write_json(folder / "outcomes.json", outcomes)
            if voice:
                write_outputs(folder / OUTPUTS, voice.outputs(said))
            scores = tables.read_scores(folder / "scores.parquet")
            rate, found = scorecard.scorecard(base.truth_of(folder), folder / "edit-traced.json", scores)
            document = {"base_rate": rate, "methods": {method: f._asdict() for method, f in found.items()}}
            store.write_json(folder / "scorecard.json", document)

        key = store.stage_key(
            loop.key, loop.choices.trace.model_dump(), loop.choices.mitigate.model_dump(), plan.model_dump(),
            size_of(loop, name),
        )  # fmt: skip
        files = ("outcomes.json", "scorecard.json", "again.json")
        done = store.run_stage(loop.folder / name, "mitigate", key, files, work)
        found = store.read_json(loop.folder / name / "outcomes.json")
        values = ", ".join(f"{arm} {found[arm]['probes'][name]['value']:.2f}" for arm in ARMS)
        yield f"{name} after {plan.fix}: {values}{'' if done else ' (unchanged, kept)'}"


def _carried_out(loop: Seeded, name: str, made: Edit) -> tuple[Any, Path]:
    """(new parameters, the folder of the training whose course is theirs)."""
    plan, folder = getattr(loop.choices, name), loop.folder / "train"
    if plan.fix == "retrain" and made.arm == "oracle":  # without the planted rows: what the twin was trained by
        return loop.fitted(name).params, loop.folder / "twins" / name
    if plan.fix == "retrain":
        weights, folder = (
            left_out(loop.suite.present, loop.suite.displaced, made.rows),
            loop.folder / "arms" / f"{name}-{made.arm}",
        )
        return loop.fit(weights, folder, every(loop)).params, folder
    how = base.fix(_choice(loop, name), loop.choices.train, plan.fix)
    others = loop.others(name, made) if plan.fix == "cda" else None
    before, rows = loop.fitted("train").params, loop.suite.train
    params = edit.apply_edit(loop.task, before, rows, made, how, loop.recipe.seed, others)
    return jax.tree.map(np.asarray, params), folder


def _choice(loop: Seeded, name: str) -> Any:
    settings = getattr(loop.choices, name).settings
    return parse(type(loop.choices.mitigate), loop.choices.mitigate.model_dump() | settings, f"{name}.settings")


def relearned(loop: Seeded, name: str, params: Any, planted: Edit) -> dict[str, float]:
    """The probe of the mended model and of the twin, once both have got the same few steps on every second planted row;
    {} of what is trained again, and where no steps are wanted."""
    choice, probe = _choice(loop, name), loop.known[name].probe
    if not choice.relearn or probe is None or getattr(loop.choices, name).fix == "retrain":
        return {}
    how = Relearning(choice.relearn, choice.batch_size, choice.learning_rate)
    found = {}
    for which, begun in (("traced", params), ("twin", loop.fitted(name).params)):
        after = relearn(loop.task, begun, loop.suite.train, planted.rows[::2], how, loop.recipe.seed)
        found[which] = probe(loop.task, after, loop.suite.cases[name].probe).value
    return found


def reworded(loop: Seeded, name: str, params: Any) -> dict[str, float]:
    """The probe in other words, of the model, its twin and the mended one; {} where the weakness has no other words."""
    asked, probe = getattr(loop.suite.cases[name], "reworded", None), loop.known[name].probe
    if asked is None or probe is None:
        return {}
    models = {"planted": loop.fitted("train").params, "twin": loop.fitted(name).params, "traced": params}
    return {which: probe(loop.task, its, asked).value for which, its in models.items()}


STAGES = {"train": train, "audit": audit, "trace": trace, "mitigate": mitigate}
