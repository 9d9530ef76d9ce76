"""The study of label noise: its three answers on a small task, the page, records, the command, and what is refused."""

import json
import re
import shutil
from typing import Any

import numpy as np
import pydantic
import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from uimjax import cli
from uimjax.config import NoiseConfig
from uimjax.errors import DataError, MissingFileError, ShapeError, UsageError
from uimjax.report.understood import write_page, write_pages
from uimjax.workflow import noise

SMALL: dict[str, Any] = {
    "seeds": 2, "epochs": 12, "rates": (0.0, 0.4), "amounts": (200, 500, 1200), "corruptions": (0.0, 0.4),
    "widths": (16,), "law_seeds": 2, "law_epochs": 10,
}  # fmt: skip


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
    spectra = found["representation"]
    sve = spectra["SVE"]["mean"]
    assert sve[1] > sve[0]  # noise spreads the spectrum
    assert spectra["SVE"]["change"][0] == pytest.approx(sve[1] - sve[0])
    assert spectra["given"]["rate"] == 0.1
    assert "change" not in spectra["given"]["SVE"]
    assert sve[0] < spectra["given"]["SVE"]["mean"][0] < sve[1]  # as the given labels' tenth does, less
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
    assert "Seed by seed, from noise 0 to 0.4: SVE +" in page


def test_several_studies_stand_side_by_side(done, tmp_path):
    folder, found = done
    page = write_pages([("one", found, folder), ("an<other", found, folder)], tmp_path).read_text()
    assert "<h1>Label noise in one and an&lt;other</h1>" in page
    assert page.count("data:image/svg+xml;base64,") == 8
    assert page.count("<h3>an&lt;other</h3>") == 4
    low, high = found["law"]["intervals"]["kappa"]
    assert f"<td>10.0%</td><td>{found['scores'][0]['score']}</td>" in page
    assert page.count(f"<td>{low:.5g} to {high:.5g}</td>") == 4  # in the overview, and with the law


def test_it_continues_where_it_stopped(done):
    folder, found = done
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*/digests-*.json")}
    assert len(kept) == 6
    assert not (folder / "jsonl").exists()
    again = noise.study(NoiseConfig(**SMALL, tensorboard=True), folder)
    assert again["scores"] == found["scores"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # nothing was trained again


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def board(folder) -> EventAccumulator:
    found = EventAccumulator(str(folder), tensor_size_guidance={k: 0 for k in ("scalars", "histograms", "text")})
    found.Reload()
    return found


def values(events: EventAccumulator, tag: str) -> list[tuple[int, np.ndarray]]:
    return [(e.step, tensor_util.make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)]


def records(folder) -> dict[str, list[tuple[int, float]]]:
    """Everything recorded, by run and name, TensorBoard's compared with the JSON lines on the way."""
    found = {}
    for where in sorted(path.parent for path in (folder / "jsonl").rglob("metrics.jsonl")):
        name = where.relative_to(folder / "jsonl")
        events, rows = board(folder / "tensorboard" / name), lines(where / "metrics.jsonl")
        for tag in {key for row in rows for key in row} - {"step"}:
            here = [(row["step"], row[tag]) for row in rows]
            seen = [(step, float(value)) for step, value in values(events, tag)]
            np.testing.assert_allclose(seen, here, rtol=1e-6)
            found[f"{name}/{tag}"] = here
    return found


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """From the start with records, on a task as small as may be."""
    folder = tmp_path_factory.mktemp("recorded")
    config = NoiseConfig(**{**SMALL, "epochs": 2, "rates": (0.0, 0.4)}, tensorboard=True)
    noise.study(config, folder)
    return folder, config


def test_curves_and_the_sweep_are_recorded_as_they_come(recorded):
    folder, _ = recorded
    found = records(folder)
    assert [step for step, _ in found["seed-0/loss"]] == [0, 1]
    assert found["seed-1/loss"][1][1] < found["seed-1/loss"][0][1]
    swept = sorted((folder / "jsonl" / "sweep").iterdir())
    assert len(swept) == 12
    said = json.loads((swept[0] / "metrics-hparams.json").read_text())
    assert said["hparams"]["width"] == 16
    assert said["metrics"]["loss"] > 0
    events = board(folder / "tensorboard" / "sweep" / swept[0].name)
    assert events.SummaryMetadata("_hparams_/session_start_info").plugin_data.plugin_name == "hparams"
    np.testing.assert_allclose(values(events, "hparam/loss")[0][1], said["metrics"]["loss"], rtol=1e-6)


def test_scores_are_recorded_by_right_and_wrong_labels(recorded):
    folder, config = recorded
    events, where = board(folder / "tensorboard" / "scores"), folder / "jsonl" / "scores"
    held = noise.examples(config.data, config.rate)
    step = 2 * 24  # epochs of 1,500 rows, 64 a batch
    for row in lines(where / "metrics-histograms.jsonl"):
        ((at, drawn),) = values(events, row["name"])
        assert at == row["step"] == step
        assert drawn[:, 2].tolist() == row["counts"]
        assert sum(row["counts"]) == (150 if row["name"].endswith("/wrong") else 1350)
    texts = lines(where / "metrics-texts.jsonl")
    assert [row["name"] for row in texts] == [f"suspicious/{k:02d}" for k in range(1, 21)]
    for row in texts:
        ((at, drawn),) = values(events, row["name"])
        assert (at, drawn.item().decode()) == (step, row["text"])
        number = int(row["text"].split()[1].rstrip(":"))
        word = "wrong" if held.wrong[number] else "right"
        assert f"given {held.given[number]}, true {held.true[number]} ({word}), aum" in row["text"]


def test_nothing_is_recorded_twice(recorded):
    folder, config = recorded
    before = records(folder)
    noise.study(config, folder)
    assert records(folder) == before
    shutil.rmtree(folder / "seed-0")  # as if stopped before the checkpoint, and in the sweep before the journal's line
    journal = folder / "sweep" / "journal.jsonl"
    *kept, _last = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(kept))
    noise.study(config, folder)
    again = records(folder)
    assert {k: len(v) for k, v in again.items()} == {k: len(v) for k, v in before.items()}
    assert again["seed-0/loss"] == before["seed-0/loss"]


