"""Meshes and shardings; the only file that spells an axis name.

Axes are always Auto: explicit axes (the default of `jax.make_mesh`) break CG, Lanczos, L-BFGS and NNX layers on
sharded values. The data axis splits examples; the model axis splits parameters.
Differentiate under `jit` with a batch placed by `shard_batch`, never inside `jax.shard_map`: there the gradient with
respect to a replicated value comes back summed over devices.
"""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from uimjax.errors import ShapeError, UsageError

DATA, MODEL = "data", "model"


def make_mesh(data: int | None = None, devices: Any = None, model: int = 1) -> Mesh:
    """A mesh of shape [data, model] over the first data x model devices (by default all, as many as `model` divides).

    Raises:
        UsageError: fewer devices are there.
    """
    devices = list(jax.devices() if devices is None else devices)
    data = max(len(devices) // max(model, 1), 1) if data is None else data
    if data < 1 or model < 1 or data * model > len(devices):
        raise UsageError(
            f"a data axis of {data} and a model axis of {model} were asked for and {len(devices)} device(s) are there. "
            "Ask for fewer, or start with JAX_NUM_CPU_DEVICES=8 to split a CPU."
        )
    used = devices[: data * model]
    return jax.make_mesh((data, model), (DATA, MODEL), axis_types=(AxisType.Auto,) * 2, devices=used)


def data_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis (examples) over the data axis."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def ways(mesh: Mesh | None) -> int:
    """Over how many devices the data axis splits; 1 without a mesh."""
    return 1 if mesh is None else mesh.shape[DATA]


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def shard_params(mesh: Mesh, params: Any) -> Any:
    """Place parameters on the mesh, each split along its longest axis that the model axis divides (FSDP-style; the
    compiler gathers what a step needs); those that no axis of theirs allows to split are replicated."""
    size = mesh.shape[MODEL]

    def sharding(leaf: Any) -> NamedSharding:
        fits = [axis for axis, n in enumerate(leaf.shape) if n and n % size == 0]
        if size == 1 or not fits:
            return replicated(mesh)
        longest = max(fits, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(MODEL if axis == longest else None for axis in range(leaf.ndim))))

    return jax.device_put(params, jax.tree.map(sharding, params))


def shard_batch(mesh: Mesh, batch: Any, axis: int = 0) -> Any:
    """Place a batch (a pytree of `[B, ...]`, or with B at another `axis`) on the mesh, examples over the data axis. B
    must divide evenly."""
    size = ways(mesh)
    for leaf in jax.tree.leaves(batch):
        if leaf.shape[axis] % size:
            raise ShapeError(
                f"a batch of {leaf.shape[axis]} examples does not divide over {size} devices. "
                "Choose a batch size that is a multiple of the number of devices; `rows.batches` pads the last one."
            )
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec(*(None,) * axis, DATA)))
