"""What a job of a config will cost: an index, a trace, the bank of a check. Exit code 5 where it does not fit."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from uimjax.commands.base import loaded, mesh_of, override
from uimjax.errors import UsageError


def plan(args: argparse.Namespace, rest: list[str]) -> int:
    from uimjax.allocator import keep_buffers

    keep_buffers()  # before anything computes, as the job does
    from uimjax.config import OWN, kind_of, read_yaml

    values = read_yaml(Path(args.target))
    config = override(kind_of(values, OWN), values, rest)
    if config.kind == "classified":
        raise UsageError(
            "mistakes of a classifier have no plan; time `uimjax trace` on a tenth of the examples: it grows in step"
        )
    if config.kind not in ("index", "failures") and (args.devices or args.chip):
        raise UsageError(f"--devices and --chip are for plans of an index, and this is one of a {config.kind}")
    if config.kind == "check" and args.count:
        raise UsageError("a check trains on the rows of its config: leave --count out")
    found = {"index": _index, "trace": _trace, "check": _check, "failures": _failures}[config.kind](args, config)
    if args.json:
        print(json.dumps(found.document(), indent=1))
    else:
        print("\n".join(found.lines()))
    found.check()
    return 0


def _index(args: argparse.Namespace, config: Any) -> Any:
    from uimjax.corpora import read_rows
    from uimjax.interpret.plan_index import plan_index
    from uimjax.sketch import Sketch

    task, params = loaded(config.load, "(uimjax.Task, params)", 2)
    choices = config.model_dump(include={"batch_size", "shard_rows", "coding", "target_recall"})
    choices |= {"sketch": Sketch(config.sketch_rank, seed=config.seed)}
    out = args.out or Path(args.target).with_suffix(".index")
    where = {"count": args.count, "devices": args.devices, "chip": args.chip}
    if args.chip:  # devices that share a batch have their part of it each
        where["devices"] = args.devices or config.devices
        choices["batch_size"] = max(1, config.batch_size // config.devices)
    else:
        where["mesh"] = mesh_of(config)
    return plan_index(task, params, read_rows(config.rows), out, **where, **choices)


def _failures(args: argparse.Namespace, config: Any) -> Any:
    """Of an index of a corpus: by the shapes of the folder's config.json, on a chip that need not be here."""
    import jax
    import jax.numpy as jnp

    from uimjax.answers.engines import WHOLE
    from uimjax.interpret.plan_outline import plan_outline
    from uimjax.mesh import make_mesh
    from uimjax.pretrained.loading import outline
    from uimjax.sketch import Sketch

    if not args.count or not args.chip:
        raise UsageError("a plan of a corpus that is not here: --count ROWS (tokens over --length) and --chip NAME")
    for name in ("adapter", "checkpoint"):
        if getattr(config, name):
            raise UsageError(f"a plan is of the model in the folder itself: leave {name} out")
    if config.method in WHOLE:
        raise UsageError(f"{config.method} builds no index; plan it with --method trackstar, or time it on a sample")
    its = outline(config.model, dtype=config.dtype or None, scanned=config.scanned, remat=config.remat)
    task = its.task if not config.include else dataclasses.replace(its.task, include=config.include)
    task = dataclasses.replace(task, exclude=config.exclude)
    example = {"tokens": jax.ShapeDtypeStruct((config.length,), jnp.int32),
               "counted": jax.ShapeDtypeStruct((config.length,), jnp.uint8)}  # fmt: skip
    share = config.devices * config.model_devices
    return plan_outline(
        task, its.params, example, count=args.count, chip=args.chip, devices=args.devices or share,
        mesh=None if share == 1 else make_mesh(config.devices, model=config.model_devices),
        sketch=Sketch(config.sketch_rank, seed=config.seed), batch_size=config.batch_size, coding=config.coding,
        shard_rows=config.shard_rows, shares=config.shown > 0,
    )  # fmt: skip


def _trace(args: argparse.Namespace, config: Any) -> Any:
    from uimjax.commands.ask import question, shuffles
    from uimjax.corpora import read_rows
    from uimjax.interpret.plan_index import plan_trace

    retain = read_rows(config.retain) if config.retain else None
    if config.ann:
        raise UsageError("ann answers in milliseconds and has no plan: leave it out to plan the exact answer")
    choices = {"k": config.k, "each": config.each, "rerank": config.rerank, "retain": retain}
    choices |= {"null": shuffles(config), "groups": bool(config.group_by)}
    return plan_trace(*question(config), method=config.method, count=args.count, **choices)


def _check(args: argparse.Namespace, config: Any) -> Any:
    from uimjax import rows as row
    from uimjax import steps
    from uimjax.interpret import bank
    from uimjax.interpret.plan_training import plan_bank

    wanted = "(uimjax.Task, initial, rows, uimjax.Measurement, queries)"
    task, initial, rows, measurement, queries = loaded(config.load, wanted, 5)
    kept = bank.subsets(row.count(rows), config.halves)
    recipe, seeds = steps.Recipe(**config.train.model_dump()), tuple(range(config.seeds))
    folder = Path(args.out or Path(args.target).with_suffix(".check"))
    its = (task, initial, rows, recipe, kept, measurement, queries)
    found = plan_bank(*its, seeds=seeds, protocol=config.protocol, folder=folder)
    beside = f"scoring by {len(config.methods)} methods, {config.removals} removals, the training they look at"
    return found._replace(how=found.how | {"not in it": beside})
