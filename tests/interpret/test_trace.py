"""Asking: filters, re-ranking, and what was found as a table."""

import builtins
import gc

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import uimjax as uj
from tests.interpret.test_index import made
from uimjax.errors import MismatchError, ShapeError, UsageError
from uimjax.interpret import base, methods, trace
from uimjax.interpret.hits import Trace


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("i")
    task, params, data, measurement, queries = made(np.random.default_rng(0), 50)
    uj.build_index(task, params, data, folder, sketch=uj.Sketch(3), batch_size=8, shard_rows=10, coding="int4")
    return folder, task, params, data, measurement, queries


# ---------------------------------------------------------------- filters


def test_rows_that_are_left_out_are_neither_found_nor_read(case, monkeypatch):
    kept = np.zeros(50, bool)
    kept[[3, 4, 41, 44, 47]] = True
    everything = uj.trace(*case, k=50)
    read = []
    whole = trace.Index.shard
    monkeypatch.setattr(trace.Index, "shard", lambda self, entry: read.append(entry.shard) or whole(self, entry))
    found = uj.trace(*case, k=20, where=kept)
    assert read == [0, 4]
    want = [i for i in everything.proponents[0] if kept[i]]
    np.testing.assert_array_equal(found.proponents[0], want)
    np.testing.assert_array_equal(found.opponents[0], want[::-1])
    at = [list(everything.proponents[0]).index(i) for i in want]
    np.testing.assert_allclose(found.proponent_scores[0], everything.proponent_scores[0][at], rtol=1e-6)
    with pytest.raises(ShapeError, match=r"where is int64\[50\]; bool\[50\]"):
        uj.trace(*case, where=np.arange(50))
    with pytest.raises(UsageError, match="leaves no row"):
        uj.trace(*case, where=np.zeros(50, bool))


