"""The damping of sketched rows against dense matrices in float64, and what it must not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uimjax as uj
from tests import programs
from tests.interpret.test_methods import logits
from uimjax import sketch as sketching
from uimjax.curvature import damped, damping, projected, source
from uimjax.curvature.base import Source
from uimjax.curvature.blocks import Laid
from uimjax.errors import UsageError
from uimjax.interpret import methods, sketched, trace
from uimjax.interpret.base import Method
from uimjax.interpret.indexing import build_index
from uimjax.rows import Pass

BLOCKS = ((0, 20), (20, 60))
COUNT = 90


@pytest.fixture
def rows(rng):
    """More columns than rows matter in: the small eigenvalues are noise."""
    mix = rng.normal(size=(60, 60)) * np.geomspace(3, 0.01, 60)
    return (rng.normal(size=(COUNT, 60)) @ mix).astype(np.float32)


def in_parts(rows, *cuts, draws=1):
    """Of several draws a row the first is the one that is scored."""
    each = rows.reshape(COUNT, draws, -1)
    return [
        sketched.Part(ids, jnp.asarray(each[ids, 0]), jnp.asarray(each[ids].reshape(-1, rows.shape[-1])))
        for ids in np.split(np.arange(COUNT), cuts)
    ]


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
    one, by = sketched.curvature(whole, BLOCKS, COUNT, in_parts(wide, draws=draws))
    other, again = sketched.curvature(whole, BLOCKS, COUNT, in_parts(wide, 7, 50, 51, draws=draws)[::-1])
    assert again.value == by.value
    asked = jnp.asarray(rows[:3])
    np.testing.assert_allclose(whole.solve(one, asked), whole.solve(other, asked), rtol=1e-3, atol=1e-6)
    assert dict(by.tried)[by.value] >= damping.SKETCHED["margin"]


@pytest.mark.parametrize("plus", [0.0, 0.1])
@pytest.mark.usefixtures("x64")
def test_the_rows_to_score_are_those_of_the_loss(plus, rng):
    """Where they are multiples of the margins' they are scaled, also by weights of rows that nobody declared; where
    some are not (a term of their own from row 8 on), they are sketched for themselves."""
    _, params, rows = programs.mlp(rng, jnp.float64, batch=20)
    late = np.arange(20) >= 8
    data = {"x": np.asarray(rows["x"]), "y": np.asarray(rows["y"]), "w": 1.0 + 2 * late, "r": plus * late}

    def loss(p, e):
        z = logits(p, e)
        return -e["w"] * jax.nn.log_softmax(z)[e["y"]] + e["r"] * jnp.sum(jnp.square(z))

    task = uj.Task(loss, outputs=logits, label=lambda e: e["y"])
    found = uj.sites(task, params, jax.tree.map(lambda x: x[0], data))
    made = source.gradients(Source("margin"), task, Laid(found, ()), params, data)
    program, drawn = sketched._program(made, found, uj.Sketch(64)), sketching.drawn(found, uj.Sketch(64))
    parts = list(sketched.by_source(Source("margin"), task, found, uj.Sketch(64), params, data, Pass(8)))
    whole = np.concatenate([part.own for part in parts])
    formed = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, data)
    oracle = np.concatenate([np.asarray(g).reshape(20, -1) for g in jax.tree.leaves(formed)], 1)
    np.testing.assert_allclose(
        whole @ whole.T, oracle @ oracle.T, rtol=2e-4, atol=2e-4 * np.abs(oracle @ oracle.T).max()
    )
    text = str(jax.make_jaxpr(program)(params, jax.tree.map(lambda x: x[:8], data), np.arange(8), drawn))
    assert "cond" in text  # both ways are there, and the rows choose
    margins = np.concatenate([part.rows for part in parts])
    scale = (whole * margins).sum(1) / (margins**2).sum(1)
    off = np.linalg.norm(whole - scale[:, None] * margins, axis=1) / np.linalg.norm(whole, axis=1)
    assert (off < 1e-3).tolist() == (~late).tolist() if plus else (off < 1e-3).all()


def test_a_damping_that_is_given_is_taken(rows):
    inverse, chosen = sketched.curvature(projected(0.3), BLOCKS, COUNT, in_parts(rows, 30))
    assert chosen == damping.given(0.3)
    x = rows[:, :20].astype(np.float64)
    assert inverse.damping[0] == pytest.approx(0.3 * (x**2).sum() / COUNT / 20, rel=1e-5)


def test_too_few_rows_and_no_damping_are_refused(rows):
    with pytest.raises(UsageError, match="cannot be chosen from 7 rows.*projected\\(damping=0.1\\)"):
        sketched.curvature(projected(), BLOCKS, 7, [sketched.Part(np.arange(7), *[jnp.asarray(rows[:7])] * 2)])
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
