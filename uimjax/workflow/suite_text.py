"""The suite's text: all eight weaknesses in one corpus and one decoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uimjax import corpora, steps, store
from uimjax import rows as row
from uimjax.audit import base as likelihood
from uimjax.audit import dynamics, weaknesses
from uimjax.config import SuiteConfig, TextConfig
from uimjax.corpora.documents import encode, fitting, lines_of
from uimjax.corpora.text_suite import WEAKNESSES, PlantedSuite, Sizes, plant_suite
from uimjax.interpret import lexical
from uimjax.interpret import trace as tracing
from uimjax.interpret.index import task_digest
from uimjax.interpret.positions import token_scores
from uimjax.mitigate.edit import Edit
from uimjax.mitigate.synthetic import swapped
from uimjax.models import blocks, decoder
from uimjax.report import tables
from uimjax.store.base import make_folder
from uimjax.workflow import base, text
from uimjax.workflow.seeded import Seeded

CLEARED = ("train", "twins", "arms", "index", *WEAKNESSES)  # folders that other choices make anew
SWAPPED = ("bias", "generalization")  # whose questions set words against each other
SOME = 256  # documents whose tokens are scored together


@dataclass(frozen=True, kw_only=True)
class Written(Seeded):
    suite: PlantedSuite

    def area(self, moments: list[Any]) -> likelihood.Probed:
        return dynamics.area(self.task, moments, self.suite.utility)

    def utility(self, params: Any) -> float:
        return likelihood.held_out_loss(self.task, params, self.suite.utility)

    def others(self, name: str, made: Edit) -> Any:
        return counterfactuals(self, name, made)

    def detected(self) -> dict[str, np.ndarray]:
        """In how many documents a document's most frequent run of words stands: near and partial copies."""
        return {"repeats": lexical.repeats([document.text for document in self.suite.documents])}

    def strongest(self, name: str, method: str, tokens: int, moments: list[text.Moment]) -> np.ndarray:
        return by_strongest(self, name, method, tokens, moments)


def text_of(config: SuiteConfig) -> TextConfig:
    """What the suite shares with a story of text."""
    same = {name: getattr(config, name) for name in ("corpus", "tokenizer", "length", "documents", "held_out", "model")}
    return TextConfig(**same, seed=config.seed, train=config.train, trace=config.trace)  # type: ignore[arg-type]


def prepare(config: SuiteConfig, corpus: corpora.TextCorpus, folder: Path, seed: int) -> Written:
    """Plants, model and recipe of one seed; nothing is trained. The truths go to their sealed files."""
    settings = text_of(config)  # one projection of gradients for all seeds, so that they share their programs
    sizes = Sizes(**config.plants.model_dump())
    planted = plant_suite(corpus, sizes, config.train.epochs, seed)
    task, made = decoder.build_decoder(
        blocks.Shape(corpus.tokenizer.size, corpus.length, **config.model.model_dump()), seed
    )
    found = text.checked_sites(task, made, planted.train, corpus)
    base.check_ours(folder, CLEARED)
    make_folder(folder)
    initial = base.begun_from(folder, made)
    recipe = steps.Recipe(**config.train.model_dump(), seed=seed)
    rows = [store.digest_tree(part) for part in (planted.train, planted.utility, planted.retain, planted.without)]
    asked = [store.digest_tree((case.asked, case.probe)) for case in planted.cases.values()]
    made_of = (rows, asked, store.digest_tree(initial), task_digest(found), config.train.model_dump(), base.versions())
    key = store.stage_key(*made_of, config.trace.checkpoints, seed)
    base.keep_or_clear(folder, key, CLEARED, ())
    plant_suite(corpus, sizes, config.train.epochs, seed, lambda name: base.truth_of(make_folder(folder / name)))
    tables.write_documents(folder / "documents.parquet", planted.documents)
    shown = corpora.PlantedText(
        planted.documents, planted.train, planted.places, np.ones(0), planted.retain, planted.utility, planted.cases
    )
    return Written(
        folder, settings, corpus, shown, task, initial, recipe, key, suite=planted, choices=config, known=weaknesses.ALL
    )


def counterfactuals(loop: Written, name: str, made: Edit) -> Any:
    """The edit's documents with the words that the questions set against each other in each other's place, as rows."""
    chosen = [loop.suite.documents[k] for k in made.rows]
    texts = swapped([document.text for document in chosen], loop.suite.cases[name].swaps)
    changed = []
    for document, lines in zip(chosen, map(lines_of, texts), strict=True):
        kept = lines[: fitting(lines, loop.corpus.tokenizer, loop.corpus.length)]  # another word may take more tokens
        changed.append(document._replace(text="".join(kept)))
    return encode(changed, loop.corpus.tokenizer, loop.corpus.length)[0]


def by_strongest(loop: Written, name: str, method: str, tokens: int, moments: list[text.Moment]) -> np.ndarray:
    """`[N]`: the sum of the scores of each document's strongest tokens. A plant may be a few words of a document: in
    the sum over all of its tokens it is lost among what the others say (token scores: IF-Guide, 2025)."""
    total, rows, case = 0.0, loop.suite.train, loop.suite.cases[name]
    for moment, epochs, met in zip(moments, text.snapshots(loop.config), loop.met(), strict=True):
        asked = tracing.question(moment.held, loop.task, moment.params, rows, loop.measurement(name), case.asked)
        by, many = tracing.by(asked, method, moment.span), row.count(rows)
        parts = [token_scores(by, loop.task, moment.params, row.take(rows, np.arange(k, min(k + SOME, many))))
                 for k in range(0, many, SOME)]  # fmt: skip
        total = total + steps.rate(loop.recipe, epochs) * met[:, None] * np.concatenate(parts)
    return -np.sort(-np.asarray(total), 1)[:, :tokens].sum(1)