def test_what_was_finished_without_records_is_recorded_when_asked(recorded, tmp_path):
    folder, config = recorded
    noise.study(config.model_copy(update={"tensorboard": False}), tmp_path)
    assert not (tmp_path / "jsonl").exists()
    noise.study(config, tmp_path)
    live, late = records(folder), records(tmp_path)
    assert late.keys() == live.keys()
    for name in ("loss", "margin", "steps_per_epoch"):
        np.testing.assert_allclose(late[f"seed-1/{name}"], live[f"seed-1/{name}"], rtol=1e-5)


def test_the_command_runs_several_configs(monkeypatch, tmp_path, capsys):
    """What is parsed, and where each goes; the studies themselves are tested above."""
    import uimjax.commands.understand as command

    seen = []
    monkeypatch.setattr(command, "_study", lambda *given: seen.append(given[:3]) or {})
    monkeypatch.setattr("uimjax.report.understood.write_pages", lambda *given: given[1] / "study.html")
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(f"kind: noise\nout: {name}\n")
    a, b = str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")
    for words, wanted in (
        (["--seeds", "3"], [("", 3, "runs/noise")]),
        ([a, "--seeds", "3"], [("", 3, "a")]),
        ([a, b, "--seeds", "4", "--out", "x"], [("a", 4, "x/a"), ("b", 4, "x/b")]),
        ([a, b], [("a", 5, "runs/understand/a"), ("b", 5, "runs/understand/b")]),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(["understand", *words])
        assert ended.value.code == 0
        assert [(name, config.seeds, str(out)) for name, config, out in seen] == wanted
        seen.clear()
    assert "wrote runs/understand/study.html" in capsys.readouterr().out
    with pytest.raises(UsageError, match="two of one name"):
        command._jobs([tmp_path / "a.yaml", tmp_path / "c" / "a.yaml"], None, [])


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


def test_files_that_are_no_examples(tmp_path):
    rng = np.random.default_rng(0)
    held = {"image": rng.random((20, 4, 4, 1)), "given": rng.integers(3, size=20), "true": rng.integers(3, size=20),
            "test_image": rng.random((5, 4, 4, 1)), "test_label": rng.integers(3, size=5)}  # fmt: skip
    path = tmp_path / "a.npz"

    def refused(kind, told):
        with pytest.raises(kind, match=re.escape(str(path)) + ".*" + told):
            noise.examples(str(path), 0.1)

    for data in (b"", b"no zip", b"PK\x03\x04 torn"):
        path.write_bytes(data)
        refused(DataError, "An .npz of image, given, .* arrays of numbers, was wanted")
    with path.open("wb") as file:
        np.save(file, held["given"])  # an .npy
    refused(ShapeError, "holds no named arrays")
    np.savez(path, **(held | {"given": held["given"].astype(object)}))
    refused(DataError, "arrays of numbers, was wanted")
    np.savez(path, **(held | {"image": held["image"][:0], "given": held["given"][:0], "true": held["true"][:0]}))
    refused(ShapeError, r"image float64\(0, 4, 4, 1\)")
    np.savez(path, **(held | {"test_image": held["test_image"][:0], "test_label": held["test_label"][:0]}))
    refused(ShapeError, "test_image")
    np.savez(path, **(held | {"image": held["image"].astype(str)}))
    refused(ShapeError, "image <U")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"widths": (16, 32)}, "one width was wanted"),
        ({"widths": (0,)}, "1 or more"),
        ({"rates": (0.0, 1.0)}, "from 0 to below 1"),
        ({"corruptions": (-0.1, 0.2)}, "from 0 to below 1"),
        ({"corruptions": (0.0, float("nan"))}, "from 0 to below 1"),
        ({"rates": (0.1, 0.1)}, "none of them twice"),
        ({"rates": ()}, "two or more"),
        ({"corruptions": (0.2,)}, "two or more"),
        ({"amounts": (100,)}, "two or more"),
        ({"amounts": (0, 100)}, "1 or more"),
        ({"amounts": (100, 200), "corruptions": (0.0, 0.2)}, "needs 5 pairs"),
        ({"data": "a.npz", "rate": 0.1}, "a.npz has its given labels.*Leave rate out"),
    ],
)
def test_configs_that_are_refused(given: dict[str, Any], told):
    with pytest.raises(pydantic.ValidationError, match=told):
        NoiseConfig(**given)
    assert NoiseConfig.model_validate({"data": "a.npz"}).rate == 0.1  # a default is nobody's wish


def test_more_data_than_there_are_is_refused_before_anything_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(noise, "_trained", lambda *_: pytest.fail("trained"))
    more: dict[str, Any] = SMALL | {"amounts": (200, 500, 9999)}
    with pytest.raises(UsageError, match="data=9999 arrived and there are 1500 training rows"):
        noise.study(NoiseConfig(**more), tmp_path)
