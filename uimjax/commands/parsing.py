"""What can be typed: every command and its flags. Nothing heavy is imported, so `--help` is instant."""

import argparse
from collections.abc import Sequence
from typing import Any

from uimjax import __version__
from uimjax.commands import flags_people
from uimjax.commands.flags import actions_of, command, of_several
from uimjax.commands.flags_studies import dynamics, representation, scaling
from uimjax.commands.names import PARTS, STAGES

CODES = (
    "exit codes: 0 ok, 2 usage, 3 data, 4 corrupt, 5 output, 6 loss not traceable, 75 stopped (run again to continue)"
)


def parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Every command; their settings are config keys, given as `--key.sub value`. `argv`: what was typed; `trace` begins
    with a config or with a flag, and has no place for a config where it begins with a flag; `dynamics` begins with an
    action or with a run."""
    top = argparse.ArgumentParser(
        prog="uimjax",
        description="Understand, interpret and mitigate what models inherit from their training data.",
        epilog=CODES,
    )
    top.add_argument("--version", action="version", version=f"uimjax {__version__}")
    top.set_defaults(json=False)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    demo = command(commands, "demo", "the closed loop on built-in data: pictures and text", out="runs/demo")
    demo.add_argument("--only", choices=PARTS, help="one of the two")
    run = command(commands, "run", "the whole story of a config, or replay a finished run", out=None)
    run.add_argument("target", help="a YAML config, or the folder of a run")
    run.add_argument("--quick", action="store_true", help="of the suite: smaller, with the same controls")
    for name, what in STAGES.items():
        _stage(command(commands, name, what, out=None), name, argv)
    edit = command(commands, "edit", "documents that a mitigation acts on, from a trace of your own model", out=None)
    edit.add_argument("target", help="the folder of a trace of a language model")
    edit.add_argument("--top", type=int, default=10, help="proponents of each failure (default 10)")
    edit.add_argument("--copies", action="store_true", help="their near copies alone, so that one of each stays")
    edit.add_argument("--failure", type=int, nargs="+", default=[], help="of these failures alone, from 0")
    report = command(commands, "report", "one offline HTML page of a finished run", out=None)
    report.add_argument("target", help="the folder of a run")
    report.add_argument("--reveal", action="store_true", help="show leaked secrets in clear; they are masked otherwise")
    doctor = command(commands, "doctor", "is this machine fit, and your own loss", out="")
    doctor.add_argument("--task", help="pkg.module:function returning (uimjax.Task, params, rows): every check of it")
    _indexes(commands)
    planned = command(commands, "plan", "what a job will cost: time, memory, disk, and whether it fits", out=None)
    planned.add_argument("target", help="a YAML config of an index, a trace or a check")
    planned.add_argument("--count", type=int, help="rows of the whole job, where the config's are some of them")
    planned.add_argument("--devices", type=int, help="so many of them, for an index (default: this one)")
    planned.add_argument("--chip", help="of another kind than here: h100, h200, tpu-v5e ... (an index)")
    scaling(commands)
    dynamics(commands, argv[1:] if argv and argv[0] == "dynamics" else ())
    representation(commands)
    check = command(commands, "check", "judge attribution methods by retraining your own small task", out=None)
    check.add_argument("target", help="a YAML config (`uimjax new check`)")
    study = command(commands, "understand", "a study of label noise: scores, representations, what it costs", out=None)
    study.set_defaults(targets=[])
    if argv[1:2] and not argv[1].startswith("-"):  # a value of a flag would be taken for it
        study.add_argument("targets", nargs="*", help="YAML configs (`uimjax new noise`); of several one page, each "
                           "in a folder of its name in --out (runs/understand); without any, the digits")  # fmt: skip
    flags_people.study(commands)
    flags_people.explain(commands)
    new = commands.add_parser("new", help="write a commented config into this folder")
    new.add_argument(
        "kind",
        help="run, text, index, trace, check, failures, classified, sweep, noise, suite, mend, tune, audit, "
        "decisions, examined or census",
    )
    topic = commands.add_parser("help", help="print a page of the shipped docs")
    topic.add_argument("topic", nargs="?", help="the page; without it, the list")
    return top


def _stage(stage: argparse.ArgumentParser, name: str, argv: Sequence[str]) -> None:
    """What a stage of a story takes; some of them are for models of the reader's own as well."""
    if name == "trace":
        _of_failures(stage, flags=_begins_with_flags(argv))
    elif name == "mitigate":
        stage.add_argument("target", help="a YAML config, or the folder of a run, or of a trace of your own whose "
                           "edit is carried out: --method npo, drop ... (`uimjax new mend`); or a file of features: "
                           "--method nmtune, dfr ... (`uimjax new tune`)")  # fmt: skip
    elif name == "audit":
        stage.set_defaults(target=None)
        if not _begins_with_flags(argv):
            stage.add_argument("target", nargs="?", help="a YAML config, or the folder of a run; or instead:")
        stage.add_argument("--model", help="a checkpoint folder, or pkg.module:function returning a Flax module")
        stage.add_argument("--data", nargs="+", help="or a corpus, without any model: files of documents, or folders")
        stage.add_argument("--predictions", help="or a table of label, predicted and group; nothing else is opened")
        stage.add_argument("--examples", nargs="+", help="of a classifier: labelled pictures or texts")
        stage.add_argument("--items", nargs="+", help="files of items: bad and good answers (`uimjax help audit`)")
    else:
        stage.add_argument("target", help="a YAML config, or the folder of a run")


