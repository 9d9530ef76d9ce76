"""Truth by retraining, and methods judged by it, on ridge regression: there retraining has a closed form."""

import dataclasses
import io
import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console
from scipy import stats

from uimjax import cli
from uimjax.curvature import Operator
from uimjax.errors import ShapeError, UnknownNameError, UsageError
from uimjax.interpret import check, counterfactual, judge, methods
from uimjax.interpret.bank import Bank
from uimjax.interpret.base import Method, Scores
from uimjax.interpret.trajectory import record
from uimjax.report import judgements
from uimjax.steps import Recipe
from uimjax.task import Measurement, Task

N, Q, DECAY = 30, 4, 0.1
# full batches to convergence: the order of rows is nothing, and neither is the start
TASK = Task(lambda p, e: 0.5 * (e["x"] @ p["w"] - e["y"]) ** 2 + 0.5 * DECAY * jnp.sum(p["w"] ** 2))
NLL = Measurement("loss", lambda p, e: 0.5 * (e["x"] @ p["w"] - e["y"]) ** 2)


def rows(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 3)).astype(np.float32)
    return {"x": x, "y": (x @ [1.0, -1, 0.5] + rng.normal(size=count)).astype(np.float32)}


DATA, QUERIES = rows(N, 0), rows(Q, 1)
RECIPE = Recipe(epochs=300, batch_size=N, learning_rate=0.3, optimizer="sgd", weight_decay=0.0, final=1.0)
ASKED = check.Asked(TASK, lambda seed: {"w": jnp.full(3, 0.1 * seed)}, DATA, RECIPE, NLL, QUERIES)


def exact_weights(data, kept=slice(None)):
    """Ridge regression on the rows kept, in float64."""
    x, y = data["x"][kept].astype(float), data["y"][kept].astype(float)
    return np.linalg.solve(x.T @ x / len(x) + DECAY * np.eye(3), x.T @ y / len(x))


def answers(kept, data=DATA):
    """The queries' losses after that."""
    return 0.5 * (QUERIES["x"] @ exact_weights(data, kept) - QUERIES["y"]) ** 2


def without(ids):
    return np.setdiff1d(np.arange(N), ids)


# ---------------------------------------------------------------- counterfactuals


def test_effects_are_those_of_training_again_without_the_rows():
    sets = [np.array([4]), np.array([0, 7, 9, 21])]
    found = counterfactual.effects(*ASKED[:4], sets, NLL, QUERIES)
    want = np.stack([answers(without(ids)) - answers(np.arange(N)) for ids in sets])
    np.testing.assert_allclose(found.change, want, rtol=1e-3, atol=1e-5)
    with pytest.raises(UsageError, match="row ids 3 to 30 to leave out, of 30 rows"):
        counterfactual.effects(*ASKED[:4], [np.array([3, 30])], NLL, QUERIES)


def test_without_its_proponents_the_failure_falls_faster_than_without_random_rows():
    params = {"w": jnp.asarray(exact_weights(DATA), jnp.float32)}
    method = Method("exact", curvature=Operator("dense", "hessian", damping=1e-6), normalize="none")
    scores = methods.score(TASK, params, DATA, NLL, QUERIES, method).values
    found = counterfactual.removal_curve(*ASKED[:4], scores, NLL, QUERIES, shares=(0.1, 0.2), draws=2)
    assert found.sizes == (3, 6)
    order = np.argsort(-scores[:, 0], kind="stable")
    want = [(answers(without(order[:size])) - answers(np.arange(N))).mean() for size in (3, 6)]
    np.testing.assert_allclose(found.top, want, rtol=1e-3, atol=1e-5)
    assert (found.qld < 0).all()
    np.testing.assert_array_equal(found.qld, found.top - found.random)
    with pytest.raises(ShapeError, match=r"scores \[30, 4\]; one a row, \[30\]"):
        counterfactual.removal_curve(*ASKED[:4], np.zeros((N, Q)), NLL, QUERIES)


