"""The stories: `demo`, `run` and its stages, `report`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from uimjax.commands.base import override
from uimjax.commands.names import PARTS, STAGES, TABLES
from uimjax.errors import UsageError


def demo(args: argparse.Namespace, rest: list[str]) -> int:
    from uimjax.config import DemoConfig

    idle = [flag for flag in rest if args.only and flag.startswith("--") and not flag.startswith(f"--{args.only}.")]
    if idle:
        raise UsageError(f"{idle[0]} would change nothing with --only {args.only}; leave one of them out")
    config = override(DemoConfig, {}, rest)
    parts = [args.only] if args.only else PARTS
    return _stories(args, [(name, getattr(config, name), Path(args.out) / name) for name in parts], "mitigate")


def run(args: argparse.Namespace, rest: list[str]) -> int:
    from uimjax.config import LOCK, SuiteConfig, kind_of, quick, read_yaml

    if args.command == "trace":
        kind = _kind(Path(args.target)) if args.target else None
        given = [name for name in ("model", "corpus", "queries") if getattr(args, name) is not None]
        if kind in ("failures", "classified") or not args.target:
            from uimjax.commands.failures import failures

            return failures(args, rest)
        if given:
            raise UsageError(
                f"--{given[0]} is for failures of a model of your own, and {args.target} is no config of those"
            )
        if kind == "trace":
            from uimjax.commands.ask import ask

            return ask(args, rest)
    if args.command == "audit" and _of_own_audit(args):
        from uimjax.commands.auditing import audit

        return audit(args, rest)
    if args.command == "mitigate" and (Path(args.target).suffix in TABLES or _kind(Path(args.target)) == "tune"):
        from uimjax.commands.tuning import tune

        return tune(args, rest)
    if args.command == "mitigate" and _kind(Path(args.target)) in ("failures", "classified", "mend"):
        from uimjax.commands.mending import mitigate

        return mitigate(args, rest)
    target = Path(args.target)
    until = args.command if args.command in STAGES else "mitigate"
    parts = [name for name in PARTS if (target / name / LOCK).exists()]
    if parts and not (target / LOCK).exists():
        if rest:
            raise UsageError(f"{target} holds several runs; name one of them to change {rest[0]}: {target / parts[0]}")
        out = Path(args.out or target)
        locks = {name: read_yaml(target / name / LOCK).get("config", {}) for name in parts}
        jobs = [(name, override(kind_of(values), values, []), out / name) for name, values in locks.items()]
        return _stories(args, jobs, until)
    if target.is_dir():
        values, folder = read_yaml(target / LOCK).get("config", {}), Path(args.out or target)
    else:
        values, folder = read_yaml(target), Path(args.out or Path("runs") / target.stem)
    kind = kind_of(values)
    if getattr(args, "quick", False):
        if kind is not SuiteConfig:
            raise UsageError("--quick is for the suite (a config of kind suite)")
        values = quick(values)
    return _stories(args, [("", override(kind, values, rest), folder)], until)


def _of_own_audit(args: argparse.Namespace) -> bool:
    """And no stage of a story: by flags, or by a config of that kind."""
    given = args.model or args.items or args.examples or args.predictions or args.data or not args.target
    return bool(given) or _kind(Path(args.target)) in ("audit", "decisions", "examined", "census")


def _kind(target: Path) -> str | None:
    """Of a config, or of the config that a folder was made with."""
    from uimjax.config import LOCK, read_yaml

    if target.is_file():
        return read_yaml(target).get("kind")
    return read_yaml(target / LOCK).get("config", {}).get("kind") if (target / LOCK).exists() else None


def _stories(args: argparse.Namespace, jobs: list[tuple[str, Any, Path]], until: str) -> int:
    """Run each story; a job without a name stands alone and its JSON is not wrapped."""
    from rich.console import Console

    from uimjax import workflow
    from uimjax.config import SuiteConfig, TextConfig
    from uimjax.progress import quiet, shown
    from uimjax.report import suite, summary

    notes = Console(stderr=True, quiet=args.json or not sys.stderr.isatty())
    say = lambda line: notes.print(line, markup=False, highlight=False)  # noqa: E731  # one line, used once
    results: dict[str, Any] = {}
    for name, config, folder in jobs:
        result = workflow.run(config, folder, until, say, quiet if args.json else shown)
        results[name] = result
        if args.json:
            continue
        if isinstance(config, SuiteConfig):
            suite.show(result, Console())
            continue
        parts = result if isinstance(config, TextConfig) else {"vision": result}
        for title, part in parts.items():
            if until == "mitigate":
                summary.show(title, part, Console())
            else:
                print("\n".join(f"{title} {key}: {value}" for key, value in part.items()))
    if args.json:
        print(json.dumps(results.get("", results), indent=1))
    elif until == "mitigate":
        folder = jobs[0][2] if len(jobs) == 1 else jobs[0][2].parent
        print(f"Everything is in {folder}; `uimjax run {folder}` replays it, `uimjax report {folder}` writes a page.")
    return 0


def report(args: argparse.Namespace, _rest: list[str]) -> int:
    from uimjax.report import bundle

    folder = Path(args.target)
    out = Path(args.out) if args.out else folder / "report.html"
    path = bundle.write_all(folder, out, args.reveal)
    size = path.stat().st_size
    print(json.dumps({"page": str(path), "bytes": size}) if args.json else f"wrote {path} ({size / 1e6:.2f} MB)")
    return 0
