"""Fits: parameters that made the data come back, slow twins in SciPy, invariances, and what is refused."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import uimjax as uj
from uimjax.errors import DataError, MalformedRowError, MissingFileError, NonFiniteError, UnknownNameError, UsageError
from uimjax.understand.scaling import engine
from uimjax.understand.scaling.base import Objective, centre_of, coordinates_of, natural_all, prepared
from uimjax.understand.scaling.forms import FORMS
from uimjax.understand.scaling.table import rows_of

GRID = [(n, d) for n in (1e6, 1e7, 1e8, 1e9) for d in (1e8, 1e9, 1e10, 1e11)]
N, D = np.array(GRID).T
TRUE = {
    "chinchilla": {"A": 400.0, "B": 2000.0, "E": 1.8, "alpha": 0.34, "beta": 0.37},
    "kaplan": {"Nc": 8.8e13, "Dc": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.095},
    "power": {"A": 30.0, "E": 1.5, "alpha": 0.3},
    "trend": {"A": -40.0, "E": 0.7, "alpha": 0.4},
    "overtraining": {"A": 200.0, "B": 400.0, "E": 1.7, "eta": 0.31},
    "corrupted": {"B": 900.0, "E": 1.2, "beta": 0.33, "kappa": 2.5},
    "corrupted_sized": {"B": 900.0, "E": 1.2, "beta": 0.33, "kappa": 2.5, "A": 300.0, "alpha": 0.36},
    "data_constrained": {"A": 500.0, "B": 1500.0, "E": 1.8, "alpha": 0.35, "beta": 0.36, "RD": 15.0, "RN": 5.0},
    "broken1": {"a": 0.6, "b": 30.0, "c0": 0.15, "c1": 0.3, "d1": 3e8, "f1": 0.4},
    "sigmoid": {"a": 0.7, "b": 0.25, "k": -5.0, "x0": 2.4},
    "exponential": {"epsilon": 0.85, "k": 2.1, "gamma": 0.7},
}


def literal(name, p, x):
    """The forms as papers print them, in plain numpy: nothing of the code's coordinates."""
    if name == "chinchilla":
        return p["E"] + p["A"] / x["N"] ** p["alpha"] + p["B"] / x["D"] ** p["beta"]
    if name == "kaplan":
        return ((p["Nc"] / x["N"]) ** (p["alpha_N"] / p["alpha_D"]) + p["Dc"] / x["D"]) ** p["alpha_D"]
    if name in ("power", "trend"):
        return p["E"] + p["A"] / x["x"] ** p["alpha"]
    if name == "overtraining":
        size, tokens = x["N"], x["M"] * x["N"]
        return p["E"] + p["A"] * size ** -p["eta"] + p["B"] * 6 ** (-p["eta"] / 2) * tokens ** -p["eta"]
    if name.startswith("corrupted"):
        found = p["E"] + p["B"] / (x["D"] * np.exp(-p["kappa"] * x["noise"])) ** p["beta"]
        return found + (p["A"] / x["N"] ** p["alpha"] if "A" in p else 0)
    if name == "broken1":
        part = (1 + (x["x"] / p["d1"]) ** (1 / p["f1"])) ** (-p["c1"] * p["f1"])
        return p["a"] + p["b"] * x["x"] ** -p["c0"] * part
    if name == "exponential":
        return p["epsilon"] - p["k"] * np.exp(-p["gamma"] * x["loss"])
    if name == "sigmoid":
        return p["a"] / (1 + np.exp(-p["k"] * (x["loss"] - p["x0"]))) + p["b"]
    assert name == "data_constrained"
    g = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    unique = np.minimum(x["N"], g * (x["U"] * g) ** (p["beta"] / p["alpha"]))
    size = unique * (1 + p["RN"] * (1 - np.exp(-(x["N"] / unique - 1) / p["RN"])))
    data = x["U"] * (1 + p["RD"] * (1 - np.exp(-(x["D"] / x["U"] - 1) / p["RD"])))
    return p["E"] + p["A"] / size ** p["alpha"] + p["B"] / data ** p["beta"]


