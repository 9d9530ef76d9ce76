"""From a model, a corpus and failures to answers: for each failure the documents it comes from, with what tells so.

The answer is plain data (numbers, texts, lists), to be printed, drawn or kept as JSON. Scores: see `uimjax.task`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa

from uimjax import rows as row
from uimjax.answers import engines, evidence, folding, overlap
from uimjax.answers.engines import Answering
from uimjax.answers.evidence import Evidence
from uimjax.answers.failures import Failures
from uimjax.answers.folding import Found
from uimjax.answers.subject import Subject
from uimjax.corpora import duplicates
from uimjax.corpora.prepared import Prepared
from uimjax.interpret import base, indexing, lexical
from uimjax.progress import Progress, quiet
from uimjax.rows import Pass
from uimjax.sketch import Sketch
from uimjax.task import Task

WORDS_BYTES = 1 << 30  # of text that BM25 holds at once
SOURCES = 20  # that an answer lists, the strongest of each question; the others are one line
MANY = 16  # rows asked for, for each document wanted: several are of one document, or of copies
SIDES = ("proponent", "opponent")


@dataclass(frozen=True)
class Choices:
    """`k` documents at either end of each failure, near copies (`folding.alike` from `fold` on) folded into one;
    `near`: how alike documents are that count as copies in all of the corpus (0: they are not counted); `shown`: of so
    many the tokens are looked at; `null`: shuffled questions for the chance p of a score, of an index;
    the rest is the index's."""

    method: str = "auto"
    k: int = 10
    shown: int = 3
    fold: float = 0.8
    near: float = 0.0
    null: int = 100
    sketch: Sketch = Sketch(16)
    coding: str = "int8"
    batch_size: int = 8
    shard_rows: int = 1024
    mesh: Any = None


def answer(
    subject: Subject, corpus: Prepared, failures: Failures, folder: Path, choices: Choices, retain: Any = None,
    progress: Progress = quiet,
) -> dict[str, Any]:  # fmt: skip
    """Everything that is known of the failures; indexes and sums of curvature are kept under `folder`.

    Raises: as `build_index`, `trace` and `score`.
    """
    rows, places = corpus.rows, corpus.metadata()
    followed = base.training_sites(subject.task, subject.params, row.take(rows, np.arange(1)), check=False)
    size = sum(leaf.size for leaf in followed.used)  # of the parameters that are attributed
    questions = 1 if failures.together else len(failures.lines)
    method, why = engines.choose(
        choices.method, size, len(rows["tokens"]), questions, retain is not None, rows["tokens"].size
    )
    ready = engine(subject.task, subject.params, rows, failures, folder, choices, method, retain, progress)
    found, texts = _found(ready, corpus, places["document"].to_numpy(), choices)
    words = _words(corpus, failures)
    by_question = by_group(ready, places["source"].combine_chunks())
    values = measured(subject.params, failures, choices.batch_size)
    groups = duplicates.groups(corpus, choices.near, progress) if choices.near else None
    its = _Answer(subject, corpus, failures, choices, ready, texts, words, places, _names(corpus.names()), groups)
    each = []
    for question in progress(range(questions), "reading documents", unit="failures"):
        each.append(its.failure(question, values, found[question]) | {
            "sources": by_question.get(question, [])
        })  # fmt: skip
    return {
        "method": ready.method, "why": why, "unit": ready.unit, "measure": failures.measurement.name,
        "reading": failures.measurement.reading, "parameters": size,
        "corpus": {key: corpus.manifest[key] for key in ("rows", "documents", "tokens", "length", "notes")},
        "words": words is not None and words.bm25 is not None, "failures": each,
    }  # fmt: skip


def measured(params: Any, failures: Failures, batch_size: int) -> np.ndarray:
    """The measurement of each line as the model is, `[Q]`."""
    program = jax.jit(jax.vmap(failures.measurement.fun, (None, 0)))
    size = min(batch_size, len(failures.lines))
    found = [program(params, b.rows)[: int(b.mask.sum())] for b in row.batches(failures.rows, size)]
    return np.concatenate([np.asarray(x, np.float64) for x in found])


def by_group(ready: Answering, labels: Any) -> dict[int, list[dict[str, Any]]]:
    """Of each question the scores of all rows by group, added up: `group, members, total, mean, error`."""
    found: dict[int, list[dict[str, Any]]] = {}
    for line in ready.by_group(labels).table().to_pylist():
        found.setdefault(line["query"], []).append(_plain(line))
    return {question: _sources(lines) for question, lines in found.items()}


