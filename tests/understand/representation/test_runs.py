"""`uimjax representation RUN`: series of a training's own snapshots and of stories' runs, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.understand.representation.test_curvature import called
from uimjax import rows as row
from uimjax import training, workflow
from uimjax.config import RunConfig, TextConfig, parse
from uimjax.errors import UimError
from uimjax.steps import Recipe
from uimjax.task import Task
from uimjax.workflow import reopening

ME = "tests.understand.representation.test_runs"
CURVED = ("--curvature", "hessian", "--probes", "2", "--order", "3", "--rows", "8")
VISION = {"plant": {"draws": 2}, "model": "mlp", "train": {"epochs": 2}}


def features(params, example):
    return jnp.tanh(example["x"] @ params["a"])


def loss(params, example):
    return jnp.square(features(params, example) @ params["c"] - example["y"])


def own():
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(3, 4)), "c": rng.normal(size=4)}
    data = {"x": rng.normal(size=(20, 3)), "y": rng.normal(size=20)}
    return (Task(loss, features=features), *jax.tree.map(lambda x: x.astype(np.float32), (params, data)))


def blind():
    task, params, data = own()
    return Task(task.loss), params, data


def bare():
    """Parameters that are one array."""
    return Task(lambda p, x: p @ x, features=lambda p, x: p * x), np.ones(3, np.float32), np.ones((5, 3), np.float32)


def answer(folder, monkeypatch, capsys, *args):
    called(folder, monkeypatch, *args, "--json")
    return json.loads(capsys.readouterr().out)


def files_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of `training.fit`: with a snapshot, and without; a folder of nothing."""
    at = tmp_path_factory.mktemp("runs")
    recipe = Recipe(epochs=3, batch_size=5, learning_rate=0.1)
    training.fit(*own(), recipe, folder=at / "kept", snapshots=(1, 2))
    training.fit(*own(), recipe, folder=at / "ends")
    training.fit(*bare(), recipe, folder=at / "bare", snapshots=(2,))
    (at / "empty").mkdir()
    return at


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    at = tmp_path_factory.mktemp("demo")
    workflow.run(parse(RunConfig, VISION, "v"), at / "vision", "train")
    return at


def test_snapshots_and_the_end_of_ones_own_training_are_a_series(runs, tmp_path, monkeypatch, capsys):
    before = files_in(runs)
    found = answer(tmp_path, monkeypatch, capsys, str(runs / "kept"), "--task", f"{ME}:own", "--limit", "15", *CURVED)
    names = ["epoch-1", "epoch-2", "epoch-3"]
    assert [(its["name"], its["rows"], its["width"]) for its in found["files"]] == [(name, 15, 4) for name in names]
    assert [its["name"] for its in found["curvature"]["checkpoints"]] == names
    task, initial, data = own()
    recipe = Recipe(epochs=3, batch_size=5, learning_rate=0.1)
    twin = training.fit(task, initial, data, recipe, folder=tmp_path / "twin", snapshots=(1,))
    for name, params in (("epoch-1", training.snapshot(tmp_path / "twin", initial, 1)), ("epoch-3", twin.params)):
        mine = jax.vmap(features, (None, 0))(params, row.spread(data, 15))
        np.testing.assert_allclose(np.load(tmp_path / f"runs/representation/features/{name}.npy"), mine, atol=1e-6)
    assert files_in(runs) == before


def test_without_snapshots_it_is_the_beginning_and_the_end(runs, tmp_path, monkeypatch, capsys):
    found = answer(tmp_path, monkeypatch, capsys, str(runs / "ends"), "--task", f"{ME}:own", "--out", "o")
    assert [its["name"] for its in found["files"]] == ["epoch-0", "epoch-3"]
    _, initial, data = own()
    mine = jax.vmap(features, (None, 0))(initial, data)
    np.testing.assert_allclose(np.load(tmp_path / "o/features/epoch-0.npy"), mine, atol=1e-6)
    assert training.kept(runs / "bare") == [2, 3]
    _, initial, _ = bare()
    assert training.parameters(runs / "bare", initial, 3).shape == (3,)