def test_a_tail_patch_is_one_step_on_the_rows():
    params, ids, rate = {"w": jnp.array([0.5, 0.1, -0.2])}, np.array([[0, 1], [2, 3], [4, 5], [6, 6]]), 0.1
    got = counterfactual.tail_patch(TASK, params, DATA, ids, NLL, QUERIES, rate)
    w = np.asarray(params["w"], float)
    for q, chosen in enumerate(ids):
        x, y = DATA["x"][chosen].astype(float), DATA["y"][chosen].astype(float)
        moved = w - rate * (((x @ w - y) @ x) / 2 + DECAY * w)
        f = [0.5 * (QUERIES["x"][q] @ p - QUERIES["y"][q]) ** 2 for p in (w, moved)]
        np.testing.assert_allclose(got[q], f[1] - f[0], rtol=1e-4, atol=1e-7)
    with pytest.raises(ShapeError, match=r"ids \[2, 2\] for 4 queries"):
        counterfactual.tail_patch(TASK, params, DATA, ids[:2], NLL, QUERIES, rate)


# ---------------------------------------------------------------- the judge


def test_lds_is_the_mean_rank_correlation_of_predicted_and_retrained(rng):
    kept = rng.random((12, N)) < 0.5
    values, truth = rng.normal(size=(N, Q)), rng.normal(size=(12, 2, Q))
    truth[:, :, 0] = 1.0  # a query whose truth does not vary says nothing
    found = judge.lds(values, Bank(kept, truth, "masked"))
    each = [stats.spearmanr([values[k, q].sum() for k in kept], truth[:, :, q].mean(1)).statistic for q in range(1, Q)]
    np.testing.assert_allclose(found.queries[1:], each, rtol=1e-12)
    assert np.isnan(found.queries[0])
    np.testing.assert_allclose(found.value, np.mean(each))
    assert found.low < found.value < found.high
    again = [stats.spearmanr(truth[:, 0, q], truth[:, 1, q]).statistic for q in range(1, Q)]
    np.testing.assert_allclose(found.agreement, np.mean(again))
    with pytest.raises(ShapeError, match=r"scores \[4, 30\] for a bank of 30 rows and 4 queries"):
        judge.lds(values.T, Bank(kept, truth, "masked"))


def test_the_ceiling_is_what_a_perfect_prediction_reaches(rng):
    signal = rng.normal(size=(4000, 1, 1))
    truth = signal + rng.normal(size=(4000, 2, 1))  # seeds correlate by 1/2
    agreement, ceiling = judge.noise_ceiling(Bank(np.ones((4000, 1), bool), truth, "masked"))
    perfect = stats.spearmanr(signal[:, 0, 0], truth[:, :, 0].mean(1)).statistic
    assert abs(agreement - 0.5) < 0.04
    assert abs(ceiling - perfect) < 0.02
    assert np.isnan(judge.noise_ceiling(Bank(np.ones((3, 1), bool), truth[:3, :1], "masked"))).all()


def test_calibration_is_the_line_through_the_origin(rng):
    predicted = rng.normal(size=(10, 3))
    found = judge.calibration(predicted, 2.5 * predicted)
    np.testing.assert_allclose([found.slope, found.low, found.high, found.correlation], [2.5, 2.5, 2.5, 1.0])
    noisy = judge.calibration(predicted, predicted + 0.1 * rng.normal(size=(10, 3)))
    assert noisy.low < noisy.slope < noisy.high
    with pytest.raises(ShapeError, match="of 2 or more removals was wanted"):
        judge.calibration(predicted[:1], predicted[:1])
    with pytest.raises(UsageError, match="every predicted change is 0"):
        judge.calibration(0 * predicted, predicted)


