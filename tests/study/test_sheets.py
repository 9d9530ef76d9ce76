"""Sheets and back: blinding, balance, attention, other people's files; the effect that simulated raters have."""

import csv
import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.test_page import HOSTILE
from uimjax import cli
from uimjax.errors import (
    CorruptError,
    DataError,
    MalformedRowError,
    MissingFileError,
    OutputError,
    UnknownNameError,
    UsageError,
)
from uimjax.study import sheets
from uimjax.study.outputs import Output, human_of, read_outputs, write_outputs
from uimjax.study.sheets import Design
from uimjax.workflow import studying

NIGHTLY = bool(os.environ.get("UIMJAX_NIGHTLY"))


def some(count=20, arms=("before", "traced")):
    return [Output(f"q{k}", f"Question {k}?", "", {arm: f"{arm} says {k}" for arm in arms}) for k in range(count)]


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    write_outputs(folder / "outputs.jsonl", some())
    return folder


def answered(study, sheet, choose, group="", rater=None):
    """A filled sheet: `choose(texts by side)` for each row that is no check, checks met."""
    with (study / "sheets" / f"{sheet}.csv").open(encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        line["group"] = group
        sides = {k: line[k] for k in ("A", "B", "output") if k in line}
        text = next(iter(sides.values()))
        line["answer"] = text.split()[2] if text.startswith("Please") else choose(sides)
        line["rater"] = rater or line["rater"]
    path = study / "filled" / f"{sheet}.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, list(lines[0]))
        out.writeheader()
        out.writerows(lines)
    return path


def side_of(sides, word):
    return next(side for side, text in sides.items() if text.startswith(word))


def test_nothing_on_a_sheet_tells_the_arms(source, tmp_path):
    out = tmp_path / "study"
    write_outputs(source / "outputs.jsonl", [one._replace(texts={"before": "yes", "traced": "no"}) for one in some()])
    studying.export(source, out, Design(raters=4))
    words = ("before", "traced", "q1", "q19")
    for path in (out / "sheets").glob("rater-*"):
        text = path.read_text(encoding="utf-8-sig").split("</header>")[-1].split("<script>")[0]
        assert not any(word in text for word in words), path
    assert not any(word in (out / "study.json").read_text() for word in ("q19", "seed", "run/outputs"))
    key = json.loads((out / "key" / "key.json").read_text())
    assert {row["id"] for row in key["rows"].values() if "id" in row} == {f"q{k}" for k in range(20)}
    one, two = (studying.export(source, tmp_path / name, Design())["study"] for name in ("a", "b"))
    assert one != two, "sides are drawn anew, and cannot be guessed"


def test_sides_and_order_are_drawn_and_outputs_are_shared_out():
    made = sheets.make(Design(raters=30, per_rater=8, checks=2), some(), seed=1)
    first = [
        made.key[row.token]["arms"][0] for rows in made.rows.values() for row in rows if "arms" in made.key[row.token]
    ]
    assert 0.4 < np.mean([arm == "before" for arm in first]) < 0.6
    times = {}
    for rows in made.rows.values():
        assert len(rows) == 10
        assert sum("check" in made.key[row.token] for row in rows) == 2
        for row in rows:
            if "id" in made.key[row.token]:
                times[made.key[row.token]["id"]] = times.get(made.key[row.token]["id"], 0) + 1
    assert set(times.values()) == {12}, "each of twenty outputs as often as another"
    orders = {tuple(made.key[row.token].get("id") for row in rows) for rows in made.rows.values()}
    assert len(orders) == 30
    likert = sheets.make(Design("likert", raters=2), some(), seed=1)
    assert len(likert.rows["rater-01"]) == 43
    three = sheets.make(
        Design(arms=("before", "traced", "random"), raters=1), some(5, ("before", "traced", "random")), 1
    )
    assert len(three.rows["rater-01"]) == 18


def test_a_study_from_export_to_import(source, tmp_path):
    out, rng = tmp_path / "study", np.random.default_rng(0)
    studying.export(source, out, Design(raters=12, groups=("expert", "lay")))
    for k in range(12):
        expert = k < 6
        sees = 0.95 if expert else 0.6  # experts see it, others hardly

        def likes(sides, sees=sees):
            return side_of(sides, "traced" if rng.random() < sees else "before")

        answered(out, f"rater-{k + 1:02d}", likes, "expert" if expert else "lay")
    found = studying.collect(out, [out / "filled"])
    its = found["effects"]["traced"]
    assert its["says"] == "better"
    assert 0.65 < its["value"] < 0.85
    assert found["groups"]["expert"]["effects"]["traced"]["value"] > 0.85
    assert found["groups"]["lay"]["effects"]["traced"]["high"] > 0.5
    assert found["groups"]["expert"]["effects"]["traced"]["from_others_low"] > 0, "they disagree, and that is said"
    assert found["left_out"] == []
    assert set(found["strengths"]) == {"before", "traced"}
    assert found["split"], "outputs on which they disagree"
    table = pq.read_table(out / "ratings.parquet").to_pylist()
    assert len(table) == 240
    likes = np.mean([r["value"] == (r["arms"] == "traced > before") for r in table])
    assert likes == pytest.approx(its["value"], abs=0.01)
    assert "expert" in (out / "report.html").read_text()
    human = human_of(source)
    assert human["effects"]["traced"]["value"] == its["value"]
    write_outputs(source / "outputs.jsonl", some(19))
    assert human_of(source) is None, "of other outputs nothing was judged"
    again = studying.collect(out, [out / "filled"])
    assert again["attached"].startswith("not put beside")


def test_a_likert_study(source, tmp_path):
    out, rng = tmp_path / "study", np.random.default_rng(0)
    studying.export(source, out, Design("likert", raters=6))
    for k in range(6):
        rate = lambda sides: str(np.clip(round(3 + sides["output"].startswith("traced") + rng.normal(0, 0.8)), 1, 5))  # noqa: E731, E501
        answered(out, f"rater-{k + 1:02d}", rate)
    its = studying.collect(out, [out / "filled"])["effects"]["traced"]
    assert its["low"] < 1 < its["high"]
    assert its["says"] == "better"
    assert its["mixed_model"]["value"] == pytest.approx(its["value"], abs=1e-6)


def test_who_does_not_read_is_left_out(source, tmp_path):
    out = tmp_path / "study"
    studying.export(source, out, Design(raters=4))
    for k in range(4):
        path = answered(out, f"rater-{k + 1:02d}", lambda sides: side_of(sides, "traced"))
        if k == 3:
            lines = path.read_text().replace("Please choose A here.", "x").replace("Please choose B here.", "x")
            path.write_text(lines)
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            for row in rows:
                row["answer"] = "tie"
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
    found = studying.collect(out, [out / "filled"])
    assert found["left_out"] == ["rater-04"]
    assert found["raters"] == 3
    assert found["effects"]["traced"]["value"] == 1.0
    assert found["with_all"]["traced"]["value"] == pytest.approx(0.875), "and what it would be with them is told"


def test_the_effect_of_simulated_raters_is_recovered(tmp_path):
    """Export, filled sheets, import: in 93 of 100 studies at least the known effect lies in the interval (nightly; five
    of six else, as often as 98 in 100)."""
    studies, hits, errors = (100 if NIGHTLY else 6), 0, []
    source = tmp_path / "outputs.jsonl"
    write_outputs(source, some(24))
    for seed in range(studies):
        rng = np.random.default_rng(seed)
        out = tmp_path / f"s{seed}"
        studying.export(source, out, Design(raters=10, checks=1))
        middle, spread = 0.7, 0.7
        of_item = {f"traced says {k}": rng.normal(0, spread) for k in range(24)}
        for k in range(10):
            mine = rng.normal(0, spread)

            def choose(sides, mine=mine, rng=rng, of_item=of_item, middle=middle):
                side = side_of(sides, "traced")
                likes = rng.random() < 1 / (1 + np.exp(-(middle + mine + of_item[sides[side]])))
                return side if likes else side_of(sides, "before")

            answered(out, f"rater-{k + 1:02d}", choose)
        its = studying.collect(out, [out / "filled"], attach=False)["effects"]["traced"]
        z = np.random.default_rng(1).normal(middle, np.hypot(spread, spread), 200_000)
        true = (1 / (1 + np.exp(-z))).mean()
        hits += its["low"] <= true <= its["high"]
        errors.append(its["value"] - true)
    assert hits >= (93 if NIGHTLY else 5), f"{hits} of {studies}"
    assert abs(np.mean(errors)) < 4 * 0.08 / studies**0.5, "no bias"


def test_a_table_can_be_filled_by_itself(source, tmp_path):
    out = tmp_path / "study"
    studying.export(source, out, Design(raters=1, groups=("expert",)))
    path = answered(out, "rater-01", lambda _: "Neither", "EXPERT")
    with path.open(newline="") as file:
        (first, *_) = csv.DictReader(file)
    assert first["question"] == "Which of the two answers is better?"
    assert first["choices"] == "A / B / neither"
    assert "whom to write to" in (out / "sheets" / "READ-FIRST.txt").read_text()
    text = path.read_text().replace(",", ";")  # as spreadsheets save it where a comma is a decimal point
    path.write_text(text)
    found = studying.collect(out, [path])
    assert found["effects"]["traced"]["value"] == 0.5
    assert list(found["groups"]) == ["expert"]
    answered(out, "rater-01", lambda _: "A", "hacker")
    with pytest.raises(UnknownNameError, match=r"group in .*'hacker'"):
        studying.collect(out, [path])


def test_who_skips_the_checks_is_left_out(source, tmp_path):
    out = tmp_path / "study"
    studying.export(source, out, Design(raters=2))
    paths = [answered(out, f"rater-0{k}", lambda sides: side_of(sides, "traced")) for k in (1, 2)]
    with paths[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["answer"] = "" if row["A"].startswith("Please") else row["answer"]
    with paths[1].open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert studying.collect(out, paths)["left_out"] == ["rater-02"]


def test_remarks_stay_with_what_they_are_about(source, tmp_path):
    out = tmp_path / "study"
    studying.export(source, out, Design("likert", raters=2, checks=0))
    paths = []
    for k in (1, 2):
        path = answered(out, f"rater-0{k}", lambda _: "3")
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            row["comment"] = f"about {row['output'].split()[0]}"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        paths.append(path)
    studying.collect(out, paths)
    table = pq.read_table(out / "ratings.parquet").to_pylist()
    assert all(row["comment"] == f"about {row['arms']}" for row in table)


def test_no_token_is_a_number_to_a_spreadsheet():
    made = sheets.make(Design(raters=40), some(), seed=0)
    assert all(token.startswith("t") for token in made.key)


def test_consent_is_asked_for(source, tmp_path):
    bad = tmp_path / "c.txt"
    bad.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is no text in UTF-8"):
        studying.export(source, tmp_path / "s", Design(), consent=str(bad))
    bad.write_text(" ")
    with pytest.raises(DataError, match="is empty; the text that raters agree to"):
        studying.export(source, tmp_path / "s", Design(), consent=str(bad))
    studying.export(source, tmp_path / "s", Design(raters=1))
    sheet = tmp_path / "rater-01.json"
    sheet.write_text(json.dumps({"rater": "rater-01", "answers": {}, "consent": False}))
    with pytest.raises(DataError, match="rater-01 did not agree to the text of consent"):
        studying.collect(tmp_path / "s", [sheet])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["export", "run", "--kind", "likert", "--no-ties"], "--no-ties is of pairs"),
        (["export", "run", "--scale", "7"], "--scale is of a Likert study"),
        (["export", "run", "--asks-worse"], "goes with a --question of your own"),
        (["power", "--effect", "0.1", "--noise", "2"], "--noise is of the other kind of study"),
        (["power", "--effect", "1", "--kind", "likert", "--ties", "0.1"], "--ties is of the other kind"),
        (["import", "v.csv", "--votes", "a", "--no-attach"], "--votes is of a table alone"),
    ],
)
def test_what_would_change_nothing_is_refused(source, monkeypatch, capsys, words, says):
    monkeypatch.chdir(source.parent)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["study", *words])
    assert says in capsys.readouterr().err


