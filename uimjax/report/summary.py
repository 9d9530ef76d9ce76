"""The figures of a run, pooled over its draws, and the one table a person reads."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from uimjax.config import RunConfig
from uimjax.mitigate.proof import Outcome, judge
from uimjax.store import read_json
from uimjax.task import SIGN


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def vision(folders: list[Path], config: RunConfig, until: str, seconds: float) -> dict[str, Any]:
    """The summary as far as the stages went. Probes run from 0 (no failure) to 1; all figures are means over draws."""
    result: dict[str, Any] = {
        "method": config.trace.method,
        "draws": len(folders),
        "seconds": round(seconds, 2),
    }
    if until == "train":
        return result
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
    verdicts = {}
    for fix in outcomes[0]:
        arms = {arm: [Outcome(**o) for draw in outcomes for o in draw[fix][arm]] for arm in outcomes[0][fix]}
        verdicts[fix] = judge(result["probe_clean_twin"], before, arms["traced"], arms["oracle"], arms["random"])
    chosen = verdicts[config.mitigate.method]._asdict()
    result |= {"mitigation": config.mitigate.method, "verdict": chosen.pop("says")} | chosen
    result["other_mitigations"] = {name: v._asdict() for name, v in verdicts.items() if name != config.mitigate.method}
    return result


def show(result: dict[str, Any], console: Console) -> None:
    """Print the finished summary: what failed, what was done, what it cost, and how well the causes were found."""
    title = (
        f"A backdoor, {result['draws']} draw(s): how often the trigger wins, and how often clean images are read right"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    table.add_column("attack success", justify="right")
    table.add_column("accuracy", justify="right")
    table.add_row("trained on the planted data", _percent(result["probe_before"]), _percent(result["utility_before"]))
    table.add_row("clean twin (the goal)", _percent(result["probe_clean_twin"]), "")
    table.add_row("retrained without the planted rows", _percent(result["probe_without_planted_rows"]), "")
    table.add_section()
    how = result["mitigation"]
    table.add_row(f"{how}, rows traced by {result['method']}", _percent(result["probe_after_traced"]), _after(result))
    table.add_row(f"{how}, the planted rows (oracle)", _percent(result["probe_after_oracle"]), "")
    table.add_row(f"{how}, random rows (control)", _percent(result["probe_after_random"]), "")
    console.print(table)
    console.print(f"Verdict: {result['verdict']}.", markup=False)
    ranked = sorted(result["trace_ap"].items(), key=lambda item: -item[1])
    found = ", ".join(f"{name} {ap:.2f}" for name, ap in ranked)
    console.print(
        f"Average precision in finding the planted rows (base rate {result['base_rate']:.1%}): {found}.",
        markup=False,
    )
    console.print(f"Scores: {SIGN}. {result['seconds']:.0f} s.", markup=False)


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _after(result: dict[str, Any]) -> str:
    return _percent(result["utility_after"])
