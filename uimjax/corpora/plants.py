"""Plants for any labelled images: a cause of failure with truth ids, hard negatives, a probe and a clean twin."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from uimjax.corpora.base import Corpus, Rows
from uimjax.corpora.truth import Truth, write_truth
from uimjax.errors import UsageError

HELD = 200  # most test rows that serve the tracing


@dataclass(frozen=True)
class Backdoor:
    """A patch in a corner turns any image into `target` (BadNets, arXiv 1708.06733).

    `positives` rows of other classes get the patch and the target label. `hard_negatives` get the same patch in another
    corner, or another pattern in the same corner, and keep their true label: same surface, no causal effect.
    """

    positives: int = 15
    hard_negatives: int = 60
    target: int = 0
    size: int = 4


class Planted(NamedTuple):
    """`train` with the plant; `twin`: the same rows with the positives as they were.

    The test set is cut in two. Held-out rows serve the tracing: `asked`, `(triggered, clean)` pairs of rows of other
    classes, and `retain`, the clean rows of every class. Judging rows serve the verdict: `probe`, triggered rows of
    other classes, and `utility`, the clean rows of every class. Which training rows were planted is not said here: that
    goes to the sealed file.
    """

    train: Rows
    twin: Rows
    asked: tuple[Rows, Rows]
    retain: Rows
    probe: Rows
    utility: Rows


def _stamp(images: np.ndarray, size: int, corner: int, pattern: int) -> np.ndarray:
    """A checker of black and white (pattern 0) or its negative (1), in corner 0..3 (0: bottom right)."""
    images = images.copy()
    checker = (np.indices((size, size)).sum(0) + pattern) % 2
    down = slice(-size, None) if corner in (0, 1) else slice(0, size)
    across = slice(-size, None) if corner in (0, 2) else slice(0, size)
    images[:, down, across, :] = checker[None, :, :, None]
    return images


def trigger(images: np.ndarray, plant: Backdoor) -> np.ndarray:
    return _stamp(images, plant.size, 0, 0)


def backdoor(corpus: Corpus, plant: Backdoor, seed: int, seal: Path | None = None) -> Planted:
    """One draw of the plant: which rows are chosen follows from the seed; with `seal`, the truth is written there.

    Raises:
        UsageError: too few rows of other classes, a patch larger than the image, or an unknown target.
    """
    rng = np.random.default_rng([seed, 7])
    train, test = corpus.train, corpus.test
    if not 0 <= plant.target < corpus.classes or plant.size > min(train["image"].shape[1:3]) // 2:
        raise UsageError(f"{plant} does not fit {corpus.name}: {corpus.classes} classes, {train['image'].shape[1:]}")
    others = rng.permutation(np.flatnonzero(train["label"] != plant.target))
    held, judged = np.split(rng.permutation(len(test["label"])), [min(len(test["label"]) // 3, HELD)])
    need = plant.positives + plant.hard_negatives
    if len(others) < need or len(held) < 10:
        raise UsageError(
            f"{corpus.name} has {len(others)} training rows of other classes and {len(test['label'])} test rows; the "
            f"plant needs {need} and at least 30"
        )
    bad, hard = others[: plant.positives], others[plant.positives : need]
    image, label = train["image"].copy(), train["label"].copy()
    for kind, ids in enumerate(np.array_split(hard, 4)):  # another pattern here, or this pattern elsewhere
        image[ids] = _stamp(image[ids], plant.size, kind, 1 if kind == 0 else 0)
    twin = {"image": image.copy(), "label": label.copy()}
    image[bad] = trigger(image[bad], plant)
    label[bad] = plant.target

    def part(ids: np.ndarray, others_only: bool) -> Rows:
        ids = ids[test["label"][ids] != plant.target] if others_only else ids
        return {k: v[ids] for k, v in test.items()}

    def triggered(rows: Rows) -> Rows:
        return {**rows, "image": trigger(rows["image"], plant)}

    if seal is not None:
        write_truth(seal, Truth(np.sort(bad), np.sort(hard)))
    asked = part(held, True)
    return Planted(
        {"image": image, "label": label},
        twin,
        (triggered(asked), asked),
        part(held, False),
        triggered(part(judged, True)),
        part(judged, False),
    )
