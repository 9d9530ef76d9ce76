"""The suite's pictures: six weaknesses in one corpus of labelled pictures and one classifier."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import corpora, models, steps, store
from uimjax.audit import backdoor, pictures
from uimjax.audit.base import Probed
from uimjax.config import RunConfig, SuiteConfig, TextConfig
from uimjax.corpora.picture_suite import WEAKNESSES, PlantedPictures, Sizes, plant_pictures
from uimjax.interpret import detectors
from uimjax.interpret.index import task_digest
from uimjax.rows import example_spec
from uimjax.store.base import make_folder
from uimjax.taps import sites
from uimjax.workflow import base, vision
from uimjax.workflow.seeded import Seeded

CLEARED = ("train", "twins", "arms", "index", *WEAKNESSES)  # folders that other choices make anew


@dataclass(frozen=True, kw_only=True)
class Pictured(Seeded):
    suite: PlantedPictures

    def area(self, moments: list[Any]) -> Probed:
        return pictures.area(self.task, moments, self.suite.utility)

    def utility(self, params: Any) -> float:
        return backdoor.accuracy(self.task, params, self.suite.utility)

    def detected(self) -> dict[str, np.ndarray]:
        """Area under the margin over the epochs that met a row, low = suspicious (arXiv 2001.10528); spectral signature
        (arXiv 1811.00636); activation clustering (arXiv 1811.03728)."""
        fitted, rows = self.fitted("train"), self.suite.train
        shown = np.asarray(jax.vmap(self.task.features, (None, 0))(fitted.params, jax.tree.map(jnp.asarray, rows)))  # type: ignore[arg-type]  # a classifier has them
        found = {"spectral": detectors.spectral(shown, rows["label"])}
        clusters = detectors.activation_clusters(shown, rows["label"]).scores
        return {"aum": -np.nanmean(fitted.margin, 0), "clusters": clusters} | found


def story_of(config: SuiteConfig, seed: int) -> RunConfig:
    """What the suite shares with a story of pictures."""
    same = {name: getattr(config.vision, name) for name in ("corpus", "train_file", "test_file", "model")}
    return RunConfig(**same, seed=seed)  # type: ignore[arg-type]


def prepare(config: SuiteConfig, corpus: corpora.Corpus, folder: Path, seed: int) -> Pictured:
    """Plants, model and recipe of one seed; nothing is trained. The truths go to their sealed files."""
    choices, sizes = config.vision, Sizes(**config.vision.plants.model_dump())
    planted = plant_pictures(corpus, sizes, choices.train.epochs, seed)
    model = vision.model_of(story_of(config, seed))
    task, made = models.build(model, planted.train["image"].shape[1:], corpus.classes, seed)
    base.check_ours(folder, CLEARED)
    make_folder(folder)
    initial = base.begun_from(folder, made)
    recipe = steps.Recipe(**choices.train.model_dump(), seed=seed)
    parts = (planted.train, planted.utility, planted.retain, planted.without, planted.shards)
    asked = [store.digest_tree((case.asked, case.probe)) for case in planted.cases.values()]
    program = task_digest(sites(task, initial, example_spec(planted.train)))
    made_of = ([*map(store.digest_tree, parts)], asked, store.digest_tree(initial), program)
    key = store.stage_key(*made_of, choices.train.model_dump(), base.versions(), choices.trace.checkpoints, seed)
    base.keep_or_clear(folder, key, CLEARED, ())
    seal = lambda name: base.truth_of(make_folder(folder / name))  # noqa: E731  # one line, used once
    plant_pictures(corpus, sizes, choices.train.epochs, seed, seal)
    settings = TextConfig(seed=config.seed, trace=choices.trace, train=choices.train.model_dump())  # type: ignore[arg-type]
    shown: Any = planted  # its rows, cases and retain are what tracing looks at
    return Pictured(
        folder, settings, corpus, shown, task, initial, recipe, key, suite=planted, choices=choices,  # type: ignore[arg-type]
        known=pictures.ALL,
    )  # fmt: skip
