"""Sweeps: slow twins of single runs, what a run must not depend on, stopping and going on, and what is refused."""

import argparse
import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow.parquet as pq
import pytest
import yaml
from flax import nnx

from uimjax.commands import scaling as command
from uimjax.corpora.handwritten import digits
from uimjax.errors import (
    CorruptError,
    DataError,
    MismatchError,
    NoRoomError,
    ShapeError,
    UimError,
    UnknownNameError,
    UsageError,
)
from uimjax.models.blocks import Shape
from uimjax.models.classifiers import MLP
from uimjax.models.decoder import Decoder
from uimjax.sinks import JsonLines, TensorBoard
from uimjax.understand.scaling import fits, ledger, networks, runs, sweeps, table, together

HERE = "tests.understand.scaling.test_sweeps"
SMALL = {"width": 8, "depth": 1, "steps": 40, "batch_size": 16, "learning_rate": 1e-2}
ONE = [jax.devices()[0]]
SAME = {"rtol": 2e-5, "atol": 1e-6}  # float32: forty steps of rounding, batches of another size


@pytest.fixture(scope="module")
def data():
    corpus = digits()
    rows = corpus.train, corpus.test
    return networks.Labelled(*(part[name][:300] for part in rows for name in ("image", "label")))


def without_seconds(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def numbers_of(swept, *names):
    return np.array([[row[name] for name in names or ("loss", "accuracy", "train_loss")] for row in swept.rows])


# ---------------------------------------------------------------- twins


def speed_of(run, steps):
    """The schedule as its docstring says it, step by step."""
    found = []
    for step in range(steps):
        done = (step + (run.get("warmup", 0) > 0)) / steps
        after = np.clip((done - run.get("warmup", 0)) / (1 - run.get("warmup", 0)), 0, 1)
        share = 1.0 if run.get("schedule") == "constant" else 0.1 + 0.9 * (1 + np.cos(np.pi * after)) / 2
        found.append(run["learning_rate"] * (done / run["warmup"] if done < run.get("warmup", 0) else share))
    return jnp.asarray(found, jnp.float32)


def optimizer_of(run, steps):
    speeds = speed_of(run, steps)
    if run.get("optimizer") != "sgd":
        return optax.adamw(lambda step: speeds[step], weight_decay=1e-4, eps_root=1e-30)
    parts = [optax.add_decayed_weights(run["weight_decay"]), optax.sgd(lambda step: speeds[step], run["momentum"])]
    return optax.chain(optax.clip_by_global_norm(run["clip"]), *parts)


def drawn(run, rows, kinds, values):
    """(the rows, their corrupted labels or tokens, the batches of all steps), by the rule that `networks` states."""
    count = run["data"]
    order = np.random.default_rng([run["seed"], 0]).permutation(rows)[:count]
    rng, noisy = np.random.default_rng([run["seed"], 2]), values[order].astype(np.int64)
    flat = noisy.reshape(-1)
    hit = rng.permutation(flat.size)[: round(run["corruption"] * flat.size)]
    shift = rng.integers(1, kinds, size=flat.size)
    for place in hit:
        flat[place] = (flat[place] + shift[place]) % kinds
    stream = []
    while len(stream) < run["steps"] * run["batch_size"]:
        epoch = len(stream) // count
        stream += list(np.random.default_rng([run["seed"], 1, epoch]).permutation(count))
    return order, noisy, np.array(stream[: run["steps"] * run["batch_size"]]).reshape(run["steps"], -1)


def descended(run, params, loss, batches):
    optimizer = optimizer_of(run, run["steps"])

    @jax.jit
    def step(params, state, batch):
        updates, state = optimizer.update(jax.grad(loss)(params, *batch), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for batch in batches:
        params, state = step(params, state, batch)
    return params


def perceptron_twin(run, data):
    order, noisy, ids = drawn(run, len(data.y), 10, data.y)
    module = MLP(data.x.shape[1:], 10, nnx.Rngs(run["seed"]), widths=(run["width"],) * run["depth"])
    layers = [(np.asarray(m.kernel[...]), np.asarray(m.bias[...])) for m in [*module.hidden, module.head]]

    @jax.jit
    def logits(layers, x):
        x = x.reshape(len(x), -1)
        for k, (kernel, bias) in enumerate(layers):
            x = x @ kernel + bias[None]
            x = jnp.maximum(x, 0) if k < len(layers) - 1 else x
        return x

    def loss(layers, x, y):
        found = logits(layers, x)
        return jnp.mean(jax.nn.logsumexp(found, axis=1) - found[jnp.arange(len(y)), y])

    x = data.x[order]
    end = descended(run, layers, loss, [(x[at], noisy[at]) for at in ids])
    met = np.unique(ids)
    wrong = np.mean(np.argmax(logits(end, data.test_x), axis=1) != data.test_y)
    return {
        "loss": loss(end, data.test_x, data.test_y), "error_rate": wrong, "accuracy": 1 - wrong,
        "train_loss": loss(end, x[met], noisy[met]), "N": sum(k.size + b.size for k, b in layers), "U": len(met),
        "D": run["steps"] * run["batch_size"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "run",
    [
        {**SMALL, "depth": 2, "data": 90, "seed": 3, "corruption": 0.25},
        {**SMALL, "data": 300, "steps": 15, "seed": 4, "corruption": 0.0, "optimizer": "sgd", "momentum": 0.8,
         "weight_decay": 1e-3, "clip": 0.5, "warmup": 0.2, "schedule": "constant", "learning_rate": 0.3},
    ],
    ids=["adamw", "sgd"],
)  # fmt: skip
def test_a_run_equals_a_slow_twin_of_plain_loops(run, data, tmp_path):
    (row,) = sweeps.sweep(tmp_path, run, data=data, devices=ONE).rows
    twin = perceptron_twin(run, data)
    for name, value in twin.items():
        np.testing.assert_allclose(row[name], float(value), rtol=1e-4, err_msg=name)
    assert row["C"] == 6 * row["N"] * row["D"]
    assert row["repeats"] == row["D"] / row["U"]
    whole = {0.25: 22 / 90, 0.0: 0.0}[run["corruption"]]  # of 90 labels, no 22.5 are replaced
    assert (row["noise"], row["seed"], row["diverged"]) == (whole, run["seed"], False)


def test_a_decoder_equals_its_twin(tmp_path):
    rng, length, size = np.random.default_rng(0), 6, 11
    tokens = np.cumsum(rng.integers(1, 3, (70, length)), axis=1) % size
    run = {"width": 8, "depth": 1, "heads": 2, "data": 40, "steps": 12, "batch_size": 8, "seed": 1,
           "learning_rate": 1e-2, "corruption": 0.1}  # fmt: skip
    given = networks.Tokens(tokens[:50], tokens[50:], size)
    (row,) = sweeps.sweep(tmp_path, run, train="decoder", data=given, devices=ONE).rows

    graph, params = nnx.split(Decoder(Shape(size, length, 1, 8, 2), nnx.Rngs(1)))

    @jax.jit
    def every(params, tokens):
        model = nnx.merge(graph, params)
        logits = jax.vmap(model)(tokens)[:, :-1]
        chance = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(chance, tokens[:, 1:, None], axis=2)[..., 0], jnp.argmax(logits, axis=2)

    _, noisy, ids = drawn(run, 50, size, tokens[:50])
    end = descended(run, params, lambda p, t: jnp.mean(every(p, t)[0]), [(noisy[at],) for at in ids])
    nats, guess = every(end, tokens[50:])
    np.testing.assert_allclose(row["loss"], float(jnp.mean(nats)), rtol=1e-4)
    np.testing.assert_allclose(row["accuracy"], np.mean(guess == tokens[50:, 1:]), rtol=1e-5)
    np.testing.assert_allclose(row["train_loss"], float(jnp.mean(every(end, noisy[np.unique(ids)])[0])), rtol=1e-4)
    assert (row["D"], row["U"]) == (12 * 8 * 5, 40 * 5)  # predicted tokens
    assert row["N"] == sum(x.size for x in jax.tree.leaves(params))


def test_what_a_run_draws():
    small = {"seed": 5, "data": 30, "batch_size": 7}
    assert set(networks.chosen(small, 100)) < set(networks.chosen(small | {"data": 60}, 100))
    assert set(networks.chosen(small, 100)) != set(networks.chosen(small | {"seed": 6}, 100))
    ids = networks.met(small, 0, 30).reshape(-1)
    assert sorted(ids[:30]) == sorted(ids[30:60]) == list(range(30))  # a batch spans two epochs
    np.testing.assert_array_equal(networks.met(small, 11, 17), networks.met(small, 0, 30)[11:17])
    labels = np.arange(1000) % 4
    less, more = (networks.replaced(labels, q, 4, np.random.default_rng(1)) for q in (0.1, 0.3))
    assert ((less != labels).sum(), (more != labels).sum()) == (100, 300)
    assert (less == more)[less != labels].all()
    assert np.bincount((more - labels)[more != labels] % 4, minlength=4)[1:].min() > 70  # all others as likely


# ---------------------------------------------------------------- what a result does not depend on


AXES = {**SMALL, "data": [40, 300], "seed": [0, 1], "corruption": [0.0, 0.3], "learning_rate": [3e-3, 3e-2]}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return sweeps.sweep(folder, AXES, data=data, at_once=6, devices=ONE)


def test_neither_the_neighbours_nor_the_devices_change_a_run(whole, data, tmp_path):
    assert len(jax.devices()) == 8
    np.testing.assert_allclose(numbers_of(sweeps.sweep(tmp_path / "8", AXES, data=data)), numbers_of(whole), **SAME)
    for k in (8, 13):
        row = whole.rows[k]
        alone = {name: row[name] for name in runs.TRAINERS["mlp"] if name != "epochs"}
        found = sweeps.sweep(tmp_path / f"alone{k}", runs=[alone], data=data, devices=ONE)
        np.testing.assert_allclose(numbers_of(found), numbers_of(whole)[k : k + 1], **SAME)
        assert (found.rows[0]["devices"], row["devices"]) == (1, 1)


def test_groups_are_of_one_shape_and_the_largest_comes_first():
    listed = [runs.completed({"width": w, "seed": s}, "mlp", 90) for s in range(7) for w in (8, 16)]
    found = together.groups(runs.named(listed, listed), 3)
    assert [[len(chunk) for chunk in group.chunks] for group in found] == [[3, 3, 1], [3, 3, 1]]
    assert [{run.settings["width"] for chunk in group.chunks for run in chunk} for group in found] == [{16}, {8}]
    assert [len(c) for c in together.groups(runs.named(listed, listed), 5)[0].chunks] == [4, 3]


def test_processes_share_the_runs_and_the_last_writes_the_same_table(whole, data, tmp_path):
    share = lambda k: sweeps.sweep(tmp_path, AXES, data=data, at_once=6, devices=ONE, process=k, processes=3)  # noqa: E731
    first, second = share(1), share(0)
    assert (first.table, second.table) == (None, None)
    assert 16 > first.waiting > second.waiting > 0
    assert not (tmp_path / "runs.parquet").exists()
    last = share(2)
    assert last.table == tmp_path / "runs.parquet"
    assert without_seconds(last.rows) == without_seconds(whole.rows)


def test_a_sweep_that_was_stopped_goes_on_and_its_table_is_the_same_to_the_bit(whole, data, tmp_path, monkeypatch):
    def stops(items, *_, **__):
        yield items[0]
        raise KeyboardInterrupt

    go_on = lambda **more: sweeps.sweep(tmp_path, AXES, data=data, at_once=6, devices=ONE, **more)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        go_on(progress=stops)
    journal = tmp_path / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    journal.write_bytes(b"".join(lines[:4]) + lines[4][:50])  # torn in the middle of a chunk
    assert without_seconds(go_on().rows) == without_seconds(whole.rows)
    assert b"".join(lines[:4]) in journal.read_bytes()  # not run again
    before = (tmp_path / "runs.parquet").read_bytes(), (tmp_path / "runs.csv").read_bytes()
    monkeypatch.setattr(together, "trained", lambda *_: pytest.fail("nothing is left to train"))
    go_on()
    assert ((tmp_path / "runs.parquet").read_bytes(), (tmp_path / "runs.csv").read_bytes()) == before


def test_other_settings_and_other_data_are_other_runs(data):
    learnt = networks.problem("mlp", data)
    key = lambda learnt=learnt, at=3.0, **more: runs_of(learnt, at, SMALL | more)[0].key  # noqa: E731
    other = networks.problem("mlp", data._replace(y=(data.y + 1) % 10))
    keys = [key(), key(seed=1), key(weight_decay=0.0), key(clip=1.0), key(learnt=other), key(at=2.0)]
    assert len(set(keys)) == len(keys)
    assert key(learning_rate=1e-2, steps=40.0) == key()


def runs_of(learnt, at, settings):
    return sweeps.plan(None, [settings], "mlp", learnt, at)


# ---------------------------------------------------------------- divergence


def test_what_diverges_is_listed_and_its_neighbours_are_as_if_alone(data, tmp_path):
    axes = {**SMALL, "optimizer": "sgd", "learning_rate": [0.1, 1e6, 0.2]}
    swept = sweeps.sweep(tmp_path / "all", axes, data=data, devices=ONE)
    alone = sweeps.sweep(tmp_path / "sane", {**axes, "learning_rate": [0.1, 0.2]}, data=data, devices=ONE)
    np.testing.assert_allclose(numbers_of(swept), numbers_of(alone), **SAME)
    (out,) = swept.left_out
    assert out["diverged"] is True
    assert np.isnan(out["loss"])
    assert (out["why"], out["learning_rate"]) == ("diverged", 1e6)
    left = (tmp_path / "all" / "left_out.csv").read_text().splitlines()
    assert len(left) == 2
    assert "diverged" in left[1]
    assert [row["learning_rate"] for row in pq.read_table(swept.table).to_pylist()] == [0.1, 0.2]


def test_a_group_that_has_diverged_stops_early(data, tmp_path, monkeypatch):
    looked, met = [], networks.met
    monkeypatch.setattr(together, "PIECE", 4)
    monkeypatch.setattr(
        together, "met", lambda settings, first, stop: looked.append(first) or met(settings, first, stop)
    )
    with pytest.raises(DataError, match="all 1 runs diverged or failed; see .*left_out.csv. The first: diverged"):
        sweeps.sweep(tmp_path, {**SMALL, "optimizer": "sgd", "learning_rate": 1e9}, data=data, devices=ONE)
    assert max(looked) < SMALL["steps"] - 4
    looked.clear()
    with pytest.raises(DataError, match="diverged"):  # finite, but above the loss of a guess for more than ten steps
        sweeps.sweep(tmp_path, {**SMALL, "learning_rate": 1e-9}, data=data, devices=ONE, diverged_at=1.0001)
    assert 8 <= max(looked) < 24
    assert not (tmp_path / "runs.parquet").exists()


# ---------------------------------------------------------------- the reader's own


CALLS = []


def law(settings):
    """A known law, without training; fails and stops as it is told."""
    CALLS.append(dict(settings))
    if settings["D"] == STOP.get("at"):
        raise STOP["error"]
    loss = 0.5 + 30 / (settings["D"] * np.exp(-2 * settings["corruption"])) ** 0.4
    return {"loss": np.float32(loss) if settings["D"] < 500 else loss, "N": 10, "steps_taken": 3}


STOP = {}


def odd(settings):
    return {"list": [1.0], "none": {"lost": 1.0}, "word": {"loss": "low"}, "taken": {"loss": 1.0, "kind": 2},
            "nan": {"loss": float("nan")}, "good": {"loss": 1.0}}[settings["kind"]]  # fmt: skip


@pytest.fixture(autouse=True)
def stop():
    CALLS.clear()
    yield STOP
    STOP.clear()


OWN = {"D": [100, 400, 1600], "corruption": [0.0, 0.2], "seed": [0]}


def test_ones_own_trainer_goes_on_after_a_stop(stop, tmp_path):
    stop |= {"at": 400, "error": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        sweeps.sweep(tmp_path, OWN, train=f"{HERE}:law")
    stop.clear()
    swept = sweeps.sweep(tmp_path, OWN, train=f"{HERE}:law")
    assert [(its["D"], its["corruption"]) for its in CALLS] == [
        (100, 0.0), (100, 0.2), (400, 0.0), (400, 0.0), (400, 0.2), (1600, 0.0), (1600, 0.2)
    ]  # fmt: skip  # the one that was stopped, twice
    assert list(swept.rows[0])[:6] == ["run", "N", "D", "C", "noise", "loss"]
    assert swept.rows[2]["C"] == 6 * 10 * 400
    assert [row["noise"] for row in swept.rows] == [0.0, 0.2] * 3
    held = pq.read_table(swept.table)
    assert held.column_names == list(swept.rows[0])
    assert held.to_pylist() == swept.rows
    assert held.schema.metadata[b"C"].startswith(b"floating-point operations, 6 N D")
    assert json.loads((tmp_path / "columns.json").read_text())["N"] == "trainable parameters"


def test_a_run_that_fails_is_listed_does_not_stop_the_others_and_is_tried_again(stop, tmp_path):
    stop |= {"at": 400, "error": ZeroDivisionError("no luck")}
    swept = sweeps.sweep(tmp_path, OWN, train=f"{HERE}:law")
    assert [row["D"] for row in swept.rows] == [100, 100, 1600, 1600]
    assert [row["D"] for row in swept.left_out] == [400, 400]
    assert "ZeroDivisionError: no luck" in swept.left_out[0]["why"]
    CALLS.clear()
    stop.clear()
    again = sweeps.sweep(tmp_path, OWN, train=f"{HERE}:law")
    assert len(CALLS) == 2
    assert len(again.rows) == 6
    assert not (tmp_path / "left_out.csv").exists()


@pytest.mark.parametrize(
    ("kind", "told"),
    [("list", "list came back; a mapping"), ("none", "with 'loss', was wanted"), ("nan", "diverged"),
     ("word", "'loss' is 'low'; a number was wanted"), ("taken", "'kind' came back, which is the name of a setting")],
)  # fmt: skip
def test_what_ones_own_trainer_may_not_give(kind, told, tmp_path):
    swept = sweeps.sweep(tmp_path, {"kind": ["good", kind]}, train=f"{HERE}:odd")
    assert [row["kind"] for row in swept.rows] == ["good"]
    assert told in swept.left_out[0]["why"]
    with pytest.raises(DataError, match="all 1 runs diverged or failed"):
        sweeps.sweep(tmp_path, {"kind": kind}, train=f"{HERE}:odd")


MODULE = """
import os, signal
def fn(settings):
    if settings["D"] == 6 and not os.path.exists("second"):
        open("second", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"loss": 1 + 1 / settings["D"], "N": 1}
"""
CODE = """
from uimjax.understand.scaling.sweeps import sweep
sweep("out", {"D": list(range(1, 21))}, train="mine:fn", process=1, processes=2)
"""


def test_a_killed_process_goes_on(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MODULE)
    killed = subprocess.run([sys.executable, "-c", CODE], cwd=tmp_path, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    monkeypatch.chdir(tmp_path)  # where references are looked for
    swept = sweeps.sweep("out", {"D": list(range(1, 21))}, train="mine:fn")
    assert (swept.waiting, str(swept.table)) == (0, "out/runs.parquet")
    assert table.read(tmp_path / "out" / "runs.parquet")["D"] == list(range(1, 21))
    assert len((tmp_path / "out" / "journal.jsonl").read_text().splitlines()) == 20  # 2 and 4 were not run again


def test_many_write_to_one_journal(tmp_path):
    def write(k):
        for _ in range(20):
            ledger.append(tmp_path, [ledger.Entry(f"{k}-{n}", "r" * 300, {}, {"loss": 1.0}) for n in range(5)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 8 * 20 * 5
    assert len(ledger.read(tmp_path)) == 40


def test_a_changed_journal_is_refused(tmp_path):
    sweeps.sweep(tmp_path, OWN, train=f"{HERE}:law")
    journal = tmp_path / "journal.jsonl"
    text = journal.read_text()
    for bad in (text.replace('"N": 10', '"N": 11', 1), "{}\n" + text, "7\n" + text):
        journal.write_text(bad)
        with pytest.raises(CorruptError, match="line 1 was changed or damaged. Remove that line"):
            sweeps.sweep(tmp_path, OWN, train=f"{HERE}:law")


def test_runs_of_two_versions_are_not_mixed(tmp_path, monkeypatch):
    sweeps.sweep(tmp_path, OWN, train=f"{HERE}:law")
    CALLS.clear()
    monkeypatch.setattr(sweeps, "_VERSIONS", {"uimjax": "99", "jax": "98"})
    assert len(sweeps.sweep(tmp_path, OWN, train=f"{HERE}:law").rows) == 6  # all of one version: nothing to mix
    with pytest.raises(MismatchError, match="of uimjax .*; here is uimjax 99, jax 98.*another folder"):
        sweeps.sweep(tmp_path, {**OWN, "seed": [0, 1]}, train=f"{HERE}:law")
    assert not CALLS
    assert (tmp_path / "runs.csv").exists()
    assert len(sweeps.sweep(tmp_path, {**OWN, "seed": [1]}, train=f"{HERE}:law").rows) == 6  # runs of its own


def test_tables_of_an_earlier_sweep_go_while_runs_wait(tmp_path):
    """And come again when none waits."""
    names, wider = ("runs.parquet", "runs.csv", "columns.json"), {**OWN, "seed": [0, 1]}
    sweeps.sweep(tmp_path, OWN, train=f"{HERE}:law")
    before = (tmp_path / "runs.csv").read_bytes()
    swept = sweeps.sweep(tmp_path, wider, train=f"{HERE}:law", process=0, processes=2)
    assert (swept.table, swept.waiting > 0) == (None, True)
    assert not any((tmp_path / name).exists() for name in names)
    sweeps.sweep(tmp_path, OWN, train=f"{HERE}:law")
    assert (tmp_path / "runs.csv").read_bytes() == before
    assert all((tmp_path / name).exists() for name in names)


# ---------------------------------------------------------------- recorders, laws


def test_each_run_is_recorded_once(data, tmp_path):
    asked = []

    def recorder(run):
        asked.append(run)
        logs = tmp_path / "logs" / run
        return {1: None, 2: TensorBoard(logs)}.get(len(asked), JsonLines(logs / "metrics.jsonl"))

    axes = {**SMALL, "seed": [0, 1, 2]}
    swept = sweeps.sweep(tmp_path / "out", axes, data=data, devices=ONE, recorder=recorder)
    sweeps.sweep(tmp_path / "out", axes, data=data, devices=ONE, recorder=recorder)
    assert asked == [row["run"] for row in swept.rows]
    assert asked[0].startswith("width8-depth1-steps40-batch_size16-learning_rate0.01-seed0-")
    assert len(list((tmp_path / "logs" / asked[1]).glob("*tfevents*"))) == 1
    held = json.loads((tmp_path / "logs" / asked[2] / "metrics-hparams.json").read_text())
    assert held["hparams"]["seed"] == 2
    assert "clip" not in held["hparams"]  # none is not a value there
    assert held["metrics"]["loss"] == swept.rows[2]["loss"]
    line = json.loads((tmp_path / "logs" / asked[2] / "metrics.jsonl").read_text())
    assert (line["step"], line["accuracy"]) == (40, swept.rows[2]["accuracy"])


def test_the_table_goes_straight_into_a_fit(data, tmp_path):
    axes = {**SMALL, "steps": None, "epochs": 20, "data": [20, 40, 80, 150, 300], "corruption": [0.0, 0.2, 0.4],
            "seed": [0, 1]}  # fmt: skip
    swept = sweeps.sweep(tmp_path, axes, data=data, devices=ONE)
    found = [fits.fit(given, "corrupted", starts=64) for given in (swept.table, tmp_path / "runs.csv", swept.rows)]
    assert all(law.natural == found[0].natural for law in found)
    assert len(found[0].rows.y) == 30
    np.testing.assert_array_equal(found[0].rows.x["noise"], [row["corruption"] for row in swept.rows])
    assert found[0].r2 > 0.6
    assert 1 < found[0].natural["kappa"] < 4  # noise counts as less data


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        ({"widht": [8]}, "unknown axis of trainer 'mlp' 'widht'. Did you mean 'width'"),
        ({"heads": 2}, "unknown axis of trainer 'mlp' 'heads'"),
        ({"optimizer": "adamW"}, "unknown optimizer 'adamW'. Did you mean 'adamw'"),
        ({"schedule": 3}, "unknown schedule '3'"),
        ({"width": 0}, "width=0 arrived; a whole number of 1 or more was wanted"),
        ({"depth": 1.5}, "depth=1.5 arrived"),
        ({"seed": True}, "seed=True arrived"),
        ({"seed": -1}, r"seed=-1 arrived; a whole number from 0 to 2\^31"),
        ({"learning_rate": "fast"}, "learning_rate='fast' arrived; a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan arrived"),
        ({"corruption": 1.0}, r"corruption=1.0 arrived; a number in \[0, 1\) was wanted"),
        ({"data": 301}, "data=301 arrived and there are 300 training rows"),
        ({"steps": 3, "epochs": 1}, "steps and epochs both say how long"),
        ({"seed": [1, 1]}, "the axis 'seed' has the value 1 twice"),
        ({"seed": []}, "the axis 'seed' has no values"),
        (None, "one of axes"),
    ],
)
def test_axes_that_are_refused(axes, told, data, tmp_path):
    with pytest.raises(UsageError, match=told):
        sweeps.sweep(tmp_path / "out", axes, data=data)
    assert not (tmp_path / "out").exists()


def test_choices_that_are_refused(data, tmp_path, monkeypatch):
    refused = lambda told: pytest.raises(UsageError, match=told)  # noqa: E731
    go = lambda axes=SMALL, **more: sweeps.sweep(tmp_path, axes, **({"data": data} | more))  # noqa: E731
    with pytest.raises(UnknownNameError, match="unknown trainer .*'mpl'. Did you mean 'mlp'"):
        go(train="mpl")
    with refused("'nowhere:fn' cannot be imported"):
        go(train="nowhere:fn", data=None)
    with refused("reads its own data; leave data out"):
        go(train=f"{HERE}:law")
    with refused(r"'decoder' learns from Tokens\(tokens, test_tokens, vocabulary\) and data is NoneType: .*sweep\("):
        go(train="decoder", data=None)
    with refused("process 2 of 2: a number from 0 to 1"):
        go(process=2, processes=2)
    with refused("at_once=0"):
        go(at_once=0)
    with refused("diverged_at=1"):
        go(diverged_at=1)
    with refused("devices=\\[\\] arrived"):
        go(devices=[])
    with refused("run 2 is run 1 again"):
        go(None, runs=[SMALL, SMALL])
    with refused("runs=\\[\\] arrived"):
        go(None, runs=[])
    with refused("an axis called 'loss' arrived"):
        go({"loss": 1}, train=f"{HERE}:law", data=None)
    with refused("a=\\(1, 2\\) is a tuple"):
        go(None, runs=[{"a": (1, 2)}], train=f"{HERE}:law", data=None)
    monkeypatch.setattr("uimjax.machine.device_memory", lambda: 0)
    with pytest.raises(NoRoomError, match="a program for runs together of 1 needs"):
        go(devices=ONE)


def test_data_that_are_refused(data):
    assert networks.problem("mlp", None).rows == 1500  # the digits
    with pytest.raises(ShapeError, match=r"y is float64\[300\]; integers from 0, of 1 axis"):
        networks.problem("mlp", data._replace(y=np.zeros(300)))
    with pytest.raises(ShapeError, match="x of shape .* test_x"):
        networks.problem("mlp", data._replace(test_x=np.zeros((297, 3))))
    with pytest.raises(ShapeError, match="all labels are 0"):
        networks.problem("mlp", data._replace(y=np.zeros(300, int), test_y=np.zeros(len(data.test_y), int)))
    with pytest.raises(ShapeError, match="differ in length"):
        networks.problem("mlp", data._replace(y=data.y[:5]))
    tokens = np.arange(12).reshape(3, 4)
    with pytest.raises(ShapeError, match=r"tokens \[3, 4\] and test_tokens \[3, 3\]"):
        networks.problem("decoder", networks.Tokens(tokens, tokens[:, :3]))
    with pytest.raises(UsageError, match="the token 11 does not belong to a vocabulary of 5"):
        networks.problem("decoder", networks.Tokens(tokens, tokens, 5))


def test_epochs_are_told_in_steps():
    steps = lambda **more: runs.completed(more, "mlp", 100)["steps"]  # noqa: E731
    assert steps(epochs=3, batch_size=7) == 43
    assert steps(epochs=0.1, data=30, batch_size=1) == 3
    assert steps(epochs=1e-3) == 1
    assert "epochs" not in runs.completed({}, "mlp", 100)


def test_a_column_is_of_one_type(tmp_path):
    rows = [ledger.Entry(str(k), f"r{k}", {"a": v}, {"loss": 1.0}) for k, v in enumerate((1, 2.5, None))]
    ledger.append(tmp_path, rows)
    planned = [runs.Run(entry.run, entry.key, entry.settings) for entry in rows]
    assert pq.read_table(ledger.settled(tmp_path, planned).table)["a"].to_pylist() == [1.0, 2.5, None]
    assert ledger._column([1, "b"]).to_pylist() == ["1", "b"]


GRID = {"width": [8], "data": [100, 200, 400, 800], "corruption": [0.0, 0.2]}


def swept_by_command(folder, **config):
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"kind": "sweep", "out": str(folder / "s")} | config))
    given = {"action": "sweep", "target": str(folder / "sweep.yaml"), "out": None, "json": False}
    return command.scaling(argparse.Namespace(**given, process=0, processes=1), [])


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"axes": GRID, "form": "corupted"}, "Did you mean 'corrupted'"),
        ({"axes": GRID, "objective": "hubber"}, "huber"),
        ({"axes": GRID, "loss": "los"}, "Did you mean 'loss'"),
        ({"axes": GRID, "columns": {"D": "V"}}, "unknown column 'V'"),
        ({"axes": GRID, "columns": {"Q": "U"}}, "unknown input of the form corrupted 'Q'"),
        ({"axes": GRID | {"data": [100, 200]}}, "needs at least 5 runs of different D, noise; 4 arrived"),
        ({"axes": GRID | {"steps": [9]}}, r"needs at least 5 .*`columns: {D: U}` takes .*Nothing was trained"),
        ({"axes": GRID | {"corruption": [0.0]}, "columns": {"D": "U"}}, "needs at least 5 runs of different D, noise"),
        ({"axes": GRID, "form": "corrupted_sized"}, "cannot tell .* apart: different values there are 1 of N"),
        ({"axes": GRID, "train": "decoder"}, "a decoder learns from tokens.*uj.scaling.sweep"),
        ({"axes": {"D": [1]}, "train": f"{HERE}:law", "columns": {"Q": "D"}}, "unknown input of the form"),
    ],
)
def test_a_law_that_the_runs_could_not_show_is_refused_before_they_train(config, told, tmp_path, monkeypatch):
    monkeypatch.setattr(together, "trained", lambda *_: pytest.fail("trained"))
    with pytest.raises(UimError, match=told):
        swept_by_command(tmp_path, **config)
    assert not CALLS
    assert not (tmp_path / "s").exists()


def test_no_list_is_named_that_is_not_there(tmp_path, capsys):
    config = {"axes": OWN, "train": f"{HERE}:law", "form": None}
    swept_by_command(tmp_path, **config)
    assert "6 runs in" in (said := capsys.readouterr().out)
    assert "0 left out" in said
    assert "left_out.csv" not in said
    STOP.update({"at": 6400, "error": ZeroDivisionError("no luck")})
    swept_by_command(tmp_path, **(config | {"axes": OWN | {"D": [100, 6400]}}))
    assert "2 left out (" + str(tmp_path / "s" / "left_out.csv") in capsys.readouterr().out
