"""The commands that ask an index of one's own, and that plan."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import uimjax as uj
from tests.interpret.test_index import ROOT, digest, made
from uimjax import cli, machine
from uimjax.interpret import trace

OWN = """
import jax, numpy as np
import uimjax as uj
from tests.interpret.test_index import made

def load():
    task, params, data, measurement, queries = made(np.random.default_rng(0), 50)
    return task, params, measurement, queries

def model():
    return load()[:2]

def check():
    task, params, data, measurement, queries = made(np.random.default_rng(0), 50)
    return task, lambda seed: params, data, measurement, queries
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a model, rows, metadata and an index of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("uimjax.allocator.keep_buffers", lambda: False)  # it is the whole process's
    (tmp_path / "askown.py").write_text(OWN)
    task, params, data, measurement, queries = made(np.random.default_rng(0), 50)
    leaves = jax.tree.leaves(data)
    np.savez(
        tmp_path / "rows.npz", **{k: v for k, v in data.items()} if isinstance(data, dict) else dict(enumerate(leaves))
    )
    uj.build_index(task, params, data, tmp_path / "i", sketch=uj.Sketch(3), batch_size=8, shard_rows=10)
    source = pa.array([f"s{i % 3}" for i in range(50)])
    pq.write_table(pa.table({"source": source, "year": np.arange(50) // 10}), tmp_path / "meta.parquet")
    wanted = {"kind": "trace", "load": "askown:load", "index": "i", "rows": "rows.npz", "k": 3}
    (tmp_path / "trace.yaml").write_text(yaml.safe_dump(wanted))
    return (tmp_path / "i", task, params, data, measurement, queries)


def run(*args):
    with pytest.raises(SystemExit) as end:
        cli.main(list(args))
    return end.value.code


def test_an_index_of_ones_own_is_asked_from_a_config(here, capsys, tmp_path):
    more = ("--metadata", "meta.parquet", "--each", "--null", "20", "--group-by", "source")
    assert run("trace", "trace.yaml", "--json", *more) == 0
    told = json.loads(capsys.readouterr().out)
    want = uj.trace(*here, k=3, each=True, null=20)
    meta = pq.read_table("meta.parquet")
    assert told["hits"] == json.loads(json.dumps(want.table(meta).to_pylist()))
    np.testing.assert_allclose(told["null_band"], want.null.band(), rtol=1e-6)
    totals = trace.totals(*here, meta["source"], each=True)
    assert told["groups"] == json.loads(json.dumps(totals.table().to_pylist()))
    assert pq.read_table(tmp_path / "trace.trace" / "hits.parquet").num_rows == len(told["hits"]) == 18
    assert pq.read_table(tmp_path / "trace.trace" / "groups.parquet").num_rows == 9
    assert run("trace", "trace.yaml", *more) == 0
    text = capsys.readouterr().out
    assert "proponents: rows that this comes from" in text
    assert "how often a shuffled question" in text
    assert run("trace", "trace.yaml", "--ann") == 3
    assert "uimjax index ann" in capsys.readouterr().err
    assert run("index", "ann", "i", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 50
    assert run("trace", "trace.yaml", "--ann", "--json") == 0
    assert "approximate" in json.loads(capsys.readouterr().out)["method"]
    assert run("trace", "trace.yaml", "--rerank", "20", "--json") == 0
    assert "re-ranked" in json.loads(capsys.readouterr().out)["method"]


@pytest.mark.usefixtures("here")
def test_only_rows_with_the_wanted_metadata_are_asked(capsys):
    config = yaml.safe_load(Path("trace.yaml").read_text())
    config |= {"metadata": "meta.parquet", "where": {"source": ["s1"], "year": [0, 3]}, "null": 0, "k": 50}
    Path("w.yaml").write_text(yaml.safe_dump(config))
    assert run("trace", "w.yaml", "--json") == 0
    ids = {hit["row_id"] for hit in json.loads(capsys.readouterr().out)["hits"]}
    assert ids == {i for i in range(50) if i % 3 == 1 and i // 10 in (0, 3)}
    assert run("trace", "w.yaml", "--json", "--group-by", "year") == 0  # groups are of the same rows
    told = {g["group"]: g["members"] for g in json.loads(capsys.readouterr().out)["groups"]}
    assert {name: n for name, n in told.items() if n} == {0: 3, 3: 3}
    pq.write_table(pa.table({"score": np.arange(50)}), "taken.parquet")
    for change, code, words in (
        ({"where": {"sauce": ["s1"]}}, 2, "Did you mean 'source'"),
        ({"where": {"year": ["x"]}}, 2, "column 'year' holds int64"),
        ({"where": {"source": ["s9"]}}, 2, "no row has"),
        ({"metadata": "none.parquet"}, 3, "none.parquet is not there"),
        ({"metadata": "", "where": {}, "group_by": "source"}, 2, "source"),
        ({"kk": 3}, 2, "did you mean 'k'"),
        ({"metadata": "taken.parquet", "where": {}}, 2, "which a trace has itself"),
    ):
        Path("w.yaml").write_text(yaml.safe_dump(config | change))
        assert run("trace", "w.yaml") == code
        assert words in capsys.readouterr().err
    pq.write_table(pa.table({"source": ["a"] * 20}), "short.parquet")
    Path("w.yaml").write_text(yaml.safe_dump(config | {"metadata": "short.parquet"}))
    assert run("trace", "w.yaml") == 3
    assert "20 lines and the index 50 rows" in capsys.readouterr().err
    Path("bad.csv").write_text('a,b\n"1,2\n3')
    Path("w.yaml").write_text(yaml.safe_dump(config | {"metadata": "bad.csv"}))
    assert run("trace", "w.yaml") == 3


@pytest.mark.usefixtures("here")
def test_a_plan_of_each_kind_is_told_and_what_does_not_fit_ends_with_5(capsys, monkeypatch):
    Path("index.yaml").write_text(
        yaml.safe_dump({"kind": "index", "load": "askown:model", "rows": "rows.npz", "batch_size": 8})
    )
    check = {"kind": "check", "load": "askown:check", "halves": 4, "train": {"epochs": 2, "batch_size": 8}}
    Path("check.yaml").write_text(yaml.safe_dump(check))
    for target, job in (
        ("index", "an index of 50 rows"),
        ("trace", "a trace of 50 rows"),
        ("check", "a bank of 8 trainings"),
    ):
        assert run("plan", f"{target}.yaml", "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert told["job"] == job
        assert told["total"] > 0
    assert run("plan", "index.yaml", "--count", "1000000", "--devices", "8", "--chip", "h100") == 0
    assert "of its ceiling" in capsys.readouterr().out
    assert run("plan", "trace.yaml", "--chip", "h100") == 2
    assert run("plan", "trace.yaml", "--ann") == 2
    assert run("plan", "check.yaml", "--count", "10") == 2
    Path("run.yaml").write_text("corpus: digits\n")
    assert run("plan", "run.yaml") == 2
    assert "not one that this command takes" in capsys.readouterr().err
    monkeypatch.setattr(machine, "disk", lambda _: 10_000_000)
    assert run("plan", "index.yaml", "--count", "100000000") == 5
    assert re.search(r"100000000 rows as .* or \d+ rows", capsys.readouterr().err)


def test_a_build_that_is_told_to_end_keeps_its_shards_and_goes_on(here, tmp_path):
    """SIGTERM: stopped with 75 and a hint; the same command then ends with the bytes of one that was never told."""
    rows = np.load("rows.npz")
    np.savez("many.npz", **{name: np.tile(rows[name], (40,) + (1,) * (rows[name].ndim - 1)) for name in rows.files})
    config = {"kind": "index", "load": "askown:model", "rows": "many.npz", "batch_size": 2, "shard_rows": 2}
    Path("index.yaml").write_text(yaml.safe_dump(config))
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "-m", "uimjax.cli", "index", "build", "index.yaml", "--json", "--out"]
    with subprocess.Popen([*command, "told"], env=env, stderr=subprocess.PIPE, text=True) as build:
        journal = Path("told/journal.jsonl")
        while build.poll() is None and not (journal.exists() and journal.stat().st_size > 2000):
            time.sleep(0.01)
        build.send_signal(signal.SIGTERM)
        _, said = build.communicate(timeout=60)
        assert build.returncode == 75, said
    assert "run the same command again to continue" in said
    assert 10 < journal.read_bytes().count(b"\n") < 1000
    for folder in ("told", "whole"):
        subprocess.run([*command, folder], env=env, check=True, capture_output=True)
    assert digest(Path("told")) == digest(Path("whole"))
    assert here
