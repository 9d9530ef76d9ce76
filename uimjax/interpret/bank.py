"""A bank of models trained again on random subsets of the rows: the truth that attribution is judged by.

Two protocols, named with every result. "rebatched": the kept rows alone are shuffled and cut into batches, as if the
others had never existed. "masked": every row keeps its place in the batches, and those left out have weight 0, so that
nothing differs but the rows. One compiled program serves the whole bank; a model that is in the bank is not trained
again. Models are independent: several may be trained side by side in one program (`together`), and on a mesh each
device trains its own.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import programs, room, steps, store, training
from uimjax import rows as row
from uimjax.allocator import settle
from uimjax.errors import NonFiniteError, UnknownNameError, UsageError
from uimjax.mesh import data_sharding, replicated, shard_batch, ways
from uimjax.progress import Progress, quiet
from uimjax.steps import Recipe
from uimjax.store.base import make_folder
from uimjax.taps import _compat
from uimjax.task import Measurement, Task

PROTOCOLS = ("rebatched", "masked")
Protocol = Literal["rebatched", "masked"]


class Bank(NamedTuple):
    """`kept` `[M, N]` bool, which rows each subset keeps; `values` `[M, S, Q]`, the measurement of every query after
    training on subset m with seed s; `protocol`."""

    kept: np.ndarray
    values: np.ndarray
    protocol: str


def subsets(rows: int, count: int, share: float = 0.5, seed: int = 0) -> np.ndarray:
    """`[count, rows]` bool: random subsets that keep the same number of rows each."""
    rng, keep = np.random.default_rng(seed), round(share * rows)
    if not 0 < keep < rows:
        raise UsageError(f"a share of {share} of {rows} rows keeps {keep}; between 1 and {rows - 1} were wanted")
    kept = np.zeros((count, rows), bool)
    for mask in kept:
        mask[rng.permutation(rows)[:keep]] = True
    return kept


def train_bank(
    task: Task,
    initial: Callable[[int], Any],
    data: Any,
    recipe: Recipe,
    kept: np.ndarray,
    measurement: Measurement,
    queries: Any,
    *,
    seeds: tuple[int, ...] = (0, 1),
    protocol: Protocol = "rebatched",
    together: int = 1,
    mesh: Any = None,
    folder: Path | None = None,
    progress: Progress = quiet,
) -> Bank:
    """Train a model for each subset and seed: `initial(seed)` gives its first parameters, and the seed its order.

    `together` models are trained side by side as one batch of models, on each device of the `mesh`'s data axis: for
    accelerators that one small model leaves idle. (Two CPU cores gain nothing: 4 perceptrons of 670k parameters took
    0.94 s together and 0.95 s one by one.) Values then differ from those of models trained alone by rounding, and by
    what a training makes of it.

    With `folder`, each finished model's values are kept there, under a digest of everything they follow from.

    Raises:
        UsageError: subsets of other rows, an empty one, of several sizes where batches are cut anew, or none together.
        NonFiniteError: a training diverged. NoRoomError: so many models together do not fit.
    """
    kept = np.asarray(kept, bool)
    check(kept, row.count(data), protocol, together)
    size = together * ways(mesh)
    values = np.full((len(kept), len(seeds), row.count(queries)), np.nan)
    first = {seed: initial(seed) for seed in seeds}
    how = protocol if size == 1 else f"{protocol}, {together} together"
    causes = {
        seed: cause(task, measurement, first[seed], data, queries, recipe, how) if folder else "" for seed in seeds
    }
    paths: dict[tuple[int, int], Path | None] = {}
    for m, s in [(m, s) for m in range(len(kept)) for s in range(len(seeds))]:
        name = store.stage_key(causes[seeds[s]], kept[m].tobytes().hex(), seeds[s])
        path = None if folder is None else make_folder(folder) / f"{name}.json"
        if path is not None and path.exists():
            values[m, s] = store.read_json(path)["values"]
        else:
            paths[m, s] = path
    rows, asked = jax.tree.map(jnp.asarray, (data, queries))
    if paths:
        check_room(task, recipe, protocol, measurement, first[seeds[0]], rows, asked, kept[0], size, mesh)
    trained = run_of(task, recipe, protocol, measurement, rows, asked, size, mesh)
    groups = [list(paths)[k : k + size] for k in range(0, len(paths), size)]
    for group in progress(groups, "training a bank of models", unit="models" if size == 1 else f"times {size} models"):
        jobs = [(first[seeds[s]], _chosen(kept[m], protocol), jax.random.key(seeds[s])) for m, s in group]
        for (m, s), its in zip(group, trained(jobs), strict=True):
            if not np.isfinite(its).all():
                raise NonFiniteError(f"subset {m}, seed {seeds[s]}: training diverged; lower the learning rate")
            values[m, s], path = its, paths[m, s]
            if path is not None:
                store.write_json(path, {"values": its.tolist()})
    return Bank(kept, values, protocol)


def check(kept: np.ndarray, count: int, protocol: str, together: int) -> None:
    if protocol not in PROTOCOLS:
        raise UnknownNameError("retraining protocol", protocol, PROTOCOLS)
    if kept.ndim != 2 or kept.shape[1] != count or not kept.any(1).all():
        raise UsageError(f"subsets of shape {kept.shape} for {count} rows; [M, {count}], none empty, was wanted")
    if protocol == "rebatched" and len(set(kept.sum(1).tolist())) > 1:
        raise UsageError("subsets of several sizes have batches of their own each; use protocol='masked'")
    if together < 1:
        raise UsageError(f"{together} models were to be trained together; at least 1 was wanted")


def check_room(
    task: Task, recipe: Recipe, protocol: str, measurement: Measurement, params: Any, data: Any, queries: Any,
    mask: np.ndarray, size: int, mesh: Any,
) -> room.Need:  # fmt: skip
    """What training so many models side by side needs.

    Raises:
        NoRoomError: more than a device has.
    """
    train, chosen = trainer(task, recipe, protocol), _chosen(mask, protocol)

    def made(count: int) -> tuple[Any, ...]:
        job = (params, chosen, jax.random.key(0))
        if size == 1 and mesh is None:
            return train, params, data, *job[1:]
        placed = None if mesh is None else data_sharding(mesh)
        stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=placed), job)
        return _many(train, measured(measurement)), *stacked, *_everywhere((data, queries), mesh)

    return room.check(made, size, "a program for models together", ways(mesh))


def run_of(
    task: Task, recipe: Recipe, protocol: str, measurement: Measurement, data: Any, queries: Any, size: int, mesh: Any
) -> Callable[[list["Job"]], list[np.ndarray]]:
    """Trains up to so many models (one by one, or side by side) and measures them."""
    train, measure = trainer(task, recipe, protocol), measured(measurement)
    rows, asked = jax.tree.map(jnp.asarray, (data, queries))
    if size == 1 and mesh is None:
        return _alone(train, measure, rows, asked)
    return _side_by_side(size, mesh, train, measure, rows, asked)


Job = tuple[Any, Any, Any]  # the first parameters, the rows chosen, the key


def _alone(train: Any, measure: Any, data: Any, queries: Any) -> Callable[[list[Job]], list[np.ndarray]]:
    def trained(jobs: list[Job]) -> list[np.ndarray]:
        begun = time.perf_counter()
        found = [np.asarray(measure(train(job[0], data, *job[1:]), queries)) for job in jobs]
        settle(time.perf_counter() - begun)
        return found

    return trained


def _side_by_side(
    size: int, mesh: Any, train: Any, measure: Any, data: Any, queries: Any
) -> Callable[[list[Job]], list[np.ndarray]]:
    """So many models in one program, split over the mesh; the last group is filled with its last job."""
    many = _many(train, measure)
    data, queries = _everywhere((data, queries), mesh)

    def trained(jobs: list[Job]) -> list[np.ndarray]:
        filled = jobs + jobs[-1:] * (size - len(jobs))
        return list(np.asarray(many(*_stacked(filled, mesh), data, queries)))[: len(jobs)]

    return trained


def _stacked(jobs: list[Job], mesh: Any) -> Any:
    found = jax.tree.map(lambda *x: jnp.stack(x), *jobs)
    return found if mesh is None else shard_batch(mesh, found)


def _everywhere(tree: Any, mesh: Any) -> Any:
    return tree if mesh is None else jax.device_put(tree, replicated(mesh))


@functools.lru_cache(maxsize=16)
def _many(train: Any, measure: Any):
    """Compiled `(first parameters, chosen, keys, each of K models; data, queries) -> [K, Q]`."""

    def one(params: Any, chosen: Any, key: Any, data: Any, queries: Any) -> Any:
        return measure(train(params, data, chosen, key), queries)

    return jax.jit(jax.vmap(one, (0, 0, 0, None, None)))


def cause(
    task: Task, measurement: Measurement, params: Any, data: Any, queries: Any, recipe: Recipe, how: str,
    derived: bool = False,
) -> str:  # fmt: skip
    """A digest of everything a model's values follow from, but for its subset and seed; `derived`: and those of the
    measurement's derivative."""
    made = jax.make_jaxpr(measurement.fun)(params, row.example_spec(queries))
    asked = programs.digest(made, _compat.constants(made), programs.own_rules(made) if derived else "")
    trees = [store.digest_tree(tree) for tree in (params, data, queries)]
    return store.stage_key(training.digest(task, recipe, params, data), asked, trees, how)


