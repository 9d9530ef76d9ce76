"""Representations at the command line: features of checkpoints or layers, from files, a run, or models over a corpus,
and the curvature at these models."""

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uimjax.commands import checkpoints, curvature
from uimjax.commands.base import as_json, columns, plain
from uimjax.commands.checkpoints import ENDINGS
from uimjax.errors import (
    DataError,
    MalformedRowError,
    MissingFileError,
    NonFiniteError,
    ShapeError,
    UimError,
    UsageError,
)

WHOLE = 256 << 20  # bytes of a .npy that are loaded at once; larger ones are streamed
SIDE = 1 << 31  # bytes of sums that CKA may take for all files side by side; beyond, a pair at a time
LIMIT = 1000  # rows of a model's features
ROWS = 10_000  # that TwoNN is of, evenly spaced
ANGLES = 10
ASIDE = ("id", "guid", "label")  # columns that are no features
NUMBERS = ("sve", "lsvr", "effective_rank", "rankme", "participation_ratio", "stable_rank", "skewness", "kurtosis",
           "two_nn")  # fmt: skip


class Set(NamedTuple):
    """`features` `[N, d]`, mapped where `streamed`; `columns`: of a table, those that were taken."""

    name: str
    path: Path
    features: np.ndarray
    streamed: bool
    columns: list[str]


def representation(args: argparse.Namespace, _rest: list[str]) -> int:
    from uimjax.progress import quiet, shown
    from uimjax.store import write_json
    from uimjax.store.base import make_folder

    progress = quiet if args.json else shown
    where = None if args.model or args.corpus else checkpoints.run_in(args.files, args.task)
    models = where is not None or _asks_models(args)
    how = curvature.asked(args, models)
    out = make_folder(Path(args.out))
    found: dict[str, Any] = {"centred": args.centred}
    if models:
        files, curved = _of_checkpoints(args, where, how, out, progress)
        found |= curved
    else:
        files = _files(args.files, args.limit)
    sets = [_opened(path, name) for path, name in zip(files, _names(files, args.names) if files else [], strict=True)]
    lines_of: list[dict[str, Any]] = []
    spectra: dict[str, np.ndarray] = {}
    for its in progress(sets, "spectra", unit="files"):
        try:
            numbers, spectra[its.name] = _numbers(its, args.centred)
        except (DataError, NonFiniteError, ShapeError) as error:
            raise type(error)(f"{its.path}: {error}") from error
        lines_of.append(numbers)
    found["files"] = lines_of
    if len(sets) > 1:
        found["cka"], found["angles"] = _similar(sets), _angles(sets, spectra, args.centred)
    pictures, readings = _pictures(sets, spectra, found, out) if sets else ({}, [])
    if how is not None:
        names = [line["name"] for line in found["curvature"]["checkpoints"]]
        x, title = _axis(names)
        more = curvature.pictures(found["curvature"], x, title.replace("file", "checkpoint"), out)
        pictures, readings = pictures | more[0], readings + more[1]
    found |= {"out": str(out), "pictures": pictures}
    write_json(out / "representation.json", plain(found | {"singular_values": spectra}))
    print(as_json(found) if args.json else "\n".join([*_told(found), "", *readings]))
    return 0


# ---------------------------------------------------------------- what arrives


def _asks_models(args: argparse.Namespace) -> bool:
    if bool(args.files) + bool(args.task) + bool(args.model or args.corpus) > 1:
        raise UsageError("files of features, --model and --task: two of them arrived, and one of the three fits")
    if bool(args.model) != bool(args.corpus):
        raise UsageError("--model DIR and --corpus FILES go together: features are of a model's rows")
    if not args.files and not args.model and not args.task:
        raise UsageError("no features arrived: `uimjax representation FILES...`, or RUN, or --model DIR --corpus "
                         "FILES, or --task REF")  # fmt: skip
    return bool(args.model or args.task)


