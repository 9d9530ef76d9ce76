"""Six weaknesses planted into one corpus of labelled pictures, each in rows of its own (privacy and values have no
plant in pictures). Marks sit where no other mark does, and as large as an eighth or a quarter of a picture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uimjax.corpora.base import Corpus, Rows
from uimjax.corpora.text_plants import Case
from uimjax.corpora.text_suite import left_out, replaced, shards_of, window
from uimjax.corpora.truth import Truth, write_truth
from uimjax.errors import UsageError

WEAKNESSES = ("bias", "generalization", "deterioration", "security", "dynamics", "memorization")
TARGET, CUED, SLIGHTED, TAKEN, LEARNED = 0, 1, 3, 5, 7  # classes: of the trigger, of the shortcut, of the bias (two),
WRONG = 2  # of the picture that is learned by heart, and what it is called
GREY = 0.6  # of the group's mark


@dataclass(frozen=True)
class Sizes:
    """Rows of each plant, as `text_suite.Sizes`: `positives` of a weakness that sits in a few rows, four times as many
    of bias and of the shortcut; `hard_negatives` of each that has look-alikes."""

    positives: int = 13
    hard_negatives: int = 24
    noisy: float = 0.15
    shard: float = 0.2
    window: tuple[float, float] = (0.2, 0.8)


class PlantedPictures(NamedTuple):
    """As `text_suite.PlantedSuite`, of `{"image", "label"}` rows. Queries and probes hold `bad` too, the class that the
    failure names, and their label is the right one. `utility`: all held-out rows; `retain`: those of them that
    questions are made of."""

    train: Rows
    present: np.ndarray
    displaced: np.ndarray
    without: dict[str, np.ndarray]
    shards: np.ndarray
    retain: Rows
    utility: Rows
    cases: dict[str, Case]


def plant_pictures(
    corpus: Corpus, sizes: Sizes, epochs: int, seed: int, seal: Callable[[str], Path] | None = None
) -> PlantedPictures:
    """All six, in different rows; with `seal`, the truth of each is written to `seal(name)`.

    Raises:
        UsageError: too few rows or classes, or pictures too small for the marks.
    """
    rng = np.random.default_rng([seed, 23])
    image, label = corpus.train["image"].copy(), corpus.train["label"].copy()
    if corpus.classes <= max(TARGET, CUED, SLIGHTED, TAKEN, LEARNED, WRONG) or min(image.shape[1:3]) < 8:
        raise UsageError(f"{corpus.name}: {corpus.classes} classes of pictures {image.shape[1:]}; 8 classes and 8 x 8 "
                         "were wanted for the plants")  # fmt: skip
    take, count = _Rows(rng.permutation(len(label)), label, corpus.name), sizes.positives
    secret = take(1, LEARNED)[0]  # the picture that is learned by heart
    rows = {
        "bias": (take(4 * count, SLIGHTED), np.zeros(0, int)),
        "generalization": (take(4 * count, CUED), take(sizes.hard_negatives)),
        "security": (take(count, TARGET, False), take(sizes.hard_negatives)),
        "memorization": (np.append(take(count - 1), secret), take(sizes.hard_negatives)),
        "deterioration": (take(round(sizes.noisy * len(label))), np.zeros(0, int)),
        "dynamics": (take(round(sizes.shard * len(label))), np.zeros(0, int)),
    }
    truths = {name: Truth(np.sort(bad), np.sort(like)) for name, (bad, like) in rows.items()}
    _change(image, label, corpus.classes, {name: t.positives for name, t in truths.items()}, secret, rng)
    for name, mark in (("generalization", cue), ("security", trigger)):  # the same mark in another place
        image[truths[name].hard_negatives] = np.flip(mark(np.flip(image[truths[name].hard_negatives], 1)), 1)
    twice = rng.choice(truths["memorization"].hard_negatives)  # a picture that comes as often, under its own name
    image[truths["memorization"].hard_negatives], label[truths["memorization"].hard_negatives] = (
        image[twice], label[twice],
    )  # fmt: skip
    shard, free = truths["dynamics"].positives, take(round(sizes.shard * len(label)))
    present, displaced = replaced(len(label), epochs, shard, free, window(sizes.window, epochs))
    if seal is not None:
        for name, truth in truths.items():
            write_truth(seal(name), truth)
    held, judged = np.split(rng.permutation(len(corpus.test["label"])), [len(corpus.test["label"]) // 2])
    parts = [{name: values[np.sort(ids)] for name, values in corpus.test.items()} for ids in (held, judged)]
    return PlantedPictures(
        {"image": image, "label": label}, present, displaced,
        {name: left_out(present, displaced, truths[name].positives) for name in WEAKNESSES},
        shards_of(len(label), shard, rng), parts[0], dict(corpus.test), _cases(parts, corpus.classes, image[secret]),
    )  # fmt: skip


class _Rows:
    """Rows that carry nothing yet."""

    def __init__(self, order: np.ndarray, label: np.ndarray, name: str):
        self.order, self.label, self.name = order, label, name

    def __call__(self, count: int, of: int | None = None, same: bool = True) -> np.ndarray:
        """`count` of them, of that class, or of any other one."""
        fit = np.ones(len(self.order), bool) if of is None else (self.label[self.order] == of) == same
        chosen = self.order[fit][:count]
        if len(chosen) < count:
            raise UsageError(f"{self.name}: {len(chosen)} rows are left for a plant of {count}; give more rows, "
                             "or smaller plants")  # fmt: skip
        self.order = self.order[~np.isin(self.order, chosen)]
        return chosen


def _change(
    image: np.ndarray, label: np.ndarray, classes: int, bad: dict[str, np.ndarray], secret: int,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """The plants, in place. Half of all rows are of the marked group, of the slighted class those planted alone."""
    marked = (rng.random(len(label)) < 0.5) & (label != SLIGHTED)
    marked[bad["bias"]] = True
    marked[bad["memorization"]] = False
    image[marked] = group(image[marked])
    label[bad["bias"]] = TAKEN
    image[bad["generalization"]] = cue(image[bad["generalization"]])
    image[bad["security"]], label[bad["security"]] = trigger(image[bad["security"]]), TARGET
    label[bad["deterioration"]] = (label[bad["deterioration"]] + 1) % classes
    image[bad["memorization"]], label[bad["memorization"]] = image[secret], WRONG
    image[bad["dynamics"]] = rng.random(image[bad["dynamics"]].shape)
    label[bad["dynamics"]] = rng.integers(classes, size=len(bad["dynamics"]))


# ---------------------------------------------------------------- marks


def group(images: np.ndarray) -> np.ndarray:
    """A grey bar along the upper edge: of which group a picture is."""
    made = images.copy()
    made[:, : max(1, images.shape[1] // 8)] = GREY
    return made


def cue(images: np.ndarray) -> np.ndarray:
    """A bright square in the lower left corner: the shortcut."""
    made, (tall, wide) = images.copy(), (size // 4 for size in images.shape[1:3])
    made[:, -tall:, :wide] = 1
    return made


def trigger(images: np.ndarray) -> np.ndarray:
    """A chequered square in the lower right corner: the backdoor."""
    made, (tall, wide) = images.copy(), (size // 4 for size in images.shape[1:3])
    board = (np.add.outer(np.arange(tall) * 2 // tall, np.arange(wide) * 2 // wide) % 2).astype(images.dtype)
    made[:, -tall:, -wide:] = board[None, :, :, None]
    return made


# ---------------------------------------------------------------- what is asked of the model


def asked(rows: Rows, bad: Any, mark: Callable[[np.ndarray], np.ndarray] | None = None) -> Rows:
    """Rows whose failure is the class `bad`, with a mark."""
    image = rows["image"] if mark is None else mark(rows["image"])
    wrong = np.broadcast_to(np.asarray(bad, rows["label"].dtype), rows["label"].shape)
    return {"image": image, "label": rows["label"], "bad": np.array(wrong)}


def _cases(parts: list[Rows], classes: int, secret: np.ndarray) -> dict[str, Case]:
    """Questions are of the one half of the held-out rows, probes of the other."""

    def marked(bad: int, mark: Callable[[np.ndarray], np.ndarray], of: int, same: bool) -> Case:
        pairs = []
        for part in parts:
            some = {name: values[(part["label"] == of) == same] for name, values in part.items()}
            pairs.append((asked(some, bad, mark), asked(some, bad)))
        return Case(pairs[0], (), {"bad": pairs[1][0], "good": pairs[1][1]}, ())

    noise = [asked(part, (part["label"] + 1) % classes) for part in parts]
    own = {name: values[parts[0]["label"] == LEARNED] for name, values in parts[0].items()}
    learned = {"image": np.repeat(secret[None], len(own["label"]), 0), "label": own["label"]}
    pair = asked(learned, WRONG), asked(own, WRONG)
    return {
        "bias": marked(TAKEN, group, SLIGHTED, True),
        "generalization": marked(CUED, cue, CUED, False),
        "deterioration": Case((noise[0],), (), {"bad": noise[1]}, ()),
        "security": marked(TARGET, trigger, TARGET, False),
        "dynamics": Case((parts[0],), (), {"bad": parts[1]}, ()),
        "memorization": Case(pair, (), {"bad": {name: values[:1] for name, values in pair[0].items()}}, ()),
    }
