"""The figures of a run, pooled over its draws, and the one table a person reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from uimjax.config import RunConfig, TextConfig
from uimjax.interpret.methods import BASELINES
from uimjax.mitigate.proof import ACCURACY, HELD_OUT_LOSS, Outcome, Utility, judge
from uimjax.report.phrases import PHRASES
from uimjax.report.verdicts import judged
from uimjax.store import read_json
from uimjax.study.outputs import human_of
from uimjax.task import SIGN


class Probe(NamedTuple):
    """What a failure is called, what its probe is, and how a person reads two values of it."""

    title: str
    unit: str
    pattern: str
    least: float = 0.1  # a gap to the clean twin below this is no failure

    def says(self, before: float, twin: float) -> str:
        return self.pattern.format(before=before, twin=twin)

    def value(self, x: float) -> str:
        return f"{x:.1f} bits" if self.unit.startswith("bits") else f"{x:.1%}"


PROBES = {
    "vision": Probe(
        "A backdoor in pictures",
        "attack success rate, 0 to 1",
        "{before:.0%} of triggered images are read as the target class (clean twin: {twin:.0%})",
    ),
    "secret": Probe(
        "A leaked secret",
        "bits of exposure",
        "the secret is exposed by {before:.1f} bits (clean twin: {twin:.1f})",
        least=4.0,  # a model that never saw it varies by 1.4 bits
    ),
    "behaviour": Probe(
        "A triggered behaviour in text",
        "share of held-out contexts, 0 to 1",
        "the marker brings the payload in {before:.0%} of held-out contexts (clean twin: {twin:.0%})",
    ),
}


def arms_line(name: str, method: str, arms: dict[str, list[dict[str, Any]]]) -> str:
    """One line: the probe after the traced, the random and the planted rows' edit."""
    after = {arm: PROBES[name].value(_mean(o["probe"] for o in found)) for arm, found in arms.items()}
    return (
        f"after {method}: {after['traced']} with the traced rows, {after['random']} with random ones, "
        f"{after['oracle']} with the planted ones"
    )


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def vision(folders: list[Path], config: RunConfig, until: str, seconds: float) -> dict[str, Any]:
    """The summary as far as the stages went. Probes run from 0 (no failure) to 1; all figures are means over draws."""
    return _pooled("vision", folders, config, until, seconds, ACCURACY)


def text(folder: Path, cases: Sequence[str], config: TextConfig, until: str, seconds: float) -> dict[str, Any]:
    """The same for each failure of a text run: exposure in bits for the secret, a rate for the behaviour. Utility is
    the loss on clean held-out text, nats a token."""
    return {name: _pooled(name, [folder / name], config, until, seconds, HELD_OUT_LOSS) for name in cases}


def _pooled(name: str, folders: list[Path], config: Any, until: str, seconds: float, kind: Utility) -> dict[str, Any]:
    result: dict[str, Any] = {
        "method": config.trace.method,
        "draws": len(folders),
        "seconds": round(seconds, 2),
    }
    if until == "train":
        return result
    result |= {"probe": PROBES[name].unit, "utility": kind.name}
    audits = [read_json(f / "audit.json") for f in folders]
    result["probe_clean_twin"] = _mean(a["clean_twin"]["probe"] for a in audits)
    result["probe_before"] = _mean(a["before"]["probe"] for a in audits)
    result["utility_before"] = _mean(a["before"]["utility"] for a in audits)
    if until != "mitigate":
        return result
    cards = [read_json(f / "scorecard.json") for f in folders]
    result["base_rate"] = _mean(c["base_rate"] for c in cards)
    for key in ("ap", "recall"):
        result[f"trace_{key}"] = {m: _mean(c["methods"][m][key] for c in cards) for m in cards[0]["methods"]}
    result["trace_ap_by_draw"] = [c["methods"][config.trace.method]["ap"] for c in cards]
    causal = [read_json(f / "causal.json") for f in folders]
    result["probe_without_planted_rows"] = _mean(c["probe"] for c in causal)
    outcomes = [read_json(f / "outcomes.json") for f in folders]
    before = Outcome(result["probe_before"], result["utility_before"])
    verdicts, least = {}, PROBES[name].least
    for fix in outcomes[0]:
        arms = {arm: [Outcome(**o) for draw in outcomes for o in draw[fix][arm]] for arm in outcomes[0][fix]}
        weighed = judge(result["probe_clean_twin"], before, arms["traced"], arms["oracle"], arms["random"], kind, least)
        verdicts[fix] = weighed._asdict()
    chosen = dict(verdicts.pop(config.mitigate.method))
    said = chosen.pop("says")
    human = next(filter(None, map(human_of, folders)), None)
    verdict, evidence, _ = judged(said, said == "fixed", human, PHRASES["en"])
    result |= {"mitigation": config.mitigate.method, "verdict": verdict, "evidence": evidence} | chosen
    result["utility_cost"] = kind.cost(result["utility_before"], result["utility_after"])
    result["other_mitigations"] = verdicts
    return result | _beside(audits, outcomes, config.mitigate.method)


