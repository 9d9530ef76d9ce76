"""The corpus card from files: what it says, resuming, processes, the dataset card, and what it refuses."""

import builtins
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import DatasetCard

from tests.conftest import command_line
from tests.test_page import HOSTILE
from uimjax import cli
from uimjax.census import counting, wordy
from uimjax.config import CensusConfig
from uimjax.errors import DataError, MissingFileError, OutputError, UnknownNameError, UsageError
from uimjax.workflow import surveying
from uimjax.workflow.surveying import survey

GERMAN = "Der kleine Hund lief am Morgen durch den Garten und suchte nach seinem Ball unter den Bäumen. "
ENGLISH = "The small dog ran through the garden in the morning and looked for its ball under the trees. "


def rows(rng, count=60):
    made = []
    for k in range(count):
        words = " ".join(f"w{n}" for n in rng.integers(900, size=30))
        made.append({"id": f"d{k}", "source": f"s{k % 2}", "text": (GERMAN if k % 4 == 0 else ENGLISH) * 2 + words})
    made[7]["text"] += " write to ann@example.org"
    made += [dict(made[3], id="copy"), dict(made[5], id="near", text=made[5]["text"].replace(" small", " tiny", 1))]
    return made


def written(path, lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def corpus(tmp_path, rng):
    return written(tmp_path / "corpus.jsonl", [*rows(rng), "{broken", {"id": "none", "text": " "}])


def without(document, *names):
    return {key: its for key, its in document.items() if key not in names}


def test_what_a_card_says(corpus, tmp_path):
    lines = [json.loads(line) for line in Path(corpus).read_text().splitlines() if line.startswith('{"id": "d')]
    items = [{"text": lines[1]["text"]}, {"text": "of quite another kind it is here " * 3}]
    evaluation = written(tmp_path / "eval.jsonl", items)
    config = CensusConfig(data=(corpus,), id_column="id", evaluation=(evaluation,), name="A | <b>")
    found = survey(config, tmp_path / "o")
    assert found["documents"] == 62
    assert {row["source"]: row["documents"] for row in found["sources"]} == {"s0": 30, "s1": 32}
    assert sum(row["share"] for row in found["sources"]) == pytest.approx(1)
    assert (found["copies"]["exact"], found["copies"]["repeat"]) == (1, 2)
    share = {row["language"]: row["share"] for row in found["languages"]["languages"]}
    assert share["de"] == pytest.approx(15 / 62)
    assert share["en"] == pytest.approx(47 / 62)
    assert [(row["kind"], row["documents"]) for row in found["personal"]] == [("email", 1)]
    assert found["contamination"] == [{"file": evaluation, "items": 2, "contaminated": 1, "touched": 0, "too_short": 0}]
    assert {why.split(":")[0]: its["rows"] for why, its in found["skipped"].items()} == {"malformed": 1, "empty": 1}
    assert found["skipped"]["empty"]["first"].endswith(":64")
    table = pq.read_table(tmp_path / "o" / "documents.parquet").to_pylist()
    assert {row["id"]: row["copy_of"] for row in table if row["copy_of"]} == {"copy": "d3", "near": "d5"}
    assert [row["id"] for row in pq.read_table(tmp_path / "o" / "spans.parquet").to_pylist()] == ["d7"]
    assert not (tmp_path / "o" / "parts").exists()
    card = DatasetCard.load(tmp_path / "o" / "README.md")
    assert card.data.language == ["en", "de"]
    assert card.data.size_categories == ["n<1K"]
    assert card.data.pretty_name == "A | \uff1cb\uff1e"
    assert "# Dataset Card for A \\| &lt;b&gt;" in card.text


def test_stretches_and_processes_change_nothing(corpus, tmp_path, monkeypatch):
    config = CensusConfig(data=(corpus,), id_column="id", workers=1)
    whole = survey(config, tmp_path / "one")
    monkeypatch.setattr(surveying, "STRETCH", 2000)
    cut = survey(config, tmp_path / "two")
    spread = survey(config.model_copy(update={"workers": 2}), tmp_path / "three")
    assert without(whole, "config") == without(cut, "config") == without(spread, "config")
    tables = [pq.read_table(tmp_path / name / "documents.parquet") for name in ("one", "two", "three")]
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


def test_a_stopped_survey_goes_on(corpus, tmp_path, monkeypatch):
    config = CensusConfig(data=(corpus,), id_column="id", workers=1)
    monkeypatch.setattr(surveying, "STRETCH", 2000)
    whole = survey(config, tmp_path / "whole")
    plain, calls = counting.stretch, []

    def stops(texts, look, path):
        calls.append(path)
        if len(calls) == 4:
            raise KeyboardInterrupt
        plain(texts, look, path)

    monkeypatch.setattr(counting, "stretch", stops)
    with pytest.raises(KeyboardInterrupt):
        survey(config, tmp_path / "stopped")
    done = len(calls)
    monkeypatch.setattr(counting, "stretch", lambda *args: calls.append(args[2]) or plain(*args))
    assert survey(config, tmp_path / "stopped") == whole
    assert calls[done].name == calls[done - 1].name == "000003", "what was finished is not counted again"
    before = len(calls)
    assert survey(config, tmp_path / "stopped") == whole
    assert len(calls) == before, "nothing changed, nothing is counted"
    survey(config.model_copy(update={"near": 0.5}), tmp_path / "stopped")
    assert len(calls) > before


def test_toxicity_and_labels(tmp_path, rng):
    nice, foul = ["lovely", "kind", "warm", "bright"], ["awful", "vile", "filthy", "rotten"]
    say = lambda words: " ".join(words[k] for k in rng.integers(4, size=5)) + f" thing {rng.integers(50)}"  # noqa: E731
    labelled = [{"text": say(foul if k % 3 == 0 else nice), "label": int(k % 3 == 0)} for k in range(300)]
    lines = [{"text": say(foul if k % 4 == 0 else nice), "kind": "bad" if k % 4 == 0 else "good"} for k in range(400)]
    for its, step in ((labelled, 30), (lines, 40)):
        for one in its[::step]:
            one["text"] = say(nice)  # a tenth of the toxic ones cannot be told by their words
    for k in range(40):
        lines[k]["kind"] = "good" if lines[k]["kind"] == "bad" else "bad"  # 40 wrong labels
    data, toxicity = written(tmp_path / "c.jsonl", lines), written(tmp_path / "t.jsonl", labelled)
    config = CensusConfig(data=(data,), toxicity=toxicity, label_column="kind", languages=False)
    found = survey(config, tmp_path / "o")
    toxic = found["toxicity"]
    assert toxic["tpr"] == pytest.approx(0.9, abs=0.05)
    assert toxic["unlike"] < wordy.UNLIKE, "both are of one kind"
    assert toxic["low"] <= 0.25 <= toxic["high"], toxic
    assert toxic["high"] - toxic["low"] < 0.2
    told = [any(word in one["text"] for word in foul) for one in lines]
    pairs = enumerate(zip(lines, told, strict=True), start=1)
    wrong = {f"c.jsonl:{k}" for k, (one, foul_words) in pairs if (one["kind"] == "bad") != foul_words}
    assert found["labels"]["wrong"] == pytest.approx(len(wrong), abs=8)
    named = {row["id"] for row in pq.read_table(tmp_path / "o" / "labels.parquet").to_pylist()}
    assert len(named & wrong) > 0.8 * len(wrong)
    assert len(named & wrong) > 0.75 * len(named), "of documents drawn blindly 12%"
    other = written(tmp_path / "u.jsonl", [one | {"text": f"elsewhere {one['text']}"} for one in labelled])
    unlike = survey(CensusConfig(data=(data,), toxicity=other, languages=False), tmp_path / "u")["toxicity"]
    assert unlike["unlike"] > 0.95
    assert unlike["estimate"] is None, "of texts of another kind nothing can be said"
    config = CensusConfig(data=(data,), toxicity=data, toxicity_label="kind", languages=False)
    with pytest.raises(UsageError, match="labels bad, good; which of them are toxic"):
        survey(config, tmp_path / "p")


def test_nothing_of_others_is_removed_or_written_over(tmp_path, rng):
    folder = tmp_path / "data"
    (folder / "parts").mkdir(parents=True)
    path = written(folder / "parts" / "a.jsonl", rows(rng))
    with pytest.raises(OutputError, match="which is read; choose another folder"):
        survey(CensusConfig(data=(path,)), folder)
    out = tmp_path / "out"
    (out / "parts").mkdir(parents=True)
    (out / "parts" / "mine").write_text("x")
    survey(CensusConfig(data=(path,)), out)
    assert (out / "parts" / "mine").read_text() == "x"
    other = tmp_path / "other"
    other.mkdir()
    (other / "README.md").write_text("mine")
    with pytest.raises(OutputError, match="that is not a card's"):
        survey(CensusConfig(data=(path,)), other)
    assert (other / "README.md").read_text() == "mine"


def test_a_changed_evaluation_set_is_looked_at_again(corpus, tmp_path):
    (tmp_path / "ev").mkdir()
    lines = [json.loads(line) for line in Path(corpus).read_text().splitlines() if line.startswith('{"id": "d')]
    config = CensusConfig(data=(corpus,), id_column="id", evaluation=(str(tmp_path / "ev"),))
    written(tmp_path / "ev" / "a.jsonl", [{"text": "of quite another kind it is here " * 3}])
    assert survey(config, tmp_path / "o")["contamination"][0]["contaminated"] == 0
    written(tmp_path / "ev" / "a.jsonl", [{"text": lines[1]["text"]}])
    assert survey(config, tmp_path / "o")["contamination"][0]["contaminated"] == 1


def test_a_card_without_its_page_is_made_again(corpus, tmp_path, monkeypatch):
    config = CensusConfig(data=(corpus,), id_column="id")

    def fails(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(surveying.datacard, "write", fails)
        with pytest.raises(KeyboardInterrupt):
            survey(config, tmp_path / "o")
    survey(config, tmp_path / "o")
    assert {"report.html", "README.md", "card.json"} <= {path.name for path in (tmp_path / "o").iterdir()}


def test_rare_classes_and_blank_labels(tmp_path, rng):
    words = {"a": ["red", "green"], "b": ["one", "two"], "c": ["x"]}
    lines = [{"text": " ".join(rng.choice(words[kind], size=4)) + f" w{k}", "kind": kind}
             for kind, n in (("a", 40), ("b", 40), ("c", 3)) for k in range(n)]  # fmt: skip
    lines += [{"text": f"blank {k}", "kind": value} for k, value in enumerate(["", " ", None])]
    config = CensusConfig(data=(written(tmp_path / "c.jsonl", lines),), label_column="kind", languages=False, near=0)
    found = survey(config, tmp_path / "o")["labels"]
    assert found["classes"] == {"a": 40, "b": 40}
    assert found["rare"] == ["c"]
    one = CensusConfig(data=(written(tmp_path / "d.jsonl", lines[:40]),), label_column="kind", languages=False, near=0)
    assert "two at least were wanted" in survey(one, tmp_path / "p")["labels"]["why"]
    assert "Not told: 1 classes" in (tmp_path / "p" / "report.html").read_text()


def test_hostile_text_stays_text(tmp_path):
    lines = [{"text": text + " and so on", "source": text, "id": text} for text in HOSTILE[:40]]
    found = survey(CensusConfig(data=(written(tmp_path / "h.jsonl", lines),), name=HOSTILE[0]), tmp_path / "o")
    assert found["documents"] == len(HOSTILE[:40])
    page = (tmp_path / "o" / "report.html").read_text()
    card = (tmp_path / "o" / "README.md").read_text()
    assert not re.search(r"<(script|iframe|img|object|link|base)\b", page)
    assert not re.search(r"<(script|iframe|img)\b", card)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", page + card)
    assert yaml.safe_load(card.split("---")[1])["pretty_name"]


def test_what_is_asked_wrongly(corpus, tmp_path, monkeypatch):
    with pytest.raises(MissingFileError, match=r"none.jsonl is not there"):
        survey(CensusConfig(data=(str(tmp_path / "none.jsonl"),)), tmp_path / "o")
    with pytest.raises(UnknownNameError, match=r"column of .*'txet'. Did you mean 'text'"):
        survey(CensusConfig(data=(corpus,), text_column="txet"), tmp_path / "o")
    with pytest.raises(DataError, match=r"no document; 2 rows empty, first .*e.jsonl:1"):
        survey(CensusConfig(data=(written(tmp_path / "e.jsonl", [{"text": ""}, {"text": " "}]),)), tmp_path / "o")
    config = CensusConfig(data=(corpus,), evaluation=(str(tmp_path / "e.jsonl"),))
    with pytest.raises(DataError, match="holds no item with text in 'text'"):
        survey(config, tmp_path / "o")
    plain = builtins.__import__

    def missing(name, *more):
        if name in ("rensa", "py3langid"):
            raise ImportError(name)
        return plain(name, *more)

    monkeypatch.setattr(builtins, "__import__", missing)
    for choice, what in (({}, "near duplicates take rensa"), ({"near": 0}, "languages take py3langid")):
        with pytest.raises(UsageError, match=what + r": pip install 'uimjax\[text\]'"):
            survey(CensusConfig(data=(corpus,), **choice), tmp_path / "q")
    found = survey(CensusConfig(data=(corpus,), near=0, languages=False), tmp_path / "q")
    assert found["copies"] is None
    assert found["languages"] is None


def test_the_command(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command_line("audit", "--data", corpus, "--id-column", "id", "--json", "--out", "o", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["documents"] == 62
    with pytest.raises(SystemExit, match="0"):
        cli.main(["audit", "o"])
    out = capsys.readouterr().out
    assert "62 documents of 2 sources" in out
    assert "A page: o/report.html; a dataset card: o/README.md" in out
    with pytest.raises(SystemExit, match="2"):
        cli.main(["audit", "--data", corpus, "--model", "m"])
    assert "--data is of a corpus alone" in capsys.readouterr().err
    shutil.rmtree("o")
    np.testing.assert_equal(cli.parser(["new", "census"]).parse_args(["new", "census"]).kind, "census")
