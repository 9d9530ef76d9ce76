"""`uimjax understand`: studies of label noise, from configs to a page."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uimjax.commands.base import as_json, override
from uimjax.errors import UsageError

TOGETHER = "runs/understand"


def understand(args: argparse.Namespace, rest: list[str]) -> int:
    jobs = _jobs([Path(target) for target in args.targets], args.out, rest)
    found = {name: _study(name if len(jobs) > 1 else "", config, out, args.json) for name, config, out in jobs}
    if len(jobs) > 1:
        from uimjax.report.understood import write_pages

        page = write_pages([(name, found[name], out) for name, _, out in jobs], Path(args.out or TOGETHER))
        if not args.json:
            print(f"wrote {page}, all of them side by side")
    if args.json:
        print(as_json(found if len(jobs) > 1 else next(iter(found.values()))))
    return 0


def _jobs(targets: Sequence[Path], out: str | None, rest: list[str]) -> list[tuple[str, Any, Path]]:
    """(name, config, folder) of each, all of them checked before the first begins."""
    from uimjax.config import NoiseConfig, read_yaml

    if len({path.stem for path in targets}) < len(targets):
        raise UsageError(f"{', '.join(map(str, targets))}: two of one name, which is their folder's; rename one")
    configs = [override(NoiseConfig, read_yaml(path), rest) for path in targets]
    if len(configs) > 1:
        base = Path(out or TOGETHER)
        return [(path.stem, config, base / path.stem) for path, config in zip(targets, configs, strict=True)]
    config = configs[0] if configs else override(NoiseConfig, {}, rest)
    return [("", config, Path(out or config.out))]


def _study(name: str, config: Any, out: Path, silent: bool) -> dict[str, Any]:
    from uimjax.progress import quiet, shown
    from uimjax.report.understood import write_page
    from uimjax.store.base import make_folder
    from uimjax.workflow.noise import study

    found = study(config, make_folder(out), quiet if silent else shown)
    page = write_page(found, out)
    (out / "study.json").write_text(as_json(found) + "\n")
    if not silent:
        _show(f"{name}: " if name else "", found, page)
    return found


def _show(name: str, found: dict[str, Any], page: Path) -> None:
    print(f"{name}{found['wrong']} of {found['examples']} labels are wrong")
    for row in found["scores"]:
        area, low, high = row["auroc"]
        print(f"  {row['score']:24} AUROC {area:.4f} [{low:.4f}, {high:.4f}]   AP {row['average_precision'][0]:.4f}")
    for reading in found["readings"].values():
        print(reading)
    for line in found["law"]["warnings"]:
        print(f"warning: {line}", file=sys.stderr)
    print(f"wrote {page}")
