"""Meshes and shardings; the only file that spells an axis name.

Axes are always Auto: explicit axes (the default of `jax.make_mesh`) break CG, Lanczos, L-BFGS and NNX layers on
sharded values. The data axis splits examples; the model axis splits parameters and is reserved (size 1 today).
Differentiate under `jit` with a batch placed by `shard_batch`, never inside `jax.shard_map`: there the gradient with
respect to a replicated value comes back summed over devices.
"""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from uimjax.errors import ShapeError, UsageError

DATA, MODEL = "data", "model"


def make_mesh(data: int | None = None, devices: Any = None) -> Mesh:
    """A mesh of shape [data, model=1] over the first `data` devices (all of them by default)."""
    devices = list(jax.devices() if devices is None else devices)
    data = len(devices) if data is None else data
    if not 1 <= data <= len(devices):
        raise UsageError(
            f"a data axis of {data} was asked for and {len(devices)} device(s) are there. "
            "Ask for fewer, or start with JAX_NUM_CPU_DEVICES=8 to split a CPU."
        )
    return jax.make_mesh((data, 1), (DATA, MODEL), axis_types=(AxisType.Auto,) * 2, devices=devices[:data])


def data_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis (examples) over the data axis."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(mesh: Mesh, batch: Any) -> Any:
    """Place a batch (a pytree of `[B, ...]`) on the mesh, examples over the data axis. B must divide evenly."""
    size = mesh.shape[DATA]
    for leaf in jax.tree.leaves(batch):
        if leaf.shape[0] % size:
            raise ShapeError(
                f"a batch of {leaf.shape[0]} examples does not divide over {size} devices. "
                "Choose a batch size that is a multiple of the number of devices; `rows.batches` pads the last one."
            )
    return jax.device_put(batch, data_sharding(mesh))
