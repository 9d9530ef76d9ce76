"""The study of label noise: its three answers on a small task, the page, and what is refused."""

import numpy as np
import pytest

from uimjax.config import NoiseConfig
from uimjax.errors import DataError, MissingFileError, ShapeError
from uimjax.report.understood import write_page
from uimjax.workflow import noise

SMALL = {"seeds": 2, "epochs": 12, "rates": (0.0, 0.4), "amounts": (200, 500, 1200), "corruptions": (0.0, 0.4),
         "widths": (16,), "law_seeds": 2, "law_epochs": 10}  # fmt: skip


def test_flips_are_of_that_share_and_never_to_the_same_class():
    true = np.random.default_rng(0).integers(10, size=1000)
    found = noise.flipped(true, 0.3, 1)
    assert (found != true).sum() == 300
    assert set(np.unique(found)) == set(range(10))
    np.testing.assert_array_equal(found, noise.flipped(true, 0.3, 1))
    moved = (found - true)[found != true] % 10
    assert np.bincount(moved, minlength=10)[1:].min() > 15  # each other class about as often


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    return folder, noise.study(NoiseConfig(**SMALL), folder)


def test_three_answers_and_their_pictures(done):
    folder, found = done
    assert (found["examples"], found["wrong"], found["runs"]) == (1500, 150, 12)
    best = {row["score"]: row["auroc"] for row in found["scores"]}
    assert best["aum"][0] > 0.97
    assert best["aum"][1] <= best["aum"][0] <= best["aum"][2]
    assert best["variability"][0] < 0.5
    sve = found["representation"]["SVE"]["mean"]
    assert sve[1] > sve[0]  # noise spreads the spectrum
    assert found["law"]["parameters"]["kappa"] > 0.5  # and costs data
    for name in ("data_map", "detection", "representation", "law"):
        assert (folder / f"{name}.svg").is_file()
        assert found["readings"][name]


def test_the_page_says_it_offline(done):
    folder, found = done
    page = write_page(found, folder).read_text()
    assert "150 of 1,500 labels are wrong (10.0%)" in page
    assert page.count("data:image/svg+xml;base64,") == 4
    assert "<script" not in page
    assert "data with 10% noise is worth" in page


def test_it_continues_where_it_stopped(done):
    folder, found = done
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*/digests-*.json")}
    assert len(kept) == 6
    assert noise.study(NoiseConfig(**SMALL), folder)["scores"] == found["scores"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # nothing was trained again


def test_examples_of_ones_own(tmp_path):
    rng = np.random.default_rng(0)
    held = {"image": rng.random((20, 4, 4, 1)), "given": rng.integers(3, size=20), "true": rng.integers(3, size=20),
            "test_image": rng.random((5, 4, 4, 1)), "test_label": rng.integers(3, size=5)}  # fmt: skip
    np.savez(tmp_path / "a.npz", **held)
    found = noise.examples(str(tmp_path / "a.npz"), 0.1)
    assert found.wrong.sum() == (held["given"] != held["true"]).sum()
    with pytest.raises(MissingFileError, match="'digits' or an .npz of image, given"):
        noise.examples(str(tmp_path / "b.npz"), 0.1)
    np.savez(tmp_path / "c.npz", **{k: v for k, v in held.items() if k != "true"})
    with pytest.raises(ShapeError, match="true are missing"):
        noise.examples(str(tmp_path / "c.npz"), 0.1)
    np.savez(tmp_path / "d.npz", **(held | {"given": held["true"]}))
    with pytest.raises(DataError, match="nothing is there to be found"):
        noise.examples(str(tmp_path / "d.npz"), 0.1)
    np.savez(tmp_path / "e.npz", **(held | {"given": held["true"][:5]}))
    with pytest.raises(ShapeError, match="given int64"):
        noise.examples(str(tmp_path / "e.npz"), 0.1)
