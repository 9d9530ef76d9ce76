"""DP-SGD: one step against plain per-example gradients in float64, the accountant against Renyi's bound, a canary."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import gammaln, logsumexp

from uimjax import checkpoint, rows, steps, training
from uimjax.errors import MismatchError, UsageError
from uimjax.mitigate import private
from uimjax.mitigate.private import Private
from uimjax.task import Task

HOW = Private(None, 1e-5, noise=0.7, clip=0.5, steps=5, batch_size=12, together=5, learning_rate=0.05, every=2)


def loss(params, example):
    h = jnp.tanh(example["x"] @ params["w1"] + params["b1"])
    return -jax.nn.log_softmax(h @ params["w2"])[example["y"]]


TASK = Task(loss)


@pytest.fixture
def problem(rng):
    params = {"w1": rng.normal(size=(4, 6)), "b1": rng.normal(size=6), "w2": rng.normal(size=(6, 3))}
    data = {"x": rng.normal(size=(40, 4)).astype(np.float32), "y": rng.integers(3, size=40)}
    return {name: jnp.asarray(x, jnp.float32) for name, x in params.items()}, data


def plain(params, data, how, seed):
    """Row by row in float64, with Adam written out; the draws and the noise are those of (seed, step)."""
    p = {name: np.asarray(x, np.float64) for name, x in params.items()}
    m, v = ({name: np.zeros_like(x) for name, x in p.items()} for _ in range(2))
    count, losses, cut, met = len(data["y"]), [], [], []
    for number in range(how.steps):
        drawn = np.flatnonzero(np.random.default_rng([seed, number]).random(count) < how.batch_size / count)
        total = {name: np.zeros_like(x) for name, x in p.items()}
        for i in drawn:
            h = np.tanh(data["x"][i].astype(np.float64) @ p["w1"] + p["b1"])
            z = h @ p["w2"]
            q = np.exp(z - logsumexp(z))
            losses.append(-np.log(q[data["y"][i]]))
            dz = q - np.eye(3)[data["y"][i]]
            dh = (p["w2"] @ dz) * (1 - h**2)
            g = {"w1": np.outer(data["x"][i], dh), "b1": dh, "w2": np.outer(h, dz)}
            norm = np.sqrt(sum((x**2).sum() for x in g.values()))
            cut.append(norm > how.clip)
            total = {name: total[name] + g[name] * min(1, how.clip / norm) for name in g}
        met.append(len(drawn))
        words = np.random.SeedSequence([seed, number, 1]).generate_state(2)
        keys = jax.random.split(jax.random.wrap_key_data(jnp.asarray(words)), 3)
        for key, name in zip(keys, sorted(p), strict=True):
            z = np.asarray(jax.random.normal(key, p[name].shape), np.float64)
            g = (total[name] + how.noise * how.clip * z) / how.batch_size
            m[name], v[name] = 0.9 * m[name] + 0.1 * g, 0.999 * v[name] + 0.001 * g**2
            first, second = m[name] / (1 - 0.9 ** (number + 1)), v[name] / (1 - 0.999 ** (number + 1))
            p[name] = p[name] - how.learning_rate * first / (np.sqrt(second) + 1e-8)
    ends = np.cumsum(met)[[1, 3, 4]]
    return p, [np.mean(x) for x in np.split(losses, ends[:-1])], [np.mean(x) for x in np.split(cut, ends[:-1])]


def test_steps_are_those_of_a_plain_loop_in_float64(problem):
    params, data = problem
    found = private.fine_tune(TASK, params, data, HOW, 3)
    wanted, losses, cut = plain(params, data, HOW, 3)
    for name, value in wanted.items():
        np.testing.assert_allclose(found.params[name], value, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(found.loss, losses, rtol=1e-4)
    np.testing.assert_allclose(found.clipped, cut, rtol=1e-6)
    assert 0 < np.mean(cut) < 1, "some are cut, some are not"
    assert found.noise == 0.7


def test_how_many_are_looked_at_together_changes_nothing(problem):
    params, data = problem
    one = private.fine_tune(TASK, params, data, HOW, 0)
    other = private.fine_tune(TASK, params, data, dataclasses.replace(HOW, together=17), 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one.params, other.params)


def test_a_stopped_run_goes_on_to_the_bit_and_another_choice_is_refused(problem, tmp_path):
    params, data = problem
    whole = private.fine_tune(TASK, params, data, HOW, 0)

    def stop(items, *_args, skip=0, **_):
        for k, item in enumerate(items):
            if k == 2 and skip == 0:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        private.fine_tune(TASK, params, data, HOW, 0, folder=tmp_path, progress=stop)
    assert checkpoint.latest(tmp_path) == 4
    again = private.fine_tune(TASK, params, data, HOW, 0, folder=tmp_path)
    jax.tree.map(np.testing.assert_array_equal, whole.params, again.params)
    np.testing.assert_array_equal(whole.loss, again.loss)
    with pytest.raises(MismatchError):
        private.fine_tune(TASK, params, data, dataclasses.replace(HOW, clip=0.4), 0, folder=tmp_path)
    twice = Task(lambda p, e: 2 * loss(p, e))
    with pytest.raises(MismatchError):
        private.fine_tune(twice, params, data, HOW, 0, folder=tmp_path)


def renyi(noise, delta, rate, times):
    """An upper bound on epsilon from integer orders of the sampled Gaussian (Mironov et al. 2019, arXiv 1908.10530,
    section 3.3; the conversion of arXiv 2004.00010)."""
    best = np.inf
    for a in range(2, 200):
        k = np.arange(a + 1)
        terms = gammaln(a + 1) - gammaln(k + 1) - gammaln(a - k + 1)
        terms = terms + k * np.log(rate) + (a - k) * np.log1p(-rate) + (k * k - k) / (2 * noise**2)
        rho = times * logsumexp(terms) / (a - 1)
        best = min(best, rho + np.log1p(-1 / a) - (np.log(delta) + np.log(a)) / (a - 1))
    return best


@pytest.mark.parametrize(("noise", "rate", "times"), [(1.0, 0.01, 1000), (0.8, 0.05, 200), (2.0, 0.1, 500)])
def test_epsilon_is_below_renyis_bound_and_near_it(noise, rate, times):
    bound, found = renyi(noise, 1e-5, rate, times), private.epsilon_of(noise, 1e-5, rate, times)
    assert 0.8 * bound < found < bound
    again = private.noise_for(found, 1e-5, rate, times)
    assert again == pytest.approx(noise, rel=5e-3)


def test_a_gaussian_of_all_rows_has_the_exact_epsilon():
    """Balle and Wang 2018 (arXiv 1805.06530): delta = Phi(1/2s - e s) - exp(e) Phi(-1/2s - e s)."""
    from scipy.stats import norm

    found = private.epsilon_of(1.5, 1e-5, 1.0, 1)
    delta = norm.cdf(1 / 3 - found * 1.5) - np.exp(found) * norm.cdf(-1 / 3 - found * 1.5)
    assert delta == pytest.approx(1e-5, rel=1e-2)


def test_what_makes_no_sense_is_refused(problem):
    params, data = problem
    for wrong in ({"epsilon": 1.0}, {"noise": None}, {"clip": 0.0}, {"noise": 0.0}, {"delta": 1.5}, {"steps": 0}):
        with pytest.raises(UsageError):
            dataclasses.replace(HOW, **wrong)
    with pytest.raises(UsageError, match="lower batch_size"):
        private.fine_tune(TASK, params, data, dataclasses.replace(HOW, batch_size=41), 0)
    drawn = Task(loss, trained=lambda p, e, _: loss(p, e))
    with pytest.raises(UsageError, match="noise of its own"):
        private.fine_tune(drawn, params, data, HOW, 0)
    with pytest.raises(UsageError, match="no noise up to"):
        private.noise_for(1e-9, 1e-12, 0.5, 100_000)
    with pytest.raises(UsageError, match="protects nobody"):
        private.noise_for(1e9, 1e-5, 0.5, 10)
    assert private.epsilon_of(0.1, 1e-5, 0.5, 100) > private.VOID


def test_what_is_rare_is_learned_without_privacy_and_not_with_it(rng):
    """A row of a contradicting label, five times in 400: an ordinary fine-tuning learns it by heart, a private one
    learns what the other rows have in common."""
    x = rng.normal(size=(400, 10)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    x[:5], y[:5] = x[5], 1 - y[5]
    data, canary = {"x": x, "y": y}, {"x": x[0], "y": np.int64(y[0])}
    params = {"w1": rng.normal(size=(10, 64)) * 0.3, "b1": np.zeros(64), "w2": rng.normal(size=(64, 2)) * 0.1}
    params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    plain = training.fit(TASK, params, data, steps.Recipe(epochs=60, batch_size=50, learning_rate=2e-2)).params
    how = Private(4.0, 1e-5, steps=150, batch_size=50, together=50, learning_rate=1e-2, every=50)
    found = private.fine_tune(TASK, params, data, how, 0)
    assert found.epsilon == pytest.approx(4.0, rel=2e-2)
    assert float(loss(plain, canary)) < 0.5 < 1.5 < float(loss(found.params, canary))
    held = {"x": rng.normal(size=(300, 10)).astype(np.float32)}
    held["y"] = (held["x"][:, 0] > 0).astype(np.int64)
    losses = jax.vmap(lambda row: loss(found.params, row))(rows.take(held, np.arange(300)))
    assert float(losses.mean()) < 0.45, "and it has learned"
