"""The table of methods in the docs, from what `lds` measured: cost, memory, LDS with its interval. All of it takes an
hour, so its parts may be runs of their own:

    python -m benchmarks.lds --json --only fashion > benchmarks/results/lds-fashion.json
    python -m benchmarks.lds --json --only gpt > benchmarks/results/lds-gpt.json
    python -m benchmarks.lds --json --only fashion --slow --methods ekfac > benchmarks/results/lds-smoothed.json
    python -m benchmarks.lds_table
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results", HERE.parent / "uimjax" / "docs" / "methods.md"
BEGIN, END = "<!-- measured -->\n", "<!-- /measured -->"
INTRO = """## Measured

By `benchmarks/lds.py` on two CPU cores: the rank correlation (LDS) of predicted and retrained measurements, its 95%
interval over subsets and queries, the seconds (with compiling, but what an earlier method compiled is not compiled
again), and the memory above what was held before.

"""
TITLES = {"fashion": "Fashion-MNIST, a perceptron", "gpt": "tinyshakespeare, a decoder"}


def gathered() -> dict[str, Any]:
    """What each set's runs found: the methods of the run that had most, and the smoothed metagradients of any."""
    found: dict[str, Any] = {}
    for path in sorted(RESULTS.glob("lds-*.json")):
        run = json.loads(path.read_text())
        if run["quick"]:
            raise SystemExit(f"{path} was measured with --quick; that is no measurement")
        for name in TITLES.keys() & run.keys():
            one, other = found.get(name, {"methods": {}}), run[name]
            found[name] = one | other if len(other["methods"]) > len(one["methods"]) else other | one
    return found


def table(found: dict[str, Any]) -> str:
    parts = []
    for name, title in TITLES.items():
        if name in found:
            parts += [heading(found[name], title), *methods(found[name]), *smoothed(found[name].get("smoothed")), ""]
    return INTRO + "\n".join(parts)


def heading(its: dict[str, Any], title: str) -> str:
    return (
        f"{title} of {its['parameters']:,} parameters, {its['rows']:,} rows x {its['queries']} queries. "
        f"{its['models']} models on half of the rows ({its['protocol']}); two seeds agree at "
        f"{its['agreement']:.2f}, so no method can reach more than {its['ceiling']:.2f}.\n\n"
        "| method | LDS | 95% | seconds | MiB more |\n|---|---|---|---|---|"
    )


def methods(its: dict[str, Any]) -> list[str]:
    measured = {name: row for name, row in its["methods"].items() if "error" not in row}
    lines = [
        f"| {name} | {row['lds']:.3f} | {row['low']:.2f} to {row['high']:.2f} | {row['seconds']:.1f} "
        f"| {row['peak_mib']:,} |"
        for name, row in sorted(measured.items(), key=lambda pair: -pair[1]["lds"])
    ]
    refused = [f"| {name} | - | {row['error'].split(':')[0]} | | |" for name, row in its["methods"].items()
               if "error" in row]  # fmt: skip
    return lines + refused


def smoothed(its: dict[str, Any] | None) -> list[str]:
    if its is None:
        return []
    return [
        f"| smoothed, {masks} masks, first {its['queries']} queries | {row['lds']:.3f} | {row['low']:.2f} to "
        f"{row['high']:.2f} | {row['seconds']:.0f} | |"
        for masks, row in its["masks"].items()
    ]


def put(page: str, text: str) -> str:
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}{text}{END}{rest.split(END)[1]}"


def main() -> None:
    PAGE.write_text(put(PAGE.read_text(), table(gathered())))


if __name__ == "__main__":
    main()
