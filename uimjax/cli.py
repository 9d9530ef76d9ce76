"""The command line: parse, call, print. Heavy imports happen inside the commands, so `--help` is instant."""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from uimjax import __version__
from uimjax.commands.names import DYNAMICS, LOGS, PARTS, STAGES
from uimjax.compiler import compile_sooner
from uimjax.errors import OutputError, UimError, UnknownNameError

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
    demo = _command(commands, "demo", "the closed loop on built-in data: pictures and text", out="runs/demo")
    demo.add_argument("--only", choices=PARTS, help="one of the two")
    run = _command(commands, "run", "the whole story of a config, or replay a finished run", out=None)
    run.add_argument("target", help="a YAML config, or the folder of a run")
    run.add_argument("--quick", action="store_true", help="of the suite: smaller, with the same controls")
    for name, what in STAGES.items():
        _stage(_command(commands, name, what, out=None), name, argv)
    edit = _command(commands, "edit", "documents that a mitigation acts on, from a trace of your own model", out=None)
    edit.add_argument("target", help="the folder of a trace of a language model")
    edit.add_argument("--top", type=int, default=10, help="proponents of each failure (default 10)")
    edit.add_argument("--copies", action="store_true", help="their near copies alone, so that one of each stays")
    edit.add_argument("--failure", type=int, nargs="+", default=[], help="of these failures alone, from 0")
    report = _command(commands, "report", "one offline HTML page of a finished run", out=None)
    report.add_argument("target", help="the folder of a run")
    report.add_argument("--reveal", action="store_true", help="show leaked secrets in clear; they are masked otherwise")
    doctor = _command(commands, "doctor", "is this machine fit, and your own loss", out="")
    doctor.add_argument("--task", help="pkg.module:function returning (uimjax.Task, params, rows): every check of it")
    _indexes(commands)
    planned = _command(commands, "plan", "what a job will cost: time, memory, disk, and whether it fits", out=None)
    planned.add_argument("target", help="a YAML config of an index, a trace or a check")
    planned.add_argument("--count", type=int, help="rows of the whole job, where the config's are some of them")
    planned.add_argument("--devices", type=int, help="so many of them, for an index (default: this one)")
    planned.add_argument("--chip", help="of another kind than here: h100, h200, tpu-v5e ... (an index)")
    _scaling(commands)
    _dynamics(commands, argv[1:] if argv and argv[0] == "dynamics" else ())
    _representation(commands)
    check = _command(commands, "check", "judge attribution methods by retraining your own small task", out=None)
    check.add_argument("target", help="a YAML config (`uimjax new check`)")
    study = _command(commands, "understand", "a study of label noise: scores, representations, what it costs", out=None)
    study.set_defaults(targets=[])
    if argv[1:2] and not argv[1].startswith("-"):  # a value of a flag would be taken for it
        study.add_argument("targets", nargs="*", help="YAML configs (`uimjax new noise`); of several one page, each "
                           "in a folder of its name in --out (runs/understand); without any, the digits")  # fmt: skip
    new = commands.add_parser("new", help="write a commented config into this folder")
    new.add_argument(
        "kind", help="run, text, index, trace, check, failures, classified, sweep, noise, suite, mend or tune"
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
    actions = _actions(index)
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
    copy = _command(actions, "copy", "to a URL (s3://, gs://, https://), from one, or between folders", out="")
    copy.add_argument("target", help="the folder or URL of an index")
    copy.add_argument("out", help="where to: a folder or URL")
    near = _command(actions, "ann", "an approximate index beside the exact one (extra ann), and its recall", out="")
    near.add_argument("target", help="the folder of a finished index")
    near.add_argument("--connectivity", type=int, default=32, help="neighbours of a node (default 32)")
    near.add_argument("--expansion", type=int, default=256, help="nodes looked at (default 256)")


def _scaling(commands: Any) -> None:
    """What is done with scaling laws."""
    law = commands.add_parser("scaling", help="scaling laws: fit, predict, allocate, and sweeps of small trainings")
    actions = _actions(law)
    fit = _command(actions, "fit", "fit a law to a table of runs, with every optimum and intervals", out="runs/law")
    fit.add_argument("target", help="the table: .csv, .tsv, .parquet or .jsonl, a row a run")
    fit.add_argument("--form", default="chinchilla", help="chinchilla, kaplan, power, data_constrained, corrupted, "
                     "overtraining, broken1, trend ..., or your own pkg.module:name")  # fmt: skip
    fit.add_argument("--objective", default="huber", help="huber, lad, least_squares or asymmetric")
    fit.add_argument("--delta", type=float, help="of Huber's (default 1e-3)")
    fit.add_argument("--over", type=float, help="asymmetric: how much more a prediction above the loss weighs")
    fit.add_argument("--residual", choices=("log", "linear"), help="of logarithms, or of the values themselves")
    fit.add_argument("--loss", default="loss", help="the fitted column, any measurement (default loss)")
    fit.add_argument("--columns", nargs="+", metavar="INPUT=COLUMN", help="where names do not tell: N=params D=tokens")
    fit.add_argument("--group", help="the column of the run, where rows are checkpoints of one")
    fit.add_argument("--fix", nargs="+", metavar="NAME=VALUE", help="parameters that are known")
    fit.add_argument("--starts", type=int, default=512, help="descents (default 512)")
    fit.add_argument("--draws", type=int, default=1000, help="resamples for the intervals (default 1000)")
    fit.add_argument("--seed", type=int, default=0)
    fit.add_argument("--holdout", choices=("largest",), help="fit without that run as well, and predict it")
    fit.add_argument("--profile", action="store_true", help="the least objective along each parameter")
    predict = _command(actions, "predict", "what a fitted law says, with intervals", out="")
    predict.add_argument("target", help="the folder of a law")
    predict.add_argument(
        "--at", nargs="+", required=True, metavar="INPUT=VALUE", help="N=7e10 D=1.4e12; N=1e9,1e10 ..."
    )
    allocate = _command(actions, "allocate", "the best size and amount of data for a budget", out="")
    allocate.add_argument("target", help="the folder of a law")
    allocate.add_argument("--compute", type=float, required=True, help="operations")
    allocate.add_argument("--flops", type=float, default=6.0, help="per parameter and token (default 6: C = 6 N D)")
    allocate.add_argument("--given", nargs="+", metavar="INPUT=VALUE", help="the form's further inputs: U=2.5e10")
    _further_laws(actions)
    sweep = _command(actions, "sweep", "train a grid of small runs, continue it, and fit a law to the table", out=None)
    sweep.add_argument("target", help="a YAML config (`uimjax new sweep`)")
    sweep.add_argument("--processes", type=int, default=1, help="how many processes share the runs")
    sweep.add_argument("--process", type=int, default=0, help="which of them this is, from 0")


def _further_laws(actions: Any) -> None:
    """Other readings of a table of runs."""
    table, named = "the table: .csv, .tsv, .parquet or .jsonl, a row a run", "N=params C=flops ..."
    profiles = _command(actions, "isoflop", "the best size of each compute budget, and its growth", out="runs/isoflop")
    score = _command(actions, "score", "a task's score from scale: the loss first, then the score of it", out="")
    for made in (profiles, score):
        made.add_argument("target", help=table)
        made.add_argument("--columns", nargs="+", metavar="INPUT=COLUMN", help=f"where names do not tell: {named}")
        made.add_argument("--loss", default="loss", help="the column of the loss (default loss)")
        made.add_argument("--draws", type=int, default=1000, help="resamples for the intervals (default 1000)")
        made.add_argument("--seed", type=int, default=0)
    score.add_argument("--score", required=True, help="the column of the score")
    score.add_argument("--at", nargs="+", required=True, metavar="INPUT=VALUE", help="N=7e10 D=1.4e12; N=1e9,1e10 ...")
    score.add_argument("--form", default="chinchilla", help="of the loss (default chinchilla)")
    score.add_argument("--through", default="sigmoid", help="the score's form of the loss, sigmoid or exponential "
                       "(default sigmoid)")  # fmt: skip
    score.add_argument("--best", type=float, help="the score of a loss of 0, as one more run (1 for an accuracy)")
    score.add_argument("--group", help="the column of the run, where rows are checkpoints of one")
    score.add_argument("--starts", type=int, default=512, help="descents (default 512)")


def _dynamics(commands: Any, words: Sequence[str]) -> None:
    """What is done with training dynamics: of one run, or by the action that is the first word."""
    first = next((word for word in words if word != "--json"), "")
    what = "what each example did in training: scores, suspicious ones, the data map; logs, two runs, spikes"
    actions = ", ".join(DYNAMICS)
    if first not in DYNAMICS:
        run = _command(commands, "dynamics", what, out="")
        run.epilog = (
            f"instead of a run an action: {actions} (uimjax dynamics compare --help); a folder of that name: ./compare"
        )
        run.add_argument("target", type=_no_action, metavar="RUN", help="the folder of a run with dynamics/*.parquet, "
                         "one such file, or a finished data map (.jsonl)")  # fmt: skip
        run.add_argument("--out", help="where pictures go (default RUN/understood)")
        _of_dynamics(run)
        return
    made = commands.add_parser("dynamics", help=what, description=what)
    kinds = _actions(made)
    taken = _command(kinds, "import", "the log of another tool, as tables that `uimjax dynamics RUN` reads", out="")
    taken.add_argument("source", help="a folder of dynamics_epoch_N.jsonl; a .csv, .tsv, .parquet or .jsonl with a row "
                       "an example and step; a .npy or .npz of logits [T, N, C]")  # fmt: skip
    taken.add_argument("--out", required=True, help="the folder of the run to write")
    taken.add_argument("--from", dest="kind", choices=LOGS, help="what the log is (default: by its name)")
    taken.add_argument("--labels", help="of logits: .npy, .npz, or a whole number a line")
    taken.add_argument("--columns", nargs="+", metavar="NAME=COLUMN", help="of steps: id=guid loss=nll ...")
    taken.add_argument("--run", help="the run's name in the table (default: the log's)")
    taken.add_argument("--floor", type=float, metavar="P", help="of steps: what a probability of 0 stands for (1e-7)")
    taken.add_argument("--replace", action="store_true", help="write over the table of another log")
    two = _command(kinds, "compare", "two runs by the examples that both have", out="")
    two.add_argument("a", help="a run")
    two.add_argument("b", help="the other")
    two.add_argument("--score", help="whose movers are shown (default aum)")
    two.add_argument("--count", type=int, default=20, help="examples shown (default 20)")
    curve = _command(kinds, "spikes", "steps whose loss spikes, and the documents of these steps", out="")
    curve.add_argument("metrics", help='metrics.jsonl, lines {"step": ..., "loss": ...}')
    curve.add_argument("--window", type=int, default=50, help="steps before, whose median counts (default 50)")
    curve.add_argument("--threshold", type=float, default=10.0, help="median absolute deviations above (default 10)")
    curve.add_argument("--batches", help="a .npy of ids [steps, B]; row s is the batch of step s, negative: padding")


def _no_action(run: str) -> str:
    """Flags before an action hide it."""
    if run in DYNAMICS:
        raise argparse.ArgumentTypeError(
            f"{run} is an action and comes before its flags: uimjax dynamics {run} ... (a folder of that name: ./{run})"
        )
    return run


def _of_dynamics(run: argparse.ArgumentParser) -> None:
    run.add_argument("--step", type=int, help="of several (default: the newest)")
    run.add_argument("--seed", type=int, help="of several (default: the mean over all)")
    run.add_argument("--score", help="that examples are ranked by (default aum, or what there is)")
    run.add_argument("--count", type=int, default=20, help="examples shown (default 20)")
    run.add_argument("--bad", metavar="FILE", help="ids of known bad examples: a line each, or JSON lines of `id`")
    run.add_argument(
        "--probabilities", metavar="FILE", help="out-of-sample probabilities [N, C] (.npy, .npz): label issues"
    )
    run.add_argument("--influence", metavar="FILE", help="influence or self-influence of the examples, larger: more "
                     "suspicious (a table of id and value; .npy, .npz): how scores agree with it")  # fmt: skip
    run.add_argument("--influence-column", metavar="NAME", help="the column or array, where names do not tell")
    run.add_argument("--influence-top", metavar="K", type=int, help="most suspicious of both (default: a tenth)")
    run.add_argument("--clusters", type=int, metavar="K", help="of loss trajectories (default: by silhouette)")
    run.add_argument("--never-learned", metavar="HOW", help="forgetting of what was never right: meetings, cartography "
                     "(1000), infinity or a number")  # fmt: skip
    run.add_argument("--variability", metavar="population | widened", help="the standard deviation of confidence")
    run.add_argument("--el2n-squared", action="store_true", default=None, help="EL2N as means of the squared norm")
    run.add_argument("--export", metavar="FILE", help="the ids shown, as .txt or .jsonl")


def _representation(commands: Any) -> None:
    what = "features of checkpoints or layers: spectra, ranks, CKA, angles, dimension; curvature of their loss"
    made = _command(commands, "representation", what, out="runs/representation")
    made.add_argument("files", nargs="*", help="features [N, d], one a checkpoint or layer: .npy, .npz, .parquet or "
                      ".jsonl, or a folder of them; or a run's folder; or instead --model and --corpus")  # fmt: skip
    made.add_argument("--centred", action="store_true", help="take the mean off before spectra and angles")
    made.add_argument("--names", nargs="+", help="one a file (default: names of files)")
    made.add_argument("--model", nargs="+", metavar="DIR", help="checkpoint folders of language models, in order")
    made.add_argument("--corpus", nargs="+", metavar="FILE", help="documents whose features are taken")
    made.add_argument("--task", nargs="+", metavar="REF", help="your own, one a checkpoint, or the one of a run of "
                      "training.fit: pkg.module:function returning (uimjax.Task, params, rows)")  # fmt: skip
    made.add_argument("--limit", type=int, help="rows of features of a model, evenly spaced (default 1000)")
    made.add_argument("--curvature", metavar="hessian | ggn", help="the spectrum of that matrix of the loss, and "
                      "sharpness (extra: solve)")  # fmt: skip
    made.add_argument("--probes", type=int, help="random starts, which standard errors are over (default 10)")
    made.add_argument("--order", type=int, help="Lanczos steps of each, and copies of the parameters that are held at "
                      "once (default 40)")  # fmt: skip
    made.add_argument("--rows", type=int, help="rows that the loss is averaged over, evenly spaced (default 256)")
    made.add_argument("--seed", type=int, help="of the starts (default 0)")


def _command(commands: Any, name: str, what: str, out: str | None) -> argparse.ArgumentParser:
    made = commands.add_parser(name, help=what, description=what)
    _takes_json(made)
    if out != "":
        made.add_argument("--out", default=out, help=f"where to write{f' (default {out})' if out else ''}")
    return made


def _actions(made: argparse.ArgumentParser) -> Any:
    """Of a command that begins with an action; `--json` may stand before it, too."""
    _takes_json(made)
    return made.add_subparsers(dest="action", metavar="ACTION", required=True)


def _takes_json(made: argparse.ArgumentParser) -> None:
    """Without a default of its own, with which an action would overwrite what stands before it."""
    said = "one JSON object on stdout, nothing else"
    made.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=said)


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
        and bool(given & {"--model", "--corpus", "--queries", "--items", "--predictions"})
    )


def _of_several(made: argparse.ArgumentParser) -> None:
    """Flags of one of several processes that do one job."""
    made.add_argument("--processes", type=int, help="how many processes share the job (a cluster's launcher says so)")
    made.add_argument("--process", type=int, help="which of them this is, from 0")
    made.add_argument("--coordinator", help="HOST:PORT of process 0, where they meet; without it, in --out alone")
    made.add_argument("--limit", type=int, default=600, help="seconds to wait for the others (default 600)")


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
