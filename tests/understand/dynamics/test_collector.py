"""The collector against a plain loop over stored logits, and all that must not change its statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import uimjax as uj
from uimjax import mesh
from uimjax.errors import DataError, ShapeError, UnknownNameError, UsageError
from uimjax.understand.dynamics.collector import Statistics

N, C, T = 23, 4, 7
EVERY = ("loss", "margin", "probability", "correct", "el2n", "grand")


@pytest.fixture(scope="module")
def run():
    rng = np.random.default_rng(0)
    return {
        "logits": rng.normal(size=(T, N, C)) * 2, "labels": rng.integers(C, size=N), "norms": rng.uniform(size=(T, N))
    }  # fmt: skip


def brute(run, met=None):
    """Each example's meetings one after the other, in float64: `met` `[T, N]` says which took place."""
    out = {
        name: np.full(N, np.nan) for name in ("margin", "probability", "variance", "loss", "last_loss", "el2n", "grand")
    }
    out |= {name: np.zeros(N, int) for name in ("met", "correct", "forgotten", "learned")} | {"first": np.full(N, -1)}
    out["history"] = [[] for _ in range(N)]
    for i in range(N):
        y, seen = run["labels"][i], []
        for t in range(T):
            if met is not None and not met[t, i]:
                continue
            z = run["logits"][t, i]
            p = np.exp(z) / np.exp(z).sum()
            others = [z[k] for k in range(C) if k != y]
            seen.append({
                "margin": z[y] - max(others), "probability": p[y], "loss": -np.log(p[y]),
                "correct": bool(z[y] > max(others)), "el2n": np.linalg.norm(p - np.eye(C)[y]),
                "grand": run["norms"][t, i],
            })  # fmt: skip
        out["met"][i], out["history"][i] = len(seen), seen
        if not seen:
            continue
        for name in ("margin", "probability", "loss", "el2n", "grand"):
            out[name][i] = np.mean([each[name] for each in seen])
        out["variance"][i] = np.var([each["probability"] for each in seen])
        right = [each["correct"] for each in seen]
        out["last_loss"][i], out["correct"][i] = seen[-1]["loss"], sum(right)
        out["forgotten"][i] = sum(a and not b for a, b in zip(right, right[1:], strict=False))
        out["first"][i] = right.index(True) if True in right else -1
        out["learned"][i] = max((k + 1 for k, r in enumerate(right) if not r), default=0)
    return out


def collected(run, collector, batches, dtype=jnp.float64, **more):
    """`batches`: (epoch, ids) in order."""
    state, update = collector.init(dtype), jax.jit(functools.partial(collector.update, **more))
    for epoch, ids in batches:
        at = np.maximum(ids, 0)
        state = update(
            state, jnp.asarray(ids), logits=jnp.asarray(run["logits"][epoch, at]),
            labels=jnp.asarray(run["labels"][at]), norms=jnp.asarray(run["norms"][epoch, at]), epoch=epoch,
        )  # fmt: skip
    return state


def shuffled(size, seed=0, pad=True):
    rng, found = np.random.default_rng(seed), []
    for epoch in range(T):
        order = rng.permutation(N)
        for k in range(0, N, size):
            ids = order[k : k + size]
            found.append((epoch, np.pad(ids, (0, size - len(ids)), constant_values=-1) if pad else ids))
    return found