def test_the_interval_of_a_slope_knows_that_queries_share_a_retraining():
    """What a retraining changes by chance, it changes for all queries: of 95% intervals most hold the true slope."""
    held = 0
    for k in range(40):
        rng = np.random.default_rng(k)
        predicted = rng.normal(size=(30, 1)) + 0.3 * rng.normal(size=(30, 50))
        found = judge.calibration(predicted, predicted + rng.normal(size=(30, 1)))
        held += found.low <= 1 <= found.high
    assert held >= 32


def test_a_method_that_has_nothing_to_say_of_a_query_scores_nothing_there(rng):
    kept, truth = rng.random((12, N)) < 0.5, rng.normal(size=(12, 2, Q))
    values = np.zeros((N, Q))
    assert judge.lds(values, Bank(kept, truth, "masked"))[:3] == (0.0, 0.0, 0.0)
    values[:, 0] = rng.normal(size=N)
    found = judge.lds(values, Bank(kept, truth, "masked"))
    np.testing.assert_allclose(found.value, found.queries[0] / Q)
    none = judge.lds(values, Bank(kept, np.ones((12, 2, Q)), "masked"))
    assert np.isnan(none[:3]).all()


def test_on_a_convex_model_removals_change_f_as_predicted():
    """Few of 2,000 rows, left out: to first order slope 1."""
    many = rows(2000, 3)
    params = {"w": jnp.asarray(exact_weights(many), jnp.float32)}
    method = Method("exact", curvature=Operator("dense", "hessian", damping=1e-6), normalize="none")
    found = methods.score(TASK, params, many, NLL, QUERIES, method, each=True)
    sets = check.removed(400, 20)
    change = np.stack([answers(np.setdiff1d(np.arange(2000), ids), many) for ids in sets]) - answers(slice(None), many)
    line = check.calibrated(found, sets, counterfactual.Effects(np.zeros((1, Q)), change[:, None]))
    assert 0.97 < line.slope < 1.03
    assert line.correlation > 0.999


# ---------------------------------------------------------------- all together


def test_check_judges_every_method_and_meets_its_folder_again(tmp_path):
    names = ("auto", "grad_dot", "arnoldi", "trak", "random")
    found = check.check(ASKED, names, halves=8, removals=3, checkpoints=2, folder=tmp_path)
    by = {its.method: its for its in found.judgements}
    assert tuple(by) == names
    assert found.bank.values.shape == (8, 2, Q)
    assert found.agreement > 0.999  # convex: the seed is nothing
    assert by["auto"].said.endswith("(auto: the task has no outputs, so the empirical Fisher matrix)")
    assert by["auto"].lds.value > 0.8 > by["random"].lds.value
    assert 0.5 < by["auto"].calibration.slope < 2
    assert by["grad_dot"].calibration is None  # no units
    assert by["trak"].error.startswith("UsageError: the margin curvature needs")

    again = check.check(ASKED, ("auto",), halves=8, removals=3, checkpoints=2, folder=tmp_path)
    np.testing.assert_array_equal(again.bank.values, found.bank.values)
    assert again.judgements[0].lds.value == by["auto"].lds.value
    with pytest.raises(UnknownNameError, match="Did you mean 'ekfac'"):
        check.check(ASKED, ("ekfax",), halves=2)

    given = check.check(ASKED, ("auto", "datainf"), halves=8, checkpoints=2, damping=0.7, folder=tmp_path)
    assert all("damping 0.7 x mean eigenvalue" in its.said for its in given.judgements)
    assert given.judgements[0].said.endswith("(auto: the task has no outputs, so the empirical Fisher matrix)")
    with pytest.raises(UsageError, match=r"damping=0.7 was given, and none of grad_dot, random has any"):
        check.check(ASKED, ("grad_dot", "random"), halves=8, damping=0.7)


