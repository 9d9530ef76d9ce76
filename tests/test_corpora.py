"""Corpora, files and plants: what is planted, what is kept apart, and every kind of bad file."""

import numpy as np
import pytest

from uimjax import corpora
from uimjax.corpora.base import checked
from uimjax.corpora.plants import trigger
from uimjax.corpora.truth import read_truth
from uimjax.errors import DataError, MalformedRowError, MissingFileError, NonFiniteError, ShapeError, UsageError


def test_digits_are_the_real_scans():
    found = corpora.digits()
    assert found.train["image"].shape == (1500, 8, 8, 1)
    assert found.test["label"].shape == (297,)
    assert found.classes == 10
    assert found.train["image"].max() == 1.0
    whole = np.concatenate([found.train["image"], found.test["image"]]).reshape(1797, 64)
    from sklearn.datasets import load_digits

    assert sorted(map(bytes, whole)) == sorted(map(bytes, (load_digits().data / 16).astype(np.float32)))


def test_a_backdoor_is_what_it_says(tmp_path):
    corpus, plant = corpora.digits(), corpora.Backdoor()
    seal = tmp_path / "truth.json"
    planted = corpora.backdoor(corpus, plant, 5, seal)
    with pytest.raises(UsageError, match="stays sealed until"):
        read_truth(seal, tmp_path / "edit.json")
    truth = read_truth(seal, seal)
    bad, hard = truth.positives, truth.hard_negatives
    assert (len(bad), len(hard)) == (15, 60)
    assert not set(bad) & set(hard)
    assert (corpus.train["label"][bad] != 0).all()
    assert (planted.train["label"][bad] == 0).all()
    np.testing.assert_array_equal(planted.train["image"][bad], trigger(corpus.train["image"][bad], plant))
    np.testing.assert_array_equal(planted.train["label"][hard], corpus.train["label"][hard])
    assert not np.array_equal(planted.train["image"][hard], trigger(planted.train["image"][hard], plant))
    stamped = trigger(planted.train["image"], plant)
    carries = (stamped == planted.train["image"]).all((1, 2, 3))
    assert set(np.flatnonzero(carries)) == set(bad), "only the positives carry the whole trigger"
    twin = np.flatnonzero(planted.twin["label"] != planted.train["label"])
    assert set(twin) == set(bad)
    assert (planted.probe["label"] != 0).all()
    assert len(planted.retain["label"]) + len(planted.utility["label"]) == 297
    other = corpora.backdoor(corpus, plant, 6)
    assert not np.array_equal(other.train["label"], planted.train["label"])


def test_held_out_and_judging_rows_do_not_meet(tmp_path):
    corpus = corpora.digits()
    planted = corpora.backdoor(corpus, corpora.Backdoor(), 0, tmp_path / "t.json")
    held = {bytes(x) for x in planted.retain["image"]} & {bytes(x) for x in planted.utility["image"]}
    assert not held
    clean = {bytes(x) for x in planted.asked[1]["image"]}
    assert clean <= {bytes(x) for x in planted.retain["image"]}


def test_plants_that_do_not_fit_are_refused():
    corpus = corpora.digits()
    with pytest.raises(UsageError, match="the plant needs 2060"):
        corpora.backdoor(corpus, corpora.Backdoor(positives=2000), 0)
    with pytest.raises(UsageError, match="does not fit digits: 10 classes"):
        corpora.backdoor(corpus, corpora.Backdoor(target=10), 0)
    with pytest.raises(UsageError, match="does not fit"):
        corpora.backdoor(corpus, corpora.Backdoor(size=5), 0)


