"""`uimjax audit --predictions`: decisions by group, from a table alone."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.answers.test_audit import call


@pytest.fixture
def table(tmp_path):
    """Of group a 70% get it and of b 40%; c is wrong in half of its rows; a third column is at random."""
    rng = np.random.default_rng(0)
    group = np.repeat(["a", "b", "c"], [400, 400, 300])
    label = rng.integers(2, size=1100)
    given = np.where(group == "c", np.where(rng.random(1100) < 0.5, label, 1 - label), label)
    given = np.where((group == "a") & (rng.random(1100) < 0.4), 1, given)
    given = np.where((group == "b") & (rng.random(1100) < 0.2), 0, given)
    path = tmp_path / "decided.parquet"
    pq.write_table(
        pa.table({"label": label, "predicted": given, "group": group, "coin": rng.integers(2, size=1100)}), path
    )
    return path, label, given, group


def test_gaps_and_the_worst_group_are_counted(table, tmp_path, capsys):
    path, label, given, group = table
    assert call("--predictions", path, "--out", tmp_path / "out", "--json") == 0
    told = json.loads(capsys.readouterr().out)["weaknesses"]
    right = {g: np.mean((label == given)[group == g]) for g in "abc"}
    rate = {g: np.mean(given[group == g]) for g in "abc"}
    odds = max(np.ptp([given[(group == g) & (label == k)].mean() for g in "abc"]) for k in (0, 1))
    for name, value in (
        ("worst group", min(right.values())),
        ("parity", max(rate.values()) - min(rate.values())),
        ("odds", odds),
    ):
        card = told[f"{name} by group"]
        assert card["value"] == pytest.approx(value)
        assert card["low"] <= card["value"] <= card["high"]
        assert card["says"] == "alarm"
    assert told["worst group by group"]["by_category"]["c"] == pytest.approx(right["c"])
    assert told["worst group by group"]["also"]["mean"] == pytest.approx(np.mean(label == given))
    assert "decided.parquet" in (tmp_path / "out" / "report.html").read_text()


def test_groups_at_random_raise_no_alarm(table, tmp_path, capsys):
    assert call("--predictions", table[0], "--group", "coin", "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert said.count("no alarm from these rows") == 3
    assert "alarm\n" not in said.replace("no alarm", "")


def test_other_names_and_small_groups(tmp_path, capsys):
    rows = [
        {"y": "spam" if k % 3 else "ham", "said": "spam", "of": "x" if k < 40 else "z" if k < 80 else "rare"}
        for k in range(83)
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--predictions", path, "--label", "y", "--predicted", "said", "--group", "of")
    assert call(*flags, "--out", tmp_path / "out", "--json") == 0
    told = json.loads(capsys.readouterr().out)["weaknesses"]
    assert list(told) == ["worst group by of"], "of words nobody knows which is the one to be given"
    assert told["worst group by of"]["left_out"] == ["rare"]
    assert call(*flags, "--positive", "spam", "--out", tmp_path / "out", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["weaknesses"]) == 3
    for words, part in (
        (("--positive", "spma"), "'spma'"), (("--least", "99"), "--least"), (("--group", "off"), "'off'"),
        (("--model", "m"), "leave --model"),
    ):  # fmt: skip
        assert call(*flags, *words, "--out", tmp_path / "no") in (2, 3)
        assert part in capsys.readouterr().err
    path.write_text(json.dumps({"y": "a", "said": "", "of": "x"}) + "\n")
    assert call(*flags, "--out", tmp_path / "no") == 3
    assert "said is empty" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