def same(found: Statistics, wanted, tolerance=1e-12):
    for name, values in wanted.items():
        if name != "history":
            np.testing.assert_allclose(getattr(found, name), values, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.usefixtures("x64")
def test_statistics_are_those_of_a_plain_loop(run, distinct):
    collector = uj.dynamics.Collector(N, EVERY, at=(0, 3), ring=T)
    wanted = brute(run)
    found = collector.finish(collected(run, collector, shuffled(5), distinct=distinct))
    same(found, wanted)
    for k, t in enumerate((0, 3)):
        for name in ("el2n", "grand"):
            np.testing.assert_allclose(found.at[name][:, k], [h[t][name] for h in wanted["history"]], rtol=1e-12)
    losses = np.array([[each["loss"] for each in h] for h in wanted["history"]])
    np.testing.assert_allclose(found.losses, losses, rtol=1e-3)  # float16
    assert not found.repeated.any()


@pytest.mark.parametrize("tokens", [0, 2])
def test_of_distinct_ids_no_repetition_is_looked_for(tokens):
    """On a GPU the condition of a loop is asked for by the host, at every step."""
    collector = uj.dynamics.Collector(N, tokens=tokens)
    shape = (4, 2) if tokens else (4,)
    given = {"logits": jnp.zeros((*shape, C)), "labels": jnp.zeros(shape, int), "epoch": 0}
    loops = [
        str(jax.make_jaxpr(functools.partial(collector.update, **given, distinct=distinct))(
            collector.init(), jnp.arange(4)
        )).count("while[")
        for distinct in (False, True)
    ]  # fmt: skip
    assert loops == [1 + (tokens > 0), 0]


@pytest.mark.usefixtures("x64")
def test_batches_padding_and_order_change_nothing(run):
    collector = uj.dynamics.Collector(N, EVERY)
    wanted = brute(run)
    for batches in (shuffled(1), shuffled(N, 3), shuffled(6, 5), shuffled(4, 7, pad=False)):
        same(collector.finish(collected(run, collector, batches)), wanted)


def test_single_precision_is_near_and_one_program_serves(run):
    collector = uj.dynamics.Collector(N, EVERY)
    update, traced = collector.update, []

    def counted(*args, **named):
        traced.append(1)
        return update(*args, **named)

    state, step = collector.init(), jax.jit(counted)
    for epoch, ids in shuffled(5):
        at = np.maximum(ids, 0)
        state = step(state, jnp.asarray(ids), logits=jnp.asarray(run["logits"][epoch, at], jnp.float32),
                     labels=jnp.asarray(run["labels"][at]), norms=jnp.asarray(run["norms"][epoch, at], jnp.float32),
                     epoch=epoch)  # fmt: skip
    assert len(traced) == 1
    same(collector.finish(state), brute(run), 3e-6)


@pytest.mark.usefixtures("x64")
def test_missing_meetings_and_examples_never_met(run):
    met = np.random.default_rng(1).random((T, N)) < 0.6
    met[:, 4] = False
    batches = [(t, np.flatnonzero(met[t])) for t in range(T)]
    found = uj.dynamics.Collector(N, EVERY).finish(collected(run, uj.dynamics.Collector(N, EVERY), batches))
    same(found, brute(run, met))
    assert np.isnan(found.margin[4])
    assert found.met[4] == 0


@pytest.mark.usefixtures("x64")
def test_a_mask_and_foreign_ids_leave_rows_out(run):
    collector = uj.dynamics.Collector(N)
    given = {"logits": jnp.asarray(run["logits"][0, :4]), "labels": jnp.asarray(run["labels"][:4])}
    state = collector.update(
        collector.init(), jnp.array([0, 1, N, -3]), mask=jnp.array([True, False, True, True]), **given
    )
    assert collector.finish(state).met.tolist() == [1] + [0] * (N - 1)


@pytest.mark.usefixtures("x64")
def test_repeated_ids_are_refused_or_counted_in_order(run):
    collector = uj.dynamics.Collector(N, EVERY, ring=4)
    twice = [(0, np.array([3, 5, 3, 3])), (1, np.array([5, 5, 2, 3]))]
    rows = [(0, 3), (0, 5), (0, 3), (0, 3), (1, 5), (1, 5), (1, 2), (1, 3)]
    state, update = collector.init(jnp.float64), jax.jit(collector.update)
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(8, C))
    for (epoch, ids), part in zip(twice, (slice(0, 4), slice(4, 8)), strict=True):
        state = update(state, jnp.asarray(ids), logits=jnp.asarray(logits[part]),
                       labels=jnp.asarray(run["labels"][ids]), norms=jnp.ones(4), epoch=epoch)  # fmt: skip
    with pytest.raises(DataError, match="2 examples were met twice in one epoch, first id 3"):
        collector.finish(state)
    found = collector.finish(state, repeats="count")
    alone = uj.dynamics.Collector(N, EVERY, ring=4)
    one = alone.init(jnp.float64)
    for (epoch, i), z in zip(rows, logits, strict=True):
        one = alone.update(one, jnp.array([i]), logits=jnp.asarray(z)[None], labels=jnp.asarray(run["labels"][[i]]),
                           norms=jnp.ones(1), epoch=epoch)  # fmt: skip
    for name, mine, theirs in zip(Statistics._fields, found, alone.finish(one, "count"), strict=True):
        if name not in ("at", "chosen", "tokens"):
            np.testing.assert_allclose(mine, theirs, rtol=1e-12, err_msg=name)
    assert found.met[[3, 5, 2]].tolist() == [4, 3, 1]
    assert found.repeated[[3, 5, 2]].tolist() == [2, 1, 0]


