"""Norms in the step's backward pass against vmap(grad), the noise scale and VoG against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uimjax as uj
from benchmarks import networks
from uimjax.errors import CoverageError, ShapeError


def mlp_task():
    def outputs(params, example):
        return jnp.tanh(example["x"] @ params["w1"] + params["b1"]) @ params["w2"]

    return uj.Task(
        lambda p, e: -jax.nn.log_softmax(outputs(p, e))[e["y"]], outputs=outputs, label=lambda e: e["y"],
        nll=lambda z, e: -jax.nn.log_softmax(z)[e["y"]],
    )  # fmt: skip


@pytest.fixture
def mlp(rng):
    params = {"w1": rng.normal(size=(6, 8)), "b1": rng.normal(size=8), "w2": rng.normal(size=(8, 3))}
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    rows = {"x": rng.normal(size=(5, 6)).astype(np.float32), "y": rng.integers(3, size=5).astype(np.int32)}
    return mlp_task(), params, rows


@pytest.fixture
def gpt():
    params = networks.gpt_params(jax.random.key(0), layers=2, d=16, vocab=11, t=9)
    tokens = jax.random.randint(jax.random.key(1), (4, 10), 0, 11)
    return uj.Task(lambda p, t: networks.gpt_loss(p, t, heads=2)), params, tokens


@pytest.mark.parametrize("which", ["mlp", "gpt"])
def test_gradient_losses_and_norms_are_those_of_vmap_grad(which, request):
    task, params, rows = request.getfixturevalue(which)
    count = jax.tree.leaves(rows)[0].shape[0]
    weights = jnp.arange(count, dtype=jnp.float32)  # the first row is padding
    with jax.numpy_rank_promotion("allow"):  # the networks broadcast scales
        found = jax.jit(lambda p, r: uj.dynamics.graded(task, p, r, weights))(params, rows)
        single = jax.value_and_grad(lambda p, r: jnp.sum(task.loss(p, r)))
        losses, each = jax.vmap(single, in_axes=(None, 0))(params, rows)
    norms = jnp.sqrt(sum(jnp.square(g).reshape(count, -1).sum(1) for g in jax.tree.leaves(each)))
    np.testing.assert_allclose(found.norms, norms, rtol=2e-5)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-5)
    share = weights / weights.sum()
    for mine, theirs in zip(jax.tree.leaves(found.gradient), jax.tree.leaves(each), strict=True):
        np.testing.assert_allclose(mine, jnp.tensordot(share, theirs, 1), rtol=1e-4, atol=1e-6)


def test_a_task_of_some_parameters_makes_no_step(mlp):
    task, params, rows = mlp
    part = uj.Task(task.loss, include=("w2",))
    with pytest.raises(CoverageError, match="attributes .* of its parameters"):
        uj.dynamics.graded(part, params, rows)


def test_noise_scale_of_known_noise():
    """Gradients G + noise of covariance diag(s): tr = sum s, |G|^2 known; ratios of means, not means of ratios."""
    rng, b, size = np.random.default_rng(0), 64, 400
    mean, spread = np.full(10, 0.3), np.linspace(0.5, 2, 10)
    noise = uj.dynamics.noise_init()
    update = jax.jit(lambda n, small, big: uj.dynamics.noise_update(n, small, big, (1, b), decay=0.999))
    for _ in range(size):
        each = mean + rng.normal(size=(b, 10)) * np.sqrt(spread)
        noise = update(noise, np.square(each).sum(1).mean(), np.square(each.mean(0)).sum())
    found = uj.dynamics.noise_scale(noise)
    assert found["trace"] == pytest.approx(spread.sum(), rel=0.02)
    assert found["square"] == pytest.approx(0.9, rel=0.05)
    assert found["simple"] == pytest.approx(spread.sum() / 0.9, rel=0.06)
    assert np.isnan(uj.dynamics.noise_scale(uj.dynamics.noise_init())["simple"])


def test_vog_is_the_spread_of_input_gradients(mlp):
    task, params, rows = mlp
    scales = (1.0, 0.5, 2.0)
    state, each = uj.dynamics.vog_init(5, 6), []
    for scale in scales:
        moved = jax.tree.map(lambda p, s=scale: p * s, params)
        gradients = uj.dynamics.input_gradients(lambda p, x: task.outputs(p, {"x": x}), moved, rows["x"], rows["y"])
        each.append(np.stack([
            jax.grad(lambda x, k=k, m=moved: task.outputs(m, {"x": x})[rows["y"][k]])(rows["x"][k]) for k in range(5)
        ]))  # fmt: skip
        state = uj.dynamics.vog_update(state, jnp.arange(5), gradients)
    raw = np.std(np.stack(each), axis=0).mean(1)
    np.testing.assert_allclose(uj.dynamics.vog_finish(state), raw, rtol=1e-4)
    scored = uj.dynamics.vog_finish(state, rows["y"])
    for label in np.unique(rows["y"]):
        here = rows["y"] == label
        spread = raw[here].std() or 1.0
        np.testing.assert_allclose(scored[here], (raw[here] - raw[here].mean()) / spread, atol=1e-3)


def test_padding_and_repeats_of_vog():
    rng = np.random.default_rng(0)
    ids, each = np.array([1, -1, 1, 7, 0]), rng.normal(size=(5, 4)).astype(np.float32)
    state = jax.jit(uj.dynamics.vog_update)(uj.dynamics.vog_init(3, 4), jnp.asarray(ids), jnp.asarray(each))
    assert state.met.tolist() == [1, 2, 0]  # id 2, the last, was in no batch
    found = uj.dynamics.vog_finish(state)
    np.testing.assert_allclose(found[:2], [0, each[[0, 2]].std(0).mean()], rtol=1e-5, atol=1e-7)
    assert np.isnan(found[2])


def test_a_step_without_two_sizes_of_batch_leaves_the_noise_as_it_is():
    noise = uj.dynamics.noise_update(uj.dynamics.noise_init(), 3.0, 1.0, (1, 8))
    for sizes in ((1, 1), (8, 1)):
        again = jax.jit(lambda n, s: uj.dynamics.noise_update(n, 5.0, 5.0, s))(noise, jax.tree.map(jnp.asarray, sizes))
        assert uj.dynamics.noise_scale(again) == uj.dynamics.noise_scale(noise)
        assert uj.dynamics.noise_scale(uj.dynamics.noise_update(noise, 5.0, 5.0, sizes)) == uj.dynamics.noise_scale(
            noise
        )


def test_labels_of_another_length_are_refused():
    with pytest.raises(ShapeError, match="arrived for 3 examples"):
        uj.dynamics.vog_finish(uj.dynamics.vog_init(3, 2), [0, 1])
