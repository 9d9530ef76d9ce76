"""The approximate index: near the exact answer, its recall stated, and nothing stale."""

import builtins

import jax
import numpy as np
import pytest

import uimjax as uj
from tests.interpret.test_index import made
from uimjax.errors import CorruptError, MismatchError, MissingFileError, UsageError
from uimjax.interpret import ann

pytest.importorskip("usearch", reason="an approximate index takes usearch, an extra")


@pytest.fixture
def case(tmp_path):
    task, params, data, measurement, queries = made(np.random.default_rng(0), 300)
    uj.build_index(task, params, data, tmp_path, sketch=uj.Sketch(3), batch_size=20, shard_rows=64)
    return tmp_path, task, params, data, measurement, queries


def test_it_finds_what_the_exact_index_finds_and_says_how_much(case):
    with pytest.raises(MissingFileError, match="uimjax index ann"):
        uj.trace(*case, ann=True)
    made = ann.build_ann(case[0])
    assert made["rows"] == 300
    assert made["asked"] == 256
    for name in ("grad_cos", "retain_cos"):
        retain = jax.tree.map(lambda x: x[200:205], case[3]) if name == "retain_cos" else None
        exact, near = (uj.trace(*case, name, k=20, each=True, retain=retain, ann=a) for a in (False, True))
        for side in ("proponents", "opponents"):
            pairs = zip(getattr(exact, side), getattr(near, side), strict=True)
            shared = [len(np.intersect1d(*pair)) / 20 for pair in pairs]
            assert np.mean(shared) > 0.95
        np.testing.assert_allclose(near.proponent_scores, exact.proponent_scores, rtol=5e-3, atol=2e-3)
        np.testing.assert_allclose(near.opponent_scores, exact.opponent_scores, rtol=5e-3, atol=2e-3)
        assert f"approximate (recall@20 {made['recall']:.3f}, of opp" in near.method
    ranked = [uj.trace(*case, k=5, rerank=60, ann=a).proponents for a in (False, True)]
    np.testing.assert_array_equal(*ranked)


def test_recall_is_what_brute_force_says(case):
    made = ann.build_ann(case[0], connectivity=2, expansion=4)  # so poor that it misses
    index = uj.open_index(case[0])
    rows = np.concatenate([np.asarray(index.vectors(shard)) for shard in index.shards()]).astype(np.float64)
    ids = np.unique(np.linspace(0, 299, 256).astype(int))
    graph = ann._library().Index.restore(str(case[0] / ann.GRAPH))
    graph.expansion_search = 4
    found = []
    for i in ids:
        order = [j for j in np.argsort(-(rows @ rows[i]), kind="stable") if j != i][:20]
        near = [j for j in graph.search(rows[i].astype(np.float32), 21).keys.tolist() if j != i][:20]
        found.append(len(set(order) & set(near)) / 20)
    assert made["recall"] == pytest.approx(np.mean(found), abs=0.02)
    assert made["recall"] < 0.999


def test_what_it_cannot_answer_and_what_is_stale_is_refused(case, monkeypatch):
    folder, task, params, data, *_ = case
    ann.build_ann(folder)
    for name in ("grad_dot", "logra"):
        with pytest.raises(UsageError, match="no cosine with the stored rows"):
            uj.trace(*case, name, ann=True)
    for more in ({"where": np.ones(300, bool)}, {"null": 5}):
        with pytest.raises(UsageError, match="asks all rows"):
            uj.trace(*case, ann=True, **more)
    graph = folder / ann.GRAPH
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptError, match=r"ann.usearch differs"):
        uj.trace(*case, ann=True)
    ann.build_ann(folder)
    uj.append_index(task, params, jax.tree.map(lambda x: x[:7] + 1, data), folder)
    with pytest.raises(MismatchError, match="of other rows"):
        uj.trace(*case, ann=True)
    whole = builtins.__import__

    def without(name, *args):
        if name == "usearch":
            raise ImportError(name)
        return whole(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'uimjax\[ann\]'"):
        ann.build_ann(folder)
