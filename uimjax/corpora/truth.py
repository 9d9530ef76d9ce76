"""The ids of what was planted. Only the scorecard and the oracle control may import this module (a test checks).

The file is sealed until an edit chosen without it exists: method and edit size are fixed before truth is readable.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from uimjax.errors import UsageError
from uimjax.store import read_manifest, write_manifest


class Truth(NamedTuple):
    """Row ids: `positives` cause the failure; `hard_negatives` look like it and do not."""

    positives: np.ndarray
    hard_negatives: np.ndarray


def write_truth(path: Path, truth: Truth) -> None:
    write_manifest(path, {name: [int(i) for i in ids] for name, ids in truth._asdict().items()})


def read_truth(path: Path, decided: Path) -> Truth:
    """The truth, once `decided` (the traced edit) is on disk.

    Raises:
        UsageError: nothing has been decided yet.
    """
    if not decided.exists():
        raise UsageError(
            f"{path} stays sealed until {decided} exists: trace and choose an edit before reading the truth"
        )
    return Truth(**{name: np.asarray(ids, np.int64) for name, ids in read_manifest(path).items()})
