"""Logs at the command line: those of other tools become runs, and a curve of losses is searched for spikes."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from uimjax import tables
from uimjax.commands.base import cells, pairs
from uimjax.commands.sources import array_of, ids_of, is_map
from uimjax.errors import DataError, MalformedRowError, MissingFileError, OutputError, ShapeError, UsageError
from uimjax.store.digest import digest_file, digest_text

KEPT = 64  # newest losses of an example that an import keeps at most
SHOWN = 20  # documents of a spike in a line of text


def imported(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from uimjax.understand.dynamics import elsewhere, table
    from uimjax.understand.dynamics.scoring import DEFAULT

    source = Path(args.source)
    kind = args.kind or _kind(source)
    renamed = pairs(args.columns, "--columns", "COLUMN")
    cures = {"--labels": "; a log of steps has a column `label`" if kind == "steps" else ""}
    for flag, given, fits in (("--labels", args.labels, "logits"), ("--columns", renamed, "steps"),
                              ("--floor", args.floor, "steps")):  # fmt: skip
        if given and kind != fits:
            raise UsageError(f"{flag} is for --from {fits}; {source} is read as {kind}{cures.get(flag, '')}")
    if args.floor is not None and not 0 <= args.floor < 1:
        raise UsageError(f"--floor {args.floor:g} arrived; a probability from 0 to below 1 was wanted")
    how = elsewhere.CARTOGRAPHY if kind == "cartography" else DEFAULT
    if kind == "cartography":
        its = elsewhere.cartography(source, KEPT)
    elif kind == "steps":
        its = elsewhere.steps_log(source, renamed, KEPT, args.floor or 0.0)
    else:
        its = elsewhere.logits_log(source, _labels(args.labels), ring=KEPT)
    assert its.statistics is not None  # a log has meetings
    losses = its.statistics.losses
    held = its.statistics._replace(losses=losses[:, ~np.isnan(losses).all(0)])
    step, name = its.metadata["step"], args.run or source.name.partition(".")[0] or "imported"
    log = _digest(source, args.labels, renamed, args.floor)
    if not args.replace:
        _check_same(Path(args.out), log)
    path = table.write(args.out, held, run=name, step=step, ids=its.ids, labels=its.labels, definitions=how,
                       digests={"log": log}, replace=args.replace)  # fmt: skip
    found = {"kind": kind, "guessed": args.kind is None, "run": name, "step": step, "examples": len(its.ids),
             "scores": list(its.scores), "losses": held.losses.shape[1], "table": str(path)}  # fmt: skip
    guessed = " (guessed; --from says otherwise)" if found["guessed"] else ""
    line = f"{source} is read as {kind}{guessed}: {len(its.ids)} examples, newest epoch {step}"
    return found, [line, f"scores: {', '.join(its.scores)}", f"wrote {path}; read it: uimjax dynamics {args.out}"]


def _digest(source: Path, labels: str | None, *how: Any) -> str:
    """Of the log's bytes, its labels' and how it was read."""
    files = sorted(p for p in source.rglob("dynamics_epoch_*") if p.is_file()) if source.is_dir() else [source]
    files += [Path(labels)] if labels else []
    return digest_text("\n".join([*(digest_file(path) for path in files), *map(str, how)]))


def _check_same(out: Path, log: str) -> None:
    """Raises OutputError: the folder holds a table of something else, of whatever step."""
    from uimjax.understand.dynamics import table

    try:
        held = [found for step in table.steps_of(out) for found in table.read_seeds(out, step)]
    except MissingFileError:
        return
    other = next((found for found in held if found.metadata["digests"].get("log") != log), None)
    if other is not None:
        run, step = other.metadata["run"], other.metadata["step"]
        raise OutputError(f"{out} holds step {step} of {run} already, which another log or training gave; choose "
                          "another folder, or write beside it by --replace")  # fmt: skip


def _labels(given: str | None) -> np.ndarray | None:
    if not given:
        return None
    path = Path(given)
    return array_of(path, ("labels",))[0] if path.suffix in (".npy", ".npz") else ids_of(path, np.zeros(0, int))


def _kind(source: Path) -> str:
    """Of its ending; what has none of them is refused, and so is a finished data map."""
    if not source.exists():
        raise MissingFileError(f"{source} is not there; a folder of dynamics_epoch_N.jsonl, or a log, was wanted")
    kind = tables.kind(source)
    if kind in tables.JSON_LINES and next(tables.lines(source), None) and is_map(source):
        raise UsageError(f"{source} is a finished data map, scores alone: `uimjax dynamics {source}` reads it")
    return "cartography" if source.is_dir() else "logits" if kind in ("npy", "npz") else "steps"


def spiked(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from uimjax.report.figures import label
    from uimjax.understand.dynamics.reading import documents_of, spikes

    at, curve, each = _curve(Path(args.metrics))
    made = spikes(curve, args.window, args.threshold)
    steps, unit = at[made.steps], "step" if each is None else "epoch"
    values = (x.tolist() for x in (steps, *made[1:]))
    names = (unit, "loss", "median", "deviation")
    rows: list[Any] = [dict(zip(names, each, strict=True)) for each in zip(*values, strict=True)]
    found: dict[str, Any] = {f"{unit}s": len(curve), "spikes": rows}
    lines = [f"{len(rows)} of {len(curve)} {unit}s spike: more than {args.threshold:g} MADs above the median of the "
             f"{args.window} before"]  # fmt: skip
    lines += cells([unit, "loss", "median", "MAD"], rows) if rows else []
    if args.batches is None:
        return found, lines
    batches = _batches(Path(args.batches), at, each)
    of = lambda at: np.arange(at * (each or 1), (at + 1) * (each or 1))  # noqa: E731  # steps of a line of the curve
    for row in rows:
        row["ids"] = documents_of(of(row[unit]), batches)[0].tolist()
        if each is not None:
            row["steps"] = [int(of(row[unit])[0]), int(of(row[unit])[-1])]
    ids, often = documents_of(np.concatenate([np.zeros(0, int), *map(of, steps)]), batches)
    found["documents"] = [{"id": key, "times": n} for key, n in zip(ids.tolist(), often.tolist(), strict=True)]
    for row in rows:
        known, more = row["ids"][:SHOWN], len(row["ids"]) - SHOWN
        which = f"{unit} {row[unit]}" + (f" (of all its steps {row['steps'][0]}..{row['steps'][1]})" if each else "")
        lines.append(f"documents of {which}: {', '.join(map(label, known))}" + (f", {more} more" if more > 0 else ""))
    if each is not None and rows:
        lines.append("the curve has a line an epoch, so that no step of it can be told from the others; log the loss "
                     "of every step to find the batch of a spike")  # fmt: skip
    return found, lines


def _batches(path: Path, at: np.ndarray, each: int | None) -> np.ndarray:
    """Ids `[steps, B]` whose rows are the steps of the curve, or refused."""
    batches, _ = array_of(path, ("batches",))
    if batches.ndim != 2:
        raise ShapeError(f"{path} of shape {list(batches.shape)} arrived; ids [steps, B] were wanted")
    if each is not None:
        if len(batches) % each or len(batches) < (at[-1] + 1) * each:
            raise ShapeError(
                f"{path} has {len(batches)} rows, and the curve {each} steps in each epoch up to {at[-1]}: the batches "
                "of this run were wanted, uimjax.steps.seen(recipe, rows)"
            )
        return batches
    stride = int(np.median(np.diff(at))) if len(at) > 1 else 1
    if not at[-1] < len(batches) <= at[-1] + stride:
        raise ShapeError(
            f"{path} has {len(batches)} rows, and the curve ends at step {at[-1]}: a row for each of its steps was "
            "wanted. Does it count epochs? Curves that training.fit wrote say so by `steps_per_epoch`; a run that was "
            f"stopped saw the first {at[-1] + 1} rows alone"
        )
    return batches


def _curve(path: Path) -> tuple[np.ndarray, np.ndarray, int | None]:
    """(steps, losses, steps in each), rising; of a step that was written again, the last. None: lines are steps, and
    else epochs."""
    from uimjax.understand.dynamics import logs

    held: dict[int, float] = {}
    many: set[Any] = set()
    for line, row in tables.lines(path):
        if "loss" in row:  # other lines are of other measurements
            logs.check_fields(path, line, row, ("step",))
            step, loss, each = row["step"], row["loss"], row.get("steps_per_epoch")
            if not isinstance(step, int) or not isinstance(loss, (int, float, type(None))):
                raise MalformedRowError(path, line, f"step {step!r}, loss {loss!r}: numbers were wanted")
            held[step] = np.nan if loss is None else float(loss)  # JSON has no NaN
            many.add(each)
            if len(many) > 1 or not (each is None or (isinstance(each, (int, float)) and each >= 1 and each % 1 == 0)):
                raise MalformedRowError(path, line, f"steps_per_epoch is {each!r}; one number in all lines was wanted")
    if not held:
        raise DataError(f'{path} holds no losses; lines {{"step": ..., "loss": ...}} were wanted, as JsonLines writes')
    steps, losses = zip(*sorted(held.items()), strict=True)
    each = many.pop()
    return np.array(steps), np.array(losses), None if each is None else int(each)
