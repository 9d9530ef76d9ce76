"""Agreement of scores with influence: against scipy and resamples taken one by one, its refusals, and end to end."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import uimjax as uj
from uimjax import steps, training
from uimjax.cli import parser
from uimjax.commands.dynamics import dynamics
from uimjax.curvature.kronecker import Kronecker
from uimjax.curvature.source import Source
from uimjax.errors import DataError, MismatchError, ShapeError, UimError, UnknownNameError, UsageError
from uimjax.interpret.self_influence import measure, self_influence
from uimjax.understand.dynamics import reading
from uimjax.understand.dynamics.scoring import Score
from uimjax.understand.dynamics.table import Table

N = 40


def made(ids=None, **scores):
    """A table of scores alone; a value and its direction."""
    held = {name: Score(np.asarray(v, float), name, way) for name, (v, way) in scores.items()}
    return Table(np.arange(N) if ids is None else np.asarray(ids), None, None, held, None, None, {})


@pytest.fixture
def table(rng):
    y = rng.normal(size=N)
    return y, made(
        loss=(y + 0.5 * rng.normal(size=N), 1), aum=(-y + 0.5 * rng.normal(size=N), -1),
        forgetting=(np.round(y), 1), variability=(rng.normal(size=N), 0), constant=(np.ones(N), 1),
    )  # fmt: skip


def test_correlations_are_scipys_and_turned_to_suspicion(table):
    y, its = table
    found = uj.dynamics.agreement(its, y)
    assert found.names == list(its.scores)
    for name, value in zip(found.names[:-1], found.spearman, strict=False):
        score = its.scores[name]
        assert value == pytest.approx(stats.spearmanr(score.values * (score.suspicious or 1), y)[0], abs=1e-12)
    assert (found.spearman[:3] > 0.5).all()
    assert np.isnan([x[-1] for x in (found.spearman, found.low, found.high)]).all()
    assert found.overlap[-1] == pytest.approx(found.chance[-1])  # all tied: as by chance
    assert (found.both, found.k, found.examples.tolist(), found.unknown.tolist()) == (N, 4, [N] * 5, [0] * 5)


def test_the_interval_is_that_of_resamples_ranked_one_by_one(table):
    y, its = table
    found = uj.dynamics.agreement(its, y, names=["forgetting", "aum"], draws=200, level=0.9, seed=3)
    often = np.random.default_rng(3).multinomial(N, np.full(N, 1 / N), size=200)
    for k, name in enumerate(found.names):
        x = its.scores[name].values * its.scores[name].suspicious
        slow = [stats.spearmanr(np.repeat(x, w), np.repeat(y, w))[0] for w in often]
        np.testing.assert_allclose([found.low[k], found.high[k]], np.quantile(slow, [0.05, 0.95]), atol=1e-12)
    assert found.band == "90% bootstrap interval over examples"


def test_the_interval_covers_as_often_as_it_says(rng):
    """Of normal pairs with correlation r, Spearman's is 6 / pi arcsin(r / 2)."""
    true, hits = 6 / np.pi * np.arcsin(0.25), 0
    for _ in range(200):
        y = rng.normal(size=N)
        x = 0.5 * y + np.sqrt(0.75) * rng.normal(size=N)
        found = uj.dynamics.agreement(made(loss=(x, 1)), y, draws=200)
        hits += found.low[0] <= true <= found.high[0]
    assert 0.88 <= hits / 200 <= 0.99


def test_the_overlap_its_chance_and_p_are_those_of_all_orders():
    y = np.arange(N, dtype=float)
    x = y.copy()
    x[[37, 38, 39]] = -1  # one of the four largest is left among the largest
    found = uj.dynamics.agreement(made(loss=(x, 1)), y, k=4)
    assert (found.overlap[0], found.chance[0]) == (0.25, 0.1)
    ways = [len(set(top) & {0, 1, 2, 3}) >= 1 for top in itertools.combinations(range(N), 4)]
    assert found.p[0] == pytest.approx(np.mean(ways))


def test_ties_at_the_edge_count_by_their_share_in_any_order_of_the_table(rng):
    x, y = np.zeros(N), np.arange(N, dtype=float)
    x[:2] = 1
    assert uj.dynamics.agreement(made(f=(x, 1)), -y, k=4).overlap[0] == pytest.approx((2 + 2 * 2 / 38) / 4)
    order = rng.permutation(N)
    one, two = (uj.dynamics.agreement(made(ids, f=(x[ids], 1)), y, k=4) for ids in (np.arange(N), order))
    for mine, theirs in zip(one[1:7], two[1:7], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=0.05)  # resamples are of other examples
    assert one.overlap == two.overlap
    assert one.spearman == pytest.approx(two.spearman)


