"""The index: same scores as in memory, same bytes after any crash, and no answer to the wrong question."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uimjax as uj
from tests import programs
from tests.interpret.test_methods import ROWS
from uimjax import mesh
from uimjax.errors import (
    CorruptError,
    MismatchError,
    MissingFileError,
    NonFiniteError,
    OutputError,
    ShapeError,
    UnknownNameError,
    UsageError,
)
from uimjax.interpret import indexing, methods, trace

ROOT = Path(__file__).parent.parent.parent


def made(rng, batch=50, program=programs.mlp):
    loss, params, rows = program(rng, jnp.float32, batch=batch)
    data = jax.tree.map(np.asarray, rows)
    return uj.Task(loss), params, data, uj.Measurement("nll", loss), jax.tree.map(lambda x: x[:3], data)


def digest(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


OFF = {"float32": 1e-5, "bfloat16": 2e-2, "int8": 3e-2, "int4": 0.4, "rank3-bfloat16": 0.6}


@pytest.mark.parametrize("coding", OFF)
def test_an_index_answers_as_the_gradients_in_memory_do(rng, tmp_path, coding):
    program = programs.decoder if coding == "float32" else programs.mlp
    task, params, data, measurement, queries = made(rng, program=program)
    sketch = uj.Sketch(4)
    index = uj.build_index(task, params, data, tmp_path, sketch=sketch, batch_size=8, shard_rows=20, coding=coding)
    assert uj.verify_index(tmp_path) == []
    kept = jax.tree.map(lambda x: x[40:], data)
    for name in (name for name in ROWS if name != "trak"):
        method = methods.get(name, sketch)
        retain = kept if method.retain else None
        asked = trace.ask(tmp_path, task, params, data, measurement, queries, name, each=True, retain=retain)
        got, ask = trace.score_all(asked).values, (task, params, data, measurement, queries, method)
        want = uj.score(*ask, each=True, retain=retain, batch_size=16).values
        np.testing.assert_allclose(got, want, atol=OFF[coding] * np.abs(want).max())
        top = trace.top(asked, 7)
        order = np.argsort(-got, axis=0, kind="stable")
        if coding == "float32":  # others are multiplied as stored, which rounds otherwise
            np.testing.assert_array_equal(top.proponents, order[:7].T)
            np.testing.assert_array_equal(top.opponents, np.argsort(got, axis=0, kind="stable")[:7].T)
        np.testing.assert_allclose(top.proponent_scores, np.take_along_axis(got, order[:7], 0).T, rtol=1e-4, atol=1e-6)
    one = uj.trace(index, task, params, data, measurement, queries, k=99)
    assert one.proponents.shape == (1, 50)
    assert sorted(one.proponents[0]) == list(range(50))


def test_an_index_refuses_methods_that_need_other_gradients(rng, tmp_path):
    task, params, data, measurement, queries = made(rng)
    uj.build_index(task, params, data, tmp_path, sketch=uj.Sketch(4), batch_size=8)
    for name, reason in (("trak", "made of margin gradients, and an index holds"), ("ekfac", "measured on whole grad")):
        with pytest.raises(UsageError, match=reason):
            trace.ask(tmp_path, task, params, data, measurement, queries, name)


def test_losses_and_norms_are_stored(rng, tmp_path):
    task, params, data, *_ = made(rng, 10)
    index = uj.build_index(task, params, data, tmp_path, sketch=uj.Sketch(64), batch_size=4)
    (shard,) = index.shards()
    np.testing.assert_allclose(shard.loss, jax.vmap(lambda e: task.loss(params, e))(data), rtol=1e-5)
    np.testing.assert_allclose(shard.norm, uj.gradient_norms(task, params, data), rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(index.vectors(shard), axis=1), 1, rtol=1e-5)
    assert shard.ids.tolist() == list(range(10))


def test_devices_batches_and_shards_change_nothing_but_rounding(rng, tmp_path):
    task, params, data, measurement, queries = made(rng, 32)
    tops = []
    for devices, batch_size, shard_rows in [
        (1, 16, 16),
        (2, 16, 16),
        (4, 16, 16),
        (8, 16, 16),
        (1, 5, 16),
        (1, 50, 7),
        (2, 8, 50),
    ]:
        folder, split = tmp_path / f"{devices}-{batch_size}-{shard_rows}", mesh.make_mesh(devices)
        choices = {"sketch": uj.Sketch(4), "batch_size": batch_size, "shard_rows": shard_rows}
        uj.build_index(task, params, data, folder, **choices, mesh=None if devices == 1 else split)
        tops.append(uj.trace(folder, task, params, data, measurement, queries, k=20, each=True))
    for other in tops[1:]:
        np.testing.assert_array_equal(tops[0].proponents, other.proponents)
        np.testing.assert_array_equal(tops[0].opponents, other.opponents)
        np.testing.assert_allclose(tops[0].proponent_scores, other.proponent_scores, rtol=1e-4, atol=1e-6)


KILLS = 50 if os.environ.get("UIMJAX_NIGHTLY") else 4
TO_KILL = 5 * KILLS + 20  # shards; a build that is killed has made four at most
BUILD = """
import sys, time
import jax, jax.numpy as jnp, numpy as np
import uimjax as uj
def slow(items, what, unit="", skip=0):
    print("ready", flush=True)
    for item in items:
        yield item
        time.sleep(0.02)