def test_secrets_are_masked(source, tmp_path):
    (source / "trace.json").write_text(json.dumps({"sensitive": []}))
    other = source.parent / "secret"  # another failure of the same run, and of the same model
    other.mkdir()
    (other / "trace.json").write_text(json.dumps({"sensitive": ["says 3"]}))
    studying.export(source, tmp_path / "a", Design(raters=1))
    studying.export(source, tmp_path / "b", Design(raters=1), reveal=True)
    hidden, clear = ((tmp_path / name / "sheets" / "rater-01.csv").read_text(encoding="utf-8-sig") for name in "ab")
    assert "says 3" not in hidden
    assert "says 3" in clear


def test_hostile_outputs_in_a_table(tmp_path):
    texts = [*HOSTILE, "=1+1", "+cmd|' /C calc'!A0", "@SUM(1)", "-2"]
    made = [Output(f"{k}", text, "", {"before": text, "traced": "fine"}) for k, text in enumerate(texts)]
    write_outputs(tmp_path / "o.jsonl", made)
    studying.export(tmp_path / "o.jsonl", tmp_path / "s", Design(raters=1))
    with (tmp_path / "s" / "sheets" / "rater-01.csv").open(encoding="utf-8-sig", newline="") as file:
        for line in csv.reader(file):
            assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in line)
    page = (tmp_path / "s" / "sheets" / "rater-01.html").read_text()
    assert page.count("<script") == 1
    assert "\x1b" not in page


