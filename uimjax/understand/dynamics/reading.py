"""What tables of training dynamics say: suspicious examples, how scores agree and detect, clusters, spikes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uimjax.errors import DataError, MismatchError, ShapeError, UnknownNameError, UsageError
from uimjax.store.base import atomic
from uimjax.understand.dynamics.scoring import Score, suspicion
from uimjax.understand.dynamics.table import Table

SAMPLE = 5000  # trajectories that the silhouette is of
BLOCK = 1 << 22  # numbers at once
FLOOR = 1e-4  # of the median: what a median absolute deviation is at least


class Suspicious(NamedTuple):
    """`ids` `[K]`, most suspicious first, their `values`, and the score's name and formula."""

    ids: np.ndarray
    values: np.ndarray
    score: str
    formula: str


class Agreement(NamedTuple):
    """Spearman's correlation `matrix` `[S, S]` of the scores `names`; NaN where one is constant."""

    names: list[str]
    matrix: np.ndarray


class Detection(NamedTuple):
    """Of each score `names` `[S]`: area under the ROC curve and average precision, each with its interval; `bad` of
    `examples` were to be found; `band` says what the interval is."""

    names: list[str]
    auroc: np.ndarray
    auroc_low: np.ndarray
    auroc_high: np.ndarray
    precision: np.ndarray
    precision_low: np.ndarray
    precision_high: np.ndarray
    bad: int
    examples: int
    band: str


class Clusters(NamedTuple):
    """`assigned` `[N]`, by the mean of the last loss: cluster 0 ends lowest; -1: a trajectory with NaN or infinity.
    `sizes` `[k]`, mean `curves` and the 10th and 90th percentile `low`, `high` `[k, T]`; `silhouettes` by k."""

    assigned: np.ndarray
    sizes: np.ndarray
    curves: np.ndarray
    low: np.ndarray
    high: np.ndarray
    silhouettes: dict[int, float]


class Comparison(NamedTuple):
    """`spearman` of each score that both have, over the ids that both have; `moved`: for each, the ids whose rank
    (1: most suspicious) moved most, as (id, rank in a, rank in b); ids that only one has. `dropped`: scores that both
    have by another definition, each with its formulas; `relabelled`: ids whose label differs, which have no rank."""

    spearman: dict[str, float]
    moved: dict[str, list[tuple[Any, int, int]]]
    only_a: np.ndarray
    only_b: np.ndarray
    dropped: dict[str, tuple[str, str]]
    relabelled: np.ndarray


class Spikes(NamedTuple):
    """`steps` `[K]`, their `losses`, and the running `medians` and `deviations` (MADs, not below the floor) they were
    held against."""

    steps: np.ndarray
    losses: np.ndarray
    medians: np.ndarray
    deviations: np.ndarray


def suspicious(table: Table, score: str = "aum", count: int | None = None) -> Suspicious:
    """Examples from the most suspicious on, `count` of them (all), by one score. Never met: left out; ties: in the
    table's order.

    Raises:
        UnknownNameError: no such score. UsageError: the score is no detector, or `count` below 1.
    """
    found = score_of(table, score)
    if not found.suspicious:
        raise UsageError(
            f"{score} ({found.formula}) is no detector of bad examples; its values are table.scores[{score!r}]"
        )
    if count is not None and count < 1:
        raise UsageError(f"count={count} arrived; 1 or more was wanted")
    order = np.argsort(-suspicion(found), kind="stable")
    order = order[~np.isnan(found.values[order])][:count]
    return Suspicious(table.ids[order], found.values[order], score, found.formula)


def ranks(table: Table, names: Sequence[str] | None = None) -> Agreement:
    """How scores agree: Spearman's rank correlation of suspicion, so that 1 is one ranking, over the examples of which
    both are known. Raises UnknownNameError."""
    chosen = list(table.scores) if names is None else list(names)
    values = [directed(score_of(table, name)) for name in chosen]
    matrix = np.array([[_spearman(a, b) for b in values] for a in values])
    return Agreement(chosen, matrix.reshape(len(chosen), len(chosen)))