def _chosen(mask: np.ndarray, protocol: str) -> Any:
    return jnp.asarray(np.flatnonzero(mask) if protocol == "rebatched" else mask.astype(np.float32))


@functools.lru_cache(maxsize=16)
def trainer(task: Task, recipe: Recipe, protocol: str):
    """Compiled `(parameters, data, chosen, key) -> parameters`: a whole training in one program. `chosen` are the ids
    of the rows kept (rebatched), or the weights `[N]` of all rows."""

    def program(params: Any, data: Any, chosen: Any, key: Any) -> Any:
        if protocol == "rebatched":
            data, names = jax.tree.map(lambda x: x[chosen], data), chosen
            chosen = jnp.ones(chosen.shape[0], jnp.float32)
        else:
            names = jnp.arange(chosen.shape[0])
        count = chosen.shape[0]
        static = steps.static(recipe, count)
        made = steps.optimizer(static)

        def epoch(state: Any, number: Any) -> tuple[Any, None]:
            def step(state: Any, ids: Any) -> tuple[Any, None]:
                rows, weight = steps.gather(data, ids, chosen)
                keys = steps.noise(task, key, number, names.at[ids].get(mode="clip"))
                return steps.step(task, made.update, state[0], state[1], rows, weight, keys=keys)[:2], None

            return jax.lax.scan(step, state, steps.order(key, number, count, static.batch_size))[0], None

        return jax.lax.scan(epoch, (params, made.init(params)), jnp.arange(recipe.epochs))[0][0]

    return jax.jit(program)


@functools.lru_cache(maxsize=16)
def measured(measurement: Measurement):
    return jax.jit(lambda params, queries: jax.vmap(lambda q: measurement.fun(params, q))(queries))
