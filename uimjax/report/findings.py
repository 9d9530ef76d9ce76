"""What a finished run found, in one form for the register, the model card and the page in plain words.

Everything is read from the files of the run. `p` is a chance, 0 to 1, that the failure comes about where it is asked
for: a rate as it was measured; of a secret's exposure 2^(bits - most), the chance that it is named first; of a loss
what is left of the gap to the clean twin. None: not measured.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from uimjax.errors import MissingFileError
from uimjax.mitigate.proof import ACCURACY
from uimjax.report.summary import PROBES
from uimjax.store import read_json
from uimjax.study.outputs import human_of

WEAKNESSES = ("bias", "generalization", "deterioration", "security", "privacy", "values", "dynamics", "memorization")
OF_CASES = {"vision": "security", "secret": "privacy", "behaviour": "security"}
RATES = ("dynamics",)  # weaknesses whose probe is no rate
KNOWN = ("suite.json", "mended.json", "audit.json", "answers.json", "card.json")


class Finding(NamedTuple):
    """One failure of a run. `weakness`: one of the eight, or "failure" where the reader's own has no name. `before`,
    `good`, `after`, `random`: the probe as a person reads it, as trained, of a model without the bad data (or the
    reference), after the fix, and after the fix of random rows; "" where there is none. `unit`: rate, bits or other.
    `cost` elsewhere, a share, of `cost_in`: accuracy (lost) or loss (more of it). `rows` of `of` training rows
    are in the edit. `verdict`: as the run says it; `fixed`: None where nothing was done. `open`: remarks that it came
    with. `human`: what raters said of it."""

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
    most = max(at("before"), at("clean_twin"))
    chance = (lambda x: 2.0 ** (x - most)) if probe.unit.startswith("bits") else (lambda x: x)
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


def of_suite(document: Mapping[str, Any]) -> list[Finding]:
    """Of language and of pictures."""
    parts = {"text": document, "pictures": document["vision"]}
    return [_of_suite(kind, name, its, part["rows"]) for kind, part in parts.items()
            for name, its in part["weaknesses"].items()]  # fmt: skip


def _of_suite(kind: str, name: str, its: Mapping[str, Any], rows: int) -> Finding:
    mean = lambda key: its[key]["mean"]  # noqa: E731  # over seeds
    told = lambda key: f"{mean(key):.2f} ({its[key]['low']:.2f} to {its[key]['high']:.2f})"  # noqa: E731
    before, left = mean("planted"), 1 - its["closed_traced"]
    chances = (1.0, max(left, 0.0)) if name in RATES or not 0 <= before <= 1 else (before, max(mean("traced"), 0.0))
    if its["unit"].startswith("bits"):
        most = max(mean("planted"), mean("clean"))
        chances = (2.0 ** (before - most), min(2.0 ** (mean("traced") - most), 1.0))
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
        f"{after[control]:.2f}" if control else "", None, "", its["method"], its["edit"]["rows"], None,
        "other", its["cost"], "loss", None, True, verdict, verdict.startswith("mended"), tuple(remarks),
        human_of(folder),
    )]  # fmt: skip


def of_audit(document: Mapping[str, Any]) -> list[Finding]:
    """Of the probes of an audit; nothing was done about them yet."""
    return [
        Finding(
            name if name in WEAKNESSES else "privacy" if name == "membership" else "bias" if " by " in name
            else "failure", name, its["value"] if 0 <= its["value"] <= 1 else None,
            f"{its['value']:.2f} ({its['low']:.2f} to {its['high']:.2f})", f"{its['reference']:.2f}",
            alarm=its["says"] == "alarm", verdict=its["says"], open=(its["cannot"],),
        )
        for name, its in document["weaknesses"].items()
    ]  # fmt: skip


def of_answers(document: Mapping[str, Any]) -> list[Finding]:
    """Of a trace: failures that the reader brought; how often they happen was not measured."""
    many = len(document["failures"])
    return [Finding("failure", f"{many} failure{'s' if many != 1 else ''} of the reader's own", None, str(many),
                    verdict="traced, and nothing was done about it yet")]  # fmt: skip


def of_card(document: Mapping[str, Any]) -> list[Finding]:
    """Of a corpus, before any model: what may come of what it holds."""
    documents = max(document["documents"], 1)
    found = []
    if rows := document["personal"]:
        held = sum(row["documents"] for row in rows)
        found.append(
            Finding("privacy", "Personal data in the corpus", min(held / documents, 1.0), f"{held:,} documents")
        )
    if (copies := document["copies"]) and copies["repeat"]:
        found.append(Finding("memorization", "Near copies in the corpus", copies["repeat"] / documents,
                             f"{copies['repeat']:,} documents"))  # fmt: skip
    skewed = [row for row in document["people"]["findings"] if row["skewed"] and row["share"] > row["others"]]
    if skewed:
        found.append(Finding("bias", "Groups that stand out near attributes", None, f"{len(skewed)} pairs"))
    seen = sum(row["contaminated"] for row in document["contamination"] or [])
    if seen:
        items = sum(row["items"] for row in document["contamination"])
        found.append(
            Finding("generalization", "Evaluation items in the corpus", seen / items, f"{seen} of {items} items")
        )
    if (labels := document["labels"]) and labels["wrong"]:
        found.append(
            Finding("deterioration", "Wrong labels in the corpus", labels["share"], f"{labels['wrong']:,} labels")
        )
    return [one._replace(verdict="found in the data; no model was looked at") for one in found]
