"""`uimjax mitigate FEATURES --method NAME`: tuning on features or logits, the model unopened."""

import argparse
from pathlib import Path
from typing import Any

from uimjax.commands.base import as_json, columns, override
from uimjax.commands.names import TABLES


def tune(args: argparse.Namespace, rest: list[str]) -> int:
    """Of a file of features, or of a config of kind `tune`, or of the folder that one was run in."""
    from uimjax.config import LOCK, TuneConfig, read_yaml
    from uimjax.progress import quiet, shown
    from uimjax.workflow import base, tuning

    target = Path(args.target)
    if target.suffix in TABLES:
        values: dict[str, Any] = {"kind": "tune", "train": str(target)}
    else:
        values = read_yaml(target) if target.is_file() else read_yaml(target / LOCK).get("config", {})
    config = override(TuneConfig, values, rest)
    out = Path(args.out) if args.out else target if target.is_dir() else Path("runs") / f"{target.stem}-{config.method}"
    document = tuning.tune(config, out, quiet if args.json else shown)
    base.write_lock(out, config, {})
    if args.json:
        print(as_json(document | {"out": str(out)}))
        return 0
    for name, heads, rows, says in tuning.lines(document):
        print(f"{name}:")
        print("\n".join(columns(heads, rows)))
        print(f"{config.method}: {says}.")
    print(f"The head, its predictions and every figure are in {out}.")
    return 0
