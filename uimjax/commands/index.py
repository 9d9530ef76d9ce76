"""Indexes of the reader's own model and rows: build, verify, repair, append, merge, copy."""

import argparse
import json
from pathlib import Path
from typing import Any

from uimjax.commands.base import loaded, mesh_of, override
from uimjax.errors import UsageError


def index(args: argparse.Namespace, rest: list[str]) -> int:
    from uimjax.progress import quiet, shown

    progress = quiet if args.json else shown
    finished = {"verify": _verify, "merge": _merge, "copy": _copy, "ann": _ann}
    return finished[args.action](args, progress) if args.action in finished else _of_rows(args, rest, progress)


def _verify(args: argparse.Namespace, progress: Any) -> int:
    from uimjax.interpret.index import verify_index

    problems = verify_index(args.target, progress)
    told = "\n".join(problems) or f"{args.target}: every byte is right"
    print(json.dumps({"problems": problems}) if args.json else told)
    return 4 if problems else 0


def _merge(args: argparse.Namespace, progress: Any) -> int:
    from uimjax.interpret import indexing

    if not args.out:
        raise UsageError("merging writes a new index: say where, with --out FOLDER")
    return _told(indexing.merge_indexes(args.target, args.out, progress), args.json)


def _copy(args: argparse.Namespace, progress: Any) -> int:
    from uimjax.interpret.moving import copy_index

    written = copy_index(args.target, args.out, progress)
    done = {"from": args.target, "to": args.out, "shards_written": written}
    print(json.dumps(done) if args.json else f"{args.out}: {written} shards written, every byte checked")
    return 0


def _ann(args: argparse.Namespace, progress: Any) -> int:
    from uimjax.interpret.ann import build_ann, said

    made = build_ann(args.target, connectivity=args.connectivity, expansion=args.expansion, progress=progress)
    told = f"{made['rows']} rows joined; {said(made)} ({made['asked']} of them)"
    print(json.dumps(made) if args.json else told)
    return 0


def _of_rows(args: argparse.Namespace, rest: list[str], progress: Any) -> int:
    """Build, append and repair: what computes gradients."""
    from uimjax.allocator import keep_buffers

    keep_buffers()  # before anything computes
    from uimjax.config import IndexConfig, read_yaml
    from uimjax.corpora import read_rows
    from uimjax.interpret import indexing
    from uimjax.progress import quiet
    from uimjax.sketch import Sketch

    config = override(IndexConfig, read_yaml(Path(args.target)), rest)
    rows = read_rows(config.rows)
    share = indexing.ALONE
    if args.action != "repair":
        from uimjax.mesh import start_processes

        ways = (args.coordinator, args.processes, args.process, args.limit)
        share = indexing.Share(*start_processes(*ways), args.limit)  # before any device is touched
        progress = progress if share.process == 0 else quiet
    task, params = loaded(config.load, "(uimjax.Task, params)", 2)
    out, how = args.out or Path(args.target).with_suffix(".index"), {"mesh": mesh_of(config), "progress": progress}
    if args.action == "append":
        return _told(indexing.append_index(task, params, rows, out, share=share, **how), args.json)
    choices = {"sketch": Sketch(config.sketch_rank, seed=config.seed)}
    choices |= config.model_dump(include={"batch_size", "shard_rows", "coding", "target_recall"})
    if args.action == "build":
        return _told(indexing.build_index(task, params, rows, out, **choices, share=share, **how), args.json)
    done = indexing.repair_index(task, params, rows, out, **choices, **how)
    print(json.dumps({"repaired": done}) if args.json else "\n".join(done) or f"{out}: nothing was broken")
    return 0


def _told(index: Any, as_json: bool) -> int:
    """What an index holds, and what its coding costs."""
    price = (index.price or {"parts": []})["parts"]
    found = {
        "folder": str(index.folder),
        "rows": index.rows,
        "width": index.manifest["width"],
        "shards": len(index.entries),
        "coding": str(index.coding),
        "row_bytes": index.row_bytes,
        "price": price,
    }
    if as_json:
        print(json.dumps(found))
        return 0
    print(f"{index.rows} rows of {found['width']} numbers ({index.coding}, {index.row_bytes} bytes) in {index.folder}")
    lossy = str(index.coding) != "float32"
    for part in price if lossy else []:
        print(
            f"{part['smaller']:.1f} times smaller than float32; scores correlate {part['correlation']:.4f} with those "
            f"of whole rows, and {part['recall']:.1%} of their top {part['top']} are kept (on {part['rows']} rows)"
        )
    return 0
