"""The closed loop as a person runs it: the gates, the files, what is skipped, what is replayed, what is refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from uimjax import cli, workflow
from uimjax.config import KINDS, RunConfig, TextConfig, commented, parse, read_yaml
from uimjax.errors import ConfigError, MissingFileError, UnknownNameError, UsageError
from uimjax.interpret.index import verify_index
from uimjax.interpret.methods import BASELINES
from uimjax.report import tables

PRESETS = {"grad_dot", "grad_cos", "retain_cos", "logra", "trackstar"}


def uimjax(*args: str, cwd: Path) -> subprocess.CompletedProcess:
    env = dict(os.environ, JAX_NUM_CPU_DEVICES="1")
    return subprocess.run([sys.executable, "-m", "uimjax.cli", *args], capture_output=True, text=True, cwd=cwd, env=env)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo as the README has it: (folder of the pictures, their JSON, seconds by the clock, all of the JSON)."""
    cwd = tmp_path_factory.mktemp("demo")
    start = time.perf_counter()
    done = uimjax("demo", "--json", cwd=cwd)
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
    assert gap >= (6.0 if name == "secret" else 0.5)
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
        start, stop, _ = max(hit["tokens"], key=lambda token: token[2])
        line = hit["text"][:stop].split("\n")[-1] or hit["text"][:stop].split("\n")[-2]
        assert mark in line or mark in hit["text"][max(0, start - 40) : stop + 40]


def test_the_page_of_the_demo(demo, tmp_path):
    folder, *_ = demo
    done = uimjax("report", str(folder.parent), "--json", "--out", str(tmp_path / "r.html"), cwd=tmp_path)
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
    done = uimjax("run", str(folder.parent), "--json", cwd=tmp_path)
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
    want = (copy / "draw-1" / "edit-traced.json").read_bytes()
    (copy / "draw-1" / "edit-traced.json").unlink()
    said = []
    config = RunConfig()
    workflow.run(config, copy, "trace", said.append)
    assert [line for line in said if "unchanged" not in line] == [
        line for line in said if line.startswith("draw 2 of 3: str")
    ]
    assert (copy / "draw-1" / "edit-traced.json").read_bytes() == want


def test_the_table_is_for_people(demo, tmp_path):
    folder, vision, _, every = demo
    done = uimjax("run", str(folder.parent), cwd=tmp_path)
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
        "Verdict: fixed.",
        "random rows (control)",
        "positive = proponent",
        "replays it",
    ):
        assert words in " ".join(done.stdout.split()), done.stdout
    assert done.stderr == "", "quiet when piped"


SMALL = ("--plant.draws", "1", "--train.epochs", "3", "--mitigate.steps", "2", "--mitigate.heal-steps", "2")


