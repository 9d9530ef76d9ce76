"""The interval of a study of people holds the true effect, and what `power` says is what studies show.

Set-up: simulated raters and outputs that differ (logits or points), ties, a scale; each study exported to sheets,
filled, imported. And two groups of raters who disagree by a known amount.
Claims: the true effect lies in its 95% interval in 93 of 100 studies at least, of every world; so does the difference
of the groups; an effect of nothing shows in at most 5 of 100.
Run: python -m benchmarks.study_coverage --json
"""

import csv
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import timing
from uimjax.study.effect import judged_mean
from uimjax.study.outputs import Output, write_outputs
from uimjax.study.power import World, power, ratings
from uimjax.study.sheets import Design
from uimjax.workflow import studying

WORLDS = {
    "pairs, raters and outputs differ": (World("pairwise", 0.15, 0.8, 0.6), 8, 25),
    "pairs, nobody differs": (World("pairwise", 0.05, 0.0, 0.0), 12, 30),
    "pairs, a fifth are ties": (World("pairwise", 0.1, 0.5, 0.5, ties=0.2), 15, 40),
    "a scale of five": (World("likert", 0.8, 0.5, 0.5), 10, 30),
}
SEES = {"expert": 0.85, "lay": 0.6}  # share that finds the mended answer better


def covered(world: World, raters: int, items: int, studies: int) -> float:
    """By the numbers alone, without sheets."""
    ends = (0.0, 1.0) if world.kind == "pairwise" else (1.0 - world.scale, world.scale - 1.0)
    true = 0.5 + world.effect if world.kind == "pairwise" else world.effect
    hits = 0
    for seed in range(studies):
        its = judged_mean(ratings(world, raters, items, np.random.default_rng([seed, 11])), ends, seed)
        hits += its.low <= true <= its.high
    return hits / studies


def through_sheets(folder: Path, seed: int) -> tuple[bool, bool]:
    """One study by its files: (the effect lies in its interval, the groups' difference in its own)."""
    rng = np.random.default_rng(seed)
    source = folder / "outputs.jsonl"
    write_outputs(source, [Output(f"q{k}", f"{k}?", "", {"before": "old", "traced": "new"}) for k in range(24)])
    out = folder / f"study-{seed}"
    studying.export(source, out, Design(raters=14, checks=1, groups=tuple(SEES)))
    for path in sorted((out / "sheets").glob("*.csv")):
        group = tuple(SEES)[int(path.stem[-2:]) % 2]
        logit = np.log(SEES[group] / (1 - SEES[group])) + rng.normal(0, 0.3)
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file))
        for line in lines:
            new = "A" if line["A"] == "new" else "B"
            likes = rng.random() < 1 / (1 + np.exp(-logit))
            line["answer"] = (
                line["A"].split()[2] if line["A"].startswith("Please") else new if likes else "BA"["AB".index(new)]
            )
            line["group"] = group
        with path.open("w", encoding="utf-8", newline="") as file:
            made = csv.DictWriter(file, list(lines[0]))
            made.writeheader()
            made.writerows(lines)
    found = studying.collect(out, sorted((out / "sheets").glob("*.csv")), attach=False)
    z = np.random.default_rng(0).normal(0, 0.3, 200_000)
    true = {g: float((1 / (1 + np.exp(-(np.log(p / (1 - p)) + z)))).mean()) for g, p in SEES.items()}
    its, gap = found["effects"]["traced"], found["groups"]["expert"]["effects"]["traced"]
    apart = gap["from_others_low"] <= true["expert"] - true["lay"] <= gap["from_others_high"]
    return its["low"] <= np.mean(list(true.values())) <= its["high"], apart


def main() -> None:
    args = timing.arguments(__doc__ or "")
    studies = 100 if args.quick else 1000
    result: dict[str, Any] = {name: covered(*case, studies) for name, case in WORLDS.items()}
    with tempfile.TemporaryDirectory() as folder:
        both = [through_sheets(Path(folder), seed) for seed in range(20 if args.quick else 100)]
    result["export, fill, import"] = float(np.mean([one for one, _ in both]))
    result["groups who disagree"] = float(np.mean([two for _, two in both]))
    result["power of nothing"] = power(World("pairwise", 1e-6, 0.5, 0.5), 10, 30, draws=studies).power
    result["studies"] = studies
    timing.report(result | timing.machine(), args.json)


if __name__ == "__main__":
    main()
