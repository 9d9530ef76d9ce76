"""What tables say: the reference run's detections, slow twins, and what is refused."""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from uimjax.errors import (
    DataError,
    MismatchError,
    ShapeError,
    UnknownNameError,
    UsageError,
)
from uimjax.understand.dynamics import elsewhere, reading
from uimjax.understand.dynamics.collector import Statistics
from uimjax.understand.dynamics.scoring import Score, suspicion
from uimjax.understand.dynamics.table import Table

DETECTED = ("aum", "confidence", "variability", "correctness", "aleatoric", "forgetting", "first_learned",
            "presentations_to_learn", "loss_mean", "loss_final")  # fmt: skip


def made(ids=None, **scores):
    """A table of scores alone: a name that ends in _low is suspicious when small."""
    held = {
        name: Score(np.asarray(values, float), name, 0 if name == "plain" else -1 if name.endswith("low") else 1)
        for name, values in scores.items()
    }
    count = len(next(iter(held.values())).values)
    return Table(np.arange(count) if ids is None else np.asarray(ids), None, None, held, None, None, {})


@pytest.fixture(scope="module")
def cache():
    return {}


@pytest.fixture
def digits(reference_data, cache):
    """(the run's table, which labels are flipped, the reference's numbers)."""
    folder = reference_data / "digits_dynamics"
    if not cache:
        run = dict(np.load(folder / "digits_mlp_dynamics.npz"))
        summary = json.loads((folder / "golden_summary.json").read_text())
        cache["all"] = elsewhere.logits_log(run["logits"][1:], run["labels"], ring=40), run["flipped"], summary
    return cache["all"]


def test_detection_of_the_flips(digits):
    table, flipped, summary = digits
    found = reading.detection(table, flipped, draws=50)
    for name in DETECTED:
        k = found.names.index(name)
        assert [found.auroc[k], found.precision[k]] == pytest.approx(summary["auc_ap"][name], abs=1e-9), name
        assert found.auroc_low[k] <= found.auroc[k] <= found.auroc_high[k]
    assert (found.bad, found.examples, found.band) == (179, 1797, "95% bootstrap interval")
    first = reading.suspicious(table, count=100)
    assert flipped[first.ids].all()
    assert (np.diff(first.values) >= 0).all()


def test_suspicious_by_either_end():
    table = made(ids=list("abcd"), loss=[1, 3, np.nan, 3], aum_low=[4, 1, 2, 3], plain=[1, 2, 3, 4])
    assert reading.suspicious(table, "loss").ids.tolist() == ["b", "d", "a"]
    found = reading.suspicious(table, "aum_low", 2)
    assert (found.ids.tolist(), found.values.tolist(), found.score) == (["b", "c"], [1.0, 2.0], "aum_low")
    with pytest.raises(UnknownNameError, match="unknown score 'aum'. Did you mean 'aum_low'"):
        reading.suspicious(table)
    with pytest.raises(
        UsageError, match=r"plain \(plain\) is no detector of bad examples; its values are table.scores"
    ):
        reading.suspicious(table, "plain")
    with pytest.raises(UsageError, match="count=0 arrived"):
        reading.suspicious(table, "loss", 0)


def test_ranks_are_spearmans(rng):
    a, b = rng.normal(size=(2, 50))
    a[:20] = a[0]  # ties
    table = made(loss=a, aum_low=b, flat=np.ones(50), some=np.where(np.arange(50) < 5, np.nan, a))
    found = reading.ranks(table)
    assert found.matrix[0, 1] == pytest.approx(-spearmanr(a, b).statistic, rel=1e-12)
    assert found.matrix[0, 3] == pytest.approx(1)
    assert np.isnan(found.matrix[2]).all()
    np.testing.assert_allclose(found.matrix, found.matrix.T)
    assert reading.ranks(table, ["loss", "some"]).names == ["loss", "some"]
    with pytest.raises(UnknownNameError, match="unknown score 'los'. Did you mean 'loss'"):
        reading.ranks(table, ["los"])


def test_areas_are_scikit_learns_of_drawn_examples(rng):
    values, bad = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.3
    weights = rng.integers(0, 3, (5, 40))
    found = reading._areas(values, bad, weights)
    for k, often in enumerate(weights):
        y, s = np.repeat(bad, often), np.repeat(values, often)
        assert found[:, k] == pytest.approx([roc_auc_score(y, s), average_precision_score(y, s)], rel=1e-12)