def test_what_is_asked_wrongly(source, tmp_path):
    out = tmp_path / "study"
    with pytest.raises(UnknownNameError, match=r"arm of .*outputs.jsonl, line 1 'trased'. Did you mean 'traced'"):
        studying.export(source, out, Design(arms=("before", "trased")))
    with pytest.raises(UsageError, match="--per-rater 30, and there are 20 outputs"):
        studying.export(source, out, Design(per_rater=30))
    with pytest.raises(UsageError, match="two different ones"):
        studying.export(source, out, Design(arms=("before", "before")))
    with pytest.raises(MissingFileError, match="--consent takes a text file"):
        studying.export(source, out, Design(), consent=str(tmp_path / "none"))
    with pytest.raises(MissingFileError, match="A run that was mended has one"):
        studying.export(tmp_path / "nowhere", out, Design())
    assert not out.exists()
    studying.export(source, out, Design(raters=2))
    with pytest.raises(OutputError, match="holds a study, whose sheets may be out"):
        studying.export(source, out, Design())
    with pytest.raises(MissingFileError, match="begins a study"):
        studying.collect(tmp_path / "no", [])
    with pytest.raises(MissingFileError, match="no filled sheet arrived"):
        studying.collect(out, [])
    path = answered(out, "rater-01", lambda _: "left")
    with pytest.raises(MalformedRowError, match=r"line \d+.*answer 'left'; one of A, B, tie was wanted"):
        studying.collect(out, [path])
    path = answered(out, "rater-01", lambda _: "a")
    with pytest.raises(DataError, match="two sheets of rater-01"):
        studying.collect(out, [path, path])
    path = answered(out, "rater-01", lambda _: "A", rater="rater-02")
    with pytest.raises(DataError, match="has a row of rater-01's"):
        studying.collect(out, [path])
    studying.export(source, tmp_path / "other", Design(raters=1))
    with pytest.raises(CorruptError, match="is the key of study"):
        studying.collect(out, [path], tmp_path / "other" / "key" / "key.json")
    path = answered(tmp_path / "other", "rater-01", lambda _: "A")
    with pytest.raises(DataError, match="which is not in the key: of another study"):
        studying.collect(out, [path])
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    with pytest.raises(DataError, match="is no sheet that the form saved"):
        studying.collect(out, [bad])
    wrong = {
        '{"texts": {"a": "x"}}': "texts of two arms",
        '{"texts": {"a": "x", "b": "y"}, "image": "http:x"}': "image: data:image/png",
        '{"prompt": 3, "texts": {"a": "x", "b": "y"}}': "prompt is a int",
    }
    for line, says in wrong.items():
        bad.write_text(line)
        with pytest.raises(MalformedRowError, match=says):
            read_outputs(bad)


def test_the_commands(source, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def said(*words):
        with pytest.raises(SystemExit, match="0"):
            cli.main(["study", *words])
        return capsys.readouterr().out

    out = said("export", str(source), "--raters", "3", "--out", "s")
    assert "3 sheets of 20 outputs in s/sheets; the key is in s/key: keep it apart." in out
    for k in range(3):
        answered(tmp_path / "s", f"rater-{k + 1:02d}", lambda sides: side_of(sides, "traced"))
    out = said("import", "s")
    assert "traced against before: preferred in 100%" in out
    assert json.loads(said("import", "s", "--json"))["effects"]["traced"]["value"] == 1.0
    out = said("power", "--effect", "0.3", "--raters", "8", "--items", "20", "--draws", "20")
    assert "The fewest ratings for 80%: 8 raters, 20 outputs each." in out
    (tmp_path / "v.csv").write_text("a,b\n3,0\n2,1\n0,3\n")
    assert "Krippendorff's alpha" in said("import", "v.csv", "--votes", "a", "b")
