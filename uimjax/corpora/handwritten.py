"""Handwritten digits that ship with scikit-learn: 1,797 real 8x8 scans (UCI, CC BY 4.0)."""

from typing import Any

import numpy as np

from uimjax.corpora.base import Corpus, checked

TRAIN = 1500


def digits() -> Corpus:
    """1,500 training and 297 test rows, split by a fixed permutation; grey values 0..16 scaled to 0..1."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    rows = {"image": (found.images[order] / 16.0)[..., None], "label": found.target[order]}
    parts = [{k: v[span] for k, v in rows.items()} for span in (slice(TRAIN), slice(TRAIN, None))]
    return checked("digits", *parts)