@pytest.mark.parametrize("each", [False, True])
def test_many_questions_are_taken_a_few_at_a_time(case, monkeypatch, each):
    whole = trace.question(*case, each=each).vectors
    monkeypatch.setattr(base, "TOGETHER", 2)
    assert len(jax.tree.leaves(case[-1])[0]) % 2 == 1, "the last ones are padded"
    np.testing.assert_allclose(trace.question(*case, each=each).vectors, whole, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- re-ranking


@pytest.mark.parametrize("name", ["grad_cos", "grad_dot"])
def test_candidates_are_ranked_by_their_whole_gradients(case, name):
    _, task, params, data, measurement, queries = case
    gradients = {}
    for what, loss, rows in (("rows", task.loss, data), ("queries", measurement.fun, queries)):
        found = jax.vmap(jax.grad(loss), (None, 0))(params, rows)
        count = len(jax.tree.leaves(rows)[0])
        flat = np.concatenate([np.asarray(x, np.float64).reshape(count, -1) for x in jax.tree.leaves(found)], 1)
        gradients[what] = flat / np.linalg.norm(flat, axis=1, keepdims=True) if name == "grad_cos" else flat
    exact = -gradients["queries"] @ gradients["rows"].T
    rough = trace.top(trace.ask(*case, name, each=True), 15)
    found = uj.trace(*case, name, k=6, each=True, rerank=15)
    for q in range(3):
        for ids, scores, among, sign in (
            (found.proponents, found.proponent_scores, rough.proponents, 1),
            (found.opponents, found.opponent_scores, rough.opponents, -1),
        ):
            best = sorted(among[q], key=lambda i, q=q, sign=sign: -sign * exact[q, i])[:6]
            np.testing.assert_array_equal(ids[q], best)
            np.testing.assert_allclose(scores[q], exact[q, best], rtol=1e-4, atol=1e-6)
    all_of_them = uj.trace(*case, name, k=6, each=True, rerank=50)
    np.testing.assert_array_equal(all_of_them.proponents, np.argsort(-exact, axis=1, kind="stable")[:, :6])
    assert found.how["reranked"]["by"] == "whole gradients"
    assert "re-ranked by whole gradients" in found.method
    assert found.how["reranked"]["rows"] == len(set(rough.proponents.ravel()) | set(rough.opponents.ravel()))


def test_with_a_curvature_of_rows_it_is_the_coding_that_is_undone(case, tmp_path):
    """logra's curvature is of sketched rows: re-ranked are those rows before coding, by the same curvature."""
    folder, task, params, data, measurement, queries = case
    found = uj.trace(*case, "logra", k=50, each=True, rerank=50)
    asked = trace.ask(*case, "logra", each=True)
    plain = uj.build_index(task, params, data, tmp_path, sketch=uj.Sketch(3), batch_size=8)
    rows = np.asarray(plain.vectors(next(plain.shards()))) * next(plain.shards()).norm[:, None]
    want = np.asarray(asked.directions) @ rows.T
    np.testing.assert_array_equal(found.proponents, np.argsort(-want, axis=1, kind="stable"))
    np.testing.assert_allclose(found.proponent_scores, -np.sort(-want, axis=1), rtol=1e-4, atol=1e-6)
    assert "sketched rows before coding" in found.method
    assert methods.get("logra").of_rows is not None


def test_rows_of_another_index_are_not_re_ranked(case):
    folder, task, params, data, measurement, queries = case
    few = jax.tree.map(lambda x: x[:20], data)
    with pytest.raises(MismatchError, match="all 50 .* were wanted, and 20 were given"):
        uj.trace(folder, task, params, few, measurement, queries, rerank=40)
    turned = jax.tree.map(lambda x: x[::-1], data)
    with pytest.raises(MismatchError, match="rows 0 to 49 are not those"):
        uj.trace(folder, task, params, turned, measurement, queries, rerank=40)
    with pytest.raises(UsageError, match="5 candidates cannot give the 20 strongest"):
        uj.trace(*case, rerank=5)


# ---------------------------------------------------------------- tables


def test_a_trace_is_a_table_with_the_rows_metadata(case, tmp_path):
    found = uj.trace(*case, k=4, each=True)
    source = np.array([f"source {i % 3}" for i in range(50)])
    made = found.table({"source": source})
    assert made.column_names == ["query", "side", "rank", "row_id", "score", "source"]
    assert made.num_rows == 3 * 4 * 2
    for line in made.to_pylist():
        ids, scores = (
            (found.proponents, found.proponent_scores)
            if line["side"] == "proponent"
            else (found.opponents, found.opponent_scores)
        )
        assert ids[line["query"], line["rank"] - 1] == line["row_id"]
        assert scores[line["query"], line["rank"] - 1] == np.float32(line["score"])
        assert line["source"] == source[line["row_id"]]
    found.to_parquet(tmp_path / "t.parquet", pa.table({"source": source}))
    back = pq.read_table(tmp_path / "t.parquet")
    assert back.to_pylist() == made.to_pylist()
    assert back.schema.metadata[b"method"].decode() == found.method
    assert found.to_pandas().groupby("side").size().to_dict() == {"opponent": 12, "proponent": 12}
    with pytest.raises(UsageError, match=r"metadata has columns \['score'\]"):
        found.table({"score": np.zeros(50)})
    with pytest.raises(ShapeError, match="metadata holds 2 rows"):
        found.table({"source": source[:2]})


def test_places_that_nothing_filled_are_no_lines():
    ids, scores = np.array([[5, -1]]), np.array([[0.5, -np.inf]])
    found = Trace(ids, scores, ids, -scores, "m", "u")
    assert found.table()["row_id"].to_pylist() == [5, 5]


def test_sql(case, monkeypatch):
    found = uj.trace(*case, k=4, each=True)
    pytest.importorskip("duckdb", reason="SQL takes DuckDB, an extra")
    made = found.sql("select side, count(*) as n, max(score) as best from trace group by side order by side")
    assert made["n"].to_pylist() == [12, 12]
    assert made["best"].to_pylist()[1] == np.float32(found.proponent_scores.max())
    real = builtins.__import__

    def without(name, *args, **kw):
        if name == "duckdb":
            raise ImportError(name)
        return real(name, *args, **kw)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"uimjax\[sql\]"):
        found.sql("select 1")


# ---------------------------------------------------------------- what is kept while an index is open


def test_the_curvature_of_an_open_index_is_measured_once_for_all_its_questions(case, monkeypatch):
    folder, *rest = case
    calls, whole = [], trace.sketched.curvature
    monkeypatch.setattr(trace.sketched, "curvature", lambda *args: calls.append(args[0]) or whole(*args))
    index = uj.open_index(folder)
    first = trace.score_all(trace.ask(index, *rest, "trackstar", each=True)).values
    for name in ("logra", "trackstar"):
        again = trace.score_all(trace.ask(index, *rest, name, each=True)).values
    np.testing.assert_array_equal(again, first)
    assert len(calls) == 1
    fresh = trace.score_all(trace.ask(uj.open_index(folder), *rest, "trackstar", each=True)).values
    np.testing.assert_array_equal(fresh, first)
    assert len(calls) == 2
    held = len(trace._CURVED)
    del index
    gc.collect()
    assert len(trace._CURVED) < held