def test_a_backdoor_in_larger_real_images(reference_data, tmp_path):
    """The plant is made for any images: Fashion-MNIST, 28 x 28."""
    parts = [np.load(p) for p in sorted((reference_data / "vis_fashion_mnist").glob("*.npz"))]
    arrays = {k: v for part in parts for k, v in part.items()}
    rows = [
        {"image": (arrays[f"x_{p}"][:3000].reshape(-1, 28, 28, 1) / 255.0), "label": arrays[f"y_{p}"][:3000]}
        for p in ("train", "test")
    ]
    corpus = checked("fashion", *rows)
    planted = corpora.backdoor(corpus, corpora.Backdoor(positives=30, size=4), 0, tmp_path / "t.json")
    changed = np.flatnonzero(planted.train["label"] != corpus.train["label"])
    assert len(changed) == 30


def test_rows_from_files(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"x": [1.5, 2], "y": 1}\n\n{"x": [3, 4], "y": 0}\n')
    found = corpora.read_rows(tmp_path / "a.jsonl")
    np.testing.assert_array_equal(found["x"], np.array([[1.5, 2], [3, 4]], np.float32))
    assert found["y"].dtype == np.int32
    np.savez(tmp_path / "a.npz", **found)
    np.testing.assert_array_equal(corpora.read_rows(tmp_path / "a.npz")["x"], found["x"])
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": [[1.0, 2.0], [3.0, 4.0]], "y": [1, 0]}), tmp_path / "a.parquet")
    assert corpora.read_rows(tmp_path / "a.parquet")["x"].shape == (2, 2)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "a JSON object was wanted, list arrived"),
        ('{"x": [1, 2]}', r"keys \['x'\], the first row has \['x', 'y'\]"),
        ('{"x": [1, 2, 3], "y": 0}', r"'x' has shape \(3,\), the first row \(2,\)"),
        ('{"x": [1, "a"], "y": 0}', "'x' is not a number or a rectangular list"),
        ('{"x": [[1], [2, 3]], "y": 0}', "'x' is not a number or a rectangular list"),
        ("[" * 100_000, "not JSON"),
        ('{"x": [1, NaN], "y": 0}', "not JSON .NaN is no number"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, why):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"x": [1, 2], "y": 1}\n\n' + line + "\n")
    with pytest.raises(MalformedRowError, match=f"rows.jsonl, line 3: {why}"):
        corpora.read_rows(path)


def test_other_bad_files(tmp_path):
    with pytest.raises(MissingFileError, match=r"none.jsonl is not there"):
        corpora.read_rows(tmp_path / "none.jsonl")
    for name, content, why in [
        ("a.pt", b"x", "pickle and .pt are never read"),
        ("a.jsonl", b"\n", "holds no rows"),
        ("a.npz", b"junk", "cannot be read as npz"),
        ("a.parquet", b"junk", "cannot be read as Parquet"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=why):
            corpora.read_rows(tmp_path / name)
    np.savez(tmp_path / "b.npz", x=np.array(["text"]))
    with pytest.raises(ShapeError, match="column 'x': dtype <U4"):
        corpora.read_rows(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", x=np.array([object()]))
    with pytest.raises(DataError, match="cannot be read as npz"):
        corpora.read_rows(tmp_path / "c.npz")


def test_a_corpus_of_ones_own_is_checked():
    good = {"image": np.zeros((3, 2, 2, 1)), "label": np.array([0, 1, 2])}
    assert checked("mine", good, good).classes == 3
    with pytest.raises(ShapeError, match="a dictionary of 'image' and 'label' was wanted"):
        checked("mine", {"pixels": good["image"]}, good)
    with pytest.raises(ShapeError, match=r"image float64\[3, 2, 2\]"):
        checked("mine", {**good, "image": np.zeros((3, 2, 2))}, good)
    with pytest.raises(ShapeError, match="divide bytes by 255"):
        checked("mine", {**good, "image": good["image"] + 200}, good)
    with pytest.raises(ShapeError, match=r"training images .3, 2, 1., test images .2, 2, 1."):
        checked("mine", {**good, "image": np.zeros((3, 3, 2, 1))}, good)
    with pytest.raises(NonFiniteError, match="mine, train: image holds"):
        checked("mine", {**good, "image": good["image"] * np.nan}, good)
