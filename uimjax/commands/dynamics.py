"""Training dynamics at the command line: what a run's tables say, other tools' logs, two runs, and spikes."""

import argparse
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uimjax import tables
from uimjax.errors import DataError, MalformedRowError, MissingFileError, ShapeError, UnknownNameError, UsageError

ACTIONS = ("import", "compare", "spikes")
KINDS = ("cartography", "steps", "logits")
MAIN = ("aum", "loss_mean", "el2n", "forgetting", "confidence")  # shown beside the chosen score, the first its default
MAP = ("confidence", "variability", "correctness")
AREAS = ("auroc", "auroc_low", "auroc_high", "precision", "precision_low", "precision_high")
KEPT = 64  # newest losses of an example that an import keeps at most
PROBABILITIES = ("probabilities", "pred_probs", "probs")


def dynamics(args: argparse.Namespace, _rest: list[str]) -> int:
    done = {"": _read, "import": _import, "compare": _compare, "spikes": _spikes}
    found, lines = done[getattr(args, "action", "")](args)
    print(json.dumps(plain(found), allow_nan=False) if args.json else "\n".join(lines))
    return 0


def plain(value: Any) -> Any:
    """As JSON has it: NaN is null, infinities are text."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return str(value) if isinstance(value, Path) else value


def _tables(source: str, step: int | None = None, seed: int | None = None) -> list[Any]:
    """One a seed. A file of JSON lines is a finished data map."""
    from uimjax.understand.dynamics import elsewhere, table

    path = Path(source)
    if path.is_file():
        if step is not None or seed is not None:
            raise UsageError(f"{path} is the table of one step and seed; leave --step and --seed out, or name its run")
        return [elsewhere.coordinates(path) if tables.kind(path) in tables.JSON_LINES else table.read(path)]
    if not path.is_dir():
        raise MissingFileError(
            f"{path} is no run with dynamics/*.parquet (of a log: uimjax dynamics import LOG --out RUN)"
        )
    return table.read_seeds(path, step) if seed is None else [table.read(path, step, seed)]


def _chosen(name: str | None, *many: Any) -> str:
    """The score that was asked for, or the first of `MAIN`, or of all detectors, that every table has."""
    absent = next((t for t in many if name not in t.scores), None)
    if name is not None and absent is not None:
        raise UnknownNameError("score", name, absent.scores)
    shared = [n for n, s in many[0].scores.items() if s.suspicious and all(n in t.scores for t in many)]
    if not shared:
        raise DataError(f"no score that detects bad examples is here; there are: {', '.join(many[0].scores)}")
    return name or next((n for n in MAIN if n in shared), shared[0])


def _ids(path: Path, wanted: np.ndarray) -> np.ndarray:
    """Ids of a file, a line each, or the `id` of JSON lines; of the kind that the table's are (`wanted`)."""
    from uimjax.understand.dynamics import logs

    if not path.is_file():
        raise MissingFileError(f"{path} is not a file; ids, a line each (.txt), or JSON lines of `id` were wanted")
    if tables.kind(path) in tables.JSON_LINES:
        held = list(tables.lines(path))
        for line, row in held:
            logs.check_fields(path, line, row, ("id",))
        rows = [(line, row["id"]) for line, row in held]
    else:
        texts = enumerate(map(str.strip, path.read_text(errors="replace").split("\n")), 1)
        rows = [(line, text) for line, text in texts if text]
    if not rows:
        raise DataError(f"{path} holds no ids; a line each was wanted")
    if wanted.dtype.kind == "U":
        return np.array([str(value) for _, value in rows])
    for line, value in rows:
        if not str(value).removeprefix("-").isdecimal():
            raise MalformedRowError(path, line, f"{value!r} is no whole number, as the ids of the table are")
    return np.array([int(value) for _, value in rows])