def test_stages_one_by_one_and_a_config_of_ones_own(tmp_path, capsys, monkeypatch):
    """A user's own model and corpus by reference, flags over YAML, each stage as a command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_vision.py").write_text(
        "import numpy as np\n"
        "from uimjax.models import MLP\n"
        "def corpus():\n"
        "    rng = np.random.default_rng(0)\n"
        "    def part(n):\n"
        "        y = rng.integers(4, size=n)\n"
        "        return {'image': rng.uniform(size=(n, 6, 7, 2)) * 0.2 + y[:, None, None, None] / 5, 'label': y}\n"
        "    return part(200), part(60)\n"
        "def model(shape, classes, rngs):\n"
        "    return MLP(shape, classes, rngs, widths=(16,))\n"
    )
    settings = {
        "corpus": "own_vision:corpus",
        "model": "own_vision:model",
        "plant": {"positives": 5, "hard_negatives": 8, "draws": 1, "size": 2},
        "trace": {"compare": ["grad_cos", "loss"], "sketch_rank": 4},
        "mitigate": {"seeds": 1, "steps": 2, "heal_steps": 2, "drop_epochs": 1},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    for stage, key in (
        ("train", "draws"),
        ("audit", "probe_before"),
        ("trace", "probe_before"),
        ("mitigate", "verdict"),
    ):
        code, out, err = run_cli(stage, "c.yaml", "--train.epochs", "2", "--json", capsys=capsys)
        assert code == 0, err
        assert key in json.loads(out)
    assert yaml.safe_load((tmp_path / "runs/c/config.lock.yaml").read_text())["config"]["train"]["epochs"] == 2
    assert json.loads(out)["verdict"].startswith("no ")


def test_other_choices_in_the_same_folder_are_not_answered_with_old_results(tmp_path):
    values = {"plant": {"draws": 1}, "train": {"epochs": 2}}
    one = workflow.run(parse(RunConfig, values, "t"), tmp_path, "audit")
    values["train"]["epochs"] = 5
    two = workflow.run(parse(RunConfig, values, "t"), tmp_path, "audit")
    fresh = workflow.run(parse(RunConfig, values, "t"), tmp_path / "fresh", "audit")
    assert one["utility_before"] != two["utility_before"]
    assert two["utility_before"] == fresh["utility_before"]
    assert two["probe_before"] == fresh["probe_before"]


def test_stopped_by_a_signal_it_says_how_to_continue_and_does(tmp_path):
    env = dict(os.environ, JAX_NUM_CPU_DEVICES="1")
    args = ["demo", "--vision.plant.draws", "1", "--vision.train.epochs", "4000", "--out", "r"]
    command = [sys.executable, "-m", "uimjax.cli", *args]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as run:
        while not (tmp_path / "r/vision/draw-0/metrics.jsonl").exists() and run.poll() is None:
            time.sleep(0.05)
        time.sleep(0.5)
        run.send_signal(signal.SIGTERM)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 75, err
    assert "run the same command again to continue" in err


def test_unknown_keys_methods_and_values_are_refused_with_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown key 'trian'; did you mean 'train'\?"):
        parse(RunConfig, {"trian": {}}, "c.yaml")
    with pytest.raises(ConfigError, match=r"unknown key 'train.epoch'; did you mean 'epochs'\?"):
        parse(RunConfig, {"train": {"epoch": 3}}, "c.yaml")
    with pytest.raises(ConfigError, match="train.epochs: .*greater than or equal to 1 .got 0."):
        parse(RunConfig, {"train": {"epochs": 0}}, "c.yaml")
    with pytest.raises(UnknownNameError, match="unknown method 'grad_coss'. Did you mean 'grad_cos'"):
        workflow.run(parse(RunConfig, {"trace": {"method": "grad_coss"}}, "c"), tmp_path / "x")
    with pytest.raises(UsageError, match="bm25 compares words"):
        workflow.run(parse(RunConfig, {"trace": {"compare": ["bm25"]}}, "c"), tmp_path / "x")
    with pytest.raises(UsageError, match="unknown corpus 'digit'"):
        workflow.run(parse(RunConfig, {"corpus": "digit"}, "c"), tmp_path / "x")
    with pytest.raises(UsageError, match="'no.such:thing' cannot be imported"):
        workflow.run(parse(RunConfig, {"corpus": "no.such:thing"}, "c"), tmp_path / "x")
    with pytest.raises(MissingFileError, match=r"rows.jsonl is not there"):
        workflow.run(parse(RunConfig, {"train_file": "rows.jsonl", "test_file": "t.jsonl"}, "c"), tmp_path / "x")
    with pytest.raises(UsageError, match="does not fit digits"):
        workflow.run(parse(RunConfig, {"plant": {"target": 12}}, "c"), tmp_path / "x")
    with pytest.raises(UnknownNameError, match="unknown model 'mpl'"):
        workflow.run(parse(RunConfig, {"model": "mpl"}, "c"), tmp_path / "x")
    with pytest.raises(UsageError, match="every one of the 1500 training rows"):
        workflow.run(parse(RunConfig, {"mitigate": {"budget": 0.9999}}, "c"), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def run_cli(*args, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(args))
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_exit_codes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run_cli("run", "none.yaml", capsys=capsys)
    assert (code, "none.yaml is not there" in err) == (3, True)
    (tmp_path / "bad.yaml").write_text("a: [1")
    assert run_cli("run", "bad.yaml", capsys=capsys)[0] == 2
    (tmp_path / "list.yaml").write_text("- 1")
    code, _, err = run_cli("run", "list.yaml", capsys=capsys)
    assert (code, "a mapping of settings was wanted" in err) == (2, True)
    (tmp_path / "blocked").write_text("")
    code, _, err = run_cli("demo", "--out", "blocked/run", capsys=capsys)
    assert (code, "Choose another folder with --out" in err) == (5, True)
    assert run_cli("doctor", "--nonsense", capsys=capsys)[0] == 2
    assert run_cli("demo", "--vision.train.epoch", "3", capsys=capsys)[0] == 2
    code, _, err = run_cli("help", "score", capsys=capsys)
    assert (code, "Did you mean 'scores'" in err) == (2, True)
    code, out, _ = run_cli("help", "scores", capsys=capsys)
    assert (code, "proponent" in out) == (0, True)
    code, _, err = run_cli("index", "verify", "nowhere", capsys=capsys)
    assert (code, "holds no index" in err) == (3, True)


def test_new_configs_parse_back_to_the_defaults(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_cli("new", "run", capsys=capsys)[0] == 0
    assert parse(RunConfig, yaml.safe_load((tmp_path / "run.yaml").read_text()), "run.yaml") == RunConfig()
    code, _, err = run_cli("new", "run", capsys=capsys)
    assert (code, "is there already" in err) == (5, True)
    code, _, err = run_cli("new", "rnu", capsys=capsys)
    assert (code, "Did you mean 'run'" in err) == (2, True)
    index = yaml.safe_load(commented("index"))
    assert set(index) == set(KINDS["index"].model_fields)


def test_shipped_configs_parse():
    """`configs/backdoor_digits.yaml` spells out the demo's defaults."""
    path = Path(__file__).parent.parent / "configs" / "backdoor_digits.yaml"
    assert parse(RunConfig, read_yaml(path), str(path)) == RunConfig()


