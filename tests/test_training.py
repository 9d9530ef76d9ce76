"""Training: the same curve when resumed, rows left out, dynamics in the same step, checkpoints that are checked."""

import dataclasses
import gc
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uimjax import checkpoint, models, room, steps, training
from uimjax.errors import CorruptError, MismatchError, MissingFileError, NonFiniteError, UnknownNameError, UsageError
from uimjax.interpret import counterfactual
from uimjax.sinks import JsonLines, TensorBoard
from uimjax.task import Task


@pytest.fixture
def rows(rng):
    label = rng.integers(3, size=50).astype(np.int32)
    image = rng.normal(size=(50, 4, 4, 1)).astype(np.float32) + label[:, None, None, None]
    return {"image": image, "label": label}


RECIPE = steps.Recipe(epochs=6, batch_size=16, learning_rate=1e-2)


def built(seed=0):
    return models.build("mlp", (4, 4, 1), 3, seed)


def test_training_learns_and_records_each_row_as_it_was_met(rows):
    task, params = built()
    fitted = training.fit(task, params, rows, RECIPE)
    assert fitted.loss[-1] < 0.5 * fitted.loss[0]
    assert fitted.example_loss.shape == fitted.margin.shape == (6, 50)
    assert np.isfinite(fitted.example_loss).all()
    # the first batch is met with the initial parameters
    key = jax.random.fold_in(jax.random.key(0), 0)
    first = np.asarray(jax.random.permutation(key, 50))[:16]
    losses = jax.vmap(lambda e: task.loss(params, e))(jax.tree.map(lambda x: x[first], rows))
    np.testing.assert_allclose(fitted.example_loss[0, first], losses, rtol=1e-5)
    logits = np.array(jax.vmap(lambda e: task.outputs(params, e))(jax.tree.map(lambda x: x[first], rows)))
    right = logits[np.arange(16), rows["label"][first]]
    logits[np.arange(16), rows["label"][first]] = -np.inf
    np.testing.assert_allclose(fitted.margin[0, first], right - logits.max(1), rtol=1e-4, atol=1e-5)


def test_margin_sums_to_the_published_aum():
    """AUM of real training trajectories, computed elsewhere from the same logits."""
    from pathlib import Path

    known = json.loads((Path(__file__).parent / "reference" / "digits_grand.json").read_text())
    logits, labels = jnp.asarray(known["logits"]), jnp.asarray(known["labels"][:6])
    margins = jax.vmap(jax.vmap(training.margin, (0, None)))(logits, labels)
    np.testing.assert_allclose(margins.mean(1), known["aum"], rtol=1e-4, atol=1e-4)


def test_the_same_seed_gives_the_same_curve_and_another_does_not(rows):
    task, params = built()
    one, two = (training.fit(task, params, rows, RECIPE).loss for _ in range(2))
    np.testing.assert_array_equal(one, two)
    other = training.fit(task, params, rows, steps.Recipe(6, 16, 1e-2, seed=1)).loss
    assert not np.array_equal(one, other)


def test_stopped_and_resumed_the_curve_is_the_same_to_the_bit(rows, tmp_path):
    task, params = built()
    want = training.fit(task, params, rows, RECIPE)

    class Stop(Exception):
        pass

    def until_four(items, *_args, **_kw):
        for item in items:
            if item == 4:
                raise Stop
            yield item

    sinks = lambda resume: [JsonLines(tmp_path / "metrics.jsonl", resume)]  # noqa: E731  # local shorthand
    with pytest.raises(Stop):
        training.fit(
            task, params, rows, RECIPE, folder=tmp_path / "c", save_every=3, progress=until_four, sinks=sinks(0)
        )
    assert checkpoint.latest(tmp_path / "c") == 3
    got = training.fit(task, params, rows, RECIPE, folder=tmp_path / "c", save_every=3, sinks=sinks(3))
    np.testing.assert_array_equal(got.loss, want.loss)
    np.testing.assert_array_equal(got.example_loss, want.example_loss)
    for a, b in zip(jax.tree.leaves(got.params), jax.tree.leaves(want.params), strict=True):
        np.testing.assert_array_equal(a, b)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(6))
    np.testing.assert_allclose([line["loss"] for line in lines], want.loss)
    again = training.fit(task, params, rows, RECIPE, folder=tmp_path / "c")
    np.testing.assert_array_equal(again.loss, want.loss)


