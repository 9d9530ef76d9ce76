"""Real processes: the same norms, sketches and indexes as of one, and a named end where one of them is lost."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.interpret.test_index import digest
from uimjax.errors import UsageError
from uimjax.interpret import fill
from uimjax.mesh import on_cluster, start_processes

ROOT = Path(__file__).parent.parent

SCRIPT = """
import sys
import jax, jax.numpy as jnp, numpy as np
rank, port, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
if rank >= 0:
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
from jax.experimental import multihost_utils
import uimjax as uj
from uimjax.mesh import data_sharding, make_mesh, replicated

rng = np.random.default_rng(0)
params = {"w": rng.normal(size=(6, 5)).astype(np.float32), "b": rng.normal(size=5).astype(np.float32)}
rows = {"x": rng.normal(size=(8, 6)).astype(np.float32), "y": rng.integers(5, size=8)}
task = uj.Task(lambda p, e: -jax.nn.log_softmax(jnp.tanh(e["x"] @ p["w"]) + p["b"])[e["y"]])
want = ("loss", "norm", "sketch")
if rank < 0:
    found = uj.collect(task, params, rows, want, sketch=uj.Sketch(3))
else:
    mesh = make_mesh()
    assert mesh.size == 4 and jax.process_count() == 2
    part = {k: v[4 * rank : 4 * rank + 4] for k, v in rows.items()}
    batch = {k: jax.make_array_from_process_local_data(data_sharding(mesh), v) for k, v in part.items()}
    held = jax.tree.map(lambda x: jax.make_array_from_process_local_data(replicated(mesh), x), params)
    found = uj.collect(task, held, batch, want, sketch=uj.Sketch(3))
    found = {k: multihost_utils.process_allgather(v, tiled=True) for k, v in found.items()}
if rank <= 0:
    np.savez(out, **{k: np.asarray(v) for k, v in found.items()})
"""


def test_two_processes_find_what_one_does(tmp_path):
    script = tmp_path / "part.py"
    script.write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = dict(os.environ, JAX_NUM_CPU_DEVICES="2", JAX_PLATFORMS="cpu")

    def start(rank, out):
        command = [sys.executable, str(script), str(rank), port, str(out)]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    running = [start(-1, tmp_path / "one.npz"), start(0, tmp_path / "two.npz"), start(1, tmp_path / "none.npz")]
    for process in running:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    one, two = (np.load(tmp_path / f"{name}.npz") for name in ("one", "two"))
    assert set(one) == set(two) == {"loss", "norm", "sketch"}
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- an index built by several


BUILD = """
import sys, time
import jax, jax.numpy as jnp, numpy as np
import uimjax as uj
from uimjax.errors import UimError
from uimjax.interpret.indexing import Share
from uimjax.mesh import start_processes
folder, process, processes, coordinator, limit, stuck = sys.argv[1:]
def slow(items, what, unit="", skip=0):
    print("ready", flush=True)
    for k, item in enumerate(items):
        if k == int(stuck):
            time.sleep(60)
        yield item
        time.sleep(0.02)
share = Share(*start_processes(coordinator or None, int(processes), int(process), 60), float(limit))
assert jax.process_count() == (int(processes) if coordinator else 1)
rng = np.random.default_rng(0)
params = {"w": rng.normal(size=(6, 7)).astype(np.float32), "b": rng.normal(size=7).astype(np.float32)}
data = {"x": rng.normal(size=(120, 6)).astype(np.float32), "y": rng.integers(7, size=120)}
loss = lambda p, e: -jax.nn.log_softmax(jnp.tanh(e["x"] @ p["w"]) + p["b"])[e["y"]]
how = {"sketch": uj.Sketch(4), "batch_size": 4, "shard_rows": 4, "coding": "int8", "share": share, "progress": slow}
try:
    uj.build_index(uj.Task(loss), params, data, folder, **how)
except UimError as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


