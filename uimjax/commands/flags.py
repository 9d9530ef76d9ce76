"""What parsers of commands share."""

import argparse
from typing import Any


def command(commands: Any, name: str, what: str, out: str | None) -> argparse.ArgumentParser:
    made = commands.add_parser(name, help=what, description=what)
    takes_json(made)
    if out != "":
        made.add_argument("--out", default=out, help=f"where to write{f' (default {out})' if out else ''}")
    return made


def actions_of(made: argparse.ArgumentParser) -> Any:
    """Of a command that begins with an action; `--json` may stand before it, too."""
    takes_json(made)
    return made.add_subparsers(dest="action", metavar="ACTION", required=True)


def takes_json(made: argparse.ArgumentParser) -> None:
    """Without a default of its own, with which an action would overwrite what stands before it."""
    said = "one JSON object on stdout, nothing else"
    made.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=said)


def of_several(made: argparse.ArgumentParser) -> None:
    """Flags of one of several processes that do one job."""
    made.add_argument("--processes", type=int, help="how many processes share the job (a cluster's launcher says so)")
    made.add_argument("--process", type=int, help="which of them this is, from 0")
    made.add_argument("--coordinator", help="HOST:PORT of process 0, where they meet; without it, in --out alone")
    made.add_argument("--limit", type=int, default=600, help="seconds to wait for the others (default 600)")
