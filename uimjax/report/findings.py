"""What a finished run found, in one form for the register, the model card and the page in plain words.

Everything is read from the files of the run. `p` is a chance, 0 to 1, that the failure comes about where it is asked
for: a rate as it was measured; of a secret's exposure 2^(bits - most), the chance that it is named first; of a loss
what is left of the gap to the clean twin. None: not measured, as what a corpus holds says nothing of how often a model
fails.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from uimjax.config import LOCK, read_yaml
from uimjax.corpora.text_suite import Sizes
from uimjax.errors import MissingFileError
from uimjax.mitigate.proof import ACCURACY
from uimjax.report.summary import PROBES
from uimjax.store import read_json
from uimjax.study.outputs import AFTER, human_of

WEAKNESSES = ("bias", "generalization", "deterioration", "security", "privacy", "values", "dynamics", "memorization")
OF_CASES = {"vision": "security", "secret": "privacy", "behaviour": "security"}
NO_RATES = ("dynamics",)  # weaknesses whose probe is none
GAPS = ("parity", "odds", "membership")  # probes of audits that say how far apart, and not how often
KNOWN = ("suite.json", "mended.json", "audit.json", "answers.json", "card.json")
IN_DATA = "found in the data; no model was looked at"
CORPUS = {
    "privacy": "Personal data in the corpus", "memorization": "Near copies in the corpus",
    "bias": "Groups that stand out near attributes", "generalization": "Evaluation items in the corpus",
    "deterioration": "Wrong labels in the corpus",
}  # fmt: skip


class Finding(NamedTuple):
    """One failure of a run. `weakness`: one of the eight, or "failure" where the reader's own has no name. `before`,
    `good`, `after`, `random`: the probe as a person reads it, as trained, of a model without the bad data (or the
    reference), after the fix, and after the fix of random rows; "" where there is none. `unit`: rate, bits or other.
    `cost` elsewhere, a share, of `cost_in`: accuracy (lost) or loss (more of it). `rows` of `of` training rows
    are in the edit. `verdict`: as the run says it; `fixed`: None where nothing was done. `open`: remarks that it came
    with. `human`: what raters said of it. `corpus`: it was found in the data, and no model was looked at."""

    weakness: str
    title: str
    p: float | None
    before: str
    good: str = ""
    after: str = ""
    random: str = ""
    p_after: float | None = None
    method: str = ""
    fix: str = ""
    rows: int | None = None
    of: int | None = None
    unit: str = "other"
    cost: float | None = None
    cost_in: str = "loss"
    causal: bool | None = None
    alarm: bool = True
    verdict: str = ""
    fixed: bool | None = None
    open: tuple[str, ...] = ()
    human: Mapping[str, Any] | None = None
    corpus: bool = False


def of_folder(folder: Path) -> list[Finding]:
    """All findings of a finished run, mitigation, audit, trace, suite or corpus card.

    Raises:
        MissingFileError: it holds none of them. CorruptError: its files are damaged.
    """
    begun = [folder / name for name in ("", "vision", "text")]
    stories = [place for place in begun if (place / "vision.json").exists() or (place / "text.json").exists()]
    if stories:
        return [one for place in stories for one in of_story(place)]
    for name, read in zip(KNOWN, (of_suite, None, of_audit, of_answers, of_card), strict=True):
        if (folder / name).exists():
            return of_mended(folder) if read is None else read(read_json(folder / name))
    raise MissingFileError(f"{folder} holds no finished run, mitigation, audit, trace, suite or corpus card (looked "
                           f"for vision.json, text.json, {', '.join(KNOWN)})")  # fmt: skip


def of_story(folder: Path) -> list[Finding]:
    """Of the run of pictures or text in a folder."""
    if (folder / "vision.json").exists():
        result = read_json(folder / "vision.json")
        places = [folder / f"draw-{k}" for k in range(result["draws"])]
        return [of_case("vision", result, places)]
    return [of_case(name, its, [folder / name]) for name, its in read_json(folder / "text.json").items()]


def of_case(name: str, result: Mapping[str, Any], places: list[Path]) -> Finding:
    """`places`: folders of its draws."""
    probe, edit = PROBES[name], read_json(places[0] / "edit-traced.json")
    at = lambda key: result[f"probe_{key}"]  # noqa: E731  # of the model as trained, and so on
    chance = (lambda x: 2.0 ** (x - _most(places[0].parent))) if probe.unit.startswith("bits") else (lambda x: x)
    rows = read_json(places[0] / "trace.json")["rows"]
    share = result["utility"] == ACCURACY.name
    gap = at("before") - at("clean_twin")
    failed = gap >= probe.least
    return Finding(
        OF_CASES[name], probe.title, min(chance(at("before")), 1.0), probe.value(at("before")),
        probe.value(at("clean_twin")), probe.value(at("after_traced")), probe.value(at("after_random")),
        min(chance(at("after_traced")), 1.0), result["method"], result["mitigation"], len(edit["rows"]), rows,
        "bits" if probe.unit.startswith("bits") else "rate", result["utility_cost"], "accuracy" if share else "loss",
        failed and at("before") - at("without_planted_rows") >= 0.8 * gap, failed, result["verdict"],
        result["verdict"] == "fixed", human=next(filter(None, map(human_of, places)), None),
    )  # fmt: skip


def _most(run: Path) -> float:
    """The largest exposure that the run's secret can have, bits."""
    return math.log2(read_yaml(run / LOCK)["config"]["secret"]["candidates"] + 1)


