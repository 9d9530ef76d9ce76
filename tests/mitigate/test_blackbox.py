"""CMA-ES by queries: it finds what is there, counts what it asks, and mends a classifier by its answers alone."""

import numpy as np
import pytest

from uimjax.errors import NonFiniteError, ShapeError, UsageError
from uimjax.mitigate import blackbox
from uimjax.mitigate.blackbox import Search


def test_a_rotated_bowl_is_found_and_every_query_counted(rng):
    turn, target, asked = np.linalg.qr(rng.normal(size=(6, 6)))[0], rng.normal(size=6), []

    def ask(candidates):
        asked.append(len(candidates))
        return (((candidates - target) @ turn) ** 2 * np.logspace(0, 2, 6)).sum(1)

    found = blackbox.search(ask, 6, Search(queries=3000, population=12))
    np.testing.assert_allclose(found.z, target, atol=1e-3)
    assert sum(asked) == found.queries[-1] <= 3000
    assert asked[0] == 1, "the model as it is comes first"
    assert found.curve[0] == pytest.approx(float(ask(np.zeros((1, 6)))[0]))
    assert (np.diff(found.curve) <= 0).all()
    assert found.value == found.curve[-1]
    again = blackbox.search(ask, 6, Search(queries=3000, population=12))
    np.testing.assert_array_equal(found.z, again.z)


def test_few_queries_are_never_exceeded():
    found = blackbox.search(lambda c: (c**2).sum(1) + c[:, 0], 3, Search(queries=50, population=20))
    assert found.queries.tolist() == [1, 21, 41]


def test_answers_alone_mend_a_skewed_classifier(rng):
    """A model whose training saw one class nine times as often: the shift of its logits is found by queries."""
    centres = rng.normal(size=(3, 5)) * 1.2
    labels = rng.integers(3, size=900)
    x = centres[labels] + rng.normal(size=(900, 5))
    right = x @ centres.T - (centres**2).sum(1) / 2  # of equal shares: the best there is
    skewed = 0.4 * right + np.log([0.9, 0.05, 0.05])
    size, ask = blackbox.affine(skewed[:300], labels[:300])
    found = blackbox.search(ask, size, Search(queries=2000))
    accuracy = lambda z: float(np.mean(z[300:].argmax(1) == labels[300:]))  # noqa: E731
    before, after, best = accuracy(skewed), accuracy(blackbox.apply_affine(skewed, found.z)), accuracy(right)
    assert before < best - 0.15
    assert after > best - 0.02
    plain = [-np.log(np.exp(z[y]) / np.exp(z).sum()) for z, y in zip(skewed[:300], labels[:300], strict=True)]
    assert ask(np.zeros((1, 6)))[0] == pytest.approx(np.mean(plain))


def test_a_prompt_is_spread_as_the_paper_has_it(rng):
    table = rng.normal(size=(40, 30)) * 0.7
    made = blackbox.prompt(table, tokens=8, size=400, alpha=2.0, sigma=0.5)
    begin = made(np.zeros(400))
    assert begin.shape == (8, 30)
    assert all((np.abs(table - row).max(1) == 0).any() for row in begin), "words of the table"
    moved = made(rng.normal(size=(50, 400)) * 0.5) - begin
    assert moved.std() == pytest.approx(2.0 * table.std(), rel=0.05), "alpha times as wide as the embeddings"
    np.testing.assert_allclose(made(np.ones(400)) + made(-np.ones(400)), 2 * begin, atol=1e-9)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UsageError, match="population of 4"):
        Search(queries=10)
    with pytest.raises(NonFiniteError, match="nan"):
        blackbox.search(lambda c: np.full(len(c), np.nan), 2)
    with pytest.raises(ShapeError, match="one each"):
        blackbox.search(lambda c: np.zeros((len(c), 2)), 2)
    with pytest.raises(ShapeError):
        blackbox.affine(np.zeros((3, 2)), np.zeros(2, int))
    with pytest.raises(UsageError, match="spread"):
        blackbox.affine(np.zeros((3, 2)), np.zeros(3, int), spread=0)
    with pytest.raises(UsageError, match="0 numbers"):
        blackbox.search(lambda c: c.sum(1), 0)


def test_few_rows_do_not_drive_the_scale_away(rng):
    """Thirty rows that are told apart at once: by likelihood alone the best scale has no end."""
    labels = rng.integers(5, size=2030)
    logits = 2.0 * np.eye(5)[labels] + rng.normal(size=(2030, 5))
    size, ask = blackbox.affine(logits[:30], labels[:30])
    z = blackbox.search(ask, size, blackbox.Search(3000, sigma=0.3)).z
    assert ask(z[None])[0] == pytest.approx(_nll(blackbox.apply_affine(logits[:30], z), labels[:30]) + (z @ z) / 60)
    after, before = (_nll(made, labels[30:]) for made in (blackbox.apply_affine(logits[30:], z), logits[30:]))
    assert after < before + 0.1


def _nll(logits, labels):
    p = np.exp(logits - logits.max(1, keepdims=True))
    return -np.mean(np.log(p[np.arange(len(labels)), labels] / p.sum(1)))
