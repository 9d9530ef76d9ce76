"""From scale to a task's score in two steps, loss first, with the uncertainty of both (arXiv 2412.04403)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from uimjax.errors import DataError, UnknownNameError, UsageError
from uimjax.understand.scaling import engine, fits, intervals
from uimjax.understand.scaling.base import Fit, Form, Objective, Rows, prepared
from uimjax.understand.scaling.forms import form_of
from uimjax.understand.scaling.intervals import DRAWS, LEVEL, Draws
from uimjax.understand.scaling.table import Table, numbers, read
from uimjax.understand.scaling.using import Prediction, predict, scatter


class Ladder(NamedTuple):
    """Two fitted laws, `loss` of scale and `score` of the loss, and refits of both to the same resampled runs."""

    loss: Fit
    score: Fit
    loss_draws: Draws
    score_draws: Draws


def two_stage(
    table: Table,
    score: str,
    form: Form | str = "chinchilla",
    objective: Objective | str = "huber",
    *,
    through: Form | str = "sigmoid",
    best: float | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    **settings: Any,
) -> Ladder:
    """Fit the loss to scale and the column `score` to the loss, by the form `through` (of the input `loss`). `best`:
    the score of a loss of 0, which is added as one more run of the second step (1 for an accuracy). `settings` are
    `fit`'s.

    Each draw resamples runs once and refits both steps to it, so that errors of the first carry into the second.

    Raises:
        UsageError: `through` is a form of other inputs. As `fit`.
    """
    columns, through = read(table), form_of(through)
    if through.inputs != ("loss",):
        raise UsageError(f"through={through.name} takes {', '.join(through.inputs)}; a form of the loss was wanted: "
                         "sigmoid, exponential or your own")  # fmt: skip
    if score not in columns:
        raise UnknownNameError("column", score, columns)
    first = fits.fit(columns, form, objective, seed=seed, **settings)
    loss, values = first.rows.y, numbers(columns, score)
    if len(values) != len(loss):
        raise DataError(f"{len(values)} scores arrived for {len(loss)} losses")
    extra = int(best is not None)
    rows = Rows(
        {"loss": np.concatenate([loss, np.zeros(extra)])}, np.concatenate([values, np.full(extra, best or 0.0)]),
        np.concatenate([first.rows.group, np.full(extra, first.rows.group.max() + 1)]),
    )  # fmt: skip
    second = fits.fit_rows(rows, through, Objective("least_squares", residual="linear"), seed=seed)
    groups = np.unique(first.rows.group)
    drawn = np.random.default_rng(seed).integers(len(groups), size=(draws, len(groups)))
    one = intervals.bootstrap(first, drawn=drawn)
    again = np.concatenate([drawn, np.full((draws, extra), len(groups))], axis=1)  # the added point is in every draw
    return Ladder(first, second, one._replace(seed=seed), intervals.bootstrap(second, drawn=again)._replace(seed=seed))


def predict_score(ladder: Ladder, inputs: Mapping[str, Sequence[float]], level: float = LEVEL) -> Prediction:
    """The score at inputs `{name: [m]}`: the second law at the loss of the first, for the fit and for each draw. A
    further run scatters in both steps: about the first law in its loss, and about the second in its score.

    Raises:
        As `predict`.
    """
    predict(ladder.loss, inputs, ladder.loss_draws)  # refuses inputs that are off
    x = prepared(
        ladder.loss.form, {n: np.atleast_1d(np.asarray(v, float)) for n, v in inputs.items()}, ladder.loss.centre
    )
    to_score = lambda theta, loss: engine.values(  # noqa: E731  # four times the same
        ladder.score.form, theta, prepared(ladder.score.form, {"loss": loss}, ladder.score.centre)
    )
    value = to_score(ladder.score.theta[None], engine.values(ladder.loss.form, ladder.loss.theta[None], x))[0]
    losses = engine.values(ladder.loss.form, ladder.loss_draws.theta, x)
    each = to_score(ladder.score_draws.theta, losses)
    rng, first = np.random.default_rng(ladder.score_draws.seed), scatter(ladder.loss)
    met = np.arange(len(ladder.score.rows.y)) < len(ladder.loss.rows.y)  # not the score that was added for a loss of 0
    off = rng.choice(first, size=losses.shape)
    scattered = losses * np.exp(off) if ladder.loss.objective.residual == "log" else losses + off
    runs = to_score(ladder.score_draws.theta, scattered)
    runs = runs + rng.choice(scatter(ladder.score)[met], size=runs.shape)
    return Prediction(value, *intervals.percentiles(each, level), *intervals.percentiles(runs, level))