def test_rows_of_weight_zero_are_met_by_nothing(rows):
    task, params = built()
    out = np.array([3, 7, 20])
    fitted = counterfactual.retrain_without(task, params, rows, out, RECIPE)
    assert np.isnan(fitted.example_loss[:, out]).all()
    spoiled = {**rows, "image": rows["image"].copy()}
    spoiled["image"][out] = 1e3
    other = counterfactual.retrain_without(task, params, spoiled, out, RECIPE)
    for a, b in zip(jax.tree.leaves(fitted.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    effect = counterfactual.removal_effect(task, params, rows, out, RECIPE, lambda _: 3.0, 1.0)
    assert (effect.before, effect.after, effect.change) == (1.0, 3.0, 2.0)
    with pytest.raises(UsageError, match="to leave out, of 50 rows"):
        counterfactual.retrain_without(task, params, rows, np.array([50]), RECIPE)


def test_bad_training_input_is_refused(rows):
    task, params = built()
    with pytest.raises(UsageError, match=r"weights of shape \(3,\) for 50 rows"):
        training.fit(task, params, rows, RECIPE, weights=np.ones(3))
    with pytest.raises(UsageError, match="at least one row kept"):
        training.fit(task, params, rows, RECIPE, weights=np.zeros(50))
    with pytest.raises(UsageError, match="should be positive"):
        steps.Recipe(epochs=0)
    with pytest.raises(UnknownNameError, match="unknown model 'mpl'. Did you mean 'mlp'"):
        models.build("mpl", (4, 4, 1), 3, 0)
    hot = steps.Recipe(3, 16, 1e30, optimizer="sgd")
    with pytest.raises(NonFiniteError, match="lower the learning rate"):
        training.fit(task, params, rows, hot)


# Orbax closes its event loop when one array is damaged, and a second one that is still being read may call it later
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_a_changed_checkpoint_is_refused(tmp_path):
    tree = {"w": jnp.arange(3000.0), "step": jnp.asarray(2)}
    checkpoint.save(tmp_path, 1, tree)
    step, got = checkpoint.load(tmp_path, tree)
    assert step == 1
    np.testing.assert_array_equal(got["w"], tree["w"])
    with pytest.raises(MismatchError, match="holds another model"):
        checkpoint.load(tmp_path, {"v": tree["w"]})
    for path in (tmp_path / "1").rglob("d/*"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(CorruptError, match="checkpoint 1"):
        checkpoint.load(tmp_path, tree)
    with pytest.raises(MissingFileError, match="no finished checkpoint"):
        checkpoint.load(tmp_path / "none", tree)
    gc.collect()  # here, where what Orbax leaves unawaited is expected


def test_tensorboard_reads_what_the_sink_wrote(tmp_path):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    sink = TensorBoard(tmp_path)
    for step in range(3):
        sink.write(step, {"loss": step / 2})
    sink.close()
    (path,) = tmp_path.iterdir()
    events = [e for e in EventFileLoader(str(path)).Load() if e.summary.value]
    assert [(e.step, e.summary.value[0].tag, e.summary.value[0].tensor.float_val[0]) for e in events] == [
        (0, "loss", 0.0),
        (1, "loss", 0.5),
        (2, "loss", 1.0),
    ]


def test_a_cnn_trains_and_its_gradients_are_proven(rows):
    from uimjax import taps

    task, params = models.build("cnn", (4, 4, 1), 3, 0)
    found = taps.sites(task, params, jax.tree.map(lambda x: x[0], rows))
    taps.verify(task, found, params, rows)
    fitted = training.fit(task, params, rows, steps.Recipe(8, 16, 1e-2, optimizer="sgd", schedule="constant"))
    assert fitted.loss[-1] < fitted.loss[0]


def test_a_task_without_outputs_has_no_margins(rng):
    data = rng.normal(size=(8, 2)).astype(np.float32)
    task = Task(lambda w, x: jnp.sum((x @ w) ** 2))
    fitted = training.fit(task, jnp.ones(2), data, steps.Recipe(2, 4))
    assert np.isnan(fitted.margin).all()


def test_a_folder_belongs_to_one_run(rows, tmp_path):
    task, params = built()
    training.fit(task, params, rows, RECIPE, folder=tmp_path)
    with pytest.raises(MismatchError, match="checkpoints of another run"):
        training.fit(task, params, {**rows, "image": -rows["image"]}, RECIPE, folder=tmp_path)
    with pytest.raises(MismatchError, match="checkpoints of another run"):
        training.fit(task, params, rows, steps.Recipe(6, 16, 2e-2), folder=tmp_path)


def by_hand(x, y, w, epochs, rate, *, warmup, clip, beta2, decay, adam):
    """Full-batch training in float64, written from the definitions."""
    first, second = np.zeros_like(w), np.zeros_like(w)
    for k in range(1, epochs + 1):
        gradient = ((x @ w - y)[:, None] * x).mean(0)
        if clip is not None:
            gradient = gradient * min(1.0, clip / np.linalg.norm(gradient))
        done = k / epochs if warmup else (k - 1) / epochs
        after = max(0.0, (done - warmup) / (1 - warmup))
        speed = rate * (done / warmup if done < warmup else 0.55 + 0.45 * np.cos(np.pi * after))
        if adam:
            first, second = 0.9 * first + 0.1 * gradient, beta2 * second + (1 - beta2) * gradient**2
            step = (first / (1 - 0.9**k)) / (np.sqrt(second / (1 - beta2**k)) + 1e-8) + decay * w
        else:
            step = first = 0.9 * first + gradient + decay * w
        w = w - speed * step
    return w


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize(("warmup", "clip", "beta2"), [(0.0, None, 0.999), (0.3, 0.2, 0.9), (0.25, 50.0, 0.95)])
def test_every_choice_of_a_recipe_acts_as_defined(rng, optimizer, warmup, clip, beta2):
    x, y, w = rng.normal(size=(20, 3)), 5 * rng.normal(size=20), rng.normal(size=3)
    task = Task(lambda w, row: 0.5 * (row["x"] @ w - row["y"]) ** 2)
    recipe = steps.Recipe(12, 20, 0.05, optimizer, 0.02, warmup=warmup, clip=clip, beta2=beta2)
    data = {"x": x.astype(np.float32), "y": y.astype(np.float32)}
    found = training.fit(task, jnp.asarray(w, jnp.float32), data, recipe).params
    more = {"warmup": warmup, "clip": clip, "beta2": beta2, "decay": 0.02, "adam": optimizer == "adamw"}
    np.testing.assert_allclose(found, by_hand(x, y, w, 12, 0.05, **more), rtol=2e-5, atol=2e-6)
    for k in (0, 3, 7.5):
        np.testing.assert_allclose(
            steps.rate(recipe, k),
            k / 12 / warmup if k / 12 < warmup else 0.55 + 0.45 * np.cos(np.pi * (k / 12 - warmup) / (1 - warmup)),
            rtol=1e-6,
        )


def test_a_recipe_out_of_range_is_refused():
    for wrong in ({"warmup": 1.0}, {"warmup": -0.1}, {"clip": 0.0}, {"beta2": 1.0}):
        with pytest.raises(UsageError, match="should lie in"):
            steps.Recipe(**wrong)


def test_a_folder_is_of_one_loss(rows, tmp_path):
    """Dropout turned on, or another loss: never the old parameters."""
    task, params = built()
    training.fit(task, params, rows, RECIPE, folder=tmp_path)
    noisy = dataclasses.replace(
        task, trained=lambda p, e, key: task.loss(p, e | {"image": e["image"] * jax.random.bernoulli(key, 0.5)})
    )
    twice = dataclasses.replace(task, loss=lambda p, e: 2 * task.loss(p, e))
    for other in (noisy, twice):
        with pytest.raises(MismatchError, match="another run \\(loss,"):
            training.fit(other, params, rows, RECIPE, folder=tmp_path)
    fitted = [training.fit(its, params, rows, RECIPE).loss for its in (task, noisy)]
    assert np.abs(fitted[0] - fitted[1]).max() > 1e-3


def test_what_an_epoch_needs_is_asked_of_the_compiler_once(monkeypatch):
    """Each of a story's sixty fits compiled its epoch only to ask for its memory."""
    asked, whole = [], room.need
    monkeypatch.setattr(room, "need", lambda *args: asked.append(args) or whole(*args))
    task, params = Task(lambda w, e: jnp.square(e["x"] @ w - e["y"])), jnp.ones(3)
    rows = {"x": np.ones((12, 3), np.float32), "y": np.ones(12, np.float32)}
    for seed in range(3):
        training.fit(task, params, rows, steps.Recipe(2, 4, 1e-2, seed=seed))
    assert len(asked) == 1
    wide = {name: np.concatenate([x, x]) for name, x in rows.items()}
    training.fit(task, params, wide, steps.Recipe(2, 4, 1e-2))
    assert len(asked) == 2


def test_rows_that_come_and_go_are_met_in_their_epochs_alone(rows):
    task, params = built()
    there = np.ones((RECIPE.epochs, 50), np.float32)
    there[[0, 1, 4, 5], :20] = 0
    fitted = training.fit(task, params, rows, RECIPE, weights=there)
    np.testing.assert_array_equal(np.isfinite(fitted.example_loss), there > 0)
    never = training.fit(task, params, rows, RECIPE, weights=there[0])
    np.testing.assert_array_equal(fitted.example_loss[:2, 20:], never.example_loss[:2, 20:])
    assert not np.array_equal(fitted.example_loss[3, 20:], never.example_loss[3, 20:])
    there[3] = 0
    with pytest.raises(UsageError, match="at least one row kept in each epoch"):
        training.fit(task, params, rows, RECIPE, weights=there)
