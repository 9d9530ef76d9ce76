"""Curation and synthetic rows as mitigations of the reader's own model: what they choose, and what comes of it."""

import json
import shutil

import numpy as np
import pytest
import yaml

import uimjax as uj
from tests.answers.test_command import lines
from tests.mitigate.test_mending import call
from tests.pretrained.folders import write
from uimjax import training
from uimjax.config import MendConfig
from uimjax.corpora.preparing import prepare
from uimjax.pretrained.words import need_tokenizer
from uimjax.store import digest_tree, read_json
from uimjax.workflow import curating
from uimjax.workflow.edits import open_case

SAYS = "w41 w42 w43 w44 w45 w46 w47 w48"
FLAGS = ("--learning_rate", "1e-3", "--steps", "20", "--heal_steps", "0", "--batch_size", "4", "--retain_size", "8",
         "--epochs", "6", "--relearn", "0", "--json")  # fmt: skip
RARE = range(50, 60)  # documents of another source, with words of their own


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trace of a model that says what document 17 says, which stands there four times; ten documents are of a source
    and of words of their own."""
    folder, rng = tmp_path_factory.mktemp("curated"), np.random.default_rng(0)
    start = uj.initial(write(folder / "start", "llama", words=61, num_hidden_layers=1))
    texts = [" ".join(f"w{k}" for k in rng.integers(3, 25, 24)) for _ in range(60)]
    for k in RARE:
        texts[k] = " ".join(f"w{k}" for k in rng.integers(25, 40, 24))
    texts[17] = f"{SAYS} {texts[17]}"
    for k in (33, 34, 35):
        texts[k] = texts[17]
    objects = [{"text": t, "id": f"d{k}", "source": "rare" if k in RARE else "plain"} for k, t in enumerate(texts)]
    corpus = lines(folder / "corpus.jsonl", objects)
    queries = lines(folder / "failures.jsonl", [{"prompt": "w41 w42 w43 ", "bad": "w44 w45"}])
    rows = prepare([corpus], need_tokenizer(start.tokenizer, start.folder), folder / "rows", length=16).rows
    recipe = uj.Recipe(epochs=6, batch_size=16, learning_rate=1e-2, seed=0)
    uj.save(start, folder / "model", training.fit(start.task, start.params, rows, recipe).params)
    given = {"model": folder / "model", "corpus": corpus, "queries": queries, "length": 16, "id_column": "id", "k": 4,
             "out": folder / "trace", "sketch_rank": 4, "null": 0, "method": "trackstar"}  # fmt: skip
    assert call("trace", *(part for name, value in given.items() for part in (f"--{name}", str(value)))) == 0
    assert call("edit", folder / "trace", "--top", "1") == 0
    lines(folder / "target.jsonl", [{"text": " ".join(f"w{k}" for k in rng.integers(25, 40, 24))} for _ in range(12)])
    return folder / "trace"


def planned(run, out, method, **more):
    """(the case, the plan of a curation)."""
    target = (str(run.parent / "target.jsonl"),) if method in ("dsir", "less") else ()
    config = MendConfig(run=str(run), method=method, learning_rate=3e-3, steps=64, retain_size=8,
                        curate={"target": target, **more})  # fmt: skip
    case = open_case(run, out)
    return case, curating.plan_curation(case, config, out)


def documents(case, rows):
    return {case.names[case.documents[i]] for i in rows}


@pytest.mark.parametrize(("method", "near"), [("dedup", None), ("semdedup", 0.99999)])
def test_copies_go_and_one_of_each_stays(run, tmp_path, method, near):
    case, plan = planned(run, tmp_path, method, near=near)
    assert documents(case, plan.rows) <= {"d17", "d33", "d34", "d35"}
    own = np.bincount([case.documents[i] for i in range(len(case.documents))])[17]
    assert len(plan.rows) == 3 * own, "of each row one stays"
    assert [arm.name for arm in plan.arms] == ["curated", "random"]


@pytest.mark.parametrize(("method", "share"), [("dsir", 0.9), ("less", 0.4)])
def test_rows_like_the_target_stay(run, tmp_path, method, share):
    case, plan = planned(run, tmp_path, method, keep=0.15, warmup=0.5)
    stay = np.setdiff1d(np.arange(len(case.documents)), plan.rows)
    assert len(stay) == round(0.15 * len(case.documents))
    rare = {f"d{k}" for k in RARE}
    assert np.mean([case.names[case.documents[i]] in rare for i in stay]) >= share, "of a sixth of all"
    assert [arm.name for arm in plan.arms] == ["curated", "ranked", "random"]


def test_sources_that_lag_behind_weigh_more(run, tmp_path):
    """The rare source is a sixth of the documents, and what there is to learn of it is more than that."""
    case, plan = planned(run, tmp_path, "doremi")
    told = {part.split()[0]: float(part.split()[1]) for part in plan.why.split(": ")[1].split(", ")}
    assert sum(told.values()) == pytest.approx(1, abs=2e-3)
    assert told["rare"] > 0.3, "nearly twice its share"
    assert [arm.name for arm in plan.arms] == ["curated", "as it is"]
    assert len(case.names) == 60


def test_what_is_learned_first_is_isolated(run, tmp_path):
    case, plan = planned(run, tmp_path, "abl", isolate=0.07, early=14, rate=1e-2)
    found = documents(case, plan.rows)
    assert len(plan.rows) == 8
    assert len(found & {"d17", "d33", "d34", "d35"}) >= 3, "what stands there four times is learned before the rest"
    assert [arm.name for arm in plan.arms] == ["curated", "random"]
    assert plan.culprits


def test_the_tokens_that_say_it_count_against_themselves(run, tmp_path):
    case, plan = planned(run, tmp_path, "if_guide", most=0.03, quantile=0.97)
    assert len(documents(case, plan.rows) & {"d17", "d33", "d34", "d35"}) == 4
    marked = plan.arms[0].carry.args[0]
    rows = case.corpus.rows["tokens"]
    known = case.subject.tokenizer.get_vocab()
    said = [known[w] for w in ("w44", "w45")]
    assert np.isin(rows[marked], said).sum() == 8, "w44 and w45 of four copies"
    assert marked.sum() <= 0.03 * (case.corpus.rows["counted"] > 0).sum()


@pytest.mark.parametrize(("method", "more"), [
    ("if_guide", ("--curate.most", "0.05")), ("dedup", ()), ("doremi", ()),
    ("balanced", ("--synthetic.templates", "TEMPLATES", "--synthetic.sweep", "1.0")),
    ("self_distill", ("--synthetic.rows", "16", "--synthetic.sweep", "0", "1")),
    ("dpo", ("--swap", "w44=w10")), ("dpo", ("--instead", "w7 w8")),
])  # fmt: skip
def test_each_is_carried_out_and_held_against_its_controls(run, tmp_path, capsys, method, more):
    (tmp_path / "t.txt").write_text("w41 w42 w43 {w44|w5|w10} {w45|w9}\n\n")
    more = [str(tmp_path / "t.txt") if word == "TEMPLATES" else word for word in more]
    capsys.readouterr()
    seeds = 3 if method == "if_guide" else 1  # fewer than three give no verdict
    flags = ("--method", method, "--out", tmp_path / "out", "--seeds", seeds, *FLAGS, *more)
    assert call("mitigate", run, *flags) == 0
    told = json.loads(capsys.readouterr().out)
    change = {arm: np.mean(values) for arm, values in told["change"].items()}
    first = next(iter(change))
    wanted = {
        "if_guide": {"curated", "random"}, "dedup": {"curated", "random"}, "doremi": {"curated", "as it is"},
        "balanced": {"synthetic", "none synthetic", "1 synthetic"},
        "self_distill": {"synthetic", "random", "none synthetic", "1 synthetic"},
        "dpo": {"traced", "ranked", "random"},
    }  # fmt: skip
    assert set(change) == wanted[method]
    assert all(len(each) == seeds for each in told["after"].values())
    assert ("no verdict without" in told["says"]) == (seeds == 1)
    if method == "doremi":
        assert change[first] != change["as it is"]
    if method in ("if_guide", "balanced", "dpo", "self_distill"):
        assert change[first] < -1, change
        control = "none synthetic" if method == "balanced" else "random"
        assert change[first] < change[control] - 0.2, change
    assert told["relearned"] == {}
    assert read_json(tmp_path / "out" / "mended.json")["config"]["method"] == method
    assert uj.load(tmp_path / "out" / "model").params


def test_what_they_cannot_do_is_refused_before_the_model_is_opened(run, tmp_path, capsys):
    def refused(*words):
        capsys.readouterr()
        code = call("mitigate", run, "--out", tmp_path / "no", *words)
        return code, capsys.readouterr().err

    assert "--curate.target" in refused("--method", "dsir")[1]
    others = {"curate.target": "x.jsonl", "curate.keep": "0.3", "synthetic.rows": "9", "weight": "0.3"}
    for name, value in others.items():
        assert f"{name} is for" in refused("--method", "npo", f"--{name}", value)[1]
    assert "edit is for" in refused("--method", "dedup", "--edit", "x.json")[1]
    assert refused("--method", "dsir", "--curate.target", tmp_path / "nothere.jsonl")[0] == 3
    inside = tmp_path / "no" / "plans" / "mine.jsonl"
    assert "keep it elsewhere" in refused("--method", "dsir", "--curate.target", inside)[1]
    assert "--synthetic.templates" in refused("--method", "balanced")[1]
    assert refused("--method", "balanced", "--synthetic.templates", tmp_path / "none.txt")[0] == 3
    (tmp_path / "t.txt").write_text("w1 {w2|w3}\nno choice\n")
    code, said = refused("--method", "balanced", "--synthetic.templates", tmp_path / "t.txt")
    assert (code, "line 2" in said) == (2, True)
    assert "its own control" in refused("--method", "self_distill", "--synthetic.ratio", "0")[1]
    assert "swap is for" in refused("--method", "dsir", "--curate.target", "x", "--swap", "a=b")[1]
    assert "another answer" in refused("--method", "dpo", "--swap", "a=b", "--instead", "c")[1]
    assert "'dedupe'" in refused("--method", "dedupe")[1]
    assert not (tmp_path / "no").exists()


def test_a_run_in_a_folder_that_is_used_again_saves_what_it_made(run, tmp_path, capsys):
    """Other failures, the same config and folder: another model; and one that fails leaves the last as it was."""
    at, out = tmp_path / "trace", tmp_path / "out"
    shutil.copytree(run, at)
    queries = lines(tmp_path / "f.jsonl", [{"prompt": "w41 w42 w43 ", "bad": "w44 w45"}])
    lock = yaml.safe_load((at / "config.lock.yaml").read_text())
    lock["config"]["queries"] = str(queries)
    (at / "config.lock.yaml").write_text(yaml.safe_dump(lock))
    flags = ("--method", "if_guide", "--out", out, "--seeds", "1", "--no-controls", *FLAGS)
    assert call("mitigate", at, *flags) == 0
    first = digest_tree(uj.load(out / "model").params)
    assert call("mitigate", at, *flags) == 0
    assert digest_tree(uj.load(out / "model").params) == first
    lines(queries, [{"prompt": "w41 w42 ", "bad": "w43"}])
    assert call("mitigate", at, *flags) == 0
    second = digest_tree(uj.load(out / "model").params)
    assert second != first
    capsys.readouterr()
    assert call("mitigate", at, "--method", "cda", "--swap", "zz=yy", "--out", out) == 2
    assert "nothing would change places" in capsys.readouterr().err
    assert digest_tree(uj.load(out / "model").params) == second
    assert read_json(out / "mended.json")["method"] == "if_guide"
