"""Intervals, predictions, allocations, the largest run held out, two stages, and laws on disk."""

import json

import numpy as np
import pytest

import uimjax as uj
from tests.understand.scaling.test_fits import TRUE, inputs, literal, made
from uimjax.errors import (
    CorruptError,
    DataError,
    MismatchError,
    MissingFileError,
    NonFiniteError,
    UnknownNameError,
    UsageError,
)
from uimjax.understand.scaling import intervals, saved
from uimjax.understand.scaling.base import Objective


@pytest.fixture(scope="module")
def law():
    return uj.scaling.fit(made("chinchilla", noise=0.01), loss="score", starts=48)


@pytest.fixture(scope="module")
def draws(law):
    return uj.scaling.bootstrap(law, 200)


def test_each_draw_is_the_fit_of_its_rows(law):
    drawn = np.random.default_rng(4).integers(60, size=(3, 60))
    found = uj.scaling.bootstrap(law, drawn=drawn)
    for k, rows in enumerate(drawn):
        table = {**{n: v[rows] for n, v in law.rows.x.items()}, "loss": law.rows.y[rows]}
        alone = uj.scaling.fit(table, starts=48)
        assert {n: v[k] for n, v in found.natural.items()} == pytest.approx(alone.natural, rel=1e-4)


def test_rows_of_one_run_are_drawn_together():
    table = made("power", noise=0.02, count=40)
    held = {"x": table["x"], "loss": table["score"], "run": [f"r{k // 10}" for k in range(40)]}
    law = uj.scaling.fit(held, "power", group="run", starts=32)
    assert len(np.unique(law.rows.group)) == 4
    found = uj.scaling.bootstrap(law, drawn=np.array([[0, 1, 2, 3], [3, 3, 1, 0]]))
    assert {n: v[0] for n, v in found.natural.items()} == pytest.approx(law.natural, rel=1e-6)
    rows = np.concatenate([np.arange(30, 40), np.arange(30, 40), np.arange(10, 20), np.arange(10)])
    alone = uj.scaling.fit({"x": table["x"][rows], "loss": table["score"][rows]}, "power", starts=32)
    assert {n: v[1] for n, v in found.natural.items()} == pytest.approx(alone.natural, rel=1e-4)
    with pytest.raises(UsageError, match="at least two of both"):
        uj.scaling.bootstrap(uj.scaling.fit(held | {"run": ["a"] * 40}, "power", group="run", starts=8))


def test_intervals_hold_what_they_promise():
    """Of 20 tables of known parameters, 90% intervals hold the truth about eighteen times."""
    inside = {"bootstrap": [], "profile": []}
    for seed in range(20):
        x = 10 ** np.random.default_rng(seed).uniform(6, 11, 60)
        noise = np.exp(0.02 * np.random.default_rng(100 + seed).normal(size=60))
        table = {"x": x, "loss": literal("power", TRUE["power"], {"x": x}) * noise}
        law = uj.scaling.fit(table, "power", "least_squares", starts=8)
        low, high = intervals.percentiles(uj.scaling.bootstrap(law, 200, seed).natural["alpha"], 0.9)
        inside["bootstrap"].append(low <= TRUE["power"]["alpha"] <= high)
        found = uj.scaling.profile(law, "alpha", 0.9)
        inside["profile"].append(found.low <= TRUE["power"]["alpha"] <= found.high)
    for held in inside.values():
        assert 14 <= sum(held) <= 20, inside


def test_a_profile_is_the_least_objective_at_each_value(law):
    found = uj.scaling.profile(law, "E", points=9)
    for k in (0, 4, 8):
        alone = uj.scaling.fit(made("chinchilla", noise=0.01), loss="score", fixed={"E": found.at[k]}, starts=48)
        assert found.value[k] == pytest.approx(alone.value, rel=1e-6)
    assert found.value[4] == pytest.approx(law.value, rel=1e-9)
    assert found.low < law.natural["E"] < found.high
    with pytest.raises(UnknownNameError, match="free parameter 'gamma'"):
        uj.scaling.profile(law, "gamma")


def test_least_squares_profiles_are_likelihood_ratios():
    table = made("power", noise=0.02)
    law = uj.scaling.fit({"x": table["x"], "loss": table["score"]}, "power", "least_squares", starts=32)
    found = uj.scaling.profile(law, "alpha", points=81)
    ratio = (60 - 3) * (found.value / law.value - 1)  # chi-squared with one degree of freedom
    inside = found.at[ratio <= 3.841]
    assert found.low == pytest.approx(inside.min(), rel=0.02)
    assert found.high == pytest.approx(inside.max(), rel=0.02)
    lad = uj.scaling.fit({"x": table["x"], "loss": table["score"]}, "power", "lad", starts=16)
    assert np.isnan(uj.scaling.profile(lad, "alpha", points=5).low)


