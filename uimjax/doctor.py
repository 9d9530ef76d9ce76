"""Is this machine fit: versions, devices, a proven gradient, a checked shard, disk."""

import shutil
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import taps
from uimjax.errors import UimError
from uimjax.interpret.index import build_index, verify_index
from uimjax.mesh import make_mesh
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
