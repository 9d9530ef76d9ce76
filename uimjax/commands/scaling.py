"""Scaling laws at the command line: fit, predict, allocate, and the sweeps that feed them."""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from uimjax.commands import readings
from uimjax.commands.base import as_json, listed, number, pairs
from uimjax.errors import DataError, UnknownNameError, UsageError


def scaling(args: argparse.Namespace, _rest: list[str]) -> int:
    from uimjax.progress import quiet, shown

    done: dict[str, Callable[..., dict[str, Any]]] = {
        "fit": _fit, "predict": _predict, "allocate": _allocate, "sweep": _sweep, "isoflop": readings.isoflop,
        "score": readings.score,
    }  # fmt: skip
    found = done[args.action](args, quiet if args.json else shown)
    if args.json:
        print(as_json(found))
    return 0


def _objective(args: argparse.Namespace) -> Any:
    import dataclasses

    from uimjax.understand.scaling import fits
    from uimjax.understand.scaling.forms import form_of

    found = fits.objective_of(args.objective, form_of(args.form))
    given = {name: getattr(args, name) for name in ("delta", "over", "residual") if getattr(args, name) is not None}
    for name, kinds in (("delta", ("huber", "asymmetric")), ("over", ("asymmetric",))):
        if name in given and found.kind not in kinds:
            raise UsageError(f"--{name} would change nothing: it is of {' and '.join(kinds)}, not of {found.kind}")
    return dataclasses.replace(found, **given)


def _fit(args: argparse.Namespace, progress: Any) -> dict[str, Any]:
    import uimjax as uj
    from uimjax.understand.scaling.forms import form_of
    from uimjax.understand.scaling.saved import told
    from uimjax.understand.scaling.table import rows_of

    law = uj.scaling
    settings: dict[str, Any] = {
        "columns": pairs(args.columns, "--columns"), "loss": args.loss, "group": args.group,
        "fixed": {name: number(value, "--fix") for name, value in pairs(args.fix, "--fix").items()},
    }  # fmt: skip
    objective, out = _objective(args), Path(args.out)
    steps = iter(progress(["descents from all starts", "resampled runs", "pictures"], "fitting a law", "steps"))
    next(steps)
    found = law.fit(args.target, args.form, objective, starts=args.starts, seed=args.seed, **settings)
    _, used = rows_of(args.target, form_of(args.form), objective, settings["columns"], args.loss, args.group)
    next(steps)
    draws = law.bootstrap(found, args.draws, args.seed)
    law.save(out, found, draws, used, args.form)
    answer: dict[str, Any] = told(found, draws, used, args.form) | {"out": str(out)}
    held = None
    if args.holdout:
        try:
            held = law.holdout(found, args.seed, args.starts, draws=args.draws)
            answer["holdout"] = _held(held)
        except DataError as error:  # the law of all runs is there, and stays
            answer["warnings"].append(f"nothing could be held out: without the largest run, {error}")
    if args.profile:
        names = [name for name, free in zip(found.form.names, found.free, strict=True) if free]
        kept = {name: law.profile(found, name) for name in names}
        answer["profiles"] = {n: {"at": p.at.tolist(), "value": p.value.tolist(), "low": p.low, "high": p.high}
                              for n, p in kept.items()}  # fmt: skip
    next(steps)
    answer["picture"] = _picture(found, draws, held, out, used["loss"], args.json)
    for _ in steps:
        pass
    if not args.json:
        _show(answer)
    return answer


def _held(held: Any) -> dict[str, Any]:
    runs = zip(held.rows.y, held.prediction.value, held.prediction.run_low, held.prediction.run_high, held.error,
               held.inside, strict=True)  # fmt: skip
    return {
        "fitted_to": len(held.fit.rows.y), "parameters": held.fit.natural,
        "runs": [{"loss": float(y), "predicted": float(v), "low": float(low), "high": float(high),
                  "relative_error": float(e), "inside": bool(i)} for y, v, low, high, e, i in runs],
    }  # fmt: skip


def _picture(found: Any, draws: Any, held: Any, out: Path, title: str, quiet: bool) -> str | None:
    """Where the picture is; of values below 0 there is none on logarithmic axes."""
    from uimjax.commands.curves import curve
    from uimjax.report.figures import write
    from uimjax.report.figures_scaling import scaling as drawn

    given = curve(found, draws, held)
    if not all((np.asarray(values) > 0).all() for values in (*given["curve"], found.rows.y)):
        return None
    figure = drawn(**given, y_title=title)
    if not quiet:
        print(figure.reading)
    return str(write(figure, out, "law")[0])


def _show(answer: Mapping[str, Any]) -> None:
    print(f"{answer['form']}: {answer['equation']}   ({answer['source']})")
    kind = answer["objective"]
    print(f"objective ({kind['kind']}, {kind['residual']} residuals): {answer['value']:.10g}   R2 {answer['r2']:.5f}   "
          f"{answer['rows']} rows, {answer['runs']} runs")  # fmt: skip
    ends = answer["intervals"]
    for name, value in answer["parameters"].items():
        known = " (fixed)" if name in answer["fixed"] else f"   95% [{ends[name][0]:.6g}, {ends[name][1]:.6g}]"
        print(f"  {name:8} {value:.6g}{known}")
    for place, optimum in enumerate(answer["optima"][:5], 1):
        share = f"{optimum['share_of_starts']:.1%} of {answer['starts']} starts"
        print(f"  optimum {place}: {optimum['value']:.10g}, {share}")
    fitted, raw = (answer["condition"][k] for k in ("fitted_coordinates", "raw_coordinates"))
    print(f"  condition {fitted:.3g} as fitted, {raw:.3g} in raw coordinates")
    for line in answer["warnings"]:
        print(f"  warning: {line}")
    for run in answer.get("holdout", {}).get("runs", []):
        where = "inside" if run["inside"] else "OUTSIDE"
        print(f"  held out: loss {run['loss']:.5g}, predicted {run['predicted']:.5g} [{run['low']:.5g}, "
              f"{run['high']:.5g}] ({run['relative_error']:+.2%}, {where})")  # fmt: skip
    for name, kept in answer.get("profiles", {}).items():
        print(f"  profile of {name}: [{kept['low']:.6g}, {kept['high']:.6g}]")
    print(f"wrote {answer['out']}; use it: uimjax scaling predict {answer['out']} --at ...")