def inputs(name, count=60, seed=3):
    rng = np.random.default_rng(seed)
    size, data = 10 ** rng.uniform(6, 10, count), 10 ** rng.uniform(8, 11.5, count)
    held = {
        "N": size, "D": data, "M": data / size, "U": data / rng.choice([1, 2, 4, 16, 64], count),
        "noise": rng.choice([0, 0.1, 0.2, 0.4], count), "x": 10 ** rng.uniform(6, 11, count),
        "loss": rng.uniform(1.5, 3.5, count),
    }  # fmt: skip
    return {key: held[key] for key in FORMS[name]().inputs}


def made(name, noise=0.0, **more):
    """A table of the true law; of a sigmoid the fitted column is a score."""
    x = inputs(name, **more)
    y = literal(name, TRUE[name], x)
    y = (
        y * np.exp(noise * np.random.default_rng(5).normal(size=len(y)))
        if name not in ("trend", "sigmoid", "exponential")
        else y
    )
    return x | {"score": y}


@pytest.mark.parametrize("name", TRUE)
def test_values_are_those_of_the_printed_formula_for_any_centre(name):
    form, x = FORMS[name](), inputs(name)
    for centre in (centre_of(form, x), dict.fromkeys(centre_of(form, x), 1.0)):
        theta = coordinates_of(form, TRUE[name], centre)
        found = engine.values(form, theta[None], prepared(form, x, centre))[0]
        np.testing.assert_allclose(found, literal(name, TRUE[name], x), rtol=1e-9)
        back = natural_all(form, theta[None], centre)
        assert {key: float(value[0]) for key, value in back.items()} == pytest.approx(TRUE[name], rel=1e-9)


@pytest.mark.parametrize("name", TRUE)
def test_the_parameters_that_made_the_data_come_back(name):
    law = uj.scaling.fit(made(name), name, loss="score", starts=192)
    assert law.natural == pytest.approx(TRUE[name], rel=2e-4)
    assert law.r2 > 1 - 1e-9
    assert law.value < 1e-12


@pytest.mark.parametrize("name", ["chinchilla", "corrupted", "power"])
@pytest.mark.parametrize("kind", ["huber", "least_squares", "asymmetric", "lad"])
def test_no_descent_of_scipy_finds_a_better_objective(name, kind):
    table, form, objective = made(name, noise=0.01), FORMS[name](), Objective(kind, delta=3e-3, over=4.0)
    law = uj.scaling.fit(table, form, objective, loss="score", starts=64)
    x, y = {key: table[key] for key in form.inputs}, table["score"]

    def value(p):
        r = np.log(y) - np.log(literal(name, dict(zip(law.natural, p, strict=True)), x))
        small = np.where(np.abs(r) <= 3e-3, r**2 / 2, 3e-3 * (np.abs(r) - 3e-3 / 2))
        return {
            "huber": small, "least_squares": r**2 / 2, "lad": np.abs(r), "asymmetric": small * np.where(r < 0, 4.0, 1.0)
        }[kind].sum()  # fmt: skip

    best = np.array(list(law.natural.values()))
    assert law.value == pytest.approx(value(best), rel=1e-9)
    for seed in range(6):
        start = best * np.random.default_rng(seed).uniform(0.98, 1.02, len(best))
        found = minimize(value, start, method="Nelder-Mead", options={"maxiter": 4000, "xatol": 1e-12, "fatol": 1e-16})
        assert law.value <= found.fun * (1 + 1e-9)


def test_an_asymmetric_objective_draws_the_lower_envelope():
    table = made("power", noise=0.02)
    held = {key: table[key] for key in ("x", "score")}
    shares = []
    for over in (1.0, 50.0):
        law = uj.scaling.fit(held, "power", Objective("asymmetric", delta=1e-4, over=over), loss="score", starts=32)
        said = uj.scaling.predict(law, {"x": table["x"]}).value
        shares.append(np.mean(said > table["score"]))
    assert 0.3 < shares[0] < 0.7
    assert shares[1] < 0.1


