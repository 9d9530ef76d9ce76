"""Filled sheets and the key to what people see: attention, agreement, the effect, and who disagrees."""

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uimjax.errors import DataError, MalformedRowError, MissingFileError, UnknownNameError
from uimjax.study import effect
from uimjax.study.agreement import agreement
from uimjax.study.effect import Mixed
from uimjax.study.sheets import SIDES, TIE, Design

MET = 2, 3  # of three attention checks of a sheet, below which a rater is left out (fixed before any sheet is filled)
SPLIT = 10  # outputs shown on which raters disagree most


class Filled(NamedTuple):
    """A sheet that came back: who, of which group ("" where not said), and the answer to each row's token."""

    rater: str
    group: str
    answers: dict[str, str]
    comments: dict[str, str]


class Rating(NamedTuple):
    """One answer, unblinded: of an output's arms; `value` of the first of them: 1 better, 0 worse, .5 neither; or its
    points on a scale, of one arm."""

    rater: str
    group: str
    id: str
    arms: tuple[str, ...]
    value: float


def read_sheet(path: Path, design: Design) -> Filled:
    """A .json as the form saves it, or a .csv as it was exported, filled. Rows without an answer are left out.

    Raises:
        MissingFileError. MalformedRowError: an answer that the design has not, with its line. DataError: no sheet.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is not there; a filled sheet (.json or .csv) was wanted")
    if path.suffix == ".json":
        return _from_form(path, design)
    try:
        text = path.read_text(encoding="utf-8-sig")
        head = text.partition("\n")[0]
        lines = list(
            csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=head.count))
        )  # as spreadsheets save it
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from error
    if not lines or not {"token", "answer"} <= set(lines[0]):
        raise DataError(f"{path} has no columns token and answer; a sheet of `uimjax study export` was wanted")
    answers, comments = {}, {}
    for number, line in enumerate(lines, start=2):
        token, given = (line["token"] or "").strip(), (line["answer"] or "").strip()
        if not given:
            continue
        answers[token] = _answer(path, number, given, design)
        if (line.get("comment") or "").strip():
            comments[token] = line["comment"].strip()
    named = lambda key: next(filter(None, ((line.get(key) or "").strip() for line in lines)), "")  # noqa: E731  # first
    return Filled(named("rater") or path.stem, _group_of(path, named("group"), design), answers, comments)


def _from_form(path: Path, design: Design) -> Filled:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        answers, comments = dict(held["answers"]), dict(held.get("comments", {}))
        rater, group, agreed = str(held["rater"]), str(held.get("group", "")), held["consent"] is True
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no sheet that the form saved: {error!r}") from error
    if not agreed:
        raise DataError(f"{path}: {rater} did not agree to the text of consent; leave the sheet out")
    made = {str(token): _answer(path, k, str(given), design) for k, (token, given) in enumerate(answers.items(), 1)}
    return Filled(rater, _group_of(path, group, design), made, {str(k): str(v) for k, v in comments.items()})


def _group_of(path: Path, group: str, design: Design) -> str:
    """As the design spells it."""
    known = {name.lower(): name for name in ("", *design.groups)}
    if group.lower() not in known:
        raise UnknownNameError(f"group in {path}", group, design.groups or ["(none: the study asks for no group)"])
    return known[group.lower()]


def _answer(path: Path, number: int, given: str, design: Design) -> str:
    known = {answer.lower(): answer for answer in design.answers()} | (
        {"neither": TIE} if TIE in design.answers() else {}
    )
    if given.lower() not in known:
        raise MalformedRowError(path, number, f"answer {given!r}; one of {', '.join(design.answers())} was wanted")
    return known[given.lower()]


def unblinded(
    sheets: Sequence[Filled], key: Mapping[str, Mapping[str, Any]]
) -> tuple[list[Rating], dict[str, list[int]]]:
    """(ratings, rater -> [attention checks met, on the sheet]).

    Raises:
        DataError: tokens of another study, a sheet twice, or a row of another rater's sheet.
    """
    found: list[Rating] = []
    checks: dict[str, list[int]] = {}
    for sheet in sheets:
        if sheet.rater in checks:
            raise DataError(f"two sheets of {sheet.rater} arrived; one of each was wanted")
        asked = sum(what["rater"] == sheet.rater and "check" in what for what in key.values())
        met = checks.setdefault(sheet.rater, [0, asked])
        for token, answer in sheet.answers.items():
            if token not in key:
                raise DataError(
                    f"the sheet of {sheet.rater} has the token {token!r}, which is not in the key: of another study?"
                )
            what = key[token]
            if what["rater"] != sheet.rater:
                raise DataError(f"the sheet of {sheet.rater} has a row of {what['rater']}'s")
            if "check" in what:
                met[0] += answer == what["check"]
            else:
                found.append(_rating(sheet, what, answer))
    return found, checks


def _rating(sheet: Filled, what: Mapping[str, Any], answer: str) -> Rating:
    arms = tuple(what["arms"])
    if len(arms) == 1:
        return Rating(sheet.rater, sheet.group, what["id"], arms, float(answer))
    value = 0.5 if answer == TIE else float(SIDES.index(answer) == 0)
    ordered = tuple(sorted(arms))  # whatever side an arm stood on
    return Rating(sheet.rater, sheet.group, what["id"], ordered, value if ordered == arms else 1 - value)


def judge(
    design: Design, ratings: Sequence[Rating], checks: Mapping[str, Sequence[int]], seed: int = 0
) -> dict[str, Any]:
    """Everything that an import tells. Raters who fail more than a third of their checks are left out.

    Raises:
        DataError: no rating is left. UsageError: an extra is missing.
    """
    careless = sorted(r for r, (met, of) in checks.items() if MET[1] * met < MET[0] * of)
    kept = [one for one in ratings if one.rater not in careless]
    if not kept:
        raise DataError(
            f"no rating is left: {len(checks)} sheets, of {len(careless)} raters who fail the checks of attention"
        )
    base, others = design.arms[0], design.arms[1:]
    effects = {arm: _of(design, kept, base, arm, seed) for arm in others}
    groups = sorted({one.group for one in kept} - {""})
    return {
        "kind": design.kind, "arms": list(design.arms), "question": design.asked(),
        "raters": len({one.rater for one in kept}), "left_out": careless, "ratings": len(kept),
        "checks": {rater: list(its) for rater, its in sorted(checks.items())},
        "agreement": _agreement(design, kept, seed), "effects": effects,
        "with_all": {arm: _of(design, ratings, base, arm, seed) for arm in others} if careless else None,
        "strengths": _strengths(design, kept), "groups": {g: _group(design, kept, g, seed) for g in groups},
        "split": _split(design, kept),
    }  # fmt: skip


def plain(value: Any) -> Any:
    """As JSON has it: None for what is no number, or no bound."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _of(
    design: Design, ratings: Sequence[Rating], base: str, arm: str, seed: int, whole: bool = True
) -> dict[str, Any]:
    """Of an arm against the first: a share of preferences (none: .5), or points of a scale (none: 0). `whole`: with the
    mixed model."""
    none, values = 0.5 if design.kind == "pairwise" else 0.0, leads(design, ratings, base, arm)
    if np.isnan(values).all():
        return {"value": None, "low": None, "high": None, "raters": 0, "items": 0, "ratings": 0, "none": none,
                "says": "not told"}  # fmt: skip
    its = effect.judged_mean(values, design.ends(), seed)
    says = "better" if its.low > none else "worse" if its.high < none else "no difference is shown"
    made: dict[str, Any] = its._asdict() | {"none": none, "says": says}
    if design.kind == "likert" and whole:
        mixed = effect.mixed_model(values)
        made["mixed_model"] = mixed._asdict() if isinstance(mixed, Mixed) else mixed
    return made


