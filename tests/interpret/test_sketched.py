"""The damping of sketched rows against dense matrices in float64, and what it must not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uimjax as uj
from uimjax.curvature import damped, damping, projected
from uimjax.curvature.base import Source
from uimjax.errors import UsageError
from uimjax.interpret import methods, sketched, trace
from uimjax.interpret.base import Method
from uimjax.interpret.index import build_index

BLOCKS = ((0, 20), (20, 60))
COUNT = 90


@pytest.fixture
def rows(rng):
    """More columns than rows matter in: the small eigenvalues are noise."""
    mix = rng.normal(size=(60, 60)) * np.geomspace(3, 0.01, 60)
    return (rng.normal(size=(COUNT, 60)) @ mix).astype(np.float32)


def in_parts(rows, *cuts, draws=1):
    ids = np.split(np.arange(COUNT), cuts)
    return [(some, jnp.asarray(rows.reshape(COUNT, draws, -1)[some].reshape(-1, rows.shape[-1]))) for some in ids]


def agreement(rows, value):
    """Median correlation of the scores that the halves give the same rows and queries: whole matrices, inverted."""
    first, scored, asked = sketched._halved(COUNT)
    rows, found = rows.astype(np.float64), []
    for half in (first, ~first):
        total = 0.0
        for a, b in BLOCKS:
            x = rows[half, a:b]
            h = x.T @ x / len(x)
            h = h + value * np.trace(h) / len(h) * np.eye(len(h))
            total = total + rows[scored, a:b] @ np.linalg.inv(h) @ rows[asked, a:b].T
        found.append(total)
    return np.median([np.corrcoef(found[0][:, q], found[1][:, q])[0, 1] for q in range(len(asked))])


def test_the_damping_is_the_smallest_at_which_halves_agree(rows):
    inverse, chosen = sketched.curvature(projected(), BLOCKS, COUNT, in_parts(rows, 30))
    assert chosen.reached
    assert 1e-3 < chosen.value < 1e3  # neither end of the range
    for value, agreed in chosen.tried:
        assert agreed == pytest.approx(agreement(rows, value), abs=1e-4)
    assert agreement(rows, chosen.value) >= damping.SKETCHED["empirical"] > agreement(rows, chosen.value / 1.4)
    for (a, b), added in zip(BLOCKS, inverse.damping, strict=True):
        x = rows[:, a:b].astype(np.float64)
        assert added == pytest.approx(chosen.value * (x**2).sum() / COUNT / (b - a), rel=1e-5)


def test_halves_are_even_and_queries_are_no_rows():
    first, scored, asked = sketched._halved(COUNT)
    assert first.sum() == COUNT // 2
    assert len(asked) == COUNT // 4
    assert not set(scored) & set(asked)
    assert len(sketched._halved(10_000)[1]) == sketched.ROWS


@pytest.mark.parametrize("draws", [1, 2])
def test_split_and_order_change_nothing(rows, draws):
    wide = rows if draws == 1 else np.concatenate([rows, rows[::-1]], 1).reshape(2 * COUNT, -1)
    whole = projected(source=Source("margin"))
    seen = {} if draws == 1 else {"seen": lambda ids: rows[ids]}
    one, by = sketched.curvature(whole, BLOCKS, COUNT, in_parts(wide, draws=draws), **seen)
    other, again = sketched.curvature(whole, BLOCKS, COUNT, in_parts(wide, 7, 50, 51, draws=draws)[::-1], **seen)
    assert again.value == by.value
    asked = jnp.asarray(rows[:3])
    np.testing.assert_allclose(whole.solve(one, asked), whole.solve(other, asked), rtol=1e-3, atol=1e-6)
    assert dict(by.tried)[by.value] >= damping.SKETCHED["margin"]


def test_a_damping_that_is_given_is_taken(rows):
    inverse, chosen = sketched.curvature(projected(0.3), BLOCKS, COUNT, in_parts(rows, 30))
    assert chosen == damping.given(0.3)
    x = rows[:, :20].astype(np.float64)
    assert inverse.damping[0] == pytest.approx(0.3 * (x**2).sum() / COUNT / 20, rel=1e-5)


def test_too_few_rows_and_no_damping_are_refused(rows):
    with pytest.raises(UsageError, match="cannot be chosen from 7 rows.*projected\\(damping=0.1\\)"):
        sketched.curvature(projected(), BLOCKS, 7, [(np.arange(7), jnp.asarray(rows[:7]))])
    curvature = projected()
    for few in (rows[:11], rows):  # of fewer rows than columns, whose zero eigenvalues rounding lifts; and of more
        found = curvature.finish(curvature.update(curvature.init(BLOCKS), jnp.asarray(few)))
        with pytest.raises(UsageError, match="left open.*curvature.damped"):
            curvature.solve(found, jnp.asarray(rows[:2]))
    assert np.isfinite(curvature.solve(damped(found, 0.1), jnp.asarray(rows[:2]))).all()


def test_checkpoints_have_a_damping_each(rng):
    data = (rng.normal(size=(300, 6)).astype(np.float32), rng.integers(0, 4, 300).astype(np.int32))
    task = uj.Task(
        lambda p, e: -jax.nn.log_softmax(e[0] @ p)[e[1]], outputs=lambda p, e: e[0] @ p, label=lambda e: e[1]
    )
    run = [uj.Checkpoint(jnp.asarray(rng.normal(size=(6, 4)) * k, jnp.float32)) for k in (0.1, 8.0)]
    ask = (uj.Measurement("nll", task.loss), jax.tree.map(lambda x: x[:3], data), "trak")
    both = uj.score(task, run, data, *ask, each=True)
    single = [uj.score(task, its.params, data, *ask, each=True) for its in run]
    np.testing.assert_allclose(both.values, np.mean([s.values for s in single], 0), rtol=1e-5, atol=1e-7)
    values = sorted(s.how["damping"].value for s in single)
    assert values[0] != values[1]
    assert f"2 checkpoints, damping {values[0]:.3g} to {values[1]:.3g} x mean eigenvalue" in both.method
    assert [its["damping"].value for its in both.how["checkpoints"]] == [s.how["damping"].value for s in single]


def test_an_index_and_score_choose_the_same_and_say_so(rng, tmp_path):
    params = {"w": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)}
    data = (rng.normal(size=(40, 6)).astype(np.float32), rng.integers(0, 4, 40).astype(np.int32))
    task = uj.Task(lambda p, e: -jax.nn.log_softmax(e[0] @ p["w"])[e[1]])
    asked = jax.tree.map(lambda x: x[:3], data)
    measurement = uj.Measurement("nll", task.loss)
    method = Method("logra", uj.Sketch(3), projected(), normalize="none")
    index = build_index(task, params, data, tmp_path / "index", sketch=uj.Sketch(3), batch_size=8, shard_rows=16)
    one = trace.ask(index, task, params, data, measurement, asked, method, each=True)
    got = uj.score(task, params, data, measurement, asked, method, each=True, batch_size=16)
    assert one.damping is not None
    assert got.how["damping"].value == one.damping.value
    said = f"logra, {uj.Sketch(3)}, {one.damping}"
    assert (got.method, trace.score_all(one).method, trace.top(one, 2).method) == (said,) * 3
    np.testing.assert_allclose(trace.score_all(one).values, got.values, rtol=1e-3, atol=1e-5)
    mean = trace.ask(index, task, params, data, measurement, asked, method)
    assert mean.damping is not None
    assert mean.damping.value == one.damping.value  # of the index, not of the question
    assert methods.get("logra").curvature.damping is None