def test_predictions_and_their_intervals(law, draws):
    inputs = {"N": [1e8, 7e10], "D": [2e10, 1.4e12]}
    found = uj.scaling.predict(law, inputs, draws)
    np.testing.assert_allclose(
        found.value, literal("chinchilla", law.natural, {k: np.array(v) for k, v in inputs.items()})
    )
    each = np.array([
        literal("chinchilla", {n: v[k] for n, v in draws.natural.items()}, {k: np.array(v) for k, v in inputs.items()})
        for k in range(200)
    ])  # fmt: skip
    np.testing.assert_allclose(found.low, np.quantile(each, 0.025, axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.high, np.quantile(each, 0.975, axis=0), rtol=1e-6)
    assert (found.run_low < found.low).all()
    assert (found.run_high > found.high).all()
    truth = literal("chinchilla", TRUE["chinchilla"], {k: np.array(v) for k, v in inputs.items()})
    assert ((found.run_low < truth) & (truth < found.run_high)).all()
    with pytest.raises(UnknownNameError, match="input of chinchilla 'tokens'"):
        uj.scaling.predict(law, {"N": [1e9], "tokens": [1e9]}, draws)
    with pytest.raises(DataError, match="D did not arrive"):
        uj.scaling.predict(law, {"N": [1e9]}, draws)
    with pytest.raises(DataError, match="finite numbers above 0"):
        uj.scaling.predict(law, {"N": [-1e9], "D": [1e9]}, draws)


def test_the_best_split_of_compute_is_the_closed_form(law, draws):
    found, p = uj.scaling.allocate(law, 1e23, draws), law.natural
    g = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    size = g * (1e23 / 6) ** (p["beta"] / (p["alpha"] + p["beta"]))
    assert found.parameters["value"] == pytest.approx(size, rel=1e-4)
    assert found.tokens["value"] == pytest.approx(1e23 / 6 / size, rel=1e-4)
    assert found.flops == "C = 6 N D"
    each = []
    for k in range(200):
        q = {n: v[k] for n, v in draws.natural.items()}
        g = (q["alpha"] * q["A"] / (q["beta"] * q["B"])) ** (1 / (q["alpha"] + q["beta"]))
        each.append(g * (1e23 / 6) ** (q["beta"] / (q["alpha"] + q["beta"])))
    assert (found.parameters["low"], found.parameters["high"]) == pytest.approx(
        np.quantile(each, [0.025, 0.975]), rel=1e-3
    )
    half = uj.scaling.allocate(law, 1e23, draws, flops=12)
    assert half.parameters["value"] * half.tokens["value"] == pytest.approx(1e23 / 12, rel=1e-6)


def test_splits_of_other_forms_and_refusals():
    sized = uj.scaling.fit(made("corrupted_sized", noise=0.003), "corrupted_sized", loss="score", starts=96)
    draws = uj.scaling.bootstrap(sized, 50)
    clean, noisy = (uj.scaling.allocate(sized, 1e21, draws, given={"noise": q}) for q in (0.0, 0.4))
    assert noisy.parameters["value"] < clean.parameters["value"]  # noisy tokens are worth less: more of them are wanted
    with pytest.raises(DataError, match="also takes noise"):
        uj.scaling.allocate(sized, 1e21, draws)
    with pytest.raises(UnknownNameError, match="further input 'nois'"):
        uj.scaling.allocate(sized, 1e21, draws, given={"nois": 0.1})
    ratio = uj.scaling.fit(made("overtraining"), "overtraining", loss="score", starts=48)
    p = ratio.natural
    size = (p["A"] / (p["B"] * 6 ** (-p["eta"] / 2))) ** (0.5 / p["eta"]) * (1e21 / 6) ** 0.5
    assert uj.scaling.allocate(ratio, 1e21).parameters["value"] == pytest.approx(size, rel=1e-3)
    power = uj.scaling.fit(made("power"), "power", loss="score", starts=16)
    with pytest.raises(UsageError, match="only a law of N and D"):
        uj.scaling.allocate(power, 1e21)
    t = made("chinchilla")
    rising = uj.scaling.fit({"N": t["N"], "D": t["D"], "loss": t["N"] ** 0.1 + 300 * t["D"] ** -0.3}, starts=32)
    assert any("A, alpha no longer act" in line for line in rising.warnings), rising.warnings
    with pytest.raises(NonFiniteError, match="never trades size for data"):
        uj.scaling.allocate(rising, 1e21, uj.scaling.bootstrap(rising, 20))


def test_the_largest_run_is_held_out_and_told(law):
    found = uj.scaling.holdout(law, starts=48)
    largest = int(np.argmax(law.rows.x["N"] * law.rows.x["D"]))
    assert found.held.tolist() == [largest]
    assert len(found.fit.rows.y) == 59
    assert law.rows.y[largest] not in found.fit.rows.y
    assert found.error[0] == pytest.approx(found.prediction.value[0] / law.rows.y[largest] - 1)
    assert abs(found.error[0]) < 0.05
    wrong = law.rows.y.copy()
    wrong[largest] *= 1.5
    off = uj.scaling.holdout(law._replace(rows=law.rows._replace(y=wrong)), starts=48)
    assert not off.inside[0]


def test_the_largest_run_has_the_most_compute_of_any_form():
    def mine(p, x):
        return p["E"] + p["A"] / x["N"] ** 0.3 + p["A"] / x["D"] ** 0.3

    size, data = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e6, 1e9, 6), np.geomspace(1e8, 1e11, 6)))
    own = uj.scaling.own(mine, ("N", "D"), {"E": (1.0, 3.0), "A": (10.0, 900.0)})
    table = {"N": size, "D": data, "M": data / size, "loss": mine({"E": 1.7, "A": 400.0}, {"N": size, "D": data})}
    for form, largest in ((own, 35), ("overtraining", 35)):
        held = uj.scaling.holdout(uj.scaling.fit(table, form, starts=16), starts=16, draws=20).held
        assert held.tolist() == [largest], form
    other = uj.scaling.own(lambda p, x: p["a"] * x["z"], ("z",), {"a": (0.1, 2.0)})
    law = uj.scaling.fit({"z": [-1.0, 2.0, 3.0], "loss": [-1.0, 2.0, 3.1]}, other,
                         Objective("least_squares", residual="linear"), starts=8)  # fmt: skip
    with pytest.raises(UsageError, match="no run of .* is the largest"):
        uj.scaling.holdout(law)