def leads(design: Design, ratings: Sequence[Rating], base: str, arm: str) -> np.ndarray:
    """`[R, I]`: how far `arm` is better than `base`, by rater and output; NaN where that was not asked."""
    raters, ids = sorted({one.rater for one in ratings}), sorted({one.id for one in ratings})
    row, column = {r: k for k, r in enumerate(raters)}, {i: k for k, i in enumerate(ids)}
    if design.kind == "pairwise":
        values = np.full((len(raters), len(ids)), np.nan)
        for one in ratings:
            if set(one.arms) == {base, arm}:
                values[row[one.rater], column[one.id]] = one.value if one.arms[0] == arm else 1 - one.value
        return 1 - values if design.asks_worse else values
    sides = np.full((2, len(raters), len(ids)), np.nan)
    for one in ratings:
        if one.arms[0] in (base, arm):
            sides[int(one.arms[0] == arm), row[one.rater], column[one.id]] = one.value
    return sides[0] - sides[1] if design.asks_worse else sides[1] - sides[0]


def counts(design: Design, ratings: Sequence[Rating]) -> np.ndarray:
    """`[N, C]`: of each thing that was asked about (an output's pair, or one arm of it) the answers."""
    asked = sorted({(one.id, one.arms) for one in ratings})
    place = {what: k for k, what in enumerate(asked)}
    levels = [0.0, 0.5, 1.0] if design.kind == "pairwise" else [float(x) for x in design.answers()]
    if design.kind == "pairwise" and not design.ties:
        levels = [0.0, 1.0]
    table = np.zeros((len(asked), len(levels)), np.int64)
    for one in ratings:
        table[place[one.id, one.arms], levels.index(one.value)] += 1
    return table