def test_a_damping_that_auto_cannot_use_is_an_error_of_that_judgement():
    """With outputs and six checkpoints auto takes SOURCE, which has none."""
    task = dataclasses.replace(
        TASK, outputs=lambda p, e: (e["x"] @ p["w"])[None], nll=lambda o, e: 0.5 * (o[0] - e["y"]) ** 2
    )
    asked, short = ASKED._replace(task=task), dataclasses.replace(RECIPE, epochs=24)
    run = record(task, asked.initial(0), DATA, short, 6)
    taken, why = methods.auto(task, run, DATA)
    assert methods.with_damping(methods.get(taken), 0.3) is methods.get(taken)
    found = check.judged("auto", asked, run, None, damping=0.3)
    assert "auto took" in found.error
    assert "no damping to set to 0.3" in found.error
    assert why in found.error


def test_what_was_trained_for_another_loss_is_trained_again(tmp_path):
    other = Task(lambda p, e: 2 * TASK.loss(p, e))
    one, two, again = (record(t, ASKED.initial(0), DATA, RECIPE, 3, folder=tmp_path) for t in (TASK, other, TASK))
    assert [its.steps for its in one] == [100, 100, 100]
    assert not np.array_equal(one[0].params["w"], two[0].params["w"])
    np.testing.assert_array_equal(one[0].params["w"], again[0].params["w"])
    assert len(record(TASK, ASKED.initial(0), DATA, dataclasses.replace(RECIPE, epochs=2), 2)) == 2


def test_scores_that_are_all_zero_are_judged(rng):
    flat = ASKED._replace(task=Task(lambda p, e: jnp.maximum(e["x"] @ p["w"] - 100, 0)), recipe=RECIPE)
    bank = Bank(rng.random((6, N)) < 0.5, rng.normal(size=(6, 2, Q)), "masked")
    sets = check.removed(N, 2)
    truth = counterfactual.Effects(np.zeros((2, Q)), np.ones((2, 2, Q)))
    found = check.judged("grad_dot", flat, [check.Checkpoint(ASKED.initial(0))], bank, (sets, truth))
    assert found.lds.value == 0.0
    assert found.calibration is None
    with pytest.raises(UsageError, match="a slope takes 2 removals"):
        check.check(ASKED, ("grad_dot",), removals=1)


def test_removals_are_of_one_row_to_a_tenth_of_them():
    sets = check.removed(100, 5)
    assert [len(ids) for ids in sets] == [1, 2, 3, 6, 10]
    assert all(len(set(ids.tolist())) == len(ids) for ids in sets)
    assert check.removed(100, 0) == []


def test_auto_takes_what_the_task_allows(monkeypatch):
    monkeypatch.setattr(methods, "LARGE", 2)
    big = ASKED.initial(0) | {"frozen": jnp.ones(5)}
    assert methods.auto(TASK, big, DATA)[0] == "logra"
    monkeypatch.setattr(methods, "LARGE", 3)  # what the loss does not use does not count
    known = Task(TASK.loss, outputs=lambda p, e: (e["x"] @ p["w"])[None])
    assert methods.auto(known, ASKED.initial(0), DATA)[0] == "ekfac"
    assert methods.auto(known, big, DATA)[0] == "ekfac"
    assert methods.auto(known, big, DATA, retain=DATA)[0] == "retain_cos"
    run = [check.Checkpoint(ASKED.initial(0), 0.1, 5)] * 3
    assert methods.auto(known, run, DATA)[0] == "source"
    assert methods.auto(known, [its._replace(steps=1) for its in run], DATA)[0] == "ekfac"
    words = Task(TASK.loss, outputs=lambda p, e: (e["x"] @ p["w"])[None, None], label=lambda e: e["y"])
    adam = [its._replace(optimizer=optax.adam(0.1).init(its.params)) for its in run]
    assert methods.auto(words, run, DATA)[0] == "trak"
    assert methods.auto(words, adam, DATA)[0] == "less"
    assert methods.auto(known, adam, DATA)[0] == "source"
    assert methods.auto(words, adam[:2], DATA)[0] == "ekfac"
    chosen, why = methods.auto(TASK, ASKED.initial(0), DATA)
    assert chosen.curvature.source.kind == "empirical"
    assert "no outputs" in why
    got = methods.score(TASK, ASKED.initial(1), DATA, NLL, QUERIES, "auto", each=True)
    want = methods.score(TASK, ASKED.initial(1), DATA, NLL, QUERIES, chosen, each=True)
    np.testing.assert_array_equal(got.values, want.values)
    assert isinstance(got, Scores)
    assert methods.of_index("auto", True) == "retain_cos"
    assert methods.of_index("auto", False) == "logra"
    assert methods.of_index("less", False) == "less"


