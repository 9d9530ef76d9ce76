"""Two real processes over gloo: the same norms and sketches as in one."""

import os
import socket
import subprocess
import sys

import numpy as np

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
