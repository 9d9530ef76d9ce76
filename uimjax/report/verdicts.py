"""A verdict once what raters said has entered it."""

from collections.abc import Mapping
from typing import Any


def judged(
    verdict: str, fixed: bool | None, human: Mapping[str, Any] | None, words: Mapping[str, Any]
) -> tuple[str, str, bool | None]:
    """(the verdict, what it rests on in words of a language, whether it says fixed). A fix whose answers people find
    worse than what was there before is none; without people it rests on automatic evidence only."""
    its = _asked(human) if human else None
    if its is None or human is None or its["value"] is None:
        return verdict, words["automatic"], fixed
    show = (lambda x: f"{x:.0%}") if human["kind"] == "pairwise" else (lambda x: f"{x:+.2f}")
    value, low, high = ("-" if its[key] is None else show(its[key]) for key in ("value", "low", "high"))
    said = f"{words['both']}: " + words["human"][its["says"]].format(
        value=value, low=low, high=high, raters=its["raters"]
    )
    return (words["people_worse"], said, False) if its["says"] == "worse" and fixed else (verdict, said, fixed)


def _asked(human: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What raters said of the answers after the fix against those before it, whichever stood first in the study; None
    where these two were not compared."""
    base, effects = human["arms"][0], human["effects"]
    if base == "before":
        return effects.get("traced")
    its = effects.get("before") if base == "traced" else None
    if its is None or its["value"] is None:
        return its
    turn = (lambda x: None if x is None else 1 - x) if human["kind"] == "pairwise" else (
        lambda x: None if x is None else -x)  # fmt: skip
    says = {"better": "worse", "worse": "better"}.get(its["says"], its["says"])
    return {**its, "value": turn(its["value"]), "low": turn(its["high"]), "high": turn(its["low"]), "says": says}