def _plain(line: dict[str, Any]) -> dict[str, Any]:
    """A line of totals as JSON has it: of one row there is no error."""
    return {key: None if value != value else value for key, value in line.items() if key != "query"}


def _sources(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sources with the strongest means at either end, as they come: by mean; the rest added up."""
    strong = {id(line) for line in sorted(lines, key=lambda line: -abs(line["mean"]))[:SOURCES]}
    listed, rest = ([line for line in lines if (id(line) in strong) == kept] for kept in (True, False))
    if not rest:
        return listed
    members, total = sum(line["members"] for line in rest), sum(line["total"] for line in rest)
    name = f"{len(rest)} more sources"
    return [*listed, {"group": name, "members": members, "total": total, "mean": total / members, "error": None}]


def engine(
    task: Task, params: Any, rows: Any, failures: Failures, folder: Path, choices: Choices, method: str, retain: Any,
    progress: Progress,
) -> Answering:  # fmt: skip
    """What answers: whole gradients, or an index that is built first. Raises as `build_index`, `trace` and `score`."""
    if engines.is_whole(method):
        how = Pass(choices.batch_size, choices.mesh, folder / "curvature")
        return engines.of_whole(task, params, rows, failures, method, how)
    how = {"batch_size": choices.batch_size, "shard_rows": choices.shard_rows, "coding": choices.coding}
    index = indexing.build_index(
        task, params, rows, folder / "index", sketch=choices.sketch, mesh=choices.mesh, progress=progress, **how
    )
    return engines.of_index(index, task, params, rows, failures, method, retain, choices.null, choices.batch_size)


def _found(
    ready: Answering, corpus: Prepared, owner: np.ndarray, choices: Choices
) -> tuple[list[dict[str, list[Found]]], dict[int, str]]:
    """(of every question the documents at either end, enough for those wanted when copies are folded; their texts).
    `owner`: of each row."""
    many = min(len(owner), MANY * choices.k)
    while True:  # rows of few documents, or of copies, fill the list: ask for more of them
        trace = ready.strongest(many)
        found = [
            {side: folding.by_document(trace, owner, q, side) for side in SIDES} for q in range(len(trace.proponents))
        ]
        texts = _texts(corpus, found)
        kept = [folding.folded(its[side], texts, choices.fold, choices.k) for its in found for side in SIDES]
        if many == len(owner) or all(len(its) >= choices.k for its in kept):
            return found, texts
        many = min(len(owner), 4 * many)


def _texts(corpus: Prepared, found: Sequence[dict[str, list[Found]]]) -> dict[int, str]:
    numbers = sorted({its.document for each in found for side in SIDES for its in each[side]})
    return dict(zip(numbers, corpus.documents(numbers), strict=True))


def _names(table: pa.Table) -> list[tuple[str, str]]:
    """(id, source) of every document, by number."""
    return list(zip(table["id"].to_pylist(), table["source"].to_pylist(), strict=True))


class Words(NamedTuple):
    """BM25 `[N, Q]` of documents and their ranks by it (None: too much text to hold); where each completion stands; the
    share of each question's words that the corpus has."""

    bm25: tuple[np.ndarray, np.ndarray] | None
    copies: list[overlap.Copied]
    coverage: list[float]


def _words(corpus: Prepared, failures: Failures) -> Words | None:
    """None where the question is of all lines at once."""
    if failures.together:
        return None
    asked = [(line["prompt"], line["bad"]) for line in failures.lines]
    questions = [prompt + said for prompt, said in asked]
    copies, coverage = overlap.copies(corpus.every_text(), asked), evidence.coverage(corpus.every_text(), questions)
    if corpus.text_bytes > WORDS_BYTES:
        return Words(None, copies, coverage)
    scores = lexical.bm25([text for _, text in corpus.every_text()], questions)
    return Words((scores, evidence.ranks(scores)), copies, coverage)


class _Answer(NamedTuple):
    """What is looked up while the answers are put together."""

    subject: Subject
    corpus: Prepared
    failures: Failures
    choices: Choices
    ready: Answering
    texts: dict[int, str]
    words: Words | None
    places: pa.Table
    names: list[tuple[str, str]]
    groups: np.ndarray | None

    def failure(self, question: int, values: np.ndarray, found: dict[str, list[Found]]) -> dict[str, Any]:
        k, lines = self.choices.k, self.failures.lines
        own = lines if self.failures.together else [lines[question]]
        kept = {side: folding.folded(found[side], self.texts, self.choices.fold, k) for side in SIDES}
        made = {
            f"{side}s": [self.document(question, its) for its in kept[side]] for side in SIDES
        }  # fmt: skip
        shown = kept["proponent"][: self.choices.shown]
        for document, shares in zip(made["proponents"], self.tokens(question, shown), strict=False):
            document.update(shares)
        value = float(values.mean()) if self.failures.together else float(values[question])
        return {"question": question, "lines": own, "value": value, **made, **self.lexical(question, found)}

    def document(self, question: int, its: Found) -> dict[str, Any]:
        name, source = self.names[its.document]
        start, stop = (self.places[name][its.rows[0]].as_py() for name in ("start", "stop"))
        made = {
            "id": name, "source": source, "score": its.score, "p": its.p, "rows": len(its.rows),
            "start": start, "stop": stop, "text": self.texts[its.document][start:stop],
            "copies": [self.names[copy][0] for copy in its.copies],
        }  # fmt: skip
        if self.groups is not None:
            made["repeated"] = int((self.groups == self.groups[its.document]).sum())
        return made if self.failures.together else made | self.evidence(question, its.document)._asdict()

    def evidence(self, question: int, document: int) -> Evidence:
        line, bm25 = self.failures.lines[question], None
        if self.words is not None and self.words.bm25 is not None:
            score, rank = (x[document, question] for x in self.words.bm25)
            bm25 = float(score), int(rank)
        return evidence.of_document(self.texts[document], line["prompt"], line["bad"], bm25, self.choices.k)

    def tokens(self, question: int, shown: Sequence[Found]) -> list[dict[str, Any]]:
        """Of each document the shares of its best row's tokens, and of the question's: `[start, stop, share]`."""
        if not shown:
            return []
        numbers = [its.rows[0] for its in shown]
        rows = jax.tree.map(lambda x: np.asarray(x[numbers]), self.corpus.rows)
        assert self.ready.document_tokens is not None
        mine = self.ready.document_tokens(question, rows)
        ask = self.ready.question_tokens
        theirs = [None] * len(shown) if ask is None else ask(question, rows)
        out = []
        for piece, own, other in zip(self.corpus.spelled(numbers, self.subject.tokenizer), mine, theirs, strict=True):
            places = [(start - piece.start, stop - piece.start) for start, stop in piece.places]
            out.append({"tokens": _shares(places, own), "asked": self.asked(question, other)})
        return out

    def asked(self, question: int, shares: Any) -> list[dict[str, Any]]:
        """The question's sides, each with the shares of its tokens."""
        if shares is None:
            return []
        line, made = self.failures.lines[question], []
        longest = self.failures.rows["bad"]["tokens"].shape[1]
        for k, side in enumerate(("bad", "good") if "good" in self.failures.rows else ("bad",)):
            places = self.subject.tokenizer.encode(line["prompt"] + line[side]).offsets
            mine = shares[k * longest : (k + 1) * longest]
            made.append({"side": side, "text": line["prompt"] + line[side], "tokens": _shares(places, mine)})
        return made

    def lexical(self, question: int, found: dict[str, list[Found]]) -> dict[str, Any]:
        """Where the completion stands, and the documents that words alone would name, with their place here."""
        if self.words is None:
            return {}
        copied = self.words.copies[question]
        best = [] if self.words.bm25 is None else self.by_words(question, found, *self.words.bm25)
        stands = {"run": copied.run, "times": copied.times, "documents": [self.names[d][0] for d in copied.documents]}
        return {"verbatim": stands, "by_words": best, "coverage": self.words.coverage[question]}

    def by_words(
        self, question: int, found: dict[str, list[Found]], scores: np.ndarray, ranks: np.ndarray
    ) -> list[dict[str, Any]]:
        """The first documents by BM25, with their place among those that the score found."""
        place = {its.document: rank for rank, its in enumerate(found["proponent"], start=1)}
        made = []
        for number in np.argsort(ranks[:, question], kind="stable")[: self.choices.shown]:
            (name, source), score = self.names[number], float(scores[number, question])
            made.append({"id": name, "source": source, "bm25": score, "place": place.get(int(number))})
        return made


def _shares(places: Sequence[tuple[int, int]], shares: Any) -> list[list[Any]]:
    """`[start, stop, share]` of tokens that have both characters and a share."""
    return [
        [int(start), int(stop), float(share)]
        for (start, stop), share in zip(places, shares, strict=False) if stop > start and share
    ]  # fmt: skip