def _array(path: Path, names: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(the array, all arrays) of a NumPy file: of several, the one that is called so."""
    if not path.is_file():
        raise MissingFileError(f"{path} is not a file; a .npy or .npz was wanted")
    try:
        opened = np.load(path, allow_pickle=False)
        held = {names[0]: opened} if isinstance(opened, np.ndarray) else {n: opened[n] for n in opened.files}
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is no NumPy file of plain numbers: {error}") from error
    others = [name for name in held if name != "ids"]
    name = next((n for n in names if n in held), others[0] if len(others) == 1 else None)
    if name is None:
        raise UnknownNameError("array", names[0], held)
    return held[name], held


def _read(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from uimjax.report.figures import label, write
    from uimjax.store import write_json
    from uimjax.store.base import make_folder
    from uimjax.understand.dynamics import reading
    from uimjax.understand.dynamics.table import averaged

    many = _tables(args.target, args.step, args.seed)
    its = many[0] if len(many) == 1 else averaged(many)
    worst = reading.suspicious(its, _chosen(args.score, its), args.count)
    bad = None if args.bad is None else _ids(Path(args.bad), its.ids)
    about = {key: its.metadata.get(key) for key in ("run", "step", "seed", "seeds", "examples", "missing", "repeated")}
    found: dict[str, Any] = {key: value for key, value in about.items() if value is not None}
    found["scores"] = {name: {"formula": s.formula, "suspicious": s.suspicious} for name, s in its.scores.items()}
    lines, figures = _about(args.target, found), {}
    found["score"], (found["most_suspicious"], more) = worst.score, _listed(its, worst, label)
    lines += more
    parts = {"regions": _map(its), "clusters": _trajectories(its, args.clusters), "detection": _detection(many, bad)}
    for name, part in parts.items():
        if part is not None:
            found[name], figures[part[0]], more = part[1:]
            lines += ["", *more]
    if args.probabilities is not None:
        found["label_issues"], more = _issues(its, Path(args.probabilities), bad, args.count, label)
        lines += ["", *more]
    out = make_folder(_folder(args))
    found |= {"out": str(out), "pictures": {name: str(write(each, out, name)[0]) for name, each in figures.items()}}
    if args.export is not None:
        values = worst.values if Path(args.export).suffix == ".jsonl" else None
        found["exported"] = str(reading.export_ids(args.export, worst.ids, values, worst.score))
        lines += ["", f"wrote the {len(worst.ids)} ids above to {args.export}"]
    write_json(out / "dynamics.json", plain(found))
    lines += ["", f"wrote {', '.join(Path(p).name for p in found['pictures'].values()) or 'the numbers'} to {out}"]
    return found, lines


def _folder(args: argparse.Namespace) -> Path:
    root = Path(args.target) if Path(args.target).is_dir() else Path(args.target).parent
    beside = (root.parent if root.name == "dynamics" else root) / "understood"
    return beside if args.out is None else Path(args.out)


def _about(target: str, found: Mapping[str, Any]) -> list[str]:
    head = f"{target}: {found['examples']} examples"
    for name, told in (("step", "step {}"), ("seed", "seed {}"), ("seeds", "means over the seeds {}"),
                       ("missing", "{} never met"), ("repeated", "{} met more than once in an epoch")):  # fmt: skip
        if found.get(name) or (found.get(name) == 0 and name in ("step", "seed")):
            head += ", " + told.format(str(found[name]).strip("[]"))
    ways, width = {1: "large", -1: "small", 0: "-"}, max(map(len, found["scores"]))
    rows = [f"  {name:{width}}  {ways[s['suspicious']]:10}  {s['formula']}" for name, s in found["scores"].items()]
    return [head, "", f"  {'score':{width}}  suspicious  formula", *rows]


def _listed(its: Any, worst: Any, label: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """The most suspicious examples with what else is known of them: as rows, and as a table."""
    held = {n: v for n, v in (("label", its.labels), ("group", its.groups)) if v is not None}
    held |= {n: its.scores[n].values for n in MAIN if n in its.scores and n != worst.score}
    at = {key: k for k, key in enumerate(its.ids.tolist())}
    pairs = zip(worst.ids.tolist(), worst.values.tolist(), strict=True)
    rows = [{"id": key, "value": value} | {n: v[at[key]].item() for n, v in held.items()} for key, value in pairs]
    table = _cells(["id", worst.score, *held], rows, label)
    return rows, ["", f"the {len(rows)} most suspicious by {worst.score}:", *table]


def _cells(heads: Sequence[str], rows: Sequence[Mapping[str, Any]], label: Any) -> list[str]:
    """The first values of each row under `heads`; numbers with four digits, names harmless."""
    short = lambda x: f"{x:.4g}" if isinstance(x, float) else label(x)  # noqa: E731  # of one cell
    return columns(heads, [[short(x) for x in list(row.values())[: len(heads)]] for row in rows])


def columns(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """A table in plain text: the first column to the left, numbers to the right."""
    rows = [heads, *cells]
    first, *widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rest = [[f"{cell:>{width}}" for cell, width in zip(row[1:], widths, strict=True)] for row in rows]
    return ["  " + "  ".join([f"{row[0]:{first}}", *more]) for row, more in zip(rows, rest, strict=True)]


def _map(its: Any) -> tuple[Any, ...] | None:
    """The data map, of examples that were met."""
    from uimjax.report import figures_dynamics as figures

    held = [its.scores[name].values for name in MAP if name in its.scores]
    known = np.isfinite(held).all(0)
    if len(held) < len(MAP) or not known.any():
        return None
    confidence, variability, right = held
    most = max(right.max(initial=1, where=known), 1.0)
    met = np.full(len(right), most) if its.statistics is None else np.maximum(its.statistics.met, 1)
    confidence, variability = confidence[known].clip(0, 1), variability[known].clip(0)
    figure = figures.data_map(confidence, variability, (right / met)[known].clip(0, 1), None)
    counts = Counter((name or "between") for name in figures.regions(confidence, variability).tolist())
    told = {name: counts[name] for name in (*figures.REGIONS, "between")}
    line = "data map (thirds): " + ", ".join(f"{many} {name}" for name, many in told.items())
    if its.statistics is None:
        line += f"; shares right are of {most:.0f} epochs, the most that an example was right in"
    return "data_map", told, figure, [line, figure.reading]


def _trajectories(its: Any, k: int | None) -> tuple[Any, ...] | None:
    """Clusters of losses, if they were kept."""
    from uimjax.report.figures_dynamics import trajectories
    from uimjax.understand.dynamics.reading import clusters

    losses = np.zeros((1, 0)) if its.losses is None else its.losses
    losses = losses[:, ~np.isnan(losses).all(0)]  # a ring may have room for more meetings than there were
    if k is not None and losses.shape[1] < 2:
        raise UsageError("--clusters needs losses, which this table does not hold: collect with ring=20 or more")
    if losses.shape[1] < 2 or (k is None and len(np.unique(losses[~np.isnan(losses).any(1)], axis=0)) < 3):
        return None
    made = clusters(losses, k)
    names = [f"cluster {c}" for c in range(len(made.sizes))]
    steps = np.arange(1, losses.shape[1] + 1)
    figure = trajectories(steps, made.curves, names, made.sizes.tolist(), made.low, made.high,
                          "10th to 90th percentile", x_title=f"meeting, of the newest {len(steps)}")  # fmt: skip
    told = {name: getattr(made, name) for name in ("sizes", "curves", "silhouettes")}
    told |= {"without": int((made.assigned < 0).sum()), "ids": [its.ids[made.assigned == c] for c in range(len(names))]}
    head = f"clusters of loss trajectories; {told['without']} examples were not met so often and belong to none:"
    lines = [f"  {name}: {size} examples, loss {curve[0]:.4g} to {curve[-1]:.4g}"
             for name, size, curve in zip(names, made.sizes, made.curves, strict=True)]  # fmt: skip
    return "trajectories", told, figure, [head, *lines, figure.reading]


def _detection(many: list[Any], bad: np.ndarray | None) -> tuple[Any, ...] | None:
    from uimjax.report.figures_dynamics import detection as drawn
    from uimjax.understand.dynamics.reading import detection

    if bad is None:
        return None
    made = detection(many, bad)
    figure = drawn(made.names, made.auroc, made.auroc_low, made.auroc_high, band=made.band)
    order = np.argsort(-made.auroc, kind="stable")
    told = {made.names[k]: {name: float(getattr(made, name)[k]) for name in AREAS} for k in order}
    span = lambda s, n: f"{s[n]:.4f} [{s[n + '_low']:.4f}, {s[n + '_high']:.4f}]"  # noqa: E731  # twice
    cells = [[name, span(s, "auroc"), span(s, "precision")] for name, s in told.items()]
    head = f"how well scores find the {made.bad} bad of {made.examples} ({made.band}):"
    found = {"bad": made.bad, "examples": made.examples, "band": made.band, "scores": told}
    return "detection", found, figure, [head, *columns(["score", "AUROC", "average precision"], cells), figure.reading]


def _issues(its: Any, path: Path, bad: np.ndarray | None, count: int, label: Any) -> tuple[dict[str, Any], list[str]]:
    from uimjax.understand.dynamics.labels import label_issues

    if its.labels is None:
        raise DataError("the table holds no labels: write it with labels=, or import the log with --labels FILE")
    p, rows = _aligned(its, path)
    made = label_issues(its.labels, p, its.ids)
    values = {"label": its.labels, "suggested": made.suggested, **made.scores}
    at = {key: k for k, key in enumerate(its.ids.tolist())}
    shown = [{"id": key} | {n: v[at[key]].item() for n, v in values.items()} for key in made.ids.tolist()]
    found: dict[str, Any] = {"flagged": len(shown), "estimated_wrong": made.wrong, "rows": rows, "issues": shown,
                             "thresholds": made.thresholds, "joint": made.joint}  # fmt: skip
    lines = [f"label issues by confident learning: {len(shown)} flagged, about {made.wrong} labels wrong ({rows})"]
    if bad is not None:
        found["flagged_bad"] = int(np.isin(made.ids, bad).sum())
        lines[0] += f"; {found['flagged_bad']} of the flagged are known bad"
    return found, lines + _cells(["id", "label", "suggested", *made.scores], shown[:count], label)


def _aligned(its: Any, path: Path) -> tuple[np.ndarray, str]:
    """Probabilities in the order of the table, and how their rows were told."""
    p, held = _array(path, PROBABILITIES)
    if p.ndim != 2 or len(p) != len(its.ids):
        raise ShapeError(f"{path}: {list(p.shape)} probabilities arrived for {len(its.ids)} examples; [N, C] fit")
    if "ids" in held:
        ids = held["ids"] if its.ids.dtype.kind != "U" else held["ids"].astype(str)
        if not np.array_equal(np.sort(ids), np.sort(its.ids)):
            raise DataError(f"{path}: its ids ({ids[0]!r}, ...) are others than the table's ({its.ids[0]!r}, ...)")
        return p[np.argsort(ids)[np.argsort(np.argsort(its.ids))]], "rows by their ids"
    if its.ids.dtype.kind in "iu" and np.array_equal(np.sort(its.ids), np.arange(len(p))):
        return p[its.ids], "row k is of id k"
    return p, "rows in the order of the table"


# ---------------------------------------------------------------- other tools' logs, two runs, a curve


def _import(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from uimjax.understand.dynamics import elsewhere, table
    from uimjax.understand.dynamics.scoring import DEFAULT

    source = Path(args.source)
    kind = args.kind or _kind(source)
    renamed = _renamed(args.columns)
    for flag, given, fits in (("--labels", args.labels, "logits"), ("--columns", renamed, "steps")):
        if given and kind != fits:
            raise UsageError(f"{flag} is for --from {fits}; {source} is read as {kind}")
    how = elsewhere.CARTOGRAPHY if kind == "cartography" else DEFAULT
    if kind == "cartography":
        its = elsewhere.cartography(source, KEPT)
    elif kind == "steps":
        its = elsewhere.steps_log(source, renamed, KEPT)
    else:
        given = Path(args.labels or "")
        whole = given.suffix in (".npy", ".npz")
        labels = None if not args.labels else _array(given, ("labels",))[0] if whole else _ids(given, np.zeros(0, int))
        its = elsewhere.logits_log(source, labels, ring=KEPT)
    assert its.statistics is not None  # a log has meetings
    losses = its.statistics.losses
    held = its.statistics._replace(losses=losses[:, ~np.isnan(losses).all(0)])
    step, name = its.metadata["step"], args.run or source.name.partition(".")[0] or "imported"
    path = table.write(args.out, held, run=name, step=step, ids=its.ids, labels=its.labels, definitions=how)
    found = {"kind": kind, "guessed": args.kind is None, "run": name, "step": step, "examples": len(its.ids),
             "scores": list(its.scores), "losses": held.losses.shape[1], "table": str(path)}  # fmt: skip
    guessed = " (guessed; --from says otherwise)" if found["guessed"] else ""
    line = f"{source} is read as {kind}{guessed}: {len(its.ids)} examples, newest epoch {step}"
    return found, [line, f"scores: {', '.join(its.scores)}", f"wrote {path}; read it: uimjax dynamics {args.out}"]


def _kind(source: Path) -> str:
    """Of its ending; what has none of them is refused, and so is a finished data map."""
    if not source.exists():
        raise MissingFileError(f"{source} is not there; a folder of dynamics_epoch_N.jsonl, or a log, was wanted")
    kind = tables.kind(source)
    if kind in tables.JSON_LINES and {"guid", "confidence"} <= set(next(tables.lines(source), (0, {}))[1]):
        raise UsageError(f"{source} is a finished data map, scores alone: `uimjax dynamics {source}` reads it")
    return "cartography" if source.is_dir() else "logits" if kind in ("npy", "npz") else "steps"


def _renamed(given: Sequence[str] | None) -> dict[str, str]:
    made = {item.partition("=")[0]: item.partition("=")[2] for item in given or []}
    if len(made) < len(given or []) or not all(name and column for name, column in made.items()):
        raise UsageError(f"--columns {' '.join(given or [])} arrived; NAME=COLUMN was wanted, each name once: id=guid")
    return made


def _compare(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from uimjax.report.figures import label
    from uimjax.understand.dynamics.reading import compare
    from uimjax.understand.dynamics.table import averaged

    a, b = (found[0] if len(found) == 1 else averaged(found) for found in map(_tables, (args.a, args.b)))
    made = compare(a, b, args.count)
    name = _chosen(args.score, a, b)
    moved = {score: [{"id": key, "a": x, "b": y} for key, x, y in rows] for score, rows in made.moved.items()}
    found = made._asdict() | {"both": len(a.ids) - len(made.only_a), "score": name, "moved": moved}
    cells = [[score, f"{value:.4f}"] for score, value in made.spearman.items()]
    lines = [f"{found['both']} examples are in both", *columns(["score", "rank agreement (Spearman)"], cells), ""]
    lines += [f"moved most by {name} (rank 1: most suspicious):"]
    lines += _cells(["id", "rank in A", "rank in B"], moved[name], label)
    for which, ids in (("A", made.only_a), ("B", made.only_b)):
        if len(ids):
            lines.append(f"only in {which}: {len(ids)}, first {', '.join(map(label, ids[: args.count].tolist()))}")
    return found, lines


def _spikes(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from uimjax.report.figures import label
    from uimjax.understand.dynamics.reading import documents_of, spikes

    at, curve = _curve(Path(args.metrics))
    made = spikes(curve, args.window, args.threshold)
    steps = at[made.steps]
    values = (x.tolist() for x in (steps, *made[1:]))
    names = ("step", "loss", "median", "deviation")
    rows: list[Any] = [dict(zip(names, each, strict=True)) for each in zip(*values, strict=True)]
    found: dict[str, Any] = {"steps": len(curve), "spikes": rows}
    lines = [f"{len(rows)} of {len(curve)} steps spike: more than {args.threshold:g} MADs above the median of the "
             f"{args.window} before"]  # fmt: skip
    lines += _cells(["step", "loss", "median", "MAD"], rows, label) if rows else []
    if args.batches is not None:
        batches, _ = _array(Path(args.batches), ("batches",))
        if batches.ndim != 2:
            raise ShapeError(f"{args.batches} of shape {list(batches.shape)} arrived; ids [steps, B] were wanted")
        for row in rows:
            row["ids"] = documents_of(row["step"], batches)[0].tolist()
        ids, often = documents_of(steps, batches)
        found["documents"] = [{"id": key, "times": n} for key, n in zip(ids.tolist(), often.tolist(), strict=True)]
        lines += [f"documents of step {row['step']}: {', '.join(map(label, row['ids']))}" for row in rows]
    return found, lines


def _curve(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(steps, losses), rising; of a step that was written again, the last."""
    from uimjax.understand.dynamics import logs

    held: dict[int, float] = {}
    for line, row in tables.lines(path):
        if "loss" in row:  # other lines are of other measurements
            logs.check_fields(path, line, row, ("step",))
            if not isinstance(row["step"], int) or not isinstance(row["loss"], (int, float)):
                raise MalformedRowError(path, line, f"step {row['step']!r}, loss {row['loss']!r}: numbers were wanted")
            held[row["step"]] = float(row["loss"])
    if not held:
        raise DataError(f'{path} holds no losses; lines {{"step": ..., "loss": ...}} were wanted, as JsonLines writes')
    steps, losses = zip(*sorted(held.items()), strict=True)
    return np.array(steps), np.array(losses)
