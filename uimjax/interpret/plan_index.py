"""Plans of an index and of a trace: a few batches, a shard and some reading, each timed once it is warm."""

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import machine, programs, room, store
from uimjax import rows as row
from uimjax.errors import NoRoomError, UsageError
from uimjax.interpret import cascade, fits, indexing, price, trace
from uimjax.interpret import null as nothing
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
    them) on so many `devices` like this one; the `mesh` is of those that share a batch. With a `chip` of
    `machine.CHIPS` instead, which is not at hand, no gradient is computed here and no mesh is wanted.

    Raises: as `build_index`; NoRoomError: a batch or a shard has no room. UnknownNameError: no such chip. UsageError:
    fewer devices than the mesh has; a mesh, or a recall to be measured, for a chip that is not here.
    """
    rows, given = row.count(data), 1 if mesh is None else int(mesh.size)
    count = rows if count is None else count
    devices = given if devices is None else devices
    if devices < given:
        raise UsageError(f"{devices} devices were asked for and the mesh has {given}")
    model, watch, root = None if chip is None else machine.chip(chip), Watch(), Path(folder)
    if model is not None and (mesh is not None or target_recall is not None):
        raise UsageError(f"{chip} is not at hand: leave the mesh out, and name a coding in target_recall's stead")
    free = machine.device_memory() + room.there(params)
    choices = (sketch, batch_size, shard_rows, coding, target_recall, mesh)
    made_s, maker = watch.job(lambda: indexing.made(task, params, data, root, *choices))
    finite_s, digest_s = timed(lambda: _finite(data))[0], watch.job(lambda: part(data))[0]
    if model is None:
        its = _gradients(maker, data, root, watch)
    else:
        its, free = _on_chip(maker, data, model), int(model.memory)
    its |= _shard(maker, its.pop("made"), root, count, watch)
    watch.holds((count - rows) * machine.nbytes(data) / rows)
    watch.passes(fits.HELD * 4 * maker.described["width"] * (min(shard_rows, count) - its["rows"]))
    batches, shards = -(-count // batch_size), -(-count // shard_rows)
    seconds = {
        "checking loss and rows": made_s + digest_s * count / rows + finite_s * (count / rows - 1),
        "compiling": its["compile"] + its["begin"],
        "gradients": its["batch"] * batches * given / devices,
        "coding": its["code"] * count,
        "writing": its["write"] * shards,
        "price": its["price"] + its["batch"] * -(-its["looked"] // batch_size),
    }
    disk = int(its["bytes"] * count) + 160 * shards + len(json.dumps(maker.described)) + 600  # journal, manifest, price
    how: dict[str, Any] = {"devices": devices, "timed": f"{its['timed']} batches, {its['rows']} rows of a shard"}
    if model is not None:
        how |= {"chip": chip, "gradients": f"at {SHARE:.0%} of its ceiling; at all of it"}
        how["gradients"] += f" {duration(seconds['gradients'] * SHARE)}"
    limits = Room(free, machine.host_memory() + machine.resident(), machine.disk(folder))
    cures = _cures(lambda: fits.check_disk(maker, count, root))
    return Plan(f"an index of {count} rows", seconds, its["need"], watch.most, disk, limits, how, cures)


def _cures(check: Any) -> dict[str, str]:
    """What a check says is too large for the disk, and what is not."""
    try:
        check()
    except NoRoomError as error:
        return {"disk": str(error)}
    return {}


def _finite(data: Any) -> None:
    row.check_finite(data, "training rows")


def _gradients(maker: Maker, data: Any, root: Path, watch: Watch) -> dict[str, Any]:
    """What a batch needs, its seconds and those of compiling it; rows `made` of a shard."""
    size, rows = maker.described["batch_size"], row.count(data)
    compile_s, need = watch.job(lambda: fits.check(maker, data, root))
    some = np.arange(min(size, rows))
    first, _ = watch.job(lambda: maker.gradients(data, some))
    batch, times = steady(lambda: maker.gradients(data, some))
    take = min(maker.described["shard_rows"], rows, max(size, int(10 * TRIAL_S / batch) * size))
    made = watch.job(lambda: maker.gradients(data, np.arange(take)))[1]
    compile_s += max(first - batch, 0)
    return {"need": need.bytes, "compile": compile_s, "batch": batch, "timed": times + 1, "made": made}


def _on_chip(maker: Maker, data: Any, chip: machine.Chip) -> dict[str, Any]:
    """The same for a chip that is not here: the batch is compiled, its products are counted; the rows are random."""
    inputs = maker.inputs(data, maker.described["batch_size"])
    compile_s, need = timed(lambda: room.need(maker.program, *inputs))
    operations = programs.operations(jax.make_jaxpr(maker.program)(*inputs))
    widest = max(jax.tree.leaves(maker.params), key=lambda x: x.size)
    take = min(maker.described["shard_rows"], row.count(data))
    made = np.zeros(take, np.float32), np.ones(take, np.float32), maker.scratch[:take]
    made[2][:] = np.random.default_rng(0).normal(size=made[2].shape) / maker.described["width"] ** 0.5
    batch = at_ceiling(operations, chip, widest.dtype) / SHARE
    return {"need": need.bytes, "compile": compile_s, "batch": batch, "timed": 0, "made": made}


def _shard(maker: Maker, made: Any, folder: Path, count: int, watch: Watch) -> dict[str, Any]:
    """Seconds of the first shard's beginning, of a row's coding, a shard's writing and the price; bytes of a row."""
    take, shard_rows = len(made[0]), maker.described["shard_rows"]
    with tempfile.TemporaryDirectory(dir=_there(folder)) as at:
        make_folder(Path(at) / SHARDS)
        write = lambda its: kept(Path(at), its, Span(0, 0, take), maker.coding, maker.shapes)  # noqa: E731
        first, entry = watch.job(lambda: write(maker.coded(0, *made)))  # held together, as the job does
        code, _ = steady(lambda: maker.coded(0, *made), TRIAL_S / 4, 5)
        shard = maker.coded(0, *made)
        writing, _ = steady(lambda: write(shard), TRIAL_S / 4, 5)
    looked, priced = price.sample(count) if maker.coding != store.Coding() else np.zeros(0, np.int64), 0.0
    if len(looked):
        unit = np.resize(made[2], (len(looked), maker.described["width"]))
        priced, _ = watch.probe(lambda: price.measure(maker.coding, maker.shapes, unit))
        watch.passes(2 * unit.nbytes)  # its batches, and all of them joined
    return {
        "rows": take,
        "begin": max(first - code - writing, 0.0),
        "code": code / take,
        "write": writing * max(1.0, min(shard_rows, count) / take),
        "bytes": entry.size / take,
        "price": priced,
        "looked": len(looked),
    }


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


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
    null: int = 0,
    groups: bool = False,
) -> Plan:
    """What `trace` with these arguments takes, of an index of `count` rows (default: its own), and with `groups` what
    `totals` takes beside it. Its first shards are read and asked. Raises as `trace`."""
    if null and rerank:
        raise UsageError("a null band is of the scores of the index, and re-ranked ones have another scale: take one")
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
    shuffled_s, wide = _shuffling(whole, asked, (task, params, data, measurement, queries), null, each, watch)
    cold, each_s, done, found = _reading(whole, wide, max(k, rerank), some, watch)
    seconds = {
        "the question": max(first - solved * some, 0.0),
        "curvature of rows": solved * shards,
        "compiling": max(cold - each_s * some, 0.0),
        "reading and ranking": each_s * shards,
    }
    if null:
        seconds["shuffled questions"] = shuffled_s
    if groups:
        again = timed(ask)[0]  # a question and a pass of its own
        summed = watch.job(lambda: [None for _ in trace.streamed(asked._replace(held=part_of(0, some)))])[0]
        seconds["adding up"] = max(again - solved * some, 0.0) + (solved + summed / some) * shards
    if rerank:
        whole_asked = asked._replace(held=whole)
        again = lambda its: cascade.rerank(its, whole_asked, task, params, data, measurement, queries, each, 1)  # noqa: E731
        seconds["re-ranking"] = _rerank_s(again, found, timed(lambda: cascade.check_rows(whole, data))[0], watch)
        watch.holds((count - whole.rows) * machine.nbytes(data) / whole.rows)
    limits = Room(machine.device_memory() + room.there(params), machine.host_memory() + machine.resident(), None)
    entry, width = whole.entries[0], whole.manifest["width"]
    device = machine.nbytes(wide.directions) + (entry.stop - entry.start) * (whole.row_bytes + 4 * width)
    how = {"timed": f"{done} of {shards:.0f} shards"}
    return Plan(f"a trace of {count} rows", seconds, device, watch.most, 0, limits, how)


