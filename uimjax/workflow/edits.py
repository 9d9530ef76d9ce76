"""Edits of the reader's own model: what the folder of a trace holds, and which of its rows a mitigation acts on."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uimjax import store
from uimjax.answers.failures import Failures, read_failures
from uimjax.answers.subject import Subject, open_subject
from uimjax.config import LOCK, FailuresConfig, parse, read_yaml
from uimjax.corpora.prepared import Prepared, open_prepared
from uimjax.errors import DataError, MissingFileError, OutputError, UnknownNameError, UsageError
from uimjax.interpret import lexical
from uimjax.mitigate.edit import Edit

EDIT = "edit.json"


class Case(NamedTuple):
    """What a trace's folder holds, opened again."""

    run: Path
    config: FailuresConfig
    subject: Subject
    corpus: Prepared
    failures: Failures
    documents: np.ndarray  # number of each row's document
    names: list[str]
    reworded: Failures | None = None


def open_case(run: Path, out: Path, reworded: str = "") -> Case:
    """`reworded`: a file of the failures in other words.

    Raises as `open_subject`, `open_prepared`, `read_failures`; MissingFileError: no finished trace there.
    """
    if not (run / LOCK).is_file():
        raise MissingFileError(f"{run} holds no finished trace; `uimjax trace --model ... --out {run}` makes one")
    values = read_yaml(run / LOCK).get("config", {})
    _language(values, run)
    config = parse(FailuresConfig, values, str(run / LOCK))
    if out.resolve() in (run.resolve(), Path(config.model).resolve()):
        raise OutputError(f"{out} holds what came in; choose another folder with --out")
    subject = open_subject(config)
    corpus = open_prepared(run / "corpus")
    read = lambda path: read_failures(path, subject.task, subject.tokenizer, config.length, config.measure)  # noqa: E731
    documents, names = corpus.metadata()["document"].to_numpy(), corpus.names()["id"].to_pylist()
    others = read(reworded) if reworded else None
    return Case(run, config, subject, corpus, read(config.queries), documents, names, others)


def _language(config: dict[str, Any], run: Path) -> None:
    if config.get("kind") != "failures":
        raise UsageError(
            f"{run} is a trace of a classifier, and edits are of documents of language models. Its features are mended "
            "by `uimjax mitigate FEATURES --method d3m, relabel, dfr ...`"
        )


def write_edit(run: Path, top: int, failures: Sequence[int], out: Path, copies: bool = False) -> dict[str, Any]:
    """The `top` proponents of each failure of a trace, copies included, as a file that a person may change. `copies`:
    the copies alone, so that one of each stays (deduplication where it matters).

    Raises:
        MissingFileError: no answers there. UsageError: no such failure.
    """
    answers = store.read_json(run / "answers.json")
    _language(answers["config"], run)
    known = [its["question"] for its in answers["failures"]]
    for k in failures:
        if k not in known:
            raise UsageError(f"failure {k} is not among the {len(known)} of {run} (from 0)")
    names: dict[str, None] = {}
    for its in answers["failures"]:
        if not failures or its["question"] in failures:
            for found in its["proponents"][:top]:
                names |= dict.fromkeys(found["copies"] if copies else [found["id"], *found["copies"]])
    if copies and not names:
        raise DataError(f"{run}: no proponent has near copies (`--fold` of the trace says what one is); nothing to do")
    if not names:
        raise DataError(f"{run}: its failures have no proponents; trace again with --k above 0")
    why = f"{'copies of ' * copies}the {top} strongest proponents of each failure by {answers['method']}"
    document = {"why": why, "documents": [*names]}
    store.write_json(out, document)
    return document | {"edit": str(out)}


def read_edit(path: Path, case: Case) -> Edit:
    """Rows of the documents that the file names.

    Raises:
        MissingFileError, DataError: no list of names. UnknownNameError: a document that the corpus has not.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is not there; make it with `uimjax edit {path.parent}`")
    found = store.read_json(path)
    names = found.get("documents") if isinstance(found, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f'{path}: {{"documents": [names of documents]}} was wanted')
    place = {name: k for k, name in enumerate(case.names)}
    for name in names:
        if name not in place:
            near = difflib.get_close_matches(name, case.names, n=1)
            raise UnknownNameError("document of the edit", name, near or case.names[:5])
    rows = np.flatnonzero(np.isin(case.documents, [place[name] for name in names]))
    if len(rows) == len(case.documents):
        raise UsageError(f"{path} names all documents; nothing would be left")
    return Edit("traced", tuple(int(i) for i in rows), str(found.get("why", "")))


def ranked_edit(case: Case, size: int, pool: np.ndarray) -> Edit:
    """As many rows of the pool, by the best BM25 of any failure's words: what a search would have named."""
    texts = case.corpus.texts(pool.tolist())
    scores = lexical.bm25(texts, [line["prompt"] + line["bad"] for line in case.failures.lines]).max(1)
    order = np.argsort(-scores, kind="stable")[:size]
    return Edit("ranked", tuple(int(pool[i]) for i in order), f"the {size} rows nearest by BM25")