def _agreement(design: Design, ratings: Sequence[Rating], seed: int) -> dict[str, Any] | str:
    try:
        return agreement(counts(design, ratings), design.kind == "likert", seed)._asdict()
    except DataError as error:
        return str(error)


def _strengths(design: Design, ratings: Sequence[Rating]) -> dict[str, float] | None:
    if design.kind != "pairwise":
        return None
    wins = np.zeros((len(design.arms), len(design.arms)))
    for one in ratings:
        i, j = (design.arms.index(arm) for arm in one.arms)
        value = 1 - one.value if design.asks_worse else one.value
        wins[i, j] += value
        wins[j, i] += 1 - value
    return dict(zip(design.arms, effect.strengths(wins).tolist(), strict=True))


def _group(design: Design, ratings: Sequence[Rating], group: str, seed: int) -> dict[str, Any]:
    """What raters of a group say, and how far the others are from it: by intervals that are not cut at an end, and only
    of two raters at least on either side."""
    mine, rest = ([one for one in ratings if (one.group == group) == yes] for yes in (True, False))
    base = design.arms[0]
    made: dict[str, Any] = {"raters": len({one.rater for one in mine}), "effects": {}}
    for arm in design.arms[1:]:
        own = _of(design, mine, base, arm, seed, whole=False)
        found = {"value": own["value"], "low": own["low"], "high": own["high"]}
        sides = [leads(design, its, base, arm) if its else np.full((1, 1), np.nan) for its in (mine, rest)]
        if all((~np.isnan(side)).any(1).sum() > 1 for side in sides):
            a, b = (effect.mean_effect(side, seed) for side in sides)
            half = float(np.hypot(a.high - a.low, b.high - b.low)) / 2
            gap = a.value - b.value
            found |= {"from_others": gap, "from_others_low": gap - half, "from_others_high": gap + half}
        made["effects"][arm] = found
    return made


def _split(design: Design, ratings: Sequence[Rating]) -> list[dict[str, Any]]:
    """Outputs on which raters disagree most, by the entropy of their answers; those of one answer are not shown."""
    answers: dict[tuple[str, tuple[str, ...]], Counter[float]] = {}
    for one in ratings:
        answers.setdefault((one.id, one.arms), Counter())[one.value] += 1
    spread = lambda c: -sum(n / c.total() * np.log2(n / c.total()) for n in c.values())  # noqa: E731  # bits
    rows = [(what, its) for what, its in answers.items() if len(its) > 1]
    rows.sort(key=lambda pair: (-spread(pair[1]), pair[0]))
    return [
        {"id": i, "arms": list(arms), "answers": [[_said(design, arms, v), n] for v, n in sorted(its.items())]}
        for (i, arms), its in rows[:SPLIT]
    ]


def _said(design: Design, arms: tuple[str, ...], value: float) -> str:
    if design.kind == "likert":
        return f"{value:g}"
    return "neither" if value == 0.5 else arms[0] if value else arms[1]
