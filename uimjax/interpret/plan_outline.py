"""Plan of an index for a model of which only the shapes are at hand, on a chip that is not: nothing is computed.

The batch's program is compiled (here, for as many virtual devices as share the parameters), which says what memory it
takes, and its products are counted, which says the least time it takes. What coding and writing take, only a machine
with the model can say.
"""

from typing import Any

import jax
import jax.numpy as jnp

from uimjax import machine, programs, room, store
from uimjax import sketch as sketching
from uimjax.errors import UsageError
from uimjax.interpret import base, fits
from uimjax.interpret.plan import SHARE, Plan, Room, at_ceiling, duration, timed
from uimjax.mesh import data_sharding, replicated, split
from uimjax.sketch import AnySketch, Sketch
from uimjax.taps import sites
from uimjax.task import Task


def plan_outline(
    task: Task,
    params: Any,
    example: Any,
    *,
    count: int,
    chip: str,
    devices: int = 1,
    mesh: Any = None,
    sketch: AnySketch | None = None,
    batch_size: int = 8,
    coding: str = "float32",
    shard_rows: int = 1024,
) -> Plan:
    """What `build_index` takes for `count` rows on `devices` of a `chip` (`machine.CHIPS`); of those, the ones of the
    `mesh` (as many virtual devices of this process) share each batch and the parameters.

    `params` and `example` (one row) are shapes, `jax.ShapeDtypeStruct`.

    Raises: TapError: the loss cannot be followed. UnknownNameError: no such chip. UsageError: a batch, or devices, that
    the mesh does not divide.
    """
    model, given = machine.chip(chip), 1 if mesh is None else int(mesh.size)
    chosen, sketch = store.Coding.parse(coding), Sketch() if sketch is None else sketch
    if devices % given or batch_size % given:
        raise UsageError(f"{devices} devices and batches of {batch_size} do not divide over a mesh of {given} devices")
    found = sites(task, params, example)
    program = base.row_program(found, found, sketch)
    rows = jax.tree.map(lambda x: _placed((batch_size, *x.shape), x.dtype, mesh and data_sharding(mesh)), example)
    drawn = sketching.drawn_shapes(found, sketch)
    drawn = jax.tree.map(lambda x: _placed(x.shape, x.dtype, mesh and replicated(mesh)), drawn)
    weights = jax.tree.map(lambda x: _placed(x.shape, x.dtype, mesh and split(mesh, x.shape)), params)
    compile_s, need = timed(lambda: room.need(program, weights, rows, drawn))
    operations = programs.operations(jax.make_jaxpr(program)(weights, rows, drawn))
    widest = max(jax.tree.leaves(params), key=lambda x: x.size)
    batches = -(-count // batch_size) * given / devices
    seconds = {"gradients": at_ceiling(operations, model, widest.dtype) / given / SHARE * batches}
    matrices = sketching.shapes(found, sketch)
    width = sum(high * wide for high, wide in matrices)
    disk = int(count * fits.on_disk(chosen, matrices))
    size = sum(x.size for x in jax.tree.leaves(params))
    how = {
        "chip": chip, "devices": devices, "parameters": f"{size:,}", "numbers a row": f"{width:,}",
        "compiled here in": duration(compile_s), "gradients": f"at {SHARE:.0%} of the chip's ceiling",
        "not in it": "coding, writing, compiling there; memory is that of a program compiled for a CPU",
    }  # fmt: skip
    host = int(fits.HELD * 4 * width * min(shard_rows, count))
    return Plan(f"an index of {count} rows", seconds, need.bytes, host, disk, Room(int(model.memory), None, None), how)


def _placed(shape: tuple[int, ...], dtype: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding or None)
