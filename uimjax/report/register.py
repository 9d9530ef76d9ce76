"""The risk register: each failure of a run as a risk, for people to complete.

Its words follow the NIST AI Risk Management Framework 1.0 (map, measure, manage, govern) and ISO/IEC 23894:2023, after
ISO 31000 (risk source, event, consequence, likelihood, treatment, residual risk, owner). Level = severity times
likelihood, each 1 to 5: low up to 4, moderate up to 9, high up to 16, then very high. Likelihood is measured: 1 below
1%, 2 below 10%, 3 below a third, 4 below two thirds, 5 from there on. Severity is a default by weakness, for people to
change; who owns a risk, and whether it is accepted, only people can say.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from uimjax.report.findings import Finding
from uimjax.report.phrases import PHRASES
from uimjax.report.verdicts import judged

SEVERITY = {"bias": 4, "generalization": 3, "deterioration": 2, "security": 5, "privacy": 5, "values": 4, "dynamics": 2,
            "memorization": 3, "failure": 3}  # fmt: skip
LIKELY = (0.01, 0.1, 1 / 3, 2 / 3)
LEVELS = (4, 9, 16)


def likelihood(p: float | None) -> int | None:
    """1 (rare) to 5 (almost certain).

    >>> [likelihood(p) for p in (0.0, 0.05, 0.2, 0.5, 0.9)]
    [1, 2, 3, 4, 5]
    """
    return None if p is None else 1 + sum(p >= edge for edge in LIKELY)


def level(severity: int, likely: int | None) -> int | None:
    """0 (low) to 3 (very high)."""
    return None if likely is None else sum(severity * likely > edge for edge in LEVELS)


def rows(findings: Sequence[Finding], lang: str = "en") -> list[dict[str, Any]]:
    """One row a failure, in words of `lang`; numbers beside them. Probes that found none are no risk."""
    return [_row(one, PHRASES[lang]) for one in findings if one.alarm]


def _row(one: Finding, words: Mapping[str, Any]) -> dict[str, Any]:
    its, severity = described(one, words), SEVERITY[one.weakness]
    verdict, evidence, fixed = judged(one.verdict, one.fixed, one.human, words)
    before, after = likelihood(one.p), likelihood(one.p_after)
    name = lambda kind, k: words["unknown"] if k is None else words[kind][k]  # noqa: E731  # of a step of a scale
    treated = one.fixed is not None
    done = _done(one, words) if treated else words["none"]
    left = after if treated and after is not None else before
    return {
        "risk": its["name"], "title": words["titles"].get(one.title, one.title),
        "source": _source(one, words), "event": its["event"],
        "affected": its["affected"], "consequence": its["consequence"],
        "severity": f"{severity} {words['severity'][severity - 1]}",
        "likelihood": name("likelihood", None if before is None else before - 1),
        "level": name("level", level(severity, before)), "measured": one.before, "reference": one.good,
        "treatment": done, "after": one.after,
        "residual": name("level", level(severity, left)) if treated or before is not None else words["unknown"],
        "verdict": _said(verdict, words), "fixed": fixed, "evidence": evidence, "owner": "", "numbers": {
            "severity": severity, "likelihood": before, "likelihood_after": left if treated else None,
            "level": level(severity, before), "residual": level(severity, left),
        },
    }  # fmt: skip


def described(one: Finding, words: Mapping[str, Any]) -> Mapping[str, Any]:
    """Name, event, who is affected, consequence: of a model, or of what a corpus holds."""
    return words["weaknesses"][one.weakness] | (words["corpus"][one.weakness] if one.corpus else {})


def _said(verdict: str, words: Mapping[str, Any]) -> str:
    """What it begins with in words of the language; the reason stays as the run gives it."""
    head, colon, why = verdict.partition(":")
    return f"{words['verdicts'].get(head, head)}{colon}{why}"


def _done(one: Finding, words: Mapping[str, Any]) -> str:
    if one.rows is None:
        return words["treatment_alone"].format(fix=one.fix)
    if not one.method:
        return words["treatment_rows"].format(fix=one.fix, rows=one.rows)
    return words["treatment"].format(fix=one.fix, rows=one.rows, method=one.method)


def _source(one: Finding, words: Mapping[str, Any]) -> str:
    if one.rows is None:
        return words["source_unknown"]
    if one.of is None and one.fixed is None:
        return words["source_documents"].format(rows=f"{one.rows:,}")
    return words["source"].format(rows=f"{one.rows:,}", of="" if one.of is None else f" / {one.of:,}")