def test_splits_refuse_what_is_no_number_and_take_small_runs(law, draws):
    for compute in (float("inf"), float("nan"), -1.0):
        with pytest.raises(UsageError, match="leave no room"):
            uj.scaling.allocate(law, compute, draws)
    assert uj.scaling.allocate(law, 2.5e6, draws).parameters["value"] > 1  # a sweep's own scale
    limited = uj.scaling.fit(made("data_constrained"), "data_constrained", loss="score", starts=64)
    for unique in (-1.0, float("nan")):
        with pytest.raises(DataError, match="finite numbers above 0"):
            uj.scaling.allocate(limited, 1e21, given={"U": unique})
    plenty = uj.scaling.predict(limited, {"N": [1e6], "D": [1e9], "U": [1e13]})
    assert np.isfinite(plenty).all()
    np.testing.assert_allclose(plenty.value, uj.scaling.predict(limited, {"N": [1e6], "D": [1e9], "U": [1e9]}).value)


def test_iso_flop_minima_and_their_exponent():
    p, rows = TRUE["chinchilla"], []
    for compute in (1e18, 1e19, 1e20, 1e21):
        g = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
        best = g * (compute / 6) ** (p["beta"] / (p["alpha"] + p["beta"]))
        for size in best * np.geomspace(0.5, 2, 7):
            loss = literal("chinchilla", p, {"N": size, "D": compute / 6 / size})
            rows.append({"N": size, "flops": compute, "loss": loss})
    found = uj.scaling.isoflop(rows, draws=50)
    assert found.exponent == pytest.approx(p["beta"] / (p["alpha"] + p["beta"]), abs=2e-3)
    assert found.low <= found.exponent <= found.high
    assert (found.used, len(found.budgets), found.failed) == (4, 4, 0.0)
    assert found.budgets[-1].best_size == pytest.approx(best, rel=0.02)
    with pytest.raises(DataError, match="1 have a minimum"):
        uj.scaling.isoflop(rows[:7])
    with pytest.raises(UnknownNameError, match="column of an IsoFLOP profile 'Z'"):
        uj.scaling.isoflop(rows, columns={"Z": "N"})
    with pytest.raises(UsageError, match="draws=0"):
        uj.scaling.isoflop(rows, draws=0)
    with pytest.raises(DataError, match="above 0"):
        uj.scaling.isoflop([row | {"loss": row["loss"] - 5} for row in rows])
    with pytest.raises(DataError, match="a size N and C"):
        uj.scaling.isoflop([{"width": 3, "loss": 2.0}])


