"""Logs at the command line: those of other tools become runs, and a curve of losses is searched for spikes."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from uimjax import tables
from uimjax.commands.base import cells, pairs
from uimjax.commands.sources import array_of, ids_of
from uimjax.errors import DataError, MalformedRowError, MissingFileError, ShapeError, UsageError

KEPT = 64  # newest losses of an example that an import keeps at most


def imported(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from uimjax.understand.dynamics import elsewhere, table
    from uimjax.understand.dynamics.scoring import DEFAULT

    source = Path(args.source)
    kind = args.kind or _kind(source)
    renamed = pairs(args.columns, "--columns", "COLUMN")
    for flag, given, fits in (("--labels", args.labels, "logits"), ("--columns", renamed, "steps")):
        if given and kind != fits:
            raise UsageError(f"{flag} is for --from {fits}; {source} is read as {kind}")
    how = elsewhere.CARTOGRAPHY if kind == "cartography" else DEFAULT
    if kind == "cartography":
        its = elsewhere.cartography(source, KEPT)
    elif kind == "steps":
        its = elsewhere.steps_log(source, renamed, KEPT)
    else:
        its = elsewhere.logits_log(source, _labels(args.labels), ring=KEPT)
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
    if kind in tables.JSON_LINES and {"guid", "confidence"} <= set(next(tables.lines(source), (0, {}))[1]):
        raise UsageError(f"{source} is a finished data map, scores alone: `uimjax dynamics {source}` reads it")
    return "cartography" if source.is_dir() else "logits" if kind in ("npy", "npz") else "steps"


def spiked(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
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
    lines += cells(["step", "loss", "median", "MAD"], rows) if rows else []
    if args.batches is not None:
        batches, _ = array_of(Path(args.batches), ("batches",))
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
