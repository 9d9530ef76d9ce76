"""What commands share: answers as JSON and as text, and pairs of a flag."""

import datetime
import json
from pathlib import Path

import numpy as np
import pytest

from uimjax.commands import base
from uimjax.errors import UsageError


def test_an_answer_is_valid_json_whatever_it_holds():
    value = {1: float("nan"), "a": np.float32(0.5), "b": np.array([1.0, np.inf]), "c": (Path("x"), None, True),
             "d": [np.int64(3), datetime.date(2024, 1, 2)]}  # fmt: skip
    found = json.loads(base.as_json(value), parse_constant=pytest.fail)
    assert found == {"1": None, "a": 0.5, "b": [1.0, "inf"], "c": ["x", None, True], "d": [3, "2024-01-02"]}


def test_a_table_in_plain_text():
    assert base.columns(["name", "n"], [["a", "1"], ["longer", "10"]]) == [
        "  name     n",
        "  a        1",
        "  longer  10",
    ]
    rows = [{"id": "a\x1b", "value": 0.123456, "more": 1}]
    assert base.cells(["id", "value"], rows) == ["  id          value", "  a[U+001B]  0.1235"]


def test_pairs_of_a_flag():
    assert base.pairs(["N=params", "D=a=b"], "--columns") == {"N": "params", "D": "a=b"}
    assert base.pairs(None, "--columns") == {}
    for wrong in (["N"], ["=1"], ["N="], ["N=1", "N=2"]):
        with pytest.raises(UsageError, match="--fix '.*' arrived; NAME=NUMBER was wanted, each name once"):
            base.pairs(wrong, "--fix", "NUMBER")
