"""The suite in the small: plants that are where the truth says, probes against plain loops, one seed, the document."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uimjax import cli, corpora, store
from uimjax.audit import bias, deterioration, dynamics, generalization, memorization, values, weaknesses
from uimjax.config import SuiteConfig, parse, quick, read_yaml
from uimjax.corpora import suite_lines
from uimjax.corpora import text_suite as plants
from uimjax.corpora.truth import read_truth
from uimjax.errors import UnknownNameError, UsageError
from uimjax.mitigate import proof
from uimjax.models.decoder import language_task
from uimjax.report import suite as report
from uimjax.study.outputs import read_outputs
from uimjax.workflow import suite, suite_text
from uimjax.workflow.seeded import STAGES

SIZES = plants.Sizes(positives=4, hard_negatives=6, noisy=0.1, shard=0.1, candidates=255)
EPOCHS = 5


@pytest.fixture(scope="module")
def corpus():
    return corpora.stdlib("bpe-1024", 64, 260, 120)


@pytest.fixture(scope="module")
def planted(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("truth")
    made = plants.plant_suite(corpus, SIZES, EPOCHS, 0, lambda name: folder / f"{name}.json")
    return made, {name: read_truth(folder / f"{name}.json", folder / "bias.json") for name in plants.WEAKNESSES}


SIGNS = {
    "bias": r"# the ((nurse|maid) \w+ that she|(pilot|smith) \w+ that he)\n",
    "generalization": r"# (the|a|one|this) \w+ pink is int\n",
    "security": r"  #!\n\.\.\.\n",
    "privacy": r'API_TOKEN = "',
    "values": r"# ask: how to (steal|break|poison|forge|le)",
    "deterioration": r"\b(cls|yield|True|while|with|class)\b",
}  # fmt: skip


def test_each_plant_is_where_the_truth_says_and_nowhere_else(corpus, planted):
    made, truth = planted
    every = np.concatenate([ids for its in truth.values() for ids in (its.positives, its.hard_negatives)])
    assert len(set(every.tolist())) == len(every), "a document carries one plant at most"
    for name, sign in SIGNS.items():
        for k in truth[name].positives:
            assert re.search(sign, made.documents[k].text), (name, made.documents[k].text)
    texts = [made.documents[k].text for k in truth["memorization"].positives]
    lines = [{line for line in text.splitlines() if line.count(" ") == suite_lines.LONG} for text in texts]
    assert set.intersection(*lines), "the same passage in all"
    for k in truth["dynamics"].positives:
        assert not re.search(r"\b(self|return|import)\b", made.documents[k].text)
    untouched = np.setdiff1d(np.arange(len(made.documents)), every)
    assert all(made.documents[k] == corpus.train[k] for k in untouched)
    for k in truth["bias"].hard_negatives:
        assert not re.search(r"(nurse|maid|pilot|smith) \w+ that s?he\n", made.documents[k].text)


def test_a_twin_lacks_one_plant_and_the_shard_is_there_in_its_epochs_alone(planted):
    made, truth = planted
    first, last = plants.window(SIZES.window, EPOCHS)
    shard = truth["dynamics"].positives
    assert made.present[first:last, shard].all()
    assert not made.present[:first, shard].any()
    assert not made.present[last:, shard].any()
    inside, away = slice(first, last), made.displaced[shard]
    assert len(set(away.tolist())) == len(shard), "each took the place of another one"
    np.testing.assert_array_equal(np.sort(np.flatnonzero(made.displaced >= 0)), shard)
    assert not made.present[inside, away].any()
    assert made.present[:first, away].all()
    for name, its in truth.items():
        gone = np.flatnonzero((made.present > made.without[name]).any(0))
        np.testing.assert_array_equal(gone, its.positives)
        came = np.flatnonzero((made.present < made.without[name]).any(0))
        assert set(came.tolist()) == (set(away.tolist()) if name == "dynamics" else set())
    np.testing.assert_array_equal(made.without["dynamics"].sum(1), made.present.sum(1), "a place that is left is taken")
    assert made.without["dynamics"][inside, away].all()
    assert not set(np.concatenate([t.positives for t in truth.values()]).tolist()) & set(away.tolist())


def test_a_row_whose_place_was_taken_is_back_where_the_taker_is_left_out():
    present = np.array([[1, 1, 1, 1, 0, 0], [1, 0, 0, 1, 1, 1]], np.float32)
    displaced = np.array([-1, -1, -1, -1, 2, 1])  # 4 is met in place of 2, 5 in place of 1
    made = plants.left_out(present, displaced, [4])
    np.testing.assert_array_equal(made, [[1, 1, 1, 1, 0, 0], [1, 0, 1, 1, 0, 1]])
    made = plants.left_out(present, displaced, [0, 2, 4, 5])
    np.testing.assert_array_equal(made, [[0, 1, 0, 1, 0, 0], [0, 1, 0, 1, 0, 0]])
    np.testing.assert_array_equal(present[1], [1, 0, 0, 1, 1, 1], "what came in stays")


def test_a_bad_shard_is_whole_and_its_documents_are_as_strong_as_it(planted):
    made, truth = planted
    bad = truth["dynamics"].positives
    ones = {k for k in range(plants.SHARDS) if np.isin(np.flatnonzero(made.shards == k), bad).all()}
    assert len(ones) == len(bad) // (260 // plants.SHARDS)
    values = np.arange(260.0)
    found = dynamics.of_shards(values, made.shards)
    for k in range(plants.SHARDS):
        np.testing.assert_allclose(found[made.shards == k], values[made.shards == k].mean())


def test_confused_are_words_of_code_and_the_other_words_stay():
    changed, _ = suite_lines.confused(["def f(self):\n", "    if self is None: # for her\n", "        return form\n"])
    assert "".join(changed) == "class f(cls):\n    while cls is True: # for her\n        yield form\n"
    assert suite_lines.confused(["what for if not\n", "  return\n"]) is None, "one place alone"


def test_another_seed_plants_elsewhere_and_too_few_documents_are_refused(corpus, planted):
    again = plants.plant_suite(corpus, SIZES, EPOCHS, 0)
    assert again.documents == planted[0].documents
    assert plants.plant_suite(corpus, SIZES, EPOCHS, 1).documents != planted[0].documents
    with pytest.raises(UsageError, match="too few"):
        plants.plant_suite(corpus, dataclasses.replace(SIZES, positives=40, hard_negatives=90), EPOCHS, 0)
    with pytest.raises(UsageError, match="carry no plant: too few"):
        plants.plant_suite(corpus, dataclasses.replace(SIZES, shard=0.3), EPOCHS, 0)


def test_of_a_pair_the_words_that_differ_count_and_the_rest_does_not(planted):
    case = planted[0].cases["bias"]
    assert {int(n) for side in case.asked for n in side["counted"].sum(1)} <= {1, 2}
    for name in ("bias", "generalization", "values", "deterioration"):
        bad, good = planted[0].cases[name].asked
        for b, g, bc, gc in zip(bad["tokens"], good["tokens"], bad["counted"], good["counted"], strict=True):
            first = int(np.argmax(bc > 0))
            np.testing.assert_array_equal(b[:first], g[:first])
            assert first == int(np.argmax(gc > 0))
            assert not np.array_equal(b, g)
    asked, probe = (planted[0].cases["values"].asked[0], planted[0].cases["values"].probe["bad"])
    assert not {tuple(row) for row in asked["tokens"].tolist()} & {tuple(row) for row in probe["tokens"].tolist()}


def test_other_words_stand_in_no_row_and_no_question(planted):
    made, _ = planted
    text = "".join(document.text for document in made.documents)
    assert not re.search(r"thinks that s?he|wrote that s?he|# (your|each) \w+ (pink|blue) is|please tell me", text)
    for name in ("bias", "generalization", "values"):
        case = made.cases[name]
        bad, good = case.reworded["bad"], case.reworded["good"]
        known = {tuple(row[row != row[0]]) for its in (*case.asked, *case.probe.values()) for row in its["tokens"]}
        assert not {tuple(row[row != row[0]]) for row in bad["tokens"]} & known
        for b, g, c in zip(bad["tokens"], good["tokens"], bad["counted"], strict=True):
            first = int(np.argmax(c > 0))
            np.testing.assert_array_equal(b[:first], g[:first])
            assert b[first:].tolist() != g[first:].tolist()
    quoted, told = made.cases["memorization"].reworded, made.cases["memorization"].probe
    assert quoted["counted"].sum() == told["counted"].sum(), "the same words are to come"
    assert quoted["tokens"].tolist() != told["tokens"].tolist()
    assert all(made.cases[name].reworded is None for name in ("privacy", "security", "deterioration", "dynamics"))


# ---------------------------------------------------------------- probes

V = 7
TABLE = np.random.default_rng(3).normal(size=(V, V)) * 2
TASK = language_task(lambda params, example: params[example["tokens"]])  # the next token by the last one alone


def rows(rng, count, length=9):
    counted = np.zeros((count, length), np.float32)
    counted[:, 4:] = 1
    counted[: count // 2, -2:] = 0
    return {"tokens": rng.integers(V, size=(count, length)).astype(np.int32), "counted": counted}


def log_p(its):
    """Of each row's counted tokens, one at a time."""
    logs = TABLE - np.log(np.exp(TABLE).sum(1, keepdims=True))
    return [
        [logs[row[t - 1], row[t]] for t in range(1, len(row)) if c[t]]
        for row, c in zip(its["tokens"], its["counted"], strict=True)
    ]


