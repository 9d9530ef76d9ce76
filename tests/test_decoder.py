"""The decoder: against its equations in float64, causal, traceable, and the same when trained twice."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uimjax as uj
from uimjax import steps, training
from uimjax.errors import UsageError
from uimjax.models.decoder import Shape, build, build_decoder

SMALL = {"vocabulary": 11, "length": 9, "layers": 2, "width": 8, "heads": 4}


def rows(rng, count=6, length=9, vocabulary=11):
    tokens = rng.integers(vocabulary, size=(count, length)).astype(np.int32)
    counted = (np.arange(length)[None, :] < rng.integers(3, length + 1, size=count)[:, None]).astype(np.float32)
    return {"tokens": tokens, "counted": counted}


def by_hand(params, shape, tokens):
    """Logits in NumPy, one position and one head at a time."""
    p = {jax.tree_util.keystr(k, simple=True, separator="/").removesuffix("/value"): np.asarray(v, np.float64)
         for k, v in jax.tree_util.tree_flatten_with_path(params)[0]}  # fmt: skip
    per, share = shape.width // shape.heads, shape.heads // shape.groups
    x = p["embedding"][tokens]
    if shape.positions == "learned":
        x = x + p["position"][: len(tokens)]

    def norm(x, name):
        if shape.norm == "rms":
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p[f"{name}/scale"]
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p[f"{name}/scale"] + p[f"{name}/bias"]

    def turned(vector, t):
        if shape.positions != "rotary":
            return vector
        half, out = per // 2, vector.copy()
        for k in range(half):
            angle = t / 10000 ** (k / half)
            a, b = vector[k], vector[k + half]
            out[k] = a * np.cos(angle) - b * np.sin(angle)
            out[k + half] = b * np.cos(angle) + a * np.sin(angle)
        return out

    for layer in range(shape.layers):
        at = f"blocks/{layer}"
        h = norm(x, f"{at}/before")
        q, kv = h @ p[f"{at}/attention/query/kernel"], h @ p[f"{at}/attention/key_value/kernel"]
        mixed = np.zeros((len(tokens), shape.heads * per))
        for t, head in itertools.product(range(len(tokens)), range(shape.heads)):
            group = head // share
            mine = turned(q[t, head * per : (head + 1) * per], t)
            keys = [turned(kv[s, group * per : (group + 1) * per], s) for s in range(t + 1)]
            values = [kv[s, (shape.groups + group) * per : (shape.groups + group + 1) * per] for s in range(t + 1)]
            weight = np.exp([mine @ key / np.sqrt(per) for key in keys])
            mixed[t, head * per : (head + 1) * per] = (weight / weight.sum()) @ np.asarray(values)
        x = x + mixed @ p[f"{at}/attention/out/kernel"]
        h = norm(x, f"{at}/between") @ p[f"{at}/feedforward/up/kernel"]
        if shape.mlp == "swiglu":
            gate, h = np.split(h, 2, -1)
            h = gate / (1 + np.exp(-gate)) * h
        else:
            h = h + p[f"{at}/feedforward/up/bias"]
            h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + h @ p[f"{at}/feedforward/down/kernel"] + p.get(f"{at}/feedforward/down/bias", 0)
    x = norm(x, "last")
    return x @ (p["embedding"].T if shape.tied else p["head/kernel"])


CHOICES = [
    {"positions": "rotary", "norm": "rms", "mlp": "swiglu", "kv_heads": 2, "tied": True},
    {"positions": "learned", "norm": "layer", "mlp": "gelu", "kv_heads": 0, "tied": False},
    {"positions": "rotary", "norm": "layer", "mlp": "gelu", "kv_heads": 1, "tied": True, "hidden": 5},
    {"positions": "learned", "norm": "rms", "mlp": "swiglu", "kv_heads": 4, "tied": False},
]


@pytest.mark.parametrize("choice", CHOICES)
def test_logits_and_losses_equal_the_equations(choice, rng, x64):
    del x64
    shape = Shape(**SMALL, **choice)
    task, params = build_decoder(shape, 0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.5), params)
    batch, loss = rows(rng, 2), jax.jit(task.loss)
    for k in range(2):
        example = {"tokens": batch["tokens"][k], "counted": batch["counted"][k].astype(np.float64)}
        want = by_hand(params, shape, example["tokens"])
        np.testing.assert_allclose(jax.jit(task.outputs)(params, example), want, rtol=1e-9, atol=1e-9)
        logp = want - np.log(np.exp(want).sum(-1, keepdims=True))
        nll = [0.0, *(-logp[t - 1, example["tokens"][t]] * example["counted"][t] for t in range(1, 9))]
        np.testing.assert_allclose(loss(params, example), nll, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("choice", CHOICES[:2])
def test_a_token_never_sees_what_comes_after_and_gradients_equal_vmap_grad(choice, rng):
    task, params = build_decoder(Shape(**(SMALL | {"layers": 1}), **choice), 0)
    batch = rows(rng)
    other = batch["tokens"].copy()
    other[:, 5:] = (other[:, 5:] + 3) % 11
    every = jax.jit(jax.vmap(lambda tokens: task.outputs(params, {"tokens": tokens})))
    a, b = (np.asarray(every(tokens)) for tokens in (batch["tokens"], other))
    np.testing.assert_array_equal(a[:, :5], b[:, :5])
    assert not np.allclose(a[:, 5:], b[:, 5:])
    found = uj.per_example_gradients(task, params, batch)
    want = jax.jit(jax.vmap(jax.grad(lambda p, r: task.loss(p, r).sum()), in_axes=(None, 0)))(params, batch)
    for path, leaf in jax.tree_util.tree_flatten_with_path(want)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        np.testing.assert_allclose(found[name], leaf, rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"width": 10}, "width 10 does not divide over 4 heads"),
        ({"kv_heads": 3}, "4 heads cannot share 3 key-value heads"),
        ({"width": 4}, "1 numbers a head is odd"),
        ({"layers": 0}, "should be positive"),
    ],
)
def test_impossible_shapes_are_refused(bad, words):
    with pytest.raises(UsageError, match=words):
        Shape(**(SMALL | bad))


def test_a_model_of_ones_own_and_what_is_no_model():
    from flax import nnx

    class Own(nnx.Module):
        def __init__(self, rngs):
            self.table = nnx.Embed(11, 11, rngs=rngs)

        def __call__(self, tokens):
            return self.table(tokens)

    task, params = build(Own(nnx.Rngs(0)))
    assert task.loss(params, {"tokens": np.arange(4), "counted": np.ones(4)}).shape == (4,)
    with pytest.raises(UsageError, match="a flax.nnx.Module of tokens"):
        build(lambda tokens: tokens)  # pyright: ignore[reportArgumentType]  # the test

    class WithState(Own):
        def __init__(self, rngs):
            super().__init__(rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

    with pytest.raises(UsageError, match="build it for evaluation"):
        build(WithState(nnx.Rngs(0)))


def test_trained_twice_and_interrupted_it_has_the_same_losses(rng, tmp_path):
    task, params = build_decoder(Shape(**(SMALL | {"layers": 1})), 3)
    data = rows(rng, 40)
    recipe = steps.Recipe(epochs=6, batch_size=16, learning_rate=1e-2, seed=3)
    one, two = (training.fit(task, params, data, recipe) for _ in range(2))
    np.testing.assert_array_equal(one.example_loss, two.example_loss)
    assert one.loss[-1] < one.loss[0]

    class Stop(Exception):
        pass

    def stop_after_four(items, *_, **__):
        for k, item in enumerate(items):
            if k == 4:
                raise Stop
            yield item

    keep = {"folder": tmp_path / "f", "save_every": 2, "snapshots": (1, 3, 5)}
    with pytest.raises(Stop):
        training.fit(task, params, data, recipe, progress=stop_after_four, **keep)
    again = training.fit(task, params, data, recipe, **keep)
    np.testing.assert_array_equal(one.example_loss, again.example_loss)
    for path, leaf in jax.tree_util.tree_flatten_with_path(one.params)[0]:
        np.testing.assert_array_equal(leaf, dict(jax.tree_util.tree_flatten_with_path(again.params)[0])[path])
    training.fit(task, params, data, recipe, folder=tmp_path / "g", snapshots=(1, 3, 5))
    for epoch in (1, 3, 5):
        a, b = (training.snapshot(tmp_path / f, params, epoch) for f in ("f", "g"))
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_snapshots_are_spread_short_of_the_end_and_rates_follow_the_schedule():
    assert training.spread(12, 5) == (2, 4, 6, 8, 10)
    assert training.spread(12, 1) == (12,)
    assert training.spread(2, 5) == (1, 2)
    recipe = steps.Recipe(epochs=10, learning_rate=0.5)
    assert steps.rate(recipe, 0) == pytest.approx(1.0)
    assert steps.rate(recipe, 10) == pytest.approx(0.1)
    assert steps.rate(recipe, 5) == pytest.approx(0.55)
    assert steps.rate(steps.Recipe(schedule="constant"), 7) == 1.0