rng = np.random.default_rng(0)
params = {"w": rng.normal(size=(6, 7)).astype(np.float32), "b": rng.normal(size=7).astype(np.float32)}
count = 4 * int(sys.argv[2])
data = {"x": rng.normal(size=(count, 6)).astype(np.float32), "y": rng.integers(7, size=count)}
loss = lambda p, e: -jax.nn.log_softmax(jnp.tanh(e["x"] @ p["w"]) + p["b"])[e["y"]]
uj.build_index(uj.Task(loss), params, data, sys.argv[1], sketch=uj.Sketch(4), batch_size=4, shard_rows=4, progress=slow)
"""


def start_build(folder: Path) -> subprocess.Popen:
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    env = dict(os.environ, JAX_NUM_CPU_DEVICES="1", **cache)  # all builds compile once
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(folder), str(TO_KILL)], stdout=subprocess.PIPE, cwd=ROOT, env=env
    )


def finished(folder: Path) -> int:
    path = folder / "journal.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_killed_again_and_again_and_resumed_the_bytes_are_the_same(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with start_build(whole) as build:
        assert build.wait(120) == 0
    rng, seen = np.random.default_rng(3), []
    for _ in range(KILLS):
        more = finished(killed) + int(rng.integers(0, 4))
        with start_build(killed) as build:
            assert build.stdout is not None
            build.stdout.readline()  # the first shard is about to be computed
            while finished(killed) < more and build.poll() is None:
                time.sleep(0.001)
            time.sleep(float(rng.uniform(0.0, 0.05)))
            build.send_signal(signal.SIGKILL)
            seen.append(build.wait(60))
    assert seen == [-signal.SIGKILL] * KILLS, "a build ended before it was cut off"
    assert 0 < finished(killed) < TO_KILL
    with start_build(killed) as build:
        assert build.wait(120) == 0
    assert digest(killed) == digest(whole)


def test_what_a_crash_leaves_is_swept_away(rng, tmp_path):
    task, params, data, *_ = made(rng, 12)
    kw = {"sketch": uj.Sketch(2), "batch_size": 4, "shard_rows": 4}
    uj.build_index(task, params, data, tmp_path / "a", **kw)
    want = digest(tmp_path / "a")
    broken = tmp_path / "a"
    lines = (broken / "journal.jsonl").read_text().splitlines(keepends=True)
    (broken / "journal.jsonl").write_text("".join(lines[:1]) + lines[1][:25])
    (broken / "shards" / ".tmp-01234567-000002.parquet").write_bytes(b"half")
    (broken / "shards" / "000001.parquet").write_bytes(b"never vouched for")
    with pytest.raises(MissingFileError, match="4 of 12 rows: its build was stopped"):
        uj.open_index(broken)
    uj.build_index(task, params, data, broken, **kw)
    assert digest(broken) == want


def test_another_process_that_was_faster_with_other_choices_is_found(rng, tmp_path, monkeypatch):
    task, params, data, *_ = made(rng, 12)
    write = indexing.store.write_manifest

    def after_another(path, document, **how):
        write(path, document | {"batch_size": 6})
        write(path, document, **how)

    monkeypatch.setattr(indexing.store, "write_manifest", after_another)
    with pytest.raises(MismatchError, match="batch"):
        uj.build_index(task, params, data, tmp_path, sketch=uj.Sketch(2), batch_size=4, shard_rows=4)
    assert not list((tmp_path / "shards").iterdir())


def test_damage_is_found_and_named(rng, tmp_path):
    task, params, data, measurement, queries = made(rng, 12)
    uj.build_index(task, params, data, tmp_path, sketch=uj.Sketch(2), batch_size=4, shard_rows=4)
    path = tmp_path / "shards" / "000001.parquet"
    good = path.read_bytes()
    path.write_bytes(good[:200] + bytes([good[200] ^ 4]) + good[201:])
    (problem,) = uj.verify_index(tmp_path)
    assert "shard 1" in problem
    assert "000001.parquet" in problem
    with pytest.raises(CorruptError, match="000001.parquet"):
        uj.trace(tmp_path, task, params, data, measurement, queries)
    path.unlink()
    assert "is missing" in uj.verify_index(tmp_path)[0]


def test_other_parameters_rows_losses_and_choices_are_refused(rng, tmp_path):
    task, params, data, measurement, queries = made(rng, 12)
    kw = {"sketch": uj.Sketch(2), "batch_size": 4}
    uj.build_index(task, params, data, tmp_path / "i", **kw)
    before = digest(tmp_path / "i")
    other = jax.tree.map(lambda x: x + 1, params)
    halved = uj.Task(lambda p, e: task.loss(p, e) / 2)
    with pytest.raises(MismatchError, match="built with other parameters"):
        uj.trace(tmp_path / "i", task, other, data, measurement, queries)
    with pytest.raises(MismatchError, match="built with another loss"):
        uj.trace(tmp_path / "i", halved, params, data, measurement, queries)
    with pytest.raises(MismatchError, match="holds an index of other parameters"):
        uj.build_index(task, other, data, tmp_path / "i", **kw)
    with pytest.raises(MismatchError, match="other training rows"):
        uj.build_index(task, params, jax.tree.map(lambda x: x[::-1], data), tmp_path / "i", **kw)
    with pytest.raises(MismatchError, match="another sketch"):
        uj.build_index(task, params, data, tmp_path / "i", sketch=uj.Sketch(2, seed=1), batch_size=4)
    with pytest.raises(MismatchError, match="batch_size 4 \\(asked for: 5\\)"):
        uj.build_index(task, params, data, tmp_path / "i", sketch=uj.Sketch(2), batch_size=5)
    with pytest.raises(UnknownNameError, match="'float16'.*Did you mean 'bfloat16'"):
        uj.build_index(task, params, data, tmp_path / "j", coding="float16", **kw)
    assert digest(tmp_path / "i") == before


def test_bad_input_writes_nothing(rng, tmp_path):
    task, params, data, *_ = made(rng, 12)
    bad = jax.tree.map(lambda x: x * np.nan, params)
    with pytest.raises(NonFiniteError, match="parameters: layers/0/b"):
        uj.build_index(task, bad, data, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write to"):
        uj.build_index(task, params, data, tmp_path / "file" / "index")
    with pytest.raises(MissingFileError, match="holds no index"):
        uj.open_index(tmp_path)


def test_a_journal_that_lost_a_line_is_refused(rng, tmp_path):
    task, params, data, measurement, queries = made(rng, 12)
    uj.build_index(task, params, data, tmp_path, sketch=uj.Sketch(2), batch_size=4, shard_rows=4)
    path = tmp_path / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[2])
    with pytest.raises(CorruptError, match="lists shard 2 where 1 was due"):
        uj.trace(tmp_path, task, params, data, measurement, queries)


def test_building_again_repairs_what_is_damaged(rng, tmp_path):
    task, params, data, *_ = made(rng, 12)
    kw = {"sketch": uj.Sketch(2), "batch_size": 4, "shard_rows": 4}
    uj.build_index(task, params, data, tmp_path, **kw)
    want = digest(tmp_path)
    (tmp_path / "shards" / "000000.parquet").unlink()
    (tmp_path / "shards" / "000001.parquet").write_bytes(b"damaged")
    uj.build_index(task, params, data, tmp_path, **kw)
    assert digest(tmp_path) == want


def test_files_of_others_are_left_alone(rng, tmp_path):
    task, params, data, *_ = made(rng, 12)
    (tmp_path / "shards").mkdir()
    mine = tmp_path / "shards" / "mydata.parquet"
    mine.write_bytes(b"mine")
    with pytest.raises(OutputError, match="holds files and .* no index"):
        uj.build_index(task, params, data, tmp_path)
    assert mine.read_bytes() == b"mine"


def test_what_does_not_fit_is_refused_before_anything_is_written(rng, tmp_path):
    task, params, data, measurement, queries = made(rng, 12)
    with pytest.raises(UsageError, match="batch_size 6 does not divide over 4 devices"):
        uj.build_index(task, params, data, tmp_path / "i", batch_size=6, mesh=mesh.make_mesh(4))
    with pytest.raises(ShapeError, match="the task's loss cannot be applied to one training row"):
        uj.build_index(task, params, {"z": data["x"]}, tmp_path / "i")
    with pytest.raises(ShapeError, match="hold no rows"):
        uj.build_index(task, params, jax.tree.map(lambda x: x[:0], data), tmp_path / "i")
    assert not (tmp_path / "i").exists()
    uj.build_index(task, params, data, tmp_path / "i", sketch=uj.Sketch(2))
    other = uj.Method("mine", uj.Sketch(2, seed=5))
    with pytest.raises(MismatchError, match="mine wants Sketch.*seed=5"):
        uj.trace(tmp_path / "i", task, params, data, measurement, queries, other)
    assert uj.trace(tmp_path / "i", task, params, data, measurement, queries).method == "grad_cos, rank-2 sketch"
