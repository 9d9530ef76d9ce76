"""Training dynamics at the command line: what a run's tables say, and how two runs compare."""

import argparse
import contextlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from uimjax.commands import logs
from uimjax.commands.base import as_json, cells, columns, plain
from uimjax.commands.sources import MAIN, array_of, chosen, ids_of, influence_of, tables_of
from uimjax.errors import DataError, ShapeError, UsageError

MAP = ("confidence", "variability", "correctness")
AREAS = ("auroc", "auroc_low", "auroc_high", "precision", "precision_low", "precision_high")
ABOUT = ("run", "step", "seed", "seeds", "examples", "missing", "repeated", "lost")  # of a table's metadata
PROBABILITIES = ("probabilities", "pred_probs", "probs")


def dynamics(args: argparse.Namespace, _rest: list[str]) -> int:
    done = {"": _read, "import": logs.imported, "compare": _compare, "spikes": logs.spiked}
    found, lines = done[getattr(args, "action", "")](args)
    print(as_json(found) if args.json else "\n".join(lines))
    return 0


def _read(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from uimjax.report.figures import write
    from uimjax.store import write_json
    from uimjax.store.base import make_folder
    from uimjax.understand.dynamics import reading
    from uimjax.understand.dynamics.averaging import averaged

    for flag, value in (("column", args.influence_column), ("top", args.influence_top)):
        if value is not None and args.influence is None:
            raise UsageError(f"--influence-{flag} goes with --influence FILE")
    many = tables_of(args.target, args.step, args.seed)
    many = _defined(many, args)
    its = many[0] if len(many) == 1 else averaged(many)
    worst = reading.suspicious(its, chosen(args.score, its), args.count)
    bad = None if args.bad is None else ids_of(Path(args.bad), its.ids)
    about = {key: its.metadata.get(key) for key in ABOUT}
    found: dict[str, Any] = {key: value for key, value in about.items() if value is not None}
    found["scores"] = {name: {"formula": s.formula, "suspicious": s.suspicious} for name, s in its.scores.items()}
    lines, figures = _about(args.target, found), {}
    found["score"], (found["most_suspicious"], more) = worst.score, _listed(its, worst)
    found["lost_ids"], lost = _lost(its, args.count)
    lines += lost + more
    parts = {"regions": _map(its), "clusters": _trajectories(its, args.clusters), "detection": _detection(many, bad)}
    for name, part in parts.items():
        if part is not None:
            found[name], figures[part[0]], more = part[1:]
            lines += ["", *more]
    if args.probabilities is not None:
        found["label_issues"], more = _issues(its, Path(args.probabilities), bad, args.count)
        lines += ["", *more]
    if args.influence is not None:
        found["influence"], more = _influence(its, args)
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
                       ("missing", "{} never met"), ("repeated", "{} met more than once in an epoch"),
                       ("lost", "{} whose loss or scores became NaN or infinite")):  # fmt: skip
        if found.get(name) or (found.get(name) == 0 and name in ("step", "seed")):
            head += ", " + told.format(str(found[name]).strip("[]"))
    ways, width = {1: "large", -1: "small", 0: "-"}, max(map(len, found["scores"]))
    rows = [f"  {name:{width}}  {ways[s['suspicious']]:10}  {s['formula']}" for name, s in found["scores"].items()]
    return [head, "", f"  {'score':{width}}  suspicious  formula", *rows]


def _defined(many: list[Any], args: argparse.Namespace) -> list[Any]:
    """The tables, their scores by the definitions that were asked for."""
    from uimjax.understand.dynamics.scoring import Definitions
    from uimjax.understand.dynamics.table import tabled

    asked = {"never_learned": args.never_learned, "variability": args.variability, "el2n_squared": args.el2n_squared}
    asked = {name: value for name, value in asked.items() if value is not None}
    if not asked:
        return many
    if "never_learned" in asked:
        with contextlib.suppress(ValueError):
            asked["never_learned"] = float(asked["never_learned"])
    made = []
    for t in many:
        if t.statistics is None:
            raise UsageError("a finished data map holds scores alone; other definitions need the statistics of a run")
        told, margins = dict(t.metadata["definitions"]), t.metadata["definitions"]["margins"]
        how = Definitions(**{name: value for name, value in (told | asked).items() if name != "margins"})
        if how.el2n_squared and np.isnan(t.statistics.el2n_squared).all():
            raise UsageError("the table keeps no squares of EL2N (it is old, or EL2N was not collected); write it anew")
        same = {name: t.metadata[name] for name in ("run", "step", "seed", "digests")}
        made.append(tabled(t.statistics, ids=t.ids, labels=t.labels, groups=t.groups, definitions=how, margins=margins,
                           **same))  # fmt: skip
    return made


def _lost(its: Any, count: int) -> tuple[list[Any], list[str]]:
    """Ids of examples that were met with NaN or infinity, which no ranking of a mean has."""
    from uimjax.report.figures import label

    if its.statistics is None or not (its.statistics.lost > 0).any():
        return [], []
    ids = its.ids[its.statistics.lost > 0].tolist()
    shown = ", ".join(map(label, ids[:count])) + (f", {len(ids) - count} more" if len(ids) > count else "")
    return ids, ["", f"a loss or score of {len(ids)} examples became NaN or infinite; means have no rank for them, so "
                 f"look at them first: {shown}"]  # fmt: skip


