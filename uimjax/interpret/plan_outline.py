"""Plan of an index for a model of which only the shapes are at hand, on a chip that is not: nothing is computed.

The batch's programs are compiled (here, for as many virtual devices as share the parameters), which says what memory
they take, and the products of the one that sketches are counted, which says the least time it takes. What coding and
writing take, only a machine with the model can say.
"""

from typing import Any

import jax
import jax.numpy as jnp

from uimjax import machine, programs, room, store
from uimjax import sketch as sketching
from uimjax.errors import UsageError
from uimjax.interpret import base, fits, positions
from uimjax.interpret.plan import SHARE, Plan, Room, at_ceiling, duration, timed
from uimjax.mesh import data_sharding, replicated, split
from uimjax.sketch import AnySketch, Sketch
from uimjax.taps import Sites, sites
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
    shares: bool = True,
) -> Plan:
    """What `build_index` takes for `count` rows on `devices` of a `chip` (`machine.CHIPS`); of those, the ones of the
    `mesh` (as many virtual devices of this process) share each batch and the parameters.

    `params` and `example` (one row) are shapes, `jax.ShapeDtypeStruct`. `shares`: of tokens are asked for as well.

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
    asking = _asking(task, found, sketch, weights, rows, drawn, mesh) if shares else 0
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
        "compiled here in": duration(compile_s), "sketching": room.gib(need.bytes),
        "asking": f"{room.gib(asking)}, for shares of tokens" if asking else "no shares of tokens",
        "gradients": f"at {SHARE:.0%} of the chip's ceiling",
        "not in it": "coding, writing, compiling there; memory is that of a program compiled for a CPU",
    }  # fmt: skip
    host = int(fits.HELD * 4 * width * min(shard_rows, count))
    limits, cures = Room(int(model.memory), None, None), {}
    if need.bytes <= model.memory < asking:
        told = f"asking for the shares of tokens needs {room.gib(asking)} on each device"
        without = f"without them (--shown 0) it is {room.gib(need.bytes)}"
        cures = {"device": f"{told}, and {room.gib(model.memory)} are there; {without}"}
    most = max(need.bytes, asking)
    return Plan(f"an index of {count} rows", seconds, most, host, disk, limits, how, cures)


def _asking(
    task: Task, found: Sites, sketch: AnySketch, params: Any, rows: Any, drawn: Any, mesh: Any
) -> int:  # fmt: skip
    """Bytes of the shares of tokens of a batch of documents, which a direction as large as the parameters stands
    beside; 0 where the loss is one number a row."""
    if not found.program.out_avals[0].shape:
        return 0
    width = sum(high * wide for high, wide in sketching.shapes(found, sketch))
    direction = _placed((1, width), jnp.float32, mesh and replicated(mesh))
    return room.need(positions.tokens_program(task, found, sketch), params, rows, drawn, direction).bytes


def _placed(shape: tuple[int, ...], dtype: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding or None)
