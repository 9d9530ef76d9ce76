"""Other libraries on the weights and batch that uimjax was measured on, in their own interpreter (`peers_torch.py`).

A peer's answers are checked where its definitions are ours: the loss and the gradient norm of each example.
"""

import functools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import uimjax
from uimjax.errors import UsageError

NETWORKS = ("gpt", "mlp")
KEEP_BUFFERS = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_MMAP_THRESHOLD_": str(2**31 - 1),
}  # what `uimjax.keep_buffers` sets for us


def compare(python: str, name: str, run: Any, ours: dict[str, Any]) -> dict[str, Any]:
    """{peer: its examples a second, our sketches' over those, its version; or its error}."""
    found = measured(find(python), name, run)
    check(run, found)
    result = {}
    for peer, its in found.items():
        if "error" in its:
            result[peer] = its
            continue
        ratio = round(ours["sketch_examples_per_s"] / its["examples_per_s"], 2)
        result[peer] = {
            "examples_per_s": its["examples_per_s"],
            "ratio_ours_over_theirs": ratio,
            "version": its["version"],
        } | {key: its[key] for key in ("first_call_s",) if key in its}
    return result


def find(python: str) -> str:
    """The absolute path of an interpreter that can import torch."""
    path = shutil.which(python)
    if path is None:
        raise UsageError(
            f"--peers {python}: no such interpreter. Give the python of an environment that has torch and the peers: "
            "python -m venv peers && peers/bin/pip install torch bergson dattri traker."
        )
    path = str(Path(path).absolute())  # not resolved: a link into an environment is what makes it that environment's
    done = subprocess.run([path, "-c", "import torch"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(
            f"--peers {python}: cannot import torch there ({last_line(done.stderr)}). Run: "
            f"{python} -m pip install torch bergson dattri traker."
        )
    return path


def measured(python: str, name: str, run: Any) -> dict[str, dict[str, Any]]:
    """What `peers_torch.py` prints of this run's weights and rows: with the C library's usual settings, and with freed
    buffers kept as ours are; of each peer the faster."""
    usual, kept = (_run(python, name, run, more) for more in ({}, KEEP_BUFFERS))
    return {
        peer: max(its, kept.get(peer, its), key=lambda x: x.get("examples_per_s", 0)) for peer, its in usual.items()
    }


def _run(python: str, name: str, run: Any, environment: dict[str, str]) -> dict[str, dict[str, Any]]:
    script = Path(__file__).with_name("peers_torch.py").absolute()
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder, "params.npz"), **arrays(run.params))
        np.savez(Path(folder, "batch.npz"), **arrays({"batch": run.batch}))
        # In that folder, as some peers write where they stand.
        command, env = [python, str(script), folder, name], os.environ | environment
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=env)
    if done.returncode:
        return {"peers": {"error": f"exit status {done.returncode}: {last_line(done.stderr)}"}}
    return json.loads(last_line(done.stdout))


def arrays(tree: Any) -> dict[str, Any]:
    """Leaves by path: `blocks.0.q`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def check(run: Any, found: dict[str, dict[str, Any]]) -> None:
    """A network that was rebuilt wrongly would make every number void, so this stops the benchmark."""
    for its in found.values():
        if "losses" in its:
            want = jax.vmap(functools.partial(run.task.loss, run.params))(run.batch)
            np.testing.assert_allclose(its["losses"], want, rtol=1e-4, atol=1e-6)
        if "norms" in its:
            want = uimjax.gradient_norms(run.task, run.params, run.batch)
            np.testing.assert_allclose(its["norms"], want, rtol=1e-3, atol=1e-6)
