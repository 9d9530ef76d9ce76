"""One offline HTML page of a finished run: what failed, what caused it, what was done, and how to read it.

No script, no network: the page holds no `<script>`, its policy forbids all but its own style and embedded pictures, and
every text is escaped by the template. Leaked secrets are masked in the file itself unless the reader asks to see them.
"""

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from uimjax.config import LOCK, read_yaml
from uimjax.errors import MissingFileError
from uimjax.report import charts, explained, findings, markup, register, rendering, tables
from uimjax.report.phrases import PHRASES
from uimjax.report.summary import PROBES, ranked, rivals, utility
from uimjax.report.verdicts import judged
from uimjax.store import read_json
from uimjax.task import SIGN

SHOWN = {"proponents": 8, "opponents": 2}
ARMS = {"traced": "traced rows", "oracle": "planted rows (oracle)", "random": "random rows (control)"}


def write_page(run: Path, path: Path, reveal: bool = False, beside: bool = False) -> Path:
    """Write the page of a run (or of the demo's two runs) to `path`; `reveal`: leaked secrets in clear; `beside`: the
    pages in plain words are written beside it, and named.

    Raises:
        MissingFileError: the run is not finished. CorruptError: its files are damaged. OutputError: cannot write there.
    """
    runs = [_run(folder, reveal) for folder in folders(run)]
    return rendering.write(
        path,
        "page.html.j2",
        name=markup.visible(run.name or str(run.absolute().name)),
        runs=runs,
        failures=[failure for one in runs for failure in one["failures"]],
        sign=SIGN,
        register=explained.table(register.rows([failure["finding"] for one in runs for failure in one["failures"]])),
        words=PHRASES["en"]["register"],
        beside=beside,
    )


def folders(run: Path) -> list[Path]:
    """The finished runs in a folder: itself, or those of a demo.

    Raises:
        MissingFileError: none is finished, or not all.
    """
    begun = [f for f in (run, run / "vision", run / "text") if (f / LOCK).exists()]
    found = [f for f in begun if (f / "vision.json").exists() or (f / "text.json").exists()]
    if not found or len(found) < len(begun):
        half = f"; {len(found)} of its {len(begun)} parts are" if found else ""
        raise MissingFileError(f"{run} holds no finished run{half}; `uimjax run {run}` finishes it")
    return found


def _run(folder: Path, reveal: bool) -> dict[str, Any]:
    lock = read_yaml(folder / LOCK)
    vision = (folder / "vision.json").exists()
    summary = {"vision": read_json(folder / "vision.json")} if vision else read_json(folder / "text.json")
    traces = [] if vision or reveal else [read_json(folder / name / "trace.json") for name in summary]
    sensitive = [secret for trace in traces for secret in trace["sensitive"]]  # of all failures: they share a corpus
    return {
        "name": markup.visible(folder.name),
        "config": markup.visible(yaml.safe_dump(lock["config"], sort_keys=False)),
        "digests": {markup.visible(str(k)): str(v) for k, v in lock["corpus"].items()},
        "made_with": lock["made_with"],
        "failures": [_failure(folder, name, result, sensitive) for name, result in summary.items()],
    }


def _failure(folder: Path, name: str, result: dict[str, Any], sensitive: list[str]) -> dict[str, Any]:
    """Everything that the template shows of one failure."""
    places = [folder / f"draw-{k}" for k in range(result["draws"])] if name == "vision" else [folder / name]
    probe = PROBES[name]
    trace = read_json(places[0] / "trace.json")
    size = len(read_json(places[0] / "edit-traced.json")["rows"])
    scores, nulls = (tables.read_scores(places[0] / f"{kind}.parquet") for kind in ("scores", "null"))
    outcomes = [read_json(place / "outcomes.json")[result["mitigation"]] for place in places]
    repeats = {arm: [o["probe"] for one in outcomes for o in one[arm]] for arm in ARMS}
    finding = findings.of_case(name, result, places)
    verdict, evidence, fixed = judged(finding.verdict, finding.fixed, finding.human, PHRASES["en"])
    bars = [("as trained", result["probe_before"], []), ("clean twin (the goal)", result["probe_clean_twin"], [])]
    bars += [(title, result[f"probe_after_{arm}"], repeats[arm]) for arm, title in ARMS.items()]
    gap = result["probe_before"] - result["probe_clean_twin"]
    null = np.concatenate([np.asarray(v) for v in nulls.values()]) if nulls else np.zeros(0)
    return {
        "name": name,
        "result": result,
        "title": probe.title,
        "says": probe.says(result["probe_before"], result["probe_clean_twin"]),
        "finding": finding,
        "verdict": markup.visible(verdict),
        "evidence": markup.visible(evidence),
        "fixed": fixed,
        "caused": gap >= probe.least and result["probe_before"] - result["probe_without_planted_rows"] >= 0.8 * gap,
        "value": probe.value,
        "utility": utility(result),
        "bars": [(title, probe.value(mean), len(each)) for title, mean, each in bars],
        "triple": charts.triple(bars, probe.unit),
        "ranking": charts.ranking(result["trace_ap"], result["method"], result["base_rate"]),
        "rivals": rivals(result),
        "ranked": ranked(result),
        "histogram": charts.histogram(scores[result["method"]], list(nulls.values()), size),
        "above_null": int((scores[result["method"]] > null.max()).sum()) if len(null) else None,
        "edit_size": size,
        "method": trace["method"],
        "unit": trace["unit"],
        "rows": trace["rows"],
        "hits": {side: [_hit(hit, sensitive) for hit in trace[side][:most]] for side, most in SHOWN.items()},
        "fixes": {result["mitigation"]: result, **result["other_mitigations"]},
        "masked": bool(sensitive),
        "draws": result["draws"],
    }


def _hit(hit: dict[str, Any], sensitive: list[str]) -> dict[str, Any]:
    """A training row as the template shows it: a picture, or lines of text with their places."""
    shown: dict[str, Any] = {"row": hit["row"], "score": hit["score"]}
    if "image" in hit:
        return shown | {"picture": markup.png(hit["image"]), "label": hit["label"]}
    lines = markup.highlight(hit["text"], hit["line"], hit["tokens"], sensitive)
    return shown | {"path": markup.file_name(hit["path"], sensitive), "at": hit["at"], "lines": lines}
