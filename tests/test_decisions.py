"""`uimjax audit --predictions`: decisions by group, from a table alone."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.answers.test_audit import call
from uimjax.audit.fairness import parity, worst_group


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


def test_many_small_groups_raise_no_alarm_by_their_number():
    rng, alarms = np.random.default_rng(1), 0
    for seed in range(40):
        group, given = np.repeat(np.arange(20), 50), rng.integers(2, size=1000)
        gap, worst = parity(given, group, 200, seed=seed), worst_group(given, rng.integers(2, size=1000), group, 200)
        alarms += (gap.value > gap.limit) + (worst.value < worst.limit)
        assert gap.limit > gap.chance
        assert worst.limit < worst.chance
    assert alarms <= 7, "of 80 at 2.5%, more than 7 come in one of ten thousand"


def test_what_means_the_same_is_the_same(tmp_path, capsys):
    path, label = tmp_path / "t.parquet", np.arange(60) % 2
    given = pa.array((label == 1).tolist())
    pq.write_table(pa.table({"label": label, "predicted": given, "group": ["a", "b", "b"] * 20}), path)
    assert call("--predictions", path, "--out", tmp_path / "out", "--json") == 0
    told = json.loads(capsys.readouterr().out)["weaknesses"]
    assert told["worst group by group"]["value"] == 1.0
    assert "parity by group" in told
    pq.write_table(pa.table({"label": label, "predicted": ["yes", "no"] * 30, "group": ["a", "b"] * 30}), path)
    assert call("--predictions", path, "--out", tmp_path / "no") == 3
    assert "occurs among the labels" in capsys.readouterr().err
    pq.write_table(pa.table({"label": label, "predicted": label, "group": [1.0, float("nan")] * 30}), path)
    assert call("--predictions", path, "--out", tmp_path / "no") == 3
    assert "group is empty" in capsys.readouterr().err


def test_a_group_of_one_label_has_no_odds_and_is_named(tmp_path, capsys):
    group, label = np.repeat(["a", "b", "c"], 40), np.tile([0, 1], 60)
    label[80:] = 0
    pq.write_table(pa.table({"label": label, "predicted": label, "group": group}), tmp_path / "t.parquet")
    assert call("--predictions", tmp_path / "t.parquet", "--out", tmp_path / "out", "--json") == 0
    told = json.loads(capsys.readouterr().out)["weaknesses"]
    assert told["odds by group"]["left_out"] == ["c"]
    assert told["parity by group"]["left_out"] == []


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
    for words, part, code in (
        (("--positive", "spma"), "'spma'", 2), (("--least", "99"), "--least", 3), (("--group", "off"), "'off'", 2),
        (("--model", "m"), "leave --model", 2),
    ):  # fmt: skip
        assert call(*flags, *words, "--out", tmp_path / "no") == code
        assert part in capsys.readouterr().err
    path.write_text(json.dumps({"y": "a", "said": "", "of": "x"}) + "\n")
    assert call(*flags, "--out", tmp_path / "no") == 3
    assert "said is empty" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
