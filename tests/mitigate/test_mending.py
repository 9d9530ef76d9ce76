"""`uimjax edit`, `uimjax mitigate` of the reader's own model: from a trace to an edit, controls, a new checkpoint."""

import json
import shutil

import jax
import numpy as np
import pytest

import uimjax as uj
from tests.answers.test_command import LINE, lines
from tests.pretrained.folders import write
from uimjax import cli, training
from uimjax.corpora.preparing import prepare
from uimjax.pretrained.words import need_tokenizer
from uimjax.store import digest_tree, read_json, write_json
from uimjax.workflow import mending

FLAGS = ("--learning_rate", "1e-3", "--steps", "20", "--heal_steps", "20", "--batch_size", "4", "--retain_size", "8")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trace of a model that says what documents 17 and 33 say."""
    folder, rng = tmp_path_factory.mktemp("mended"), np.random.default_rng(0)
    start = uj.initial(write(folder / "start", "llama", words=61, num_hidden_layers=1))
    texts = [" ".join(f"w{k}" for k in rng.integers(3, 40, 30)) for _ in range(60)]
    texts[17] = "w41 w42 w43 w44 w45 w46 w47 w48 " + texts[17]
    texts[33] = texts[17] + " w4"
    corpus = lines(folder / "corpus.jsonl", [{"text": t, "id": f"d{k}"} for k, t in enumerate(texts)])
    queries = lines(folder / "failures.jsonl", [LINE])
    rows = prepare([corpus], need_tokenizer(start.tokenizer, start.folder), folder / "rows", length=16).rows
    recipe = uj.Recipe(epochs=20, batch_size=16, learning_rate=1e-2, seed=0)
    uj.save(start, folder / "model", training.fit(start.task, start.params, rows, recipe).params)
    given = {"model": folder / "model", "corpus": corpus, "queries": queries, "length": 16, "id_column": "id", "k": 4,
             "out": folder / "trace", "sketch_rank": 4, "null": 0, "method": "trackstar"}  # fmt: skip
    assert call("trace", *(part for name, value in given.items() for part in (f"--{name}", str(value)))) == 0
    return folder / "trace"


def call(*words):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    return ended.value.code


@pytest.fixture
def edited(run, tmp_path):
    """The trace with an edit of the two documents that say it."""
    at = tmp_path / "trace"
    shutil.copytree(run, at)
    assert call("edit", at, "--top", "1") == 0
    return at


def test_an_edit_names_the_documents_and_their_copies(edited, capsys):
    assert read_json(edited / "edit.json")["documents"] == ["d17", "d33"]
    capsys.readouterr()
    assert call("edit", edited, "--top", "1") == 0
    assert capsys.readouterr().out.startswith("d17\nd33\n2 documents")
    assert call("edit", edited, "--top", "2", "--failure", "0", "--out", edited / "two.json", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["documents"]) == 3
    assert call("edit", edited, "--top", "1", "--copies", "--out", edited / "copies.json", "--json") == 0
    once = json.loads(capsys.readouterr().out)["documents"]
    assert len(once) == 1
    assert once[0] in ("d17", "d33"), "the other one stays"


@pytest.mark.parametrize("method", ["npo", "drop", "downweight", "rmu"])
def test_a_mitigation_beats_its_controls_and_leaves_the_model_alone(edited, tmp_path, capsys, method):
    source = read_json(edited / "answers.json")["config"]["model"]
    before = digest_tree(uj.load(source).params)
    capsys.readouterr()
    code = call("mitigate", edited, "--method", method, "--out", tmp_path / "out", "--json", "--epochs", "6", *FLAGS)
    assert code == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["after"]) == {"traced", "ranked", "random"}
    assert all(len(each) == 3 for each in told["after"].values())
    model = uj.load(source)
    assert digest_tree(model.params) == before
    made = uj.load(tmp_path / "out" / "model")
    assert digest_tree(made.params) != before
    assert jax.tree.structure(made.params) == jax.tree.structure(model.params)
    change = {arm: np.mean(values) for arm, values in told["change"].items()}
    if method == "npo":
        assert change["traced"] < min(0, change["random"])
    assert told["says"].split(":")[0] in ("mended", "not fixed", "no verdict")
    assert read_json(tmp_path / "out" / "mended.json")["edit"]["rows"] == told["edit"]["rows"] >= 4


def test_counterfactuals_make_the_model_indifferent_to_what_was_swapped(edited, tmp_path, capsys):
    """The model says w44 after w41 w42 w43; with w44 and w10 in each other's place it is told both."""
    capsys.readouterr()
    flags = (
        "--method",
        "cda",
        "--swap",
        "w44=w10",
        "--out",
        tmp_path / "out",
        "--seeds",
        "1",
        "--no-controls",
        "--json",
    )
    assert call("mitigate", edited, *flags, "--json", *FLAGS, "--gamma", "1.0", "--most", "10") == 0
    assert json.loads(capsys.readouterr().out)["edit"]["rows"] >= 4
    source = read_json(edited / "answers.json")["config"]["model"]
    told = []
    for folder in (source, tmp_path / "out" / "model"):
        model = uj.load(folder)
        ids = [model.tokenizer.encode(w, add_special_tokens=False).ids[0] for w in ("w41", "w42", "w43", "w44", "w10")]
        row = {"tokens": np.array(ids[:3] + [0], np.int32), "counted": np.ones(4, np.float32)}
        z = np.asarray(model.task.outputs(model.params, row))[2]
        told.append(z[ids[3]] - z[ids[4]])
    assert told[0] > 4
    assert told[1] < told[0] - 2


