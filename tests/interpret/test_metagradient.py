"""Derivatives through a training against central differences of training again, in float64, by a loop written apart."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from uimjax import steps
from uimjax.errors import NonFiniteError, UnknownNameError, UsageError
from uimjax.interpret import bank, metagradient
from uimjax.interpret.metagradient import smoothed
from uimjax.steps import Recipe
from uimjax.task import Measurement, Task

pytestmark = pytest.mark.usefixtures("x64")
N, Q, SHIFT = 7, 2, 1e-4
SGD = Recipe(epochs=5, batch_size=4, learning_rate=0.1, optimizer="sgd", weight_decay=0.02, momentum=0.9, seed=3)


def outputs(p, x):
    return jnp.tanh(x @ p["w"] + p["b"]) @ p["v"]


TASK = Task(lambda p, e: jnp.sum((outputs(p, e["x"]) - e["y"]) ** 2))
ASKED = Measurement("answer", lambda p, e: jnp.sum(jnp.sin(outputs(p, e["x"]))), unit="answer")


class Case(NamedTuple):
    params: dict
    data: dict
    queries: dict

    def scores(self, recipe, **more):
        more = {"params": self.params, "queries": self.queries} | more
        return metagradient.metagradient(
            TASK, more.pop("params"), self.data, recipe, ASKED, more.pop("queries"), **more
        )


def drawn(dtype):
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(3, 4)), "b": rng.normal(size=4), "v": rng.normal(size=(4, 2))}
    rows = [{"x": rng.normal(size=(n, 3)), "y": rng.normal(size=(n, 2))} for n in (N, Q)]
    return Case(*jax.tree.map(lambda x: np.asarray(x, dtype), (params, *rows)))


CASE = drawn(np.float64)


def speed(recipe, steps):
    """A rise, then half a cosine down to a tenth."""

    def rate(k):
        if not recipe.warmup:
            return recipe.learning_rate * (0.1 + 0.45 * (1 + jnp.cos(jnp.pi * k / steps)))
        done = (k + 1) / steps
        after = (done - recipe.warmup) / (1 - recipe.warmup)
        late = 0.1 + 0.45 * (1 + jnp.cos(jnp.pi * jnp.maximum(after, 0)))
        return recipe.learning_rate * jnp.where(done < recipe.warmup, done / recipe.warmup, late)

    return rate


def made_of(recipe, steps):
    """The recipe's optimizer, put together anew."""
    rate = speed(recipe, steps)
    parts = [] if recipe.clip is None else [optax.clip_by_global_norm(recipe.clip)]
    if not isinstance(recipe.optimizer, str):
        return optax.chain(*parts, recipe.optimizer(rate))
    if recipe.optimizer == "adamw":
        return optax.chain(*parts, optax.adamw(rate, b2=recipe.beta2, weight_decay=recipe.weight_decay))
    return optax.chain(
        *parts, optax.add_decayed_weights(recipe.weight_decay), optax.sgd(rate, momentum=recipe.momentum)
    )


