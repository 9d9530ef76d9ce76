"""Meshes and shardings; the only file that spells an axis name.

Axes are always Auto: explicit axes (the default of `jax.make_mesh`) break CG, Lanczos, L-BFGS and NNX layers on
sharded values. The data axis splits examples; the model axis splits parameters.
Differentiate under `jit` with a batch placed by `shard_batch`, never inside `jax.shard_map`: there the gradient with
respect to a replicated value comes back summed over devices.
"""

import os
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from uimjax.errors import LostProcessError, ShapeError, UsageError

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


def start_processes(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None, limit_s: int = 300
) -> tuple[int, int]:
    """(this process, how many there are). A job of several is joined where a cluster started this process (SLURM, Open
    MPI, Kubernetes, Cloud TPU) or a `coordinator`, HOST:PORT of process 0, is given, before any device is touched.

    Raises:
        UsageError: some of the three are missing, or do not fit.
        LostProcessError: the others did not come within `limit_s`.
    """
    given = processes is not None and process is not None
    if processes is not None and process is not None and not 0 <= process < processes:
        raise UsageError(f"process {process} of {processes}: a number from 0 to {max(processes - 1, 0)} was wanted")
    if given != (processes is not None or process is not None) or (coordinator is not None and not given):
        raise UsageError("name all of --coordinator HOST:PORT, --processes N and --process I, or the last two")
    if coordinator is None and (given or not on_cluster()):
        return process or 0, processes or 1
    known = {} if coordinator is None else {
        "coordinator_address": coordinator, "num_processes": processes, "process_id": process,
        "coordinator_bind_address": coordinator,
    }  # fmt: skip
    try:
        jax.distributed.initialize(**known, initialization_timeout=limit_s, heartbeat_timeout_seconds=30)
    except RuntimeError as error:
        told = f"could not join the others at {coordinator or 'the place its cluster named'} in {limit_s} s ({error})"
        raise LostProcessError(process or 0, processes or 0, told) from error
    return jax.process_index(), jax.process_count()


def on_cluster() -> bool:
    """Did a launcher start this process as one of several?"""
    several = any(int(os.environ.get(name) or 1) > 1 for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    pod = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(os.environ)
    return several or pod or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


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
    return jax.device_put(params, jax.tree.map(lambda leaf: split(mesh, leaf.shape), params))


def split(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """One parameter's place: its longest axis that the model axis divides over it."""
    size = mesh.shape[MODEL]
    fits = [axis for axis, n in enumerate(shape) if n and n % size == 0]
    if size == 1 or not fits:
        return replicated(mesh)
    longest = max(fits, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*(MODEL if axis == longest else None for axis in range(len(shape)))))


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
