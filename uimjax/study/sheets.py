"""Blinded, randomised sheets: each rater's own order, sides drawn anew, attention checks among them, the key apart."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from uimjax.errors import UsageError
from uimjax.study.outputs import BEFORE, Output

KINDS = ("pairwise", "likert")
QUESTIONS = {
    "pairwise": "Which of the two answers is better?",
    "likert": "How good is this answer, from 1 (very bad) to {scale} (very good)?",
}
CHECK = "This is a check of attention."
SIDES = "AB"
TIE = "tie"


@dataclass(frozen=True)
class Design:
    """`raters` sheets of `kind`, `per_rater` outputs each (0: all), `checks` attention checks among them; `scale`:
    points of a Likert scale; `ties`: whether neither may be better; `groups`: what raters may say they belong to;
    `asks_worse`: the question is which is worse, or more points are worse."""

    kind: str = "pairwise"
    arms: tuple[str, ...] = (BEFORE, "traced")
    raters: int = 10
    per_rater: int = 0
    checks: int = 3
    scale: int = 5
    ties: bool = True
    question: str = ""
    groups: tuple[str, ...] = ()
    asks_worse: bool = False

    def ends(self) -> tuple[float, float]:
        """Between which what is measured lies: a share of preferences, or a difference of points."""
        return (0.0, 1.0) if self.kind == "pairwise" else (1.0 - self.scale, self.scale - 1.0)

    def asked(self) -> str:
        return self.question or QUESTIONS[self.kind].format(scale=self.scale)

    def answers(self) -> tuple[str, ...]:
        """What may be answered to a row."""
        if self.kind == "likert":
            return tuple(map(str, range(1, self.scale + 1)))
        return (*SIDES, TIE) if self.ties else tuple(SIDES)


class Row(NamedTuple):
    """One question of a sheet; `shown`: one text, or two, of sides A and B."""

    token: str
    prompt: str
    image: str
    shown: tuple[str, ...]


class Sheets(NamedTuple):
    """`rows` by rater; `key`: token -> what it was, `{"rater", "id", "arms"}` or `{"rater", "check"}`."""

    rows: dict[str, list[Row]]
    key: dict[str, dict[str, Any]]


def check_design(design: Design, outputs: int) -> None:
    """Raises UsageError."""
    if design.kind not in KINDS:
        raise UsageError(f"--kind {design.kind}: one of {', '.join(KINDS)} was wanted")
    if len(design.arms) < 2 or len(set(design.arms)) < len(design.arms):
        raise UsageError(f"--arms {' '.join(design.arms)}: two different ones at least were wanted")
    if design.kind == "likert" and not design.ties:
        raise UsageError("--no-ties is of pairs; a Likert scale has none")
    if design.kind == "pairwise" and design.scale != Design.scale:
        raise UsageError("--scale is of a Likert study (--kind likert); pairs have none")
    if design.asks_worse and not design.question:
        raise UsageError("--asks-worse goes with a --question of your own; the usual one asks what is better")
    for name, value, least in (("raters", design.raters, 1), ("checks", design.checks, 0), ("scale", design.scale, 2)):
        if value < least:
            raise UsageError(f"--{name} {value}: {least} at least")
    if not 0 <= design.per_rater <= outputs:
        raise UsageError(f"--per-rater {design.per_rater}, and there are {outputs} outputs; 0: all of them")


def make(design: Design, outputs: Sequence[Output], seed: int) -> Sheets:
    """The sheets of one seed, which whoever knows it can make again: it belongs to the key.

    Raises:
        UsageError: as `check_design`.
    """
    check_design(design, len(outputs))
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(outputs))
    size = design.per_rater or len(outputs)
    rows: dict[str, list[Row]] = {}
    key: dict[str, dict[str, Any]] = {}
    for number in range(design.raters):
        rater = f"rater-{number + 1:02d}"
        mine = [int(order[(number * size + k) % len(outputs)]) for k in range(size)]  # each output as often as another
        made = [row for k in mine for row in _rows(design, outputs[k], rng)]
        made += [_check(design, rng) for _ in range(design.checks)]
        made = [made[k] for k in rng.permutation(len(made))]
        rows[rater] = [row for row, _ in made]
        key |= {row.token: {"rater": rater, **what} for row, what in made}
    return Sheets(rows, key)


def new_seed() -> int:
    """That nobody can guess: who knows it knows the key."""
    return secrets.randbits(63)


def _rows(design: Design, output: Output, rng: np.random.Generator) -> list[tuple[Row, dict[str, Any]]]:
    sets = [(arm,) for arm in design.arms] if design.kind == "likert" else list(combinations(design.arms, 2))
    made = []
    for arms in sets:
        sides = [str(arm) for arm in rng.permutation(arms)]
        shown = tuple(output.texts[arm] for arm in sides)
        made.append((Row(_token(rng), output.prompt, output.image, shown), {"id": output.id, "arms": sides}))
    return made


def _check(design: Design, rng: np.random.Generator) -> tuple[Row, dict[str, Any]]:
    choices = [answer for answer in design.answers() if answer != TIE]
    answer = choices[int(rng.integers(len(choices)))]
    say = f"Please answer {answer} here." if design.kind == "likert" else f"Please choose {answer} here."
    shown = (say,) if design.kind == "likert" else (say, say)
    return Row(_token(rng), CHECK, "", shown), {"check": answer}


def _token(rng: np.random.Generator) -> str:
    """That tells nothing of what it stands for, and is no number to a spreadsheet."""
    return f"t{rng.bytes(6).hex()}"