def test_neither_the_order_of_rows_nor_the_number_of_lanes_nor_units_change_a_fit():
    table = made("chinchilla", noise=0.01)
    law = uj.scaling.fit(table, loss="score", starts=48)
    order = np.random.default_rng(0).permutation(len(table["N"]))
    turned = uj.scaling.fit({key: values[order] for key, values in table.items()}, loss="score", starts=48)
    assert turned.natural == pytest.approx(law.natural, rel=1e-6)
    billions = uj.scaling.fit(table | {"N": table["N"] / 1e9}, loss="score", starts=48)
    assert billions.natural["alpha"] == pytest.approx(law.natural["alpha"], rel=1e-6)
    assert billions.natural["A"] == pytest.approx(law.natural["A"] / 1e9 ** law.natural["alpha"], rel=1e-5)
    form, x = law.form, prepared(law.form, law.rows.x, law.centre)
    starts = np.random.default_rng(1).uniform(0.1, 0.9, (40, 5))
    one, many = (engine.minimise(form, law.objective, x, np.log(law.rows.y), starts, lanes=lanes) for lanes in (7, 64))
    np.testing.assert_allclose(one.value, many.value, rtol=1e-9)


def test_weights_are_repetitions_of_rows():
    table = made("power", noise=0.02, count=20)
    held = {key: table[key] for key in ("x", "score")}
    times = np.random.default_rng(2).integers(0, 4, 20)
    law = uj.scaling.fit(held, "power", loss="score", starts=32)
    twice = uj.scaling.fit({key: np.repeat(v, times) for key, v in held.items()}, "power", loss="score", starts=32)
    x, y = prepared(law.form, law.rows.x, law.centre), np.log(law.rows.y)
    found = engine.minimise(law.form, law.objective, x, y, law.theta[None], weights=times[None].astype(float))
    natural = {key: float(v[0]) for key, v in natural_all(law.form, found.theta, law.centre).items()}
    assert natural == pytest.approx(twice.natural, rel=1e-5)


def test_what_is_fixed_stays_and_the_rest_is_fitted():
    law = uj.scaling.fit(made("chinchilla"), loss="score", fixed={"alpha": 0.34, "E": 1.8}, starts=64)
    assert (law.natural["alpha"], law.natural["E"]) == pytest.approx((0.34, 1.8), rel=1e-12)
    assert law.natural == pytest.approx(TRUE["chinchilla"], rel=1e-5)


def my_law(p, x):
    return p["floor"] + p["gain"] * jnp.log1p(p["rate"] * x["width"])


def test_a_form_of_ones_own():
    form = uj.scaling.own(
        my_law, ("width",), {"floor": (-1, 3), "gain": (-2, 0), "rate": (1e-3, 1.0)}, positive=("rate",)
    )
    width = np.geomspace(8, 4096, 24)
    said = 4.0 - 0.3 * np.log1p(0.02 * width)
    law = uj.scaling.fit({"width": width, "loss": said}, form, Objective("least_squares", residual="linear"), starts=64)
    assert law.natural == pytest.approx({"floor": 4.0, "gain": -0.3, "rate": 0.02}, rel=1e-4)
    with pytest.raises(UsageError, match="above 0 where positive"):
        uj.scaling.own(my_law, ("width",), {"rate": (0.0, 1.0)}, positive=("rate",))


def test_columns_are_found_by_their_usual_names_and_compute_stands_for_tokens():
    table = made("chinchilla")
    spelled = {"Model Size": table["N"], "Training FLOP": 6 * table["N"] * table["D"], "val_loss": table["score"]}
    rows, used = rows_of(spelled, FORMS["chinchilla"](), Objective())
    assert used == {"loss": "val_loss", "N": "Model Size", "D": "Training FLOP / (6 Model Size)"}
    np.testing.assert_allclose(rows.x["D"], table["D"])
    with pytest.raises(UsageError, match="could be any of the columns 'params', 'n'"):
        rows_of({"params": table["N"], "n": table["N"], "D": table["D"], "loss": table["score"]}, FORMS["chinchilla"](),
                Objective())  # fmt: skip


def test_a_csv_gives_what_its_columns_give(tmp_path):
    table = made("chinchilla", noise=0.01)
    path = tmp_path / "runs.csv"
    path.write_text("params,tokens,loss\n" + "".join(
        f"{n!r},{d!r},{y!r}\n" for n, d, y in zip(*(table[k].tolist() for k in ("N", "D", "score")), strict=True)
    ))  # fmt: skip
    assert uj.scaling.fit(path, starts=32).natural == uj.scaling.fit(table, loss="score", starts=32).natural
    with path.open("a") as file:
        file.write("1,2\n")
    with pytest.raises(MalformedRowError, match="line 62: 2 fields for 3 columns"):
        uj.scaling.fit(path)


