"""Items of an audit as people and public sets write them down, to rows of tokens.

Ours, as .jsonl, .csv, .tsv or .parquet: `prompt`, `bad`, `good` (left out for memorization: is `bad` said word for word
after `prompt`?), `weakness` (bias, values ... of `uimjax.audit.weaknesses`), `category`. Read by their own columns:
CrowS-Pairs (sent_more, sent_less), preference pairs (chosen, rejected), TruthfulQA (Question, Best Incorrect Answer),
BBQ (context, ans0 to ans2, answer_info), Winogender (sentid, with its table of occupations beside it), behaviours
(question, answer_matching, answer_not_matching).
"""

import ast
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from uimjax import tables
from uimjax.corpora.documents import clean
from uimjax.errors import DataError, MalformedRowError, UnknownNameError, UsageError

PAIRED = ("bias", "generalization", "deterioration", "security", "values")  # of a bad and a good answer
ALONE = ("memorization", "privacy")  # of what should not come out


class Item(NamedTuple):
    weakness: str
    prompt: str
    bad: str
    good: str | None
    category: str
    place: str  # file and row, for messages


class Coded(NamedTuple):
    """`items` that fit into rows of tokens; `bad`, `good` rows `{"tokens", "counted"}` of those with both (`good` is of
    the same items); `cut`: prompts of which the beginning was left away; `left_out`: places of items that are too
    long."""

    items: list[Item]
    bad: dict[str, np.ndarray]
    good: dict[str, np.ndarray] | None
    cut: int
    left_out: list[str]


def read_items(path: Path, weakness: str = "") -> list[Item]:
    """All items of a file; `weakness` for those that do not say theirs.

    Raises:
        MissingFileError, MalformedRowError, DataError: as `tables.read`, or an item without its answers, with its row.
        UsageError: columns that are of no known set. UnknownNameError: no such weakness.
    """
    columns = tables.read(path, "items of an audit")
    count = len(next(iter(columns.values()), []))
    if not count:
        raise DataError(f"{path} holds no items")
    if weakness and weakness not in (*PAIRED, *ALONE):
        raise UnknownNameError("weakness", weakness, (*PAIRED, *ALONE))
    known = {"sent_more": _crows, "chosen": _preferred, "Best Incorrect Answer": _truthful, "bad": _ours,
             "answer_matching": _behaved, "answer_info": _bbq}  # fmt: skip
    if "sentid" in columns:
        _need(path, columns, ("sentence",))
        return _winogender(path, columns, weakness)
    name = next((name for name in known if name in columns), "")
    reader = known.get(name)
    if reader is None:
        held = ", ".join(list(columns)[:8])
        raise UsageError(
            f"{path} has the columns {held}; bad and good (with prompt, weakness), sent_more and sent_less, chosen and "
            "rejected, or those of TruthfulQA, BBQ, Winogender or of behaviours were wanted"
        )
    _need(path, columns, NEEDED.get(name, ()))
    found = []
    for k in range(count):
        row = {name: values[k] for name, values in columns.items()}
        item = reader(row, weakness, f"{path.name}:{k + 1}")
        if item is None:
            continue
        if not item.bad or (item.weakness in PAIRED and not item.good):
            raise MalformedRowError(path, k + 1, "it lacks an answer; text was wanted for bad, and for good of a pair")
        found.append(item)
    if not found:
        raise DataError(f"{path} holds no item with a good and a bad answer")
    return found


NEEDED = {
    "sent_more": ("sent_less",), "chosen": ("rejected",), "Best Incorrect Answer": ("Question", "Best Answer"),
    "answer_matching": ("question", "answer_not_matching"),
    "answer_info": ("ans0", "ans1", "ans2", "label", "context", "question", "question_polarity"),
}  # fmt: skip


def _need(path: Path, columns: Any, names: Sequence[str]) -> None:
    """Raises UsageError: a column that items of this set have is not there."""
    lacking = [name for name in names if name not in columns]
    if lacking:
        raise UsageError(f"{path} has no column {lacking[0]}, only {', '.join(list(columns)[:12])}")


def _text(value: Any) -> str:
    return clean(str(value)) if value is not None else ""


def _ours(row: dict[str, Any], weakness: str, place: str) -> Item:
    name = _text(row.get("weakness")) or weakness or ("memorization" if row.get("good") is None else "values")
    if name not in (*PAIRED, *ALONE):
        raise UnknownNameError(f"weakness of {place}", name, (*PAIRED, *ALONE))
    good = None if name in ALONE else _text(row.get("good"))
    return Item(name, _text(row.get("prompt")), _text(row["bad"]), good, _text(row.get("category")), place)


def _crows(row: dict[str, Any], weakness: str, place: str) -> Item:
    """The stereotype is `sent_more`, or of an anti-stereotype the other sentence."""
    more, less = _text(row["sent_more"]), _text(row["sent_less"])
    if row.get("stereo_antistereo") == "antistereo":
        more, less = less, more
    return Item(weakness or "bias", "", more, less, _text(row.get("bias_type")), place)


def _preferred(row: dict[str, Any], weakness: str, place: str) -> Item:
    chosen, rejected = _text(row["chosen"]), _text(row["rejected"])
    same = len(os.path.commonprefix([chosen, rejected]))
    same = chosen.rfind(" ", 0, min(same, len(chosen) - 1, len(rejected) - 1)) + 1  # at a word, and both have one left
    return Item(weakness or "values", chosen[:same], rejected[same:], chosen[same:], _text(row.get("category")), place)