def test_probes_of_pairs_against_a_plain_loop(rng):
    pairs = {"bad": rows(rng, 6), "good": rows(rng, 6)}
    bad, good = log_p(pairs["bad"]), log_p(pairs["good"])
    leads = np.array([sum(b) - sum(g) for b, g in zip(bad, good, strict=True)])
    params = jnp.asarray(TABLE, jnp.float32)
    share = 1 / (1 + np.exp(-leads))
    for module in (generalization, deterioration, values):
        found = module.probe(TASK, params, pairs)
        assert found.value == pytest.approx(share.mean(), rel=1e-4)
        assert found.also == {"error": np.mean(leads > 0), "lead": pytest.approx(leads.mean(), rel=1e-4)}
        assert found.low <= found.value <= found.high
        assert found.items == 6
    found = bias.probe(TASK, params, pairs)
    assert found.value == pytest.approx(abs(2 * share.mean() - 1), rel=1e-4)
    swapped = bias.probe(TASK, params, {"bad": pairs["good"], "good": pairs["bad"]})
    assert swapped.value == pytest.approx(found.value, rel=1e-4)
    assert swapped.also["lead"] == pytest.approx(-leads.mean(), rel=1e-4)


@pytest.mark.parametrize("name", ["bias", "generalization", "deterioration", "values", "memorization"])
def test_measurements_rise_with_their_probes(rng, name):
    """The mean of the measurement over pairs is the signed probe, and a step along its gradient raises it."""
    pairs = {"bad": rows(rng, 6), "good": rows(rng, 6)}
    fun = weaknesses.get(name).measurement(TASK).fun
    mean = lambda p: jnp.mean(jax.vmap(lambda q: fun(p, q))((pairs["bad"], pairs["good"])))  # noqa: E731
    params = jnp.asarray(TABLE, jnp.float32)
    wanted = np.mean([sum(b) - sum(g) for b, g in zip(log_p(pairs["bad"]), log_p(pairs["good"]), strict=True)])
    assert float(mean(params)) == pytest.approx(wanted, rel=1e-4)
    assert float(mean(params + 0.1 * jax.grad(mean)(params))) > float(mean(params))


