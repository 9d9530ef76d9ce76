"""The command line: parse, call, print. Heavy imports happen inside the commands, so `--help` is instant."""

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any

from uimjax import __version__
from uimjax.errors import OutputError, UimError, UnknownNameError, UsageError

STAGES = {
    "train": "train the model and its clean twin",
    "audit": "measure the failure",
    "trace": "score every training row and write the edit",
    "mitigate": "carry the edit out, with controls, and give the verdict",
}
PARTS = ("vision", "text")
CODES = (
    "exit codes: 0 ok, 2 usage, 3 data, 4 corrupt, 5 output, 6 loss not traceable, 75 stopped (run again to continue)"
)


def parser() -> argparse.ArgumentParser:
    """Every command; their settings are config keys, given as `--key.sub value`."""
    top = argparse.ArgumentParser(
        prog="uimjax",
        description="Understand, interpret and mitigate what models inherit from their training data.",
        epilog=CODES,
    )
    top.add_argument("--version", action="version", version=f"uimjax {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    demo = _command(commands, "demo", "the closed loop on built-in data: pictures and text", out="runs/demo")
    demo.add_argument("--only", choices=PARTS, help="one of the two")
    run = _command(commands, "run", "the whole story of a config, or replay a finished run", out=None)
    run.add_argument("target", help="a YAML config, or the folder of a run")
    for name, what in STAGES.items():
        _command(commands, name, what, out=None).add_argument("target", help="a YAML config, or the folder of a run")
    report = _command(commands, "report", "one offline HTML page of a finished run", out=None)
    report.add_argument("target", help="the folder of a run")
    report.add_argument("--reveal", action="store_true", help="show leaked secrets in clear; they are masked otherwise")
    doctor = _command(commands, "doctor", "is this machine fit, and your own loss", out="")
    doctor.add_argument("--task", help="pkg.module:function returning (uimjax.Task, params, rows): every check of it")
    index = commands.add_parser("index", help="build, verify, repair, grow or join indexes of your own model and rows")
    actions = index.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = _command(actions, "build", "sketch every row's gradient; continues where it stopped", out=None)
    build.add_argument("target", help="a YAML config (`uimjax new index`)")
    _of_several(build)
    verify = _command(actions, "verify", "check every byte of an index", out="")
    verify.add_argument("target", help="the folder of an index")
    repair = _command(actions, "repair", "recompute what is damaged, to the same bytes", out=None)
    repair.add_argument("target", help="the YAML config it was built with (of an index that grew: with all rows)")
    append = _command(
        actions, "append", "add the config's rows to a finished index (--rows NEW, --out FOLDER)", out=None
    )
    append.add_argument("target", help="a YAML config")
    _of_several(append)
    merge = _command(actions, "merge", "one index of the rows of several (--out FOLDER)", out=None)
    merge.add_argument("target", nargs="+", help="folders of indexes of one model and different rows")
    check = _command(commands, "check", "judge attribution methods by retraining your own small task", out=None)
    check.add_argument("target", help="a YAML config (`uimjax new check`)")
    new = commands.add_parser("new", help="write a commented config into this folder")
    new.add_argument("kind", help="run, text, index or check")
    topic = commands.add_parser("help", help="print a page of the shipped docs")
    topic.add_argument("topic", nargs="?", help="the page; without it, the list")
    return top


def _command(commands: Any, name: str, what: str, out: str | None) -> argparse.ArgumentParser:
    made = commands.add_parser(name, help=what, description=what)
    made.add_argument("--json", action="store_true", help="one JSON object on stdout, nothing else")
    if out != "":
        made.add_argument("--out", default=out, help=f"where to write{f' (default {out})' if out else ''}")
    return made


def _of_several(made: argparse.ArgumentParser) -> None:
    """Flags of one of several processes that do one job."""
    made.add_argument("--processes", type=int, help="how many processes share the job (a cluster's launcher says so)")
    made.add_argument("--process", type=int, help="which of them this is, from 0")
    made.add_argument("--coordinator", help="HOST:PORT of process 0, where they meet; without it, in --out alone")
    made.add_argument("--limit", type=int, default=600, help="seconds to wait for the others (default 600)")


def main(argv: list[str] | None = None) -> None:
    """Entry point; ends the process with the exit code of what happened."""
    args, rest = parser().parse_known_args(argv)
    takes_settings = args.command in ("demo", "run", "check", *STAGES)
    takes_settings |= getattr(args, "action", "") in ("build", "repair", "append")
    if rest and not takes_settings:
        parser().error(f"unrecognised: {' '.join(rest)}")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, _stopped)
    try:
        code = _COMMANDS[args.command](args, rest)
    except UimError as error:
        from uimjax.report.markup import visible  # names of files may hold anything

        print(f"uimjax: {type(error).__name__}: {visible(str(error))}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        signal.alarm(0)
        print(
            "uimjax: stopped. What was finished is kept; run the same command again to continue.",
            file=sys.stderr,
        )
        code = 75
    sys.exit(code)


def _stopped(*_: object) -> None:
    """End as Ctrl-C does. An exception raised inside a callback of a library can get lost, so it is raised again."""
    signal.alarm(1)
    raise KeyboardInterrupt


def _demo(args: argparse.Namespace, rest: list[str]) -> int:
    from uimjax.config import DemoConfig

    idle = [flag for flag in rest if args.only and flag.startswith("--") and not flag.startswith(f"--{args.only}.")]
    if idle:
        raise UsageError(f"{idle[0]} would change nothing with --only {args.only}; leave one of them out")
    config = _override(DemoConfig, {}, rest)
    parts = [args.only] if args.only else PARTS
    return _stories(args, [(name, getattr(config, name), Path(args.out) / name) for name in parts], "mitigate")


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    from uimjax.config import LOCK, kind_of, read_yaml

    target = Path(args.target)
    until = args.command if args.command in STAGES else "mitigate"
    parts = [name for name in PARTS if (target / name / LOCK).exists()]
    if parts and not (target / LOCK).exists():
        if rest:
            raise UsageError(f"{target} holds several runs; name one of them to change {rest[0]}: {target / parts[0]}")
        out = Path(args.out or target)
        locks = {name: read_yaml(target / name / LOCK).get("config", {}) for name in parts}
        jobs = [(name, _override(kind_of(values), values, []), out / name) for name, values in locks.items()]
        return _stories(args, jobs, until)
    if target.is_dir():
        values, folder = read_yaml(target / LOCK).get("config", {}), Path(args.out or target)
    else:
        values, folder = read_yaml(target), Path(args.out or Path("runs") / target.stem)
    return _stories(args, [("", _override(kind_of(values), values, rest), folder)], until)


def _stories(args: argparse.Namespace, jobs: list[tuple[str, Any, Path]], until: str) -> int:
    """Run each story; a job without a name stands alone and its JSON is not wrapped."""
    from rich.console import Console

    from uimjax import workflow
    from uimjax.config import TextConfig
    from uimjax.progress import quiet, shown
    from uimjax.report import summary

    notes = Console(stderr=True, quiet=args.json or not sys.stderr.isatty())
    say = lambda line: notes.print(line, markup=False, highlight=False)  # noqa: E731  # one line, used once
    results: dict[str, Any] = {}
    for name, config, folder in jobs:
        result = workflow.run(config, folder, until, say, quiet if args.json else shown)
        results[name] = result
        if args.json:
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


def _report(args: argparse.Namespace, _rest: list[str]) -> int:
    from uimjax.report import page

    folder = Path(args.target)
    path = page.write_page(folder, Path(args.out) if args.out else folder / "report.html", reveal=args.reveal)
    size = path.stat().st_size
    print(json.dumps({"page": str(path), "bytes": size}) if args.json else f"wrote {path} ({size / 1e6:.2f} MB)")
    return 0


def _override(kind: Any, values: dict[str, Any], flags: list[str]) -> Any:
    """Config values, then flags over them."""
    import tyro

    from uimjax.config import parse

    config = parse(kind, values, "config")
    if not flags:
        return config
    return tyro.cli(kind, default=config, args=flags, prog="uimjax ... ")


def _index(args: argparse.Namespace, rest: list[str]) -> int:
    if args.action == "verify":
        from uimjax.interpret.index import verify_index

        problems = verify_index(args.target)
        print(
            json.dumps({"problems": problems})
            if args.json
            else "\n".join(problems) or f"{args.target}: every byte is right"
        )
        return 4 if problems else 0
    from uimjax.interpret import indexing
    from uimjax.progress import quiet, shown

    progress = quiet if args.json else shown
    if args.action == "merge":
        if not args.out:
            raise UsageError("merging writes a new index: say where, with --out FOLDER")
        return _told(indexing.merge_indexes(args.target, args.out, progress), args.json)
    from uimjax.allocator import keep_buffers

    keep_buffers()  # before anything computes
    from uimjax.config import IndexConfig, read_yaml
    from uimjax.corpora import read_rows
    from uimjax.sketch import Sketch

    config = _override(IndexConfig, read_yaml(Path(args.target)), rest)
    rows = read_rows(config.rows)
    share = indexing.ALONE
    if args.action != "repair":
        from uimjax.mesh import start_processes

        ways = (args.coordinator, args.processes, args.process, args.limit)
        share = indexing.Share(*start_processes(*ways), args.limit)  # before any device is touched
        progress = progress if share.process == 0 else quiet
    task, params = _loaded(config.load, "(uimjax.Task, params)", 2)
    out = args.out or Path(args.target).with_suffix(".index")
    if args.action == "append":
        return _told(indexing.append_index(task, params, rows, out, share=share, progress=progress), args.json)
    choices = {"sketch": Sketch(config.sketch_rank, seed=config.seed)}
    choices |= config.model_dump(include={"batch_size", "shard_rows", "coding", "target_recall"})
    if args.action == "build":
        return _told(
            indexing.build_index(task, params, rows, out, **choices, share=share, progress=progress), args.json
        )
    done = indexing.repair_index(task, params, rows, out, **choices, progress=progress)
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


def _check(args: argparse.Namespace, rest: list[str]) -> int:
    from uimjax import steps
    from uimjax.config import CheckConfig, read_yaml
    from uimjax.interpret import check
    from uimjax.progress import quiet, shown
    from uimjax.report import judgements

    config = _override(CheckConfig, read_yaml(Path(args.target)), rest)
    found = _loaded(config.load, "(uimjax.Task, initial, rows, uimjax.Measurement, queries)", 5)
    task, initial, rows, measurement, queries = found
    asked = check.Asked(task, initial, rows, steps.Recipe(**config.train.model_dump()), measurement, queries)
    result = check.check(
        asked,
        config.methods,
        halves=config.halves,
        seeds=tuple(range(config.seeds)),
        protocol=config.protocol,
        removals=config.removals,
        checkpoints=config.checkpoints,
        damping=config.damping,
        batch_size=config.batch_size,
        folder=Path(args.out or Path(args.target).with_suffix(".check")),
        progress=quiet if args.json else shown,
    )
    if args.json:
        print(json.dumps(judgements.document(result), indent=1))
    else:
        judgements.show(result)
    return 0


def _loaded(reference: str, wanted: str, count: int) -> tuple[Any, ...]:
    """What the reader's own function returns, the first of it a Task."""
    from uimjax.task import Task
    from uimjax.workflow.base import call

    found = call(reference)
    if not isinstance(found, tuple) or len(found) != count or not isinstance(found[0], Task):
        raise UsageError(f"{reference} returned {type(found).__name__}; {wanted} was wanted")
    return found


def _doctor(args: argparse.Namespace, _rest: list[str]) -> int:
    from uimjax.doctor import examine, examine_task

    checks, table = examine(), ""
    if args.task:
        mine, table = examine_task(*_loaded(args.task, "(uimjax.Task, params, rows)", 3))
        checks += mine
    if args.json:
        print(json.dumps({name: {"ok": ok, "found": found} for name, ok, found in checks}, indent=1))
    else:
        print(f"{table}\n" if table else "", end="")
        for name, ok, found in checks:
            print(f"{'ok  ' if ok else 'FAIL'}  {name}: {found}")
    return 0 if all(ok for _, ok, _ in checks) else 1


def _new(args: argparse.Namespace, _rest: list[str]) -> int:
    from uimjax.config import KINDS, commented

    if args.kind not in KINDS:
        raise UnknownNameError("kind of config", args.kind, KINDS)
    path = Path(f"{args.kind}.yaml")
    if path.exists():
        raise OutputError(f"{path} is there already; move it away first")
    try:
        path.write_text(commented(args.kind))
    except OSError as error:
        raise OutputError(f"cannot write {path} here: {error.strerror}") from error
    print(f"wrote {path}")
    return 0


def _help(args: argparse.Namespace, _rest: list[str]) -> int:
    pages = {page.stem: page for page in sorted((Path(__file__).parent / "docs").glob("*.md"))}
    if args.topic is None:
        print("\n".join(pages))
    elif args.topic in pages:
        print(pages[args.topic].read_text(), end="")
    else:
        raise UnknownNameError("topic", args.topic, pages)
    return 0


_COMMANDS = {
    "check": _check,
    "demo": _demo,
    "doctor": _doctor,
    "index": _index,
    "new": _new,
    "help": _help,
    "report": _report,
}
_COMMANDS |= dict.fromkeys(("run", *STAGES), _run)


if __name__ == "__main__":
    main()
