"""The command line: parse, call, print. Heavy imports happen inside the commands, so `--help` is instant."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from uimjax.commands.names import STAGES
from uimjax.commands.parsing import parser
from uimjax.compiler import compile_sooner
from uimjax.errors import OutputError, UimError, UnknownNameError


def main(argv: list[str] | None = None) -> None:
    """Entry point; ends the process with the exit code of what happened."""
    argv = sys.argv[1:] if argv is None else argv
    args, rest = parser(argv).parse_known_args(argv)
    takes_settings = args.command in ("demo", "run", "check", "plan", "understand", *STAGES)
    takes_settings |= getattr(args, "action", "") in ("build", "repair", "append")
    if rest and not takes_settings:
        parser().error(f"unrecognised: {' '.join(rest)}")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, _stopped)
    compile_sooner()
    try:
        code = _command_of(args.command)(args, rest)
    except UimError as error:
        from uimjax.report.markup import visible  # names of files may hold anything

        print(f"uimjax: {type(error).__name__}: {visible(str(error))}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        signal.alarm(0)
        print("uimjax: stopped. What was finished is kept; run the same command again to continue.", file=sys.stderr)
        _leave(75)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """Now: a program of XLA may still run on its own threads, and the interpreter that was taken apart below it ended,
    once in twenty times, with a segmentation fault in the place of the exit code."""
    with suppress(OSError):  # nobody may read them any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _stopped(*_: object) -> None:
    """End as Ctrl-C does. An exception raised inside a callback of a library can get lost, so it is raised again."""
    signal.alarm(1)
    raise KeyboardInterrupt


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


_OWN = {"new": _new, "help": _help}
_ELSEWHERE = {"check": "judge", "demo": "story", "doctor": "judge", "report": "story", "edit": "mending"}
_ELSEWHERE |= dict.fromkeys(("run", *STAGES), "story")


def _command_of(name: str) -> Callable[[argparse.Namespace, list[str]], int]:
    """Its function, imported now: `uimjax.commands.NAME:NAME` where nothing else is said."""
    if name in _OWN:
        return _OWN[name]
    module = import_module(f"uimjax.commands.{_ELSEWHERE.get(name, name)}")
    return module.run if name in STAGES else getattr(module, name)


if __name__ == "__main__":
    main()
