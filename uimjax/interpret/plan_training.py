"""Plans of a training and of a bank of trainings: the program is compiled, and a few of its steps are timed."""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import checkpoint, machine, room, steps, store, training
from uimjax import rows as row
from uimjax.interpret import bank
from uimjax.interpret.plan import TRIAL_S, Plan, Room, Watch, steady, timed
from uimjax.mesh import ways
from uimjax.steps import Recipe
from uimjax.task import Measurement, Task

STEPS = 16  # of a training that are timed


def plan_bank(
    task: Task,
    initial: Callable[[int], Any],
    data: Any,
    recipe: Recipe,
    kept: np.ndarray,
    measurement: Measurement,
    queries: Any,
    *,
    seeds: tuple[int, ...] = (0, 1),
    protocol: bank.Protocol = "rebatched",
    together: int = 1,
    mesh: Any = None,
    folder: Path | None = None,
) -> Plan:
    """What `counterfactual.train_bank` with these arguments takes, were none of it there.

    Raises: as that does; NoRoomError: so many models together have no room.
    """
    kept, watch, free = np.asarray(kept, bool), Watch(), machine.device_memory() + room.there((data, queries))
    bank.check(kept, row.count(data), protocol, together)
    size, models = together * ways(mesh), len(kept) * len(seeds)
    params = initial(seeds[0])
    watch.holds((len(seeds) - 1) * machine.nbytes(params))
    cause_s = 0.0
    if folder is not None:
        cause_s, _ = watch.job(lambda: bank.cause(task, measurement, params, data, queries, recipe, protocol))
    rows, asked = placed = watch.job(lambda: jax.tree.map(jnp.asarray, (data, queries)))[1]
    asked_of = lambda: bank.check_room(task, recipe, protocol, measurement, params, rows, asked, kept[0], size, mesh)  # noqa: E731
    compile_s, need = watch.job(asked_of)
    watch.passes(need.bytes - machine.nbytes((params, placed)))
    trial = _bank_trial(task, recipe, protocol, measurement, params, data, queries, kept[0], size, mesh)
    measure_first, measure_s = _measure_s(measurement, params, queries)
    step_s, timed_steps = max(trial[0] - measure_s, 0.0) / trial[1], trial[1]
    rows_kept = int(kept[0].sum()) if protocol == "rebatched" else row.count(data)
    groups, many = -(-models // size), recipe.steps_per_epoch(rows_kept) * recipe.epochs
    seconds = {
        "looking": cause_s * len(seeds),
        "compiling": compile_s + measure_first,
        "training": groups * many * step_s,
        "measuring": groups * measure_s,
    }
    files = 0
    if folder is not None:
        values = {"values": np.random.default_rng(0).normal(size=row.count(queries)).astype(np.float32).tolist()}
        with tempfile.TemporaryDirectory() as at:
            seconds["keeping"] = models * steady(lambda: store.write_json(Path(at) / "a.json", values), 0.2)[0]
            files = (Path(at) / "a.json").stat().st_size * models
    limits = Room(free, machine.host_memory() + machine.resident(), machine.disk(folder or "."))
    name = f"a bank of {models} trainings" + (f", {size} together" if size > 1 else "")
    return Plan(name, seconds, need.bytes, watch.most, files, limits, {"timed": f"{timed_steps} steps of {many}"})


def _bank_trial(task, recipe, protocol, measurement, params, data, queries, mask, size, mesh) -> tuple[float, int]:
    """(seconds of a short training of so many models and its measuring, its steps)."""
    short, few = _shortened(recipe, int(mask.sum()))
    if protocol == "rebatched":
        part, chosen = data, jnp.asarray(np.flatnonzero(mask)[:few])
    else:
        part, chosen = jax.tree.map(lambda x: x[:few], data), jnp.ones(few, jnp.float32)
    run = bank.run_of(task, short, protocol, measurement, part, queries, size, mesh)
    jobs = [(params, chosen, jax.random.key(0))] * size
    run(jobs)
    return steady(lambda: run(jobs), most=5)[0], short.steps_per_epoch(few)


def _shortened(recipe: Recipe, count: int) -> tuple[Recipe, int]:
    """(a recipe of one epoch, of so many rows): a few steps of the training."""
    return dataclasses.replace(recipe, epochs=1), min(count, STEPS * recipe.batch_size)


def _measure_s(measurement: Measurement, params: Any, queries: Any) -> tuple[float, float]:
    """Seconds of compiling, and of one measuring."""
    program = bank.measured(measurement)
    first, _ = timed(lambda: program(params, queries))
    warm, _ = steady(lambda: program(params, queries), TRIAL_S / 4, 5)
    return max(first - warm, 0.0), warm


def plan_fit(
    task: Task,
    params: Any,
    data: Any,
    recipe: Recipe,
    *,
    folder: Path | None = None,
    save_every: int = 10,
    snapshots: Sequence[int] = (),
) -> Plan:
    """What `training.fit` with these arguments takes. Raises as it does; NoRoomError: an epoch has no room."""
    watch, count, free = Watch(), row.count(data), machine.device_memory() + room.there((params, data))
    check_s = watch.job(lambda: _checked(task, params, data, recipe, folder))[0]
    placed = watch.job(lambda: jax.tree.map(jnp.asarray, data))[1]
    compile_s, (need, state) = watch.job(lambda: training.check_room(task, params, placed, recipe))
    watch.passes(need.bytes - machine.nbytes((state, placed)))
    watch.holds(machine.nbytes(state))  # the new one, beside the first
    disk, keep_s = 0, 0.0
    if folder is not None:
        saved = {e + 1 for e in range(recipe.epochs) if (e + 1) % save_every == 0 or e + 1 == recipe.epochs}
        keep_s, disk = _keeping(state, len(saved), sum(e <= recipe.epochs for e in snapshots), watch)
    short, few = _shortened(recipe, count)
    part = jax.tree.map(lambda x: x[:few], placed)
    inputs = (training.started(params, short, few), part, jnp.ones(few, jnp.float32), jax.random.key(recipe.seed), 0)
    program = training.epoch(task, steps.static(short, few))
    timed(lambda: program(*inputs))
    warm, times = steady(lambda: program(*inputs), most=5)
    many, each = recipe.steps_per_epoch(count) * recipe.epochs, short.steps_per_epoch(few)
    seconds = {"checking": check_s, "compiling": compile_s, "training": many * warm / each}
    seconds |= {"keeping": keep_s} if folder is not None else {}
    limits = Room(free, machine.host_memory() + machine.resident(), machine.disk(folder or "."))
    how = {"timed": f"{times} times {each} steps of {many}"}
    return Plan(f"a training on {count} rows", seconds, need.bytes, watch.most, disk, limits, how)


def _checked(task: Task, params: Any, data: Any, recipe: Recipe, folder: Path | None) -> None:
    row.check_finite(params, "parameters")
    row.check_finite(data, "training rows")
    if folder is not None:
        store.digest_tree((params, data))
        training.digest(task, recipe, params, data)


def _keeping(state: Any, saves: int, snapshots: int, watch: Watch) -> tuple[float, int]:
    """(seconds of all checkpoints, bytes of those that stay). Numbers of a training, not the zeros it begins with, as
    those would be packed to nothing."""
    rng = np.random.default_rng(0)
    drawn = lambda x: rng.normal(size=x.shape).astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x  # noqa: E731
    state = state._replace(**{name: jax.tree.map(drawn, getattr(state, name)) for name in state._fields[1:]})
    with tempfile.TemporaryDirectory() as at:
        first, _ = watch.job(lambda: checkpoint.save(Path(at) / "state", 1, state))
        again, _ = timed(lambda: checkpoint.save(Path(at) / "state", 2, state, keep=1))
        one = _size(Path(at))
        snap, _ = timed(lambda: checkpoint.save(Path(at) / "snapshots", 1, state.params, keep=None))
        both = _size(Path(at))
    return first + (saves - 1) * again + snapshots * snap, min(saves, checkpoint.KEEP) * one + snapshots * (both - one)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
