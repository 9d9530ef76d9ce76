"""Both engines behind one face: what they find, and shares of tokens that add up to it."""

import dataclasses

import jax
import numpy as np
import pytest

import uimjax as uj
from uimjax.answers import engines
from uimjax.answers.failures import Failures
from uimjax.answers.measures import MEASURES
from uimjax.curvature import Source
from uimjax.errors import UnknownNameError
from uimjax.interpret import methods
from uimjax.models.blocks import Shape
from uimjax.models.decoder import build_decoder
from uimjax.rows import Pass
from uimjax.task import Measurement


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    rng = np.random.default_rng(0)
    task, params = build_decoder(Shape(vocabulary=13, length=7, layers=1, width=8, heads=2), 0)
    tokens = rng.integers(13, size=(20, 7)).astype(np.int32)
    data = {"tokens": tokens, "counted": (np.arange(7) < rng.integers(3, 8, size=(20, 1))).astype(np.float32)}
    bad, good = (jax.tree.map(lambda x, k=k: x[k : k + 3], data) for k in (0, 6))
    its = MEASURES["differential"]
    fun, parts = (lambda p, row, f=f: f(task, p, row) for f in (its.fun, its.parts))
    failures = Failures({"bad": bad, "good": good}, Measurement("differential", fun), [{}] * 3, parts, False)
    return task, params, data, failures, tmp_path_factory.mktemp("engines")


def engine(made, name, **changed):
    task, params, data, failures, folder = made
    failures = failures._replace(**changed)
    if engines.is_whole(name):
        return engines.of_whole(task, params, data, failures, name, Pass(8, None, folder / name))
    index = uj.build_index(task, params, data, folder / "index", sketch=uj.Sketch(6), batch_size=4)
    return engines.of_index(index, task, params, data, failures, name, null=20)


NAMES = ["grad_cos", "logra", "trackstar", "ekfac", "relatif"]


@pytest.mark.parametrize("name", NAMES)
def test_tokens_of_both_sides_add_up_to_the_score_of_the_row(made, name):
    _, _, data, failures, _ = made
    its = engine(made, name)
    found = its.strongest(20)
    for q in range(3):
        values = dict(zip(found.proponents[q].tolist(), found.proponent_scores[q].tolist(), strict=True))
        want = np.array([values[k] for k in range(20)])
        mine, theirs = its.document_tokens(q, data), its.question_tokens(q, data)
        assert mine.shape == (20, 7)
        assert theirs.shape == (20, 14)
        for shares in (mine, theirs):
            np.testing.assert_allclose(shares.sum(1), want, rtol=5e-3, atol=5e-4 * np.abs(want).max())
        assert (mine[data["counted"] == 0] == 0).all()
        counted = np.concatenate([failures.rows[side]["counted"][q] for side in ("bad", "good")])
        assert (theirs[:, counted == 0] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_strongest_rows_and_the_totals_are_those_of_plain_scores(made, name):
    task, params, data, failures, _ = made
    its, method = engine(made, name), methods.get(name)
    if engines.is_whole(name):
        source = dataclasses.replace(method.curvature.source, samples=engines.DRAWS)
        method = dataclasses.replace(method, curvature=dataclasses.replace(method.curvature, source=source))
    else:
        method = dataclasses.replace(method, sketch=uj.Sketch(6))
    want = uj.score(task, params, data, failures.measurement, failures.rows, method, each=True).values
    found = its.strongest(5)
    for q in range(3):
        np.testing.assert_array_equal(found.proponents[q], np.argsort(-want[:, q])[:5])
        np.testing.assert_array_equal(found.opponents[q], np.argsort(want[:, q])[:5])
        np.testing.assert_allclose(found.opponent_scores[q], np.sort(want[:, q])[:5], rtol=1e-3, atol=1e-6)
    labels = np.array(["a", "b"])[np.arange(20) % 2]
    totals = its.by_group(labels)
    for k, group in enumerate(totals.names):
        np.testing.assert_allclose(totals.total[:, k], want[labels == group].sum(0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["logra", "ekfac"])
def test_a_question_of_all_lines_is_the_mean_of_theirs(made, name):
    task, params, data, failures, _ = made
    its = engine(made, name, together=True)
    assert its.question_tokens is None
    one = its.strongest(20)
    assert one.proponents.shape == (1, 20)
    np.testing.assert_allclose(its.document_tokens(0, data).sum(1)[one.proponents[0]], one.proponent_scores[0], rtol=2e-2, atol=1e-4)  # fmt: skip  # noqa: E501


def test_a_measurement_without_parts_has_no_tokens_of_its_own(made):
    assert engine(made, "ekfac", parts=None).question_tokens is None
    assert engine(made, "logra", parts=None).question_tokens is None


def test_auto_chooses_by_size_and_says_why():
    small = engines.choose("auto", 10_000_000, 1000, 10, False)
    assert small == ("relatif", "10,000,000 parameters are few enough for whole gradients and EK-FAC")
    assert engines.choose("auto", 100_000_000, 1000, 10, False)[0] == "trackstar"
    many = engines.choose("auto", 10_000_000, 100_000_000, 10, False)
    assert many[0] == "trackstar"
    assert "too many scores to hold" in many[1]
    long = engines.choose("auto", 10_000_000, 1000, 10, False, 200_000)
    assert long == (
        "trackstar",
        "10,000,000 parameters times 200,000 tokens are more than 1,000,000,000,000: whole gradients would take long "
        "here, so an index is built",
    )
    assert engines.choose("auto", 10_000_000, 1000, 10, False, 100_000)[0] == "relatif"
    assert engines.choose("auto", 10, 10, 1, True)[0] == "retain_cos"
    assert engines.choose("logra", 10, 10, 1, False) == ("logra", "asked for")
    with pytest.raises(UnknownNameError, match="logra"):
        engines.check_method("logar", False)
    for name in (*engines.INDEXED, *engines.WHOLE, "auto"):
        engines.check_method(name, name == "retain_cos")


def test_a_loss_without_outputs_takes_the_empirical_fisher(made):
    task, params, data, failures, folder = made
    plain = uj.Task(task.loss)
    its = engines.of_whole(plain, params, data, failures, "ekfac", Pass(8, None, folder / "plain"))
    assert "empirical" in its.strongest(1).how["curvature"]
    assert engines._plain(methods.get("ekfac"), task).curvature.source == Source("fisher", samples=engines.DRAWS)
