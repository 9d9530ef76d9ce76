"""The collector inside our own training loop: the same run, and what it saw, resumed or not."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uimjax as uj
from tests.understand.dynamics.test_command import answer, called
from uimjax import steps, training
from uimjax.errors import DataError, MismatchError, ShapeError, UsageError
from uimjax.models.blocks import Shape
from uimjax.models.decoder import build_decoder, next_token
from uimjax.sinks import JsonLines

EVERY = ("loss", "margin", "probability", "correct", "el2n", "grand")
RECIPE = steps.Recipe(5, 8, 3e-2, seed=3)


def outputs(params, example):
    return jnp.tanh(example["x"] @ params["w1"]) @ params["w2"]


TASK = uj.Task(
    lambda p, e: -jax.nn.log_softmax(outputs(p, e))[e["y"]], outputs=outputs, label=lambda e: e["y"],
)  # fmt: skip


@pytest.fixture
def setting(rng):
    params = {
        "w1": jnp.asarray(rng.normal(size=(5, 9)), jnp.float32),
        "w2": jnp.asarray(rng.normal(size=(9, 3)), jnp.float32),
    }
    rows = {"x": rng.normal(size=(30, 5)).astype(np.float32), "y": rng.integers(3, size=30).astype(np.int32)}
    return params, rows


@pytest.mark.parametrize("what", [EVERY, ("loss", "margin", "probability", "correct", "el2n"), ("loss",)])
def test_a_run_is_the_same_with_a_collector_and_its_statistics_are_those_of_the_run(setting, what):
    params, rows = setting
    weights = np.ones(30, np.float32)
    weights[[2, 7]] = 0
    plain = training.fit(TASK, params, rows, RECIPE, weights=weights)
    found = training.fit(TASK, params, rows, RECIPE, weights=weights, dynamics=uj.dynamics.Collector(30, what, ring=5))
    for mine, theirs in zip(jax.tree.leaves(found.params), jax.tree.leaves(plain.params), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)
    seen = found.dynamics
    assert seen.met.tolist() == [0 if k in (2, 7) else 5 for k in range(30)]
    np.testing.assert_allclose(
        seen.loss, np.where(weights > 0, plain.example_loss.mean(0), np.nan), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(seen.last_loss, plain.example_loss[-1], rtol=1e-4, atol=1e-6)
    if "margin" in what:
        np.testing.assert_allclose(seen.margin, plain.margin.mean(0), rtol=1e-3, atol=1e-5)
        assert seen.correct[weights > 0].tolist() == (plain.margin > 0).sum(0)[weights > 0].tolist()
    if "grand" in what:
        at = uj.dynamics.Collector(30, what, at=(0,))
        first = training.fit(TASK, params, rows, dataclasses.replace(RECIPE, epochs=1, batch_size=30), dynamics=at)
        norms = uj.gradient_norms(TASK, params, rows)
        np.testing.assert_allclose(first.dynamics.at["grand"][:, 0], norms, rtol=1e-4)


def test_a_stopped_and_resumed_run_has_the_same_statistics_to_the_bit(setting, tmp_path):
    params, rows = setting
    collector = uj.dynamics.Collector(30, EVERY, at=(1, 3), ring=2)
    whole = training.fit(TASK, params, rows, RECIPE, dynamics=collector)

    class Stop(Exception):
        pass

    class Killer:
        def write(self, step, _scalars):
            if step == 3:
                raise Stop

    with pytest.raises(Stop):
        training.fit(TASK, params, rows, RECIPE, dynamics=collector, folder=tmp_path, save_every=2, sinks=[Killer()])
    again = training.fit(TASK, params, rows, RECIPE, dynamics=collector, folder=tmp_path, save_every=2)
    for mine, theirs in zip(jax.tree.leaves(again.dynamics), jax.tree.leaves(whole.dynamics), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    told = uj.dynamics.read(tmp_path)
    np.testing.assert_array_equal(told.scores["aum"].values, whole.dynamics.margin)
    assert told.labels.tolist() == rows["y"].tolist()
    assert (told.metadata["step"], told.metadata["seed"]) == (20, RECIPE.seed)
    with pytest.raises(MismatchError, match="another run"):
        training.fit(TASK, params, rows, RECIPE, folder=tmp_path)


def test_losses_with_noise_of_their_own(setting):
    params, rows = setting

    def trained(p, e, key):
        mask = jax.random.bernoulli(key, 0.8, (9,)) / 0.8
        return -jax.nn.log_softmax(jnp.tanh(e["x"] @ p["w1"]) * mask @ p["w2"])[e["y"]]

    noisy = dataclasses.replace(TASK, trained=trained)
    plain = training.fit(noisy, params, rows, RECIPE)
    found = training.fit(noisy, params, rows, RECIPE, dynamics=uj.dynamics.Collector(30, EVERY))
    for mine, theirs in zip(jax.tree.leaves(found.params), jax.tree.leaves(plain.params), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.dynamics.loss, plain.example_loss.mean(0), rtol=1e-4)
    np.testing.assert_allclose(found.dynamics.margin, plain.margin.mean(0), rtol=1e-3, atol=1e-5)


def test_what_cannot_be_collected_is_refused_before_anything_runs(setting):
    params, rows = setting
    with pytest.raises(UsageError, match="collector is of 29 examples, and 30 rows"):
        training.fit(TASK, params, rows, RECIPE, dynamics=uj.dynamics.Collector(29))
    odd = rows["y"].copy()
    odd[[4, 6]] = 3, -1
    with pytest.raises(DataError, match=r"row 4 has the label 3, and 2 rows have one outside 0..2 \(there are 3"):
        training.fit(TASK, params, rows | {"y": odd}, RECIPE, dynamics=uj.dynamics.Collector(30))
    with pytest.raises(UsageError, match="give the task outputs"):
        training.fit(uj.Task(TASK.loss), params, rows, RECIPE, dynamics=uj.dynamics.Collector(30))
    other = dataclasses.replace(TASK, loss=lambda p, e: 2 * TASK.loss(p, e))
    with pytest.raises(MismatchError, match="cross-entropy of the outputs"):
        training.fit(other, params, rows, RECIPE, dynamics=uj.dynamics.Collector(30))


def test_spikes_of_an_epoch_are_of_the_batches_of_that_epoch(setting, tmp_path, monkeypatch, capsys):
    params, rows = setting
    sink, seen = JsonLines(tmp_path / "metrics.jsonl"), steps.seen(RECIPE, 30)
    training.fit(TASK, params, rows, RECIPE, sinks=[sink])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["steps_per_epoch"]) for line in lines] == [(e, 4) for e in range(5)]
    lines[3]["loss"] = 1e6
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    np.save(tmp_path / "seen.npy", seen)
    words = ("spikes", "metrics.jsonl", "--batches", "seen.npy", "--window", "2")
    called(tmp_path, monkeypatch, *words, "--json")
    (spike,) = answer(capsys)["spikes"]
    assert (spike["epoch"], spike["steps"]) == (3, [12, 15])
    assert sorted(spike["ids"]) == sorted(x for x in seen[12:16].ravel().tolist() if x >= 0)
    called(tmp_path, monkeypatch, *words)
    assert "documents of epoch 3 (of all its steps 12..15): " in capsys.readouterr().out
    np.save(tmp_path / "short.npy", seen[:12])
    with pytest.raises(ShapeError, match="has 12 rows, and the curve 4 steps in each epoch up to 4"):
        called(tmp_path, monkeypatch, *words[:3], "short.npy", "--window", "2")
    bare = [{"step": line["step"], "loss": line["loss"]} for line in lines]  # as it was written before
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in bare))
    with pytest.raises(ShapeError, match="has 20 rows, and the curve ends at step 4: .*Does it count epochs"):
        called(tmp_path, monkeypatch, *words)


@pytest.mark.parametrize("packed", [False, True])
def test_tokens_of_a_language_model_are_those_of_a_slow_twin(packed, tmp_path):
    rng, count, length, epochs = np.random.default_rng(4), 6, 7, 3
    task, params = build_decoder(Shape(vocabulary=11, length=length, layers=1, width=8, heads=2), 3)
    rows = {"tokens": rng.integers(11, size=(count, length)).astype(np.int32),
            "counted": np.ones((count, length), np.float32)}  # fmt: skip
    rows["counted"][2, 4:] = 0  # padding
    if packed:
        rows["segments"] = np.tile(np.array([1, 1, 1, 2, 2, 2, 2], np.int32), (count, 1))
    collector, recipe = uj.dynamics.Collector(count, tokens=length), steps.Recipe(epochs, count, 1e-2)
    with pytest.raises(UsageError, match="of language: uimjax.models.decoder.next_token"):
        training.fit(task, params, rows, recipe, dynamics=collector)
    task = dataclasses.replace(task, label=next_token)
    seen = training.fit(
        task, params, rows, recipe, folder=tmp_path, snapshots=range(1, epochs), dynamics=collector
    ).dynamics
    told = np.zeros((count, length), bool)  # the loss counts what is said of the next token here
    for i in range(count):
        for t in range(length - 1):
            told[i, t] = rows["counted"][i, t + 1] and not (packed and t == 2)
    p, right = np.full((2, epochs, count, length), np.nan)
    for epoch in range(epochs):  # one step each: what a meeting saw are the parameters before it
        now = training.snapshot(tmp_path, params, epoch) if epoch else params
        for i, t in np.argwhere(told):
            z = np.asarray(task.outputs(now, {name: jnp.asarray(x[i]) for name, x in rows.items()}), np.float64)[t]
            answer_ = rows["tokens"][i, t + 1]
            p[epoch, i, t], right[epoch, i, t] = np.exp(z[answer_]) / np.exp(z).sum(), z.argmax() == answer_
    np.testing.assert_allclose(seen.tokens.probability.reshape(count, length), p.mean(0), rtol=1e-4)
    np.testing.assert_allclose(seen.tokens.loss.reshape(count, length), -np.log(p).mean(0), rtol=1e-4)
    assert (seen.tokens.met.reshape(count, length) > 0).tolist() == told.tolist()
    np.testing.assert_allclose(seen.loss, -np.nansum(np.log(p), -1).mean(0), rtol=1e-4)
    np.testing.assert_allclose(seen.probability, np.nanmean(p, -1).mean(0), rtol=1e-4)
    assert seen.tokens.correct.reshape(count, length)[told].tolist() == right.sum(0)[told].tolist()