def test_a_run_of_pictures_is_rebuilt_from_its_lock(pictures, tmp_path, monkeypatch, capsys):
    before = files_in(pictures)
    found = answer(tmp_path, monkeypatch, capsys, str(pictures / "vision"), "--limit", "30", *CURVED)
    assert [(its["name"], its["rows"]) for its in found["files"]] == [("epoch-0", 30), ("epoch-2", 30)]
    first, last = found["curvature"]["checkpoints"]
    assert last["loss"] < first["loss"]
    one, two = (reopening.reopened(pictures / "vision" / f"draw-{k}") for k in (0, 1))
    assert not np.array_equal(one.rows["image"], two.rows["image"])
    mine = jax.vmap(one.task.features, (None, 0))(
        training.parameters(one.folder, one.initial, 2), row.spread(one.rows, 30)
    )
    np.testing.assert_allclose(np.load(tmp_path / "runs/representation/features/epoch-2.npy"), mine, atol=1e-5)
    assert files_in(pictures) == before


def test_a_run_of_text_has_its_snapshots_over_its_own_rows(tmp_path, monkeypatch, capsys):
    from tests.test_text_story import MINE, SMALL

    (tmp_path / "sources_of_runs.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = parse(TextConfig, SMALL | {"corpus": "sources_of_runs:corpus"}, "t")
    workflow.run(config, tmp_path / "r", "train")
    before = files_in(tmp_path / "r")
    found = answer(tmp_path, monkeypatch, capsys, "r", "--limit", "20", *CURVED, "--out", "o")
    epochs = sorted({*training.spread(3, 2), 3})
    assert [(its["name"], its["rows"]) for its in found["files"]] == [(f"epoch-{k}", 20) for k in epochs]
    assert all(its["tokens_a_row"] > 1 for its in found["curvature"]["checkpoints"])
    assert files_in(tmp_path / "r") == before
    lock = tmp_path / "r" / "config.lock.yaml"
    lock.write_text(lock.read_text().replace("seed: 0", "seed: 1"))
    with pytest.raises(UimError, match="the corpus is not the one that"):
        called(tmp_path, monkeypatch, "r")


@pytest.mark.parametrize(
    ("args", "code", "match"),
    [
        (("empty",), 3, "no features and is no run; .* `uimjax run CONFIG` or training.fit"),
        (("empty", "--task", "a:b"), 3, "is no run; with --task one of training.fit"),
        (("kept",), 2, "keeps no task: one --task"),
        (("kept", "--task", "a:b", "c:d"), 2, "keeps no task: one --task"),
        (("kept", "ends", "--task", "a:b"), 2, "name nothing beside it"),
        (("kept", "--model", "m", "--corpus", "c"), 2, "one of the three fits"),
        (("kept", "--task", f"{ME}:blind"), 2, "blind returned a task without features"),
        (("kept", "--task", f"{ME}:bare"), 3, "holds another model"),
    ],
)
def test_what_is_no_run_or_lacks_its_task_is_refused(runs, monkeypatch, args, code, match):
    with pytest.raises(UimError, match=match) as caught:
        called(runs, monkeypatch, *args)
    assert caught.value.exit_code == code


def test_runs_that_are_not_ready_are_refused(pictures, tmp_path, monkeypatch):
    with pytest.raises(UimError, match="knows its task; leave --task out"):
        called(pictures, monkeypatch, "vision", "--task", "a:b", "--out", str(tmp_path))
    with pytest.raises(UimError, match="holds several runs; name one of them: .*vision"):
        called(pictures, monkeypatch, str(pictures), "--out", str(tmp_path))
    (tmp_path / "config.lock.yaml").write_text((pictures / "vision" / "config.lock.yaml").read_text())
    with pytest.raises(UimError, match="holds no trained model yet; `uimjax run .*` goes on"):
        called(tmp_path, monkeypatch, str(tmp_path))


def test_a_folder_where_features_lie_keeps_its_meaning(tmp_path, monkeypatch, capsys):
    training.fit(*own(), Recipe(epochs=1, batch_size=5), folder=tmp_path / "r")
    np.save(tmp_path / "r" / "mine.npy", np.random.default_rng(0).normal(size=(9, 3)))
    assert [its["name"] for its in answer(tmp_path, monkeypatch, capsys, "r")["files"]] == ["mine"]
    assert [its["name"] for its in answer(tmp_path, monkeypatch, capsys, "r", "--task", f"{ME}:own")["files"]] == [
        "epoch-0", "epoch-1"]  # fmt: skip
