"""Plans of an index and of a trace: a few batches, a shard and some reading, each timed once it is warm."""

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uimjax import machine, programs, store
from uimjax import rows as row
from uimjax.errors import UsageError
from uimjax.interpret import cascade, fits, indexing, price, trace
from uimjax.interpret.base import Method
from uimjax.interpret.fill import Maker, Span, kept
from uimjax.interpret.index import SHARDS, Index, open_index, part
from uimjax.interpret.plan import SHARE, TRIAL_S, Plan, Room, Watch, at_ceiling, duration, steady, timed
from uimjax.store.base import make_folder
from uimjax.task import Measurement, Task


def plan_index(
    task: Task,
    params: Any,
    data: Any,
    folder: str | Path = ".",
    *,
    count: int | None = None,
    devices: int | None = None,
    chip: str | None = None,
    mesh: Any = None,
    sketch: Any = None,
    batch_size: int = 64,
    shard_rows: int = 1024,
    coding: str = "float32",
    target_recall: float | None = None,
) -> Plan:
    """What `build_index` with these arguments takes for `count` rows (default: those of `data`, which may be some of
    them) on so many `devices` like this one, or like a `chip` of `machine.CHIPS`.

    Raises: as `build_index`; NoRoomError: a batch, a shard or the index has no room. UnknownNameError: no such chip.
    UsageError: fewer devices than the mesh has.
    """
    rows, given = row.count(data), 1 if mesh is None else int(mesh.size)
    count = rows if count is None else count
    devices = given if devices is None else devices
    if devices < given:
        raise UsageError(f"{devices} devices were asked for and the mesh has {given}")
    model, watch = None if chip is None else machine.chip(chip), Watch()
    choices = (sketch, batch_size, shard_rows, coding, target_recall, mesh)
    made_s, maker = watch.job(lambda: indexing.made(task, params, data, Path(folder), *choices))
    finite_s, digest_s = timed(lambda: _finite(data))[0], watch.job(lambda: part(data))[0]
    compile_s, need = watch.job(lambda: fits.check(maker, data, Path(folder)))
    its = _trial(maker, data, Path(folder), count, watch)
    watch.holds((count - rows) * machine.nbytes(data) / rows)
    watch.passes(fits.HELD * 4 * maker.described["width"] * (min(shard_rows, count) - its["rows"]))
    batches, shards = -(-count // batch_size), -(-count // shard_rows)
    gradients, free = its["batch"] * batches * given / devices, machine.device_memory()
    how: dict[str, Any] = {"devices": devices, "timed": f"{its['timed']} batches, {its['rows']} rows of a shard"}
    if model is not None:
        ceiling, free = _on_chip(maker, data, model) * batches / devices, int(model.memory)
        gradients = ceiling / SHARE
        how |= {"chip": chip, "gradients at its ceiling": duration(ceiling), "share of it taken for true": SHARE}
    seconds = {
        "checking loss and rows": made_s + digest_s * count / rows + finite_s * (count / rows - 1),
        "compiling": compile_s + its["compile"],
        "gradients": gradients,
        "coding": its["code"] * count,
        "writing": its["write"] * shards,
        "price": its["price"],
    }
    disk = int(its["bytes"] * count) + 160 * shards + len(json.dumps(maker.described)) + 600  # journal, manifest, price
    limits = Room(free, machine.host_memory() + machine.resident(), machine.disk(folder))
    return Plan(f"an index of {count} rows", seconds, need.bytes, watch.most, disk, limits, how)


def _finite(data: Any) -> None:
    row.check_finite(data, "training rows")


def _trial(maker: Maker, data: Any, folder: Path, count: int, watch: Watch) -> dict[str, Any]:
    """Seconds of a batch, of a row's coding, of a shard's writing, of the price and of compiling; bytes of a row."""
    size, rows, shard_rows = maker.described["batch_size"], row.count(data), maker.described["shard_rows"]
    some = np.arange(min(size, rows))
    first, _ = watch.job(lambda: maker.gradients(data, some))
    batch, times = steady(lambda: maker.gradients(data, some))
    take = min(shard_rows, rows, max(size, int(10 * TRIAL_S / batch) * size))
    with tempfile.TemporaryDirectory(dir=_there(folder)) as at:
        make_folder(Path(at) / SHARDS)
        write = lambda its: kept(Path(at), its, Span(0, 0, take), maker.coding, maker.shapes)  # noqa: E731
        whole, _ = watch.job(lambda: write(maker.shard(data, 0, take, 0)))  # held together, as the job does
        made = maker.gradients(data, np.arange(take))
        shard = maker.coded(0, *made)
        code, _ = steady(lambda: maker.coded(0, *made), TRIAL_S / 4, 5)
        entry = write(shard)
        writing, _ = steady(lambda: write(shard), TRIAL_S / 4, 5)
    looked = price.sample(count) if maker.coding != store.Coding() else np.zeros(0, np.int64)
    priced = 0.0
    if len(looked):
        unit = np.resize(made[2], (len(looked), maker.described["width"]))
        priced, _ = watch.probe(lambda: price.measure(maker.coding, maker.shapes, unit))
        watch.passes(2 * unit.nbytes)  # its batches, and all of them joined
    return {
        "batch": batch,
        "timed": times + 1,
        "rows": take,
        "compile": max(first - batch, 0) + max(whole - batch * -(-take // size) - code - writing, 0),
        "code": code / take,
        "write": writing * max(1.0, min(shard_rows, count) / take),
        "bytes": entry.size / take,
        "price": priced + batch * -(-len(looked) // size),
    }


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def _on_chip(maker: Maker, data: Any, chip: machine.Chip) -> float:
    """Seconds of a batch at a chip's ceiling."""
    program = jax.make_jaxpr(maker.program)(*maker.inputs(data, maker.described["batch_size"]))
    widest = max(jax.tree.leaves(maker.params), key=lambda x: x.size)
    return at_ceiling(programs.operations(program), chip, widest.dtype)


# ---------------------------------------------------------------- a trace


def plan_trace(
    index: Index | str | Path,
    task: Task,
    params: Any,
    data: Any,
    measurement: Measurement,
    queries: Any,
    method: str | Method = "grad_cos",
    *,
    count: int | None = None,
    k: int = 20,
    each: bool = False,
    retain: Any = None,
    rerank: int = 0,
) -> Plan:
    """What `trace` with these arguments takes, of an index of `count` rows (default: its own). Its first shards are
    read and asked. Raises as `trace`."""
    whole = index if isinstance(index, Index) else open_index(index)
    count, watch, some = whole.rows if count is None else count, Watch(), min(4, len(whole.entries))
    part_of = functools.partial(_part_of, whole)
    shards = len(whole.entries) * count / whole.rows
    ask = lambda: trace.ask(part_of(0, some), task, params, data, measurement, queries, method, each, retain)  # noqa: E731
    first, asked = watch.job(ask)
    solved = 0.0
    if asked.method.of_rows is not None:  # its curvature takes a pass of its own
        question = trace.question(part_of(0, some), task, params, data, measurement, queries, each)
        span = None if retain is None else trace.retained(whole, task, params, data, retain)
        solved = steady(lambda: trace.by(question, method, span), most=3)[0] / some
    top = lambda a, b: trace.top(asked._replace(held=part_of(a, b)), max(k, rerank))  # noqa: E731
    cold, found = watch.job(lambda: top(0, some))
    done, took = 0, 0.0
    while done < len(whole.entries) and took < TRIAL_S:  # each shard once, as the job does
        until = min(done + max(some, done), len(whole.entries))
        took += watch.job(lambda a=done, b=until: top(a, b).proponents)[0]
        done = until
    seconds = {
        "the question": max(first - solved * some, 0.0),
        "curvature of rows": solved * shards,
        "compiling": max(cold - took / done * some, 0.0),
        "reading and ranking": took / done * shards,
    }
    if rerank:
        whole_asked = asked._replace(held=whole)
        again = lambda its: cascade.rerank(its, whole_asked, task, params, data, measurement, queries, each, 1)  # noqa: E731
        seconds["re-ranking"] = _rerank_s(again, found, timed(lambda: cascade.check_rows(whole, data))[0], watch)
        watch.holds((count - whole.rows) * machine.nbytes(data) / whole.rows)
    limits = Room(machine.device_memory(), machine.host_memory() + machine.resident(), None)
    entry, width = whole.entries[0], whole.manifest["width"]
    device = machine.nbytes(asked.directions) + (entry.stop - entry.start) * (whole.row_bytes + 4 * width)
    how = {"timed": f"{done} of {shards:.0f} shards"}
    return Plan(f"a trace of {count} rows", seconds, device, watch.most, 0, limits, how)


def _part_of(whole: Index, first: int, stop: int) -> Index:
    """Some of its shards, as an index of their rows."""
    entries = whole.entries[first:stop]
    rows = entries[-1].stop - entries[0].start
    return dataclasses.replace(whole, entries=entries, manifest=whole.manifest | {"parts": [{"rows": rows}]})


def _rerank_s(again: Any, found: Any, checked_s: float, watch: Watch) -> float:
    """Seconds of re-ranking what was found, from doing a part of it. Checking the rows is done once, whatever it is."""
    few = found._replace(
        proponents=found.proponents[:, :32], opponents=found.opponents[:, :32],
        proponent_scores=found.proponent_scores[:, :32], opponent_scores=found.opponent_scores[:, :32],
    )  # fmt: skip
    ids, some = (np.unique(np.concatenate([x.proponents, x.opponents], 1)) for x in (found, few))
    cold, _ = watch.job(lambda: again(few).proponent_scores)
    warm, _ = timed(lambda: again(few).proponent_scores)
    return cold + (len(ids) - len(some)) * max(warm - checked_s, 0.0) / len(some)
