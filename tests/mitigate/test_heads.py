"""Heads on frozen features: losses and steps against NumPy, what each is for, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uimjax.errors import DataError, NonFiniteError, ShapeError, UnknownNameError, UsageError
from uimjax.mitigate import heads
from uimjax.mitigate.heads import SKD, NMTune, Tuning, accuracy, jtt, logits, penalties, restoring, tune


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def blobs(rng, count=300, width=6, classes=3, far=2.0):
    labels = rng.integers(classes, size=count)
    return (rng.normal(size=(count, width)) + far * np.eye(classes, width)[labels]).astype(np.float32), labels


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("penalty", [NMTune(), NMTune.paper()])
def test_the_terms_of_nmtune_are_their_formulas(penalty, rng):
    z, f = rng.normal(size=(12, 7)), rng.normal(size=(12, 7))
    found = penalties(penalty, jnp.asarray(z), jnp.asarray(f))
    mse = np.mean([(z[i] / np.linalg.norm(z[i]) - f[i] / np.linalg.norm(f[i])) ** 2 for i in range(12)])
    c = np.cov(z.T)
    cov = sum(c[i, j] ** 2 for i in range(7) for j in range(7) if i != j) / 7
    sigma = np.sqrt(np.maximum(np.sort(np.linalg.eigvalsh(z.T @ z))[::-1], 0))
    svd = -np.mean([sigma[k] / sigma.sum() for k in range(penalty.top)])
    np.testing.assert_allclose([found["mse"], found["cov"], found["svd"]], [mse, cov, svd], rtol=1e-9)
    assert (penalty.mse, penalty.cov, penalty.svd, penalty.top) in ((1.0, 0.04, 0.001, 5), (0.01, 0.01, 0.01, 1))
    still = jax.grad(lambda f: penalties(penalty, jnp.asarray(z), f)["mse"])(jnp.asarray(f))
    assert not np.asarray(still).any(), "the first view is held fixed"


@pytest.mark.usefixtures("x64")
def test_the_terms_of_skd_are_their_formulas(rng):
    from scipy import stats

    z, out, labels = rng.gamma(2.0, size=(40, 7)) * 50, 3 * rng.normal(size=(40, 4)), rng.integers(4, size=40)
    found = restoring(SKD(skew_to=0.3, kurt_to=-1.0), jnp.asarray(z), jnp.asarray(out), jnp.asarray(labels))
    skew = np.abs(stats.skew(z, axis=0)).mean()
    margins = [out[i, labels[i]] - np.delete(out[i], labels[i]).mean() for i in range(40)]
    wanted = [abs(skew - 0.3), abs(stats.kurtosis(z, axis=0).mean() + 1), np.mean([max(0, 1 - m) for m in margins])]
    np.testing.assert_allclose([found["skew"], found["kurt"], found["disagree"]], wanted, rtol=1e-6)
    assert (SKD().skew, SKD().kurt, SKD().disagree) == (0.1, 1.0, 0.1)


def test_skd_aims_above_what_arrives_and_gets_there(rng):
    from scipy import stats

    x, y = blobs(rng, 400)
    found = tune(x, y, Tuning("mlp", SKD(), epochs=1))
    assert found.how.penalty.kurt_to == pytest.approx(
        1.5 * stats.kurtosis(x, axis=0, fisher=False).mean() - 3, rel=1e-3
    )
    assert found.how.penalty.kurt_to > stats.kurtosis(x, axis=0).mean()
    assert found.how.penalty.skew_to == pytest.approx(1.5 * np.abs(stats.skew(x, axis=0)).mean(), rel=1e-3)
    kurt = {}
    for to in (0.0, 3.0):
        head = tune(x, y, Tuning("mlp", SKD(kurt_to=to), epochs=30, batch_size=200, learning_rate=1e-2))
        z = heads._forward(head.how, head.params, head.stats, jnp.asarray(x), False)[1]
        kurt[to] = stats.kurtosis(np.asarray(z), axis=0).mean()
    assert kurt[3.0] > kurt[0.0] + 1


@pytest.mark.parametrize("how", [
    Tuning(epochs=3, batch_size=20, learning_rate=0.05, weight_decay=0.1),
    Tuning(epochs=3, batch_size=20, learning_rate=0.05, adjust=1.5),
    Tuning(epochs=3, batch_size=20, learning_rate=0.05, robust=0.5),
], ids=["weights", "adjusted", "robust"])  # fmt: skip
def test_a_linear_head_equals_adamw_by_hand(how, rng):
    x, y = blobs(rng, 50)
    groups, weights = rng.integers(2, size=50), rng.uniform(0.5, 2, 50)
    found = tune(x, y, how, groups=groups if how.robust else None, weights=weights)
    begun = heads._begin(how, 6, 3, 2).params
    w, b = np.asarray(begun["w"], np.float64), np.zeros(3)
    first, second, q, step = [0.0, 0.0], [0.0, 0.0], np.full(2, 0.5), 0
    log_pi = how.adjust * np.log(np.bincount(y) / 50)
    for epoch in range(3):
        order = jax.random.permutation(jax.random.fold_in(jax.random.key(0), epoch), 50)
        for ids in np.asarray(order)[:40].reshape(2, 20):
            p = softmax(x[ids] @ w + b + log_pi)
            part = weights[ids] / weights[ids].sum()
            if how.robust:
                ce, part, of = -np.log(p[np.arange(20), y[ids]]), np.zeros(20), np.zeros(2)
                for g in range(2):
                    inside = weights[ids] * (groups[ids] == g)
                    of[g] = (inside * ce).sum() / inside.sum()
                q = q * np.exp(how.robust * of) / (q * np.exp(how.robust * of)).sum()
                for g in range(2):
                    inside = weights[ids] * (groups[ids] == g)
                    part += q[g] * inside / inside.sum()
            slope = (p - np.eye(3)[y[ids]]) * part[:, None]
            step += 1
            for k, (value, g) in enumerate(((w, x[ids].T @ slope), (b, slope.sum(0)))):
                first[k] = 0.9 * first[k] + 0.1 * g
                second[k] = 0.999 * second[k] + 0.001 * g**2
                move = first[k] / (1 - 0.9**step) / (np.sqrt(second[k] / (1 - 0.999**step)) + 1e-8)
                value -= how.learning_rate * (move + how.weight_decay * value)
    np.testing.assert_allclose(found.params["w"], w, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.params["b"], b, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(logits(found, x), x @ w + b, rtol=1e-3, atol=1e-3)
    if how.robust:
        np.testing.assert_allclose(found.groups, q, rtol=1e-3)


def test_the_residual_head_and_its_batch_norm_are_those_of_numpy(rng):
    x, y = blobs(rng, 40)
    how = Tuning("mlp", NMTune(), epochs=1, batch_size=40, learning_rate=1e-9, weight_decay=0.0)
    found = tune(x, y, how)
    p = {name: np.asarray(value, np.float64) for name, value in found.params.items()}
    h = x @ p["w1"] + p["b1"]
    np.testing.assert_allclose(found.stats["mean"], 0.1 * h.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.stats["var"], 0.9 + 0.1 * h.var(0, ddof=1), rtol=1e-4)
    h = (h - np.asarray(found.stats["mean"])) / np.sqrt(np.asarray(found.stats["var"]) + 1e-5)
    z = x + p["s"] * (np.maximum(h, 0) @ p["w2"] + p["b2"])
    np.testing.assert_allclose(logits(found, x), z @ p["w"] + p["b"], rtol=1e-3, atol=1e-4)
    assert p["w1"].shape == (6, 24)


@pytest.mark.parametrize("how", [
    Tuning(learning_rate=1e-2), Tuning("mlp", learning_rate=1e-2), Tuning("mlp", NMTune(), learning_rate=1e-2),
    Tuning("mlp", NMTune.paper(), learning_rate=1e-2), Tuning("mlp", SKD(), learning_rate=1e-2),
], ids=["linear", "mlp", "nmtune", "paper", "skd"])  # fmt: skip
def test_heads_learn_and_the_best_epoch_is_kept(how, rng):
    x, y = blobs(rng, 600, far=3.0)
    other = blobs(np.random.default_rng(9), 300, far=3.0)
    found = tune(x, y, how, held_out=other)
    assert accuracy(found, *other) == pytest.approx(found.held.max())
    assert found.held.max() > 0.9
    assert found.loss[-1] < found.loss[0]


def test_adjusted_logits_find_the_tail(rng):
    x, y = blobs(rng, 2000, far=1.5)
    kept = (y == 0) | (rng.random(2000) < np.where(y == 1, 0.1, 0.03))
    test = blobs(np.random.default_rng(5), 1500, far=1.5)
    plain, adjusted = (tune(x[kept], y[kept], Tuning(epochs=60, learning_rate=1e-2, adjust=a)) for a in (0.0, 1.0))
    tail = test[1] == 2
    assert accuracy(adjusted, test[0][tail], test[1][tail]) > accuracy(plain, test[0][tail], test[1][tail]) + 0.2
    assert accuracy(adjusted, *test) > accuracy(plain, *test)


def spurious(rng, count, share=0.95):
    """Two classes; a loud feature agrees with the class in most rows, a quiet one always. Groups: class and loud."""
    y = rng.integers(2, size=count)
    agrees = rng.random(count) < share
    loud = np.where(agrees, y, 1 - y)
    x = np.stack([3 * (2 * loud - 1) + rng.normal(size=count), 1.0 * (2 * y - 1) + 0.7 * rng.normal(size=count)], 1)
    return x.astype(np.float32), y, 2 * y + loud


def worst(head, x, y, groups):
    return min(accuracy(head, x[groups == g], y[groups == g]) for g in range(4))


def test_robust_groups_and_twice_trained_heads_lift_the_worst_group(rng):
    x, y, groups = spurious(rng, 2000)
    test = spurious(np.random.default_rng(7), 2000, 0.5)
    how = Tuning(epochs=40, learning_rate=1e-2)
    plain = worst(tune(x, y, how), *test)
    assert worst(tune(x, y, Tuning(epochs=40, learning_rate=1e-2, robust=0.1), groups=groups), *test) > plain + 0.1
    second, wrong = jtt(x, y, how, first=5, upweight=20.0)
    assert worst(second, *test) > plain + 0.1
    early = tune(x, y, Tuning(epochs=5, learning_rate=1e-2))
    assert wrong.tolist() == np.flatnonzero(logits(early, x).argmax(1) != y).tolist()
    with pytest.raises(UsageError, match="every row right"):
        jtt(*blobs(rng, 100, far=50.0), Tuning(learning_rate=0.1), first=30)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"how": lambda: Tuning("mpl")}, UnknownNameError, "Did you mean 'mlp'"),
        ({"how": lambda: Tuning(penalty=NMTune())}, UsageError, "take head='mlp'"),
        ({"how": lambda: Tuning(epochs=0)}, UsageError, "should be positive"),
        ({"how": lambda: Tuning(adjust=-1.0)}, UsageError, "0 or more"),
        ({"how": lambda: Tuning(robust=0.1)}, UsageError, "belong together"),
        ({"groups": np.zeros(50, int)}, UsageError, "belong together"),
        ({"classes": 2}, DataError, "0..1 were wanted"),
        ({"weights": np.ones(3)}, ShapeError, "weights of 3 rows"),
        ({"views": np.ones((3, 6))}, ShapeError, r"features \[3, 6\]"),
        ({"how": lambda: Tuning(learning_rate=1e38)}, NonFiniteError, "diverged in epoch"),
    ],
)
def test_what_is_wrong_is_refused(change, error, match, rng):
    x, y = blobs(rng, 50)
    y[0] = 2
    more = {name: value for name, value in change.items() if name != "how"}
    make = change.get("how", Tuning)
    run = lambda: tune(x, y, make(), **more)  # noqa: E731  # the choice is refused here too
    with pytest.raises(error, match=match):
        run()


def test_features_that_are_not_finite_are_named(rng):
    x, y = blobs(rng, 20)
    x[4, 1] = np.nan
    with pytest.raises(NonFiniteError, match="row 4"):
        tune(x, y)
    with pytest.raises(ShapeError, match="integers"):
        tune(np.ones((20, 2)), np.ones(20))