def _predict(args: argparse.Namespace, _progress: Any) -> dict[str, Any]:
    import uimjax as uj

    law, draws = uj.scaling.load(Path(args.target))
    split = listed(args.at)
    made = uj.scaling.predict(law, split, draws)
    rows = readings.predicted(split, made)
    if not args.json:
        print("\n".join(readings.lines_of(rows, split)))
    return {"predictions": rows}


def _allocate(args: argparse.Namespace, _progress: Any) -> dict[str, Any]:
    import uimjax as uj

    law, draws = uj.scaling.load(Path(args.target))
    given = {name: number(value, f"--given {name}") for name, value in pairs(args.given, "--given").items()}
    made = uj.scaling.allocate(law, args.compute, draws, given=given, flops=args.flops)
    if not args.json:
        print(f"of {made.compute:g} operations ({made.flops}):")
        for what in ("parameters", "tokens", "loss"):
            part = getattr(made, what)
            print(f"  {what:10} {part['value']:.5g}   95% [{part['low']:.5g}, {part['high']:.5g}]")
        if made.edge:
            print(f"  {made.edge:.1%} of the refits have no best size in range", file=sys.stderr)
    return made._asdict()


def _sweep(args: argparse.Namespace, progress: Any) -> dict[str, Any]:
    import uimjax as uj
    from uimjax.config import SweepConfig, parse, read_yaml

    config: Any = parse(SweepConfig, read_yaml(Path(args.target)), args.target)
    out = Path(args.out or config.out)
    if config.form:
        _check_law(config)
    swept = uj.scaling.sweep(
        out, config.axes, train=config.train, at_once=config.at_once, diverged_at=config.diverged_at,
        process=args.process, processes=args.processes, recorder=_recorder(out) if config.tensorboard else None,
        progress=progress,
    )  # fmt: skip
    found: dict[str, Any] = {"out": str(out), "runs": len(swept.rows), "left_out": len(swept.left_out),
                             "waiting": swept.waiting, "table": swept.table and str(swept.table)}  # fmt: skip
    if not args.json:
        where = f" ({out / 'left_out.csv'})" if swept.left_out and swept.table else ""
        waiting = f"; {swept.waiting} not finished yet" if swept.waiting else ""
        print(f"{len(swept.rows)} runs in {swept.table or out}; {len(swept.left_out)} left out{where}{waiting}")
    if swept.table is not None and config.form:
        told = argparse.Namespace(
            target=swept.table, form=config.form, objective=config.objective, delta=None, over=None, residual=None,
            columns=[f"{n}={c}" for n, c in config.columns.items()], loss=config.loss, group=None, fix=None,
            starts=config.starts, draws=config.draws, seed=0, holdout="largest", profile=False, out=str(out / "law"),
            json=args.json,
        )  # fmt: skip
        found["law"] = _fit(told, progress)
    return found


def _check_law(config: Any) -> None:
    """That the planned runs could show the law, as far as their settings tell; before any of them trains.

    Raises:
        UsageError, UnknownNameError: the config's law or columns. DataError: too few different runs.
    """
    from uimjax.understand.scaling import design, sweeps
    from uimjax.understand.scaling.base import centre_of
    from uimjax.understand.scaling.fits import objective_of
    from uimjax.understand.scaling.forms import form_of
    from uimjax.understand.scaling.table import rows_of

    form = form_of(config.form)
    objective = objective_of(config.objective, form)
    for what in config.columns:
        if what not in (*form.inputs, "C", "D", "N"):
            raise UnknownNameError(f"input of the form {form.name}", what, form.inputs)
    learnt = sweeps.problem_of(config.train, None)
    planned = sweeps.plan(config.axes, None, config.train, learnt, config.diverged_at)
    if learnt is None:  # which columns the reader's own trainer adds is known when it has run
        return
    expected = sweeps.expected(planned, learnt)
    rows, used = rows_of(expected, form, objective, config.columns, config.loss)
    try:
        design.check(form, rows, objective, np.ones(len(form.names), bool), centre_of(form, rows.x))
    except DataError as error:
        cure = ""
        if used.get("D") == "D" and len({row["D"] for row in expected}) < len({row["U"] for row in expected}):
            cure = (
                " D is steps x batch_size, of which there are few: `columns: {D: U}` takes the different examples in "
                "its place, and axes of epochs rather than steps let D grow with the data."
            )
        raise DataError(f"the planned runs could not show the law: {error}{cure} Nothing was trained.") from error


def _recorder(out: Path) -> Any:
    from uimjax.sinks import TensorBoard

    return lambda name: TensorBoard(out / "tensorboard" / name)