def detection(
    tables: Table | Sequence[Table], bad: Any, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> Detection:
    """How well each score finds known bad examples: AUROC and average precision, ties counted as scikit-learn does.

    `bad`: ids, or a mask `[N]`. Of one table the interval is a percentile bootstrap over examples, bad and good drawn
    apart and the same for every score; of several (seeds) the mean and Student's interval over them, cut to [0, 1].
    Examples that were never met count as the least suspicious, those whose signals became NaN or infinite as the most.

    Raises:
        UsageError: none bad or none good, unknown ids. MismatchError: tables of other ids or scores.
    """
    many = [tables] if isinstance(tables, Table) else list(tables)
    if not many:
        raise UsageError("no tables arrived; detection(table, bad) takes one, or a list of one a seed")
    first = many[0]
    if any(not np.array_equal(t.ids, first.ids) or list(t.scores) != list(first.scores) for t in many[1:]):
        raise MismatchError("tables of other ids or scores arrived; seeds of one run were wanted")
    if not 0 < level < 1 or draws < 1:
        raise UsageError(f"level={level}, draws={draws} arrived; a level in (0, 1) and 1 draw or more were wanted")
    mask = _mask(first, bad)
    names = list(first.scores)
    whole = np.ones((1, len(mask)), np.int32)
    points = np.array([[_areas(_doubt(t, name), mask, whole)[:, 0] for name in names] for t in many])
    if len(many) > 1:
        from scipy.stats import t as student

        mean = points.mean(0)
        reach = student.ppf((1 + level) / 2, len(many) - 1) * points.std(0, ddof=1) / np.sqrt(len(many))
        low, high = np.clip(mean - reach, 0, 1), np.clip(mean + reach, 0, 1)
        band = f"{level:.0%} interval over {len(many)} seeds"
    else:
        mean, (low, high) = points[0], _bootstrap(first, names, mask, draws, level, seed)
        band = f"{level:.0%} bootstrap interval"
    return Detection(names, mean[:, 0], low[:, 0], high[:, 0], mean[:, 1], low[:, 1], high[:, 1], int(mask.sum()),
                     len(mask), band)  # fmt: skip


def clusters(losses: Any, k: int | None = None, seed: int = 0, most: int = 8) -> Clusters:
    """k-means of loss trajectories `[N, T]`; k is that of the largest silhouette among 2 to `most` unless it is given.
    Trajectories that are not finite throughout (not met so often, or a loss that was NaN or infinite) belong to none.

    Raises:
        ShapeError. UsageError: fewer different trajectories than clusters.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    losses = np.asarray(losses, np.float64)
    if losses.ndim != 2 or not losses.shape[1]:
        raise ShapeError(f"losses of shape {list(losses.shape)} arrived; [N, T] was wanted (collect with ring=T)")
    kept = np.isfinite(losses).all(1)
    rows = losses[kept]
    different = len(np.unique(rows, axis=0))
    if different < (1 if k is None else max(k, 1)) or (k is not None and k < 1):
        raise UsageError(f"{different} different whole trajectories arrived for k={k}; k in 1..{different} fits")
    made, told = {}, {}
    for many in [k] if k is not None else range(2, min(most, different, len(rows) - 1) + 1):
        means: Any = KMeans(many, random_state=seed).set_params(n_init=10)  # its stubs allow n_init="auto" alone
        made[many] = means.fit_predict(rows)
        if 1 < many < len(rows):
            sample = min(len(rows), SAMPLE)
            told[many] = float(silhouette_score(rows, made[many], sample_size=sample, random_state=seed))
    best = k if k is not None else max(told, key=lambda many: told[many]) if told else 1
    labels = made.get(best, np.zeros(len(rows), int))
    order = np.argsort([rows[labels == c, -1].mean() for c in range(best)], kind="stable")
    groups = [rows[labels == c] for c in order]
    assigned = np.full(len(losses), -1)
    assigned[kept] = np.argsort(order)[labels]
    low, high = (np.stack([np.percentile(g, q, axis=0) for g in groups]) for q in (10, 90))
    return Clusters(
        assigned, np.array([len(g) for g in groups]), np.stack([g.mean(0) for g in groups]), low, high, told
    )


def compare(a: Table, b: Table, count: int = 10) -> Comparison:
    """Two tables by the ids that both have, and by the scores that mean the same in both. Raises MismatchError: none of
    either, or every label differs."""
    both, at_a, at_b = np.intersect1d(a.ids, b.ids, return_indices=True) if _kind(a) == _kind(b) else ([], [], [])
    if not len(both):
        hint = "; one has integers for ids, the other strings" if _kind(a) != _kind(b) else ""
        raise MismatchError(f"the tables share no id ({a.ids[0]!r}, {b.ids[0]!r}, ...){hint}; two of one data set fit")
    at_a, at_b, relabelled = _unlike(a, b, np.asarray(at_a, int), np.asarray(at_b, int))
    both = a.ids[at_a]
    shared = [name for name in a.scores if name in b.scores]
    off = _defined_otherwise(a, b)
    names = [name for name in shared if not off(name)]
    dropped = {name: (a.scores[name].formula, b.scores[name].formula) for name in shared if off(name)}
    if not names:
        told = f"; of other definitions: {', '.join(dropped)}" if dropped else ""
        raise MismatchError(f"the tables share no score: {', '.join(a.scores)}; {', '.join(b.scores)}{told}")
    told, moved = {}, {}
    for name in names:
        x, y = (suspicion(t.scores[name])[at] for t, at in ((a, at_a), (b, at_b)))
        told[name] = _spearman(*(np.where(np.isneginf(v), np.nan, v) for v in (x, y)))
        ranked = [np.argsort(np.argsort(-v, kind="stable"), kind="stable") + 1 for v in (x, y)]
        far = np.argsort(-np.abs(ranked[0] - ranked[1]), kind="stable")[:count]
        moved[name] = [(both[k].item(), int(ranked[0][k]), int(ranked[1][k])) for k in far]
    only = lambda mine, theirs: mine.ids[~np.isin(mine.ids, theirs.ids)]  # noqa: E731  # one line, used twice
    return Comparison(told, moved, only(a, b), only(b, a), dropped, relabelled)


def _unlike(a: Table, b: Table, at_a: np.ndarray, at_b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The places of examples whose label is the same in both, and the ids of the others."""
    if a.labels is None or b.labels is None:
        return at_a, at_b, a.ids[:0]
    same = a.labels[at_a] == b.labels[at_b]
    if not same.any():
        raise MismatchError("no example has the same label in both tables; two runs of one data set fit")
    return at_a[same], at_b[same], a.ids[at_a[~same]]


def _defined_otherwise(a: Table, b: Table) -> Any:
    """Says of a score's name whether the tables' definitions of it differ; a finished map has none."""
    one, two = (t.metadata.get("definitions") for t in (a, b))
    differ = {} if one is None or two is None else {name for name in one if one[name] != two.get(name)}
    of = {"never_learned": "forgetting", "variability": "variability", "el2n_squared": "el2n", "margins": "aum"}
    names = tuple(of[name] for name in differ if name in of)
    return lambda score: score in names or ("el2n" in names and score.startswith("el2n_"))


def spikes(curve: Any, window: int = 50, threshold: float = 10.0) -> Spikes:
    """Steps of a training curve `[T]` whose loss exceeds the median of the `window` steps before by more than
    `threshold` times their median absolute deviation, which counts as `FLOOR` of the median at least: a curve that
    stands still spikes at no rounding. The first `window` steps have no such past and are none. Losses that are NaN or
    infinite are no part of a median; each stretch of them is one spike, at its first step.

    Raises:
        ShapeError: no curve. UsageError: `window` below 2, or not above the curve's length; `threshold` not above 0.
    """
    curve = np.asarray(curve, np.float64)
    if curve.ndim != 1:
        raise ShapeError(f"a curve of shape {list(curve.shape)} arrived; losses [T] were wanted")
    if not 2 <= window < len(curve) or not threshold > 0:
        raise UsageError(
            f"window={window}, threshold={threshold} for {len(curve)} steps; 2 <= window < T and above 0 fit"
        )
    past = np.lib.stride_tricks.sliding_window_view(np.where(np.isfinite(curve), curve, np.nan), window)[:-1]
    medians, deviations = np.full(len(past), np.nan), np.full(len(past), np.nan)
    size = max(BLOCK // window, 1)
    for start in range(0, len(past), size):
        block = past[start : start + size]
        there = ~np.isnan(block).all(1)
        middle = np.nanmedian(block[there], axis=1)
        medians[start : start + size][there] = middle
        deviations[start : start + size][there] = np.nanmedian(np.abs(block[there] - middle[:, None]), axis=1)
    now, deviations = curve[window:], np.maximum(deviations, FLOOR * np.abs(medians))
    lost = ~np.isfinite(now)
    first = lost & ~np.concatenate([[False], lost[:-1]])
    found = np.flatnonzero(~lost & (now > medians + threshold * deviations) | first)
    return Spikes(found + window, now[found], medians[found], deviations[found])


def documents_of(steps: Any, batch_ids: Any) -> tuple[np.ndarray, np.ndarray]:
    """(ids, how often) of the examples in the batches of `steps`, most often first. `batch_ids` `[S, B]` as
    `steps.seen` gives, negative on padding; or a list of arrays, one a step. Raises UsageError: a step that is none."""
    wanted = np.atleast_1d(np.asarray(steps, int)) if np.size(steps) else np.zeros(0, int)
    off = wanted[(wanted < 0) | (wanted >= len(batch_ids))]
    if len(off):
        raise UsageError(f"step {off[0]} arrived for the batches of {len(batch_ids)} steps, 0..{len(batch_ids) - 1}")
    held = [np.asarray(batch_ids[step]).reshape(-1) for step in wanted]
    flat = np.concatenate(held) if held else np.zeros(0, int)
    flat = flat if flat.dtype.kind in "US" else flat[flat >= 0]
    ids, often = np.unique(flat, return_counts=True)
    order = np.argsort(-often, kind="stable")
    return ids[order], often[order]


def export_ids(path: Path | str, ids: Any, values: Any = None, name: str = "value") -> Path:
    """Ids as a text file, one a line (.txt), or as JSON lines of `id`, and of `name` where `values` are given.

    Raises:
        UsageError: another ending, or values for a text file. ShapeError. DataError: an id with a line break.
    """
    path, ids = Path(path), np.asarray(ids)
    if path.suffix not in (".txt", ".jsonl"):
        raise UsageError(f"{path}: ids are written to .txt or .jsonl, not to {path.suffix!r}")
    if path.suffix == ".txt" and values is not None:
        raise UsageError(f"{path}: a text file holds ids alone; write values to .jsonl")
    if values is not None and np.shape(values) != ids.shape:
        raise ShapeError(f"values of shape {list(np.shape(values))} arrived for {len(ids)} ids")
    if path.suffix == ".txt" and any("\n" in str(x) or "\r" in str(x) for x in ids):
        raise DataError("an id holds a line break; write ids to .jsonl")
    plain = ids.tolist()
    if path.suffix == ".txt":
        lines = [str(x) for x in plain]
    elif values is None:
        lines = [json.dumps({"id": x}) for x in plain]
    else:
        held = [v if not isinstance(v, float) or np.isfinite(v) else str(v) for v in np.asarray(values).tolist()]
        lines = [json.dumps({"id": x, name: v}) for x, v in zip(plain, held, strict=True)]
    with atomic(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in lines))
    return path


def score_of(table: Table, name: str) -> Score:
    """Raises UnknownNameError."""
    if name not in table.scores:
        raise UnknownNameError("score", name, table.scores)
    return table.scores[name]


def _kind(table: Table) -> bool:
    return table.ids.dtype.kind == "U"


def directed(score: Score) -> np.ndarray:
    """Larger is more suspicious; NaN: never met."""
    return score.values * (score.suspicious or 1)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import rankdata

    known = ~(np.isnan(a) | np.isnan(b))
    x, y = (rankdata(v[known]) if known.any() else np.zeros(0) for v in (a, b))
    x, y = (v - v.mean() if len(v) else v for v in (x, y))
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else float("nan")


def _doubt(table: Table, name: str) -> np.ndarray:
    """Larger is more suspicious. A mean that became NaN says nothing; that it did is as odd as an infinite one."""
    values = suspicion(table.scores[name])
    if table.statistics is None or not table.scores[name].suspicious:
        return values
    return np.where((table.statistics.lost > 0) & np.isnan(table.scores[name].values), np.inf, values)


def _mask(table: Table, bad: Any) -> np.ndarray:
    found = np.asarray(bad)
    if found.dtype == bool:
        if found.shape != table.ids.shape:
            raise ShapeError(f"a mask of shape {list(found.shape)} arrived for {len(table.ids)} examples")
        mask = found
    else:
        absent = found[~np.isin(found, table.ids)]
        if len(absent):
            raise UsageError(f"{len(absent)} bad ids are not in the table, first {absent[0]!r}")
        mask = np.isin(table.ids, found)
    if mask.all() or not mask.any():
        raise UsageError(f"{int(mask.sum())} of {len(mask)} examples are bad; some, and not all, were wanted")
    return mask


def _areas(values: np.ndarray, bad: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(AUROC, average precision) `[2, R]` of examples `[N]` that count `weights` `[R, N]` times."""
    order = np.argsort(-values, kind="stable")
    held, hits = values[order], bad[order]
    starts = np.flatnonzero(np.concatenate([[True], held[1:] != held[:-1]]))  # ties count as one step of the curve
    often = weights[:, order].astype(float)
    right, wrong = (np.add.reduceat(np.where(part, often, 0), starts, axis=1) for part in (hits, ~hits))
    found, passed = right.cumsum(1), wrong.cumsum(1)
    auroc = (wrong * (found - right / 2)).sum(1) / (found[:, -1] * passed[:, -1])
    precision = (right * found / np.maximum(found + passed, 1)).sum(1) / found[:, -1]
    return np.stack([auroc, precision])


def _bootstrap(table: Table, names: list[str], bad: np.ndarray, draws: int, level: float, seed: int) -> Any:
    """(low, high) `[S, 2]`: percentiles over draws of as many bad and as many good examples."""
    rng, made = np.random.default_rng(seed), []
    size = max(BLOCK // len(bad), 1)
    for start in range(0, draws, size):
        weights = np.zeros((min(size, draws - start), len(bad)), np.int32)
        for part in (np.flatnonzero(bad), np.flatnonzero(~bad)):
            weights[:, part] = rng.multinomial(len(part), np.full(len(part), 1 / len(part)), size=len(weights))
        made.append(np.stack([_areas(_doubt(table, name), bad, weights) for name in names]))
    drawn = np.concatenate(made, axis=2)
    return np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=2)
