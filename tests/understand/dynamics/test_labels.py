"""Labels that look wrong: confident learning against the reference and one example at a time, and AUM's threshold."""

import csv
import gzip
import json

import numpy as np
import pytest

from uimjax.errors import DataError, NonFiniteError, ShapeError, UnknownNameError, UsageError
from uimjax.understand.dynamics import labels as wrong
from uimjax.understand.dynamics.scoring import Score
from uimjax.understand.dynamics.table import Table


def aum_of(ids, values):
    held = {"aum": Score(np.asarray(values, float), "aum", -1)}
    return Table(np.asarray(ids), None, None, held, None, None, {})


@pytest.fixture
def digits(reference_data):
    """(labels, which are flipped, out-of-sample probabilities, the reference's numbers, its scores)."""
    folder = reference_data / "digits_dynamics"
    run = np.load(folder / "digits_mlp_dynamics.npz")
    with gzip.open(folder / "golden_scores.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    golden = {name: np.array([float(row[name]) for row in rows]) for name in rows[0] if name.startswith("cl_")}
    summary = json.loads((folder / "golden_summary.json").read_text())
    return run["labels"], run["flipped"], np.load(folder / "digits_lr_oof_probs.npz")["pred_probs"], summary, golden


def test_confident_learning_of_the_reference(digits):
    """142 is the number of examples that count as another class; 172 what pruning by noise rate flags."""
    labels, flipped, p, summary, golden = digits
    found = wrong.label_issues(labels, p)
    np.testing.assert_allclose(found.thresholds, summary["confident_thresholds"], atol=1e-6)
    assert found.wrong == summary["num_label_issues"] == 142
    assert found.mask.sum() == len(found.ids) == summary["find_label_issues"]["n"] == 172
    for name in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
        np.testing.assert_allclose(found.scores[name], golden[f"cl_oof_{name}"], rtol=2e-6, atol=1e-8, err_msg=name)
    for filter_by, flagged in (("prune_by_class", 185), ("confident_learning", 142), ("predicted_neq_given", 253),
                               ("low_normalized_margin", 142), ("low_self_confidence", 142)):  # fmt: skip
        assert wrong.label_issues(labels, p, filter_by=filter_by).mask.sum() == flagged, filter_by
    joint = np.array(summary["confident_joint"])  # ties in its rounding were decided by the processor, at four entries
    assert (np.abs(found.joint - joint) <= 1).all()
    assert (found.joint != joint).sum() <= 4
    assert (found.joint.sum(1) == joint.sum(1)).all()
    assert flipped[found.mask].mean() == pytest.approx(summary["find_label_issues"]["precision"], abs=0.01)


def test_with_the_processors_ties_the_joint_is_the_references(digits, monkeypatch):
    """NumPy's default sort, as cleanlab takes it: on processors with AVX-512 its ties are those of the reference."""
    labels, flipped, p, summary, _ = digits
    row = [-0.25, 0.25, 0.25, -0.1, 0.4, 0.25, -0.2, 0.4, 0, 0]
    if np.argsort(row).tolist() == np.argsort(row, kind="stable").tolist():
        pytest.skip("this processor's ties are in order; the reference's were not")
    monkeypatch.setattr(wrong, "TIES", None)
    found = wrong.label_issues(labels, p)
    np.testing.assert_array_equal(found.joint, summary["confident_joint"])
    assert flipped[found.mask].mean() == pytest.approx(summary["find_label_issues"]["precision"], rel=1e-12)
    assert found.mask[flipped].mean() == pytest.approx(summary["find_label_issues"]["recall"], rel=1e-12)
    assert wrong.label_issues(labels, p, filter_by="both").mask.sum() == 157


@pytest.mark.parametrize("filter_by", wrong.FILTERS)
def test_cleanlab_itself(digits, monkeypatch, filter_by):
    pytest.importorskip("cleanlab", reason="cleanlab is optional")
    monkeypatch.setattr(wrong, "TIES", None)
    labels, _, p, _, _ = digits
    mine, theirs = (wrong.label_issues(labels, p, None, filter_by, way) for way in ("own", "cleanlab"))
    assert (mine.mask == theirs.mask).all()
    assert mine.wrong == theirs.wrong
    np.testing.assert_array_equal(mine.joint, theirs.joint)


def test_cleanlab_where_it_is_not_installed(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(wrong.importlib, "import_module", absent)
    with pytest.raises(UsageError, match="cleanlab is not installed: pip install cleanlab, or take through='own'"):
        wrong.label_issues([0, 1], np.eye(2), through="cleanlab")


def random_labels(rng, count=300, classes=4):
    true = rng.integers(0, classes, count)
    p = rng.dirichlet(np.full(classes, 0.3), count) + np.eye(classes)[true] * rng.random((count, 1)) * 3
    given = np.where(rng.random(count) < 0.2, rng.integers(0, classes, count), true)
    return given, p / p.sum(1, keepdims=True)


def test_the_joint_is_counted_one_example_after_the_other(rng):
    labels, p = random_labels(rng)
    t = [np.mean([p[i, k] for i in range(300) if labels[i] == k]) for k in range(4)]
    counts, flagged = np.zeros((4, 4)), 0
    for row, label in zip(p, labels, strict=True):
        sure = [k for k in range(4) if row[k] >= t[k] - 1e-6]
        if sure:
            guess = sure[0] if len(sure) == 1 else int(row.argmax())
            counts[label, guess] += 1
            flagged += guess != label and row.argmax() != label
    found = wrong.label_issues(labels, p, filter_by="confident_learning")
    assert found.wrong == found.mask.sum() == flagged
    assert (found.joint.sum(1) == np.bincount(labels)).all()
    exact = counts / counts.sum(1, keepdims=True) * np.bincount(labels)[:, None]
    assert (np.abs(found.joint - exact) < 1).all()
    assert (np.diff(found.scores["self_confidence"][found.ids]) >= 0).all()


def test_a_class_that_nobody_has_and_names(rng):
    labels, p = random_labels(rng)
    labels = np.where(labels == 3, 2, labels)
    ids = np.array([f"a{k}" for k in range(300)])
    found = wrong.label_issues(labels, p, ids)
    assert found.thresholds[3] == np.inf
    assert (found.joint[:3, 3] == 0).all()
    assert set(found.ids) == set(ids[found.mask])


def test_entropy_of_nothing_is_no_suspicion():
    found = wrong.quality([0, 1], [[1.0, 0.0], [0.5, 0.5]])
    assert found["confidence_weighted_entropy"].tolist() == pytest.approx([1.0, np.log(3) / 2])


@pytest.mark.parametrize(
    ("labels", "p", "error", "match"),
    [
        ([0, 2], np.eye(2), DataError, r"row 1: label .*2.* arrived; whole numbers in 0..1 were wanted"),
        ([0.0, 1.0], np.eye(2), DataError, r"row 0: label .*0.* arrived; whole numbers"),
        ([0, 1], [[0.5, 0.6], [0, 1]], DataError, r"row 0: \[0.5, 0.6\] are no probabilities, .* softmax"),
        ([0, 1], [[0.5, np.nan], [0, 1]], NonFiniteError, "probabilities of row 0 are NaN or infinite"),
        ([0], np.eye(2), ShapeError, r"labels \[1\] and probabilities \[2, 2\] arrived"),
    ],
)
def test_labels_that_are_off(labels, p, error, match):
    with pytest.raises(error, match=match):
        wrong.label_issues(labels, p)


def test_filters_that_are_off():
    with pytest.raises(UnknownNameError, match="unknown filter 'prune_by_noise'. Did you mean 'prune_by_noise_rate'"):
        wrong.label_issues([0, 1], np.eye(2), filter_by="prune_by_noise")
    with pytest.raises(UnknownNameError, match="unknown way 'mine'"):
        wrong.label_issues([0, 1], np.eye(2), through="mine")
    with pytest.raises(ShapeError, match=r"ids \[1\] arrived for 2 labels"):
        wrong.label_issues([0, 1], np.eye(2), ids=[3])


def test_indicators_are_a_class_of_their_own():
    labels = np.arange(110) % 10
    first = wrong.indicator_labels(labels, 10, seed=3)
    assert len(first.ids) == 10
    assert (first.labels[first.ids] == 10).all()
    assert (np.delete(first.labels, first.ids) == np.delete(labels, first.ids)).all()
    second = wrong.indicator_labels(labels, 10, seed=3, besides=first.ids)
    assert not set(first.ids) & set(second.ids)
    named = wrong.indicator_labels([0, 1, 0], 2, ids=["x", "y", "z"])
    assert named.ids[0] in ("x", "y", "z")
    with pytest.raises(UsageError, match=r"1 of 3 examples may be drawn; 0 = N / \(C \+ 1\) and at least 1 fit"):
        wrong.indicator_labels([0, 1, 0], 5, besides=[0, 1])
    with pytest.raises(DataError, match="row 1: label .*3.* arrived"):
        wrong.indicator_labels([0, 3, 0], 3)
    with pytest.raises(ShapeError, match=r"labels \[3\] and ids \[1\] arrived"):
        wrong.indicator_labels([0, 1, 0], 2, ids=[1])


def test_the_threshold_is_a_percentile_of_the_indicators():
    aum = np.array([-3.0, 5.0, -1.0, -2.0, 4.0, np.nan, -2.5])
    found = wrong.threshold(aum, [2, 3], 50)
    assert found.value == -1.5
    assert found.ids.tolist() == [0, 6]
    assert found.values.tolist() == [-3.0, -2.5]
    table = aum_of(list("abcdefg"), aum)
    assert wrong.threshold(table, ["c", "d"]).value == pytest.approx(-1.01)
    with pytest.raises(UsageError, match="indicator h is no id of the table; give the ids of indicator_labels"):
        wrong.threshold(table, ["h"])
    with pytest.raises(UsageError, match="indicator f was never met"):
        wrong.threshold(table, ["f"])
    with pytest.raises(UsageError, match="no indicators arrived"):
        wrong.threshold(aum, [])
    with pytest.raises(UsageError, match="percentile=101 arrived; 0 to 100"):
        wrong.threshold(aum, [1], 101)
    with pytest.raises(UnknownNameError, match="unknown score 'aum'"):
        wrong.threshold(aum_of([0], [1.0])._replace(scores={}), [0])