def test_draws_without_a_minimum_are_told():
    """Four runs a budget, of which a draw often has no three sizes."""
    sizes = {c: np.exp(np.log(c) / 2 + 1) * np.array([0.2, 0.7, 1.5, 6]) for c in (1e18, 1e20)}
    rows = [{"N": size, "flops": c, "loss": 2 + (np.log(size) - np.log(c) / 2 - 1) ** 2 / 50}
            for c, each in sizes.items() for size in each]  # fmt: skip
    found = uj.scaling.isoflop(rows, draws=200)
    assert 0.05 < found.failed < 0.95
    assert found.exponent == pytest.approx(0.5, abs=1e-6)
    odd = [{"N": size, "flops": compute, "loss": 2 + np.log(size) ** 2 / 50}
           for compute in (1e18, 1e20) for size in (0.5, 1.0, 2.0, 2.0)]  # fmt: skip
    many = lambda: [uj.scaling.isoflop(odd, draws=1, seed=seed) for seed in range(20)]  # noqa: E731  # one of them
    with pytest.raises(DataError, match="none of 1 draws"):
        many()


def test_inputs_of_several_lengths_are_refused():
    law = uj.scaling.fit(made("chinchilla"), loss="score", starts=32)
    with pytest.raises(DataError, match="2 of N, 3 of D"):
        uj.scaling.predict(law, {"N": [1e8, 1e9], "D": [1e9, 1e10, 1e11]})


def test_two_stages_carry_the_errors_of_both():
    table = made("chinchilla", noise=0.01)
    p, rng = TRUE["sigmoid"], np.random.default_rng(8)
    accuracy = literal("sigmoid", p, {"loss": table["score"]}) + 0.01 * rng.normal(size=60)
    held = {"N": table["N"], "D": table["D"], "loss": table["score"], "accuracy": accuracy}
    ladder = uj.scaling.two_stage(held, "accuracy", starts=64, draws=100)
    inputs = {"N": [3e9], "D": [6e10]}
    found = uj.scaling.predict_score(ladder, inputs)
    assert found.value[0] == pytest.approx(literal("sigmoid", ladder.score.natural, {
        "loss": literal("chinchilla", ladder.loss.natural, {"N": 3e9, "D": 6e10})}), rel=1e-9)  # fmt: skip
    with pytest.raises(UsageError, match="through=power takes x; a form of the loss"):
        uj.scaling.two_stage(held, "accuracy", through="power")
    other = uj.scaling.two_stage(
        held | {"accuracy": 1 - np.exp(-held["loss"])}, "accuracy", through="exponential", draws=9
    )
    assert other.score.natural == pytest.approx({"epsilon": 1.0, "k": 1.0, "gamma": 1.0}, rel=1e-4)
    loss = uj.scaling.predict(ladder.loss, inputs, ladder.loss_draws)
    truth = literal("sigmoid", p, {"loss": literal("chinchilla", TRUE["chinchilla"], {"N": 3e9, "D": 6e10})})
    assert found.run_low[0] < truth < found.run_high[0]
    each = [
        literal("sigmoid", {n: v[k] for n, v in ladder.score_draws.natural.items()},
                {"loss": literal("chinchilla", {n: v[k] for n, v in ladder.loss_draws.natural.items()},
                                 {"N": 3e9, "D": 6e10})})
        for k in range(100)
    ]  # fmt: skip
    assert (found.low[0], found.high[0]) == pytest.approx(np.quantile(each, [0.025, 0.975]), rel=1e-5)
    only_second = literal("sigmoid", ladder.score.natural, {"loss": np.array([loss.low[0], loss.high[0]])})
    assert found.high[0] - found.low[0] > abs(only_second[1] - only_second[0]) * 0.9
    anchored = uj.scaling.two_stage(held, "accuracy", best=1.0, starts=64, draws=20)
    assert len(anchored.score.rows.y) == 61
    assert anchored.score.rows.x["loss"][-1] == 0


