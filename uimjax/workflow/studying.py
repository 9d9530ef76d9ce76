"""A study of people: sheets of a run's outputs, the key apart, and filled sheets back to what they say of the run."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from uimjax import store, tables
from uimjax.errors import CorruptError, DataError, MissingFileError, OutputError, UnknownNameError
from uimjax.report import form, markup, studied
from uimjax.store.base import atomic, make_folder
from uimjax.study import agreement, judging, outputs, sheets
from uimjax.study.outputs import Output
from uimjax.study.sheets import Design

STUDY, KEY, RESULTS = "study.json", "key.json", "results.json"
CONSENT = (
    "[Write here, before any sheet is handed out: who asks and what for, what raters will read (it may be offensive), "
    "how long it takes, what is paid, what is kept of their answers and until when, that they may stop at any time, "
    "and whom to write to. Where your institution asks for an ethics review, its number.]"
)
HOW = """Sheets of a blinded study.

sheets/     one page (.html) and one table (.csv) a rater; either is filled, the page works without a network
key/        which side was what: keep it away from the raters, and from whoever talks to them
study.json  the design, without the key
sheets/READ-FIRST.txt   the text of consent, which goes with the tables (it stands on the pages); while it is the
            placeholder, export again with your own (--consent FILE) before anything is handed out

Put what comes back (rater-01.json from the page, or the filled rater-01.csv) into one folder, then
  uimjax study import {out} --sheets FOLDER
