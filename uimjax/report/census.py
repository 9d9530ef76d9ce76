"""A corpus card as a page: what the corpus holds, how sure that is, and what cannot be seen."""

from pathlib import Path
from typing import Any

from uimjax.census import wordy
from uimjax.report import explained, findings, markup, register, rendering
from uimjax.report.phrases import PHRASES

SHOWN = 25  # rows of a table
AXES = {"race_ethnicity": "race or ethnicity"}
KINDS = {
    "email": "e-mail addresses", "card": "payment cards", "iban": "bank accounts (IBAN)",
    "ssn": "US social security numbers",
    "phone": "telephone numbers", "ip": "IP addresses", "key": "keys of services", "password": "passwords and tokens",
    "login": "logins in addresses",
}  # fmt: skip


def write_page(document: dict[str, Any], path: Path) -> Path:
    """One offline HTML page of a corpus card. Raises OutputError."""
    stand_out = over(document)
    return rendering.write(
        path, "census.html.j2", name=markup.visible(document["name"]), d=document, facts=facts(document),
        sources=[_source(row) for row in document["sources"][:SHOWN]], more=max(0, len(document["sources"]) - SHOWN),
        octaves=_octaves(document["lengths"]["histogram"]),
        skewed=[_finding(row) for row in stand_out[:SHOWN]], skews=len(stand_out),
        tested=sum(row["p"] is not None for row in document["people"]["findings"]),
        groups=_groups(document["people"]["groups"]),
        personal=[_personal(row) for row in document["personal"]],
        evaluation=[{k: markup.visible(str(v)) for k, v in row.items()} for row in document["contamination"] or []],
        wrong=[(markup.visible(why), its["rows"], markup.visible(its["first"]))
               for why, its in document["skipped"].items()],
        percent=percent, no_estimate=no_estimate,
        register=explained.table(register.rows(findings.of_card(document))), words=PHRASES["en"]["register"],
    )  # fmt: skip


def facts(document: dict[str, Any]) -> list[str]:
    """The findings in a line each, as the terminal and the page begin."""
    copies = document["copies"]
    lines = [f"{document['documents']:,} documents of {len(document['sources']):,} sources, "
             f"{document['words']:,} words, half of the documents shorter than "
             f"{document['lengths']['quantiles']['0.5']:,.0f} words"]  # fmt: skip
    if copies:
        lines.append(f"{copies['repeat']:,} documents ({percent(copies['repeat'] / copies['documents'])}) repeat an "
                     f"earlier one or nearly so, {copies['exact']:,} to the letter")  # fmt: skip
    if document["languages"]:
        top = document["languages"]["languages"][:4]
        lines.append("languages: " + ", ".join(f"{row['language']} {percent(row['share'])}" for row in top))
    held = [f"{KINDS[row['kind']]} in {row['documents']:,}" for row in document["personal"]]
    lines.append("personal data by pattern: " + (", ".join(held[:5]) + " documents" if held else "none found"))
    skews = over(document)
    first = "; ".join(f"{row['attribute']} {percent(row['share'])} {row['group']} (others {percent(row['others'])})"
                      for row in skews[:3])  # fmt: skip
    lines.append(f"{len(skews)} group and attribute pairs stand out" + (f": {first}" if skews else ""))
    if toxic := document["toxicity"]:
        guess = f"not told, {no_estimate(toxic)}"
        if toxic["estimate"] is not None:
            guess = f"an estimated {percent(toxic['estimate'])} ({percent(toxic['low'])} to {percent(toxic['high'])})"
        lines.append(f"toxic passages: {guess}")
    if (labels := document["labels"]) and not labels["why"]:
        lines.append(
            f"labels that look wrong: {labels['wrong']:,} of {labels['looked_at']:,} ({percent(labels['share'])})"
        )
    lines += [f"{markup.visible(row['file'])}: {row['contaminated']} of {row['items']} items stand in the corpus, "
              f"{row['touched']} in part" for row in document["contamination"] or []]  # fmt: skip
    return lines


def no_estimate(toxic: dict[str, Any]) -> str:
    """Why the share of toxic texts is not told."""
    if toxic["tpr"] - toxic["fpr"] < wordy.APART:
        return "the classifier does not tell the labelled texts apart"
    return f"the labelled texts are of another kind than the corpus, told apart with an AUC of {toxic['unlike']:.2f}"


def over(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Groups that stand out near an attribute by being there more often: that the others are there less often goes with
    it. The table holds both."""
    return [row for row in document["people"]["findings"] if row["skewed"] and row["share"] > row["others"]]


def percent(share: float) -> str:
    """As people write it: two digits that count, no 0 or 100 that is not one.

    >>> percent(0.1234), percent(0.00012), percent(0.0), percent(0.9996)
    ('12%', '0.012%', '0%', '99.96%')
    """
    if 0.99 < share < 1:
        return f"{100 - float(f'{100 * (1 - share):.1g}'):.6g}%"
    return f"{100 * share:.0f}%" if share >= 0.0995 or not share else f"{100 * share:.2g}%"


def _source(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"source": markup.visible(row["source"]), "bar": round(100 * row["share_of_words"], 1)}


def _octaves(rows: list[dict[str, int]]) -> list[dict[str, Any]]:
    most = max((row["documents"] for row in rows), default=1) or 1
    return [row | {"bar": round(100 * row["documents"] / most, 1)} for row in rows]


def _groups(rows: list[dict[str, Any]]) -> list[tuple[str, list[tuple[str, int]]]]:
    by: dict[str, list[tuple[str, int]]] = {}
    for row in rows:
        axis: str = row["axis"]
        by.setdefault(AXES.get(axis, axis), []).append((markup.visible(row["name"]), row["documents"]))
    return [(markup.visible(axis), sorted(its, key=lambda pair: -pair[1])) for axis, its in by.items()]


def _finding(row: dict[str, Any]) -> dict[str, Any]:
    place = lambda x: round(100 * x, 2)  # noqa: E731  # in percent
    return row | {
        "axis": AXES.get(row["axis"], row["axis"]), "attribute": markup.visible(row["attribute"]),
        "group": markup.visible(row["group"]), "left": place(row["low"]),
        "wide": max(place(row["high"] - row["low"]), 0.6),
        "at": place(row["share"]), "mark": place(row["others"]),
    }  # fmt: skip


def _personal(row: dict[str, Any]) -> dict[str, Any]:
    by = ", ".join(f"{markup.visible(name)} {n:,}" for name, n in list(row["by_source"].items())[:6])
    return row | {"kind": KINDS[row["kind"]], "by": by}
