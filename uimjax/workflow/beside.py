"""A corpus held against files of the reader's own: evaluation sets, labelled texts, and its own labels."""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uimjax.census import contamination, counting, together, wordy
from uimjax.census.sampling import Drawn
from uimjax.config import CensusConfig
from uimjax.corpora import texts
from uimjax.corpora.texts import Columns, Text
from uimjax.errors import DataError, UsageError
from uimjax.report import tables


class Evaluation(NamedTuple):
    """Evaluation sets: their `asked` runs and the names of their `files`."""

    asked: contamination.Asked
    files: list[str]


def evaluation(config: CensusConfig) -> Evaluation:
    files = texts.files_of(config.evaluation) if config.evaluation else []
    found: list[Text] = []
    owner: list[int] = []
    for k, path in enumerate(files):
        for block in texts.read_texts([path], Columns(config.evaluation_column), lambda _row: None):
            found += block
            owner += [k] * len(block)
        if k not in owner:
            raise DataError(f"{path} holds no item with text in {config.evaluation_column!r} (--evaluation-column)")
    return Evaluation(contamination.asked([t.text for t in found], [t.id for t in found], owner), list(map(str, files)))


def contaminated(out: Path, sets: Evaluation, total: counting.Counted) -> list[dict[str, Any]] | None:
    """Write `contamination.parquet`, a row an item that was met."""
    if not sets.files:
        return None
    asked, share = sets.asked, contamination.shares(total.seen, sets.asked)
    tables.write_rows(out / "contamination.parquet", [
        {"file": sets.files[int(asked.file[k])], "item": asked.ids[k], "share": float(share[k]),
         "documents": total.seen.where.get(k, [])}
        for k in np.flatnonzero(share > 0).tolist()
    ], ("file", "item", "share", "documents"))  # fmt: skip
    return contamination.told(total.seen, asked, sets.files)


def label_of(value: Any) -> str | None:
    """A class as text, whole numbers without a point; None where there is none.

    >>> label_of(1.0), label_of(True), label_of(" "), label_of(float("nan")), label_of("bad")
    ('1', '1', None, None, 'bad')
    """
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    return None if value is None or value != value or not str(value).strip() else str(value).strip()


class Toxic(NamedTuple):
    learned: wordy.Learned
    toxic: np.ndarray  # [N] bool
    texts: list[str]
    length: int  # characters of a labelled text, the median


def toxicity(config: CensusConfig) -> Toxic:
    columns = Columns(config.toxicity_text, label=config.toxicity_label)
    rows: list[tuple[str, str]] = []
    for path in texts.files_of([config.toxicity]):
        for block in texts.read_blocks(path, columns, lambda _row: None):
            pairs = [(row.get(columns.text), row.get(columns.label)) for _, row in block]
            rows += [(t, label) for t, y in pairs if t and (label := label_of(y)) is not None]
    labels = {label for _, label in rows}
    toxic = set(config.toxic) or ({"1"} if labels == {"0", "1"} else set())
    if not toxic or not toxic < labels:
        raise UsageError(f"{config.toxicity}: labels {', '.join(sorted(labels)[:10])}; which of them are toxic? "
                         f"--toxic {' '.join(sorted(labels - {'0'})[:1])} ...")  # fmt: skip
    truth = np.array([label in toxic for _, label in rows])
    learned = wordy.learn([t for t, _ in rows], [str(int(y)) for y in truth], config.seed, balanced=True)
    return Toxic(learned, truth, [t for t, _ in rows], int(np.median([len(t) for t, _ in rows])))


def judged(its: Toxic, sample: list[Drawn], of: int, config: CensusConfig) -> dict[str, Any]:
    """Of one passage a document, as long as the labelled texts are."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    rng = np.random.default_rng(config.seed)
    starts = [int(rng.integers(max(1, len(one.text) - its.length + 1))) for one in sample]
    passages = [one.text[a : a + its.length] for one, a in zip(sample, starts, strict=True)]
    flagged = its.learned.model.predict_proba(passages)[:, 1] >= wordy.THRESHOLD
    said = its.learned.held_out[:, 1]
    rate = wordy.prevalence(flagged, its.toxic, said >= wordy.THRESHOLD, config.seed)
    unlike = wordy.unlike(its.texts, passages, config.seed) if len(passages) >= wordy.FOLDS else 1.0
    if unlike >= wordy.UNLIKE:
        rate = rate._replace(estimate=None, low=None, high=None)
    by: dict[str, list[bool]] = {}
    for one, yes in zip(sample, flagged.tolist(), strict=True):
        by.setdefault(one.source, []).append(yes)
    return rate._asdict() | {
        "looked_at": len(sample), "of": of, "passage": its.length, "labelled": len(its.toxic), "unlike": unlike,
        "auc": float(roc_auc_score(its.toxic, said)), "ap": float(average_precision_score(its.toxic, said)),
        "base": float(its.toxic.mean()),
        "by_source": {s: {"looked_at": len(v), "flagged": float(np.mean(v))} for s, v in sorted(by.items())[:50]},
    }  # fmt: skip


def mislabelled(sample: list[Drawn], of: int, config: CensusConfig, out: Path) -> dict[str, Any]:
    """Write `labels.parquet`: documents whose label looks wrong, the likeliest first."""
    from uimjax.understand.dynamics import labels

    given_all = Counter(one.label for one in sample if one.label is not None)
    rare = sorted(label for label, n in given_all.items() if n < wordy.FOLDS)
    some = [one for one in sample if one.label is not None and one.label not in rare]
    if len(given_all) - len(rare) < 2:
        return {"why": f"{len(given_all) - len(rare)} classes of {wordy.FOLDS} documents and more in "
                       f"{config.label_column!r}; two at least were wanted", "wrong": 0}  # fmt: skip
    learned = wordy.learn([one.text for one in some], [str(one.label) for one in some], config.seed)
    given = np.array([learned.classes.index(str(one.label)) for one in some])
    issues = labels.label_issues(given, learned.held_out)
    tables.write_rows(out / "labels.parquet", [
        {"id": some[k].id, "given": learned.classes[given[k]], "suggested": learned.classes[int(issues.suggested[k])],
         "probability_of_given": float(learned.held_out[k, given[k]])}
        for k in issues.ids.tolist()
    ], ("id", "given", "suggested", "probability_of_given"))  # fmt: skip
    share = issues.wrong / len(some)
    low, high = together.wilson(issues.wrong, len(some))
    return {
        "why": "", "rare": rare[:20], "of": of, "looked_at": len(some),
        "classes": dict(zip(learned.classes, np.bincount(given).tolist(), strict=True)),
        "accuracy": float((learned.held_out.argmax(1) == given).mean()), "wrong": int(issues.wrong), "share": share,
        "low": low, "high": high, "flagged": len(issues.ids),
    }  # fmt: skip