def part_of_a_build(folder, process, processes, coordinator="", limit=60, stuck=-1):
    env = dict(os.environ, JAX_NUM_CPU_DEVICES="1", JAX_PLATFORMS="cpu")
    env |= {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / f"cache{process}")}
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-c", BUILD, *map(str, (folder, process, processes, coordinator, limit, stuck))]
    return subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(processes):
    """(exit code, what it said) of each."""
    out = []
    for process in processes:
        said = process.communicate(timeout=120)[1]
        out.append((process.returncode, said))
    return out


def test_killed_and_gone_on_by_one_or_two_the_bytes_are_those_of_one(tmp_path):
    assert ended([part_of_a_build(tmp_path / "whole", 0, 1)])[0][0] == 0
    want = digest(tmp_path / "whole")
    for name, again in (("one", 1), ("two", 2)):
        folder = tmp_path / name
        both = [part_of_a_build(folder, k, 2) for k in range(2)]
        assert both[1].stdout is not None
        both[1].stdout.readline()
        time.sleep(0.15)
        both[1].send_signal(signal.SIGKILL)
        (code, said), (killed, _) = ended(both)
        assert killed == -signal.SIGKILL, (said, _)
        assert (code, "LostProcessError: process 1 of 2 ended before it had made shard" in said) == (75, True), said
        assert not (folder / "price.json").exists()
        assert digest(folder) != want
        found = ended([part_of_a_build(folder, k, again) for k in range(again)])
        assert [code for code, _ in found] == [0] * again, found
        assert digest(folder) == want


def test_processes_that_a_coordinator_brings_together_build_the_same(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = ended([part_of_a_build(tmp_path / "both", k, 2, f"127.0.0.1:{port}") for k in range(2)])
    assert [code for code, _ in found] == [0, 0], found
    assert ended([part_of_a_build(tmp_path / "whole", 0, 1)])[0][0] == 0
    assert digest(tmp_path / "both") == digest(tmp_path / "whole")


def test_a_stalled_process_is_named_within_the_limit(tmp_path):
    both = [part_of_a_build(tmp_path / "i", 0, 2, limit=2), part_of_a_build(tmp_path / "i", 1, 2, stuck=3)]
    start = time.monotonic()
    code, said = ended(both[:1])[0]
    taken = time.monotonic() - start
    both[1].kill()
    ended(both[1:])
    assert (code, "process 1 of 2 has not made shard 7 for 2 s" in said) == (75, True), said
    assert taken < 40


def test_what_does_not_fit_is_refused_before_anything_starts(monkeypatch):
    with pytest.raises(UsageError, match="process 2 of 2: a number from 0 to 1"):
        start_processes(None, 2, 2)
    with pytest.raises(UsageError, match="name all of --coordinator"):
        start_processes("host:1", None, 0)
    with pytest.raises(UsageError, match="name all of --coordinator"):
        start_processes(None, 2)
    assert start_processes() == (0, 1)
    for name, value in (("SLURM_STEP_NUM_TASKS", "2"), ("OMPI_COMM_WORLD_SIZE", "4"), ("TPU_WORKER_HOSTNAMES", "a,b")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert on_cluster()
    assert not on_cluster()


def test_a_journal_of_the_run_before_is_no_process_that_ended(tmp_path):
    """A process that starts quicker than the others finds what they left the last time."""
    path, share = tmp_path / "journal", fill.Share(0, 2, 600)
    assert not fill._gone(path, time.time(), share), "nobody was ever there"
    path.write_text("")
    os.utime(path, (1000.0, 1000.0))
    assert not fill._gone(path, time.time(), share), "its successor may still be starting"
    assert fill._gone(path, time.time() - fill.GRACE_S - 1, share), "nobody came"
    assert fill._gone(path, time.time() - 6, share._replace(limit_s=5)), "nobody came, as long as was said"
    assert fill._gone(path, 999.0, share), "it was written in this run, and nobody holds it"
