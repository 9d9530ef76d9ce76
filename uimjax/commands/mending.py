"""Edits and mitigations of the reader's own model: `uimjax edit RUN`, `uimjax mitigate RUN --method NAME`."""

import argparse
import json
from pathlib import Path
from typing import Any

from uimjax.commands.base import as_json, columns, override
from uimjax.errors import UsageError


def edit(args: argparse.Namespace, _rest: list[str]) -> int:
    from uimjax.workflow import edits

    run = Path(args.target)
    if args.top < 1:
        raise UsageError(f"--top {args.top}: one document at least")
    out = Path(args.out) if args.out else run / edits.EDIT
    made = edits.write_edit(run, args.top, args.failure, out, args.copies)
    if args.json:
        print(json.dumps(made))
        return 0
    print("\n".join(made["documents"]))
    print(f"{len(made['documents'])} documents, {made['why']}: {made['edit']}. Take out what should stay, then")
    print(f"  uimjax mitigate {run} --method npo --out runs/mended")
    return 0


def mitigate(args: argparse.Namespace, rest: list[str]) -> int:
    """Of the folder of a trace, of a config of kind `mend`, or of the folder of a mitigation."""
    from uimjax.allocator import keep_buffers

    keep_buffers()  # before anything computes
    from uimjax.config import LOCK, MendConfig, read_yaml
    from uimjax.progress import quiet, shown
    from uimjax.workflow import acting, base, mending

    target = Path(args.target)
    values: dict[str, Any] = read_yaml(target) if target.is_file() else read_yaml(target / LOCK).get("config", {})
    if values.get("kind") != "mend":
        values = {"kind": "mend", "run": str(target)}
    config = override(MendConfig, values, rest)
    out = Path(args.out) if args.out else Path(config.run) / "mended"
    document = mending.mend(config, out, quiet if args.json else shown)
    base.write_lock(out, config, {})
    if args.json:
        print(as_json(document | {"out": str(out)}))
        return 0
    start = sum(document["before"]["failures"]) / len(document["before"]["failures"])
    lines = [["before", f"{start:.3f}", f"{document['before']['clean_loss']:.4f}"]]
    for arm, each in document["after"].items():
        means = [sum(one["failures"]) / len(one["failures"]) for one in each]
        clean = sum(one["clean_loss"] for one in each) / len(each)
        lines.append([acting.told(arm), f"{sum(means) / len(means):.3f}", f"{clean:.4f}"])
    print("\n".join(columns(["", "failures (mean)", "clean loss, nats a token"], lines)))
    print(f"{document['says']} ({document['evidence']}).")
    print(f"{document['edit']['rows']} rows by {config.method}; new model: {document['model']}.")
    if spent := document.get("privacy"):
        print(f"Privacy of the rows that stay: epsilon {spent['epsilon']:.2f} at delta {spent['delta']:.1e}. The seed "
              f"of its noise is in {out / 'steps'}: keep it, and what this prints, with the data.")  # fmt: skip
    return 0