@pytest.mark.parametrize(
    ("change", "settings", "error", "match"),
    [
        ({}, {"loss": "scor"}, UnknownNameError, "Did you mean 'score'"),
        ({}, {"columns": {"N": "parms"}}, UnknownNameError, "unknown column 'parms'"),
        ({}, {"columns": {"width": "N"}}, UnknownNameError, "unknown input of the form 'width'"),
        ({}, {"form": "chinchila"}, UnknownNameError, "Did you mean 'chinchilla'"),
        ({}, {"fixed": {"gamma": 1.0}}, UnknownNameError, "unknown parameter of chinchilla 'gamma'"),
        ({}, {"fixed": {"E": -1.0}}, DataError, "above 0 was wanted"),
        ({}, {"fixed": dict(TRUE["chinchilla"])}, UsageError, "nothing is left to fit"),
        ({}, {"objective": "hubert"}, UsageError, "one of huber"),
        ({}, {"starts": 0}, UsageError, "at least one"),
        ({"score": lambda v: -v}, {}, DataError, "row 1 is -.*residual='linear' takes any sign"),
        ({"score": lambda v: np.where(np.arange(len(v)) == 3, np.nan, v)}, {}, NonFiniteError, "row 4 is nan"),
        ({"N": lambda v: ["1e8", None, "big", *v[3:]]}, {}, DataError, "'N', row 3: .*'big'; numbers were wanted"),
        ({"run": ["a", "b", None]}, {"group": "run"}, DataError, "'run', row 3 names no run"),
        ({"run": ["a", "", "b"]}, {"group": "run"}, DataError, "'run', row 2 names no run"),
        ({"N": lambda v: np.zeros_like(v)}, {}, DataError, "the form takes its logarithm"),
        ({"N": lambda v: np.full_like(v, 1e8)}, {}, DataError, "cannot tell .*alpha.* apart.*1 of N"),
        ({"D": lambda v: np.where(v > 1e10, 1e11, 1e9)}, {}, DataError, "cannot tell .* apart.*2 of D"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused_with_its_cure(change, settings, error, match):
    table = made("chinchilla")
    for key, fun in change.items():
        table[key] = fun(table[key]) if callable(fun) else (fun * len(table["score"]))[: len(table["score"])]
    with pytest.raises(error, match=match):
        uj.scaling.fit(table, **({"loss": "score", "starts": 8} | settings))


def test_too_few_points_say_how_many_are_needed():
    few = {key: values[:5] for key, values in made("chinchilla").items()}
    with pytest.raises(DataError, match="5 free parameters.*needs at least 6 runs of different N, D; 5 arrived"):
        uj.scaling.fit(few, loss="score")
    repeated = {key: np.repeat(values, 4) for key, values in few.items()}
    with pytest.raises(DataError, match="5 arrived"):
        uj.scaling.fit(repeated, loss="score")


def test_missing_and_empty_tables(tmp_path):
    with pytest.raises(MissingFileError, match="is not a file"):
        uj.scaling.fit(tmp_path / "none.csv")
    with pytest.raises(DataError, match="no rows"):
        uj.scaling.fit({"N": [], "D": [], "loss": []})
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(UsageError, match="not in '.xlsx'"):
        uj.scaling.fit(tmp_path / "a.xlsx")


def test_a_narrow_design_is_warned_of():
    size = np.array([1.00, 1.05, 1.1, 1.15] * 4) * 1e8
    data = np.repeat([1e9, 4e9, 1.6e10, 6.4e10], 4)
    loss = literal("chinchilla", TRUE["chinchilla"], {"N": size, "D": data})
    loss = loss * np.exp(0.003 * np.random.default_rng(0).normal(size=16))
    law = uj.scaling.fit({"N": size, "D": data, "loss": loss}, starts=64)
    assert any("N varies by a factor of 1.15 only" in line for line in law.warnings)
    assert any("alpha" in line and "standard error" in line for line in law.warnings)
    assert any("no start settled" in line for line in law.warnings)


def test_centred_coordinates_are_better_conditioned():
    law = uj.scaling.fit(made("chinchilla", noise=0.01), loss="score", starts=16)
    assert law.condition[0] < law.condition[1] / 50


def test_exact_derivatives_agree_with_differences():
    form, x = FORMS["data_constrained"](), inputs("data_constrained")
    centre = centre_of(form, x)
    theta, given = coordinates_of(form, TRUE["data_constrained"], centre), prepared(form, x, centre)
    found = engine.jacobian(form, Objective(), theta[None], given, np.zeros(60))[0]
    for k in range(len(theta)):
        step = np.zeros(len(theta))
        step[k] = 1e-6
        high, low = (engine.left(form, Objective(), (theta + s)[None], given, np.zeros(60))[0] for s in (step, -step))
        np.testing.assert_allclose(found[:, k], (high - low) / 2e-6, rtol=1e-5, atol=1e-8)


def stated(name):
    """A form whose logarithm is taken as a whole, so that its derivatives are jets of it."""
    form = FORMS[name]()
    return dataclasses.replace(form, terms=None, straight=False, log_value=form.logged)


SUMS = [name for name in TRUE if FORMS[name]().terms is not None]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SUMS)
def test_derivatives_from_shares_are_jets_and_straight_terms_are_straight(name):
    form, x = FORMS[name](), inputs(name, count=17)
    given = {key: jnp.asarray(value) for key, value in prepared(form, x, centre_of(form, x)).items()}
    rng = np.random.default_rng(3)
    theta = jnp.asarray(coordinates_of(form, TRUE[name], centre_of(form, x)) + 0.1 * rng.normal(size=len(form.names)))
    pull = jnp.asarray(rng.normal(size=17))
    residual = lambda t: 0.7 - stated(name).logged(t, given)  # noqa: E731  # one line, used thrice
    terms = lambda t: sum(jnp.sum(jnp.arange(1.0, 18.0) * term) for term in form.terms(t, given))  # noqa: E731

    def shares(t):
        found, slopes, bent = engine._by_shares(form, t, given, jnp.full(17, 0.7))
        weights, matrix = bent(pull)
        return found, slopes.T, (slopes * weights[None]) @ slopes.T + matrix

    def jets(t):
        return residual(t), jax.jacfwd(residual)(t), jax.hessian(lambda at: pull @ residual(at))(t)

    for found, wanted in zip(jax.jit(shares)(theta), jax.jit(jets)(theta), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-12)
    curved = jax.jit(jax.hessian(terms))
    assert form.straight == (not np.any(curved(theta)) and not np.any(curved(1.3 * theta)))


@pytest.mark.parametrize("name", ["chinchilla", "corrupted"])
def test_a_form_said_by_its_terms_ends_where_it_does_as_a_whole(name):
    table = made(name, noise=0.01)
    terms, whole = (uj.scaling.fit(table, f, loss="score", starts=64) for f in (FORMS[name](), stated(name)))
    assert terms.value == pytest.approx(whole.value, rel=1e-12)
    assert terms.natural == pytest.approx(whole.natural, rel=1e-5)


def test_a_form_is_said_in_one_way():
    with pytest.raises(UsageError, match="one of value, log_value and terms"):
        dataclasses.replace(FORMS["power"](), log_value=lambda t, x: t[0] + x["x"])
    with pytest.raises(UsageError, match=r"\[\] arrived"):
        dataclasses.replace(FORMS["power"](), terms=None)


@pytest.mark.parametrize("kind", ["huber", "least_squares"])
def test_a_term_that_vanishes_holds_up_none_of_the_others(kind):
    """Of a law without a floor, E goes to 0 from many starts; the rest once stopped wherever it was by then."""
    x = inputs("corrupted")
    noise = np.exp(0.02 * np.random.default_rng(0).normal(size=60))
    table = x | {"loss": literal("corrupted", TRUE["corrupted"] | {"E": 0.0}, x) * noise}
    law = uj.scaling.fit(table, "corrupted", kind, starts=256)
    assert law.optima[0].share > 0.98


@pytest.mark.parametrize("name", ["trend", "sigmoid"])
@pytest.mark.parametrize("scale", [1e-5, 1e4])
def test_the_unit_of_a_measurement_changes_nothing(name, scale):
    table, objective = made(name), Objective("least_squares", residual="linear")
    once = uj.scaling.fit(table, name, objective, loss="score", starts=96)
    again = uj.scaling.fit(table | {"score": scale * table["score"]}, name, objective, loss="score", starts=96)
    for key, value in once.natural.items():
        assert again.natural[key] == pytest.approx(value * (scale if key in ("A", "E", "a", "b") else 1), rel=1e-4)


def test_what_cannot_be_fitted_or_would_change_nothing_is_refused():
    table = made("chinchilla") | {"flops": made("chinchilla")["N"] * 3.0}
    with pytest.raises(DataError, match="2.5 in every row"):
        uj.scaling.fit(table | {"score": np.full(60, 2.5)}, loss="score")
    with pytest.raises(UsageError, match="C=flops would change nothing"):
        uj.scaling.fit(table, loss="score", columns={"C": "flops"})
    with pytest.raises(DataError, match=r"'noise', row 1 is 40; a share from 0 to 1"):
        uj.scaling.fit(made("corrupted") | {"noise": np.full(60, 40.0)}, "corrupted", loss="score")


def test_repeats_beyond_the_tokens_seen_are_none():
    """With more unique tokens than were seen nothing is repeated: the published law is then Chinchilla's."""
    p, rng = TRUE["data_constrained"], np.random.default_rng(2)
    data = 10 ** rng.uniform(9, 11, 20)
    x = {"N": np.full(20, 1e6), "D": data, "U": data * rng.uniform(1, 1e4, 20)}
    form = FORMS["data_constrained"]()
    centre = centre_of(form, x)
    found = engine.values(form, coordinates_of(form, p, centre)[None], prepared(form, x, centre))[0]
    np.testing.assert_allclose(found, literal("chinchilla", p, x), rtol=1e-9)


@pytest.mark.parametrize("name", TRUE)
def test_what_is_fixed_is_that_parameter_and_no_other(name):
    table = made(name)
    for parameter, value in TRUE[name].items():
        found = uj.scaling.fit(table, name, fixed={parameter: value}, loss="score", starts=32)
        assert found.natural[parameter] == pytest.approx(value, rel=1e-9), parameter
        assert found.natural == pytest.approx(TRUE[name], rel=1e-3)


@pytest.mark.parametrize(("name", "parameter"), [("kaplan", "Nc"), ("overtraining", "B"), ("sigmoid", "x0")])
def test_a_profile_is_of_the_parameter_that_it_names(name, parameter, rng):
    table = made(name)
    table["score"] = table["score"] * np.exp(0.003 * rng.normal(size=len(table["score"])))
    law = uj.scaling.fit(table, name, loss="score", starts=64)
    found = uj.scaling.profile(law, parameter, points=9)
    assert (np.diff(found.at) > 0).all()
    assert found.low < law.natural[parameter] < found.high
    for value, least in list(zip(found.at, found.value, strict=True))[::4]:
        again = uj.scaling.fit(table, name, fixed={parameter: value}, loss="score", starts=64)
        assert again.value == pytest.approx(least, rel=1e-4)


@pytest.mark.parametrize("unit", [1e-2, 47.0, 1e3])
def test_a_score_of_the_loss_is_fitted_whatever_unit_the_loss_has(unit, rng):
    table = made("sigmoid")
    table["score"] = table["score"] + 0.01 * rng.normal(size=len(table["score"]))
    one = uj.scaling.fit(table, "sigmoid", loss="score")
    law = uj.scaling.fit(table | {"loss": table["loss"] * unit}, "sigmoid", loss="score")
    assert law.value == pytest.approx(one.value, rel=1e-9)
    assert law.natural["x0"] == pytest.approx(unit * one.natural["x0"], rel=1e-5)
    assert law.natural["k"] == pytest.approx(one.natural["k"] / unit, rel=1e-5)


def test_every_form_stands_in_the_docs():
    text = (Path(uj.__file__).parent / "docs" / "understand.md").read_text()
    for name, make in FORMS.items():
        equation = make().equation.removeprefix("L = ").replace("A / N^alpha + B / (D exp", "B / (D exp")
        assert name in text, name
        assert equation.partition(", i = 1")[0] in text, equation