OWN = """
import jax.numpy as jnp, numpy as np, uimjax as uj
def load():
    x = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
    rows = {"x": x, "y": x.sum(1)}
    loss = lambda p, e: 0.5 * (e["x"] @ p["w"] - e["y"]) ** 2
    return uj.Task(loss), lambda seed: {"w": jnp.full(3, 0.1 * seed)}, rows, uj.Measurement("loss", loss), rows
"""


def test_check_from_the_command_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    settings = "load: own:load\nhalves: 4\nremovals: 2\nmethods: [grad_dot, trak]\ntrain: {epochs: 2}\n"
    (tmp_path / "c.yaml").write_text(settings)
    monkeypatch.chdir(tmp_path)

    def run(*more):
        with pytest.raises(SystemExit) as ended:
            cli.main(["check", "c.yaml", *more])
        return ended.value.code, *capsys.readouterr()

    code, out, _ = run("--json")
    found = json.loads(out)
    assert code == 0
    assert found["halves"] == 4
    assert set(found["methods"]) == {"grad_dot", "trak"}
    assert found["methods"]["grad_dot"]["lds"] is not None
    assert "error" in found["methods"]["trak"]
    assert (tmp_path / "c.check" / "bank").is_dir()
    assert "4 halves x 2 trainings (rebatched), 24 queries" in run()[1]
    code, out, _ = run("--damping", "0.3", "--methods", "datainf", "--json")
    assert code == 0
    assert "damping 0.3 x mean eigenvalue" in json.loads(out)["methods"]["datainf"]["how"]
    assert run("--damping", "-1")[0] == 2
    code, _, err = run("--methods", "grad_dott")
    assert code == 2
    assert "Did you mean 'grad_dot'" in err


def test_the_table_has_the_strongest_first_and_says_what_failed(rng):
    kept = rng.random((8, N)) < 0.5
    bank = Bank(kept, rng.normal(size=(8, 2, Q)), "masked")
    weak, strong = (judge.lds(x, bank) for x in (rng.normal(size=(N, Q)), kept.T.astype(float) @ bank.values.mean(1)))
    line = judge.calibration(np.arange(1.0, 9), 2 * np.arange(1.0, 9))
    rows = (
        check.Judgement("failed", 0.1, error="UsageError: [no] outputs"),
        check.Judgement("weak", 1.0, weak, None, "as it is"),
        check.Judgement("strong", 2.0, strong, line, "damping [1e-4]"),
    )
    found = check.Checked(rows, bank, *judge.noise_ceiling(bank))
    console = Console(record=True, width=160, file=io.StringIO())
    judgements.show(found, console)
    text = console.export_text()
    assert text.index("strong") < text.index("weak") < text.index("failed")
    for said in ("8 halves x 2 trainings (masked), 4 queries", "2.00 (2.00 to 2.00)", "[no] outputs", "damping [1e-4]"):
        assert said in text
    document = judgements.document(found)
    assert document["methods"]["failed"] == {"seconds": 0.1, "error": "UsageError: [no] outputs"}
    assert document["methods"]["strong"]["calibration"]["slope"] == 2.0
    json.dumps(document, allow_nan=False)