def _truthful(row: dict[str, Any], weakness: str, place: str) -> Item:
    prompt = f"Q: {_text(row['Question'])}\nA:"
    bad, good = (f" {_text(row[name])}" for name in ("Best Incorrect Answer", "Best Answer"))
    return Item(weakness or "values", prompt, bad, good, _text(row.get("Category")), place)


def _behaved(row: dict[str, Any], weakness: str, place: str) -> Item:
    """The behaviour that is asked after counts as the bad answer."""
    category = os.path.splitext(os.path.basename(_text(row.get("file"))))[0]
    bad, good = _text(row["answer_matching"]), _text(row["answer_not_matching"])
    return Item(weakness or "values", _text(row["question"]), bad, good, category, place)


def _bbq(row: dict[str, Any], weakness: str, place: str) -> Item | None:
    """Of a question the answer that a stereotype gives, and the right one; None where these are the same, or where the
    row does not tell. A question like "who was not ..." (`neg`) has the stereotyped group for it, its opposite the
    other one."""
    answers = {name: _text(row[name]) for name in ("ans0", "ans1", "ans2")}
    told, more = _literal(row["answer_info"]), _literal(row.get("additional_metadata") or {})
    listed = row.get("stereotyped_groups") or more.get("stereotyped_groups")
    if listed is None:
        raise DataError(f"{place} tells no stereotyped_groups, of its own or in additional_metadata")
    groups = {str(g).lower() for g in _literal(listed)}
    of = {name: str(told[name][1]).lower() for name in answers if name in told}
    named = [name for name in of if of[name] in groups]
    others = [name for name in of if of[name] not in groups and of[name] != "unknown"]
    biased = named if row["question_polarity"] == "neg" else others
    right = f"ans{row['label']}"
    if len(biased) != 1 or right == biased[0] or right not in answers:
        return None
    prompt = f"{_text(row['context'])} {_text(row['question'])}\nAnswer:"
    category = ", ".join(filter(None, (_text(row.get("category")), _text(row.get("context_condition")))))
    return Item(weakness or "bias", prompt, f" {answers[biased[0]]}", f" {answers[right]}", category, place)


def _literal(value: Any) -> Any:
    """A list or an object as it is, or written down."""
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError) as error:
        raise DataError(f"{str(value)[:60]!r} is no list or object; the columns of BBQ were wanted") from error


STATISTICS, HALF = "occupations-stats.tsv", 50.0


def _winogender(path: Path, columns: Any, weakness: str) -> list[Item]:
    """Pairs of sentences with "he" and "she", the bad one the pronoun of the majority in the occupation that it means
    (Rudinger et al. 2018, arXiv 1804.09301: participant 0 is the occupation)."""
    beside = path.parent / STATISTICS
    if not beside.is_file():
        raise UsageError(f"{path} says who is meant; which pronoun is the stereotype stands in {STATISTICS}, which was "
                         f"wanted beside it")  # fmt: skip
    table = tables.read(beside, "shares of women in occupations")
    _need(beside, table, ("occupation", "bls_pct_female"))
    women = dict(zip(table["occupation"], map(float, table["bls_pct_female"]), strict=True))
    said = dict(zip(columns["sentid"], columns["sentence"], strict=True))
    found = []
    for k, name in enumerate(columns["sentid"], 1):
        parts = str(name).split(".")
        other = ".".join([*parts[:3], "female", *parts[4:]])
        if len(parts) != 5 or parts[3] != "male" or parts[2] != "0" or other not in said:
            continue
        he, she, share = _text(said[name]), _text(said[other]), women.get(parts[0])
        if share is None or share == HALF:
            continue
        bad, good = (she, he) if share > HALF else (he, she)
        found.append(Item(weakness or "bias", "", bad, good, parts[0], f"{path.name}:{k}"))
    if not found:
        raise DataError(f"{path} holds no pair of sentences of an occupation that {STATISTICS} knows")
    return found


def coded(items: Sequence[Item], tokenizer: tokenizers.Tokenizer, length: int) -> Coded:
    """Rows of at most `length` tokens; a prompt that is too long keeps its end.

    Raises:
        DataError: no item fits.
    """
    kept, sides, cut, left_out = [], {"bad": [], "good": []}, 0, []
    for item in items:
        made = {side: _tokens(tokenizer, item.prompt, text, length)
                for side, text in (("bad", item.bad), ("good", item.good)) if text is not None}  # fmt: skip
        if any(one is None for one in made.values()):
            left_out.append(item.place)
            continue
        kept.append(item)
        cut += any(one[2] for one in made.values() if one)
        for side, one in made.items():
            sides[side].append(one)
    if not kept:
        raise DataError(f"none of {len(items)} items fits into rows of {length} tokens; give a larger --length")
    return Coded(kept, _rows(sides["bad"]), _rows(sides["good"]) if sides["good"] else None, cut, left_out)


def _tokens(tokenizer: Any, prompt: str, text: str, length: int) -> tuple[list[int], list[int], bool] | None:
    """(tokens, which count, whether the prompt was cut): those that hold a character of the completion count."""
    code = tokenizer.encode(prompt + text)
    ids, counted = list(code.ids), [int(stop > max(start, len(prompt))) for start, stop in code.offsets]
    if not sum(counted) or sum(counted) >= length:
        return None
    over = max(0, len(ids) - length)
    return ids[over:], counted[over:], over > 0


def _rows(made: Sequence[Any]) -> dict[str, np.ndarray]:
    longest = max(len(tokens) for tokens, _, _ in made)
    rows = {"tokens": np.zeros((len(made), longest), np.int32), "counted": np.zeros((len(made), longest), np.float32)}
    for k, (tokens, counted, _) in enumerate(made):
        rows["tokens"][k, : len(tokens)], rows["counted"][k, : len(tokens)] = tokens, counted
    return rows
