"""`uimjax study export | power | import`."""

import argparse
from pathlib import Path

from uimjax.commands.base import as_json, columns
from uimjax.errors import UsageError


def study(args: argparse.Namespace, _rest: list[str]) -> int:
    return {"export": _export, "power": _power, "import": _import}[args.action](args)


def _export(args: argparse.Namespace) -> int:
    from uimjax.study.sheets import Design
    from uimjax.workflow import studying

    design = Design(args.kind, tuple(args.arms), args.raters, args.per_rater, args.checks, args.scale, not args.no_ties,
                    args.question, tuple(args.groups), args.asks_worse)  # fmt: skip
    made = studying.export(Path(args.target), Path(args.out), design, args.consent, args.reveal)
    if args.json:
        print(as_json(made))
        return 0
    print(f"{len(made['rows'])} sheets of {made['outputs']} outputs in {args.out}/sheets; the key is in {args.out}/key:"
          " keep it apart.")  # fmt: skip
    if made["placeholder"]:
        print("The text of consent is a placeholder: write your own, and export with --consent FILE")
    print(f"When they come back: uimjax study import {args.out} --sheets FOLDER")
    return 0


def _power(args: argparse.Namespace) -> int:
    from uimjax.study.power import World, designs

    idle = {"pairwise": ("noise", "scale"), "likert": ("ties",)}[args.kind]
    for name in idle:
        if getattr(args, name) != getattr(World, name):
            raise UsageError(f"--{name} is of the other kind of study; {args.kind} does not look at it: leave it out")
    if args.draws < 20:
        raise UsageError(f"--draws {args.draws}: 20 studies at least")
    world = World(args.kind, args.effect, args.rater_sd, args.item_sd, args.noise, args.scale, args.ties)
    found, best = designs(world, args.raters, args.items, args.draws, args.seed)
    if args.json:
        print(as_json({"designs": [one._asdict() for one in found], "best": best and best._asdict()}))
        return 0
    rows = [[str(one.raters), str(one.items), f"{one.power:.0%}", f"{one.error:.1%}"] for one in found]
    print("\n".join(columns(["raters", "outputs", "power", "give or take"], rows)))
    if best is None:
        print("No design reaches 80%: more raters, more outputs, or a larger effect.")
    else:
        print(f"The fewest ratings for 80%: {best.raters} raters, {best.items} outputs each.")
    return 0


def _import(args: argparse.Namespace) -> int:
    from uimjax.report import studied
    from uimjax.workflow import studying

    if args.votes:
        if args.sheets or args.key or args.no_attach:
            raise UsageError("--votes is of a table alone; leave --sheets, --key and --no-attach out")
        its = studying.votes(Path(args.target), args.votes, args.ordinal)
        print(as_json(its) if args.json else "\n".join(studied.agreement({"agreement": its})))
        return 0
    if args.ordinal:
        raise UsageError("--ordinal goes with --votes; a Likert study is ordinal by itself")
    target = Path(args.target)
    filled = [Path(path) for path in args.sheets or [target / "filled"]]
    document = studying.collect(target, filled, Path(args.key) if args.key else None, not args.no_attach)
    if args.json:
        print(as_json(document))
        return 0
    print("\n".join(f"  {line}" for line in studied.lines(document)))
    if document["attached"]:
        print(f"Beside the outputs: {document['attached']}")
    print(f"A page: {target / 'report.html'}")
    return 0
