"""A verdict once what raters said has entered it."""

from collections.abc import Mapping
from typing import Any


def judged(
    verdict: str, fixed: bool | None, human: Mapping[str, Any] | None, words: Mapping[str, Any]
) -> tuple[str, str, bool | None]:
    """(the verdict, what it rests on in words of a language, whether it says fixed). A fix whose answers people find
    worse than what was there before is none; without people it rests on automatic evidence only."""
    its = dict(human["effects"]).get("traced") if human else None
    if its is None or human is None:
        return verdict, words["automatic"], fixed
    show = (lambda x: f"{x:.0%}") if human["kind"] == "pairwise" else (lambda x: f"{x:+.2f}")
    value, low, high = ("-" if its[key] is None else show(its[key]) for key in ("value", "low", "high"))
    said = f"{words['both']}: " + words["human"][its["says"]].format(
        value=value, low=low, high=high, raters=its["raters"]
    )
    return (words["people_worse"], said, False) if its["says"] == "worse" and fixed else (verdict, said, fixed)