def test_the_ring_keeps_the_newest(run):
    collector = uj.dynamics.Collector(N, ("loss",), ring=3)
    found = collector.finish(collected(run, collector, shuffled(8), jnp.float32))
    wanted = np.array([[each["loss"] for each in h[-3:]] for h in brute(run)["history"]])
    np.testing.assert_allclose(found.losses, wanted, rtol=1e-3)
    early = collector.finish(collected(run, collector, shuffled(8)[:3], jnp.float32))
    assert np.isnan(early.losses[:, :2]).all()
    assert not np.isnan(early.losses[:, 2]).any()


def test_losses_alone_and_losses_beside_logits():
    collector = uj.dynamics.Collector(2, ("loss",))
    state = collector.update(collector.init(), jnp.array([0, 1]), losses=jnp.array([1.0, 3.0]))
    state = collector.update(state, jnp.array([0]), losses=jnp.array([2.0]))
    found = collector.finish(state)
    assert (found.loss.tolist(), found.last_loss.tolist(), found.met.tolist()) == ([1.5, 3.0], [2.0, 3.0], [2, 1])
    assert np.isnan(found.margin).all()
    assert (found.correct == -1).all()
    both = uj.dynamics.Collector(2)
    state = both.update(
        both.init(), jnp.array([0]), logits=jnp.zeros((1, 3)), labels=jnp.array([1]), losses=jnp.array([9.0])
    )
    assert both.finish(state).loss[0] == 9.0


@pytest.mark.usefixtures("x64")
def test_margins_of_probabilities_are_another_score(run):
    collector = uj.dynamics.Collector(N, margins="probabilities")
    found = collector.finish(
        collected(run, uj.dynamics.Collector(N, EVERY, margins="probabilities"), shuffled(5)), "count"
    )
    p = np.exp(run["logits"]) / np.exp(run["logits"]).sum(-1, keepdims=True)
    mine = p[:, np.arange(N), run["labels"]]
    p[:, np.arange(N), run["labels"]] = -1
    np.testing.assert_allclose(found.margin, (mine - p.max(-1)).mean(0), rtol=1e-12)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_the_number_of_devices_changes_nothing(run, devices):
    count = 24  # a multiple of the devices: rows are shared out evenly
    collector = uj.dynamics.Collector(count, EVERY, at=(1,), ring=2)
    plain = collected(run, collector, shuffled(8), jnp.float32)
    over = mesh.make_mesh(devices, jax.devices()[:devices])
    state = mesh.shard_batch(over, collector.init())
    update = jax.jit(collector.update, donate_argnums=0)
    for epoch, ids in shuffled(8):
        at = np.maximum(ids, 0)
        rows = (
            ids,
            run["logits"][epoch, at].astype(np.float32),
            run["labels"][at],
            run["norms"][epoch, at].astype(np.float32),
        )
        ids, logits, labels, norms = mesh.shard_batch(over, rows)
        state = update(state, ids, logits=logits, labels=labels, norms=norms, epoch=epoch)
    assert len(state.values.sharding.device_set) == devices
    for name, mine, theirs in zip(Statistics._fields, collector.finish(state), collector.finish(plain), strict=True):
        if name not in ("at", "chosen", "tokens"):
            np.testing.assert_allclose(mine, theirs, rtol=2e-6, err_msg=name)


