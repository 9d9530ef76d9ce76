"""Runs of one shape, trained side by side in one program: what differs between them are inputs along its first axis.

No run sees another: there is no sum, norm or random number across the axis, so that what comes out is that of a run
trained alone, but for how a machine's products round in batches of another size. The axis is spread over devices.

It pays where one run leaves the machine idle: on two CPU cores 32 perceptrons of 8 hidden units took half the time of
one by one (a sixth, with what every run costs beside its steps), of 64 and more units as much.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import room, steps
from uimjax.allocator import settle
from uimjax.mesh import data_sharding, make_mesh, replicated, shard_batch, ways
from uimjax.task import Task
from uimjax.understand.scaling.networks import Problem, met, noise_of, own_rows, unique
from uimjax.understand.scaling.runs import BESIDE, Run, Settings

PIECE, PIECE_ROWS = 128, 1 << 15  # steps, and rows of a run, between two looks at whether all have diverged
PATIENCE, PATIENT = 10, 0.1  # a loss is too high for long: for so many steps, and for so large a share of them
FLOPS = 6.0  # for each parameter and example, forwards and backwards (arXiv 2001.08361, section 2.1)


class State(NamedTuple):
    """Of one run, or of many along a first axis. `above`: for how many steps the loss has been too high."""

    params: Any
    optimizer: Any
    above: Any
    diverged: Any


class Programs(NamedTuple):
    """Compiled, of K runs. `begin(params, rates, total)` -> State; `advance(state, ids [K, P, B], rates, order, own,
    shared, total, count, limit, patience)` makes `count` of P steps; `held_out(params, rows [E])` and `recall(params,
    ids [K, E], order, own, shared)` give each row's (loss, share that is right), `[K, E]`."""

    begin: Any
    advance: Any
    held_out: Any
    recall: Any


class Group(NamedTuple):
    """Runs of one shape, `size` of them in one program; the `chunks` are trained one after the other."""

    size: int
    chunks: list[list[Run]]


