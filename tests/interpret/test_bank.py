"""Banks of models trained again on subsets, against gradient descent in numpy and the training loop; what is kept in a
folder is never another bank's."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from uimjax import rows as row
from uimjax import training
from uimjax.errors import NonFiniteError, UnknownNameError, UsageError
from uimjax.interpret import bank
from uimjax.mesh import make_mesh
from uimjax.steps import Recipe
from uimjax.task import Measurement, Task

N = 9
RECIPE = Recipe(epochs=3, batch_size=4, learning_rate=0.1, optimizer="sgd", weight_decay=0.01, momentum=0.8)
TASK = Task(lambda p, e: 0.5 * (e["x"] @ p["w"] + p["b"] - e["y"]) ** 2)
ASKED = Measurement("answer", lambda p, x: x @ p["w"] + p["b"], unit="answer")


def initial(seed):
    return {"w": jnp.full(3, 0.1 * (seed + 1)), "b": jnp.float32(0)}


@pytest.fixture
def data(rng):
    return {"x": rng.normal(size=(N, 3)).astype(np.float32), "y": rng.normal(size=N).astype(np.float32)}


@pytest.fixture
def queries(rng):
    return rng.normal(size=(2, 3)).astype(np.float32)


def by_hand(data, queries, seed, weights):
    """The answers after training with momentum, decay and a cosine, in numpy; only the order of rows is taken over."""
    p, trace = np.append(np.full(3, 0.1 * (seed + 1)), 0.0), np.zeros(4)
    x, y, count = np.pad(data["x"], [(0, 0), (0, 1)], constant_values=1), data["y"], len(weights)
    steps = RECIPE.epochs * -(-count // RECIPE.batch_size)
    done = 0
    for epoch in range(RECIPE.epochs):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(jax.random.key(seed), epoch), count))
        for first in range(0, count, RECIPE.batch_size):
            ids = order[first : first + RECIPE.batch_size]
            share = weights[ids] / max(weights[ids].sum(), 1e-9)
            gradient = (share * (x[ids] @ p - y[ids])) @ x[ids]
            trace = gradient + RECIPE.weight_decay * p + RECIPE.momentum * trace
            p = p - RECIPE.learning_rate * (0.1 + 0.9 * (1 + np.cos(np.pi * done / steps)) / 2) * trace
            done += 1
    return queries @ p[:3] + p[3]


def trained(data, queries, kept, **more):
    more = {"task": TASK, "recipe": RECIPE, "measurement": ASKED, "initial": initial, "seeds": (0,)} | more
    first = [more.pop(k) for k in ("task", "initial")]
    return bank.train_bank(*first, data, more.pop("recipe"), kept, more.pop("measurement"), queries, **more)


def test_subsets_keep_their_share_of_the_rows():
    kept = bank.subsets(11, 40, share=0.3, seed=1)
    assert (kept.shape, kept.dtype) == ((40, 11), bool)
    assert (kept.sum(1) == 3).all()
    assert len({mask.tobytes() for mask in kept}) > 20
    np.testing.assert_allclose(kept.mean(0), 3 / 11, atol=0.25)  # no row is left out by all
    np.testing.assert_array_equal(bank.subsets(11, 5, 0.3, seed=1), kept[:5])  # a longer bank begins with the shorter
    assert not np.array_equal(bank.subsets(11, 40, 0.3, seed=2), kept)
    for share in (0.0, 1.0, 0.02):
        with pytest.raises(UsageError, match="between 1 and 10 were wanted"):
            bank.subsets(11, 2, share)


@pytest.mark.parametrize("protocol", bank.PROTOCOLS)
def test_each_model_is_trained_on_its_rows_as_the_protocol_says(protocol, data, queries):
    """Rebatched: as if the other rows had never existed; masked: every row keeps its place, left out by weight 0."""
    kept = bank.subsets(N, 3, 0.7)
    if protocol == "masked":
        kept[1, :5] = False  # there, subsets may be of several sizes
    found = trained(data, queries, kept, protocol=protocol, seeds=(0, 3))
    assert (found.protocol, found.values.shape) == (protocol, (3, 2, 2))
    np.testing.assert_array_equal(found.kept, kept)
    for m, mask in enumerate(kept):
        for s, seed in enumerate((0, 3)):
            if protocol == "masked":
                want = by_hand(data, queries, seed, mask.astype(float))
            else:
                want = by_hand(row.take(data, mask), queries, seed, np.ones(mask.sum()))
            np.testing.assert_allclose(found.values[m, s], want, rtol=1e-4, atol=1e-5)
    recipe, mask = dataclasses.replace(RECIPE, seed=3), kept[2]
    if protocol == "masked":
        fitted = training.fit(TASK, initial(3), data, recipe, weights=mask)
    else:
        fitted = training.fit(TASK, initial(3), row.take(data, mask), recipe)
    answers = [ASKED.fun(fitted.params, q) for q in queries]
    np.testing.assert_allclose(found.values[2, 1], answers, rtol=1e-5, atol=1e-6)


def test_a_model_that_is_in_the_folder_is_not_trained_again(data, queries, tmp_path, monkeypatch):
    kept, made = bank.subsets(N, 4), []
    honest = bank.trainer

    def counted(*choice):
        program = honest(*choice)
        run = functools.wraps(program)(lambda *args: made.append(1) or program(*args))
        run.lower = program.lower
        return run

    monkeypatch.setattr(bank, "trainer", counted)
    plain = trained(data, queries, kept)
    one = trained(data, queries, kept[:3], folder=tmp_path / "bank")
    assert len(made) == 4 + 3
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "bank").iterdir()}
    two = trained(data, queries, kept, folder=tmp_path / "bank")
    assert len(made) == 4 + 3 + 1  # the fourth alone
    assert times == {path: path.stat().st_mtime_ns for path in times}
    np.testing.assert_array_equal(one.values, plain.values[:3])
    np.testing.assert_array_equal(two.values, plain.values)
    turned = trained(data, queries, kept[::-1], folder=tmp_path / "bank", seeds=(0,))
    assert len(made) == 4 + 3 + 1
    np.testing.assert_array_equal(turned.values, plain.values[::-1])


@pytest.mark.parametrize("protocol", bank.PROTOCOLS)
def test_models_side_by_side_and_on_devices_are_those_trained_alone(protocol, data, queries, tmp_path):
    kept, more = bank.subsets(N, 5, 0.7), {"protocol": protocol, "seeds": (0, 3)}
    alone = trained(data, queries, kept, **more).values
    for how in ({"together": 3}, {"mesh": make_mesh(4)}, {"together": 2, "mesh": make_mesh(2)}):
        found = trained(data, queries, kept, **more, **how, folder=tmp_path).values
        np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(trained(data, queries, kept, **more, **how, folder=tmp_path).values, found)
    groups = []
    trained(data, queries, kept, **more, together=3, progress=lambda items, *_, **__: groups.extend(items) or items)
    assert [len(group) for group in groups] == [3, 3, 3, 1]


def scaled(factor):
    return Task(lambda p, e: factor * 0.5 * (e["x"] @ p["w"] + p["b"] - e["y"]) ** 2)


def own_rule(slope):
    @jax.custom_vjp
    def same(x):
        return x * 1.0

    same.defvjp(lambda x: (same(x), None), lambda _, g: (slope * g,))
    return Task(lambda p, e: 0.5 * (same(e["x"] @ p["w"] + p["b"]) - e["y"]) ** 2)


def inside(factor):
    """The constant belongs to a program within the loss's own."""
    k = jnp.full(1, factor)
    inner = jax.jit(lambda z: jnp.sum(z * k))
    return Task(lambda p, e: 0.5 * (inner(e["x"] @ p["w"] + p["b"]) - e["y"]) ** 2)


