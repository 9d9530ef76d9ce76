"""Two more readings of a table of runs: the best size of each compute budget, and a score through the loss."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uimjax.commands.base import columns, listed, pairs, plain

PLACES = 60  # of a parabola's curve
FAILED = 0.05  # of the draws, that are told


def predicted(at: Mapping[str, Sequence[float]], made: Any) -> list[dict[str, Any]]:
    """What a law says at each place, as JSON has it."""
    return [
        {name: values[k] for name, values in at.items()}
        | {"value": float(made.value[k]), "law": [float(made.low[k]), float(made.high[k])],
           "run": [float(made.run_low[k]), float(made.run_high[k])]}
        for k in range(len(made.value))
    ]  # fmt: skip


def lines_of(rows: Sequence[Mapping[str, Any]], names: Iterable[str]) -> list[str]:
    """The same for a reader; `names` of the inputs."""
    said = lambda ends: f"[{ends[0]:.6g}, {ends[1]:.6g}]"  # noqa: E731  # one line, used twice
    return [
        f"{', '.join(f'{name} = {row[name]:g}' for name in names)}: {row['value']:.6g}   the law 95% "
        f"{said(row['law'])}, a further run {said(row['run'])}"
        for row in rows
    ]


def isoflop(args: argparse.Namespace, _progress: Any) -> dict[str, Any]:
    import uimjax as uj
    from uimjax.report.figures import write
    from uimjax.report.figures_scaling import isoflop as drawn
    from uimjax.store import write_json
    from uimjax.store.base import make_folder

    named = pairs(args.columns, "--columns")
    made = uj.scaling.isoflop(args.target, columns=named, loss=args.loss, draws=args.draws, seed=args.seed)
    out = make_folder(Path(args.out))
    kept = [budget for budget in made.budgets if np.isfinite(budget.best_size)]
    figure = drawn([_profile(budget) for budget in kept], y_title=args.loss)
    budgets = [{"compute": b.compute, "runs": len(b.sizes), "best_size": b.best_size, "best_loss": b.best_loss}
               for b in made.budgets]  # fmt: skip
    found = {
        "exponent": made.exponent, "interval": [made.low, made.high], "level": 0.95, "draws": args.draws,
        "failed_draws": made.failed,
        "budgets": budgets, "picture": str(write(figure, out, "isoflop")[0]), "out": str(out),
    }  # fmt: skip
    write_json(out / "isoflop.json", plain(found))
    if not args.json:
        print(f"N* grows as C^{made.exponent:.4f}   95% [{made.low:.4f}, {made.high:.4f}]")
        if made.failed > FAILED:
            print(f"{made.failed:.0%} of the draws have no minimum in two budgets: the interval is of the others, and "
                  "too narrow; add sizes around the minima")  # fmt: skip
        size = lambda b: f"{b['best_size']:.4g}" if np.isfinite(b["best_size"]) else "none between"  # noqa: E731
        rows = [[f"{b['compute']:.4g}", str(b["runs"]), size(b), f"{b['best_loss']:.5g}"] for b in budgets]
        print("\n".join(columns(["compute", "runs", "best size", "loss there"], rows)))
        print(f"{figure.reading}\nwrote {out}")
    return found


def _profile(budget: Any) -> tuple[Any, ...]:
    """As the picture takes it."""
    at = np.geomspace(budget.sizes.min(), budget.sizes.max(), PLACES)
    curve = np.polynomial.polynomial.polyval(np.log(at), budget.parabola)
    return budget.compute, budget.sizes, budget.losses, at, curve, budget.best_size, budget.best_loss


def score(args: argparse.Namespace, progress: Any) -> dict[str, Any]:
    import uimjax as uj

    at = listed(args.at)
    settings = {"columns": pairs(args.columns, "--columns"), "loss": args.loss, "group": args.group}
    ladder: Any = None
    for _ in progress(["both steps and their refits"], "from scale to a score", "steps"):
        ladder = uj.scaling.two_stage(
            args.target, args.score, args.form, through=args.through, best=args.best, draws=args.draws, seed=args.seed,
            starts=args.starts, **settings
        )  # fmt: skip
    made = uj.scaling.predict_score(ladder, at)
    rows = predicted(at, made)
    steps = {
        name: {"equation": fit.form.equation, "parameters": fit.natural, "r2": fit.r2, "value": fit.value,
               "warnings": fit.warnings}
        for name, fit in (("loss", ladder.loss), ("score", ladder.score))
    }  # fmt: skip
    if not args.json:
        for name, step in steps.items():
            told = ", ".join(f"{key} = {value:.5g}" for key, value in step["parameters"].items())
            print(f"{name}: {step['equation']}   R2 {step['r2']:.4f}\n  {told}")
            for line in step["warnings"]:
                print(f"  warning: {line}")
        print("\n".join(lines_of(rows, at)))
    return {"steps": steps, "predictions": rows}
