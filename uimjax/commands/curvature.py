"""The curvature of the loss at checkpoints: the spectrum of the Hessian or the Gauss-Newton matrix, and sharpness."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uimjax.commands.base import columns
from uimjax.commands.checkpoints import Checkpoint
from uimjax.errors import NonFiniteError, UnknownNameError, UsageError

MATRICES = ("hessian", "ggn")
PROBES, ORDER, ROWS, SEED = 10, 40, 256, 0
BATCH = 8  # rows whose derivatives are held at once
SHARP = ("loss", "gradient_norm", "rise")
RHO = 0.05  # length of the step uphill
ENDS = 5  # eigenvalues told at either end
GRID, WIDTH, REACH = 401, 0.01, 4  # points of a density; its width, of the spectrum's; how many widths it goes beyond
DRAWN = {"loss": "loss", "rise": f"rise of the loss {RHO:g} uphill", "top": "largest eigenvalue",
         "bottom": "smallest eigenvalue", "trace": "trace", "negative_mass": "mass below 0"}  # fmt: skip
PLUS = "of eigenvalues the distance within which one lies, of all else the standard error over"


class Asked(NamedTuple):
    """Which matrix; `probes` random starts of `order` products each; of at most so many `rows`; of which `seed`."""

    matrix: str
    probes: int
    order: int
    rows: int
    seed: int


def asked(args: argparse.Namespace, models: bool) -> Asked | None:
    """What flags ask for, None for no curvature; `models`: whether models arrived, not features. All that can be
    refused before a model is read is refused here.

    Raises:
        UnknownNameError: no such matrix. UsageError: flags of a curvature without it, curvature without a model, too
            small numbers, or matfree is not installed.
    """
    given = {name: getattr(args, name) for name in ("probes", "order", "rows", "seed")}
    if args.curvature is None:
        if extra := [f"--{name}" for name, value in given.items() if value is not None]:
            raise UsageError(f"{', '.join(extra)} arrived without --curvature hessian or ggn, which these are for")
        return None
    if args.curvature not in MATRICES:
        raise UnknownNameError("curvature", args.curvature, MATRICES)
    if not models:
        raise UsageError("--curvature is that of a loss, not of features: give a run, --model and --corpus, or --task")
    defaults = (PROBES, ORDER, ROWS, SEED)
    values = {n: d if v is None else v for (n, v), d in zip(given.items(), defaults, strict=True)}
    for name, least in (("probes", 2), ("order", 1), ("rows", 1), ("seed", 0)):
        if values[name] < least:
            why = ": the standard error is taken over them" if name == "probes" else ""
            raise UsageError(f"--{name} {values[name]} arrived; {least} or more was wanted{why}")
    from uimjax.understand.representation.hessian import need_matfree

    need_matfree()
    return Asked(args.curvature, **values)


def numbers(name: str, its: Checkpoint, how: Asked, progress: Any) -> dict[str, Any]:
    """All that is told of one checkpoint, of the mean loss over its rows.

    Parameters narrower than float32 are widened: a second derivative in bfloat16 has two digits.

    Raises:
        UsageError: more steps than parameters. As `hessian_spectrum`.
    """
    import jax
    import jax.numpy as jnp

    from uimjax import rows as row
    from uimjax.taps import sites
    from uimjax.understand.representation import hessian

    data = row.spread(its.rows, how.rows)
    wide = lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32))  # noqa: E731  # used once
    params = jax.tree.map(lambda x: wide(x) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x, its.params)
    size = sum(leaf.size for leaf in sites(its.task, params, row.example_spec(data)).used)
    if how.order > size:
        raise UsageError(f"--order {how.order} arrived, and {name} has {size} parameters; at most so many were wanted")
    over = row.Pass(BATCH)
    found = hessian.hessian_spectrum(its.task, params, data, how.matrix, how.probes, how.order, seed=how.seed, how=over,
                                     progress=progress)  # fmt: skip
    ends = hessian.extremes(found, min(ENDS, int(found.steps.max())))
    told: dict[str, Any] = {"name": name, "parameters": size, "rows": row.count(data), "loss_of_a_row": its.loss}
    if its.documents:
        told["tokens_a_row"] = float(np.asarray(data["counted"])[:, 1:].sum(1).mean())
    told |= ends._asdict() | {"trace": found.trace, "trace_error": found.trace_error}
    told |= {f"negative_{part}": value for part, value in hessian.negative(found)._asdict().items()}
    told |= {"steps": found.steps, "rho": RHO, "density": _density(found)}
    try:
        sharp = hessian.sharpness(its.task, params, data, RHO, how.matrix, how=over, quadrature=found)
        return told | {name: getattr(sharp, name) for name in SHARP}
    except NonFiniteError as error:  # as at an exact minimum; the spectrum stands
        return told | dict.fromkeys(SHARP, float("nan")) | {"sharpness_left_out": str(error)}


def _density(found: Any) -> dict[str, Any]:
    """Over the whole spectrum and a little beyond; nothing where all eigenvalues are one."""
    from uimjax.understand.representation import hessian

    low, high = float(found.nodes.min()), float(found.nodes.max())
    sigma = WIDTH * (high - low)
    if not high - low > 1e-9 * max(abs(low), abs(high)):
        return {"left_out": f"all eigenvalues that were found are {high:.4g}, and a density has no width"}
    grid = np.linspace(low - REACH * sigma, high + REACH * sigma, GRID)
    each = hessian.densities(found, grid, sigma)
    return {"sigma": sigma, "grid": grid, "density": each.mean(0), "error": each.std(0, ddof=1) / np.sqrt(len(each))}


def document(how: Asked, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """As JSON holds it."""
    rows = " and ".join(dict.fromkeys(str(line["rows"]) for line in lines))
    loss = f"mean over {rows} rows; a row's: {lines[0]['loss_of_a_row']}"
    return {**how._asdict(), "loss_is": loss, "checkpoints": list(lines)}


def pictures(found: dict[str, Any], x: Sequence[int], x_title: str, out: Path) -> tuple[dict[str, str], list[str]]:
    """(picture by name, sentences): a density of each checkpoint, and of several the numbers over the series."""
    from uimjax.report import figures_representation as figures
    from uimjax.report.figures import short, write

    lines, made = found["checkpoints"], {}
    band = f"standard error over {found['probes']} starts"
    for k, line in enumerate(lines):
        its = line["density"]
        if "grid" in its:
            safe = re.sub(r"[^\w.-]+", "_", line["name"])
            name = "density" if len(lines) == 1 else f"density-{k + 1}-{safe}"
            title = f"eigenvalue of the {_full(found)}, smoothed by {short(its['sigma'])}"
            made[name] = figures.density(
                its["grid"], its["density"], its["error"], title, band, below=line["negative_share"]
            )
    told = [f"{line['name']}: " if len(lines) > 1 else "" for line in lines if "grid" in line["density"]]
    sentences = [head + figure.reading for head, figure in zip(told, made.values(), strict=True)]
    if len(lines) > 1:
        values = {shown: np.array([_ends(line, n) for line in lines]).T for n, shown in DRAWN.items()}
        drawn = {shown: (v[0], v[1], v[2]) for shown, v in values.items() if np.isfinite(v).all()}
        made["curvature"] = figures.against(x, drawn, x_title, f"distance to an eigenvalue, {band}")
        sentences.append(made["curvature"].reading)
    return {name: str(write(each, out, name)[0]) for name, each in made.items()}, sentences


def _ends(line: dict[str, Any], name: str) -> tuple[float, float, float]:
    """(value, low, high) of a number, or of the first of several; one without an error is all three."""
    value, error = (float(np.ravel(x)[0]) for x in (line[name], line.get(f"{name}_error", 0.0)))
    return value, value - error, value + error


def _full(found: dict[str, Any]) -> str:
    return {"hessian": "Hessian", "ggn": "Gauss-Newton matrix"}[found["matrix"]]


def lines(found: dict[str, Any]) -> list[str]:
    """The same as text."""
    each = found["checkpoints"]
    span = lambda value, error: f"{value:.4g} ± {error:.1g}"  # noqa: E731  # of every cell
    heads = ["name", "loss", "|gradient|", "rise", "largest", "smallest", "trace", "share < 0", "mass < 0"]
    cells = [[its["name"], *(f"{its[n]:.4g}" for n in SHARP),
              span(its["top"][0], its["top_error"][0]), span(its["bottom"][0], its["bottom_error"][0]),
              span(its["trace"], its["trace_error"]), span(its["negative_share"], its["negative_share_error"]),
              span(its["negative_mass"], its["negative_mass_error"])] for its in each]  # fmt: skip
    told = [f"curvature: the {_full(found)} of the loss ({found['loss_is']})", *columns(heads, cells),
            f"  ±: {PLUS} {found['probes']} starts of {found['order']} products; which rows were taken adds its own",
            f"  rise: of the loss {RHO:g} uphill (sharpness); share, mass < 0: of all eigenvalues, of the sum of their "
            "sizes"]  # fmt: skip
    for its in each:
        ends = [", ".join(f"{value:.4g}" for value in its[name]) for name in ("top", "bottom")]
        told.append(f"  {its['name']}: {its['parameters']:,} parameters; largest {ends[0]}; smallest {ends[1]}")
        if its.get("tokens_a_row"):
            told.append(f"  {its['name']}: {its['tokens_a_row']:.4g} tokens a row have a loss; divided by that, loss, "
                        "gradient, rise, eigenvalues and trace are those of the mean over tokens")  # fmt: skip
        if "left_out" in its["density"]:
            told.append(f"  {its['name']}: no density: {its['density']['left_out']}")
        if "sharpness_left_out" in its:
            told.append(f"  {its['name']}: no sharpness: {its['sharpness_left_out']}")
    return told