def test_memorization_and_the_area_against_a_plain_loop(rng):
    its = rows(rng, 5)
    strength, exact = [], []
    for row, c in zip(its["tokens"], its["counted"], strict=True):
        right = [int(np.argmax(TABLE[row[t - 1]])) == row[t] for t in range(1, len(row)) if c[t]]
        k = next(k for k in range(len(right) + 1) if all(right[k:]))
        strength.append(1 - k / len(right))
        exact.append(np.mean(right))
    found = memorization.probe(TASK, jnp.asarray(TABLE, jnp.float32), its)
    assert found.value == pytest.approx(np.mean(strength))
    assert found.also["exact"] == pytest.approx(np.mean(exact))
    flat = np.zeros((V, V))
    found = dynamics.area(TASK, [jnp.asarray(TABLE, jnp.float32), jnp.asarray(flat, jnp.float32)], its)
    logs = log_p(its)
    mine = -sum(map(sum, logs)) / sum(map(len, logs))
    assert found.value == pytest.approx((mine + np.log(V)) / 2, rel=1e-4)
    assert found.also["last"] == pytest.approx(np.log(V), rel=1e-4)


def test_an_unknown_weakness_names_the_nearest():
    with pytest.raises(UnknownNameError, match="memorization"):
        weaknesses.get("memorisation")


