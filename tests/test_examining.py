"""`uimjax audit --model CLASSIFIER --examples`: groups, an adversary, and mistakes that a trace takes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.answers.test_audit import call
from tests.answers.test_mistakes import ask, lines, pictures, texts  # noqa: F401  # a fixture
from uimjax.audit.robustness import attacked
from uimjax.config import ExaminedConfig
from uimjax.errors import UsageError
from uimjax.task import Task
from uimjax.workflow.examining import _attacked


def linear(params, example):
    z = jnp.sum(params * example["image"]) * (2 * example["label"] - 1)
    return -jax.nn.log_sigmoid(z)


TASK = Task(linear, outputs=lambda p, e: jnp.stack([-jnp.sum(p * e["image"]), jnp.sum(p * e["image"])]) / 2)


@pytest.fixture
def rows(rng):
    return {"image": rng.integers(60, 190, (23, 3, 3, 1)).astype(np.uint8), "label": rng.integers(2, size=23)}


def test_the_adversary_of_a_linear_model_takes_what_can_be_taken(rows, rng):
    """Its worst change is known: epsilon against the sign of each weight."""
    w = rng.normal(size=(3, 3, 1)).astype(np.float32) / 100
    found = attacked(TASK, jnp.asarray(w), rows, 8.0, steps=5, high=255.0, batch_size=7)
    sign = (2 * rows["label"] - 1)[:, None, None, None]
    np.testing.assert_allclose(found, rows["image"] - 8.0 * sign * np.sign(w), rtol=1e-6)
    assert found.dtype == np.float32
    other = attacked(TASK, jnp.asarray(w), rows, 8.0, steps=1, high=255.0, batch_size=23)
    same = attacked(TASK, jnp.asarray(w), rows, 8.0, steps=1, high=255.0, batch_size=5)
    assert (other == same).all(), "what is drawn for a row does not hang on the rows beside it"


def test_a_change_stays_small_and_in_range(rows, rng):
    w = jnp.asarray(rng.normal(size=(3, 3, 1)), jnp.float32)
    dark = {**rows, "image": np.minimum(rows["image"], 3)}
    found = attacked(TASK, w, dark, 8.0, high=255.0)
    assert found.min() >= 0
    assert np.abs(found - dark["image"]).max() <= 8.0 + 1e-4
    np.testing.assert_array_equal(attacked(TASK, w, rows, 0.0, high=255.0), rows["image"])
    for wrong in ({"epsilon": -1.0}, {"epsilon": 1.0, "steps": 0}, {"epsilon": 1.0, "low": 1.0, "high": 1.0}):
        with pytest.raises(UsageError):
            attacked(TASK, w, rows, **wrong)


def test_accuracy_under_attack_falls_with_epsilon(rows, rng):
    w = rng.normal(size=(3, 3, 1)) / 100
    w = jnp.asarray(w - w.mean(), jnp.float32)
    z = np.sum(np.asarray(w) * rows["image"], axis=(1, 2, 3))
    rows = {**rows, "label": (z > 0).astype(int)}
    config = ExaminedConfig(model="m", examples=("e",))
    values = []
    for epsilon in (1.0, 10.0, 50.0):
        card = _attacked(TASK, w, rows, np.ones(23, bool), epsilon, config)
        values.append(card["value"])
        assert card["value"] == np.mean(np.abs(z) > epsilon * np.abs(np.asarray(w)).sum()), "no pixel leaves its range"
        assert (card["reference"], card["says"]) == (1.0, "told, not judged")
    assert values[0] > values[1] > values[2]


def test_a_classifier_of_texts_is_judged_and_its_mistakes_are_traced(texts, tmp_path, capsys):  # noqa: F811
    folder, corpus, _ = texts
    rng = np.random.default_rng(1)
    made = []
    for k in range(60):
        words, kind = [f"w{x}" for x in rng.integers(10, 30, 6)], k % 2
        words[0] = ("w40", "w41")[kind]
        if odd := k % 4 == 0:
            words[1] = "w50"  # which it learned to call angry
        made.append({"text": " ".join(words), "label": ("calm", "angry")[kind], "of": "odd" if odd else "plain"})
    asked = lines(tmp_path / "asked.jsonl", made)
    flags = ("--model", folder / "model", "--examples", asked, "--group_column", "of", "--length", "16")
    assert call(*flags, "--out", tmp_path / "out", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    cards = told["weaknesses"]
    assert set(cards) == {"accuracy", "worst class", "worst group"}
    assert cards["worst group"]["says"] == "alarm"
    by = cards["worst group"]["by_category"]
    assert by["odd"] < 0.5 < by["plain"]
    wrong = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert len(wrong) == told["failures"] == round(60 * (1 - cards["accuracy"]["value"]))
    assert {its["predicted"] for its in wrong} == {"angry"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "told, not judged" in page
    assert "uimjax trace --model" in page
    assert call(*flags, "--least", "50", "--out", tmp_path / "few", "--json") == 0
    assert set(json.loads(capsys.readouterr().out)["weaknesses"]) == {"accuracy"}, "no two groups are large enough"
    assert call("--model", folder / "model", "--examples", asked, "--items", asked) == 2
    assert call("--model", "head", "--examples", asked) == 2
    capsys.readouterr()
    queries = tmp_path / "out" / "failures.jsonl"
    assert ask(tmp_path / "trace", model=folder / "model", corpus=corpus, queries=queries, length=16) == 0


def test_a_classifier_of_pictures_is_attacked_and_its_mistakes_are_pictures(pictures, tmp_path, capsys):  # noqa: F811
    folder, _ = pictures
    (tmp_path / "asked" / "blue").mkdir(parents=True)
    for path in (folder / "corpus" / "red").glob("odd*.png"):  # green ones, which it learned to call red
        (tmp_path / "asked" / "blue" / path.name).write_bytes(path.read_bytes())
    flags = ("--model", folder / "model", "--examples", folder / "corpus", tmp_path / "asked", "--epsilon", "2", "200")
    assert call(*flags, "--out", tmp_path / "out", "--least", "3", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    cards = told["weaknesses"]
    assert cards["accuracy"]["value"] < 1
    assert cards["adversary, 200 of 255"]["value"] < cards["adversary, 2 of 255"]["value"] <= cards["accuracy"]["value"]
    queries = tmp_path / "out" / "failures.jsonl"
    assert told["failures"] == 3
    assert ask(tmp_path / "trace", "--json", model=folder / "model", corpus=folder / "corpus", queries=queries) == 0
    answers = json.loads(capsys.readouterr().out)["failures"]
    assert all("odd" in one["proponents"][0]["id"] for one in answers)
