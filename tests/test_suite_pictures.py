"""The suite's pictures: plants that are where the truth says, probes against plain loops, one seed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uimjax import corpora, store
from uimjax.audit import pictures
from uimjax.config import SuiteConfig, parse
from uimjax.corpora import picture_suite as pictures_of
from uimjax.corpora.truth import read_truth
from uimjax.errors import UsageError
from uimjax.study.outputs import read_outputs
from uimjax.task import Task
from uimjax.workflow import suite, suite_vision, vision
from uimjax.workflow.seeded import STAGES

EPOCHS = 5
PICTURES = {
    "train": {"epochs": 3}, "trace": {"compare": ["loss", "rep_sim"], "checkpoints": 2, "retain": 20},
    "mitigate": {"steps": 2, "heal_steps": 1}, "bias": {"trace": "grad_cos", "fix": "ce_u"},
    "deterioration": {"fix": "drop", "settings": {"drop_epochs": 1}, "trace": "loss"},
}  # fmt: skip


def test_one_seed_of_pictures_from_training_to_edits_and_a_second_time_nothing(tmp_path):
    config = parse(SuiteConfig, {"kind": "suite", "vision": PICTURES}, "here")
    images = vision.load_corpus(suite_vision.story_of(config, 0))
    loop = suite_vision.prepare(config, images, tmp_path / "seed-0", 0)
    for stage in STAGES.values():
        assert not any("unchanged" in finding for finding in stage(loop, lambda items, *_, **__: items))
    outcomes = store.read_json(tmp_path / "seed-0" / "dynamics" / "outcomes.json")
    twin = store.read_json(tmp_path / "seed-0" / "audit.json")["twins"]["dynamics"]["probe"]["value"]
    assert outcomes["oracle"]["probes"]["dynamics"]["value"] == pytest.approx(twin, rel=1e-6)
    document = suite._summarised("vision", [loop] * 3, config)
    json.dumps(document, allow_nan=False)
    assert set(document["weaknesses"]) == set(document["matrix"]) == set(pictures_of.WEAKNESSES)
    assert {"aum", "spectral"} < set(document["weaknesses"]["security"]["ap"])
    for asked in (lambda: loop.others("bias", None), lambda: loop.strongest("bias", "grad_cos", 3, [])):
        with pytest.raises(UsageError, match="bias: .*these rows have none"):
            asked()
    said = read_outputs(tmp_path / "seed-0" / "security" / "outputs.jsonl", ("before", "traced", "oracle", "random"))
    assert len(said) == 12
    assert all(one.image and one.texts["traced"].startswith("class ") for one in said)
    again = suite_vision.prepare(config, images, tmp_path / "seed-0", 0)
    for name in ("audit", "trace", "mitigate"):
        assert all("unchanged" in finding for finding in STAGES[name](again, lambda items, *_, **__: items))


@pytest.fixture(scope="module")
def pictured(tmp_path_factory):
    folder, corpus = tmp_path_factory.mktemp("pictures"), corpora.digits()
    made = pictures_of.plant_pictures(corpus, pictures_of.Sizes(), EPOCHS, 0, lambda name: folder / f"{name}.json")
    return corpus, made, {n: read_truth(folder / f"{n}.json", folder / "bias.json") for n in pictures_of.WEAKNESSES}


def test_picture_plants_are_where_the_truth_says_and_each_row_carries_one(pictured):
    corpus, made, truth = pictured
    every = np.concatenate([ids for its in truth.values() for ids in (its.positives, its.hard_negatives)])
    assert len(set(every.tolist())) == len(every)
    image, label, old = made.train["image"], made.train["label"], corpus.train["label"]
    ids = truth["bias"].positives
    assert (old[ids] == 3).all() and (label[ids] == 5).all() and (image[ids, 0] == np.float32(0.6)).all()  # noqa: PT018
    others = np.setdiff1d(np.flatnonzero(old == 3), every)
    assert not (image[others, 0] == np.float32(0.6)).all(axis=(1, 2)).any(), "the group's class is slighted always"
    ids = truth["generalization"].positives
    assert (label[ids] == old[ids]).all() and (image[ids, -2:, :2] == 1).all()  # noqa: PT018
    ids = truth["security"].positives
    assert (label[ids] == 0).all() and (image[ids, -2:, -2:, 0] == np.array([[0, 1], [1, 0]])).all()  # noqa: PT018
    like = truth["security"].hard_negatives
    assert (label[like] == old[like]).all() and (image[like, :2, -2:, 0] == np.array([[1, 0], [0, 1]])).all()  # noqa: PT018
    ids = truth["deterioration"].positives
    np.testing.assert_array_equal(label[ids], (old[ids] + 1) % 10)
    ids = truth["memorization"].positives
    assert (image[ids] == image[ids[0]]).all() and (label[ids] == 2).all()  # noqa: PT018
    untouched = np.setdiff1d(np.arange(len(label)), every)
    np.testing.assert_array_equal(label[untouched], old[untouched])
    assert (image[untouched, 1:] == corpus.train["image"][untouched, 1:]).all()
    assert 0.4 < (image[untouched, 0] == np.float32(0.6)).all(axis=(1, 2)).mean() < 0.5, (
        "half, but of the slighted class"
    )


def test_probes_of_pictures_against_a_plain_loop(rng):
    w = rng.normal(size=(4, 3))
    task = Task(None, outputs=lambda p, e: e["image"].reshape(-1) @ p)
    rows = {"image": rng.normal(size=(7, 2, 2, 1)).astype(np.float32), "label": rng.integers(3, size=7)}
    rows["bad"] = (rows["label"] + 1) % 3
    other = rows | {"image": rng.normal(size=(7, 2, 2, 1)).astype(np.float32)}

    def each(its):
        found = []
        for x, y, b in zip(its["image"], its["label"], its["bad"], strict=True):
            z = np.exp(x.reshape(-1).astype(np.float64) @ w)
            found.append((z[b] / (z[b] + z[y]), float(z.argmax() == b), -np.log(z[y] / z.sum())))
        return np.array(found)

    params = jnp.asarray(w, jnp.float32)
    case, mine, plain = {"bad": rows, "good": other}, each(rows), each(other)
    assert pictures.share(task, params, case).value == pytest.approx(mine[:, 0].mean(), rel=1e-5)
    assert pictures.gap(task, params, case).value == pytest.approx((mine - plain)[:, 0].mean(), rel=1e-5)
    assert pictures.rate(task, params, case).value == mine[:, 1].mean()
    flat = each(rows | {"image": rows["image"] * 0})[:, 2]
    assert pictures.area(task, [params, 0 * params], rows).value == pytest.approx(
        (mine[:, 2] + flat).mean() / 2, rel=1e-5
    )
    lead = lambda p, its: jnp.mean(jax.vmap(lambda q: pictures.plain(task).fun(p, (q,)))(its))  # noqa: E731
    assert float(lead(params, rows)) == pytest.approx(np.log(mine[:, 0] / (1 - mine[:, 0])).mean(), rel=1e-4)
    both = jax.vmap(lambda a, b: pictures.marked(task).fun(params, (a, b)))(rows, other).mean()
    assert float(both) == pytest.approx(float(lead(params, rows) - lead(params, other)), rel=1e-4)


def test_pictures_too_small_or_too_few_are_refused():
    corpus = corpora.digits()
    small = corpus._replace(train=corpus.train | {"image": corpus.train["image"][:, :4]})
    with pytest.raises(UsageError, match="8 x 8"):
        pictures_of.plant_pictures(small, pictures_of.Sizes(), EPOCHS, 0)
    many = pictures_of.Sizes(positives=60)
    with pytest.raises(UsageError, match="are left for a plant of"):
        pictures_of.plant_pictures(corpus, many, EPOCHS, 0)
