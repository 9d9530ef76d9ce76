"""`uimjax dynamics` in this process: a log becomes a run, the run is read, two are compared, spikes are found."""

import contextlib
import json

import numpy as np
import pytest

import uimjax as uj
from uimjax.cli import parser
from uimjax.commands.dynamics import dynamics
from uimjax.errors import UimError
from uimjax.understand.dynamics import elsewhere

T, N, C = 6, 60, 3


def called(folder, monkeypatch, *args):
    monkeypatch.chdir(folder)
    words = ["dynamics", *args]
    return dynamics(parser(words).parse_args(words), [])


def answer(capsys):
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Examples that are learned, but for the first twelve, whose label is another than what the logits say."""
    at, rng = tmp_path_factory.mktemp("dynamics"), np.random.default_rng(0)
    true, labels = np.arange(N) % C, np.arange(N) % C
    labels[:12] = (true[:12] + 1) % C
    logits = rng.normal(size=(T, N, C)) * 0.3
    logits[:, np.arange(N), true] += np.linspace(0, 4, T)[:, None]
    np.savez(at / "log.npz", logits=logits, labels=labels)
    np.save(at / "logits.npy", logits)
    (at / "labels.txt").write_text("".join(f"{k}\n" for k in labels))
    (at / "bad.txt").write_text("".join(f"{k}\n" for k in range(12)))
    (at / "bad.jsonl").write_text("".join(json.dumps({"id": k}) + "\n" for k in range(12)))
    p = np.exp(logits[-1]) / np.exp(logits[-1]).sum(1, keepdims=True)
    np.save(at / "p.npy", p)
    np.savez(at / "p.npz", probs=p[::-1], ids=np.arange(N)[::-1])
    words = ["dynamics", "import", str(at / "log.npz"), "--out", str(at / "run"), "--json"]
    with (at / "import.json").open("w") as file, contextlib.redirect_stdout(file):
        dynamics(parser(words).parse_args(words), [])
    for seed in range(2):
        table = uj.dynamics.logits_log(logits + rng.normal(size=logits.shape), labels)
        uj.dynamics.write(at / "seeds", table.statistics, run="r", step=5, labels=labels, seed=seed)
    return at


def test_a_log_is_taken_for_what_it_is_and_becomes_the_same_table(folder, monkeypatch, capsys):
    said = json.loads((folder / "import.json").read_text())
    assert (said["kind"], said["guessed"], said["examples"], said["losses"]) == ("logits", True, N, T)
    mine = uj.dynamics.logits_log(folder / "log.npz")
    assert np.array_equal(uj.dynamics.read(folder / "run").scores["aum"].values, mine.scores["aum"].values)
    called(folder, monkeypatch, "import", "logits.npy", "--labels", "labels.txt", "--out", "again", "--run", "mine")
    assert "read as logits (guessed" in capsys.readouterr().out
    again = uj.dynamics.read(folder / "again")
    assert again.metadata["run"] == "mine"
    assert np.array_equal(again.scores["aum"].values, mine.scores["aum"].values)


def test_steps_with_other_names_of_columns_and_cartographys_files(folder, monkeypatch, capsys):
    (folder / "log.csv").write_text("guid,epoch,nll\n" + "".join(f"a{k},{e},{k + e}\n" for e in (0, 1) for k in (0, 1)))
    called(folder, monkeypatch, "import", "log.csv", "--columns", "id=guid", "loss=nll", "--out", "csv", "--json")
    assert answer(capsys)["kind"] == "steps"
    assert uj.dynamics.read(folder / "csv").losses.tolist() == [[0, 1], [1, 2]]
    (folder / "maps").mkdir()
    for epoch in (0, 1):
        rows = [{"guid": f"g{k}", f"logits_epoch_{epoch}": [0.1 * k, 0.5], "gold": k % 2} for k in range(5)]
        (folder / "maps" / f"dynamics_epoch_{epoch}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    called(folder, monkeypatch, "import", "maps", "--out", "carto", "--json")
    assert answer(capsys)["kind"] == "cartography"
    called(folder, monkeypatch, "carto", "--json")
    assert answer(capsys)["most_suspicious"][0]["id"].startswith("g")


def test_a_run_is_read_with_all_that_it_holds(folder, monkeypatch, capsys):
    args = ("--bad", "bad.txt", "--probabilities", "p.npy", "--count", "12", "--export", "ids.jsonl", "--json")
    called(folder, monkeypatch, "run", *args)
    found = answer(capsys)
    assert sorted(row["id"] for row in found["most_suspicious"]) == list(range(12))
    assert sum(found["regions"].values()) == N
    assert sorted(found["clusters"]["ids"][-1]) == list(range(12))
    assert found["detection"]["scores"]["aum"]["auroc"] == 1
    assert found["label_issues"]["flagged_bad"] == found["label_issues"]["flagged"] == 12
    out = folder / "run" / "understood"
    for name in ("data_map", "trajectories", "detection"):
        assert {(out / f"{name}.{e}").exists() for e in ("svg", "csv", "txt")} == {True}
    assert json.loads((out / "dynamics.json").read_text())["regions"] == found["regions"]
    rows = [json.loads(line) for line in (folder / "ids.jsonl").read_text().splitlines()]
    assert [row["aum"] for row in rows] == [row["value"] for row in found["most_suspicious"]]
    called(
        folder, monkeypatch, "run", "--bad", "bad.jsonl", "--probabilities", "p.npz", "--out", "else", "--clusters", "2"
    )
    text = capsys.readouterr().out
    assert "12 flagged, about 12 labels wrong (rows by their ids); 12 of the flagged are known bad" in text
    assert "aum                     small       mean of z_y - max_{k != y} z_k" in text
    assert "wrote data_map.svg, trajectories.svg, detection.svg to else" in text


def test_seeds_are_averaged_and_detection_is_over_all_of_them(folder, monkeypatch, capsys):
    called(folder, monkeypatch, "seeds", "--bad", "bad.txt", "--json")
    found = answer(capsys)
    assert found["seeds"] == [0, 1]
    assert found["detection"]["band"] == "95% interval over 2 seeds"
    called(folder, monkeypatch, "seeds", "--bad", "bad.txt", "--seed", "1", "--step", "5", "--score", "loss_mean")
    text = capsys.readouterr().out
    assert "step 5, seed 1" in text
    assert "95% bootstrap interval" in text
    assert "most suspicious by loss_mean" in text


def test_a_finished_map_is_read_as_it_is(folder, monkeypatch, capsys):
    elsewhere.write_cartography(uj.dynamics.read(folder / "run"), folder / "map.jsonl")
    called(folder, monkeypatch, "map.jsonl", "--out", "mapped", "--json")
    found, text = answer(capsys), (folder / "run" / "understood" / "dynamics.json").read_text()
    assert found["regions"] == json.loads(text)["regions"]
    called(folder, monkeypatch, "compare", "run", "map.jsonl", "--json")
    assert answer(capsys)["spearman"]["confidence"] == pytest.approx(1)


def test_two_runs_are_compared_by_what_both_have(folder, monkeypatch, capsys):
    table = uj.dynamics.read(folder / "run")
    kept = np.r_[5:N]
    cut = uj.dynamics.logits_log(np.load(folder / "logits.npy")[:, kept], table.labels[kept], ids=kept)
    uj.dynamics.write(folder / "part", cut.statistics, run="p", step=5, ids=kept)
    called(folder, monkeypatch, "compare", "run", "part", "--json")
    found = answer(capsys)
    assert (found["both"], found["only_a"], found["only_b"]) == (N - 5, [0, 1, 2, 3, 4], [])
    assert found["spearman"]["aum"] == pytest.approx(1)
    called(folder, monkeypatch, "compare", "run", "seeds", "--score", "el2n", "--count", "3")
    text = capsys.readouterr().out
    assert "moved most by el2n" in text
    assert f"{N} examples are in both" in text


def test_spikes_name_their_documents(folder, monkeypatch, capsys):
    from uimjax.sinks import JsonLines

    sink, losses = JsonLines(folder / "metrics.jsonl"), 1 + 0.01 * np.random.default_rng(0).normal(size=100)
    losses[70] = 5
    for step, loss in enumerate(losses):
        sink.write(step, {"loss": loss})
    np.save(folder / "batches.npy", np.arange(400).reshape(100, 4))
    called(folder, monkeypatch, "spikes", "metrics.jsonl", "--window", "20", "--batches", "batches.npy", "--json")
    found = answer(capsys)
    assert [(row["step"], row["ids"]) for row in found["spikes"]] == [(70, [280, 281, 282, 283])]
    assert [row["id"] for row in found["documents"]] == [280, 281, 282, 283]
    called(folder, monkeypatch, "spikes", "metrics.jsonl")
    assert "1 of 100 steps spike" in capsys.readouterr().out


def test_a_run_that_is_called_like_an_action(folder, monkeypatch, capsys):
    uj.dynamics.write(folder / "compare", uj.dynamics.read(folder / "run").statistics, run="r", step=0)
    called(folder, monkeypatch, "./compare", "--json")
    assert answer(capsys)["examples"] == N


@pytest.mark.parametrize(
    ("args", "code", "match"),
    [
        (("nowhere",), 3, "uimjax dynamics import"),
        (("run", "--score", "amu"), 2, "Did you mean 'aum'"),
        (("run", "--score", "variability"), 2, "no detector"),
        (("run", "--step", "3"), 2, "the nearest is 5"),
        (("run/dynamics/step-00000005.parquet", "--step", "5"), 2, "leave --step and --seed out"),
        (("run", "--bad", "none.txt"), 3, "is not a file"),
        (("run", "--bad", "log.csv"), 3, "line 1: 'guid,epoch,nll' is no whole number"),
        (("run", "--probabilities", "logits.npy"), 3, "probabilities arrived for 60 examples"),
        (("./compare", "--probabilities", "p.npy"), 3, "holds no labels"),
        (("csv", "--clusters", "9"), 2, "k in 1..2 fits"),
        (("import", "none.csv", "--out", "x"), 3, "is not there"),
        (("import", "map.jsonl", "--out", "x"), 2, "uimjax dynamics map.jsonl"),
        (("import", "log.csv", "--labels", "labels.txt", "--out", "x"), 2, "from logits.*column `label`"),
        (("import", "logits.npy", "--floor", "0.1", "--out", "x"), 2, "--floor is for --from steps"),
        (("import", "log.csv", "--floor", "2", "--columns", "id=guid", "loss=nll", "--out", "x"), 2, "below 1"),
        (("log.csv",), 2, "uimjax dynamics import log.csv --out RUN"),
        (("log.npz",), 2, "uimjax dynamics import log.npz --out RUN"),
        (("bad.jsonl",), 2, "uimjax dynamics import bad.jsonl --out RUN"),
        (("run", "--never-learned", "often"), 2, "never_learned='often'"),
        (("run", "--never-learned", "nan"), 2, "never_learned=nan: a number of forgettings, from 0 on"),
        (("map.jsonl", "--el2n-squared"), 2, "a finished data map holds scores alone"),
        (("import", "log.csv", "--columns", "id", "--out", "x"), 2, "NAME=COLUMN was wanted"),
        (("import", "logits.npy", "--out", "x"), 2, "no labels arrived"),
        (("compare", "run", "seeds", "--score", "amu"), 2, "Did you mean 'aum'"),
        (("compare", "run", "carto"), 3, "share no id"),
        (("spikes", "bad.jsonl"), 3, "holds no losses"),
        (("spikes", "metrics.jsonl", "--window", "500"), 2, "2 <= window < T"),
        (("spikes", "metrics.jsonl", "--window", "20", "--batches", "logits.npy"), 3, "ids \\[steps, B\\]"),
    ],
)  # fmt: skip
def test_wrong_input_ends_with_its_code_and_its_cure(folder, monkeypatch, args, code, match):
    with pytest.raises(UimError, match=match) as caught:
        called(folder, monkeypatch, *args)
    assert caught.value.exit_code == code


def test_json_may_stand_before_an_action(folder, monkeypatch, capsys):
    for words in (("--json", "compare", "run", "seeds"), ("compare", "run", "seeds", "--json")):
        called(folder, monkeypatch, *words)
        assert answer(capsys)["both"] == N
    called(folder, monkeypatch, "--json", "run")
    assert answer(capsys)["examples"] == N
    for words in (["scaling", "--json", "predict", "law", "--at", "N=1"], ["index", "--json", "verify", "x"]):
        assert parser(words).parse_args(words).json
        assert not parser(words).parse_args([word for word in words if word != "--json"]).json


@pytest.mark.parametrize("words", [("--count", "3", "compare", "run", "seeds"), ("--score", "aum", "spikes")])
def test_other_flags_before_an_action_are_refused_with_the_right_order(words, capsys):
    with pytest.raises(SystemExit) as caught:
        parser(["dynamics", *words]).parse_known_args(["dynamics", *words])
    assert caught.value.code == 2
    assert f"{words[2]} is an action and comes before its flags: uimjax dynamics {words[2]}" in capsys.readouterr().err


def steps_csv(rows, head="id,epoch,loss"):
    return head + "\n" + "".join(f"{row}\n" for row in rows)


def test_ids_of_a_csv_are_text_but_where_all_are_integers(tmp_path, monkeypatch):
    for ids, wanted in ((["012", "7"], ["012", "7"]), (["12", "-7"], [12, -7]), (["1.0", "NA"], ["1.0", "NA"])):
        (tmp_path / "log.csv").write_text(steps_csv(f"{i},0,1.5" for i in ids))
        called(tmp_path, monkeypatch, "import", "log.csv", "--out", "run", "--replace")
        assert uj.dynamics.read(tmp_path / "run").ids.tolist() == wanted
    (tmp_path / "log.csv").write_text(steps_csv(["a,0,1.5", ",0,1.5"]))
    with pytest.raises(UimError, match="row 2: the id is empty"):
        called(tmp_path, monkeypatch, "import", "log.csv", "--out", "run", "--replace")
    with pytest.raises(UimError, match="row 2: the id is missing"):
        elsewhere.steps_log({"id": ["a", None], "epoch": [0, 0], "loss": [1.0, 2.0]})


def test_another_log_does_not_join_a_run(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text(steps_csv(["x,0,1.5"]))
    (tmp_path / "b.csv").write_text(steps_csv(["x,1,1.5"]))
    for _ in range(2):  # the same log again is the same table
        called(tmp_path, monkeypatch, "import", "a.csv", "--out", "run")
    assert uj.dynamics.read(tmp_path / "run").metadata["digests"]["log"]
    with pytest.raises(UimError, match="holds step 0 of a already, which another log or training gave.*--replace") as e:
        called(tmp_path, monkeypatch, "import", "b.csv", "--out", "run")
    assert e.value.exit_code == 5
    called(tmp_path, monkeypatch, "import", "b.csv", "--out", "run", "--replace")
    assert uj.dynamics.read(tmp_path / "run").metadata["run"] == "b"


def test_a_floor_stands_for_probabilities_of_zero(tmp_path, monkeypatch):
    (tmp_path / "p.csv").write_text(steps_csv(["a,0,0,1,0", "b,0,1,0.5,0.5"], "id,epoch,label,p_0,p_1"))
    words = ("import", "p.csv", "--out", "run")
    with pytest.raises(UimError, match="--floor 1e-7"):
        called(tmp_path, monkeypatch, *words)
    called(tmp_path, monkeypatch, *words, "--floor", "1e-7")
    assert uj.dynamics.read(tmp_path / "run").scores["aum"].values[0] == pytest.approx(np.log(1e7))


def test_lost_examples_are_named_first_and_definitions_switch(tmp_path, monkeypatch, capsys):
    collector = uj.dynamics.Collector(6, ring=2)
    state, rng = collector.init(), np.random.default_rng(0)
    for epoch in range(3):
        logits, labels = rng.normal(size=(6, 3)).astype(np.float32), np.arange(6) % 3
        logits[4] = np.nan if epoch == 1 else logits[4]
        state = collector.update(state, np.arange(6), logits=logits, labels=labels, epoch=epoch)
    uj.dynamics.write(tmp_path / "run", collector.finish(state), run="r", step=3)
    called(tmp_path, monkeypatch, "run", "--json")
    found = answer(capsys)
    assert (found["lost"], found["lost_ids"], found.get("missing")) == (1, [4], 0)
    called(tmp_path, monkeypatch, "run")
    text = capsys.readouterr().out
    assert text.index("1 examples became NaN or infinite") < text.index("the 5 most suspicious")
    called(tmp_path, monkeypatch, "run", "--el2n-squared", "--variability", "widened", "--never-learned", "9", "--json")
    scores = answer(capsys)["scores"]
    assert scores["el2n"]["formula"] == "mean of |p - onehot(y)|^2"
    assert scores["variability"]["formula"].startswith("widened")
    assert scores["forgetting"]["formula"].endswith("never right: 9.0")


def test_what_is_defined_otherwise_is_not_compared(folder, monkeypatch, capsys):
    table, how = uj.dynamics.read(folder / "run"), uj.dynamics.Definitions(el2n_squared=True)
    uj.dynamics.write(folder / "squared", table.statistics, run="r", step=5, labels=table.labels, definitions=how)
    called(folder, monkeypatch, "compare", "run", "squared", "--json")
    found = answer(capsys)
    assert found["dropped"] == {"el2n": {"a": "mean of |p - onehot(y)|", "b": "mean of |p - onehot(y)|^2"}}
    assert "el2n" not in found["spearman"]
    called(folder, monkeypatch, "compare", "run", "squared")
    assert "el2n is not compared, as its definitions differ" in capsys.readouterr().out
    with pytest.raises(UimError, match="el2n is defined otherwise in A"):
        called(folder, monkeypatch, "compare", "run", "squared", "--score", "el2n")