def test_intervals_over_examples_and_over_seeds(rng):
    bad = np.arange(200) < 40
    many = [made(loss=rng.normal(size=200) + bad, noise=rng.normal(size=200)) for _ in range(4)]
    one = reading.detection(many[0], np.flatnonzero(bad), draws=300)
    again = reading.detection(many[0], bad, draws=300)
    assert (one.auroc_low == again.auroc_low).all()
    assert one.auroc_low[0] < one.auroc[0] < one.auroc_high[0]
    assert one.auroc_low[1] < 0.5 < one.auroc_high[1]
    slow = []
    for _ in range(300):  # another stream of draws: the same width within their own noise
        at = np.concatenate([rng.choice(40, 40), 40 + rng.choice(160, 160)])
        slow.append(roc_auc_score(bad[at], many[0].scores["loss"].values[at]))
    assert one.auroc_high[0] - one.auroc_low[0] == pytest.approx(
        np.diff(np.quantile(slow, [0.025, 0.975]))[0], rel=0.25
    )
    seeds = reading.detection(many, bad)
    each = [roc_auc_score(bad, suspicion(t.scores["loss"])) for t in many]
    assert seeds.auroc[0] == pytest.approx(np.mean(each))
    reach = 3.182446305284263 * np.std(each, ddof=1) / 2  # Student's 97.5 % with three degrees of freedom
    assert seeds.auroc_high[0] - seeds.auroc[0] == pytest.approx(reach)
    assert seeds.band == "95% interval over 4 seeds"


def test_what_became_nan_is_the_most_suspicious_and_what_was_never_met_the_least():
    nan, count = np.nan, 6
    table = made(aum_low=[1.0, 2.0, nan, 3.0, nan, 4.0], loss=[1.0, 1.0, nan, 1.0, nan, np.inf])
    seen = {name: np.zeros(count) for name in Statistics._fields} | {"lost": np.array([0, 0, 2, 0, 0, 1])}
    table = table._replace(statistics=Statistics(**seen))
    found = reading.detection(table, [2], draws=10)
    assert found.auroc[0] == 1.0
    assert found.auroc[1] == pytest.approx(0.9)  # it ties with the infinite one
    assert reading.detection(table, [4], draws=10).auroc.tolist() == [0.0, 0.0]


def test_detections_that_are_refused():
    table = made(loss=[1, 2, 3])
    with pytest.raises(UsageError, match="1 bad ids are not in the table, first .*9"):
        reading.detection(table, [9])
    with pytest.raises(UsageError, match="3 of 3 examples are bad; some, and not all, were wanted"):
        reading.detection(table, [0, 1, 2])
    with pytest.raises(ShapeError, match=r"a mask of shape \[2\] arrived for 3 examples"):
        reading.detection(table, np.array([True, False]))
    with pytest.raises(MismatchError, match="tables of other ids or scores arrived"):
        reading.detection([table, made(loss=[1, 2])], [0])
    with pytest.raises(UsageError, match="no tables arrived"):
        reading.detection([], [0])
    with pytest.raises(UsageError, match="level=2, draws=1000 arrived"):
        reading.detection(table, [0], level=2)


def test_clusters_of_trajectories(rng):
    shapes = np.stack([np.linspace(2, 0, 10), np.full(10, 2.0), np.linspace(2, 1, 10)])
    kind = np.repeat([1, 0, 2], [20, 50, 30])
    losses = shapes[kind] + rng.normal(size=(100, 10)) * 0.02
    losses[7, 3] = np.nan
    found = reading.clusters(losses)
    assert found.sizes.tolist() == [50, 30, 19]
    assert max(found.silhouettes, key=found.silhouettes.get) == 3
    kept = np.arange(100) != 7
    assert (found.assigned[kept] == np.array([0, 2, 1])[kind][kept]).all()
    assert found.assigned[7] == -1
    np.testing.assert_allclose(found.curves[0], losses[kind == 0].mean(0))
    np.testing.assert_allclose(found.high[1], np.percentile(losses[kind == 2], 90, axis=0))
    assert reading.clusters(losses, k=2).sizes.sum() == 99
    assert (reading.clusters(losses).assigned == found.assigned).all()
    same = reading.clusters(np.ones((5, 3)))
    assert (same.sizes.tolist(), same.silhouettes) == ([5], {})
    with pytest.raises(UsageError, match=r"1 different whole trajectories arrived for k=2; k in 1..1 fits"):
        reading.clusters(np.ones((5, 3)), k=2)
    with pytest.raises(ShapeError, match=r"losses of shape \[5, 0\] arrived; .*collect with ring=T"):
        reading.clusters(np.ones((5, 0)))
    assert reading.clusters([[1.0, 2.0], [np.inf, 0.0], [3.0, 1.0]], k=1).assigned.tolist() == [0, -1, 0]


def test_the_flips_of_the_reference_are_a_cluster(digits):
    table, flipped, _ = digits
    found = reading.clusters(table.losses, k=2)
    assert flipped[found.assigned == 1].mean() > 0.9