def test_seeds_are_an_axis_of_vmap(run):
    collector = uj.dynamics.Collector(N)
    seeds = jnp.arange(3)
    state = jax.vmap(lambda _: collector.init())(seeds)
    logits = jnp.stack([jnp.asarray(run["logits"][k], jnp.float32) for k in range(3)])
    ids, labels = jnp.arange(N), jnp.asarray(run["labels"])
    state = jax.vmap(lambda s, z: collector.update(s, ids, logits=z, labels=labels, epoch=0))(state, logits)
    for k in range(3):
        alone = collector.update(collector.init(), ids, logits=logits[k], labels=labels, epoch=0)
        mine = collector.finish(jax.tree.map(lambda x, k=k: x[k], state))
        np.testing.assert_allclose(mine.margin, collector.finish(alone).margin, rtol=1e-6)
    with pytest.raises(ShapeError, match="take one seed"):
        collector.finish(state)


@pytest.mark.usefixtures("x64")
def test_tokens_of_sequences():
    rng, length = np.random.default_rng(5), 6
    collector = uj.dynamics.Collector(4, tokens=length)
    labels = rng.integers(C, size=(4, length))
    labels[1, 4:] = -1  # padding
    logits = rng.normal(size=(3, 4, length, C)) * 2
    state = collector.init(jnp.float64)
    for t in range(3):
        state = collector.update(
            state, jnp.arange(4), logits=jnp.asarray(logits[t]), labels=jnp.asarray(labels), epoch=t
        )
    found = collector.finish(state)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    each = np.take_along_axis(p, np.maximum(labels, 0)[None, :, :, None], 3)[..., 0]  # [3, 4, T]
    counted = labels >= 0
    np.testing.assert_allclose(found.loss, [(-np.log(each[:, i])[:, counted[i]]).sum(1).mean() for i in range(4)])
    np.testing.assert_allclose(found.probability, [each[:, i][:, counted[i]].mean() for i in range(4)])
    right = (logits.argmax(-1) == labels) | ~counted
    assert found.correct.tolist() == right.all(-1).sum(0).tolist()
    token = found.tokens.probability.reshape(4, length)
    np.testing.assert_allclose(token[counted], each.mean(0)[counted])
    assert np.isnan(token[1, 4:]).all()
    with pytest.raises(ShapeError, match=r"tokens=6 are collected of logits \[B, 6, C\]"):
        collector.update(state, jnp.arange(4), logits=jnp.zeros((4, 5, C)), labels=jnp.zeros((4, 5), int))