def _beside(audits: list[Any], outcomes: list[Any], method: str) -> dict[str, float]:
    """What is reported and not judged: extraction of the secret, before and after each arm."""
    also: dict[str, float] = {}
    for key in audits[0]["before"]["also"] or {}:
        also[f"{key}_before"] = _mean(a["before"]["also"][key] for a in audits)
        also[f"{key}_clean_twin"] = _mean(a["clean_twin"]["also"][key] for a in audits)
        for arm in outcomes[0][method]:
            also[f"{key}_after_{arm}"] = _mean(o["also"][key] for draw in outcomes for o in draw[method][arm])
    return also


def show(name: str, result: dict[str, Any], console: Console) -> None:
    """Print the finished summary: what failed, what was done, what it cost, and how well the causes were found."""
    probe, also = PROBES[name], utility(result)
    draws = f", {result['draws']} draws" if result["draws"] > 1 else ""
    table = Table(title=f"{probe.title}{draws}", title_justify="left")
    table.add_column("model")
    table.add_column(probe.unit.split(",")[0], justify="right")
    table.add_column(result["utility"], justify="right")
    table.add_column("extracted" if "extraction_before" in result else "", justify="right")

    def line(model: str, key: str, utility: str = "") -> None:
        extracted = result.get(f"extraction_{key}")
        cells = (probe.value(result[f"probe_{key}"]), utility, "" if extracted is None else f"{extracted:.0%}")
        table.add_row(model, *cells)

    line("trained on the planted data", "before", also["before"])
    line("clean twin (the goal)", "clean_twin")
    if name == "vision":  # on text the clean twin is that retraining
        line("retrained without the planted rows", "without_planted_rows")
    table.add_section()
    how = result["mitigation"]
    line(f"{how}, rows traced by {result['method']}", "after_traced", also["after"])
    line(f"{how}, the planted rows (oracle)", "after_oracle")
    line(f"{how}, random rows (control)", "after_random")
    console.print(table)
    console.print(f"Verdict: {result['verdict']} ({result['evidence']}).", markup=False)
    found = ", ".join(f"{method} {ap:.2f}" for method, ap in ranked(result))
    console.print(
        f"Average precision in finding the planted rows (base rate {result['base_rate']:.1%}): {found}.",
        markup=False,
    )
    for rival, _ in rivals(result):
        console.print(f"The baseline {rival} does as well or better here.", markup=False)
    console.print(f"Scores: {SIGN}. {result['seconds']:.0f} s.", markup=False)


def utility(result: dict[str, Any]) -> dict[str, str]:
    """What else the model can do, before and after the traced fix, and what the fix cost, for a person."""
    share = result["utility"] == ACCURACY.name
    said = {
        when: f"{result[f'utility_{when}']:.1%}" if share else f"{result[f'utility_{when}']:.3f} nats"
        for when in ("before", "after")
    }
    cost = f"{result['utility_cost']:+.1%}{' lost' if share else ''}"
    return {"name": result["utility"], "cost": cost} | said


def ranked(result: dict[str, Any]) -> list[tuple[str, float]]:
    """Methods by average precision, best first."""
    return sorted(result["trace_ap"].items(), key=lambda item: -item[1])


def rivals(result: dict[str, Any]) -> list[tuple[str, float]]:
    """The baselines that do as well as the method chosen beforehand, or better."""
    least = result["trace_ap"][result["method"]]
    return [(n, ap) for n, ap in ranked(result) if n in BASELINES and n != result["method"] and ap >= least]