def test_ids_join_what_is_missing_extra_or_nan(table):
    y, its = table
    ids = np.arange(5, N + 3)[::-1]
    values = np.append(y, [1.0, 2.0, 3.0])[ids]
    values[0] = values[3] = np.nan  # of id N + 2, which the table lacks, and of id N - 1
    its.scores["aum"].values[20] = np.nan
    found = uj.dynamics.agreement(its, values, ids)
    assert found.missing.tolist() == [0, 1, 2, 3, 4]
    assert sorted(found.extra) == [N, N + 1, N + 2]
    assert (found.both, found.examples[:2].tolist(), found.unknown[:2].tolist()) == (N - 5, [N - 6, N - 7], [1, 2])
    part = slice(5, N - 1)
    assert found.spearman[0] == pytest.approx(stats.spearmanr(its.scores["loss"].values[part], y[part])[0])
    by_id = uj.dynamics.agreement(its, dict(zip(ids.tolist(), values, strict=True)))
    np.testing.assert_array_equal(by_id.low, found.low)
    names = its._replace(ids=np.array([f"a{k}" for k in range(N)]))
    named = uj.dynamics.agreement(names, values, [f"a{k}" for k in ids])
    np.testing.assert_allclose(named.spearman[:4], found.spearman[:4])
    texts = uj.dynamics.agreement(its, values, [str(k) for k in ids])
    np.testing.assert_array_equal(texts.low, found.low)


def test_a_score_that_few_examples_have_is_left_out(table):
    y, its = table
    its.scores["loss"].values[9:] = np.nan
    found = uj.dynamics.agreement(its, y)
    assert found.examples[0] == 9
    assert np.isnan([x[0] for x in found[1:7]]).all()
    assert np.isfinite(found.spearman[1])


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"names": ["los"]}, UnknownNameError, "Did you mean 'loss'"),
        ({"influence": np.zeros((N, 2))}, ShapeError, r"one value an example, \[M\]"),
        ({"influence": np.zeros(N - 1)}, UsageError, "39 values without ids .* 40 ids are not 0..38"),
        ({"ids": range(3)}, ShapeError, r"ids of shape \[3\] arrived for influence of 40"),
        ({"ids": [0, *range(N - 1)]}, DataError, "id 0 has 2 influences; .*keep one"),
        ({"ids": ["x", *range(1, N)]}, MismatchError, "id 'x' is no whole number"),
        ({"ids": np.arange(N) + 0.5}, MismatchError, "id 0.5 is no whole number"),
        ({"ids": np.arange(N) + 31}, MismatchError, r"9 of 40 ids .* \(\[31\] ..., \[0\] ...\); 10 or more"),
        ({"influence": {}}, MismatchError, "0 of 0 ids"),
        ({"influence": {0: 1.0}, "ids": [0]}, UsageError, "one of the two fits"),
        ({"k": N}, UsageError, "1 <= k < 40"),
        ({"draws": 0}, UsageError, "1 draw or more"),
        ({"level": 1.0}, UsageError, r"a level in \(0, 1\)"),
    ],
)
def test_wrong_input_is_refused_with_its_cure(table, change, error, match):
    y, its = table
    with pytest.raises(error, match=match):
        uj.dynamics.agreement(its, **({"influence": y} | change))


# ---------------------------------------------------------------- the command, on a training of our own

ROWS, WRONG = 160, 16


def outputs(params, example):
    return jnp.tanh(example["x"] @ params["w1"]) @ params["w2"]