def decaying(share):
    return lambda rate: optax.chain(optax.add_decayed_weights(share), optax.sgd(rate))


def test_a_measurement_need_not_have_a_derivative(data, queries, tmp_path):
    """A bank asks for values alone: one that can only be run forward has a digest, custom rules or not."""

    def value(p, x):
        start = jax.nn.relu(x @ p["w"] + p["b"])
        return jax.lax.while_loop(lambda v: v > 1, lambda v: v / 2, start)

    asked = Measurement("halved", value, unit="answer")
    kept = np.ones((1, N), bool)
    want = trained(data, queries, kept, measurement=asked).values
    np.testing.assert_array_equal(trained(data, queries, kept, measurement=asked, folder=tmp_path).values, want)


def test_a_folder_never_answers_for_another_bank(data, queries, tmp_path):
    """Another recipe, loss, measurement, rows, queries, first parameters, protocol, subset or seed: other numbers."""
    kept = bank.subsets(N, 1, 0.7)
    shift = jnp.asarray([1.0, 2.0, 3.0])
    others = [
        {},
        {"recipe": dataclasses.replace(RECIPE, learning_rate=0.05)},
        {"recipe": dataclasses.replace(RECIPE, epochs=2)},
        {"recipe": dataclasses.replace(RECIPE, clip=0.1)},
        {"task": scaled(2.0)},
        {"task": scaled(jnp.float32(0.5))},
        {"task": scaled(jnp.float32(0.6))},  # the same program with another constant
        {"measurement": Measurement("answer", lambda p, x: 2 * (x @ p["w"]), unit="answer")},
        {"measurement": Measurement("answer", lambda p, x: (x + shift) @ p["w"], unit="answer")},
        {"measurement": Measurement("answer", lambda p, x: (x + 2 * shift) @ p["w"], unit="answer")},
        {"task": own_rule(0.7)},
        {"task": own_rule(0.4)},  # the same program with another derivative
        {"task": inside(0.9)},
        {"task": inside(0.6)},
        {"recipe": dataclasses.replace(RECIPE, optimizer=decaying(0.1))},
        {"recipe": dataclasses.replace(RECIPE, optimizer=decaying(0.2))},
        {"data": data | {"y": data["y"] + 0.1}},
        {"queries": queries + 1},
        {"initial": lambda seed: initial(seed + 1)},
        {"protocol": "masked"},
        {"kept": ~kept},
        {"seeds": (5,)},
    ]
    seen = []
    for change in others:
        ask = {"data": data, "queries": queries, "kept": kept} | change
        found = trained(**ask, folder=tmp_path).values
        np.testing.assert_array_equal(found, trained(**ask).values)
        seen.append(found.tobytes())
        assert len(list(tmp_path.iterdir())) == len(seen)
    assert len(set(seen)) == len(others)


def test_refusals(data, queries):
    kept = bank.subsets(N, 2)
    with pytest.raises(UsageError, match="0 models were to be trained together"):
        trained(data, queries, kept, together=0)
    with pytest.raises(UnknownNameError, match="unknown retraining protocol 'mask'. Did you mean 'masked'"):
        trained(data, queries, kept, protocol="mask")
    for wrong in (kept[:, :5], kept[0], np.zeros((2, N))):
        with pytest.raises(UsageError, match=rf"subsets of shape .* for {N} rows; \[M, {N}\], none empty"):
            trained(data, queries, wrong)
    kept[0] = True
    with pytest.raises(UsageError, match="several sizes .* use protocol='masked'"):
        trained(data, queries, kept)
    with pytest.raises(NonFiniteError, match="subset 0, seed 0: training diverged; lower the learning rate"):
        trained(data, queries, kept[1:], recipe=dataclasses.replace(RECIPE, learning_rate=1e30))
