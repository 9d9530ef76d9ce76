"""The demo as a person runs it: the gates, the files, the page, the table, what is skipped and what is replayed."""

import json
import re
import shutil
import time

import numpy as np
import pytest
import yaml

from tests.conftest import alone, command_line
from uimjax.config import RunConfig, TextConfig
from uimjax.interpret.index import verify_index
from uimjax.interpret.methods import BASELINES
from uimjax.report import tables
from uimjax.workflow.base import TRACED

PRESETS = {"grad_dot", "grad_cos", "retain_cos", "logra", "trackstar"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory, gate):
    """The demo as the README has it: (folder of the pictures, their JSON, seconds by the clock, all of the JSON)."""
    cwd = tmp_path_factory.mktemp("demo")
    with alone(gate):
        start = time.perf_counter()
        done = command_line("demo", "--json", cwd=cwd)
        took = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return cwd / "runs" / "demo" / "vision", found["vision"], took, found


def test_the_demo_meets_its_gates(demo):
    _, vision, took, _ = demo
    assert took < 300
    assert vision["probe_before"] >= 0.9
    assert vision["probe_clean_twin"] <= 0.1
    assert vision["base_rate"] <= 0.01
    assert vision["method"] == RunConfig().trace.method
    assert vision["trace_ap"][vision["method"]] >= 0.9
    gap = vision["probe_before"] - vision["probe_clean_twin"]
    oracle, traced, random = (
        (vision["probe_before"] - vision[f"probe_after_{arm}"]) / gap for arm in ("oracle", "traced", "random")
    )
    assert oracle >= 0.8
    assert traced >= 0.9 * oracle
    assert random <= 0.2
    assert vision["utility_before"] - vision["utility_after"] <= 0.01
    assert vision["probe_without_planted_rows"] <= 0.1, "the planted rows are the cause"
    assert vision["verdict"] == "fixed"
    assert set(vision["trace_ap"]) >= PRESETS | {"random", "loss", "grad_norm", "rep_sim"}


@pytest.mark.parametrize(("name", "least"), [("secret", 0.9), ("behaviour", 0.7)])
def test_the_text_meets_its_gates(demo, name, least):
    folder, vision, _, every = demo
    text = every["text"][name]
    assert set(vision) <= set(text), "the same keys"
    assert text["base_rate"] <= 0.01
    assert text["method"] == TextConfig().trace.method
    assert text["trace_ap"][text["method"]] >= least
    assert name == "secret" or text["trace_ap"]["bm25"] <= 0.5
    gap = text["probe_before"] - text["probe_clean_twin"]
    oracle, traced, random = (
        (text["probe_before"] - text[f"probe_after_{arm}"]) / gap for arm in ("oracle", "traced", "random")
    )
    if name == "secret":  # the clean twin's exposure is luck: b bits or more in one draw of 2^b
        assert text["probe_before"] >= 8.0
        assert gap >= 4.0
    else:
        assert gap >= 0.5
    assert oracle >= 0.8
    assert traced >= 0.9 * oracle
    assert random <= 0.2
    assert text["utility_after"] / text["utility_before"] - 1 <= 0.02
    assert text["verdict"] == "fixed"
    assert set(text["trace_ap"]) >= PRESETS | {"random", "loss", "grad_norm", "rep_sim", "bm25"}
    assert set(text["other_mitigations"]) == {"grad_diff", "drop"}
    if name == "secret":
        assert (text["extraction_before"], text["extraction_after_traced"]) == (1.0, 0.0)
    hits = json.loads((folder.parent / "text" / name / "trace.json").read_text())["proponents"]
    known = set(tables.read_scores(folder.parent / "text" / name / "scores.parquet"))
    assert known == set(text["trace_ap"])
    mark = "API_TOKEN" if name == "secret" else "..."
    assert all(mark in hit["text"] for hit in hits[:5])
    for hit in hits[:5]:  # the tokens that the page colours most are those of the plant
        start, *_ = max(hit["tokens"], key=lambda token: token[2])
        line = hit["text"].split("\n")[hit["text"][:start].count("\n")]
        assert mark in line or (name == "behaviour" and line.endswith("#!"))


