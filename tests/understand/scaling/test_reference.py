"""Published fits, reproduced from their data: the objective first, the parameters second."""

import csv
import json

import numpy as np
import pytest

import uimjax as uj
from uimjax.understand.scaling import engine
from uimjax.understand.scaling.base import coordinates_of, prepared
from uimjax.understand.scaling.forms import FORMS


@pytest.fixture
def epoch(reference_data):
    """240 points: the five of the highest losses are left out. Read here by the csv module alone."""
    folder = reference_data / "epoch_chinchilla"
    with (folder / "svg_extracted_data.csv").open() as file:
        rows = list(csv.DictReader(file))
    loss = np.array([float(row["loss"]) for row in rows])
    kept = np.flatnonzero(loss < np.sort(loss)[-5])
    held = {name: np.array([float(rows[k][name]) for k in kept]) for name in ("Model Size", "Training FLOP", "loss")}
    return held, json.loads((folder / "golden_fits.json").read_text())


def parameters(golden):
    return {name: golden[name] for name in ("A", "B", "E", "alpha", "beta")}


def test_the_huber_optimum_of_the_epoch_points(epoch):
    table, golden = epoch
    law = uj.scaling.fit(table, starts=256)
    wanted = golden["huber_1e-3_240"]
    assert law.value == pytest.approx(wanted["fun"], rel=1e-8)
    assert law.natural == pytest.approx(parameters(wanted), rel=1e-5)
    assert law.optima[0].share == 1.0
    share = law.natural["beta"] / (law.natural["alpha"] + law.natural["beta"])
    assert share == pytest.approx(wanted["a_opt"], abs=1e-5)
    assert law.condition[0] == pytest.approx(5.8e3, rel=0.5)
    assert law.condition[1] == pytest.approx(6.7e6, rel=0.5)


def test_the_same_in_single_precision(epoch):
    table, golden = epoch
    law = uj.scaling.fit(table, starts=64, dtype=np.float32)
    assert law.natural == pytest.approx(parameters(golden["huber_1e-3_240"]), rel=2e-3)


def test_the_published_point_is_the_vertex_of_absolute_deviations(epoch):
    table, golden = epoch
    law = uj.scaling.fit(table, objective="lad", starts=64)
    assert law.value == pytest.approx(golden["lad_240"]["l1_sum"], rel=1e-9)
    assert law.natural == pytest.approx(parameters(golden["lad_240"]), rel=1e-4)
    assert {name: float(f"{value:.4g}") for name, value in law.natural.items()} == pytest.approx(
        {"A": 482.0, "B": 2085, "E": 1.817, "alpha": 0.3478, "beta": 0.3659}
    )


def test_standard_errors_of_four_thousand_resamples(epoch):
    table, _ = epoch
    law = uj.scaling.fit(table, starts=32)
    np.random.seed(42)  # noqa: NPY002  # the published resamples are of this generator
    drawn = np.stack([np.random.choice(240, 240) for _ in range(4000)])
    found = uj.scaling.bootstrap(law, drawn=drawn).errors
    ours = {"A": 124.494, "B": 1293.17, "E": 0.025657, "alpha": 0.015397, "beta": 0.020594}
    published = {"A": 124.522, "B": 1293.28, "E": 0.02566, "alpha": 0.01540, "beta": 0.02060}
    assert found == pytest.approx(ours, rel=1e-3)
    assert found == pytest.approx(published, rel=2e-3)


@pytest.fixture
def repeats(reference_data):
    folder = reference_data / "datablations"
    golden = json.loads((folder / "golden_fits.json").read_text())
    fixed = golden["fixed"]
    natural = {name.upper(): float(np.exp(fixed[name])) for name in ("a", "b", "e")}
    return folder / "data_constrained_182.csv", natural | {n: fixed[n] for n in ("alpha", "beta")}, golden


def test_the_published_repeats_are_one_of_several_optima(repeats):
    path, fixed, golden = repeats
    law = uj.scaling.fit(path, "data_constrained", fixed=fixed, starts=512)
    assert law.value == pytest.approx(golden["optima"][0]["fun"], rel=1e-7)
    assert law.r2 == pytest.approx(golden["optima"][0]["r2"], abs=1e-5)
    ends = {round(o.value, 9): o for o in law.optima}
    for wanted in golden["optima"]:
        found = min(ends.values(), key=lambda o: abs(o.value - wanted["fun"]))
        assert found.value == pytest.approx(wanted["fun"], rel=1e-6)
        assert (found.natural["RD"], found.natural["RN"]) == pytest.approx(
            (wanted["rd_star"], wanted["rn_star"]), rel=1e-3
        )
    assert any("report the profile" in line for line in law.warnings)


def test_r2_at_the_published_point_and_without_decay(repeats):
    path, fixed, golden = repeats
    published = golden["published"]
    law = uj.scaling.fit(
        path, "data_constrained", starts=1,
        fixed=fixed | {"RD": published["rd_star"]},
    )  # fmt: skip
    given = {n: law.rows.x[n] for n in "NDU"}
    y, total = law.rows.y, np.sum((law.rows.y - law.rows.y.mean()) ** 2)

    def r2(rd, rn):
        theta = coordinates_of(law.form, fixed | {"RD": rd, "RN": rn}, law.centre)
        said = engine.values(law.form, theta[None], prepared(law.form, given, law.centre))[0]
        return 1 - np.sum((y - said) ** 2) / total

    assert r2(published["rd_star"], published["rn_star"]) == pytest.approx(golden["published"]["r2"], abs=1e-5)
    assert r2(1e12, 1e12) == pytest.approx(golden["r2_no_decay"], abs=1e-5)


def test_the_predictor_of_repeated_data(repeats):
    _, fixed, golden = repeats
    form = FORMS["data_constrained"]()
    centre = {"N": 1e9, "D": 1e11, "U": 1e11}
    natural = fixed | {"RD": golden["published"]["rd_star"], "RN": golden["published"]["rn_star"]}
    natural = natural | {"RD": 15.387756, "RN": 5.309743}
    theta = coordinates_of(form, natural, centre)
    for check in golden["predict_checks"]:
        x = prepared(form, {name: [check[name]] for name in "NDU"}, centre)
        assert engine.values(form, theta[None], x)[0, 0] == pytest.approx(check["loss"], abs=1e-10)
