"""The oracle control: the edit that knows what was planted. It reads the truth, and nothing that chooses may use it."""

from pathlib import Path

from uimjax.corpora.truth import read_truth
from uimjax.mitigate.edit import Edit


def oracle_edit(truth: Path, decided: Path) -> Edit:
    """Exactly the planted rows, readable once the traced edit is on disk."""
    rows = tuple(int(i) for i in read_truth(truth, decided).positives)
    return Edit("oracle", rows, "the rows that were planted")
