"""`uimjax audit --model DIR --items FILES`: a scorecard of the reader's own model, and questions for a trace."""

import argparse
from pathlib import Path

from uimjax.commands.base import as_json, columns, override
from uimjax.errors import UsageError


def audit(args: argparse.Namespace, rest: list[str]) -> int:
    from uimjax.config import AuditConfig
    from uimjax.progress import quiet, shown
    from uimjax.workflow import auditing

    if not args.model or not args.items:
        raise UsageError("--model FOLDER and --items FILES go together (or a config, or the folder of a run)")
    config = override(AuditConfig, {"model": args.model, "items": args.items}, rest)
    out = Path(args.out or "runs/audit")
    document = auditing.audit(config, out, quiet if args.json else shown)
    if args.json:
        print(as_json(document | {"out": str(out)}))
        return 0
    heads = ["weakness", "items", "value", "95%", "reference", "verdict"]
    print("\n".join(columns(heads, auditing.lines(document))))
    print(f"{document['failures']} failing items are in {out / 'failures.jsonl'}. Where do they come from?")
    print(f"  uimjax trace --model {args.model} --corpus FILES --queries {out / 'failures.jsonl'}")
    return 0
