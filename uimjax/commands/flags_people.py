"""What `study` and `explain` take."""

from typing import Any

from uimjax.commands.flags import actions_of, command


def study(commands: Any) -> None:
    """Studies of what people judge."""
    made = commands.add_parser("study", help="people judge: blinded sheets, how many raters it takes, what they say")
    kinds = actions_of(made)
    sheets = command(kinds, "export", "sheets of a run's outputs, blinded and in random order, the key apart", "study")
    sheets.add_argument(
        "target", help="the folder of a failure or a mitigation, of a run, or a file of outputs (.jsonl)"
    )
    _kind(sheets)
    sheets.add_argument("--arms", nargs="+", default=["before", "traced"], help="compared, the first with each other "
                        "(default before traced; there may be random and oracle)")  # fmt: skip
    sheets.add_argument("--raters", type=int, default=10, help="sheets (default 10)")
    sheets.add_argument("--per-rater", type=int, default=0, help="outputs of each, as often as others (0: all)")
    sheets.add_argument("--checks", type=int, default=3, help="checks of attention a sheet (default 3)")
    sheets.add_argument("--scale", type=int, default=5, help="points of a Likert scale (default 5)")
    sheets.add_argument("--no-ties", action="store_true", help="one of a pair has to be better")
    sheets.add_argument("--question", default="", help="that is asked of each row")
    sheets.add_argument("--asks-worse", action="store_true", help="the question is which is worse (more harmful ...)")
    sheets.add_argument("--groups", nargs="+", default=[], help="that raters may say they belong to")
    sheets.add_argument("--consent", default="", help="text file that stands on each sheet")
    sheets.add_argument("--reveal", action="store_true", help="leaked secrets in clear; they are masked otherwise")
    power = command(kinds, "power", "how many raters and outputs it takes to see an effect, by simulation", "")
    _kind(power)
    power.add_argument("--effect", type=float, required=True, help="a share beyond .5 (pairwise), or points (Likert)")
    power.add_argument("--raters", type=int, nargs="+", default=[6, 10, 16, 24], help="(default 6 10 16 24)")
    power.add_argument("--items", type=int, nargs="+", default=[20, 40, 80], help="outputs (default 20 40 80)")
    power.add_argument(
        "--rater-sd", type=float, default=0.5, help="of what a rater adds, logits or points (default .5)"
    )
    power.add_argument("--item-sd", type=float, default=0.5, help="of what an output adds (default .5)")
    power.add_argument("--noise", type=float, default=1.0, help="of a single rating, in points (default 1)")
    power.add_argument("--scale", type=int, default=5, help="points of a Likert scale (default 5)")
    power.add_argument("--ties", type=float, default=0.0, help="share of answers that are neither (default 0)")
    power.add_argument("--draws", type=int, default=300, help="simulated studies of each design (default 300)")
    power.add_argument("--seed", type=int, default=0)
    back = command(kinds, "import", "filled sheets to what people say: effect, agreement, who disagrees", "")
    back.add_argument("target", help="the folder of a study; or with --votes a table of them")
    back.add_argument("--sheets", nargs="+", help="filled sheets, or folders of them (default STUDY/filled)")
    back.add_argument("--key", help="the key (default STUDY/key/key.json)")
    back.add_argument("--no-attach", action="store_true", help="do not put what people say beside the run's outputs")
    back.add_argument("--votes", nargs="+", metavar="COLUMN", help="of a table with a row an item: votes by category")
    back.add_argument("--ordinal", action="store_true", help="with --votes: the categories are in order")


def _kind(made: Any) -> None:
    made.add_argument("--kind", choices=("pairwise", "likert"), default="pairwise", help="(default pairwise)")


def explain(commands: Any) -> None:
    """The page for a reader who is no engineer."""
    made = command(commands, "explain", "one page in plain words: what failed, for whom, why, what was done", None)
    made.add_argument("target", help="the folder of a finished run, of a mitigation or of an audit")
    made.add_argument("--lang", choices=("en", "zh"), default="en", help="English, or Simplified Chinese")