def test_a_mitigation_is_asked_in_other_words_and_trained_again(edited, tmp_path, capsys):
    other = lines(tmp_path / "other.jsonl", [LINE | {"prompt": "w9 " + LINE["prompt"]}])
    flags = (
        "--out",
        tmp_path / "out",
        "--seeds",
        "1",
        "--no-controls",
        "--reworded",
        other,
        "--relearn",
        "6",
        "--json",
    )
    capsys.readouterr()
    assert call("mitigate", edited, *flags, *FLAGS) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["before"]["reworded"]) == len(told["after"]["traced"][0]["reworded"]) == 1
    assert "; in other words " in told["says"]
    again = told["relearned"]["failures"]
    assert told["relearned"]["steps"] == 6
    after, start = told["after"]["traced"][0]["failures"][0], told["before"]["failures"][0]
    assert after < again["edited"][0], "the documents that say it say it again"
    assert again["edited"][0] > again["others"][0]
    assert start > after


def test_what_a_verdict_leaves_open_is_said():
    before = {"failures": [2.0], "reworded": [2.0]}
    after = [{"failures": [-2.0], "reworded": [1.5]}]
    again = {"steps": 9, "failures": {"edited": [1.0], "others": [0.5]}}
    assert mending.remarks(before, after, again) == (
        "; hidden, not removed: 62% of it comes back after 9 steps on rows that have nothing to do with it"
        "; in other words only by -0.50"
    )
    again["failures"]["others"] = [-1.9]
    assert "; 9 steps on half of the edited rows bring 75% of it back" in mending.remarks(before, after, again)
    assert mending.remarks({"failures": [2.0]}, [{"failures": [-2.0]}], {}) == ""
    assert mending.remarks({"failures": [2.0]}, [{"failures": [2.5]}], again) == "", "nothing was mended"


def test_private_fine_tuning_is_a_mitigation_too(edited, tmp_path, capsys):
    capsys.readouterr()
    flags = ("--method", "private", "--epsilon", "20", "--out", tmp_path / "out", "--seeds", "1", "--no-controls")
    assert call("mitigate", edited, *flags, "--json", *FLAGS) == 0
    told = json.loads(capsys.readouterr().out)
    assert np.isfinite(told["after"]["traced"][0]["clean_loss"])
    assert told["privacy"]["epsilon"] == pytest.approx(20, rel=1e-2)
    assert 0 < told["privacy"]["delta"] < 0.01
    assert int((tmp_path / "out" / "steps" / "traced-0.seed").read_text()) > 2**32, "nobody guesses it"


def test_one_seed_or_no_controls_give_no_verdict(edited, tmp_path, capsys):
    capsys.readouterr()
    assert call("mitigate", edited, "--out", tmp_path / "out", "--no-controls", "--seeds", "1", *FLAGS) == 0
    told = capsys.readouterr().out
    assert "no verdict without controls and three seeds" in told
    assert "random rows" not in told
    assert call("mitigate", tmp_path / "out", "--out", tmp_path / "out", "--json") == 0, "its folder replays it"
    assert list(json.loads(capsys.readouterr().out)["after"]) == ["traced"]


def test_what_cannot_be_carried_out_is_refused(edited, run, tmp_path, capsys):
    capsys.readouterr()

    def refused(*words):
        code = call("mitigate", *words)
        return code, capsys.readouterr().err

    assert refused(run, "--out", tmp_path / "a")[1].count("uimjax edit")
    write_json(edited / "edit.json", {"why": "by hand", "documents": ["d17", "d171"]})
    code, said = refused(edited, "--out", tmp_path / "b")
    assert (code, "'d171'" in said, "d17" in said) == (2, True, True)
    write_json(edited / "edit.json", {"why": "by hand", "documents": [f"d{k}" for k in range(60)]})
    assert "nothing would be left" in refused(edited, "--out", tmp_path / "b")[1]
    write_json(edited / "edit.json", {"documents": "d17"})
    assert "names of documents" in refused(edited, "--out", tmp_path / "b")[1]
    write_json(edited / "edit.json", {"documents": ["d17"]})
    assert "'nop'" in refused(edited, "--method", "nop", "--out", tmp_path / "b")[1]
    assert "swap is for cda, dpo" in refused(edited, "--swap", "a=b", "--out", tmp_path / "b")[1]
    for words in (("--method", "cda"), ("--method", "cda", "--swap", "he")):
        assert "he=she" in refused(edited, *words, "--out", tmp_path / "b")[1]
    assert (
        "nothing would change places"
        in refused(edited, "--method", "cda", "--swap", "zzz=yyy", "--out", tmp_path / "c", *FLAGS)[1]
    )
    assert "another answer" in refused(edited, "--method", "dpo", "--out", tmp_path / "b")[1]
    model = read_json(edited / "answers.json")["config"]["model"]
    assert "holds what came in" in refused(edited, "--out", model)[1]
    assert not (tmp_path / "b").exists()
    (tmp_path / "mine" / "model").mkdir(parents=True)
    assert "no run of uimjax" in refused(edited, "--out", tmp_path / "mine")[1]
    assert call("edit", edited, "--failure", "7") == 2
    assert "failure 7" in capsys.readouterr().err
