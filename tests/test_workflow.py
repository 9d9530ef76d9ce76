"""The closed loop as a person runs it: the gates, the files, what is skipped, what is replayed, what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
import yaml

from tests.conftest import command_line
from uimjax import cli, models, workflow
from uimjax.config import KINDS, RunConfig, commented, parse, read_yaml
from uimjax.errors import ConfigError, MissingFileError, UnknownNameError, UsageError


def test_a_run_moved_to_a_machine_that_rounds_otherwise_goes_on(tmp_path, monkeypatch):
    config = parse(RunConfig, {"plant": {"draws": 1}, "train": {"epochs": 1}}, "t")
    workflow.run(config, tmp_path, "train")
    build = models.build
    for factor, same in ((1 + 1e-6, True), (1.01, False)):

        def other(*args, factor=factor):
            task, params = build(*args)
            return task, jax.tree.map(lambda x: x * factor, params)

        monkeypatch.setattr(models, "build", other)
        said = []
        workflow.run(config, tmp_path, "train", said.append)
        assert said[0].endswith("(unchanged, kept)") == same, factor


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


def test_stopped_the_interpreter_is_not_taken_apart_below_running_programs(monkeypatch, capsys):
    """Once in twenty stops it ended with a segmentation fault in the place of exit code 75."""
    left = []

    def leave(code):
        left.append(code)
        raise SystemExit(99)

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os._exit", leave)
    monkeypatch.setattr("uimjax.cli._command_of", lambda _name: stopped)
    with pytest.raises(SystemExit, match="99"):
        cli.main(["doctor"])
    assert left == [75]
    assert "run the same command again" in capsys.readouterr().err


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
    code, _, err = run_cli("demo", "--only", "vision", "--text.seed", "3", capsys=capsys)
    assert (code, "--text.seed would change nothing with --only vision" in err) == (2, True)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "\x1b[31mred.txt").write_bytes(b"\xff")
    odd = ("--train-folder", "odd", "--test-folder", "odd")
    (tmp_path / "text.yaml").write_text("kind: text")
    code, _, err = run_cli("train", "text.yaml", *odd, capsys=capsys)
    assert (code, "\x1b" in err, "[U+001B][31mred.txt is not UTF-8" in err) == (3, False, True)
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
    done = command_line("index", "build", "i.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["price"][0]["recall"] == 1.0
    del found["price"]
    sizes = {"rows": 20, "width": 3, "shards": 3, "coding": "float32", "row_bytes": 12}
    assert found == {"folder": "i.index"} | sizes
    code, out, _ = run_cli("index", "verify", "i.index", capsys=capsys)
    assert (code, "every byte is right" in out) == (0, True)
    shard = tmp_path / "i.index/shards/000002.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    code, out, _ = run_cli("index", "verify", "i.index", "--json", capsys=capsys)
    assert code == 4
    assert "shard 2" in json.loads(out)["problems"][0]
    code, out, _ = run_cli("index", "repair", "i.yaml", capsys=capsys)
    assert (code, "000002.parquet computed again" in out) == (0, True)
    code, out, _ = run_cli("index", "repair", "i.yaml", "--json", capsys=capsys)
    assert (code, json.loads(out)) == (0, {"repaired": []})
    (tmp_path / "more.jsonl").write_text("".join(f'{{"x": [1, {k}, 2], "y": {k}.5}}\n' for k in range(9)))
    few = ("--rows", "more.jsonl", "--coding", "int8", "--json")
    code, out, err = run_cli("index", "build", "i.yaml", *few, "--out", "few", capsys=capsys)
    assert (code, json.loads(out)["coding"]) == (0, "int8"), err
    code, out, err = run_cli("index", "merge", "i.index", "few", "--out", "both", capsys=capsys)
    assert (code, "coding float32 (asked for: int8)" in err or "coding int8" in err) == (3, True), err
    code, _, err = run_cli("index", "merge", "i.index", "few", capsys=capsys)
    assert (code, "with --out FOLDER" in err) == (2, True)
    code, out, err = run_cli("index", "append", "i.yaml", "--rows", "more.jsonl", "--out", "few", capsys=capsys)
    assert (code, "9 rows of 3 numbers (int8" in out) == (0, True), err  # they are there already
    code, out, err = run_cli("index", "append", "i.yaml", "--out", "few", capsys=capsys)
    assert (code, "29 rows of 3 numbers" in out) == (0, True), err
    assert "are kept (on 9 rows)" in out
    code, out, _ = run_cli("index", "verify", "few", capsys=capsys)
    assert code == 0
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


TASKS = """
import jax, jax.numpy as jnp, numpy as np, uimjax as uj
rng = np.random.default_rng(0)
params = {"w": rng.normal(size=(6, 4)).astype(np.float32), "v": rng.normal(size=(6, 4)).astype(np.float32)}
rows = {"x": rng.normal(size=(11, 6)).astype(np.float32)}
loss = lambda p, e: jnp.sum(jnp.tanh(e["x"] @ p["w"]) * jnp.tanh(e["x"] @ (p["v"] / jnp.linalg.norm(p["v"]))))
def good():
    return uj.Task(loss, batch_loss=lambda p, b: jax.vmap(lambda e: loss(p, e))(b).sum()), params, rows
def mean():
    return uj.Task(loss, batch_loss=lambda p, b: jax.vmap(lambda e: loss(p, e))(b).mean()), params, rows
def bad():
    return uj.Task(loss), params, {"x": np.full((3, 6), np.nan, np.float32)}
def odd():
    return uj.Task(lambda p, e: jnp.sum(e["z"] @ p["w"])), params, rows
def pair():
    return uj.Task(loss), params
def packed():
    together = {"x": rng.normal(size=(5, 7, 6)).astype(np.float32), "s": np.tile([1, 1, 1, 2, 2, 2, 0], (5, 1))}
    each = lambda p, e: jnp.tanh(e["x"] @ p["w"]).sum(-1)
    return uj.Task(each, segments=lambda e: e["s"], documents=2), params, together
"""


def test_doctor_examines_ones_own_loss(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_task.py").write_text(TASKS)
    code, out, _ = run_cli("doctor", "--task", "own_task:good", "--json", capsys=capsys)
    checks = json.loads(out)
    assert code == 0, checks
    assert checks["batch_loss"]["found"] == "equals the sum over examples"
    assert "1 parameters are formed for every example, v the largest" in checks["factored"]["found"]
    assert checks["one trace"]["found"].startswith("0 further traces")
    assert "of a plain backward pass" in checks["price"]["found"]
    code, out, _ = run_cli("doctor", "--task", "own_task:good", capsys=capsys)
    assert (code, "coverage 100% of 48 parameters" in out, "FAIL" in out) == (0, True, False)
    code, out, _ = run_cli("doctor", "--task", "own_task:packed", capsys=capsys)
    assert (code, "packed documents" in out, "FAIL" in out) == (0, True, False), out
    for name, words in (
        ("mean", "batch_loss is a mean where the sum was wanted"),
        ("bad", "NonFiniteError: training rows: x"),
        ("odd", "cannot be applied to one training row"),
    ):
        code, out, _ = run_cli("doctor", "--task", f"own_task:{name}", capsys=capsys)
        assert (code, "FAIL  your loss" in out, words.split(" is ")[0] in out) == (1, True, True), out
    code, _, err = run_cli("doctor", "--task", "own_task:pair", capsys=capsys)
    assert (code, "own_task:pair returned tuple; (uimjax.Task, params, rows) was wanted" in err) == (2, True)
