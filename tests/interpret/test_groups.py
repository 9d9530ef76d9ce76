"""Scores added up by group, and the null band of shuffled questions."""

import jax
import numpy as np
import pyarrow as pa
import pytest

import uimjax as uj
from tests.interpret.test_index import made
from uimjax import steps
from uimjax.errors import ShapeError, UsageError
from uimjax.interpret import groups, null, trace


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("i")
    task, params, data, measurement, queries = made(np.random.default_rng(0), 50)
    uj.build_index(task, params, data, folder, sketch=uj.Sketch(3), batch_size=8, shard_rows=10)
    return folder, task, params, data, measurement, queries


@pytest.fixture(scope="module")
def whole(case):
    """Every row's score for each query, `[N, Q]`."""
    return {
        name: trace.score_all(trace.ask(*case, name, each=True)).values.astype(np.float64)
        for name in ("grad_cos", "logra")
    }


# ---------------------------------------------------------------- groups


@pytest.mark.parametrize("name", ["grad_cos", "logra"])
def test_scores_of_a_source_add_up(case, whole, name):
    labels = [None if i % 7 == 0 else f"s{i % 3}" for i in range(50)]
    found = uj.totals(*case, labels, name, each=True)
    for g, source in enumerate(found.names):
        mine = np.array([label == source for label in labels])
        values = whole[name][mine]
        assert found.members[g] == mine.sum()
        np.testing.assert_allclose(found.total[:, g], values.sum(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.mean[:, g], values.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.error[:, g], values.std(0, ddof=1) / np.sqrt(mine.sum()), rtol=1e-4)
    assert sorted(found.names) == ["s0", "s1", "s2"]
    lines = found.table().to_pylist()
    assert len(lines) == 9
    assert [x["group"] for x in lines[:3]] == [found.names[g] for g in np.argsort(-found.mean[0])]
    assert lines[0]["mean"] == found.mean[0].max()


def test_groups_do_not_depend_on_shards(case, tmp_path):
    _, *rest = case
    uj.build_index(rest[0], rest[1], rest[2], tmp_path, sketch=uj.Sketch(3), batch_size=8, shard_rows=33)
    one, other = (uj.totals(folder, *rest, np.arange(50) // 4) for folder in (case[0], tmp_path))
    np.testing.assert_allclose(one.total, other.total, rtol=1e-5, atol=1e-6)
    assert one.names == other.names == list(range(13))


def test_windows_of_steps_count_a_row_each_time_it_was_seen(case, whole):
    recipe = steps.Recipe(epochs=3, batch_size=8, seed=5)
    seen = steps.seen(recipe, 50)
    assert seen.shape == (21, 8)
    for epoch in range(3):
        mine = seen[7 * epoch : 7 * (epoch + 1)].ravel()
        np.testing.assert_array_equal(np.sort(mine[mine >= 0]), np.arange(50))
    found = uj.totals(*case, groups.step_windows(seen, 4), each=True)
    assert found.names == [0, 4, 8, 12, 16, 20]
    for g, first in enumerate(found.names):
        ids = [i for step in seen[first : first + 4] for i in step if i >= 0]
        assert found.members[g] == len(ids)
        np.testing.assert_allclose(found.total[:, g], sum(whole["grad_cos"][i] for i in ids), rtol=1e-5, atol=1e-6)


def test_the_order_said_to_be_seen_is_the_order_trained_in():
    """SGD without momentum on `f = w_i` moves the entry of a row when it is seen: after one epoch's first steps."""
    data = np.arange(6)
    recipe = steps.Recipe(epochs=1, batch_size=2, learning_rate=1.0, optimizer="sgd", momentum=0.0, schedule="cosine")
    from uimjax.training import fit

    fitted = fit(uj.Task(lambda w, i: w[i]), np.zeros(6, np.float32), data, recipe)
    moved = -np.asarray(fitted.params)  # the later, the slower: the cosine falls
    order = steps.seen(recipe, 6)
    assert all(moved[order[k]].min() > moved[order[k + 1]].max() for k in range(2))


def test_of_one_row_there_is_no_error_and_of_nobody_no_mean(case, whole):
    found = uj.totals(*case, groups.Groups(["one", "none", "rest"], np.arange(50), np.array([0] + [2] * 49)))
    assert found.members.tolist() == [1, 0, 49]
    assert np.isnan(found.error[0, :2]).all()
    assert np.isnan(found.mean[0, 1])
    assert found.mean[0, 0] == pytest.approx(trace.score_all(trace.ask(*case)).values[0, 0], rel=1e-5)
    assert found.table()["group"].to_pylist()[-1] == "none"
    assert whole


def test_groups_that_do_not_fit_are_refused(case):
    with pytest.raises(ShapeError, match="20 labels for an index of 50 rows"):
        uj.totals(*case, ["a"] * 20)
    with pytest.raises(ShapeError, match=r"one plain value a row was wanted"):
        uj.totals(*case, pa.array([[1]] * 50))
    with pytest.raises(UsageError, match="plain value"):
        uj.totals(*case, [object()] * 50)
    with pytest.raises(ShapeError, match="rows 0 to 60, and the index has 50"):
        uj.totals(*case, groups.step_windows(np.array([[0, 60]]), 1))
    with pytest.raises(ShapeError, match=r"seen is float64\[2, 2\]"):
        groups.step_windows(np.ones((2, 2)), 1)
    with pytest.raises(UsageError, match="windows of 0 steps"):
        groups.step_windows(np.ones((2, 2), int), 0)


# ---------------------------------------------------------------- the null band


def test_shuffling_takes_the_order_and_nothing_else():
    rng = np.random.default_rng(0)
    rows = {
        "tokens": rng.integers(0, 99, (4, 12)),
        "twin": rng.integers(0, 99, (4, 12)),
        "mask": rng.random((4, 12)) < 0.5,
        "label": np.arange(4),
        "image": rng.normal(size=(4, 5, 7)).astype(np.float32),
    }
    got = null.shuffled(rows, 0)
    for name in ("mask", "label"):
        np.testing.assert_array_equal(got[name], rows[name])
    for name in ("tokens", "twin"):  # words stay among words, padding where it was
        np.testing.assert_array_equal(got[name][~rows["mask"]], rows[name][~rows["mask"]])
    for name in ("tokens", "twin", "image"):
        assert got[name].dtype == rows[name].dtype
        assert (got[name] != rows[name]).any()
        flat = (x.reshape(4, -1) for x in (got[name], rows[name]))
        np.testing.assert_array_equal(*(np.sort(x, axis=1) for x in flat))
    pairs = [{tuple(p) for p in zip(x["tokens"][1], x["twin"][1], strict=True)} for x in (rows, got)]
    assert pairs[0] == pairs[1]  # twins stay twins
    np.testing.assert_array_equal(null.shuffled(rows, 0)["image"], got["image"])
    assert (null.shuffled(rows, 1)["image"] != got["image"]).any()
    with pytest.raises(UsageError, match="no order to lose"):
        null.shuffled({"label": np.arange(4), "mask": np.ones((4, 3), bool)}, 0)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("name", ["grad_cos", "grad_dot"])
def test_a_hit_is_as_surprising_as_it_is_rare_among_shuffled_questions(case, name, each):
    folder, task, params, data, measurement, queries = case
    plain = uj.trace(*case, name, k=5, each=each)
    found = uj.trace(*case, name, k=5, each=each, null=30)
    np.testing.assert_array_equal(found.proponents, plain.proponents)
    np.testing.assert_allclose(found.opponent_scores, plain.opponent_scores, rtol=1e-5)
    vectors = np.asarray(trace.question(*case, each=each).vectors)
    lines = found.table().to_pylist()
    for q, vector in enumerate(vectors):  # each query against shuffled questions as long as itself, asked one by one
        best = []
        for b in range(30):
            rows = null.shuffled(queries, b // (3 if each else 1))
            asked = np.asarray(trace.question(folder, task, params, data, measurement, rows, True).vectors)
            one = asked[b % 3] if each else asked.mean(0)
            one = one * (np.linalg.norm(vector) / np.linalg.norm(one))
            question = trace.question(*case, each=True)._replace(vectors=one[None])
            best.append(trace.score_all(trace.by(question, name)).values)
        largest, smallest = (np.array([end(values) for values in best]) for end in (np.max, np.min))
        for line in (line for line in lines if line["query"] == q):
            beaten = (
                largest >= line["score"] - 1e-6 if line["side"] == "proponent" else smallest <= line["score"] + 1e-6
            )
            assert line["p"] == pytest.approx((1 + beaten.sum()) / 31)
        want = (np.quantile(smallest, 0.1), np.quantile(largest, 0.9))
        np.testing.assert_allclose(found.null.band(0.1)[q], want, rtol=1e-4)
    assert "p" not in plain.table().column_names


@pytest.mark.parametrize("name", ["grad_cos", "grad_dot"])
def test_p_is_uniform_for_questions_that_are_themselves_shuffled(case, name):
    """Calibrated: among questions without content, as many have p <= a as a says."""
    folder, task, params, data, measurement, _ = case
    rows = jax.tree.map(lambda x: x[:40], data)
    p = []
    for seed in range(30, 35):  # the band's own are 0 to 9
        asked = null.shuffled(rows, seed)
        found = uj.trace(folder, task, params, data, measurement, asked, name, k=1, each=True, null=400)
        p.append(found.null.p(found.proponent_scores, 1))
    assert abs(np.mean(np.array(p) <= 0.5) - 0.5) < 0.12
    assert abs(np.mean(np.array(p) <= 0.05) - 0.05) < 0.05


def test_rows_may_stand_for_questions_without_content(case):
    folder, task, params, data, measurement, queries = case
    others = jax.tree.map(lambda x: x[20:], data)
    found = uj.trace(*case, k=3, each=True, null=others)
    assert len(found.null.largest) == 30
    assert len(uj.trace(*case, k=3, null=others).null.largest) == null.DRAWS
    with pytest.raises(UsageError, match="3 null queries for a question of 3 together"):
        uj.trace(*case, null=queries)
    with pytest.raises(UsageError, match="null band of -1"):
        uj.trace(*case, null=-1)
    with pytest.raises(UsageError, match="take one of both"):
        uj.trace(*case, null=5, rerank=20)
