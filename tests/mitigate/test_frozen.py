"""Tuning on features by name: what each method is for, what is kept, and what is refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from uimjax.cli import main
from uimjax.config import TuneConfig
from uimjax.corpora.features import read_features
from uimjax.errors import DataError, MalformedRowError, MismatchError, NonFiniteError, UnknownNameError, UsageError
from uimjax.interpret import methods
from uimjax.mitigate import afterwards, cleaning, frozen, heads
from uimjax.mitigate.frozen import Choices, Rows
from uimjax.mitigate.heads import Tuning
from uimjax.task import Measurement
from uimjax.workflow import tuning
from uimjax.workflow.tuning import tune


def spurious(seed, count, share=0.95):
    """Two classes; a loud feature agrees with the class in most rows, a quiet one always. Groups: class and loud."""
    rng = np.random.default_rng(seed)
    y = rng.integers(2, size=count)
    loud = np.where(rng.random(count) < share, y, 1 - y)
    x = np.stack([3 * (2 * loud - 1) + rng.normal(size=count), 1.0 * (2 * y - 1) + 0.7 * rng.normal(size=count)], 1)
    return x.astype(np.float32), y, 2 * y + loud


def saved(path, x, y, groups=None, **more):
    np.savez(path, features=x, labels=y, **({} if groups is None else {"groups": groups}), **more)
    return str(path)


@pytest.fixture
def files(tmp_path):
    return saved(tmp_path / "train.npz", *spurious(0, 1500)), saved(tmp_path / "test.npz", *spurious(1, 1500, 0.5))


@pytest.mark.parametrize(("method", "more"), [
    ("dfr", {}), ("jtt", {}), ("group_dro", {"eta": 0.1}), ("erase", {}),
])  # fmt: skip
def test_methods_of_groups_reach_what_they_are_for(method, more, files, tmp_path):
    config = TuneConfig(train=files[0], test=(files[1],), method=method, learning_rate=1e-2, seeds=3, **more)
    found = tune(config, tmp_path / "out")["tests"][files[1]]
    assert found["says"].startswith("better: "), found["says"]
    assert found["change"]["low"] <= found["change"]["mean"] <= found["change"]["high"]
    held = pq.read_table(tmp_path / "out" / "predictions-0.parquet").to_pydict()
    assert len(held["label"]) == 1500
    assert set(held) == {"label", "decided", "p_0", "p_1"}
    assert json.loads((tmp_path / "out" / "tuned.json").read_text())["method"] == method
    assert np.load(tmp_path / "out" / "head.npz")["w"].shape == (2, 2)


def test_what_is_measured_equals_counting_by_hand(files, tmp_path):
    config = TuneConfig(train=files[0], test=(files[1],), method="mlp", epochs=2, seeds=3)
    found = tune(config, tmp_path / "out")["tests"][files[1]]
    x, y, groups = spurious(1, 1500, 0.5)
    train, held, _, _, _ = tuning._read(config)
    how = Choices(2, 4, head=Tuning(epochs=2))
    each = [frozen.fit("mlp", train, held, how, seed).predict(Rows(x, y, groups)) for seed in range(3)]
    figures = found["figures"]["mlp"]
    right = np.array([its.decided == y for its in each])
    assert figures["accuracy"] == pytest.approx(right.mean())
    assert figures["worst_group"] == pytest.approx(min(right[:, groups == g].mean() for g in range(4)))
    assert figures["worst_class"] == pytest.approx(min(right[:, y == c].mean() for c in range(2)))
    given = [np.mean([(its.decided[groups == g] == 1).mean() for its in each]) for g in range(4)]
    assert figures["parity"] == pytest.approx(max(given) - min(given))
    p = np.array([np.exp(its.logits) / np.exp(its.logits).sum(1, keepdims=True) for its in each])
    assert figures["nll"] == pytest.approx(-np.log(p[:, np.arange(1500), y]).mean(), rel=1e-5)


def test_the_parts_are_a_fifth_each_and_share_no_row(tmp_path):
    x, y, groups = spurious(3, 1000)
    path = saved(tmp_path / "all.npz", np.arange(2000.0).reshape(1000, 2), y, groups)
    train, held, tests, classes, names = tuning._read(TuneConfig(train=path))
    parts = [set(rows.inputs[:, 0]) for rows in (train, held, tests[0][1])]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1000
    for rows in (held, tests[0][1]):
        for g in range(4):
            assert np.mean(rows.groups == g) == pytest.approx(np.mean(groups == g), abs=0.01)
    assert classes == ["0", "1"]
    assert names == ["0", "1", "2", "3"]


def test_afterwards_of_a_black_box(tmp_path):
    rng = np.random.default_rng(0)
    y, groups = rng.integers(2, size=2000), rng.integers(2, size=2000)
    z = 1.5 * (2 * y - 1) + rng.normal(size=2000) + 1.0 * (2 * groups - 1)
    logits = 6 * np.stack([-z, z], 1)  # six times too sure
    np.savez(tmp_path / "box.npz", logits=logits, label=y, group=groups)
    for method, aim in (("temperature", "nll"), ("cmaes", "nll"), ("thresholds", "parity")):
        found = tune(TuneConfig(train=str(tmp_path / "box.npz"), method=method, queries=400), tmp_path / method)
        assert found["aim"] == aim
        its = found["tests"]["a fifth of the rows"]
        assert (its["says"][:7], its["against"]) == ("better:", "as_given"), its["says"]
    assert (
        3
        < tune(TuneConfig(train=str(tmp_path / "box.npz"), method="temperature"), tmp_path / "t")["found"][
            "temperature"
        ]
    )
    curve = found_curve(tmp_path / "cmaes")
    assert curve[0][0] == 1
    assert curve[-1][0] <= 400
    assert curve[-1][1] < curve[0][1]
    with pytest.raises(UsageError, match="logits arrived; of those take temperature, thresholds, cmaes"):
        tune(TuneConfig(train=str(tmp_path / "box.npz"), method="nmtune"), tmp_path / "x")
    with pytest.raises(UsageError, match="scale is of features"):
        tune(TuneConfig(train=str(tmp_path / "box.npz"), method="cmaes", scale=True), tmp_path / "x")


def found_curve(folder):
    return json.loads((folder / "tuned.json").read_text())["found"]["curve"]


def test_thresholds_decide_by_the_group_of_the_row():
    x, y, groups = spurious(5, 800)
    rows = Rows(x, y, groups % 2)
    made = frozen.fit("thresholds", rows, rows, Choices(2, 2, head=Tuning(epochs=5)), 0)
    p = np.exp(made.predict(rows).logits.astype(np.float64))
    score = p[:, 1] / p.sum(1)
    wanted = afterwards.accepted(score, groups % 2, made.found["thresholds"])
    assert (made.predict(rows).decided == wanted).all()
    with pytest.raises(UsageError, match="these rows have none"):
        made.predict(Rows(x, y))


def test_two_repetitions_give_no_verdict_and_a_wrong_direction_is_told():
    low = {"mean": -0.2, "low": -0.3, "high": -0.1}
    none = {"mean": 0.0, "low": -0.1, "high": 0.1}
    assert tuning._says("accuracy", 0.5, 0.3, low, low, "mlp", 2).startswith("no verdict from 2 repetition(s)")
    assert tuning._says("accuracy", 0.5, 0.3, low, low, "mlp", 3).startswith("worse: accuracy 0.500 -> 0.300")
    assert tuning._says("nll", 0.5, 0.3, low, none, "mlp", 3).startswith("better: ")
    assert tuning._says("nll", 0.5, 0.3, low, low, "mlp", 3).endswith("it costs 20.0 points of accuracy")
    assert tuning._says("parity", 0.5, 0.5, none, none, "mlp", 3).startswith("no difference that these rows show")


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_tables_give_the_same_rows_as_arrays(ending, tmp_path):
    x, y, groups = spurious(0, 30)
    words, path = np.array(["no", "yes"])[y], tmp_path / f"rows.{ending}"
    if ending == "csv":
        lines = [
            f"{i},{a},{b},{w},{g}" for i, (a, b), w, g in zip(range(30), x.astype(float), words, groups, strict=True)
        ]
        path.write_text("\n".join(["id,loud,quiet,label,group", *lines]))
    elif ending == "parquet":
        pq.write_table(pa.table({"features": x.tolist(), "label": words, "group": groups}), path)
    else:
        rows = zip(x.tolist(), words.tolist(), groups.tolist(), strict=True)
        path.write_text("\n".join(json.dumps({"features": f, "label": w, "group": g}) for f, w, g in rows))
    found = read_features(path)
    np.testing.assert_allclose(found.inputs, x, rtol=1e-6)
    assert found.labels.tolist() == words.tolist()
    assert found.groups.tolist() == groups.tolist()


def test_bad_rows_are_refused_before_anything_is_fitted(tmp_path, files):
    x, y, groups = spurious(0, 40)
    cases = [
        (saved(tmp_path / "a.npz", np.where(np.arange(80).reshape(40, 2) == 7, np.nan, x), y), NonFiniteError, "row 3"),
        (saved(tmp_path / "b.npz", x[:, 0], y), DataError, "numbers \\[N, D\\]"),
        (saved(tmp_path / "c.npz", x, y[:9]), DataError, "labels \\[9\\] for 40 rows"),
        (saved(tmp_path / "d.npz", x, np.zeros(40, int)), DataError, "every row has the label 0"),
        (saved(tmp_path / "e.npz", x, y + 0.5), DataError, "whole numbers or words"),
        (str(tmp_path / "none.npz"), DataError, "is not a file"),
    ]
    np.savez(tmp_path / "f.npz", features=x)
    np.savez(tmp_path / "g.npz", features=x, logits=x, labels=y)
    cases += [(str(tmp_path / "f.npz"), DataError, "no labels, only features"),
              (str(tmp_path / "g.npz"), DataError, "features and logits")]  # fmt: skip
    for path, error, told in cases:
        with pytest.raises(error, match=told):
            tune(TuneConfig(train=path), tmp_path / "out")
    (tmp_path / "h.jsonl").write_text('{"features": [1, 2], "label": 0}\n{"features": [1], "label": 1}\n')
    with pytest.raises(MalformedRowError, match="line 2|:2"):
        tune(TuneConfig(train=str(tmp_path / "h.jsonl")), tmp_path / "out")
    with pytest.raises(UnknownNameError, match="Did you mean 'nmtune'"):
        tune(TuneConfig(train=files[0], method="nmtun"), tmp_path / "out")
    bare = saved(tmp_path / "bare.npz", x, y)
    with pytest.raises(MismatchError, match="has none; both or neither"):
        tune(TuneConfig(train=files[0], test=(bare,)), tmp_path / "out")
    with pytest.raises(UsageError, match="dfr is about groups"):
        tune(TuneConfig(train=bare, method="dfr"), tmp_path / "out")
    other = saved(tmp_path / "other.npz", x, y + 5, groups)
    with pytest.raises(MismatchError, match="label 5 does not occur|label 6 does not occur"):
        tune(TuneConfig(train=files[0], test=(other,)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_came_of_it(files, tmp_path, capsys):
    out = tmp_path / "tuned"
    with pytest.raises(SystemExit) as ended:
        main(
            ["mitigate", files[0], "--method", "dfr", "--test", files[1], "--learning-rate", "0.01", "--out", str(out)]
        )
    told = capsys.readouterr().out
    assert ended.value.code == 0
    assert "dfr: better: accuracy of the worst group" in told
    assert "linear" in told
    with pytest.raises(SystemExit) as again:
        main(["mitigate", str(out), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert again.value.code == 0
    assert found["method"] == "dfr"
    assert found["out"] == str(out)


def blurred(seed, count):
    """Two classes that a line tells apart but for the noise; every second row is of group 1, far off in a third."""
    rng = np.random.default_rng(seed)
    y, group = rng.integers(2, size=count), np.arange(count) % 2
    x = np.stack([2 * y - 1 + 0.5 * rng.normal(size=count), rng.normal(size=count), 3.0 * group], 1)
    return x.astype(np.float32), y, group


def test_support_by_groups_is_the_mean_over_their_rows(rng):
    """One query a group instead of one a row: scores are linear."""
    x, asked = (rng.normal(size=(n, 5)).astype(np.float32) for n in (80, 30))
    y, asked_y, groups = rng.integers(3, size=80), rng.integers(3, size=30), rng.integers(4, size=30)
    params = cleaning._params(heads.tune(x, y, Tuning(epochs=2), classes=3))
    rows, queries, by = cleaning._rows(x, y), cleaning._rows(asked, asked_y), cleaning._by_group(asked, asked_y, groups)
    loss = Measurement("loss", cleaning.HEAD_TASK.loss)
    how = methods.with_damping(methods.get("ekfac"), 0.1)  # else it is chosen by the questions
    each = methods.score(cleaning.HEAD_TASK, params, rows, loss, queries, how, each=True).values
    found = methods.score(cleaning.HEAD_TASK, params, rows, cleaning.LOSS, by, how, each=True).values
    means = np.stack([each[:, groups == g].mean(1) for g in range(4)], 1)
    np.testing.assert_allclose(found, means, rtol=1e-4, atol=1e-5 * np.abs(means).max())


def test_wrong_labels_are_found_and_righted(tmp_path):
    x, y, _ = blurred(0, 600)
    wrong = np.random.default_rng(1).random(600) < 0.3
    given = np.where(wrong, 1 - y, y)
    test = saved(tmp_path / "test.npz", *blurred(1, 600)[:2])
    config = TuneConfig(train=saved(tmp_path / "train.npz", x, given), test=(test,), method="relabel",
                        learning_rate=1e-2, held_out=test, batch_size=32)  # fmt: skip
    found = tune(config, tmp_path / "out")
    rows = np.array(found["found"]["relabelled_rows"])
    assert wrong[rows].mean() > 0.85, "what is righted was wrong"
    assert np.isin(np.flatnonzero(wrong), rows).mean() > 0.85
    its = found["tests"][test]["figures"]
    assert its["relabel"]["nll"] < its["linear"]["nll"] - 0.05, "and it is surer of what is right"


def test_rows_that_harm_the_group_that_is_failed_go(tmp_path):
    x, y, group = blurred(2, 600)
    harm = (group == 1) & (np.random.default_rng(3).random(600) < 0.6) & (y == 0)
    held = saved(tmp_path / "held.npz", *blurred(3, 400))
    test = saved(tmp_path / "test.npz", *blurred(4, 2000))
    train = saved(tmp_path / "train.npz", x, np.where(harm, 1, y), group)
    config = TuneConfig(train=train, held_out=held, test=(test,), method="d3m", learning_rate=1e-2)
    found = tune(config, tmp_path / "out")
    gone = np.array(found["found"]["dropped_rows"])
    assert np.isin(np.flatnonzero(harm), gone).mean() > 0.9
    assert harm[gone].mean() > 1.5 * harm.mean()
    without = TuneConfig(train=saved(tmp_path / "n.npz", x, y), test=(test,), method="d3m")
    with pytest.raises(UsageError, match="about groups"):
        tune(without, tmp_path / "no")
