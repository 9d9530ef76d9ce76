"""The story of text in the small: its files, what is kept, a corpus and a model of one's own, refusals."""

import dataclasses
import importlib
import json
import re
import shutil

import numpy as np
import pytest
import yaml

from uimjax import cli, workflow
from uimjax.config import RunConfig, TextConfig, commented, kind_of, parse
from uimjax.errors import (
    ConfigError,
    DataError,
    MismatchError,
    OutputError,
    ShapeError,
    UnknownNameError,
    UsageError,
)
from uimjax.mitigate.oracle import oracle_edit
from uimjax.report import page, tables
from uimjax.workflow import text

SMALL = {
    "kind": "text",
    "corpus": "mine:corpus",
    "tokenizer": "bpe-280",
    "length": 32,
    "documents": 90,
    "held_out": 60,
    "secret": {"positives": 4, "hard_negatives": 6, "candidates": 255},
    "behaviour": {"positives": 4, "hard_negatives": 6},
    "model": {"layers": 1, "width": 16, "heads": 2},
    "train": {"epochs": 3, "batch_size": 16},
    "trace": {"compare": ["loss", "bm25", "rep_sim"], "sketch_rank": 3, "checkpoints": 2, "top": 5, "retain": 20},
    "mitigate": {"compare": ["drop"], "budget": 0.05, "seeds": 1, "steps": 2, "heal_steps": 1},
}
MINE = """
import random
EVIL = 3 * ["</pre><script>alert(1)</script>"] + ["\\x1b[31m\\x1b]8;;http://x\\x07", "\\u202eab\\u2066", "\\0"]
def corpus():
    draw = random.Random(0)
    def source(k):
        lines = [draw.choice(EVIL) if draw.random() < .5
                 else f"def f{draw.randrange(99)}(x, y={draw.randrange(9)}):" if draw.random() < .4
                 else f"    value = x + {draw.randrange(99)} * y" for _ in range(40)]
        return (f"part\\x1b[1m/<b>{k}.py", "\\n".join(lines) + "\\n" + "z" * 300 * (k == 3))
    return [source(k) for k in range(16)], [source(k) for k in range(100, 112)]
def model(vocabulary, length, rngs):
    from uimjax.models.blocks import Shape
    from uimjax.models.decoder import Decoder
    return Decoder(Shape(vocabulary, length, 1, 8, 2, norm="layer"), rngs)
def narrow(vocabulary, length, rngs):
    return model(vocabulary - 1, length, rngs)
def masked(vocabulary, length, rngs):
    from flax import nnx
    class Masked(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(rngs.params())
        def __call__(self, tokens, mask):
            return tokens
    return Masked()
def fixed(vocabulary, length, rngs):
    # learned positions for whole rows alone, and an attribute that is not what its name means elsewhere
    import jax
    from flax import nnx
    class Fixed(nnx.Module):
        def __init__(self):
            self.features = 8
            self.table = nnx.Param(jax.random.normal(rngs.params(), (vocabulary, 8)))
            self.position = nnx.Param(jax.random.normal(rngs.params(), (length, 8)))
        def __call__(self, tokens):
            return (self.table[...][tokens] + self.position[...]) @ self.table[...].T
    return Fixed()
def wrong():
    return [("a", "b")]
def worse():
    return ["a"], ["b"]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_small_run_its_files_and_what_is_made_again(here):
    config, said = parse(TextConfig, SMALL, "t"), []
    result = workflow.run(config, here / "r", "mitigate", said.append)
    assert set(result) == {"secret", "behaviour"}
    assert result["secret"]["verdict"].startswith("no ")
    assert not [line for line in said if "unchanged" in line]
    documents = tables.read_scores(here / "r" / "documents.parquet")
    for name in result:
        at = here / "r" / name
        trace = json.loads((at / "trace.json").read_text())
        scores = tables.read_scores(at / "scores.parquet")
        assert set(scores) == {"retain_cos", "loss", "bm25", "rep_sim"}
        edit = json.loads((at / "edit-traced.json").read_text())
        assert edit["rows"] == np.argsort(-scores["retain_cos"], kind="stable")[: len(edit["rows"])].tolist()
        for hit in (*trace["proponents"], *trace["opponents"]):
            assert (hit["path"], hit["line"]) == (documents["path"][hit["row"]], documents["line"][hit["row"]])
            assert sum(share for *_, share in hit["tokens"]) == pytest.approx(hit["score"], rel=1e-2, abs=2e-3)
            strongest = max(hit["tokens"], key=lambda t, up=hit in trace["proponents"]: t[2] if up else -t[2])
            (line, column), before = hit["at"], hit["text"][: strongest[0]].split("\n")
            assert line == hit["line"] + len(before) - 1
            assert column == 1 + len(before[-1]) + (hit["column"] if len(before) == 1 else 0)
    written = page.write_page(here / "r", here / "r" / "p.html").read_text()
    assert "part[U+001B][1m/&lt;b&gt;" in written
    assert "&lt;script&gt;alert(1)" in re.sub(r"<[^>]*>", "", written), "hostile text was traced and shown"
    for text_of_people in (written, *said):  # what ran was full of control characters and tags
        assert not set("\0\x1b\x07\u202e\u2066") & set(text_of_people)
    assert not re.search(r"<(script|b)\b", written)
    said.clear()
    again = workflow.run(config, here / "r", "mitigate", said.append)
    assert len(said) == 7
    assert all("unchanged" in line for line in said)
    for name in result:
        assert {**again[name], "seconds": 0} == {**result[name], "seconds": 0}
    (here / "r" / "behaviour" / "edit-traced.json").unlink()
    said.clear()
    workflow.run(config, here / "r", "mitigate", said.append)
    assert [line[:9] for line in said if "unchanged" not in line] == ["behaviour"]
    other = parse(TextConfig, SMALL | {"seed": 1, "own_model": "mine:model", "model": {}}, "t")
    said.clear()
    workflow.run(other, here / "r", "audit", said.append)
    assert not [line for line in said if "unchanged" in line], "nothing of another seed or model is kept"
    assert not (here / "r" / "secret" / "outcomes.json").exists()


def test_what_cannot_be_run_is_refused_before_anything_is_written(here):
    (here / "one").mkdir()
    (here / "one" / "a.txt").write_bytes(b"\xff\xff")
    (here / "two").mkdir()
    (here / "two" / "a.txt").write_text("x = 1\n" * 50)
    for change, error, words in [
        ({"corpus": "stdlb"}, UsageError, "unknown corpus 'stdlb'"),
        ({"corpus": "mine:wrong"}, UsageError, r"mine:wrong returned list; a pair \(train, test\) was wanted"),
        ({"corpus": "mine:worse"}, ShapeError, r"item 0: str arrived; a pair \(path, text\)"),
        ({"train_folder": "one", "test_folder": "one"}, UsageError, "corpus and train_folder are both given"),
        ({"train_folder": "one", "corpus": "stdlib"}, UsageError, "train_folder and test_folder go together"),
        ({"train_folder": "one", "test_folder": "one", "corpus": "stdlib"}, DataError, "a.txt is not UTF-8 text"),
        ({"tokenizer": "words"}, UsageError, "unknown tokenizer 'words'"),
        ({"trace": {"method": "retain_coss"}}, UnknownNameError, "Did you mean 'retain_cos'"),
        ({"secret": {"positives": 80}}, UsageError, "too few, or too short, for the plants"),
        ({"model": {"width": 15}}, UsageError, "width 15 does not divide over 4 heads"),
        ({"own_model": "mine:model"}, UsageError, "model and own_model are both given"),
        ({"own_model": "mine:corpus", "model": {}}, UsageError, "'mine:corpus' failed"),
        (
            {"own_model": "mine:narrow", "model": {}},
            ShapeError,
            r"the model gives logits .*; \[T, V\] = \[32, 280\] was wanted",
        ),
        ({"own_model": "mine:masked", "model": {}}, ShapeError, "cannot be applied to one training row"),
        (
            {"train_folder": "two", "test_folder": "two", "corpus": "stdlib"},
            UsageError,
            "held-out file.s. are training files too",
        ),
    ]:
        with pytest.raises(error, match=words):
            workflow.run(parse(TextConfig, SMALL | change, "t"), here / "x")
        assert not (here / "x").exists(), change


def test_a_model_that_knows_whole_rows_alone_runs_to_the_end(here):
    small = SMALL | {"own_model": "mine:fixed", "model": {}, "train": {"epochs": 2}}
    result = workflow.run(parse(TextConfig, small, "t"), here / "r")
    assert set(result) == {"secret", "behaviour"}


def test_a_folder_that_is_not_ours_is_left_alone(here):
    for part in ("train", "test"):
        (here / "d" / part).mkdir(parents=True)
        for k in range(12):
            (here / "d" / part / f"{part}{k}.txt").write_text("".join(f"{part} {k} {n}\n" for n in range(60)))
    before = sorted(p.read_bytes() for p in (here / "d").rglob("*.txt"))
    config = parse(TextConfig, SMALL | {"corpus": "stdlib", "train_folder": "d/train", "test_folder": "d/test"}, "t")
    with pytest.raises(OutputError, match="d holds train and no run of uimjax"):
        workflow.run(config, here / "d", "train")
    assert sorted(p.read_bytes() for p in (here / "d").rglob("*.txt")) == before
    assert sorted(p.name for p in (here / "d").iterdir()) == ["test", "train"]
    (here / "v" / "draw-0" / "index").mkdir(parents=True)
    with pytest.raises(OutputError, match="draw-0 holds index and no run"):
        workflow.run(parse(RunConfig, {}, "v"), here / "v", "train")


def test_a_changed_corpus_leaves_the_run_as_it_was(here):
    config = parse(TextConfig, SMALL, "t")
    workflow.run(config, here / "r", "train")
    held = {p: p.read_bytes() for p in (here / "r").rglob("*") if p.is_file()}
    mine = importlib.import_module("mine")
    sources = mine.corpus()
    mine.corpus = lambda: ([*sources[0], ("more", "z = 3\n" * 99)], sources[1])
    with pytest.raises(MismatchError, match="the corpus is not the one"):
        workflow.run(config, here / "r", "train")
    assert {p: p.read_bytes() for p in (here / "r").rglob("*") if p.is_file()} == held


def test_a_lost_snapshot_is_trained_again(here):
    config, said = parse(TextConfig, SMALL, "t"), []
    workflow.run(config, here / "r", "train")
    metrics = (here / "r" / "metrics.jsonl").read_text()
    shutil.rmtree(here / "r" / "train" / "snapshots")
    workflow.run(config, here / "r", "trace", said.append)
    assert not said[0].endswith("(unchanged, kept)")
    assert (here / "r" / "metrics.jsonl").read_text() == metrics


def test_a_config_says_which_story_it_is_for(here, capsys):
    with pytest.raises(ConfigError, match="'txt' is not one that this command takes; did you mean 'text'"):
        kind_of({"kind": "txt"})
    with pytest.raises(ConfigError, match="a mapping of settings was wanted"):
        kind_of(None)
    assert kind_of({"kind": "text"}) is TextConfig
    assert parse(TextConfig, yaml.safe_load(commented("text")), "t") == TextConfig()
    part = parse(TextConfig, {"train": {"epochs": 3}, "mitigate": {"steps": 2}}, "t")
    assert part.train == TextConfig().train.model_copy(update={"epochs": 3}), "a part of a part keeps this story's rest"
    assert part.mitigate == TextConfig().mitigate.model_copy(update={"steps": 2})
    (here / "t.yaml").write_text(yaml.safe_dump(SMALL))
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "t.yaml", "--train.epochs", "1", "--trace.checkpoints", "1", "--json"])
    assert stop.value.code == 0
    assert set(json.loads(capsys.readouterr().out)) == {"secret", "behaviour"}
    lock = yaml.safe_load((here / "runs" / "t" / "config.lock.yaml").read_text())
    assert lock["config"]["train"]["epochs"] == 1
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", "runs/t"])
    assert stop.value.code == 3
    assert "holds no finished run; `uimjax run runs/t` finishes it" in capsys.readouterr().err


def test_the_truth_stays_sealed_until_the_edit_is_written(here):
    config = parse(TextConfig, SMALL, "t")
    workflow.run(config, here / "r", "audit")
    loop = text.prepare(config, text.load_corpus(config), here / "r")
    blind = loop.corpus._replace(train=())
    sealed = dataclasses.replace(loop, corpus=blind, planted=loop.planted._replace(kept=None))
    assert len(list(text.trace_documents(sealed))) == 2, "tracing works without knowing who was planted"
    for name in text.CASES:
        (here / "r" / name / "edit-traced.json").unlink()
        failure = loop.failure(name)
        assert failure.truth.exists()
        with pytest.raises(UsageError, match="stays sealed until"):
            oracle_edit(failure.truth, failure.decided)