def groups(runs: Sequence[Run], together: int) -> list[Group]:
    """By shape, the largest first: one that does not fit should say so before others have taken their time. Groups of
    more than `together` runs are cut into chunks of nearly one size, which depend on nothing but the runs."""
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        shape = tuple(value for name, value in run.settings.items() if name not in BESIDE)
        found.setdefault(shape, []).append(run)
    made = []
    for members in found.values():
        size = -(-len(members) // -(-len(members) // together))
        made.append(Group(size, [members[k : k + size] for k in range(0, len(members), size)]))
    return sorted(made, key=lambda group: -_cost(group.chunks[0][0].settings))


def _cost(settings: Settings) -> float:
    return settings["depth"] * settings["width"] ** 2 * settings["steps"] * settings["batch_size"]


def static(settings: Settings) -> steps.Static:
    """What a program is compiled for. Rates differ by run, and the number of steps is an input: 0 stands for both."""
    known = {name: settings.get(name) for name in steps.Static._fields}
    return steps.Static(**(known | {"learning_rate": 0.0, "steps": 0}))  # type: ignore[arg-type]  # checked settings


@functools.lru_cache(maxsize=16)
def programs(make: Callable[[Any], tuple[Task, Any]], right: Any, fixed: steps.Static, mesh: Any) -> Programs:
    task, spread = make(0)[0], data_sharding(mesh)

    def optimizer(rate: Any, total: Any) -> Any:
        return steps.optimizer(fixed._replace(learning_rate=rate, steps=total))

    def begin(params: Any, rate: Any, total: Any) -> State:
        return State(params, optimizer(rate, total).init(params), jnp.int32(0), jnp.bool_(False))

    def advance(state: State, ids: Any, rate: Any, order: Any, own: Any, shared: Any, *scalars: Any) -> State:
        total, count, limit, patience = scalars
        weight, update = jnp.ones(ids.shape[1], jnp.float32), optimizer(rate, total).update

        def step(number: Any, state: State) -> State:
            rows = gathered(ids[number], order, own, shared)
            params, made, losses = steps.step(task, update, state.params, state.optimizer, rows, weight)
            loss = jnp.mean(losses)
            above = jnp.where(loss > limit, state.above + 1, 0)
            return State(params, made, above, state.diverged | ~jnp.isfinite(loss) | (above >= patience))

        return jax.lax.fori_loop(0, count, step, state)

    def looked(params: Any, rows: Any) -> tuple[Any, Any]:
        assert task.outputs is not None
        outputs = task.outputs
        return jax.vmap(lambda its: (jnp.sum(task.loss(params, its)), right(outputs(params, its), its)))(rows)

    def recall(params: Any, ids: Any, order: Any, own: Any, shared: Any) -> tuple[Any, Any]:
        return looked(params, gathered(ids, order, own, shared))

    return Programs(
        jax.jit(jax.vmap(begin, (0, 0, None)), out_shardings=spread),
        jax.jit(jax.vmap(advance, (0, 0, 0, 0, 0, None, None, None, None, None)), out_shardings=spread),
        jax.jit(jax.vmap(looked, (0, None)), out_shardings=spread),
        jax.jit(jax.vmap(recall, (0, 0, 0, 0, None)), out_shardings=spread),
    )


def gathered(ids: Any, order: Any, own: Any, shared: Any) -> Any:
    """The rows of a batch of one run: `ids` count its own rows, `order` says which of all they are."""
    return jax.tree.map(lambda x: x[order[ids]], shared) | jax.tree.map(lambda x: x[ids], own)


# ---------------------------------------------------------------- a chunk of runs, from its settings to its results


class Job(NamedTuple):
    """K runs on their devices, the last ones copies that fill up. `rest`: rates, order, own and shared rows."""

    runs: list[Settings]
    mesh: Any
    made: Programs
    first: Any  # parameters
    rest: tuple[Any, ...]
    scalars: tuple[Any, ...]  # total, limit, patience
    piece: int


def trained(learnt: Problem, chunk: Sequence[Settings], size: int, most: int, devices: Sequence[Any],
            diverged_at: float) -> list[dict[str, Any]]:  # fmt: skip
    """What came of the runs of a chunk, in a program of `size` runs of up to `most` rows each, over `devices`.

    Raises:
        NoRoomError: so many runs together do not fit.
    """
    job = _job(learnt, chunk, size, most, devices, diverged_at)
    _check_room(job)
    state, seconds = _run(job, len(chunk))
    lost = np.asarray(state.diverged)[: len(chunk)]
    parameters = sum(x.size for x in jax.tree.leaves(state.params)) // len(job.runs)
    none = np.full(len(chunk), np.nan)
    held, right, own = (none, none, none) if lost.all() else _measured(learnt, job, state.params)
    found = []
    for k, settings in enumerate(chunk):
        bad = bool(lost[k]) or not math.isfinite(held[k]) or not math.isfinite(own[k])
        said = {} if bad else {"loss": held[k], "error_rate": 1 - right[k], "accuracy": right[k], "train_loss": own[k]}
        said = {name: float(value) for name, value in said.items()}
        met_in_all = settings["steps"] * settings["batch_size"]
        size_of = {"N": parameters, "D": met_in_all * learnt.units, "U": unique(settings) * learnt.units}
        found.append(
            size_of
            | {"C": FLOPS * parameters * size_of["D"], "noise": noise_of(learnt, settings, unique(settings))}
            | said
            | {"repeats": met_in_all / unique(settings), "seconds": seconds / len(chunk), "diverged": bad}
            | {"device": devices[0].device_kind, "devices": ways(job.mesh)}
        )
    return found


def _job(learnt: Problem, chunk: Sequence[Settings], size: int, most: int, devices: Sequence[Any], diverged_at: float):
    several = min(len(devices), size)
    size = -(-size // several) * several
    filled = [*chunk, *[chunk[-1]] * (size - len(chunk))]
    one, mesh = filled[0], make_mesh(several, devices)
    order, own = own_rows(learnt, filled, most)
    make = learnt.make(one)  # seed by seed: a program of K initialisations takes longer to compile than the training
    drawn = {seed: make(seed)[1] for seed in dict.fromkeys(settings["seed"] for settings in filled)}
    first = jax.tree.map(lambda *x: np.stack(x), *(drawn[settings["seed"]] for settings in filled))
    rates = np.array([settings["learning_rate"] for settings in filled], np.float32)
    first, *rest = shard_batch(mesh, (first, rates, order, own))
    patience = max(PATIENCE, math.ceil(PATIENT * one["steps"]))
    scalars = jnp.int32(one["steps"]), jnp.float32(diverged_at * learnt.uniform), jnp.int32(patience)
    return Job(
        filled,
        mesh,
        programs(make, learnt.right, static(one), mesh),
        first,
        (*rest, jax.device_put(learnt.shared, replicated(mesh))),
        scalars,
        max(1, min(PIECE, PIECE_ROWS // one["batch_size"])),
    )


def _check_room(job: Job) -> None:
    """Asks the compiler; the program is compiled then. Raises NoRoomError."""
    spread, batch = data_sharding(job.mesh), job.runs[0]["batch_size"]
    state = jax.eval_shape(job.made.begin, job.first, job.rest[0], job.scalars[0])

    def made(count: int) -> tuple[Any, ...]:
        of = lambda shape, dtype: jax.ShapeDtypeStruct((count, *shape), dtype, sharding=spread)  # noqa: E731  # twice
        begun, *rest = jax.tree.map(lambda x: of(x.shape[1:], x.dtype), (state, *job.rest[:-1]))
        total, *limits = job.scalars
        ids = of((job.piece, batch), jnp.int32)
        return job.made.advance, begun, ids, *rest, job.rest[-1], total, total, *limits

    room.check(made, len(job.runs), "a program for runs together", ways(job.mesh))


def _run(job: Job, real: int) -> tuple[State, float]:
    """(the state after all steps, or when all the real runs have diverged; the seconds that took)."""
    total, *limits = job.scalars
    steps_of, batch = job.runs[0]["steps"], job.runs[0]["batch_size"]

    def drawn(first: int) -> np.ndarray:
        stop = min(first + job.piece, steps_of)
        found = np.zeros((len(job.runs), job.piece, batch), np.int32)
        for into, settings in zip(found, job.runs, strict=True):
            into[: stop - first] = met(settings, first, stop)
        return found

    state = jax.block_until_ready(job.made.begin(job.first, job.rest[0], total))
    begun, ids, firsts = time.perf_counter(), drawn(0), range(0, steps_of, job.piece)
    for first in firsts:
        since, count = time.perf_counter(), jnp.int32(min(job.piece, steps_of - first))
        state = job.made.advance(state, shard_batch(job.mesh, ids), *job.rest, total, count, *limits)
        if first + job.piece < steps_of:
            ids = drawn(first + job.piece)  # while the devices compute
        lost = np.asarray(state.diverged)[:real].all()
        settle(time.perf_counter() - since)
        if lost:
            break
    return state, time.perf_counter() - begun


def _measured(learnt: Problem, job: Job, params: Any) -> tuple[np.ndarray, ...]:
    """Of each run: the held-out loss, the share that is right there, and the loss on the rows that it met. Means in
    float64, over batches no larger than those of the training."""
    batch, count = job.runs[0]["batch_size"], len(next(iter(learnt.held_out.values())))
    sums = np.zeros((2, len(job.runs)))
    for first in range(0, count, batch):
        at = np.minimum(np.arange(first, first + batch), count - 1)
        rows = jax.device_put({n: x[at] for n, x in learnt.held_out.items()}, replicated(job.mesh))
        real = min(batch, count - first)
        sums += [np.asarray(x, np.float64)[:, :real].sum(1) for x in job.made.held_out(params, rows)]
    held, right = sums / count
    first_met = [
        met(settings, 0, -(-unique(settings) // batch)).reshape(-1)[: unique(settings)] for settings in job.runs
    ]
    own, sizes = np.zeros(len(job.runs)), np.array([len(ids) for ids in first_met])
    for first in range(0, int(sizes.max()), batch):
        span = np.arange(first, first + batch)
        ids = np.stack([its[np.minimum(span, len(its) - 1)] for its in first_met]).astype(np.int32)
        losses = np.asarray(job.made.recall(params, shard_batch(job.mesh, ids), *job.rest[1:])[0], np.float64)
        own += np.where(span[None] < sizes[:, None], losses, 0).sum(1)
    return held, right, own / sizes
