"""What raters see: an effect with an interval that holds for other raters and other outputs as well.

Ratings are of R raters and I outputs, both drawn from more: raters differ, and so do outputs. Whole raters are drawn
anew (the clustered bootstrap), and whole outputs; the variance of the mean is V_raters + V_outputs - V_ratings, since
either holds that of single ratings (Cameron, Gelbach & Miller 2011), and no less than the larger of the two. Few
clusters: variances are times R / (R - 1), and the quantile is Student's with one degree of freedom less than there are
raters, or outputs where these are fewer.
"""

from typing import Any, NamedTuple

import numpy as np

from uimjax.errors import DataError, UsageError

DRAWS = 2000
MOST = 2500  # rows of a mixed model, which inverts a matrix of so many


class Effect(NamedTuple):
    """`value` with its 95% interval (infinite of one rater or one output alone), and how many stand behind it."""

    value: float
    low: float
    high: float
    raters: int
    items: int
    ratings: int


def mean_effect(values: Any, seed: int = 0, draws: int = DRAWS) -> Effect:
    """The mean of `values` `[R, I]`, NaN where a rater did not judge an output.

    Raises:
        DataError: no rating.
    """
    values = np.asarray(values, float)
    told = ~np.isnan(values)
    if not told.any():
        raise DataError("no rating is left to judge by")
    values, told = values[told.any(1)][:, told.any(0)], told[told.any(1)][:, told.any(0)]
    filled, (raters, items) = np.where(told, values, 0.0), values.shape
    value = float(filled.sum() / told.sum())
    rng = np.random.default_rng(seed)
    of_raters = _drawn(filled.sum(1), told.sum(1), rng, draws)
    of_items = _drawn(filled.sum(0), told.sum(0), rng, draws)
    alone = float((((values - value) ** 2)[told]).sum() / told.sum() ** 2)
    variance = max(of_raters + of_items - alone, of_raters, of_items)
    half = _quantile(min(raters, items)) * variance**0.5
    return Effect(value, value - half, value + half, raters, items, int(told.sum()))


def judged_mean(values: Any, ends: tuple[float, float], seed: int = 0, draws: int = DRAWS) -> Effect:
    """`mean_effect` of values that lie between two `ends`, which its interval does not leave. Where all say the same
    nothing varies and nothing is known of those who would not: Wilson's share of them, for as many as there are raters
    or outputs (whichever are fewer), may be at either end."""
    its = mean_effect(values, seed, draws)
    clusters = min(its.raters, its.items)
    if its.high == its.low and clusters > 1:
        others = 1 - clusters / (clusters + 1.959964**2)
        low, high = (its.value + others * (end - its.value) for end in ends)
        return its._replace(low=low, high=high)
    return its._replace(low=max(its.low, ends[0]), high=min(its.high, ends[1]))


def _drawn(sums: np.ndarray, counts: np.ndarray, rng: np.random.Generator, draws: int) -> float:
    """The variance of sum(sums) / sum(counts) where clusters are drawn anew, those that are there as a sample."""
    many = len(sums)
    if many < 2:
        return float("inf")
    times = rng.multinomial(many, np.full(many, 1 / many), draws)
    return float(((times @ sums) / (times @ counts)).var() * many / (many - 1))


def _quantile(clusters: int) -> float:
    """Student's 97.5%, of as many clusters less one."""
    from scipy import stats

    return float(stats.t.ppf(0.975, clusters - 1)) if clusters > 1 else float("inf")


def strengths(wins: Any) -> np.ndarray:
    """Bradley-Terry strengths `[A]`, sum 0, of arms from `wins` `[A, A]`, how often the row's arm was preferred to the
    column's (ties: half of either): p(i beats j) = 1 / (1 + exp(s_j - s_i)). By the package `choix` (extra `study`),
    its matrix a little regularised so that an arm that always wins has a strength.

    Raises:
        UsageError: choix is not installed.
    """
    try:
        import choix
    except ImportError as error:
        raise UsageError("Bradley-Terry strengths take choix: pip install 'uimjax[study]'") from error
    found = choix.ilsr_pairwise_dense(np.asarray(wins, float), alpha=0.01)
    return found - found.mean()


class Mixed(NamedTuple):
    """A linear mixed model of differences, d_ri = mu + rater_r + item_i + rest: mu with its 95% interval, and standard
    deviations."""

    value: float
    low: float
    high: float
    sd_raters: float
    sd_items: float
    sd_rest: float


def mixed_model(values: Any) -> Mixed | str:
    """Restricted maximum likelihood, raters and items crossed (statsmodels, extra `study`); why not, where it cannot
    be.

    Raises:
        UsageError: statsmodels is not installed.
    """
    try:
        import pandas
        import statsmodels.formula.api as formulas
    except ImportError as error:
        raise UsageError("the mixed model takes statsmodels: pip install 'uimjax[study]'") from error
    import warnings

    values = np.asarray(values, float)
    rater, item = np.nonzero(~np.isnan(values))
    if len(rater) > MOST:
        return f"{len(rater)} ratings; a crossed mixed model takes {MOST} at most"
    if len(np.unique(rater)) < 3 or len(np.unique(item)) < 3 or np.ptp(values[rater, item]) == 0:
        return "three raters, three outputs and some difference between them at least were wanted"
    table = pandas.DataFrame({"d": values[rater, item], "rater": rater, "item": item, "one": np.ones(len(rater))})
    parts = {"rater": "0 + C(rater)", "item": "0 + C(item)"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a variance at its edge, which is an answer
        try:
            fit: Any = formulas.mixedlm("d ~ 1", table, groups="one", vc_formula=parts).fit(reml=True)
        except (np.linalg.LinAlgError, ValueError) as error:
            return f"it cannot be fitted: {error}"
    mu, se = float(fit.fe_params.iloc[0]), float(fit.bse_fe.iloc[0])
    names = list(fit.model.exog_vc.names)
    spread = {name: float(np.sqrt(max(v, 0))) for name, v in zip(names, fit.vcomp, strict=True)}
    half = _quantile(len(np.unique(rater))) * se
    return Mixed(mu, mu - half, mu + half, spread["rater"], spread["item"], float(np.sqrt(fit.scale)))
