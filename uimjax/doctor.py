"""Is this machine fit: versions, devices, a proven gradient, a checked shard, disk. And the reader's own loss."""

import dataclasses
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import rows as row
from uimjax import taps
from uimjax.errors import UimError
from uimjax.interpret.base import followed_sites
from uimjax.interpret.index import verify_index
from uimjax.interpret.indexing import build_index
from uimjax.mesh import make_mesh
from uimjax.onepass import collect
from uimjax.task import Task

Check = tuple[str, bool, str]


def examine() -> list[Check]:
    """(what, is it fine, what was found), in the order in which one would mend them."""
    python = ".".join(map(str, sys.version_info[:3]))
    free = shutil.disk_usage(".").free / 2**30
    devices = jax.devices()
    return [
        ("Python 3.11 to 3.13", (3, 11) <= sys.version_info[:2] <= (3, 13), python),
        ("JAX 0.10 to 0.12", (0, 10) <= _version(jax.__version__) < (0, 13), jax.__version__),
        ("devices", bool(devices), f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"),
        ("disk", free > 1, f"{free:.0f} GiB free here"),
        *_proofs(),
    ]


def examine_task(task: Task, params: Any, rows: Any) -> tuple[list[Check], str]:
    """Every check of the taps on the reader's own loss, and the table of its sites. One that fails ends the list."""
    checks: list[Check] = []
    table = ""
    try:
        count = row.count(rows)
        found = followed_sites(task, params, rows)
        table = str(found)
        checks.append(("parameters and rows", True, f"{count} rows, all finite"))
        share = f"{found.coverage:.0%} of the parameters, each proven against jax.grad on the first rows"
        checks.append(("gradients", True, share))
        coupled = "not given: if the loss was trained on batches, batch norm or MoE capacity would pass unseen"
        checks.append(("batch_loss", True, coupled if task.batch_loss is None else "equals the sum over examples"))
        if task.segments is not None:
            checks.append(("packed documents", True, "none has a gradient through another's positions"))
        formed = {leaf.path: leaf.size for leaf in found.used if any(s.kind == "direct" for s in leaf.sites)}
        formed |= {leaf.path: leaf.size for leaf in found.used if leaf.through}
        largest = max(formed, key=lambda path: formed[path], default="")
        costly = f"{len(formed)} parameters are formed for every example, {largest} the largest of them"
        checks.append(("factored", True, costly if formed else "no gradient of a matrix is formed"))
        checks += _behaviour(task, params, rows)
    except UimError as error:
        checks.append(("your loss", False, f"{type(error).__name__}: {error}"))
    return checks, table


def _behaviour(task: Task, params: Any, rows: Any) -> list[Check]:
    """Run the loss as a stream would: the same twice, no further trace for a ragged end, and at which price."""
    traced = []

    def loss(params: Any, example: Any) -> Any:
        traced.append(1)
        return task.loss(params, example)

    counted = dataclasses.replace(task, loss=loss)
    size = max(1, min(row.count(rows) - 1, 32))
    stream = list(row.batches(rows, size, stop=min(row.count(rows), 2 * size + 1)))
    wanted = ("loss", "norm", "sketch")
    one = collect(counted, params, stream[0].rows, wanted)
    warm = len(traced)
    two = [collect(counted, params, batch.rows, wanted) for batch in stream][0]
    same = all(bool((a == b).all()) for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True))
    plain = jax.jit(jax.grad(lambda p, r: jax.vmap(lambda e: jnp.sum(task.loss(p, e)))(r).sum(), allow_int=True))
    calls = {
        "plain": lambda: plain(params, stream[0].rows),
        "taps": lambda: collect(counted, params, stream[0].rows, wanted),
    }
    took = {name: min(_seconds(call) for _ in range(4)) for name, call in calls.items()}
    price = f"norms and rank-16 sketches take {took['taps'] / took['plain']:.2f} of a plain backward pass here"
    return [
        (
            "repeatable",
            same,
            "the same twice, to the bit" if same else "two runs on the same rows differ: is a key missing?",
        ),
        ("one trace", len(traced) == warm, f"{len(traced) - warm} further traces over a stream with a ragged end"),
        ("price", True, price),
    ]


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def _proofs() -> list[Check]:
    """Run the engine on a tiny loss: factors against jax.grad, then an index on every device, verified."""
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)}
    rows = {"x": rng.normal(size=(16, 4)).astype(np.float32)}
    task = Task(lambda p, e: jnp.sum(jnp.tanh(e["x"] @ p["w"])))
    checks: list[Check] = []
    try:
        found = taps.sites(task, params, {"x": rows["x"][0]})
        taps.verify(task, found, params, rows)
        checks.append(("per-example gradients", True, "equal jax.grad"))
    except UimError as error:
        checks.append(("per-example gradients", False, str(error)))
    with tempfile.TemporaryDirectory() as folder:
        try:
            mesh = make_mesh()
            build_index(task, params, rows, folder, batch_size=16 * mesh.size, mesh=mesh)
            problems = verify_index(Path(folder))
            checks.append(
                (
                    "index",
                    not problems,
                    "; ".join(problems) or f"built on {mesh.size} device(s), every byte right",
                )
            )
        except (UimError, OSError) as error:
            checks.append(("index", False, str(error)))
    return checks