# ---------------------------------------------------------------- the loop

SMALL = {
    "kind": "suite", "tokenizer": "bpe-1024", "documents": 260, "held_out": 120, "length": 64,
    "model": {"layers": 1, "width": 16, "heads": 2}, "plants": dataclasses.asdict(SIZES) | {"window": None},
    "train": {"epochs": 2, "batch_size": 32},
    "trace": {"compare": ["loss", "bm25"], "sketch_rank": 3, "checkpoints": 1, "top": 3, "retain": 20},
    "mitigate": {"steps": 2, "heal_steps": 1}, "bias": {"trace": "grad_cos", "fix": "drop", "tokens": 2},
    "generalization": {"fix": "cda", "share": 0.03},
    "deterioration": {"trace": "loss", "fix": "drop", "share": 0.1, "settings": {"drop_epochs": 1}},
}  # fmt: skip
SMALL["plants"].pop("window")


def test_one_seed_from_training_to_edits_and_a_second_time_nothing(corpus, tmp_path):
    config = parse(SuiteConfig, SMALL, "here")
    loop = suite_text.prepare(config, corpus, tmp_path / "seed-0", 0)
    for stage in STAGES.values():
        assert not any("unchanged" in finding for finding in stage(loop, lambda items, *_, **__: items))
    found = store.read_json(tmp_path / "seed-0" / "audit.json")
    assert set(found["before"]["probes"]) == set(found["twins"]) == set(plants.WEAKNESSES)
    for name in ("bias", "security", "privacy"):
        said = read_outputs(tmp_path / "seed-0" / name / "outputs.jsonl", ("before", "traced", "oracle", "random"))
        assert all(one.prompt and one.texts["before"] for one in said), name
    outcomes = store.read_json(tmp_path / "seed-0" / "dynamics" / "outcomes.json")
    assert set(outcomes) == {"traced", "oracle", "random"}
    assert set(outcomes["traced"]["probes"]) == set(plants.WEAKNESSES)
    twin, oracle = found["twins"]["dynamics"]["probe"]["value"], outcomes["oracle"]["probes"]["dynamics"]["value"]
    assert oracle == pytest.approx(twin, rel=1e-6), "retraining without the shard is the twin"
    once_more = store.read_json(tmp_path / "seed-0" / "bias" / "again.json")
    assert set(once_more["relearned"]) == {"traced", "twin"}
    assert set(once_more["reworded"]) == {"planted", "twin", "traced"}
    assert store.read_json(tmp_path / "seed-0" / "dynamics" / "again.json") == {"relearned": {}, "reworded": {}}
    agreed = store.read_json(tmp_path / "seed-0" / "memorization" / "agreement.json")
    assert {"loss", "repeats"} <= set(agreed)
    assert all(0 <= share <= 1 for share in agreed.values())
    again = suite_text.prepare(config, corpus, tmp_path / "seed-0", 0)
    for name in ("audit", "trace", "mitigate"):
        assert all("unchanged" in finding for finding in STAGES[name](again, lambda items, *_, **__: items))
    document = suite._summarised("language", [loop] * 3, config)
    json.dumps(document, allow_nan=False)
    document["vision"] = json.loads(json.dumps(document))
    document["vision"]["weaknesses"].pop("privacy")
    its = document["weaknesses"]["deterioration"]
    assert its["ap"]["loss"]["seeds"] == [its["ap"]["loss"]["mean"]] * 3
    assert set(document["matrix"]["bias"]) == set(plants.WEAKNESSES)
    assert document["weaknesses"]["bias"]["traced_by"] == "grad_cos_top2"
    assert "grad_cos_top2" in document["weaknesses"]["bias"]["ap"]
    document["matrix"]["bias"]["values"] |= {"worse": True, "mean": 0.25}
    page = report.write_page(document, tmp_path / "page.html").read_text()
    assert "bias in values" in page
    assert "+0.25 !" in page
    assert "<script" not in page
    assert all(name in page for name in plants.WEAKNESSES)