def _indexes(commands: Any) -> None:
    """What is done with indexes."""
    index = commands.add_parser(
        "index", help="build, verify, repair, grow, join or copy indexes of your own model and rows"
    )
    actions = actions_of(index)
    build = command(actions, "build", "sketch every row's gradient; continues where it stopped", out=None)
    build.add_argument("target", help="a YAML config (`uimjax new index`)")
    of_several(build)
    verify = command(actions, "verify", "check every byte of an index", out="")
    verify.add_argument("target", help="the folder of an index")
    repair = command(actions, "repair", "recompute what is damaged, to the same bytes", out=None)
    repair.add_argument("target", help="the YAML config it was built with (of an index that grew: with all rows)")
    append = command(
        actions, "append", "add the config's rows to a finished index (--rows NEW, --out FOLDER)", out=None
    )
    append.add_argument("target", help="a YAML config")
    of_several(append)
    merge = command(actions, "merge", "one index of the rows of several (--out FOLDER)", out=None)
    merge.add_argument("target", nargs="+", help="folders of indexes of one model and different rows")
    copy = command(actions, "copy", "to a URL (s3://, gs://, https://), from one, or between folders", out="")
    copy.add_argument("target", help="the folder or URL of an index")
    copy.add_argument("out", help="where to: a folder or URL")
    near = command(actions, "ann", "an approximate index beside the exact one (extra ann), and its recall", out="")
    near.add_argument("target", help="the folder of a finished index")
    near.add_argument("--connectivity", type=int, default=32, help="neighbours of a node (default 32)")
    near.add_argument("--expansion", type=int, default=256, help="nodes looked at (default 256)")


def _of_failures(made: argparse.ArgumentParser, flags: bool) -> None:
    """Flags of failures of the reader's own model; all other settings are config keys."""
    made.set_defaults(target=None)
    if not flags:
        made.add_argument("target", nargs="?", help="a YAML config, or the folder of a run; or instead:")
    made.add_argument(
        "--model",
        help="a checkpoint folder, pkg.module:function returning a Flax module, or head: one fitted to features",
    )
    made.add_argument("--corpus", nargs="+", help="files of documents, or folders of them")
    made.add_argument("--queries", help="failures as JSON lines: prompt, bad (completion), good; or image, label")


def _begins_with_flags(argv: Sequence[str]) -> bool:
    """Of `trace` and `audit`: by flags alone, so that no later word is taken for a config."""
    given = {word.partition("=")[0] for word in argv}
    return (
        len(argv) > 1
        and argv[1].startswith("-")
        and bool(given & {"--model", "--corpus", "--queries", "--items", "--predictions", "--data"})
    )