def test_a_further_run_scatters_in_both_steps():
    """Losses that scatter widely about the first law, scores hardly about the second: the first decides."""
    rng, p, q = np.random.default_rng(3), TRUE["chinchilla"], TRUE["sigmoid"]
    x = {"N": 10 ** rng.uniform(7, 9, 60), "D": 10 ** rng.uniform(9, 11, 60)}

    def runs(where):
        loss = literal("chinchilla", p, where) * np.exp(0.05 * rng.normal(size=len(where["N"])))
        return loss, literal("sigmoid", q, {"loss": loss}) + 1e-3 * rng.normal(size=len(loss))

    loss, accuracy = runs(x)
    ladder = uj.scaling.two_stage(x | {"loss": loss, "accuracy": accuracy}, "accuracy", starts=48, draws=200, best=1.0)
    found = uj.scaling.predict_score(ladder, {"N": [3e8], "D": [2e10]})
    _, further = runs({"N": np.full(2000, 3e8), "D": np.full(2000, 2e10)})
    inside = np.mean((found.run_low[0] <= further) & (further <= found.run_high[0]))
    assert 0.9 <= inside <= 0.99, inside
    with pytest.raises(UnknownNameError, match="column 'acuracy'.*'accuracy'"):
        uj.scaling.two_stage(x | {"loss": loss, "accuracy": accuracy}, "acuracy")


def test_a_law_on_disk_predicts_as_it_did(law, draws, tmp_path):
    path = uj.scaling.save(tmp_path, law, draws, {"loss": "score", "N": "N", "D": "D"}, "chinchilla")
    kept, kept_draws = uj.scaling.load(tmp_path)
    inputs = {"N": [1e9], "D": [1e10]}
    again, before = uj.scaling.predict(kept, inputs, kept_draws), uj.scaling.predict(law, inputs, draws)
    for one, other in zip(again, before, strict=True):
        np.testing.assert_array_equal(one, other)
    told = json.loads(path.read_text())
    assert list(told["intervals"]) == list(law.form.names)
    assert told["equation"] == "L = E + A / N^alpha + B / D^beta"
    held = json.loads(path.read_text())
    (tmp_path / "law.json").write_text(json.dumps(held | {"digest": "0"}))
    with pytest.raises(CorruptError, match="does not hold the rows"):
        uj.scaling.load(tmp_path)
    with pytest.raises(MissingFileError, match="uimjax scaling fit"):
        uj.scaling.load(tmp_path / "none")


def test_a_floor_that_is_none_is_said_as_zero():
    x, noise = inputs("corrupted"), np.exp(0.02 * np.random.default_rng(1).normal(size=60))
    loss = literal("corrupted", TRUE["corrupted"] | {"E": 0.0}, x) * noise
    law = uj.scaling.fit(x | {"loss": loss}, "corrupted", starts=32)
    told = saved.told(law, uj.scaling.bootstrap(law, 50), {"loss": "loss"}, "corrupted")
    assert 0 <= told["intervals"]["E"][0] <= told["intervals"]["E"][1]
    assert told["intervals"]["E"][0] == 0
    assert told["parameters"]["E"] == 0 or told["parameters"]["E"] > 1e-6
    assert told["parameters"]["B"] == law.natural["B"]


def test_any_measurement_can_be_the_fitted_column():
    """A failure that grows: an attack's success against the share of poison, of any sign, by linear residuals."""
    x = np.geomspace(1e-3, 0.3, 40)
    success = 0.95 - 0.02 * x**-0.5
    law = uj.scaling.fit({"share": x, "attack": success}, "trend", Objective("huber", 1e-3, residual="linear"),
                         columns={"x": "share"}, loss="attack", starts=64)  # fmt: skip
    assert law.natural == pytest.approx({"E": 0.95, "A": -0.02, "alpha": 0.5}, rel=1e-4)


def test_a_law_whose_form_has_moved_since_is_fitted_again(tmp_path):
    law = uj.scaling.fit(made("kaplan"), "kaplan", loss="score", starts=32)
    path = uj.scaling.save(tmp_path, law, uj.scaling.bootstrap(law, 20), {"loss": "score"}, "kaplan")
    assert uj.scaling.load(tmp_path)[0].natural == law.natural
    path.write_text(path.read_text().replace('"version": 2', '"version": 1'))
    with pytest.raises(
        MismatchError, match="whose kaplan had other coordinates; fit its rows again: uimjax scaling fit"
    ):
        uj.scaling.load(tmp_path)