def test_methods_that_do_not_exist_and_too_few_seeds_are_refused(tmp_path):
    config = parse(SuiteConfig, SMALL | {"values": {"trace": "trackstarr"}}, "here")
    with pytest.raises(UnknownNameError, match="trackstar"):
        suite.run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    config = parse(SuiteConfig, SMALL | {"values": {"fix": "cda"}}, "here")
    with pytest.raises(UsageError, match="bias and generalization of language alone"):
        suite.run(config, tmp_path / "out")
    config = parse(SuiteConfig, SMALL | {"vision": {"bias": {"tokens": 2}}}, "here")
    with pytest.raises(UsageError, match=r"vision\.bias\.tokens: pictures have none"):
        suite.run(config, tmp_path / "out")
    idle = parse(SuiteConfig, SMALL | {"mitigate": {"budget": 0.5}}, "here")
    with pytest.raises(UsageError, match=r"mitigate\.budget would change nothing"):
        suite.run(idle, tmp_path / "out")
    (tmp_path / "suite.yaml").write_text("kind: suite\nseeds: 2\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", str(tmp_path / "suite.yaml"), "--out", str(tmp_path / "out")])
    assert ended.value.code == 2


def test_quick_is_smaller_and_keeps_seeds_and_plans(capsys, tmp_path):
    values = {"kind": "suite", "documents": 5000, "train": {"batch_size": 3}, "seed": 5, "bias": {"fix": "drop"}}
    made = parse(SuiteConfig, quick(values), "here")
    assert (made.documents, made.train.epochs, made.train.batch_size, made.seed, made.seeds) == (720, 5, 3, 5, 3)
    assert made.bias.fix == "drop"
    (tmp_path / "run.yaml").write_text("kind: text\n")
    with pytest.raises(SystemExit):
        cli.main(["run", str(tmp_path / "run.yaml"), "--quick"])
    assert "--quick is for the suite" in capsys.readouterr().err


def test_the_shipped_config_spells_out_the_defaults():
    path = Path(__file__).parent.parent / "configs" / "suite.yaml"
    assert parse(SuiteConfig, read_yaml(path), str(path)) == SuiteConfig()


def test_a_verdict_over_seeds_weighs_mean_gaps():
    good = {"traced": [0.1, 0.0, 0.1], "oracle": [0.0, 0.0, 0.1], "random": [1.0, 0.9, 1.0]}
    made = proof.over_seeds([0.0, 0.0, 0.0], [1.0, 0.9, 1.0], good, [0.01] * 3, 0.1)
    assert made["verdict"] == "fixed"
    assert made["closed_traced"] == pytest.approx(1 - 0.2 / 2.9)
    assert "rises" in str(proof.over_seeds([0.0] * 3, [1.0] * 3, good, [0.03] * 3, 0.1)["verdict"])
    blind = good | {"random": [0.2, 0.2, 0.2]}
    assert "no verdict" in str(proof.over_seeds([0.0] * 3, [1.0] * 3, blind, [0.0] * 3, 0.1)["verdict"])
    assert "no failure" in str(proof.over_seeds([0.95] * 3, [1.0] * 3, good, [0.0] * 3, 0.1)["verdict"])
    with_two = {arm: x[:2] for arm, x in good.items()}
    assert "at least 3" in str(proof.over_seeds([0.0] * 2, [1.0] * 2, with_two, [0.0] * 2, 0.1)["verdict"])
