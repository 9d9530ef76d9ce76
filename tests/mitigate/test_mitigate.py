"""Unlearning losses against their formulas, edits, the sealed truth, and the verdict's refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uimjax.audit.scorecard import scorecard
from uimjax.corpora.truth import Truth, write_truth
from uimjax.errors import UsageError
from uimjax.mitigate import edit, oracle, proof, unlearning
from uimjax.mitigate.proof import Outcome
from uimjax.mitigate.relearning import Relearning, relearn
from uimjax.steps import Recipe
from uimjax.task import Task

TASK = Task(lambda w, e: jnp.square(e["x"] @ w - e["y"]))


def rows(rng):
    x = rng.normal(size=(40, 3)).astype(np.float32)
    y = x @ np.array([1.0, -2.0, 0.5], np.float32)
    y[:4] += 6.0
    return {"x": x, "y": y}


@pytest.mark.parametrize("loss", ["npo", "grad_diff"])
def test_unlearning_raises_the_forget_loss_and_keeps_the_rest(loss, rng):
    data = rows(rng)
    w = jnp.asarray(np.linalg.lstsq(data["x"], data["y"], rcond=None)[0])
    choice = unlearning.Unlearning(loss, steps=40, heal_steps=80, learning_rate=1e-2, gamma=0.1)
    new = unlearning.unlearn(TASK, w, data, np.arange(4), choice, seed=0).params

    def mean(w, ids):
        return float(np.mean((data["x"][ids] @ np.asarray(w) - data["y"][ids]) ** 2))

    assert mean(new, np.arange(4)) > mean(w, np.arange(4))
    assert mean(new, np.arange(4, 40)) < mean(w, np.arange(4, 40))


def test_forgetting_nothing_everything_or_the_unknown_is_refused(rng):
    data = rows(rng)
    for ids in ([], [40], [-1], list(range(40))):
        with pytest.raises(UsageError, match="of 40 rows"):
            unlearning.unlearn(TASK, jnp.zeros(3), data, np.array(ids), unlearning.Unlearning(), 0)


def test_drop_and_fine_tune_forgets_by_not_seeing(rng):
    data = rows(rng)
    w = jnp.asarray(np.linalg.lstsq(data["x"], data["y"], rcond=None)[0])
    made = edit.Edit("traced", (0, 1, 2, 3), "test")
    new = edit.apply_edit(TASK, w, data, made, Recipe(60, 8, 3e-2, weight_decay=0.0), 0)
    np.testing.assert_allclose(new, [1.0, -2.0, 0.5], atol=0.05)


def test_edits_are_files_and_their_rules_are_plain(tmp_path):
    scores = np.array([0.1, 3.0, 2.0, 3.0, -1.0])
    traced = edit.traced_edit(scores, 3, "grad_cos")
    assert traced.rows == (1, 3, 2)
    assert edit.budget_rows(0.01, 1500) == 15
    assert edit.budget_rows(0.01, 10) == 1
    blind = edit.random_edit(100, 15, 0)
    assert len(set(blind.rows)) == 15
    assert blind.rows != edit.random_edit(100, 15, 1).rows
    edit.write_edit(tmp_path / "e.json", traced)
    assert edit.read_edit(tmp_path / "e.json") == traced
    with pytest.raises(UsageError, match="lower the budget"):
        edit.traced_edit(scores, 5, "grad_cos")


def test_truth_is_sealed_until_the_edit_exists(tmp_path):
    write_truth(tmp_path / "truth.json", Truth(np.array([1, 3]), np.array([2])))
    decided = tmp_path / "edit-traced.json"
    scores = {"good": np.array([0, 5.0, 1, 4, 0]), "fooled": np.array([0, 5.0, 6, 1, 0])}
    with pytest.raises(UsageError, match="stays sealed"):
        oracle.oracle_edit(tmp_path / "truth.json", decided)
    with pytest.raises(UsageError, match="stays sealed"):
        scorecard(tmp_path / "truth.json", decided, scores)
    edit.write_edit(decided, edit.traced_edit(scores["good"], 2, "good"))
    assert oracle.oracle_edit(tmp_path / "truth.json", decided).rows == (1, 3)
    base, found = scorecard(tmp_path / "truth.json", decided, scores)
    assert base == 0.4
    assert found["good"] == (1.0, 1.0, 0)
    np.testing.assert_allclose(found["fooled"].ap, (1 / 2 + 2 / 3) / 2)
    assert found["fooled"][1:] == (0.5, 1)


def verdict(traced, oracle, random, utility=0.98, repeats=3, before=0.9, twin=0.0):
    arms = [[Outcome(p, utility)] * repeats for p in (traced, oracle, random)]
    return proof.judge(twin, Outcome(before, 0.98), *arms)


def test_a_verdict_needs_its_controls():
    assert verdict(0.02, 0.0, 0.9).says == "fixed"
    assert verdict(0.05, -0.3, 0.9).says == "fixed", "beyond the clean twin nothing is left to mend"
    assert "closes 50% of the gap too" in verdict(0.02, 0.0, 0.45).says
    assert "the traced rows close 50%" in verdict(0.45, 0.0, 0.9).says
    assert "even the planted rows close only" in verdict(0.4, 0.4, 0.9).says
    assert "points of accuracy" in verdict(0.02, 0.0, 0.9, utility=0.95).says
    assert "at least 3 are needed" in verdict(0.02, 0.0, 0.9, repeats=2).says
    assert "no failure to fix" in verdict(0.0, 0.0, 0.0, before=0.05).says
    with pytest.raises(UsageError, match="the random arm"):
        proof.judge(0.0, Outcome(0.9, 1.0), [Outcome(0, 1)], [Outcome(0, 1)], [])
    np.testing.assert_allclose(verdict(0.3, 0.0, 0.9).closed_traced, 2 / 3)


def test_the_seed_of_an_edit_reaches_both_kinds(rng):
    data, made = rows(rng), edit.Edit("traced", (0, 1), "test")
    for how in (Recipe(2, 8, 1e-2), unlearning.Unlearning(steps=3, heal_steps=3)):
        one, two = (np.asarray(edit.apply_edit(TASK, jnp.ones(3), data, made, how, s)) for s in (0, 1))
        assert not np.array_equal(one, two)


def test_an_edit_that_names_unknown_rows_is_refused_by_both_kinds(rng):
    data = rows(rng)
    for how in (Recipe(1, 8, 1e-2), unlearning.Unlearning(steps=1, heal_steps=0)):
        for ids in ((0, 40), (0, -1), (3, 3)):
            with pytest.raises(UsageError, match="row ids in the edit"):
                edit.apply_edit(TASK, jnp.ones(3), data, edit.Edit("traced", ids, "test"), how, 0)


@pytest.mark.parametrize("loss", ["npo", "dpo"])
def test_ids_that_only_pad_are_never_drawn(loss, rng, monkeypatch):
    data, others = rows(rng), {name: x[:5] for name, x in rows(np.random.default_rng(5)).items()}
    choice = unlearning.Unlearning(loss, steps=12, heal_steps=6, learning_rate=1e-2)
    found = []
    for few in (1, 64):  # five ids are padded to 8, and to 64
        monkeypatch.setattr(unlearning, "FEW", few)
        more = {"others": others} if loss == "dpo" else {}
        made = unlearning.unlearn(TASK, jnp.ones(3), data, np.array([3, 1, 9, 30, 12]), choice, seed=2, **more)
        found.append(np.asarray(made.params))
    assert (found[0] == found[1]).all()


def test_relearning_is_adamw_on_rows_drawn_from_those_that_are_known(rng):
    data, how = rows(rng), Relearning(steps=4, batch_size=6, learning_rate=0.05)
    ids = np.array([7, 2, 30])
    found = np.asarray(relearn(TASK, jnp.ones(3), data, ids, how, seed=3))
    w, first, second = np.ones(3), np.zeros(3), np.zeros(3)
    for step, key in enumerate(jax.random.split(jax.random.key(3), 4), 1):
        some = ids[np.asarray(jax.random.choice(key, 3, (6,)))]
        x, y = data["x"][some].astype(float), data["y"][some].astype(float)
        g = 2 * x.T @ (x @ w - y) / 6
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        w = w - 0.05 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    np.testing.assert_allclose(found, w, rtol=1e-4)
    for bad in ([], [40], [3, 3]):
        with pytest.raises(UsageError, match="to learn again, of 40"):
            relearn(TASK, jnp.ones(3), data, np.array(bad, int))
    with pytest.raises(UsageError, match="learning rate above 0"):
        Relearning(learning_rate=0.0)


def test_a_row_that_counts_less_pulls_less(rng):
    data, made = rows(rng), edit.Edit("traced", (0, 1, 2, 3), "test")
    how = Recipe(60, 8, 3e-2, weight_decay=0.0)
    made_with = lambda w: np.asarray(edit.apply_edit(TASK, jnp.zeros(3), data, made, how, 0, weight=w))  # noqa: E731
    off = [float(np.abs(made_with(w) - [1, -2, 0.5]).max()) for w in (0.0, 0.1, 0.5, 0.9)]
    assert max(off[:2]) < off[2] < off[3], off
    assert off[0] != off[1]