def of_suite(document: Mapping[str, Any]) -> list[Finding]:
    """Of language and of pictures."""
    parts = {"text": document, "pictures": document["vision"]}
    return [_of_suite(kind, name, its, part["rows"]) for kind, part in parts.items()
            for name, its in part["weaknesses"].items()]  # fmt: skip


def _of_suite(kind: str, name: str, its: Mapping[str, Any], rows: int) -> Finding:
    mean = lambda key: its[key]["mean"]  # noqa: E731  # over seeds
    told = lambda key: f"{mean(key):.2f} ({its[key]['low']:.2f} to {its[key]['high']:.2f})"  # noqa: E731
    before, left = mean("planted"), 1 - its["closed_traced"]
    chances = (1.0, max(left, 0.0)) if name in NO_RATES or not 0 <= before <= 1 else (before, max(mean("traced"), 0.0))
    if its["unit"].startswith("bits"):
        most = math.log2(Sizes().candidates + 1)
        chances = (2.0 ** (before - most), 2.0 ** (mean("traced") - most))
    verdict, *remarks = its["verdict"].split("; ")
    return Finding(
        name, f"{its['title']} ({kind})", min(chances[0], 1.0), told("planted"), told("clean"), told("traced"),
        told("random"), min(chances[1], 1.0), its["traced_by"], its["fix"], its["edit_rows"], rows,
        "bits" if its["unit"].startswith("bits") else "other", its["utility_cost"]["mean"],
        "loss" if kind == "text" else "accuracy", its["causal"], its["causal"], verdict, verdict == "fixed",
        (*remarks, its["cannot"]),
    )  # fmt: skip


def of_mended(folder: Path) -> list[Finding]:
    """Of the reader's own model: the failures that were traced, whose measurement is no rate."""
    its = read_json(folder / "mended.json")
    mean = lambda one: sum(one["failures"]) / len(one["failures"])  # noqa: E731  # over failures
    own, *others = its["after"]
    after = {arm: sum(map(mean, each)) / len(each) for arm, each in its["after"].items()}
    control = next((arm for arm in ("random", *others) if arm in after and arm != own), "")
    verdict, *remarks = its["says"].split("; ")
    return [Finding(
        "failure", "The failures that were traced", None, f"{mean(its['before']):.2f}", "", f"{after[own]:.2f}",
        f"{after[control]:.2f}" if control else "", None, "", its["method"],
        its["edit"]["rows"] if own == AFTER else None, None,  # else rows were chosen or made, and are no culprits
        "other", its["cost"], "loss", None, True, verdict, verdict.startswith("mended"), tuple(remarks),
        human_of(folder),
    )]  # fmt: skip


def of_audit(document: Mapping[str, Any]) -> list[Finding]:
    """Of the probes of an audit; nothing was done about them yet."""
    return [
        Finding(
            name if name in WEAKNESSES else "privacy" if name == "membership" else "bias" if " by " in name
            else "failure", name, _rate(name, its),
            f"{its['value']:.2f} ({its['low']:.2f} to {its['high']:.2f})", f"{its['reference']:.2f}",
            alarm=its["says"] == "alarm", verdict=its["says"], open=(its["cannot"],),
        )
        for name, its in document["weaknesses"].items()
    ]  # fmt: skip


def _rate(name: str, its: Mapping[str, Any]) -> float | None:
    """How often it fails, where the probe says so: an accuracy is turned round, a gap or an area is none."""
    if any(name.startswith(gap) for gap in GAPS) or not 0 <= its["value"] <= 1:
        return None
    return 1 - its["value"] if its.get("worse") == "low" else its["value"]


def of_answers(document: Mapping[str, Any]) -> list[Finding]:
    """Of a trace: failures that the reader brought; how often they happen was not measured."""
    failures, method = document["failures"], document["method"]
    named = {str(hit["id"]) for one in failures for hit in one["proponents"]}
    return [Finding("failure", "Failures of the reader's own", None, str(len(failures)), rows=len(named) or None,
                    method=method, verdict="traced, and nothing was done about it yet")]  # fmt: skip


def of_card(document: Mapping[str, Any]) -> list[Finding]:
    """Of a corpus, before any model: what may come of what it holds."""
    documents = document["documents"]
    skewed = [row for row in document["people"]["findings"] if row["skewed"] and row["share"] > row["others"]]
    seen = [row["contaminated"] for row in document["contamination"] or []], document["contamination"] or []
    labels, copies = document["labels"] or {"wrong": 0}, document["copies"] or {"repeat": 0}
    found = {
        "privacy": (document["personal_documents"], documents),
        "memorization": (copies["repeat"], documents),
        "bias": (len(skewed), sum(row["p"] is not None for row in document["people"]["findings"])),
        "generalization": (sum(seen[0]), sum(row["items"] for row in seen[1])),
        "deterioration": (labels["wrong"], labels.get("looked_at", 0)),
    }
    return [
        Finding(name, CORPUS[name], None, f"{n:,} / {of:,}", verdict=IN_DATA, corpus=True)
        for name, (n, of) in found.items()
        if n
    ]