TASK = uj.Task(
    lambda p, e: -jax.nn.log_softmax(outputs(p, e))[e["y"]], outputs=outputs, label=lambda e: e["y"],
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small network on three clouds, of whose labels the first 16 are wrong: its dynamics, and its self-influence in
    every kind of file."""
    at, rng = tmp_path_factory.mktemp("agreement"), np.random.default_rng(0)
    true = rng.integers(3, size=ROWS)
    y = np.where(np.arange(ROWS) < WRONG, (true + 1) % 3, true)
    rows = {"x": (rng.normal(size=(ROWS, 6)) + 2.5 * np.eye(3, 6)[true]).astype(np.float32), "y": y.astype(np.int32)}
    params = {"w1": 0.5 * rng.normal(size=(6, 12)), "w2": 0.5 * rng.normal(size=(12, 3))}
    params = {name: jnp.asarray(w, jnp.float32) for name, w in params.items()}
    what = ("loss", "margin", "probability", "correct", "el2n", "grand")
    fitted = training.fit(TASK, params, rows, steps.Recipe(12, 16, 1e-2, seed=0), folder=at / "run",
                          dynamics=uj.dynamics.Collector(ROWS, what))  # fmt: skip
    measured = measure(Kronecker("ekfac", Source("empirical"), damping=0.1), TASK, fitted.params, rows)
    s = self_influence(TASK, fitted.params, rows, measured)
    np.save(at / "s.npy", s)
    np.save(at / "column.npy", s[:, None])
    np.savez(at / "s.npz", self_influence=s[::-1], ids=np.arange(ROWS)[::-1], seconds=np.zeros(3))
    reading.export_ids(at / "s.jsonl", np.arange(ROWS), s, "self_influence")
    (at / "s.csv").write_text("row_id,rank,score\n" + "".join(f"{k},{k},{v}\n" for k, v in enumerate(s.tolist())))
    (at / "s.tsv").write_text("guid\tmine\n" + "".join(f"{k}\t{v}\n" for k, v in enumerate(s.tolist())))
    return at, s


def called(folder, monkeypatch, *args):
    monkeypatch.chdir(folder)
    words = ["dynamics", "run", *args]
    return dynamics(parser(words).parse_args(words), [])


def test_a_training_of_ones_own_end_to_end(run, monkeypatch, capsys):
    at, s = run
    wanted = uj.dynamics.agreement(uj.dynamics.read(at / "run"), s)
    called(at, monkeypatch, "--influence", "s.npy", "--json")
    found = json.loads(capsys.readouterr().out)["influence"]
    assert (found["both"], found["k"], found["missing"], found["extra"]) == (ROWS, 16, [], [])
    for k, name in enumerate(wanted.names):
        assert found["scores"][name]["spearman"] == pytest.approx(wanted.spearman[k])
        assert found["scores"][name]["p"] == pytest.approx(wanted.p[k])
    best = found["scores"]["loss_mean"]
    assert best["spearman_low"] > 0.5
    assert best["overlap"] > 0.5 > best["chance"]
    assert best["p"] < 1e-6
    assert json.loads((at / "run" / "understood" / "dynamics.json").read_text())["influence"] == found
    called(at, monkeypatch, "--influence", "s.npy", "--influence-top", "8")
    text = capsys.readouterr().out
    assert "agreement with s.npy: 160 examples (95% bootstrap interval over examples)" in text
    assert "the 8 most suspicious of both; by chance 0.05" in text


@pytest.mark.parametrize(
    "args", [("column.npy",), ("s.npz",), ("s.npz", "--influence-column", "self_influence"), ("s.jsonl",), ("s.csv",),
             ("s.csv", "--influence-column", "score"), ("s.tsv",)],
)  # fmt: skip
def test_every_kind_of_file_says_the_same(run, monkeypatch, capsys, args):
    at, s = run
    called(at, monkeypatch, "--influence", *args, "--json")
    found = json.loads(capsys.readouterr().out)["influence"]["scores"]
    wanted = uj.dynamics.agreement(uj.dynamics.read(at / "run"), s)
    assert [found[name]["spearman"] for name in wanted.names] == pytest.approx(wanted.spearman.tolist())


def test_hits_of_a_trace_are_such_a_table(run, monkeypatch, capsys):
    """As `uimjax trace` writes them: of one query, the rows at either end."""
    at, s = run
    table = uj.dynamics.read(at / "run")
    import pyarrow as pa
    from pyarrow import parquet

    order = np.argsort(-s)
    kept = np.concatenate([order[:20], order[::-1][:20]])
    columns = {"query": np.zeros(40, int), "side": ["proponent"] * 20 + ["opponent"] * 20,
               "rank": np.tile(np.arange(1, 21), 2), "row_id": kept, "score": s[kept]}  # fmt: skip
    parquet.write_table(pa.table(columns), at / "hits.parquet")
    called(at, monkeypatch, "--influence", "hits.parquet", "--json")
    found = json.loads(capsys.readouterr().out)["influence"]
    assert (found["both"], len(found["missing"])) == (40, ROWS - 40)
    wanted = uj.dynamics.agreement(table, s[kept], kept)
    assert found["scores"]["aum"]["spearman"] == pytest.approx(wanted.spearman[wanted.names.index("aum")])


@pytest.mark.parametrize(
    ("name", "text", "args", "code", "match"),
    [
        ("a.csv", "id,a,b\n1,2,3\n", (), 2, "a, b could each be the influence; --influence-column NAME"),
        ("a.csv", "id,a,b\n1,2,3\n", ("--influence-column", "c"), 2, "unknown column 'c'"),
        ("a.csv", "name,a\n1,2\n", (), 2, "unknown column 'id'"),
        ("a.csv", "id,a\n1,x\n", (), 3, "row 1: a is 'x'; a number was wanted"),
        ("a.csv", "id,a\n1,1\n1,2\n", (), 3, "id 1 has 2 influences"),
        ("a.csv", "id\n1\n", (), 2, "no column beside id"),
        ("a.csv", "id,a\nx1,1\n", (), 3, "id 'x1' is no whole number"),
        ("a.csv", "id,a\n1,1\n2\n", (), 3, "line 3: 1 fields for 2 columns"),
        ("a.xlsx", "", (), 2, "influence of examples ends in .csv"),
        (None, "none.npy", (), 3, "is not a file"),
        (None, "none.csv", (), 3, "is not a file; influence of examples"),
        (None, "s.npz", ("--influence-column", "selfinfluence"), 2, "Did you mean 'self_influence'"),
        (None, "s.npy", ("--influence-top", "160"), 2, "1 <= k < 160"),
    ],
)  # fmt: skip
def test_wrong_files_end_with_their_code_and_their_cure(run, monkeypatch, name, text, args, code, match):
    at, _ = run
    if name is not None:
        (at / name).write_text(text)
    with pytest.raises(UimError, match=match) as caught:
        called(at, monkeypatch, "--influence", name or text, *args)
    assert caught.value.exit_code == code


def test_flags_of_influence_without_influence_are_refused(run, monkeypatch):
    with pytest.raises(UsageError, match="--influence-top goes with --influence FILE"):
        called(run[0], monkeypatch, "--influence-top", "3")