def test_accumulated_microbatches_and_a_restart_inside_a_training_step(tmp_path):
    from uimjax import checkpoint

    collector, key = uj.dynamics.Collector(16), jax.random.key(0)
    x, y = jax.random.normal(key, (16, 5)), jnp.arange(16) % 3
    opt = optax.sgd(0.1)

    @jax.jit
    def step(params, opt_state, state, ids, epoch):
        def loss(params, ids):
            logits = x[ids] @ params
            return optax.softmax_cross_entropy_with_integer_labels(logits, y[ids]).mean(), logits

        total = jnp.zeros_like(params)
        for half in jnp.split(ids, 2):
            grads, logits = jax.grad(loss, has_aux=True)(params, half)
            state = collector.update(state, half, logits=logits, labels=y[half], epoch=epoch)
            total = total + grads / 2
        updates, opt_state = opt.update(total, opt_state)
        return params + updates, opt_state, state

    def go(carry, start, stop):
        for epoch in range(start, stop):
            order = jax.random.permutation(jax.random.fold_in(key, epoch), 16)
            for ids in jnp.split(order, 2):
                carry = step(*carry, ids, epoch)
        return carry

    begun = (jnp.zeros((5, 3)), opt.init(jnp.zeros((5, 3))), collector.init())
    straight = go(begun, 0, 6)
    checkpoint.save(tmp_path, 3, go(begun, 0, 3))
    resumed = go(checkpoint.load(tmp_path, begun)[1], 3, 6)
    for mine, theirs in zip(jax.tree.leaves(straight), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert (collector.finish(straight[2]).met == 6).all()


def fed(collector, *batches):
    """A state after batches of (ids, logits, labels)."""
    state = collector.init()
    for ids, logits, labels in batches:
        given = {"logits": jnp.asarray(logits, jnp.float32), "labels": jnp.asarray(labels)}
        state = collector.update(state, jnp.asarray(ids), **given)
    return state


def test_labels_that_are_no_class_are_refused_but_for_the_padding_of_sequences():
    collector, z = uj.dynamics.Collector(4), np.zeros((3, 3))
    for label in (-1, 3):
        with pytest.raises(DataError, match="1 examples had a label outside 0..C-1 of their C logits, first id 2"):
            collector.finish(fed(collector, ([0, 2, -1], z, [0, label, 9])))
    assert collector.finish(fed(collector, ([0, -1, 9], z, [0, -1, 7]))).met.tolist() == [1, 0, 0, 0]
    tokens = np.zeros((2, 2, 3))
    assert collector.finish(fed(collector, ([0, 1], tokens, [[1, -1], [0, 0]]))).met.tolist() == [1, 1, 0, 0]
    with pytest.raises(DataError, match="first id 1"):
        collector.finish(fed(collector, ([0, 1], tokens, [[1, -1], [0, 3]])))


def test_one_number_of_classes_of_two_at_least():
    collector = uj.dynamics.Collector(4)
    for ids in ([0], [1]):
        with pytest.raises(DataError, match="logits of several numbers of classes arrived .*one number of classes"):
            collector.finish(fed(collector, ([0], np.zeros((1, 3)), [0]), (ids, np.zeros((1, 4)), [0])))
    with pytest.raises(ShapeError, match="two classes at least"):
        fed(collector, ([0], np.zeros((1, 1)), [0]))


def test_a_sequence_without_a_counted_token_is_not_met():
    collector = uj.dynamics.Collector(2, tokens=2)
    found = collector.finish(fed(collector, ([0, 1], np.zeros((2, 2, 3)), [[1, -1], [-1, -1]])))
    assert found.met.tolist() == [1, 0]
    assert np.isnan(found.probability[1])


def test_squares_are_means_of_squares_and_the_formula_says_so():
    collector = uj.dynamics.Collector(1, at=(1,))
    logits = [np.array([[2.0, 0.0]]), np.array([[0.0, 1.0]])]
    found = collector.finish(fed(collector, *(([0], z, [0]) for z in logits)))
    p = [np.exp(z[0]) / np.exp(z[0]).sum() for z in logits]
    squares = [np.square(each - [1, 0]).sum() for each in p]
    scores = uj.dynamics.scores(found, uj.dynamics.Definitions(el2n_squared=True))
    assert scores["el2n"].values[0] == pytest.approx(np.mean(squares), rel=1e-6)
    assert scores["el2n"].formula == "mean of |p - onehot(y)|^2"
    assert scores["el2n_1"].values[0] == pytest.approx(squares[1], rel=1e-6)
    assert scores["el2n_1"].formula == "|p - onehot(y)|^2 at meeting 1"
    assert uj.dynamics.scores(found)["el2n"].formula == "mean of |p - onehot(y)|"
    m = np.mean([each[0] for each in p])
    assert scores["threshold_closeness"].values[0] == pytest.approx(m * (1 - m), rel=1e-6)


def test_losses_beyond_float16_are_its_largest_and_lost_ones_are_counted():
    collector = uj.dynamics.Collector(3, ("loss",), ring=3)
    state = collector.init()
    for loss in (1e6, np.nan, 2.0):
        state = collector.update(state, jnp.array([0, 1]), losses=jnp.array([loss, 1.0]))
    found = collector.finish(state)
    np.testing.assert_array_equal(found.losses[0], [65504, np.nan, 2])
    assert found.lost.tolist() == [1, 0, 0]
    assert np.isnan(found.loss[0])


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: uj.dynamics.Collector(3, ("los",)), UnknownNameError, "Did you mean 'loss'"),
        (lambda: uj.dynamics.Collector(0), UsageError, "at least one example"),
        (lambda: uj.dynamics.Collector(3, ("loss",), at=(1,)), UsageError, "el2n or grand is kept"),
        (lambda: uj.dynamics.Collector(3, margins="softmax"), UnknownNameError, "kind of margin"),
        (lambda: (c := uj.dynamics.Collector(3)).update(c.init(), jnp.arange(2), losses=jnp.ones(2)), UsageError,
         "margin, probability, correct, el2n cannot be collected.*logits and labels"),
        (lambda: (c := uj.dynamics.Collector(3, ("grand",))).update(c.init(), jnp.arange(2), losses=jnp.ones(2)),
         UsageError, "give norms"),
        (lambda: (c := uj.dynamics.Collector(3)).update(c.init(), jnp.arange(2), logits=jnp.ones((2, 2))), UsageError,
         "belong together"),
        (lambda: (c := uj.dynamics.Collector(3)).update(c.init(), jnp.arange(2), logits=jnp.ones((2, 2)),
                                                        labels=jnp.zeros((3,), int)), ShapeError, "labels"),
        (lambda: (c := uj.dynamics.Collector(3, ("loss",))).update(c.init(), jnp.arange(3), losses=jnp.ones(2)),
         ShapeError, "one each was wanted"),
        (lambda: (c := uj.dynamics.Collector(3)).finish(c.init(), repeats="drop"), UnknownNameError, "repeated ids"),
        (lambda: (c := uj.dynamics.Collector(3)).finish(c.init()), DataError, "none of the 3 examples was met"),
        (lambda: (c := uj.dynamics.Collector(3, ("loss",))).update(c.init(), jnp.ones(2), losses=jnp.ones(2)),
         ShapeError, "integers \\[B\\] fit"),
        (lambda: (c := uj.dynamics.Collector(3, ("loss",))).update(c.init(), jnp.arange(2), losses=jnp.ones(2),
                                                                   mask=jnp.ones(2)), ShapeError, "booleans"),
        (lambda: (c := uj.dynamics.Collector(3)).update(c.init(), jnp.arange(2), logits=jnp.ones((2, 2)),
                                                        labels=jnp.zeros(2)), ShapeError, "labels of type float32"),
    ],
)  # fmt: skip
def test_wrong_input(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_el2n_of_what_is_learned_keeps_its_digits_in_float32():
    """|p|^2 - 2 p_y + 1 is 1 - 2 + 1 there: half of such scores were exactly 0."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(500, 10)).astype(np.float32)
    logits[:, 0] += rng.uniform(5, 30, 500).astype(np.float32)
    wide = logits.astype(np.float64)
    p = np.exp(wide - wide.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[:, 0] = -p[:, 1:].sum(1)
    truth = np.sqrt((p**2).sum(1))
    collector = uj.dynamics.Collector(500)
    labels = jnp.zeros(500, int)
    found = collector.finish(
        collector.update(collector.init(), jnp.arange(500), logits=jnp.asarray(logits), labels=labels)
    )
    np.testing.assert_allclose(found.el2n, truth, rtol=2e-5)
    np.testing.assert_allclose(found.el2n_squared, truth**2, rtol=4e-5)


@pytest.mark.parametrize("kind", [jnp.uint8, jnp.int8, jnp.int32])
def test_labels_of_few_bits_are_numbers_of_classes(kind):
    collector, labels = uj.dynamics.Collector(2), jnp.array([1, 100], kind)
    logits = jnp.zeros((2, 256)).at[1, 100].set(5.0)
    found = collector.finish(
        collector.update(collector.init(), jnp.array([0, 1], jnp.uint8), logits=logits, labels=labels)
    )
    assert found.correct.tolist() == [0, 1]


@pytest.mark.parametrize("counted", [np.ones((2, 4), np.float32), np.ones(2, bool)])
def test_counted_that_does_not_fit_is_refused(counted):
    collector = uj.dynamics.Collector(2, tokens=4)
    with pytest.raises(ShapeError, match=r"counted .* arrived with labels \[2, 4\]; booleans of that shape"):
        collector.update(
            collector.init(), jnp.arange(2), logits=jnp.zeros((2, 4, 3)), labels=jnp.zeros((2, 4), int), counted=counted
        )


@pytest.mark.usefixtures("x64")
def test_an_id_beyond_32_bits_is_padding_and_no_other_example():
    collector = uj.dynamics.Collector(3)
    ids = jnp.array([1, 2**32], jnp.int64)
    found = collector.finish(
        collector.update(collector.init(), ids, logits=jnp.zeros((2, 2)), labels=jnp.zeros(2, int))
    )
    assert found.met.tolist() == [0, 1, 0]