def _files(given: Sequence[str], limit: int | None) -> list[Path]:
    """Files as they are given; those of a folder by name, numbers in it by size."""
    if limit is not None:
        raise UsageError("--limit is of the rows that a model is given, and files of features arrived, which are taken "
                         "whole; leave it out")  # fmt: skip
    found: list[Path] = []
    for path in map(Path, given):
        inside = checkpoints.features_in(path) if path.is_dir() else [path]
        if not inside:
            raise MissingFileError(
                f"{path} holds no features and is no run; files in {', '.join(ENDINGS)} were wanted, or the folder "
                "that `uimjax run CONFIG` or training.fit(folder=..., snapshots=...) writes (the latter with --task)"
            )
        found += sorted(inside, key=lambda p: [int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", p.name)])
    for path in found:
        if not path.is_file():
            raise MissingFileError(f"{path} is not a file; features [N, d] in {', '.join(ENDINGS)} were wanted")
        if path.suffix not in ENDINGS:
            raise UsageError(f"{path}: features end in {', '.join(ENDINGS)}, not in {path.suffix or 'nothing'}")
    return found


def _names(files: Sequence[Path], given: Sequence[str] | None) -> list[str]:
    from uimjax.report.figures import labels

    if given is not None and len(given) != len(files):
        raise UsageError(f"{len(given)} --names arrived for {len(files)} files; one each was wanted")
    stems = [path.stem for path in files]
    whole = [f"{path.absolute().parent.name}/{path.stem}" for path in files]
    return labels("names", given or (stems if len(set(stems)) == len(stems) else whole), len(files))


def _opened(path: Path, name: str) -> Set:
    if path.suffix in (".parquet", ".jsonl"):
        features, taken = _table(path)
        return Set(name, path, features, False, taken)
    try:
        held = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(held, np.ndarray):
            with held as archive:
                if len(archive.files) != 1:
                    raise DataError(
                        f"{path} holds {', '.join(archive.files) or 'nothing'}; one array was wanted: save it alone"
                    )
                held = archive[archive.files[0]]
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is no NumPy file of plain numbers: {error}") from error
    if held.ndim != 2 or 0 in held.shape or held.dtype.kind not in "fiub":
        raise ShapeError(
            f"{path} holds {held.dtype} of shape {list(held.shape)}; numbers [N, d] were wanted: flatten or pool what "
            "lies between"
        )
    streamed = path.suffix == ".npy" and held.nbytes > WHOLE
    return Set(name, path, held if streamed else np.array(held), streamed, [])


def _table(path: Path) -> tuple[np.ndarray, list[str]]:
    """The only column of lists, or all columns of numbers."""
    import pyarrow as pa
    from pyarrow import ArrowException, parquet

    from uimjax.tables import lines

    try:
        table: Any = parquet.read_table(path) if path.suffix == ".parquet" else pa.Table.from_pylist(
            _alike(path, lines(path)))  # fmt: skip
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    kinds = {field.name: field.type for field in table.schema if field.name not in ASIDE}
    lists = [n for n, t in kinds.items() if pa.types.is_list(t) or pa.types.is_fixed_size_list(t)]
    if len(lists) > 1:
        raise DataError(f"{path} has several columns of lists: {', '.join(lists)}; keep one")
    if lists:
        rows = table[lists[0]].to_pylist()
        kind = kinds[lists[0]].value_type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise DataError(f"{path}: {lists[0]} holds lists of {kind}; lists of numbers were wanted")
        widths = {len(row) if row is not None else 0 for row in rows}
        if len(widths) != 1:
            raise ShapeError(f"{path}: lists of {sorted(widths)} numbers in {lists[0]}; one width was wanted")
        return np.array(rows, np.float64), lists
    odd = [n for n, t in kinds.items() if not (pa.types.is_floating(t) or pa.types.is_integer(t))]
    if odd or not kinds:
        raise DataError(f"{path}: column {odd[0] if odd else '(none)'} holds no numbers; columns of numbers or one of "
                        f"lists were wanted (left out: {', '.join(ASIDE)})")  # fmt: skip
    return np.stack([table[n].to_numpy().astype(np.float64) for n in kinds], axis=1), list(kinds)


def _alike(path: Path, rows: Iterable[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of the same columns; arrow takes those of the first row, and leaves out what others have."""
    found: list[dict[str, Any]] = []
    for line, row in rows:
        if found and row.keys() != found[0].keys():
            odd = ", ".join(sorted(row.keys() ^ found[0].keys()))
            raise MalformedRowError(path, line, f"{odd} is in this row or in the first, and not in both")
        found.append(row)
    return found


def _of_checkpoints(
    args: argparse.Namespace, where: Path | None, how: Any, out: Path, progress: Any
) -> tuple[list[Path], dict[str, Any]]:
    """(features of each checkpoint as a .npy in `out`/features, its curvature); tasks without features have none."""
    from uimjax.store.base import make_folder

    limit = LIMIT if args.limit is None else args.limit
    if limit < 1:
        raise UsageError(f"--limit {limit} arrived; 1 row or more was wanted")
    run = None if where is None else checkpoints.run_of(where, args.task)
    stems = checkpoints.names(args, run)
    shown = _names([Path(f"{name}.npy") for name in stems], args.names)
    files: list[Path] = []
    curved: list[dict[str, Any]] = []
    for k, its in enumerate(checkpoints.opened(args, out, progress, run)):
        if its.task.features is not None:
            files.append(make_folder(out / "features") / f"{stems[k]}.npy")
            checkpoints.write_features(its, limit, files[-1], progress)
        elif how is None:
            raise UsageError(f"{args.task[0 if run else k]} returned a task without features(params, example), which "
                             "are asked for; give it these, or ask for its --curvature")  # fmt: skip
        if len(files) not in (0, k + 1):
            raise UsageError("some of the tasks have features and some have none; all or none fit in one series")
        if how is not None:
            curved.append(curvature.numbers(shown[k], its, how, progress))
    return files, {} if how is None else {"curvature": curvature.document(how, curved)}


# ---------------------------------------------------------------- what is found


def _numbers(its: Set, centred: bool) -> tuple[dict[str, Any], np.ndarray]:
    """(numbers of one file, its singular values)."""
    from uimjax.understand.representation import dimension, moments, spectrum

    x = its.features
    made = (
        spectrum.spectrum_of_moments(moments.moments_of(x), centred)
        if its.streamed
        else spectrum.spectrum_of(x, centred)
    )
    numbers = made._asdict()
    values = numbers.pop("singular_values")
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), ROWS)).round().astype(int))
    told: dict[str, Any] = {"name": its.name, "file": str(its.path), "rows": len(x), "width": x.shape[1],
                            "streamed": its.streamed, **numbers}  # fmt: skip
    try:
        found = dimension.two_nn(x[kept])
        told |= {"two_nn": found.regression, "two_nn_likelihood": found.likelihood, "two_nn_rows": found.rows}
    except UimError as error:  # the other numbers stand
        told |= {"two_nn": float("nan"), "two_nn_left_out": str(error)}
    return told | ({"columns": its.columns} if its.columns else {}), values


def _similar(sets: Sequence[Set]) -> dict[str, Any]:
    """CKA of each with each, of files of equal rows."""
    from uimjax.understand.representation import similarity

    counts = [len(its.features) for its in sets]
    if len(set(counts)) > 1:
        return {"left_out": f"files hold {counts} rows; CKA takes the same rows of each"}
    kind = "unbiased" if counts[0] >= similarity.FEWEST else "biased"
    features = [its.features for its in sets]
    try:
        if 4 * sum(x.shape[1] for x in features) ** 2 <= SIDE:
            matrix = similarity.cka_matrix(features, kind)
        else:
            matrix = np.eye(len(sets))
            for i in range(len(sets)):
                for j in range(i):
                    matrix[i, j] = matrix[j, i] = similarity.cka(features[i], features[j], kind)
    except UimError as error:  # features without any spread
        return {"left_out": str(error)}
    return {"kind": kind, "matrix": matrix.tolist()}


def _angles(sets: Sequence[Set], spectra: dict[str, np.ndarray], centred: bool) -> dict[str, Any]:
    """Between the leading directions of the first file and of the last."""
    from uimjax.understand.representation.similarity import principal_angles

    first, last = sets[0], sets[-1]
    if first.streamed or last.streamed:
        return {"left_out": f"a file of more than {WHOLE >> 20} MiB is streamed, and angles take it whole"}
    of = lambda its: spectra[its.name]  # noqa: E731  # twice
    eps = np.finfo(np.float64).eps
    ranks = [int((of(its) > of(its)[0] * max(its.features.shape) * eps).sum()) for its in (first, last)]
    place = 1 if first.features.shape[1] == last.features.shape[1] else 0
    k = min(ANGLES, *ranks, max(first.features.shape[place] // 2, 1))  # of all directions the angles are all 0
    try:
        found = principal_angles(first.features, last.features, k, centred)
    except UimError as error:  # neither widths nor rows fit
        return {"left_out": str(error)}
    return {"between": [first.name, last.name], "space": found.space, "radians": found.radians.tolist()}


def _pictures(sets: Sequence[Set], spectra: dict[str, np.ndarray], found: dict[str, Any], out: Path) -> tuple[Any, Any]:
    from uimjax.report import figures_representation as figures
    from uimjax.report.figures import write

    made = {"spectrum": figures.spectrum(spectra)}
    names = [its.name for its in sets]
    matrix = np.array(found.get("cka", {}).get("matrix", []))
    if matrix.size and np.isfinite(matrix).all() and matrix.size <= 5000:
        made["cka"] = figures.matrix(matrix, names, title=f"{found['cka']['kind']} CKA")
    if len(sets) > 1:
        x, title = _axis(names)
        values = {n: np.array([line[n] for line in found["files"]]) for n in NUMBERS}
        made["series"] = figures.against(
            x, {n.replace("_", " "): (v, v, v) for n, v in values.items() if np.isfinite(v).all()}, title
        )
    return {name: str(write(each, out, name)[0]) for name, each in made.items()}, [f.reading for f in made.values()]


def _axis(names: Sequence[str]) -> tuple[list[int], str]:
    """The number that each name holds, if they rise; else the place of the file."""
    held = [re.findall(r"\d+", re.sub(r" \(\d+\)$", "", name)) for name in names]  # " (2)" is `labels`'
    numbers = [int(each[-1]) if each and len(each[-1]) < 16 else -1 for each in held]
    rising = all(b > a for a, b in zip(numbers, numbers[1:], strict=False)) and numbers[0] >= 0
    return (numbers, "number in the file's name") if rising else (list(range(1, len(names) + 1)), "place of the file")


def _told(found: dict[str, Any]) -> list[str]:
    if not found["files"]:
        return [*curvature.lines(found["curvature"]), "", f"wrote {found['out']}"]
    heads = ["name", "rows", "width", *NUMBERS]
    cells = [[line["name"], str(line["rows"]), str(line["width"]), *(f"{line[n]:.4g}" for n in NUMBERS)]
             for line in found["files"]]  # fmt: skip
    lines = columns(heads, cells)
    for line in found["files"]:
        if "two_nn_left_out" in line:
            lines.append(f"  {line['name']}: no TwoNN: {line['two_nn_left_out']}")
        if line["streamed"] or "columns" in line:
            how = "streamed" if line["streamed"] else f"columns {', '.join(line['columns'][:8])}"
            lines.append(f"  {line['name']}: {how}")
    cka, angles = found.get("cka"), found.get("angles")
    if cka is not None and "matrix" in cka:
        names = [line["name"] for line in found["files"]]
        rows = [[name, *(f"{v:.4f}" for v in row)] for name, row in zip(names, cka["matrix"], strict=True)]
        lines += ["", f"CKA ({cka['kind']}):", *columns(["", *names], rows)]
    elif cka is not None:
        lines += ["", f"no CKA: {cka['left_out']}"]
    if angles is not None and "radians" in angles:
        told = ", ".join(f"{v:.3f}" for v in angles["radians"])
        lines += ["", f"principal angles between {' and '.join(angles['between'])} ({angles['space']}): {told} radians"]
    elif angles is not None:
        lines += ["", f"no principal angles: {angles['left_out']}"]
    if "curvature" in found:
        lines += ["", *curvature.lines(found["curvature"])]
    return [*lines, "", f"wrote {found['out']}"]
