"""`uimjax explain RUN`: one page in plain words."""

import argparse
import json
from pathlib import Path


def explain(args: argparse.Namespace, _rest: list[str]) -> int:
    from uimjax.report import explained

    folder = Path(args.target)
    out = Path(args.out) if args.out else folder / explained.name_of(args.lang)
    path = explained.write_page(folder, out, args.lang)
    print(json.dumps({"page": str(path), "bytes": path.stat().st_size}) if args.json else f"wrote {path}")
    return 0