LOAD = """
import jax.numpy as jnp, uimjax as uj
def load():
    return uj.Task(lambda w, e: jnp.sum((e["x"] @ w - e["y"]) ** 2)), jnp.ones(3) * SCALE
"""


def test_index_build_and_verify_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, scale in (("own_load", "1.0"), ("own_load_two", "2.0"), ("own_load_nan", "float('nan')")):
        (tmp_path / f"{name}.py").write_text(LOAD.replace("SCALE", scale))
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"x": [{k}, 1, 2], "y": {k}.5}}\n' for k in range(20)))
    (tmp_path / "i.yaml").write_text("load: own_load:load\nrows: rows.jsonl\nshard_rows: 8\n")
    done = uimjax("index", "build", "i.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"folder": "i.index", "rows": 20, "width": 3, "shards": 3}
    code, out, _ = run_cli("index", "verify", "i.index", capsys=capsys)
    assert (code, "every byte is right" in out) == (0, True)
    shard = tmp_path / "i.index/shards/000002.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    code, out, _ = run_cli("index", "verify", "i.index", "--json", capsys=capsys)
    assert code == 4
    assert "shard 2" in json.loads(out)["problems"][0]
    for module, rows, code, words in [
        ("own_load_two", None, 3, "MismatchError: i.index holds an index of other parameters"),
        ("own_load_nan", None, 3, "NonFiniteError: parameters"),
        ("own_load", '{"x": [1, 2, 3], "y": 1}\n{"x": [1, 2\n', 3, "rows.jsonl, line 2: not JSON"),
    ]:
        if rows:
            (tmp_path / "rows.jsonl").write_text(rows)
        found, _, err = run_cli("index", "build", "i.yaml", "--load", f"{module}:load", capsys=capsys)
        assert (found, words in err) == (code, True), err


def test_doctor_finds_this_machine_fit(capsys):
    code, out, _ = run_cli("doctor", "--json", capsys=capsys)
    checks = json.loads(out)
    assert code == 0, checks
    assert checks["per-example gradients"]["found"] == "equal jax.grad"
    assert checks["index"]["found"] == "built on 8 device(s), every byte right"
