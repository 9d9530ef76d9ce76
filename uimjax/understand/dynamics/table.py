"""Statistics and scores of examples on disk: one Parquet file a step and seed, whose header says what each means."""

import dataclasses
import json
import operator
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uimjax import __version__
from uimjax.errors import (
    CorruptError,
    DataError,
    MismatchError,
    MissingFileError,
    OutputError,
    ShapeError,
    UnknownNameError,
    UsageError,
)
from uimjax.store.base import atomic, make_folder
from uimjax.store.digest import digest_text
from uimjax.understand.dynamics.collector import NEVER, Statistics
from uimjax.understand.dynamics.scoring import DEFAULT, Definitions, Score, scores
from uimjax.understand.dynamics.signals import MARGINS

VERSION = 2  # 1: without the statistics el2n_squared and lost
FOLDER, HEADER, DIGEST, PREFIX = "dynamics", b"uimjax.dynamics", b"uimjax.digest", "statistic_"
NAME = re.compile(r"step-(\d+)(?:-seed-(-?\d+))?\.parquet")
PER_EXAMPLE = tuple(name for name in Statistics._fields if name not in ("at", "chosen", "losses", "tokens"))


class Table(NamedTuple):
    """Examples `[N]`: `ids` (integers or strings, each once), `labels` and `groups` or None, every score by name, the
    statistics (None of a finished map, which has scores alone), `losses` `[N, R]` of the newest meetings, oldest first,
    or None, and `metadata`: run, step, seed, definitions, counts of missing, repeated and lost examples, digests."""

    ids: np.ndarray
    labels: np.ndarray | None
    groups: np.ndarray | None
    scores: dict[str, Score]
    statistics: Statistics | None
    losses: np.ndarray | None
    metadata: dict[str, Any]


def tabled(
    statistics: Statistics, *, run: str, step: int, ids: Any = None, labels: Any = None, groups: Any = None,
    seed: int | None = None, definitions: Definitions = DEFAULT, digests: Mapping[str, str] | None = None,
    margins: str = "logits",
) -> Table:  # fmt: skip
    """The table of statistics `[N]`, in memory. `ids` `[N]` default to 0..N-1; `margins` is the collector's.

    Raises:
        ShapeError: columns of other lengths. DataError: ids that repeat, or are neither integers nor strings.
        UsageError: a negative step. UnknownNameError: no such kind of margin.
    """
    count = len(statistics.met)
    try:
        step, seed = operator.index(step), None if seed is None else operator.index(seed)
    except TypeError:
        raise UsageError(f"step={step!r}, seed={seed!r} arrived; whole numbers were wanted") from None
    if step < 0:
        raise UsageError(f"step={step} arrived; steps are counted from 0")
    if margins not in MARGINS:
        raise UnknownNameError("kind of margin", margins, MARGINS)
    ids = np.arange(count) if ids is None else _column("ids", ids, count)
    if ids.dtype.kind not in "iuU":
        raise DataError(f"ids of type {ids.dtype} arrived; integers or strings name examples")
    unique, often = np.unique(ids, return_counts=True)
    if len(unique) < count:
        at = int(often.argmax())
        raise DataError(f"id {unique[at]} names {often[at]} examples; each id should name one")
    labels = None if labels is None else _column("labels", labels, count)
    groups = None if groups is None else _column("groups", groups, count).astype(str)
    made = scores(statistics, definitions, margins)
    tokens = statistics.tokens
    metadata = {
        "version": VERSION, "uimjax": __version__, "run": str(run), "step": step, "seed": seed, "examples": count,
        "scores": {name: {"formula": s.formula, "suspicious": s.suspicious} for name, s in made.items()},
        "definitions": _told(definitions) | {"margins": margins}, "chosen": list(statistics.chosen),
        "missing": int((np.asarray(statistics.met) == 0).sum()),
        "repeated": int((np.asarray(statistics.repeated) > 0).sum()),
        "lost": int((np.asarray(statistics.lost) > 0).sum()),
        "ring": int(statistics.losses.shape[1]), "tokens": 0 if tokens is None else len(tokens.met) // max(count, 1),
        "digests": dict(digests or {}),
    }  # fmt: skip
    losses = statistics.losses if statistics.losses.shape[1] else None
    return Table(ids, labels, groups, made, statistics, losses, metadata)