def _listed(its: Any, worst: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """The most suspicious examples with what else is known of them: as rows, and as a table."""
    held = {n: v for n, v in (("label", its.labels), ("group", its.groups)) if v is not None}
    held |= {n: its.scores[n].values for n in MAIN if n in its.scores and n != worst.score}
    at = {key: k for k, key in enumerate(its.ids.tolist())}
    pairs = zip(worst.ids.tolist(), worst.values.tolist(), strict=True)
    rows = [{"id": key, "value": value} | {n: v[at[key]].item() for n, v in held.items()} for key, value in pairs]
    table = cells(["id", worst.score, *held], rows)
    return rows, ["", f"the {len(rows)} most suspicious by {worst.score}:", *table]


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
    told |= {
        "without": int((made.assigned < 0).sum()),
        "infinite": int(np.isinf(losses).any(1).sum()),
        "ids": [its.ids[made.assigned == c] for c in range(len(names))],
    }
    head = (f"clusters of loss trajectories; {told['without']} examples belong to none: not met so often, or a loss "
            f"was NaN or infinite ({told['infinite']} infinite):")  # fmt: skip
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
    rows = [[name, span(s, "auroc"), span(s, "precision")] for name, s in told.items()]
    head = f"how well scores find the {made.bad} bad of {made.examples} ({made.band}):"
    found = {"bad": made.bad, "examples": made.examples, "band": made.band, "scores": told}
    return "detection", found, figure, [head, *columns(["score", "AUROC", "average precision"], rows), figure.reading]


def _issues(its: Any, path: Path, bad: np.ndarray | None, count: int) -> tuple[dict[str, Any], list[str]]:
    from uimjax.understand.dynamics.labels import label_issues

    if its.labels is None:
        raise DataError("the table holds no labels: write it with labels=, or import a log that has them: a column "
                        "`label` (steps), or --labels FILE (logits)")  # fmt: skip
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
    return found, lines + cells(["id", "label", "suggested", *made.scores], shown[:count])


def _aligned(its: Any, path: Path) -> tuple[np.ndarray, str]:
    """Probabilities in the order of the table, and how their rows were told."""
    p, held = array_of(path, PROBABILITIES)
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


def _influence(its: Any, args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """How scores agree with influence; those that agree best stand first."""
    from uimjax.report.figures import label
    from uimjax.understand.dynamics.influence import agreement

    made = agreement(its, *influence_of(Path(args.influence), args.influence_column), k=args.influence_top)
    values = {"spearman": made.spearman, "spearman_low": made.low, "spearman_high": made.high, "overlap": made.overlap,
              "chance": made.chance, "p": made.p, "examples": made.examples, "unknown": made.unknown}  # fmt: skip
    told = {made.names[k]: {n: v[k].item() for n, v in values.items()} for k in np.argsort(-made.spearman)}
    rows = [[name, f"{s['spearman']:.4f} [{s['spearman_low']:.4f}, {s['spearman_high']:.4f}]", f"{s['overlap']:.4g}",
             f"{s['p']:.2g}", str(s["examples"])] for name, s in told.items()]  # fmt: skip
    head = f"agreement with {label(Path(args.influence).name)}: {made.both} examples ({made.band})"
    for ids, which in ((made.missing, "of the table have no influence"), (made.extra, "are not in the table")):
        if len(ids):
            head += f"; {len(ids)} ids {which}, first {label(ids[0])}"
    shared = (
        f"shared: of the {made.k} most suspicious of both; by chance {made.k / made.both:.3g}, and p is how often a "
    )
    lines = [head, *columns(["score", "rank agreement (Spearman)", "shared", "p", "examples"], rows)]
    found = {"file": args.influence, "k": made.k, "both": made.both, "missing": made.missing, "extra": made.extra}
    return found | {"band": made.band, "scores": told}, [*lines, shared + "random order shares as much"]


def _compare(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from uimjax.report.figures import label
    from uimjax.understand.dynamics.averaging import averaged
    from uimjax.understand.dynamics.reading import compare

    a, b = (found[0] if len(found) == 1 else averaged(found) for found in map(tables_of, (args.a, args.b)))
    made = compare(a, b, args.count)
    if args.score in made.dropped:
        raise UsageError(f"{args.score} is defined otherwise in A ({', in B '.join(made.dropped[args.score])}); read "
                         "both alike, or choose another score")  # fmt: skip
    name = chosen(args.score, *(t._replace(scores={n: t.scores[n] for n in made.spearman}) for t in (a, b)))
    moved = {score: [{"id": key, "a": x, "b": y} for key, x, y in rows] for score, rows in made.moved.items()}
    found = made._asdict() | {"both": len(a.ids) - len(made.only_a), "score": name, "moved": moved}
    found["dropped"] = {score: dict(zip("ab", told, strict=True)) for score, told in made.dropped.items()}
    rows = [[score, f"{value:.4f}"] for score, value in made.spearman.items()]
    lines = [f"{found['both']} examples are in both", *columns(["score", "rank agreement (Spearman)"], rows), ""]
    for score, (one, two) in made.dropped.items():
        lines.append(f"{score} is not compared, as its definitions differ: {one}; {two}")
    if len(made.relabelled):
        known = ", ".join(map(label, made.relabelled[: args.count].tolist()))
        lines.append(f"{len(made.relabelled)} examples have another label in B and no rank, first {known}")
    lines += [f"moved most by {name} (rank 1: most suspicious):"]
    lines += cells(["id", "rank in A", "rank in B"], moved[name])
    for which, ids in (("A", made.only_a), ("B", made.only_b)):
        if len(ids):
            lines.append(f"only in {which}: {len(ids)}, first {', '.join(map(label, ids[: args.count].tolist()))}")
    return found, lines