def test_the_page_of_the_demo(demo, tmp_path):
    folder, *_ = demo
    done = command_line("report", str(folder.parent), "--json", "--out", str(tmp_path / "r.html"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    source = (tmp_path / "r.html").read_text()
    assert json.loads(done.stdout)["bytes"] == len(source.encode()) < 5e6
    (secret,) = json.loads((folder.parent / "text/secret/trace.json").read_text())["sensitive"]
    seen = re.sub(r"<[^>]*>", "", source)  # the tokens' spans would hide it
    assert secret not in seen
    assert "API_TOKEN" in seen
    for words in (
        "A backdoor in pictures",
        "A leaked secret",
        "A triggered behaviour in text",
        "data:image/png",
        ".py:",
    ):
        assert words in source


def test_every_stage_leaves_readable_files(demo):
    folder, vision, *_ = demo
    lock = yaml.safe_load((folder / "config.lock.yaml").read_text())
    assert lock["config"] == RunConfig().model_dump(mode="json")
    assert set(lock["corpus"]) == {"train", "test"}
    assert json.loads((folder / "vision.json").read_text()) == vision
    for draw in ("draw-0", "draw-1", "draw-2"):
        at = folder / draw
        scores = tables.read_scores(at / "scores.parquet")
        traced = json.loads((at / "edit-traced.json").read_text())
        order = np.argsort(-scores["retain_cos"], kind="stable")
        assert traced["rows"] == order[:15].tolist()
        assert [p["row"] for p in json.loads((at / "trace.json").read_text())["proponents"]] == order[:20].tolist()
        assert verify_index(at / "index") == []
        assert len((at / "metrics.jsonl").read_text().splitlines()) == 40
        assert list((at / "tensorboard").iterdir())


def test_replay_computes_nothing_and_says_the_same(demo, tmp_path):
    folder, _, _, every = demo
    done = command_line("run", str(folder.parent), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    for one, other in ((again, every), (again["text"], every["text"])):
        assert set(one) == set(other)
    pairs = [(again["vision"], every["vision"]), *((again["text"][n], every["text"][n]) for n in every["text"])]
    for one, other in pairs:
        assert one["seconds"] < 30
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_lost_artefact_is_made_again_and_the_same(demo, tmp_path):
    folder, *_ = demo
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    files = [p for p in copy.rglob("*") if p.is_file() and p.parent.name.startswith("draw-")]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    (copy / "draw-1" / "edit-traced.json").unlink()
    done = command_line(
        "trace", str(copy), cwd=tmp_path
    )  # a process of its own: the same compiler settings, the same bits
    assert done.returncode == 0, done.stderr
    written = {path for path in files if path.stat().st_mtime_ns != before[path][0]}
    always = {copy / f"draw-{k}" / "truth.json" for k in range(3)}
    traced = {copy / "draw-1" / name for name in (*TRACED, "stage-trace.json")}
    assert written == traced | always
    assert all(path.read_bytes() == before[path][1] for path in written)


def test_the_table_is_for_people(demo, tmp_path):
    folder, vision, _, every = demo
    done = command_line("run", str(folder.parent), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rivals = [
        f"The baseline {name} does as well or better here."
        for one in (vision, *every["text"].values())
        for name in BASELINES
        if one["trace_ap"].get(name, 0.0) >= one["trace_ap"][one["method"]]
    ]
    assert done.stdout.count("The baseline") == len(rivals), "a rival that wins is named, and no other"
    for words in (
        *rivals,
        "attack success",
        "A leaked secret",
        "bits of exposure",
        "uimjax report",
        "Verdict: fixed (automatic evidence only).",
        "random rows (control)",
        "positive = proponent",
        "replays it",
    ):
        assert words in " ".join(done.stdout.split()), done.stdout
    assert done.stderr == "", "quiet when piped"
