"""`uimjax understand`: the study of label noise, from a config to a page."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from uimjax.commands.base import override


def understand(args: argparse.Namespace, rest: list[str]) -> int:
    from uimjax.config import NoiseConfig, read_yaml
    from uimjax.progress import quiet, shown
    from uimjax.report.understood import write_page
    from uimjax.store.base import make_folder
    from uimjax.workflow.noise import study

    values = {} if args.target is None else read_yaml(Path(args.target))
    config = override(NoiseConfig, values, rest)
    out = make_folder(Path(args.out or config.out))
    found = study(config, out, quiet if args.json else shown)
    page = write_page(found, out)
    (out / "study.json").write_text(json.dumps(found) + "\n")
    if args.json:
        print(json.dumps(found))
    else:
        _show(found, page)
    return 0


def _show(found: dict[str, Any], page: Path) -> None:
    print(f"{found['wrong']} of {found['examples']} labels are wrong")
    for row in found["scores"]:
        area, low, high = row["auroc"]
        print(f"  {row['score']:24} AUROC {area:.4f} [{low:.4f}, {high:.4f}]   AP {row['average_precision'][0]:.4f}")
    for reading in found["readings"].values():
        print(reading)
    for line in found["law"]["warnings"]:
        print(f"warning: {line}", file=sys.stderr)
    print(f"wrote {page}")
