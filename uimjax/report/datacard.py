"""A corpus card as a dataset card: Hugging Face's form (a README.md with a head of metadata), for people to finish.

What only people know is left to them and says so: `[More Information Needed]`, the words of the form.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from uimjax.census.card import CANNOT
from uimjax.report import markup
from uimjax.report.census import KINDS, facts, over, percent
from uimjax.store.base import atomic

NEEDED = "[More Information Needed]"
LEAST = 0.01  # share of a language that the head names
SIZES = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B", "10B<n<100B",
         "100B<n<1T", "n>1T"]  # fmt: skip


def write(document: dict[str, Any], path: Path) -> None:
    """Raises OutputError."""
    with atomic(path) as temporary:
        temporary.write_text(text_of(document), encoding="utf-8")


def text_of(document: dict[str, Any]) -> str:
    """The Markdown."""
    name, copies = plain(document["name"]), document["copies"]
    repeats = "Near copies were not looked for." if not copies else (
        f"{copies['repeat']:,} of {copies['documents']:,} documents repeat an earlier one at a Jaccard similarity of "
        f"{copies['threshold']} and more, {copies['exact']:,} to the letter.")  # fmt: skip
    rows = [f"| {plain(r['source'])} | {r['documents']:,} | {r['words']:,} | {percent(r['share_of_words'])} |"
            for r in document["sources"][:50]]  # fmt: skip
    parts = [
        f"---\n{yaml.safe_dump(head(document), sort_keys=False, allow_unicode=True)}---",
        f"# Dataset Card for {name}",
        "Measured by `uimjax audit --data`; what only people know is left open.",
        "## Dataset Details\n### Dataset Description",
        "\n".join(f"- {plain(line)}" for line in facts(document)),
        f"- **Curated by:** {NEEDED}\n- **Language(s) (NLP):** {_languages(document)}\n"
        f"- **License:** {plain(document['config']['licence']) or NEEDED}",
        f"## Uses\n### Direct Use\n{NEEDED}\n### Out-of-Scope Use\n{NEEDED}",
        "## Dataset Structure\nOne text a document. Words a document: " + ", ".join(
            f"{100 * float(q):g}% of them at most {v:,.0f}" for q, v in document["lengths"]["quantiles"].items())
        + f"; the longest {document['lengths']['longest']:,}.",
        f"## Dataset Creation\n### Curation Rationale\n{NEEDED}\n### Source Data",
        "\n".join(["| Source | Documents | Words | Share of words |", "|---|---|---|---|", *rows]),
        f"#### Data Collection and Processing\n{repeats} {_contamination(document)}",
        f"#### Who are the source data producers?\n{NEEDED}",
        f"### Annotations\n{_annotations(document)}",
        f"#### Personal and Sensitive Information\n{_personal(document)}",
        f"## Bias, Risks, and Limitations\n{_bias(document)}\n\n### What this card cannot tell\n"
        + "\n".join(f"- {key}: {says}." for key, says in CANNOT.items()),
        f"### Recommendations\n{NEEDED}",
        f"## Dataset Card Authors\n{NEEDED}\n\n## Dataset Card Contact\n{NEEDED}",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def head(document: dict[str, Any]) -> dict[str, Any]:
    """Its metadata."""
    found: dict[str, Any] = {"pretty_name": _harmless(document["name"])}
    told = [row["language"] for row in (document["languages"] or {"languages": []})["languages"]
            if row["share"] >= LEAST and row["language"] not in ("und", "zxx")]  # fmt: skip
    if told:
        found["language"] = told
    licence = document["config"]["licence"]
    place = sum(document["documents"] >= 10**k for k in range(3, 13))
    return found | {
        "license": _harmless(licence) or "unknown",
        "size_categories": [SIZES[place]],
        "tags": ["uimjax"],
    }


def _harmless(text: str) -> str:
    """In the head: what shows it may take its values for HTML."""
    return markup.visible(text).replace("<", "\uff1c").replace(">", "\uff1e")


def plain(text: str) -> str:
    """On one line, without a sign that Markdown or HTML would take for its own.

    >>> plain("a|b <i>")
    'a\\\\|b &lt;i&gt;'
    """
    shown = markup.visible(text).replace("\n", " ").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", shown)


def _languages(document: dict[str, Any]) -> str:
    if not document["languages"]:
        return NEEDED
    rows = [row for row in document["languages"]["languages"] if row["share"] >= LEAST]
    return ", ".join(f"{row['language']} ({percent(row['share'])})" for row in rows)


def _contamination(document: dict[str, Any]) -> str:
    rows = document["contamination"]
    if rows is None:
        return "No evaluation set was compared."
    return " ".join(f"Of {row['items']} items of {plain(Path(row['file']).name)}, {row['contaminated']} stand in it "
                    f"and {row['touched']} in part." for row in rows)  # fmt: skip


def _annotations(document: dict[str, Any]) -> str:
    if not (labels := document["labels"]) or labels["why"]:
        return f"No column of labels was looked at. {NEEDED}"
    return (f"{len(labels['classes'])} classes; of {labels['looked_at']:,} labelled documents an estimated "
            f"{labels['wrong']:,} ({percent(labels['share'])}) bear a wrong label (confident learning).")  # fmt: skip


def _personal(document: dict[str, Any]) -> str:
    if not document["personal"]:
        return "None was found by pattern."
    rows = [f"- {KINDS[row['kind']]}: {row['documents']:,} documents ({percent(row['share'])}), "
            f"{row['places']:,} places"
            for row in document["personal"]]  # fmt: skip
    return "Found by pattern and check (a lower bound):\n\n" + "\n".join(rows)


def _bias(document: dict[str, Any]) -> str:
    skewed = over(document)
    if not skewed:
        return "No group of people stands out near an attribute of the term lists."
    rows = [f"| {plain(r['attribute'])} | {plain(r['group'])} | {r['documents']} of {r['of']} | {percent(r['share'])}"
            f" ({percent(r['low'])} to {percent(r['high'])}) | {percent(r['others'])} |"
            for r in skewed[:25]]  # fmt: skip
    lines = ["Groups of people that stand out near an attribute:", "",
             "| Attribute | Group | Documents | Share | Others |", "|---|---|---|---|---|", *rows]  # fmt: skip
    return "\n".join(lines)