def differences(recipe, weights=None, divide="weights", case=CASE, shift=SHIFT):
    """`n df_q/dw_i` `[N, Q]` by central differences of 2 N trainings with all row weights but one as they are."""
    count = len(case.data["x"])
    weights = np.ones(count) if weights is None else weights
    size, steps = recipe.batch_size, recipe.epochs * -(-count // recipe.batch_size)
    optimizer, key = made_of(recipe, steps), jax.random.key(recipe.seed)
    orders = [np.asarray(jax.random.permutation(jax.random.fold_in(key, e), count)) for e in range(recipe.epochs)]
    ids = np.stack([np.pad(order[k : k + size], (0, max(0, k + size - count)), constant_values=-1)
                    for order in orders for k in range(0, count, size)])  # fmt: skip

    def answers(weights):
        def mean(p, at):
            mine = jnp.where(at >= 0, weights[at], 0)
            each = jax.vmap(lambda x, y: jnp.sum((outputs(p, x) - y) ** 2))(case.data["x"][at], case.data["y"][at])
            return (mine * each).sum() / (mine.sum() if divide == "weights" else (at >= 0).sum())

        def step(carry, at):
            p, state = carry
            updates, state = optimizer.update(jax.grad(mean)(p, at), state, p)
            return (optax.apply_updates(p, updates), state), None

        (p, _), _ = jax.lax.scan(step, (case.params, optimizer.init(case.params)), ids)
        return jax.vmap(lambda x: jnp.sum(jnp.sin(outputs(p, x))))(case.queries["x"])

    moved = weights[None] + shift * np.concatenate([np.eye(count), -np.eye(count)])
    case = jax.tree.map(jnp.asarray, case)
    up, down = np.split(np.asarray(jax.jit(jax.vmap(answers))(jnp.asarray(moved))), 2)
    return count * (up - down) / (2 * shift)


RECIPES = {
    "momentum, weight decay, a cosine": SGD,
    "adamw, a warm-up": Recipe(epochs=5, batch_size=4, learning_rate=0.03, weight_decay=0.1, beta2=0.95, warmup=0.3),
    "rmsprop, clipped gradients": Recipe(
        epochs=5, batch_size=4, learning_rate=0.02, optimizer=lambda rate: optax.rmsprop(rate), clip=2.0
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_scores_are_the_derivative_of_training_again(name):
    """Ten steps in segments of three: the last is shorter. The last batch of each epoch is, too."""
    got, want = CASE.scores(RECIPES[name]), differences(RECIPES[name])
    np.testing.assert_allclose(got.values, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    assert np.abs(want).min() > 1e-4
    assert got.method == f"metagradient, {RECIPES[name].epochs} epochs"
    assert got.unit.startswith("relative")


def test_a_row_that_was_left_out_has_the_derivative_of_letting_it_in():
    weights = np.array([1, 0, 1, 0.5, 2, 1, 1.0])
    for divide in metagradient.DIVIDE:
        got = CASE.scores(SGD, weights=weights, divide=divide).values
        want = differences(SGD, weights, divide)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
        assert np.abs(got[1]).max() > 1e-2


def test_queries_are_answered_alone_and_every_run_gives_the_same_bits():
    whole = CASE.scores(SGD).values
    np.testing.assert_array_equal(CASE.scores(SGD).values, whole)
    assert whole.shape == (N, Q)
    for q in range(Q):
        alone = CASE.scores(SGD, queries=jax.tree.map(lambda x, q=q: x[[q, q]], CASE.queries)).values
        np.testing.assert_allclose(alone, whole[:, [q, q]], rtol=1e-6)


def test_another_seed_is_another_order_of_the_rows():
    other = dataclasses.replace(SGD, seed=4)
    np.testing.assert_allclose(CASE.scores(other).values, differences(other), rtol=1e-3, atol=1e-4)
    assert np.abs(CASE.scores(other).values - CASE.scores(SGD).values).max() > 1e-2


def test_a_training_that_does_not_repeat_to_the_bit_is_refused():
    rng = np.random.default_rng(0)

    def noisy(rate):
        def update(g, state, _params=None):
            noise = jax.pure_callback(lambda: rng.normal() * 1e-9, jax.ShapeDtypeStruct((), jnp.float64))
            return jax.tree.map(lambda x: -rate(state) * (x + noise), g), state + 1

        return optax.GradientTransformation(lambda _: jnp.zeros((), jnp.int32), update)

    with pytest.raises(NonFiniteError, match="ended elsewhere when it was run again.*deterministic_ops"):
        CASE.scores(dataclasses.replace(SGD, optimizer=noisy))


@jax.custom_vjp
def bent(params, query):
    return ASKED.fun(params, query)


bent.defvjp(
    lambda p, e: (bent(p, e), (p, e)),
    lambda kept, u: (jax.grad(lambda p: 5 * u * ASKED.fun(p, kept[1]))(kept[0]), None),
)


@jax.custom_jvp
def tilted(params, query):
    return ASKED.fun(params, query)


@tilted.defjvp
def _(given, moved):
    value, slope = jax.jvp(lambda p: ASKED.fun(p, given[1]), given[:1], moved[:1])
    return value, 5 * slope


class Stop(Exception):
    """As if the process had been killed."""


def stopping(after):
    def progress(items, *_, **__):
        for k, item in enumerate(items):
            if k == after:
                raise Stop
            yield item

    return progress


def counting(seen):
    def progress(items, *_, skip=0, **__):
        seen.append(len(items) - skip)
        return items

    return progress


@pytest.fixture
def single():
    """Float32: what `x64` turns on holds for this thread, and checkpoints are read by others."""
    with jax.enable_x64(False):
        yield drawn(np.float32)


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path, monkeypatch, single):
    monkeypatch.setattr(metagradient, "SAVE_SECONDS", 0.0)
    whole = single.scores(SGD).values
    with pytest.raises(Stop):
        single.scores(SGD, folder=tmp_path, progress=stopping(2))
    (left,) = tmp_path.iterdir()
    seen = []
    np.testing.assert_array_equal(single.scores(SGD, folder=tmp_path, progress=counting(seen)).values, whole)
    assert seen == [4 - 2]  # of the segments
    assert not (left / "parts").exists()
    np.testing.assert_array_equal(single.scores(SGD, folder=tmp_path, progress=stopping(0)).values, whole)  # kept
    for other in ({"weights": np.arange(N)}, {"divide": "batch"}, {"queries": single.data}):
        with pytest.raises(Stop):  # another question, another folder: nothing old is given
            single.scores(SGD, folder=tmp_path, progress=stopping(0), **other)
    for other in (bent, tilted):  # the same values, another derivative
        with pytest.raises(Stop):
            metagradient.metagradient(
                TASK, single.params, single.data, SGD, Measurement("answer", other, unit="answer"), single.queries,
                folder=tmp_path, progress=stopping(0),
            )  # fmt: skip
    for recipe in (dataclasses.replace(SGD, seed=4), dataclasses.replace(SGD, learning_rate=0.2)):
        with pytest.raises(Stop):
            single.scores(recipe, folder=tmp_path, progress=stopping(0))


def test_smoothed_masks_that_are_done_are_not_run_again(tmp_path, single):
    ask = (TASK, lambda _: single.params, single.data, SGD, ASKED, single.queries)
    whole = list(smoothed(*ask, masks=3))
    first = next(smoothed(*ask, masks=3, folder=tmp_path))
    np.testing.assert_array_equal(first.values, whole[0].values)
    seen = []
    again = list(smoothed(*ask, masks=3, folder=tmp_path, progress=counting(seen)))
    assert len(seen) == 2
    np.testing.assert_array_equal(again[-1].values, whole[-1].values)


DROPPING = dataclasses.replace(
    TASK,
    trained=lambda p, e, key: jnp.sum((outputs(p, e["x"] * 2 * jax.random.bernoulli(key, 0.5, (3,))) - e["y"]) ** 2),
)


def test_dropout_is_replayed():
    """Against central differences of whole trainings with the same noise; other noise, other derivatives."""
    get = lambda task, recipe: metagradient.metagradient(task, CASE.params, CASE.data, recipe, ASKED, CASE.queries)  # noqa: E731
    got = get(DROPPING, SGD).values
    train = bank.trainer(DROPPING, SGD, "masked")
    answer = jax.vmap(ASKED.fun, (None, 0))
    data = jax.tree.map(jnp.asarray, CASE.data)

    def after(weights):
        return np.asarray(
            answer(train(CASE.params, data, jnp.asarray(weights), jax.random.key(SGD.seed)), CASE.queries)
        )

    for row in range(N):
        up, down = (after(np.ones(N) + sign * SHIFT * np.eye(N)[row]) for sign in (1, -1))
        np.testing.assert_allclose(got[row], N * (up - down) / (2 * SHIFT), rtol=1e-4, atol=1e-4)
    assert np.abs(got - get(TASK, SGD).values).max() > 1e-2
    assert np.abs(got - get(DROPPING, dataclasses.replace(SGD, seed=4)).values).max() > 1e-2


def test_a_rows_noise_does_not_depend_on_its_company():
    """Keys follow from seed, epoch and row; every epoch draws anew."""
    key = jax.random.key(0)
    one, other = (steps.noise(DROPPING, key, 1, jnp.asarray(ids)) for ids in ([3, 5, 1], [1, 3]))
    np.testing.assert_array_equal(jax.random.key_data(one[0]), jax.random.key_data(other[1]))
    again = steps.noise(DROPPING, key, 2, jnp.asarray([3]))
    assert (jax.random.key_data(one[0]) != jax.random.key_data(again[0])).any()
    assert steps.noise(TASK, key, 1, jnp.asarray([3])) is None

    # so, with batches cut anew, one batch of the same rows ends where it does with the others masked
    whole = dataclasses.replace(SGD, epochs=2, batch_size=N, weight_decay=0.0)
    kept, data = np.array([1, 3, 5, 6]), jax.tree.map(jnp.asarray, CASE.data)
    masked = bank.trainer(DROPPING, whole, "masked")(CASE.params, data, jnp.zeros(N).at[kept].set(1), key)
    anew = bank.trainer(DROPPING, whole, "rebatched")(CASE.params, data, jnp.asarray(kept), key)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), masked, anew)


def test_smoothed_is_the_mean_of_runs_made_of_equal_size_with_its_standard_error():
    def initial(seed):
        return jax.tree.map(lambda x: x * (1 + 0.1 * seed), CASE.params)

    kept = bank.subsets(N, 3, 0.7, seed=5)
    runs = smoothed(TASK, initial, CASE.data, SGD, ASKED, CASE.queries, masks=3, share=0.7, seed=5)
    single = []
    for m, found in enumerate(runs):
        its = dataclasses.replace(SGD, seed=SGD.seed + m)
        single.append(
            CASE.scores(its, params=initial(its.seed), weights=kept[m], divide="batch").values.astype(np.float64)
        )
        spread = np.std(single, 1)  # [masks, Q], over rows
        equal, size = single / spread[:, None], np.median(spread, 0)
        np.testing.assert_allclose(found.values, size * equal.mean(0), rtol=1e-6, atol=1e-9)
        if m:
            error = size * equal.std(0, ddof=1) / np.sqrt(m + 1)
            np.testing.assert_allclose(found.error, error, rtol=1e-5, atol=1e-8)
        else:
            assert np.isnan(found.error).all()
        assert found.masks == m + 1
    assert m == 2
    pairs = [np.mean([np.corrcoef(single[a][:, q], single[b][:, q])[0, 1] for a in range(3) for b in range(a)])
             for q in range(Q)]  # fmt: skip
    np.testing.assert_allclose(found.smoothness, pairs, rtol=1e-6)
    assert found.scores().method == f"smoothed metagradient, 3 masks, metasmoothness {np.mean(pairs):.2f}"
    np.testing.assert_array_equal(found.scores().values, found.values)


def test_where_the_gradient_is_zero_the_derivative_is_finite():
    """An input that is always 0 under AdamW; a batch of one row that is left out, with clipping; a random key held by
    the optimizer."""
    still = {**CASE.data, "x": CASE.data["x"] * np.array([1.0, 0, 1])}
    adamw = dataclasses.replace(RECIPES["adamw, a warm-up"], weight_decay=0.0, epochs=2)
    got = metagradient.metagradient(TASK, CASE.params, still, adamw, ASKED, CASE.queries).values
    want = differences(adamw, case=CASE._replace(data=still), shift=1e-7)  # Adam bends where a gradient is small
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())

    alone = dataclasses.replace(SGD, epochs=1, batch_size=6, momentum=0.0, weight_decay=0.0, clip=0.5)
    last = int(metagradient._orders(jax.random.key(alone.seed), 1, N, 6).ids[-1, 0])
    got = CASE.scores(alone, weights=np.arange(N) != last).values
    assert np.isfinite(got).all()
    assert np.abs(got[last]).max() > 0

    noise = dataclasses.replace(
        SGD, optimizer=lambda rate: optax.chain(optax.add_noise(1e-3, 0.5, jax.random.key(0)), optax.sgd(rate))
    )
    assert np.isfinite(CASE.scores(noise).values).all()


def test_refusals():
    with pytest.raises(UsageError, match=r"weights of shape \(3,\) for 7 rows; \[N\], not all 0"):
        CASE.scores(SGD, weights=np.ones(3))
    with pytest.raises(UsageError, match="not all 0"):
        CASE.scores(SGD, weights=np.zeros(N))
    with pytest.raises(UnknownNameError, match="divide a batch's loss 'weight'. Did you mean 'weights'"):
        CASE.scores(SGD, divide="weight")
    with pytest.raises(NonFiniteError, match="training diverged.*lower the learning rate"):
        CASE.scores(SGD, params=jax.tree.map(lambda x: x * 1e200, CASE.params))