def test_two_tables_are_compared_by_id():
    a = made(ids=[3, 1, 2, 9], loss=[3, 1, 2, 9], aum_low=[0, 1, 2, 3], only=[1, 2, 3, 4])
    b = made(ids=[1, 2, 3, 5, 6], loss=[10, 20, 5, 1, 1], aum_low=[3, 2, 1, 0, 0])
    found = reading.compare(a, b, count=1)
    assert found.spearman["loss"] == pytest.approx(spearmanr([1, 2, 3], [10, 20, 5]).statistic)
    assert list(found.spearman) == ["loss", "aum_low"]
    assert found.moved["loss"] == [(3, 1, 3)]
    assert (found.only_a.tolist(), found.only_b.tolist()) == ([9], [5, 6])
    x, y = (t._replace(metadata={"definitions": {"never_learned": n}}) for t, n in ((a, "meetings"), (b, "infinity")))
    x, y = (t._replace(scores=t.scores | {"forgetting": t.scores["loss"]}) for t in (x, y))
    x, y = x._replace(labels=np.array([0, 1, 2, 0])), y._replace(labels=np.array([1, 2, 2, 0, 0]))
    found = reading.compare(x, y)
    assert (list(found.spearman), list(found.dropped)) == (["loss", "aum_low"], ["forgetting"])
    assert found.relabelled.tolist() == [3]
    assert {row[0] for row in found.moved["loss"]} == {1, 2}
    with pytest.raises(MismatchError, match="the tables share no id"):
        reading.compare(a, made(ids=[70], loss=[1]))
    with pytest.raises(MismatchError, match="one has integers for ids, the other strings"):
        reading.compare(a, made(ids=["1", "2"], loss=[1, 2]))
    with pytest.raises(MismatchError, match="the tables share no score: loss, aum_low, only; other"):
        reading.compare(a, made(ids=[1, 2], other=[1, 2]))


def test_spikes_stand_out_of_their_past(rng):
    curve = np.linspace(3, 1, 200) + rng.normal(size=200) * 0.01
    curve[[60, 150]] += 2
    curve[90], curve[91] = np.nan, np.inf
    found = reading.spikes(curve, window=30)
    assert found.steps.tolist() == [60, 90, 150]  # 91 goes on where 90 began
    for step, median, deviation in zip(found.steps, found.medians, found.deviations, strict=True):
        past = curve[step - 30 : step]
        past = past[np.isfinite(past)]
        assert median == pytest.approx(np.median(past))
        assert deviation == pytest.approx(np.median(np.abs(past - np.median(past))))
    assert not len(reading.spikes(np.ones(100)).steps)
    assert reading.spikes([*[np.nan] * 10, 1.0], window=5).steps.tolist() == [5]
    still = np.ones(100)
    still[70], still[80] = 1 + 1e-7, 1.01
    assert reading.spikes(still).steps.tolist() == [80]
    with pytest.raises(ShapeError, match=r"a curve of shape \[2, 2\] arrived"):
        reading.spikes(np.ones((2, 2)))
    with pytest.raises(UsageError, match="window=50, threshold=10.0 for 3 steps"):
        reading.spikes([1, 2, 3])


def test_spikes_in_parts_are_the_same(monkeypatch, rng):
    curve = rng.normal(size=300) ** 2
    whole = reading.spikes(curve, 20, 3)
    monkeypatch.setattr(reading, "BLOCK", 100)
    for mine, theirs in zip(reading.spikes(curve, 20, 3), whole, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_the_documents_of_steps():
    batches = np.array([[1, 2, -1], [2, 3, 4], [2, 2, 1]])
    ids, often = reading.documents_of([1, 2], batches)
    assert (ids.tolist(), often.tolist()) == ([2, 1, 3, 4], [3, 1, 1, 1])
    ids, often = reading.documents_of(0, [np.array(["a", "b", "a"])])
    assert (ids.tolist(), often.tolist()) == (["a", "b"], [2, 1])
    assert reading.documents_of([], batches)[0].tolist() == []
    with pytest.raises(UsageError, match=r"step 3 arrived for the batches of 3 steps, 0..2"):
        reading.documents_of([3], batches)


def test_ids_are_written_for_others(tmp_path):
    assert reading.export_ids(tmp_path / "ids.txt", np.array([3, 1])).read_text() == "3\n1\n"
    path = reading.export_ids(tmp_path / "ids.jsonl", ["a", "b"], [1.5, np.inf], "aum")
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"id": "a", "aum": 1.5}, {"id": "b", "aum": "inf"},
    ]  # fmt: skip
    assert reading.export_ids(tmp_path / "plain.jsonl", [7]).read_text() == '{"id": 7}\n'
    with pytest.raises(UsageError, match="ids are written to .txt or .jsonl, not to '.csv'"):
        reading.export_ids(tmp_path / "ids.csv", [1])
    with pytest.raises(UsageError, match="a text file holds ids alone; write values to .jsonl"):
        reading.export_ids(tmp_path / "ids.txt", [1], [2])
    with pytest.raises(ShapeError, match=r"values of shape \[2\] arrived for 1 ids"):
        reading.export_ids(tmp_path / "ids.jsonl", [1], [2, 3])
    with pytest.raises(DataError, match="an id holds a line break; write ids to .jsonl"):
        reading.export_ids(tmp_path / "ids.txt", ["a\nb"])