def _shuffling(whole: Index, asked: Any, its: Any, null: int, each: bool, watch: Watch) -> tuple[float, Any]:
    """(seconds of the questions of a null band, the question with as many directions as are asked with them)."""
    if not null:
        return 0.0, asked
    task, params, data, measurement, queries = its
    gradients = lambda rows: trace.question(whole, task, params, data, measurement, rows, True).vectors  # noqa: E731
    a_round = row.count(queries) if each else 1
    one = lambda: nothing.questions(queries, min(null, a_round), each, gradients)  # noqa: E731
    taken = watch.job(one)[0] + (-(-null // a_round) - 1) * timed(one)[0]
    alike = np.resize(np.asarray(asked.directions), (len(asked.directions) + null, whole.manifest["width"]))
    return taken, asked._replace(directions=jnp.asarray(alike))


def _reading(whole: Index, asked: Any, k: int, some: int, watch: Watch) -> tuple[float, float, int, Any]:
    """Seconds of the first shards, compiling included, and of each when it is warm; how many were read; the first's."""
    top = lambda a, b: trace.top(asked._replace(held=_part_of(whole, a, b)), k)  # noqa: E731
    cold, found = watch.job(lambda: top(0, some))
    done, took = 0, 0.0
    while done < len(whole.entries) and took < TRIAL_S:  # each shard once, as the job does
        until = min(done + max(some, done), len(whole.entries))
        took += watch.job(lambda a=done, b=until: top(a, b).proponents)[0]
        done = until
    return cold, took / done, done, found


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
