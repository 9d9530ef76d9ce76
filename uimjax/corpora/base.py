"""What a corpus of labelled images is."""

from typing import Any, NamedTuple

import numpy as np

from uimjax import rows as row
from uimjax.errors import ShapeError

Rows = dict[str, np.ndarray]


class Corpus(NamedTuple):
    """`train`, `test`: `{"image": [N, H, W, C] float32 in 0..1, "label": [N] int32}`."""

    name: str
    train: Rows
    test: Rows
    classes: int


def checked(name: str, train: Any, test: Any) -> Corpus:
    """A corpus from the reader's own arrays.

    Raises:
        ShapeError, NonFiniteError: what arrived and what was wanted.
    """
    for part, rows in (("train", train), ("test", test)):
        if not isinstance(rows, dict) or set(rows) != {"image", "label"}:
            keys = sorted(rows) if isinstance(rows, dict) else type(rows).__name__
            raise ShapeError(f"{name}, {part}: {keys} arrived; a dictionary of 'image' and 'label' was wanted")
        image, label = rows["image"], rows["label"]
        if image.ndim != 4 or label.ndim != 1 or label.dtype.kind not in "iu":
            raise ShapeError(
                f"{name}, {part}: image {image.dtype}{list(image.shape)}, label {label.dtype}{list(label.shape)}; "
                "wanted image [N, H, W, C] and integer label [N]"
            )
        row.count(rows)
        row.check_finite(rows, f"{name}, {part}")
        if image.min() < 0 or image.max() > 1 or label.min() < 0:
            raise ShapeError(
                f"{name}, {part}: image from {image.min():.3g} to {image.max():.3g}, label from {label.min()}; wanted "
                "grey values 0..1 (divide bytes by 255) and labels from 0"
            )
    if train["image"].shape[1:] != test["image"].shape[1:]:
        raise ShapeError(f"{name}: training images {train['image'].shape[1:]}, test images {test['image'].shape[1:]}")
    fixed = [{"image": r["image"].astype(np.float32), "label": r["label"].astype(np.int32)} for r in (train, test)]
    return Corpus(name, fixed[0], fixed[1], int(max(r["label"].max() for r in fixed)) + 1)
