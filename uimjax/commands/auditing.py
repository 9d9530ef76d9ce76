"""`uimjax audit --model DIR --items FILES`, `--predictions FILE`, `--data FILES`: scorecards and a corpus card."""

import argparse
from pathlib import Path
from typing import Any

from uimjax.commands.base import as_json, columns, override
from uimjax.errors import UsageError


def audit(args: argparse.Namespace, rest: list[str]) -> int:
    """By items, of a table of decisions, or of a classifier on labelled examples."""
    from uimjax.config import AuditConfig, DecisionsConfig, ExaminedConfig
    from uimjax.progress import quiet, shown
    from uimjax.workflow import auditing, base, decisions, examining

    values = _values(args)
    if values["kind"] == "census":
        return _census(args, values, rest)
    out = Path(args.out or (args.target if args.target and Path(args.target).is_dir() else "runs/audit"))
    if values["kind"] == "decisions":
        config: Any = override(DecisionsConfig, values, rest)
        document = decisions.audit(config, out)
    elif values["kind"] == "examined":
        config = override(ExaminedConfig, values, rest)
        document = examining.audit(config, out)
    else:
        config = override(AuditConfig, values, rest)
        document = auditing.audit(config, out, quiet if args.json else shown)
    base.write_lock(out, config, {})
    if args.json:
        print(as_json(document | {"out": str(out)}))
        return 0
    heads = ["probe", "items", "value", "95%", "reference", "verdict"]
    print("\n".join(columns(heads, auditing.lines(document))))
    if document["failures"]:
        print(f"{document['failures']} failing items are in {out / 'failures.jsonl'}. Where do they come from?")
        print(f"  {auditing.going_on(config.model, out)}")
    print(f"A page: {out / 'report.html'}")
    return 0


def _census(args: argparse.Namespace, values: dict[str, Any], rest: list[str]) -> int:
    """A corpus card."""
    from uimjax.config import CensusConfig
    from uimjax.progress import quiet, shown
    from uimjax.report import census
    from uimjax.workflow import base, surveying

    out = Path(args.out or (args.target if args.target and Path(args.target).is_dir() else "runs/census"))
    config = override(CensusConfig, values, rest)
    document = surveying.survey(config, out, quiet if args.json else shown)
    base.write_lock(out, config, {})
    if args.json:
        print(as_json(document | {"out": str(out)}))
        return 0
    print("\n".join(f"  {line}" for line in census.facts(document)))
    print(f"A page: {out / 'report.html'}; a dataset card: {out / 'README.md'}; rows: {out}/*.parquet")
    return 0


def _values(args: argparse.Namespace) -> dict[str, Any]:
    """What was given, by flags, by a config or by the folder of an audit."""
    from uimjax.config import LOCK, read_yaml

    if args.target:
        if args.model or args.items or args.examples or args.predictions or args.data:
            raise UsageError(f"--model, --items, --examples, --predictions and --data stand for a config, and "
                             f"{args.target} is one")  # fmt: skip
        target = Path(args.target)
        return read_yaml(target) if target.is_file() else read_yaml(target / LOCK)["config"]
    if args.data:
        if args.model or args.items or args.examples or args.predictions:
            raise UsageError("--data is of a corpus alone; leave --model, --items, --examples and --predictions out")
        return {"kind": "census", "data": args.data}
    if args.predictions:
        if args.model or args.items or args.examples:
            raise UsageError("--predictions is of decisions alone; leave --model, --items and --examples out")
        return {"kind": "decisions", "predictions": args.predictions}
    if not args.model:
        raise UsageError("--model FOLDER with --items, --members or --examples FILES, --predictions FILE, or --data "
                         "FILES, is wanted (or a config, or the folder of a run)")  # fmt: skip
    if args.examples and args.items:
        raise UsageError("--items are of a language model, --examples of a classifier; one of them was wanted")
    if args.examples:
        return {"kind": "examined", "model": args.model, "examples": args.examples}
    return {"kind": "audit", "model": args.model} | ({"items": args.items} if args.items else {})
