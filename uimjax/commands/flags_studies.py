"""What `scaling`, `dynamics` and `representation` take."""

import argparse
from collections.abc import Sequence
from typing import Any

from uimjax.commands.flags import actions_of, command
from uimjax.commands.names import DYNAMICS, LOGS


def scaling(commands: Any) -> None:
    """What is done with scaling laws."""
    law = commands.add_parser("scaling", help="scaling laws: fit, predict, allocate, and sweeps of small trainings")
    actions = actions_of(law)
    fit = command(actions, "fit", "fit a law to a table of runs, with every optimum and intervals", out="runs/law")
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
    predict = command(actions, "predict", "what a fitted law says, with intervals", out="")
    predict.add_argument("target", help="the folder of a law")
    predict.add_argument(
        "--at", nargs="+", required=True, metavar="INPUT=VALUE", help="N=7e10 D=1.4e12; N=1e9,1e10 ..."
    )
    allocate = command(actions, "allocate", "the best size and amount of data for a budget", out="")
    allocate.add_argument("target", help="the folder of a law")
    allocate.add_argument("--compute", type=float, required=True, help="operations")
    allocate.add_argument("--flops", type=float, default=6.0, help="per parameter and token (default 6: C = 6 N D)")
    allocate.add_argument("--given", nargs="+", metavar="INPUT=VALUE", help="the form's further inputs: U=2.5e10")
    _further_laws(actions)
    sweep = command(actions, "sweep", "train a grid of small runs, continue it, and fit a law to the table", out=None)
    sweep.add_argument("target", help="a YAML config (`uimjax new sweep`)")
    sweep.add_argument("--processes", type=int, default=1, help="how many processes share the runs")
    sweep.add_argument("--process", type=int, default=0, help="which of them this is, from 0")


def _further_laws(actions: Any) -> None:
    """Other readings of a table of runs."""
    table, named = "the table: .csv, .tsv, .parquet or .jsonl, a row a run", "N=params C=flops ..."
    profiles = command(actions, "isoflop", "the best size of each compute budget, and its growth", out="runs/isoflop")
    score = command(actions, "score", "a task's score from scale: the loss first, then the score of it", out="")
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


def dynamics(commands: Any, words: Sequence[str]) -> None:
    """What is done with training dynamics: of one run, or by the action that is the first word."""
    first = next((word for word in words if word != "--json"), "")
    what = "what each example did in training: scores, suspicious ones, the data map; logs, two runs, spikes"
    actions = ", ".join(DYNAMICS)
    if first not in DYNAMICS:
        run = command(commands, "dynamics", what, out="")
        run.epilog = (
            f"instead of a run an action: {actions} (uimjax dynamics compare --help); a folder of that name: ./compare"
        )
        run.add_argument("target", type=_no_action, metavar="RUN", help="the folder of a run with dynamics/*.parquet, "
                         "one such file, or a finished data map (.jsonl)")  # fmt: skip
        run.add_argument("--out", help="where pictures go (default RUN/understood)")
        _of_dynamics(run)
        return
    made = commands.add_parser("dynamics", help=what, description=what)
    kinds = actions_of(made)
    taken = command(kinds, "import", "the log of another tool, as tables that `uimjax dynamics RUN` reads", out="")
    taken.add_argument("source", help="a folder of dynamics_epoch_N.jsonl; a .csv, .tsv, .parquet or .jsonl with a row "
                       "an example and step; a .npy or .npz of logits [T, N, C]")  # fmt: skip
    taken.add_argument("--out", required=True, help="the folder of the run to write")
    taken.add_argument("--from", dest="kind", choices=LOGS, help="what the log is (default: by its name)")
    taken.add_argument("--labels", help="of logits: .npy, .npz, or a whole number a line")
    taken.add_argument("--columns", nargs="+", metavar="NAME=COLUMN", help="of steps: id=guid loss=nll ...")
    taken.add_argument("--run", help="the run's name in the table (default: the log's)")
    taken.add_argument("--floor", type=float, metavar="P", help="of steps: what a probability of 0 stands for (1e-7)")
    taken.add_argument("--replace", action="store_true", help="write over the table of another log")
    two = command(kinds, "compare", "two runs by the examples that both have", out="")
    two.add_argument("a", help="a run")
    two.add_argument("b", help="the other")
    two.add_argument("--score", help="whose movers are shown (default aum)")
    two.add_argument("--count", type=int, default=20, help="examples shown (default 20)")
    curve = command(kinds, "spikes", "steps whose loss spikes, and the documents of these steps", out="")
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


def representation(commands: Any) -> None:
    what = "features of checkpoints or layers: spectra, ranks, CKA, angles, dimension; curvature of their loss"
    made = command(commands, "representation", what, out="runs/representation")
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