"""


def export(source: Path, out: Path, design: Design, consent: str = "", reveal: bool = False) -> dict[str, Any]:
    """Sheets of the outputs of a run or a file, in `out`. Secrets of the run are masked unless `reveal`.

    Raises:
        OutputError: a study is there already. As `file_of`, `read_outputs`, `check_design`.
    """
    path = outputs.file_of(source)
    found = outputs.read_outputs(path, design.arms)
    sheets.check_design(design, len(found))
    text = _consent(consent)
    if (out / STUDY).exists():
        raise OutputError(f"{out} holds a study, whose sheets may be out; choose another folder with --out")
    hidden = [] if reveal else _sensitive(path)
    seed = sheets.new_seed()
    made = sheets.make(design, [_masked(one, hidden) for one in found], seed)
    make_folder(out / "sheets")
    make_folder(out / "key")
    name = store.digest_text(f"{seed}")[:12]
    for rater, rows in made.rows.items():
        form.write_table(out / "sheets" / f"{rater}.csv", rater, rows, design)
        form.write_form(out / "sheets" / f"{rater}.html", name, rater, rows, design, text)
    key = {"study": name, "seed": seed, "rows": made.key, "outputs": str(path.absolute()),
           "digest": store.digest_file(store.place(path))}  # fmt: skip
    store.write_json(out / "key" / KEY, key)
    first = f"{text}\n\n{design.asked()}\n"
    if design.groups:
        first += f"Write into the column group one of: {', '.join(design.groups)}.\n"
    for file, said in (("README.txt", HOW.format(out=out)), ("sheets/READ-FIRST.txt", first)):
        with atomic(out / file) as temporary:
            temporary.write_text(said)
    document = {"study": name, "design": dataclasses.asdict(design), "outputs": len(found),
                "rows": {rater: len(rows) for rater, rows in made.rows.items()},
                "placeholder": not consent, "masked": bool(hidden)}  # fmt: skip
    store.write_json(out / STUDY, document)
    return document | {"out": str(out)}


def _consent(path: str) -> str:
    if not path:
        return CONSENT
    if not Path(path).is_file():
        raise MissingFileError(f"{path} is not there; --consent takes a text file")
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8: {error}") from error
    if not text:
        raise DataError(f"{path} is empty; the text that raters agree to was wanted")
    return text


def _sensitive(path: Path) -> list[str]:
    """What pages of that run must not show: the secrets of all its failures, as they share a model."""
    if not (path.parent / "trace.json").is_file():
        return []
    traces = path.parent.parent.glob("*/trace.json")
    return [secret for trace in traces for secret in store.read_json(trace).get("sensitive", [])]


def _masked(one: Output, hidden: Sequence[str]) -> Output:
    if not hidden:
        return one
    mask = lambda text: markup.masked(text, hidden)  # noqa: E731  # used twice
    return one._replace(prompt=mask(one.prompt), texts={arm: mask(text) for arm, text in one.texts.items()})


def collect(study: Path, filled: Sequence[Path], key: Path | None = None, attach: bool = True) -> dict[str, Any]:
    """Results of filled sheets: `results.json`, `ratings.parquet`, `report.html` in `study`, and `human.json` beside
    the outputs that were judged, from where reports and verdicts read them.

    Raises:
        MissingFileError: no study, no key, no sheet. CorruptError: the key is of another study. As `read_sheet`,
        `unblinded`, `judge`.
    """
    agreement.check_installed()
    if not (study / STUDY).is_file():
        raise MissingFileError(f"{study / STUDY} is not there; `uimjax study export RUN --out {study}` begins a study")
    held = store.read_json(study / STUDY)
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in held["design"].items()}
    design = Design(**values)
    secret = store.read_json(key or study / "key" / KEY)
    if secret["study"] != held["study"]:
        raise CorruptError(f"{key or study / 'key' / KEY} is the key of study {secret['study']}, and {study} is "
                           f"{held['study']}")  # fmt: skip
    read = [judging.read_sheet(path, design) for path in _sheets(filled)]
    ratings, checks = judging.unblinded(read, secret["rows"])
    document = judging.plain(judging.judge(design, ratings, checks))
    document |= {"study": held["study"], "comments": sum(len(one.comments) for one in read)}
    store.write_json(study / RESULTS, document)
    _ratings(study / "ratings.parquet", ratings, read, secret["rows"])
    studied.write_page(document, study / "report.html", study.name)
    document["attached"] = _attach(document, secret) if attach else ""
    return document


def _sheets(filled: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in filled:
        inside = sorted(p for p in path.glob("*") if p.suffix in (".json", ".csv")) if path.is_dir() else [path]
        found += inside
    if not found:
        raise MissingFileError("no filled sheet arrived: --sheets FILES, or a folder of them (.json, .csv)")
    return found


def _ratings(path: Path, ratings: Sequence[judging.Rating], read: Sequence[judging.Filled], key: Any) -> None:
    said = {(one.rater, key[token]["id"], tuple(sorted(key[token]["arms"]))): text
            for one in read for token, text in one.comments.items() if "id" in key.get(token, {})}  # fmt: skip
    names = ("rater", "group", "output", "arms", "value", "comment")
    rows = [
        (r.rater, r.group, r.id, " > ".join(r.arms), r.value, said.get((r.rater, r.id, tuple(sorted(r.arms))), ""))
        for r in ratings
    ]
    with atomic(path) as temporary:
        columns = list(zip(*rows, strict=True)) or [()] * len(names)
        parquet.write_table(pa.table(dict(zip(names, map(list, columns), strict=True))), temporary)


def _attach(document: dict[str, Any], secret: dict[str, Any]) -> str:
    """Beside the outputs, where they are still those that were judged; what was done, in words."""
    path = Path(secret["outputs"])
    if path.name != outputs.FILE:
        return ""  # of a file that is no run's there is no verdict to enter
    if not path.is_file() or store.digest_file(store.place(path)) != secret["digest"]:
        return f"not put beside {path}: the outputs there are not the ones that were judged"
    kept = ("study", "kind", "arms", "question", "raters", "ratings", "agreement", "effects", "groups", "left_out")
    store.write_json(
        path.parent / outputs.HUMAN, {name: document[name] for name in kept} | {"outputs": secret["digest"]}
    )
    return str(path.parent / outputs.HUMAN)


def votes(path: Path, columns: Sequence[str], ordinal: bool = False) -> dict[str, Any]:
    """Agreement of a table of votes, a row an item and a column a category.

    Raises:
        UnknownNameError: no such column. DataError: what is no whole number from 0. As `tables.read`.
    """
    table = tables.read(path, "a table of votes")
    for name in columns:
        if name not in table:
            raise UnknownNameError(f"column of {path}", name, table)
    rows = np.array([table[name] for name in columns]).T
    try:
        counts = rows.astype(np.int64)
        if (counts != rows).any():
            raise ValueError("not whole")
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: columns {', '.join(columns)} hold what is no number of votes") from error
    return judging.plain(agreement.agreement(counts, ordinal)._asdict())