def write(
    folder: Path | str, statistics: Statistics, *, run: str, step: int, ids: Any = None, labels: Any = None,
    groups: Any = None, seed: int | None = None, definitions: Definitions = DEFAULT,
    digests: Mapping[str, str] | None = None, margins: str = "logits", replace: bool = False,
) -> Path:  # fmt: skip
    """Write `dynamics/step-XXXXXXXX[-seed-S].parquet` under `folder`; the path. A row an example, keyed by run, step
    and id: a column for each score, for each statistic (`statistic_...`), and the list `losses` if the ring was kept.
    Tokens that were met go to `...-tokens.parquet` beside it, keyed by (id, position). Parameters as `tabled`.

    *Guarantees*: a reader sees the whole file or none. Statistics are kept in float64, exactly; losses in float32; NaN
    is stored as null. A file that is there already stays, unless `replace` (a resumed run writes its steps again).

    Raises:
        OutputError: the folder cannot be written, or other rows are there already. As `tabled`.
    """
    import pyarrow as pa

    table = tabled(statistics, run=run, step=step, ids=ids, labels=labels, groups=groups, seed=seed,
                   definitions=definitions, digests=digests, margins=margins)  # fmt: skip
    step, seed = table.metadata["step"], table.metadata["seed"]
    path = make_folder(Path(folder) / FOLDER) / _name(step, seed)
    count = len(table.ids)
    key = {
        "run": pa.array([str(run)] * count).dictionary_encode(), "step": pa.array(np.full(count, step, np.int64)),
        "seed": pa.array([seed] * count, pa.int64()), "id": pa.array(table.ids),
    }  # fmt: skip
    columns = key | {
        name: pa.array(x) for name, x in (("label", table.labels), ("group", table.groups)) if x is not None
    }
    columns |= {name: pa.array(s.values, from_pandas=True) for name, s in table.scores.items()}
    columns |= _columns(statistics)
    if table.losses is not None:
        flat = pa.array(table.losses.astype(np.float32).reshape(-1), from_pandas=True)
        columns["losses"] = pa.FixedSizeListArray.from_arrays(flat, table.losses.shape[1])
    if statistics.tokens is not None:  # first: a table that names a file of tokens has one
        inner, length = statistics.tokens, table.metadata["tokens"]
        kept = np.flatnonzero(inner.met > 0)
        place = {"id": pa.array(table.ids[kept // length]), "position": pa.array((kept % length).astype(np.int32))}
        values = {name: array.take(pa.array(kept)) for name, array in _columns(inner).items()}
        head = {name: array.take(pa.array(kept // length)) for name, array in key.items() if name != "id"}
        _put(_beside(path), head | place | values, table.metadata | {"rows": "tokens"}, replace)
    _put(path, columns, table.metadata | {"rows": "examples"}, replace)
    return path


def read(source: Path | str, step: int | None = None, seed: int | None = None) -> Table:
    """The table of a file, or of a folder's newest step (or `step`) and its only seed (or `seed`).

    Raises:
        MissingFileError: no table there. UsageError: no such step or seed, or several seeds and none was named.
        DataError: a Parquet file of something else. MismatchError: a later version. CorruptError: a damaged file.
    """
    source = Path(source)
    if source.is_file():
        return _read(source)
    found = _files(source, step)
    at = next(iter(found))[0]
    seeds = [s for _, s in found]
    told = ", ".join("none" if s is None else str(s) for s in seeds)
    if seed is None and len(seeds) > 1:
        raise UsageError(f"{source} holds step {at} of the seeds {told}; give seed=, or take all: read_seeds({source})")
    if seed is not None and seed not in seeds:
        raise UsageError(f"seed {seed} is not among the seeds of step {at} in {source}: {told}")
    return _read(found[at, seeds[0] if seed is None else seed])


def read_seeds(source: Path | str, step: int | None = None) -> list[Table]:
    """The tables of all seeds of a folder's newest step (or `step`), by seed. Raises as `read`."""
    return [_read(path) for path in _files(Path(source), step).values()]


def steps_of(source: Path | str) -> list[int]:
    """The steps of which a folder holds tables, rising. Raises MissingFileError: none."""
    return sorted({step for step, _ in _listed(Path(source))})


def _column(name: str, values: Any, count: int) -> np.ndarray:
    found = np.asarray(values)
    if found.shape != (count,):
        raise ShapeError(f"{name} of shape {list(found.shape)} arrived for the statistics of {count} examples")
    missing = [k for k, x in enumerate(found) if x is None or x != x] if found.dtype.kind in "Of" else []
    if missing:
        raise DataError(f"{name}: row {missing[0]} has none ({len(missing)} of {count}); give every example one")
    return found.astype(str) if found.dtype.kind == "O" and all(isinstance(x, str) for x in found) else found


def _told(definitions: Definitions) -> dict[str, Any]:
    found = dataclasses.asdict(definitions)
    return found | ({"never_learned": "infinity"} if found["never_learned"] == float("inf") else {})  # JSON has none


def _name(step: int, seed: int | None) -> str:
    return f"step-{step:08d}" + ("" if seed is None else f"-seed-{seed}") + ".parquet"


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}-tokens.parquet")


def _columns(statistics: Statistics) -> dict[str, Any]:
    import pyarrow as pa

    found = {PREFIX + name: np.asarray(getattr(statistics, name)) for name in PER_EXAMPLE}
    for name, values in statistics.at.items():
        found |= {f"{PREFIX}{name}_{meeting}": values[:, k] for k, meeting in enumerate(statistics.chosen)}
    return {name: pa.array(values, from_pandas=True) for name, values in found.items()}


def _put(path: Path, columns: dict[str, Any], metadata: dict[str, Any], replace: bool) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    told = json.dumps(metadata, allow_nan=False)
    said = {HEADER: told.encode(), DIGEST: _digest(told, list(columns)).encode()}
    table = pa.table(columns).replace_schema_metadata(said)
    split = [name for name, column in columns.items() if pa.types.is_floating(column.type)]
    whole: Any = [name for name in columns if name not in split]
    options: dict[str, Any] = {"compression": "zstd", "use_dictionary": whole, "use_byte_stream_split": split}
    made = pa.BufferOutputStream()
    parquet.write_table(table, made, write_page_checksum=True, **options)
    if path.exists() and not replace:
        if _arrow(path).equals(parquet.read_table(pa.BufferReader(made.getvalue())), check_metadata=True):
            return
        raise OutputError(
            f"{path} is there already, with other rows: another run writes to this folder, or this one was resumed. "
            "Choose another folder, or replace=True (--replace)."
        )
    with atomic(path) as temporary:
        temporary.write_bytes(made.getvalue())


def _digest(told: str, columns: list[str]) -> str:
    """Pages have checksums of their own; what the footer says has not."""
    return digest_text("\n".join([told, *columns]))


def _arrow(path: Path) -> Any:
    from pyarrow import ArrowException, parquet

    try:
        return parquet.ParquetFile(path, page_checksum_verification=True).read()
    except FileNotFoundError:
        raise MissingFileError(f"{path} is missing; write the statistics of that step again") from None
    except (OSError, ArrowException, ValueError) as error:  # ValueError: names that are no text
        raise CorruptError(f"{path} is damaged or no Parquet file: {error}. Write that step again.") from error


def _listed(folder: Path) -> dict[tuple[int, int | None], Path]:
    folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    named = [(NAME.fullmatch(path.name), path) for path in folder.iterdir()] if folder.is_dir() else []
    found = {(int(m[1]), None if m[2] is None else int(m[2])): path for m, path in named if m}
    if not found:
        raise MissingFileError(
            f"{folder} holds no table of training dynamics; dynamics.write(folder, ...) puts one there"
        )
    return dict(sorted(found.items(), key=lambda item: (item[0][0], item[0][1] is not None, item[0][1] or 0)))


def _files(folder: Path, step: int | None) -> dict[tuple[int, int | None], Path]:
    """Of one step, by (step, seed)."""
    found = _listed(folder)
    known = sorted({at for at, _ in found})
    if step is not None and step not in known:
        shown = ", ".join(map(str, known[:5])) + (f", ... {known[-1]}" if len(known) > 5 else "")
        near = min(known, key=lambda at: abs(at - step))
        raise UsageError(f"step {step} is not in {folder}; the nearest is {near} of {len(known)}: {shown}")
    wanted = known[-1] if step is None else step
    return {key: path for key, path in found.items() if key[0] == wanted}


def _metadata(path: Path, table: Any, rows: str) -> dict[str, Any]:
    said, names = (table.schema.metadata or {}).get(HEADER), table.column_names
    if said is None:
        raise DataError(
            f"{path} is a Parquet file of something else; a log of another tool becomes a run by `uimjax dynamics "
            "import LOG --out RUN` (elsewhere.steps_log)"
        )
    if table.schema.metadata.get(DIGEST, b"").decode(errors="replace") != _digest(said.decode(errors="replace"), names):
        raise CorruptError(f"{path} is damaged: its header is not what was written. Write that step again.")
    metadata = json.loads(said)
    if metadata["version"] > VERSION:
        raise MismatchError(
            f"{path} is of version {metadata['version']}, written by uimjax {metadata['uimjax']}; this uimjax "
            f"({__version__}) reads up to version {VERSION}. Install a newer uimjax."
        )
    if metadata["rows"] != rows:
        raise DataError(f"{path} holds {metadata['rows']}; a table of {rows} was wanted")
    return metadata


def _read(path: Path) -> Table:
    table = _arrow(path)
    metadata = _metadata(path, table, "examples")
    text = lambda name: table[name].to_numpy() if name in table.column_names else None  # noqa: E731  # used thrice
    ids, labels, groups = (_plain(text(name)) for name in ("id", "label", "group"))
    losses = None
    if metadata["ring"]:
        flat = table["losses"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        losses = flat.astype(np.float64).reshape(-1, metadata["ring"])
    made = {
        name: Score(table[name].to_numpy().astype(np.float64), said["formula"], said["suspicious"])
        for name, said in metadata["scores"].items()
    }
    statistics = _statistics(table, metadata, losses)
    if metadata["tokens"]:
        inner, length = _arrow(_beside(path)), metadata["tokens"]
        _metadata(_beside(path), inner, "tokens")
        order = {name: k for k, name in enumerate(np.asarray(ids).tolist())}
        at = np.array([order[name] for name in inner["id"].to_pylist()], np.int64) * length
        at += inner["position"].to_numpy()
        statistics = statistics._replace(tokens=_spread(_statistics(inner, metadata, None), at, len(table) * length))
    return Table(np.asarray(ids), labels, groups, made, statistics, losses, metadata)


def _plain(values: Any) -> np.ndarray | None:
    return values if values is None or values.dtype.kind != "O" else values.astype(str)


def _statistics(table: Any, metadata: dict[str, Any], losses: np.ndarray | None) -> Statistics:
    held = {name: table[PREFIX + name].to_numpy() for name in PER_EXAMPLE if PREFIX + name in table.column_names}
    if metadata["version"] < 2:
        held |= {"el2n_squared": np.full(len(table), np.nan), "lost": np.zeros(len(table), np.int64)}
    held = {name: x.astype(np.float64) if x.dtype.kind == "f" else x for name, x in held.items()}
    chosen = tuple(metadata["chosen"])
    at = {}
    for name in ("el2n", "grand"):
        each = [table[f"{PREFIX}{name}_{k}"].to_numpy() for k in chosen if f"{PREFIX}{name}_{k}" in table.column_names]
        at[name] = np.stack(each, 1).astype(np.float64) if each else np.zeros((len(table), 0))
    return Statistics(
        **held, at=at, chosen=chosen if at["el2n"].shape[1] else (), tokens=None,
        losses=np.zeros((len(table), 0)) if losses is None else losses,
    )  # fmt: skip


def _spread(kept: Statistics, at: np.ndarray, count: int) -> Statistics:
    """Statistics of the tokens that were met, among all positions; what a collector says of those never met."""
    uncollected = (kept.correct < 0).any()
    never = ("correct", "forgotten", "first", "learned") if uncollected else ("first",)
    found = {}
    for name in PER_EXAMPLE:
        values = getattr(kept, name)
        absent = np.nan if values.dtype.kind == "f" else NEVER if name in never else 0
        found[name] = np.full(count, absent, values.dtype)
        found[name][at] = values
    none = np.zeros((count, 0))
    return kept._replace(**found, losses=none, at={"el2n": none, "grand": none}, chosen=())
