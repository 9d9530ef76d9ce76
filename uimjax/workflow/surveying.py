"""A corpus card: documents are read once, counted stretch by stretch by several processes, and added up.

Each finished stretch lies on disk, so that a stopped survey goes on behind the last one. Memory holds some stretches,
the sample, and eight bytes a document for near copies.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from uimjax import __version__, store
from uimjax.census import card, counting, pool, together, tongues
from uimjax.census.counting import Looked
from uimjax.census.sampling import Sample
from uimjax.config import CensusConfig
from uimjax.corpora import duplicates, texts
from uimjax.corpora.texts import Columns, Skipped, Text
from uimjax.errors import DataError, OutputError
from uimjax.progress import Progress, quiet
from uimjax.report import census, datacard, tables
from uimjax.store.base import atomic, make_folder
from uimjax.workflow import beside

CARD, README, PARTS = "card.json", "README.md", ".uimjax-stretches"
STRETCH = 8 << 20  # characters counted and kept together
PACKED = (".gz", ".zst", ".parquet")  # hold about three times their size


def survey(config: CensusConfig, out: Path, progress: Progress = quiet) -> dict[str, Any]:
    """The card, which is in `card.json`, on a page, and as a dataset card (`README.md`).

    Raises:
        MissingFileError, DataError, UnknownNameError: as `read_texts`. ConfigError: of the lists of terms.
        UsageError: what needs an extra that is not installed, or labels that do not tell which of them are toxic.
        OutputError: `out` holds what is read, or a README that is not ours.
    """
    files = texts.files_of(config.data)
    _check_ours(out, files)
    if config.near:
        duplicates.check_installed()
    if config.languages:
        tongues.check_installed()
    terms = together.read_terms(Path(config.terms)) if config.terms else together.read_terms()
    evaluation = beside.evaluation(config)
    toxic = beside.toxicity(config) if config.toxicity else None
    key = _key(config, files)
    make_folder(out)
    if (out / CARD).exists() and (held := store.read_json(out / CARD)).get("key") == key:
        return held
    parts = _parts(out, key)
    reader = _Reader(config, files)
    look = Looked(terms, evaluation.asked, config.near > 0)
    paths = _count(reader, look, parts, config.workers or os.cpu_count() or 1, progress)
    if not paths:
        raise DataError(f"{', '.join(config.data)}: no document; {reader.told() or 'the files are empty'}")
    total = _sum(paths, look)
    document: dict[str, Any] = {"key": key, "name": config.name or Path(config.data[0]).name}
    document |= _card(config, reader, look, total, paths, out)
    document |= {"contamination": beside.contaminated(out, evaluation, total), "toxicity": None, "labels": None}
    if toxic is not None:
        document["toxicity"] = beside.judged(toxic, reader.sample.drawn(), document["documents"], config)
    if config.label_column:
        document["labels"] = beside.mislabelled(reader.sample.drawn(), document["documents"], config, out)
    document |= {"cannot": card.CANNOT, "config": config.model_dump(mode="json"), "made_with": __version__}
    census.write_page(document, out / "report.html")
    datacard.write(document, out / README)
    store.write_json(out / CARD, document)  # the last: where it is, the others are
    shutil.rmtree(parts)
    return document


def _key(config: CensusConfig, files: list[Path]) -> str:
    """Of the settings, and of every file by its size and time."""
    others = [texts.files_of(names) for names in (config.evaluation, [config.toxicity]) if any(names)]
    named = [*files, *(path for paths in others for path in paths), *([Path(config.terms)] if config.terms else [])]
    stats = [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in named]
    choices = config.model_dump(mode="json", exclude={"workers"})
    return store.digest_text(repr([choices, stats, __version__]))


def _check_ours(out: Path, files: list[Path]) -> None:
    """Raises OutputError: the folder holds what is read, or a README that is not ours."""
    inside = [path for path in files if out.resolve() in path.resolve().parents]
    if inside:
        raise OutputError(f"{out} holds {inside[0]}, which is read; choose another folder with --out")
    if (out / README).exists() and not (out / CARD).exists():
        raise OutputError(f"{out} holds a {README} that is not a card's; choose another folder with --out")


def _parts(out: Path, key: str) -> Path:
    """The folder of finished stretches; those of other data or settings are removed."""
    parts = out / PARTS
    if (parts / "key").exists() and (parts / "key").read_text() != key:
        shutil.rmtree(parts)
    make_folder(parts)
    with atomic(parts / "key") as temporary:
        temporary.write_text(key)
    return parts


class _Reader:
    """Stretches of documents, in order; the sample is drawn on the way. Its length is an estimate, by size."""

    def __init__(self, config: CensusConfig, files: list[Path]):
        self.files = files
        self.columns = Columns(config.text_column, config.id_column, config.source_column, config.label_column)
        self.sample = Sample(config.sample, config.seed)
        self.why: dict[str, dict[str, Any]] = {}

    def __len__(self) -> int:
        size = sum(p.stat().st_size * (3 if p.name.endswith(PACKED) else 1) for p in self.files)
        return max(1, -(-size // STRETCH))

    def note(self, row: Skipped) -> None:
        """Of a row that is no document: why, and the first place."""
        held = self.why.setdefault(row.why.split("(")[0].strip(), {"rows": 0, "first": f"{row.path}:{row.row}"})
        held["rows"] += 1

    def told(self) -> str:
        return "; ".join(f"{its['rows']} rows {why}, first {its['first']}" for why, its in self.why.items())

    def __iter__(self) -> Iterator[tuple[int, list[Text]]]:
        number, held, size = 0, [], 0
        for one in self._documents():
            held.append(one)
            size += len(one.text)
            if size >= STRETCH:
                yield number, held
                number, held, size = number + 1, [], 0
        if held:
            yield number, held

    def _documents(self) -> Iterator[Text]:
        names, label = texts.called(self.files), self.columns.label
        for path in self.files:
            for block in texts.read_blocks(path, self.columns, self.note):
                for row in block:
                    for one in texts.documents(path, [row], self.columns, self.note, names[path]):
                        self.sample.offer(*one, beside.label_of(row[1].get(label)) if label else None)
                        yield one


def _count(reader: _Reader, look: Looked, parts: Path, workers: int, progress: Progress) -> list[Path]:
    """Paths of all stretches, without an ending."""
    paths: list[Path] = []

    def todo() -> Iterator[tuple[list[Text], Path]]:
        for number, held in progress(reader, "counting documents", unit="stretches of 8 MB"):
            paths.append(parts / f"{number:06d}")
            if not paths[-1].with_suffix(".json").exists():
                yield held, paths[-1]

    pool.count_all(todo(), look, workers if len(reader) > 1 else 1)
    return paths


def _sum(paths: list[Path], look: Looked) -> counting.Counted:
    total = counting.nothing(look)
    for path in paths:
        total = counting.added(total, counting.load(path))
    return total


def _card(
    config: CensusConfig, reader: _Reader, look: Looked, total: counting.Counted, paths: list[Path], out: Path
) -> dict[str, Any]:
    """All that is counted of every document, and the languages of the sample."""
    rows = card.sources(total)
    documents, words = (sum(row[name] for row in rows) for name in ("documents", "words"))
    people = card.people(total, look.terms)
    tables.write_rows(out / "together.parquet", people["findings"], together.COLUMNS)
    first = duplicates.joined([p.with_suffix(".marks") for p in paths], config.near) if config.near else None
    digests, held = _documents(paths, first, out)
    _spans(paths, out)
    sample = reader.sample.drawn()
    return {
        "files": [str(path) for path in reader.files], "documents": documents, "words": words,
        "characters": sum(row["characters"] for row in rows), "skipped": reader.why, "sources": rows,
        "lengths": card.lengths(total), "vocabulary": card.vocabulary(total),
        "copies": None if first is None else card.copies(first, digests, config.near),
        "languages": tongues.languages(sample, documents) if config.languages else None,
        "people": people, "personal": card.personal(total, documents, words),
        "personal_documents": held,
    }  # fmt: skip


def _documents(paths: list[Path], first: np.ndarray | None, out: Path) -> tuple[np.ndarray, int]:
    """Write `documents.parquet`: a row a document, and which earlier one it repeats. (Digests of all texts `[N]`, how
    many of them hold personal data of any kind.)"""
    parts = lambda: (parquet.read_table(path.with_suffix(".parquet")) for path in paths)  # noqa: E731  # one by one
    wanted = np.unique(first[first != np.arange(len(first))]) if first is not None else np.zeros(0, np.int64)
    names, at, digests, held = {}, 0, [], 0
    for table in parts():
        mine = wanted[(wanted >= at) & (wanted < at + table.num_rows)]
        names |= dict(zip(mine.tolist(), table["id"].take(pa.array(mine - at)).to_pylist(), strict=True))
        digests.append(table["digest"].to_numpy())
        held += int((table["personal"].to_numpy() > 0).sum())
        at += table.num_rows
    with atomic(out / "documents.parquet") as temporary:
        at, writer = 0, None
        for table in parts():
            own = range(at, at + table.num_rows)
            copy = [None if first is None or first[k] == k else names[int(first[k])] for k in own]
            table = table.drop_columns(["digest"]).append_column("copy_of", pa.array(copy, pa.string()))
            writer = writer or parquet.ParquetWriter(temporary, table.schema)
            writer.write_table(table)
            at += table.num_rows
        assert writer is not None  # a corpus without documents was refused
        writer.close()
    return np.concatenate(digests), held


def _spans(paths: list[Path], out: Path) -> None:
    """Write `spans.parquet`: places of personal data, never the data."""
    with atomic(out / "spans.parquet") as temporary:
        schema = parquet.read_schema(paths[0].with_suffix(".spans.parquet"))
        with parquet.ParquetWriter(temporary, schema) as writer:
            for path in paths:
                writer.write_table(parquet.read_table(path.with_suffix(".spans.parquet")))
